"""Answer questions greedily in batches and keep one row a question.

Protocol of SEED-Bench-R1 (arXiv 2503.24376, released infer.py): video, then image, then
the text with its options in the order of the file; one completion of at most 256
tokens; the first letter in the first <answer> tag against the gold letter. Its shipped
settings amount to greedy decoding, because top_k = 1 is inherited from the checkpoint;
here nothing is inherited: the most likely token is taken, whatever a checkpoint says.

    settings = EvalSettings("think", max_new_tokens=256, batch_size=8)
    rows = evaluate(model, processor, questions, settings, Sampling(),
                    run / "predictions_base_L1.jsonl")
    compare.metrics(rows)  # {"n": 2432, "accuracy": 0.348, ...}; lib/analysis
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib import chain, records
from lib.data.frame_store import question_media
from lib.data.letters import judged
from lib.data.prompts import messages, prompt_text
from lib.data.questions import Question
from lib.data.video import BadVideo, Sampling
from lib.evaluate import resume
from lib.evaluate.features import KEPT
from lib.model import encoding, models, prefix, rollouts

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
POLICIES = ("raise", "keep_as_wrong")
WINDOW = 4  # batches that a GPU gets at once: a long answer holds up none but itself


@dataclass(frozen=True)
class EvalSettings:
    """How questions are asked; decoding is always greedy. `style` is "think" (the
    paper's prompt) or "direct" (one letter). `on_bad_video` says what an unusable clip
    or still does: "raise" ends the evaluation, "keep_as_wrong" keeps the question in
    the denominator with an empty completion. Every answer has to begin with the text
    `begun`, which is a part of it."""

    style: str
    max_new_tokens: int
    batch_size: int
    on_bad_video: str = "raise"
    begun: str = ""

    def __post_init__(self):
        if self.on_bad_video not in POLICIES:
            found = f"on_bad_video is {self.on_bad_video!r}"
            raise ValueError(f"{found}: use one of {POLICIES}")
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more")


class Batch(NamedTuple):
    """Questions of a batch, what failed, and the rest encoded or as known prompts."""

    questions: list[Question]
    errors: dict[str, str]
    inputs: Sequence[dict[str, torch.Tensor]] = ()
    prompts: Sequence[prefix.Prompt] = ()

    def asked(self) -> list[Question]:
        """Those that did not fail."""
        return [own for own in self.questions if own.id not in self.errors]


def evaluate(
    model,
    processor,
    questions: Sequence[Question],
    settings: EvalSettings,
    sampling: Sampling,
    path: str | Path,
    shown=None,
) -> list[dict]:
    """Rows of all questions in their order (see `row`), also written to `path`. Goes on
    where a killed call stopped (lib/evaluate/resume.py); a finished file is returned at
    once, but for questions that failed for a file that is another one now, and where
    there are more questions now, only the new ones are asked. `shown`
    (lib/evaluate/perception.py) stands in place of a question's clip and still. Raises
    BadVideo (naming question and file) under on_bad_video = "raise", ValueError where
    an answered question shows other pictures now, and as `resume.finish` does."""
    asking = Asking(model, processor, settings, sampling, shown)
    known = {question.id: question for question in questions}

    def of(ids: Sequence[str]) -> dict:
        if not known.keys() >= {*ids}:
            return {}
        return asking.facts([known[key] for key in ids])

    return resume.finish(
        Path(path),
        questions,
        lambda: asking.facts(questions),
        asking.answers,
        "answered",
        settings.batch_size,
        asking.shape,
        lambda rows: reopened(Path(path), questions, rows),
        of if shown is None else None,
    )


@dataclass(frozen=True)
class Asking:
    """A model, and how it is asked."""

    model: Any
    processor: Any
    settings: EvalSettings
    sampling: Sampling
    shown: Any = None

    def facts(self, questions: Sequence[Question]) -> dict:
        """Everything that decides the rows, as plain JSON values."""
        style = self.settings.style
        asked = [f"{q.id}\n{q.gold}\n{prompt_text(q, style)}" for q in questions]
        told = asdict(self.settings)
        return {
            **{k: v for k, v in told.items() if k != "begun" or v},
            "decoding": "greedy",
            "sampling": asdict(self.sampling),
            "model": models.fingerprint(self.model),
            "questions": resume.digest(asked),
            **({} if self.shown is None else {"shown": asdict(self.shown)}),
        }

    def shape(self, question: Question) -> tuple:
        """By which questions are put together, to save padding."""
        text = prompt_text(question, self.settings.style)
        return question.video is None, question.image is None, len(text)

    def answers(self, batches: list[list[Question]]) -> Iterator[list[dict]]:
        """The rows of each batch, in order. On a CPU as many batches are worked on as
        there are threads; a GPU gets a window of them at once, and the next window is
        read meanwhile, without the GPU."""
        tower = models.fingerprint(prefix.base_of(self.model).model.visual)
        processor = repr(self.processor), str(self.processor.chat_template)
        decides = (tower, *processor, self.settings.style, self.sampling)

        def keys(asked: Sequence[Question]) -> list[tuple]:
            return [(decides, self.shown, q, *pictures(q)) for q in asked]

        def prepared(window: list[list[Question]]) -> list[Batch]:
            kept = [(own, KEPT.get(keys(own))) for own in window]
            return [Batch(q, {}, (), p) if p else self.prepare(q) for q, p in kept]

        def answered(window: list[Batch]) -> list[list[dict]]:
            for i, batch in enumerate(window):
                if batch.inputs:
                    window[i] = self.see(batch)
                    KEPT.keep(keys(batch.asked()), window[i].prompts)
            return self.answer(window)

        on_cpu = self.model.device.type == "cpu"
        size = 1 if on_cpu else WINDOW
        windows = [batches[i : i + size] for i in range(0, len(batches), size)]
        with rollouts.generating(self.model):
            if on_cpu:
                found = on_each_core(lambda own: answered(prepared(own)), windows)
            else:
                found = map(answered, one_ahead(prepared, windows))
            for rows in found:
                yield from rows

    def prepare(self, questions: list[Question]) -> Batch:
        """Read clips and stills and encode the prompts."""
        media = question_media if self.shown is None else self.shown.media
        inputs, errors = [], {}
        for question in questions:
            with encoding.naming(question):
                try:
                    pictures = media(question, self.sampling)
                except BadVideo as bad:
                    if self.settings.on_bad_video == "raise":
                        raise
                    errors[question.id] = f"{bad.path.name} {bad.why}"
                    continue
                text = prompt_text(question, self.settings.style)
                talk = messages(text, *pictures)
                inputs.append(encoding.encode(self.processor, [talk]))
        return Batch(questions, errors, inputs)

    @torch.inference_mode()
    def see(self, batch: Batch) -> Batch:
        """The batch with its prompts, seen by the vision tower, in place of tensors."""
        prompts = [prefix.make_prompt(self.model, one) for one in batch.inputs]
        seen = prefix.with_features(self.model, prompts)
        alone = [prompt.seen(self.model.device) for prompt in seen]  # without pixels
        return batch._replace(inputs=(), prompts=alone)

    def answer(self, batches: Sequence[Batch]) -> list[list[dict]]:
        """One row for each question of each batch, in order; their prompts are seen."""
        device = self.model.device
        prompts = [own.seen(device) for batch in batches for own in batch.prompts]
        completions = iter(self.complete(prompts))
        rows = []
        for batch in batches:
            own = []
            for question in batch.questions:
                error = batch.errors.get(question.id)
                said = () if error else next(completions)
                own.append(row(question, self.settings, *said, error=error))
            rows.append(own)
        return rows

    @torch.inference_mode()
    def complete(self, prompts: Sequence[prefix.Prompt]) -> list[tuple]:
        """(completion, its number of tokens, truncated) of each prompt, at most a batch
        of them side by side. Without an end token within max_new_tokens it is
        truncated. Tokens that stand for pictures cannot be generated. The model is in
        the state of rollouts.generating."""
        if not prompts:
            return []
        tokenizer, how = self.processor.tokenizer, self.decoding(0.0)
        size, begun = self.settings.batch_size, self.settings.begun
        ids = encoding.text_ids(tokenizer, begun) if begun else []
        prompts = [prefix.extended(prompt, ids) for prompt in prompts]
        groups = rollouts.decode(self.model, prompts, 1, how, size)
        found = [cut(tokenizer, tokens, how.end_ids) for (tokens,) in groups]
        return [(begun + text, len(ids) + count, cut_) for text, count, cut_ in found]

    def decoding(self, temperature: float) -> rollouts.Decoding:
        """How an answer is drawn; at temperature 0 the likeliest token is taken."""
        tokenizer = self.processor.tokenizer
        return rollouts.Decoding(
            max_tokens=self.settings.max_new_tokens,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            end_ids=tuple(tokenizer.convert_tokens_to_ids(list(END_TOKENS))),
            pad_id=tokenizer.pad_token_id,
            suppressed=tuple(encoding.visual_token_ids(self.model.config)),
        )


def evaluate_sets(
    model,
    processor,
    asked: Mapping[str, EvalSettings],
    sets: Mapping[str, Sequence[Question]],
    sampling: Sampling,
    run: Path,
) -> dict[tuple[str, str], list[dict]]:
    """Ask one model all sets under all settings: rows by (label, set). Rows also go to
    run/predictions_<label>_<set>.jsonl, `label` being a key of `asked`."""
    rows = {}
    for label, settings in asked.items():
        for name, questions in sets.items():
            path = Path(run) / f"predictions_{label}_{name}.jsonl"
            given = (questions, settings, sampling, path)
            rows[label, name] = evaluate(model, processor, *given)
    return rows


def best_prefix(
    model,
    processor,
    held: Sequence[Question],
    settings: EvalSettings,
    prefixes: str,
    sampling: Sampling,
    run: Path,
) -> str:
    """Which of the texts, divided by bars, an answer should begin with: the one with
    most right answers to held-out training questions, never to a level's. Answers are
    in run/tried_<number>.jsonl, right ones counted in run/answer_prefixes.json."""
    if not held:
        raise ValueError("no questions are held out to try prefixes: set holdout_share")
    right = {}
    for number, begun in enumerate(map(str.strip, prefixes.split("|"))):
        path = Path(run) / f"tried_{number}.jsonl"
        how = (replace(settings, begun=begun), sampling, path)
        rows = evaluate(model, processor, held, *how)
        right[begun] = sum(row["correct"] for row in rows)
    best = max(right, key=right.get)
    found = {"questions": len(held), "right": right, "best": best}
    if resume.processes().is_main_process:
        records.write_json(Path(run) / "answer_prefixes.json", found)
    return best


def with_model(
    model_path: str | Path,
    trained: Path | None,
    dtype: str,
    quantize: bool,
    work: Callable,
    *arguments,
):
    """`work(model, processor, *arguments)` for lib/run/launch.py, with what training
    left in `trained`; each process loads the whole model, on its own GPU if any."""
    resume.processes()  # gives this one its GPU, which load_model takes
    processor = models.load_processor(model_path)
    model = models.load_trained(model_path, trained, dtype, quantize)
    return work(model, processor, *arguments)


def reopened(path: Path, questions: Sequence[Question], rows: list[dict]) -> set[str]:
    """Ids of the questions that failed for a clip or still that is another file now.
    ValueError where an answered question shows other pictures now."""
    now = {question.id: pictures(question) for question in questions}
    moved = [row for row in rows if row.get("media") != now.get(row["id"])]
    if answered := sorted(row["id"] for row in moved if row["error"] is None):
        raise ValueError(
            f"{path}: {len(answered)} questions, first {answered[0]}, were answered on "
            f"other clips or stills than lie there now: delete {path.stem}.* in "
            f"{path.parent} to evaluate again"
        )
    return {row["id"] for row in moved}


def pictures(question: Question) -> list[str | None]:
    """The content of clip and still, as `chain.content` tells it."""
    return [path and chain.content(path) for path in (question.video, question.image)]


def on_each_core(work: Callable, items: Sequence, cores: int | None = None) -> Iterator:
    """`work(item)` for each item in order, one torch thread each, on as many cores as
    torch has threads, or `cores`. What an item gives does not depend on them."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores or threads, "core", torch.set_num_threads, (1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of MKL, which is not set by thread


def one_ahead(work: Callable, items: Sequence) -> Iterator:
    """`work(item)` for each item in order, always one item ahead in a thread."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = None
        for item in items:
            current, coming = coming, thread.submit(work, item)
            if current is not None:
                yield current.result()
        if coming is not None:
            yield coming.result()


def cut(tokenizer, tokens: list[int], ends: Sequence[int]) -> tuple[str, int, bool]:
    """(text before the first end token, tokens up to and with it, none found). Special
    tokens are no part of the text, as in the rewards and the released code."""
    first = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:first], skip_special_tokens=True)
    return text, len(tokens) if first is None else first + 1, first is None


def row(
    question: Question,
    settings: EvalSettings,
    completion: str = "",
    tokens: int = 0,
    truncated: bool = False,
    error: str | None = None,
) -> dict:
    """The record of one answered, or failed, question. What the completion says is
    `letters.judged`; tokens includes the end token, error names what is wrong with the
    video or is None; media is the content of clip and still (`pictures`); `of` is the
    size of the whole set where a part of it is asked."""
    return {
        "id": question.id,
        "level": question.level,
        "domain": question.domain,
        "scenario": question.scenario,
        "duration_group": question.duration_group,
        "gold": question.gold,
        "options": list(question.options),
        "completion": completion,
        **judged(completion, question.options, question.gold, settings.style),
        "truncated": truncated,
        "tokens": tokens,
        "error": error,
        "media": pictures(question),
        **({"of": question.of} if question.of else {}),
    }
