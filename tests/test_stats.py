"""Intervals and tests against closed forms, brute force and simulation."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest

from lib import stats


def test_wilson_by_hand():
    """3 of 4: centre (0.75 + z²/8) / (1 + z²/4), as in the module's table example."""
    z2 = 1.959964**2
    centre = (0.75 + z2 / 8) / (1 + z2 / 4)
    half = sqrt(z2 * 0.75 * 0.25 / 4 + z2**2 / 64) / (1 + z2 / 4)
    assert stats.wilson_interval(3, 4) == pytest.approx(
        (centre - half, centre + half), abs=1e-6
    )


@pytest.mark.parametrize("k, n, ends", [(0, 10, (0, 0.2775)), (10, 10, (0.7225, 1))])
def test_wilson_stays_within_0_and_1(k, n, ends):
    low, high = stats.wilson_interval(k, n)
    assert low >= 0 and high <= 1
    assert (low, high) == pytest.approx(ends, abs=1e-4)


@pytest.mark.parametrize("k, n", [(1, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_what_is_no_share(k, n):
    with pytest.raises(ValueError, match="not a share"):
        stats.wilson_interval(k, n)


def test_wilson_covers():
    """Over 400 true shares the interval holds the truth 92-98 % of the time."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.1, 0.9, 400)
    held = []
    for share in shares:
        low, high = stats.wilson_interval(int(rng.binomial(60, share)), 60)
        held.append(low <= share <= high)
    assert 0.92 < np.mean(held) < 0.98


def test_mcnemar_by_hand():
    assert stats.mcnemar_exact(8, 2) == 2 * (1 + 10 + 45) / 2**10
    assert stats.mcnemar_exact(2, 8) == stats.mcnemar_exact(8, 2)
    assert stats.mcnemar_exact(0, 0) == 1
    assert stats.mcnemar_exact(5, 5) == 1


def test_mcnemar_against_every_coin_toss():
    """p is the share of all 2**n outcomes at least as uneven as the one seen."""
    wins, losses = 6, 1
    tosses = [sum(toss) for toss in product((0, 1), repeat=wins + losses)]
    uneven = [abs(2 * s - 7) >= abs(wins - losses) for s in tosses]
    assert stats.mcnemar_exact(wins, losses) == pytest.approx(np.mean(uneven))


def test_mcnemar_of_many_questions_is_finite():
    assert 0 < stats.mcnemar_exact(1200, 1000) < 1e-4


def test_bootstrap_against_the_exact_distribution():
    """Two of five: a resample's mean is Binomial(5, 0.4) / 5."""
    means = stats.bootstrap_means(
        [1, 1, 0, 0, 0], None, 50_000, np.random.default_rng(0)
    )
    for k in range(6):
        exact = comb(5, k) * 0.4**k * 0.6 ** (5 - k)
        assert np.mean(np.isclose(means, k / 5)) == pytest.approx(exact, abs=0.01)


def test_bootstrap_draws_whole_clusters():
    """Clusters (1, 1, 1) and (0): a mean is 1, 0, or that of one of each, 0.75."""
    means = stats.bootstrap_means(
        [1, 1, 1, 0], list("aaab"), 4_000, np.random.default_rng(0)
    )
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    assert counts / 4_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_bootstrap_in_chunks_is_the_bootstrap(monkeypatch):
    values = np.random.default_rng(1).random(50)
    whole = stats.bootstrap_interval(values, samples=1_000, seed=3)
    monkeypatch.setattr(stats, "CELLS_AT_ONCE", 50 * 7)
    assert stats.bootstrap_interval(values, samples=1_000, seed=3) == whole


def test_same_seed_same_interval():
    values = np.random.default_rng(1).random(50)
    first = stats.bootstrap_interval(values, seed=5)
    np.random.seed(99)  # the global state must not matter
    assert stats.bootstrap_interval(values, seed=5) == first
    assert stats.bootstrap_interval(values, seed=6) != first


def test_paired_difference_by_hand():
    a = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 5
    b = [0] * 8 + [1] * 2 + [1] * 5 + [0] * 5
    row = stats.paired_difference(a, b, seed=0)
    assert (row["wins"], row["losses"], row["n"]) == (8, 2, 20)
    assert row["difference"] == pytest.approx(0.30)
    assert row["p"] == stats.mcnemar_exact(8, 2)
    # normal interval: 0.3 ± 1.96 sqrt((0.5 - 0.09) / 20) = 0.019 .. 0.581
    assert row["low"] == pytest.approx(0.019, abs=0.04)
    assert row["high"] == pytest.approx(0.581, abs=0.04)


def test_paired_difference_covers():
    """The 95 % interval holds the true difference in 91-98 % of 300 sets."""
    rng = np.random.default_rng(0)
    held = []
    for seed in range(300):
        hardness = rng.random(150)
        a, b = rng.random(150) < hardness, rng.random(150) < hardness**2
        row = stats.paired_difference(a, b, samples=500, seed=seed)
        held.append(row["low"] <= 1 / 2 - 1 / 3 <= row["high"])
    assert 0.91 < np.mean(held) < 0.98


def test_clusters_widen_the_interval():
    """Ten copies of 30 questions are 30 questions, not 300."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 30)) < [[0.6], [0.4]]).repeat(10, axis=1)
    clusters = np.arange(30).repeat(10)
    plain = stats.paired_difference(a, b)
    by_video = stats.paired_difference(a, b, clusters)
    width = [row["high"] - row["low"] for row in (plain, by_video)]
    assert width[1] / width[0] == pytest.approx(sqrt(10), rel=0.1)


@pytest.mark.parametrize("a, b", [([1, 0], [1]), ([], []), ([1, float("nan")], [1, 0])])
def test_paired_difference_refuses_unpaired_answers(a, b):
    with pytest.raises(ValueError):
        stats.paired_difference(a, b)


def test_difference_of_differences_by_hand():
    there, here = ([1, 1, 1, 0], [0, 0, 1, 0]), ([1, 0], [1, 0])
    row = stats.difference_of_differences(there, here)
    assert row["difference"] == 0.5
    assert (row["n_there"], row["n_here"]) == (4, 2)
    # the set without differences adds no spread: the interval is that of `there`
    alone = stats.paired_difference(*there)
    assert (row["low"], row["high"]) == pytest.approx((alone["low"], alone["high"]))


@pytest.mark.parametrize(
    "share, freedom, table",
    [(0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.95, 10, 1.8125), (0.975, 1e5, 1.96)],
)
def test_t_quantile_is_that_of_the_tables(share, freedom, table):
    assert stats.t_quantile(share, freedom) == pytest.approx(table, abs=2e-3)


def test_one_seed_is_the_t_interval_over_questions():
    values = np.array([[1, 0, 1, 1, 0, 1, 0, 1.0]])
    row = stats.mean_over_seeds(values)
    half = 2.3646 * values.std(ddof=1) / sqrt(8)
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-3)
    assert row["varies"] == "questions" and row["sd"] is None


def test_seeds_that_agree_add_nothing():
    """Five identical seeds are one seed: only the questions vary."""
    values = np.random.default_rng(0).integers(0, 2, (1, 60)).astype(float)
    one, five = (stats.mean_over_seeds(values.repeat(k, axis=0)) for k in (1, 5))
    assert (five["low"], five["high"]) == pytest.approx((one["low"], one["high"]))
    assert five["sd"] == 0


def test_seeds_that_differ_without_question_noise():
    """Questions all alike: the interval is the t interval over the seeds' means."""
    means = np.array([0.2, 0.5, 0.6])
    row = stats.mean_over_seeds(means[:, None].repeat(1_000, axis=1))
    half = 4.3027 * means.std(ddof=1) / sqrt(3)
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-3)
    assert row["sd"] == pytest.approx(means.std(ddof=1))


@pytest.mark.parametrize("seed_spread", [0.0, 0.2, 0.8])
def test_mean_over_seeds_covers(seed_spread):
    """Whatever share of the variance is the seeds', 95 % means 91-98 %."""
    rng = np.random.default_rng(1)
    truth = (1 / (1 + np.exp(-rng.normal(0, sqrt(1 + seed_spread**2), 400_000)))).mean()
    held = []
    for _ in range(300):
        logit = rng.normal(0, seed_spread, (5, 1)) + rng.normal(0, 1, 200)
        row = stats.mean_over_seeds(rng.random((5, 200)) < 1 / (1 + np.exp(-logit)))
        held.append(row["low"] <= truth <= row["high"])
    assert 0.91 < np.mean(held) < 0.985


def test_mean_over_seeds_wants_a_matrix():
    with pytest.raises(ValueError, match="seeds"):
        stats.mean_over_seeds(np.ones(5))


def test_published_z_by_hand():
    """RL against SFT on L1: 1119 and 1065 of 2432 give z = 1.56."""
    row = stats.unpaired_difference(1119, 2432, 1065, 2432)
    assert row["difference"] == pytest.approx(54 / 2432)
    assert row["z"] == pytest.approx(1.56, abs=0.005)
    assert row["low"] < 0 < row["high"]
