"""What a run will do, take and need, said before it starts: `--dry-run`.

    python -m lib.pipeline params/paper.yaml --dry-run
    python -m lib.pipeline params/sweeps/mini_seeds.yaml --dry-run

Prints the stages with their steps, samples, tokens and FLOP (lib/workload.py,
lib/compute.py), hours, disk and memory (lib/memory.py), then every check that must pass
first (lib/preflight.py). Starts nothing and writes nothing.

Hours come from seconds that an earlier run of the same model on this machine took for
its FLOP, stage by stage; without one, on a CPU, from those of the mini run in
outputs/reference/bench_compute.json where it is that model; otherwise they are a range
that assumes shares of a named card's peaks, and says so.
"""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import compute, memory, params, paths, preflight, records, rl, workload
from lib.preflight import Check

GB = preflight.GB
REFERENCE = paths.ROOT / "outputs" / "reference" / "bench_compute.json"
KEPT_CHECKPOINTS = 2  # and a third while it is written: lib/sft.py, lib/grpo.py
# Bytes of a record's text: measured on mini runs (242 a rollout of 22 tokens, 417 a
# prediction of 22), plus five letters for every further token.
ROLLOUT_BYTES, PREDICTION_BYTES, TOKEN_BYTES = 160, 320, 5
READING_BYTES = 620  # with its share of a row of coherence_*.jsonl; mini run
NOTEBOOK_BYTES = 15_000_000  # five executed, their pages, figures; mini run
KEPT_OF_FRAMES = 0.54  # outputs/reference/bench_frame_store.json: kept_over_raw
STAGES = {"SFT": "02_sft", "GRPO": "03_grpo", "evaluation": "04_eval"}
OF_GRPO = ("rollout", "reference", "update")  # in lib/memory.py's plan
WIDTH = 100
START = "01_data, 05_analysis and the start of notebooks come on top"
SAME = ("model", "dtype", "quantize", "num_processes", "data_dir", "general_dir")


@dataclass(frozen=True)
class Hours:
    """A range, and where it is from: measured or estimated."""

    least: float
    most: float
    origin: str


@dataclass(frozen=True)
class Budget:
    """All that is said of one run; `saved` is what a shared prompt saves."""

    run: params.Run
    values: dict
    sets: dict[str, workload.Asked]
    parts: list[workload.Part]
    saved: float
    hours: dict[str, Hours]
    disk: dict[str, int]
    stages: list[memory.Stage]
    numbers: tuple[int, int]  # parameters, trained ones
    folders: dict[Path, int]  # bytes to write below each
    checks: list[Check]


def dry_run(runs: list[params.Run], file: str | Path) -> int:
    """Print the budget of every run; 0 if all checks pass, else 1."""
    budgets, refused = [], []
    for run in runs:
        values = memory.all_values(run)
        check = preflight.settings(values)
        try:
            if check.passed:
                budgets.append(budget_of(run, values, Path(file), check))
        except (ValueError, OSError) as error:
            check = Check("settings", False, str(error))
        refused += [] if check.passed else [(run, check)]
    if len(runs) == 1 and budgets:
        print("\n".join(lines(budgets[0])))
    elif budgets:
        print("\n".join(sweep_lines(budgets)))
    for run, check in refused:
        print(f"{run.name}:\n{line_of(check)}")
    checks = [*disk_of_all(budgets), *(c for b in budgets for c in b.checks)]
    passed = not refused and all(check.passed for check in checks)
    print("\nevery check passed" if passed else "\nNOT ready: see the lines with NO")
    return 0 if passed else 1


def budget_of(run: params.Run, values: dict, file: Path, settings: Check) -> Budget:
    """Count, estimate and check one run."""
    device = "cuda" if preflight.named_card(file) or has_gpu() else "cpu"
    config, work = memory.config_of(values["model"]), memory.work_of(values, device)
    named, sizes = memory.parameters(config), memory.Sizes.of(config)
    sets = workload.sets_of(values)
    chosen = chosen_stages(run)
    every = workload.parts(values, sets, sizes, work)
    parts = [part for part in every if part.stage in chosen]
    stages = [s for s in memory.plan(config, work) if stage_of(s.name) in chosen]
    host = memory.host_bytes(named, work)
    methods = [stage.lower() for stage in chosen if stage != "evaluation"]
    disk = disk_bytes(values, sets, named, work, parts)
    frames = disk.get("frame store", 0)
    folders = {paths.ROOT / "outputs" / run.name: sum(disk.values()) - frames}
    if frames:
        folders[paths.resolve(values["frames_dir"])] = frames
    total = sum(tensor.numel() for tensor in named.values())
    checks = [
        settings,
        preflight.steps(values, sets, methods),
        preflight.processes(values, preflight.named_card(file)),
        preflight.packages(values),
        preflight.model(values),
        preflight.data(values),
        preflight.fits(stages, work, *preflight.room(file)),
        *([preflight.host(host)] if host else []),
        *preflight.disk(folders),
    ]
    saved = compute.saved(work, next(p.item for p in every if p.stage == "GRPO"))
    hours = hours_of(values, work, sizes, parts, total)
    numbers = total, memory.trained_numbers(named, work)
    return Budget(
        *(run, values, sets, parts, saved, hours, disk, stages, numbers),
        *(folders, checks),
    )


def disk_of_all(budgets: list[Budget]) -> list[Check]:
    """Whether the disks have room for all runs of a sweep; frames are kept once."""
    wanted: dict[Path, int] = {}
    for budget in budgets:
        for folder, size in budget.folders.items():
            wanted[folder] = max(size, wanted.get(folder, 0))
    return preflight.disk(wanted)


def chosen_stages(run: params.Run) -> list[str]:
    """The stages whose notebooks the run consists of."""
    stems = {notebook.stem for notebook in run.notebooks}
    return [stage for stage, notebook in STAGES.items() if notebook in stems]


def stage_of(name: str) -> str:
    """The stage of a moment of lib/memory.py."""
    return "GRPO" if name in OF_GRPO else name


def has_gpu() -> bool:
    return torch.cuda.is_available()


# Hours


def flop_by_stage(parts: Iterable[workload.Part]) -> dict[str, compute.Cost]:
    """The costs of SFT, GRPO and evaluation, in the order of their notebooks."""
    costs: dict[str, compute.Cost] = {}
    for part in parts:
        costs[part.stage] = costs.get(part.stage, compute.Cost()) + part.cost
    return costs


def hours_of(values, work, sizes, parts, total) -> dict[str, Hours]:
    """{stage: hours}; a stage that nothing is known about is left out."""
    costs = flop_by_stage(parts)
    measured = rates(values, paths.ROOT / "outputs") or reference_rates(values, work)
    if measured is not None:
        by_stage, origin = measured
        spent = {s: cost.flop / by_stage[s] / 3600 for s, cost in costs.items()}
        return {stage: Hours(hours, hours, origin) for stage, hours in spent.items()}
    if work.device == "cpu":
        return {}
    card, weights = card_here(), total * work.wide
    devices, draw = values["num_processes"], compute.handed(sizes, work)
    origin = (
        f"estimated, not measured: {devices} x {card.name} at "
        f"{share(compute.ARITHMETIC)} of {card.flop / 1e12:.0f} TFLOP/s and "
        f"{share(compute.READING)} of {card.read / 1e12:.1f} TB/s"
        + (f" and {draw:.2f} s a drawn token, measured on an H100" if draw else "")
        + "; sending, offloading and clips come on top"
    )
    found = {}
    for stage, cost in costs.items():
        spans = compute.seconds(cost, card, devices, weights, draw)
        found[stage] = Hours(*(span / 3600 for span in spans), origin)
    return found


def share(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.0%} to {pair[1]:.0%}"


def card_here() -> compute.Card:
    """The GPU of this machine if its peaks are known, else an A100 as the yardstick."""
    name = torch.cuda.get_device_name() if has_gpu() else ""
    known = (card for card in compute.CARDS if card.name in name)
    return next(known, compute.CARDS[0])


def bound_costs(values: Mapping) -> dict[str, compute.Cost]:
    """{stage: cost} of what a manifest's seconds cover, completions at their bound.

    That is all of the training, and of 04_eval the answers to the sets.
    """
    sizes = memory.Sizes.of(memory.config_of(values["model"]))
    work = memory.work_of(values, "cuda" if has_gpu() else "cpu")
    sets = workload.sets_of(values)
    parts = workload.parts(values, sets, sizes, work)
    timed = (p for p in parts if p.stage != "evaluation" or p.name == workload.ANSWERS)
    return flop_by_stage(timed)


def rates(values, outputs: Path) -> tuple[dict[str, float], str] | None:
    """FLOP a second by stage, of the newest earlier run that is like this one.

    Alike: same machine, model, precision, processes and data. FLOP are counted there as
    here, with completions at their bound, so what a completion really took is in the
    rate.
    """
    manifests = outputs.glob("*/manifest.json")
    for manifest in sorted(manifests, key=lambda path: -path.stat().st_mtime):
        spent = stage_seconds(manifest)
        earlier = earlier_values(manifest, values)
        if len(spent) == len(STAGES) and earlier is not None:
            costs = bound_costs(earlier)
            by_stage = {s: costs[s].flop / seconds for s, seconds in spent.items()}
            return (
                by_stage,
                f"from what {manifest.parent.name} took on this machine; {START}",
            )
    return None


def stage_seconds(manifest: Path) -> dict[str, float]:
    """Seconds of the stages that ran to their end on a machine like this one."""
    stages, here = records.read_json(manifest), machine()
    found = {}
    for stage, notebook in STAGES.items():
        facts = stages.get(notebook, {})
        there = facts.get("environment", {})
        if facts.get("seconds") and {key: there.get(key) for key in here} == here:
            found[stage] = facts["seconds"]
    return found


def machine() -> dict:
    """What must be the same for seconds to be comparable."""
    gpu = torch.cuda.get_device_name() if has_gpu() else None
    return {"cpu_count": os.cpu_count(), "gpu": gpu}


def earlier_values(manifest: Path, values: Mapping) -> dict | None:
    """All parameters of an earlier run, None unless it is like this one."""
    state = manifest.with_name("pipeline.json")
    if not state.exists():
        return None
    name = manifest.parent.name
    run = params.Run(name, records.read_json(state)["parameters"])
    earlier = memory.all_values(run)
    alike = all(earlier.get(key) == values.get(key) for key in SAME)
    return earlier if alike else None


def reference_rates(values, work) -> tuple[dict[str, float], str] | None:
    """Those of the committed mini run, where this is its model and there is no GPU."""
    if work.device != "cpu" or not REFERENCE.exists():
        return None
    record = records.read_json(REFERENCE)
    if any(record[key] != values[key] for key in ("model", "dtype", "quantize")):
        return None
    by_stage = {
        row["stage"]: row["flop_at_bound"] / row["seconds"] for row in record["stages"]
    }
    cores = record["environment"]["cpu_count"]
    return (
        by_stage,
        f"from a run on {cores} other CPU cores ({REFERENCE.name}); {START}",
    )


# Disk


def disk_bytes(values, sets, named, work, parts) -> dict[str, int]:
    """{what: bytes} that are on the disk when it is fullest.

    The last checkpoints of every method stay; one more is there while it is written.
    """
    numbers = memory.trained_numbers(named, work)
    if work.lora_rank:
        checkpoint, trained = 3 * numbers * work.adapter_wide, numbers * 4
    else:
        checkpoint = work.sharding.checkpoint_bytes(numbers)
        trained = numbers * work.wide  # checkpoints.publish_trained
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
    found = {
        f"{count} checkpoints": count * checkpoint,
        f"{len(saves)} trained models": len(saves) * trained,
        "rollouts, answers, readings": record_bytes(values, parts),
        "notebooks and figures": NOTEBOOK_BYTES,
    }
    if values["frames_dir"]:
        found["frame store"] = frame_bytes(values, sets)
    return found


def frame_bytes(values: Mapping, sets: Mapping[str, workload.Asked]) -> int:
    """Decoded clips and stills as the frame store keeps them, within its bound."""
    frame = values["frame_height"] * values["frame_width"] * 3
    used = [known for name, known in sets.items() if name != "demonstrations"]
    frames = sum(
        known.count * (known.video * values["max_frames"] + known.still)
        for known in used
    )
    return int(min(KEPT_OF_FRAMES * frames * frame, values["frames_gib"] * 2**30))


def record_bytes(values: Mapping, parts: Sequence[workload.Part]) -> int:
    """rollouts.jsonl, predictions_*.jsonl and readings, completions at their bound."""
    drawn = ROLLOUT_BYTES + TOKEN_BYTES * values["max_completion_tokens"]
    answered = PREDICTION_BYTES + TOKEN_BYTES * values["max_new_tokens"]
    each = {
        "rollouts": values["group_size"] * drawn,
        workload.ANSWERS: answered,
        "conditions": answered,
        "readers": READING_BYTES,
    }
    return sum(part.count * each.get(part.name, 0) for part in parts)


# Text


def lines(budget: Budget) -> list[str]:
    """The plan of one run, about a screen."""
    values, (total, trained) = budget.values, budget.numbers
    count = values["num_processes"]
    found = [
        f"{budget.run.name}: {values['model']}, {total:,} parameters, {trained:,} "
        f"trained; {values['dtype']}, {count} process(es)",
        "",
        f"{'stage':<24}{'steps':>6}{'samples':>10} {'of':<16}"
        f"{'prompt (visual) + at most':>26}{'tokens':>9}{'TFLOP':>12}",
        *map(part_line, budget.parts),
        *count_notes(budget),
        "",
        *hour_lines(budget.hours),
        "",
        *disk_lines(budget.disk),
        wrapped(f"{'GiB a device':<16}" + ", ".join(map(stage_text, budget.stages))),
        "",
        *map(line_of, budget.checks),
    ]
    return found


def part_line(part: workload.Part) -> str:
    """A stage's line: steps, samples, tokens of one and of all, operations."""
    own = ", ".join(filter(None, (part.method, part.name)))
    name = ": ".join(filter(None, (part.stage, own)))
    visual = part.item.patches / workload.MERGED
    drawn = part.item.completion
    group = int(part.unit.partition(" x ")[2] or 1)
    lengths = f"{part.item.prompt:,.0f} ({visual:,.0f}) + {drawn:,.0f}"
    tokens = part.count * (part.item.prompt + group * drawn)
    steps = f"{part.steps:,}" if part.steps else "-"
    return (
        f"{name:<24}{steps:>6}{part.count:>10,} {part.unit:<16}{lengths:>26}"
        f"{short(tokens):>9}{part.cost.flop / 1e12:>12,.1f}"
    )


def short(number: float) -> str:
    """1,234,567 as 1.2 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"


def count_notes(budget: Budget) -> list[str]:
    """What the numbers above leave open."""
    told = [
        "prompt: mean tokens, every clip at max_frames; completions at their bound; a "
        f"shared prompt saves {budget.saved:.1f} times the update's tokens"
    ]
    files = workload.annotation_files(budget.values)
    guessed = [n for n, known in budget.sets.items() if not known.read]
    if guessed:
        told.append(f"not read, data is missing: {', '.join(guessed)}")
    if unknown := sorted(files.keys() - budget.sets.keys()):
        told.append(f"of unknown size, data is missing: {', '.join(unknown)}")
    return list(map(wrapped, told))


def hour_lines(hours: Mapping[str, Hours]) -> list[str]:
    """How long each stage takes, and what that is known from."""
    if not hours:
        return [f"{'time':<16}unknown: no run of this model on this machine yet"]
    each = [f"{stage} {span(h.least, h.most)}" for stage, h in hours.items()]
    least = sum(h.least for h in hours.values())
    most = sum(h.most for h in hours.values())
    origin = next(iter(hours.values())).origin
    return [
        f"{'time':<16}{span(least, most)}: {', '.join(each)}",
        wrapped(" " * 16 + origin),
    ]


def span(least: float, most: float) -> str:
    """Hours, below one as minutes: "1.2 to 2.4 h", "2.9 min"."""
    times, unit = (1, "h") if most >= 1 else (60, "min")
    texts = [f"{times * hours:.2g}" for hours in (least, most)]
    return f"{' to '.join(dict.fromkeys(texts))} {unit}"


def disk_lines(disk: Mapping[str, int]) -> list[str]:
    parts = ", ".join(f"{what} {bytes_text(size)}" for what, size in disk.items())
    return [wrapped(f"{'disk':<16}{bytes_text(sum(disk.values()))}: {parts}")]


def bytes_text(size: int) -> str:
    """12,345,678,900 as 12.3 GB."""
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.1f} MB"


def stage_text(stage: memory.Stage) -> str:
    return f"{stage.name} {stage.total / 2**30:.2f}"


def line_of(check: Check) -> str:
    return wrapped(f"{'ok' if check.passed else 'NO':<4}{check.name:<12}{check.text}")


def wrapped(text: str) -> str:
    """A long line on several, the following ones indented."""
    indent = " " * 16
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def sweep_lines(budgets: list[Budget]) -> list[str]:
    """A line a run, the sums, and every check that failed, once."""
    found = [f"{'run':<48}{'TFLOP':>12}{'time':>16}{'GB':>9}  checks"]
    sums, failed = [0.0, 0.0, 0.0, 0.0], {}
    for budget in budgets:
        flop = sum(part.cost.flop for part in budget.parts) / 1e12
        least = sum(h.least for h in budget.hours.values())
        most = sum(h.most for h in budget.hours.values())
        size = sum(budget.disk.values()) / GB
        bad = [check for check in budget.checks if not check.passed]
        failed |= {line_of(check): None for check in bad}
        told = f"NO: {', '.join(check.name for check in bad)}" if bad else "ok"
        hours = span(least, most) if budget.hours else "unknown"
        found.append(
            f"{budget.run.name:<48}{flop:>12,.1f}{hours:>16}{size:>9.1f}  {told}"
        )
        sums = [a + b for a, b in zip(sums, (flop, least, most, size), strict=True)]
    flop, least, most, size = sums
    hours = span(least, most) if any(b.hours for b in budgets) else "unknown"
    found.append(f"{f'{len(budgets)} runs':<48}{flop:>12,.1f}{hours:>16}{size:>9.1f}")
    if hours := budgets[0].hours:
        found.append(wrapped(f"time: {next(iter(hours.values())).origin}"))
    together = [check for check in disk_of_all(budgets) if not check.passed]
    failed |= {line_of(check): None for check in together}
    return [*found, "", *failed]
