"""What a sound annotation record is: fields and rules for each kind of file.

The fields are those of https://huggingface.co/datasets/TencentARC/SEED-Bench-R1, as its
code reads them, and of LongVideoBench. A fault is (field, what was found, what was
expected, whether the record is usable all the same): real files have steps that end
after the observation, and answers that were done before."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from lib.data.letters import FORMAT, folded

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
PROGRESS = "task_progress_metadata"
FRAME = "current_observation_frame"
STILL = "current_observation_basename"
READ = (  # fields whose texts a model reads, themselves or within a list
    *("question", "task_goal", "answer", PROGRESS, *CHOICES),
    *("negative_answers", "candidates"),
)
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
UNPRINTED = re.compile(r"[\x00-\x1f\x7f]")  # escapes, line ends and the like
OWN_LETTER = re.compile(  # in front of an option: "B. ", "2) ", "Option B: ", "B "
    r"[\W_]*(?i:(?:option|choice|answer) ?)?"
    r"(?:(?i:([A-H1-8]|[ivx]{2,4}) ?(?:[.:)\]}*、]+| -)\s*)|([A-H]) )(?=[^\W\d])"
)
SERIES = ("ABCDEFGH", "12345678", ("I", "II", "III", "IV", "V", "VI", "VII", "VIII"))
NUMBERS = {sign: number for signs in SERIES for number, sign in enumerate(signs)}


def no_file(head: bytes) -> tuple[str, str] | None:
    """What a file is instead, by its first bytes, and what is wanted; None: itself."""
    begins = head.lstrip().lower()
    if begins.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer", "the file: run `git lfs pull`"
    if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page", "the file: download it again"
    return None


def is_text(value: object) -> bool:
    """A text with more than blanks in it, and of a length that can be read."""
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST


def is_integer(value: object) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    """What may name a record."""
    return is_integer(value) or is_text(value)


def is_relative(value: object) -> bool:
    """A path that stays below the folder it is joined to."""
    if not is_text(value) or set(value) & set("\\\0"):
        return False
    parts = PurePosixPath(value).parts
    return bool(parts) and parts[0][0] != "/" and ".." not in parts


def is_path(value: object) -> bool:
    """The same, of a length that a disk can have, and in one line of a message."""
    is_sound = is_relative(value) and not UNPRINTED.search(value)
    parts = value.encode("utf-8", "replace").split(b"/") if is_sound else []
    return bool(parts) and len(value) <= 1000 and max(map(len, parts)) <= 255


def is_file_name(value: object) -> bool:
    """A path without a folder."""
    return is_path(value) and "/" not in value


def shown(value: object) -> str:
    """A value as a message shows it, in at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return TOO_DEEP
    return text if len(text) <= 80 else text[:77] + "..."


TEXT = (is_text, f"a text that is not empty, of {LONGEST:,} characters at most")
INTEGER = (is_integer, "a whole number")
ID = (is_id, "a whole number or a text")
LIST = (lambda value: isinstance(value, list), "a list")
FILE_NAME = (
    is_file_name,
    "a file name, 255 bytes at most, without any folder or control character",
)
CANDIDATES = (
    lambda value: isinstance(value, list) and len(value) in (4, 5),
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
    "golden_choice_idx": (lambda v: v in [*"ABCD"], "one of the letters A, B, C, D"),
}
MAYBE = {"video_id": TEXT, FRAME: INTEGER, "task_start_frame": INTEGER}
A_STEP = "a step with narration_text"


def narration(step: dict) -> str:
    """What was done in a step: a key of two names."""
    words = step.get("narration_text")
    return step.get("narration") if words is None else words


def _form(record: dict, ascii_only: bool) -> Faults:
    """Blanks at the ends of texts that a model reads, and letters no other file has."""
    read = {name: record[name] for name in READ if name in record}
    for field, key, text, _ in _within(read):
        if is_text(text) and text != text.strip():
            yield _joined(field, key), shown(text), "no blanks at the ends", USABLE
        if is_text(text) and ascii_only and not text.isascii():
            expected = "plain ASCII, as everywhere else in these files"
            yield _joined(field, key), shown(text), expected, USABLE


def _options(
    asked: str, options: Mapping[str, str], gold: str, drawn: bool = False
) -> Faults:
    """Options by field; `gold` names the right one, which may be missing. Of `drawn`
    ones only those that differ are ever asked together."""
    answer, first = folded(options.get(gold, "")), {}
    for field, option in options.items():
        plain = folded(option)
        twin = first.setdefault(plain, field)
        if field != gold and plain == answer:
            expected = "an answer that is one option only"
            yield field, f"{shown(option)}, equal to {gold}", expected, drawn
        elif twin != field and plain != answer:
            found = f"{shown(option)}, equal to {twin}"
            yield field, found, "different options", USABLE
        if UNPRINTED.search(option.strip()):  # the prompt has a line for each
            yield field, shown(option), "one line, no control characters", USABLE
    yield from _own_letters(options, shuffled=drawn)
    yield from _in_question(asked, [*map(folded, options.values())], shuffled=drawn)


def _in_question(asked: str, options: Sequence[str], shuffled: bool) -> Faults:
    """A fault for each line of a question that is an option with a letter; usable if it
    is the letter that the prompt gives."""
    for line in unicodedata.normalize("NFKC", asked).splitlines():
        match = OWN_LETTER.match(line)
        if match and (option := folded(line[match.end() :])) in options:
            same = NUMBERS.get((match[1] or match[2]).upper()) == options.index(option)
            expected = "a question without its options: the prompt lists them"
            yield "question", shown(line), expected, same and not shuffled


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


def _planning(record: dict) -> Faults:
    yield from _form(record, ascii_only=True)
    frame, steps = record.get(FRAME), record[PROGRESS]
    if steps and not is_file_name(name := record.get("video_basename")):
        expected = f"{FILE_NAME[1]}, because there is progress to show"
        yield "video_basename", shown(name), expected, UNUSABLE
    done, start, answer = [], record.get("task_start_frame"), folded(record["answer"])
    for i, step in enumerate(steps):
        field = f"{PROGRESS}[{i}]"
        if not isinstance(step, dict):
            yield field, shown(step), A_STEP, UNUSABLE
            continue
        yield from _step(step, field, frame)
        start = step.get("start_frame") if start is None else start
        if is_text(narration(step)) and folded(narration(step)) == answer:
            done.append(field)
    if is_integer(frame) and frame < 0:
        yield FRAME, str(frame), "a frame number from 0 on", USABLE
    if steps and is_integer(frame) and is_integer(start) and frame < start:
        found = f"a clip of {frame - start} frames"
        yield FRAME, found, "an observation after the clip's start", USABLE
    if done:
        found = f"{shown(record['answer'])}, already done in {', '.join(done)}"
        yield "answer", found, "an action not yet done", USABLE


def _step(step: dict, field: str, frame: int | None) -> Faults:
    """A step of the progress, which should lie before the `frame` of observation."""
    if not is_text(narration(step)):
        found = shown(step.get("narration_text"))
        yield f"{field}.narration_text", found, A_STEP, UNUSABLE
    elif step.get("narration_text") is None:
        found = shown(step["narration"])
        yield f"{field}.narration", found, "the key narration_text", USABLE
    for key in ("start_frame", "stop_frame"):
        value, name = step.get(key), f"{field}.{key}"
        if not is_integer(value):
            yield name, shown(value), INTEGER[1], USABLE
        elif not is_integer(frame):
            continue
        elif key == "start_frame" and value >= frame:
            found = f"{value}, not before the observation {frame}"
            yield name, found, "a start before the observation", USABLE
        elif key == "stop_frame" and value > frame:
            found = f"{value}, after the observation {frame}"
            yield name, found, "an end before the observation", USABLE


def _validation(record: dict) -> Faults:
    yield from _planning(record)
    letter, answer = record["golden_choice_idx"], record["answer"]
    gold = CHOICES["ABCD".index(letter)]
    if answer.strip() != record[gold].strip():
        found = f"{shown(answer)} while option {letter} is {shown(record[gold])}"
        yield "answer", found, "the text of the gold option", UNUSABLE
    options = {choice: record[choice] for choice in CHOICES}
    yield from _options(record["question"], options, gold)


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
    texts = {"answer": record["answer"]}
    for i, negative in enumerate(record["negative_answers"]):
        if is_text(negative):
            texts[f"negative_answers[{i}]"] = negative
        else:
            yield f"negative_answers[{i}]", shown(negative), TEXT[1], UNUSABLE
    yield from _options(record["question"], texts, "answer", drawn=True)


PARTS = {"video": is_path, "image": is_path, "text": is_text}  # in the order wanted
ONE_MESSAGE = (
    "one user message: at most one video and one image, at least one of them, as"
    " relative paths, and one text"
)


def _demonstration(record: dict) -> Faults:
    wrong = list(_prompt(record["prompt"]))
    for field, found in wrong:
        yield field, found, ONE_MESSAGE, UNUSABLE
    if not wrong:
        order = [part["type"] for part in record["prompt"][0]["content"]]
        if order != [kind for kind in PARTS if kind in order]:
            expected = "video before image before text"
            yield "prompt[0].content", " before ".join(order), expected, USABLE
    if not FORMAT.fullmatch(record["response"]):
        expected = "<think>...</think><answer>...</answer>"
        yield "response", shown(record["response"]), expected, USABLE


def _prompt(prompt: list) -> Iterator[tuple[str, str]]:
    """(field, what was found) of what keeps a prompt from being one whole message."""
    place = "prompt[0].content"
    match prompt:
        case [{"role": "user", "content": list(content)}]:
            parts = [part if isinstance(part, dict) else {} for part in content]
        case [message]:
            yield "prompt[0]", shown(message)
            return
        case _:
            yield "prompt", f"{len(prompt)} messages"
            return
    kinds = [part.get("type") for part in parts]
    for i, (kind, part) in enumerate(zip(kinds, parts, strict=True)):
        if kind not in [*PARTS]:  # a list, as `kind` may be no key
            yield f"{place}[{i}].type", shown(kind)
        elif not PARTS[kind](part.get(kind)):
            yield f"{place}[{i}].{kind}", shown(part.get(kind))
    videos, images, texts = map(kinds.count, PARTS)
    if texts != 1 or max(videos, images) > 1 or not videos + images:
        yield place, f"{videos} videos, {images} images, {texts} texts"


def _general(record: dict) -> Faults:
    yield from _form(record, ascii_only=False)  # it quotes subtitles in any language
    named = {f"candidates[{i}]": text for i, text in enumerate(record["candidates"])}
    for field, text in named.items():
        if text == "N/A":
            found = "'N/A', padding of the parquet form"
            yield field, found, "real options only: drop the 'N/A'", UNUSABLE
        elif not is_text(text):
            yield field, shown(text), TEXT[1], UNUSABLE
    correct = record["correct_choice"]
    if not 0 <= correct < len(named):
        found = f"{correct} for {len(named)} candidates"
        yield "correct_choice", found, "the index of a candidate, from 0 on", UNUSABLE
    options = {field: text for field, text in named.items() if is_text(text)}
    yield from _options(record["question"], options, f"candidates[{correct}]")


class Kind(NamedTuple):
    """A kind of file; a condition is a function of a value, and what it wants."""

    name: str
    marks: tuple[str, ...]  # keys of which any gives the kind away
    fields: dict[str, tuple[Callable, str]]  # that every record has
    maybe: dict[str, tuple[Callable, str]]  # that may be absent
    rules: Callable[[dict], Faults]  # of records with sound fields
    unique: dict[tuple[str, ...], bool]  # once in a file; whether a repeat is usable


ASKED_ONCE = {("video_id", "task_goal", FRAME): USABLE}
L1_L2 = Kind(
    "SEED-Bench-R1 validation, L1 or L2",
    ("golden_choice_idx", *CHOICES),
    {"sample_id": INTEGER, **LABELLED},
    MAYBE,
    _validation,
    {("sample_id",): UNUSABLE, **ASKED_ONCE},
)
KINDS = {  # in the order in which a record is asked for its marks
    "general": Kind(
        "LongVideoBench validation",
        ("candidates", "correct_choice", "option0"),
        {
            **{"id": TEXT, "question": TEXT, "candidates": CANDIDATES},
            **{"correct_choice": INTEGER, "duration_group": INTEGER},
            "video_path": (is_path, "a path relative to the video folder"),
        },
        {},
        _general,
        {("id",): UNUSABLE},
    ),
    "demonstrations": Kind(
        "SEED-Bench-R1 training with reasoning",
        ("prompt", "response"),
        {"prompt": LIST, "response": TEXT},
        {"sample_id": ID},
        _demonstration,
        {("sample_id", "response"): USABLE},
    ),
    "training": Kind(
        "SEED-Bench-R1 training",
        ("negative_answers",),
        {"sample_id": ID, "negative_answers": LIST, **PLANNING},
        MAYBE,
        _training,
        {("sample_id",): USABLE, **ASKED_ONCE},
    ),
    "L3": L1_L2._replace(
        name="SEED-Bench-R1 validation, L3",
        marks=("domain", "scenario"),
        fields={"sample_id": TEXT, "domain": TEXT, "scenario": TEXT, **LABELLED},
    ),
    "L1": L1_L2,
    "L2": L1_L2,
}


def record_faults(record: dict, line: int, kind: Kind, seen: dict) -> Faults:
    """Everything wrong with one record, and what it has of an earlier one: `seen`
    remembers in which line each value that may occur once did."""
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
    for names, usable in kind.unique.items():
        values = [record.get(name) for name in names]
        if all(isinstance(value, (int, str)) for value in values):
            key = (names, *map(str, values))  # an id is a text: 1 and "1" are one
            if key in seen:
                found = f"the {' and '.join(names)} of line {seen[key]} again"
                yield names[0], found, "it once", usable
            seen.setdefault(key, line)


def _odd(record: dict) -> Faults:
    """What nothing in a record may be, whether it is read or not."""
    for place, key, part, depth in _within(record):
        field = _joined(place, key)
        if key is TWICE:
            for name, values in part.items():
                found = f"it {len(values)} times, {shown(values)}"
                yield _joined(place, name), found, "it once", UNUSABLE
        elif depth == DEEPEST and isinstance(part, (dict, list)):
            yield field, TOO_DEEP, f"{DEEPEST} levels at most", UNUSABLE
        for text in (key, part):
            if isinstance(text, str) and UNREADABLE.search(text):
                found = f"half a character, or a mark that is no text: {shown(text)}"
                yield field, found, "Unicode text", UNUSABLE
            elif isinstance(text, str) and (token := CONTROL.search(text)):
                found = f"{shown(token[0])} in a text"
                yield field, found, "words alone: spell it otherwise", UNUSABLE


def _within(value: dict | list, place: str = "", depth: int = 1) -> Iterator[tuple]:
    """(place, key, value, depth) of all that lies in a record, down to DEEPEST."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield place, key, part, depth
        is_inner = isinstance(part, (dict, list)) and key is not TWICE
        if is_inner and depth < DEEPEST:
            yield from _within(part, _joined(place, key), depth + 1)


def _joined(place: str, key: str | int | None) -> str:
    if not isinstance(key, str):
        return f"{place}[{key}]"
    name = key if key.isprintable() and len(key) <= 80 else shown(key)
    return f"{place}.{name}" if place else name
