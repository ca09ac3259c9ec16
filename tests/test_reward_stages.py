"""A line of rewards: what it means, where it is wrong, and when a stage ends."""

import pickle

import nbformat
import pytest

from lib import records
from lib.analysis import plots
from lib.run.params import NOTEBOOKS
from lib.show import training_plots
from lib.train.reward_stages import read_rewards
from lib.train.rewards import REWARDS

LINES = {
    "accuracy": ["accuracy"],
    " accuracy+.5 format ": ["accuracy + 0.5 format"],
    "2 accuracy + 0 consistency + coin": ["2 accuracy + 0 consistency + coin"],
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
    ("", 1, "'' is no name with a weight"),
    ("accuracy +", 1, "'' is no name"),
    ("accuracy + 0.5", 1, "'0.5' is no name"),
    ("acuracy", 1, "'acuracy' is none of the rewards accuracy, format, consistency"),
    ("accuracy format", 1, "'accuracy format' is no name"),
    ("accuracy + -1 format", 1, "'-1 format' is no name"),
    ("accuracy * 2", 1, "'accuracy * 2' is no name"),
    ("0.5.5 accuracy", 1, "'0.5.5 accuracy' is no name"),
    ("accuracy + accuracy", 1, "accuracy stands in it twice"),
    ("format | accuracy", 1, "it never ends; write 'format until 0.9 over 10'"),
    ("format until 0.9 over 10", 1, "it is the last and has no end"),
    ("format until 9 steps | accuracy until 9 steps", 2, "it is the last and has no"),
    ("format until | accuracy", 1, "'until ' is neither"),
    ("format until 1.5 over 10 | accuracy", 1, "the mean above 0 and up to 1"),
    ("format until 0 over 10 | accuracy", 1, "the mean above 0 and up to 1"),
    ("format until 0.9 | accuracy", 1, "'until 0.9' is neither"),
    ("format until 0.9 over 0 | accuracy", 1, "'until 0.9 over 0' is neither"),
    ("format until 2.5 steps | accuracy", 1, "neither 'until 60 steps'"),
    ("format until 0.9 over 10 or 5 | accuracy", 1, "10 or 5' is neither"),
    ("format until accuracy 5 steps | accuracy", 1, "5 steps' is neither"),
    ("format until speed 0.5 over 5 | accuracy", 1, "'speed' is none of the rewards"),
]


@pytest.mark.parametrize(("line", "stage", "told"), WRONG)
def test_a_wrong_line_is_answered_with_the_stage(line, stage, told):
    with pytest.raises(ValueError, match="stage") as error:
        read_rewards(line)
    message = str(error.value)
    assert message.startswith(f"reward {line!r}, stage {stage}: ")
    assert told in message


HALF, FULL = {"format": 0.5, "accuracy": 1.0}, {"format": 1.0, "accuracy": 1.0}
NONE, MOST = {"format": 0.0}, {"format": 0.75}


@pytest.mark.parametrize(
    ("line", "means", "stages"),
    [
        # (0.5 + 1 + 0.75) / 3 = 0.75; (1 + 0.75 + 1) / 3 = 0.917; it never goes back
        (
            "format until 0.9 over 3 | accuracy",
            [HALF, FULL, MOST, FULL, FULL, NONE, NONE],
            [0, 0, 0, 0, 1, 1, 1, 1],
        ),
        # the mean is of the steps of the stage alone
        (
            "format until 0.9 over 2 | accuracy until 0.9 over 2 | accuracy",
            [FULL] * 5,
            [0, 0, 1, 1, 2, 2],
        ),
        # at its limit at the latest
        ("format until 0.9 over 2 or 3 steps | accuracy", [NONE] * 4, [0, 0, 0, 1, 1]),
        ("format until 2 steps | accuracy", [NONE] * 4, [0, 0, 1, 1, 1]),
        # 0.9 in float32
        ("format until 0.9 over 1 | accuracy", [{"format": 0.8999999}], [0, 1]),
    ],
)
def test_when_a_stage_ends(line, means, stages):
    """The stage before each step and after the last, numbered from 0."""
    rewards = read_rewards(line)
    assert [rewards.stage_after(means[:n]) for n in range(len(means) + 1)] == stages


def test_the_figure_shows_every_reward_and_where_a_stage_began():
    log = [
        {"step": 1, "reward": 0.2, "reward_format": 0.2, "reward_accuracy": 0.1},
        {"step": 2, "lr": 0.1},  # a second update on the same rollouts
        {"step": 3, "reward": 0.9, "reward_format": 0.9, "reward_accuracy": 0.2},
        {"step": 5, "reward": 0.3, "reward_format": 1.0, "reward_accuracy": 0.3},
    ]
    for row, stage in zip((log[0], log[2], log[3]), (1, 1, 2), strict=True):
        row |= {"reward_stage": stage, "reward_std": 0.5}
    assert training_plots.reward_parts(log) == ["reward_accuracy", "reward_format"]
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


def test_03_draws_a_reward_of_one_part_once(tmp_path, capsys):
    row = {"step": 1, "reward": 0.5, "reward_accuracy": 0.5}
    row |= {"reward_std": 0.5, "reward_stage": 1.0}
    records.write_jsonl(tmp_path / "train_log_grpo.jsonl", [row])
    cells = nbformat.read(NOTEBOOKS / "03_grpo.ipynb", as_version=4).cells
    (cell,) = [c for c in cells if "reward_components(" in c.source]
    known = {"settings": ["grpo"], "run": tmp_path, "records": records, "plots": plots}
    exec(cell.source, known | {"training_plots": training_plots})
    assert "GRPO has one part" in capsys.readouterr().out
