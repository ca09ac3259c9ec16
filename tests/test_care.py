"""GRPO-CARE: the bonus of Algorithm 1, and a reference that really moves."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from lib import paths
from lib.model import models, prefix
from lib.train import care
from lib.train.care import answer_likelihood, answer_span, consistency_bonus
from tests.trainings import (
    CARE,
    letters,
    log_of_resumed,
    one_step_inputs,
    plain_logps,
    rollouts_of,
)
from tests.two_processes import FixedCARE

ANSWERS = [
    "<think>stir</think><answer>B</answer>",
    "<think>no</think> B",
    "<think>cut the onion</think><answer> B. cut </answer>",
    "<answer>  </answer>",
]
ANSWERED = [True, False, True, False]


@pytest.fixture
def build(make_trainer):
    return partial(make_trainer, "care")


@pytest.mark.parametrize(
    ("accuracies", "likelihoods", "changes", "bonuses"),
    [
        # the docstring's example: mean 0.733 of those that count
        ((1, 1, 0, 1), (0.9, 0.5, 0.99, 0.8), {}, (0.5, 0, 0, 0.5)),
        # both are cut to 0.95, so neither is below the other
        ((1, 1), (0.951, 0.999), {}, (0.5, 0.5)),
        ((1, 1), (0.951, 0.999), {"most_likelihood": 1.0}, (0, 0.5)),
        # 0.795 is below the mean 0.8 by less than the margin
        ((1, 1), (0.795, 0.805), {}, (0.5, 0.5)),
        ((1, 1), (0.795, 0.805), {"margin": 0.0}, (0, 0.5)),
        # nobody is right: nobody counts
        ((0, 0), (0.9, 0.8), {}, (0, 0)),
        # partial credit: mean 0.5, and 0.05 everywhere is below the least accuracy
        ((0.4, 0.6), (0.9, 0.1), {}, (0, 0.3)),
        ((0.05, 0.05), (0.9, 0.9), {}, (0, 0)),
        # without an answer the likelihood is 0, and it stays in the group's mean
        ((1, 1, 1), (0.6, 0.6, 0.0), {}, (0.5, 0.5, 0)),
        ((1, 1, 0), (0.9, 0.5, 0.7), {"bonus": "dense"}, (0.45, 0.25, 0)),
        ((1, 0), (0.99, 0.9), {"bonus": "dense"}, (0.475, 0)),
        ((1, 1), (0.9, 0.5), {"bonus_weight": 2.0}, (2.0, 0)),
        # of which a mean in float64 is 0.7000000000000001
        ((0.7,) * 6, (0.9,) * 6, {}, (0.35,) * 6),
        # all right and certain, as in the released code: a mean in float64 would round
        # above 0.95
        *(((1,) * n, (0.97,) * n, {"margin": 0.0}, (0.5,) * n) for n in range(1, 9)),
        ((1,) * 6 + (0, 0), (0.97,) * 8, {"margin": 0.0}, (0.5,) * 6 + (0, 0)),
    ],
)
def test_the_bonus(accuracies, likelihoods, changes, bonuses):
    settings = replace(CARE, **changes)
    found = consistency_bonus(accuracies, likelihoods, settings)
    assert found == pytest.approx(bonuses)


def test_the_two_means_of_an_answers_tokens():
    logps = torch.tensor([0.5, 0.8, 0.2]).log()
    for mean, expected in {"arithmetic": 0.5, "geometric": 0.4}.items():
        found = answer_likelihood(logps, (1, 3), replace(CARE, answer_mean=mean))
        assert found == pytest.approx(expected)
    assert answer_likelihood(logps, None, CARE) == 0.0


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        (["<think>", "x", "</think>", "<answer", ">", "B", "</", "answer>"], ["B"]),
        (["<think>x</think><", "answer", ">B", "</answer>"], [">B"]),
        (
            ["<answer>", " ", "\n", "B", ".", " cut", " ", "</answer>"],
            ["B", ".", " cut"],
        ),
        (["<answer>", "A", "</answer>", "<answer>", "B", "</answer>"], ["A"]),
        (["<answer>B</answer>"], ["<answer>B</answer>"]),
        (["", "<answer>", "", "B", "", "</answer>", ""], ["B"]),
        (["<answer>", "</answer>"], None),
        (["<answer>", "  ", "</answer>"], None),
        (["<answer>", "B"], None),
        (["B"], None),
    ],
)
def test_the_tokens_of_an_answer(pieces, answer):
    span = answer_span(range(len(pieces)), lambda own: "".join(pieces[i] for i in own))
    # Pieces without text, as of special tokens, may lie within the span's ends.
    assert (span and [p for p in pieces[slice(*span)] if p]) == answer


def test_the_tokens_of_an_answer_of_several_bytes(processor):
    decode = processor.tokenizer.decode
    text = "<think>é 寿司</think><answer>寿é司</answer>"
    tokens = processor.tokenizer(text)["input_ids"]
    start, end = answer_span(tokens, decode)
    assert decode(tokens[start:end]).strip(">") == "寿é司"
    assert "寿" not in decode(tokens[end:])


def test_the_answer_of_miniplan_is_the_token_that_holds_the_letter():
    tokenizer = models.load_processor(paths.ROOT / "lib/mini/base").tokenizer
    text = "<think>Done is wash tomato.</think><answer>B</answer>"
    tokens = tokenizer(text)["input_ids"]
    start, end = answer_span(tokens, tokenizer.decode)
    assert tokenizer.decode(tokens[start:end]) == ">B"


def test_the_reference_moves_by_its_share_of_the_difference_in_bfloat16_too():
    """0.005 of a small difference is nothing in bfloat16, where the released code's
    average stands still; in float32 it adds up."""
    layer = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    torch.nn.init.constant_(layer.weight, 1.0)
    trainer = SimpleNamespace(model=layer, model_wrapped=layer)
    reference = care.ReferenceWeights(trainer, decay=0.995, every=1)
    average = reference.average["weight"]
    torch.nn.init.constant_(layer.weight, 1.5)
    expected, state = 1.0, SimpleNamespace(global_step=1)
    for _ in range(20):
        reference.on_step_end(None, state, None)
        expected = 0.995 * expected + 0.005 * 1.5
        assert average.dtype == torch.float32
        assert average.flatten().tolist() == pytest.approx([expected] * 6, abs=1e-6)
    assert expected > 1.04


def copied(tensors):
    return {name: own.detach().clone() for name, own in tensors.items()}


@pytest.mark.parametrize(("every", "moves"), [(2, 2), (3, 1), (10, 0)])
def test_training_moves_the_reference_every_so_many_steps(build, every, moves):
    trainer = build(steps=4, reference_every=every, reference_decay=0.9)
    reference = trainer.reference
    start, seen = copied(reference.average), []

    class Watch(care.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(copied(reference.policy()))

    trainer.add_callback(Watch())
    trainer.train()
    expected = start
    for policy in seen[every - 1 :: every]:
        expected = {n: 0.9 * own + 0.1 * policy[n] for n, own in expected.items()}
    assert len(seen) == 4 and len(seen[every - 1 :: every]) == moves
    for name, own in reference.average.items():
        torch.testing.assert_close(own, expected[name], rtol=1e-6, atol=1e-7)
    changes = [(own - start[n]).abs().max() for n, own in reference.average.items()]
    assert bool(max(changes) > 1e-4) is (moves > 0)


def completions_of(trainer):
    """Token ids of ANSWERS, one group of four."""
    return [trainer._tokenizer(text)["input_ids"] for text in ANSWERS]


def likelihoods_of(trainer):
    """What the reference says of ANSWERS to the first question."""
    prompts = [trainer.read_prompt(next(iter(trainer.questions.values())))]
    (found,) = trainer.reference_likelihoods(prompts, [completions_of(trainer)])
    return found


def spread(weights, seed):
    torch.manual_seed(seed)
    for weight in weights.values():
        torch.nn.init.normal_(weight, std=0.05)


def test_likelihoods_are_those_of_the_reference_and_leave_the_policy_alone(build):
    trainer = build()
    question = next(iter(trainer.questions.values()))
    reference = trainer.reference
    spread(reference.policy(), 1)
    spread(reference.average, 2)
    before, rows = copied(reference.policy()), []
    language = prefix.base_of(trainer.model).model.language_model
    hook = language.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["inputs_embeds"])),
        with_kwargs=True,
    )
    found = likelihoods_of(trainer)
    hook.remove()
    assert rows == [1], "a group is one row"
    assert all(torch.equal(own, before[n]) for n, own in reference.policy().items())

    def expected():
        """By one plain forward a completion."""
        values = []
        for own in completions_of(trainer):
            span = answer_span(own, trainer._tokenizer.decode)
            logps = plain_logps(trainer, question, torch.tensor(own))
            values.append(answer_likelihood(logps, span, trainer.settings))
        return values

    by_policy = expected()
    with reference.in_place_of_policy():
        by_reference = expected()
    assert found == pytest.approx(by_reference, rel=1e-3, abs=1e-9)
    assert found != pytest.approx(by_policy, rel=1e-2)
    assert [p > 0 for p in found] == ANSWERED


def test_a_frozen_reference_is_the_start_and_policy_is_no_reference(build):
    starts = {}
    for reference in care.CHOICES["reference"]:
        trainer = build(reference=reference)
        start = starts[reference] = likelihoods_of(trainer)
        named = trainer.model.named_parameters()
        spread({name: w for name, w in named if w.requires_grad}, 1)
        moved = likelihoods_of(trainer)
        if reference == "policy":
            assert moved != pytest.approx(start, rel=1e-2)
        else:
            assert moved == start
        follows = trainer.reference in trainer.callback_handler.callbacks
        assert follows is (reference == "ema")
    assert starts["policy"] == starts["frozen"]


def test_a_step_uses_the_bonus_and_records_it(build, tmp_path):
    """Answers are forced by decoding them: the first tokens of a policy say nothing."""
    trainer = build(kl_beta=0.04)
    trainer.draw = lambda seen: [completions_of(trainer)] * len(seen)
    _, (inputs,) = one_step_inputs(trainer)
    rows = rollouts_of(tmp_path, "care")
    assert [row["text"] for row in rows] == ANSWERS * 2
    for group in (rows[:4], rows[4:]):
        likelihoods = [row["reference_likelihood"] for row in group]
        assert [p > 0 for p in likelihoods] == ANSWERED
        accuracies = [letters(row["text"], None) for row in group]
        bonus = consistency_bonus(accuracies, likelihoods, trainer.settings)
        assert sum(bonus) > 0
        given = [row["rewards"]["consistency_bonus"] for row in group]
        assert given == pytest.approx(bonus)
        totals = torch.tensor([sum(row["rewards"].values()) for row in group])
        expected = (totals - totals.mean()) / (totals.std() + 1e-4)
        found = [row["advantage"] for row in group]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert "ref_per_token_logps" in inputs, "the KL variants compare with the base"


def test_an_interrupted_run_ends_as_an_undisturbed_one(make_task, tmp_path):
    """The reference of the resumed run is that of the checkpoint, to the last bit. Of
    its own a random policy would give no answer, which a reference could judge."""
    settings = replace(CARE, steps=6, reference_every=1, reference_decay=0.5)
    task = make_task({"accuracy": letters}, settings, tmp_path)
    log = log_of_resumed(task, FixedCARE, 3 * 8 + 5)
    assert [row["step"] for row in log] == list(range(1, 7))
    assert all("reward_consistency_bonus" in row for row in log)
    assert all(row["reference_likelihood"] > 0 for row in log)


def test_without_an_adapter_the_reference_averages_all_weights(build):
    changes = {"lora_rank": 0, "lr": 1e-3, "steps": 2, "save_every": 2}
    trainer = build(reference_every=1, reference_decay=0.5, **changes)
    reference, start = trainer.reference, copied(trainer.reference.average)
    assert len(start) == len(list(trainer.model.parameters()))
    trainer.train()
    for part in ("visual", "language_model", "lm_head"):
        own = [name for name in start if part in name and start[name].ndim > 1]
        moved = [not torch.equal(start[name], reference.average[name]) for name in own]
        assert any(moved), part
    before = copied(reference.policy())
    assert [p > 0 for p in likelihoods_of(trainer)] == ANSWERED
    assert all(torch.equal(own, before[n]) for n, own in reference.policy().items())


def test_rewards_without_accuracy_are_refused(build):
    with pytest.raises(ValueError, match="lack accuracy"):
        build({"format": letters})
