"""Tables of one run, from its prediction records alone.

A run folder holds predictions_<model>_<set>.jsonl, one row a question; everything here
follows from those rows, without a model. Sets are named as in SEED-Bench-R1 (arXiv
2503.24376): L1 same environments as in training, L2 new environments, L3 new
environments and new tasks; `general` is a benchmark of another kind. Tables are lists
of dicts, which `lib.plots` draws and the `..._markdown` functions print.

Example: rows of four questions, three of them right, give accuracy 0.75 with a Wilson
interval from 0.30 to 0.95: four questions say next to nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lib import plots, questions, stats
from lib.data.letters import judged
from lib.markup import grid
from lib.paths import require, resolve
from lib.records import read_json, read_jsonl

METHODS = ("base", "sft", "grpo")
# The order of those that need not be there; others follow by name.
MODELS = (*METHODS, "base-direct", "sft-answers", "ppo", "care")
SETS = ("L1", "L2", "L3", "general")
COMPARISONS = (("grpo", "sft"), ("sft", "base"), ("grpo", "base"))
FIELDS = ("id", "gold", "options", "completion", "correct", "correct_lenient", "parsed")
FIELDS += ("truncated",)

Predictions = dict[tuple[str, str], list[dict]]


def published() -> dict:
    """The numbers of the paper, with their sources (lib/published.json)."""
    return read_json(Path(__file__).with_name("published.json"))


def read_predictions(run: Path) -> Predictions:
    """{(model, set): rows sorted by id} of a run, the same questions for every model.

    A set counts as evaluated when any model has predictions on it; then base, SFT and
    GRPO must all have them. FileNotFoundError names a missing file; ValueError names
    the file, line and field, or the questions, that make a comparison impossible.
    """
    found: Predictions = {}
    for name in SETS:
        present = predicted(run, name)
        if not present:
            continue
        for model in dict.fromkeys((*METHODS, *present)):
            path = run / f"predictions_{model}_{name}.jsonl"
            require(path, "run 04_eval first")
            found[model, name] = sorted(read_rows(path), key=lambda row: row["id"])
            _same_questions(found["base", name], found[model, name], path)
    if not found:
        raise FileNotFoundError(f"{run} holds no predictions: run 04_eval first")
    return found


def predicted(run: Path, name: str) -> list[str]:
    """The models that have predictions on a set, in the order of every table."""
    ends = ("predictions_", f"_{name}.jsonl")
    found = {
        path.name.removeprefix(ends[0]).removesuffix(ends[1])
        for path in run.glob("*".join(ends))
    }
    return [*(model for model in MODELS if model in found), *sorted(found - {*MODELS})]


def asked(
    data_dir: str | Path, general_dir: str | Path, sets: Iterable[str]
) -> dict[str, questions.Question]:
    """{id: Question} of some sets, as the annotation files have them."""
    data, general, found = resolve(data_dir), resolve(general_dir), []
    for name in sets:
        if name == "general":
            found += questions.read_general(general / "lvb_val.json", general)
        else:
            path = data / "annotations" / f"validation_{name}.jsonl"
            found += questions.read_validation(path, data, name)
    return {question.id: question for question in found}


def accuracy_table(predictions: Predictions) -> list[dict]:
    """One row a model and set: accuracy under both rules with Wilson intervals.

    A question whose answer cannot be parsed, or whose video failed, counts as wrong.
    """
    return [
        {"model": model, "set": name, **summary(rows)}
        for (model, name), rows in predictions.items()
    ]


def summary(rows: Sequence[Mapping]) -> dict:
    """Accuracy under both rules with intervals, chance, and what went wrong."""
    n = len(rows)
    right, lenient = (
        sum(row[key] for row in rows) for key in ("correct", "correct_lenient")
    )
    low, high = stats.wilson_interval(right, n)
    lenient_low, lenient_high = stats.wilson_interval(lenient, n)
    return {
        "n": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "accuracy_lenient": lenient / n,
        "low_lenient": lenient_low,
        "high_lenient": lenient_high,
        "parse_failure": sum(not row["parsed"] for row in rows) / n,
        "truncated": sum(row["truncated"] for row in rows) / n,
        "failed_videos": sum(row.get("error") is not None for row in rows),
        "chance": sum(1 / len(row["options"]) for row in rows) / n,
    }


def group_table(predictions: Predictions, name: str, field: str) -> list[dict]:
    """`summary` of one set by a field of its rows (domain, duration_group)."""
    rows = predictions["base", name]
    groups = sorted({row[field] for row in rows if row[field] is not None})
    return [
        {
            "model": model,
            field: group,
            **summary([r for r in rows if r[field] == group]),
        }
        for model in METHODS
        for rows in [predictions[model, name]]
        for group in groups
    ]


def comparisons(
    predictions: Predictions,
    samples: int,
    seed: int,
    pairs: Sequence[tuple[str, str]] = COMPARISONS,
) -> list[dict]:
    """Paired difference, interval and McNemar p of each pair of models on each set."""
    return [
        {"a": a, "b": b, "set": name}
        | stats.paired_difference(
            correct(predictions[a, name]),
            correct(predictions[b, name]),
            samples=samples,
            seed=seed,
        )
        for a, b in pairs
        for name in sets_of(predictions)
        if (a, name) in predictions and (b, name) in predictions
    ]


def out_of_distribution(
    predictions: Predictions, samples: int, seed: int
) -> list[dict]:
    """Is GRPO's advantage over SFT larger on L2 and L3 than on L1? One row each."""
    pair = {
        name: tuple(correct(predictions[model, name]) for model in ("grpo", "sft"))
        for name in sets_of(predictions)
    }
    return [
        {"there": name, "here": "L1"}
        | stats.difference_of_differences(pair[name], pair["L1"], samples, seed)
        for name in ("L2", "L3")
        if name in pair and "L1" in pair
    ]


def published_groups(field: str) -> dict:
    """{group: the paper's n and correct answers}, by "set", "domain" or duration."""
    if field == "duration_group":
        return {int(key): entry for key, entry in published()["durations"].items()}
    return published()[field + "s"]


def published_accuracy(model: str, name: str) -> float:
    """The paper's accuracy of a method on a set, as a share."""
    entry = published()["sets"][name]
    return entry["correct"][model] / entry["n"]


def published_differences() -> dict:
    """{(a, b, set): the paper's difference}, unpaired: its answers are not public."""
    return {
        (a, b, name): stats.unpaired_difference(
            entry["correct"][a], entry["n"], entry["correct"][b], entry["n"]
        )
        for name, entry in published()["sets"].items()
        for a, b in COMPARISONS
    }


def gallery(predictions: Predictions, image_only: set[str]) -> list[dict]:
    """Up to four questions worth a look: {"kind", "id", "set"}, by rule, not by taste.

    The first question, by id, of each kind; a question is shown once, and only if its
    pictures could be read. `image_only` holds the ids of questions without a video.
    """
    kinds: dict[str, Callable[[str, bool, bool, bool], bool]] = {
        "only GRPO right": lambda _, base, sft, grpo: grpo and not sft and not base,
        "only SFT right": lambda _, base, sft, grpo: sft and not grpo and not base,
        "base right, both trained ones wrong": lambda _, base, sft, grpo: (
            base and not sft and not grpo
        ),
        "image only, methods disagree": lambda key, *right: (
            key in image_only and len(set(right)) > 1
        ),
    }
    picks: list[dict] = []
    for kind, holds in kinds.items():
        for key, name, rows in _by_question(predictions):
            seen = key in {pick["id"] for pick in picks}
            readable = all(row.get("error") is None for row in rows)
            if (
                not seen
                and readable
                and holds(key, *(bool(r["correct"]) for r in rows))
            ):
                picks.append({"kind": kind, "id": key, "set": name})
                break
    return picks


def answers(predictions: Predictions, pick: Mapping) -> dict[str, dict]:
    """{method: its row} for a question of the gallery."""
    return {
        model: next(row for row in predictions[model, pick["set"]] if row["id"] == key)
        for model in METHODS
        for key in [pick["id"]]
    }


def by_id(predictions: Predictions, model: str) -> dict[str, dict]:
    """{question id: row} of everything that a model was asked as it is."""
    return {
        row["id"]: row
        for (own, _), rows in predictions.items()
        if own == model
        for row in rows
    }


def correct(rows: Sequence[Mapping]) -> np.ndarray:
    """0 or 1 a question, first-letter rule (the paper's), float [n]."""
    return np.array([row["correct"] for row in rows], dtype=float)


def markdown(rows: Sequence[Mapping], columns: Mapping[str, Callable]) -> str:
    """A table: one line a row, each column {header: function of the row}."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return grid([list(columns), *cells])


def accuracy_markdown(rows: Sequence[Mapping]) -> str:
    """The method x level table with n, both parsing rules, and what went wrong."""
    columns = {
        "method": lambda row: plots.LABELS[row["model"]],
        "set": lambda row: row["set"],
        "n": lambda row: row["n"],
        "accuracy %, first letter": lambda row: span(
            row["accuracy"], row["low"], row["high"]
        ),
        "accuracy %, lenient": lambda row: span(
            row["accuracy_lenient"], row["low_lenient"], row["high_lenient"]
        ),
        "no answer parsed %": lambda row: percent(row["parse_failure"]),
        "truncated %": lambda row: percent(row["truncated"]),
        "failed videos": lambda row: row["failed_videos"],
        "chance %": lambda row: percent(row["chance"]),
    }
    return markdown(rows, columns)


def comparisons_markdown(rows: Sequence[Mapping]) -> str:
    """Paired differences in points, with the discordant questions they rest on."""
    columns = {
        "comparison": lambda r: f"{plots.LABELS[r['a']]} − {plots.LABELS[r['b']]}",
        "set": lambda r: r["set"],
        "n": lambda r: r["n"],
        "difference, points": lambda r: span(
            r["difference"], r["low"], r["high"], signed=True
        ),
        "only the first right": lambda r: r["wins"],
        "only the second right": lambda r: r["losses"],
        "McNemar p": lambda r: f"{r['p']:.2g}",
    }
    return markdown(rows, columns)


def out_of_distribution_markdown(rows: Sequence[Mapping]) -> str:
    """GRPO's advantage over SFT there, less the same on L1, in points."""
    columns = {
        "GRPO − SFT": lambda row: f"on {row['there']}, less that on {row['here']}",
        "n": lambda row: f"{row['n_there']} and {row['n_here']}",
        "difference of differences, points": lambda row: span(
            row["difference"], row["low"], row["high"], signed=True
        ),
    }
    return markdown(rows, columns)


def beside_paper_markdown(rows: Sequence[Mapping]) -> str:
    """Our accuracies beside the paper's: another model, and often other data."""
    sets = {row["set"]: row["n"] for row in rows}
    ours = {(row["model"], row["set"]): row["accuracy"] for row in rows}
    columns: dict[str, Callable] = {"set": str, "n": sets.get}
    for model in METHODS:
        label = plots.LABELS[model]
        columns |= {
            f"{label} %": lambda name, m=model: percent(ours[m, name]),
            f"paper's {label} %": lambda name, m=model: percent(
                published_accuracy(m, name)
            ),
        }
    columns["paper's n"] = lambda name: published()["sets"][name]["n"]
    return markdown(list(sets), columns)


def span(value: float, low: float, high: float, signed: bool = False) -> str:
    """A share with its interval in per cent or points: 47.3 [44.9, 49.8]."""
    one = points if signed else percent
    return f"{one(value)} [{one(low)}, {one(high)}]"


def percent(share: float) -> str:
    """A share in per cent with one decimal."""
    return f"{100 * share:.1f}".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares in points, with its sign; what rounds to 0 has none."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def sets_of(predictions: Predictions) -> list[str]:
    """The sets of a run, in the order of the paper."""
    return list(dict.fromkeys(name for _, name in predictions))


def questions_hash(rows: Iterable[Mapping]) -> str:
    """12 hex digits of ids, options and right letters, in the order given."""
    asked = [(row["id"], row["options"], row["gold"]) for row in rows]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def read_rows(path: Path) -> list[dict]:
    """Rows of predictions, in their order; each must be what its completion says, read
    again. ValueError names the file, the line and the field."""
    rows, settings = read_jsonl(path), path.with_suffix(".settings.json")
    style = "direct" if "-direct_" in path.name else "think"
    style = read_json(settings).get("style", style) if settings.exists() else style
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


def _same_questions(base: Sequence[dict], rows: Sequence[dict], path: Path) -> None:
    if questions_hash(base) == questions_hash(rows):
        return
    known = {row["id"]: (row["gold"], row["options"]) for row in base}
    here = {row["id"]: (row["gold"], row["options"]) for row in rows}
    differ = sorted(k for k in known | here if known.get(k) != here.get(k))
    raise ValueError(
        f"{path} and the base model's file differ in {len(differ)} questions, first "
        f"{differ[0]}: methods are compared on the same questions, evaluate both again"
    )


def _by_question(predictions: Predictions) -> Iterable[tuple[str, str, tuple]]:
    """(id, set, rows of base, SFT and GRPO), sets in order, ids in order."""
    for name in sets_of(predictions):
        for rows in zip(*(predictions[m, name] for m in METHODS), strict=True):
            yield rows[0]["id"], name, rows
