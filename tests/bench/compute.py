"""Does counted FLOP say what a stage takes? lib/compute.py against a finished run.

    python -m lib.pipeline params/mini.yaml
    python -m tests.bench.compute outputs/mini    # writes reference/bench_compute.json

If FLOP alone decided, all stages would run at one rate. Counted are the tokens that the
run's records show: real frames, drawn completions. The rates are also what
`--dry-run` takes for the same model on a CPU where no earlier run is at hand.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from lib import budget, compute, memory, params, paths, questions, records, workload
from lib.frame_store import question_media
from lib.video import PATCH, Sampling

RECORD = paths.ROOT / "outputs" / "reference" / "bench_compute.json"
STEP = paths.ROOT / "outputs" / "reference" / "bench_grpo_step_mini.json"


def mean(numbers) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def mean_pictures(path: Path, values: dict) -> float:
    """Pictures of two frames (a still counts one) of the mean question of a file."""
    sampling = Sampling(
        values["max_frames"],
        fps=values["video_fps"],
        height=values["frame_height"],
        width=values["frame_width"],
    )
    pictures = []
    items = questions.usable(path, workload.media_root(path))
    for _, item in tqdm(items, desc=path.stem):
        clip, still = question_media(item, sampling)
        pictures.append((0 if clip is None else len(clip) / 2) + (still is not None))
    return mean(pictures)


def seen(item: compute.Item, pictures: float, values: dict) -> compute.Item:
    """The item with the pictures it really has instead of the most."""
    tokens = (values["frame_height"] // PATCH) * (values["frame_width"] // PATCH)
    visual = item.patches / workload.MERGED
    patches = pictures * tokens * workload.MERGED
    return replace(
        item, prompt=item.prompt - visual + pictures * tokens, patches=patches
    )


def real_costs(run: Path, values: dict) -> dict[str, compute.Cost]:
    """The costs of a finished run with the lengths of its records."""
    config = memory.config_of(values["model"])
    sizes, work = memory.Sizes.of(config), memory.work_of(values, "cpu")
    sets, files = workload.sets_of(values), workload.annotation_files(values)
    pictures = {name: mean_pictures(path, values) for name, path in files.items()}
    each = workload.items_per_step(values)

    shown = sets["demonstrations"]
    item = workload.item_of(shown, values, shown.text, shown.response)
    item = seen(item, pictures["demonstrations"], values)
    taught = values["sft_steps"] * each["sft"]
    costs = {"SFT": compute.demonstration(sizes, work, item) * taught}

    drawn = mean(row["tokens"] for row in records.read_jsonl(run / "rollouts.jsonl"))
    item = workload.item_of(sets["training"], values, sets["training"].text, drawn)
    item = seen(item, pictures["training"], values)
    count = values["grpo_steps"] * each["grpo"]
    costs["GRPO"] = compute.rollouts(sizes, work, item, each["grpo"]) * count
    costs["GRPO"] += compute.scores(sizes, work, item, learning=True) * count

    costs["evaluation"] = compute.Cost()
    for label, style in workload.asked_styles(values).items():
        for name in workload.LEVELS:
            rows = records.read_jsonl(run / f"predictions_{label}_{name}.jsonl")
            asked = sets[name]
            text = asked.text if style == "think" else asked.direct
            drawn = mean(row["tokens"] for row in rows)
            item = seen(
                workload.item_of(asked, values, text, drawn), pictures[name], values
            )
            cost = compute.answer(sizes, work, item, values["eval_batch_size"])
            costs["evaluation"] += cost * len(rows)
    return costs


def halves_of_a_step(values: dict) -> dict[str, float]:
    """GFLOP a second of rollouts and update, apart: bench_grpo_step_mini.json."""
    record = records.read_json(STEP)
    (row,) = record["rows"]
    config = memory.config_of(values["model"])
    sizes, work = memory.Sizes.of(config), memory.work_of(values, "cpu")
    grid = (values["frame_height"] // 14) * (values["frame_width"] // 14)
    patches = (values["max_frames"] // 2 + 1) * grid
    lengths = record["prompt_tokens"], patches, grid, row["completion_tokens"]
    item = compute.Item(*lengths)
    spent = row["seconds"]["ours"]
    costs = {
        "rollout": compute.rollouts(sizes, work, item, record["prompts"]),
        "update": compute.scores(sizes, work, item, learning=True),
    }
    return {
        name: round(cost.flop * record["prompts"] / spent[name]["median"] / 1e9, 1)
        for name, cost in costs.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compute")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args(arguments)
    state = records.read_json(given.run / "pipeline.json")
    values = memory.all_values(params.Run(given.run.name, state["parameters"]))
    manifest = records.read_json(given.run / "manifest.json")
    bound = budget.bound_costs(values)
    rows = [
        {
            "stage": stage,
            "flop": cost.flop,
            "flop_at_bound": bound[stage].flop,
            "seconds": (seconds := manifest[budget.STAGES[stage]]["seconds"]),
            "gflop_a_second": round(cost.flop / seconds / 1e9, 1),
        }
        for stage, cost in real_costs(given.run, values).items()
    ]
    centre = mean(row["gflop_a_second"] for row in rows)
    for row in rows:
        row["to_their_mean"] = round(row["gflop_a_second"] / centre, 2)
        print(f"{row['stage']:<12}{row['gflop_a_second']:8.1f} GFLOP/s")
    record = {
        **{key: values[key] for key in ("model", "dtype", "quantize")},
        "stages": rows,
        "halves_of_a_grpo_step": halves_of_a_step(values),
        "environment": manifest["04_eval"]["environment"],
    }
    records.write_json(given.out, record)


if __name__ == "__main__":
    main()
