"""Browsers for questions and for rollouts over training, in a notebook's cell.

    browser.questions(run, data_dir, general_dir, sampling)   # last value of a cell
    browser.rollouts(run, data_dir, label="grpo")

In JupyterLab or VS Code each is a widget: filter, step or jump, and look at frames,
options, reasoning and attention. No widget lives in a run of papermill or in a page;
there it is one question, or one group over training, as HTML (lib/show/pages.py). What
is shown in a cell carries both. Everything comes from the records of a run and the
media of its data folder; no model is loaded.

Example: of 500 questions on L1 the filter "GRPO right, SFT wrong" leaves 41, and the
browser stands at "1 of 41".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as widgets

from lib import records
from lib.data.questions import Question, read_training
from lib.data.video import Sampling
from lib.evaluate import attention, tables
from lib.paths import require, resolve
from lib.show import pages
from lib.show.live import front_end

ANY = "any"
WHO: dict[str, Callable[[bool, bool, bool], bool]] = {
    ANY: lambda base, sft, grpo: True,
    "GRPO right, SFT wrong": lambda base, sft, grpo: grpo and not sft,
    "SFT right, GRPO wrong": lambda base, sft, grpo: sft and not grpo,
    "only GRPO right": lambda base, sft, grpo: grpo and not sft and not base,
    "only SFT right": lambda base, sft, grpo: sft and not grpo and not base,
    "only the base right": lambda base, sft, grpo: base and not sft and not grpo,
    "all three right": lambda base, sft, grpo: base and sft and grpo,
    "all three wrong": lambda base, sft, grpo: not (base or sft or grpo),
}


@dataclass(frozen=True)
class Answered:
    """A question, the set it is in, and the row of every model that answered it."""

    item: Question
    level: str
    rows: Mapping[str, Mapping]

    def passes(self, level: str, domain: str, who: str, without_video: bool) -> bool:
        """Whether it passes all filters of the browser; `who` is a key of WHO."""
        right = (bool(self.rows[model]["correct"]) for model in tables.METHODS)
        return (
            level in (ANY, self.level)
            and domain in (ANY, self.item.domain)
            and not (without_video and self.item.video is not None)
            and WHO[who](*right)
        )


class Browser:
    """Controls, a slider with two buttons, and a page below: `box` holds all of them.

    `found` is what can be stepped through; `draw(found, at)` gives what stands beside
    the slider, and the HTML of the page at a position.
    """

    def __init__(self, controls: Mapping[str, widgets.Widget], draw: Callable):
        self.controls, self.draw, self.found = controls, draw, []
        self.previous = widgets.Button(icon="arrow-left", tooltip="previous")
        self.next = widgets.Button(icon="arrow-right", tooltip="next")
        self.at = widgets.IntSlider(
            min=0, max=0, readout=False, continuous_update=False
        )
        self.count, self.page = widgets.Label(), widgets.HTML()
        for button, by in ((self.previous, -1), (self.next, 1)):
            button.layout.width = "44px"
            button.on_click(lambda _, by=by: self.move(by))
        self.at.observe(self.show, "value")
        moves = [self.previous, self.at, self.next, self.count]
        wrapped = widgets.Layout(flex_flow="row wrap")
        line = widgets.HBox([*controls.values(), *moves], layout=wrapped)
        self.box = widgets.VBox([line, self.page])

    def move(self, by: int) -> None:
        self.at.value += by  # the slider stays within its ends

    def go(self, found: Sequence, at: int) -> None:
        """Step through these from now on, and show the one at this position."""
        self.at.unobserve(self.show, "value")
        self.found, self.at.max = found, max(0, len(found) - 1)
        self.at.value = at
        self.at.observe(self.show, "value")
        self.show()

    def show(self, _=None) -> None:
        self.previous.disabled = self.at.value == 0
        self.next.disabled = self.at.value == self.at.max
        self.count.value, self.page.value = self.draw(self.found, self.at.value)


def questions(
    run: str | Path,
    data_dir: str | Path,
    general_dir: str | Path,
    sampling: Sampling,
    live: bool | None = None,
) -> pages.View:
    """A browser of all questions that a run has answers to, by any of its methods.

    `live` says whether a widget can be used; None: if there is a front end. Both begin
    at the first question of tables.gallery. Raises FileNotFoundError without
    predictions, ValueError where they are of other questions than those of the folders.
    """
    predictions = tables.read_predictions(Path(run))
    asked = tables.asked(data_dir, general_dir, tables.sets_of(predictions))
    answered = all_answered(predictions, asked)
    known = {entry.item.id: entry for entry in answered}
    image_only = {key for key, entry in known.items() if entry.item.video is None}
    pick = next(
        iter(tables.gallery(predictions, image_only)), {"id": next(iter(known))}
    )
    first, kind = known[pick["id"]], pick.get("kind", "")
    view = pages.question(first.item, first.rows, sampling, kind=kind)
    if front_end() if live is None else live:
        attended = read_attention(Path(run))
        view.browser = question_browser(answered, attended, sampling, pick["id"])
    return view


def all_answered(
    predictions: tables.Predictions, asked: Mapping[str, Question]
) -> list[Answered]:
    """Every question with its answers, in the order of sets and ids."""
    by_question: dict[tuple[str, str], dict] = {}
    for (model, level), rows in predictions.items():
        for row in rows:
            by_question.setdefault((level, row["id"]), {})[model] = row
    for level, key in by_question:
        if key not in asked:
            raise ValueError(
                f"{key} has answers, but is no question of {level} in the data folder: "
                "give the data_dir and general_dir of the run's 04_eval"
            )
    return [
        Answered(asked[key], level, rows) for (level, key), rows in by_question.items()
    ]


def read_attention(run: Path) -> dict[str, dict[str, dict]]:
    """{id: {method: its row}} of what lib.evaluate.attention recorded; {} without
    records."""
    found: dict[str, dict[str, dict]] = {}
    for model in tables.METHODS:
        path = attention.rows_file(run, model, attention.OWN)
        for row in records.read_jsonl(path) if path.exists() else []:
            if "left_out" not in row:
                found.setdefault(row["id"], {})[model] = row
    return found


def question_browser(
    answered: Sequence[Answered],
    attended: Mapping[str, Mapping[str, Mapping]],
    sampling: Sampling,
    first: str,
) -> Browser:
    """The widget of `questions`; its filters keep the question shown, if it passes."""
    levels = list(dict.fromkeys(entry.level for entry in answered))
    domains = sorted({entry.item.domain for entry in answered if entry.item.domain})
    filters = {
        "level": widgets.Dropdown(options=[ANY, *levels], description="set"),
        "domain": widgets.Dropdown(options=[ANY, *domains], description="domain"),
        "who": widgets.Dropdown(options=list(WHO), description="who is right"),
        "without_video": widgets.Checkbox(description="only without video"),
    }
    jump = widgets.Text(description="go to", continuous_update=False, placeholder=first)
    look = widgets.ToggleButton(description="where they look", icon="eye")
    shown = first

    def draw(found: Sequence[Answered], at: int) -> tuple[str, str]:
        nonlocal shown
        if not found:
            return "0 of 0", "<p>No question passes all filters.</p>"
        entry = found[at]
        shown = entry.item.id
        light = attended.get(shown, {})
        look.disabled = not light
        light = light if look.value else {}
        view = pages.question(entry.item, entry.rows, sampling, light)
        return f"{at + 1} of {len(found)}", view.html

    def filter_(_=None) -> None:
        values = {name: control.value for name, control in filters.items()}
        found = [entry for entry in answered if entry.passes(**values)]
        ids = [entry.item.id for entry in found]
        browser.go(found, ids.index(shown) if shown in ids else 0)

    def go_to(_) -> None:
        nonlocal shown
        wanted, jump.value = jump.value.strip(), ""
        if not wanted:
            return
        if wanted not in {entry.item.id for entry in answered}:
            browser.count.value = f"no question {wanted}; ids look like {first}"
            return
        shown = wanted
        if wanted not in {entry.item.id for entry in browser.found}:
            for control in filters.values():
                control.unobserve(filter_, "value")
                control.value = False if control.value in (True, False) else ANY
                control.observe(filter_, "value")
        filter_()

    browser = Browser({**filters, "jump": jump, "look": look}, draw)
    for control in filters.values():
        control.observe(filter_, "value")
    jump.observe(go_to, "value")
    look.observe(browser.show, "value")
    filter_()
    return browser


def rollouts(
    run: str | Path, data_dir: str | Path, label: str = "grpo", live: bool | None = None
) -> pages.View:
    """A browser of the groups that were watched while a method trained.

    Choose a watched question and slide over the steps. Without a widget it is the first
    question at its first, middle and last step. Raises FileNotFoundError without the
    records that 03_grpo makes, ValueError where data_dir is another run's.
    """
    again = f"run 03_grpo with watched questions for {label}"
    path = require(Path(run) / f"watched_{label}.jsonl", again)
    rows = records.read_jsonl(path)
    if not rows:
        raise ValueError(f"{path} is empty: {again}")
    groups: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        groups.setdefault(row["question_id"], []).append(row)
    items = _watched_items(data_dir, groups, path)
    sampling = trained_with(Path(run), label)
    first = next(iter(groups))
    own = groups[first]
    some = [own[at] for at in sorted({0, len(own) // 2, len(own) - 1})]
    view = pages.group(items[first], some, label, sampling)
    if front_end() if live is None else live:
        view.browser = rollout_browser(groups, items, label, sampling)
    return view


def rollout_browser(
    groups: Mapping[str, Sequence[Mapping]],
    items: Mapping[str, Question],
    label: str,
    sampling: Sampling,
) -> Browser:
    """The widget of `rollouts`; another question is shown at the same position."""
    question = widgets.Dropdown(options=list(groups), description="question")

    def draw(rows: Sequence[Mapping], at: int) -> tuple[str, str]:
        view = pages.group(items[question.value], [rows[at]], label, sampling)
        return f"step {rows[at]['step']} of {rows[-1]['step']}", view.html

    def choose(_=None) -> None:
        rows = groups[question.value]
        browser.go(rows, min(browser.at.value, len(rows) - 1))

    browser = Browser({"question": question}, draw)
    question.observe(choose, "value")
    choose()
    return browser


def _watched_items(
    data_dir: str | Path, groups: Mapping[str, Sequence[Mapping]], path: Path
) -> dict[str, Question]:
    """The watched questions: text and media as the data folder has them, options as
    the run drew them."""
    data = resolve(data_dir)
    file = require(data / "annotations" / "training.jsonl", "run 01_data first")
    known = {item.id: item for item in read_training(file, data)}
    for key in groups:
        if key not in known:
            raise ValueError(
                f"{path} holds {key}, which {file} has not: give the data_dir that it "
                "was trained on"
            )
    return {
        key: replace(
            known[key], options=tuple(rows[0]["options"]), gold=rows[0]["gold"]
        )
        for key, rows in groups.items()
    }


def trained_with(run: Path, label: str) -> Sampling:
    """The sampling of frames that a method was trained with, by its settings."""
    for folder in ("adapters", "checkpoints"):
        path = run / folder / label / f"{label}_settings.json"
        if path.exists():
            return Sampling(**records.read_json(path)["settings"]["sampling"])
    return Sampling()
