"""outputs/reference/performance.md: time and memory, from the committed bench records.

    python -m tests.bench.grpo_step            # and the other benches
    python -m tests.bench.performance outputs/reference

A ratio is the other program's seconds over the kit's, the median over pairs of runs in
one process. "limit" is what the count of tokens alone would give: the tokens that a
stock trainer sends through the language model over those of the packed row. The words
are in performance.md beside this file, a template of jinja.

Example: 8 completions of 64 tokens behind a prompt of 883 are 8 x 947 = 7,576 tokens
repeated and 882 + 512 = 1,394 packed, a limit of 5.4."""

from pathlib import Path

import jinja2

from lib.doors import Door
from lib.records import read_json, write_text

RECORDS = {  # the name of a record in the template: its file
    "paper": "bench_grpo_step",
    "mini": "bench_grpo_step_mini",
    "decoding": "bench_decoding",
    "evaluation": "bench_evaluation",
    "frames": "bench_frame_store",
}


def performance(folder: str | Path) -> str:
    """The text of performance.md, from the records in `folder`."""
    folder = Path(folder)
    given = {name: read_json(folder / f"{file}.json") for name, file in RECORDS.items()}
    stages = read_json(folder / "bench_kills.json")["stages"]
    moments = [kill for stage in stages for kill in stage["moments"]]
    given["kills"] = [kill for kill in moments if kill["was_running"]]
    costs = given["costs"] = read_json(folder / "bench_cost.json")["costs"]
    for cost in costs.values():
        took = ((row["stage"], row["seconds"]) for row in cost["rows"])
        cost["took"] = {stage: f"{seconds:.1f} s" for stage, seconds in took}
    given["run"] = recorded(folder / "mini")
    given["sweep"] = recorded(folder / "mini_seeds")
    words = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    how = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    return jinja2.Template(words, **how).render(given)


def recorded(folder: Path) -> dict[str, str]:
    """Machine, time and memory of the recorded runs in a folder."""
    runs = [read_json(path) for path in sorted(folder.glob("*.json"))]
    minutes = [sum(run["seconds"].values()) / 60 for run in runs]
    held = max(max(run["peak_memory_gib"].values()) for run in runs)
    cores = {str(run["environment"]["cpu_count"]) for run in runs}
    times = dict.fromkeys(f"{f(minutes):.0f}" for f in (min, max))
    return {
        "machine": f"{' or '.join(sorted(cores))} CPU cores",
        "minutes": " to ".join(times),
        "memory": f"{held:.1f} GiB",
    }


if __name__ == "__main__":
    door = Door("python -m tests.bench.performance", __doc__)
    door.add_argument("records", type=Path, help="folder with bench_*.json")
    records = door.parse_args().records
    write_text(records / "performance.md", performance(records))
