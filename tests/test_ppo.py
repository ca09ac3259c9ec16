"""PPO: advantages by generalized estimation, clipped losses, a critic that learns."""

from dataclasses import replace
from functools import partial

import nbformat
import pytest
import torch

from lib.model import models, prefix, scoring
from lib.run.params import NOTEBOOKS
from lib.train import grpo, ppo
from lib.train.ppo import generalized_advantages, value_losses
from tests.test_grpo_variants import COMPLETIONS, expected_loss, toy
from tests.trainings import (
    PPO,
    SPLITS,
    log_of,
    log_of_resumed,
    move_adapter,
    one_step_inputs,
    plain_inputs,
    rollouts_of,
    step_gradient,
    vowels,
)

REWARDS = {"vowels": vowels}


@pytest.fixture
def build(make_trainer):
    return partial(make_trainer, "ppo")


def critic(trainer):
    return getattr(prefix.base_of(trainer.model), ppo.HEAD)


def slow_advantage(rewards, values, t, discount, gae_lambda):
    """Equation 16 of arXiv 1506.02438, as the sum that it is, for one row."""
    values = [*values, 0.0]
    return sum(
        (discount * gae_lambda) ** (k - t)
        * (rewards[k] + discount * values[k + 1] - values[k])
        for k in range(t, len(rewards))
    )


@pytest.mark.parametrize("how", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_those_of_the_slow_sum(how):
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 4, 7]
    rewards, values = (torch.randn(3, 7, generator=generator).double() for _ in "12")
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    advantages, returns = generalized_advantages(rewards * mask, values, mask, *how)
    for row, length in enumerate(lengths):
        own = rewards[row, :length].tolist(), values[row, :length].tolist()
        expected = [slow_advantage(*own, t, *how) for t in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(expected)
        sums = [a + v for a, v in zip(expected, own[1], strict=True)]
        assert returns[row, :length].tolist() == pytest.approx(sums)
        assert not advantages[row, length:].any() and not returns[row, length:].any()


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "moves"),
    [
        (0.5, 0.5, 1.0, 0.125, True),
        (0.6, 0.5, 1.0, 0.08, True),
        # beyond old + 0.2 a better value is worth no more, and has no gradient
        (0.9, 0.5, 1.0, 0.045, False),
        # a worse value than the clipped one is what counts, and is pulled back
        (0.1, 0.5, 1.0, 0.405, True),
    ],
)
def test_the_clipped_value_loss(value, old, target, loss, moves):
    value = torch.tensor(value, requires_grad=True)
    found = value_losses(value, torch.tensor(old), torch.tensor(target), 0.2)
    assert found.item() == pytest.approx(loss)
    found.backward()
    assert bool(value.grad != 0) is moves
    free = value_losses(value.detach(), torch.tensor(old), torch.tensor(target), 0.0)
    assert free.item() == pytest.approx(0.5 * (value.item() - target) ** 2)


def perturb(trainer):
    """A critic and an adapter that are not at their start."""
    torch.manual_seed(3)
    torch.nn.init.normal_(critic(trainer).weight, std=0.1)
    move_adapter(trainer.model)


def plain_values(trainer, question, completion):
    """V before every token, by one ordinary forward over prompt and completion."""
    inner = prefix.base_of(trainer.model).model
    with torch.no_grad():
        hidden = inner(**plain_inputs(trainer, question, completion)).last_hidden_state
        return critic(trainer)(hidden[0, -len(completion) - 1 : -1])[:, 0]


def test_values_are_float32_under_autocast(build):
    trainer = build()
    perturb(trainer)
    prompts = [trainer.read_prompt(next(iter(trainer.questions.values())))]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        given = (trainer.model, prompts, [[torch.arange(20, 60)]])
        (values,) = scoring.completion_scores(*given, 4096)[2]
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_03_compares_packed_and_repeated_beside_a_critic(build):
    """`rl: ppo` alone: its scores come with values."""
    cells = nbformat.read(NOTEBOOKS / "03_grpo.ipynb", as_version=4).cells
    (cell,) = [c for c in cells if "scoring.completion_scores(" in c.source]
    trainer = build()
    prompt = trainer.read_prompt(next(iter(trainer.questions.values())))
    known = {"policy": trainer.model, "prompt": prompt, "seen": [prompt]}
    known |= {"group": [[20, 21], [22]], "dtype": "float32", "torch": torch}
    exec(cell.source, known | {"prefix": prefix, "scoring": scoring})


def test_the_loss_of_a_toy_batch_is_that_of_the_equations(build):
    trainer = build(group_size=2, value_weight=0.3)
    perturb(trainer)
    inputs, numbers = toy(trainer)
    width = max(map(len, COMPLETIONS))
    returns = torch.linspace(-1, 1, 4 * width).view(2, 2, width)
    inputs["returns"], inputs["old_values"] = returns, 0.5 * returns
    loss = trainer.compute_loss(trainer.model, inputs).item()
    questions = list(trainer.questions.values())
    errors = []
    for i, completion in enumerate(COMPLETIONS):
        tokens = torch.tensor(completion)
        values = plain_values(trainer, questions[i // 2], tokens).tolist()
        targets = returns.view(4, width)[i].tolist()
        for value, target in zip(values, targets, strict=False):
            old = 0.5 * target
            clipped = min(max(value, old - 0.2), old + 0.2)
            errors.append(0.5 * max((value - target) ** 2, (clipped - target) ** 2))
    error = sum(errors) / len(errors)
    expected = expected_loss(numbers, trainer.settings) + 0.3 * error
    assert loss == pytest.approx(expected, rel=1e-4)
    assert error > 0.05


def test_the_value_loss_trains_head_and_adapter(build):
    trainer = build(group_size=2)
    perturb(trainer)
    inputs, _ = toy(trainer)
    inputs["advantages"] = torch.zeros(2, 2)
    width = inputs["completion_ids"].shape[-1]
    inputs["returns"] = torch.ones(2, 2, width)
    inputs["old_values"] = torch.zeros(2, 2, width)
    trainer.compute_loss(trainer.model, inputs).backward()
    assert critic(trainer).weight.grad.norm() > 0
    for name, weight in trainer.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            assert weight.grad.norm() > 0, name
        elif ppo.HEAD not in name:
            assert weight.grad is None, name


@pytest.mark.parametrize(
    "changes", [{}, {"updates_per_batch": 1}, {"updates_per_batch": 1, "kl_beta": 0.1}]
)
def test_a_batch_has_whitened_advantages_and_values_of_the_drawing_policy(
    build, tmp_path, changes
):
    trainer = build(**changes)
    perturb(trainer)
    _, (inputs,) = one_step_inputs(trainer)
    flat = grpo.unfold(inputs)
    mask = flat["completion_mask"].bool()
    kept = flat["advantages"][mask]
    assert kept.mean().abs() < 1e-5
    assert kept.std(unbiased=False) == pytest.approx(1, abs=1e-3)
    assert not flat["advantages"][~mask].any()
    by_prompt = {
        tuple(trainer.read_prompt(question).ids.tolist()): question
        for question in trainer.questions.values()
    }
    rewards = []
    for i, own in enumerate(mask):
        question = by_prompt[tuple(inputs["prompts"][i // 4].ids.tolist())]
        completion = flat["completion_ids"][i][own]
        expected = plain_values(trainer, question, completion)
        found = flat["old_values"][i][own]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # With discount 1 the last return is the reward itself.
        rewards.append(round(flat["returns"][i][own][-1].item(), 4))
    rows = rollouts_of(tmp_path, "ppo")
    assert sorted(rewards) == sorted(round(row["rewards"]["vowels"], 4) for row in rows)
    firsts = flat["old_values"][:, 0].tolist()
    assert sorted(row["value"] for row in rows) == pytest.approx(sorted(firsts))


def test_splitting_a_step_leaves_its_gradient(build):
    found = []
    for own in ({}, *SPLITS):
        trainer = build(prompts_per_step=3, steps=2, **own)
        perturb(trainer)
        found.append(step_gradient(trainer))
    for other in found[1:]:
        assert (other - found[0]).norm() <= 1e-5 * found[0].norm()


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    make_task, tmp_path, tiny_checkpoint
):
    settings = replace(PPO, steps=8, save_every=4, kl_beta=0.05)
    task = make_task(REWARDS, settings, tmp_path)
    log = log_of_resumed(task, ppo.VideoPPOTrainer, 3 * 8 + 3)
    assert [row["step"] for row in log] == list(range(1, 9))
    assert all("value_loss" in row and "clipped_ratios" in row for row in log)
    assert all("value" in row for row in log[::2])
    # 04_eval does no more.
    models.load_trained(tiny_checkpoint, tmp_path / "adapters" / "ppo")


def test_it_improves_a_reward_with_groups_of_one(make_task, tmp_path):
    """The share of vowels, at a temperature at which a small step is felt."""
    changes = {"steps": 24, "save_every": 24, "prompts_per_step": 16, "group_size": 1}
    settings = replace(PPO, max_completion_tokens=6, temperature=0.25, **changes)
    grpo.train(make_task(REWARDS, settings, tmp_path), ppo.VideoPPOTrainer)
    log = log_of(tmp_path, "ppo")
    rewards = [row["reward"] for row in log if "reward" in row]
    assert len(rewards) == 12
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3 * 0.05
    losses = [row["value_loss"] for row in log]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
