"""Intervals and tests against closed forms, brute force and simulation."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest

from lib import paths
from lib.analysis import stats
from lib.records import read_json


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
    means = stats.resampling(tuple("abcde"), 50_000, 0).means([1, 1, 0, 0, 0], "abcde")
    for k in range(6):
        exact = comb(5, k) * 0.4**k * 0.6 ** (5 - k)
        assert np.mean(np.isclose(means, k / 5)) == pytest.approx(exact, abs=0.01)


def test_bootstrap_draws_whole_clusters():
    """Clusters (1, 1, 1) and (0): a mean is 1, 0, or that of one of each, 0.75."""
    means = stats.Resampling("ab", 4_000, 0).means([1, 1, 1, 0], "aaab")
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    assert counts / 4_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    some = stats.Resampling("ab", 4_000, 0).means([1, 1], "aa")  # none of b
    assert stats.percentiles(some) == (1, 1) and np.isnan(some).any()
    assert stats.percentiles(np.array([np.nan])) == (None, None)


def test_bootstrap_is_drawn_from_its_seed_alone(monkeypatch):
    """In chunks of any size, whatever the global state; each part has its own draws."""
    whole = stats.Resampling(range(50), 1_000, [3, 0]).weights
    np.random.seed(99)
    monkeypatch.setattr(stats, "CELLS_AT_ONCE", 50 * 7)
    assert (stats.Resampling(range(50), 1_000, [3, 0]).weights == whole).all()
    for other in ([4, 0], [3, 1]):
        assert (stats.Resampling(range(50), 1_000, other).weights != whole).any()


def test_a_paired_difference_by_hand():
    a = np.array([1] * 8 + [0] * 2 + [1] * 5 + [0] * 5)
    b = np.array([0] * 8 + [1] * 2 + [1] * 5 + [0] * 5)
    row = stats.contrast([a - b])
    assert (row["effect"], row["n"], row["clusters"]) == (pytest.approx(0.30), 20, 20)
    # normal interval: 0.3 ± 1.96 sqrt((0.5 - 0.09) / 20) = 0.019 .. 0.581
    assert row["low"] == pytest.approx(0.019, abs=0.04)
    assert row["high"] == pytest.approx(0.581, abs=0.04)


def test_a_paired_difference_covers():
    """The 95 % interval holds the true difference in 91-98 % of 300 sets."""
    rng = np.random.default_rng(0)
    held = []
    for seed in range(300):
        hardness = rng.random(150)
        a, b = rng.random(150) < hardness, rng.random(150) < hardness**2
        row = stats.contrast([a.astype(float) - b], samples=500, seed=seed)
        held.append(row["low"] <= 1 / 2 - 1 / 3 <= row["high"])
    assert 0.91 < np.mean(held) < 0.98


def test_clusters_widen_the_interval():
    """Ten copies of 30 questions are 30 questions, not 300."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 30)) < [[0.6], [0.4]]).repeat(10, axis=1).astype(float)
    rows = [stats.contrast([a - b], own) for own in (None, [np.arange(30).repeat(10)])]
    width = [row["high"] - row["low"] for row in rows]
    assert width[1] / width[0] == pytest.approx(sqrt(10), rel=0.1)


def test_a_difference_of_differences_resamples_each_side():
    """Its standard error is that of two independent means."""
    rng = np.random.default_rng(0)
    there, here = rng.integers(-1, 2, (2, 60)).astype(float)
    row = stats.contrast([there, -here], samples=4000)
    assert row["effect"] == pytest.approx(there.mean() - here.mean())
    expected = sqrt((there.var() + here.var()) / 60)
    assert row["error"] == pytest.approx(expected, rel=0.05)
    alone = stats.contrast([there, np.zeros(9)], samples=4000)
    assert alone["high"] == stats.contrast([there], samples=4000)["high"]


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


# --- several parts, clusters, few seeds -----------------------------------------------


def test_a_contrast_over_seeds_is_the_mean_over_seeds():
    """With one part and questions of their own: nothing is changed on the way."""
    values = np.random.default_rng(2).integers(-1, 2, (3, 50)).astype(float)
    row, mean = stats.contrast([values]), stats.mean_over_seeds(values)
    assert row["effect"] == pytest.approx(mean["mean"])
    assert (row["low"], row["high"]) == pytest.approx((mean["low"], mean["high"]))
    assert row["sd"] == pytest.approx(mean["sd"])


def test_a_contrast_over_seeds_by_hand():
    """Two parts whose questions are all alike: only the seeds' sums vary."""
    there, here = np.array([0.3, 0.5, 0.4]), np.array([0.1, 0.0, 0.2])
    parts = [there[:, None].repeat(40, 1), -here[:, None].repeat(90, 1)]
    row, sums = stats.contrast(parts), there - here
    assert row["effect"] == pytest.approx(sums.mean())
    half = 4.3027 * sums.std(ddof=1) / sqrt(3)
    assert row["high"] - row["effect"] == pytest.approx(half, rel=1e-3)
    assert row["n"] == 130


def test_copies_in_a_cluster_are_one_question():
    """Over seeds as in the bootstrap: four copies of each question add nothing."""
    values = np.random.default_rng(5).integers(-1, 2, (3, 30)).astype(float)
    row = stats.contrast([values])
    copied = stats.contrast([values.repeat(4, axis=1)], [np.arange(30).repeat(4)])
    assert (copied["low"], copied["high"]) == pytest.approx((row["low"], row["high"]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_questions_answered_alike_do_not_show_that_methods_are_alike(seeds):
    """16 ties: by themselves an interval of no width; the rule of three says 0.19."""
    ties = [np.zeros((seeds, 16))]
    assert stats.contrast(ties)["high"] == 0
    row = stats.contrast(ties, bounds=[(-1, 1)])
    assert row["effect"] == 0 and row["low"] < -0.1 and row["high"] > 0.1
    many = stats.contrast([np.zeros((seeds, 2000))], bounds=[(-1, 1)])
    assert 0 < many["high"] < 0.002


def test_where_questions_tell_enough_bounds_change_nothing():
    values = np.zeros(100)
    values[:12] = [1, -1] * 6
    plain = stats.contrast([values], samples=500)
    assert stats.contrast([values], samples=500, bounds=[(-1, 1)]) == plain
    values[4:12] = 0
    plain = stats.contrast([values], samples=500)
    wider = stats.contrast([values], samples=500, bounds=[(-1, 1)])
    assert wider["high"] > plain["high"] and wider["effect"] == plain["effect"]


def test_rare_differences_are_covered():
    """1.5 % discordant among 60: the interval holds the truth at least 95 % of times,
    which it does not by itself."""
    rng = np.random.default_rng(0)
    held = {None: [], ((-1, 1),): []}
    for draw in range(300):
        values = rng.choice([1, 0], 60, p=[0.015, 0.985])
        for bounds, found in held.items():
            row = stats.contrast([values], samples=300, seed=draw, bounds=bounds)
            found.append(row["low"] <= 0.015 <= row["high"])
    assert np.mean(held[None]) < 0.75 < 0.95 <= np.mean(held[((-1, 1),)])


def test_a_contrast_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="seeds"):
        stats.contrast([np.ones((2, 5)), np.ones((3, 5))])
    with pytest.raises(ValueError, match="labels"):
        stats.contrast([np.random.default_rng(0).random((2, 5))], [[1, 2]])
    with pytest.raises(ValueError, match="never left out"):
        stats.contrast([np.array([1, float("nan")])])


@pytest.mark.parametrize("seed_spread", [0.0, 0.2, 0.8])
def test_three_seeds_cover(seed_spread):
    """Few seeds get a wider interval, which holds the truth 93-99.9 % of the time."""
    rng = np.random.default_rng(1)
    truth = (1 / (1 + np.exp(-rng.normal(0, sqrt(1 + seed_spread**2), 400_000)))).mean()
    held = []
    for _ in range(400):
        logit = rng.normal(0, seed_spread, (3, 1)) + rng.normal(0, 1, 150)
        row = stats.mean_over_seeds(rng.random((3, 150)) < 1 / (1 + np.exp(-logit)))
        held.append(row["low"] <= truth <= row["high"])
    assert 0.93 < np.mean(held) < 0.999


def test_few_seeds_only_ever_widen_the_interval(monkeypatch):
    """Also where the seeds happen to agree better than their answers allow."""
    rng = np.random.default_rng(1)
    drawn = [rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 1, (3, 80)) for _ in range(30)]
    wide = [stats.mean_over_seeds(values) for values in drawn]
    monkeypatch.setattr(stats, "ENOUGH_SEEDS", 2)
    usual = [stats.mean_over_seeds(values) for values in drawn]
    more = [a["high"] - b["high"] for a, b in zip(wide, usual, strict=True)]
    assert min(more) == 0 and max(more) > 0.05


def test_the_committed_coverage_is_honest():
    """Intervals as built cover 92 % or more, those that ignore something less."""
    rows = read_json(paths.ROOT / "outputs/reference/coverage.json")
    covered = {"as built": [], "clusters ignored": [], "seeds ignored": []}
    for row in rows:
        if row["interval"] in covered and (
            row["interval"] != "seeds ignored" or row["seed_sd"] == 0.5
        ):
            covered[row["interval"]].append(row["covered"])
    assert min(covered["as built"]) > 0.92
    assert min(covered["clusters ignored"]) < 0.85
    assert max(covered["seeds ignored"]) < 0.85


# --- against scipy and statsmodels ----------------------------------------------------


def test_mcnemar_and_wilson_are_those_of_statsmodels():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for wins, losses in ((8, 2), (40, 42), (120, 90), (0, 5)):
        found = contingency.mcnemar([[300, wins], [losses, 100]], exact=True)
        assert stats.mcnemar_exact(wins, losses) == pytest.approx(found.pvalue)
    for k, n in ((0, 10), (3, 40), (500, 1000), (40, 40)):
        ends = proportion.proportion_confint(k, n, method="wilson")
        assert stats.wilson_interval(k, n) == pytest.approx(ends, abs=1e-9)


def test_the_unpaired_interval_is_that_of_statsmodels():
    """The Wald interval, for the paper's counts of RL and SFT on L1 and L3."""
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for counts in ((1119, 2432, 1065, 2432), (593, 1321, 504, 1321)):
        row = stats.unpaired_difference(*counts)
        ends = proportion.confint_proportions_2indep(*counts, method="wald")
        assert (row["low"], row["high"]) == pytest.approx(ends, abs=1e-9)


def test_the_power_of_two_shares_is_that_of_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for a, b, n in ((0.46, 0.44, 2432), (0.50, 0.44, 923), (0.6, 0.45, 120)):
        error = stats.unpaired_contrast([(1, a, n), (-1, b, n)])["error"]
        pooled = stats.unpaired_contrast([(1, (a + b) / 2, n), (-1, (a + b) / 2, n)])
        found = proportion.power_proportions_2indep(a - b, b, n, return_results=False)
        half = stats.Z * pooled["error"]
        assert stats.power(a - b, error, half) == pytest.approx(found, abs=1e-3)


def test_power_is_that_of_the_z_test():
    """0.05 without an effect, and as in statsmodels for others."""
    tests = pytest.importorskip("statsmodels.stats.power")
    assert stats.power(0.0, 0.02) == pytest.approx(0.05)
    for effect, error, n in ((0.03, 0.02, 100), (-0.06, 0.02, 400)):
        found = tests.normal_power(effect / (error * sqrt(n)), n, 0.05)
        assert stats.power(effect, error) == pytest.approx(found, abs=1e-6)
    assert stats.power(0.1, 0.0) == 1 and stats.power(0.0, 0.0) == 0


def test_the_detectable_effect_has_a_power_of_80():
    for error, half in ((0.02, 0.0392), (0.03, 0.1)):
        found = stats.power(stats.detectable(error, half), error, half)
        assert found == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(
    "difference, discordant, n", [(0.05, 0.2, 500), (0.03, 0.1, 800), (0.1, 0.3, 150)]
)
def test_paired_power_is_how_often_mcnemar_finds_it(difference, discordant, n):
    """Against 4,000 simulated comparisons with McNemar's chi-square."""
    pytest.importorskip("scipy")
    from scipy.stats import chi2

    rng = np.random.default_rng(0)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2]
    wins, losses, _ = rng.multinomial(n, [*shares, 1 - discordant], 4000).T
    statistic = (wins - losses) ** 2 / np.maximum(wins + losses, 1)
    found = (chi2.sf(statistic, 1) < 0.05).mean()
    power = stats.paired_power(difference, discordant, n)
    assert power == pytest.approx(found, abs=0.03)


def test_paired_power_wants_a_possible_difference():
    with pytest.raises(ValueError, match="discordant"):
        stats.paired_power(0.2, 0.1, 100)


def test_the_bootstrap_is_that_of_scipy():
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    values = np.random.default_rng(0).normal(0, 1, 120)
    found = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    row = stats.contrast([values], samples=20_000)
    ends = row["low"], row["high"]
    assert ends == pytest.approx((found.low, found.high), abs=0.01)


def test_the_cluster_interval_is_that_of_statsmodels():
    """Cluster-robust OLS of a constant: the interval over clusters of unequal size."""
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    clusters = rng.integers(40, size=300)
    values = rng.normal(0, 1, 40)[clusters] + rng.normal(0, 1, 300)
    fit = api.OLS(values, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    row = stats.contrast([np.tile(values, (2, 1))], [clusters])
    # statsmodels also multiplies by (n - 1) / (n - 1 parameter): 1 here
    assert row["error"] == pytest.approx(fit.bse[0], rel=1e-6)
    boot = stats.contrast([values], [clusters], samples=4000)
    assert boot["error"] == pytest.approx(fit.bse[0], rel=0.06)
    assert (boot["low"], boot["high"]) == pytest.approx(fit.conf_int()[0], abs=0.05)
