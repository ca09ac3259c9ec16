"""Processes of one launch, forked from one that has imported what they need."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0  # seconds; a signal ends a process at once


def start(
    work: Callable[[], None],
    logs: Sequence[Path],
    told: Mapping[str, str] | None = None,
) -> list[int]:
    """Fork a process for each log file, which do the work together; their ids. `told`
    is what a launcher would add to their environment."""
    sys.stdout.flush()
    count, port = str(len(logs)), free_port()
    group = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    group |= {"MASTER_ADDR": "127.0.0.1", **(told or {})}
    children = []
    for rank, log in enumerate(logs):
        child = os.fork()
        if child == 0:
            if len(logs) > 1:
                os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank))
            _do(work, log)
        children.append(child)
    return children


def _do(work: Callable[[], None], log: Path) -> None:
    """The work, with what it says in a file; never returns."""
    code = 1
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_until(
    condition: Callable[[], object], what="nothing", seconds=PATIENCE, pause=0.01
):
    """The first true value of `condition`; AssertionError after `seconds` without."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"after {seconds} s: {what}"
        time.sleep(pause)
    return found


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def running(children: Sequence[int]) -> list[int]:
    """Those that have not ended; the ended ones can still be waited for."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return [child for child in children if os.waitid(os.P_PID, child, how) is None]


def end(children: Sequence[int], how: signal.Signals = signal.SIGKILL) -> bool:
    """Send all of them a signal; whether any was still running. One that has not ended
    after PATIENCE is killed, and TimeoutError raised."""
    found = running(children)
    for child in found:
        os.kill(child, how)
    with suppress(AssertionError):
        wait_until(lambda: not running(children))
    left = running(children)
    for child in left:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    if left:
        raise TimeoutError(f"{how.name} did not end a process in {PATIENCE} s")
    return bool(found)


def wait(children: Sequence[int], seconds: float) -> str:
    """Wait for all; the first failure, or the end of the time, ends the others. Returns
    what went wrong."""
    deadline, left, said = time.monotonic() + seconds, list(children), []
    while left and not said:
        for child in list(left):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                left.remove(child)
            if status:
                rank, code = children.index(child), os.waitstatus_to_exitcode(status)
                said.append(f"process {rank} ended with {code}")
        if left and time.monotonic() > deadline:
            said.append(f"no end after {seconds} s")
        time.sleep(0.01)
    if left:
        time.sleep(1)  # the others may have something to say as well
        end(left)
    return "; ".join(said)
