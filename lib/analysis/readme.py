"""README's table, and the small committed records behind it and its links.

    python -m lib.analysis reference outputs/mini_seeds-* --out FOLDER
    python -m lib.analysis readme FOLDER
    python -m lib.analysis sweep outputs/kl --out outputs/reference/sweeps
    python -m lib.analysis evidence outputs/mini_seeds-seed=* --out FOLDER

`reference` keeps a run as a few kilobytes, from which `readme` writes the one block of
README that is made of numbers; `sweep` and `evidence` write a record, a table and a
figure each, to which README links. An interval over seeds carries the choice of
questions and the training seed alike.

Example: with GRPO right on 240 of 500 questions of L1 and SFT on 225, and an interval
of the paired difference from +0.4 to +5.6 points, the block says "L1: GRPO ahead of
SFT by 3.0 points (95 % interval 0.4 to 5.6)"; if the interval holds zero, "undecided".
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lib import chain
from lib.analysis import answers, compare, evidence_plots, plots, reasoned, seen
from lib.evaluate import tables
from lib.evaluate.tables import percent, span
from lib.markup import Marked, code, grid
from lib.methods import (
    ASKED,
    LABELS,
    LEVELS,
    MEANING,
    METHODS,
    MODELS,
    OTHER_RL,
    PAIRS,
    SETS,
    difference,
)
from lib.mini import still_reader
from lib.paths import ROOT, require, resolve
from lib.records import read_json, settings_hash, write_json, write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
FIXED = ("run", "seed", "status", "seconds", "metrics", "git_commit")  # of a sweep
KEPT = ("n", "accuracy", "accuracy_lenient", "parse_failure", "truncated", "chance")


# One run


def verdict(name: str, row: Mapping) -> str:
    """One sentence on a set: is GRPO or SFT ahead, by how much, how sure.

    `row` has difference (GRPO - SFT), low, high. The words follow from the interval.
    """
    value, low, high = (row[key] for key in ("difference", "low", "high"))
    one, head = tables.points, "undecided: GRPO − SFT is"
    if low > 0:
        one, head = percent, "GRPO ahead of SFT by"
    elif high < 0:
        one, head = percent, "SFT ahead of GRPO by"
        value, low, high = -value, -high, -low
    text = f"{one(value)} points (95 % interval {one(low)} to {one(high)})"
    return f"**{name}** ({MEANING[name]}): {head} {text}"


def findings(table: Sequence[Mapping], compared: Sequence[Mapping]) -> list[str]:
    """What a run shows, as sentences with numbers, the main question first."""
    sentences = [verdict(row["set"], row) for row in main_of(compared)]
    for model in METHODS:
        rows = [row for row in table if row["model"] == model]
        n = sum(row["n"] for row in rows)
        failed, cut = (
            percent(sum(row[key] * row["n"] for row in rows) / n)
            for key in ("parse_failure", "truncated")
        )
        sentences.append(
            f"{LABELS[model]}: of {n:,} answers {failed} % could not be parsed and "
            f"{cut} % were cut at the token limit"
        )
    return sentences


def main_of(compared: Iterable[Mapping]) -> list[Mapping]:
    """The rows of GRPO − SFT, a set each."""
    return [row for row in compared if (row["a"], row["b"]) == PAIRS[0]]


def write_results(run: Path, results: Mapping) -> str:
    """Write results.json and results.md of a run; returns the markdown.

    `results` needs accuracy, comparisons and out_of_distribution (rows of
    lib/analysis/compare.py) and may carry any settings beside them.
    """
    found = findings(results["accuracy"], results["comparisons"])
    text = "\n".join(
        [
            f"# {run.name}\n",
            *(f"- {sentence}" for sentence in found),
            "\n## Accuracy, 95 % Wilson intervals\n",
            compare.accuracies_markdown(results["accuracy"]),
            "## Paired differences, 95 % bootstrap intervals over questions\n",
            compare.differences_markdown(results["comparisons"]),
            "## GRPO's advantage out of distribution\n",
            compare.out_of_distribution_markdown(results["out_of_distribution"]),
            "## Beside the paper: another model and other data\n",
            compare.beside_paper_markdown(results["accuracy"]),
        ]
    )
    write_json(run / "results.json", {**results, "findings": found})
    write_text(run / "results.md", text)
    return text


def manifest_markdown(manifest: Mapping) -> str:
    """What each stage of a run recorded about itself, one line a fact."""
    facts = [
        (stage, fact, value)
        for stage, known in manifest.items()
        for fact, value in _flat(known)
    ]
    columns = {
        "stage": lambda row: row[0],
        "fact": lambda row: row[1],
        "value": lambda row: code(row[2]),
    }
    return tables.markdown(facts, columns)


def _flat(facts: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as dotted names; long values cut, the file has them whole."""
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            text = str(value)
            lines.append((prefix + name, text[:70] + " ..." * (len(text) > 70)))
    return lines


# Committed records of runs


def reference_record(run: Path) -> dict:
    """A run as a few kilobytes: enough for every table of README, questions paired.

    Per model and set KEPT and `correct`, a text of 0 and 1 in the order of the sorted
    question ids. `questions` holds a hash of ids, options and right letters, so that
    runs can be paired or refused. Seed, settings and seconds come from the pipeline's
    record of the run, the peak of memory of each notebook from its manifest.
    """
    run = resolve(run)
    chain.verify(run)
    predictions = tables.read_predictions(run)
    state = require(run / "pipeline.json", "run it with python -m lib.run")
    state = read_json(state)
    given = dict(state["parameters"])
    if "seed" not in given:
        raise ValueError(f"{run / 'pipeline.json'}: its parameters hold no `seed`")
    manifest = read_json(require(run / "manifest.json", "run the notebooks first"))
    apart = ("seed", "run_name", *answers.ASKED_BESIDE)
    peaks = {s: facts.get("peak_memory_gib") for s, facts in manifest.items()}
    return {
        "run_name": run.name,
        "seed": given["seed"],
        "settings": settings_hash({k: v for k, v in given.items() if k not in apart}),
        "data": given.get("data_dir"),
        "seconds": {k: v["seconds"] for k, v in state["notebooks"].items()},
        "peak_memory_gib": {s: peak for s, peak in peaks.items() if peak is not None},
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


def _compact(rows: Sequence[Mapping]) -> dict:
    numbers = compare.summary(rows)
    text = "".join("01"[bool(row["correct"])] for row in rows)
    return {key: numbers[key] for key in KEPT} | {"correct": text}


def write_reference(run: Path, out: Path) -> Path:
    """`reference_record` of a run as a file of `out`, named as the run is."""
    path = out / f"{resolve(run).name}.json"
    write_json(path, reference_record(run))
    return path


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
            f"{folder} holds no records: python -m lib.analysis reference writes them"
        )
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{source}: a seed occurs twice among {seeds}")
    for key in ("questions", "settings"):
        if any(record[key] != records[0][key] for record in records):
            raise ValueError(f"{source}: the runs differ in {key}, do not average them")
    return sorted(records, key=lambda record: record["seed"])


def of_records(records: Iterable[Mapping]) -> pd.DataFrame:
    """The answers of some records, as lib/analysis/answers.py has them."""
    keys = ("model", "set", "correct", "chance")
    found = [
        {"seed": record["seed"]} | {key: entry[key] for key in keys}
        for record in records
        for entry in record["results"]
    ]
    rows = pd.DataFrame(found)
    if rows.groupby(["model", "set"]).seed.nunique().nunique() > 1:
        raise ValueError("not every record has the same models: make them anew")
    return answers.of_texts(found)


def accuracies(frame: pd.DataFrame, by: Sequence[str] = ()) -> list[dict]:
    """Mean accuracy of each model and set over seeds, with `by_seed` and chance."""
    keys = [*by, "model", "set"]
    groups = dict(iter(frame.groupby(keys, sort=False, observed=True)))
    rows = compare.table(frame, keys, value="mean")
    for row in rows:
        own = groups[tuple(row[key] for key in keys)]
        row["by_seed"] = own.groupby("seed").value.mean().tolist()
        row["chance"] = float(own.chance.iloc[0])
    return rows


def differences(frame: pd.DataFrame) -> list[dict]:
    """Paired differences over seeds and questions, of the pairs that are there."""
    return compare.differences(frame, (*PAIRS, *OTHER_RL))


# README's block


def results(source: str | Path) -> str:
    """README's result block, markers included, from records (`read_reference`)."""
    records = read_reference(source)
    frame = of_records(records)
    table, compared = accuracies(frame), differences(frame)
    lines = [
        BEGIN,
        *(f"- {verdict(row['set'], row)}" for row in main_of(compared)),
        "",
        _table(table, compared),
        _caption(records, table, _shown(source)),
        END,
    ]
    return "\n".join(lines)


def _table(table: Sequence[Mapping], compared: Sequence[Mapping]) -> str:
    """Methods and differences down, sets across, and the paper's numbers below."""
    sets = {row["set"]: row for row in table}
    lines = [["", *(f"{name} (n = {row['n']:,})" for name, row in sets.items())]]
    named = [(LABELS[row["model"]], row, False) for row in table]
    named += [(f"{difference(r['a'], r['b'])}, points", r, True) for r in compared]
    cells: dict[str, dict[str, str]] = {}
    for label, row, signed in named:
        ends = row["effect"], row["low"], row["high"]
        cells.setdefault(label, {})[row["set"]] = span(*ends, signed)
    for label, own in cells.items():
        lines.append([label, *(own.get(name, "") for name in sets)])
    lines.append(["chance", *(percent(row["chance"]) for row in sets.values())])
    paper = [
        " / ".join(percent(compare.published_accuracy(m, name)) for m in METHODS)
        for name in sets
    ]
    lines.append([Marked("*paper, Qwen2-VL-7B: base / SFT / GRPO*"), *paper])
    return grid(lines)


def _caption(records: Sequence[Mapping], table: Sequence[Mapping], source: str) -> str:
    """What varies in the intervals, how often an answer was missing, whose data."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    spread, unparsed = "unknown, one seed", []
    if len(records) > 1:
        sd = {
            m: 100 * max(row["sd"] for row in table if row["model"] == m)
            for m in METHODS
        }
        spread = ", ".join(f"{LABELS[m]} {value:.1f}" for m, value in sd.items())
    for model in METHODS:
        rates = [
            entry["parse_failure"]
            for record in records
            for entry in record["results"]
            if entry["model"] == model
        ]
        unparsed.append(f"{LABELS[model]} {percent(sum(rates) / len(rates))} %")
    sentences = [
        f"Accuracy in %, first-letter rule, mean over training seeds ({seeds}) with a "
        f"95 % interval in which {table[0]['varies']} vary; differences are paired by "
        "question.",
        f"Largest standard deviation over seeds, in points: {spread}.",
        f"Answers that could not be parsed, mean over sets: {', '.join(unparsed)}.",
        f"Data: `{records[0]['data']}`; the paper's row is another model on other "
        "questions, shown for the pattern.",
        f"Written by `python -m lib.analysis readme {source}`.",
    ]
    return " ".join(sentences)


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


def _shown(source: str | Path) -> str:
    """The source as it is typed from the root, whatever folder it was given from."""
    path = resolve(source)
    below = path.is_dir() and path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if below else str(source)


# Sweeps


def sweep_record(folder: str | Path) -> list[dict]:
    """The rows of a sweep's runs.json, with the answers instead of their metrics.

    A run that failed, or waits, stays in it with its status and without numbers.
    """
    folder = resolve(folder)
    path = require(folder / "runs.json", "run the sweep with python -m lib.run")
    rows = []
    for row in read_json(path):
        if "metrics" in row:
            run = folder.parent / row["run"]
            chain.verify(run)
            manifest = read_json(run / "manifest.json")
            commit = list(manifest.values())[-1]["environment"]["git_commit"]
            metrics = {
                label: {
                    name: _compact(
                        sorted(
                            tables.read_rows(run / f"predictions_{label}_{name}.jsonl"),
                            key=lambda row: row["id"],
                        )
                    )
                    for name in sets
                }
                for label, sets in row["metrics"].items()
            }
            row = {**row, "git_commit": commit, "metrics": metrics}
        rows.append(row)
    return rows


def varied(rows: Sequence[Mapping]) -> list[str]:
    """What a sweep varies, but for the seed."""
    return [key for key in rows[0] if key not in FIXED]


def sweep_table(rows: Sequence[Mapping]) -> list[dict]:
    """One row a combination of values, model and set: `accuracies`, with the values."""
    keys = varied(rows)
    texts = [
        {key: row[key] for key in (*keys, "seed")}
        | {"model": label, "set": name, "correct": entry["correct"]}
        | {"chance": entry["chance"]}
        for row in rows
        for label, sets in row.get("metrics", {}).items()
        for name, entry in sets.items()
    ]
    return accuracies(answers.of_texts(texts), keys)


def sweep_markdown(rows: Sequence[Mapping]) -> str:
    """The table, one line a combination and model, one column a set."""
    down = {key: lambda row, key=key: row[key] for key in varied(rows)}
    down |= {"model": lambda row: LABELS[row["model"]]}
    down |= {"seeds": lambda row: row["seeds"]}
    return compare.markdown(
        sweep_table(rows), down, lambda row: row["set"], compare.spans("mean")
    )


def write_sweep(folder: Path, out: Path) -> str:
    """Write the record, table and figure of a finished sweep; returns the table."""
    name, rows = resolve(folder).name, sweep_record(folder)
    text = sweep_markdown(rows)
    write_json(out / f"{name}.json", rows)
    write_text(out / f"{name}.md", text)
    made = [row for row in sweep_table(rows) if row["set"] in LEVELS]
    plots.save(plots.sweep(made, varied(rows)[0]), out / f"{name}.png")
    return text


# Seeing and reasoning over seeds


def write_evidence(runs: Sequence[Path], out: Path) -> str:
    """Write perception and coherence (json, png) and evidence.md; returns the text.

    From what 04_eval left in runs that differ in their seed alone; what was seen needs
    those that were asked with something taken away.
    """
    found = answers.by_seed(runs)
    for run in found.values():
        chain.verify(run)
    first = next(iter(found.values()))
    given = require(first / "pipeline.json", "run it with python -m lib.run")
    given = read_json(given)["parameters"]
    folders = given["data_dir"], given["general_dir"]
    asked = tables.asked(*folders, SETS)
    looked = [run for run in found.values() if (run / ASKED).exists()]
    if not looked:
        raise FileNotFoundError(
            f"none of the runs holds {ASKED}: give one a parameter "
            "perception_conditions and run 04_eval again"
        )
    known = still_reader.without_video(given["data_dir"])
    shown = seen.seen(
        answers.read(looked, *folders), seen.asked_of(looked), asked, known
    )
    everything = answers.read(runs, *folders)
    whole = everything[everything.model.isin(labels_of(found.values()))]
    said = reasoned.reasoned(whole)
    for name, record in (("perception", shown), ("coherence", said)):
        write_json(out / f"{name}.json", record)
    last = shown["accuracy"][-1]["set"]
    plots.save(evidence_plots.perception(shown, last), out / "perception.png")
    drawn = [r for r in said["shares"] if r["measure"] in reasoned.OVER_SEEDS]
    plots.save(evidence_plots.coherence(drawn), out / "coherence.png")
    text = evidence_markdown(shown, said)
    write_text(out / "evidence.md", text)
    return text


def evidence_markdown(shown: Mapping, said: Mapping) -> str:
    """What each condition costs, what the reasoning supports, what readers agree on."""
    parts = [seen.markdown(shown)]
    parts += [reasoned.over_seeds_markdown(said, s) for s in ("levels", "general")]
    return "\n".join([*parts, reasoned.reader_markdown(said)])


def labels_of(runs: Iterable[Path]) -> list[str]:
    """The models whose reasoning was read on L1 in every run, in the usual order."""
    runs = list(runs)
    return [
        model
        for model in MODELS
        if all((run / f"coherence_{model}_L1.jsonl").exists() for run in runs)
    ]
