"""A run's answer as views: who is ahead, the paper's claims, what was run, what failed.

Words are no stronger than the intervals: "ahead" stands only where a 95 % interval
excludes zero, and nothing is told by colour alone.

Example: with GRPO − SFT on L1 at +3.0 points (+0.4 to +5.6) and on L2 at +1.0 (−2.0 to
+4.0), `lead` says "GRPO is ahead of SFT on L1; L2 is undecided."
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from lib.analysis import claims, plots, readme
from lib.evaluate import tables
from lib.markup import Html, grid, join, tag
from lib.show.pages import View

CALLED = {"general": "the general set"}
SIGNS = {  # beside the words of a verdict
    claims.SUPPORTED: "✓",
    claims.REFUTED: "✕",
    claims.OPEN: "○",
    claims.MISSING: "–",
}
AT_SIZE = "at the paper's size"
NOTE = (
    "GRPO − SFT in points of accuracy on the same questions, with 95 % intervals. "
    "Filled: the interval excludes zero. Ring: it holds zero, that is undecided, not "
    "equal. Diamonds: the paper's Qwen2-VL-7B on its own questions, unpaired. The "
    "intervals speak of other questions, not of other training seeds."
)


def lead(rows: Sequence[Mapping]) -> str:
    """Who is ahead on which sets, in one sentence, from rows of GRPO − SFT."""
    named = {row["set"]: CALLED.get(row["set"], row["set"]) for row in rows}
    ahead = [named[row["set"]] for row in rows if row["low"] > 0]
    behind = [named[row["set"]] for row in rows if row["high"] < 0]
    undecided = [named[row["set"]] for row in rows if row["low"] <= 0 <= row["high"]]
    if not rows:
        return "This run compares no GRPO with SFT."
    if not ahead and not behind:
        return f"Undecided: GRPO and SFT cannot be told apart on {listed(undecided)}."
    said = [
        f"{first} is ahead of {second} on {listed(sets)}"
        for first, second, sets in (("GRPO", "SFT", ahead), ("SFT", "GRPO", behind))
        if sets
    ]
    verb = "is" if len(undecided) == 1 else "are"
    said += [f"{listed(undecided)} {verb} undecided"] if undecided else []
    return "; ".join(said) + "."


def answer(compared: Iterable[Mapping], published: Mapping) -> View:
    """The lead, and a line a set: GRPO − SFT said in words and its interval drawn.

    Rows have a, b, set, difference, low and high, in shares; `published` are those of
    `compare.published_differences`.
    """
    rows = [row for row in compared if (row["a"], row["b"]) == ("grpo", "sft")]
    paper = {row["set"]: published["grpo", "sft", row["set"]] for row in rows}
    ends = (abs(r[end]) for r in (*rows, *paper.values()) for end in ("low", "high"))
    widest = 1.08 * max(ends, default=1)
    lines = [
        tag(
            "li",
            tag("p", tag("strong", name), f"{words}."),
            interval(row, paper[row["set"]], widest),
        )
        for row in rows
        for _, name, words in [readme.verdict(row["set"], row).split("**")]
    ]
    names = [tag("span", name) for name in ("← SFT ahead", "0", "GRPO ahead →")]
    parts = [
        tag("p", lead(rows), class_="lead"),
        tag("ul", *lines, class_="verdicts"),
        tag("p", *names, class_="ends aside", aria_hidden="true"),
        tag("p", NOTE, class_="aside"),
    ]
    return View(parts, lead(rows))


def interval(row: Mapping, paper: Mapping, widest: float) -> Html:
    """One difference as a line around zero; what it shows stands in its label."""
    said = [
        tables.span(one["difference"], one["low"], one["high"], signed=True)
        for one in (row, paper)
    ]
    ahead = row["a"] if row["low"] > 0 else row["b"] if row["high"] < 0 else None
    own = f"--own: {plots.COLORS[ahead]}" if ahead else None
    point = {"class_": "own filled" if ahead else "own", "stroke_width": 3}
    drawn = [
        tag("line", x1="50%", x2="50%", y1="0", y2="100%", class_="zero"),
        _whisker(row, 13, widest, class_="own", stroke_width=3),
        tag("circle", cx=_at(row["difference"], widest), cy=13, r=6, **point),
        _whisker(paper, 29, widest, stroke="currentColor"),
        # Percentages place a nested picture, not a path.
        tag(
            "svg",
            tag("path", d="M0 -4 L4 0 L0 4 L-4 0 Z", fill="currentColor"),
            x=_at(paper["difference"], widest),
            y=29,
            overflow="visible",
        ),
    ]
    label = f"{row['set']}: GRPO − SFT {said[0]} points; in the paper {said[1]}"
    named = {"role": "img", "aria_label": label, "class_": "interval", "style": own}
    return tag("svg", *drawn, **named)


def across(rows: Iterable[Mapping], cell: Callable[[Mapping], str]) -> str:
    """A markdown table with a line a method, or a pair of them, and the sets across."""
    lines: dict[str, dict] = {}
    for row in rows:
        methods = [row["model"]] if "model" in row else [row["a"], row["b"]]
        name = " − ".join(plots.LABELS[method] for method in methods)
        lines.setdefault(name, {})[row["set"]] = cell(row)
    sets = list(dict.fromkeys(name for line in lines.values() for name in line))
    cells = [[name, *(line.get(s, "–") for s in sets)] for name, line in lines.items()]
    return grid([["", *sets], *cells])


def share(row: Mapping) -> str:
    """An accuracy in per cent with its interval."""
    return tables.span(row["accuracy"], row["low"], row["high"])


def gap(row: Mapping) -> str:
    """A difference in points with its interval, and which method that puts ahead."""
    ahead = row["a"] if row["low"] > 0 else row["b"] if row["high"] < 0 else None
    said = tables.span(row["difference"], row["low"], row["high"], signed=True)
    return f"{said} {plots.LABELS[ahead]} ahead" if ahead else f"{said} undecided"


def claimed(rows: Sequence[Mapping], first: Sequence[int]) -> View:
    """The paper's claims with their verdicts: those numbered `first`, the rest folded.

    `rows` are those of `lib.analysis.claims.table`.
    """
    verdicts = [row["verdict"] for row in rows]
    counts = [f"{verdicts.count(v)} {v}" for v in SIGNS if v in verdicts]
    said = f"Of {len(rows)} claims: {listed(counts)}."
    top = [_claim(row) for row in rows if row["number"] in first]
    rest = [_claim(row) for row in rows if row["number"] not in first]
    parts = [
        tag("p", said),
        tag("ul", *top, class_="claims"),
        folded(f"The other {len(rest)} claims", tag("ul", *rest, class_="claims")),
    ]
    return View(parts, said)


def facts(manifest: Mapping, data_dir: str) -> View:
    """Eight facts of a run; a fact that differs between stages has all its values."""
    places = [stage.get("environment") or {} for stage in manifest.values()]
    stages = list(manifest.values())
    seconds = sum(stage.get("seconds", 0) for stage in stages)
    peak = max((stage.get("peak_memory_gib", 0) for stage in stages), default=0)
    packages = [place.get("packages", {}) for place in places]
    known = {
        "data": [data_dir],
        "base model": [stage.get("model") for stage in stages],
        "training seed": [stage.get("seed") for stage in stages],
        "code": [
            f"commit {place['git_commit']}"
            + " with changes" * bool(place.get("git_dirty"))
            for place in places
            if place.get("git_commit")
        ],
        "machine": [place.get("platform") for place in places],
        "GPU, CPU cores": [
            f"{place.get('gpu') or 'no GPU'}, {place.get('cpu_count')}"
            for place in places
        ],
        "PyTorch": [own.get("torch") for own in packages],
        "cost": [f"{seconds:,.0f} s of work, at most {peak:.2f} GiB of memory"],
    }
    lines = []
    for name, values in known.items():
        found = dict.fromkeys(str(value) for value in values if value is not None)
        lines += [tag("dt", name), tag("dd", "; ".join(found) or "not recorded")]
    return View([tag("dl", *lines)], f"{len(manifest)} stages on {data_dir}")


def gaps(
    manifest: Mapping,
    accuracy: Iterable[Mapping],
    claims_: Sequence[Mapping],
    left_out: Mapping[str, str],
) -> View:
    """What failed and what is missing, a line each.

    `left_out` {what was not asked: why}, of lib/evaluate/perception.py.
    """
    seeds = {stage["seed"] for stage in manifest.values() if "seed" in stage}
    said = [
        f"{name} holds {count:,} faults that 01_data lists"
        for name, count in manifest.get("01_data", {}).get("faults", {}).items()
        if count
    ]
    said += [
        f"{plots.LABELS[row['model']]} on {row['set']}: {row['failed_videos']:,} of "
        f"{row['n']:,} videos could not be read; their questions count as wrong"
        for row in accuracy
        if row["failed_videos"]
    ]
    said += [
        f"not asked, {name.replace('_', ' ')}: {w}" for name, w in left_out.items()
    ]
    missing = [str(r["number"]) for r in claims_ if r["verdict"] == claims.MISSING]
    if missing:
        said.append(f"not measured by this run: claims {listed(missing)}")
    said.append(
        "one training seed: another could come out otherwise"
        if len(seeds) < 2
        else "the stages were trained with different seeds"
    )
    return View([tag("ul", *(tag("li", line) for line in said))], "; ".join(said))


def folded(summary: object, *parts: object) -> Html:
    """Parts that a reader opens; printed open."""
    return tag("details", tag("summary", summary), *parts)


def listed(names: Sequence[str]) -> str:
    """ "L1, L2 and L3"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _whisker(row: Mapping, y: int, widest: float, **look) -> Html:
    x1, x2 = (_at(row[end], widest) for end in ("low", "high"))
    return tag("line", x1=x1, x2=x2, y1=y, y2=y, **look)


def _at(value: float, widest: float) -> str:
    return f"{50 + 50 * value / widest:.2f}%"


def _claim(row: Mapping) -> Html:
    """A claim, its verdict with the effects behind it, and why, folded."""
    part = claims.decisive(row)
    smaller = row["verdict"] == claims.REFUTED and part["high"] >= part["above"]
    sign = tag("span", SIGNS[row["verdict"]], class_="sign", aria_hidden="true")
    verdict = tag("strong", sign, row["verdict"])
    seeds = "1 seed" if part.get("seeds") == 1 else f"{part.get('seeds')} seeds"
    said = [
        tag("small", f"here {_effect(part)}"),
        tag("small", f"paper {_effect(part['paper'])}"),
        tag("small", f"{part['n']:,} questions × {seeds}") if "n" in part else None,
    ]
    lines = [part for part in said if part]
    own = row["published_verdict"]
    several = row["parts"] if len(row["parts"]) > 1 else []
    why = [
        tag("p", f"{row['sentence']}."),
        *(
            tag("p", f"{p['name']}: {p['sentence']}")
            for p in (*several, *row["beside"])
        ),
        tag("p", f"The paper's own counts say: {own}.") if own else None,
        tag("p", f"Published for {row['other_base']}.") if row["other_base"] else None,
        tag("p", tag("a", row["source"], href=row["url"])),
    ]
    return tag(
        "li",
        tag("div", f"{row['number']}. {row['claim']}"),
        tag("div", verdict, " " + AT_SIZE if smaller else "", *_under(lines)),
        folded("why", *why),
    )


def _under(lines: Iterable[Html]) -> list[Html]:
    return [join([Html("<br>"), line]) for line in lines]


def _effect(row: Mapping | None) -> str:
    """An effect in points with its interval, as far as there is one."""
    if not row or row.get("effect") is None:
        return "–"
    if row.get("low") is None:
        return tables.points(row["effect"])
    return tables.span(row["effect"], row["low"], row["high"], signed=True)
