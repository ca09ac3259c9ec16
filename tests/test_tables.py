"""Rows of predictions as they are read, and numbers as text."""

import pytest
from made_run import edit_row, write_run

from lib.evaluate import tables
from lib.records import read_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), seed=0, n=400)


@pytest.fixture(scope="module")
def predictions(made):
    return tables.read_predictions(made)


@pytest.fixture
def small(tmp_path):
    return write_run(tmp_path, n=12, sets=("L1",))


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


def test_numbers_as_text():
    assert tables.percent(0.4731) == "47.3"
    assert tables.span(-0.012, -0.05, 0.026, signed=True) == "−1.2 [−5.0, +2.6]"
    assert tables.span(-4e-4, -0.001, 4e-4, signed=True) == "0.0 [−0.1, 0.0]"
