"""Curves that grow in a notebook's cell while a training runs, with the time left.

    with live.curves(run, "grpo", total=settings.steps):
        launch.call(run, num_processes, accelerate_config, grpo.train, task)

A thread reads run/train_log_<label>.jsonl, to which training appends a row a step, and
updates one figure in the cell that started it. Without a front end nobody looks, so a
run of papermill draws it once, at the end. A training that had finished before adds no
rows, and nothing is drawn.

Example: an earlier run did 20 of 100 steps. The log stands at step 20 when training
goes on, and at step 50 a minute later: 30 steps a minute, so about 1:40 is left.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from IPython import get_ipython
from IPython.display import display

from lib.analysis import plots
from lib.show import training_plots

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
    training, stop = _Training(Path(run), label, total), threading.Event()

    def look() -> None:
        while not stop.wait(INTERVAL):
            training.look()

    # Which cell a display belongs to is in the context; a thread would begin without.
    thread = threading.Thread(target=copy_context().run, args=(look,), daemon=True)
    if front_end():
        training.show(f"{plots.LABELS[label]}: curves from step 1 on")  # above the bars
        thread.start()
    try:
        yield
    except BaseException as error:
        _end(stop, thread)
        training.stopped(error)
        raise
    _end(stop, thread)
    training.finished()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread.is_alive():
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

    def look(self) -> None:
        """Draw the log with the time left, if it has changed."""
        version = _version(self.log)
        if version == self.drawn:
            return
        self.drawn, rows = version, read_rows(self.log)
        self.seen.append((time.monotonic(), rows[-1]["step"] if rows else 0))
        left = time_left(self.seen, self.total)
        self.draw("" if left is None else f", about {clock(left)} left")

    def finished(self) -> None:
        """Draw the whole log with the time it took, if any of it is new."""
        if _version(self.log) != self.before:
            self.draw(f"; this cell took {clock(time.monotonic() - self.began)}")
        elif self.handle is not None:
            self.show(f"{plots.LABELS[self.label]} had been trained before")

    def stopped(self, error: BaseException) -> None:
        """Draw what there is; after an interrupt, also say what the cell would do."""
        if isinstance(error, KeyboardInterrupt):
            from lib.train import (
                checkpoints,  # here: it loads torch, as training already has
            )

            folder = self.run / "checkpoints" / self.label
            complete = folder.glob(f"checkpoint-*/{checkpoints.MARKER}")
            steps = [checkpoints.step_of(mark.parent) for mark in complete]
            again = "Run this cell again to start over: there is no checkpoint yet."
            if steps:
                last = f"the last checkpoint, step {max(steps)}."
                again = f"Run this cell again to go on from {last}"
            self.draw(f": interrupted.\n{again}")
            print(again)  # for who cannot see the picture
        elif _version(self.log) != self.before:
            self.draw(f": stopped by {type(error).__name__}")

    def draw(self, state: str) -> None:
        """Show the curves under "GRPO, step 12 of 100" and `state`, in one display."""
        rows = read_rows(self.log)
        step = rows[-1]["step"] if rows else 0
        words = f"{plots.LABELS[self.label]}, step {step} of {self.total}{state}"
        figure = None
        if rows:
            figure = training_plots.training_so_far(rows, self.label, self.total)
            figure.suptitle(words, fontsize=9)
        self.show(words, figure)

    def show(self, words: str, figure=None) -> None:
        """Put words, or a figure with them as its text, into the one display."""
        if get_ipython() is None:  # a script: there is no cell to draw in
            return
        bundle, metadata = {"text/plain": words}, {}
        if figure is not None:
            bundle["image/png"] = plots.png(figure)
            metadata = {"image/png": {"alt": words.replace("\n", " ")}}
        if self.handle is None:
            shown = {"display_id": True, "raw": True}
            self.handle = display(bundle, metadata=metadata, **shown)
        else:
            self.handle.update(bundle, metadata=metadata, raw=True)


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


def _version(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is written to; None where there is none."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
