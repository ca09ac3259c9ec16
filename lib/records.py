"""What a run writes: JSON and JSON lines, whole or not at all, and its manifest.

A file is replaced by renaming a finished temporary file over it, so a killed process
leaves the old file or the new one. Only `append_jsonl` adds to a file; a kill can tear
the last line of such a file, and `repair_jsonl` cuts that line off again."""

import glob
import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.paths import ROOT, resolve

PACKAGES = (
    *("torch", "torchvision", "transformers", "trl", "peft", "bitsandbytes"),
    *("accelerate", "datasets", "tokenizers", "safetensors", "decord2", "av"),
    *("numpy", "matplotlib", "papermill"),
)
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.tmp")
AGAIN = "mend it, or delete it and make or download it again"


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """Name the file that the disk refuses: a full one does not say which it was."""
    try:
        yield
    except OSError as error:
        why = (
            f"cannot be written ({error.strerror}); make room on its disk, or see that"
            " you may write there, then run it again"
        )
        raise OSError(error.errno, why, str(path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, which becomes `path` when the block ends; what a
    killed process left, `.NAME.PID.tmp`, is deleted."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if is_abandoned(left):
                left.unlink(missing_ok=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether this is a temporary file of a process that is no more."""
    found = TEMPORARY.fullmatch(path.name)
    try:
        return found is not None and os.kill(int(found["pid"]), 0) is not None
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process
        return False


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step; its folder is made if missing."""
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | Path, obj: Any) -> None:
    """Replace `path` by `obj` as indented JSON, keys in the order given."""
    write_text(path, _json(obj, indent=2) + "\n")


def write_tables(path: str | Path, obj: Any) -> None:
    """`write_json`, and each list of rows in `obj` as CSV beside it: `accuracy` of
    results.json as results_accuracy.csv, the rows of claims.json as claims.csv, and the
    `parts` within those as claims_parts.csv, with the first column of their claims. The
    CSV of a list that is empty now is removed."""
    import pandas  # here, because little else of this module needs it

    write_json(path, obj)
    stem, found = Path(path).stem, json.loads(_json(obj))
    named = found.items() if isinstance(found, dict) else [("", found)]
    tables = [(f"{stem}_{name}".rstrip("_"), r) for name, r in named if _is_table(r)]
    for name, rows in tables:  # which grows
        nested = {key for row in rows for key in row if _is_table(row[key])}
        first = next(iter(rows[0]))
        for key in sorted(nested):
            within = [(row[first], row.pop(key, None) or []) for row in rows]
            inner = [{first: own} | r for own, part in within for r in part]
            tables.append((f"{name}_{key}", inner))
        text = pandas.json_normalize(rows).to_csv(index=False)
        write_text(Path(path).with_name(f"{name}.csv"), text)
    for name, rows in named:
        if rows == []:
            Path(path).with_name(f"{stem}_{name}.csv").unlink(missing_ok=True)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def read_json(path: str | Path, missing: Any = None) -> Any:
    """The content of a JSON file, or `missing`, if that is given, where there is none;
    ValueError names the file and the line."""
    if missing is not None and not Path(path).exists():
        return missing
    data = Path(path).read_bytes()
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        line, why = data.count(b"\n", 0, error.start) + 1, "not UTF-8"
    except json.JSONDecodeError as error:
        line, why = error.lineno, f"not JSON ({error.msg})"
    raise ValueError(f"{path}, line {line}: {why}; {AGAIN}")


def write_jsonl(path: str | Path, rows: Iterable[Mapping]) -> None:
    """Replace `path` by one line of JSON a row."""
    write_text(path, _lines(rows))


def append_jsonl(path: str | Path, rows: Iterable[Mapping]) -> None:
    """Add rows to a file (made if missing) in one write, and wait for the disk."""
    with written(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(_lines(rows).encode())
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(path: str | Path) -> list[dict]:
    """All rows of a JSON lines file; ValueError names the file and the line."""
    return _rows(path, Path(path).read_bytes().splitlines())


def repair_jsonl(path: str | Path) -> list[dict]:
    """The whole rows of a file that was appended to, none if it is missing, after
    cutting off a torn last one: without line end, or not JSON."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and _is_torn(lines[-1]):
        torn = lines.pop()
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - len(torn))
            os.fsync(file.fileno())
    return _rows(path, lines)


def frame(run: str | Path, files: str = "*"):
    """Every row of a run's JSON lines as one pandas frame: predictions, rollouts, logs.
    `file` says where a row is from; `files` names some, such as "predictions_*".
    FileNotFoundError if there is none."""
    import pandas  # here, as above

    found = sorted(resolve(run).glob(f"{files}.jsonl"))
    if not found:
        raise FileNotFoundError(f"{resolve(run)} holds no {files}.jsonl: give a run")
    rows = [{"file": path.stem, **row} for path in found for row in read_jsonl(path)]
    return pandas.DataFrame(rows)


def sha256(path: str | Path) -> str:
    """Hex digest of a file, or of a folder: its sorted relative names and contents, but
    for what Python compiled there."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: there is nothing to hash")
    digest = hashlib.sha256()
    sources = (item for item in path.rglob("*") if item.parent.name != "__pycache__")
    for file in sorted(item for item in sources if item.is_file()):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def settings_hash(settings: Mapping) -> str:
    """12 hex digits that do not depend on the order of the keys; of JSON alone."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sealed(facts: Mapping) -> dict:
    """Facts as JSON keeps them, with their own hash, which an edit does not fit."""
    known = {key: own for key, own in json.loads(_json(facts)).items() if key != "hash"}
    return {**known, "hash": settings_hash(known)}


def refuse_other(found: Mapping, wanted: Mapping, what: str, then: str) -> None:
    """ValueError "`what`: lr (0.1 there, 0.2 now). `then`" where settings differ: what
    was made with others must not be mixed with what these would make."""
    missing = object()
    differing = [
        f"{key} ({found.get(key)!r} there, {wanted.get(key)!r} now)"
        for key in sorted({*found, *wanted})
        if found.get(key, missing) != wanted.get(key, missing)
    ]
    if differing:
        raise ValueError(f"{what}: {', '.join(differing)}. {then}")


def environment() -> dict:
    """The code, the packages and the machine a record was made with."""
    import torch  # here, because readers of records should not wait for it

    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def record_stage(run: Path, stage: str, **facts: Any) -> None:
    """Add the facts of a stage, and where it ran, to run/manifest.json, which is
    {stage: {fact: value, ..., "environment": {...}}, ...}."""
    path = Path(run) / "manifest.json"
    found = environment()  # first: it takes a while, in which others may write theirs
    manifest = read_json(path, {})
    manifest[stage] = {**manifest.get(stage, {}), **facts, "environment": found}
    write_json(path, manifest)


def peak_memory_gib() -> float:
    """The largest resident memory that this process, or one that it started and that
    has ended, had so far, in GiB; not that of the GPU."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    own, ended = (resource.getrusage(who).ru_maxrss / unit for who in whose)
    with suppress(OSError):  # on Linux getrusage also counts what the parent held
        status = Path("/proc/self/status").read_text()
        own = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
    return max(own, ended)


def _lines(rows: Iterable[Mapping]) -> str:
    return "".join(_json(row) + "\n" for row in rows)


def _json(obj: Any, **options: Any) -> str:
    """JSON; NaN and infinity, for which it has no words, become null."""
    options |= {"ensure_ascii": False, "default": _plain}
    try:
        return json.dumps(obj, allow_nan=False, **options)
    except ValueError:  # such a number, most likely
        words = json.dumps(obj, **options)
        return json.dumps(json.loads(words, parse_constant=lambda _: None), **options)


def holds_nan(row: Mapping) -> bool:
    """Whether NaN or infinity, which would become null, is in a record."""
    found: list[str] = []
    json.loads(json.dumps(row, default=_plain), parse_constant=found.append)
    return bool(found)


def _plain(value: Any) -> Any:
    """numpy numbers and arrays as numbers and lists, paths as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written")


def _rows(path: str | Path, lines: list[bytes]) -> list[dict]:
    rows = []
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{place}: not JSON ({error}); {AGAIN}") from error
        if not isinstance(rows[-1], dict):
            found = f"expected an object, found {rows[-1]!r}"
            raise ValueError(f"{place}: {found}; {AGAIN}")
    return rows


def _is_torn(line: bytes) -> bool:
    with suppress(ValueError):
        _rows("", [line])
        return not line.endswith(b"\n")
    return True


def _git(*arguments: str) -> str | None:
    """What git prints in the checkout; None without git or outside a repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    with suppress(OSError, subprocess.CalledProcessError):
        quiet = {"stderr": subprocess.DEVNULL, "text": True}
        return subprocess.check_output(command, **quiet).strip()
    return None


def version(package: str) -> str | None:
    """That of an installed package; None if it is not."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
