"""The prompts, character by character."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.data.prompts import DIRECT, THINK_ANSWER, messages, option_lines, prompt_text
from lib.data.questions import Question


def question(options):
    return Question(
        id="L1/115",
        level="L1",
        text="What action should I take next in order to store cereal?",
        options=options,
        gold="A",
        answer=options[0],
        goal="store cereal",
        domain="",
        scenario="",
        progress=(),
        video=None,
        image=Path("115.png"),
    )


FOUR = ("put box away", "take bag", "open cupboard", "put bag into box")


def test_the_paper_prompt_is_the_released_string():
    # QUESTION_TEMPLATE.format(Question=problem), typed from the released infer.py
    assert prompt_text(question(FOUR), "think") == (
        "What action should I take next in order to store cereal?\n"
        "A. put box away\n"
        "B. take bag\n"
        "C. open cupboard\n"
        "D. put bag into box\n"
        " Output the thinking process in <think> </think> and final answer in <answer> "
        "</answer> tags, i.e., <think> reasoning process here </think><answer> answer "
        "here </answer>. "
    )


def test_the_instruction_keeps_its_odd_spaces():
    assert THINK_ANSWER.startswith(" Output")
    assert THINK_ANSWER.endswith("</answer>. ")
    assert "  " not in THINK_ANSWER
    assert "\n" not in THINK_ANSWER


def test_the_direct_prompt_differs_in_the_last_line_only():
    think = prompt_text(question(FOUR), "think").split("\n")
    direct = prompt_text(question(FOUR), "direct").split("\n")
    assert direct[:-1] == think[:-1]
    assert direct[-1] == DIRECT
    assert "<" not in DIRECT


def test_letters_follow_the_number_of_options():
    five = prompt_text(question((*FOUR, "leave")), "think")
    assert "\nD. put bag into box\nE. leave\n Output" in five
    assert "E. " not in prompt_text(question(FOUR), "think")


def test_option_text_is_not_touched():
    assert option_lines((" a  b ", "{c}", "é")) == "A.  a  b \nB. {c}\nC. é"


@pytest.mark.parametrize("options", [("one",), ("x",) * 6])
def test_too_few_or_too_many_options(options):
    with pytest.raises(ValueError, match="between 2 and 5"):
        option_lines(options)


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="'cot' is unknown"):
        prompt_text(question(FOUR), "cot")


@pytest.mark.parametrize("options", [FOUR, (*FOUR[:3], "cut off \ud83d")])
def test_half_a_character_is_an_error_that_names_the_question(options):
    asked = replace(question(options), text="which \udc00?" if options == FOUR else "x")
    with pytest.raises(ValueError, match=f"question {asked.id}: .*surrogates"):
        prompt_text(asked, "think")


CLIP, STILL = np.zeros((4, 28, 28, 3), np.uint8), np.ones((28, 28, 3), np.uint8)


def test_video_comes_first_then_image_then_text():
    (message,) = messages("text", CLIP, STILL)
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["video", "image", "text"]
    assert message["content"][0]["video"] is CLIP
    assert message["content"][1]["image"] is STILL
    assert message["content"][2]["text"] == "text"


@pytest.mark.parametrize(
    ("clip", "still", "kinds"),
    [
        (None, STILL, ["image", "text"]),
        (CLIP, None, ["video", "text"]),
        (None, None, ["text"]),
    ],
)
def test_an_absent_visual_leaves_no_key_behind(clip, still, kinds):
    content = messages("text", clip, still)[0]["content"]
    assert [part["type"] for part in content] == kinds
    keys = json.dumps([sorted(part) for part in content])
    assert ("video" in keys) == (clip is not None)
    assert ("image" in keys) == (still is not None)
