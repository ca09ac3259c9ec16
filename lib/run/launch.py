"""Call functions of the kit in several processes, from cells of a notebook.

Training and evaluation on N GPUs need N processes. A kernel that has touched CUDA
cannot fork them (accelerate's notebook_launcher), so `call` starts `accelerate launch`
as a child and shows in the cell what the first process prints:

    adapter = launch.call(run, 2, "", sft.train_sft, task)

gives what `sft.train_sft(task)` gives on two processes. Function, arguments and result
travel by pickle in a folder below `run`, which every node of a job can read. A `Team`
makes one call after another in the same processes, so that what they have imported and
seen (lib/evaluate/features.py) serves the next call too.

No process outlives its caller. The standard input of each is a pipe whose other end
only the caller holds, and a process that sees it close kills its process group. That
holds for a killed kernel and a killed launcher alike, and on other nodes, where srun
forwards it; a parent-death signal would not do: torch starts the processes in sessions
of their own, below a launcher that would outlive the kernel.

On one machine everything listens on loopback alone. On several nodes the environment
variable LAUNCH_COMMAND holds the command that starts `accelerate launch` on each of
them; params/accelerate/slurm.sh is a job that sets it."""

import codecs
import gc
import importlib.util
import itertools
import os
import pickle
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lib import paths, records, run_files
from lib.data import frame_store
from lib.processes import at_the_callers_end

COMMAND = "LAUNCH_COMMAND"
ONE_MACHINE = ("--num_machines", "1", "--main_process_port", "0")  # 0: a free one
START = "from lib.run import launch; launch.start()"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Without a config of ours accelerate would read the one in the user's home. Without GPU
# this type starts CPU processes; its CPU type would start only one.
PLAIN = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "mixed_precision": "no",
}
# What launchers tell their processes; from a kernel it would mislead the new ones.
RANKS = re.compile(
    r"((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)"
    r"|(ACCELERATE|FSDP|TORCHELASTIC|PET|PMI|OMPI|MV2)_.*"
)
CALL, RESULT = "call_{}.pickle", "result.pickle"
NEXT = 0.05  # seconds between two looks for the next call
DONE = "\x04"  # said by the first process behind all that it says in a call
GRACE = ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0))  # seconds, then SIGKILL
REDRAWN = 1.0  # seconds between two states of a progress bar
TAIL_BYTES = 16000  # of what the launcher and the processes but the first one said
# How torch's launcher tells of processes that did not end by themselves.
KILLED = re.compile(r"rank +: (\d+) .*\n +exitcode +: -\d+ .*\((SIG\w+)\)")
LAUNCHER_FAILED = re.compile(r"^[WE]\d{4} .*/elastic/", re.MULTILINE)
CAUSE = {"SIGKILL": ": the system may have run out of memory"}
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class ChildFailed(RuntimeError):
    """A process of a call failed; the text ends with its own traceback."""


def call(
    run: str | Path,
    num_processes: int,
    accelerate_config: str,
    function: Callable,
    *arguments: Any,
) -> Any:
    """`function(*arguments)` by a `Team` that ends with it."""
    team = Team(run, num_processes, accelerate_config)
    result = team.call(function, *arguments)
    team.end()
    return result


class Team:
    """`num_processes` processes, which start with the first call. `accelerate_config`
    is a file such as params/accelerate/*.yaml, or "" for plain data parallelism; one
    process without it is this one. A kernel has one team at a time: where another one
    starts, as when a cell is run again, the former ends."""

    at_work: "Team | None" = None

    def __init__(self, run: str | Path, num_processes: int, accelerate_config: str):
        if num_processes < 1:
            raise ValueError(f"num_processes = {num_processes}: it must be 1 or more")
        self.run, self.count, self.config = Path(run), num_processes, accelerate_config
        self.process, self.calls, self.held = None, 0, ExitStack()

    def call(self, function: Callable, *arguments: Any) -> Any:
        """`function(*arguments)` in each; returns what the first one's gives. Where it
        fails or is interrupted all end, and the next call starts others. Raises
        ChildFailed with the traceback of the process that failed first,
        FileNotFoundError for a missing config, ModuleNotFoundError where it needs
        DeepSpeed and there is none, ValueError for something that another process could
        not load, and Busy while another kernel's team began with this function."""
        if self.count == 1 and not self.config:
            return function(*arguments)
        try:
            self._make(function, arguments)
            return pickle.loads((self.folder / RESULT).read_bytes())
        except BaseException:
            self._close()
            raise

    def end(self) -> None:
        """Let the processes end by themselves. Raises ChildFailed as `call` does."""
        if self.process:
            try:
                self._make(None, ())
            finally:
                self._close()

    def _make(self, function: Callable | None, arguments: tuple) -> None:
        if function:
            self.name = function.__name__
        if self.process is None:
            if Team.at_work:
                Team.at_work._close()
            Team.at_work = self
            self.folder = self.held.enter_context(_folder(self.run, self.name))
        _write_call(self.folder, self.calls, function, arguments)
        _prepare_devices(self.count)
        if self.process is None:
            command = _command(self.count, self.config, self.folder)
            started = _started(command, _environment(self.count))
            self.process = self.held.enter_context(started)
            self.held.callback(_end, started)
        self.calls += 1
        done, said = _follow(self.process)
        code = 0 if done else self.process.wait()
        if code or (function and not done):
            raise _failure(self.name, self.folder, code, said)

    def _close(self) -> None:
        self.process, self.calls, Team.at_work = None, 0, None
        self.held.close()


@contextmanager
def _folder(run: Path, name: str) -> Iterator[Path]:
    folder = run.resolve() / f"launch_{name}"
    with run_files.one_writer(folder, "used"):
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed kernel
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Pickler(pickle.Pickler):
    """Refuses what another process would look for in vain."""

    def reducer_override(self, obj):
        if getattr(obj, "__module__", None) == "__main__":
            raise pickle.PicklingError(f"{obj!r} is defined in the notebook")
        return NotImplemented


def _write_call(folder: Path, number: int, function, arguments: tuple) -> None:
    half = folder / "half.pickle"
    try:
        with records.written(half), open(half, "wb") as file:
            _Pickler(file).dump((function, arguments, frame_store.kept_frames()))
        half.rename(folder / CALL.format(number))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{function.__name__} cannot run in other processes: {error}; define "
            "functions, such as rewards, at the top level of a module of lib/"
        ) from error


def _command(num_processes: int, accelerate_config: str, folder: Path) -> list[str]:
    config = folder / "plain.json"
    if accelerate_config:
        config = paths.require(accelerate_config, "see params/accelerate")
        if missing := missing_package(accelerate_config):
            raise ModuleNotFoundError(missing)
    else:
        records.write_json(config, PLAIN)
    launcher = shlex.split(os.environ.get(COMMAND, ""))
    return [
        *(launcher or [sys.executable, "-c", START, *ONE_MACHINE]),
        *("--num_processes", str(num_processes), "--config_file", str(config)),
        *("-m", "lib.run.launch", str(folder)),
    ]


def missing_package(accelerate_config: str) -> str:
    """What that file needs and is not installed, and how to install it; or ""."""
    if not accelerate_config or importlib.util.find_spec("deepspeed") is not None:
        return ""
    if "deepspeed_config" not in paths.resolve(accelerate_config).read_text("utf-8"):
        return ""
    how = "pip install -r params/accelerate/requirements.txt"
    return f"{accelerate_config} needs DeepSpeed: {how}"


def start() -> None:
    """`accelerate launch` of one machine, whose rendezvous listens on loopback alone.
    torch's own listens on every address, to whoever speaks, for pickles too."""
    from accelerate.commands import launch
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

    whole = static_tcp_rendezvous.TCPStore

    def store(host: str, port: int, world: int, serves: bool, *rest, **options):
        if serves:
            listening = socket.create_server(("127.0.0.1", port))
            options["master_listen_fd"] = listening.detach()
        return whole(host, port, world, serves, *rest, **options)

    static_tcp_rendezvous.TCPStore = store
    launch.main()


def _environment(num_processes: int) -> dict[str, str]:
    """This process's environment, without its ranks and with a share of its cores."""
    kept = {key: own for key, own in os.environ.items() if not RANKS.fullmatch(key)}
    search = [str(paths.ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(search)
    if COMMAND not in kept:  # else the job script knows
        threads = int(kept.get("OMP_NUM_THREADS") or paths.cores())
        kept["OMP_NUM_THREADS"] = str(max(1, threads // num_processes))
        # Nobody asks who speaks to these; gloo would take the host name's address.
        kept |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), LOOPBACK)
    return kept


def _prepare_devices(num_processes: int) -> None:
    """See that there is a GPU for each, and free what this process no longer uses."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    here = torch.cuda.device_count()
    if COMMAND not in os.environ and num_processes > here:
        raise ValueError(
            f"num_processes = {num_processes}, but this machine has {here} GPUs: "
            "lower it, or use several machines (params/accelerate/slurm.sh)"
        )
    _free()


def _free() -> None:
    """Give memory of the GPU back that nobody uses."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    pipe = subprocess.PIPE
    pipes = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    # Of a session of its own: an interrupt of the kernel's group is not theirs.
    own = {"cwd": paths.ROOT, "env": environment, "start_new_session": True}
    return subprocess.Popen(command, **pipes, **own)


def _follow(process: subprocess.Popen) -> tuple[bool, str]:
    """Show what the processes print until the first is done or all have ended: whether
    it is, and the end of what the launcher and silent processes said."""
    tail, shown = bytearray(), _Output()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, shown.write)
        selector.register(process.stderr, selectors.EVENT_READ, tail.extend)
        while selector.get_map() and not shown.done:
            ready = selector.select(REDRAWN)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                key.data(data)
                if not data:
                    selector.unregister(key.fileobj)
            del tail[:-TAIL_BYTES]
            shown.refresh()
            if process.poll() is not None:
                process.stdin.close()  # ends processes that outlived their launcher
                if not ready:
                    break
    if shown.line:
        shown.write(b"\n")
    return shown.done, tail.decode(errors="replace")


def _end(process: subprocess.Popen) -> None:
    """End the launcher and every process below it, gently at first."""
    try:
        for number, seconds in GRACE:
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
    finally:  # also when it is interrupted once more
        process.stdin.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _failure(name: str, folder: Path, code: int, said: str) -> ChildFailed:
    lines, first = [], KILLED.findall(said.rpartition("Root Cause")[2])
    errors = [records.read_json(file) for file in folder.glob("error_*.json")]
    if errors:
        error = min(errors, key=lambda error: error["time"])
        lines = [f"in process {error['process']}:", error["traceback"].rstrip()]
    ended = [
        (f"process {process}", signal_name)
        for process, signal_name in KILLED.findall(said)
        # The launcher sends it to others when one has failed.
        if signal_name != "SIGTERM" or (process, signal_name) in first
    ]
    ended += [("the launcher", signal.Signals(-code).name)] if code < 0 else []
    # Last, where it is seen: the others' errors come of it.
    lines += [f"{who} was ended by {by}{CAUSE.get(by, '')}" for who, by in ended]
    told = LAUNCHER_FAILED.split(said)[0] or said
    lines = lines or [f"exit code {code}; the last lines were", told]
    return ChildFailed(f"{name} failed: " + "\n".join(lines))


class _Output:
    """What the first process prints: whole lines as they come, and a progress bar in
    one display, once in REDRAWN seconds, as a notebook would keep every piece of it."""

    def __init__(self):
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.line, self.due, self.display, self.done = "", 0.0, None, False

    def write(self, data: bytes) -> None:
        said, ended, _ = ESCAPES.sub("", self.decode(data)).partition(DONE)
        self.done, text = self.done or bool(ended), self.line + said
        *lines, rest = text.split("\n")
        self.line = "\r".join(rest.split("\r")[-2:])  # a bar of hours must not grow
        for line in lines:
            self.draw(line.rstrip(), ended=True)

    def refresh(self) -> None:
        """Draw the progress bar, if there is one and it is time to."""
        if "\r" in self.line and time.monotonic() >= self.due:
            self.draw(self.line)
            self.due = time.monotonic() + REDRAWN

    def draw(self, line: str, ended: bool = False) -> None:
        """A line's last state, a bar's in place; outside notebooks its end alone."""
        from IPython import display, get_ipython  # here: the new processes need none

        states = [state.rstrip() for state in line.split("\r")]
        text = next(filter(None, reversed(states)), "")
        if len(states) == 1 or not hasattr(get_ipython(), "kernel"):
            if ended:
                print(text, flush=True)
        elif self.display is None:
            drawn = {"text/plain": text}
            self.display = display.display(drawn, raw=True, display_id=True)
        else:
            self.display.update({"text/plain": text}, raw=True)
        if ended:
            self.display, self.due = None, 0.0


def main(folder: Path) -> None:
    """What every process does: make one call after another until there is no more."""
    process = int(os.environ.get("RANK", "0"))
    (folder / CALL.format(0)).stat()  # first: whoever tries `--help` loses no shell
    # This process and its children; a launcher may outlive the caller.
    at_the_callers_end(lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
    # The first one talks to the notebook; what others say is kept with the launcher's.
    launchers = os.dup(2)
    os.dup2(*((2, 1) if process else (1, 2)))
    for number in itertools.count():
        while not (file := folder / CALL.format(number)).exists():
            time.sleep(NEXT)
        if not _made(file, process, launchers):
            break
        _free()
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _made(file: Path, process: int, launchers: int) -> bool:
    """Make the call and leave its result or error, which goes to the `launchers` stderr
    too: a disk may be full, or another node's not seen; False where it is to end."""
    try:
        function, arguments, frames = pickle.loads(file.read_bytes())
        if function is None:
            return False
        frame_store.keep_frames(*frames)
        result = function(*arguments)
        if process == 0:
            with records.written(path := file.parent / RESULT):
                path.write_bytes(pickle.dumps(result))
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    except BaseException as error:
        steps = error.__traceback__.tb_next or error.__traceback__  # the function's own
        text = "".join(traceback.format_exception(type(error), error, steps))
        told = {"time": time.time(), "process": process, "traceback": text}
        os.write(launchers, text.encode())
        with suppress(OSError):
            records.write_json(file.parent / f"error_{process}.json", told)
        os._exit(1)  # at once: a regular exit may wait for the other processes
    if process == 0:
        print(end=DONE, flush=True)
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
