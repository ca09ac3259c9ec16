"""Sets that a run asks, and parts: those questions of a set whose clips are there.

`get --at-most` leaves FOLDER/part, a data folder of its own: annotations of what has
come, links to the clips and stills beside it, and part.json with the whole numbers.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from lib import records
from lib.data import questions
from lib.data.questions import Question

FOLDER, BOOK = "part", "part.json"
LEVELS = ("L1", "L2", "L3")


def write(folder: Path, files: dict[str, str], chosen: Iterable[str]) -> dict:
    """Write the part of a data folder; returns {split: {"questions", "of"}}.

    `files` are {split: annotation file}; of those not `chosen` the text stays whole.
    """
    part, found, chosen = folder / FOLDER, {}, {*chosen}
    for split, name in files.items():
        text = (folder / name).read_text(encoding="utf-8")
        if split in chosen:
            rows = questions.usable(folder / name, folder)
            there = [
                record
                for record, item in rows
                if all(path.is_file() for path in {item.video, item.image} - {None})
            ]
            of = len(text.splitlines())
            found[split] = {"questions": len(there), "of": of}
            text = "".join(f"{json.dumps(row)}\n" for row in there)
        records.write_text(part / name, text)
    for kind in ("videos", "images"):
        link = part / kind
        if not link.is_symlink():
            link.symlink_to(Path("..") / kind)
    records.write_json(part / BOOK, found)
    return found


def read(
    data: Path, general: Path, names: str, count: int = 0
) -> tuple[dict[str, list[Question]], dict[str, str]]:
    """({set: questions} of the sets named, {set: "a part, 183 of 2,432"} of those that
    are not whole). Of each at most `count`, drawn alike in every run; 0: all."""
    known = records.read_json(data / BOOK) if (data / BOOK).exists() else {}
    sets, told = {}, {}
    for name in names.split():
        if name in LEVELS:
            path = data / "annotations" / f"validation_{name}.jsonl"
            items = questions.read_validation(path, data, name)
        elif name == "general":
            items = questions.read_general(general / "lvb_val.json", general)
        else:
            raise ValueError(f"asked_sets: {name!r} is none of L1, L2, L3, general")
        if not items or len({item.id for item in items}) < len(items):
            raise ValueError(f"{name} has no questions, or an id twice: see 01_data")
        whole = known.get(name, {}).get("of", len(items))
        count_here = min(count or len(items), len(items))
        drawn = sorted(random.Random(0).sample(range(len(items)), count_here))
        sets[name] = [items[i] for i in drawn]
        if len(sets[name]) < whole:
            told[name] = f"a part, {len(sets[name]):,} of {whole:,}"
    return sets, told
