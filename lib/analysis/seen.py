"""Does a model look? The same questions with something taken away
(lib/evaluate/perception.py).

SEED-Bench-R1 (arXiv 2503.24376) says that RL mainly improves perception. If RL's gain
over the base is perception, it must shrink without the video.

    found = seen(answers, asked_of([run]), questions)
    found["gains"][0]
    # {"a": "grpo", "b": "base", "condition": "no_video", "gain": 0.44,
    #  "gain_then": 0.31, "difference": 0.13, "low": 0.08, "high": 0.18, ...}

Example: GRPO is right on 6 of 6 questions and on 3 of them without their clips: the
condition costs 0.5, and its interval comes from six paired differences.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lib.analysis import compare
from lib.analysis.compare import kept
from lib.data.questions import Question
from lib.evaluate import tables
from lib.methods import ASKED, LABELS, METHODS, PAIRS, SEEN, condition, difference
from lib.paths import require
from lib.records import read_json

ALL, WITH_VIDEO, NEEDED, NOT_NEEDED = "all", "with video", "needed", "not needed"


def asked_of(runs: Iterable[Path]) -> dict:
    """What 04_eval asked with something taken away: conditions, left_out, sets, count,
    seed. ValueError for runs that asked other things."""
    found: dict | None = None
    for run in runs:
        own = read_json(require(run / ASKED, "run 04_eval first"))
        if found not in (None, own):
            raise ValueError(
                f"{run / ASKED} differs from that of the other seeds: only the same "
                "questions and conditions can be averaged"
            )
        found = own
    return found or {}


def seen(
    answers: pd.DataFrame,
    asked: Mapping,
    questions: Mapping[str, Question],
    groups: Mapping[str, Mapping] | None = None,
    samples: int = compare.SAMPLES,
    seed: int = 0,
) -> dict:
    """What each condition costs each method.

    `questions` are those asked, by id. `groups` {id: {"group", "ceiling"}} is what a
    generated benchmark knows of its questions (lib/mini/still_reader.py). With several
    sets there is one more that holds them all, "L1+L3". Returns `asked` and

    * accuracy: for each set, group, model and condition n, seeds, accuracy with ends,
      chance, and what the condition costs on the same questions: cost, cost_low,
      cost_high (negative: it gains answers);
    * gains: for all questions and each pair of methods (a, b) the gain a - b with all
      as it is, gain_then under the condition, and their difference with ends (positive:
      it shrinks);
    * ceilings: how often an ideal reader without the video is right, by group;
    * needs: for each model and condition, what it costs where the video is needed (the
      ceiling is below 1) less what it costs elsewhere.

    FileNotFoundError names predictions that are missing.
    """
    found = {**asked, "accuracy": [], "gains": [], "ceilings": [], "needs": []}
    sets, groups = list(asked["sets"]) if asked["conditions"] else [], groups or {}
    right = _asked_again(answers, sets, asked["conditions"])
    if len(sets) > 1:
        name = "+".join(sets)
        right = pd.concat([right, right.assign(set=name)], ignore_index=True)
        sets.append(name)
    draws = {"samples": samples, "seed": seed}
    for name in sets:
        whole = right[right.set == name]
        for group, ids in _members(questions, groups).items():
            inside = whole[whole.id.isin(ids)]
            if inside.id.nunique() < 2:
                continue
            place = {"set": name, "group": group}
            rows = _costs(inside, place, draws)
            found["accuracy"] += rows
            if group == ALL:
                found["gains"] += _gains(inside, rows, place, draws)
            if group not in (ALL, WITH_VIDEO):
                known = [groups[key]["ceiling"] for key in inside.id.unique()]
                entry = {"n": len(known), "ceiling": float(np.mean(known))}
                found["ceilings"].append(place | entry)
        found["needs"] += _needs(whole, groups, {"set": name}, draws)
    return found


def _asked_again(
    answers: pd.DataFrame, sets: Iterable[str], conditions: Iterable[str]
) -> pd.DataFrame:
    """Right or wrong under each condition, and of the same questions as they are."""
    right = answers[answers.measure == "correct"]
    parts = []
    for name in sets:
        for model in METHODS:
            place = {"set": name, "model": model}
            own = compare.select(right, place)
            for shown in conditions:
                then = own[own.condition == shown]
                if then.seed.nunique() < right.seed.nunique():
                    file = f"predictions_{model}_{name}.{shown}.jsonl"
                    raise FileNotFoundError(f"{file} is missing: run 04_eval first")
                parts.append(then)
            again = pd.concat(parts[-1:]).id if conditions else ()
            parts.append(own[(own.condition == SEEN) & own.id.isin(again)])
    found = pd.concat(parts, ignore_index=True) if parts else right[:0]
    return found.astype({"set": str, "condition": str})


def _members(
    questions: Mapping[str, Question], groups: Mapping[str, Mapping]
) -> dict[str, set]:
    """{group: ids in it}; a question is in several."""
    members = {ALL: {*questions}}
    members[WITH_VIDEO] = {key for key, item in questions.items() if item.video}
    members[NEEDED] = {key for key, entry in groups.items() if entry["ceiling"] < 1}
    members[NOT_NEEDED] = {*groups} - members[NEEDED]
    for key, entry in groups.items():
        members.setdefault(entry["group"], set()).add(key)
    return members


def _costs(inside: pd.DataFrame, place: dict, draws: dict) -> list[dict]:
    """A row a condition and model, all as it is first."""
    options = inside.drop_duplicates("id").options
    by = ("condition", "model")
    inside = inside.sort_values("condition", key=lambda own: own != SEEN, kind="stable")
    costs = {
        (row["condition"], row["model"]): row
        for row in compare.table(inside, by, {"condition": SEEN}, **draws)
    }
    rows = []
    for row in compare.table(inside, by, value="accuracy", **draws):
        own = place | kept(row, "model", "condition", "accuracy")
        own["chance"] = float((1 / options).mean())
        if lost := costs.get((row["condition"], row["model"])):
            ends = (-lost["effect"], -lost["high"], -lost["low"])
            own |= dict(zip(("cost", "cost_low", "cost_high"), ends, strict=True))
        rows.append(own)
    return rows


def _gains(
    inside: pd.DataFrame, accuracies: Iterable[Mapping], place: dict, draws: dict
) -> list[dict]:
    """Does a's gain over b shrink? Question by question, so that pairs stay pairs."""
    rows, cells = [], compare.Cells(inside, ("condition", "model"))
    share = {(row["condition"], row["model"]): row["accuracy"] for row in accuracies}
    for shown in [c for c in dict.fromkeys(at for at, _ in share) if c != SEEN]:
        for a, b in PAIRS:
            terms = [
                (sign * way, {"condition": at, "model": model})
                for sign, at in ((1, SEEN), (-1, shown))
                for way, model in ((1, a), (-1, b))
            ]
            found = compare.contrast(cells, terms, **draws)
            row = {"a": a, "b": b, "condition": shown, "difference": found["effect"]}
            row |= {"gain": share[SEEN, a] - share[SEEN, b]}
            row |= {"gain_then": share[shown, a] - share[shown, b]}
            rows.append(place | row | kept(found))
    return rows


def _needs(
    whole: pd.DataFrame, groups: Mapping[str, Mapping], place: dict, draws: dict
) -> list[dict]:
    """Other questions on either side, so each side is resampled by itself."""
    members, rows = _members({}, groups), []
    sides = [
        whole[whole.id.isin(members[group])].assign(set=group)
        for group in (NEEDED, NOT_NEEDED)
    ]
    if any(side.id.nunique() < 2 for side in sides):
        return []
    both = compare.Cells(pd.concat(sides), ("set", "condition", "model"))
    for shown in [c for c in whole.condition.unique() if c != SEEN]:
        for model in METHODS:
            terms = [
                (sign * way, {"set": group, "condition": at, "model": model})
                for sign, group in ((1, NEEDED), (-1, NOT_NEEDED))
                for way, at in ((1, SEEN), (-1, shown))
            ]
            found = compare.contrast(both, terms, **draws)
            row = {"model": model, "condition": shown, "difference": found["effect"]}
            rows.append(place | row | kept(found))
    return rows


def markdown(found: Mapping, name: str = "", group: str = ALL) -> str:
    """A line a condition: accuracy of each method, and what the condition costs it."""
    name = name or found["accuracy"][-1]["set"]
    rows = [
        row
        for row in found["accuracy"]
        if (row["set"], row["group"]) == (name, group) and row["model"] in METHODS
    ]
    order = [SEEN, *found["conditions"]]
    rows.sort(key=lambda row: order.index(row["condition"]))

    def cell(row: Mapping) -> str:
        text = tables.percent(row["accuracy"])
        if "cost" not in row:
            return text
        ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
        return f"{text} ({tables.span(*ends, signed=True)})"

    seeds = f" × {rows[0]['seeds']} seeds" if rows[0]["seeds"] > 1 else ""
    head = f"{name}, {rows[0]['n']:,} questions{seeds}"
    down = {head: lambda row: condition(row["condition"])}
    return compare.markdown(rows, down, lambda row: f"{LABELS[row['model']]} %", cell)


def gains_markdown(found: Mapping, name: str = "", group: str = ALL) -> str:
    """One line a condition: by how many points each gain shrinks."""
    name = name or found["gains"][-1]["set"]
    rows = [r for r in found["gains"] if (r["set"], r["group"]) == (name, group)]

    def cell(row: Mapping) -> str:
        shrinks = tables.span(row["difference"], row["low"], row["high"], signed=True)
        gains = f"{tables.percent(row['gain'])} → {tables.percent(row['gain_then'])}"
        return f"{gains}, shrinks by {shrinks}"

    down = {"shown": lambda row: condition(row["condition"])}
    head = lambda row: f"{difference(row['a'], row['b'])}, points"  # noqa: E731
    return compare.markdown(rows, down, head, cell)
