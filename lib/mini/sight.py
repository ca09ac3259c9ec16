"""What a model that knows MiniPlan alone is asked to see, for `check-model --sight`.

Four captions of a clip with two steps: what was done, the same backwards, and with
either step exchanged for another one. lib/evaluate/sight.py chooses among them."""

import random
from dataclasses import replace
from pathlib import Path

from lib.data.questions import Demonstration
from lib.data.video import Sampling
from lib.evaluate.sight import COUNT, SightQuestion
from lib.mini import base_lessons, benchmark, lessons, world


def questions(folder: Path) -> list[SightQuestion]:
    """48 questions, their clips written into `folder`."""
    rng, found = random.Random("sight"), []
    captions = iter(lambda: base_lessons.caption_lesson(rng), None)
    text = next(lesson.text for lesson in captions if lesson.clip is not None)
    sampling = Sampling(max_frames=8, height=world.HEIGHT, width=world.WIDTH)
    while len(found) < COUNT:
        episode = lessons.any_episode(rng)
        if len(done := list(episode.actions)) != 2:
            continue
        other = rng.choice([step for step in lessons.STEPS if step not in done])
        episode = replace(episode, dries=False)  # or it is seen in more frames alone
        told = [done, done[::-1], [other, done[1]], [done[0], other]]
        answers = [f"I see {', '.join(map(episode.say, steps))}." for steps in told]
        path = folder / f"plan{len(found)}.mp4"
        benchmark.write_clip(path, episode)
        asked = Demonstration(f"sight/{len(found)}", text, path, None, answers[0])
        found.append(SightQuestion(asked, tuple(rng.sample(answers, 4)), sampling))
    return found
