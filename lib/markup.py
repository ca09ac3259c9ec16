"""Text of strangers stays text: in a table of markdown and in a terminal.

Only what the functions below return is `Marked`; any other text, such as a completion,
is escaped where it is put into a table. In HTML the templates of lib/show do so."""

import re
from collections.abc import Sequence

LONGEST = 120  # characters of a stranger's text within a message
# What markdown, or TeX in it, takes for more than a character: `<` before a tag, `_` at
# the edge of a word, `]` before the target of a link.
ACTIVE = re.compile(
    r"[`$\\*]|<(?![\s=])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|~(?=~)"
)


def shown(text: object, most: int | None = None) -> str:
    """A text on one line of a terminal: whatever would steer it is written out, what is
    beyond `most` characters is left out."""
    text = str(text)
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text[:most]
    )
    return line if most is None or len(text) <= most else f"{line} ..."


class Marked(str):
    """Markdown; put into a table as it is."""


def literal(text: object) -> Marked:
    """A text as markdown that shows just that text, in a line or a cell of a table: a
    reference for each character that could be markup there, `|` as `\\|`."""
    safe = ACTIVE.sub(lambda found: f"&#{ord(found[0])};", shown(text))
    return Marked(safe.replace("|", "\\|"))


def code(text: object) -> Marked:
    """A text as inline code of markdown, whatever backticks it holds."""
    text, safe = shown(text), literal(text)
    return Marked(f"`{text}`" if text == safe else f"<code>{safe}</code>")


def grid(lines: Sequence[Sequence[object]]) -> str:
    """A markdown table, the first line its header; cells are text unless Marked."""
    header, *rest = lines
    made = ""
    for line in (header, ["---"] * len(header), *rest):
        cells = [c if isinstance(c, Marked) else literal(c) for c in line]
        made += f"| {' | '.join(cells)} |\n"
    return made
