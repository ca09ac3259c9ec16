"""A run's rows of predictions, checked as they are read, and numbers as text.

Whoever shows a number or a question reads predictions_<model>_<set>.jsonl, one row a
question, here.

    >>> span(0.473, 0.449, 0.498), points(-0.012)
    ('47.3 [44.9, 49.8]', '−1.2')
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lib.data import parts
from lib.data.letters import judged
from lib.data.questions import Question
from lib.markup import grid
from lib.methods import METHODS, SETS, in_order
from lib.paths import require, resolve
from lib.records import read_json, read_jsonl

FIELDS = (
    *("id", "gold", "options", "completion"),
    *("correct", "correct_lenient", "parsed", "truncated"),
)
OWN = "own"  # while each method writes its own words
FILE = re.compile(rf"([a-z]+)_(.+?)(?:_({'|'.join(SETS)}))?(?:\.([\w-]+))?\.jsonl")

Predictions = dict[tuple[str, str], list[dict]]
GALLERY = {  # which of base, SFT and GRPO are right
    "only GRPO right": (False, False, True),
    "only SFT right": (False, True, False),
    "base right, both trained ones wrong": (True, False, False),
    "image only, methods disagree": None,
}


def read_predictions(run: Path) -> Predictions:
    """{(model, set): rows sorted by id} of a run, the same questions for every model.
    Where any model has predictions on a set, base, SFT and GRPO must have them.
    FileNotFoundError names a missing file, ValueError the file, line and field, or the
    questions, that make a comparison impossible."""
    found: Predictions = {}
    for name in SETS:
        present = [f[2] for f in files(run, "predictions") if f[3] == name and not f[4]]
        for model in in_order((*METHODS, *present)) if present else ():
            path = run / f"predictions_{model}_{name}.jsonl"
            require(path, f"run 04_eval with {model} in asked_models")
            found[model, name] = sorted(read_rows(path), key=lambda row: row["id"])
            same_questions(found["base", name], found[model, name], path)
    if not found:
        raise FileNotFoundError(f"{run} holds no predictions: run 04_eval first")
    return found


def files(run: Path, *kinds: str) -> list[re.Match]:
    """The names of a run's records of these kinds, "predictions" or others, each parted
    in kind, model, set and what stands behind a dot, or None; in the order of tables,
    without those that are not finished and those of models or sets that the last
    04_eval did not ask (metrics.json): an earlier one left them."""
    found = (FILE.fullmatch(path.name) for path in Path(run).glob("*_*.jsonl"))
    own = [name for name in found if name and name[1] in kinds]
    own = [name for name in own if not (name[4] or "").startswith("partial")]
    if asked := read_json(run / "metrics.json", {}):
        sets = {model: {None, *of} for model, of in asked.items()}
        own = [name for name in own if name[3] in sets.get(name[2], ())]
    order = in_order(name[2] for name in own)
    return sorted(own, key=lambda name: (order.index(name[2]), name[0]))


def read_rows(path: Path) -> list[dict]:
    """Rows of predictions, in their order; each must be what its completion says, read
    again. ValueError names the file, the line and the field."""
    rows, settings = read_jsonl(path), path.with_suffix(".settings.json")
    style = "direct" if "-direct_" in path.name else "think"
    style = read_json(settings, {}).get("style", style)
    if not rows:
        raise ValueError(f"{path} is empty: run 04_eval again")
    ids: set = set()
    for number, row in enumerate(rows, 1):
        for field in FIELDS:
            if field not in row:
                raise ValueError(f"{path}, line {number}: no field `{field}`")
        said = judged(row["completion"], row["options"], row["gold"], style)
        for field, value in said.items():
            if row.get(field, value) != value:
                raise ValueError(
                    f"{path}, line {number}: {field} is {row.get(field)!r}, but the "
                    f"completion says {value!r}: bring the row back, or evaluate again"
                )
        if row["id"] in ids:
            raise ValueError(f"{path}, line {number}: question {row['id']} twice")
        ids.add(row["id"])
    return rows


def attention_file(run: Path, model: str, text: str) -> Path:
    """attention_grpo.jsonl; attention_grpo.on_base.jsonl of the base's completions."""
    return run / f"attention_{model}{'' if text == OWN else f'.on_{text}'}.jsonl"


def same_questions(first: Sequence[dict], rows: Sequence[dict], path: Path) -> None:
    """ValueError unless the rows of a file answer the questions of the `first` one."""
    known, here = (
        {row["id"]: (row["gold"], row["options"]) for row in own}
        for own in (first, rows)
    )
    if known != here:
        differ = sorted(k for k in known | here if known.get(k) != here.get(k))
        raise ValueError(
            f"{path} and the first file of its set differ in {len(differ)} questions, "
            f"first {differ[0]}: methods and seeds are compared on the same questions, "
            "evaluate both again"
        )


def questions_hash(rows: Iterable[Mapping]) -> str:
    """12 hex digits of ids, options and right letters, in the order given."""
    asked = [(row["id"], row["options"], row["gold"]) for row in rows]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def asked(
    data_dir: str | Path, general_dir: str | Path, sets: Iterable[str]
) -> dict[str, Question]:
    """{id: Question} of some sets, as the annotation files have them."""
    where = resolve(data_dir), resolve(general_dir)
    found = parts.read(*where, " ".join(sets)).values()
    return {question.id: question for own in found for question in own}


def sets_of(predictions: Predictions) -> list[str]:
    """The sets of a run, in the order of the paper."""
    return list(dict.fromkeys(name for _, name in predictions))


def by_id(predictions: Predictions, model: str) -> dict[str, dict]:
    """{question id: row} of everything that a model was asked as it is."""
    own = (rows for (label, _), rows in predictions.items() if label == model)
    return {row["id"]: row for rows in own for row in rows}


def gallery(predictions: Predictions, image_only: set[str]) -> list[dict]:
    """The first question, by id, of each kind of GALLERY whose pictures could be read,
    once: {"kind", "id"}. `image_only` holds the ids of those without a video."""
    said = [by_id(predictions, model) for model in METHODS]
    picks: dict[str, dict] = {}
    for kind, pattern in GALLERY.items():
        for key in said[0]:
            rows = [own[key] for own in said]
            right = tuple(bool(row["correct"]) for row in rows)
            mixed = pattern is None and key in image_only and len({*right}) > 1
            seen = all(row.get("error") is None for row in rows)
            if seen and key not in picks and (mixed or right == pattern):
                picks[key] = {"kind": kind, "id": key}
                break
    return list(picks.values())


def markdown(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows {header: cell} as a table; – where a row has no such cell."""
    rows = list(rows)
    heads = list(dict.fromkeys(head for row in rows for head in row))
    if not rows:
        return "None in these records.\n"
    return grid([heads, *([row.get(head, "–") for head in heads] for row in rows)])


def crossed(cells: Iterable[tuple[Mapping, str, object]]) -> str:
    """A table of (line {header: cell}, column, cell where they meet)."""
    lines: dict[tuple, dict] = {}
    for line, column, cell in cells:
        lines.setdefault(tuple(line.items()), {})[column] = cell
    return markdown(dict(line) | own for line, own in lines.items())


def span(value: float, low: float, high: float, signed: bool = False) -> str:
    """A share with its interval in per cent or points: 47.3 [44.9, 49.8]."""
    one = points if signed else percent
    return f"{one(value)} [{one(low)}, {one(high)}]"


def percent(share: float) -> str:
    """A share in per cent with one decimal."""
    return f"{100 * share:z.1f}".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares in points, with its sign; what rounds to 0 has none."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text
