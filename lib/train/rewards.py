"""Rewards of a completion: text in, a number out (`lib/data/letters.py` reads it).

    >>> completion = "<think>The tap runs.</think><answer>B.</answer>"
    >>> accuracy_reward(completion, "B"), accuracy_reward(completion, "C")
    (1.0, 0.0)
    >>> format_reward(completion), format_reward("B.")
    (1.0, 0.0)

lib/train/reward_stages.py weighs rewards and puts them in order.

Extend it: a further reward is a function and a name. At the end of this file:

    def progress(completion: str, question: Question) -> float:
        # Share of the steps done so far that the reasoning names in their own words.
        reasoning = folded(completion.partition("</think>")[0])
        named = [folded(step) in reasoning for step in question.progress]
        return sum(named) / len(named) if named else 0.0


    REWARDS["progress"] = progress

`-p reward "accuracy + 0.2 progress"` trains with it, and train_log_grpo.jsonl has it as
reward_progress. It has a hole: naming every option pays as well. Try a reward by hand
before you train on it, as 03_grpo does."""

import hashlib
import re
from collections.abc import Callable

from lib.data.letters import FORMAT, THINK, folded, parse_answer
from lib.data.questions import Question


def accuracy_reward(completion: str, gold: str) -> float:
    """1.0 if the completion's letter is `gold`, else 0.0 (the paper's only reward)."""
    if not re.fullmatch("[A-E]", gold):
        raise ValueError(f"gold {gold!r} must be one capital letter from A to E")
    return float(parse_answer(completion, "first_letter") == gold)


def format_reward(completion: str, question: Question | None = None) -> float:
    """1.0 for `<think>...</think><answer>...</answer>`, each once, in this order, with
    nothing but white space outside; else 0.0. Stricter than the released one, which
    also rewards a completion that goes on and on behind its first `</answer>`."""
    return float(FORMAT.fullmatch(completion) is not None)


def consistency_reward(completion: str, question: Question) -> float:
    """1.0 if the answer's letter is the option that the reasoning named last, else 0.0.

    An option is named where its whole text stands as words of its own, with any case
    and white space, and not inside a longer option's text. The reward says nothing
    about being right, and it only reads: a paraphrase, a letter ("so B") and an option
    that is named to be ruled out at the end are not understood.

        "<think>Wash cup is done, so dry cup.</think><answer>B</answer>"    1.0 with
        the options "wash cup", "dry cup"
    """
    options = question.options
    letter = parse_answer(completion, "first_letter", "ABCDE"[: len(options)])
    match = THINK.search(completion)
    reasoning = match.group(1) if match else completion.partition("<answer>")[0]
    plain = [folded(option) for option in options]
    # The longest first, so that an option within a longer one is not found there.
    longest = sorted(filter(None, set(plain)), key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"
    named = re.findall(pattern, folded(reasoning)) if longest else []
    said = bool(named) and letter is not None
    return float(said and plain["ABCDE".index(letter)] == named[-1])


def accuracy(completion: str, question: Question) -> float:
    """`accuracy_reward` of a question."""
    return accuracy_reward(completion, question.gold)


def coin(completion: str, question: Question, rollout: str = "") -> float:
    """1.0 or 0.0 by a toss for this question and rollout ("step/number"), whatever the
    answer is: the null. What it teaches was in the policy, or is noise."""
    tossed = hashlib.sha256(f"coin/{question.id}/{rollout}".encode()).digest()
    return float(tossed[0] % 2)


TOLD_ROLLOUT = (coin,)  # rewards that differ between equal answers
# Functions of the module, which other processes find too.
REWARDS: dict[str, Callable[[str, Question], float]] = {
    "accuracy": accuracy,
    "format": format_reward,
    "consistency": consistency_reward,
    "coin": coin,
}
