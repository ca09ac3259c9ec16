"""Rollouts are what the model would say, however they are batched."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lib.model import encoding, models, prefix, rollouts, token_step
from lib.model.prefix import make_prompt
from tests.test_shared_prefix import decoding, encoded
from tests.trainings import adapted, drawn_and_scored, followed


def generated(model, inputs, settings, **more):
    """Greedy completions by transformers' own generate, one prompt at a time."""
    how = {"do_sample": False, "max_new_tokens": settings.max_tokens}
    how |= {"suppress_tokens": list(settings.suppressed), **more}
    found = (model.generate(**one, **how)[0] for one in inputs)
    columns = zip(found, inputs, strict=True)
    return [ids[one["input_ids"].shape[1] :].tolist() for ids, one in columns]


def test_rollouts_follow_the_distribution_of_their_own_prefix(model, processor):
    """Two-token completions come as often as the plain forward says."""
    one = encoded(processor)[0]
    prompt = make_prompt(model, one)
    settings = decoding(model, max_tokens=2, temperature=1.0, top_k=2, end_ids=())
    torch.manual_seed(0)
    pairs = rollouts.draw(model, [prompt] * 8, 100, settings)
    counts = Counter(map(tuple, itertools.chain.from_iterable(pairs)))
    first = top_two(model, one, [], settings)
    expected = {}
    for token, share in first.items():
        for other, own in top_two(model, one, [token], settings).items():
            expected[token, other] = share * own
    assert set(counts) <= set(expected)
    for pair, share in expected.items():
        error = (share * (1 - share) / 800) ** 0.5
        assert abs(counts[pair] / 800 - share) < 5 * error + 1e-3


def top_two(model, one, behind, settings):
    """{token: probability} of the two likeliest tokens behind prompt and `behind`."""
    inputs = followed(model, one, torch.tensor(behind, dtype=torch.long))
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    logits[list(settings.suppressed)] = -torch.inf
    values, tokens = logits.topk(2)
    return dict(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))


def test_visual_tokens_are_never_drawn(model, processor):
    visual = set(encoding.visual_token_ids(model.config))
    with torch.no_grad():  # a policy that wants nothing else
        model.lm_head.weight[[*visual]] = 0
        model.model.language_model.norm.weight.zero_()
        bias = torch.zeros(model.config.text_config.vocab_size)
        bias[[*visual]] = 100.0
        model.lm_head.bias = torch.nn.Parameter(bias)
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    for temperature in (0.0, 1.0):
        free = decoding(model, temperature=temperature, suppressed=(), max_tokens=5)
        drawn = []
        for how in (free, replace(free, suppressed=tuple(visual))):
            groups = rollouts.draw(model, prompts, 3, how)
            drawn.append({token for group in groups for row in group for token in row})
        assert drawn[0] <= visual and not drawn[1] & visual


@pytest.fixture
def several(model, processor):
    """Seven prompts of four lengths, with clip and still, either, or neither."""
    found = [one for seed in (0, 1) for one in encoded(processor, seed)][:7]
    return found, [make_prompt(model, one) for one in found]


@pytest.mark.parametrize(
    ("at_once", "seen"), [(1, True), (2, True), (3, False), (None, False)]
)
def test_greedy_rollouts_in_training_equal_generate(model, several, at_once, seen):
    """Whatever is drawn side by side: waiting prompts take the places of ended ones."""
    inputs, prompts = several
    settings = decoding(model)
    free = generated(model, inputs, settings)
    ends = (free[0][2], free[1][6])  # some completions never meet them
    model.generation_config.eos_token_id = list(ends)
    expected = generated(model, inputs, settings)
    assert len({len(row) for row in expected}) > 2, "no completion ends early"
    model.activation_checkpointing_enable()
    model.train()
    if seen:
        prompts = prefix.with_features(model, prompts)
    with rollouts.generating(model):
        how = (decoding(model, end_ids=ends), at_once)
        groups = rollouts.decode(model, prompts, 2, *how)
    assert groups == [[row, row] for row in expected]
    assert model.training and model.is_activation_checkpointing


@pytest.mark.parametrize("start", [-1, 4])
def test_a_pass_for_its_end_is_the_models_own_from_there_on(
    tiny_checkpoint, processor, start
):
    """Adapters and gradients included, and the model is not changed by it."""
    model = adapted(tiny_checkpoint)
    base, inputs = prefix.base_of(model), encoded(processor)[0]
    whole = base.model(**inputs).last_hidden_state
    end = prefix.ending(base, start).model(**inputs).last_hidden_state
    weights = [own for own in model.parameters() if own.requires_grad]
    torch.testing.assert_close(end[:, start:], whole[:, start:])
    assert not torch.equal(end[:, :start], whole[:, :start])
    found, expected = (  # of cubes: the last norm leaves no gradient of squares
        torch.autograd.grad(hidden[:, start:].pow(3).sum(), weights)
        for hidden in (end, whole)
    )
    assert max(own.abs().max() for own in expected) > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(base.model(**inputs).last_hidden_state, whole)


def test_a_seed_gives_the_same_completions_in_every_batch(model, several):
    _, prompts = several
    settings = decoding(model, temperature=1.0, end_ids=(5, 9, 11, 20, 30))
    found = []
    for at_once in (1, 2, None):
        torch.manual_seed(0)
        with rollouts.generating(model):
            found.append(rollouts.decode(model, prompts, 8, settings, at_once))
    torch.manual_seed(0)
    apart = [rollouts.draw(model, [prompt], 8, settings)[0] for prompt in prompts]
    assert found[0] == found[1] == found[2] == apart
    assert len({len(row) for group in apart for row in group}) > 2
    assert all(len({*map(tuple, group)}) > 1 for group in apart)
    torch.manual_seed(1)
    assert rollouts.draw(model, prompts, 8, settings) != apart


@pytest.mark.parametrize("at_once", [2, 4, None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_of_a_fixed_shape_draw_the_same(
    model, several, monkeypatch, at_once, temperature
):
    """As on a GPU: whole completions wait for the next look, batches shrink by half."""
    _, prompts = several
    ends = (5, 9, 11, 20, 30, 77)
    settings = decoding(model, temperature=temperature, end_ids=ends, max_tokens=13)
    found = []
    for fixed in (False, True):
        monkeypatch.setattr(rollouts, "has_fixed_shapes", lambda device: fixed)  # noqa: B023
        torch.manual_seed(0)
        with rollouts.generating(model):
            found.append(rollouts.decode(model, prompts, 5, settings, at_once))
    assert found[0] == found[1]
    lengths = {len(row) for group in found[0] for row in group}
    assert max(lengths) == 13 and (len(lengths) > 2 or not temperature)


KINDS = {  # how far the log-probability of a drawn token may be from the update's
    "LoRA": (1e-5, {}),
    "LoRA on NF4": (1e-4, {"quantize": True}),
    "LoRA in bfloat16": (0.05, {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("small", [0, token_step.SMALL], ids=["live", "folded"])
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_tokens_have_the_probabilities_of_the_update(
    tiny_checkpoint, processor, monkeypatch, kind, small
):
    """What rollouts are drawn from is what the update scores."""
    monkeypatch.setattr(token_step, "SMALL", small)
    bound, how = KINDS[kind]
    model = adapted(tiny_checkpoint, **how)
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    settings = decoding(model, temperature=1.0, end_ids=(), suppressed=())
    drawn, scored = drawn_and_scored(model, prompts, 3, settings)
    assert drawn.shape == (12, settings.max_tokens)
    assert (drawn - scored).abs().max() <= bound


def test_folded_adapters_leave_no_trace(tiny_checkpoint, processor):
    model = adapted(tiny_checkpoint)
    batch, before = encoded(processor)[0], models.fingerprint(model)
    layers = [m for m in model.modules() if getattr(m, "lora_A", None)]
    with torch.no_grad():
        live, called = model(**batch).logits, []
        for layer in layers:
            layer.lora_A["default"].register_forward_hook(lambda *_: called.append(1))
        with rollouts.generating(model):
            folded = model(**batch).logits
            assert not called and (folded - live).abs().max() < 1e-5
            with model.disable_adapter():
                plain = model(**batch).logits
        assert torch.equal(plain, models.load_model(tiny_checkpoint)(**batch).logits)
        assert torch.equal(model(**batch).logits, live) and len(called) == len(layers)
    assert models.fingerprint(model) == before


ADAPTED = {
    "LoRA": {},
    "LoRA on NF4": {"quantize": True},
    "rsLoRA": {"kind": {"use_rslora": True}},
    "DoRA": {"kind": {"use_dora": True}},
    "a bias of B": {"kind": {"lora_bias": True}},
    "LoRA on the embedding": {
        "kind": {"target_modules": ["embed_tokens"], "init_lora_weights": False}
    },
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_greedy_rollouts_with_an_adapter_equal_generate(
    tiny_checkpoint, processor, kind
):
    model = adapted(tiny_checkpoint, **ADAPTED[kind])
    inputs = encoded(processor)
    settings = decoding(model, end_ids=())
    model.generation_config.eos_token_id = None
    expected = generated(model, inputs, settings)
    prompts = [make_prompt(model, one) for one in inputs]
    assert rollouts.draw(model, prompts, 1, settings) == [[row] for row in expected]
    with model.disable_adapter():
        assert rollouts.draw(model, prompts, 1, settings) != [[row] for row in expected]


def test_a_temperature_may_be_a_whole_number(model, processor):
    """As a params file has it: `temperature: 1`."""
    prompts = [make_prompt(model, encoded(processor)[0])]
    drawn = []
    for temperature in (1, 1.0):
        torch.manual_seed(0)
        settings = decoding(model, temperature=temperature)
        drawn.append(rollouts.draw(model, prompts, 2, settings))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_policy_of_nan_is_an_error(model, processor, temperature, number):
    """Taken greedily, its likeliest token would be number 0, over and over."""
    with torch.no_grad():
        bias = torch.zeros(model.config.text_config.vocab_size)
        bias[3] = number
        model.lm_head.bias = torch.nn.Parameter(bias)
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    with pytest.raises(FloatingPointError, match="NaN"):
        rollouts.draw(model, prompts, 2, decoding(model, temperature=temperature))


def test_an_active_adapter_of_other_layers_adds_nothing_here(
    tiny_checkpoint, processor
):
    model = adapted(tiny_checkpoint)
    prompts = [make_prompt(model, one) for one in encoded(processor)]
    settings = decoding(model, end_ids=())
    before = rollouts.draw(model, prompts, 1, settings)
    other = replace(models.lora_config(2, 4), target_modules=r".*layers\.0.*q_proj")
    model.add_adapter("other", other)
    model.base_model.set_adapter(["default", "other"])
    assert rollouts.draw(model, prompts, 1, settings) == before


def test_capture_leaves_the_choice_of_algorithms_as_it_was():
    was = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with rollouts._plain_kernels():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(was, warn_only=True)
