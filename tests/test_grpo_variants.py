"""The settings beside the paper's GRPO: each does what its equation says, no more."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from lib import records
from lib.model import scoring
from lib.train import checkpoints, grpo, reward_stages, rewards
from tests.trainings import (
    GRPO,
    Interrupting,
    Killed,
    assert_same_run,
    gradient,
    log_of,
    nothing,
    one_step_inputs,
    plain_logps,
    rollouts_of,
    vowels,
)

COMPLETIONS = [[20, 21, 22], [23, 24, 25, 26, 27], [30, 31], [32, 33, 34, 35]]
ADVANTAGES = [1.0, -0.5, 0.8, -2.0]
OLD = [-0.3, 0.4, -0.1, 0.25]  # old log-probability less the policy's, of each rollout
REFERENCE = [0.5, -0.2, 14.0, 0.1]  # the reference's less the policy's


def toy(trainer):
    """A batch of two groups of two, and each rollout's plain log-probabilities. Old and
    reference log-probabilities differ from them by OLD and REFERENCE, and more from
    token to token."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    questions = list(trainer.questions.values())[:2]
    ids = [torch.tensor(own) for own in COMPLETIONS]
    logps = [plain_logps(trainer, questions[i // 2], own) for i, own in enumerate(ids)]
    tilt = [0.1 * torch.arange(len(own)) for own in ids]
    old = [a + b - t for a, b, t in zip(logps, OLD, tilt, strict=True)]
    reference = [a + b + t for a, b, t in zip(logps, REFERENCE, tilt, strict=True)]
    prompt = torch.tensor([[1, 2]] * 4)
    flat = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": pad_sequence(ids, True),
        "completion_mask": pad_sequence([torch.ones_like(own) for own in ids], True),
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": torch.tensor(float(sum(map(len, ids)))),
        "old_per_token_logps": pad_sequence(old, True),
        "ref_per_token_logps": pad_sequence(reference, True),
    }
    prompts = [trainer.read_prompt(question) for question in questions]
    numbers = [[own.tolist() for own in each] for each in (logps, old, reference)]
    return {**grpo.fold(flat, 2), "prompts": prompts}, numbers


def token_losses(logps, old, reference, advantage, settings):
    """GRPO (arXiv 2402.03300, equations 3 and 4) for one rollout, token by token. GSPO
    (arXiv 2507.18071, equation 7) has one ratio, the mean of the logarithms."""
    ratios = [math.exp(a - b) for a, b in zip(logps, old, strict=True)]
    if settings.importance_sampling == "sequence":
        mean = sum(a - b for a, b in zip(logps, old, strict=True)) / len(logps)
        ratios = [math.exp(mean)] * len(logps)
    losses = []
    for ratio, own, other in zip(ratios, logps, reference, strict=True):
        high = 1 + (settings.epsilon_high or settings.epsilon)
        clipped = min(max(ratio, 1 - settings.epsilon), high)
        difference = other - own
        if settings.kl_clamp:
            difference = min(max(difference, -settings.kl_clamp), settings.kl_clamp)
        kl = math.exp(difference) - difference - 1
        policy = min(ratio * advantage, clipped * advantage)
        if settings.loss_type == "cispo":  # arXiv 2506.13585, equations 4 and 5
            policy = min(ratio, high) * advantage * own
        losses.append(-policy + settings.kl_beta * kl)
    return losses


def expected_loss(numbers, settings, masked=()):
    each = [
        token_losses(*own, settings)
        for i, own in enumerate(zip(*numbers, ADVANTAGES, strict=True))
        if i not in masked
    ]
    if settings.loss_type in ("dapo", "cispo"):  # arXiv 2503.14476, equation 12
        return sum(map(sum, each)) / sum(map(len, each))
    if settings.loss_type == "dr_grpo":  # arXiv 2503.20783, section 3.2
        return sum(map(sum, each)) / (4 * settings.max_completion_tokens)
    # What is masked stays in the denominator.
    return sum(sum(own) / len(own) for own in each) / 4


VARIANTS = {
    "grpo": {},
    "tight": {"epsilon": 0.05},
    "clip-higher": {"epsilon_high": 0.28},
    "gspo": {"importance_sampling": "sequence"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.28},
    "kl": {"kl_beta": 0.1},
    "kl-clamp": {"kl_beta": 0.1, "kl_clamp": 11.0},
    "kl-clamp-low": {"kl_beta": 0.1, "kl_clamp": 0.3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_of_a_toy_batch_is_that_of_the_equation(make_trainer, name):
    trainer = make_trainer(group_size=2, updates_per_batch=2, **VARIANTS[name])
    inputs, numbers = toy(trainer)
    loss = trainer.compute_loss(trainer.model, inputs).item()
    expected = expected_loss(numbers, trainer.settings)
    assert loss == pytest.approx(expected, rel=1e-4)
    if trainer.settings.kl_beta:  # what is logged is what the loss holds
        without = replace(trainer.settings, kl_beta=0.0)
        (logged,) = trainer._metrics["train"]["kl"]
        held = (expected - expected_loss(numbers, without)) / trainer.settings.kl_beta
        assert logged == pytest.approx(held, rel=1e-4)
    plain = replace(GRPO, kl_beta=0.1 if "kl" in name else 0.0)
    if name not in ("grpo", "kl"):
        assert expected != pytest.approx(expected_loss(numbers, plain), rel=1e-2)


@pytest.mark.parametrize(("bound", "moves"), [(0.0, True), (11.0, False)])
def test_beyond_its_bound_the_kl_has_no_gradient(make_trainer, bound, moves):
    trainer = make_trainer(group_size=2, kl_beta=0.1, kl_clamp=bound)
    inputs, _ = toy(trainer)
    inputs["advantages"] = torch.zeros(2, 2)
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] + 20
    trainer.compute_loss(trainer.model, inputs).backward()
    assert bool(gradient(trainer.model).norm() > 0) is moves


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_masked_rollout_has_no_part_in_the_loss(make_trainer, loss_type):
    trainer = make_trainer(group_size=2, mask_truncated=True, loss_type=loss_type)
    inputs, numbers = toy(trainer)
    inputs["completion_mask"][0, 1] = 0  # the longest, as a rollout that was cut off is
    inputs["num_items_in_batch"] -= len(COMPLETIONS[1])
    loss = trainer.compute_loss(trainer.model, inputs).item()
    expected = expected_loss(numbers, trainer.settings, masked=(1,))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_rollouts_that_were_cut_off_are_masked(make_trainer, tmp_path):
    trainer = make_trainer(mask_truncated=True, max_completion_tokens=60)
    _, (inputs,) = one_step_inputs(trainer)
    kept = inputs["completion_mask"].flatten(0, 1).any(1).tolist()
    assert sorted(kept) == sorted(not row["truncated"] for row in rollouts_of(tmp_path))
    trainer.compute_loss(trainer.model, inputs).backward()
    assert torch.isfinite(gradient(trainer.model)).all()


def test_on_the_second_update_they_do(make_trainer, tmp_path):
    ends = []
    for number, changes in enumerate([{}, {"epsilon": 1e-4}, VARIANTS["gspo"]]):
        run = tmp_path / str(number)
        trainer = make_trainer(run=run, steps=2, updates_per_batch=2, **changes)
        trainer.train()
        weights = [w.flatten() for w in trainer.model.parameters() if w.requires_grad]
        ends.append(torch.cat(weights).detach())
        assert {row["step"] for row in rollouts_of(run)} == {1}, "both are on one batch"
        log = log_of(run)
        assert log[0]["clipped_ratios"] == 0
        assert "reward" in log[0] and "reward" not in log[1]
    for end in ends[1:]:
        assert (end - ends[0]).norm() > 1e-6


def test_float32_logits_are_nearer_to_the_float32_model(make_trainer):
    def logps(**changes):
        trainer = make_trainer(**changes)
        prompts = [trainer.read_prompt(next(iter(trainer.questions.values())))]
        given = (trainer.model, prompts, [[torch.arange(20, 40)]])
        with torch.no_grad():
            return scoring.completion_scores(*given)[0][0]

    exact, rough = logps(), logps(dtype="bfloat16")
    finer = logps(dtype="bfloat16", fp32_logits=True)
    assert rough.dtype == finer.dtype == torch.float32
    assert not torch.equal(rough, finer)
    # bfloat16 logits of about 8 are 1/32 apart, and a log-probability inherits that.
    assert (finer - rough).abs().max() < 0.1
    assert (finer - exact).abs().mean() < 1.5 * (rough - exact).abs().mean()


def choosy(text, question):
    """Dead for half of the questions."""
    return 0.0 if question.id[-1] in "012" else vowels(text, question)


def replaced_of(run):
    return records.read_jsonl(run / "replaced_rollouts.jsonl")


def test_dead_groups_are_replaced_by_groups_of_further_questions(
    make_trainer, tmp_path
):
    """Half of the questions are dead; further draws are likely to find others."""
    trainer = make_trainer(
        rewards={"choosy": choosy}, extra_draws=6, prompts_per_step=4
    )
    _, (inputs,) = one_step_inputs(trainer)
    rows, replaced = rollouts_of(tmp_path), replaced_of(tmp_path)
    assert {row["question"][-1] for row in replaced} <= set("012")
    assert {row["draw"] for row in replaced} >= {0}
    assert trainer._metrics["train"]["replaced_groups"] == [len(replaced) / 4]
    assert len(rows) == 16
    questions = [trainer.questions[row["question"]] for row in rows]
    for start in range(0, 16, 4):
        assert len(set(questions[start : start + 4])) == 1
    for row, question in zip(rows, questions, strict=True):
        assert row["rewards"]["choosy"] == pytest.approx(choosy(row["text"], question))
    # The update is on the new groups, with their own pictures.
    assert len({own.id for own in questions} & {f"training/{i}" for i in range(3)}) < 2
    known = {tuple(trainer.read_prompt(own).ids.tolist()) for own in questions}
    assert {tuple(prompt.ids.tolist()) for prompt in inputs["prompts"]} == known
    assert torch.count_nonzero(inputs["advantages"].sum(1).abs() > 1e-3) == 0


def test_the_draws_are_bounded_and_a_dead_group_then_stays(make_trainer, tmp_path):
    trainer = make_trainer(rewards={"nothing": nothing}, extra_draws=2)
    _, (inputs,) = one_step_inputs(trainer)
    replaced = replaced_of(tmp_path)
    assert [row["draw"] for row in replaced] == [0] * 8 + [1] * 8
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]
    assert len({row["question"] for row in replaced}) >= 4
    assert not inputs["advantages"].any()


def test_without_dead_groups_dynamic_sampling_changes_nothing(make_trainer, tmp_path):
    found = []
    for draws in (0, 5):
        run = tmp_path / str(draws)
        changes = {"extra_draws": draws, "temperature": 2.0}
        make_trainer(rewards={"vowels": vowels}, run=run, **changes).train()
        found.append((run / "rollouts.jsonl").read_bytes())
        assert not (run / "replaced_rollouts.jsonl").exists()
    assert found[0] == found[1]


def test_an_interrupted_run_of_all_variants_ends_as_an_undisturbed_one(
    make_task, tmp_path, monkeypatch
):
    """Two updates a batch, draws, a bounded KL, a change of stage after the kill."""
    changes = {"updates_per_batch": 2, "extra_draws": 2, "kl_beta": 0.1}
    changes |= {"kl_clamp": 11.0, "steps": 8, "save_every": 4, "temperature": 2.0}
    line = "format until 3 steps | accuracy + 0.5 consistency"
    plan = reward_stages.read_rewards(line)
    monkeypatch.setitem(rewards.REWARDS, "format", vowels)

    def train(folder, dies_at=10**9):
        counted = Interrupting(choosy, dies_at)
        monkeypatch.setitem(rewards.REWARDS, "accuracy", counted)
        grpo.train(make_task(plan, replace(GRPO, **changes), tmp_path / folder))
        return dies_at - counted.left

    calls = train("one")
    with pytest.raises(Killed):
        train("broken", calls - 5)
    work = tmp_path / "broken/checkpoints/grpo"
    assert (work / "checkpoint-4" / checkpoints.MARKER).exists()
    train("broken")
    log = assert_same_run(tmp_path / "one", tmp_path / "broken", "grpo")
    stages = [row["reward_stage"] for row in log if "reward_stage" in row]
    assert stages == [1, 1, 1, 2]
    weights = {
        1: {"reward_format": 1},
        2: {"reward_accuracy": 1, "reward_consistency": 0.5},
    }
    for row in log[::2]:
        own = weights[row["reward_stage"]].items()
        total = sum(weight * row[name] for name, weight in own)
        assert row["reward"] == pytest.approx(total, abs=1e-6)
