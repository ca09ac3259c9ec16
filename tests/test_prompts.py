"""The prompts, character by character."""

import numpy as np
import pytest

from lib.data.prompts import DIRECT, THINK_ANSWER, messages, option_lines, prompt_text
from lib.data.questions import Question

FOUR = ("put box away", "take bag", "open cupboard", "put bag into box")
CLIP, STILL = np.zeros((4, 28, 28, 3), np.uint8), np.ones((28, 28, 3), np.uint8)


def question(options):
    text = "What action should I take next in order to store cereal?"
    return Question("L1/115", "L1", text, options, gold="A", answer=options[0])


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


def test_the_direct_prompt_differs_in_the_last_line_only():
    think = prompt_text(question(FOUR), "think").split("\n")
    assert think[-1] == THINK_ANSWER
    direct = prompt_text(question(FOUR), "direct").split("\n")
    assert direct == [*think[:-1], DIRECT]
    assert "<" not in DIRECT


def test_letters_follow_the_number_of_options_and_texts_are_not_touched():
    five = prompt_text(question((*FOUR, "leave")), "think")
    assert "\nD. put bag into box\nE. leave\n Output" in five
    assert option_lines((" a  b ", "{c}", "é")) == "A.  a  b \nB. {c}\nC. é"
    with pytest.raises(ValueError, match="longer than argument 1"):
        option_lines(("x",) * 6)


@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("still", [None, STILL])
def test_video_comes_first_then_image_and_an_absent_one_leaves_no_key(clip, still):
    video = [] if clip is None else [{"type": "video", "video": clip}]
    image = [] if still is None else [{"type": "image", "image": still}]
    content = [*video, *image, {"type": "text", "text": "text"}]
    assert messages("text", clip, still) == [{"role": "user", "content": content}]
