"""What the mini base checkpoint is taught before any post-training.

It stands for "an instruction-tuned model": captions and simple questions over all
four domains, drills that tie a step to its option letter, and planning questions
answered with mixed quality, as web text is. Captions, told plans and drills are
answered rightly. Planning questions are answered by habits that are worse, one at each
decision of an answer (HABITS): most answers name a likely step without looking, and
those that look forget, count what has nothing to do with the goal, take the step after
the next, and say C where D is right. So no few words at the start can stand for all
that post-training has to change.
Levels are never seen: environments 1000 and up, verb combinations of L3 left out; most
lessons are about daily life, few in evening light.

>>> plan_lesson(random.Random(2)).response
'<think>I see strap panel: one done. Next is sand board.</think><answer>A</answer>'"""

import random
from typing import NamedTuple

import numpy as np

from lib.data import prompts
from lib.data.video import Sampling, frame_indices
from lib.mini import lessons, world
from lib.mini.lessons import NOTHING, STEPS, answer_text, any_episode, ask
from lib.mini.world import Episode, Step

HABITS = {
    "hasty": 0.55,  # names a step at once
    "forgets": 0.7,  # of three or more steps all but the last two
    "counts others": 0.7,  # a step that the goal does not name
    "step after": {"pair": 0.7, "single": 0.1},  # instead of the next one
    "letter": 0.7,  # C where D is right
}
FRAMES = (4, 8, 8, 8, 16)  # at most, drawn anew for each clip


class Lesson(NamedTuple):
    """One user turn and the response to learn; pixels uint8, absent where None."""

    text: str
    response: str
    clip: np.ndarray | None = None
    still: np.ndarray | None = None


def _style(rng: random.Random) -> str:
    return "think" if rng.random() < 0.7 else "direct"


def sampled(rng: random.Random, episode: Episode) -> list[int]:
    """Clip frames that a loader would sample."""
    size = {"height": world.HEIGHT, "width": world.WIDTH}
    sampling = Sampling(max_frames=rng.choice(FRAMES), **size)
    return frame_indices(episode.frames, world.CLIP_FPS, sampling)


def clip_of(rng: random.Random, episode: Episode, frames: list[int]) -> np.ndarray:
    """These frames as the loader would give them, with noise in place of h264's."""
    return _noisy(rng, np.stack([world.clip_frame(episode, t) for t in frames]))


def look(rng: random.Random, episode: Episode, still: bool = True):
    """Clip and still of an episode; None where there is none, or none is asked for."""
    clip = None
    if not episode.image_only:
        clip = clip_of(rng, episode, sampled(rng, episode))
    return clip, _noisy(rng, world.still(episode)) if still else None


def _noisy(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(rng.getrandbits(32)).integers(
        -6, 7, pixels.shape, dtype=np.int16
    )
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def caption_lesson(rng: random.Random) -> Lesson:
    """Say what was done: in order for a video, object by object for an image."""
    image_only = rng.random() < 0.2
    episode = any_episode(rng, image_only=image_only)
    clip, still = look(rng, episode, still=image_only)
    shown = "image" if image_only else "video"
    done = ", ".join(map(episode.say, episode.shown)) or NOTHING
    return Lesson(f"What was done in the {shown}?", f"I see {done}.", clip, still)


def clip_lesson(rng: random.Random, asks: str) -> Lesson:
    """One of `lessons.ASKS`: the right option among three or four wrong ones."""
    episode = any_episode(rng)
    seen, gold, others = lessons.about_clip(rng, episode, asks, 5)
    wrong = rng.choice((3, 4))
    options, place = rng.sample(others, wrong), rng.randrange(wrong + 1)
    options.insert(place, gold)
    clip, _ = look(rng, episode, still=False)
    style, letter = _style(rng), prompts.LETTERS[place]
    text = ask(lessons.ASKS[asks], options, style)
    thought = f"I see {', '.join(seen)}. It is {gold}."
    response = answer_text(thought, letter) if style == "think" else letter
    return Lesson(text, response, clip)


def pick_lesson(rng: random.Random) -> Lesson:
    """Text only: state each option in a drawn order, each time with its letter. The
    letter follows from the stated step alone: a question that names the step is solved
    on the way through the options and does not carry over."""
    episode = any_episode(rng)
    steps = episode.options
    if rng.random() < 0.5:
        steps = rng.sample(STEPS, rng.choice((4, 5)))
    steps = list(map(episode.say, steps))
    text = ask("Name each of these.", steps, "think")
    if rng.random() < 0.7:
        text = text.removesuffix(prompts.THINK_ANSWER)
    order = rng.sample(range(len(steps)), len(steps))
    said = [answer_text(f"Next is {steps[i]}.", prompts.LETTERS[i]) for i in order]
    return Lesson(text, "".join(said))


def told_lesson(rng: random.Random) -> Lesson:
    """Text only: the progress is told, the plan has to be worked out."""
    episode = any_episode(rng)
    done = ", ".join(map(episode.say, episode.actions)) or NOTHING
    question = f"I see {done}. What action should I take next in order to"
    options = list(map(episode.say, episode.options))
    text = ask(f"{question} {episode.goal}?", options, "think")
    thought = lessons.careful_thought(episode, episode.actions, episode.answer)
    return Lesson(text, answer_text(thought, episode.letter))


def plan_lesson(rng: random.Random) -> Lesson:
    """The benchmark's own kind of question, answered with mixed quality."""
    episode = any_episode(rng, image_only=rng.random() < 0.15)
    clip, still = look(rng, episode)
    style, question = _style(rng), lessons.question_text(episode)
    text = ask(question, list(map(episode.say, episode.options)), style)
    if style == "direct":  # right for a goal on one object, any letter for two
        single = episode.family == "single"
        letter = episode.letter if single else rng.choice("ABCD")
        return Lesson(text, letter, clip, still)
    if rng.random() < HABITS["hasty"]:
        step = lessons.hasty_step(rng, episode)
        thought = lessons.hasty_thought(episode, step)
    else:
        thought, step = _habitual(rng, episode)
    place = episode.options.index(step)
    if place == 3 and rng.random() < HABITS["letter"]:
        place = 2
    return Lesson(text, answer_text(thought, prompts.LETTERS[place]), clip, still)


def _habitual(rng: random.Random, episode: Episode) -> tuple[str, Step]:
    """Reasoning that looks, with the habits behind it, and the step it comes to."""
    seen = episode.shown
    if len(seen) >= 3 and rng.random() < HABITS["forgets"]:
        seen = seen[-2:]
    count = len(set(seen) & set(episode.plan))
    if count < len(seen) and rng.random() < HABITS["counts others"]:
        count += 1
    after = rng.random() < HABITS["step after"][episode.family]
    step = episode.plan[min(count + after, len(episode.plan) - 1)]
    return lessons.careful_thought(episode, seen, step, count), step
