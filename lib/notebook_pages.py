"""Executed notebooks as pages that read without a network, and where things stand in
them.

nbconvert's "lab" page fetches require.js, MathJax and the widgets' code from other
hosts. Here nothing is fetched and nothing runs: formulas are drawn beforehand as
pictures whose alternative text is their LaTeX, widgets fall back to the picture or text
beside them, and a cell that JupyterLab folds (`source_hidden`) stands in a <details>.

Formulas are drawn by matplotlib's mathtext, a large part of LaTeX's mathematics
(https://matplotlib.org/stable/users/explain/text/mathtext.html); one that it cannot
read is shown as it was typed.

Example: `convert(run / "03_grpo.ipynb")` writes run/03_grpo.html; in it every cell is
an anchor, so `sections(cells(run / "03_grpo.ipynb"))[1]` is
Section(anchor="cell-id=9e107d9d", title="1 The reward, by hand", level=2).
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib
import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert import HTMLExporter
from nbconvert.exporters.html import contextfilter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from lib.records import read_json, sha256, write_text

STYLE = Path(__file__).with_name("notebook_page.css")
# Only what stands in the file itself; a widget has its picture or text beside it.
SHOWN = [
    *("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg"),
    *("text/latex", "text/plain"),
]
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>{{ resources.page_style }}</style>
{% endblock %}
{% block codecell %}
{% if cell.metadata.get("jupyter", {}).get("source_hidden") %}
<details class="folded"><summary>{{ "Solution" if "solution" in
  cell.metadata.get("tags", []) else "Code" }}</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block data_png %}
{% set alt = output | get_metadata('alt', 'image/png') or resources.undescribed %}
<div class="jp-RenderedImage jp-OutputArea-output"><img alt="{{ alt | escape_html }}"
  src="data:image/png;base64,{{ output.data['image/png'] }}"></div>
{% endblock %}
"""
SYNONYMS = {  # that mathtext does not know, in words that it does
    **{r"\le": r"\leq", r"\ge": r"\geq", r"\tfrac": r"\frac", r"\!": ""},
    **dict.fromkeys((r"\big", r"\bigl", r"\bigr", r"\Big", r"\Bigl", r"\Bigr"), ""),
    **dict.fromkeys((r"\lvert", r"\rvert"), "|"),
    **dict.fromkeys((r"\lVert", r"\rVert"), r"\|"),
}
COMMAND = r"\\[A-Za-z]+|\\!"
UNDESCRIBED = "A figure; the text above it says what to look for."
HEADING = re.compile(r"^(#{1,3})\s+(.+?)\s*#*$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """A heading of a notebook: its cell's anchor in the page, its words, 1 to 3."""

    anchor: str
    title: str
    level: int


class Cell(NamedTuple):
    """A cell of a notebook: code or markdown, its source, the section it is in."""

    kind: str
    source: str
    section: Section | None


class Made(NamedTuple):
    """Where a figure was made."""

    notebook: Path
    section: Section


def is_fresh(notebook: Path) -> bool:
    """Whether the page of a notebook was made of just this content: it ends with its
    hash. Times would not tell; a clock may have been set back."""
    page = notebook.with_suffix(".html")
    return page.exists() and page.read_bytes().endswith(_end(notebook).encode())


def convert(notebook: Path) -> Path:
    """Write an executed notebook as a page beside it; returns the page's path."""
    page = notebook.with_suffix(".html")
    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN
    config.CoalesceStreamsPreprocessor.enabled = True
    exporter = _Offline(raw_template=TEMPLATE, config=config)
    end = _end(notebook)
    node = nbformat.read(notebook, as_version=4)
    node.metadata.pop("widgets", None)  # their state, of no use without their code
    resources = {"page_style": _style(exporter), "undescribed": UNDESCRIBED}
    resources["metadata"] = {"name": notebook.stem, "path": str(notebook.parent)}
    html, _ = exporter.from_notebook_node(node, resources)
    write_text(page, html + end)
    return page


def _end(notebook: Path) -> str:
    """The last line of the notebook's page."""
    return f"\n<!-- made of {sha256(notebook)} -->\n"


def cells(notebook: Path) -> list[Cell]:
    """The cells of a notebook, each with the section it stands in."""
    found, section = [], None
    for cell in read_json(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = HEADING.search(FENCED.sub("", source))
            if heading:
                title = re.sub(r"[*`]", "", heading[2])
                anchor = f"cell-id={cell.get('id', '')}"
                section = Section(anchor, title, len(heading[1]))
        found.append(Cell(cell["cell_type"], source, section))
    return found


def sections(own: Sequence[Cell]) -> list[Section]:
    """The headings of a notebook in their order."""
    return list(dict.fromkeys(cell.section for cell in own if cell.section))


def maker(notebooks: Mapping[Path, Sequence[Cell]], figure: str) -> Made | None:
    """The notebook and section whose code names a file below figures/, or None.

    A name in full counts more than `f"question_{number}.png"`, which names
    question_0.png too, and that more than `f"{method}.png"`, which may name anything.
    Of several notebooks the last one drew what is there now.
    """
    for names in (_whole, _in_part, _any):
        for path, own in reversed(notebooks.items()):
            for cell in own:
                if cell.kind == "code" and cell.section and names(cell.source, figure):
                    return Made(path, cell.section)
    return None


def _whole(source: str, figure: str) -> bool:
    return f'"{figure}"' in source


def _in_part(source: str, figure: str) -> bool:
    patterns = [name for name in _patterns(source) if not name.startswith(".+")]
    return any(re.fullmatch(name, figure) for name in patterns)


def _any(source: str, figure: str) -> bool:
    return any(re.fullmatch(name, figure) for name in _patterns(source))


def inline_formula(latex: str) -> str:
    """A formula within a line: a picture on the line's height, its LaTeX as its text.

    >>> inline_formula(r"\\undefined")
    '<code class="formula">\\\\undefined</code>'
    """
    return _formula(latex, "formula")


def block_formula(latex: str) -> str:
    """A formula on a line of its own."""
    return f'<p class="formula-line">{_formula(latex, "formula large")}</p>'


class _Renderer(IPythonRenderer):
    """Markdown as nbconvert renders it, but with formulas drawn."""

    def inline_math(self, body: str) -> str:
        return inline_formula(body)

    def block_math(self, body: str) -> str:
        return block_formula(body)


class _Offline(HTMLExporter):
    """nbconvert's exporter with that renderer."""

    @contextfilter
    def markdown2html(self, context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        path = context.get("resources", {}).get("metadata", {}).get("path", "")
        renderer = _Renderer(
            escape=False,
            attachments=attachments,
            embed_images=True,
            path=path,
            exclude_anchor_links=True,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def _style(exporter: HTMLExporter) -> str:
    """Ours, and the lab's dark colours for whoever prefers them."""
    loader, environment = exporter.environment.loader, exporter.environment
    dark, *_ = loader.get_source(environment, "static/theme-dark.css")
    own = STYLE.read_text(encoding="utf-8")
    return f"@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


def _patterns(source: str) -> Iterator[str]:
    """Names of PNG files in f-strings, as patterns."""
    for name in re.findall(r'f"([^"/]*\{[^"/]*\.png)"', source):
        yield ".+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", name))


def _formula(latex: str, style: str) -> str:
    latex = " ".join(latex.split())
    drawn, text = _draw(latex), escape(latex)
    if drawn is None:
        return f'<code class="{style}">{text}</code>'
    svg, height, depth = drawn
    place = f"height: {height:.2f}em; vertical-align: {-depth:.2f}em"
    source = f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
    return f'<img class="{style}" alt="{text}" src="{source}" style="{place}">'


def _draw(latex: str) -> tuple[bytes, float, float] | None:
    """(SVG, its height, what of it hangs below the line), both in the text's size.

    None where mathtext cannot read it.
    """
    known = re.sub(COMMAND, lambda found: SYNONYMS.get(found[0], found[0]), latex)
    drawn = io.BytesIO()
    size = 12  # points
    settings = {"mathtext.fontset": "cm", "font.size": size, "svg.hashsalt": "formula"}
    settings["text.parse_math"] = True  # lib/plots.py turns it off for every text
    with matplotlib.rc_context(settings):
        try:
            depth = math_to_image(f"${known}$", drawn, format="svg")
        except ValueError:
            return None
    svg = drawn.getvalue()
    height = float(re.search(rb'height="([\d.]+)pt"', svg)[1])
    return svg, height / size, float(depth) / size
