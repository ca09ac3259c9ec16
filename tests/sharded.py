"""What test_sharded.py trains: all weights, on two processes, split in several ways.

    python -m tests.sharded first ARGUMENTS      every run, and runs that stop at step 2
    python -m tests.sharded second ARGUMENTS     those that stopped go on to their end

ARGUMENTS is a pickle of (checkpoint, questions, demonstrations, folder). The processes
of a pair are forked here, because an interpreter with torch and TRL takes seconds to
start; their environment is that which `accelerate launch` makes of the config file."""

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lib import paths, records
from lib.model import scoring, shards
from lib.train import checkpoints, grpo, sft
from tests import forked, two_processes
from tests.trainings import SAMPLING

# isort: split
import deepspeed  # noqa: F401  once, before the processes are forked
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import TrainerCallback

WORLD = 2
SECONDS = 240  # of a pair that hangs; an idle machine needs 15
KINDS = ("ddp", "zero3", "fsdp2")
SFT = replace(two_processes.SFT, lora_rank=0, lr=1e-3)
# pack_tokens is the least that the longest prompt leaves, so that groups with a video
# take more forward passes than those without.
DRAWN = replace(two_processes.DRAWN, lora_rank=0, lr=1e-3, steps=4)
FIXED = replace(DRAWN, steps=3, prompts_per_step=4, loss_type="dapo")
ADAPTER = replace(FIXED, lora_rank=4, lr=1e-2, steps=2)
# Without KL, whose gradient is rounding where no group says anything.
ALL_WEIGHTS = {"lora_rank": 0, "lr": 1e-3, "kl_beta": 0.0, "steps": 4}
OTHERS = {"care": ALL_WEIGHTS, "ppo": {}}
POSITIONS = 5  # that meet the output layer at once; completions are longer


class StopAtStep2(TrainerCallback):
    """Ends the process behind its first checkpoint, as a kill would."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def stopped(trainer) -> None:
    """Train to step 2, and no further."""
    trainer.add_callback(StopAtStep2())
    try:
        checkpoints.train(trainer)
    except KeyboardInterrupt:
        return
    raise AssertionError("it did not stop")


def telling(train, folder: Path):
    """`checkpoints.train`, which also writes down what this process then holds."""

    def wrapped(trainer):
        train(trainer)
        weights = list(trainer.model.parameters())
        own = sum(shards.own_part(weight).numel() for weight in weights)
        whole = sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)
        records.write_json(folder / f"held_{rank()}.json", [own, whole])

    return wrapped


def rank() -> int:
    return int(os.environ["RANK"])


def train_others(checkpoint, questions, folder: Path, end: str = "") -> None:
    for name, changes in OTHERS.items():
        given = (name, checkpoint, questions, folder / f"{name}{end}")
        two_processes.train_other(*given, **changes)


def first(kind, checkpoint, questions, demonstrations, folder: Path) -> None:
    agreed, pieces = shards.agreed, []
    shards.agreed = lambda own, device: pieces.append(own) or agreed(own, device)
    for name, settings in (("fixed", FIXED), ("adapter", ADAPTER)):
        two_processes.train_fixed(checkpoint, questions, settings, folder / name)
    train_others(checkpoint, questions, folder)
    shards.agreed = agreed
    records.write_json(folder / f"pieces_{rank()}.json", pieces)
    train = checkpoints.train
    checkpoints.train = telling(train, folder)
    two_processes.train_drawn(checkpoint, questions, DRAWN, folder / "drawn")
    checkpoints.train = train
    two_processes.train_sft(checkpoint, demonstrations, SFT, folder / "sft")
    if kind == "zero3_offload":
        return
    told = (checkpoint, questions, DRAWN, folder / "drawn_again")
    # A run that is watched must end as the one that is not.
    task = two_processes.task_of(*told, watched=questions[4:])
    start(task.run / "checkpoints/grpo/grpo_settings.json", task.facts())
    stopped(grpo.VideoGRPOTrainer(task))
    for name, changes in OTHERS.items():
        told = (name, checkpoint, questions, folder / f"{name}_again")
        task = two_processes.other_task(*told, **changes)
        start(task.run / f"checkpoints/{name}/{name}_settings.json", task.facts())
        stopped(two_processes.OTHERS[name][0](task))
    shown = (checkpoint, demonstrations, SFT, SAMPLING, folder / "sft_again")
    lessons = sft.Task(*shown)
    start(lessons.run / "checkpoints/sft" / sft.RECORD, lessons.facts())
    stopped(sft.ResponseTrainer(lessons))


def start(record: Path, settings: dict) -> None:
    if rank() == 0:
        checkpoints.write_settings(record, settings)


def second(kind, checkpoint, questions, demonstrations, folder: Path) -> None:
    drawn = (checkpoint, questions, DRAWN, folder / "drawn_again")
    two_processes.train_drawn(*drawn, questions[4:])
    train_others(checkpoint, questions, folder, "_again")
    shown = (checkpoint, demonstrations, SFT)
    two_processes.train_sft(*shown, folder / "sft_again")
    arguments = sft.trainer_arguments(SFT, folder / "plain")
    try:
        whole = torch.nn.Linear(4, 4)
        shards.CheckShards().on_train_begin(arguments, None, None, model=whole)
    except RuntimeError as error:
        records.write_json(folder / f"refused_{rank()}.json", str(error))
    try:
        two_processes.train_sft(*shown, folder / "damaged")
    except ValueError as error:
        records.write_json(folder / f"damaged_{rank()}.json", str(error))


def environment(kind: str) -> dict[str, str]:
    """What `accelerate launch --config_file params/accelerate/<kind>.yaml` sets."""
    if kind == "ddp":
        return {}
    config = paths.ROOT / "params" / "accelerate" / f"{kind}.yaml"
    given = ["--config_file", str(config), "--num_processes", str(WORLD), "-m", "x"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(given))
    if options.use_deepspeed:
        options.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(options)[1]
    return prepare_multi_gpu_env(options)


def pair(phase, kind: str, arguments, folder: Path) -> str:
    """Run a phase on two processes; "" or what became of them."""
    folder.mkdir(exist_ok=True)

    def work():
        scoring.LOGITS_AT_ONCE = POSITIONS * 466
        phase(kind, *arguments, folder)

    logs = [folder / f"output_{own}.txt" for own in range(WORLD)]
    return forked.wait(forked.start(work, logs, environment(kind)), SECONDS)


def main(name: str, file: Path) -> None:
    torch.set_num_threads(1)
    *arguments, folder = pickle.loads(file.read_bytes())
    phase = {"first": first, "second": second}[name]
    kinds = (*KINDS, "zero3_offload") if name == "first" else KINDS
    said = {kind: pair(phase, kind, arguments, folder / kind) for kind in kinds}
    records.write_json(folder / f"{name}.json", said)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
