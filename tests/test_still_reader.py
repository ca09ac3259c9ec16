"""The ideal reader knows what the generator draws, and sees what the still shows."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lib.mini import benchmark, still_reader, truth, world
from lib.mini.world import Step

WET, SPLIT, DARK, DOTS, STRAP, TRAY = range(6)


def episode(combination, done, hand_covers, dries=False):
    """One tomato on which the first `done` steps of the plan were done."""
    plan = tuple(Step(effect, 0) for effect in combination)
    fixed = {"objects": (0, 1), "family": "single", "plan": plan, "options": plan}
    fixed |= {"actions": plan[:done], "answer": plan[done], "hand_covers": hand_covers}
    fixed["dries"] = dries
    return replace(world.sample_episode(random.Random(3), "Daily life", 0), **fixed)


def test_an_open_still_leaves_one_answer():
    for done in range(1, 4):
        made = episode((WET, DARK, DOTS, TRAY), done, hand_covers=False)
        assert still_reader.still_ceiling(made) == 1


def test_a_hand_over_the_mark_that_decides_leaves_several_answers():
    """Wet sticks out under the hand; dark and dots do not. One, two or three of the
    four steps may be done: the likeliest is right in well under all cases."""
    stills = []
    for done in (1, 2, 3):
        made = episode((WET, DARK, DOTS, TRAY), done, hand_covers=True)
        stills.append(world.still(replace(made, hold=5, tail=20 - 5 * done)))
        assert (stills[0] == stills[-1]).all()
        assert 1 / 3 <= still_reader.still_ceiling(made) < 0.4


def test_a_hand_cannot_hide_that_the_object_was_moved():
    """Wash, then plate: where the hand is says whether it was plated."""
    before, after = (
        still_reader.still_ceiling(episode((WET, TRAY, DARK, DOTS), done, True))
        for done in (1, 2)
    )
    assert before == 1 and after < 1


def test_histories_are_those_the_generator_draws():
    """Over 4,000 drawn episodes: plan steps done, all steps, is the last planned?"""
    rng = random.Random(0)
    drawn, expected = Counter(), Counter()
    for _ in range(4000):
        e = world.sample_episode(rng, "Work", 5)
        done = sum(step in e.plan for step in e.actions)
        drawn[done, len(e.actions), e.actions[-1] in e.plan] += 1 / 4000
    histories = list(still_reader.histories(e))
    assert sum(p for p, _ in histories) == pytest.approx(1)
    for probability, actions in histories:
        done = sum(step in e.plan for step in actions)
        expected[done, len(actions), actions[-1] in e.plan] += probability
    assert set(drawn) == set(expected)
    assert max(abs(drawn[key] - expected[key]) for key in expected) < 0.025


def test_the_reader_is_right_as_often_as_it_says():
    """Its guess from pixels alone, over drawn questions, against its own ceilings."""
    rng, right, ceilings = random.Random(1), [], []
    for _ in range(300):
        e = world.sample_episode(rng, "Daily life", 3)
        if e.hand_covers:
            seen, weight = world.still(e), Counter()
            for probability, actions in still_reader.histories(e):
                step = next(s for s in e.plan if s not in actions)
                for dries, share in ((True, world.DRIES), (False, 1 - world.DRIES)):
                    if (still_reader._still(e, actions, dries) == seen).all():
                        weight[step] += probability * share
            assert weight[e.answer] > 0  # what happened is among what may have
            right.append(weight.most_common(1)[0][0] == e.answer)
            ceilings.append(still_reader.still_ceiling(e))
    assert 0.05 < np.mean(np.array(ceilings) < 1) < 0.8
    assert np.mean(right) == pytest.approx(np.mean(ceilings), abs=0.08)


def test_every_question_with_a_video_is_in_one_group(tmp_path):
    sizes = benchmark.Sizes(training=8, level=24, general=8)
    folder = benchmark.write(tmp_path / "data", sizes)
    found = still_reader.without_video(folder)
    known = truth.known(folder)
    levels = [key for key in known if key.startswith("L")]
    assert list(found) == [key for key in levels if not known[key].episode.image_only]
    for key, entry in found.items():
        covered = known[key].episode.hand_covers
        assert entry["group"] in ("needed", "hand" if covered else "open")
        assert (entry["group"] == "needed") == (entry["ceiling"] < 1)
    assert still_reader.without_video(tmp_path) == {}  # nobody knows
