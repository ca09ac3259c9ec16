"""Which MiniPlan questions need their video? An ideal reader of the still alone.

No real benchmark can say what a question needs; a generated one can. The reader knows
the rules of the world (`lib/mini/world.py`), the goal and the options, and looks at the
still pixel by pixel. Every history that gives this very still stays possible, as likely
as `world.sample_episode` makes it; the reader names the likeliest next step. How often
that is right is the question's ceiling without its video. Three groups follow:

    needed        a mark that decides is under the hand or dried: the ceiling is below 1
    hand          the hand is in the way, but leaves one answer
    open          nothing is in the way, and one answer is left

    >>> without_video("outputs/data/miniplan")["L1/0"]
    {'group': 'open', 'ceiling': 1.0}

Example: wash, cook, salt and plate one tomato. The hand covers it and a wet ring sticks
out: it was washed, perhaps cooked and salted too. The video is needed."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

from lib import processes
from lib.methods import LEVELS
from lib.mini import truth, world
from lib.mini.world import EFFECTS, Episode, Step

DISTRACTED = 0.4  # share of histories with a distracting step, in world.sample_episode


def histories(episode: Episode) -> Iterator[tuple[float, tuple[Step, ...]]]:
    """(probability, actions) of all that may have been done before a video question
    with this goal on these objects. Probabilities add up to 1."""
    every = [Step(effect, item) for item in (0, 1) for effect in range(len(EFFECTS))]
    others = [step for step in every if step not in episode.plan]
    for done in range(len(episode.plan)):
        progress, share = episode.plan[:done], 1 / len(episode.plan)
        distracted = DISTRACTED if done else 1.0  # a clip must show something
        if done:
            yield share * (1 - distracted), progress
        each = share * distracted / len(others) / (done + 1)
        for other in others:
            for place in range(done + 1):
                yield each, (*progress[:place], other, *progress[place:])


def still_ceiling(episode: Episode) -> float:
    """How often the best guess from still and text is right, above 0.25 and up to 1:
    exactly 1 where no other answer fits the still."""
    seen, drawn = world.still(episode), {}
    answers = dict.fromkeys(episode.plan, 0.0)
    for (probability, actions), dries in product(histories(episode), (False, True)):
        look = frozenset(actions), actions[-1].item, dries
        if look not in drawn:
            drawn[look] = (_still(episode, actions, dries) == seen).all()
        if drawn[look]:
            share = world.DRIES if dries else 1 - world.DRIES
            step = next(s for s in episode.plan if s not in actions)
            answers[step] += probability * share
    return max(answers.values()) / sum(answers.values())


def _still(episode: Episode, actions: tuple[Step, ...], dries: bool):
    """The still of the same moment, had `actions` been done: camera and hand as in the
    episode's own, every mark in place that does not dry."""
    tail = episode.frames - 4
    done = {"actions": actions, "dries": dries}
    return world.still(replace(episode, **done, hold=0, tail=tail))


def without_video(data_dir: str | Path) -> dict[str, dict]:
    """{question id: {"group", "ceiling"}} of the levels' questions that have a video;
    empty, and ValueError, where `truth.known` is."""
    asked = {
        key: known.episode
        for key, known in truth.known(data_dir).items()
        if key.split("/")[0] in LEVELS and not known.episode.image_only
    }
    found, episodes = {}, [*asked.values()]
    with closing(processes.mapped(still_ceiling, episodes, few=300)) as ceilings:
        for (key, episode), ceiling in zip(asked.items(), ceilings, strict=True):
            group = "hand" if episode.hand_covers else "open"
            group = group if ceiling == 1 else "needed"
            found[key] = {"group": group, "ceiling": ceiling}
    return found
