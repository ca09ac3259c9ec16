"""GRPO sees the pictures, keeps groups together, and survives a kill."""

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib import records
from lib.data.video import BadVideo, Sampling
from lib.model import encoding, models, prefix
from lib.train import checkpoints, grpo
from lib.train.rewards import format_reward
from lib.train.task import GRPOSettings, trainer_arguments

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
SETTINGS = GRPOSettings(
    steps=4,
    prompts_per_step=2,
    group_size=4,
    lr=1e-2,
    kl_beta=0.0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    max_completion_tokens=8,
    lora_rank=4,
    lora_alpha=8,
    seed=0,
    save_every=2,
)


def vowels(text, question):
    """A reward any policy can move: the share of vowels."""
    return sum(letter in "aeiou" for letter in text) / (len(text) + 1)


def nothing(text, question):
    return 0.0


def tagged(text, question):
    return format_reward(text)


REWARDS = {"vowels": vowels, "format": tagged}


@pytest.fixture
def build(make_task, tmp_path):
    def make(rewards=REWARDS, folder=tmp_path, **changes):
        task = make_task(rewards, replace(SETTINGS, **changes), folder)
        return grpo.VideoGRPOTrainer(task)

    return make


def one_step_inputs(trainer):
    """What TRL hands to the loss for each backward pass of the first step."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = (
        trainer.args.gradient_accumulation_steps
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._prepare_inputs(batch)
    return batch, trainer._buffered_inputs


def plain_logps(trainer, question, completion):
    """Log-probabilities by one ordinary forward over prompt, pictures, completion."""
    prompt = trainer.read_prompt(question)
    ids = torch.cat([prompt.ids, completion])[None]
    kinds = encoding.mm_token_type_ids(ids, trainer.model.config)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = trainer.model(
            input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **prompt.pixels
        ).logits[0, -len(completion) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


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
    return [
        (i, flat["completion_ids"][i, :n], logps[i, :n]) for i, n in enumerate(lengths)
    ]


def test_what_stops_a_rollout_names_its_question(build, tiny_questions):
    trainer = build()
    missing = replace(tiny_questions[0], image=Path("none.png"))
    with pytest.raises(BadVideo, match=r"is missing \(question training/0\)"):
        trainer.read_prompt(missing)
    trainer.processing_class.tokenizer.model_max_length = 10
    with pytest.raises(ValueError, match=r"question training/1: .* tokens"):
        trainer.read_prompt(tiny_questions[1])


@pytest.mark.parametrize("prompts_per_backward", [0, 2])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_update_scores_every_rollout_with_its_own_pictures(
    build, tiny_questions, prompts_per_backward, lora_rank
):
    trainer = build(
        prompts_per_step=6,
        prompts_per_backward=prompts_per_backward,
        lora_rank=lora_rank,
        kl_beta=0.1,
    )
    batch, parts = one_step_inputs(trainer)
    assert len(parts) == (3 if prompts_per_backward else 1)
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


def test_a_step_runs_a_frozen_vision_tower_once_a_prompt(build):
    trainer = build(steps=1, kl_beta=0.1)
    calls = []
    visual = prefix.base_of(trainer.model).model.visual
    visual.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    trainer.train()
    stills, clips = 2 * 16, [2 * 2 * 16, 2 * 16]
    assert calls[0] == stills
    assert calls[1] in clips
    assert len(calls) == 2


def test_a_trained_vision_tower_gets_gradients(build):
    trainer = build(lora_rank=0, lr=1e-3)
    _, parts = one_step_inputs(trainer)
    trainer.compute_loss(trainer.model, parts[0]).backward()
    weight = prefix.base_of(trainer.model).model.visual.patch_embed.proj.weight
    assert weight.grad.norm() > 0


def step_gradient(trainer):
    """Of one step, from an adapter and rollouts that every call finds alike."""
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(weight, std=0.05)
    torch.manual_seed(1)
    _, parts = one_step_inputs(trainer)
    for part in parts:
        trainer.compute_loss(trainer.model, part).backward()
    grads = [w.grad.flatten() for w in trainer.model.parameters() if w.requires_grad]
    return torch.cat(grads)


SPLITS = [{"prompts_per_backward": 1}, {"pack_tokens": 300}]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_splitting_a_step_leaves_its_gradient(build, loss_type):
    common = {"prompts_per_step": 3, "loss_type": loss_type}
    whole, *split = (step_gradient(build(**common, **own)) for own in ({}, *SPLITS))
    assert whole.norm() > 0
    for other in split:
        assert (other - whole).norm() / whole.norm() <= 1e-5


def test_no_reference_is_computed_without_kl(build):
    trainer = build(kl_beta=0.0)
    calls = []
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: calls.append(a)
    _, parts = one_step_inputs(trainer)
    assert calls == []
    assert trainer.ref_model is None
    assert "ref_per_token_logps" not in parts[0]


def test_a_dead_group_has_no_advantage(build):
    trainer = build(rewards={"nothing": nothing})
    _, parts = one_step_inputs(trainer)
    assert torch.count_nonzero(parts[0]["advantages"]) == 0
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]


def test_advantages_follow_the_definition(build, tmp_path):
    trainer = build()
    _, parts = one_step_inputs(trainer)
    rows = records.read_jsonl(tmp_path / "rollouts.jsonl")
    assert [row["rollout"] for row in rows] == [0, 1, 2, 3] * 2
    for start in (0, 4):
        group = rows[start : start + 4]
        assert len({row["question"] for row in group}) == 1
        totals = torch.tensor([sum(row["rewards"].values()) for row in group])
        expected = (totals - totals.mean()) / (totals.std() + 1e-4)
        for row, advantage in zip(group, expected.tolist(), strict=True):
            assert row["advantage"] == pytest.approx(advantage, abs=1e-5)
            assert row["rewards"]["vowels"] == pytest.approx(vowels(row["text"], None))
    folded = sorted(parts[0]["advantages"].flatten().tolist())
    assert folded == pytest.approx(sorted(row["advantage"] for row in rows))


def test_a_deterministic_policy_is_reported(build):
    trainer = build(top_k=1)
    with pytest.raises(RuntimeError, match="identical"):
        one_step_inputs(trainer)


def test_sampling_fields_come_from_the_settings(build):
    trainer = build(temperature=0.7, top_k=5, top_p=0.9)
    decoding = trainer.decoding()
    config = trainer.model.config
    assert (decoding.temperature, decoding.top_k, decoding.top_p) == (0.7, 5, 0.9)
    assert {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    } == set(decoding.suppressed)


def test_rows_are_epochs_of_all_questions(make_task, tiny_questions, tmp_path):
    def order(seed, **more):
        settings = replace(SETTINGS, steps=15, prompts_per_step=1, seed=seed)
        task = make_task(REWARDS, settings, tmp_path, **more)
        return [row["question_id"] for row in task.rows()]

    ids = {question.id for question in tiny_questions}
    assert len(order(3)) == 15
    assert set(order(3)[:6]) == set(order(3)[6:12]) == ids
    assert order(3) == order(3) != order(4)
    with pytest.raises(ValueError, match=r"have only 6 .* training/1 is that"):
        order(3, questions=[*tiny_questions, tiny_questions[1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": 0.0}, "temperature"), ({"group_size": 1}, "group_size")],
)
def test_settings_without_a_signal_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_batches_that_do_not_divide_are_refused(tmp_path):
    odd = replace(SETTINGS, prompts_per_step=4, prompts_per_backward=3)
    with pytest.raises(ValueError, match="prompts_per_backward"):
        trainer_arguments(odd, tmp_path)


# Whole runs

RUN = """
import pickle, sys
from lib.train import grpo
grpo.train(pickle.load(open(sys.argv[1], "rb")))
"""


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def without_seconds(rows):
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds")}
        for row in rows
    ]


def assert_same_run(one, other, label):
    """Adapters and rollouts to the last byte, logs but for their seconds."""
    assert records.sha256(one / "adapters") == records.sha256(other / "adapters")
    names = {path.name for path in one.glob("*rollouts*.jsonl")}
    assert names == {path.name for path in other.glob("*rollouts*.jsonl")}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    name = f"train_log_{label}.jsonl"
    logs = [records.read_jsonl(folder / name) for folder in (one, other)]
    assert without_seconds(logs[0]) == without_seconds(logs[1])
    return logs[0]


@pytest.fixture(scope="module")
def finished(make_task, tmp_path_factory):
    """The task of an undisturbed run."""
    task = make_task(REWARDS, SETTINGS, tmp_path_factory.mktemp("undisturbed"))
    grpo.train(task)
    return task


def test_a_killed_run_ends_as_an_undisturbed_one(finished, tmp_path):
    own = replace(finished, run=tmp_path)
    (tmp_path / "task").write_bytes(pickle.dumps(own))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ".:tests"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "task")]
    complete = tmp_path / "checkpoints/grpo/checkpoint-2" / checkpoints.MARKER
    drawn = tmp_path / "rollouts.jsonl"
    with subprocess.Popen(command, env=environment) as process:
        try:
            deadline = time.monotonic() + 600
            while not (complete.exists() and len(lines(drawn)) >= 24):
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.001)
        finally:
            process.kill()
    assert not (tmp_path / "adapters").exists()
    half = tmp_path / "checkpoints/grpo/checkpoint-4"
    half.mkdir(exist_ok=True)
    (half / checkpoints.MARKER).unlink(missing_ok=True)

    grpo.train(own)
    assert not (tmp_path / "checkpoints/grpo").exists()
    assert_same_run(tmp_path, finished.run, "grpo")


def test_a_run_killed_behind_its_last_step_only_needs_publishing(finished, tmp_path):
    own = replace(finished, run=tmp_path)
    work = tmp_path / "checkpoints" / "grpo"
    checkpoints.write_settings(work / "grpo_settings.json", own.facts())
    grpo.VideoGRPOTrainer(own).train()
    assert (work / "checkpoint-4" / checkpoints.MARKER).exists()
    before = (tmp_path / "rollouts.jsonl").read_bytes()
    grpo.train(own)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before
    assert_same_run(tmp_path, finished.run, "grpo")


def test_the_records_of_a_run(finished):
    run = finished.run
    log = records.read_jsonl(run / "train_log_grpo.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    expected = {
        *("step", "reward", "reward_std", "dead_groups", "parse_failure", "entropy"),
        *("completion_length", "truncated", "loss", "lr", "grad_norm"),
        *("seconds_step", "reward_vowels", "reward_format"),
    }
    assert all(set(row) == expected for row in log)
    rows = records.read_jsonl(run / "rollouts.jsonl")
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


def test_a_finished_run_returns_at_once_and_refuses_other_settings(finished):
    before = records.sha256(finished.run)
    assert grpo.train(finished) == finished.run / "adapters" / "grpo"
    assert records.sha256(finished.run) == before
    other = replace(finished, settings=replace(SETTINGS, lr=0.02))
    with pytest.raises(ValueError, match=r"lr \(0.01 there, 0.02 now\)"):
        grpo.train(other)


def test_the_adapter_loads_and_changes_the_model(finished, tiny_checkpoint):
    run = finished.run
    model = models.load_model(tiny_checkpoint)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = models.load_trained(tiny_checkpoint, run / "adapters" / "grpo")
        after = adapted(input_ids=ids).logits
    assert (before - after).abs().max() > 1e-3


def test_nf4_with_checkpointing_and_kl_trains(make_task, tmp_path):
    changes = {"quantize": True, "gradient_checkpointing": True, "kl_beta": 0.1}
    grpo.train(make_task(REWARDS, replace(SETTINGS, steps=2, **changes), tmp_path))
    log = records.read_jsonl(tmp_path / "train_log_grpo.jsonl")
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[1]["kl"] > 0
    assert all(row["grad_norm"] > 0 for row in log)
