"""A sweep's runs as a record, a table and a figure, against counts made by hand."""

import numpy as np
import pytest
from made_run import write_run

from lib import plots, stats, sweeps
from lib.records import read_json, read_jsonl, write_json

SHARES = (0.5, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shares x three seeds, and a run that failed."""
    outputs = tmp_path_factory.mktemp("outputs")
    rows = []
    for share in SHARES:
        for seed in range(3):
            name = f"size-training_share={share}-seed={seed}"
            run = write_run(outputs / name, seed=seed + int(10 * share), n=40)
            row = {"run": name, "training_share": share, "seed": seed}
            row |= {"status": "finished", "seconds": 60.0}
            rows.append(row | {"metrics": read_json(run / "metrics.json")})
    failed = {"run": "size-x", "training_share": 0.1, "seed": 0, "status": "failed"}
    write_json(outputs / "size" / "runs.json", [*rows, failed])
    return outputs / "size"


def test_the_record_holds_every_answer_and_the_failed_run(folder):
    rows = sweeps.record(folder)
    assert len(rows) == 7 and rows[-1]["status"] == "failed"
    assert "metrics" not in rows[-1]
    entry = rows[4]["metrics"]["grpo"]["L2"]
    file = folder.parent / rows[4]["run"] / "predictions_grpo_L2.jsonl"
    answers = sorted(read_jsonl(file), key=lambda row: row["id"])
    assert entry["correct"] == "".join(str(int(row["correct"])) for row in answers)
    assert entry["accuracy"] == entry["correct"].count("1") / 40


def test_the_table_is_the_mean_over_seeds_of_each_value(folder):
    rows = sweeps.record(folder)
    assert sweeps.varied(rows) == ["training_share"]
    made = sweeps.table(rows)
    assert {row["training_share"] for row in made} == set(SHARES)
    (row,) = (
        row
        for row in made
        if (row["training_share"], row["model"], row["set"]) == (0.5, "sft", "L3")
    )
    texts = [r["metrics"]["sft"]["L3"]["correct"] for r in rows[:3]]
    correct = np.array([[int(c) for c in text] for text in texts], float)
    expected = stats.mean_over_seeds(correct)
    for key in ("mean", "low", "high", "seeds"):
        assert row[key] == expected[key]
    assert row["low"] < row["mean"] < row["high"]


def test_the_command_writes_record_table_and_figure(folder, tmp_path, capsys):
    sweeps.main([str(folder), "--out", str(tmp_path)])
    assert read_json(tmp_path / "size.json") == sweeps.record(folder)
    text = (tmp_path / "size.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("\n| 0.5 |") == 4 and "GRPO" in text
    assert (tmp_path / "size.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_that_never_ran_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs.json.*lib.pipeline"):
        sweeps.record(tmp_path)


def test_readme_s_block_says_what_was_asked_and_what_it_took(folder, tmp_path):
    """Seven runs of which one failed; six took a minute each."""
    sweeps.main([str(folder), "--out", str(tmp_path)])
    (tmp_path / "size.json").rename(tmp_path / "kl.json")  # a sweep with a params file
    block = sweeps.readme_block(tmp_path)
    assert block.startswith(sweeps.BEGIN) and block.endswith(sweeps.END)
    assert "### `kl`\n\nWhat does the KL to the base do?" in block
    assert "*7 runs, 3 minutes two at a time; 1 without answers.*" in block
    assert (tmp_path / "size.md").read_text().strip() in block
    assert "kl.png" in block  # three values are worth a picture
    with pytest.raises(FileNotFoundError, match=r"missing.*lib.sweeps"):
        sweeps.readme_block(tmp_path / "missing")


@pytest.mark.parametrize("values", [(1.0, 0.5), ("sparse", "dense")])
@pytest.mark.parametrize("low", [0.1, 0.3])
def test_the_figure_holds_every_mean_at_its_value(values, low):
    """Numbers in their order below curves, words in the order given beside points.

    Chance, 0.25 here, has a line and its name only where a method comes down to it.
    """
    made = [
        {"kind": value, "model": model, "set": "L1", "seeds": 3}
        | {"mean": mean + i / 10, "low": low, "high": 0.9, "chance": 0.25}
        for i, value in enumerate(values)
        for model, mean in (("grpo", 0.5), ("sft", 0.3))
    ]
    figure = plots.sweep(made, "kind")
    (ax,), numbers = figure.axes, values[0] == 1.0
    axis = ax.get_xticklabels() if numbers else ax.get_yticklabels()
    labels = [label.get_text() for label in axis]
    assert labels == (["0.5", "1"] if numbers else list(values))
    lines = {tuple(np.round(line.get_xydata()[:, int(numbers)])) for line in ax.lines}
    expected = {(60, 50), (40, 30)} if numbers else {(50, 60), (30, 40)}
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("chance" in named) == (low == 0.1)
    assert lines == (expected | {(25, 25)} if low == 0.1 else expected)
