"""The report and the pages of a run: what a stranger with a phone or a reader gets."""

import re
from itertools import pairwise

import matplotlib.pyplot as plt
import nbformat
import pytest
from made_run import ENVIRONMENT, edit_row, write_run
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from read_html import Page

from lib import chain
from lib.analysis import answers, claims, compare, readme, stats, terms
from lib.evaluate import tables
from lib.methods import COLORS, VERDICTS
from lib.paths import ROOT
from lib.records import read_json
from lib.show import answer, pages
from lib.show import report as show

HOSTILE = '</dd></main><script>alert("&amp;")</script><img src=http://x.org/a.png>'
NAMES = ("report", "01_data", "05_analysis")
FIRST = (1, 2, 3, 5, 8)  # claims that are shown, not folded


def shown(view):
    """A view as the output of a cell."""
    return new_output("execute_result", view._repr_mimebundle_())


def cell(*outputs, source="1", tags=(), **metadata):
    metadata |= {"tags": list(tags)} if tags else {}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def picture(**metadata):
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "a picture"}
    return new_output("display_data", data, metadata={"image/png": metadata})


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_questions):
    """A run whose 05_analysis has each kind of cell, and one hostile completion."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "mini", n=40)
    edit_row(folder / "predictions_sft_L1.jsonl", 0, completion=HOSTILE)
    predictions = tables.read_predictions(folder)
    table = compare.accuracies(predictions)
    answered = answers.read(folder)
    compared = compare.differences(compare.right(answered), samples=200)
    claimed = claims.table(terms.Records(folder, answered), 200, 0)
    manifest = read_json(folder / "manifest.json")
    rows = {m: predictions[m, "L1"][0] for m in tables.METHODS}
    sampling = pages.Sampling(8, height=56, width=56)
    question = pages.question(tiny_questions[0], rows, sampling)
    wide = compare.accuracies_markdown(table)
    hostile = tables.grid([["said", "by"], [HOSTILE, "SFT"]])
    texts = ({"text/markdown": text} for text in (wide, hostile))
    markdown = [new_output("display_data", text) for text in texts]
    cells = [
        new_markdown_cell("# 05 · Analysis", metadata={"tags": ["lesson"]}),
        cell(source="run_name = 'x'", tags=["parameters"]),
        cell(source="import os", tags=["setup"]),
        new_markdown_cell("## 1 What was *run*\n\n$\\frac{1}{G}$ and $$\\left( x$$"),
        cell(shown(answer.facts(manifest, "outputs/data/x"))),
        cell(printed("whole"), tags=["folded"], summary="The <whole> manifest"),
        new_markdown_cell("## 2 Numbers"),
        cell(*markdown, source='tables.grid("code")'),
        cell(picture(alt='bars "x" > y', width=300), picture()),
        cell(printed(HOSTILE + "\x1b[31mred\x1b[0m")),
        cell(shown(question)),
        cell(printed("a lesson"), printed("100% <9/9>", "stderr"), tags=["lesson"]),
        cell(printed("solved"), jupyter={"source_hidden": True}, tags=["lesson"]),
        cell(shown(answer.claimed(claimed, FIRST))),
        new_markdown_cell("## What we see"),
        cell(shown(answer.answer(compared)), tags=["answer"]),
        cell(shown(answer.gaps(manifest, table, claimed, {"size_9x9": "<no>"}))),
    ]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {}}}}
    node = new_notebook(cells=cells, metadata={"widgets": state})
    nbformat.write(node, folder / "05_analysis.ipynb")
    first = new_notebook(cells=[new_markdown_cell("# 01 · Data"), cell(printed("1"))])
    nbformat.write(first, folder / "01_data.ipynb")
    chain.seal(folder, "01_data")
    assert show.write(folder) == folder / "report.html"
    assert not [left for left in folder.iterdir() if left.name.endswith(".tmp")]
    return folder


@pytest.fixture(scope="module")
def texts(run):
    return {name: (run / f"{name}.html").read_text(encoding="utf-8") for name in NAMES}


@pytest.fixture(scope="module")
def read(texts):
    return {name: Page(text) for name, text in texts.items()}


@pytest.mark.parametrize("name", NAMES)
def test_one_file_that_fetches_nothing_and_runs_nothing(texts, read, name):
    text, page = texts[name], read[name]
    assert text.startswith("<!DOCTYPE html>") and page.unclosed == []
    assert page.fetched() == [] and len(page.ids) == len(set(page.ids))
    elements = {element for element, _ in page.elements}
    assert not elements & {"script", "iframe", "object", "embed", "base", "form"}
    assert not any(key.startswith("on") for _, given in page.elements for key in given)
    assert "url(" not in text and "@import" not in text and "model_id" not in text
    metas = {
        m.get("name") or m.get("http-equiv"): m.get("content") for m in page.all("meta")
    }
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert metas["Content-Security-Policy"] == policy
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    for query in ("prefers-color-scheme: dark", "print", "max-width: 40rem"):
        assert re.search(rf"@media [^{{]*{query}", text)
    assert "::details-content" in text  # what is folded is printed


def test_text_of_a_model_stays_text_wherever_it_is_shown(read):
    for page in (read["report"], read["05_analysis"]):
        assert page.words.count(HOSTILE) == 3  # table, printed, a question's card
        assert "<no>" in page.words and "The <whole> manifest" in page.words


def test_the_answer_comes_first_and_lessons_stay_in_the_notebook(read):
    said, page = read["report"].words, read["05_analysis"].words
    question = "Does reinforcement learning beat supervised fine-tuning?"
    order = [question, "Filled: the interval", "1 What was run", "Of 22"]
    places = [said.index(text) for text in order]
    assert places == sorted(places)
    for text in ("a lesson", "solved", "import os", "run_name", "tables.grid", "05 · "):
        assert text not in said and text in page
    levels = [level for level, _ in read["report"].headings]
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))


def test_what_is_long_is_folded(read):
    folded, page = read["report"].details, read["05_analysis"].details
    assert folded[0].startswith("The <whole>")
    assert sum(text.startswith("why") for text in folded) == 22
    (rest,) = (text for text in folded if text.startswith("The other 17 claims"))
    assert "The levels are ordered" in rest and "on L2, in new" not in rest
    starts = ("Parameters", "Imports and paths", "The <whole> manifest", "Solution")
    assert all(any(text.startswith(start) for text in page) for start in starts)
    (bars,) = (text for text in page if text.startswith("Progress and warnings"))
    assert "100% <9/9>" in bars and "a lesson" not in bars


def test_every_picture_has_a_text_and_enlarges(read, texts):
    page, html = read["report"], texts["report"]
    undescribed = "A figure; the text above it says what to look for."
    assert {'bars "x" > y', undescribed, "frame 1 of 8"} <= set(page.alts)
    assert all(given["src"].startswith("data:image/png") for given in page.all("img"))
    targets = re.findall(r'<span class="picture" id="([^"]*)"><a href="#\1"', html)
    assert len(targets) == len(page.alts) > 9
    backs = re.findall(r'<a class="close" href="#([^"]*)"', html)
    assert set(backs) <= set(page.ids) and len(backs) == len(page.alts)


def test_contents_and_the_way_to_every_page(read, texts):
    for name, following in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
        links = [given["href"] for given in read[name].all("a")]
        assert {f"{one}.html" for one in NAMES} <= set(links)
        assert links[-1] == f"{following}.html"
        assert {link[1:] for link in links if link[0] == "#"} <= set(read[name].ids)
    links = [given["href"] for given in read["report"].all("a")]
    beside = {link[17:] for link in links if link.startswith("05_analysis.html#")}
    assert beside and beside <= set(read["05_analysis"].ids)
    assert 'href="#1-what-was-run">1 What was run</a>' in texts["report"]


def test_a_wide_table_names_its_columns_for_phones(texts):
    html = texts["report"]
    start = html.index('<table class="wide">')
    head = re.findall(r"<th>(.*?)</th>", html[start : html.index("</thead>", start)])
    assert head[:3] == ["method", "set", "n"]
    cells = re.findall(r'<td data-label="([^"]*)"', html[start:])
    assert cells[: 2 * len(head)] == 2 * head
    assert "<table>\n<thead>\n<tr>\n<th>said</th>" in html


@pytest.mark.parametrize(
    "latex",
    [
        r"\mathbb{E}_{q \sim P(Q)}",
        r"D_{\mathrm{KL}}\left[\pi_\theta \,\|\, \pi_{\text{ref}}\right]",
        r"\hat{A}_{i,t} = \frac{r_i - \operatorname{mean}(r)}{\operatorname{std}(r)}",
        r"L = -\frac{1}{G} \sum_{i=1}^{G} \left( e^{d} - d - 1 \right)",
    ],
)
def test_formulas_are_mathml_and_text_is_escaped(latex):
    made = Page(show.formula(latex, "block"))
    assert made.unclosed == [] and made.elements[0][0] == "math"
    assert show.formula(r"\left( <b>", "inline") == r"<code>\left( &lt;b&gt;</code>"
    assert "<script" not in show.formula(r"\text{<script>x}", "inline")


def test_without_an_executed_analysis_there_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lib\.run"):
        show.write(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="run 05_analysis first"):
        show.write(tmp_path)
    with pytest.raises(ValueError, match=r"05_analysis.ipynb was not run"):
        show.write(tmp_path, ROOT / "notebooks")
    assert list(tmp_path.iterdir()) == []


def test_notebooks_run_by_hand_lie_elsewhere(run, tmp_path, capsys):
    show.main([str(tmp_path), "--notebooks", str(run)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "05_analysis.html").exists()


def rows(p=0.001, **ends):
    row = {"a": "grpo", "b": "sft", "difference": 0.0, "p": p}
    return [
        row | {"set": k, "low": low, "high": high} for k, (low, high) in ends.items()
    ]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            {"L1": (0.01, 0.05), "L2": (-0.05, -0.01), "general": (-0.01, 0.01)},
            "GRPO is ahead of SFT on L1; behind SFT on L2; not told apart from SFT on "
            "the general set.",
        ),
        (
            {"L1": (0.0, 0.05), "L2": (-0.05, 0.0), "L3": (-0.1, 0.1)},
            "GRPO is not told apart from SFT on L1, L2 and L3.",
        ),
        ({"L3": (-0.3, -0.1)}, "GRPO is behind SFT on L3."),
    ],
)
def test_the_lead_says_ahead_only_outside_the_interval(ends, said):
    view = answer.answer(rows(**ends))
    assert view.words == said and said in Page(view.html).words
    view = answer.answer(rows(p=0.04, **ends))
    assert (view.words == said) == (len(ends) == 1 or " ahead" not in said)


@pytest.mark.parametrize(
    ("low", "high", "ahead"),
    [(0.1, 0.3, "grpo"), (-0.3, -0.1, "sft"), (-0.1, 0.3, None)],
)
def test_an_interval_is_filled_only_if_it_excludes_zero(low, high, ahead):
    (row,) = rows(L1=(low, high))
    row["difference"] = (low + high) / 2
    paper = {"difference": 0.02, "low": -0.01, "high": 0.05}
    drawn = Page(answer.VIEWS.interval(row, paper, 0.4))
    (point,), whole = drawn.all("circle"), drawn.all("svg")[0]
    assert ("filled" in point["class"]) == bool(ahead)
    assert whole.get("style") == (f"--own: {COLORS[ahead]}" if ahead else None)
    _, own, papers = drawn.all("line")
    for line, one in ((own, row), (papers, paper)):
        ends = [f"{50 + 125 * one[end]:.2f}%" for end in ("low", "high")]
        assert [line["x1"], line["x2"]] == ends
    assert point["cx"] == f"{50 + 125 * row['difference']:.2f}%"
    span = tables.span(row["difference"], low, high, signed=True)
    paper_span = "in the paper +2.0 [−1.0, +5.0]"
    assert whole["aria-label"] == f"L1: GRPO − SFT {span} points; {paper_span}"


def test_a_training_that_does_harm_stands_in_the_headlines():
    """On every set where its interval, against the base, lies below zero."""
    found = rows(general=(-0.1, 0.1))
    ends = {"sft": (-0.386, -0.141), "grpo": (-0.11, 0.066)}
    for model, (low, high) in ends.items():
        row = {"a": model, "b": "base", "difference": -0.263, "p": 0.01}
        found.append(row | {"set": "general", "low": low, "high": high})
    said = (
        "general: SFT does harm: it ends 26.3 points below the untrained base "
        "(95 % interval 14.1 to 38.6)"
    )
    view = answer.answer(found)
    assert said in Page(view.html).words and view.words.endswith(said)
    assert [one.replace("**", "") for one in readme.harms(found)] == [said]


def test_words_of_the_answer_are_those_of_the_records(run, read):
    compared = compare.differences(compare.right(answers.read(run)), samples=200)
    for row in compare.main(compared):
        said = readme.verdict(row).replace("**", "")
        assert said in read["report"].words


def test_sets_stand_across():
    made = answer.across(rows(L1=(0.01, 0.05), L2=(-0.05, 0.01)))
    line = "| GRPO − SFT | 0.0 [+1.0, +5.0] GRPO ahead | 0.0 [−5.0, +1.0] not decided |"
    assert line in made
    found = rows(p=0.03, L1=(0.01, 0.05), L2=(0.01, 0.05))
    assert "ahead" in answer.across(found[:1]) and "L1" in answer.lead(found[:1])
    assert "ahead" not in answer.across(found)  # as the lead above it, by Holm
    low, high = stats.wilson_interval(5, 20)
    share = {"model": "psr", "set": "L1", "accuracy": 0.25, "low": low, "high": high}
    made = answer.across([share])
    assert f"| PSR | {tables.span(0.25, low, high)} |" in made


def test_every_claim_has_its_verdict_in_words(run, read):
    said = read["report"].words
    for row in claims.table(terms.Records(run, answers.read(run)), 200, 0):
        part = claims.decisive(row)
        place = said.index(f"{row['number']}. {row['claim']}")
        own = said[place : said.index("why", place)]
        assert row["verdict"] in own and VERDICTS[row["verdict"]][0] in own
        if part.get("effect") is not None:
            ends = part["effect"], part["low"], part["high"]
            assert f"here {tables.span(*ends, signed=True)}" in own
            assert f"{part['n']:,} questions × {part['seeds']} seed" in own


def test_what_was_run_and_what_failed():
    place = ENVIRONMENT | {"git_commit": "abc", "git_dirty": True}
    manifest = {
        "01_data": {"environment": place, "faults": {"a.jsonl": 3, "b.jsonl": 0}},
        "02_sft": {"environment": place | {"gpu": "H100"}, "seed": 1, "seconds": 5},
        "03_grpo": {"environment": place, "seed": 2, "peak_memory_gib": 2.5},
    }
    said = Page(answer.facts(manifest, "outputs/<data>").html).words
    said_at_all = ("outputs/<data>", "1; 2", "commit abc with changes", "not recorded")
    numbers = ("no GPU, 2; H100, 2", "5 s of work, at most 2.50 GiB")
    assert all(text in said for text in (*said_at_all, *numbers))
    table = [{"model": "sft", "set": "L1", "n": 4, "of": 9, "failed_videos": 3}]
    missing = [{"number": 15, "verdict": claims.MISSING}]
    assert answer.gaps(manifest, table, missing, {"size_9x9": "<large>"}).words == (
        "a.jsonl holds 3 faults that 01_data lists; SFT on L1: 3 of 4 videos could not "
        "be read; their questions count as wrong; L1 (part: 4 of 9): the rest was not "
        "asked; not asked: L2, L3 and general; not asked, size 9x9: <large>; claims "
        "not measured: 15; training seeds of this run: 2; another could "
        "come out otherwise"
    )


def test_a_figure_needs_words(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png: a figure needs a text"):
        pages.show(plt.figure(), tmp_path / "x.png", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_cell_shows_a_figure_once_with_its_words(tmp_path):
    source = (
        "import sys; sys.path.insert(0, '.')\nfrom matplotlib import pyplot\n"
        "from lib.show import pages\n"
        f"pages.show(pyplot.figure(figsize=(3, 1)), r'{tmp_path}/x.png', 'words')"
    )
    notebook = new_notebook(cells=[new_code_cell(source)])
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, resources=where, timeout=240).execute()
    (output,) = notebook.cells[0].outputs
    assert output.data["text/plain"] == "words" and output.data["image/png"]
    assert output.metadata["image/png"]["alt"] == "words"
    assert (tmp_path / "x.png").exists()


def test_shares_in_words():
    both = {"sft": 0.5, "x": 1}.items()
    table = [{"model": m, "set": "L1", "accuracy": share} for m, share in both]
    assert pages.told(table, "set") == "L1: SFT 50.0 %, X 100.0 %"
