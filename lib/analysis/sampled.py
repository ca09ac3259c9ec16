"""What a model can say, from several answers to each question (lib/evaluate/draws.py).

pass@k is the chance that of k answers at least one counts, without bias from n >= k
draws of which c count: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).
With four options a guesser has pass@8 = 90 %. So beside it the same where an answer
counts that is right *and* says truly what was done, which only a generator can tell.

>>> round(pass_at(1, n=4, c=1), 2), round(pass_at(2, n=4, c=1), 2)
(0.25, 0.5)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import comb
from pathlib import Path

import numpy as np

from lib.analysis import stats
from lib.analysis.compare import span
from lib.evaluate import tables
from lib.methods import LABELS
from lib.records import read_jsonl

DECISIONS = {  # (field of lib/mini/reasoning.py, decided well, decided badly)
    "says what was done": ("progress", ("right", "wrong"), ("absent", "unreadable")),
    "says it truly and in full": ("progress", ("right",), ("wrong",)),
    "counts the goal's steps in it rightly": ("count", ("right",), ("wrong",)),
    "takes the step that follows": ("follows", ("yes",), ("no",)),
    "gives that step's letter": ("consistent", ("yes",), ("no",)),
}
FEW = 30  # answers that come to a decision, and tell nothing of it
COUNTS = {"letter": "right letter", "truth": "right letter and true progress"}


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that k of n draws, of which c count, hold one that counts."""
    return 1 - comb(n - c, k) / comb(n, k)


def _files(run: Path) -> Iterator[tuple[str, str, list[dict]]]:
    """(model, set, rows) of every file of draws, in the order of tables."""
    for file in tables.files(run, "draws"):
        if file[3]:  # not those of training questions
            yield file[2], file[3], read_jsonl(Path(run) / file[0])


def table(run: Path, videos: Mapping[str, str], **draws: int) -> list[dict]:
    """A row for each model, set, what counts and k = 1, 2, 4, ...: n questions, pass,
    low, high; and `kl`, the mean over questions, None for the base. `videos` {question
    id: video}: those on one video are drawn together."""
    rows = []
    for model, name, asked in _files(run):
        kls = [row["kl"] for row in asked if row["kl"] is not None]
        place = {"model": model, "set": name, "n": len(asked)}
        place["kl"] = float(np.mean(kls)) if kls else None
        right = np.array([row["right"] for row in asked])  # [questions, draws]
        counted, n = {"letter": right}, right.shape[1]
        clusters = [[videos[row["id"]] for row in asked]]
        if all(row["said"] for row in asked):
            true = [[own["progress"] == "right" for own in r["said"]] for r in asked]
            counted["truth"] = right * true
        for counts, found in counted.items():
            for k in (2**i for i in range(n.bit_length())):
                values = [pass_at(k, n, c) for c in found.sum(1)]
                own = stats.contrast([values], clusters, bounds=[(0, 1)], **draws)
                own = {"pass": own["effect"], "low": own["low"], "high": own["high"]}
                rows.append(place | {"counts": counts, "k": k} | own)
    return rows


def decisions(run: Path, samples: int, seed: int) -> list[dict]:
    """A row for each model, set and decision along an answer: `answers` that come to
    it, the share of them that decide well, low and high. Of MiniPlan alone."""
    rows = []
    for model, name, asked in _files(run):
        known = all(row["said"] for row in asked)
        drawn = stats.resampling(tuple(range(len(asked))), samples, seed)
        for decision, (field, well, badly) in DECISIONS.items() if known else ():
            said = [(own[field], i) for i, r in enumerate(asked) for own in r["said"]]
            came = [(word in well, i) for word, i in said if word in (*well, *badly)]
            if came:
                good, questions = zip(*came, strict=True)
                low, high = stats.percentiles(drawn.means(good, questions))
                row = {"model": model, "set": name, "decision": decision}
                row |= {"answers": len(came), "share": np.mean(good)}
                rows.append(row | {"low": low, "high": high})
    return rows


def decisions_markdown(rows: Iterable[Mapping]) -> str:
    """A line a decision and set, a column a model; of more than FEW answers."""
    cells = []
    for row in (row for row in rows if row["answers"] > FEW):
        line = {"decision": row["decision"], "set": row["set"]}
        cells.append((line, f"{LABELS[row['model']]} %", span(row, "share")))
    return tables.crossed(cells)


def markdown(rows: Iterable[Mapping]) -> str:
    """A line a model, set and what counts; k across."""
    cells = []
    for row in rows:
        line = {"model": LABELS[row["model"]], "set": row["set"], "n": row["n"]}
        line["counts"] = COUNTS[row["counts"]]
        cells.append((line, f"pass@{row['k']}", span(row, "pass")))
    return tables.crossed(cells)


def moved_markdown(rows: Sequence[Mapping], forgot: Sequence[Mapping]) -> str:
    """How far training has moved a model, beside what was forgotten: KL to what it was
    trained on, in nats an answer, by set, and `forgot`, rows of `compare.differences`
    to the base on the general set."""
    cells, lost = [], {row["a"]: row for row in forgot}
    for row in rows:
        if row["kl"] is not None and row["k"] == 1 and row["counts"] == "letter":
            told = f"{row['kl']:z.2f}".replace("-", "−")
            cells.append((row["model"], f"KL on {row['set']}", told))
    for model in dict.fromkeys(model for model, *_ in cells if model in lost):
        told = span(lost[model], "difference")
        cells.append((model, "general − base, points", told))
    return tables.crossed(({"model": LABELS[own]}, *more) for own, *more in cells)
