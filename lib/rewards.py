"""Rewards of a completion: text in, a letter or a number out.

Two parsing rules, always reported side by side:

* `first_letter`, the paper's (SEED-Bench-R1, https://arxiv.org/abs/2503.24376,
  `grpo.py` and `infer.py` of the released code): the first `<answer>...</answer>`, its
  content stripped, its first character, case and all. No tag means no answer. So
  "Add water" counts as A, while "(A)" and "a." count as nothing.
* `lenient`: what a patient reader would grant; see `parse_answer`.

    >>> completion = "<think>The tap runs.</think><answer>B.</answer>"
    >>> parse_answer(completion, "first_letter"), accuracy_reward(completion, "B")
    ('B', 1.0)
    >>> format_reward(completion), format_reward("B.")
    (1.0, 0.0)

`accuracy`, `well_formed` and `consistent` are rewards as a trainer calls them, with a
completion and its question; lib/reward_stages.py weighs them and puts them in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.questions import Question

RULES = ("first_letter", "lenient")

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)

# Either text between the tags may be anything but another tag of the four.
_NO_TAG = r"(?:(?!</?(?:think|answer)>).)*"
FORMAT = re.compile(
    rf"\s*<think>{_NO_TAG}</think>\s*<answer>{_NO_TAG}</answer>\s*", re.DOTALL
)

# The lenient rule reads through stars, quotes and brackets: **B**, 'B', (B), [B].
MARKS = re.compile(r"[*_\"'`]")
_STATED = r"\b(?:answer|option|choice)\b(?:\s+is\b)?(?:\s+option\b)?\s?:?\s?"
_ALONE = r" ?[)\]}]?[.:!]?"  # ... and nothing after the letter
_BEFORE_TEXT = r"(?:(?: ?[)\]}][.:]?|[.:])\s|\n).*"  # ... or the option's text


def parse_answer(completion: str, rule: str, letters: str = "ABCDE") -> str | None:
    """The option letter a completion gives, or None where it gives none.

    Of several `<answer>` tags the first counts under either rule. Counting any of them
    would pay a policy for listing every letter.

    `lenient` reads the first `<answer>...</answer>`; if there is none, what follows an
    unclosed `<answer>`; if there is none either, the last line. Stars and quotes are
    ignored, case too except in the last form. It accepts
      the letter alone, with or without brackets:           B    (b)    **B**   b.
      the letter, one of . ) : or a line break, any text:   B. take bag   (b) take bag
      either of them after answer, option or choice:        Answer: B    option (B)
      without any tag, a capital letter as the last word:   The tap runs, so I take B.
    and nothing else: "Add water" and "A cup" are no answer, and neither is a text that
    names several letters ("A or B", "A, B, C, D").
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; it must be one of {list(RULES)}")
    read = _first_letter if rule == "first_letter" else _lenient
    return read(completion, letters)


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
    letter = _first_letter(completion, "ABCDE"[: len(options)])
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
    text = _plain(reasoning)
    plain = [_plain(option) for option in options]
    # The longest first, so that an option within a longer one is not found there.
    longest = sorted(filter(None, set(plain)), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest))
    found = re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text) if pattern else []
    return {i for i, option in enumerate(plain) if found and option == found[-1]}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _first_letter(completion: str, letters: str) -> str | None:
    match = ANSWER.search(completion)
    first = match.group(1).strip()[:1] if match else ""
    return first if first and first in letters else None


def _lenient(completion: str, letters: str) -> str | None:
    text, tagged = _answer_text(completion)
    lines = (" ".join(line.split()) for line in MARKS.sub("", text).splitlines())
    text = "\n".join(line for line in lines if line)
    letter = rf"[(\[{{]? ?([{letters}])"
    match = re.fullmatch(
        rf"(?:.*{_STATED})?{letter}(?:{_ALONE}|{_BEFORE_TEXT})",
        text,
        re.DOTALL | re.IGNORECASE,
    )
    if not match and not tagged:
        match = re.fullmatch(rf".*(?<!\S){letter}{_ALONE}", text)
    if not match:
        return None
    found = match.group(1).upper()
    return found if _named(text, letters) <= {found} else None


def _answer_text(completion: str) -> tuple[str, bool]:
    """The text the lenient rule reads, and whether an answer tag led to it."""
    match = ANSWER.search(completion)
    if match:
        return match.group(1).strip(), True
    _, opened, rest = completion.partition("<answer>")
    if opened:
        return rest.strip(), True
    lines = completion.rpartition("</think>")[2].strip().splitlines()
    return (lines[-1].strip() if lines else ""), False


def _named(text: str, letters: str) -> set[str]:
    """Capital letters that stand in `text` as an option and not as a word.

    "A man" holds the article; "A, B", "A or B", "A/B", "A. cup", "(A)" and a letter at
    the end of the text name an option.
    """
    after = r"(?=\s*(?:[.,;:/&|)\]}]|$)|\s+(?:or|and)\s+[(\[{]?[A-Z]\b)"
    return set(re.findall(rf"(?<![\w-])([{letters}]){after}", text))
