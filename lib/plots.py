"""One function a figure: rows in, axes (or a figure of several axes) out.

Rows are the dicts that `lib.report` makes from a run's records; accuracies come in as
shares and are drawn in per cent. A method has the same colour in every figure, from the
colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/); black
diamonds are the paper's numbers (SEED-Bench-R1, arXiv 2503.24376).

Example: `plots.save(plots.accuracy(rows, "set"), folder / "accuracy.png")`.
"""

import io
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lib.questions import Question
from lib.stats import wilson_interval

OWN = "#882255"  # of every method without a colour here, such as a reader's RL variant


class ByMethod(dict):
    """{method: its look}; `other` makes that of a method without an entry."""

    def __init__(self, known: Mapping[str, str], other: Callable[[str], str]):
        super().__init__(known)
        self.other = other

    def __missing__(self, method: str) -> str:
        return self.other(method)


COLORS = ByMethod(
    {
        "base": "#7f7f7f",
        "base-direct": "#CC79A7",
        "sft": "#E69F00",
        "grpo": "#0072B2",
        "sft-answers": "#D55E00",
        "ppo": "#56B4E9",
        "care": "#009E73",
        "paper": "#000000",
    },
    other=lambda method: OWN,
)
LABELS = ByMethod(
    {
        "base": "base",
        "base-direct": "base, direct answer",
        "sft": "SFT",
        "grpo": "GRPO",
        "sft-answers": "SFT, answers alone",
        "ppo": "PPO",
        "care": "GRPO-CARE",
        "paper": "paper (Qwen2-VL-7B)",
    },
    other=str.upper,
)
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
PARTS = {  # of what a language model reads in one update
    "video and image": "#009E73",
    "text of the prompt": "#999999",
    "completions": "#56B4E9",
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
LONGEST_ANSWER = 700  # characters of a completion that the gallery shows


def save(drawn: Axes | Figure, path: str | Path) -> Path:
    """Write a figure as a 150 dpi PNG, whole or not at all; returns its path."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight")
    os.replace(unfinished, path)
    return path


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
        _bar(ax, at, width, row)
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
        title = f"{LABELS[a]} − {LABELS[b]}"
        ticks.append((y, title, "bold"))
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
    _tidy(ax, "x")
    ax.tick_params(axis="y", length=0)
    return ax


def power(
    rows: Sequence[Mapping],
    gap: float,
    discordant: float,
    ax: Axes | None = None,
) -> Axes:
    """Chance to see a true difference of two methods, a line a number of questions.

    Each row has n, difference and power (`lib.stats.paired_power`); `discordant` is the
    share of questions that tell the two methods apart, `gap` the difference to mark:
    what the paper published for GRPO - SFT on L1. All are shares.
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
    _tidy(ax)
    return ax


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
    """The six curves that show whether RL learned, and what it paid for it."""
    panels = (
        ("reward", "mean reward of a rollout"),
        ("dead_groups", "share of groups without\nany reward difference"),
        ("completion_length", "completion length (tokens)"),
        ("truncated", "share of rollouts cut\nat the token limit"),
        ("entropy", "entropy (nats a token)"),
        ("kl", "KL to the reference\n(nats a token)"),
    )
    figure, axes = plt.subplots(3, 2, figsize=(WIDTH, 5.6), sharex=True)
    for ax in axes[-1]:
        ax.set_xlabel("optimizer step")
    for ax, (key, label) in zip(axes.flat, panels, strict=True):
        if key == "kl" and all(row.get(key) is None for row in log):
            place = {"ha": "center", "va": "center", "transform": ax.transAxes}
            ax.text(0.5, 0.5, "no KL term in this run", fontsize=8, **place)
            ax.axis("off")
            axes[1, 1].tick_params(labelbottom=True)  # now the last of its column
            axes[1, 1].set_xlabel("optimizer step")
            continue
        _curve(ax, log, key, COLORS[method])
        ax.set_ylabel(label, fontsize=8)
        if key in ("dead_groups", "truncated"):
            ax.set_ylim(-0.03, 1.03)
    title = f"{LABELS[method]}: every step (thin) and running mean (thick)"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure


def training_so_far(log: Sequence[Mapping], label: str, total: int) -> Figure:
    """The two curves to watch while a method trains, on an axis of all its steps.

    Reward and length for RL, loss and token accuracy for SFT. Made without pyplot,
    whose state belongs to one thread: lib/live.py draws this in another.
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
        _interval(ax, at + 0.05, row["mean"], row["low"], row["high"], color, "s")
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

    Rows of lib/sweeps.py, `table`. Numbers stand at equal distances below curves with
    bands, words in the order of the file beside points with bars. Chance is drawn where
    a method comes down to it.
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
    with_chance = any(row["low"] <= row["chance"] for row in rows)
    figure, axes = plt.subplots(
        *(1, len(sets)),
        figsize=(WIDTH + 2, height),
        sharex=not numbers,
        sharey=True,
        squeeze=False,
    )
    for ax, name in zip(axes[0], sets, strict=True):
        for number, model in enumerate(models):
            own = {r[key]: r for r in rows if (r["model"], r["set"]) == (model, name)}
            at = [i for i, value in enumerate(values) if value in own]
            ends = [
                [100 * own[values[i]][end] for i in at]
                for end in ("mean", "low", "high")
            ]
            if numbers:
                _curve_with_band(ax, at, *ends, COLORS[model])
            else:
                aside = 0.2 * (number - (len(models) - 1) / 2)
                _bars_over_words(ax, [i + aside for i in at], *ends, COLORS[model])
        if with_chance:
            chance = 100 * next(r["chance"] for r in rows if r["set"] == name)
            line = ax.axhline if numbers else ax.axvline
            line(chance, color="0.1", ls=DASHES, lw=1)
        ax.set_title(name, fontsize=9)
        ax.grid(axis="y" if numbers else "x", alpha=0.3)
    for ax in axes[0]:
        if numbers:
            ax.set_xticks(range(len(values)), labels, fontsize=8)
        ax.set_xlabel(key.replace("_", " ") if numbers else "accuracy, %", fontsize=9)
    if numbers:
        axes[0][0].set_ylabel("accuracy, %")
    else:
        axes[0][0].set_yticks(range(len(values)), labels, fontsize=8)
        axes[0][0].set_ylim(len(values) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=COLORS[m], marker="o", label=LABELS[m]) for m in models
    ]
    if with_chance:
        handles.append(Line2D([], [], color="0.1", ls=DASHES, lw=1, label="chance"))
    figure.legend(
        handles=handles,
        loc="upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=8,
    )
    seeds, drawn = max(row["seeds"] for row in rows), "band" if numbers else "bar"
    foot = f"mean over up to {seeds} seeds, {drawn}: 95 % interval"
    figure.text(0.5, 0.06 / height, foot, ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.15 / height, 1, 1 - 0.25 / height))
    return figure


def _value_name(value: float | str) -> str:
    """A swept value as an axis shows it: numbers short, words in lines."""
    if isinstance(value, str):
        return textwrap.fill(value, 28)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _curve_with_band(ax, at, mean, low, high, color) -> None:
    ax.fill_between(at, low, high, color=color, alpha=0.2, lw=0)
    ax.plot(at, mean, "o-", color=color, ms=4, lw=1.5)


def _bars_over_words(ax, at, mean, low, high, color) -> None:
    ax.hlines(at, low, high, color=color, lw=1.5)
    ax.plot(mean, at, "o", color=color, ms=5)


def encoded_tokens(
    visual: int, text: int, completions: Sequence[int], ax: Axes | None = None
) -> Axes:
    """What the update encodes for one group: prompt repeated, or prompt once.

    A prompt of `visual` and `text` tokens and the lengths of its completions, drawn to
    scale; the totals are those of lib/shared_prefix.py, whose packed row starts each
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
    _tidy(ax, "x")
    ax.tick_params(axis="y", length=0)
    return ax


def claims(rows: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """What each claim says and what was measured: a line a part, published and here.

    `rows` are those of `lib.claims.table`. The axis is linear between -10 and 10 points
    and logarithmic beyond; a ring is an interval that decides nothing.
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


def question(
    item: Question,
    clip: np.ndarray | None,
    still: np.ndarray | None,
    answers: Mapping[str, Mapping],
    kind: str = "",
) -> Figure:
    """One question as the methods saw it: frames, still, options, what each answered.

    `clip` uint8 [T, H, W, 3] or None, `still` uint8 [H, W, 3] or
    None, `answers` {model: its prediction row}; `kind` says why it is shown.
    """
    asked = _asked(item, kind)
    texts = [_answer(row) for row in answers.values()]
    strip = None if clip is None else _strip(clip)
    shown = [_inches(strip, 0.73 * WIDTH), _inches(still, 0.25 * WIDTH)]
    pictures = 0.3 + max(shown)
    words = 0.2 + 0.15 * (1 + asked.count("\n"))
    replies = 0.35 + 0.125 * max((1 + text.count("\n") for text in texts), default=0)
    height = pictures + words + replies
    figure = plt.figure(figsize=(WIDTH, height))
    boxes = ((0.0, 0.73), (0.75, 0.25))
    titles = ("progress so far: video frames in order", "now: still image")
    for box, title, picture in zip(boxes, titles, (strip, still), strict=True):
        bottom, top = 1 - pictures / height, 1 - 0.2 / height
        ax = figure.add_axes((box[0], bottom, box[1], top - bottom))
        _picture(ax, title, picture)
    style = {"va": "top", "parse_math": False}
    figure.text(0, (words + replies - 0.1) / height, asked, fontsize=8, **style)
    for at, (row, text) in enumerate(zip(answers.values(), texts, strict=True)):
        left, model = at / len(texts), list(answers)[at]
        head = f"{LABELS[model]}: {row['first_letter'] or 'no answer'}"
        head += " (right)" if row["correct"] else " (wrong)"
        color = COLORS[model]
        top = (replies - 0.05) / height
        figure.text(left, top, head, color=color, weight="bold", fontsize=8, **style)
        figure.text(left, top - 0.2 / height, text, fontsize=6.5, **style)
    return figure


def _bar(ax: Axes, at: float, width: float, row: Mapping) -> None:
    value = 100 * row["accuracy"]
    ax.bar(at, value, 0.92 * width, color=COLORS[row["model"]], alpha=0.85)
    below, above = value - 100 * row["low"], 100 * row["high"] - value
    place = at - width / 6  # leaves room for the paper's marker
    ax.errorbar(place, value, [[below], [above]], color="0.25", capsize=2, lw=1)
    ink = "white" if value > 6 else "0.25"  # a lower bar is no ground for white
    style = {"ha": "center", "va": "bottom", "fontsize": 7, "color": ink}
    ax.text(at, 0.8, f"{value:.0f}", **style)


def _published_marker(ax: Axes, at: float, entry: Mapping, model: str) -> None:
    k, n = entry["correct"][model], entry["n"]
    _interval(ax, at, k / n, *wilson_interval(k, n), COLORS["paper"], "D", size=3)


def _interval(
    ax: Axes,
    at: float,
    value: float,
    low: float,
    high: float,
    color: str,
    marker: str,
    size: float = 5,
) -> None:
    error = [[100 * (value - low)], [100 * (high - value)]]
    style = {"color": color, "marker": marker, "ms": size, "capsize": 2, "lw": 1}
    ax.errorbar(at, 100 * value, error, **style)


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
    _tidy(ax)


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
    _tidy(ax)


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


def _tidy(ax: Axes, grid: str = "y") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="0.9", lw=0.7)
    ax.set_axisbelow(True)


def _asked(item: Question, kind: str) -> str:
    """The question and its options, the right one marked."""
    lines = [f"{item.id}   {kind}", *textwrap.wrap(item.text, 100)]
    for letter, option in zip("ABCDE", item.options, strict=False):
        mark = "   ← right answer" if letter == item.gold else ""
        lines += textwrap.wrap(
            f"{letter}. {option}{mark}", 100, subsequent_indent="   "
        )
    return "\n".join(lines)


def _answer(row: Mapping) -> str:
    """A completion wrapped for a third of the figure, cut where it is very long."""
    text = row["completion"].replace("</think>", "</think>\n")
    if len(text) > LONGEST_ANSWER:
        text = text[:LONGEST_ANSWER] + " [...]"
    lines = [textwrap.fill(line, 36) for line in text.split("\n") if line.strip()]
    return "\n".join(lines) or "(empty)"


def _strip(clip: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Frames [T, H, W, 3] in reading order on white: 8 a row, wide ones down to 4, or
    so many `columns` a row."""
    count, height, width, _ = clip.shape
    columns = columns or min(count, 8, max(4, round(8 * height / width)))
    gap, rows = max(1, width // 40), -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for i, frame in enumerate(clip):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _inches(picture: np.ndarray | None, width: float) -> float:
    """Height of a picture that is `width` inches wide."""
    return 0.3 if picture is None else width * picture.shape[0] / picture.shape[1]


def _picture(
    ax: Axes,
    title: str,
    picture: np.ndarray | None,
    missing: str = "none in this question",
) -> None:
    ax.axis("off")
    ax.set_title(title, fontsize=8, loc="left")
    if picture is None:
        style = {"va": "top", "transform": ax.transAxes}
        ax.text(0, 0.97, missing, fontsize=8, color="0.4", **style)
    else:
        ax.imshow(picture, interpolation="nearest")
        ax.set_anchor("NW")


CONDITIONS = {
    "seen": "all as\nit is",
    "shuffled": "frames\nshuffled",
    "one_frame": "last\nframe",
    "other_video": "another\nvideo",
    "no_video": "no\nvideo",
    "no_pictures": "no\npictures",
}
GROUPS = {
    "all": "all questions",
    "needed": "the still leaves several answers open: the video is needed",
    "not needed": "the still alone would do",
}
TAG = re.compile(r"</?(?:think|answer)>")


def as_shown(
    pictures: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]],
) -> Figure:
    """One question under each condition of lib/perception.py, before it is asked.

    `pictures` {condition: (clip [T, H, W, 3] or None, still [H, W, 3] or None)}, in the
    order drawn; frames run from left to right, eight a row.
    """
    sheets = [
        None if clip is None else _strip(clip, 8) for clip, _ in pictures.values()
    ]
    label, frames, still_width = 0.24 * WIDTH, 0.59 * WIDTH, 0.14 * WIDTH
    heights = [
        max(0.42, _inches(sheet, frames), _inches(still, still_width)) + 0.08
        for sheet, (_, still) in zip(sheets, pictures.values(), strict=True)
    ]
    height = 0.25 + sum(heights)
    figure, top = plt.figure(figsize=(WIDTH, height)), height - 0.25
    places = {"the clip's frames, in the order shown": (label, frames)}
    places["still"] = (label + frames + 0.03 * WIDTH, still_width)
    header = {"frames × pixels": (0, label), **places}
    for title, (left, _) in header.items():
        figure.text(left / WIDTH, 1 - 0.05 / height, title, fontsize=8, va="top")
    for (name, (clip, still)), sheet, tall in zip(
        pictures.items(), sheets, heights, strict=True
    ):
        words = CONDITIONS.get(name, name.replace("_", " ")).replace("\n", " ")
        if clip is not None:
            words += f"\n{len(clip)} × {clip.shape[1]} × {clip.shape[2]}"
        figure.text(0, (top - 0.02) / height, words, fontsize=8, va="top")
        for (left, width), picture in zip(places.values(), (sheet, still), strict=True):
            box = (left / WIDTH, (top - tall + 0.08) / height, width / WIDTH)
            ax = figure.add_axes((*box, (tall - 0.08) / height))
            _picture(ax, "", picture, "(nothing)")
        top -= tall
    return figure


def perception(found: Mapping, name: str) -> Figure:
    """Accuracy of each method with something taken away, a panel a group of questions.

    `found` is what `lib.perception.compare` returns, `name` one of its sets. A dotted
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
            _bar(ax, at + 0.27 * (models.index(row["model"]) - 1), 0.27, row)
        for entry in found["ceilings"]:
            if (entry["set"], entry["group"]) == (name, group) and len(groups) > 1:
                ax.axhline(100 * entry["ceiling"], color="0.1", ls=":", lw=1.2)
        ax.set_title(f"{GROUPS[group]} (n = {own[0]['n']:,})", fontsize=9, loc="left")
        ax.axhline(100 * own[0]["chance"], color="0.1", ls=DASHES, lw=1)
        ax.set_ylim(0, 104)
        ax.set_ylabel("accuracy (%)", fontsize=8)
        _tidy(ax)
    labels = [CONDITIONS.get(c, c.replace("_", "\n")) for c in conditions]
    ax.set_xticks(range(len(conditions)), labels, fontsize=8)
    lines = {"chance": DASHES}
    if len(groups) > 1:
        lines["ideal reader without the video"] = ":"
    _above(figure, models, lines)
    return figure


def attention_layers(found: Mapping, text: str) -> Figure:
    """Mass on the video and on the still by layer, means over questions with intervals.

    `found` is what `lib.attention.summarise` returns, `text` one of its texts. The
    dotted line is what equal attention to everything would give.
    """
    rows = [
        row
        for row in found["masses"]
        if row["text"] == text and row["where"].startswith("layer ")
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for ax, kind in zip(axes, ("video", "still"), strict=True):
        for model in models:
            own = [r for r in rows if (r["model"], r["kind"]) == (model, kind)]
            layers = [int(row["where"].split()[1]) for row in own]
            mean, low, high, equal = (
                [100 * row[key] for row in own]
                for key in ("mean", "low", "high", "equal")
            )
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


def attention_frames(
    item: Question,
    clip: np.ndarray,
    still: np.ndarray | None,
    rows: Mapping[str, Mapping],
    answers: Mapping[str, Mapping],
) -> Figure:
    """One question's frames and still, the brighter the more each method attends.

    `rows` {model: its row of `lib.attention.attend`}, `answers` {model: its prediction
    row}. A column is a pair of frames, which the model reads as one (the second is
    drawn); brightness has one scale for all rows, the numbers are shares of attention.
    """
    maps = {
        model: [*row["video_map"], *(row["still_map"] or [])]
        for model, row in rows.items()
    }
    brightest = max(np.max(values) for values in maps.values())
    pictures = list(clip[1::2]) + ([still] if still is not None else [])
    names = [f"frames {2 * i + 1}–{2 * i + 2}" for i in range(len(clip) // 2)]
    names += ["still"] * (still is not None)
    kind = "The brighter, the more attention while answering; %: share of all attention"
    asked = _asked(item, kind)
    head, line = 0.12 + 0.13 * (1 + asked.count("\n")), 0.42
    picture = WIDTH / len(pictures) * clip.shape[1] / clip.shape[2]
    height = head + (len(maps) + 1) * (picture + line)
    figure = plt.figure(figsize=(WIDTH, height))
    figure.text(0, 1, asked, fontsize=8, va="top", parse_math=False)
    for row, model in enumerate([None, *maps]):
        bottom = height - head - (row + 1) * (picture + line) + 0.16
        for column, (name, pixels) in enumerate(zip(names, pictures, strict=True)):
            left, width = column / len(pictures), 0.98 / len(pictures)
            ax = figure.add_axes((left, bottom / height, width, picture / height))
            ax.axis("off")
            if model is None:
                ax.imshow(pixels, interpolation="nearest")
                label = name
            else:
                share = np.array(maps[model][column])
                ax.imshow(lit(pixels, share / brightest), interpolation="nearest")
                label = f"{100 * share.sum():.1f} %"
            style = {"ha": "center", "va": "top", "transform": ax.transAxes}
            ax.text(0.5, -0.03, label, fontsize=7, **style)
        title = "what is shown"
        if model is not None:
            answer = answers[model]
            words = " ".join(TAG.sub(" ", answer["completion"]).split())
            title = f"{LABELS[model]}: {answer['first_letter'] or 'no answer'} "
            title += f"({'right' if answer['correct'] else 'wrong'})   "
            title += textwrap.shorten(words, 90, placeholder=" [...]")
        style = {"color": COLORS.get(model, "0"), "weight": "bold", "va": "bottom"}
        top = (bottom + picture + 0.04) / height
        figure.text(0, top, title, fontsize=7.5, parse_math=False, **style)
    return figure


def lit(pixels: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] on a dark ground, as bright as `light` [rows, columns], 0 to 1,
    says of each patch."""
    rows, columns = (pixels.shape[i] // light.shape[i] for i in (0, 1))
    light = light.repeat(rows, 0).repeat(columns, 1)[..., None]
    return (pixels * (0.12 + 0.88 * light)).astype(np.uint8)


def _share_axis(ax: Axes, kind: str) -> None:
    ax.set_title(f"attention on the {kind}", fontsize=9)
    ax.set_ylabel("% of all attention", fontsize=8)
    ax.set_ylim(bottom=0)
    _tidy(ax)


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


COHERENCE = {  # what lib.coherence measures, as a title
    "consistent": "answer is the step that\nthe reasoning names (exact)",
    "follows": "that step follows from the\nstated progress (exact)",
    "progress": "stated progress is\nwhat happened (exact)",
    "false_step": "states a step that\ndid not happen (exact)",
    "base_reader": "the base draws the same\nanswer from the reasoning",
    "own_reader": "the model itself, without\npictures, draws the same",
    "judge": "a language model judges:\nreasoning supports answer",
    "verbatim": "word for word in the\ntraining reasoning",
    "overlap": "4-grams that stand in the\ntraining reasoning",
    "false_object": "names an object that\nis not in the scene (exact)",
}
NO_SUPPORT = "#D55E00"  # marks a right letter below reasoning that does not lead to it


def coherence(
    rows: Sequence[Mapping],
    floors: Sequence[Mapping] = (),
    flawless: Sequence[Mapping] = (),
) -> Figure:
    """A panel a measure: share of the questions by method and set, with intervals.

    `rows` and `floors` are shares and controls of lib.coherence.summary: {model, set,
    measure, share, low, high}; the floor of a reader, with another question's
    reasoning, is dotted. `flawless` marks what a flawless reasoner would repeat of
    the training reasoning.
    """
    measures = [m for m in COHERENCE if any(row["measure"] == m for row in rows)]
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
            _interval(ax, at, *numbers, color, "o", size=3.5)
            other = measure.replace("reader", "other")
            for floor in floors:
                same = all(floor[k] == row[k] for k in ("model", "set"))
                if same and floor["measure"] == other != measure:
                    height = 100 * floor["share"]
                    ax.hlines(height, at - 0.12, at + 0.12, color="0.1", ls=":")
        for row in (row for row in flawless if measure in row):
            at = sets.index(row["set"])
            ax.hlines(100 * row[measure], at - 0.4, at + 0.4, color="0.1", ls=DASHES)
        ax.set_title(COHERENCE[measure], fontsize=8)
        ax.set_xticks(range(len(sets)), sets, fontsize=8)
        ax.set_xlim(-0.6, len(sets) - 0.4)
        ax.set_ylim(-4, 104)
        _tidy(ax)
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

    `rows` are the answers of lib.coherence.summary, counts {model, measure,
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
        line[0].set_ylabel(COHERENCE[measure], fontsize=7)
        line[0].set_yticks([0, 1], ["yes", "no, or\nnot said"], fontsize=8)
    figure.tight_layout()
    return figure


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


def reward_components(log: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """The mean of each reward of a rollout by step, and where a stage began.

    Rows are those of a training log: step, reward_<name> and, where rewards come in
    stages (lib/reward_stages.py), reward_stage, numbered from 1.
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
