"""Tamper with a finished run at random, and see whether it is noticed.

    python -m lib.run smoke.yaml                    # run_name: smoke
    python -m tests.bench.tampering outputs/smoke --times 80 \\
        --out outputs/reference/bench_tampering.json

Every kind of artefact is drawn equally often, one file of it and one way to change that
file. Then the two doors that show numbers are asked: the report of the run and its
reference record. It is noticed if one of them refuses, and named if the refusal names
the file; of chain.json, with which the others are compared, it may name one of those.
The file is put back, and the untouched run must pass before and afterwards. The record
keeps every attempt, and the seconds that a check of the run takes.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from tqdm import tqdm

from lib import chain, paths, records
from lib.analysis import readme
from lib.doors import Door
from lib.show import report as show

ARTEFACTS = {
    "annotations": "data:annotations/*.jsonl",
    "general set": "data:general/lvb_val.json",
    "clips": "data:videos/*/*.mp4",
    "stills": "data:images/*/*.png",
    "adapter weights": "adapters/*/*.safetensors",
    "adapter settings": "adapters/*/*.json",
    "training logs": "train_log_*.jsonl",
    "rollouts": "rollouts*.jsonl",
    "watched groups": "watched_*.jsonl",
    "predictions": "predictions_*.jsonl",
    "settings of predictions": "predictions_*.settings.json",
    "readings": "readings_*.jsonl",
    "coherence": "coherence_*.jsonl",
    "attention": "attention_*.jsonl",
    "metrics": "metrics.json",
    "results": "results.json",
    "claims": "claims.json",
    "figures": "figures/*.png",
    "manifest": "manifest.json",
    "pipeline": "pipeline.json",
    "executed notebooks": "0*.ipynb",
    "chain": "chain.json",
}


def edited(content: bytes, draw: random.Random) -> bytes:
    """One byte is another."""
    place = draw.randrange(len(content))
    changed = (content[place] + draw.randint(1, 255)) % 256
    return content[:place] + bytes([changed]) + content[place + 1 :]


def cut_off(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def row_dropped(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def row_doubled(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    return b"".join([*lines[:place], lines[place], *lines[place:]])


def number_changed(content: bytes, draw: random.Random) -> bytes:
    """A digit is another, so that the file stays what it is in form."""
    places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return edited(content, draw)
    place = draw.choice(places)
    other = draw.choice([d for d in b"0123456789" if d != content[place]])
    return content[:place] + bytes([other]) + content[place + 1 :]


def verdict_changed(content: bytes, draw: random.Random) -> bytes:
    """The first false is true, the first true false."""
    ways = [(b": false", b": true"), (b": true", b": false")]
    old, new = next(((a, b) for a, b in ways if a in content), (b"", b""))
    return content.replace(old, new, 1) if old else number_changed(content, draw)


TEXT = [number_changed, verdict_changed, cut_off]
WAYS: dict[str, list[Callable]] = {
    ".jsonl": [*TEXT, row_dropped, row_doubled],
    ".json": TEXT,
    ".ipynb": TEXT,
}


def main(arguments: list[str] | None = None) -> int:
    """Write the tally; 1 if something was not noticed or the untouched run accused."""
    parser = Door("python -m tests.bench.tampering", __doc__)
    parser.add_argument("run", type=Path, help="finished by the pipeline")
    parser.add_argument("--times", type=int, default=80, help="changes tried")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    options = parser.parse_args(arguments)
    run, draw = paths.resolve(options.run), random.Random(options.seed)
    if untouched := accusation(run):
        sys.exit(
            f"the untouched run is accused, so this would show nothing: {untouched}"
        )
    kinds = [kind for kind in ARTEFACTS if files_of(run, kind)]
    drawn = islice(cycle(kinds), options.times)
    rows = [attempt(run, kind, draw) for kind in tqdm(drawn, unit="tampering")]
    started = time.perf_counter()
    chain._content.cache_clear()
    chain.verify(run)
    seconds = time.perf_counter() - started
    known = json.loads((run / "chain.json").read_text()).values()
    found = {
        "seed": options.seed,
        "tamperings": len(rows),
        "noticed": sum(row["noticed"] for row in rows),
        "named": sum(row["named"] for row in rows),
        "untouched_accused": accusation(run),
        "seconds_of_a_check": round(seconds, 3),
        "files_checked": len({n for e in known for n in (*e["read"], *e["wrote"])}),
        "attempts": rows,
        "environment": records.environment(),
    }
    records.write_json(options.out, found)
    print(f"{found['noticed']} of {len(rows)} noticed, {found['named']} with the file")
    fair = found["noticed"] == len(rows) and not found["untouched_accused"]
    return 0 if fair else 1


def attempt(run: Path, kind: str, draw: random.Random) -> dict:
    """Change one file, ask the doors, put it back."""
    file = draw.choice(files_of(run, kind))
    before = file.read_bytes()
    others = [o for o in files_of(run, kind) if o.read_bytes() != before]
    ways = [*WAYS.get(file.suffix, [edited, cut_off]), "delete"]
    way = draw.choice([*ways, "swap"] if others else ways)
    try:
        if way == "delete":
            file.unlink()
        elif way == "swap":
            file.write_bytes(draw.choice(others).read_bytes())
        else:
            file.write_bytes(way(before, draw))
        said = accusation(run)
    finally:
        file.write_bytes(before)
    return {
        "kind": kind,
        "file": file.name,
        "way": way if isinstance(way, str) else way.__name__,
        "noticed": said is not None,
        "named": said is not None and file.name in said,
        "said": (said or "").splitlines()[-1][:160] if said else None,
    }


def accusation(run: Path) -> str | None:
    """What the doors say against a run; None if they show its numbers."""
    for door in (show.write, readme.reference_record):
        try:
            door(run)
        except (ValueError, OSError, KeyError) as error:
            return f"{type(error).__name__}: {error}".replace(f"{paths.ROOT}/", "")
    return None


def files_of(run: Path, kind: str) -> list[Path]:
    pattern = ARTEFACTS[kind]
    if not pattern.startswith("data:"):
        return sorted(run.glob(pattern))
    given = json.loads((run / "chain.json").read_text())["01_data"]["read"]
    first = paths.resolve(next(name for name in given if "annotations/" in name))
    read = {paths.resolve(name) for name in given}
    found = first.parents[1].glob(pattern.removeprefix("data:"))
    return sorted(file for file in found if file in read)


if __name__ == "__main__":
    sys.exit(main())
