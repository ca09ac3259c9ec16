"""Where things are, whatever the current folder is: notebooks, tests and scheduled jobs
each have another one, so every location starts from this file."""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In outputs/ and no run's: benchmark, committed records, exported models, checks of
# models. Some file systems take Data for data.
RESERVED = ("data", "reference", "models", "checked")
LONGEST = 200  # bytes of a run's name; systems take 255, and .log or .lock comes to it


def outputs_dir() -> Path:
    """Where runs and data lie: outputs/, or the folder that $KIT_OUTPUTS names."""
    return ROOT / Path(os.environ.get("KIT_OUTPUTS") or "outputs").expanduser()


def resolve(path: str | Path) -> Path:
    """An absolute path; a relative one is read from the root of the checkout, and
    outputs/, but for the committed outputs/reference, from `outputs_dir`."""
    path = Path(path).expanduser()
    if path.parts[:1] == ("outputs",) and path.parts[1:2] != ("reference",):
        return outputs_dir().joinpath(*path.parts[1:])
    return ROOT / path


def told(path: Path) -> str:
    """How a record names a file: from the root of the checkout where it is below it."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; folders that links lead to are entered, none twice."""
    entered = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in entered:
            inner.clear()
        else:
            entered.add(real)
            yield from (Path(place, name) for name in names)


def check_run_name(run_name: str) -> None:
    """Raise ValueError unless `run_name` can name a run's folder below outputs/."""
    why = ""
    if not run_name or run_name.startswith(".") or set(run_name) & set('/\\:"'):
        why = (
            "must be a plain folder name: not empty, no leading dot, none of / \\ : and"
            " no quotation mark"
        )
    elif not run_name.isprintable() or len(run_name.encode()) > LONGEST:
        why = f"must be printable characters of at most {LONGEST} bytes"
    elif (kept := run_name.casefold()) in RESERVED:
        why = f"is kept for outputs/{kept}, which is no run: give another name"
    if why:
        raise ValueError(f"run_name {run_name[:50]!r} {why}")


def run_dir(run_name: str) -> Path:
    """outputs/<run_name>, created if it is not there."""
    check_run_name(run_name)
    folder = outputs_dir() / run_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require(path: str | Path, hint: str) -> Path:
    """`path`, or a FileNotFoundError that says what makes it: the `hint`."""
    found = resolve(path)
    if not found.exists():
        raise FileNotFoundError(f"{found} is missing: {hint}")
    return found


def cores() -> int:
    """The cores this process may use, which can be fewer than the machine has."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
