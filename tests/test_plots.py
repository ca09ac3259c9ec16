"""Figures hold the numbers they are given, and say what is missing."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_run import ABILITY, grpo_log, predictions
from matplotlib.colors import to_hex
from PIL import Image

from lib.analysis import compare, plots
from lib.show import training_plots


@pytest.fixture(scope="module")
def made():
    return {
        (model, name): predictions(model, name, 100, 0)
        for name in ("L1", "L3")
        for model in ABILITY
    }


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def test_bars_are_the_accuracies_with_their_intervals_in_the_method_colours(made):
    rows = compare.accuracies(made)
    ax = plots.accuracy(rows, "set")
    drawn = [(bar.get_facecolor(), bar.get_height()) for bar in ax.patches]
    bars = [(to_hex(colour), round(height, 6)) for colour, height in drawn]
    assert bars == [
        (plots.COLORS[row["model"]].lower(), round(100 * row["accuracy"], 6))
        for row in rows
    ]
    ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
    assert ends[0] == pytest.approx([100 * rows[0]["low"], 100 * rows[0]["high"]])
    assert ax.get_ylim()[0] == 0
    assert "n = 100" in words(ax.figure) and "chance" in words(ax.figure)


def test_the_paper_is_drawn_only_where_it_has_the_group(made):
    rows = [r for r in compare.accuracies(made) if r["model"] == "sft"]
    published = {"L1": compare.published()["set"]["L1"]}
    ax = plots.accuracy(rows, "set", published)
    drawn = [line.get_ydata()[0] for line in ax.get_lines() if line.get_marker() == "D"]
    assert drawn == pytest.approx([100 * 1065 / 2432])


def test_chance_follows_the_options():
    rows = [predictions("sft", "general", 10, 0)]
    row = {"model": "sft", "set": "general", **compare.summary(rows[0])}
    ax = plots.accuracy([row], "set")
    levels = [segment[0][1] for c in ax.collections for segment in c.get_segments()]
    assert pytest.approx(22.5) in levels


def test_an_undecided_difference_is_an_open_marker():
    shared = {"a": "grpo", "b": "sft", "n": 9, "p": 0.5}
    decided = {**shared, "set": "L1", "difference": 0.2, "low": 0.1, "high": 0.3}
    undecided = {**shared, "set": "L2", "difference": 0.1, "low": -0.1, "high": 0.3}
    ax = plots.differences([decided, undecided])
    faces = {
        round(line.get_xdata()[0]): to_hex(line.get_markerfacecolor())
        for line in ax.get_lines()
        if line.get_marker() == "o"
    }
    assert faces == {20: plots.COLORS["grpo"].lower(), 10: "#ffffff"}
    assert "+20.0   p = 0.500" in words(ax.figure)
    equal = {**undecided, "difference": -4e-4}  # as the table beside it has it
    assert "−0.0" not in words(plots.differences([equal]).figure)


def test_a_key_that_was_not_logged_is_named():
    figure = training_plots.curves(grpo_log(), "grpo")
    assert "not in the log: entropy" in words(figure)
    assert len([ax for ax in figure.axes if ax.has_data()]) == 5
    figure = training_plots.curves([], "sft")
    assert "not in the log: loss, token_accuracy" in words(figure)
    logs = {"psr": [{"step": 1}], "ppo": [{"step": 1, "reward_accuracy": 0.4}]}
    ax = training_plots.rollout_accuracy(logs)
    assert "“reward_accuracy” is not in the log" in words(ax.figure)


@pytest.mark.parametrize(
    ("method", "log", "name"),
    [
        ("ppo", grpo_log(), "PPO"),
        ("psr", grpo_log(), "PSR"),  # without an entry
        ("sft-answers", [{"step": 1, "loss": 2.0}], "SFT, answers alone"),
    ],
)
def test_curves_of_another_method_have_its_name_and_colour(method, log, name):
    figure = training_plots.curves(log, method)
    assert f"{name} by optimizer step" in words(figure)
    color = figure.axes[0].get_lines()[1].get_color()
    assert color == plots.COLORS[method]
    assert (color in plots.COLORS.values()) == (method != "psr")


def test_power_is_drawn_by_number_of_questions_with_the_published_gap():
    rows = [
        {"n": n, "difference": d, "power": d * n / 1000}
        for n in (500, 100)
        for d in (0.01, 0.02)
    ]
    ax = plots.power(rows, gap=0.022, discordant=0.15)
    lines = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    assert lines["100"] == pytest.approx(np.array([[1, 0.1], [2, 0.2]]))
    assert lines["500"] == pytest.approx(np.array([[1, 0.5], [2, 1.0]]))
    assert pytest.approx([2.2, 2.2]) in [line.get_xdata() for line in ax.get_lines()]
    assert "15 % of the questions" in ax.get_title()


def test_right_rollouts_of_several_methods_are_counted_by_batch():
    """PPO's second update with the same rollouts has no reward and is no batch."""
    logs = {m: [{"step": 1, "reward": 9.0, "reward_accuracy": 0.4}] for m in ABILITY}
    rows = [{"step": 1, "reward_accuracy": 0.6}, {"step": 2}]
    logs["ppo"] = [*rows, {"step": 3, "reward_accuracy": 0.7}]
    ax = training_plots.rollout_accuracy(logs)
    ppo = [line for line in ax.get_lines() if line.get_color() == plots.COLORS["ppo"]]
    assert [[1, 0.6], [2, 0.7]] in [line.get_xydata().tolist() for line in ppo]
    drawn = {line.get_color() for line in ax.get_lines() if len(line.get_ydata())}
    assert drawn == {plots.COLORS[m] for m in logs}


def test_curves_hold_every_step_and_a_running_mean():
    log = [{"step": s, "loss": float(s)} for s in range(1, 31)]
    thin, thick = training_plots.curves(log, "sft").axes[0].get_lines()
    assert thin.get_xydata().tolist() == [[s, s] for s in range(1, 31)]
    rewards = [[row["step"], row["reward"]] for row in grpo_log()]
    reward = training_plots.curves(grpo_log(), "grpo").axes[0].get_lines()[0]
    assert reward.get_xydata().tolist() == rewards
    # The mean of steps 1, 2 and 3 stands at step 3.
    assert thick.get_xydata()[0].tolist() == [3, pytest.approx(2.0)]


def test_every_seed_is_a_dot():
    row = {"model": "grpo", "set": "L1", "n": 50, "chance": 0.25}
    row |= {"mean": 0.5, "low": 0.4, "high": 0.6, "by_seed": [0.45, 0.5, 0.55]}
    ax = plots.seeds([row])
    dots = ax.collections[0].get_offsets()[:, 1]
    assert dots.tolist() == pytest.approx([45, 50, 55])
    assert "3 training seeds" in words(ax.figure)


def test_save_leaves_one_whole_png(tmp_path):
    drawn = training_plots.curves([{"step": 1, "loss": 1.0}], "sft")
    path = plots.save(drawn, tmp_path / "f/x.png")
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
    assert Image.open(path).width > 400


def test_encoded_tokens_are_drawn_to_scale():
    ax = training_plots.encoded_tokens(40, 130, [14, 15, 9])
    bars = sorted((bar.get_y(), bar.get_x(), bar.get_width()) for bar in ax.patches)
    repeated, packed = bars[:9], bars[9:]
    expected = [40, 130, 14, 40, 130, 15, 40, 130, 9]
    assert [round(width) for *_, width in repeated] == expected
    assert [round(width) for *_, width in packed] == [40, 129, 14, 15, 9]
    assert [round(start) for _, start, _ in packed] == [0, 40, 169, 183, 198]
    assert "548 tokens" in words(ax.figure) and "207 tokens" in words(ax.figure)


@pytest.mark.parametrize("text", ["$x^2$", "$", r"$\frac{1}", "a $5 and $6 b", "\\"])
def test_a_text_of_the_data_is_no_formula(made, text, tmp_path):
    rows = [{**row, "domain": text} for row in compare.accuracies(made)]
    ax = plots.accuracy(rows, "domain")
    plots.save(ax, tmp_path / "domains.png")
    (label,) = ax.get_xticklabels()
    assert label.get_text().startswith(text) and not label.get_parse_math()
