"""A run's report and its notebooks as pages that read without a network.

    python -m lib.run report outputs/mini

writes report.html, which is the executed 05_analysis without its code, and a page of
each executed notebook beside it. Nothing is fetched and nothing runs: pictures and
styles stand in the file, formulas are MathML, and a content security policy forbids the
rest, so what a stranger wrote could not run even where it were markup.

Tags of cells say where their output goes: `answer` to the top of the report, `folded`
into a <details>, `lesson` into the notebook's page alone; `setup` and `parameters` are
folded on pages.

Example: of a run with 01_data and 05_analysis, report.html names both at its top,
01_data.html ends with a link to 05_analysis.html, and that with one to report.html.
"""

import argparse
import re
from collections.abc import Sequence
from html import escape, unescape
from itertools import count
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter
from nbconvert.exporters.html import contextfilter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from lib import chain
from lib.markup import Html, join, tag
from lib.paths import require, resolve
from lib.records import sha256, write_text
from lib.show.pages import STYLE as VIEWS

QUESTION = "Does reinforcement learning beat supervised fine-tuning?"
ANALYSIS = "05_analysis"
STYLE = Html(Path(__file__).with_name("show.css").read_text(encoding="utf-8"))
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Tags of what is not in the report.
NOTEBOOK_ALONE = {"lesson", "setup", "parameters", "injected-parameters"}
UNDESCRIBED = "A figure; the text above it says what to look for."
SHOWN = [  # of several forms of an output the first; a widget has its HTML beside it
    *("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg"),
    *("text/latex", "text/plain"),
]
TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{% macro inside(summary, body) %}<details><summary>{{ summary | escape_html }}</summary>
{{ body }}</details>{% endmacro %}
{% block codecell %}
{%- set tags = cell.metadata.get("tags", []) -%}
{%- set hidden = cell.metadata.get("jupyter", {}).get("source_hidden") -%}
{% if hidden %}{{ inside("Solution", super()) }}
{% elif "parameters" in tags or "injected-parameters" in tags %}
{{ inside("Parameters", super()) }}
{% elif "setup" in tags %}{{ inside("Imports and paths", super()) }}
{% elif "folded" in tags %}
{{ inside(cell.metadata.get("summary", "All of it"), super()) }}
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block data_png %}
{% set alt = output | get_metadata('alt', 'image/png') or resources.undescribed %}
{% set width = output | get_metadata('width', 'image/png') %}
<img class="drawn" alt="{{ alt | escape_html }}" {% if width %}width="{{ width }}"
{% endif %}src="data:image/png;base64,{{ output.data['image/png'] }}">
{% endblock %}
"""
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)</h2>', re.DOTALL)
TABLE = re.compile(r"<table>\s*<thead>(.*?)</thead>(.*?)</table>", re.DOTALL)


class _Renderer(IPythonRenderer):
    """Markdown as nbconvert renders it, formulas as MathML, anchors by title."""

    def heading(self, text: str, level: int, **attributes) -> str:
        name = re.sub(r"\W+", "-", unescape(_plain(text))).strip("-").lower()
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def inline_math(self, body: str) -> str:
        return formula(body, "inline")

    def block_math(self, body: str) -> str:
        return formula(body, "block")


class _Exporter(HTMLExporter):
    """nbconvert's exporter with that renderer."""

    @contextfilter
    def markdown2html(self, context, source: str) -> str:
        renderer = _Renderer(escape=False)
        return MarkdownWithMath(renderer=renderer).render(source)


def formula(latex: str, place: str) -> str:
    """A formula as MathML, `place` inline or block; as it was typed if it is none.

    latex2mathml leaves what stands in a \\text as it is, so no `<` may come to it.
    """
    try:
        known = latex.strip().replace("<", r"\lt ").replace(">", r"\gt ")
        return to_mathml(known, display=place)
    except Exception:  # of many kinds; what was typed says as much
        return f"<code>{escape(latex)}</code>"


def write(run: str | Path, notebooks: str | Path = "", anew: bool = False) -> Path:
    """Write run/report.html and a page of every executed notebook; the report's path.

    Executed notebooks lie in the run's folder, or in `notebooks` when they were run by
    hand. A page of a notebook that has not changed stays, unless all are wanted `anew`.
    FileNotFoundError without 05_analysis, ValueError where a record is not as it was
    left.
    """
    folder = require(run, "run the notebooks first: python -m lib.run")
    chain.verify(folder)
    source = resolve(notebooks) if notebooks else folder
    last = require(source / f"{ANALYSIS}.ipynb", "run 05_analysis first")
    found = sorted(source.glob("0[0-9]_*[!d].ipynb"))  # no .unfinished.ipynb
    stems = [path.stem for path in found]
    for path in found:
        page(path, folder / f"{path.stem}.html", stems, anew=anew)
    return page(last, folder / "report.html", stems, report=True, anew=anew)


def page(
    notebook: Path,
    to: Path,
    stems: Sequence[str],
    report: bool = False,
    anew: bool = False,
) -> Path:
    """An executed notebook as one HTML file, with links to those named `stems`.

    It ends with the hash of what it was made of: times would not tell that it is
    fresh, a clock may have been set back.
    """
    end = f"\n<!-- made of {sha256(notebook)} {' '.join(stems)} -->\n"
    if not anew and to.exists() and to.read_bytes().endswith(end.encode()):
        return to
    node = nbformat.read(notebook, as_version=4)
    if not any(cell.get("outputs") for cell in node.cells):
        raise ValueError(f"{notebook} was not run: it has no outputs")
    name = notebook.stem
    if not report:
        write_text(to, _document(name, "", _cells(node, node.cells), stems) + end)
        return to
    top, rest = [], []
    for cell in node.cells:
        tags = cell.metadata.get("tags", [])
        if "answer" in tags:
            top.append(cell)
        elif not NOTEBOOK_ALONE & {*tags}:
            rest.append(cell)
    about = f"Run {to.parent.name} · SFT against GRPO for questions about video"
    head = join([tag("p", about, class_="kicker"), tag("h1", QUESTION)])
    head = Html(head + _cells(node, top, code=False))
    body = HEADING.sub(_with_code, _cells(node, rest, code=False))
    write_text(to, _document("report", head, body, stems) + end)
    return to


def _with_code(heading: re.Match) -> str:
    """A heading of the report with a link to where its numbers are computed."""
    link = f'<a class="code" href="{ANALYSIS}.html#{heading[1]}">code</a>'
    return heading[0].replace("</h2>", f" {link}</h2>")


def _cells(node: nbformat.NotebookNode, cells: list, code: bool = True) -> str:
    """Cells as HTML: pictures that enlarge, tables that a phone can show."""
    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN
    config.CoalesceStreamsPreprocessor.enabled = True
    config.TemplateExporter.exclude_input = not code
    config.TemplateExporter.exclude_input_prompt = True
    config.TemplateExporter.exclude_output_prompt = True
    exporter = _Exporter(raw_template=TEMPLATE, config=config, template_name="classic")
    part = nbformat.v4.new_notebook(cells=cells, metadata=dict(node.metadata))
    part.metadata.pop("widgets", None)  # their state, of no use without their code
    html, _ = exporter.from_notebook_node(part, {"undescribed": UNDESCRIBED})
    html = TABLE.sub(_labelled, html.replace(tag("style", VIEWS), ""))
    numbers = count(len(cells))  # other than those of the report's other part
    return re.sub(r"<img [^>]*>", lambda img: _enlarging(img[0], next(numbers)), html)


def _enlarging(img: str, number: int) -> str:
    """A picture that fills the screen at a tap, by CSS's :target, and goes back."""
    name = f"picture-{number}"
    return (
        f'<span class="picture" id="{name}"><a href="#{name}" id="at-{name}">{img}</a>'
        f'<a class="close" href="#at-{name}">close</a></span>'
    )


def _labelled(table: re.Match) -> str:
    """A table whose cells carry the name of their column: on phones rows are cards."""
    names = re.findall(r"<th[^>]*>(.*?)</th>", table[1], re.DOTALL)
    labels = [escape(unescape(_plain(name))) for name in names]

    def row(found: re.Match) -> str:
        own = iter(labels)
        label = lambda _: f'<td data-label="{next(own, "")}"'  # noqa: E731
        return re.sub("<td", label, found[0])

    rows = re.sub(r"<tr>.*?</tr>", row, table[2], flags=re.DOTALL)
    wide = ' class="wide"' if len(labels) > 4 else ""
    return f"<table{wide}>\n<thead>{table[1]}</thead>{rows}</table>"


def _plain(html: str) -> str:
    """The words of a heading, without its link to the code."""
    return re.sub(r'<a class="code".*?</a>|<[^>]*>', "", html).strip()


def _document(name: str, head: str, body: str, stems: Sequence[str]) -> str:
    """A whole page: the way to the other pages, contents, cells, the next page."""
    pages = ["report", *stems]
    named = {one: one.replace("_", " ") for one in pages}
    links = [
        tag("a", named[one], href=f"{one}.html", aria_current=one == name and "page")
        for one in pages
    ]
    contents = [
        tag("li", tag("a", Html(_plain(words)), href=f"#{anchor}"))
        for anchor, words in HEADING.findall(body)
    ]
    following = pages[(pages.index(name) + 1) % len(pages)]
    metas = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", named[name]),
        tag("style", VIEWS, STYLE),
    ]
    whole = tag(
        "body",
        tag("a", "Skip to the text", href="#text", class_="skip"),
        tag("nav", *links, class_="pages", aria_label="Pages of this run"),
        tag("header", Html(head.replace(" %", "\u00a0%"))),
        tag("nav", tag("ol", *contents), class_="contents", aria_label="Contents"),
        tag("main", Html(body.replace(" %", "\u00a0%")), id="text"),
        tag("footer", "Next: ", tag("a", named[following], href=f"{following}.html")),
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *metas), whole, lang='en')}\n"


def main(arguments: list[str] | None = None) -> None:
    """The command line: write the report of a run folder, say where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.run report", description=main.__doc__
    )
    parser.add_argument("run", type=Path, help="a run folder, such as outputs/mini")
    parser.add_argument(
        "--notebooks", default="", help="folder of notebooks that were run by hand"
    )
    given = parser.parse_args(arguments)
    print(write(resolve(given.run), given.notebooks, anew=True))
