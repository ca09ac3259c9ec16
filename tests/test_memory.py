"""The memory plan: exact sizes, agreement with measured peaks, and the command."""

import json

import pytest
import torch

from lib import memory, models, paths, records
from tests.bench import cost
from tests.bench.memory import NARROW, QLORA, SMALL, TOLERANCE, compare
from tests.bench.stages import Shape

CARDS = {"single_gpu_2b": 16.0, "single_gpu_7b": 24.0}
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
}
SHORT = {"words": 20, "response": 60, "completion": 8}
CHECKED = {
    "checkpointing": (SMALL, Shape(checkpointing=True, **SHORT)),
    "no checkpointing": (NARROW, Shape(**{**SHORT, "words": 100})),
    "NF4 and checkpointing": (SMALL, Shape(**QLORA, **SHORT)),
    "all weights": (SMALL, Shape(rank=0, **SHORT)),
}


def work(**changes) -> memory.Work:
    (run,) = memory.params.load_params(paths.ROOT / "params/single_gpu_7b.yaml")
    return memory.work_of({**memory.all_values(run), **changes}, "cuda")


def of_stage(stages, name):
    return next(stage for stage in stages if stage.name == name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_configurations_have_the_published_number_of_parameters(name):
    named = memory.parameters(memory.config_of(name))
    assert sum(tensor.numel() for tensor in named.values()) == PUBLISHED[name]


@pytest.mark.parametrize("quantize", [False, True])
def test_weight_bytes_are_those_of_the_loaded_model(tiny_checkpoint, quantize):
    model = models.load_model(tiny_checkpoint, quantize=quantize)
    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            second = state.state2
            tensors += [state.absmax, second.absmax, state.code, second.code]
            tensors.append(state.offset)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    named = memory.parameters(memory.config_of(tiny_checkpoint))
    given = work(dtype="float32", quantize=quantize)
    planned = sum(memory.weight_bytes(named, given).values())
    found = sum(storage.nbytes() for storage in held.values())
    assert planned == pytest.approx(found, rel=2e-3)


def test_adapter_numbers_are_those_of_peft(tiny_checkpoint):
    import peft

    model = models.load_model(tiny_checkpoint)
    model = peft.get_peft_model(model, models.lora_config(rank=4, alpha=8))
    trained, _ = model.get_nb_trainable_parameters()
    named = memory.parameters(memory.config_of(tiny_checkpoint))
    assert memory.trained_numbers(named, work(lora_rank=4)) == trained


@pytest.mark.parametrize("case", CHECKED)
def test_the_plan_is_within_15_percent_of_measured_peaks(case):
    for row in compare(*CHECKED[case]):
        assert abs(row["ratio"] - 1) <= TOLERANCE, row


def test_every_knob_that_the_advice_names_lowers_its_stage():
    config = memory.config_of("Qwen/Qwen2-VL-7B-Instruct")
    start = {"prompts_per_backward": 2}
    before = memory.plan(config, work(**start))
    knobs = {
        "update": [{"prompts_per_backward": 1}, {"pack_tokens": 4096}],
        "rollout": [{"prompts_per_step": 4}],
        "SFT": [{"max_tokens": 1024}, {"sft_gradient_accumulation": 16}],
        "evaluation": [{"eval_batch_size": 4}],
    }
    for name, changes in knobs.items():
        for change in changes:
            after = of_stage(memory.plan(config, work(**start | change)), name)
            assert after.total < of_stage(before, name).total, change
    for change in ({"quantize": False}, {"gradient_checkpointing": False}):
        after = of_stage(memory.plan(config, work(**start | change)), "update")
        assert after.total > of_stage(before, "update").total


def test_packs_are_those_of_the_update():
    assert memory.packs(work(), 8) == (8, 5, 882 + 8 * 256)
    assert memory.packs(work(pack_tokens=2000), 1) == (2, 1, 882 + 4 * 256)
    with pytest.raises(ValueError, match="raise pack_tokens"):
        memory.packs(work(pack_tokens=1000), 1)


@pytest.mark.parametrize(("name", "gib"), CARDS.items())
def test_the_params_files_fit_their_cards_without_any_download(name, gib, capsys):
    file = f"params/{name}.yaml"
    if not torch.cuda.is_available():
        assert memory.card_gib(file, None) == (gib, f"named in {name}.yaml")
    assert models.main(["plan", file, "--gib", str(gib)]) == 0
    text = capsys.readouterr().out
    assert f"of {gib:.2f}: fits" in text and "An allowance, not a measurement" in text
    costs = records.read_json(paths.ROOT / "outputs/reference/bench_cost.json")["costs"]
    rows = [row for found in costs.values() for row in found["rows"]]
    apart = max(abs(row["peak_gib"] / row["planned_gib"] - 1) for row in rows)
    assert f"within {100 * apart:.0f} % of the peaks" in " ".join(text.split())
    named = [line.split()[0] for line in text.splitlines() if line.endswith(" GiB")]
    assert named == ["SFT", "rollout", "reference", "update", "evaluation"]


def test_a_card_that_is_too_small_is_said_so_with_what_to_lower(capsys):
    assert models.main(["plan", "params/single_gpu_7b.yaml", "--gib", "8"]) == 1
    assert "does NOT fit: lower prompts_per_backward" in capsys.readouterr().out


def test_bad_input_is_named(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    text = "run_name: a\nmodel: Qwen/Qwen2-VL-72B-Instruct\n"
    for content, arguments, message in [
        (text, [], "names no 'N GB card': give --gib"),
        (text, ["--gib", "8"], "sizes of Qwen/Qwen2-VL-72B-Instruct are not known"),
        ("run_name: a\nmax_tokens: 100\n", ["--gib", "8"], "raise max_tokens"),
        ("run_name: a\nmodle: b\n", ["--gib", "8"], "did you mean model?"),
    ]:
        if torch.cuda.is_available() and not arguments:
            continue  # the GPU's memory is the answer
        file.write_text(content)
        assert models.main(["plan", str(file), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_cost_script_measures_a_tiny_size_anywhere(tmp_path):
    out = tmp_path / "cost.json"
    cost.main(["--size", "tiny", "--out", str(out)])
    found = json.loads(out.read_text())["costs"]["tiny"]
    assert found["measured"]
    stages = ["SFT", "rollout", "reference", "update", "evaluation"]
    assert [row["stage"] for row in found["rows"]] == stages
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in found["rows"])
    assert "not measured" not in out.with_suffix(".md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_the_table_of_costs_says_so(tmp_path):
    out = tmp_path / "cost.json"
    cost.main(["--out", str(out)])
    text = out.with_suffix(".md").read_text()
    assert "No GPU was at hand" in text and text.count("no GPU was at hand") == 10


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
    assert alone.eval_prompt == 9 * 18 * 18 + memory.TEXT_TOKENS
    assert alone.eval_patches == 9 * 36 * 36 and alone.eval_batch == 1
    sizes = memory.Sizes.of(memory.config_of("Qwen/Qwen2-VL-7B-Instruct"))
    one = sum(memory.evaluation_items(sizes, alone).values())
    plain = work(**values | {"eval_batch_size": 1}, perception_conditions="")
    assert one > 2.5 * sum(memory.evaluation_items(sizes, plain).values())
