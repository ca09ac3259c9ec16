"""One row for each of many items, whoever makes it: answers, readings, attention.

The batches are a fixed partition of the items, and several processes share them out.
Rows of a finished batch go to NAME.partial.jsonl at once, those of process N > 0 to
NAME.partial-N.jsonl. So a killed call goes on with the batches that are missing, on any
number of processes, and ends with the same bytes as an undisturbed one. What made the
rows is in NAME.settings.json; rows of other settings are refused."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

from lib import records, run_files
from lib.model import models as models  # first: it prepares what transformers imports

# isort: split
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Batches = Sequence[Sequence]  # of items with an `id` each


def finish(
    path: Path,
    items: Sequence,
    settings: Callable[[], Mapping],
    make: Callable[[Batches], Iterable[list[dict]]],
    doing: str,
    size: int = 1,
    shape: Callable | None = None,
    again: Callable[[list[dict]], set[str]] = lambda rows: set(),
    of: Callable[[list[str]], Mapping] | None = None,
) -> list[dict]:
    """One row for each item, made where it is missing; also in `path`. `make` gives the
    rows of each batch it gets, `size` items that are neighbours by `shape`; `settings`,
    plain JSON values, decide them. A finished file is kept, but for the batches with an
    item of `again(rows)`; with `of`, which gives the settings of some ids alone, also
    where there are more items now. All processes that call this together make a share
    each and return all rows. Raises ValueError where rows of other settings, or of
    other items, lie at `path`, FloatingPointError for a row with NaN or infinity, and
    Busy (lib/run_files.py) while another process is `doing` this."""
    order = [item.id for item in items]
    if len(set(order)) < len(order):
        raise ValueError("two questions have the same id: rows could not be told apart")
    state = processes()
    first, count = state.is_main_process, state.num_processes
    missing, earlier, now = [], {}, {}
    # The processes of one launch are one writer.
    with run_files.one_writer(path, doing) if first else nullcontext():
        if first:
            now = settings()
            earlier = _earlier(path, now, of, again) if of else {}
        (earlier,) = broadcast_object_list([earlier])
        batches = partition([i for i in items if i.id not in earlier], size, shape)
        if first:
            missing = _missing(path, batches, now, again)
        (missing,) = broadcast_object_list([missing])
        own = [batches[n] for n in missing[state.process_index :: count]]
        partial, todo = partial_file(path, state.process_index), sum(map(len, own))
        before = len(order) - sum(len(batches[n]) for n in missing)
        name = path.stem if count == 1 else f"{path.stem}, 1 of {count} shares"
        # One bar is enough: the other processes have as much to do.
        with tqdm(None, name, before + todo, disable=not first, initial=before) as bar:
            for rows in make(own):
                if odd := [row["id"] for row in rows if records.holds_nan(row)]:
                    raise FloatingPointError(
                        f"{path.name}: the numbers of {odd[0]} are NaN or infinite: in "
                        "16 bits one can overflow, where dtype = float32 helps"
                    )
                records.append_jsonl(partial, rows)
                bar.update(len(rows))
        state.wait_for_everyone()
        if first and not path.exists():
            files = partial_files(path)
            made = {row["id"]: row for f in files for row in records.read_jsonl(f)}
            rows = earlier | made
            records.write_jsonl(path, [rows[key] for key in order])
            _remove(files)
            earlier_file(path).unlink(missing_ok=True)
        state.wait_for_everyone()
        rows = records.read_jsonl(path)
        if [row.get("id") for row in rows] != order:  # a copy that was cut off
            told = f"has {len(rows)} rows that are not those of {len(order)} items"
            raise ValueError(f"{path} {told}: delete it to have them made again")
        return rows


def partition(items: Sequence, size: int, shape: Callable | None) -> Batches:
    """The batches, always the same ones."""
    alike = sorted(items, key=shape) if shape else items  # stable
    return [alike[start : start + size] for start in range(0, len(alike), size)]


def processes() -> PartialState:
    """This process among those that work together; each has a device of its own.
    Without a GPU, accelerate sees other processes only if told that it is on CPU. Who
    is done first waits for long: a process that fails is ended by its launcher."""
    on_cpu = not torch.cuda.is_available()
    return PartialState(cpu=on_cpu, timeout=timedelta(hours=2))


def settings_file(path: Path) -> Path:
    """Where it is written what made the rows at `path`."""
    return path.with_suffix(".settings.json")


def earlier_file(path: Path) -> Path:
    """Where a finished file of fewer items waits until all are there."""
    return path.with_suffix(".earlier.json")


def partial_file(path: Path, process: int) -> Path:
    """Where a process puts its rows until all are there."""
    return path.with_suffix(f".partial{f'-{process}' if process else ''}.jsonl")


def partial_files(path: Path) -> list[Path]:
    """Those that exist, of any number of processes; nothing of another name."""
    named = re.compile(re.escape(path.stem) + r"\.partial(-\d+)?\.jsonl")
    return sorted(f for f in path.parent.glob("*") if named.fullmatch(f.name))


def digest(texts: Iterable[str]) -> str:
    """What stands for many texts in settings: "2 with sha256 5d41402abc4b"."""
    texts = list(texts)
    found = hashlib.sha256("".join(texts).encode()).hexdigest()
    return f"{len(texts)} with sha256 {found[:12]}"


def refuse_other_settings(path: Path, wanted: Mapping) -> None:
    """Raise ValueError, naming each difference, when rows of other settings exist."""
    if not path.exists() and not partial_files(path):
        return
    file, delete = settings_file(path), f"delete {path.stem}.* in {path.parent}"
    if not file.exists():
        raise ValueError(
            f"{path.name} has rows but {file.name} is missing, so nobody can tell what "
            f"made them: {delete} and evaluate again"
        )
    records.refuse_other(
        records.read_json(file),
        wanted,
        f"{path} holds rows of other settings",
        f"Use another run_name, or {delete} to evaluate again",
    )


def _earlier(path: Path, settings: Mapping, of, again) -> dict[str, dict]:
    """{id: row} of a finished file of fewer items, which is kept with its settings."""
    file, known = earlier_file(path), settings_file(path)
    if path.exists() and known.exists():
        there, rows = records.read_json(known), records.read_jsonl(path)
        if there == settings:
            file.unlink(missing_ok=True)
        elif there == of([row["id"] for row in rows]):
            records.write_json(file, {"settings": there, "rows": rows})
            path.unlink()
    if not file.exists():
        return {}
    kept = records.read_json(file)
    wanted = of([row["id"] for row in kept["rows"]])
    told = f"{file} holds rows of other settings"
    records.refuse_other(kept["settings"], wanted, told, "Delete it to evaluate again")
    anew = again(kept["rows"])
    return {row["id"]: row for row in kept["rows"] if row["id"] not in anew}


def _missing(path: Path, batches: Batches, settings: Mapping, again) -> list[int]:
    """Numbers of the batches still to make; rows of whole ones go to one partial file.
    Rows of a batch that a kill tore are dropped, and it is made anew."""
    refuse_other_settings(path, settings)
    files = partial_files(path)
    if path.exists():
        rows = records.read_jsonl(path)
        if not (anew := again(rows)):
            _remove(files)  # left by a kill right behind the last write
            return []
        rows, files = [row for row in rows if row["id"] not in anew], [*files, path]
    else:
        rows = [row for file in files for row in records.repair_jsonl(file)]
    found, ids = {row["id"]: row for row in rows}, [{i.id for i in b} for b in batches]
    if not found.keys() <= set().union(*ids):
        told = "holds rows of other items: delete it"
        raise ValueError(f"{path.stem}.partial* in {path.parent} {told}")
    missing = [n for n, batch in enumerate(ids) if not batch <= found.keys()]
    torn = set().union(*(ids[n] for n in missing))
    records.write_json(settings_file(path), settings)
    if files:
        own = partial_file(path, 0)
        kept = [row for key, row in found.items() if key not in torn]
        records.write_jsonl(own, kept)
        _remove({*files} - {own})
    return missing


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink()
