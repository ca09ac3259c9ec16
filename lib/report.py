"""What a run or several seeds say, in words and numbers: README's result block.

README's block is written from small committed records, one a seed:

    python -m lib.report reference outputs/mini_seeds-* --out FOLDER
    python -m lib.report readme FOLDER

Example: with GRPO right on 240 of 500 questions of L1 and SFT on 225, and an interval
of the paired difference from +0.4 to +5.6 points, the block says "L1: GRPO ahead of
SFT by 3.0 points (95 % interval 0.4 to 5.6)"; if the interval holds zero, "undecided".
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib import chain, claim_records, claims, plots, stats, sweeps, tables
from lib.markup import Marked, code, grid
from lib.paths import ROOT, require, resolve
from lib.performance import performance_block
from lib.records import read_json, settings_hash, write_json, write_text
from lib.tables import COMPARISONS, METHODS, percent, span

MEANING = {
    "L1": "same environments as in training",
    "L2": "new environments",
    "L3": "new environments and new tasks",
    "general": "general video questions",
}
OTHER_RL = (("ppo", "grpo"), ("care", "grpo"))  # compared where the records have them
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def verdict(name: str, row: Mapping) -> str:
    """One sentence on a set: is GRPO or SFT ahead, by how much, how sure.

    `row` has difference (GRPO - SFT), low, high. The words follow from the interval.
    """
    value, low, high = (row[key] for key in ("difference", "low", "high"))
    if low > 0:
        text = f"GRPO ahead of SFT by {_difference(value, low, high)}"
    elif high < 0:
        text = f"SFT ahead of GRPO by {_difference(-value, -high, -low)}"
    else:
        text = f"undecided: GRPO − SFT is {_difference(value, low, high, signed=True)}"
    return f"**{name}** ({MEANING[name]}): {text}"


def findings(table: Sequence[Mapping], compared: Sequence[Mapping]) -> list[str]:
    """What a run shows, as sentences with numbers, the main question first."""
    main = [row for row in compared if (row["a"], row["b"]) == ("grpo", "sft")]
    sentences = [verdict(row["set"], row) for row in main]
    for model in METHODS:
        rows = [row for row in table if row["model"] == model]
        n = sum(row["n"] for row in rows)
        failed = sum(row["parse_failure"] * row["n"] for row in rows) / n
        cut = sum(row["truncated"] * row["n"] for row in rows) / n
        sentences.append(
            f"{plots.LABELS[model]}: of {n:,} answers {percent(failed)} % could not be "
            f"parsed and {percent(cut)} % were cut at the token limit"
        )
    return sentences


def manifest_markdown(manifest: Mapping) -> str:
    """What each stage of a run recorded about itself, one line a fact."""
    facts = [
        {"stage": stage, "fact": fact, "value": value}
        for stage, known in manifest.items()
        for fact, value in _flat(known)
    ]
    columns = {
        "stage": lambda row: row["stage"],
        "fact": lambda row: row["fact"],
        "value": lambda row: code(row["value"]),
    }
    return tables.markdown(facts, columns)


def write_results(run: Path, results: Mapping) -> str:
    """Write results.json and results.md of a run; returns the markdown.

    `results` needs accuracy, comparisons and out_of_distribution (rows as made here)
    and may carry any settings beside them.
    """
    found = findings(results["accuracy"], results["comparisons"])
    text = "\n".join(
        [
            f"# {run.name}\n",
            *(f"- {sentence}" for sentence in found),
            "\n## Accuracy, 95 % Wilson intervals\n",
            tables.accuracy_markdown(results["accuracy"]),
            "## Paired differences, 95 % bootstrap intervals over questions\n",
            tables.comparisons_markdown(results["comparisons"]),
            "## GRPO's advantage out of distribution\n",
            tables.out_of_distribution_markdown(results["out_of_distribution"]),
            "## Beside the paper: another model and other data\n",
            tables.beside_paper_markdown(results["accuracy"]),
        ]
    )
    write_json(run / "results.json", {**results, "findings": found})
    write_text(run / "results.md", text)
    return text


def reference_record(run: Path) -> dict:
    """A run as a few kilobytes: enough for every table of README, questions paired.

    Per model and set: n, accuracy under both rules, parse failures, truncation, and
    `correct`, a text of 0 and 1 in the order of the sorted question ids. `questions`
    holds a hash of ids, options and right letters, so that runs can be paired or
    refused. Seed, settings and seconds come from the pipeline's record of the run,
    the peak of memory of each notebook that trains or evaluates from its manifest.
    """
    run = resolve(run)
    chain.verify(run)
    predictions = tables.read_predictions(run)
    state = read_json(
        require(run / "pipeline.json", "run it with python -m lib.pipeline")
    )
    given = dict(state["parameters"])
    if "seed" not in given:
        raise ValueError(f"{run / 'pipeline.json'}: its parameters hold no `seed`")
    manifest = read_json(require(run / "manifest.json", "run the notebooks first"))
    apart = ("seed", "run_name", *claim_records.ASKED_BESIDE)
    settings = {k: v for k, v in given.items() if k not in apart}
    return {
        "run_name": run.name,
        "seed": given["seed"],
        "settings": settings_hash(settings),
        "data": settings.get("data_dir"),
        "seconds": {k: v["seconds"] for k, v in state["notebooks"].items()},
        "peak_memory_gib": {
            stage: facts["peak_memory_gib"]
            for stage, facts in manifest.items()
            if "peak_memory_gib" in facts
        },
        "environment": list(manifest.values())[-1]["environment"],
        "questions": {
            name: tables.questions_hash(predictions["base", name])
            for name in tables.sets_of(predictions)
        },
        "results": [
            {"model": model, "set": name, **_compact(rows)}
            for (model, name), rows in predictions.items()
        ],
    }


def read_reference(source: str | Path) -> list[dict]:
    """The records to average, by seed: a folder of them, or run names with commas.

    ValueError when they cannot be averaged: a seed twice, other questions, settings.
    """
    folder = resolve(source)
    if folder.is_dir():
        records = [read_json(path) for path in sorted(folder.glob("*.json"))]
    else:
        names = [name.strip() for name in str(source).split(",") if name.strip()]
        records = [reference_record(ROOT / "outputs" / name) for name in names]
    if not records:
        raise FileNotFoundError(
            f"{folder} holds no records: python -m lib.report reference writes them"
        )
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{source}: a seed occurs twice among {seeds}")
    for key in ("questions", "settings"):
        if any(record[key] != records[0][key] for record in records):
            raise ValueError(f"{source}: the runs differ in {key}, do not average them")
    return sorted(records, key=lambda record: record["seed"])


def seeds_table(records: Sequence[Mapping]) -> list[dict]:
    """Mean accuracy of each model and set over seeds, as `stats.mean_over_seeds`."""
    return [
        {
            "model": entry["model"],
            "set": entry["set"],
            "chance": entry["chance"],
            "by_seed": values.mean(1).tolist(),
            **stats.mean_over_seeds(values),
        }
        for entry in records[0]["results"]
        for values in [_over_seeds(records, entry["model"], entry["set"])]
    ]


def seeds_comparisons(records: Sequence[Mapping]) -> list[dict]:
    """Paired differences of each pair of methods and set, over seeds and questions."""
    have = {entry["model"] for entry in records[0]["results"]}
    return [
        {"a": a, "b": b, "set": name, "difference": row["mean"], **row}
        for a, b in (*COMPARISONS, *(pair for pair in OTHER_RL if {*pair} <= have))
        for name in records[0]["questions"]
        for row in [
            stats.mean_over_seeds(
                _over_seeds(records, a, name) - _over_seeds(records, b, name)
            )
        ]
    ]


def readme_block(source: str | Path) -> str:
    """README's result block, markers included, from records (`read_reference`)."""
    records = read_reference(source)
    table, compared = seeds_table(records), seeds_comparisons(records)
    main = [row for row in compared if (row["a"], row["b"]) == ("grpo", "sft")]
    lines = [
        BEGIN,
        *(f"- {verdict(row['set'], row)}" for row in main),
        "",
        _seeds_markdown(table, compared),
        _caption(records, table, _shown(source)),
        END,
    ]
    return "\n".join(lines)


def write_block(readme: str | Path, block: str) -> str:
    """Replace README's block by `block`, which begins and ends with its markers."""
    path = require(readme, "the README with the markers of its blocks")
    text = path.read_text(encoding="utf-8")
    begin, end = block.splitlines()[0], block.splitlines()[-1]
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold {begin} and {end} once each")
    before, rest = text.split(begin)
    write_text(path, before + block + rest.split(end)[1])
    return block


def main(arguments: list[str] | None = None) -> None:
    """The command line: make committed records, write README's block from them."""
    parser = argparse.ArgumentParser(prog="python -m lib.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    reference = commands.add_parser("reference", help="one small record a finished run")
    reference.add_argument("runs", nargs="+", type=Path)
    reference.add_argument("--out", required=True, type=Path)
    readme = commands.add_parser("readme", help="write README's results from records")
    readme.add_argument("records", help="a folder of records, or run names with commas")
    cost = commands.add_parser("performance", help="README's times from bench records")
    cost.add_argument("records", help="the folder of the bench records")
    claimed = commands.add_parser("claims", help="README's table of the paper's claims")
    claimed.add_argument("records", help="the folder of a claims.json")
    looked = commands.add_parser("evidence", help="README's tables of what was seen")
    looked.add_argument("records", help="the folder of lib.evidence")
    swept = commands.add_parser("sweeps", help="README's tables of all sweeps")
    swept.add_argument("records", help="the folder of lib.sweeps")
    options = parser.parse_args(arguments)
    if options.command == "evidence":
        from lib import evidence  # here, because it brings torch

        print(write_block("README.md", evidence.readme_block(options.records)))
        return
    if options.command == "claims":
        print(write_block("README.md", claims.readme_block(options.records)))
        return
    if options.command == "sweeps":
        print(write_block("README.md", sweeps.readme_block(options.records)))
        return
    if options.command == "readme":
        print(write_block("README.md", readme_block(options.records)))
        return
    if options.command == "performance":
        print(write_block("README.md", performance_block(options.records)))
        return
    for run in options.runs:
        path = resolve(options.out) / f"{resolve(run).name}.json"
        write_json(path, reference_record(run))
        print(path)
    records = read_reference(options.out)
    if len(records) > 1:
        table = seeds_table(records)
        rows = [row for row in table if row["model"] != "base-direct"]
        print(plots.save(plots.seeds(rows), resolve(options.out) / "seeds.png"))


def _flat(facts: Mapping, prefix: str = "") -> list[tuple[str, object]]:
    """Nested facts as dotted names; long values cut, the file has them whole."""
    lines: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            text = str(value)
            lines.append((prefix + name, text[:70] + " ..." * (len(text) > 70)))
    return lines


def _compact(rows: Sequence[Mapping]) -> dict:
    keys = ("n", "accuracy", "accuracy_lenient", "parse_failure", "truncated", "chance")
    numbers = tables.summary(rows)
    return {
        **{key: numbers[key] for key in keys},
        "correct": "".join("01"[bool(row["correct"])] for row in rows),
    }


def _over_seeds(records: Sequence[Mapping], model: str, name: str) -> np.ndarray:
    """Correctness of a model on a set: float [seeds, n]."""
    texts = [
        entry["correct"]
        for record in records
        for entry in record["results"]
        if (entry["model"], entry["set"]) == (model, name)
    ]
    if len(texts) != len(records):
        raise ValueError(f"not every record has {model} on {name}: make them anew")
    return np.array([[int(c) for c in text] for text in texts], dtype=float)


def _seeds_markdown(table: Sequence[Mapping], compared: Sequence[Mapping]) -> str:
    """Methods and differences down, sets across, and the paper's numbers below."""
    sets = {row["set"]: row["n"] for row in table}
    lines = [["", *(f"{name} (n = {n:,})" for name, n in sets.items())]]
    for model in dict.fromkeys(row["model"] for row in table):
        cells = {r["set"]: _mean(r) for r in table if r["model"] == model}
        lines.append([plots.LABELS[model], *(cells.get(name, "") for name in sets)])
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in compared):
        rows = [row for row in compared if (row["a"], row["b"]) == (a, b)]
        label = f"{plots.LABELS[a]} − {plots.LABELS[b]}, points"
        lines.append([label, *(_mean(row, signed=True) for row in rows)])
    chance = {row["set"]: percent(row["chance"]) for row in table}
    lines.append(["chance", *(chance[name] for name in sets)])
    paper = [
        " / ".join(percent(tables.published_accuracy(m, name)) for m in METHODS)
        for name in sets
    ]
    lines.append([Marked("*paper, Qwen2-VL-7B: base / SFT / GRPO*"), *paper])
    return grid(lines)


def _caption(records: Sequence[Mapping], table: Sequence[Mapping], source: str) -> str:
    """What varies in the intervals, how often an answer was missing, whose data."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    sentences = [
        f"Accuracy in %, first-letter rule, mean over training seeds ({seeds}) with a "
        f"95 % interval in which {table[0]['varies']} vary; differences are paired by "
        "question.",
        f"Largest standard deviation over seeds, in points: {_spread(table)}.",
        f"Answers that could not be parsed, mean over sets: {_unparsed(records)}.",
        f"Data: `{records[0]['data']}`; the paper's row is another model on other "
        "questions, shown for the pattern.",
        f"Written by `python -m lib.report readme {source}`.",
    ]
    return " ".join(sentences)


def _spread(table: Sequence[Mapping]) -> str:
    if table[0]["sd"] is None:
        return "unknown, one seed"
    largest = {
        plots.LABELS[m]: 100 * max(row["sd"] for row in table if row["model"] == m)
        for m in METHODS
    }
    return ", ".join(f"{label} {sd:.1f}" for label, sd in largest.items())


def _unparsed(records: Sequence[Mapping]) -> str:
    entries = [entry for record in records for entry in record["results"]]
    rates = {
        plots.LABELS[m]: np.mean(
            [e["parse_failure"] for e in entries if e["model"] == m]
        )
        for m in METHODS
    }
    return ", ".join(f"{label} {percent(rate)} %" for label, rate in rates.items())


def _shown(source: str | Path) -> str:
    """The source as it is typed from the root, whatever folder it was given from."""
    path = resolve(source)
    below = path.is_dir() and path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if below else str(source)


def _mean(row: Mapping, signed: bool = False) -> str:
    return span(row["mean"], row["low"], row["high"], signed)


def _difference(value: float, low: float, high: float, signed: bool = False) -> str:
    one = tables.points if signed else percent
    return f"{one(value)} points (95 % interval {one(low)} to {one(high)})"


if __name__ == "__main__":
    main()
