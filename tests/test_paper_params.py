"""params/paper.yaml against the released recipe, key by key, and what is mended."""

import re

import pytest

from lib import paths
from lib.run import checks, counts, memory, params
from lib.train import rl

# isort: split
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

FOLDER = paths.ROOT / "params"
# grpo.sh, qwen2vl_sft_config.yaml, infer.py and vision_process_egoplan.py as released.
RELEASED = {
    **{"model": "Qwen/Qwen2-VL-7B-Instruct", "seed": 42, "max_frames": 16},
    **{"video_fps": 2.0, "frame_height": 252, "frame_width": 252, "lora_rank": 0},
    **{"quantize": False, "dtype": "bfloat16", "gradient_checkpointing": True},
    **{"num_processes": 8, "holdout_share": 0.0, "sft_steps": 46},
    **{"sft_loss": "released", "sft_epochs": 1.0, "sft_batch_size": 1},
    **{"sft_gradient_accumulation": 16, "sft_lr": 2.0e-5, "sft_warmup_share": 0.1},
    **{"max_tokens": 8192, "grpo_steps": 750, "grpo_epochs": 1.0},
    **{"prompts_per_step": 8, "prompts_per_backward": 1, "group_size": 8},
    **{"grpo_lr": 1.0e-6, "grpo_warmup_share": 0.0, "kl_beta": 0.1, "temperature": 1.0},
    **{"top_k": 50, "top_p": 1.0, "max_completion_tokens": 256},
    **{"rl": "grpo kl_clamp=11", "reward": "accuracy", "grpo_save_every": 10},
    **{"eval_batch_size": 1, "max_new_tokens": 256},
}
SOURCE = re.compile(r"\.(py|sh|yaml)\b|\bdefault\b|^not stated: ")
FAULT = re.compile(r"\w+\.(py|sh|yaml)(:\d+)?|^are nearly 16:9")
KEY = re.compile(r"^(\w+):.*?(?:\s+#\s(.*))?$")


def load(name: str) -> dict:
    (run,) = params.load_params(FOLDER / f"{name}.yaml")
    return run.values


def comments(name: str) -> dict[str, str | None]:
    """{key: the comment on its line} of a params file."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    found = [KEY.match(line) for line in lines if not line.startswith((" ", "#"))]
    return {match[1]: match[2] for match in found if match}


def test_every_key_of_the_recipe_has_its_source():
    said = comments("paper")
    assert set(said) == {*load("paper"), "card_gib"}
    for key, comment in said.items():
        assert comment and SOURCE.search(comment), key


# run_grpo_care_margin0_seed_bench_r1.sh, grpo_trainer_ref_ema.py and eval_bench.py of
# GRPO-CARE as released; its article where they are silent.
NAME = "care_qwen2_5_vl_7b"
CARE = {
    **{"model": "Qwen/Qwen2.5-VL-7B-Instruct", "max_frames": 16, "num_processes": 4},
    **{"accelerate_config": "params/accelerate/zero3.yaml", "lora_rank": 0},
    **{"dtype": "bfloat16", "grpo_steps": 1500, "prompts_per_step": 4, "group_size": 8},
    **{"grpo_lr": 1.0e-6, "kl_beta": 0.0, "temperature": 1.0, "top_k": 50},
    **{"top_p": 0.95, "max_completion_tokens": 768, "reward": "accuracy + format"},
    **{"grpo_save_every": 500, "max_new_tokens": 1024},
}
CARE_SOURCE = re.compile(
    r"script\b|paper\b|\w+\.py|default|not stated|16:9|the same|are the kit's"
)


def test_the_follow_ups_recipe_is_the_released_one_with_its_sources():
    values, said = load(NAME), comments(NAME)
    assert {key: values[key] for key in CARE} == CARE
    kept = ("rl", "notebooks", "asked_models", "perception_models")
    for key in said.keys() - set(kept):
        assert said[key] and CARE_SOURCE.search(said[key]), key
    (method,) = rl.read(values["rl"])
    wanted = {"margin": 0.0, "answer_mean": "geometric", "schedule": "cosine"}
    assert method.options == wanted
    size = values["frame_height"], values["frame_width"]
    assert size == smart_resize(720, 1280, 28, max_pixels=128 * 28 * 28)


def test_the_follow_ups_recipe_fits_the_cards_it_names():
    values = counts.all_values(params.load_params(FOLDER / f"{NAME}.yaml")[0])
    checks.refuse_settings(values)
    model = memory.Model.of(memory.config_of(values["model"]))
    stages = memory.stages(model, counts.work_of(values, "cuda"))
    del stages["SFT"]  # its settings are not stated, so it is not run
    assert checks.with_allowance(max(stages.values())) < 80e9


def test_the_recipe_is_the_released_one():
    values = load("paper")
    assert {key: values[key] for key in RELEASED} == RELEASED
    for method, each in counts.items_per_step(values).items():  # all 6000 once
        name = f"{method}_steps"
        counts.check_epochs(name, values[name], each, 6000, 1.0)
    # The one fault that is mended: there 1, a whole checkpoint after every step.
    assert values["sft_save_every"] > 1


def test_nothing_of_training_is_left_to_a_default_of_the_smoke_run():
    """Defaults that are the paper's own need not be repeated; those of seconds do."""
    given = load("paper")
    for notebook in params.notebook_paths():
        if notebook.stem in ("02_sft", "03_grpo", "04_eval"):
            for name, parameter in params.declared(notebook).items():
                assert name in given or "(paper:" not in parameter.sentence, name


def test_the_corrected_run_differs_in_the_listed_faults_alone():
    paper, corrected = load("paper"), load("paper_corrected")
    assert set(corrected) == set(paper)
    differing = {key for key in paper if paper[key] != corrected[key]}
    said = comments("paper_corrected")
    assert differing == set(said) - {"base"}
    for key in differing - {"run_name"}:
        assert FAULT.search(said[key]), key
    for name in ("paper", "paper_corrected"):  # the card is inherited
        assert params.load_params(FOLDER / f"{name}.yaml")[0].card_gib == 40
    # Pictures keep their shape, for as many tokens.
    height, width = corrected["frame_height"], corrected["frame_width"]
    assert width / height == pytest.approx(16 / 9, rel=0.04)
    assert height * width == pytest.approx(252 * 252, rel=0.04)


@pytest.mark.parametrize("kind", ["zero3", "zero3_offload", "fsdp2"])
def test_each_way_to_split_says_what_is_planned_for_it(kind):
    file = FOLDER / "accelerate" / f"{kind}.yaml"
    (run,) = params.load_params(FOLDER / "paper.yaml")
    values = counts.all_values(run) | {"accelerate_config": str(file)}
    work = counts.work_of(values, "cuda")
    model = memory.Model.of(memory.config_of(values["model"]))
    largest = max(memory.stages(model, work).values())
    card, host = checks.with_allowance(largest), memory.states(model, work)[-1]
    told = f"# Planned for params/paper.yaml: {card / memory.GIB:.1f} GiB of each card"
    told += f" and {host / memory.GIB:.0f} GiB of the host." if host else "."
    assert told in file.read_text().splitlines()
