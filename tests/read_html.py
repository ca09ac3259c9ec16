"""A page as a reader meets it: its words, links, pictures and headings."""

from html.parser import HTMLParser

VOID = {"img", "meta", "link", "br", "hr", "input", "source", "line", "circle", "path"}


class Page(HTMLParser):
    """What a page holds, after `Page(text)`. elements   (tag, attributes) in order
    headings   (level, text) details    texts of what is folded words      all texts,
    styles aside, one space between any two of them unclosed   tags left open, which
    should be none"""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.headings: list[tuple[int, str]] = []
        self.details: list[str] = []
        self._open: list[tuple[str, list[str]]] = [("", [])]
        self.feed(text)
        self.close()
        (_, texts), *unclosed = self._open
        self.words, self.unclosed = _line(texts), [tag for tag, _ in unclosed]

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self) -> list[str]:
        return [given["id"] for _, given in self.elements if given.get("id")]

    @property
    def alts(self) -> list[str]:
        return [given["alt"] for given in self.all("img")]

    def fetched(self) -> list[str]:
        """Addresses that a browser would load to show the page, data: aside."""
        loads = [given.get(k) for _, given in self.elements for k in ("src", "data")]
        loads += [given.get("href") for given in self.all("link")]
        return [one for one in loads if one and not one.startswith("data:")]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        for _, texts in self._open if self._open[-1][0] != "style" else ():
            texts.append(data)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        name, texts = self._open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), _line(texts)))
        elif tag == "details":
            self.details.append(_line(texts))


def _line(texts: list[str]) -> str:
    return " ".join("".join(texts).split())
