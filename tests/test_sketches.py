"""The sketches draw what they are given: masks, losses, rates, shares, estimates."""

import numpy as np

from lib.show import sketches

SEGMENTS = np.array([0, 0, 1, 1, 2, 2, 2])


def test_a_mask_is_white_exactly_where_nothing_is_seen():
    order, same = np.arange(7), SEGMENTS[:, None] == SEGMENTS
    visible = (order[:, None] >= order) & ((SEGMENTS == 0) | same)
    ax = sketches.mask(visible, SEGMENTS)
    drawn = np.asarray(ax.images[0].get_array())
    assert ((drawn > 0) == visible).all()
    assert len(set(drawn[visible])) == 3  # the prompt and two answers
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["p1", "p2", "p3", "a1", "p3", "b1", "b2"]


def test_the_loss_is_the_mean_of_what_is_learned():
    ax = sketches.token_losses(["\n", "<think>", "B"], [None, 1.0, 2.0])
    assert [bar.get_height() for bar in ax.containers[0]] == [1.0, 2.0]
    context, mean = sorted(text.get_text() for text in ax.texts)[::-1]
    assert "not learned" in context and "mean 1.50" in mean
    assert len(sketches.token_losses(["B"], [0.5]).texts) == 1


def test_a_schedule_has_a_point_a_step():
    (line,) = sketches.schedule([0.0, 1e-3, 5e-4]).lines
    assert line.get_xydata().tolist() == [[1, 0.0], [2, 1e-3], [3, 5e-4]]


def test_a_panel_a_rule_and_a_line_a_way():
    curves = {"one": np.array([[0.5, 0.5], [0.9, 0.1]]), "two": np.full((2, 2), 0.5)}
    figure = sketches.shares(curves, ["looks", "lists"])
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert drawn == [[50, 90], [50, 10]]


def test_estimates_are_running_means_beside_the_exact_value():
    values = np.arange(20.0)
    drawn, exact = sketches.estimates({"k": values}, exact=3.25).lines
    assert drawn.get_xydata()[-1].tolist() == [20, values.mean()]
    assert drawn.get_xydata()[0].tolist() == [10, values[:10].mean()]
    assert set(exact.get_ydata()) == {3.25}
