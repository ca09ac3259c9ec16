"""GRPO-CARE: the bonus of Algorithm 1, and a reference that really moves."""

from dataclasses import asdict, replace

import pytest
import torch

from lib import paths, records
from lib.model import models, prefix
from lib.train import care, grpo
from lib.train.care import (
    CARESettings,
    answer_likelihood,
    answer_span,
    consistency_bonus,
)
from tests.test_grpo import SETTINGS, assert_same_run, one_step_inputs, plain_logps
from tests.test_grpo_variants import interrupted_and_resumed

CARE = CARESettings(**asdict(SETTINGS))
PAPER = replace(CARE, margin=0.01)
ANSWERS = [
    "<think>stir</think><answer>B</answer>",
    "<think>no</think> B",
    "<think>cut the onion</think><answer> B. cut </answer>",
    "<answer>  </answer>",
]


def letters(text, question):
    """Stands for accuracy, which a random policy never has: an e in the text."""
    return float("e" in text)


REWARDS = {"accuracy": letters}


@pytest.fixture
def build(make_task, tmp_path):
    def make(rewards=REWARDS, folder=tmp_path, **changes):
        task = make_task(rewards, replace(CARE, **changes), folder)
        return care.VideoCARETrainer(task)

    return make


# The bonus


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
    ],
)
def test_the_bonus(accuracies, likelihoods, changes, bonuses):
    settings = replace(PAPER, **changes)
    assert consistency_bonus(accuracies, likelihoods, settings) == pytest.approx(
        bonuses
    )


@pytest.mark.parametrize("margin", [0.0, 0.01])
@pytest.mark.parametrize("right", range(1, 9))
def test_all_right_and_all_certain_get_the_bonus(right, margin):
    """Of a group of eight, at every margin, as in the released code; a mean in float64
    would round above 0.95 for six, seven and eight."""
    accuracies = [1.0] * right + [0.0] * (8 - right)
    settings = replace(PAPER, margin=margin)
    found = consistency_bonus(accuracies, [0.97] * 8, settings)
    assert found == [0.5 * accuracy for accuracy in accuracies]


def test_accuracies_in_parts_that_equal_their_mean_count():
    """0.7 six times, of which a mean in float64 is 0.7000000000000001."""
    assert consistency_bonus([0.7] * 6, [0.9] * 6, PAPER) == pytest.approx([0.35] * 6)


def test_the_two_means_of_an_answers_tokens():
    logps = torch.tensor([0.5, 0.8, 0.2]).log()
    settings = {mean: replace(CARE, answer_mean=mean) for mean in care.MEANS}
    span = (1, 3)
    found = {
        mean: answer_likelihood(logps, span, own) for mean, own in settings.items()
    }
    assert found == pytest.approx({"arithmetic": 0.5, "geometric": 0.4})
    assert answer_likelihood(logps, None, CARE) == 0.0


# The answer's tokens

PIECES = [
    (["<think>", "x", "</think>", "<answer", ">", "B", "</", "answer>"], ["B"]),
    (["<think>x</think><", "answer", ">B", "</answer>"], [">B"]),
    (["<answer>", " ", "\n", "B", ".", " cut", " ", "</answer>"], ["B", ".", " cut"]),
    (["<answer>", "A", "</answer>", "<answer>", "B", "</answer>"], ["A"]),
    (["<answer>B</answer>"], ["<answer>B</answer>"]),
    (["", "<answer>", "", "B", "", "</answer>", ""], ["B"]),
    (["<answer>", "</answer>"], None),
    (["<answer>", "  ", "</answer>"], None),
    (["<answer>", "B"], None),
    (["B"], None),
]


@pytest.mark.parametrize(("pieces", "answer"), PIECES)
def test_the_tokens_of_an_answer(pieces, answer):
    span = answer_span(range(len(pieces)), lambda own: "".join(pieces[i] for i in own))
    # Pieces without text, as of special tokens, may lie within the span's ends.
    assert (span and [p for p in pieces[slice(*span)] if p]) == answer


def test_the_tokens_of_an_answer_of_several_bytes(tiny_checkpoint):
    tokenizer = models.load_processor(tiny_checkpoint).tokenizer
    tokens = tokenizer("<think>é 寿司</think><answer>寿é司</answer>")["input_ids"]
    start, end = answer_span(tokens, tokenizer.decode)
    assert tokenizer.decode(tokens[start:end]).strip(">") == "寿é司"
    assert "寿" not in tokenizer.decode(tokens[end:])


def test_the_answer_of_miniplan_is_the_token_that_holds_the_letter():
    processor = models.load_processor(paths.ROOT / "lib/mini/base")
    decode = processor.tokenizer.decode
    text = "<think>Done is wash tomato.</think><answer>B</answer>"
    tokens = processor.tokenizer(text)["input_ids"]
    start, end = answer_span(tokens, decode)
    assert decode(tokens[start:end]) == ">B"


# The reference


def test_the_reference_moves_by_its_share_of_the_difference_in_bfloat16_too():
    """0.005 of a small difference is nothing in bfloat16, where the released code's
    average stands still; in float32 it adds up."""
    layer = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    torch.nn.init.constant_(layer.weight, 1.0)
    reference = care.ReferenceWeights(layer)
    torch.nn.init.constant_(layer.weight, 1.5)
    expected = 1.0
    for _ in range(20):
        reference.move(0.995)
        expected = 0.995 * expected + 0.005 * 1.5
        average = reference.average["weight"]
        assert average.dtype == torch.float32
        assert average.flatten().tolist() == pytest.approx([expected] * 6, abs=1e-6)
    assert expected > 1.04


@pytest.mark.parametrize(("every", "moves"), [(2, 2), (3, 1), (10, 0)])
def test_training_moves_the_reference_every_so_many_steps(build, every, moves):
    trainer = build(steps=4, reference_every=every, reference_decay=0.9)
    start = {name: own.clone() for name, own in trainer.reference.average.items()}
    seen = []

    class Watch(care.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights = care.trained_weights(trainer.model)
            seen.append({name: w.detach().clone() for name, w in weights.items()})

    trainer.add_callback(Watch())
    trainer.train()
    expected = start
    for step, policy in enumerate(seen, start=1):
        if step % every == 0:
            expected = {
                name: 0.9 * own + 0.1 * policy[name] for name, own in expected.items()
            }
    assert sum(step % every == 0 for step in range(1, 5)) == moves
    for name, own in trainer.reference.average.items():
        torch.testing.assert_close(own, expected[name], rtol=1e-6, atol=1e-7)
    moved = max(
        float((own - start[name]).abs().max())
        for name, own in trainer.reference.average.items()
    )
    assert (moved > 1e-4) is (moves > 0)


def completions_of(trainer):
    """Token ids of ANSWERS, one group of four."""
    tokenizer = trainer._tokenizer
    return [tokenizer(text)["input_ids"] for text in ANSWERS]


def likelihoods_of(trainer, tokens):
    """What the reference says of the rollouts of the first question."""
    prompts = [trainer.read_prompt(next(iter(trainer.questions.values())))]
    return trainer.reference_likelihoods(prompts, [tokens])[0]


def spread(weights, seed):
    torch.manual_seed(seed)
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.05)


def test_likelihoods_are_those_of_the_reference_and_leave_the_policy_alone(build):
    trainer = build()
    question = next(iter(trainer.questions.values()))
    tokens = completions_of(trainer)
    weights = list(care.trained_weights(trainer.model).values())
    spread(weights, 1)
    spread(trainer.reference.average.values(), 2)
    before = [weight.detach().clone() for weight in weights]
    found = likelihoods_of(trainer, tokens)
    assert all(map(torch.equal, before, weights))

    def expected():
        """By one plain forward a completion."""
        values = []
        for own in tokens:
            span = answer_span(own, trainer._tokenizer.decode)
            logps = plain_logps(trainer, question, torch.tensor(own))
            values.append(answer_likelihood(logps, span, trainer.settings))
        return values

    by_policy = expected()
    with trainer.reference.in_place_of_policy():
        by_reference = expected()
    assert found == pytest.approx(by_reference, rel=1e-3, abs=1e-9)
    assert found != pytest.approx(by_policy, rel=1e-2)
    assert [p > 0 for p in found] == [True, False, True, False]


def test_a_frozen_reference_is_the_start_and_policy_is_no_reference(build):
    found = {}
    for reference in care.REFERENCES:
        trainer = build(reference=reference)
        tokens = completions_of(trainer)
        start = likelihoods_of(trainer, tokens)
        spread(care.trained_weights(trainer.model).values(), 1)
        found[reference] = (start, likelihoods_of(trainer, tokens))
        movers = [
            own
            for own in trainer.callback_handler.callbacks
            if isinstance(own, care.MoveReference)
        ]
        assert bool(movers) is (reference == "ema")
    for reference in ("ema", "frozen"):
        assert found[reference][1] == found[reference][0]
    assert found["policy"][0] == found["frozen"][0]
    assert found["policy"][1] != pytest.approx(found["policy"][0], rel=1e-2)


# Runs


def test_a_step_uses_the_bonus_and_records_it(build, tmp_path):
    """Answers are forced by decoding them: the first tokens of a policy say nothing."""
    trainer = build(kl_beta=0.04)
    tokens = completions_of(trainer)
    trainer.draw = lambda seen: [tokens] * len(seen)
    _, (inputs,) = one_step_inputs(trainer)
    rows = records.read_jsonl(tmp_path / "rollouts_care.jsonl")
    assert [row["text"] for row in rows] == ANSWERS * 2
    for start in (0, 4):
        group = rows[start : start + 4]
        likelihoods = [row["reference_likelihood"] for row in group]
        assert [p > 0 for p in likelihoods] == [True, False, True, False]
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
    """The reference of the resumed run is that of the checkpoint, to the last bit."""
    settings = replace(CARE, steps=6, reference_every=1, reference_decay=0.5)
    one, two = (make_task(REWARDS, settings, tmp_path / name) for name in ("1", "2"))
    folder = grpo.train(one, care.VideoCARETrainer)
    assert folder == one.run / "adapters" / "care"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "care_settings.json",
    ]
    interrupted_and_resumed(two, care.VideoCARETrainer, 3 * 8 + 5)
    log = assert_same_run(one.run, two.run, "care")
    assert [row["step"] for row in log] == list(range(1, 7))
    assert all("reward_consistency_bonus" in row for row in log)
    assert all(row["reference_likelihood"] == 0 for row in log)


def test_a_checkpoint_holds_the_reference(build, tmp_path):
    """A random policy gives no answer, so the run above would not notice."""
    first = build(steps=2, reference_every=1, reference_decay=0.5)
    first.train()
    again = build(steps=4, reference_every=1, reference_decay=0.5)
    start = {name: own.clone() for name, own in again.reference.average.items()}
    again.create_optimizer_and_scheduler(4)
    again._load_optimizer_and_scheduler(str(tmp_path / "checkpoints/care/checkpoint-2"))
    for name, own in first.reference.average.items():
        assert torch.equal(again.reference.average[name], own)
    average = again.reference.average
    assert any(not torch.equal(average[name], start[name]) for name in start)


def test_without_an_adapter_the_reference_averages_all_weights(build):
    changes = {"lora_rank": 0, "lr": 1e-3, "steps": 2, "save_every": 2}
    trainer = build(reference_every=1, reference_decay=0.5, **changes)
    reference = trainer.reference
    start = {name: own.clone() for name, own in reference.average.items()}
    assert len(start) == len(list(trainer.model.parameters()))
    trainer.train()
    for part in ("visual", "language_model", "lm_head"):
        own = [name for name in start if part in name and start[name].ndim > 1]
        assert own
        moved = [not torch.equal(start[name], reference.average[name]) for name in own]
        assert any(moved), part
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    found = likelihoods_of(trainer, completions_of(trainer))
    assert [p > 0 for p in found] == [True, False, True, False]
    assert all(map(torch.equal, before, trainer.model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "slow"}, "reference = 'slow': it must be one of"),
        ({"answer_mean": "median"}, "answer_mean = 'median'"),
        ({"bonus": "both"}, "bonus = 'both'"),
        ({"extra_draws": 1}, "extra_draws = 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CARE, **changes)


def test_rewards_without_accuracy_are_refused(build):
    with pytest.raises(ValueError, match="lack accuracy"):
        build({"format": letters})


def test_scoring_by_the_reference_is_one_row_a_group(build):
    trainer = build()
    rows = []
    visual = prefix.base_of(trainer.model).model.language_model
    visual.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["inputs_embeds"])),
        with_kwargs=True,
    )
    likelihoods_of(trainer, completions_of(trainer))
    assert rows == [1]
