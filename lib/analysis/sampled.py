"""What a model can say, from several answers to each question (lib/evaluate/draws.py).

pass@k is the chance that of k answers at least one counts, without bias from n >= k
draws of which c count: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).
With four options a guesser has pass@8 = 90 %. So beside it the same where an answer
counts that is right *and* says truly what was done, which only a generator can tell.

>>> round(pass_at(1, n=4, c=1), 2), round(pass_at(2, n=4, c=1), 2)
(0.25, 0.5)
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from pathlib import Path

import numpy as np

from lib.analysis import stats
from lib.evaluate import tables
from lib.methods import LABELS, SETS, in_order
from lib.records import read_jsonl

FILE = re.compile(rf"draws_(.+)_({'|'.join(SETS)})\.jsonl")
COUNTS = {"letter": "right letter", "truth": "right letter and true progress"}


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that k of n draws, of which c count, hold one that counts."""
    return 1 - comb(n - c, k) / comb(n, k)


def table(run: Path, **draws: int) -> list[dict]:
    """A row for each model, set, what counts and k = 1, 2, 4, ...: n questions, pass,
    low, high; and `kl`, the mean over questions, None for the base."""
    files = (FILE.fullmatch(own.name) for own in Path(run).glob("draws_*"))
    named, rows = {(own[1], own[2]): own[0] for own in files if own}, []
    for model, name in itertools.product(in_order(m for m, _ in named), SETS):
        asked = read_jsonl(run / named[model, name]) if (model, name) in named else []
        kls = [row["kl"] for row in asked if row["kl"] is not None]
        place = {"model": model, "set": name, "n": len(asked)}
        place["kl"] = float(np.mean(kls)) if kls else None
        counted = {"letter": [row["right"] for row in asked]}
        if all(row["true"] for row in asked):
            both = [np.multiply(row["right"], row["true"]) for row in asked]
            counted["truth"] = both
        for counts, found in counted.items() if asked else ():
            n, rights = len(found[0]), [int(sum(own)) for own in found]
            for k in (2**i for i in range(n.bit_length())):
                values = np.array([pass_at(k, n, c) for c in rights])
                own = stats.contrast([values], **draws)
                own = {"pass": own["effect"], "low": own["low"], "high": own["high"]}
                rows.append(place | {"counts": counts, "k": k} | own)
    return rows


def markdown(rows: Iterable[Mapping]) -> str:
    """A line a model, set and what counts; k across."""
    cells = []
    for row in rows:
        line = {"model": LABELS[row["model"]], "set": row["set"], "n": row["n"]}
        ends = row["pass"], row["low"], row["high"]
        line["counts"] = COUNTS[row["counts"]]
        cells.append((line, f"pass@{row['k']}", tables.span(*ends)))
    return tables.crossed(cells)


def moved_markdown(rows: Sequence[Mapping], forgot: Sequence[Mapping]) -> str:
    """How far from the base, beside what was forgotten: KL in nats an answer by set,
    and `forgot`, rows of `compare.differences` to the base on the general set."""
    lost = {row["a"]: row for row in forgot}
    cells = []
    for row in rows:
        if row["kl"] is not None and row["k"] == 1 and row["counts"] == "letter":
            line = {"model": LABELS[row["model"]]}
            cells.append((line, f"KL on {row['set']}", f"{row['kl']:.2f}"))
            if gap := lost.get(row["model"]):
                ends = gap["difference"], gap["low"], gap["high"]
                told = tables.span(*ends, signed=True)
                cells.append((line, "general − base, points", told))
    return tables.crossed(cells)
