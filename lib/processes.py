"""Work spread over the processors, in processes that are spawned and not forked: a fork
of a process with threads, as torch starts them, may stand still for ever. And the end
of processes whose caller is gone."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process


def mapped(work: Callable, jobs: Sequence, few: int) -> Iterator:
    """What `work` gives for each job, in their order; done in this process where there
    are at most `few`, before others would have begun. Closed early, as Ctrl-C does
    inside contextlib.closing, it does not wait for what has not begun."""
    if len(jobs) <= few:
        yield from map(work, jobs)
        return
    how = {"mp_context": get_context("spawn"), "initializer": _end_with_the_caller}
    with ProcessPoolExecutor(os.cpu_count(), **how) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=8)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_the_caller() -> None:
    """Else a process whose caller was killed waits for work, and holds memory, forever:
    all of them hold both ends of the pipe that the work comes through."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def at_the_callers_end(act: Callable[[], None]) -> None:
    """Call `act`, in a thread, once stdin ends: the other end of that pipe is held by
    the caller alone, so it closes however the caller ends."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        act()

    threading.Thread(target=watch, daemon=True).start()
