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
from lib.doors import Door
from lib.run import memory
from tests.bench import stages

RECORD = paths.ROOT / "outputs" / "reference" / "bench_memory.json"
TOLERANCE = 0.15
SMALL = {"hidden": 256, "inner": 768, "layers": 4, "heads": 4, "kv": 2, "vocab": 4096}
NARROW = {"hidden": 128, "inner": 512, "layers": 8, "heads": 4, "kv": 2, "vocab": 1024}
WIDE = {"hidden": 512, "inner": 2048, "layers": 6, "heads": 8, "kv": 2, "vocab": 8192}
USUAL = {"lora_rank": 8, "lora_alpha": 16.0, "max_frames": 8, "words": 60}
USUAL |= {"frame_height": 112, "frame_width": 112, "response": 100, "sft_batch_size": 1}
USUAL |= {"prompts_per_step": 2, "group_size": 4, "max_completion_tokens": 24}
USUAL |= {"eval_batch_size": 2}
BF16, AGAIN = {"dtype": "bfloat16"}, {"gradient_checkpointing": True}
NF4 = {"quantize": True, **AGAIN}
CASES = {
    "LoRA, float32": (SMALL, {}),
    "LoRA, float32, checkpointing": (SMALL, AGAIN),
    "LoRA, bfloat16": (SMALL, BF16),
    "NF4, float32, checkpointing": (SMALL, NF4),
    "NF4, bfloat16, checkpointing": (SMALL, BF16 | NF4),
    "all weights, float32": (SMALL, {"lora_rank": 0}),
    "all weights, checkpointing": (SMALL, {"lora_rank": 0} | AGAIN),
    "narrow, G = 2, batches of 2": (
        NARROW,
        BF16
        | {"quantize": True, "lora_rank": 4, "words": 300, "sft_batch_size": 2}
        | {"group_size": 2, "max_completion_tokens": 48},
    ),
    "narrow, long rows": (
        NARROW,
        AGAIN
        | {"words": 500, "response": 400, "group_size": 8}
        | {"max_completion_tokens": 50},
    ),
    "wide, G = 8": (
        WIDE,
        BF16
        | NF4
        | {"lora_rank": 16, "frame_height": 140, "frame_width": 140, "max_frames": 10}
        | {"words": 200, "response": 300, "group_size": 8, "max_completion_tokens": 32},
    ),
    "wide, one prompt a backward pass, packs of 400": (
        WIDE,
        BF16
        | NF4
        | {"prompts_per_backward": 1, "pack_tokens": 400, "max_completion_tokens": 32},
    ),
    "accumulated SFT": (SMALL, {"sft_gradient_accumulation": 4} | AGAIN),
}


def config_of(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int
) -> Qwen2VLConfig:
    """A language model of these sizes behind a vision tower of two blocks."""
    half = hidden // heads // 2
    sizes = (hidden, layers, heads, kv, inner, vocab)
    text = dict(zip(memory.TEXT, sizes, strict=True))
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    text |= {"rope_parameters": rope, "bos_token_id": None, "eos_token_id": None}
    vision = {"depth": 2, "embed_dim": 96, "num_heads": 4, "hidden_size": hidden}
    return Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True
    )


def compare(sizes: dict[str, int], changes: dict) -> tuple[memory.Work, list[dict]]:
    """The work, and a row a stage: planned and measured bytes, and their ratio."""
    config, values = config_of(**sizes), stages.values("mini", **USUAL | changes)
    with tempfile.TemporaryDirectory() as folder:
        work, found = stages.run(config, values, Path(folder))
    rows = []
    for stage, planned in memory.stages(memory.Model.of(config), work).items():
        measured = found[stage]["bytes"]
        row = {"stage": stage, "planned": round(planned), "measured": measured}
        rows.append(row | {"ratio": round(planned / measured, 3)})
    return work, rows


def main() -> None:
    rows, cases = [], {}
    for name, (sizes, changes) in tqdm(CASES.items(), desc="cases"):
        work, found = compare(sizes, changes)
        cases[name] = {"sizes": sizes, "work": asdict(work)}
        for row in found:
            rows.append({"case": name, **row})
            mib = f"{row['planned'] / 2**20:8.1f} {row['measured'] / 2**20:8.1f}"
            tqdm.write(f"{name:<48}{row['stage']:<12}{mib} MiB {row['ratio']:6.3f}")
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"planned / measured, furthest from 1: {worst}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    record = {"device": device, "tolerance": TOLERANCE, "furthest": worst}
    record |= {"rows": rows, "cases": cases, "environment": records.environment()}
    records.write_json(RECORD, record)


if __name__ == "__main__":
    Door("python -m tests.bench.memory", __doc__).parse_args()
    main()
