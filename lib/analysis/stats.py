"""Intervals and tests for accuracies on shared questions, from arrays of 0 and 1.

Every method answers the same questions, so two methods are compared question by
question. One accuracy has Wilson's score interval; a paired difference a percentile
bootstrap over questions, or over their videos, and the exact McNemar test; several
seeds, which all answer every question, an interval with both components of variance
(Searle, Casella and McCulloch 1992, chapter 4). How often these hold the truth is
simulated by `python -m tests.bench.coverage` (outputs/reference/coverage.json).

Example: GRPO is right and SFT wrong on 8 of 20 questions, the reverse on 2. The paired
difference is (8 - 2) / 20 = 0.30 and the exact McNemar p is
2 * (C(10,0) + C(10,1) + C(10,2)) / 2**10 = 0.109: not yet a finding."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
ENOUGH_SEEDS = 5  # below, `mean_over_seeds` widens its interval
ENOUGH_TELLING = 10  # questions that tell methods apart; below, `contrast` widens
POWER = 0.8


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share, k of n (Wilson 1927)."""
    share, weight = k / n, Z**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = Z * sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # At k = 0 and k = n one end is 0 or 1; rounding must not move it outside.
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided p: are the questions that only the first (`wins`), or only the second
    method got right as tosses of a fair coin (McNemar 1947)?"""
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(fewer + 1)) / 2**n)


def holm(ps: Sequence[float]) -> list[float]:
    """p of several tests, each as large as its being one of them makes it (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    ranks = [sorted(ps).index(p) for p in ps]
    steps = [(len(ps) - rank) * p for rank, p in enumerate(sorted(ps))]
    return [min(1.0, max(steps[: rank + 1])) for rank in ranks]


class Resampling:
    """Resamples of clusters (videos), drawn once for all that is measured on them."""

    def __init__(self, clusters: Iterable, samples: int, seed: int | Sequence[int]):
        names = sorted({*clusters})
        self.place = {name: i for i, name in enumerate(names)}
        self.weights = np.empty((samples, len(names)), np.float32)
        rng, count = np.random.default_rng(seed), len(names)
        for rows in np.array_split(self.weights, -(-self.weights.size // 2**18)):
            drawn = rng.integers(count, size=rows.shape)
            drawn += count * np.arange(len(rows))[:, None]  # each row its own numbers
            rows.flat = np.bincount(drawn.ravel(), None, rows.size)

    def means(self, values: Sequence[float], clusters: Sequence) -> np.ndarray:
        """The mean of `values` [n] in each resample, NaN where it has none: [samples].
        All questions of a drawn cluster count."""
        at, size = [self.place[name] for name in clusters], len(self.place)
        sums, counts = np.bincount(at, values, size), np.bincount(at, None, size)
        if (counts == 1).all():
            return self.weights @ sums.astype(np.float32) / size
        both = np.stack([sums, counts], 1)
        totals = self.weights @ both.astype(np.float32)  # one type, or no BLAS
        with np.errstate(invalid="ignore"):
            return totals[:, 0] / totals[:, 1]


@lru_cache(maxsize=8)
def resampling(clusters: tuple, samples: int, seed: int, part: int = 0) -> Resampling:
    """The resamples of these clusters; each part of a sum has its own."""
    return Resampling(clusters, samples, [seed, part])


def percentiles(values: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of a 95 % interval of drawn values, of those that are numbers."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def contrast(
    parts: Sequence[np.ndarray],
    clusters: Sequence[Sequence] | None = None,
    samples: int = 10_000,
    seed: int = 0,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> dict:
    """The sum of the means of some sets of questions, with a 95 % interval.

    Each part is [seeds, n_k] (or [n_k]): for every training seed and question a number
    with its sign, such as a paired difference. The parts have the same seeds, each its
    own questions. `clusters` [n_k] a part names what its questions have in common.

    One seed: percentile bootstrap over clusters, each part by itself. Several:
    `mean_over_seeds` over what the clusters add to the sum (its linearisation, so that
    clusters may differ in size).

    Equal answers to 16 questions do not show that two methods are equal. So with
    `bounds`, the least and most a question could give in each part, and fewer than
    ENOUGH_TELLING unlike the others, the interval is no narrower than with two more
    questions a part, one at each bound (after Agresti and Min 2005).

    Returns effect, low, high, error (standard error), n, clusters, seeds, sd, varies;
    p, of several seeds; end_error, of the drawn ends, of one."""
    parts = [np.atleast_2d(np.asarray(part, dtype=float)) for part in parts]
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("a failed question counts as 0 and is never left out")
    clusters = clusters or [range(part.shape[1]) for part in parts]
    clusters = [pd.factorize(np.asarray(labels))[0] for labels in clusters]
    found = _contrast(parts, clusters, samples, seed)
    if bounds and min(map(_telling, parts, clusters)) < ENOUGH_TELLING:
        parts = [
            np.hstack([part, np.tile(ends, (len(part), 1))])
            for part, ends in zip(parts, bounds, strict=True)
        ]
        clusters = [[*own, max(own) + 1, max(own) + 2] for own in clusters]
        wider = _contrast(parts, clusters, samples, seed)
        found["low"] = min(found["low"], wider["low"])
        found["high"] = max(found["high"], wider["high"])
        found["error"] = max(found["error"], wider["error"])
    return found


def mean_over_seeds(values: np.ndarray) -> dict:
    """Mean of [seeds, n] with a 95 % interval for other seeds and other questions.

    A column is one question answered by every seed. The variance of the mean is
    (MS_seed + MS_question - MS_rest) / (seeds * n), from the mean squares of the
    two-way random-effects table, a negative component counting as zero, with
    Satterthwaite's degrees of freedom.

    With 5 seeds this covers 93-98 %, whatever the share of the seeds in the variance.
    Below ENOUGH_SEEDS it would cover as little as 89 %, so there the interval is no
    narrower than with a quantile of its own for each component, and none dropped (Howe
    1974): half = sqrt(t(seeds - 1)**2 * MS_seed + t(n - 1)**2 * (MS_question -
    MS_rest)) / sqrt(seeds * n). Most of it is the factor 4.3 of t(2).

    Returns effect, low, high, error (standard error), p (of no effect, two-sided), sd
    (of the seeds' means), seeds, n, varies."""
    values = np.asarray(values, dtype=float)
    seeds, n = values.shape
    mean, by_seed, by_question = values.mean(), values.mean(1), values.mean(0)
    sd, question = float(by_seed.std(ddof=1)), seeds * by_question.var(ddof=1)
    rest = values - by_seed[:, None] - by_question + mean
    squares = [  # mean square, degrees of freedom
        (n * sd**2, seeds - 1),
        (question, n - 1),
        (float((rest**2).sum()) / ((seeds - 1) * (n - 1)), (seeds - 1) * (n - 1)),
    ]
    variance, freedom = _variance(*squares)
    variance /= seeds * n
    half = _quantile(freedom) * sqrt(variance)
    if seeds < ENOUGH_SEEDS:
        least = max(0.0, question - squares[2][0])
        total = _quantile(seeds - 1) ** 2 * squares[0][0]
        total += _quantile(n - 1) ** 2 * least
        half = max(half, sqrt(total / (seeds * n)))
    ratio = abs(mean) / half if half else float("inf") if mean else 0.0
    return {
        "p": 2 * float(stdtr(freedom, -_quantile(freedom) * ratio)),
        "effect": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "error": sqrt(variance),
        "sd": sd,
        "seeds": seeds,
        "n": n,
        "varies": "seeds and questions",
    }


def unpaired_contrast(terms: Sequence[tuple[float, float, int]]) -> dict:
    """The sum of published (weight, share, n), as if all were of different questions.
    Returns effect, low, high (95 %, normal), error, z."""
    effect = sum(weight * share for weight, share, _ in terms)
    error = sqrt(sum(w**2 * share * (1 - share) / n for w, share, n in terms))
    low, high = effect - Z * error, effect + Z * error
    row = {"effect": effect, "low": low, "high": high, "error": error}
    return row | {"z": effect / error}


def unpaired_difference(a: tuple[int, int], b: tuple[int, int]) -> dict:
    """`unpaired_contrast` of two published (k, n); `difference` is its effect."""
    row = unpaired_contrast([(way, k / n, n) for way, (k, n) in ((1, a), (-1, b))])
    return {"difference": row["effect"], **row}


def power(effect: float, error: float, half: float | None = None) -> float:
    """Chance that a 95 % interval excludes zero where the truth is `effect`, from its
    standard `error` and `half` width, taken as known: rough with few seeds."""
    half = Z * error if half is None else half
    if error == 0:
        return float(abs(effect) > half)
    ends = (abs(effect) - half) / error, (-abs(effect) - half) / error
    return sum(NormalDist().cdf(end) for end in ends)


def detectable(error: float, half: float) -> float:
    """The smallest effect that `power` finds four times in five."""
    return half + NormalDist().inv_cdf(POWER) * error


def paired_power(difference: float, discordant: float, n: int) -> float:
    """Chance that McNemar's test finds a paired `difference` on n questions (Connor
    1987). `discordant` is the share of questions that exactly one method gets right,
    the only ones that tell. 500 questions, 20 % of them discordant, 5 points: 0.71."""
    if not abs(difference) <= discordant <= 1:
        raise ValueError(f"|{difference}| <= discordant, {discordant}, <= 1 is needed")
    error = sqrt((discordant - difference**2) / n)
    return power(difference, error, half=Z * sqrt(discordant / n))


def _variance(seed: tuple, question: tuple, rest: tuple) -> tuple[float, float]:
    """Sum of the components that are not negative, and its degrees of freedom."""
    terms = [(1, *own) for own in (seed, question) if own[0] > rest[0]]
    if len(terms) != 1:
        terms.append((1 - len(terms), *rest))
    total = sum(weight * square for weight, square, _ in terms)
    spread = sum((weight * square) ** 2 / df for weight, square, df in terms)
    return total, max(1.0, total**2 / spread) if spread else rest[1]


def _quantile(freedom: float) -> float:
    """How many standard errors of Student's t a 95 % interval reaches."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _contrast(parts: list, clusters: list, samples: int, seed: int) -> dict:
    """`contrast` of the data as they are."""
    n = sum(part.shape[1] for part in parts)
    counts = {"n": n, "clusters": sum(len({*labels}) for labels in clusters)}
    if len(parts[0]) > 1:
        shares = np.hstack([*map(_contributions, parts, clusters)])
        sums = sum(part.mean(1) for part in parts)
        return mean_over_seeds(sums[:, None] + shares.shape[1] * shares) | counts
    means = sum(
        resampling(tuple(labels), samples, seed, k).means(part[0], labels)
        for k, (part, labels) in enumerate(zip(parts, clusters, strict=True))
    )
    low, high = percentiles(means)
    found = {"effect": float(sum(part.mean() for part in parts)), **counts}
    found |= {"low": low, "high": high, "error": float(means.std())}
    tail = (1 - CONFIDENCE) / 2  # of a drawn quantile, as if its density were normal
    drawn = sqrt(tail * (1 - tail) / samples) / NormalDist().pdf(Z)
    found["end_error"] = drawn * found["error"]
    return found | {"sd": None, "seeds": 1, "varies": "questions"}


def _telling(part: np.ndarray, labels: Sequence[int]) -> int:
    """Clusters with a question of part [seeds, n] that is unlike most of them."""
    values = part.mean(0)
    kinds, counts = np.unique(values, return_counts=True)
    return len({*np.array(labels)[values != kinds[counts.argmax()]]})


def _contributions(part: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """What each cluster adds to the mean of part [seeds, n]: [seeds, clusters]."""
    apart = part - part.mean(1, keepdims=True)
    return np.array([np.bincount(labels, row) for row in apart]) / part.shape[1]
