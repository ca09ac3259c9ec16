"""What the frozen tower saw is shared between models, and nothing else is."""

from dataclasses import replace

import pytest
import torch

from lib.evaluate import evaluate as evaluation
from lib.evaluate import features, perception
from lib.evaluate.evaluate import EvalSettings, evaluate
from lib.model import models
from tests.trainings import SAMPLING, adapted

SETTINGS = EvalSettings("think", max_new_tokens=6, batch_size=4)


@pytest.fixture
def kept(monkeypatch):
    """What is kept from now on."""
    kept = features.Kept()
    monkeypatch.setattr(evaluation, "KEPT", kept)
    return kept


@pytest.fixture
def ask(processor, tiny_questions, tmp_path, kept):
    """(rows, pictures that the tower saw) of a model that is asked anew."""

    def asked(model, questions=tiny_questions, sampling=SAMPLING, shown=None):
        runs = []
        tower = model.get_base_model() if hasattr(model, "peft_config") else model
        tower = tower.model.visual
        hook = tower.register_forward_hook(lambda *own: runs.append(1))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "predictions.jsonl"
        path.parent.mkdir()
        given = (model, processor, questions, SETTINGS, sampling, path, shown)
        rows = evaluate(*given)
        hook.remove()
        return rows, len(runs)

    return asked


def test_another_adapter_answers_what_the_first_model_saw(
    tiny_checkpoint, model, ask, kept
):
    alone, runs = ask(adapted(tiny_checkpoint))
    assert runs > 0
    kept.prompts.clear()
    first, _ = ask(model)
    second, runs = ask(adapted(tiny_checkpoint))
    assert runs == 0
    assert second == alone != first


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": replace(SAMPLING, fps=1.0)},
        {"shown": perception.Shown("shuffled", 0)},
        {"shown": perception.Shown("no_video", 0)},
    ],
)
def test_other_pictures_are_seen(model, ask, change):
    ask(model)
    _, runs = ask(model, **change)
    assert runs > 0


def test_another_file_at_the_same_place_is_seen(model, ask, tiny_questions, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    clips = sorted({q.video for q in tiny_questions if q.video})
    copy = folder / "clip.mp4"
    question = next(q for q in tiny_questions if q.video == clips[0])
    found = []
    for clip in (clips[0], clips[1], clips[1]):
        copy.write_bytes(clip.read_bytes())
        found.append(ask(model, [replace(question, video=copy)])[1])
    assert found[0] > 0 and found[1] > 0 and found[2] == 0


def test_another_chat_template_is_another_prompt(model, processor, ask, monkeypatch):
    ask(model)
    longer = processor.chat_template + "\n"
    monkeypatch.setattr(processor, "chat_template", longer)
    assert ask(model)[1] > 0


def test_a_trained_tower_is_not_shared(tiny_checkpoint, model, ask):
    ask(model)
    other = models.load_model(tiny_checkpoint)
    with torch.no_grad():
        next(other.model.visual.parameters()).mul_(1.001)
    assert ask(other)[1] > 0


def test_no_more_than_the_bound_is_kept(model, ask, kept):
    kept.most = 5000
    first, before = ask(model)
    assert 0 < kept.bytes <= 5000
    assert len(kept.prompts) < len(first)
    second, runs = ask(model)
    assert second == first and 0 < runs <= before


def test_pixels_go_once_the_tower_has_seen_them(model, processor, tiny_questions):
    asking = evaluation.Asking(model, processor, SETTINGS, SAMPLING)
    seen = asking.see(asking.prepare(tiny_questions[:2]))
    assert all(prompt.features and not prompt.pixels for prompt in seen.prompts)
