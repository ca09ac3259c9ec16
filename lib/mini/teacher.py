"""Other teachers than the one of training_with_cot: one that knows everything, and bad
ones.

A filter on letters leaves the letter right and says nothing of the reasoning:
`with_shares` makes a share of it false, or leaves out what was seen, and keeps every
letter.

    known = truth.known("outputs/data/miniplan")
    made = demonstrations("truth", recorded, questions, known)
    with_shares(made, known, false=0.3, unseen=0.0, seed=0)"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.data import training_sets
from lib.data.letters import parse_answer
from lib.data.prompts import prompt_text
from lib.data.questions import Demonstration, Question
from lib.mini import lessons
from lib.mini.truth import Truth


def demonstrations(
    by: str,
    recorded: Sequence[Demonstration],
    questions: Sequence[Question],
    truths: Mapping[str, Truth],
) -> list[Demonstration]:
    """Those of the "teacher", as recorded, or of the "truth": for each question what
    happened, the right step and its letter. ValueError where no truth is known."""
    if by == "teacher":
        return list(recorded)
    if by != "truth":
        raise ValueError(f"demonstrations_by = {by!r}: it must be teacher or truth")
    return [
        Demonstration(
            *(q.id, prompt_text(q, "think"), q.video, q.image),
            response=lessons.answer_text(_known(q.id, truths).thought(), q.gold),
        )
        for q in questions
    ]


def with_shares(
    demonstrations: Sequence[Demonstration],
    truths: Mapping[str, Truth],
    false: float,
    unseen: float,
    seed: int,
) -> list[Demonstration]:
    """The same, each with its letter and the right step; of their reasoning the share
    `false` states another moment of the same goal, the share `unseen` states nothing.
    Which they are is drawn by seed and id alone: a larger share holds a smaller one.
    ValueError for shares that cannot be, and where no truth is known."""
    if min(false, unseen) < 0 or false + unseen > 1:
        raise ValueError(
            f"demonstrations_false = {false}, demonstrations_unseen = {unseen}: they "
            "must be 0 or more and at most 1 together"
        )
    count, salt = len(demonstrations), f"teacher/{seed}/"
    wrong = training_sets.first(demonstrations, round(false * count), salt)
    rest = count - round(unseen * count)  # the others of the order are unseen
    looked = training_sets.first(demonstrations, rest, salt)
    found = []
    for item in demonstrations:
        if item.id in wrong:
            rng = random.Random(f"{salt}{item.id}")
            item = _saying(item, _false(_known(item.id, truths), rng))
        elif item.id not in looked:
            e = _known(item.id, truths).episode
            item = _saying(item, lessons.hasty_thought(e, e.answer))
        found.append(item)
    return found


def _saying(item: Demonstration, thought: str) -> Demonstration:
    letter = parse_answer(item.response, "first_letter")
    return replace(item, response=lessons.answer_text(thought, letter))


def _false(known: Truth, rng: random.Random) -> str:
    """What was done at another moment, from which another step would follow; steps that
    have nothing to do with the goal stay. A clip must show something."""
    e = known.episode
    beside = [step for step in e.actions if step not in e.plan]
    least = 0 if beside or e.image_only else 1
    moments = [i for i in range(least, len(e.plan)) if e.plan[i] != e.answer]
    actions = list(e.plan[: rng.choice(moments)])
    for step in beside:
        actions.insert(rng.randint(0, len(actions)), step)
    return replace(known, episode=replace(e, actions=tuple(actions))).thought()


def _known(key: str, truths: Mapping[str, Truth]) -> Truth:
    if key not in truths:
        raise ValueError(
            f"demonstrations about {key} can be made true or false only where it is "
            "known what happened, as in MiniPlan: leave demonstrations_by at teacher, "
            "demonstrations_false and demonstrations_unseen at 0"
        )
    return truths[key]
