"""The settings beside the paper's GRPO: each does what its equation says, no more."""

import math
from dataclasses import replace

import pytest
import torch

from lib import records
from lib.model import scoring
from lib.train import checkpoints, grpo, reward_stages, rewards
from tests.test_grpo import (
    REWARDS,
    SETTINGS,
    assert_same_run,
    one_step_inputs,
    plain_logps,
    vowels,
)

COMPLETIONS = [[20, 21, 22], [23, 24, 25, 26, 27], [30, 31], [32, 33, 34, 35]]
ADVANTAGES = [1.0, -0.5, 0.8, -2.0]
OLD = [-0.3, 0.4, -0.1, 0.25]  # old log-probability less the policy's, of each rollout
REFERENCE = [0.5, -0.2, 14.0, 0.1]  # the reference's less the policy's


@pytest.fixture
def build(make_task, tmp_path):
    def make(rewards=REWARDS, folder=tmp_path, **changes):
        task = make_task(rewards, replace(SETTINGS, **changes), folder)
        return grpo.VideoGRPOTrainer(task)

    return make


def toy(trainer, completions=COMPLETIONS):
    """A batch of two groups of two, and each rollout's plain log-probabilities.

    Old and reference log-probabilities differ from them by OLD and REFERENCE, and more
    from token to token.
    """
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    questions = list(trainer.questions.values())[:2]
    ids = [torch.tensor(own) for own in completions]
    logps = [plain_logps(trainer, questions[i // 2], own) for i, own in enumerate(ids)]
    prompts = [trainer.read_prompt(question) for question in questions]
    width = max(map(len, ids))

    def row(values):
        return torch.nn.functional.pad(values, (0, width - len(values)))

    tilt = [0.1 * torch.arange(len(own)) for own in ids]
    moved = {
        "old_per_token_logps": [
            a + b - t for a, b, t in zip(logps, OLD, tilt, strict=True)
        ],
        "ref_per_token_logps": [
            a + b + t for a, b, t in zip(logps, REFERENCE, tilt, strict=True)
        ],
    }
    prompt = torch.tensor([[1, 2]] * 4)
    flat = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.stack([row(own) for own in ids]),
        "completion_mask": torch.stack([row(torch.ones_like(own)) for own in ids]),
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": torch.tensor(float(sum(map(len, ids)))),
        **{name: torch.stack(list(map(row, own))) for name, own in moved.items()},
    }
    inputs = {**grpo.fold(flat, 2), "prompts": prompts}
    lists = [[own.tolist() for own in moved[name]] for name in moved]
    return inputs, ([own.tolist() for own in logps], *lists)


def token_losses(logps, old, reference, advantage, settings):
    """GRPO (arXiv 2402.03300, equations 3 and 4) for one rollout, token by token.

    GSPO (arXiv 2507.18071, equation 7) has one ratio, the mean of the logarithms.
    """
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
        losses.append(-policy + settings.kl_beta * kl)
    return losses


def expected_loss(logps, old, reference, settings):
    each = [
        token_losses(*own, settings)
        for own in zip(logps, old, reference, ADVANTAGES, strict=True)
    ]
    if settings.loss_type == "dapo":  # arXiv 2503.14476, equation 12
        return sum(map(sum, each)) / sum(map(len, each))
    if settings.loss_type == "dr_grpo":  # arXiv 2503.20783, section 3.2
        return sum(map(sum, each)) / (4 * settings.max_completion_tokens)
    return sum(sum(own) / len(own) for own in each) / 4


VARIANTS = {
    "grpo": {},
    "tight": {"epsilon": 0.05},
    "clip-higher": {"epsilon_high": 0.28},
    "gspo": {"importance_sampling": "sequence"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "kl": {"kl_beta": 0.1},
    "kl-clamp": {"kl_beta": 0.1, "kl_clamp": 11.0},
    "kl-clamp-low": {"kl_beta": 0.1, "kl_clamp": 0.3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_of_a_toy_batch_is_that_of_the_equation(build, name):
    trainer = build(group_size=2, updates_per_batch=2, **VARIANTS[name])
    inputs, numbers = toy(trainer)
    loss = trainer.compute_loss(trainer.model, inputs).item()
    expected = expected_loss(*numbers, trainer.settings)
    assert loss == pytest.approx(expected, rel=1e-4)
    if trainer.settings.kl_beta:  # what is logged is what the loss holds
        without = replace(trainer.settings, kl_beta=0.0)
        (logged,) = trainer._metrics["train"]["kl"]
        held = (expected - expected_loss(*numbers, without)) / trainer.settings.kl_beta
        assert logged == pytest.approx(held, rel=1e-4)
    plain = replace(SETTINGS, kl_beta=0.1 if "kl" in name else 0.0)
    if name not in ("grpo", "kl"):
        assert expected != pytest.approx(expected_loss(*numbers, plain), rel=1e-2)


def gradient(trainer):
    grads = [w.grad.flatten() for w in trainer.model.parameters() if w.requires_grad]
    return torch.cat(grads)


@pytest.mark.parametrize(("bound", "moves"), [(0.0, True), (11.0, False)])
def test_beyond_its_bound_the_kl_has_no_gradient(build, bound, moves):
    trainer = build(group_size=2, kl_beta=0.1, kl_clamp=bound)
    inputs, _ = toy(trainer)
    inputs["advantages"] = torch.zeros(2, 2)
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] + 20
    trainer.compute_loss(trainer.model, inputs).backward()
    assert bool(gradient(trainer).norm() > 0) is moves


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_masked_rollout_has_no_part_in_the_loss(build, loss_type):
    trainer = build(group_size=2, mask_truncated=True, loss_type=loss_type)
    inputs, numbers = toy(trainer)
    inputs["completion_mask"][0, 1] = 0  # the longest, as a rollout that was cut off is
    inputs["num_items_in_batch"] -= len(COMPLETIONS[1])
    loss = trainer.compute_loss(trainer.model, inputs).item()
    each = [
        token_losses(*own, trainer.settings)
        for own in zip(*numbers, ADVANTAGES, strict=True)
    ]
    del each[1]
    if loss_type == "dapo":
        expected = sum(map(sum, each)) / sum(map(len, each))
    else:  # it stays in the denominator
        expected = sum(sum(own) / len(own) for own in each) / 4
    assert loss == pytest.approx(expected, rel=1e-4)


def test_rollouts_that_were_cut_off_are_masked(build, tmp_path):
    """Eight tokens are few for a random policy: most rollouts are cut off."""
    trainer = build(mask_truncated=True, max_completion_tokens=60)
    _, (inputs,) = one_step_inputs(trainer)
    rows = records.read_jsonl(tmp_path / "rollouts.jsonl")
    kept = inputs["completion_mask"].flatten(0, 1).any(1).tolist()
    assert sorted(kept) == sorted(not row["truncated"] for row in rows)
    trainer.compute_loss(trainer.model, inputs).backward()
    assert torch.isfinite(gradient(trainer)).all()


SAME_ON_POLICY = [
    {"epsilon": 0.001},
    {"epsilon_high": 5.0},
    {"importance_sampling": "sequence"},
    {"kl_beta": 0.1, "kl_clamp": 11.0},
]


def test_on_one_update_a_batch_ratios_and_clipping_change_nothing(build, tmp_path):
    """The policy is the one that drew: its ratio is 1 and only its gradient counts."""

    def found(**changes):
        trainer = build(**changes)
        _, (inputs,) = one_step_inputs(trainer)
        trainer.compute_loss(trainer.model, inputs).backward()
        return gradient(trainer)

    plain, with_kl = found(), found(kl_beta=0.1)
    assert plain.norm() > 0
    for changes in SAME_ON_POLICY:
        expected = with_kl if "kl_beta" in changes else plain
        difference = found(**changes) - expected
        assert difference.norm() <= 1e-5 * expected.norm()


def test_on_the_second_update_they_do(build, tmp_path):
    ends = []
    second = [{}, {"epsilon": 1e-4}, {"importance_sampling": "sequence"}]
    for number, changes in enumerate(second):
        folder = tmp_path / str(number)
        trainer = build(folder=folder, steps=2, updates_per_batch=2, **changes)
        trainer.train()
        weights = [w.flatten() for w in trainer.model.parameters() if w.requires_grad]
        ends.append(torch.cat(weights).detach())
        rows = records.read_jsonl(folder / "rollouts.jsonl")
        assert {row["step"] for row in rows} == {1}, "both updates are on one batch"
        log = records.read_jsonl(folder / "train_log_grpo.jsonl")
        assert log[0]["clipped_ratios"] == 0
        assert "reward" in log[0] and "reward" not in log[1]
    for end in ends[1:]:
        assert (end - ends[0]).norm() > 1e-6


def test_float32_logits_are_nearer_to_the_float32_model(build, tiny_checkpoint):
    completion = [torch.arange(20, 40)]

    def logps(**changes):
        trainer = build(**changes)
        prompts = [trainer.read_prompt(next(iter(trainer.questions.values())))]
        given = (trainer.model, prompts, [completion])
        with torch.no_grad():
            return scoring.completion_scores(*given)[0][0]

    exact = logps()
    rough = logps(dtype="bfloat16")
    finer = logps(dtype="bfloat16", fp32_logits=True)
    assert rough.dtype == finer.dtype == torch.float32
    assert not torch.equal(rough, finer)
    # bfloat16 logits of about 8 are 1/32 apart, and a log-probability inherits that.
    assert (finer - rough).abs().max() < 0.1
    assert (finer - exact).abs().mean() < 1.5 * (rough - exact).abs().mean()


@pytest.mark.parametrize("field", ["steps", "save_every"])
def test_a_checkpoint_between_two_updates_of_a_batch_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} = 5 is no multiple of"):
        replace(SETTINGS, **{"steps": 4, "updates_per_batch": 2, field: 5})


@pytest.mark.parametrize(
    "changes",
    [
        *({"updates_per_batch": 0}, {"extra_draws": -1}, {"kl_clamp": -11.0}),
        *({"steps": -3}, {"save_every": 0}, {"lora_rank": -1}, {"kl_beta": math.nan}),
    ],
)
def test_settings_out_of_bounds_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} = .*: at least"):
        replace(SETTINGS, **changes)


# Dynamic sampling


def choosy(text, question):
    """Dead for half of the questions."""
    return 0.0 if question.id[-1] in "012" else vowels(text, question)


def test_dead_groups_are_replaced_by_groups_of_further_questions(build, tmp_path):
    """Half of the questions are dead; three further draws are likely to find others."""
    trainer = build({"choosy": choosy}, extra_draws=6, prompts_per_step=4)
    _, (inputs,) = one_step_inputs(trainer)
    rows = records.read_jsonl(tmp_path / "rollouts.jsonl")
    replaced = records.read_jsonl(tmp_path / "replaced_rollouts.jsonl")
    assert {row["question"][-1] for row in replaced} <= set("012")
    assert {row["draw"] for row in replaced} >= {0}
    assert trainer._metrics["train"]["replaced_groups"] == [len(replaced) / 4]
    assert len(rows) == 16
    for start in range(0, 16, 4):
        group = rows[start : start + 4]
        (name,) = {row["question"] for row in group}
        totals = [row["rewards"]["choosy"] for row in group]
        own = [choosy(row["text"], trainer.questions[name]) for row in group]
        assert totals == pytest.approx(own)
    # The update is on the new groups, with their own pictures.
    dead = {row["question"] for row in rows} & {f"training/{i}" for i in range(3)}
    assert len(dead) < 2
    known = {
        tuple(trainer.read_prompt(trainer.questions[row["question"]]).ids.tolist())
        for row in rows
    }
    assert {tuple(prompt.ids.tolist()) for prompt in inputs["prompts"]} == known
    assert torch.count_nonzero(inputs["advantages"].sum(1).abs() > 1e-3) == 0


def test_the_draws_are_bounded_and_a_dead_group_then_stays(build, tmp_path):
    trainer = build({"nothing": lambda text, question: 0.0}, extra_draws=2)
    _, (inputs,) = one_step_inputs(trainer)
    replaced = records.read_jsonl(tmp_path / "replaced_rollouts.jsonl")
    assert [row["draw"] for row in replaced] == [0] * 8 + [1] * 8
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]
    assert len({row["question"] for row in replaced}) >= 4
    assert not inputs["advantages"].any()


def test_without_dead_groups_dynamic_sampling_changes_nothing(build, tmp_path):
    found = []
    for draws in (0, 5):
        folder = tmp_path / str(draws)
        build({"vowels": vowels}, folder, extra_draws=draws, temperature=2.0).train()
        found.append((folder / "rollouts.jsonl").read_bytes())
        assert not (folder / "replaced_rollouts.jsonl").exists()
    assert found[0] == found[1]


# Whole runs


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


def interrupted_and_resumed(task, method, at):
    """Train a task that dies at a call of its first reward, and then to its end."""
    name, reward = next(iter(task.rewards.items()))
    broken = {**task.rewards, name: Interrupting(reward, at)}
    with pytest.raises(Killed):
        grpo.train(replace(task, rewards=broken), method)
    assert list(task.run.glob(f"checkpoints/*/checkpoint-*/{checkpoints.MARKER}"))
    grpo.train(task, method)


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
        settings = replace(SETTINGS, **changes)
        grpo.train(make_task(plan, settings, tmp_path / folder))
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
    for row in log[::2]:
        share = {1: (0, 1, 0), 2: (1, 0, 0.5)}[int(row["reward_stage"])]
        parts = [
            row[f"reward_{name}"] for name in ("accuracy", "format", "consistency")
        ]
        total = sum(a * b for a, b in zip(share, parts, strict=True))
        assert row["reward"] == pytest.approx(total, abs=1e-6)
