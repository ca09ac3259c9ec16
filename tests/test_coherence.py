"""Coherence: readers read what a plain forward would, and exact means exact."""

import random
import re

import matplotlib
import pytest
import torch

matplotlib.use("Agg")


from lib import records
from lib.data import questions
from lib.evaluate import coherence, readers, tables
from lib.model import encoding, models

# isort: split
import peft

from lib.data.prompts import messages, prompt_text
from lib.evaluate.coherence import TrainingReasoning
from lib.evaluate.readers import reasoning_of
from lib.methods import METHODS
from lib.mini import benchmark, lessons, reasoning, truth, world

SIZES = benchmark.Sizes(training=12, level=12, general=18)
BASE = "lib/mini/base"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark.write(tmp_path_factory.mktemp("data") / "miniplan", SIZES)


@pytest.fixture(scope="module")
def processor():
    return models.load_processor(BASE)


@pytest.fixture(scope="module")
def model():
    return models.load_model(BASE)


@pytest.fixture(scope="module")
def asked(data):
    return tables.asked(data, data / "general", ("L1", "general"))


def of_set(asked, name):
    return [question for question in asked.values() if question.level == name]


def predicted(items, say):
    """Prediction rows with the completions `say(question)`."""
    rows = []
    for item in items:
        completion = say(item)
        letter = re.search("<answer>(.)", completion)
        letter = letter and letter[1]
        row = {"id": item.id, "gold": item.gold, "options": list(item.options)}
        row |= {"completion": completion, "first_letter": letter}
        rows.append(row | {"correct": letter == item.gold})
    return rows


def flawless(item, data):
    return lessons.answer_text(reasoning.flawless(data)[item.id], item.gold)


# --- what stands in a completion ------------------------------------------------------


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


# --- readers --------------------------------------------------------------------------


def plain_probabilities(model, processor, item, thought):
    """Letter by letter, a whole sequence each, without any packing."""
    talk = messages(prompt_text(item, "think"), None, None)
    prompt = encoding.encode(processor, [talk])["input_ids"][0].tolist()
    scores = []
    for letter in "ABCDE"[: len(item.options)]:
        text = f"<think>{thought}</think><answer>{letter}"
        ids = prompt + processor.tokenizer.encode(text, add_special_tokens=False)
        whole = torch.tensor([ids])
        with torch.no_grad():
            logits = model(
                input_ids=whole, attention_mask=torch.ones_like(whole)
            ).logits[0]
        steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        scores.append(steps.gather(1, whole[0, len(prompt) :, None]).sum())
    return torch.stack(scores).softmax(0).tolist()


def test_a_reader_gives_what_the_plain_forward_gives(
    model, processor, asked, data, tmp_path
):
    """With 4 letters of one token each, and with 5 of which E has two."""
    items = [*of_set(asked, "L1")[:3], *of_set(asked, "general")[8:11]]
    assert {len(item.options) for item in items} == {4, 5}
    rows = predicted(items, lambda item: flawless(item, data))
    read = readers.readings(
        model, processor, items, rows, tmp_path / "readings.jsonl", batch_size=4
    )
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
    items, rng = of_set(asked, "L1"), random.Random(0)
    stated = {item.id: rng.randrange(4) for item in items}
    rows = predicted(
        items,
        lambda item: lessons.answer_text(
            f"Next is {item.options[stated[item.id]]}.", "A"
        ),
    )
    read = readers.readings(model, processor, items, rows, tmp_path / "r.jsonl")
    likeliest = [max(row["own"], key=row["own"].get) for row in read]
    wanted = ["ABCD"[stated[item.id]] for item in items]
    assert sum(map(str.__eq__, likeliest, wanted)) >= 9  # of 12, 3 by chance
    without = [max(row["none"], key=row["none"].get) for row in read]
    assert sum(map(str.__eq__, without, wanted)) <= 7


def test_readings_of_other_completions_are_refused(
    model, processor, asked, data, tmp_path
):
    items, path = of_set(asked, "L1")[:2], tmp_path / "r.jsonl"
    rows = predicted(items, lambda item: flawless(item, data))
    readers.readings(model, processor, items, rows, path)
    rows[0]["completion"] = "<think>Next is cut onion.</think><answer>A</answer>"
    with pytest.raises(ValueError, match=r"other settings: read \("):
        readers.readings(model, processor, items, rows, path)
    with pytest.raises(ValueError, match="questions that were asked"):
        readers.readings(model, processor, items[:1], rows, tmp_path / "s.jsonl")


# --- truth and exact measure ----------------------------------------------------------


def test_the_truth_is_known_for_every_question_on_disk(data):
    known = truth.known(data)
    annotations = data / "annotations"
    items = [
        *questions.read_training(annotations / "training.jsonl", data),
        *tables.asked(data, data / "general", ("L1", "L2", "L3", "general")).values(),
    ]
    assert set(known) == {item.id for item in items}
    for item in items:
        found = truth.truth(item.id, data)
        assert found.answer == item.answer
        assert found.image_only == (item.video is None)
        if item.video and item.level in ("L1", "L2", "L3", "training"):
            assert found.seen == item.progress
    with pytest.raises(KeyError, match="L9/1"):
        truth.truth("L9/1", data)


def test_nothing_is_known_about_other_data(data, tmp_path):
    assert truth.known(tmp_path) == {}
    assert reasoning.checker(tmp_path) is None and reasoning.flawless(tmp_path) == {}
    folder = tmp_path / "edited"
    for file in [data / "benchmark.json", *(data / "annotations").iterdir()]:
        target = folder / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    path = folder / "annotations" / "validation_L2.jsonl"
    path.write_text(path.read_text().replace('"sample_id": 3', '"sample_id": 93', 1))
    with pytest.raises(ValueError, match=r"validation_L2.jsonl, record 4"):
        truth.known(folder)


def planning_truth(**changed):
    """Wash tomato was done, then cut onion, which is not in the plan of four."""
    steps = {
        "wash": world.Step(0, 0),
        "cut": world.Step(1, 0),
        "cook": world.Step(2, 0),
    }
    plan = (*steps.values(), world.Step(3, 0))
    episode = world.sample_episode(random.Random(0), "Daily life", 0)
    fixed = {
        "objects": (0, 2),
        "positions": ((30, 17), (82, 17)),
        "plan": plan,
        "actions": (world.Step(1, 1), steps["wash"]),
        "answer": steps["cut"],
        "options": plan,
    }
    episode = type(episode)(**{**vars(episode), **fixed})
    options = ("wash tomato", "cut tomato", "cook tomato", "salt tomato")
    given = {"image_only": False, "asks": "next step", "answer": "cut tomato"}
    return truth.Truth(episode, options=options, **given | changed)


SEEN = "I see cut onion, wash tomato."
OTHER = "wrong right y y n n"
UNREADABLE = "? ? ? ? ? ?"


@pytest.mark.parametrize(
    ("said", "letter", "expected"),
    [
        # progress, next, consistent, follows, false step, false object
        (f"{SEEN} Next is cut tomato.", "B", "right right y y n n"),
        (f"{SEEN} Next is cut tomato.", "A", "right right n y n n"),
        (f"{SEEN}", "B", "right - - - n n"),
        ("I see wash tomato, cut onion. Next is cut tomato.", "B", OTHER),
        ("I see wash tomato. Next is cut tomato.", "B", OTHER),
        ("I see wash tomato. Next is cook tomato.", "C", "wrong wrong y n n n"),
        ("I see cut tomato. Next is wash tomato.", "A", "wrong wrong y y y n"),
        ("I see nothing done. Next is wash tomato.", "A", "wrong wrong y y n n"),
        ("I see wash carrot. Next is wash tomato.", "A", "wrong wrong y y y y"),
        ("I see wash tomato, wash tomato. Next is cut tomato.", "B", OTHER),
        ("Next is cut tomato.", "B", "- right y - - n"),
        ("Next is cut kite.", "B", "- wrong n - - y"),
        ("Next is cut tomato.", None, "- right - - - n"),
        ("Next, cut the tomato.", "B", UNREADABLE),
        ("I see wash tomato.Next is cut tomato.", "B", UNREADABLE),
        ("Next is cut tomato. Next is cut onion.", "B", UNREADABLE),
        (" Next is cut tomato.", "B", UNREADABLE),
        (None, "B", "- - - - - -"),
    ],
)
def test_what_a_completion_says_is_held_against_the_truth(said, letter, expected):
    words = {"y": "yes", "n": "no", "-": "absent", "?": "unreadable"}
    wanted = [words.get(word, word) for word in expected.split()]
    found = reasoning.check(said, letter, planning_truth())
    assert found == dict(zip(reasoning.FIELDS, wanted, strict=True))


def test_a_still_alone_does_not_show_the_order():
    said = "I see wash tomato, cut onion. Next is cut tomato."
    still = reasoning.check(said, "B", planning_truth(image_only=True))
    assert still["progress"] == "right"


def test_questions_about_what_is_shown():
    shown = planning_truth(asks="shown step", answer="wash tomato")
    found = reasoning.check("I see wash tomato. It is cook tomato.", "C", shown)
    assert (found["follows"], found["false_step"], found["consistent"]) == (
        *("no", "yes"),
        "yes",
    )
    objects = planning_truth(asks="shown object", answer="onion")
    found = reasoning.check("I see onion, tomato. It is onion.", None, objects)
    assert (found["progress"], found["next"], found["false_object"]) == (
        *("right", "right"),
        "no",
    )


def test_a_flawless_reasoner_is_right_in_everything(data):
    said = reasoning.flawless(data)
    for key, found in truth.known(data).items():
        letter = "ABCDE"[found.options.index(found.answer)]
        checked = reasoning.check(said[key], letter, found)
        assert list(checked.values()) == ["right", "right", "yes", "yes", "no", "no"]


# --- memorised reasoning --------------------------------------------------------------


def test_what_stands_in_the_training_reasoning():
    training = TrainingReasoning(
        ["<think>I see wash tomato. Next is cut tomato.</think><answer>B</answer>"]
    )
    assert training.holds("I see wash  tomato. Next is cut tomato.")
    assert not training.holds("I see wash onion. Next is cut tomato.")
    assert not training.holds(None)
    # see-wash-onion-next breaks 4 of 5: "next is cut tomato" is left
    assert training.overlap("I see wash onion. Next is cut tomato.") == 1 / 5
    assert training.overlap("wash tomato") == training.overlap(None) == 0


@pytest.fixture(scope="module")
def run(asked, data, tmp_path_factory):
    """Base, SFT and GRPO with known faults on L1; the adapters change nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    items = of_set(asked, "L1")
    thoughts = reasoning.flawless(data)

    def wrong_letter(item):
        letter = "ABCD"[("ABCD".index(item.gold) + 1) % 4]
        return lessons.answer_text(thoughts[item.id], letter)

    ways = {
        "base": lambda item: f"<answer>{item.gold}</answer>",
        "sft": lambda item: flawless(item, data),
        "grpo": lambda item: (
            wrong_letter(item) if int(item.id[3:]) % 3 == 0 else flawless(item, data)
        ),
    }
    for label, say in ways.items():
        rows = predicted(items, say)
        records.write_jsonl(folder / f"predictions_{label}_L1.jsonl", rows)
    for label in ("sft", "grpo"):
        adapted = peft.get_peft_model(models.load_model(BASE), models.lora_config(2, 2))
        adapted.save_pretrained(folder / "adapters" / label)
    readers.read_run(BASE, folder, {"L1": items}, "float32", quantize=False)
    return folder


@pytest.fixture(scope="module")
def rows(run, data):
    path = data / "annotations" / "training_with_cot.jsonl"
    demos = questions.read_demonstrations(path, data)
    training = TrainingReasoning(demo.response for demo in demos)
    given = training, reasoning.checker(data), reasoning.flawless(data)
    for label in METHODS:
        coherence.rows_of(run, label, "L1", *given)
    return {
        (label, "L1"): records.read_jsonl(run / f"coherence_{label}_L1.jsonl")
        for label in METHODS
    }


def test_known_faults_are_written_down(rows):
    """8 of GRPO's 12 letters are the stated step; the base gave no reasoning at all."""
    said = {key: [row["consistent"] for row in own] for key, own in rows.items()}
    assert said["base", "L1"] == ["absent"] * 12
    assert said["sft", "L1"] == ["yes"] * 12
    assert sorted(said["grpo", "L1"]) == ["no"] * 4 + ["yes"] * 8
    led = {key: sum(row["base_reader"] for row in own) for key, own in rows.items()}
    assert led["base", "L1"] == 0 and led["sft", "L1"] >= 11
    assert abs(led["grpo", "L1"] - 8) <= 1
    assert all(row["consistent_other"] for row in rows["sft", "L1"])


def test_an_answer_without_reasoning_has_no_implied_letter(rows):
    row = rows["base", "L1"][0]
    assert row["implied_base"] is row["probabilities_base"] is None
    assert row["correct"] and not row["base_reader"]
    assert row["implied_base_none"] in "ABCD"


def test_rows_of_another_benchmark_are_refused(data, asked):
    exact = reasoning.checker(data)
    row = predicted(of_set(asked, "L1")[:1], lambda item: flawless(item, data))[0]
    row["options"] = row["options"][::-1]
    with pytest.raises(ValueError, match="other options than it has"):
        exact(row, "Next is cut onion.")
