"""A training that cannot be going well ends with its reason, and publishes nothing."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from lib.model import models
from lib.run import launch
from lib.train import checkpoints, sft
from tests.trainings import SAMPLING, SFT, nothing

# isort: split
from safetensors.torch import load_file, save_file


def read_log(folder, name):
    """The rows of a training's log; NaN and Infinity are no JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    lines = (folder / f"train_log_{name}.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize("lr", [1e30, 1e39])  # the second is none in float32
@pytest.mark.parametrize("name", ["sft", "grpo", "ppo", "care"])
def test_divergence_is_an_error(train, tmp_path, name, lr):
    wanted = rf"^step [23]: .*NaN|nan.*diverged: give a lower lr \(now {lr:g}\)"
    with pytest.raises(FloatingPointError, match=wanted.replace("+", r"\+")):
        train(name, lr=lr)
    assert not (tmp_path / "adapters" / name).exists()
    rows = read_log(tmp_path, name)
    assert rows[0]["grad_norm"] is not None
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    bad = [row["step"] for row in rows if row["loss"] is None]
    assert bad in ([], [len(rows)])  # a policy of NaN may draw no rollouts for a loss
    marks = tmp_path.rglob(checkpoints.MARKER)
    steps = [checkpoints.step_of(mark.parent) for mark in marks]
    assert not steps or max(steps) <= len(rows) - len(bad)


def test_weights_that_are_nan_after_the_last_step_are_not_published(train, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 1: it left NaN .*lora_"):
        train("sft", lr=1e39, warmup_share=0.0, steps=1, save_every=1)
    assert not list(tmp_path.rglob(checkpoints.MARKER))
    assert not (tmp_path / "adapters" / "sft").exists()


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_training_without_gradients_is_an_error(train, tmp_path, name):
    with pytest.raises(FloatingPointError, match="step 1: every gradient is exactly 0"):
        train(name, lora_alpha=0)
    assert not (tmp_path / "adapters" / name).exists()


def test_dead_groups_may_have_no_gradients(train):
    assert train("grpo", {"nothing": nothing}, steps=2).is_dir()


def test_both_processes_stop_and_say_why(tiny_checkpoint, demonstrations, tmp_path):
    settings = replace(SFT, batch_size=1, lr=1e39)
    task = sft.Task(tiny_checkpoint, demonstrations, settings, SAMPLING, tmp_path)
    with pytest.raises(launch.ChildFailed, match=r"step 2: it left NaN .* lower lr"):
        launch.call(tmp_path, 2, "", sft.train_sft, task)
    assert [row["step"] for row in read_log(tmp_path, "sft")] == [1, 2]
    assert not (tmp_path / "adapters" / "sft").exists()


def spoil(folder, value, name):
    """Write a number into a tensor of a folder's weights; returns what was there."""
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    there = tensors[name].view(-1)[7].item()
    tensors[name].view(-1)[7] = value
    save_file(tensors, file, {"format": "pt"})
    return there


LOADING = [("float32", False), ("bfloat16", False), ("float32", True)]


@pytest.mark.parametrize("how", LOADING)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_base_with_one_number_that_is_none_is_refused(
    tiny_checkpoint, tmp_path, value, how
):
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    models.load_model(tmp_path / "base", *how)
    for name in ("model.layers.1.mlp.up_proj.weight", "visual.patch_embed.proj.weight"):
        original = spoil(tmp_path / "base", value, name)
        named = r"base: \S+_(emb|pro)\S+ holds NaN or inf"
        with pytest.raises(ValueError, match=named):
            models.load_model(tmp_path / "base", *how)
        spoil(tmp_path / "base", original, name)


def test_an_adapter_with_one_number_that_is_none_is_refused(
    tiny_checkpoint, train, tmp_path
):
    folder = train("sft", steps=1)
    models.load_trained(tiny_checkpoint, folder)
    name = min(load_file(folder / models.ADAPTER_WEIGHTS))
    spoil(folder, math.nan, name)
    (folder / sft.RECORD).unlink()  # by which the other bytes would be noticed first
    with pytest.raises(ValueError, match=rf"{name} holds NaN or infinity"):
        models.load_trained(tiny_checkpoint, folder)


def test_whole_numbers_and_none_at_all_are_sound():
    sound = [("a", torch.ones(3).byte()), ("b", torch.ones(0))]
    assert models.not_finite(sound) is None
