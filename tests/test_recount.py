"""GRPO − SFT over seeds, counted once more with statsmodels and by no code of lib:
the table of variance of seeds and questions, crossed, from the committed records."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

README = Path(__file__).parents[1] / "README.md"
RECORDS = sorted((README.parent / "outputs/reference/mini_seeds").glob("*.json"))


def recount(name):
    """(effect, low, high, p) in points; a negative component counts as zero."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDS]
    right = {
        (run["seed"], row["model"]): np.array([*row["correct"]], int)
        for run in runs
        for row in run["results"]
        if row["set"] == name
    }
    seeds = [run["seed"] for run in runs]
    gaps = np.array([right[seed, "grpo"] - right[seed, "sft"] for seed in seeds])
    long = pd.DataFrame(gaps).melt(ignore_index=False, var_name="question")
    table = anova_lm(ols("value ~ C(index) + C(question)", long.reset_index()).fit())
    (seed, question, rest), df = table["sum_sq"] / table["df"], table["df"]
    parts = [max(0, seed - rest), max(0, question - rest), rest]
    # Satterthwaite, over the mean squares that the sum is made of
    weights = [float(part > 0) for part in parts[:2]]
    weights.append(1 - sum(weights))
    spread = zip(weights, (seed, question, rest), df, strict=True)
    freedom = sum(parts) ** 2 / sum((w * ms) ** 2 / n for w, ms, n in spread)
    error = 100 * np.sqrt(sum(parts) / gaps.size)
    reached = stats.t.ppf(0.975, max(1, freedom))
    effect, reach = 100 * gaps.mean(), reached * error
    if len(seeds) < 5:  # a quantile for each component, and none dropped (Howe 1974)
        own = stats.t.ppf(0.975, df) ** 2 * [seed, max(0, question - rest), 0]
        reach = max(reach, 100 * np.sqrt(own.sum() / gaps.size))
    p = 2 * stats.t.sf(reached * abs(effect) / reach, max(1, freedom))
    return effect, effect - reach, effect + reach, p


@pytest.fixture(scope="module")
def counted():
    return {name: recount(name) for name in ("L1", "L2", "L3", "general")}


@pytest.mark.parametrize("name", ["L1", "L2", "L3", "general"])
def test_other_code_comes_to_the_same_interval(counted, name):
    from lib.analysis import readme

    frame = readme.of_records(readme.read_reference(RECORDS[0].parent))
    rows = readme.differences(frame)
    (row,) = (r for r in rows if (r["a"], r["b"], r["set"]) == ("grpo", "sft", name))
    ours = [100 * row[key] for key in ("difference", "low", "high")]
    assert ours == pytest.approx(counted[name][:3], abs=0.1)
    assert row["p"] == pytest.approx(counted[name][3], abs=0.002)


def test_the_first_screen_says_no_more_than_four_tests_allow(counted):
    """README's bullets: ahead only if the interval excludes zero after Holm."""
    text = README.read_text(encoding="utf-8")
    adjusted = multipletests([row[3] for row in counted.values()], method="holm")[1]
    for (name, row), p in zip(counted.items(), adjusted, strict=True):
        bullet = next(line for line in text.splitlines() if f"- **{name}**" in line)
        value = f"{row[0]:.1f}".replace("-", "−")
        assert value.removeprefix("−") in bullet
        assert (" ahead of " in bullet) == (p < 0.05)
        assert ("not decided" in bullet) == (p >= 0.05)
