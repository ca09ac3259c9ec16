"""Evaluation on two processes: the bytes of one, after kills and bad clips too."""

import shutil
from dataclasses import replace

import pytest

from lib import records
from lib.data.video import Sampling
from lib.evaluate import attention, draws, evaluate, perception, readers, resume, tables
from lib.run import launch
from tests import launched

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
SETTINGS = evaluate.EvalSettings("think", max_new_tokens=20, batch_size=2)
ROWS = "predictions_base_L1.jsonl"
FILES = ("predictions_base_L1.partial.jsonl", "predictions_base_L1.partial-1.jsonl")


@pytest.fixture(scope="module")
def sets(tiny_questions, tmp_path_factory):
    """Twelve questions, a few, and as many of which the last one's clip is broken."""
    broken = tmp_path_factory.mktemp("broken") / "broken.mp4"
    broken.write_bytes(b"")
    again = [replace(item, id=f"{item.id}/again") for item in tiny_questions]
    last = replace(tiny_questions[4], video=broken)
    bad = [*tiny_questions[:4], last]
    return {"L1": [*tiny_questions, *again], "L2": tiny_questions, "bad": bad}


def answered(processes, checkpoint, sets, run, function=evaluate.with_model):
    weights = (checkpoint, None, "float32", False)
    given = (evaluate.evaluate_sets, {"base": SETTINGS}, sets, SAMPLING, run)
    return launch.call(run, processes, "", function, *weights, *given)


@pytest.fixture(scope="module")
def one(tiny_checkpoint, sets, tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    run = tmp_path_factory.mktemp("one")
    rows = answered(1, tiny_checkpoint, {n: sets[n] for n in ("L1", "L2")}, run)
    assert list(rows) == [("base", "L1"), ("base", "L2")]
    return run


@pytest.fixture(scope="module")
def killed(tiny_checkpoint, sets, tmp_path_factory):
    """What two processes left that died behind their first or second of three batches,
    with rows marked in a field that nobody computes again; the second batch of one is
    torn."""
    run = tmp_path_factory.mktemp("killed")
    with pytest.raises(launch.ChildFailed, match="was ended by SIGKILL"):
        answered(2, tiny_checkpoint, {"L1": sets["L1"]}, run, launched.die_answering)
    assert not (run / ROWS).exists()
    for name in FILES:
        rows = records.repair_jsonl(run / name)
        records.write_jsonl(run / name, [row | {"scenario": "kept"} for row in rows])
    with open(run / FILES[0], "a") as file:
        file.write((run / FILES[1]).read_text()[:50])
    return run


@pytest.fixture(scope="module")
def resumed(killed, tiny_checkpoint, sets, tmp_path_factory):
    """The killed run, continued by two processes up to the bad clip, and its error."""
    run = shutil.copytree(killed, tmp_path_factory.mktemp("resumed") / "run")
    with pytest.raises(launch.ChildFailed) as failed:
        answered(2, tiny_checkpoint, sets, run)
    return run, str(failed.value)


def whole_rows(run, questions):
    """How many rows of whole batches are in each partial file."""
    shape = evaluate.Asking(None, None, SETTINGS, SAMPLING).shape
    found = resume.partition(questions, SETTINGS.batch_size, shape)
    batches = [{question.id for question in own} for own in found]
    ids = [{row["id"] for row in records.repair_jsonl(run / name)} for name in FILES]
    return [sum(len(own) for own in batches if own <= found) for found in ids]


def test_two_processes_write_the_bytes_of_one(resumed, one):
    name = "predictions_base_L2.jsonl"
    assert (resumed[0] / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_two_processes_go_on_with_what_is_missing(
    processes, killed, resumed, one, sets, tiny_checkpoint, tmp_path
):
    kept = whole_rows(shutil.copytree(killed, tmp_path / "looked"), sets["L1"])
    assert min(kept) > 0 and sum(kept) < len(sets["L1"])
    run = resumed[0]
    if processes == 1:
        run = shutil.copytree(killed, tmp_path / "run")
        answered(1, tiny_checkpoint, {"L1": sets["L1"]}, run)
        left = {file.name for file in run.iterdir()}
        assert left == {ROWS, "predictions_base_L1.settings.json"}
    rows = records.read_jsonl(run / ROWS)
    assert sum(row["scenario"] == "kept" for row in rows) == sum(kept)
    rows = [row | {"scenario": "kitchen"} for row in rows]
    assert rows == records.read_jsonl(one / ROWS)


def test_all_that_a_team_of_two_asks_has_the_bytes_of_one(
    tiny_checkpoint, sets, tmp_path
):
    """Answers, draws, conditions, attention and readings, call after call."""
    left, asked = [], {"L2": sets["L2"]}
    weights = (evaluate.with_model, tiny_checkpoint, None, "float32", False)
    for count in (1, 2):
        run = tmp_path / str(count)
        team = launch.Team(run, count, "")
        given = ({"base": SETTINGS}, asked, SAMPLING, run)
        rows = team.call(*weights, evaluate.evaluate_sets, *given)
        given = (sets["L2"], SETTINGS, 2, 0, SAMPLING, run / "draws_base_L2.jsonl")
        team.call(*weights, draws.draw, *given)
        given = (asked, ["no_video"], SETTINGS, SAMPLING, run, "base", 6, 0)
        team.call(*weights, perception.ask, *given)
        said = {tables.OWN: rows["base", "L2"]}
        given = (sets["L2"], said, SAMPLING, run, "base")
        team.call(*weights, attention.measure, *given)
        given = (tiny_checkpoint, run, asked, "float32", False, ["base"])
        team.call(readers.read_run, *given)
        team.end()
        left.append({path.name: path.read_bytes() for path in run.glob("*")})
    assert left[0] == left[1]
    assert {name.partition("_")[0] for name in left[0] if name.endswith("l")} == {
        *("attention", "draws", "predictions", "readings")
    }


def test_a_bad_clip_of_one_process_ends_both_with_its_name(resumed):
    run, said = resumed
    assert "lib.data.video.BadVideo: " in said and "broken.mp4: is empty" in said
    assert "(question training/4)" in said
    assert not (run / "predictions_base_bad.jsonl").exists()
