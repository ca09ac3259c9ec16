"""Does the reasoning support the answer? Measured without a judge, and against truth.

The paper (SEED-Bench-R1, arXiv 2503.24376, abstract) says that RL answers better with
less coherent reasoning, and that SFT memorises its reasoning; its follow-up (GRPO-CARE,
arXiv 2506.16141) puts a number on it with a judge whose prompt is not released. Here:

* readers, on any data (`lib/readers.py`): what a model would answer from question,
  options and reasoning alone. The base reads for all methods, and every method reads
  its own. If reader and completion agree, the reasoning led to the answer.
* exact, where the truth behind a question is known (`lib/mini/reasoning.py`).
* a language model as judge, where there is one (`lib/judge.py`).
* memorised reasoning: what of it stands word for word in the training reasoning.

Example: reasoning "I see wash tomato. Next is cut tomato.", answer D, "plate tomato".
The reader gives B, "cut tomato", 0.99: the answer does not come from the reasoning, and
the row has base_reader False, consistent "no".
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lib import evaluate, evidence_plots, plots, records, stats, tables
from lib.paths import require
from lib.questions import Question
from lib.readers import READERS, half_away, names_letter, reading_file, reasoning_of

EXACT = ("progress", "next", "consistent", "follows", "false_step", "false_object")


def _says(field: str, word: str) -> Callable[[Mapping], float | None]:
    """Whether an exact field says this, 0 or 1; None where the truth is not known."""
    return lambda row: None if row[field] is None else float(row[field] == word)


# What a row says, as 0 or 1 (or a share); a measure is left out where no row has it.
MEASURES: dict[str, Callable[[Mapping], float | None]] = {
    "consistent": _says("consistent", "yes"),
    "follows": _says("follows", "yes"),
    "base_reader": lambda row: float(row["base_reader"]),
    "own_reader": lambda row: float(row["own_reader"]),
    "judge": lambda row: float(row["judge"] is True) if row["judged"] else None,
    "progress": _says("progress", "right"),
    "false_step": _says("false_step", "yes"),
    "false_object": _says("false_object", "yes"),
    "verbatim": lambda row: float(row["verbatim"]),
    "overlap": lambda row: row["overlap"],
}
SUPPORTS = ("consistent", "follows", "base_reader", "own_reader", "judge", "progress")
CONTROLS = {  # readers with another question's reasoning, or without any
    control: lambda row, field=f"implied_{control}": float(_agrees(row, field))
    for control in ("base_other", "base_none", "own_other", "own_none")
}
AGREEMENTS = (
    ("consistent", "base_reader"),
    ("consistent", "own_reader"),
    ("consistent", "judge"),
    ("base_reader", "own_reader"),
    ("base_reader", "judge"),
)

_WORD = re.compile(r"[\w'-]+")

Rows = dict[tuple[str, str], list[dict]]


# --- memorised reasoning --------------------------------------------------------------


class TrainingReasoning:
    """The reasoning of the demonstrations, to find a completion's words in."""

    def __init__(self, responses: Iterable[str], size: int = 4):
        self.size = size
        self.texts: set[str] = set()
        self.grams: set[tuple[str, ...]] = set()
        for response in responses:
            if reasoning := reasoning_of(response):
                self.texts.add(_plain(reasoning))
                self.grams.update(self._grams(reasoning))

    def holds(self, reasoning: str | None) -> bool:
        """Whether it is, word for word and nouns included, one of the training set."""
        return reasoning is not None and _plain(reasoning) in self.texts

    def overlap(self, reasoning: str | None) -> float:
        """The share of its word 4-grams that occur there; 0 where it has none."""
        grams = self._grams(reasoning or "")
        return sum(g in self.grams for g in grams) / len(grams) if grams else 0.0

    def _grams(self, text: str) -> list[tuple[str, ...]]:
        words = _WORD.findall(text.lower())
        return list(zip(*(words[i:] for i in range(self.size)), strict=False))


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- the rows of a run ----------------------------------------------------------------


def rows_of(
    run: str | Path,
    label: str,
    name: str,
    training: TrainingReasoning,
    exact: Callable | None = None,
    flawless: Mapping[str, str] | None = None,
) -> list[dict]:
    """One row a prediction, also written to run/coherence_<label>_<set>.jsonl.

    A row holds
    id, answer (the letter given), correct;
    base_reader, own_reader: whether the reader comes to that answer; implied_base,
    implied_own and probabilities_base, probabilities_own: to which it comes (None where
    there is no reasoning); implied_<reader>_other and _none, the controls;
    names_letter; verbatim, overlap: see TrainingReasoning;
    judged, judge (True, False, None where the call failed) and judge_error;
    with `exact` (lib.mini.reasoning.checker) its fields, and consistent_other, the same
    with another question's reasoning; with `flawless` (of that module) verbatim and
    overlap of what a flawless reasoner would say. None where the truth is not known.

    The base reads for itself, so its two readers are one. Raises FileNotFoundError
    where predictions or readings are missing.
    """
    run, predicted = Path(run), f"predictions_{label}_{name}.jsonl"
    predictions = records.read_jsonl(require(run / predicted, "run 04_eval first"))
    read = {}
    for reader in READERS:
        source = "base" if label == "base" else reader
        path = require(reading_file(run, source, label, name), "run 04_eval first")
        read[reader] = {row["id"]: row for row in records.read_jsonl(path)}
    judged = _judgements(run / f"judgements_{label}_{name}.jsonl")
    thoughts = [reasoning_of(row["completion"]) for row in predictions]
    rows = []
    for row, thought, other in zip(
        predictions, thoughts, half_away(thoughts), strict=True
    ):
        ideal = (flawless or {}).get(row["id"])
        found = {"id": row["id"], "answer": row["first_letter"]}
        found |= {"correct": row["correct"]}
        found |= _implied({r: own[row["id"]] for r, own in read.items()})
        found |= {
            f"{reader}_reader": _agrees(found, f"implied_{reader}")
            for reader in READERS
        }
        found |= exact(row, thought) if exact else dict.fromkeys(EXACT)
        found |= {
            "consistent_other": exact(row, other)["consistent"] if exact else None,
            "names_letter": names_letter(thought),
            "verbatim": training.holds(thought),
            "overlap": round(training.overlap(thought), 4),
            "verbatim_flawless": ideal and training.holds(ideal),
            "overlap_flawless": ideal and round(training.overlap(ideal), 4),
        }
        rows.append(found | judged.get(row["id"], UNJUDGED))
    records.write_jsonl(run / f"coherence_{label}_{name}.jsonl", rows)
    return rows


def read_rows(run: str | Path, labels: Sequence[str], sets: Sequence[str]) -> Rows:
    """{(label, set): rows} of the coherence files of a run."""
    return {
        (label, name): records.read_jsonl(
            require(Path(run) / f"coherence_{label}_{name}.jsonl", "run 04_eval first")
        )
        for name in sets
        for label in labels
    }


UNJUDGED = {"judged": False, "judge": None, "judge_error": None}


def _judgements(path: Path) -> dict[str, dict]:
    """{id: fields} of what a judge said; a later row of a question counts."""
    if not path.exists():
        return {}
    return {
        row["id"]: {
            "judged": True,
            "judge": row["supports"],
            "judge_error": row["error"],
        }
        for row in records.read_jsonl(path)
    }


def _implied(read: Mapping[str, Mapping]) -> dict:
    found = {}
    for reader, row in read.items():
        found[f"implied_{reader}"] = _likeliest(row["own"])
        found[f"probabilities_{reader}"] = row["own"]
        for control in ("other", "none"):
            found[f"implied_{reader}_{control}"] = _likeliest(row[control])
    return found


def _agrees(row: Mapping, field: str) -> bool:
    return row["answer"] is not None and row[field] == row["answer"]


def _likeliest(probabilities: Mapping[str, float] | None) -> str | None:
    return max(probabilities, key=probabilities.get) if probabilities else None


# --- shares, differences, agreement ---------------------------------------------------


def clusters_of(questions: Mapping[str, Question]) -> dict[str, str]:
    """{question id: its video}, or its still where it has no video: questions on one
    video are not independent."""
    return {key: str(q.video or q.image or key) for key, q in questions.items()}


class Resampling:
    """Resamples of clusters, drawn once for all that is measured on them.

    The intervals are those of stats.bootstrap_interval with the same clusters, samples
    and seed; drawing once makes a hundred of them cheap, and lets several means come
    from the same resamples, as kappa needs it.
    """

    def __init__(self, clusters: Iterable[str], samples: int, seed: int):
        names = sorted(set(clusters))
        self.place = {name: i for i, name in enumerate(names)}
        self.weights = np.empty((samples, len(names)), np.float32)
        rng = np.random.default_rng(seed)
        chunk = max(1, stats.CELLS_AT_ONCE // len(names))
        for start in range(0, samples, chunk):
            part = self.weights[start : start + chunk]
            drawn = rng.integers(len(names), size=part.shape)
            drawn += len(names) * np.arange(len(part))[:, None]
            counts = np.bincount(drawn.ravel(), minlength=part.size)
            part[:] = counts.reshape(part.shape)

    def means(self, values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
        """The mean of `values` [n] in each resample: [samples]."""
        at = np.array([self.place[name] for name in clusters])
        size = self.weights.shape[1]
        sums = np.bincount(at, weights=values, minlength=size)
        both = np.stack([sums, np.bincount(at, minlength=size)], 1)
        totals = self.weights @ both.astype(np.float32)  # one type, or no BLAS
        with np.errstate(invalid="ignore"):
            return totals[:, 0] / totals[:, 1]

    def interval(
        self, values: Sequence[float], clusters: Sequence[str]
    ) -> tuple[float, float]:
        """95 % percentile interval of the mean; resamples without values are left
        out, which only happens where a judge saw a few questions."""
        return _percentiles(self.means(values, clusters))


def summary(
    rows: Rows,
    clusters: Mapping[str, str],
    samples: int,
    seed: int,
) -> dict:
    """Everything that follows from the rows {(model, set): rows}, as plain JSON.

    `clusters` {question id: what it shares with others} as of `clusters_of`. shares,
    differences and controls come with 95 % bootstrap intervals over clusters; answers
    are the four cells of right or wrong answer by supported or not; exact are counts of
    each word; agreement is Cohen's kappa of two measures.
    """
    found: dict[str, list] = {"shares": [], "differences": [], "controls": []}
    for name in tables.sets_of(rows):
        own = {model: part for (model, s), part in rows.items() if s == name}
        ids = [row["id"] for row in next(iter(own.values()))]
        drawn = Resampling([clusters[key] for key in ids], samples, seed)
        given = name, own, clusters, drawn
        found["shares"] += shares(*given, MEASURES)
        found["differences"] += differences(*given)
        found["controls"] += shares(*given, CONTROLS)
    everything = [clusters[row["id"]] for part in rows.values() for row in part]
    drawn = Resampling(everything, samples, seed)
    return {
        "bootstrap_samples": samples,
        "bootstrap_seed": seed,
        **found,
        "flawless": flawless_shares(rows),
        "answers": answers(rows),
        "exact": exact_counts(rows),
        "agreement": agreements(rows, clusters, drawn),
        "names_letter": {
            f"{model} {name}": evaluate.share(row["names_letter"] for row in part)
            for (model, name), part in rows.items()
        },
    }


def shares(
    name: str,
    rows: Mapping[str, Sequence[dict]],
    clusters: Mapping[str, str],
    drawn: Resampling,
    measures: Mapping[str, Callable],
) -> list[dict]:
    """{model, set, measure, n, share, low, high}, for each measure that rows have."""
    found = []
    for model, part in rows.items():
        for measure, of in measures.items():
            values = _values(part, of)
            if values:
                numbers = list(values.values())
                low, high = drawn.interval(numbers, [clusters[key] for key in values])
                head = {"model": model, "set": name, "measure": measure}
                head |= {"n": len(numbers), "share": evaluate.share(numbers)}
                found.append(head | {"low": low, "high": high})
    return found


def differences(
    name: str,
    rows: Mapping[str, Sequence[dict]],
    clusters: Mapping[str, str],
    drawn: Resampling,
) -> list[dict]:
    """Paired differences of each measure on a set, a less b, on the same questions:
    {a, b, set, measure, n, difference, low, high}."""
    found = []
    for a, b in tables.COMPARISONS:
        if not {a, b} <= rows.keys():
            continue
        for measure, of in MEASURES.items():
            one, two = _values(rows[a], of), _values(rows[b], of)
            gaps = {key: one[key] - two[key] for key in one if key in two}
            if gaps:
                numbers = list(gaps.values())
                low, high = drawn.interval(numbers, [clusters[key] for key in gaps])
                head = {"a": a, "b": b, "set": name, "measure": measure}
                head |= {"n": len(gaps), "difference": evaluate.share(numbers)}
                found.append(head | {"low": low, "high": high})
    return found


def answers(rows: Rows) -> list[dict]:
    """Right or wrong answer by supported or not, for each measure of SUPPORTS.

    {model, set, measure, n, right_supported, right_unsupported, wrong_supported,
    wrong_unsupported}: the second is a right letter below reasoning that does not lead
    to it.
    """
    found = []
    for (model, name), part in rows.items():
        for measure in SUPPORTS:
            values = _values(part, MEASURES[measure])
            if not values:
                continue
            said = [(r["correct"], values[r["id"]]) for r in part if r["id"] in values]
            head = {"model": model, "set": name, "measure": measure, "n": len(said)}
            cells = {
                "right_supported": said.count((True, 1)),
                "right_unsupported": said.count((True, 0)),
                "wrong_supported": said.count((False, 1)),
                "wrong_unsupported": said.count((False, 0)),
            }
            found.append(head | cells)
    return found


def flawless_shares(rows: Rows) -> list[dict]:
    """{set, n, verbatim, overlap} of what a flawless reasoner would say: so much of it
    stands in the training reasoning without any memory of it."""
    first = {name: part for (_, name), part in reversed(rows.items())}
    return [
        {"set": name, "n": len(part)}
        | {
            field: evaluate.share(row[f"{field}_flawless"] for row in part)
            for field in ("verbatim", "overlap")
        }
        for name, part in reversed(first.items())
        if part[0]["verbatim_flawless"] is not None
    ]


def exact_counts(rows: Rows) -> list[dict]:
    """{model, set, field, n, counts: {word: rows}} of the exact fields."""
    return [
        {"model": model, "set": name, "field": field, "n": len(part), "counts": counts}
        for (model, name), part in rows.items()
        for field in EXACT
        for said in [[row[field] for row in part if row[field] is not None]]
        for counts in [{word: said.count(word) for word in sorted(set(said))}]
        if counts
    ]


def agreements(
    rows: Rows, clusters: Mapping[str, str], drawn: Resampling
) -> list[dict]:
    """Do two measures say the same of the same reasoning? See `agreement`.

    By model, for every pair of AGREEMENTS that the rows have, over the levels (all sets
    but the general one) and over the general set. "with other" adds, for the exact
    measure and a reader, each answer once more below another question's reasoning: most
    reasonings of a run support their answers, so only there does it show whether the
    two also agree on reasoning that does not.
    """
    found = []
    groups: dict[tuple[str, str], list[dict]] = {}
    for (model, name), part in rows.items():
        over = "general" if name == "general" else "levels"
        groups.setdefault((model, over), []).extend(part)
    for (model, over), part in groups.items():
        for first, second in AGREEMENTS:
            if model == "base" and second == "own_reader":
                continue  # the same reader as the other one
            for reasoning, pairs in _pairs(part, first, second).items():
                head = {"model": model, "sets": over, "first": first, "second": second}
                labels = [clusters[key] for key, *_ in pairs]
                said = [values for _, *values in pairs]
                counted = agreement(said, labels, drawn)
                found.append(head | {"reasoning": reasoning} | counted)
    return found


def _pairs(part: Sequence[Mapping], first: str, second: str) -> dict[str, list[tuple]]:
    """(id, what the first says, what the second says) of each row that has both."""
    one, two = (_values(part, MEASURES[measure]) for measure in (first, second))
    pairs = [(key, one[key], two[key]) for key in one if key in two]
    if not pairs:
        return {}
    control = f"{second.removesuffix('_reader')}_other"
    if first != "consistent" or control not in CONTROLS:
        return {"own": pairs}
    swapped = [
        (row["id"], float(row["consistent_other"] == "yes"), CONTROLS[control](row))
        for row in part
    ]
    return {"own": pairs, "with other": pairs + swapped}


def agreement(
    pairs: Sequence[tuple[float, float]], clusters: Sequence[str], drawn: Resampling
) -> dict:
    """Counts of the four cells and Cohen's kappa (Cohen 1960) with a 95 % interval.

    kappa = (agreed - expected) / (1 - expected), expected from the two margins. It is
    None where both say the same of everything. The interval resamples clusters;
    resamples without a kappa are left out of it. Where nearly all is "yes" kappa is
    low and its interval wide however well the two agree: read the counts beside it.
    """
    first, second = np.array(pairs, dtype=float).T
    means = [
        drawn.means(values, clusters) for values in (first == second, first, second)
    ]
    low, high = _percentiles(_kappa(*means))
    kappa = _kappa((first == second).mean(), first.mean(), second.mean())
    return {
        "n": len(pairs),
        "both": int((first * second).sum()),
        "only_first": int((first * (1 - second)).sum()),
        "only_second": int(((1 - first) * second).sum()),
        "neither": int(((1 - first) * (1 - second)).sum()),
        "kappa": float(kappa) if np.isfinite(kappa) else None,
        "low": low,
        "high": high,
    }


def _kappa(same, first, second):
    expected = first * second + (1 - first) * (1 - second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(same - expected, 1 - expected)


def _percentiles(values: np.ndarray) -> tuple[float | None, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    tail = 50 * (1 - stats.CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _values(part: Sequence[Mapping], of: Callable) -> dict[str, float]:
    """{question id: what a measure says of it}, where it says something."""
    found = {row["id"]: of(row) for row in part}
    return {key: value for key, value in found.items() if value is not None}


# --- tables ---------------------------------------------------------------------------


def shares_markdown(found: Mapping) -> str:
    """A line a measure and set: the share of each method and GRPO − SFT, in points."""
    share = {(r["measure"], r["set"], r["model"]): r for r in found["shares"]}
    gaps = {
        (r["measure"], r["set"]): r
        for r in found["differences"]
        if (r["a"], r["b"]) == ("grpo", "sft")
    }
    columns: dict[str, Callable] = {
        "measure": lambda key: evidence_plots.COHERENCE[key[0]].replace("\n", " "),
        "set": lambda key: key[1],
        "n": lambda key: gaps[key]["n"],
    }
    for model in tables.METHODS:
        columns[f"{plots.LABELS[model]} %"] = lambda key, model=model: _span(
            share[*key, model], "share"
        )
    columns["GRPO − SFT, points"] = lambda key: _span(gaps[key], "difference", True)
    return tables.markdown(sorted(gaps, key=_order), columns)


def agreement_markdown(found: Mapping) -> str:
    """A line a pair of measures: the four counts and kappa with its interval."""
    columns = {
        "method": lambda r: plots.LABELS.get(r["model"], r["model"]),
        "sets": lambda r: r["sets"],
        "first": lambda r: evidence_plots.COHERENCE[r["first"]].replace("\n", " "),
        "second": lambda r: evidence_plots.COHERENCE[r["second"]].replace("\n", " "),
        "reasoning": lambda r: r["reasoning"],
        "both yes": lambda r: r["both"],
        "only first": lambda r: r["only_first"],
        "only second": lambda r: r["only_second"],
        "both no": lambda r: r["neither"],
        "kappa": kappa_text,
    }
    return tables.markdown(found["agreement"], columns)


def kappa_text(row: Mapping) -> str:
    """Kappa with its interval, 0.72 [0.70, 0.75], of a row of `agreement`."""
    if row["kappa"] is None:
        return "not defined"
    text = f"{row['kappa']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return text.replace("-", "−")


def _order(key: tuple[str, str]) -> tuple[int, int]:
    return list(MEASURES).index(key[0]), tables.SETS.index(key[1])


def _span(row: Mapping, value: str, signed: bool = False) -> str:
    return tables.span(row[value], row["low"], row["high"], signed)
