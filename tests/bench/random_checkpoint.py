"""Qwen2-VL checkpoints of any size with random weights, and questions for them.

For benchmarks, where the values of the weights do not matter and their sizes do. A
checkpoint is written tensor by tensor, so that not even a 7B model is ever held whole;
the real loading code then reads it. Tokenizer and processor are those of lib/mini/base:
every id of theirs is below the vocabulary of a larger model.

    config = memory.config_of("Qwen/Qwen2-VL-7B-Instruct")
    write_checkpoint(folder, config)                   # 16.6 GB on disk
    questions = write_questions(folder / "media", 8, Sampling(), words=62)
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from lib import records
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.model import models
from tests.made_films import blocks, write_film

BASE = models.paths.ROOT / "lib" / "mini" / "base"
SHARD_BYTES = 2**30
TOKENS = ("image_token_id", "video_token_id")
MARKS = ("vision_start_token_id", "vision_end_token_id")


def write_checkpoint(folder: Path, config, dtype: str = "bfloat16") -> Path:
    """A folder that `models.load_model` and `models.load_processor` read."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in BASE.iterdir():
        if file.name not in ("config.json", "model.safetensors", "manifest.json"):
            shutil.copy(file, folder)
    mini = records.read_json(BASE / "config.json")
    for name in (*TOKENS, *MARKS):
        setattr(config, name, mini[name])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, mini["text_config"][name])
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(folder)
    write_weights(folder, config, getattr(torch, dtype))
    return folder


def write_weights(folder: Path, config, dtype: torch.dtype) -> None:
    """Normal values of the usual size in matrices, ones in norms, zeros in biases."""
    # a GPU draws 7B's values in seconds, a CPU in minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    shard, held, where = {}, 0, {}

    def flush() -> None:
        file = f"model-{len(set(where.values())):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in shapes.items():
        value = float("norm" in name or "ln_q" in name)
        tensor = torch.full(shape, value, dtype=dtype, device=device)
        if len(shape) > 1:
            tensor.normal_(0, 0.02, generator=generator)
        elif name.endswith("bias"):
            tensor.zero_()
        shard[name], held = tensor, held + tensor.nbytes
        if held > SHARD_BYTES:
            flush()
            held = 0
    flush()
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    records.write_json(folder / "model.safetensors.index.json", index)


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
