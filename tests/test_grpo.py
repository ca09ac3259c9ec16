"""GRPO sees the pictures, keeps groups together, and survives a kill."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lib import checkpoints, grpo, models, records, shared_prefix
from lib.grpo import GRPOSettings
from lib.rewards import format_reward
from lib.video import BadVideo, Sampling

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


REWARDS = {"vowels": vowels, "format": lambda text, question: format_reward(text)}


@pytest.fixture
def build(tiny_checkpoint, tiny_questions, tmp_path):
    def make(rewards=REWARDS, **changes):
        return grpo.grpo_trainer(
            tiny_checkpoint,
            tiny_questions,
            rewards,
            replace(SETTINGS, **changes),
            SAMPLING,
            tmp_path,
        )

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
    kinds = models.mm_token_type_ids(ids, trainer.model.config)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = trainer.model(
            input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **prompt.pixels
        ).logits[0, -len(completion) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def scored(trainer, inputs):
    """(row, its completion, its log-probabilities) through the trainer's own path."""
    flat = grpo.unfold(inputs)
    trainer._prompts = inputs["prompts"]
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


def test_the_update_changes_with_the_video(build, tiny_questions):
    trainer = build()
    one, other = (
        replace(tiny_questions[0], video=tiny_questions[i].video) for i in (0, 1)
    )
    completion = torch.arange(20, 26)
    found = []
    for question in (one, other):
        prompts = [trainer.read_prompt(question)]
        logps, _ = shared_prefix.completion_scores(
            trainer.model, prompts, [[completion]]
        )
        found.append(logps[0])
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_a_step_runs_a_frozen_vision_tower_once_a_prompt(build):
    trainer = build(steps=1, kl_beta=0.1)
    calls = []
    visual = shared_prefix.base_of(trainer.model).model.visual
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
    weight = shared_prefix.base_of(trainer.model).model.visual.patch_embed.proj.weight
    assert weight.grad.norm() > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_splitting_a_step_leaves_its_gradient(build, loss_type):
    found = []
    for changes in ({}, {"prompts_per_backward": 1}, {"pack_tokens": 300}):
        trainer = build(prompts_per_step=3, loss_type=loss_type, **changes)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(weight, std=0.05)
        torch.manual_seed(1)
        _, parts = one_step_inputs(trainer)
        for part in parts:
            trainer.compute_loss(trainer.model, part).backward()
        grads = [
            w.grad.flatten() for w in trainer.model.parameters() if w.requires_grad
        ]
        found.append(torch.cat(grads))
    assert found[0].norm() > 0
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() <= 1e-5


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


def test_question_order_is_epochs_of_all_questions(tiny_questions):
    order = grpo.question_order(tiny_questions, 15, seed=3)
    ids = {question.id for question in tiny_questions}
    assert set(order[:6]) == set(order[6:12]) == ids
    assert order[:6] != order[6:12]
    assert order == grpo.question_order(tiny_questions, 15, seed=3)
    assert order != grpo.question_order(tiny_questions, 15, seed=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": 0.0}, "temperature"), ({"group_size": 1}, "group_size")],
)
def test_settings_without_a_signal_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="prompts_per_backward"):
        grpo.batch_sizes(replace(SETTINGS, prompts_per_step=4, prompts_per_backward=3))


# Whole runs

RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests import test_grpo
from lib import grpo, records
folder = Path(sys.argv[1])
questions = test_grpo.stored_questions(folder)
grpo.train_grpo(folder / "checkpoint", questions, test_grpo.REWARDS,
                test_grpo.SETTINGS, test_grpo.SAMPLING, Path(sys.argv[2]))
"""


def store_questions(folder, questions):
    records.write_json(folder / "questions.json", [asdict(q) for q in questions])


def stored_questions(folder):
    from lib.questions import Question

    def restore(row):
        media = {key: row[key] and Path(row[key]) for key in ("video", "image")}
        lists = {key: tuple(row[key]) for key in ("options", "progress")}
        return Question(**{**row, **media, **lists})

    return [restore(row) for row in records.read_json(folder / "questions.json")]


def start(folder, run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-c", RUN, str(folder), str(run)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def without_seconds(rows):
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tiny_questions, tmp_path_factory):
    """The undisturbed run: (folder of checkpoint and questions, its run folder)."""
    folder = tiny_checkpoint.parent
    store_questions(folder, tiny_questions)
    run = tmp_path_factory.mktemp("undisturbed")
    grpo.train_grpo(tiny_checkpoint, tiny_questions, REWARDS, SETTINGS, SAMPLING, run)
    return folder, run


def test_a_killed_run_ends_as_an_undisturbed_one(finished, tmp_path):
    folder, run = finished
    process = start(folder, tmp_path)
    complete = tmp_path / "checkpoints/grpo/checkpoint-2" / checkpoints.MARKER
    deadline = time.monotonic() + 600
    while not (complete.exists() and len(lines(tmp_path / "rollouts.jsonl")) >= 24):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "adapters").exists()
    half = tmp_path / "checkpoints/grpo/checkpoint-4"
    half.mkdir(exist_ok=True)
    (half / checkpoints.MARKER).unlink(missing_ok=True)

    assert start(folder, tmp_path).wait() == 0
    assert not (tmp_path / "checkpoints/grpo").exists()
    assert records.sha256(tmp_path / "adapters") == records.sha256(run / "adapters")
    name = "rollouts.jsonl"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
    name = "train_log_grpo.jsonl"
    logs = [records.read_jsonl(place / name) for place in (tmp_path, run)]
    assert without_seconds(logs[0]) == without_seconds(logs[1])


def test_a_run_killed_behind_its_last_step_only_needs_publishing(
    finished, tiny_questions, tmp_path
):
    folder, run = finished
    arguments = (folder / "checkpoint", tiny_questions, REWARDS, SETTINGS, SAMPLING)
    work = tmp_path / "checkpoints" / "grpo"
    checkpoints.write_settings(work / grpo.RECORD, grpo.all_settings(*arguments))
    grpo.grpo_trainer(*arguments, tmp_path).train()
    assert (work / "checkpoint-4" / checkpoints.MARKER).exists()
    before = (tmp_path / "rollouts.jsonl").read_bytes()
    grpo.train_grpo(*arguments, tmp_path)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before
    assert records.sha256(tmp_path / "adapters") == records.sha256(run / "adapters")


def test_the_records_of_a_run(finished):
    _, run = finished
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


def test_a_finished_run_returns_at_once_and_refuses_other_settings(
    finished, tiny_questions
):
    folder, run = finished
    before = records.sha256(run)
    arguments = (folder / "checkpoint", tiny_questions, REWARDS)
    result = grpo.train_grpo(*arguments, SETTINGS, SAMPLING, run)
    assert result == run / "adapters" / "grpo"
    assert records.sha256(run) == before
    with pytest.raises(ValueError, match=r"lr \(0.01 there, 0.02 now\)"):
        grpo.train_grpo(*arguments, replace(SETTINGS, lr=0.02), SAMPLING, run)


def test_the_adapter_loads_and_changes_the_model(finished, tiny_checkpoint):
    _, run = finished
    model = models.load_model(tiny_checkpoint)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = models.load_adapter(model, run / "adapters" / "grpo")
        after = adapted(input_ids=ids).logits
    assert (before - after).abs().max() > 1e-3


def test_nf4_with_checkpointing_and_kl_trains(
    tiny_checkpoint, tiny_questions, tmp_path
):
    settings = replace(
        SETTINGS, steps=2, quantize=True, gradient_checkpointing=True, kl_beta=0.1
    )
    grpo.train_grpo(
        tiny_checkpoint, tiny_questions, REWARDS, settings, SAMPLING, tmp_path
    )
    log = records.read_jsonl(tmp_path / "train_log_grpo.jsonl")
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[1]["kl"] > 0
    assert all(row["grad_norm"] > 0 for row in log)
