"""Claims on made records: verdicts on both sides of each boundary, words, missing."""

import re

import numpy as np
import pytest
from made_run import (
    answering,
    attention_row,
    one,
    reasoning_row,
    write_condition,
    write_run,
)

from lib import paths
from lib.analysis import answers, claims, compare, plots
from lib.analysis.__main__ import main
from lib.analysis.claims import CANNOT, MISSING, OPEN, OPPOSITE, SMALLER, SUPPORTED
from lib.analysis.terms import Records, Term
from lib.methods import LEVELS, VERDICTS
from lib.records import read_json, read_jsonl, write_json, write_jsonl

SAMPLES = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its rows without clusters, and a folder without sweeps."""
    folder = tmp_path_factory.mktemp("claims")
    run = write_run(folder / "run", n=400)
    records = Records(run, answers.read(run), folder / "none")
    return run, records, claims.table(records, SAMPLES)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", n=40, sets=LEVELS)


def measured(run, *numbers):
    """{number: row} of some claims; sweeps lie beside the run."""
    first = run[0] if isinstance(run, list) else run
    records = Records(run, answers.read(run), first.parent)
    return {row["number"]: row for row in claims.table(records, SAMPLES, only=numbers)}


def part_of(row, name=""):
    parts = [*row["parts"], *row["beside"]]
    return next(part for part in parts if name in ("", part["name"]))


def rows_of(run, label, level="L1"):
    return read_jsonl(run / f"predictions_{label}_{level}.jsonl")


def right(run, label, level="L1"):
    return {row["id"]: row["correct"] for row in rows_of(run, label, level)}


def write_sweep(folder, name, values, labels=("grpo", "sft"), n=200):
    """The record of a sweep of 3 seeds: `values` {value: accuracy}."""
    rows = []
    for value, ability in values.items():
        for seed in range(3):
            rng, metrics = np.random.default_rng([seed, round(1000 * ability)]), {}
            for label in labels:
                for level in LEVELS:
                    text = "".join("01"[int(r < ability)] for r in rng.random(n))
                    metrics.setdefault(label, {})[level] = {"n": n, "correct": text}
            row = {"run": f"{name}-{value}-{seed}", "seed": seed, "status": "finished"}
            rows.append(row | {name: value, "seconds": 1.0, "metrics": metrics})
    write_json(folder / f"{name}.json", rows)


def write_coherence(run, label, share, **fields):
    """Coherence with `share` of the answers supported."""
    for level in LEVELS:
        ids, rows = [row["id"] for row in rows_of(run, label, level)], []
        for i, key in enumerate(ids):
            says = "yes" if i < share * len(ids) else "absent"
            rows.append(reasoning_row(key, **{"consistent": says} | fields))
        write_jsonl(run / f"coherence_{label}_{level}.jsonl", rows)


def test_every_claim_has_a_row(made):
    _, _, rows = made
    numbers = [1, 2, 3, "4a", "4b", *range(5, 22)]
    assert [row["number"] for row in rows] == numbers
    for row in rows:
        assert row["claim"] and row["source"] and row["confirms"] and row["refutes"]
        assert row["url"].startswith("https://")
        assert row["needs"]["command"].startswith("python -m lib.")
        assert row["verdict"] in VERDICTS
        assert all(part["sentence"] for part in [*row["parts"], *row["beside"]])
    assert [row["number"] for row in rows if row["third_party"]] == [6]
    for claim in claims.claims():
        for part in [*claim["parts"], *claim.get("beside", [])]:
            terms = [Term.read(text) for text in part["effect"]]
            assert sum(term.weight for term in terms) == 0, part["name"]
            assert part["more"] != part["less"]
            for name in {t.picks["sweep"] for t in terms if "sweep" in t.picks}:
                recorded = f"lib.analysis sweep outputs/{name} --out outputs/reference"
                assert recorded in claim["needs"]["command"]
                assert (paths.ROOT / f"params/sweeps/{name}.yaml").exists()


def test_published_counts_give_the_printed_percentages():
    """All cells but the two that no count can give."""
    wrong = {cell["cell"]: cell["nearest"] for cell in claims.unreachable_cells()}
    assert wrong == {
        "base L3 domain=Hobbies": pytest.approx(32.20, abs=0.005),
        "sft general duration_group=3600": pytest.approx(36.35, abs=0.005),
    }
    for cell in claims._cells():
        if cell["table"] == "sbr" and cell["cell"] not in wrong:
            half = 0.501 / 10 ** cell["decimals"]  # one answer more is seen
            assert 100 * cell["share"] == pytest.approx(cell["printed"], abs=half)


@pytest.mark.parametrize(
    "low, high, size",
    [
        (0.0, 0.05, 0.02),
        (-0.03, 0.0, None),
        (-0.01, 0.02, 0.02),  # reaches the paper's
    ],
)
def test_an_end_that_lies_on_a_bound_decides_nothing(low, high, size):
    assert claims.verdict(low, high, 0.0, size) == OPEN


@pytest.mark.parametrize(
    "verdicts, every, any_of",
    [
        ([SUPPORTED, OPEN], OPEN, SUPPORTED),
        ([OPEN, SMALLER], SMALLER, OPEN),
        ([SMALLER, OPPOSITE], OPPOSITE, SMALLER),
        ([OPPOSITE, CANNOT], CANNOT, OPPOSITE),
        ([CANNOT, MISSING], MISSING, CANNOT),
        ([SUPPORTED, MISSING], MISSING, SUPPORTED),
    ],
)
def test_a_claim_of_several_parts(verdicts, every, any_of):
    assert claims.combined(verdicts) == every
    assert claims.combined(verdicts, needs_any=True) == any_of


def test_words_are_no_stronger_than_the_interval():
    """Over random effects, sizes and bounds each word has its condition, both ways."""
    rng = np.random.default_rng(0)
    part = {"more": "A ahead of B", "less": "B ahead of A"}
    for _ in range(3000):
        low, high = np.sort(rng.normal(0, 0.03, 2))
        above = rng.choice([0.0, 0.0, -0.0222])
        size = None if rng.random() < 0.3 else rng.normal(0.01, 0.03)
        row = {"effect": (low + high) / 2, "low": low, "high": high, "above": above}
        row |= {"paper": None if size is None else {"effect": size}, "cannot": ""}
        row |= {"borderline": False, "differs": None, "seeds": rng.choice([1, 5])}
        text = claims.sentence(part, row)
        excluded = size is not None and low <= above <= high < size
        smaller = low > above and size is not None and high < size
        assert text.startswith("A ahead of B") == (low > above)
        assert text.startswith("B ahead of A") == (high < above)
        assert text.startswith("smaller than published") == excluded
        assert text.startswith("not decided") == (low <= above <= high and not excluded)
        assert ("less than the paper's" in text) == smaller
        assert ("one training seed" in text) == (row["seeds"] == 1)
        said = claims.verdict(low, high, above, size)
        assert (said == SUPPORTED) == text.startswith("A ahead of B")
        assert (said == OPEN) == text.startswith("not decided")


def test_a_part_is_the_comparison_of_the_analysis(made):
    """The same contrast: same seed, same interval."""
    run, _, rows = made
    compared = {
        (r["a"], r["b"], r["set"]): r
        for r in compare.differences(compare.right(answers.read(run)), samples=SAMPLES)
    }
    for at, level in ((0, "L1"), (1, "L2"), (2, "L3"), (6, "general")):
        part, row = part_of(rows[at]), compared["grpo", "sft", level]
        assert part["effect"] == pytest.approx(row["difference"])
        assert (part["low"], part["high"]) == pytest.approx((row["low"], row["high"]))
        assert (part["n"], part["seeds"]) == (400, 1)


def judged(made, **numbers):
    """Claim 1 with other numbers of its part."""
    claim, row = one(claims.claims(), number=1), part_of(one(made[2], number=1))
    return claims.judged(claim, claim["parts"][0], row | numbers)


def test_what_was_not_tried_or_not_recognised_cannot_show(made):
    yes, no = part_of(one(made[2], number=1))["planted"].values()
    for planted in ({"yes": yes, "no": None}, {"yes": no, "no": yes}):
        assert judged(made, planted=planted)["verdict"] == CANNOT
    assert judged(made, planted={"yes": yes, "no": no})["verdict"] != CANNOT


@pytest.mark.parametrize(
    "low, high, end_error, borderline",
    [
        (0.0003, 0.03, 0.0, True),  # one of 500 x 5 answers is 0.04 points
        (0.0005, 0.03, 0.0, False),
        (0.0005, 0.03, 0.001, True),  # drawn
        (-0.03, -0.0003, 0.0, True),
        (-0.046, 0.0220, 0.0, True),  # the published size is 2.22 points
        (-0.046, 0.0210, 0.0, False),
        (0.01, 0.0222, 0.0, False),  # decides nothing there
    ],
)
def test_borderline_within_the_error_of_an_end(made, low, high, end_error, borderline):
    numbers = {"low": low, "high": high, "end_error": end_error, "n": 500, "seeds": 5}
    row = judged(made, **numbers, error=0.01)
    assert row["borderline"] == borderline == ("borderline" in row["sentence"])


def test_an_end_of_small_shares_is_not_borderline_for_few_questions(made):
    """Attention on 40 questions, +2.1 to +2.7 points: one answer of 40 is 2.5."""
    numbers = {"low": 0.021, "high": 0.027, "end_error": 4e-5, "n": 40, "seeds": 1}
    assert not judged(made, **numbers, error=0.0016)["borderline"]
    numbers |= {"low": -0.0015, "high": 0.0045}
    assert judged(made, **numbers, error=0.0016)["borderline"]


@pytest.mark.parametrize("low, high, same", [(0.03, 0.05, True), (0.10, 0.12, False)])
def test_more_than_the_paper_counts_the_errors_of_both(made, low, high, same):
    row = judged(made, low=low, high=high, effect=(low + high) / 2)
    assert (row["differs"]["low"] <= 0) == same
    assert "more than the paper's +2.2" in row["sentence"]
    assert ("it need not differ" in row["sentence"]) == same


def test_behind_names_the_discordant_questions(made):
    run, records, _ = made
    grpo, sft = (right(run, model) for model in ("grpo", "sft"))
    found = claims.behind(records, 1)
    assert {*found["for"]} == {key for key in grpo if grpo[key] > sft[key]}
    assert {*found["against"]} == {key for key in grpo if grpo[key] < sft[key]}
    domain = claims.behind(records, "4a")["for"]
    assert domain and all(int(key.removeprefix("L3/")) % 4 == 0 for key in domain)


@pytest.mark.parametrize(
    "number, file, command",
    [
        (7, "data_efficiency.json", "params/sweeps/data_efficiency.yaml"),
        (8, "coherence_grpo_L1.jsonl", "params/mini.yaml"),
        (10, "coherence_grpo_L1.jsonl", "params/mini.yaml"),
        (12, "reward.json", "params/sweeps/reward.yaml"),
        (15, "predictions_care_L1.jsonl", "params/sweeps/mini_seeds.yaml"),
        (18, "care.json", "params/sweeps/care.yaml"),
    ],
)
def test_missing_records_are_named_with_the_command(made, number, file, command):
    row = one(made[2], number=number)
    assert row["verdict"] == MISSING
    assert file in row["sentence"] and command in row["sentence"]


def test_without_video_the_same_questions_count(run):
    """A condition that was asked of a part: with the video, only that part counts."""
    gain = 0
    for model, way in (("grpo", 1), ("base", -1)):
        rows = rows_of(run, model)[:24]
        gain += way * np.mean([row["correct"] for row in rows])
        blind = [answering(row, False) for row in rows]
        write_condition(run, model, "L1", "no_video", blind)
    part = part_of(measured(run, 8)[8], "gain with less without video")
    assert part["n"] == 24 and part["sets"] == ["L1"]
    assert part["effect"] == pytest.approx(gain)


def test_more_frames_means_more_than_the_models_see(run):
    for seen, verdict in ((8, SUPPORTED), (16, MISSING)):
        for frames in (4, 16):
            better = [answering(row, frames == 16) for row in rows_of(run, "grpo")]
            write_condition(run, "grpo", "L1", f"frames_{frames}", better, seen)
        row = measured(run, 11)[11]
        assert row["verdict"] == verdict
        assert row["parts"][1]["verdict"] == MISSING  # no larger pictures, one will do
        files = [path.rsplit("/")[-1] for path in row["parts"][0]["records"]]
        expected = ["predictions_grpo_L1.frames_16.jsonl", "predictions_grpo_L1.jsonl"]
        assert files == (expected if seen == 8 else [])


def test_a_seed_that_was_asked_more_counts_alone_there(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed, n=8) for seed in range(3)]
    write_condition(runs[1], "grpo", "L1", "no_video", rows_of(runs[1], "grpo"))
    found = Records(runs, answers.read(runs), tmp_path)
    assert {*found.rows(Term.read("grpo L1")).seed} == {0, 1, 2}
    assert {*found.rows(Term.read("grpo L1 condition=no_video")).seed} == {1}


def test_a_judge_counts_where_the_truth_is_not_known(run):
    for label in ("sft", "grpo"):
        said = {"consistent": None, "judged": True, "judge": label == "sft"}
        write_coherence(run, label, 0, **said)
    part = part_of(measured(run, 10)[10])
    assert (part["measure"], part["effect"]) == ("judge", pytest.approx(1))
    write_coherence(run, "grpo", 1)
    with pytest.raises(ValueError, match="consistent and judge"):
        measured(run, 10)


def test_attention_is_read_by_question(run):
    for label, visual in (("grpo", 0.3), ("sft", 0.2)):
        layers = [[visual - 0.05, 0.05, 1 - visual]] * 2
        rows = [attention_row(f"L1/{i}", layers) for i in range(9)]
        rows.append({"id": "L1/9", "left_out": "the completion is empty"})
        write_jsonl(run / f"attention_{label}.jsonl", rows)
    part = part_of(measured(run, 8)[8], "attention to pictures, GRPO − SFT")
    assert part["effect"] == pytest.approx(0.1) and part["n"] == 9


def test_ends_of_a_sweep(run, tmp_path):
    write_sweep(tmp_path, "label_noise", {0.0: 0.8, 0.2: 0.7, 0.4: 0.5})
    write_sweep(tmp_path, "kl", {0.0: 0.6, 0.1: 0.599})
    rows = measured(run, 14, 17)
    noise, kl = part_of(rows[14]), part_of(rows[17])
    assert noise["effect"] == pytest.approx(0.3, abs=0.05)
    assert (noise["verdict"], noise["seeds"], noise["n"]) == (SUPPORTED, 3, 600)
    assert kl["low"] < 0 < kl["high"]
    assert noise["records"] == [str(tmp_path / "label_noise.json")]
    swept = Records(run, answers.read(run), tmp_path)
    assert claims.behind(swept, 14)["for"]


def test_variants_of_a_sweep_are_found_by_name(run, tmp_path):
    write_sweep(tmp_path, "care", {"sparse": 0.8, "dense": 0.5}, labels=("care",))
    rows = read_json(tmp_path / "care.json")
    for row in rows:
        row["rl"] = f"care bonus={row.pop('care')} reference=ema margin=0.01"
    write_json(tmp_path / "care.json", rows)
    found = measured(run, 18, 19)
    assert (found[18]["verdict"], found[19]["verdict"]) == (SUPPORTED, MISSING)
    said = found[19]["sentence"]
    assert "care.json with" in said and "bonus=sparse reference=frozen" in said


def test_what_a_sweep_lacks_is_missing_and_not_zero(run, tmp_path):
    """Unfinished runs, a second varied value, other questions."""
    write_sweep(tmp_path, "kl", {0.0: 0.6, 0.1: 0.55})
    whole = read_json(tmp_path / "kl.json")
    unfinished = [{k: v for k, v in row.items() if k != "metrics"} for row in whole]
    other = [row | {"lr": row["kl"]} for row in whole]
    for rows, said in (
        (whole[:3] + unfinished[3:], "kl.json that varies one thing"),
        (unfinished, "kl.json with a finished run"),
        (other, "kl.json that varies one thing"),
        (whole + whole, "kl.json with one run a seed"),
    ):
        write_json(tmp_path / "kl.json", rows)
        row = measured(run, 17)[17]
        assert row["verdict"] == MISSING and said in row["sentence"]
    for model in whole[0]["metrics"].values():
        model["L1"]["correct"] += "1"
    write_json(tmp_path / "kl.json", whole)
    with pytest.raises(ValueError, match="are not of the same questions"):
        measured(run, 17)


def test_a_sweep_of_another_base_is_missing(tmp_path):
    run = write_run(tmp_path / "run", n=200)
    write_json(run / "manifest.json", {"04_eval": {"base": "new"}})
    write_sweep(tmp_path, "kl", {0.0: 0.6, 0.1: 0.55})
    rows = read_json(tmp_path / "kl.json")
    for base, missing in ((None, True), ("old", True), ("new", False)):
        write_json(tmp_path / "kl.json", [row | {"base": base} for row in rows])
        row = measured(run, 17)[17]
        assert (row["verdict"] == MISSING) == missing
        assert missing == ("kl.json of runs on the same base, new" in row["sentence"])


def test_several_seeds_carry_seeds_and_questions(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed, n=40) for seed in range(5)]
    part = part_of(measured(runs, 3)[3])
    assert (part["seeds"], part["n"], len(part["records"])) == (5, 40, 10)
    assert part["varies"] == "seeds and questions"
    assert "one training seed" not in part["sentence"]


@pytest.mark.parametrize("text", ["grpo", "grpo L1 no_video", "", "grpo L1 value="])
def test_what_is_no_term(text):
    with pytest.raises(ValueError, match="no term"):
        Term.read(text)


def test_terms_with_spaces_in_a_value():
    term = Term.read("-sft L3 domain=Daily life condition=no_video")
    assert (term.weight, term.label, term.set) == (-1, "sft", "L3")
    assert term.picks == {"domain": "Daily life", "condition": "no_video"}


def test_the_figure_holds_every_number(made):
    _, _, rows = made
    ax = plots.claims(rows)
    at = [line.get_xdata() for line in ax.lines]
    drawn = {round(own[0], 6) for own in at if len(own) == 1}
    names = " ".join(label.get_text() for label in ax.get_yticklabels())
    for row in rows:
        assert re.search(rf"\b{row['number']}\b", names)
        for part in row["parts"] if row["table"] else ():
            assert part["name"] in names
            for number in (part, part["paper"] or {}):
                if number.get("effect") is not None:
                    assert round(100 * number["effect"], 6) in drawn


def test_some_claims_are_measured_anew_and_the_others_stay(tmp_path, capsys):
    """As after a sweep, whose claims need none of the runs behind the others."""
    run, other, out = (tmp_path / name for name in ("a", "b", "out"))
    for seed, path in enumerate((run, other)):
        state = read_json(write_run(path, n=20, seed=seed) / "pipeline.json")
        del state["parameters"]["data_dir"]
        write_json(path / "pipeline.json", state)
        with pytest.raises(ValueError, match=r"pipeline.json: .* has no data_dir"):
            claims.write_all([path], out)
        state["parameters"] |= {"data_dir": "", "general_dir": ""}  # no annotations
        write_json(path / "pipeline.json", state)
    with pytest.raises(FileNotFoundError, match=r"claims.json.*without --only"):
        claims.write_all([run], out, [1])
    main(["claims", str(run), "--out", str(out)])
    written = {"claims.json", "claims.md", "claims.png", "controls.md"}
    tables = {path.name for path in out.glob("*.csv")}
    assert {"claims.csv", "claims_parts.csv"} <= tables
    assert {path.name for path in out.iterdir()} == written | tables
    assert "| 21 |" in capsys.readouterr().out
    before = read_json(out / "claims.json")
    main(["claims", str(other), "--only", "1", "--out", str(out)])
    after = read_json(out / "claims.json")
    assert after[1:] == before[1:] and after[0] != before[0]
    assert after[0] == claims.table(Records(other, answers.read(other)), only=[1])[0]
    after[5]["claim"] = after[0]["sentence"] = "something else"
    after[5]["verdict"] = after[1]["parts"][0]["verdict"] = SUPPORTED
    after[2]["parts"][0]["terms"] = ["grpo L9", "-sft L9"]
    write_json(out / "claims.json", after)
    assert main(["claims", "--out", str(out)]) == 0
    anew = read_json(out / "claims.json")
    assert anew[0]["sentence"] != "something else" and anew[1] == before[1]
    assert anew[5] == before[5] and anew[2]["verdict"] == MISSING
    with pytest.raises(SystemExit):
        main(["claims", str(other), "--only", "22", "--out", str(out)])
    assert "invalid choice: 22" in capsys.readouterr().err
