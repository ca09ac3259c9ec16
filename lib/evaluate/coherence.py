"""Does the reasoning support the answer? Measured without a judge, and against truth.

The paper (SEED-Bench-R1, arXiv 2503.24376, abstract) says that RL answers better with
less coherent reasoning, and that SFT memorises its reasoning; its follow-up (GRPO-CARE,
arXiv 2506.16141) puts a number on it with a judge whose prompt is not released. Here:

* readers, on any data (`lib/evaluate/readers.py`): what a model would answer from
question,
  options and reasoning alone. The base reads for all methods, and every method reads
  its own. If reader and completion agree, the reasoning led to the answer.
* exact, where the truth behind a question is known (`lib/mini/reasoning.py`).
* a language model as judge, where there is one (`lib/evaluate/judge.py`).
* memorised reasoning: what of it stands word for word in the training reasoning.

Example: reasoning "I see wash tomato. Next is cut tomato.", answer D, "plate tomato".
The reader gives B, "cut tomato", 0.99: the answer does not come from the reasoning, and
the row has base_reader False, consistent "no".
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lib import records
from lib.evaluate.readers import (
    READERS,
    half_away,
    names_letter,
    reading_file,
    reasoning_of,
)
from lib.paths import require

EXACT = ("progress", "next", "consistent", "follows", "false_step", "false_object")


_WORD = re.compile(r"[\w'-]+")


# --- memorised reasoning --------------------------------------------------------------


class TrainingReasoning:
    """The reasoning of the demonstrations, to find a completion's words in."""

    def __init__(self, responses: Iterable[str], size: int = 4):
        self.size = size
        self.texts: set[str] = set()
        self.grams: set[tuple[str, ...]] = set()
        for response in responses:
            if reasoning := reasoning_of(response):
                self.texts.add(_plain(reasoning))
                self.grams.update(self._grams(reasoning))

    def holds(self, reasoning: str | None) -> bool:
        """Whether it is, word for word and nouns included, one of the training set."""
        return reasoning is not None and _plain(reasoning) in self.texts

    def overlap(self, reasoning: str | None) -> float:
        """The share of its word 4-grams that occur there; 0 where it has none."""
        grams = self._grams(reasoning or "")
        return sum(g in self.grams for g in grams) / len(grams) if grams else 0.0

    def _grams(self, text: str) -> list[tuple[str, ...]]:
        words = _WORD.findall(text.lower())
        return list(zip(*(words[i:] for i in range(self.size)), strict=False))


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- the rows of a run ----------------------------------------------------------------


def rows_of(
    run: str | Path,
    label: str,
    name: str,
    training: TrainingReasoning,
    exact: Callable | None = None,
    flawless: Mapping[str, str] | None = None,
) -> list[dict]:
    """One row a prediction, also written to run/coherence_<label>_<set>.jsonl.

    A row holds
    id, answer (the letter given), correct;
    base_reader, own_reader: whether the reader comes to that answer; implied_base,
    implied_own and probabilities_base, probabilities_own: to which it comes (None where
    there is no reasoning); implied_<reader>_other and _none, the controls;
    names_letter; verbatim, overlap: see TrainingReasoning;
    judged, judge (True, False, None where the call failed) and judge_error;
    with `exact` (lib.mini.reasoning.checker) its fields, and consistent_other, the same
    with another question's reasoning; with `flawless` (of that module) verbatim and
    overlap of what a flawless reasoner would say. None where the truth is not known.

    The base reads for itself, so its two readers are one. Raises FileNotFoundError
    where predictions or readings are missing.
    """
    run, predicted = Path(run), f"predictions_{label}_{name}.jsonl"
    predictions = records.read_jsonl(require(run / predicted, "run 04_eval first"))
    read = {}
    for reader in READERS:
        source = "base" if label == "base" else reader
        path = require(reading_file(run, source, label, name), "run 04_eval first")
        read[reader] = {row["id"]: row for row in records.read_jsonl(path)}
    judged = _judgements(run / f"judgements_{label}_{name}.jsonl")
    thoughts = [reasoning_of(row["completion"]) for row in predictions]
    rows = []
    for row, thought, other in zip(
        predictions, thoughts, half_away(thoughts), strict=True
    ):
        ideal = (flawless or {}).get(row["id"])
        found = {"id": row["id"], "answer": row["first_letter"]}
        found |= {"correct": row["correct"]}
        found |= _implied({r: own[row["id"]] for r, own in read.items()})
        found |= {
            f"{reader}_reader": _agrees(found, f"implied_{reader}")
            for reader in READERS
        }
        found |= exact(row, thought) if exact else dict.fromkeys(EXACT)
        found |= {
            "consistent_other": exact(row, other)["consistent"] if exact else None,
            "names_letter": names_letter(thought),
            "verbatim": training.holds(thought),
            "overlap": round(training.overlap(thought), 4),
            "verbatim_flawless": ideal and training.holds(ideal),
            "overlap_flawless": ideal and round(training.overlap(ideal), 4),
        }
        rows.append(found | judged.get(row["id"], UNJUDGED))
    records.write_jsonl(run / f"coherence_{label}_{name}.jsonl", rows)
    return rows


UNJUDGED = {"judged": False, "judge": None, "judge_error": None}


def _judgements(path: Path) -> dict[str, dict]:
    """{id: fields} of what a judge said; a later row of a question counts."""
    if not path.exists():
        return {}
    return {
        row["id"]: {
            "judged": True,
            "judge": row["supports"],
            "judge_error": row["error"],
        }
        for row in records.read_jsonl(path)
    }


def _implied(read: Mapping[str, Mapping]) -> dict:
    found = {}
    for reader, row in read.items():
        found[f"implied_{reader}"] = _likeliest(row["own"])
        found[f"probabilities_{reader}"] = row["own"]
        for control in ("other", "none"):
            found[f"implied_{reader}_{control}"] = _likeliest(row[control])
    return found


def _agrees(row: Mapping, field: str) -> bool:
    return row["answer"] is not None and row[field] == row["answer"]


def _likeliest(probabilities: Mapping[str, float] | None) -> str | None:
    return max(probabilities, key=probabilities.get) if probabilities else None
