"""Could a verdict have come out otherwise? Records in which each claim holds, in which
its opposite does, in which there is no room for it, and in which it cannot be told.

Parametrized over claims.json: a new claim needs answers that `Planted` can make."""

from collections import defaultdict

import made_run
import numpy as np
import pandas as pd
import pytest

from lib.analysis import claims
from lib.analysis.claims import CANNOT, OPPOSITE, SUPPORTED
from lib.analysis.terms import Records, Term
from lib.methods import LEVELS, SEEN
from lib.records import write_json

N = 480  # questions a set
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
    """Answers, and sweeps in a folder; each term has the share that it is given."""

    def __init__(self, folder):
        self.folder, self.parts, self.sweeps = folder, {}, defaultdict(dict)

    def put(self, text, share):
        for term in Term.read(text).over(LEVELS):
            if "sweep" in term.picks:
                self.sweep(term, share)
            else:
                self.answers(term, share)

    def answers(self, term, share):
        """In each domain as many."""
        measure = term.picks.get("value", "correct").replace("supported", "consistent")
        shown = term.picks.get("condition", SEEN)
        facts = {"model": term.label, "set": term.set, "measure": measure, "seed": 0}
        facts["condition"] = SHOWN.get(shown, shown)
        i = np.arange(N)
        place = i // 4 * 0.618 + len(self.parts) * 0.37
        own = pd.DataFrame({"id": i.astype(str), "value": 1.0 * (place % 1 < share)})
        own["domain"] = np.array(made_run.DOMAINS)[i % 4]
        own["duration_group"] = np.where(i % 2, 60, 15)
        self.parts[*facts.values()] = own.assign(video=own.id, **facts)

    def sweep(self, term, share):
        """Five seeds. Of the ends both, the other one alike if it is not given."""
        picks = {k: v for k, v in term.picks.items() if k not in ("sweep", "at")}
        if "bonus" in picks:
            picks = {"rl": " ".join(["care", *(f"{k}={v}" for k, v in picks.items())])}
        rows = self.sweeps[term.picks["sweep"]]
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
        for name, rows in self.sweeps.items():
            write_json(self.folder / f"{name}.json", [*rows.values()])
        if not self.parts:
            self.put("base L1", 0.5)  # a run, beside the sweep
        return Records(self.folder, pd.concat(self.parts.values()), self.folder)


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
