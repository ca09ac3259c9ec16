"""The look of every figure, and the figures of results and evidence.

One function a figure: rows in, axes (or a figure of several axes) out; those of
training are in lib/show/training_plots.py. Rows are the dicts of lib/analysis, shares
are drawn in per cent. A method has the same colour in every figure (lib/methods.py);
black diamonds are the paper's numbers (SEED-Bench-R1, arXiv 2503.24376).

Example: `plots.save(plots.accuracy(rows, "set"), folder / "accuracy.png")`.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lib import records
from lib.analysis.reasoned import MEASURES
from lib.analysis.stats import wilson_interval
from lib.methods import COLORS, LABELS, condition, difference

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
SOURCES = {  # of a number beside a claim: its colour and name
    "here": ("#0072B2", "here"),
    "sbr": ("#000000", "SEED-Bench-R1, unpaired"),
    "care": ("#D55E00", "GRPO-CARE, unpaired"),
    "care_general": ("#D55E00", None),
}
GROUPS = {
    "all": "all questions",
    "needed": "the still leaves several answers open: the video is needed",
    "not needed": "the still alone would do",
}
NO_SUPPORT = "#D55E00"  # marks a right letter below reasoning that does not lead to it
WIDTH = 6  # inches
DASHES = (0, (3, 2))
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
ABOVE |= {"fontsize": 8}


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


# What the figures share


def tidy(ax: Axes, grid: str = "y") -> None:
    """Two spines and a pale grid along one axis, below what is drawn."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="0.9", lw=0.7)
    ax.set_axisbelow(True)


def points(
    ax: Axes,
    at: Sequence[float],
    rows: Sequence[Mapping],
    value: str,
    across: bool = False,
    **look,
) -> None:
    """`value` of rows with its interval at these places, up the axes or across them;
    shares drawn in per cent. Rows without a number are left out."""
    places = [a for a, row in zip(at, rows, strict=True) if row[value] is not None]
    rows = [row for row in rows if row[value] is not None]
    middle, low, high = (
        100 * np.array([row[key] for row in rows]) for key in (value, "low", "high")
    )
    error = np.round([middle - low, high - middle], 4)  # ends are of single precision
    ends = {"xerr" if across else "yerr": error}
    xy = (middle, places) if across else (places, middle)
    ax.errorbar(
        *xy, **{"marker": "o", "ls": "", "lw": 1, "elinewidth": 1} | ends | look
    )


def _bar(ax: Axes, at: float, width: float, row: Mapping) -> None:
    """A method's accuracy as a bar with interval and number."""
    value = 100 * row["accuracy"]
    ax.bar(at, value, 0.92 * width, color=COLORS[row["model"]], alpha=0.85)
    place = at - width / 6  # leaves room for the paper's marker
    points(ax, [place], [row], "accuracy", color="0.25", capsize=2, marker="")
    ink = "white" if value > 6 else "0.25"  # a lower bar is no ground for white
    style = {"ha": "center", "va": "bottom", "fontsize": 7, "color": ink}
    ax.text(at, 0.8, f"{value:.0f}", **style)


def _each(rows: Iterable[Mapping], key: str) -> list:
    """The values of a key, in the order they come."""
    return list(dict.fromkeys(row[key] for row in rows))


def _aside(models: Sequence[str], model: str, width: float) -> float:
    """How far from the middle of its group a model stands."""
    return width * (models.index(model) - (len(models) - 1) / 2)


def _methods(models: Iterable[str], marker: str = "s") -> list[Line2D]:
    """What a legend shows of methods."""
    look = {"marker": marker, "ls": "", "ms": 7 if marker == "s" else 6}
    return [Line2D([], [], color=COLORS[m], label=LABELS[m], **look) for m in models]


def _key(label: str, **look) -> Line2D:
    return Line2D([], [], label=label, **{"color": "0.1", "lw": 1.2} | look)


CHANCE = {"label": "chance", "ls": DASHES, "lw": 1}
PAPER = {"marker": "D", "ls": "", "ms": 4, "color": COLORS["paper"]}


def _above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend over all panels."""
    figure.tight_layout()
    figure.legend(handles=handles, ncols=5, columnspacing=1.2, **ABOVE)


def _groups(ax: Axes, rows: Sequence[Mapping], group: str, title: str, paper=False):
    """Name, size and chance of each group along the x axis; title and legend above."""
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
    handles = _methods(_each(rows, "model"))
    handles += [_key(LABELS["paper"], **PAPER)] * paper + [_key(**CHANCE)]
    lines = -(-len(handles) // 5)
    columns = -(-len(handles) // lines)
    ax.legend(handles=handles, ncols=columns, columnspacing=1.2, **ABOVE)
    ax.set_title(title, fontsize=10, pad=10 + 14 * lines)


# Results


def accuracy(
    rows: Sequence[Mapping], group: str, published: Mapping | None = None
) -> Axes:
    """Bars of accuracy by method within each `group` ("set", "domain", ...).

    Each row has model, n, accuracy, low, high, chance and the key `group`. `published`
    ({group: {"n", "correct": {model: k}}}) adds the paper's numbers as diamonds.
    """
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    groups, models = _each(rows, group), _each(rows, "model")
    width = 0.8 / len(models)
    for row in rows:
        at = groups.index(row[group]) + _aside(models, row["model"], width)
        _bar(ax, at, width, row)
        paper = (published or {}).get(row[group], {"correct": {}})
        if row["model"] in paper["correct"]:
            k, n = paper["correct"][row["model"]], paper["n"]
            low, high = wilson_interval(k, n)
            own = {"accuracy": k / n, "low": low, "high": high}
            look = {"color": COLORS["paper"], "marker": "D", "ms": 3, "capsize": 2}
            points(ax, [at + width / 4], [own], "accuracy", **look)
    _groups(ax, rows, group, TITLES[group], paper=published is not None)
    ax.set_ylim(bottom=0)
    return ax


def differences(rows: Sequence[Mapping], published: Mapping | None = None) -> Axes:
    """Forest plot of paired differences, one block a comparison, zero marked.

    Each row has a, b, set, n, difference, low, high and, for one run, p. `published`
    ({(a, b, set): {"difference", "low", "high"}}) adds the paper's unpaired ones.
    """
    rows = [row for row in rows if row["difference"] is not None]
    blocks = list(dict.fromkeys((row["a"], row["b"]) for row in rows))
    height = 0.9 + 0.27 * (len(rows) + len(blocks))
    ax = plt.subplots(figsize=(0.75 * WIDTH, height))[1]
    ticks, y = [], 0.0
    for a, b in blocks:
        ticks.append((y, difference(a, b), "bold"))
        for row in (row for row in rows if (row["a"], row["b"]) == (a, b)):
            y += 1
            ticks.append((y, f"{row['set']} (n = {row['n']:,})", "normal"))
            face = COLORS[a] if row["low"] > 0 or row["high"] < 0 else "white"
            look = {"color": COLORS[a], "mfc": face, "capsize": 2, "elinewidth": 1.4}
            points(ax, [y], [row], "difference", across=True, **look)
            if paper := (published or {}).get((a, b, row["set"])):
                look = {"color": COLORS["paper"], "marker": "D", "ms": 3}
                points(ax, [y + 0.35], [paper], "difference", across=True, **look)
            text = f"{100 * row['difference']:+.1f}".replace("-", "−")
            if row.get("p") is not None:
                text += "   p < 0.001" if row["p"] < 0.001 else f"   p = {row['p']:.3f}"
            place = {"transform": ax.get_yaxis_transform(), "va": "center"}
            ax.text(1.01, y, text, fontsize=8, **place)
        y += 1.3
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_yticks([at for at, *_ in ticks], [text for _, text, _ in ticks])
    for label, (*_, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    ax.set_ylim(y - 0.6, -0.7)
    ax.set_xlabel(
        "difference in accuracy (percentage points), 95 % interval\n"
        "right of zero: the first named method is better"
    )
    ring = {"marker": "o", "ls": "", "color": "0.3"}
    handles = [_key("interval excludes zero", **ring)]
    handles.append(_key("undecided", mfc="white", **ring))
    if published is not None:
        handles.append(_key(LABELS["paper"] + ", unpaired", **PAPER))
    ax.legend(handles=handles, ncols=3, handletextpad=0.1, **ABOVE)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)
    return ax


def power(rows: Sequence[Mapping], gap: float, discordant: float) -> Axes:
    """Chance to see a true difference of two methods, a line a number of questions.

    Each row has n, difference and power (`lib.analysis.stats.paired_power`);
    `discordant` is the share of questions that tell the two methods apart, `gap` the
    difference to mark: what the paper published for GRPO - SFT on L1. All are shares.
    """
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    sizes = sorted({row["n"] for row in rows})
    for i, n in enumerate(sizes):
        own = [row for row in rows if row["n"] == n]
        at, chance = ([100 * row[k] for row in own] for k in ("difference", "power"))
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


def seeds(rows: Sequence[Mapping]) -> Axes:
    """Accuracy of every seed (dots) with mean and interval, by method and set.

    Each row has model, set, n, mean, low, high, chance, by_seed (a share a seed).
    """
    ax = plt.subplots(figsize=(WIDTH, 3.4))[1]
    sets, models = _each(rows, "set"), _each(rows, "model")
    width = min(0.26, 0.8 / len(models))
    for row in rows:
        at = sets.index(row["set"]) + _aside(models, row["model"], width)
        by_seed, color = 100 * np.asarray(row["by_seed"]), COLORS[row["model"]]
        spread = np.linspace(-0.04, 0.04, len(by_seed)) + at - 0.05
        ax.scatter(spread, by_seed, s=14, color=color, alpha=0.45, linewidths=0)
        look = {"color": color, "marker": "s", "ms": 5, "capsize": 2}
        points(ax, [at + 0.05], [row], "mean", **look)
    count = len(rows[0]["by_seed"])
    title = (
        f"Accuracy of {count} training seeds (dots), mean with 95 % interval (square)"
    )
    _groups(ax, rows, "set", title)
    return ax


def sweep(rows: Sequence[Mapping], key: str) -> Figure:
    """Accuracy against what a sweep varies: a panel a set, mean and interval.

    Rows of `sweep_table` (lib/analysis/readme.py). Numbers stand at equal distances
    below curves, words in the order of the file beside points. Chance is drawn where a
    method comes down to it.
    """
    values, models, sets = (_each(rows, name) for name in (key, "model", "set"))
    numbers = all(isinstance(value, int | float) for value in values)
    values = sorted(values) if numbers else values
    labels = [
        f"{v:.3g}" if isinstance(v, float) else textwrap.fill(str(v), 28)
        for v in values
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
            aside = 0 if numbers else _aside(models, model, 0.2)
            at = [values.index(row[key]) + aside for row in mine]
            look = {"color": COLORS[model], "ms": 4, "ls": "-" if numbers else ""}
            points(ax, at, mine, "mean", across=not numbers, **look)
        if with_chance:
            line = ax.axhline if numbers else ax.axvline
            line(100 * own[0]["chance"], color="0.1", ls=DASHES, lw=1)
        ax.set_title(name, fontsize=9)
        ax.grid(axis="y" if numbers else "x", alpha=0.3)
        ax.set_xlabel(key.replace("_", " ") if numbers else "accuracy, %", fontsize=9)
        if numbers:
            ax.set_xticks(range(len(values)), labels, fontsize=8)
    if numbers:
        axes[0][0].set_ylabel("accuracy, %")
    else:
        axes[0][0].set_yticks(range(len(values)), labels, fontsize=8)
        axes[0][0].set_ylim(len(values) - 0.5, -0.5)
    count = max(row["seeds"] for row in rows)
    figure.supxlabel(f"mean over up to {count} seeds, bar: 95 % interval", fontsize=8)
    _above(figure, _methods(models, "o") + [_key(**CHANCE)] * with_chance)
    return figure


def claims(rows: Sequence[Mapping]) -> Axes:
    """What each claim says and what was measured: a line a part, published and here.

    `rows` are those of `lib.analysis.claims.table`. The axis is linear between -10 and
    10 points and logarithmic beyond; a ring is an interval that decides nothing.
    """
    count = sum(len(row["parts"]) for row in rows)
    ax = plt.subplots(figsize=(WIDTH, 1 + 0.21 * (count + len(rows) / 3)))[1]
    y, ticks = 0.0, []
    for row in rows:
        place = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.axhline(y + 0.66, color="0.9", lw=0.7)
        ax.text(1.01, y + 1.33, row["verdict"], fontsize=7, **place)
        number, y = row["number"], y + 0.33
        for part in row["parts"]:
            y += 1
            ticks.append((y, f"{part['name']}   {number}"))
            number = " " * 4
            _claim(ax, y, row["table"], part)
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
    used = {"here", *_each(rows, "table")} & SOURCES.keys()
    handles = [
        _key(name, marker="o" if source == "here" else "D", ls="", ms=4, color=color)
        for source, (color, name) in SOURCES.items()
        if source in used and name
    ]
    ring = {"marker": "o", "ls": "", "ms": 4, "color": "0.3", "mfc": "white"}
    handles.append(_key("decides nothing", **ring))
    ax.legend(handles=handles, ncols=4, **ABOVE | {"bbox_to_anchor": (0.3, 1)})
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def _claim(ax: Axes, y: float, source: str, part: Mapping) -> None:
    """One part of a claim: published above, measured below, each with its interval."""
    drawn = [(part["paper"], -0.18, source, "D"), (part, 0.18, "here", "o")]
    drawn = [own for own in drawn if own[2] and own[0] and "effect" in own[0]]
    for number, offset, place, marker in drawn:
        row, color = {**number, "low": number.get("low")}, SOURCES[place][0]
        decided = True
        if row["low"] is None:
            row |= {"low": row["effect"], "high": row["effect"]}
        else:
            decided = row["low"] > part["above"] or row["high"] < part["above"]
        look = {"color": color, "mfc": color if decided else "white", "ms": 3.5}
        points(ax, [y + offset], [row], "effect", across=True, marker=marker, **look)
    if not drawn:
        ax.text(0.5, y, "no number", fontsize=6, color="0.5", va="center")


# Evidence


def perception(found: Mapping, name: str) -> Figure:
    """Accuracy of each method with something taken away, a panel a group of questions.

    `found` is of lib/analysis/seen.py, `name` one of its sets. A dotted line marks,
    where it is known, what an ideal reader gets right without the video.
    """
    rows = [row for row in found["accuracy"] if row["set"] == name]
    groups = [group for group in GROUPS if group in _each(rows, "group")]
    models, conditions = _each(rows, "model"), _each(rows, "condition")
    size = WIDTH * max(1.0, len(conditions) / 7), 0.7 + 1.75 * len(groups)
    shared = {"sharex": True, "squeeze": False}
    figure, axes = plt.subplots(len(groups), 1, figsize=size, **shared)
    handles = [*_methods(models), _key(**CHANCE)]
    if len(groups) > 1:
        handles.append(_key("ideal reader without the video", ls=":"))
    for ax, group in zip(axes.flat, groups, strict=True):
        own = [row for row in rows if row["group"] == group]
        for row in own:
            at = conditions.index(row["condition"])
            _bar(ax, at + _aside(models, row["model"], 0.27), 0.27, row)
        if len(groups) > 1 and "ceiling" in own[0]:
            ax.axhline(100 * own[0]["ceiling"], color="0.1", ls=":", lw=1.2)
        ax.set_title(f"{GROUPS[group]} (n = {own[0]['n']:,})", fontsize=9, loc="left")
        ax.axhline(100 * own[0]["chance"], color="0.1", ls=DASHES, lw=1)
        ax.set_ylim(0, 104)
        ax.set_ylabel("accuracy (%)", fontsize=8)
        tidy(ax)
    labels = [textwrap.fill(condition(c), 8) for c in conditions]
    ax.set_xticks(range(len(conditions)), labels, fontsize=8)
    _above(figure, handles)
    return figure


def attention_layers(found: Mapping, text: str) -> Figure:
    """Mass on the video and on the still by layer, means over questions with intervals.

    `found` is of lib/analysis/attended.py, `text` one of its texts. The dotted line is
    what equal attention to everything would give.
    """
    rows = [row for row in found["masses"] if row["text"] == text]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in _each(rows, "model"):
            own = [r for r in rows if (r["model"], r["kind"]) == (model, kind)]
            by_layer = [row for row in own if row["where"].startswith("layer ")]
            layers = [int(row["where"].split()[1]) for row in by_layer]
            look = {"color": COLORS[model], "ms": 3, "ls": "-"}
            points(ax, layers, by_layer, "mean", **look)
            (equal,) = (100 * row["mean"] for row in own if row["where"] == "equal")
            ax.plot(layers, [equal] * len(layers), color=COLORS[model], ls=":", lw=1)
        ax.xaxis.get_major_locator().set_params(integer=True)
    handles = [_key("if all that is visible got the same", ls=":")]
    _attention(figure, text, rows, "layer, from the input", handles)
    return figure


def attention_tokens(found: Mapping, text: str) -> Figure:
    """Mass on the video and on the still while the completion grows, mean over layers.

    A line ends where fewer than half of the questions have so many tokens.
    """
    rows = [row for row in found["by_token"] if row["text"] == text]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in _each(rows, "model"):
            own = [row for row in rows if row["model"] == model]
            own = [row for row in own if row["n"] >= own[0]["n"] / 2]
            at, mean = ([row[key] for row in own] for key in ("token", kind))
            ax.plot(at, 100 * np.array(mean), color=COLORS[model], lw=1.5)
    _attention(figure, text, rows, "generated token", [])
    return figure


def _attention(figure: Figure, text: str, rows: Sequence[Mapping], x: str, more: list):
    said = "writes its own answers"
    if text != "own":
        said = f"is given the same answers ({LABELS[text]}'s)"
    head = f"while each method {said} ({rows[0]['n']:,} questions)"
    figure.suptitle(head, fontsize=9)
    for ax, kind in zip(figure.axes, ("video", "still"), strict=True):
        ax.set_title(f"attention on the {kind}", fontsize=9)
        ax.set_ylabel("% of all attention", fontsize=8)
        ax.set_xlabel(x, fontsize=9)
        ax.set_ylim(bottom=0)
        tidy(ax)
    _above(figure, _methods(_each(rows, "model")) + more)


def coherence(
    rows: Sequence[Mapping],
    floors: Sequence[Mapping] = (),
    flawless: Sequence[Mapping] = (),
) -> Figure:
    """A panel a measure: share of the questions by method and set, with intervals.

    `rows` and `floors` are shares and controls of lib/analysis/reasoned.py; the floor
    of a reader, with another question's reasoning, is dotted. `flawless` marks what a
    flawless reasoner would repeat of the training reasoning.
    """
    measures = [name for name in MEASURES if name in _each(rows, "measure")]
    lines = -(-len(measures) // 3)
    size = (1.3 * WIDTH, 0.3 + 1.9 * lines)
    figure, axes = plt.subplots(lines, 3, figsize=size, squeeze=False)
    sets, models = _each(rows, "set"), _each(rows, "model")
    width = min(0.24, 0.8 / len(models))
    lowest = {(r["model"], r["set"], r["measure"]): r["share"] for r in floors}
    for ax, measure in zip(axes.flat, measures, strict=False):
        other = measure.replace("reader", "other")
        for row in (row for row in rows if row["measure"] == measure):
            at = sets.index(row["set"]) + _aside(models, row["model"], width)
            look = {"color": COLORS[row["model"]], "ms": 3.5, "capsize": 2}
            points(ax, [at], [row], "share", **look)
            floor = lowest.get((row["model"], row["set"], other))
            if floor is not None:
                ax.hlines(100 * floor, at - 0.12, at + 0.12, color="0.1", ls=":")
        for row in (row for row in flawless if measure in row):
            at = sets.index(row["set"])
            ax.hlines(100 * row[measure], at - 0.4, at + 0.4, color="0.1", ls=DASHES)
        ax.set_title(MEASURES[measure], fontsize=8)
        ax.set_xticks(range(len(sets)), sets, fontsize=8)
        ax.set_xlim(-0.6, len(sets) - 0.4)
        ax.set_ylim(-4, 104)
        tidy(ax)
    for ax in axes.flat[len(measures) :]:
        ax.axis("off")
    for line in axes:
        line[0].set_ylabel("% of questions", fontsize=8)
    handles = _methods(models)
    handles += [_key("reader with another question's reasoning", ls=":")] * bool(floors)
    handles += [_key("what a flawless reasoner would say", ls=DASHES)] * bool(flawless)
    _above(figure, handles)
    return figure


def supported_answers(rows: Sequence[Mapping], measures: Sequence[str]) -> Figure:
    """Right or wrong answer by reasoning that supports it or not: a square a method.

    `rows` are the answers of lib/analysis/reasoned.py, added up over the sets given. A
    row of squares a measure; the orange cell holds right letters below reasoning that
    does not lead to them.
    """
    models = _each(rows, "model")
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


def _cells(ax: Axes, rows: Sequence[Mapping], color: str) -> None:
    """Four cells with their share and count, the darker the more there are."""
    ax.set_xticks([0, 1], ["right answer", "wrong"], fontsize=8)
    ax.set_yticks([0, 1], ["", ""])
    ax.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    ax.tick_params(length=0)
    cells = {
        (x, y): sum(row[f"{answer}_{kind}"] for row in rows)
        for x, answer in enumerate(("right", "wrong"))
        for y, kind in enumerate(("supported", "unsupported"))
    }
    total = max(1, sum(cells.values()))
    for (x, y), count in cells.items():
        face = np.array(to_rgb(NO_SUPPORT if (x, y) == (0, 1) else color))
        face = 1 - (0.12 + 0.88 * count / total) * (1 - face)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, ec="0.8", fc=face))
        words = f"{100 * count / total:.1f} %\n{count:,}"
        look = {"fontsize": 8, "color": "white" if face.mean() < 0.45 else "black"}
        ax.text(x, y, words, ha="center", va="center", **look)
