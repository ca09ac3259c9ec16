"""Figures of training: losses, rewards, rollouts, and what an update reads.

One function a figure, as in lib/analysis/plots.py, whose colours and lines they share.
Rows are the lines of train_log_<method>.jsonl and rollouts.jsonl.

Example: `plots.save(training_plots.grpo_curves(log), folder / "grpo.png")`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.analysis.plots import COLORS, DASHES, LABELS, WIDTH, tidy

PARTS = {  # of what a language model reads in one update
    "video and image": "#009E73",
    "text of the prompt": "#999999",
    "completions": "#56B4E9",
}
PANELS = {
    "reward": "mean reward of a rollout",
    "dead_groups": "share of groups with equal rewards",
    "completion_length": "length, tokens",
    "truncated": "share cut at the token limit",
    "entropy": "entropy, nats a token",
    "kl": "KL to the reference, nats a token",
}
SHARES = ("dead_groups", "truncated")


def sft_curve(
    log: Sequence[Mapping], method: str = "sft", ax: Axes | None = None
) -> Axes:
    """Loss on the response tokens by optimizer step, of SFT or SFT on answers alone."""
    ax = ax or plt.subplots(figsize=(4.5, 2.8))[1]
    _curve(ax, log, "loss", COLORS[method])
    ax.set_title(f"{LABELS[method]}: loss on the response tokens", fontsize=10)
    ax.set_ylabel("cross-entropy (nats a token)")
    ax.set_xlabel("optimizer step")
    return ax


def grpo_curves(log: Sequence[Mapping], method: str = "grpo") -> Figure:
    """The curves that show whether RL learned, and what it paid for it; up to six."""
    known = [key for key in PANELS if any(row.get(key) is not None for row in log)]
    lines = -(-max(1, len(known)) // 2)
    figure, axes = plt.subplots(
        lines,
        2,
        figsize=(WIDTH, 0.5 + 1.75 * lines),
        squeeze=False,
        layout="constrained",
    )
    for ax, key in zip(axes.flat, known, strict=False):
        _curve(ax, log, key, COLORS[method])
        ax.set_title(PANELS[key], fontsize=8.5, loc="left")
        ax.tick_params(labelsize=8)
        if key in SHARES:
            ax.set_ylim(-0.03, 1.03)
    for ax in axes.flat[len(known) :]:
        ax.axis("off")
    title = f"{LABELS[method]} by optimizer step: each (thin), running mean (thick)"
    missing = [key for key in PANELS if key not in known]
    title += f"\nnot in the log: {', '.join(missing)}" if missing else ""
    figure.suptitle(title, fontsize=10)
    return figure


def training_so_far(log: Sequence[Mapping], label: str, total: int) -> Figure:
    """The two curves to watch while a method trains, on an axis of all its steps.

    Reward and length for RL, loss and token accuracy for SFT. Made without pyplot,
    whose state belongs to one thread: lib/show/live.py draws this in another.
    """
    panels = {"loss": "cross-entropy\n(nats a token)"}
    panels["token_accuracy"] = "share of the response\ntokens guessed right"
    if "reward" in log[-1]:
        panels = {"reward": "mean reward\nof a rollout"}
        panels["completion_length"] = "completion length\n(tokens)"
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    for ax, (key, name) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        _curve(ax, log, key, COLORS[label])
        ax.set_xlim(0, 1.02 * total)  # the last marker whole
        ax.set_xlabel("optimizer step", fontsize=8)
        ax.set_ylabel(name, fontsize=8)
        ax.tick_params(labelsize=8)
    return figure


def rollout_accuracy(
    logs: Mapping[str, Sequence[Mapping]], ax: Axes | None = None
) -> Axes:
    """Share of right rollouts, running mean over batches: {method: its log}.

    Rewards differ between methods (GRPO-CARE's holds a bonus), this part does not. Nor
    do optimizer steps count alike: PPO makes several with one batch of rollouts, and
    only the first of them has rewards in the log.
    """
    ax = ax or plt.subplots(figsize=(4.5, 2.8))[1]
    key = "reward_accuracy"
    for method, log in logs.items():
        right = [row[key] for row in log if row.get(key) is not None]
        batches = [{"step": i, key: share} for i, share in enumerate(right, 1)]
        _curve(ax, batches, key, COLORS[method], every=False)
        ax.plot([], [], color=COLORS[method], lw=1.8, label=LABELS[method])
    ax.set_title("Right rollouts while training, running mean", fontsize=10)
    ax.set_ylabel("share of right rollouts")
    ax.set_xlabel("batch of rollouts")
    ax.legend(fontsize=8, frameon=False)
    return ax


def reward_components(log: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """The mean of each reward of a rollout by step, and where a stage began.

    Rows are those of a training log: step, reward_<name> and, where rewards come in
    stages (lib/train/reward_stages.py), reward_stage, numbered from 1.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 2.8))[1]
    rows = [row for row in log if row.get("reward") is not None]
    begun = "reward_stage"
    keys = {key for row in rows for key in row if key.startswith("reward_")}
    names = sorted(keys - {begun, "reward_std"})
    for i, name in enumerate(names):
        _curve(ax, rows, name, f"C{i}")
        ax.plot([], [], color=f"C{i}", lw=1.8, label=name.removeprefix("reward_"))
    stages = len({row.get(begun) for row in rows})
    for before, row in zip([{}, *rows], rows, strict=False):
        if stages > 1 and row.get(begun) != before.get(begun):
            ax.axvline(row["step"], color="0.4", lw=0.8, ls=DASHES)
            label = f" stage {row[begun]:.0f}"
            place = ax.get_xaxis_transform()
            ax.text(row["step"], 1.01, label, fontsize=8, transform=place)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("mean reward of a rollout")
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def encoded_tokens(
    visual: int, text: int, completions: Sequence[int], ax: Axes | None = None
) -> Axes:
    """What the update encodes for one group: prompt repeated, or prompt once.

    A prompt of `visual` and `text` tokens and the lengths of its completions, drawn to
    scale; the totals are those of lib/model/scoring.py, whose packed row starts each
    completion from a copy of the prompt's last token.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 0.9 + 0.2 * len(completions)))[1]
    prompt = [(visual, PARTS["video and image"]), (text, PARTS["text of the prompt"])]
    answers = [(length, PARTS["completions"]) for length in completions]
    rows = [[*prompt, answer] for answer in answers]
    packed = [prompt[0], (text - 1, prompt[1][1]), *answers]
    for y, parts in enumerate([*rows, packed]):
        y += 0.8 * (y == len(rows))
        edges = np.cumsum([0, *(size for size, _ in parts)])
        for start, (size, color) in zip(edges, parts, strict=False):
            ax.barh(y, size, 0.8, start, color=color, ec="white", lw=0.8)
    once = sum(size for size, _ in packed)
    repeated = len(rows) * (visual + text) + sum(completions)
    middle = (len(rows) - 1) / 2
    ax.set_yticks(
        [middle, len(rows) + 0.8],
        [f"repeated:\n{repeated:,} tokens", f"once:\n{once:,} tokens"],
        fontsize=9,
    )
    ax.set_title(
        f"One group of {len(rows)}: {repeated / once:.1f} times fewer tokens "
        "through the language model",
        fontsize=10,
    )
    ax.set_xlabel("tokens, to scale", fontsize=9)
    ax.invert_yaxis()
    square = {"marker": "s", "ls": "", "ms": 7}
    handles = [Line2D([], [], color=c, label=n, **square) for n, c in PARTS.items()]
    where = {"loc": "lower right", "bbox_to_anchor": (1, 1.12), "ncols": len(PARTS)}
    ax.legend(handles=handles, fontsize=8, frameon=False, **where)
    tidy(ax, "x")
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
    ax: Axes, log: Sequence[Mapping], key: str, color: str, every: bool = True
) -> None:
    """A logged number by step, if `every` one is wanted, with its running mean; says so
    where it is not logged."""
    points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    if not points:
        style = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, f"“{key}” is not in the log", fontsize=8, **style)
        ax.set_yticks([])
        return
    step, value = np.array(points, dtype=float).T
    window = max(1, len(value) // 10)
    mean = np.convolve(value, np.ones(window) / window, "valid")
    few = len(value) < 20
    if every or few:
        dots = "." if few else None
        ax.plot(step, value, color=color, lw=0.7, alpha=0.5, marker=dots)
    ax.plot(step[window - 1 :], mean, color=color, lw=1.8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    tidy(ax)
