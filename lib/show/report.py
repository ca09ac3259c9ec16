"""A run's report and its notebooks as pages that read without a network.

    python -m lib.run report outputs/mini

writes report.html, which is the executed 05_analysis without its code, and a page of
each executed notebook beside it. Pictures and styles stand in the file, formulas are
MathML. A browser fetches nothing and runs nothing for it.

Tags of cells say where their output goes: `answer` to the top of the report, `folded`
into a <details>, `lesson` into the notebook's page alone; `setup` and `parameters` are
folded on pages."""

import re
from collections.abc import Sequence
from html import escape, unescape
from itertools import count
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from lib import chain
from lib.doors import Door
from lib.paths import require, resolve
from lib.records import write_text
from lib.show import pages

ANALYSIS = "05_analysis"
STYLE = Path(__file__).with_name("show.css").read_text(encoding="utf-8")
CELLS = Path(__file__).with_name("cells.html").read_text(encoding="utf-8")
# Tags of what is not in the report.
NOTEBOOK_ALONE = {"lesson", "setup", "parameters", "injected-parameters"}
SHOWN = [  # of several forms of an output the first; a widget has its HTML beside it
    *("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg"),
    *("text/latex", "text/plain"),
]
HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)</h2>', re.DOTALL)


class _Renderer(IPythonRenderer):
    """Markdown as nbconvert renders it, formulas as MathML, anchors by title, cells of
    tables with the name of their column: on phones rows are cards."""

    def __init__(self):
        super().__init__(escape=False)
        self.columns: list[str] = []  # of a table, the next cell's first

    def heading(self, text: str, level: int, **attributes) -> str:
        name = re.sub(r"\W+", "-", _plain(text)).strip("-").lower()
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def table_cell(self, text: str, align=None, head: bool = False) -> str:
        if head:
            self.columns.append(_plain(text))
            return f"<th>{text}</th>\n"
        column, *others = self.columns
        self.columns = [*others, column]
        return f'<td data-label="{escape(column)}">{text}</td>\n'

    def table(self, text: str) -> str:
        wide = ' class="wide"' if len(self.columns) > 4 else ""
        self.columns = []
        return f"<table{wide}>\n{text}</table>\n"

    def inline_math(self, body: str) -> str:
        return formula(body, "inline")

    def block_math(self, body: str) -> str:
        return formula(body, "block")


def formula(latex: str, place: str) -> str:
    """A formula as MathML, `place` inline or block; as it was typed if it is none.

    latex2mathml leaves what stands in a \\text as it is, so no `<` may come to it."""
    try:
        known = latex.strip().replace("<", r"\lt ").replace(">", r"\gt ")
        return to_mathml(known, display=place)
    except Exception:  # of many kinds; what was typed says as much
        return f"<code>{escape(latex)}</code>"


def write(run: str | Path, notebooks: str | Path = "") -> Path:
    """Write run/report.html and a page of every executed notebook in the run's folder,
    or in `notebooks` (run by hand); the report's path. FileNotFoundError without
    05_analysis, ValueError where a record is not as it was left."""
    folder = require(run, "run the notebooks first: python -m lib.run")
    chain.verify(folder)
    source = resolve(notebooks) if notebooks else folder
    last = require(source / f"{ANALYSIS}.ipynb", "run 05_analysis first")
    found = sorted(source.glob("0[0-9]_*[!d].ipynb"))  # no .unfinished.ipynb
    names = ["report", *(path.stem for path in found)]
    for name, path in zip(names, [last, *found], strict=True):
        write_text(folder / f"{name}.html", page(path, name, folder.name, names))
    return folder / "report.html"


def page(notebook: Path, name: str, run: str, names: Sequence[str]) -> str:
    """The page `name` of an executed notebook, with links to those named `names`."""
    node = nbformat.read(notebook, as_version=4)
    if not any(cell.get("outputs") for cell in node.cells):
        raise ValueError(f"{notebook} was not run: it has no outputs")
    if name == "report":
        tags = [{*cell.metadata.get("tags", [])} for cell in node.cells]
        both = list(zip(node.cells, tags, strict=True))
        first = [cell for cell, own in both if "answer" in own]
        rest = [c for c, own in both if not own & {"answer", *NOTEBOOK_ALONE}]
        top = _cells(node, first, code=False)
        body = HEADING.sub(_with_code, _cells(node, rest, code=False))
    else:
        top, body = "", _cells(node, node.cells)
    return pages.TEMPLATES.get_template("page.html").render(
        name=name,
        run=run,
        pages=names,
        next=names[(names.index(name) + 1) % len(names)],
        top=Markup(top.replace(" %", "\u00a0%")),
        body=Markup(body.replace(" %", "\u00a0%")),
        contents=[(to, _plain(words)) for to, words in HEADING.findall(body)],
        views=Markup(pages.STYLE),
        style=Markup(STYLE),
    )


def _with_code(heading: re.Match) -> str:
    """A heading of the report with a link to where its numbers are computed."""
    link = f'<a class="code" href="{ANALYSIS}.html#{heading[1]}">code</a>'
    return heading[0].replace("</h2>", f" {link}</h2>")


def _cells(node: nbformat.NotebookNode, cells: list, code: bool = True) -> str:
    """Cells as HTML, their pictures such that they enlarge."""
    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN
    config.CoalesceStreamsPreprocessor.enabled = True
    config.TemplateExporter.exclude_input = not code
    config.TemplateExporter.exclude_input_prompt = True
    config.TemplateExporter.exclude_output_prompt = True
    exporter = HTMLExporter(raw_template=CELLS, config=config, template_name="classic")
    to_html = MarkdownWithMath(renderer=_Renderer()).render
    exporter.register_filter("markdown2html", to_html)
    part = nbformat.v4.new_notebook(cells=cells, metadata=dict(node.metadata))
    part.metadata.pop("widgets", None)  # their state, of no use without their code
    html, _ = exporter.from_notebook_node(part)
    numbers = count(len(cells))  # other than those of the report's other part
    return re.sub(
        r"<img [^>]*>",
        lambda img: _enlarging(img[0], next(numbers)),
        html.replace(pages.STYLE, ""),
    )


def _enlarging(img: str, number: int) -> str:
    """A picture that fills the screen at a tap, by CSS's :target, and goes back."""
    name = f"picture-{number}"
    return (
        f'<span class="picture" id="{name}"><a href="#{name}" id="at-{name}">{img}</a>'
        f'<a class="close" href="#at-{name}">close</a></span>'
    )


def _plain(html: str) -> str:
    """The words of a heading, without its link to the code."""
    return unescape(re.sub(r'<a class="code".*?</a>|<[^>]*>', "", html)).strip()


def main(arguments: list[str]) -> None:
    """The command line: write the report of a run folder, say where it is."""
    parser = Door("python -m lib.run report", __doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as outputs/mini")
    by_hand = "folder of notebooks that were run by hand"
    parser.add_argument("--notebooks", default="", help=by_hand)
    given = parser.parse_args(arguments)
    print(write(resolve(given.run), given.notebooks))
