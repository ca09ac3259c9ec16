"""The examples of "Extend it" are taken from four docstrings and carried out.

A copy of the kit is extended exactly as they say, films are made that the data set
tells of, and one process (extended.py) trains with what was added."""

import ast
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from lib import run_files
from lib.data import questions
from lib.mini import benchmark, world
from lib.paths import ROOT
from lib.records import read_json, read_jsonl, write_json

# modules that hold one, and their folders
EXAMPLES = {"rewards": "train", "rl": "train"}
EXAMPLES |= {"training_sets": "data", "models": "model"}
# file of films.json: clips in it
FILES = {"training": 4, "validation_L1": 2, "validation_L2": 1, "validation_L3": 1}


@pytest.fixture(scope="module")
def sections():
    """{module: what its docstring says from "Extend it" on}."""
    texts = {}
    for name, folder in EXAMPLES.items():
        file = ROOT / "lib" / folder / f"{name}.py"
        module = ast.parse(file.read_text(encoding="utf-8"))
        texts[name] = ast.get_docstring(module).partition("\nExtend it: ")[2]
    return texts


@pytest.fixture(scope="module")
def blocks(sections):
    """{module: the indented lines, which are code: one short block}."""
    found = {}
    for name, text in sections.items():
        (code,) = re.findall(r"(?:^    .*\n|^\n+(?=    ))+", f"{text}\n", re.M)
        found[name] = textwrap.dedent(code).lstrip("\n")
        assert 3 < len(found[name].splitlines()) < 30
    return found


def film(file: str, number: int, folder: Path) -> dict:
    """Render a clip and a still, and say what films.json would of them."""
    rng, name = random.Random(f"{file}/{number}"), f"{file}_{number}"
    episode = world.sample_episode(rng, "Daily life", number)
    benchmark.write_clip(folder / "videos" / "films" / f"{name}.mp4", episode)
    still = Image.fromarray(world.still(episode))
    still.save(folder / "images" / "films" / f"{name}.png")
    last = file == "validation_L3"
    told = benchmark.record(benchmark.Item("training", number, episode))
    return {
        "id": f"film {number}" if last else number,
        "clip": f"{name}.mp4",
        "still": f"{name}.png",
        "goal": episode.goal,
        "done": told["task_progress_metadata"],
        "options": [episode.say(step) for step in episode.options],
        "answer": episode.say(episode.answer),
        "why": f"Next is {episode.say(episode.answer)}.",
        **({"more": {"domain": "Work", "scenario": "Shop"}} if last else {}),
    }


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A data folder as a user has it: films.json, clips and stills."""
    folder = tmp_path_factory.mktemp("kit") / "outputs" / "data" / "films"
    for kind in ("videos", "images"):
        (folder / kind / "films").mkdir(parents=True)
    told = {
        file: [film(file, number, folder) for number in range(count)]
        for file, count in FILES.items()
    }
    write_json(folder / "films.json", told)
    return folder


@pytest.fixture(scope="module")
def kit(films, blocks, sections):
    """The extended copy of the kit, after everything in it has run."""
    kit = films.parents[2]
    fresh = shutil.ignore_patterns("__pycache__")
    for name in ("lib", "params", "notebooks"):
        shutil.copytree(ROOT / name, kit / name, ignore=fresh)
    for name in ("rewards", "rl"):
        with (kit / "lib" / "train" / f"{name}.py").open("a") as module:
            module.write(f"\n\n{blocks[name]}")
    (kit / "lib" / "films.py").write_text(blocks["training_sets"])
    (kit / "params" / "grpo_after_sft.yaml").write_text(blocks["models"])
    run(kit, "-m", *found(sections["training_sets"], r"data_command: ([^`]+)`").split())
    reward = found(sections["rewards"], r'-p reward "([^"]+)"')
    export = found(sections["models"], r"python -m lib.run export ([^`]+)`")
    run(kit, str(ROOT / "tests" / "extended.py"), reward, *export.split())
    return kit


def found(text: str, pattern: str) -> str:
    return re.search(pattern, text)[1]


def run(kit: Path, *arguments: str) -> None:
    """Python in the copy, whose lib is the one that is imported."""
    given = {"env": {**os.environ, "PYTHONPATH": str(kit), "OMP_NUM_THREADS": "1"}}
    given |= {"cwd": kit, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *arguments], **given)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(kit: Path, run: str, label: str) -> dict:
    folder = kit / "outputs" / run / "adapters" / label
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict, other: dict) -> bool:
    return all(one[name].equal(other[name]) for name in one | other)


def test_the_reward_is_logged_and_moves_what_is_trained(kit, films):
    rows = read_jsonl(kit / "outputs" / "both" / "rollouts.jsonl")
    path = films / "annotations" / "training.jsonl"
    asked = {q.id: q for q in questions.read_training(path, films)}
    for row in rows:
        steps = asked[row["question"]].progress
        thought = row["text"].partition("</think>")[0].lower()
        share = sum(step in thought for step in steps) / len(steps)
        assert row["rewards"]["progress"] == pytest.approx(share)
    named = [row["rewards"]["progress"] for row in rows]
    assert 0 < sum(named) < len(named)
    (log,) = read_jsonl(kit / "outputs" / "both" / "train_log_grpo.jsonl")
    assert log["reward_progress"] == pytest.approx(sum(named) / len(named))
    total = log["reward_accuracy"] + 0.2 * log["reward_progress"]
    assert log["reward"] == pytest.approx(total, abs=1e-6)
    assert not same(weights(kit, "both", "grpo"), weights(kit, "accuracy", "grpo"))


def test_all_that_it_left_is_known_as_the_kits(kit):
    """So that --fresh deletes what an extension's run wrote, and nothing else."""
    run = kit / "outputs" / "both"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files and [path for path in files if not run_files.made(run, path)] == []


def test_the_variant_trains_under_its_name_on_what_did_better(kit):
    run = kit / "outputs" / "both"
    grpo, psr = (read_jsonl(run / f"rollouts{name}.jsonl") for name in ("", "_psr"))
    better = [max(0.0, row["advantage"]) for row in grpo]
    assert [row["text"] for row in psr] == [row["text"] for row in grpo]
    assert [row["advantage"] for row in psr] == pytest.approx(better)
    assert sum(better) > 0
    logs = [read_jsonl(run / f"train_log_{name}.jsonl") for name in ("grpo", "psr")]
    # Every ratio is 1, so the loss is minus the mean advantage: 0 within a group.
    assert logs[0][0]["loss"] == pytest.approx(0, abs=1e-4)
    expected = -sum(better) / len(better)
    assert logs[1][0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_a_watched_group_shows_the_variants_advantages(kit):
    first, last = read_jsonl(kit / "outputs" / "both" / "watched_psr.jsonl")
    assert (first["step"], last["step"]) == (0, 1)
    for row in (first, last):
        rewards = [own["reward"] for own in row["rollouts"]]
        mean = sum(rewards) / len(rewards)
        for own in row["rollouts"]:
            assert (own["advantage"] > 0) == (own["reward"] > mean + 1e-6)
            assert own["advantage"] >= 0


def test_the_variants_option_leads_back_to_grpo(kit):
    whole = weights(kit, "whole", "psr")
    assert same(weights(kit, "both", "grpo"), whole)
    assert not same(weights(kit, "both", "psr"), whole)
    card = (kit / "outputs" / "psr" / "README.md").read_text()
    assert "after psr (`lib/train/rl.py`)" in card


def test_the_data_set_has_no_faults(kit, films):
    kinds = {}
    for path in (films / "annotations").glob("*.jsonl"):
        told = questions.check(path)
        assert told["faults"] == []
        kinds[path.stem] = (told["records"], told["kind"].rpartition(" ")[2])
    taught = (FILES["training"], "reasoning")
    counted = {file: (count, kinds[file][1]) for file, count in FILES.items()}
    assert kinds == {**counted, "training_with_cot": taught}
    assert kinds["training"][1] == "training" and kinds["validation_L3"][1] == "L3"


def test_the_data_set_is_read_as_the_films_tell_it(kit, films):
    told, path = read_json(films / "films.json"), films / "annotations"
    read = {
        name: questions.read_validation(path / f"validation_{name}.jsonl", films, name)
        for name in ("L1", "L2", "L3")
    }
    read["training"] = questions.read_training(path / "training.jsonl", films)
    for name, asked in read.items():
        file = name if name == "training" else f"validation_{name}"
        for question, own in zip(asked, told[file], strict=True):
            assert question.answer == own["answer"]
            assert sorted(question.options) == sorted(own["options"])
            assert len(question.progress) == len(own["done"])
            assert question.video.is_file() and question.image.is_file()


def test_the_model_is_trained_further_and_evaluated(kit):
    told, run = read_json(kit / "told.json"), kit / "outputs" / "grpo_after_sft"
    base = read_json(kit / "outputs" / "both" / "adapters/grpo/grpo_settings.json")
    own = read_json(run / "adapters/grpo/grpo_settings.json")
    assert (kit / told["model"] / "config.json").is_file()
    assert own["settings"]["model"] != base["settings"]["model"]
    for label in ("base", "grpo"):
        rows = read_jsonl(run / f"predictions_{label}_L1.jsonl")
        assert len(rows) == FILES["validation_L1"]
        assert all(row["completion"] for row in rows)


def test_what_is_said_of_other_models(kit, sections):
    text, told = sections["models"], read_json(kit / "told.json")
    assert told["said"].startswith(found(text, r"`(model_type 'llava'[^`]+)`"))
    assert all(f"`{name}`" in text for name in told["families"])
