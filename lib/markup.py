"""Text of strangers stays text: in a table of markdown and in a terminal.

In HTML it does so by the templates of lib/show, which escape whatever is put in.
"""

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
