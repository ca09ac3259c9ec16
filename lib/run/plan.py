"""What a run will do, need and take, said before it starts: `--dry-run`.

    python -m lib.run params/paper.yaml --dry-run
    python -m lib.run params/single_gpu_7b.yaml --dry-run --card L4

Counts what each stage works through (counts.py), adds up memory (memory.py) and disk,
then looks at all that must hold first (checks.py). Starts and writes nothing.

Hours are those that an earlier run like this one took on this machine for each question
or step, times the counts; or those of outputs/reference/bench_cost.json on the card
that is named with them, whatever this one is; or "not measured"."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import paths, records
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
HERE["evaluation"] += " general_dir eval_batch_size asked_models coherence_sets "
HERE["evaluation"] += "perception_conditions attention_questions"


@dataclass(frozen=True)
class Plan:
    """All that is said of one run."""

    run: params.Run
    values: dict
    sets: dict[str, Asked]
    parts: list[Part]
    hours: dict[str, tuple[float, str]]  # {stage: hours, and where they are from}
    disk: dict[tuple[Path, str], int]  # {(folder, what): bytes}
    stages: dict[str, float]  # bytes
    numbers: tuple[int, int]  # parameters, trained ones
    checks: list[Check]

    def took(self) -> float:
        """Hours of all stages; nan where one was not measured."""
        stages = {part.stage for part in self.parts}
        return sum(self.hours.get(stage, (math.nan,))[0] for stage in stages)


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
    _, _, host = memory.states(model, work)
    methods = [stage.lower() for stage in stages if stage != "evaluation"]
    return Plan(
        *(run, values, sets, parts, hours_of(values, parts, card)),
        disk_of(values, sets, parts, model, work),
        sizes,
        (model.numbers, memory.trained_numbers(model, work)),
        [
            checks.check_steps(values, sets, methods),
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
    prompt, patches = counts.prompt_with(counts.sampling_of(values))
    sizes = [f"{name} {size / GIB:.2f}" for name, size in plan.stages.items()]
    written = [f"{what} {size / GB:,.1f}" for (_, what), size in plan.disk.items()]
    there = {name for name, known in plan.sets.items() if known.records}
    lacking = ", ".join(n for n in counts.annotation_files(values) if n not in there)
    unasked = [n for n in counts.LEVELS if n not in counts.annotation_files(values)]
    stages = dict.fromkeys(part.stage for part in plan.parts)
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
        wrapped(f"data that is not there yet: {lacking or 'none'}"),
        *([wrapped(f"not asked: {', '.join(unasked)}")] if unasked else []),
        "",
        *(wrapped(f"{'time':<16}{s}: {hour_text(plan, s)}") for s in stages),
        wrapped(f"{'GB of disk':<16}" + ", ".join(written)),
        wrapped(f"{'GiB a device':<16}" + ", ".join(sizes)),
        "",
        *map(line_of, plan.checks),
    ]


def part_line(part: Part) -> str:
    """A stage with its steps and samples."""
    own = ", ".join(filter(None, (part.method, part.name)))
    name = ": ".join(filter(None, (part.stage, own)))
    steps = f"{part.steps:,}" if part.steps else "-"
    return f"{name:<26}{steps:>7}{part.count:>12,} {part.unit}"


def hour_text(plan: Plan, stage: str) -> str:
    """The hours of a stage, and where they are from."""
    hours, origin = plan.hours.get(stage, (math.nan, ""))
    return f"{span(hours)}, {origin}" if origin else span(hours)


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
    """A line a run, the sum of the hours, where they are from, and every check that
    failed, once."""
    found, rest = [], {}
    for plan in plans:
        bad = [check for check in plan.checks if not check.passed]
        told = f"NO: {', '.join(check.name for check in bad)}" if bad else "ok"
        found.append(f"{plan.run.name:<56}{span(plan.took()):>14}  {told}")
        rest |= {wrapped(f"time: {origin}"): None for _, origin in plan.hours.values()}
        rest |= {line_of(check): None for check in bad}
    took = span(sum(plan.took() for plan in plans))
    return [*found, f"{f'{len(plans)} runs':<56}{took:>14}", "", *rest]


def hours_of(
    values: Mapping,
    parts: Sequence[Part],
    card: cards.Card | None = None,
    outputs: Path = OUTPUTS,
) -> dict[str, tuple[float, str]]:
    """{stage: hours, origin}; a stage like which nothing was measured is left out."""
    found = measured_elsewhere(values, parts)
    is_here = card in (None, cards.called(machine()["gpu"] or ""))
    states = outputs.glob("*/pipeline.json") if is_here else ()
    for state in sorted(states, key=lambda path: path.stat().st_mtime):
        with suppress(ValueError, LookupError, OSError):  # records of another kit
            found |= as_earlier(values, parts, state)
    return found


def as_earlier(
    values: Mapping, parts: Sequence[Part], state: Path
) -> dict[str, tuple[float, str]]:
    """The seconds that the notebooks of a run on this machine took, times this run's
    counts over its own, for the stages in which the two are alike."""
    found, recorded, name = {}, records.read_json(state), state.parent.name
    stages = records.read_json(state.with_name("manifest.json"))
    earlier = counts.all_values(params.Run(name, recorded["parameters"]))
    before = counts.parts_of(earlier, counts.sets_of(earlier))
    for stage, notebook in STAGES.items():
        took = recorded["notebooks"].get(notebook, {}).get("seconds")
        there = stages.get(notebook, {}).get("environment", {})
        alike_here = machine().items() <= there.items()
        if took and alike_here and alike(values, earlier, stage, HERE[stage]):
            share = worked(stage, parts) / worked(stage, before)
            found[stage] = took * share / 3600, f"as {name} took here"
    return found


def alike(a: Mapping, b: Mapping, stage: str, more: str = "") -> bool:
    """Whether two runs take as long for the same work in a stage."""
    names = f"{ALIKE} {OF_STAGE[stage]} {more}".split()
    return all(a.get(name) == b.get(name) for name in names)


def worked(stage: str, parts: Sequence[Part]) -> int:
    """How much of a stage there is to do: its items, of GRPO those that are drawn."""
    own = [part for part in parts if part.stage == stage]
    return sum(p.count for p in own if stage != "GRPO" or p.name == "rollouts")


def machine() -> dict:
    """What must be the same for seconds to be comparable."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu_count": os.cpu_count(), "gpu": gpu}


def measured_elsewhere(
    values: Mapping, parts: Sequence[Part]
) -> dict[str, tuple[float, str]]:
    """From bench_cost.json, where it has this model at these settings: its seconds of a
    demonstration, of each pass of a step and of an answer, times the counts."""
    found = {}
    costs = records.read_json(COSTS)["costs"].values() if COSTS.exists() else ()
    for cost in costs:
        (run,) = params.load_params(paths.ROOT / "params" / cost["params"])
        theirs = counts.all_values(run)
        took = {row["stage"]: row.get("seconds") for row in cost["rows"]}
        for stage in STAGES if cost["measured"] else ():
            if alike(values, theirs, stage):
                own = [part for part in parts if part.stage == stage]
                at = f"measured on {cost['device']} with random weights"
                at += "" if stage == "SFT" else ", an earlier, slower token loop"
                if stage == "evaluation":
                    at += f", {cost['work']['eval_batch']} at a time"
                found[stage] = sum(seconds(part, took) for part in own) / 3600, at
    return found


def seconds(part: Part, took: Mapping[str, float]) -> float:
    """Of a part by what bench_cost.json measured; attention and readers were not."""
    if part.stage == "GRPO":
        known = {"rollouts": "rollout", "update": "update"}
        return part.steps * took[known.get(part.name, "reference")]
    if part.name in ("attention", "readers"):
        return 0
    return part.count * took[part.stage]


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
    named = {"SFT": values["sft_on"].split(), "GRPO": rl.read(values["rl"])}
    trained = {part.stage for part in parts} & named.keys()
    saves = []  # of every method
    for stage in trained:
        option = stage.lower()
        count = -(-values[f"{option}_steps"] // values[f"{option}_save_every"])
        saves += [count] * len(named[stage])
    count = sum(min(KEPT_CHECKPOINTS, own) for own in saves)
    count += any(own > KEPT_CHECKPOINTS for own in saves)
    wide = memory.LOADED_ADAPTER if work.lora_rank else work.wide
    weights = memory.trained_numbers(model, work) * wide
    found = {
        (run, f"{count} checkpoints"): count * memory.checkpoint_bytes(model, work),
        (run, f"{len(saves)} trained models"): len(saves) * weights,
        (run, "records"): RECORDS_BYTES,
    }
    if values["frames_dir"]:
        folder = paths.resolve(values["frames_dir"])
        found[folder, "frame store"] = frame_bytes(values, sets)
    data = paths.resolve(values["data_dir"])
    found |= {(data, what): n for what, n in counts.to_come(values).items()}
    if checks.local_model(values["model"]) is None:
        found[Path(HF_HUB_CACHE), "model"] = 2 * model.numbers
    return found


def frame_bytes(values: Mapping, sets: Mapping[str, Asked]) -> int:
    """Decoded clips and stills as the frame store keeps them, within its bound."""
    frame = values["frame_height"] * values["frame_width"] * 3
    used = [known for name, known in sets.items() if name != "demonstrations"]
    frames = sum(k.count * (k.video * values["max_frames"] + k.still) for k in used)
    return int(min(KEPT_OF_FRAMES * frames * frame, values["frames_gib"] * GIB))
