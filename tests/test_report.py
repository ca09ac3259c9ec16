"""README's block and the records behind it follow from runs, and from nothing else."""

import json
import shutil

import numpy as np
import pytest
from made_run import edit_row, write_run

from lib import chain, methods
from lib.analysis import answers, compare, plots
from lib.analysis import readme as report
from lib.analysis.__main__ import main
from lib.evaluate import tables
from lib.paths import ROOT
from lib.records import read_json, sealed, write_json, write_jsonl
from tests.bench.performance import performance

REFERENCE = ROOT / "outputs" / "reference"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / f"toy-seed={s}", seed=s, n=200) for s in range(3)]


@pytest.fixture
def records(runs, tmp_path):
    folder = tmp_path / "records"
    for run in runs:
        write_json(folder / f"{run.name}.json", report.reference_record(run))
    return folder


@pytest.mark.parametrize(
    "low, value, high, effect, ends",
    [
        (0.01, 0.03, 0.05, "GRPO ahead of SFT by 3.0", "1.0 to 5.0"),
        (-0.05, -0.03, -0.01, "SFT ahead of GRPO by 3.0", "1.0 to 5.0"),
        (-0.01, 0.02, 0.05, "not decided: GRPO − SFT is +2.0", "−1.0 to +5.0"),
        (0.0, 0.02, 0.05, "not decided: GRPO − SFT is +2.0", "0.0 to +5.0"),
    ],
)
def test_the_words_follow_the_interval(low, value, high, effect, ends):
    words = f"{effect} points (95 % interval {ends})"
    row = {"a": "grpo", "b": "sft", "difference": value, "low": low, "high": high}
    row |= {"set": "L2", "n": 412}
    part = report.verdict(row | {"of": 1321})
    assert part == f"**L2 (part: 412 of 1,321)** (new environments): {words}"
    assert report.verdict(row) == f"**L2** (new environments): {words}"


def test_a_record_is_small_and_enough(runs):
    record = report.reference_record(runs[1])
    assert len(json.dumps(record)) < 8_000
    assert record["seed"] == 1
    assert sum(record["seconds"].values()) == 180
    predictions = tables.read_predictions(runs[1])
    for entry in record["results"]:
        rows = predictions[entry["model"], entry["set"]]
        assert [c == "1" for c in entry["correct"]] == [r["correct"] for r in rows]
        assert entry["accuracy"] == entry["correct"].count("1") / entry["n"]


def test_other_rl_is_compared_with_grpo_where_there_is_any(records):
    for path in records.glob("*.json"):
        record = read_json(path)
        for row in [row for row in record["results"] if row["model"] == "grpo"]:
            turned = row["correct"].translate(str.maketrans("01", "10"))
            record["results"].append(row | {"model": "ppo", "correct": turned})
        write_json(path, sealed(record))
    frame = report.of_records(report.read_reference(records))
    found = [r for r in report.differences(frame) if r["a"] == "ppo"]
    means = {(r["model"], r["set"]): r["mean"] for r in report.accuracies(frame)}
    assert [(r["b"], r["set"]) for r in found] == [("grpo", s) for s in methods.SETS]
    for row in found:
        gap = 1 - 2 * means["grpo", row["set"]]
        assert row["difference"] == pytest.approx(gap)
    assert "| PPO − GRPO, points |" in report.results(records)


def test_the_block_replaces_the_old_one_and_nothing_else(records, tmp_path):
    readme, block = tmp_path / "README.md", report.results(records)
    readme.write_text(f"# Title\n{report.BEGIN}\nold\n{report.END}\nrest\n")
    for _ in range(2):
        report.write_block(readme, block)
        assert readme.read_text() == f"# Title\n{block}\nrest\n"
    readme.write_text(f"# Title\n{report.END}\n")
    with pytest.raises(ValueError, match="once each"):
        report.write_block(readme, block)
    assert readme.read_text() == f"# Title\n{report.END}\n"


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("copy", {}, "a seed occurs twice"),
        ("toy-seed=2", {"questions": "else"}, "differ in questions"),
        ("toy-seed=2", {"settings": "else"}, "differ in settings"),
    ],
)
def test_records_that_cannot_be_averaged_are_refused(records, name, change, said):
    record = read_json(records / "toy-seed=2.json")
    write_json(records / f"{name}.json", sealed(record | change))
    with pytest.raises(ValueError, match=said):
        report.read_reference(records)
    with pytest.raises(FileNotFoundError, match=r"lib.analysis reference"):
        report.read_reference(records.parent)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("parse_failure", lambda share: share + 0.5),  # as README's caption has it
        ("correct", lambda text: text[::-1]),  # others right, and as many
        ("correct", lambda text: text[:-1]),
    ],
)
def test_a_record_that_was_edited_is_not_shown(records, capsys, key, changed):
    path = records / "toy-seed=2.json"
    record = read_json(path)
    row = record["results"][0]
    row[key] = changed(row[key])
    write_json(path, record)
    assert main(["readme", str(records)]) == 1
    assert f"{path} is not as it was written" in capsys.readouterr().err


def test_what_makes_runs_comparable_is_in_their_records(tmp_path):
    """Settings, but for what is asked beside the answers; questions with options."""
    run = write_run(tmp_path / "run", n=12, sets=("L1",))
    before, state = report.reference_record(run), read_json(run / "pipeline.json")

    def settings(**changed):
        given = state["parameters"] | changed
        write_json(run / "pipeline.json", {**state, "parameters": given})
        return report.reference_record(run)["settings"]

    same = settings(perception_conditions="no_video"), settings(seed=3)
    assert {*same} == {before["settings"]} != {settings(grpo_steps=7)}
    for model in (*methods.METHODS, "base-direct"):
        path = run / f"predictions_{model}_L1.jsonl"
        edit_row(path, 3, options=["a", "b", "c", "d"])
    chain.seal(run, "01_data")
    assert report.reference_record(run)["questions"] != before["questions"]


def test_command_line_writes_records_and_a_figure(runs, tmp_path, capsys):
    out = tmp_path / "reference"
    main(["reference", *map(str, runs), "--out", str(out)])
    names = sorted(path.name for path in out.iterdir())
    assert names == ["seeds.png", *(f"toy-seed={s}.json" for s in range(3))]
    assert "toy-seed=1.json" in capsys.readouterr().out
    assert len(report.read_reference(out)) == 3
    main(["reference", str(runs[0]), "--out", str(tmp_path / "alone")])
    assert [path.suffix for path in (tmp_path / "alone").iterdir()] == [".json"]


def test_a_record_does_not_replace_that_of_another_seed(runs, tmp_path, capsys):
    """Runs of two machines have one name where only their seed was given."""
    copies = [tmp_path / str(number) / "mini" for number in range(2)]
    for run, copy in zip(runs, copies, strict=False):
        shutil.copytree(run, copy)
    words = ["reference", *map(str, copies), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "mini.json holds another seed than" in capsys.readouterr().err
    assert read_json(tmp_path / "out" / "mini.json")["seed"] == 0


def test_a_record_of_a_seed_that_is_there_is_not_written(runs, tmp_path, capsys):
    """It was, and the folder could not be averaged any more."""
    copy, out = shutil.copytree(runs[0], tmp_path / "copy"), tmp_path / "out"
    assert main(["reference", str(runs[0]), str(copy), "--out", str(out)]) == 1
    said = f"{out / runs[0].name}.json holds the seed of {copy}, too: delete"
    assert said in capsys.readouterr().err
    assert [path.stem for path in out.iterdir()] == [runs[0].name]


@pytest.mark.parametrize("what", ["settings", "questions", "models"])
def test_a_record_unlike_the_others_is_not_written(runs, tmp_path, capsys, what):
    """Whoever gives all runs again, after they were made anew, replaces them all."""
    other = shutil.copytree(runs[1], tmp_path / "other")
    for path in other.glob("predictions_base-direct_*" if what == "models" else "*L1*"):
        if what == "models":
            path.unlink()
        elif what == "questions":
            edit_row(path, 3, options=["a", "b", "c", "d"])
    state = read_json(other / "pipeline.json")
    state["parameters"] |= {"grpo_steps": 7} if what == "settings" else {}
    write_json(other / "pipeline.json", state)
    (other / chain.LEDGER).unlink()
    chain.seal(other, "01_data")
    out = tmp_path / "out"
    assert main(["reference", str(runs[0]), str(other), "--out", str(out)]) == 1
    said = f"{out / runs[0].name}.json and {other} differ in {what}"
    assert said in capsys.readouterr().err
    assert [path.stem for path in out.iterdir()] == [runs[0].name]
    (out / f"{runs[0].name}.json").rename(out / "other.json")
    again = read_json(out / "other.json") | {"seed": 1, "settings": "before"}
    write_json(out / "other.json", sealed(again))
    assert main(["reference", str(other), "--out", str(out)]) == 0


def test_a_record_without_a_field_is_named(records, runs, capsys):
    path = records / "toy-seed=1.json"
    older = {k: v for k, v in read_json(path).items() if k != "settings"}
    write_json(path, older)
    anew = ["reference", str(runs[0]), "--out", str(records)]
    for words in (["readme", str(records)], anew):
        assert main(words) == 1
        assert f"{path} has no `settings`" in capsys.readouterr().err
    write_json(path, {"results": []})
    assert main(["reference", str(runs[1]), "--out", str(records)]) == 0
    assert report.reference_record(runs[1]) == read_json(path)


def test_write_results_round_trip(runs):
    predictions = tables.read_predictions(runs[0])
    right = compare.right(answers.read(runs[0]))
    results = {
        "accuracy": compare.accuracies(predictions),
        "comparisons": compare.differences(right, samples=200),
        "out_of_distribution": compare.out_of_distribution(right, samples=200),
    }
    text = report.write_results(runs[0], results)
    kept = read_json(runs[0] / "results.json")
    assert kept["accuracy"] == results["accuracy"]
    assert (runs[0] / "results.md").read_text() == text
    table = (runs[0] / "results_accuracy.csv").read_text().splitlines()
    assert len(table) == 1 + len(kept["accuracy"]) and "accuracy" in table[0]
    assert all(sentence in text for sentence in kept["findings"])


def test_readme_says_what_the_committed_records_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index(report.BEGIN) : readme.index(report.END)]
    source = block.rsplit("python -m lib.analysis readme ", 1)[1].split("`")[0]
    assert ROOT.joinpath(source).is_relative_to(REFERENCE)
    assert block + report.END == report.results(source)


def test_performance_says_what_the_bench_records_say():
    text = (REFERENCE / "performance.md").read_text(encoding="utf-8")
    assert text == performance(REFERENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of two shares x three seeds, and a run that failed."""
    outputs = tmp_path_factory.mktemp("outputs")
    rows = []
    for share in (0.5, 1.0):
        for seed in range(3):
            name = f"size-training_share={share}-seed={seed}"
            run = write_run(outputs / name, seed=seed + int(10 * share), n=40)
            row = {"run": name, "training_share": share, "seed": seed}
            row |= {"status": "finished", "seconds": 60.0}
            rows.append(row | {"metrics": read_json(run / "metrics.json")})
    failed = {"run": "size-x", "training_share": 0.1, "seed": 0, "status": "failed"}
    write_json(outputs / "size" / "runs.json", [*rows, failed])
    return outputs / "size"


def test_a_sweep_s_record_holds_every_answer_and_the_failed_run(folder):
    rows = report.sweep_record(folder)
    assert len(rows) == 7 and rows[-1]["status"] == "failed"
    assert "metrics" not in rows[-1]
    entry = rows[4]["metrics"]["grpo"]["L2"]
    answered = tables.read_predictions(folder.parent / rows[4]["run"])["grpo", "L2"]
    assert entry["correct"] == "".join(str(int(row["correct"])) for row in answered)
    assert entry["accuracy"] == entry["correct"].count("1") / 40
    with pytest.raises(FileNotFoundError, match=r"runs.json.*lib.run"):
        report.sweep_record(folder.parent)


def test_the_command_writes_a_sweep_s_record_table_and_figure(folder, tmp_path, capsys):
    main(["sweep", str(folder), "--out", str(tmp_path)])
    assert read_json(tmp_path / "size.json") == report.sweep_record(folder)
    text = (tmp_path / "size.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("\n| 0.5 |") == 4 and "GRPO" in text
    assert (tmp_path / "size.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_records_may_hold_claims_and_evidence(records):
    write_json(records / "claims.json", [{"number": 1}])
    write_json(records / "perception.json", {"accuracy": []})
    write_json(records / "note.json", None)
    assert [own["seed"] for own in report.read_reference(records)] == [0, 1, 2]


def test_questions_on_one_recording_are_one_in_records_and_sweeps(tmp_path):
    """As in claims.json: README's intervals took them for apart, and were narrower."""
    sets, rows, runs = ("L1",), [], []
    many = [{"sample_id": i, "video_id": f"v{i // 8}"} for i in range(80)]
    write_jsonl(tmp_path / "annotations/validation_L1.jsonl", many)
    for seed in range(2):
        runs.append(run := write_run(tmp_path / f"{seed}", seed=seed, n=80, sets=sets))
        state = read_json(run / "pipeline.json")
        state["parameters"] |= {"data_dir": str(tmp_path)}
        write_json(run / "pipeline.json", state)
        write_json(tmp_path / f"out/{seed}.json", report.reference_record(run))
        row = {"run": run.name, "seed": seed, "x": 1, "status": "finished"}
        rows.append(row | {"metrics": read_json(run / "metrics.json")})
    right = compare.right(answers.read(runs, tmp_path))
    wanted = compare.table(right, ["model", "set"])
    kept = report.of_records(report.read_reference(tmp_path / "out"))
    write_json(tmp_path / "sweep/runs.json", rows)
    swept = report.sweep_table(report.sweep_record(tmp_path / "sweep"))
    for found in (report.accuracies(kept), swept):
        for own, row in zip(found, wanted, strict=True):
            assert [own[key] for key in ("model", "clusters")] == [row["model"], 10]
            ends = [row[key] for key in ("low", "high")]
            assert [own[key] for key in ("low", "high")] == pytest.approx(ends)


def test_seeds_of_one_question_are_refused_in_words(tmp_path):
    for seed in range(2):
        run = write_run(tmp_path / f"{seed}", seed=seed, n=1, sets=("L1",))
        write_json(tmp_path / f"{seed}.json", report.reference_record(run))
    with pytest.raises(ValueError, match="L1: needs more than one video"):
        report.results(tmp_path)


def test_a_part_of_a_set_is_called_one_in_records_and_sweeps(tmp_path):
    run, part = write_run(tmp_path / "run", n=12, sets=("L1",)), "L1 (part: 12 of 300)"
    for path in run.glob("predictions_*.jsonl"):
        edit_row(path, 0, of=300)
    chain.seal(run, "01_data")
    write_json(tmp_path / "records/run.json", report.reference_record(run))
    block = report.results(tmp_path / "records")
    assert f"**{part}**" in block and f"| {part} (n = 12) |" in block
    row = {"run": "run", "share": 1, "metrics": read_json(run / "metrics.json")}
    write_json(tmp_path / "sweep/runs.json", [row])
    assert f"| {part} |" in report.write_sweep(tmp_path / "sweep", tmp_path / "out")


def swept(folder, name, change):
    """A sweep of the same runs whose rows of runs.json are changed."""
    rows = map(change, read_json(folder / "runs.json"))
    write_json(folder.parent / name / "runs.json", list(filter(None, rows)))
    return folder.parent / name


def test_a_sweep_s_run_that_ran_with_another_value_is_not_shown_under_its_own(folder):
    """runs.json was edited, or the run started once more by itself."""
    change = {"data_dir": "outputs/other"}
    with pytest.raises(ValueError, match=r"data_dir outputs/other for size-.*again"):
        report.sweep_record(swept(folder, "edited", lambda row: row | change))


def test_a_sweep_need_not_vary_the_seed(folder, tmp_path):
    def change(row):
        seed = row.pop("seed")
        return row if seed == 1 else None

    report.write_sweep(own := swept(folder, "once", change), tmp_path)
    assert [row["seed"] for row in report.sweep_record(own)] == [6, 11]
    assert (tmp_path / "once.md").read_text().count("| GRPO | 1 |") == 2


def test_a_sweep_may_vary_the_checkpoint(folder, tmp_path):
    def change(row):
        return row | {"model": f"hub/{row.pop('training_share')}"}

    report.write_sweep(swept(folder, "models", change), tmp_path)
    assert (tmp_path / "models.md").read_text().count("| hub/0.5 |") == 4


@pytest.mark.parametrize(
    ("drop", "said"),
    [("metrics", "no finished run"), ("training_share", "varies the seed alone")],
)
def test_a_sweep_without_anything_to_show_is_refused_before_it_is_written(
    folder, tmp_path, drop, said
):
    own = swept(folder, "nothing", lambda row: row.pop(drop, 0) and row)
    with pytest.raises(ValueError, match=f"nothing.*{said}.*lib"):
        report.write_sweep(own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_the_general_set_alone_has_a_figure(folder, tmp_path):
    def change(row):
        for sets in row.get("metrics", {}).values():
            del sets["L1"], sets["L2"], sets["L3"]
        return row

    report.write_sweep(swept(folder, "general", change), tmp_path)
    assert (tmp_path / "general.png").exists()


@pytest.mark.parametrize("values", [(1.0, 0.5), ("sparse", "dense")])
@pytest.mark.parametrize("low", [0.1, 0.3])
def test_the_figure_holds_every_mean_at_its_value(values, low):
    """Numbers in their order below curves, words in the order given beside points.
    Chance, 0.25 here, has a line and its name only where a method comes down to it."""
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
