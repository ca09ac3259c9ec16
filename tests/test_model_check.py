"""`check-model` passes a sound model and notices each way of reading one wrongly."""

import json
import shutil
import types

import pytest
import torch

from lib.data import footage
from lib.mini import make_base
from lib.model import models
from lib.run import __main__ as door
from lib.run import checks, model_check
from tests.made_hub import Hub

# isort: split
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

MINI = "lib.mini.sight"


@pytest.fixture(autouse=True)
def outputs(monkeypatch, tmp_path):
    """Records go there."""
    file = tmp_path / "checked.json"
    monkeypatch.setattr(checks, "check_file", lambda name: file)
    return file


def failed(name, levels):
    """The findings, as "level: what", that are wrong, of these levels alone."""
    own = {level: model_check.LEVELS[level] for level in levels.split()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_check, "LEVELS", own)
        return {*said(model_check.check(str(name), MINI), False)}


def said(found, passed):
    """{"level: what": text} of the findings that are so."""
    return {
        f"{level}: {finding['name']}": finding["text"]
        for level, own in found["levels"].items()
        for finding in own["findings"]
        if finding["passed"] is passed
    }


def test_a_sound_model_passes_and_what_is_undecided_says_why(outputs, capsys):
    assert door.main(["check-model", str(make_base.BASE), "--sight", MINI]) == 0
    found = json.loads(outputs.read_text())
    assert list(found["levels"]) == list(model_check.LEVELS)
    undecided = said(found, None)
    wanted = {"files: hub", "words: published tokens", "learning: peak memory"}
    assert undecided.keys() == wanted and all(undecided.values())
    assert "every level passed" in capsys.readouterr().out
    model = checks.check_model({"model": str(make_base.BASE)})
    assert model.passed and model.text.endswith("checked")


def by_reader(change):
    """A fault of the video reader."""
    plain = footage.read

    def read(*given):
        frames, why = plain(*given)
        return change(frames), why

    return lambda monkeypatch, folder: monkeypatch.setattr(footage, "read", read)


def not_normalised(monkeypatch, folder):
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["video_processor"]["do_normalize"] = False
    file.write_text(json.dumps(config))


def flat_positions(monkeypatch, folder):
    def get_rope_index(self, input_ids, *args, **kwargs):
        rows, length = input_ids.shape
        return torch.arange(length).expand(3, rows, length), torch.zeros(rows, 1)

    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", get_rope_index)


def lost(part):
    """A part of the vision tower that keeps its random numbers when it is loaded."""
    plain = models.load_whole

    def load(*args, **options):
        model = plain(*args, **options)
        for weight in model.model.visual.get_submodule(part).parameters():
            torch.nn.init.normal_(weight.data, std=0.02)
        return model

    return lambda monkeypatch, folder: monkeypatch.setattr(models, "load_whole", load)


SEEN, READ = "sight: questions", "files: tensors"
SWAPPED = by_reader(lambda frames: [pixels[..., ::-1].copy() for pixels in frames])
FAULTS = {
    "channels swapped": (SWAPPED, {SEEN}),
    "frames backwards": (by_reader(lambda frames: frames[::-1]), {SEEN}),
    "pixels not normalised": (not_normalised, {SEEN}),
    "flat positions": (flat_positions, {"path: positions", SEEN}),
    "merger lost": (lost("merger"), {READ, SEEN}),
    "block lost": (lost("blocks.0"), {READ}),
}


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(make_base.BASE, tmp_path / "base")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch, copied):
    inject, wanted = FAULTS[fault]
    inject(monkeypatch, copied)
    assert wanted <= failed(copied, "files path sight")


def test_a_model_that_cannot_be_read_is_not_sound_and_says_where(copied, outputs):
    """Whatever a library raises of it."""
    file, template = copied / "model.safetensors", copied / "chat_template.jinja"
    file.write_bytes(file.read_bytes()[:-1000])
    template.write_text("{% for message in %}")
    assert failed(copied, "files") == {"files: stopped"}
    assert "model.safetensors is damaged" in outputs.read_text()
    shutil.copy(make_base.BASE / file.name, file)
    assert failed(copied, "words") == {"words: stopped"}
    assert "TemplateSyntaxError" in outputs.read_text()


def test_tensors_that_a_file_lacks_or_that_the_hub_lists_otherwise(copied, monkeypatch):
    file = copied / "model.safetensors"
    tensors = load_file(file)
    whole = file.read_bytes()
    save_file({k: v for k, v in tensors.items() if "merger" not in k}, file)
    assert failed(copied, "files") == {"files: stopped"}

    name = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, file)
    assert failed(copied, "files") == {"files: content"}  # as of a torn download

    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.endpoint)
    hub.files["somebody/model"] = {"model.safetensors": whole, "README.md": b"none"}
    assert model_check.hub_files("somebody/model", copied).passed is False
    file.write_bytes(whole)
    found = model_check.hub_files("somebody/model", copied)
    assert found.passed and found.text.startswith("1 files, 0 not")
    hub.portal = True  # a page to sign in to comes instead
    assert model_check.hub_files("somebody/model", copied).passed is None
    hub.close()


def test_another_template_and_other_ids_are_noticed(copied):
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "terse"))
    config = json.loads((copied / "config.json").read_text())
    config["image_token_id"], config["video_token_id"] = (
        config["video_token_id"],
        config["image_token_id"],
    )
    (copied / "config.json").write_text(json.dumps(config))
    wanted = {"words: template", "words: picture tokens"}
    assert wanted <= failed(copied, "words")


def test_pictures_made_for_another_model_are_noticed(copied, outputs):
    """MiniPlan is seen well enough with the mean of another model."""
    file = copied / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    config["video_processor"]["patch_size"] = 16
    file.write_text(json.dumps(config))
    assert failed(copied, "words") == {"words: pictures"}
    (told,) = said(json.loads(outputs.read_text()), False).values()
    assert "Qwen2VLImageProcessor: image_mean (0.5, 0.5, 0.5), [0.48" in told
    assert "Qwen2VLVideoProcessor: patch_size 16, 14 expected" in told


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_formula_of_positions_is_right_where_it_can_be_counted(family, seconds):
    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
    ids = {"image_token_id": 8, "video_token_id": 9}
    config = types.SimpleNamespace(model_type=family, vision_config=vision, **ids)
    frame = [9, 9, 1] if family == "qwen3_vl" else [9, 9]
    given = {
        "input_ids": torch.tensor([[1, *frame, *frame, 1]]),
        "video_grid_thw": torch.tensor([[2, 2, 4]]),
    }
    if family == "qwen2_5_vl":
        given["second_per_grid_ts"] = [seconds]
    found = model_check.mrope_positions(given, config).T.tolist()
    if family == "qwen3_vl":  # frame by frame, a word behind each
        first, second = [[1, 1, 1], [1, 1, 2]], [[4, 4, 4], [4, 4, 5]]
        wanted = [*first, [3] * 3, *second, [6] * 3, [7] * 3]
    else:
        later = 1 + (int(4 * seconds) if family == "qwen2_5_vl" else 1)
        wanted = [[1, 1, 1], [1, 1, 2], [later, 1, 1], [later, 1, 2]]
        wanted.append([max(later, 2) + 1] * 3)
    assert found == [[0, 0, 0], *wanted]


def test_the_dry_run_names_a_model_that_was_never_checked_or_is_not_sound(outputs):
    name = str(make_base.BASE)
    todo, found = f"python -m lib.run check-model {name}", {"passed": False}
    told = checks.check_model({"model": name})
    assert told.passed and f"never checked: {todo}" in told.text
    found["identity"] = checks.identity(name, make_base.BASE)
    outputs.write_text(json.dumps(found))
    told = checks.check_model({"model": name})
    assert not told.passed and "NOT sound" in told.text
    outputs.write_text(json.dumps({"identity": "other weights", "passed": True}))
    assert "never checked" in checks.check_model({"model": name}).text


def test_a_model_that_is_not_here_is_not_checked(outputs, capsys):
    assert door.main(["check-model", "nobody/no-such-model"]) == 2
    assert "hf download nobody/no-such-model" in capsys.readouterr().err
    assert not outputs.exists()
