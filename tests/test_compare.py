"""Rows, the table of all answers, and what is measured on it, counted by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_run import edit_row, one, write_run

from lib import methods
from lib.analysis import answers, compare, stats
from lib.evaluate import tables
from lib.paths import ROOT
from lib.records import read_json, read_jsonl, write_json, write_jsonl

DRAWS = {"samples": 500, "seed": 0}
GAP = [(1, {"model": "grpo", "set": "L1"}), (-1, {"model": "sft", "set": "L1"})]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), seed=0, n=400)


@pytest.fixture(scope="module")
def predictions(made):
    return tables.read_predictions(made)


@pytest.fixture(scope="module")
def right(made):
    return compare.right(answers.read(made))


@pytest.fixture
def small(tmp_path):
    return write_run(tmp_path / "run", n=12, sets=("L1",))


def test_no_torch():
    """Records are read in a second, and on machines without torch or a display."""
    code = "import sys; from lib.analysis import attended, reasoned, seen, terms; "
    code += "assert not {'torch', 'matplotlib'} & {*sys.modules}; "
    code += "from lib.analysis import claims; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_rows_of_all_models_line_up(predictions):
    for name in methods.SETS:
        models = (*methods.METHODS, "base-direct")
        ids = [[row["id"] for row in predictions[m, name]] for m in models]
        assert ids[0] == sorted(ids[0]) and all(other == ids[0] for other in ids)
    rows = tables.by_id(predictions, "sft")
    everything = [row for name in methods.SETS for row in predictions["sft", name]]
    assert list(rows.values()) == everything


def test_methods_of_ones_own_come_last(small):
    (small / "metrics.json").unlink()
    rows = (small / "predictions_grpo_L1.jsonl").read_text()
    for name in ("zeta_L1", "psr_L1", "ppo_L1", "grpo_L1.no_video", "grpo_L1.partial"):
        (small / f"predictions_{name}.jsonl").write_text(rows)
    models = [model for model, _ in tables.read_predictions(small)]
    assert models == ["base", "sft", "grpo", "base-direct", "ppo", "psr", "zeta"]
    for end in ("", ".partial", ".partial-1"):  # 1: of another process
        (small / f"attention_zeta_own{end}.jsonl").write_text(rows)
    found = [own[0] for own in tables.files(small, "attention")]
    assert found == ["attention_zeta_own.jsonl"]


def test_gallery_shows_what_it_says(predictions):
    image_only = {f"L1/{i}" for i in range(0, 400, 7)}
    picks = tables.gallery(predictions, image_only)
    kinds = {  # which of base, SFT and GRPO are right
        "only GRPO right": (False, False, True),
        "only SFT right": (False, True, False),
        "base right, both trained ones wrong": (True, False, False),
        "image only, methods disagree": None,
    }
    assert [pick["kind"] for pick in picks] == [*kinds]
    assert len({pick["id"] for pick in picks}) == 4
    said = {model: tables.by_id(predictions, model) for model in methods.METHODS}
    for pick in picks:
        right = tuple(own[pick["id"]]["correct"] for own in said.values())
        pattern = kinds[pick["kind"]]
        assert right == pattern if pattern else len({*right}) == 2
    assert picks[3]["id"] in image_only


def test_gallery_leaves_out_unreadable_questions(small):
    for model in methods.METHODS:
        for number in range(12):
            edit_row(small / f"predictions_{model}_L1.jsonl", number, error="x: bad")
    assert tables.gallery(tables.read_predictions(small), set()) == []


@pytest.mark.parametrize(
    "model, change, said",
    [
        ("sft", {"parsed": None}, r"sft_L1\.jsonl, line 5: no field `parsed`"),
        ("sft", {"id": "L1/3"}, "line 5: question L1/3 twice"),
        ("sft", {"correct": "x"}, "line 5: correct is 'x'"),
        ("base-direct", {"gold": "D"}, "differ in 1 questions, first L1/4"),
        ("base-direct", {"id": "L1/99"}, "differ in 2 questions"),
    ],
)
def test_a_row_that_makes_a_comparison_impossible_is_named(small, model, change, said):
    edit_row(small / f"predictions_{model}_L1.jsonl", 4, **change)
    for read in (tables.read_predictions, answers.read):
        with pytest.raises(ValueError, match=said):
            read(small)


def test_a_lost_row_is_not_compared(small):
    path = small / "predictions_grpo_L1.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for read in (tables.read_predictions, answers.read):
        with pytest.raises(ValueError, match="differ in 1 questions"):
            read(small)
    path.write_text("")
    with pytest.raises(ValueError, match=r"grpo_L1\.jsonl is empty: run 04_eval again"):
        tables.read_predictions(small)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"grpo_L1.*grpo in asked_models"):
        tables.read_predictions(small)


def test_answers_that_the_last_evaluation_did_not_ask_are_not_read(tmp_path):
    run = write_run(tmp_path / "run", n=12, sets=("L1", "L3"))
    metrics = read_json(run / "metrics.json")
    del metrics["base-direct"]
    kept = {model: {"L1": sets["L1"]} for model, sets in metrics.items()}
    write_json(run / "metrics.json", kept)
    asked = {(model, "L1") for model in methods.METHODS}
    assert tables.read_predictions(run).keys() == asked
    frame = answers.read(run)
    assert {*zip(frame.model, frame.set, strict=True)} == asked


def test_an_empty_run_says_what_to_do(tmp_path):
    for read in (tables.read_predictions, answers.read):
        with pytest.raises(FileNotFoundError, match="run 04_eval first"):
            read(tmp_path)


def test_every_answer_is_a_row_and_every_reading_of_it(made):
    frame = answers.read(made)
    assert len(frame) == 4 * 4 * 400 * len(answers.ASKED)
    own = compare.select(frame, {"model": "sft", "set": "L3", "measure": "parsed"})
    rows = tables.read_rows(made / "predictions_sft_L3.jsonl")
    assert own.value.tolist() == [float(row["parsed"]) for row in rows]
    assert own.domain.tolist() == [row["domain"] for row in rows]
    assert {*own.condition} == {"seen"} and {*own.seed} == {0}


def test_rows_that_differ_in_more_than_what_is_shown_are_refused(small):
    seen = small / "predictions_sft_L1.jsonl"
    blind = small / "predictions_sft_L1.no_video.jsonl"
    blind.write_text(seen.read_text())
    with pytest.raises(FileNotFoundError, match=r"settings\.json.*04_eval"):
        answers.read(small)
    for file, facts in ((seen, {"model": "x"}), (blind, {"model": "x", "shown": 1})):
        write_json(file.with_suffix(".settings.json"), facts)
    assert {*answers.read(small).condition} == {"seen", "no_video"}
    write_json(blind.with_suffix(".settings.json"), {"model": "another"})
    with pytest.raises(ValueError, match=r"L1\.no_video.*model \('x' there.*Delete"):
        answers.read(small)
    for path in small.glob("predictions_*_L1.jsonl"):
        write_jsonl(path, read_jsonl(path)[:-1])
    with pytest.raises(ValueError, match=r"sft_L1\.jsonl lacks L1/11, which"):
        answers.read(small)


def test_questions_on_one_recording_are_one_cluster(small, tmp_path):
    asked = [{"sample_id": i, "video_id": f"P{i // 4}"} for i in range(12)]
    write_jsonl(tmp_path / "data/annotations/validation_L1.jsonl", asked)
    alone, whole = (
        compare.contrast(compare.right(answers.read(small, *data)), GAP)
        for data in ((), (tmp_path / "data",))
    )
    assert (alone["clusters"], whole["clusters"]) == (12, 3)
    assert alone["effect"] == whole["effect"]


def test_the_recording_of_a_text_id(tmp_path):
    rows = [{"sample_id": key} for key in ("a_b_0", "a_b_1", "c_0")]
    write_jsonl(tmp_path / "annotations/validation_L3.jsonl", rows)
    found = answers.source_videos(tmp_path, "L3")
    assert found == {"L3/a_b_0": "a_b", "L3/a_b_1": "a_b", "L3/c_0": "c"}


def test_runs_that_are_not_of_one_kind_are_not_pooled(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed, n=8) for seed in range(2)]
    with pytest.raises(ValueError, match="both of seed 0"):
        answers.read([runs[0], runs[0]])
    with pytest.raises(FileNotFoundError, match="python -m lib"):
        answers.read(tmp_path / "none")
    state = read_json(runs[1] / "pipeline.json")

    def changed(**more):
        changed = {"parameters": state["parameters"] | more}
        write_json(runs[1] / "pipeline.json", changed)
        return answers.read(runs)

    beside = {"perception_conditions": "no_video", "eval_processes": 2}
    assert changed(**beside).seed.nunique() == 2
    with pytest.raises(ValueError, match="more than their seed"):
        changed(data_dir="outputs/data/y")


def test_differences_pair_the_questions(right, predictions):
    rows = compare.differences(right, **DRAWS)
    assert len(rows) == 3 * 4
    row = one(rows, a="grpo", b="base", set="L2")
    pairs = list(zip(predictions["grpo", "L2"], predictions["base", "L2"], strict=True))
    assert row["wins"] == sum(a["correct"] > b["correct"] for a, b in pairs)
    assert row["difference"] == pytest.approx((row["wins"] - row["losses"]) / 400)
    assert row["p"] == stats.mcnemar_exact(row["wins"], row["losses"])
    assert 0 < row["low"] < row["difference"] < row["high"] and row["p"] < 0.001


def test_only_what_all_terms_have_counts(right):
    """A question that one side lacks, or a seed, is in no difference."""
    lost = right.drop(right.index[(right.model == "sft") & (right.id == "L1/7")])
    assert compare.contrast(lost, GAP)["n"] == 399
    seeds = [right, right[right.model == "grpo"].assign(seed=1)]
    assert compare.contrast(pd.concat(seeds), GAP)["seeds"] == 1
    with pytest.raises(compare.Missing, match=r"answers with .*'sft'"):
        compare.contrast(right[right.model == "grpo"], GAP)
    odd = right[(right.model == "sft") ^ right.id.str.endswith("1")]
    with pytest.raises(compare.Missing, match="questions that all of them answered"):
        compare.contrast(odd, GAP)


def test_a_row_without_questions_in_common_says_so(right):
    """It is neither left out nor a number."""
    odd = right[(right.set == "L1") & ((right.model == "sft") ^ (right.id == "L1/1"))]
    (found,) = compare.differences(odd, [("grpo", "sft")])
    assert (found["difference"], found["low"], found["n"]) == (None, None, 0)
    assert "questions that all of them answered" in compare.kept(found)["missing"]
    table = compare.differences_markdown([found])
    assert "| – (needs questions that all of them answered) | – | – | – |" in table
    seeds = pd.concat([right.assign(seed=seed, video="one") for seed in range(2)])
    row = one(compare.table(seeds, ("model", "set")), model="sft", set="L1")
    assert row["effect"] is None and "more than one video" in row["missing"]


def test_several_seeds_are_the_mean_over_seeds(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed, n=60) for seed in range(3)]
    right = compare.right(answers.read(runs))
    read = [*map(tables.read_predictions, runs)]
    sft, base = (
        np.array([[row["correct"] for row in own[model, "L2"]] for own in read], float)
        for model in ("sft", "base")
    )
    row = one(compare.table(right, ("model", "set")), model="sft", set="L2")
    found = one(compare.differences(right), a="sft", b="base", set="L2")
    for measured, values in ((row, sft), (found, sft - base)):
        expected = stats.mean_over_seeds(values)
        for key in ("effect", "low", "high", "sd", "seeds"):
            assert measured[key] == pytest.approx(expected[key])
    assert (found["p"] < 0.05) == (not found["low"] <= 0 <= found["high"])


def test_shares_of_attention_are_not_taken_for_coin_tosses(right):
    """Two equal questions: right and wrong say little, a measured share is exact."""
    few = right[right.id.isin(["L1/0", "L1/1"]) & (right.model == "sft")]
    both = (few.assign(value=value) for value in (1.0, 0.3))
    means = [compare.table(own, ("model",))[0] for own in both]
    assert means[0]["low"] < 0.6 and means[0]["high"] == 1
    assert means[1]["low"] == means[1]["high"] == pytest.approx(0.3)


def test_accuracy_counts_every_question(made, predictions):
    metrics = read_json(made / "metrics.json")
    for row in compare.accuracies(predictions):
        assert row["n"] == 400
        assert row["accuracy"] == metrics[row["model"]][row["set"]]["accuracy"]
        ends = stats.wilson_interval(round(row["accuracy"] * 400), 400)
        assert (row["low"], row["high"]) == ends
        assert row["accuracy_lenient"] > row["accuracy"]
        chance = (1 / 4 + 1 / 5) / 2 if row["set"] == "general" else 0.25
        assert row["chance"] == pytest.approx(chance)


def test_what_goes_wrong_stays_in_the_denominator(small):
    for number in range(12):
        path = small / "predictions_sft_L1.jsonl"
        edit_row(path, number, completion="", error="x: truncated")
    row = compare.summary(tables.read_predictions(small)["sft", "L1"])
    assert (row["n"], row["accuracy"], row["failed_videos"]) == (12, 0, 12)
    assert row["parse_failure"] == 1
    assert compare.contrast(compare.right(answers.read(small)), GAP)["n"] == 12


@pytest.mark.parametrize(
    "parts, whole, n", [("domain", "L3", 1321), ("duration_group", "general", 1337)]
)
def test_published_groups_add_up(parts, whole, n):
    paper = compare.published()
    entries = paper[parts].values()
    assert sum(entry["n"] for entry in entries) == n
    for model in methods.METHODS:
        right = sum(entry["correct"][model] for entry in entries)
        assert right == paper["set"][whole]["correct"][model]


def test_markdown_tables_are_whole(predictions, right):
    rows = compare.accuracies(predictions)
    compared = compare.differences(right, samples=50)
    apart = compare.out_of_distribution(right, samples=50)
    for text, count in (
        (compare.accuracies_markdown(rows), 16),
        (compare.differences_markdown(compared), 12),
        (compare.out_of_distribution_markdown(apart), 2),
        (compare.beside_paper_markdown(rows), 4),
    ):
        lines = text.splitlines()
        assert len(lines) == 2 + count
        assert len({line.count("|") for line in lines}) == 1
    sizes = "| on L3, less that on L1 | 400 and 400 |"
    assert sizes in compare.out_of_distribution_markdown(apart)
    assert "PSR" in compare.accuracies_markdown([rows[0] | {"model": "psr"}])


def test_numbers_as_text():
    assert tables.percent(0.4731) == "47.3"
    assert tables.percent(-4e-4) == "0.0"  # as a gain of one answer of 2,432
    assert tables.span(-0.012, -0.05, 0.026, signed=True) == "−1.2 [−5.0, +2.6]"
    assert tables.span(-4e-4, -0.001, 4e-4, signed=True) == "0.0 [−0.1, 0.0]"
    cells = [({"a": "x"}, "1", "v1"), ({"a": "y"}, "2", "v2")]
    lines = tables.crossed(cells).splitlines()
    assert lines[2:] == ["| x | v1 | – |", "| y | – | v2 |"]
    assert tables.markdown([]) == "None in these records.\n"
