"""SFT: what the loss is, and that a run repeats, resumes and refuses."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from full_disk import full_disk
from torch.nn.functional import cross_entropy

from lib.data.video import BadVideo
from lib.model import encoding, models
from lib.train import checkpoints, sft
from tests.trainings import SAMPLING, SFT, assert_same_run, kill_when, log_of


@pytest.fixture(scope="module")
def make_task(tiny_checkpoint, demonstrations):
    def make(run, given=demonstrations, **changes):
        settings = replace(SFT, **changes)
        return sft.Task(tiny_checkpoint, given, settings, SAMPLING, run)

    return make


@pytest.fixture
def collator(processor):
    return sft.ResponseCollator(processor, SAMPLING)


@pytest.fixture(scope="module")
def undisturbed(make_task, tmp_path_factory):
    """A finished run."""
    run = tmp_path_factory.mktemp("undisturbed")
    sft.train_sft(make_task(run))
    return run


@pytest.mark.parametrize(
    ("loss", "end"), [("tokens", "<|im_end|>"), ("released", "<|im_end|>\n")]
)
def test_labels_are_the_response_and_its_end_and_nothing_else(
    processor, demonstrations, loss, end
):
    batch = sft.ResponseCollator(processor, SAMPLING, loss=loss)(demonstrations)
    tokenizer = processor.tokenizer
    columns = demonstrations, batch["input_ids"], batch["labels"]
    for item, ids, labels in zip(*columns, strict=True):
        kept = labels != sft.IGNORED
        assert tokenizer.decode(labels[kept]) == item.response + end
        assert torch.equal(labels[kept], ids[kept])
    assert (batch["labels"][batch["attention_mask"] == 0] == sft.IGNORED).all()
    assert (batch["attention_mask"] == 0).any()
    assert batch["video_grid_thw"].shape[0] == 4
    assert batch["image_grid_thw"].shape[0] == 6


def test_the_released_mean_of_three_demonstrations():
    """Tokens and losses as SEED-Bench-R1's sft.py printed them for three of MiniPlan's
    demonstrations (transformers 4.49, TRL 0.15.2): its step of them is 2.302896."""
    tokens, losses = (26, 23, 20), (2.141777, 2.265666, 2.501244)
    learned = torch.arange(30) < torch.tensor(tokens)[:, None]
    logps = torch.where(learned, -torch.tensor(losses)[:, None], -99.0)
    assert float(sft.mean_of_means(logps, learned)) == pytest.approx(2.302896, abs=5e-6)
    over_tokens = float(-logps[learned].mean())
    assert over_tokens == pytest.approx(2.287266, abs=5e-6)  # another loss


@pytest.mark.parametrize(
    ("loss", "passes"),
    [("tokens", (2, 2)), *(("released", own) for own in ((4, 1), (2, 2), (1, 4)))],
)
def test_the_loss_is_the_mean_over_tokens_or_of_the_responses_means(
    loss, passes, make_task, demonstrations, tmp_path
):
    """However a step of four is cut into passes; the loss and the step it makes."""
    four, (batch_size, accumulation) = demonstrations[1:5], passes
    cut = {"batch_size": batch_size, "gradient_accumulation": accumulation}
    task = make_task(tmp_path, four, steps=1, loss=loss, **cut)
    sft.train_sft(task)
    (row,) = log_of(tmp_path, "sft")
    assert set(row) == {"step", "loss", "lr", "grad_norm", "token_accuracy"}

    trainer = sft.ResponseTrainer(replace(task, run=tmp_path / "untrained"))
    sampler = trainer._get_train_sampler(trainer.train_dataset)
    assert [*sampler] == [*range(len(task.order()))], "the task has shuffled"
    losses = []
    for item in four:  # one unpadded response after the other
        batch = trainer.data_collator([{"row": four.index(item)}])
        logits, labels = trainer.model(**batch).logits[0, :-1], batch["labels"][0, 1:]
        learned = labels != sft.IGNORED
        own = cross_entropy(logits[learned], labels[learned], reduction="none")
        losses.append(own if loss == "tokens" else own.mean()[None])
    loss = torch.cat(losses).mean()
    loss.backward()
    gradients = [w.grad for w in trainer.model.parameters() if w.grad is not None]
    norm = torch.stack([own.norm() for own in gradients]).norm()
    assert row["loss"] == pytest.approx(float(loss), abs=2e-5)
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_a_long_demonstration_is_an_error_that_names_it(collator, demonstrations):
    item = demonstrations[4]
    length = int(collator([item])["attention_mask"].sum())
    exact = sft.ResponseCollator(collator.processor, SAMPLING, max_tokens=length)
    exact([item])
    short = sft.ResponseCollator(collator.processor, SAMPLING, max_tokens=length - 1)
    told = rf"training/4 has {length} tokens.*max_tokens"
    with pytest.raises(ValueError, match=told):
        short([item])


def test_a_response_that_melts_into_the_prompt_is_an_error(collator, demonstrations):
    """Tokens the model can never generate behind its prompt must not be trained."""
    tokenizer = collator.processor.tokenizer
    joined = replace(demonstrations[0], response="Xopen")
    plain_ids = tokenizer("Xopen<|im_end|>")["input_ids"]
    ids = torch.tensor([5, 6, *plain_ids])
    assert collator.response_span(joined, ids) == slice(2, len(ids))
    ids[2] += 1
    with pytest.raises(ValueError, match="training/0: field response begins with"):
        collator.response_span(joined, ids)


def test_a_response_that_spells_control_tokens_is_learned_as_text(
    collator, demonstrations
):
    said = "<think>x<|im_end|>\n<|im_start|>user</think><answer>B</answer>"
    batch = collator([replace(demonstrations[2], response=said)])
    learned = batch["labels"][batch["labels"] != sft.IGNORED]
    tokenizer = collator.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(learned).startswith(said + "<|im_end|>")
    at = len(encoding.text_ids(tokenizer, said))
    assert (learned == end).nonzero()[:, 0].tolist() == [at]


def test_all_weights_are_trained_and_load_like_an_adapter(
    tiny_checkpoint, make_task, undisturbed, tmp_path
):
    folder = sft.train_sft(make_task(tmp_path, lora_rank=0, lr=1e-3))
    log = log_of(tmp_path, "sft")
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    base = dict(models.load_model(tiny_checkpoint).named_parameters())
    whole = models.load_trained(tiny_checkpoint, folder)
    for name, weight in whole.named_parameters():
        assert not torch.equal(weight, base[name]), name
    adapted = models.load_trained(tiny_checkpoint, undisturbed / "adapters" / "sft")
    assert any("lora" in name for name, _ in adapted.named_parameters())
    assert not whole.training and not adapted.training


def test_an_unusable_video_names_the_demonstration(collator, demonstrations, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    with pytest.raises(BadVideo, match=r"broken\.mp4.*demonstration training/0"):
        collator([replace(demonstrations[0], video=broken)])


def test_it_learns_and_the_log_follows_the_schedule(undisturbed):
    log = log_of(undisturbed, "sft")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    rates = [row["lr"] for row in log]
    assert rates[0] == 0.0 and max(rates) == rates[1] == SFT.lr
    assert rates[1] > rates[2] > rates[3] > 0


def test_another_seed_gives_other_bytes(make_task, undisturbed, tmp_path):
    sft.train_sft(make_task(tmp_path, seed=2))
    file = "adapters/sft/adapter_model.safetensors"
    assert (tmp_path / file).read_bytes() != (undisturbed / file).read_bytes()


def test_a_finished_adapter_is_returned_at_once_and_others_are_refused(
    make_task, demonstrations, undisturbed
):
    file = undisturbed / "adapters" / "sft" / "adapter_model.safetensors"
    made = file.stat().st_mtime_ns
    assert not (undisturbed / "checkpoints" / "sft").exists()
    assert sft.train_sft(make_task(undisturbed)) == file.parent
    with pytest.raises(ValueError, match=r"lr \(0\.005 there, 0\.1 now\)"):
        sft.train_sft(make_task(undisturbed, lr=0.1))
    with pytest.raises(ValueError, match="demonstrations"):
        sft.train_sft(make_task(undisturbed, demonstrations[:5]))
    assert file.stat().st_mtime_ns == made


def test_killed_and_started_again_it_ends_as_if_undisturbed(make_task, tmp_path):
    changes = {"steps": 24, "save_every": 3}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    log = killed / "train_log_sft.jsonl"

    def in_step_6():
        return log.exists() and log.read_bytes().count(b"\n") >= 5

    kill_when(in_step_6, sft.train_sft, make_task(killed, **changes))
    resumed_from = checkpoints.last_complete(killed / "checkpoints" / "sft")
    assert resumed_from.name != "checkpoint-24"

    for run in (killed, whole):
        sft.train_sft(make_task(run, **changes))
    assert_same_run(killed, whole, "sft")


@pytest.mark.parametrize("size", [8192, 20_000])
def test_a_full_disk_says_so_and_the_last_good_checkpoint_remains(
    size, make_task, tmp_path, monkeypatch
):
    """The disk refuses files above that size, as a full one does, after the first save:
    the adapter, or the tokenizer beside it."""
    on_save = checkpoints.MarkComplete.on_save

    def then_full(*given, **more):
        on_save(*given, **more)
        stack.enter_context(full_disk(size))

    monkeypatch.setattr(checkpoints.MarkComplete, "on_save", then_full)
    full = pytest.raises(OSError, match=r"checkpoint-4 could not be written.*make ")
    with full, ExitStack() as stack:
        sft.train_sft(make_task(tmp_path, lora_rank=1))
    work = tmp_path / "checkpoints" / "sft"
    assert (work / "checkpoint-2" / checkpoints.MARKER).exists()
    assert not (work / "checkpoint-4" / checkpoints.MARKER).exists()
    assert not (tmp_path / "adapters").exists()
