"""What a browser shows of one question or one group of rollouts, as HTML.

Pictures are data URIs with alternative text; every word of a question or a model is
escaped by `markup.tag`. Colours are JupyterLab's variables, so that a page can be read
in its light and in its dark theme; a method has its colour (lib/plots.py) and its name.

    attended = {"grpo": attention.read_rows(run, attention.OWN)["grpo"]["L1/7"]}
    widgets.HTML(question_page(item, answers, sampling, attended))

Example: an advantage of 1.25 fills half of the right half of its scale, which ends at
2.5, about the largest there is among eight rollouts: one right, seven wrong.
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from lib import evidence_plots, plots
from lib.data.letters import parse_answer
from lib.frame_store import question_media
from lib.markup import Html, tag
from lib.questions import Question
from lib.video import BadVideo, Sampling

WIDTH = 150  # CSS pixels of a frame
SCALE = 2.5  # where the scale of an advantage ends, on both sides
STYLE = """
.looked { color: var(--jp-content-font-color1, inherit); line-height: 1.4;
  font-size: var(--jp-content-font-size1, 14px); max-width: 1020px; }
.looked p, .looked ul, .looked figure { margin: 0 0 6px; padding: 0; }
.looked .row { display: flex; flex-wrap: wrap; gap: 4px; }
.looked img { height: auto; display: block; }
.looked figcaption, .looked .aside { font-size: 12px; margin: 0;
  color: var(--jp-content-font-color2, inherit); }
.looked .options { list-style: none; }
.looked .right { font-weight: bold; }
.looked .cards { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.looked .card { border: 1px solid var(--jp-border-color1, #888);
  border-left-width: 6px; padding: 4px 8px; }
.looked .said { white-space: pre-wrap; overflow-wrap: anywhere; }
.looked .tag { color: var(--jp-content-font-color2, inherit); opacity: .8; }
.looked .square { display: inline-block; width: .75em; height: .75em;
  margin: 0 .3em 0 0; }
.looked .options .square { margin-left: 1em; }
.looked .scale { display: flex; height: 7px; margin: 3px 0 5px; }
.looked .scale span { flex: 1; background-repeat: no-repeat; }
.looked .scale span + span { border-left: 1px solid; }
"""
TAGS = re.compile(r"(</?(?:think|answer)>)")


def question_page(
    item: Question,
    answers: Mapping[str, Mapping],
    sampling: Sampling,
    attended: Mapping[str, Mapping],
) -> Html:
    """A question's pictures, its options and what each method said.

    `answers` {model: its prediction row}; `attended` {model: its row of
    lib.attention.attend} shows the pictures once more, lit by attention.
    """
    return _page(
        _title(item),
        _media(item, sampling, attended),
        tag("p", item.text, class_="said"),
        _options(item.options, item.gold, answers),
        _cards(_answer(model, row) for model, row in answers.items()),
    )


def group_page(item: Question, row: Mapping, label: str, sampling: Sampling) -> Html:
    """A watched question and its group of rollouts at one step (lib/watched.py)."""
    letters = "ABCDE"[: len(row["options"])]
    return _page(
        _title(item),
        _media(item, sampling, {}),
        tag("p", item.text, class_="said"),
        _options(row["options"], row["gold"], {}),
        tag("p", _method(label), ", ", group_words(row)),
        _cards(
            _rollout(number, own, label, row["gold"], letters)
            for number, own in enumerate(row["rollouts"], 1)
        ),
    )


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


def rollout_letter(text: str, letters: str) -> str | None:
    """The answer of a rollout, by the rule that the paper rewards."""
    return parse_answer(text, "first_letter", letters)


def _page(*parts: object) -> Html:
    return tag("div", tag("style", Html(STYLE)), *parts, class_="looked")


def _title(item: Question) -> Html:
    """Which question it is, and what the benchmark says about it."""
    known = [item.id, item.domain, item.scenario, item.goal and f"goal: {item.goal}"]
    return tag(
        "p", tag("strong", known[0]), *(f" · {part}" for part in known[1:] if part)
    )


def _cards(cards: Iterable[Html]) -> Html:
    return tag("div", *cards, class_="cards")


def _media(item: Question, sampling: Sampling, attended: Mapping) -> Html:
    """The pictures as they are, then as each method sees them; or why not."""
    try:
        clip, still = question_media(item, sampling)
    except BadVideo as bad:
        return tag("p", f"Its pictures cannot be shown: {bad.path.name} {bad.why}.")
    frames = [] if clip is None else list(clip)
    shown = [
        _picture(pixels, f"frame {number} of {len(frames)}", str(number))
        for number, pixels in enumerate(frames, 1)
    ]
    if clip is None:
        shown.append(tag("p", "No video: nothing has been done yet.", class_="aside"))
    if still is not None:
        shown.append(_picture(still, "the still image", "now: still image"))
    brightest = max(
        (np.max(m) for row in attended.values() for m in _maps(row)), default=1
    )
    lit = [_lit(model, row, clip, still, brightest) for model, row in attended.items()]
    return tag("div", tag("div", *shown, class_="row"), *lit)


def _maps(row: Mapping) -> list:
    """Attention on each pair of frames and on the still, [rows][columns] each."""
    return [*(row["video_map"] or []), *(row["still_map"] or [])]


def _lit(model: str, row: Mapping, clip, still, brightest: float) -> Html:
    """Where a method looked: the second frame of each pair that it reads as one."""
    pixels = [] if clip is None else list(clip[1::2])
    names = [f"frames {2 * i + 1}–{2 * i + 2}" for i in range(len(pixels))]
    if still is not None:
        pixels, names = [*pixels, still], [*names, "still"]
    pictures = []
    for name, picture, light in zip(
        names, pixels, map(np.array, _maps(row)), strict=True
    ):
        words = f"{name}: {100 * light.sum():.1f} %"
        alt = f"{words} of the attention of {plots.LABELS[model]}"
        pictures.append(
            _picture(evidence_plots.lit(picture, light / brightest), alt, words)
        )
    said = "while answering: the brighter, the more attention; % of all attention"
    return tag(
        "div",
        tag("p", _method(model), f", {said}", class_="aside"),
        tag("div", *pictures, class_="row"),
    )


def _picture(pixels: np.ndarray, alt: str, caption: str) -> Html:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    address = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    small = "image-rendering: pixelated" if pixels.shape[1] < WIDTH else None
    picture = tag("img", src=address, alt=alt, width=WIDTH, style=small)
    return tag("figure", picture, tag("figcaption", caption))


def _options(options: Sequence[str], gold: str, answers: Mapping) -> Html:
    """The options, the right one marked, each with the methods that chose it."""
    items = []
    for letter, option in zip("ABCDE", options, strict=False):
        chosen = [m for m, row in answers.items() if row["first_letter"] == letter]
        words = f"{letter}. {option}"
        if letter == gold:
            words = tag("span", f"{words}  ← right answer", class_="right")
        items.append(tag("li", words, *map(_method, chosen)))
    return tag("ul", *items, class_="options")


def _method(model: str) -> Html:
    """A square in the method's colour, and its name."""
    square = tag("span", class_="square", style=f"background: {plots.COLORS[model]}")
    return tag("span", square, plots.LABELS[model])


def _card(model: str, head: Html | str, *parts: object) -> Html:
    color = f"border-left-color: {plots.COLORS[model]}"
    return tag("div", tag("p", head), *parts, class_="card", style=color)


def _answer(model: str, row: Mapping) -> Html:
    """One method's answer and reasoning, word for word."""
    head = tag("strong", answer_words(row["first_letter"], row["gold"]))
    said = _said(row["completion"], row["truncated"])
    if row.get("error"):
        said = tag("p", f"was not asked: {row['error']}")
    return _card(model, tag("span", _method(model), ": ", head), said)


def _rollout(number: int, own: Mapping, label: str, gold: str, letters: str) -> Html:
    """One rollout: its answer, rewards, advantage and text."""
    answer = answer_words(rollout_letter(own["text"], letters), gold)
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
        for part in TAGS.split(text)
    ]
    if truncated:
        parts.append(tag("em", " [cut off at the token limit]"))
    return tag("div", *parts, class_="said")
