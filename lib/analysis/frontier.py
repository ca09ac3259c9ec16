"""When does RL beat SFT? GRPO - SFT over SFT's teacher and the number of questions.

x is the share of demonstrations whose reasoning is `false`, or leaves out what was seen
(`unseen`), below a right letter (lib/mini/teacher.py); y the share of the training
questions. GRPO has no teacher: one run for each y and seed is compared with every x.

    python -m lib.analysis map outputs/map outputs/map_grpo --out FOLDER

A row crosses zero at the x beyond which GRPO leads at every larger x; between two cells
the difference is a straight line. Interval: 2.5 and 97.5 % of the crossings of
resamples of questions and seeds, with replacement, the same for all cells (pigeonhole
bootstrap, Owen 2007). It may lie beyond the map: below 0 GRPO leads everywhere, above 1
nowhere. Example: -2 points at x = 0.15 and +4 from 0.3 on cross at 0.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.analysis import plots, readme, stats
from lib.evaluate import tables
from lib.paths import resolve
from lib.records import read_json, write_json, write_text

# Of a run: what tells its cell from others, and the value where it says nothing.
PLACE = {"demonstrations_by": "teacher", "training_share": 1.0, "data_dir": ""}
PLACE |= {"demonstrations_false": 0.0, "demonstrations_unseen": 0.0}
KINDS = ("false", "unseen")
PANELS = {"L1": {"L1": 1}, "L3": {"L3": 1}, "L3 − L1": {"L3": 1, "L1": -1}}
RIGHT = (0.35, 0.60)  # share of questions: assumed of SEED-Bench-R1's teacher
SAMPLES = 2000


def lucky(right: float) -> float:
    """Of the letters that a filter keeps, the share that was guessed: by a teacher that
    is `right` on four-option questions this often, and knows or guesses evenly."""
    return (1 - right) / (3 * right)


def record(folders: Iterable[str | Path]) -> list[dict]:
    """The runs of some sweeps with their PLACE, what their demonstrations state, and
    their answers as texts of 0 and 1. ValueError for a run that is not finished."""
    rows = []
    for folder in map(resolve, folders):
        for row in readme.sweep_record(folder):
            if "metrics" not in row:
                todo = f"run {folder.name} to its end, every cell is shown"
                raise ValueError(f"{row['run']} is {row['status']}: {todo}")
            run = folder.parent / row["run"]
            given = read_json(run / "pipeline.json")["parameters"]
            taught = read_json(run / "manifest.json").get("02_sft", {})
            row |= {key: given.get(key, usual) for key, usual in PLACE.items()}
            row |= {key: taught.get(key, {}) for key in ("stated", "demonstrations")}
            rows.append(row)
    return rows


def cells(rows: Sequence[Mapping]) -> list[dict]:
    """A cell for each PLACE of SFT, `differences` {set: GRPO - SFT [seeds, n]} in it.
    ValueError where GRPO of the same data, share and seed is missing."""
    grpo, found = {}, {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        shared = row["data_dir"], row["training_share"], row["seed"]
        if "grpo" in row["metrics"]:
            grpo.setdefault(shared, row["metrics"]["grpo"])
        if "sft" in row["metrics"]:
            place = tuple(row[key] for key in PLACE)
            found.setdefault(place, []).append((shared, row))
    made = []
    for place, own in sorted(found.items()):
        parts: dict[str, list] = {"L1": [], "L3": []}
        for shared, row in own:
            if shared not in grpo:
                todo = "give the sweep that has GRPO of its data, share and seed, too"
                raise ValueError(
                    f"{row['run']} has nothing to be compared with: {todo}"
                )
            for name, part in parts.items():
                both = grpo[shared][name], row["metrics"]["sft"][name]
                texts = ([int(bit) for bit in entry["correct"]] for entry in both)
                part.append(np.subtract(*texts))
        parts = {name: np.array(part) for name, part in parts.items()}
        cell = dict(zip(PLACE, place, strict=True)) | {"differences": parts}
        cell["means"] = {name: part.mean() for name, part in parts.items()}
        cell |= {"seeds": [row["seed"] for _, row in own], "stated": row["stated"]}
        made.append(cell | {"learned": row["demonstrations"].get("sft")})
    return made


def rows_of(found: Sequence[Mapping], kind: str) -> dict[tuple, list[Mapping]]:
    """{(data, share of the questions): its cells by x} of one kind of bad reasoning."""
    rows: dict[tuple, list] = {}
    for cell in found:
        others = sum(cell[f"demonstrations_{own}"] for own in KINDS if own != kind)
        if cell["demonstrations_by"] == "truth" and not others:
            place = cell["data_dir"], cell["training_share"]
            rows.setdefault(place, []).append(
                cell | {"x": cell[f"demonstrations_{kind}"]}
            )
    by_x = {place: sorted(own, key=lambda c: c["x"]) for place, own in rows.items()}
    return {place: own for place, own in sorted(by_x.items()) if len(own) > 1}


def crossing(x: Sequence[float], effect: Sequence[float]) -> float:
    """The x beyond which `effect` stays above 0; -inf: everywhere, inf: nowhere."""
    below = np.flatnonzero(np.asarray(effect) <= 0)
    if not len(below):
        return -np.inf
    i = below[-1]
    if i == len(x) - 1:
        return np.inf
    way = -effect[i] / (effect[i + 1] - effect[i])
    return float(x[i] + (x[i + 1] - x[i]) * way)


def of_panel(values: Mapping, panel: str):
    """The panel's number from those of its sets."""
    return sum(weight * values[name] for name, weight in PANELS[panel].items())


def crossings(found: Sequence[Mapping]) -> list[dict]:
    """Of each kind, row and panel: crossing, low, high, and `inside`, the share of
    resamples that cross within the map."""
    lines, tail = [], (1 - stats.CONFIDENCE) / 2
    rows = [(kind, *own) for kind in KINDS for own in rows_of(found, kind).items()]
    for kind, (data, share), row in rows:
        x, drawn = [cell["x"] for cell in row], [_resampled(cell) for cell in row]
        for panel in PANELS:
            means = [of_panel(cell["means"], panel) for cell in row]
            each = np.array([of_panel(own, panel) for own in drawn]).T
            values = np.array([crossing(x, effect) for effect in each])
            low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
            line = {"kind": kind, "data_dir": data, "training_share": share}
            line |= {"learned": row[0]["learned"], "panel": panel}
            line |= {"crossing": crossing(x, means), "low": float(low)}
            inside = float(np.isfinite(values).mean())
            lines.append(line | {"high": float(high), "inside": inside})
    return lines


def _resampled(cell: Mapping) -> dict[str, np.ndarray]:
    """{set: the cell's mean in each resample}, from the same draws for every cell."""
    count, found = len(cell["seeds"]), {}
    seeds = np.random.default_rng(count).integers(count, size=(SAMPLES, count))
    for number, (name, own) in enumerate(cell["differences"].items()):
        questions = tuple(range(own.shape[1]))
        drawn = stats.resampling(questions, SAMPLES, 0, number)
        means = np.stack([drawn.means(one, questions) for one in own], 1)
        found[name] = np.take_along_axis(means, seeds, 1).mean(1)
    return found


def markdown(found: Sequence[Mapping], crossed: Sequence[Mapping]) -> str:
    """Every cell, then every crossing."""
    lines = []
    for cell in found:
        line = {"by": cell["demonstrations_by"]}
        line |= {f"{k} %": tables.percent(cell[f"demonstrations_{k}"]) for k in KINDS}
        line |= {"demonstrations": cell["learned"], "seeds": len(cell["seeds"])}
        line["n"] = cell["differences"]["L1"].shape[1]
        for panel, weights in PANELS.items():
            parts = [w * cell["differences"][name] for name, w in weights.items()]
            own = stats.contrast(parts, samples=SAMPLES, bounds=[(-1, 1)] * len(parts))
            ends = own["effect"], own["low"], own["high"]
            line[panel] = tables.span(*ends, signed=True)
        lines.append(line)
    where = [
        {
            "kind": row["kind"],
            "demonstrations": row["learned"],
            "set": row["panel"],
            "GRPO leads beyond, %": _beyond(row["crossing"]),
            "95 % interval": f"{_beyond(row['low'])} to {_beyond(row['high'])}",
            "resamples that cross, %": tables.percent(row["inside"]),
        }
        for row in crossed
    ]
    head = "GRPO − SFT in points, with 95 % intervals"
    return f"{head}\n\n{tables.markdown(lines)}\n{tables.markdown(where)}"


def _beyond(x: float) -> str:
    return tables.percent(x) if np.isfinite(x) else ("none" if x > 0 else "everywhere")


def figure(found: Sequence[Mapping], crossed: Sequence[Mapping]) -> Figure:
    """Panels L1, L3 and L3 - L1 of the data with the most rows of false reasoning:
    colour GRPO - SFT of every cell, a line where it crosses zero with its intervals, a
    star for the recorded teacher, a band for the paper's."""
    grid: dict[str, list] = {}
    for (data, _), row in rows_of(found, "false").items():
        grid.setdefault(data, []).append(row)
    data, rows = max(grid.items(), key=lambda own: len(own[1]))
    x, y = 100 * np.array([cell["x"] for cell in rows[0]]), np.arange(len(rows))
    edges = np.array([x[0], *(x[1:] + x[:-1]) / 2, x[-1]])
    figure, axes = plt.subplots(1, 3, figsize=(plots.WIDTH + 4, 3.4), sharey=True)
    for ax, panel in zip(axes, PANELS, strict=True):
        effect = [[of_panel(cell["means"], panel) for cell in row] for row in rows]
        look = {"cmap": "PuOr", "vmin": -20, "vmax": 20}
        heights, effect = np.arange(len(rows) + 1) - 0.5, 100 * np.array(effect)
        drawn = ax.pcolormesh(edges, heights, effect, **look)
        for (i, j), value in np.ndenumerate(effect):
            at, text = edges[j : j + 2].mean(), tables.points(value / 100)
            ink = {"color": "white" if abs(value) > 12 else "0.1", "fontsize": 6}
            ax.text(
                at, i + 0.36 - 0.18 * (j % 2), text, ha="center", va="center", **ink
            )
        where = {"kind": "false", "data_dir": data, "panel": panel}
        own = [line for line in crossed if where.items() <= line.items()]
        at, low, high = (
            [100 * line[key] for line in own] for key in ("crossing", "low", "high")
        )
        ax.hlines(y, np.clip(low, 0, 100), np.clip(high, 0, 100), color="0.1", lw=2)
        ax.plot(np.where(np.isfinite(at), at, np.nan), y, "o-", color="0.1", ms=4)
        band = [100 * lucky(right) for right in RIGHT]
        ax.axvspan(*band, fill=False, hatch="..", ec="0.6", lw=0)
        for cell in found:
            if cell["demonstrations_by"] == "teacher" and cell["stated"]:
                untrue = 100 * (1 - cell["stated"].get("right", 0))
                ax.plot(untrue, y[-1], "*", color="#D55E00", ms=12, clip_on=False)
        ax.set(title=f"GRPO − SFT, {panel}", xlabel="false reasoning, %", xlim=(0, 100))
        ax.set_yticks(y, [f"{row[0]['learned']:,}" for row in rows])
    axes[0].set_ylabel("training questions")
    figure.colorbar(drawn, ax=axes, label="points; above 0 GRPO leads", pad=0.02)
    said = "line: zero; bar: its 95 % interval; star: the recorded teacher; band: an"
    said += " assumption, SEED-Bench-R1's teacher if right on A = 35 to 60 % of the"
    said += " questions, by its lucky letters (1 − A) / 3A"
    figure.supxlabel(said, fontsize=7, y=-0.08)
    return figure


def write(folders: Iterable[str | Path], out: Path) -> str:
    """Write map.json (all answers), map.md and map.png; returns the tables."""
    rows = record(folders)
    found = cells(rows)
    crossed = crossings(found)
    write_json(out / "map.json", rows)
    write_text(out / "map.md", markdown(found, crossed))
    plots.save(figure(found, crossed), out / "map.png")
    return markdown(found, crossed)
