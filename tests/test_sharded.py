"""All weights on two processes: plainly parallel, under ZeRO-3 and under FSDP2.

All runs of sharded.py are made by two child processes, which fork a pair of processes
for each kind. One process with the same global batch is what they are compared with."""

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lib import paths, records
from lib.model import models, shards
from lib.train import checkpoints, sft

if not os.environ.get("CI"):  # where everything is checked, its absence is an error
    pytest.importorskip("deepspeed", reason="see params/accelerate/requirements.txt")
from tests import sharded, two_processes
from tests.sharded import KINDS
from tests.trainings import (
    assert_same_training,
    log_of,
    rollouts_of,
    weights_of,
    without_seconds,
)

# isort: split
from transformers import TrainingArguments

SECONDS = 1200  # of a hang; an idle machine needs 40
ALL = (*KINDS, "zero3_offload")


def run(phase, folder):
    """Run a phase of sharded.py; fails with the output of the pairs that failed."""
    arguments = str(folder / "arguments.pickle")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    child = subprocess.run(
        [sys.executable, "-m", "tests.sharded", phase, arguments],
        env=environment,
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"
    said = records.read_json(folder / f"{phase}.json")
    for kind in (kind for kind, what in said.items() if what):
        for file in sorted((folder / kind).glob("output_*.txt")):
            end = file.read_text(errors="replace")[-6000:]
            print(f"--- {kind}, {file.name}\n{end}")
    assert not any(said.values()), said


@pytest.fixture(scope="module")
def demonstrations(eight_demonstrations):
    """Eight: with a clip and a still, with a still alone, with neither."""
    *seven, last = eight_demonstrations
    return [*seven, replace(last, video=None, image=None)]


@pytest.fixture(scope="module")
def first(tiny_checkpoint, tiny_questions, demonstrations, tmp_path_factory):
    """The folder of all kinds, after the first phase."""
    folder = tmp_path_factory.mktemp("sharded")
    content = (tiny_checkpoint, tiny_questions, demonstrations, folder)
    (folder / "arguments.pickle").write_bytes(pickle.dumps(content))
    run("first", folder)
    return folder


@pytest.fixture(scope="module")
def second(first):
    """The same folder after the second phase, before which damage was done."""
    for kind in KINDS:
        work = first / kind / "sft_again" / "checkpoints" / "sft"
        shutil.copytree(first / kind / "sft_again", first / kind / "sft_kept")
        half = shutil.copytree(work / "checkpoint-2", work / "checkpoint-3")
        (half / checkpoints.MARKER).unlink()
        damaged = shutil.copytree(first / kind / "sft_kept", first / kind / "damaged")
        damage(kind, damaged / "checkpoints" / "sft" / "checkpoint-2")
    run("second", first)
    return first


OPTIMIZERS = {
    "ddp": "optimizer.pt",
    "zero3": "global_step2/*_optim_states.pt",
    "fsdp2": "optimizer_0/*.distcp",
}


def damage(kind, checkpoint):
    """Overwrite the middle of the optimizer's files; their sizes stay."""
    files = sorted(checkpoint.glob(OPTIMIZERS[kind]))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 4096] = b"x" * len(content[middle : middle + 4096])
        file.write_bytes(content)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint, tiny_questions, demonstrations, tmp_path_factory):
    """One process: the folder with the runs that all kinds must agree with."""
    folder = tmp_path_factory.mktemp("alone")
    for name, own in (("fixed", sharded.FIXED), ("adapter", sharded.ADAPTER)):
        given = (tiny_checkpoint, tiny_questions, own)
        two_processes.train_fixed(*given, folder / name)
    sharded.train_others(tiny_checkpoint, tiny_questions, folder)
    settings = replace(sharded.SFT, batch_size=2 * sharded.SFT.batch_size)
    given = (tiny_checkpoint, demonstrations, settings)
    two_processes.train_sft(*given, folder / "sft")
    return folder


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *[("fixed", "grpo"), ("adapter", "grpo"), ("sft", "sft")],
        *[("care", "care"), ("ppo", "ppo")],
    ],
)
@pytest.mark.parametrize("kind", ALL)
def test_two_processes_train_what_one_does(
    first, alone, tiny_checkpoint, kind, name, label
):
    # An adapter begins at random numbers, so its change is smaller than itself.
    start = 0 if name in ("adapter", "ppo") else weights_of(tiny_checkpoint)
    given = (first / kind / name, alone / name, label, start, 1e-3)
    also = ("kl", "entropy", "token_accuracy", "reference_likelihood", "value_loss")
    assert_same_training(*given, also=also)


@pytest.mark.parametrize("kind", ALL)
def test_the_weights_lie_as_asked_for(first, kind):
    """A weight whose size two do not divide is padded, or lies with one of them."""
    told = [records.read_json(first / kind / f"held_{rank}.json") for rank in (0, 1)]
    whole = told[0][1]
    for own, all_of_them in told:
        assert all_of_them == whole
        expected = whole if kind == "ddp" else whole / 2
        assert own == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_draws_rollouts_of_its_own(first, kind):
    rows = rollouts_of(first / kind / "drawn")
    size = sharded.DRAWN.group_size
    assert len(rows) == 4 * 2 * size
    for step in (1, 2, 3, 4):
        texts = [row["text"] for row in rows if row["step"] == step]
        assert len(set(texts[:size]) | set(texts[size:])) == 2 * size


@pytest.mark.parametrize("kind", ["zero3", "fsdp2"])
def test_ranks_need_unlike_numbers_of_passes_and_pieces(first, kind):
    """So the runs above have shown what they are here to show."""
    told = [records.read_json(first / kind / f"pieces_{rank}.json") for rank in (0, 1)]
    steps = [*zip(*told, strict=True)]
    assert any(len(own) != len(other) for own, other in steps)
    assert any(own[0] != other[0] for own, other in steps)


def test_one_process_has_a_clip_where_the_other_has_none(demonstrations):
    order = checkpoints.training_order(range(8), 16, sharded.SFT.seed)
    kinds = [(d.video is not None, d.image is not None) for d in demonstrations]
    pairs = {(kinds[a], kinds[b]) for a, b in zip(order[::2], order[1::2], strict=True)}
    assert any(own != other for own, other in pairs)
    assert {(False, False)} < {kind for pair in pairs for kind in pair}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_as_an_undisturbed_one(second, kind):
    """Weights, optimizer, schedule, order, randomness and rollouts; and the checkpoint
    without its marker was not loaded."""
    others = [(name, name) for name in sharded.OTHERS]
    for name, label in (("drawn", "grpo"), ("sft", "sft"), *others):
        whole, again = second / kind / name, second / kind / f"{name}_again"
        assert without_seconds(log_of(again, label)) == without_seconds(
            log_of(whole, label)
        )
        for file in ("adapters", "rollouts.jsonl"):
            if (whole / file).exists():
                assert records.sha256(again / file) == records.sha256(whole / file)
    output = (second / kind / "output_0.txt").read_text(errors="replace")
    assert "removing checkpoint-3: a kill left it half written" in output
    assert "Traceback" not in output.split("removing")[0]


def test_watched_groups_are_whole_and_the_same_however_weights_are_split(second):
    found = {}
    for kind in KINDS:
        rows = records.read_jsonl(second / kind / "drawn_again" / "watched_grpo.jsonl")
        assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4]
        found[kind] = [
            [own["text"] for own in row["rollouts"]] for row in rows if row["step"] == 0
        ]
    assert found["ddp"] == found["zero3"] == found["fsdp2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_optimizer_file_names_the_checkpoint(second, kind):
    """torch itself would load it as it is."""
    for rank in (0, 1):
        message = records.read_json(second / kind / f"damaged_{rank}.json")
        assert f"{kind}/damaged/checkpoints/sft/checkpoint-2 " in message
        assert "Delete that folder" in message
        if kind != "fsdp2":  # whose files hold an archive a tensor, behind each other
            assert "optim" in message and "is not what was written" in message


@pytest.mark.parametrize("kind", ["zero3", "fsdp2"])
def test_weights_that_are_not_split_are_refused(second, kind):
    for rank in (0, 1):
        message = records.read_json(second / kind / f"refused_{rank}.json")
        asked = {"zero3": shards.ZERO3, "fsdp2": shards.FSDP2}[kind]
        assert f"{asked} was asked for with 2 processes, but each" in message
        assert "all of weight (a Parameter of (4, 4))" in message


def test_another_number_of_processes_cannot_go_on(
    second, tiny_checkpoint, demonstrations
):
    given = (tiny_checkpoint, demonstrations, sharded.SFT)
    with pytest.raises(ValueError, match="'processes': 2, 'split': 'not at all'"):
        two_processes.train_sft(*given, second / "ddp" / "sft_kept")
    with pytest.raises(ValueError, match="'processes': 2, 'split': 'DeepSpeed ZeRO-3'"):
        two_processes.train_sft(*given, second / "zero3" / "sft_kept")


def test_what_is_published_is_an_ordinary_checkpoint(first, tiny_checkpoint):
    for kind in KINDS:
        folder = first / kind / "sft" / "adapters" / "sft"
        model = models.load_trained(tiny_checkpoint, folder)
        assert models.fingerprint(model) == models.fingerprint(
            models.load_model(folder)
        )
        assert models.load_processor(folder).tokenizer.eos_token == "<|im_end|>"
        names = {path.name for path in folder.iterdir()}
        assert sft.RECORD in names and not any("optim" in name for name in names)


def test_sharding_that_was_asked_for_in_arguments_is_checked_too(tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, fsdp=True, fsdp_config={"version": 2}
    )
    with pytest.raises(RuntimeError, match="FSDP2 was asked for with 1 processes"):
        model = torch.nn.Linear(2, 2)
        shards.CheckShards().on_train_begin(arguments, None, None, model=model)


def test_nf4_weights_are_not_split(tiny_checkpoint, tmp_path):
    settings = replace(sharded.SFT, quantize=True, lora_rank=4)
    arguments = sft.trainer_arguments(settings, tmp_path)
    arguments.fsdp = True
    with pytest.raises(ValueError, match="NF4 weights are not split"):
        shards.load_trainable(tiny_checkpoint, settings, arguments)
    with pytest.raises(ValueError, match="give a lora_rank above 0"):
        shards.load_trainable(
            tiny_checkpoint, replace(settings, lora_rank=0), arguments
        )


def test_the_launch_cannot_want_another_type(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = sft.trainer_arguments(sharded.SFT, tmp_path)
    with pytest.raises(ValueError, match="mixed_precision = bf16, but dtype is float3"):
        shards.load_trainable(tiny_checkpoint, sharded.SFT, arguments)
