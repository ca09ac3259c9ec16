"""Could a verdict have come out otherwise? Records in which each claim holds, in which
its opposite does, in which there is no room for it, and in which it cannot be told.

Parametrized over claims.json: a new claim needs records that `Planted` can write."""

from collections import defaultdict
from functools import cache

import made_run
import numpy as np
import pytest
from made_run import answering

from lib.analysis import answers, claims
from lib.analysis.claims import CANNOT, OPPOSITE, SUPPORTED
from lib.analysis.terms import Records, Term
from lib.data.letters import judged
from lib.methods import LEVELS
from lib.records import write_json, write_jsonl

N = 480  # questions a set
predictions = cache(made_run.predictions)
WORDS = {  # of a reading: what counts as 1, and as 0
    "progress": ("right", "wrong"),
    "stated": ("right", "absent"),
    **dict.fromkeys(("consistent", "follows", "false_step"), ("yes", "no")),
    **dict.fromkeys(("overlap", "overlap_flawless"), (1.0, 0.0)),
}
FIELD = {"stated": "progress", "supported": "consistent"}
SHOWN = {"more_frames": "frames_16", "larger": "size_112x224"}
ENDS = {"least": 0.1, "most": 0.9}
ALL = [
    pytest.param(claim, part, id=f"{claim['number']} {part['name']}")
    for claim in claims.claims()
    for part in claim["parts"]
]
CHECKS = [
    pytest.param(*case.values, check, id=case.id)
    for case in ALL
    for check in case.values[1].get("shows_if", ())
]


class Planted:
    """Records in a folder where each term has the share that it is given."""

    def __init__(self, folder):
        self.folder, self.rows = folder, defaultdict(dict)

    def put(self, text, share):
        for term in Term.read(text).over(LEVELS):
            place = np.arange(N) // 4 * 0.618 + len(self.rows) * 0.37
            values = place % 1 < share  # in each domain as many
            if "sweep" in term.picks:
                self.sweep(term, share)
            elif term.picks.get("value") == "attention":
                self.attention(term, values)
            elif term.picks.get("value", "parsed") != "parsed":
                self.reading(term, values)
            else:
                self.answers(term, values)

    def answers(self, term, values):
        shown = term.picks.get("condition", "")
        ending = f".{SHOWN.get(shown, shown)}" if shown else ""
        for row, value in zip(predictions("base", term.set, N, 0), values, strict=True):
            row, style = answering(row, bool(value)), "think"
            if term.label == "base-direct":
                row["completion"], style = row["first_letter"], "direct"
            if not value and term.picks.get("value") == "parsed":
                row["completion"] = ""
            row |= judged(row["completion"], row["options"], row["gold"], style)
            file = f"predictions_{term.label}_{term.set}{ending}.jsonl"
            self.rows[file][row["id"]] = row

    def reading(self, term, values):
        name = term.picks["value"]
        field = FIELD.get(name, name)
        for i, value in enumerate(values):
            known = {"id": f"{term.set}/{i}", "judged": False, "judge": None}
            file = f"coherence_{term.label}_{term.set}.jsonl"
            row = self.rows[file].setdefault(known["id"], known)
            if name != "stated" or not value:
                row[field] = WORDS.get(name, WORDS["consistent"])[1 - int(value)]

    def attention(self, term, values):
        for i, value in enumerate(values):
            layers = [[float(value), 0.0, 1.0 - value]]
            row = made_run.attention_row(f"{term.set}/{i}", layers)
            self.rows[f"attention_{term.label}.jsonl"][row["id"]] = row

    def sweep(self, term, share):
        """Five seeds. Of the ends both, the other one alike if it is not given."""
        picks = {k: v for k, v in term.picks.items() if k not in ("sweep", "at")}
        if "bonus" in picks:
            picks = {"rl": " ".join(["care", *(f"{k}={v}" for k, v in picks.items())])}
        rows = self.rows[f"{term.picks['sweep']}.json"]
        for end in [*ENDS] if "at" in term.picks else [None]:
            varied = {"share": ENDS[end]} if end else picks
            for seed in range(5):
                key = (seed, *varied.items())
                row = rows.setdefault(key, {"seed": seed, **varied, "metrics": {}})
                own = row["metrics"].setdefault(term.label, {})
                if term.set in own and end != term.picks.get("at"):
                    continue
                right = np.random.default_rng([seed, len(rows)]).permutation(N)
                text = "".join("01"[int(i < share * N)] for i in right)
                own[term.set] = {"n": N, "correct": text}

    def records(self):
        for file, rows in self.rows.items():
            if file.endswith(".json"):
                write_json(self.folder / file, list(rows.values()))
                continue
            write_jsonl(self.folder / file, rows.values())
            sampling = {"max_frames": 8, "height": 56, "width": 112}
            settings = {"sampling": sampling}
            write_json((self.folder / file).with_suffix(".settings.json"), settings)
        if not any(file.endswith(".jsonl") for file in self.rows):
            self.put("base L1", 0.5)  # a run, beside the sweep
            return self.records()
        return Records(self.folder, answers.read(self.folder), self.folder)


def measured(folder, claim, part, shares, holds=True):
    """The part on records where terms of positive and negative weight have `shares`,
    and what it takes to show it holds, or does not."""
    planted = Planted(folder)
    for text in part["effect"]:
        planted.put(text.removeprefix("-"), shares[text.startswith("-")])
    for check in part.get("shows_if", ()):
        (text,), share = check["effect"], check["above"] + (0.2 if holds else -0.2)
        planted.put(text.removeprefix("-"), min(1.0, abs(share)))
    records = planted.records()
    return claims.judged(claim, part, claims.measured(claim, part, records, 400, 0))


@pytest.mark.parametrize("claim, part", ALL)
def test_a_claim_that_holds_is_supported(tmp_path, claim, part):
    row = measured(tmp_path, claim, part, (0.6, 0.4))
    assert row["verdict"] == SUPPORTED, row["sentence"]
    for way, goal in claims._goals(claim, part, row).items():
        assert row["planted"][way]["effect"] == pytest.approx(goal, abs=4 / row["n"])


@pytest.mark.parametrize("claim, part", ALL)
def test_a_claim_whose_opposite_holds_is_not(tmp_path, claim, part):
    row = measured(tmp_path, claim, part, (0.4, 0.6))
    assert row["verdict"] == OPPOSITE, row["sentence"]


@pytest.mark.parametrize("claim, part", ALL)
def test_a_claim_without_room_cannot_be_shown(tmp_path, claim, part):
    """The measure is at its end already."""
    end = float(not part["effect"][0].startswith("-"))
    row = measured(tmp_path, claim, part, (end, end))
    if row["above"] < 0:  # no worse than a bound: at its end it holds
        assert row["verdict"] == SUPPORTED
    else:
        assert row["verdict"] == CANNOT and "at most" in row["sentence"]


@pytest.mark.parametrize("claim, part, check", CHECKS)
def test_what_a_claim_takes_is_asked(tmp_path, claim, part, check):
    row = measured(tmp_path, claim, part, (0.6, 0.4), holds=False)
    before, after = check["else"].split("{}")
    assert row["verdict"] == CANNOT and f"{CANNOT}: {before}" in row["sentence"]
    assert after in row["sentence"]
