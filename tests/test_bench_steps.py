"""The side-by-side measurements run, and compare two programs that compute the same."""

import os
import subprocess
import sys

import pytest

from lib import paths, records
from tests.bench import evaluation, grpo_step


def test_our_step_and_stock_trl_agree_on_loss_and_gradients(tmp_path):
    out = tmp_path / "record.json"
    grpo_step.main(
        ["--size", "tiny", "--lengths", "6", "--repeats", "1", "--out", str(out)]
    )
    found = records.read_json(out)
    assert [row["case"] for row in found["rows"]] == ["full", "lora"]
    for row in found["rows"]:
        assert row["gradient_difference"] < 1e-5
        assert row["loss"]["ours"] == pytest.approx(row["loss"]["stock"], abs=1e-6)
        assert row["peak_gib"]["ours"] < row["peak_gib"]["stock"] / 2
        for stage in grpo_step.STAGES:  # of one pair: the record says one thing
            ours, stock = (
                row["seconds"][n][stage]["median"] for n in ("ours", "stock")
            )
            assert row["ratio"][stage]["median"] == pytest.approx(stock / ours)


def test_the_loop_and_the_kit_give_the_same_completions(tmp_path):
    out = tmp_path / "record.json"
    evaluation.main(
        ["--questions", "6", "--repeats", "1", "--batch-size", "4", "--out", str(out)]
    )
    found = records.read_json(out)
    rate = found["questions_a_second"]
    expected = rate["kit"]["median"] / rate["loop"]["median"]
    assert found["ratio"]["median"] == pytest.approx(expected)


def test_the_evaluation_bench_refuses_unequal_completions(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "one_at_a_time", lambda *_: ["other"] * 6)
    with pytest.raises(SystemExit, match="completions differ"):
        evaluation.main(
            ["--questions", "6", "--repeats", "1", "--out", str(tmp_path / "r.json")]
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk to fill")
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    """Once each way at a random moment, and once inside a checkpoint; in one process
    and in two."""
    out = tmp_path / "record.json"
    command = [sys.executable, "-m", "tests.bench.kills", "--stage", "GRPO"]
    command += ["--kills", "1", "--aimed", "1", "--out", str(out)]
    subprocess.run(command, cwd=paths.ROOT, check=True)
    found = records.read_json(out)
    assert [row["processes"] for row in found["stages"]] == [1, 2]
    for row in found["stages"]:
        assert (row["kills"], row["equal"]) == (4, 4)
        ways = {"SIGKILL", "SIGTERM", "full disk"}
        assert {moment["way"] for moment in row["moments"]} == ways
        aimed = row["moments"][-1]
        assert aimed["was_running"] and aimed["half_written"]
