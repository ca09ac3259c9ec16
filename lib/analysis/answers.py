"""All records of runs as one tidy table: a row an answer and what is said of it.

Whatever is compared is a mean over questions of a number from 0 to 1: right by the
first letter, supported by its reasoning, a share of attention. So `read` makes one
pandas frame of all records of one run, or of several that differ in their seed alone,

    seed model set condition measure id video value    domain duration_group of options

and every table, claim and figure is a selection of it (lib/analysis/compare.py).

    answers = read("outputs/mini", "outputs/data/miniplan")
    chosen = answers[(answers.model == "grpo") & (answers.measure == "correct")]
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lib.evaluate.tables import files, read_rows, same_questions
from lib.methods import GENERAL, KINDS, SEEN
from lib.paths import require, resolve
from lib.records import read_json, read_jsonl, refuse_other, settings_hash

Folder = str | Path
FOLDERS = ("data_dir", "general_dir")  # as parameters name them
ASKED = ("correct", "correct_lenient", "parsed", "truncated")  # of a prediction
SAID = {  # of a row of coherence_*.jsonl: the word that counts as 1, if words count
    **dict.fromkeys(("consistent", "follows", "false_step", "false_object"), "yes"),
    **dict.fromkeys(("progress", "count"), "right"),
    **dict.fromkeys(("base_reader", "own_reader", "judge", "unjudged")),
    **dict.fromkeys(("verbatim", "overlap")),
}
# The same of what a flawless reasoner would say, and of another question's reasoning.
BESIDE = {"verbatim_flawless": None, "overlap_flawless": None}
BESIDE |= {"consistent_other": "yes"}
# Readers with another question's reasoning, or without any: do they give the answer?
CONTROLS = ("base_other", "base_none", "own_other", "own_none")
# Of a row of a sweep; all else is what it varies.
NOT_VARIED = (
    *("run", "seed", "status", "seconds", "metrics", "git_commit", "base"),
    *("model", "set", "condition", "measure", "id", "video", "value", "chance", "of"),
)
# Of answers kept as a text: what `of_texts` takes over.
OF_TEXT = ("correct", "chance", "of", "videos")
# Names are categories, which are fast to choose by.
NAMES = dict.fromkeys(("model", "set", "condition", "measure"), "category")
# What may differ between the settings of a condition and those of all as it is.
MAY_DIFFER = {"questions", "shown", "sampling", "batch_size"}
# Parameters that say what is asked beside the answers, of whom, and how many share the
# work: runs that differ in these alone are pooled, each contrast over the seeds that
# have its records.
ASKED_BESIDE = (
    "eval_processes",
    *("asked_models", "coherence_sets", "attention_questions"),
    *("perception_models", "perception_sets", "perception_conditions"),
    *("perception_questions", "judge_url", "judge_model", "judge_max_calls"),
    *("answer_prefixes", "pass_draws", "pass_sets", "pass_questions"),
)


def read(
    runs: Folder | Sequence[Folder], data_dir: Folder = "", general_dir: Folder = ""
) -> pd.DataFrame:
    """Answers of a run, or of several that differ in their seed alone. ValueError, with
    file and line, for a row unlike its completion, and for methods asked other
    questions. Without `data_dir` (`general_dir`) each question has its own video."""
    parts, asked = [], {}
    for seed, run in by_seed(runs).items():
        for own in files(run, "predictions", "coherence", "attention"):
            if own[3] or own[1] == "attention":
                rows = _rows(run / own[0], *own.groups(), asked)
                parts.append(rows.assign(seed=seed))
    if not parts:
        raise FileNotFoundError(f"{runs} holds no predictions: run 04_eval first")
    frame = pd.concat(parts, ignore_index=True)
    videos = videos_of(frame.set.unique(), data_dir, general_dir)
    frame["video"] = [videos.get(key, key) for key in frame.id]
    known = {row["id"]: row for rows in asked.values() for row in rows}
    for key in ("domain", "duration_group"):
        frame[key] = frame.id.map({i: row.get(key) for i, row in known.items()})
    frame["of"] = frame.id.map({i: row.get("of", 0) for i, row in known.items()})
    frame["options"] = frame.id.map({i: len(r["options"]) for i, r in known.items()})
    return frame.astype(NAMES)


def of_texts(
    rows: Iterable[Mapping], videos: Mapping[str, Mapping[str, str]] | None = None
) -> pd.DataFrame:
    """The frame of answers kept as texts of 0 and 1, in the order of the sorted ids.

    A row has `correct`, `set` and whatever else tells it from others; `videos`, numbers
    of their recordings, where questions share some. `videos` {set: {id: recording}} are
    used where there are as many, else a number is all that is known of a question."""
    parts = []
    for row in rows:
        text, name = row["correct"], row["set"]
        known = dict(sorted((videos or {}).get(name, {}).items()))
        if len(known) != len(text):
            own = row.get("videos", "").split() or range(len(text))
            known = {f"{name}#{i}": f"{name}#{video}" for i, video in enumerate(own)}
        own = pd.DataFrame({"id": list(known), "video": list(known.values())})
        own["value"] = [float(character) for character in text]
        facts = {k: v for k, v in row.items() if k not in ("correct", "videos")}
        parts.append(own.assign(**facts, measure="correct", condition=SEEN))
    return pd.concat(parts, ignore_index=True).astype(NAMES)


def of_sweep(
    rows: Iterable[Mapping], videos: Mapping[str, Mapping[str, str]] | None = None
) -> pd.DataFrame:
    """The frame of the finished runs in a sweep's record, a column a varied value."""
    texts = [
        {key: row[key] for key in ("seed", *varied(row))}
        | {"model": model, "set": name}
        | {key: own[key] for key in OF_TEXT if key in own}
        for row in rows
        for model, sets in row.get("metrics", {}).items()
        for name, own in sets.items()
    ]
    return of_texts(texts, videos) if texts else pd.DataFrame()


def varied(row: Iterable[str]) -> list[str]:
    """What a sweep varies, but for the seed: of a row's keys, or a frame's columns."""
    return [key for key in row if key not in NOT_VARIED]


def _rows(path: Path, kind: str, model: str, name: str, ending: str, asked: dict):
    """One file as rows; `asked` {set: rows} are those of the first of each."""
    condition = SEEN
    if kind == "predictions":
        rows = read_rows(path)
        if ending:
            condition = ending
            _check_condition(path, path.with_name(f"{kind}_{model}_{name}.jsonl"), rows)
        else:
            same_questions(asked.setdefault(name, rows), rows, path)
        said = [{key: row[key] for key in ASKED} for row in rows]
    else:
        rows = read_jsonl(path)
        text = (ending or "own").removeprefix("on_")
        said = [_said(r) if kind == "coherence" else _attention(r, text) for r in rows]
    long = [
        (row["id"], name or row["id"].split("/")[0], measure, float(value))
        for row, measures in zip(rows, said, strict=True)
        for measure, value in measures.items()
        if value is not None
    ]
    frame = pd.DataFrame(long, columns=["id", "set", "measure", "value"])
    return frame.assign(model=model, condition=condition)


def _said(row: Mapping) -> dict[str, float | None]:
    """What a row of coherence_*.jsonl says: 0, 1, a share, None where nobody knows."""
    said = {
        key: row[key] if word is None or row[key] is None else row[key] == word
        for key, word in (SAID | BESIDE).items()
        if key in row
    }
    if row.get("progress") is not None:
        said["stated"] = row["progress"] in ("right", "wrong")
    if row.get("judged"):  # a call that failed found no support
        said |= {"judge": row["judge"] is True, "unjudged": row["judge"] is None}
    for control in CONTROLS:
        if f"implied_{control}" in row:
            given = row["answer"]
            said[control] = given is not None and row[f"implied_{control}"] == given
    return said


def _attention(row: Mapping, text: str) -> dict[str, float]:
    """{"own, layer 1, video": mass} by layer, part and token. `attention`: all that
    rests on pictures while a model writes its own words."""
    if "left_out" in row:
        return {f"{text}, left out, ": 1.0}
    layers = np.array(row["by_layer"])
    places = {f"layer {i}": layer for i, layer in enumerate(layers, 1)}
    places |= {f"token {i}": token for i, token in enumerate(row["by_token"], 1)}
    places = {"all layers": layers.mean(0), **places, **row["parts"]}
    found = {
        f"{text}, {where}, {kind}": share
        for where, shares in (places | {"equal": row["equal"]}).items()
        if shares is not None
        for kind, share in zip(KINDS, shares, strict=True)
    }
    found |= {f"{text}, left out, ": 0.0, f"{text}, retokenized, ": row["retokenized"]}
    return found | ({"attention": layers.mean(0)[:2].sum()} if text == "own" else {})


def base_of(run: Folder) -> str | None:
    """A run's base (models.identity); None if it was not finished up to 04_eval."""
    manifest = read_json(resolve(run) / "manifest.json", {})
    return manifest.get("04_eval", {}).get("base")


def by_seed(runs: Folder | Sequence[Folder]) -> dict[int, Path]:
    """{seed: run}; they may differ in the seed and ASKED_BESIDE alone."""
    folders = [runs] if isinstance(runs, str | Path) else runs
    found, settings = {}, {}
    for run in map(resolve, folders):
        state, todo = run / "pipeline.json", "run it with python -m lib.run"
        require(state if len(folders) > 1 else run, todo)
        given = read_json(state, {"parameters": {}})["parameters"]
        seed = given.get("seed", 0)
        if seed in found:
            raise ValueError(f"{run} and {found[seed]} are both of seed {seed}")
        found[seed], settings[settings_of(given)] = run, run
    if len(settings) > 1:
        differ = " and ".join(str(run) for run in settings.values())
        raise ValueError(f"{differ} differ in more than their seed, do not pool them")
    return found


def folders_of(run: Folder) -> tuple[str, str]:
    """data_dir and general_dir of a run. ValueError where its params file did not say
    them: without them every question would count as one on its own video."""
    path = require(resolve(run) / "pipeline.json", "run it with python -m lib.run")
    given = read_json(path)["parameters"]
    if lacking := [name for name in FOLDERS if name not in given]:
        todo = f"give the params file {lacking[0]} and run it again"
        raise ValueError(f"{path}: parameters has no {lacking[0]}: {todo}")
    return tuple(given[name] for name in FOLDERS)


def settings_of(parameters: Mapping) -> str:
    """The hash of all that runs must share to be pooled."""
    apart = ("seed", "run_name", *ASKED_BESIDE)
    return settings_hash({k: v for k, v in parameters.items() if k not in apart})


def _check_condition(path: Path, seen: Path, rows: Sequence[Mapping]) -> None:
    """ValueError unless only what was shown differs from the rows of all as it is."""
    todo = "run 04_eval first"
    known = {row["id"] for row in read_jsonl(require(seen, todo))}
    missing = [row["id"] for row in rows if row["id"] not in known]
    if missing:
        raise ValueError(f"{seen} lacks {missing[0]}, which {path} has")
    files = [require(own.with_suffix(".settings.json"), todo) for own in (seen, path)]
    was, now = (
        {key: value for key, value in read_json(file).items() if key not in MAY_DIFFER}
        for file in files
    )
    what = f"{path} cannot be compared with {seen.name}"
    refuse_other(was, now, what, f"Delete {path.stem}.* and run 04_eval again")


def videos_of(
    sets: Iterable[str], data_dir: Folder, general_dir: Folder
) -> dict[str, str]:
    """{question id: recording} of some sets, as far as their folders are given."""
    where = {name: general_dir if name == GENERAL else data_dir for name in sets}
    found = (source_videos(folder, name) for name, folder in where.items() if folder)
    return {key: video for own in found for key, video in own.items()}


def source_videos(folder: Folder, name: str) -> dict[str, str]:
    """{question id: the recording it is about} for one set of a data folder. Clips are
    cut for one question each: which of them share a recording tells `video_id`, or else
    what stands before the last "_" of a text id, as in EgoPlan-Bench2."""
    reader, path, key = read_jsonl, f"annotations/validation_{name}.jsonl", "sample_id"
    if name == GENERAL:
        reader, path, key = read_json, "lvb_val.json", "id"
    rows = reader(require(resolve(folder) / path, "run 01_data first"))
    return {
        f"{name}/{row[key]}": row.get("video_id") or str(row[key]).rpartition("_")[0]
        for row in rows
    }
