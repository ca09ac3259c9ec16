"""The browsers, driven by their controls as a person would, and what they then show."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_run import edit_row, write_run
from read_html import Page

from lib.data.video import Sampling
from lib.evaluate import attention, tables
from lib.methods import COLORS, LABELS, METHODS
from lib.records import write_jsonl
from lib.show import browser, live, pages

SAMPLING = Sampling(8, height=56, width=56)
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & more"


def styles(page):
    return "".join(given.get("style") or "" for _, given in page.elements)


@pytest.fixture(autouse=True)
def _front_end(request, monkeypatch):
    """There is one, unless a test is marked as headless."""
    for mark in live.FRONT_ENDS:
        monkeypatch.delenv(mark, raising=False)
    if "headless" not in request.fixturenames:
        monkeypatch.setenv(live.FRONT_ENDS[0], "1")
    yield
    assert plt.get_fignums() == [], "a figure left open is shown twice"


@pytest.fixture
def headless():
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 x 12 questions; attention was recorded for two of them."""
    folder = write_run(tmp_path_factory.mktemp("run"), n=12)
    edit_row(folder / "predictions_grpo_L1.jsonl", 1, completion=NASTY)
    light, still = np.full((4, 2, 2), 0.01).tolist(), [[[0.02] * 2] * 2]
    rows = [
        {"id": "L1/0", "video_map": light, "still_map": still},
        {"id": "L1/2", "video_map": None, "still_map": still},
        {"id": "L1/3", "left_out": "an empty answer"},
    ]
    for model in METHODS:
        write_jsonl(attention.rows_file(folder, model, attention.OWN), rows)
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
def opened(run, predictions, asked):
    return browser.questions(run, predictions, asked, SAMPLING)


@pytest.fixture
def view(opened):
    return opened.browser


def right(predictions, model):
    """{id: whether it is right} of one method, from its files."""
    return {k: row["correct"] for k, row in tables.by_id(predictions, model).items()}


# What a cell holds


def test_without_a_front_end_it_is_one_question_as_html(
    headless, opened, predictions, asked
):
    data = opened._repr_mimebundle_()
    assert sorted(data) == ["text/html", "text/plain"]
    (pick, *_) = tables.gallery(predictions, set())
    item, words = asked[pick["id"]], Page(data["text/html"]).words
    assert f"{pick['id']} · {pick['kind']}" in words and item.text in words
    assert all(option in words for option in item.options)
    said = f"Question {pick['id']}, right is {item.gold}."
    assert data["text/plain"].startswith(said)
    assert f"GRPO: {item.gold}, right." in data["text/plain"]


@pytest.mark.parametrize("mark", live.FRONT_ENDS)
def test_with_a_front_end_it_is_a_widget_and_the_question(
    headless, run, predictions, asked, mark, monkeypatch
):
    monkeypatch.setenv(mark, "1")
    opened = browser.questions(run, predictions, asked, SAMPLING)
    data = opened._repr_mimebundle_()
    assert sorted(data) == [pages.WIDGET, "text/html", "text/plain"]
    assert data[pages.WIDGET]["model_id"] == opened.browser.box.model_id
    (pick, *_) = tables.gallery(predictions, set())
    assert pick["id"] in opened.html and opened.browser.name == pick["id"]


# Questions


def test_it_begins_with_all_questions_at_the_one_chosen_by_rule(view):
    assert len(view.found) == 48
    assert view.count.value == f"{[*view.found].index(view.name) + 1} of 48"
    assert view.controls["level"].options == ("any", "L1", "L2", "L3", "general")


@pytest.mark.parametrize("who", list(browser.WHO)[1:])
def test_the_filter_of_who_is_right_does_what_it_says(view, predictions, who):
    base, sft, grpo = (right(predictions, model) for model in METHODS)
    says = {
        "GRPO right, SFT wrong": lambda k: grpo[k] and not sft[k],
        "SFT right, GRPO wrong": lambda k: sft[k] and not grpo[k],
        "only GRPO right": lambda k: (base[k], sft[k], grpo[k]) == (0, 0, 1),
        "only SFT right": lambda k: (base[k], sft[k], grpo[k]) == (0, 1, 0),
        "only the base right": lambda k: (base[k], sft[k], grpo[k]) == (1, 0, 0),
        "all three right": lambda k: base[k] + sft[k] + grpo[k] == 3,
        "all three wrong": lambda k: base[k] + sft[k] + grpo[k] == 0,
    }[who]
    view.controls["who"].value = who
    wanted = {key for key in grpo if says(key)}
    assert {*view.found} == wanted
    assert view.count.value.endswith(f" of {len(wanted)}")


def test_sets_domains_and_missing_videos_filter_together(view, asked):
    view.controls["level"].value = "L3"
    domains = ("Daily life", "Hobbies", "Recreation", "Work")
    assert view.controls["domain"].options[1:] == domains
    view.controls["domain"].value = "Hobbies"
    assert [*view.found] == ["L3/1", "L3/5", "L3/9"]
    view.controls["without_video"].value = True
    assert [*view.found] == ["L3/5"] and asked["L3/5"].video is None
    view.controls["who"].value = next(
        who
        for who, right in browser.WHO.items()
        if not right.items() <= view.found["L3/5"].items()
    )
    assert "No question passes" in view.page.value and view.count.value == "0 of 0"
    assert view.previous.disabled and view.next.disabled
    view.controls["who"].value = "any"
    assert view.count.value == "1 of 1" and "L3/5" in view.page.value


def test_filters_keep_the_question_that_is_shown_if_it_passes(view):
    view.controls["domain"].value = "any"
    view.go("L3/5")
    view.controls["level"].value = "L3"
    assert view.name == "L3/5" and view.at.value == [*view.found].index("L3/5")
    view.controls["level"].value = "L2"
    assert view.count.value == "1 of 12" and view.name == "L2/0"


def test_buttons_and_slider_step_through_what_is_found(view):
    view.controls["level"].value = "L2"
    ids = [*view.found]
    view.at.value = 0
    assert view.previous.disabled and not view.next.disabled
    view.next.click()
    assert view.name == ids[1] and view.count.value == "2 of 12"
    assert ids[1] in Page(view.page.value).words
    view.previous.click()
    assert view.name == ids[0]
    view.at.value = 11
    assert view.name == ids[-1] and view.next.disabled


def text_field(view):
    """Where an id is typed."""
    (line, _) = view.box.children
    return next(one for one in line.children if type(one).__name__ == "Text")


def test_a_jump_to_what_is_filtered_out_opens_the_filters(view):
    view.controls["level"].value = "L1"
    view.controls["who"].value = "all three wrong"
    text_field(view).value = " L3/7 "
    assert view.name == "L3/7" and len(view.found) == 48
    assert (view.controls["level"].value, view.controls["who"].value) == ("any", "any")
    assert "L3/7" in Page(view.page.value).words
    view.next.click()
    text_field(view).value = "L3/7"
    assert view.name == "L3/7", "the same id can be asked for again"


def test_a_jump_to_nowhere_says_so_and_stays(view):
    before = view.name
    text_field(view).value = "L9/1"
    assert view.count.value == "no question L9/1; ids look like L1/2"
    assert view.name == before
    view.next.click()
    assert view.count.value.endswith(" of 48")


def test_a_page_shows_pictures_options_and_every_answer(view, asked, predictions):
    view.go("L1/0")
    page, item = Page(view.page.value), asked["L1/0"]
    assert page.alts == [f"frame {n} of 8" for n in range(1, 9)] + ["the still image"]
    assert item.text in page.words and page.fetched() == []
    for letter, option in zip("ABCD", item.options, strict=True):
        mark = " ← right answer" if letter == item.gold else ""
        assert f"{letter}. {option}{mark}" in page.words
    for model in ("base", "sft", "grpo", "base-direct"):
        row = tables.by_id(predictions, model)["L1/0"]
        verdict = f"{row['first_letter']}, {'right' if row['correct'] else 'wrong'}"
        verdict = verdict if row["first_letter"] else "no answer"
        assert f"{LABELS[model]}: {verdict}" in page.words
        assert row["completion"] in page.words
        assert COLORS[model] in styles(page)


def test_what_a_model_wrote_is_text_and_never_markup(view):
    view.go("L1/1")
    page = Page(view.page.value)
    assert NASTY in page.words and page.unclosed == []
    assert page.all("script") == [] and len(page.alts) == 9


def test_a_video_that_cannot_be_read_is_told_in_words(
    run, predictions, asked, tmp_path
):
    gone = {k: replace(one, video=tmp_path / "gone.mp4") for k, one in asked.items()}
    found = browser.questions(run, predictions, gone, SAMPLING)
    for html in (found.html, found.browser.page.value):
        assert "Its pictures cannot be shown: gone.mp4 is missing." in Page(html).words


def test_attention_is_shown_where_it_was_recorded(view):
    (line, _) = view.box.children
    look = next(one for one in line.children if type(one).__name__ == "ToggleButton")
    view.go("L1/0")
    assert not look.disabled and len(Page(view.page.value).alts) == 9
    look.value = True
    alts = Page(view.page.value).alts
    assert len(alts) == 9 + 3 * 5
    assert alts[9] == "frames 1–2: 4.0 % of the attention of base"
    assert alts[-1] == "still: 8.0 % of the attention of GRPO"
    view.go("L1/2")  # has no video
    page = Page(view.page.value)
    assert page.alts[:2] == [
        "the still image",
        "still: 8.0 % of the attention of base",
    ]
    assert "No video" in page.words
    view.go("L1/3")  # was left out
    assert look.disabled and len(Page(view.page.value).alts) == 9


def test_answers_to_other_questions_are_refused(run, predictions, asked):
    del asked["L2/3"]
    with pytest.raises(ValueError, match="L2/3 has answers, but is no question of L2"):
        browser.questions(run, predictions, asked, SAMPLING)


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
    words = Page(view.html).words
    assert view.browser is None and len(Page(view.html).alts) == 5
    assert all(f"at {step}" in words for step in (0, 20, 40)) and "at 10" not in words
    assert view.words == (
        "Rollouts of GRPO on training/0: step 0: mean reward 1.00 of 2 rollouts; "
        "step 20: mean reward 1.00 of 2 rollouts; "
        "step 40: mean reward 1.00 of 2 rollouts."
    )


def test_the_slider_goes_over_the_steps_of_the_chosen_question(trained, tiny_questions):
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


def test_a_group_shows_texts_rewards_and_advantages(trained, tiny_questions):
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
    assert f"({blue} 0 0) left / 60%" in styles(page), "above the mean: to the right"
    assert f"({blue} 0 0) right / 20%" in styles(page)
    view.at.value = 1
    assert "nothing is learned from this group" in Page(view.page.value).words


def test_a_method_without_advantages_shows_none(trained, tiny_questions):
    row = watched_row(0, tiny_questions[0])
    for own in row["rollouts"]:
        own["advantage"] = None
    write_jsonl(trained / "watched_ppo.jsonl", [row])
    found = rollouts(trained, tiny_questions, "ppo")
    assert "advantage" not in Page(found.browser.page.value).words
    assert "nothing is learned" not in found.words


def test_what_was_not_watched_so_is_told_what_to_run(trained, tiny_questions):
    again = "run 03_grpo with watched questions for"
    with pytest.raises(
        FileNotFoundError, match=rf"care.jsonl is missing: {again} care"
    ):
        rollouts(trained, tiny_questions, "care")
    (trained / "watched_care.jsonl").touch()
    with pytest.raises(ValueError, match=rf"care.jsonl is empty: {again} care"):
        rollouts(trained, tiny_questions, "care")
    for others in (
        [],
        [replace(one, options=one.options[::-1]) for one in tiny_questions],
    ):
        with pytest.raises(ValueError, match="holds training/0, which is not asked so"):
            rollouts(trained, others)
