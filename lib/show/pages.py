"""What a cell shows: a figure with its words, a question, a group of rollouts.

Each view exists once, as HTML, for JupyterLab, for a browser of lib/show/browser.py,
for an executed notebook's page and for the report. Pictures are data URIs with
alternative text; the templates (views.html) escape every word of a question or a model.

    pages.show(plots.accuracy(rows, "set"), figures / "accuracy.png", "Bars of ...")
    pages.question(item, answers, sampling, attended)  # last value of a cell
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lib.analysis import plots
from lib.data.frame_store import question_media
from lib.data.letters import parse_answer
from lib.data.questions import Question
from lib.data.video import BadVideo, Sampling
from lib.evaluate import tables
from lib.methods import COLORS, LABELS, condition

WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH = 150  # CSS pixels of a frame
# Where the scale of an advantage ends, on both sides: about the largest there is among
# eight rollouts, of one that is right beside seven wrong ones.
SCALE = 2.5
PIXELS_AN_INCH = 150 / 96  # of plots.save, over those of CSS
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {"COLORS": COLORS, "LABELS": LABELS}
CSS = Path(__file__).with_name("views.css").read_text(encoding="utf-8")
STYLE = f"<style>{CSS}</style>"


class View:
    """HTML as a cell's value, words where none is shown, perhaps a widget, which lives
    only where a front end does: a saved notebook has the HTML."""

    def __init__(self, html: Markup, words: str):
        self.html = f'<div class="looked">{STYLE}{html}</div>'
        self.words, self.browser = words, None  # a Browser of lib/show/browser.py

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        data: dict = {"text/html": self.html, "text/plain": self.words}
        if self.browser is not None:
            data[WIDGET] = self.browser.box._repr_mimebundle_()[WIDGET]
        return data


def show(drawn: Axes | Figure, path: str | Path, alt: str) -> None:
    """Save a figure as PNG and show it in the cell with the text in its place.
    ValueError for an empty `alt`: who does not see the figure needs one."""
    if not alt.strip():
        raise ValueError(f"{path}: a figure needs a text for who cannot see it")
    saved = plots.save(drawn, path)
    plt.close(drawn.figure)  # or the cell would show it a second time
    show_file(saved, alt)


def show_file(path: Path, alt: str) -> None:
    """Show a PNG that is there in the cell, with the text in its place."""
    data = path.read_bytes()
    width = round(Image.open(io.BytesIO(data)).width / PIXELS_AN_INCH)
    bundle = {"image/png": data, "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width}})


def text(words: str) -> View:
    """A text as it is; Jupyter would break the lines of a print inside words."""
    return View(VIEWS.said(words, False), words)


def told(rows: Iterable[Mapping], group: str) -> str:
    """Accuracies in words, for a figure's text: "L1: base 35.6 %, SFT 80.2 %; L2: "."""
    groups: dict = {}
    for row in rows:
        share = f"{LABELS[row['model']]} {tables.percent(row['accuracy'])} %"
        groups.setdefault(row[group], []).append(share)
    return "; ".join(f"{name}: {', '.join(said)}" for name, said in groups.items())


def question(
    item: Question,
    answers: Mapping[str, Mapping],
    sampling: Sampling,
    attended: Mapping[str, Mapping] | None = None,
    kind: str = "",
) -> View:
    """A question's pictures, its options and what each method said. `answers` {model:
    its prediction row}; `attended` {model: a row of evaluate/attention.py} lights the
    pictures; `kind` is why it is shown. With gold "" no option is marked."""
    said = [
        f"{LABELS[own]}: {answer_words(row['first_letter'], row['gold'])}."
        for own, row in answers.items()
    ]
    right = f", right is {item.gold}" if item.gold else ""
    words = " ".join([f"Question {item.id}{right}.", *said])
    media = _media(item, sampling, attended or {})
    return View(VIEWS.question(item, media, answers, kind), words)


def group(
    item: Question, rows: Sequence[Mapping], label: str, sampling: Sampling
) -> View:
    """A watched question, its options as the run drew them, and its group of rollouts
    at each step of `rows`, rows of watched_<label>.jsonl (lib/train/watched.py)."""
    words = "; ".join(map(group_words, rows))
    return View(
        VIEWS.group(item, _media(item, sampling, {}), rows, label, SCALE),
        f"Rollouts of {LABELS[label]} on {item.id}: {words}.",
    )


def conditions(
    shown: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]],
) -> View:
    """One question under each condition of lib/evaluate/perception.py, before it is
    asked: {condition: (clip [T, H, W, 3] or None, still [H, W, 3] or None)}."""
    named = {}
    for name, (clip, still) in shown.items():
        size = "" if clip is None else ": {} frames of {} × {}".format(*clip.shape[:3])
        named[condition(name) + size] = _pictures(clip, still)
    words = f"One question as it is shown: {', '.join(shown)}."
    return View(VIEWS.conditions(named), words)


def pictures(shown: Mapping[str, np.ndarray]) -> View:
    """uint8 [H, W, 3] pictures side by side, each above its title."""
    drawn = [picture(pixels, title, title) for title, pixels in shown.items()]
    return View(VIEWS.pictures(drawn), "; ".join(shown))


def group_words(row: Mapping) -> str:
    """ "step 25: mean reward 0.38 of 8 rollouts", and whether it teaches anything."""
    rewards = [own["reward"] for own in row["rollouts"]]
    words = f"step {row['step']}: mean reward {np.mean(rewards):.2f}"
    words += f" of {len(rewards)} rollouts"
    if all(own["advantage"] == 0 for own in row["rollouts"]):
        words += "; no reward differs, so nothing is learned from this group"
    return words


def answer_words(letter: str | None, gold: str) -> str:
    """ "B, right", "C, wrong" or "no answer"."""
    if letter is None:
        return "no answer"
    return f"{letter}, {'right' if letter == gold else 'wrong'}"


def paid_letter(rollout: Mapping, item: Question) -> str | None:
    """The answer of a rollout by the rule that is paid."""
    return parse_answer(rollout["text"], "first_letter", "ABCDE"[: len(item.options)])


def greyed(text: str) -> Markup:
    """A completion as it is, escaped, its tags in grey."""
    tags = r"(&lt;/?(?:think|answer)&gt;)"
    return Markup(re.sub(tags, r'<span class="tag">\1</span>', str(escape(text))))


def lit(pixels: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] on a dark ground, each patch as bright as `light`, 0 to 1."""
    rows, columns = (pixels.shape[i] // light.shape[i] for i in (0, 1))
    light = light.repeat(rows, 0).repeat(columns, 1)[..., None]
    return (pixels * (0.12 + 0.88 * light)).astype(np.uint8)


def _media(item: Question, sampling: Sampling, attended: Mapping) -> dict:
    """Its pictures as they are and as each method attends to them, or why not."""
    try:
        clip, still = question_media(item, sampling)
    except BadVideo as bad:
        return {"bad": f"{bad.path.name} {bad.why}"}
    maps = {
        model: list(map(np.array, (row["video_map"] or []) + (row["still_map"] or [])))
        for model, row in attended.items()
    }
    brightest = max((light.max() for own in maps.values() for light in own), default=1)
    return {
        "bad": None,
        "shown": _pictures(clip, still),
        "lit": {m: _lit(m, maps[m], clip, still, brightest) for m in maps},
    }


def _pictures(clip: np.ndarray | None, still: np.ndarray | None) -> list[dict]:
    frames = [] if clip is None else list(clip)
    shown = [
        picture(pixels, f"frame {number} of {len(frames)}", str(number))
        for number, pixels in enumerate(frames, 1)
    ]
    if still is not None:
        shown.append(picture(still, "the still image", "now: still image"))
    return shown


def _lit(model: str, maps: Sequence, clip, still, brightest: float) -> list[dict]:
    """The pictures as bright as a method attends; of a pair of frames the second."""
    pixels = [] if clip is None else list(clip[1::2])
    names = [f"frames {2 * i + 1}–{2 * i + 2}" for i in range(len(pixels))]
    if still is not None:
        pixels, names = [*pixels, still], [*names, "still"]
    shown = []
    for name, pixel, light in zip(names, pixels, maps, strict=True):
        words = f"{name}: {100 * light.sum():.1f} %"
        alt = f"{words} of the attention of {LABELS[model]}"
        shown.append(picture(lit(pixel, light / brightest), alt, words))
    return shown


def picture(pixels: np.ndarray, alt: str, caption: str) -> dict:
    """What views.html shows of a picture; small ones keep their pixels' edges."""
    picture, buffer = Image.fromarray(np.asarray(pixels, np.uint8)), io.BytesIO()
    small = picture.width < WIDTH
    picture.thumbnail((2 * WIDTH, 2 * WIDTH))  # smaller only, for sharp screens
    picture.save(buffer, "PNG")
    src = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    return {"src": src, "alt": alt, "caption": caption, "small": small, "width": WIDTH}


USED = {"zip": zip, "greyed": greyed, "paid": paid_letter}
USED |= {"answer_words": answer_words, "group_words": group_words}
VIEWS = TEMPLATES.get_template("views.html", globals=USED).module
