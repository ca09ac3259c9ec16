"""Runs as numbers a question: what a claim's terms are read from, and their contrast.

A term is one mean over questions, written as in claims.json: a label, a set, and what
narrows it down. Records that it reads, all but the last in the run's folder:

    grpo L1                       predictions_grpo_L1.jsonl
    grpo L3 domain=Work           its rows with that field
    grpo L1 condition=no_video    predictions_grpo_L1.no_video.jsonl; the other terms of
                                  the contrast then count the same questions
                                  (more_frames, larger: the most that was asked beyond
                                  what the models see anyway)
    grpo L1 value=consistent      coherence_grpo_L1.jsonl: a field of it; `supported` is
                                  `consistent` where the truth is known, else `judge`
    grpo L1 value=attention       attention_grpo.jsonl: the attention of its tokens that
                                  rests on video and still, mean over layers
    grpo L1 sweep=kl at=least     <sweeps>/kl.json, rows as in lib.pipeline's runs.json:
                                  the runs with the least (most) of the value that the
                                  sweep varies, or with one named as name=value, an
                                  option of its `rl` line included

The set `levels` is the mean over L1, L2 and L3, as far as there are records. Example:

    >>> records = Records("outputs/mini", "outputs/data/miniplan")
    >>> terms = [Term.read("grpo L1"), Term.read("-sft L1")]
    >>> records.contrast(terms, samples=10_000, seed=0)["effect"]
    -0.004
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np

from lib import stats, tables
from lib.paths import ROOT, require, resolve
from lib.records import read_json, read_jsonl, settings_hash

LEVELS = ("L1", "L2", "L3")
FIELDS = ("domain", "duration_group")  # of a prediction row
# Of a row of a sweep.
NOT_VARIED = ("run", "seed", "status", "seconds", "metrics", "git_commit")
# Parameters that say what is asked beside the answers, of whom: runs that differ in
# these alone are pooled, each contrast over the seeds that have its records.
ASKED_BESIDE = (
    *("asked_models", "coherence_sets", "attention_questions"),
    *("perception_models", "perception_sets", "perception_conditions"),
    *("perception_questions", "judge_url", "judge_model", "judge_max_calls"),
)
TRUE = (True, "yes", "right")
VISUAL = (True, True, False)  # of the masses on video, still and text

Answers = dict[int, dict[str, float]]  # {seed: {question id: value}}
Terms = Sequence["Term"]


class Missing(Exception):
    """Records that are not there; the text names them."""


@dataclass(frozen=True)
class Term:
    """One mean over the questions of a set, with its weight in a contrast.

    `picks` narrow it down: see the module's docstring.
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


@dataclass(frozen=True)
class Mean:
    """The accuracy of one run of a sweep where its single answers were not kept."""

    accuracy: float
    n: int


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
        runs = [runs] if isinstance(runs, str | Path) else runs
        self.runs = by_seed([resolve(run) for run in runs])
        self.sweeps = resolve(sweeps)
        self._data = (data_dir, general_dir)
        self._rows: dict[Path, list[dict]] = {}
        self._questions: dict[str, tuple[str, Path]] = {}
        self._videos: dict[str, dict[str, str]] = {}

    def contrast(self, terms: Terms, samples: int, seed: int) -> dict:
        """The sum of the terms over the seeds and questions they share.

        As `stats.contrast`, with `measure`, the field that was read, and `discordant`:
        for two terms on one set the share of questions on which they differ, else None.
        Where a sweep kept no single answers: `stats.contrast_of_means`, and questions
        count as unpaired. Missing if a term has no records.
        """
        measure = self._one_measure(terms)
        answers = [self.answers(term) for term in terms]
        if any(isinstance(v, Mean) for found in answers for v in found.values()):
            found = _contrast_of_means(terms, answers)
            return {**found, "measure": measure, "discordant": None}
        parts = self.matrices(terms)
        found = stats.contrast(
            [values for _, values in parts.values()],
            [self.clusters(name, ids) for name, (ids, _) in parts.items()],
            samples,
            seed,
            [_bounds(terms, name) for name in parts],
        )
        paired = len(terms) == 2 and len(parts) == 1
        _, values = next(iter(parts.values()))
        discordant = float((values != 0).mean()) if paired else None
        return {**found, "measure": measure, "discordant": discordant}

    def matrices(self, terms: Terms) -> dict[str, tuple[list[str], np.ndarray]]:
        """{set: (question ids, weighted sum of its terms [seeds, questions])}."""
        answers = [(term, self.answers(term)) for term in terms]
        for term, found in answers:
            if any(isinstance(value, Mean) for value in found.values()):
                raise Missing(f"single answers for {term}: {self.file(term)} has means")
        seeds = sorted(set.intersection(*(set(found) for _, found in answers)))
        if not seeds:
            raise Missing(f"a run that holds both {terms[0]} and {terms[-1]}")
        parts = {}
        for name in dict.fromkeys(term.set for term in terms):
            own = [(term, found) for term, found in answers if term.set == name]
            ids = _common(own, seeds)
            values = sum(
                term.weight * np.array([[found[s][i] for i in ids] for s in seeds])
                for term, found in own
            )
            parts[name] = (ids, values)
        return parts

    def answers(self, term: Term) -> Answers | dict[int, Mean]:
        """{seed: {question id: value}} of a term, of every run that has its records.

        Missing names the file that no run holds; ValueError one with other questions.
        """
        if term.get("sweep"):
            return self._of_sweep(term)
        file = self.file(term)
        found = {
            seed: self._values(run / file, term)
            for seed, run in self.runs.items()
            if (run / file).exists()
        }
        if not found:
            raise Missing(file)
        return found

    def file(self, term: Term) -> str:
        """The name of the file that a term is read from; Missing if none can be it."""
        if term.get("sweep"):
            return f"{term.get('sweep')}.json"
        if term.get("value") == "attention":
            return f"attention_{term.label}.jsonl"
        if term.get("value"):
            return f"coherence_{term.label}_{term.set}.jsonl"
        return f"predictions_{term.label}_{term.set}{self._condition(term)}.jsonl"

    def paths(self, terms: Terms) -> list[str]:
        """The files behind some terms, from the root where they lie below it."""
        found = set()
        for term in terms:
            folders = [self.sweeps] if term.get("sweep") else self.runs.values()
            found |= {folder / self.file(term) for folder in folders}
        return sorted(_shown(path) for path in found if path.exists())

    def levels(self, terms: Terms) -> list[str]:
        """The levels with records of all these terms; Missing if there is none."""
        found, lacking = [], []
        for name in LEVELS:
            try:
                for term in terms:
                    self.answers(replace(term, set=name))
                found.append(name)
            except Missing as missing:
                lacking.append(missing)
        if not found:
            raise lacking[0]
        return found

    def clusters(self, name: str, ids: Iterable[str]) -> list[str]:
        """The source video of each question of a set; where unknown, the question."""
        videos = self._of_videos(name)
        return [videos.get(key, key) for key in ids]

    def field(self, term: Term) -> str:
        """The field that a term reads from each row."""
        value = term.get("value") or "correct"
        if value != "supported":
            return value
        file = self.file(term)
        for run in self.runs.values():
            if (run / file).exists():
                rows = self._read(run / file)
                known = any(row["consistent"] is not None for row in rows)
                return "consistent" if known else "judge"
        raise Missing(file)

    def _one_measure(self, terms: Terms) -> str:
        fields = {self.field(term) for term in terms}
        if len(fields) > 1:
            raise ValueError(
                f"{terms[0]} and {terms[-1]} are measured differently: "
                f"{' and '.join(sorted(fields))}; make both files of one kind"
            )
        return fields.pop()

    def _values(self, path: Path, term: Term) -> dict[str, float]:
        rows, field = self._read(path), self.field(term)
        if field == "correct" and not term.get("condition"):
            self._same_questions(path, term.set, rows)
        for name in FIELDS:
            if wanted := term.get(name):
                rows = [row for row in rows if str(row.get(name)) == wanted]
        if field == "judge":
            rows = [row for row in rows if row.get("judged", True)]
        if field == "attention":
            return _attention(rows, term)
        for row in rows:
            if field not in row:
                raise ValueError(f"{path}: question {row['id']} has no `{field}`")
        if all(row[field] is None for row in rows):
            raise Missing(f"{path.name} with {term}")
        return {row["id"]: _number(row[field]) for row in rows}

    def _same_questions(self, path: Path, name: str, rows: Sequence[Mapping]) -> None:
        """ValueError unless a set's questions are those of the first file of it."""
        ordered = sorted(rows, key=lambda row: row["id"])
        asked = tables.questions_hash(ordered)
        first, where = self._questions.setdefault(name, (asked, path))
        if asked != first:
            raise ValueError(
                f"{path} and {where} hold other questions: methods and seeds are "
                "compared on the same ones, evaluate both again"
            )

    def _condition(self, term: Term) -> str:
        """What a condition adds to the file's name: nothing where all is shown."""
        name = term.get("condition")
        if name not in ("more_frames", "larger"):
            return f".{name}" if name else ""
        start = f"predictions_{term.label}_{term.set}"
        kind = "frames_" if name == "more_frames" else "size_"
        asked = {}
        for run in self.runs.values():
            settings = run / f"{start}.settings.json"
            seen = read_json(settings)["sampling"] if settings.exists() else {}
            usual = {
                "frames_": seen.get("max_frames", 0),
                "size_": seen.get("height", 0) * seen.get("width", 0),
            }
            for path in run.glob(f"{start}.{kind}*.jsonl"):
                numbers = re.findall(r"\d+", path.name.removeprefix(start))
                size = int(np.prod([int(number) for number in numbers]))
                if size > usual[kind]:
                    asked[size] = path.name.removeprefix(start).removesuffix(".jsonl")
        if not asked:
            what = "frames" if kind == "frames_" else "pixels"
            raise Missing(f"{start}.{kind}*.jsonl with more {what} than the models see")
        return asked[max(asked)]

    def _of_sweep(self, term: Term) -> Answers | dict[int, Mean]:
        found: dict = {}
        for row in self._sweep_rows(term):
            entry = row["metrics"].get(term.label, {}).get(term.set)
            if entry is None:
                raise Missing(f"{self.file(term)} with {term.label} on {term.set}")
            seed = row.get("seed", 0)
            if seed in found:
                raise Missing(f"{self.file(term)} with one run a seed for {term}")
            found[seed] = Mean(entry["accuracy"], entry["n"])
            if "correct" in entry:
                ids = self._ids(term.set, len(entry["correct"]))
                found[seed] = dict(zip(ids, map(float, entry["correct"]), strict=True))
        return found

    def _sweep_rows(self, term: Term) -> list[dict]:
        """The finished runs of a sweep that a term means."""
        path = self.sweeps / self.file(term)
        if not path.exists():
            raise Missing(path.name)
        rows = [_with_options(row) for row in read_json(path) if "metrics" in row]
        known = ("sweep", "at", "value", "condition", *FIELDS)
        wanted = {key: value for key, value in term.picks if key not in known}
        if end := term.get("at"):
            wanted |= _end(rows, end, path)
        found = [row for row in rows if _has(row, wanted)]
        if not found:
            text = " ".join(f"{key}={value}" for key, value in wanted.items())
            raise Missing(f"{path.name} with {text or 'a finished run'}")
        return found

    def _ids(self, name: str, n: int) -> list[str]:
        """The ids behind a text of 0 and 1, which is in the order of the sorted ids."""
        known = sorted(self._of_videos(name))
        return known if len(known) == n else [f"{name}#{i}" for i in range(n)]

    def _of_videos(self, name: str) -> dict[str, str]:
        folder = self._data[name == "general"]
        if folder and name not in self._videos:
            self._videos[name] = source_videos(folder, name)
        return self._videos.get(name, {})

    def _read(self, path: Path) -> list[dict]:
        if path not in self._rows:
            predicted = path.name.startswith("predictions_")
            self._rows[path] = (tables.read_rows if predicted else read_jsonl)(path)
        return self._rows[path]


def by_seed(runs: Sequence[Path]) -> dict[int, Path]:
    """{seed: run} of run folders, which may differ in the seed and ASKED_BESIDE alone.

    Seeds and settings stand in pipeline.json; a single run needs none.
    """
    if len(runs) == 1:
        require(runs[0], "run it with python -m lib.pipeline")
        state = runs[0] / "pipeline.json"
        given = read_json(state)["parameters"] if state.exists() else {}
        return {given.get("seed", 0): runs[0]}
    found, settings = {}, {}
    for run in runs:
        path = require(run / "pipeline.json", "run it with python -m lib.pipeline")
        given = dict(read_json(path)["parameters"])
        seed = given.pop("seed", 0)
        given = {k: v for k, v in given.items() if k not in ("run_name", *ASKED_BESIDE)}
        if seed in found:
            raise ValueError(f"{run} and {found[seed]} are both of seed {seed}")
        found[seed], settings[settings_hash(given)] = run, run
    if len(settings) > 1:
        differ = " and ".join(str(run) for run in settings.values())
        raise ValueError(f"{differ} differ in more than their seed, do not pool them")
    return found


def source_videos(folder: str | Path, name: str) -> dict[str, str]:
    """{question id: the recording it is about} for one set of a data folder.

    Clips are cut for one question each, so their names do not tell which questions
    share a recording. `video_id` does; where a record has none, what stands before the
    last "_" of a text id ("<video>_<number>", as in EgoPlan-Bench2).
    """
    if name == "general":
        path, key = resolve(folder) / "lvb_val.json", "id"
        rows = read_json(require(path, "run 01_data first"))
    else:
        path = resolve(folder) / "annotations" / f"validation_{name}.jsonl"
        rows, key = read_jsonl(require(path, "run 01_data first")), "sample_id"
    return {
        f"{name}/{row[key]}": row.get("video_id") or str(row[key]).rpartition("_")[0]
        for row in rows
    }


def _attention(rows: Sequence[Mapping], term: Term) -> dict[str, float]:
    """{id: mass on video and still, mean over layers}, from rows of lib.attention."""
    found = {}
    for row in rows:
        if row["id"].startswith(f"{term.set}/") and "left_out" not in row:
            visual = np.sum(row["by_layer"], axis=1, where=VISUAL)
            found[row["id"]] = float(visual.mean())
    if not found:
        raise Missing(f"attention_{term.label}.jsonl with questions of {term.set}")
    return found


def _common(own: Sequence[tuple[Term, Answers]], seeds: Sequence[int]) -> list[str]:
    """The question ids that the terms of a set share, sorted.

    They may differ only where a part of the questions was asked on purpose: under a
    condition, by a judge, or for attention.
    """
    asked = [frozenset(found[s]) for _, found in own for s in seeds]
    least = frozenset.intersection(*asked)
    partly = any(term.get("condition") or term.get("value") for term, _ in own)
    if not least or not (partly or len(set(asked)) == 1):
        raise ValueError(
            f"{' and '.join(str(term) for term, _ in own)} are not of the same "
            "questions: evaluate them again"
        )
    return sorted(least)


def _bounds(terms: Terms, name: str) -> tuple[float, float]:
    """The least and most that one question of a set can add: values are 0 to 1."""
    weights = [term.weight for term in terms if term.set == name]
    return sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)


def _contrast_of_means(terms: Terms, answers: Sequence[Mapping]) -> dict:
    """The contrast where some seeds have an accuracy and no single answers."""
    seeds = sorted(set.intersection(*(set(found) for found in answers)))
    if not seeds:
        raise Missing(f"a seed with both {terms[0]} and {terms[-1]}")
    means = np.array([[_mean(found[s]).accuracy for s in seeds] for found in answers])
    sizes = [_mean(found[seeds[0]]).n for found in answers]
    shares = means.mean(1)
    error = sqrt(
        sum(
            t.weight**2 * p * (1 - p) / n
            for t, p, n in zip(terms, shares, sizes, strict=True)
        )
    )
    weights = np.array([term.weight for term in terms])
    n = sum({term.set: n for term, n in zip(terms, sizes, strict=True)}.values())
    found = stats.contrast_of_means(weights @ means, error)
    return {**found, "n": n, "clusters": n}


def _mean(found: Mean | Mapping[str, float]) -> Mean:
    if isinstance(found, Mean):
        return found
    return Mean(sum(found.values()) / len(found), len(found))


def _end(rows: Sequence[Mapping], end: str, path: Path) -> dict[str, str]:
    """{name: value} of the least or most of the only thing that a sweep varies."""
    names = dict.fromkeys(k for row in rows for k in row if k not in NOT_VARIED)
    values = {name: {row.get(name) for row in rows} for name in names}
    varied = [name for name, found in values.items() if len(found) > 1]
    if len(varied) != 1:
        raise Missing(f"{path.name} that varies one thing, not {len(varied)}")
    choose = {"least": min, "most": max}[end]
    return {varied[0]: str(choose(values[varied[0]]))}


def _with_options(row: Mapping) -> dict:
    """A run of a sweep with the options of its `rl` line (lib/rl.py) as values."""
    words = str(row.get("rl", "")).split()[1:]
    return {**row, **dict(word.split("=", 1) for word in words)}


def _has(row: Mapping, wanted: Mapping[str, str]) -> bool:
    """Whether a run of a sweep has these values."""
    return all(str(row.get(key)) == value for key, value in wanted.items())


def _number(value: object) -> float:
    """1 for true, "yes" and "right", a number as it is, 0 for all else (a failure)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float(value in TRUE)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
