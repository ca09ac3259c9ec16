"""Runs the notebooks in order through papermill, and whole sweeps of runs.

    python -m lib.run params/mini.yaml
    python -m lib.run params/sweeps/mini_seeds.yaml --jobs 2

A run leaves its executed notebooks and records in outputs/<run_name>/. Calling it again
goes on where it stopped: a notebook that has finished is not run again unless its code,
its parameters, anything in lib/, the content of its data or checkpoint, or a notebook
before it has changed. A run with 05_analysis ends with its report,
outputs/<run_name>/report.html (lib/show/report.py).

A sweep (lib/run/params.py) runs each combination as a process of its own, and gathers
outputs/<sweep>/runs.json and runs.md, one row a run. `--print` shows the commands of
the runs instead, for a scheduler; calling the sweep once more afterwards finds all of
them finished and writes the table. `--dry-run` says beforehand what a run or a sweep
will do, take and need, and starts nothing (lib/run/plan.py).
"""

import argparse
import contextlib
import errno
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm
from traitlets import default

from lib import chain, run_files
from lib.markup import grid, shown
from lib.paths import ROOT, cores, resolve, run_dir
from lib.records import read_json, settings_hash, sha256, write_json, write_text
from lib.run.params import Run, declarations, declared, load_params

OUTPUTS = ROOT / "outputs"
ABOUT = """\
Run the notebooks in order, into outputs/<run_name>/. Killed, the same command goes on.

With a command in place of the file (COMMAND --help says more):
  report RUN             the pages of a finished run, once more
  judge RUN ...          a language model's view of whether reasoning supports answers
  export ADAPTER FOLDER  a merged checkpoint with its model card"""
# Two runs of one seed must agree, and nobody's run should report to anyone.
OUT_OF_MEMORY = "the memory is used up: close other programs, or allow more (ulimit -v)"
KERNEL_ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
TRACEBACK_LINES = 15
LEAST_FILES = 256  # that a kernel with torch holds open at once
# What a system says, in any library's words, and what to do about it.
REMEDIES = {
    os.strerror(errno.ENOSPC): "make room on that disk",
    os.strerror(errno.EDQUOT): "make room: your share of that disk is used up",
    os.strerror(errno.EFBIG): "allow larger files (ulimit -f)",
    os.strerror(errno.EROFS): "give a place that can be written, this disk cannot",
    os.strerror(errno.EACCES): "see that you may write there",
    os.strerror(errno.EMFILE): "allow more open files (ulimit -n 1024)",
    os.strerror(errno.ENOMEM): OUT_OF_MEMORY,
    "MemoryError": OUT_OF_MEMORY,
    "bad_alloc": OUT_OF_MEMORY,
    "failed to map segment": OUT_OF_MEMORY,
}
ANALYSIS, REPORT = "05_analysis", "report.html"
OF_A_SWEEP = "PIPELINE_OF_A_SWEEP"  # set: stdin ends when the sweep does
TO_END, PATIENCE = 10.0, 15.0  # seconds that ending may take, that its successor waits


class NotebookFailed(Exception):
    """A cell raised, or its kernel died; the text says where and how."""


FAILURES = (NotebookFailed, chain.NotAsLeft, run_files.Busy, run_files.NotARun)


class OwnKernel(AsyncKernelManager):
    """A kernel of this very interpreter, whatever `python3` is registered as.

    Its messages are encrypted: on a shared machine others can read local traffic.
    """

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all finished, 1 if a run failed, 2 if none could start."""
    options = _parse(arguments)
    try:
        runs = load_params(options.params)
        if options.only:
            runs = [_named(options.only, runs)]
    except ValueError as error:
        print(f"nothing was started:\n{error}", file=sys.stderr)
        return 2
    if options.dry_run:
        from lib.run import plan  # here, because it brings torch and transformers

        return plan.dry_run(runs, options.params, options.gib)
    if options.print:
        print("\n".join(_shell_command(options, run) for run in runs))
        return 0
    patience = _end_as_asked()
    try:
        _check_open_files()
        if options.only or not runs[0].varied:
            return execute_run(runs[0], options.fresh, patience)
        return execute_sweep(runs, options)
    except FAILURES as failure:
        print(failure, file=sys.stderr)
        return 1
    except OSError as error:
        if error.strerror is None:  # no system's error
            raise
        said = f"{error.filename or OUTPUTS}: {error.strerror}"
        print(f"stopped: {_trouble(said) or said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended: the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT


def execute_run(run: Run, fresh: bool = False, patience: float = 0.0) -> int:
    """Run what is not finished, then write the report; returns 0.

    Another process that has the run is waited for so many seconds. Raises
    NotebookFailed, or another of FAILURES.
    """
    os.environ.update(KERNEL_ENVIRONMENT)
    folder = OUTPUTS / run.name
    with run_files.one_writer(folder, "run", patience):
        for kept in run_files.empty(folder) if fresh else ():
            print(f"{kept} stays: the kit did not make it")
        run_files.sweep(folder)
        _execute_notebooks(run)
        if report_due(run):
            _write_report(run)
    print(f"finished: the results are in {OUTPUTS / run.name}")
    if _has_analysis(run):
        print(f"to read: {OUTPUTS / run.name / REPORT}")
    return 0


def _check_open_files() -> None:
    """OSError if a kernel would not start, for it dies without saying why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        few = f"{os.strerror(errno.EMFILE)} for {hard} at most"
        raise OSError(errno.EMFILE, few, sys.executable)
    if soft < LEAST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_FILES, hard))


def _trouble(error: str) -> str | None:
    """What the system lacks, by the words of an error, and what to do, in one line;
    None where it is something else."""
    again = "run it again"
    for words, remedy in REMEDIES.items():
        if words in error:
            told = "" if again in error else f"; {remedy}, then {again}"
            return shown(error, 500) + told
    return None


def unfinished(run: Run) -> list[Path]:
    """The notebooks still to run: from the first one that is missing or changed."""
    notebooks = list(run.notebooks)
    recorded = _state(run.name)["notebooks"]
    for index, (notebook, key) in enumerate(notebook_keys(run).items()):
        done = recorded.get(notebook.stem, {}).get("key") == key
        if not (done and (OUTPUTS / run.name / notebook.name).exists()):
            return notebooks[index:]
    return []


def report_due(run: Run) -> bool:
    """Whether a finished run lacks a report of its notebooks as they are.

    05_analysis writes one too, before its own executed copy is there to be linked.
    """
    if not _has_analysis(run):
        return False
    there = (OUTPUTS / run.name / REPORT).exists()
    return not there or _state(run.name).get("reported") != _executed(run)


def _executed(run: Run) -> dict[str, str]:
    """The SHA-256 of the executed notebooks of a run."""
    folder = OUTPUTS / run.name
    return {notebook.stem: sha256(folder / notebook.name) for notebook in run.notebooks}


def notebook_keys(run: Run, library: dict | None = None) -> dict[Path, str]:
    """A key a notebook, of all that it depends on: code, values, lib, data, those
    before. `library` is what `_library` gave earlier."""
    keys: dict[Path, str] = {}
    previous = settings_hash({"lib": library or _library(), "data": _data(run)})
    for notebook in run.notebooks:
        inputs = [_code(notebook), _values(notebook, run), previous]
        keys[notebook] = previous = settings_hash({"inputs": inputs})
    return keys


def _library() -> dict[str, str]:
    return {
        file.relative_to(ROOT).as_posix(): sha256(file)
        for file in sorted((ROOT / "lib").rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def _data(run: Run) -> dict:
    """The content of annotations, clips, stills and of a checkpoint on this machine."""
    known = {name: own.default for name, own in declarations(run.notebooks).items()}
    known |= run.values
    folders = (resolve(known.get(name, "")) for name in ("data_dir", "general_dir"))
    model = resolve(known.get("model", ""))
    checkpoint = sha256(model) if model != ROOT and model.is_dir() else None
    return {**chain.benchmark(*folders), "model": checkpoint}


def execute_sweep(runs: list[Run], options: argparse.Namespace) -> int:
    """Run every run as a process, `--jobs` at a time; 1 if any of them failed.

    They end with this process, however it ends. Raises Busy where another process runs
    the sweep.
    """
    folder = run_dir(Path(options.params).stem)
    with run_files.one_writer(folder, "run"):
        return _execute_sweep(runs, options, folder)


def _execute_sweep(runs: list[Run], options: argparse.Namespace, folder: Path) -> int:
    threads = max(1, cores() // options.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    failed: set[str] = set()
    bar = tqdm(total=len(runs), unit="run")
    pool = ThreadPoolExecutor(options.jobs)
    with bar, _ending(pool) as alive:
        given = (options, folder, environment, alive)
        started = {pool.submit(_child, run, *given): run for run in runs}
        for future in as_completed(started):
            run, code = started[future], future.result()
            log = folder / f"{run.name}.log"
            bar.write(f"{run.name}: {f'failed, see {log}' if code else 'finished'}")
            failed |= {run.name} if code else set()
            write_table(runs, failed, folder)
            bar.update()
    print(f"one row a run: {folder / 'runs.md'}")
    return 1 if failed else 0


def write_table(runs: list[Run], failed: set[str], folder: Path) -> None:
    """runs.json and runs.md of a sweep; runs that did not finish have no numbers."""
    rows = [_table_row(run, failed) for run in runs]
    write_json(folder / "runs.json", rows)
    cells = [_table_cells(row) for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    lines = [[row.get(name, "") for name in columns] for row in cells]
    write_text(folder / "runs.md", grid([columns, *lines]))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lib.run",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("params", help="a file such as params/mini.yaml")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs of a sweep at the same time"
    )
    parser.add_argument("--only", metavar="RUN", help="one run of a sweep, by name")
    parser.add_argument(
        "--fresh", action="store_true", help="remove the run's folder first"
    )
    parser.add_argument(
        "--print", action="store_true", help="show one command a run, run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what will happen, start nothing"
    )
    parser.add_argument(
        "--gib", type=float, help="with --dry-run: memory of the card it is for"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return options


def _named(name: str, runs: list[Run]) -> Run:
    for run in runs:
        if run.name == name:
            return run
    raise ValueError(f"no run {name}; there are {', '.join(run.name for run in runs)}")


def _command(options: argparse.Namespace, run: Run) -> list[str]:
    command = [sys.executable, "-m", "lib.run"]
    command += [str(Path(options.params).resolve())]
    command += ["--only", run.name] if run.varied else []
    return command + (["--fresh"] if options.fresh else [])


def _shell_command(options: argparse.Namespace, run: Run) -> str:
    return f"cd {shlex.quote(str(ROOT))} && {shlex.join(_command(options, run))}"


def _child(
    run: Run,
    options: argparse.Namespace,
    folder: Path,
    environment: dict[str, str],
    alive: int,
) -> int:
    """The exit code of a run, executed as a process whose messages go to a log."""
    if not options.fresh and not unfinished(run) and not report_due(run):
        return 0
    with open(folder / f"{run.name}.log", "w", encoding="utf-8") as log:
        return subprocess.call(
            _command(options, run),
            cwd=ROOT,
            env={**environment, OF_A_SWEEP: "1"},
            stdin=alive,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the sweep's, which then ends them
        )


@contextlib.contextmanager
def _ending(pool: ThreadPoolExecutor) -> Iterator[int]:
    """The end of a pipe that runs of the pool watch: it closes when this block is left,
    as by Ctrl-C, or this process is killed. Then nothing more is started."""
    watched, held = os.pipe()
    try:
        yield watched
    finally:
        os.close(held)
        pool.shutdown(cancel_futures=True)
        os.close(watched)


def _end_as_asked() -> float:
    """Take other signals to end, and the end of one's sweep, as Ctrl-C.

    Returns the seconds to wait for a run's last process, which may still be ending.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, signal.default_int_handler)
    if os.environ.pop(OF_A_SWEEP, None) is None:
        return 0.0

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return PATIENCE


def _execute_notebooks(run: Run) -> None:
    run_dir(run.name)
    todo = unfinished(run)
    finished = [n for n in run.notebooks if n not in todo]
    for notebook in finished:
        print(f"{notebook.stem}: unchanged, not run again")
    recorded = _state(run.name)["notebooks"]
    # What is about to be overwritten no longer counts as finished.
    kept = {notebook.stem: recorded[notebook.stem] for notebook in finished}
    state = _state(run.name) | {"parameters": run.values, "notebooks": kept}
    _write_state(run.name, state)
    cells = sum(_cell_count(notebook, run) for notebook in todo)
    bar = tqdm(total=cells, unit="cell", smoothing=0, disable=not todo)
    with bar, _ticking(bar):
        for notebook in todo:
            _execute_and_record(notebook, run, bar)


def _execute_and_record(notebook: Path, run: Run, bar: tqdm) -> None:
    """Execute a notebook and, only after that, note that it is finished.

    Its key is of the code that ran and of the data that are there now: 01_data may have
    made them.
    """
    library = _library()
    start, end = time.monotonic(), bar.n + _cell_count(notebook, run)
    bar.set_description(notebook.stem)
    _execute(notebook, run, bar)
    bar.update(end - bar.n)
    state = _state(run.name)
    state["notebooks"][notebook.stem] = {
        "key": notebook_keys(run, library)[notebook],
        "sha256": sha256(OUTPUTS / run.name / notebook.name),
        "seconds": round(time.monotonic() - start, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_state(run.name, state)


def _has_analysis(run: Run) -> bool:
    return any(notebook.stem == ANALYSIS for notebook in run.notebooks)


def _write_report(run: Run) -> None:
    from lib.show import report  # here, because it brings matplotlib and nbconvert

    report.write(OUTPUTS / run.name)
    _write_state(run.name, _state(run.name) | {"reported": _executed(run)})


def _execute(notebook: Path, run: Run, bar: tqdm) -> None:
    """Execute one notebook; its file gets its final name when all cells have run."""
    final = OUTPUTS / run.name / notebook.name
    partial = final.with_suffix(".unfinished.ipynb")
    # papermill fills parameters into what stands in braces in a path.
    as_they_are = str.maketrans({"{": "{{", "}": "}}"})
    current: dict = {}
    try:
        papermill.execute_notebook(
            str(notebook).translate(as_they_are),
            str(partial).translate(as_they_are),
            parameters=_values(notebook, run),
            kernel_name="python3",
            language="python",
            kernel_manager_class=OwnKernel,
            cwd=notebook.parent,
            progress_bar=False,
            shutdown_kernel="immediate",  # a kernel that trains is deaf to requests
            on_cell_execute=lambda **started: current.update(started),
            on_cell_executed=lambda **_: bar.update(),
        )
    except PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
        if trouble := _trouble(said):
            raise NotebookFailed(f"{notebook.stem} stopped: {trouble}") from error
        # Without memory IPython cannot make one.
        cause = error.traceback or [f"{said}It may have run out of memory."]
        raise NotebookFailed(_report(partial, current, cause)) from error
    except RuntimeError as error:  # the kernel died, or did not start at all
        cause = [f"{error} It may have run out of memory."]
        raise NotebookFailed(_report(partial, current, cause)) from error
    os.replace(partial, final)


def _report(partial: Path, current: dict, traceback: list[str]) -> str:
    """The notebook, the cell that failed and the end of its traceback."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    tail = [shown(line, 500) for line in text.splitlines()[-TRACEBACK_LINES:]]
    cell = current.get("cell")
    source = cell.source.splitlines()[:TRACEBACK_LINES] if cell else ["(none yet)"]
    indented = [f"    {line}" for line in source]
    return "\n".join([f"\nfailed: {partial}", "in the cell", *indented, "with", *tail])


@contextlib.contextmanager
def _ticking(bar: tqdm) -> Iterator[None]:
    """Redraw the bar each second, so that the clock moves while a cell trains."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(1.0):
            bar.refresh()

    if sys.stderr.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _code(notebook: Path) -> list[str]:
    """The sources of the cells that a kernel executes."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code" and c.source.strip()]


def _values(notebook: Path, run: Run) -> dict:
    """The values of the run that this notebook declares."""
    names = declared(notebook)
    return {name: run.values[name] for name in names if name in run.values}


def _cell_count(notebook: Path, run: Run) -> int:
    """Cells that will be executed; papermill adds one that holds the values."""
    return len(_code(notebook)) + bool(_values(notebook, run))


def _state(run_name: str) -> dict:
    path = OUTPUTS / run_name / "pipeline.json"
    return read_json(path) if path.exists() else {"parameters": {}, "notebooks": {}}


def _write_state(run_name: str, state: dict) -> None:
    """With its own hash, which `chain.verify` compares."""
    names = ("parameters", "notebooks", "reported")
    facts = {name: state[name] for name in names if name in state}
    sealed = {**facts, "hash": settings_hash(facts)}
    write_json(OUTPUTS / run_name / "pipeline.json", sealed)


def _table_row(run: Run, failed: set[str]) -> dict:
    folder = OUTPUTS / run.name
    todo = unfinished(run)
    status = "waiting" if todo else "finished"
    if run.name in failed:
        status = f"failed at {todo[0].stem}" if todo else "failed"
    row = {"run": run.name, **{key: run.values[key] for key in run.varied}}
    row["status"] = status
    if status == "finished":
        notebooks = _state(run.name)["notebooks"].values()
        row["seconds"] = round(sum(notebook["seconds"] for notebook in notebooks), 1)
        if (folder / "metrics.json").exists():
            chain.verify(folder)
            row["metrics"] = read_json(folder / "metrics.json")
    return row


def _table_cells(row: dict) -> dict[str, str]:
    """A row of runs.json as text: its numbers, and the accuracy of model and set."""
    cells = {key: str(value) for key, value in row.items() if key != "metrics"}
    seconds = cells.pop("seconds", None)
    for model, sets in row.get("metrics", {}).items():
        for name, numbers in sets.items():
            cells[f"{model} {name}"] = f"{numbers['accuracy']:.3f}"
    return cells | ({"seconds": seconds} if seconds else {})
