"""What a MiniPlan completion says, held against what is true: no judge, no model.

The language of MiniPlan's reasoning (`lib/mini/lessons.py`) has two sentences, and
whatever is not made of them is unreadable:

    I see wash tomato, tie carrot: one done.    the progress ("nothing"; objects where
                                                the question asks for an object), and
                                                how many steps of the goal it holds
    Next is cook tomato.                        the step it comes to; "It is ..." where
                                                the question asks what is shown

The teacher says "I see in my current observation ..." and "Next action is ...".

That RL reasons less coherently and SFT hallucinates (SEED-Bench-R1, arXiv 2503.24376;
GRPO-CARE, arXiv 2506.16141) is a claim about exactly this: does reasoning lead to the
answer, and does it say what is there?

    >>> check("I see cut tomato: one done. Next is cut tomato.", "B", truth)
    {'progress': 'right', 'count': 'right', 'next': 'wrong', 'consistent': 'yes',
     'follows': 'no', 'false_step': 'no', 'false_object': 'no'}"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lib.data.letters import THINK
from lib.data.questions import Demonstration
from lib.methods import EXACT
from lib.mini.lessons import NOTHING, NUMBERS, TEACHERS
from lib.mini.truth import Truth, known
from lib.mini.world import DOMAINS

RIGHT = {True: "right", False: "wrong"}
YES = {True: "yes", False: "no"}
_VERBS = "|".join(verb for domain in DOMAINS.values() for verb in domain["verbs"])
_OBJECTS = "|".join(name for domain in DOMAINS.values() for name in domain["objects"])
_ITEM = rf"(?:(?:{_VERBS}) )?(?:{_OBJECTS})"
_STATED = rf"(?P<seen>{NOTHING}|{_ITEM}(?:, {_ITEM})*)"
_SEEN = rf"I see (?:{TEACHERS} )?{_STATED}(?:: (?P<count>{'|'.join(NUMBERS)}) done)?\."
_CHOSEN = rf"(?:Next|Next action|It) is (?P<chosen>{_ITEM})\."
_SAID = re.compile(rf"(?:{_SEEN})?(?:(?:(?<=\.) |^){_CHOSEN})?")


class Statement(NamedTuple):
    """What a reasoning says: the steps (or objects) seen, how many of them the goal
    has, and the one it comes to, each None where it does not say."""

    seen: tuple[str, ...] | None
    count: int | None
    chosen: str | None


def read(reasoning: str) -> Statement | None:
    """The statement of a reasoning; None where it is not in MiniPlan's language."""
    said = _SAID.fullmatch(reasoning)
    if not reasoning or said is None:
        return None
    seen = said["seen"]
    if seen is not None:
        seen = () if seen == NOTHING else tuple(seen.split(", "))
    count = said["count"] and NUMBERS.index(said["count"])
    return Statement(seen, count, said["chosen"])


def check(reasoning: str | None, letter: str | None, truth: Truth) -> dict[str, str]:
    """The `EXACT` of one reasoning and the letter that was answered.

    progress      right, wrong   exactly the steps that were done, in their order (from
                                 a still: in any order), or exactly the two objects
    count         right, wrong   so many of the steps that it states, true or not, are
                                 steps of the goal
    next          right, wrong   the step it comes to is the right answer
    consistent    yes, no        the option of the letter is the step it comes to
    follows       yes, no        that step follows from what is stated, right or not:
                                 the plan's step behind as many as were counted, or,
                                 without a count, the first that was not seen; where the
                                 question asks what is shown, one of those stated, and
                                 the last where it asks for the last
    false_step    yes, no        it says a step was done that was not
    false_object  yes, no        it names an object that is not in the scene

    Each is "absent" where the reasoning (or the letter) says nothing of the kind, and
    "unreadable" where there is reasoning that `read` cannot read."""
    if reasoning is None:
        return dict.fromkeys(EXACT, "absent")
    said = read(reasoning)
    if said is None:
        return dict.fromkeys(EXACT, "unreadable")
    seen, count, chosen = said
    stated, named = seen or (), [*(seen or ()), *([chosen] if chosen else [])]
    option = truth.options["ABCDE".index(letter)] if letter else None
    # In a question about a shown step the answer is said to be done, too.
    claimed = named if truth.asks in ("shown step", "last step") else stated
    steps = [item for item in claimed if " " in item]
    found = dict.fromkeys(EXACT, "absent")
    if seen is not None:
        found["progress"] = RIGHT[_is_progress(seen, truth)]
    if count is not None:
        found["count"] = RIGHT[count == len(set(truth.plan) & set(seen))]
    if chosen:
        found["next"] = RIGHT[chosen == truth.answer]
    if chosen and option:
        found["consistent"] = YES[chosen == option]
    if chosen and seen is not None:
        found["follows"] = YES[_follows(said, truth)]
    if seen is not None or steps:
        found["false_step"] = YES[not set(steps) <= set(truth.seen)]
    if named:
        nouns = {item.split()[-1] for item in named}
        found["false_object"] = YES[not nouns <= set(truth.objects)]
    return found


def _is_progress(seen: tuple[str, ...], truth: Truth) -> bool:
    if truth.asks == "shown object":
        return sorted(seen) == sorted(truth.objects)
    if truth.episode.image_only:
        return sorted(seen) == sorted(truth.seen)
    return seen == truth.seen


def _follows(said: Statement, truth: Truth) -> bool:
    if truth.asks == "last step":
        return said.seen[-1:] == (said.chosen,)
    if truth.asks != "next step":
        return said.chosen in said.seen
    left = [step for step in truth.plan if step not in said.seen]
    if said.count is not None:
        left = truth.plan[said.count :]
    return bool(left) and said.chosen == left[0]


def checker(data_dir: str | Path) -> Callable | None:
    """A function (prediction row, reasoning) -> `EXACT`, for other processes too; None
    where no truth is known. It raises ValueError for a row of another question than the
    folder's."""
    return partial(_exact, data_dir) if known(data_dir) else None


def _exact(data_dir: str | Path, row: Mapping, reasoning: str | None) -> dict[str, str]:
    found = known(data_dir).get(row["id"])
    gold = found and "ABCDE"[found.options.index(found.answer)]
    if not found or (tuple(row["options"]), row["gold"]) != (found.options, gold):
        raise ValueError(
            f"question {row['id']} was answered with other options than it has in"
            f" {data_dir}: evaluate on this data again"
        )
    return check(reasoning, row["first_letter"], found)


def flawless(data_dir: str | Path) -> dict[str, str]:
    """{question id: what a reasoner who sees everything would say, in the teacher's
    words}; empty where no truth is known. So much stands in the training set without
    any memory of it."""
    found = {}
    for key, truth in known(data_dir).items():
        seen = truth.objects if truth.asks == "shown object" else truth.seen
        found[key] = f"I see {', '.join(seen)}. It is {truth.answer}."
        if truth.asks == "next step":
            found[key] = truth.thought()
    return found


def stated(
    demonstrations: Iterable[Demonstration], data_dir: str | Path
) -> dict[str, float]:
    """{"right", "wrong", "absent": share} of what demonstrations say was done; empty
    where no truth is known."""
    truths, found = known(data_dir), Counter()
    for item in demonstrations if truths else ():
        thought = THINK.search(item.response)
        said = check(thought and thought[1], None, truths[item.id])
        found[said["progress"]] += 1
    return {way: found[way] / found.total() for way in sorted(found)}
