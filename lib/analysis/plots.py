"""The look of every figure, and the figures of results: accuracy, sweeps, claims.

One function a figure: rows of lib/analysis in, axes (or a figure of several axes) out;
more are in evidence_plots.py and lib/show/training_plots.py. Shares are drawn in per
cent. A method has the same colour in every figure (lib/methods.py); black diamonds are
the paper's numbers (SEED-Bench-R1, arXiv 2503.24376).

Example: `plots.save(plots.accuracy(rows, "set"), folder / "accuracy.png")`."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib import records
from lib.analysis import compare
from lib.analysis.stats import wilson_interval
from lib.evaluate import tables
from lib.methods import COLORS, LABELS, VERDICTS, called, difference

LOOK = {
    "text.parse_math": False,  # a text of the data is no TeX: it may hold a dollar sign
    **{"font.size": 8, "axes.titlesize": 9, "figure.titlesize": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"grid.color": "0.9", "grid.linewidth": 0.7, "legend.frameon": False},
}
plt.rcParams.update(LOOK)
GROUP_LABELS = {"L1": "L1: same\nenvironments", "L2": "L2: new\nenvironments"}
GROUP_LABELS["L3"] = "L3: new envi-\nronments, tasks"
TITLES = {
    "set": "Accuracy with 95 % intervals",
    "domain": "L3: accuracy by domain, with 95 % intervals",
    "duration_group": "general set: accuracy by video length, with 95 % intervals",
}
SOURCES = {  # of a number beside a claim: its colour and name
    "here": ("#0072B2", "here"),
    "sbr": ("#000000", "SEED-Bench-R1, unpaired"),
    "care": ("#D55E00", "GRPO-CARE, unpaired"),
    "care_general": ("#D55E00", None),
}
WIDTH = 6  # inches
DASHES = (0, (3, 2))
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "columnspacing": 1.2}
CHANCE = {"color": "0.1", "ls": DASHES, "lw": 1}
PAPER = {"marker": "D", "ls": "", "ms": 3, "color": COLORS["paper"]}


def save(drawn: Axes | Figure, path: str | Path) -> Path:
    """Write a figure as a 150 dpi PNG, whole or not at all; returns its path."""
    with records.replacing(path) as unfinished:
        drawn.figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight")
    return Path(path)


def points(
    ax: Axes, at: Sequence, rows: Sequence[Mapping], value: str, across=False, **look
):
    """`value` of the rows that have one, with its interval, along either axis."""
    places = [a for a, row in zip(at, rows, strict=True) if row[value] is not None]
    rows = [row for row in rows if row[value] is not None]
    numbers = [[row[key] for row in rows] for key in (value, "low", "high")]
    middle, low, high = 100 * np.array(numbers)
    error = np.round([middle - low, high - middle], 4)  # ends are of single precision
    ends = {"xerr" if across else "yerr": error}
    xy = (middle, places) if across else (places, middle)
    ax.errorbar(*xy, **ends, **{"marker": "o", "ls": "", "elinewidth": 1} | look)


def bars(ax: Axes, rows: Sequence[Mapping], group: str) -> None:
    """Accuracies as bars with interval and number, by method within each group."""
    groups, models = each(rows, group), each(rows, "model")
    width = 0.8 / len(models)
    for row in rows:
        at = groups.index(row[group]) + beside(models, row["model"], width)
        value = 100 * row["accuracy"]
        ax.bar(at, value, 0.92 * width, color=COLORS[row["model"]], alpha=0.85)
        place = at - width / 6  # leaves room for the paper's marker
        points(ax, [place], [row], "accuracy", color="0.25", capsize=2, marker="")
        ink = "white" if value > 6 else "0.25"  # a lower bar is no ground for white
        style = {"ha": "center", "va": "bottom", "fontsize": 7, "color": ink}
        ax.text(at, 0.8, f"{value:.0f}", **style)


def each(rows: Iterable[Mapping], key: str) -> list:
    """The values of a key, in the order they come."""
    return list(dict.fromkeys(row[key] for row in rows))


def beside(models: Sequence[str], model: str, width: float) -> float:
    """How far from the middle of its group a model stands."""
    return width * (models.index(model) - (len(models) - 1) / 2)


def entry(label: str, **look) -> Line2D:
    """A line of a legend."""
    return Line2D([], [], label=label, **{"color": "0.1", "lw": 1.2} | look)


def methods(models: Iterable[str], marker: str = "s") -> list[Line2D]:
    """A line of a legend for each model, in its colour."""
    look = {"marker": marker, "ls": "", "ms": 6}
    return [entry(LABELS[model], color=COLORS[model], **look) for model in models]


def above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend over all panels."""
    figure.tight_layout()
    figure.legend(handles=handles, ncols=5, **ABOVE)


def _groups(ax: Axes, rows: Sequence[Mapping], group: str, title: str, paper=False):
    """Name, size and chance of each group along the x axis; title and legend above."""
    named = {row[group]: row for row in rows}
    form = "up to {} s" if group == "duration_group" else "{}"
    labels = []
    for at, (name, row) in enumerate(named.items()):
        part = group == "set" and row.get("of", 0) > row["n"]
        size = f"n = {row['n']:,}" + (f" of {row['of']:,}" if part else "")
        labels.append(f"{form.format(GROUP_LABELS.get(name, name))}\n{size}")
        ax.hlines(100 * row["chance"], at - 0.46, at + 0.46, **CHANCE)
    ax.set_xticks(range(len(named)), labels)
    ax.set_ylabel("accuracy (%)")
    ax.grid(axis="y")
    handles = methods(each(rows, "model"))
    handles += [entry(LABELS["paper"], **PAPER)] * paper + [entry("chance", **CHANCE)]
    lines = -(-len(handles) // 5)
    ax.legend(handles=handles, ncols=-(-len(handles) // lines), **ABOVE)
    ax.set_title(title, pad=10 + 14 * lines)


def accuracy(
    rows: Sequence[Mapping], group: str, published: Mapping | None = None
) -> Axes:
    """Bars of accuracy by method within each `group` ("set", "domain", ...).
    `published` ({group: {"n", "correct": {model: k}}}) adds the paper's numbers."""
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    bars(ax, rows, group)
    groups, models = [*map(str, each(rows, group))], each(rows, "model")
    for name, paper in (published or {}).items():
        for model, k in paper["correct"].items():
            if name in groups and model in models:
                width = 0.8 / len(models)
                at = groups.index(name) + beside(models, model, width) + width / 4
                low, high = wilson_interval(k, paper["n"])
                row = {"share": k / paper["n"], "low": low, "high": high}
                points(ax, [at], [row], "share", capsize=2, **PAPER)
    _groups(ax, rows, group, TITLES[group], paper=published is not None)
    ax.set_ylim(bottom=0)
    return ax


def differences(rows: Sequence[Mapping]) -> Axes:
    """Forest plot of paired differences, one block a comparison, zero marked, with the
    paper's unpaired ones. Each row has a, b, set, n, difference, low, high and p."""
    published = compare.published_differences()
    rows = [row for row in rows if row["difference"] is not None]
    blocks = list(dict.fromkeys((row["a"], row["b"]) for row in rows))
    height = 0.9 + 0.27 * (len(rows) + len(blocks))
    ax = plt.subplots(figsize=(0.75 * WIDTH, height))[1]
    ticks, y = [], 0.0
    for a, b in blocks:
        ticks.append((y, difference(a, b), "bold"))
        for row in (row for row in rows if (row["a"], row["b"]) == (a, b)):
            y += 1
            ticks.append((y, f"{called(row)} (n = {row['n']:,})", "normal"))
            face = COLORS[a] if row["low"] > 0 or row["high"] < 0 else "white"
            look = {"color": COLORS[a], "mfc": face, "capsize": 2, "elinewidth": 1.4}
            points(ax, [y], [row], "difference", across=True, **look)
            if paper := published.get((a, b, row["set"])):
                points(ax, [y + 0.35], [paper], "difference", across=True, **PAPER)
            text = tables.points(row["difference"])
            text += "   p < 0.001" if row["p"] < 0.001 else f"   p = {row['p']:.3f}"
            ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center")
        y += 1.3
    _lines(ax, ticks, (y - 0.6, -0.7))
    ax.set_xlabel(
        "difference in accuracy (percentage points), 95 % interval\n"
        "right of zero: the first named method is better"
    )
    ring = {"marker": "o", "ls": "", "color": "0.3"}
    handles = [entry("interval excludes zero", **ring)]
    handles.append(entry("it holds zero", mfc="white", **ring))
    handles.append(entry(LABELS["paper"] + ", unpaired", **PAPER))
    ax.legend(handles=handles, ncols=3, handletextpad=0.1, **ABOVE)
    ax.grid(axis="x")
    return ax


def _lines(ax: Axes, ticks: Sequence[tuple], ends: tuple[float, float]) -> None:
    """Names of lines (place, text, weight) around zero."""
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_yticks([at for at, *_ in ticks], [text for _, text, _ in ticks])
    for label, (*_, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    ax.set_ylim(*ends)
    ax.tick_params(axis="y", length=0)


def power(rows: Sequence[Mapping], gap: float, discordant: float) -> Axes:
    """Chance to see a true difference of two methods, a line a number of questions.
    Rows have n, difference, power (`stats.paired_power`); `discordant` is the share of
    questions that tell the methods apart, `gap` the difference to mark: what the paper
    published for GRPO - SFT on L1. All are shares."""
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    sizes = sorted({row["n"] for row in rows})
    for i, n in enumerate(sizes):
        own = [row for row in rows if row["n"] == n]
        at, chance = ([100 * row[k] for row in own] for k in ("difference", "power"))
        color = plt.cm.viridis(0.85 * i / max(1, len(sizes) - 1))
        marker = {"marker": "osD^vP*X"[i % 8], "ms": 4}
        ax.plot(at, chance, color=color, label=f"{n:,}", **marker)
    ax.axvline(100 * gap, color=COLORS["paper"], lw=1)
    ax.text(100 * gap + 0.12, 3, "the paper's\ngap on L1", va="bottom")
    ax.axhline(80, **CHANCE | {"color": "0.4"})
    ax.set(ylim=(0, 104), xlabel="true difference in accuracy (percentage points)")
    ax.set_ylabel("chance to see it (%)")
    ax.set_title(
        "Chance that McNemar's test finds a true difference\n"
        f"where {100 * discordant:.0f} % of the questions tell two methods apart"
    )
    ax.legend(loc="lower right", title="questions")
    ax.grid(axis="y")
    return ax


def seeds(rows: Sequence[Mapping]) -> Axes:
    """Accuracy of every seed (dots) with mean and interval, by method and set. Each row
    has model, set, n, mean, low, high, chance, by_seed (a share a seed)."""
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    sets, models = each(rows, "set"), each(rows, "model")
    for row in rows:
        aside = beside(models, row["model"], min(0.26, 0.8 / len(models)))
        at, color = sets.index(row["set"]) + aside, COLORS[row["model"]]
        by_seed = 100 * np.asarray(row["by_seed"])
        spread = np.linspace(-0.04, 0.04, len(by_seed)) + at - 0.05
        ax.scatter(spread, by_seed, s=14, color=color, alpha=0.45, linewidths=0)
        look = {"color": color, "marker": "s", "ms": 5, "capsize": 2}
        points(ax, [at + 0.05], [row], "mean", **look)
    count = len(rows[0]["by_seed"])
    title = f"Accuracy of {count} training seeds (dots), mean with 95 % interval"
    _groups(ax, rows, "set", f"{title} (square)")
    return ax


def sweep(rows: Sequence[Mapping], key: str) -> Figure:
    """Accuracy against what a sweep varies (`readme.sweep_table`): a panel a set, with
    intervals. Numbers stand at equal distances below curves, words in the file's order
    beside points. Chance is drawn where a method comes down to it."""
    values, models, sets = (each(rows, name) for name in (key, "model", "set"))
    numbers = all(isinstance(value, int | float) for value in values)
    values = sorted(values) if numbers else values
    names = [
        f"{value:.3g}" if isinstance(value, float) else textwrap.fill(str(value), 28)
        for value in values
    ]
    height = 3.2 if numbers else 1.4 + max(0.6, 0.45 * len(models)) * len(values)
    size, shared = (WIDTH + 2, height), {"sharex": not numbers, "sharey": True}
    figure, axes = plt.subplots(1, len(sets), figsize=size, squeeze=False, **shared)
    with_chance = any(row["low"] <= row["chance"] for row in rows)
    for ax, name in zip(axes[0], sets, strict=True):
        own = [row for row in rows if row["set"] == name]
        for model in models:
            mine = [row for row in own if row["model"] == model]
            mine.sort(key=lambda row: values.index(row[key]))
            aside = 0 if numbers else beside(models, model, 0.2)
            at = [values.index(row[key]) + aside for row in mine]
            look = {"color": COLORS[model], "ms": 4, "ls": "-" if numbers else ""}
            points(ax, at, mine, "mean", across=not numbers, **look)
        if with_chance:
            line = ax.axhline if numbers else ax.axvline
            line(100 * own[0]["chance"], **CHANCE)
        ax.set_title(name)
        ax.grid(axis="y" if numbers else "x")
        ax.set_xlabel(key.replace("_", " ") if numbers else "accuracy, %")
        if numbers:
            ax.set_xticks(range(len(values)), names)
    if numbers:
        axes[0][0].set_ylabel("accuracy, %")
    else:
        axes[0][0].set_yticks(range(len(values)), names)
        axes[0][0].set_ylim(len(values) - 0.5, -0.5)
    count = max(row["seeds"] for row in rows)
    figure.supxlabel(f"mean over up to {count} seeds, bar: 95 % interval", fontsize=8)
    above(figure, methods(models, "o") + [entry("chance", **CHANCE)] * with_chance)
    return figure


def claims(rows: Sequence[Mapping]) -> Axes:
    """A line a part of a claim (`claims.table`), published and measured. The axis is
    linear between -10 and 10 points, then logarithmic; rings: nothing is decided."""
    count = sum(len(row["parts"]) for row in rows)
    ax = plt.subplots(figsize=(WIDTH, 1 + 0.21 * (count + len(rows) / 3)))[1]
    y, ticks, place = 0.0, [], ax.get_yaxis_transform()
    for row in rows:
        ax.axhline(y + 0.66, color="0.9", lw=0.7)
        said, (sign, color) = row["verdict"], VERDICTS[row["verdict"]]
        look = {"transform": place, "va": "center", "color": color}
        ax.text(1.01, y + 1.33, f"{sign} {said}", **look)
        number, y = row["number"], y + 0.33
        for part in row["parts"]:
            y += 1
            ticks.append((y, f"{part['name']}   {number}", "normal"))
            number = " " * 4
            _claim(ax, y, row["table"], part)
    _lines(ax, ticks, (y + 0.7, 0.6))
    ax.set_xscale("symlog", linthresh=10, linscale=1.5)
    marks = [-50, -20, -10, -5, 0, 5, 10, 20, 50]
    names = [f"{mark:+d}".replace("-", "−") if mark else "0" for mark in marks]
    ax.set_xticks(marks, names)
    ax.set_xticks([], minor=True)
    ax.set_xlim(-100, 100)
    ax.set_xlabel(
        "effect in percentage points, 95 % interval (linear up to 10, then logarithmic)"
        "\nright of zero: as claimed"
    )
    used = {"here", *each(rows, "table")} & SOURCES.keys()
    handles = [
        entry(name, marker="o" if source == "here" else "D", ls="", ms=4, color=color)
        for source, (color, name) in SOURCES.items()
        if source in used and name
    ]
    ring = {"marker": "o", "ls": "", "ms": 4, "color": "0.3", "mfc": "white"}
    handles.append(entry("decides nothing", **ring))
    ax.legend(handles=handles, ncols=4, **ABOVE | {"bbox_to_anchor": (0.3, 1)})
    return ax


def _claim(ax: Axes, y: float, source: str, part: Mapping) -> None:
    """One part of a claim: published above, measured below, each with its interval."""
    drawn = [(part["paper"], -0.18, source, "D"), (part, 0.18, "here", "o")]
    drawn = [own for own in drawn if own[2] and own[0] and "effect" in own[0]]
    for row, offset, place, marker in drawn:
        color, decided = SOURCES[place][0], True
        if row["low"] is None:  # no n, no interval
            row = {**row, "low": row["effect"], "high": row["effect"]}
        else:
            decided = row["low"] > part["above"] or row["high"] < part["above"]
        look = {"color": color, "mfc": color if decided else "white", "ms": 3.5}
        points(ax, [y + offset], [row], "effect", across=True, marker=marker, **look)
    if not drawn:
        ax.text(0.5, y, "no number", fontsize=6, color="0.5", va="center")
