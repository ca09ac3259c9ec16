"""What the single-GPU track costs: seconds and peak GiB of every stage, by measurement.

    python -m tests.bench.cost                # both params files at their true size
    python -m tests.bench.cost --size 2b      # one of them

Models of the true size with random weights, generated clips at the paper's shape (16
frames of 252 x 252, 883 prompt tokens) and the settings of params/single_gpu_2b.yaml
and single_gpu_7b.yaml go through real SFT and GRPO steps and an evaluation batch.
Random weights hardly ever end a completion, so all have 256 tokens: the dearest case.
Results go to outputs/reference/bench_cost.json, beside the plan of lib/run/memory.py.
It needs a GPU; the 7B checkpoint takes 16.6 GB below TMPDIR."""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from lib import paths, records
from lib.doors import Door
from lib.run import memory
from lib.run.memory import Model
from tests.bench import stages
from tests.bench.memory import SMALL, config_of

RECORD = paths.ROOT / "outputs" / "reference" / "bench_cost.json"
# 62 words of a question make a prompt of 883 tokens with mini's tokenizer, 1,162 of a
# response a demonstration of 2,048. Seconds of SFT are given for one demonstration.
FULL = {"words": 62, "response": 1162, "sft_gradient_accumulation": 4}
UNITS = {"SFT": "demonstration", "evaluation": "question"}  # others: a step
TINY = {"frame_height": 56, "frame_width": 56, "max_frames": 4, "words": 4}
TINY |= {"response": 8, "max_completion_tokens": 4, "prompts_per_step": 2}
TINY |= {"group_size": 2, "eval_batch_size": 2, "sft_gradient_accumulation": 2}


def cost(size: str) -> dict:
    """The record of one size, a row a stage."""
    file = f"single_gpu_{'2b' if size == 'tiny' else size}"
    values = stages.values(file, **(TINY if size == "tiny" else FULL))
    config = memory.config_of(values["model"])
    facts = {"params": f"{file}.yaml", "device": "CPU"}
    if size == "tiny":
        config = config_of(**SMALL)
    with tempfile.TemporaryDirectory() as folder:
        work, found = stages.run(config, values, Path(folder))
    once = {  # demonstrations, or questions; the first step's start is included
        "SFT": stages.STEPS * work.sft_accumulation * work.sft_batch,
        "evaluation": work.eval_batch,
    }
    facts["rows"] = [
        {
            "stage": stage,
            "planned_gib": gib(size),
            "peak_gib": gib(found[stage]["bytes"]),
            "seconds": round(
                found[stage]["seconds"] / once.get(stage, stages.STEPS), 3
            ),
            "of": UNITS.get(stage, "step"),
        }
        for stage, size in memory.stages(Model.of(config), work).items()
    ]
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
    return facts | {"work": asdict(work)}


def gib(count: float) -> float:
    return round(count / 2**30, 3)


def main(arguments: list[str] | None = None) -> None:
    parser = Door("python -m tests.bench.cost", __doc__)
    parser.add_argument(
        "--size", nargs="+", choices=("tiny", "2b", "7b"), help="default: 2b and 7b"
    )
    parser.add_argument("--out", type=Path, default=RECORD, help="a .json file")
    options = parser.parse_args(arguments)
    costs, sizes = {}, options.size or ("2b", "7b")
    if {*sizes} != {"tiny"} and not torch.cuda.is_available():
        parser.error("2b and 7b are measured on a GPU; lib.run --dry-run plans them")
    for size in sizes:
        costs[size] = cost(size)
        # at once: what interrupts a larger size must not take a smaller one along
        record = {"costs": costs, "environment": records.environment()}
        records.write_json(options.out, record)


if __name__ == "__main__":
    main()
