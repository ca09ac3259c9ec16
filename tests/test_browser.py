"""The browsers, driven by their controls as a person would, and what they then show."""

from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_run import edit_row, write_run

from lib.analysis import plots
from lib.data.video import Sampling
from lib.evaluate import attention, tables
from lib.records import read_jsonl, write_json, write_jsonl
from lib.show import browser, live, pages

SAMPLING = Sampling(8, height=56, width=56)
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & more"


class Page(HTMLParser):
    """What a page holds: its tags, its pictures' texts and its words."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.alts, self.text, self.styles = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            found = dict(attrs)
            assert found["src"].startswith("data:image/png;base64,")
            self.alts.append(found["alt"])
        self.styles += dict(attrs).get("style") or ""

    def handle_data(self, data):
        if self.tags[-1] != "style" or "{" not in data:
            self.text += data


@pytest.fixture(autouse=True)
def _no_front_end(monkeypatch):
    for mark in live.FRONT_ENDS:
        monkeypatch.delenv(mark, raising=False)
    yield
    assert plt.get_fignums() == [], "a figure left open is shown twice"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_questions):
    """A run of 4 x 12 questions; attention was recorded for two of them."""
    folder = write_run(tmp_path_factory.mktemp("run"), n=12)
    edit_row(folder / "predictions_grpo_L1.jsonl", 1, completion=NASTY)
    for model in tables.METHODS:
        light = np.full((4, 2, 2), 0.01)
        rows = [
            {
                "id": "L1/0",
                "video_map": light.tolist(),
                "still_map": [[[0.02] * 2] * 2],
            },
            {"id": "L1/2", "video_map": None, "still_map": [[[0.02] * 2] * 2]},
            {"id": "L1/3", "left_out": "an empty answer"},
        ]
        path = attention.rows_file(folder, model, attention.OWN)
        write_jsonl(path, rows)
    return folder


@pytest.fixture
def asked(run, tiny_questions, monkeypatch):
    """The questions that the run was asked; every third has no video."""
    found = {}
    for rows in tables.read_predictions(run).values():
        for row in rows:
            media = tiny_questions[int(row["id"].split("/")[1]) % 6]
            names = {key: row[key] for key in ("id", "level", "domain", "gold")}
            options = tuple(row["options"])
            found[row["id"]] = replace(media, **names, options=options)
    monkeypatch.setattr(tables, "asked", lambda *_: found)
    return found


def opened(run, live=True):
    return browser.questions(run, "data", "general", SAMPLING, live)


@pytest.fixture
def view(run, asked):
    return opened(run).browser


def shown(view):
    """The id of the question that the page is of."""
    return view.found[view.at.value].item.id


def right(run, model):
    """{id: whether it is right} of one method, from its files."""
    return {
        row["id"]: row["correct"]
        for (own, _), rows in tables.read_predictions(run).items()
        if own == model
        for row in rows
    }


# What a cell holds


def test_without_a_front_end_it_is_one_question_as_html(run, asked):
    view = opened(run, live=None)
    data = view._repr_mimebundle_()
    assert sorted(data) == ["text/html", "text/plain"] and view.browser is None
    (pick, *_) = tables.gallery(tables.read_predictions(run), set())
    item, text = asked[pick["id"]], Page(data["text/html"]).text
    assert f"{pick['id']} · {pick['kind']}" in text and item.text in text
    assert all(option in text for option in item.options)
    right = f"Question {pick['id']}, right is {item.gold}."
    assert data["text/plain"].startswith(right)
    assert f"GRPO: {item.gold}, right." in data["text/plain"]


@pytest.mark.parametrize("mark", live.FRONT_ENDS)
def test_with_a_front_end_it_is_a_widget_and_the_question(
    run, asked, mark, monkeypatch
):
    monkeypatch.setenv(mark, "1")
    view = opened(run, live=None)
    data = view._repr_mimebundle_()
    assert sorted(data) == [pages.WIDGET, "text/html", "text/plain"]
    assert data[pages.WIDGET]["model_id"] == view.browser.box.model_id
    (pick, *_) = tables.gallery(tables.read_predictions(run), set())
    assert pick["id"] in view.html, "the widget begins with the question"
    assert pick["id"] in view.browser.page.value


# Questions


def test_it_begins_with_all_questions_at_the_one_chosen_by_rule(view, asked):
    assert len(view.found) == 48
    ids = [entry.item.id for entry in view.found]
    assert view.count.value == f"{ids.index(shown(view)) + 1} of 48"
    assert view.controls["level"].options == ("any", "L1", "L2", "L3", "general")


@pytest.mark.parametrize("who", list(browser.WHO)[1:])
def test_the_filter_of_who_is_right_does_what_it_says(view, run, who):
    base, sft, grpo = (right(run, model) for model in tables.METHODS)
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
    assert {entry.item.id for entry in view.found} == wanted
    assert view.count.value.endswith(f" of {len(wanted)}")


def test_sets_domains_and_missing_videos_filter_together(view):
    view.controls["level"].value = "L3"
    domains = ("Daily life", "Hobbies", "Recreation", "Work")
    assert view.controls["domain"].options[1:] == domains
    view.controls["domain"].value = "Hobbies"
    assert [e.item.id for e in view.found] == ["L3/1", "L3/5", "L3/9"]
    view.controls["without_video"].value = True
    assert [e.item.id for e in view.found] == ["L3/5"]
    assert all(e.item.video is None for e in view.found)


def test_filters_keep_the_question_that_is_shown_if_it_passes(view):
    view.controls["jump"].value = "L3/5"
    view.controls["level"].value = "L3"
    ids = [entry.item.id for entry in view.found]
    assert shown(view) == "L3/5" and view.at.value == ids.index("L3/5")
    view.controls["level"].value = "L2"
    assert view.count.value == "1 of 12" and shown(view) == "L2/0"


def test_buttons_and_slider_step_through_what_is_found(view):
    view.controls["level"].value = "L2"
    ids = [entry.item.id for entry in view.found]
    view.at.value = 0
    assert view.previous.disabled and not view.next.disabled
    view.next.click()
    assert shown(view) == ids[1] and view.count.value == "2 of 12"
    assert ids[1] in Page(view.page.value).text
    view.previous.click()
    assert shown(view) == ids[0]
    view.at.value = 11
    assert shown(view) == ids[-1] and view.next.disabled


def test_a_jump_to_what_is_filtered_out_opens_the_filters(view):
    view.controls["level"].value = "L1"
    view.controls["who"].value = "all three wrong"
    view.controls["jump"].value = " L3/7 "
    assert shown(view) == "L3/7" and len(view.found) == 48
    assert (view.controls["level"].value, view.controls["who"].value) == ("any", "any")
    assert "L3/7" in Page(view.page.value).text
    view.next.click()
    view.controls["jump"].value = "L3/7"
    assert shown(view) == "L3/7", "the same id can be asked for again"


def test_a_jump_to_nowhere_says_so_and_stays(view):
    before = shown(view)
    view.controls["jump"].value = "L9/1"
    assert view.count.value == "no question L9/1; ids look like L1/2"
    assert shown(view) == before
    view.next.click()
    assert view.count.value.endswith(" of 48")


def test_nothing_found_is_said(view):
    view.controls["level"].value, view.controls["domain"].value = "L3", "Hobbies"
    view.controls["without_video"].value = True
    (entry,) = view.found
    right_ = [entry.rows[model]["correct"] for model in tables.METHODS]
    fitting = [who for who, holds in browser.WHO.items() if holds(*right_)]
    view.controls["who"].value = next(who for who in browser.WHO if who not in fitting)
    assert "No question passes" in view.page.value
    assert view.count.value == "0 of 0"
    assert view.previous.disabled and view.next.disabled
    view.controls["who"].value = fitting[0]
    assert view.count.value == "1 of 1" and "L3/5" in view.page.value


def test_a_page_shows_pictures_options_and_every_answer(view, asked, run):
    view.controls["jump"].value = "L1/0"
    page, item = Page(view.page.value), asked["L1/0"]
    assert page.alts == [f"frame {n} of 8" for n in range(1, 9)] + ["the still image"]
    assert item.text in page.text
    for letter, option in zip("ABCD", item.options, strict=True):
        mark = "  ← right answer" if letter == item.gold else ""
        assert f"{letter}. {option}{mark}" in page.text
    (entry,) = (entry for entry in view.found if entry.item.id == "L1/0")
    assert set(entry.rows) == {"base", "sft", "grpo", "base-direct"}
    for model, row in entry.rows.items():
        verdict = f"{row['first_letter']}, {'right' if row['correct'] else 'wrong'}"
        verdict = verdict if row["first_letter"] else "no answer"
        assert f"{plots.LABELS[model]}: {verdict}" in page.text
        assert row["completion"] in page.text
        assert plots.COLORS[model] in page.styles


def test_a_question_without_a_video_says_so(view):
    view.controls["jump"].value = "L1/2"
    page = Page(view.page.value)
    assert page.alts == ["the still image"] and "No video" in page.text


def test_what_a_model_wrote_is_text_and_never_markup(view):
    view.controls["jump"].value = "L1/1"
    page = Page(view.page.value)
    assert NASTY in page.text
    assert "script" not in page.tags and page.tags.count("img") == len(page.alts) == 9


def test_a_video_that_cannot_be_read_is_told_in_words(run, asked, tmp_path):
    for key, item in asked.items():
        asked[key] = replace(item, video=tmp_path / "gone.mp4")
    found = opened(run)
    text = Page(found.browser.page.value).text
    assert "Its pictures cannot be shown: gone.mp4 is missing." in text
    assert "gone.mp4 is missing" in found.html


def test_attention_is_shown_where_it_was_recorded(view):
    view.controls["jump"].value = "L1/0"
    assert not view.controls["look"].disabled and len(Page(view.page.value).alts) == 9
    view.controls["look"].value = True
    alts = Page(view.page.value).alts
    assert len(alts) == 9 + 3 * 5
    assert alts[9] == "frames 1–2: 4.0 % of the attention of base"
    assert alts[-1] == "still: 8.0 % of the attention of GRPO"
    view.controls["jump"].value = "L1/2"  # has no video
    assert Page(view.page.value).alts[1] == "still: 8.0 % of the attention of base"
    view.controls["jump"].value = "L1/3"  # was left out
    assert view.controls["look"].disabled and len(Page(view.page.value).alts) == 9


def test_answers_to_other_questions_are_refused(run, asked):
    del asked["L2/3"]
    with pytest.raises(ValueError, match="L2/3 has answers, but is no question of L2"):
        opened(run)


# Rollouts over training


def test_rollouts_are_three_steps_without_a_front_end(trained):
    view = browser.rollouts(trained, trained)
    text = Page(view.html).text
    assert view.browser is None and len(Page(view.html).alts) == 5
    assert all(f"at {step}" in text for step in (0, 20, 40)) and "at 10" not in text
    assert view.words == (
        "Rollouts of GRPO on training/0: step 0: mean reward 1.00 of 2 rollouts; "
        "step 20: mean reward 1.00 of 2 rollouts; "
        "step 40: mean reward 1.00 of 2 rollouts."
    )


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
    options = list(question.options)
    row = {"step": step, "question_id": question.id, "prompt": "", "gold": "B"}
    return row | {"options": options, "rollouts": group}


@pytest.fixture
def trained(tmp_path, tiny_questions, monkeypatch):
    """A run whose GRPO was watched on two questions, in its folder of data."""
    watched = tiny_questions[:2]
    rows = [watched_row(step, item) for step in STEPS for item in watched]
    write_jsonl(tmp_path / "watched_grpo.jsonl", rows)
    settings = {"sampling": {"max_frames": 4, "height": 56, "width": 56}}
    write_json(tmp_path / "checkpoints/grpo/grpo_settings.json", {"settings": settings})
    write_jsonl(tmp_path / "annotations/training.jsonl", [])
    monkeypatch.setattr(browser, "read_training", lambda *_: tiny_questions)
    return tmp_path


def test_options_stand_as_the_seed_of_the_run_drew_them(trained, tiny_questions):
    path = trained / "watched_grpo.jsonl"
    rows = read_jsonl(path)
    drawn = [{**r, "options": r["options"][::-1], "gold": "C"} for r in rows]
    write_jsonl(path, drawn)
    first = tiny_questions[0]
    text = Page(browser.rollouts(trained, trained).html).text
    assert f"C. {first.options[::-1][2]}  ← right answer" in text
    assert first.text in text and first.options != first.options[::-1]


def test_the_slider_goes_over_the_steps_of_the_chosen_question(trained):
    found = browser.rollouts(trained, trained, live=True)
    view = found.browser
    assert view.box.model_id == found._repr_mimebundle_()[pages.WIDGET]["model_id"]
    assert view.count.value == "step 0 of 40"
    for step in STEPS[1:]:
        view.next.click()
        assert view.count.value == f"step {step} of 40"
        assert f"at {step}" in Page(view.page.value).text
    assert view.next.disabled
    view.controls["question"].value = "training/1"
    assert view.count.value == "step 40 of 40"
    assert "training/1" in Page(view.page.value).text


def test_a_group_shows_texts_rewards_and_advantages(trained, tiny_questions):
    view = browser.rollouts(trained, trained, live=True).browser
    page = Page(view.page.value)
    assert len(page.alts) == 5, "frames as the policy saw them: 4, and the still"
    assert "1: B, right" in page.text and "2: no answer" in page.text
    for words in (
        "GRPO, step 0: mean reward 1.00 of 2 rollouts",
        "reward 1.5 (accuracy 1, format 0.5); 12 tokens; advantage +1.50",
        "reward 0.5 (accuracy 0, format 0.5); 12 tokens; advantage −0.50",
        "[cut off at the token limit]",
        NASTY,
    ):
        assert words in page.text
    assert "script" not in page.tags
    blue = plots.COLORS["grpo"]
    assert f"({blue} 0 0) left / 60%" in page.styles, "above the mean: to the right"
    assert f"({blue} 0 0) right / 20%" in page.styles
    view.at.value = 1
    assert "nothing is learned from this group" in Page(view.page.value).text


def test_a_method_without_advantages_shows_none(trained, tiny_questions):
    row = watched_row(0, tiny_questions[0])
    for own in row["rollouts"]:
        own["advantage"] = None
    write_jsonl(trained / "watched_ppo.jsonl", [row])
    found = browser.rollouts(trained, trained, label="ppo", live=True)
    assert "advantage" not in Page(found.browser.page.value).text
    assert "nothing is learned" not in found.words


def test_a_run_that_watched_nothing_is_told_what_to_run(trained):
    with pytest.raises(
        FileNotFoundError, match=r"watched_care.jsonl is missing: run 03"
    ):
        browser.rollouts(trained, trained, label="care")
    (trained / "watched_care.jsonl").touch()
    with pytest.raises(ValueError, match=r"watched_care.jsonl is empty"):
        browser.rollouts(trained, trained, label="care")


def test_watched_questions_of_other_data_are_refused(trained, monkeypatch):
    monkeypatch.setattr(browser, "read_training", lambda *_: [])
    with pytest.raises(ValueError, match="holds training/0, which"):
        browser.rollouts(trained, trained)
