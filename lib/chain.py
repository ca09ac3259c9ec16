"""A run as a chain that is checked: what each notebook read and wrote, by content.

`close` ends a notebook: outputs/<run>/chain.json then holds, for it, a fingerprint of
every file that it read outside the run and of every record, adapter and figure that it
left inside. `verify` compares all of them with what is there now. Who shows a number
(a notebook, the report, a model card, a reference record) verifies first, so swapped,
edited, cut or stale files are named, with the row, before any number is shown.

    close(run, "03_grpo", reads=[annotations / "training.jsonl"], seconds=12.5)
    verify(run)
    ValueError: ... rollouts.jsonl, line 12: not as 03_grpo left it

Nothing is mended here, and nothing is secret: who rewrites chain.json too is not found
out.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.paths import ROOT
from lib.records import read_json, record_stage, settings_hash, sha256, write_json


class NotAsLeft(ValueError):
    """Files that differ from what the notebooks read and left; the text names them."""


LEDGER = "chain.json"
ASKED = "04_eval"  # leaves all answers; one beside them is nobody's
# Written by more than one notebook, or by the pipeline: not one notebook's own.
SHARED = (LEDGER, "manifest.json", "pipeline.json")
RECORDS = ("*.json", "*.jsonl", "adapters/*/*.json", "adapters/*/*.safetensors")
FIGURES = ("figures/*.png", "*.png")
BENCHMARK = ("annotations/*.jsonl", "lvb_val.json", "videos/**/*", "images/**/*")
WHOLE_BYTES = 2**18  # a larger file outside the run is read in parts
PARTS, PART_BYTES = 4, 2**14
LINE_DIGITS = 8
SHOWN = 10


def close(run: Path, stage: str, reads: Iterable[Path | None] = (), **facts: Any):
    """End a notebook: `facts` go to the manifest, files to the chain.

    `reads` are annotation files, clips and stills; None and repeats are left out. What
    it wrote is what lies in the run and belongs to no other notebook.
    """
    record_stage(run, stage, **facts)
    seal(run, stage, reads)


def seal(run: Path, stage: str, reads: Iterable[Path | None] = ()) -> None:
    """Write down what the run's files are now; `close` without new facts."""
    chain = _chain(run)
    others = {
        name for other in chain if other != stage for name in chain[other]["wrote"]
    }
    wrote = [name for name in _files(run, RECORDS + FIGURES) if name not in others]
    chain[stage] = {
        "facts": settings_hash(_manifest(run)[stage]),
        "after": _after(chain, stage),
        "read": {_told(path): content(path) for path in sorted({*reads} - {None})},
        "wrote": {name: content(run / name, whole=True) for name in wrote},
    }
    write_json(run / LEDGER, chain)


def verify(run: Path, before: str = "99") -> None:
    """NotAsLeft naming all that differs from what the notebooks read and left.

    `before` names a notebook that is about to run. Of what it left itself, earlier,
    only what it goes on from counts; and nothing once a part of that was deleted to be
    made anew. Where nothing that a notebook read is on this machine, there is nothing
    to compare it with; nor is there for a run that no notebook has finished.
    """
    chain, manifest, faults = _chain(run), _manifest(run), []
    for stage in sorted({*chain, *manifest}):
        if stage not in chain and stage >= before:
            continue  # it was killed at its very end, and runs again now
        if stage not in chain:
            faults.append(f"{stage} is in manifest.json and not in {LEDGER}")
        elif stage < before:
            faults += _faults(run, stage, chain, manifest)
        elif stage == before:
            kept = {n: s for n, s in chain[stage]["wrote"].items() if _goes_on(n)}
            if all((run / name).exists() for name in kept):
                faults += _changed(run, kept, stage, "left")
    pipeline = _pipeline(run)
    if pipeline.pop("hash", None) not in (None, settings_hash(pipeline)):
        faults.append("pipeline.json: not as the pipeline wrote it")
    known = {name for entry in chain.values() for name in entry["wrote"]}
    if ASKED in chain and before > ASKED:
        strange = {*_files(run, ["predictions_*.jsonl"])} - known
        faults += [f"{name}: no notebook left it" for name in sorted(strange)]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise NotAsLeft(
            "\n".join(
                [
                    f"{run} is not as its notebooks left it, so no number of it is "
                    "shown: bring the files back, delete what is to be made again, or "
                    "run it anew with --fresh",
                    *faults[:SHOWN],
                    *more,
                ]
            )
        )


def content(path: str | Path, whole: bool = False) -> str | None:
    """A fingerprint of a file; None if it is missing.

    Of JSON lines a few digits a line, so that a change has a line. Of another large
    file, unless `whole`, its size and four parts spread over it: a benchmark holds
    hundreds of GB of clips.
    """
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
        return sha256(path)[:16]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for part in range(PARTS):
            file.seek(part * (size - PART_BYTES) // (PARTS - 1))
            digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:16]


def extend(run: Path, stage: str, paths: Iterable[Path]) -> None:
    """Count files that were written after a notebook's end among what it left."""
    chain = _chain(run)
    for path in paths if stage in chain else ():
        name = path.relative_to(run).as_posix()
        chain[stage]["wrote"][name] = content(path, whole=True)
    write_json(run / LEDGER, chain)


def check_trained(folder: Path, base: str | None = None) -> None:
    """ValueError unless what training left in `folder` is as it left it and, where the
    identity of a base is given (`models.identity`), was trained on that base.

    An adapter of somebody else, without the settings that this kit's trainers leave in
    it, is taken as it is.
    """
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
    return {_told(path): content(path) for path in sorted(found) if path.is_file()}


def media(*lists: Iterable) -> set[Path]:
    """The clips and stills of lists of questions or demonstrations."""
    items = [item for own in lists for item in own]
    return {path for item in items for path in (item.video, item.image)} - {None}


def _faults(run: Path, stage: str, chain: dict, manifest: dict) -> list[str]:
    entry, faults = chain[stage], []
    if stage not in manifest or settings_hash(manifest[stage]) != entry["facts"]:
        faults.append(f"manifest.json: {stage} is not what that notebook recorded")
    if entry["after"] != _after(chain, stage):
        faults.append(f"{stage} is older than a notebook before it: run it again")
    executed = _pipeline(run)["notebooks"].get(stage, {}).get("sha256", "")[:16]
    if executed and content(run / f"{stage}.ipynb", whole=True) != executed:
        faults.append(f"{stage}.ipynb: not as the pipeline executed it")
    if any((ROOT / name).exists() for name in entry["read"]):
        faults += _changed(ROOT, entry["read"], stage, "read")
    return faults + _changed(run, entry["wrote"], stage, "left")


def _changed(folder: Path, known: dict, stage: str, did: str) -> list[str]:
    """One text for each file that is not as it was."""
    faults = []
    for name, then in known.items():
        now = content(folder / name, whole=did == "left")
        if now == then:
            continue
        line = ""
        if name.endswith(".jsonl") and now and then:
            pairs = zip(_lines(now), _lines(then), strict=False)
            same = [a == b for a, b in pairs]
            line = f", line {[*same, False].index(False) + 1}"
        state = "missing, though" if now is None else "not as"
        faults.append(f"{name}{line}: {state} {stage} {did} it")
    return faults


def _lines(seen: str) -> list[str]:
    return [seen[i : i + LINE_DIGITS] for i in range(0, len(seen), LINE_DIGITS)]


def _goes_on(name: str) -> bool:
    """Whether a notebook that runs again takes the file as it is."""
    made_again = name.startswith("coherence_")
    kept = name.startswith("adapters/") or name.endswith((".jsonl", ".settings.json"))
    return kept and not made_again


def _after(chain: dict, stage: str) -> dict[str, str]:
    """What the notebooks had left that this one builds on: training is not built on
    other training."""
    earlier = [own for own in sorted(chain) if own < stage]
    if stage < "04":
        earlier = [own for own in earlier if own < "02"]
    return {own: settings_hash(_lasting(chain[own])) for own in earlier}


def _lasting(entry: dict) -> dict[str, str]:
    """What another notebook may have read of this one: all but its figures."""
    wrote = {n: seen for n, seen in entry["wrote"].items() if not n.endswith(".png")}
    return wrote | entry["read"]


def _files(run: Path, patterns: Iterable[str]) -> list[str]:
    found = {path for pattern in patterns for path in run.glob(pattern)}
    names = {path.relative_to(run).as_posix() for path in found if path.is_file()}
    return sorted(
        n for n in names if n not in SHARED and ".partial" not in n and n[0] != "."
    )


def _told(path: Path) -> str:
    """Below the checkout its path there, elsewhere the absolute one."""
    path = Path(path)
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def _chain(run: Path) -> dict:
    return read_json(run / LEDGER) if (run / LEDGER).exists() else {}


def _manifest(run: Path) -> dict:
    path = run / "manifest.json"
    return read_json(path) if path.exists() else {}


def _pipeline(run: Path) -> dict:
    path = run / "pipeline.json"
    return {"notebooks": {}, **(read_json(path) if path.exists() else {})}
