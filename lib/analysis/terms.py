"""What a claim's terms mean: selections of the answers, and the contrast of them.

A term is one mean over questions, written as in claims.json; see `Term`.

    >>> records = Records("outputs/mini", "outputs/data/miniplan")
    >>> terms = [Term.read("grpo L1"), Term.read("-sft L1")]
    >>> records.contrast(terms, samples=10_000, seed=0)["effect"]
    -0.004
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib.analysis import answers, compare
from lib.analysis.compare import Missing
from lib.methods import GENERAL, LEVELS, SEEN
from lib.paths import ROOT, resolve
from lib.records import read_json

FIELDS = {"domain": str, "duration_group": float}  # of a question
# Of a row of a sweep; all else is what it varies.
NOT_VARIED = ("run", "seed", "status", "seconds", "metrics", "git_commit")
MORE = {"more_frames": "frames_", "larger": "size_"}
MEASURED = ("effect", "low", "high", "error", "n", "clusters", "seeds", "sd", "varies")
Terms = Sequence["Term"]


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
        grpo L1 value=consistent      coherence_grpo_L1.jsonl: a measure of it;
                                      `supported` is `consistent` where the truth is
                                      known, else `judge`
        grpo L1 value=attention       attention_grpo.jsonl: the attention of its tokens
                                      that rests on video and still, mean over layers
        grpo L1 sweep=kl at=least     <sweeps>/kl.json: the runs with the least (most)
                                      of what the sweep varies, or with one named as
                                      name=value, an option of its `rl` line included

    The set `levels` is the mean over L1, L2 and L3, as far as there are records.
    """

    weight: float
    label: str
    set: str
    picks: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, text: str) -> "Term":
        """A term from its text, "-sft L3 domain=Daily life"; ValueError if it is none.

        A minus in front gives it the weight -1; a value may hold spaces.
        """
        found = re.fullmatch(r"(-?)(\S+) (\S+)((?: \w+=[^=]+)*)", text)
        if not found:
            raise ValueError(f"{text!r} is no term: a label, a set, then name=value")
        picks = re.findall(r" (\w+)=((?:[^= ]| (?!\w+=))+)", found[4])
        return cls(-1.0 if found[1] else 1.0, found[2], found[3], tuple(picks))

    def get(self, name: str) -> str:
        """The value of a pick, "" without it."""
        return dict(self.picks).get(name, "")

    def over(self, sets: Sequence[str]) -> list["Term"]:
        """The term itself, or for `levels` one a set with its share of the weight."""
        if self.set != "levels":
            return [self]
        weight = self.weight / len(sets)
        return [replace(self, set=name, weight=weight) for name in sets]

    def __str__(self) -> str:
        return " ".join([self.label, self.set, *(f"{k}={v}" for k, v in self.picks)])


class Records:
    """The records of one run, or of several that differ in nothing but their seed.

    Without `data_dir` (`general_dir`) every question counts as one on its own video.
    ValueError for runs of other settings, or twice of one seed.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        data_dir: str | Path = "",
        general_dir: str | Path = "",
        sweeps: str | Path = ROOT / "outputs/reference/sweeps",
    ):
        self.runs = answers.by_seed(runs)
        self.answers = answers.read(runs, data_dir, general_dir)
        self.sweeps = resolve(sweeps)
        self._data = [data_dir] * len(LEVELS) + [general_dir]
        self._swept: dict[str, pd.DataFrame] = {}

    def contrast(self, terms: Terms, samples: int, seed: int) -> dict:
        """The sum of the terms over the seeds and questions they share.

        MEASURED of `stats.contrast`, with `measure`, what was read, and `discordant`:
        for two terms on one set the share of questions on which they differ, else None.
        Missing if a term has no records.
        """
        measures = {self._measure(term) for term in terms}
        if len(measures) > 1:
            raise ValueError(
                f"{terms[0]} and {terms[-1]} are measured differently: "
                f"{' and '.join(sorted(measures))}; make both files of one kind"
            )
        found = compare.contrast(*self._chosen(terms), samples, seed)
        differ = (found["wins"] + found["losses"]) / found["n"] / found["seeds"]
        paired = len(terms) == 2 and len(found["sets"]) == 1
        kept = {key: found[key] for key in MEASURED}
        kept |= {"discordant": differ if paired else None}
        return kept | {"measure": measures.pop()}

    def pulls(self, terms: Terms) -> dict[str, float]:
        """{question id: what it adds to the contrast, mean over seeds}."""
        parts, _ = compare.matrices(*self._chosen(terms))
        return {
            key: pull
            for ids, values in parts.values()
            for key, pull in zip(ids, values.mean(0).tolist(), strict=True)
        }

    def _chosen(self, terms: Terms) -> tuple[pd.DataFrame, compare.Terms]:
        """The rows of all terms, numbered, and the terms for lib/analysis/compare.py.

        ValueError where questions differ that were not asked of a part on purpose.
        """
        rows = [self.rows(term).assign(term=i) for i, term in enumerate(terms)]
        frame = pd.concat(rows, ignore_index=True)
        partly = any(term.get("condition") or term.get("value") for term in terms)
        asked = frame.groupby(["set", "term", "seed"], observed=True).id.agg(frozenset)
        if not partly and (asked.groupby("set", observed=True).nunique() > 1).any():
            raise ValueError(
                f"{' and '.join(map(str, terms))} are not of the same questions: "
                "evaluate them again"
            )
        where = [{"term": i, "set": term.set} for i, term in enumerate(terms)]
        return frame, [(t.weight, own) for t, own in zip(terms, where, strict=True)]

    def rows(self, term: Term) -> pd.DataFrame:
        """The answers that a term means; Missing names the file without any."""
        where: dict = {"model": term.label, "set": term.set}
        if term.get("sweep"):
            frame = self._sweep(term)
            where |= self._wanted(term, frame)
        else:
            frame = self.answers
            where |= {"measure": self._measure(term), "condition": SEEN}
            if term.get("condition"):
                where["condition"] = self._condition(term)
            for name, kind in FIELDS.items():
                if term.get(name):
                    where[name] = kind(term.get(name))
        found = compare.select(frame, where)
        if found.empty:
            raise Missing(self.file(term) if not term.picks else self._said(term))
        if found.duplicated(["seed", "id"]).any():
            raise Missing(f"{self.file(term)} with one run a seed for {term}")
        return found[["seed", "set", "id", "video", "value"]]

    def _said(self, term: Term) -> str:
        """The file of a term, and what was looked for in it where it is there."""
        file = self.file(term)
        folders = [self.sweeps] if term.get("sweep") else self.runs.values()
        there = any((folder / file).exists() for folder in folders)
        return f"{file} with {term}" if there else file

    def file(self, term: Term) -> str:
        """The name of the file that a term is read from."""
        if term.get("sweep"):
            return f"{term.get('sweep')}.json"
        if term.get("value") == "attention":
            return f"attention_{term.label}.jsonl"
        if term.get("value"):
            return f"coherence_{term.label}_{term.set}.jsonl"
        condition = self._condition(term) if term.get("condition") else SEEN
        ending = "" if condition == SEEN else f".{condition}"
        return f"predictions_{term.label}_{term.set}{ending}.jsonl"

    def paths(self, terms: Terms) -> list[str]:
        """The files behind some terms, from the root where they lie below it."""
        found = set()
        for term in terms:
            folders = [self.sweeps] if term.get("sweep") else self.runs.values()
            found |= {folder / self.file(term) for folder in folders}
        return sorted(
            str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
            for path in found
            if path.exists()
        )

    def levels(self, terms: Terms) -> list[str]:
        """The levels with records of all these terms; Missing if there is none."""
        found, lacking = [], []
        for name in LEVELS:
            try:
                for term in terms:
                    self.rows(replace(term, set=name))
                found.append(name)
            except Missing as missing:
                lacking.append(missing)
        if not found:
            raise lacking[0]
        return found

    def _measure(self, term: Term) -> str:
        value = term.get("value") or "correct"
        if value != "supported":
            return value
        own = {"model": term.label, "set": term.set, "measure": "consistent"}
        known = not compare.select(self.answers, own).empty
        return "consistent" if known else "judge"

    def _condition(self, term: Term) -> str:
        """The condition of a term; of more frames, or larger ones, the most asked."""
        name = term.get("condition")
        if name not in MORE:
            return name
        start, asked = f"predictions_{term.label}_{term.set}", {}
        for run in self.runs.values():
            settings = run / f"{start}.settings.json"
            seen = read_json(settings)["sampling"] if settings.exists() else {}
            usual = seen.get("max_frames", 0)
            if name == "larger":
                usual = seen.get("height", 0) * seen.get("width", 0)
            for path in run.glob(f"{start}.{MORE[name]}*.jsonl"):
                shown = path.name.removeprefix(f"{start}.").removesuffix(".jsonl")
                size = int(np.prod([int(n) for n in re.findall(r"\d+", shown)]))
                if size > usual:
                    asked[size] = shown
        if not asked:
            what = "frames" if name == "more_frames" else "pixels"
            file = f"{start}.{MORE[name]}*.jsonl"
            raise Missing(f"{file} with more {what} than the models see")
        return asked[max(asked)]

    def _sweep(self, term: Term) -> pd.DataFrame:
        """The finished runs of a sweep as answers, with what it varies as columns."""
        file = self.file(term)
        path = self.sweeps / file
        if not path.exists():
            raise Missing(file)
        if file not in self._swept:
            videos: dict[str, dict[str, str]] = {}
            for name, folder in zip((*LEVELS, GENERAL), self._data, strict=True):
                if folder:
                    videos[name] = answers.source_videos(folder, name)
            rows = [
                _values(row) | {"model": model, "set": name, "correct": own["correct"]}
                for row in read_json(path)
                for model, sets in row.get("metrics", {}).items()
                for name, own in sets.items()
            ]
            if not rows:
                raise Missing(f"{file} with a finished run")
            self._swept[file] = answers.of_texts(rows, videos)
        return self._swept[file]

    def _wanted(self, term: Term, frame: pd.DataFrame) -> dict[str, str]:
        """{column: value} of the runs of a sweep that a term means."""
        wanted = {k: v for k, v in term.picks if k not in ("sweep", "at")}
        fixed = (*answers.COLUMNS, "seed")
        names = [key for key in frame if key not in fixed]
        if end := term.get("at"):
            varied = [key for key in names if frame[key].nunique() > 1]
            if len(varied) != 1:
                raise Missing(f"{self.file(term)} that varies one thing")
            choose = {"least": min, "most": max}[end]
            wanted[varied[0]] = choose(frame[varied[0]].unique(), key=float)
        if not {*wanted} <= {*names}:
            text = " ".join(f"{key}={value}" for key, value in wanted.items())
            raise Missing(f"{self.file(term)} with {text}")
        return wanted


def _values(row: Mapping) -> dict[str, str]:
    """Seed and varied values of a run of a sweep, the options of its `rl` line too."""
    values = {k: str(v) for k, v in row.items() if k not in NOT_VARIED}
    options = [word.split("=", 1) for word in str(row.get("rl", "")).split()[1:]]
    return {"seed": row.get("seed", 0), **values, **dict(options)}
