"""Where a model looks while it writes: attention from generated to visual tokens.

SEED-Bench-R1 (arXiv 2503.24376) and GRPO-CARE (arXiv 2506.16141, figure 2) show maps of
"output-to-visual tokens" attention and do not say how they are made. Here

* the row of a generated token is the attention of the position that predicts it, while
  the completion is given to the model behind its prompt (teacher forcing): the first
  one is read at the prompt's last token;
* a layer's attention is the mean over its heads, and the mass on video, still or text
  is the sum over the positions of that kind: the three of a row add up to 1;
* text is prompt, chat template and the completion so far. Many heads rest on its first
  tokens when they have nothing to read, so differences say more than heights;
* a model reads its own completion, or all models the same one. The first mixes looking
  with saying, the second is looking alone.

Attention is no explanation: what a model loses without a picture is in
`lib/evaluate/perception.py`. lib/analysis/attended.py compares the rows.

Example: 8 frames of 56 x 112 pixels are 4 frame pairs of 2 x 4 visual tokens. In a
context of 180 tokens, equal attention would put 32 / 180 = 0.18 on the video."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lib.data.letters import THINK
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.evaluate import resume
from lib.evaluate.evaluate import Asking, EvalSettings, on_each_core
from lib.evaluate.tables import attention_file
from lib.model import encoding, models, prefix, rollouts, scoring

FIRST = 3  # generated tokens that count as the first ones
LETTER = re.compile(r"<answer>\s*([A-E])")
DIGITS = 5  # of a mass in the records


def measure(
    model,
    processor,
    questions: Sequence[Question],
    said: Mapping[str, Sequence[Mapping]],
    sampling: Sampling,
    run: Path,
    label: str,
) -> None:
    """Write a `row` a question for each text of `said`, {text: prediction rows}. A text
    is tables.OWN or the method that wrote it, under the thinking prompt. Raises what
    `resume.finish` does, whose rows are kept if it is killed."""
    how = EvalSettings("think", 1, 1, on_bad_video="keep_as_wrong")
    asking = Asking(model, processor, how, sampling)
    for text, answered in said.items():
        path = attention_file(run, label, text)
        _measure(asking, questions, {one["id"]: one for one in answered}, path)


def _measure(asking: Asking, questions: Sequence[Question], said, path: Path) -> None:
    def settings() -> dict:
        texts = [f"{q.id}\n{said[q.id]['completion']}\n" for q in questions]
        told = {"said": resume.digest(texts), "sampling": asdict(asking.sampling)}
        return {"model": models.fingerprint(asking.model)} | told

    def rows(batch: Sequence[Question]) -> list[dict]:
        return [row(asking, question, said[question.id]) for question in batch]

    # One at a time: the model's attention is switched over for it.
    one = partial(on_each_core, cores=1)
    make = partial(one if asking.model.device.type == "cpu" else map, rows)
    resume.finish(path, questions, settings, make, "measured")


def row(asking: Asking, question: Question, said: Mapping) -> dict:
    """Where the model looks while it writes the completion of `said`.

    id, n (generated tokens, without the end token), `retokenized` (the text gives
    another number of tokens than were generated), tokens of video, still and prompt,
    and the masses on video, still and text: by_layer [layers, 3], by_token [n, 3] (mean
    over layers), parts {part: [3]}, equal [3]; video_map [pairs, rows, columns] and
    still_map [1, rows, columns] (mean over layers and tokens). `left_out` says why a
    question has no numbers: nothing was said, or its video cannot be read."""
    model, text = asking.model, said["completion"]
    if not text:
        why = said["error"] or "the completion is empty"
        return {"id": question.id, "left_out": why}
    read = asking.prepare([question])
    if read.errors:
        return {"id": question.id, "left_out": read.errors[question.id]}
    prompt = prefix.make_prompt(model, read.inputs[0])
    how = {"add_special_tokens": False, "return_offsets_mapping": True}
    # A completion has no special tokens: those it spells are text.
    tokens = asking.processor.tokenizer(text, split_special_tokens=True, **how)
    ids, parts = tokens["input_ids"], parts_of(text, tokens["offset_mapping"])
    again = len(ids) + (not said["truncated"]) != said["tokens"]
    facts = {"id": question.id, "n": len(ids), "retokenized": again}
    return facts | _numbers(model, prompt, ids, parts)


def _numbers(model, prompt, tokens: list[int], parts: Mapping[str, list[int]]) -> dict:
    """What `row` tells of the tokens of a completion behind their prompt."""
    ids = torch.tensor(tokens, device=prompt.ids.device)
    attention = completion_attention(model, prompt, ids)
    config = prefix.base_of(model).config
    whole = scoring.Row(prompt, (ids,)).ids()
    kinds = encoding.mm_token_type_ids(whole, config).cpu().numpy()
    found = masses(attention, kinds)
    by_token = found.mean(0)
    merged = config.vision_config.spatial_merge_size
    video, still = (int((kinds == code).sum()) for code in (2, 1))
    return {
        "tokens": {"video": video, "still": still, "prompt": len(prompt.ids)},
        "by_layer": _rounded(found.mean(1)),
        "by_token": _rounded(by_token),
        "parts": {
            name: _rounded(by_token[at].mean(0)) if at else None
            for name, at in parts.items()
        },
        "equal": _rounded(equal_shares(kinds, len(ids)).mean(0)),
        "video_map": _picture_map(attention, kinds, prompt, 2, merged),
        "still_map": _picture_map(attention, kinds, prompt, 1, merged),
    }


def completion_attention(model, prompt, completion) -> np.ndarray:
    """Attention of R generated tokens, mean over heads: float32 [layers, R, P - 1 + R].
    `prompt` is a `lib.model.prefix.Prompt` of P tokens, `completion` [R] token ids. The
    prompt fills a cache with the attention the model has; the R rows alone are then
    computed as "eager" attention, of one layer at a time: heads x R x (P - 1 + R).
    Works under adapters and NF4. ValueError as of `prefix.check_model`."""
    prefix.check_model(model)
    base = prefix.base_of(model)
    row, last = scoring.Row(prompt, (completion,)), len(prompt.ids) - 1
    ids, positions = row.ids()[None], row.positions()[:, None]
    forward = partial(base, use_cache=True, logits_to_keep=1)
    with torch.no_grad(), rollouts.generating(model):
        cache = forward(
            input_ids=ids[:, :last],
            position_ids=positions[..., :last],
            **prefix.picture_inputs([prompt]),
        ).past_key_values
        with _handed_out(base) as found:
            forward(
                input_ids=ids[:, last:],
                position_ids=positions[..., last:],
                past_key_values=cache,
            )
    return np.stack(found)


@contextmanager
def _handed_out(base) -> Iterator[list[np.ndarray]]:
    """The attention of each layer, mean over heads, which only "eager" hands out."""
    found: list[np.ndarray] = []

    def keep(module, inputs, outputs):
        found.append(outputs[1][0].float().mean(0).cpu().numpy())

    before = base.config.get_text_config()._attn_implementation
    layers = base.model.language_model.layers
    base.set_attn_implementation({"text_config": "eager"})
    hooks = [layer.self_attn.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        base.set_attn_implementation({"text_config": before})


def masses(attention: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Mass on video, still and text: [layers, R, 3] from [layers, R, K]. `kinds` [K] is
    0 text, 1 still, 2 video, as `encoding.mm_token_type_ids` has it."""
    return np.stack([attention[..., kinds == k].sum(-1) for k in (2, 1, 0)], -1)


def equal_shares(kinds: np.ndarray, generated: int) -> np.ndarray:
    """What equal attention to all visible positions would put on video, still and text:
    [R, 3]. Generated token i sees the prompt's and i earlier ones of the completion."""
    visible = len(kinds) - generated + 1 + np.arange(generated)
    counts = np.array([(kinds == 2).sum(), (kinds == 1).sum()])
    visual = counts / visible[:, None]
    return np.concatenate([visual, 1 - visual.sum(1, keepdims=True)], 1)


def parts_of(text: str, spans: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """Which tokens are the first ones, the reasoning, the answer letter; maybe none.
    `spans` are the tokens' places in `text` (start, end). The reasoning is the text of
    the first <think>...</think>, the letter that of the paper's rule."""
    parts = {"first": list(range(min(FIRST, len(spans))))}
    for name, wanted in (("reasoning", THINK), ("letter", LETTER)):
        found = wanted.search(text)
        start, end = found.span(1) if found else (0, 0)
        inside = [low < end and start < high for low, high in spans]
        parts[name] = np.flatnonzero(inside).tolist()
    return parts


def _picture_map(attention, kinds, prompt, code: int, merged: int) -> list | None:
    """Mass on each visual token in its place, mean over layers and generated tokens."""
    _, grid = list(prefix.KINDS.values())[code - 1]
    if grid not in prompt.pixels:
        return None
    pairs, height, width = prompt.pixels[grid][0].tolist()  # one clip, one still
    at = attention[..., kinds == code].mean((0, 1))
    return _rounded(at.reshape(pairs, height // merged, width // merged))


def _rounded(values: np.ndarray) -> list:
    return np.asarray(values, dtype=float).round(DIGITS).tolist()
