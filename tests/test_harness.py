"""The tasks for lmms-eval: read as it reads them, scored as the kit scores."""

import runpy
from dataclasses import replace

import yaml
from datasets import load_dataset
from PIL import Image

from lib.data.__main__ import main
from lib.data.letters import judged
from lib.data.prompts import prompt_text
from lib.data.questions import read_validation
from lib.mini import benchmark
from tests.test_rewards import READ, WHOLE


class Loader(yaml.SafeLoader):
    """Takes `!function utils.NAME` as that text."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def test_lmms_eval_asks_and_scores_as_the_kit(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "tasks"
    few = {"training": 4, "level": 8, "general": 4}
    benchmark.write(data, replace(benchmark.SIZES["smoke"], **few))
    (data / "annotations" / "validation_L2.jsonl").unlink()
    next((data / "images").rglob("*L3*.png")).unlink()
    assert main(["harness", str(data), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "seed_bench_r1_L1.yaml: 8 questions\n" in said
    assert "seed_bench_r1_L3.yaml: 8 questions, 1 lack a clip or still" in said
    assert len([*out.glob("*.yaml")]) == 2
    task = yaml.load((out / "seed_bench_r1_L1.yaml").read_text(), Loader)
    assert task["reasoning_tags"] == "none"  # else it scores without the reasoning
    utils = runpy.run_path(str(out / "utils.py"))
    show, ask, score = (
        utils[task[name].removeprefix("utils.")]
        for name in ("doc_to_visual", "doc_to_text", "process_results")
    )
    place = {"cache_dir": str(tmp_path), **task["dataset_kwargs"]}
    docs = load_dataset(task["dataset_path"], **place)[task["test_split"]]
    level = read_validation(data / "annotations" / "validation_L1.jsonl", data, "L1")
    assert any(question.video is None for question in level)
    for doc, question in zip(docs, level, strict=True):
        assert ask(doc, None) == prompt_text(question, "think")
        assert doc[task["doc_to_target"]] == question.gold
        *video, still = show(doc)
        assert video == [str(path) for path in [question.video] if path]
        assert still.size == Image.open(question.image).size and still.mode == "RGB"
    said = [row[0] for row in WHOLE] + [f"<answer>{text}</answer>" for text, _ in READ]
    for text in said:
        for gold in "ABCD":
            ours = judged(text, question.options, gold)["correct"]
            assert score({"gold": gold}, [text.strip()]) == {"accuracy": float(ours)}


def test_a_folder_without_levels_is_named(tmp_path, capsys):
    assert main(["harness", str(tmp_path), "--out", str(tmp_path / "tasks")]) == 1
    assert f"{tmp_path}/annotations: no validation_L1" in capsys.readouterr().err
