"""README's block follows from committed records, and from nothing else."""

import json

import pytest
from made_run import edit_row, write_run

from lib import chain, evidence, performance, report, stats, sweeps, tables
from lib.paths import ROOT
from lib.records import read_json, write_json

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


def row(low, value, high):
    return {"difference": value, "low": low, "high": high}


@pytest.mark.parametrize(
    "interval, words",
    [
        (
            (0.01, 0.03, 0.05),
            "GRPO ahead of SFT by 3.0 points (95 % interval 1.0 to 5.0)",
        ),
        (
            (-0.05, -0.03, -0.01),
            "SFT ahead of GRPO by 3.0 points (95 % interval 1.0 to 5.0)",
        ),
        (
            (-0.01, 0.02, 0.05),
            "undecided: GRPO − SFT is +2.0 points (95 % interval −1.0 to +5.0)",
        ),
        (
            (0.0, 0.02, 0.05),
            "undecided: GRPO − SFT is +2.0 points (95 % interval 0.0 to +5.0)",
        ),
    ],
)
def test_the_words_follow_the_interval(interval, words):
    assert report.verdict("L2", row(*interval)) == f"**L2** (new environments): {words}"


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


def test_settings_do_not_depend_on_the_seed(runs):
    hashes = {report.reference_record(run)["settings"] for run in runs}
    assert len(hashes) == 1


def test_what_is_asked_beside_the_answers_is_no_setting_of_theirs(tmp_path):
    run = write_run(tmp_path / "run", n=12)
    before = report.reference_record(run)["settings"]
    state = read_json(run / "pipeline.json")

    def settings(**changed):
        given = state["parameters"] | changed
        write_json(run / "pipeline.json", {**state, "parameters": given})
        return report.reference_record(run)["settings"]

    assert settings(perception_conditions="no_video") == before
    assert settings(grpo_steps=7) != before


def test_means_and_differences_are_those_of_the_rows(runs, records):
    read = report.read_reference(records)
    means = {(r["model"], r["set"]): r for r in report.seeds_table(read)}
    predictions = [tables.read_predictions(run) for run in runs]
    sft = [[r["correct"] for r in p["sft", "L2"]] for p in predictions]
    grpo = [[r["correct"] for r in p["grpo", "L2"]] for p in predictions]
    expected = stats.mean_over_seeds(sft)
    assert means["sft", "L2"]["mean"] == expected["mean"]
    assert means["sft", "L2"]["low"] == expected["low"]
    compared = report.seeds_comparisons(read)
    found = next(r for r in compared if (r["a"], r["b"], r["set"])[1:] == ("sft", "L2"))
    gap = [
        [int(a) - int(b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(grpo, sft, strict=True)
    ]
    assert found["difference"] == stats.mean_over_seeds(gap)["mean"]
    assert (found["low"], found["high"]) == tuple(
        stats.mean_over_seeds(gap)[key] for key in ("low", "high")
    )


def test_other_rl_is_compared_with_grpo_where_there_is_any(records):
    for path in records.glob("*.json"):
        record = read_json(path)
        grpo = [row for row in record["results"] if row["model"] == "grpo"]
        inverted = str.maketrans("01", "10")
        record["results"] += [
            {**row, "model": "ppo", "correct": row["correct"].translate(inverted)}
            for row in grpo
        ]
        write_json(path, record)
    read = report.read_reference(records)
    found = [r for r in report.seeds_comparisons(read) if r["a"] == "ppo"]
    means = {(r["model"], r["set"]): r["mean"] for r in report.seeds_table(read)}
    assert [(r["b"], r["set"]) for r in found] == [("grpo", s) for s in tables.SETS]
    for row in found:
        gap = 1 - 2 * means["grpo", row["set"]]
        assert row["difference"] == pytest.approx(gap)
    assert "| PPO − GRPO, points |" in report.readme_block(records)


def test_the_base_model_is_the_same_in_every_seed(records):
    rows = report.seeds_table(report.read_reference(records))
    base = next(r for r in rows if (r["model"], r["set"]) == ("base", "L1"))
    assert base["sd"] == 0 and len(set(base["by_seed"])) == 1


def test_the_block_answers_on_every_level(records):
    block = report.readme_block(records)
    assert block.startswith(report.BEGIN) and block.endswith(report.END)
    for name in tables.SETS:
        assert f"- **{name}** ({report.MEANING[name]}): " in block
    lines = [line for line in block.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "34.8 / 43.8 / 46.0" in block
    assert "training seeds (0, 1, 2)" in block
    assert "seeds and questions vary" in block


def test_write_readme_block_changes_nothing_else(records, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\nold\n{report.END}\nrest\n")
    block = report.write_block(readme, report.readme_block(records))
    assert readme.read_text() == f"# Title\n{block}\nrest\n"
    report.write_block(readme, report.readme_block(records))
    assert readme.read_text() == f"# Title\n{block}\nrest\n"


def test_a_readme_without_markers_is_left_alone(records, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.END}\n")
    with pytest.raises(ValueError, match="once each"):
        report.write_block(readme, report.readme_block(records))
    assert readme.read_text() == f"# Title\n{report.END}\n"


def test_a_seed_twice_is_refused(records):
    record = read_json(records / "toy-seed=0.json")
    write_json(records / "copy.json", record)
    with pytest.raises(ValueError, match="a seed occurs twice"):
        report.read_reference(records)


@pytest.mark.parametrize("key", ["questions", "settings"])
def test_other_questions_or_settings_are_refused(records, key):
    path = records / "toy-seed=2.json"
    write_json(path, {**read_json(path), key: "else"})
    with pytest.raises(ValueError, match=f"differ in {key}"):
        report.read_reference(records)


def test_changed_options_change_the_questions_of_a_record(tmp_path):
    run = write_run(tmp_path / "run", n=12, sets=("L1",))
    before = report.reference_record(run)["questions"]
    for model in (*tables.METHODS, "base-direct"):
        path = run / f"predictions_{model}_L1.jsonl"
        edit_row(path, 3, options=["a", "b", "c", "d"])
    chain.seal(run, "01_data")
    assert report.reference_record(run)["questions"] != before


def test_an_empty_folder_says_what_writes_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lib\.report reference"):
        report.read_reference(tmp_path)


def test_a_run_without_a_seed_is_refused(tmp_path):
    run = write_run(tmp_path / "run", n=12, sets=("L1",))
    write_json(run / "pipeline.json", {"parameters": {}, "notebooks": {}})
    with pytest.raises(ValueError, match="hold no `seed`"):
        report.reference_record(run)


def test_command_line_writes_records_and_a_figure(runs, tmp_path, capsys):
    out = tmp_path / "reference"
    report.main(["reference", *map(str, runs), "--out", str(out)])
    names = sorted(path.name for path in out.iterdir())
    assert names == ["seeds.png", *(f"toy-seed={s}.json" for s in range(3))]
    assert "toy-seed=1.json" in capsys.readouterr().out
    assert len(report.read_reference(out)) == 3
    report.main(["reference", str(runs[0]), "--out", str(tmp_path / "alone")])
    assert [path.suffix for path in (tmp_path / "alone").iterdir()] == [".json"]


def test_write_results_round_trip(runs):
    predictions = tables.read_predictions(runs[0])
    results = {
        "accuracy": tables.accuracy_table(predictions),
        "comparisons": tables.comparisons(predictions, 200, 0),
        "out_of_distribution": tables.out_of_distribution(predictions, 200, 0),
    }
    text = report.write_results(runs[0], results)
    kept = read_json(runs[0] / "results.json")
    assert kept["accuracy"] == results["accuracy"]
    assert (runs[0] / "results.md").read_text() == text
    assert all(sentence in text for sentence in kept["findings"])


def test_manifest_is_shown_fact_by_fact():
    manifest = {"01_data": {"n": {"L1": 500}, "note": "a|b", "long": "x" * 200}}
    text = report.manifest_markdown(manifest)
    assert "| 01_data | n.L1 | `500` |" in text
    assert "a\\|b" in text and "x" * 71 not in text


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no committed records yet")
def test_readme_says_what_the_committed_records_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index(report.BEGIN) : readme.index(report.END)]
    source = block.rsplit("python -m lib.report readme ", 1)[1].split("`")[0]
    assert ROOT.joinpath(source).is_relative_to(REFERENCE)
    assert block + report.END == report.readme_block(source)


def test_readme_says_what_the_bench_records_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index(performance.BEGIN) : readme.index(performance.END)]
    folder = ROOT / "outputs/reference"
    assert block + performance.END == performance.performance_block(folder)


def test_readme_says_what_the_evidence_over_seeds_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index(evidence.BEGIN) : readme.index(evidence.END)]
    assert block + evidence.END == evidence.readme_block(REFERENCE / "evidence")


def test_readme_says_what_the_sweeps_say():
    block = sweeps.readme_block(REFERENCE / "sweeps")
    assert block in (ROOT / "README.md").read_text()


def test_readme_names_the_minutes_of_its_record():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    took = read_json(REFERENCE / "mini" / "mini.json")["seconds"]
    for notebook, seconds in took.items():
        (line,) = [x for x in readme.splitlines() if x.startswith(f"| `{notebook}` |")]
        assert line.endswith(f"| {seconds / 60:.1f} |")
    assert f"on all levels: {sum(took.values()) / 60:.0f} minutes on two CPU" in readme
