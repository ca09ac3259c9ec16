"""What a cell shows: a figure with its words, a question, a group of rollouts.

Each view exists once, as HTML, for JupyterLab, for a browser of lib/show/browser.py,
for an executed notebook's page and for the report. Pictures are data URIs with
alternative text; every word of a question or a model is escaped by `markup.tag`.

    pages.show(plots.accuracy(rows, "set"), figures / "accuracy.png", "Bars of ...")
    pages.question(item, answers, sampling, attended)  # last value of a cell

Example: an advantage of 1.25 fills half of the right half of its scale, which ends at
2.5, about the largest there is among eight rollouts: one right, seven wrong.
"""

import io
import re
import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lib.analysis import plots
from lib.data.frame_store import question_media
from lib.data.letters import parse_answer
from lib.data.questions import Question
from lib.data.video import BadVideo, Sampling
from lib.evaluate import tables
from lib.markup import Html, tag
from lib.methods import condition

STYLE = Html(Path(__file__).with_name("views.css").read_text(encoding="utf-8"))
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH = 150  # CSS pixels of a frame
SCALE = 2.5  # where the scale of an advantage ends, on both sides
PIXELS_AN_INCH = 150 / 96  # of plots.save, over those of CSS
TAGS = re.compile(r"(</?(?:think|answer)>)")


class View:
    """HTML as the value of a cell, words where no HTML is shown, perhaps a widget.

    A saved notebook has the HTML wherever it is opened; a widget lives only where a
    front end does.
    """

    def __init__(self, parts: Iterable[object], words: str):
        self.html = tag("div", tag("style", STYLE), *parts, class_="looked")
        self.words, self.browser = words, None  # a Browser of lib/show/browser.py

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        data: dict = {"text/html": str(self.html), "text/plain": self.words}
        if self.browser is not None:
            data[WIDGET] = self.browser.box._repr_mimebundle_()[WIDGET]
        return data


def show(drawn: Axes | Figure, path: str | Path, alt: str) -> None:
    """Save a figure as PNG and show it in the cell with the text in its place.

    ValueError for an empty `alt`: who does not see the figure needs one.
    """
    if not alt.strip():
        raise ValueError(f"{path}: a figure needs a text for who cannot see it")
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    data = plots.save(figure, path).read_bytes()
    plt.close(figure)  # or the cell would show it a second time
    width = round(struct.unpack(">I", data[16:20])[0] / PIXELS_AN_INCH)
    bundle = {"image/png": data, "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width}})


def told(rows: Iterable[Mapping], group: str, value: str = "accuracy") -> str:
    """Shares in words, for a figure's text: "L1: base 35.6 %, SFT 80.2 %; L2: ..."."""
    groups: dict = {}
    for row in rows:
        share = f"{plots.LABELS[row['model']]} {tables.percent(row[value])} %"
        groups.setdefault(row[group], []).append(share)
    return "; ".join(f"{name}: {', '.join(said)}" for name, said in groups.items())


# --- questions ------------------------------------------------------------------------


def question(
    item: Question,
    answers: Mapping[str, Mapping],
    sampling: Sampling,
    attended: Mapping[str, Mapping] | None = None,
    kind: str = "",
) -> View:
    """A question's pictures, its options and what each method said.

    `answers` {model: its prediction row}; `attended` {model: its row of
    lib.evaluate.attention.row} shows the pictures once more, lit by attention;
    `kind` says why the question is shown.
    """
    parts = [
        *_asked(item, sampling, item.options, item.gold, answers, attended or {}, kind),
        tag("div", *(_answer(*own) for own in answers.items()), class_="cards"),
    ]
    said = [
        f"{plots.LABELS[own]}: {answer_words(row['first_letter'], row['gold'])}."
        for own, row in answers.items()
    ]
    return View(parts, " ".join([f"Question {item.id}, right is {item.gold}.", *said]))


def group(
    item: Question, rows: Sequence[Mapping], label: str, sampling: Sampling
) -> View:
    """A watched question and its group of rollouts at each step of `rows`, rows of
    watched_<label>.jsonl (lib/train/watched.py)."""
    first = rows[0]
    letters = "ABCDE"[: len(first["options"])]
    parts = _asked(item, sampling, first["options"], first["gold"], {}, {}, "")
    for row in rows:
        parts.append(tag("p", method(label), ", ", group_words(row)))
        rollouts = enumerate(row["rollouts"], 1)
        cards = (_rollout(*own, label, row["gold"], letters) for own in rollouts)
        parts.append(tag("div", *cards, class_="cards"))
    said = "; ".join(map(group_words, rows))
    return View(parts, f"Rollouts of {plots.LABELS[label]} on {item.id}: {said}.")


def conditions(
    shown: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]],
) -> View:
    """One question under each condition of lib/evaluate/perception.py, before it is
    asked.

    `shown` {condition: (clip [T, H, W, 3] or None, still [H, W, 3] or None)}.
    """
    parts = []
    for name, (clip, still) in shown.items():
        words = condition(name)
        if clip is not None:
            words += f": {len(clip)} frames of {clip.shape[1]} × {clip.shape[2]}"
        drawn = _pictures(clip, still) or [tag("p", "(nothing)", class_="aside")]
        parts += [tag("p", tag("strong", words)), tag("div", *drawn, class_="row")]
    return View(parts, f"One question as it is shown: {', '.join(shown)}.")


def pictures(shown: Mapping[str, np.ndarray]) -> View:
    """uint8 [H, W, 3] pictures side by side, each above its title."""
    drawn = [_picture(pixels, title, title) for title, pixels in shown.items()]
    return View([tag("div", *drawn, class_="row")], "; ".join(shown))


def group_words(row: Mapping) -> str:
    """ "step 25: mean reward 0.38 of 8 rollouts", and whether it teaches anything."""
    rewards = np.array([own["reward"] for own in row["rollouts"]], dtype=float)
    words = f"step {row['step']}: mean reward {rewards.mean():.2f}"
    words += f" of {len(rewards)} rollouts"
    if all(own["advantage"] == 0 for own in row["rollouts"]):
        words += "; no reward differs, so nothing is learned from this group"
    return words


def answer_words(letter: str | None, gold: str) -> str:
    """ "B, right", "C, wrong" or "no answer"."""
    if letter is None:
        return "no answer"
    return f"{letter}, {'right' if letter == gold else 'wrong'}"


def _asked(
    item: Question,
    sampling: Sampling,
    options: Sequence[str],
    gold: str,
    answers: Mapping,
    attended: Mapping,
    kind: str,
) -> list[Html]:
    """Which question it is, its pictures or why there are none, text and options."""
    goal = item.goal and f"goal: {item.goal}"
    known = [part for part in (kind, item.domain, item.scenario, goal) if part]
    title = tag("p", tag("strong", item.id), *(f" · {part}" for part in known))
    try:
        clip, still = question_media(item, sampling)
    except BadVideo as bad:
        said = f"Its pictures cannot be shown: {bad.path.name} {bad.why}."
        return [title, tag("p", said), *_text(item, options, gold, answers)]
    shown = _pictures(clip, still)
    if clip is None:
        none = tag("p", "No video: nothing has been done yet.", class_="aside")
        shown.insert(0, none)
    maps = [np.array(m) for row in attended.values() for m in _maps(row)]
    brightest = max((light.max() for light in maps), default=1)
    lit = [_lit(model, row, clip, still, brightest) for model, row in attended.items()]
    row = tag("div", *shown, class_="row")
    return [title, row, *lit, *_text(item, options, gold, answers)]


def _text(item: Question, options, gold: str, answers: Mapping) -> list[Html]:
    """The words, and the options, the right one marked, with who chose which."""
    items = []
    for letter, option in zip("ABCDE", options, strict=False):
        words = f"{letter}. {option}"
        if letter == gold:
            words = tag("span", f"{words}  ← right answer", class_="right")
        chosen = [m for m, row in answers.items() if row["first_letter"] == letter]
        items.append(tag("li", words, *map(method, chosen)))
    return [
        tag("p", item.text, class_="said"),
        tag("ul", *items, class_="options"),
    ]


def _pictures(clip: np.ndarray | None, still: np.ndarray | None) -> list[Html]:
    frames = [] if clip is None else list(clip)
    shown = [
        _picture(pixels, f"frame {number} of {len(frames)}", str(number))
        for number, pixels in enumerate(frames, 1)
    ]
    if still is not None:
        shown.append(_picture(still, "the still image", "now: still image"))
    return shown


def _picture(pixels: np.ndarray, alt: str, caption: str) -> Html:
    picture, buffer = Image.fromarray(np.asarray(pixels, np.uint8)), io.BytesIO()
    small = "image-rendering: pixelated" if picture.width < WIDTH else None
    picture.thumbnail((2 * WIDTH, 2 * WIDTH))  # smaller only, for sharp screens
    picture.save(buffer, "PNG")
    address = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    shown = tag("img", src=address, alt=alt, width=WIDTH, style=small)
    return tag("figure", shown, tag("figcaption", caption))


def _maps(row: Mapping) -> list:
    return [*(row["video_map"] or []), *(row["still_map"] or [])]


def _lit(model: str, row: Mapping, clip, still, brightest: float) -> Html:
    """The pictures as bright as a method attends; of a pair of frames the second."""
    pixels = [] if clip is None else list(clip[1::2])
    names = [f"frames {2 * i + 1}–{2 * i + 2}" for i in range(len(pixels))]
    if still is not None:
        pixels, names = [*pixels, still], [*names, "still"]
    shown = []
    for name, picture, light in zip(names, pixels, _maps(row), strict=True):
        light = np.array(light)
        words = f"{name}: {100 * light.sum():.1f} %"
        alt = f"{words} of the attention of {plots.LABELS[model]}"
        shown.append(_picture(lit(picture, light / brightest), alt, words))
    said = "while answering: the brighter, the more attention; % of all attention"
    head = tag("p", method(model), f", {said}", class_="aside")
    return tag("div", head, tag("div", *shown, class_="row"))


def lit(pixels: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] on a dark ground, as bright as `light` [rows, columns], 0 to 1,
    says of each patch."""
    rows, columns = (pixels.shape[i] // light.shape[i] for i in (0, 1))
    light = light.repeat(rows, 0).repeat(columns, 1)[..., None]
    return (pixels * (0.12 + 0.88 * light)).astype(np.uint8)


# --- answers --------------------------------------------------------------------------


def method(model: str) -> Html:
    """A square in the method's colour, and its name."""
    square = tag("span", class_="square", style=f"--own: {plots.COLORS[model]}")
    return tag("span", square, plots.LABELS[model], class_="method")


def _card(model: str, head: Html | str, *parts: object) -> Html:
    own = f"--own: {plots.COLORS[model]}"
    return tag("div", tag("p", head), *parts, class_="card", style=own)


def _answer(model: str, row: Mapping) -> Html:
    """One method's answer and reasoning, word for word."""
    head = tag("strong", answer_words(row["first_letter"], row["gold"]))
    said = _said(row["completion"], row["truncated"])
    if row.get("error"):
        said = tag("p", f"was not asked: {row['error']}")
    return _card(model, tag("span", method(model), ": ", head), said)


def _rollout(number: int, own: Mapping, label: str, gold: str, letters: str) -> Html:
    """One rollout: its answer by the rule that is paid, rewards, advantage and text."""
    answer = answer_words(parse_answer(own["text"], "first_letter", letters), gold)
    parts = ", ".join(f"{name} {value:.3g}" for name, value in own["rewards"].items())
    head = tag("span", f"{number}: ", tag("strong", answer))
    words = f"reward {own['reward']:.3g}" + f" ({parts})" * (len(own["rewards"]) > 1)
    words += f"; {own['tokens']} tokens"
    scale = None
    if own["advantage"] is not None:
        words += f"; advantage {own['advantage']:+.2f}".replace("-", "−")
        scale = _scale(own["advantage"], plots.COLORS[label])
    said = _said(own["text"], own["truncated"])
    return _card(label, head, tag("p", words, class_="aside"), scale, said)


def _scale(advantage: float, color: str) -> Html:
    """A bar from the middle: to the right above the group's mean, to the left below."""
    share = 100 * min(abs(advantage) / SCALE, 1)
    halves = []
    for side, filled in (("right", advantage < 0), ("left", advantage > 0)):
        width = share if filled else 0
        bar = f"linear-gradient({color} 0 0) {side} / {width:.0f}% 100% no-repeat"
        halves.append(tag("span", style=f"background: {bar}"))
    return tag("div", *halves, class_="scale", aria_hidden="true")


def _said(text: str, truncated: bool) -> Html:
    """A completion as it is, its tags in grey, and whether it was cut off."""
    parts = [
        tag("span", part, class_="tag") if TAGS.fullmatch(part) else part
        for part in TAGS.split(text or "(empty)")
    ]
    if truncated:
        parts.append(tag("em", " [cut off at the token limit]"))
    return tag("div", *parts, class_="said")
