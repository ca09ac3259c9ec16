"""Where a model looks while it writes: shares of attention (lib/evaluate/attention.py).

What a model makes of it is another matter: see lib/analysis/seen.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lib.analysis import compare
from lib.analysis.compare import kept, span
from lib.evaluate import tables
from lib.evaluate.tables import OWN, attention_file
from lib.methods import KINDS, METHODS, difference
from lib.paths import require
from lib.records import read_jsonl

PARTS = {"first": "first 3 tokens", "reasoning": "reasoning", "letter": "answer letter"}


def attended(
    answers: pd.DataFrame, texts: Sequence[str] = (OWN, "base"), **draws: int
) -> dict:
    """Means over questions, while each method writes its own words ("own") or all are
    given those of one; only questions count that have numbers for every method, for
    each `where` by itself: an answer without a letter has none of the letter.

    * texts: text, asked, left_out, retokenized (rows whose text gives other tokens);
    * masses: text, model, where, kind, n, seeds, mean, low, high. `where` is "all
      layers", "layer 1" ..., a part of PARTS, or "equal": what equal attention to all
      that is visible would give;
    * differences: text, a, b, where, kind, n, seeds, difference, low, high;
    * by_token: text, model, token (from 1), n, video, still.

    ValueError where the methods were not asked the same questions, or none has numbers.
    """
    found: dict = {"texts": [], "masses": [], "differences": [], "by_token": []}
    by = ("model", "where", "kind")
    for text in texts:
        own, facts = _of_text(answers, text)
        head = {"text": text}
        found["texts"].append(head | facts)
        token = own["where"].str.startswith("token ")
        pictures = own[token & own.kind.isin(KINDS[:2])]
        models = own.groupby(["seed", "where"]).model.transform("nunique")
        have = own.groupby(["seed", "where", "id"]).model.transform("nunique")
        own = own[~token & (have == models)]
        rows = compare.table(own, by, value="mean", **draws)
        found["masses"] += [head | kept(row, *by, "mean") for row in rows]
        some = own[own["where"] != "equal"]
        rows = compare.differences(some, by=("where", "kind"), **draws)
        keys = ("a", "b", "where", "kind", "difference")
        found["differences"] += [head | kept(row, *keys) for row in rows]
        for (model, where), rows in pictures.groupby(["model", "where"], sort=False):
            row = head | {"model": model, "token": int(where.split()[1])}
            row |= {"n": rows.id.nunique(), **rows.groupby("kind").value.mean()}
            found["by_token"].append(row)
    return found


def _of_text(answers: pd.DataFrame, text: str) -> tuple[pd.DataFrame, dict]:
    """The numbers of questions that have them for all, with `where` and `kind`."""
    own = answers[answers.measure.astype(str).str.startswith(f"{text}, ")]
    own = own.astype({"measure": str, "model": str})
    asked = own.groupby("model").id.agg(frozenset)
    for model, ids in asked.items():
        if ids != asked.iloc[0]:
            raise ValueError(f"attention_{model}: other questions than the other rows")
    named = own.measure.str.split(", ", expand=True).reindex(columns=range(3))
    # One set, whatever levels the questions are of.
    own = own.assign(where=named[1], kind=named[2], set="")
    out = set(own.id[(own["where"] == "left out") & (own.value == 1)])
    again = own[(own["where"] == "retokenized") & ~own.id.isin(out)]
    facts = {"asked": own.id.nunique(), "left_out": len(out)}
    own = own[~own.id.isin(out) & (own.kind != "")]
    if own.empty:
        raise ValueError(f"no question has attention of all methods on {text}")
    return own, facts | {"retokenized": int(again.value.sum())}


def markdown(found: Mapping, text: str) -> str:
    """Mass of each method by part, and what training changes, in per cent."""
    own = [row for row in found["masses"] if row["text"] == text]
    means = {(r["model"], r["where"], r["kind"]): r["mean"] for r in own}
    lines = []
    for row in found["differences"]:
        where, kind = row["where"], row["kind"]
        if row["text"] != text or kind == KINDS[-1] or where.startswith("layer "):
            continue
        both = [tables.percent(means[row[side], where, kind]) for side in ("a", "b")]
        lines.append(
            {
                "while writing": PARTS.get(where, "everything"),
                "attention on": kind,
                "comparison": difference(row["a"], row["b"]),
                "n": row["n"],
                "% of attention": " − ".join(both),
                "difference, points": span(row, "difference"),
            }
        )
    return tables.markdown(lines)


def read_rows(run: Path, text: str) -> dict[str, dict[str, dict]]:
    """{method: {id: row}} of the questions that have numbers for every method: pictures
    to look at. `attended` raises where they were not asked the same questions."""
    found = {}
    for model in METHODS:
        todo = f"run 04_eval with {model} in perception_models"
        path = require(attention_file(run, model, text), todo)
        rows = read_jsonl(path)
        found[model] = {row["id"]: row for row in rows if "left_out" not in row}
    all_have = set.intersection(*({*own} for own in found.values()))
    return {
        model: {key: row for key, row in own.items() if key in all_have}
        for model, own in found.items()
    }


def example(rows: Mapping[str, Mapping], said: Mapping[str, Mapping]) -> str:
    """The first question, by id, with a video that GRPO answers and the base does not,
    or just with a video. `said` is {method: {id: prediction}}."""
    filmed = sorted(key for key, row in rows["base"].items() if row["video_map"])
    for key in filmed:
        if said["grpo"][key]["correct"] and not said["base"][key]["correct"]:
            return key
    return filmed[0]
