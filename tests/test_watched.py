"""Watching groups over training: a look that changes nothing, the same at any time."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import records
from lib.data.video import BadVideo
from lib.train import checkpoints, grpo, reward_stages, rewards, rl, watched
from tests.trainings import (
    GRPO,
    METHODS,
    REWARDS,
    Killed,
    assert_same_run,
    letters,
    log_of,
    vowels,
)

MEASURED = {**REWARDS, "accuracy": letters}


def chance(text, question):
    """A reward that would show if looking moved python's or numpy's randomness on."""
    return random.random() + np.random.rand()


@pytest.fixture(scope="module")
def task(make_task, tiny_questions):
    """A task on the first four questions that watches the last two."""

    def make(run, name="grpo", watching=True, measured=MEASURED, **changes):
        settings = replace(METHODS[name][0], **changes)
        shown = tiny_questions[4:] if watching else ()
        return make_task(measured, settings, run, tiny_questions[:4], shown)

    return make


@pytest.fixture(scope="module")
def train(task):
    def make(run, name="grpo", *given, **changes):
        grpo.train(task(run, name, *given, **changes), rl.METHODS[name][1])
        return run

    return make


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The folder of an undisturbed run, watched at the steps 0, 2 and 4."""
    return train(tmp_path_factory.mktemp("whole"))


def rows_of(run, name="grpo"):
    return records.read_jsonl(watched.watched_path(run, name))


def saved(run, name, step):
    """The bytes of what a checkpoint holds: weights, optimizer, randomness. Left out
    are the files that hold the folder's name and the seconds of steps."""
    folder = run / "checkpoints" / name / f"checkpoint-{step}"
    other = ("training_args.bin", "trainer_state.json", checkpoints.MARKER)
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name not in other
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("grpo", {"extra_draws": 1, "prompts_per_backward": 1}),
        ("grpo", {"lora_rank": 0, "lr": 1e-3, "kl_beta": 0.1}),
        ("grpo", {"quantize": True, "gradient_checkpointing": True}),
        ("ppo", {}),
        ("care", {"reference_every": 1}),
    ],
)
def test_training_is_the_same_with_and_without(
    train, tmp_path, monkeypatch, name, changes
):
    # The folder of checkpoints is looked into before it goes.
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *a, **k: None)
    measured = {**MEASURED, "chance": chance}
    seen, unseen = (
        train(tmp_path / str(watching), name, watching, measured, **changes)
        for watching in (True, False)
    )
    assert_same_run(seen, unseen, name)
    for step in (2, 4):
        found, expected = (saved(run, name, step) for run in (seen, unseen))
        assert {"optimizer.pt", "rng_state.pth"} <= set(expected)
        assert found == expected
    assert [row["step"] for row in rows_of(seen, name)] == [0, 0, 2, 2, 4, 4]
    assert not watched.watched_path(unseen, name).exists()


def test_a_finished_adapter_is_accepted_with_any_watching(train, whole):
    before = records.sha256(whole)
    train(whole, watching=False)
    assert records.sha256(whole) == before


def test_randomness_inside_follows_from_its_seed():
    drawn = []
    for _ in range(2):
        torch.rand(1)  # outside
        with watched.own_randomness(7):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_rows_tell_the_group_of_every_question_and_step(whole, tiny_questions):
    rows, shown = rows_of(whole), tiny_questions[4:]
    expected = [(step, question.id) for step in (0, 2, 4) for question in shown]
    assert [(row["step"], row["question_id"]) for row in rows] == expected
    for row, question in zip(rows, shown * 3, strict=True):
        assert row["prompt"] == grpo.dataset_row(question)["prompt"]
        assert (row["gold"], row["options"]) == (question.gold, [*question.options])
        assert len(row["rollouts"]) == GRPO.group_size
        for own in row["rollouts"]:
            measured = {key: f(own["text"], question) for key, f in MEASURED.items()}
            assert own["rewards"] == pytest.approx(measured)
            assert own["reward"] == pytest.approx(sum(measured.values()))
            assert 1 <= own["tokens"] <= GRPO.max_completion_tokens
            assert own["tokens"] == GRPO.max_completion_tokens or not own["truncated"]
        totals = torch.tensor([own["reward"] for own in row["rollouts"]])
        compared = (totals - totals.mean()) / (totals.std() + 1e-4)
        found = [own["advantage"] for own in row["rollouts"]]
        assert found == pytest.approx(compared.tolist(), abs=1e-4)
    texts = [[own["text"] for own in row["rollouts"]] for row in rows]
    assert len({text for group in texts for text in group}) > len(rows)


def test_a_change_of_the_policy_shows(train, whole, tmp_path):
    """Step 0 is the untrained policy, every step draws by randomness of its own, and
    the last one is watched though it is no multiple of save_every."""
    moved, still = rows_of(whole), rows_of(train(tmp_path, lr=1e-12, steps=3))
    assert [row["step"] for row in still] == [0, 0, 2, 2, 3, 3]
    assert still[:2] == moved[:2]
    assert still[2:4] != moved[2:4]
    assert still[0]["rollouts"] != still[2]["rollouts"]


def test_a_critic_gives_no_advantage_to_a_group(train, tmp_path):
    rows = rows_of(train(tmp_path, "ppo", group_size=1, steps=2), "ppo")
    assert [len(row["rollouts"]) for row in rows] == [1] * 4
    assert {own["advantage"] for row in rows for own in row["rollouts"]} == {None}


def test_rewards_are_weighed_as_the_next_batch_weighs_them(
    train, tmp_path, monkeypatch
):
    monkeypatch.setitem(rewards.REWARDS, "accuracy", letters)
    monkeypatch.setitem(rewards.REWARDS, "format", vowels)
    line = "format until 2 steps | 0.25 accuracy + 2 format"
    run = train(tmp_path, measured=reward_stages.read_rewards(line))
    log = log_of(run)
    assert [row["reward_stage"] for row in log] == [1, 1, 2, 2]
    shares = {0: (0, 1), 2: (0.25, 2), 4: (0.25, 2)}
    for row in rows_of(run):
        for own in row["rollouts"]:
            assert set(own["rewards"]) == {"format", "accuracy"}
            parts = own["rewards"]["accuracy"], own["rewards"]["format"]
            total = np.dot(shares[row["step"]], parts)
            assert own["reward"] == pytest.approx(total)


def test_unusable_media_are_told_before_training(task, tiny_questions, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    asked = [replace(tiny_questions[4], video=broken)]
    with pytest.raises(BadVideo, match=r"broken\.mp4"):
        grpo.train(replace(task(tmp_path / "run"), watched=asked))
    assert not (tmp_path / "run" / "rollouts.jsonl").exists()


def killed(train, run, monkeypatch, number, before):
    """A training that ends before or behind its n-th look: at step 0, 2 or 4."""
    look, looks = watched.WatchGroups.look, []

    def counted(self, step):
        looks.append(step)
        if len(looks) < number or not before:
            look(self, step)
        if len(looks) == number:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(watched.WatchGroups, "look", counted)
        train(run)


def tear(run):
    """As a kill in the middle of writing: one row, and a half."""
    path = watched.watched_path(run, "grpo")
    os.truncate(path, path.stat().st_size - 100)
    assert path.read_bytes().count(b"\n") == 1


def lose_checkpoint_4(run):
    (run / "checkpoints/grpo/checkpoint-4" / checkpoints.MARKER).unlink()


@pytest.mark.parametrize(
    ("number", "before", "damage"),
    [
        *((1, False, tear), (2, True, None), (2, False, None), (3, False, None)),
        (3, False, lose_checkpoint_4),
    ],
)
def test_a_killed_run_ends_with_the_same_groups(
    train, whole, tmp_path, monkeypatch, number, before, damage
):
    killed(train, tmp_path, monkeypatch, number, before)
    if damage:
        damage(tmp_path)
    train(tmp_path)
    assert_same_run(whole, tmp_path, "grpo")
    found, expected = (
        watched.watched_path(run, "grpo").read_bytes() for run in (tmp_path, whole)
    )
    assert found == expected
    assert [row["step"] for row in rows_of(whole)] == [0, 0, 2, 2, 4, 4]
