"""Intervals and tests against closed forms, statsmodels, scipy and simulation."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import bootstrap, chi2
from statsmodels import api
from statsmodels.stats import proportion
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power

from lib import paths
from lib.analysis import stats
from lib.records import read_json


def integers(shape, seed=0):
    """-1, 0 and 1 at random: a paired difference."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(float)


def ends(row):
    return row["low"], row["high"]


def test_mcnemar_and_wilson_are_those_of_statsmodels():
    for wins, losses in ((8, 2), (2, 8), (5, 5), (40, 42), (120, 90), (1200, 1000)):
        found = mcnemar([[300, wins], [losses, 100]], exact=True)
        assert stats.mcnemar_exact(wins, losses) == pytest.approx(found.pvalue)
    assert stats.mcnemar_exact(8, 2) == 2 * (1 + 10 + 45) / 2**10
    assert stats.mcnemar_exact(0, 0) == 1
    for k, n in ((0, 10), (10, 10), (3, 40), (500, 1000)):
        found = stats.wilson_interval(k, n)
        wanted = proportion.proportion_confint(k, n, method="wilson")
        assert found == pytest.approx(wanted)
        assert found[0] >= 0 and found[1] <= 1


def test_bootstrap_draws_whole_clusters():
    """Clusters (1, 1, 1) and (0): a mean is 1, 0, or that of one of each, 0.75."""
    means = stats.Resampling("ab", 4_000, 0).means([1, 1, 1, 0], "aaab")
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    assert counts / 4_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    some = stats.Resampling("ab", 4_000, 0).means([1, 1], "aa")  # none of b
    assert stats.percentiles(some) == (1, 1) and np.isnan(some).any()
    assert stats.percentiles(np.array([np.nan])) == (None, None)


def test_bootstrap_is_drawn_from_its_seed_alone():
    """Whatever the global state; each part has its own draws."""
    whole = stats.Resampling(range(50), 1_000, [3, 0]).weights
    np.random.seed(99)
    assert (stats.Resampling(range(50), 1_000, [3, 0]).weights == whole).all()
    for other in ([4, 0], [3, 1]):
        assert (stats.Resampling(range(50), 1_000, other).weights != whole).any()


def test_the_bootstrap_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0, 1, 120)
    how = {"n_resamples": 20_000, "method": "percentile", "rng": 1}
    found = bootstrap((values,), np.mean, **how).confidence_interval
    row = stats.contrast([values], samples=20_000)
    assert ends(row) == pytest.approx((found.low, found.high), abs=0.01)
    assert (row["n"], row["clusters"], row["seeds"]) == (120, 120, 1)


def test_a_difference_of_differences_resamples_each_side():
    """Its standard error is that of two independent means."""
    there, here = integers((2, 60))
    row = stats.contrast([there, -here], samples=4000)
    assert row["effect"] == pytest.approx(there.mean() - here.mean())
    expected = sqrt((there.var() + here.var()) / 60)
    assert row["error"] == pytest.approx(expected, rel=0.05)
    alone = stats.contrast([there, np.zeros(9)], samples=4000)
    assert alone["high"] == stats.contrast([there], samples=4000)["high"]


def test_seeds_that_agree_add_nothing():
    """Five identical seeds: the t interval over the questions of one."""
    values = np.array([[1, 0, 1, 1, 0, 1, 0, 1.0]])
    row = stats.mean_over_seeds(values.repeat(5, axis=0))
    half = 2.3646 * values.std(ddof=1) / sqrt(8)
    assert row["high"] - row["effect"] == pytest.approx(half, rel=1e-3)
    assert row["sd"] == 0


def test_seeds_that_differ_without_question_noise():
    """Parts whose questions are all alike: the t interval over the seeds' sums."""
    there, here = np.array([0.3, 0.5, 0.4]), np.array([0.1, 0.0, 0.2])
    parts = [there[:, None].repeat(40, 1), -here[:, None].repeat(90, 1)]
    for row, sums in (
        (stats.mean_over_seeds(parts[0]), there),
        (stats.contrast(parts), there - here),
    ):
        assert row["effect"] == pytest.approx(sums.mean())
        assert row["sd"] == pytest.approx(sums.std(ddof=1))
        half = 4.3027 * sums.std(ddof=1) / sqrt(3)
        assert row["high"] - row["effect"] == pytest.approx(half, rel=1e-3)
    assert row["n"] == 130 and row["varies"] == "seeds and questions"


@pytest.mark.parametrize("seeds, n, least", [(5, 200, 0.91), (3, 150, 0.93)])
@pytest.mark.parametrize("seed_spread", [0.0, 0.2, 0.8])
def test_mean_over_seeds_covers(seed_spread, seeds, n, least):
    """Whatever share of the variance is the seeds'; few get a wider interval."""
    rng = np.random.default_rng(1)
    truth = (1 / (1 + np.exp(-rng.normal(0, sqrt(1 + seed_spread**2), 400_000)))).mean()
    held = []
    for _ in range(400):
        logit = rng.normal(0, seed_spread, (seeds, 1)) + rng.normal(0, 1, n)
        low, high = ends(stats.mean_over_seeds(rng.random((seeds, n)) < _odds(logit)))
        held.append(low <= truth <= high)
    assert least < np.mean(held) < (0.999 if seeds < stats.ENOUGH_SEEDS else 0.985)


def _odds(logit):
    return 1 / (1 + np.exp(-logit))


def test_few_seeds_only_ever_widen_the_interval(monkeypatch):
    """Also where the seeds happen to agree better than their answers allow."""
    rng = np.random.default_rng(1)
    drawn = [rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 1, (3, 80)) for _ in range(30)]
    wide = [stats.mean_over_seeds(values)["high"] for values in drawn]
    monkeypatch.setattr(stats, "ENOUGH_SEEDS", 2)
    usual = [stats.mean_over_seeds(values)["high"] for values in drawn]
    more = np.subtract(wide, usual)
    assert min(more) == 0 and max(more) > 0.05


def test_several_tests_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1, 2, 4, 7):
        ps = [*(rng.random(n) ** 3), 0.04, 0.04]
        assert stats.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])


def test_p_is_below_5_percent_where_the_interval_excludes_zero():
    rng = np.random.default_rng(0)
    shifts = np.linspace(-0.3, 0.3, 60)
    for seeds in (3, 5):
        drawn = (rng.normal(shift, 1, (seeds, 40)) for shift in shifts)
        rows = [stats.mean_over_seeds(values) for values in drawn]
        outside = [not row["low"] <= 0 <= row["high"] for row in rows]
        assert [row["p"] < 0.05 for row in rows] == outside
        assert seeds == 3 or 0 < sum(outside) < 60
    assert stats.mean_over_seeds(np.zeros((5, 8)))["p"] == 1


def test_the_cluster_interval_is_that_of_statsmodels():
    """Cluster-robust OLS of a constant: the interval over clusters of unequal size."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(40, size=300)
    values = rng.normal(0, 1, 40)[clusters] + rng.normal(0, 1, 300)
    how = {"cov_type": "cluster", "cov_kwds": {"groups": clusters}, "use_t": True}
    fit = api.OLS(values, np.ones(300)).fit(**how)
    row = stats.contrast([np.tile(values, (2, 1))], [clusters])
    # statsmodels also multiplies by (n - 1) / (n - 1 parameter): 1 here
    assert row["error"] == pytest.approx(fit.bse[0], rel=1e-6)
    boot = stats.contrast([values], [clusters], samples=4000)
    assert boot["error"] == pytest.approx(fit.bse[0], rel=0.06)
    assert ends(boot) == pytest.approx(fit.conf_int()[0], abs=0.05)


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
    for telling, wider in ((12, False), (4, True)):
        values[telling:] = 0
        plain, bounded = (
            stats.contrast([values], samples=500, bounds=bounds)
            for bounds in (None, [(-1, 1)])
        )
        assert bounded["effect"] == plain["effect"]
        assert (bounded != plain) == (bounded["high"] > plain["high"]) == wider


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
    with pytest.raises(ValueError, match="must match exactly"):
        stats.contrast([np.ones((2, 5)), np.ones((3, 5))])
    with pytest.raises(ValueError, match="length"):
        stats.contrast([integers((2, 5))], [[1, 2]])
    with pytest.raises(ValueError, match="never left out"):
        stats.contrast([np.array([1, float("nan")])])


def test_the_committed_coverage_is_honest():
    """Intervals as built cover 92 % or more, those that ignore something less."""
    covered = {}
    for row in read_json(paths.ROOT / "outputs/reference/coverage.json"):
        if row["interval"] != "seeds ignored" or row["seed_sd"] == 0.5:
            covered.setdefault(row["interval"], []).append(row["covered"])
    assert min(covered["as built"]) > 0.92
    assert min(covered["clusters ignored"]) < 0.85
    assert max(covered["seeds ignored"]) < 0.85


def test_the_unpaired_interval_is_that_of_statsmodels():
    """The Wald interval, for the paper's counts of RL and SFT on L1 and L3."""
    for counts, z in (((1119, 2432, 1065, 2432), 1.56), ((593, 1321, 504, 1321), 3.52)):
        row = stats.unpaired_difference(counts[:2], counts[2:])
        wald = proportion.confint_proportions_2indep(*counts, method="wald")
        assert ends(row) == pytest.approx(wald, abs=1e-9)
        assert row["difference"] == pytest.approx((counts[0] - counts[2]) / counts[1])
        assert row["z"] == pytest.approx(z, abs=0.005)


def test_power_is_that_of_the_z_test():
    """0.05 without an effect, and as in statsmodels for others."""
    assert stats.power(0.0, 0.02) == pytest.approx(0.05)
    for effect, error, n in ((0.03, 0.02, 100), (-0.06, 0.02, 400)):
        found = normal_power(effect / (error * sqrt(n)), n, 0.05)
        assert stats.power(effect, error) == pytest.approx(found, abs=1e-6)
    assert stats.power(0.1, 0.0) == 1 and stats.power(0.0, 0.0) == 0
    for error, half in ((0.02, 0.0392), (0.03, 0.1)):
        found = stats.power(stats.detectable(error, half), error, half)
        assert found == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(
    "difference, discordant, n", [(0.05, 0.2, 500), (0.03, 0.1, 800), (0.1, 0.3, 150)]
)
def test_paired_power_is_how_often_mcnemar_finds_it(difference, discordant, n):
    """Against 4,000 simulated comparisons with McNemar's chi-square."""
    rng = np.random.default_rng(0)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2]
    wins, losses, _ = rng.multinomial(n, [*shares, 1 - discordant], 4000).T
    statistic = (wins - losses) ** 2 / np.maximum(wins + losses, 1)
    found = (chi2.sf(statistic, 1) < 0.05).mean()
    power = stats.paired_power(difference, discordant, n)
    assert power == pytest.approx(found, abs=0.03)
    with pytest.raises(ValueError, match="discordant"):
        stats.paired_power(2 * discordant, discordant, n)
