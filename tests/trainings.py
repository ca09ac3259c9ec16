"""Tiny trainings: settings, rewards and comparisons that several tests share."""

import os
import pickle
import subprocess
import sys
import time
from dataclasses import asdict, replace
from unittest import mock

import pytest
import torch

from lib import paths, records
from lib.data.video import Sampling
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.train import checkpoints, grpo, sft
from lib.train.care import CARESettings
from lib.train.ppo import PPOSettings
from lib.train.rewards import format_reward

# isort: split
from safetensors.torch import load_file

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
ADAPTER = {"steps": 4, "lora_rank": 4, "lora_alpha": 8, "save_every": 2}
SFT = sft.SFTSettings(
    **ADAPTER, batch_size=2, gradient_accumulation=1, lr=5e-3, seed=1, max_tokens=200
)
GRPO = grpo.GRPOSettings(
    **ADAPTER,
    prompts_per_step=2,
    group_size=4,
    lr=1e-2,
    kl_beta=0.0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    max_completion_tokens=8,
    seed=0,
)
PPO = PPOSettings(**{**asdict(GRPO), "loss_type": "dapo", "updates_per_batch": 2})
CARE = CARESettings(**asdict(GRPO))


def vowels(text, question):
    """A reward any policy can move: the share of vowels."""
    return sum(letter in "aeiou" for letter in text) / (len(text) + 1)


def letters(text, question):
    """Stands for accuracy, which a random policy never has: an e in the text."""
    return float("e" in text)


def nothing(text, question):
    return 0.0


def tagged(text, question):
    return format_reward(text)


REWARDS = {"vowels": vowels, "format": tagged}
METHODS = {
    "grpo": (GRPO, REWARDS),
    "ppo": (PPO, {"vowels": vowels}),
    "care": (CARE, {"accuracy": letters}),
}
SPLITS = [{"prompts_per_backward": 1}, {"pack_tokens": 300}]


def one_step_inputs(trainer):
    """The first batch, and what TRL hands to the loss for each backward pass of it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = (
        trainer.args.gradient_accumulation_steps
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._prepare_inputs(batch)
    return batch, trainer._buffered_inputs


def followed(model, inputs, completion):
    """What a processor gives for a prompt, with the tokens of a completion behind it,
    as an ordinary forward takes them."""
    ids = torch.cat([inputs["input_ids"], completion[None]], 1)
    kinds = encoding.mm_token_type_ids(ids, prefix.base_of(model).config)
    own = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, **own, "mm_token_type_ids": kinds}


def plain_inputs(trainer, question, completion):
    """The same of a trainer's question."""
    prompt = trainer.read_prompt(question)
    inputs = {"input_ids": prompt.ids[None], **prompt.pixels}
    return followed(trainer.model, inputs, completion)


def plain_logps(trainer, question, completion):
    """Log-probabilities by one ordinary forward over prompt, pictures, completion."""
    with torch.no_grad():
        logits = trainer.model(**plain_inputs(trainer, question, completion)).logits
    logps = logits[0, -len(completion) - 1 : -1].log_softmax(-1)
    return logps.gather(-1, completion[:, None])[:, 0]


def drawn_and_scored(model, prompts, count, settings):
    """Log-probabilities [completions, T] of rollouts without an end: as they are drawn,
    and as the update scores them."""
    choose, drawn = rollouts._at_chance, []

    def at_chance(scores, chances):
        tokens = choose(scores, chances)
        drawn.append(scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])
        return tokens

    with mock.patch.object(rollouts, "_at_chance", at_chance):
        groups = rollouts.draw(model, prompts, count, settings)
    scoring.add_scoring(model)
    completions = [[torch.tensor(row) for row in group] for group in groups]
    with torch.no_grad():
        scored, _ = scoring.completion_scores(model.train(), prompts, completions)
    return torch.stack(drawn, 1), torch.stack(scored)


def gradient(model):
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad])


def move_adapter(model, std=0.05):
    """From its start, where it is zero, to numbers that every call finds alike."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(weight, std=std)


def adapted(checkpoint, kind=None, **how):
    """A model with an adapter that changes what it says, in eval mode; `kind` are
    further fields of its LoraConfig."""
    torch.manual_seed(0)
    model = models.load_model(checkpoint, **how)
    config = replace(models.lora_config(4, 8), **(kind or {}))
    model = models.peft.get_peft_model(model, config).eval()
    move_adapter(model, 0.1)
    return model


def step_gradient(trainer):
    """Of one step, from an adapter and rollouts that every call finds alike."""
    move_adapter(trainer.model)
    torch.manual_seed(1)
    _, parts = one_step_inputs(trainer)
    for part in parts:
        trainer.compute_loss(trainer.model, part).backward()
    return gradient(trainer.model)


def log_of(run, label="grpo"):
    return records.read_jsonl(run / f"train_log_{label}.jsonl")


def rollouts_of(run, label="grpo"):
    return records.read_jsonl(run / grpo.rollout_file(label))


def weights_of(folder):
    """All tensors of a folder's weights as one."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


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
    logs = [without_seconds(log_of(run, label)) for run in (one, other)]
    assert logs[0] == logs[1]
    return logs[0]


def assert_same_training(two, one, name, start, within=1e-4, also=()):
    """Logs to 1e-4, and the change of the weights from `start` to `within` of its
    length; numbers that are `also` in a log to 1e-3."""
    rows, expected = log_of(two, name), log_of(one, name)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        # Adam forgets the scale of a gradient, so the weights alone would not show it.
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        for key in {*also} & set(other):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
    trained = weights_of(one / "adapters" / name)
    change = trained - start
    assert change.norm() > 0
    difference = weights_of(two / "adapters" / name) - trained
    assert difference.norm() <= within * change.norm()


# Kills

CHILD = "import pickle, sys; f, task = pickle.load(open(sys.argv[1], 'rb')); f(task)"


def kill_when(happened, train, task):
    """Train in a child process, which is killed as soon as something has happened."""
    file = task.run / "task.pickle"
    file.write_bytes(pickle.dumps((train, task)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", CHILD, str(file)]
    with subprocess.Popen(command, env=environment) as child:
        try:
            deadline = time.monotonic() + 600
            while not happened():
                assert child.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.001)
        finally:
            child.kill()
    assert not (task.run / "adapters").exists()


class Killed(Exception):
    pass


class Interrupting:
    """A reward that raises at its n-th call."""

    def __init__(self, reward, at):
        self.reward, self.left = reward, at

    def __call__(self, text, question):
        self.left -= 1
        if self.left == 0:
            raise Killed
        return self.reward(text, question)


def log_of_resumed(task, method, at):
    """The log of a training that died at a call of its first reward, went on, and ended
    as one that nothing disturbed; its adapter holds no more than an adapter's files."""
    name, reward = next(iter(task.rewards.items()))
    broken = {**task.rewards, name: Interrupting(reward, at)}
    with pytest.raises(Killed):
        grpo.train(replace(task, rewards=broken), method)
    assert list(task.run.glob(f"checkpoints/*/checkpoint-*/{checkpoints.MARKER}"))
    folder, whole = grpo.train(task, method), task.run / "whole"
    assert folder == task.run / "adapters" / method.label
    files = {models.ADAPTER, models.ADAPTER_WEIGHTS, f"{method.label}_settings.json"}
    assert {path.name for path in folder.iterdir()} == files
    grpo.train(replace(task, run=whole), method)
    return assert_same_run(whole, task.run, method.label)
