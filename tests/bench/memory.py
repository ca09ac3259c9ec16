"""The memory plan of lib/run/memory.py against measured peaks, stage by stage.

    python -m tests.bench.memory      # writes outputs/reference/bench_memory.json

Small random Qwen2-VL models of several shapes go through real SFT and GRPO steps and an
evaluation. On a CPU the peaks are exact counts of tensor bytes (tests/bench/meter.py),
with a GPU they are torch.cuda.max_memory_allocated; the plan is made for that device.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Qwen2VLConfig

from lib import paths, records
from lib.run import memory
from tests.bench import stages
from tests.bench.stages import Shape

RECORD = paths.ROOT / "outputs" / "reference" / "bench_memory.json"
TOLERANCE = 0.15
SMALL = {"hidden": 256, "inner": 768, "layers": 4, "heads": 4, "kv": 2, "vocab": 4096}
NARROW = {"hidden": 128, "inner": 512, "layers": 8, "heads": 4, "kv": 2, "vocab": 1024}
WIDE = {"hidden": 512, "inner": 2048, "layers": 6, "heads": 8, "kv": 2, "vocab": 8192}
QLORA = {"dtype": "bfloat16", "quantize": True, "checkpointing": True}
CASES = {
    "LoRA, float32": (SMALL, Shape()),
    "LoRA, float32, checkpointing": (SMALL, Shape(checkpointing=True)),
    "LoRA, bfloat16": (SMALL, Shape(dtype="bfloat16")),
    "NF4, float32, checkpointing": (SMALL, Shape(quantize=True, checkpointing=True)),
    "NF4, bfloat16, checkpointing": (SMALL, Shape(**QLORA)),
    "all weights, float32": (SMALL, Shape(rank=0)),
    "all weights, checkpointing": (SMALL, Shape(rank=0, checkpointing=True)),
    "narrow, G = 2, batches of 2": (
        NARROW,
        Shape(
            **{**QLORA, "checkpointing": False},
            **{"rank": 4, "words": 300, "sft_batch": 2, "group": 2, "completion": 48},
        ),
    ),
    "narrow, long rows": (
        NARROW,
        Shape(checkpointing=True, words=500, response=400, group=8, completion=50),
    ),
    "wide, G = 8": (
        WIDE,
        Shape(
            **QLORA,
            **{"rank": 16, "side": 140, "frames": 10, "words": 200, "response": 300},
            **{"group": 8, "completion": 32},
        ),
    ),
    "wide, one prompt a backward pass, packs of 400": (
        WIDE,
        Shape(**QLORA, prompts_per_backward=1, pack_tokens=400, completion=32),
    ),
    "accumulated SFT": (SMALL, Shape(sft_accumulation=4, checkpointing=True)),
}


def config_of(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int
) -> Qwen2VLConfig:
    """A language model of these sizes behind a vision tower of two blocks."""
    half = hidden // heads // 2
    return Qwen2VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "vocab_size": vocab,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 96,
            "num_heads": 4,
            "mlp_ratio": 4,
            "hidden_size": hidden,
        },
        tie_word_embeddings=True,
    )


def compare(sizes: dict[str, int], shape: Shape) -> tuple[memory.Work, list[dict]]:
    """The work, and a row a stage: planned and measured bytes, and their ratio."""
    config = config_of(**sizes)
    with tempfile.TemporaryDirectory() as folder:
        work, found = stages.run(config, shape, Path(folder))
    planned = memory.stages(memory.Model.of(config), work)
    rows = [
        {
            "stage": stage,
            "planned": round(size),
            "measured": found[stage]["bytes"],
            "ratio": round(size / found[stage]["bytes"], 3),
        }
        for stage, size in planned.items()
    ]
    return work, rows


def main() -> None:
    rows, cases = [], {}
    for name, (sizes, shape) in tqdm(CASES.items(), desc="cases"):
        work, found = compare(sizes, shape)
        cases[name] = {"sizes": sizes, "shape": asdict(shape), "work": asdict(work)}
        for row in found:
            rows.append({"case": name, **row})
            mib = f"{row['planned'] / 2**20:8.1f} {row['measured'] / 2**20:8.1f}"
            tqdm.write(f"{name:<48}{row['stage']:<12}{mib} MiB {row['ratio']:6.3f}")
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"planned / measured, furthest from 1: {worst}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    record = {
        "device": device,
        "tolerance": TOLERANCE,
        "furthest": worst,
        "rows": rows,
        "cases": cases,
        "environment": records.environment(),
    }
    records.write_json(RECORD, record)


if __name__ == "__main__":
    main()
