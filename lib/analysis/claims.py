"""The paper's claims, each measured on records, with a verdict that can be followed.

`claims.json` holds 21 claims, 14 of SEED-Bench-R1 (arXiv 2503.24376) and 7 of GRPO-CARE
(arXiv 2506.16141), with the published figures, what would confirm or refute each, and
its parts. A part is one number: a weighted sum of means over questions, ["grpo L1",
"-sft L1"] for a paired difference (lib/analysis/terms.py). Its sign is chosen so that
the claim says it is above `above` (0 unless given). The smallest effect that matters is
`size`: what the paper published for the same sum.

The verdict on a part, from its 95 % interval [low, high], asked in this order:

    supported       low > above
    not supported   high < above: the opposite holds; or high < size: it may be nothing,
                    and is not as large as in the paper
    undecidable     anything else: above and size both lie in the interval, or nobody
                    published a size
    not measured    records are missing; the sentence says which and what writes them

A claim of several parts needs all of them: not measured if one is not, else not
supported if one is not, else undecidable if one is, else supported. One that
`needs_any` needs one of those measured. Parts `beside` a claim decide nothing.

The rule takes the paper's effect as known, which it is not, and does not correct for
the number of comparisons: of 40 claims without any effect one comes out as supported.
The paper's own counts get the same rule, unpaired, and no size.

Example: of 40 questions GRPO alone is right on 14, SFT alone on 4: +25 points, interval
+5 to +43, supported. With 5 and 4 it is +2.5 (-13 to +19), which holds both zero and
the paper's +2.2: undecidable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import chain
from lib.analysis import compare, plots, stats
from lib.analysis.compare import Missing
from lib.analysis.terms import Records, Term
from lib.evaluate import tables
from lib.evaluate.tables import points
from lib.markup import Marked, literal
from lib.methods import LEVELS
from lib.paths import require, resolve
from lib.records import read_json, write_json, write_text

SUPPORTED, REFUTED = "supported", "not supported"
OPEN, MISSING = "undecidable", "not measured"
FACTS = dict.fromkeys(  # of a claim, and what stands for those that one need not have
    (
        *("number", "claim", "source", "url", "third_party", "table", "other_base"),
        *("confirms", "refutes", "needs"),
    ),
    "",
) | {"needs_any": False}


def claims() -> list[dict]:
    """The 21 claims as claims.json has them."""
    return _data()["claims"]


def table(
    records: Records, samples: int = 10_000, seed: int = 0, only: Sequence[int] = ()
) -> list[dict]:
    """One row a claim: FACTS, verdict, sentence, published_verdict (None without
    counts), and its parts (those that decide) and those beside, as `measure` has them.

    `only`: the numbers of those to measure, all if none is given.
    """
    asked = [claim for claim in claims() if not only or claim["number"] in only]
    return [_row(claim, records, samples, seed) for claim in asked]


def _row(claim: Mapping, records: Records, samples: int, seed: int) -> dict:
    row = {key: claim.get(key, usual) for key, usual in FACTS.items()}
    for key in ("parts", "beside"):
        parts = claim.get(key, [])
        row[key] = [measure(claim, part, records, samples, seed) for part in parts]
    verdicts = [part["verdict"] for part in row["parts"]]
    row["verdict"] = combined(verdicts, row["needs_any"])
    own = [part["paper"] and part["paper"]["verdict"] for part in row["parts"]]
    row["published_verdict"] = combined(own) if all(own) else None
    row["sentence"] = decisive(row)["sentence"]
    if len(verdicts) > 1 and {*verdicts} != {MISSING}:
        kinds = (SUPPORTED, REFUTED, OPEN, MISSING)
        counts = [f"{verdicts.count(v)} {v}" for v in kinds if v in verdicts]
        said = f"of {len(verdicts)} parts {', '.join(counts)}. {decisive(row)['name']}"
        row["sentence"] = f"{said}: {row['sentence']}"
    return row


def measure(
    claim: Mapping, part: Mapping, records: Records, samples: int, seed: int
) -> dict:
    """One part of a claim on the records.

    Returns name, above, paper (see `published`), verdict, sentence, records (the files)
    and, where those are there, `Records.contrast`, power (to find the paper's effect;
    None unless it is above) and detectable (the effect that would be found four times
    in five). For a paired comparison paper_paired_power is what McNemar's test could
    have found with the paper's n and size, had it had the discordance seen here.
    """
    above, paper = part.get("above", 0.0), published(claim, part)
    row = {"name": part["name"], "above": above, "paper": paper}
    try:
        terms = records.terms(part["effect"])
        row |= records.contrast(terms, samples, seed)
    except Missing as missing:
        needs = f"{missing}; {claim['needs']['what']}, `{claim['needs']['command']}`"
        said = f"not measured: needs {needs}"
        return row | {"verdict": MISSING, "records": [], "sentence": said}
    size = paper and paper["effect"]
    half, power, paired = (row["high"] - row["low"]) / 2, None, None
    if size is not None and size > above:
        power = stats.power(size - above, row["error"], half)
    discordant = row["discordant"] or 0
    if paper and paper["n"] and 0 < discordant >= abs(size):
        paired = stats.paired_power(size, discordant, paper["n"][0])
    return row | {
        "records": records.paths(terms),
        "verdict": verdict(row["low"], row["high"], above, size),
        "power": power,
        "detectable": above + stats.detectable(row["error"], half),
        "paper_paired_power": paired,
        "sentence": sentence(part, row),
    }


def verdict(low: float, high: float, above: float, size: float | None) -> str:
    """supported, not supported or undecidable: the rule of the module's docstring."""
    if low > above:
        return SUPPORTED
    if high < above or (size is not None and high < size):
        return REFUTED
    return OPEN


def combined(verdicts: Sequence[str], needs_any: bool = False) -> str:
    """The verdict on a claim from those on its parts, by the same docstring."""
    order = (MISSING, REFUTED, OPEN, SUPPORTED)
    order = (SUPPORTED, OPEN, REFUTED, MISSING) if needs_any else order
    return next(found for found in order if found in verdicts)


def sentence(part: Mapping, row: Mapping) -> str:
    """What a measured part says, in words no stronger than its interval.

    `part` says in `more` and `less` what an effect above or below `above` means.
    """
    low, high, above = (row[key] for key in ("low", "high", "above"))
    size = row["paper"] and row["paper"]["effect"]
    one_seed = ", one training seed" if row["seeds"] == 1 else ""
    numbers = (
        f"{points(row['effect'])} points (95 % interval {points(low)} to "
        f"{points(high)}{one_seed})"
    )
    if low > above:
        if size is None or low <= size <= high:
            return f"{part['more']}: {numbers}"
        than = "less" if high < size else "more"
        return f"{part['more']}: {numbers}, {than} than the paper's {points(size)}"
    if high < above:
        return f"{part['less']}: {numbers}"
    if size is not None and high < size:
        return f"not seen at the paper's size, {points(size)}: {numbers}"
    holds = f"undecided: {numbers}; the interval holds {points(above)}"
    if size is None:
        return f"{holds}, and no size was published"
    return f"{holds} {'and' if low <= size else '; above'} the paper's {points(size)}"


def published(claim: Mapping, part: Mapping) -> dict | None:
    """The published number for a part, None where there is none.

    Returns effect, low, high, z, power (of its own comparison, for its own effect),
    verdict (of its own counts), n (of each of its terms) and shares {term: share}. All
    but the first and last are None where no n was published, or where claims.json gives
    the `size` itself: a mean over benchmarks, or a bound that the claim sets.
    """
    unknown = dict.fromkeys(("low", "high", "z", "power", "verdict", "n"))
    if "size" in part:
        return {"effect": part["size"], **unknown, "shares": {}}
    cells = {row["cell"]: row for row in _cells() if row["table"] == claim.get("table")}
    terms = [Term.read(text) for text in part.get("paper", part["effect"])]
    spread = [one for term in terms for one in term.over(LEVELS)]
    if not {str(term) for term in spread} <= cells.keys():
        return None
    found = [(term.weight, cells[str(term)]) for term in spread]
    shares = {"shares": {row["cell"]: row["share"] for _, row in found}}
    counts = [row["n"] for _, row in found]
    if None in counts:
        effect = sum(weight * row["share"] for weight, row in found)
        return {"effect": effect, **unknown, **shares}
    above = part.get("above", 0.0)
    row = stats.unpaired_contrast([(w, row["share"], row["n"]) for w, row in found])
    row["power"] = stats.power(row["effect"] - above, row.pop("error"))
    row["verdict"] = verdict(row["low"], row["high"], above, None)
    return row | {"n": counts} | shares


def _cells() -> list[dict]:
    """Every published number: table, cell ("grpo L1"), share, n, printed, decimals.

    sbr is lib/analysis/published.json, which has counts; the others have percentages
    alone, and n is None where it is not published.
    """
    rows, paper = [], compare.published()
    counted = dict(paper["sets"])
    counted |= {f"L3 domain={name}": row for name, row in paper["domains"].items()}
    for name, row in paper["durations"].items():
        counted[f"general duration_group={name}"] = row
    for where, entry in counted.items():
        n, decimals = entry["n"], 1 if where.startswith("general") else 2
        for label, printed in entry["printed"].items():
            row = {"table": "sbr", "cell": f"{label} {where}", "n": n}
            row |= {"share": entry["correct"][label] / n, "decimals": decimals}
            rows.append(row | {"printed": printed})
    for name, entry in _data()["tables"].items():
        for label, values in entry["printed"].items():
            for where, printed in values.items():
                row = {"table": name, "cell": f"{label} {where}", "decimals": 1}
                row |= {"n": entry["n"].get(where), "share": printed / 100}
                rows.append(row | {"printed": printed})
    return rows


def reachable(printed: float, n: int, decimals: int) -> list[int]:
    """The counts out of n whose percentage is printed so.

    >>> reachable(46.01, 2432, 2), reachable(32.30, 295, 2)
    ([1119], [])
    """
    half = 0.5 * 10**-decimals + 1e-9  # a half may be rounded up or down
    near = range(int((printed - half) * n / 100), int((printed + half) * n / 100) + 2)
    return [k for k in near if k <= n and abs(100 * k / n - printed) <= half]


def unreachable_cells() -> list[dict]:
    """The published cells that no number of right answers gives, with `nearest`, the
    percentage of the nearest count."""
    return [
        row | {"nearest": 100 * round(row["printed"] * row["n"] / 100) / row["n"]}
        for row in _cells()
        if row["n"] and not reachable(row["printed"], row["n"], row["decimals"])
    ]


def behind(records: Records, number: int, name: str = "") -> dict:
    """The questions that a part of a claim rests on: its first one, or that of a name.

    Returns name, "for" and "against": ids that pull the effect up or down, those with
    the strongest pull (most seeds) first. For ["grpo L1", "-sft L1"] these are the
    questions that only GRPO, or only SFT, got right.
    """
    claim = next(claim for claim in claims() if claim["number"] == number)
    parts = [*claim["parts"], *claim.get("beside", [])]
    part = next(part for part in parts if name in ("", part["name"]))
    pulls = records.pulls(records.terms(part["effect"]))
    order = sorted(pulls, key=lambda key: -abs(pulls[key]))
    return {
        "name": part["name"],
        "for": [key for key in order if pulls[key] > 0],
        "against": [key for key in order if pulls[key] < 0],
    }


def with_earlier(folder: str | Path, rows: Sequence[Mapping]) -> list[dict]:
    """All claims: these rows, and the others as the claims.json of a folder has them.

    FileNotFoundError without that file, ValueError where the text, the sources or the
    rule of another claim has changed since.
    """
    path = require(resolve(folder) / "claims.json", "make it once without --only")
    found = {row["number"]: row for row in (*read_json(path), *rows)}
    for claim in claims():
        row, number = found[claim["number"]], claim["number"]
        stale = [key for key in FACTS if key in claim and row[key] != claim[key]]
        if stale:
            said = f"{', '.join(stale)} of claim {number} changed since"
            raise ValueError(f"{path}: {said}, measure it anew")
    return [found[claim["number"]] for claim in claims()]


def decisive(row: Mapping) -> Mapping:
    """The part behind the verdict of a row of `table`.

    Of several with that verdict: of not supported ones the one furthest from being
    supported, of the others the nearest to failing (or, where any part is enough, the
    strongest).
    """
    same = [part for part in row["parts"] if part["verdict"] == row["verdict"]]
    if row["verdict"] == MISSING:
        return same[0]
    end = "high" if row["verdict"] == REFUTED else "low"
    choose = max if row["needs_any"] else min
    return choose(same, key=lambda part: part[end] - part["above"])


def markdown(rows: Sequence[Mapping]) -> str:
    """A line a claim with the part that decides it; effects are in points."""
    return tables.markdown(_line(row, decisive(row)) for row in rows)


def _line(row: Mapping, part: Mapping) -> dict:
    other, size, power = row["other_base"], "–", "–"
    if "n" in part:
        size = f"{part['n']:,} × {part['seeds']}"
        power = f"80 % at {points(part['detectable'])}"
        if part["power"] is not None:
            power = f"{100 * part['power']:.0f} %"
    smaller = part["verdict"] == REFUTED and part["high"] >= part["above"]
    at_size = " at the paper's size" if smaller else ""
    return {
        "#": row["number"],
        "claim": row["claim"] + (f" (published for {other})" if other else ""),
        "decided by": part["name"],
        "paper": _effect(part["paper"]),
        "its own counts say": row["published_verdict"] or "–",
        "here": _effect(part),
        "n × seeds": size,
        "power": power,
        "verdict": Marked(f"**{literal(row['verdict'])}**{at_size}"),
    }


def _effect(row: Mapping | None) -> str:
    if not row or "effect" not in row:
        return "–"
    if row["low"] is None:
        return points(row["effect"])
    return tables.span(row["effect"], row["low"], row["high"], signed=True)


def sentences(rows: Sequence[Mapping]) -> str:
    """A line a claim with what its numbers say; below, what was measured beside it."""
    lines = []
    for row in rows:
        lines.append(f"- **{row['number']}** {row['sentence']}")
        measured = [part for part in row["beside"] if part["verdict"] != MISSING]
        lines += [f"  - beside it, {p['name']}: {p['sentence']}" for p in measured]
    return "\n".join(lines) + "\n"


def write_all(runs: Sequence[Path], out: Path, only: Sequence[int]) -> list:
    """claims.json, md and png in `out`, of runs that differ in seed; with `only`, the
    other claims stay as they are there. What there is to print."""
    for run in runs:
        chain.verify(resolve(run))
    ran = "run it with python -m lib.run"
    given = read_json(require(resolve(runs[0]) / "pipeline.json", ran))["parameters"]
    folders = (given.get(name, "") for name in ("data_dir", "general_dir"))
    rows = table(Records(runs, *folders), only=only)
    rows = with_earlier(out, rows) if only else rows
    text = f"{markdown(rows)}\n{sentences(rows)}"
    write_text(out / "claims.md", text)
    write_json(out / "claims.json", rows)
    return [text, plots.save(plots.claims(rows), out / "claims.png")]


def _data() -> dict:
    return read_json(Path(__file__).with_name("claims.json"))
