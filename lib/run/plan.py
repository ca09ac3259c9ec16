"""What a run will do, need and take, said before it starts: `--dry-run`.

    python -m lib.run params/paper.yaml --dry-run
    python -m lib.run params/single_gpu_7b.yaml --dry-run --gib 24

Counts what each stage works through (lib/run/counts.py), adds up memory
(lib/run/memory.py) and disk, then looks at all that must hold first
(lib/run/checks.py). Starts nothing and writes nothing.

Hours are those that an earlier run like this one took on this machine for each question
or step, times the counts; or those of outputs/reference/bench_cost.json, measured on
another card; or "not measured".
"""

import math
import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lib import paths, records
from lib.data import seed_bench
from lib.run import checks, counts, memory, params
from lib.run.checks import GB, Check
from lib.run.counts import Asked, Part
from lib.run.memory import GIB, Model, Work
from lib.train import rl

# isort: split
from huggingface_hub.constants import HF_HUB_CACHE

COSTS = paths.ROOT / "outputs" / "reference" / "bench_cost.json"
STAGES = {"SFT": "02_sft", "GRPO": "03_grpo", "evaluation": "04_eval"}
# GB of all archives of a source, and of the largest one, which is there while it is
# read (estimates, lib/data/seed_bench.py): the wanted clips alone stay.
ARCHIVES_GB = {"EpicKitchens": 530, "Ego4D": 18, None: 161.5}  # None: LongVideoBench
IN_TRANSIT_GB = 5.3
KEPT_CHECKPOINTS = (
    2  # and a third while it is written: lib/train/sft.py, lib/train/grpo.py
)
# Bytes of a record's text: measured on mini runs (242 a rollout of 22 tokens, 417 a
# prediction of 22), plus five letters for every further token.
ROLLOUT_BYTES, PREDICTION_BYTES, TOKEN_BYTES = 160, 320, 5
READING_BYTES = 620  # with its share of a row of coherence_*.jsonl; mini run
NOTEBOOK_BYTES = 15_000_000  # five executed, their pages, figures; mini run
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
HERE = {
    "SFT": "data_dir",
    "GRPO": "data_dir",
    "evaluation": "data_dir general_dir eval_batch_size asked_models coherence_sets "
    "perception_conditions attention_questions",
}
WIDTH = 100


class Hours(NamedTuple):
    """Of a stage, and where they are from."""

    hours: float
    origin: str


@dataclass(frozen=True)
class Plan:
    """All that is said of one run."""

    run: params.Run
    values: dict
    sets: dict[str, Asked]
    parts: list[Part]
    hours: dict[str, Hours]
    disk: dict[tuple[Path, str], int]
    stages: dict[str, float]  # bytes
    numbers: tuple[int, int]  # parameters, trained ones
    checks: list[Check]

    @property
    def folders(self) -> Counter:
        """Bytes to write below each folder."""
        found: Counter = Counter()
        for (folder, _), size in self.disk.items():
            found[folder] += size
        return found


def dry_run(runs: list[params.Run], file: str | Path, gib: float | None = None) -> int:
    """Print the plan of every run; 0 if all checks pass, else 1."""
    plans, refused = [], []
    for run in runs:
        values = counts.all_values(run)
        check = checks.check_settings(values)
        try:
            if check.passed:
                plans.append(plan_of(run, values, Path(file), gib, check))
        except (ValueError, OSError) as error:
            check = Check("settings", False, str(error))
        refused += [] if check.passed else [(run, check)]
    if len(runs) == 1 and plans:
        print("\n".join(lines(plans[0])))
    elif plans:
        print("\n".join(sweep_lines(plans)))
    for run, check in refused:
        print(f"{run.name}:\n{line_of(check)}")
    found = [*disk_of_all(plans), *(c for plan in plans for c in plan.checks)]
    passed = not refused and all(check.passed for check in found)
    print("\nevery check passed" if passed else "\nNOT ready: see the lines with NO")
    return 0 if passed else 1


def plan_of(
    run: params.Run, values: dict, file: Path, gib: float | None, settings: Check
) -> Plan:
    """Count, add up and check one run."""
    stems = [notebook.stem for notebook in run.notebooks]
    stages = [stage for stage, notebook in STAGES.items() if notebook in stems]
    card = checks.named_card(file)
    gpu = card or gib is not None or torch.cuda.is_available()
    model = Model.of(memory.config_of(values["model"]))
    work, sets = (
        counts.work_of(values, "cuda" if gpu else "cpu"),
        counts.sets_of(values),
    )
    parts = [part for part in counts.parts_of(values, sets) if part.stage in stages]
    found = memory.stages(model, work).items()
    found = {n: size for n, size in found if (n if n in STAGES else "GRPO") in stages}
    disk = disk_of(values, sets, parts, model, work)
    _, _, host = memory.states(model, work)
    methods = [stage.lower() for stage in stages if stage != "evaluation"]
    numbers = model.numbers, memory.trained_numbers(model, work)
    plan = Plan(
        *(run, values, sets, parts, hours_of(values, parts), disk, found, numbers),
        checks=[
            settings,
            checks.check_steps(values, sets, methods),
            checks.check_devices(values, card),
            checks.check_packages(values),
            checks.check_model(values),
            checks.check_data(values, stems),
            checks.check_memory(found, work, *checks.room(file, gib)),
            *([checks.check_host(host)] if host else []),
        ],
    )
    plan.checks.extend(checks.check_disk(plan.folders, clips_to_come(values)))
    return plan


def disk_of_all(plans: list[Plan]) -> list[Check]:
    """Whether the disks have room for all runs of a sweep; frames are kept once."""
    wanted: Counter = Counter()
    for plan in plans:
        wanted |= plan.folders
    return checks.check_disk(wanted)


def lines(plan: Plan) -> list[str]:
    """The plan of one run, about a screen."""
    values, (total, trained) = plan.values, plan.numbers
    prompt, patches = counts.prompt_with(counts.sampling_of(values))
    sizes = [f"{name} {size / GIB:.2f}" for name, size in plan.stages.items()]
    return [
        f"{plan.run.name}: {values['model']}, {total:,} parameters, {trained:,} "
        f"trained; {values['dtype']}, {values['num_processes']} process(es)",
        "",
        f"{'stage':<26}{'steps':>7}{'samples':>12} of",
        *map(part_line, plan.parts),
        wrapped(
            f"a prompt has {prompt:,} tokens at most frames and usual words, "
            f"{patches // 4:,} of them visual; an answer at most "
            f"{values['max_new_tokens']}, a rollout {values['max_completion_tokens']}"
        ),
        *unknown_lines(plan),
        "",
        *hour_lines(plan),
        disk_line(plan.disk),
        wrapped(f"{'GiB a device':<16}" + ", ".join(sizes)),
        "",
        *map(line_of, plan.checks),
    ]


def part_line(part: Part) -> str:
    own = ", ".join(filter(None, (part.method, part.name)))
    name = ": ".join(filter(None, (part.stage, own)))
    steps = f"{part.steps:,}" if part.steps else "-"
    return f"{name:<26}{steps:>7}{part.count:>12,} {part.unit}"


def unknown_lines(plan: Plan) -> list[str]:
    """Which numbers are not read from the data."""
    files = counts.annotation_files(plan.values)
    guessed = [name for name, known in plan.sets.items() if not known.read]
    unknown = sorted(files.keys() - plan.sets.keys())
    told = []
    if guessed:
        told.append(f"not read, data is missing: {', '.join(guessed)}")
    if unknown:
        told.append(f"not counted, data is missing: {', '.join(unknown)}")
    return list(map(wrapped, told))


def hour_lines(plan: Plan) -> list[str]:
    """How long each stage takes, and what that is known from."""
    found = []
    for stage in dict.fromkeys(part.stage for part in plan.parts):
        hours = plan.hours.get(stage)
        told = f"{span(hours.hours)}, {hours.origin}" if hours else "not measured"
        label = "" if found else "time"
        found.append(f"{label:<16}" + wrapped(f"{stage}: {told}"))
    return found


def span(hours: float) -> str:
    """Hours, below one as minutes: "1.2 h", "2.9 min"."""
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.2g} h"
    return f"{60 * hours:.2g} min"


def disk_line(disk: Mapping[tuple[Path, str], int]) -> str:
    told = ", ".join(f"{what} {bytes_text(size)}" for (_, what), size in disk.items())
    return wrapped(f"{'disk':<16}{bytes_text(sum(disk.values()))}: {told}")


def bytes_text(size: int) -> str:
    """12,345,678,900 as 12.3 GB."""
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.1f} MB"


def line_of(check: Check) -> str:
    return wrapped(f"{'ok' if check.passed else 'NO':<4}{check.name:<12}{check.text}")


def wrapped(text: str) -> str:
    """A long line on several, the following ones indented."""
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=" " * 16,
        break_long_words=False,
        break_on_hyphens=False,
    )


def sweep_lines(plans: list[Plan]) -> list[str]:
    """A line a run, the sums, and every check that failed, once."""
    found, failed, spent, written = [], {}, 0.0, 0.0
    for plan in plans:
        hours = sum(known.hours for known in plan.hours.values())
        size = sum(plan.disk.values()) / GB
        bad = [check for check in plan.checks if not check.passed]
        failed |= {line_of(check): None for check in bad}
        told = f"NO: {', '.join(check.name for check in bad)}" if bad else "ok"
        measured = all(part.stage in plan.hours for part in plan.parts)
        took = span(hours) if measured else "not measured"
        spent, written = spent + (hours if measured else math.nan), written + size
        found.append(f"{plan.run.name:<56}{took:>14}{size:>9.1f}  {told}")
    took = "not measured" if math.isnan(spent) else span(spent)
    failed |= {line_of(c): None for c in disk_of_all(plans) if not c.passed}
    origins = {hours.origin: None for plan in plans for hours in plan.hours.values()}
    return [
        f"{'run':<56}{'time':>14}{'GB':>9}  checks",
        *found,
        f"{f'{len(plans)} runs':<56}{took:>14}{written:>9.1f}",
        *(wrapped(f"time: {origin}") for origin in origins),
        "",
        *failed,
    ]


# --- hours ----------------------------------------------------------------------------


def hours_of(
    values: Mapping, parts: Sequence[Part], outputs: Path | None = None
) -> dict[str, Hours]:
    """{stage: Hours}; a stage like which nothing was measured is left out."""
    measured = measured_elsewhere(values, parts)
    return measured | as_earlier(values, parts, outputs or paths.ROOT / "outputs")


def as_earlier(
    values: Mapping, parts: Sequence[Part], outputs: Path
) -> dict[str, Hours]:
    """From the newest runs on this machine that are like this one in a stage: the
    seconds their notebooks took, times this run's counts over theirs."""
    found: dict[str, Hours] = {}
    states = outputs.glob("*/pipeline.json")
    for state in sorted(states, key=lambda path: -path.stat().st_mtime):
        with suppress(ValueError, LookupError, OSError):  # records of another kit
            found = {**as_one(values, parts, state), **found}
    return found


def as_one(values: Mapping, parts: Sequence[Part], state: Path) -> dict[str, Hours]:
    """The same from one earlier run, whose pipeline.json this is."""
    found, recorded, name = {}, records.read_json(state), state.parent.name
    stages = records.read_json(state.with_name("manifest.json"))
    earlier = counts.all_values(params.Run(name, recorded["parameters"]))
    for stage, notebook in STAGES.items():
        took = recorded["notebooks"].get(notebook, {}).get("seconds")
        there = stages.get(notebook, {}).get("environment", {})
        on_this = machine().items() <= there.items()
        if took and on_this and alike(values, earlier, stage, HERE[stage]):
            before = counts.parts_of(earlier, counts.sets_of(earlier))
            share = worked(stage, parts) / worked(stage, before)
            found[stage] = Hours(took * share / 3600, f"as {name} took here")
    return found


def alike(a: Mapping, b: Mapping, stage: str, more: str = "") -> bool:
    """Whether two runs take as long for the same work in a stage."""
    names = f"{ALIKE} {OF_STAGE[stage]} {more}".split()
    return all(a.get(name) == b.get(name) for name in names)


def worked(stage: str, parts: Iterable[Part]) -> int:
    """How much of a stage there is to do: its items, of GRPO those that are drawn."""
    skipped = ("reference", "old policy", "update")
    return sum(p.count for p in parts if p.stage == stage and p.name not in skipped)


def machine() -> dict:
    """What must be the same for seconds to be comparable."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu_count": os.cpu_count(), "gpu": gpu}


def measured_elsewhere(values: Mapping, parts: Sequence[Part]) -> dict[str, Hours]:
    """From bench_cost.json, where it has this model at these settings: its seconds of a
    demonstration, of each pass of a step and of an answer, times the counts."""
    found: dict[str, Hours] = {}
    costs = records.read_json(COSTS)["costs"] if COSTS.exists() else {}
    for cost in costs.values():
        (run,) = params.load_params(paths.ROOT / "params" / cost["params"])
        theirs, rows = counts.all_values(run), cost["rows"] if cost["measured"] else []
        took = {row["stage"]: row["seconds"] for row in rows}
        for stage in STAGES:
            if took and alike(values, theirs, stage):
                spent = sum(
                    seconds(part, took) for part in parts if part.stage == stage
                )
                at = f"measured on {cost['device']} with random weights"
                if stage == "evaluation":
                    at += f", {cost['shape']['eval_batch']} at a time"
                found[stage] = Hours(spent / 3600, at)
    return found


def seconds(part: Part, took: Mapping[str, float]) -> float:
    """Of a part by what bench_cost.json measured; attention and readers were not."""
    if part.stage == "SFT":
        return part.count * took["SFT"]
    if part.stage == "evaluation":
        return (
            part.count * took["evaluation"] * (part.name in ("answers", "conditions"))
        )
    known = {"rollouts": "rollout", "update": "update"}
    return part.steps * took[known.get(part.name, "reference")]


# --- disk ----------------------------------------------------------------------------


def disk_of(
    values: Mapping,
    sets: Mapping[str, Asked],
    parts: Sequence[Part],
    model: Model,
    work: Work,
) -> dict[tuple[Path, str], int]:
    """{(folder, what): bytes} when the disk is fullest; clips to come are not counted.

    The last checkpoints of every method stay; one more is there while it is written.
    """
    saves = []  # of every method
    for stage, option, names in (
        ("SFT", "sft", values["sft_on"].split()),
        ("GRPO", "grpo", rl.read(values["rl"])),
    ):
        if any(part.stage == stage for part in parts):
            count = -(-values[f"{option}_steps"] // values[f"{option}_save_every"])
            saves += [count] * len(names)
    count = sum(min(KEPT_CHECKPOINTS, own) for own in saves)
    count += any(own > KEPT_CHECKPOINTS for own in saves)
    wide = memory.LOADED_ADAPTER if work.lora_rank else work.wide
    trained = memory.trained_numbers(model, work) * wide
    run = paths.ROOT / "outputs" / values["run_name"]
    found = {
        (run, f"{count} checkpoints"): count * memory.checkpoint_bytes(model, work),
        (run, f"{len(saves)} trained models"): len(saves) * trained,
        (run, "rollouts, answers, readings"): record_bytes(values, parts),
        (run, "notebooks and figures"): NOTEBOOK_BYTES,
    }
    if values["frames_dir"]:
        folder = paths.resolve(values["frames_dir"])
        found[folder, "frame store"] = frame_bytes(values, sets)
    if checks.local_model(values["model"]) is None:
        found[Path(HF_HUB_CACHE), "model"] = 2 * model.numbers
    if clips_to_come(values):
        archive = paths.resolve(values["data_dir"]), "archive in transit"
        found[archive] = int(IN_TRANSIT_GB * GB)
    return found


def clips_to_come(values: Mapping) -> float:
    """GB of all archives that 01_data may read, a bound on the clips that stay; 0 where
    the annotations are there."""
    module, *rest = shlex.split(values["data_command"]) or [""]
    files = counts.annotation_files(values)
    if module != "lib.data" or all(path.is_file() for path in files.values()):
        return 0
    sources = {seed_bench.OFFICIAL[split].clips for split in counts.chosen(rest)}
    return sum(ARCHIVES_GB[source] for source in sources)


def frame_bytes(values: Mapping, sets: Mapping[str, Asked]) -> int:
    """Decoded clips and stills as the frame store keeps them, within its bound."""
    frame = values["frame_height"] * values["frame_width"] * 3
    used = [known for name, known in sets.items() if name != "demonstrations"]
    frames = sum(k.count * (k.video * values["max_frames"] + k.still) for k in used)
    return int(min(KEPT_OF_FRAMES * frames * frame, values["frames_gib"] * GIB))


def record_bytes(values: Mapping, parts: Sequence[Part]) -> int:
    """rollouts.jsonl, predictions_*.jsonl and readings, completions at their bound."""
    drawn = ROLLOUT_BYTES + TOKEN_BYTES * values["max_completion_tokens"]
    answered = PREDICTION_BYTES + TOKEN_BYTES * values["max_new_tokens"]
    each = {
        "rollouts": values["group_size"] * drawn,
        "answers": answered,
        "conditions": answered,
        "readers": READING_BYTES,
    }
    return sum(p.count * each.get(p.name, 0) for p in parts if p.stage != "SFT")
