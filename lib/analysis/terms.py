"""What a claim's terms mean: selections of the answers, and the contrast of them.

>>> records = Records("outputs/mini", answers.read("outputs/mini"))
>>> terms = [Term.read("grpo L1"), Term.read("-sft L1")]
>>> records.contrast(terms, samples=10_000, seed=0)["effect"]
-0.004
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import pandas as pd

from lib.analysis import answers, compare
from lib.analysis.answers import Folder
from lib.analysis.compare import Missing
from lib.methods import LEVELS, SEEN
from lib.paths import ROOT, resolve, told
from lib.records import read_json

FIELDS = {"domain": str, "duration_group": float}  # of a question
MORE = {"more_frames": "frames_", "larger": "size_"}
Terms = Sequence["Term"]


def _turned(own: pd.DataFrame, to: float, share: float) -> pd.DataFrame:
    """Answers [seeds, questions] of which this share of those unlike `to` is `to`."""
    unlike = (own != to).to_numpy()
    order = np.random.default_rng(0).random(own.shape) + ~unlike
    place = order.argsort(axis=1).argsort(axis=1)
    return own.mask(place < share * unlike.sum(axis=1, keepdims=True), to)


@dataclass(frozen=True)
class Term:
    """One mean over the questions of a set, with its weight in a contrast.

    Its text is a label, a set, and what narrows it down; the records that it reads:

        grpo L1                       predictions_grpo_L1.jsonl
        grpo L3 domain=Work           its rows with that field
        grpo L1 condition=no_video    predictions_grpo_L1.no_video.jsonl; the other
                                      terms then count the same questions (more_frames,
                                      larger: the most that was asked beyond what the
                                      models see anyway)
        grpo L1 value=parsed          another measure of the same file
        grpo L1 value=consistent      coherence_grpo_L1.jsonl: a measure of it;
                                      `supported` is `consistent` where the truth is
                                      known, else `judge`
        grpo L1 value=attention       attention_grpo.jsonl: the attention of its tokens
                                      that rests on video and still, mean over layers
        grpo L1 sweep=kl at=least     <sweeps>/kl.json: the runs with the least (most)
                                      of what the sweep varies, or with one named as
                                      name=value, an option of its `rl` line included

    The set `levels` is the mean over L1, L2 and L3, as far as there are records."""

    weight: float
    label: str
    set: str
    picks: dict[str, str]

    @classmethod
    def read(cls, text: str) -> "Term":
        """A term from its text, "-sft L3 domain=Daily life": with a minus its weight is
        -1. ValueError for another text."""
        found = re.fullmatch(r"(-?)(\S+) (\S+)((?: \w+=[^=]+)*)", text)
        if not found:
            raise ValueError(f"{text!r} is no term: a label, a set, then name=value")
        picks = re.findall(r" (\w+)=((?:[^= ]| (?!\w+=))+)", found[4])
        return cls(-1.0 if found[1] else 1.0, found[2], found[3], dict(picks))

    def over(self, sets: Sequence[str]) -> list["Term"]:
        """The term itself, or for `levels` one a set with its share of the weight."""
        if self.set != "levels":
            return [self]
        return [replace(self, set=s, weight=self.weight / len(sets)) for s in sets]

    def __str__(self) -> str:
        picks = [f"{name}={value}" for name, value in self.picks.items()]
        return " ".join([self.label, self.set, *picks])


class Records:
    """The records of one run, or of several that differ in nothing but their seed."""

    def __init__(
        self,
        runs: Folder | Sequence[Folder],
        frame: pd.DataFrame,
        sweeps: Folder = ROOT / "outputs/reference/sweeps",
    ):
        self.runs = [*answers.by_seed(runs).values()]
        self.answers, self.sweeps = frame, resolve(sweeps)
        self._swept: dict[str, pd.DataFrame] = {}

    def contrast(
        self,
        terms: Terms,
        samples: int,
        seed: int,
        goals: Callable[[dict], Mapping[str, float]] | None = None,
    ) -> dict:
        """`compare.contrast` of the terms, with `measure`, what was read, and `least`
        and `most` that it could be with other answers behind the first term alone.
        Missing if a term has no records.

        `planted` has, for each of the goals {name: effect}, the effect and ends of
        edited answers: as many behind the first term are turned, in each seed the same
        share, as it takes to come to the goal; None where all of them are too few."""
        cells, chosen = self._chosen(terms)
        measures = {self._measure(term) for term in terms}
        if len(measures) > 1:
            raise ValueError(
                f"{terms[0]} and {terms[-1]} are measured differently: "
                f"{' and '.join(sorted(measures))}; make both files of one kind"
            )
        found = compare.contrast(cells, chosen, samples, seed)
        found |= {"measure": measures.pop(), "planted": {}}
        parts = compare.matrices(cells, chosen)
        first = []
        for term, (weight, where) in zip(terms, chosen, strict=True):
            if replace(term, set=terms[0].set) == terms[0]:
                part, own = parts[term.set], cells.at(where)
                first.append((weight, where, own.loc[part.index, part.columns]))
        sizes = [abs(weight) * own.to_numpy().mean() for weight, _, own in first]
        ends = sum(sizes), sum(abs(weight) for weight, *_ in first) - sum(sizes)
        down, up = ends if terms[0].weight > 0 else ends[::-1]
        found |= {"least": found["effect"] - down, "most": found["effect"] + up}
        for name, goal in goals(found).items() if goals else ():
            way = goal - found["effect"]
            share = abs(way) / ((up if way > 0 else down) or 1e-9)
            edited = copy(cells)
            for weight, where, own in first:
                place = tuple(where[key] for key in cells.by)
                edited[place] = _turned(own, float(weight * way > 0), share)
            planted = compare.contrast(edited, chosen, samples, seed)
            kept = {key: planted[key] for key in ("effect", "low", "high")}
            found["planted"][name] = kept if share <= 1 else None
        return found

    def pulls(self, terms: Terms) -> dict[str, float]:
        """{question id: what it adds to the contrast, mean over seeds}."""
        parts = compare.matrices(*self._chosen(terms)).values()
        return {key: pull for part in parts for key, pull in part.mean().items()}

    def _chosen(self, terms: Terms) -> tuple[compare.Cells, compare.Terms]:
        """The rows of all terms, numbered, and the terms for lib/analysis/compare.py.
        ValueError where questions differ that were not asked of a part on purpose."""
        rows = [self.rows(term).assign(term=i) for i, term in enumerate(terms)]
        frame = pd.concat(rows, ignore_index=True).astype({"set": str})
        partly = any({"condition", "value"} & term.picks.keys() for term in terms)
        asked = frame.groupby(["set", "term", "seed"]).id.agg(frozenset)
        if not partly and (asked.groupby("set").nunique() > 1).any():
            raise ValueError(
                f"{' and '.join(map(str, terms))} are not of the same questions: "
                "evaluate them again"
            )
        where = [{"term": i, "set": term.set} for i, term in enumerate(terms)]
        weights = [term.weight for term in terms]
        cells = compare.Cells(frame, ("term", "set"))
        return cells, list(zip(weights, where, strict=True))

    def rows(self, term: Term) -> pd.DataFrame:
        """The answers that a term means; Missing names the file without any."""
        frame, where = self.answers, {"model": term.label, "set": term.set}
        if "sweep" in term.picks:
            frame, wanted = self._sweep(term)
            where |= wanted
        else:
            where |= {"measure": self._measure(term), "condition": self._shown(term)}
            picked = [name for name in FIELDS if name in term.picks]
            where |= {name: FIELDS[name](term.picks[name]) for name in picked}
        found = compare.select(frame, where)
        if found.empty:
            there = any(path.exists() for path in self._files(term))
            said = f" with {term}" if term.picks and there else ""
            raise Missing(self.file(term) + said)
        if found.duplicated(["seed", "id"]).any():
            raise Missing(f"{self.file(term)} with one run a seed for {term}")
        return found[["seed", "set", "id", "video", "value"]]

    def file(self, term: Term) -> str:
        """The name of the file that a term is read from."""
        if "sweep" in term.picks:
            return f"{term.picks['sweep']}.json"
        if term.picks.get("value") == "attention":
            return f"attention_{term.label}.jsonl"
        if term.picks.get("value", "correct") not in answers.ASKED:
            return f"coherence_{term.label}_{term.set}.jsonl"
        shown = self._shown(term)
        ending = "" if shown == SEEN else f".{shown}"
        return f"predictions_{term.label}_{term.set}{ending}.jsonl"

    def _files(self, term: Term) -> list:
        folders = [self.sweeps] if "sweep" in term.picks else self.runs
        return [folder / self.file(term) for folder in folders]

    def paths(self, terms: Terms) -> list[str]:
        """The files behind some terms, from the root where they lie below it."""
        found = {path for term in terms for path in self._files(term) if path.exists()}
        return sorted(map(told, found))

    def terms(self, texts: Sequence[str]) -> list[Term]:
        """The terms of these texts, `levels` as the levels with records of all that are
        spread; L1, to be missed, if there is none."""
        terms = [Term.read(text) for text in texts]
        spread = [term for term in terms if term.set == "levels"]
        levels = []
        for name in LEVELS:
            with suppress(Missing):
                for term in spread:
                    self.rows(replace(term, set=name))
                levels.append(name)
        return [one for term in terms for one in term.over(levels or LEVELS[:1])]

    def _measure(self, term: Term) -> str:
        value = term.picks.get("value", "correct")
        if value != "supported":
            return value
        own = {"model": term.label, "set": term.set, "measure": "consistent"}
        known = not compare.select(self.answers, own).empty
        return "consistent" if known else "judge"

    def _shown(self, term: Term) -> str:
        """The condition of a term; of more frames, or larger ones, the most asked."""
        name = term.picks.get("condition", SEEN)
        if name not in MORE:
            return name
        file, usual = f"predictions_{term.label}_{term.set}", 0
        for path in (run / f"{file}.settings.json" for run in self.runs):
            seen = read_json(path, {"sampling": {}})["sampling"]
            size = seen.get("height", 0) * seen.get("width", 0)
            usual = max(usual, seen.get("max_frames", 0) if "frames" in name else size)
        own = compare.select(self.answers, {"model": term.label, "set": term.set})
        asked = {
            prod(int(number) for number in re.findall(r"\d+", shown)): shown
            for shown in own.condition.unique()
            if shown.startswith(MORE[name])
        }
        most = max(asked, default=0)
        if most <= usual:
            what = "frames" if name == "more_frames" else "pixels"
            file = f"{file}.{MORE[name]}*.jsonl"
            raise Missing(f"{file} with more {what} than the models see")
        return asked[most]

    def _sweep(self, term: Term) -> tuple[pd.DataFrame, dict[str, str]]:
        """The finished runs of a sweep as answers, what it varies and the options of
        its `rl` line as columns, and {column: value} of those that a term means."""
        file = self.file(term)
        path = self.sweeps / file
        if not path.exists():
            raise Missing(file)
        if file not in self._swept:
            rows, base = [], answers.base_of(self.runs[0])
            for row in read_json(path):
                if base and "metrics" in row and row.get("base") != base:
                    raise Missing(f"{file} of runs on the same base, {base}")
                values = {key: str(row[key]) for key in answers.varied(row)}
                words = values.get("rl", "").split()[1:]
                rows.append(row | values | dict(word.split("=", 1) for word in words))
            asked = self.answers.drop_duplicates("id").groupby("set", observed=True)
            videos = {k: dict(zip(own.id, own.video, strict=True)) for k, own in asked}
            self._swept[file] = answers.of_sweep(rows, videos)
        frame = self._swept[file]
        if frame.empty:
            raise Missing(f"{file} with a finished run")
        names = answers.varied(frame)
        wanted = {k: v for k, v in term.picks.items() if k not in ("sweep", "at")}
        if "at" in term.picks:
            varied = [key for key in names if frame[key].nunique() > 1]
            if len(varied) != 1:
                raise Missing(f"{file} that varies one thing")
            choose = min if term.picks["at"] == "least" else max
            wanted[varied[0]] = choose(frame[varied[0]].unique(), key=float)
        if not {*wanted} <= {*names}:
            text = " ".join(f"{key}={value}" for key, value in wanted.items())
            raise Missing(f"{file} with {text}")
        return frame, wanted
