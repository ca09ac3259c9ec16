"""Figures of single questions: clip, still, options and what each model answered.

One function a figure, as in lib/plots.py. Clips are uint8 [frames, height, width, 3].

Example: `plots.save(question_plots.question(item, clip, still), folder / "q.png")`.
"""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots import COLORS, LABELS, WIDTH
from lib.questions import Question

LONGEST_ANSWER = 700  # characters of a completion that the gallery shows
CONDITIONS = {
    "seen": "all as\nit is",
    "shuffled": "frames\nshuffled",
    "one_frame": "last\nframe",
    "other_video": "another\nvideo",
    "no_video": "no\nvideo",
    "no_pictures": "no\npictures",
}


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
    asked = in_words(item, kind)
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
    style = {"va": "top"}
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


def in_words(item: Question, kind: str) -> str:
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
