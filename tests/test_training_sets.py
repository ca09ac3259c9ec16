"""Shares, wrong labels and answers alone: what the sweeps over training data vary."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from lib import records
from lib.data import questions, training_sets
from lib.data.prompts import prompt_text
from lib.data.questions import Demonstration, Question
from lib.mini import benchmark


def made(number: int) -> Question:
    options = tuple(f"take cup {number}-{place}" for place in range(4))
    named = {"gold": "ABCD"[number % 4], "answer": options[number % 4]}
    return Question(f"training/{number}", "training", "What next?", options, **named)


ITEMS = [made(number) for number in range(600)]


def ids(items):
    return {item.id for item in items}


@pytest.fixture
def folder(tmp_path):
    """A data folder with five training questions; the first has no video."""
    items = benchmark.make_items(benchmark.Sizes(training=5, level=1))["training"]
    blind = replace(items[0].episode, image_only=True)
    items = [replace(items[0], episode=blind), *items[1:]]
    path = tmp_path / "annotations" / "training.jsonl"
    records.write_jsonl(path, [benchmark.record(item) for item in items])
    return tmp_path


def test_written_demonstrations_answer_the_training_questions(folder):
    with pytest.raises(ValueError, match="5 questions, but there are 2 texts"):
        training_sets.write_demonstrations(folder, ["one", "two"])
    assert not (folder / "annotations" / "training_with_cot.jsonl").exists()
    thoughts = [f"thought {number}" for number in range(5)]
    path = training_sets.write_demonstrations(folder, thoughts)
    assert questions.check(path)["faults"] == []
    read = questions.read_demonstrations(path, folder)
    asked = questions.read_training(path.with_name("training.jsonl"), folder)
    for q, thought, item in zip(asked, thoughts, read, strict=True):
        response = f"<think>{thought}</think><answer>{q.gold}</answer>"
        text = prompt_text(q, "think")
        assert item == Demonstration(q.id, text, q.video, q.image, response)
    assert read[0].video is None


def test_shares_have_their_size_and_are_nested():
    shares = [1 / 12, 1 / 6, 1 / 3, 2 / 3, 1]
    sets = [training_sets.share_of(ITEMS, share, seed=3) for share in shares]
    assert [len(items) for items in sets] == [50, 100, 200, 400, 600]
    for smaller, larger in itertools.pairwise(sets):
        assert ids(smaller) < ids(larger)


def test_a_share_depends_on_ids_and_seed_alone_and_keeps_the_order():
    mixed = random.Random(0).sample(ITEMS, len(ITEMS))
    taken = training_sets.share_of(mixed, 0.3, seed=1)
    assert ids(taken) == ids(training_sets.share_of(ITEMS, 0.3, seed=1))
    assert taken == [item for item in mixed if item.id in ids(taken)]
    assert ids(taken) != ids(training_sets.share_of(ITEMS, 0.3, seed=2))
    answers = training_sets.answers_alone(ITEMS)
    assert ids(taken) == ids(training_sets.share_of(answers, 0.3, seed=1))


def test_a_share_outside_its_bounds_or_of_nothing_is_refused():
    for share in (0, -0.1, 1.01):
        with pytest.raises(ValueError, match=f"share = {share} must lie above 0"):
            training_sets.share_of(ITEMS, share, seed=0)
    with pytest.raises(ValueError, match="nothing to take a share of"):
        training_sets.share_of([], 0.5, seed=0)
    for share in (-0.1, 1.01):
        with pytest.raises(ValueError, match=f"share = {share} must lie between"):
            training_sets.with_label_noise(ITEMS, share, seed=0)


@pytest.mark.parametrize("share", [0, 0.1, 0.2, 0.4, 1])
def test_noise_changes_gold_and_answer_of_exactly_that_share(share):
    noisy = training_sets.with_label_noise(ITEMS, share, seed=0)
    changed = [(old, new) for old, new in zip(ITEMS, noisy, strict=True) if old != new]
    assert len(changed) == share * len(ITEMS)
    for old, new in changed:
        assert new.gold != old.gold
        assert new.answer == new.options["ABCDE".index(new.gold)] != old.answer
        assert replace(new, gold=old.gold, answer=old.answer) == old


def test_wrong_labels_are_nested_seeded_and_spread_over_the_wrong_options():
    few, many, other = (
        training_sets.with_label_noise(ITEMS, share, seed)
        for share, seed in ((0.2, 0), (0.4, 0), (0.4, 1))
    )
    wrong = {new.id: new for old, new in zip(ITEMS, few, strict=True) if old != new}
    assert wrong.items() <= {item.id: item for item in many}.items()
    assert many != other
    places = [
        ("ABCD".index(new.gold) - "ABCD".index(old.gold)) % 4
        for old, new in zip(ITEMS, many, strict=True)
    ]
    moved = Counter(place for place in places if place)
    assert set(moved) == {1, 2, 3} and min(moved.values()) > 50
    twins = [replace(q, options=(*[q.answer] * 3, "else")) for q in ITEMS[:8]]
    noisy = training_sets.with_label_noise(twins, 1, seed=0)
    assert {(item.gold, item.answer) for item in noisy} == {("D", "else")}


def reasoned(question: Question, options: tuple[str, ...], chosen: str):
    """A demonstration with the options in another order than the question's."""
    text = prompt_text(replace(question, options=options), "think")
    letter = "ABCD"[options.index(chosen)]
    response = f"<think>Next.</think><answer>{letter}</answer>"
    return Demonstration(question.id, text, None, None, response)


FIRST = reasoned(ITEMS[0], ITEMS[0].options, ITEMS[0].answer)


def test_rejection_compares_the_options_text_and_not_its_letter():
    question = ITEMS[1]
    turned = question.options[::-1]
    right = reasoned(question, turned, question.answer)
    wrong = reasoned(question, turned, turned["ABCD".index(question.gold)])
    assert training_sets.kept_by_rejection([right, wrong], [question]) == [right]
    unread = replace(FIRST, response="The first.")
    assert training_sets.kept_by_rejection([unread], ITEMS) == []
    with pytest.raises(ValueError, match="demonstration x belongs to no training"):
        training_sets.kept_by_rejection([replace(FIRST, id="x")], ITEMS)


def test_lessons_are_named_after_their_adapters():
    both = training_sets.lessons("reasoning answers", [FIRST], ITEMS[:3])
    assert both == {
        "sft": [FIRST],
        "sft-answers": training_sets.answers_alone(ITEMS[:3]),
    }
    assert list(training_sets.lessons("answers", [], ITEMS)) == ["sft-answers"]
    (alone,) = training_sets.answers_alone(ITEMS[6:7])
    assert alone.response == "<answer>C</answer>"
    assert alone.text == prompt_text(ITEMS[6], "think")
    (steps,) = training_sets.lessons("steps", [], ITEMS[6:7])["sft-steps"]
    said = f"<think>Next is {ITEMS[6].answer}.</think><answer>C</answer>"
    assert steps == replace(alone, response=said)
    with pytest.raises(ValueError, match="'labels' is unknown: name some of reasoning"):
        training_sets.lessons("labels", [FIRST], ITEMS)
