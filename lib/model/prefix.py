"""A prompt that a group shares: its tokens, positions and pictures, encoded once.

In GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1) the G completions of a group share
their prompt, and with video the prompt is most of the tokens: 883 of them, 729 visual,
against at most 256 of a completion in SEED-Bench-R1 (arXiv 2503.24376). A frozen vision
tower runs once a prompt, for rollouts (rollouts.py), reference and update (scoring.py).

    prompt = make_prompt(model, encode(processor, [conversation]))
    (seen,) = with_features(model, [prompt])
"""

import functools
import itertools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from lib.model.encoding import mm_token_type_ids

MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
KINDS = {  # kind: (pixels, grids) as the processor names them
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
SECONDS = "second_per_grid_ts"  # Qwen2.5-VL spaces a video's positions by these


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt of P tokens with its pictures. `ids` [P]; `positions` [3, P],
    M-RoPE; `pixels` as the processor gives them, keys of KINDS and SECONDS; `features`
    per kind, for each picture the vision tower's outputs, or None as long as it has not
    run: one [tokens, hidden] tensor for the input of the language model and, in
    Qwen3-VL, one for each of its first layers."""

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)
    features: dict[str, list[tuple[torch.Tensor, ...]]] | None = None

    def seen(self, device) -> "Prompt":
        """A prompt that has features on another device, without its pixels."""
        features = {
            kind: [tuple(part.to(device) for part in parts) for parts in pictures]
            for kind, pictures in self.features.items()
        }
        return Prompt(self.ids.to(device), self.positions.to(device), {}, features)


def base_of(model):
    """The multimodal model inside wrappers of data parallelism and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _FromPosition(torch.nn.Module):
    """A part of a network from one position on, with zeros before it."""

    def __init__(self, part, start: int):
        super().__init__()
        self.part, self.start = part, start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.part(x[:, self.start :])
        return functional.pad(made, (0, 0, x.shape[1] - made.shape[1], 0))


def ending(base, start: int):
    """A view of `base` for a pass whose positions before `start` (below 0: from the
    end) nobody reads: there the MLP of the last layer, most of its work, is left out.
    All parts are shared with the base, which stays as it is."""
    path = ["model", "language_model", "layers"]
    last = str(len(base.model.language_model.layers) - 1)

    def view(module, path: list[str]):
        if not path:
            return _FromPosition(module, start)
        part = view(module.get_submodule(path[0]), path[1:])
        own = object.__new__(type(module))  # FSDP2's would be initialized, by copy()
        parts = {**module._modules, path[0]: part}
        own.__dict__.update(module.__dict__ | {"_modules": parts})
        return own

    return view(base, [*path, last, "mlp"])


def check_model(model) -> None:
    """ValueError for a model whose packed rows would not be what they seem: tests must
    have compared its positions and pictures, and its attention must read the mask."""
    config = base_of(model).config
    if config.model_type not in MODELS:
        what = f"model_type {config.model_type!r} is not supported"
        raise ValueError(f"{what}: use one of {MODELS}")
    text = config.get_text_config()
    if (used := text._attn_implementation) != "sdpa":
        what = f"attention {used!r} cannot take the mask of a shared prefix"
        raise ValueError(f"{what}: load the model with attn_implementation = 'sdpa'")
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ValueError(
            "layers with a sliding window are not supported: set use_sliding_window = "
            "false in config.json where clip and text are shorter than the window"
        )


def make_prompt(model, encoded: Mapping[str, torch.Tensor]) -> Prompt:
    """The Prompt of one encoded conversation, `input_ids` [1, P] with its pictures.
    ValueError where it ends in a picture: completions start from a text token."""
    base = base_of(model)
    given = {k: torch.as_tensor(own).to(base.device) for k, own in encoded.items()}
    ids = given["input_ids"]
    if mm_token_type_ids(ids, base.config)[0, -1]:
        raise ValueError("the prompt ends with a picture; end it with text")
    placed = positions(model, {**given, "attention_mask": torch.ones_like(ids)})
    names = (*itertools.chain(*KINDS.values()), SECONDS)
    pixels = {name: given[name] for name in names if name in given}
    return Prompt(ids[0], placed[:, 0], pixels)


def positions(model, encoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """M-RoPE positions [3, B, L] of encoded conversations, padded on either side:
    the model's own, but for `behind_pictures`."""
    base = base_of(model)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    kinds = mm_token_type_ids(ids, base.config)
    placed, _ = base.model.get_rope_index(
        ids,
        mm_token_type_ids=kinds,
        attention_mask=mask,
        **{name: encoded.get(name) for _, name in KINDS.values()},
        **{SECONDS: encoded.get(SECONDS)},
    )
    for row, kept in enumerate(mask.bool()):
        own = behind_pictures(placed[:, row, kept], kinds[row, kept])
        placed[:, row, kept] = own
    return placed


def behind_pictures(positions: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """M-RoPE positions [3, L] with what follows a picture behind all of the picture.

    Qwen2-VL (arXiv 2409.12191, section 2.1) and Qwen2.5-VL go on one behind the largest
    position so far, and transformers did up to 4.57. 5.23 goes on behind the longer
    side, which is the same unless a clip lasts longer than that: 32 frames of 252 x 252
    pixels are 16 x 9 x 9, and 7 positions would be the clip's and the text's; in
    Qwen2.5-VL 16 frames, 2 a second, already reach to 14. `kinds` [L] is 0 for text."""
    placed = positions.clone()
    ends = ((kinds[:-1] != kinds[1:]) & (kinds[:-1] != 0)).nonzero()[:, 0] + 1
    for at in ends.tolist():
        missing = placed[:, :at].max() + 1 - placed[:, at].min()
        placed[:, at:] += missing.clamp(min=0)
    return placed


def visual_tokens(model, prompt: Prompt) -> int:
    """How many of the prompt's tokens stand for pictures."""
    return int((mm_token_type_ids(prompt.ids, base_of(model).config) > 0).sum())


def vision_is_frozen(model) -> bool:
    """Whether no weight of the vision tower is trained."""
    visual = base_of(model).model.visual
    return not any(weight.requires_grad for weight in visual.parameters())


@torch.no_grad()
def with_features(model, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the outputs of the vision tower, run once over all of them.
    Features carry no gradient: with a trained tower they are for rollouts alone."""
    inner = base_of(model).model
    encoders = {"image": inner.get_image_features, "video": inner.get_video_features}
    features: list[dict] = [{} for _ in prompts]
    for kind, (pixels, grid) in KINDS.items():
        owners = [i for i, prompt in enumerate(prompts) if pixels in prompt.pixels]
        if not owners:
            continue
        given = {
            key: torch.cat([prompts[i].pixels[key] for i in owners])
            for key in (pixels, grid)
        }
        outputs = _pictures_of(encoders[kind](**given, return_dict=True))
        for i in owners:
            features[i][kind] = [next(outputs) for _ in prompts[i].pixels[grid]]
    return [
        replace(prompt, features=own)
        for prompt, own in zip(prompts, features, strict=True)
    ]


def _pictures_of(found) -> Iterator[tuple[torch.Tensor, ...]]:
    """What the vision tower has found for each picture, as in `Prompt.features`."""
    deep = getattr(found, "deepstack_features", None) or ()
    return zip(found.pooler_output, *deep, strict=True)


def _as_found(pictures: Sequence[tuple[torch.Tensor, ...]]) -> types.SimpleNamespace:
    """The same in the form that the model takes from its vision tower."""
    pooled, *deep = map(list, zip(*pictures, strict=True))
    return types.SimpleNamespace(pooler_output=pooled, deepstack_features=deep)


def see_once(model) -> None:
    """Let every forward pass of a network run its vision tower exactly once. Stills and
    clips go through it together, and a pass without pictures shows it a grey one that
    counts 0: the processes of lib/model/shards.py must call the same layers. Passes
    that are given features, or go on behind a cache, leave the tower out."""
    inner = base_of(model).model
    plain = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(self, *args, mm_encoder_outputs=None, past_key_values=None, **kwargs):
        pixels = {key: kwargs.pop(key, None) for key, _ in KINDS.values()}
        own = {"past_key_values": past_key_values, **kwargs}
        if mm_encoder_outputs is not None or past_key_values is not None:
            return plain(*args, mm_encoder_outputs=mm_encoder_outputs, **own)
        seen = [kind for kind, (key, _) in KINDS.items() if pixels[key] is not None]
        if seen:
            outputs = _seen_together(self, seen, pixels, kwargs)
            return plain(*args, mm_encoder_outputs=outputs, **own)
        grey = grey_picture(self.config, kwargs["input_ids"].device)
        idle = _pictures_of(self.get_image_features(*grey, return_dict=True))
        output = plain(*args, **own)
        hidden = output.last_hidden_state
        nothing = 0 * sum(part.sum() for part in itertools.chain(*idle))
        output.last_hidden_state = hidden + nothing.to(hidden.dtype)
        return output

    inner.forward = types.MethodType(forward, inner)


def _seen_together(inner, kinds: list[str], pixels: Mapping, grids: Mapping) -> dict:
    """The vision tower's outputs of each kind, from one pass over all of them."""
    found = inner.get_image_features(
        torch.cat([pixels[KINDS[kind][0]] for kind in kinds]),
        torch.cat([grids[KINDS[kind][1]] for kind in kinds]),
        return_dict=True,
    )
    pictures = _pictures_of(found)
    counts = {kind: len(grids[KINDS[kind][1]]) for kind in kinds}
    return {
        kind: _as_found([next(pictures) for _ in range(count)])
        for kind, count in counts.items()
    }


def grey_picture(config, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and grid of the smallest picture: one merged patch, at the mean."""
    vision = config.vision_config
    side = vision.spatial_merge_size
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.zeros(side * side, values, device=device)
    return pixels, torch.tensor([[1, side, side]], device=device)


def picture_inputs(prompts: Sequence[Prompt]) -> dict:
    """What the forward gets of the pictures of a batch: features, else their pixels."""
    inputs: dict = {}
    outputs: dict = {}
    seen = all(prompt.features is not None for prompt in prompts)
    for kind, keys in KINDS.items():
        if seen:
            found = [prompt.features.get(kind, ()) for prompt in prompts]
            if pictures := list(itertools.chain(*found)):
                outputs[kind] = _as_found(pictures)
        elif owners := [prompt for prompt in prompts if keys[0] in prompt.pixels]:
            for key in keys:
                inputs[key] = torch.cat([prompt.pixels[key] for prompt in owners])
    return {"mm_encoder_outputs": outputs} if seen else inputs


def extended(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """The prompt with text tokens behind it: an answer that has begun."""
    more = torch.tensor(ids, dtype=torch.long, device=prompt.ids.device)
    places = prompt.positions[:, -1:] + 1 + torch.arange(len(ids), device=more.device)
    whole = torch.cat([prompt.positions, places], 1)
    return replace(prompt, ids=torch.cat([prompt.ids, more]), positions=whole)


def greyed_out(prompt: Prompt) -> Prompt:
    """The prompt with every pixel of its pictures at the processor's mean (grey)."""
    pixels = {
        key: torch.zeros_like(value) if key.startswith("pixel") else value
        for key, value in prompt.pixels.items()
    }
    return replace(prompt, pixels=pixels, features=None)
