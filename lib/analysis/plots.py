"""The look of every figure, and the figures of results: accuracy, sweeps, claims.

One function a figure: rows in, axes (or a figure of several axes) out. So it is in
lib/show/training_plots.py and lib/analysis/evidence_plots.py too.

Rows are the dicts that `lib.analysis.readme` makes from a run's records; accuracies
come in as shares and are drawn in per cent. A method has the same colour in every
figure, from the colour-blind safe palette of lib/methods.py; black
diamonds are the paper's numbers (SEED-Bench-R1, arXiv 2503.24376).

Example: `plots.save(plots.accuracy(rows, "set"), folder / "accuracy.png")`.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib import records
from lib.analysis.stats import wilson_interval
from lib.methods import COLORS, LABELS, difference

# A text of the data is no TeX: a domain may hold a dollar sign.
plt.rcParams["text.parse_math"] = False
GROUP_LABELS = {
    "L1": "L1: same\nenvironments",
    "L2": "L2: new\nenvironments",
    "L3": "L3: new envi-\nronments, tasks",
}
TITLES = {
    "set": "Accuracy with 95 % intervals",
    "domain": "L3: accuracy by domain, with 95 % intervals",
    "duration_group": "general set: accuracy by video length, with 95 % intervals",
}
SOURCES = {  # of a number beside a claim
    "here": "#0072B2",
    "sbr": "#000000",
    "care": "#D55E00",
    "care_general": "#D55E00",
}
SOURCE_LABELS = {
    "here": "here",
    "sbr": "SEED-Bench-R1, unpaired",
    "care": "GRPO-CARE, unpaired",
}
WIDTH = 6  # inches
DASHES = (0, (3, 2))


def save(drawn: Axes | Figure, path: str | Path) -> Path:
    """Write a figure as a 150 dpi PNG, whole or not at all; returns its path."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    with records.replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight")
    return Path(path)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, for what shows it without a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def accuracy(
    rows: Sequence[Mapping],
    group: str,
    published: Mapping | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars of accuracy by method within each `group` ("set", "domain", ...).

    Each row has model, n, accuracy, low, high, chance and the key `group`. `published`
    ({group: {"n", "correct": {model: k}}}) adds the paper's numbers as diamonds.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.4))[1]
    groups = list(dict.fromkeys(row[group] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = 0.8 / len(models)
    for row in rows:
        at = groups.index(row[group]) + width * (
            models.index(row["model"]) - (len(models) - 1) / 2
        )
        bar(ax, at, width, row)
        if row["model"] in (published or {}).get(row[group], {}).get("correct", {}):
            _published_marker(ax, at + width / 4, published[row[group]], row["model"])
    _name_groups(ax, rows, group)
    ax.set_ylim(bottom=0)
    lines = _legend(ax, models, paper=published is not None)
    ax.set_title(TITLES[group], fontsize=10, pad=10 + 14 * lines)
    return ax


def differences(
    rows: Sequence[Mapping],
    published: Mapping | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Forest plot of paired differences, one block a comparison, zero marked.

    Each row has a, b, set, n, difference, low, high and, for one run, p. `published`
    ({(a, b, set): {"difference", "low", "high"}}) adds the paper's unpaired ones.
    """
    blocks = list(dict.fromkeys((row["a"], row["b"]) for row in rows))
    height = 0.9 + 0.27 * (len(rows) + len(blocks))
    ax = ax or plt.subplots(figsize=(0.75 * WIDTH, height))[1]
    ticks, y = [], 0.0
    for a, b in blocks:
        ticks.append((y, difference(a, b), "bold"))
        for row in (row for row in rows if (row["a"], row["b"]) == (a, b)):
            y += 1
            _difference(ax, y, row, (published or {}).get((a, b, row["set"])))
            ticks.append((y, f"{row['set']} (n = {row['n']:,})", "normal"))
        y += 1.3
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_yticks([at for at, _, _ in ticks], [text for _, text, _ in ticks])
    for label, (_, _, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    ax.set_ylim(y - 0.6, -0.7)
    ax.set_xlabel(
        "difference in accuracy (percentage points), 95 % interval\n"
        "right of zero: the first named method is better"
    )
    _difference_legend(ax, published is not None)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)
    return ax


def power(
    rows: Sequence[Mapping],
    gap: float,
    discordant: float,
    ax: Axes | None = None,
) -> Axes:
    """Chance to see a true difference of two methods, a line a number of questions.

    Each row has n, difference and power (`lib.analysis.stats.paired_power`);
    `discordant` is the share of questions that tell the two methods apart, `gap` the
    difference to mark: what the paper published for GRPO - SFT on L1. All are shares.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.4))[1]
    sizes = sorted({row["n"] for row in rows})
    for i, n in enumerate(sizes):
        own = [row for row in rows if row["n"] == n]
        at, chance = (
            [100 * row[key] for row in own] for key in ("difference", "power")
        )
        color = plt.cm.viridis(0.85 * i / max(1, len(sizes) - 1))
        marker, style = "osD^vP*X"[i % 8], {"ms": 4, "lw": 1.5}
        ax.plot(at, chance, color=color, marker=marker, label=f"{n:,}", **style)
    ax.axvline(100 * gap, color=COLORS["paper"], lw=1)
    ax.text(100 * gap + 0.12, 3, "the paper's\ngap on L1", fontsize=8, va="bottom")
    ax.axhline(80, color="0.4", ls=DASHES, lw=1)
    ax.set(ylim=(0, 104), xlabel="true difference in accuracy (percentage points)")
    ax.set_ylabel("chance to see it (%)")
    ax.set_title(
        "Chance that McNemar's test finds a true difference\n"
        f"where {100 * discordant:.0f} % of the questions tell two methods apart",
        fontsize=10,
    )
    title = {"title": "questions", "title_fontsize": 8, "fontsize": 8}
    ax.legend(loc="lower right", frameon=False, **title)
    tidy(ax)
    return ax


def seeds(rows: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """Accuracy of every seed (dots) with mean and interval, by method and set.

    Each row has model, set, n, mean, low, high, chance, by_seed (a share a seed).
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.4))[1]
    groups = list(dict.fromkeys(row["set"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = min(0.26, 0.8 / len(models))
    for row in rows:
        offset = width * (models.index(row["model"]) - (len(models) - 1) / 2)
        at, color = groups.index(row["set"]) + offset, COLORS[row["model"]]
        by_seed = 100 * np.asarray(row["by_seed"])
        spread = np.linspace(-0.04, 0.04, len(by_seed)) + at - 0.05
        ax.scatter(spread, by_seed, s=14, color=color, alpha=0.45, linewidths=0)
        interval(ax, at + 0.05, row["mean"], row["low"], row["high"], color, "s")
    _name_groups(ax, rows, "set")
    count = len(rows[0]["by_seed"])
    title = (
        f"Accuracy of {count} training seeds (dots), mean with 95 % interval (square)"
    )
    lines = 1 + (len(models) > 4)  # of the legend, with chance beside the methods
    ax.set_title(title, fontsize=10, pad=8 + 16 * lines)
    _legend(ax, models)
    return ax


def sweep(rows: Sequence[Mapping], key: str) -> Figure:
    """Accuracy against what a sweep varies: a panel a set, mean and interval.

    Rows of `sweep_table` (lib/analysis/readme.py). Numbers stand at equal distances
    below curves with bands, words in the order of the file beside points with bars.
    Chance is drawn where a method comes down to it.
    """
    values = list(dict.fromkeys(row[key] for row in rows))
    numbers = all(isinstance(value, int | float) for value in values)
    if numbers:
        values.sort()
    sets = list(dict.fromkeys(row["set"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    labels = [_value_name(value) for value in values]
    lines = max(label.count("\n") + 1 for label in labels)
    row_height = max(0.45 * len(models), 0.1 + 0.16 * lines)
    height = 3.2 if numbers else 1.4 + row_height * len(values)
    size, shared = (WIDTH + 2, height), {"sharex": not numbers, "sharey": True}
    figure, axes = plt.subplots(1, len(sets), figsize=size, squeeze=False, **shared)
    with_chance = any(row["low"] <= row["chance"] for row in rows)
    for ax, name in zip(axes[0], sets, strict=True):
        own = [row for row in rows if row["set"] == name]
        _swept(ax, own, key, values, models, numbers)
        if with_chance:
            line = ax.axhline if numbers else ax.axvline
            line(100 * own[0]["chance"], color="0.1", ls=DASHES, lw=1)
        ax.set_title(name, fontsize=9)
        ax.grid(axis="y" if numbers else "x", alpha=0.3)
        if numbers:
            ax.set_xticks(range(len(values)), labels, fontsize=8)
        ax.set_xlabel(key.replace("_", " ") if numbers else "accuracy, %", fontsize=9)
    if numbers:
        axes[0][0].set_ylabel("accuracy, %")
    else:
        axes[0][0].set_yticks(range(len(values)), labels, fontsize=8)
        axes[0][0].set_ylim(len(values) - 0.5, -0.5)
    _sweep_legend(figure, models, with_chance)
    seeds, drawn = max(row["seeds"] for row in rows), "band" if numbers else "bar"
    foot = f"mean over up to {seeds} seeds, {drawn}: 95 % interval"
    figure.text(0.5, 0.06 / height, foot, ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.15 / height, 1, 1 - 0.25 / height))
    return figure


def claims(rows: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """What each claim says and what was measured: a line a part, published and here.

    `rows` are those of `lib.analysis.claims.table`. The axis is linear between -10 and
    10 points and logarithmic beyond; a ring is an interval that decides nothing.
    """
    lines = [(row, part) for row in rows for part in row["parts"]]
    ax = ax or plt.subplots(figsize=(WIDTH, 1 + 0.21 * (len(lines) + len(rows) / 3)))[1]
    y, ticks = 0.0, []
    for row, part in lines:
        first = part is row["parts"][0]
        y += 1.33 if first else 1
        ticks.append((y, f"{part['name']}   {row['number'] if first else '    '}"))
        _claim(ax, y, row, part)
        if first:
            place = ax.get_yaxis_transform()
            ax.axhline(y - 0.67, color="0.9", lw=0.7)
            ax.text(1.01, y, row["verdict"], transform=place, va="center", fontsize=7)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_xscale("symlog", linthresh=10, linscale=1.5)
    marks = [-50, -20, -10, -5, 0, 5, 10, 20, 50]
    names = [f"{mark:+d}".replace("-", "−") if mark else "0" for mark in marks]
    ax.set_xticks(marks, names, fontsize=8)
    ax.set_xticks([], minor=True)
    ax.set_xlim(-100, 100)
    ax.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=7)
    ax.set_ylim(y + 0.7, 0.6)
    ax.set_xlabel(
        "effect in percentage points, 95 % interval (linear up to 10, then logarithmic)"
        "\nright of zero: as claimed",
        fontsize=8,
    )
    _claims_legend(ax, rows)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def bar(ax: Axes, at: float, width: float, row: Mapping) -> None:
    """A method's accuracy as a bar with interval and number; `row` as in accuracy."""
    value = 100 * row["accuracy"]
    ax.bar(at, value, 0.92 * width, color=COLORS[row["model"]], alpha=0.85)
    below, above = value - 100 * row["low"], 100 * row["high"] - value
    place = at - width / 6  # leaves room for the paper's marker
    ax.errorbar(place, value, [[below], [above]], color="0.25", capsize=2, lw=1)
    ink = "white" if value > 6 else "0.25"  # a lower bar is no ground for white
    style = {"ha": "center", "va": "bottom", "fontsize": 7, "color": ink}
    ax.text(at, 0.8, f"{value:.0f}", **style)


def interval(
    ax: Axes,
    at: float,
    value: float,
    low: float,
    high: float,
    color: str,
    marker: str,
    size: float = 5,
) -> None:
    """A marker with its interval, shares drawn in per cent."""
    error = [[100 * (value - low)], [100 * (high - value)]]
    style = {"color": color, "marker": marker, "ms": size, "capsize": 2, "lw": 1}
    ax.errorbar(at, 100 * value, error, **style)


def tidy(ax: Axes, grid: str = "y") -> None:
    """Two spines and a pale grid along one axis, below what is drawn."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="0.9", lw=0.7)
    ax.set_axisbelow(True)


def _value_name(value: float | str) -> str:
    """A swept value as an axis shows it: numbers short, words in lines."""
    if isinstance(value, str):
        return textwrap.fill(value, 28)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _swept(ax: Axes, rows, key: str, values, models, numbers: bool) -> None:
    """The rows of one set: a curve over numbers, or points beside words, a model."""
    for number, model in enumerate(models):
        own = {row[key]: row for row in rows if row["model"] == model}
        at = [i for i, value in enumerate(values) if value in own]
        ends = [
            [100 * own[values[i]][end] for i in at] for end in ("mean", "low", "high")
        ]
        if numbers:
            _curve_with_band(ax, at, *ends, COLORS[model])
        else:
            aside = 0.2 * (number - (len(models) - 1) / 2)
            _bars_over_words(ax, [i + aside for i in at], *ends, COLORS[model])


def _sweep_legend(figure: Figure, models: Sequence[str], with_chance: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS[m], marker="o", label=LABELS[m]) for m in models
    ]
    if with_chance:
        handles.append(Line2D([], [], color="0.1", ls=DASHES, lw=1, label="chance"))
    style = {"loc": "upper center", "frameon": False, "fontsize": 8}
    figure.legend(handles=handles, ncols=len(handles), **style)


def _curve_with_band(ax, at, mean, low, high, color) -> None:
    ax.fill_between(at, low, high, color=color, alpha=0.2, lw=0)
    ax.plot(at, mean, "o-", color=color, ms=4, lw=1.5)


def _bars_over_words(ax, at, mean, low, high, color) -> None:
    ax.hlines(at, low, high, color=color, lw=1.5)
    ax.plot(mean, at, "o", color=color, ms=5)


def _published_marker(ax: Axes, at: float, entry: Mapping, model: str) -> None:
    k, n = entry["correct"][model], entry["n"]
    interval(ax, at, k / n, *wilson_interval(k, n), COLORS["paper"], "D", size=3)


def _difference(ax: Axes, y: float, row: Mapping, paper: Mapping | None) -> None:
    value, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    color, decided = COLORS[row["a"]], low > 0 or high < 0
    face = color if decided else "white"
    style = {"color": color, "marker": "o", "mfc": face, "capsize": 2, "lw": 1.4}
    ax.errorbar(value, y, xerr=[[value - low], [high - value]], **style)
    if paper:
        value, low, high = (100 * paper[key] for key in ("difference", "low", "high"))
        style = {"color": COLORS["paper"], "marker": "D", "ms": 3, "lw": 0.7}
        ax.errorbar(value, y + 0.35, xerr=[[value - low], [high - value]], **style)
    text = f"{100 * row['difference']:+.1f}".replace("-", "−")
    if row.get("p") is not None:
        text += "   p < 0.001" if row["p"] < 0.001 else f"   p = {row['p']:.3f}"
    place = ax.get_yaxis_transform()
    ax.text(1.01, y, text, transform=place, va="center", fontsize=8)


def _claim(ax: Axes, y: float, row: Mapping, part: Mapping) -> None:
    """One part of a claim: published above, measured below, each with its interval."""
    for number, offset, source in (
        (part["paper"], -0.18, row["table"]),
        (part, 0.18, "here"),
    ):
        if not source or number is None or number.get("effect") is None:
            continue  # a claim without a published table, or nothing measured
        value, color = 100 * number["effect"], SOURCES[source]
        open_ended = number.get("low") is None
        low, high = (
            (value, value) if open_ended else (100 * number[k] for k in ("low", "high"))
        )
        decided = open_ended or low > 100 * part["above"] or high < 100 * part["above"]
        style = {"marker": "o" if source == "here" else "D", "ms": 3.5, "lw": 1}
        style |= {"color": color, "mfc": color if decided else "white"}
        ax.errorbar(value, y + offset, xerr=[[value - low], [high - value]], **style)
    if part.get("effect") is None and not (row["table"] and part["paper"]):
        ax.text(0.5, y, "no number", fontsize=6, color="0.5", va="center")


def _claims_legend(ax: Axes, rows: Sequence[Mapping]) -> None:
    used = {"here", *(row["table"] for row in rows)}
    handles = []
    for source, label in SOURCE_LABELS.items():
        if source in used:
            marker = "o" if source == "here" else "D"
            style = {"marker": marker, "ls": "", "ms": 4, "color": SOURCES[source]}
            handles.append(Line2D([], [], label=label, **style))
    ring = {"marker": "o", "ls": "", "ms": 4, "color": "0.3", "mfc": "white"}
    handles.append(Line2D([], [], label="decides nothing", **ring))
    style = {"loc": "lower center", "bbox_to_anchor": (0.3, 1), "frameon": False}
    ax.legend(handles=handles, ncols=4, fontsize=8, handletextpad=0.1, **style)


def _name_groups(ax: Axes, rows: Sequence[Mapping], group: str) -> None:
    """Name, size and chance level of each group along the x axis."""
    named = {row[group]: row for row in rows}
    form = "up to {} s" if group == "duration_group" else "{}"
    labels = [
        f"{form.format(GROUP_LABELS.get(g, g))}\nn = {row['n']:,}"
        for g, row in named.items()
    ]
    ax.set_xticks(range(len(named)), labels, fontsize=8)
    ax.set_ylabel("accuracy (%)")
    for at, row in enumerate(named.values()):
        chance = 100 * row["chance"]
        ax.hlines(chance, at - 0.46, at + 0.46, color="0.1", ls=DASHES, lw=1)
    tidy(ax)


def _legend(ax: Axes, models: Sequence[str], paper: bool = False) -> int:
    """Methods, paper and chance above the axes; returns how many lines they take."""
    square = {"marker": "s", "ls": "", "ms": 7}
    handles = [
        Line2D([], [], color=COLORS[m], label=LABELS[m], **square) for m in models
    ]
    if paper:
        style = {"marker": "D", "ls": "", "ms": 4, "color": COLORS["paper"]}
        handles.append(Line2D([], [], label=LABELS["paper"], **style))
    handles.append(Line2D([], [], color="0.1", ls=DASHES, lw=1, label="chance"))
    style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    spacing = {"columnspacing": 1.2, "handlelength": 1.4}
    lines = -(-len(handles) // 5)
    columns = -(-len(handles) // lines)
    ax.legend(handles=handles, ncols=columns, fontsize=8, **spacing, **style)
    return lines


def _difference_legend(ax: Axes, paper: bool) -> None:
    ring = {"marker": "o", "ls": "", "color": "0.3"}
    handles = [
        Line2D([], [], label="interval excludes zero", **ring),
        Line2D([], [], label="undecided", mfc="white", **ring),
    ]
    if paper:
        style = {"marker": "D", "ls": "", "ms": 4, "color": COLORS["paper"]}
        handles.append(Line2D([], [], label=LABELS["paper"] + ", unpaired", **style))
    style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    ax.legend(handles=handles, ncols=3, fontsize=8, handletextpad=0.1, **style)
