"""End runs at random moments, start them again, and compare what they leave behind.

    python -m tests.bench.kills --kills 7 --out outputs/reference/bench_kills.json

SFT, GRPO and the evaluation of the mini base, each in one process and in two (gloo on a
CPU). An undisturbed run is made twice, to see that its records are the same. Then, as
often as asked and in each of the ways of `WAYS`, a fresh run is ended at a moment drawn
evenly from the seconds that the undisturbed one took, and started again; a moment that
comes after the run's end, or after its last write, does not count, and another one is
drawn. A run is "equal" if adapters, logs, rollouts and predictions end byte for byte as
those of the undisturbed run, wall-clock seconds aside. Training is also killed, some
times more, as soon as an unfinished checkpoint is seen. The record keeps every moment,
where the run stood, what was half written then, and what a run said of its full disk.

Runs are written to a small disk in memory, which root alone can mount: the disk is full
once a file of the bench takes all that is left. Every run is a fork of this process,
which has imported what a run needs and computed nothing; so most kills hit the work and
not the start of Python.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from lib import paths, records
from lib.data import questions
from lib.data.video import Sampling
from lib.doors import Door
from lib.evaluate import evaluate
from lib.mini import benchmark
from lib.model import models
from lib.train import checkpoints, grpo, sft
from lib.train.reward_stages import read_rewards
from tests import forked, trainings
from tests.trainings import without_seconds

BASE = paths.ROOT / "lib" / "mini" / "base"
SAMPLING = Sampling(max_frames=4, fps=2.0, height=56, width=112)
SECONDS = 300  # of a run that hangs
LATE = 100  # moments after a run's end, from which on something is wrong
DISK = 256  # MiB of the disk that runs are written to
# How a run is ended: a signal to all its processes, or by its disk.
WAYS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "full disk": None}
SFT = replace(trainings.SFT, steps=10, lr=2e-3, seed=0, max_tokens=1024)
GRPO = replace(trainings.GRPO, steps=6, lr=1e-3, kl_beta=0.1, max_completion_tokens=24)
EVALUATION = evaluate.EvalSettings("think", max_new_tokens=24, batch_size=6)


class Stage(NamedTuple):
    """`work(data, run)` does the whole stage, or what is left of it."""

    name: str
    processes: int
    work: Callable[[Path, Path], None]


def train_sft(data: Path, run: Path) -> None:
    file = data / "annotations" / "training_with_cot.jsonl"
    items = questions.read_demonstrations(file, data)
    sft.train_sft(sft.Task(BASE, items, SFT, SAMPLING, run))


def train_grpo(data: Path, run: Path) -> None:
    items = questions.read_training(data / "annotations" / "training.jsonl", data)
    rewards = read_rewards("accuracy + format")
    grpo.train(grpo.Task(BASE, items, rewards, GRPO, SAMPLING, run))


def answer(data: Path, run: Path) -> None:
    file = data / "annotations" / "validation_L1.jsonl"
    items = questions.read_validation(file, data, "L1")
    model, processor = models.load_model(BASE), models.load_processor(BASE)
    path = run / "predictions_base_L1.jsonl"
    evaluate.evaluate(model, processor, items, EVALUATION, SAMPLING, path)


STAGES = [
    Stage(name, processes, work)
    for name, work in (("SFT", train_sft), ("GRPO", train_grpo), ("evaluation", answer))
    for processes in (1, 2)
]


def main(arguments: list[str] | None = None) -> int:
    """Write the tally; 1 if a run that was killed ended otherwise."""
    parser = Door("python -m tests.bench.kills", __doc__)
    parser.add_argument("--kills", type=int, default=7, help="of a stage, each way")
    parser.add_argument("--aimed", type=int, default=3, help="more, in a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    names = sorted({stage.name for stage in STAGES})
    parser.add_argument("--stage", default="", choices=names, help="that one alone")
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    options = parser.parse_args(arguments)
    if torch.cuda.is_available():
        sys.exit("forks cannot share a GPU: set CUDA_VISIBLE_DEVICES to nothing")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch, small_disk(Path(scratch)) as disk:
        sizes = benchmark.Sizes(training=24, level=36, general=4)
        data = benchmark.write(Path(scratch) / "data", sizes)
        stages = [stage for stage in STAGES if options.stage in ("", stage.name)]
        total = sum(len(planned(stage, options)) for stage in stages)
        with tqdm(total=total, unit="kill") as bar:
            rows = [tally(stage, data, disk, options, bar) for stage in stages]
    total = {key: sum(row[key] for row in rows) for key in ("kills", "equal")}
    found = {"seed": options.seed, **total, "stages": rows}
    records.write_json(options.out, found | {"environment": records.environment()})
    for row in rows:
        print(
            f"{row['stage']}, {row['processes']} process(es): {row['equal']} of "
            f"{row['kills']} runs ended as the undisturbed one; something was half "
            f"written in {row['half_written']}"
        )
    return 0 if total["equal"] == total["kills"] else 1


@contextmanager
def small_disk(scratch: Path) -> Iterator[Path]:
    """A folder on a disk of its own, which can be filled."""
    disk = scratch / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(disk)]
    subprocess.run(command, check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def planned(stage: Stage, options) -> list[tuple[str, bool]]:
    """How each run shall be ended, and whether in a checkpoint; an evaluation has none.
    The ways take turns, so that all meet the same load of the machine."""
    aimed = 0 if stage.work is answer else options.aimed
    return [(way, False) for way in WAYS] * options.kills + [("SIGKILL", True)] * aimed


def tally(stage: Stage, data: Path, disk: Path, options, bar: tqdm) -> dict:
    """One row: the undisturbed run's seconds, and every kill."""
    undisturbed, again = disk / "undisturbed", disk / "again"
    seconds = finish(stage, data, undisturbed)
    finish(stage, data, again)
    expected = left_behind(undisturbed)
    if left_behind(again) != expected:
        sys.exit(f"{stage.name}: two undisturbed runs differ, nothing can be compared")
    draw = random.Random(f"{options.seed}/{stage.name}/{stage.processes}")
    wanted = planned(stage, options)
    kills, late = [], 0
    while len(kills) < len(wanted):
        way, in_checkpoint = wanted[len(kills)]
        moment = None if in_checkpoint else round(draw.uniform(0, seconds), 2)
        run = disk / "killed"
        found = {"way": way, **kill(stage, data, run, moment, draw, way)}
        found["equal"] = left_behind(run) == expected
        shutil.rmtree(run)
        if not found["was_running"]:  # it had ended before: no kill, draw again
            late += 1
            if late > LATE:
                sys.exit(f"{stage.name}: {late} moments came after the run's end")
            continue
        kills.append(found)
        bar.update()
    for folder in (undisturbed, again):
        shutil.rmtree(folder)
    return {
        "stage": stage.name,
        "processes": stage.processes,
        "seconds_undisturbed": round(seconds, 2),
        "kills": len(kills),
        "too_late": late,
        "equal": sum(kill["equal"] for kill in kills),
        "half_written": sum(bool(kill["half_written"]) for kill in kills),
        "moments": kills,
    }


def kill(stage, data: Path, run: Path, moment: float | None, draw, way: str) -> dict:
    """End a fresh run after so many seconds, or in a checkpoint, and let it finish."""
    children = start(stage, data, run)
    if moment is None:
        wanted = draw.randint(1, 3)  # which checkpoint, so that older ones lie there
        limit = time.monotonic() + SECONDS
        while forked.running(children) and time.monotonic() < limit:
            if len(checkpoints_of(run)) >= wanted and unfinished(run):
                break
            time.sleep(0.0005)
    else:
        time.sleep(moment)
    full = WAYS[way] is None
    was_running = (
        fill(run.parent, children) if full else forked.end(children, WAYS[way])
    )
    found = {"after": moment, "was_running": was_running, **state(run)}
    if full:
        found["said"] = last_words(run) if was_running else ""
    finish(stage, data, run)
    return found


def fill(disk: Path, children: list[int]) -> bool:
    """Fill the disk until a process fails, then make room; whether one did."""
    rest = disk / "rest"
    with open(rest, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    failed = forked.wait(children, SECONDS)
    rest.unlink()
    return bool(failed)


def last_words(run: Path) -> str:
    """The last line of the process that failed, without the folder of this run."""
    logs = [log_of(run, rank) for rank in (0, 1) if log_of(run, rank).exists()]
    texts = [log.read_text(errors="replace").strip() for log in logs]
    last = (text.rpartition("\n")[2].replace(f"{run}/", "") for text in texts)
    return next((words for words in last if "Error" in words), "")


def start(stage: Stage, data: Path, run: Path) -> list[int]:
    """Fork the processes of a run; their ids."""
    run.mkdir(parents=True, exist_ok=True)

    def work():
        checkpoints.PartialState(cpu=True)
        stage.work(data, run)

    return forked.start(work, [log_of(run, rank) for rank in range(stage.processes)])


def log_of(run: Path, rank: int) -> Path:
    """What a process says; on a disk that is never full."""
    return run.parent.with_name(f"{run.name}.{rank}.log")


def finish(stage: Stage, data: Path, run: Path) -> float:
    """Run to the end; the seconds it took. Exits with the logs of a run that failed."""
    started = time.monotonic()
    if failed := forked.wait(start(stage, data, run), SECONDS):
        logs = [log_of(run, rank) for rank in range(stage.processes)]
        said = [log.read_text(errors="replace")[-3000:] for log in logs]
        sys.exit(f"{stage.name}: {failed}:\n" + "\n".join(said))
    return time.monotonic() - started


def checkpoints_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, complete or not, in the order of steps."""
    return sorted(run.glob("checkpoints/*/checkpoint-*"), key=checkpoints.step_of)


def unfinished(run: Path) -> list[Path]:
    """Those that were not marked as complete."""
    marked = checkpoints.MARKER
    return [path for path in checkpoints_of(run) if not (path / marked).exists()]


def state(run: Path) -> dict:
    """Where a run stood when it was killed."""
    half = unfinished(run)
    hidden = [path for path in run.rglob(".*") if path.suffix != ".lock"]
    logs = [*run.glob("train_log_*.jsonl"), *run.glob("predictions_*.partial*.jsonl")]
    return {
        "rows": sum(log.read_bytes().count(b"\n") for log in logs),
        "checkpoints": len(checkpoints_of(run)) - len(half),
        "half_written": [path.name for path in [*half, *hidden]],
    }


def left_behind(run: Path) -> dict[str, str]:
    """A hash of every adapter file, log, rollout and prediction, seconds left out."""
    files = [*run.glob("*.jsonl"), *run.glob("adapters/*/*")]
    return {
        file.relative_to(run).as_posix(): (
            records.settings_hash({"rows": without_seconds(records.read_jsonl(file))})
            if file.suffix == ".jsonl"
            else records.sha256(file)
        )
        for file in sorted(files)
    }


if __name__ == "__main__":
    sys.exit(main())
