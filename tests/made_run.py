"""A run folder as a finished run leaves it, with answers drawn at known accuracies."""

import json

import numpy as np

from lib import chain
from lib.analysis.answers import CONTROLS
from lib.data.letters import judged
from lib.records import write_json, write_jsonl

ABILITY = {"base": 0.30, "sft": 0.45, "grpo": 0.52, "base-direct": 0.36}
DOMAINS = ("Daily life", "Hobbies", "Recreation", "Work")
OPTIONS = ["cut the red ring", "wash the cup", "move the cup to the tray", "dry it"]
ENVIRONMENT = {"git_commit": "0" * 40, "git_dirty": False, "python": "3.11"}
ENVIRONMENT |= {"packages": {"torch": "2.13"}, "platform": "Linux"}
ENVIRONMENT |= {"gpu": None, "cpu_count": 2}


def predictions(model, name, n, seed):
    """Rows as lib.evaluate.evaluate writes them; questions are as hard for every
    model."""
    hardness = np.random.default_rng(7).normal(0, 0.15, n)
    # greedy decoding: the base model answers alike in every run
    draw = np.random.default_rng([list(ABILITY).index(model), ord(name[1]), seed])
    right = draw.random(n) < ABILITY[model] + hardness
    rows = []
    for i in range(n):
        options = [*OPTIONS, "wait"][: 5 if name == "general" and i % 2 else 4]
        gold = "ABCD"[i % 4]
        letter = gold if right[i] else "ABCD"[(i + 1) % 4]
        done = f"<think>The {options[i % 4]} step is done.</think>"
        cut_off = not right[i] and i % 10 == 9
        said = f"({gold})" if not right[i] and i % 20 == 0 else letter
        completion = done if cut_off else f"{done}<answer>{said}</answer>"
        style = "direct" if model == "base-direct" else "think"
        if style == "direct":
            completion = said
        row = {"id": f"{name}/{i}", "level": name, "scenario": "tray"}
        row["domain"] = DOMAINS[i % 4] if name == "L3" else "Daily life"
        row["duration_group"] = (15, 60)[i % 2] if name == "general" else None
        row |= {"gold": gold, "options": options, "completion": completion}
        row |= judged(completion, options, gold, style)
        rows.append(row | {"truncated": cut_off, "tokens": 15, "error": None})
    return rows


def answering(row, right):
    """The row with a right, or a wrong, answer."""
    gold = row["gold"]
    letter = gold if right else "AB"[gold == "A"]
    completion = f"<answer>{letter}</answer>"
    return row | {"completion": completion, **judged(completion, row["options"], gold)}


def write_condition(run, model, name, condition, rows, max_frames=8):
    """The rows of a condition, with the settings that 04_eval leaves beside rows."""
    sampling = {"max_frames": max_frames, "height": 56, "width": 112}
    whole = run / f"predictions_{model}_{name}.jsonl"
    file = whole.with_suffix(f".{condition}.jsonl")
    write_jsonl(file, rows)
    for path in (whole, file):
        write_json(path.with_suffix(".settings.json"), {"sampling": sampling})


def reasoning_row(key, **said):
    """A row as lib.evaluate.coherence writes it: supported, unless it is `said`."""
    row = {"id": key, "answer": "A", "judged": False, "judge": None}
    row |= {"consistent": "yes", "consistent_other": "no", "follows": "yes"}
    row |= {"progress": "right", "false_step": "no", "false_object": None}
    row |= {"base_reader": True, "own_reader": True}
    row |= {f"implied_{control}": "B" for control in CONTROLS}
    row |= {"verbatim": False, "overlap": 0.25}
    return row | {"verbatim_flawless": True, "overlap_flawless": 0.5} | said


def attention_row(key, layers, tokens=1, letter=True):
    """A row as lib.evaluate.attention writes it: by layer the shares of attention on
    video, still and text; without a `letter` none was given."""
    mean = np.mean(layers, 0).tolist()
    parts = {"first": mean, "reasoning": mean, "letter": mean if letter else None}
    row = {"id": key, "n": tokens, "retokenized": False, "equal": [0.2, 0.05, 0.75]}
    return row | {"by_layer": layers, "by_token": [mean] * tokens, "parts": parts}


def grpo_log(steps=40):
    """Rows as lib.train.grpo logs them; `entropy` is left out, as an older log
    might."""
    rng = np.random.default_rng(1)
    return [
        {
            "step": step,
            "loss": 0.01,
            "reward": 0.3 + 0.004 * step + 0.05 * rng.standard_normal(),
            "reward_std": 0.2,
            "kl": 0.001 * step,
            "completion_length": 12 + 0.1 * step,
            "truncated": 0.02,
            "dead_groups": max(0.0, 0.6 - 0.01 * step),
        }
        for step in range(1, steps + 1)
    ]


def write_run(folder, seed=0, n=120, sets=("L1", "L2", "L3", "general")):
    """Write the records of one run into `folder`; returns it."""
    metrics: dict = {}
    for name in sets:
        for model in ABILITY:
            rows = predictions(model, name, n, 0 if "base" in model else seed)
            write_jsonl(folder / f"predictions_{model}_{name}.jsonl", rows)
            accuracy = sum(row["correct"] for row in rows) / n
            metrics.setdefault(model, {})[name] = {"n": n, "accuracy": accuracy}
    write_json(folder / "metrics.json", metrics)
    losses = [{"step": s, "loss": 2.0 / s, "learning_rate": 1e-3} for s in range(1, 31)]
    write_jsonl(folder / "train_log_sft.jsonl", losses)
    write_jsonl(folder / "train_log_grpo.jsonl", grpo_log())
    manifest = {"01_data": {"environment": ENVIRONMENT}}
    write_json(folder / "manifest.json", manifest)
    parameters = {"seed": seed, "run_name": folder.name, "data_dir": ""}
    parameters["general_dir"] = ""  # no annotations: each question has its own video
    notebooks = {name: {"seconds": 60.0} for name in ("01_data", "02_sft", "03_grpo")}
    state = {"parameters": parameters, "notebooks": notebooks}
    write_json(folder / "pipeline.json", state)
    chain.seal(folder, "01_data")
    return folder


def one(rows, **wanted):
    """The one row with these values."""
    (row,) = [r for r in rows if all(r[key] == wanted[key] for key in wanted)]
    return row


def edit_row(path, number, **changes):
    """Change fields of one row (from 0) of a JSON lines file; None removes a field."""
    lines = path.read_text().splitlines()
    row = {**json.loads(lines[number]), **changes}
    if {"completion", "gold", "options"} & changes.keys():
        style = "direct" if "-direct_" in path.name else "think"
        row |= judged(row["completion"], row["options"], row["gold"], style)
    for name in [name for name, value in changes.items() if value is None]:
        del row[name]
    lines[number] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
