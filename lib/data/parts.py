"""Sets that a run asks, and parts: those questions of a set whose clips are there.

`get --at-most` leaves FOLDER/part, a data folder of its own: annotations of what has
come, links to the clips and stills beside it, and part.json with the whole numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lib import paths, records
from lib.data import questions, training_sets
from lib.data.questions import Question
from lib.methods import GENERAL, SETS, named

FOLDER, BOOK = "part", "part.json"


def write(folder: Path, files: dict[str, str], chosen: Iterable[str]) -> dict:
    """Write the part of a data folder; returns {split: {"questions", "of"}}. `files`
    are {split: annotation file}; of those not `chosen`, now or before, the text stays
    whole."""
    part, found, kept = folder / FOLDER, {}, {}
    chosen = {*chosen, *whole(part)}
    for split, name in files.items():
        if split not in chosen:
            text = (folder / name).read_text(encoding="utf-8")
            records.write_text(part / name, text)
            continue
        held = questions.check(folder / name, folder)
        kept[name] = [row for row, item in held["rows"] if questions.is_there(item)]
        found[split] = {"questions": len(kept[name]), "of": held["records"]}
    records.write_json(part / BOOK, found)  # first: no part may pass for a whole set
    for kind in ("videos", "images"):
        link = part / kind
        if not link.is_symlink():
            link.symlink_to(Path("..") / kind)
    for name, rows in kept.items():
        records.write_jsonl(part / name, rows)
    return found


def names_of(text: str, parameter: str = "asked_sets") -> list[str]:
    """The sets that a parameter names, in the paper's order; ValueError for others."""
    for name in text.split() or [text]:
        if name not in SETS:
            raise ValueError(f"{parameter}: {name!r} is none of {', '.join(SETS)}")
    return [name for name in SETS if name in text.split()]


def some_of(sets: Mapping[str, list], text: str, parameter: str) -> dict[str, list]:
    """Those of the sets that a parameter names, which may be none of them."""
    names = names_of(text, parameter) if text.split() else []
    return {name: sets[name] for name in names if name in sets}


def annotation_files(values: Mapping) -> dict[str, Path]:
    """Where a run reads its questions from, whether the files are there or not; a set
    that is not asked has no file here."""
    folder = paths.resolve(values["data_dir"]) / "annotations"
    found = {name: folder / file for name, file in questions.FILES.items()}
    found[GENERAL] = paths.resolve(values["general_dir"]) / questions.FILES[GENERAL]
    unasked = {*SETS} - {*names_of(values["asked_sets"])}
    return {name: path for name, path in found.items() if name not in unasked}


def whole(data: Path) -> dict[str, int]:
    """{split: records of the whole file} for what lies in a part; else {}."""
    known = records.read_json(data / BOOK, {})
    return {split: own["of"] for split, own in known.items()}


def read(
    data: Path, general: Path, asked_sets: str, count: int = 0
) -> dict[str, list[Question]]:
    """{set: questions} of the sets named, in the order of their files. Of each at most
    `count` (0: all): the same ones in every run, and all of them among any larger count
    of the file. Where that is not the whole set, `of` of each question is its size.
    FileNotFoundError names the file of a set that is missing, and what gets it."""
    sizes, sets = whole(data), {}
    home = data.parent if data.name == FOLDER else data
    for name in names_of(asked_sets):
        what, root, folder = name, data, data / "annotations"
        if name == GENERAL:
            what, root, folder = "longvideobench", general, general
        path = folder / questions.FILES[name]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: get it (python -m lib.data get {home} --what "
                f"{what}), or leave {name} out of asked_sets"
            )
        items = questions.read_validation(path, root, name)
        of = sizes.get(name, len(items))
        drawn = training_sets.first(items, count or len(items), "")
        items = [item for item in items if item.id in drawn]
        part = len(items) < of
        sets[name] = [replace(item, of=of) for item in items] if part else items
    return sets


def told(sets: Mapping[str, list[Question]]) -> dict[str, str]:
    """{set: its name, and that it is a part}."""
    return {name: named(name, len(own), own[0].of) for name, own in sets.items()}
