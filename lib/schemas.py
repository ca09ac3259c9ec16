"""What a sound annotation record is: fields and rules for each kind of file.

The kinds are those of SEED-Bench-R1 (https://arxiv.org/abs/2503.24376; fields as on
https://huggingface.co/datasets/TencentARC/SEED-Bench-R1 and as its code reads them) and
LongVideoBench (https://arxiv.org/abs/2407.15754). A breach makes a record unusable, or
is only worth knowing (usable): real files have steps that end after the observation,
and answers that were done before.

    >>> record = {"sample_id": 7, "question": "", ...}
    >>> next(record_faults(record, KINDS["L1"]))
    ('question', "''", 'a text that is not empty', False)

The tables stand at the end, after the conditions they are made of.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from lib.rewards import format_reward

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
PROGRESS = "task_progress_metadata"
FRAME = "current_observation_frame"
STILL = "current_observation_basename"

TWICE = None  # key of what a record has twice, {name: values}: no JSON has such a key
LONGEST = 100_000  # characters of a text; more than any model reads
TOO_DEEP = "values too deep within values"
DEEPEST = 20  # values within values; the deepest of a sound record has 5
# Halves of characters, which no file can hold, and the two marks that `models.encode`
# has for itself.
UNREADABLE = re.compile("[\ud800-\udfff\U000f0000\U000f0001]")
CONTROL = re.compile(r"<\|\w+\|>")
INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff]")
# A letter or number in front of an option: "B. ", "(b) ", "2) ", "Option B: ", or a
# bare "B ".
OWN_LETTER = re.compile(
    r"[\W_]*(?i:(?:option|choice|answer) ?)?"
    r"(?:(?i:([A-H1-8]|[ivx]{2,4}) ?(?:[.:)\]}*、]+| -)\s*)|([A-H]) )(?=[^\W\d])"
)


# --- what a sound field is ------------------------------------------------------------


class Field(NamedTuple):
    """A field's own condition. One that is `optional` may be absent or null, and if it
    is unsound the record can still be used: only the rules below look at it."""

    sound: Callable[[object], bool]
    expected: str
    optional: bool = False


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    return is_integer(value) or is_text(value)


def is_relative(value: object) -> bool:
    """A path that stays below the folder it is joined to, and that a disk can have."""
    if not is_text(value) or set(value) & set("\\\0") or len(value) > 1000:
        return False
    path = PurePosixPath(value)
    longest = max(
        (len(part.encode(errors="replace")) for part in path.parts), default=0
    )
    return 0 < longest <= 255 and not path.is_absolute() and ".." not in path.parts


def is_file_name(value: object) -> bool:
    return is_relative(value) and "/" not in value


TEXT = Field(is_text, f"a text that is not empty, of {LONGEST:,} characters at most")
INTEGER = Field(is_integer, "a whole number")
FILE_NAME = Field(is_file_name, "a file name, 255 bytes at most, without any folder")
LETTER = Field(lambda value: value in list("ABCD"), "one of the letters A, B, C, D")
SOURCE = Field(is_file_name, "the name of a folder below videos/ and images/")
LIST = Field(lambda value: isinstance(value, list), "a list")
CANDIDATES = Field(
    lambda value: isinstance(value, list) and 4 <= len(value) <= 5,
    "a list of 4 or 5 options (join option0, option1, ... without the 'N/A' ones)",
)
CLIP_PATH = Field(is_relative, "a path relative to the video folder")

MAYBE_TEXT = TEXT._replace(optional=True)
MAYBE_INTEGER = INTEGER._replace(optional=True)
ID = Field(is_id, "a whole number or a text")

PLANNING = {
    "question": TEXT,
    "task_goal": TEXT,
    "answer": TEXT,
    PROGRESS: LIST,
    "video_source": SOURCE,
    STILL: FILE_NAME,
    "video_id": MAYBE_TEXT,
    FRAME: MAYBE_INTEGER,
    "task_start_frame": MAYBE_INTEGER,
}
LABELLED = {**PLANNING, **dict.fromkeys(CHOICES, TEXT), "golden_choice_idx": LETTER}


# --- rules between fields -------------------------------------------------------------


class Rule(NamedTuple):
    """`broken` yields (field, what was found) for each breach within a record."""

    broken: Callable[[dict], Iterator[tuple[str, str]]]
    expected: str
    usable: bool


class Rules(NamedTuple):
    """Rules asked of records in which the fields they `need` are sound."""

    need: tuple[str, ...]
    rules: tuple[Rule, ...]


def folded(text: str) -> str:
    """`text` without what a reader does not see: case, blanks and Unicode's forms."""
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return " ".join(text.casefold().split())


def _same(one: str, other: str) -> bool:
    return folded(one) == folded(other)


def narration(step: dict) -> str:
    return step.get("narration_text") or step["narration"]


def _steps(record: dict) -> Iterator[tuple[str, dict]]:
    """(field, step) for every step that is an object."""
    for i, step in enumerate(record[PROGRESS]):
        if isinstance(step, dict):
            yield f"{PROGRESS}[{i}]", step


def _four(record: dict) -> tuple[dict[str, str], str]:
    """The options of a validation record by field, and the field of the gold one."""
    gold = CHOICES["ABCD".index(record["golden_choice_idx"])]
    return {choice: record[choice] for choice in CHOICES}, gold


def _candidates(record: dict) -> tuple[dict[str, str], str]:
    """The same for a LongVideoBench record; candidates that are no text left out."""
    named = {f"candidates[{i}]": text for i, text in enumerate(record["candidates"])}
    options = {field: text for field, text in named.items() if is_text(text)}
    return options, f"candidates[{record['correct_choice']}]"


def _step_without_words(record):
    for i, step in enumerate(record[PROGRESS]):
        if not isinstance(step, dict):
            yield f"{PROGRESS}[{i}]", shown(step)
            continue
        found = step.get("narration_text")
        if not is_text(found if found is not None else step.get("narration")):
            yield f"{PROGRESS}[{i}].narration_text", shown(found)


def _step_with_other_key(record):
    for field, step in _steps(record):
        if step.get("narration_text") is None and is_text(step.get("narration")):
            yield f"{field}.narration", shown(step["narration"])


def _step_without_frames(record):
    for field, step in _steps(record):
        for key in ("start_frame", "stop_frame"):
            if not is_integer(step.get(key)):
                yield f"{field}.{key}", shown(step.get(key))


def _step_ends_late(record):
    for field, step in _steps(record):
        stop = step.get("stop_frame")
        if is_integer(stop) and stop > record[FRAME]:
            yield (
                f"{field}.stop_frame",
                f"{stop}, after the observation {record[FRAME]}",
            )


def _step_starts_late(record):
    for field, step in _steps(record):
        start = step.get("start_frame")
        if is_integer(start) and start >= record[FRAME]:
            yield (
                f"{field}.start_frame",
                f"{start}, not before the observation {record[FRAME]}",
            )


def _negative_length(record):
    first = next((step for _, step in _steps(record)), {})
    start = record.get("task_start_frame")
    start = first.get("start_frame") if start is None else start
    if record[PROGRESS] and is_integer(start) and record[FRAME] < start:
        yield FRAME, f"a clip of {record[FRAME] - start} frames"


def _negative_frame(record):
    if record[FRAME] < 0:
        yield FRAME, str(record[FRAME])


def _no_clip_name(record):
    name = record.get("video_basename")
    if record[PROGRESS] and not is_file_name(name):
        yield "video_basename", shown(name)


def _answer_done(record):
    done = []
    for field, step in _steps(record):
        words = step.get("narration_text") or step.get("narration")
        if is_text(words) and _same(words, record["answer"]):
            done.append(field)
    if done:
        yield "answer", f"{shown(record['answer'])}, already done in {', '.join(done)}"


def _answer_differs(record):
    options, gold = _four(record)
    if record["answer"].strip() != options[gold].strip():
        letter = record["golden_choice_idx"]
        found = f"{shown(record['answer'])} while option {letter} is"
        yield "answer", f"{found} {shown(options[gold])}"


def _gold_twice(options_of, record):
    options, gold = options_of(record)
    for field, option in options.items():
        if field != gold and gold in options and _same(option, options[gold]):
            yield field, f"{shown(option)}, equal to the answer in {gold}"


def _wrong_twice(options_of, record):
    options, gold = options_of(record)
    first_with = {}
    for field, option in options.items():
        first = first_with.setdefault(folded(option), field)
        if first != field and not _same(option, options.get(gold, "")):
            yield field, f"{shown(option)}, equal to {first}"


def _negative_without_words(record):
    for i, negative in enumerate(record["negative_answers"]):
        if not is_text(negative):
            yield f"negative_answers[{i}]", shown(negative)


def distinct_negatives(record: dict) -> list[str]:
    """The negative answers that differ from the answer and from each other."""
    seen, distinct = {folded(record["answer"])}, []
    for negative in record["negative_answers"]:
        text = folded(negative) if is_text(negative) else ""
        if text and text not in seen:
            distinct.append(negative)
        seen.add(text)
    return distinct


def _few_negatives(record):
    count = len(distinct_negatives(record))
    if count < 3:
        yield "negative_answers", f"{count} that differ from the answer and each other"


def _negative_twice(record):
    seen = {folded(record["answer"]): "answer"}
    for i, negative in enumerate(record["negative_answers"]):
        if is_text(negative):
            first = seen.setdefault(folded(negative), f"[{i}]")
            if first != f"[{i}]":
                yield f"negative_answers[{i}]", f"{shown(negative)}, equal to {first}"


def _own_letters(options: Mapping[str, str]) -> dict[str, str]:
    """The letters that most options carry, each another, by field; else none."""
    found = {
        field: match[1] or match[2]
        for field, text in options.items()
        if (match := OWN_LETTER.match(unicodedata.normalize("NFKC", text)))
    }
    most = len(found) > len(options) / 2 and len({*found.values()}) == len(found)
    return {field: letter.upper() for field, letter in found.items()} if most else {}


def _with_letters(options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field in list(_own_letters(options))[:1]:
        yield (
            field,
            f"{shown(options[field])}, with a letter of its own, as others have",
        )


def _shuffled_letters(record):
    negatives = enumerate(record["negative_answers"])
    named = {f"negative_answers[{i}]": text for i, text in negatives if is_text(text)}
    yield from _with_letters({"answer": record["answer"], **named})


def _other_letters(options_of, record):
    options, _ = options_of(record)
    own = _own_letters(options)
    places = dict(zip(options, zip("ABCDE", "12345", strict=True), strict=False))
    if any(letter not in places[field] for field, letter in own.items()):
        yield from _with_letters(options)


def _same_letters(options_of, record):
    if not any(_other_letters(options_of, record)):
        yield from _with_letters(options_of(record)[0])


def _padded(record):
    for i, candidate in enumerate(record["candidates"]):
        if candidate == "N/A":
            yield f"candidates[{i}]", "'N/A', padding of the parquet form"


def _candidate_without_words(record):
    for i, candidate in enumerate(record["candidates"]):
        if not is_text(candidate):
            yield f"candidates[{i}]", shown(candidate)


def _choice_outside(record):
    count = len(record["candidates"])
    if not 0 <= record["correct_choice"] < count:
        yield "correct_choice", f"{record['correct_choice']} for {count} candidates"


def _prompt_shape(record):
    if len(record["prompt"]) != 1:
        yield "prompt", f"{len(record['prompt'])} messages"
        return
    message = record["prompt"][0]
    if not isinstance(message, dict) or message.get("role") != "user":
        yield "prompt[0]", shown(message)
        return
    content = message.get("content")
    if not isinstance(content, list):
        yield "prompt[0].content", shown(content)
        return
    yield from _content_shape(content)


def _content_shape(content: list) -> Iterator[tuple[str, str]]:
    sound = {"video": is_relative, "image": is_relative, "text": is_text}
    kinds = Counter()
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in list(sound):
            yield f"prompt[0].content[{i}].type", shown(kind)
        elif not sound[kind](part.get(kind)):
            yield f"prompt[0].content[{i}].{kind}", shown(part.get(kind))
        kinds[str(kind)] += 1
    if kinds["text"] != 1 or max(kinds["video"], kinds["image"]) > 1:
        yield "prompt[0].content", f"{dict(kinds)}"
    elif not kinds["video"] + kinds["image"]:
        yield "prompt[0].content", "neither video nor image"


def _content(record: dict) -> list[dict]:
    """The parts of a demonstration's message, whatever else the record is."""
    prompt = record.get("prompt")
    message = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else None
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict)]


def _content_order(record):
    order = [part.get("type") for part in _content(record)]
    known = [kind for kind in ("video", "image", "text") if kind in order]
    if len(known) == len(order) and known != order:
        yield "prompt[0].content", " before ".join(map(str, order))


def _response_form(record):
    if not format_reward(record["response"]):
        yield "response", shown(record["response"])


def _texts(record: dict) -> Iterator[tuple[str, str]]:
    """(field, text) for all that a model reads, and every narration."""
    for name in ("question", "task_goal", "answer", *CHOICES, "response"):
        yield name, record.get(name)
    for name in ("negative_answers", "candidates"):
        if isinstance(record.get(name), list):
            for i, text in enumerate(record[name]):
                yield f"{name}[{i}]", text
    if isinstance(record.get(PROGRESS), list):
        for field, step in _steps(record):
            for key in ("narration_text", "narration"):
                yield f"{field}.{key}", step.get(key)
    for i, part in enumerate(_content(record)):
        yield f"prompt[0].content[{i}].text", part.get("text")


def _control_tokens(record):
    for field, text in _texts(record):
        if is_text(text) and (token := CONTROL.search(text)):
            yield field, f"{shown(token[0])} in a text"


def _edge_blanks(record):
    for field, text in _texts(record):
        if is_text(text) and text != text.strip():
            yield field, shown(text)


def _not_ascii(record):
    for field, text in _texts(record):
        if is_text(text) and not text.isascii():
            yield field, shown(text)


UNUSABLE, USABLE = False, True
ONE_ANSWER = "an answer that is one option only"
NAME_OF_CLIP = "a file name, without any folder, because there is progress to show"
DIFFERENT = "negatives that differ from the answer and from each other"
ONE_USER_MESSAGE = (
    "one user message: at most one video and one image, at least one of them, as"
    " relative paths, and one text"
)
TEXT_FORM = (
    Rule(_edge_blanks, "no blanks at the ends", USABLE),
    Rule(_not_ascii, "plain ASCII, as everywhere else in these files", USABLE),
)
NO_CONTROL = Rule(_control_tokens, "words alone: spell it otherwise", UNUSABLE)
NO_LETTERS = "options without letters of their own: the prompt gives them"
PLANNING_RULES = (
    Rules((), (NO_CONTROL, *TEXT_FORM)),
    Rules((FRAME,), (Rule(_negative_frame, "a frame number from 0 on", USABLE),)),
    Rules(
        (PROGRESS,),
        (
            Rule(_no_clip_name, NAME_OF_CLIP, UNUSABLE),
            Rule(_step_without_words, "a step with narration_text", UNUSABLE),
            Rule(_step_with_other_key, "the key narration_text", USABLE),
            Rule(_step_without_frames, "a whole number", USABLE),
        ),
    ),
    Rules(
        (PROGRESS, FRAME),
        (
            Rule(_negative_length, "an observation after the clip's start", USABLE),
            Rule(_step_starts_late, "a start before the observation", USABLE),
            Rule(_step_ends_late, "an end before the observation", USABLE),
        ),
    ),
    Rules(
        (PROGRESS, "answer"),
        (Rule(_answer_done, "an action not yet done", USABLE),),
    ),
)
VALIDATION_RULES = (
    *PLANNING_RULES,
    Rules(
        ("answer", "golden_choice_idx", *CHOICES),
        (Rule(_answer_differs, "the text of the gold option", UNUSABLE),),
    ),
    Rules(
        ("golden_choice_idx", *CHOICES),
        (
            Rule(partial(_gold_twice, _four), ONE_ANSWER, UNUSABLE),
            Rule(partial(_wrong_twice, _four), "different options", USABLE),
            Rule(partial(_other_letters, _four), NO_LETTERS, UNUSABLE),
            Rule(partial(_same_letters, _four), NO_LETTERS, USABLE),
        ),
    ),
)
TRAINING_RULES = (
    *PLANNING_RULES,
    Rules(
        ("negative_answers",),
        (Rule(_negative_without_words, TEXT.expected, UNUSABLE),),
    ),
    Rules(
        ("negative_answers", "answer"),
        (
            Rule(_few_negatives, "at least 3 to draw from", UNUSABLE),
            Rule(_negative_twice, DIFFERENT, USABLE),
            Rule(_shuffled_letters, NO_LETTERS, UNUSABLE),
        ),
    ),
)
DEMONSTRATION_RULES = (
    Rules((), (NO_CONTROL,)),
    Rules(
        ("prompt",),
        (
            Rule(_prompt_shape, ONE_USER_MESSAGE, UNUSABLE),
            Rule(_content_order, "video before image before text", USABLE),
        ),
    ),
    Rules(
        ("response",),
        (Rule(_response_form, "<think>...</think><answer>...</answer>", USABLE),),
    ),
)
GENERAL_RULES = (
    Rules(
        (), (NO_CONTROL, TEXT_FORM[0])
    ),  # its questions quote subtitles in any language
    Rules(
        ("candidates",),
        (
            Rule(_padded, "real options only: drop the 'N/A'", UNUSABLE),
            Rule(_candidate_without_words, TEXT.expected, UNUSABLE),
        ),
    ),
    Rules(
        ("candidates", "correct_choice"),
        (
            Rule(_choice_outside, "the index of a candidate, from 0 on", UNUSABLE),
            Rule(partial(_gold_twice, _candidates), ONE_ANSWER, UNUSABLE),
            Rule(partial(_wrong_twice, _candidates), "different options", USABLE),
            Rule(partial(_other_letters, _candidates), NO_LETTERS, UNUSABLE),
            Rule(partial(_same_letters, _candidates), NO_LETTERS, USABLE),
        ),
    ),
)


class Kind(NamedTuple):
    """A kind of file: its name, the keys of which any gives it away, what its records
    must hold, and the values that may occur once, with whether a repeat is usable."""

    name: str
    marks: tuple[str, ...]
    fields: dict[str, Field]
    rules: tuple[Rules, ...]
    unique: tuple[tuple[tuple[str, ...], bool], ...]
    is_list: bool = False


ASKED_ONCE = (("video_id", "task_goal", FRAME), USABLE)
L1_L2 = Kind(
    name="SEED-Bench-R1 validation, L1 or L2",
    marks=("golden_choice_idx", *CHOICES),
    fields={"sample_id": INTEGER, **LABELLED},
    rules=VALIDATION_RULES,
    unique=((("sample_id",), UNUSABLE), ASKED_ONCE),
)
KINDS = {  # in the order in which a record is asked for its marks
    "general": Kind(
        name="LongVideoBench validation",
        marks=("candidates", "correct_choice", "option0"),
        fields={
            "id": TEXT,
            "question": TEXT,
            "candidates": CANDIDATES,
            "correct_choice": INTEGER,
            "video_path": CLIP_PATH,
            "duration_group": INTEGER,
        },
        rules=GENERAL_RULES,
        unique=((("id",), UNUSABLE),),
        is_list=True,
    ),
    "demonstrations": Kind(
        name="SEED-Bench-R1 training with reasoning",
        marks=("prompt", "response"),
        fields={
            "sample_id": ID._replace(optional=True),
            "prompt": LIST,
            "response": TEXT,
        },
        rules=DEMONSTRATION_RULES,
        unique=((("sample_id", "response"), USABLE),),
    ),
    "training": Kind(
        name="SEED-Bench-R1 training",
        marks=("negative_answers",),
        fields={"sample_id": ID, "negative_answers": LIST, **PLANNING},
        rules=TRAINING_RULES,
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


def record_faults(record: dict, kind: Kind) -> Iterator[tuple[str, str, str, bool]]:
    """(field, found, expected, usable) for everything wrong within one record."""
    sound, odd = set(), list(odd_parts(record))
    yield from odd
    if any(found == TOO_DEEP for _, found, *_ in odd):
        return  # not even a fault could show it
    for name, field in kind.fields.items():
        value = record.get(name)
        if field.sound(value):
            sound.add(name)
        elif not (field.optional and value is None):
            found = shown(value) if name in record else "no such field"
            yield name, found, field.expected, field.optional
    asked = [r for need, rules in kind.rules if sound.issuperset(need) for r in rules]
    for rule in asked:
        for field, found in rule.broken(record):
            yield field, found, rule.expected, rule.usable


def odd_parts(
    value: dict | list, field: str = "", depth: int = 1
) -> Iterator[tuple[str, str, str, bool]]:
    """The same for what nothing in a record may be, whether it is read or not."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if key is TWICE:
            for name, values in part.items():
                found = f"it {len(values)} times, {shown(values)}"
                yield _joined(field, name), found, "it once", UNUSABLE
            continue
        for text in (key, part):
            if isinstance(text, str) and not text.isascii() and UNREADABLE.search(text):
                found = f"half a character, or a mark that is no text: {shown(text)}"
                yield _joined(field, key), found, "Unicode text", UNUSABLE
        if isinstance(part, (dict, list)):
            inner = _joined(field, key)
            if depth == DEEPEST:
                yield inner, TOO_DEEP, f"{DEEPEST} levels at most", UNUSABLE
            else:
                yield from odd_parts(part, inner, depth + 1)


def _joined(field: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{field}[{key}]"
    name = key if key.isprintable() and len(key) <= 80 else shown(key)
    return f"{field}.{name}" if field else name


def repeats(
    record: dict, line: int, kind: Kind, seen: dict
) -> Iterator[tuple[str, str, str, bool]]:
    """The same for values that an earlier record has; `seen` remembers their lines."""
    for names, usable in kind.unique:
        values = [record.get(name) for name in names]
        if not all(isinstance(value, (int, str)) for value in values):
            continue
        key = (names, *map(str, values))  # an id is a text: 1 and "1" are one
        if key in seen:
            what = " and ".join(names)
            yield names[0], f"the {what} of line {seen[key]} again", "it once", usable
        seen.setdefault(key, line)


def shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return TOO_DEEP
    return text if len(text) <= 80 else text[:77] + "..."
