"""Means, differences and contrasts of answers, each with a 95 % interval.

One function for every number of the kit: `contrast` of some selections of the answers
(lib/analysis/answers.py), each with a weight. Weight 1 alone is a mean; 1 and -1 on the
same questions a paired difference; on two sets a difference of differences. Questions
on one video are drawn together. With one seed the interval is a bootstrap over videos,
with several it also carries the training seed (lib/analysis/stats.py).

    terms = [(1, {"model": "grpo", "set": "L1"}), (-1, {"model": "sft", "set": "L1"})]
    contrast(right(answers), terms)["effect"]  # GRPO - SFT on L1

Example: GRPO is right on 3 of 4 questions and SFT on 2 of them: the effect is 0.25, and
the interval says that four questions decide nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from lib.analysis import stats
from lib.evaluate import tables
from lib.methods import LABELS, METHODS, PAIRS, SEEN, SETS, difference
from lib.records import read_json

SAMPLES = 10_000  # of a bootstrap
Terms = Sequence[tuple[float, Mapping]]


class Missing(LookupError):
    """A selection without answers; the text names it."""


def right(answers: pd.DataFrame, condition: str = SEEN) -> pd.DataFrame:
    """Right or wrong by the first letter, asked as everything is."""
    chosen = (answers.measure == "correct") & (answers.condition == condition)
    return answers[chosen]


def select(answers: pd.DataFrame, where: Mapping) -> pd.DataFrame:
    """The rows with these values of columns."""
    chosen = [(answers[key] == value).to_numpy() for key, value in where.items()]
    return answers[np.logical_and.reduce(chosen)]


class Cells:
    """Selections of answers by some columns, each read once."""

    def __init__(self, answers: pd.DataFrame, by: Iterable[str]):
        self.by = list(by)
        groups = answers.groupby(self.by, sort=False, observed=True)
        self.groups = dict(iter(groups))
        self.videos = dict(zip(answers.id, answers.video, strict=True))
        self._read: dict[tuple, dict[int, dict[str, float]]] = {}

    def __contains__(self, where: Mapping) -> bool:
        return tuple(where[key] for key in self.by) in self.groups

    def __call__(self, where: Mapping) -> dict[int, dict[str, float]]:
        """{seed: {question id: value}} of {column: value}; Missing if there is none."""
        if where not in self:
            raise Missing(f"no answers with {dict(where)}")
        place = tuple(where[key] for key in self.by)
        if place not in self._read:
            own = self._read[place] = {}
            rows = (self.groups[place][key].tolist() for key in ("seed", "id", "value"))
            for seed, key, value in zip(*rows, strict=True):
                own.setdefault(seed, {})[key] = value
        return self._read[place]


def contrast(
    answers: pd.DataFrame | Cells, terms: Terms, samples: int = SAMPLES, seed: int = 0
) -> dict:
    """The weighted sum of means of selections {column: value}; see `stats.contrast`.

    All terms name the same columns. Terms of one set are paired: only seeds and
    questions that all of them have. Beside
    it `wins` and `losses`: (seed, question) pairs of the first set that pull up or
    down, and `sets`. Missing where a selection is empty, or no seed has all of them.
    """
    found, videos = matrices(answers, terms)
    parts = [values for _, values in found.values()]
    clusters = [[videos[key] for key in ids] for ids, _ in found.values()]
    if len(parts[0]) > 1 and sum(map(len, clusters)) < 2:
        raise Missing("a single question, which has no interval over seeds")
    result = stats.contrast(parts, clusters, samples, seed, _bounds(terms, found))
    wins, losses = (int((way * parts[0] > 0).sum()) for way in (1, -1))
    return result | {"wins": wins, "losses": losses, "sets": list(found)}


def matrices(
    answers: pd.DataFrame | Cells, terms: Terms
) -> tuple[dict[str, tuple[list[str], np.ndarray]], dict[str, str]]:
    """{set: (question ids, weighted sum of its terms [seeds, questions])}, and the
    video of each question."""
    cells = answers if isinstance(answers, Cells) else Cells(answers, terms[0][1])
    read = [(where.get("set", ""), weight, cells(where)) for weight, where in terms]
    seeds = sorted(set.intersection(*({*found} for *_, found in read)))
    parts: dict[str, tuple[list[str], np.ndarray]] = {}
    for name in dict.fromkeys(name for name, *_ in read):
        own = [(weight, found) for set_, weight, found in read if set_ == name]
        shared = [{*found[seed]} for _, found in own for seed in seeds]
        ids = sorted(set.intersection(*shared)) if shared else []
        if not ids:
            raise Missing(f"no seed and question with all of {[w for _, w in terms]}")
        values = [[[found[s][key] for key in ids] for s in seeds] for _, found in own]
        weights = [weight for weight, _ in own]
        parts[name] = (ids, np.tensordot(weights, np.array(values), 1))
    return parts, cells.videos


def _bounds(terms: Terms, found: Mapping) -> list[tuple[float, float]] | None:
    """The least and most that one question of each set can add, of right and wrong;
    of a share of attention or of words no such thing is needed."""
    scale = max(1, *(1 / abs(weight) for weight, _ in terms))
    bounds = []
    for name, (_, values) in found.items():
        if (np.abs(scale * values - np.round(scale * values)) > 1e-6).any():
            return None
        weights = [weight for weight, where in terms if where.get("set", "") == name]
        bounds.append(
            (sum(w for w in weights if w < 0), sum(w for w in weights if w > 0))
        )
    return bounds


def table(
    answers: pd.DataFrame,
    by: Sequence[str],
    less: Mapping | None = None,
    value: str = "effect",
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[dict]:
    """A row for each value of the columns `by`: mean, named `value`, with low and high.

    With `less` {column: value} the paired difference to the same selection with that
    value there, for the rows that have another.
    """
    rows, cells = [], Cells(answers, by)
    for place in cells.groups:
        where = dict(zip(by, place, strict=True))
        terms = [(1, where)]
        if less:
            other = where | less
            if other == where or other not in cells:
                continue
            terms.append((-1, other))
        try:
            found = contrast(cells, terms, samples, seed)
        except Missing:  # too few questions, or none in common
            continue
        if not less:  # few seeds can carry an interval beyond what a share can be
            found |= {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}
        rows.append(where | found | {value: found["effect"]})
    return rows


def kept(row: Mapping, *keys: str) -> dict:
    """What a record keeps of a row of `table` or `differences`."""
    return {key: row[key] for key in (*keys, "n", "seeds", "low", "high")}


def pairs_of(models: Iterable[str], pairs: Sequence = PAIRS) -> list[tuple[str, str]]:
    """The pairs of which both models are there."""
    have = {*models}
    return [pair for pair in pairs if {*pair} <= have]


def differences(
    answers: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    by: Sequence[str] = ("set",),
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[dict]:
    """Paired differences of models, a less b, for each value of `by` that both have.

    Rows hold a, b, the columns `by`, difference, low, high, p (exact McNemar, of one
    seed; it knows nothing of videos), and the keys of `contrast`.
    """
    rows, cells = [], Cells(answers, [*by, "model"])
    places = list(dict.fromkeys(place[:-1] for place in cells.groups))
    for a, b in pairs:
        for place in places:
            where = dict(zip(by, place, strict=True))
            terms = [(1, where | {"model": a}), (-1, where | {"model": b})]
            try:
                found = contrast(cells, terms, samples, seed)
            except Missing:  # one of them was not asked this
                continue
            p = stats.mcnemar_exact(found["wins"], found["losses"])
            row = {"a": a, "b": b} | where | found | {"difference": found["effect"]}
            rows.append(row | {"p": p if found["seeds"] == 1 else None})
    return rows


def out_of_distribution(
    answers: pd.DataFrame, samples: int = SAMPLES, seed: int = 0
) -> list[dict]:
    """Is GRPO's advantage over SFT larger on L2 and L3 than on L1? One row each."""
    rows, n = [], answers[answers.model == "grpo"].groupby("set", observed=True).id
    sizes = n.nunique().to_dict()
    for there in ("L2", "L3"):
        if {there, "L1"} <= sizes.keys():
            terms = [
                (sign * way, {"set": name, "model": model})
                for sign, name in ((1, there), (-1, "L1"))
                for way, model in ((1, "grpo"), (-1, "sft"))
            ]
            found = contrast(answers, terms, samples, seed)
            row = {"there": there, "here": "L1", "n_there": sizes[there]}
            row |= {"n_here": sizes["L1"], "difference": found["effect"]}
            rows.append(row | {key: found[key] for key in ("low", "high")})
    return rows


def accuracies(
    predictions: tables.Predictions, name: str = "", field: str = ""
) -> list[dict]:
    """One row a model and set: accuracy under both rules with Wilson intervals.

    With `name` and `field` (domain, duration_group) the base, SFT and GRPO on that set,
    a row a group. A question whose answer cannot be parsed, or whose video failed,
    counts as wrong.
    """
    if not field:
        return [
            {"model": model, "set": own, **summary(rows)}
            for (model, own), rows in predictions.items()
        ]
    return [
        {"model": model, field: group, **summary(list(rows))}
        for model in METHODS
        for group, rows in groupby(
            sorted(
                (row for row in predictions[model, name] if row[field] is not None),
                key=lambda row: row[field],
            ),
            key=lambda row: row[field],
        )
    ]


def summary(rows: Sequence[Mapping]) -> dict:
    """Accuracy under both rules with intervals, chance, and what went wrong."""
    n, found = len(rows), {"n": len(rows)}
    for end, key in (("", "correct"), ("_lenient", "correct_lenient")):
        count = sum(row[key] for row in rows)
        low, high = stats.wilson_interval(count, n)
        found |= {f"accuracy{end}": count / n, f"low{end}": low, f"high{end}": high}
    return found | {
        "parse_failure": sum(not row["parsed"] for row in rows) / n,
        "truncated": sum(row["truncated"] for row in rows) / n,
        "failed_videos": sum(row.get("error") is not None for row in rows),
        "chance": sum(1 / len(row["options"]) for row in rows) / n,
    }


# The paper's numbers


@lru_cache
def published() -> dict:
    """The numbers of the paper, with their sources (lib/analysis/published.json)."""
    return read_json(Path(__file__).with_name("published.json"))


def published_groups(field: str) -> dict:
    """{group: the paper's n and correct answers}, by "set", "domain" or duration."""
    if field == "duration_group":
        return {int(key): entry for key, entry in published()["durations"].items()}
    return published()[field + "s"]


def published_accuracy(model: str, name: str) -> float:
    """The paper's accuracy of a method on a set, as a share."""
    entry = published()["sets"][name]
    return entry["correct"][model] / entry["n"]


def published_differences() -> dict:
    """{(a, b, set): the paper's difference}, unpaired: its answers are not public."""
    return {
        (a, b, name): stats.unpaired_difference(
            entry["correct"][a], entry["n"], entry["correct"][b], entry["n"]
        )
        for name, entry in published()["sets"].items()
        for a, b in PAIRS
    }


# Tables


def markdown(
    rows: Iterable[Mapping],
    down: Mapping[str, Callable],
    across: Callable,
    cell: Callable,
) -> str:
    """Rows as a grid: `down` {header: function of a row} names its lines, `across` its
    columns, `cell` is the text where they meet; – where there is no row."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        place = tuple(str(of(row)) for of in down.values())
        lines.setdefault(place, {})[across(row)] = cell(row)
    heads = list(dict.fromkeys(head for cells in lines.values() for head in cells))
    body = [
        [*place, *(cells.get(head, "–") for head in heads)]
        for place, cells in lines.items()
    ]
    return tables.grid([[*down, *heads], *body])


def spans(value: str, signed: bool = False) -> Callable[[Mapping], str]:
    """The text of a row's `value` with its interval, 47.3 [44.9, 49.8]."""
    return lambda row: tables.span(row[value], row["low"], row["high"], signed)


def accuracies_markdown(rows: Sequence[Mapping]) -> str:
    """The method x level table with n, both parsing rules, and what went wrong."""
    columns = {
        "method": lambda row: LABELS[row["model"]],
        "set": lambda row: row["set"],
        "n": lambda row: row["n"],
        "accuracy %, first letter": spans("accuracy"),
        "accuracy %, lenient": lambda row: tables.span(
            *(row[f"{key}_lenient"] for key in ("accuracy", "low", "high"))
        ),
        "no answer parsed %": lambda row: tables.percent(row["parse_failure"]),
        "truncated %": lambda row: tables.percent(row["truncated"]),
        "failed videos": lambda row: row["failed_videos"],
        "chance %": lambda row: tables.percent(row["chance"]),
    }
    return tables.markdown(rows, columns)


def differences_markdown(rows: Sequence[Mapping]) -> str:
    """Paired differences in points, with the discordant questions they rest on."""
    columns = {
        "comparison": lambda row: difference(row["a"], row["b"]),
        "set": lambda row: row["set"],
        "n": lambda row: row["n"],
        "difference, points": spans("difference", signed=True),
        "only the first right": lambda row: row["wins"],
        "only the second right": lambda row: row["losses"],
        "McNemar p": lambda row: f"{row['p']:.2g}",
    }
    return tables.markdown(rows, columns)


def out_of_distribution_markdown(rows: Sequence[Mapping]) -> str:
    """GRPO's advantage over SFT there, less the same on L1, in points."""
    columns = {
        "GRPO − SFT": lambda row: f"on {row['there']}, less that on {row['here']}",
        "n": lambda row: f"{row['n_there']} and {row['n_here']}",
        "difference of differences, points": spans("difference", signed=True),
    }
    return tables.markdown(rows, columns)


def beside_paper_markdown(rows: Sequence[Mapping]) -> str:
    """Our accuracies beside the paper's: another model, and often other data."""
    ours = {(row["model"], row["set"]): row for row in rows}
    columns: dict[str, Callable] = {
        "set": str,
        "n": lambda name: ours["base", name]["n"],
    }
    for model in METHODS:
        columns |= {
            f"{LABELS[model]} %": lambda name, m=model: tables.percent(
                ours[m, name]["accuracy"]
            ),
            f"paper's {LABELS[model]} %": lambda name, m=model: tables.percent(
                published_accuracy(m, name)
            ),
        }
    columns["paper's n"] = lambda name: published()["sets"][name]["n"]
    return tables.markdown([s for s in SETS if ("base", s) in ours], columns)
