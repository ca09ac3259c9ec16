"""What the methods saw, and whether their reasoning held, over several training seeds.

    python -m lib.evidence outputs/mini_seeds-seed=* --out outputs/reference/evidence

reads what `04_eval` left in runs that differ in nothing but their seed, and writes
perception.json and .png, coherence.json and .png, and evidence.md. One run's numbers
are in its perception.json and coherence.json (lib/perception.py, lib/coherence.py);
here an interval carries the choice of questions and the training seed alike
(stats.mean_over_seeds), except for kappa, whose interval resamples videos with the
seeds as they are.

Example: three seeds of GRPO answer 400 questions with and without their clips. A
question is a column, a seed a row; accuracy is the mean of all 1,200 cells, and what
the clip is worth is the mean of 1,200 paired differences.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lib import chain, coherence, evidence_plots, perception, plots, stats, tables
from lib.claim_records import by_seed
from lib.mini import still_reader
from lib.paths import ROOT, require, resolve
from lib.questions import Question
from lib.records import read_json, write_json, write_text

BEGIN, END = "<!-- evidence:begin -->", "<!-- evidence:end -->"
LEVELS, GENERAL = ("L1", "L2", "L3"), "general"
SHOWN_GROUPS = (perception.ALL, perception.NEEDED, perception.NOT_NEEDED)
MEASURES = ("consistent", "base_reader", "progress", "false_step", "overlap")
EXACT_AND_READER = ("consistent", "base_reader")


# Perception


def seen_over_seeds(
    runs: Mapping[int, Path],
    questions: Mapping[str, Question],
    groups: Mapping[str, Mapping],
) -> dict:
    """Accuracy of each method under each condition, over the seeds {seed: run}.

    Returns conditions, sets, and rows `accuracy` as `lib.perception.compare` has them
    (set, group, model, condition, n, accuracy, low, high, chance) with `seeds`, and
    where something was taken away `cost`, cost_low, cost_high: accuracy with all as it
    is less that. `ceilings` as there. ValueError for runs that asked other things.
    """
    asked = {seed: perception.read_asked(run) for seed, run in runs.items()}
    first = next(iter(asked.values()))
    for seed, other in asked.items():
        if other != first:
            raise ValueError(
                f"{runs[seed] / perception.ASKED} differs from that of the other "
                "seeds: only the same questions and conditions can be averaged"
            )
    answers = [perception.read_answers(run, first) for run in runs.values()]
    members = perception.members_of(questions, groups)
    found = {"conditions": first["conditions"], "sets": list(answers[0])}
    found |= {"left_out": first["left_out"], "accuracy": [], "ceilings": []}
    for name in answers[0]:
        for group in SHOWN_GROUPS:
            place = {"set": name, "group": group}
            by_key = [_inside(own[name], members[group]) for own in answers]
            if by_key[0][perception.SEEN, "base"]:
                found["accuracy"] += _accuracies(by_key, place)
                found["ceilings"] += _ceilings(by_key[0], place, groups)
    return found


def _inside(answers: Mapping, ids: set) -> dict:
    return {
        key: [row for row in rows if row["id"] in ids] for key, rows in answers.items()
    }


def _accuracies(by_seed_and_key: Sequence[Mapping], place: Mapping) -> list[dict]:
    """A row a condition and method; the first condition is all as it is."""
    keys = sorted(by_seed_and_key[0], key=lambda key: key[0] != perception.SEEN)
    right = {
        key: np.array([tables.correct(own[key]) for own in by_seed_and_key])
        for key in keys
    }
    rows = []
    for condition, model in keys:
        over = stats.mean_over_seeds(right[condition, model])
        options = [len(r["options"]) for r in by_seed_and_key[0][condition, model]]
        row = {**place, "model": model, "condition": condition}
        row |= {"n": over["n"], "seeds": over["seeds"]}
        row |= _share("accuracy", over)
        row["chance"] = float(np.mean([1 / count for count in options]))
        if condition != perception.SEEN:
            lost = right[perception.SEEN, model] - right[condition, model]
            cost = stats.mean_over_seeds(lost)
            row |= {"cost": cost["mean"]}
            row |= {f"cost_{end}": cost[end] for end in ("low", "high")}
        rows.append(row)
    return rows


def _ceilings(answers: Mapping, place: Mapping, groups: Mapping) -> list[dict]:
    """How often an ideal reader without the video is right, where that is known."""
    ids = [row["id"] for row in answers[perception.SEEN, "base"]]
    known = [groups[key]["ceiling"] for key in ids if key in groups]
    if place["group"] == perception.ALL or not known:
        return []
    return [{**place, "n": len(known), "ceiling": float(np.mean(known))}]


def seen_markdown(found: Mapping, group: str = perception.ALL) -> str:
    """A line a condition: accuracy of each method, and what the condition costs it."""
    name = found["sets"][-1]
    rows = {
        (row["condition"], row["model"]): row
        for row in found["accuracy"]
        if (row["set"], row["group"]) == (name, group)
    }
    first = rows[perception.SEEN, "base"]

    def cell(condition: str, model: str) -> str:
        row = rows[condition, model]
        text = tables.percent(row["accuracy"])
        if condition == perception.SEEN:
            return text
        ends = (-row[key] for key in ("cost", "cost_high", "cost_low"))
        return f"{text} ({tables.span(*ends, signed=True)})"

    head = f"{name}, {first['n']:,} questions × {first['seeds']} seeds"
    columns: dict[str, Callable] = {head: perception.label_of}
    for model in tables.METHODS:
        columns[f"{plots.LABELS[model]} %"] = lambda c, model=model: cell(c, model)
    return tables.markdown([perception.SEEN, *found["conditions"]], columns)


# Coherence


def coherence_over_seeds(
    runs: Mapping[int, Path],
    labels: Sequence[str],
    questions: Mapping[str, Question],
    samples: int,
    seed: int,
) -> dict:
    """Shares of the coherence measures over seeds, and how far two of them agree.

    Rows of `shares`: model, set ("levels" is L1 to L3 together, or "general"), measure,
    n, seeds, share, low, high; `flawless` as `lib.coherence.flawless_shares` has it;
    `agreement` as `lib.coherence.agreements`, the answers of all seeds together.
    """
    sets = list(dict.fromkeys(question.level for question in questions.values()))
    read = {s: coherence.read_rows(run, labels, sets) for s, run in runs.items()}
    found: dict = {"shares": []}
    for over in ("levels", GENERAL):
        names = [name for name in sets if (name == GENERAL) == (over == GENERAL)]
        for model in labels:
            parts = [_together(rows, model, names) for rows in read.values()]
            found["shares"] += _shares(parts, {"model": model, "set": over})
    first = next(iter(read.values()))
    found["flawless"] = coherence.flawless_shares(first)
    videos = coherence.clusters_of(questions)
    pooled, clusters = _of_all_seeds(read, videos)
    drawn = coherence.Resampling(videos.values(), samples, seed)
    found["agreement"] = coherence.agreements(pooled, clusters, drawn)
    return found


def _together(rows: coherence.Rows, model: str, names: Iterable[str]) -> list[dict]:
    every = [row for name in names for row in rows[model, name]]
    return sorted(every, key=lambda row: row["id"])


def _shares(parts: Sequence[Sequence[Mapping]], place: Mapping) -> list[dict]:
    """A row a measure that has a value for some question in every seed."""
    rows = []
    for measure in coherence.MEASURES:
        of = coherence.MEASURES[measure]
        values = [{row["id"]: of(row) for row in part} for part in parts]
        ids = [key for key in values[0] if all(own[key] is not None for own in values)]
        if len(ids) > 1:
            over = stats.mean_over_seeds([[own[key] for key in ids] for own in values])
            row = {**place, "measure": measure, "n": over["n"], "seeds": over["seeds"]}
            rows.append(row | _share("share", over))
    return rows


def _of_all_seeds(
    read: Mapping[int, coherence.Rows], videos: Mapping[str, str]
) -> tuple[coherence.Rows, dict[str, str]]:
    """All seeds' rows together, ids told apart, and the video of each id."""
    pooled: coherence.Rows = {}
    clusters = {}
    for seed, rows in read.items():
        for key, part in rows.items():
            own = [{**row, "id": f"{row['id']} seed {seed}"} for row in part]
            pooled.setdefault(key, []).extend(own)
            for old, new in zip(part, own, strict=True):
                clusters[new["id"]] = videos[old["id"]]
    return pooled, clusters


def _share(name: str, over: Mapping) -> dict:
    """A mean of shares; few seeds can carry its interval beyond what a share can be."""
    ends = {"low": max(0.0, over["low"]), "high": min(1.0, over["high"])}
    return {name: over["mean"]} | ends


def coherence_markdown(found: Mapping, over: str = "levels") -> str:
    """A line a measure, a column a method: shares with intervals, in per cent."""
    rows = {
        (row["measure"], row["model"]): row
        for row in found["shares"]
        if row["set"] == over and row["measure"] in MEASURES
    }
    measures = [m for m in MEASURES if any(key[0] == m for key in rows)]
    models = list(dict.fromkeys(model for _, model in rows))

    def cell(measure: str, model: str) -> str:
        row = rows.get((measure, model))
        return tables.span(row["share"], row["low"], row["high"]) if row else "–"

    some = next(iter(rows.values()))
    head = f"% of answers, {over}: {some['n']:,} questions × {some['seeds']} seeds"
    columns: dict[str, Callable] = {
        head: lambda measure: evidence_plots.COHERENCE[measure].replace("\n", " ")
    }
    for model in models:
        columns[plots.LABELS[model]] = lambda m, model=model: cell(m, model)
    return tables.markdown(measures, columns)


def agreement_sentence(found: Mapping) -> str:
    """How often the reader that needs no truth says what the exact measure says."""
    parts = []
    for row in found["agreement"]:
        pair = (row["first"], row["second"])
        if pair == EXACT_AND_READER and row["sets"] == "levels":
            parts.append((row["model"], row["reasoning"], row))
    if not parts:
        return "The truth is not known on these data: there is no exact measure.\n"
    lines = ["The reader that needs no truth against the exact measure, levels:", ""]
    columns: dict[str, Callable] = {
        "method": lambda part: plots.LABELS[part[0]],
        "reasoning": lambda part: part[1],
        "n": lambda part: f"{part[2]['n']:,}",
        "same verdict %": lambda part: tables.percent(_same(part[2])),
        "kappa (95 % interval)": lambda part: coherence.kappa_text(part[2]),
    }
    return "\n".join([*lines, tables.markdown(parts, columns)])


def _same(row: Mapping) -> float:
    return (row["both"] + row["neither"]) / row["n"]


# README and the command line


def readme_block(folder: str | Path) -> str:
    """README's block, markers included, from the records in a folder."""
    folder = resolve(folder)
    seen, coherent = (
        read_json(require(folder / f"{name}.json", "make it: python -m lib.evidence"))
        for name in ("perception", "coherence")
    )
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    lines = [
        BEGIN,
        seen_markdown(seen),
        "Accuracy in %, in brackets the change with its 95 % interval. "
        f"{_left_out(seen)}",
        "",
        coherence_markdown(coherent),
        agreement_sentence(coherent),
        "*with other*: each answer once more below another question's reasoning, so "
        "that there is reasoning which does not support it. Written by "
        f"`python -m lib.report evidence {shown}`.",
        END,
    ]
    return "\n".join(lines)


def _left_out(found: Mapping) -> str:
    if not found["left_out"]:
        return "Nothing was left out."
    names = ", ".join(perception.label_of(name) for name in found["left_out"])
    return f"Could not be asked: {names} ({next(iter(found['left_out'].values()))})."


def main(arguments: list[str] | None = None) -> None:
    """The command line: the records of runs that differ in their seed alone."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.evidence", description=main.__doc__
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    runs, out = by_seed([resolve(run) for run in options.runs]), resolve(options.out)
    for run in runs.values():
        chain.verify(run)
    state = require(
        next(iter(runs.values())) / "pipeline.json",
        "run it with python -m lib.pipeline",
    )
    given = read_json(state)["parameters"]
    questions = tables.asked(given["data_dir"], given["general_dir"], tables.SETS)
    known = still_reader.without_video(given["data_dir"])
    looked = {s: run for s, run in runs.items() if (run / perception.ASKED).exists()}
    if not looked:
        raise FileNotFoundError(
            f"none of the runs holds {perception.ASKED}: give one a parameter "
            "perception_conditions and run 04_eval again"
        )
    seen = seen_over_seeds(looked, questions, known)
    labels = labels_of(runs.values())
    coherent = coherence_over_seeds(runs, labels, questions, 10_000, 0)
    write_json(out / "perception.json", seen)
    write_json(out / "coherence.json", coherent)
    plots.save(
        evidence_plots.perception(seen, seen["sets"][-1]), out / "perception.png"
    )
    drawn = [row for row in coherent["shares"] if row["measure"] in MEASURES]
    plots.save(evidence_plots.coherence(drawn), out / "coherence.png")
    text = f"{seen_markdown(seen)}\n{coherence_markdown(coherent)}\n"
    text += f"{coherence_markdown(coherent, GENERAL)}\n{agreement_sentence(coherent)}"
    write_text(out / "evidence.md", text)
    print(text)


def labels_of(runs: Iterable[Path]) -> list[str]:
    """The models whose reasoning was read on L1 in every run, in the usual order."""
    return [
        model
        for model in tables.MODELS
        if all((run / f"coherence_{model}_L1.jsonl").exists() for run in runs)
    ]


if __name__ == "__main__":
    main()
