"""README's table, and the small committed records behind it and its links.

`python -m lib.analysis reference` keeps a run as a few kilobytes, from which `readme`
writes the one block of README that is made of numbers; `sweep` and `evidence` write a
record, a table and a figure each, to which README links.

Example: with GRPO right on 240 of 500 questions of L1 and SFT on 225, and an interval
of the paired difference from +0.4 to +5.6 points, the block says "L1: GRPO ahead of
SFT by 3.0 points (95 % interval 0.4 to 5.6)"; if the interval holds zero, or if p as
one of the four sets is above 5 %, "not decided"."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lib import chain, methods
from lib.analysis import (
    answers,
    compare,
    evidence_plots,
    plots,
    reasoned,
    sampled,
    seen,
)
from lib.evaluate import tables
from lib.evaluate.tables import percent
from lib.markup import Marked
from lib.methods import LABELS, LEVELS, METHODS, PAIRS, called, difference
from lib.mini import still_reader
from lib.paths import require, resolve, told
from lib.records import read_json, sealed, write_tables, write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
KEPT = ("n", "accuracy", "accuracy_lenient", "parse_failure", "truncated", "chance")
KEPT += ("of",)  # where the set is a part
RAN = "run it with python -m lib.run"
PAIRED = "Paired differences, 95 % bootstrap intervals over questions"
APART = "GRPO's advantage out of distribution"
BESIDE = "Beside the paper: another model and other data"


def verdict(row: Mapping) -> str:
    """One sentence on a set: is GRPO or SFT ahead, by how much, how sure. `row` is one
    of `compare.main`: a, b, set, n, difference (GRPO - SFT), low, high, holm."""
    value, low, high = (row[key] for key in ("difference", "low", "high"))
    one, head, too = tables.points, "not decided: GRPO − SFT is", ""
    if first := compare.ahead(row):
        second = row["b"] if first == row["a"] else row["a"]
        one, head = percent, f"{LABELS[first]} ahead of {LABELS[second]} by"
        if first == row["b"]:
            value, low, high = -value, -high, -low
    elif not low <= 0 <= high:
        too = f"; p = {row['holm']:.2f} as one of several tests"
    text = f"{one(value)} points (95 % interval {one(low)} to {one(high)}{too})"
    return f"**{called(row)}** ({methods.MEANING[row['set']]}): {head} {text}"


def harms(compared: Iterable[Mapping]) -> list[str]:
    """A sentence for each set on which a training leaves the base's answers worse. One
    of -0.26 (-0.39 to -0.14) reads "SFT does harm: it ends 26.0 points below ..."."""
    return [
        f"**{called(row)}**: {LABELS[row['a']]} does harm: it ends "
        f"{percent(-row['difference'])} points below the untrained base "
        f"(95 % interval {percent(-row['high'])} to {percent(-row['low'])})"
        for row in compared
        if row["b"] == "base" and row["a"] in METHODS and compare.ahead(row) == "base"
    ]


def findings(table: Sequence[Mapping], compared: Sequence[Mapping]) -> list[str]:
    """What a run shows, as sentences with numbers, the main question first."""
    sentences = [*map(verdict, compare.main(compared)), *harms(compared)]
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


def write_results(run: Path, results: Mapping) -> str:
    """Write results.json and results.md of a run; returns the markdown. `results` needs
    accuracy, comparisons and out_of_distribution (lib/analysis/compare.py)."""
    rows, compared = results["accuracy"], results["comparisons"]
    found, apart = findings(rows, compared), results["out_of_distribution"]
    text = f"# {run.name}\n\n" + "".join(f"- {sentence}\n" for sentence in found)
    for head, part in (
        ("Accuracy, 95 % Wilson intervals", compare.accuracies_markdown(rows)),
        (PAIRED, compare.differences_markdown(compared)),
        (APART, compare.out_of_distribution_markdown(apart)),
        (BESIDE, compare.beside_paper_markdown(rows)),
    ):
        text += f"\n## {head}\n\n{part}"
    write_tables(run / "results.json", {**results, "findings": found})
    write_text(run / "results.md", text)
    return text


def reference_record(run: Path) -> dict:
    """A run as a few kilobytes: enough for every table of README, questions paired. Per
    model and set KEPT and what `_compact` says. `questions` holds a hash of ids,
    options and right letters, so that runs can be paired or refused."""
    run = resolve(run)
    chain.verify(run)
    predictions = tables.read_predictions(run)
    state = read_json(require(run / "pipeline.json", RAN))
    given = state["parameters"]
    manifest = read_json(require(run / "manifest.json", "run the notebooks first"))
    sets = tables.sets_of(predictions)
    videos = answers.videos_of(sets, *answers.folders_of(run))
    held = "peak_memory_gib"
    facts = {
        "run_name": run.name,
        "seed": given.get("seed", 0),
        "settings": answers.settings_of(given),
        "data": given.get("data_dir"),
        "seconds": {k: v["seconds"] for k, v in state["notebooks"].items()},
        held: {k: v[held] for k, v in manifest.items() if v.get(held) is not None},
        "environment": list(manifest.values())[-1]["environment"],
        "questions": {
            name: tables.questions_hash(predictions["base", name]) for name in sets
        },
        "results": [
            {"model": model, "set": name, **_compact(rows, videos)}
            for (model, name), rows in predictions.items()
        ],
    }
    return sealed(facts)


def _compact(rows: Sequence[Mapping], videos: Mapping[str, str]) -> dict:
    """KEPT, and `correct`, a text of 0 and 1 in the order of the sorted question ids;
    `videos`, the number of each one's recording, where some share one."""
    numbers = compare.summary(rows)
    text = "".join("01"[bool(row["correct"])] for row in rows)
    found = {k: numbers[k] for k in KEPT if k in numbers} | {"correct": text}
    own, apart = pd.factorize(np.array([videos.get(r["id"], r["id"]) for r in rows]))
    if len(apart) < len(rows):
        found["videos"] = " ".join(map(str, own))
    return found


def read_reference(source: str | Path) -> list[dict]:
    """The records of a folder by seed; ValueError if they cannot be averaged."""
    if not (found := records_of(source)):
        todo = "python -m lib.analysis reference writes them"
        raise FileNotFoundError(f"{resolve(source)} holds no records: {todo}")
    return together(found)


def records_of(folder: str | Path) -> dict[Path, dict]:
    """{file: record} of a folder, which may hold other files, too: claims, evidence."""
    found = {path: read_json(path) for path in sorted(resolve(folder).glob("*.json"))}
    return {p: r for p, r in found.items() if isinstance(r, dict) and "results" in r}


def together(records: Mapping[Path, dict]) -> list[dict]:
    """Some records {file or run: record} by seed. ValueError names two of them that
    cannot be averaged."""
    seeds, first, shared = {}, None, {}  # shared: what the first has and all must have
    for path, record in records.items():
        check_record(path, record)
        if (other := seeds.setdefault(record["seed"], path)) != path:
            todo = "delete it, or give another --out"
            said = f"{other} holds the seed of {path}, too: {todo}"
            raise ValueError(f"a seed occurs twice: {said}")
        own = {key: record[key] for key in ("questions", "settings")}
        own["models"] = sorted((row["model"], row["set"]) for row in record["results"])
        if first is None:
            first, shared = path, own
        if differ := [key for key in own if own[key] != shared[key]]:
            both = f"{first} and {path} differ in {differ[0]}"
            raise ValueError(f"{both}, do not average them")
    return [records[seeds[seed]] for seed in sorted(seeds)]


def check_record(path: Path, record: Mapping) -> None:
    """ValueError for a field that is not there, and for a record that was edited."""
    todo = "make it anew with python -m lib.analysis reference"
    for key in ("seed", "settings", "questions", "hash"):
        if key not in record:
            raise ValueError(f"{path} has no `{key}`, as of an older kit: {todo}")
    if record != sealed(record):
        raise ValueError(f"{path} is not as it was written: bring it back, or {todo}")


def of_records(records: Iterable[Mapping]) -> pd.DataFrame:
    """The answers of some records, as lib/analysis/answers.py has them."""
    keys = ("model", "set", *answers.OF_TEXT)
    return answers.of_texts(
        {"seed": record["seed"]} | {key: entry[key] for key in keys if key in entry}
        for record in records
        for entry in record["results"]
    )


def accuracies(frame: pd.DataFrame, by: Sequence[str] = ()) -> list[dict]:
    """Mean accuracy of each model and set over seeds, with `by_seed` and chance."""
    keys = [*by, "model", "set"]
    rows = compare.table(frame, keys, value="mean")
    for row in rows:
        own = compare.select(frame, {key: row[key] for key in keys})
        row["by_seed"] = own.groupby("seed").value.mean().tolist()
        row["chance"] = float(own.chance.iloc[0])
    return rows


def differences(frame: pd.DataFrame) -> list[dict]:
    """Paired differences over seeds and questions, of the pairs that are there."""
    return compare.differences(frame, (*PAIRS, *methods.OTHERS))


def results(source: str | Path) -> str:
    """README's result block, markers included, from records (`read_reference`)."""
    records = read_reference(source)
    frame = of_records(records)
    table, compared = accuracies(frame), differences(frame)
    if lacking := [row for row in table if not row["n"]]:
        raise ValueError(f"{source}, {lacking[0]['set']}: {lacking[0]['missing']}")
    found = [*map(verdict, compare.main(compared)), *harms(compared)]
    said = [f"- {sentence}" for sentence in found]
    caption = _caption(records, table, source)
    return "\n".join([BEGIN, *said, "", _table(table, compared), caption, END])


def _table(table: Sequence[Mapping], compared: Sequence[Mapping]) -> str:
    """Methods and differences down, sets across, and the paper's numbers below."""
    heads = {row["set"]: f"{called(row)} (n = {row['n']:,})" for row in table}
    cells = [(LABELS[r["model"]], r["set"], compare.span(r, "mean")) for r in table]
    for row in compared:
        name = f"{difference(row['a'], row['b'])}, points"
        cells.append((name, row["set"], compare.span(row, "difference")))
    chance = {row["set"]: percent(row["chance"]) for row in table}
    cells += [("chance", *own) for own in chance.items()]
    for name in heads:
        paper = (percent(compare.published_accuracy(m, name)) for m in METHODS)
        label = Marked("*paper, Qwen2-VL-7B: base / SFT / GRPO*")
        cells.append((label, name, " / ".join(paper)))
    return tables.crossed(({"": line}, heads[name], text) for line, name, text in cells)


def _caption(records: Sequence[Mapping], table: Sequence[Mapping], source) -> str:
    """What varies in the intervals, how often an answer was missing, whose data."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    entries = pd.DataFrame([row for record in records for row in record["results"]])
    failed = entries.groupby("model").parse_failure.mean()
    unparsed = ", ".join(f"{LABELS[m]} {percent(failed[m])} %" for m in METHODS)
    spread = "unknown, one seed"
    if len(records) > 1:
        sd = pd.DataFrame(table).groupby("model", observed=True).sd.max()
        spread = ", ".join(f"{LABELS[m]} {100 * sd[m]:.1f}" for m in METHODS)
    sentences = [
        f"Accuracy in %, first-letter rule, mean over training seeds ({seeds}) with a "
        f"95 % interval in which {table[0]['varies']} vary; differences are paired by "
        "question.",
        f"Largest standard deviation over seeds, in points: {spread}.",
        f"Answers that could not be parsed, mean over sets: {unparsed}.",
        f"Data: `{records[0]['data']}`; the paper's row is another model on other "
        "questions, shown for the pattern.",
        f"Written by `python -m lib.analysis readme {told(resolve(source))}`.",
    ]
    return " ".join(sentences)


def write_block(readme: str | Path, block: str) -> str:
    """Replace README's block by `block`, which begins and ends with its markers."""
    path = require(readme, "the README with the markers of its blocks")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must hold {BEGIN} and {END} once each")
    write_text(path, text.split(BEGIN)[0] + block + text.split(END)[1])
    return block


def sweep_record(folder: str | Path) -> list[dict]:
    """The rows of a sweep's runs.json, with the answers instead of their metrics. A run
    that failed, or waits, stays in it with its status and without numbers."""
    folder, rows = resolve(folder), []
    path = require(folder / "runs.json", "run the sweep with python -m lib.run")
    for row in read_json(path):
        if "metrics" in row:
            run = folder.parent / row["run"]
            chain.verify(run)
            manifest = read_json(run / "manifest.json")
            given = read_json(require(run / "pipeline.json", RAN))["parameters"]
            commit = list(manifest.values())[-1]["environment"]["git_commit"]
            for key, value in row.items():
                if key != "seed" and given.get(key, value) != value:
                    was = f"{key} {value} for {row['run']}, which ran with {given[key]}"
                    raise ValueError(f"{path} says {was}: run the sweep again")
            metrics: dict = {}
            names = dict.fromkeys(n for sets in row["metrics"].values() for n in sets)
            videos = answers.videos_of(names, *answers.folders_of(run))
            for model, sets in row["metrics"].items():
                for name in sets:
                    file = run / f"predictions_{model}_{name}.jsonl"
                    own = sorted(tables.read_rows(file), key=lambda row: row["id"])
                    metrics.setdefault(model, {})[name] = _compact(own, videos)
            made = {"git_commit": commit, "base": answers.base_of(run)}
            made["seed"] = given.get("seed", 0)  # which a sweep need not vary
            row = {**row, **made, "metrics": metrics}
        if "model" in row:  # a swept checkpoint; a row's model is the method
            row = {**row, "checkpoint": row["model"]}
        rows.append(row)
    return rows


def sweep_table(rows: Sequence[Mapping]) -> list[dict]:
    """One row a combination of values, model and set: `accuracies`, with the values."""
    return accuracies(answers.of_sweep(rows), answers.varied(rows[0]))


def sweep_markdown(rows: Sequence[Mapping]) -> str:
    """The table, one line a combination and model, one column a set."""
    keys, cells = answers.varied(rows[0]), []
    for row in sweep_table(rows):
        line = {key: row[key] for key in keys}
        line |= {"model": LABELS[row["model"]], "seeds": row["seeds"]}
        cells.append((line, called(row), compare.span(row, "mean")))
    return tables.crossed(cells)


def write_sweep(folder: Path, out: Path) -> str:
    """Write the record, table and figure of a finished sweep; returns the table."""
    name, rows = resolve(folder).name, sweep_record(folder)
    if not any("metrics" in row for row in rows):
        raise ValueError(f"{folder} has no finished run with answers: {RAN}")
    if not (keys := answers.varied(rows[0])):
        todo = "give its runs to python -m lib.analysis reference"
        raise ValueError(f"{folder} varies the seed alone: {todo}")
    text, table = sweep_markdown(rows), sweep_table(rows)
    write_tables(out / f"{name}.json", rows)
    write_text(out / f"{name}.md", text)
    made = [row for row in table if row["set"] in LEVELS] or table
    plots.save(plots.sweep(made, keys[0]), out / f"{name}.png")
    return text


def write_evidence(runs: Sequence[Path], out: Path) -> str:
    """Write perception and coherence (json, png) and evidence.md of runs that differ in
    their seed alone, the first of those that were asked with something taken away."""
    found = [*answers.by_seed(runs).values()]
    for run in found:
        chain.verify(run)
    folders = answers.folders_of(found[0])
    looked = [run for run in found if (run / methods.ASKED).exists()]
    if not looked:
        raise FileNotFoundError(
            f"none of the runs holds {methods.ASKED}: give one a parameter "
            "perception_conditions and run 04_eval again"
        )
    asked, known = seen.asked_of(looked), still_reader.without_video(folders[0])
    shown = seen.seen(answers.read(looked, *folders), asked, known)
    said = reasoned.reasoned(answers.read(runs, *folders))
    said["decisions"] = sampled.decisions(found[0], compare.SAMPLES, seed=0)
    write_tables(out / "perception.json", shown)
    write_tables(out / "coherence.json", said)
    plots.save(evidence_plots.perception(shown), out / "perception.png")
    drawn = [r for r in said["shares"] if r["measure"] in reasoned.OVER_SEEDS]
    plots.save(evidence_plots.coherence(drawn), out / "coherence.png")
    text = evidence_markdown(shown, said)
    write_text(out / "evidence.md", text)
    return text


def evidence_markdown(shown: Mapping, said: Mapping) -> str:
    """What each condition costs, what the reasoning supports, what readers agree on."""
    sets = dict.fromkeys(row["set"] for row in said["shares"])
    over = (reasoned.over_seeds_markdown(said, name) for name in sets)
    decided = sampled.decisions_markdown(said["decisions"])
    head = "Of answers drawn at temperature 1, of one seed, that come to a decision:\n"
    tail = reasoned.reader_markdown(said), head, decided
    return "\n".join([seen.markdown(shown), *over, *tail])
