"""Markdown and lines of a terminal from the text of strangers."""

from html.parser import HTMLParser

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from lib import markup

STRANGE = [
    "<img src=x onerror=alert(1)>",
    "</td></table><svg/onload=x>",
    "a|b",
    "a\\|b\\",
    "`<b>`",
    "``",
    "$x$ and $$y$$",
    r"\(x\) \[x\]",
    "*em* **strong** _em_ __x__ a_b_c ~~s~~",
    "[a](javascript:alert(1)) ![a](b)",
    "&lt;b&gt; &copy AT&T & b",
    "a < b <= c",
    "two\nlines",
    "\x1b[31mred\x9b0m",
]


class Cells(HTMLParser):
    """The texts of a table's cells, and every tag of the page."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags = [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.texts += [""] if tag == "td" else []

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data.strip("\n")


def test_a_table_shows_the_text_of_strangers_as_it_is():
    rows = [[text, markup.code(text), markup.Marked("*end*")] for text in STRANGE]
    made = markup.grid([["text", "code", "marked"], *rows])
    cells = Cells()
    cells.feed(MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render(made))
    told = [cell for text in STRANGE for cell in [markup.shown(text)] * 2 + ["end"]]
    assert [text.rstrip() for text in cells.texts] == told
    assert cells.tags == {"table", "thead", "tbody", "tr", "th", "td", "code", "em"}


def test_what_steers_a_terminal_is_written_out():
    told = markup.shown("a\x1b]0;title\x07\r\u202eb\ud800é")
    assert told == "a\\x1b]0;title\\x07\\r\\u202eb\\ud800é"
    assert markup.shown("x" * 500, 10) == "x" * 10 + " ..."
