"""HTML and markdown from values: escaped unless it is markup already."""

import struct
from html.parser import HTMLParser

import pytest
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from read_html import Page

from lib import markup
from lib.markup import Html, body, bullets, framed, join, png, prose, table, tag

HOSTILE = '</p><script>alert("x")</script>&amp;'


def test_text_is_escaped_and_markup_is_not():
    cell = tag("p", HOSTILE, tag("b", "<"), title=HOSTILE)
    assert isinstance(cell, Html)
    page = Page(cell)
    assert [name for name, _ in page.elements] == ["p", "b"]
    assert page.elements[0][1]["title"] == HOSTILE
    assert "&amp;amp;" in cell and "<b>&lt;</b>" in cell


def test_attributes_have_their_html_names():
    made = tag("p", class_="a", data_label="b", open=True, id=None, hidden=False)
    assert made == '<p class="a" data-label="b" open></p>'
    assert tag("meta", name="x") == '<meta name="x" />'


def test_parts_that_are_none_leave_nothing():
    assert tag("p", None, "", 0) == "<p>0</p>"
    assert join(["a", Html("<br>"), "<"], ", ") == "a, <br>, &lt;"
    assert bullets([]) == "" and bullets(["<"]) == "<ul><li>&lt;</li></ul>"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("**L1** is *so*", "<strong>L1</strong> is <em>so</em>"),
        ("`a < b` and <b>", "<code>a &lt; b</code> and &lt;b&gt;"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("`outputs/x-seed=*`", "<code>outputs/x-seed=*</code>"),
    ],
)
def test_prose_knows_the_markdown_of_the_reports(text, made):
    assert prose(text) == made


def test_tables_have_headers_a_caption_and_labels_for_phones():
    made = Page(table("Sizes", ["set", tag("i", "n")], [["L1", 5], ["<", 6]]))
    assert made.tables == {"Sizes": [["set", "n"], ["L1", "5"], ["<", "6"]]}
    scopes = [given["scope"] for given in made.all("th")]
    assert scopes == ["col", "col", "row", "row"]
    assert [given["data-label"] for given in made.all("td")] == ["n", "n"]
    box = made.all("div")[0]
    assert box["aria-label"] == "Sizes" and box["tabindex"] == "0"


def test_bodies_have_a_title_over_all_columns():
    made = Page(framed("T", ["a", "b"], [body(["a", "b"], [[1, 2]], "first")]))
    group = next(g for g in made.all("th") if g["scope"] == "rowgroup")
    assert group["colspan"] == "2"
    with pytest.raises(ValueError):
        body(["a", "b"], [[1, 2, 3]])


def test_a_picture_stands_in_the_page_at_its_size(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", 900, 300))
    (given,) = Page(png(path, 'bars "x"')).all("img")
    assert given["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert (given["width"], given["height"]) == ("576", "192")  # of 150 dots an inch
    assert given["alt"] == 'bars "x"'
    path.write_bytes(b"<svg>")
    with pytest.raises(ValueError, match=r"a\.png is not a PNG"):
        png(path, "x")


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
