"""What a MiniPlan completion says, held against what is true: no judge, no model.

The language of MiniPlan's reasoning (`lib/mini/lessons.py`) has three sentences, and
whatever is not made of them is unreadable:

    I see wash tomato, cut tomato.     the progress; "nothing done"; objects instead of
                                       steps where the question asks for an object
    Next is cook tomato.               the step it comes to, in a planning question
    It is cook tomato.                 the same, in a question about what is shown

That RL reasons less coherently and SFT hallucinates (SEED-Bench-R1, arXiv 2503.24376;
GRPO-CARE, arXiv 2506.16141) is a claim about exactly this: does reasoning lead to the
answer, and does it say what is there?

    >>> check("I see cut tomato. Next is cut tomato.", "B", truth)
    {'progress': 'right', 'next': 'wrong', 'consistent': 'yes', 'follows': 'no',
     'false_step': 'no', 'false_object': 'no'}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.mini.truth import Truth, known
from lib.mini.world import DOMAINS

FIELDS = ("progress", "next", "consistent", "follows", "false_step", "false_object")
NOTHING = "nothing done"
_VERBS = "|".join(verb for domain in DOMAINS.values() for verb in domain["verbs"])
_OBJECTS = "|".join(name for domain in DOMAINS.values() for name in domain["objects"])
_ITEM = rf"(?:(?:{_VERBS}) )?(?:{_OBJECTS})"
_SEEN = rf"I see (?P<seen>{NOTHING}|{_ITEM}(?:, {_ITEM})*)\."
_CHOSEN = rf"(?:Next|It) is (?P<chosen>{_ITEM})\."
_SAID = re.compile(rf"(?:{_SEEN})?(?:(?:(?<=\.) |^){_CHOSEN})?")


@dataclass(frozen=True)
class Statement:
    """What a reasoning says: the steps (or objects) seen and the one it comes to, each
    None where it does not say."""

    seen: tuple[str, ...] | None
    chosen: str | None

    @property
    def named(self) -> tuple[str, ...]:
        """Everything it names."""
        return (*(self.seen or ()), *([self.chosen] if self.chosen else []))


def read(reasoning: str) -> Statement | None:
    """The statement of a reasoning; None where it is not in MiniPlan's language."""
    said = _SAID.fullmatch(reasoning)
    if not reasoning or said is None:
        return None
    seen = said["seen"]
    if seen is not None:
        seen = () if seen == NOTHING else tuple(seen.split(", "))
    return Statement(seen, said["chosen"])


def check(reasoning: str | None, letter: str | None, truth: Truth) -> dict[str, str]:
    """The `FIELDS` of one reasoning and the letter that was answered.

    progress      right, wrong   exactly the steps that were done, in their order (from
                                 a still: in any order), or exactly the two objects
    next          right, wrong   the step it comes to is the right answer
    consistent    yes, no        the option of the letter is the step it comes to
    follows       yes, no        that step follows from the progress as it is stated,
                                 right or not: the plan's first step not in it; where
                                 the question asks what is shown, one of those stated
    false_step    yes, no        it says a step was done that was not
    false_object  yes, no        it names an object that is not in the scene

    Each is "absent" where the reasoning (or the letter) says nothing of the kind, and
    "unreadable" where there is reasoning that `read` cannot read.
    """
    if reasoning is None:
        return dict.fromkeys(FIELDS, "absent")
    said = read(reasoning)
    if said is None:
        return dict.fromkeys(FIELDS, "unreadable")
    option = truth.options["ABCDE".index(letter)] if letter else None
    return {
        "progress": _progress(said, truth),
        "next": _word(said.chosen, said.chosen == truth.answer, "right", "wrong"),
        "consistent": _word(said.chosen and option, said.chosen == option),
        "follows": _word(
            said.chosen and said.seen is not None,
            said.seen is not None and _follows(said, truth),
        ),
        "false_step": _false_step(said, truth),
        "false_object": _word(
            said.named,
            any(item.split()[-1] not in truth.objects for item in said.named),
        ),
    }


def checker(data_dir: str | Path):
    """A function (prediction row, reasoning) -> `FIELDS`; None where no truth is known.

    The function raises ValueError for a row of another question than the folder's.
    """
    truths = known(data_dir)
    if not truths:
        return None

    def exact(row: Mapping, reasoning: str | None) -> dict[str, str]:
        found = truths.get(row["id"])
        gold = found and "ABCDE"[found.options.index(found.answer)]
        if not found or (tuple(row["options"]), row["gold"]) != (found.options, gold):
            raise ValueError(
                f"question {row['id']} was answered with other options than it has in"
                f" {data_dir}: evaluate on this data again"
            )
        return check(reasoning, row["first_letter"], found)

    return exact


def flawless(data_dir: str | Path) -> dict[str, str]:
    """{question id: what a reasoner who sees everything would say, in the teacher's
    words}; empty where no truth is known. So much stands in the training set without
    any memory of it."""
    return {key: _flawless(truth) for key, truth in known(data_dir).items()}


def _flawless(truth: Truth) -> str:
    seen, chosen = truth.seen, "Next" if truth.asks == "next step" else "It"
    if truth.asks == "shown object":
        seen = truth.objects
    return f"I see {', '.join(seen) or NOTHING}. {chosen} is {truth.answer}."


def _progress(said: Statement, truth: Truth) -> str:
    if said.seen is None:
        return "absent"
    true, ordered = truth.seen, not truth.image_only
    if truth.asks == "shown object":
        true, ordered = truth.objects, False
    same = said.seen == true if ordered else sorted(said.seen) == sorted(true)
    return "right" if same else "wrong"


def _follows(said: Statement, truth: Truth) -> bool:
    if truth.asks != "next step":
        return said.chosen in said.seen
    left = [step for step in truth.plan if step not in said.seen]
    return bool(left) and said.chosen == left[0]


def _false_step(said: Statement, truth: Truth) -> str:
    """Steps said to be done; in a question about a shown step its answer is one too."""
    claimed = list(said.seen or ())
    if truth.asks == "shown step" and said.chosen:
        claimed.append(said.chosen)
    steps = [item for item in claimed if " " in item]
    nothing_said = said.seen is None and not steps
    return _word(not nothing_said, any(step not in truth.seen for step in steps))


def _word(said, holds: bool, yes: str = "yes", no: str = "no") -> str:
    return (yes if holds else no) if said else "absent"
