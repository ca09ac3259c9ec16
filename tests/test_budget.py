"""The plan before a run: arithmetic, counted FLOP, checks that fail, and no traces."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib import (
    budget,
    compute,
    frame_store,
    memory,
    models,
    params,
    paths,
    pipeline,
    preflight,
    prompts,
    questions,
    records,
    video,
    workload,
)
from lib.mini import benchmark
from lib.model import encoding, prefix, rollouts, scoring
from lib.model_states import Sharding, of_config

BASE = paths.ROOT / "lib" / "mini" / "base"
MINI = paths.ROOT / "params" / "mini.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small MiniPlan with its clips."""
    return benchmark.write(
        tmp_path_factory.mktemp("data") / "miniplan",
        benchmark.Sizes(training=24, level=8, general=6),
    )


@pytest.fixture
def values(data) -> dict:
    """The mini run's values on the small data."""
    (run,) = params.load_params(MINI)
    own = {"data_dir": str(data), "general_dir": str(data / "general")}
    return memory.all_values(run) | own


def write_params(folder: Path, data: Path, *lines: str, name: str = "a.yaml") -> Path:
    file = folder / name
    places = [f"data_dir: {data}", f"general_dir: {data / 'general'}"]
    named = [] if any(line.startswith("sweep") for line in lines) else ["run_name: a"]
    file.write_text("\n".join([f"base: {MINI}", *named, *places, *lines]) + "\n")
    return file


def dry_run(file: Path, capsys) -> tuple[int, str]:
    code = pipeline.main([str(file), "--dry-run"])
    return code, capsys.readouterr().out


def row(text: str, stage: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(stage)]
    return line.split()


# Steps and epochs


@pytest.mark.parametrize(
    ("items", "once", "epochs", "steps"),
    [
        (6000, 128, 1.0, 46),
        (6000, 8, 1.0, 750),
        (1577, 32, 2.0, 98),
        (3, 8, 1.0, 1),  # fewer than one step holds
        (10, 5, 0.5, 1),
        (30, 10, 0.1 * 3, 1),  # 0.30000000000000004 of 3 steps is one step
    ],
)
def test_steps_of_epochs(items, once, epochs, steps):
    assert workload.steps_of_epochs(items, once, epochs) == steps
    workload.check_epochs("sft_steps", steps, once, items, epochs)
    many = 2 * steps + 2
    with pytest.raises(ValueError, match=rf"sft_steps = {many} .* = {steps}$"):
        workload.check_epochs("sft_steps", many, once, items, epochs)


@pytest.mark.parametrize("items", [5880, 5993, 6000, 6016, 6120])
def test_a_recipe_takes_a_few_records_more_or_less(items):
    workload.check_epochs("sft_steps", 46, 128, items, 1.0)
    workload.check_epochs("grpo_steps", 750, 8, items, 1.0)


@pytest.mark.parametrize(("items", "epochs"), [(3000, 1.0), (50000, 1.0), (6000, 2.0)])
def test_other_files_and_epochs_are_refused(items, epochs):
    for name, steps, once in (("sft_steps", 46, 128), ("grpo_steps", 750, 8)):
        with pytest.raises(ValueError, match=name):
            workload.check_epochs(name, steps, once, items, epochs)


def test_no_epochs_asked_for_are_not_checked():
    workload.check_epochs("grpo_steps", 3, 8, 6000, 0.0)


# FLOP


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_flop_are_those_that_torch_counts():
    """With eager attention, whose products torch's counter sees."""
    model = models.load_model(BASE)
    model.set_attn_implementation("eager")
    scoring.add_scoring(model)
    clip = torch.zeros(8, 56, 112, 3, dtype=torch.uint8).numpy()
    turn = prompts.messages("what next? " * 30, clip, clip[0])
    encoded = encoding.encode(models.load_processor(BASE), [turn])
    prompt = prefix.make_prompt(model, encoded)
    group = [torch.arange(10, 30)] * 8
    (run,) = params.load_params(MINI)
    work = replace(memory.work_of(memory.all_values(run), "cpu"), lora_rank=0)
    sizes = memory.Sizes.of(model.config)
    item = compute.Item(len(prompt.ids), 5 * 32, 32, 20)
    decoding = rollouts.Decoding(20, 1.0, 0, 1.0, (-1,), 0, ())

    def scores():
        return scoring.completion_scores(model, [prompt], [group])[0]

    found = counted(lambda: rollouts.draw(model, [prompt], 8, decoding))
    wanted = compute.rollouts(sizes, work, item, 1).flop
    assert found == pytest.approx(wanted, rel=0.06)  # the last token is not fed again
    found = counted(scores)
    wanted = compute.scores(sizes, work, item, learning=False).flop
    assert found == pytest.approx(wanted, rel=0.01)
    read = compute.reading(sizes, work, item, 8).flop
    assert read == pytest.approx(
        found - compute.head(sizes, work, 160, False), rel=0.02
    )
    model.train().requires_grad_(True)
    found = counted(lambda: torch.cat(scores()).sum().backward())
    wanted = compute.scores(sizes, work, item, learning=True).flop
    assert found == pytest.approx(wanted, rel=0.03)  # pixels need no gradient


def test_training_costs_what_its_passes_cost(values):
    sizes = memory.Sizes.of(memory.config_of(BASE))
    work = replace(memory.work_of(values, "cpu"), lora_rank=0)
    item = compute.Item(100, 0, 0, 10)
    forward = compute.scores(sizes, work, item, learning=False).flop
    update = compute.scores(sizes, work, item, learning=True).flop
    assert update == 3 * forward
    again = compute.scores(sizes, replace(work, checkpointing=True), item, True).flop
    head = compute.head(sizes, work, work.group * 10, learning=False)
    assert again == 4 * forward - head
    adapted = compute.scores(sizes, replace(work, lora_rank=16), item, True).flop
    assert 2 * forward < adapted < 3 * forward
    assert compute.saved(work, item) == pytest.approx(8 * 110 / (99 + 80))


def test_hours_on_a_card_are_arithmetic_and_reading():
    card = compute.Card("x", flop=1e12, read=1e9)
    least, most = compute.seconds(compute.Cost(8e12, 10), card, 4, 1e8)
    assert (least, most) == pytest.approx((5 + 1.25, 10 + 2.5))
    least, most = compute.seconds(compute.Cost(8e12, 10), card, 4, 1e8, draw=0.2)
    assert (least, most) == pytest.approx((5 + 2, 10 + 2.5))


def test_a_draw_on_nf4_and_lora_takes_what_was_measured():
    """Of rollouts and evaluations of both sizes; the rest of a stage is in it too."""
    costs = records.read_json(paths.ROOT / "outputs/reference/bench_cost.json")["costs"]
    for found in costs.values():
        shape, work = found["shape"], memory.Work(**found["work"] | {"sharding": None})
        (run,) = params.load_params(paths.ROOT / "params" / found["params"])
        sizes = memory.Sizes.of(memory.config_of(run.values["model"]))
        took = {row["stage"]: row["seconds"] for row in found["rows"]}
        draws = {
            took["rollout"] / shape["completion"],
            took["evaluation"] * shape["eval_batch"] / shape["completion"],
        }
        draw = compute.handed(sizes, work)
        assert all(draw < seconds < 1.1 * draw for seconds in draws)
    assert compute.handed(sizes, replace(work, quantize=False)) == 0


# Samples and tokens


def test_counts_are_those_of_the_readers(values, data):
    sets = workload.sets_of(values)
    training = questions.read_training(data / "annotations/training.jsonl", data, 0)
    kept, _ = questions.split_holdout(training, values["holdout_share"])
    assert sets["training"].count == len(kept)
    assert {name: sets[name].count for name in workload.LEVELS} == {
        **{"L1": 8, "L2": 8, "L3": 8, "general": 6}
    }


def test_tokens_are_those_that_the_model_is_given(values, data):
    """With four frames every clip has the most frames, so the means are exact."""
    values |= {"max_frames": 4}
    sampling = video.Sampling(4, fps=2.0, height=56, width=112)
    asked = questions.read_validation(
        data / "annotations/validation_L1.jsonl", data, "L1"
    )
    processor = models.load_processor(BASE)
    for style in ("think", "direct"):
        lengths = []
        for question in asked:
            media = frame_store.question_media(question, sampling)
            turn = prompts.messages(prompts.prompt_text(question, style), *media)
            lengths.append(encoding.encode(processor, [turn])["input_ids"].shape[1])
        known = workload.sets_of(values)["L1"]
        text = known.text if style == "think" else known.direct
        item = workload.item_of(known, values, text, 0)
        assert item.prompt == pytest.approx(sum(lengths) / len(lengths))


def test_what_is_not_there_is_announced_by_its_command(values, tmp_path):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    values |= {"holdout_share": 0.0}
    sets = workload.sets_of(values | {"data_command": "lib.data get x"})
    assert (sets["training"].count, sets["L1"].count) == (6000, 2432)
    assert not sets["L1"].read
    sets = workload.sets_of(values | {"data_command": "lib.mini write x"})
    assert (sets["training"].count, sets["L1"].count) == (2200, 500)
    assert workload.sets_of(values | {"data_command": ""}) == {}


# The command


def test_a_dry_run_says_all_and_leaves_nothing(data, tmp_path, capsys):
    file = write_params(tmp_path, data, "run_name: dry_run_of_a_test")
    file.write_text(file.read_text().replace("run_name: a\n", ""))
    outputs = paths.ROOT / "outputs"

    def tree(folder: Path) -> dict:
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

    before = tree(tmp_path) | tree(data)
    code, text = dry_run(file, capsys)
    assert code == 0 and "every check passed" in text
    assert tree(tmp_path) | tree(data) == before
    assert not list(outputs.glob("*dry_run_of_a_test*"))
    assert row(text, "SFT ")[1:4] == ["100", "3,200", "demonstrations"]
    assert row(text, "GRPO: rollouts")[2:7] == ["100", "800", "questions", "x", "8"]
    assert row(text, "evaluation: answers")[2:5] == ["-", "120", "answers"]
    assert "time            " in text and "come on top" in text
    assert "GRPO: reference" not in text and len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 104


def test_numbers_follow_from_the_parameters(data, tmp_path, capsys):
    lines = ("sft_steps: 200", "group_size: 4", "kl_beta: 0.1", "lora_rank: 8")
    _, before = dry_run(write_params(tmp_path, data), capsys)
    _, after = dry_run(write_params(tmp_path, data, *lines, "max_frames: 4"), capsys)
    assert row(after, "SFT ")[2] == "6,400"
    assert row(after, "GRPO: reference")[-1] != "0.0"
    tera = [float(row(text, "GRPO: update")[-1]) for text in (before, after)]
    assert tera[1] < 0.7 * tera[0]
    _, kept = dry_run(write_params(tmp_path, data, f"frames_dir: {tmp_path}"), capsys)
    kept, before = " ".join(kept.split()), " ".join(before.split())
    assert "frame store" in kept and "frame store" not in before


def test_evaluation_is_all_that_04_eval_does(data, tmp_path, capsys):
    """Four models on 8 + 8 + 8 + 6 questions, three of them looked at more closely."""
    lines = ("perception_conditions: no_video frames_4", "perception_questions: 5")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    asked = row(text, "evaluation: conditions")
    assert asked[3] == str(3 * 2 * (5 + 5))  # models, conditions, L1 and L3
    files = {
        name: data / f"annotations/validation_{name}.jsonl" for name in ("L1", "L3")
    }
    levels = (questions.read_validation(f, data, name) for name, f in files.items())
    filmed = sum(item.video is not None for level in levels for item in level)
    assert row(text, "evaluation: attention")[3] == str(3 * 2 * filmed)
    assert row(text, "evaluation: readers")[3] == str((3 + 2) * 30)  # base's, own
    lines = ('perception_conditions: ""', "attention_questions: 0")
    lines += ('coherence_sets: ""', "asked_models: grpo")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    assert row(text, "evaluation: answers")[3] == "30"
    assert text.count("evaluation:") == 1


def test_a_condition_is_counted_with_what_it_shows(values):
    """Two frames make a picture of 32 patches, 8 tokens; a still is one more."""
    asked = workload.Asked(10, text=100)
    usual = workload.item_of(asked, values, 100, 48)
    assert (usual.patches, usual.prompt) == (5 * 32, 100 + 5 * 8 + 4)
    patches = {"no_pictures": 0, "no_video": 32, "one_frame": 64, "shuffled": 160}
    patches |= {"frames_32": 17 * 32, "size_112x224": 4 * 160}
    for condition, wanted in patches.items():
        assert workload.item_under(condition, asked, values).patches == wanted


def test_every_method_of_a_run_is_counted(data, tmp_path, capsys):
    """PPO steps four times a batch, CARE's reference reads what was drawn."""
    lines = ("rl: grpo extra_draws=2 | care | ppo", "sft_on: reasoning answers")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    steps = {
        name: row(text, f"GRPO: {name}")[3]
        for name in (
            *("grpo, rollouts", "grpo, update", "care, rollouts", "care, reference"),
            *("care, update", "ppo, rollouts", "ppo, update"),
        )
    }
    assert steps.pop("grpo, rollouts") == "300" and steps.pop("ppo, update") == "400"
    assert set(steps.values()) == {"100"} and "grpo, reference" not in text
    assert row(text, "GRPO: ppo, old policy")[4] == "100"
    assert row(text, "SFT: answers alone")[3:5] == ["100", "3,200"]
    assert "5 trained models" in text and "11 checkpoints" in text


def test_bytes_of_records_are_those_of_all_that_is_written(values):
    """10 of each; updates and attention leave next to nothing."""
    values |= {"group_size": 8, "max_completion_tokens": 40, "max_new_tokens": 60}
    item, rollout, answer = compute.Item(0, 0, 0, 0), 160 + 5 * 40, 320 + 5 * 60
    wanted = {"rollouts": 8 * rollout, "answers": answer, "conditions": answer}
    wanted |= {"readers": budget.READING_BYTES, "update": 0, "attention": 0}
    for name, size in wanted.items():
        part = workload.Part("any", "care", name, 1, 10, "of", item, compute.Cost())
        assert budget.record_bytes(values, [part]) == 10 * size
        assert budget.record_bytes(values, [part, part]) == 20 * size
    known = {part.name for part in parts_of(values)}
    assert known <= wanted.keys() | {""}


def parts_of(values: dict) -> list[workload.Part]:
    sizes = memory.Sizes.of(memory.config_of(BASE))
    work = memory.work_of(values, "cpu")
    return workload.parts(values, workload.sets_of(values), sizes, work)


def test_a_run_of_some_notebooks_is_planned_without_the_others(data, tmp_path, capsys):
    file = write_params(tmp_path, data, "notebooks: [03_grpo]")
    code, text = dry_run(file, capsys)
    assert code == 0 and "GRPO: update" in text
    assert "SFT" not in text and "evaluation" not in text


def test_a_sweep_has_a_line_a_run_and_a_sum(data, tmp_path, capsys):
    file = write_params(tmp_path, data, "sweep: {grpo_steps: [100, 300]}")
    code, text = dry_run(file, capsys)
    lines = text.splitlines()
    tera = [float(line.split()[1]) for line in lines if line.startswith("a-grpo")]
    assert code == 0 and len(tera) == 2 and tera[1] > tera[0]
    total = next(line for line in lines if line.startswith("2 runs"))
    assert float(total.split()[2]) == pytest.approx(sum(tera), abs=0.11)


def test_a_failing_check_is_the_exit_code(data, tmp_path, capsys):
    file = write_params(tmp_path, data, "temperature: 0.0")
    code, text = dry_run(file, capsys)
    assert code == 1 and "NO  settings    temperature = 0.0" in text
    file = write_params(tmp_path, data, "sweep: {max_frames: [8, 7]}")
    code, text = dry_run(file, capsys)
    assert code == 1 and "max_frames = 7: it must be even" in text
    assert "a-max_frames=8" in text
    missing = tmp_path / "nowhere"
    code, text = dry_run(write_params(tmp_path, missing, 'data_command: ""'), capsys)
    assert code == 1 and "no data_command makes it" in text
    assert "of unknown size, data is missing" in text


# The checks, each failing


def test_steps_that_do_not_make_the_epochs_fail(values):
    sets = {"demonstrations": workload.Asked(6000), "training": workload.Asked(6000)}
    values |= {"sft_epochs": 1.0, "grpo_epochs": 1.0, "sft_batch_size": 128}
    methods = ["sft", "grpo"]
    check = preflight.steps(values | {"grpo_steps": 750}, sets, methods)
    assert not check.passed and "1 epochs are sft_steps = 46" in check.text
    right = values | {"grpo_steps": 750, "sft_steps": 46}
    assert preflight.steps(right, sets, methods).passed


def test_prompts_that_cannot_be_split_fail(values):
    check = preflight.settings(values | {"num_processes": 3})
    assert not check.passed and "over 3 processes" in check.text
    uneven = {"num_processes": 2, "prompts_per_backward": 3}
    assert not preflight.settings(values | uneven).passed


def test_more_processes_than_devices_fail(values):
    many = values | {"num_processes": 512, "prompts_per_step": 512}
    assert not preflight.processes(many, None).passed
    assert preflight.processes(values, None).passed
    if not torch.cuda.is_available():
        check = preflight.processes(values, "24 GB card")
        assert not check.passed and "no GPU" in check.text


def test_packages_that_are_missing_fail(values, tmp_path, monkeypatch):
    check = preflight.packages(values | {"accelerate_config": "no/such.yaml"})
    assert not check.passed and "is missing" in check.text
    config = tmp_path / "zero3.yaml"
    config.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}")
    values |= {"accelerate_config": str(config)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in preflight.packages(values).text
    assert not preflight.packages(values).passed


def test_a_model_that_is_not_here_or_not_whole_fails(values, tmp_path):
    check = preflight.model(values | {"model": "nobody/no-such-model"})
    assert not check.passed and "hf download nobody/no-such-model" in check.text
    (tmp_path / "config.json").write_text("{}")
    check = preflight.model(values | {"model": str(tmp_path)})
    assert not check.passed and "has no model.safetensors" in check.text


def test_missing_data_fails_unless_a_command_makes_it(values, tmp_path):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    assert preflight.data(values).passed  # lib.mini makes it
    command = "lib.data get x --what L1"
    check = preflight.data(values | {"data_command": command})
    assert not check.passed and f"python -m {command} --accept" in check.text
    accepted = {"data_command": f"{command} --accept-licences"}
    assert preflight.data(values | accepted).passed


def test_missing_clips_fail_where_they_are_needed(values, tmp_path):
    folder = tmp_path / "data"
    benchmark.write(folder, benchmark.Sizes(training=6, level=4, general=4))
    values |= {"data_dir": str(folder), "general_dir": str(folder / "general")}
    values |= {"data_command": ""}
    assert preflight.data(values).passed
    next((folder / "general" / "videos").iterdir()).unlink()
    check = preflight.data(values)
    assert not check.passed and "1 of general" in check.text
    check = preflight.data(values | {"on_bad_video": "keep_as_wrong"})
    assert check.passed and "counted as wrong: 1 of general" in check.text
    still = next(folder.glob("images/*/training*"))
    still.unlink()
    assert not preflight.data(values | {"on_bad_video": "keep_as_wrong"}).passed


def test_too_little_memory_and_disk_fail(values, tmp_path):
    work = memory.work_of(values, "cpu")
    stages = memory.plan(memory.config_of(BASE), work)
    check = preflight.fits(stages, work, 1.0, "a card")
    assert not check.passed and "max_tokens" in check.text
    check = preflight.fits(stages, replace(work, lora_rank=0), 1.0, "a card")
    assert not check.passed and "accelerate_config" in check.text
    assert preflight.fits(stages, work, 100.0, "a card").passed
    assert not preflight.host(10**15).passed
    (check,) = preflight.disk({tmp_path / "a": 10**18, tmp_path / "b" / "c": 1})
    assert not check.passed and "GB free" in check.text
    assert preflight.disk({tmp_path / "a": 1})[0].passed


# Model states and hours


def test_model_states_of_zero3_are_deepspeeds_estimate():
    """estimate_zero3_model_states_mem_needs, DeepSpeed 0.19, worked out by hand."""
    numbers, largest = 8_000_000, 1_000_000
    held, host = Sharding(8, "zero3").states(numbers, largest, 2)
    assert sum(held.values()) == 18 * numbers // 8 + 4 * largest and host == 0
    offloaded = Sharding(8, "zero3", optimizer_on_host=True)
    held, host = offloaded.states(numbers, largest, 2)
    assert sum(held.values()) == 2 * numbers // 8 + 4 * largest
    assert host == 24 * numbers
    both = Sharding(8, "zero3", optimizer_on_host=True, weights_on_host=True)
    held, host = both.states(numbers, largest, 2)
    assert sum(held.values()) == 4 * largest and host == 27 * numbers


def test_sharding_is_read_from_the_launchers_file(tmp_path):
    assert of_config("", 4) == Sharding(4)
    file = tmp_path / "config.yaml"
    file.write_text(
        "deepspeed_config:\n  zero_stage: 3\n  offload_optimizer_device: cpu\n"
    )
    assert of_config(str(file), 8) == Sharding(8, "zero3", True, False)
    file.write_text("fsdp_config:\n  fsdp_version: 2\n")
    assert of_config(str(file), 2) == Sharding(2, "fsdp2")
    file.write_text("distributed_type: TPU\n")
    with pytest.raises(ValueError, match="TPU is not planned"):
        of_config(str(file), 2)


def test_more_processes_take_less_of_each_card(values):
    """7B, all weights: too much for one 40 GB card, little enough for eight."""
    (run,) = params.load_params(paths.ROOT / "params" / "paper.yaml")
    seven = memory.all_values(run) | {"num_processes": 1, "accelerate_config": ""}
    config = memory.config_of(seven["model"])
    alone = memory.plan(config, memory.work_of(seven, "cuda"))
    split = memory.work_of(seven | {"num_processes": 8}, "cuda")
    split = replace(split, sharding=Sharding(8, "zero3"))
    shared = {stage.name: stage.total for stage in memory.plan(config, split)}
    for stage in alone:
        if stage.name != "evaluation":
            assert shared[stage.name] < 0.7 * stage.total
    assert max(stage.total for stage in alone) > 40 * 2**30


def test_an_earlier_run_of_the_same_kind_gives_the_hours(values, tmp_path):
    spent = {"02_sft": 60.0, "03_grpo": 50.0, "04_eval": 40.0}
    here = {"environment": budget.machine()}
    manifest = {name: {"seconds": s, **here} for name, s in spent.items()}
    run = tmp_path / "earlier"
    records.write_json(run / "manifest.json", manifest)
    records.write_json(run / "pipeline.json", {"parameters": values, "notebooks": {}})
    by_stage, origin = budget.rates(values, tmp_path)
    costs = budget.bound_costs(values)
    assert {s: costs[s].flop / rate for s, rate in by_stage.items()} == pytest.approx(
        {"SFT": 60.0, "GRPO": 50.0, "evaluation": 40.0}
    )
    assert "earlier" in origin
    assert budget.rates(values | {"dtype": "bfloat16"}, tmp_path) is None
    manifest["03_grpo"]["environment"] = {"cpu_count": 999, "gpu": None}
    records.write_json(run / "manifest.json", manifest)
    assert budget.rates(values, tmp_path) is None


def test_the_committed_rates_hold_within_a_tenth():
    record = records.read_json(budget.REFERENCE)
    assert [stage["stage"] for stage in record["stages"]] == list(budget.STAGES)
    for stage in record["stages"]:
        rate = stage["flop"] / stage["seconds"] / 1e9
        assert stage["gflop_a_second"] == pytest.approx(rate, abs=0.06)
        assert abs(stage["to_their_mean"] - 1) < 0.1
    halves = record["halves_of_a_grpo_step"]
    assert halves["update"] > 2 * halves["rollout"]  # as lib/compute.py tells
