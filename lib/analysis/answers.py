"""All records of runs as one tidy table: a row an answer and what is said of it.

Whatever is compared is a mean over questions of a number from 0 to 1: right by the
first letter, supported by its reasoning, a share of attention. So `read` makes one
pandas frame of all records of one run, or of several that differ in their seed alone,

    seed model set condition measure id video value    domain duration_group options

and every table, claim and figure is a selection of it (lib/analysis/compare.py).

Rows of predictions are read again from their completions, and all methods must have
been asked the same questions: what does not fit is refused with file and line.

    answers = read("outputs/mini", "outputs/data/miniplan")
    chosen = answers[(answers.model == "grpo") & (answers.measure == "correct")]

Example: four questions, base and GRPO: eight answers, each with rows for `correct`,
`correct_lenient`, `parsed` and `truncated`, 32 rows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lib.evaluate.tables import read_rows, same_questions
from lib.methods import KINDS, SEEN, SETS, in_order
from lib.paths import require, resolve
from lib.records import read_json, read_jsonl, settings_hash

ASKED = ("correct", "correct_lenient", "parsed", "truncated")  # of a prediction
SAID = {  # of a row of coherence_*.jsonl: the word that counts as 1, if words count
    "consistent": "yes",
    "follows": "yes",
    "base_reader": None,
    "own_reader": None,
    "judge": None,
    "progress": "right",
    "false_step": "yes",
    "false_object": "yes",
    "verbatim": None,
    "overlap": None,
}
# The same of what a flawless reasoner would say, and of another question's reasoning.
BESIDE = ("verbatim_flawless", "overlap_flawless")
# Readers with another question's reasoning, or without any: do they give the answer?
CONTROLS = ("base_other", "base_none", "own_other", "own_none")
COLUMNS = ("model", "set", "condition", "measure", "id", "video", "value")
FILE = re.compile(
    rf"(?P<kind>predictions|coherence)_(?P<model>.+)_(?P<set>{'|'.join(SETS)})"
    r"(?:\.(?P<condition>\w+))?\.jsonl|attention_(?P<looks>[^.]+)(?:\.on_(?P<text>\w+))?"
    r"\.jsonl"
)
# What may differ between the settings of a condition and those of all as it is.
MAY_DIFFER = {"questions", "shown", "sampling", "batch_size"}
# Parameters that say what is asked beside the answers, of whom: runs that differ in
# these alone are pooled, each contrast over the seeds that have its records.
ASKED_BESIDE = (
    *("asked_models", "coherence_sets", "attention_questions"),
    *("perception_models", "perception_sets", "perception_conditions"),
    *("perception_questions", "judge_url", "judge_model", "judge_max_calls"),
)


def read(
    runs: str | Path | Sequence[str | Path],
    data_dir: str | Path = "",
    general_dir: str | Path = "",
) -> pd.DataFrame:
    """The answers of a run, or of several that differ in their seed alone.

    Without `data_dir` (`general_dir`) every question counts as one on its own video.
    ValueError for runs of other settings, twice of one seed, or of other questions.
    """
    parts, asked = [], {}
    for seed, run in by_seed(runs).items():
        files = ((FILE.fullmatch(path.name), path) for path in run.glob("*_*.jsonl"))
        named = [(own.groupdict(), path) for own, path in files if own]
        models = in_order(own["model"] or own["looks"] for own, _ in named)
        for model in models:
            for own, path in sorted(named, key=lambda pair: pair[1].name):
                mine = model == (own["model"] or own["looks"])
                if mine and own["condition"] != "partial":
                    parts.append(_rows(path, own, asked).assign(seed=seed))
    if not parts:
        raise FileNotFoundError(f"{runs} holds no predictions: run 04_eval first")
    frame = pd.concat(parts, ignore_index=True)
    folders = [data_dir] * 3 + [general_dir]
    videos: dict[str, str] = {}
    for name, folder in zip(SETS, folders, strict=True):
        if folder and (frame.set == name).any():
            videos |= source_videos(folder, name)
    known = {row["id"]: row for rows in asked.values() for row in rows}
    for key in ("domain", "duration_group"):
        frame[key] = frame.id.map({i: row.get(key) for i, row in known.items()})
    options = {key: len(row["options"]) for key, row in known.items()}
    frame["options"] = frame.id.map(options)
    return _tidy(frame.assign(video=[videos.get(key, key) for key in frame.id]))


def of_texts(
    rows: Iterable[Mapping], videos: Mapping[str, Mapping[str, str]] | None = None
) -> pd.DataFrame:
    """The frame of answers kept as texts of 0 and 1, in the order of the sorted ids.

    A row has `correct`, `set` and whatever else tells it from others. `videos` {set:
    {id: recording}} are used where there are as many, else a number is all that is
    known of a question.
    """
    parts = []
    for row in rows:
        text, name = row["correct"], row["set"]
        known = dict(sorted((videos or {}).get(name, {}).items()))
        if len(known) != len(text):
            known = {key: key for key in (f"{name}#{i}" for i in range(len(text)))}
        own = pd.DataFrame({"id": list(known), "video": list(known.values())})
        own["value"] = [float(character) for character in text]
        facts = {key: value for key, value in row.items() if key != "correct"}
        parts.append(own.assign(**facts, measure="correct", condition=SEEN))
    return _tidy(pd.concat(parts, ignore_index=True))


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Names as categories, which are fast to choose by."""
    names = ("model", "set", "condition", "measure")
    return frame.astype(dict.fromkeys(names, "category"))


def _rows(path: Path, own: Mapping, asked: dict) -> pd.DataFrame:
    """One file as rows; `asked` {set: rows} are those of the first of each."""
    place = {"model": own["model"], "set": own["set"], "condition": SEEN}
    if own["kind"] == "coherence":
        values = [(row["id"], _said(row)) for row in read_jsonl(path)]
    elif own["kind"] == "predictions":
        rows, name = read_rows(path), own["set"]
        values = [(row["id"], {key: row[key] for key in ASKED}) for row in rows]
        if own["condition"]:
            place["condition"] = own["condition"]
            _check_condition(path, own, rows)
        else:
            same_questions(asked.setdefault(name, rows), rows, path)
    else:
        text = own["text"] or "own"
        values = [(row["id"], _attention(row, text)) for row in read_jsonl(path)]
        place["model"] = own["looks"]
    long = [
        (key, measure, float(value))
        for key, said in values
        for measure, value in said.items()
        if value is not None
    ]
    if own["looks"]:
        place["set"] = [key.split("/")[0] for key, _, _ in long]
    return pd.DataFrame(long, columns=["id", "measure", "value"]).assign(**place)


def _said(row: Mapping) -> dict[str, float | None]:
    """What a row of coherence_*.jsonl says: 0, 1, a share, None where nobody knows."""
    said = {
        key: row[key] if word is None or row[key] is None else row[key] == word
        for key, word in (SAID | dict.fromkeys(BESIDE)).items()
        if key in row
    }
    # A call that failed found no support.
    said["judge"] = row["judge"] is True if row.get("judged") else None
    for control in CONTROLS:
        if f"implied_{control}" in row:
            given = row["answer"]
            said[control] = given is not None and row[f"implied_{control}"] == given
    if row.get("consistent_other") is not None:
        said["consistent_other"] = row["consistent_other"] == "yes"
    return said


def _attention(row: Mapping, text: str) -> dict[str, float]:
    """{"own, layer 1, video": mass}, for each layer, part and token of the completion.

    `attention` is all that rests on pictures while a model writes its own words; of a
    question that was left out this is all that is known.
    """
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


# Checks


def by_seed(runs: str | Path | Sequence[str | Path]) -> dict[int, Path]:
    """{seed: run} of run folders, which may differ in the seed and ASKED_BESIDE alone.

    Seeds and settings stand in pipeline.json; a single run needs none.
    """
    single = isinstance(runs, str | Path)
    folders = [resolve(run) for run in ([runs] if single else runs)]
    if len(folders) == 1:
        require(folders[0], "run it with python -m lib.run")
        state = folders[0] / "pipeline.json"
        given = read_json(state)["parameters"] if state.exists() else {}
        return {given.get("seed", 0): folders[0]}
    found, settings = {}, {}
    for run in folders:
        path = require(run / "pipeline.json", "run it with python -m lib.run")
        given = dict(read_json(path)["parameters"])
        seed = given.pop("seed", 0)
        given = {k: v for k, v in given.items() if k not in ("run_name", *ASKED_BESIDE)}
        if seed in found:
            raise ValueError(f"{run} and {found[seed]} are both of seed {seed}")
        found[seed], settings[settings_hash(given)] = run, run
    if len(settings) > 1:
        differ = " and ".join(str(run) for run in settings.values())
        raise ValueError(f"{differ} differ in more than their seed, do not pool them")
    return found


def _check_condition(path: Path, own: Mapping, rows: Sequence[Mapping]) -> None:
    """ValueError unless only what was shown differs from the rows of all as it is."""
    seen = path.with_name(f"predictions_{own['model']}_{own['set']}.jsonl")
    asked = {row["id"] for row in read_jsonl(require(seen, "run 04_eval first"))}
    missing = [row["id"] for row in rows if row["id"] not in asked]
    if missing:
        raise ValueError(f"{seen} lacks {missing[0]}, which {path} has")
    was, now = (
        read_json(require(file.with_suffix(".settings.json"), "run 04_eval first"))
        for file in (seen, path)
    )
    for key in sorted({*was, *now} - MAY_DIFFER):
        if was.get(key) != now.get(key):
            raise ValueError(
                f"{path} cannot be compared with {seen.name}: {key} is "
                f"{now.get(key)!r} and there {was.get(key)!r}; delete {path.stem}.* "
                "and run 04_eval again"
            )


def source_videos(folder: str | Path, name: str) -> dict[str, str]:
    """{question id: the recording it is about} for one set of a data folder.

    Clips are cut for one question each, so their names do not tell which questions
    share a recording. `video_id` does; where a record has none, what stands before the
    last "_" of a text id ("<video>_<number>", as in EgoPlan-Bench2).
    """
    if name == "general":
        path, key = resolve(folder) / "lvb_val.json", "id"
        rows = read_json(require(path, "run 01_data first"))
    else:
        path = resolve(folder) / "annotations" / f"validation_{name}.jsonl"
        rows, key = read_jsonl(require(path, "run 01_data first")), "sample_id"
    return {
        f"{name}/{row[key]}": row.get("video_id") or str(row[key]).rpartition("_")[0]
        for row in rows
    }
