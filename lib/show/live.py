"""Curves that grow in a notebook's cell while a training runs, with the time left.

    with live.curves(run, "grpo", total=settings.steps):
        launch.call(run, num_processes, accelerate_config, grpo.train, task)

A thread reads run/train_log_<label>.jsonl, to which training appends a row a step, and
updates one figure in the cell that started it. Without a front end nobody looks, so a
run of papermill draws it once, at the end."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

from IPython.core.pylabtools import print_figure
from IPython.display import display

from lib.methods import LABELS
from lib.show import training_plots

# A notebook server gives its kernels the first, VS Code the second; those that
# papermill, nbval and nbconvert start have neither, and no widget lives there.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID")
INTERVAL = 3.0  # seconds between two looks at the log


def front_end() -> bool:
    """Whether somebody may be looking."""
    return any(mark in os.environ for mark in FRONT_ENDS)


@contextmanager
def curves(run: Path, label: str, total: int) -> Iterator[None]:
    """Show run/train_log_<label>.jsonl as it grows to `total` steps, below this cell.
    An interrupt leaves the last state and says from where the cell would go on; like
    every other error it is raised again. No thread outlives the block."""
    log, cell, stop = run / f"train_log_{label}.jsonl", Cell(label, total), Event()
    before, began, state = read_rows(log), time.monotonic(), ""
    # Which cell a display belongs to is in the context; a thread would begin without.
    given = (_follow, log, before, cell, stop)
    thread = Thread(target=copy_context().run, args=given, daemon=True)
    if front_end():
        cell.show(f"{LABELS[label]}: curves from step 1 on")  # above the bars
        thread.start()
    try:
        yield
        took = timedelta(seconds=round(time.monotonic() - began))
        state = f"; this cell took {took}"
    except KeyboardInterrupt:
        again = go_on_from(run / "checkpoints" / label)
        print(again)  # for who cannot see the picture
        state = f": interrupted.\n{again}"
        raise
    except BaseException as error:
        state = f": stopped by {type(error).__name__}"
        raise
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        rows = read_rows(log)
        if rows and rows != before:
            cell.draw(rows, state)
        elif cell.handle is not None:
            cell.show(f"{LABELS[label]} made no new step{state}")


def _follow(log: Path, rows: list[dict], cell: "Cell", stop: Event) -> None:
    """Draw a log with the time left whenever it is no longer `rows`, until `stop`."""
    seen: list[tuple[float, int]] = []  # seconds, steps done
    while not stop.wait(INTERVAL):
        before, rows = rows, read_rows(log)
        if rows and rows != before:
            seen.append((time.monotonic(), rows[-1]["step"]))
            cell.draw(rows, time_left(seen, cell.total))


class Cell:
    """One display below a cell for one training of `total` steps."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.handle = label, total, None

    def draw(self, rows: Sequence[Mapping], state: str) -> None:
        """The curves under "GRPO, step 12 of 100" and `state`."""
        words = f"{LABELS[self.label]}, step {rows[-1]['step']} of {self.total}{state}"
        figure = training_plots.curves(rows, self.label, self.total)
        figure.suptitle(words)
        self.show(words, print_figure(figure, dpi=100))

    def show(self, words: str, png: bytes = b"") -> None:
        """Words, or a picture with them as its text, in place of what stood there."""
        bundle = {"text/plain": words} | ({"image/png": png} if png else {})
        given = {"raw": True, "metadata": {"image/png": {"alt": words}} if png else {}}
        if self.handle is None:
            self.handle = display(bundle, display_id=True, **given)
        else:
            self.handle.update(bundle, **given)


def go_on_from(folder: Path) -> str:
    """What an interrupted cell does next, by the checkpoints in a folder."""
    from lib.train import checkpoints  # here: it loads torch, as training already has

    complete = folder.glob(f"checkpoint-*/{checkpoints.MARKER}")
    steps = [checkpoints.step_of(mark.parent) for mark in complete]
    if not steps:
        return "Run this cell again to start over: there is no checkpoint yet."
    return f"Run this cell again to go on from the last checkpoint, step {max(steps)}."


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a log that another process may be writing; [] without one. A
    last line without its end is still being written, or was torn by a kill."""
    data = path.read_bytes() if path.exists() else b""
    whole, _, _ = data.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def time_left(seen: Sequence[tuple[float, int]], total: int) -> str:
    """Time until `total` steps in words, from the (seconds, steps done) seen so far;
    none until two states were seen: an earlier run says nothing of this one's speed."""
    (start, first), (now, last) = seen[0], seen[-1]
    if last <= first:
        return ""
    left = (total - last) * (now - start) / (last - first)
    return f", about {timedelta(seconds=round(left))} left"
