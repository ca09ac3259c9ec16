"""Groups that are watched over training: the same questions, again and again.

A reward curve says that a policy changed, not how. Here a few questions that are not
trained on are answered by a group of rollouts at step 0, at every checkpoint and at the
last step, with rewards and advantages as training would give them, so that a reader
sees what the policy does differently. It is a look, not an influence: random states,
model and optimizer are left as they were, and what is trained is the same to the last
bit. run/watched_<method>.jsonl holds one row for every step and question:

    {"step": 25, "question_id": "training/12", "prompt": "...", "gold": "B",
     "options": ["wash tomato", ...], "rollouts": [
         {"text": "<think>...</think><answer>B</answer>",
          "rewards": {"accuracy": 1.0}, "reward": 1.0, "advantage": 0.87,
          "tokens": 31, "truncated": false}, ...]}

`rewards` are as measured, `reward` is their weighted sum in the stage that the next
batch is in (lib/train/reward_stages.py), `advantage` is null where no group decides it
(PPO).

The randomness of a group follows from seed, step and question alone. A resumed run
therefore drops the rows from its checkpoint on and draws them again, and a kill at any
moment neither loses a row nor leaves it twice.

    grpo.train(Task(..., run, watched=held[:2]))
    rows = records.read_jsonl(watched_path(run, "grpo"))
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lib import records
from lib.data.questions import Question
from lib.model import prefix
from lib.train import progress
from lib.train.task import dataset_row

# isort: split
from transformers import TrainerCallback


def watched_path(run: str | Path, label: str) -> Path:
    """Where the watched groups of a method are recorded."""
    return Path(run) / f"watched_{label}.jsonl"


class WatchGroups(TrainerCallback):
    """Records a group of each question at the start and at every checkpoint.

    `trainer` is a grpo.VideoGRPOTrainer. The last step is always a checkpoint. Raises
    BadVideo for unusable media.
    """

    def __init__(self, trainer, questions: Sequence[Question], path: Path):
        self.trainer, self.questions, self.path = trainer, questions, path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            progress.cut_back(self.path, state.global_step - 1)
        self.look(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.look(state.global_step)

    def look(self, step: int) -> None:
        """Draw all groups; every process does, because split weights need them all."""
        if not self.questions:
            return
        rows = [self._row(step, question) for question in self.questions]
        totals = [[own["reward"] for own in row["rollouts"]] for row in rows]
        for row, compared in zip(rows, self.trainer.compared(totals), strict=True):
            for own, advantage in zip(row["rollouts"], compared, strict=True):
                own["advantage"] = advantage
        if self.trainer.accelerator.is_main_process:
            records.append_jsonl(self.path, rows)

    def _row(self, step: int, question: Question) -> dict:
        with own_randomness(seed_of(self.trainer.settings.seed, step, question.id)):
            prompt = self.trainer.read_prompt(question)
            group = draw(self.trainer, prompt)
            scored = self.trainer.score(question, prompt, group)
        ends = set(self.trainer.eos_token_ids)
        columns = (scored["texts"], scored["rewards"], scored["total"], group)
        return {
            "step": step,
            "question_id": question.id,
            "prompt": dataset_row(question)["prompt"],
            "gold": question.gold,
            "options": list(question.options),
            "rollouts": [
                {
                    "text": text,
                    "rewards": rewards,
                    "reward": total,
                    "advantage": None,  # `look` compares whole groups
                    "tokens": len(tokens),
                    "truncated": tokens[-1] not in ends,
                }
                for text, rewards, total, tokens in zip(*columns, strict=True)
            ],
        }


def draw(trainer, prompt: prefix.Prompt) -> list[list[int]]:
    """A group as the trainer would draw it now, as token ids."""
    with trainer.gathered():
        seen = prefix.with_features(trainer.model, [prompt])
        return trainer.draw(seen)[0]


def seed_of(seed: int, step: int, question_id: str) -> int:
    """The seed of a group, the same whenever it is drawn."""
    return random.Random(f"{seed}/watched/{step}/{question_id}").getrandbits(63)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Inside, torch is seeded; outside, python, numpy and torch go on as if never."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
