"""Readers: what a model would answer from a reasoning alone, without any picture.

A reader gets question, options and a completion's own reasoning, without video and
still, and what it would answer is read from the probabilities of the option letters
behind `<answer>`. lib/evaluate/coherence.py compares that with the answer given.

A reader must choose, may ignore the reasoning, and is told the answer where a letter is
named (`names_letter`). So it also gets the reasoning of another question, and none:
what it agrees then is the floor. One of the same origin shares the writer's faults, and
none can tell whether a reasoning is true.

Example: reasoning "I see wash tomato. Next is cut tomato.", answer D, "plate tomato".
The reader gives B, "cut tomato", 0.99: the answer does not come from the reasoning, and
the row of coherence has base_reader False."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from lib import records
from lib.data.prompts import LETTERS, messages, prompt_text
from lib.data.questions import Question
from lib.evaluate import evaluate, resume, tables
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.paths import require

VARIANTS = ("own", "other", "none")  # whose reasoning a reader gets
READERS = ("base", "own")
BATCH = 8  # questions read at once
PACK_TOKENS = 16384  # of one forward pass, padding included
LETTER_TOKENS = 4  # tokens of a letter at most; no others meet the vocabulary
# One reasoning is read as its own and as another's, and by two readers.
ENCODED = 2**13  # prompts, and reasonings, kept encoded

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
# "A" alone is mostly the article, so it counts only in brackets or behind such a word.
_NAMED = re.compile(
    r"(?<![\w'-])[B-E](?![\w'-])|[(\[]A[)\]]|\b(?:[Oo]ption|[Aa]nswer|[Cc]hoice)"
    r"(?: is)?:? A\b"
)


class Item(NamedTuple):
    """A question, its prompt, and the reasonings a reader gets, by variant."""

    id: str
    question: Question
    prompt: str
    reasonings: dict[str, str | None]


def readings(
    model,
    processor,
    questions: Sequence[Question],
    predictions: Sequence[Mapping],
    path: str | Path,
) -> list[dict]:
    """What a reader answers to each prediction's reasoning; also written to `path`.

    `predictions` are the rows of lib.evaluate.evaluate on `questions`. A row is {id,
    own, other, none}: {letter: probability among the letters} with the completion's own
    reasoning, with another question's (see `half_away`), and with an empty one; own and
    other are None where there is no such reasoning.

    ValueError for predictions on other questions, and as `resume.finish` raises it."""
    items = _items(questions, predictions)

    def settings() -> dict:
        texts = [f"{own.id}\n{own.prompt}\n{own.reasonings['own']}\n" for own in items]
        read = {"reader": models.fingerprint(model), "read": resume.digest(texts)}
        return read | {"batch_size": BATCH}

    def read(batches: Sequence[Sequence[Item]]) -> Iterator[list[dict]]:
        # Not in the threads below: a tokenizer that pads in one and not in another
        # mixes them up, and its Python would keep the others' from their next step.
        encoded = [(batch, *_encode(processor, batch)) for batch in batches]
        with rollouts.generating(model):
            each = evaluate.on_each_core if model.device.type == "cpu" else map
            yield from each(lambda own: _read(model, *own), encoded)

    return resume.finish(Path(path), items, settings, read, "read for", BATCH)


def read_run(
    model_path: str | Path,
    run: str | Path,
    sets: Mapping[str, Sequence[Question]],
    dtype: str,
    quantize: bool,
    labels: Sequence[str] = tables.METHODS,
) -> None:
    """All readings of a run: the base reads every method, then each method its own.
    `labels` begins with "base"; the others are folders in run/adapters, or answers of
    the base that were begun for it. Finished files stay as they are."""
    resume.processes()  # gives this one its GPU, which load_model takes
    processor, run = models.load_processor(model_path), Path(run)
    for reader in (label for label in labels if writer(label) == label):
        trained = None if reader == "base" else run / "adapters" / reader
        kind, read = ("base", labels) if reader == "base" else ("own", [reader])
        model = models.load_trained(model_path, trained, dtype, quantize)
        for label in read:
            for name, questions in sets.items():
                file = run / f"predictions_{label}_{name}.jsonl"
                rows = records.read_jsonl(require(file, "run 04_eval first"))
                path = reading_file(run, kind, label, name)
                readings(model, processor, questions, rows, path)
        del model


def writer(label: str) -> str:
    """Whose answers these are: the base's, too, where they were begun for it."""
    return label.removesuffix("-begun")


def _items(questions: Sequence[Question], predictions: Sequence[Mapping]) -> list[Item]:
    """The predicted questions in the predictions' order, with what a reader gets."""
    known = {question.id: question for question in questions}
    if sorted(known) != sorted(row["id"] for row in predictions):
        raise ValueError(
            f"{len(predictions)} predictions are not those of these {len(known)}"
            " questions: give the questions that were asked"
        )
    thoughts = [reasoning_of(row["completion"]) for row in predictions]
    items = []
    for row, own, other in zip(predictions, thoughts, half_away(thoughts), strict=True):
        question, given = known[row["id"]], {"own": own, "other": other, "none": ""}
        items.append(Item(row["id"], question, prompt_text(question, "think"), given))
    return items


class Continuation:
    """`<think>reasoning</think><answer>` and each letter behind it, as tokens.
    Tokenizers merge ">" and a letter for some letters and not for others, so a letter
    is what its text adds to the tokens that all letters share: one token or more."""

    def __init__(self, tokenizer, reasoning: str, letters: str):
        text = f"<think>{reasoning}</think><answer>"
        ids = [encoding.text_ids(tokenizer, text + letter) for letter in letters]
        columns = list(zip(*ids, strict=False))
        self.shared = next(i for i, own in enumerate(columns) if len(set(own)) > 1)
        self.ids = dict(zip(letters, ids, strict=True))

    def segments(self) -> dict[tuple, list[int]]:
        """What to encode, by all but its last token: one for letters that share it."""
        return {tuple(ids[:-1]): ids for ids in self.ids.values()}

    def probabilities(self, scored: Iterator[torch.Tensor]) -> dict[str, float]:
        """{letter: probability among the letters}; takes its segments from `scored`. A
        segment comes as log-probabilities [its last tokens, vocabulary]."""
        known = {key: next(scored) for key in self.segments()}
        found = []
        for ids in self.ids.values():
            own = torch.tensor(ids[self.shared :])
            steps = known[tuple(ids[:-1])][-len(own) :]
            found.append(steps.gather(1, own.to(steps.device)[:, None]).sum())
        shares = torch.stack(found).softmax(0).tolist()
        return {x: round(p, 4) for x, p in zip(self.ids, shares, strict=True)}


_continuation = lru_cache(ENCODED)(Continuation)


@lru_cache(ENCODED)
def _prompt(processor, text: str) -> dict[str, torch.Tensor]:
    return encoding.encode(processor, [messages(text, None, None)])


def _encode(processor, items: Sequence[Item]) -> tuple:
    """The encoded prompts of the items, and {variant: Continuation} of each."""
    encoded, continuations = [], []
    for item in items:
        with encoding.naming(item.question):
            encoded.append(_prompt(processor, item.prompt))
        letters = LETTERS[: len(item.question.options)]
        own = {
            name: _continuation(processor.tokenizer, reasoning, letters)
            for name, reasoning in item.reasonings.items()
            if reasoning is not None
        }
        continuations.append(own)
    return encoded, continuations


@torch.inference_mode()
def _read(model, items: Sequence[Item], encoded: Sequence, continuations) -> list[dict]:
    """The rows of a batch: every prompt is encoded once, its continuations packed."""
    groups = [
        [ids for own in by_variant.values() for ids in own.segments().values()]
        for by_variant in continuations
    ]
    prompts = [prefix.make_prompt(model, one) for one in encoded]
    scored = _next_tokens(model, prompts, groups)
    return [
        {"id": item.id, **dict.fromkeys(VARIANTS)}
        | {name: own.probabilities(scored) for name, own in by_variant.items()}
        for item, by_variant in zip(items, continuations, strict=True)
    ]


def _next_tokens(model, prompts, groups) -> Iterator[torch.Tensor]:
    """Log-probabilities [tokens, vocabulary] along each segment behind its prompt."""
    base, rows = prefix.base_of(model), []
    for prompt, segments in zip(prompts, groups, strict=True):
        tails = [prompt.ids.new_tensor(ids) for ids in segments]
        rows += scoring.make_rows(prompt, tails, PACK_TOKENS)
    for pack in scoring.make_packs(rows, PACK_TOKENS):
        inputs = scoring.pack_inputs(pack)
        del inputs["completion_labels"]
        end = prefix.ending(base, min(len(row.prompt.ids) for row in pack) - 1)
        hidden = end.model(**inputs, use_cache=False).last_hidden_state
        head = base.get_output_embeddings()
        for row, states in zip(pack, hidden, strict=True):
            kept = states[len(row.prompt.ids) - 1 : row.length]
            for part in kept.split([len(own) for own in row.completions]):
                yield head(part[-LETTER_TOKENS:]).float().log_softmax(-1)


def reasoning_of(completion: str) -> str | None:
    """The text inside `<think>`, without the answer; None where there is none. A
    reasoning that was cut off, or goes on into `<answer>`, counts up to there."""
    found = _THOUGHT.search(completion)
    return (found[1].strip() or None) if found else None


def names_letter(reasoning: str | None) -> bool:
    """Whether a reasoning names an option letter: then a reader need not read on."""
    return reasoning is not None and _NAMED.search(reasoning) is not None


def half_away(items: Sequence) -> list:
    """For each item one half the list away (neighbours share videos); None if alone."""
    half = len(items) // 2
    return [items[(i + half) % len(items)] if half else None for i in range(len(items))]


def reading_file(run: Path, reader: str, label: str, name: str) -> Path:
    """Where the readings of a method's predictions on a set lie."""
    return run / f"readings_{reader}_{label}_{name}.jsonl"
