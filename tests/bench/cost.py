"""What the single-GPU track costs: seconds and peak GiB of every stage, by measurement.

    python -m tests.bench.cost                # both params files at their true size
    python -m tests.bench.cost --size 2b      # one of them

Models of the true size with random weights, generated clips at the paper's shape (16
frames of 252 x 252, 883 prompt tokens) and the settings of params/single_gpu_2b.yaml
and single_gpu_7b.yaml go through real SFT and GRPO steps and an evaluation batch.
Random weights hardly ever end a completion, so all have 256 tokens: the dearest case.
Results go to outputs/reference/bench_cost.json and .md, beside the plan of
lib/run/memory.py. Without a GPU only the plan is written, and the table says so. The 7B
checkpoint takes 16.6 GB below TMPDIR while it runs.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lib import paths, records
from lib.evaluate import tables
from lib.run import counts, memory, params
from lib.run.memory import Model
from tests.bench import stages
from tests.bench.memory import SMALL, config_of
from tests.bench.stages import Shape

RECORD = paths.ROOT / "outputs" / "reference" / "bench_cost.json"
WORDS = 62  # of a question, which make a prompt of 883 tokens with mini's tokenizer
RESPONSE = 1162  # words of a response, which make a demonstration of 2,048 tokens
ACCUMULATED = 4  # demonstrations of an SFT step here: seconds are given for one
UNITS = {"SFT": "demonstration", "evaluation": "question"}  # others: a step
TINY = {"side": 56, "frames": 4, "words": 4, "response": 8, "completion": 4}
TINY |= {"prompts": 2, "group": 2, "eval_batch": 2, "sft_accumulation": 2}


def shape_of(values: dict) -> Shape:
    """The stages' shape with the settings of a params file."""
    return Shape(
        dtype=values["dtype"],
        quantize=values["quantize"],
        checkpointing=values["gradient_checkpointing"],
        rank=values["lora_rank"],
        side=values["frame_height"],
        frames=values["max_frames"],
        words=WORDS,
        response=RESPONSE,
        sft_batch=values["sft_batch_size"],
        sft_accumulation=ACCUMULATED,
        prompts=values["prompts_per_step"],
        prompts_per_backward=values["prompts_per_backward"],
        group=values["group_size"],
        completion=values["max_completion_tokens"],
        pack_tokens=values["pack_tokens"],
        eval_batch=values["eval_batch_size"],
    )


def cost(size: str) -> dict:
    """The record of one size, a row a stage; a true size is measured on a GPU only."""
    file = f"single_gpu_{'2b' if size == 'tiny' else size}.yaml"
    (run,) = params.load_params(paths.ROOT / "params" / file)
    values = counts.all_values(run)
    shape, config = shape_of(values), memory.config_of(values["model"])
    if size == "tiny":
        shape, config = replace(shape, **TINY), config_of(**SMALL)
    elif not torch.cuda.is_available():
        rows = [
            {"stage": stage, "planned_gib": gib(size)}
            for stage, size in planned(config, counts.work_of(values, "cuda")).items()
        ]
        return {"params": file, "measured": False, "device": None, "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        work, found = stages.run(config, shape, Path(folder))
    rows = [
        {
            "stage": stage,
            "planned_gib": gib(size),
            "peak_gib": gib(found[stage]["bytes"]),
            "seconds": seconds(stage, found[stage]["seconds"], shape),
            "of": UNITS.get(stage, "step"),
        }
        for stage, size in planned(config, work).items()
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lengths = {"shape": asdict(shape), "work": asdict(work)}
    return {"params": file, "measured": True, "device": device, "rows": rows, **lengths}


def planned(config, work: memory.Work) -> dict[str, float]:
    return memory.stages(Model.of(config), work)


def gib(count: float) -> float:
    return round(count / 2**30, 3)


def seconds(stage: str, total: float, shape: Shape) -> float:
    """Of one demonstration, question or step; the first step's start is included."""
    counts = {
        "SFT": shape.steps * shape.sft_accumulation * shape.sft_batch,
        "evaluation": shape.eval_batch,
    }
    return round(total / counts.get(stage, shape.steps), 3)


def table(costs: dict[str, dict]) -> str:
    """A row a stage and size, with what was not measured in words."""
    lines = [["size", "stage", "planned GiB", "peak GiB", "seconds", "device"]]
    for size, found in costs.items():
        for row in found["rows"]:
            numbers = ["not measured", "not measured", "no GPU was at hand"]
            if found["measured"]:
                took = f"{row['seconds']} a {row['of']}"
                numbers = [str(row["peak_gib"]), took, found["device"]]
            lines.append([size, row["stage"], str(row["planned_gib"]), *numbers])
    text = tables.grid(lines)
    if not all(found["measured"] for found in costs.values()):
        text += (
            "\n\nNo GPU was at hand: neither time nor memory of this track was "
            "measured. The planned GiB are tensors alone, computed by "
            "lib/run/memory.py, without the CUDA context and fragmentation. "
            "`python -m tests.bench.cost` on a machine with a GPU measures both."
        )
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cost")
    parser.add_argument("--size", nargs="+", choices=("tiny", "2b", "7b"))
    parser.add_argument("--out", type=Path, default=RECORD, help="a .json file")
    options = parser.parse_args(arguments)
    costs = {}
    for size in options.size or ("2b", "7b"):
        costs[size] = cost(size)
        # at once: what interrupts a larger size must not take a smaller one along
        record = {"costs": costs, "environment": records.environment()}
        records.write_json(options.out, record)
        records.write_text(options.out.with_suffix(".md"), table(costs) + "\n")
    print(table(costs))


if __name__ == "__main__":
    main()
