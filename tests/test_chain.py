"""A run is checked against what its notebooks read and left."""

import shutil
from functools import partial

import pytest
from made_run import edit_row

from lib import chain, paths, records
from lib.analysis import readme
from lib.chain import NotAsLeft, close, seal, verify
from lib.run import rows
from lib.show import report as show

STAGES = ("01_data", "02_sft", "03_grpo", "04_eval", "05_analysis")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """The environment of a stage takes git and torch, and has no part here."""
    monkeypatch.setattr(records, "environment", dict)


@pytest.fixture
def data(tmp_path):
    """Two annotation files, a clip and a large one."""
    folder = tmp_path / "data"
    records.write_jsonl(folder / "annotations/training.jsonl", [{"id": 0}, {"id": 1}])
    records.write_jsonl(folder / "annotations/validation_L1.jsonl", [{"id": 2}])
    (folder / "videos").mkdir()
    (folder / "videos/small.mp4").write_bytes(b"frames")
    (folder / "videos/large.mp4").write_bytes(bytes(2 * chain.WHOLE_BYTES))
    return folder


@pytest.fixture
def run(tmp_path, data):
    """Five notebooks' worth of files, closed one after the other."""
    run = tmp_path / "run"
    train, asked = sorted((data / "annotations").iterdir())
    clips = sorted((data / "videos").iterdir())
    close(run, "01_data", reads=[train, asked, *clips], questions=3)
    for stage, label in (("02_sft", "sft"), ("03_grpo", "grpo")):
        folder = run / "adapters" / label
        records.write_json(folder / "adapter_config.json", {"lora_alpha": 8})
        (folder / "adapter_model.safetensors").write_bytes(label.encode())
        log = [{"step": 1}, {"step": 2}]
        records.write_jsonl(run / f"train_log_{label}.jsonl", log)
        close(run, stage, reads=[train], seed=0)
    for label in ("base", "sft", "grpo"):
        rows = [{"id": number, "model": label} for number in range(3)]
        records.write_jsonl(run / f"predictions_{label}_L1.jsonl", rows)
        records.write_json(run / f"predictions_{label}_L1.settings.json", {"of": label})
    records.write_json(run / "metrics.json", {"sft": 0.5})
    close(run, "04_eval", reads=[asked, *clips])
    records.write_json(run / "results.json", {"accuracy": 0.5})
    (run / "figures").mkdir()
    (run / "figures/accuracy.png").write_bytes(b"drawn")
    close(run, "05_analysis")
    return run


def swap(run, one, two):
    (run / one).rename(run / "kept")
    (run / two).rename(run / one)
    (run / "kept").rename(run / two)


def cut(path):
    path.write_bytes(path.read_bytes().rpartition(b"{")[0])


def test_a_run_that_nobody_touched_is_never_accused(run, data, tmp_path):
    verify(run)
    for stage in STAGES:
        verify(run, before=stage)
    moved = run.rename(tmp_path / "elsewhere")
    shutil.rmtree(data)  # another machine: what was read there cannot be compared
    verify(moved)
    verify(tmp_path / "a_run_to_come")


def test_notebooks_that_run_again_with_the_same_result_change_nothing(run, data):
    for stage in ("02_sft", "03_grpo"):
        close(run, stage, reads=[data / "annotations/training.jsonl"], seed=0)
    verify(run)


def writing(name, **content):
    return lambda run, _: records.write_json(run / name, content)


def place_of(run, data, name):
    return (data if name.startswith(("annotations", "videos")) else run) / name


def editing(name, number, **changes):
    return lambda *of: edit_row(place_of(*of, name), number, **changes)


def deleting(name):
    return lambda *of: place_of(*of, name).unlink()


def holding(name, content):
    return lambda *of: place_of(*of, name).write_bytes(content)


def swapped_answers(run, _):
    for end in (".jsonl", ".settings.json"):
        swap(run, f"predictions_sft_L1{end}", f"predictions_grpo_L1{end}")


def other_facts(run, _):
    manifest = records.read_json(run / "manifest.json")
    records.write_json(run / "manifest.json", manifest | {"02_sft": {"seed": 1}})


LARGE = bytes(2 * chain.WHOLE_BYTES - 1) + b"x"
SFT, GRPO, BEST = (f"predictions_{name}_L1.jsonl" for name in ("sft", "grpo", "best"))
SCALE = "adapters/grpo/adapter_config.json"
TAMPERED = [  # what is done, and what is said
    (
        lambda run, _: swap(run, "adapters/sft", "adapters/grpo"),
        *("adapters/sft/adapter_model.safetensors: not as 02_sft left it", "grpo/"),
    ),
    (writing(SCALE, lora_alpha=800), f"{SCALE}: not as 03_grpo left it"),
    (swapped_answers, f"{SFT}, line 1: not as", "predictions_grpo_L1.settings.json"),
    (editing(SFT, 1, id="other"), f"{SFT}, line 2: not as 04_eval left it"),
    (lambda run, _: cut(run / GRPO), f"{GRPO}, line 3: not as"),
    (
        lambda run, _: shutil.copy(run / SFT, run / BEST),
        f"{BEST}: no notebook left it",
    ),
    *(
        (lambda run, _, n=name: shutil.copy(run / SFT, run / n), f"{name}: no notebook")
        for name in ("coherence_x.jsonl", "attention_x.jsonl", "draws_x.jsonl")
    ),
    (
        lambda run, _: shutil.copytree(run / "adapters/sft", run / "adapters/ppo"),
        "adapters/ppo/adapter_model.safetensors: no notebook left it",
    ),
    (deleting("results.json"), "results.json: missing, though 05_analysis left it"),
    (holding("figures/accuracy.png", b""), "figures/accuracy.png: not as 05_analysis"),
    (other_facts, "manifest.json: 02_sft is not what that notebook recorded"),
    (deleting(chain.LEDGER), "01_data is in manifest.json and not in chain.json"),
    (
        writing("pipeline.json", hash="0" * 12, notebooks={}),
        "pipeline.json: not as the pipeline wrote it",
    ),
    (
        editing("annotations/training.jsonl", 1, id=9),
        *("training.jsonl, line 2: not as 01_data read it", "as 03_grpo read it"),
    ),
    (
        holding("videos/small.mp4", b"others"),
        *("videos/small.mp4: not as 01_data read it", "as 04_eval read it"),
    ),
    (holding("videos/large.mp4", LARGE), "videos/large.mp4: not as 01_data read it"),
]


@pytest.mark.parametrize("row", TAMPERED, ids=lambda row: row[1])
def test_what_was_tampered_with_is_named(row, run, data):
    tamper, *said = row
    tamper(run, data)
    with pytest.raises(NotAsLeft) as caught:
        verify(run)
    assert [text for text in said if text not in str(caught.value)] == []


def test_training_again_makes_the_answers_stale(run, data):
    (run / "adapters/grpo/adapter_model.safetensors").write_bytes(b"another")
    close(run, "03_grpo", reads=[data / "annotations/training.jsonl"], seed=0)
    verify(run, before="04_eval")
    with pytest.raises(NotAsLeft) as caught:
        verify(run)
    assert "04_eval is older than a notebook before it" in str(caught.value)
    assert "02_sft" not in str(caught.value)  # SFT is not built on GRPO


def test_a_notebook_does_not_go_on_from_files_that_were_changed(run):
    edit_row(run / "predictions_sft_L1.jsonl", 1, id="other")
    verify(run, before="03_grpo")
    with pytest.raises(NotAsLeft, match=r"predictions_sft_L1\.jsonl, line 2"):
        verify(run, before="04_eval")
    (run / "predictions_sft_L1.jsonl").unlink()  # to be asked anew
    verify(run, before="04_eval")


def test_a_notebook_that_was_killed_at_its_very_end_runs_again(run):
    """The manifest has its facts, the chain not yet its files; some answers are there
    already."""
    ledger = records.read_json(run / chain.LEDGER)
    del ledger["04_eval"], ledger["05_analysis"]
    records.write_json(run / chain.LEDGER, ledger)
    verify(run, before="04_eval")
    with pytest.raises(NotAsLeft, match=r"04_eval is in manifest\.json and not"):
        verify(run, before="05_analysis")


def test_what_is_written_later_can_be_counted_in(run):
    records.write_jsonl(run / "judgements_sft_L1.jsonl", [{"id": 0}])
    chain.extend(run, "04_eval", [run / "judgements_sft_L1.jsonl"])
    verify(run, before="05_analysis")
    edit_row(run / "judgements_sft_L1.jsonl", 0, id=1)
    with pytest.raises(NotAsLeft, match=r"judgements_sft_L1\.jsonl, line 1"):
        verify(run, before="05_analysis")


def test_an_executed_notebook_is_the_one_that_was_executed(run):
    (run / "03_grpo.ipynb").write_text("{}")
    state = {"03_grpo": {"sha256": records.sha256(run / "03_grpo.ipynb")}}
    records.write_json(run / "pipeline.json", {"notebooks": state})
    verify(run)
    (run / "03_grpo.ipynb").write_text('{"cells": []}')
    with pytest.raises(NotAsLeft, match=r"03_grpo\.ipynb: not as the pipeline"):
        verify(run)
    (run / "03_grpo.ipynb").unlink()
    with pytest.raises(NotAsLeft, match=r"03_grpo\.ipynb: not as the pipeline"):
        verify(run)


def finished(run, waiting=()):
    """pipeline.json as the pipeline leaves it once these notebooks have run."""
    done = {own: {"left": chain.left(run, own)} for own in STAGES if own not in waiting}
    records.write_json(run / "pipeline.json", {"notebooks": done, "waiting": waiting})


def test_what_a_notebook_left_by_hand_after_the_pipeline_is_not_the_pipelines(run):
    """The run's page of 05_analysis then shows other numbers than its results.json."""
    finished(run)
    seal(run, "05_analysis")  # the same again
    verify(run)
    records.write_json(run / "results.json", {"accuracy": 0.6})
    seal(run, "05_analysis")
    verify(run, before="05_analysis")
    with pytest.raises(NotAsLeft, match="what 05_analysis left is of another start"):
        verify(run)


def test_a_start_that_was_stopped_does_not_lend_its_parameters_to_older_numbers(run):
    """pipeline.json has its seed, the answers are those of the seed before."""
    finished(run, waiting=("03_grpo", "04_eval", "05_analysis"))
    verify(run, before="03_grpo")
    with pytest.raises(NotAsLeft, match="what 04_eval left is of another start"):
        verify(run)


def test_no_door_shows_a_number_of_such_a_run(run):
    edit_row(run / "predictions_sft_L1.jsonl", 1, id="other")
    table = run.parent / "rows.csv"
    as_table = partial(rows.main, [str(run), str(table)])
    for door in (show.write, readme.reference_record, lambda _: as_table()):
        with pytest.raises(NotAsLeft, match=r"predictions_sft_L1\.jsonl, line 2"):
            door(run)
    assert not table.exists()


def test_paths_of_the_checkout_are_told_from_its_root(run):
    before = records.read_json(run / "manifest.json")
    seal(run, "05_analysis", reads=[paths.ROOT / "requirements.txt", None])
    found = records.read_json(run / chain.LEDGER)["05_analysis"]
    assert list(found["read"]) == ["requirements.txt"]
    assert records.read_json(run / "manifest.json") == before


def test_what_a_notebook_read_of_its_own_run_moves_with_it(run, data, tmp_path):
    """grpo_from: the adapter stands in the run, and there it is looked for."""
    adapter = run / "adapters/sft/adapter_model.safetensors"
    close(run, "03_grpo", reads=[data / "annotations/training.jsonl", adapter], seed=0)
    for stage in ("04_eval", "05_analysis"):
        seal(run, stage, reads=[data / "videos/small.mp4"])
    moved = run.rename(tmp_path / "elsewhere")
    verify(moved)
    shutil.rmtree(data)  # the adapter alone is there of what was read
    verify(moved)
    (moved / adapter.relative_to(run)).write_bytes(b"another")
    with pytest.raises(NotAsLeft, match=r"model\.safetensors: not as 03_grpo read"):
        verify(moved)
