"""The shared prefix computes what the repeated computation computes, for less."""

import copy
import itertools

import numpy as np
import pytest
import torch

from lib.data.prompts import messages
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.model.prefix import make_prompt
from lib.model.rollouts import Decoding
from lib.model.scoring import add_scoring, completion_scores
from lib.show import training_plots
from tests.trainings import adapted, followed

TEXTS = ["open the fridge", "what action should I take next?", "stir", "B. wash"]


def pictures(rng, frames, still):
    clip = rng.integers(0, 256, (frames, 56, 56, 3), dtype=np.uint8) if frames else None
    image = rng.integers(0, 256, (56, 84, 3), dtype=np.uint8) if still else None
    return clip, image


def conversations(seed=0):
    """Video and still, still only, video only, text only: four lengths."""
    rng = np.random.default_rng(seed)
    kinds = [(4, True), (0, True), (2, False), (0, False)]
    return [
        messages(text, *pictures(rng, *kind))
        for text, kind in zip(TEXTS, kinds, strict=True)
    ]


def encoded(processor, seed=0):
    return [encoding.encode(processor, [one]) for one in conversations(seed)]


def decoding(model, **changes):
    config = model.config
    fields = {
        "max_tokens": 12,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "end_ids": tuple(model.generation_config.eos_token_id or ()),
        "pad_id": model.generation_config.pad_token_id,
        "suppressed": tuple(encoding.visual_token_ids(config)),
    }
    return Decoding(**{**fields, **changes})


def completions_of(prompts, seed=0, longest=9, group=3):
    """Random token ids 10 .. 199 (no special ones), lengths 1 .. longest."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (len(prompts), group), generator=rng)
    return [
        [torch.randint(10, 200, (int(n),), generator=rng) for n in row]
        for row in lengths
    ]


def plain_scores(model, inputs, completion, temperature=1.0, **more):
    """One sample, one ordinary forward with its pictures, full softmax."""
    whole = followed(model, inputs, completion) | more
    logits = model(**whole).logits[0, -len(completion) - 1 : -1]
    logps = (logits / temperature).log_softmax(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, completion[:, None])[:, 0], entropies


def plain_group_scores(model, inputs, completions):
    return [
        plain_scores(model, one, completion)
        for one, group in zip(inputs, completions, strict=True)
        for completion in group
    ]


def tightest(prompts, longest=9):
    """The smallest pack_tokens that takes the longest prompt and one completion."""
    return max(len(prompt.ids) for prompt in prompts) - 1 + longest


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def test_bfloat16_rows_are_as_close_to_float32_as_a_plain_forward(
    tiny_checkpoint, model, processor
):
    inputs = encoded(processor)
    prompts = [make_prompt(model, one) for one in inputs]
    completions = completions_of(prompts, group=6)
    rounded = models.load_model(tiny_checkpoint, dtype="bfloat16")
    with torch.no_grad():
        exact = plain_group_scores(model, inputs, completions)
        plain = plain_group_scores(rounded, inputs, completions)
        add_scoring(rounded)
        packed, _ = completion_scores(rounded, prompts, completions)
    assert all(own.dtype == torch.float32 for own in packed)
    truth = torch.cat([pair[0] for pair in exact])
    errors = [torch.cat(own) - truth for own in (packed, [pair[0] for pair in plain])]
    ours, theirs = (error.square().mean().sqrt() for error in errors)
    assert 0 < ours <= 1.5 * theirs


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_a_small_pack_splits_groups_and_bounds_every_forward(model, processor):
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    completions = completions_of(prompts, group=4)
    bound = tightest(prompts)
    rows = [
        row
        for own in zip(prompts, completions, strict=True)
        for row in scoring.make_rows(*own, bound)
    ]
    packs = scoring.make_packs(rows, bound)
    assert len(rows) > len(prompts)
    assert [c for row in rows for c in row.completions] == [
        *itertools.chain.from_iterable(completions)
    ]
    assert [row for pack in packs for row in pack] == rows
    for pack in packs:
        assert scoring.pack_inputs(pack)["input_ids"].numel() <= bound
    with pytest.raises(ValueError, match="raise pack_tokens"):
        scoring.make_rows(prompts[0], [torch.arange(9)], len(prompts[0].ids) + 7)


def test_the_drawn_totals_are_those_of_the_rows(model, processor):
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    for prompt, group in zip(prompts, completions_of(prompts), strict=True):
        visual = prefix.visual_tokens(model, prompt)
        lengths = [len(completion) for completion in group]
        ax = training_plots.encoded_tokens(visual, len(prompt.ids) - visual, lengths)
        (row,) = scoring.make_rows(prompt, group, 16384)
        assert f"once:\n{row.length:,} tokens" in [
            label.get_text() for label in ax.get_yticklabels()
        ]


def test_chunks_of_logits_change_neither_values_nor_gradients(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).double()
    hidden = torch.randn(23, 8, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 50, (23,))
    sizes = []
    head.register_forward_hook(lambda module, args, out: sizes.append(out.numel()))

    def run():
        logps, entropies = scoring.score(hidden, head, labels, 0.7)
        grads = torch.autograd.grad(logps.square().sum(), [hidden, head.weight])
        return [logps, entropies, *grads]

    whole = run()
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 250)
    sizes.clear()
    parts = run()
    assert max(sizes) <= 250
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_an_unsupported_attention_or_model_is_named(model, processor):
    prompt = make_prompt(model, encoded(processor)[3])
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        rollouts.draw(model, [prompt], 2, decoding(model))
    model.config.get_text_config()._attn_implementation = "sdpa"
    model.config.model_type = "qwen9_vl"
    with pytest.raises(ValueError, match="qwen9_vl"):
        completion_scores(model, [prompt], [[torch.tensor([5])]])
    model.config.model_type = "qwen2_vl"
    model.config.text_config.layer_types[-1] = "sliding_attention"
    with pytest.raises(ValueError, match="sliding window"):
        rollouts.draw(model, [prompt], 1, decoding(model))


def test_lora_with_gradient_checkpointing_gives_the_same_gradients(
    tiny_checkpoint, processor
):
    model = adapted(tiny_checkpoint).train()
    inputs = encoded(processor)
    prompts = [make_prompt(model, one) for one in inputs]
    completions = completions_of(prompts)
    weights = torch.randn(12)

    def weighted(logps):
        return (weights * torch.stack([own.sum() for own in logps])).sum()

    expected = [pair[0] for pair in plain_group_scores(model, inputs, completions)]
    grads = gradients(model, weighted(expected))

    assert prefix.vision_is_frozen(model)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    seen = prefix.with_features(model, prompts)
    add_scoring(model)
    logps, _ = completion_scores(model, seen, completions)
    assert worst(logps, expected) <= 1e-5
    assert relative(gradients(model, weighted(logps)), grads) <= 1e-5


def test_rollouts_leave_the_gradients_through_nf4_weights(tiny_checkpoint, processor):
    found = []
    for with_rollouts in (False, True):
        model = adapted(tiny_checkpoint, quantize=True).train()
        prompts = [make_prompt(model, one) for one in encoded(processor)]
        completions = completions_of(prompts)
        if with_rollouts:
            rollouts.draw(model, prompts, 2, decoding(model))
        add_scoring(model)
        logps, _ = completion_scores(model, prompts, completions)
        found.append(gradients(model, torch.cat(logps).sum()))
    assert found[0].norm() > 0
    assert relative(found[1].float(), found[0].float()) <= 1e-5


def test_a_prompt_that_ends_in_a_picture_is_an_error(model, processor):
    one = copy.copy(encoded(processor)[1])
    end = int((one["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
    one["input_ids"] = one["input_ids"][:, :end]
    one["attention_mask"] = one["attention_mask"][:, :end]
    with pytest.raises(ValueError, match="ends with a picture"):
        make_prompt(model, one)
