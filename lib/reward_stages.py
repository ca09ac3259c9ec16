"""Rewards as a weighted sum that changes from stage to stage, written in one line.

Practice in reinforcement learning for video models is to reward the form of an answer
first and its content later, or both with weights (Video-R1, arXiv 2503.21776; DeepSeek-
R1, arXiv 2501.12948, section 2.2.2). SEED-Bench-R1 (arXiv 2503.24376) uses accuracy
alone. The line is read by this grammar, in which names are those of rewards.REWARDS:

    rewards    = stage { "|" stage }           every stage but the last has an until
    stage      = term { "+" term } [ "until" condition ]
    term       = [ weight ] name               no weight means 1
    condition  = [ name ] mean "over" count [ "or" count "steps" ] | count "steps"

A stage ends when the mean of the named reward (the stage's first, if none is named)
over its last `count` steps is at least `mean`, or after `count` steps at the latest. A
reward of any stage is measured and logged in all of them. Example:

    >>> rewards = read_rewards("format until 0.9 over 2 | accuracy + 0.5 consistency")
    >>> list(rewards), rewards.stages[1].weights
    (['format', 'accuracy', 'consistency'], {'accuracy': 1.0, 'consistency': 0.5})
    >>> low, high = {"format": 0.5}, {"format": 0.95}
    >>> rewards.stage_after([low, high]), rewards.stage_after([low, high, high])
    (0, 1)

Here a step is one batch of rollouts. The stage is computed from the logged means of all
steps so far, which every checkpoint holds: nothing else has to survive a kill.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lib.rewards import REWARDS

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)(?![\w.])|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign>[+|])|(?P<end>$))"
)
ROUNDING = 1e-6  # logged means are of float32: 0.9 there is a little less than 0.9


@dataclass(frozen=True)
class Condition:
    """When a stage ends; see the module's docstring. `steps` 0: no limit."""

    reward: str = ""
    mean: float = math.inf
    over: int = 1
    steps: int = 0

    def met(self, means: Sequence[Mapping[str, float]]) -> bool:
        """Whether a stage of these steps, {name: mean reward} each, is over."""
        if self.steps and len(means) >= self.steps:
            return True
        if math.isinf(self.mean) or len(means) < self.over:
            return False
        last = [row[self.reward] for row in means[-self.over :]]
        return math.fsum(last) / self.over >= self.mean - ROUNDING

    def __str__(self) -> str:
        if math.isinf(self.mean):
            return f"{self.steps} steps"
        limit = f" or {self.steps} steps" if self.steps else ""
        return f"{self.reward} {self.mean:g} over {self.over}{limit}"


@dataclass(frozen=True)
class Stage:
    """A weighted sum of rewards, and when the next stage begins (None: never)."""

    weights: dict[str, float]
    until: Condition | None = None

    def __str__(self) -> str:
        terms = " + ".join(
            name if weight == 1 else f"{weight:g} {name}"
            for name, weight in self.weights.items()
        )
        return terms if self.until is None else f"{terms} until {self.until}"


@dataclass(frozen=True)
class RewardStages(Mapping[str, Callable]):
    """The functions of all rewards of all stages by name, and the stages."""

    stages: tuple[Stage, ...]

    def _names(self) -> dict[str, None]:
        names: dict[str, None] = {}
        for stage in self.stages:
            names |= dict.fromkeys(stage.weights)
            if stage.until is not None and stage.until.reward:
                names[stage.until.reward] = None
        return names

    def __getitem__(self, name: str) -> Callable:
        if name not in self._names():
            raise KeyError(name)
        return REWARDS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))

    def stage_after(self, means: Sequence[Mapping[str, float]]) -> int:
        """Index of the stage that follows these steps, {name: mean reward} each."""
        stage, since = 0, 0
        for done in range(1, len(means) + 1):
            until = self.stages[stage].until
            if until is not None and until.met(means[since:done]):
                stage, since = stage + 1, done
        return stage


def read_rewards(line: str) -> RewardStages:
    """The stages that a line describes; see the module's docstring for its grammar.

    Raises ValueError that names the position (from 1), what stands there and what can
    stand there.
    """
    return _Reader(line).rewards()


class _Reader:
    """Reads a line from left to right, one token ahead."""

    def __init__(self, line: str):
        self.line, self.at = line, 0
        self._advance()

    def _advance(self) -> None:
        match = TOKEN.match(self.line, self.at)
        if match is None:
            self.start = len(self.line) - len(self.line[self.at :].lstrip())
            self.kind, self.text = "sign", self.line[self.start :].split()[0]
            raise self._wrong("a number, a name, + or |")
        self.kind, self.text = match.lastgroup, match[match.lastgroup]
        self.start, self.at = match.start(match.lastgroup), match.end()

    def _wrong(self, wanted: str) -> ValueError:
        found = repr(self.text) if self.text else "the end"
        return ValueError(
            f"reward {self.line!r}, position {self.start + 1}: {found} stands where "
            f"{wanted} must stand"
        )

    def _take(self, text: str) -> bool:
        taken = self.text == text
        if taken:
            self._advance()
        return taken

    def _number(self) -> float:
        value = float(self.text)
        self._advance()
        return value

    def _count(self) -> int:
        if self.kind != "number" or not self.text.isdecimal() or int(self.text) == 0:
            raise self._wrong("a whole number of steps above 0")
        return int(self._number())

    def _name(self) -> str:
        name = self.text
        if name not in REWARDS:
            raise self._wrong(f"one of the rewards {', '.join(REWARDS)}")
        self._advance()
        return name

    def rewards(self) -> RewardStages:
        """The whole line: stages with a bar between them, an `until` for each but the
        last."""
        stages = [self._stage()]
        while self._take("|"):
            if stages[-1].until is None:
                raise ValueError(
                    f"reward {self.line!r}, position {self.start + 1}: the stage before"
                    " this one never ends; give it a condition, as in "
                    f"'{stages[-1]} until 0.9 over 10'"
                )
            stages.append(self._stage())
        if self.kind != "end":
            raise self._wrong("+, | or until")
        if stages[-1].until is not None:
            raise self._wrong("| and the stage that follows")
        return RewardStages(tuple(stages))

    def _stage(self) -> Stage:
        weights: dict[str, float] = {}
        while not weights or self._take("+"):
            weight = self._number() if self.kind == "number" else 1.0
            if self.text in weights:
                raise self._wrong("a reward that this stage does not hold yet")
            weights[self._name()] = weight
        until = self._condition(next(iter(weights))) if self._take("until") else None
        return Stage(weights, until)

    def _condition(self, first: str) -> Condition:
        named = self._name() if self.kind == "word" else ""
        following = TOKEN.match(self.line, self.at)
        if not named and following and following["word"] == "steps":
            return Condition(steps=self._steps())
        if self.kind != "number" or not 0 < float(self.text) <= 1:
            raise self._wrong("a mean reward above 0 and up to 1")
        mean = self._number()
        if not self._take("over"):
            raise self._wrong("over")
        over = self._count()
        steps = self._steps() if self._take("or") else 0
        return Condition(named or first, mean, over, steps)

    def _steps(self) -> int:
        count = self._count()
        if not self._take("steps"):
            raise self._wrong("steps")
        return count
