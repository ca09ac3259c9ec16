"""Rewards of a completion: text in, a number out (`lib/data/letters.py` reads it).

    >>> completion = "<think>The tap runs.</think><answer>B.</answer>"
    >>> accuracy_reward(completion, "B"), accuracy_reward(completion, "C")
    (1.0, 0.0)
    >>> format_reward(completion), format_reward("B.")
    (1.0, 0.0)

`accuracy`, `well_formed` and `consistent` are rewards as a trainer calls them, with a
completion and its question; lib/train/reward_stages.py weighs them and puts them in
order.

Extend it: a further reward is a function and a name. At the end of this file:

    def progress(completion: str, question: Question) -> float:
        # Share of the steps done so far that the reasoning names in their own words.
        reasoning = folded(_reasoning(completion))
        named = [folded(step) in reasoning for step in question.progress]
        return sum(named) / len(named) if named else 0.0


    REWARDS["progress"] = progress

`-p reward "accuracy + 0.2 progress"` trains with it, and train_log_grpo.jsonl has it as
reward_progress. It has a hole: naming every option pays as well. Try a reward by hand
before you train on it, as 03_grpo does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lib.data.letters import FORMAT, THINK, folded, parse_answer

if TYPE_CHECKING:
    from lib.data.questions import Question


def accuracy_reward(completion: str, gold: str, rule: str = "first_letter") -> float:
    """1.0 if the completion's letter is `gold`, else 0.0 (the paper's only reward)."""
    if not re.fullmatch("[A-E]", gold):
        raise ValueError(f"gold {gold!r} must be one capital letter from A to E")
    return float(parse_answer(completion, rule) == gold)


def format_reward(completion: str) -> float:
    """1.0 for `<think>...</think><answer>...</answer>`, each once, in this order, with
    nothing but white space outside; else 0.0.

    Stricter than the released one, which does not look behind the first `</answer>`
    and so also rewards a completion that goes on and on.
    """
    return float(FORMAT.fullmatch(completion) is not None)


def consistency_reward(completion: str, options: Sequence[str]) -> float:
    """1.0 if the answer's letter is the option that the reasoning named last, else 0.0.

    The reasoning is the text of the first `<think>...</think>`; without one, what
    stands before the first `<answer>`. An option is named where its whole text stands
    as words of its own, with any case and white space; inside a longer option's text it
    is not. The answer's letter is that of `parse_answer(completion, "first_letter")`.

        >>> options = ("wash cup", "dry cup")
        >>> consistency_reward("<think>Wash cup is done, so dry cup.</think>"
        ...                    "<answer>B</answer>", options)
        1.0
        >>> consistency_reward("<think>Next is wash cup.</think>"
        ...                    "<answer>B</answer>", options)
        0.0

    It says nothing about being right: a wrong answer can follow from its reasoning. And
    it only reads: a paraphrase ("dry the cup"), a letter ("so B") and an option that is
    named to be ruled out at the end ("..., not wash cup") are not understood, so 0.0
    may also mean that no option was named in its own words.
    """
    letter = parse_answer(completion, "first_letter", "ABCDE"[: len(options)])
    named = _last_named(_reasoning(completion), options)
    return float(letter is not None and "ABCDE".index(letter) in named)


def accuracy(completion: str, question: Question) -> float:
    """`accuracy_reward` under the paper's rule."""
    return accuracy_reward(completion, question.gold)


def well_formed(completion: str, question: Question) -> float:
    """`format_reward`."""
    return format_reward(completion)


def consistent(completion: str, question: Question) -> float:
    """`consistency_reward` for the question's options."""
    return consistency_reward(completion, question.options)


# Functions of the module, so that they can be sent to other processes.
REWARDS: dict[str, Callable[[str, Question], float]] = {
    "accuracy": accuracy,
    "format": well_formed,
    "consistency": consistent,
}


def _reasoning(completion: str) -> str:
    match = THINK.search(completion)
    return match.group(1) if match else completion.partition("<answer>")[0]


def _last_named(reasoning: str, options: Sequence[str]) -> set[int]:
    """Indices of the options whose text is the last option text in `reasoning`."""
    text = folded(reasoning)
    plain = [folded(option) for option in options]
    # The longest first, so that an option within a longer one is not found there.
    longest = sorted(filter(None, set(plain)), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest))
    found = re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text) if pattern else []
    return {i for i, option in enumerate(plain) if found and option == found[-1]}
