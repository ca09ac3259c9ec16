"""Attention of generated tokens: that of the model itself, on the right tokens."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from test_shared_prefix_families import encoded, family  # noqa: F401
from test_shared_prefix_families import model as random_model  # noqa: F401

from lib import records
from lib.data.frame_store import question_media
from lib.data.prompts import messages, prompt_text
from lib.data.video import Sampling
from lib.evaluate import attention, evaluate
from lib.model import encoding, models, prefix, rollouts

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
SETTINGS = evaluate.EvalSettings("think", max_new_tokens=30, batch_size=4)
SAID = "<think>I open the fridge.</think><answer>B</answer>"


def plain_attention(model, inputs, completion):
    """One ordinary eager forward over prompt and completion: rows of the positions that
    predict the completion, mean over heads, [layers, R, P - 1 + R]."""
    base = prefix.base_of(model)
    before = base.config.get_text_config()._attn_implementation
    base.set_attn_implementation("eager")
    ids = torch.cat([inputs["input_ids"], completion[None]], 1)
    whole = {
        "input_ids": ids,
        "mm_token_type_ids": encoding.mm_token_type_ids(ids, base.config),
        "attention_mask": torch.ones_like(ids),
    }
    with torch.no_grad(), rollouts.generating(model):
        found = model(**{**inputs, **whole}, output_attentions=True).attentions
    base.set_attn_implementation(before)
    start = inputs["input_ids"].shape[1] - 1
    rows = [layer[0, :, start:-1, :-1].float().mean(0) for layer in found]
    return torch.stack(rows).numpy()


def asked(processor, question):
    text = prompt_text(question, "think")
    media = question_media(question, SAMPLING)
    return encoding.encode(processor, [messages(text, *media)])


def with_adapter(model):
    """A LoRA adapter that changes the model: its second matrices are zero at first."""
    adapted = models.peft.get_peft_model(model, models.lora_config(4, 8))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return adapted.eval()


@pytest.mark.parametrize("kind", ["plain", "lora", "nf4", "nf4 and lora"])
def test_it_is_the_models_own_attention(
    tiny_checkpoint, processor, tiny_questions, kind
):
    torch.manual_seed(0)
    tiny = models.load_model(tiny_checkpoint, quantize="nf4" in kind)
    if "lora" in kind:
        tiny = with_adapter(tiny)
    completion = torch.tensor(processor.tokenizer(SAID)["input_ids"])
    for question in tiny_questions[:3]:  # the third has no video
        inputs = asked(processor, question)
        prompt = prefix.make_prompt(tiny, inputs)
        found = attention.completion_attention(tiny, prompt, completion)
        expected = plain_attention(tiny, inputs, completion)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5
        assert np.allclose(found.sum(-1), 1, atol=1e-5)
        assert np.abs(found[:, 1:] - expected[:, :-1]).max() > 1e-3  # rows differ


def test_all_families_of_the_shared_prefix(random_model, family):  # noqa: F811
    inputs = encoded(np.random.default_rng(0), family, ("video", "image"))
    completion = torch.tensor([5, 9, 17, 4])
    prompt = prefix.make_prompt(random_model, inputs)
    found = attention.completion_attention(random_model, prompt, completion)
    expected = plain_attention(random_model, inputs, completion)
    assert np.abs(found - expected).max() < 1e-5


def test_it_leaves_the_model_as_it_was(tiny_checkpoint, processor, tiny_questions):
    tiny = models.load_model(tiny_checkpoint)
    inputs = asked(processor, tiny_questions[0])
    with torch.no_grad():
        before = tiny(**inputs).logits
    prompt = prefix.make_prompt(tiny, inputs)
    attention.completion_attention(tiny, prompt, torch.tensor([9, 10]))
    assert tiny.config.get_text_config()._attn_implementation == "sdpa"
    layers = tiny.model.language_model.layers
    assert not any(layer.self_attn._forward_hooks for layer in layers)
    with torch.no_grad():
        assert (tiny(**inputs).logits == before).all()


def test_equal_attention_gives_the_equal_shares():
    """3 of text, 2 of a still, 4 of a video, 1 of text; then two generated tokens."""
    kinds = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0])
    rows = np.zeros((1, 2, 11))
    rows[0, 0, :10], rows[0, 1] = 1 / 10, 1 / 11
    expected = [[4 / 10, 2 / 10, 4 / 10], [4 / 11, 2 / 11, 5 / 11]]
    assert np.allclose(attention.masses(rows, kinds)[0], expected)
    assert np.allclose(attention.equal_shares(kinds, 2), expected)


def test_parts_of_a_completion():
    text = "<think>wash it</think><answer> B."
    words = ["<think", ">wash", " it", "</", "think>", "<answer", ">", " B", "."]
    spans = list(pairwise(np.cumsum([0, *map(len, words)]).tolist()))
    assert attention.parts_of(text, spans) == {
        "first": [0, 1, 2],
        "reasoning": [1, 2],
        "letter": [7],
    }
    assert attention.parts_of("stop", [(0, 4)]) == {
        "first": [0],
        "reasoning": [],
        "letter": [],
    }


def test_a_map_has_every_patch_in_its_place(processor, tiny_checkpoint):
    """One white patch in a black clip is the token that the map has at its place."""
    tiny = models.load_model(tiny_checkpoint)
    still = np.zeros((56, 84, 3), np.uint8)
    for pair, row, column in [(0, 0, 1), (1, 1, 0), (2, 1, 2)]:
        clip = np.zeros((6, 84, 112, 3), np.uint8)
        clip[2 * pair, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = 255
        inputs = encoding.encode(processor, [messages("x", clip, still)])
        patches = inputs["pixel_values_videos"].reshape(-1, 4 * 1176)  # merged by four
        token = int(patches.sum(1).argmax())
        prompt = prefix.make_prompt(tiny, inputs)
        kinds = encoding.mm_token_type_ids(prompt.ids, tiny.config).numpy()
        weights = np.zeros((1, 1, len(kinds)))
        weights[0, 0, np.flatnonzero(kinds == 2)[token]] = 0.3
        found = np.array(attention._picture_map(weights, kinds, prompt, 2, 2))
        assert found.shape == (3, 3, 4)
        assert np.argwhere(found == 0.3).tolist() == [[pair, row, column]]
        other = attention._picture_map(weights, kinds, prompt, 1, 2)
        assert np.shape(other) == (1, 2, 3) and np.sum(other) == 0


@pytest.fixture(scope="module")
def attended(tiny_checkpoint, processor, tiny_questions):
    said = [evaluate.row(q, SETTINGS, SAID, 1) for q in tiny_questions]
    said[1] = evaluate.row(tiny_questions[1], SETTINGS, error="1.mp4 is missing")
    tokens = len(processor.tokenizer(SAID)["input_ids"])
    said[0]["tokens"] = tokens + 1
    tiny = models.load_model(tiny_checkpoint)
    return attention.attend(tiny, processor, tiny_questions, said, SAMPLING)


def test_rows_add_up(attended, processor):
    tokens = len(processor.tokenizer(SAID)["input_ids"])
    assert attended[1] == {"id": "training/1", "left_out": "1.mp4 is missing"}
    for row in (attended[0], attended[2]):
        assert row["n"] == tokens == len(row["by_token"])
        layers = np.array(row["by_layer"])
        assert layers.shape == (2, 3)
        assert np.allclose(layers.sum(1), 1, atol=1e-4)
        assert np.allclose(layers.mean(0), np.mean(row["by_token"], 0), atol=1e-4)
        assert np.sum(row["still_map"]) == pytest.approx(layers.mean(0)[1], abs=1e-3)
    assert attended[0]["tokens"]["video"] == 2 * 2 * 2
    assert np.shape(attended[0]["video_map"]) == (2, 2, 2)
    video = np.mean(attended[0]["by_token"], 0)[0]
    assert np.sum(attended[0]["video_map"]) == pytest.approx(video, abs=1e-3)
    assert attended[2]["video_map"] is None
    assert np.array(attended[2]["by_token"])[:, 0].max() == 0
    assert not attended[0]["retokenized"] and attended[2]["retokenized"]


def test_the_letter_is_read_where_it_is_written(attended, processor):
    spans = processor.tokenizer(SAID, return_offsets_mapping=True)["offset_mapping"]
    (at,) = [i for i, (low, high) in enumerate(spans) if "B" in SAID[low:high]]
    row = attended[0]
    assert row["parts"]["letter"] == row["by_token"][at]
    assert row["parts"]["first"] == pytest.approx(
        np.mean(row["by_token"][:3], 0).tolist(), abs=1e-4
    )


# Summaries of rows made by hand


def made(key, video, tokens=2, letter=True):
    """Two layers that put `video` and `video` + 0.2 on the video, 0.1 on the still."""
    layers = [[v, 0.1, 0.9 - v] for v in (video, video + 0.2)]
    mean = [video + 0.1, 0.1, 0.8 - video]
    parts = {"first": mean, "reasoning": mean, "letter": mean if letter else None}
    return {
        "id": key,
        "n": tokens,
        "retokenized": False,
        "tokens": {"video": 8, "still": 2, "prompt": 30},
        "by_layer": layers,
        "by_token": [mean] * tokens,
        "parts": parts,
        "equal": [0.2, 0.05, 0.75],
        "video_map": [[[0.01, 0.02]], [[0.03, 0.04]]],
        "still_map": [[[0.05, 0.05]]],
    }


@pytest.fixture
def run(tmp_path):
    shifts = {"base": 0.0, "sft": 0.1, "grpo": 0.3}
    for model_, shift in shifts.items():
        rows = [
            made("L1/a", 0.1 + shift, 3),
            made("L1/b", 0.2 + shift, 2, letter=model_ != "sft"),
            made("L1/c", 0.3 + shift, 2),
        ]
        if model_ == "sft":
            rows[2] = {"id": "L1/c", "left_out": "the completion is empty"}
        attention.write_rows(tmp_path, model_, attention.OWN, rows)
    return tmp_path


def test_methods_with_other_questions_are_not_compared(run):
    rows = records.read_jsonl(run / "attention_grpo.jsonl")
    records.write_jsonl(run / "attention_grpo.jsonl", rows[1:])
    with pytest.raises(ValueError, match="attention_grpo"):
        attention.read_rows(run, "own")
    with pytest.raises(FileNotFoundError, match=r"attention_base\.on_sft"):
        attention.read_rows(run, "sft")


def test_the_example_is_chosen_by_rule(run):
    rows = attention.read_rows(run, "own")

    def said(**right):
        keys = ("L1/a", "L1/b")
        return {
            name: {key: {"correct": key in right.get(name, ())} for key in keys}
            for name in ("base", "sft", "grpo")
        }

    assert attention.example(rows, said(grpo=["L1/b"])) == "L1/b"
    assert attention.example(rows, said(grpo=["L1/b"], base=["L1/b"])) == "L1/a"
