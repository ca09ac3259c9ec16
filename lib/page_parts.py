"""What the sections of a report share: the run's records, and marks for methods.

A run folder holds records; `Run` reads each once and knows the executed notebooks.
Methods are marked by their colour (lib/plots.py) with the name beside it, and an effect
is shown with its interval, never alone.

Example: `str(method("grpo"))` is a coloured square and "GRPO"; `absent("claims.json")`
says that 05_analysis makes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib import notebook_pages, plots, tables
from lib.markup import Html, join, prose, tag
from lib.records import read_json, read_jsonl

NOTEBOOKS = ("01_data", "02_sft", "03_grpo", "04_eval", "05_analysis")
MAKERS = {  # of a record: the notebook that writes it
    "manifest.json": "01_data",
    "train_log_sft.jsonl": "02_sft",
    "train_log_grpo.jsonl": "03_grpo",
    "metrics.json": "04_eval",
    "results.json": "05_analysis",
    "claims.json": "05_analysis",
    "perception.json": "05_analysis",
    "attention.json": "05_analysis",
    "coherence.json": "05_analysis",
}


class Run:
    """A run folder; each of its records is read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, Any] = {}
        paths = [folder / f"{name}.ipynb" for name in NOTEBOOKS]
        self.notebooks = {
            path: notebook_pages.cells(path) for path in paths if path.exists()
        }

    def __call__(self, name: str) -> Any:
        """The content of a record; None where it is missing."""
        if name not in self._read:
            path = self.folder / name
            read = read_jsonl if path.suffix == ".jsonl" else read_json
            self._read[name] = read(path) if path.exists() else None
        return self._read[name]


def main_comparisons(run: Run) -> list[dict]:
    """The rows of GRPO − SFT, a set each."""
    rows = run("results.json")["comparisons"]
    return [row for row in rows if (row["a"], row["b"]) == ("grpo", "sft")]


def seeds_of(run: Run) -> list[int]:
    """The training seeds that the stages recorded: one, unless they were mixed."""
    stages = (run("manifest.json") or {}).values()
    return sorted({stage["seed"] for stage in stages if "seed" in stage})


def absent(name: str) -> Html:
    """A sentence in the place of what a missing record would show."""
    notebook = MAKERS[name]
    said = f"`{name}` is missing from this run: `{notebook}` makes it."
    return tag("p", prose(said), class_="gap")


def method(model: str) -> Html:
    """A method's name beside its colour."""
    color = plots.COLORS.get(model, "currentColor")
    mark = tag("i", class_="mark", style=f"background:{color}", aria_hidden="true")
    return tag("span", mark, plots.LABELS.get(model, model), class_="method")


def pair(a: str, b: str) -> Html:
    """Two methods as a difference."""
    return tag("span", method(a), " − ", method(b), class_="pair")


def listed(names: Sequence[str]) -> str:
    """ "L1, L2 and L3"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def outcome(row: Mapping) -> str:
    """Which method of a pair is ahead, or that it is undecided."""
    if row["low"] > 0:
        return f"{plots.LABELS[row['a']]} ahead"
    return f"{plots.LABELS[row['b']]} ahead" if row["high"] < 0 else "undecided"


def accuracy(row: Mapping) -> Html:
    low, high = (tables.percent(row[end]) for end in ("low", "high"))
    value = tag("b", tables.percent(row["accuracy"]))
    return join([value, tag("small", f"[{low}, {high}]")])


def difference(row: Mapping) -> Html:
    text = tables.span(row["difference"], row["low"], row["high"], signed=True)
    value, interval_ = text.split(" ", 1)
    return join([tag("b", value), tag("small", interval_)])
