"""Data parallelism: two CPU processes train what one does with the same global batch.

All runs of two_processes.py are made by one pair of child processes."""

from dataclasses import replace

import pytest

from lib import records
from lib.run import launch
from lib.train import checkpoints, grpo, sft
from tests import two_processes
from tests.trainings import (
    assert_same_training,
    log_of,
    rollouts_of,
    weights_of,
    without_seconds,
)


@pytest.fixture(scope="module")
def two(tiny_checkpoint, tiny_questions, eight_demonstrations, tmp_path_factory):
    """The folder of the runs that two processes made."""
    folder = tmp_path_factory.mktemp("two")
    given = (tiny_checkpoint, tiny_questions, eight_demonstrations, folder)
    launch.call(folder, 2, "", two_processes.main, *given)
    return folder


def untrained_weights(trainer, folder):
    trainer.model.save_pretrained(folder)
    return weights_of(folder)


RUNS = ["drawn", *two_processes.FIXED, "sft", "uneven", *two_processes.OTHERS, "draws"]


@pytest.mark.parametrize("run", RUNS)
def test_both_processes_end_with_the_same_weights(two, run):
    told = [records.read_json(two / run / f"weights_{rank}.json") for rank in (0, 1)]
    assert told[0] == told[1]


def test_every_rollout_of_every_process_is_recorded_once(two, tiny_questions):
    settings = two_processes.DRAWN
    rows = rollouts_of(two / "drawn")
    ids = [question.id for question in tiny_questions[:3]]
    order = checkpoints.training_order(ids, 6, settings.seed)
    expected = [
        (1 + number // 2, question, rollout)
        for number, question in enumerate(order)
        for rollout in range(settings.group_size)
    ]
    assert [(row["step"], row["question"], row["rollout"]) for row in rows] == expected
    assert len({row["text"] for row in rows}) == len(rows)
    for row in log_of(two / "drawn"):
        own = [sum(r["rewards"].values()) for r in rows if r["step"] == row["step"]]
        assert row["reward"] == pytest.approx(sum(own) / len(own), abs=1e-6)


def test_the_steps_are_the_hard_ones(two, tiny_questions):
    """A video beside an image only, unlike forward passes, one question twice."""
    films = {question.id: question.video for question in tiny_questions}
    asked = [set(), set(), set()]
    for row in rollouts_of(two / "drawn"):
        asked[row["step"] - 1].add(row["question"])
    assert [len(own) for own in asked] == [2, 1, 2]
    for step in (0, 2):
        assert None in {films[name] for name in asked[step]}


@pytest.mark.parametrize("name", two_processes.FIXED)
def test_the_same_rollouts_give_the_update_of_one_process(
    two, tiny_checkpoint, tiny_questions, tmp_path, name
):
    settings = two_processes.FIXED[name]
    arguments = (tiny_checkpoint, tiny_questions)
    two_processes.train_fixed(*arguments, settings, tmp_path)
    assert rollouts_of(two / name) == rollouts_of(tmp_path)
    task = two_processes.task_of(*arguments, settings, tmp_path)
    fresh = grpo.VideoGRPOTrainer(task)
    untrained = untrained_weights(fresh, tmp_path / "untrained")
    assert_same_training(two / name, tmp_path, "grpo", untrained)


@pytest.mark.parametrize("name", two_processes.OTHERS)
def test_the_same_rollouts_give_the_training_of_one_process(
    two, tiny_checkpoint, tiny_questions, tmp_path, name
):
    """By PPO and by GRPO-CARE."""
    two_processes.train_other(name, tiny_checkpoint, tiny_questions, tmp_path)
    ours, theirs = (rollouts_of(run, name) for run in (two / name, tmp_path))
    for row, other in zip(ours, theirs, strict=True):
        for key in ("advantage", "value", "reference_likelihood"):
            assert row.pop(key, 0) == pytest.approx(other.pop(key, 0), abs=1e-4)
        assert row.pop("rewards") == pytest.approx(other.pop("rewards"), abs=1e-5)
        assert row == other
    logs = [without_seconds(log_of(run, name)) for run in (two / name, tmp_path)]
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
    trained, expected = (
        weights_of(run / "adapters" / name) for run in (two / name, tmp_path)
    )
    assert (trained - expected).norm() <= 1e-3 * expected.norm()


def test_each_process_replaces_its_own_dead_groups(two):
    rows = rollouts_of(two / "draws")
    replaced = records.read_jsonl(two / "draws" / "replaced_rollouts.jsonl")
    assert len(rows) == 4 * 4 * 2
    counted = [row["replaced_groups"] for row in log_of(two / "draws")]
    own = [sum(row["step"] == step for row in replaced) / 2 for step in range(1, 5)]
    assert counted == own
    assert sum(own) > 0


@pytest.mark.parametrize(
    ("run", "one", "count"),
    [("sft", two_processes.SFT, 8), ("uneven", two_processes.UNEVEN, 6)],
)
def test_sft_is_that_of_one_process(
    run, one, count, two, tiny_checkpoint, eight_demonstrations, tmp_path
):
    """With either loss: a mean over tokens, and the released one."""
    settings = replace(one, batch_size=2 * one.batch_size)
    given = (tiny_checkpoint, eight_demonstrations[:count], settings)
    task = sft.Task(*given, two_processes.SAMPLING, tmp_path)
    sft.train_sft(task)
    fresh = sft.ResponseTrainer(task)
    untrained = untrained_weights(fresh, tmp_path / "untrained")
    assert_same_training(two / run, tmp_path, "sft", untrained)
