"""A run as a chain that is checked: what each notebook read and wrote, by content.

`close` ends a notebook: outputs/<run>/chain.json then holds, for it, a fingerprint of
every file that it read outside the run and of all that it left inside. Who shows a
number verifies first, so swapped, edited, cut or stale files are named, with the row.
Nothing is secret: who rewrites chain.json too is not found out."""

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.paths import ROOT, told
from lib.records import (
    read_json,
    record_stage,
    sealed,
    settings_hash,
    sha256,
    write_json,
)


class NotAsLeft(ValueError):
    """Files that differ from what the notebooks read and left; the text names them."""


LEDGER = "chain.json"
ASKED = "04_eval"  # after it all that is OWNED is some notebook's
OWNED = ("predictions_*.jsonl", "coherence_*.jsonl", "attention_*.jsonl")
OWNED += ("draws_*.jsonl", "adapters/*/*.safetensors")
ALL = "99"  # after every notebook
# Written by more than one notebook, or by the pipeline: not one notebook's own.
SHARED = (LEDGER, "manifest.json", "pipeline.json")
OWN = "./"  # begins the name of what was read in the run itself, which may be moved
RECORDS = ("*.json", "*.jsonl", "adapters/*/*.json", "adapters/*/*.safetensors")
FIGURES = ("figures/*.png", "*.png")
BENCHMARK = ("annotations/*.jsonl", "lvb_val.json", "videos/**/*", "images/**/*")
WHOLE_BYTES = 2**18  # a larger file outside the run is read in parts
PARTS, PART_BYTES = 4, 2**14
DIGITS, LINE_DIGITS = 16, 8
SHOWN = 10


def close(run: Path, stage: str, reads: Iterable[Path | None] = (), **facts: Any):
    """End a notebook: `facts` go to the manifest, files to the chain. What it wrote is
    all in the run that is no other notebook's; None in `reads` is left out."""
    record_stage(run, stage, **facts)
    seal(run, stage, reads)


def seal(run: Path, stage: str, reads: Iterable[Path | None] = ()) -> None:
    """Write down what the run's files are now; `close` without new facts."""
    chain = read_json(run / LEDGER, {})
    others = {name for own in chain if own != stage for name in chain[own]["wrote"]}
    wrote = [name for name in _files(run, RECORDS + FIGURES) if name not in others]
    chain[stage] = {
        "facts": settings_hash(read_json(run / "manifest.json", {})[stage]),
        "after": _after(chain, stage),
        "read": {_name(run, path): content(path) for path in sorted({*reads} - {None})},
        "wrote": {name: content(run / name, whole=True) for name in wrote},
    }
    write_json(run / LEDGER, chain)


def extend(run: Path, stage: str, paths: Iterable[Path]) -> None:
    """Count files that were written after a notebook's end among what it left."""
    chain = read_json(run / LEDGER, {})
    for path in paths if stage in chain else ():
        name = path.relative_to(run).as_posix()
        chain[stage]["wrote"][name] = content(path, whole=True)
    write_json(run / LEDGER, chain)


def verify(run: Path, before: str = ALL) -> None:
    """NotAsLeft naming all that differs from what the notebooks read and left. `before`
    names a notebook that is about to run: of what it left itself, earlier, only what it
    goes on from counts, and nothing once a part of that was deleted. What was read is
    not compared where none of it is on this machine."""
    chain, manifest = read_json(run / LEDGER, {}), read_json(run / "manifest.json", {})
    pipeline, faults = read_json(run / "pipeline.json", {}), []
    if "hash" in pipeline and pipeline != sealed(pipeline):
        faults.append("pipeline.json: not as the pipeline wrote it")
    for stage in sorted({*chain, *manifest}):
        if stage < before and stage not in chain:
            faults.append(f"{stage} is in manifest.json and not in {LEDGER}")
        elif stage < before:
            done = pipeline.get("notebooks", {}).get(stage, {})
            executed = done.get("sha256")
            faults += _faults(run, stage, chain, manifest.get(stage), executed)
            again = stage in pipeline.get("waiting", ())
            again |= done.get("left", now := _lasting(chain[stage])) != now
            if again and before == ALL:
                told = f"what {stage} left is of another start: run the pipeline again"
                faults.append(f"pipeline.json: {told}")
        elif stage == before and stage in chain:  # else it was killed at its very end
            kept = {n: s for n, s in chain[stage]["wrote"].items() if _goes_on(n)}
            if all((run / name).exists() for name in kept):
                faults += _changed(run, kept, stage, "left")
    if ASKED in chain and before > ASKED:
        known = {name for entry in chain.values() for name in entry["wrote"]}
        strange = sorted({*_files(run, OWNED)} - known)
        faults += [f"{name}: no notebook left it" for name in strange]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        head = (
            f"{run} is not as its notebooks left it, so no number of it is shown: bring"
            " the files back, delete what is to be made again, or run it anew with"
            " --fresh"
        )
        raise NotAsLeft("\n".join([head, *faults[:SHOWN], *more]))


def _faults(
    run: Path, stage: str, chain: dict, facts: dict | None, executed: str | None
) -> list[str]:
    entry, faults = chain[stage], []
    if facts is None or settings_hash(facts) != entry["facts"]:
        faults.append(f"manifest.json: {stage} is not what that notebook recorded")
    if entry["after"] != _after(chain, stage):
        faults.append(f"{stage} is older than a notebook before it: run it again")
    notebook = f"{stage}.ipynb"
    if executed and content(run / notebook, whole=True) != executed[:DIGITS]:
        faults.append(f"{notebook}: not as the pipeline executed it")
    own = {n: then for n, then in entry["read"].items() if n.startswith(OWN)}
    outside = {n: then for n, then in entry["read"].items() if n not in own}
    if any((ROOT / name).exists() for name in outside):
        faults += _changed(ROOT, outside, stage, "read")
    faults += _changed(run, own, stage, "read")
    return faults + _changed(run, entry["wrote"], stage, "left")


def _name(run: Path, path: Path) -> str:
    inside = path.is_relative_to(run)
    return OWN + path.relative_to(run).as_posix() if inside else told(path)


def _changed(folder: Path, known: dict, stage: str, did: str) -> list[str]:
    faults = []
    for name, then in known.items():
        now, line = content(folder / name, whole=did == "left"), ""
        if now == then:
            continue
        if name.endswith(".jsonl") and now and then:
            same = os.path.commonprefix([now, then])  # noqa: RUF071  no paths
            line = f", line {len(same) // LINE_DIGITS + 1}"
        state = "missing, though" if now is None else "not as"
        faults.append(f"{name}{line}: {state} {stage} {did} it")
    return faults


def _goes_on(name: str) -> bool:
    """Whether a notebook that runs again takes the file as it is."""
    kept = name.startswith("adapters/") or name.endswith((".jsonl", ".settings.json"))
    return kept and not name.startswith("coherence_")  # which is made again


def _after(chain: dict, stage: str) -> dict[str, str]:
    """What earlier notebooks left, but figures: no training is built on another."""
    until = stage if stage >= "04" else min(stage, "02")
    return {own: _lasting(chain[own]) for own in sorted(chain) if own < until}


def left(run: Path, stage: str) -> str | None:
    """12 hex digits of what a notebook read and left; None if it did not end."""
    chain = read_json(run / LEDGER, {})
    return _lasting(chain[stage]) if stage in chain else None


def _lasting(entry: dict) -> str:
    wrote = entry["wrote"].items()
    lasting = {name: seen for name, seen in wrote if not name.endswith(".png")}
    return settings_hash(lasting | entry["read"])


def content(path: str | Path, whole: bool = False) -> str | None:
    """A fingerprint of a file, None if it is missing: of JSON lines a few digits each;
    of a large one, unless `whole`, size and four parts: clips are hundreds of GB."""
    path = Path(path)
    if not path.is_file():
        return None
    stat = path.stat()
    return _content(path, whole, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=2**17)  # a file that nobody touched is read once
def _content(path: Path, whole: bool, state: tuple[int, ...]) -> str:
    if path.suffix == ".jsonl":
        lines = path.read_bytes().split(b"\n")
        return "".join(hashlib.sha256(own).hexdigest()[:LINE_DIGITS] for own in lines)
    size = state[0]
    if whole or size <= WHOLE_BYTES:
        return sha256(path)[:DIGITS]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for part in range(PARTS):
            file.seek(part * (size - PART_BYTES) // (PARTS - 1))
            digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:DIGITS]


def check_trained(folder: Path, base: str | None = None) -> None:
    """ValueError unless what training left in `folder` is as it left it and, where the
    identity of a base is given (`models.identity`), was trained on that base. An
    adapter without the settings that this kit's trainers leave is taken as it is."""
    for file in folder.glob("*_settings.json"):
        record = read_json(file)
        for name, seen in record.get("files", {}).items():
            if content(folder / name, whole=True) != seen:
                raise ValueError(
                    f"{folder / name} is not what training left there: bring it back, "
                    f"or delete {folder} and train again"
                )
        trained_on = record["settings"].get("model", base)
        if base is not None and trained_on != base:
            raise ValueError(
                f"{folder} was trained on another base ({trained_on}, this is {base}): "
                "give that one, or train again"
            )


def benchmark(data: Path, general: Path) -> dict[str, str]:
    """Fingerprints of all annotations, clips and stills of a benchmark, by path."""
    found = {file for own in (data, general) for p in BENCHMARK for file in own.glob(p)}
    return {told(path): content(path) for path in sorted(found) if path.is_file()}


def media(*lists: Iterable) -> set[Path]:
    """The clips and stills of lists of questions or demonstrations."""
    items = [item for own in lists for item in own]
    return {path for item in items for path in (item.video, item.image)} - {None}


def _files(run: Path, patterns: Iterable[str]) -> list[str]:
    found = {path for pattern in patterns for path in run.glob(pattern)}
    names = {path.relative_to(run).as_posix() for path in found if path.is_file()}
    own = {name for name in names if ".partial" not in name and name[0] != "."}
    return sorted(own - {*SHARED})
