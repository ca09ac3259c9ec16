"""Figures that explain a method, where lib/analysis/plots.py shows what a run found.

Arrays in, axes out, as there: `plots.save(sketches.token_losses(...), path)`. Colours
are of Paul Tol's muted palette (https://personal.sron.nl/~pault/), which no training
method of the kit has; lines of one figure also differ in their strokes.

Example: `sketches.mask(visible, segments)` draws the 4-D mask of a packed row, of which
`lib.model.scoring.pack_inputs` makes one matrix a row and `Row.segments` the labels.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lib.analysis.plots import tidy

MUTED = ("#44AA99", "#999933", "#888888", "#CC6677", "#332288", "#DDCC77")
STROKES = ("-", "--", ":", "-.")
PROMPT, ANSWERS = "#BBBBBB", ("#88CCEE", "#CC6677", "#DDCC77", "#44AA99")
WIDTH = 6  # inches


def mask(visible: np.ndarray, segments: Sequence[int], ax: Axes | None = None) -> Axes:
    """Who sees whom in a packed row: `visible` bool [L, L], line i sees column j.

    `segments` [L] is 0 for the prompt and i for the i-th answer; an answer starts with
    a copy of the prompt's last token. Meant for rows of some twenty tokens.
    """
    visible, segments = np.asarray(visible, bool), np.asarray(segments)
    length = len(segments)
    ax = ax or plt.subplots(figsize=(0.23 * length + 0.6, 0.23 * length + 0.4))[1]
    colours = ["white", PROMPT, *ANSWERS]
    shade = np.where(visible, 1 + segments % (len(colours) - 1), 0)
    style = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": len(colours) - 1}
    ax.imshow(shade, **style)
    names = _token_names(segments)
    ax.set_xticks(range(length), names, fontsize=7)
    ax.set_yticks(range(length), names, fontsize=7)
    ax.set_xticks(np.arange(length + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(length + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.92", lw=0.6)
    ax.tick_params(which="both", length=0)
    for edge in np.flatnonzero(np.diff(segments)) + 0.5:
        ax.axhline(edge, color="0.3", lw=0.8)
        ax.axvline(edge, color="0.3", lw=0.8)
    ax.set_xlabel("sees this token", fontsize=8)
    ax.set_ylabel("this token", fontsize=8)
    return ax


def _token_names(segments: np.ndarray) -> list[str]:
    """p1 p2 p3 | p4 a1 a2 | p4 b1: the prompt's last token is copied to each answer."""
    prompt = int((segments == 0).sum())
    names = [f"p{i + 1}" for i in range(prompt)]
    for answer in range(1, int(segments.max()) + 1):
        letter = "abcdefgh"[(answer - 1) % 8]
        own = int((segments == answer).sum())
        names += [f"p{prompt + 1}", *(f"{letter}{i}" for i in range(1, own))]
    return names


def token_losses(
    tokens: Sequence[str], losses: Sequence[float | None], ax: Axes | None = None
) -> Axes:
    """The loss of every token of a text, in reading order; their mean is the loss.

    `losses` are -log p in nats, None for context: a token that nothing is learned from.
    """
    width = max(WIDTH, 0.2 * len(tokens))
    ax = ax or plt.subplots(figsize=(min(width, 12), 2.6))[1]
    learned = [(i, loss) for i, loss in enumerate(losses) if loss is not None]
    at, heights = zip(*learned, strict=True)
    ax.bar(at, heights, 0.8, color=MUTED[4])
    context = [i for i, loss in enumerate(losses) if loss is None]
    if context:
        ax.axvspan(-0.5, context[-1] + 0.5, color="0.93", lw=0)
        place = ax.get_xaxis_transform()
        label = "context: not learned"
        ax.text(-0.5, 1.02, label, fontsize=7, color="0.35", transform=place)
    mean = float(np.mean(heights))
    ax.axhline(mean, color="black", lw=1, ls="--")
    ax.text(len(tokens) - 0.4, mean, f" mean {mean:.2f}:\n the loss", fontsize=8)
    shown = [token.replace("\n", "⏎").strip() or "␣" for token in tokens]
    style = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
    ax.set_xticks(range(len(tokens)), shown, **style)
    ax.set_xlim(-0.6, len(tokens) - 0.4)
    ax.set_ylabel("−log p (nats)", fontsize=8)
    _open(ax)
    return ax


def schedule(rates: Sequence[float], ax: Axes | None = None) -> Axes:
    """The learning rate of every optimizer step, as it is planned."""
    ax = ax or plt.subplots(figsize=(4, 2))[1]
    ax.plot(range(1, len(rates) + 1), rates, "o-", ms=3, color=MUTED[4])
    ax.set_xlabel("optimizer step", fontsize=8)
    ax.set_ylabel("learning rate", fontsize=8)
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    ax.xaxis.get_major_locator().set_params(integer=True)
    _open(ax)
    return ax


def shares(curves: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """What a small policy does while it is trained, a panel a rule.

    `curves` maps a rule to [steps + 1, K] shares that add up to 1; `names` are the K.
    """
    figure, axes = plt.subplots(
        1, len(curves), figsize=(WIDTH + 2, 2.8), sharey=True, squeeze=False
    )
    for ax, (rule, found) in zip(axes[0], curves.items(), strict=True):
        for i, name in enumerate(names):
            ax.plot(100 * found[:, i], STROKES[i], color=MUTED[i], lw=2, label=name)
        ax.set_title(rule, fontsize=9)
        ax.set_xlabel("update", fontsize=8)
        _open(ax)
    axes[0][0].set_ylabel("share of the answers, %", fontsize=8)
    style = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False}
    axes[0][-1].legend(fontsize=8, **style)
    figure.tight_layout()
    return figure


def estimates(
    drawn: Mapping[str, np.ndarray], exact: float, ax: Axes | None = None
) -> Axes:
    """Running means of estimates of one number, `exact`, from the tenth draw on."""
    ax = ax or plt.subplots(figsize=(WIDTH, 2.6))[1]
    for i, (name, values) in enumerate(drawn.items()):
        counts = np.arange(1, len(values) + 1)
        mean = np.cumsum(values) / counts
        ax.plot(counts[9:], mean[9:], color=MUTED[3 + i], lw=1.6, label=name)
    ax.axhline(exact, color="black", lw=1, ls="--", label=f"exact: {exact:.3f}")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("tokens drawn from the policy (logarithmic)", fontsize=8)
    ax.set_ylabel("estimate of the KL (nats)", fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    _open(ax)
    return ax


def _open(ax: Axes) -> None:
    tidy(ax)
    ax.tick_params(labelsize=8)
