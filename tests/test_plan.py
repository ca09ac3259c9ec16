"""The plan before a run: counts, memory against measured peaks, hours, checks, disk."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib import paths, records
from lib.data import questions
from lib.mini import benchmark
from lib.model import models
from lib.run import checks, counts, memory, params, pipeline, plan
from lib.run.memory import Model, Sharding, Work, sharding_of
from tests.bench import cost

BASE = paths.ROOT / "lib" / "mini" / "base"
MINI = paths.ROOT / "params" / "mini.yaml"
REFERENCE = paths.ROOT / "outputs" / "reference"
SEVEN = "Qwen/Qwen2-VL-7B-Instruct"
PUBLISHED = {"Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600, SEVEN: 8_291_375_616}


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
    own = {"data_dir": str(data), "general_dir": str(data / "general")}
    return values_of("mini") | own


def values_of(name: str) -> dict:
    (run,) = params.load_params(paths.ROOT / "params" / f"{name}.yaml")
    return counts.all_values(run)


def work(**changes) -> Work:
    return counts.work_of(values_of("single_gpu_7b") | changes, "cuda")


def of(name: str | Path) -> Model:
    return Model.of(memory.config_of(name))


def write_params(folder: Path, data: Path, *lines: str) -> Path:
    file = folder / "a.yaml"
    places = [f"data_dir: {data}", f"general_dir: {data / 'general'}"]
    named = [] if any(line.startswith("sweep") for line in lines) else ["run_name: a"]
    file.write_text("\n".join([f"base: {MINI}", *named, *places, *lines]) + "\n")
    return file


def dry_run(file: Path, capsys, *more: str) -> tuple[int, str]:
    code = pipeline.main([str(file), "--dry-run", *more])
    return code, capsys.readouterr().out


def row(text: str, stage: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(stage)]
    return line.removeprefix(stage).split()


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
    assert counts.steps_of_epochs(items, once, epochs) == steps
    counts.check_epochs("sft_steps", steps, once, items, epochs)
    many = 2 * steps + 2
    with pytest.raises(ValueError, match=rf"sft_steps = {many} .* = {steps}$"):
        counts.check_epochs("sft_steps", many, once, items, epochs)


@pytest.mark.parametrize(("steps", "once"), [(46, 128), (750, 8)])
def test_a_recipe_takes_a_few_records_more_or_less_and_no_other_file(steps, once):
    for items in (5880, 5993, 6000, 6016, 6120):
        counts.check_epochs("sft_steps", steps, once, items, 1.0)
    for items, epochs in ((3000, 1.0), (50000, 1.0), (6000, 2.0)):
        with pytest.raises(ValueError, match="sft_steps"):
            counts.check_epochs("sft_steps", steps, once, items, epochs)
    counts.check_epochs("grpo_steps", 3, 8, 6000, 0.0)  # no epochs: not checked


# Memory


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_configurations_have_the_published_number_of_parameters(name):
    assert of(name).numbers == PUBLISHED[name]


@pytest.mark.parametrize("quantize", [False, True])
def test_weight_bytes_are_those_of_the_loaded_model(tiny_checkpoint, quantize):
    model = models.load_model(tiny_checkpoint, quantize=quantize)
    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.state2.absmax]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    given = work(dtype="float32", quantize=quantize)
    planned = memory.weight_bytes(of(tiny_checkpoint), given)
    found = sum(storage.nbytes() for storage in held.values())
    assert planned == pytest.approx(found, rel=2e-3 if quantize else 0)


def test_adapter_numbers_are_those_of_peft(tiny_checkpoint):
    import peft

    model = models.load_model(tiny_checkpoint)
    model = peft.get_peft_model(model, models.lora_config(rank=4, alpha=8))
    trained, _ = model.get_nb_trainable_parameters()
    planned = memory.trained_numbers(of(tiny_checkpoint), work(lora_rank=4))
    assert planned == trained


def measured_peaks() -> dict[str, tuple[Model, Work, str, float]]:
    """{case: model, work, stage and bytes} of every peak in the committed records."""
    from tests.bench.memory import config_of

    found = {}
    record = records.read_json(REFERENCE / "bench_memory.json")
    for row in record["rows"]:
        case = record["cases"][row["case"]]
        given = Model.of(config_of(**case["sizes"])), case["work"], row["stage"]
        found[f"{row['case']}: {row['stage']}"] = (*given, row["measured"])
    for name, case in records.read_json(REFERENCE / "bench_cost.json")["costs"].items():
        model = of(params.load_params(f"params/{case['params']}")[0].values["model"])
        for row in case["rows"]:
            given = model, case["work"], row["stage"]
            found[f"{name}: {row['stage']}"] = (*given, row["peak_gib"] * memory.GIB)
    return found


def test_the_plan_is_within_15_percent_of_every_measured_peak():
    peaks = measured_peaks()
    assert len(peaks) >= 68
    for case, (model, given, stage, measured) in peaks.items():
        given = Work(**given | {"sharding": Sharding(**given["sharding"])})
        ratio = memory.stages(model, given)[stage] / measured
        assert abs(ratio - 1) <= 0.15, (case, ratio)


def test_every_knob_that_the_advice_names_lowers_its_stage():
    start, model = {"prompts_per_backward": 2}, of(SEVEN)
    before = memory.stages(model, work(**start))
    knobs = {
        "update": [{"prompts_per_backward": 1}, {"pack_tokens": 4096}],
        "rollout": [{"prompts_per_step": 4}],
        "SFT": [{"max_tokens": 1024}, {"sft_gradient_accumulation": 16}],
        "evaluation": [{"eval_batch_size": 4}],
    }
    for name, changes in knobs.items():
        for change in changes:
            after = memory.stages(model, work(**start | change))
            assert after[name] < before[name], change
    for change in ({"quantize": False}, {"gradient_checkpointing": False}):
        after = memory.stages(model, work(**start | change))
        assert after["update"] > before["update"]


def test_packs_are_those_of_the_update():
    assert memory.packs(work(), 8) == (8, 5, 882 + 8 * 256)
    assert memory.packs(work(pack_tokens=2000), 1) == (2, 1, 882 + 4 * 256)
    with pytest.raises(ValueError, match="raise pack_tokens"):
        memory.packs(work(pack_tokens=1000), 1)


def test_evaluation_is_planned_for_the_batch_that_takes_most():
    """504 x 504 has 4 times the visual tokens of 252 x 252, and a fourth of the batch:

    it takes most where the batch is a single question already.
    """
    values = {"frame_height": 252, "frame_width": 252, "eval_batch_size": 32}
    large = {"perception_conditions": "no_video frames_32 size_504x504"}
    usual = work(**values, perception_conditions="")
    assert usual.eval_prompt == usual.prompt == 883
    assert work(**values, **large) == usual
    alone = work(**values | {"eval_batch_size": 1}, **large)
    assert alone.eval_prompt == 9 * 18 * 18 + counts.TEXT_TOKENS
    assert alone.eval_patches == 9 * 36 * 36 and alone.eval_batch == 1
    plain = work(**values | {"eval_batch_size": 1}, perception_conditions="")
    one, few = (memory.evaluation(of(SEVEN), asked) for asked in (alone, plain))
    assert one > 2 * few


def test_model_states_of_zero3_are_deepspeeds_estimate():
    """estimate_zero3_model_states_mem_needs, DeepSpeed 0.19, worked out by hand."""
    model, given = of(SEVEN), work(lora_rank=0, quantize=False)
    n, largest = model.numbers, 152064 * 3584

    def states(*offloaded: bool) -> tuple[float, float]:
        own = replace(given, sharding=Sharding(8, "zero3", *offloaded))
        held, gradients, host = memory.states(model, own)
        return held + gradients, host

    assert states() == (18 * n / 8 + 4 * largest, 0)
    assert states(True) == (2 * n / 8 + 4 * largest, 24 * n)
    assert states(True, True) == (4 * largest, 27 * n)


def test_sharding_is_read_from_the_launchers_file(tmp_path):
    assert sharding_of("", 4) == Sharding(4)
    file = tmp_path / "config.yaml"
    file.write_text(
        "deepspeed_config:\n  zero_stage: 3\n  offload_optimizer_device: cpu\n"
    )
    assert sharding_of(str(file), 8) == Sharding(8, "zero3", True, False)
    file.write_text("fsdp_config:\n  fsdp_version: 2\n")
    assert sharding_of(str(file), 2) == Sharding(2, "fsdp2")
    file.write_text("distributed_type: TPU\n")
    with pytest.raises(ValueError, match="TPU is not planned"):
        sharding_of(str(file), 2)


def test_more_processes_take_less_of_each_card():
    """7B, all weights: too much for one 40 GB card, little enough for eight."""
    seven = values_of("paper") | {"num_processes": 1, "accelerate_config": ""}
    model, one = of(SEVEN), counts.work_of(seven, "cuda")
    split = counts.work_of(seven | {"num_processes": 8}, "cuda")
    shared = memory.stages(model, replace(split, sharding=Sharding(8, "zero3")))
    alone = memory.stages(model, one)
    for stage in ("SFT", "rollout", "reference", "update"):
        assert shared[stage] < 0.7 * alone[stage]
    assert max(alone.values()) > 40 * 2**30


@pytest.mark.parametrize(("name", "gib"), [("2b", 16), ("7b", 24)])
def test_the_params_files_fit_their_cards_without_any_download(
    name, gib, tmp_path, capsys
):
    """The card is also known where another file starts from the one that names it."""
    file = tmp_path / "mine.yaml"
    base = paths.ROOT / f"params/single_gpu_{name}.yaml"
    file.write_text(f"base: {base}\nrun_name: mine\n")
    assert checks.named_card(file) == (gib, base.name)
    _, text = dry_run(file, capsys, "--gib", str(gib))
    assert f" GiB of {gib}.0 (--gib): " in text and "ok  memory" in text
    assert "an allowance, not measured, of 0.75 GiB and 8%" in " ".join(text.split())
    _, text = dry_run(file, capsys, "--gib", "5")
    told = " ".join(text[text.index("NO  memory") :].split())
    assert "lower prompts_per_backward" in told


def test_the_cost_script_measures_a_tiny_size_anywhere(tmp_path):
    out = tmp_path / "cost.json"
    cost.main(["--size", "tiny", "--out", str(out)])
    found = json.loads(out.read_text())["costs"]["tiny"]
    assert found["measured"]
    stages = ["SFT", "rollout", "reference", "update", "evaluation"]
    assert [row["stage"] for row in found["rows"]] == stages
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in found["rows"])
    assert "not measured" not in out.with_suffix(".md").read_text()
    if not torch.cuda.is_available():
        cost.main(["--out", str(out)])
        text = out.with_suffix(".md").read_text()
        assert "No GPU was at hand" in text and text.count("no GPU was at hand") == 10


# Samples


def test_counts_are_those_of_the_readers(values, data):
    sets = counts.sets_of(values)
    training = questions.read_training(data / "annotations/training.jsonl", data, 0)
    kept, _ = questions.split_holdout(training, values["holdout_share"])
    assert sets["training"].count == len(kept)
    assert {name: sets[name].count for name in counts.LEVELS} == {
        **{"L1": 8, "L2": 8, "L3": 8, "general": 6}
    }


def test_what_is_not_there_is_announced_by_its_command(values, tmp_path):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    values |= {"holdout_share": 0.0}

    def announced(command: str) -> dict[str, int]:
        sets = counts.sets_of(values | {"data_command": command})
        assert not any(known.read for known in sets.values())
        return {name: known.count for name, known in sets.items()}

    whole = "lib.data get x --what evaluation training_6k longvideobench"
    assert announced(whole) == counts.PUBLISHED
    assert announced("lib.data get x --what L2") == {"L2": 923}
    mini = announced("lib.mini write x")
    assert (mini["training"], mini["L1"]) == (2200, 500)
    assert announced("") == {}


# The command


def test_a_dry_run_says_all_and_leaves_nothing(data, tmp_path):
    file = write_params(tmp_path, data)
    file.write_text(file.read_text().replace("run_name: a", "run_name: dry_of_a_test"))

    def tree(folder: Path) -> dict:
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

    before = tree(tmp_path) | tree(data)
    command = [sys.executable, "-m", "lib.run", str(file), "--dry-run"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    text = done.stdout
    assert done.returncode == 0 and "every check passed" in text, done.stderr
    assert tree(tmp_path) | tree(data) == before
    assert not list((paths.ROOT / "outputs").glob("*dry_of_a_test*"))
    assert row(text, "SFT ") == ["100", "3,200", "demonstrations"]
    assert row(text, "GRPO: rollouts")[:2] == ["100", "800"]
    assert row(text, "evaluation: answers")[:2] == ["-", "120"]
    assert "GRPO: reference" not in text and len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 104


def test_counts_follow_from_the_parameters(data, tmp_path, capsys):
    lines = ("sft_steps: 200", "kl_beta: 0.1", "lora_rank: 8")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    assert row(text, "SFT ")[1] == "6,400" and "frame store" not in text
    assert row(text, "GRPO: reference")[:2] == ["100", "800"]
    _, text = dry_run(write_params(tmp_path, data, f"frames_dir: {tmp_path}"), capsys)
    assert "frame store" in " ".join(text.split())


def test_evaluation_is_all_that_04_eval_does(data, tmp_path, capsys):
    """Four models on 8 + 8 + 8 + 6 questions, three of them looked at more closely."""
    lines = ("perception_conditions: no_video frames_4", "perception_questions: 5")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    asked = row(text, "evaluation: conditions")
    assert asked[1] == str(3 * 2 * (5 + 5))  # models, conditions, L1 and L3
    folder = data / "annotations"
    levels = (
        questions.read_validation(folder / f"validation_{name}.jsonl", data, name)
        for name in ("L1", "L3")
    )
    filmed = sum(item.video is not None for level in levels for item in level)
    assert row(text, "evaluation: attention")[1] == str(3 * 2 * filmed)
    assert row(text, "evaluation: readers")[1] == str((3 + 2) * 30)  # base's, own
    lines = ('perception_conditions: ""', "attention_questions: 0")
    lines += ('coherence_sets: ""', "asked_models: grpo")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    assert row(text, "evaluation: answers")[1] == "30"
    assert text.count("evaluation: ") == 2  # the other one tells the time


def test_every_method_of_a_run_is_counted(data, tmp_path, capsys):
    """PPO steps four times a batch, CARE's reference reads what was drawn."""
    lines = ("rl: grpo extra_draws=2 | care | ppo", "sft_on: reasoning answers")
    _, text = dry_run(write_params(tmp_path, data, *lines), capsys)
    steps = {
        name: row(text, f"GRPO: {name}")[0]
        for name in (
            *("grpo, rollouts", "grpo, update", "care, rollouts", "care, reference"),
            *("care, update", "ppo, rollouts", "ppo, update", "ppo, old policy"),
        )
    }
    assert steps.pop("grpo, rollouts") == "300" and steps.pop("ppo, update") == "400"
    assert set(steps.values()) == {"100"} and "grpo, reference" not in text
    assert row(text, "SFT: answers alone")[:2] == ["100", "3,200"]
    assert "5 trained models" in text and "11 checkpoints" in text


def test_bytes_of_records_are_those_of_all_that_is_written(values):
    """10 of each; updates and attention leave next to nothing."""
    values |= {"group_size": 8, "max_completion_tokens": 40, "max_new_tokens": 60}
    rollout, answer = 160 + 5 * 40, 320 + 5 * 60
    wanted = {"rollouts": 8 * rollout, "answers": answer, "conditions": answer}
    wanted |= {"readers": plan.READING_BYTES, "update": 0, "attention": 0}
    for name, size in wanted.items():
        part = counts.Part("any", "care", name, 1, 10, "of")
        assert plan.record_bytes(values, [part]) == 10 * size
        assert plan.record_bytes(values, [part, part]) == 20 * size
    known = {p.name for p in counts.parts_of(values, counts.sets_of(values))}
    assert known <= wanted.keys() | {""}


def test_a_run_of_some_notebooks_is_planned_without_the_others(data, tmp_path, capsys):
    file = write_params(tmp_path, data, "notebooks: [03_grpo]")
    code, text = dry_run(file, capsys)
    assert code == 0 and "GRPO: update" in text
    assert "SFT" not in text and "evaluation" not in text


def test_a_sweep_has_a_line_a_run_and_a_sum(data, tmp_path, capsys, monkeypatch):
    hours = {"SFT": 1.0, "GRPO": 2.0, "evaluation": 0.5}
    hours = {stage: plan.Hours(took, "measured") for stage, took in hours.items()}
    monkeypatch.setattr(plan, "hours_of", lambda *given: hours)
    file = write_params(tmp_path, data, "sweep: {grpo_steps: [100, 300]}")
    code, text = dry_run(file, capsys)
    assert code == 0 and row(text, "a-grpo_steps=300")[0] == "3.5"
    assert row(text, "2 runs")[:2] == ["7", "h"]
    monkeypatch.setattr(plan, "hours_of", lambda *given: {})
    _, text = dry_run(file, capsys)
    assert row(text, "2 runs")[:2] == ["not", "measured"]


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
    assert "not counted, data is missing" in text
    file.write_text("run_name: a\nmodel: Qwen/Qwen2-VL-72B-Instruct\n")
    code, text = dry_run(file, capsys)
    assert code == 1 and "sizes of Qwen/Qwen2-VL-72B-Instruct are not known" in text


# The checks, each failing


def test_steps_that_do_not_make_the_epochs_fail(values):
    sets = {"demonstrations": counts.Asked(6000), "training": counts.Asked(6000)}
    values |= {"sft_epochs": 1.0, "grpo_epochs": 1.0, "sft_batch_size": 128}
    methods = ["sft", "grpo"]
    check = checks.check_steps(values | {"grpo_steps": 750}, sets, methods)
    assert not check.passed and "1 epochs are sft_steps = 46" in check.text
    right = values | {"grpo_steps": 750, "sft_steps": 46}
    assert checks.check_steps(right, sets, methods).passed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_processes": 3}, "over 3 processes"),
        ({"num_processes": 2, "prompts_per_backward": 3}, "3 prompts each"),
        ({"max_tokens": 100}, "raise max_tokens"),
        ({"quantize": True, "lora_rank": 0}, "needs an adapter"),
        ({"reward": "beauty"}, "beauty"),
        ({"on_bad_video": "skip"}, "on_bad_video"),
    ],
)
def test_settings_that_the_code_does_not_take_fail(values, changes, told):
    check = checks.check_settings(values | changes)
    assert not check.passed and told in check.text
    assert checks.check_settings(values).passed


def test_more_processes_than_devices_fail(values):
    many = values | {"num_processes": 512, "prompts_per_step": 512}
    assert not checks.check_devices(many, None).passed
    assert checks.check_devices(values, None).passed
    if not torch.cuda.is_available():
        check = checks.check_devices(values, (24.0, "a.yaml"))
        assert not check.passed and "card of 24 GB; here: no GPU" in check.text


def test_packages_that_are_missing_fail(values, tmp_path, monkeypatch):
    check = checks.check_packages(values | {"accelerate_config": "no/such.yaml"})
    assert not check.passed and "is missing" in check.text
    config = tmp_path / "zero3.yaml"
    config.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}")
    values |= {"accelerate_config": str(config)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = checks.check_packages(values)
    assert not check.passed and "pip install" in check.text


def test_a_model_that_is_not_here_or_not_whole_fails(values, tmp_path):
    check = checks.check_model(values | {"model": "nobody/no-such-model"})
    assert not check.passed and "hf download nobody/no-such-model" in check.text
    (tmp_path / "config.json").write_text("{}")
    check = checks.check_model(values | {"model": str(tmp_path)})
    assert not check.passed and "has no model.safetensors" in check.text


def test_missing_data_fails_unless_a_command_makes_all_of_it(values, tmp_path):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    assert checks.check_data(values).passed  # lib.mini makes it
    whole = "lib.data get x --what evaluation training_6k longvideobench"
    check = checks.check_data(values | {"data_command": whole})
    assert not check.passed and f"python -m {whole} --accept" in check.text
    accepted = f"{whole} --accept-licences"
    assert checks.check_data(values | {"data_command": accepted}).passed
    values |= {"data_command": "lib.data get x --what L2 --accept-licences"}
    check = checks.check_data(values, ["01_data", "04_eval"])
    assert not check.passed
    assert "read training, demonstrations, L1, L3, general too" in check.text


def test_missing_clips_fail_where_they_are_needed(values, tmp_path):
    folder = tmp_path / "data"
    benchmark.write(folder, benchmark.Sizes(training=6, level=4, general=4))
    values |= {"data_dir": str(folder), "general_dir": str(folder / "general")}
    values |= {"data_command": ""}
    assert checks.check_data(values).passed
    next((folder / "general" / "videos").iterdir()).unlink()
    check = checks.check_data(values)
    assert not check.passed and "1 of general" in check.text
    assert checks.check_data(values, ["02_sft", "03_grpo"]).passed
    tolerant = values | {"on_bad_video": "keep_as_wrong"}
    check = checks.check_data(tolerant)
    assert check.passed and "counted as wrong: 1 of general" in check.text
    next(folder.glob("images/*/training*")).unlink()
    assert not checks.check_data(tolerant).passed


def test_too_little_memory_and_disk_fail(values, tmp_path):
    given = counts.work_of(values, "cpu")
    stages = memory.stages(of(BASE), given)
    check = checks.check_memory(stages, given, 1.0, "a card")
    assert not check.passed and "max_tokens" in check.text
    check = checks.check_memory(stages, replace(given, lora_rank=0), 1.0, "a card")
    assert not check.passed and "accelerate_config" in check.text
    assert checks.check_memory(stages, given, 100.0, "a card").passed
    tensors = max(stages.values()) / memory.GIB  # without the allowance they fit
    assert not checks.check_memory(stages, given, tensors + 0.1, "a card").passed
    assert not checks.check_host(10**15).passed
    (check,) = checks.check_disk({tmp_path / "a": 10**18, tmp_path / "b" / "c": 1})
    assert not check.passed and "GB free" in check.text
    assert checks.check_disk({tmp_path / "a": 1})[0].passed


def test_model_and_clips_that_are_still_to_come_are_counted(tmp_path, capsys):
    """7B in bfloat16, and the archive that is read; the clips have a bound alone."""
    file = tmp_path / "mine.yaml"
    lines = ["run_name: mine", f"data_dir: {tmp_path}", f"general_dir: {tmp_path}"]
    base = paths.ROOT / "params/single_gpu_7b.yaml"
    file.write_text("\n".join([f"base: {base}", *lines]))
    _, text = dry_run(file, capsys)
    told = " ".join(text.split())
    if plan.checks.local_model(SEVEN) is None:
        assert "model 16.6 GB" in told
    assert "archive in transit 5.3 GB" in told
    assert "clips come on top, at most 709.5 GB" in told
    file.write_text(file.read_text() + '\ndata_command: ""\n')
    assert "in transit" not in dry_run(file, capsys)[1]


# Hours


def test_an_earlier_run_of_the_same_kind_gives_the_hours(values, tmp_path):
    notebooks = {"02_sft": 60.0, "03_grpo": 50.0, "04_eval": 40.0}
    notebooks = {name: {"seconds": took} for name, took in notebooks.items()}
    there = {name: {"environment": plan.machine()} for name in notebooks}
    run = tmp_path / "earlier"
    records.write_json(run / "manifest.json", there)
    state = {"parameters": values, "notebooks": notebooks}
    records.write_json(run / "pipeline.json", state)

    def hours(**changes) -> dict[str, float]:
        new = values | changes
        parts = counts.parts_of(new, counts.sets_of(new))
        found = plan.hours_of(new, parts, tmp_path)
        assert all(own.origin == "as earlier took here" for own in found.values())
        return {stage: round(3600 * own.hours) for stage, own in found.items()}

    assert hours() == {"SFT": 60, "GRPO": 50, "evaluation": 40}
    assert hours(sft_steps=300, grpo_steps=50) == {
        **{"SFT": 180, "GRPO": 25, "evaluation": 40}
    }
    assert hours(group_size=4) == {"SFT": 60, "evaluation": 40}
    assert hours(dtype="bfloat16") == {}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pipeline.json").write_text("{")
    there["03_grpo"]["environment"] = {"cpu_count": 999, "gpu": None}
    records.write_json(run / "manifest.json", there)
    assert hours().keys() == {"SFT", "evaluation"}


def test_hours_of_the_single_gpu_files_are_measured_seconds_times_counts(tmp_path):
    took = records.read_json(plan.COSTS)["costs"]["2b"]["rows"]
    took = {row["stage"]: row["seconds"] for row in took}
    values = values_of("single_gpu_2b")
    parts = counts.parts_of(values, counts.sets_of(values))
    found = plan.hours_of(values, parts, tmp_path)
    wanted = 750 * (took["rollout"] + took["reference"] + took["update"]) / 3600
    assert found["GRPO"].hours == pytest.approx(wanted)
    assert found["SFT"].hours == pytest.approx(46 * 128 * took["SFT"] / 3600)
    assert "8 at a time" in found["evaluation"].origin
    assert "H100" in found["GRPO"].origin
    other = plan.hours_of(values | {"group_size": 4}, parts, tmp_path)
    assert other.keys() == {"SFT", "evaluation"}
    assert plan.hours_of(values_of("paper"), parts, tmp_path) == {}


def test_a_disk_is_asked_for_all_runs_of_a_sweep_and_for_frames_once(
    tmp_path, monkeypatch
):
    kept = {(tmp_path / "frames", "frame store"): 10}
    of_runs = [{**kept, (tmp_path / name, "checkpoints"): 5} for name in ("a", "b")]
    run = params.Run("a", {})
    plans = [plan.Plan(run, {}, {}, [], {}, disk, {}, (), []) for disk in of_runs]
    asked = []
    monkeypatch.setattr(checks, "check_disk", asked.append)
    plan.disk_of_all(plans)
    assert sum(asked[0].values()) == 10 + 5 + 5
