"""MiniPlan keeps its promises, and the base checkpoint is an ordinary one."""

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import decord
import numpy as np
import pytest

from lib import paths, records
from lib.analysis import stats
from lib.data import letters, questions
from lib.data.blind import BlindReader
from lib.mini import benchmark, lessons, world

BASE = paths.ROOT / "lib/mini/base"


@pytest.fixture(scope="module")
def items():
    return benchmark.make_items(benchmark.Sizes())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    sizes = benchmark.Sizes(training=24, level=12, general=16)
    return benchmark.write(tmp_path_factory.mktemp("mini") / "data", sizes)


def asked(item):
    """The item as a reader sees it: options in a drawn order, no media."""
    e = item.episode
    return questions.Question(
        id=item.stem, level=item.split, goal=e.goal, domain=e.domain, scenario="",
        text=lessons.question_text(e, item.image_only), answer=e.say(e.answer),
        options=tuple(map(e.say, e.options)), gold=e.letter,
        progress=tuple(map(e.say, e.actions)), video=None, image=None,
    )  # fmt: skip


def everything(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): records.sha256(p) for p in files}


def test_it_is_as_large_as_promised(items):
    assert len(items["training"]) >= 2000
    assert all(len(items[level]) >= 500 for level in ("L1", "L2", "L3"))


def test_no_instance_occurs_twice(items):
    every = [benchmark.instance(i.episode) for split in items.values() for i in split]
    assert len(set(every)) == len(every)


def test_levels_are_disjoint_as_defined(items):
    """L1 shares places and tasks with training, L2 tasks alone, L3 neither."""

    def places(split):
        return {item.episode.environment for item in items[split]}

    def tasks(split):
        return {(i.episode.family, i.episode.combination) for i in items[split]}

    def domains(split):
        return {item.episode.domain for item in items[split]}

    assert places("L1") <= places("training") and tasks("L1") <= tasks("training")
    assert not places("L2") & places("training") and tasks("L2") <= tasks("training")
    assert not places("L3") & (places("training") | places("L2"))
    assert not tasks("L3") & tasks("training")
    assert domains("training") == domains("L1") == domains("L2") == {"Daily life"}
    assert domains("L3") == set(world.DOMAINS)


def test_pretraining_never_meets_a_level(items):
    known = {item.episode.environment for split in items.values() for item in split}
    assert not known & set(lessons.ENVIRONMENTS)
    held = {(f, c) for f in ("single", "pair") for c in world.combinations_for(f, True)}
    rng = random.Random(0)
    taught = [lessons.any_episode(rng) for _ in range(500)]
    assert not {(e.family, e.combination) for e in taught} & held


@pytest.mark.parametrize("level", ["L1", "L2", "L3"])
def test_gold_letters_are_balanced(items, level):
    counts = [sum(i.episode.letter == a for i in items[level]) for a in "ABCD"]
    assert max(counts) - min(counts) <= 1


def test_about_15_percent_have_no_video(items):
    every = [item for split in items.values() for item in split]
    share = sum(item.image_only for item in every) / len(every)
    assert 0.12 < share < 0.18


def test_text_alone_stays_near_chance(items):
    """A trained reader of the text gains at most six points, 95 % sure, on 1,500."""
    reader = BlindReader.fit([asked(item) for item in items["training"]])
    rows = [asked(i) for level in ("L1", "L2", "L3") for i in items[level]]
    _, high = stats.wilson_interval(sum(reader.right(rows)), len(rows))
    assert high < 0.31


def test_the_rule_of_the_world_answers_every_question(items):
    """The first step of the goal, in work order, that has not been done."""
    for item in items["L1"] + items["L3"]:
        e = item.episode
        assert e.answer == next(s for s in e.plan if s not in e.actions)
        assert set(e.options) == set(e.plan)


def test_every_effect_changes_the_picture():
    rng = random.Random(1)
    episode = world.sample_episode(rng, "Work", 3)
    plain = world._render(episode, np.zeros((2, 6), bool), None, 0)
    for effect in range(6):
        state = np.zeros((2, 6), bool)
        state[0, effect] = True
        changed = world._render(episode, state, None, 0) != plain
        assert changed.any(-1).sum() >= 20, world.EFFECTS[effect]


def test_same_seed_same_bytes_and_another_seed_others(small, tmp_path):
    sizes = benchmark.Sizes(training=24, level=12, general=16)
    again = everything(benchmark.write(tmp_path / "again", sizes))
    assert again == everything(small)
    other = everything(benchmark.write(tmp_path / "other", replace(sizes, seed=1)))
    assert other["annotations/training.jsonl"] != again["annotations/training.jsonl"]


def test_records_have_no_faults_for_the_real_readers(small):
    files = [*small.glob("annotations/*.jsonl"), small / "general/lvb_val.json"]
    assert len(files) == 6
    for path in files:
        found = questions.check(path)
        assert found["usable"] == found["records"] > 0, path
        assert found["faults"] == [], path


def test_ids_are_typed_as_in_the_real_files(small):
    kinds = {
        level: {
            type(row["sample_id"])
            for row in records.read_jsonl(
                small / f"annotations/validation_{level}.jsonl"
            )
        }
        for level in ("L1", "L2", "L3")
    }
    assert kinds == {"L1": {int}, "L2": {int}, "L3": {str}}


def test_clips_are_h264_and_show_what_was_rendered(small):
    item = next(i for i in benchmark.make_items(
        benchmark.Sizes(training=24, level=12, general=16)
    )["L1"] if not i.image_only)  # fmt: skip
    path = small / "videos/MiniPlan" / f"{item.stem}.mp4"
    frames = decord.VideoReader(str(path))[:].asnumpy()
    rendered = world.clip(item.episode)
    assert frames.shape == rendered.shape
    assert np.abs(frames.astype(int) - rendered).mean() < 6
    assert b"avc1" in path.read_bytes()


def test_demonstrations_are_right_but_not_always_for_right_reasons(items):
    taught = [benchmark.demonstration(item, 0) for item in items["training"]]
    kept = [(i, d) for i, d in zip(items["training"], taught, strict=True) if d]
    assert 0.6 < len(kept) / len(taught) < 0.95
    for item, shown in kept:
        letter = letters.parse_answer(shown["response"], "first_letter")
        assert letter == item.episode.letter
    hasty = sum(d["response"].startswith("<think>Next is") for _, d in kept)
    assert hasty > 0


def test_another_benchmark_in_the_folder_is_not_overwritten(small):
    with pytest.raises(FileExistsError, match="other settings"):
        benchmark.write(small, benchmark.Sizes(training=24, level=12, general=8))


def test_two_processes_make_one_benchmark(small, tmp_path):
    """As two runs of a sweep do on a fresh machine."""
    command = [sys.executable, "-m", "lib.mini", "write", str(tmp_path / "b")]
    command += ["--size=smoke"]
    both = [subprocess.Popen(command, cwd=paths.ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "b" / "benchmark.json").exists()
    assert not (tmp_path / ".b.unfinished").exists()


def test_general_questions_have_four_or_five_options_and_both_durations():
    rows = [row for row, _ in benchmark.make_general(200, 0)]
    assert {len(row["candidates"]) for row in rows} == {4, 5}
    assert {row["duration_group"] for row in rows} == {15, 60}
    for row in rows:
        low, high = {15: (8, 15), 60: (15, 60)}[row["duration_group"]]
        assert low < row["duration"] <= high


def test_the_base_loads_with_auto_classes_alone(tmp_path):
    """In a process that imports only the CPU shim and transformers."""
    program = (
        "from lib.data import torchvision_cpu\n"
        "from transformers import AutoProcessor, AutoModelForImageTextToText as Auto\n"
        f"processor = AutoProcessor.from_pretrained({str(BASE)!r})\n"
        f"model = Auto.from_pretrained({str(BASE)!r})\n"
        "print(type(model).__name__, type(processor).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "Qwen2VLForConditionalGeneration Qwen2VLProcessor"
    assert done.stdout.strip() == expected


def test_the_base_is_small_and_its_manifest_tells_its_hash():
    weights = BASE / "model.safetensors"
    manifest = json.loads(Path(BASE / "manifest.json").read_text())
    assert weights.stat().st_size <= 6_000_000
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["model_sha256"] == found
    assert manifest["losses"] and manifest["seconds"] > 0 and manifest["command"]
