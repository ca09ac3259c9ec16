"""Questions and demonstrations, read from the benchmarks' own files and checked.

SEED-Bench-R1 (https://arxiv.org/abs/2503.24376) and LongVideoBench
(https://arxiv.org/abs/2407.15754); `lib/data/faults.py` says what a sound record is.
Every reader raises DataFaults with the faults of all records at once."""

import codecs
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lib import paths
from lib.data import faults
from lib.data.faults import CHOICES, KINDS, PROGRESS, STILL, TOO_DEEP, UNUSABLE
from lib.methods import LEVELS

BYTE_ORDERS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
Place = str | Path
FORMS = ("one JSON object a line", "one JSON list")
FILES = {  # by their kind, as the notebooks read them
    "training": "training.jsonl",
    "demonstrations": "training_with_cot.jsonl",
    **{level: f"validation_{level}.jsonl" for level in LEVELS},
    "general": "lvb_val.json",
}


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. `video` is None where nothing has happened yet, and
    `image` in the general set; `domain` and `scenario` are empty in many files."""

    id: str  # "L1/115", "training/7", "general/<id>"
    level: str  # "training", "L1", "L2", "L3", "general"
    text: str
    options: tuple[str, ...]
    gold: str  # the letter of the right one
    answer: str  # its text
    goal: str = ""
    domain: str = ""
    scenario: str = ""
    progress: tuple[str, ...] = ()
    video: Path | None = None
    image: Path | None = None
    duration_group: int | None = None
    of: int = 0  # questions of its whole set, where only a part of that is asked


@dataclass(frozen=True)
class Demonstration:
    """A worked example: the whole user text (options and instruction in it), the media
    and the response to learn. `id` is that of the training question it answers."""

    id: str
    text: str
    video: Path | None
    image: Path | None
    response: str


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one field; `usable` if the record can still be read."""

    file: str
    line: int
    field: str
    found: str
    expected: str
    usable: bool

    def __str__(self) -> str:
        said = f"{self.field}: found {self.found}; expected {self.expected}"
        return f"{self.file}:{self.line}: {said}{' (usable)' if self.usable else ''}"


class DataFaults(ValueError):
    """A file with records that cannot be used; `faults` holds every one of them."""

    def __init__(self, faults: list[Fault]):
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        said = "fault(s) make records unusable; nothing was read: mend these lines, or"
        head = f"{len(self.faults)} {said} get the file again"
        return "\n".join([head, *map(str, self.faults)])


def read_validation(path: Place, media_root: Place, name: str) -> list[Question]:
    """The questions of L1, L2, L3 or general, options in the file's order. Clips are
    `<media_root>/videos/<video_source>/<video_basename>`, stills in images/; whether
    they exist shows when they are read. General is LongVideoBench's lvb_val.json, 4 or
    5 candidates each; clips alone, videos/<video_path>, as the paper does it."""
    return _read(path, media_root, name)


def read_training(path: Place, media_root: Place, seed: int = 0) -> list[Question]:
    """The training questions, each with three of its different negative answers; draw
    and order are seeded by f"{seed}/{sample_id}" (unseeded in the released code)."""
    return _read(path, media_root, "training", seed)


def read_demonstrations(path: Place, media_root: Place) -> list[Demonstration]:
    """The records of training_with_cot: `prompt` messages and a `response`, as the
    released sft.py reads them; without `sample_id` the id is "training/line-12"."""
    return _read(path, media_root, "demonstrations")


def _read(path: Place, media_root: Place, kind: str, seed: int = 0) -> list:
    found = check(path, media_root, kind, seed)
    if unusable := [fault for fault in found["faults"] if not fault.usable]:
        raise DataFaults(unusable)
    return [item for _, item in found["rows"]]


def check(
    path: Place, media_root: Place = Path(), kind: str | None = None, seed: int = 0
) -> dict:
    """What a file is and holds, whatever its faults: {file, kind, records, usable,
    media, faults, rows}. `media` counts the different files that usable records need,
    and those without video; `rows` are (record, what is read from it). Without a `kind`
    it is that of the file's name, or else what most records show by their keys."""
    path = paths.require(path, "an annotation file; 01_data says where it comes from")
    kind, count, sound, found = _survey(path, kind)
    root = paths.resolve(media_root)
    rows = [(record, _item(record, line, root, kind, seed)) for line, record in sound]
    return {
        "file": str(path),
        "kind": KINDS[kind].name if kind else "not recognised",
        "records": count,
        "usable": len(rows),
        "media": {
            "videos": len({item.video for _, item in rows} - {None}),
            "stills": len({item.image for _, item in rows} - {None}),
            "image_only": sum(item.video is None for _, item in rows),
        },
        "faults": found,
        "rows": rows,
    }


def is_there(item: Question | Demonstration) -> bool:
    """Whether its clip and its still are files."""
    return all(path.is_file() for path in {item.video, item.image} - {None})


def split_holdout(items: Iterable, share: float) -> tuple[list, list]:
    """(kept, held): about `share` of the items are held out, chosen by their id alone,
    so that a training question and its demonstration fall on the same side."""
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    kept, held = [], []
    for item in items:
        digest = hashlib.sha256(f"holdout/{item.id}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        (held if drawn < share else kept).append(item)
    return kept, held


def _item(
    record: dict, line: int, root: Path, kind: str, seed: int = 0
) -> Question | Demonstration:
    if kind == "demonstrations":
        return _demonstration(record, line, root)
    if kind == "general":
        return _general(record, root)
    if kind == "training":
        rng = random.Random(f"{seed}/{record['sample_id']}")
        options = [*rng.sample(faults.distinct_negatives(record), 3), record["answer"]]
        rng.shuffle(options)
        correct = options.index(record["answer"])
    else:
        options = [record[choice] for choice in CHOICES]
        correct = "ABCD".index(record["golden_choice_idx"])
    source, steps = record["video_source"], record[PROGRESS]
    return Question(
        id=f"{kind}/{record['sample_id']}",
        level=kind,
        text=record["question"],
        options=tuple(options),
        gold="ABCD"[correct],
        answer=options[correct],
        goal=record["task_goal"],
        domain=_text_or_empty(record, "domain"),
        scenario=_text_or_empty(record, "scenario"),
        progress=tuple(map(faults.narration, steps)),
        video=root / "videos" / source / record["video_basename"] if steps else None,
        image=root / "images" / source / record[STILL],
    )


def _demonstration(record: dict, line: int, root: Path) -> Demonstration:
    parts = {part["type"]: part for part in record["prompt"][0]["content"]}
    number = record.get("sample_id")
    return Demonstration(
        id=f"training/{number if faults.is_id(number) else f'line-{line}'}",
        text=parts["text"]["text"],
        video=root / parts["video"]["video"] if "video" in parts else None,
        image=root / parts["image"]["image"] if "image" in parts else None,
        response=record["response"],
    )


def _general(record: dict, root: Path) -> Question:
    correct = record["correct_choice"]
    return Question(
        id=f"general/{record['id']}",
        level="general",
        text=record["question"],
        options=tuple(record["candidates"]),
        gold="ABCDE"[correct],
        answer=record["candidates"][correct],
        domain=_text_or_empty(record, "topic_category"),
        scenario=_text_or_empty(record, "question_category"),
        video=root / "videos" / record["video_path"],
        duration_group=record["duration_group"],
    )


def _text_or_empty(record: dict, name: str) -> str:
    return record[name] if faults.is_text(record.get(name)) else ""


def _survey(path: Path, kind: str | None) -> tuple[str | None, int, list, list]:
    """(kind or None, number of records, the sound (line, record), faults by line) of a
    file. In a list, which may be a single line, a field is named with its record."""
    data, sound, found, seen = path.read_bytes(), [], [], {}
    is_list, no_file = data.lstrip()[:1] == b"[", faults.no_file(data[:99])
    if data.startswith(BYTE_ORDERS):
        no_file = ("a byte order mark", "UTF-8 without one")
    rows = [] if no_file else list((_of_list if is_list else _of_lines)(data))
    parsed = [(line, row) for line, row in rows if not isinstance(row, Exception)]
    if kind is None and (kind := _recognised(row for _, row in parsed)):
        kind = {name: own for own, name in FILES.items()}.get(path.name, kind)

    def fault(line: int, *named) -> None:
        found.append(Fault(str(path), line, *named))

    if not rows:
        fault(1, "file", *(no_file or ("no record", "records")), UNUSABLE)
    elif parsed and kind is None:
        marks = dict.fromkeys(", ".join(own.marks) for own in KINDS.values())
        none = "no field of a known kind of file"
        fault(parsed[0][0], "record", none, "; or ".join(marks), UNUSABLE)
    elif parsed and is_list != (kind == "general"):
        fault(1, "file", FORMS[is_list], FORMS[not is_list], UNUSABLE)
    for index, (line, record) in enumerate(rows):
        place = f"[{index}]" if is_list else ""
        if isinstance(record, Exception):
            fault(line, "record", _why(record), FORMS[is_list], UNUSABLE)
        elif kind and not isinstance(record, dict):
            shown = faults.shown(record)
            fault(line, place or "record", shown, "a JSON object", UNUSABLE)
        elif kind:
            wrong = [*faults.record_faults(record, line, KINDS[kind], seen)]
            for field, *rest in wrong:
                fault(line, f"{place}.{field}" if place else field, *rest)
            if all(usable for *_, usable in wrong):
                sound.append((line, record))
    return kind, len(rows), sound, sorted(found, key=lambda f: f.line)


def _recognised(records: Iterable[object]) -> str | None:
    """The kind most records show by their keys; None where none shows any."""
    keys = (record.keys() for record in records if isinstance(record, dict))
    marked = ([n for n, k in KINDS.items() if {*k.marks} & own] for own in keys)
    votes = Counter(names[0] for names in marked if names)
    return max(votes, key=votes.get, default=None)


def _of_lines(data: bytes) -> Iterator[tuple[int, object]]:
    """(line, value, or what kept it from being read) of JSON lines."""
    for line, text in enumerate(data.split(b"\n"), 1):
        if text.strip():
            try:
                yield line, DECODER.decode(text.decode())
            except (ValueError, RecursionError) as error:
                yield line, error


def _of_list(data: bytes) -> Iterator[tuple[int, object]]:
    """The same of a JSON list, with the line on which each value begins."""
    line = 1
    try:
        text = data.decode()
        with suppress(RecursionError):  # below it has the place of its record
            json.loads(text, parse_int=str)  # so that every mark is where it must be
        at, counted = text.index("[") + 1, 0
        while True:
            while text[at] in " \t\r\n,":
                at += 1
            if text[at] == "]":
                return
            line, counted = line + text.count("\n", counted, at), at
            value, at = DECODER.raw_decode(text, at)
            yield line, value
    except UnicodeDecodeError as error:
        yield 1 + data.count(b"\n", 0, error.start), error
    except json.JSONDecodeError as error:
        yield error.lineno, error
    except (RecursionError, IndexError) as error:  # the end was not looked for
        yield line, error


def _why(error: Exception) -> str:
    why = f"no JSON ({TOO_DEEP})"
    if isinstance(error, UnicodeDecodeError):
        why = "not UTF-8"
    elif isinstance(error, json.JSONDecodeError):
        why = f"no JSON ({error.msg} at column {error.colno})"
    return f"what is {why}"


def _with_repeats(pairs: list[tuple[str, object]]) -> dict:
    """A record; what it has twice is kept under `faults.TWICE`."""
    values = defaultdict(list)
    for name, value in pairs:
        values[name].append(value)
    record = {name: own[-1] for name, own in values.items()}
    if len(record) < len(pairs):
        twice = {name: own for name, own in values.items() if len(own) > 1}
        record[faults.TWICE] = twice
    return record


def _integer(digits: str) -> int | str:
    """A number of more digits than any count has stays a text."""
    return int(digits) if len(digits) < 20 else digits


DECODER = json.JSONDecoder(object_pairs_hook=_with_repeats, parse_int=_integer)
