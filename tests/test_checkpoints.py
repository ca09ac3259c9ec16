"""Checkpoints, logs and finished folders are whole, or not there."""

import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lib import records
from lib.model import models, shards
from lib.train import checkpoints, progress

# isort: split
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments


class Line(torch.nn.Module):
    """The smallest model the Trainer takes: y = w x, squared error."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


class Seen(TrainerCallback):
    """What lies in a checkpoint when the callbacks of its saving run."""

    def __init__(self):
        self.files = []

    def on_save(self, args, state, control, **kwargs):
        folder = f"{args.output_dir}/checkpoint-{state.global_step}"
        self.files.append({path.name for path in checkpoints.Path(folder).iterdir()})


def line_trainer(folder, callbacks):
    arguments = TrainingArguments(
        output_dir=str(folder / "work"),
        max_steps=6,
        save_steps=2,
        save_total_limit=2,
        logging_steps=1,
        per_device_train_batch_size=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"x": float(i), "labels": 1.0} for i in range(6)]
    return Trainer(
        model=Line(), args=arguments, train_dataset=rows, callbacks=callbacks
    )


def test_the_marker_is_written_last(tmp_path):
    seen = Seen()
    line_trainer(tmp_path, [seen, checkpoints.MarkComplete()]).train()
    found = sorted(path.name for path in (tmp_path / "work").glob("checkpoint-*"))
    assert found == ["checkpoint-4", "checkpoint-6"]
    for name, before in zip(found, seen.files[-2:], strict=True):
        folder = tmp_path / "work" / name
        now = {path.name for path in folder.iterdir()}
        assert now - before == {checkpoints.MARKER}
        assert {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= before
        step = records.read_json(folder / checkpoints.MARKER)["step"]
        assert step == checkpoints.step_of(folder)


def test_last_complete_is_the_newest_by_number(tmp_path, capsys):
    assert checkpoints.last_complete(tmp_path / "none") is None
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    for step in (9, 10):
        records.write_json(tmp_path / f"checkpoint-{step}" / checkpoints.MARKER, {})
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-20" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint-20").exists()
    assert (tmp_path / "checkpoint-9").exists()


def progress_of(folder, names, shown=()):
    return progress.Progress(folder / "log.jsonl", names, "line", shown)


def test_a_resumed_log_equals_an_undisturbed_one(tmp_path):
    path = tmp_path / "log.jsonl"

    def run(checkpoint=None):
        log = progress_of(tmp_path, {"loss": "loss", "learning_rate": "lr"})
        trainer = line_trainer(tmp_path, [log, checkpoints.MarkComplete()])
        trainer.train(resume_from_checkpoint=checkpoint)

    run()
    whole, rows = path.read_bytes(), records.read_jsonl(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(set(row) == {"step", "loss", "lr"} for row in rows)
    with open(path, "a") as file:
        file.write('{"step": 7, "lo')
    run(str(tmp_path / "work" / "checkpoint-4"))
    assert path.read_bytes() == whole
    run()  # killed before its first checkpoint, it starts over
    assert path.read_bytes() == whole


def test_an_interrupt_closes_the_bar_and_the_next_one_starts_in_its_place(
    tmp_path, capsys
):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    def trainer(*more):
        log = progress_of(tmp_path, {"loss": "loss"}, {"loss": "how wrong"})
        return line_trainer(tmp_path, [log, checkpoints.MarkComplete(), *more])

    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps the bar
        checkpoints.train(trainer(Interrupt()))
    checkpoints.train(trainer())
    told = capsys.readouterr().err
    assert "5/6" in told or "4/6" in told
    last = told.rsplit("\r", 1)[1]
    assert last.startswith("line: 100%") and "how wrong=" in last
    assert "\n\n" not in told and "\x1b[A" not in told  # no bar below another
    assert kept.type is KeyboardInterrupt


def test_training_order_is_whole_epochs_behind_each_other():
    order = checkpoints.training_order("abcdef", 15, seed=3)
    assert len(order) == 15
    assert set(order[:6]) == set(order[6:12]) == set("abcdef")
    assert order[:6] != order[6:12] and len(set(order[12:])) == 3
    assert order[:4] == checkpoints.training_order("abcdef", 4, seed=3)
    assert order != checkpoints.training_order("abcdef", 15, seed=4)
    with pytest.raises(ValueError, match="nothing to train on"):
        checkpoints.training_order([], 1, seed=3)


class Saved:
    """Stands for a model; `breaks` stops its saving half way, like a kill."""

    def __init__(self, breaks):
        self.breaks = breaks

    def save_pretrained(self, folder):
        (folder / "adapter_config.json").write_text("{}")
        if self.breaks:
            raise KeyboardInterrupt
        (folder / "adapter_model.safetensors").write_bytes(b"weights")


def test_a_folder_that_no_training_left_is_not_trained_over(tmp_path):
    theirs = tmp_path / "adapters" / "sft" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    task = SimpleNamespace(run=tmp_path, facts=dict)
    given = (task, "sft", "sft_settings.json", lambda task: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # an empty one may be filled
        checkpoints.finished(*given)
    theirs.touch()
    with pytest.raises(FileExistsError, match="sft was not made by a training"):
        checkpoints.finished(*given)
    assert theirs.exists()


def test_a_finished_folder_appears_whole(tmp_path):
    folder = tmp_path / "adapters" / "sft"
    with pytest.raises(KeyboardInterrupt):
        checkpoints.publish(Saved(True), folder, "settings.json", {"lr": 1})
    assert not folder.exists()
    checkpoints.publish(Saved(False), folder, "settings.json", {"lr": 1})
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "settings.json")
    }
    assert [path.name for path in folder.parent.iterdir()] == ["sft"]
    assert checkpoints.same_settings(folder / "settings.json", {"lr": 1})


WHOLE = {"lora_rank": 0, "lr": 1e-3}


def test_a_full_fine_tune_resumes_exactly(make_trainer, tmp_path):
    """Weights after steps 1-4 equal those after steps 1-2, a new trainer, 3-4."""
    straight, resumed = (
        make_trainer(run=tmp_path / name, **WHOLE) for name in ("straight", "resumed")
    )
    start = {k: v.clone() for k, v in straight.model.state_dict().items()}
    straight.train()
    checkpoint = tmp_path / "resumed/checkpoints/grpo/checkpoint-2"
    shutil.copytree(tmp_path / "straight/checkpoints/grpo/checkpoint-2", checkpoint)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected = straight.model.state_dict()
    moved = [key for key in expected if not torch.equal(expected[key], start[key])]
    assert any("visual" in key for key in moved)
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_quantized_adapter_resumes_in_its_own_type_and_place(make_trainer, tmp_path):
    trainer = make_trainer(quantize=True, dtype="bfloat16")
    trainer.train()
    wanted = dict(trainer.model.named_parameters())
    resumed = make_trainer(run=tmp_path / "b", quantize=True, dtype="bfloat16")
    before = dict(resumed.model.named_parameters())
    last = tmp_path / "checkpoints/grpo/checkpoint-4"
    resumed._load_from_checkpoint(str(last))
    for name, weight in resumed.model.named_parameters():
        if weight.requires_grad:
            assert weight is before[name]
            assert weight.dtype == torch.bfloat16 and torch.equal(weight, wanted[name])


def test_an_adapter_that_names_its_tensors_otherwise_does_not_resume(
    make_trainer, tmp_path
):
    """As by another version of PEFT, which would load nothing and say nothing."""
    checkpoints.train(make_trainer(steps=2))
    checkpoint = tmp_path / "checkpoints/grpo/checkpoint-2"
    file, marker = checkpoint / models.ADAPTER_WEIGHTS, checkpoint / checkpoints.MARKER
    saved = load_file(file)
    save_file({name.replace("lora_", "low_"): w for name, w in saved.items()}, file)
    told = records.read_json(marker)
    told["files"][file.name] = file.stat().st_size
    records.write_json(marker, told)
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be loaded.*in both"):
        checkpoints.train(make_trainer(steps=2))


def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(make_trainer, tmp_path):
    checkpoints.train(make_trainer(**WHOLE, steps=2))
    checkpoint = tmp_path / "checkpoints" / "grpo" / "checkpoint-2"
    whole = {path: path.read_bytes() for path in checkpoint.iterdir()}
    marker = records.read_json(checkpoint / checkpoints.MARKER)
    optimizer, schedule = checkpoint / "optimizer.pt", checkpoint / "scheduler.pt"

    def check(message):
        trainer = make_trainer(**WHOLE, steps=2)
        with pytest.raises(ValueError, match=message):
            checkpoints.train(trainer)
        for path, content in whole.items():
            path.write_bytes(content)

    optimizer.unlink()
    check("checkpoint-2 is damaged: optimizer.pt is missing. Delete that folder")
    content = whole[optimizer]
    optimizer.write_bytes(content[:5000] + b"x" * 100 + content[5100:])
    check("checkpoint-2 is damaged: optimizer.pt is not what was written")
    optimizer.write_bytes(content[:-1])
    check(r"checkpoint-2 is damaged: optimizer.pt has \d+ bytes of \d+. Delete that")
    model = checkpoint / "model.safetensors"
    model.write_bytes(b"x" * model.stat().st_size)
    check("checkpoint-2/model.safetensors is damaged")

    def mark(names=marker["files"], **marked):
        """A marker that fits the files as they are now, but for what is changed."""
        found = {name: (checkpoint / name).stat().st_size for name in names}
        made = {**marker, "files": found, **marked}
        records.write_json(checkpoint / checkpoints.MARKER, made)

    tensors = load_file(model)
    tensors.pop("model.norm.weight")
    save_file(tensors, model, metadata={"format": "pt"})
    mark()
    # transformers alone would go on with what the model happens to hold.
    check("lacks 1 of the model's tensors.*norm")
    mark(processes=3)
    check("was written with {'processes': 3, 'split': 'not at all'}, this launch has")
    mark(())
    check("complete.json lists no trainer_state.json")
    optimizer.unlink()
    mark(set(marker["files"]) - {"optimizer.pt"})
    check("complete.json lists no optimizer.pt")
    mark(step=3)
    check("checkpoint-2 is damaged: it says step 3")
    state = records.read_json(checkpoint / "trainer_state.json")
    records.write_json(checkpoint / "trainer_state.json", {**state, "global_step": 1})
    mark()
    check("checkpoint-2 is damaged: it says step 1")
    told = torch.load(schedule, weights_only=True)
    for file, content, message in (
        (schedule, {**told, "last_epoch": 7}, "damaged: it says step 7"),
        (schedule, Hostile(tmp_path), "damaged: it says step None"),
        (optimizer, Hostile(tmp_path), "damaged, or not of this kit: "),
    ):
        torch.save(content, file)
        mark()
        check(f"checkpoint-2 is {message}")
    assert not (tmp_path / "called").exists()


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "called"),)


def test_a_pickle_that_calls_is_refused_whoever_loads_it(tmp_path):
    """As DeepSpeed loads its parts, and torch the metadata of a sharded checkpoint."""
    arguments = SimpleNamespace(deepspeed_plugin=None)
    file = tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"

    def refused():
        with (
            pytest.raises(ValueError, match="not of this kit"),
            shards.weights_only(tmp_path, arguments),
        ):
            torch.load(file, weights_only=False)

    torch.save({"a": torch.ones(2), "b": (0.9, None)}, file)
    with shards.weights_only(tmp_path, arguments):
        assert torch.load(file, weights_only=False)["b"] == (0.9, None)
    whole = file.read_bytes()
    torch.save({"a": Hostile(tmp_path)}, file)
    refused()
    assert shards.FORCED not in os.environ

    file.write_bytes(whole)
    part, weights = tmp_path / "optimizer_0", {"a": torch.ones(3)}
    dcp.save(weights, checkpoint_id=part, no_dist=True)
    with shards.weights_only(tmp_path, arguments):
        dcp.load(weights, checkpoint_id=part, no_dist=True)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps(Hostile(tmp_path), protocol)
        (part / ".metadata").write_bytes(content)
        refused()
    assert not (tmp_path / "called").exists()


def test_a_tiny_learning_rate_moves_bfloat16_weights(
    tiny_checkpoint, make_trainer, tmp_path
):
    """They are float32 in training; the published ones are bfloat16, as the base."""
    trained = {"lr": 1e-6, "schedule": "constant", "dtype": "bfloat16", "steps": 2}
    trainer = make_trainer(lora_rank=0, **trained)
    start = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
    checkpoints.train(trainer)
    counts = torch.zeros(3)
    for name, weight in trainer.model.named_parameters():
        assert weight.dtype == torch.float32
        moved = weight.detach() != start[name]
        rounded = weight.detach().bfloat16() != start[name].bfloat16()
        counts += torch.tensor([moved.sum(), rounded.sum(), weight.numel()])
    moved, rounded, size = (counts / counts[2]).tolist()
    assert moved > 0.8 and rounded < 0.1 and size == 1
    folder = checkpoints.publish_trained(
        trainer, tmp_path / "adapter", "settings.json", trainer.task.facts()
    )
    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert records.read_json(folder / "config.json")["dtype"] == "bfloat16"
    model = models.load_trained(tiny_checkpoint, folder, "bfloat16")
    assert model.dtype == torch.bfloat16
    models.load_processor(folder)
