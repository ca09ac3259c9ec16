"""The browsers, driven by their controls as a person would, and what they then show."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_run import write_run
from read_html import Page

from lib.data.video import Sampling
from lib.evaluate import tables
from lib.methods import COLORS, LABELS, METHODS
from lib.records import write_jsonl
from lib.show import browser, live, pages

SAMPLING = Sampling(8, height=56, width=56)
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & more"


@pytest.fixture(autouse=True)
def _figures():
    yield
    assert plt.get_fignums() == [], "a figure left open is shown twice"


@pytest.fixture
def headless(monkeypatch):
    for mark in live.FRONT_ENDS:
        monkeypatch.delenv(mark, raising=False)


@pytest.fixture(params=live.FRONT_ENDS[:1])
def front_end(headless, request, monkeypatch):
    monkeypatch.setenv(request.param, "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 x 12 questions; attention was recorded for two of them."""
    folder = write_run(tmp_path_factory.mktemp("run"), n=12)
    light, still = np.full((4, 2, 2), 0.01).tolist(), [[[0.02] * 2] * 2]
    rows = [
        {"id": "L1/0", "video_map": light, "still_map": still},
        {"id": "L1/2", "video_map": None, "still_map": still},
        {"id": "L1/3", "left_out": "an empty answer"},
    ]
    for model in METHODS:
        write_jsonl(tables.attention_file(folder, model, tables.OWN), rows)
    return folder


@pytest.fixture(scope="module")
def predictions(run):
    return tables.read_predictions(run)


@pytest.fixture
def asked(predictions, tiny_questions):
    """The questions that the run was asked; every third has no video."""
    found = {}
    for row in (row for rows in predictions.values() for row in rows):
        media = tiny_questions[int(row["id"].split("/")[1]) % 6]
        names = {key: row[key] for key in ("id", "level", "domain", "gold")}
        found[row["id"]] = replace(media, **names, options=tuple(row["options"]))
    return found


@pytest.fixture
def open_browser(run, predictions):
    return lambda asked: browser.questions(run, predictions, asked, SAMPLING)


@pytest.fixture
def view(front_end, open_browser, asked):
    return open_browser(asked).browser


@pytest.fixture
def page(view):
    """What stands below the controls, once one went to a question."""

    def page(name):
        view.go(name)
        return Page(view.page.value)

    return page


def control(view, kind):
    """The control beside the filters: of kind Text, or ToggleButton."""
    return next(c for c in view.box.children[0].children if type(c).__name__ == kind)


def test_without_a_front_end_it_is_one_question_as_html(
    headless, open_browser, predictions, asked
):
    data = open_browser(asked)._repr_mimebundle_()
    assert sorted(data) == ["text/html", "text/plain"]
    (pick, *_) = tables.gallery(predictions, set())
    item, words = asked[pick["id"]], Page(data["text/html"]).words
    for text in (f"{pick['id']} · {pick['kind']}", item.text, *item.options):
        assert text in words
    said = f"Question {pick['id']}, right is {item.gold}."
    assert data["text/plain"].startswith(said)
    assert f"GRPO: {item.gold}, right." in data["text/plain"]


@pytest.mark.parametrize("front_end", ["JPY_SESSION_NAME", "VSCODE_PID"], indirect=True)
def test_with_a_front_end_it_is_a_widget_and_the_question(
    front_end, open_browser, predictions, asked
):
    opened = open_browser(asked)
    data = opened._repr_mimebundle_()
    assert sorted(data) == [pages.WIDGET, "text/html", "text/plain"]
    assert data[pages.WIDGET]["model_id"] == opened.browser.box.model_id
    (pick, *_) = tables.gallery(predictions, set())
    assert pick["id"] in opened.html and opened.browser.name == pick["id"]


@pytest.mark.parametrize(
    ("who", "says"),
    [
        ("any", lambda base, sft, grpo: True),
        ("GRPO right, SFT wrong", lambda base, sft, grpo: grpo and not sft),
        ("SFT right, GRPO wrong", lambda base, sft, grpo: sft and not grpo),
        ("only GRPO right", lambda *right: right == (0, 0, 1)),
        ("only SFT right", lambda *right: right == (0, 1, 0)),
        ("only the base right", lambda *right: right == (1, 0, 0)),
        ("all three right", lambda *right: sum(right) == 3),
        ("all three wrong", lambda *right: sum(right) == 0),
    ],
)
def test_the_filter_of_who_is_right_does_what_it_says(view, predictions, who, says):
    assert len(view.found) == 48
    rows = [tables.by_id(predictions, model) for model in METHODS]
    view.controls["who"].value = who
    wanted = {k for k in rows[0] if says(*(own[k]["correct"] for own in rows))}
    assert {*view.found} == wanted
    place = [*view.found].index(view.name) + 1
    assert view.count.value == f"{place} of {len(wanted)}"


def test_sets_domains_and_missing_videos_filter_together(view, asked):
    assert view.controls["level"].options == ("any", "L1", "L2", "L3", "general")
    view.controls["level"].value = "L3"
    domains = ("any", "Daily life", "Hobbies", "Recreation", "Work")
    assert view.controls["domain"].options == domains
    view.controls["domain"].value = "Hobbies"
    assert [*view.found] == ["L3/1", "L3/5", "L3/9"]
    view.controls["without_video"].value = True
    assert [*view.found] == ["L3/5"] and asked["L3/5"].video is None
    own = view.found["L3/5"].items()
    others = (who for who, right in browser.WHO.items() if not right.items() <= own)
    view.controls["who"].value = next(others)
    assert "No question passes" in view.page.value and view.count.value == "0 of 0"
    assert view.previous.disabled and view.next.disabled
    view.controls["who"].value = "any"
    assert view.count.value == "1 of 1" and "L3/5" in view.page.value


def test_filters_keep_the_question_that_is_shown_if_it_passes(view):
    view.go("L3/5")
    view.controls["level"].value = "L3"
    assert view.name == "L3/5" and view.at.value == [*view.found].index("L3/5")
    view.controls["level"].value = "L2"
    assert view.count.value == "1 of 12" and view.name == "L2/0"


def test_buttons_and_slider_step_through_what_is_found(view):
    view.controls["level"].value = "L2"
    ids, view.at.value = [*view.found], 0
    assert view.previous.disabled and not view.next.disabled
    view.next.click()
    assert view.name == ids[1] and view.count.value == "2 of 12"
    assert ids[1] in Page(view.page.value).words
    view.previous.click()
    assert view.name == ids[0]
    view.at.value = 11
    assert view.name == ids[-1] and view.next.disabled


def test_a_jump_opens_the_filters_where_it_must(view):
    jump = control(view, "Text")
    view.controls["level"].value = "L1"
    view.controls["who"].value = "all three wrong"
    jump.value = " L3/7 "
    assert view.name == "L3/7" and len(view.found) == 48
    assert (view.controls["level"].value, view.controls["who"].value) == ("any", "any")
    assert "L3/7" in Page(view.page.value).words
    view.next.click()
    jump.value = "L3/7"
    assert view.name == "L3/7", "the same id can be asked for again"
    jump.value = "L9/1"
    assert view.count.value == "no question L9/1; ids look like L1/2"
    assert view.name == "L3/7"


def test_a_page_shows_pictures_options_and_every_answer(page, asked, predictions):
    shown, item = page("L1/0"), asked["L1/0"]
    assert shown.alts == [f"frame {n} of 8" for n in range(1, 9)] + ["the still image"]
    assert item.text in shown.words and shown.fetched() == []
    for letter, option in zip("ABCD", item.options, strict=True):
        mark = " ← right answer" if letter == item.gold else ""
        assert f"{letter}. {option}{mark}" in shown.words
    for model in ("base", "sft", "grpo", "base-direct"):
        row = tables.by_id(predictions, model)["L1/0"]
        verdict = f"{row['first_letter']}, {'right' if row['correct'] else 'wrong'}"
        verdict = verdict if row["first_letter"] else "no answer"
        assert f"{LABELS[model]}: {verdict} {row['completion']}" in shown.words
        assert COLORS[model] in str(shown.elements)


def test_a_video_that_cannot_be_read_is_told_in_words(
    front_end, open_browser, asked, tmp_path
):
    gone = {k: replace(one, video=tmp_path / "gone.mp4") for k, one in asked.items()}
    found = open_browser(gone)
    for html in (found.html, found.browser.page.value):
        assert "Its pictures cannot be shown: gone.mp4 is missing." in Page(html).words


def test_attention_is_shown_where_it_was_recorded(view, page):
    look = control(view, "ToggleButton")
    assert len(page("L1/0").alts) == 9 and not look.disabled
    look.value = True
    alts = page("L1/0").alts
    assert len(alts) == 9 + 3 * 5
    assert alts[9] == "frames 1–2: 4.0 % of the attention of base"
    assert alts[-1] == "still: 8.0 % of the attention of GRPO"
    shown = page("L1/2")  # has no video
    assert "No video" in shown.words and shown.alts[0] == "the still image"
    assert shown.alts[1] == "still: 8.0 % of the attention of base"
    assert len(page("L1/3").alts) == 9 and look.disabled  # was left out


# Rollouts over training

STEPS = (0, 10, 20, 30, 40)


def rollout(text, reward, advantage, truncated=False):
    rewards = {"accuracy": reward, "format": 0.5}
    facts = {"text": text, "rewards": rewards, "reward": reward + 0.5}
    return facts | {"advantage": advantage, "tokens": 12, "truncated": truncated}


def watched_row(step, question):
    said = f"<think>at {step}</think><answer>B</answer>"
    group = [rollout(said, 1.0, 1.5), rollout(NASTY, 0.0, -0.5, truncated=True)]
    if step == 10:
        group = [rollout(said, 1.0, 0.0)] * 2
    row = {"step": step, "question_id": question.id, "prompt": "", "gold": "B"}
    return row | {"options": list(question.options), "rollouts": group}


@pytest.fixture
def trained(tmp_path, tiny_questions):
    """A run whose GRPO was watched on two questions."""
    rows = [watched_row(step, item) for step in STEPS for item in tiny_questions[:2]]
    write_jsonl(tmp_path / "watched_grpo.jsonl", rows)
    return tmp_path


def rollouts(run, questions, label="grpo"):
    return browser.rollouts(run, questions[:2], Sampling(4, height=56, width=56), label)


def test_rollouts_are_three_steps_without_a_front_end(
    headless, trained, tiny_questions
):
    view = rollouts(trained, tiny_questions)
    page = Page(view.html)
    assert view.browser is None and len(page.alts) == 5
    assert [step for step in STEPS if f"at {step}" in page.words] == [0, 20, 40]
    steps = (f"step {step}: mean reward 1.00 of 2 rollouts" for step in (0, 20, 40))
    assert view.words == f"Rollouts of GRPO on training/0: {'; '.join(steps)}."


def test_the_slider_goes_over_the_steps_of_the_chosen_question(
    front_end, trained, tiny_questions
):
    found = rollouts(trained, tiny_questions)
    view = found.browser
    assert view.box.model_id == found._repr_mimebundle_()[pages.WIDGET]["model_id"]
    assert view.count.value == "step 0 of 40"
    for step in STEPS[1:]:
        view.next.click()
        assert view.count.value == f"step {step} of 40"
        assert f"at {step}" in Page(view.page.value).words
    assert view.next.disabled
    view.controls["question"].value = "training/1"
    assert view.count.value == "step 40 of 40"
    assert "training/1" in Page(view.page.value).words


def test_a_group_shows_texts_rewards_and_advantages(front_end, trained, tiny_questions):
    view = rollouts(trained, tiny_questions).browser
    page = Page(view.page.value)
    assert len(page.alts) == 5, "frames as the policy saw them: 4, and the still"
    for words in (
        "1: B, right",
        "2: no answer",
        "GRPO, step 0: mean reward 1.00 of 2 rollouts",
        "reward 1.5 (accuracy 1, format 0.5); 12 tokens; advantage +1.50",
        "reward 0.5 (accuracy 0, format 0.5); 12 tokens; advantage −0.50",
        "[cut off at the token limit]",
        NASTY,
    ):
        assert words in page.words
    assert page.all("script") == []
    blue = COLORS["grpo"]
    for bar in (f"({blue} 0 0) left / 60%", f"({blue} 0 0) right / 20%"):
        assert bar in str(page.elements), "above the mean: to the right"
    view.at.value = 1
    assert "nothing is learned from this group" in Page(view.page.value).words


def test_a_method_without_advantages_shows_none(headless, trained, tiny_questions):
    row = watched_row(0, tiny_questions[0])
    for own in row["rollouts"]:
        own["advantage"] = None
    write_jsonl(trained / "watched_ppo.jsonl", [row])
    found = rollouts(trained, tiny_questions, "ppo")
    assert "advantage" not in Page(found.html).words
    assert "nothing is learned" not in found.words


def test_what_was_not_watched_so_is_told_what_to_run(trained, tiny_questions):
    again = "run 03_grpo with watched questions for"
    missing = rf"care.jsonl is missing: {again} care"
    with pytest.raises(FileNotFoundError, match=missing):
        rollouts(trained, tiny_questions, "care")
    (trained / "watched_care.jsonl").touch()
    with pytest.raises(ValueError, match=rf"care.jsonl is empty: {again} care"):
        rollouts(trained, tiny_questions, "care")
    turned = [replace(one, options=one.options[::-1]) for one in tiny_questions]
    for others in ([], turned):
        with pytest.raises(ValueError, match="holds training/0, which is not asked so"):
            rollouts(trained, others)
