"""Over random shapes and model families: one packed row equals the plain repetition.

Qwen2-VL, Qwen2.5-VL (windows in the vision tower, video positions spaced by seconds)
and Qwen3-VL (timestamps between frames, visual features into several layers), each as
a random model in float64 (norms and positions stay float32 in transformers, which is
why equality is asked to 1e-6), with prompts built token by token."""

import numpy as np
import pytest
import torch

from lib.data.prompts import messages
from lib.data.video import Clip
from lib.model import encoding, prefix, rollouts
from lib.model.prefix import make_prompt
from lib.model.rollouts import Decoding
from lib.model.scoring import add_scoring, completion_scores
from lib.run.model_check import mrope_positions

# isort: split
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

START, STOP, IMAGE, VIDEO = 200, 201, 202, 203  # of a picture; its tokens
WORDS = 190  # ids below are words
TEXT = {
    "vocab_size": 210,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 3, 3],
    },
}
FAMILIES = {  # what differs: the vision tower, and how large a patch is
    "qwen2_vl": (
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        14,
    ),
    "qwen2_5_vl": (
        {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 48,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        14,
    ),
    "qwen3_vl": (
        {
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 48,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        16,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        text_config={**TEXT, **({"head_dim": 16} if family == "qwen3_vl" else {})},
        vision_config=FAMILIES[family][0],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=STOP,
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # the default 0.02 hardly lets pixels reach the logits
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model.double().eval()


def words(rng, least, most):
    return rng.integers(1, WORDS, rng.integers(least, most + 1)).tolist()


def picture(rng, family, kind):
    """(tokens, pixels) of an image or a video of random size."""
    frames = 1 if kind == "image" else int(rng.integers(1, 4))
    rows, columns = (2 * int(n) for n in rng.integers(3, 5, 2))
    token = IMAGE if kind == "image" else VIDEO
    frame = [START, *[token] * (rows * columns // 4), STOP]
    if kind == "video" and family == "qwen3_vl":
        tokens = [t for _ in range(frames) for t in [*words(rng, 2, 2), *frame]]
    else:
        tokens = [START, *frame[1:-1] * frames, STOP]
    pixels, grid = prefix.KINDS[kind]
    values = rng.normal(size=(frames * rows * columns, 6 * FAMILIES[family][1] ** 2))
    found = {pixels: torch.from_numpy(values), grid: [[frames, rows, columns]]}
    if kind == "video" and family == "qwen2_5_vl":
        found[prefix.SECONDS] = [float(rng.choice([0.5, 1.0, 2.5]))]
    return tokens, found


def encoded(rng, family, kinds):
    """What a processor would give for a prompt with these pictures."""
    ids, inputs = words(rng, 1, 4), {}
    for kind in kinds:
        tokens, pixels = picture(rng, family, kind)
        ids += tokens + words(rng, 1, 3)
        inputs |= {name: torch.as_tensor(value) for name, value in pixels.items()}
    return {"input_ids": torch.tensor([ids + words(rng, 1, 5)]), **inputs}


def random_batch(family, seed):
    """Encoded prompts of random kinds and lengths, and a group behind each."""
    rng = np.random.default_rng(seed)
    kinds = [("video", "image"), ("video",), ("image",), ()]
    first = int(rng.integers(4))
    inputs = [encoded(rng, family, kinds[(first + i) % 4]) for i in range(3)]
    groups = [
        [torch.tensor(words(rng, 1, 9)) for _ in range(rng.integers(1, 6))]
        for _ in inputs
    ]
    return inputs, groups


def plain_scores(model, inputs, completion):
    """One completion behind its own prompt: ordinary forward, full softmax."""
    ids = torch.cat([inputs["input_ids"], completion[None]], 1)
    inputs = {**inputs, "input_ids": ids}
    inputs |= {
        "position_ids": mrope_positions(inputs, model.config)[:, None],
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": encoding.mm_token_type_ids(ids, model.config),
    }
    logits = model(**inputs).logits[0, -len(completion) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def grpo_like_loss(logps, groups, seed):
    """Advantages times ratios, averaged per completion, with a KL term: GRPO's form."""
    rng = torch.Generator().manual_seed(seed)
    loss = 0.0
    for own in logps:
        advantage = torch.randn((), generator=rng, dtype=torch.double)
        reference = own.detach() + 0.1 * torch.randn(
            len(own), generator=rng, dtype=torch.double
        )
        ratio = (own - own.detach()).exp()
        gap = reference - own
        loss = loss - (ratio * advantage - 0.1 * (gap.exp() - gap - 1)).mean()
    return loss / len(logps)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat(
        [w.grad.flatten() for w in model.parameters() if w.grad is not None]
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_loss_and_gradients_equal_the_repetition(model, family, seed, attention):
    model.set_attn_implementation({"text_config": attention})
    inputs, groups = random_batch(family, seed)
    prompts = [make_prompt(model, one) for one in inputs]
    expected = [
        plain_scores(model, one, completion)
        for one, group in zip(inputs, groups, strict=True)
        for completion in group
    ]
    loss = grpo_like_loss(expected, groups, seed)
    wanted = gradients(model, loss)
    add_scoring(model)
    longest = max(len(prompt.ids) for prompt in prompts) - 1 + 9
    for pack_tokens in (16384, longest):  # whole groups, and split ones
        logps, _ = completion_scores(model, prompts, groups, pack_tokens)
        for own, other in zip(logps, expected, strict=True):
            assert (own - other).abs().max() < 1e-6
        packed = grpo_like_loss(logps, groups, seed)
        assert packed.item() == pytest.approx(loss.item(), rel=1e-6)
        found = gradients(model, packed)
        assert ((found - wanted).norm() / wanted.norm()).item() < 1e-6


PROCESSORS = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor, 28),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 28),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor, 32),
}


@pytest.fixture
def clips(processor, family, model):
    """Encoded questions on clips of 4 and 6 frames, one second and six long;
    the model's picture tokens are the tokenizer's."""
    kind, video, side = PROCESSORS[family]
    size = {"shortest_edge": side**2, "longest_edge": 64 * side**2}
    reader = video(size=size)
    reader.cap_pixels_per_frame = False
    parts = (processor.image_processor, processor.tokenizer, reader)
    own = kind(*parts, chat_template=processor.chat_template)
    for name in ("image", "video"):
        token = processor.tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
        setattr(model.config, f"{name}_token_id", token)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    rng, talks = np.random.default_rng(0), []
    for frames, length in ((4, 4), (6, 24)):
        chosen = np.linspace(0, length - 1, frames).round().astype(int).tolist()
        film = {"total_num_frames": length, "fps": 4.0, "frames_indices": chosen}
        pixels = rng.integers(0, 256, (frames, 3 * side, 2 * side, 3), dtype=np.uint8)
        talks.append(messages("cut the onion", Clip.of(pixels, film), None))
    found = [encoding.encode(own, [talk]) for talk in talks]
    pixels = prefix.KINDS["video"][0]
    return [{**one, pixels: one[pixels].double()} for one in found]


def test_clips_are_placed_by_the_models_rule_and_scored_alike(model, family, clips):
    """By its own get_rope_index, but for text that would stand among the frames."""
    short, long = (make_prompt(model, one) for one in clips)
    for prompt, one in zip((short, long), clips, strict=True):
        assert torch.equal(prompt.positions, mrope_positions(one, model.config))
    library = [
        model.model.get_rope_index(
            one["input_ids"],
            mm_token_type_ids=one["mm_token_type_ids"],
            video_grid_thw=one["video_grid_thw"],
            second_per_grid_ts=one.get(prefix.SECONDS),
        )[0][:, 0]
        for one in clips
    ]
    assert torch.equal(short.positions, library[0])
    # 3 temporal patches, 2 s apart and 4 positions a second, on 3 x 2: up to 16.
    moved = long.positions - library[1]
    assert moved.max() == (14 if family == "qwen2_5_vl" else 0)
    answers = [[torch.tensor([5, 6, 7]), torch.tensor([8, 9])]] * 2
    expected = [
        plain_scores(model, one, answer)
        for one, own in zip(clips, answers, strict=True)
        for answer in own
    ]
    add_scoring(model)
    found, _ = completion_scores(model, [short, long], answers)
    for own, other in zip(found, expected, strict=True):
        assert (own - other).abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(2))
def test_outputs_of_the_vision_tower_are_the_same_ones(model, family, seed):
    inputs, groups = random_batch(family, seed)
    prompts = [make_prompt(model, one) for one in inputs]
    add_scoring(model)
    runs = []
    hook = model.model.visual.register_forward_hook(lambda *args: runs.append(1))
    with torch.no_grad():
        plain, _ = completion_scores(model, prompts, groups)
        seen = prefix.with_features(model, prompts)
        before = len(runs)
        cached, _ = completion_scores(model, seen, groups)
    hook.remove()
    assert len(runs) == before > 0
    for own, other in zip(plain, cached, strict=True):
        assert (own - other).abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(2))
def test_greedy_rollouts_equal_generate(model, family, seed):
    inputs, _ = random_batch(family, seed)
    drawn = Decoding(
        max_tokens=8,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        end_ids=(7,),
        pad_id=0,
        suppressed=(START, STOP, IMAGE, VIDEO),
    )
    expected = []
    for one in inputs:
        placed = mrope_positions(one, model.config)
        flat = torch.arange(placed.shape[1])[None]
        ids = model.generate(
            **one,
            position_ids=torch.cat([flat, placed])[:, None],
            attention_mask=torch.ones_like(one["input_ids"]),
            mm_token_type_ids=encoding.mm_token_type_ids(
                one["input_ids"], model.config
            ),
            do_sample=False,
            max_new_tokens=drawn.max_tokens,
            suppress_tokens=list(drawn.suppressed),
            eos_token_id=7,
            pad_token_id=0,
        )[0, one["input_ids"].shape[1] :]
        expected.append(ids.tolist())
    prompts = [make_prompt(model, one) for one in inputs]
    for own in (prompts, prefix.with_features(model, prompts)):
        groups = rollouts.draw(model, own, 3, drawn)
        assert groups == [[row] * 3 for row in expected]


@pytest.mark.parametrize("seed", range(2))
def test_seeing_once_changes_no_score_and_no_gradient(model, family, seed):
    """Stills and clips together; and one pass of the tower even without pictures."""
    inputs, groups = random_batch(family, seed)
    prompts = [make_prompt(model, one) for one in inputs]
    assert any(prompt.pixels for prompt in prompts)
    words = torch.tensor([[5, 6, 7]])
    bare = make_prompt(model, {"input_ids": words})
    cases = [(prompts, groups), ([bare], [[torch.tensor([8, 9])]])]
    add_scoring(model)

    def found(prompts, groups):
        logps, _ = completion_scores(model, prompts, groups)
        loss = grpo_like_loss(logps, groups, seed)
        return torch.cat([own.detach() for own in logps]), gradients(model, loss)

    expected = [found(*case) for case in cases]
    prefix.see_once(model)
    runs = []
    hook = model.model.visual.register_forward_hook(lambda *args: runs.append(1))
    for case, (logps, grads) in zip(cases, expected, strict=True):
        runs.clear()
        own, own_grads = found(*case)
        assert len(runs) == 1
        assert (own - logps).abs().max() < 1e-6
        # Without pictures a tower that never ran has no gradient; now it has zeros.
        assert own_grads.norm().item() == pytest.approx(grads.norm().item(), rel=1e-6)
        if len(own_grads) == len(grads):
            assert ((own_grads - grads).norm() / grads.norm()).item() < 1e-6
    hook.remove()
