"""Intervals and tests for accuracies on shared questions.

Every method answers the same questions, so two methods are compared question by
question: that removes the difficulty of the questions from the comparison. Nothing
here reads files or needs a model; correctness comes in as arrays of 0 and 1.

* one accuracy: Wilson's score interval (Wilson 1927), which stays within 0 and 1;
* two methods on the same questions: percentile bootstrap over questions (or their
  videos, `Resampling`) of the paired difference, and the exact McNemar test (McNemar
  1947) on the discordant ones;
* several seeds: seeds and questions are both random and crossed (every seed answers
  every question), so the interval adds both components of variance (Searle, Casella
  and McCulloch 1992, chapter 4), see `mean_over_seeds`;
* sums and differences of such means, with questions in clusters: `contrast`;
* counts from a paper, where the pairing is lost: the unpaired z;
* what a comparison of a given size could have found: `power`, `paired_power`.

How often the intervals hold the truth is simulated by `python -m tests.bench.coverage`,
the numbers are in outputs/reference/coverage.json.

Example: GRPO is right and SFT wrong on 8 of 20 questions, the reverse on 2. The paired
difference is (8 - 2) / 20 = 0.30 and the exact McNemar p is
2 * (C(10,0) + C(10,1) + C(10,2)) / 2**10 = 0.109: not yet a finding.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
CELLS_AT_ONCE = 4_000_000  # a bootstrap keeps at most this many drawn indices in memory
ENOUGH_SEEDS = 5  # below, `mean_over_seeds` widens its interval
ENOUGH_TELLING = 10  # questions that tell methods apart; below, `contrast` widens
POWER = 0.8


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share, k of n. ValueError unless 0 <= k <= n, n > 0."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a share: 0 <= k <= n and n > 0 are needed")
    share, weight = k / n, Z**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = Z * sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # at k = 0 and k = n one end is exactly 0 or 1; rounding must not move it outside
    return max(0.0, centre - half), min(1.0, centre + half)


class Resampling:
    """Resamples of clusters, drawn once for all that is measured on them.

    A resample draws as many clusters (the video a question is about, say) as there are,
    with replacement, and takes the mean over all their values. Drawing once makes a
    hundred intervals cheap, and lets several means come from the same resamples.
    """

    def __init__(self, clusters: Iterable, samples: int, seed: int | Sequence[int]):
        names = sorted({*clusters})
        self.place = {name: i for i, name in enumerate(names)}
        self.weights = np.empty((samples, len(names)), np.float32)
        rng = np.random.default_rng(seed)
        chunk = max(1, CELLS_AT_ONCE // len(names))
        for start in range(0, samples, chunk):
            part = self.weights[start : start + chunk]
            drawn = rng.integers(len(names), size=part.shape)
            drawn += len(names) * np.arange(len(part))[:, None]
            counts = np.bincount(drawn.ravel(), minlength=part.size)
            part[:] = counts.reshape(part.shape)

    def means(self, values: Sequence[float], clusters: Sequence) -> np.ndarray:
        """The mean of `values` [n] in each resample: [samples]; NaN where a resample
        has none of them."""
        at = [self.place[name] for name in clusters]
        size = self.weights.shape[1]
        sums = np.bincount(at, weights=_finite(values), minlength=size)
        counts = np.bincount(at, minlength=size)
        if (counts == 1).all():
            return self.weights @ sums.astype(np.float32) / size
        both = np.stack([sums, counts], 1)
        totals = self.weights @ both.astype(np.float32)  # one type, or no BLAS
        with np.errstate(invalid="ignore"):
            return totals[:, 0] / totals[:, 1]


@lru_cache(maxsize=8)
def resampling(clusters: tuple, samples: int, seed: int, part: int = 0) -> Resampling:
    """The resamples of these clusters, drawn once; each part of a sum has its own."""
    return Resampling(clusters, samples, [seed, part])


def percentiles(values: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of a 95 % interval of drawn values; resamples without one do not count,
    which only happens where a judge saw a few questions."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided p of the exact McNemar test: is a discordant question a coin toss?

    `wins` counts questions only the first method got right, `losses` the reverse.
    """
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def contrast(
    parts: Sequence[np.ndarray],
    clusters: Sequence[Sequence] | None = None,
    samples: int = 10_000,
    seed: int = 0,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> dict:
    """The sum of the means of some sets of questions, with a 95 % interval.

    Each part is [seeds, n_k] (or [n_k]): for every training seed and question of a set
    a number with its sign, such as a paired difference. [gap on L2, minus gap on L1]
    gives a difference of differences. The seeds are the same in all parts, the
    questions are not. `clusters` [n_k] a part names what its questions have in common.

    One seed: percentile bootstrap over clusters, each part by itself. Several:
    `mean_over_seeds` over the clusters' contributions to the sum (its linearisation, so
    that clusters may differ in size). With 40 clusters the bootstrap covers 92-93 %.

    Where nearly all questions give the same number, both make intervals of hardly any
    width: 16 questions that two methods answer alike do not show that they are alike.
    With `bounds`, the least and most a question could give in each part, the interval
    is in that case (fewer than ENOUGH_TELLING others) no narrower than with two more
    questions a part, one at each bound (after Agresti and Min 2005).

    Returns effect, low, high, error (standard error), n, clusters, seeds, sd, varies.
    """
    parts = [np.atleast_2d(np.asarray(part, dtype=float)) for part in parts]
    if any(len(part) != len(parts[0]) for part in parts):
        raise ValueError(f"parts of {[len(p) for p in parts]} seeds cannot be added")
    clusters = [list(labels) for labels in clusters or map(_own_clusters, parts)]
    found = _contrast(parts, clusters, samples, seed)
    pairs = list(zip(parts, clusters, strict=True))
    if bounds and min(_telling(*pair) for pair in pairs) < ENOUGH_TELLING:
        more = [
            np.hstack([part, np.tile(ends, (len(part), 1))])
            for part, ends in zip(parts, bounds, strict=True)
        ]
        wider = [[*labels, "least", "most"] for labels in clusters]
        other = _contrast(more, wider, samples, seed)
        found["low"] = min(found["low"], other["low"])
        found["high"] = max(found["high"], other["high"])
        found["error"] = max(found["error"], other["error"])
    return found


def mean_over_seeds(values: np.ndarray) -> dict:
    """Mean of `values` [seeds, n] with a 95 % interval for other seeds and questions.

    `values` holds 0 and 1, or paired differences -1, 0, 1; a column is one question
    answered by every seed. What varies: the seed of training AND the questions. The
    variance of the mean is (MS_seed + MS_question - MS_rest) / (seeds * n), from the
    mean squares of the two-way random-effects table, a negative component counting as
    zero, with Satterthwaite's degrees of freedom. With one seed only the questions
    vary, and `varies` says so.

    With 5 seeds this covers 93-98 % whatever the share of the seeds in the variance;
    resampling seeds, then questions (hierarchical bootstrap) covers 99 % when seeds
    hardly matter and only 86 % when they dominate. With 3 seeds it would cover as
    little as 92 %, with 2 seeds 89 %. So below ENOUGH_SEEDS the interval is no narrower
    than with a quantile of its own for each component, and none dropped (Howe 1974):
    half = sqrt(t(seeds - 1)**2 * MS_seed + t(n - 1)**2 * (MS_question - MS_rest)) over
    sqrt(seeds * n). That covers 94-99 % with 3 seeds, and most of it is the factor 4.3
    of t(2): three seeds say little.

    Returns mean, low, high, error (standard error), sd (over seeds, of the seeds'
    means; None for one seed), seeds, n, varies.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 1 or values.shape[1] < 2:
        raise ValueError(f"expected [seeds, at least 2 questions], got {values.shape}")
    seeds, n = values.shape
    variance, freedom = _variance_of_mean(values)
    half = _quantile(freedom) * sqrt(variance)
    if 1 < seeds < ENOUGH_SEEDS:
        half = max(half, _half_of_few_seeds(values))
    mean = float(values.mean())
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "error": sqrt(variance),
        "sd": float(values.mean(1).std(ddof=1)) if seeds > 1 else None,
        "seeds": seeds,
        "n": n,
        "varies": "seeds and questions" if seeds > 1 else "questions",
    }


def unpaired_difference(k_a: int, n_a: int, k_b: int, n_b: int) -> dict:
    """Difference of two published shares whose pairing is unknown, and its z.

    Returns difference, low, high (95 %, normal), z, with the unpooled standard error.
    """
    row = unpaired_contrast([(1, k_a / n_a, n_a), (-1, k_b / n_b, n_b)])
    return {
        "difference": row["effect"],
        "low": row["low"],
        "high": row["high"],
        "z": row["z"],
    }


def unpaired_contrast(terms: Sequence[tuple[float, float, int]]) -> dict:
    """A weighted sum of published shares, as if all were of different questions.

    `terms` are (weight, share, n). Returns effect, low, high (95 %, normal), error, z.
    """
    effect = sum(weight * share for weight, share, _ in terms)
    error = sqrt(sum(w**2 * share * (1 - share) / n for w, share, n in terms))
    low, high = effect - Z * error, effect + Z * error
    return {
        "effect": effect,
        "low": low,
        "high": high,
        "error": error,
        "z": effect / error,
    }


def power(effect: float, error: float, half: float | None = None) -> float:
    """Chance that a 95 % interval excludes zero where the truth is `effect`.

    `error` is the standard error of the estimate, `half` the half width of its interval
    (without one: 1.96 errors, the z test). Both are taken as known, so with few seeds,
    where they are themselves uncertain, this is a rough figure.
    """
    half = Z * error if half is None else half
    if error == 0:
        return float(abs(effect) > half)
    ends = (abs(effect) - half) / error, (-abs(effect) - half) / error
    return sum(NormalDist().cdf(end) for end in ends)


def detectable(error: float, half: float) -> float:
    """The smallest effect that `power` finds four times in five."""
    return half + NormalDist().inv_cdf(POWER) * error


def paired_power(difference: float, discordant: float, n: int) -> float:
    """Chance that McNemar's test finds a paired `difference` on n questions.

    `discordant` is the share of questions that exactly one method gets right: the only
    ones that tell, and what makes a paired comparison sharper than an unpaired one
    (Connor 1987). 500 questions, 20 % of them discordant, 5 points: 0.71.
    """
    if not abs(difference) <= discordant <= 1:
        raise ValueError(
            f"a share of {discordant} discordant questions cannot make a difference of "
            f"{difference}: |difference| <= discordant <= 1 is needed"
        )
    error = sqrt((discordant - difference**2) / n)
    return power(difference, error, half=Z * sqrt(discordant / n))


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Of seeds, questions and the rest, of [seeds, n]; see `mean_over_seeds`."""
    seeds, n = values.shape
    by_seed, by_question = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_question + values.mean()
    noise = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    return n * by_seed.var(ddof=1), seeds * by_question.var(ddof=1), noise


def _variance_of_mean(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of [seeds, n] and its degrees of freedom."""
    seeds, n = values.shape
    if seeds == 1:
        return values[0].var(ddof=1) / n, n - 1
    seed, question, noise = _mean_squares(values)
    freedom = (seeds - 1) * (n - 1)
    # (weight, mean square, degrees of freedom) of the components that are not negative
    terms = [(1, seed, seeds - 1)] if seed > noise else []
    terms += [(1, question, n - 1)] if question > noise else []
    if len(terms) != 1:
        terms.append((1 - len(terms), noise, freedom))
    total = sum(weight * square for weight, square, _ in terms)
    spread = sum((weight * square) ** 2 / df for weight, square, df in terms)
    return total / (seeds * n), max(1.0, total**2 / spread) if spread else freedom


def _half_of_few_seeds(values: np.ndarray) -> float:
    """Half the interval of the mean of [seeds, n] with a quantile a component."""
    seeds, n = values.shape
    seed, question, noise = _mean_squares(values)
    question = max(0.0, question - noise)
    squares = ((seeds - 1, seed), (n - 1, question))
    total = sum(_quantile(freedom) ** 2 * square for freedom, square in squares)
    return sqrt(total / (seeds * n))


def _quantile(freedom: float) -> float:
    """How many standard errors of Student's t a 95 % interval reaches."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _contrast(
    parts: Sequence[np.ndarray], clusters: Sequence[list], samples: int, seed: int
) -> dict:
    """`contrast` as its data have it."""
    pairs = list(zip(parts, clusters, strict=True))
    counts = {
        "n": sum(part.shape[1] for part in parts),
        "clusters": sum(len(set(labels)) for labels in clusters),
    }
    if len(parts[0]) > 1:
        shares = np.hstack([_contributions(part, labels) for part, labels in pairs])
        sums = sum(part.mean(1) for part in parts)
        found = mean_over_seeds(sums[:, None] + shares.shape[1] * shares)
        return {"effect": found.pop("mean"), **found, **counts}
    means = sum(
        resampling(tuple(_numbered(labels)), samples, seed, k).means(
            part[0], _numbered(labels)
        )
        for k, (part, labels) in enumerate(pairs)
    )
    low, high = percentiles(means)
    return {
        "effect": float(sum(part.mean() for part in parts)),
        "low": low,
        "high": high,
        "error": float(means.std()),
        "sd": None,
        "seeds": 1,
        "varies": "questions",
        **counts,
    }


def _own_clusters(part: np.ndarray) -> range:
    return range(part.shape[1])


def _numbered(labels: Sequence) -> list[int]:
    """Labels as numbers in the order they come, which is that of the questions."""
    numbers: dict = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def _telling(part: np.ndarray, labels: Sequence) -> int:
    """Clusters with a question of part [seeds, n] that is unlike most of them."""
    values = part.mean(0)
    kinds, counts = np.unique(values, return_counts=True)
    other = values != kinds[counts.argmax()]
    return len({label for label, tells in zip(labels, other, strict=True) if tells})


def _contributions(part: np.ndarray, labels: Sequence) -> np.ndarray:
    """What each cluster adds to the mean of part [seeds, n]: [seeds, clusters]."""
    index = _numbered(labels)
    if len(index) != part.shape[1]:
        raise ValueError(f"{len(index)} cluster labels for {part.shape[1]} values")
    apart = part - part.mean(1, keepdims=True)
    sums = np.array([np.bincount(index, weights=row) for row in apart])
    return sums / part.shape[1]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"expected at least one finite number a question, got shape {array.shape}: "
            "a failed question counts as 0 and is never left out"
        )
    return array
