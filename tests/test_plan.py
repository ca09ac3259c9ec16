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
from lib.data import __main__ as data_door
from lib.data import questions
from lib.mini import benchmark
from lib.model import models
from lib.run import cards, checks, counts, memory, params, pipeline, plan
from lib.run.memory import Model, Work, sharding_of
from tests.bench import cost
from tests.bench.memory import config_of

PARAMS = paths.ROOT / "params"
REFERENCE = paths.ROOT / "outputs" / "reference"
SEVEN = "Qwen/Qwen2-VL-7B-Instruct"
PUBLISHED = {"Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600, SEVEN: 8_291_375_616}
PUBLISHED |= {"Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small MiniPlan with its clips."""
    sizes = benchmark.Sizes(training=24, level=8, general=6)
    return benchmark.write(tmp_path_factory.mktemp("data") / "miniplan", sizes)


@pytest.fixture
def values(data) -> dict:
    """The mini run's values on the small data."""
    own = {"data_dir": str(data), "general_dir": str(data / "general")}
    return values_of("mini") | own


@pytest.fixture
def small(values, tmp_path) -> dict:
    """Those values on a MiniPlan that a test may change, made by no command."""
    sizes = benchmark.Sizes(training=6, level=4, general=4)
    folder = benchmark.write(tmp_path / "data", sizes)
    places = {"data_dir": str(folder), "general_dir": str(folder / "general")}
    return values | places | {"data_command": ""}


@pytest.fixture
def dry_run(data, tmp_path, capsys):
    """Exit code and text for the mini run on the small data with more lines."""
    places = f"general_dir: {data / 'general'}\ndata_dir: {data}\n"

    def planned(*lines: str, base: str = "mini") -> tuple[int, str]:
        file = tmp_path / "a.yaml"
        named = "" if any(line.startswith("sweep") for line in lines) else "run_name: a"
        start = f"base: {PARAMS}/{base}.yaml\n{places}"
        (tmp_path / "base.yaml").write_text(start)
        own = [line for line in lines if not line.startswith("--")]
        file.write_text("\n".join(["base: base.yaml", named, *own]))
        flags = [word for line in lines if line not in own for word in line.split()]
        code = pipeline.main([str(file), "--dry-run", *flags])
        return code, capsys.readouterr().out

    return planned


def values_of(name: str) -> dict:
    (run,) = params.load_params(PARAMS / f"{name}.yaml")
    return counts.all_values(run)


def work(**changes) -> Work:
    return counts.work_of(values_of("single_gpu_7b") | changes, "cuda")


def data_check(values: dict, *notebooks) -> checks.Check:
    counts.read_set.cache_clear()  # files may have gone since
    return checks.check_data(values, counts.sets_of(values), *notebooks)


def of(name: str | Path) -> Model:
    return Model.of(memory.config_of(name))


def row(text: str, stage: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(stage)]
    return line.removeprefix(stage).split()


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
def test_only_the_steps_of_the_epochs_pass(items, once, epochs, steps):
    counts.check_epochs("sft_steps", steps, once, items, epochs)
    counts.check_epochs("sft_steps", 3 * steps, once, items, 0.0)  # not checked
    many = 2 * steps + 2
    told = rf"sft_steps = {many} with {once} .* = {steps}$"
    with pytest.raises(ValueError, match=told):
        counts.check_epochs("sft_steps", many, once, items, epochs)
    if items == 6000:  # a few records more or less, and no other file
        for near in (5880, 5993, 6016, 6120):
            counts.check_epochs("sft_steps", steps, once, near, 1.0)
        for far, times in ((3000, 1.0), (50000, 1.0), (6000, 2.0)):
            with pytest.raises(ValueError, match="sft_steps"):
                counts.check_epochs("sft_steps", steps, once, far, times)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_configurations_have_the_published_number_of_parameters(name):
    assert of(name).numbers == PUBLISHED[name]


def test_quantized_weight_bytes_are_those_of_the_loaded_model(tiny_checkpoint):
    model = models.load_model(tiny_checkpoint, quantize=True)
    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.state2.absmax]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    given = work(dtype="float32", quantize=True)
    planned = memory.weight_bytes(of(tiny_checkpoint), given)
    found = sum(storage.nbytes() for storage in held.values())
    assert planned == pytest.approx(found, rel=2e-3)


def test_adapter_numbers_are_those_of_peft(tiny_checkpoint):
    import peft

    model = models.load_model(tiny_checkpoint)
    model = peft.get_peft_model(model, models.lora_config(rank=4, alpha=8))
    trained, _ = model.get_nb_trainable_parameters()
    planned = memory.trained_numbers(of(tiny_checkpoint), work(lora_rank=4))
    assert planned == trained


def measured_peaks() -> dict[str, tuple[Model, dict, str, float]]:
    """{case: model, work, stage and bytes} of every peak in the committed records."""
    found = {}
    record = records.read_json(REFERENCE / "bench_memory.json")
    for row in record["rows"]:
        case = record["cases"][row["case"]]
        given = Model.of(config_of(**case["sizes"])), case["work"], row["stage"]
        found[f"{row['case']}: {row['stage']}"] = (*given, row["measured"])
    for name, case in records.read_json(REFERENCE / "bench_cost.json")["costs"].items():
        model = of(values_of(case["params"].removesuffix(".yaml"))["model"])
        for row in case["rows"]:
            given = model, case["work"], row["stage"]
            found[f"{name}: {row['stage']}"] = (*given, row["peak_gib"] * memory.GIB)
    return found


def test_the_plan_is_within_15_percent_of_every_measured_peak():
    peaks = measured_peaks()
    assert len(peaks) >= 68
    for case, (model, given, stage, measured) in peaks.items():
        older = ("sft_response", "sharding")  # nothing that is divided was measured
        own = {name: given[name] for name in given if name not in older}
        own |= {f"eval_{name}": given[name] for name in ("prompt", "patches")}
        ratio = memory.stages(model, Work(**own))[stage] / measured
        assert abs(ratio - 1) <= 0.15, (case, ratio)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("update", {"prompts_per_backward": 1}),
        ("update", {"pack_tokens": 4096}),
        ("rollout", {"prompts_per_step": 4}),
        ("SFT", {"max_tokens": 1024}),
        ("SFT", {"sft_gradient_accumulation": 16}),
        ("evaluation", {"eval_batch_size": 4}),
    ],
)
def test_every_knob_that_the_advice_names_lowers_its_stage(stage, change):
    start, model = {"prompts_per_backward": 2}, of(SEVEN)
    before = memory.stages(model, work(**start))
    assert memory.stages(model, work(**start | change))[stage] < before[stage]
    for dearer in ({"quantize": False}, {"gradient_checkpointing": False}):
        more = memory.stages(model, work(**start | dearer))
        assert more["update"] > before["update"]


def test_grpo_care_has_a_reference_of_what_is_trained():
    model, start = of(SEVEN), work(rl="grpo | care reference=policy", kl_beta=0.0)
    before = memory.stages(model, start)
    then = memory.stages(model, work(rl="grpo | care", kl_beta=0.0))
    more = 4 + start.adapter  # its average, and the policy while it is asked
    more *= memory.trained_numbers(model, start)
    assert then.keys() - before.keys() == {"reference"}
    assert then["update"] - before["update"] == more > 0
    assert then["SFT"] == before["SFT"]


def test_packs_are_those_of_the_update():
    assert memory.packs(work(), 8) == (8, 5, 882 + 8 * 256)
    assert memory.packs(work(pack_tokens=2000), 1) == (2, 1, 882 + 4 * 256)
    with pytest.raises(ValueError, match="raise pack_tokens"):
        memory.packs(work(pack_tokens=1000), 1)


def test_evaluation_is_planned_for_the_batch_that_takes_most():
    """504 x 504 has 4 times the visual tokens of 252 x 252, and a fourth of the batch:
    it takes most where the batch is a single question already."""
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

    def states(on_host: str = "") -> tuple[float, float]:
        own = replace(given, processes=8, sharding=f"zero3{on_host}")
        held, gradients, *_, host = memory.states(model, own)
        return held + gradients, host

    assert states() == (18 * n / 8 + 4 * largest, 0)
    assert states(", optimizer on the host") == (2 * n / 8 + 4 * largest, 24 * n)
    assert states(", all on the host") == (4 * largest, 27 * n)


def test_sharding_is_read_from_the_launchers_file(tmp_path):
    assert sharding_of("") == ""
    file = tmp_path / "config.yaml"
    zero = "deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu}"
    file.write_text(zero)
    assert sharding_of(str(file)) == "zero3, optimizer on the host"
    file.write_text("fsdp_config: {fsdp_version: 2}")
    assert sharding_of(str(file)) == "fsdp2"
    file.write_text("distributed_type: TPU\n")
    with pytest.raises(ValueError, match="TPU is not planned"):
        sharding_of(str(file))


@pytest.mark.parametrize(("name", "gib"), [("2b", 16), ("7b", 24)])
def test_the_params_files_fit_their_cards_without_any_download(name, gib, dry_run):
    base = f"single_gpu_{name}"
    _, text = dry_run(f"--gib {gib}", base=base)
    assert f" GiB of {gib}.0 (as given): " in text and "ok  memory" in text
    if not torch.cuda.is_available():  # the card is known from the base alone
        _, text = dry_run(base=base)
        assert f"of {gib}.0 (card_gib)" in text


def test_a_known_card_is_asked_for_its_memory_and_its_dtype(dry_run):
    assert cards.called("NVIDIA A10G") is cards.CARDS["A10"]
    assert cards.called("NVIDIA A100-SXM4-80GB") is None
    _, text = dry_run("--card T4", base="single_gpu_2b")
    assert "GiB of 14.5 (as given)" in text and "has no bfloat16" in text
    code, text = dry_run("--card L4", "data_dir: nowhere", base="single_gpu_2b")
    text = " ".join(text.split())
    assert ", clips (estimate) 121.4, archive in transit (estimate) 4.0" in text
    assert "no bfloat16" not in text and "measured on NVIDIA H100" in text
    assert "ok memory" in text and code == 1


def test_clips_to_come_are_disk_until_they_are_there(small):
    small["data_command"] = command = "lib.data get x --what L1 training_6k"
    assert counts.to_come(small) == {}
    min(Path(small["data_dir"]).glob("videos/*/*L1*.mp4")).unlink()
    counts.read_set.cache_clear()
    found = counts.to_come(small | {"asked_sets": "L2"})  # not asked, and it comes
    assert [*found.values()] == [counts.CLIP_BYTES["L1"], counts.ARCHIVE_BYTES["L1"]]
    found = counts.to_come(small | {"data_command": f"{command} --at-most 5MB"})
    assert [*found.values()] == [5 * 10**6] * 2


def test_a_command_that_is_told_is_never_broken_at_a_hyphen():
    long = f"{'x' * 90} --accept-licences"
    assert plan.wrapped(long).split()[1:] == ["--accept-licences"]


def test_the_cost_script_measures_a_tiny_size_anywhere(tmp_path):
    out = tmp_path / "cost.json"
    cost.main(["--size", "tiny", "--out", str(out)])
    found = json.loads(out.read_text())["costs"]["tiny"]
    stages = ["SFT", "rollout", "reference", "update", "evaluation"]
    assert [row["stage"] for row in found["rows"]] == stages
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in found["rows"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            cost.main([])


def test_counts_are_those_of_the_readers(values, data):
    sets = counts.sets_of(values)
    training = questions.read_training(data / "annotations/training.jsonl", data, 0)
    kept, _ = questions.split_holdout(training, values["holdout_share"])
    assert sets["training"].count == len(kept)
    levels = {name: sets[name].count for name in counts.SETS}
    assert levels == {"L1": 8, "L2": 8, "L3": 8, "general": 6}


@pytest.mark.parametrize(
    ("command", "known"),
    [
        (
            "lib.data get x --what evaluation training_6k longvideobench",
            counts.PUBLISHED,
        ),
        ("lib.data get x --what L2", {"L2": 923}),
        ("lib.mini write x", {"training": 2200, "L1": 500}),
        ("lib.mini write x --size smoke", {"training": 48, "general": 16}),
        ("", {}),
    ],
)
def test_what_is_not_there_is_announced_by_its_command(
    values, tmp_path, command, known
):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    values |= {"holdout_share": 0.0, "data_command": command}
    sets = counts.sets_of(values)
    assert not any(own.records for own in sets.values())
    assert {name: sets[name].count for name in known} == known
    assert bool(sets) == bool(command)


def test_a_dry_run_says_all_and_leaves_nothing(data, tmp_path):
    file = tmp_path / "a.yaml"
    places = f"data_dir: {data}\ngeneral_dir: {data / 'general'}\n"
    file.write_text(f"base: {PARAMS}/mini.yaml\nrun_name: dry_of_a_test\n{places}")

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
    assert row(text, "evaluation: answers")[:2] == ["-", "150"]
    assert "GRPO: reference" not in text and len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 104


def test_counts_follow_from_the_parameters(dry_run, tmp_path):
    _, text = dry_run("sft_steps: 200", "kl_beta: 0.1", "lora_rank: 8")
    assert row(text, "SFT ")[1] == "6,400" and "frame store" not in text
    assert row(text, "GRPO: reference")[:2] == ["100", "800"]
    _, text = dry_run("grpo_from: sft", base="single_gpu_7b")
    assert ", start of GRPO 16.6" in " ".join(text.split())
    code, text = dry_run(f"frames_dir: {tmp_path}", "notebooks: [03_grpo]")
    assert code == 0 and "frame store" in " ".join(text.split())
    assert "GRPO: update" in text  # and nothing of the other notebooks
    assert "SFT" not in text and "evaluation" not in text


def test_evaluation_is_all_that_04_eval_does(data, dry_run):
    """Five models on 8 + 8 + 8 + 6 questions, three of them looked at more closely."""
    conditions = "perception_conditions: no_video frames_4"
    _, text = dry_run(conditions, "perception_questions: 5")
    asked = row(text, "evaluation: conditions")
    assert asked[1] == str(3 * 2 * (5 + 5))  # models, conditions, L1 and L3
    folder = data / "annotations"
    levels = (
        questions.read_validation(folder / f"validation_{name}.jsonl", data, name)
        for name in ("L1", "L3")
    )
    filmed = sum(item.video is not None for level in levels for item in level)
    assert row(text, "evaluation: attention")[1] == str(3 * 2 * filmed)
    assert row(text, "evaluation: readers")[1] == str((4 + 2) * 30)  # base's, own
    lines = ('perception_conditions: ""', "attention_questions: 0", "pass_draws: 0")
    _, text = dry_run(*lines, 'coherence_sets: ""', "asked_models: grpo")
    assert row(text, "evaluation: answers")[1] == "30"
    assert text.count("evaluation: ") == 2  # the other one tells the time


def test_every_method_of_a_run_is_counted(dry_run):
    """PPO steps four times a batch, CARE's reference reads what was drawn."""
    lines = ("rl: grpo extra_draws=2 | care | ppo", "sft_on: reasoning answers")
    _, text = dry_run(*lines)
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


def test_a_sweep_has_a_line_a_run_and_a_sum(dry_run, monkeypatch):
    hours = {"SFT": (1.0, "here"), "GRPO": (2.0, "here"), "evaluation": (0.5, "here")}
    monkeypatch.setattr(plan, "hours_of", lambda *given: hours)
    code, text = dry_run("sweep: {grpo_steps: [100, 300]}")
    assert code == 0 and row(text, "a-grpo_steps_300")[0] == "3.5"
    assert row(text, "2 runs")[:2] == ["7.0", "h"]
    monkeypatch.setattr(plan, "hours_of", lambda *given: {"SFT": (1.0, "here")})
    _, text = dry_run("sweep: {grpo_steps: [100, 300]}")
    assert row(text, "2 runs")[:2] == ["not", "measured"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("temperature: 0.0", "NO  settings    temperature = 0.0"),
        ("num_processes: 3", "over 3 processes"),
        ("num_processes: 0", "num_processes = 0: at least 1 is needed"),
        ("prompts_per_backward: 3", "3 prompts each"),
        ("max_tokens: 100", "raise max_tokens"),
        ("lora_rank: 0\nquantize: true", "needs an adapter"),
        ("sft_epochs: 1.0", "160.00 epochs of 20 items; 1 epochs are sft_steps = 1"),
        ("grpo_epochs: 2.0", "34.78 epochs of 23 items; 2 epochs are grpo_steps = 5"),
        ("reward: beauty", "beauty"),
        ("rl: grpo dtype=float16", "rl: dtype has a parameter of its own"),
        ("rl: ppo warmup_share=0.1", "rl: warmup_share has a parameter of its own"),
        ("on_bad_video: skip", "on_bad_video"),
        ("perception_conditions: no_vdieo", "condition 'no_vdieo' is unknown"),
        ("bootstrap_samples: 0", "bootstrap_samples = 0: at least 1"),
        ("dtype: fp16", "dtype is 'fp16'"),
        ("sft_save_every: 0", "sft_save_every = 0: at least 1"),
        ("sft_loss: mean", "loss = 'mean'"),
        ('sft_on: ""', "SFT on ''"),
        ("sft_on: answer", "SFT on 'answer'"),
        ("training_share: 0", "share = 0.0 must lie above 0"),
        ("sft_warmup_share: 10", "sft_warmup_share = 10.0: a share is 1 at most"),
        ("demonstrations_by: me", "demonstrations_by = 'me'"),
        ("demonstrations_false: 0.6\ndemonstrations_unseen: 0.6", "at most 1 together"),
        ("pass_sets: L1,L3", "pass_sets: 'L1,L3' is none of"),
        ("perception_sets: L4", "perception_sets: 'L4' is none of"),
        ("pass_questions: -1", "pass_questions = -1: at least 0"),
        ("frame_width: 256", "pictures of 56 x 256 pixels: multiples of 28 are"),
        ("model: Qwen/Qwen2-VL-72B-Instruct", "sizes of Qwen/Qwen2-VL-72B-Instruct"),
        ("accelerate_config: no/such.yaml", "no/such.yaml is missing"),
        (
            "rl: ppo",
            "asked_models 'base base-direct base-begun sft grpo': this run has",
        ),
        ("rl: ppo\nasked_models: base sft ppo", "05_analysis compares grpo too"),
        ("asked_models: base,sft", "'base,sft': this run has"),
        ("grpo_from: rft", "grpo_from: rft is not trained before"),
        ("perception_models: ppo", "perception_models must be among asked_models"),
        ("asked_models: sft", "coherence_sets needs base as reader"),
        ("holdout_share: 0", "base-begun needs held-out questions"),
        ('data_dir: nowhere\ndata_command: ""', "no data_command makes it"),
        ("data_dir: nowhere", "ok data training, demonstrations, L1, L2, L3 missing"),
        ("sweep: {max_frames: [8, 7]}", "max_frames = 7: it must be even"),
    ],
)
def test_what_is_wrong_is_said_and_is_the_exit_code(line, told, dry_run):
    code, text = dry_run(*line.split("\n"))
    line_by_line, text = text, " ".join(text.split())
    assert told in text or told in line_by_line
    assert code == (not told.startswith("ok data"))
    assert not line.startswith("sweep") or "a-max_frames_8" in text


MANY = {"num_processes": 512, "prompts_per_step": 512}
ZERO3 = {"accelerate_config": "params/accelerate/zero3.yaml"}
NOBODY = {"model": "nobody/no-such-model"}


@pytest.mark.parametrize(
    ("check", "changes", "told"),
    [
        (lambda values: checks.check_devices(values, 0.0), MANY, "512 process(es)"),
        (
            lambda values: checks.check_devices(values, 0.0),
            {"eval_processes": 512},
            "512 process(es)",
        ),
        (checks.check_packages, ZERO3, "pip install"),
        (checks.check_model, NOBODY, "hf download nobody/no-such-model"),
    ],
)
def test_what_is_not_here_fails(check, changes, told, values, monkeypatch):
    assert check(values).passed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = check(values | changes)
    assert not found.passed and told in found.text


def test_a_card_and_a_checkpoint_must_be_there_whole(values, tmp_path):
    if not torch.cuda.is_available():
        check = checks.check_devices(values, 24.0)
        assert not check.passed and "card of 24 GB; here: no GPU" in check.text
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    check = checks.check_model(values | {"model": str(tmp_path)})
    assert not check.passed and "has no model.safetensors" in check.text


def test_missing_data_fails_unless_a_command_makes_all_of_it(values, tmp_path):
    values |= {"data_dir": str(tmp_path), "general_dir": str(tmp_path)}
    assert data_check(values).passed  # lib.mini makes it
    whole = "lib.data get x --what evaluation training_6k longvideobench"
    check = data_check(values | {"data_command": whole})
    assert not check.passed and f"python -m {whole} --accept" in check.text
    accepted = f"{whole} --accept-licences"
    assert data_check(values | {"data_command": accepted}).passed
    values |= {"data_command": "lib.data get x --what L2 --accept-licences"}
    check = data_check(values, ["01_data", "04_eval"])
    assert not check.passed
    assert "read L1, L3, general too" in check.text


def test_a_set_that_is_not_asked_is_neither_counted_nor_missed(
    dry_run, values, tmp_path
):
    _, whole = dry_run("asked_models: base")
    assert row(whole, "evaluation: answers")[1] == str(3 * 8 + 6)
    _, text = dry_run("asked_models: base", "asked_sets: L2", "asked_questions: 5")
    assert row(text, "evaluation: answers")[1] == "5"
    assert "not asked: L1, L3, general" in text
    assert "NO  settings" in dry_run("asked_sets: L5")[1]
    values |= {"general_dir": str(tmp_path), "data_command": "", "asked_sets": "L2 L3"}
    assert data_check(values, ["01_data", "04_eval"]).passed
    check = data_check(values | {"asked_sets": "L2 general"}, ["04_eval"])
    assert not check.passed and f"{tmp_path / 'lvb_val.json'}" in check.text


def test_missing_clips_and_records_that_cannot_be_used_fail_where_needed(small):
    folder = Path(small["data_dir"])
    assert data_check(small).passed
    next((folder / "general" / "videos").iterdir()).unlink()
    check = data_check(small)
    assert not check.passed and "1 of general" in check.text
    assert data_check(small, ["02_sft", "03_grpo"]).passed
    tolerant = small | {"on_bad_video": "keep_as_wrong"}
    check = data_check(tolerant)
    assert check.passed and "counted as wrong: 1 of general" in check.text
    for still in [*folder.glob("images/*/training*")][:3]:
        still.unlink()
    for held_out in (0.1, 0.9):  # not trained on, and asked
        check = data_check(tolerant | {"holdout_share": held_out})
        assert not check.passed and "3 of training" in check.text
    path = folder / "annotations" / "validation_L2.jsonl"
    first, *rest = records.read_jsonl(path)
    records.write_jsonl(path, [first | {"golden_choice_idx": "F"}, *rest])
    check = data_check(small)
    assert not check.passed and "records that cannot be used in L2: " in check.text


@pytest.mark.parametrize("text", ["", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_without_records_is_not_in_order(text, small, capsys):
    """A part that no clip came for yet, a file that git left on its server."""
    path = Path(small["data_dir"]) / "annotations" / "validation_L2.jsonl"
    records.write_text(path, text)
    assert not data_check(small).passed
    assert data_door.main(["check", small["data_dir"]]) == 1
    assert "UNUSABLE" in capsys.readouterr().out


def test_too_little_memory_fails(values):
    given = counts.work_of(values, "cpu")
    stages = memory.stages(of(paths.ROOT / "lib/mini/base"), given)
    check = checks.check_memory(stages, given, 1.0, "a card")
    assert not check.passed and "max_tokens" in check.text
    assert "an allowance, not measured, of 0.75 GiB and 8%" in check.text
    check = checks.check_memory(stages, replace(given, lora_rank=0), 1.0, "a card")
    assert not check.passed and "accelerate_config" in check.text
    assert checks.check_memory(stages, given, 100.0, "a card").passed
    tensors = max(stages.values()) / memory.GIB  # without the allowance they fit
    assert not checks.check_memory(stages, given, tensors + 0.1, "a card").passed
    assert not checks.check_host(10**15).passed


def test_a_disk_is_asked_for_all_runs_of_a_sweep_and_for_frames_once(tmp_path):
    frames, large = (tmp_path / "frames", "frame store"), 10**18
    runs = [
        {frames: n * large, (tmp_path / str(n), "checkpoints"): 5 * large}
        for n in (10, 8)
    ]
    (check,) = checks.check_disks(runs)
    assert not check.passed and "20,000,000,000.0 GB to write" in check.text
    assert "GB free" in check.text
    assert checks.check_disks([{frames: 1}])[0].passed


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
        found = plan.hours_of(new, parts, outputs=tmp_path)
        assert all(origin == "as earlier took here" for _, origin in found.values())
        return {stage: round(3600 * own) for stage, (own, _) in found.items()}

    assert hours() == {"SFT": 60, "GRPO": 50, "evaluation": 40}
    other = {"SFT": 180, "GRPO": 25, "evaluation": 40}
    assert hours(sft_steps=300, grpo_steps=50) == other
    assert hours(group_size=4) == {"SFT": 60, "evaluation": 40}
    assert hours(eval_processes=1) == {"SFT": 60, "GRPO": 50}
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
    found = plan.hours_of(values, parts, outputs=tmp_path)
    wanted = 750 * (took["rollout"] + took["reference"] + took["update"]) / 3600
    assert found["GRPO"][0] == pytest.approx(wanted)
    assert found["SFT"][0] == pytest.approx(46 * 128 * took["SFT"] / 3600)
    assert "8 at a time" in found["evaluation"][1] and "H100" in found["GRPO"][1]
    other = plan.hours_of(values | {"group_size": 4}, parts, outputs=tmp_path)
    assert other.keys() == {"SFT", "evaluation"}
    assert plan.hours_of(values_of("paper"), parts, outputs=tmp_path) == {}
