"""README: its numbers stand in committed records, its links and commands work."""

import re
import shlex
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from lib.analysis import answers, compare, frontier, readme, stats
from lib.evaluate import tables
from lib.methods import LEVELS, VERDICTS
from lib.paths import ROOT
from lib.records import read_json

REFERENCE = ROOT / "outputs" / "reference"
SEEDS = readme.of_records(readme.read_reference(REFERENCE / "mini_seeds"))
STEPS, UNSEEN = "sft-steps", "demonstrations_unseen"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())  # whatever its lines
COMMANDS = sorted(
    {*re.findall(r"^(?:sbatch \S+ )?(python -m lib\.[^#\n]+)", TEXT, re.M)}
)


def test_it_is_short_enough_to_read():
    assert len(TEXT.splitlines()) <= 250


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT))
def test_links_lead_to_files(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    "path",
    sorted({*re.findall(r"`((?:lib|tests|params|outputs/reference)/[^`\s]+)`", TEXT)}),
)
def test_named_files_are_there(path):
    assert (ROOT / path).exists()


def test_folders_name_the_file_to_begin_with():
    rows = re.findall(r"^\| `(lib/\w+/)` \| [^|]+ \| ([^|]+) \|$", TEXT, re.M)
    assert len(rows) == 8
    for folder, begin in rows:
        for name in re.findall(r"`(\w+\.py)`", begin):
            assert (ROOT / folder / name).exists(), folder + name


@pytest.mark.parametrize("command", COMMANDS)
def test_doors_know_the_words_of_commands(command):
    _, _, module, *words = shlex.split(command)
    known = words[:1] if words and words[0].isalpha() else []
    shown = subprocess.run(
        [sys.executable, "-m", module, *known, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.stdout


def test_minutes_are_those_of_the_committed_run():
    run = read_json(REFERENCE / "mini" / "mini.json")
    for notebook, seconds in run["seconds"].items():
        assert re.search(rf"`{notebook}` .* \| {seconds / 60:.1f} \|", TEXT)
    minutes = f"{sum(run['seconds'].values()) / 60:.0f} minutes"
    held = f"{max(run['peak_memory_gib'].values()):.1f} GiB"
    assert f"| {minutes}, {held} |" in TEXT
    assert f"compares base, SFT and GRPO: {minutes} on" in TEXT


def test_sentences_below_the_table_are_those_of_the_records():
    right = {
        (row["model"], row["set"]): row["mean"] for row in readme.accuracies(SEEDS)
    }

    def gain(model, name):
        return right[model, name] - right["base", name]

    said = f"ends {-100 * gain('sft', 'general'):.0f} points below"
    for label, words in (("grpo", "brings {} of GRPO's gain"), ("sft", "{} of SFT's")):
        shares = [gain("base-begun", n) / gain(label, n) for n in ("L1", "L2", "L3")]
        ends = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
        assert words.format(ends) in TEXT
    (seen,) = (
        100 * row["share"]
        for row in read_json(REFERENCE / "evidence" / "coherence.json")["shares"]
        if (row["model"], row["set"], row["measure"]) == ("grpo", "levels", "progress")
    )
    assert said in TEXT and f"only {seen:.0f} % of" in TEXT


def test_sft_on_steps_is_told_as_it_is():
    rows = {row["set"]: row for row in readme.differences(SEEDS) if row["a"] == STEPS}
    assert {
        name for name, row in rows.items() if not row["low"] <= 0 <= row["high"]
    } == {*("L1", "L2", "general")}
    one = {name: tables.percent(row["difference"]) for name, row in rows.items()}
    assert f"SFT is ahead, by {one['L1']} points on L1 and {one['L2']} on L2" in FLAT
    assert f"On L3 both are level ({one['L3']})" in FLAT
    assert f"it is {one['general'][1:]} points behind GRPO" in FLAT


def sweep(name):
    return answers.of_sweep(read_json(REFERENCE / "sweeps" / f"{name}.json"))


def gap(frame, first, second, sets=LEVELS):
    """Points between two selections, mean over sets; whether that is decided."""
    terms = [
        (sign / len(sets), {**own, "set": name})
        for sign, own in ((1, first), (-1, second))
        for name in sets
    ]
    found = compare.contrast(frame, terms, samples=100)
    return round(100 * found["effect"]), not found["low"] <= 0 <= found["high"]


def test_wrong_labels_are_told_as_they_are():
    frame = sweep("label_noise")
    sft, grpo = (
        {noise: {"model": m, "label_noise": noise} for noise in (0.0, 0.2, 0.4)}
        for m in ("sft", "grpo")
    )
    lost, decided = gap(frame, grpo[0.0], grpo[0.4])
    assert decided and f"40 % of them cost GRPO {lost} points" in FLAT
    assert not gap(frame, sft[0.0], sft[0.4])[1]  # "shows no loss"
    assert not gap(frame, sft[0.2], grpo[0.2])[1]
    ahead, decided = gap(frame, sft[0.4], grpo[0.4])
    assert not decided and f"with 40 % SFT by {ahead}, not decided" in FLAT


def test_grpo_after_sft_is_told_as_it_is():
    alone, after = sweep("label_noise"), sweep("then")
    alone = alone[alone.label_noise == 0].assign(demonstrations_false=-1.0)
    frame = pd.concat([alone, after], ignore_index=True).astype({"set": str})
    frame = frame.astype({"model": str})
    truth, false, none = (
        {"model": "grpo", "demonstrations_false": x} for x in (0.0, 1.0, -1.0)
    )
    behind, more = gap(frame, none, truth), gap(frame, none, false)
    told = f"is {behind[0]} points behind GRPO alone (mean of the levels), after false"
    assert f"{told} reasoning {more[0]}." in FLAT
    assert behind[1] and more[1] and gap(frame, none, truth, ["general"])[1]
    for after in (truth, false):  # "nothing of the general set"
        gained, decided = gap(frame, after, after | {"model": "sft"}, ["general"])
        assert gained <= 0 and not decided


def test_decisions_are_those_of_the_record():
    rows = read_json(REFERENCE / "evidence" / "coherence.json")["decisions"]
    own = {
        (row["model"], row["decision"]): f"{100 * row['share']:.0f} %"
        for row in rows
        if row["set"] == "L1"
    }
    for decision, said in (
        ("says what was done", "{} say what was done (base {})"),
        ("says it truly and in full", "{} of these rightly (base {})"),
        (
            "gives that step's letter",
            "{} give the letter of the step that they come to",
        ),
    ):
        assert said.format(*(own[m, decision] for m in ("grpo", "base"))) in FLAT


def test_the_map_is_told_as_it_is():
    found = frontier.cells(read_json(REFERENCE / "map" / "map.json"))
    gaps = {x: {"L1": [], "L3": []} for x in (0.0, 1.0)}
    rows = frontier.mapped(found)
    for cell in (cell for kind, row in rows if kind == "false" for cell in row):
        assert min(frontier.means(cell).values()) > 0  # "every row of false reasoning"
        for name, gap in frontier.means(cell).items():
            gaps.get(cell["x"], {name: []})[name].append(100 * gap)
    ends = {
        (x, name): f"{min(own):.0f} to {max(own):.0f}"
        for x, by in gaps.items()
        for name, own in by.items()
    }
    assert f"{ends[0, 'L1']} points behind on L1 and {ends[0, 'L3']} on L3" in FLAT
    assert f"{ends[1, 'L1']} and {ends[1, 'L3']}." in FLAT
    for row in frontier.crossings(found):
        if row["panel"] in ("L1", "L3") and row["kind"] == "false":
            assert row["crossing"] == row["high"] == -float("inf")  # "rows are not"
    whole = [cell for cell in found if len(cell["L1"]) == 3 and not cell[UNSEEN]]
    truth = [cell for cell in whole if cell["demonstrations_by"] == "truth"]
    assert len(truth) == 5 and {len(cell["L1"][0]) for cell in truth} == {2000}
    for values in (np.array(cell[name]) for cell in truth for name in ("L1", "L3")):
        assert stats.contrast([values])["low"] > 0  # "every interval is above zero"
    ((_, row),) = (own for own in rows if own[0] == "unseen")
    x = {cell["x"]: 100 * frontier.means(cell)["L1"] for cell in row}
    assert f"60 % of the demonstrations it puts SFT {x[0.6]:.0f} points behind" in FLAT
    assert f"in all of them SFT is {-x[1.0]:.0f} ahead" in FLAT


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_costs_of_one_gpu_are_those_measured(size):
    found = read_json(REFERENCE / "bench_cost.json")["costs"][size]
    assert "H100" in found["device"]
    took = {row["stage"]: row["seconds"] for row in found["rows"]}
    step = took["rollout"] + took["reference"] + took["update"]
    said = (
        f"H100: SFT {took['SFT']:.1f} s a demonstration, GRPO {step:.1f} s a step, "
        f"{took['evaluation']:.1f} s a question"
    )
    assert re.search(rf"single_gpu_{size}.yaml.*{re.escape(said)}", TEXT)


def test_hours_of_a_whole_rung_are_those_of_the_dry_run():
    command = [sys.executable, "-m", "lib.run", "params/single_gpu_2b.yaml"]
    command += ["--dry-run", "--card", "H100"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    hours = {k: float(h) for k, h in re.findall(r"time +(\w+): ([\d.]+) h", shown)}
    assert {*hours} == {"SFT", "GRPO", "evaluation"}
    said = f"{sum(hours.values()):.0f} hours with 2B, {hours['evaluation']:.0f} of them"
    assert said in FLAT


def test_verdicts_are_counted_right():
    claims = read_json(REFERENCE / "claims" / "claims.json")
    count = Counter(claim["verdict"] for claim in claims)
    said = ", ".join(f"{count[word]} {word}" for word in VERDICTS if count[word])
    assert f"{len(claims)} claims" in TEXT and said in FLAT


def test_tallies_are_those_of_the_benches():
    kills = read_json(REFERENCE / "bench_kills.json")
    assert f"{kills['equal']} of {kills['kills']} runs that were killed" in FLAT
    tampering = read_json(REFERENCE / "bench_tampering.json")
    assert tampering["noticed"] == tampering["tamperings"]
    assert f"Of {tampering['tamperings']} random changes" in FLAT
