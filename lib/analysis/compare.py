"""Means, differences and contrasts of answers, each with a 95 % interval.

One function for every number of the kit: `contrast` of some selections of the answers
(lib/analysis/answers.py), each with a weight. Weight 1 alone is a mean; 1 and -1 on the
same questions a paired difference; on two sets a difference of differences. Questions
on one video are drawn together. With one seed the interval is a bootstrap over videos,
with several it also carries the training seed (lib/analysis/stats.py).

    terms = [(1, {"model": "grpo", "set": "L1"}), (-1, {"model": "sft", "set": "L1"})]
    contrast(right(answers), terms)["effect"]  # GRPO - SFT on L1

Example: GRPO is right on 3 of 4 questions and SFT on 2 of them: the effect is 0.25, and
the interval says that four questions decide nothing."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from lib.analysis import stats
from lib.evaluate import tables
from lib.methods import LABELS, METHODS, PAIRS, SEEN, called, difference, named
from lib.records import read_json

SAMPLES = 10_000  # of a bootstrap
Terms = Sequence[tuple[float, Mapping]]


class Missing(LookupError):
    """Nothing to measure; the text names what is needed."""


def right(answers: pd.DataFrame) -> pd.DataFrame:
    """Right or wrong by the first letter, asked as everything is."""
    return select(answers, {"measure": "correct", "condition": SEEN})


def select(answers: pd.DataFrame, where: Mapping) -> pd.DataFrame:
    """The rows with these values of columns."""
    chosen = [(answers[key] == value).to_numpy() for key, value in where.items()]
    return answers[np.logical_and.reduce(chosen)]


class Cells(dict):
    """{values of some columns: their answers [seeds, questions], NaN where none}."""

    def __init__(self, answers: pd.DataFrame, by: Iterable[str]):
        self.by = list(by)
        index = [*self.by, "seed", "id"]
        wide = answers.set_index(index).value.unstack(sort=False).sort_index(axis=1)
        for place, own in wide.groupby(level=self.by, sort=False, observed=True):
            self[place] = own.droplevel(self.by).dropna(axis=1, how="all")
        known = answers.drop_duplicates("id")
        self.videos = dict(zip(known.id, known.video, strict=True))
        self.whole = wholes(answers)

    def at(self, where: Mapping) -> pd.DataFrame | None:
        """The answers with {column: value}."""
        return self.get(tuple(where[key] for key in self.by))


def wholes(answers: pd.DataFrame) -> dict[str, int]:
    """{set: questions of the whole} for the sets of which a part was asked."""
    if "of" not in answers:  # records of whole sets do not say
        return {}
    parts = answers[answers["of"] > 0]
    return parts.groupby("set", observed=True)["of"].max().to_dict()


def matrices(cells: Cells, terms: Terms) -> dict[str, pd.DataFrame]:
    """{set: the weighted sum of its terms [seeds, questions]} where all have answers.
    The seeds are those of all sets. Missing where there is none, or no question."""
    parts: dict[str, pd.DataFrame] = {}
    for weight, where in terms:
        own, name = cells.at(where), where.get("set", "")
        if own is None:
            raise Missing(f"answers with {dict(where)}")
        parts[name] = weight * own + parts.get(name, 0)
    found = {name: part.dropna(axis=0, how="all") for name, part in parts.items()}
    seeds = sorted(set.intersection(*({*part.index} for part in found.values())))
    found = {name: part.loc[seeds].dropna(axis=1) for name, part in found.items()}
    if not seeds or any(part.empty for part in found.values()):
        raise Missing("questions that all of them answered")
    return found


def contrast(
    answers: pd.DataFrame | Cells, terms: Terms, samples: int = SAMPLES, seed: int = 0
) -> dict:
    """The weighted sum of means of selections {column: value}; see `stats.contrast`.
    All terms name the same columns. Terms of one set are paired: only seeds and
    questions that all of them have. Beside it `wins` and `losses`, (seed, question)
    pairs of the first set that pull up or down, and `sets`."""
    cells = answers if isinstance(answers, Cells) else Cells(answers, terms[0][1])
    found = matrices(cells, terms)
    clusters = [[cells.videos[key] for key in part] for part in found.values()]
    parts = [part.to_numpy() for part in found.values()]
    if len(parts[0]) > 1 and sum(len({*own}) for own in clusters) < 2:
        raise Missing("more than one video for an interval over seeds")
    result = stats.contrast(parts, clusters, samples, seed, _bounds(cells, terms))
    wins, losses = (int((way * parts[0] > 0).sum()) for way in (1, -1))
    return result | {"wins": wins, "losses": losses, "sets": list(found)}


def apart(
    answers: pd.DataFrame | Cells,
    first: Mapping[str, Sequence],
    second: Mapping[str, Sequence],
    **draws: int,
) -> dict:
    """A difference of differences: with first {column: (a, b)} and second {column: (c,
    d)} it is a - b at c less a - b at d."""
    ((one, (a, b)),), ((two, (c, d)),) = first.items(), second.items()
    terms = [
        (sign * way, {one: x, two: y})
        for sign, y in ((1, c), (-1, d))
        for way, x in ((1, a), (-1, b))
    ]
    return contrast(answers, terms, **draws)


def _bounds(cells: Cells, terms: Terms) -> list[tuple[float, float]] | None:
    """The least and most that one question of a set adds; None of other numbers."""
    bounds: dict[str, tuple[float, float]] = {}
    for weight, where in terms:
        values = cells.at(where).to_numpy()
        if not np.isin(values[~np.isnan(values)], (0, 1)).all():
            return None
        low, high = bounds.get(where.get("set", ""), (0, 0))
        ends = low + min(0, weight), high + max(0, weight)
        bounds[where.get("set", "")] = ends
    return list(bounds.values())


def table(
    answers: pd.DataFrame,
    by: Sequence[str],
    value: str = "effect",
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[dict]:
    """A row for each value of the columns `by`: mean, named `value`, with low and high.
    A row that cannot be measured has no numbers; its `missing` says so."""
    rows, cells = [], Cells(answers, by)
    for place in cells:
        where = dict(zip(by, place, strict=True))
        found = _row(cells, [(1, where)], samples, seed)
        if found["n"]:  # few seeds reach beyond what a share can be
            found |= {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}
        found |= {"of": of} if (of := cells.whole.get(where.get("set"))) else {}
        rows.append(where | found | {value: found["effect"]})
    return rows


def differences(
    answers: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    by: Sequence[str] = ("set",),
    column: str = "model",
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[dict]:
    """Paired differences of models, or of what else a `column` tells apart, a less b,
    for each value of `by` that both have. Rows hold a, b, the columns `by`, difference,
    low, high, p (of one seed McNemar's, exact, which knows nothing of videos), and the
    keys of `contrast`, or `missing`."""
    rows, cells = [], Cells(answers, [*by, column])
    places = list(dict.fromkeys(place[:-1] for place in cells))
    for a, b in pairs:
        for place in places:
            if not {(*place, a), (*place, b)} <= cells.keys():
                continue
            where = dict(zip(by, place, strict=True))
            terms = [(1, where | {column: a}), (-1, where | {column: b})]
            row = {"a": a, "b": b, **where} | _row(cells, terms, samples, seed)
            p = row.get("p")
            if row["seeds"] == 1:
                p = stats.mcnemar_exact(row["wins"], row["losses"])
            of = cells.whole.get(where.get("set"))
            row |= {"of": of} if of else {}
            rows.append(row | {"difference": row["effect"], "p": p})
    return rows


def main(rows: Iterable[Mapping]) -> list[dict]:
    """Those of GRPO − SFT, a set each, with `holm`: p as one of so many tests."""
    own = [row for row in rows if (row["a"], row["b"]) == PAIRS[0]]
    ps = stats.holm([row["p"] for row in own])
    return [row | {"holm": p} for row, p in zip(own, ps, strict=True)]


def ahead(row: Mapping) -> str | None:
    """The method ahead by its interval and by p as one of several (`main`), or None."""
    if row.get("holm", 0) > 1 - stats.CONFIDENCE:
        return None
    return row["a"] if row["low"] > 0 else row["b"] if row["high"] < 0 else None


def _row(cells: Cells, terms: Terms, samples: int, seed: int) -> dict:
    try:
        return contrast(cells, terms, samples, seed)
    except Missing as missing:
        row = dict.fromkeys(("effect", "low", "high", "error", "sd"))
        return row | {"n": 0, "seeds": 0, "missing": f"needs {missing}"}


def kept(row: Mapping, *keys: str) -> dict:
    """What a record keeps of a row of `table` or `differences`."""
    keys = (*keys, "n", "seeds", "low", "high", "missing")
    return {key: row[key] for key in keys if key in row}


def out_of_distribution(answers: pd.DataFrame, **draws: int) -> list[dict]:
    """Is GRPO's advantage over SFT larger on L2 and L3 than on L1? One row each."""
    rows, gap = [], {"model": ("grpo", "sft")}
    whole = wholes(answers)
    sizes = answers[answers.model == "grpo"].groupby("set", observed=True).id.nunique()
    for there in ("L2", "L3"):
        if {there, "L1"} <= {*sizes.index}:
            found = apart(answers, gap, {"set": (there, "L1")}, **draws)
            row = {"there": there, "here": "L1", "n_there": int(sizes[there])}
            row |= {"n_here": int(sizes["L1"]), "difference": found["effect"]}
            parts = [key for key in ("there", "here") if row[key] in whole]
            row |= {f"of_{key}": whole[row[key]] for key in parts}
            rows.append(row | {key: found[key] for key in ("low", "high")})
    return rows


def accuracies(predictions: tables.Predictions) -> list[dict]:
    """One row a model and set: accuracy under both rules with Wilson intervals. A
    question whose answer cannot be parsed, or whose video failed, counts as wrong."""
    return [
        {"model": model, "set": name, **summary(rows)}
        for (model, name), rows in predictions.items()
    ]


def grouped(predictions: tables.Predictions, name: str, field: str) -> list[dict]:
    """The same of base, SFT and GRPO on one set, a row a domain or duration_group."""
    found = []
    for model in METHODS:
        rows = predictions.get((model, name), [])
        for group in sorted({row[field] for row in rows} - {None}):
            own = [row for row in rows if row[field] == group]
            found.append({"model": model, field: group, **summary(own)})
    return found


def summary(rows: Sequence[Mapping]) -> dict:
    """Accuracy under both rules with intervals, chance, and what went wrong."""
    n, of = len(rows), max(row.get("of", 0) for row in rows)
    found = {"n": n, **({"of": of} if of else {})}
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


def metrics(rows: Sequence[Mapping]) -> dict:
    """What metrics.json keeps of a model on a set: `summary`; parse_failure_lenient (no
    letter by that rule), a share of all rows; mean_tokens."""
    if not rows:
        raise ValueError("no rows: metrics of nothing are not defined")
    found, n = summary(rows), len(rows)
    found["parse_failure_lenient"] = sum(row["lenient"] is None for row in rows) / n
    found["mean_tokens"] = sum(row["tokens"] for row in rows) / n
    return found


@lru_cache
def published() -> dict:
    """The numbers of the paper by set, domain and duration_group, and tables of its
    follow-up, with their sources (lib/analysis/published.json)."""
    return read_json(Path(__file__).with_name("published.json"))


def published_accuracy(model: str, name: str) -> float:
    """The paper's accuracy of a method on a set, as a share."""
    entry = published()["set"][name]
    return entry["correct"][model] / entry["n"]


def published_differences() -> dict:
    """{(a, b, set): the paper's difference}, unpaired: its answers are not public."""
    found = {}
    for name, entry in published()["set"].items():
        for a, b in PAIRS:
            counts = ((entry["correct"][model], entry["n"]) for model in (a, b))
            found[a, b, name] = stats.unpaired_difference(*counts)
    return found


def span(row: Mapping, value: str) -> str:
    """A row's share, or difference, with its interval, 47.3 [44.9, 49.8]."""
    if row[value] is None:
        return f"– ({row['missing']})"
    return tables.span(row[value], row["low"], row["high"], value == "difference")


def accuracies_markdown(rows: Sequence[Mapping]) -> str:
    """The method x level table with n, both parsing rules, and what went wrong."""
    return tables.markdown(
        {
            "method": LABELS[row["model"]],
            "set": called(row),
            "n": row["n"],
            "accuracy %, first letter": span(row, "accuracy"),
            "accuracy %, lenient": tables.span(
                *(row[f"{key}_lenient"] for key in ("accuracy", "low", "high"))
            ),
            "no answer parsed %": tables.percent(row["parse_failure"]),
            "truncated %": tables.percent(row["truncated"]),
            "failed videos": row["failed_videos"],
            "chance %": tables.percent(row["chance"]),
        }
        for row in rows
    )


def differences_markdown(rows: Sequence[Mapping]) -> str:
    """Paired differences in points, with the discordant questions they rest on."""
    return tables.markdown(
        {
            "comparison": difference(row["a"], row["b"]),
            "set": called(row),
            "n": row["n"],
            "difference, points": span(row, "difference"),
            "only the first right": row.get("wins", "–"),
            "only the second right": row.get("losses", "–"),
            "McNemar p": "–" if row["p"] is None else f"{row['p']:.2g}",
        }
        for row in rows
    )


def out_of_distribution_markdown(rows: Sequence[Mapping]) -> str:
    """GRPO's advantage over SFT there, less the same on L1, in points."""
    head = "difference of differences, points"
    return tables.markdown(
        {
            "GRPO − SFT": f"on {_at(row, 'there')}, less that on {_at(row, 'here')}",
            "n": f"{row['n_there']} and {row['n_here']}",
            head: span(row, "difference"),
        }
        for row in rows
    )


def _at(row: Mapping, key: str) -> str:
    return named(row[key], row[f"n_{key}"], row.get(f"of_{key}", 0))


def beside_paper_markdown(rows: Sequence[Mapping]) -> str:
    """Our accuracies beside the paper's: another model, and often other data."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = {row["model"]: row for row in rows if row["set"] == name}
        line = {"set": called(own["base"]), "n": own["base"]["n"]}
        for model in METHODS:
            here, there = own[model]["accuracy"], published_accuracy(model, name)
            line[f"{LABELS[model]} %"] = tables.percent(here)
            line[f"paper's {LABELS[model]} %"] = tables.percent(there)
        lines.append(line | {"paper's n": published()["set"][name]["n"]})
    return tables.markdown(lines)
