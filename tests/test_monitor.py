"""Training as others watch it, and the rows of a run as one table."""

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib import records, run_files
from lib.run.__main__ import main
from lib.train import grpo, monitor, sft
from tests.trainings import GRPO, REWARDS, SAMPLING, SFT, Interrupting, Killed, log_of


@pytest.fixture(scope="module")
def run(make_task, tiny_checkpoint, demonstrations, tiny_questions, tmp_path_factory):
    """SFT, and GRPO that was interrupted in step 4, behind its checkpoint at step 2."""
    run = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIT_REPORT_TO", "tensorboard")
        sft.train_sft(sft.Task(tiny_checkpoint, demonstrations, SFT, SAMPLING, run))
        calls = 3 * 8 + 2 * 4  # in three steps and at two watched groups
        broken = {**REWARDS, "vowels": Interrupting(REWARDS["vowels"], calls + 1)}
        settings, asked = replace(GRPO, kl_beta=0.1), tiny_questions[:1]
        with pytest.raises(Killed):
            grpo.train(make_task(broken, settings, run, watched=asked))
        assert len(log_of(run)) == 3
        grpo.train(make_task(REWARDS, settings, run, watched=asked))
    return run


def board(run, label):
    seen = EventAccumulator(str(run / "tensorboard" / label))
    seen.Reload()
    return seen


@pytest.mark.parametrize("label", ["sft", "grpo"])
def test_curves_are_the_logs_also_after_an_interrupt(run, label):
    seen, log = board(run, label), log_of(run, label)
    points = {own.step: pytest.approx(own.value) for own in seen.Scalars("train/loss")}
    assert points == {row["step"]: row["loss"] for row in log}
    assert len({*(run / "tensorboard" / label).iterdir()}) == 1 + (label == "grpo")


def test_rl_shows_its_own_numbers_and_the_watched_texts(run):
    seen, log = board(run, "grpo"), log_of(run)
    for ours, theirs in {
        "reward_vowels": "rewards/vowels/mean",
        "dead_groups": "frac_reward_zero_std",
        "completion_length": "completions/mean_length",
        **{name: name for name in ("reward", "kl", "entropy")},
    }.items():
        values = [point.value for point in seen.Scalars(f"train/{theirs}")]
        assert values == pytest.approx([row[ours] for row in log], rel=1e-5), ours
    rows = records.read_jsonl(run / "watched_grpo.jsonl")
    name = f"train/watched/{rows[0]['question_id']}/text_summary"
    shown = {own.step: own.tensor_proto for own in seen.Tensors(name)}
    assert [*shown] == [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        text = shown[row["step"]].string_val[0].decode()
        assert row["prompt"] in text and str(row["rollouts"][0]["reward"]) in text


def test_event_files_are_the_kits_to_delete(run):
    files = [*run.glob("tensorboard/*/*")]
    assert files and all(run_files.made(run, file) for file in files)


def test_who_is_asked_for(monkeypatch):
    monkeypatch.setenv("KIT_REPORT_TO", "wandb, trackio")
    assert monitor.asked_for() == ["wandb", "trackio"]
    monkeypatch.setenv("KIT_REPORT_TO", "none")
    assert monitor.asked_for() == []
    monkeypatch.setenv("KIT_REPORT_TO", "tensorbord")
    with pytest.raises(ValueError, match="TO names tensorbord: give none, t"):
        monitor.asked_for()
    monkeypatch.delenv("KIT_REPORT_TO")
    assert monitor.asked_for() == ["tensorboard"]
    monkeypatch.setattr(monitor.integrations, "is_tensorboard_available", lambda: False)
    assert monitor.asked_for() == []


def test_every_row_is_one_line_away(run):
    table, files = records.frame(run), {"train_log_sft", "train_log_grpo", "rollouts"}
    assert {*table["file"]} == files | {"watched_grpo"}
    texts = [row["text"] for row in records.read_jsonl(run / "rollouts.jsonl")]
    assert list(table[table["file"] == "rollouts"]["text"]) == texts
    assert len(records.frame(run, "train_log_*")) == 8
    with pytest.raises(FileNotFoundError, match=r"holds no lost.jsonl: give a run"):
        records.frame(run, "lost")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_command_writes_them_as_csv_or_parquet(run, tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    assert main(["rows", str(run), str(path)]) == 0
    table = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    rows = records.read_jsonl(run / "rollouts.jsonl")
    found = table[table["file"] == "rollouts"]
    assert list(found["step"]) == [row["step"] for row in rows]
    assert json.loads(found["rewards"].iloc[0]) == rows[0]["rewards"]


@pytest.mark.parametrize("text", ["a\rb", "a\nb", 'a,"b"'])
def test_no_sign_of_a_text_ends_its_row(tmp_path, text):
    records.write_jsonl(tmp_path / "rollouts.jsonl", [{"text": text, "step": 1}])
    assert main(["rows", str(tmp_path), str(tmp_path / "rows.csv")]) == 0
    with open(tmp_path / "rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["text"], row["step"]) == (text, "1")


def test_another_kind_of_file_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["rows", str(run), str(tmp_path / "rows.xlsx")])
    assert "ends neither in .csv nor in .parquet" in capsys.readouterr().err
