"""A line of rewards: what it means, where it is wrong, and when a stage ends."""

import pickle

import matplotlib

matplotlib.use("Agg")

import pytest

from lib import training_plots
from lib.reward_stages import read_rewards
from lib.rewards import REWARDS

LINES = {
    "accuracy": ["accuracy"],
    " accuracy+.5 format ": ["accuracy + 0.5 format"],
    "2 accuracy + 0 consistency": ["2 accuracy + 0 consistency"],
    "format until 0.9 over 10 | accuracy + 0.1 format until 60 steps | accuracy": [
        "format until format 0.9 over 10",
        "accuracy + 0.1 format until 60 steps",
        "accuracy",
    ],
    "format until consistency 1 over 3 or 40 steps|accuracy": [
        "format until consistency 1 over 3 or 40 steps",
        "accuracy",
    ],
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_and_what_it_says(line):
    rewards = read_rewards(line)
    assert [str(stage) for stage in rewards.stages] == LINES[line]
    assert read_rewards(str(rewards)) == rewards
    assert pickle.loads(pickle.dumps(rewards)) == rewards
    for name in rewards:
        assert rewards[name] is REWARDS[name]
        assert pickle.loads(pickle.dumps(rewards[name])) is REWARDS[name]


WRONG = [
    ("", 1, "the end"),
    ("accuracy +", 11, "the end"),
    ("accuracy + 0.5", 15, "the end"),
    ("acuracy", 1, "one of the rewards accuracy, format, consistency"),
    ("accuracy format", 10, "+, | or until"),
    ("accuracy + -1 format", 12, "'-1'"),
    ("accuracy * 2", 10, "a number, a name, + or |"),
    ("0.5.5 accuracy", 1, "'0.5.5'"),
    ("accuracy + accuracy", 12, "does not hold yet"),
    ("format | accuracy", 10, "give it a condition, as in 'format until 0.9 over 10'"),
    ("format until 0.9 over 10", 25, "the stage that follows"),
    ("format until | accuracy", 14, "a mean reward"),
    ("format until 1.5 over 10 | accuracy", 14, "a mean reward above 0 and up to 1"),
    ("format until 0.9 | accuracy", 18, "over must stand"),
    ("format until 0.9 over 0 | accuracy", 23, "a whole number of steps above 0"),
    ("format until 2.5 steps | accuracy", 14, "a whole number of steps above 0"),
    ("format until 0.9 over 10 or 5 | accuracy", 31, "steps must stand"),
    ("format until accuracy 5 steps | accuracy", 23, "a mean reward"),
    ("format until speed 0.5 over 5 | accuracy", 14, "one of the rewards"),
]


@pytest.mark.parametrize(("line", "position", "told"), WRONG)
def test_a_wrong_line_is_answered_with_the_place(line, position, told):
    with pytest.raises(ValueError, match="position") as error:
        read_rewards(line)
    message = str(error.value)
    assert message.startswith(f"reward {line!r}, position {position}: ")
    assert told in message


def stages_of(line, means):
    """The stage before each step and after the last, numbered from 0."""
    rewards = read_rewards(line)
    return [rewards.stage_after(means[:n]) for n in range(len(means) + 1)]


def test_a_stage_ends_when_its_mean_is_reached():
    means = [{"format": value} for value in (0.5, 1.0, 0.75, 1.0, 1.0, 0.0, 0.0)]
    found = stages_of("format until 0.9 over 3 | accuracy", means)
    # (0.5 + 1 + 0.75) / 3 = 0.75; (1 + 0.75 + 1) / 3 = 0.917; it never goes back
    assert found == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_mean_is_of_the_steps_of_the_stage_alone():
    means = [{"format": 1.0, "accuracy": 1.0}] * 5
    line = "format until 0.9 over 2 | accuracy until 0.9 over 2 | accuracy"
    assert stages_of(line, means) == [0, 0, 1, 1, 2, 2]


def test_a_stage_ends_at_its_limit_at_the_latest():
    means = [{"format": 0.0}] * 4
    assert stages_of("format until 0.9 over 2 or 3 steps | accuracy", means)[3:] == [
        1,
        1,
    ]
    assert stages_of("format until 2 steps | accuracy", means) == [0, 0, 1, 1, 1]


def test_a_mean_that_float32_rounds_down_still_counts():
    assert stages_of("format until 0.9 over 1 | accuracy", [{"format": 0.8999999}]) == [
        0,
        1,
    ]


def test_the_figure_shows_every_reward_and_where_a_stage_began():
    log = [
        {"step": 1, "reward": 0.2, "reward_format": 0.2, "reward_accuracy": 0.1},
        {"step": 2, "lr": 0.1},  # a second update on the same rollouts
        {"step": 3, "reward": 0.9, "reward_format": 0.9, "reward_accuracy": 0.2},
        {"step": 5, "reward": 0.3, "reward_format": 1.0, "reward_accuracy": 0.3},
    ]
    for row, stage in zip((log[0], log[2], log[3]), (1, 1, 2), strict=True):
        row |= {"reward_stage": stage, "reward_std": 0.5}
    ax = training_plots.reward_components(log)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["accuracy", "format"]
    thin = [line for line in ax.lines if len(line.get_xdata()) == 3]
    drawn = {tuple(line.get_ydata()) for line in thin}
    assert drawn == {(0.1, 0.2, 0.3), (0.2, 0.9, 1.0)}
    begun = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert begun == [1, 5]
    assert [text.get_text().strip() for text in ax.texts] == ["stage 1", "stage 2"]
    for row in log:
        row.pop("reward_stage", None)
    assert not training_plots.reward_components(log).texts
