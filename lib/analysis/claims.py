"""The paper's claims, each measured on records, with a verdict that can be followed.

`claims.json` holds 22 claims, 15 of SEED-Bench-R1 (arXiv 2503.24376) and 7 of GRPO-CARE
(arXiv 2506.16141), what would confirm or refute each, and its parts. A part is one
number: a weighted sum of means over questions, ["grpo L1", "-sft L1"] for a paired
difference (lib/analysis/terms.py). Its sign is chosen so that the claim says it is
above `above` (0 unless given); its first term is what the claim says has moved. The
published size is that of the same sum (published.json).

The verdict on a part, from its 95 % interval [low, high], asked in this order:

    not measured            records are missing; the sentence says which
    cannot show here        it could not have come out otherwise: see `_cannot`
    supported               low > above
    the opposite was seen   high < above
    smaller than published  high < size; it may be nothing
    not decided             above and size lie in the interval, or there is no size

*Borderline* beside it: an end of the interval is within its own error (that of its
drawing, and one answer) of the bound that decides. Of several parts the worst verdict
counts, or the best where the claim `needs_any`; those `beside` it decide nothing.

A verdict tells something only where it could have been another. So the answers behind
the first term of a part are edited until the claim holds, and until its opposite does.
Where these planted cases do not come out as such, the part cannot show.

The rule takes the paper's effect as known; `differs` counts the errors of both. Nothing
is corrected for the number of claims: of 40 without an effect one comes out supported.
The paper's own counts get the same rule, unpaired, and no size.

Example: of 40 questions GRPO alone is right on 14, SFT alone on 4: +25 points, interval
+5 to +43, supported. With 5 and 4 it is +2.5 (-13 to +19), which holds both zero and
the paper's +2.2: not decided."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import hypot
from pathlib import Path

from lib import chain
from lib.analysis import answers, compare, plots, stats
from lib.analysis.compare import Missing
from lib.analysis.terms import Records, Term
from lib.evaluate import tables
from lib.evaluate.tables import points
from lib.markup import Marked, literal
from lib.methods import LEVELS, VERDICTS
from lib.paths import require, resolve
from lib.records import read_json, write_tables, write_text

SUPPORTED, OPPOSITE, SMALLER, OPEN, CANNOT, MISSING = VERDICTS
REFUTED = (OPPOSITE, SMALLER)
PLANTED = {"yes": (SUPPORTED,), "no": REFUTED}  # and what they must come out as
FACTS = ("number", "claim", "source", "url", "third_party", "table", "other_base")
FACTS += ("confirms", "refutes", "needs")  # of a claim, "" where it has none


def claims() -> list[dict]:
    """The 22 claims as claims.json has them."""
    return read_json(Path(__file__).with_name("claims.json"))["claims"]


def table(
    records: Records, samples: int = 10_000, seed: int = 0, only: Sequence = ()
) -> list[dict]:
    """One row a claim: FACTS, needs_any, verdict, sentence, published_verdict (None
    without counts), and its parts (those that decide) and those beside, as `judged` has
    them. `only`: the numbers of those to measure, all if none is given."""
    how = {"records": records, "samples": samples, "seed": seed}
    asked = [claim for claim in claims() if not only or claim["number"] in only]
    return [_row(claim, partial(measured, claim, **how)) for claim in asked]


def again(rows: Sequence[Mapping]) -> list[dict]:
    """All claims with today's verdicts, from the numbers of rows; later ones count."""
    parts = [part for row in rows for part in (*row["parts"], *row["beside"])]
    known = {tuple(part["terms"]): part for part in parts}
    nothing = {"missing": "numbers of these terms", "records": []}
    return [
        _row(claim, lambda part: known.get(tuple(part["effect"]), nothing))
        for claim in claims()
    ]


def _row(claim: Mapping, numbers: Callable[[Mapping], Mapping]) -> dict:
    row = {key: claim.get(key, "") for key in FACTS}
    row["needs_any"] = claim.get("needs_any", False)
    for key in ("parts", "beside"):
        parts = claim.get(key, [])
        row[key] = [judged(claim, part, numbers(part)) for part in parts]
    verdicts = [part["verdict"] for part in row["parts"]]
    row["verdict"] = combined(verdicts, row["needs_any"])
    own = [part["paper"] and part["paper"]["verdict"] for part in row["parts"]]
    row["published_verdict"] = combined(own) if all(own) else None
    row["sentence"] = decisive(row)["sentence"]
    if len(verdicts) > 1 and {*verdicts} != {MISSING}:
        counts = [f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts]
        said = f"of {len(verdicts)} parts {', '.join(counts)}. {decisive(row)['name']}"
        row["sentence"] = f"{said}: {row['sentence']}"
    return row


def measured(
    claim: Mapping, part: Mapping, records: Records, samples: int, seed: int
) -> dict:
    """The numbers of a part: `Records.contrast`, with planted {"yes", "no"}; checks
    {terms: effect, low, high of what has to hold}; records, the files. Or `missing`,
    what is needed."""
    draws = {"samples": samples, "seed": seed}
    try:
        terms = records.terms(part["effect"])
        goals = partial(_goals, claim, part) if part in claim["parts"] else None
        row = records.contrast(terms, **draws, goals=goals)
    except Missing as missing:
        return {"missing": str(missing), "records": []}
    row |= {"checks": {}, "records": records.paths(terms)}
    for check in part.get("shows_if", ()):
        with suppress(Missing):  # nobody knows, as the truth of real data
            found = records.contrast(records.terms(check["effect"]), **draws)
            kept = {key: found[key] for key in ("effect", "low", "high")}
            row["checks"][" ".join(check["effect"])] = kept
    return row


def _goals(claim: Mapping, part: Mapping, row: Mapping) -> dict[str, float]:
    """The effects to plant: one and a half times what these records would find, or nine
    tenths of the way to what can be; at least the paper's. And its opposite."""
    above, paper = part.get("above", 0.0), published(claim, part)
    half = (row["high"] - row["low"]) / 2
    found = 1.5 * stats.detectable(row["error"], half)
    least, most = (row["effect"] * 0.1 + row[end] * 0.9 for end in ("least", "most"))
    size = paper["effect"] if paper else above
    yes, no = max(size, min(above + found, most)), max(above - found, least)
    return {"yes": yes, "no": no}


def judged(claim: Mapping, part: Mapping, row: Mapping) -> dict:
    """The numbers of a part with name, terms, above, paper (see `published`), verdict
    and sentence; where it was measured also cannot (why it cannot show, or nothing),
    borderline, detectable (the effect that would be found four times in five), power
    (to find the paper's effect; of what is not decided) and differs (effect, low, high:
    what was measured less what was published, where that has an error)."""
    above, paper = part.get("above", 0.0), published(claim, part)
    row = {**row, "name": part["name"], "terms": part["effect"]}
    row |= {"above": above, "paper": paper, "borderline": False}
    row |= {"power": None, "differs": None}
    if "low" not in row:
        needs = f"{row['missing']}; {claim['needs']['what']}"
        said = f"not measured: needs {needs}, `{claim['needs']['command']}`"
        return row | {"verdict": MISSING, "sentence": said}
    low, high, size = row["low"], row["high"], paper and paper["effect"]
    half = (high - low) / 2
    row["verdict"] = verdict(low, high, above, size)
    row["detectable"] = above + stats.detectable(row["error"], half)
    bounds = [(low, above), (high, above)]
    bounds += [(high, size)] if size is not None and low <= above else []
    # Another answer moves an end; of shares, as of attention, by far less than 1.
    error = row.get("end_error", 0) + min(1 / row["n"] / row["seeds"], row["error"])
    row["borderline"] = any(abs(end - bound) <= error for end, bound in bounds)
    if row["verdict"] == OPEN and size is not None and size > above:
        row["power"] = stats.power(size - above, row["error"], half)
    if paper and paper["error"]:
        gap, both = row["effect"] - size, hypot(half, stats.Z * paper["error"])
        row["differs"] = {"effect": gap, "low": gap - both, "high": gap + both}
    row["cannot"] = _cannot(part, row)
    row["sentence"] = sentence(part, row)
    return row | ({"verdict": CANNOT} if row["cannot"] else {})


def _cannot(part: Mapping, row: Mapping) -> str:
    """Why a part could not have come out otherwise, or nothing. `shows_if` of a part
    names what has to lie above a bound, and what it means if not. There has to be room
    for the published effect: `most` is the sum with all answers behind the first term
    as the claim has them. What was planted has to come out."""
    for check in part.get("shows_if", ()):
        found = row["checks"].get(" ".join(check["effect"]))
        if found and found["low"] <= check["above"]:
            value, *ends = (abs(found[key]) for key in ("effect", "low", "high"))
            return check["else"].format(f"{tables.span(value, *sorted(ends))} %")
    size = above = row["above"]
    if row["paper"]:
        size = max(size, row["paper"]["effect"])
    if row["most"] <= above or row["most"] < size:
        more = points(size) if size > above else f"more than {points(above)}"
        return f"the effect can be {points(row['most'])} points at most, not {more}"
    for way, found in row["planted"].items():
        came = planted_verdict(row, way)
        if came not in PLANTED[way]:
            told = found and f"of {points(found['effect'])} points came out as {came}"
            return f"a planted {way} {told or 'is out of reach'}"
    return ""


def planted_verdict(row: Mapping, way: str) -> str:
    """What a planted "yes" or "no" of a part came out as, – where there is none."""
    found = row["planted"][way]
    size = row["paper"] and row["paper"]["effect"]
    return verdict(found["low"], found["high"], row["above"], size) if found else "–"


def verdict(low: float, high: float, above: float, size: float | None) -> str:
    """What an interval says of a part: the rule of the module's docstring."""
    if low > above:
        return SUPPORTED
    if high < above:
        return OPPOSITE
    return SMALLER if size is not None and high < size else OPEN


def combined(verdicts: Sequence[str], needs_any: bool = False) -> str:
    """The verdict on a claim from those on its parts, by the same docstring."""
    order = (MISSING, CANNOT, OPPOSITE, SMALLER, OPEN, SUPPORTED)
    return next(v for v in order[:: -1 if needs_any else 1] if v in verdicts)


def sentence(part: Mapping, row: Mapping) -> str:
    """What a measured part says, in words no stronger than its interval. `part` says in
    `more` and `less` what an effect above or below `above` means."""
    low, high, above = (row[key] for key in ("low", "high", "above"))
    size = row["paper"] and row["paper"]["effect"]
    one_seed = ", one training seed" if row["seeds"] == 1 else ""
    numbers = (
        f"{points(row['effect'])} points (95 % interval {points(low)} to "
        f"{points(high)}{one_seed}{', borderline' if row['borderline'] else ''})"
    )
    said = verdict(low, high, above, size)
    if row["cannot"]:
        return f"{CANNOT}: {row['cannot']}; measured: {numbers}"
    differs = row["differs"]
    same = bool(differs) and differs["low"] <= 0 <= differs["high"]
    but = "; with the errors of both it need not differ from the paper's" * same
    if said == SUPPORTED:
        if size is None or low <= size <= high:
            return f"{part['more']}: {numbers}"
        than = "less" if high < size else "more"
        than = f"{than} than the paper's {points(size)}"
        return f"{part['more']}: {numbers}, {than}{but}"
    if said == OPPOSITE:
        return f"{part['less']}: {numbers}"
    if said == SMALLER:
        return f"{SMALLER}, {points(size)}: {numbers}{but}"
    holds = f"{OPEN}: {numbers}; the interval holds {points(above)}"
    if size is None:
        return f"{holds}, and no size was published"
    and_ = " and" if low <= size else "; it lies above"
    return f"{holds}{and_} the paper's {points(size)}"


def published(claim: Mapping, part: Mapping) -> dict | None:
    """The published number for a part, None where there is none: effect, low, high,
    error, z, verdict (of its own counts); all but the first are None where no n was
    published, or claims.json gives the `size`: a mean over benchmarks, or a bound."""
    unknown = dict.fromkeys(("low", "high", "error", "z", "verdict"))
    if "size" in part:
        return {"effect": part["size"], **unknown}
    cells = {row["cell"]: row for row in _cells() if row["table"] == claim.get("table")}
    terms = [Term.read(text) for text in part.get("paper", part["effect"])]
    spread = [one for term in terms for one in term.over(LEVELS)]
    if not {str(term) for term in spread} <= cells.keys():
        return None
    found = [(term.weight, cells[str(term)]) for term in spread]
    if any(row["n"] is None for _, row in found):
        return {"effect": sum(w * row["share"] for w, row in found), **unknown}
    row = stats.unpaired_contrast([(w, row["share"], row["n"]) for w, row in found])
    own = verdict(row["low"], row["high"], part.get("above", 0.0), None)
    return row | {"verdict": own}


def _cells() -> list[dict]:
    """Every published number: table, cell ("grpo L1"), share, n, printed, decimals. Of
    the `tables` there are percentages alone, and n may be None."""
    rows, paper = [], compare.published()
    counted = dict(paper["set"])
    for name, field in (("L3", "domain"), ("general", "duration_group")):
        counted |= {f"{name} {field}={key}": row for key, row in paper[field].items()}
    for where, entry in counted.items():
        n, decimals = entry["n"], 1 if where.startswith("general") else 2
        for label, printed in entry["printed"].items():
            row = {"table": "sbr", "cell": f"{label} {where}", "n": n}
            row |= {"share": entry["correct"][label] / n, "decimals": decimals}
            rows.append(row | {"printed": printed})
    for name, entry in paper["tables"].items():
        for label, values in entry["printed"].items():
            for where, printed in values.items():
                row = {"table": name, "cell": f"{label} {where}", "decimals": 1}
                row |= {"n": entry["n"].get(where), "share": printed / 100}
                rows.append(row | {"printed": printed})
    return rows


def unreachable_cells() -> list[dict]:
    """The published cells that no number of right answers gives, with `nearest`, the
    percentage of the nearest count."""
    found = []
    for row in (row for row in _cells() if row["n"]):
        nearest = 100 * round(row["printed"] * row["n"] / 100) / row["n"]
        half = 0.5 * 10 ** -row["decimals"] + 1e-9  # a half may be rounded up or down
        if abs(nearest - row["printed"]) > half:
            found.append(row | {"nearest": nearest})
    return found


def behind(records: Records, number: int | str) -> dict:
    """The questions that the first part of a claim rests on: name, "for" and "against",
    ids that pull the effect up or down, strongest (most seeds) first. For ["grpo L1",
    "-sft L1"] these are what only GRPO, or only SFT, got right."""
    (part, *_) = next(own["parts"] for own in claims() if own["number"] == number)
    pulls = records.pulls(records.terms(part["effect"]))
    order = sorted(pulls, key=lambda key: -abs(pulls[key]))
    return {
        "name": part["name"],
        "for": [key for key in order if pulls[key] > 0],
        "against": [key for key in order if pulls[key] < 0],
    }


def decisive(row: Mapping) -> Mapping:
    """The part behind the verdict of a row of `table`. Of several with that verdict: of
    those that say no the one furthest from being supported, of the others the nearest
    to failing (or, where any part is enough, the strongest)."""
    same = [part for part in row["parts"] if part["verdict"] == row["verdict"]]
    if row["verdict"] in (MISSING, CANNOT):
        return same[0]
    end = "high" if row["verdict"] in REFUTED else "low"
    choose = max if row["needs_any"] else min
    return choose(same, key=lambda part: part[end] - part["above"])


def markdown(rows: Sequence[Mapping]) -> str:
    """A line a claim with the part that decides it; effects are in points."""
    return tables.markdown(_line(row, decisive(row)) for row in rows)


def _line(row: Mapping, part: Mapping) -> dict:
    other, size, power = row["other_base"], "–", "–"
    if "n" in part:
        size = f"{part['n']:,} × {part['seeds']}"
    if part["verdict"] == OPEN:
        power = f"80 % at {points(part['detectable'])}"
        if part["power"] is not None:
            power = f"{100 * part['power']:.0f} %"
    differs = part["differs"]
    apart = differs and ("no, " if differs["low"] <= 0 <= differs["high"] else "yes, ")
    border = ", borderline" if part["borderline"] else ""
    return {
        "#": row["number"],
        "claim": row["claim"] + (f" (published for {other})" if other else ""),
        "decided by": part["name"],
        "paper": effect(part["paper"]),
        "its own counts say": row["published_verdict"] or "–",
        "here": effect(part),
        "differs from the paper's own estimate": (apart or "") + effect(differs),
        "n × seeds": size,
        "power": power,
        "verdict": Marked(f"**{literal(row['verdict'])}**{border}"),
    }


def controls_markdown(rows: Sequence[Mapping]) -> str:
    """A line a part that was measured: what was planted, and what it came out as."""
    lines = []
    for row in rows:
        for part in (part for part in row["parts"] if "n" in part):
            line = {"#": row["number"], "claim": row["claim"], "part": part["name"]}
            for way in PLANTED:
                line[f"planted {way}"] = effect(part["planted"][way])
                line[f"{way} came out as"] = planted_verdict(part, way)
            lines.append(line | {"verdict on the part": part["verdict"]})
    return tables.markdown(lines)


def effect(row: Mapping | None) -> str:
    """An effect in points with its interval, as far as there is one."""
    if not row or "effect" not in row:
        return "–"
    if row.get("low") is None:
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


def write_all(runs: Sequence[Path], out: Path, only: Sequence = ()) -> list:
    """claims.json, md and png and controls.md in `out`, of runs that differ in seed;
    claims outside `only`, or all without runs, keep their numbers. What to print."""
    rows = []
    for run in runs:
        chain.verify(resolve(run))
    if runs:
        found = answers.read(runs, *answers.folders_of(runs[0]))
        rows = table(Records(runs, found), only=only)
    if only or not runs:
        path = require(resolve(out) / "claims.json", "make it once without --only")
        rows = again([*read_json(path), *rows])
    text = f"{markdown(rows)}\n{sentences(rows)}"
    write_text(out / "claims.md", text)
    write_text(out / "controls.md", controls_markdown(rows))
    write_tables(out / "claims.json", rows)
    return [text, plots.save(plots.claims(rows), out / "claims.png")]
