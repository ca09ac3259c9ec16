"""Figures of training: losses, rewards, rollouts, and what an update reads.

Rows are the lines of train_log_<method>.jsonl; colours and lines are those of
lib/analysis/plots.py."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.analysis.plots import DASHES, WIDTH
from lib.methods import COLORS, LABELS

LOSS = {  # of SFT
    "loss": "cross-entropy, nats a token",
    "token_accuracy": "share of response tokens guessed right",
}
PANELS = {  # of RL
    "reward": "mean reward of a rollout",
    "dead_groups": "share of groups with equal rewards",
    "completion_length": "length, tokens",
    "truncated": "share cut at the token limit",
    "entropy": "entropy, nats a token",
    "kl": "KL to the reference, nats a token",
}
SHARES = ("dead_groups", "truncated")  # drawn from 0 to 1
WATCHED = (*LOSS, "reward", "completion_length")


def curves(log: Sequence[Mapping], method: str, total: int = 0) -> Figure:
    """The curves that show whether a method learned, and what it paid: two of SFT, up
    to six of RL; of a training of `total` steps that still runs WATCHED alone, over all
    steps. Without pyplot, whose state is one thread's: live.py draws in another."""
    names = PANELS if any("reward" in row for row in log) else LOSS
    wanted = [key for key in names if not total or key in WATCHED]
    known = [key for key in wanted if any(row.get(key) is not None for row in log)]
    lines = -(-max(1, len(known)) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * lines), layout="constrained")
    for place, key in enumerate(known, 1):
        ax = figure.add_subplot(lines, 2, place)
        _curve(ax, log, key, COLORS[method])
        ax.set_title(names[key], loc="left")
        if key in SHARES:
            ax.set_ylim(-0.03, 1.03)
        if total:
            ax.set(xlim=(0, 1.02 * total), xlabel="optimizer step")  # last marker whole
    title = f"{LABELS[method]} by optimizer step: each (thin), running mean (thick)"
    missing = ", ".join(key for key in wanted if key not in known)
    figure.suptitle(title + f"\nnot in the log: {missing}" * bool(missing))
    return figure


def rollout_accuracy(logs: Mapping[str, Sequence[Mapping]]) -> Axes:
    """Share of right rollouts, running mean over batches: {method: its log}. Rewards
    differ between methods (GRPO-CARE's holds a bonus), this part does not. PPO makes
    several steps with a batch; only the first of them has rewards in the log."""
    ax = plt.subplots(figsize=(4.5, 2.8))[1]
    key = "reward_accuracy"
    for method, log in logs.items():
        right = [row[key] for row in log if row.get(key) is not None]
        batches = [{"step": i, key: share} for i, share in enumerate(right, 1)]
        _curve(ax, batches, key, COLORS[method], LABELS[method], every=False)
    ax.set_title("Right rollouts while training, running mean")
    ax.set(ylabel="share of right rollouts", xlabel="batch of rollouts")
    ax.legend()
    return ax


def reward_parts(log: Sequence[Mapping]) -> list[str]:
    """The keys of a log under which the mean of each reward of a rollout stands."""
    keys = {key for row in log for key in row if key.startswith("reward_")}
    return sorted(keys - {"reward_stage", "reward_std"})


def reward_components(log: Sequence[Mapping]) -> Axes:
    """The mean of each reward of a rollout by step, and where a stage began. Rows have
    step, reward_<name> and, with stages, reward_stage, numbered from 1."""
    ax = plt.subplots(figsize=(WIDTH, 2.8))[1]
    rows = [row for row in log if row.get("reward") is not None]
    for i, name in enumerate(reward_parts(rows)):
        _curve(ax, rows, name, f"C{i}", name.removeprefix("reward_"))
    begun: dict = {}  # the first step of each stage
    for row in rows:
        begun.setdefault(row.get("reward_stage"), row["step"])
    for stage, step in begun.items() if len(begun) > 1 else ():
        ax.axvline(step, color="0.4", lw=0.8, ls=DASHES)
        ax.text(step, 1.01, f" stage {stage:.0f}", transform=ax.get_xaxis_transform())
    ax.set(xlabel="optimizer step", ylabel="mean reward of a rollout")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def encoded_tokens(visual: int, text: int, completions: Sequence[int]) -> Axes:
    """What the update encodes for one group: prompt repeated, or prompt once. A prompt
    of `visual` and `text` tokens and its completions to scale; the totals are those of
    lib/model/scoring.py, a copy of the prompt's last token for each included."""
    group, answers = len(completions), np.array(completions)
    ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.2 * group))[1]
    rows, last = [*range(group)], group + 0.8
    prompts, style = [text] * group + [text - 1], {"ec": "white", "lw": 0.8}
    for places, widths, left, name, color in (
        ([*rows, last], visual, 0, "video and image", "#009E73"),
        ([*rows, last], prompts, visual, "text of the prompt", "#999999"),
        (rows, answers, visual + text, "completions", "#56B4E9"),
        (last, answers, visual + text - 1 + answers.cumsum() - answers, "", "#56B4E9"),
    ):
        ax.barh(places, widths, 0.8, left, color=color, label=name, **style)
    once = visual + text - 1 + answers.sum()
    repeated = group * (visual + text) + answers.sum()
    names = f"repeated:\n{repeated:,} tokens", f"once:\n{once:,} tokens"
    ax.set_yticks([(group - 1) / 2, last], names)
    less = f"{repeated / once:.1f} times fewer tokens through the language model"
    ax.set_title(f"One group of {group}: {less}")
    ax.set_xlabel("tokens, to scale")
    ax.invert_yaxis()
    square = {"handlelength": 1, "handleheight": 1, "ncols": 3}
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1.12), **square)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    return ax


def told(log: Sequence[Mapping], keys: Sequence[str]) -> str:
    """A log in words: means of the first and the last tenth of its steps.

    >>> told([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], ["loss", "kl"])
    'loss from 2 to 1 in 2 steps'
    """
    said = []
    for key in keys:
        values = [row[key] for row in log if row.get(key) is not None]
        some = max(1, len(values) // 10)
        if values:
            first, last = np.mean(values[:some]), np.mean(values[-some:])
            said.append(f"{PANELS.get(key, key)} from {first:.3g} to {last:.3g}")
    return f"{'; '.join(said)} in {len(log)} steps"


def _curve(
    ax: Axes,
    log: Sequence[Mapping],
    key: str,
    color: str,
    label: str = "",
    every: bool = True,
) -> None:
    """A number by step, if `every`, and its running mean; or that none is logged."""
    points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    if not points:
        style = {"ha": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, f"“{key}” is not in the log", **style)
        return
    step, value = np.array(points, dtype=float).T
    window = max(1, len(value) // 10)
    mean = np.convolve(value, np.ones(window) / window, "valid")
    if every or len(value) < 20:
        dots = "." if len(value) < 20 else None
        ax.plot(step, value, color=color, lw=0.7, alpha=0.5, marker=dots)
    ax.plot(step[window - 1 :], mean, color=color, lw=1.8, label=label or None)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y")
