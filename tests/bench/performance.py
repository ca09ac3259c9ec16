"""outputs/reference/performance.md: time and memory, from the committed bench records.

    python -m tests.bench.grpo_step            # and the other benches
    python -m tests.bench.performance outputs/reference

A ratio is the other program's seconds over the kit's, the median over pairs of runs in
one process. "limit" is what the count of tokens alone would give: the tokens that a
stock trainer sends through the language model over those of the packed row.

Example: 8 completions of 64 tokens behind a prompt of 883 are 8 x 947 = 7,576 tokens
repeated and 882 + 512 = 1,394 packed, a limit of 5.4."""

from collections.abc import Mapping
from pathlib import Path

from lib.doors import Door
from lib.markup import Marked, grid
from lib.records import read_json, write_text

CASES = {"full": "all weights", "lora": "LoRA", "nf4": "LoRA on NF4"}
SHARED = (
    "The rollout stays behind its limit because tokens are drawn one after another: "
    "that takes the same number of passes in both programs. An update gets ahead of "
    "its limit where the vision tower, which runs once and not eight times, or the "
    "output layer, which TRL 1.16 also applies to the prompt, weighs much, and falls "
    "behind with long completions, because attention over the packed row computes, and "
    "then hides, what one completion would see of another."
)
NO_GPU = (
    "No GPU was at hand: seconds and peaks of the single-GPU track were not measured. "
    "Its GiB are the plan of `--dry-run`, tensors alone, which agrees "
    "with measured CPU peaks; `python -m tests.bench.cost` measures on a GPU."
)


def performance(folder: str | Path) -> str:
    """The text of performance.md, from the records in `folder`."""
    folder = Path(folder)
    steps = {
        name: read_json(folder / f"bench_grpo_step{name}.json")
        for name in ("", "_mini")
    }
    lines = [
        "# What it costs\n",
        "One GRPO step of 8 completions: how many times faster than stock TRL 1.16 "
        "with video, and the share of its memory that the update takes:",
        "",
        grid([STEP_HEAD, *(row for own in steps.values() for row in step_rows(own))]),
        step_caption(*steps.values()),
        "",
        decoding_sentence(read_json(folder / "bench_decoding.json")),
        evaluation_sentence(read_json(folder / "bench_evaluation.json")),
        frames_sentence(read_json(folder / "bench_frame_store.json")),
        kills_sentence(read_json(folder / "bench_kills.json")),
        "",
        cost_table(folder),
    ]
    return "\n".join(lines) + "\n"


STEP_HEAD = [
    *("prompt + completion", "trained", "rollout", "reference", "update", "limit"),
    *("whole step", "memory"),
]


def step_rows(record: Mapping) -> list[list[str]]:
    """A table row for each case and completion length."""
    return [
        [
            f"{record['prompt_tokens']} + {row['completion_tokens']}",
            CASES[row["case"]],
            *(
                f"{row['ratio'][stage]['median']:.1f}"
                for stage in ("rollout", "reference", "update")
            ),
            f"{row['token_limit']['scores']:.1f}",
            _spread(row["ratio"]["step"]),
            f"{row['peak_share']:.2f}",
        ]
        for row in record["rows"]
    ]


def step_caption(record: Mapping, mini: Mapping) -> str:
    """How the table was measured, and where the rest goes."""
    rows = [*record["rows"], *mini["rows"]]
    apart = max(row["gradient_difference"] for row in rows)
    return (
        f"Medians over {record['repeats']} pairs of runs, {mini['repeats']} for the "
        "mini run (whole step: least to most), "
        f"{record['threads']} threads of a CPU, {record['dtype']}; gradients of both "
        f"differ by at most {apart:.0e} relative. 883 prompt tokens are the paper's "
        "shape, on a small model with random weights; 170 are the mini run's, on the "
        f"mini base and with 8 prompts a step (`tests/bench/grpo_step.py`). {SHARED}"
    )


def decoding_sentence(record: Mapping) -> str:
    """The token step against the loop over the model's modules before it."""
    cases = [
        f"{_spread(case['tokens'])} times for {name}, "
        f"{case['operations']['engine']:,} operations a token step instead of "
        f"{case['operations']['before']:,}"
        for name, case in record["cases"].items()
    ]
    apart = {dtype: own["most"] for dtype, own in record["mismatch"].items()}
    (deep,) = (c["compiled"] for c in record["cases"].values() if "compiled" in c)
    return (
        "Tokens are drawn faster than by a loop over the model's modules, behind the "
        f"prefill and on one thread of a CPU: {'; '.join(cases)}. torch.compile makes "
        f"the last {_spread(deep['tokens'])}, after {deep['seconds_once']:.0f} s of "
        "compiling, which no run of the kit on a CPU would win back. The update scores "
        f"a drawn token as it was drawn, to {apart['float32']:.0e} in float32 and to "
        f"{apart['bfloat16']:.2f} in bfloat16, as log-probabilities at most "
        "(`tests/bench/decoding.py`)."
    )


def evaluation_sentence(record: Mapping) -> str:
    """The kit's evaluation against a loop over single questions."""
    kit, loop = (record["questions_a_second"][name] for name in ("kit", "loop"))
    return (
        f"Three models of the mini base's size answer {kit['median']:.0f} questions a "
        f"second, {_spread(record['ratio'])} times as many as a loop over single "
        f"questions as in the paper's released code ({loop['median']:.0f}), with equal "
        "completions (`tests/bench/evaluation.py`)."
    )


def frames_sentence(record: Mapping) -> str:
    """Reading decoded frames against decoding."""
    ratio, kept = record["ratio"], record["bytes_per_1000_clips"] / 1e9
    return (
        f"With `frames_dir`, the frames of a 720p clip are read {ratio['median']:.0f} "
        f"times ({ratio['min']:.0f} to {ratio['max']:.0f}) faster than decoded; "
        f"1,000 clips of {record['frames_of_a_clip']} frames take {kept:.1f} GB "
        "(`tests/bench/frame_store.py`)."
    )


def kills_sentence(record: Mapping) -> str:
    """How many runs that were ended early were in the end as an undisturbed one. A run
    that had ended when its moment came does not count."""
    names = dict.fromkeys(row["stage"] for row in record["stages"])
    every = [kill for row in record["stages"] for kill in row["moments"]]
    kills = [kill for kill in every if kill["was_running"]]
    ways = dict.fromkeys(kill["way"] for kill in kills)
    aimed = sum(kill["after"] is None for kill in kills)
    return (
        f"{sum(kill['equal'] for kill in kills)} of {len(kills)} runs "
        f"({', '.join(names)}; one process and two) that were ended by "
        f"{', '.join(ways)}, {len(kills) - aimed} at a random moment and {aimed} "
        "inside a checkpoint, and started again ended with the very records of an "
        "undisturbed one (`tests/bench/kills.py`)."
    )


def cost_table(folder: Path) -> str:
    """A row a track: what a run takes, measured or planned."""
    costs = read_json(folder / "bench_cost.json")["costs"]
    rows = [
        ["track", "machine", "time", "memory"],
        mini_row(Marked("mini, `make reproduce`"), folder / "mini", ""),
        mini_row(
            Marked("mini, `params/sweeps/mini_seeds.yaml`"),
            folder / "mini_seeds",
            " a run, with PPO and GRPO-CARE too, two at a time beside other work",
        ),
    ]
    rows += [cost_row(size, found) for size, found in costs.items()]
    everywhere = all(found["measured"] for found in costs.values())
    return f"{grid(rows)}\n{measured_note(costs) if everywhere else NO_GPU}"


def mini_row(track: str, folder: Path, said: str) -> list[str]:
    """Track, machine, time and memory of the recorded runs in a folder."""
    runs = [read_json(path) for path in sorted(folder.glob("*.json"))]
    minutes = [sum(run["seconds"].values()) / 60 for run in runs]
    held = max(max(run["peak_memory_gib"].values()) for run in runs)
    cores = {str(run["environment"]["cpu_count"]) for run in runs}
    times = list(dict.fromkeys(f"{f(minutes):.0f}" for f in (min, max)))
    return [
        track,
        f"{' or '.join(sorted(cores))} CPU cores",
        f"{' to '.join(times)} minutes{said}",
        f"{held:.1f} GiB a notebook at most",
    ]


def cost_row(size: str, found: Mapping) -> list[str]:
    """Track, machine, time and memory of a size of the single-GPU track."""
    stages, measured = found["rows"], found["measured"]
    kind = "measured" if measured else "planned"
    key = "peak_gib" if measured else "planned_gib"
    peak = max(stages, key=lambda stage: stage[key])
    took = {row["stage"]: f"{row['seconds']:.1f} s" for row in stages if measured}
    time = (
        f"SFT {took['SFT']} a demonstration; GRPO step: rollout {took['rollout']}, "
        f"reference {took['reference']}, update {took['update']}; evaluation "
        f"{took['evaluation']} a question"
        if measured
        else "not measured"
    )
    return [
        f"single GPU, {size.upper()}",
        found["device"] or "no GPU was at hand",
        time,
        f"{peak[key]:.1f} GiB {kind} ({peak['stage']})",
    ]


def measured_note(costs: Mapping[str, Mapping]) -> str:
    """How the single-GPU track was measured, and how near its plan comes."""
    work = next(iter(costs.values()))["work"]
    return (
        f"Single GPU: models of the true size with random weights, which write "
        f"{work['completion']} tokens in every completion, the dearest case; "
        f"{work['prompts']} x {work['group']} rollouts a step, "
        f"{work['eval_batch']} questions at a time. `--dry-run` is "
        "within 15 % of every measured peak (`tests/test_plan.py`); it is of tensors "
        "alone, and plans more for SFT than was measured here, because a step of the "
        f"params files holds the inputs of 128 demonstrations and not of "
        f"{work['sft_accumulation']}. Tokens were drawn by an earlier loop, which "
        "waited for the host to hand over its kernels and not for the card: 2B took as "
        f"long as 7B, and a token of {work['eval_batch']} questions as long as one of "
        f"{work['prompts'] * work['group']} rollouts. A token step has become one CUDA "
        "graph since; no GPU has timed it yet (`tests/bench/cost.py`)."
    )


def _spread(ratio: Mapping) -> str:
    return f"{ratio['median']:.1f} ({ratio['least']:.1f} to {ratio['most']:.1f})"


if __name__ == "__main__":
    door = Door("python -m tests.bench.performance", __doc__)
    door.add_argument("records", type=Path, help="folder with bench_*.json")
    records = door.parse_args().records
    write_text(records / "performance.md", performance(records))
