"""GRPO sees the pictures, keeps groups together, and survives a kill."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.data.video import BadVideo
from lib.model import prefix
from lib.train import checkpoints, grpo
from lib.train.task import trainer_arguments
from tests.trainings import (
    GRPO,
    REWARDS,
    SPLITS,
    assert_same_run,
    kill_when,
    log_of,
    one_step_inputs,
    plain_logps,
    rollouts_of,
    step_gradient,
    vowels,
)


def scored(trainer, inputs):
    """(row, its completion, its log-probabilities) through the trainer's own path."""
    flat = grpo.unfold(inputs)
    trainer.in_loss = {**flat, "prompts": inputs["prompts"]}
    ids = torch.cat([flat["prompt_ids"], flat["completion_ids"]], 1)
    mask = torch.cat([flat["prompt_mask"], flat["completion_mask"]], 1)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, flat["completion_ids"].shape[1]
    )
    lengths = flat["completion_mask"].sum(1).tolist()
    ids = flat["completion_ids"]
    return [(i, ids[i, :n], logps[i, :n]) for i, n in enumerate(lengths)]


def test_what_stops_a_rollout_names_its_question(make_trainer, tiny_questions):
    trainer = make_trainer()
    missing = replace(tiny_questions[0], image=Path("none.png"))
    with pytest.raises(BadVideo, match=r"is missing \(question training/0\)"):
        trainer.read_prompt(missing)
    trainer.processing_class.tokenizer.model_max_length = 10
    with pytest.raises(ValueError, match=r"question training/1: .* tokens"):
        trainer.read_prompt(tiny_questions[1])


@pytest.mark.parametrize("once", [0, 2])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_update_scores_every_rollout_with_its_own_pictures(
    make_trainer, once, lora_rank
):
    changes = {"prompts_per_step": 6, "prompts_per_backward": once, "kl_beta": 0.1}
    trainer = make_trainer(lora_rank=lora_rank, **changes)
    batch, parts = one_step_inputs(trainer)
    assert len(parts) == (3 if once else 1)
    asked = [trainer.questions[row["question_id"]] for row in batch[::4]]
    assert {question.video is None for question in asked} == {True, False}
    by_ids = {tuple(trainer.read_prompt(q).ids.tolist()): q for q in asked}
    assert len(by_ids) == 6
    for inputs in parts:
        reference = grpo.unfold(inputs)["ref_per_token_logps"]
        for i, completion, logps in scored(trainer, inputs):
            question = by_ids[tuple(inputs["prompts"][i // 4].ids.tolist())]
            expected = plain_logps(trainer, question, completion)
            assert (logps - expected).abs().max() <= 1e-5
            # Nothing is trained yet: the reference is the policy.
            assert (reference[i, : len(expected)] - expected).abs().max() <= 1e-5


def test_a_step_runs_a_frozen_vision_tower_once_a_prompt(make_trainer):
    trainer = make_trainer(steps=1, kl_beta=0.1)
    calls = []
    visual = prefix.base_of(trainer.model).model.visual
    visual.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    trainer.train()
    stills, clips = calls
    assert stills == 2 * 16 and clips in (2 * 2 * 16, 2 * 16)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_splitting_a_step_leaves_its_gradient(make_trainer, loss_type):
    common = {"prompts_per_step": 3, "loss_type": loss_type}
    whole, *split = (
        step_gradient(make_trainer(**common, **own)) for own in ({}, *SPLITS)
    )
    assert whole.norm() > 0
    for other in split:
        assert (other - whole).norm() / whole.norm() <= 1e-5


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_follow_the_definition(make_trainer, tmp_path, scale):
    trainer = make_trainer(scale_rewards=scale)
    _, parts = one_step_inputs(trainer)
    # With one update, and without a KL, nothing is scored before the loss is.
    assert trainer.ref_model is None
    assert not {"ref_per_token_logps", "old_per_token_logps"} & parts[0].keys()
    rows = rollouts_of(tmp_path)
    assert [row["rollout"] for row in rows] == [0, 1, 2, 3] * 2
    totals = [sum(row["rewards"].values()) for row in rows]
    groups, whole = torch.tensor(totals).view(2, 4), torch.tensor(totals)
    spread = {"group": groups.std(1, keepdim=True) + 1e-4, "none": 1.0}
    spread["batch"] = whole.std() + 1e-4
    expected = (groups - groups.mean(1, keepdim=True)) / spread[scale]
    found = torch.tensor([row["advantage"] for row in rows]).view(2, 4)
    assert torch.allclose(found, expected, atol=1e-5) and found.max() > 1e-2
    own = torch.tensor(grpo.advantages(groups.tolist(), scale))
    assert torch.allclose(own, expected, atol=1e-5)
    for i, row in enumerate(rows):
        assert row["question"] == rows[i // 4 * 4]["question"]
        assert row["rewards"]["vowels"] == pytest.approx(vowels(row["text"], None))
    folded = sorted(parts[0]["advantages"].flatten().tolist())
    assert folded == pytest.approx(sorted(row["advantage"] for row in rows))


def test_dead_groups_are_counted_as_such_with_the_std_of_the_batch(
    make_trainer, tmp_path
):
    """One that is all right and one that is all wrong: nothing to learn, no fault."""

    def first(text, question):
        return float(question.id == "training/0")

    rewards, batch = {"accuracy": first}, {"steps": 1, "scale_rewards": "batch"}
    trainer = make_trainer(rewards=rewards, prompts_per_step=6, **batch)
    checkpoints.train(trainer)
    (row,) = log_of(tmp_path)
    assert row["dead_groups"] == 1 and row["reward_std"] > 0


def test_a_deterministic_policy_is_reported(make_trainer):
    with pytest.raises(RuntimeError, match="identical"):
        one_step_inputs(make_trainer(top_k=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops(make_trainer, value):
    rewards = {"broken": lambda text, question: value}
    with pytest.raises(ValueError, match=f"broken is {value} for question "):
        one_step_inputs(make_trainer(rewards=rewards))


def test_a_training_that_goes_on_may_have_become_sure(make_trainer):
    """Or it could not be resumed where an undisturbed one goes on."""
    trainer = make_trainer(top_k=1)
    trainer.state.global_step = 2
    one_step_inputs(trainer)
    assert {len(set(map(tuple, own.tokens))) for own in trainer.groups} == {1}


def test_sampling_fields_come_from_the_settings(make_trainer):
    trainer = make_trainer(temperature=0.7, top_k=5, top_p=0.9)
    decoding, config = trainer.decoding(), trainer.model.config
    assert (decoding.temperature, decoding.top_k, decoding.top_p) == (0.7, 5, 0.9)
    kinds = ("image", "video", "vision_start", "vision_end")
    ids = {getattr(config, f"{kind}_token_id") for kind in kinds}
    assert ids == set(decoding.suppressed)


def test_a_row_is_a_group_and_an_id_is_one_question(
    make_task, tiny_questions, tmp_path
):
    settings = replace(GRPO, steps=15, prompts_per_step=1)
    rows = make_task(REWARDS, settings, tmp_path).rows()
    ids = {question.id for question in tiny_questions}
    assert len(rows) == 15 and {row["question_id"] for row in rows[:6]} == ids
    other = make_task(REWARDS, replace(settings, seed=4), tmp_path).rows()
    assert rows == make_task(REWARDS, settings, tmp_path).rows() != other
    twice = [*tiny_questions, tiny_questions[1]]
    with pytest.raises(ValueError, match="training/1 is the id of 2 questions"):
        make_task(REWARDS, settings, tmp_path, twice).rows()


@pytest.mark.parametrize(
    ("devices", "once", "told"), [(1, 3, "prompts_per_backward = 3"), (3, 0, "over 3")]
)
def test_batches_that_do_not_divide_are_refused(
    tmp_path, monkeypatch, devices, once, told
):
    monkeypatch.setattr(checkpoints, "processes", lambda: devices)
    odd = replace(GRPO, prompts_per_step=4, prompts_per_backward=once)
    with pytest.raises(ValueError, match=f"prompts_per_step = 4 cannot .*{told}"):
        trainer_arguments(odd, tmp_path)


@pytest.fixture(scope="module")
def finished(make_task, tmp_path_factory):
    """The task of an undisturbed run."""
    task = make_task(REWARDS, GRPO, tmp_path_factory.mktemp("undisturbed"))
    grpo.train(task)
    return task


def test_a_killed_run_ends_as_an_undisturbed_one(finished, tmp_path):
    own = replace(finished, run=tmp_path)
    work, drawn = tmp_path / "checkpoints" / "grpo", tmp_path / "rollouts.jsonl"

    def in_step_3():
        complete = (work / "checkpoint-2" / checkpoints.MARKER).exists()
        return complete and drawn.read_bytes().count(b"\n") >= 24

    kill_when(in_step_3, grpo.train, own)
    half = work / "checkpoint-4"
    half.mkdir(exist_ok=True)
    (half / checkpoints.MARKER).unlink(missing_ok=True)
    grpo.train(own)
    assert not work.exists()
    assert_same_run(tmp_path, finished.run, "grpo")


def test_the_records_of_a_run(finished):
    log, rows = log_of(finished.run), rollouts_of(finished.run)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    expected = {
        *("step", "reward", "reward_std", "dead_groups", "parse_failure", "entropy"),
        *("completion_length", "truncated", "loss", "lr", "grad_norm"),
        *("seconds_step", "reward_vowels", "reward_format"),
    }
    assert all(set(row) == expected for row in log)
    assert len(rows) == 4 * 8
    for row in log:
        own = [rollout for rollout in rows if rollout["step"] == row["step"]]
        reward = sum(sum(rollout["rewards"].values()) for rollout in own) / len(own)
        assert row["reward"] == pytest.approx(reward, abs=1e-6)
        cut = sum(rollout["truncated"] for rollout in own) / len(own)
        assert row["truncated"] == pytest.approx(cut)
        length = sum(rollout["tokens"] for rollout in own) / len(own)
        assert row["completion_length"] == pytest.approx(length)
    assert not [key for row in rows for key in row if "second" in key or "time" in key]
