"""Qwen2-VL checkpoints of any size with random weights, and questions for them.

For benchmarks, where the values of the weights do not matter and their sizes do. They
are written as transformers initializes them, and the real loading code reads them.
Tokenizer and processor are those of lib/mini/base: every id of theirs is below the
vocabulary of a larger model.

    config = memory.config_of("Qwen/Qwen2-VL-7B-Instruct")
    write_checkpoint(folder, config)                   # 16.6 GB on disk
    questions = write_questions(folder / "media", 8, Sampling(), words=62)
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from lib import records
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.model import models
from tests.made_films import blocks, write_film

BASE = models.paths.ROOT / "lib" / "mini" / "base"


def write_checkpoint(folder: Path, config, dtype: str = "bfloat16") -> Path:
    """A folder that `models.load_model` and `models.load_processor` read. A GPU draws
    7B's values in seconds, a CPU in minutes."""
    mini = records.read_json(BASE / "config.json")
    for kind in ("image", "video", "vision_start", "vision_end"):
        setattr(config, f"{kind}_token_id", mini[f"{kind}_token_id"])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, mini["text_config"][name])
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="1GB")
    own = shutil.ignore_patterns("config.json", "model.safetensors", "manifest.json")
    shutil.copytree(BASE, folder, ignore=own, dirs_exist_ok=True)
    return folder


def write_questions(
    folder: Path, count: int, sampling: Sampling, words: int
) -> list[Question]:
    """Questions with a clip and a still, of which the sampling takes every pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, size = np.random.default_rng(0), (sampling.height, sampling.width)
    questions = []
    for number in range(count):
        video, image = folder / f"{number}.mp4", folder / f"{number}.png"
        clip = [blocks(rng, *size) for _ in range(sampling.max_frames)]
        write_film(video, clip, fps=2)
        Image.fromarray(blocks(rng, *size)).save(image)
        questions.append(
            Question(
                id=f"training/{number}",
                level="training",
                text="what next? " + "wash " * words,
                options=("open", "cut", "wash", "stir"),
                gold="ABCD"[number % 4],
                answer="open",
                video=video,
                image=image,
            )
        )
    return questions
