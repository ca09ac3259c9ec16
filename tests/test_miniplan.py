"""MiniPlan in one picture: its questions are what they are called and are solved."""

from dataclasses import replace

from read_html import Page

from lib.data.video import Sampling
from lib.mini import still_reader, world
from lib.show import miniplan, pages

EXAMPLES = [miniplan.example(*wanted) for wanted in miniplan.QUESTIONS.values()]


def test_the_questions_are_what_they_are_called():
    plain, other, dried = EXAMPLES
    assert plain.actions == plain.plan[:2]
    assert {*other.actions} - {*other.plan} and other.answer == other.plan[1]
    assert not world.effects_at(dried, dried.frames - 1).any()
    ceilings = [still_reader.still_ceiling(e) for e in EXAMPLES]
    assert ceilings[:2] == [1, 1] and ceilings[2] < 1


def test_the_picture_names_the_marks_in_order_and_leads_to_each_answer():
    page = Page(str(miniplan.view().html))
    assert page.unclosed == [] and len(page.alts) == 6 + 4 + 3 * 4 and all(page.alts)
    assert "1 wash ring soak hose rinse 2 cut split" in page.words
    assert "Not in the goal: tie tomato. It does not count. Done: one." in page.words
    for e in EXAMPLES:
        said = f"Next: {e.say(e.answer)}. The answer is {e.letter}."
        assert e.goal in page.words and said in page.words
        assert f"{e.letter}. {e.say(e.answer)}" in page.words


def test_a_question_to_solve_does_not_tell_its_answer(tiny_questions):
    item, sampling = tiny_questions[0], Sampling(8, height=56, width=56)
    told = pages.question(item, {}, sampling)
    asked = pages.question(replace(item, gold=""), {}, sampling)
    assert "right" in told.words and "right answer" in told.html
    assert "right" not in asked.words and "right answer" not in asked.html


def test_a_text_is_printed_as_it_is():
    shown = pages.text("one\n two <think> ")
    assert Page(shown.html).words == "one two <think>" and "<pre" not in shown.html
    assert "one\n two " in shown.html
