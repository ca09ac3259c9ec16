"""Does a model look? The same questions with something taken away
(lib/evaluate/perception.py).

SEED-Bench-R1 (arXiv 2503.24376) says that RL mainly improves perception: then its gain
over the base must shrink without the video.

Example: GRPO is right on 6 of 6 questions and on 3 of them without their clips: the
condition costs 0.5, and its interval comes from six paired differences."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lib.analysis import compare
from lib.analysis.compare import kept, span
from lib.evaluate import tables
from lib.methods import ASKED, LABELS, METHODS, PAIRS, SEEN, condition, difference
from lib.paths import require
from lib.records import read_json, refuse_other

ALL, NEEDED, NOT_NEEDED = "all", "needed", "not needed"


def asked_of(runs: Iterable[Path]) -> dict:
    """What 04_eval asked (ASKED); ValueError for runs that asked other things."""
    paths = [require(run / ASKED, "run 04_eval first") for run in runs]
    first = read_json(paths[0])
    for path in paths[1:]:
        then = "Only the same questions and conditions can be averaged"
        refuse_other(first, read_json(path), f"{path} differs from the first's", then)
    return first


def seen(
    answers: pd.DataFrame, asked: Mapping, groups: Mapping[str, Mapping], **draws: int
) -> dict:
    """What each condition costs each method, and how much of each gain.

    `groups` {question id: {"ceiling"}} is what a generated benchmark knows of its
    questions (lib/mini/still_reader.py): a ceiling below 1 means that the video is
    needed. With several sets there is one more that holds them all, "L1+L3". Returns
    `asked` and rows with set, n, seeds, low, high:

    * accuracy by group, model and condition, with chance, the ceiling where it is known
      and what the condition costs on the same questions: cost, cost_low, cost_high;
    * gains: of each pair (a, b) the gain a - b, gain_then under the condition, and
      their difference (positive: it shrinks).
    """
    found: dict = {**asked, "accuracy": [], "gains": []}
    needed = [key for key, entry in groups.items() if entry["ceiling"] < 1]
    for name, whole in _asked_again(answers, asked).items():
        inside = {ALL: whole, NEEDED: whole[whole.id.isin(needed)]}
        inside[NOT_NEEDED] = whole[whole.id.isin({*groups}.difference(needed))]
        for group, own in inside.items():
            if own.id.nunique() < 2:
                continue
            place = {"set": name, "group": group}
            rows = _costs(own, groups, draws)
            found["accuracy"] += [place | row for row in rows]
            if group == ALL:
                found["gains"] += [place | row for row in _gains(own, rows, draws)]
    return found


def _asked_again(answers: pd.DataFrame, asked: Mapping) -> dict[str, pd.DataFrame]:
    """{set: right or wrong of the same questions as they are and under each condition},
    last all sets; FileNotFoundError where a condition lacks the rows of a seed."""
    right, found = answers[answers.measure == "correct"], {}
    for name in asked["sets"] if asked["conditions"] else ():
        own = right[(right.set == name) & right.model.isin(METHODS)]
        then = own[own.condition.isin(asked["conditions"])]
        for model, shown in itertools.product(METHODS, asked["conditions"]):
            had = compare.select(then, {"model": model, "condition": shown})
            if had.seed.nunique() < right.seed.nunique():
                file = f"predictions_{model}_{name}.{shown}.jsonl"
                todo = f"run 04_eval with {model} in perception_models"
                raise FileNotFoundError(f"{file} is missing: {todo}")
        whole = own[(own.condition == SEEN) & own.id.isin(then.id)]
        found[name] = pd.concat([whole, then]).astype({"condition": str, "set": str})
    if len(found) > 1:
        found["+".join(found)] = pd.concat(found.values())
    return found


def _costs(own: pd.DataFrame, groups: Mapping, draws: dict) -> list[dict]:
    options = own.drop_duplicates("id").set_index("id").options
    facts = {"chance": float((1 / options).mean())}
    if {*options.index} <= groups.keys():
        ceilings = [groups[key]["ceiling"] for key in options.index]
        facts["ceiling"] = float(np.mean(ceilings))
    rows, pairs = [], [(SEEN, shown) for shown in _taken_away(own)]
    lost = compare.differences(own, pairs, ("model",), "condition", **draws)
    costs = {(row["b"], row["model"]): row for row in lost}
    for row in compare.table(own, ("condition", "model"), "accuracy", **draws):
        rows.append(kept(row, "model", "condition", "accuracy") | facts)
        if cost := costs.get((row["condition"], row["model"])):
            ends = {"cost_low": cost["low"], "cost_high": cost["high"]}
            rows[-1] |= {"cost": cost["difference"]} | ends
    return rows


def _gains(own: pd.DataFrame, accuracies: Iterable[Mapping], draws: dict) -> list[dict]:
    """Does a's gain over b shrink? Question by question, so that pairs stay pairs."""
    rows, cells = [], compare.Cells(own, ("condition", "model"))
    share = {(row["condition"], row["model"]): row["accuracy"] for row in accuracies}
    for shown in _taken_away(own):
        for a, b in PAIRS:
            models, shows = {"model": (a, b)}, {"condition": (SEEN, shown)}
            found = compare.apart(cells, models, shows, **draws)
            row = {"a": a, "b": b, "condition": shown, "difference": found["effect"]}
            row |= {"gain": share[SEEN, a] - share[SEEN, b]}
            row |= {"gain_then": share[shown, a] - share[shown, b]}
            rows.append(row | kept(found))
    return rows


def _taken_away(own: pd.DataFrame) -> list[str]:
    return [shown for shown in own.condition.unique() if shown != SEEN]


def markdown(found: Mapping) -> str:
    """A line a condition: accuracies, and costs, on the last set, which holds all."""
    rows = [row for row in of_last(found["accuracy"]) if row["group"] == ALL]
    order = [SEEN, *found["conditions"]]
    rows.sort(key=lambda row: order.index(row["condition"]))
    seeds = f" × {rows[0]['seeds']} seeds" if rows[0]["seeds"] > 1 else ""
    head = f"{rows[0]['set']}, {rows[0]['n']:,} questions{seeds}"
    cells = []
    for row in rows:
        text = tables.percent(row["accuracy"])
        if "cost" in row:
            ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
            text += f" ({tables.span(*ends, signed=True)})"
        line = {head: condition(row["condition"])}
        cells.append((line, f"{LABELS[row['model']]} %", text))
    return tables.crossed(cells)


def gains_markdown(gains: Sequence[Mapping]) -> str:
    """A line a condition: by how many points each gain shrinks, of the same set."""
    return tables.crossed(
        (
            {"shown": condition(row["condition"])},
            f"{difference(row['a'], row['b'])}, points",
            f"{tables.percent(row['gain'])} → {tables.percent(row['gain_then'])}, "
            f"shrinks by {span(row, 'difference')}",
        )
        for row in of_last(gains)
    )


def of_last(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows of the last set, which holds all others."""
    return [row for row in rows if row["set"] == rows[-1]["set"]]
