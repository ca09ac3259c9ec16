"""What test_launch.py calls in other processes; light, so that they start quickly."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from lib import records
from lib.data import frame_store

calls = []
LONG = 600  # seconds; nothing that works waits for so long


def process() -> int:
    return int(os.environ["RANK"])


def is_running(pid: int) -> bool:
    """False for a process that is gone or a zombie nobody has waited for."""
    with suppress(FileNotFoundError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def tell_pids(folder: Path, *pids: int) -> None:
    unfinished = folder / f"unfinished_{process()}"
    unfinished.write_text(" ".join(map(str, pids)))
    unfinished.rename(folder / f"pids_{process()}")


def facts(folder: Path) -> dict:
    """What a process is told; each leaves its own in a file, the first returns it."""
    told = {
        "world": os.environ["WORLD_SIZE"],
        "threads": os.environ["OMP_NUM_THREADS"],
        "cwd": os.getcwd(),
        "python": sys.executable,
        "seconds between states of a bar": os.environ.get("TQDM_MININTERVAL"),
        "frames": (str(frame_store.kept_frames()[0]), frame_store.kept_frames()[1]),
    }
    where = f"node {os.environ['SLURM_NODEID']}, local rank {os.environ['LOCAL_RANK']}"
    (folder / f"facts_{process()}").write_text(where)
    return told


def fill(folder: Path) -> None:
    """Neither a record nor the error that tells so finds room."""
    fill_by_its_result(folder)
    if process() == 0:
        records.write_text(folder / "record", "x" * 1000)


def fill_by_its_result(folder: Path) -> str:
    if process() == 0:
        limit = resource.RLIMIT_FSIZE
        resource.setrlimit(limit, (100, resource.getrlimit(limit)[1]))
    return "x" * 1000


def talk(folder: Path) -> str:
    """Lines, a bar that is drawn hundreds of times, and words of the others."""
    print(f"process {process()} talks")
    for step in range(401):
        print(f"\rtrained {step}/400 [now]", end="", file=sys.stderr)
        time.sleep(0.005)
        if step == 300:
            print("a warning")
    print("\nlast words, ä and ✓")
    return "result"


def fail(folder: Path) -> None:
    """Process 1 fails, the other waits for it."""
    if process() == 1:
        raise ValueError("clip 7 is broken")
    time.sleep(LONG)


def vanish(folder: Path) -> None:
    """Process 1 is killed, as by a system without memory."""
    if process() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LONG)


def end(folder: Path) -> None:
    """Process 1 is told to end, as by a job's or a memory's guard."""
    if process() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONG)


def lose_the_launcher(folder: Path) -> None:
    if process() == 1:
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(LONG)


def lose_the_other(folder: Path) -> None:
    """Process 1 is killed while both work together, so process 0 fails, too."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    if process() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def leave(folder: Path) -> None:
    """Process 1 ends without a word, as a library may that finds no device."""
    if process() == 1:
        os._exit(7)
    time.sleep(LONG)


def wait(folder: Path) -> None:
    """Never end; process 1 does not even listen, and both have a child."""
    if process() == 1:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"])
    tell_pids(folder, os.getppid(), os.getpid(), child.pid)
    time.sleep(LONG)


def count(folder: Path) -> tuple[int, int]:
    """How often this process was called before, and its pid; both leave their pid."""
    tell_pids(folder, os.getpid())
    calls.append(folder)
    return len(calls) - 1, os.getpid()


def listening(folder: Path) -> list[str]:
    """Addresses at which this process and its launcher listen, as hex of the kernel."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    sockets = set()
    for pid in (os.getpid(), os.getppid()):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(file))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [r[1] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in sockets]


def die_answering(*arguments) -> None:
    """`evaluate.with_model`, killed behind a batch once both processes have one."""
    from lib import records
    from lib.evaluate import evaluate

    append = records.append_jsonl

    def append_and_die(path, rows):
        append(path, rows)
        stem, *_ = path.name.partition(".partial")
        both = [path.with_name(f"{stem}.partial{n}.jsonl") for n in ("", "-1")]
        if all(file.exists() for file in both):
            os.kill(os.getpid(), signal.SIGKILL)

    records.append_jsonl = append_and_die
    evaluate.with_model(*arguments)
