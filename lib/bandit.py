"""GRPO on a policy so small that every part of it can be seen.

The policy chooses among four ways to answer a multiple-choice question, by a softmax
over four numbers; a way then writes a whole answer with a letter in it. It is trained
by the update of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1; as released with
SEED-Bench-R1, grpo_trainer.py:528-539): G answers to one question are drawn, each gets
its reward, and those that did better than their group become more likely. With one
update on a group every ratio is 1 and nothing is clipped; there is no KL term.

The rule is the only thing that differs between two trainings, so what a rule rewards
can be watched:

    >>> from lib import rewards
    >>> shares = train(rewards.accuracy_reward)  # [steps + 1, ways]
    >>> WAYS[shares[-1].argmax()].name
    'looks first'

How often a way finds the right letter is made up (`Way.right`); it stands for what a
model sees. Nothing here is a result about a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = "ABCD"
EPSILON = 1e-4  # keeps an advantage finite where all rewards are nearly equal


@dataclass(frozen=True)
class Way:
    """A way to answer; `text` has a place for the {letter} if it gives one."""

    name: str
    text: str
    share: float  # of the untrained policy's answers
    right: float = 0.0  # how often its letter is the right one


WAYS = (
    Way(
        "looks first",
        "<think>I see what was done.</think><answer>{letter}</answer>",
        share=0.25,
        right=0.7,
    ),
    Way("hasty letter", "<answer>{letter}</answer>", share=0.5, right=0.4),
    Way("no tag", "I would take {letter}.", share=0.2, right=0.7),
    Way(
        "all four letters",
        "".join(f"<answer>{letter}</answer>" for letter in LETTERS),
        share=0.05,
    ),
)


def advantages(rewards: np.ndarray | Sequence) -> np.ndarray:
    """(r - mean) / (std + 0.0001) within groups: [..., G] rewards, as many advantages.

    The standard deviation has one degree of freedom less. A group of one has nobody to
    be compared with and no spread: its advantage is 0.

        >>> advantages([1, 0, 0, 1]).round(3).tolist()
        [0.866, -0.866, -0.866, 0.866]
    """
    rewards = np.asarray(rewards, float)
    size = rewards.shape[-1]
    difference = rewards - rewards.mean(-1, keepdims=True)
    spread = np.sqrt((difference**2).sum(-1, keepdims=True) / max(1, size - 1))
    return difference / (spread + EPSILON)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def objective(logits: np.ndarray, drawn: np.ndarray, gains: np.ndarray) -> float:
    """Mean of A_i log p(way i) over the rollouts: what one step of GRPO raises.

    `logits` [K]; `drawn` [N], the ways that were drawn; `gains` [N], their advantages.
    """
    return float((gains * np.log(probabilities(logits))[drawn]).mean())


def gradient(logits: np.ndarray, drawn: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[K], the gradient of `objective` by the logits: mean of A_i (onehot_i - p)."""
    chosen = np.eye(len(logits))[drawn]
    return (gains[:, None] * (chosen - probabilities(logits))).mean(0)


def write(way: Way, gold: str, rng: np.random.Generator) -> str:
    """An answer of this way to a question whose right letter is `gold`."""
    wrong = [letter for letter in LETTERS if letter != gold]
    letter = gold if rng.random() < way.right else str(rng.choice(wrong))
    return way.text.format(letter=letter)


def train(
    rule: Callable[[str, str], float],
    steps: int = 150,
    questions: int = 8,
    group_size: int = 8,
    lr: float = 0.5,
    seed: int = 0,
) -> np.ndarray:
    """Share of each way before every step and after the last: [steps + 1, K].

    `rule(completion, gold)` is the reward. A step draws `group_size` answers to each of
    `questions` questions, compares every answer with its group, and goes up the mean
    gradient. The same seed gives the same shares.
    """
    rng = np.random.default_rng(seed)
    logits = np.log([way.share for way in WAYS])
    shares = [probabilities(logits)]
    for _ in range(steps):
        drawn = rng.choice(len(WAYS), (questions, group_size), p=shares[-1])
        golds = rng.choice(list(LETTERS), questions)
        scores = [
            [rule(write(WAYS[way], gold, rng), gold) for way in group]
            for gold, group in zip(golds.tolist(), drawn, strict=True)
        ]
        gains = advantages(scores)
        logits = logits + lr * gradient(logits, drawn.ravel(), gains.ravel())
        shares.append(probabilities(logits))
    return np.array(shares)
