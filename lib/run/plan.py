"""What a run will do, need and take, said before it starts: `--dry-run`.

    python -m lib.run params/paper.yaml --dry-run
    python -m lib.run params/single_gpu_7b.yaml --dry-run --card L4

Counts what each stage works through (counts.py), adds up memory (memory.py) and disk,
then looks at all that must hold first (checks.py). Starts and writes nothing.

Hours are the seconds that an earlier run like this one took on this machine for each
item, times the items; or those of outputs/reference/bench_cost.json on the card that is
named with them, whatever this one is; or "not measured"."""

import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from lib import paths, records
from lib.methods import SETS
from lib.run import cards, checks, counts, memory, params
from lib.run.checks import GB, Check
from lib.run.counts import Asked, Part
from lib.run.memory import GIB, Model, Work
from lib.train import rl

# isort: split
from huggingface_hub.constants import HF_HUB_CACHE

OUTPUTS = paths.outputs_dir()
COSTS = paths.ROOT / "outputs/reference/bench_cost.json"
STAGES = {"SFT": "02_sft", "GRPO": "03_grpo", "evaluation": "04_eval"}
KEPT_CHECKPOINTS = 2  # of each method; and one more while it is written
# Rollouts, answers, notebooks, figures, an allowance: the mini run's are 35 MB, and
# 50,000 rollouts of 256 tokens, at some 5 bytes a token, 65 MB.
RECORDS_BYTES = 5 * 10**8
KEPT_OF_FRAMES = 0.54  # outputs/reference/bench_frame_store.json: kept_over_raw
# What must be the same for seconds of a question or step to be those of another run;
# HERE: of an earlier one on this machine, too.
ALIKE = "model dtype quantize num_processes lora_rank max_frames frame_height "
ALIKE += "frame_width gradient_checkpointing accelerate_config"
OF_STAGE = {
    "SFT": "sft_batch_size max_tokens sft_on",
    "GRPO": "group_size prompts_per_step max_completion_tokens kl_beta rl",
    "evaluation": "max_new_tokens",
}
HERE = dict.fromkeys(OF_STAGE, "data_dir")
HERE["evaluation"] += " general_dir eval_batch_size eval_processes asked_models "
HERE["evaluation"] += "coherence_sets perception_conditions attention_questions"
# Values of a run, seconds of each stage's item, their origin, what else must be alike.
Measured = tuple[Mapping, dict[str, float], str, Mapping[str, str]]


class Plan(NamedTuple):
    """All that is said of one run."""

    name: str
    values: dict
    parts: list[Part]
    hours: dict[str, tuple[float, str]]  # {stage: hours or nan, where they are from}
    disk: dict[tuple[Path, str], int]  # {(folder, what): bytes}
    stages: dict[str, float]  # bytes
    numbers: tuple[int, int]  # parameters, trained ones
    checks: list[Check]


def dry_run(
    runs: list[params.Run], gib: float | None = None, card: str | None = None
) -> int:
    """Print the plan of every run, for the card here or for one of so many GiB or of
    this name; 0 if all checks pass, else 1."""
    plans, refused = [], []
    for run in runs:
        try:
            plans.append(plan_of(run, gib, card))
        except (ValueError, OSError) as error:
            told = line_of(Check("settings", False, str(error)))
            refused.append(f"{run.name}:\n{told}")
    disks = checks.check_disks(plan.disk for plan in plans)
    if plans:
        lines = run_lines(plans[0]) if len(runs) == 1 else sweep_lines(plans)
        print(*lines, *map(line_of, disks), sep="\n")
    print(*refused, sep="\n")
    found = [check for plan in plans for check in plan.checks] + disks
    if refused or not all(check.passed for check in found):
        print("NOT ready: see the lines with NO")
        return 1
    print("every check passed")
    return 0


def plan_of(run: params.Run, gib: float | None, card_name: str | None) -> Plan:
    """Count, add up and check one run; ValueError for settings that cannot be."""
    values = counts.all_values(run)
    checks.refuse_settings(values)
    stems = [notebook.stem for notebook in run.notebooks]
    stages = [stage for stage, notebook in STAGES.items() if notebook in stems]
    card = cards.CARDS[card_name] if card_name else cards.called(machine()["gpu"] or "")
    gib = card.gib if card_name and gib is None else gib
    on_card = run.card_gib or gib is not None or torch.cuda.is_available()
    work = counts.work_of(values, "cuda" if on_card else "cpu")
    model, sets = Model.of(memory.config_of(values["model"])), counts.sets_of(values)
    parts = [part for part in counts.parts_of(values, sets) if part.stage in stages]
    sizes = memory.stages(model, work).items()
    sizes = {n: size for n, size in sizes if (n if n in STAGES else "GRPO") in stages}
    *_, host = memory.states(model, work)
    hours = hours_of(values, parts, card)
    hours = {part.stage: hours.get(part.stage, (math.nan, "")) for part in parts}
    methods = [stage.lower() for stage in stages if stage != "evaluation"]
    return Plan(
        *(run.name, values, parts, hours),
        *(disk_of(values, sets, parts, model, work), sizes),
        (model.numbers, memory.trained_numbers(model, work)),
        [
            checks.check_steps(values, sets, methods),
            checks.check_asked(run.name, values, stems),
            checks.check_devices(values, run.card_gib, card),
            checks.check_packages(values),
            checks.check_model(values),
            checks.check_data(values, sets, stems),
            checks.check_memory(sizes, work, *checks.room(run.card_gib, gib)),
            *([checks.check_host(host)] if host else []),
        ],
    )


def run_lines(plan: Plan) -> list[str]:
    """The plan of one run, about a screen."""
    values, (total, trained) = plan.values, plan.numbers
    sizes = [f"{name} {size / GIB:.2f}" for name, size in plan.stages.items()]
    written = [f"{what} {size / GB:,.1f}" for (_, what), size in plan.disk.items()]
    asked = values["asked_sets"].split()
    unasked = ", ".join(name for name in SETS if name not in asked)
    return [
        f"{plan.name}: {values['model']}, {total:,} parameters, {trained:,} "
        f"trained; {values['dtype']}, {values['num_processes']} process(es)",
        "",
        f"{'stage':<26}{'steps':>7}{'samples':>12} of",
        *(
            f"{': '.join(filter(None, (part.stage, part.name))):<26}"
            f"{part.steps or '-':>7}{part.count:>12,} {part.unit}"
            for part in plan.parts
        ),
        *([f"not asked: {unasked}"] if unasked else []),
        "",
        *(
            wrapped(f"{'time':<16}{stage}: {span(hours)}{origin and f', {origin}'}")
            for stage, (hours, origin) in plan.hours.items()
        ),
        wrapped(f"{'GB of disk':<16}" + ", ".join(written)),
        wrapped(f"{'GiB a device':<16}" + ", ".join(sizes)),
        "",
        *map(line_of, plan.checks),
    ]


def span(hours: float) -> str:
    """1.2 h; below an hour 2.9 min; not measured."""
    if math.isnan(hours):
        return "not measured"
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def line_of(check: Check) -> str:
    """A check in words."""
    return wrapped(f"{'ok' if check.passed else 'NO':<4}{check.name:<12}{check.text}")


def wrapped(text: str) -> str:
    """A long line on several, the following ones indented."""
    whole = {"break_long_words": False, "break_on_hyphens": False}  # as a command is
    return textwrap.fill(text, 100, subsequent_indent=16 * " ", **whole)


def sweep_lines(plans: list[Plan]) -> list[str]:
    """A line a run, the hours' sum and origins, and once every check that failed."""
    found, rest, total = [], {}, 0
    for plan in plans:
        took = sum(hours for hours, _ in plan.hours.values())
        total += took
        bad = [check for check in plan.checks if not check.passed]
        told = f"NO: {', '.join(check.name for check in bad)}" if bad else "ok"
        found.append(f"{plan.name:<56}{span(took):>14}  {told}")
        origins = filter(None, (origin for _, origin in plan.hours.values()))
        rest |= {wrapped(f"time: {origin}"): None for origin in origins}
        rest |= {line_of(check): None for check in bad}
    return [*found, f"{f'{len(plans)} runs':<56}{span(total):>14}", "", *rest]


def hours_of(
    values: Mapping,
    parts: Sequence[Part],
    card: cards.Card | None = None,
    outputs: Path = OUTPUTS,
) -> dict[str, tuple[float, str]]:
    """{stage: hours, origin}; a stage like which nothing was measured is left out."""
    found, known = {}, [*benched()]
    if card in (None, cards.called(machine()["gpu"] or "")):  # it is this one
        states = outputs.glob("*/pipeline.json")
        for state in sorted(states, key=lambda path: path.stat().st_mtime):
            with suppress(ValueError, LookupError, OSError):  # records of another kit
                known.append(as_earlier(state))
    for theirs, each, origin, more in known:
        for stage, took in each.items():
            names = f"{ALIKE} {OF_STAGE[stage]} {more.get(stage, '')}".split()
            if all(values.get(name) == theirs.get(name) for name in names):
                found[stage] = took * worked(stage, parts) / 3600, origin
    return found


def benched() -> Iterator[Measured]:
    """What bench_cost.json has: seconds of a demonstration, a step and an answer."""
    for cost in records.read_json(COSTS, {"costs": {}})["costs"].values():
        (run,) = params.load_params(paths.ROOT / "params" / cost["params"])
        values = counts.all_values(run)
        took = {row["stage"]: row["seconds"] for row in cost["rows"]}
        step = took["rollout"] + took["reference"] + took["update"]
        took["GRPO"] = step / values["prompts_per_step"]
        origin = f"measured on {cost['device']} with random weights, an earlier, "
        origin += f"slower token loop, {cost['work']['eval_batch']} at a time"
        yield values, {stage: took[stage] for stage in STAGES}, origin, {}


def as_earlier(state: Path) -> Measured:
    """What the notebooks of a run on this machine took for each item."""
    each, recorded = {}, records.read_json(state)
    stages = records.read_json(state.with_name("manifest.json"))
    name = state.parent.name
    earlier = counts.all_values(params.Run(name, recorded["parameters"]))
    before = counts.parts_of(earlier, counts.sets_of(earlier))
    for stage, notebook in STAGES.items():
        took = recorded["notebooks"].get(notebook, {}).get("seconds")
        there = stages.get(notebook, {}).get("environment", {})
        items = worked(stage, before)
        if took and items and machine().items() <= there.items():
            each[stage] = took / items
    return earlier, each, f"as {name} took here", HERE


def worked(stage: str, parts: Sequence[Part]) -> int:
    """How many items of a stage are timed: of GRPO those that are drawn; attention and
    readers, which take another time, are not."""
    own = {part.name: part.count for part in parts if part.stage == stage}
    timed = {"GRPO": "rollouts", "evaluation": ("answers", "draws", "conditions")}
    return sum(own[name] for name in own if name.endswith(timed.get(stage, "")))


def machine() -> dict:
    """What must be the same for seconds to be comparable."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu_count": os.cpu_count(), "gpu": gpu}


def disk_of(
    values: Mapping,
    sets: Mapping[str, Asked],
    parts: Sequence[Part],
    model: Model,
    work: Work,
) -> dict[tuple[Path, str], int]:
    """{(folder, what): bytes} when the disk is fullest. The last checkpoints of every
    method stay; one more is there while it is written."""
    run = OUTPUTS / values["run_name"]
    named = {"sft": values["sft_on"].split(), "grpo": rl.read(values["rl"])}
    trained = {part.stage.lower() for part in parts}
    saves = [  # of every method
        -(-values[f"{stage}_steps"] // values[f"{stage}_save_every"])
        for stage in named
        for _ in named[stage]
        if stage in trained
    ]
    count = sum(min(KEPT_CHECKPOINTS, own) for own in saves)
    count += any(own > KEPT_CHECKPOINTS for own in saves)
    numbers = memory.trained_numbers(model, work)
    # ZeRO-3 keeps its masters in the optimizer's part.
    saved = 3 * work.adapter or (14 if work.sharding.startswith("zero3") else 12)
    saved += 4 * work.average
    wide = memory.LOADED_ADAPTER if work.lora_rank else work.wide
    found = {
        (run, f"{count} checkpoints"): count * saved * numbers,
        (run, f"{len(saves)} trained models"): len(saves) * wide * numbers,
        (run, "records"): RECORDS_BYTES,
    }
    if "grpo" in trained and values["grpo_from"]:  # export.start merges it
        found[run, "start of GRPO"] = work.wide * model.numbers
    if values["frames_dir"]:
        used = [known for name, known in sets.items() if name != "demonstrations"]
        frames = sum(k.count * (k.video * values["max_frames"] + k.still) for k in used)
        size = KEPT_OF_FRAMES * frames * values["frame_height"] * values["frame_width"]
        size = min(3 * size, values["frames_gib"] * GIB)  # within its bound
        found[paths.resolve(values["frames_dir"]), "frame store"] = int(size)
    data = paths.resolve(values["data_dir"])
    found |= {(data, what): n for what, n in counts.to_come(values).items()}
    if checks.local_model(values["model"]) is None:
        found[Path(HF_HUB_CACHE), "model"] = 2 * model.numbers
    return found
