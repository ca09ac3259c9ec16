"""Does a model look, and at what? The same questions with something taken away.

SEED-Bench-R1 (arXiv 2503.24376) says that RL mainly improves perception, and shows
attention maps. What a model reads from the pictures can also be measured: take them
away and see what becomes of the answers. If RL's gain over the base is perception, it
must shrink without the video. Prompt, decoding and scoring are those of
lib/evaluate/evaluate.py in every condition; only what is shown differs:

    no_video      the clip is left out, the still stays
    no_pictures   clip and still are left out
    shuffled      the clip's frames in random order, drawn for each question
    one_frame     the clip's last frame alone: the one that shows most of what was done,
                  so what is lost is what only the course of time tells
    other_video   the clip of another question of the set, never the question's own
    frames_4      at most 4 frames of the clip (any even number)
    size_112x224  clip and still at another height and width in pixels

    ask(model, processor, {"L1": questions}, ["no_video"], settings, sampling, run,
        "grpo", count=500, seed=0)    # predictions_grpo_L1.no_video.jsonl

lib/analysis/seen.py says what each condition costs."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib import records
from lib.data.frame_store import question_media
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.evaluate import resume
from lib.evaluate.evaluate import EvalSettings, evaluate
from lib.methods import ASKED, CONDITIONS, SEEN
from lib.model.encoding import check_sizes

FRAMES, SIZE = r"frames_(\d+)", r"size_(\d+)x(\d+)"


@dataclass(frozen=True)
class Shown:
    """What is shown in place of a question's own clip and still; `seed` draws."""

    condition: str
    seed: int

    def media(
        self, question: Question, sampling: Sampling
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(clip, still) as `frame_store.question_media` gives them, changed."""
        if self.condition in ("no_video", "no_pictures"):
            question = replace(question, video=None)
        if self.condition == "no_pictures":
            question = replace(question, image=None)
        clip, still = question_media(question, sampling)
        if clip is not None and self.condition == "shuffled":
            order = list(range(len(clip)))
            random.Random(f"{self.seed}/{question.id}").shuffle(order)
            clip = clip[order]
        if clip is not None and self.condition == "one_frame":
            clip = clip.only([-1, -1])  # Qwen2-VL merges two frames into one patch
        return clip, still


def ask(
    model,
    processor,
    sets: Mapping[str, Sequence[Question]],
    conditions: Sequence[str],
    settings: EvalSettings,
    sampling: Sampling,
    run: Path,
    label: str,
    count: int,
    seed: int,
) -> dict[str, str]:
    """Answer up to `count` questions of each set under each condition; processes share
    them out. Leaves predictions_<label>_<set>.<condition>.jsonl, rows of `evaluate`,
    and in ASKED what was asked. Returns {condition: why} of the impossible ones."""
    reasons = {name: _impossible(processor, sampling, name) for name in conditions}
    left_out = {name: why for name, why in reasons.items() if why}
    possible = [name for name, why in reasons.items() if not why]
    facts = {"conditions": possible, "left_out": left_out, "sets": list(sets)}
    if resume.processes().is_main_process:
        records.write_json(run / ASKED, facts | {"count": count, "seed": seed})
    for name, questions in sets.items():
        own = chosen(questions, count, seed)
        for condition in possible:
            swap = condition == "other_video"
            asked = with_other_videos(own, seed) if swap else own
            batch = batch_under(condition, settings.batch_size, sampling)
            how = replace(settings, batch_size=batch), resampled(sampling, condition)
            path = run / f"predictions_{label}_{name}.{condition}.jsonl"
            evaluate(model, processor, asked, *how, path, Shown(condition, seed))
    return left_out


def _impossible(processor, sampling: Sampling, condition: str) -> str | None:
    """Why no model of this kind can be asked under a condition, None if it can."""
    other = resampled(sampling, condition)
    if condition in CONDITIONS and condition != SEEN:
        return None
    if other == sampling:
        return "is what the model sees anyway"
    size = (other.max_frames, other.height, other.width, 3)
    try:
        check_sizes(processor, [np.zeros(size, np.uint8)])
    except ValueError as refused:
        return str(refused)
    return None


def resampled(sampling: Sampling, condition: str) -> Sampling:
    """The sampling of a frames_ or size_ condition, unchanged for the others. A clip
    whose frame rate and length ask for fewer than frames_N gives fewer. ValueError for
    a name that is no condition."""
    if found := re.fullmatch(FRAMES, condition):
        frames = int(found[1])
        least = min(frames, sampling.min_frames)
        return replace(sampling, max_frames=frames, min_frames=least)
    if found := re.fullmatch(SIZE, condition):
        return replace(sampling, height=int(found[1]), width=int(found[2]))
    if condition in CONDITIONS:
        return sampling
    known = [name for name in CONDITIONS if name != SEEN]
    raise ValueError(
        f"condition {condition!r} is unknown; use {', '.join(known)}, "
        "frames_<number> or size_<height>x<width>"
    )


def batch_under(condition: str, usual: int, sampling: Sampling) -> int:
    """How many questions to ask at once: no more pixels than `usual` as they are. With
    16 frames of 252 x 252, 32 questions become 8 under size_504x504 and 16 under
    frames_32, and stay 32 under no_video."""

    def pixels(seen: Sampling) -> int:
        return (seen.max_frames // 2 + 1) * seen.height * seen.width  # in pairs; still

    share = usual * pixels(sampling) // pixels(resampled(sampling, condition))
    return min(usual, max(1, share))


def with_other_videos(questions: Sequence[Question], seed: int) -> list[Question]:
    """Each video exchanged for another of theirs; ValueError if there is only one."""
    videos = sorted({question.video for question in questions if question.video})
    if len(videos) == 1:
        raise ValueError(f"{videos[0]} is the only video: there is no other to show")
    exchanged = []
    for question in questions:
        if question.video is not None:
            own = videos.index(question.video)
            pick = random.Random(f"{seed}/{question.id}").randrange(len(videos) - 1)
            question = replace(question, video=videos[pick + (pick >= own)])
        exchanged.append(question)
    return exchanged


def chosen(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` questions drawn at random, in their order; all if there are no more."""
    most = min(count, len(questions))
    drawn = random.Random(seed).sample(range(len(questions)), most)
    return [questions[i] for i in sorted(drawn)]
