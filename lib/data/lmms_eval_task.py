"""SEED-Bench-R1 for lmms-eval, asked and scored as the paper's released code does.

Written by `python -m lib.data harness`; it runs without the kit. Frames and their size
are those of lmms-eval's model: max_num_frames=16 is the paper's number. It stops at a
clip that is missing, which counts as a wrong answer in the kit."""

import re

from PIL import Image


def doc_to_visual(doc: dict) -> list:
    """The clip's path, where there is one, then the still."""
    return [*filter(None, [doc["video"]]), Image.open(doc["image"]).convert("RGB")]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The prompt, word for word."""
    return doc["prompt"]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """1.0 if the first character in the first <answer> is the right option's letter."""
    match = re.search(r"<answer>(.*?)</answer>", results[0], re.DOTALL)
    letter = match[1].strip()[:1] if match else ""
    return {"accuracy": float(letter == doc["gold"])}
