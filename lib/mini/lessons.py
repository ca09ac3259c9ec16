"""The language of MiniPlan: its questions, and how reasoning about them is worded.

>>> episode = any_episode(random.Random(0))
>>> hasty_thought(episode, episode.answer)
'Next is slit ball.'"""

import random
from types import SimpleNamespace

from lib.data import prompts
from lib.mini import world
from lib.mini.world import DOMAINS, Episode, Step

ENVIRONMENTS = range(1000, 1400)
WEIGHTS = (4, 1, 1, 1)  # of the domains: most of what the base meets is daily life
NOTHING = "nothing"
TEACHERS = "in my current observation"
NUMBERS = ("none", "one", "two", "three", "four")
STEPS = [Step(effect, item) for effect in range(6) for item in (0, 1)]
ASKS = {  # what is asked about a clip beside the next step
    "shown step": "Which of these steps is shown in the video?",
    "last step": "Which of these steps is the last one in the video?",
    "shown object": "Which of these objects is in the video?",
}


def careful_thought(
    episode: Episode, seen: tuple[Step, ...], step: Step, count: int | None = None
) -> str:
    """Reasoning that states the progress, how many steps of the goal are done, and a
    step; `count` where it counts otherwise than what it sees."""
    progress = ", ".join(map(episode.say, seen)) or NOTHING
    if count is None:
        count = len(set(seen) & set(episode.plan))
    return f"I see {progress}: {NUMBERS[count]} done. Next is {episode.say(step)}."


def taught_thought(episode: Episode, seen: tuple[Step, ...], step: Step) -> str:
    """The same in the words of the teacher, which are its own: those of the question,
    because a model this small cannot write a word that it has never met."""
    said = careful_thought(episode, seen, step).replace("Next is", "Next action is")
    return said.replace("I see", f"I see {TEACHERS}", 1)


def hasty_thought(episode: Episode, step: Step) -> str:
    """Reasoning that names a step at once."""
    return f"Next is {episode.say(step)}."


def hasty_step(rng: random.Random, episode: Episode) -> Step:
    """A goal step that is not one of the last two the hand did; often a wrong one."""
    return rng.choice([s for s in episode.options if s not in episode.actions[-2:]])


def answer_text(thought: str, letter: str) -> str:
    """The paper's response format (its prompt, released infer.py)."""
    return f"<think>{thought}</think><answer>{letter}</answer>"


def question_text(episode: Episode) -> str:
    """The benchmark's question sentence, word for word but for the goal."""
    progress = "" if episode.image_only else "the progress shown in the video and "
    return (
        f"Considering {progress}my current observation shown in the image, "
        f"what action should I take next in order to {episode.goal}?"
    )


def ask(text: str, options: list[str], style: str) -> str:
    """The prompt of a question with these options (`lib/data/prompts.py`)."""
    question = SimpleNamespace(text=text, options=options)
    return prompts.prompt_text(question, style)


def about_clip(
    rng: random.Random, episode: Episode, asks: str, count: int
) -> tuple[list[str], str, list[str]]:
    """What a clip shows, the right option of a question in `ASKS` with `count` options,
    and wrong ones to choose from. Beside the last step stands one that came before: so
    that it is no use to know what happens in the clip but not when."""
    shown = list(map(episode.say, episode.actions))
    every = list(map(episode.say, STEPS))
    if asks == "shown object":
        shown = [episode.name(0), episode.name(1)]
        every = [name for domain in DOMAINS.values() for name in domain["objects"]]
    gold = shown[-1] if asks == "last step" else rng.choice(shown)
    wrong = [option for option in every if option not in shown]
    if asks == "last step":
        near = rng.sample(shown[:-1], min(1, len(shown) - 1))
        wrong = near + rng.sample(wrong, count - 1 - len(near))
    return shown, gold, wrong


def any_episode(rng: random.Random, **fixed) -> Episode:
    """An episode of any domain in a pretraining environment."""
    (domain,) = rng.choices(list(DOMAINS), WEIGHTS)
    return world.sample_episode(rng, domain, rng.choice(ENVIRONMENTS), **fixed)
