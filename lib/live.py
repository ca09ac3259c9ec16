"""Curves that grow in a notebook's cell while a training runs, with the time left.

    with live.curves(run, "grpo", total=settings.steps):
        launch.call(run, num_processes, accelerate_config, grpo.train, task)

A thread reads run/train_log_<label>.jsonl, to which training appends a row a step
(LogRecord of lib/checkpoints.py) in this process or in others, and updates one figure
in the cell that started it: reward and length for RL, loss and token accuracy for SFT.
Without a front end nobody looks, so a run of papermill draws it once, at the end. A
training that had finished before adds no rows, and nothing is drawn.

Example: an earlier run did 20 of 100 steps. The log stands at step 20 when training
goes on, and at step 50 a minute later: 30 steps a minute, so about 1:40 is left.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from IPython import get_ipython
from IPython.display import display

from lib import plots, training_plots

FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID")
INTERVAL = 3.0  # seconds between two looks at the log


def front_end() -> bool:
    """Whether somebody may be looking: a notebook server or VS Code started the kernel.

    The first gives its kernels JPY_SESSION_NAME, the second VSCODE_PID; those that
    papermill, nbval and nbconvert start have neither, and no widget lives there.
    """
    return any(mark in os.environ for mark in FRONT_ENDS)


@contextmanager
def curves(run: str | Path, label: str, total: int) -> Iterator[None]:
    """Show run/train_log_<label>.jsonl as it grows to `total` steps, below this cell.

    An interrupt leaves the last state and says from where the cell would go on; like
    every other error it is raised again. No thread outlives the block.
    """
    training = _Training(Path(run), label, total)
    if front_end():
        training.take_place()
    try:
        with _repeated(training.look):
            yield
    except BaseException as error:
        training.stopped(error)
        raise
    training.finished()


@contextmanager
def _repeated(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every INTERVAL seconds beside the block, if somebody may see it."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(INTERVAL):
            look()

    # Which cell a display belongs to is in the context; a thread would begin without.
    thread = threading.Thread(target=copy_context().run, args=(repeat,), daemon=True)
    if not front_end():
        yield
        return
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Training:
    """One training: its log, what was seen of it so far, and the display of that."""

    def __init__(self, run: Path, label: str, total: int):
        self.run, self.label, self.total = run, label, total
        self.log = run / f"train_log_{label}.jsonl"
        self.began, self.before = time.monotonic(), _version(self.log)
        self.drawn = self.before
        self.seen: list[tuple[float, int]] = []  # seconds, steps done
        self.handle = None

    def take_place(self) -> None:
        """Stand above the progress bars, which are printed from now on."""
        self.show({"text/plain": f"{plots.LABELS[self.label]}: curves from step 1 on"})

    def look(self) -> None:
        """Draw the log with the time left, if it has changed."""
        version = _version(self.log)
        if version == self.drawn:
            return
        self.drawn, rows = version, read_rows(self.log)
        self.seen.append((time.monotonic(), _step(rows)))
        left = time_left(self.seen, self.total)
        self.draw(rows, "" if left is None else f", about {clock(left)} left")

    def finished(self) -> None:
        """Draw the whole log with the time it took, if any of it is new."""
        if _version(self.log) != self.before:
            took = clock(time.monotonic() - self.began)
            self.draw(read_rows(self.log), f"; this cell took {took}")
        elif self.handle is not None:
            words = f"{plots.LABELS[self.label]} had been trained before"
            self.show({"text/plain": words})

    def stopped(self, error: BaseException) -> None:
        """Draw what there is; after an interrupt, also say what the cell would do."""
        if isinstance(error, KeyboardInterrupt):
            again = self._again()
            self.draw(read_rows(self.log), f": interrupted.\n{again}")
            print(again)  # for who cannot see the picture
        elif _version(self.log) != self.before:
            self.draw(read_rows(self.log), f": stopped by {type(error).__name__}")

    def _again(self) -> str:
        from lib import checkpoints  # here: it loads torch, as training already has

        folder = self.run / "checkpoints" / self.label
        complete = folder.glob(f"checkpoint-*/{checkpoints.MARKER}")
        step = max((checkpoints.step_of(mark.parent) for mark in complete), default=0)
        if not step:
            return "Run this cell again to start over: there is no checkpoint yet."
        return f"Run this cell again to go on from the last checkpoint, step {step}."

    def draw(self, rows: Sequence[Mapping], state: str) -> None:
        """Show the curves under "GRPO, step 12 of 100" and `state`, in one display."""
        name = plots.LABELS[self.label]
        words = f"{name}, step {_step(rows)} of {self.total}{state}"
        bundle: dict[str, str | bytes] = {"text/plain": words}
        if rows:
            figure = training_plots.training_so_far(rows, self.label, self.total)
            figure.suptitle(words, fontsize=9)
            bundle["image/png"] = plots.png(figure)
        self.show(bundle)

    def show(self, bundle: dict[str, str | bytes]) -> None:
        """Put the bundle into the one display; its words are the picture's alt text."""
        if get_ipython() is None:  # a script: there is no cell to draw in
            return
        alt = {"image/png": {"alt": str(bundle["text/plain"]).replace("\n", " ")}}
        shown = {"raw": True, "metadata": alt if "image/png" in bundle else {}}
        if self.handle is None:
            self.handle = display(bundle, display_id=True, **shown)
        else:
            self.handle.update(bundle, **shown)


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a log that another process may be writing; [] without one.

    A last line without its end is still being written, or was torn by a kill.
    """
    data = path.read_bytes() if path.exists() else b""
    whole, _, _ = data.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def time_left(seen: Sequence[tuple[float, int]], total: int) -> float | None:
    """Seconds until `total` steps, from the (seconds, steps done) seen so far.

    None until two states were seen: what an earlier run did says nothing about the
    speed of this one.
    """
    (start, first), (now, last) = seen[0], seen[-1]
    if last <= first:
        return None
    return (total - last) * (now - start) / (last - first)


def clock(seconds: float) -> str:
    """0:07, 3:42 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _step(rows: Sequence[Mapping]) -> int:
    return rows[-1]["step"] if rows else 0


def _version(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is written to; None where there is none."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
