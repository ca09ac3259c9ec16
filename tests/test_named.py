"""What a teacher's reasoning names, beside the narrated steps of its clip."""

import csv
from dataclasses import replace

import pytest

from lib import paths
from lib.data import __main__ as door
from lib.data import named, questions, training_sets
from lib.data.letters import THINK
from lib.mini import benchmark, teacher, truth

MATCHES = [
    ("put down the plate", "Placing the clean plates aside, I go on.", "named"),
    ("put down the plate", "The plate was put down by the hand.", "named"),
    ("put down the plate", "A plate is on the table.", "touched"),
    ("put down the plate", "They put the cup away. A plate is left.", "touched"),
    ("put down the plate", "The cup was washed.", "absent"),
    ("wash chopping board", "First the board is rinsed", "named"),
    ("pick up knife", "She took two knives out of the drawer", "named"),
    ("dry hands with towel", "the hand is dried", "named"),
    ("turn on tap", "The tap was turned on.", "named"),
    ("chop tomatoes", "A tomato gets sliced!", "named"),
    ("pour oil into pan", "Oil is in the pan", "touched"),
    ("pour oil into pan", "The pan is poured out", "absent"),
    ("continue stirring sauce", "The sauce is stirred", "named"),
    ("stir", "it was stirred", "named"),
    ("tie carrot", "", "absent"),
    ("切菜", "他在切菜, 然后洗手", "absent"),  # another language is not understood
    ("continue", "...", "absent"),
]


@pytest.mark.parametrize(("step", "reasoning", "wanted"), MATCHES)
def test_a_step_is_named_by_its_verb_and_object(step, reasoning, wanted):
    assert named.match(step, reasoning) == wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MiniPlan's annotations; 30 % of the demonstrations state another moment."""
    root = tmp_path_factory.mktemp("data")
    benchmark.write_annotations(root, benchmark.Sizes(200, 4, 4))
    asked = questions.read_training(root / "annotations" / "training.jsonl", root)
    known = truth.known(root)
    made = teacher.demonstrations("truth", [], asked, known)
    made = teacher.with_shares(made, known, 0.3, 0.2, seed=0)
    thoughts = [THINK.search(item.response)[1] for item in made]
    training_sets.write_demonstrations(root, thoughts)
    return root


def rows_of(folder):
    asked = questions.read_training(folder / "annotations" / "training.jsonl", folder)
    path = folder / "annotations" / "training_with_cot.jsonl"
    return asked, questions.read_demonstrations(path, folder)


def test_the_planted_share_is_found(folder):
    """MiniPlan says exactly what was done, so the matcher must find the true ones: 50 %
    and those false ones that state all that was done and more."""
    asked, taught = rows_of(folder)
    rows = named.measure(asked, taught)
    own = rows[rows.of == "own"]
    every = own.named.groupby(own.id).all()
    true = {item.id for item in taught if item.video and _true(item, folder)}
    assert {*every[every].index} >= true
    assert 0.5 <= every.mean() < 0.75
    assert rows[rows.of == "other"].named.mean() < own.named.mean() / 3
    assert rows.offered.any() and not rows.offered.all()


def _true(item, folder):
    said = truth.known(folder)[item.id].seen
    return f"<think>I see {', '.join(said)}." in item.response


def test_demonstrations_are_found_by_their_clip_where_they_have_no_id(folder):
    asked, taught = rows_of(folder)
    nameless = [replace(d, id=f"training/line-{i}") for i, d in enumerate(taught, 1)]
    assert named.measure(asked, nameless).equals(named.measure(asked, taught))
    strange = [replace(d, id="x", video=None, image=None) for d in taught]
    with pytest.raises(ValueError, match="x belongs to no training question"):
        named.measure(asked, strange)
    stills = [d for d in taught if d.video is None]  # as in a part without any clip
    with pytest.raises(ValueError, match="no demonstration is about a clip"):
        named.measure(asked, stills)


def test_demonstrations_of_one_question_are_counted_one_by_one(folder, tmp_path):
    """Their steps were joined, and the list had the first one's reasoning alone."""
    asked, taught = rows_of(folder)
    (first, *_) = (item for item in taught if item.video)
    silent = replace(first, response="<think>I see nothing.</think><answer>A</answer>")
    rows = named.measure(asked, [first, silent])
    assert "2 demonstrations" in named.tables(rows)
    named.write_check(rows, 9, tmp_path / "check.csv")
    with (tmp_path / "check.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [row["id"] for row in listed] == [first.id] * 2
    assert "I see nothing." in {row["reasoning"] for row in listed}


def test_the_door_prints_shares_and_lists_some_for_a_person(folder, tmp_path, capsys):
    out = tmp_path / "lists" / "check.csv"
    assert door.main(["teacher", str(folder), "--check", "7", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "every step" in text and "demonstrations about a clip" in text
    with out.open() as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 7 and {row["person"] for row in listed} == {""}
    assert all(row["reasoning"] and row["step"] for row in listed)
    first = out.read_bytes()
    assert door.main(["teacher", str(folder), "--out", str(out)]) == 1  # a person's
    again = capsys.readouterr()
    assert "File exists" in again.err and out.read_bytes() == first
    assert again.out == text
    assert door.main(["teacher", str(tmp_path), "--out", str(out)]) == 1
    assert "training.jsonl" in capsys.readouterr().err


def test_real_narrations_can_be_read():
    """Of the samples' own records: a reasoning in their words names them all."""
    file = paths.ROOT.parent / "shared" / "data" / "validation_L1.sample.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    asked = [q for _, q in questions.check(file, file.parent)["rows"]]
    steps = {step for q in asked for step in q.progress}
    assert len(steps) > 300
    missed = [s for s in steps if named.match(s, f"I see: {s}, done") != "named"]
    assert missed == []
