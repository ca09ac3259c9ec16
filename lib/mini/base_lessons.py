"""What the mini base checkpoint is taught before any post-training.

It stands for "an instruction-tuned model": captions and simple questions over all
four domains, drills that tie a step to its option letter, and planning questions
answered with mixed quality, as web text is. Its perception is good; its habit is not:
65 % of the planning answers on videos name a likely step without looking back at the
progress (hasty), 35 % state the progress first and then take the right step (careful).
Levels are never seen: environments 1000 and up, verb combinations of L3 left out.

>>> rng = random.Random(0)
>>> lesson = plan_lesson(rng)
>>> lesson.response
'<think>Next is cook onion.</think><answer>B</answer>'
"""

import random
from typing import NamedTuple

import numpy as np

from lib.data import prompts
from lib.data.video import Sampling, frame_indices
from lib.mini import lessons, world
from lib.mini.lessons import STEPS, answer_text, any_episode, ask
from lib.mini.world import DOMAINS, Episode

CAREFUL_SHARE = 0.35
SAMPLING = Sampling(max_frames=8, height=world.HEIGHT, width=world.WIDTH)
_LETTERS = "ABCD"


class Lesson(NamedTuple):
    """One user turn and the response to learn; pixels uint8, absent where None."""

    text: str
    response: str
    clip: np.ndarray | None = None
    still: np.ndarray | None = None


def _style(rng: random.Random) -> str:
    return "think" if rng.random() < 0.8 else "direct"


def _respond(style: str, thought: str, letter: str) -> str:
    return answer_text(thought, letter) if style == "think" else letter


def sampled(episode: Episode) -> list[int]:
    """Clip frames that the loader would sample."""
    return frame_indices(episode.frames, world.CLIP_FPS, SAMPLING)


def look(rng: random.Random, episode: Episode, image_only: bool, still: bool = True):
    """Clip and still as the loader would give them, with noise in place of h264's."""
    frames = None
    if not image_only:
        frames = np.stack([world.clip_frame(episode, t) for t in sampled(episode)])
        frames = _noisy(rng, frames)
    return frames, _noisy(rng, world.still(episode)) if still else None


def _noisy(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(rng.getrandbits(32)).integers(
        -6, 7, pixels.shape, dtype=np.int16
    )
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def caption_lesson(rng: random.Random) -> Lesson:
    """Say what was done: in order for a video, object by object for an image."""
    image_only = rng.random() < 0.2
    episode = any_episode(rng, image_only=image_only)
    clip, still = look(rng, episode, image_only, still=image_only)
    shown = "image" if image_only else "video"
    seen = lessons.visible_order(episode) if image_only else episode.actions
    done = ", ".join(map(episode.say, seen)) or "nothing done"
    return Lesson(f"What was done in the {shown}?", f"I see {done}.", clip, still)


def shown_lesson(rng: random.Random) -> Lesson:
    """Which of these steps is shown in the video?"""
    episode = any_episode(rng)
    seen = list(map(episode.say, episode.actions))
    gold = rng.choice(seen)
    others = [episode.say(s) for s in STEPS if s not in episode.actions]
    return _which(rng, episode, lessons.SHOWN_QUESTION, seen, gold, others)


def object_lesson(rng: random.Random) -> Lesson:
    """Which of these objects is in the video?"""
    episode = any_episode(rng)
    seen = [episode.name(0), episode.name(1)]
    gold = rng.choice(seen)
    names = [n for d in DOMAINS.values() for n in d["objects"]]
    others = [n for n in names if n not in seen]
    return _which(rng, episode, lessons.OBJECT_QUESTION, seen, gold, others)


def _which(rng, episode: Episode, question: str, seen, gold: str, others) -> Lesson:
    """The right option among three wrong ones, about a clip."""
    options, place = rng.sample(others, 3), rng.randrange(4)
    options.insert(place, gold)
    clip, _ = look(rng, episode, False, still=False)
    style, thought = _style(rng), f"I see {', '.join(seen)}. It is {gold}."
    response = _respond(style, thought, _LETTERS[place])
    return Lesson(ask(question, options, style), response, clip)


def binding_lesson(rng: random.Random) -> Lesson:
    """Text only: find a given step among the options."""
    episode = any_episode(rng)
    steps = [episode.say(step) for step in rng.sample(STEPS, 4)]
    gold, style = rng.randrange(4), rng.choice(("think", "direct"))
    return _find(steps, gold, style)


def drill_lesson(rng: random.Random) -> Lesson:
    """Text only, always reasoned: half the time among the four steps of one plan."""
    steps = _plan_or_any(rng)
    return _find(steps, rng.randrange(4), "think")


def _find(steps: list[str], gold: int, style: str) -> Lesson:
    text = ask(f"Next is {steps[gold]}. Which is it?", steps, style)
    return Lesson(text, _respond(style, f"Next is {steps[gold]}.", _LETTERS[gold]))


def _plan_or_any(rng: random.Random) -> list[str]:
    """Half the time the four steps of a plan, else any four."""
    episode = any_episode(rng)
    steps = episode.options if rng.random() >= 0.5 else rng.sample(STEPS, 4)
    return list(map(episode.say, steps))


def pick_lesson(rng: random.Random) -> Lesson:
    """Text only: state each option in a drawn order, each time with its letter.

    The letter follows from the stated step alone: a question that names the step, as
    the drill does, is solved on the way through the options and does not carry over.
    """
    steps = _plan_or_any(rng)
    text = ask("Name each of these.", steps, "think")
    if rng.random() < 0.7:
        text = text.removesuffix(prompts.THINK_ANSWER)
    order = rng.sample(range(4), 4)
    said = [answer_text(f"Next is {steps[i]}.", _LETTERS[i]) for i in order]
    return Lesson(text, "".join(said))


def told_lesson(rng: random.Random) -> Lesson:
    """Text only: the progress is told, the plan has to be worked out."""
    episode = any_episode(rng)
    done = ", ".join(map(episode.say, episode.actions)) or "nothing done"
    question = f"I see {done}. What action should I take next in order to"
    style = _style(rng)
    options = list(map(episode.say, episode.options))
    text = ask(f"{question} {episode.goal}?", options, style)
    thought = lessons.careful_thought(episode, episode.actions, episode.answer)
    return Lesson(text, _respond(style, thought, episode.letter))


def plan_lesson(rng: random.Random) -> Lesson:
    """The benchmark's own kind of question, answered with mixed quality."""
    image_only = rng.random() < 0.15
    episode = any_episode(rng, image_only=image_only)
    clip, still = look(rng, episode, image_only)
    style, question = _style(rng), lessons.question_text(episode, image_only)
    text = ask(question, list(map(episode.say, episode.options)), style)
    if rng.random() < CAREFUL_SHARE:
        step = episode.answer
        seen = lessons.visible_order(episode) if image_only else episode.actions
        thought = lessons.careful_thought(episode, seen, step)
    else:
        step = lessons.hasty_step(rng, episode)
        thought = lessons.hasty_thought(episode, step)
    letter = _LETTERS[episode.options.index(step)]
    return Lesson(text, _respond(style, thought, letter), clip, still)
