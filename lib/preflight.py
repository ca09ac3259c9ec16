"""What must hold before a run starts, looked at without starting or writing anything.

    python -m lib.pipeline params/paper.yaml --dry-run

Each function here looks at one thing and returns a Check: whether it holds, and a line
that says what was found or what to do. Nothing is downloaded and no clip is decoded
(`python -m lib.data check FOLDER --decode` does that); a check that passes
can therefore still be followed by a damaged clip.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from lib import evaluate, inventory, memory, models, paths, reward_stages, rl, workload

GB = 10**9
SPLIT_ADVICE = (
    "split the weights over more num_processes with an accelerate_config (ZeRO-3 or "
    "FSDP2), offload, or train an adapter (lora_rank)"
)


class Check(NamedTuple):
    """`passed`, and a line with what was found."""

    name: str
    passed: bool
    text: str


def settings(values: Mapping) -> Check:
    """Whether frames, rollouts, answers and memory settings are ones the code takes."""
    try:
        memory.sampling_of(values)
        tokens, batch = values["max_new_tokens"], values["eval_batch_size"]
        evaluate.EvalSettings("think", tokens, batch, values["on_bad_video"])
        names = ("prompts_per_step", "group_size", "kl_beta", "temperature", "top_k")
        names += ("top_p", "max_completion_tokens", "lora_rank", "lora_alpha", "seed")
        reward_stages.read_rewards(values["reward"])
        for method in rl.read(values["rl"]):
            method.settings(
                batches=values["grpo_steps"],
                save_every=values["grpo_save_every"],
                lr=values["grpo_lr"],
                **{name: values[name] for name in names},
            )
        if values["quantize"] and not values["lora_rank"]:
            raise ValueError("quantize needs an adapter: give a lora_rank above 0")
        work = memory.work_of(values, "cuda")
        memory.packs(work, work.prompts)
    except (ValueError, OSError) as error:
        return Check("settings", False, str(error))
    return Check("settings", True, "frames, batches, packs and lengths fit each other")


def steps(
    values: Mapping, sets: Mapping[str, workload.Asked], methods: Sequence[str]
) -> Check:
    """Whether the steps of the methods make the epochs that were asked for."""
    each, told, faults = workload.items_per_step(values), [], []
    for method in methods:
        name = workload.TAUGHT_BY[method]
        items = sets[name].count if name in sets else 0
        count, once = values[f"{method}_steps"], each[method]
        passes = f"{count * once / items:.2f}" if items else "?"
        told.append(f"{method.upper()} {count} x {once} = {passes} epochs of {items}")
        epochs = values[f"{method}_epochs"]
        try:
            if items:
                workload.check_epochs(f"{method}_steps", count, once, items, epochs)
        except ValueError as error:
            faults.append(str(error))
    told = told or ["nothing is trained"]
    return Check("steps", not faults, "; ".join(faults or told))


def processes(values: Mapping, card: str | None) -> Check:
    """Whether there is a device for every process; `card`: the params file names one.

    Without a GPU a process takes a core.
    """
    count, gpus = values["num_processes"], torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0))
    here = f"{gpus} GPU(s)" if gpus else f"no GPU, {cores} core(s)"
    wanted = f"{count} process(es), {values['prompts_per_step']} prompts a step"
    if card and not gpus:
        return Check("devices", False, f"{wanted}, for {card}; here: {here}")
    return Check("devices", count <= (gpus or cores), f"{wanted}; here: {here}")


def packages(values: Mapping) -> Check:
    """Whether what the accelerate file asks for is installed."""
    file = values["accelerate_config"]
    if not file:
        return Check("packages", True, "no accelerate_config: nothing beyond the kit's")
    path = paths.resolve(file)
    if not path.is_file():
        return Check("packages", False, f"accelerate_config: {path} is missing")
    needs = "deepspeed" in str(yaml.safe_load(path.read_text(encoding="utf-8"))).lower()
    if needs and importlib.util.find_spec("deepspeed") is None:
        text = f"{file} needs DeepSpeed: pip install -r requirements.txt"
        return Check("packages", False, text)
    return Check("packages", True, f"{file}" + (", DeepSpeed there" if needs else ""))


def model(values: Mapping) -> Check:
    """Whether the checkpoint is on this machine, whole, with its processor."""
    name = values["model"]
    try:
        folder = workload.local_model(name)
        if folder is None:
            return Check("model", False, f"{name} is not here: hf download {name}")
        models.check_files(folder, (*models.MODEL_FILES, *models.PROCESSOR_FILES))
    except (FileNotFoundError, ValueError) as error:
        return Check("model", False, str(error))
    return Check("model", True, f"{folder}")


def data(values: Mapping) -> Check:
    """Whether all questions, clips and stills are there; else what gets them."""
    files = workload.annotation_files(values)
    lacking = [path for path in files.values() if not path.is_file()]
    if lacking:
        what = f"{len(lacking)} of {len(files)} annotation files missing"
        return made_by(values, f"{what}, such as {lacking[0]}")
    folder, general = paths.resolve(values["data_dir"]), files["general"].parent
    used = {path.stem: name for name, path in files.items()}
    found = [r for r in inventory.check(folder, general) if r["split"] in used]
    faulty = [r["split"] for r in found if r["usable"] < r["records"]]
    if faulty:
        text = f"records that cannot be used in {', '.join(faulty)}"
        return Check("data", False, f"{text}: python -m lib.data check {folder}")
    tolerated = values["on_bad_video"] == "keep_as_wrong"
    absent = {used[r["split"]]: len(r["unreadable"]) for r in found}
    fatal = {n: c for n, c in absent.items() if c and not (tolerated and is_level(n))}
    told = ", ".join(f"{count} of {name}" for name, count in absent.items() if count)
    if fatal:
        return made_by(values, f"clips or stills missing: {told}")
    records = sum(r["records"] for r in found)
    text = f"{records:,} records, their clips and stills there (not decoded)"
    if told:
        text += f"; missing, to be counted as wrong: {told}"
    return Check("data", True, text)


def is_level(name: str) -> bool:
    """Whether a file is asked at evaluation and not trained on."""
    return name in workload.LEVELS


def made_by(values: Mapping, what: str) -> Check:
    """Data is missing: the run's own data_command may get it, unless it would stop."""
    command = values["data_command"]
    if not command:
        return Check("data", False, f"{what}; no data_command makes it: put it there")
    book = paths.resolve(values["data_dir"]) / "downloads.json"
    accepted = "--accept-licences" in command or book.exists()
    if command.startswith("lib.data ") and not accepted:
        text = f"{what}; read the licences, then: python -m {command} --accept-licences"
        return Check("data", False, text)
    return Check("data", True, f"{what}; 01_data makes it: python -m {command}")


def named_card(file: Path) -> str | None:
    """What a params file says it is for: "24 GB card" in a comment."""
    found = re.search(r"^#.*?(\d+ GB card)", file.read_text("utf-8"), re.MULTILINE)
    return found and found[1]


def room(file: Path) -> tuple[float, str]:
    """(GiB of a device, where the number is from); without a card, the machine's."""
    if torch.cuda.is_available() or named_card(file):
        return memory.card_gib(file, None)
    return host_gib(), "this machine's memory"


def host_gib() -> float:
    """GiB of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def fits(
    stages: Sequence[memory.Stage], work: memory.Work, room_gib: float, origin: str
) -> Check:
    """Whether the largest stage fits, with what a device needs besides tensors."""
    if not stages:
        return Check("memory", True, "nothing is trained or answered")
    peak = max(stages, key=lambda stage: stage.total)
    needed = (peak.total + memory.allowance(peak.total)) / 2**30
    told = f"{peak.name} needs {needed:.1f} GiB of {room_gib:.1f} ({origin})"
    if needed > room_gib and work.lora_rank:
        told += f": {memory.ADVICE}"
    elif needed > room_gib:
        told += f": {SPLIT_ADVICE}"
    return Check("memory", needed <= room_gib, told)


def host(needed: int) -> Check:
    """Whether what is offloaded fits this machine's memory."""
    there, gib = host_gib(), needed / 2**30
    told = f"offloading needs {gib:.0f} GiB of {there:.0f}"
    return Check("host memory", gib <= there, told)


def disk(wanted: Mapping[Path, int]) -> list[Check]:
    """Whether each disk has room for what will be written below the folders."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in wanted.items():
        there = existing(folder)
        first, before = disks.get(there.stat().st_dev, (there, 0))
        disks[there.stat().st_dev] = first, before + size
    checks = []
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        told = f"{size / GB:,.1f} GB to write, {free / GB:,.1f} GB free ({folder})"
        checks.append(Check("disk", size <= free, told))
    return checks


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())
