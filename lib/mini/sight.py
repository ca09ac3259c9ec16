"""Vision first: every visual token learns to speak the words for what lies in it.

Trained on captions alone, a model this small stays blind for over a thousand steps:
nothing tells it where to look. So, as CLIP does for Qwen2-VL's tower, each merged
visual token (28 x 28 pixels, two frames) is first taught by itself: read through the
language model's own output head it must name the object and the lasting effects in
its cell. Reading them off afterwards is easy for the language model.
"""

import random

import numpy as np

from lib import prompts
from lib.mini import lessons, world
from lib.mini.world import DOMAINS, EFFECTS
from lib.model import encoding

import torch  # isort: skip
import torch.nn.functional as F

WORDS = tuple(w for d in DOMAINS.values() for w in d["objects"] + d["verbs"])
_CELL, _MARGIN = 28, 3  # pixels; an object belongs to a cell its centre (nearly) is in
_ABSENT = -3.0  # logit offset: most words are absent from most cells


def word_grid(episode: world.Episode, frames: list[int]) -> np.ndarray:
    """Which words belong to each cell of each frame: float32 [frames, 2, 4, words]."""
    rows, columns = world.HEIGHT // _CELL, world.WIDTH // _CELL
    grid = np.zeros((len(frames), rows, columns, len(WORDS)), np.float32)
    verbs = DOMAINS[episode.domain]["verbs"]
    for i, frame in enumerate(frames):
        state = world.effects_at(episode, frame)
        for item in (0, 1):
            x, y = world.place(episode, state, item, frame)
            words = [episode.name(item)]
            words += [verbs[e] for e in range(len(EFFECTS)) if state[item, e]]
            for row in range(rows):
                for column in range(columns):
                    if _inside(x, column) and _inside(y, row):
                        for word in words:
                            grid[i, row, column, WORDS.index(word)] = 1
    return grid


def _inside(position: int, cell: int) -> bool:
    return cell * _CELL - _MARGIN <= position < (cell + 1) * _CELL + _MARGIN


def batch(processor, rng: random.Random, size: int) -> dict[str, torch.Tensor]:
    """Clips as model inputs, with `words` [visual tokens, 40] to speak."""
    conversations, words = [], []
    for _ in range(size):
        episode = lessons.any_episode(rng)
        frames, _ = lessons.look(rng, episode, image_only=False, still=False)
        shown = lessons.sampled(episode)[1::2]  # the later frame of every pair
        conversations.append(prompts.messages("", frames, None))
        words.append(word_grid(episode, shown).reshape(-1, len(WORDS)))
    inputs = encoding.encode(processor, conversations)
    return {
        "pixel_values_videos": inputs["pixel_values_videos"],
        "video_grid_thw": inputs["video_grid_thw"],
        "words": torch.tensor(np.concatenate(words)),
    }


def loss(model, processor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Binary cross-entropy of the words each visual token speaks."""
    seen = model.model.get_video_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"]
    ).pooler_output
    hidden = model.model.language_model.norm(torch.cat(tuple(seen)))
    ids = [processor.tokenizer.encode(f" {word}") for word in WORDS]
    logits = hidden @ model.get_output_embeddings().weight[torch.tensor(ids)[:, 0]].T
    weight = torch.tensor(4.0)
    return F.binary_cross_entropy_with_logits(
        logits + _ABSENT, inputs["words"], pos_weight=weight
    )
