"""Who may write a run's files, and which of them the kit may delete.

Two processes that train one adapter would log every step twice, so whoever writes holds
a lock, which ends with its process. Deleted is only a file that the kit gives such a
name to, in a folder that the kit has marked as a run."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lib import records

MARKS = ("pipeline.json", "manifest.json")  # by one of them a run is known
# What the kit calls the files that it writes into a run.
MADE = re.compile(
    r"""\d\d_\w+(\.unfinished)?\.(ipynb|html) | report\.html | results\.(json|md)
    | (pipeline|manifest|chain|metrics|claims|perception(_asked)?|answer_prefixes)\.json
    | (attention|coherence)\.json
    | (results|claims|perception|attention|coherence)(_\w+)?\.csv
    | (train_log|predictions|readings|judgements|coherence|attention)_[^/]+\.jsonl
    | (draws|tried)_[^/]+\.jsonl
    | (predictions|readings|judgements|attention|draws|tried)_[^/]+\.settings\.json
    | predictions_[^/]+\.earlier\.json
    | (replaced_)?rollouts(_[^/]+)?\.jsonl | watched_[^/]+\.jsonl
    | tensorboard/[^/]+/events\.out\.tfevents\.[^/]+ | figures/[^/]+\.png
    | adapters/\.[^/]+\.unfinished/.+ | \.[^/]+\.lock
    | checkpoints/[^/]+/(README\.md | \w+_settings\.json | checkpoint-\d+/.+)
    | launch_\w+/((call_\d+|half|result)\.pickle | plain\.json | error_\d+\.json)""",
    re.VERBOSE,
)
ADAPTER = re.compile(r"adapters/[^./][^/]*/[^/]+\.(json|safetensors|jinja|txt|md)")


class Busy(RuntimeError):
    """Another process is writing the same; the text says which, and since when."""


class NotARun(ValueError):
    """A folder that the kit has not made; the text says what to do."""


@contextmanager
def one_writer(place: Path, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Keep every other process from writing the file or folder `place`, by a lock
    beside it. Where another one does: Busy, at once or after `patience` seconds."""
    path = place.with_name(f".{place.name}.lock")
    until = time.monotonic() + patience
    while (lock := _taken(path)) is None:
        if time.monotonic() >= until:
            who = ""
            with suppress(FileNotFoundError):  # it may just have gone
                who = path.read_text(encoding="utf-8")
            raise Busy(
                f"{place} is being {doing} by another process{who and f' ({who})'}; "
                "nothing was started. Wait for it, or end it"
            )
        time.sleep(0.1)
    try:
        with records.written(path):
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            who = f"pid {os.getpid()} on {socket.gethostname()} since {since}"
            os.ftruncate(lock, 0)
            os.write(lock, who.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _taken(path: Path) -> int | None:
    """The lock file, open and locked; None if another process has it."""
    while True:
        with records.written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        os.close(lock)  # its last holder has just removed it


def empty(run: Path) -> list[Path]:
    """Delete what the kit made in the folder `run`; returns what it did not make. A
    folder that is no run's is NotARun, one in which somebody writes is Busy."""
    if not run.exists() and not run.is_symlink():
        return []
    if run.is_symlink() or not is_run(run):
        raise NotARun(
            f"{run} is a link or holds no {' or '.join(MARKS)} of a run: nothing was "
            "deleted. Give another run_name, or move it away yourself"
        )
    for lock in run.rglob(".*.lock"):
        if made(run, lock):
            with one_writer(lock.with_name(lock.name[1:-5]), "written"):
                pass
    inside = [*run.rglob("*")]  # does not enter links
    files = [path for path in inside if path.is_symlink() or not path.is_dir()]
    ours = [path for path in files if made(run, path)]
    for path in sorted(ours, key=lambda path: path.name in MARKS):  # these last
        path.unlink()
    folders = {run, *inside} - {*files}
    for folder in sorted(folders, reverse=True):  # what lies in one before it
        if not any(folder.iterdir()):
            folder.rmdir()
    return [path for path in files if path not in {*ours}]


def is_run(folder: Path) -> bool:
    """Whether the kit has left the marks of a run in a folder."""
    found = {mark: {} for mark in MARKS}
    for mark in MARKS:
        with suppress(OSError, ValueError):  # missing, or not JSON
            if isinstance(own := records.read_json(folder / mark), dict):
                found[mark] = own
    state, stages = found.values()
    recorded = [facts for facts in stages.values() if isinstance(facts, dict)]
    environments = ["environment" in facts for facts in recorded]
    return {"parameters", "notebooks"} <= {*state} or any(environments)


def made(run: Path, path: Path) -> bool:
    """Whether the kit wrote a file in a run, or the file that it is half of."""
    if path.is_symlink():
        return False
    if half := records.TEMPORARY.fullmatch(path.name):
        path = path.with_name(half["name"])
    name = path.relative_to(run).as_posix()
    if ADAPTER.fullmatch(name):
        return is_trained(path.parent)
    return MADE.fullmatch(name) is not None


def is_trained(folder: Path) -> bool:
    """Whether the kit's training left a folder of adapters/, and not somebody else."""
    return any(folder.glob("*_settings.json"))
