"""What is shown changes as its name says, nothing else does, and costs are counted."""

import copy
import shutil
from dataclasses import replace

import pytest

from lib import records
from lib.data.frame_store import question_media
from lib.data.video import BadVideo, Sampling
from lib.evaluate import evaluate, perception
from lib.evaluate.evaluate import EvalSettings
from lib.evaluate.perception import Shown, ask, chosen, resampled, with_other_videos
from lib.model import models
from tests.trainings import SAMPLING

SETTINGS = EvalSettings("think", max_new_tokens=5, batch_size=4)
SIX = ["no_video", "no_pictures", "shuffled", "one_frame", "other_video", "frames_2"]


def shown(condition, question):
    return Shown(condition, 0).media(question, SAMPLING)


def test_what_is_left_out_is_not_even_read(tiny_questions, tmp_path):
    gone = replace(tiny_questions[0], video=tmp_path / "gone.mp4")
    clip, kept = shown("no_video", gone)
    assert clip is None
    assert (kept == question_media(tiny_questions[0], SAMPLING)[1]).all()
    assert shown("no_pictures", gone) == (None, None)
    with pytest.raises(BadVideo):
        shown("shuffled", gone)


def test_shuffled_frames_are_the_same_frames_in_a_drawn_order(tiny_questions):
    long, fewer = replace(SAMPLING, max_frames=8, fps=4.0), {}
    for question in tiny_questions[:2]:
        clip, still = question_media(question, long)
        for seed in (0, 1, 0):
            mixed, kept = Shown("shuffled", seed).media(question, long)
            assert (kept == still).all()
            places = [int((clip == f).all((1, 2, 3)).argmax()) for f in mixed]
            assert sorted(places) == list(range(8))
            assert fewer.setdefault((question.id, seed), places) == places
    assert len({tuple(places) for places in fewer.values()}) == 4


def test_one_frame_is_the_last_twice(tiny_questions):
    clip, _ = question_media(tiny_questions[0], SAMPLING)
    frames, _ = shown("one_frame", tiny_questions[0])
    assert frames.shape[0] == 2 and (frames == clip[-1]).all()


def test_another_video_is_never_the_own_one(tiny_questions):
    """Also where two questions share a video, as in the real benchmark."""
    shared = [replace(tiny_questions[1], video=tiny_questions[0].video)]
    questions = [tiny_questions[0], *shared, *tiny_questions[2:]]
    for seed in range(20):
        other = with_other_videos(questions, seed)
        assert other == with_other_videos(questions, seed)
        for own, new in zip(questions, other, strict=True):
            assert (new.video is None) == (own.video is None)
            assert new.video is None or new.video != own.video
            assert replace(new, video=own.video) == own
    with pytest.raises(ValueError, match="only video"):
        with_other_videos(questions[:3], 0)


def test_other_frames_and_sizes_are_another_sampling():
    for condition, changes in {
        "frames_2": {"max_frames": 2, "min_frames": 2},
        "frames_16": {"max_frames": 16},
        "size_84x112": {"height": 84, "width": 112},
        "shuffled": {},
    }.items():
        assert resampled(SAMPLING, condition) == replace(SAMPLING, **changes)
    with pytest.raises(ValueError, match="max_frames = 5"):
        resampled(SAMPLING, "frames_5")


def test_chosen_questions_keep_their_order_and_do_not_depend_on_the_call():
    some = chosen(range(50), 10, 3)
    assert some == sorted(some) == chosen(range(50), 10, 3) != chosen(range(50), 10, 4)
    assert chosen(range(5), 10, 0) == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def asked(tiny_checkpoint, processor, tiny_questions, tmp_path_factory):
    """The folder of a run that asked under all conditions, and what was left out."""
    run = tmp_path_factory.mktemp("run")
    conditions = [*SIX, "frames_8", "frames_16", "frames_4"]
    given = ({"L1": tiny_questions}, conditions, SETTINGS, SAMPLING, run, "grpo", 6, 0)
    return run, ask(models.load_model(tiny_checkpoint), processor, *given)


def test_only_what_is_shown_differs(asked, model, processor, tiny_questions, tmp_path):
    """The rows are those of the same questions with that media, asked plainly."""

    def plainly(name, questions, sampling=SAMPLING):
        path = tmp_path / f"{name}.jsonl"
        rows = evaluate.evaluate(model, processor, questions, SETTINGS, sampling, path)
        return [{**row, "id": "", "media": None} for row in rows]

    blind = [replace(question, video=None) for question in tiny_questions]
    empty = [replace(question, image=None) for question in blind]
    expected = {
        "no_video": plainly("no_video", blind),
        "no_pictures": plainly("no_pictures", empty),
        "other_video": plainly("other", with_other_videos(tiny_questions, 0)),
        "frames_2": plainly("frames", tiny_questions, resampled(SAMPLING, "frames_2")),
    }
    found = {}
    for name in SIX:
        rows = records.read_jsonl(asked[0] / f"predictions_grpo_L1.{name}.jsonl")
        found[name] = [{**row, "id": "", "media": None} for row in rows]
    assert expected == {name: found[name] for name in expected}
    seen = plainly("seen", tiny_questions)
    for name in set(SIX) - {"no_pictures"}:
        assert seen != found[name] and seen[2] == found[name][2]  # has no video


def test_what_was_shown_is_recorded_and_never_mixed(
    asked, model, processor, tiny_questions, tmp_path
):
    """Each with its own batch: 3 pictures of 4 frames and the still, 5 of 8 frames."""
    settings = {
        name: records.read_json(asked[0] / f"predictions_grpo_L1.{name}.settings.json")
        for name in ("shuffled", "frames_8")
    }
    assert settings["shuffled"]["shown"] == {"condition": "shuffled", "seed": 0}
    assert [found["batch_size"] for found in settings.values()] == [4, 2]
    run, sets = shutil.copytree(asked[0], tmp_path / "run"), {"L1": tiny_questions}
    given = (sets, ["shuffled"], SETTINGS, SAMPLING, run, "grpo", 6, 1)
    with pytest.raises(ValueError, match=r"other settings: shown \(") as refused:
        ask(model, processor, *given)
    assert str(refused.value).count(" there, ") == 1


@pytest.mark.parametrize(
    ("condition", "usual", "batch"),
    [
        *(("size_504x504", 32, 8), ("size_504x504", 3, 1), ("size_112x112", 32, 32)),
        *(("frames_32", 32, 16), ("frames_8", 32, 32), ("no_video", 32, 32)),
        ("seen", 32, 32),
    ],
)
def test_larger_clips_are_shown_to_fewer_at_once(condition, usual, batch):
    """The paper's 16 frames of 252 x 252 and a still: 9 pictures, 17 of 32 frames."""
    sampling = Sampling(16, height=252, width=252)
    assert perception.batch_under(condition, usual, sampling) == batch


def test_what_no_model_of_the_kind_can_be_asked_is_left_out_with_its_reason(
    asked, model, processor, tmp_path
):
    run, left_out = asked
    assert left_out == {"frames_4": "is what the model sees anyway"}
    recorded = records.read_json(run / perception.ASKED)
    assert recorded["left_out"] == left_out and not list(run.glob("*frames_4*"))
    assert recorded["conditions"] == [*SIX, "frames_8", "frames_16"]
    # 8 pairs of frames, more than either side of 56 x 56 has patches, are answered too.
    rows = records.read_jsonl(run / "predictions_grpo_L1.frames_16.jsonl")
    assert len(rows) == 6 and all(row["completion"] for row in rows)
    other = copy.deepcopy(processor)
    other.video_processor.patch_size = 16  # as Qwen3-VL has it
    given = (SETTINGS, SAMPLING, tmp_path, "base", 2, 0)
    (why,) = ask(model, other, {}, ["size_84x84"], *given).values()
    assert "must be multiples of 32" in why
    with pytest.raises(ValueError, match="'blind' is unknown"):
        ask(model, processor, {}, ["blind"], *given)
