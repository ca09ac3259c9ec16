"""Dynamic sampling: groups that teach nothing are drawn anew, by other questions.

A group whose rewards are all equal has no advantage (lib/grpo.py), and late in training
many are so. DAPO (arXiv 2503.14476, section 3.2) draws until a batch holds none; here
the number of draws is bounded by `extra_draws`, and a group that is still dead then
stays. What was replaced is recorded in replaced_rollouts.jsonl. TRL 1.16 has no such
setting.

Example: two groups have rewards 1, 1, 1, 1 and 1, 0, 0, 1. The first is dead; in its
place a group of a further question is drawn, 0, 1, 1, 0 say, and the step learns from
both.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from lib import records, shared_prefix
from lib.shared_prefix import Prompt

# isort: split
from accelerate.utils import gather_object


def is_dead(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards are all equal, so that nothing is learned from it."""
    return min(rewards) == max(rewards)


def replaced_path(rollout_path: Path) -> Path:
    """Where the rollouts of groups that dynamic sampling replaced are recorded."""
    return rollout_path.with_name(f"replaced_{rollout_path.name}")


class DynamicSampling:
    """Mixin, left of a VideoGRPOTrainer's bases: draws in place of dead groups."""

    def replace_dead_groups(self, names: list[str], prompts: list[Prompt]):
        """Put groups of other questions in the place of drawn ones that are dead.

        Takes and returns the question and the prompt of each group; the completions are
        those the trainer has drawn.
        """
        groups, replaced = self._drawn, []
        for draw in range(self.settings.extra_draws):
            asked = [self.questions[name] for name in names]
            drawn = zip(asked, prompts, groups, strict=True)
            scored = [self.score(*group) for group in drawn]
            dead = [i for i, scores in enumerate(scored) if is_dead(scores["total"])]
            further = self._further_questions(names, draw)[: len(dead)]
            if not further:
                break
            dead = dead[: len(further)]
            for i in dead:
                replaced += self._replaced_rows(names[i], groups[i], scored[i], draw)
            own = [self.read_prompt(self.questions[name]) for name in further]
            seen = shared_prefix.with_features(self.model, own)
            for i, *new in zip(dead, further, own, seen, self._draw(seen), strict=True):
                names[i], prompts[i], self._seen[i], groups[i] = new
        replaced = gather_object(replaced)
        count = len(replaced) / self.num_generations
        self._metrics["train"]["replaced_groups"].append(count)
        if self.accelerator.is_main_process and replaced:
            records.append_jsonl(replaced_path(self.rollout_path), replaced)
        return names, prompts

    def _further_questions(self, names: Sequence[str], draw: int) -> list[str]:
        """Questions for a draw: the step decides them, so that a resumed run agrees."""
        told = f"{self.settings.seed}/draw/{self.state.global_step}/{draw}"
        order = random.Random(told).sample(list(self.questions), len(self.questions))
        # Each process has its own share, so that no two draw the same question.
        process = self.accelerator
        own = order[process.process_index :: process.num_processes]
        return [name for name in own if name not in names]

    def _replaced_rows(self, name, group, scored, draw) -> list[dict]:
        rows = self._rows([name] * len(group), scored["texts"], group)
        return [
            {**row, "rewards": own, "draw": draw}
            for row, own in zip(rows, scored["rewards"], strict=True)
        ]
