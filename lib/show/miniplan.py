"""MiniPlan in one picture: the mark that each step leaves, then three questions with
the way to their answers. `view()` is the last value of a cell; README has it as
miniplan.png and miniplan_phone.png (tests/bench/screens.py)."""

import random
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
from markupsafe import Markup

from lib.mini import lessons, world
from lib.mini.world import DOMAINS, Episode, Step
from lib.show import pages

PLACE = 10  # an environment with a plain grey wall
HALF = 17  # pixels of a scene on either side of an object that is shown alone
MARKS = ("ring", "split", "dark", "dots", "strap", "on tray")
STEPS = (
    "Six steps, always in this order. Each leaves a mark. The pale square is a hand."
)
SHAPES = "Four shapes, one for each object. Grey: other domains' words."
QUESTIONS = {  # task family, whether rings dry, how many of the two steps seen count
    "both steps seen belong to the goal": ("single", False, 2),
    "one step seen has nothing to do with the goal": ("single", False, 1),
    "the rings dry, so only the video shows them": ("pair", True, 2),
}


def view() -> pages.View:
    """The picture for a cell; as much stands side by side as fits the screen."""
    bare = replace(example("single", False, 2), actions=())
    marks, shapes = [], []
    for i, (verb, *others) in enumerate(_words("verbs")):
        done = replace(bare, objects=(0, 1), actions=(Step(i, 0),))
        marks.append(_shown(_alone(done), f"{i + 1} {verb}\n{MARKS[i]}", *others))
    for i, (name, *others) in enumerate(_words("objects")):
        shapes.append(_shown(_alone(replace(bare, objects=(i, 3 - i))), name, *others))
    cases = enumerate(QUESTIONS.items(), 1)
    solved = [_solved(number, why, example(*wanted)) for number, (why, wanted) in cases]
    drawn = pages.VIEWS.miniplan({STEPS: marks, SHAPES: shapes}, solved)
    return pages.View(drawn, "The marks of six steps, and three questions solved.")


def _words(kind: str) -> zip:
    return zip(*(domain[kind] for domain in DOMAINS.values()), strict=True)


def _alone(episode: Episode) -> np.ndarray:
    """The first object of a still, with the part of table and tray below it."""
    x, _ = episode.positions[0]
    return world.still(episode)[:, x - HALF : x + HALF]


def _shown(pixels: np.ndarray, name: str, *more: str) -> dict:
    """What views.html shows of a picture, with lines below it, the first in bold."""
    caption = Markup("<strong>{}</strong>\n{}").format(name, "\n".join(more))
    return pages.picture(pixels, ", ".join([name.replace("\n", ": "), *more]), caption)


def _solved(
    number: int, why: str, e: Episode
) -> tuple[SimpleNamespace, dict, str, str]:
    """A question and its pictures for views.html, the way to its answer, the answer."""
    shown = [_shown(world.clip_frame(e, 0), "the video begins", "no mark")]
    for index, step in enumerate(e.actions):
        frame = world.clip_frame(e, e.span(index)[0] + 2)
        shown.append(_shown(frame, e.say(step), MARKS[step.effect]))
    left = "no mark: the rings are dry" if e.dries else "the marks stay"
    shown.append(_shown(world.still(e), "now: still image", left))
    item = SimpleNamespace(id=f"Question {number}", domain=why, scenario="", goal="")
    item.text, item.video = lessons.question_text(e), True
    item.options, item.gold = list(map(e.say, e.options)), ""
    done = counted(e)
    plan = [f"{e.say(step)}{' ✓' if step in done else ''}" for step in e.plan]
    way = [f"The goal in order: {', '.join(plan)}."]
    others = [e.say(step) for step in e.actions if step not in done]
    way += [f"Not in the goal: {step}. It does not count." for step in others]
    if e.family == "pair":
        way.append(f"Each step is done on the {e.name(0)}, then on the {e.name(1)}.")
    way.append(f"Done: {lessons.NUMBERS[len(done)]}. Next: {e.say(e.answer)}.")
    media = {"bad": None, "shown": shown, "lit": {}}
    return item, media, " ".join(way), f"The answer is {e.letter}."


def counted(episode: Episode) -> list[Step]:
    """The steps done so far that belong to the goal."""
    return [step for step in episode.actions if step in episode.plan]


def example(*wanted) -> Episode:
    """The first question as wanted (see QUESTIONS) with two steps seen, none of them
    under the hand, and a goal that does not begin with the step that comes first."""
    for seed in count():
        e = world.sample_episode(random.Random(seed), "Daily life", PLACE)
        first = e.goal.startswith(DOMAINS[e.domain]["verbs"][e.plan[0].effect])
        found = e.family, e.dries, len(counted(e))
        if len(e.actions) == 2 and not first | e.hand_covers and found == wanted:
            return e
