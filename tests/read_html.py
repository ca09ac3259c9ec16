"""A page as a reader meets it: its links, pictures, headings and tables."""

from html.parser import HTMLParser

VOID = {"img", "meta", "link", "br", "hr", "input", "source", "line", "circle", "path"}


class Page(HTMLParser):
    """What a page holds, after `Page(text)`.

    elements   (tag, attributes) in order
    headings   (level, text)
    tables     a list of rows of cell texts, by caption
    details    texts of what is folded
    unclosed   tags left open, which should be none
    """

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.details: list[str] = []
        self.unclosed: list[str] = []
        self._open: list[tuple[str, list[str]]] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.unclosed = [tag for tag, _ in self._open]

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self) -> list[str]:
        return [given["id"] for _, given in self.elements if given.get("id")]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        for _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        name, texts = self._open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        text = " ".join(" ".join(texts).split())
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), text))
        elif tag in ("td", "th"):
            self._rows[-1].append(text)
        elif tag == "caption":
            self._caption = text
        elif tag == "table":
            self.tables[self._caption] = self._rows
        elif tag == "details":
            self.details.append(text)


def fetched(page: Page) -> list[str]:
    """Addresses that a browser would load to show the page, data: aside."""
    loads = [given.get("src") for _, given in page.elements]
    loads += [given.get("href") for given in page.all("link")]
    loads += [given.get("data") for given in page.all("object")]
    return [address for address in loads if address and not address.startswith("data:")]
