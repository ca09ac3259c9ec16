"""Does the reasoning support the answer? By measure, method and set
(lib/evaluate/coherence.py).

Each measure is a share of the answers; which of two measures can be trusted where the
truth is not known, says how far they agree where it is.

Example: of 12 answers 8 give the letter of the step that their reasoning names:
consistent is 0.67, and the cell right_unsupported counts right letters among the 4."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from lib.analysis import compare, stats
from lib.analysis.answers import CONTROLS, SAID
from lib.analysis.compare import kept, span
from lib.evaluate import tables
from lib.methods import GENERAL, LABELS, METHODS, PAIRS, SEEN, SETS, in_order

MEASURES = {  # of coherence, in words
    "consistent": "answer is the step that the reasoning names (exact)",
    "follows": "that step follows from the stated progress (exact)",
    "count": "counts rightly the steps of the goal it states (exact)",
    "progress": "stated progress is what happened (exact)",
    "false_step": "states a step that did not happen (exact)",
    "base_reader": "the base draws the same answer from the reasoning",
    "own_reader": "the model itself, without pictures, draws the same",
    "judge": "a language model judges: reasoning supports answer",
    "unjudged": "the judge's call failed, which counts as no support",
    "verbatim": "word for word in the training reasoning",
    "overlap": "4-grams that stand in the training reasoning",
    "false_object": "names an object that is not in the scene (exact)",
}
SUPPORTS = ("consistent", "follows", "base_reader", "own_reader", "judge", "progress")
AGREEMENTS = (
    ("consistent", "base_reader"),
    ("consistent", "own_reader"),
    ("consistent", "judge"),
    ("base_reader", "own_reader"),
    ("base_reader", "judge"),
)
CELLS = ("right_supported", "right_unsupported", "wrong_supported", "wrong_unsupported")
OVER_SEEDS = ("consistent", "base_reader", "progress", "false_step", "overlap")


def reasoned(
    answers: pd.DataFrame, samples: int = compare.SAMPLES, seed: int = 0
) -> dict:
    """Everything that follows from the readings of the reasoning, as plain JSON. shares
    and controls {model, set, measure, n, seeds, share, low, high}; differences {a, b,
    set, measure, n, seeds, difference, low, high}; answers, the four cells of right or
    wrong answer by supported or not; flawless, what of a flawless reasoner's words
    stands in the training reasoning; agreement, Cohen's kappa of two measures. Of
    several seeds the levels stand together as "levels", without differences, of the
    models whose reasoning was read in all of them."""
    draws, by = {"samples": samples, "seed": seed}, ("set", "model", "measure")
    answers = answers[answers.condition == SEEN].astype({"set": str, "measure": str})
    read = answers[answers.measure == "base_reader"].astype({"model": str})
    if read.empty:
        todo = "give a run a parameter coherence_sets and run 04_eval again"
        raise FileNotFoundError(f"no coherence_*.jsonl says what was read: {todo}")
    answers = answers[answers.seed.isin(read.seed)]
    some, several = answers, answers.seed.nunique() > 1
    if several:
        seeds = read.groupby("model").seed.nunique()
        whole = seeds.index[seeds == answers.seed.nunique()]
        answers = answers[answers.model.isin(whole)]
        some = answers.assign(set=answers.set.where(answers.set == GENERAL, "levels"))
    said, controls = (some[some.measure.isin([*own])] for own in (SAID, CONTROLS))
    rows = () if several else compare.differences(said, by=("set", "measure"), **draws)
    keys = ("a", "b", "set", "measure", "difference")
    said, controls = (
        _sorted(compare.table(own, by, value="share", **draws))
        for own in (said, controls)
    )
    flawless = _wide(answers, ("verbatim_flawless", "overlap_flawless"))
    flawless.columns = flawless.columns.str.removesuffix("_flawless")
    return {
        "bootstrap_samples": samples,
        "bootstrap_seed": seed,
        "shares": [kept(row, *by, "share") for row in said],
        "controls": [kept(row, *by, "share") for row in controls],
        "differences": [kept(row, *keys) for row in rows],
        "flawless": [
            {"set": name, "n": own.id.nunique(), **own.mean(numeric_only=True)}
            for name, own in flawless.drop(columns="seed").groupby("set", sort=False)
        ],
        "answers": _supported(answers),
        "agreement": _agreements(answers, samples, seed),
    }


def _sorted(rows: Iterable[dict]) -> list[dict]:
    """Rows of one set and model together, in the order of every table."""
    rows = list(rows)
    order = {"set": [*SETS, "levels"], "model": in_order(row["model"] for row in rows)}
    order["measure"] = [*MEASURES, *CONTROLS]
    return sorted(rows, key=lambda row: [o.index(row[k]) for k, o in order.items()])


def _wide(answers: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """A row an answer, a column a measure, after what it is of."""
    index = ["seed", "model", "set", "id", "video"]
    own = answers[answers.measure.isin(list(measures))]
    return own.pivot(index=index, columns="measure", values="value").reset_index()


def _supported(answers: pd.DataFrame) -> list[dict]:
    """Counts of right or wrong answers, supported or not, for each of SUPPORTS."""
    wide = _wide(answers, ("correct", *SUPPORTS)).drop(columns=["seed", "id", "video"])
    said = wide.melt(["model", "set", "correct"], var_name="measure").dropna()
    words = said.correct.map({1: "right_", 0: "wrong_"})
    words += said.value.map({1: "supported", 0: "unsupported"})
    counts = pd.crosstab([said.model, said.set, said.measure], words)
    counts = counts.reindex(columns=CELLS, fill_value=0)
    counts.insert(0, "n", counts.sum(axis=1))
    return _sorted(counts.reset_index().to_dict("records"))


def _agreements(answers: pd.DataFrame, samples: int, seed: int) -> list[dict]:
    """Do two measures say the same of the same reasoning? By model, for every pair of
    AGREEMENTS, over the levels and the general set. "with other" adds, for the exact
    measure and a reader, each answer below another question's reasoning: most
    reasonings support their answers, so only there do disagreements show."""
    names = {name for pair in AGREEMENTS for name in pair}
    wide, rows = _wide(answers, {"consistent_other", *CONTROLS, *names}), []
    wide["over"] = wide.set.where(wide.set == GENERAL, "levels")
    videos = tuple(sorted({*answers.video}))
    for model in in_order(wide.model):
        for over in ("levels", GENERAL):
            own = wide[(wide.model == model) & (wide.over == over)]
            for first, second in AGREEMENTS:
                same = model == "base" and second == "own_reader"  # as base_reader
                if same or not {first, second} <= {*own.columns}:
                    continue
                said = own[[first, second, "video"]].dropna().to_numpy().tolist()
                kinds = {"own": said} if said else {}
                control = f"{second.removesuffix('_reader')}_other"
                if said and first == "consistent" and control in own:
                    swapped = own[["consistent_other", control, "video"]].dropna()
                    kinds["with other"] = said + swapped.to_numpy().tolist()
                head = {"model": model, "sets": over, "first": first, "second": second}
                for kind, pairs in kinds.items():
                    counts = agreement(pairs, stats.resampling(videos, samples, seed))
                    rows.append(head | {"reasoning": kind} | counts)
    return rows


def agreement(said: Iterable[tuple], drawn: stats.Resampling) -> dict:
    """Counts of the four cells and Cohen's kappa (Cohen 1960) with a 95 % interval.
    `said` are (0 or 1 by the first, by the second, video). kappa is None where both say
    the same of everything. Where nearly all is "yes" kappa is low and its interval wide
    however well the two agree: read the counts beside it."""
    one, two, videos = zip(*said, strict=True)
    first, second = np.array(one, dtype=float), np.array(two, dtype=float)
    both = (first == second, first, second)
    ends = stats.percentiles(_kappa(*(drawn.means(own, videos) for own in both)))
    kappa = _kappa(*(own.mean() for own in both))
    return {
        "n": len(first),
        "both": int((first * second).sum()),
        "only_first": int((first * (1 - second)).sum()),
        "only_second": int(((1 - first) * second).sum()),
        "neither": int(((1 - first) * (1 - second)).sum()),
        "kappa": float(kappa) if np.isfinite(kappa) else None,
        **dict(zip(("low", "high"), ends, strict=True)),
    }


def _kappa(same, first, second):
    expected = first * second + (1 - first) * (1 - second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(same - expected, 1 - expected)


def flat(shares: Iterable[Mapping]) -> list[str]:
    """Measures that tell nothing apart: every method and set within two points."""
    found: dict[str, list[float]] = {}
    for row in shares:
        found.setdefault(row["measure"], []).append(row["share"])
    return [name for name, own in found.items() if max(own) - min(own) < 0.02]


def shares_markdown(found: Mapping) -> str:
    """A line a measure and set: the share of each method and GRPO − SFT, in points."""
    gaps = [r for r in found["differences"] if (r["a"], r["b"]) == PAIRS[0]]
    sizes = {(row["measure"], row["set"]): row["n"] for row in gaps}
    rows = [row for row in found["shares"] if row["model"] in METHODS]
    rows = [r for r in (*rows, *gaps) if (r["measure"], r["set"]) in sizes]
    cells = []
    for row in sorted(rows, key=lambda row: list(MEASURES).index(row["measure"])):
        line = {"measure": MEASURES[row["measure"]], "set": row["set"]}
        line["n"] = sizes[row["measure"], row["set"]]
        if "share" in row:
            cells.append((line, f"{LABELS[row['model']]} %", span(row, "share")))
        else:
            cells.append((line, "GRPO − SFT, points", span(row, "difference")))
    return tables.crossed(cells)


def over_seeds_markdown(found: Mapping, over: str = "levels") -> str:
    """A line a measure, a column a method: shares with intervals, in per cent."""
    rows = [
        row
        for measured in OVER_SEEDS
        for row in found["shares"]
        if (row["set"], row["measure"]) == (over, measured)
    ]
    size = f"{rows[0]['n']:,} questions × {rows[0]['seeds']} seeds"
    head = f"% of answers, {over}: {size}"
    return tables.crossed(
        ({head: MEASURES[row["measure"]]}, LABELS[row["model"]], span(row, "share"))
        for row in rows
    )


def agreement_markdown(found: Mapping) -> str:
    """A line a pair of measures: the four counts and kappa with its interval."""
    return tables.markdown(
        {
            "method": LABELS[row["model"]],
            "sets": row["sets"],
            "first": MEASURES[row["first"]],
            "second": MEASURES[row["second"]],
            "reasoning": row["reasoning"],
            "both yes": row["both"],
            "only first": row["only_first"],
            "only second": row["only_second"],
            "both no": row["neither"],
            "kappa": kappa_text(row),
        }
        for row in found["agreement"]
    )


def reader_markdown(found: Mapping) -> str:
    """How often the reader that needs no truth says what the exact measure says."""
    pair = ("consistent", "base_reader", "levels")
    lines = [
        {
            "method": LABELS[row["model"]],
            "reasoning": row["reasoning"],
            "n": f"{row['n']:,}",
            "same verdict %": tables.percent((row["both"] + row["neither"]) / row["n"]),
            "kappa (95 % interval)": kappa_text(row),
        }
        for row in found["agreement"]
        if (row["first"], row["second"], row["sets"]) == pair
    ]
    if not lines:
        return "The truth is not known on these data: there is no exact measure.\n"
    head = "The reader that needs no truth against the exact measure, levels:\n\n"
    return head + tables.markdown(lines)


def kappa_text(row: Mapping) -> str:
    """Kappa with its interval, 0.72 [0.70, 0.75], of a row of `agreement`."""
    if row["kappa"] is None:
        return "not defined"
    text = f"{row['kappa']:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]"
    return text.replace("-", "−")
