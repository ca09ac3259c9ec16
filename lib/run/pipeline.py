"""Run the notebooks in order through papermill, into outputs/<run_name>/.

    python -m lib.run params/mini.yaml run_name=mini_kl kl_beta=0.1
    python -m lib.run params/sweeps/mini_seeds.yaml --jobs 2

Stopped? Run it once more: a notebook that has finished is not run again unless its
code, its parameters, anything in lib/, the content of its data or checkpoint, or a
notebook before it has changed. A sweep runs each combination as a process of its own,
and gathers outputs/<sweep>/runs.json, runs.csv and runs.md, one row a run.

With a command in place of the file (COMMAND --help says more):
    report RUN             the pages of a finished run, once more
    judge RUN ...          a language model's view of whether reasoning supports answers
    export ADAPTER FOLDER  a merged checkpoint with its model card
    rows RUN TABLE         every answer, rollout and step as CSV or parquet
    check-model MODEL      whether a model is read right on this machine"""

import argparse
import errno
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm
from traitlets import default

from lib import chain, records, run_files
from lib.doors import Door
from lib.markup import grid, shown
from lib.methods import called
from lib.paths import ROOT, cores, outputs_dir, resolve, run_dir
from lib.processes import at_the_callers_end
from lib.records import read_json, settings_hash, sha256, write_json, write_text
from lib.run.cards import CARDS
from lib.run.params import Run, cells_of, declarations, declared, load_params

OUTPUTS = outputs_dir()
# Two runs of one seed must agree, and nobody's run should report to anyone.
KERNEL_ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
TRACEBACK_LINES = 15
FULL = "It may have run out of memory."  # then IPython makes no traceback
LEAST_FILES = 256  # that a kernel with torch holds open at once
OUT_OF_MEMORY = "the memory is used up: close other programs, or allow more (ulimit -v)"
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
    """A kernel of this very interpreter, whatever `python3` is registered as. It is
    spoken to through sockets in a folder of one's own: a port is open to others on a
    shared machine, and one that was free may be taken before the kernel starts."""

    @default("transport")
    def _files(self) -> str:
        return "ipc"

    @default("ip")
    def _folder(self) -> str:
        self.folder = tempfile.TemporaryDirectory(prefix="kernel-")
        return f"{self.folder.name}/at"

    @property
    def kernel_spec(self) -> KernelSpec:
        """What starts this interpreter."""
        return KernelSpec(**get_kernel_dict())


# The command


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all finished, 1 if a run failed, 2 if none could start,
    128 and the signal's number if it was told to end."""
    options = _parse(arguments)
    try:
        runs = load_params(options.params, overrides=options.overrides)
        if options.only:
            names = ", ".join(run.name for run in runs)
            runs = [run for run in runs if run.name == options.only]
            if not runs:
                raise ValueError(f"no run {options.only}; there are {names}")
    except ValueError as error:
        print(f"nothing was started:\n{error}", file=sys.stderr)
        return 2
    if options.dry_run:
        from lib.run import plan  # here, because it brings torch and transformers

        return plan.dry_run(runs, options.gib, options.card)
    if options.print:
        for run in runs:
            command = shlex.join(_command(options, run))
            print(f"cd {shlex.quote(str(ROOT))} && {command}")
        return 0
    patience = _end_as_asked()
    try:
        _check_open_files()
        if runs[0].varied and not options.only:
            return execute_sweep(runs, options)
        execute_run(runs[0], options.fresh, patience)
        return 0
    except FAILURES as failure:
        print(failure, file=sys.stderr)
        return 1
    except OSError as error:
        if error.strerror is None:  # no system's error
            raise
        said = f"{error.filename or OUTPUTS}: {error.strerror}"
        print(f"stopped: {_trouble(said) or said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as told:
        print("ended: the same command goes on from here", file=sys.stderr)
        return 128 + (told.args or (signal.SIGINT,))[0]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Door("python -m lib.run", __doc__)
    add = parser.add_argument
    add("params", help="a file such as params/mini.yaml")
    more = {"nargs": "*", "metavar": "NAME=VALUE"}
    add("overrides", **more, help="in place of the file's: seed=3 grpo_lr=1e-4")
    add("--jobs", type=int, default=1, help="runs of a sweep at the same time")
    add("--only", metavar="RUN", help="one run of a sweep, by name")
    add("--fresh", action="store_true", help="remove the run's folder first")
    add("--print", action="store_true", help="show one command a run, run nothing")
    add("--dry-run", action="store_true", help="say what will happen, start nothing")
    add("--gib", type=float, help="with --dry-run: memory of the card it is for")
    add("--card", choices=CARDS, help="with --dry-run: the card it is for")
    options = parser.parse_intermixed_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return options


def _command(options: argparse.Namespace, run: Run) -> list[str]:
    command = [sys.executable, "-m", "lib.run", str(Path(options.params).resolve())]
    command += options.overrides
    command += ["--only", run.name] if run.varied else []
    return command + (["--fresh"] if options.fresh else [])


def _check_open_files() -> None:
    """OSError if a kernel would not start, for it dies without saying why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        few = f"{os.strerror(errno.EMFILE)} for {hard} at most"
        raise OSError(errno.EMFILE, few, sys.executable)
    if soft < LEAST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_FILES, hard))


def _trouble(error: str) -> str | None:
    """What the system lacks, by an error's words, and what to do; or None."""
    again = "run it again"
    for words, remedy in REMEDIES.items():
        if words in error:
            told = "" if again in error else f"; {remedy}, then {again}"
            return shown(error, 500) + told
    return None


def _end_as_asked() -> float:
    """Take other signals to end, and the end of one's sweep, as Ctrl-C. Returns the
    seconds to wait for a run's last process, which may still be ending."""

    def end(number: int, _frame) -> None:
        raise KeyboardInterrupt(number)

    def again(lost) -> None:
        """A signal's exception was dropped, as Python does while it clears up."""
        if lost.exc_type is not KeyboardInterrupt:
            return sys.__unraisablehook__(lost)
        number = (lost.exc_value.args or (signal.SIGINT,))[0]
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = again
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, end)
    if os.environ.pop(OF_A_SWEEP, None) is None:
        return 0.0

    def end_with_the_sweep() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    at_the_callers_end(end_with_the_sweep)
    return PATIENCE


# One run


def execute_run(run: Run, fresh: bool = False, patience: float = 0.0) -> None:
    """Run what is not finished, then write the report. Raises one of FAILURES. Another
    process that has the run is waited for so many seconds."""
    os.environ.update(KERNEL_ENVIRONMENT)
    folder = OUTPUTS / run.name
    with run_files.one_writer(folder, "run", patience):
        for kept in run_files.empty(folder) if fresh else ():
            print(f"{kept} stays: the kit did not make it")
        _execute_notebooks(run)
        if report_due(run):
            from lib.show import report  # here, because it brings matplotlib

            report.write(folder)
            _write_state(run, _state(run) | {"reported": _executed(run)})
    print(f"finished: the results are in {folder}")
    if _has_analysis(run):
        print(f"to read: {folder / REPORT}")


def unfinished(run: Run) -> list[Path]:
    """The notebooks still to run: from the first one that is missing or changed, or has
    left other records since, by hand."""
    recorded, folder = _state(run)["notebooks"], OUTPUTS / run.name
    for index, (notebook, key) in enumerate(notebook_keys(run).items()):
        done, now = recorded.get(notebook.stem, {}), chain.left(folder, notebook.stem)
        same = done.get("key") == key and done.get("left", now) == now
        if not (same and (folder / notebook.name).exists()):
            return list(run.notebooks[index:])
    return []


def report_due(run: Run) -> bool:
    """Whether a finished run lacks a report of its notebooks as they are: of the same
    bytes, for times do not tell where a clock was set back or a file copied."""
    there = (OUTPUTS / run.name / REPORT).exists()
    is_it = there and _state(run).get("reported") == _executed(run)
    return _has_analysis(run) and not is_it


def notebook_keys(run: Run, library: str = "") -> dict[Path, str]:
    """A key a notebook, of all that it depends on: code, values, lib, data, those
    before. `library` is the hash of lib/ at an earlier time."""
    keys: dict[Path, str] = {}
    library = library or sha256(ROOT / "lib")
    previous = settings_hash({"lib": library, "data": _data(run)})
    for notebook in run.notebooks:
        inputs = [_code(notebook), _values(notebook, run), previous]
        keys[notebook] = previous = settings_hash({"inputs": inputs})
    return keys


def _data(run: Run) -> dict:
    """The content of annotations, clips, stills and of a checkpoint on this machine."""
    known = {name: own.default for name, own in declarations(run.notebooks).items()}
    known |= run.values
    folders = (resolve(known.get(name, "")) for name in ("data_dir", "general_dir"))
    model = resolve(known.get("model", ""))
    checkpoint = sha256(model) if model != ROOT and model.is_dir() else None
    return {**chain.benchmark(*folders), "model": checkpoint}


def _code(notebook: Path) -> list[str]:
    code = [c["source"] for c in cells_of(notebook) if c["cell_type"] == "code"]
    return [source for source in code if source.strip()]


def _values(notebook: Path, run: Run) -> dict:
    names = declared(notebook)
    return {name: run.values[name] for name in names if name in run.values}


def _executed(run: Run) -> dict[str, str]:
    """The SHA-256 of the executed notebooks of a run."""
    folder = OUTPUTS / run.name
    return {notebook.stem: sha256(folder / notebook.name) for notebook in run.notebooks}


def _has_analysis(run: Run) -> bool:
    return any(notebook.stem == ANALYSIS for notebook in run.notebooks)


def _state(run: Run) -> dict:
    nothing = {"parameters": {}, "notebooks": {}}
    return read_json(OUTPUTS / run.name / "pipeline.json", nothing)


def _write_state(run: Run, state: dict) -> None:
    """With its own hash, which `chain.verify` compares."""
    write_json(OUTPUTS / run.name / "pipeline.json", records.sealed(state))


def _execute_notebooks(run: Run) -> None:
    run_dir(run.name)
    todo, state = unfinished(run), _state(run)
    finished = [notebook.stem for notebook in run.notebooks if notebook not in todo]
    for name in finished:
        print(f"{name}: unchanged, not run again")
    # What is about to be overwritten no longer counts as finished.
    kept = {name: state["notebooks"][name] for name in finished}
    state |= {"parameters": run.values, "notebooks": kept}
    _write_state(run, state | {"waiting": [notebook.stem for notebook in todo]})
    cells = sum(_cell_count(run, notebook) for notebook in todo)
    with tqdm(total=cells, unit="cell", smoothing=0, disable=not todo) as bar:
        if sys.stderr.isatty():
            threading.Thread(target=_tick, args=[bar], daemon=True).start()
        for notebook in todo:
            _execute_and_record(notebook, run, bar)


def _tick(bar: tqdm) -> None:
    """Redraw the bar each second, so that the clock moves while a cell trains."""
    while not bar.disable:  # as it is when closed
        time.sleep(1)
        bar.refresh()


def _cell_count(run: Run, notebook: Path) -> int:
    """Cells that will be executed; papermill adds one that holds the values."""
    return len(_code(notebook)) + bool(_values(notebook, run))


def _execute_and_record(notebook: Path, run: Run, bar: tqdm) -> None:
    """Execute a notebook and, only after that, note that it is finished. Its key is of
    the code that ran and of the data that are there now: 01_data may have made them."""
    library = sha256(ROOT / "lib")
    start, end = time.monotonic(), bar.n + _cell_count(run, notebook)
    bar.set_description(notebook.stem)
    _execute(notebook, run, bar)
    bar.update(end - bar.n)
    state = _state(run)
    state["notebooks"][notebook.stem] = {
        "key": notebook_keys(run, library)[notebook],
        "sha256": sha256(OUTPUTS / run.name / notebook.name),
        "left": chain.left(OUTPUTS / run.name, notebook.stem),
        "seconds": round(time.monotonic() - start, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    state["waiting"].remove(notebook.stem)
    _write_state(run, state)


def _execute(notebook: Path, run: Run, bar: tqdm) -> None:
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
        told = _told(partial, current, error.traceback or [said, FULL])
        raise NotebookFailed(told) from error
    except RuntimeError as error:  # the kernel died, or did not start at all
        raise NotebookFailed(_told(partial, current, [f"{error}. {FULL}"])) from error
    os.replace(partial, final)


def _told(partial: Path, current: dict, traceback: list[str]) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    tail = [shown(line, 500) for line in text.splitlines()[-TRACEBACK_LINES:]]
    source = current["cell"].source if "cell" in current else "(none yet)"
    cell = [f"    {line}" for line in source.splitlines()[:TRACEBACK_LINES]]
    return "\n".join([f"\nfailed: {partial}", "in the cell", *cell, "with", *tail])


# A sweep


def execute_sweep(runs: list[Run], options: argparse.Namespace) -> int:
    """Run every run as a process, `--jobs` at a time; 1 if any of them failed. They end
    with this process, however it ends. Busy: another process runs the sweep."""
    folder, failed = run_dir(Path(options.params).stem), False
    pool = ThreadPoolExecutor(options.jobs)
    with (
        run_files.one_writer(folder, "run"),
        tqdm(total=len(runs), unit="run") as bar,
        _ending(pool) as alive,
    ):
        given = options, folder, alive
        rows = {run.name: _table_row(run, anew=options.fresh) for run in runs}
        started = {pool.submit(_child, run, *given): run for run in runs}
        for future in as_completed(started):
            run, code = started[future], future.result()
            failed |= code != 0
            log = f"failed, see {folder / run.name}.log"
            bar.write(f"{run.name}: {log if code else 'finished'}")
            rows[run.name] = _table_row(run, code != 0)
            write_table([*rows.values()], folder)
            bar.update()
    print(f"one row a run: {folder / 'runs.md'}")
    return 1 if failed else 0


@contextmanager
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


def _child(run: Run, options: argparse.Namespace, folder: Path, alive: int) -> int:
    if not options.fresh and not unfinished(run) and not report_due(run):
        return 0
    threads = str(max(1, cores() // options.jobs))
    with open(folder / f"{run.name}.log", "w", encoding="utf-8") as log:
        return subprocess.call(
            _command(options, run),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads, OF_A_SWEEP: "1"},
            stdin=alive,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the sweep's, which then ends them
        )


def write_table(rows: list[dict], folder: Path) -> None:
    """runs.json, .csv and .md of a sweep; runs that did not finish have no numbers."""
    records.write_tables(folder / "runs.json", rows)
    cells = [_table_cells(dict(row)) for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    lines = [[row.get(name, "") for name in columns] for row in cells]
    write_text(folder / "runs.md", grid([columns, *lines]))


def _table_row(run: Run, failed: bool = False, anew: bool = False) -> dict:
    folder, todo = OUTPUTS / run.name, unfinished(run)
    status = "waiting" if todo or anew else "finished"
    if failed:
        status = f"failed at {todo[0].stem}" if todo else "failed"
    row = {"run": run.name, **{key: run.values[key] for key in run.varied}}
    row["status"] = status
    if status == "finished":
        notebooks = _state(run)["notebooks"].values()
        row["seconds"] = round(sum(notebook["seconds"] for notebook in notebooks), 1)
        if (folder / "metrics.json").exists():
            chain.verify(folder)
            row["metrics"] = read_json(folder / "metrics.json")
    return row


def _table_cells(row: dict) -> dict:
    """A row of runs.json with the accuracy of each model and set, seconds last."""
    metrics, seconds = row.pop("metrics", {}), row.pop("seconds", "")
    for model, sets in metrics.items():
        for name, numbers in sets.items():
            column = f"{model} {called({'set': name, **numbers})}"
            row[column] = f"{numbers['accuracy']:.3f}"
    return row | {"seconds": seconds}
