"""Browsers for questions and for rollouts over training, in a notebook's cell.

    browser.questions(run, data_dir, general_dir, sampling)   # last value of a cell
    browser.rollouts(run, data_dir, label="grpo")

In JupyterLab or VS Code each is a widget: filter, step or jump, and look at frames,
options, reasoning and attention. No widget lives in a run of papermill, on GitHub or in
an exported page; there it is one picture with alternative text. What is shown in a cell
carries both, so that a saved notebook has the picture wherever it is opened.

Everything comes from the records of a run (lib/evaluate.py, lib/attention.py,
lib/watched.py) and the media of its data folder; no model is loaded.

Example: of 500 questions on L1 the filter "GRPO right, SFT wrong" leaves 41, and the
browser stands at "1 of 41".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lib import (
    attention,
    plots,
    question_pages,
    question_plots,
    records,
    rollout_figures,
    tables,
)
from lib.frame_store import question_media
from lib.live import front_end
from lib.paths import require, resolve
from lib.questions import Question, read_training
from lib.video import BadVideo, Sampling

VIEW = "application/vnd.jupyter.widget-view+json"
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


class Browser:
    """What a cell shows: a picture everywhere and, with a front end, a widget.

    `view` is the QuestionView or RolloutView, None without a front end; `words` tell
    what the picture shows.
    """

    def __init__(self, figure: Figure, words: str, view=None):
        self.png, self.words, self.view = plots.png(figure), words, view
        plt.close(figure)  # or the cell would show it a second time

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data: dict = {"text/plain": self.words, "image/png": self.png}
        if self.view is not None:
            data[VIEW] = self.view.box._repr_mimebundle_()[VIEW]
        return data, {"image/png": {"alt": self.words}}


# Questions


@dataclass(frozen=True)
class Answered:
    """A question, the set it is in, and the row of every model that answered it."""

    item: Question
    level: str
    rows: Mapping[str, Mapping]

    def right(self) -> tuple[bool, ...]:
        """Whether base, SFT and GRPO are right."""
        return tuple(bool(self.rows[model]["correct"]) for model in tables.METHODS)


def questions(
    run: str | Path,
    data_dir: str | Path,
    general_dir: str | Path,
    sampling: Sampling,
    live: bool | None = None,
) -> Browser:
    """A browser of all questions that a run has answers to, by any of its methods.

    `live` says whether a widget can be used; None: if there is a front end. The picture
    is the first question of tables.gallery, at which the widget begins. Raises
    FileNotFoundError without predictions, ValueError where they are of other questions
    than those of the folders.
    """
    predictions = tables.read_predictions(Path(run))
    asked = tables.asked(data_dir, general_dir, tables.sets_of(predictions))
    answered = all_answered(predictions, asked)
    image_only = {entry.item.id for entry in answered if entry.item.video is None}
    first = {"id": answered[0].item.id, "kind": ""}
    pick = next(iter(tables.gallery(predictions, image_only)), first)
    (chosen,) = (entry for entry in answered if entry.item.id == pick["id"])
    figure = _question_figure(chosen, sampling, pick["kind"])
    view = None
    if front_end() if live is None else live:
        attended = read_attention(Path(run))
        view = QuestionView(answered, attended, sampling, chosen.item.id)
    return Browser(figure, question_words(chosen, pick["kind"]), view)


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
        Answered(asked[key], level, by_question[level, key])
        for level, key in by_question
    ]


def read_attention(run: Path) -> dict[str, dict[str, dict]]:
    """{id: {method: its row}} of what lib.attention recorded; {} without records."""
    found: dict[str, dict[str, dict]] = {}
    for model in tables.METHODS:
        path = attention.rows_file(run, model, attention.OWN)
        for row in records.read_jsonl(path) if path.exists() else []:
            if "left_out" not in row:
                found.setdefault(row["id"], {})[model] = row
    return found


def select(
    answered: Sequence[Answered],
    level: str = ANY,
    domain: str = ANY,
    who: str = ANY,
    without_video: bool = False,
) -> list[Answered]:
    """The questions that pass all filters; `who` is a key of WHO."""
    return [
        entry
        for entry in answered
        if level in (ANY, entry.level)
        and domain in (ANY, entry.item.domain)
        and WHO[who](*entry.right())
        and not (without_video and entry.item.video is not None)
    ]


def question_words(entry: Answered, kind: str) -> str:
    """What the picture of a question shows, for who cannot see it."""
    said = [
        f"{plots.LABELS[model]} answers {_verdict(entry.rows[model])}"
        for model in tables.METHODS
    ]
    options = " ".join(
        f"{letter}. {option};"
        for letter, option in zip("ABCDE", entry.item.options, strict=False)
    )
    why = f" ({kind})" if kind else ""
    return (
        f"Question {entry.item.id}{why} with its frames: {entry.item.text} {options} "
        f"right is {entry.item.gold}. {', '.join(said)}."
    )


def _verdict(row: Mapping) -> str:
    return question_pages.answer_words(row["first_letter"], row["gold"])


def _question_figure(entry: Answered, sampling: Sampling, kind: str) -> Figure:
    clip = still = None
    try:
        clip, still = question_media(entry.item, sampling)
    except BadVideo as bad:
        kind = f"{kind}   (its pictures cannot be shown: {bad.path.name} {bad.why})"
    answers = {model: entry.rows[model] for model in tables.METHODS}
    return question_plots.question(entry.item, clip, still, answers, kind)


class Stepper:
    """Two buttons and a slider over positions; `show` is called at every move."""

    def __init__(self, show: Callable[[], None]):
        self.show, self.number, self.moving = show, 0, False
        self.previous = widgets.Button(icon="arrow-left", tooltip="previous")
        self.next = widgets.Button(icon="arrow-right", tooltip="next")
        self.slider = widgets.IntSlider(
            value=1, min=1, max=1, readout=False, continuous_update=False
        )
        self.count = widgets.Label()
        for button in (self.previous, self.next):
            button.layout.width = "44px"
        self.previous.on_click(lambda _: self.move(-1))
        self.next.on_click(lambda _: self.move(1))
        self.slider.observe(lambda _: self._moved(), "value")
        parts = [self.previous, self.slider, self.next, self.count]
        self.box = widgets.HBox(parts)

    @property
    def at(self) -> int:
        """The position, from 0."""
        return self.slider.value - 1

    def move(self, by: int) -> None:
        self.slider.value += by  # the slider stays within its ends

    def reset(self, number: int, at: int) -> None:
        """There are `number` positions now, and this is the one to show."""
        self.moving = True
        self.number, self.slider.max = number, max(1, number)
        self.slider.value = at + 1
        self.moving = False
        self._moved()

    def _moved(self) -> None:
        if self.moving:
            return
        self.previous.disabled = self.at <= 0
        self.next.disabled = self.at >= self.number - 1
        self.slider.disabled = self.number < 2
        self.show()


class QuestionView:
    """The widget of `questions`: `box`, with its controls as attributes."""

    def __init__(
        self,
        answered: Sequence[Answered],
        attended: Mapping[str, Mapping[str, Mapping]],
        sampling: Sampling,
        first: str,
    ):
        self.answered, self.attended, self.sampling = answered, attended, sampling
        self.found: list[Answered] = list(answered)
        self.shown, self.filtering = first, False
        levels = list(dict.fromkeys(entry.level for entry in answered))
        self.level = widgets.Dropdown(options=[ANY, *levels], description="set")
        self.domain = widgets.Dropdown(options=[ANY], description="domain")
        self.who = widgets.Dropdown(options=list(WHO), description="who is right")
        self.without_video = widgets.Checkbox(description="only without video")
        self.jump = widgets.Text(
            placeholder=first, description="go to", continuous_update=False
        )
        self.look = widgets.ToggleButton(
            description="where they look",
            icon="eye",
            tooltip="attention over the frames, where it was written down",
        )
        self.message = widgets.Label()
        self.page = widgets.HTML()
        self.steps = Stepper(self._show)
        for control in (self.level, self.domain, self.who, self.without_video):
            control.observe(lambda _: self.filter(), "value")
        self.jump.observe(lambda _: self._jump(), "value")
        self.look.observe(lambda _: self._show(), "value")
        self.box = self._arranged()
        self.filter()

    def _arranged(self) -> widgets.VBox:
        filters = [self.level, self.domain, self.who, self.without_video]
        for control in (self.level, self.domain, self.who, self.jump):
            control.layout.width = "250px"
        wrapped = widgets.Layout(flex_flow="row wrap")
        moves = [self.steps.box, self.jump, self.look, self.message]
        lines = [widgets.HBox(line, layout=wrapped) for line in (filters, moves)]
        return widgets.VBox([*lines, self.page])

    def filter(self) -> None:
        """Read the filters; stay at the question that is shown, if it passes them."""
        if self.filtering:
            return
        self._offer_domains()
        self.found = select(
            self.answered,
            self.level.value,
            self.domain.value,
            self.who.value,
            self.without_video.value,
        )
        ids = [entry.item.id for entry in self.found]
        at = ids.index(self.shown) if self.shown in ids else 0
        self.steps.reset(len(ids), at)

    @contextmanager
    def _changing_filters(self) -> Iterator[None]:
        """Inside, a filter can be set without being applied at once."""
        before, self.filtering = self.filtering, True
        yield
        self.filtering = before

    def _offer_domains(self) -> None:
        """The domains of the chosen set; another set may not have the chosen one."""
        entries = select(self.answered, self.level.value)
        names = {entry.item.domain for entry in entries if entry.item.domain}
        chosen = self.domain.value
        with self._changing_filters():
            self.domain.options = [ANY, *sorted(names)]
            self.domain.value = chosen if chosen in names else ANY
        self.domain.disabled = not names

    def _jump(self) -> None:
        wanted = self.jump.value.strip()
        if not wanted:
            return
        if wanted not in {entry.item.id for entry in self.answered}:
            known = self.answered[0].item.id
            self.message.value = f"no question {wanted}; ids look like {known}"
            return
        if wanted not in {entry.item.id for entry in self.found}:
            with self._changing_filters():
                for control in (self.level, self.domain, self.who):
                    control.value = ANY
                self.without_video.value = False
        self.shown = wanted
        self.filter()
        self.jump.value = ""  # so that the same id can be asked for again

    def _show(self) -> None:
        """Draw the question at the slider's position."""
        self.message.value = ""
        self.steps.count.value = f"{self.steps.at + 1} of {len(self.found)}"
        if not self.found:
            self.steps.count.value = "0 of 0"
            self.page.value = "<p>No question passes all filters.</p>"
            return
        entry = self.found[self.steps.at]
        self.shown = entry.item.id
        attended = self.attended.get(entry.item.id, {})
        self.look.disabled = not attended
        self.page.value = question_pages.question_page(
            entry.item,
            entry.rows,
            self.sampling,
            attended if self.look.value else {},
        )


# Rollouts


def rollouts(
    run: str | Path, data_dir: str | Path, label: str = "grpo", live: bool | None = None
) -> Browser:
    """A browser of the groups that were watched while a method trained.

    Choose a watched question and slide over the steps. The picture is the first
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
    first = next(iter(groups.values()))
    shown = [first[at] for at in sorted({0, len(first) // 2, len(first) - 1})]
    figure = rollout_figures.over_training(items[first[0]["question_id"]], shown, label)
    view = None
    if front_end() if live is None else live:
        view = RolloutView(groups, items, label, trained_with(Path(run), label))
    return Browser(figure, rollout_words(shown, label), view)


def _watched_items(
    data_dir: str | Path, groups: Mapping[str, Sequence[Mapping]], path: Path
) -> dict[str, Question]:
    """The watched questions: text and media as the data folder has them, options as
    the run drew them."""
    data = resolve(data_dir)
    file = require(data / "annotations" / "training.jsonl", "run 01_data first")
    known = {item.id: item for item in read_training(file, data)}
    found = {}
    for key, rows in groups.items():
        if key not in known:
            raise ValueError(
                f"{path} holds {key}, which {file} has not: give the data_dir that it "
                "was trained on"
            )
        drawn = {"options": tuple(rows[0]["options"]), "gold": rows[0]["gold"]}
        found[key] = replace(known[key], **drawn)  # of the run's own seed
    return found


def trained_with(run: Path, label: str) -> Sampling:
    """The sampling of frames that a method was trained with, by its settings."""
    name = f"{label}_settings.json"
    for folder in ("adapters", "checkpoints"):
        path = run / folder / label / name
        if path.exists():
            return Sampling(**records.read_json(path)["settings"]["sampling"])
    return Sampling()


def rollout_words(rows: Sequence[Mapping], label: str) -> str:
    """What the picture of a watched question shows, for who cannot see it."""
    said = "; ".join(question_pages.group_words(row) for row in rows)
    return f"Rollouts of {plots.LABELS[label]} on {rows[0]['question_id']}: {said}."


class RolloutView:
    """The widget of `rollouts`: `box`, with its controls as attributes."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[Mapping]],
        items: Mapping[str, Question],
        label: str,
        sampling: Sampling,
    ):
        self.groups, self.items = groups, items
        self.label, self.sampling = label, sampling
        self.question = widgets.Dropdown(options=list(groups), description="question")
        self.page = widgets.HTML()
        self.steps = Stepper(self._show)
        self.question.observe(lambda _: self._choose(), "value")
        wrapped = widgets.Layout(flex_flow="row wrap")
        line = widgets.HBox([self.question, self.steps.box], layout=wrapped)
        self.box = widgets.VBox([line, self.page])
        self._choose()

    def _choose(self) -> None:
        """Show the chosen question at the position that the other one was at."""
        rows = self.groups[self.question.value]
        self.steps.reset(len(rows), min(self.steps.at, len(rows) - 1))

    def _show(self) -> None:
        rows = self.groups[self.question.value]
        row = rows[self.steps.at]
        self.steps.count.value = f"step {row['step']} of {rows[-1]['step']}"
        item = self.items[self.question.value]
        self.page.value = question_pages.group_page(
            item, row, self.label, self.sampling
        )
