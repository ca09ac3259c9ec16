"""Browsers for questions and for rollouts over training, in a notebook's cell.

    browser.questions(run, predictions, asked, sampling)   # last value of a cell
    browser.rollouts(run, watched, sampling, "grpo")

In JupyterLab or VS Code each is a widget, in a run of papermill or in a page it is one
question, or one group over training, as HTML (lib/show/pages.py); a cell's value has
both. Everything comes from the records of a run and the media of its data folder."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ipywidgets as widgets

from lib import records
from lib.analysis import attended
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.evaluate import tables
from lib.methods import METHODS
from lib.paths import require
from lib.show import pages
from lib.show.live import front_end

ANY = "any"
WHO = {
    ANY: {},
    "GRPO right, SFT wrong": {"sft": False, "grpo": True},
    "SFT right, GRPO wrong": {"sft": True, "grpo": False},
    "only GRPO right": {"base": False, "sft": False, "grpo": True},
    "only SFT right": {"base": False, "sft": True, "grpo": False},
    "only the base right": {"base": True, "sft": False, "grpo": False},
    "all three right": {"base": True, "sft": True, "grpo": True},
    "all three wrong": {"base": False, "sft": False, "grpo": False},
}


class Browser:
    """Controls, a slider with two buttons, and a page below: `box` holds all of them.

    `find(values)` of the controls that choose makes {name: what is shown}, to step
    through; `draw(found, name)` the words beside the slider and the page's HTML."""

    def __init__(self, controls: Mapping, find: Callable, draw: Callable, more=()):
        self.controls, self.find, self.draw = controls, find, draw
        self.name, self.moving = None, False
        self.at = widgets.IntSlider(min=0, readout=False, continuous_update=False)
        self.count, self.page = widgets.Label(), widgets.HTML()
        self.previous, self.next = (
            widgets.Button(icon=f"arrow-{to}", tooltip=name, layout={"width": "44px"})
            for to, name in (("left", "previous"), ("right", "next"))
        )
        self.previous.on_click(lambda _: self.move(-1))
        self.next.on_click(lambda _: self.move(1))
        self.at.observe(lambda _: self.moving or self.show(), "value")
        for control in controls.values():
            control.observe(lambda _: self.moving or self.go(self.name), "value")
        moves = (self.previous, self.at, self.next, self.count)
        line = widgets.HBox([*controls.values(), *more, *moves])
        line.layout.flex_flow = "row wrap"
        self.box = widgets.VBox([line, self.page])

    def move(self, by: int) -> None:
        """Go on, or back; the slider stays within its ends."""
        self.at.value += by

    def go(self, name: object, **values: object) -> None:
        """Show what has this name, or the first, at these values of the controls."""
        self.moving = True  # what is changed here is shown once, at the end
        for control, value in values.items():
            self.controls[control].value = value
        self.found = self.find({k: own.value for k, own in self.controls.items()})
        names = [*self.found]
        self.at.max = max(0, len(names) - 1)
        self.at.value = names.index(name) if name in names else 0
        self.moving = False
        self.show()

    def show(self) -> None:
        """Draw what the slider is at."""
        self.previous.disabled = self.at.value == 0
        self.next.disabled = self.at.value == self.at.max
        if self.found:
            self.name = [*self.found][self.at.value]
        self.count.value, self.page.value = self.draw(self.found, self.name)


def questions(
    run: Path,
    predictions: tables.Predictions,
    asked: Mapping[str, Question],
    sampling: Sampling,
) -> pages.View:
    """A browser of all questions with answers, from the first of tables.gallery."""
    answered: dict[str, dict[str, dict]] = {}
    for (model, _), rows in predictions.items():
        for row in rows:
            answered.setdefault(row["id"], {})[model] = row
    image_only = {key for key, item in asked.items() if item.video is None}
    picks = [*tables.gallery(predictions, image_only), {"id": next(iter(answered))}]
    first, kind = picks[0]["id"], picks[0].get("kind", "")
    view = pages.question(asked[first], answered[first], sampling, kind=kind)
    if front_end():
        view.browser = _question_browser(run, asked, answered, sampling, first)
    return view


def _question_browser(run, asked, answered, sampling, first: str) -> Browser:
    """The widget of `questions`; `answered` is {id: {method: its row}}."""
    measured = tables.attention_file(run, "base", tables.OWN).exists()
    maps = attended.read_rows(run, tables.OWN) if measured else {}
    facts = {  # what the filters ask for, in their words
        key: {"level": asked[key].level, "domain": asked[key].domain}
        | {"without_video": asked[key].video is None}
        | {model: bool(rows[model]["correct"]) for model in METHODS}
        for key, rows in answered.items()
    }
    levels, domains = (
        [ANY, *sorted({own[name] for own in facts.values()} - {""})]
        for name in ("level", "domain")
    )
    filters = {
        "level": widgets.Dropdown(options=levels, description="set"),
        "domain": widgets.Dropdown(options=domains, description="domain"),
        "who": widgets.Dropdown(options=[*WHO], description="who is right"),
        "without_video": widgets.Checkbox(description="only without video"),
    }
    none = {name: control.value for name, control in filters.items()}
    jump = widgets.Text(description="go to", continuous_update=False, placeholder=first)
    look = widgets.ToggleButton(description="where they look", icon="eye")

    def find(values: Mapping) -> dict[str, Mapping]:
        wanted = {name: one for name, one in values.items() if one not in (ANY, False)}
        wanted |= WHO[wanted.pop("who", ANY)]
        return {k: own for k, own in facts.items() if wanted.items() <= own.items()}

    def draw(found: Mapping, key: str) -> tuple[str, str]:
        if not found:
            return "0 of 0", "<p>No question passes all filters.</p>"
        light = {model: own[key] for model, own in maps.items() if key in own}
        look.disabled = not light
        given = (asked[key], answered[key], sampling, light if look.value else {})
        return f"{[*found].index(key) + 1} of {len(found)}", pages.question(*given).html

    def go_to(_) -> None:
        wanted, jump.value = jump.value.strip(), ""
        if wanted in answered:
            browser.go(wanted, **({} if wanted in browser.found else none))
        elif wanted:
            browser.count.value = f"no question {wanted}; ids look like {first}"

    browser = Browser(filters, find, draw, (jump, look))
    jump.observe(go_to, "value")
    look.observe(lambda _: browser.show(), "value")
    browser.go(first)
    return browser


def rollouts(
    run: Path, watched: Iterable[Question], sampling: Sampling, label: str
) -> pages.View:
    """A browser of the groups that were watched while a method trained: choose a
    question, slide over the steps; without a widget its first, middle and last.
    FileNotFoundError without records, ValueError where they are of other questions."""
    again = f"run 03_grpo with watched questions for {label}"
    path = require(run / f"watched_{label}.jsonl", again)
    rows = sorted(records.read_jsonl(path), key=lambda row: row["step"])
    if not rows:
        raise ValueError(f"{path} is empty: {again}")
    items = {item.id: item for item in watched}
    groups: dict[str, dict[int, dict]] = {}
    for row in rows:
        key = row["question_id"]
        if key not in items or [*items[key].options] != row["options"]:
            raise ValueError(f"{path} holds {key}, which is not asked so here: {again}")
        groups.setdefault(key, {})[row["step"]] = row
    first, own = next(iter(groups.items()))
    steps = [*own]
    some = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    view = pages.group(items[first], [own[at] for at in some], label, sampling)

    def find(values: Mapping) -> dict[int, dict]:
        return groups[values["question"]]

    def draw(found: Mapping[int, Mapping], step: int) -> tuple[str, str]:
        item = items[found[step]["question_id"]]
        shown = pages.group(item, [found[step]], label, sampling)
        return f"step {step} of {max(found)}", shown.html

    if front_end():
        question = widgets.Dropdown(options=[*groups], description="question")
        view.browser = Browser({"question": question}, find, draw)
        view.browser.go(steps[0])
    return view
