"""Does the reasoning support the answer? By measure, method and set
(lib/evaluate/coherence.py).

Each measure is a share of the answers; which of two measures can be trusted where the
truth is not known, says how far they agree where it is.

    found = reasoned(answers)
    found["shares"][0]  # {"set": "L1", "model": "base", "measure": "consistent", ...}

Example: of 12 answers 8 give the letter of the step that their reasoning names:
consistent is 0.67, and the cell right_unsupported counts right letters among the 4.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd

from lib.analysis import compare, stats
from lib.analysis.answers import CONTROLS, SAID
from lib.analysis.compare import kept
from lib.evaluate import tables
from lib.methods import GENERAL, LABELS, METHODS, SEEN, SETS, in_order

MEASURES = {  # of coherence, as a title
    "consistent": "answer is the step that\nthe reasoning names (exact)",
    "follows": "that step follows from the\nstated progress (exact)",
    "progress": "stated progress is\nwhat happened (exact)",
    "false_step": "states a step that\ndid not happen (exact)",
    "base_reader": "the base draws the same\nanswer from the reasoning",
    "own_reader": "the model itself, without\npictures, draws the same",
    "judge": "a language model judges:\nreasoning supports answer",
    "verbatim": "word for word in the\ntraining reasoning",
    "overlap": "4-grams that stand in the\ntraining reasoning",
    "false_object": "names an object that\nis not in the scene (exact)",
}
SUPPORTS = ("consistent", "follows", "base_reader", "own_reader", "judge", "progress")
AGREEMENTS = (
    ("consistent", "base_reader"),
    ("consistent", "own_reader"),
    ("consistent", "judge"),
    ("base_reader", "own_reader"),
    ("base_reader", "judge"),
)
OVER_SEEDS = ("consistent", "base_reader", "progress", "false_step", "overlap")


def reasoned(
    answers: pd.DataFrame, samples: int = compare.SAMPLES, seed: int = 0
) -> dict:
    """Everything that follows from the readings of the reasoning, as plain JSON.

    shares and controls {model, set, measure, n, seeds, share, low, high}; differences
    {a, b, set, measure, n, seeds, difference, low, high}; answers, the four cells of
    right or wrong answer by supported or not; flawless, what of a flawless reasoner's
    words stands in the training reasoning; agreement, Cohen's kappa of two measures. Of
    several seeds the levels stand together as "levels", without differences.
    """
    draws = {"samples": samples, "seed": seed}
    answers = answers[answers.condition == SEEN].astype({"set": str, "measure": str})
    some = answers[answers.measure.isin([*SAID, *CONTROLS])]
    flawless = answers[answers.measure.str.endswith("_flawless")]
    several = answers.seed.nunique() > 1
    if several:
        some = some.assign(set=some.set.where(some.set == GENERAL, "levels"))
    order = {key: i for i, key in enumerate((*MEASURES, *CONTROLS))}
    some = some.sort_values("measure", key=lambda own: own.map(order), kind="stable")
    own = some.measure.isin(CONTROLS)
    by = ("set", "model", "measure")
    found: dict = {"bootstrap_samples": samples, "bootstrap_seed": seed}
    for name, part in (("shares", some[~own]), ("controls", some[own])):
        rows = compare.table(part, by, value="share", **draws)
        found[name] = [kept(row, *by, "share") for row in _sorted(rows)]
    rows = []
    if not several:
        rows = compare.differences(some[~own], by=("set", "measure"), **draws)
    keys = ("a", "b", "set", "measure", "difference")
    found["differences"] = [kept(row, *keys) for row in rows]
    return found | {
        "flawless": _flawless(flawless),
        "answers": _supported(answers),
        "agreement": _agreements(answers, samples, seed),
    }


def _sorted(rows: Iterable[dict]) -> list[dict]:
    """Rows of one set and model together, in the order of every table."""
    sets, models = [*SETS, "levels"], in_order(row["model"] for row in rows)
    return sorted(
        rows, key=lambda row: (sets.index(row["set"]), models.index(row["model"]))
    )


def _wide(answers: pd.DataFrame) -> pd.DataFrame:
    """A row an answer, a column a measure; `set` and `model` beside it."""
    index = ["seed", "model", "set", "id", "video"]
    return answers.pivot(index=index, columns="measure", values="value").reset_index()


def _flawless(answers: pd.DataFrame) -> list[dict]:
    """{set, n, verbatim, overlap} of what a flawless reasoner would say: so much of it
    stands in the training reasoning without any memory of it."""
    rows = []
    for name, own in answers.groupby("set", sort=False):
        means = own.groupby("measure").value.mean()
        shares = {key.removesuffix("_flawless"): v for key, v in means.items()}
        rows.append({"set": name, "n": own.id.nunique()} | shares)
    return rows


def _supported(answers: pd.DataFrame) -> list[dict]:
    """Right or wrong answer by supported or not, for each measure of SUPPORTS.

    right_unsupported is a right letter below reasoning that does not lead to it.
    """
    rows = []
    wide = _wide(answers[answers.measure.isin(["correct", *SUPPORTS])])
    for (name, model), own in wide.groupby(["set", "model"], observed=True):
        for measure in (m for m in SUPPORTS if m in own):
            said = own.dropna(subset=["correct", measure])
            cells = {
                f"{word}_{kind}": int(
                    ((said.correct == r) & (said[measure] == s)).sum()
                )
                for word, r in (("right", 1), ("wrong", 0))
                for kind, s in (("supported", 1), ("unsupported", 0))
            }
            if len(said):
                place = {"model": model, "set": name, "measure": measure}
                rows.append(place | {"n": len(said)} | cells)
    return _sorted(rows)


def _agreements(answers: pd.DataFrame, samples: int, seed: int) -> list[dict]:
    """Do two measures say the same of the same reasoning? See `agreement`.

    By model, for every pair of AGREEMENTS, over the levels and over the general set.
    "with other" adds, for the exact measure and a reader, each answer once more below
    another question's reasoning: most reasonings of a run support their answers, so
    only there does it show whether the two also agree on reasoning that does not.
    """
    names = {name for pair in AGREEMENTS for name in pair}
    names |= {"consistent_other", *CONTROLS}
    wide = _wide(answers[answers.measure.isin(names)])
    wide["over"] = wide.set.where(wide.set == GENERAL, "levels")
    videos = tuple(sorted({*answers.video}))
    drawn = stats.resampling(videos, samples, seed) if videos else None
    rows = []
    for model in in_order(wide.model):
        for over in ("levels", GENERAL):
            own = wide[(wide.model == model) & (wide.over == over)]
            for first, second in AGREEMENTS:
                same = model == "base" and second == "own_reader"  # as base_reader
                if same or not {first, second} <= {*own.columns}:
                    continue
                pairs = own.dropna(subset=[first, second])
                said = pairs[[first, second, "video"]].to_numpy().tolist()
                if not said:
                    continue
                kinds = {"own": said}
                control = f"{second.removesuffix('_reader')}_other"
                if first == "consistent" and control in own:
                    swapped = own[["consistent_other", control, "video"]].dropna()
                    kinds["with other"] = said + swapped.to_numpy().tolist()
                head = {"model": model, "sets": over, "first": first, "second": second}
                rows += [
                    head | {"reasoning": kind} | agreement(some, drawn)
                    for kind, some in kinds.items()
                ]
    return rows


def agreement(said: Iterable[tuple], drawn: stats.Resampling) -> dict:
    """Counts of the four cells and Cohen's kappa (Cohen 1960) with a 95 % interval.

    `said` are (what the first says, what the second says, video), each 0 or 1. kappa =
    (agreed - expected) / (1 - expected), expected from the two margins. It is None
    where both say the same of everything; resamples without a kappa are left out of its
    interval. Where nearly all is "yes" kappa is low and its interval wide however well
    the two agree: read the counts beside it.
    """
    one, two, videos = zip(*said, strict=True)
    first, second = np.array(one, dtype=float), np.array(two, dtype=float)
    both = (first == second, first, second)
    ends = stats.percentiles(_kappa(*(drawn.means(own, videos) for own in both)))
    kappa = _kappa(*(own.mean() for own in both))
    cells = {
        "both": first * second,
        "only_first": first * (1 - second),
        "only_second": (1 - first) * second,
        "neither": (1 - first) * (1 - second),
    }
    return {
        "n": len(first),
        **{name: int(cell.sum()) for name, cell in cells.items()},
        "kappa": float(kappa) if np.isfinite(kappa) else None,
        **dict(zip(("low", "high"), ends, strict=True)),
    }


def _kappa(same, first, second):
    expected = first * second + (1 - first) * (1 - second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(same - expected, 1 - expected)


def measure(name: str) -> str:
    """A measure in words, on one line."""
    return MEASURES[name].replace("\n", " ")


def shares_markdown(found: Mapping) -> str:
    """A line a measure and set: the share of each method and GRPO − SFT, in points."""
    gaps = [r for r in found["differences"] if (r["a"], r["b"]) == ("grpo", "sft")]
    sizes = {(row["measure"], row["set"]): row["n"] for row in gaps}
    rows = [row for row in found["shares"] if row["model"] in METHODS]
    rows = [r for r in (*rows, *gaps) if (r["measure"], r["set"]) in sizes]
    rows.sort(key=lambda row: list(MEASURES).index(row["measure"]))
    down = {
        "measure": lambda row: measure(row["measure"]),
        "set": lambda row: row["set"],
        "n": lambda row: sizes[row["measure"], row["set"]],
    }

    def cell(row: Mapping) -> str:
        value = "share" if "share" in row else "difference"
        return compare.spans(value, signed=value == "difference")(row)

    def head(row: Mapping) -> str:
        return f"{LABELS[row['model']]} %" if "share" in row else "GRPO − SFT, points"

    return compare.markdown(rows, down, head, cell)


def over_seeds_markdown(found: Mapping, over: str = "levels") -> str:
    """A line a measure, a column a method: shares with intervals, in per cent."""
    rows = [
        row
        for measured in OVER_SEEDS
        for row in found["shares"]
        if (row["set"], row["measure"]) == (over, measured)
    ]
    size = f"{rows[0]['n']:,} questions × {rows[0]['seeds']} seeds"
    down = {f"% of answers, {over}: {size}": lambda row: measure(row["measure"])}
    return compare.markdown(
        rows, down, lambda row: LABELS[row["model"]], compare.spans("share")
    )


def agreement_markdown(found: Mapping) -> str:
    """A line a pair of measures: the four counts and kappa with its interval."""
    columns = {
        "method": lambda row: LABELS[row["model"]],
        "sets": lambda row: row["sets"],
        "first": lambda row: measure(row["first"]),
        "second": lambda row: measure(row["second"]),
        "reasoning": lambda row: row["reasoning"],
        "both yes": lambda row: row["both"],
        "only first": lambda row: row["only_first"],
        "only second": lambda row: row["only_second"],
        "both no": lambda row: row["neither"],
        "kappa": kappa_text,
    }
    return tables.markdown(found["agreement"], columns)


def reader_markdown(found: Mapping) -> str:
    """How often the reader that needs no truth says what the exact measure says."""
    rows = [
        row
        for row in found["agreement"]
        if (row["first"], row["second"]) == ("consistent", "base_reader")
        and row["sets"] == "levels"
    ]
    if not rows:
        return "The truth is not known on these data: there is no exact measure.\n"
    columns: dict[str, Callable] = {
        "method": lambda row: LABELS[row["model"]],
        "reasoning": lambda row: row["reasoning"],
        "n": lambda row: f"{row['n']:,}",
        "same verdict %": lambda row: tables.percent(
            (row["both"] + row["neither"]) / row["n"]
        ),
        "kappa (95 % interval)": kappa_text,
    }
    head = "The reader that needs no truth against the exact measure, levels:\n\n"
    return head + tables.markdown(rows, columns)


def kappa_text(row: Mapping) -> str:
    """Kappa with its interval, 0.72 [0.70, 0.75], of a row of `agreement`."""
    if row["kappa"] is None:
        return "not defined"
    text = f"{row['kappa']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return text.replace("-", "−")
