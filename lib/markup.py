"""Text of strangers stays text: in a page, in a table of markdown, in a terminal.

HTML is made from Python values, escaped unless it is markup already.

Only what `tag` and the functions below return is `Html`; any other text, a model's
completion say, is escaped where it is put into a page. So no forgotten call can let a
text become markup.

    >>> tag("td", "a < b", tag("b", "&"), class_="number")
    '<td class="number">a &lt; b<b>&amp;</b></td>'
    >>> prose("**L1**: run `make test`")
    '<strong>L1</strong>: run <code>make test</code>'
"""

import re
import struct
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

LONGEST = 120  # characters of a stranger's text within a message
# What markdown, or TeX in it, takes for more than a character: `<` before a tag, `_` at
# the edge of a word, `]` before the target of a link.
ACTIVE = re.compile(
    r"[`$\\*]|<(?![\s=])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|~(?=~)"
)
EMPTY = {"img", "meta", "link", "line", "circle", "path"}  # have no end tag
PIXELS_AN_INCH = 150 / 96  # of lib.plots.save, over those of CSS


def shown(text: object, most: int | None = None) -> str:
    """A text on one line of a terminal: whatever would steer it is written out, what is
    beyond `most` characters is left out.

    >>> shown("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    text = str(text)
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text[:most]
    )
    return line if most is None or len(text) <= most else f"{line} ..."


class Marked(str):
    """Markdown; put into a table as it is."""


def literal(text: object) -> Marked:
    """A text as markdown that shows just that text, in a line or a cell of a table.

    What could be markup there is written as a reference to its character, `|` as `\\|`.

    >>> literal("grpo | <b>care</b> at $1, 3 < 4 [0, 1]")
    'grpo \\\\| &#60;b>care&#60;/b> at &#36;1, 3 < 4 [0, 1]'
    """
    safe = ACTIVE.sub(lambda found: f"&#{ord(found[0])};", shown(text))
    return Marked(safe.replace("|", "\\|"))


def code(text: object) -> Marked:
    """A text as inline code of markdown, whatever backticks it holds."""
    text, safe = shown(text), literal(text)
    return Marked(f"`{text}`" if text == safe else f"<code>{safe}</code>")


def grid(lines: Sequence[Sequence[object]]) -> str:
    """A markdown table of cells, the first line its header; cells are text unless they
    are Marked."""
    header, *rest = lines
    lines = [header, ["---"] * len(header), *rest]
    lines = [
        [cell if isinstance(cell, Marked) else literal(cell) for cell in line]
        for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class Html(str):
    """Markup; put into a page as it is."""


def tag(name: str, /, *parts: object, **attributes: object) -> Html:
    """An element; parts are escaped unless they are Html, None and "" leave nothing.

    `class_` is class, `data_label` data-label; True is an attribute without a value,
    None and False leave it out.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in EMPTY:
        return Html(f"<{name}{given} />")
    return Html(f"<{name}{given}>{join(parts)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, each escaped unless it is Html."""
    texts = ["" if part is None else part for part in parts]
    return Html(
        between.join(
            text if isinstance(text, Html) else escape(str(text), quote=False)
            for text in texts
        )
    )


def prose(text: str) -> Html:
    """A sentence with the markdown of lib/report.py: **strong**, *em* and `code`."""
    safe = escape(text, quote=False)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
    return Html(re.sub(r"(?<![*\w])\*([^*\s][^*]*)\*(?!\w)", r"<em>\1</em>", safe))


def bullets(items: Iterable[object]) -> Html:
    """A list; nothing where there are no items."""
    items = [tag("li", item) for item in items]
    return tag("ul", *items) if items else Html("")


def table(
    caption: str,
    columns: Sequence[object],
    rows: Iterable[Sequence[object]],
    class_: str = "",
) -> Html:
    """A table in a box that scrolls by itself; see `body` for the rows."""
    return framed(caption, columns, [body(columns, rows)], class_)


def framed(
    caption: str, columns: Sequence[object], bodies: Sequence[Html], class_: str = ""
) -> Html:
    """A table of several bodies below one head."""
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    whole = tag(
        "table", tag("caption", caption), tag("thead", head), *bodies, class_=class_
    )
    box = {"role": "region", "tabindex": "0", "aria_label": caption}
    return tag("div", whole, class_="scroll", **box)


def body(
    columns: Sequence[object], rows: Iterable[Sequence[object]], title: object = None
) -> Html:
    """The rows of a table, the first cell of each its header, below a title of theirs.

    Every cell carries the name of its column, for phones, where rows become cards.
    """
    lines = []
    if title is not None:
        span = {"colspan": len(columns), "scope": "rowgroup"}
        lines.append(tag("tr", tag("th", title, **span), class_="group"))
    for first, *rest in rows:
        labels = [re.sub(r"<[^>]*>", "", str(column)) for column in columns[1:]]
        cells = [
            tag("td", cell, data_label=label)
            for cell, label in zip(rest, labels, strict=True)
        ]
        lines.append(tag("tr", tag("th", first, scope="row"), *cells))
    return tag("tbody", *lines)


def folded(summary: object, *parts: object) -> Html:
    """Parts that a reader opens; printed open."""
    return tag("details", tag("summary", summary), *parts)


def png(path: Path, alt: str) -> Html:
    """A PNG file within the page, at the size it was drawn for."""
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise ValueError(f"{path} is not a PNG: delete it and run its notebook again")
    width, height = struct.unpack(">II", data[16:24])
    return tag(
        "img",
        src=f"data:image/png;base64,{b64encode(data).decode()}",
        alt=alt,
        width=round(width / PIXELS_AN_INCH),
        height=round(height / PIXELS_AN_INCH),
    )
