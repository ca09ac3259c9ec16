"""What was seen, what reasoning supports, where they look: by hand, and drawn."""

import json
from types import SimpleNamespace

import made_run
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from made_run import answering, one

from lib import records
from lib.analysis import answers, attended, evidence_plots, reasoned, seen, stats
from lib.analysis.readme import evidence_markdown
from lib.evaluate import tables
from lib.methods import ASKED, METHODS
from lib.records import read_jsonl, write_json, write_jsonl
from lib.run.params import NOTEBOOKS

DRAWS = {"samples": 500, "seed": 0}
RIGHT = {  # by question 0 to 5
    ("base", "seen"): (1, 0, 0, 0, 0, 1),
    ("sft", "seen"): (1, 1, 0, 0, 1, 1),
    ("grpo", "seen"): (1, 1, 1, 1, 1, 1),
    ("base", "no_video"): (1, 0, 0, 0, 0, 1),
    ("sft", "no_video"): (1, 0, 0, 0, 1, 1),
    ("grpo", "no_video"): (0, 0, 1, 1, 0, 1),
}
CEILINGS = {"L1/0": 0.5, "L1/1": 0.7, "L1/3": 1.0, "L1/4": 1.0}
GROUPS = {key: {"ceiling": ceiling} for key, ceiling in CEILINGS.items()}


def write_seen(run, seed=0, name="L1"):
    """A run of six questions; from one seed to the next the answers move on by one."""
    for (model, condition), right in RIGHT.items():
        ending = "" if condition == "seen" else f".{condition}"
        file = run / f"predictions_{model}_{name}{ending}.jsonl"
        rows = made_run.predictions(model, name, 6, 0)
        write_jsonl(file, map(answering, rows, np.roll(right, seed)))
        write_json(file.with_suffix(".settings.json"), {"model": model})
    asked = {"conditions": ["no_video"], "left_out": {}, "sets": ["L1"], "count": 6}
    write_json(run / ASKED, asked | {"seed": 0})
    write_json(run / "pipeline.json", {"parameters": {"seed": seed}})
    return run


def looked(runs, groups=GROUPS):
    return seen.seen(answers.read(runs), seen.asked_of(runs), groups, **DRAWS)


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return looked([write_seen(tmp_path_factory.mktemp("seen"))])


def test_costs_by_hand(found):
    row = one(found["accuracy"], model="grpo", condition="no_video", group="all")
    assert (row["n"], row["accuracy"], row["chance"]) == (6, 0.5, 0.25)
    assert row["cost"] == pytest.approx(0.5)
    assert row["cost_low"] <= 0.5 <= row["cost_high"]
    row = one(found["accuracy"], model="sft", condition="seen", group="needed")
    assert (row["n"], row["accuracy"]) == (2, 1.0)
    assert row["ceiling"] == pytest.approx(0.6)


def test_a_gain_that_is_perception_shrinks_without_the_video(found):
    row = one(found["gains"], a="grpo", b="base", condition="no_video", group="all")
    assert row["gain"] == pytest.approx(4 / 6)
    assert row["gain_then"] == pytest.approx(1 / 6)
    assert row["difference"] == pytest.approx(3 / 6)
    assert row["low"] < row["difference"] < row["high"]


def test_several_sets_are_also_put_together(tmp_path):
    run = write_seen(write_seen(tmp_path), name="L3")
    asked = json.loads((run / ASKED).read_text())
    write_json(run / ASKED, {**asked, "sets": ["L1", "L3"]})
    rows = looked([run], {})["accuracy"]
    sizes = {row["set"]: row["n"] for row in rows if row["group"] == "all"}
    assert sizes == {"L1": 6, "L3": 6, "L1+L3": 12}


def test_what_was_not_answered_is_named(tmp_path):
    run = write_seen(tmp_path)
    (run / "predictions_grpo_L1.no_video.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"grpo_L1\.no_video.*grpo in perc"):
        looked([run])


def test_over_seeds_the_seed_varies_too(tmp_path):
    runs = [write_seen(tmp_path / f"seed{seed}", seed) for seed in range(3)]
    found = looked(runs)
    row = one(found["accuracy"], model="grpo", condition="no_video", group="all")
    values = [np.roll(RIGHT["grpo", "no_video"], seed) for seed in range(3)]
    assert (row["accuracy"], row["seeds"]) == (pytest.approx(np.mean(values)), 3)
    ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
    text = seen.markdown(found)
    assert tables.span(*ends, signed=True) in text
    assert "L1, 6 questions × 3 seeds" in text
    write_json(runs[1] / ASKED, {"conditions": [], "sets": ["L1"]})
    with pytest.raises(ValueError, match=r"seed1.*asked\.json differs.*conditions \("):
        seen.asked_of(runs)


def test_tables_and_figure_say_the_same(found):
    table = seen.markdown(found)
    assert "| all as it is | 33.3 | 66.7 | 100.0 |" in table
    assert "| no video | 33.3 (0.0 [" in table and "| 50.0 (−16.7 [" in table
    assert "66.7 → 16.7, shrinks by +50.0" in seen.gains_markdown(found["gains"])
    figure = evidence_plots.perception(found)
    heights = [round(bar.get_height(), 1) for bar in figure.axes[0].patches]
    assert heights == [33.3, 66.7, 100.0, 33.3, 50.0, 50.0]
    text = words(figure)
    assert "all questions (n = 6)" in text and "video is needed (n = 2)" in text


def test_a_measure_that_tells_nothing_apart_is_named():
    rows = [("a", 0.991), ("a", 0.999), ("b", 0.991), ("b", 0.4)]
    shares = [{"measure": name, "share": share} for name, share in rows]
    assert reasoned.flat(shares) == ["a"] and reasoned.flat([]) == []


def write_reasoned(run, seed=0):
    """GRPO's letter is the stated step on 8 of 12 questions, SFT's always, the base
    gives no reasoning; the reader errs on the first question of GRPO alone."""
    ids = [f"L1/{i}" for i in range(12)]
    for model in METHODS:
        right = [model != "grpo" or i % 3 > 0 for i in range(12)]
        path = run / f"predictions_{model}_L1.jsonl"
        asked = made_run.predictions(model, "L1", 12, 0)
        write_jsonl(path, map(answering, asked, right))
        rows = []
        for i, key in enumerate(ids):
            says = {"base": "absent", "sft": "yes"}.get(model, "yes" if i % 3 else "no")
            holds = says == "yes"
            base = holds != (model == "grpo" and i == 0)
            facts = {"consistent": says, "own_reader": holds, "base_reader": base}
            rows.append(made_run.reasoning_row(key, **facts))
        write_jsonl(run / f"coherence_{model}_L1.jsonl", rows)
    write_json(run / "pipeline.json", {"parameters": {"seed": seed}})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_reasoned(tmp_path_factory.mktemp("reasoned"))


@pytest.fixture(scope="module")
def said(run):
    return reasoned.reasoned(answers.read(run), **DRAWS)


def test_a_run_with_known_faults_is_measured_as_it_is(said):
    share = {(r["model"], r["measure"]): r["share"] for r in said["shares"]}
    assert share["base", "consistent"] == 0  # no reasoning, and still among the 12
    assert share["sft", "consistent"] == share["sft", "progress"] == 1
    assert share["grpo", "consistent"] == pytest.approx(8 / 12)
    assert share["grpo", "overlap"] == 0.25
    assert ("sft", "judge") not in share and ("sft", "false_object") not in share
    lost = one(said["differences"], a="grpo", b="sft", measure="consistent")
    assert lost["difference"] == pytest.approx(-4 / 12)
    assert lost["low"] <= -4 / 12 <= lost["high"] <= 0
    cells = {(r["model"], r["measure"]): r for r in said["answers"]}
    assert cells["grpo", "consistent"]["wrong_unsupported"] == 4
    assert cells["base", "consistent"]["right_unsupported"] == 12
    assert said["flawless"] == [{"set": "L1", "n": 12, "overlap": 0.5, "verbatim": 1.0}]
    json.dumps(said, allow_nan=False)


def test_whether_progress_is_stated_at_all(tmp_path):
    says = enumerate(["right", "wrong", "absent", None])
    rows = [made_run.reasoning_row(f"L1/{i}", progress=word) for i, word in says]
    write_jsonl(tmp_path / "coherence_sft_L1.jsonl", rows)
    frame = answers.read(tmp_path)
    assert frame[frame.measure == "stated"].value.tolist() == [1, 1, 0]


def test_a_judged_part_counts_by_itself(run, tmp_path):
    for path in run.glob("*.jsonl"):
        (tmp_path / path.name).write_text(path.read_text())
    path = tmp_path / "coherence_grpo_L1.jsonl"
    rows = read_jsonl(path)
    for row, judge in zip(rows, (True, False, None, True), strict=False):
        row |= {"judged": True, "judge": judge}
    write_jsonl(path, rows)
    found = reasoned.reasoned(answers.read(tmp_path), **DRAWS)["shares"]
    judged = [r for r in found if r["measure"] == "judge"]
    assert [(r["model"], r["n"], r["share"]) for r in judged] == [("grpo", 4, 0.5)]
    (failed,) = (r for r in found if r["measure"] == "unjudged")
    assert (failed["model"], failed["n"], failed["share"]) == ("grpo", 4, 0.25)


def test_a_kappa_that_rounds_to_nothing_has_no_sign():
    row = {"kappa": -0.001, "low": -0.004, "high": 0.3}
    assert reasoned.kappa_text(row) == "0.00 [0.00, 0.30]"


def test_agreement_of_reader_and_truth_is_counted(said):
    own = one(
        said["agreement"],
        **{"model": "grpo", "first": "consistent", "second": "base_reader"},
        reasoning="own",
    )
    assert (own["n"], own["both"], own["neither"]) == (12, 8, 3)
    assert own["only_second"] == 1
    kinds = {(r["model"], r["second"], r["reasoning"]): r for r in said["agreement"]}
    assert kinds["grpo", "base_reader", "with other"]["n"] == 24
    assert ("base", "own_reader", "own") not in kinds  # the same reader


def test_kappa_of_a_known_table():
    """Cohen's 1960 kappa by hand: 20, 5, 10, 15 of 50 agree in 0.7, 0.5 expected."""
    cells = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    pairs = [(*pair, i) for i, pair in enumerate(pairs)]
    drawn = stats.resampling(tuple(range(50)), 2000, 0)
    found = reasoned.agreement(pairs, drawn)
    assert found["kappa"] == pytest.approx(0.4)
    assert found["low"] < 0.2 < 0.4 < found["high"] < 0.7
    counts = [found[k] for k in ("both", "only_first", "only_second", "neither")]
    assert counts == [20, 5, 10, 15]
    constant = reasoned.agreement([(1, 1, i) for i in range(50)], drawn)
    assert constant["kappa"] is constant["low"] is None
    assert reasoned.kappa_text(constant) == "not defined"
    low = {"kappa": 0.08, "low": -0.012, "high": 0.213}
    assert reasoned.kappa_text(low) == "0.08 [−0.01, 0.21]"


def test_over_seeds_the_levels_stand_together(run, tmp_path, found):
    runs = [run, write_reasoned(tmp_path / "other", seed=1)]
    path = runs[1] / "coherence_sft_L1.jsonl"
    rows = read_jsonl(path)
    rows[3]["consistent"] = None  # only what all seeds say counts
    write_jsonl(path, rows)
    for kind in ("predictions", "coherence"):  # care's was not read in every run
        there = runs[0] / f"{kind}_grpo_L1.jsonl"
        write_jsonl(runs[1] / f"{kind}_care_L1.jsonl", read_jsonl(there))
    over = reasoned.reasoned(answers.read(runs), **DRAWS)
    row = one(over["shares"], model="sft", measure="consistent")
    assert (row["set"], row["n"], row["seeds"], row["share"]) == ("levels", 11, 2, 1)
    assert one(over["shares"], model="grpo", measure="consistent")["n"] == 12
    assert over["differences"] == []
    over["shares"] += [row | {"set": "general"} for row in over["shares"]]
    text = evidence_markdown(found, over | {"decisions": []})
    assert "| % of answers, levels: 12 questions × 2 seeds |" in text
    assert f"| GRPO | own | 24 | {100 * 22 / 24:.1f} |" in text
    assert {row["model"] for row in over["shares"]} == {*METHODS}


def test_a_seed_whose_reasoning_was_not_read_is_left_out(run, said, tmp_path):
    unread = write_reasoned(tmp_path / "unread", seed=1)
    for path in unread.glob("coherence_*"):
        path.unlink()
    assert reasoned.reasoned(answers.read([run, unread]), **DRAWS) == said
    with pytest.raises(FileNotFoundError, match=r"coherence_sets and run 04_eval"):
        reasoned.reasoned(answers.read(unread), **DRAWS)


def test_05_draws_measures_in_which_all_methods_are_alike(tmp_path, capsys):
    """As after two steps of training, on a few questions."""
    run = write_reasoned(tmp_path)
    for name in ("predictions", "coherence"):
        rows = read_jsonl(run / f"{name}_sft_L1.jsonl")
        for model in METHODS:
            write_jsonl(run / f"{name}_{model}_L1.jsonl", rows)
    cells = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4).cells
    (cell,) = [c for c in cells if "reasoned.reasoned(" in c.source]
    drawn = []
    known = {"answered": answers.read(run), "run": run, "draws": DRAWS}
    known |= {"reasoned": reasoned, "records": records, "figures": run}
    known |= {"evidence_plots": evidence_plots}
    known["pages"] = SimpleNamespace(show=lambda figure, *more: drawn.append(figure))
    exec(cell.source, known)
    assert drawn and "all methods are alike in" in capsys.readouterr().out


def test_tables_hold_the_shares_and_the_counts(said):
    lines = reasoned.shares_markdown(said).splitlines()
    line = next(line for line in lines if line.startswith("| answer is the step"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1:3] == ["L1", "12"] and cells[3].startswith("0.0 [0.0, ")
    assert cells[5].startswith("66.7 [") and cells[6].startswith("−33.3 [")
    table = reasoned.agreement_markdown(said)
    assert "not defined" in table  # of base, all of whose answers have no reasoning
    assert len(table.splitlines()) == 2 + len(said["agreement"])


def test_figures_hold_the_shares_and_the_cells(said):
    shown = (said[key] for key in ("shares", "controls", "flawless"))
    figure = evidence_plots.coherence(*shown)
    panels = {ax.get_title().replace("\n", " "): ax for ax in figure.axes}
    panels.pop("", None)
    assert len(panels) == len({row["measure"] for row in said["shares"]})
    panel = panels[reasoned.MEASURES["consistent"]]
    points = [line for line in panel.get_lines() if line.get_marker() == "o"]
    drawn = [line.get_ydata()[0] for line in points]
    assert drawn == pytest.approx([0, 100, 100 * 8 / 12])
    measures = ["consistent", "follows"]
    figure = evidence_plots.supported_answers(said["answers"], measures)
    assert len(figure.axes) == 6
    grpo = " ".join(text.get_text() for text in figure.axes[2].texts)
    assert "66.7 %\n8" in grpo and "33.3 %\n4" in grpo
    assert "SFT" in words(figure)


def looks(key, video, tokens=2, letter=True):
    """Two layers that put `video` and `video` + 0.2 on the video, 0.1 on the still."""
    layers = [[v, 0.1, 0.9 - v] for v in (video, video + 0.2)]
    return made_run.attention_row(key, layers, tokens, letter)


def write_looks(run):
    for model, shift in {"base": 0.0, "sft": 0.1, "grpo": 0.3}.items():
        rows = [
            looks("L1/a", 0.1 + shift, 3),
            looks("L1/b", 0.2 + shift, 2, letter=model != "sft"),
            looks("L1/c", 0.3 + shift, 2),
        ]
        if model == "sft":
            rows[2] = {"id": "L1/c", "left_out": "the completion is empty"}
        write_jsonl(run / f"attention_{model}.jsonl", rows)
    return run


def test_attention_by_hand(tmp_path):
    found = attended.attended(answers.read(write_looks(tmp_path)), ["own"], **DRAWS)
    (text,) = found["texts"]
    assert text == {"text": "own", "asked": 3, "left_out": 1, "retokenized": 0}
    row = one(found["masses"], model="grpo", where="layer 2", kind="video")
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.65))
    assert (row["low"], row["high"]) == (pytest.approx(0.6), pytest.approx(0.7))
    equal = one(found["masses"], model="grpo", where="equal", kind="video")
    assert equal["mean"] == pytest.approx(0.2)
    where = {"a": "grpo", "b": "base", "where": "all layers", "kind": "video"}
    gap = one(found["differences"], **where)
    ends = [gap[key] for key in ("difference", "low", "high")]
    assert ends == pytest.approx([0.3] * 3)
    pair = one(found["differences"], a="sft", b="base", where="letter", kind="video")
    assert pair["n"] == 1  # of two questions SFT gave one a letter
    means = {(r["model"], r["where"], r["kind"]): r for r in found["masses"]}
    for gap in found["differences"]:  # the masses shown beside it are of its questions
        a, b = (means[gap[side], gap["where"], gap["kind"]] for side in ("a", "b"))
        assert a["n"] == b["n"] == gap["n"]
        assert a["mean"] - b["mean"] == pytest.approx(gap["difference"])
    ns = [r["n"] for r in found["by_token"] if r["model"] == "base"]
    assert ns == [2, 2, 1] and found["by_token"][0]["text"] == "own"
    numbers = "55.0 − 25.0 | +30.0 [+30.0, +30.0]"
    line = f"| everything | video | GRPO − base | 2 | {numbers} |"
    assert line in attended.markdown(found, "own")
    layers = evidence_plots.attention(found, "own", "layer").axes[0].get_lines()
    drawn = [line.get_ydata().tolist() for line in layers if line.get_marker() == "o"]
    assert drawn[0] == pytest.approx([15, 35]) and drawn[2] == pytest.approx([45, 65])
    dotted = [line.get_ydata().tolist() for line in layers if line.get_marker() != "o"]
    assert dotted[0] == pytest.approx([20, 20])
    tokens = evidence_plots.attention(found, "own", "token").axes[0].get_lines()
    assert [len(line.get_xdata()) for line in tokens] == [3, 3, 3]


def test_attention_of_other_questions_is_not_compared(tmp_path):
    path = write_looks(tmp_path) / "attention_grpo.jsonl"
    write_jsonl(path, read_jsonl(path)[1:])
    with pytest.raises(ValueError, match="attention_grpo"):
        attended.attended(answers.read(tmp_path), ["own"])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="grpo in perception_models"):
        attended.read_rows(tmp_path, "own")
    frame = pd.concat([answers.read(tmp_path)[:0]])
    with pytest.raises(ValueError, match="no question has attention"):
        attended.attended(frame, ["own"])
