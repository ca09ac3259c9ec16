"""Tables of a run against counts made by hand from its rows."""

import subprocess
import sys

import pytest
from made_run import edit_row, write_run

from lib import stats, tables
from lib.paths import ROOT
from lib.records import read_json, read_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), seed=0, n=400)


@pytest.fixture(scope="module")
def predictions(made):
    return tables.read_predictions(made)


@pytest.fixture
def small(tmp_path):
    return write_run(tmp_path, n=12, sets=("L1",))


def test_no_torch():
    """Records are read in a second, and on machines without torch."""
    code = "import sys; from lib import report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_rows_of_all_models_line_up(predictions):
    for name in tables.SETS:
        ids = [
            [r["id"] for r in predictions[m, name]]
            for m in (*tables.METHODS, "base-direct")
        ]
        assert ids[0] == sorted(ids[0]) and all(other == ids[0] for other in ids)


def test_methods_of_ones_own_come_last(small):
    rows = (small / "predictions_grpo_L1.jsonl").read_text()
    for name in ("zeta_L1", "psr_L1", "ppo_L1", "grpo_L1.no_video", "grpo_L1.partial"):
        (small / f"predictions_{name}.jsonl").write_text(rows)
    models = [model for model, _ in tables.read_predictions(small)]
    assert models == ["base", "sft", "grpo", "base-direct", "ppo", "psr", "zeta"]
    shown = tables.accuracy_table(tables.read_predictions(small))
    assert "PSR" in tables.accuracy_markdown(shown)


def test_accuracy_counts_every_question(made, predictions):
    metrics = read_json(made / "metrics.json")
    for row in tables.accuracy_table(predictions):
        assert row["n"] == 400
        assert row["accuracy"] == metrics[row["model"]][row["set"]]["accuracy"]
        assert (row["low"], row["high"]) == stats.wilson_interval(
            round(row["accuracy"] * 400), 400
        )
        assert row["accuracy_lenient"] > row["accuracy"]


def test_accuracy_is_near_what_was_simulated(predictions):
    rows = {(r["model"], r["set"]): r for r in tables.accuracy_table(predictions)}
    assert rows["base", "L1"]["accuracy"] == pytest.approx(0.30, abs=0.07)
    assert rows["grpo", "L1"]["accuracy"] == pytest.approx(0.52, abs=0.08)


def test_what_goes_wrong_stays_in_the_denominator(small):
    path = small / "predictions_sft_L1.jsonl"
    for number in range(12):
        edit_row(path, number, completion="", error="x: truncated")
    row = tables.summary(tables.read_predictions(small)["sft", "L1"])
    assert (row["n"], row["accuracy"], row["failed_videos"]) == (12, 0, 12)
    assert row["parse_failure"] == 1


def test_chance_follows_the_options(predictions):
    rows = {(r["model"], r["set"]): r for r in tables.accuracy_table(predictions)}
    assert rows["sft", "L3"]["chance"] == 0.25
    assert rows["sft", "general"]["chance"] == pytest.approx((1 / 4 + 1 / 5) / 2)


def test_comparisons_pair_the_questions(predictions):
    rows = tables.comparisons(predictions, samples=500, seed=0)
    assert len(rows) == 3 * 4
    row = next(r for r in rows if (r["a"], r["b"], r["set"]) == ("grpo", "base", "L2"))
    pairs = list(zip(predictions["grpo", "L2"], predictions["base", "L2"], strict=True))
    assert row["wins"] == sum(a["correct"] > b["correct"] for a, b in pairs)
    assert row["low"] > 0 and row["p"] < 0.001


def test_out_of_distribution_compares_the_gaps(predictions):
    rows = tables.out_of_distribution(predictions, samples=500, seed=0)
    assert [(row["there"], row["here"]) for row in rows] == [("L2", "L1"), ("L3", "L1")]
    gap = {
        (r["a"], r["b"], r["set"]): r["difference"]
        for r in tables.comparisons(predictions, samples=10, seed=0)
    }
    expected = gap["grpo", "sft", "L3"] - gap["grpo", "sft", "L1"]
    assert rows[1]["difference"] == pytest.approx(expected)


def test_groups_add_up(predictions):
    rows = tables.group_table(predictions, "L3", "domain")
    for model in tables.METHODS:
        own = [row for row in rows if row["model"] == model]
        assert [row["domain"] for row in own] == sorted({r["domain"] for r in own})
        assert sum(row["n"] for row in own) == 400
        right = sum(round(row["accuracy"] * row["n"]) for row in own)
        assert right == sum(r["correct"] for r in predictions[model, "L3"])


def test_rows_by_id_are_those_of_one_model_in_all_sets(predictions):
    rows = tables.by_id(predictions, "sft")
    everything = [row for name in tables.SETS for row in predictions["sft", name]]
    assert list(rows.values()) == everything
    assert all(rows[row["id"]] is row for row in everything)


def test_gallery_shows_what_it_says(predictions):
    image_only = {f"L1/{i}" for i in range(0, 400, 7)}
    picks = tables.gallery(predictions, image_only)
    assert [pick["kind"] for pick in picks] == [
        "only GRPO right",
        "only SFT right",
        "base right, both trained ones wrong",
        "image only, methods disagree",
    ]
    assert len({pick["id"] for pick in picks}) == 4
    right = {
        pick["kind"]: [
            next(
                r["correct"]
                for r in predictions[m, pick["set"]]
                if r["id"] == pick["id"]
            )
            for m in tables.METHODS
        ]
        for pick in picks
    }
    assert right["only GRPO right"] == [False, False, True]
    assert right["only SFT right"] == [False, True, False]
    assert picks[3]["id"] in image_only
    assert len(set(right["image only, methods disagree"])) == 2


def test_gallery_leaves_out_unreadable_questions(small):
    for model in tables.METHODS:
        for number in range(12):
            edit_row(small / f"predictions_{model}_L1.jsonl", number, error="x: bad")
    assert tables.gallery(tables.read_predictions(small), set()) == []


def test_an_empty_run_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 04_eval first"):
        tables.read_predictions(tmp_path)


def test_a_missing_method_is_named(small):
    (small / "predictions_grpo_L1.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions_grpo_L1\.jsonl"):
        tables.read_predictions(small)


def test_a_missing_field_is_named_with_its_line(small):
    edit_row(small / "predictions_sft_L1.jsonl", 4, parsed=None)
    with pytest.raises(ValueError, match=r"sft_L1\.jsonl, line 5: no field `parsed`"):
        tables.read_predictions(small)


def test_a_repeated_question_is_an_error(small):
    edit_row(small / "predictions_sft_L1.jsonl", 4, id="L1/3")
    with pytest.raises(ValueError, match="line 5: question L1/3 twice"):
        tables.read_predictions(small)


@pytest.mark.parametrize("change", [{"gold": "D"}, {"id": "L1/99"}])
def test_other_questions_are_not_compared(small, change):
    edit_row(small / "predictions_base-direct_L1.jsonl", 4, **change)
    with pytest.raises(ValueError, match="differ in"):
        tables.read_predictions(small)


def test_a_lost_row_is_not_compared(small):
    path = small / "predictions_grpo_L1.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-1]))
    with pytest.raises(ValueError, match="differ in 1 questions"):
        tables.read_predictions(small)
    assert len(read_jsonl(path)) == 11


def test_markdown_tables_are_whole(predictions):
    rows = tables.accuracy_table(predictions)
    compared = tables.comparisons(predictions, samples=50, seed=0)
    apart = tables.out_of_distribution(predictions, samples=50, seed=0)
    for text, count in (
        (tables.accuracy_markdown(rows), 16),
        (tables.comparisons_markdown(compared), 12),
        (tables.out_of_distribution_markdown(apart), 2),
        (tables.beside_paper_markdown(rows), 4),
    ):
        lines = text.splitlines()
        assert len(lines) == 2 + count
        assert len({line.count("|") for line in lines}) == 1


def test_numbers_as_text():
    assert tables.percent(0.4731) == "47.3"
    assert tables.span(-0.012, -0.05, 0.026, signed=True) == "−1.2 [−5.0, +2.6]"
    assert tables.span(-4e-4, -0.001, 4e-4, signed=True) == "0.0 [−0.1, 0.0]"


def test_published_counts_give_the_printed_percentages():
    paper = tables.published()
    entries = {**paper["sets"], **paper["domains"]}
    for name, entry in entries.items():
        digits = 1 if name == "general" else 2
        for model, count in entry["correct"].items():
            share = round(100 * count / entry["n"], digits)
            misprint = (name, model) == ("Hobbies", "base")
            assert (share == entry["printed"][model]) != misprint, (name, model)


def test_published_domains_add_up_to_l3():
    paper = tables.published()
    assert sum(entry["n"] for entry in paper["domains"].values()) == 1321
    for model in tables.METHODS:
        counts = [entry["correct"][model] for entry in paper["domains"].values()]
        assert sum(counts) == paper["sets"]["L3"]["correct"][model]


def test_published_durations_add_up_to_the_general_set():
    paper = tables.published()
    assert sum(e["n"] for e in paper["durations"].values()) == 1337
    for model in tables.METHODS:
        right = sum(e["correct"][model] for e in paper["durations"].values())
        assert right == paper["sets"]["general"]["correct"][model]
        for entry in paper["durations"].values():
            share = 100 * entry["correct"][model] / entry["n"]
            assert share == pytest.approx(entry["printed"][model], abs=0.06)


def test_published_differences_are_the_known_ones():
    """RL against SFT: 2.2, 6.1 and 6.7 points on L1, L2 and L3."""
    rows = tables.published_differences()
    points = [
        round(100 * rows["grpo", "sft", n]["difference"], 1) for n in tables.SETS[:3]
    ]
    assert points == [2.2, 6.1, 6.7]
