"""Bad teachers of MiniPlan: the letter stays right whatever the reasoning says."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from lib.data import questions
from lib.data.letters import THINK, parse_answer
from lib.mini import benchmark, reasoning, teacher, truth

SHARES = (0.0, 0.15, 0.3, 0.6, 1.0)
KINDS = ("false", "unseen")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recorded demonstrations, questions, truths) of 120 training questions."""
    root = tmp_path_factory.mktemp("data")
    benchmark.write_annotations(root, benchmark.Sizes(training=120, level=0, general=0))
    path = root / "annotations" / "training.jsonl"
    recorded = questions.read_demonstrations(
        path.with_name("training_with_cot.jsonl"), root
    )
    return recorded, questions.read_training(path, root, seed=3), truth.known(root)


def shared(made, by, kind, share, seed=0):
    recorded, asked, truths = made
    items = teacher.demonstrations(by, recorded, asked, truths)
    return teacher.with_shares(
        items, truths, **{"false": 0, "unseen": 0, kind: share}, seed=seed
    )


def said(item, known):
    return reasoning.check(THINK.search(item.response)[1], None, known)


def chosen(item):
    """The text of the option whose letter is answered."""
    letter = parse_answer(item.response, "first_letter")
    (line,) = (x for x in item.text.splitlines() if x.startswith(f"{letter}. "))
    return line.partition(". ")[2]


@pytest.mark.parametrize("by", ["teacher", "truth"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_every_letter_and_next_step_is_right_at_every_share(made, by, kind, share):
    truths = made[2]
    items = shared(made, by, kind, share)
    assert len(items) == (len(truths) if by == "truth" else len(made[0]))
    for item in items:
        assert chosen(item) == truths[item.id].answer
        assert said(item, truths[item.id])["next"] == "right"


@pytest.mark.parametrize("kind,told", [("false", "wrong"), ("unseen", "absent")])
@pytest.mark.parametrize("share", SHARES)
def test_so_many_are_bad_and_the_others_true(made, kind, told, share):
    truths = made[2]
    items = shared(made, "truth", kind, share)
    found = Counter(said(item, truths[item.id])["progress"] for item in items)
    bad = round(share * len(items))
    assert found == Counter({told: bad, "right": len(items) - bad})
    follows = {"right": "yes", "wrong": "no", "absent": "absent"}
    for item in items:
        checked = said(item, truths[item.id])
        assert checked["follows"] == follows[checked["progress"]]


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_nested_and_drawn_by_seed_and_id_alone(made, kind):
    plain = shared(made, "truth", kind, 0)
    steps = [shared(made, "truth", kind, share) for share in SHARES]
    bad = [
        {new.id: new for old, new in zip(plain, own, strict=True) if old != new}
        for own in steps
    ]
    for few, many in itertools.pairwise(bad):
        assert few.items() <= many.items()
    assert len(bad[-1]) == len(plain)
    mixed = random.Random(0).sample(plain, len(plain))
    again = teacher.with_shares(
        mixed, made[2], **{"false": 0, "unseen": 0, kind: 0.3}, seed=0
    )
    assert {x.id: x for x in again} == {x.id: x for x in steps[2]}
    assert shared(made, "truth", kind, 0.3, seed=1) != steps[2]


def test_both_kinds_at_once_do_not_meet(made):
    truths = made[2]
    items = teacher.demonstrations("truth", [], made[1], truths)
    both = teacher.with_shares(items, truths, 0.5, 0.5, seed=0)
    found = Counter(said(item, truths[item.id])["progress"] for item in both)
    assert found == {"wrong": 60, "absent": 60}


def test_shares_that_cannot_be_and_data_without_truth_are_refused(made):
    recorded, asked, truths = made
    with pytest.raises(ValueError, match="at most 1 together"):
        teacher.with_shares(recorded, truths, 0.6, 0.5, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        teacher.with_shares(recorded, truths, -0.1, 0, seed=0)
    for false, unseen in ((0.3, 0), (0, 0.3)):
        with pytest.raises(ValueError, match="only where it is known what happened"):
            teacher.with_shares(recorded, {}, false, unseen, seed=0)
    with pytest.raises(ValueError, match="about training/0 can be made true or false"):
        teacher.demonstrations("truth", recorded, asked, {})
    with pytest.raises(ValueError, match="'both': it must be teacher or truth"):
        teacher.demonstrations("both", recorded, asked, truths)
    assert teacher.with_shares(recorded, {}, 0, 0, seed=0) == recorded


def test_a_clip_always_shows_something_in_a_false_statement(made):
    truths = made[2]
    filmed = [own for own in truths.values() if not own.episode.image_only]
    for own in filmed:
        if set(own.episode.actions) <= set(own.episode.plan):
            for seed in range(5):
                text = teacher._false(own, random.Random(seed))
                assert reasoning.read(text).seen, own
    still = truth.of_plan(replace(filmed[0].episode, image_only=True))
    texts = {teacher._false(still, random.Random(seed)) for seed in range(30)}
    assert len(texts) > 1


def test_what_demonstrations_state_is_measured(made, monkeypatch):
    recorded, _, truths = made
    monkeypatch.setattr(reasoning, "known", lambda folder: truths)
    items = shared(made, "truth", "false", 0.3)
    assert reasoning.stated(items, "") == {"right": 0.7, "wrong": 0.3}
    own = reasoning.stated(recorded, "")
    assert own["right"] > 0.8 > 0.2 > own["absent"] > 0
    monkeypatch.setattr(reasoning, "known", lambda folder: {})
    assert reasoning.stated(recorded, "") == {}
