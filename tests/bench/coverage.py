"""How often the 95 % intervals of lib/analysis/stats.py hold the truth: a simulation.

    python -m tests.bench.coverage             # one CPU core, 1 minute

Two methods answer the same questions. Whether an answer is right is drawn from a
logistic model with a part of the question, which both methods share, and parts of the
video it is about, of the training seed and of the single answer, of their own; the
true difference is the model's mean. Each case draws 500 data sets and counts the
intervals that hold it; of a true 95 % that gives 93.0 to 96.8 %, by chance.

Beside the intervals as lib/analysis/stats.py makes them stand three that it does not
make, to show what they would miss: `clusters ignored`, `seeds ignored` (the seeds' mean
answer as if of one run) and `not widened` (below five seeds the interval of five)."""

from collections.abc import Mapping
from itertools import product

import numpy as np
from tqdm import tqdm

from lib import paths, records
from lib.analysis import stats
from lib.doors import Door

RECORD = paths.ROOT / "outputs/reference/coverage.json"
ABILITIES = 0.4, 0.0  # of the two methods, on the logit scale
QUESTION_SD, VIDEO_SD, REST_SD = 1.0, 1.0, 0.5
QUESTIONS = 200
SAMPLES = 500  # of a bootstrap


def cases() -> list[dict]:
    """Kind of comparison, seeds, questions a video, spread of the seeds."""
    kinds, spreads = ("difference", "difference of differences"), (0.0, 0.15, 0.5)
    found: list[tuple] = []
    for a_video in (1, 5):
        found += product(kinds, (1,), (a_video,), (0.0,))
        found += product(kinds[:1], (2, 3, 5), (a_video,), spreads)
    found += product(kinds[1:], (3, 5), (1,), spreads)
    names = ("kind", "seeds", "a_video", "seed_sd")
    return [dict(zip(names, case, strict=True)) for case in found]


def truth(case: Mapping) -> float:
    """The true difference of the two methods' shares of right answers."""
    spread = QUESTION_SD**2 + REST_SD**2 + case["seed_sd"] ** 2
    spread += VIDEO_SD**2 * (case["a_video"] > 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    a, b = (
        (weights / (1 + np.exp(-(ability + np.sqrt(spread) * nodes)))).sum()
        for ability in ABILITIES
    )
    return float((a - b) / weights.sum())


def answers(rng: np.random.Generator, case: Mapping, seeds: tuple) -> tuple:
    """Right or wrong of both methods [2, seeds, questions], and each one's video."""
    logit = np.reshape(ABILITIES, (2, 1, 1)) + np.stack(seeds)[..., None]
    logit = logit + rng.normal(0, QUESTION_SD, QUESTIONS)
    videos = np.arange(QUESTIONS)
    if case["a_video"] > 1:
        videos = rng.integers(QUESTIONS // case["a_video"], size=QUESTIONS)
        logit = logit + rng.normal(0, VIDEO_SD, (2, 1, QUESTIONS))[..., videos]
    rest = rng.normal(0, REST_SD, logit.shape)
    right = rng.random(rest.shape) < 1 / (1 + np.exp(-(logit + rest)))
    return right.astype(float), videos


def intervals(rng: np.random.Generator, case: Mapping) -> dict[str, dict]:
    """{how: an interval with low and high} of one data set."""
    size = (2, case["seeds"])
    seeds = tuple(rng.normal(0, case["seed_sd"], size))
    (a, b), videos = answers(rng, case, seeds)
    seed = int(rng.integers(2**31))
    parts, labels = [a - b], [videos]
    if case["kind"] == "difference of differences":
        (c, d), others = answers(rng, case, seeds)  # the same models, other questions
        parts, labels = [a - b, d - c], [videos, others]
    found = {"as built": stats.contrast(parts, labels, SAMPLES, seed)}
    if case["a_video"] > 1:
        found["clusters ignored"] = stats.contrast(parts, None, SAMPLES, seed)
    if case["seeds"] > 1 and len(parts) == 1:
        mean = [part.mean(0, keepdims=True) for part in parts]
        found["seeds ignored"] = stats.contrast(mean, labels, SAMPLES, seed)
        if case["seeds"] < stats.ENOUGH_SEEDS:
            found["not widened"] = _not_widened(parts, labels)
    return found


def _not_widened(parts: list, labels: list) -> dict:
    usual, stats.ENOUGH_SEEDS = stats.ENOUGH_SEEDS, 2
    try:
        return stats.contrast(parts, labels)
    finally:
        stats.ENOUGH_SEEDS = usual


def simulate(case: Mapping, draws: int) -> list[dict]:
    """One row a way to make the interval: covered, and the mean width in points."""
    rng = np.random.default_rng(0)
    true = truth(case) * (case["kind"] != "difference of differences")
    rows: dict[str, list] = {}
    for _ in range(draws):
        for how, row in intervals(rng, case).items():
            held = row["low"] <= true <= row["high"]
            rows.setdefault(how, []).append((held, 100 * (row["high"] - row["low"])))
    return [
        {**case, "interval": how, "draws": draws}
        | {"covered": float(held), "width": round(float(width), 2)}
        for how, found in rows.items()
        for held, width in [np.mean(found, axis=0)]
    ]


def main() -> None:
    parser = Door("python -m tests.bench.coverage", __doc__)
    parser.add_argument("--draws", type=int, default=500, help="data sets a case")
    draws = parser.parse_args().draws
    rows = [row for case in tqdm(cases()) for row in simulate(case, draws)]
    records.write_json(RECORD, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
