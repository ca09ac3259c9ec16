"""The small policy is GRPO: its advantages, its gradient, what a rule teaches it."""

import numpy as np
import pytest
import torch

from lib import bandit, rewards
from lib.data import letters

LISTS, LOOKS = (
    [way.name for way in bandit.WAYS].index(name)
    for name in ("all four letters", "looks first")
)


def any_tag(completion: str, gold: str) -> float:
    """The rule with the hole: right if any tag holds the letter."""
    return float(gold in letters.ANSWER.findall(completion))


def test_untrained_shares_add_up():
    assert sum(way.share for way in bandit.WAYS) == pytest.approx(1)


@pytest.mark.parametrize("scores", [[1, 0, 0, 1], [1, 0, 0, 0], [0.5, 1.2, 0, 3]])
def test_advantages_are_those_of_the_trainer(scores):
    given = torch.tensor(scores, dtype=torch.float64)
    expected = (given - given.mean()) / (given.std() + 1e-4)  # std: one freedom less
    assert bandit.advantages(scores) == pytest.approx(expected.numpy())


def test_groups_are_compared_within_themselves():
    both = bandit.advantages([[1, 0, 0, 1], [3, 3, 3, 2]])
    assert both[0] == pytest.approx(bandit.advantages([1, 0, 0, 1]))
    assert both[1] == pytest.approx(bandit.advantages([3, 3, 3, 2]))


@pytest.mark.parametrize("scores", [[1], [0], [1, 1, 1, 1], [0, 0]])
def test_nothing_is_learned_from_one_rollout_or_equal_rewards(scores):
    assert bandit.advantages(scores).tolist() == [0] * len(scores)


def test_gradient_is_the_numerical_one():
    logits = np.array([0.3, -1.0, 0.2, 0.9])
    drawn = np.array([0, 3, 3, 1, 2, 0])
    gains = np.array([0.5, -1.2, 0.3, 2.0, -0.7, 0.1])
    step = 1e-6
    numerical = [
        (
            bandit.objective(logits + step * unit, drawn, gains)
            - bandit.objective(logits - step * unit, drawn, gains)
        )
        / (2 * step)
        for unit in np.eye(4)
    ]
    found = bandit.gradient(logits, drawn, gains)
    assert found == pytest.approx(np.array(numerical), abs=1e-8)
    assert abs(found).max() > 0.01


def test_ways_are_right_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for way in bandit.WAYS:
        if "{letter}" in way.text:
            written = [bandit.write(way, "C", rng) for _ in range(2000)]
            right = np.mean([text == way.text.format(letter="C") for text in written])
            assert right == pytest.approx(way.right, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hole_is_found_and_the_paper_s_rule_has_none(seed):
    holed = bandit.train(any_tag, seed=seed)
    paper = bandit.train(rewards.accuracy_reward, seed=seed)
    assert holed[0, LISTS] == pytest.approx(0.05)
    assert holed[-1, LISTS] > 0.9
    assert paper[-1, LOOKS] > 0.9
    assert paper[-1, LISTS] < 0.01


def test_same_seed_same_shares():
    first, again, other = (
        bandit.train(any_tag, steps=5, seed=seed) for seed in (3, 3, 4)
    )
    assert (first == again).all() and (first != other).any()
    assert first.shape == (6, len(bandit.WAYS))
    assert first.sum(1) == pytest.approx(np.ones(6))


def test_a_group_of_one_never_moves():
    shares = bandit.train(rewards.accuracy_reward, steps=3, group_size=1)
    assert (shares == shares[0]).all()
