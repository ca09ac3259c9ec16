"""A run's answer as views: who is ahead, the paper's claims, what was run, what failed.

Words are no stronger than the intervals: "ahead" stands only where a 95 % interval
excludes zero, and nothing is told by colour alone.

Example: with GRPO − SFT on L1 at +3.0 points (+0.4 to +5.6) and on L2 at +1.0 (−2.0 to
+4.0), `lead` says "GRPO is ahead of SFT on L1; not told apart from SFT on L2."
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from lib.analysis import claims, compare, readme
from lib.analysis.compare import ahead
from lib.evaluate import tables
from lib.methods import LABELS, PAIRS, SETS, VERDICTS, called, difference
from lib.show.pages import TEMPLATES, View


def lead(rows: Iterable[Mapping]) -> str:
    """Who is ahead on which sets, in one sentence, from rows of GRPO − SFT."""
    sets: dict = {"grpo": [], "sft": [], None: []}
    for row in rows:
        name = "the general set" if row["set"] == "general" else row["set"]
        sets[ahead(row)].append(name)
    words = ("ahead of SFT on", "behind SFT on", "not told apart from SFT on")
    said = zip(words, map(listed, sets.values()), strict=True)
    return f"GRPO is {'; '.join(f'{how} {where}' for how, where in said if where)}."


def answer(compared: Sequence[Mapping]) -> View:
    """The lead, and a line a set: GRPO − SFT said in words and its interval drawn, with
    the paper's; then where a training does harm. Rows have a, b, set, difference, low,
    high, in shares."""
    rows, published = compare.main(compared), compare.published_differences()
    drawn = [*rows, *(published["grpo", "sft", row["set"]] for row in rows)]
    widest = 1.08 * max(abs(row[end]) for row in drawn for end in ("low", "high"))
    words = (readme.verdict(row).split("**")[2] for row in rows)
    said = [row | {"words": own} for row, own in zip(rows, words, strict=True)]
    harms = [sentence.split("**")[1:] for sentence in readme.harms(compared)]
    words = " ".join([lead(rows), *map("".join, harms)])
    return View(VIEWS.answer(lead(rows), said, harms, published, widest), words)


def across(rows: Iterable[Mapping]) -> str:
    """A markdown table, a line a method, or a pair with who is ahead, GRPO or SFT by
    the rule of `lead`; sets across."""
    rows, cells = list(rows), []
    tested = {row["set"]: row for row in compare.main(r for r in rows if "a" in r)}
    for row in rows:
        if "model" in row:
            name, cell = LABELS[row["model"]], compare.span(row, "accuracy")
        else:
            pair = row["a"], row["b"]
            first = ahead(tested[row["set"]] if pair == PAIRS[0] else row)
            name = difference(*pair)
            cell = f"{gap(row)} {f'{LABELS[first]} ahead' if first else 'not decided'}"
        cells.append(({"": name}, called(row), cell))
    return tables.crossed(cells)


def claimed(rows: Sequence[Mapping], first: Sequence[int]) -> View:
    """The claims of `claims.table`; those not numbered in `first` are folded."""
    verdicts = [row["verdict"] for row in rows]
    counts = [f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts]
    said = f"Of {len(rows)} claims: {listed(counts)}."
    top = [row for row in rows if row["number"] in first]
    rest = [row for row in rows if row["number"] not in first]
    return View(VIEWS.claimed(said, top, rest), said)


def facts(manifest: Mapping, data_dir: str) -> View:
    """Eight facts of a run; a fact that differs between stages has all its values."""
    stages = list(manifest.values())
    places = [stage["environment"] for stage in stages]
    seconds = sum(stage.get("seconds", 0) for stage in stages)
    peak = max(stage.get("peak_memory_gib", 0) for stage in stages)
    known = {
        "data": [data_dir],
        "base model": [stage.get("model") for stage in stages],
        "training seed": [stage.get("seed") for stage in stages],
        "code": [
            f"commit {own['git_commit'][:12]}{' with changes' * own['git_dirty']}"
            for own in places
            if own["git_commit"]
        ],
        "machine": [own["platform"] for own in places],
        "GPU, CPU cores": [
            f"{own['gpu'] or 'no GPU'}, {own['cpu_count']}" for own in places
        ],
        "PyTorch": [own["packages"]["torch"] for own in places],
        "the last start took": [
            f"{seconds:,.0f} s of work, at most {peak:.2f} GiB in a process"
        ],
    }
    found = {
        name: "; ".join(dict.fromkeys(str(one) for one in values if one is not None))
        for name, values in known.items()
    }
    return View(VIEWS.facts(found), f"{len(manifest)} stages on {data_dir}")


def gaps(
    manifest: Mapping,
    accuracy: Iterable[Mapping],
    claims_: Sequence[Mapping],
    left_out: Mapping[str, str],
) -> View:
    """What failed and what is missing, a line each. `accuracy` are rows of
    `compare.accuracies`, `left_out` {what was not asked: why} is of perception.py."""
    seeds = {stage["seed"] for stage in manifest.values() if "seed" in stage}
    faults = manifest.get("01_data", {}).get("faults", {})
    accuracy = list(accuracy)
    parts = [called(row) for row in accuracy if row.get("of", 0) > row["n"]]
    unasked = [name for name in SETS if name not in {row["set"] for row in accuracy}]
    missing = [str(r["number"]) for r in claims_ if r["verdict"] == claims.MISSING]
    said = [
        *(f"{k} holds {n:,} faults that 01_data lists" for k, n in faults.items() if n),
        *(
            f"{LABELS[row['model']]} on {row['set']}: {row['failed_videos']:,} of "
            f"{row['n']:,} videos could not be read; their questions count as wrong"
            for row in accuracy
            if row["failed_videos"]
        ),
        *(f"{name}: the rest was not asked" for name in dict.fromkeys(parts)),
        *([f"not asked: {listed(unasked)}"] if unasked else []),
        *(f"not asked, {name.replace('_', ' ')}: {w}" for name, w in left_out.items()),
        f"claims not measured: {listed(missing) or 'none'}",
        f"training seeds of this run: {len(seeds)}; another could come out otherwise",
    ]
    return View(VIEWS.gaps(said), "; ".join(said))


def listed(names: Sequence[str]) -> str:
    """ "L1, L2 and L3"."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])


gap = partial(compare.span, value="difference")
USED = {"ahead": ahead, "span": gap, "effect": claims.effect, "VERDICTS": VERDICTS}
USED |= {"decisive": claims.decisive, "called": called}
VIEWS = TEMPLATES.get_template("answer.html", globals=USED).module
