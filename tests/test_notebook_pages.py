"""An executed notebook as a page: nothing fetched, nothing run, everything readable."""

import base64

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from read_html import Page, fetched

from lib import notebook_pages

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
WIDGET = "application/vnd.jupyter.widget-view+json"


def picture(**metadata):
    return new_output("display_data", {"image/png": PNG}, metadata=metadata)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    cells = [
        new_markdown_cell("# 03 · GRPO\n\nWith $\\frac{1}{G}\\sum_i A_i$ and `$x$`."),
        new_markdown_cell("```\n# no heading\n```"),
        new_code_cell(
            "1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]
        ),
        new_markdown_cell("## 1 The *reward*, by hand\n\n$$r \\ge \\undefined{0}$$"),
        new_code_cell('plots.save(ax, figures / "grpo.png")', outputs=[picture()]),
        new_markdown_cell("## 2 Try it"),
        new_code_cell(
            'plots.save(ax, figures / f"question_{number}.png")',
            metadata={"jupyter": {"source_hidden": True}, "tags": ["solution"]},
            outputs=[picture(**{"image/png": {"alt": 'a "group" drawn'}})],
        ),
        new_code_cell(
            'f"{name}.png"',
            outputs=[
                new_output(
                    "display_data",
                    {WIDGET: {"model_id": "m"}, "text/plain": "a progress bar"},
                ),
                new_output("stream", name="stdout", text="<b>&"),
            ],
        ),
    ]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {}}}}
    node = new_notebook(cells=cells, metadata={"widgets": state})
    path = tmp_path_factory.mktemp("run") / "03_grpo.ipynb"
    nbformat.write(node, path)
    return path


@pytest.fixture(scope="module")
def html(notebook):
    path = notebook_pages.convert(notebook)
    assert path == notebook.with_suffix(".html")
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".tmp")] == []
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_nothing_is_fetched_and_nothing_runs(page, html):
    assert page.all("script") == [] and fetched(page) == []
    assert "@import" not in html and "url(http" not in html.replace('"', "")
    assert "cdnjs" not in html and "unpkg" not in html


def test_every_picture_has_a_text_in_its_place(page):
    alts = [given["alt"] for given in page.all("img")]
    assert all(given["src"].startswith("data:image/") for given in page.all("img"))
    assert notebook_pages.UNDESCRIBED in alts
    assert 'a "group" drawn' in alts
    assert r"\frac{1}{G}\sum_i A_i" in alts


def test_a_solution_stays_folded_and_so_does_what_it_gives(page, html):
    (folded,) = page.details
    assert folded.startswith("Solution") and "question_" in folded
    assert html.index("<details") < html.index('a "group" drawn')
    assert html.index('a "group" drawn') < html.index("</details>")


def test_a_widget_falls_back_to_what_stands_beside_it(html):
    assert "a progress bar" in html and "model_id" not in html
    assert "&lt;b&gt;&amp;" in html


def test_a_formula_that_cannot_be_drawn_is_shown_as_typed(html):
    assert '<code class="formula large">r \\ge \\undefined{0}</code>' in html
    assert "<code>$x$</code>" in html


@pytest.mark.parametrize(
    "latex",
    [
        r"\mathbb{E}_{q \sim P(Q)}",
        r"\tfrac{1}{2} \le x",
        r"\big( \lvert o_i \rvert \big)",
        r"D_{\mathrm{KL}}\left[\pi_\theta \,\|\, \pi_{\text{ref}}\right]",
        r"\hat{A}_{i,t} = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)}",
        r"\min\left(\rho_i A_i, \operatorname{clip}(\rho_i, 1-\epsilon)\right)",
    ],
)
def test_formulas_of_the_field_are_drawn(latex):
    drawn = notebook_pages.inline_formula(latex)
    assert drawn.startswith('<img class="formula"')
    assert "vertical-align: -" in drawn and "em" in drawn


def test_a_formula_is_escaped_in_either_form():
    assert 'alt="a &lt; b"' in notebook_pages.inline_formula("a < b")
    assert "&lt;\\x" in notebook_pages.block_formula("<\\x")


def test_sections_are_anchors_of_the_page(notebook, page):
    cells = notebook_pages.cells(notebook)
    found = notebook_pages.sections(cells)
    assert [(section.level, section.title) for section in found] == [
        (1, "03 · GRPO"),
        (2, "1 The reward, by hand"),
        (2, "2 Try it"),
    ]
    assert {section.anchor for section in found} <= set(page.ids)


def test_a_figure_is_known_by_the_section_that_draws_it(notebook):
    later = notebook.with_name("05_analysis.ipynb")
    drawn = notebook_pages.Section("cell-id=a", "5 Training", 2)
    source = 'plots.save(ax, figures / f"{method}.png")'
    known = {
        notebook: notebook_pages.cells(notebook),
        later: [notebook_pages.Cell("code", source, drawn)],
    }
    found = {
        figure: notebook_pages.maker(known, figure)
        for figure in ("grpo.png", "question_3.png", "sft.png", "sft.svg")
    }
    assert found["grpo.png"].section.title == "1 The reward, by hand"
    assert found["question_3.png"] == (notebook, found["question_3.png"].section)
    assert found["question_3.png"].section.title == "2 Try it"
    assert found["sft.png"] == (later, drawn)
    assert found["sft.svg"] is None
