"""Attention of generated tokens: that of the model itself, on the right tokens."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_shared_prefix_families import encoded, family, reader  # noqa: F401
from test_shared_prefix_families import model as random_model  # noqa: F401

from lib import records
from lib.analysis import attended
from lib.data.prompts import messages
from lib.evaluate import attention, evaluate, tables
from lib.model import encoding, models, prefix, rollouts
from tests.trainings import SAMPLING, adapted, followed

SETTINGS = evaluate.EvalSettings("think", max_new_tokens=30, batch_size=4)
SAID = "<think>I open the fridge.</think><answer>B</answer>"


def plain_attention(model, inputs, completion):
    """One ordinary eager forward over prompt and completion: rows of the positions that
    predict the completion, mean over heads, [layers, R, P - 1 + R]."""
    base = prefix.base_of(model)
    before = base.config.get_text_config()._attn_implementation
    base.set_attn_implementation("eager")
    whole = followed(model, inputs, completion)
    with torch.no_grad(), rollouts.generating(model):
        found = model(**whole, output_attentions=True).attentions
    base.set_attn_implementation(before)
    start = inputs["input_ids"].shape[1] - 1
    rows = [layer[0, :, start:-1, :-1].float().mean(0) for layer in found]
    return torch.stack(rows).numpy()


def asked(processor, question):
    asking = evaluate.Asking(None, processor, SETTINGS, SAMPLING)
    return asking.prepare([question]).inputs[0]


@pytest.mark.parametrize("kind", ["plain", "lora", "nf4", "nf4 and lora"])
def test_it_is_the_models_own_attention(
    tiny_checkpoint, processor, tiny_questions, kind
):
    load = adapted if "lora" in kind else models.load_model
    tiny = load(tiny_checkpoint, quantize="nf4" in kind)
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


def test_all_families_of_the_shared_prefix(random_model, reader):  # noqa: F811
    inputs = encoded(reader, np.random.default_rng(0), "what next?", frames=4)
    completion = torch.tensor([5, 9, 17, 4])
    prompt = prefix.make_prompt(random_model, inputs)
    found = attention.completion_attention(random_model, prompt, completion)
    expected = plain_attention(random_model, inputs, completion)
    assert np.abs(found - expected).max() < 1e-5


def test_it_leaves_the_model_as_it_was(model, processor, tiny_questions):
    inputs = asked(processor, tiny_questions[0])
    with torch.no_grad():
        before = model(**inputs).logits
    prompt = prefix.make_prompt(model, inputs)
    attention.completion_attention(model, prompt, torch.tensor([9, 10]))
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    layers = model.model.language_model.layers
    assert not any(layer.self_attn._forward_hooks for layer in layers)
    with torch.no_grad():
        assert (model(**inputs).logits == before).all()


def test_equal_attention_gives_the_equal_shares():
    """3 of text, 2 of a still, 4 of a video, 1 of text; then two generated tokens."""
    kinds = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0])
    rows = np.zeros((1, 2, 11))
    rows[0, 0, :10], rows[0, 1] = 1 / 10, 1 / 11
    expected = [[4 / 10, 2 / 10, 4 / 10], [4 / 11, 2 / 11, 5 / 11]]
    assert np.allclose(attention.masses(rows, kinds)[0], expected)
    assert np.allclose(attention.equal_shares(kinds, 2), expected)


def test_parts_of_a_completion():
    words = ["<think", ">wash", " it", "</", "think>", "<answer", ">", " B", "."]
    spans = list(pairwise(np.cumsum([0, *map(len, words)]).tolist()))
    found = attention.parts_of("".join(words), spans)
    assert found == {"first": [0, 1, 2], "reasoning": [1, 2], "letter": [7]}
    found = attention.parts_of("stop", [(0, 4)])
    assert found == {"first": [0], "reasoning": [], "letter": []}


def test_a_map_has_every_patch_in_its_place(processor, model):
    """One white patch in a black clip is the token that the map has at its place."""
    still = np.zeros((56, 84, 3), np.uint8)
    for pair, row, column in [(0, 0, 1), (1, 1, 0), (2, 1, 2)]:
        clip = np.zeros((6, 84, 112, 3), np.uint8)
        clip[2 * pair, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = 255
        inputs = encoding.encode(processor, [messages("x", clip, still)])
        patches = inputs["pixel_values_videos"].reshape(-1, 4 * 1176)  # merged by four
        token = int(patches.sum(1).argmax())
        prompt = prefix.make_prompt(model, inputs)
        kinds = encoding.mm_token_type_ids(prompt.ids, model.config).numpy()
        weights = np.zeros((1, 1, len(kinds)))
        weights[0, 0, np.flatnonzero(kinds == 2)[token]] = 0.3
        found = np.array(attention._picture_map(weights, kinds, prompt, 2, 2))
        assert found.shape == (3, 3, 4)
        assert np.argwhere(found == 0.3).tolist() == [[pair, row, column]]
        other = attention._picture_map(weights, kinds, prompt, 1, 2)
        assert np.shape(other) == (1, 2, 3) and np.sum(other) == 0


@pytest.fixture(scope="module")
def measured(tiny_checkpoint, processor, tiny_questions, tmp_path_factory):
    """What `measure` is given, and the rows it left."""
    said = [evaluate.row(q, SETTINGS, SAID, 1) for q in tiny_questions]
    said[1] = evaluate.row(tiny_questions[1], SETTINGS, error="1.mp4 is missing")
    said[0]["tokens"] = len(processor.tokenizer(SAID)["input_ids"]) + 1
    tiny, run = models.load_model(tiny_checkpoint), tmp_path_factory.mktemp("run")
    given = [tiny, processor, tiny_questions, {"own": said}, SAMPLING, run, "base"]
    attention.measure(*given)
    return given, records.read_jsonl(run / "attention_base.jsonl")


def test_rows_add_up(measured, processor):
    rows = measured[1]
    tokens = len(processor.tokenizer(SAID)["input_ids"])
    assert rows[1] == {"id": "training/1", "left_out": "1.mp4 is missing"}
    for row in (rows[0], rows[2]):
        assert row["n"] == tokens == len(row["by_token"])
        layers = np.array(row["by_layer"])
        assert layers.shape == (2, 3)
        assert np.allclose(layers.sum(1), 1, atol=1e-4)
        assert np.allclose(layers.mean(0), np.mean(row["by_token"], 0), atol=1e-4)
        assert np.sum(row["still_map"]) == pytest.approx(layers.mean(0)[1], abs=1e-3)
    assert rows[0]["tokens"]["video"] == 2 * 2 * 2
    assert np.shape(rows[0]["video_map"]) == (2, 2, 2)
    video = np.mean(rows[0]["by_token"], 0)[0]
    assert np.sum(rows[0]["video_map"]) == pytest.approx(video, abs=1e-3)
    assert rows[2]["video_map"] is None
    assert np.array(rows[2]["by_token"])[:, 0].max() == 0
    assert not rows[0]["retokenized"] and rows[2]["retokenized"]


def test_the_letter_is_read_where_it_is_written(measured, processor):
    spans = processor.tokenizer(SAID, return_offsets_mapping=True)["offset_mapping"]
    (at,) = [i for i, (low, high) in enumerate(spans) if "B" in SAID[low:high]]
    row = measured[1][0]
    assert row["parts"]["letter"] == row["by_token"][at]
    first = np.mean(row["by_token"][:3], 0).tolist()
    assert row["parts"]["first"] == pytest.approx(first, abs=1e-4)


def test_attention_on_other_words_is_refused(measured):
    model, processor, asked, said, *where = measured[0]
    attention.measure(model, None, asked, said, *where)  # nothing is left to do
    other = [said["own"][0] | {"completion": "<think>No.</think>"}, *said["own"][1:]]
    with pytest.raises(ValueError, match=r"other settings: said \("):
        attention.measure(model, processor, asked, {"own": other}, *where)


@pytest.fixture
def run(tmp_path):
    for method in ("base", "sft", "grpo"):
        rows = [{"id": f"L1/{x}", "video_map": [[[0.1]]]} for x in "abc"]
        if method == "sft":
            rows[2] = {"id": "L1/c", "left_out": "the completion is empty"}
        path = tables.attention_file(tmp_path, method, tables.OWN)
        records.write_jsonl(path, rows)
    return tmp_path


def test_the_example_is_chosen_by_rule(run):
    rows = attended.read_rows(run, "own")
    assert [{*own} for own in rows.values()] == [{"L1/a", "L1/b"}] * 3
    with pytest.raises(FileNotFoundError, match=r"attention_base\.on_sft"):
        attended.read_rows(run, "sft")
    for right_of_base, chosen in (((), "L1/b"), (("L1/b",), "L1/a")):
        right = {"base": right_of_base, "sft": (), "grpo": ("L1/b",)}
        said = {
            name: {key: {"correct": key in keys} for key in ("L1/a", "L1/b")}
            for name, keys in right.items()
        }
        assert attended.example(rows, said) == chosen
