"""Figures of the evidence: what was seen, where models look, what reasoning supports.

One function a figure, as in lib/analysis/plots.py. What comes in is what seen, attended
and reasoned of lib/analysis found.

Example: `plots.save(evidence_plots.perception(found, "L1"), folder / "seen.png")`.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lib.analysis.plots import DASHES, WIDTH, bar, interval, tidy
from lib.analysis.reasoned import MEASURES
from lib.methods import COLORS, LABELS, condition

GROUPS = {
    "all": "all questions",
    "needed": "the still leaves several answers open: the video is needed",
    "not needed": "the still alone would do",
}
NO_SUPPORT = "#D55E00"  # marks a right letter below reasoning that does not lead to it


def perception(found: Mapping, name: str) -> Figure:
    """Accuracy of each method with something taken away, a panel a group of questions.

    `found` is of lib/analysis/seen.py, `name` one of its sets. A dotted
    line marks, where it is known, what an ideal reader gets right without the video.
    """
    rows = [row for row in found["accuracy"] if row["set"] == name]
    groups = [g for g in GROUPS if any(row["group"] == g for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    width = WIDTH * max(1.0, len(conditions) / 7)
    size, options = (width, 0.7 + 1.75 * len(groups)), {"sharex": True}
    figure, axes = plt.subplots(len(groups), 1, figsize=size, squeeze=False, **options)
    for ax, group in zip(axes.flat, groups, strict=True):
        own = [row for row in rows if row["group"] == group]
        for row in own:
            at = conditions.index(row["condition"])
            bar(ax, at + 0.27 * (models.index(row["model"]) - 1), 0.27, row)
        for entry in found["ceilings"]:
            if (entry["set"], entry["group"]) == (name, group) and len(groups) > 1:
                ax.axhline(100 * entry["ceiling"], color="0.1", ls=":", lw=1.2)
        ax.set_title(f"{GROUPS[group]} (n = {own[0]['n']:,})", fontsize=9, loc="left")
        ax.axhline(100 * own[0]["chance"], color="0.1", ls=DASHES, lw=1)
        ax.set_ylim(0, 104)
        ax.set_ylabel("accuracy (%)", fontsize=8)
        tidy(ax)
    labels = [textwrap.fill(condition(c), 8) for c in conditions]
    ax.set_xticks(range(len(conditions)), labels, fontsize=8)
    lines = {"chance": DASHES}
    if len(groups) > 1:
        lines["ideal reader without the video"] = ":"
    _above(figure, models, lines)
    return figure


def attention_layers(found: Mapping, text: str) -> Figure:
    """Mass on the video and on the still by layer, means over questions with intervals.

    `found` is of lib/analysis/attended.py, `text` one of its texts. The
    dotted line is what equal attention to everything would give.
    """
    rows = [
        row
        for row in found["masses"]
        if row["text"] == text and row["where"].startswith("layer ")
    ]
    if_equal = {
        (row["model"], row["kind"]): 100 * row["mean"]
        for row in found["masses"]
        if (row["text"], row["where"]) == (text, "equal")
    }
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in models:
            own = [r for r in rows if (r["model"], r["kind"]) == (model, kind)]
            layers = [int(row["where"].split()[1]) for row in own]
            mean, low, high = (
                [100 * row[key] for row in own] for key in ("mean", "low", "high")
            )
            equal = [if_equal[model, kind]] * len(layers)
            ax.plot(layers, mean, color=COLORS[model], marker="o", ms=3, lw=1.5)
            ax.fill_between(layers, low, high, color=COLORS[model], alpha=0.2, lw=0)
            ax.plot(layers, equal, color=COLORS[model], ls=":", lw=1)
        _share_axis(ax, kind)
        ax.set_xlabel("layer, from the input", fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
    _name_text(figure, text, rows[0]["n"])
    _above(figure, models, {"if all that is visible got the same": ":"})
    return figure


def attention_tokens(found: Mapping, text: str) -> Figure:
    """Mass on the video and on the still while the completion grows, mean over layers.

    A line ends where fewer than half of the questions have so many tokens.
    """
    rows = [row for row in found["by_token"] if row["text"] == text]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in models:
            own = [row for row in rows if row["model"] == model]
            own = [row for row in own if row["n"] >= own[0]["n"] / 2]
            at, mean = zip(*((r["token"], 100 * r[kind]) for r in own), strict=True)
            ax.plot(at, mean, color=COLORS[model], lw=1.5)
        _share_axis(ax, kind)
        ax.set_xlabel("generated token", fontsize=9)
    _name_text(figure, text, rows[0]["n"])
    _above(figure, models, {})
    return figure


def coherence(
    rows: Sequence[Mapping],
    floors: Sequence[Mapping] = (),
    flawless: Sequence[Mapping] = (),
) -> Figure:
    """A panel a measure: share of the questions by method and set, with intervals.

    `rows` and `floors` are shares and controls of lib/analysis/reasoned.py: {model,
    set, measure, share, low, high}; the floor of a reader, with another question's
    reasoning, is dotted. `flawless` marks what a flawless reasoner would repeat of
    the training reasoning.
    """
    measures = [m for m in MEASURES if any(row["measure"] == m for row in rows)]
    lines = -(-len(measures) // 3)
    size = (1.3 * WIDTH, 0.3 + 1.9 * lines)
    figure, axes = plt.subplots(lines, 3, figsize=size, squeeze=False)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    for ax, measure in zip(np.ravel(axes), measures, strict=False):
        for row in (row for row in rows if row["measure"] == measure):
            width = min(0.24, 0.8 / len(models))
            offset = width * (models.index(row["model"]) - (len(models) - 1) / 2)
            at, color = sets.index(row["set"]) + offset, COLORS[row["model"]]
            numbers = row["share"], row["low"], row["high"]
            interval(ax, at, *numbers, color, "o", size=3.5)
            other = measure.replace("reader", "other")
            for floor in floors:
                same = all(floor[k] == row[k] for k in ("model", "set"))
                if same and floor["measure"] == other != measure:
                    height = 100 * floor["share"]
                    ax.hlines(height, at - 0.12, at + 0.12, color="0.1", ls=":")
        for row in (row for row in flawless if measure in row):
            at = sets.index(row["set"])
            ax.hlines(100 * row[measure], at - 0.4, at + 0.4, color="0.1", ls=DASHES)
        ax.set_title(MEASURES[measure], fontsize=8)
        ax.set_xticks(range(len(sets)), sets, fontsize=8)
        ax.set_xlim(-0.6, len(sets) - 0.4)
        ax.set_ylim(-4, 104)
        tidy(ax)
    for ax in np.ravel(axes)[len(measures) :]:
        ax.axis("off")
    for line in axes:
        line[0].set_ylabel("% of questions", fontsize=8)
    styles = {"reader with another question's reasoning": ":"} if floors else {}
    if flawless:
        styles["what a flawless reasoner would say"] = DASHES
    _above(figure, models, styles)
    return figure


def supported_answers(rows: Sequence[Mapping], measures: Sequence[str]) -> Figure:
    """Right or wrong answer by reasoning that supports it or not: a square a method.

    `rows` are the answers of lib/analysis/reasoned.py, counts {model, measure,
    right_supported, right_unsupported, wrong_supported, wrong_unsupported}, added up
    over the sets given. A row of squares a measure; the orange cell holds right letters
    below reasoning that does not lead to them.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    shape = len(measures), len(models)
    size = (0.9 + 1.9 * shape[1], 0.5 + 1.6 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False)
    for line, measure in zip(axes, measures, strict=True):
        for ax, model in zip(line, models, strict=True):
            own = [r for r in rows if (r["model"], r["measure"]) == (model, measure)]
            _cells(ax, own, COLORS[model])
            ax.set_title(LABELS[model], fontsize=8, color=COLORS[model], weight="bold")
        line[0].set_ylabel(MEASURES[measure], fontsize=7)
        line[0].set_yticks([0, 1], ["yes", "no, or\nnot said"], fontsize=8)
    figure.tight_layout()
    return figure


def _share_axis(ax: Axes, kind: str) -> None:
    ax.set_title(f"attention on the {kind}", fontsize=9)
    ax.set_ylabel("% of all attention", fontsize=8)
    ax.set_ylim(bottom=0)
    tidy(ax)


def _name_text(figure: Figure, text: str, n: int) -> None:
    said = "writes its own answers"
    if text != "own":
        said = f"is given the same answers ({LABELS[text]}'s)"
    figure.suptitle(f"while each method {said} ({n:,} questions)", fontsize=9)


def _above(figure: Figure, models: Sequence[str], lines: Mapping) -> None:
    """A legend over all panels: the methods, and what {label: line style} mean."""
    square = {"marker": "s", "ls": "", "ms": 7}
    handles = [
        Line2D([], [], color=COLORS[m], label=LABELS[m], **square) for m in models
    ]
    for label, style in lines.items():
        handles.append(Line2D([], [], color="0.1", ls=style, lw=1.2, label=label))
    figure.tight_layout()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    figure.legend(handles=handles, ncols=5, fontsize=8, columnspacing=1.2, **place)


def _cells(ax: Axes, rows: Sequence[Mapping], color: str) -> None:
    """Four cells with their share and count, the darker the more there are."""
    ax.set_xticks([0, 1], ["right answer", "wrong"], fontsize=8)
    ax.set_yticks([0, 1], ["", ""])
    ax.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    ax.tick_params(length=0)
    kinds = ("supported", "unsupported")
    names = [[f"{a}_{kind}" for a in ("right", "wrong")] for kind in kinds]
    total = sum(row[name] for row in rows for line in names for name in line)
    for y, line in enumerate(names):
        for x, name in enumerate(line):
            count = sum(row[name] for row in rows)
            share = count / total if total else 0.0
            face = np.array(to_rgb(NO_SUPPORT if (x, y) == (0, 1) else color))
            face = 1 - (0.12 + 0.88 * share) * (1 - face)
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, ec="0.8", fc=face))
            ink = "white" if face.mean() < 0.45 else "black"
            words = f"{100 * share:.1f} %\n{count:,}"
            ax.text(x, y, words, ha="center", va="center", fontsize=8, color=ink)
