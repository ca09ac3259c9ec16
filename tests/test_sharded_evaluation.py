"""Evaluation on two processes: the bytes of one, after kills and bad clips too."""

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lib import evaluate as evaluation
from lib import launch, models, records
from lib.evaluate import EvalSettings, evaluate, evaluate_sets
from lib.video import Sampling

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
SETTINGS = EvalSettings("think", max_new_tokens=100, batch_size=2)
HANG = 300  # seconds; an idle machine needs 20
FILES = ("predictions_base_L1.partial.jsonl", "predictions_base_L1.partial-1.jsonl")


def renamed(question, copy):
    return replace(question, id=f"{question.id}/{copy}")


@pytest.fixture(scope="module")
def questions(tiny_questions):
    """Thirty, so that there is time to kill while they are answered."""
    return [renamed(item, copy) for copy in range(5) for item in tiny_questions]


@pytest.fixture(scope="module")
def sets(questions, tmp_path_factory):
    """The questions, a few, and as many of which the last one's clip is broken."""
    broken = tmp_path_factory.mktemp("broken") / "broken.mp4"
    broken.write_bytes(b"")
    few, last = questions[:6], replace(questions[4], video=broken)
    return {"L1": questions, "L2": few, "bad": [*few[:4], last]}


@pytest.fixture(scope="module")
def one(tiny_checkpoint, sets, tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    run = tmp_path_factory.mktemp("one")
    whole = {name: sets[name] for name in ("L1", "L2")}
    asked = {"base": SETTINGS}
    arguments = (tiny_checkpoint, None, "float32", False, asked, whole, SAMPLING, run)
    answered = launch.call(run, 1, "", evaluate_sets, *arguments)
    assert list(answered) == [("base", "L1"), ("base", "L2")]
    return run


def on_two(checkpoint, sets, run):
    arguments = (checkpoint, None, "float32", False, {"base": SETTINGS}, sets, SAMPLING)
    return launch.call(run, 2, "", evaluate_sets, *arguments, run)


def processes_of(run):
    """The pids of the processes that answer for a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if "lib.launch" in words and any(str(run) in word for word in words):
            found.append((int(folder.name), int(parent)))
    launchers = {parent for _, parent in found}
    return [pid for pid, _ in found if pid not in launchers]


def kill_in_the_middle(run):
    """kill -9 both processes once each has answered a batch or more."""
    until = time.monotonic() + HANG
    files = [run / name for name in FILES]
    while not all(file.exists() and file.stat().st_size for file in files):
        assert time.monotonic() < until, "nothing was answered"
        time.sleep(0.002)
    for pid in processes_of(run):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def killed(tiny_checkpoint, sets, tmp_path_factory):
    """What two processes left that were killed in the middle, and the error shown."""
    run = tmp_path_factory.mktemp("killed")
    thread = threading.Thread(target=kill_in_the_middle, args=(run,))
    thread.start()
    with pytest.raises(launch.ChildFailed) as failed:
        on_two(tiny_checkpoint, {"L1": sets["L1"]}, run)
    thread.join()
    assert not (run / "predictions_base_L1.jsonl").exists()
    return run, str(failed.value)


@pytest.fixture(scope="module")
def resumed(killed, tiny_checkpoint, sets, tmp_path_factory):
    """The killed run, continued by two processes up to the bad clip, and its error."""
    run = tmp_path_factory.mktemp("resumed")
    for file in killed[0].iterdir():
        shutil.copy(file, run)
    mark_rows(run)
    with pytest.raises(launch.ChildFailed) as failed:
        on_two(tiny_checkpoint, sets, run)
    return run, str(failed.value)


def mark_rows(run):
    """Make the answered rows recognisable, in a field that nobody computes again."""
    for name in FILES:
        rows = records.repair_jsonl(run / name)
        records.write_jsonl(run / name, [row | {"scenario": "kept"} for row in rows])


def whole_rows(run, questions):
    """Rows of whole batches in both partial files."""
    batches = evaluation.partition(questions, SETTINGS)
    return [len(evaluation.whole_batches(run / name, batches)) for name in FILES]


def same_bytes(run, other, name):
    first, second = (
        (folder / f"predictions_base_{name}.jsonl").read_bytes()
        for folder in (run, other)
    )
    return first == second


def test_the_killed_process_is_named(killed):
    assert "was ended by SIGKILL" in killed[1]


def test_two_processes_write_the_bytes_of_one(resumed, one):
    assert same_bytes(resumed[0], one, "L2")


def test_killed_two_processes_go_on_with_what_is_missing(
    killed, resumed, one, questions
):
    run, kept = resumed[0], whole_rows(killed[0], questions)
    assert min(kept) > 0 and sum(kept) < len(questions)
    rows = records.read_jsonl(run / "predictions_base_L1.jsonl")
    assert sum(row["scenario"] == "kept" for row in rows) == sum(kept)
    whole = records.read_jsonl(one / "predictions_base_L1.jsonl")
    assert [row | {"scenario": "kitchen"} for row in rows] == whole


def test_one_process_goes_on_for_two(killed, one, tiny_checkpoint, questions, tmp_path):
    for file in killed[0].iterdir():
        shutil.copy(file, tmp_path)
    model = models.load_model(tiny_checkpoint)
    processor = models.load_processor(tiny_checkpoint)
    path = tmp_path / "predictions_base_L1.jsonl"
    evaluate(model, processor, questions, SETTINGS, SAMPLING, path)
    assert same_bytes(tmp_path, one, "L1")
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {path.name, "predictions_base_L1.settings.json"}


def test_a_bad_clip_of_one_process_ends_both_with_its_name(resumed):
    run, said = resumed
    assert "lib.video.BadVideo: " in said and "broken.mp4: is empty" in said
    assert "(question training/4/0)" in said
    assert not (run / "predictions_base_bad.jsonl").exists()


def test_rows_of_other_settings_are_refused_whoever_answered_them(
    killed, tiny_checkpoint, questions, tmp_path
):
    shutil.copy(killed[0] / FILES[1], tmp_path)
    settings = killed[0] / "predictions_base_L1.settings.json"
    shutil.copy(settings, tmp_path)
    model = models.load_model(tiny_checkpoint)
    longer = replace(SETTINGS, max_new_tokens=101)
    with pytest.raises(ValueError, match="max_new_tokens was 100, is 101"):
        evaluate(
            model,
            models.load_processor(tiny_checkpoint),
            questions,
            longer,
            SAMPLING,
            tmp_path / "predictions_base_L1.jsonl",
        )
