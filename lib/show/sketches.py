"""Figures that explain a method, where lib/analysis/plots.py shows what a run found.

Colours are of Paul Tol's muted palette (https://personal.sron.nl/~pault/), which no
training method of the kit has; lines of one figure also differ in their strokes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lib.analysis.plots import WIDTH

MUTED = ("#44AA99", "#999933", "#888888", "#CC6677", "#332288", "#DDCC77")
STROKES = ("-", "--", ":", "-.")
PROMPT, ANSWERS = "#BBBBBB", ("#88CCEE", "#CC6677", "#DDCC77", "#44AA99")


def mask(visible: np.ndarray, segments: Sequence[int]) -> Axes:
    """Who sees whom in a packed row: `visible` bool [L, L], line i sees column j.
    `segments` [L] is 0 for the prompt and i for the i-th answer; an answer starts with
    a copy of the prompt's last token. Meant for rows of some twenty tokens."""
    visible, segments = np.asarray(visible, bool), np.asarray(segments)
    length, colours = len(segments), ["white", PROMPT, *ANSWERS]
    ax = plt.subplots(figsize=(0.23 * length + 0.6, 0.23 * length + 0.4))[1]
    shade = np.where(visible, 1 + segments % (len(colours) - 1), 0)
    ax.imshow(shade, ListedColormap(colours), vmin=0, vmax=len(colours) - 1)
    edges = np.arange(length + 1) - 0.5
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(length), _token_names(segments), fontsize=7)
        axis.set_ticks(edges, minor=True)
    ax.grid(which="minor", color="0.92", lw=0.6)
    ax.tick_params(which="both", length=0)
    for edge in np.flatnonzero(np.diff(segments)) + 0.5:
        ax.axhline(edge, color="0.3", lw=0.8)
        ax.axvline(edge, color="0.3", lw=0.8)
    ax.set(xlabel="sees this token", ylabel="this token")
    return ax


def _token_names(segments: np.ndarray) -> list[str]:
    """p1 p2 p3 | p4 a1 a2 | p4 b1: the prompt's last token is copied to each answer."""
    prompt, *answers = np.bincount(segments)
    names = [f"p{i + 1}" for i in range(prompt)]
    for letter, own in zip("abcdefgh", answers, strict=False):
        names += [f"p{prompt + 1}", *(f"{letter}{i}" for i in range(1, own))]
    return names


def token_losses(tokens: Sequence[str], losses: Sequence[float | None]) -> Axes:
    """The loss of every token of a text, in reading order; their mean is the loss.
    `losses` are -log p in nats, None for context, of which nothing is learned."""
    ax = plt.subplots(figsize=(min(max(WIDTH, 0.2 * len(tokens)), 12), 2.6))[1]
    learned = [(i, loss) for i, loss in enumerate(losses) if loss is not None]
    at, heights = zip(*learned, strict=True)
    ax.bar(at, heights, 0.8, color=MUTED[4])
    if None in losses:
        ax.axvspan(-0.5, at[0] - 0.5, color="0.93", lw=0)
        place = {"fontsize": 7, "transform": ax.get_xaxis_transform()}
        ax.text(-0.5, 1.02, "context: not learned", color="0.35", **place)
    mean = float(np.mean(heights))
    ax.axhline(mean, color="black", lw=1, ls="--")
    ax.text(len(tokens) - 0.4, mean, f" mean {mean:.2f}:\n the loss")
    shown = [token.replace("\n", "⏎").strip() or "␣" for token in tokens]
    style = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
    ax.set_xticks(range(len(tokens)), shown, **style)
    ax.set_xlim(-0.6, len(tokens) - 0.4)
    ax.set_ylabel("−log p (nats)")
    ax.grid(axis="y")
    return ax


def schedule(rates: Sequence[float]) -> Axes:
    """The learning rate of every optimizer step, as it is planned."""
    ax = plt.subplots(figsize=(4, 2))[1]
    ax.plot(range(1, len(rates) + 1), rates, "o-", ms=3, color=MUTED[4])
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="optimizer step", ylabel="learning rate")
    ax.grid(axis="y")
    return ax


def shares(curves: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """What a small policy does while it is trained, a panel a rule. `curves` maps a
    rule to [steps + 1, K] shares that add up to 1; `names` are the K."""
    size = {"figsize": (WIDTH + 2, 2.8), "squeeze": False}
    figure, (axes,) = plt.subplots(1, len(curves), sharey=True, **size)
    for ax, (rule, found) in zip(axes, curves.items(), strict=True):
        for i, name in enumerate(names):
            ax.plot(100 * found[:, i], STROKES[i], color=MUTED[i], lw=2, label=name)
        ax.set(title=rule, xlabel="update")
        ax.grid(axis="y")
    axes[0].set_ylabel("share of the answers, %")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    return figure


def estimates(drawn: Mapping[str, np.ndarray], exact: float) -> Axes:
    """Running means of estimates of one number, `exact`, from the tenth draw on."""
    ax = plt.subplots(figsize=(WIDTH, 2.6))[1]
    for i, (name, values) in enumerate(drawn.items(), 3):
        counts = np.arange(1, len(values) + 1)
        mean = np.cumsum(values) / counts
        ax.plot(counts[9:], mean[9:], color=MUTED[i], lw=1.6, label=name)
    ax.axhline(exact, color="black", lw=1, ls="--", label=f"exact: {exact:.3f}")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend()
    ax.set_xlabel("tokens drawn from the policy (logarithmic)")
    ax.set_ylabel("estimate of the KL (nats)")
    ax.grid(axis="y")
    return ax
