"""Training in float16, for cards without bfloat16: nothing overflows unseen."""

import math
from dataclasses import replace

import pytest
import torch

from lib import paths
from lib.data.frame_store import question_media
from lib.data.prompts import messages
from lib.model import encoding, models
from lib.run import export, model_check
from lib.train import checkpoints, progress
from tests.trainings import METHODS, SAMPLING, SFT, adapted, log_of, weights_of

BASE = paths.ROOT / "lib" / "mini" / "base"


@torch.no_grad()
def test_the_mini_base_gives_nearly_the_same_in_float16(tiny_questions):
    clip, still = question_media(tiny_questions[0], SAMPLING)
    talk = [messages("what next?", clip, still)]
    batch = encoding.encode(models.load_processor(BASE), talk)
    whole = models.load_model(BASE)(**batch).logits
    half = models.load_model(BASE, "float16")(**batch).logits
    assert half.dtype == torch.float16 and half.isfinite().all()
    assert 0 < (whole - half).abs().max() < 0.05


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("name", ["sft", *METHODS])
def test_it_trains_float32_adapters_near_those_of_float32(
    train, tmp_path, name, quantize
):
    found = {}
    for dtype in ("float32", "float16"):
        run, changes = tmp_path / dtype, {"quantize": quantize, "steps": 2}
        found[dtype] = weights_of(train(name, run=run, dtype=dtype, **changes))
        assert [row["step"] for row in log_of(run, name)] == [1, 2]
    assert found["float16"].dtype == torch.float32
    assert found["float16"].isfinite().all()
    assert not torch.equal(found["float16"], found["float32"])
    if name == "sft" and not quantize:  # in RL a rollout may be another
        assert (found["float16"] - found["float32"]).abs().max() < 5e-3


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(
    train, tmp_path, monkeypatch
):
    scales = []

    class Huge(torch.amp.GradScaler):
        def __init__(self, device):
            super().__init__(device, init_scale=2.0**24)

        def update(self, new_scale=None):
            super().update(new_scale)
            scales.append(self.get_scale())

    monkeypatch.setattr(torch.amp, "GradScaler", Huge)
    adapter = train("sft", dtype="float16", steps=12, save_every=12)
    norms = [row["grad_norm"] for row in log_of(tmp_path, "sft")]
    assert norms[0] is None or math.isinf(norms[0])  # null is infinity
    assert norms[-1] is not None and scales[0] == 2.0**23
    assert weights_of(adapter).isfinite().all()


def test_an_overflow_that_does_not_end_is_divergence():
    stop = progress.StopDiverged(replace(SFT, dtype="float16"), lambda logs: True)
    state = type("State", (), {"global_step": 1})
    logs = {"loss": 1.0, "grad_norm": math.inf}
    for _ in range(progress.SKIPS):
        stop.on_log(None, state, None, logs)
    with pytest.raises(FloatingPointError, match="grad_norm is inf; training has div"):
        stop.on_log(None, state, None, logs)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        stop.on_log(None, state, None, {"loss": math.nan})


def test_apples_gpu_is_passed_over_with_a_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    models._device.cache_clear()
    assert models.load_model(BASE).device.type == "cpu"
    assert "(MPS)" in capsys.readouterr().out
    assert checkpoints.common_arguments(SFT, tmp_path)["use_cpu"]


def test_a_card_without_bfloat16_is_named(monkeypatch):
    models._device.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4 has no bfloat16: give dtype = floa"):
        models._device("bfloat16")


def test_such_a_card_is_not_asked_for_it_where_nobody_gives_a_type(
    monkeypatch, tiny_checkpoint, tmp_path
):
    """By check-model, whose every level would fail, and by export."""
    monkeypatch.setattr(models, "half", lambda: "float16")
    loaded, load = set(), models.load_model

    def told(path, dtype, *more):
        loaded.add(dtype)
        return load(path, dtype, *more)

    monkeypatch.setattr(models, "load_model", told)
    given = ("lib/mini/base", BASE, tmp_path, "lib.mini.sight", "float16")
    subject = model_check.Subject(*given)
    for level in (model_check.files, model_check.path):
        assert all(check.passed in (True, None) for check in level(subject))
    facts = {"model": tiny_checkpoint}
    monkeypatch.setattr(export, "trained_on", lambda adapter: facts)
    monkeypatch.setattr(export, "model_card", lambda adapter: "")
    adapter = tmp_path / "adapter"
    adapted(tiny_checkpoint, dtype="float16").save_pretrained(adapter)
    export.export(adapter, tmp_path / "merged")
    assert loaded == {"float16"}
