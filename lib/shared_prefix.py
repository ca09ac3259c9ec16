"""One prompt, G completions: the video and the prompt are encoded once.

In GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1) the G completions of a group share
their prompt, and with video the prompt is most of the tokens: 883 of them, 729 visual,
against at most 256 of a completion in SEED-Bench-R1 (arXiv 2503.24376). Here
* a frozen vision tower runs once a prompt, for rollouts, reference and update together;
* rollouts prefill a prompt once; its G completions grow side by side behind the one
  cache, each new token seeing the prompt and the earlier tokens of its own completion;
* log-probabilities of a group come from one row

      p1 .. pN-1 | pN c1 .. cR-1 | pN c'1 .. c'S-1 | ...

  in which every completion starts from its own copy of the last prompt token pN. The
  labels of a segment are exactly its completion. M-RoPE positions (Qwen2-VL, arXiv
  2409.12191, section 2.1) of every segment start at that of pN; a 4-D mask lets a
  segment see p1 .. pN-1 and itself. Several prompts are rows of one padded batch.

Example: G = 8 completions of 15 tokens behind a prompt of 170 are one row of
169 + 8 * 15 = 289 tokens; computed one by one they are 8 * 185 = 1480.
"""

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from lib import models, shards

# isort: split
from transformers import LogitsProcessorList
from transformers.generation import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

ATTENTION = ("sdpa", "eager")
MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LOGITS_AT_ONCE = 2**25  # numbers in one chunk of logits: 128 MiB in float32
KINDS = {  # kind: (pixels, grids) as the processor names them
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
SECONDS = "second_per_grid_ts"  # Qwen2.5-VL spaces a video's positions by these


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt of P tokens with its pictures.

    `ids` [P]; `positions` [3, P], M-RoPE; `pixels` as the processor gives them, keys of
    KINDS and SECONDS; `features` per kind, for each picture the vision tower's outputs,
    or None as long as it has not run: one [tokens, hidden] tensor for the input of the
    language model and, in Qwen3-VL, one for each of its first layers.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)
    features: dict[str, list[tuple[torch.Tensor, ...]]] | None = None


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: all fields are explicit, no checkpoint can add one.

    temperature 0 takes the most likely token; top_k 0 and top_p 1 keep every token. No
    token of `suppressed` is ever drawn.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    end_ids: tuple[int, ...]
    pad_id: int
    suppressed: tuple[int, ...]


def base_of(model):
    """The multimodal model inside wrappers of data parallelism and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_model(model) -> None:
    """Raise ValueError for a model whose packed rows would not be what they seem.

    The attention of the language model must take a 4-D mask, and the way positions and
    visual features enter must be one that the tests compare with the plain forward.
    """
    config = base_of(model).config
    used = config.get_text_config()._attn_implementation
    if used not in ATTENTION:
        raise ValueError(
            f"attention implementation {used!r} cannot take the 4-D mask of a shared "
            f"prefix: load the model with attn_implementation in {ATTENTION}"
        )
    if config.model_type not in MODELS:
        raise ValueError(
            f"model_type {config.model_type!r} is not supported: use one of {MODELS}"
        )


def make_prompts(model, encoded: Mapping[str, torch.Tensor]) -> list[Prompt]:
    """The Prompts of a batch of encoded conversations, padded on either side.

    `encoded` holds input_ids and attention_mask [B, L] and what the processor made of
    all pictures. Raises ValueError where a prompt ends in a picture: completions need a
    last text token to start from.
    """
    base = base_of(model)
    given = {
        name: torch.as_tensor(value).to(base.device) for name, value in encoded.items()
    }
    ids, mask = given["input_ids"], given["attention_mask"]
    kinds = models.mm_token_type_ids(ids, base.config)
    positions, _ = base.model.get_rope_index(
        ids,
        mm_token_type_ids=kinds,
        attention_mask=mask,
        **{name: given.get(name) for _, name in KINDS.values()},
        **{SECONDS: given.get(SECONDS)},
    )
    pictures = {kind: _pictures(given, kind, base) for kind in KINDS}
    prompts = []
    for row, kept in enumerate(mask.bool()):
        if kinds[row, kept][-1]:
            raise ValueError("the prompt ends with a picture; end it with text")
        pixels: dict[str, torch.Tensor] = {}
        for code, kind in enumerate(KINDS, start=1):
            tokens = int((kinds[row] == code).sum())
            pixels |= _taken(pictures[kind], tokens)
        placed = positions[:, row, kept]
        if base.config.model_type == "qwen2_vl":  # the others' clips `encode` refuses
            placed = behind_pictures(placed, kinds[row, kept])
        prompts.append(Prompt(ids[row, kept], placed, pixels))
    return prompts


def behind_pictures(positions: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """M-RoPE positions [3, L] with what follows a picture behind all of the picture.

    Qwen2-VL (arXiv 2409.12191, section 2.1) goes on one behind the largest position so
    far, and transformers did so up to 4.57. 5.23 goes on behind the longer side, which
    is the same unless a clip has more temporal patches than that: 32 frames of 252 x
    252 pixels are 16 x 9 x 9, and 7 positions would be the clip's and the text's.
    `kinds` [L] is 0 for text.
    """
    placed = positions.clone()
    ends = ((kinds[:-1] != kinds[1:]) & (kinds[:-1] != 0)).nonzero()[:, 0] + 1
    for at in ends.tolist():
        missing = placed[:, :at].max() + 1 - placed[:, at].min()
        placed[:, at:] += missing.clamp(min=0)
    return placed


def make_prompt(model, encoded: Mapping[str, torch.Tensor]) -> Prompt:
    """The Prompt of one encoded conversation (batch size 1)."""
    ids = torch.as_tensor(encoded["input_ids"])
    (prompt,) = make_prompts(model, {"attention_mask": torch.ones_like(ids), **encoded})
    return prompt


def _pictures(given: Mapping[str, torch.Tensor], kind: str, base) -> Iterator:
    """(tokens, tensors by name) of each picture of this kind, in order."""
    pixels, grid = KINDS[kind]
    if pixels not in given:
        return
    patches = given[grid].prod(-1).tolist()
    merged = base.config.vision_config.spatial_merge_size**2
    for i, part in enumerate(given[pixels].split(patches)):
        own = {pixels: part, grid: given[grid][i : i + 1]}
        if kind == "video" and SECONDS in given:
            own[SECONDS] = given[SECONDS][i : i + 1]
        yield patches[i] // merged, own


def _taken(pictures: Iterator, tokens: int) -> dict[str, torch.Tensor]:
    """The next pictures that together stand for `tokens` tokens."""
    found = []
    while tokens > 0:
        own, tensors = next(pictures)
        tokens -= own
        found.append(tensors)
    names = found[0] if found else ()
    return {name: torch.cat([own[name] for own in found]) for name in names}


def visual_tokens(model, prompt: Prompt) -> int:
    """How many of the prompt's tokens stand for pictures."""
    return int((models.mm_token_type_ids(prompt.ids, base_of(model).config) > 0).sum())


def vision_is_frozen(model) -> bool:
    """Whether no weight of the vision tower is trained."""
    visual = base_of(model).model.visual
    return not any(weight.requires_grad for weight in visual.parameters())


@torch.no_grad()
def with_features(model, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the outputs of the vision tower, run once over all of them.

    Features carry no gradient: with a trained tower they are for rollouts alone.
    """
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
        found = encoders[kind](**given, return_dict=True)
        deep = getattr(found, "deepstack_features", None) or ()
        outputs = iter(zip(found.pooler_output, *deep, strict=True))
        for i in owners:
            features[i][kind] = [next(outputs) for _ in prompts[i].pixels[grid]]
    return [
        replace(prompt, features=own)
        for prompt, own in zip(prompts, features, strict=True)
    ]


def see_once(model) -> None:
    """Let every forward pass of a network run its vision tower exactly once.

    Stills and clips go through it together, and a pass without pictures shows it a grey
    one that counts 0: the processes of lib/shards.py must call the same layers, though
    one may have a clip and another a still or neither. Passes that are given features,
    or go on behind a cache, leave the tower out.
    """
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
        idle = self.get_image_features(*grey, return_dict=True)
        output = plain(*args, **own)
        hidden = output.last_hidden_state
        nothing = 0 * sum(part.sum() for part in _tower_outputs(idle))
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
    deep = getattr(found, "deepstack_features", None) or ()
    outputs, start = {}, 0
    for kind in kinds:
        own = slice(start, start + len(grids[KINDS[kind][1]]))
        outputs[kind] = types.SimpleNamespace(
            pooler_output=found.pooler_output[own],
            deepstack_features=[layer[own] for layer in deep],
        )
        start = own.stop
    return outputs


def _tower_outputs(found) -> Iterator[torch.Tensor]:
    yield from found.pooler_output
    for layer in getattr(found, "deepstack_features", None) or ():
        yield from layer


def grey_picture(config, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and grid of the smallest picture: one merged patch, at the mean."""
    vision = config.vision_config
    side = vision.spatial_merge_size
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.zeros(side * side, values, device=device)
    return pixels, torch.tensor([[1, side, side]], device=device)


def picture_inputs(prompts: Sequence[Prompt]) -> dict:
    """Arguments of the model's forward for the pictures of a batch of prompts.

    Features where the prompts have them, otherwise pixels, which run the vision tower.
    """
    inputs: dict = {}
    outputs: dict = {}
    seen = all(prompt.features is not None for prompt in prompts)
    for kind, keys in KINDS.items():
        owners = [prompt for prompt in prompts if keys[0] in prompt.pixels]
        if not owners:
            continue
        if seen:
            parts = [part for prompt in owners for part in prompt.features[kind]]
            pooled, *deep = map(list, zip(*parts, strict=True))
            outputs[kind] = types.SimpleNamespace(
                pooler_output=pooled, deepstack_features=deep
            )
        else:
            for key in keys:
                inputs[key] = torch.cat([prompt.pixels[key] for prompt in owners])
    return {"mm_encoder_outputs": outputs} if seen else inputs


def as_mask(visible: torch.Tensor, model) -> torch.Tensor:
    """A boolean [B, 1, Q, K] mask in the form the attention takes.

    sdpa reads True as visible; eager adds the mask to the scores, so True would be +1.
    """
    base = base_of(model)
    if base.config.get_text_config()._attn_implementation == "sdpa":
        return visible
    hidden = torch.finfo(base.dtype).min
    return torch.zeros_like(visible, dtype=base.dtype).masked_fill(~visible, hidden)


# Rollouts


@contextmanager
def generating(model) -> Iterator[None]:
    """Eval mode inside, the mode from before outside.

    In train mode with gradient checkpointing on, transformers 5 drops the cache of
    every layer and generates wrong tokens without an error. In eval mode bitsandbytes
    0.50 repacks 4-bit weights for CPUs with AVX512-BF16, for good, and a later update
    gets no gradient through them: that is switched off for the time being.
    """
    was_training = model.training
    packs = "support_avx512bf16_for_cpu"
    quantized = [module for module in model.modules() if getattr(module, packs, False)]
    model.eval()
    for module in quantized:
        setattr(module, packs, False)
    try:
        yield
    finally:
        for module in quantized:
            setattr(module, packs, True)
        model.train(was_training)


def rollouts(
    model, prompts: Sequence[Prompt], count: int, decoding: Decoding
) -> list[list[list[int]]]:
    """`count` completions of every prompt: token ids, the end token included.

    A completion of `max_tokens` tokens without an end token was cut off. Randomness is
    torch's global state: the same state gives the same completions on a CPU.
    """
    with generating(model):
        return decode(model, prompts, count, decoding)


@torch.no_grad()
def decode(
    model, prompts: Sequence[Prompt], count: int, decoding: Decoding
) -> list[list[list[int]]]:
    """`rollouts` for a model that is in the state of `generating`.

    Leaves no trace in the model, so that several threads can decode with one.
    """
    check_model(model)
    drawn = _decode(base_of(model), prompts, count, decoding)
    ends = set(decoding.end_ids)
    return [[_until_end(row, ends) for row in group] for group in drawn.tolist()]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]


def _decode(base, prompts, count, decoding) -> torch.Tensor:
    """[prompts, count, length] drawn tokens, pad_id behind the end of a completion."""
    output, visible, position = _prefill(base, prompts, decoding.pad_id)
    cache = output.past_key_values
    visible = visible.expand(-1, -1, count, -1)
    own = torch.eye(count, dtype=torch.bool, device=base.device)
    ends = torch.tensor(decoding.end_ids, device=base.device)
    filters = _filters(decoding, base.device)
    logits = output.logits[:, -1:].expand(-1, count, -1)
    shape = (len(prompts), count, decoding.max_tokens)
    drawn = torch.full(shape, decoding.pad_id, device=base.device)
    done = torch.zeros(shape[:2], dtype=torch.bool, device=base.device)
    active = torch.arange(len(prompts), device=base.device)  # rows still in the batch
    for step in range(decoding.max_tokens):
        token = _draw(logits, filters, decoding)
        token = token.masked_fill(done[active], decoding.pad_id)
        drawn[active, :, step] = token
        done[active] |= torch.isin(token, ends)
        open_rows = (~done[active].all(1)).nonzero()[:, 0]
        if len(open_rows) == 0 or step == decoding.max_tokens - 1:
            break
        if len(open_rows) < len(active):  # finished groups leave the batch
            cache.batch_select_indices(open_rows)
            active, token = active[open_rows], token[open_rows]
            visible = visible[open_rows]
        # Every step adds `count` columns to the cache, one a completion, in order.
        seen = own.expand(len(active), 1, count, count)
        visible = torch.cat([visible, seen], -1)
        logits = base(
            input_ids=token,
            attention_mask=as_mask(visible, base),
            position_ids=(position[active] + step)[None, :, None].expand(3, -1, count),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return drawn[..., : step + 1]


def _prefill(base, prompts, pad_id):
    """Output of the left-padded prompts, their [B, 1, 1, P] mask, next positions."""
    lengths = [len(prompt.ids) for prompt in prompts]
    longest = max(lengths)
    ids = torch.full((len(prompts), longest), pad_id, device=base.device)
    mask = torch.zeros_like(ids)
    positions = torch.zeros((3, *ids.shape), dtype=torch.long, device=base.device)
    for row, prompt in enumerate(prompts):
        start = longest - lengths[row]
        ids[row, start:] = prompt.ids
        mask[row, start:] = 1
        positions[:, row, start:] = prompt.positions
    output = base(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **picture_inputs(prompts),
    )
    return output, mask.bool()[:, None, None], positions[0, :, -1] + 1


def _filters(decoding: Decoding, device) -> LogitsProcessorList:
    """transformers' own processors, in the order `generate` applies them."""
    filters = LogitsProcessorList()
    if decoding.suppressed:
        suppressed = list(decoding.suppressed)
        filters.append(SuppressTokensLogitsProcessor(suppressed, device=device))
    if decoding.temperature > 0:
        filters.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k > 0:
            filters.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            filters.append(TopPLogitsWarper(decoding.top_p))
    return filters


def _draw(logits: torch.Tensor, filters, decoding: Decoding) -> torch.Tensor:
    """[B, G] tokens from [B, G, V] logits."""
    scores = filters(None, logits.float().flatten(0, 1))
    if decoding.temperature == 0:
        return scores.argmax(-1).view(logits.shape[:2])
    probabilities = scores.softmax(-1)
    return torch.multinomial(probabilities, 1).view(logits.shape[:2])


# Log-probabilities


def add_scoring(model, temperature: float = 1.0) -> None:
    """Let `model(..., completion_labels=[B, L])` return (logps, entropies).

    Both are [N] in float32 or wider, one number for every label that is not -100, row
    after row; the label at a position is the token predicted there. Only these
    positions meet the vocabulary, in chunks. The forward is extended, not bypassed, so
    that data parallelism and adapters see an ordinary call.
    """
    base = base_of(model)
    plain = base.forward

    @functools.wraps(type(base).forward)
    def forward(self, *args, completion_labels=None, pieces=0, **kwargs):
        if completion_labels is None:
            return plain(*args, **kwargs)
        hidden = self.model(*args, use_cache=False, **kwargs).last_hidden_state
        kept = completion_labels != -100
        head = self.get_output_embeddings()
        return score(hidden[kept], head, completion_labels[kept], temperature, pieces)

    base.forward = types.MethodType(forward, base)


def score(
    hidden: torch.Tensor,
    head,
    labels: torch.Tensor,
    temperature: float = 1.0,
    pieces: int = 0,
):
    """Log-probability of each label and entropy at its position, both [N].

    `hidden` [N, hidden size], `head` the output layer. Logits exist for one piece of
    the N at a time, in the forward and, computed again, in the backward pass; `pieces`
    is their number, 0 for as few as LOGITS_AT_ONCE allows. Entropies carry no gradient.
    """
    pieces = pieces or logits_pieces(len(labels), head)
    if pieces == 1:
        return _score_chunk(hidden, head, labels, temperature)
    parts = [
        checkpoint(_score_chunk, part, head, own, temperature, use_reentrant=False)
        for part, own in zip(
            hidden.tensor_split(pieces), labels.tensor_split(pieces), strict=True
        )
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def logits_pieces(labels: int, head) -> int:
    """In how many pieces the output layer takes so many labels."""
    return max(1, -(-labels // max(1, LOGITS_AT_ONCE // head.out_features)))


def _score_chunk(hidden, head, labels, temperature):
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logps = logits.log_softmax(-1)
    with torch.no_grad():
        entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, labels[:, None])[:, 0], entropies


@dataclass(frozen=True)
class Row:
    """A prompt with completions packed behind it; see the module's docstring."""

    prompt: Prompt
    completions: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens of the row: P - 1 and the completions."""
        return len(self.prompt.ids) - 1 + self.scored

    @property
    def scored(self) -> int:
        """Tokens of the completions."""
        return sum(len(completion) for completion in self.completions)

    def ids(self) -> torch.Tensor:
        last = self.prompt.ids[-1:]
        segments = [part for c in self.completions for part in (last, c[:-1])]
        return torch.cat([self.prompt.ids[:-1], *segments])

    def labels(self) -> torch.Tensor:
        unscored = self.prompt.ids.new_full((len(self.prompt.ids) - 1,), -100)
        return torch.cat([unscored, *self.completions])

    def positions(self) -> torch.Tensor:
        """[3, length]: every segment goes on from the position of the prompt's end."""
        last = self.prompt.positions[:, -1:]
        runs = [
            last + torch.arange(len(c), device=last.device) for c in self.completions
        ]
        return torch.cat([self.prompt.positions[:, :-1], *runs], 1)

    def segments(self) -> torch.Tensor:
        """[length]: 0 in the prompt, i in the i-th completion."""
        lengths = [len(self.prompt.ids) - 1, *map(len, self.completions)]
        counts = torch.tensor(lengths, device=self.prompt.ids.device)
        return torch.repeat_interleave(counts)


def make_rows(
    prompt: Prompt, completions: Sequence[torch.Tensor], pack_tokens: int
) -> list[Row]:
    """A group as one row, or as several where it exceeds `pack_tokens` tokens.

    Raises ValueError where even one completion does not fit behind the prompt.
    """
    rows: list[Row] = []
    for completion in completions:
        alone = Row(prompt, (completion,))
        if alone.length > pack_tokens:
            raise ValueError(
                f"pack_tokens is {pack_tokens}, but one prompt and completion already "
                f"take {alone.length} tokens: raise pack_tokens"
            )
        if rows and rows[-1].length + len(completion) <= pack_tokens:
            rows[-1] = Row(prompt, (*rows[-1].completions, completion))
        else:
            rows.append(alone)
    return rows


def make_packs(rows: Sequence[Row], pack_tokens: int) -> list[list[Row]]:
    """Rows in their order, batched so that no padded batch exceeds `pack_tokens`."""
    packs: list[list[Row]] = []
    for row in rows:
        longest = max(other.length for other in [*(packs[-1] if packs else []), row])
        if packs and longest * (len(packs[-1]) + 1) <= pack_tokens:
            packs[-1].append(row)
        else:
            packs.append([row])
    return packs


def completion_scores(
    model,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[torch.Tensor]],
    pack_tokens: int = 16384,
) -> tuple[list[torch.Tensor], ...]:
    """Log-probabilities and entropies of every token of every completion, and what else
    the model's scoring gives.

    `completions[i]` are those of `prompts[i]`, each a tensor of token ids [R > 0]. The
    result holds one [R] tensor a completion, in the same order, prompt after prompt.
    `pack_tokens` bounds the tokens, padding included, of one forward pass: a group that
    is larger is split and its prompt encoded once a part, with the same gradients.

    Call `add_scoring` on the model first. Raises ValueError for an attention
    implementation that takes no 4-D mask.
    """
    check_model(model)
    groups = zip(prompts, completions, strict=True)
    rows = [row for own in groups for row in make_rows(*own, pack_tokens)]
    packs = make_packs(rows, pack_tokens)
    pieces = [0] * len(packs)
    if shards.is_split(model):
        pieces = agreed_pieces(model, packs)
    scores = []
    for pack, count in zip(packs, pieces, strict=False):
        lengths = [len(completion) for row in pack for completion in row.completions]
        found = model(**pack_inputs(model, pack), pieces=count)
        scores.append([values.split(lengths) for values in found])
    logps, *more = [list(chain(*own)) for own in zip(*scores, strict=True)]
    for count in pieces[len(packs) :]:  # other processes have more packs
        idle, *_ = model(**pack_inputs(model, [idle_row(prompts[0])]), pieces=count)
        logps[0] = logps[0] + 0 * idle.sum()
    return logps, *more


def agreed_pieces(model, packs: Sequence[Sequence[Row]]) -> list[int]:
    """For every pack of the process with most of them, the most pieces of any."""
    base = base_of(model)
    head = base.get_output_embeddings()
    scored = [sum(row.scored for row in pack) for pack in packs]
    return shards.agreed([logits_pieces(n, head) for n in scored], base.device)


def idle_row(prompt: Prompt) -> Row:
    """The prompt's last token, twice: for a forward pass whose result counts 0."""
    last = replace(
        prompt,
        ids=prompt.ids[-1:],
        positions=prompt.positions[:, -1:],
        pixels={},
        features=prompt.features and {},
    )
    return Row(last, (last.ids,))


def pack_inputs(model, rows: Sequence[Row]) -> dict:
    """Arguments of the scoring forward for right-padded rows, L tokens the longest.

    input_ids and completion_labels [B, L], position_ids [3, B, L], attention_mask
    [B, 1, L, L], and the pictures. Padding sees the prompt, so no softmax is empty, and
    nothing sees padding.
    """
    ids = pad_sequence([row.ids() for row in rows], True, 0)
    labels = pad_sequence([row.labels() for row in rows], True, -100)
    positions = pad_sequence([row.positions().T for row in rows], True, 0)
    segments = pad_sequence([row.segments() for row in rows], True, -1)
    order = torch.arange(ids.shape[1], device=ids.device)
    causal = order[:, None] >= order
    same = segments[:, :, None] == segments[:, None]
    visible = causal & ((segments[:, None] == 0) | same)
    return {
        "input_ids": ids,
        "completion_labels": labels,
        "position_ids": positions.permute(2, 0, 1),
        "attention_mask": as_mask(visible[:, None], model),
        **picture_inputs([row.prompt for row in rows]),
    }


# The plain way, to compare with


@torch.no_grad()
def plain_scores(model, prompt: Prompt, completion: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [R] of one completion: video and prompt encoded for it alone.

    What a stock trainer computes for every completion of a group. Temperature 1.
    """
    base = base_of(model)
    ids = torch.cat([prompt.ids, completion])[None]
    kinds = models.mm_token_type_ids(ids, base.config)
    given = {"mm_token_type_ids": kinds} if prompt.pixels else {}
    logits = base(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_to_keep=len(completion) + 1,
        **prompt.pixels,
        **given,
    ).logits[0, :-1]
    return logits.float().log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def greyed_out(prompt: Prompt) -> Prompt:
    """The prompt with every pixel of its pictures at the processor's mean (grey)."""
    pixels = {
        key: torch.zeros_like(value) if key.startswith("pixel") else value
        for key, value in prompt.pixels.items()
    }
    return replace(prompt, pixels=pixels, features=None)
