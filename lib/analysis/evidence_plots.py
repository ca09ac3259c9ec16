"""Figures of the evidence: what was seen, where models look, what reasoning supports.

One function a figure, as in lib/analysis/plots.py; what comes in is what seen, attended
and reasoned of lib/analysis found."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lib.analysis import plots
from lib.analysis.plots import CHANCE, DASHES, WIDTH, above, each, entry
from lib.analysis.reasoned import MEASURES
from lib.analysis.seen import of_last
from lib.methods import COLORS, LABELS, condition

GROUPS = {
    "all": "all questions",
    "needed": "the still leaves several answers open: the video is needed",
    "not needed": "the still alone would do",
}
NO_SUPPORT = "#D55E00"  # marks a right letter below reasoning that does not lead to it


def perception(found: Mapping) -> Figure:
    """Accuracy with something taken away (lib/analysis/seen.py), a panel a group of the
    last set. Dotted, where known: what an ideal reader gets right without the video."""
    rows = of_last(found["accuracy"])
    groups = [group for group in GROUPS if group in each(rows, "group")]
    conditions, handles = each(rows, "condition"), plots.methods(each(rows, "model"))
    size = WIDTH * max(1.0, len(conditions) / 7), 0.7 + 1.75 * len(groups)
    shared = {"sharex": True, "squeeze": False}
    figure, axes = plt.subplots(len(groups), 1, figsize=size, **shared)
    for ax, group in zip(axes.flat, groups, strict=True):
        own = [row for row in rows if row["group"] == group]
        plots.bars(ax, own, "condition")
        if len(groups) > 1 and "ceiling" in own[0]:
            ax.axhline(100 * own[0]["ceiling"], color="0.1", ls=":", lw=1.2)
        ax.set_title(f"{GROUPS[group]} (n = {own[0]['n']:,})", loc="left")
        ax.axhline(100 * own[0]["chance"], **CHANCE)
        ax.set(ylim=(0, 104), ylabel="accuracy (%)")
        ax.grid(axis="y")
    labels = [textwrap.fill(condition(shown), 8) for shown in conditions]
    ax.set_xticks(range(len(conditions)), labels)
    dotted = [entry("ideal reader without the video", ls=":")] * (len(groups) > 1)
    above(figure, [*handles, entry("chance", **CHANCE), *dotted])
    return figure


def attention(found: Mapping, text: str, by: str) -> Figure:
    """Mass on video and still, means over questions, of a `text` of what attended.py
    found. By "layer" with intervals, dotted what equal attention would give; by "token"
    up to where fewer than half of the questions have so many."""
    rows = [row for row in found["masses"] if row["text"] == text]
    tokens = [row for row in found["by_token"] if row["text"] == text]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    said = "writes its own answers"
    if text != "own":
        said = f"is given the same answers ({LABELS[text]}'s)"
    figure.suptitle(f"while each method {said} ({rows[0]['n']:,} questions)")
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in each(rows, "model"):
            look = {"color": COLORS[model], "ls": "-"}
            if by == "token":
                own = [row for row in tokens if row["model"] == model]
                own = [row for row in own if row["n"] >= own[0]["n"] / 2]
                at = [row["token"] for row in own]
                ax.plot(at, [100 * row[kind] for row in own], **look)
                continue
            own = [r for r in rows if (r["model"], r["kind"]) == (model, kind)]
            layers = [row for row in own if row["where"].startswith("layer ")]
            at = [int(row["where"].split()[1]) for row in layers]
            plots.points(ax, at, layers, "mean", ms=3, **look)
            (equal,) = (100 * row["mean"] for row in own if row["where"] == "equal")
            ax.plot(at, [equal] * len(at), **look | {"ls": ":", "lw": 1})
        ax.set(title=f"attention on the {kind}", ylabel="% of all attention")
        ax.set_xlabel("generated token" if by == "token" else "layer, from the input")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
    dotted = [entry("if all that is visible got the same", ls=":")] * (by == "layer")
    above(figure, [*plots.methods(each(rows, "model")), *dotted])
    return figure


def coherence(
    rows: Sequence[Mapping],
    floors: Sequence[Mapping] = (),
    flawless: Sequence[Mapping] = (),
) -> Figure:
    """A panel a measure: share of the questions by method and set, with intervals.
    `rows` and `floors` are shares and controls of lib/analysis/reasoned.py, floors
    dotted. `flawless`: what such a reasoner repeats of the training reasoning."""
    measures = [name for name in MEASURES if name in each(rows, "measure")]
    lines = -(-len(measures) // 3)
    size = (1.3 * WIDTH, 0.3 + 1.9 * lines)
    figure, axes = plt.subplots(lines, 3, figsize=size, squeeze=False)
    sets, models = each(rows, "set"), each(rows, "model")
    lowest = {(r["model"], r["set"], r["measure"]): r["share"] for r in floors}
    for ax, measure in zip(axes.flat, measures, strict=False):
        other = measure.replace("reader", "other")
        for row in (row for row in rows if row["measure"] == measure):
            aside = plots.beside(models, row["model"], min(0.24, 0.8 / len(models)))
            at, look = sets.index(row["set"]) + aside, {"ms": 3.5, "capsize": 2}
            plots.points(ax, [at], [row], "share", color=COLORS[row["model"]], **look)
            floor = lowest.get((row["model"], row["set"], other))
            if floor is not None:
                ax.hlines(100 * floor, at - 0.12, at + 0.12, color="0.1", ls=":")
        for row in (row for row in flawless if measure in row):
            at = sets.index(row["set"])
            ax.hlines(100 * row[measure], at - 0.4, at + 0.4, color="0.1", ls=DASHES)
        ax.set_title(textwrap.fill(MEASURES[measure], 28), fontsize=8)
        ax.set_xticks(range(len(sets)), sets)
        ax.set(xlim=(-0.6, len(sets) - 0.4), ylim=(-4, 104))
        ax.grid(axis="y")
    for ax in axes.flat[len(measures) :]:
        ax.axis("off")
    for line in axes:
        line[0].set_ylabel("% of questions")
    floor = entry("reader with another question's reasoning", ls=":")
    ideal = entry("what a flawless reasoner would say", ls=DASHES)
    beside = [floor] * bool(floors) + [ideal] * bool(flawless)
    above(figure, plots.methods(models) + beside)
    return figure


def supported_answers(rows: Sequence[Mapping], measures: Sequence[str]) -> Figure:
    """Right or wrong answer by reasoning that supports it or not: a square a method, a
    row a measure. `rows` are the answers of lib/analysis/reasoned.py, added up over
    their sets; orange: right letters below reasoning that does not lead to them."""
    models = each(rows, "model")
    shape = len(measures), len(models)
    size = (0.9 + 1.9 * shape[1], 0.5 + 1.6 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False)
    for line, measure in zip(axes, measures, strict=True):
        for ax, model in zip(line, models, strict=True):
            own = [r for r in rows if (r["model"], r["measure"]) == (model, measure)]
            _cells(ax, own, COLORS[model])
            ax.set_title(LABELS[model], color=COLORS[model], weight="bold")
        line[0].set_ylabel(textwrap.fill(MEASURES[measure], 28), fontsize=7)
        line[0].set_yticks([0, 1], ["yes", "no, or\nnot said"])
    figure.tight_layout()
    return figure


def _cells(ax: Axes, rows: Sequence[Mapping], color: str) -> None:
    """Four cells with their share and count, the darker the more there are."""
    kinds = ("supported", "unsupported")
    names = [[f"{said}_{kind}" for said in ("right", "wrong")] for kind in kinds]
    counts = np.array([[sum(row[n] for row in rows) for n in own] for own in names])
    shares, faces = counts / max(1, counts.sum()), np.full((2, 2, 3), to_rgb(color))
    faces[1, 0] = to_rgb(NO_SUPPORT)
    faces = 1 - (0.12 + 0.88 * shares[..., None]) * (1 - faces)
    ax.imshow(faces, aspect="auto")
    ax.set_xticks([0, 1], ["right answer", "wrong"])
    ax.set_yticks([])
    ax.tick_params(length=0)
    for (y, x), count in np.ndenumerate(counts):
        ink = "white" if faces[y, x].mean() < 0.45 else "black"
        words = f"{100 * shares[y, x]:.1f} %\n{count:,}"
        ax.text(x, y, words, ha="center", va="center", color=ink)
