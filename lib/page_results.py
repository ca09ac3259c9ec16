"""The first half of a report: the answer, the numbers beside the paper's, the claims.

Words are those of lib/report.py and lib/claims.py, no stronger than the intervals.
"""

from collections.abc import Mapping, Sequence

from lib import claims, plots, report, stats, tables
from lib.markup import Html, body, bullets, folded, framed, join, prose, table, tag
from lib.page_figures import figures
from lib.page_parts import (
    Run,
    absent,
    accuracy,
    capital,
    difference,
    listed,
    main_comparisons,
    method,
    outcome,
    pair,
)

SIGNS = {  # beside the words of a verdict
    claims.SUPPORTED: "✓",
    claims.REFUTED: "✕",
    claims.OPEN: "○",
    claims.MISSING: "–",
}


def answer(run: Run) -> Html:
    """A line a set: the interval of GRPO − SFT drawn, and said in words."""
    rows = main_comparisons(run)
    if not rows:
        return tag("p", "No set was answered by both GRPO and SFT.")
    paper = tables.published_differences()
    widest = max(
        abs(value)
        for row in [*rows, *(paper["grpo", "sft", row["set"]] for row in rows)]
        for value in (row["low"], row["high"])
    )
    note = (
        "GRPO − SFT in points of accuracy on the same questions, with 95 % intervals. "
        "Filled: the interval excludes zero. Ring: it holds zero, which means "
        "undecided, not equal. Diamonds: the paper's Qwen2-VL-7B on its own questions, "
        "unpaired."
    )
    lines = [
        tag(
            "li",
            tag("p", prose(report.verdict(row["set"], row) + ".")),
            interval(row, paper["grpo", "sft", row["set"]], 1.08 * widest),
        )
        for row in rows
    ]
    scale = tag(
        "p",
        tag("span", "← SFT ahead"),
        tag("span", "0"),
        tag("span", "GRPO ahead →"),
        class_="scale",
        aria_hidden="true",
    )
    return join([tag("ul", *lines, class_="verdicts"), scale, tag("p", note)])


def interval(row: Mapping, paper: Mapping, widest: float) -> Html:
    """One difference as a line around zero; what it shows stands in its label."""
    said = [
        tables.span(one["difference"], one["low"], one["high"], signed=True)
        for one in (row, paper)
    ]
    color = _leader(row)
    drawn = [
        tag("line", x1="50%", x2="50%", y1="0", y2="100%", class_="zero"),
        _whisker(row, 13, widest, color, 3),
        tag(
            "circle",
            cx=_place(row["difference"], widest),
            cy=13,
            r=6,
            stroke=color,
            stroke_width=3,
            fill=color if color != "currentColor" else "var(--paper)",
        ),
        _whisker(paper, 29, widest, "currentColor", 1),
        # Percentages place a nested picture, not a path.
        tag(
            "svg",
            tag("path", d="M0 -4 L4 0 L0 4 L-4 0 Z", fill="currentColor"),
            x=_place(paper["difference"], widest),
            y=29,
            overflow="visible",
        ),
    ]
    label = f"{row['set']}: GRPO − SFT {said[0]} points; in the paper {said[1]}"
    return tag("svg", *drawn, role="img", aria_label=label, class_="interval")


def _leader(row: Mapping) -> str:
    """The colour of the method that is ahead; the text's own where nobody is."""
    if row["low"] > 0:
        return plots.COLORS[row["a"]]
    return plots.COLORS[row["b"]] if row["high"] < 0 else "currentColor"


def _whisker(row: Mapping, y: int, widest: float, color: str, width: int) -> Html:
    low, high = (_place(row[end], widest) for end in ("low", "high"))
    style = {"stroke": color, "stroke_width": width}
    return tag("line", x1=low, x2=high, y1=y, y2=y, **style)


def _place(value: float, widest: float) -> str:
    return f"{50 + 50 * value / widest:.2f}%"


def results(run: Run) -> Html:
    """Accuracy and differences, and the paper's numbers below in the same columns."""
    found = run("results.json")
    rows = found["accuracy"]
    sets = {row["set"]: row["n"] for row in rows}
    columns = ["method", *(_sized(name, n) for name, n in sets.items())]
    bodies = [
        body(columns, accuracy_rows(rows, sets), "This run: accuracy in %"),
        body(
            columns,
            difference_rows(found["comparisons"], sets),
            "This run: difference on the same questions, in points",
        ),
        body(columns, paper_rows(sets), "The paper: Qwen2-VL-7B, its own questions"),
    ]
    note = (
        "Accuracy by the paper's rule, the first letter in the answer tag, with 95 % "
        "Wilson intervals; an answer that cannot be parsed is wrong. Differences are "
        "paired by question, with bootstrap intervals; the paper's are unpaired, "
        "because its single answers are not public. Its model and questions are "
        "others: compare the pattern, not the heights."
    )
    title = "Accuracy of each method on each set, and the paper's"
    return join(
        [
            framed(title, columns, bodies, "compact"),
            tag("p", note, class_="note"),
            *out_of_distribution(found["out_of_distribution"]),
            folded("Paired differences, question by question", paired_table(found)),
            folded("A second way to read the answers", lenient_table(rows)),
        ]
    )


def accuracy_rows(rows: Sequence[Mapping], sets: Mapping[str, int]) -> list[list]:
    """A line a model; the last is what guessing gives."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["set"]: row for row in rows if row["model"] == model}
        cells = [accuracy(own[name]) if name in own else "–" for name in sets]
        lines.append([method(model), *cells])
    chance = {row["set"]: tables.percent(row["chance"]) for row in rows}
    return [*lines, ["chance", *(chance[name] for name in sets)]]


def difference_rows(rows: Sequence[Mapping], sets: Mapping[str, int]) -> list[list]:
    """A line a pair of methods, with what its interval allows to say."""
    lines = []
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows):
        own = {row["set"]: row for row in rows if (row["a"], row["b"]) == (a, b)}
        cells = [
            join([difference(own[name]), tag("small", outcome(own[name]))])
            if name in own
            else "–"
            for name in sets
        ]
        lines.append([pair(a, b), *cells])
    return lines


def paper_rows(sets: Mapping[str, int]) -> list[list]:
    """The published accuracies and GRPO − SFT, with the paper's n."""
    known = tables.published()["sets"]
    lines: list[list] = [["n", *(f"{known[name]['n']:,}" for name in sets)]]
    for model in tables.METHODS:
        cells = []
        for name in sets:
            k, n = known[name]["correct"][model], known[name]["n"]
            low, high = stats.wilson_interval(k, n)
            cells.append(accuracy({"accuracy": k / n, "low": low, "high": high}))
        lines.append([method(model), *cells])
    apart = tables.published_differences()
    cells = [
        join([difference(row), tag("small", outcome(row | {"a": "grpo", "b": "sft"}))])
        for row in (apart["grpo", "sft", name] for name in sets)
    ]
    return [*lines, [pair("grpo", "sft"), *cells]]


def out_of_distribution(rows: Sequence[Mapping]) -> list[Html]:
    """Is GRPO's advantage larger there than on L1? A sentence a set."""
    said = []
    for row in rows:
        word = "undecided"
        if row["low"] > 0 or row["high"] < 0:
            word = "larger" if row["low"] > 0 else "smaller"
        numbers = tables.span(row["difference"], row["low"], row["high"], signed=True)
        there, here = row["there"], row["here"]
        said.append(
            prose(
                f"GRPO − SFT on {there}, less that on {here}: **{word}**, "
                f"{numbers} points"
            )
        )
    if not said:
        return []
    return [tag("h3", "Is the advantage larger out of distribution?"), bullets(said)]


def paired_table(found: Mapping) -> Html:
    """The discordant questions behind every difference, and McNemar's test."""
    columns = [
        *("comparison", "set", "n", "difference, points"),
        *("only the first right", "only the second right", "McNemar p"),
    ]
    rows = [
        [
            pair(row["a"], row["b"]),
            row["set"],
            f"{row['n']:,}",
            tables.span(row["difference"], row["low"], row["high"], signed=True),
            f"{row['wins']:,}",
            f"{row['losses']:,}",
            f"{row['p']:.2g}",
        ]
        for row in [*found["comparisons"], *found.get("direct", [])]
    ]
    return table("Paired differences", columns, rows, "stack")


def lenient_table(rows: Sequence[Mapping]) -> Html:
    """Accuracy under both rules, and what kept an answer from being read."""
    columns = [
        *("method", "set", "first letter, %", "lenient, %"),
        *("not parsed, %", "cut at the limit, %", "failed videos"),
    ]
    lines = [
        [
            method(row["model"]),
            row["set"],
            tables.percent(row["accuracy"]),
            tables.span(
                row["accuracy_lenient"], row["low_lenient"], row["high_lenient"]
            ),
            tables.percent(row["parse_failure"]),
            tables.percent(row["truncated"]),
            row["failed_videos"],
        ]
        for row in rows
    ]
    note = (
        "The lenient rule also accepts an answer that is plain but badly wrapped: a "
        "gap between the two is format, not knowledge."
    )
    caption = "Accuracy under both rules"
    return join([tag("p", note), table(caption, columns, lines, "stack")])


def _sized(name: str, n: int) -> Html:
    return join([name, tag("small", f"n = {n:,}")])


AT_SIZE = "at the paper's size"


def claimed(run: Run) -> Html:
    """A line a claim, its sentence folded; the verdict is a sign and words."""
    rows = run("claims.json")
    if rows is None:
        return absent("claims.json")
    verdicts = [row["verdict"] for row in rows]
    counts = [
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in SIGNS
        if verdict in verdicts
    ]
    said = f"Of {len(rows)} claims: {listed(counts)}."
    note = (
        "Effects in points with 95 % intervals, those of the claim's deciding part; "
        "the paper's are of another model on other questions. Undecidable: the "
        "interval holds both nothing and the paper's effect. Not supported at the "
        "paper's size: a smaller effect is still possible. A null result is no "
        "refutation."
    )
    columns = ["#", "claim", "here", "paper", "verdict"]
    lines = [[row["number"], *claim_cells(row)] for row in rows]
    return join(
        [
            tag("p", said),
            table("The claims, one by one", columns, lines, "stack claims"),
            tag("p", note, class_="note"),
            figures(run, "claims"),
        ]
    )


def claim_cells(row: Mapping) -> list[Html]:
    """Claim with what is behind it, effect here, effect in the paper, verdict."""
    part = claims.decisive(row)
    smaller = row["verdict"] == claims.REFUTED and part["high"] >= part["above"]
    sign = tag("span", SIGNS[row["verdict"]], class_="sign", aria_hidden="true")
    words = join(
        [tag("b", sign, row["verdict"]), tag("small", AT_SIZE) if smaller else None]
    )
    return [
        join([row["claim"], folded("Why", *behind(row))]),
        join([effect(part), size(part)]),
        effect(part["paper"]),
        words,
    ]


def behind(row: Mapping) -> list[Html | None]:
    """What a claim's verdict rests on: sentences, its parts, its source."""
    parts = [*row["parts"], *row["beside"]] if len(row["parts"]) > 1 else row["beside"]
    said = [prose(f"{part['name']}: {part['sentence']}") for part in parts]
    own = row["published_verdict"]
    return [
        tag("p", prose(capital(row["sentence"]) + ".")),
        bullets(said),
        tag("p", f"The paper's own counts say: {own}.") if own else None,
        tag("p", f"Published for {row['other_base']}.") if row["other_base"] else None,
        tag("p", tag("a", row["source"], href=row["url"])),
    ]


def size(part: Mapping) -> Html | None:
    """Questions and seeds behind a part of a claim, if it was measured."""
    if "n" not in part:
        return None
    seeds = "1 seed" if part["seeds"] == 1 else f"{part['seeds']} seeds"
    return tag("small", f"{part['n']:,} questions × {seeds}")


def effect(row: Mapping | None) -> Html:
    """An effect in points with its interval, as far as there is one."""
    if not row or row.get("effect") is None:
        return Html("–")
    if row.get("low") is None:
        return tag("b", tables.points(row["effect"]))
    return difference(row | {"difference": row["effect"]})
