"""Rewards as a weighted sum that changes from stage to stage, written in one line.

Practice in reinforcement learning for video models is to reward the form of an answer
first and its content later, or both with weights (Video-R1, arXiv 2503.21776; DeepSeek-
R1, arXiv 2501.12948, section 2.2.2). SEED-Bench-R1 (arXiv 2503.24376) uses accuracy
alone. In this line the names are those of rewards.REWARDS:

    rewards    = stage { "|" stage }           every stage but the last has an until
    stage      = term { "+" term } [ "until" condition ]
    term       = [ weight ] name               no weight means 1
    condition  = [ name ] mean "over" count [ "or" count "steps" ] | count "steps"

A stage ends when the mean of the named reward (the stage's first, if none is named)
over its last `count` steps is at least `mean`, or after `count` steps at the latest. A
step is one batch of rollouts, and a reward of any stage is measured in all. Example:

    >>> rewards = read_rewards("format until 0.9 over 2 | accuracy + 0.5 consistency")
    >>> list(rewards), rewards.stages[1].weights
    (['format', 'accuracy', 'consistency'], {'accuracy': 1.0, 'consistency': 0.5})
    >>> low, high = {"format": 0.5}, {"format": 0.95}
    >>> rewards.stage_after([low, high]), rewards.stage_after([low, high, high])
    (0, 1)
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lib.train.rewards import REWARDS

COUNT, NUMBER, NAME = r"0*[1-9]\d*", r"\d+(?:\.\d+)?|\.\d+", r"[A-Za-z_]\w*"
TERM = re.compile(rf"(?:({NUMBER})\s+)?({NAME})")
STEPS = re.compile(rf"(?P<steps>{COUNT})\s+steps")
REACHED = re.compile(
    rf"(?:(?P<name>{NAME})\s+)?(?P<mean>{NUMBER})\s+over\s+(?P<over>{COUNT})"
    rf"(?:\s+or\s+{STEPS.pattern})?"
)
ROUNDING = 1e-6  # logged means are of float32: 0.9 there is a little less than 0.9


@dataclass(frozen=True)
class Stage:
    """A weighted sum of rewards, and when the next stage begins: when `reward` has
    reached `mean`, or after `steps`. 0 steps: no limit; neither: never."""

    weights: dict[str, float]
    reward: str = ""
    mean: float = math.inf
    over: int = 1
    steps: int = 0

    def is_over(self, means: Sequence[Mapping[str, float]]) -> bool:
        """Whether it is, behind these steps of it, {name: mean reward} each."""
        if self.steps and len(means) >= self.steps:
            return True
        last = [row[self.reward] for row in means[-self.over :] if self.reward]
        mean = math.fsum(last) / self.over
        return len(last) == self.over and mean >= self.mean - ROUNDING

    def __str__(self) -> str:
        said = " + ".join(
            name if weight == 1 else f"{weight:g} {name}"
            for name, weight in self.weights.items()
        )
        if self.reward:
            said += f" until {self.reward} {self.mean:g} over {self.over}"
        if self.steps:
            said += f" {'or' if self.reward else 'until'} {self.steps} steps"
        return said


@dataclass(frozen=True)
class RewardStages(Mapping[str, Callable]):
    """The functions of all rewards of all stages by name, and the stages."""

    stages: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Callable:
        return {own: REWARDS[own] for own in self}[name]

    def __iter__(self) -> Iterator[str]:
        named = (name for own in self.stages for name in (*own.weights, own.reward))
        return iter(dict.fromkeys(filter(None, named)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))

    def stage_after(self, means: Sequence[Mapping[str, float]]) -> int:
        """Index of the stage that follows these steps, {name: mean reward} each."""
        stage, since = 0, 0
        for done in range(1, len(means) + 1):
            if self.stages[stage].is_over(means[since:done]):
                stage, since = stage + 1, done
        return stage


def read_rewards(line: str) -> RewardStages:
    """The stages of a line; ValueError names the stage and what is wrong in it."""
    parts, stages = line.split("|"), []
    for number, part in enumerate(parts, 1):
        try:
            stages.append(_stage(part, last=number == len(parts)))
        except ValueError as error:
            raise ValueError(f"reward {line!r}, stage {number}: {error}") from None
    return RewardStages(tuple(stages))


def _stage(text: str, last: bool) -> Stage:
    terms, *until = re.split(r"\s+until\b", text, maxsplit=1)
    weights: dict[str, float] = {}
    for term in map(str.strip, terms.split("+")):
        found = TERM.fullmatch(term)
        if found is None:
            raise ValueError(f"{term!r} is no name with a weight, as 0.5 format is")
        if found[2] in weights:
            raise ValueError(f"{found[2]} stands in it twice")
        weights[_known(found[2])] = float(found[1] or 1)
    if last and until:
        raise ValueError("it is the last and has no end; add | and what follows")
    if last:
        return Stage(weights)
    if not until:
        raise ValueError("it never ends; write 'format until 0.9 over 10' or the like")
    condition = until[0].strip()
    if found := STEPS.fullmatch(condition):
        return Stage(weights, steps=int(found["steps"]))
    found = REACHED.fullmatch(condition)
    if not found or not 0 < float(found["mean"]) <= 1:
        raise ValueError(
            f"'until {condition}' is neither 'until 60 steps' nor 'until 0.9 over 10' "
            "nor 'until format 0.9 over 10 or 60 steps', the mean above 0 and up to 1"
        )
    reward = _known(found["name"] or next(iter(weights)))
    reached = (float(found["mean"]), int(found["over"]), int(found["steps"] or 0))
    return Stage(weights, reward, *reached)


def _known(name: str) -> str:
    if name not in REWARDS:
        raise ValueError(f"{name!r} is none of the rewards {', '.join(REWARDS)}")
    return name
