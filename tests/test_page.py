"""The report of a run: what a stranger with a phone, a printer or a screen reader gets.

The run is made up (made_run.py); its notebooks hold a heading each, and its pictures
one grey pixel.
"""

import base64
import os
import re
from itertools import pairwise

import nbformat
import pytest
from made_run import edit_row, write_run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from read_html import Page, fetched

from lib import (
    chain,
    claim_records,
    claims,
    page,
    page_results,
    plots,
    report,
    stats,
    tables,
)
from lib.page_parts import MAKERS, NOTEBOOKS
from lib.page_results import interval
from lib.records import read_json, read_jsonl, write_json

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCB"
    "d81ytgAAAABJRU5ErkJggg=="
)
DRAWN = ("accuracy", "grpo", "question_0", "example_L1", "perception", "mine")
HOSTILE = '</dd></main><script>alert("&amp;")</script><img src=http://x.org/a.png>'
ORDER = [
    *("answer", "results", "claims", "figures", "training", "perception"),
    *("attention", "coherence", "questions", "run", "missing", "notebooks"),
]


def perception():
    rows, gains = [], []
    for condition in ("seen", "no_video"):
        for model, accuracy in (("base", 0.25), ("sft", 0.5), ("grpo", 0.75)):
            row = {"set": "L1", "group": "all", "model": model, "n": 8}
            row |= {"condition": condition, "accuracy": accuracy}
            if condition != "seen":
                row |= {"difference": -0.125, "difference_low": -0.25}
                row |= {"difference_high": 0.0}
            rows.append(row)
    for a, b in tables.COMPARISONS:
        row = {"set": "L1", "group": "all", "a": a, "b": b, "condition": "no_video"}
        gains.append(row | {"difference": 0.1, "low": 0.05, "high": 0.15})
    left_out = {"size_9x9": "the <checkpoint> has another size"}
    return {"conditions": ["no_video"], "accuracy": rows, "gains": gains} | {
        "left_out": left_out
    }


def attention():
    masses, differences = [], []
    for kind in ("video", "still"):
        for model in tables.METHODS:
            row = {"text": "own", "where": "all layers", "kind": kind}
            masses.append(row | {"model": model, "mean": 0.2})
        for a, b in tables.COMPARISONS:
            row = {"text": "own", "where": "all layers", "kind": kind, "a": a, "b": b}
            row |= {"n": 40, "difference": 0.03, "low": 0.01, "high": 0.05}
            differences.append(row)
    texts = [{"text": "own", "asked": 41, "left_out": 1, "retokenized": 0}]
    return {"texts": texts, "masses": masses, "differences": differences}


def coherence():
    place = {"set": "L1", "measure": "consistent", "n": 20}
    shares = [
        {**place, "model": model, "share": 0.9, "low": 0.8, "high": 0.95}
        for model in tables.METHODS
    ]
    gap = {**place, "a": "grpo", "b": "sft"}
    gap |= {"difference": -0.1, "low": -0.2, "high": -0.05}
    return {"shares": shares, "differences": [gap], "answers": []}


def write_notebook(path):
    cells = [
        new_markdown_cell(f"# {path.stem}"),
        new_markdown_cell("## 1 First <b>things</b>"),
        new_code_cell('plots.save(ax, figures / "accuracy.png")'),
    ]
    nbformat.write(new_notebook(cells=cells), path)


def spoil(folder, predictions):
    """Make SFT's answer to a question that will be shown hostile."""
    pick = tables.gallery(predictions, set())[0]
    path = folder / f"predictions_sft_{pick['set']}.jsonl"
    order = [row["id"] for row in read_jsonl(path)]
    edit_row(path, order.index(pick["id"]), completion=HOSTILE)


def whole_run(folder):
    """Every record, figure and notebook; one completion that is shown is hostile."""
    write_run(folder, n=40)
    predictions = tables.read_predictions(folder)
    spoil(folder, predictions)
    table = tables.accuracy_table(predictions)
    found = {"data_dir": "outputs/data/x", "accuracy": table}
    found["comparisons"] = tables.comparisons(predictions, 200, 0)
    found["out_of_distribution"] = tables.out_of_distribution(predictions, 200, 0)
    found["domains"] = tables.group_table(predictions, "L3", "domain")
    report.write_results(folder, found)
    claims.write(folder, claims.table(claim_records.Records([folder]), 200, 0))
    write_json(folder / "perception.json", perception())
    write_json(folder / "attention.json", attention())
    write_json(folder / "coherence.json", coherence())
    (folder / "figures").mkdir()
    for name in DRAWN:
        (folder / "figures" / f"{name}.png").write_bytes(PNG)
    for name in NOTEBOOKS:
        write_notebook(folder / f"{name}.ipynb")
    chain.seal(folder, "01_data")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("runs") / "mini")


@pytest.fixture(scope="module")
def html(run):
    path = page.write(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(html):
    return Page(html)


@pytest.fixture(scope="module")
def results(run):
    return read_json(run / "results.json")


def text_of(html):
    """The words of a page, without its style."""
    text = re.sub(r"<[^>]*>", " ", html.rpartition("</style>")[2])
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, character)
    return " ".join(text.split())


# --- one file for everybody -----------------------------------------------------------


def test_one_file_that_loads_nothing_and_runs_nothing(read, html):
    assert html.startswith("<!DOCTYPE html>") and read.unclosed == []
    assert fetched(read) == []
    names = {name for name, _ in read.elements}
    assert not names & {"script", "iframe", "object", "embed", "base", "form"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not any(key.startswith("on") for _, given in read.elements for key in given)


def test_it_is_made_for_phones_paper_and_the_dark(read, html):
    metas = {given.get("name"): given.get("content") for given in read.all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    assert read.all("html")[0]["lang"] == "en" and read.all("title")
    for query in ("prefers-color-scheme: dark", "print", "max-width: 40rem"):
        assert re.search(rf"@media [^{{]*{query}", html)
    assert "::details-content" in html  # what is folded is printed


def test_every_picture_says_what_it_shows(read):
    pictures = read.all("img")
    assert len(pictures) == len(DRAWN)
    for given in pictures:
        assert given["src"].startswith("data:image/png;base64,")
        assert len(given["alt"]) > 20 and given["width"] and given["height"]
    drawings = [given for given in read.all("svg") if "role" in given]
    assert drawings and all(given["aria-label"] for given in drawings)


def test_links_lead_somewhere(read, run):
    assert len(read.ids) == len(set(read.ids))
    links = [given["href"] for given in read.all("a")]
    inside = [link[1:] for link in links if link.startswith("#")]
    assert inside and set(inside) <= set(read.ids)
    beside = [link for link in links if not link.startswith(("#", "http"))]
    assert {link.partition(".html")[0] for link in beside} == set(NOTEBOOKS)
    for link in beside:
        name, _, anchor = link.partition("#")
        assert anchor in Page((run / name).read_text(encoding="utf-8")).ids
    assert any(link.startswith("https://arxiv.org/") for link in links)


def test_sections_come_in_order_and_headings_skip_no_level(read):
    assert [name for name in read.ids if name in ORDER] == ORDER
    contents = [given["href"][1:] for given in read.all("a")]
    assert [name for name in contents if name in ORDER][1:] == ORDER  # after the skip
    levels = [level for level, _ in read.headings]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_tables_have_a_caption_and_headers_that_say_of_what(read):
    assert all(given.get("scope") for given in read.all("th"))
    assert len(read.tables) == len(read.all("table")) and "" not in read.tables


def test_a_method_is_named_beside_its_colour(html):
    marks = re.findall(
        r'<i class="mark" style="background:(#\w+)"[^>]*></i>([^<]+)<', html
    )
    assert len(marks) == html.count('class="mark"') > 10
    labels = {plots.COLORS[model]: plots.LABELS[model] for model in plots.LABELS}
    assert all(labels[color] == name for color, name in marks)


def test_text_of_a_model_stays_text(read, html):
    assert html.count("&lt;script&gt;alert") >= 1 and "<script" not in html
    assert "http://x.org" not in str(fetched(read))
    assert HOSTILE in html.replace("&lt;", "<").replace("&gt;", ">").replace(
        "&amp;", "&"
    )
    assert "1 First &lt;b&gt;things&lt;/b&gt;" in html


# --- the numbers are those of the records ---------------------------------------------


def test_accuracies_are_those_of_the_records(read, results):
    rows = read.tables["Accuracy of each method on each set, and the paper's"]
    head, group, *rest = rows
    assert head == ["method", *(f"{name} n = 40" for name in tables.SETS)]
    assert group == ["This run: accuracy in %"]
    shown = {line[0]: line[1:] for line in rest[: len(tables.METHODS) + 1]}
    for row in results["accuracy"]:
        cell = shown[plots.LABELS[row["model"]]][tables.SETS.index(row["set"])]
        assert cell == tables.span(row["accuracy"], row["low"], row["high"])


def test_differences_come_with_what_their_interval_allows(read, results):
    rows = read.tables["Accuracy of each method on each set, and the paper's"]
    start = rows.index(["This run: difference on the same questions, in points"])
    shown = {line[0]: line[1:] for line in rows[start + 1 : start + 4]}
    for row in results["comparisons"]:
        name = f"{plots.LABELS[row['a']]} − {plots.LABELS[row['b']]}"
        cell = shown[name][tables.SETS.index(row["set"])]
        span = tables.span(row["difference"], row["low"], row["high"], signed=True)
        ahead = row["low"] > 0 or row["high"] < 0
        assert cell.startswith(span) and cell.endswith("ahead") == ahead
        assert cell.endswith("undecided") != ahead


def test_the_papers_numbers_stand_in_the_same_columns(read):
    rows = read.tables["Accuracy of each method on each set, and the paper's"]
    n, *methods, gap = rows[-5:]
    assert n == ["n", "2,432", "923", "1,321", "1,337"]
    assert [line[0] for line in methods] == ["base", "SFT", "GRPO"]
    low, high = stats.wilson_interval(1119, 2432)
    assert methods[2][1] == tables.span(1119 / 2432, low, high)
    assert gap[0] == "GRPO − SFT" and gap[2].startswith("+6.1 [+1.5, +10.6]")


def test_the_answer_is_in_sentences_no_stronger_than_the_intervals(html, results):
    text = text_of(html)
    for row in results["comparisons"]:
        if (row["a"], row["b"]) == ("grpo", "sft"):
            assert report.verdict(row["set"], row).replace("**", "") in re.sub(
                r" (?=\()", " ", text
            )
    assert text.index("Does reinforcement learning") < text.index(
        page.summary(page.main_comparisons(lambda name: results))
    )


def rows(**ends):
    return [
        {"set": name, "low": low, "high": high} for name, (low, high) in ends.items()
    ]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            {"L1": (0.01, 0.05), "L2": (-0.05, -0.01), "general": (-0.01, 0.01)},
            "GRPO is ahead of SFT on L1; SFT is ahead of GRPO on L2; the general set "
            "is undecided.",
        ),
        (
            {"L1": (0.0, 0.05), "L2": (-0.05, 0.0)},
            "Undecided: GRPO and SFT cannot be told apart on L1 and L2.",
        ),
        ({"L3": (-0.3, -0.1)}, "SFT is ahead of GRPO on L3."),
        ({}, "This run compares no GRPO with SFT."),
    ],
)
def test_the_summary_says_ahead_only_outside_the_interval(ends, said):
    assert page.summary(rows(**ends)) == said


@pytest.mark.parametrize(
    ("low", "high", "color"),
    [(0.1, 0.3, "#0072B2"), (-0.3, -0.1, "#E69F00"), (-0.1, 0.3, "var(--paper)")],
)
def test_an_interval_is_filled_only_if_it_excludes_zero(low, high, color):
    row = {"set": "L1", "a": "grpo", "b": "sft", "low": low, "high": high}
    row["difference"] = (low + high) / 2
    paper = {"difference": 0.02, "low": -0.01, "high": 0.05}
    drawn = Page(interval(row, paper, 0.4))
    (point,) = drawn.all("circle")
    assert point["fill"] == color
    assert point["cx"] == f"{50 + 125 * row['difference']:.2f}%"
    label = drawn.all("svg")[0]["aria-label"]
    assert tables.span(row["difference"], low, high, signed=True) in label


def test_every_claim_has_its_verdict_in_words(read, run):
    found = read_json(run / "claims.json")
    head, *lines = read.tables["The claims, one by one"]
    assert head == ["#", "claim", "here", "paper", "verdict"]
    assert [line[0] for line in lines] == [str(row["number"]) for row in found]
    for line, row in zip(lines, found, strict=True):
        part = claims.decisive(row)
        assert row["verdict"] in line[4]
        if part.get("effect") is not None:
            span = tables.span(part["effect"], part["low"], part["high"], signed=True)
            assert line[2].startswith(span)
            seeds = {1: "1 seed", 3: "3 seeds", 5: "5 seeds"}[part["seeds"]]
            assert line[2].endswith(f"{part['n']:,} questions × {seeds}")
        assert row["sentence"][1:].replace("`", "") in " ".join(read.details)
    first = found[0]["parts"][0]["paper"]
    span = tables.span(first["effect"], first["low"], first["high"], signed=True)
    assert lines[0][3] == span


def test_five_seeds_are_seeds():
    said = str(page_results.size({"n": 1500, "seeds": 5}))
    assert "1,500 questions × 5 seeds" in said
    assert page_results.size({"effect": None}) is None


def test_pictures_say_the_numbers_of_their_records(read, results):
    alts = [given["alt"].replace("\u00a0", " ") for given in read.all("img")]
    first = next(row for row in results["accuracy"] if row["model"] == "sft")
    said = f"SFT {tables.percent(first['accuracy'])} %"
    assert said in next(alt for alt in alts if alt.startswith("Bars of accuracy by"))
    assert any(
        alt.endswith("no video: base 25.0 %, SFT 50.0 %, GRPO 75.0 %.") for alt in alts
    )
    assert any("“mine”" in alt for alt in alts)  # unknown to lib/figure_texts.py


def test_a_figure_links_to_where_it_was_made(html):
    made = html[html.index("Made in") :]
    assert 'href="05_analysis.html#cell-id=' in made[:200]
    assert "05_analysis, 1 First" in made[:200]


def test_training_perception_attention_and_reasoning_in_numbers(read):
    reinforcement = read.tables["Reinforcement"]
    assert reinforcement[1][:2] == ["GRPO", "40"]
    assert reinforcement[1][4] == "12.2 → 15.8"  # of 12 + 0.1 step: steps 1-4, 37-40
    caption = "Accuracy in % on L1, 8 questions, and what each condition costs"
    cost = "−12.5 [−25.0, 0.0]"
    assert read.tables[caption][2] == [
        *("no video", f"25.0 {cost}", f"50.0 {cost}", f"75.0 {cost}")
    ]
    shrinks = read.tables["By how many points each gain shrinks"]
    assert shrinks[1][1] == "+10.0 [+5.0, +15.0] shrinks"
    caption = "Share of attention while each method writes its own words, all layers"
    assert read.tables[caption][1][-1] == "+3.0 [+1.0, +5.0] GRPO more"
    assert read.tables["Measures of reasoning, by set"][2] == [
        "L1, n = 20",
        *["90.0 [80.0, 95.0]"] * 3,
        "−10.0 [−20.0, −5.0] SFT more",
    ]


def test_questions_show_options_answers_and_who_is_right(html, run):
    picks = tables.gallery(tables.read_predictions(run), set())
    text = text_of(html[html.index('id="questions"') :])
    for pick in picks:
        assert pick["id"] in text
    assert "(right)" in text and "GRPO : " in text


def test_what_was_run_and_what_went_wrong(html):
    text = text_of(html)
    assert "0" * 40 in text and "CPU cores 2" in text
    assert "Not asked, size 9x9: the <checkpoint> has another size" in text
    assert "Attention on its own words: 1 of 41 questions were left out" in text
    assert re.search(r"GRPO: of 160 answers \d+\.\d % could not be parsed", text)
    assert "claims are not measured by this run" in text


# --- what is not there ----------------------------------------------------------------


def test_missing_records_are_named_with_the_notebook_that_makes_them(tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    found = {"accuracy": [], "comparisons": [], "out_of_distribution": []}
    rows_ = [
        {"model": model, "set": "L1", "n": 4, "accuracy": 0.5, "low": 0.2, "high": 0.8}
        | {"accuracy_lenient": 0.5, "low_lenient": 0.2, "high_lenient": 0.8}
        | {"parse_failure": 0.0, "truncated": 0.0, "failed_videos": 3, "chance": 0.25}
        for model in tables.METHODS
    ]
    write_json(folder / "results.json", found | {"accuracy": rows_})
    html = page.write(folder).read_text(encoding="utf-8")
    text, read = text_of(html), Page(html)
    for name, notebook in MAKERS.items():
        if name != "results.json":
            assert f"{name} is missing: {notebook} makes it" in text.replace(" :", ":")
    for name in NOTEBOOKS:
        assert f"{name} had not finished when this page was written" in text
    assert "No question can be shown" in text and read.all("img") == []
    assert "3 of 4 videos could not be read" in text
    assert [name for name in read.ids if name in ORDER] == ORDER


def test_without_results_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 05_analysis first"):
        page.write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lib\.pipeline"):
        page.write(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_within_05_analysis_its_own_page_comes_later(run, tmp_path):
    moved = {run / "05_analysis.ipynb": tmp_path / "a", run / "05_analysis.html": None}
    (run / "05_analysis.ipynb").rename(tmp_path / "a")
    (run / "05_analysis.html").unlink(missing_ok=True)
    try:
        text = text_of(page.write(run).read_text(encoding="utf-8"))
        assert "05_analysis had not finished when this page was written" in text
    finally:
        (tmp_path / "a").rename(next(iter(moved)))
    text = text_of(page.write(run).read_text(encoding="utf-8"))
    assert "had not finished" not in text and (run / "05_analysis.html").exists()


def test_the_same_records_give_the_same_bytes_and_leave_nothing_behind(run):
    first = page.write(run).read_bytes()
    assert page.write(run).read_bytes() == first
    assert not [path for path in run.iterdir() if path.name.endswith(".tmp")]


def test_a_page_is_made_again_only_when_its_notebook_has_changed(run):
    page.write(run)
    notebooks = sorted(run.glob("0*.ipynb"))
    pages = [path.with_suffix(".html") for path in notebooks]
    for path in pages:
        path.write_text("as it was" + path.read_text())
        os.utime(path, (2**31, 2**31))  # the clock was ahead when it was made
    first = notebooks[0].read_text()
    notebooks[0].write_text(first + "\n")
    page.write(run)
    kept = [path.read_text().startswith("as it was") for path in pages]
    assert kept == [path != pages[0] for path in pages]
    notebooks[0].write_text(first)
    page.write(run, anew=True)
    assert not any(path.read_text().startswith("as it was") for path in pages)


def test_a_picture_that_is_none_is_named(run):
    path = run / "figures" / "zz.png"
    path.write_text("torn")
    try:
        with pytest.raises(ValueError, match=r"zz\.png is not a PNG"):
            page.write(run)
    finally:
        path.unlink()


def test_the_command_line_says_where_the_page_is(run, capsys):
    page.main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
