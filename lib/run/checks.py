"""What must hold before a run starts, looked at without starting or writing anything.

Each function looks at one thing and returns a Check. Nothing is downloaded and no clip
is decoded (`python -m lib.data check FOLDER --decode` does that), so a run whose checks
pass can still meet a damaged clip."""

import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.cuda import device_count

from lib import paths, records
from lib.data import parts, training_sets
from lib.evaluate import evaluate
from lib.methods import METHODS, SETS, in_order
from lib.mini import teacher
from lib.model import models
from lib.run import counts, launch, memory
from lib.run.cards import Card
from lib.run.counts import Asked
from lib.run.memory import GIB
from lib.train import checkpoints, grpo, reward_stages, rl, sft

# isort: split
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

GB = 10**9
READS = {  # the files that a notebook cannot do without
    "01_data": (*counts.LEARNED, *SETS),
    "02_sft": ("training", "demonstrations"),
    "03_grpo": ("training",),
    "04_eval": SETS,
}
LOWER = (
    "lower prompts_per_backward, then pack_tokens (update), prompts_per_step or "
    "group_size (rollout), max_tokens or sft_gradient_accumulation (SFT), "
    "eval_batch_size (evaluation); turn on quantize and gradient_checkpointing"
)
SPLIT = (
    "split the weights over more num_processes with an accelerate_config (ZeRO-3 or "
    "FSDP2), offload, or train an adapter (lora_rank)"
)


class Check(NamedTuple):
    """`passed`, and a line with what was found or what to do."""

    name: str
    passed: bool
    text: str


def refuse_settings(values: Mapping) -> None:
    """ValueError for settings that the notebooks would refuse later: their functions
    are called here, on nothing."""
    ones = {"own_draws", "bootstrap_samples", "num_processes"}
    ones |= {f"sft_{name}" for name in sft.AT_LEAST_1}
    checkpoints.at_least(SimpleNamespace(**values), ones)
    models.check_dtype(values["dtype"])
    counts.sampling_of(values)
    for name in ("pass_sets", "perception_sets", "coherence_sets"):
        parts.some_of({}, values[name], name)
    teacher.demonstrations(values["demonstrations_by"], [], [], {})
    false, unseen = values["demonstrations_false"], values["demonstrations_unseen"]
    teacher.with_shares([], {}, false, unseen, seed=0)
    training_sets.share_of([SimpleNamespace(id="")], values["training_share"], seed=0)
    training_sets.lessons(values["sft_on"], [], [])
    sft.SFTSettings(**fields_of(sft.SFTSettings, values, "sft_"))
    evaluate.EvalSettings("think", **fields_of(evaluate.EvalSettings, values, "eval_"))
    reward_stages.read_rewards(values["reward"])
    shared = fields_of(grpo.GRPOSettings, values, "grpo_")
    batches = shared.pop("steps")
    for method in rl.read(values["rl"]):
        method.settings(batches, **shared)
    if values["quantize"] and not values["lora_rank"]:
        raise ValueError("quantize needs an adapter: give a lora_rank above 0")
    work = counts.work_of(values, "cuda")
    memory.packs(work, work.prompts)


def fields_of(settings: type, values: Mapping, prefix: str) -> dict:
    """What parameters say of a class of settings: `prefix` and a field's name, or the
    name alone."""
    own = {name.removeprefix(prefix): value for name, value in values.items()}
    return {name: own[name] for name in settings.__match_args__ if name in own}


def check_steps(
    values: Mapping, sets: Mapping[str, Asked], methods: Iterable[str]
) -> Check:
    """Whether the steps of the methods make the epochs that were asked for."""
    each, told, faults = counts.items_per_step(values), [], []
    for method in methods:
        name = {"sft": "demonstrations", "grpo": "training"}[method]
        items = sets[name].count if name in sets else 0
        steps, once = values[f"{method}_steps"], each[method]
        passes = f"{steps * once / items:.2f}" if items else "?"
        told.append(f"{method.upper()} {steps} x {once} = {passes} epochs of {items}")
        try:
            if items:
                epochs = values[f"{method}_epochs"]
                counts.check_epochs(f"{method}_steps", steps, once, items, epochs)
        except ValueError as error:
            faults.append(str(error))
    text = "; ".join(faults or told) or "nothing is trained"
    return Check("steps", not faults, text)


def check_asked(name: str, values: Mapping, notebooks: Iterable[str]) -> Check:
    """Whether the models that the notebooks of a run go on from, ask and compare are
    trained before."""
    adapters = paths.outputs_dir() / name / "adapters"
    untrained = {"base", "base-direct", "base-begun"}
    there = untrained | {path.name for path in adapters.glob("*")}
    asked, faults = values["asked_models"].split(), []
    if "02_sft" in notebooks:
        there |= {*training_sets.lessons(values["sft_on"], [], [])}
    if "03_grpo" in notebooks:
        if (start := values["grpo_from"]) and start not in there:
            faults.append(f"grpo_from: {start} is not trained before; see sft_on")
        there |= {method.name for method in rl.read(values["rl"])}
    if "04_eval" in notebooks:
        if not asked or not {*asked} <= there:
            found = f"asked_models {values['asked_models']!r}: this run has "
            faults.append(found + f"{', '.join(in_order(there))} alone")
        if "base-begun" in asked and not values["holdout_share"]:
            faults.append("base-begun needs held-out questions: set holdout_share")
        looking = values["perception_conditions"] or values["attention_questions"]
        if looking and not {*values["perception_models"].split()} <= {*asked}:
            faults.append("perception_models must be among asked_models")
        if values["coherence_sets"] and not {*asked} & untrained:
            faults.append("coherence_sets needs base as reader: add it to asked_models")
        lacking = [model for model in METHODS if model not in asked]
        if "05_analysis" in notebooks and lacking:
            told = f"05_analysis compares {', '.join(lacking)} too: add to asked_models"
            faults.append(f"{told}, or leave 05_analysis out of `notebooks`")
    text = "; ".join(faults) or ", ".join(asked)
    return Check("asked", not faults, text)


def check_devices(values: Mapping, gib: float, card: Card | None = None) -> Check:
    """Whether every process has a device, of `gib` unless that is 0, that computes in
    the run's dtype. Without a GPU a process takes a core."""
    if card and not card.bfloat16 and values["dtype"] == "bfloat16":
        return Check("devices", False, "this card has no bfloat16: give another dtype")
    count = max(values["num_processes"], values["eval_processes"])
    gpus, cores = device_count(), paths.cores()
    wanted = f"{count} process(es), {values['prompts_per_step']} prompts a step"
    wanted += f", for a card of {gib:.0f} GB" if gib else ""
    here = f"{gpus} GPU(s)" if gpus else f"no GPU, {cores} core(s)"
    passed = count <= (gpus or cores) and not (gib and not gpus)
    return Check("devices", passed, f"{wanted}; here: {here}")


def check_packages(values: Mapping) -> Check:
    """Whether what the accelerate file asks for is installed."""
    file = values["accelerate_config"]
    missing = launch.missing_package(file)
    return Check("packages", not missing, missing or file or "nothing beyond the kit's")


def local_model(model: str) -> Path | None:
    """The checkpoint's folder on this machine; None for a hub id that is not here."""
    source = models.checkpoint_source(model)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def check_model(values: Mapping) -> Check:
    """Whether the checkpoint is on this machine, whole, with its processor, and what
    `check-model` said of it as it is now."""
    name, folder = values["model"], local_model(values["model"])
    if folder is None:
        return Check("model", False, f"{name} is not here: hf download {name}")
    try:
        models.check_files(folder, (*models.MODEL_FILES, *models.PROCESSOR_FILES))
    except (FileNotFoundError, ValueError) as error:
        return Check("model", False, str(error))
    file, todo = check_file(name), f"python -m lib.run check-model {name}"
    found = records.read_json(file, {})
    if found.get("identity") != identity(name, folder):
        return Check("model", True, f"{folder}; never checked: {todo}")
    bad = f"NOT sound by {file}; after a cure: {todo}"
    told = f"{folder}; {'checked' if found['passed'] else bad}"
    return Check("model", found["passed"], told)


def check_file(name: str | Path) -> Path:
    """Where `check-model` leaves what it found of a model."""
    words = re.sub(r"[^\w.-]+", "--", str(name)).strip("-")
    return paths.resolve(f"outputs/checked/{words}/check.json")


def identity(name: str, folder: Path) -> str:
    """Which weights were checked: a folder's hash, or the commit of a hub id."""
    if Path(models.checkpoint_source(name)).is_dir():
        return models.identity(folder)
    return f"{name}@{folder.name}"


def check_data(
    values: Mapping, sets: Mapping[str, Asked], notebooks: Iterable[str] = READS
) -> Check:
    """Whether all questions, clips and stills that the notebooks read are there; else
    what gets them."""
    needed = {name for stem in notebooks for name in READS.get(stem, ())}
    # 01_data reads of the training files the words alone.
    seen = {n for stem in notebooks if stem != "01_data" for n in READS.get(stem, ())}
    seen |= needed & {*SETS}
    files = parts.annotation_files(values)
    files = {name: files[name] for name in files if name in needed}
    if lacking := [name for name in files if not files[name].is_file()]:
        said = f"{', '.join(lacking)} missing, such as {files[lacking[0]]}"
        return made_by(values, said, lacking, seen)
    if faulty := ", ".join(name for name in files if sets[name].unusable):
        todo = f"python -m lib.data check {paths.resolve(values['data_dir'])}"
        return Check("data", False, f"records that cannot be used in {faulty}: {todo}")
    absent = [name for name in files if name in seen and sets[name].lacking]
    told = ", ".join(f"{sets[name].lacking} of {name}" for name in absent)
    tolerated = SETS if values["on_bad_video"] == "keep_as_wrong" else ()
    if fatal := [name for name in absent if name not in tolerated]:
        return made_by(values, f"clips or stills missing: {told}", fatal, seen)
    count = sum(sets[name].records for name in files)
    text = f"{count:,} records, their clips and stills there (not decoded)"
    text += f"; missing, to be counted as wrong: {told}" if told else ""
    return Check("data", True, text)


def made_by(values: Mapping, what: str, lacking: list[str], seen: set) -> Check:
    """Whether the run's own data_command, as it stands, brings what is missing."""
    command = values["data_command"]
    if not command:
        return Check("data", False, f"{what}; no data_command makes it: put it there")
    module, *words = shlex.split(command)
    if module == "lib.data":
        brought = counts.chosen(words)
        if {*brought} - {"general"}:  # the words of all others come too
            clips_too = (seen | {"general"}) - {*brought}
            brought = {*brought, *READS["01_data"]} - clips_too
        unmade = [name for name in lacking if name not in brought]
        if unmade:
            text = f"{what}; the notebooks read {', '.join(unmade)} too, which --what "
            return Check("data", False, f"{text}of data_command does not bring: add it")
        book = paths.resolve(words[1]) / "downloads.json"  # of `get FOLDER`
        if "--accept-licences" not in words and not book.exists():
            then = "read the licences and sizes (python -m lib.data get --help), then: "
            then += f"python -m {command} --accept-licences"
            return Check("data", False, f"{what}; {then}")
    return Check("data", True, f"{what}; 01_data makes it: python -m {command}")


def check_memory(
    stages: Mapping[str, float], work: memory.Work, room_gib: float, origin: str
) -> Check:
    """Whether the largest stage fits, with what a device needs besides tensors."""
    if not stages:
        return Check("memory", True, "nothing is trained or answered")
    peak = max(stages, key=stages.get)
    needed = with_allowance(stages[peak]) / GIB
    told = (
        f"{peak} needs {needed:.1f} GiB of {room_gib:.1f} ({origin}): "
        f"{stages[peak] / GIB:.1f} of tensors, and an allowance, not measured, of "
        f"{memory.CONTEXT_BYTES / GIB} GiB and {memory.FRAGMENTED_SHARE:.0%} for the "
        "context and fragmentation"
    )
    if needed > room_gib:
        told += f"; {LOWER if work.lora_rank else SPLIT}"
    return Check("memory", needed <= room_gib, told)


def with_allowance(tensors: float) -> float:
    """The bytes of a device that tensors take, with what it needs besides."""
    return memory.CONTEXT_BYTES + (1 + memory.FRAGMENTED_SHARE) * tensors


def check_host(needed: float) -> Check:
    """Whether what is offloaded fits this machine's memory."""
    there, gib = host_gib(), needed / GIB
    text = f"offloading needs {gib:.0f} GiB of {there:.0f}"
    return Check("host memory", gib <= there, text)


def check_disks(runs: Iterable[Mapping[tuple[Path, str], int]]) -> list[Check]:
    """Whether the disks have room for what each run needs, {(folder, what): bytes};
    what runs share is there once."""
    wanted, places, sizes = Counter(), {}, Counter()
    for needed in runs:
        wanted |= Counter(needed)  # the larger one of each
    for (folder, _), size in wanted.items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        sizes[places.setdefault(there.stat().st_dev, there)] += size
    checks = []
    for folder, size in sizes.items():
        free = shutil.disk_usage(folder).free
        text = f"{size / GB:,.1f} GB to write, {free / GB:,.1f} GB free ({folder})"
        checks.append(Check("disk", size <= free, text))
    return checks


def room(planned: float, given: float | None) -> tuple[float, str]:
    """(GiB of a device, origin): as given, as here, as planned, or the machine's."""
    if given is not None:
        return given, "as given"
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.total_memory / GIB, found.name
    return (planned, "card_gib") if planned else (host_gib(), "this machine")


def host_gib() -> float:
    """GiB of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
