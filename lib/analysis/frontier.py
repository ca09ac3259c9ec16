"""When does RL beat SFT? GRPO - SFT over SFT's teacher and the number of questions.

x is the share of demonstrations whose reasoning is `false`, or leaves out what was seen
(`unseen`), below a right letter (lib/mini/teacher.py); y the share of the training
questions. GRPO has no teacher: one run for each y and seed is compared with every x.

    python -m lib.analysis map outputs/map outputs/map_grpo --out FOLDER

A row crosses zero at the x beyond which GRPO leads at every larger x; between two cells
the difference is a straight line. Interval: 2.5 and 97.5 % of the crossings of
resamples of questions and seeds, with replacement, the same for all cells (pigeonhole
bootstrap, Owen 2007). It may lie beyond the map: below 0 GRPO leads everywhere, above 1
nowhere. Example: -2 points at x = 0.15 and +4 from 0.3 on cross at 0.2."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.analysis import plots, readme, stats
from lib.evaluate import tables
from lib.paths import resolve
from lib.records import read_json, write_tables, write_text

# Of a run: what tells its cell from others, and the value where it says nothing.
PLACE = {"demonstrations_by": "teacher", "training_share": 1.0, "data_dir": ""}
PLACE |= {"demonstrations_false": 0.0, "demonstrations_unseen": 0.0}
KINDS = ("false", "unseen")
WORDS = {"false": "false", "unseen": "no look"}
ARMS = ("sft", "grpo")
SETS = ("L1", "L3")
PANELS = {"L1": {"L1": 1}, "L3": {"L3": 1}, "L3 − L1": {"L3": 1, "L1": -1}}
RIGHT = (0.35, 0.60)  # share of questions: assumed of SEED-Bench-R1's teacher
SAMPLES = 2000
CAPTION = (
    "dots: zero; bars: its 95 % interval; no look: the step is named at once, whatever "
    "the clip shows\nstar: the recorded teacher; at the foot: the paper's teacher, if "
    "it is right on A = 35 to 60 %: lucky letters are (1 − A) / 3A"
)


def lucky(right: float) -> float:
    """Of the letters that a filter keeps, the share that was guessed: by a teacher that
    is `right` on four-option questions this often, and knows or guesses evenly."""
    return (1 - right) / (3 * right)


def record(folders: Iterable[str | Path]) -> list[dict]:
    """The runs of some sweeps, or of a map, with PLACE, what their demonstrations
    state, and answers as texts of 0 and 1. Of a run given twice the later counts.
    ValueError for an unfinished run, and for different bases."""
    rows: dict[str, dict] = {}
    for folder in map(resolve, folders):
        if (earlier := folder / "map.json").exists():
            rows |= {row["run"]: row for row in read_json(earlier)}
            continue
        for row in readme.sweep_record(folder):
            if "metrics" not in row:
                todo = f"run {folder.name} to its end, every cell is shown"
                raise ValueError(f"{row['run']} is {row['status']}: {todo}")
            run = folder.parent / row["run"]
            given = read_json(run / "pipeline.json")["parameters"]
            taught = read_json(run / "manifest.json").get("02_sft", {})
            row |= {key: given.get(key, usual) for key, usual in PLACE.items()}
            row |= {key: taught.get(key, {}) for key in ("stated", "demonstrations")}
            row["metrics"] = {m: row["metrics"][m] for m in ARMS if m in row["metrics"]}
            rows[row["run"]] = row
    if len(bases := {row["base"]: row["run"] for row in rows.values()}) > 1:
        raise ValueError(f"{' and '.join(bases.values())} are of different bases")
    return [*rows.values()]


def cells(rows: Sequence[Mapping]) -> list[dict]:
    """A cell for each PLACE of SFT, with GRPO - SFT [seeds, n] of L1 and of L3.
    ValueError where GRPO of the same data, share and seed is missing, and where
    two runs have one place and seed: nothing tells which counts."""
    own = {name: [r for r in rows if name in r["metrics"]] for name in ARMS}
    grpo, found, twice = {}, {}, "has the place of another run: leave one of them out"
    for row in own["grpo"]:
        said = row["metrics"]["grpo"]
        if grpo.setdefault(_shared(row), said) != said:
            raise ValueError(f"GRPO of {row['run']} {twice}")
    for row in sorted(own["sft"], key=itemgetter("seed")):
        if _shared(row) not in grpo:
            todo = "give the sweep that has GRPO of its data, share and seed, too"
            raise ValueError(f"{row['run']} has nothing to be compared with: {todo}")
        place = {key: row[key] for key in PLACE}
        new = place | {"stated": row["stated"], "seeds": [], "L1": [], "L3": []}
        new["learned"] = row["demonstrations"].get("sft")
        cell = found.setdefault(tuple(place.values()), new)
        if row["seed"] in cell["seeds"]:
            raise ValueError(f"SFT of {row['run']} {twice}")
        cell["seeds"].append(row["seed"])
        for name in SETS:
            both = grpo[_shared(row)][name], row["metrics"]["sft"][name]
            texts = ([int(bit) for bit in entry["correct"]] for entry in both)
            cell[name].append(np.subtract(*texts))
    return [found[place] for place in sorted(found)]


def _shared(row: Mapping) -> tuple:
    """What a GRPO run and all its SFT runs have in common."""
    return row["data_dir"], row["training_share"], row["seed"]


def rows_of(found: Sequence[Mapping], kind: str) -> dict[tuple, list[Mapping]]:
    """{(data, share of the questions): its cells by x} of one kind of bad reasoning."""
    rows: dict[tuple, list] = {}
    for cell in sorted(found, key=itemgetter(f"demonstrations_{kind}")):
        x, *others = (cell[f"demonstrations_{own}"] for own in (kind, *KINDS))
        if cell["demonstrations_by"] == "truth" and sum(others) == x:
            place = cell["data_dir"], cell["training_share"]
            rows.setdefault(place, []).append(cell | {"x": x})
    return {place: own for place, own in sorted(rows.items()) if len(own) > 1}


def crossing(x: Sequence[float], effect: Sequence[float]) -> float:
    """The x beyond which `effect` stays above 0; -inf: everywhere, inf: nowhere."""
    below = np.flatnonzero(np.asarray(effect) <= 0)
    if not len(below) or below[-1] == len(x) - 1:
        return np.inf if len(below) else -np.inf
    i = below[-1]
    return float(np.interp(0, effect[i : i + 2], x[i : i + 2]))


def of_panel(values: Mapping, panel: str):
    """The panel's number from those of its sets."""
    return sum(weight * values[name] for name, weight in PANELS[panel].items())


def means(cell: Mapping) -> dict[str, float]:
    """GRPO - SFT of each set."""
    return {name: float(np.mean(cell[name])) for name in SETS}


def crossings(found: Sequence[Mapping]) -> list[dict]:
    """Of each kind, row and panel: crossing, low, high, and `inside`, the share of
    resamples that cross within the map."""
    lines, ends = [], [(1 - stats.CONFIDENCE) / 2, (1 + stats.CONFIDENCE) / 2]
    rows = [(kind, *own) for kind in KINDS for own in rows_of(found, kind).items()]
    for kind, (data, share), row in rows:
        place = {"kind": kind, "data_dir": data, "training_share": share}
        place["learned"] = row[0]["learned"]
        x, drawn = [cell["x"] for cell in row], [_resampled(cell) for cell in row]
        for panel in PANELS:
            at = crossing(x, [of_panel(means(cell), panel) for cell in row])
            each = np.transpose([of_panel(own, panel) for own in drawn])
            values = [crossing(x, effect) for effect in each]
            low, high = np.quantile(values, ends, method="inverted_cdf").tolist()
            own = {"panel": panel, "inside": np.isfinite(values).mean()}
            lines.append(place | own | {"crossing": at, "low": low, "high": high})
    return lines


def _resampled(cell: Mapping) -> dict[str, np.ndarray]:
    """{set: the cell's mean in each resample}, from the same draws for every cell."""
    count, found = len(cell["seeds"]), {}
    seeds = np.random.default_rng(count).integers(count, size=(SAMPLES, count))
    for number, name in enumerate(SETS):
        questions = tuple(range(len(cell[name][0])))
        drawn = stats.resampling(questions, SAMPLES, 0, number)
        by_seed = np.stack([drawn.means(one, questions) for one in cell[name]], 1)
        found[name] = np.take_along_axis(by_seed, seeds, 1).mean(1)
    return found


def markdown(found: Sequence[Mapping], crossed: Sequence[Mapping]) -> str:
    """Every cell, then every crossing."""
    lines = []
    for cell in found:
        line = {"by": cell["demonstrations_by"]}
        line |= {f"{k} %": tables.percent(cell[f"demonstrations_{k}"]) for k in KINDS}
        line |= {"demonstrations": cell["learned"], "seeds": len(cell["seeds"])}
        line["n"] = len(cell["L1"][0])
        for panel, weights in PANELS.items():
            parts = [w * np.array(cell[name]) for name, w in weights.items()]
            own = stats.contrast(parts, samples=SAMPLES, bounds=[(-1, 1)] * len(parts))
            ends = own["effect"], own["low"], own["high"]
            line[panel] = tables.span(*ends, signed=True)
        lines.append(line)
    where = [
        {"kind": own["kind"], "demonstrations": own["learned"], "set": own["panel"]}
        | {"GRPO leads beyond, %": _beyond(own["crossing"])}
        | {"95 % interval": f"{_beyond(own['low'])} to {_beyond(own['high'])}"}
        | {"resamples that cross, %": tables.percent(own["inside"])}
        for own in crossed
    ]
    head = "GRPO − SFT in points, with 95 % intervals"
    return f"{head}\n\n{tables.markdown(lines)}\n{tables.markdown(where)}"


def _beyond(x: float) -> str:
    return tables.percent(x) if np.isfinite(x) else ("none" if x > 0 else "everywhere")


def mapped(found: Sequence[Mapping]) -> list[tuple[str, list[Mapping]]]:
    """(kind, row) of the map: of the data with the most rows of false reasoning, then
    where there is some the row that leaves out what was seen."""
    every = rows_of(found, "false")
    if not every:
        raise ValueError("no sweep varies demonstrations_false, by truth: see map.yaml")
    data = statistics.mode(folder for folder, _ in every)
    rows = [("false", row) for (folder, _), row in every.items() if folder == data]
    return rows + [("unseen", row) for row in rows_of(found, "unseen").values()]


def told(rows: Sequence[Mapping]) -> str:
    """The figure in words, from map.json."""
    said, drawn = [], mapped(cells(rows))
    for name, kind in itertools.product(SETS, dict.fromkeys(kind for kind, _ in drawn)):
        found = [cell for own, row in drawn if own == kind for cell in row]
        gaps = [means(cell)[name] for cell in found]
        ends = f"{tables.points(min(gaps))} to {tables.points(max(gaps))} points"
        above = f"above zero in {sum(gap > 0 for gap in gaps)} of {len(gaps)} cells"
        said.append(f"GRPO − SFT on {name}, {WORDS[kind]}: {ends}, {above}")
    return f"{'; '.join(said)}."


def figure(found: Sequence[Mapping], crossed: Sequence[Mapping]) -> Figure:
    """Panels L1, L3 and L3 - L1 of `mapped`: colour GRPO - SFT, a line where it is zero
    with intervals, a star for the recorded teacher, a band for the paper's."""
    kinds, rows = zip(*mapped(found), strict=True)
    x, y = [cell["x"] for cell in rows[0]], np.arange(len(rows))
    ends = {"left": -0.5, "right": len(x) - 0.5}  # of the drawing: beyond the map
    figure, axes = plt.subplots(1, 3, figsize=(plots.WIDTH + 4, 3.8), sharey=True)
    for ax, panel in zip(axes, PANELS, strict=True):
        effect = np.array([[of_panel(means(c), panel) for c in row] for row in rows])
        look = {"cmap": "PuOr", "vmin": -30, "vmax": 30, "aspect": "auto"}
        drawn = ax.imshow(100 * effect, origin="lower", **look)
        for (i, j), value in np.ndenumerate(effect):
            ink = {"color": "white" if abs(value) > 0.18 else "0.1", "fontsize": 8}
            ax.text(j, i + 0.28, tables.points(value), ha="center", va="center", **ink)
        own = [
            itemgetter("crossing", "low", "high")(line)
            for kind, row in zip(kinds, rows, strict=True)
            for line in crossed
            if (line["kind"], line["panel"]) == (kind, panel)
            and all(line[key] == row[0][key] for key in ("data_dir", "training_share"))
        ]
        lines = np.transpose(own)
        at, *bars = (np.interp(line, x, range(len(x)), **ends) for line in lines)
        ax.hlines(y, *bars, color="0.1", lw=2)
        ax.plot(np.where(np.isfinite(lines[0]), at, np.nan), y, "o", color="0.1", ms=4)
        band = np.interp([lucky(right) for right in RIGHT], x, range(len(x)))
        ax.hlines(-0.44, *band, color="0.35", lw=6)
        for cell in found:
            teacher = cell["demonstrations_by"] == "teacher" and cell["stated"]
            if teacher and cell["data_dir"] == rows[0][0]["data_dir"]:
                untrue = np.interp(1 - cell["stated"].get("right", 0), x, range(len(x)))
                last = y[kinds.count("false") - 1]
                ax.plot(untrue, last, "*", color="#D55E00", ms=12, clip_on=False)
        ax.set(title=f"GRPO − SFT, {panel}", xlabel="bad reasoning, %")
        ax.set_xticks(range(len(x)), [f"{100 * share:.0f}" for share in x])
        names = zip(kinds, rows, strict=True)
        names = [f"{row[0]['learned']:,}\n{WORDS[kind]}" for kind, row in names]
        ax.set_yticks(y, names, fontsize=7)
    axes[0].set_ylabel("training questions")
    figure.colorbar(drawn, ax=axes, label="points; above 0 GRPO leads", pad=0.02)
    figure.supxlabel(CAPTION, fontsize=7, y=-0.08)
    return figure


def write(folders: Iterable[str | Path], out: Path) -> str:
    """Write map.json (all answers), map.md and map.png; returns the tables."""
    write_tables(out / "map.json", rows := record(folders))
    crossed = crossings(found := cells(rows))
    write_text(out / "map.md", text := markdown(found, crossed))
    plots.save(figure(found, crossed), out / "map.png")
    return text
