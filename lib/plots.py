"""One function a figure: rows in, axes (or a figure of several axes) out.

Rows are the dicts that `lib.report` makes from a run's records; accuracies come in as
shares and are drawn in per cent. A method has the same colour in every figure, from the
colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/); black
diamonds are the paper's numbers (SEED-Bench-R1, arXiv 2503.24376).

Example: `plots.save(plots.accuracy(rows, "set"), folder / "accuracy.png")`.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.questions import Question
from lib.stats import wilson_interval

COLORS = {
    "base": "#7f7f7f",
    "base-direct": "#CC79A7",
    "sft": "#E69F00",
    "grpo": "#0072B2",
    "paper": "#000000",
}
LABELS = {
    "base": "base",
    "base-direct": "base, direct answer",
    "sft": "SFT",
    "grpo": "GRPO",
    "paper": "paper (Qwen2-VL-7B)",
}
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
    ax.set_title(TITLES[group], fontsize=10, pad=24)
    _legend(ax, models, paper=published is not None)
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


def sft_curve(log: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """SFT loss on the response tokens, by optimizer step."""
    ax = ax or plt.subplots(figsize=(4.5, 2.8))[1]
    _curve(ax, log, "loss", COLORS["sft"])
    ax.set_title("SFT: loss on the response tokens")
    ax.set_ylabel("cross-entropy (nats a token)")
    ax.set_xlabel("optimizer step")
    return ax


def grpo_curves(log: Sequence[Mapping]) -> Figure:
    """The six curves that show whether GRPO learned, and what it paid for it."""
    panels = (
        ("reward", "mean reward of a rollout"),
        ("dead_groups", "share of groups without\nany reward difference"),
        ("completion_length", "completion length (tokens)"),
        ("truncated", "share of rollouts cut\nat the token limit"),
        ("kl", "KL to the reference\n(nats a token)"),
        ("entropy", "entropy (nats a token)"),
    )
    figure, axes = plt.subplots(3, 2, figsize=(WIDTH, 5.6), sharex=True)
    for ax, (key, label) in zip(axes.flat, panels, strict=True):
        _curve(ax, log, key, COLORS["grpo"])
        ax.set_ylabel(label, fontsize=8)
        if key in ("dead_groups", "truncated"):
            ax.set_ylim(-0.03, 1.03)
    for ax in axes[-1]:
        ax.set_xlabel("optimizer step")
    figure.suptitle("GRPO: every step (thin) and running mean (thick)", fontsize=10)
    figure.tight_layout()
    return figure


def seeds(rows: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """Accuracy of every seed (dots) with mean and interval, by method and set.

    Each row has model, set, n, mean, low, high, chance, by_seed (a share a seed).
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.4))[1]
    groups = list(dict.fromkeys(row["set"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in rows:
        offset = 0.26 * (models.index(row["model"]) - (len(models) - 1) / 2)
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
    ax.set_title(title, fontsize=10, pad=24)
    _legend(ax, models)
    return ax


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
    where = {"loc": "center right", "bbox_to_anchor": (1, 0.55)}
    ax.legend(handles=handles, fontsize=8, frameon=False, **where)
    _tidy(ax, "x")
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
    ax.text(
        at, 0.8, f"{value:.0f}", ha="center", va="bottom", fontsize=7, color="white"
    )


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


def _curve(ax: Axes, log: Sequence[Mapping], key: str, color: str) -> None:
    """A logged number by step with its running mean; says so where it is not logged."""
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
    ax.plot(step, value, color=color, lw=0.7, alpha=0.5, marker="." if few else None)
    ax.plot(step[window - 1 :], mean, color=color, lw=1.8)
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


def _legend(ax: Axes, models: Sequence[str], paper: bool = False) -> None:
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
    ax.legend(handles=handles, ncols=5, fontsize=8, **spacing, **style)


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


def _strip(clip: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] in reading order on white: 8 a row, wide ones down to 4."""
    count, height, width, _ = clip.shape
    columns = min(count, 8, max(4, round(8 * height / width)))
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


def _picture(ax: Axes, title: str, picture: np.ndarray | None) -> None:
    ax.axis("off")
    ax.set_title(title, fontsize=8, loc="left")
    if picture is None:
        style = {"va": "top", "transform": ax.transAxes}
        ax.text(0, 0.97, "none in this question", fontsize=8, color="0.4", **style)
    else:
        ax.imshow(picture, interpolation="nearest")
        ax.set_anchor("NW")
