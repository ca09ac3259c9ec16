"""A sweep as one small record, a table and a figure: what varying one thing does.

    python -m lib.sweeps outputs/data_efficiency --out outputs/reference/sweeps

reads outputs/data_efficiency/runs.json (written by lib.pipeline) with the predictions
of its finished runs, and writes data_efficiency.json, .md and .png. The record holds a
row a run: the values that the sweep varies, the seed, and for each model and set the
accuracy and `correct`, a text of 0 and 1 in the order of the sorted question ids, so
that runs can be compared question by question (lib/claim_records.py does). A run that
failed, or waits, stays in it with its status and without numbers.

An interval over seeds carries the choice of questions and the seed alike
(stats.mean_over_seeds).

    python -m lib.report sweeps outputs/reference/sweeps

writes README's block of all sweeps whose records lie in a folder.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib import chain, plots, stats, tables
from lib.markup import grid
from lib.paths import ROOT, require, resolve
from lib.records import read_json, write_json, write_text

FIXED = ("run", "seed", "status", "seconds", "metrics", "git_commit")
BEGIN, END = "<!-- sweeps:begin -->", "<!-- sweeps:end -->"


def record(folder: str | Path) -> list[dict]:
    """The rows of a sweep's runs.json, with the answers instead of their metrics."""
    folder = resolve(folder)
    path = require(folder / "runs.json", "run the sweep with python -m lib.pipeline")
    return [_row(row, folder.parent / row["run"]) for row in read_json(path)]


def _row(row: Mapping, run: Path) -> dict:
    if "metrics" not in row:
        return dict(row)
    chain.verify(run)
    answers = {
        label: {name: _compact(run, label, name) for name in sets}
        for label, sets in row["metrics"].items()
    }
    manifest = read_json(run / "manifest.json")
    commit = list(manifest.values())[-1]["environment"]["git_commit"]
    return {**row, "git_commit": commit, "metrics": answers}


def _compact(run: Path, label: str, name: str) -> dict:
    rows = tables.read_rows(run / f"predictions_{label}_{name}.jsonl")
    rows = sorted(rows, key=lambda row: row["id"])
    numbers = tables.summary(rows)
    keys = ("n", "accuracy", "parse_failure", "truncated", "chance")
    correct = "".join("01"[bool(row["correct"])] for row in rows)
    return {**{key: numbers[key] for key in keys}, "correct": correct}


def varied(rows: Sequence[Mapping]) -> list[str]:
    """What the sweep varies, but for the seed."""
    return [key for key in rows[0] if key not in FIXED]


def table(rows: Sequence[Mapping]) -> list[dict]:
    """One row a combination of values, model and set: mean and interval over seeds.

    Keys: the varied ones, model, set, n, chance, seeds, mean, low, high, by_seed.
    """
    keys = varied(rows)
    runs: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if "metrics" in row:
            runs.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for values, own in runs.items():
        for label, sets in own[0]["metrics"].items():
            for name, first in sets.items():
                texts = [row["metrics"][label][name]["correct"] for row in own]
                correct = np.array([[int(c) for c in text] for text in texts], float)
                over = stats.mean_over_seeds(correct)
                place = dict(zip(keys, values, strict=True))
                place |= {"model": label, "set": name}
                place |= {key: first[key] for key in ("n", "chance")}
                place |= {key: over[key] for key in ("seeds", "mean", "low", "high")}
                found.append(place | {"by_seed": correct.mean(1).tolist()})
    return found


def markdown(rows: Sequence[Mapping]) -> str:
    """The table, one line a combination and model, one column a set."""
    made = table(rows)
    keys, sets = varied(rows), list(dict.fromkeys(row["set"] for row in made))
    lines: dict[tuple, list[str]] = {}
    for row in made:
        label = plots.LABELS.get(row["model"], row["model"])
        place = (*(str(row[key]) for key in keys), label, str(row["seeds"]))
        span = (
            f"{100 * row['mean']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        )
        lines.setdefault(place, []).append(span)
    head = [*keys, "model", "seeds", *sets]
    return grid([head, *([*place, *cells] for place, cells in lines.items())])


def readme_block(folder: str | Path) -> str:
    """README's sweeps, markers included: a heading, a line and a table for each."""
    folder = require(folder, "make its records: python -m lib.sweeps")
    parts = [BEGIN]
    for path in sorted(folder.glob("*.json")):
        rows = read_json(path)
        parts += [f"### `{path.stem}`", ""]
        parts += [f"{question(path.stem)} {effort(rows)}", ""]
        parts += [markdown(rows)]
        if len({row[varied(rows)[0]] for row in rows}) > 2:
            parts += [
                f"![Accuracy on L1 to L3]({_shown(path.with_suffix('.png'))})",
                "",
            ]
    return "\n".join([*parts, END])


def question(name: str) -> str:
    """What a sweep asks: the comment at the head of its params file."""
    lines = (ROOT / "params" / "sweeps" / f"{name}.yaml").read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]
    return " ".join(line.removeprefix("#").strip() for line in head)


def effort(rows: Sequence[Mapping]) -> str:
    """How many runs, how long they took two at a time, and how many have no answers."""
    minutes = sum(row.get("seconds", 0.0) for row in rows) / 60 / 2
    without = sum("metrics" not in row for row in rows)
    text = f"{len(rows)} runs, {minutes:.0f} minutes two at a time"
    return f"*{text}{f'; {without} without answers' if without else ''}.*"


def _shown(path: Path) -> str:
    """As README links it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def main(arguments: list[str] | None = None) -> None:
    """Write the record, table and figure of a finished sweep."""
    parser = argparse.ArgumentParser(prog="python -m lib.sweeps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sweep", type=Path, help="folder such as outputs/kl")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    out, name = resolve(options.out), resolve(options.sweep).name
    rows = record(options.sweep)
    write_json(out / f"{name}.json", rows)
    write_text(out / f"{name}.md", markdown(rows))
    made = [row for row in table(rows) if row["set"] in ("L1", "L2", "L3")]
    plots.save(plots.sweep(made, varied(rows)[0]), out / f"{name}.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
