"""What is averaged over seeds is what the rows of the seeds say, one by one."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from made_run import answering

from lib import coherence, evidence, perception, stats, tables
from lib.records import read_json, write_json, write_jsonl

IDS = [f"L1/{i}" for i in range(12)]
ASKED = {"conditions": ["no_video"], "left_out": {}, "sets": ["L1"], "count": 12}
QUESTIONS = {
    key: SimpleNamespace(level="L1", video=f"{key}.mp4", image=None) for key in IDS
}
GROUPS = {
    key: {"group": "needed" if i < 4 else "open", "ceiling": 0.5 if i < 4 else 1.0}
    for i, key in enumerate(IDS)
}


def drawn(*place):
    """Right or wrong for each question, as these words decide."""
    seed = [sum(map(ord, str(word))) for word in place]
    return np.random.default_rng(seed).random(len(IDS)) < 0.6


def prediction(key, right):
    options = ["wash cup", "dry cup", "cut cup", "tie cup"]
    asked = {"id": key, "options": options, "gold": "A", "truncated": False}
    return answering(asked, right)


@pytest.fixture
def runs(tmp_path):
    found = {}
    for seed in (0, 1, 2):
        run = found[seed] = tmp_path / f"seed{seed}"
        write_json(run / perception.ASKED, {**ASKED, "seed": 0})
        for model in tables.METHODS:
            for condition in (perception.SEEN, "no_video"):
                right = drawn(model, condition, seed)
                file = perception.predictions_file(run, model, "L1", condition)
                rows = [prediction(*pair) for pair in zip(IDS, right, strict=True)]
                write_jsonl(file, rows)
                write_json(file.with_suffix(".settings.json"), {"model": model})
            write_jsonl(run / f"coherence_{model}_L1.jsonl", reasoned(model, seed))
    return found


def reasoned(model, seed):
    """Rows of lib.coherence: the reader errs on the first question alone."""
    rows = []
    for i, right in enumerate(drawn(model, "consistent", seed)):
        row = dict.fromkeys(("next", "false_object", "judge", "judge_error"))
        row |= {"id": IDS[i], "answer": "A", "correct": True, "judged": False}
        row |= {"consistent": "yes" if right else "no", "consistent_other": "no"}
        row |= {"follows": "yes", "progress": "right", "false_step": "no"}
        row |= {"base_reader": bool(right) != (i == 0), "own_reader": bool(right)}
        row |= {f"implied_{control}": "B" for control in coherence.CONTROLS}
        row |= {"names_letter": False, "verbatim": False, "overlap": 0.25}
        row |= {"verbatim_flawless": None, "overlap_flawless": None}
        rows.append(row)
    return rows


def one(rows, **wanted):
    (row,) = [r for r in rows if all(r[key] == wanted[key] for key in wanted)]
    return row


def test_accuracy_and_cost_are_those_of_all_seeds(runs):
    found = evidence.seen_over_seeds(runs, QUESTIONS, GROUPS)
    seen, without = (
        np.array([drawn("grpo", shown, seed) for seed in runs], float)
        for shown in (perception.SEEN, "no_video")
    )
    row = one(found["accuracy"], model="grpo", condition="no_video", group="all")
    over = stats.mean_over_seeds(without)
    assert (row["accuracy"], row["low"]) == (over["mean"], max(0, over["low"]))
    assert row["high"] == min(1, over["high"])
    lost = stats.mean_over_seeds(seen - without)
    assert (row["cost"], row["cost_low"]) == (lost["mean"], lost["low"])
    assert (row["n"], row["seeds"], row["chance"]) == (12, 3, 0.25)
    needed = one(
        found["accuracy"], model="grpo", condition=perception.SEEN, group="needed"
    )
    assert needed["n"] == 4 and needed["accuracy"] == seen[:, :4].mean()
    assert one(found["ceilings"], group="needed")["ceiling"] == 0.5


def test_the_cost_in_the_table_is_a_loss_with_its_ends_in_order(runs):
    found = evidence.seen_over_seeds(runs, QUESTIONS, GROUPS)
    row = one(found["accuracy"], model="sft", condition="no_video", group="all")
    ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
    assert tables.span(*ends, signed=True) in evidence.seen_markdown(found)
    assert "L1, 12 questions × 3 seeds" in evidence.seen_markdown(found)


def test_runs_that_asked_other_questions_are_refused(runs):
    write_json(runs[1] / perception.ASKED, {**ASKED, "seed": 1})
    with pytest.raises(ValueError, match=r"seed1.*perception_asked\.json differs"):
        evidence.seen_over_seeds(runs, QUESTIONS, GROUPS)


def test_shares_and_agreement_are_those_of_the_rows(runs):
    given = (runs, tables.METHODS, QUESTIONS, 200, 0)
    found = evidence.coherence_over_seeds(*given)
    right = np.array([drawn("grpo", "consistent", seed) for seed in runs], float)
    row = one(found["shares"], model="grpo", measure="consistent")
    assert row["set"] == "levels" and row["share"] == right.mean()
    assert row["low"] == max(0, stats.mean_over_seeds(right)["low"])
    agreed = one(
        found["agreement"],
        model="grpo",
        second="base_reader",
        reasoning="own",
        first="consistent",
    )
    assert agreed["n"] == 36
    assert agreed["only_first"] + agreed["only_second"] == 3  # one question a seed
    text = evidence.agreement_sentence(found)
    assert f"| GRPO | own | 36 | {100 * 33 / 36:.1f} |" in text


def test_a_measure_that_a_seed_lacks_counts_only_shared_questions(runs):
    path = runs[2] / "coherence_sft_L1.jsonl"
    rows = reasoned("sft", 2)
    rows[3]["consistent"] = None
    write_jsonl(path, rows)
    found = evidence.coherence_over_seeds(runs, tables.METHODS, QUESTIONS, 50, 0)
    assert one(found["shares"], model="sft", measure="consistent")["n"] == 11
    assert one(found["shares"], model="grpo", measure="consistent")["n"] == 12


def test_readme_block_is_written_from_the_records(runs, tmp_path):
    seen = evidence.seen_over_seeds(runs, QUESTIONS, GROUPS)
    seen["left_out"] = {"frames_32": "a clip of 32 frames is refused"}
    coherent = evidence.coherence_over_seeds(runs, tables.METHODS, QUESTIONS, 50, 0)
    write_json(tmp_path / "perception.json", seen)
    write_json(tmp_path / "coherence.json", coherent)
    block = evidence.readme_block(tmp_path)
    assert block.startswith(evidence.BEGIN) and block.endswith(evidence.END)
    assert "Could not be asked: frames 32 (a clip of 32 frames is refused)." in block
    again = read_json(tmp_path / "coherence.json")
    assert evidence.coherence_markdown(again) in block


def test_models_whose_reasoning_was_not_read_everywhere_are_left_out(runs):
    (runs[0] / "coherence_care_L1.jsonl").write_text("")
    assert evidence.labels_of(runs.values()) == list(tables.METHODS)
