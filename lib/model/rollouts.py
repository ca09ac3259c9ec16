"""Rollouts of a group: one prefill of the prompt, G completions side by side behind it.

The completions grow behind the one cache, each new token seeing the prompt and the
earlier tokens of its own completion; a finished group leaves the batch.

    groups = draw(model, with_features(model, prompts), 8, decoding)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lib.model.prefix import Prompt, as_mask, base_of, check_model, picture_inputs

# isort: split
from transformers import LogitsProcessorList
from transformers.generation import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


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


def draw(
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
    """`draw` for a model that is in the state of `generating`.

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
