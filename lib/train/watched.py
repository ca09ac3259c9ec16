"""Groups that are watched over training: the same questions, again and again.

A reward curve says that a policy changed, not how. Here a few questions that are not
trained on are answered at step 0, at every checkpoint and at the last step, with
rewards and advantages as training would give them. It is a look, not an influence: what
is trained is the same to the last bit. run/watched_<method>.jsonl holds one row for
every step and question:

    {"step": 25, "question_id": "training/12", "prompt": "...", "gold": "B",
     "options": ["wash tomato", ...], "rollouts": [
         {"text": "<think>...</think><answer>B</answer>",
          "rewards": {"accuracy": 1.0}, "reward": 1.0, "advantage": 0.87,
          "tokens": 31, "truncated": false}, ...]}

`reward` is the weighted sum of `rewards` in the stage that the next batch is in,
`advantage` is null where no group decides it (PPO). A group's randomness follows from
seed, step and question alone, so a resumed run drops the rows from its checkpoint on
and draws the same again."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lib import records
from lib.data.questions import Question
from lib.train import monitor, progress
from lib.train.task import dataset_row

# isort: split
from transformers import TrainerCallback


def watched_path(run: Path, label: str) -> Path:
    """Where the watched groups of a method are recorded."""
    return run / f"watched_{label}.jsonl"


class WatchGroups(TrainerCallback):
    """Records the groups; `trainer` is a grpo.VideoGRPOTrainer. Raises BadVideo."""

    def __init__(self, trainer, questions: Sequence[Question], path: Path):
        self.trainer, self.questions, self.path = trainer, questions, path

    def on_train_begin(self, args, state, control, **kwargs):
        """Look, after the rows that a resumed training draws again have gone."""
        if state.is_world_process_zero:
            progress.cut_back(self.path, state.global_step - 1)
        self.look(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        """Look; the last step is saved, too."""
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
            monitor.tell(self.trainer, dict(map(_told, rows)))

    def _row(self, step: int, question: Question) -> dict:
        trainer = self.trainer
        seed = f"{trainer.settings.seed}/watched/{step}/{question.id}"
        with own_randomness(random.Random(seed).getrandbits(63)):
            with trainer.gathered():
                (group,) = trainer.drawn([question])
            trainer.add_rewards([group])
        return {
            "step": step,
            "question_id": question.id,
            "prompt": dataset_row(question)["prompt"],
            "gold": question.gold,
            "options": list(question.options),
            "rollouts": [  # `look` compares whole groups
                {"text": own["text"], "rewards": own["rewards"], "reward": total}
                | {"advantage": None, **{k: own[k] for k in ("tokens", "truncated")}}
                for own, total in zip(group.rows, group.totals, strict=True)
            ],
        }


def _told(row: dict) -> tuple[str, str]:
    """A group's name, and its rollouts as Markdown: advantage, reward, text."""
    told = [
        f"    {own['advantage']} {own['reward']} {own['text']}".replace("\n", "\n    ")
        for own in row["rollouts"]
    ]
    return f"watched/{row['question_id']}", "\n\n".join([row["prompt"], *told])


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
