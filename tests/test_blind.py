"""The reader without a video: it finds a leak where there is one, and only there."""

import random

import pytest
import torch

from lib.data import blind
from lib.data.blind import features
from lib.data.questions import Question


def make_question(number: int, leak: bool) -> Question:
    rng = random.Random(number)
    options = rng.sample(["wash cup", "cut bread", "dry pan", "fill pot"], 4)
    gold = rng.randrange(4)
    goal = options[gold].split()[0] if leak else "finish"
    text = f"What action should I take next in order to {goal}?"
    named = {"gold": "ABCD"[gold], "answer": options[gold]}
    return Question(f"training/{number}", "training", text, tuple(options), **named)


@pytest.mark.parametrize(("leak", "low", "high"), [(True, 0.95, 1), (False, 0, 0.35)])
def test_it_finds_a_leak_and_nothing_else(leak, low, high):
    questions = [make_question(number, leak) for number in range(600)]
    right = blind.right(blind.fit(questions[:300]), questions[300:])
    assert low <= sum(right) / len(right) <= high


def test_two_fits_give_the_same_weights():
    """The sum of a feature's gradients must not hang on the order of the threads."""
    torch.set_num_threads(3)
    questions = [make_question(number, number % 2) for number in range(500)]
    first, second = (blind.fit(questions) for _ in range(2))
    torch.set_num_threads(1)
    assert (first == second).all()


def test_features_are_the_same_in_every_process():
    question = make_question(0, leak=True)
    assert features(question, 0)[:2] == features(make_question(0, True), 0)[:2]
    assert features(question, 0)[0] == 12038
