"""Annotation files: what a sound one gives, and what each fault in one is called."""

import copy
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import paths
from lib.data.__main__ import main
from lib.data.faults import KINDS
from lib.data.prompts import THINK_ANSWER
from lib.data.questions import (
    DataFaults,
    check,
    read_demonstrations,
    read_training,
    read_validation,
    split_holdout,
)

ACTIONS = ["open jar", "pour milk", "stir pot", "wash pan", "cut onion", "boil egg"]
MEDIA = Path("/media")
STEP, PART = "task_progress_metadata", "prompt[0].content"
STILL, FRAME = "current_observation_basename", "current_observation_frame"


def planning(number):
    first, second, answer = (ACTIONS[(number + i) % 6] for i in range(3))
    return {
        "sample_id": number,
        "video_source": "Ego4D",
        "video_id": f"video-{number}",
        "task_goal": "make soup",
        "question": "Considering the progress, what should I do next to make soup?",
        "answer": answer,
        FRAME: 300,
        STEP: [
            {"narration_text": first, "start_frame": 10, "stop_frame": 90},
            {"narration_text": second, "start_frame": 95, "stop_frame": 200},
        ],
        "video_basename": f"clip {number}.mp4",
        STILL: f"still-{number}.png",
    }


def others(record):
    return [action for action in ACTIONS if action != record["answer"]]


def labelled(number):
    record, place = planning(number), number % 4
    options = others(record)
    options.insert(place, record["answer"])
    choices = {f"choice_{x}": text for x, text in zip("abcd", options, strict=False)}
    return record | choices | {"golden_choice_idx": "ABCD"[place]}


def labelled_l3(number):
    new = {"sample_id": f"uid-{number}_0", "domain": "Work", "scenario": "Farm"}
    return labelled(number) | new | {"task_start_frame": 5}


def training(number):
    record = planning(number)
    return record | {"negative_answers": others(record)}


def demonstration(number, source="Ego4D"):
    content = [
        {"type": "video", "video": f"videos/{source}/{number}.mp4"},
        {"type": "image", "image": f"images/{source}/{number}.png"},
        {"type": "text", "text": f"What next?\nA. x\nB. y\n{THINK_ANSWER}"},
    ]
    return {
        "sample_id": number,
        "prompt": [{"role": "user", "content": content}],
        "response": "<think>The jar is open.</think><answer>A</answer>",
    }


def general(number):
    return {
        "video_id": f"v{number}",
        "id": f"v{number}_0",
        "question": "What colour is the coat?",
        "candidates": ["red", "green", "blue", "white", "black"][: 4 + number % 2],
        "correct_choice": number % 4,
        "video_path": f"v{number}.mp4",
        "duration_group": 600,
        "duration": 467.9,
        "topic_category": "News",
        "question_category": "T2A",
    }


MAKE = {
    "L1": labelled,
    "L2": labelled,
    "L3": labelled_l3,
    "training": training,
    "demonstrations": demonstration,
    "general": general,
}
READERS = {"training": read_training, "demonstrations": read_demonstrations}
of_every_kind = pytest.mark.parametrize("kind", MAKE)


def write(folder, records, kind="L1"):
    path = folder / f"{kind}.json"
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines)
    if kind == "general":
        text = "[\n" + ",\n".join(lines) + "\n]"
    path.write_text(f"{text}\n")
    return path


def read(path, kind):
    if kind in READERS:
        return READERS[kind](path, MEDIA)
    return read_validation(path, MEDIA, kind)


def read_of(folder, kind, count=5):
    return read(write(folder, records_of(kind, count), kind), kind)


def refused(path, kind):
    """All faults for which a reader refuses a file."""
    with pytest.raises(DataFaults) as caught:
        read(path, kind)
    return caught.value.faults


def records_of(kind, count=5):
    return [MAKE[kind](number) for number in range(count)]


def test_a_validation_question(tmp_path):
    question, record = read_of(tmp_path, "L1")[1], labelled(1)
    assert (question.id, question.level, question.gold) == ("L1/1", "L1", "B")
    assert question.options == tuple(record[f"choice_{x}"] for x in "abcd")
    assert question.answer == question.options[1] == record["answer"]
    assert (question.text, question.goal) == (record["question"], "make soup")
    assert question.progress == ("pour milk", "stir pot")
    assert question.video == MEDIA / "videos/Ego4D/clip 1.mp4"
    assert question.image == MEDIA / "images/Ego4D/still-1.png"
    assert (question.domain, question.scenario) == ("", "")
    assert question.duration_group is None
    record = labelled(0) | {STEP: []}  # nothing is done, so no video shows it
    del record["video_basename"]
    (first,) = read(write(tmp_path, [record], "L2"), "L2")
    assert (first.video, first.progress) == (None, ()) and first.image is not None
    third = read_of(tmp_path, "L3")[2]
    assert (third.id, third.domain, third.scenario) == ("L3/uid-2_0", "Work", "Farm")
    question = read_validation(tmp_path / "L1.json", "data/x", "L2")[0]
    assert question.video == paths.ROOT / "data/x/videos/Ego4D/clip 0.mp4"


def test_a_demonstration(tmp_path):
    record = demonstration(1) | {"sample_id": None}
    record["prompt"][0]["content"] = [
        {"type": "image", "image": "images/Ego4D/1.png", "video": None, "text": None},
        {"type": "text", "text": "What next?", "image": None, "video": None},
    ]
    path = write(tmp_path, [demonstration(0), record], "demonstrations")
    first, second = read(path, "demonstrations")
    assert first.id == "training/0"
    assert first.text == demonstration(0)["prompt"][0]["content"][2]["text"]
    assert first.video == MEDIA / "videos/Ego4D/0.mp4"
    assert first.response == demonstration(0)["response"]
    assert (second.id, second.video) == ("training/line-2", None)
    assert second.image == MEDIA / "images/Ego4D/1.png"


def test_a_general_question(tmp_path):
    records = [general(0), general(1), general(3) | {"correct_choice": 4}]
    four, five, last = read(write(tmp_path, records, "general"), "general")
    assert (len(four.options), len(five.options), last.gold) == (4, 5, "E")
    assert (five.id, five.gold, five.answer) == ("general/v1_0", "B", "green")
    assert (five.video, five.image) == (MEDIA / "videos/v1.mp4", None)
    assert (five.duration_group, five.domain) == (600, "News")


def test_training_options_are_three_negatives_and_the_answer(tmp_path):
    questions, golds = read_of(tmp_path, "training", 200), Counter()
    for question, record in zip(questions, records_of("training", 200), strict=True):
        assert question.options["ABCD".index(question.gold)] == record["answer"]
        assert len(set(question.options)) == 4
        assert set(question.options) <= {record["answer"], *record["negative_answers"]}
        golds[question.gold] += 1
    assert min(golds[letter] for letter in "ABCD") > 30  # of 50 expected
    assert len({question.options for question in questions}) > 100


def test_the_draw_of_a_question_depends_on_seed_and_id_alone(tmp_path):
    records, questions = records_of("training", 20), read_of(tmp_path, "training", 20)
    # Rows of earlier runs name letters: a change of the draw would orphan them.
    assert questions[7].options == ("pour milk", "cut onion", "boil egg", "wash pan")
    other = read_training(tmp_path / "training.json", MEDIA, seed=1)
    assert [q.id for q in other] == [q.id for q in questions]
    changed = [a.options != b.options for a, b in zip(other, questions, strict=True)]
    assert sum(changed) > 10
    again = read_training(write(tmp_path, records[::-1], "training"), MEDIA)
    assert again[::-1] == questions


def test_negatives_that_repeat_are_never_drawn_twice(tmp_path):
    records = records_of("training", 50)
    for record in records:
        same = [record["answer"].upper(), "stir the pot", "Stir the pot "]
        record["negative_answers"] = [*same, "walk off", "sit down"]
    for question in read(write(tmp_path, records, "training"), "training"):
        assert len({option.strip().casefold() for option in question.options}) == 4


def test_a_holdout_is_decided_by_the_id_alone(tmp_path):
    items = [SimpleNamespace(id=f"training/{i}") for i in range(2000)]
    kept, held = split_holdout(items, 0.1)
    assert sorted(kept + held, key=items.index) == items
    assert 150 < len(held) < 250 < len(split_holdout(items, 0.3)[1])
    few, few_held = split_holdout(items[::-3], 0.1)
    assert {i.id for i in few_held} <= {i.id for i in held}
    assert {i.id for i in few} <= {i.id for i in kept}
    taught, asked = (
        {item.id for item in split_holdout(read_of(tmp_path, kind, 60), 0.3)[1]}
        for kind in ("demonstrations", "training")
    )
    assert taught == asked and 0 < len(asked) < 60
    assert split_holdout(items, 0) == (items, [])
    assert split_holdout(items, 1) == ([], items)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_holdout(items, 1.5)


def put(field, value):
    """An edit that sets `a.b[2].c` style fields."""

    def edit(record):
        *outer, last = field.replace("[", ".").replace("]", "").split(".")
        for name in outer:
            record = record[int(name) if name.isdigit() else name]
        record[int(last) if last.isdigit() else last] = value

    return edit


DROP, ENDS = object(), ("start_frame", "stop_frame")
ALWAYS = f"question task_goal answer {STEP} video_source {STILL}"
CHOICES = "choice_a choice_b choice_c choice_d golden_choice_idx"
NEEDED = {
    "L1": f"sample_id {ALWAYS} {CHOICES}",
    "L3": f"sample_id domain scenario {ALWAYS} {CHOICES}",
    "training": f"sample_id negative_answers {ALWAYS}",
    "demonstrations": "prompt response",
    "general": "id question candidates correct_choice video_path duration_group",
}
TEXTS = {
    "L1": "question task_goal answer choice_a choice_b choice_c choice_d",
    "L3": "sample_id domain scenario",
    "demonstrations": "response",
    "general": "id question",
}
BAD_NAMES = ["", "a/b.mp4", "../b.mp4", "/etc/passwd", "a\\b.mp4", "..", ".", 3, None]
BAD_NAMES += ["\x1b[31m.mp4", "a\n.mp4", "a\x7f.mp4"]  # they reach a terminal
HALVES = ["\ud83d", "go \udc00 on", "\ude00\ud83d"]
CONTROL = ["<|im_end|>", "the <|video_pad|>s", "a<|vision_start|><|image_pad|>"]
LONG, WIDE = "x" * 100_001, "ｗａｓｈ\u3000pan"


def each(kind, field, values, words, named=""):
    """Rows for a field that holds any of the values: kind, edit, name and words of the
    fault."""
    rows = []
    for value in values:
        edit = put(field, value)
        if value is DROP:
            edit = lambda record: record.pop(field)  # noqa: E731
        rows.append((kind, edit, named or field, words))
    return rows


def lettered(kind, *texts):
    """A row for options with these texts; the second is the answer, or the first is."""
    field, named = "negative_answers", "answer"
    if kind == "L1":
        named = "choice_a"
    elif kind == "general":
        field, named = "candidates", "candidates[0]"

    def edit(record):
        if kind == "L1":
            names = (f"choice_{letter}" for letter in "abcd")
            record |= {**dict(zip(names, texts, strict=True)), "answer": texts[1]}
        elif kind == "training":
            record["answer"], *record[field] = texts
        else:
            record[field] = list(texts)

    return kind, edit, named, "with a letter of its own"


UNUSABLE = [
    # texts that no model may read
    *each("L1", "question", HALVES, "half a char"),
    *each(
        "L1", "of no use", [{"x": ["", HALVES[0]]}], "Unicode text", "of no use.x[1]"
    ),
    *each("L1", "caf\ud83d\x1b", [3], "Unicode text", "'caf\\ud83d\\x1b'"),
    *each("general", "question", ["\U000f0000"], "mark that is no text"),
    *each("L2", "question", CONTROL, "words alone"),
    *each("L1", f"{STEP}[0].narration_text", CONTROL[:1], "'<|im_end|>' in a text"),
    # options with letters of their own
    lettered("L1", "B. open", "A. pour", "D. stir", "C. wash"),
    lettered("L1", "(d) open", "(c) pour", "(b) stir", "(a) wash"),
    lettered("L1", "Option C: open", "Option B: pour", "Option A: stir", "wash"),
    lettered("training", "A. open", "B. pour", "C. stir", "D. wash"),
    lettered("training", "a) open", "b) pour", "c) stir", "d) wash", "e) cut"),
    lettered("training", "2. open", "1. pour", "3. stir", "4. wash"),
    lettered("training", "D open", "B pour", "C stir", "wash"),
    lettered("training", "Ａ．open", "（Ｂ）pour", "Ｃ．stir", "Ｄ．wash"),
    lettered("training", "**A.** open", "**B.** pour", "**C.** stir", "**D.** wash"),
    lettered("training", "iv. wash", "iii. stir", "ii. pour", "i. open"),
    lettered("general", "D: a", "C: b", "B: c", "A: d"),
    # options that are the answer again
    *each("L1", "choice_a", ["Wash pan ", "wash\u00a0\u200bPAN"], "one option only"),
    *each("general", "candidates[2]", ["Green", "ｇｒｅｅｎ"], "one option only"),
    *each("general", "candidates[2]", ["green\u200e", "gr\u00adeen"], "one option"),
    *each("training", "negative_answers", [["a", "b"], [*"aab"]], "2 that"),
    *each("training", "negative_answers", [["a", "b", "Wash pan"]], "2 that"),
    *each("training", "negative_answers", [["e\u0301", "é", "x", WIDE]], "2 that"),
    # fields that must be there
    *(
        row
        for kind, names in NEEDED.items()
        for name in names.split()
        for value, words in ((DROP, "no such field"), (None, "None"), ({}, "{}"))
        for row in each(kind, name, [value], words)
    ),
    *(
        row
        for kind, names in TEXTS.items()
        for name in names.split()
        for row in each(kind, name, ["", "  ", 7, LONG], "not empty, of 100,000")
    ),
    *each("L1", "sample_id", ["7", True, 1.0, 10**19], "whole number"),
    *each("general", "correct_choice", ["1"], "whole number"),
    *each("general", "duration_group", ["600"], "whole number"),
    *each("L1", "golden_choice_idx", ["E", "a", "AB", "", 0, ["A"]], "A, B, C, D"),
    *each("L1", "answer", ["fly away"], "gold option"),
    *each("L1", "golden_choice_idx", ["A"], "gold option", "answer"),
    *each("L1", "video_source", BAD_NAMES, "folder"),
    *each("L1", "video_basename", [*BAD_NAMES, DROP], "there is progress to show"),
    *each("L1", STILL, BAD_NAMES, "without any folder"),
    *each("L1", STILL, ["x" * 252 + ".png", "é" * 126 + ".png"], "255 bytes"),
    *each("L1", f"{STEP}[1]", ["open jar"], "narration_text"),
    *each("L1", f"{STEP}[1].narration_text", [None, "", 7, ["x"], {}], "step"),
    *each("training", "negative_answers[1]", [None, ""], "not empty"),
    # demonstrations
    *each("demonstrations", "prompt", ["What next?"], "a list"),
    *each("demonstrations", "prompt", [[]], "0 messages"),
    *each("demonstrations", "prompt[0].role", ["system"], "user message", "prompt[0]"),
    *each("demonstrations", PART, ["text"], "user message", "prompt[0]"),
    *each("demonstrations", PART, [[{"type": "text", "text": "x"}]], "0 videos, 0 im"),
    *each("demonstrations", PART, [[{"type": "image", "image": "a.png"}]], "0 texts"),
    *each("demonstrations", f"{PART}[0].type", ["audio"], "audio"),
    *each("demonstrations", f"{PART}[0].video", [None, "/data/a.mp4"], "relative"),
    *each("demonstrations", f"{PART}[1].image", ["images/../../a.png"], "relative"),
    *each("demonstrations", f"{PART}[2].text", [""], "one text"),
    # LongVideoBench
    *each("general", "candidates", [list("abc"), list("abcdef"), "['a']"], "option0"),
    *each("general", "candidates[3]", ["N/A"], "drop the 'N/A'"),
    *each("general", "candidates[2]", ["", LONG], "not empty"),
    *each("general", "correct_choice", [5, -1], "from 0"),
    *each("general", "video_path", ["../v.mp4", "a/" + "x" * 256], "relative"),
    *each("general", "video_path", ["a/" * 3000 + "b.mp4"], "relative"),
]
NARRATION = {"narration": "hum", "start_frame": 1, "stop_frame": 2}
USABLE = [
    *each("L1", "video_id", [7], "not empty"),
    *each("L1", FRAME, ["x"], "whole"),
    *each("L1", "choice_d", ["OPEN JAR"], "equal to choice_a"),
    *each("L1", "choice_c", [" boil egg"], "no blanks"),
    *each("L1", "question", ["next?\n"], "no blanks"),
    *each("L1", "task_goal", ["make crème"], "ASCII"),
    *each("L1", "choice_c", ["boil\negg", "boil\x1b[31m egg"], "one line"),
    *each("training", "negative_answers[0]", ["open\r\njar"], "one line"),
    *each("general", "candidates[3]", ["white\nE. black"], "one line"),
    *each("L1", f"{STEP}[1].narration_text", ["pour milk "], "no blanks"),
    *each("L1", f"{STEP}[0].start_frame", [None], "whole"),
    *each("L1", f"{STEP}[1]", [NARRATION], "the key narr", f"{STEP}[1].narration"),
    *each("L1", f"{STEP}[1].stop_frame", [301], "301, after"),
    *each("L1", f"{STEP}[1].narration_text", ["Wash pan"], "already done", "answer"),
    *each("training", "negative_answers[3]", ["open jar"], "negative_answers[0]"),
    *each("training", "negative_answers[3]", ["wash pan"], "equal to answer"),
    lettered("L1", "A. open", "B. pour", "C. stir", "D. wash"),
    lettered("L1", "1) open", "2) pour", "3) stir", "4) wash"),
    *each("demonstrations", "response", ["A"], "<think>"),
    ("demonstrations", lambda r: r["prompt"][0]["content"].reverse(), PART, "before"),
    *each("general", "candidates[2]", ["Red", "ｒｅｄ"], "equal to candidates[0]"),
    *each("general", "candidates[3]", ["white "], "no blanks"),
]


ROWS = [(*row, False) for row in UNUSABLE] + [(*row, True) for row in USABLE]


@pytest.mark.parametrize(("kind", "edit", "field", "words", "usable"), ROWS)
def test_a_fault_is_named_with_its_line(tmp_path, kind, edit, field, words, usable):
    """Of five records the second is edited; a usable fault does not stop reading."""
    records = records_of(kind)
    edit(records[1])
    path, line = write(tmp_path, records, kind), 2
    if kind == "general":
        field, line = f"[1].{field}", 3
    (fault,) = (f for f in check(path)["faults"] if usable or not f.usable)
    assert (fault.file, fault.line, fault.field) == (str(path), line, field)
    assert words in str(fault)
    assert fault.usable == usable == str(fault).endswith(" (usable)")
    assert check(path)["usable"] == 4 + usable
    if usable:
        assert len(read(path, kind)) == 5
    else:
        assert refused(path, kind) == [fault]


@of_every_kind
def test_any_value_anywhere_gives_faults_and_never_a_crash(tmp_path, kind):
    """Whatever JSON a field holds, `check` reports and a reader reads or refuses."""
    assert check(write(tmp_path, records_of(kind), kind))["faults"] == []
    assert len(read_of(tmp_path, kind)) == 5
    rng = random.Random(f"junk/{kind}")
    junk = [None, True, 0, -3, 2.5, "", "N/A", "x", [], {}, [[]], [{}], [None], ["x"]]
    names = sorted({name for make in MAKE.values() for name in make(1)})
    for _ in range(300):
        record = MAKE[kind](1)
        for name in rng.sample(names, rng.randrange(1, 4)):
            record[name] = copy.deepcopy(rng.choice(junk))
        path = write(tmp_path, [record], kind)
        assert check(path)["records"] == 1
        try:
            assert len(read(path, kind)) == 1
        except DataFaults as error:
            assert all(fault.line in (1, 2) for fault in error.faults)


@pytest.mark.parametrize(
    "options",
    [
        ("A cup", "A pan", "A lid", "A jar"),
        ("2 cups", "1 cup", "3 cups", "4 cups"),
        ("vitamin A", "vitamin B", "vitamin C", "vitamin D"),
        ("C-clamp", "D-ring", "B-side", "A-frame"),
        ("1.5 l", "2.5 l", "3.5 l", "4.5 l"),
        ("E. coli", "B. subtilis", "moss", "fern"),
        ("D. Miller", "B. Jones", "H. Smith", "G. Brown"),
        ("open jar", "pour <b>milk</b>", "stir < pot", "<|>"),
        ("x" * 99_999, "b", "c", "d"),
    ],
)
def test_texts_that_only_look_odd_are_sound(tmp_path, options):
    record = general(0) | {"candidates": list(options)}
    assert check(write(tmp_path, [record], "general"))["faults"] == []
    record = training(0) | {"answer": options[0], "negative_answers": options[1:]}
    record |= {STEP: [], STILL: "x" * 251 + ".png"}
    assert check(write(tmp_path, [record], "training"))["faults"] == []


def replaced(folder, kind, old, new):
    """A sound file whose second `old` is `new`; the line of its second record."""
    path = write(folder, records_of(kind), kind)
    text = path.read_text()
    at = text.index(old, text.index(old) + 1)
    path.write_text(text[:at] + new + text[at + len(old) :])
    return path, 3 if kind == "general" else 2


ODD_TEXTS = [  # kind, text of the second record, what is put before it, the field
    *(
        (kind, f'"{name}"', f'"{name}": {value}, ', name, "it 2 times")
        for kind in MAKE
        for name in ["response" if kind == "demonstrations" else "question"]
        for value in ('"B"', "null", "[1]")
    ),
    ("L1", '"stop_frame": 200', '"stop_frame": 7, ', f"{STEP}[1].stop_frame", "it 2"),
    *(
        ("L1", ', "video_source"', "7" * (digits - 1), "sample_id", "177777")
        for digits in (20, 4301, 100_000)
    ),
]


@pytest.mark.parametrize(("kind", "old", "before", "field", "words"), ODD_TEXTS)
def test_what_json_would_pass_over_is_named(tmp_path, kind, old, before, field, words):
    """A field that is given twice, a number of more digits than any count has."""
    path, line = replaced(tmp_path, kind, old, before + old)
    (fault,) = refused(path, kind)
    field = f"[1].{field}" if kind == "general" else field
    assert (fault.line, fault.field) == (line, field)
    assert words in fault.found and len(fault.found) < 99


@pytest.mark.parametrize("depth", [21, 200, 985, 3000, 100_000])
@pytest.mark.parametrize("kind", ["L1", "general"])
@pytest.mark.parametrize("mark", ["[]", '{"":}'])
def test_values_without_end_within_values_are_a_fault(tmp_path, kind, depth, mark):
    nested = mark[:-1] * depth + "0" + mark[-1] * depth
    name = '"sample_id"' if kind == "L1" else '"id"'
    new = f'"x": {nested}, "video_id": {nested}, {name}'
    path, line = replaced(tmp_path, kind, name, new)
    with pytest.raises(DataFaults, match="too deep") as caught:
        read(path, kind)
    assert {fault.line for fault in caught.value.faults} == {line}
    assert len(str(caught.value)) < 1500
    assert check(path)["usable"] in (0, 1, 4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", ["L1", "general"])
def test_a_byte_order_mark_is_one_fault(tmp_path, kind, encoding):
    path = write(tmp_path, records_of(kind), kind)
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes((mark + path.read_text()).encode(encoding))
    (fault,) = refused(path, kind)
    assert (fault.line, fault.field) == (1, "file")
    assert "UTF-8 without one" in str(fault)
    assert check(path)["faults"] == [fault]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "no record"),
        (b"\n\n", 1, "no record"),
        (b"version https://git-lfs.github.com/spec/v1\noid", 1, "git lfs pull"),
        (b"<!DOCTYPE html>", 1, "a web page; expected the file: download it again"),
        (b'{"a": 1', 1, "no JSON"),
        (b'\n{"caf\xe9": 1}\n', 2, "not UTF-8"),
        (b"3\n", 1, "a JSON object"),
        (b'{"a": 1}\n', 1, "no such field"),
    ],
)
def test_what_is_no_annotation_file(tmp_path, content, line, words, capsys):
    path = tmp_path / "validation_L1.jsonl"
    path.write_bytes(content)
    fault = refused(path, "L1")[0]
    assert fault.line == line
    assert words in str(fault)
    assert main(["faults", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "not recognised" in printed
    assert ("negative_answers" in printed) == (content in (b"3\n", b'{"a": 1}\n'))


# --- faults across records and of whole files -----------------------------------

LISTED = "A. stir pot\n(B) open jar"
ACROSS = {
    "ids that are one text": (
        "training",
        [training(1), training(2) | {"sample_id": "1"}],
        [(2, "sample_id", "of line 1 again", True)],
    ),
    "options in the question, by the letters of the prompt": (
        "L1",
        [labelled(0) | {"question": f"What next?\n{LISTED}"}],
        [(1, "question", line, True) for line in LISTED.splitlines()],
    ),
    "and by others, once the prompt has shuffled them": (
        "training",
        [training(0) | {"question": f"What next?\n{LISTED}"}],
        [(1, "question", line, False) for line in LISTED.splitlines()],
    ),
    "an id again": (
        "L1",
        [labelled(1), labelled(2), labelled(2) | {"video_id": "other"}],
        [(3, "sample_id", "of line 2 again", False)],
    ),
    "a question again under another id": (
        "L1",
        [labelled(1), labelled(1) | {"sample_id": 9}],
        [(2, "video_id", "of line 1 again", True)],
    ),
    "a clip of negative length": (
        "L1",
        [labelled(1) | {FRAME: 5}],
        [
            *((1, f"{STEP}[0].{end}", " the observation 5", True) for end in ENDS),
            *((1, f"{STEP}[1].{end}", " the observation 5", True) for end in ENDS),
            (1, FRAME, "a clip of -5 frames", True),
        ],
    ),
    "an observation at a negative frame": (
        "L1",
        [labelled(1) | {FRAME: -26, STEP: []}],
        [(1, FRAME, "-26", True)],
    ),
}


@pytest.mark.parametrize("what", ACROSS)
def test_faults_of_several_fields_or_records(what, tmp_path):
    kind, records, expected = ACROSS[what]
    path = write(tmp_path, records, kind)
    found = check(path)["faults"]
    assert [(f.line, f.field, f.usable) for f in found] == [
        (line, field, usable) for line, field, _, usable in expected
    ]
    for fault, (*_, words, _) in zip(found, expected, strict=True):
        assert words in fault.found
    if all(fault.usable for fault in found):
        assert len(read(path, kind)) == len(records)
    else:
        assert refused(path, kind) == found


def test_all_faults_of_a_file_are_listed_at_once(tmp_path):
    records = records_of("L1", 8)
    del records[0]["question"]
    records[0]["golden_choice_idx"] = "Z"
    records[3]["answer"] = "fly away"
    records[6]["choice_b"] = ""
    path = write(tmp_path, records)
    text = path.read_text().splitlines()
    text[4:6] = [text[4][:40], '["a list"]']
    path.write_text("\n".join(text))
    with pytest.raises(DataFaults) as caught:
        read(path, "L1")
    assert [(fault.line, fault.field) for fault in caught.value.faults] == [
        (1, "question"),
        (1, "golden_choice_idx"),
        (4, "answer"),
        (5, "record"),
        (6, "record"),
        (7, "choice_b"),
    ]
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("mend these lines, or get the file again")
    assert lines == [str(fault) for fault in caught.value.faults]
    report = check(path)
    assert (report["records"], report["usable"]) == (8, 3)
    assert report["media"] == {"videos": 3, "stills": 3, "image_only": 0}


def test_lines_and_places_of_a_list_and_of_lines(tmp_path):
    records = records_of("general")
    records[2]["correct_choice"] = 9
    path = tmp_path / "lvb_val.json"
    records[4]["id"] = records[3]["id"]
    path.write_text(json.dumps(records))
    wrong, again = refused(path, "general")
    assert (wrong.line, wrong.field) == (1, "[2].correct_choice")
    assert (again.line, again.field) == (1, "[4].id") and "line 1 again" in again.found
    assert check(path)["usable"] == 3

    text = json.dumps(records, indent=2)
    path.write_text(text)
    opening = [i for i, row in enumerate(text.splitlines(), 1) if row == "  {"]
    assert refused(path, "general")[0].line == opening[2]

    bad = json.dumps(labelled(1) | {"question": ""})
    path.write_text(f"\n{json.dumps(labelled(0))}\n\n{bad}\n")
    assert [fault.line for fault in refused(path, "L1")] == [4]

    path.write_text(json.dumps(records_of("L1")))
    with pytest.raises(DataFaults, match="expected one JSON object a line"):
        read(path, "L1")
    path.write_text("\n".join(json.dumps(r) for r in records_of("general")))
    with pytest.raises(DataFaults, match="expected one JSON list"):
        read(path, "general")
    with pytest.raises(FileNotFoundError, match=r"is missing: .*01_data says where"):
        read(tmp_path / "none.jsonl", "L1")


def test_levels_are_not_mixed_up(tmp_path):
    faults = refused(write(tmp_path, records_of("L3"), "L3"), "L1")
    assert {fault.field for fault in faults} == {"sample_id"}
    faults = refused(write(tmp_path, records_of("L1")), "L3")
    assert {fault.field for fault in faults} == {"sample_id", "domain", "scenario"}


# --- the command ----------------------------------------------------------------


@of_every_kind
def test_check_recognises_the_file_by_its_fields(tmp_path, kind):
    path = write(tmp_path, records_of(kind), kind).rename(tmp_path / "file")
    report, stills = check(path), 0 if kind == "general" else 5
    assert (report["kind"], report["usable"]) == (KINDS[kind].name, 5)
    assert report["media"] == {"videos": 5, "stills": stills, "image_only": 0}
    broken = [{}, {"video_id": 1}, *records_of(kind)]
    report = check(write(tmp_path, broken, kind))
    assert (report["kind"], report["records"]) == (KINDS[kind].name, 7)
    assert report["usable"] == 5


def test_a_file_is_checked_as_what_its_name_says(tmp_path):
    record = labelled(1) | {"domain": "Work", "scenario": "Farm"}  # else a mark of L3
    path = write(tmp_path, [record]).rename(tmp_path / "validation_L1.jsonl")
    assert check(path)["usable"] == len(read(path, "L1")) == 1


def test_the_command_prints_every_fault_and_its_exit_codes(tmp_path, capsys):
    records = records_of("L1", 3)
    records[0][STEP] = []
    records[1]["choice_a"] = "open jar "
    path = write(tmp_path, records)
    assert main(["faults", str(path)]) == 0
    *said, fault = capsys.readouterr().out.splitlines()
    assert said == [
        f"{path}: SEED-Bench-R1 validation, L1 or L2",
        "records: 3, of which 3 can be used",
        "media needed: 2 videos, 3 stills (1 records without video)",
        "faults: 1, of which 0 make a record unusable",
    ]
    assert fault.startswith(f"{path}:2: choice_a: ")

    records[2]["answer"] = ""
    assert main(["faults", str(write(tmp_path, records))]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "records: 3, of which 2 can be used"
    assert said[3] == "faults: 2, of which 1 make a record unusable"
    assert said[5].startswith(f"{path}:3: answer: ")
    for arguments in ([], ["faults"], ["fualts", "x"], ["faults", "none"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_the_command_starts_without_torch(tmp_path):
    path = write(tmp_path, records_of("L1"))
    code = (
        "import sys; from lib.data.__main__ import main;"
        f"assert main(['faults', {str(path)!r}]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, check=True)


def test_real_validation_records():
    path = paths.ROOT.parent / "shared" / "data" / "validation_L1.sample.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here: its licence keeps it out of the repository")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    questions, report = read_validation(path, MEDIA, "L1"), check(path)
    by_id = {record["sample_id"]: i for i, record in enumerate(records, 1)}
    assert all(fault.usable for fault in report["faults"])

    def lines(words):
        return Counter(f.line for f in report["faults"] if words in str(f))

    # the three known ones, each the only one of its sort in the sample
    assert lines("the key narration_text") == {by_id[60]: 5}
    assert lines("different options") == {by_id[1597]: 1}
    assert lines("a clip of -14 frames") == {by_id[2390]: 1}
    assert lines(".start_frame: ") == {by_id[2390]: 1}

    # and an independent count of the common ones
    late, done = Counter(), Counter()
    for line, record in enumerate(records, 1):
        late[line] += sum(step["stop_frame"] > record[FRAME] for step in record[STEP])
        words = [s.get("narration_text") or s.get("narration") for s in record[STEP]]
        done[line] += record["answer"] in words
    assert lines("expected an end before") == +late
    assert lines("already done") == +done
    assert len(report["faults"]) == 5 + 1 + 1 + 1 + late.total() + done.total()

    without_video = sum(not record[STEP] for record in records)
    media = {"videos": 200 - without_video, "stills": 200, "image_only": without_video}
    assert report["media"] == media
    for question, record in zip(questions, records, strict=True):
        assert (question.video is None) == (not record[STEP])
        assert question.answer == record["answer"]
