"""What test_two_processes.py trains, once in one process and once in two.

Every run lies in a folder of its own; there process N leaves in weights_N.json the
fingerprint of the weights that it ends with."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lib import records
from lib.model import models
from lib.train import care, checkpoints, grpo, ppo, sft
from tests import trainings
from tests.trainings import GRPO, METHODS, SAMPLING, letters, vowels

# With this seed steps 1 and 3 hold the question without a video and one with a video,
# step 2 the same question twice. Only groups with a video exceed pack_tokens, so that
# the processes of a step need unlike numbers of forward passes.
DRAWN = replace(GRPO, steps=3, kl_beta=0.1, seed=5, pack_tokens=136)
FOUR = replace(DRAWN, prompts_per_step=4)
FIXED = {
    "whole": FOUR,
    "split": replace(FOUR, prompts_per_backward=1, loss_type="dapo"),
}
SFT = replace(trainings.SFT, batch_size=1, gradient_accumulation=2)
# Four of six a step: the second one ends an epoch and begins the next.
UNEVEN = replace(trainings.SFT, steps=3, loss="released")
REWARDS = {"vowels": vowels}


class Fixed:
    """Completions that depend on the prompt and their number in the group alone."""

    def draw(self, seen):
        return [
            [
                self.completion(random.Random(f"{prompt.ids.tolist()}/{number}"))
                for number in range(self.num_generations)
            ]
            for prompt in seen
        ]

    def completion(self, draw) -> list[int]:
        words = draw.choices(range(20, 300), k=draw.randint(1, 5))
        answer = self._tokenizer("<answer>B</answer>")["input_ids"]
        return [*words, *(answer if draw.random() < 0.7 else [])]


class FixedRollouts(Fixed, grpo.VideoGRPOTrainer):
    def completion(self, draw) -> list[int]:
        words = draw.choices(range(20, 300), k=draw.randint(1, 7))
        return [*words, self.eos_token_ids[0]]


class FixedPPO(Fixed, ppo.VideoPPOTrainer):
    pass


class FixedCARE(Fixed, care.VideoCARETrainer):
    pass


COMMON = {"prompts_per_step": 4, "group_size": 2, "kl_beta": 0.1}
MOVING = {"reference_every": 1, "reference_decay": 0.5}
OTHERS = {
    "ppo": (FixedPPO, replace(METHODS["ppo"][0], **COMMON)),
    "care": (FixedCARE, replace(METHODS["care"][0], **COMMON, **MOVING)),
}
DRAWS = replace(GRPO, **COMMON | {"kl_beta": 0.0}, extra_draws=2)


def task_of(checkpoint, questions, settings, run, watched=(), rewards=REWARDS):
    given = (checkpoint, questions, rewards, settings, SAMPLING, run, watched)
    return grpo.Task(*given)


def other_task(name, checkpoint, questions, run: Path, **changes):
    """Of PPO or GRPO-CARE."""
    settings = replace(OTHERS[name][1], **changes)
    given = (checkpoint, questions, settings, run)
    return task_of(*given, rewards=METHODS[name][1])


def train_other(name, *given, **changes) -> None:
    grpo.train(other_task(name, *given, **changes), OTHERS[name][0])


def train_drawn(*given, **named) -> None:
    grpo.train(task_of(*given, **named))


def train_fixed(*given) -> None:
    grpo.train(task_of(*given), FixedRollouts)


def train_sft(checkpoint, demonstrations: Sequence, settings, run: Path) -> None:
    sft.train_sft(sft.Task(checkpoint, demonstrations, settings, SAMPLING, run))


def tell_weights(publish):
    """`publish`, but every process first writes down which weights it has."""

    def wrapped(model, folder, *rest):
        rank = checkpoints.PartialState().process_index
        told = folder.parent.parent / f"weights_{rank}.json"
        records.write_json(told, models.fingerprint(model))
        return publish(model, folder, *rest)

    return wrapped


def main(checkpoint, questions, demonstrations, folder: Path) -> None:
    torch.set_num_threads(1)
    checkpoints.publish = tell_weights(checkpoints.publish)
    train_drawn(checkpoint, questions[:3], DRAWN, folder / "drawn")
    for name, settings in FIXED.items():
        train_fixed(checkpoint, questions, settings, folder / name)
    train_sft(checkpoint, demonstrations, SFT, folder / "sft")
    train_sft(checkpoint, demonstrations[:6], UNEVEN, folder / "uneven")
    for name in OTHERS:
        train_other(name, checkpoint, questions, folder / name)
    accuracy = {"accuracy": letters}
    train_drawn(checkpoint, questions, DRAWS, folder / "draws", rewards=accuracy)
