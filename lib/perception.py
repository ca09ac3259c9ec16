"""Does a model look, and at what? The same questions with something taken away.

SEED-Bench-R1 (arXiv 2503.24376) says that RL mainly improves perception, and shows
attention maps. What a model reads from the pictures can also be measured: take them
away and see what becomes of the answers. If RL's gain over the base is perception, it
must shrink without the video. Prompt, decoding and scoring are those of lib/evaluate.py
in every condition; only what is shown differs:

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
    compare(run, asked, samples=10_000, seed=0)["gains"][0]
    # {"a": "grpo", "b": "base", "condition": "no_video", "gain": 0.44,
    #  "gain_then": 0.31, "difference": 0.13, "low": 0.08, "high": 0.18, ...}
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib import paths, plots, records, stats, tables
from lib.frame_store import question_media
from lib.questions import Question
from lib.video import Sampling

SEEN = "seen"
LABELS = {
    SEEN: "all as it is",
    "shuffled": "frames shuffled",
    "one_frame": "last frame only",
    "other_video": "another video",
    "no_video": "no video",
    "no_pictures": "no pictures",
}
FRAMES, SIZE = r"frames_(\d+)", r"size_(\d+)x(\d+)"
ALL, WITH_VIDEO, NEEDED, NOT_NEEDED = "all", "with video", "needed", "not needed"
ASKED = "perception_asked.json"
# What may differ between the rows of a condition and those of all as it is.
MAY_DIFFER = {"questions", "shown", "sampling", "batch_size"}


@dataclass(frozen=True)
class Shown:
    """What is shown in place of a question's own clip and still; `seed` draws."""

    condition: str
    seed: int

    def media(
        self, question: Question, sampling: Sampling
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(clip, still) as `lib.frame_store.question_media` gives them, changed."""
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
            clip = clip[[-1, -1]]  # Qwen2-VL merges two frames into one patch
        return clip, still


def check_condition(condition: str) -> None:
    """Raise ValueError for a name that is no condition."""
    known = [name for name in LABELS if name != SEEN]
    if condition not in known and not re.fullmatch(f"{FRAMES}|{SIZE}", condition):
        raise ValueError(
            f"condition {condition!r} is unknown; use {', '.join(known)}, "
            "frames_<number> or size_<height>x<width>"
        )


def resampled(sampling: Sampling, condition: str) -> Sampling:
    """The sampling of a frames_ or size_ condition, unchanged for the others.

    frames_N gives up to N frames by the same rule: a clip whose frame rate and length
    ask for fewer gives fewer.
    """
    if found := re.fullmatch(FRAMES, condition):
        frames = int(found[1])
        least = min(frames, sampling.min_frames)
        return replace(sampling, max_frames=frames, min_frames=least)
    if found := re.fullmatch(SIZE, condition):
        return replace(sampling, height=int(found[1]), width=int(found[2]))
    return sampling


def batch_under(condition: str, usual: int, sampling: Sampling) -> int:
    """How many questions to ask at once under a condition.

    So many that their clips and stills are no more pixels than those of `usual`
    questions as they are; one at least. With 16 frames of 252 x 252, 32 questions
    become 8 under size_504x504 and 16 under frames_32, and stay 32 under no_video.
    """

    def pixels(seen: Sampling) -> int:
        return (seen.max_frames // 2 + 1) * seen.height * seen.width  # in pairs; still

    share = usual * pixels(sampling) // pixels(resampled(sampling, condition))
    return min(usual, max(1, share))


def with_other_videos(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions, each that has a video with another one of theirs.

    ValueError where they have only one between them.
    """
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
    drawn = random.Random(seed).sample(
        range(len(questions)), min(count, len(questions))
    )
    return [questions[i] for i in sorted(drawn)]


# Asking


def ask(
    model,
    processor,
    sets: Mapping[str, Sequence[Question]],
    conditions: Sequence[str],
    settings,
    sampling: Sampling,
    run: Path,
    label: str,
    count: int,
    seed: int,
) -> dict[str, str]:
    """Answer up to `count` questions of each set under each condition.

    With larger clips fewer are asked at once than `settings` say (`batch_under`).
    Leaves predictions_<label>_<set>.<condition>.jsonl, rows as lib/evaluate.py makes
    them, and in ASKED what was asked. Returns {condition: why} for conditions that the
    model cannot be asked under: a clip of so many frames of that size would be refused
    (`check_sizes` of lib/model/encoding.py), or it is what the model sees anyway. All
    processes that call this together answer a share each.
    """
    from lib import evaluate, resume  # here: who reads records should not need torch

    for condition in conditions:
        check_condition(condition)
    left_out = {
        condition: why
        for condition in conditions
        if (why := _impossible(processor, sampling, condition))
    }
    possible = [condition for condition in conditions if condition not in left_out]
    facts = {"conditions": possible, "left_out": left_out, "sets": list(sets)}
    if resume.processes().is_main_process:
        records.write_json(run / ASKED, facts | {"count": count, "seed": seed})
    for name, questions in sets.items():
        some = chosen(questions, count, seed)
        for condition in possible:
            batch = batch_under(condition, settings.batch_size, sampling)
            evaluate.evaluate(
                model,
                processor,
                with_other_videos(some, seed) if condition == "other_video" else some,
                replace(settings, batch_size=batch),
                resampled(sampling, condition),
                predictions_file(run, label, name, condition),
                Shown(condition, seed),
            )
    return left_out


def predictions_file(run: Path, label: str, name: str, condition: str) -> Path:
    """predictions_grpo_L1.no_video.jsonl; without a condition where all is seen."""
    ending = "" if condition == SEEN else f".{condition}"
    return run / f"predictions_{label}_{name}{ending}.jsonl"


def _impossible(processor, sampling: Sampling, condition: str) -> str | None:
    """Why no model of this kind can be asked under a condition, None if it can."""
    from lib.model import encoding

    other = resampled(sampling, condition)
    if condition not in LABELS and other == sampling:
        return "is what the model sees anyway"
    size = (other.max_frames, other.height, other.width, 3)
    try:
        encoding.check_sizes(processor, [np.zeros(size, np.uint8)], [], long_clips=True)
    except ValueError as refused:
        return str(refused)
    return None


# Comparing


def compare(
    run: Path,
    questions: Mapping[str, Question],
    groups: Mapping[str, Mapping] | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> dict:
    """What each condition costs each method, from the records of a run alone.

    `questions` are those asked, by id. `groups` {id: {"group", "ceiling"}} is what a
    generated benchmark knows of its questions (`lib/mini/still_reader.py`). With
    several sets there is one more that holds them all, "L1+L3".

    Returns, and writes to perception.json, conditions, left_out, count, seed, and
    * accuracy: for each set, group, model and condition n, accuracy with Wilson
      interval, chance, parse_failure, and the paired difference to all as it is
      (difference, difference_low, difference_high, p; negative: it costs answers);
    * gains: for each pair of methods (a, b) the gain a - b with all as it is, gain_then
      under the condition, and their difference with interval (positive: the gain
      shrinks), all on the same questions;
    * ceilings: for each set and group of `groups` how often an ideal reader without the
      video is right;
    * needs: for each model and condition, what it costs where the video is needed (the
      ceiling is below 1) less what it costs elsewhere.

    FileNotFoundError names missing predictions, ValueError rows of other settings.
    """
    asked = read_asked(run)
    members = members_of(questions, groups or {})
    found = {**asked, "accuracy": [], "gains": [], "ceilings": [], "needs": []}
    for name, rows in read_answers(run, asked).items():
        for group, ids in members.items():
            inside = _inside(rows, ids)
            if not inside[SEEN, "base"]:
                continue
            place = {"set": name, "group": group}
            found["accuracy"] += _accuracies(inside, place, samples, seed)
            found["gains"] += _gains(inside, place, samples, seed)
            if group not in (ALL, WITH_VIDEO):
                ceilings = [groups[r["id"]]["ceiling"] for r in inside[SEEN, "base"]]
                entry = {"n": len(ceilings), "ceiling": float(np.mean(ceilings))}
                found["ceilings"].append(place | entry)
        needed, rest = (_inside(rows, members[g]) for g in (NEEDED, NOT_NEEDED))
        if needed[SEEN, "base"] and rest[SEEN, "base"]:
            found["needs"] += _needs(needed, rest, {"set": name}, samples, seed)
    records.write_json(run / "perception.json", found)
    return found


Answers = dict[tuple[str, str], list[dict]]  # {(condition, model): rows by id}


def read_asked(run: Path) -> dict:
    """What `ask` asked: conditions, left_out, sets, count, seed."""
    return records.read_json(paths.require(run / ASKED, "run 04_eval first"))


def read_answers(run: Path, asked: Mapping) -> dict[str, Answers]:
    """{set: rows under each condition and with all as it is, the same questions}.

    With several sets there is one more that holds them all, "L1+L3".
    """
    sets = asked["sets"] if asked["conditions"] else []
    answers = {name: _read_set(run, name, asked) for name in sets}
    if len(answers) > 1:
        answers["+".join(answers)] = _pooled(list(answers.values()))
    return answers


def _read_set(run: Path, name: str, asked: Mapping) -> Answers:
    """Rows of a set under each condition and with all as it is, the same questions."""
    found: Answers = {}
    for model in tables.METHODS:
        seen_file = predictions_file(run, model, name, SEEN)
        rows = tables.read_rows(paths.require(seen_file, "run 04_eval first"))
        seen = {row["id"]: row for row in rows}
        for condition in asked["conditions"]:
            file = predictions_file(run, model, name, condition)
            rows = tables.read_rows(paths.require(file, "run 04_eval first"))
            _check_settings(seen_file, file)
            missing = [row["id"] for row in rows if row["id"] not in seen]
            if missing:
                raise ValueError(f"{seen_file} lacks {missing[0]}, which {file} has")
            found[condition, model] = sorted(rows, key=lambda row: row["id"])
            found[SEEN, model] = [seen[row["id"]] for row in found[condition, model]]
    return found


def _check_settings(seen: Path, other: Path) -> None:
    """ValueError unless only what is shown differs between two files of rows."""
    was, now = (
        records.read_json(
            paths.require(file.with_suffix(".settings.json"), "run 04_eval first")
        )
        for file in (seen, other)
    )
    for key in sorted({*was, *now} - MAY_DIFFER):
        if was.get(key) != now.get(key):
            raise ValueError(
                f"{other} cannot be compared with {seen.name}: {key} is "
                f"{now.get(key)!r} and there {was.get(key)!r}; delete {other.stem}.* "
                "and run 04_eval again"
            )


def _pooled(parts: Sequence[Answers]) -> Answers:
    return {key: [row for part in parts for row in part[key]] for key in parts[0]}


def members_of(
    questions: Mapping[str, Question], groups: Mapping[str, Mapping]
) -> dict[str, set]:
    """{group: ids in it}; a question is in several. `groups` as of `compare`."""
    members = {ALL: set(questions)}
    members[WITH_VIDEO] = {key for key, item in questions.items() if item.video}
    members[NEEDED] = {key for key, entry in groups.items() if entry["ceiling"] < 1}
    members[NOT_NEEDED] = set(groups) - members[NEEDED]
    for key, entry in groups.items():
        members.setdefault(entry["group"], set()).add(key)
    return members


def _inside(answers: Answers, ids: set) -> Answers:
    return {
        key: [row for row in rows if row["id"] in ids] for key, rows in answers.items()
    }


def _accuracies(answers: Answers, place: dict, samples: int, seed: int) -> list[dict]:
    found = []
    taken = dict.fromkeys(key for key, _ in answers if key != SEEN)
    for condition in (SEEN, *taken):
        for model in tables.METHODS:
            rows = answers[condition, model]
            right = tables.correct(rows)
            low, high = stats.wilson_interval(int(right.sum()), len(rows))
            row = {
                **place,
                "model": model,
                "condition": condition,
                "n": len(rows),
                "accuracy": float(right.mean()),
                "low": low,
                "high": high,
                "chance": float(np.mean([1 / len(row["options"]) for row in rows])),
                "parse_failure": float(np.mean([not row["parsed"] for row in rows])),
            }
            if condition != SEEN:
                change = right - tables.correct(answers[SEEN, model])
                wins, losses = int((change > 0).sum()), int((change < 0).sum())
                low, high = _ends(_means(change, samples, np.random.default_rng(seed)))
                row |= {
                    "difference": float(change.mean()),
                    "difference_low": low,
                    "difference_high": high,
                    "p": stats.mcnemar_exact(wins, losses),
                }
            found.append(row)
    return found


def _gains(answers: Answers, place: dict, samples: int, seed: int) -> list[dict]:
    """Does a's gain over b shrink? Question by question, so that pairs stay pairs."""
    found = []
    for condition in dict.fromkeys(key for key, _ in answers if key != SEEN):
        for a, b in tables.COMPARISONS:
            gain, then = (
                tables.correct(answers[shown, a]) - tables.correct(answers[shown, b])
                for shown in (SEEN, condition)
            )
            means = _means(gain - then, samples, np.random.default_rng(seed))
            low, high = _ends(means)
            row = {
                **place,
                "a": a,
                "b": b,
                "condition": condition,
                "n": len(gain),
                "gain": float(gain.mean()),
                "gain_then": float(then.mean()),
                "difference": float((gain - then).mean()),
                "low": low,
                "high": high,
            }
            found.append(row)
    return found


def _needs(
    needed: Answers, rest: Answers, place: dict, samples: int, seed: int
) -> list[dict]:
    """Other questions on either side, so each side is resampled by itself."""
    found = []
    for condition, model in needed:
        if condition == SEEN:
            continue
        there, here = (
            tables.correct(side[SEEN, model]) - tables.correct(side[condition, model])
            for side in (needed, rest)
        )
        rng = np.random.default_rng(seed)
        low, high = _ends(_means(there, samples, rng) - _means(here, samples, rng))
        row = {
            **place,
            "model": model,
            "condition": condition,
            "n_needed": len(there),
            "n_not_needed": len(here),
            "cost_needed": float(there.mean()),
            "cost_not_needed": float(here.mean()),
            "difference": float(there.mean() - here.mean()),
            "low": low,
            "high": high,
        }
        found.append(row)
    return found


def _means(values: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `samples` resamples of the questions: float [samples].

    The bootstrap of lib/stats.py: to draw n of n questions whose values are few whole
    numbers is to draw how often each value comes, which is a hundred times faster.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), samples)
    return drawn @ distinct / len(values)


def _ends(means: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - stats.CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def accuracy_markdown(found: Mapping, name: str, group: str = ALL) -> str:
    """One line a condition: accuracy of each method and what the condition costs it."""
    rows = {
        (row["condition"], row["model"]): row
        for row in found["accuracy"]
        if (row["set"], row["group"]) == (name, group)
    }

    def cell(condition: str, model: str) -> str:
        row = rows[condition, model]
        text = tables.percent(row["accuracy"])
        if condition == SEEN:
            return text
        ends = (row["difference"], row["difference_low"], row["difference_high"])
        return f"{text} ({tables.span(*ends, signed=True)})"

    columns = {f"shown, n = {rows[SEEN, 'base']['n']}": label_of} | {
        f"{plots.LABELS[model]} %": lambda condition, m=model: cell(condition, m)
        for model in tables.METHODS
    }
    return tables.markdown([SEEN, *found["conditions"]], columns)


def gains_markdown(found: Mapping, name: str, group: str = ALL) -> str:
    """One line a condition: by how many points each gain shrinks."""
    rows = {
        (row["condition"], row["a"], row["b"]): row
        for row in found["gains"]
        if (row["set"], row["group"]) == (name, group)
    }

    def cell(condition: str, a: str, b: str) -> str:
        row = rows[condition, a, b]
        shrinks = tables.span(row["difference"], row["low"], row["high"], signed=True)
        gains = f"{tables.percent(row['gain'])} → {tables.percent(row['gain_then'])}"
        return f"{gains}, shrinks by {shrinks}"

    named = plots.LABELS
    columns = {"shown": label_of} | {
        f"{named[a]} − {named[b]}, points": lambda condition, a=a, b=b: cell(
            condition, a, b
        )
        for a, b in tables.COMPARISONS
    }
    return tables.markdown(found["conditions"], columns)


def label_of(condition: str) -> str:
    """A condition in words."""
    return LABELS.get(condition, condition.replace("_", " "))
