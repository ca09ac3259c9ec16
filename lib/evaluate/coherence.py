"""Does the reasoning support the answer? Measured without a judge, and against truth.

The paper (SEED-Bench-R1, arXiv 2503.24376, abstract) says that RL answers better with
less coherent reasoning, and that SFT memorises its reasoning; its follow-up (GRPO-CARE,
arXiv 2506.16141) puts a number on it with a judge whose prompt is not released. Here:

* readers, on any data (lib/evaluate/readers.py): the base reads for all methods, and
  every method its own. If reader and completion agree, the reasoning led to the answer;
* exact, where the truth behind a question is known (lib/mini/reasoning.py);
* a language model as judge, where there is one (lib/evaluate/judge.py);
* memorised reasoning: what of it stands word for word in the training reasoning."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lib import records
from lib.evaluate import readers
from lib.evaluate.readers import reasoning_of
from lib.methods import EXACT
from lib.paths import require

_WORD = re.compile(r"[\w'-]+")


class TrainingReasoning:
    """The reasoning of the demonstrations, to find a completion's words in."""

    def __init__(self, responses: Iterable[str]):
        self.texts: set[str] = set()
        self.grams: set[tuple[str, ...]] = set()
        for reasoning in filter(None, map(reasoning_of, responses)):
            self.texts.add(" ".join(reasoning.split()))
            self.grams.update(_grams(reasoning))

    def holds(self, reasoning: str | None) -> bool:
        """Whether it is, word for word and nouns included, one of the training set."""
        return reasoning is not None and " ".join(reasoning.split()) in self.texts

    def overlap(self, reasoning: str | None) -> float:
        """The share of its word 4-grams that occur there; 0 where it has none."""
        grams = _grams(reasoning or "")
        return sum(g in self.grams for g in grams) / len(grams) if grams else 0.0


def _grams(text: str, size: int = 4) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return list(zip(*(words[i:] for i in range(size)), strict=False))


def rows_of(
    run: str | Path,
    label: str,
    name: str,
    training: TrainingReasoning,
    exact: Callable | None = None,
    flawless: Mapping[str, str] | None = None,
) -> list[dict]:
    """One row a prediction, also written to run/coherence_<label>_<set>.jsonl.

    A row holds id, answer (the letter given), correct; what the readers come to (see
    `_read`; the base reads for itself, so its two are one); names_letter; verbatim and
    overlap of TrainingReasoning; judged, judge (None where the call failed) and
    judge_error; with `exact` (lib.mini.reasoning.checker) its fields, and
    consistent_other, that of another question's reasoning; with `flawless` (of that
    module) verbatim and overlap of what a flawless reasoner would say. None where the
    truth is not known. FileNotFoundError where predictions or readings are missing."""
    run, read = Path(run), {}
    for reader in readers.READERS:
        source = "base" if readers.writer(label) == "base" else reader
        read[reader] = _by_id(readers.reading_file(run, source, label, name))
    predictions = _by_id(run / f"predictions_{label}_{name}.jsonl").values()
    judgements = run / f"judgements_{label}_{name}.jsonl"
    judged = _by_id(judgements) if judgements.exists() else {}
    thoughts = [reasoning_of(row["completion"]) for row in predictions]
    columns, rows = (predictions, thoughts, readers.half_away(thoughts)), []
    for row, thought, other in zip(*columns, strict=True):
        key, ideal = row["id"], (flawless or {}).get(row["id"])
        judgement = judged.get(key)
        rows.append(
            {"id": key, "answer": row["first_letter"], "correct": row["correct"]}
            | _read({reader: own[key] for reader, own in read.items()}, row)
            | (exact(row, thought) if exact else dict.fromkeys(EXACT))
            | {
                "consistent_other": exact(row, other)["consistent"] if exact else None,
                "names_letter": readers.names_letter(thought),
                "verbatim": training.holds(thought),
                "overlap": round(training.overlap(thought), 4),
                "verbatim_flawless": ideal and training.holds(ideal),
                "overlap_flawless": ideal and round(training.overlap(ideal), 4),
                "judged": judgement is not None,
                "judge": judgement and judgement["supports"],
                "judge_error": judgement and judgement["error"],
            }
        )
    records.write_jsonl(run / f"coherence_{label}_{name}.jsonl", rows)
    return rows


def _by_id(path: Path) -> dict[str, dict]:
    """{id: row}; a later row of a question counts, as where a judge was asked again."""
    rows = records.read_jsonl(require(path, "run 04_eval first"))
    return {row["id"]: row for row in rows}


def _read(readings: Mapping[str, Mapping], row: Mapping) -> dict:
    """implied_<reader>: the letter a reader comes to, None without reasoning, and its
    probabilities; _other and _none, the controls; <reader>_reader: is it the answer?"""
    found, agrees = {}, {}
    for reader, read in readings.items():
        own, *controls = (
            max(read[whose], key=read[whose].get) if read[whose] else None
            for whose in readers.VARIANTS
        )
        found[f"implied_{reader}"] = own
        found[f"probabilities_{reader}"] = read["own"]
        for whose, letter in zip(readers.VARIANTS[1:], controls, strict=True):
            found[f"implied_{reader}_{whose}"] = letter
        agrees[f"{reader}_reader"] = own is not None and own == row["first_letter"]
    return found | agrees
