"""Questions and demonstrations, read from the benchmarks' own files and checked.

Reads the annotation files of SEED-Bench-R1 (https://arxiv.org/abs/2503.24376,
https://huggingface.co/datasets/TencentARC/SEED-Bench-R1) and LongVideoBench
(https://arxiv.org/abs/2407.15754). What a sound record is stands in `lib/schemas.py`;
every reader reports all faults of a file at once, each with its line, its field, what
was found and what was expected.

    >>> questions = read_validation("annotations/validation_L1.jsonl", root, "L1")
    >>> questions[0].id, questions[0].gold, questions[0].options[0]
    ('L1/115', 'A', 'put cereal box into cupboard')

    $ python -m lib.questions check annotations/validation_L1.jsonl
    /data/annotations/validation_L1.jsonl: SEED-Bench-R1 validation, L1 or L2
    records: 2432, of which 2431 can be used
    media needed: 2060 videos, 2431 stills (371 records without video)
    faults: 1, of which 1 make a record unusable
    /data/annotations/validation_L1.jsonl:2: answer: found 'take bag' while ...
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from lib import paths
from lib.schemas import (
    CHOICES,
    KINDS,
    PROGRESS,
    STILL,
    TOO_DEEP,
    TWICE,
    UNUSABLE,
    Kind,
    distinct_negatives,
    is_id,
    is_text,
    narration,
    record_faults,
    repeats,
    shown,
)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `options[letters.index(gold)] == answer`.

    `video` is None where nothing has happened yet (image only), `image` in the general
    set. `domain` and `scenario` are empty where the file has none (training, L1, L2).
    """

    id: str  # "L1/115", "training/7", "general/<id>"
    level: str  # "training", "L1", "L2", "L3", "general"
    text: str
    options: tuple[str, ...]
    gold: str
    answer: str
    goal: str
    domain: str
    scenario: str
    progress: tuple[str, ...]
    video: Path | None
    image: Path | None
    duration_group: int | None = None


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
        mark = " (usable)" if self.usable else ""
        return (
            f"{self.file}:{self.line}: {self.field}: found {self.found};"
            f" expected {self.expected}{mark}"
        )


class DataFaults(ValueError):
    """A file with records that cannot be used; `faults` holds every one of them."""

    def __init__(self, faults: list[Fault]):
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        head = (
            f"{len(self.faults)} fault(s) make records unusable; nothing was read: mend"
            " these lines, or get the file again"
        )
        return "\n".join([head, *map(str, self.faults)])


# --- reading --------------------------------------------------------------------------


def read_validation(
    path: str | Path, media_root: str | Path, level: str
) -> list[Question]:
    """The questions of validation_L1, L2 or L3, options in the file's order.

    Media are `<media_root>/videos/<video_source>/<video_basename>` and
    `<media_root>/images/<video_source>/<current_observation_basename>`; whether they
    exist shows when they are read. Raises DataFaults.
    """
    if level not in ("L1", "L2", "L3"):
        raise ValueError(f"level {level!r} is unknown; it must be L1, L2 or L3")
    return _read(path, media_root, level)


def read_training(
    path: str | Path, media_root: str | Path, seed: int = 0
) -> list[Question]:
    """The training questions, each with three of its negative answers drawn.

    Draw and order are seeded by f"{seed}/{sample_id}", so those of one question depend
    on no other question (the released grpo.py draws unseeded). Negatives that repeat
    each other or the answer are left out of the draw. Raises DataFaults.
    """
    return _read(path, media_root, "training", seed)


def read_demonstrations(
    path: str | Path, media_root: str | Path
) -> list[Demonstration]:
    """The records of training_with_cot: `prompt` messages and a `response`.

    The schema is inferred from the code that reads the file (the released sft.py),
    which does not touch `sample_id`. Where that is absent the id is made of the line
    number, "training/line-12", and matches no training question. Raises DataFaults.
    """
    return _read(path, media_root, "demonstrations")


def read_general(path: str | Path, media_root: str | Path) -> list[Question]:
    """The questions of LongVideoBench's lvb_val.json, a list with 4 or 5 candidates.

    Video only, no still and no subtitles, as the paper does it; the clip is
    `<media_root>/videos/<video_path>`. Raises DataFaults.
    """
    return _read(path, media_root, "general")


def split_holdout(
    items: Iterable, share: float, salt: str = "holdout"
) -> tuple[list, list]:
    """(kept, held): about `share` of the items are held out, chosen by their id alone.

    Whatever else is in the list, an id falls on the same side; so a training question
    and its demonstration do, read from two files.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    kept, held = [], []
    for item in items:
        digest = hashlib.sha256(f"{salt}/{item.id}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        (held if drawn < share else kept).append(item)
    return kept, held


def _read(path: str | Path, media_root: str | Path, kind: str, seed: int = 0) -> list:
    """What each record of a file gives; DataFaults if any cannot be used."""
    hint = "an annotation file; 01_data says where it comes from"
    sound, faults = _survey(_load(paths.require(path, hint)), KINDS[kind])
    unusable = [fault for fault in faults if not fault.usable]
    if unusable:
        raise DataFaults(unusable)
    root = paths.resolve(media_root)
    return [_item(record, line, root, kind, seed) for line, record in sound]


def _item(
    record: dict, line: int, root: Path, kind: str, seed: int = 0
) -> Question | Demonstration:
    if kind == "demonstrations":
        return _demonstration(record, line, root)
    if kind == "general":
        return _general(record, root)
    if kind == "training":
        rng = random.Random(f"{seed}/{record['sample_id']}")
        options = [*rng.sample(distinct_negatives(record), 3), record["answer"]]
        rng.shuffle(options)
        return _question(
            record, root, kind, tuple(options), options.index(record["answer"])
        )
    options = tuple(record[choice] for choice in CHOICES)
    correct = "ABCD".index(record["golden_choice_idx"])
    return _question(record, root, kind, options, correct)


def _question(
    record: dict, root: Path, level: str, options: tuple[str, ...], correct: int
) -> Question:
    source, steps = record["video_source"], record[PROGRESS]
    video = root / "videos" / source / record["video_basename"] if steps else None
    return Question(
        id=f"{level}/{record['sample_id']}",
        level=level,
        text=record["question"],
        options=options,
        gold="ABCD"[correct],
        answer=options[correct],
        goal=record["task_goal"],
        domain=_text_or_empty(record, "domain"),
        scenario=_text_or_empty(record, "scenario"),
        progress=tuple(narration(step) for step in steps),
        video=video,
        image=root / "images" / source / record[STILL],
    )


def _demonstration(record: dict, line: int, root: Path) -> Demonstration:
    parts = {part["type"]: part for part in record["prompt"][0]["content"]}
    number = record.get("sample_id")
    return Demonstration(
        id=f"training/{number if is_id(number) else f'line-{line}'}",
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
        goal="",
        domain=_text_or_empty(record, "topic_category"),
        scenario=_text_or_empty(record, "question_category"),
        progress=(),
        video=root / "videos" / record["video_path"],
        image=None,
        duration_group=record["duration_group"],
    )


def _text_or_empty(record: dict, name: str) -> str:
    return record[name] if is_text(record.get(name)) else ""


# --- checking -------------------------------------------------------------------------


class Records(NamedTuple):
    """The parsed records of a file: (line, value) of each, and what did not parse."""

    file: str
    is_list: bool
    rows: list[tuple[int, object]]
    faults: list[Fault]


NO_FILES = {  # how a file begins that holds no records: what it is, and what to do
    (b"version https://git-lfs",): (
        "a git-LFS pointer",
        "the file itself: run `git lfs pull`",
    ),
    (b"<!doctype", b"<html", b"<?xml"): (
        "a web page, no JSON",
        "the file itself: download it again",
    ),
    (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE): (
        "a byte order mark",
        "UTF-8 without one",
    ),
}


def _load(path: Path) -> Records:
    """The records of a JSON-lines file or of a JSON list."""
    data = path.read_bytes()
    head = data.lstrip()[:99].lower()
    records = Records(str(path), head[:1] == b"[", [], [])
    wrong = [said for begins, said in NO_FILES.items() if head.startswith(begins)]
    if records.is_list:
        _parse(records, 1, data, "one JSON list", _list_rows)
    elif not wrong:
        for line, text in enumerate(data.split(b"\n"), 1):
            if text.strip():
                _parse(records, line, text, "one JSON object a line", _line_row)
    if not (records.rows or records.faults or wrong):
        wrong = [("no record", "records")]
    for said in wrong:
        records.faults.append(Fault(records.file, 1, "file", *said, UNUSABLE))
    return records


def _parse(
    records: Records, line: int, data: bytes, expected: str, rows_of: Callable
) -> None:
    """Add the rows of `data`, which starts on `line`, or the fault that prevents it."""
    try:
        rows = rows_of(data.decode())
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        why = "what is not UTF-8"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        why = f"what is no JSON ({error.msg} at column {error.colno})"
    else:
        records.rows.extend((line + below, value) for below, value in rows)
        return
    records.faults.append(Fault(records.file, line, "record", why, expected, UNUSABLE))


class _Decoder(json.JSONDecoder):
    """Python's, but a key given twice is kept under TWICE, a number of more digits than
    any count has stays a text, and nesting without end is an error with its place."""

    def __init__(self):
        super().__init__(object_pairs_hook=self.record, parse_int=self.integer)

    @staticmethod
    def record(pairs: list[tuple[str, object]]) -> dict:
        record = dict(pairs)
        if len(record) < len(pairs):
            count = Counter(name for name, _ in pairs)
            record[TWICE] = {
                name: [value for key, value in pairs if key == name]
                for name in count
                if count[name] > 1
            }
        return record

    @staticmethod
    def integer(digits: str) -> int | str:
        return int(digits) if len(digits) < 20 else digits

    def raw_decode(self, text: str, idx: int = 0) -> tuple[object, int]:
        try:
            return super().raw_decode(text, idx)
        except RecursionError:
            raise json.JSONDecodeError(TOO_DEEP, text, idx) from None


DECODER = _Decoder()


def _line_row(text: str) -> list[tuple[int, object]]:
    return [(0, DECODER.decode(text))]


def _list_rows(text: str) -> list[tuple[int, object]]:
    """(lines below the first, value) for each element of a JSON list."""
    with suppress(RecursionError):  # below it has the place of its record
        json.loads(text, parse_int=str)  # so that every mark is where it must be
    rows = []
    position, lines, counted = text.index("[") + 1, 0, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return rows
        lines, counted = lines + text.count("\n", counted, position), position
        value, position = DECODER.raw_decode(text, position)
        rows.append((lines, value))


def _survey(records: Records, kind: Kind) -> tuple[list[tuple[int, dict]], list[Fault]]:
    """The (line, record) that can be used, and every fault of the file, by line.

    In a list a field is named with its record, "[12].candidates" for the thirteenth:
    such a file may be a single line.
    """
    faults, sound, seen = list(records.faults), [], {}
    if records.rows and kind.is_list != records.is_list:
        forms = ("one JSON object a line", "one JSON list")
        found, expected = forms[records.is_list], forms[kind.is_list]
        faults.append(Fault(records.file, 1, "file", found, expected, UNUSABLE))
    for index, (line, record) in enumerate(records.rows):
        place = f"[{index}]" if records.is_list else ""
        if not isinstance(record, dict):
            named = (place or "record", shown(record), "a JSON object", UNUSABLE)
            faults.append(Fault(records.file, line, *named))
            continue
        wrong = [*record_faults(record, kind), *repeats(record, line, kind, seen)]
        prefix = f"{place}." if place else ""
        for field, *rest in wrong:
            faults.append(Fault(records.file, line, f"{prefix}{field}", *rest))
        if all(usable for *_, usable in wrong):
            sound.append((line, record))
    return sound, sorted(faults, key=lambda fault: fault.line)


def _recognise(rows: list[tuple[int, object]]) -> str | None:
    """The kind most records show by their keys; None where none shows any."""
    votes = Counter()
    for _, record in rows:
        marked = (
            k
            for k in KINDS
            if isinstance(record, dict)
            for m in KINDS[k].marks
            if m in record
        )
        votes[next(marked, None)] += 1
    del votes[None]
    return max(votes, key=votes.get) if votes else None


def check(path: str | Path) -> dict:
    """What a file is and holds: {file, kind, records, usable, media, faults}.

    The kind is recognised by the fields. `media` counts the different videos and stills
    the usable records need, and the records without video.
    """
    records, kind, sound, faults = _judged(path)
    unparsed = sum(fault.field == "record" for fault in records.faults)
    return {
        "file": records.file,
        "kind": KINDS[kind].name if kind else "not recognised",
        "records": len(records.rows) + unparsed,
        "usable": len(sound),
        "media": _media(sound, kind),
        "faults": faults,
    }


def usable(
    path: str | Path, media_root: str | Path
) -> list[tuple[dict, Question | Demonstration]]:
    """(record, what is read from it) for all that can be used in a file of any kind.

    For looking at a file whatever its faults; what trains or evaluates uses the readers
    above, which refuse a file with records that cannot be used.
    """
    _, kind, sound, _ = _judged(path)
    root = paths.resolve(media_root)
    return [(record, _item(record, line, root, kind)) for line, record in sound]


def _judged(
    path: str | Path,
) -> tuple[Records, str | None, list[tuple[int, dict]], list[Fault]]:
    """(records, kind, usable ones with their lines, faults); the kind by the fields."""
    records = _load(paths.require(path, "nothing to check"))
    kind = _recognise(records.rows)
    if kind is not None:
        return records, kind, *_survey(records, KINDS[kind])
    faults = records.faults
    if records.rows:
        known = "; or ".join(", ".join(kind.marks) for kind in KINDS.values())
        line = records.rows[0][0]
        unknown = ("no field of a known kind of file", known, UNUSABLE)
        faults = [*faults, Fault(records.file, line, "record", *unknown)]
    return records, None, [], faults


def _media(rows: list[tuple[int, dict]], kind: str | None) -> dict[str, int]:
    items = [_item(record, line, Path(), kind) for line, record in rows]
    return {
        "videos": len({item.video for item in items} - {None}),
        "stills": len({item.image for item in items} - {None}),
        "image_only": sum(item.video is None for item in items),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every record can be used, 1 if not, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m lib.questions")
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser(
        "check", help="list every fault of an annotation file"
    )
    checker.add_argument("file")
    checker.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    path = Path.cwd() / options.file  # a path typed in a shell is meant from there
    if not path.is_file():
        parser.error(f"{path} is no file")
    report = check(path)
    if options.json:
        faults = [asdict(fault) for fault in report["faults"]]
        print(json.dumps({**report, "faults": faults}, indent=1))
    else:
        print(_readable(report))
    return int(any(not fault.usable for fault in report["faults"]))


def _readable(report: dict) -> str:
    media, faults = report["media"], report["faults"]
    unusable = sum(not fault.usable for fault in faults)
    head = [
        f"{report['file']}: {report['kind']}",
        f"records: {report['records']}, of which {report['usable']} can be used",
        f"media needed: {media['videos']} videos, {media['stills']} stills"
        f" ({media['image_only']} records without video)",
        f"faults: {len(faults)}, of which {unusable} make a record unusable",
    ]
    return "\n".join([*head, *map(str, faults)])


if __name__ == "__main__":
    sys.exit(main())
