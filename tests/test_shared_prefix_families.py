"""Over random shapes and model families: one packed row equals the plain repetition.

Qwen2-VL, Qwen2.5-VL (windows in the vision tower, video positions spaced by seconds)
and Qwen3-VL (timestamps between frames, visual features into several layers), each as
a random model in float64 (norms and positions stay float32 in transformers, which is
why equality is asked to 1e-6), with pictures as its own processor gives them."""

import numpy as np
import pytest
import torch

from lib.data.prompts import messages
from lib.data.video import Clip
from lib.model import encoding, prefix, rollouts
from lib.model.prefix import make_prompt
from lib.model.scoring import add_scoring, completion_scores
from lib.run.model_check import mrope_positions
from tests.test_rollouts import generated
from tests.test_shared_prefix import (
    decoding,
    gradients,
    plain_scores,
    relative,
    worst,
)

# isort: split
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

TEXT = {
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
LATER = {"hidden_size": 32, "out_hidden_size": 64, "num_heads": 2}
LATER["intermediate_size"] = 48
FAMILIES = {  # what differs: vision tower, processors, and how large a patch is
    "qwen2_vl": (
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        (Qwen2VLProcessor, Qwen2VLVideoProcessor, 14),
    ),
    "qwen2_5_vl": (
        {**LATER, "depth": 2, "window_size": 56, "fullatt_block_indexes": [1]},
        (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14),
    ),
    "qwen3_vl": (
        {**LATER, "depth": 3, "num_position_embeddings": 64}
        | {"deepstack_visual_indexes": [0, 1]},
        (Qwen3VLProcessor, Qwen3VLVideoProcessor, 16),
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def reader(processor, family):
    """The processor of the family, with the words of the tiny checkpoint."""
    kind, films, patch = FAMILIES[family][1]
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 64 * (2 * patch) ** 2}
    stills = Qwen2VLImageProcessor(size=size, patch_size=patch)
    films = films(size=size, patch_size=patch)
    films.cap_pixels_per_frame = False
    words = processor.tokenizer
    return kind(stills, words, films, chat_template=processor.chat_template)


@pytest.fixture
def model(processor, family):
    torch.manual_seed(0)
    number = processor.tokenizer.convert_tokens_to_ids
    ids = {f"{name}_token_id": number(f"<|{name}_pad|>") for name in ("image", "video")}
    for name in ("vision_start", "vision_end"):
        ids[f"{name}_token_id"] = number(f"<|{name}|>")
    own = {"head_dim": 16} if family == "qwen3_vl" else {}
    config = AutoConfig.for_model(
        family,
        text_config={**TEXT, **own, "vocab_size": len(processor.tokenizer)},
        vision_config=FAMILIES[family][0],
        **ids,
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # the default 0.02 hardly lets pixels reach the logits
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model.double().eval()


def encoded(reader, rng, text, frames=0, seconds=1, still=True, size=(3, 2)):
    """What a processor gives for a prompt with a clip of so many frames, 4 a second,
    and a still, either or neither; `size` in merged patches."""
    side, clip = 2 * reader.video_processor.patch_size, None
    pixels = [*(side * n for n in size), 3]
    if frames:
        length = 4 * seconds
        chosen = np.linspace(0, length - 1, frames).round().astype(int).tolist()
        film = {"total_num_frames": length, "fps": 4.0, "frames_indices": chosen}
        drawn = rng.integers(0, 256, (frames, *pixels), dtype=np.uint8)
        clip = Clip.of(drawn, film)
    shown = rng.integers(0, 256, pixels, dtype=np.uint8) if still else None
    found = encoding.encode(reader, [messages(text, clip, shown)])
    numbers = (name for name in found if name.startswith("pixel"))
    return found | {name: found[name].double() for name in numbers}


def random_batch(reader, seed):
    """Encoded prompts of random kinds and lengths, and a group behind each."""
    rng = np.random.default_rng(seed)
    first, inputs = int(rng.integers(4)), []
    for i in range(3):
        clip, still = divmod((first + i) % 4, 2)
        frames = 2 * int(rng.integers(1, 4)) * clip
        seconds = int(rng.integers(2, 6))
        size = rng.integers(1, 4, 2).tolist()
        text = "cut the onion " * int(rng.integers(1, 4))
        inputs.append(encoded(reader, rng, text, frames, seconds, bool(still), size))

    def completion():
        words = rng.integers(10, 200, rng.integers(1, 10))  # no special ones
        return torch.from_numpy(words)

    return inputs, [[completion() for _ in range(rng.integers(1, 6))] for _ in inputs]


def placed_scores(model, inputs, completion, temperature):
    """By one ordinary forward at the positions of the published formula."""
    ids = torch.cat([inputs["input_ids"], completion[None]], 1)
    placed = mrope_positions({**inputs, "input_ids": ids}, model.config)[:, None]
    return plain_scores(model, inputs, completion, temperature, position_ids=placed)


def grpo_like_loss(logps, seed):
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


@pytest.mark.parametrize(("seed", "temperature"), [(0, 1.0), (1, 0.5)])
def test_scores_loss_and_gradients_equal_the_repetition(
    model, reader, seed, temperature
):
    inputs, groups = random_batch(reader, seed)
    prompts = [make_prompt(model, one) for one in inputs]
    scores = [
        placed_scores(model, one, completion, temperature)
        for one, group in zip(inputs, groups, strict=True)
        for completion in group
    ]
    expected, entropies = zip(*scores, strict=True)
    loss = grpo_like_loss(expected, seed)
    wanted = gradients(model, loss)
    add_scoring(model, temperature)
    met = []  # positions that the vocabulary meets
    model.lm_head.register_forward_hook(lambda *call: met.append(len(call[-1])))
    runs = []
    hook = model.model.visual.register_forward_hook(lambda *args: runs.append(1))
    with torch.no_grad():
        seen = prefix.with_features(model, prompts)
        before = len(runs)
        cached, found = completion_scores(model, seen, groups)
    hook.remove()
    assert len(runs) == before > 0
    assert met == [sum(map(len, cached))] and worst(found, entropies) < 1e-6
    longest = max(len(prompt.ids) for prompt in prompts) - 1 + 9
    for pack_tokens, bound in ((16384, 1e-12), (longest, 1e-6)):  # whole, and split
        logps, _ = completion_scores(model, prompts, groups, pack_tokens)
        assert worst(logps, expected) < 1e-6 and worst(logps, cached) < bound
        packed = grpo_like_loss(logps, seed)
        assert packed.item() == pytest.approx(loss.item(), rel=1e-6)
        found = gradients(model, packed)
        assert relative(found, wanted) < 1e-6


def test_clips_are_placed_by_the_models_rule(model, family, reader):
    """By its own get_rope_index, but for text that would stand among the frames: in a
    clip of more of them than rows and columns, or of six seconds in place of one."""
    rng, shapes = np.random.default_rng(0), ((4, 1, False), (6, 6, False, (2, 1)))
    clips = [encoded(reader, rng, "cut", *own) for own in shapes]
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
    # 3 temporal patches on 2 x 1; in Qwen2.5-VL 2 s apart, 4 positions a second: to 16.
    moved = {"qwen2_vl": 1, "qwen2_5_vl": 15, "qwen3_vl": 0}[family]
    assert (long.positions - library[1]).max() == moved


@pytest.mark.parametrize("seed", range(2))
def test_greedy_rollouts_equal_generate(model, reader, seed):
    inputs, _ = random_batch(reader, seed)
    drawn = decoding(model, max_tokens=8, end_ids=(7,), pad_id=0)
    expected = []
    for one in inputs:
        placed = mrope_positions(one, model.config)
        flat = torch.arange(placed.shape[1])[None]
        own = one | {"position_ids": torch.cat([flat, placed])[:, None]}
        expected += generated(model, [own], drawn, eos_token_id=7, pad_token_id=0)
    prompts = [make_prompt(model, one) for one in inputs]
    for own in (prompts, prefix.with_features(model, prompts)):
        groups = rollouts.draw(model, own, 3, drawn)
        assert groups == [[row] * 3 for row in expected]


@pytest.mark.parametrize("seed", range(2))
def test_seeing_once_changes_no_score_and_no_gradient(model, reader, seed):
    """Stills and clips together; and one pass of the tower even without pictures."""
    inputs, groups = random_batch(reader, seed)
    prompts = [make_prompt(model, one) for one in inputs]
    assert any(prompt.pixels for prompt in prompts)
    words = torch.tensor([[5, 6, 7]])
    bare = make_prompt(model, {"input_ids": words})
    cases = [(prompts, groups), ([bare], [[torch.tensor([8, 9])]])]
    add_scoring(model)

    def found(prompts, groups):
        logps, _ = completion_scores(model, prompts, groups)
        loss = grpo_like_loss(logps, seed)
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
            assert relative(own_grads, grads) < 1e-6
    hook.remove()
