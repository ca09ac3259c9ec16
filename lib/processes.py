"""Work spread over the processors, in processes that are spawned and not forked: a fork
of a process with threads, as torch starts them, may stand still for ever. And the end
of processes whose caller is gone."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def mapped(work: Callable, jobs: Sequence, few: int) -> Iterator:
    """What `work` gives for each job, in their order; done in this process where there
    are at most `few`, before others would have begun. Closed early, as Ctrl-C does
    inside contextlib.closing, it does not wait for what has not begun."""
    if len(jobs) <= few:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=8)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def at_the_callers_end(act: Callable[[], None]) -> None:
    """Call `act`, in a thread, once stdin ends: the other end of that pipe is held by
    the caller alone, so it closes however the caller ends."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        act()

    threading.Thread(target=watch, daemon=True).start()
