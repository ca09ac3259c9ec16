"""Coherence: readers read what a plain forward would, and exact means exact."""

import pickle
import random
import shutil
from dataclasses import replace

import pytest
import torch

from lib import records
from lib.data import parts, questions
from lib.evaluate import coherence, evaluate, readers
from lib.model import encoding, models, prefix, scoring

# isort: split
import peft

from lib.data.prompts import messages, prompt_text
from lib.evaluate.coherence import TrainingReasoning
from lib.evaluate.readers import reasoning_of
from lib.methods import EXACT, METHODS
from lib.mini import benchmark, lessons, reasoning, truth, world

BASE = "lib/mini/base"
SETTINGS = evaluate.EvalSettings("think", max_new_tokens=1, batch_size=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    benchmark.write_annotations(root, benchmark.Sizes(12, level=12, general=18))
    return root


@pytest.fixture(scope="module")
def processor():
    return models.load_processor(BASE)


@pytest.fixture(scope="module")
def model():
    return models.load_model(BASE)


@pytest.fixture(scope="module")
def asked(data):
    """{set: its questions}."""
    return parts.read(data, data / "general", "L1 L2 L3 general")


def predicted(items, say):
    """Prediction rows with the completions `say(question)`."""
    return [evaluate.row(item, SETTINGS, say(item)) for item in items]


@pytest.fixture(scope="module")
def flawless(data):
    """What a reasoner who sees everything answers to a question."""
    said = reasoning.flawless(data)
    return lambda item: lessons.answer_text(said[item.id], item.gold)


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("<think> I see. </think><answer>B</answer>", "I see."),
        ("<think>cut off in the mid", "cut off in the mid"),
        ("<think>not closed <answer>B</answer>", "not closed"),
        ("<think>one</think><think>two</think>", "one"),
        ("<think>  </think><answer>B</answer>", None),
        ("<answer>B</answer>", None),
        ("", None),
    ],
)
def test_reasoning_is_what_stands_inside_the_tag(completion, found):
    assert reasoning_of(completion) == found


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("So the answer is A", True),
        ("It must be option A, as I said", True),
        ("I choose (A).", True),
        ("That leaves C.", True),
        ("A cup stands on the table. A man comes.", False),
        ("Vitamin-B and the Beatles", False),
        (None, False),
    ],
)
def test_a_reasoning_that_names_a_letter_is_marked(text, named):
    assert readers.names_letter(text) is named


def test_what_stands_in_the_training_reasoning():
    said = "<think>I see wash tomato. Next is cut tomato.</think><answer>B</answer>"
    training = TrainingReasoning([said])
    assert training.holds("I see wash  tomato. Next is cut tomato.")
    assert not training.holds("I see wash onion. Next is cut tomato.")
    assert not training.holds(None)
    # see-wash-onion-next breaks 4 of 5: "next is cut tomato" is left
    assert training.overlap("I see wash onion. Next is cut tomato.") == 1 / 5
    assert training.overlap("wash tomato") == training.overlap(None) == 0


def plain_probabilities(model, processor, item, thought):
    """Letter by letter, a whole sequence each, without any packing."""
    talk = messages(prompt_text(item, "think"), None, None)
    prompt, scores = prefix.make_prompt(model, encoding.encode(processor, [talk])), []
    for letter in "ABCDE"[: len(item.options)]:
        text = f"<think>{thought}</think><answer>{letter}"
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        scores.append(scoring.plain_scores(model, prompt, torch.tensor(ids)).sum())
    return torch.stack(scores).softmax(0).tolist()


def test_a_reader_gives_what_the_plain_forward_gives(
    model, processor, asked, flawless, tmp_path, monkeypatch
):
    """With 4 letters of one token each, and with 5 of which E has two."""
    monkeypatch.setattr(readers, "BATCH", 4)
    items = [*asked["L1"][:3], *asked["general"][8:11]]
    assert {len(item.options) for item in items} == {4, 5}
    rows, path = predicted(items, flawless), tmp_path / "readings.jsonl"
    read = readers.readings(model, processor, items, rows, path)
    thoughts = [reasoning_of(row["completion"]) for row in rows]
    others = [*thoughts[3:], *thoughts[:3]]
    for item, row, own, other in zip(items, read, thoughts, others, strict=True):
        assert row["id"] == item.id
        for variant, thought in (("own", own), ("other", other), ("none", "")):
            expected = plain_probabilities(model, processor, item, thought)
            assert list(row[variant].values()) == pytest.approx(expected, abs=2e-4)


def test_the_base_reads_a_stated_step_and_nothing_from_no_reasoning(
    model, processor, asked, tmp_path
):
    """Whatever step is stated, right or wrong, the reader comes to its letter."""
    items, rng = asked["L1"], random.Random(0)
    stated = {item.id: rng.randrange(4) for item in items}

    def say(item):
        return lessons.answer_text(f"Next is {item.options[stated[item.id]]}.", "A")

    rows, path = predicted(items, say), tmp_path / "r.jsonl"
    read = readers.readings(model, processor, items, rows, path)
    wanted = ["ABCD"[stated[item.id]] for item in items]

    def agrees(whose):
        found = [max(row[whose], key=row[whose].get) for row in read]
        return sum(map(str.__eq__, found, wanted))

    assert agrees("own") >= 9 and agrees("none") <= 7  # of 12, 3 by chance


def test_readings_of_other_completions_are_refused(
    model, processor, asked, flawless, tmp_path
):
    items, path = asked["L1"][:2], tmp_path / "r.jsonl"
    rows = predicted(items, flawless)
    readers.readings(model, processor, items, rows, path)
    rows[0]["completion"] = "<think>Next is cut onion.</think><answer>A</answer>"
    with pytest.raises(ValueError, match=r"other settings: read \("):
        readers.readings(model, processor, items, rows, path)
    with pytest.raises(ValueError, match="questions that were asked"):
        readers.readings(model, processor, items[:1], rows, tmp_path / "s.jsonl")


def test_the_truth_is_known_for_every_question_on_disk(data, asked):
    known = truth.known(data)
    training = questions.read_training(data / "annotations" / "training.jsonl", data)
    items = [*training, *(item for own in asked.values() for item in own)]
    assert set(known) == {item.id for item in items}
    for item in items:
        found = known[item.id]
        assert found.answer == item.answer
        assert found.episode.image_only == (item.video is None)
        if item.video and item.level != "general":
            assert found.seen == item.progress


def test_nothing_is_known_about_other_data(data, tmp_path):
    assert truth.known(tmp_path) == {}
    assert reasoning.checker(tmp_path) is None and reasoning.flawless(tmp_path) == {}
    folder = shutil.copytree(data, tmp_path / "edited")
    path = folder / "annotations" / "validation_L2.jsonl"
    path.write_text(path.read_text().replace('"sample_id": 3', '"sample_id": 93', 1))
    with pytest.raises(ValueError, match=r"validation_L2.jsonl, record 4"):
        truth.known(folder)


def planning_truth(image_only=False, **changed):
    """Wash tomato was done, then cut onion, which is not in the plan of four."""
    plan = tuple(world.Step(effect, 0) for effect in range(4))
    episode = replace(
        world.sample_episode(random.Random(0), "Daily life", 0),
        objects=(0, 2),
        positions=((30, 17), (82, 17)),
        plan=plan,
        actions=(world.Step(1, 1), plan[0]),
        answer=plan[1],
        options=plan,
        image_only=image_only,
    )
    options = ("wash tomato", "cut tomato", "cook tomato", "salt tomato")
    given = {"asks": "next step", "answer": "cut tomato"}
    return truth.Truth(episode, options=options, **given | changed)


SEEN = "I see cut onion, wash tomato"
ONE, TWO = f"{SEEN}: one done. Next is", f"{SEEN}: two done. Next is"
TAUGHT = "I see in my current observation cut onion, wash tomato"
UNCOUNTED = "right wrong right y n n n"
OTHER = "wrong - right y y n n"
UNREADABLE = "? ? ? ? ? ? ?"
STILL = {"image_only": True}  # shows no order
STEP = {"asks": "shown step", "answer": "wash tomato"}
LAST = {"asks": "last step", "answer": "wash tomato"}
OBJECT = {"asks": "shown object", "answer": "onion"}


@pytest.mark.parametrize(
    ("said", "letter", "expected", "about"),
    [
        # progress, count, next, consistent, follows, false step, false object
        (f"{ONE} cut tomato.", "B", "right right right y y n n", {}),
        (f"{ONE} cut tomato.", "A", "right right right n y n n", {}),
        (f"{TWO} cook tomato.", "C", "right wrong wrong y y n n", {}),
        (f"{ONE} cook tomato.", "C", "right right wrong y n n n", {}),
        (f"{SEEN}. Next is cut tomato.", "B", "right - right y y n n", {}),
        (f"{TAUGHT}: none done. Next action is cut tomato.", "B", UNCOUNTED, {}),
        (f"{SEEN}.", "B", "right - - - - n n", {}),
        ("I see wash tomato, cut onion. Next is cut tomato.", "B", OTHER, {}),
        ("I see wash tomato. Next is cut tomato.", "B", OTHER, {}),
        ("I see wash tomato. Next is cook tomato.", "C", "wrong - wrong y n n n", {}),
        ("I see cut tomato. Next is wash tomato.", "A", "wrong - wrong y y y n", {}),
        ("I see nothing. Next is wash tomato.", "A", "wrong - wrong y y n n", {}),
        ("I see wash carrot. Next is wash tomato.", "A", "wrong - wrong y y y y", {}),
        ("I see wash tomato, wash tomato. Next is cut tomato.", "B", OTHER, {}),
        ("Next is cut tomato.", "B", "- - right y - - n", {}),
        ("Next is cut kite.", "B", "- - wrong n - - y", {}),
        ("Next is cut tomato.", None, "- - right - - - n", {}),
        ("Next, cut the tomato.", "B", UNREADABLE, {}),
        ("I see wash tomato.Next is cut tomato.", "B", UNREADABLE, {}),
        ("Next is cut tomato. Next is cut onion.", "B", UNREADABLE, {}),
        (" Next is cut tomato.", "B", UNREADABLE, {}),
        ("", "B", UNREADABLE, {}),
        (None, "B", "- - - - - - -", {}),
        ("I see wash tomato, cut onion.", "B", "right - - - - n n", STILL),
        ("I see wash tomato. It is cook tomato.", "C", "wrong - wrong y n y n", STEP),
        ("It is cook tomato.", "C", "- - wrong y - y n", STEP),
        (f"{SEEN}. It is wash tomato.", "A", "right - right y y n n", LAST),
        (f"{SEEN}. It is cut onion.", None, "right - wrong - n n n", LAST),
        ("I see onion, tomato. It is onion.", None, "right - right - y n n", OBJECT),
    ],
)
def test_what_a_completion_says_is_held_against_the_truth(
    said, letter, expected, about
):
    words = {"y": "yes", "n": "no", "-": "absent", "?": "unreadable"}
    wanted = [words.get(word, word) for word in expected.split()]
    found = reasoning.check(said, letter, planning_truth(**about))
    assert found == dict(zip(EXACT, wanted, strict=True))


def test_a_flawless_reasoner_is_right_in_everything(data):
    said = reasoning.flawless(data)
    for key, found in truth.known(data).items():
        letter = "ABCDE"[found.options.index(found.answer)]
        checked = reasoning.check(said[key], letter, found)
        counted = "right" if found.asks == "next step" else "absent"
        told = ["right", counted, "right", "yes", "yes", "no", "no"]
        assert list(checked.values()) == told


def test_rows_of_another_benchmark_are_refused(data, asked, flawless):
    exact = pickle.loads(pickle.dumps(reasoning.checker(data)))  # as launch sends it
    row = predicted(asked["L1"][:1], flawless)[0]
    row["options"] = row["options"][::-1]
    with pytest.raises(ValueError, match="other options than it has"):
        exact(row, "Next is cut onion.")


@pytest.fixture(scope="module")
def rows(asked, data, flawless, tmp_path_factory):
    """Of base, SFT and GRPO with known faults on L1; the adapters change nothing yet.
    GRPO gives the next letter to every third question."""
    run, items = tmp_path_factory.mktemp("run"), asked["L1"]

    def faulty(item):
        other = "ABCD"[("ABCD".index(item.gold) + 1) % 4]
        own = item if int(item.id[3:]) % 3 else replace(item, gold=other)
        return flawless(own)

    ways = {"base": lambda item: f"<answer>{item.gold}</answer>", "sft": flawless}
    for label, say in (ways | {"grpo": faulty, "base-begun": faulty}).items():
        rows = predicted(items, say)
        records.write_jsonl(run / f"predictions_{label}_L1.jsonl", rows)
    for label in ("sft", "grpo"):
        adapted = peft.get_peft_model(models.load_model(BASE), models.lora_config(2, 2))
        adapted.save_pretrained(run / "adapters" / label)
    labels = [*METHODS, "base-begun"]
    readers.read_run(BASE, run, {"L1": items}, "float32", False, labels)
    path = data / "annotations" / "training_with_cot.jsonl"
    demos = questions.read_demonstrations(path, data)
    training = TrainingReasoning(demo.response for demo in demos)
    given = training, reasoning.checker(data), reasoning.flawless(data)
    found = {label: coherence.rows_of(run, label, "L1", *given) for label in labels}
    for label, own in found.items():
        assert own == records.read_jsonl(run / f"coherence_{label}_L1.jsonl")
    return found


def test_known_faults_are_written_down(rows):
    """8 of GRPO's 12 letters are the stated step; the base gave no reasoning at all."""
    said = {label: [row["consistent"] for row in own] for label, own in rows.items()}
    assert said["base"] == ["absent"] * 12 and said["sft"] == ["yes"] * 12
    assert sorted(said["grpo"]) == ["no"] * 4 + ["yes"] * 8
    led = {label: sum(row["base_reader"] for row in own) for label, own in rows.items()}
    assert led["base"] == 0 and led["sft"] >= 11 and abs(led["grpo"] - 8) <= 1
    assert all(row["consistent_other"] for row in rows["sft"])


def test_begun_answers_are_read_by_the_base_that_gave_them(rows):
    for row in rows["base-begun"]:
        assert row["implied_own"] == row["implied_base"] is not None
    said = [row["consistent"] for row in rows["base-begun"]]
    assert said == [row["consistent"] for row in rows["grpo"]]  # the same words


def test_an_answer_without_reasoning_has_no_implied_letter(rows):
    row = rows["base"][0]
    assert row["implied_base"] is row["probabilities_base"] is None
    assert row["correct"] and not row["base_reader"]
    assert row["implied_base_none"] in "ABCD"
