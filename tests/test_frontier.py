"""The map finds a crossing that was planted, and leaves no cell out."""

import numpy as np
import pytest
from made_run import answering, predictions

from lib import chain
from lib.analysis import __main__ as analysis
from lib.analysis import frontier
from lib.records import read_json, write_json, write_jsonl
from lib.run import params

X = (0.0, 0.15, 0.3, 0.6, 1.0)
SHARES = {0.083: 165, 1.0: 1984}
N = 400
GRPO = 0.75
ASKED = {name: predictions("base", name, N, 0) for name in ("L1", "L3")}


def sft(x, share, name):
    """Accuracies that cross GRPO's at x = 0.3 with all questions, earlier with few."""
    worse = {"L1": 0.2, "L3": 0.4}[name]
    return GRPO + worse * (0.3 * share - x)


def write_run(run, label, accuracy, parameters, seed, taught=None):
    metrics = {label: {}}
    for number, name in enumerate(("L1", "L3")):
        # The questions are as hard for everybody.
        hard = np.random.default_rng(number).permutation(N) / N
        noise = np.random.default_rng([seed, len(run.name), number]).normal(0, 0.02, N)
        rows = map(answering, ASKED[name], hard + noise < accuracy[name])
        write_jsonl(run / f"predictions_{label}_{name}.jsonl", rows)
        metrics[label][name] = {"n": N, "accuracy": 0.0}
    write_json(run / "metrics.json", metrics)
    manifest = {"02_sft": taught} if taught else {}
    manifest |= {"04_eval": {"environment": {"git_commit": "0" * 40}}}
    write_json(run / "manifest.json", manifest)
    given = parameters | {"seed": seed, "general_dir": ""}
    write_json(run / "pipeline.json", {"parameters": given})
    for stage in manifest:
        chain.seal(run, stage)
    row = {"run": run.name, "seed": seed, "status": "finished", "metrics": metrics}
    return row | parameters


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """map, map_grpo and the recorded teacher's run, with a crossing at x = 0.3."""
    root = tmp_path_factory.mktemp("outputs")
    data = {"data_dir": str(root / "data")}
    rows = [{"sample_id": i, "video_id": f"v{i}"} for i in range(N)]
    for name in ("L1", "L3"):
        write_jsonl(root / f"data/annotations/validation_{name}.jsonl", rows)
    tables = {"map": [], "map_grpo": [], "seeds": []}
    for seed in (0, 1):
        for share, learned in SHARES.items():
            given = data | {"training_share": share}
            accuracy = dict.fromkeys(("L1", "L3"), GRPO)
            run = root / f"map_grpo-{share}-{seed}"
            tables["map_grpo"].append(write_run(run, "grpo", accuracy, given, seed))
            for x in X:
                own = {name: sft(x, share, name) for name in ("L1", "L3")}
                bad = {"demonstrations_by": "truth", "demonstrations_false": x}
                taught = {"demonstrations": {"sft": learned}}
                taught["stated"] = {"right": 1 - x}
                run = root / f"map-{x}-{share}-{seed}"
                row = write_run(run, "sft", own, given | bad, seed, taught)
                tables["map"].append(row)
        taught = {"demonstrations": {"sft": 1579}, "stated": {"right": 0.9}}
        own = {name: sft(0.1, 1.0, name) for name in ("L1", "L3")}
        run = root / f"seeds-{seed}"
        tables["seeds"].append(write_run(run, "sft", own, data, seed, taught))
    for name, rows in tables.items():
        write_json(root / name / "runs.json", rows)
    return root


def folders(outputs):
    return [outputs / name for name in ("map", "map_grpo", "seeds")]


def test_the_planted_crossing_is_found(outputs):
    found = frontier.cells(frontier.record(folders(outputs)))
    assert len(found) == len(X) * len(SHARES) + 1
    for cell in found:
        for name in ("L1", "L3"):
            mean, x = np.mean(cell[name]), cell["demonstrations_false"]
            if cell["demonstrations_by"] == "truth":
                wanted = GRPO - sft(x, cell["training_share"], name)
                assert mean == pytest.approx(wanted, abs=0.02)
    lines = frontier.crossings(found)
    assert {line["kind"] for line in lines} == {"false"}
    for line in lines:
        wanted = 0.3 * line["training_share"]
        assert line["low"] <= wanted <= line["high"]
        assert line["high"] < 0.6
        assert line["low"] <= line["crossing"] <= line["high"]
        if line["training_share"] == 1.0:
            assert line["crossing"] == pytest.approx(wanted, abs=0.12)
            assert line["low"] > 0 and line["inside"] > 0.99
        elif line["panel"] != "L3 − L1":  # so near to 0 that it may be beyond
            assert line["low"] == -np.inf and 0.1 < line["inside"] < 1


@pytest.mark.parametrize("arm", frontier.ARMS)
def test_two_runs_of_one_place_and_seed_are_refused(outputs, arm):
    rows = frontier.record(folders(outputs))
    first = next(row for row in rows if arm in row["metrics"])
    answers = {"L1": {"correct": "0" * N}, "L3": {"correct": "1" * N}}
    again = first | {"run": "again", "metrics": {arm: answers}}
    with pytest.raises(ValueError, match="of again has the place of another run"):
        frontier.cells([*rows, again])


@pytest.mark.parametrize(
    ("effect", "at"),
    [
        ([-3, -2, 4, 6, 9], 0.2),
        ([1, 2, 3, 4, 5], -np.inf),
        ([-1, -1, -1, -1, 0], np.inf),
        ([-1, 2, -2, 2, 4], 0.45),  # the last zero: beyond it GRPO leads for good
        ([3, 2, 1, -1, -2], np.inf),
    ],
)
def test_a_crossing_is_where_it_leads_for_good(effect, at):
    assert frontier.crossing(X, effect) == pytest.approx(at)


def test_table_figure_and_record_hold_every_cell(outputs, tmp_path, capsys):
    given = [*map(str, folders(outputs)), "--out", str(tmp_path)]
    assert analysis.main(["map", *given]) == 0
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "map.md").read_text().strip()
    lines = [line for line in text.splitlines() if line.startswith(("| truth", "| te"))]
    assert len(lines) == len(X) * len(SHARES) + 1
    assert "| truth | 60.0 | 0.0 | 165 | 2 | 400 | +" in text
    rows = read_json(tmp_path / "map.json")
    assert len(rows) == 2 * (len(X) * len(SHARES) + len(SHARES) + 1)
    assert len(rows[0]["metrics"]["sft"]["L1"]["correct"]) == N
    assert (tmp_path / "map.png").stat().st_size > 10_000
    # A map that was made before stands for its runs.
    assert frontier.record([tmp_path, outputs / "seeds"]) == rows
    other = [{**row, "base": "another", "run": f"other {row['run']}"} for row in rows]
    write_json(tmp_path / "other" / "map.json", other)
    with pytest.raises(ValueError, match=r"and other .* are of different bases"):
        frontier.record([tmp_path, tmp_path / "other"])
    said = frontier.told(rows)
    assert said.count("above zero in 6 of 10 cells") == 2
    assert (
        "GRPO − SFT on L1, false: −6.2 to +20.2 points" in said
    )  # planted: −6 to +19.5
    figure = frontier.figure(cells := frontier.cells(rows), frontier.crossings(cells))
    panels = figure.axes[:3]
    titles = [ax.get_title().removeprefix("GRPO − SFT, ") for ax in panels]
    assert titles == ["L1", "L3", "L3 − L1"]
    shown = panels[0].images[0].get_array()
    assert shown.shape == (len(SHARES), len(X)) and shown[1, 4] > 10 > shown[1, 0]
    # The same row once more, as one that leaves out what was seen.
    swapped = [
        cell | {"demonstrations_false": 0.0, "demonstrations_unseen": x}
        for cell in cells
        if cell["training_share"] == 1.0 and (x := cell["demonstrations_false"])
    ]
    both = frontier.figure(every := cells + swapped, frontier.crossings(every))
    top = both.axes[0].images[0].get_array()
    assert top.shape == (len(SHARES) + 1, len(X)) and (top[-1] == top[-2]).all()
    names = [label.get_text() for label in both.axes[0].get_yticklabels()]
    assert names[-2:] == ["1,984\nfalse", "1,984\nno look"]
    stars = [line for line in panels[0].get_lines() if line.get_marker() == "*"]
    assert [round(float(one.get_xdata()[0]), 6) for one in stars] == [round(10 / 15, 6)]


def test_a_run_that_is_missing_or_not_finished_is_named(outputs, tmp_path):
    with pytest.raises(ValueError, match=r"map-0.0-0.083-0 has nothing to be compared"):
        frontier.cells(frontier.record([outputs / "map"]))
    waiting = read_json(outputs / "map" / "runs.json")
    del waiting[3]["metrics"]
    waiting[3]["status"] = "failed at 02_sft"
    write_json(outputs / "half" / "runs.json", waiting)
    with pytest.raises(ValueError, match="no sweep varies demonstrations_false"):
        frontier.write([outputs / "seeds", outputs / "map_grpo"], tmp_path)
    with pytest.raises(ValueError, match="is failed at 02_sft: run half to its end"):
        frontier.record([outputs / "half"])


def test_lucky_letters_of_a_teacher_that_knows_or_guesses():
    found = [round(frontier.lucky(right), 2) for right in (0.35, 0.5, 0.6, 1)]
    assert found == [0.62, 0.33, 0.22, 0]


def test_the_grid_stands_in_the_params_files():
    runs = {
        name: params.load_params(f"params/sweeps/{name}.yaml")
        for name in ("map", "map_grpo", "map_false", "map_unseen")
    }
    assert {name: len(own) for name, own in runs.items()} == {
        "map": 50, "map_grpo": 10, "map_false": 15, "map_unseen": 12
    }  # fmt: skip
    keys = ("training_share", "seed", "data_dir")
    sft, grpo = (
        {tuple(run.values[key] for key in keys) for run in runs[name]}
        for name in ("map", "map_grpo")
    )
    assert sft == grpo
    assert all("--level 1000" in run.values["data_command"] for run in runs["map"])
