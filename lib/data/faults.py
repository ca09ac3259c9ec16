"""What a sound annotation record is: fields and rules for each kind of file.

The kinds are those of SEED-Bench-R1 (https://arxiv.org/abs/2503.24376; fields as on
https://huggingface.co/datasets/TencentARC/SEED-Bench-R1 and as its code reads them) and
LongVideoBench (https://arxiv.org/abs/2407.15754). A fault is (field, what was found,
what was expected, whether the record is usable all the same): real files have steps
that end after the observation, and answers that were done before.

    >>> record = {"sample_id": 7, "question": "", ...}
    >>> next(record_faults(record, KINDS["L1"]))
    ('question', "''", 'a text that is not empty, of 100,000 characters at most', False)

The rules of a kind are one function, asked of records whose needed fields are sound.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from lib.data.letters import FORMAT, folded

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
PROGRESS = "task_progress_metadata"
FRAME = "current_observation_frame"
STILL = "current_observation_basename"
USABLE, UNUSABLE = True, False
Faults = Iterator[tuple[str, str, str, bool]]

TWICE = None  # key of what a record has twice, {name: values}: no JSON has such a key
LONGEST = 100_000  # characters of a text; more than any model reads
TOO_DEEP = "values too deep within values"
DEEPEST = 20  # values within values; the deepest of a sound record has 5
# Halves of characters, which no file can hold, and the two marks that encoding a text
# (`lib/model/encoding.py`) has for itself.
UNREADABLE = re.compile("[\ud800-\udfff\U000f0000\U000f0001]")
CONTROL = re.compile(r"<\|\w+\|>")
# A letter or number in front of an option: "B. ", "(b) ", "2) ", "Option B: ", or a
# bare "B ".
OWN_LETTER = re.compile(
    r"[\W_]*(?i:(?:option|choice|answer) ?)?"
    r"(?:(?i:([A-H1-8]|[ivx]{2,4}) ?(?:[.:)\]}*、]+| -)\s*)|([A-H]) )(?=[^\W\d])"
)
SERIES = ("ABCDEFGH", "12345678", ("I", "II", "III", "IV", "V", "VI", "VII", "VIII"))
NUMBERS = {sign: number for signs in SERIES for number, sign in enumerate(signs)}


# --- conditions of one value ----------------------------------------------------------


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    return is_integer(value) or is_text(value)


def is_list(value: object) -> bool:
    return isinstance(value, list)


def is_relative(value: object) -> bool:
    """A path that stays below the folder it is joined to."""
    if not is_text(value) or set(value) & set("\\\0"):
        return False
    path = PurePosixPath(value)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_path(value: object) -> bool:
    """The same, of a length that a disk can have."""
    if not is_relative(value) or len(value) > 1000:
        return False
    return all(len(part.encode(errors="replace")) <= 255 for part in value.split("/"))


def is_file_name(value: object) -> bool:
    return is_path(value) and "/" not in value


def shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return TOO_DEEP
    return text if len(text) <= 80 else text[:77] + "..."


TEXT = (is_text, f"a text that is not empty, of {LONGEST:,} characters at most")
INTEGER = (is_integer, "a whole number")
ID = (is_id, "a whole number or a text")
LIST = (is_list, "a list")
FILE_NAME = (is_file_name, "a file name, 255 bytes at most, without any folder")
CANDIDATES = (
    lambda value: is_list(value) and 4 <= len(value) <= 5,
    "a list of 4 or 5 options (join option0, option1, ... without the 'N/A' ones)",
)
PLANNING = {
    **dict.fromkeys(("question", "task_goal", "answer"), TEXT),
    PROGRESS: LIST,
    "video_source": (is_file_name, "the name of a folder below videos/ and images/"),
    STILL: FILE_NAME,
}
LABELLED = {
    **PLANNING,
    **dict.fromkeys(CHOICES, TEXT),
    "golden_choice_idx": (
        lambda value: value in list("ABCD"),
        "one of the letters A, B, C, D",
    ),
}
MAYBE = {"video_id": TEXT, FRAME: INTEGER, "task_start_frame": INTEGER}
# Fields whose texts a model reads, themselves or within a list.
READ = ("question", "task_goal", "answer", PROGRESS, *CHOICES)
READ = (*READ, "negative_answers", "candidates")


def narration(step: dict) -> str:
    """What was done in a step: a key of two names."""
    words = step.get("narration_text")
    return step.get("narration") if words is None else words


# --- rules of texts and options -------------------------------------------------------


def _form(value: object, field: str, ascii_only: bool) -> Faults:
    """Blanks at the ends of a value's texts, and letters that no other file has."""
    if isinstance(value, (dict, list)):
        for key, part in _parts(value):
            if key is not TWICE:
                yield from _form(part, _joined(field, key), ascii_only)
    elif is_text(value):
        if value != value.strip():
            yield field, shown(value), "no blanks at the ends", USABLE
        if ascii_only and not value.isascii():
            expected = "plain ASCII, as everywhere else in these files"
            yield field, shown(value), expected, USABLE


def _options(options: Mapping[str, str], gold: str) -> Faults:
    """Options by field; `gold` names the right one, which may be missing."""
    answer, first = folded(options.get(gold, "")), {}
    for field, option in options.items():
        plain = folded(option)
        twin = first.setdefault(plain, field)
        if field != gold and plain == answer:
            found = f"{shown(option)}, equal to the answer in {gold}"
            yield field, found, "an answer that is one option only", UNUSABLE
        elif twin != field and plain != answer:
            found = f"{shown(option)}, equal to {twin}"
            yield field, found, "different options", USABLE
    yield from _own_letters(options, shuffled=False)


def _own_letters(options: Mapping[str, str], shuffled: bool) -> Faults:
    """A fault if most options carry letters, each another of the first ("D. Miller" has
    none of its own); usable if they are those that the prompt gives."""
    found = {}
    for place, (field, text) in enumerate(options.items()):
        if match := OWN_LETTER.match(unicodedata.normalize("NFKC", text)):
            found[field] = (NUMBERS.get((match[1] or match[2]).upper(), 99), place)
    numbers = {number for number, _ in found.values()}
    if len(options) / 2 < len(found) == len(numbers) and max(numbers) < len(options):
        field = next(iter(found))
        said = f"{shown(options[field])}, with a letter of its own, as others have"
        expected = "options without letters of their own: the prompt gives them"
        own = any(number != place for number, place in found.values())
        yield field, said, expected, not (shuffled or own)


# --- rules of the kinds ---------------------------------------------------------------


def _planning(record: dict) -> Faults:
    for name in READ:
        yield from _form(record.get(name), name, ascii_only=True)
    steps = {f"{PROGRESS}[{i}]": step for i, step in enumerate(record[PROGRESS])}
    if steps and not is_file_name(name := record.get("video_basename")):
        expected = f"{FILE_NAME[1]}, because there is progress to show"
        yield "video_basename", shown(name), expected, UNUSABLE
    for field, step in steps.items():
        yield from _step(field, step)
    steps = {field: step for field, step in steps.items() if isinstance(step, dict)}
    if is_integer(record.get(FRAME)):
        yield from _times(record[FRAME], record.get("task_start_frame"), steps)
    said, answer = map(narration, steps.values()), folded(record["answer"])
    is_done = [is_text(words) and folded(words) == answer for words in said]
    if any(is_done):
        fields = ", ".join(f for f, done in zip(steps, is_done, strict=True) if done)
        found = f"{shown(record['answer'])}, already done in {fields}"
        yield "answer", found, "an action not yet done", USABLE


def _step(field: str, step: object) -> Faults:
    expected = "a step with narration_text"
    if not isinstance(step, dict):
        yield field, shown(step), expected, UNUSABLE
        return
    if not is_text(narration(step)):
        found = shown(step.get("narration_text"))
        yield f"{field}.narration_text", found, expected, UNUSABLE
    elif step.get("narration_text") is None:
        found = shown(step["narration"])
        yield f"{field}.narration", found, "the key narration_text", USABLE
    for key in ("start_frame", "stop_frame"):
        if not is_integer(step.get(key)):
            yield f"{field}.{key}", shown(step.get(key)), INTEGER[1], USABLE


def _times(frame: int, start: int | None, steps: dict[str, dict]) -> Faults:
    """The observation's frame against the clip's start and the steps' ends."""
    if frame < 0:
        yield FRAME, str(frame), "a frame number from 0 on", USABLE
    if start is None and steps:
        start = next(iter(steps.values())).get("start_frame")
    if steps and is_integer(start) and frame < start:
        found = f"a clip of {frame - start} frames"
        yield FRAME, found, "an observation after the clip's start", USABLE
    for field, step in steps.items():
        start, stop = step.get("start_frame"), step.get("stop_frame")
        if is_integer(start) and start >= frame:
            found = f"{start}, not before the observation {frame}"
            expected = "a start before the observation"
            yield f"{field}.start_frame", found, expected, USABLE
        if is_integer(stop) and stop > frame:
            found = f"{stop}, after the observation {frame}"
            yield f"{field}.stop_frame", found, "an end before the observation", USABLE


def _validation(record: dict) -> Faults:
    yield from _planning(record)
    letter = record["golden_choice_idx"]
    gold = CHOICES["ABCD".index(letter)]
    if record["answer"].strip() != record[gold].strip():
        found = f"{shown(record['answer'])} while option {letter} is"
        found = f"{found} {shown(record[gold])}"
        yield "answer", found, "the text of the gold option", UNUSABLE
    yield from _options({choice: record[choice] for choice in CHOICES}, gold)


def distinct_negatives(record: dict) -> list[str]:
    """The negative answers that differ from the answer and from each other."""
    first = {folded(record["answer"]): ""}
    for negative in filter(is_text, record["negative_answers"]):
        first.setdefault(folded(negative), negative)
    return list(first.values())[1:]


def _training(record: dict) -> Faults:
    yield from _planning(record)
    count = len(distinct_negatives(record))
    if count < 3:
        found = f"{count} that differ from the answer and each other"
        yield "negative_answers", found, "at least 3 to draw from", UNUSABLE
    first, texts = {folded(record["answer"]): "answer"}, {"answer": record["answer"]}
    for i, negative in enumerate(record["negative_answers"]):
        field = f"negative_answers[{i}]"
        if not is_text(negative):
            yield field, shown(negative), TEXT[1], UNUSABLE
            continue
        texts[field] = negative
        if (twin := first.setdefault(folded(negative), f"[{i}]")) != f"[{i}]":
            found = f"{shown(negative)}, equal to {twin}"
            expected = "negatives that differ from the answer and from each other"
            yield field, found, expected, USABLE
    yield from _own_letters(texts, shuffled=True)


PARTS = {"video": is_path, "image": is_path, "text": is_text}  # in the order wanted


def _demonstration(record: dict) -> Faults:
    wrong = list(_prompt(record["prompt"]))
    for field, found in wrong:
        expected = (
            "one user message: at most one video and one image, at least one of them,"
            " as relative paths, and one text"
        )
        yield field, found, expected, UNUSABLE
    if not wrong:
        order = [part["type"] for part in record["prompt"][0]["content"]]
        if order != [kind for kind in PARTS if kind in order]:
            found = " before ".join(order)
            expected = "video before image before text"
            yield "prompt[0].content", found, expected, USABLE
    if not FORMAT.fullmatch(record["response"]):
        expected = "<think>...</think><answer>...</answer>"
        yield "response", shown(record["response"]), expected, USABLE


def _prompt(prompt: list) -> Iterator[tuple[str, str]]:
    """(field, what was found) of what keeps a prompt from being one whole message."""
    message, place = prompt[0] if len(prompt) == 1 else None, "prompt[0].content"
    content = message.get("content") if isinstance(message, dict) else None
    if len(prompt) != 1:
        yield "prompt", f"{len(prompt)} messages"
    elif not isinstance(message, dict) or message.get("role") != "user":
        yield "prompt[0]", shown(message)
    elif not is_list(content):
        yield place, shown(content)
    else:
        kinds = [
            part.get("type") if isinstance(part, dict) else None for part in content
        ]
        for i, kind in enumerate(kinds):
            if kind not in list(PARTS):
                yield f"{place}[{i}].type", shown(kind)
            elif not PARTS[kind](content[i].get(kind)):
                yield f"{place}[{i}].{kind}", shown(content[i].get(kind))
        videos, images, texts = map(kinds.count, PARTS)
        if texts != 1 or max(videos, images) > 1 or not videos + images:
            yield place, f"{videos} videos, {images} images, {texts} texts"


def _general(record: dict) -> Faults:
    for name in READ:  # its questions quote subtitles in any language
        yield from _form(record.get(name), name, ascii_only=False)
    named = {f"candidates[{i}]": text for i, text in enumerate(record["candidates"])}
    for field, text in named.items():
        if text == "N/A":
            found, expected = "'N/A', padding of the parquet form", "real options only"
            yield field, found, f"{expected}: drop the 'N/A'", UNUSABLE
        elif not is_text(text):
            yield field, shown(text), TEXT[1], UNUSABLE
    correct = record["correct_choice"]
    if not 0 <= correct < len(named):
        found = f"{correct} for {len(named)} candidates"
        yield "correct_choice", found, "the index of a candidate, from 0 on", UNUSABLE
    options = {field: text for field, text in named.items() if is_text(text)}
    yield from _options(options, f"candidates[{correct}]")


# --- the kinds ------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of file: its name, the keys of which any gives it away, the fields that
    its records must have (name: condition, in words), its rules, the values that may
    occur once, with whether a repeat is usable, and the fields that may be absent."""

    name: str
    marks: tuple[str, ...]
    fields: dict[str, tuple[Callable, str]]
    rules: Callable[[dict], Faults]
    unique: tuple[tuple[tuple[str, ...], bool], ...]
    maybe: dict[str, tuple[Callable, str]] = MAYBE
    is_list: bool = False


ASKED_ONCE = (("video_id", "task_goal", FRAME), USABLE)
L1_L2 = Kind(
    name="SEED-Bench-R1 validation, L1 or L2",
    marks=("golden_choice_idx", *CHOICES),
    fields={"sample_id": INTEGER, **LABELLED},
    rules=_validation,
    unique=((("sample_id",), UNUSABLE), ASKED_ONCE),
)
KINDS = {  # in the order in which a record is asked for its marks
    "general": Kind(
        name="LongVideoBench validation",
        marks=("candidates", "correct_choice", "option0"),
        fields={
            **dict.fromkeys(("id", "question"), TEXT),
            "candidates": CANDIDATES,
            **dict.fromkeys(("correct_choice", "duration_group"), INTEGER),
            "video_path": (is_path, "a path relative to the video folder"),
        },
        rules=_general,
        unique=((("id",), UNUSABLE),),
        maybe={},
        is_list=True,
    ),
    "demonstrations": Kind(
        name="SEED-Bench-R1 training with reasoning",
        marks=("prompt", "response"),
        fields={"prompt": LIST, "response": TEXT},
        rules=_demonstration,
        unique=((("sample_id", "response"), USABLE),),
        maybe={"sample_id": ID},
    ),
    "training": Kind(
        name="SEED-Bench-R1 training",
        marks=("negative_answers",),
        fields={"sample_id": ID, "negative_answers": LIST, **PLANNING},
        rules=_training,
        unique=((("sample_id",), USABLE), ASKED_ONCE),
    ),
    "L3": L1_L2._replace(
        name="SEED-Bench-R1 validation, L3",
        marks=("domain", "scenario"),
        fields={"sample_id": TEXT, "domain": TEXT, "scenario": TEXT, **LABELLED},
    ),
    "L1": L1_L2,
    "L2": L1_L2,
}


# --- asking a record ------------------------------------------------------------------


def record_faults(record: dict, kind: Kind) -> Faults:
    """Everything wrong within one record."""
    odd = list(_odd(record))
    yield from odd
    if any(found == TOO_DEEP for _, found, *_ in odd):
        return  # not even a fault could show it
    is_whole = True
    for name, (is_sound, expected) in {**kind.fields, **kind.maybe}.items():
        value, usable = record.get(name), name in kind.maybe
        if not is_sound(value) and not (usable and value is None):
            is_whole = is_whole and usable
            found = shown(value) if name in record else "no such field"
            yield name, found, expected, usable
    if is_whole:
        yield from kind.rules(record)


def _odd(value: dict | list, field: str = "", depth: int = 1) -> Faults:
    """What nothing in a record may be, whether it is read or not."""
    for key, part in _parts(value):
        if key is TWICE:
            for name, values in part.items():
                found = f"it {len(values)} times, {shown(values)}"
                yield _joined(field, name), found, "it once", UNUSABLE
            continue
        for text in (key, part):
            if isinstance(text, str) and UNREADABLE.search(text):
                found = f"half a character, or a mark that is no text: {shown(text)}"
                yield _joined(field, key), found, "Unicode text", UNUSABLE
            elif isinstance(text, str) and (token := CONTROL.search(text)):
                found = f"{shown(token[0])} in a text"
                expected = "words alone: spell it otherwise"
                yield _joined(field, key), found, expected, UNUSABLE
        if isinstance(part, (dict, list)):
            inner = _joined(field, key)
            if depth == DEEPEST:
                yield inner, TOO_DEEP, f"{DEEPEST} levels at most", UNUSABLE
            else:
                yield from _odd(part, inner, depth + 1)


def _parts(value: dict | list) -> Iterator[tuple[str | int | None, object]]:
    return iter(value.items()) if isinstance(value, dict) else enumerate(value)


def _joined(field: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{field}[{key}]"
    name = key if key.isprintable() and len(key) <= 80 else shown(key)
    return f"{field}.{name}" if field else name


def repeats(record: dict, line: int, kind: Kind, seen: dict) -> Faults:
    """Values that an earlier record has; `seen` remembers their lines."""
    for names, usable in kind.unique:
        values = [record.get(name) for name in names]
        if not all(isinstance(value, (int, str)) for value in values):
            continue
        key = (names, *map(str, values))  # an id is a text: 1 and "1" are one
        if key in seen:
            what = " and ".join(names)
            yield names[0], f"the {what} of line {seen[key]} again", "it once", usable
        seen.setdefault(key, line)
