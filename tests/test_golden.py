"""Numbers stay: what the committed records, and a made run, say today and said before.

Effects are held to the last shown digit, interval ends to a point (they are drawn),
verdicts exactly. After a change that is meant, write tests/golden anew:
`PYTHONPATH=tests python -m tests.test_golden`."""

import json
import shutil

import numpy as np
import pytest
from made_run import answering, attention_row, reasoning_row, write_condition, write_run

from lib import methods
from lib.analysis import (
    answers,
    attended,
    claims,
    compare,
    frontier,
    readme,
    reasoned,
    seen,
)
from lib.analysis.__main__ import main
from lib.analysis.claims import Records
from lib.evaluate import tables
from lib.paths import ROOT
from lib.records import read_json, read_jsonl, write_json, write_jsonl, write_text

GOLDEN = ROOT / "tests" / "golden"
REFERENCE = ROOT / "outputs" / "reference"
NOISE = 0.015  # of an interval's end, or a tenth of its width: ends are drawn
LEVELS = ("L1", "L2", "L3")
GROUPS = {
    f"{name}/{i}": {"ceiling": 0.5 if i % 3 else 1.0}
    for name in LEVELS
    for i in range(200)
}


def share(*place):
    """Numbers from 0 to 1, one a question, that depend on these words alone."""
    seed = [sum(ord(c) * (i + 1) for i, c in enumerate(str(word))) for word in place]
    return np.random.default_rng(seed).random(200)


def reasoning(model, name):
    rows = []
    own = {key: share(model, name, key) for key in ("holds", "reads", "false", "text")}
    for i in range(200):
        holds, reads = own["holds"][i] < 0.8, own["reads"][i] < 0.9
        said = {"consistent": "yes" if holds else "no", "own_reader": bool(holds)}
        said |= {"progress": "right" if own["text"][i] < 0.6 else "wrong"}
        said |= {"false_step": "yes" if own["false"][i] < 0.1 else "no"}
        said |= {"base_reader": bool(holds == reads)}
        said |= {"implied_base_other": "AB"[bool(reads)]}
        said |= {"verbatim": bool(own["false"][i] < 0.3), "overlap": own["text"][i]}
        rows.append(reasoning_row(f"{name}/{i}", **said))
    return rows


def attention(model, name):
    """Three layers, a letter in most completions, and a question without numbers."""
    rows = []
    draws = zip(share(model, "v"), share(model, "s"), strict=True)
    for i, (video, still) in enumerate(draws):
        clip = [video * layer for layer in (0.3, 0.5, 0.7)]
        layers = [[v, still / 5, 1 - v - still / 5] for v in clip]
        rows.append(attention_row(f"{name}/{i}", layers, 2 + i % 2, letter=i % 5 > 0))
    return [{"id": f"{name}/0", "left_out": "its clip cannot be read"}, *rows[1:40]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_made(tmp_path_factory.mktemp("made") / "run")


def write_made(run):
    """A run with all kinds of records, 200 questions a set."""
    write_run(run, n=200)
    asked = {"conditions": ["no_video"], "left_out": {}, "sets": ["L1", "L3"]}
    write_json(run / "perception_asked.json", asked | {"count": 200, "seed": 0})
    for model in ("base", "sft", "grpo"):
        for name in (*LEVELS, "general"):
            write_jsonl(run / f"coherence_{model}_{name}.jsonl", reasoning(model, name))
        for name in asked["sets"]:
            rows = read_jsonl(run / f"predictions_{model}_{name}.jsonl")
            right = share(model, name, "no video") < 0.3
            blind = map(answering, rows, right)
            write_condition(run, model, name, "no_video", blind)
        for text in ("", ".on_base"):
            rows = attention(model + text, "L1")
            write_jsonl(run / f"attention_{model}{text}.jsonl", rows)
    return run


def measured(run):
    """{what: [effect, low, high]} of all that is measured on a run."""
    found = {}

    def add(rows, kind, keys, value, ends=("low", "high")):
        for row in rows:
            name = " ".join([kind, *(str(row[key]) for key in keys)])
            found[name] = [row[value], *(row[end] for end in ends)]

    predictions, frame = tables.read_predictions(run), answers.read(run)
    right, draws = compare.right(frame), {"samples": 2000, "seed": 0}
    add(compare.accuracies(predictions), "", ("model", "set"), "accuracy")
    pairs = (*methods.PAIRS, ("base-direct", "base"))
    rows = compare.differences(right, pairs, **draws)
    add(rows, "", ("a", "b", "set"), "difference")
    rows = compare.out_of_distribution(right, **draws)
    add(rows, "less", ("there", "here"), "difference")
    for name, field in (("L3", "domain"), ("general", "duration_group")):
        rows = compare.grouped(predictions, name, field)
        add(rows, name, ("model", field), "accuracy")
    asked = seen.asked_of([run])
    shown = seen.seen(frame, asked, GROUPS, **draws)
    place = ("set", "group")
    costs = [row for row in shown["accuracy"] if row["condition"] != "seen"]
    for row in costs:  # as a change, not as a loss
        ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
        row |= dict(zip(("change", "least", "most"), ends, strict=True))
    keys = (*place, "model", "condition")
    add(costs, "cost", keys, "change", ("least", "most"))
    add(shown["gains"], "shrinks", (*place, "a", "b", "condition"), "difference")
    said, keys = reasoned.reasoned(frame, **draws), ("model", "set", "measure")
    add(said["shares"], "says", keys, "share")
    add(said["controls"], "control", keys, "share")
    add(said["differences"], "says", ("a", "b", "set", "measure"), "difference")
    keys = ("model", "sets", "first", "second", "reasoning")
    add(said["agreement"], "kappa", keys, "kappa")
    looked = attended.attended(frame, **draws)
    masses = [row for row in looked["masses"] if row["where"] != "equal"]
    add(masses, "mass", ("text", "model", "where", "kind"), "mean")
    keys = ("text", "a", "b", "where", "kind")
    add(looked["differences"], "mass", keys, "difference")
    return found


def verdicts(run):
    """{claim part: [verdict, effect, low, high]} on a made run and the real sweeps."""
    records = Records(run, answers.read(run), REFERENCE / "sweeps")
    return {
        f"{row['number']} {part['name']}": [part["verdict"]]
        + [part.get(key) for key in ("effect", "low", "high")]
        for row in claims.table(records, 2000)
        for part in (*row["parts"], *row["beside"])
    }


def same(now, then):
    assert set(now) == set(then)
    moved = {}
    for name, (effect, low, high) in then.items():
        if None in (effect, low, high):
            assert now[name] == [effect, low, high]
            continue
        noise = max(NOISE, (high - low) / 10)
        apart = np.abs(np.subtract(now[name], (effect, low, high)))
        if apart[0] > 5e-7 or apart[1:].max() > noise:
            moved[name] = now[name], then[name]
    assert not moved


def test_every_number_of_a_made_run_stays(made):
    same(measured(made), read_json(GOLDEN / "made.json"))


def test_every_verdict_of_a_made_run_stays(made):
    now, then = verdicts(made), read_json(GOLDEN / "claims.json")
    assert {k: v[0] for k, v in now.items()} == {k: v[0] for k, v in then.items()}
    same(*({k: v[1:] for k, v in some.items()} for some in (now, then)))


def test_the_tables_of_the_sweeps_stay():
    files = sorted((REFERENCE / "sweeps").glob("*.json"))
    assert len(files) == 7
    for path in files:
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        assert readme.sweep_markdown(read_json(path)) == text, path.name


def test_the_claims_are_as_their_record_has_them():
    rows = read_json(REFERENCE / "claims" / "claims.json")
    text = (REFERENCE / "claims" / "claims.md").read_text(encoding="utf-8")
    assert f"{claims.markdown(rows)}\n{claims.sentences(rows)}" == text
    assert claims.again(rows) == rows
    parts = [part for row in rows for part in row["parts"]]
    waits = [part for part in parts if part["verdict"] == "not measured"]
    assert all("outputs/reference/sweeps/" in part["sentence"] for part in waits)
    text = (REFERENCE / "claims" / "controls.md").read_text(encoding="utf-8")
    assert claims.controls_markdown(rows) == text


def test_the_tables_of_the_evidence_stay():
    shown, said = (
        read_json(REFERENCE / "evidence" / f"{name}.json")
        for name in ("perception", "coherence")
    )
    text = (REFERENCE / "evidence" / "evidence.md").read_text(encoding="utf-8")
    assert readme.evidence_markdown(shown, said) == text


def test_the_command_writes_the_evidence_of_a_made_run(made, tmp_path):
    run, out = shutil.copytree(made, tmp_path / "run"), tmp_path / "out"
    state = read_json(run / "pipeline.json")
    state["parameters"] |= {"data_dir": "", "general_dir": ""}  # no annotations
    write_json(run / "pipeline.json", state)
    assert main(["evidence", str(run), "--out", str(out)]) == 0
    shown, said = (read_json(out / f"{n}.json") for n in ("perception", "coherence"))
    text = (out / "evidence.md").read_text(encoding="utf-8")
    assert readme.evidence_markdown(shown, said) == text and "no video" in text


def test_the_map_is_as_its_record_has_it():
    folder = REFERENCE / "map"
    found = frontier.cells(read_json(folder / "map.json"))
    assert [len(cell["L1"][0]) for cell in found].count(1000) == 26
    text = (folder / "map.md").read_text(encoding="utf-8")
    assert frontier.markdown(found, frontier.crossings(found)) == text


def rounded(found):
    """Seven digits, one entry a line."""
    lines = []
    for key, row in found.items():
        kept = [round(v, 7) if isinstance(v, float) else v for v in row]
        lines.append(f"  {json.dumps(key)}: {json.dumps(kept)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        run = write_made(Path(folder) / "run")
        write_text(GOLDEN / "made.json", rounded(measured(run)))
        write_text(GOLDEN / "claims.json", rounded(verdicts(run)))
