"""The single-GPU track on a CPU: 4-bit training, plain loading, export, model card."""

import shutil
from dataclasses import replace

import pytest
import torch

from lib import chain, paths, records
from lib.data.frame_store import question_media
from lib.data.prompts import messages
from lib.data.questions import Demonstration
from lib.model import encoding, models
from lib.run import __main__ as door
from lib.run import checks, export, params, pipeline
from lib.train import grpo, sft
from tests import trainings
from tests.trainings import SAMPLING, log_of

# isort: split
import peft
from transformers import AutoModelForImageTextToText, AutoProcessor

BASE = paths.ROOT / "lib" / "mini" / "base"
REWARDS = {"format": lambda text, question: len(text) / 100}
COMMON = {"steps": 2, "quantize": True, "gradient_checkpointing": True}
SFT = replace(trainings.SFT, **COMMON, max_tokens=400, seed=0)
GRPO = replace(trainings.GRPO, **COMMON, kl_beta=0.1, top_k=50)


@pytest.fixture(scope="module")
def run(tiny_questions, tmp_path_factory):
    """A finished run of both methods on lib/mini/base with its records."""
    run = tmp_path_factory.mktemp("outputs") / "single"
    items = [
        Demonstration(q.id, q.text, q.video, q.image, "<answer>B</answer>")
        for q in tiny_questions
    ]
    sft.train_sft(sft.Task(BASE, items, SFT, SAMPLING, run))
    grpo.train(grpo.Task(BASE, tiny_questions, REWARDS, GRPO, SAMPLING, run))
    command = "lib.data get outputs/data/seed_bench_r1 --what L1 longvideobench"
    chain.close(run, "01_data", data_command=command)
    for stage in ("02_sft", "03_grpo"):
        chain.close(run, stage, model="lib/mini/base", questions=6)
    half = {"L1": {"n": 200, "accuracy": 0.5}}
    base = {"L1": {"n": 200, "accuracy": 0.25}}
    records.write_json(run / "metrics.json", {"base": base, "grpo": half})
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    merged = tmp_path_factory.mktemp("export") / "merged"
    return export.export(run / "adapters" / "grpo", merged)


@pytest.fixture(scope="module")
def batch(tiny_questions):
    clip, still = question_media(tiny_questions[0], SAMPLING)
    processor = models.load_processor(BASE)
    return encoding.encode(processor, [messages("what next?", clip, still)])


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits.float()


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_four_bit_training_moves_an_adapter_that_plain_peft_loads(run, method, batch):
    """It is of the language model, and gives there the same logits."""
    log, folder = log_of(run, method), run / "adapters" / method
    assert [row["step"] for row in log] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in log)
    if method == "grpo":
        assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[1]["kl"] > 0
    config = peft.PeftConfig.from_pretrained(folder)
    assert config.r == 4 and config.target_modules == models.LORA_TARGETS
    plain = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)
    before = logits(plain.eval(), batch)
    plain = peft.PeftModel.from_pretrained(plain, str(folder)).eval()
    ours = models.load_trained(BASE, folder)
    assert torch.equal(logits(plain, batch), logits(ours, batch))
    assert not torch.allclose(logits(plain, batch), before, atol=1e-3)
    assert not ours.training


def test_the_export_is_a_checkpoint_with_processor_and_logits(run, exported, batch):
    model = AutoModelForImageTextToText.from_pretrained(exported, dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    assert not any("lora" in name for name in model.state_dict())
    untrained = logits(models.load_model(BASE), batch)
    wanted = logits(models.load_trained(BASE, run / "adapters" / "grpo"), batch)
    found = logits(model.float(), batch)
    moved = (wanted - untrained).abs().max()
    assert (found - wanted).abs().max() < min(0.25 * moved, 0.1 * wanted.std())
    processor = AutoProcessor.from_pretrained(exported)
    ids = batch["input_ids"][0]
    plain = models.load_processor(BASE).tokenizer
    assert processor.tokenizer.decode(ids) == plain.decode(ids)


def test_the_card_says_what_the_records_say_in_both_places(run, exported):
    card = (exported / "README.md").read_text()
    assert card == (run / "adapters" / "grpo" / "README.md").read_text()
    assert records.environment()["git_commit"] in card
    assert "| L1 | 200 | 50.0 [43.1, 56.9] | 25.0 [19.5, 31.4] |" in card
    assert "CC BY-NC 4.0" in card and "CC BY-NC-SA 4.0" in card
    assert "| kl_beta | 0.1 |" in card and "rank 4" in card and "NF4" in card
    assert "`lib/mini/base` after GRPO:" in card and "base_model" not in card
    assert "Not evaluated yet" in export.model_card(run / "adapters" / "sft")


def test_an_export_never_writes_over_anything(run, exported, capsys):
    before = records.sha256(exported)
    arguments = ["export", str(run / "adapters" / "grpo"), str(exported)]
    assert door.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert records.sha256(exported) == before


@pytest.mark.parametrize("name", ["adapters/dpo", "adapters/grpo"])
def test_an_export_of_nothing_names_what_is_missing(name, tmp_path, capsys):
    assert door.main(["export", str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_without_its_manifest_or_onto_another_base_is_refused(run, tmp_path):
    adapter = shutil.copytree(run / "adapters", tmp_path / "adapters") / "grpo"
    with pytest.raises(FileNotFoundError, match=r"manifest\.json .*run 03_grpo"):
        export.export(adapter, tmp_path / "out")
    other = shutil.copytree(run, tmp_path / "run")
    base = shutil.copytree(BASE, tmp_path / "base")
    (base / "generation_config.json").write_text("{}")
    chain.close(other, "03_grpo", model=str(base))
    with pytest.raises(ValueError, match=r"adapters/grpo was trained on another base"):
        export.export(other / "adapters" / "grpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_the_params_files_follow_the_paper_where_they_say_so(size):
    (run,) = params.load_params(paths.ROOT / "params" / f"single_gpu_{size}.yaml")
    values = run.values
    assert values["model"] == f"Qwen/Qwen2-VL-{size.upper()}-Instruct"
    assert values["quantize"] and values["gradient_checkpointing"]
    frames = (values["max_frames"], values["frame_height"], values["frame_width"])
    assert frames == (16, 252, 252)
    assert values["prompts_per_step"] * values["group_size"] == 64
    assert values["sft_batch_size"] * values["sft_gradient_accumulation"] == 128
    assert (values["kl_beta"], values["top_k"]) == (0.1, 50)


@pytest.mark.parametrize(
    ("name", "stages", "told"),
    [
        ("real_2b_on_miniplan", 5, "01_data makes it: python -m lib.mini write"),
        ("questions_2b", 1, "--what L2 --at-most 5GB --accept-licences"),
        ("evening_2b", 5, "--what L1 training_6k --at-most 40GB --accept-licences"),
    ],
)
def test_each_rung_is_planned_for_16_gb_before_anything_is_there(
    name, stages, told, monkeypatch, tmp_path, capsys
):
    """With a checkpoint that is here in place of the real one, all but the data and the
    card is ready; the real one's sizes are known without it."""
    file = str(paths.ROOT / "params" / f"{name}.yaml")
    (run,) = params.load_params(file)
    assert run.card_gib == 16 and run.values["quantize"]
    own = run.values["asked_sets"].split() if "asked_sets" in run.values else ()
    monkeypatch.setenv("KIT_OUTPUTS", str(tmp_path))
    pipeline.main([file, "--dry-run", "--gib", "16", f"model={BASE}"])
    said = capsys.readouterr().out
    text = " ".join(said.split())
    assert "ok memory" in text and "ok model" in text and told in text
    assert (
        said.count("\nSFT ") + said.count("\nGRPO: ") + said.count("\nevalu") == stages
    )
    rest = [name for name in ("L1", "L2", "L3", "general") if own and name not in own]
    assert ("not asked: " + ", ".join(rest) in text) == bool(own)
    if checks.local_model("Qwen/Qwen2-VL-2B-Instruct") is None:  # then it is to come
        pipeline.main([file, "--dry-run", "--gib", "16"])
        said = capsys.readouterr().out
        assert "ok  memory" in said and "model 4.4" in " ".join(said.split())
