"""A group of rollouts at several steps of training, side by side, as one figure.

For where no browser lives: what `browser.rollouts` shows in a widget. Rows are those of
run/watched_<label>.jsonl (lib/watched.py).

Example: of four rollouts at step 0 one is right. It has the advantage +1.50, drawn as a
bar to the right of the middle, and the three others −0.50, drawn to the left.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import plots
from lib.question_pages import answer_words, rollout_letter
from lib.questions import Question

COLUMN = 2.6  # inches of a step
LINE = 0.12  # inches of a line of text
CHARACTERS = 42  # of a line
LONGEST = 240  # characters of a rollout that are shown
SCALE = 2.5  # advantage at either end of its scale


def over_training(item: Question, rows: Sequence[Mapping], label: str) -> Figure:
    """One question's group at each step of `rows`, a column a step.

    Each rollout has its answer, reward, advantage (a bar and a number) and text.
    """
    asked = _asked(item, rows[0])
    texts = [[_text(own) for own in row["rollouts"]] for row in rows]
    count = max(len(column) for column in texts)
    heights = [
        0.45
        + LINE * max(1 + column[i].count("\n") for column in texts if i < len(column))
        for i in range(count)
    ]
    head = 0.35 + 0.15 * (2 + asked.count("\n"))
    size = (COLUMN * len(rows), head + sum(heights))
    figure = plt.figure(figsize=size)
    style = {"va": "top"}
    figure.text(0, 1, asked, fontsize=8, **style)
    for x, (row, column) in enumerate(zip(rows, texts, strict=True)):
        left = x / len(rows)
        title = f"{plots.LABELS[label]}, step {row['step']}: {_mean(row)}"
        place = left, 1 - (head - 0.2) / size[1]
        figure.text(*place, title, fontsize=8.5, weight="bold", **style)
        top = size[1] - head
        for own, text, height in zip(row["rollouts"], column, heights, strict=False):
            box = (left, (top - height) / size[1], 0.94 / len(rows), height / size[1])
            _rollout(figure.add_axes(box), own, text, row, plots.COLORS[label])
            top -= height
    return figure


def _asked(item: Question, row: Mapping) -> str:
    lines = [row["question_id"], *textwrap.wrap(item.text, 110)]
    for letter, option in zip("ABCDE", row["options"], strict=False):
        mark = "   ← right answer" if letter == row["gold"] else ""
        lines.append(f"{letter}. {option}{mark}")
    return "\n".join(lines)


def _mean(row: Mapping) -> str:
    rewards = [own["reward"] for own in row["rollouts"]]
    return f"mean reward {sum(rewards) / len(rewards):.2f}"


def _text(own: Mapping) -> str:
    text = own["text"].replace("</think>", "</think>\n")
    if len(text) > LONGEST:
        text = text[:LONGEST] + " [...]"
    text += " [cut off at the token limit]" * own["truncated"]
    lines = [textwrap.fill(line, CHARACTERS) for line in text.split("\n") if line]
    return "\n".join(lines) or "(empty)"


def _rollout(ax: Axes, own: Mapping, text: str, row: Mapping, color: str) -> None:
    """One rollout: a line of numbers with its bar above the text."""
    ax.axis("off")
    inches = ax.get_position().height * ax.figure.get_figheight()
    ax.set(xlim=(0, 1), ylim=(inches, 0))
    letters = "ABCDE"[: len(row["options"])]
    answer = answer_words(rollout_letter(own["text"], letters), row["gold"])
    words = f"{answer}   reward {own['reward']:.3g}"
    style = {"va": "top"}
    ax.text(0, 0.04, words, fontsize=7, weight="bold", **style)
    if own["advantage"] is not None:
        advantage = f"{own['advantage']:+.2f}".replace("-", "−")
        ax.text(1, 0.04, f"advantage {advantage}", fontsize=7, ha="right", **style)
        length = 0.5 * max(-1, min(1, own["advantage"] / SCALE))
        face = color if length > 0 else "white"
        ax.barh(0.22, length, 0.06, 0.5, color=face, ec=color, lw=0.8)
        ax.plot([0.5, 0.5], [0.18, 0.26], color="0.2", lw=0.8)
    ax.text(0, 0.29, text, fontsize=6.5, **style)
