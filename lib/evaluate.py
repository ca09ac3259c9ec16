"""Answer questions greedily in batches and keep one row a question.

Protocol of SEED-Bench-R1 (arXiv 2503.24376, released infer.py): video, then image, then
the text with its options in the order of the file; one completion of at most 256
tokens; the first letter in the first <answer> tag against the gold letter. Its shipped
settings amount to greedy decoding, because top_k = 1 is inherited from the checkpoint;
here nothing is inherited: the most likely token is taken, whatever a checkpoint says.

    settings = EvalSettings("think", max_new_tokens=256, batch_size=8)
    rows = evaluate(model, processor, questions, settings, Sampling(),
                    run / "predictions_base_L1.jsonl")
    metrics(rows)  # {"n": 2432, "accuracy": 0.348, "accuracy_lenient": ..., ...}

The batches are a fixed partition of the questions, and several processes (started by
torchrun or lib/launch.py) share them out. Rows of a finished batch go to
predictions_base_L1.partial.jsonl at once, those of process N > 0 to .partial-N.jsonl.
So a killed run goes on with the batches that are missing, with any number of processes,
and ends with the same bytes as an undisturbed one; predictions_base_L1.settings.json
says what made them, and rows of other settings are refused.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

from lib import chain, models, records, run_files
from lib.model import encoding, prefix, rollouts
from lib.prompts import messages, prompt_text
from lib.questions import Question
from lib.rewards import judged
from lib.video import BadVideo, Sampling, question_media

# isort: split
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
POLICIES = ("raise", "keep_as_wrong")


@dataclass(frozen=True)
class EvalSettings:
    """How questions are asked; decoding is always greedy.

    `style` is "think" (the paper's prompt) or "direct" (one letter). `on_bad_video`
    says what an unusable clip or still does: "raise" ends the evaluation,
    "keep_as_wrong" keeps the question in the denominator with an empty completion.
    """

    style: str
    max_new_tokens: int
    batch_size: int
    on_bad_video: str = "raise"

    def __post_init__(self):
        if self.style not in ("think", "direct"):
            raise ValueError(f"style is {self.style!r}: use 'think' or 'direct'")
        if self.on_bad_video not in POLICIES:
            raise ValueError(
                f"on_bad_video is {self.on_bad_video!r}: use one of {POLICIES}"
            )
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be 1 or more"
                )


@dataclass(frozen=True)
class Batch:
    """Questions of one batch, their tensors (None if all failed), and what failed."""

    questions: list[Question]
    inputs: dict[str, torch.Tensor] | None
    errors: dict[str, str]


def evaluate(
    model,
    processor,
    questions: Sequence[Question],
    settings: EvalSettings,
    sampling: Sampling,
    path: str | Path,
    shown=None,
) -> list[dict]:
    """Rows of all questions in their order, also written to `path`.

    Goes on where a killed call stopped and returns a finished file at once. A row is
    made by `row`. `shown` (lib/perception.py) shows a model something else in place of
    a question's own clip and still, and is recorded with the settings. All processes
    that call this together answer a share each and return all rows.

    Raises ValueError when rows of other settings lie at `path`, BadVideo (naming the
    question and the file) under on_bad_video = "raise", and Busy (lib/run_files.py)
    while another process answers for `path`.
    """
    path, first = Path(path), processes().is_main_process
    # The processes of one launch are one writer.
    with run_files.one_writer(path, "answered") if first else nullcontext():
        return _evaluate(model, processor, questions, settings, sampling, path, shown)


def _evaluate(
    model, processor, questions, settings, sampling, path: Path, shown
) -> list[dict]:
    state = processes()
    batches = partition(questions, settings)
    missing = []
    if state.is_main_process:
        recorded = all_settings(model, questions, settings, sampling, shown)
        missing = missing_batches(path, batches, recorded)
    (missing,) = broadcast_object_list([missing])
    own = [batches[n] for n in missing[state.process_index :: state.num_processes]]
    partial = partial_file(path, state.process_index)
    with progress(path.stem, batches, missing, own) as bar:
        for answered in answers(model, processor, own, settings, sampling, shown):
            records.append_jsonl(partial, answered)
            bar.update(len(answered))

    state.wait_for_everyone()
    if state.is_main_process:
        merge(path, questions)
    state.wait_for_everyone()
    return records.read_jsonl(path)


def evaluate_sets(
    model_path: str | Path,
    trained: Path | None,
    dtype: str,
    quantize: bool,
    asked: Mapping[str, EvalSettings],
    sets: Mapping[str, Sequence[Question]],
    sampling: Sampling,
    run: Path,
) -> dict[tuple[str, str], list[dict]]:
    """Load one model and ask it all sets under all settings: rows by (label, set).

    The model is that of `model_path`, with what training left in the folder `trained`.
    Rows also go to run/predictions_<label>_<set>.jsonl, `label` being a key of `asked`.
    Each process loads the whole model, on its own GPU where there are some.
    """
    processes()  # gives this one its GPU, which load_model takes
    processor = models.load_processor(model_path)
    model = models.load_trained(model_path, trained, dtype, quantize)
    return {
        (label, name): evaluate(
            model,
            processor,
            questions,
            settings,
            sampling,
            Path(run) / f"predictions_{label}_{name}.jsonl",
        )
        for label, settings in asked.items()
        for name, questions in sets.items()
    }


def processes() -> PartialState:
    """This process among those that evaluate together; each has a device of its own.

    Without a GPU, accelerate sees other processes only if told that it is on CPU. Who
    is done first waits for long: a process that fails is ended by its launcher.
    """
    on_cpu = not torch.cuda.is_available()
    return PartialState(cpu=on_cpu, timeout=timedelta(hours=2))


def progress(
    name: str,
    batches: list[list[Question]],
    missing: list[int],
    own: list[list[Question]],
) -> tqdm:
    """A bar over the questions that this process answers and those answered before.

    Only the first process shows one: the others have as much to do.
    """
    state, todo = processes(), sum(map(len, own))
    before = sum(map(len, batches)) - sum(len(batches[n]) for n in missing)
    if state.num_processes > 1:
        name = f"{name}, 1 of {state.num_processes} shares"
    return tqdm(
        total=before + todo,
        initial=before,
        desc=name,
        disable=not state.is_main_process,
    )


def all_settings(
    model,
    questions: Sequence[Question],
    settings: EvalSettings,
    sampling: Sampling,
    shown=None,
) -> dict:
    """Everything that decides the rows, as plain JSON values."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(f"{question.id}\n{question.gold}\n".encode())
        digest.update(prompt_text(question, settings.style).encode())
    if len({question.id for question in questions}) < len(questions):
        raise ValueError("two questions have the same id: rows could not be told apart")
    return {
        **asdict(settings),
        "decoding": "greedy",
        "sampling": asdict(sampling),
        "model": models.fingerprint(model),
        "questions": f"{len(questions)} with sha256 {digest.hexdigest()[:12]}",
        **({} if shown is None else {"shown": asdict(shown)}),
    }


def settings_file(path: Path) -> Path:
    """predictions_x.settings.json beside predictions_x.jsonl."""
    return path.with_suffix(".settings.json")


def partial_file(path: Path, process: int) -> Path:
    """predictions_x.partial.jsonl; predictions_x.partial-N.jsonl of process N > 0."""
    return path.with_suffix(f".partial{f'-{process}' if process else ''}.jsonl")


def partial_files(path: Path) -> list[Path]:
    """Those that exist, of any number of processes."""
    named = re.compile(re.escape(path.stem) + r"\.partial(-\d+)?\.jsonl")
    return sorted(f for f in path.parent.glob("*") if named.fullmatch(f.name))


def refuse_other_settings(path: Path, partial: Path, wanted: dict) -> None:
    """Raise ValueError, naming each difference, when rows of other settings exist."""
    if not path.exists() and not partial.exists():
        return
    file = settings_file(path)
    if not file.exists():
        raise ValueError(
            f"{path.name} has rows but {file.name} is missing, so nobody can tell what "
            f"made them: delete {path.stem}.* in {path.parent} and evaluate again"
        )
    found = records.read_json(file)
    differing = [
        f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise ValueError(
            f"{path} holds rows of other settings: {'; '.join(differing)}. Use another "
            f"run_name, or delete {path.stem}.* there to evaluate again"
        )


def partition(
    questions: Sequence[Question], settings: EvalSettings
) -> list[list[Question]]:
    """The batches: always the same ones, of prompts of like shape to save padding."""

    def shape(question: Question) -> tuple:
        text = prompt_text(question, settings.style)
        return question.video is None, question.image is None, len(text)

    alike = sorted(questions, key=shape)  # stable: equal shapes keep their order
    size = settings.batch_size
    return [alike[start : start + size] for start in range(0, len(alike), size)]


def missing_batches(
    path: Path, batches: list[list[Question]], recorded: dict
) -> list[int]:
    """Numbers of the batches still to answer for `path`, which is made ready for them.

    Raises ValueError when rows of other settings, or other rows, lie there.
    """
    any_partial = next(iter(partial_files(path)), partial_file(path, 0))
    refuse_other_settings(path, any_partial, recorded)
    if path.exists():
        remove_partial_files(path)  # left by a kill right behind the last write
        return reopened(path, batches)
    records.write_json(settings_file(path), recorded)
    rows = [row for file in partial_files(path) for row in whole_batches(file, batches)]
    found = {row["id"] for row in rows}
    return [n for n, batch in enumerate(batches) if batch[0].id not in found]


def reopened(path: Path, batches: list[list[Question]]) -> list[int]:
    """Numbers of the batches to answer again, of a file of rows that is finished.

    Those with a question that failed for a clip or still that is another file now; the
    other rows are kept in the partial file. ValueError where an answered question shows
    other pictures now.
    """
    rows = {row["id"]: row for row in records.read_jsonl(path)}
    now = {
        q.id: row(q, EvalSettings("think", 1, 1))["media"] for b in batches for q in b
    }
    moved = {key for key, own in rows.items() if own.get("media") != now.get(key)}
    if answered := sorted(key for key in moved if rows[key]["error"] is None):
        raise ValueError(
            f"{path}: {len(answered)} questions, first {answered[0]}, were answered on "
            f"other clips or stills than lie there now: delete {path.stem}.* in "
            f"{path.parent} to evaluate again"
        )
    again = [n for n, batch in enumerate(batches) if moved & {q.id for q in batch}]
    if again:
        kept = [batch for n, batch in enumerate(batches) if n not in again]
        known = [rows[question.id] for batch in kept for question in batch]
        records.write_jsonl(partial_file(path, 0), known)
        path.unlink()
    return again


def whole_batches(partial: Path, batches: list[list[Question]]) -> list[dict]:
    """Rows of the batches that are complete in `partial`; a torn batch is cut off."""
    rows, kept = records.repair_jsonl(partial), 0
    by_first = {batch[0].id: [question.id for question in batch] for batch in batches}
    while kept < len(rows):
        wanted = by_first.get(rows[kept]["id"], [])
        found = [row["id"] for row in rows[kept : kept + len(wanted)]]
        if not found or found != wanted[: len(found)]:
            raise ValueError(
                f"{partial} holds other rows than the batches have: delete it"
            )
        if len(found) < len(wanted):
            records.write_jsonl(partial, rows[:kept])
            break
        kept += len(found)
    return rows[:kept]


def merge(path: Path, questions: Sequence[Question]) -> None:
    """Write `path`, in the order of the questions, from the partial files."""
    if path.exists():
        return
    files = partial_files(path)
    by_id = {row["id"]: row for file in files for row in records.read_jsonl(file)}
    records.write_jsonl(path, [by_id[question.id] for question in questions])
    remove_partial_files(path)


def remove_partial_files(path: Path) -> None:
    for file in partial_files(path):
        file.unlink()


def answers(
    model,
    processor,
    batches: list[list[Question]],
    settings: EvalSettings,
    sampling: Sampling,
    shown=None,
) -> Iterator[list[dict]]:
    """The rows of each batch, in order.

    On a CPU as many batches are worked on as there are threads, with one thread each:
    small operations gain little from a second one, and what a batch gives does not
    depend on their number. On a GPU the next batch is read while one is answered.
    """

    def prepare(questions: list[Question]) -> Batch:
        return prepare_batch(processor, questions, settings, sampling, shown)

    def ask(questions: list[Question]) -> list[dict]:
        return answer(model, processor, prepare(questions), settings)

    with rollouts.generating(model):
        if model.device.type == "cpu":
            yield from on_each_core(ask, batches)
        else:
            for batch in one_ahead(prepare, batches):
                yield answer(model, processor, batch, settings)


def on_each_core(work: Callable, items: Sequence) -> Iterator:
    """`work(item)` for each item in order, one torch thread an item."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
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


def prepare_batch(
    processor,
    questions: list[Question],
    settings: EvalSettings,
    sampling: Sampling,
    shown=None,
) -> Batch:
    """Read the media and encode the prompts, left padded."""
    media = question_media if shown is None else shown.media
    conversations, errors = [], {}
    for question in questions:
        with encoding.naming(question):
            try:
                clip, still = media(question, sampling)
            except BadVideo as bad:
                if settings.on_bad_video == "raise":
                    raise
                errors[question.id] = f"{bad.path.name} {bad.why}"
                continue
        text = prompt_text(question, settings.style)
        conversations.append(messages(text, clip, still))
    asked = [question for question in questions if question.id not in errors]
    inputs = None
    if conversations:
        inputs = encoding.encode(processor, conversations, long_clips=True, asked=asked)
    return Batch(questions, inputs, errors)


def answer(model, processor, batch: Batch, settings: EvalSettings) -> list[dict]:
    """One row for each question of the batch, in its order."""
    completions = iter(())
    if batch.inputs is not None:
        completions = iter(complete(model, processor, batch.inputs, settings))
    return [
        row(question, settings, error=batch.errors[question.id])
        if question.id in batch.errors
        else row(question, settings, *next(completions))
        for question in batch.questions
    ]


@torch.inference_mode()
def complete(
    model, processor, inputs: dict[str, torch.Tensor], settings: EvalSettings
) -> list[tuple[str, int, bool]]:
    """(completion, its number of tokens, truncated) of each of B prompts [B, L].

    A completion ends before <|im_end|> (or <|endoftext|>), which is counted among its
    tokens; without one within max_new_tokens it is truncated. Tokens that stand for
    pictures cannot be generated. The model is in the state of rollouts.generating.
    """
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(list(END_TOKENS))
    greedy = rollouts.Decoding(
        max_tokens=settings.max_new_tokens,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        end_ids=tuple(ends),
        pad_id=tokenizer.pad_token_id,
        suppressed=tuple(encoding.visual_token_ids(model.config)),
    )
    prompts = prefix.make_prompts(model, inputs)
    groups = rollouts.decode(model, prompts, 1, greedy)
    return [cut(tokenizer, tokens, ends) for (tokens,) in groups]


def cut(tokenizer, tokens: list[int], ends: list[int]) -> tuple[str, int, bool]:
    """(text before the first end token, tokens up to and with it, none found).

    Special tokens are no part of the text, as in the rewards and the released code.
    """
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
    """The record of one answered, or failed, question.

    What the completion says is `rewards.judged`; tokens includes the end token, error
    names what is wrong with the video or is None; media is the content of clip and
    still (`chain.content`).
    """
    shown = [path and chain.content(path) for path in (question.video, question.image)]
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
        "media": shown,
    }


def metrics(rows: Sequence[dict]) -> dict:
    """Accuracies and shares over all rows; a failed item counts as a wrong answer.

    Keys: n, accuracy (first-letter rule), accuracy_lenient, parse_failure and
    parse_failure_lenient (share without a letter), truncated, failed (share with an
    unusable video), mean_tokens, by_domain and by_duration_group ({name: {n, accuracy,
    accuracy_lenient}}, empty where no row has a domain or duration group).
    """
    if not rows:
        raise ValueError("no rows: metrics of nothing are not defined")
    return {
        **scores(rows),
        "parse_failure": share(not row["parsed"] for row in rows),
        "parse_failure_lenient": share(row["lenient"] is None for row in rows),
        "truncated": share(row["truncated"] for row in rows),
        "failed": share(row["error"] is not None for row in rows),
        "mean_tokens": share(row["tokens"] for row in rows),
        "by_domain": scores_by(rows, "domain"),
        "by_duration_group": scores_by(rows, "duration_group"),
    }


def scores(rows: Sequence[dict]) -> dict:
    """n and the accuracy under both parsing rules."""
    return {
        "n": len(rows),
        "accuracy": share(row["correct"] for row in rows),
        "accuracy_lenient": share(row["correct_lenient"] for row in rows),
    }


def scores_by(rows: Sequence[dict], key: str) -> dict[str, dict]:
    """`scores` for each value of `key`, as text; rows without one are left out."""
    values = sorted({row[key] for row in rows if row[key]})
    return {
        str(value): scores([row for row in rows if row[key] == value])
        for value in values
    }


def share(values) -> float:
    """The mean of numbers or booleans."""
    values = list(values)
    return sum(values) / len(values)
