"""Readers: what a model would answer from a reasoning alone, without any picture.

A reader gets question, options and a completion's own reasoning, without video and
still, and what it would answer is read from the probabilities of the option letters
behind `<answer>`. lib/evaluate/coherence.py compares that with the answer given.

Limits of a reader. It must choose, so it agrees by chance with one answer in four where
the reasoning says nothing; it may ignore the reasoning, or not be able to use it; and a
reasoning that names a letter gives the answer away (`names_letter` marks it). So the
same reader also gets the reasoning of another question, and none: what it agrees then
is the floor. A reader of the same origin shares the writer's faults: where both take
"dye clay" for another letter than its own, they agree on a wrong one. And it cannot
tell reasoning that is true, or without contradiction, from reasoning that is not.

Example: reasoning "I see wash tomato. Next is cut tomato.", answer D, "plate tomato".
The reader gives B, "cut tomato", 0.99: the answer does not come from the reasoning.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import records
from lib.data.prompts import LETTERS, messages, prompt_text
from lib.data.questions import Question
from lib.evaluate import evaluate, resume, tables
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.paths import require

VARIANTS = ("own", "other", "none")  # whose reasoning a reader gets
READERS = ("base", "own")
PACK_TOKENS = 16384  # of one forward pass, padding included
LETTER_TOKENS = 4  # tokens of a letter at most; no others meet the vocabulary

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
# "A" alone is mostly the article, so it counts only in brackets or behind such a word.
_NAMED = re.compile(
    r"(?<![\w'-])[B-E](?![\w'-])|[(\[]A[)\]]|\b(?:[Oo]ption|[Aa]nswer|[Cc]hoice)"
    r"(?: is)?:? A\b"
)


def readings(
    model,
    processor,
    questions: Sequence[Question],
    predictions: Sequence[Mapping],
    path: str | Path,
    batch_size: int = 8,
) -> list[dict]:
    """What a reader answers to each prediction's reasoning; also written to `path`.

    `predictions` are the rows of lib.evaluate.evaluate on `questions`. A row is {id,
    own, other, none}: {letter: probability among the letters} with the completion's own
    reasoning, with another question's (see `half_away`), and with an empty one; own and
    other are None where there is no such reasoning.

    Goes on where a killed call stopped. Raises ValueError where the predictions are not
    those of the questions, and what `resume.finish` raises: for rows of another reader
    or of other completions, for instance.
    """
    items = _items(questions, predictions)

    def settings() -> dict:
        texts = (
            f"{item.id}\n{item.prompt}\n{item.reasonings['own']}\n" for item in items
        )
        read = {"reader": models.fingerprint(model), "read": resume.digest(texts)}
        return read | {"batch_size": batch_size}

    def read(own: Sequence[Sequence[Item]]) -> Iterator[list[dict]]:
        # Not in the threads below: a tokenizer that pads in one and not in another
        # mixes them up.
        encoded = [_encode(processor, batch) for batch in own]
        with rollouts.generating(model):
            each = evaluate.on_each_core if model.device.type == "cpu" else map
            yield from each(lambda batch: _read(model, batch), encoded)

    return resume.finish(
        Path(path),
        [items[at : at + batch_size] for at in range(0, len(items), batch_size)],
        settings,
        read,
        [item.id for item in items],
        "read for",
    )


def read_run(
    model_path: str | Path,
    run: str | Path,
    sets: Mapping[str, Sequence[Question]],
    dtype: str,
    quantize: bool,
    labels: Sequence[str] = tables.METHODS,
) -> None:
    """All readings of a run: the base reads every method, then each method its own.

    `labels` begins with "base"; the others are folders in run/adapters. One model is
    loaded at a time. Files that are finished stay as they are.
    """
    processor, run = models.load_processor(model_path), Path(run)
    for reader in labels:
        trained = None if reader == "base" else run / "adapters" / reader
        model = models.load_trained(model_path, trained, dtype, quantize)
        for label in labels if reader == "base" else [reader]:
            for name, questions in sets.items():
                file = run / f"predictions_{label}_{name}.jsonl"
                rows = records.read_jsonl(require(file, "run 04_eval first"))
                kind = "base" if reader == "base" else "own"
                path = reading_file(run, kind, label, name)
                readings(model, processor, questions, rows, path)
        del model


@dataclass(frozen=True)
class Item:
    """A question with the reasonings a reader gets, by variant."""

    question: Question
    reasonings: dict[str, str | None]

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def prompt(self) -> str:
        return prompt_text(self.question, "think")


def _items(questions: Sequence[Question], predictions: Sequence[Mapping]) -> list[Item]:
    """The predicted questions in the predictions' order, with what a reader gets."""
    known = {question.id: question for question in questions}
    if sorted(known) != sorted(row["id"] for row in predictions):
        raise ValueError(
            f"{len(predictions)} predictions are not those of these {len(known)}"
            " questions: give the questions that were asked"
        )
    own = [reasoning_of(row["completion"]) for row in predictions]
    return [
        Item(known[row["id"]], {"own": thought, "other": other, "none": ""})
        for row, thought, other in zip(predictions, own, half_away(own), strict=True)
    ]


@dataclass(frozen=True)
class Continuation:
    """`<think>reasoning</think><answer>` as tokens, and how each letter goes on.

    Tokenizers merge ">" and a letter for some letters and not for others, so a letter
    is what its text adds to the tokens that all letters share: one token or more.
    """

    stem: list[int]
    tails: dict[str, list[int]]

    @classmethod
    def of(cls, tokenizer, reasoning: str, letters: str) -> "Continuation":
        text = f"<think>{reasoning}</think><answer>"
        ids = [encoding.text_ids(tokenizer, text + letter) for letter in letters]
        columns = list(zip(*ids, strict=False))
        shared = next(i for i, column in enumerate(columns) if len(set(column)) > 1)
        tails = {x: own[shared:] for x, own in zip(letters, ids, strict=True)}
        return cls(ids[0][:shared], tails)

    def segments(self) -> list[list[int]]:
        """What to encode: once for all letters of one token, once for each other."""
        short = [tail for tail in self.tails.values() if len(tail) == 1]
        long = [tail for tail in self.tails.values() if len(tail) > 1]
        return [self.stem + tail for tail in [*short[:1], *long]]

    def probabilities(self, scored: Iterator[torch.Tensor]) -> dict[str, float]:
        """{letter: probability among the letters}; takes its segments from `scored`.

        A segment comes as log-probabilities [its last tokens, vocabulary].
        """
        short = [x for x, tail in self.tails.items() if len(tail) == 1]
        found = {}
        if short:
            last = next(scored)[-1]
            found = {x: last[self.tails[x][0]] for x in short}
        for x, tail in self.tails.items():
            if len(tail) > 1:
                steps = next(scored)[-len(tail) :]
                found[x] = steps.gather(1, steps.new_tensor(tail).long()[:, None]).sum()
        shares = torch.stack([found[x] for x in self.tails]).softmax(0).tolist()
        return dict(zip(self.tails, (round(v, 4) for v in shares), strict=True))


@dataclass(frozen=True)
class Batch:
    """Items with their encoded prompts and, for each item, its continuations."""

    items: Sequence[Item]
    prompts: dict[str, torch.Tensor]
    continuations: list[dict[str, Continuation]]


def _encode(processor, items: Sequence[Item]) -> Batch:
    talks = [messages(item.prompt, None, None) for item in items]
    continuations = [
        {
            name: Continuation.of(processor.tokenizer, reasoning, letters)
            for name, reasoning in item.reasonings.items()
            if reasoning is not None
        }
        for item in items
        for letters in [LETTERS[: len(item.question.options)]]
    ]
    asked = [item.question for item in items]
    return Batch(items, encoding.encode(processor, talks, asked=asked), continuations)


@torch.inference_mode()
def _read(model, batch: Batch) -> list[dict]:
    """The rows of a batch: every prompt is encoded once, its continuations packed."""
    prompts = prefix.make_prompts(model, batch.prompts)
    groups = [
        [ids for continuation in own.values() for ids in continuation.segments()]
        for own in batch.continuations
    ]
    scored = _next_tokens(model, prompts, groups)
    return [
        {"id": item.id, **dict.fromkeys(VARIANTS)}
        | {name: found.probabilities(scored) for name, found in own.items()}
        for item, own in zip(batch.items, batch.continuations, strict=True)
    ]


def _next_tokens(model, prompts, groups) -> Iterator[torch.Tensor]:
    """Log-probabilities [tokens, vocabulary] along each segment behind its prompt."""
    base = prefix.base_of(model)
    rows = [
        row
        for prompt, segments in zip(prompts, groups, strict=True)
        for row in scoring.make_rows(
            prompt, [prompt.ids.new_tensor(ids) for ids in segments], PACK_TOKENS
        )
    ]
    for pack in scoring.make_packs(rows, PACK_TOKENS):
        inputs = scoring.pack_inputs(model, pack)
        del inputs["completion_labels"]
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        head = base.get_output_embeddings()
        for row, states in zip(pack, hidden, strict=True):
            lengths = [len(completion) for completion in row.completions]
            kept = states[len(row.prompt.ids) - 1 : row.length]
            for part in kept.split(lengths):
                yield head(part[-LETTER_TOKENS:]).float().log_softmax(-1)


def reasoning_of(completion: str) -> str | None:
    """The text inside `<think>`, without the answer; None where there is none.

    A reasoning that was cut off, or goes on into `<answer>`, counts up to there.
    """
    found = _THOUGHT.search(completion)
    return (found[1].strip() or None) if found else None


def names_letter(reasoning: str | None) -> bool:
    """Whether a reasoning names an option letter: then a reader need not read on."""
    return reasoning is not None and _NAMED.search(reasoning) is not None


def half_away(items: Sequence) -> list:
    """For each item another one, half the list away: neighbours may share a video and a
    goal. None where there is no other."""
    half = len(items) // 2
    return [items[(i + half) % len(items)] if half else None for i in range(len(items))]


def reading_file(run: Path, reader: str, label: str, name: str) -> Path:
    """Where the readings of a method's predictions on a set lie."""
    return Path(run) / f"readings_{reader}_{label}_{name}.jsonl"
