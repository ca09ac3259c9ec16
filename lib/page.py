"""The report of a run: one file that reads on a phone, on paper, by day and by night.

    python -m lib.page outputs/mini

writes outputs/mini/report.html from the records of the run folder alone: no model, no
network, no script. Pictures and styles stand in the file. Each executed notebook
becomes a page beside it (lib/notebook_pages.py), and each figure says in which of their
sections it was made. A record that is not there is named with the notebook that makes
it; only without results.json is there nothing to say.

Words are no stronger than the intervals: "ahead" and "behind" stand only where a 95 %
interval excludes zero (lib/report.py), and nothing is told by colour alone.

Example: with GRPO − SFT on L1 at +3.0 points (+0.4 to +5.6) and on L2 at +1.0 (−2.0 to
+4.0), the page opens with "GRPO is ahead of SFT on L1; L2 is undecided."
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import (
    chain,
    claims,
    figure_texts,
    notebook_pages,
    page_evidence,
    page_results,
    plots,
    report,
)
from lib.attention import OWN
from lib.markup import Html, bullets, folded, join, prose, table, tag
from lib.page_figures import figures
from lib.page_parts import (
    MAKERS,
    NOTEBOOKS,
    Run,
    absent,
    listed,
    main_comparisons,
    seeds_of,
)
from lib.paths import require, resolve
from lib.records import write_text

QUESTION = "Does reinforcement learning beat supervised fine-tuning?"
CALLED = {"general": "the general set"}
STYLE = Path(__file__).with_name("page.css")


def write(run: str | Path, anew: bool = False) -> Path:
    """Write run/report.html, and a page beside every executed notebook; its path.

    A page of a notebook that has not changed stays, unless all are wanted `anew`: the
    last cell of 05_analysis and the pipeline behind it both come here.
    FileNotFoundError without results.json, ValueError where a record is damaged or not
    as it was left.
    """
    folder = require(run, "run the notebooks first: python -m lib.pipeline")
    require(folder / "results.json", "run 05_analysis first")
    chain.verify(folder)
    records = Run(folder)
    for notebook in records.notebooks:
        if anew or not notebook_pages.is_fresh(notebook):
            notebook_pages.convert(notebook)
    path = folder / "report.html"
    write_text(path, document(records))
    return path


def document(run: Run) -> str:
    """The whole page."""
    parts = [
        ("answer", "The answer", page_results.answer(run)),
        ("results", "Results, with the paper's beside them", page_results.results(run)),
        ("claims", "The paper's claims", page_results.claimed(run)),
        ("figures", "Figures", figures(run, "figures")),
        ("training", "Training", page_evidence.training(run)),
        ("perception", "Is it seeing that improved?", page_evidence.perceived(run)),
        ("attention", "Where do they look?", page_evidence.attended(run)),
        (
            "coherence",
            "Does the reasoning support the answer?",
            page_evidence.coherent(run),
        ),
        ("questions", "A few questions", page_evidence.questions(run)),
        ("run", "What was run", what_was_run(run)),
        ("missing", "What failed, what is missing", missing(run)),
        ("notebooks", "The notebooks", notebooks(run)),
    ]
    contents = [
        tag("li", tag("a", title, href=f"#{name}")) for name, title, part in parts
    ]
    sections = [
        tag("section", tag("h2", title, id=name), part, aria_labelledby=name)
        for name, title, part in parts
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{run.folder.name}: {QUESTION}"),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    ]
    menu = tag(
        "nav", tag("h2", "Contents"), tag("ol", *contents), aria_label="Contents"
    )
    skip = tag("a", "Skip to the answer", href="#answer", class_="skip")
    top = tag("header", kicker(run), tag("h1", QUESTION), lead(run))
    main = tag("main", *sections)
    # A number and its % stay on one line.
    whole = Html(join([skip, top, menu, main]).replace(" %", "\u00a0%"))
    html = tag("html", tag("head", *head), tag("body", whole), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


# --- the answer -----------------------------------------------------------------------


def kicker(run: Run) -> Html:
    """Above the title: what this is a report of."""
    about = f"Run {run.folder.name} · SFT against GRPO for questions about video"
    return tag("p", about, class_="kicker")


def lead(run: Run) -> Html:
    """The answer in one sentence, and what it is an answer about."""
    rows = main_comparisons(run)
    seeds = seeds_of(run)
    with_seed = f" with training seed {', '.join(map(str, seeds))}" if seeds else ""
    data = run("results.json").get("data_dir", "unknown")
    about = (
        f"One run{with_seed}, on the questions of `{data}`. Its intervals say how the "
        "numbers might differ for other questions, not for other training seeds."
    )
    return join(
        [tag("p", summary(rows), class_="lead"), tag("p", prose(about), class_="about")]
    )


def summary(rows: Sequence[Mapping]) -> str:
    """Who is ahead on which sets, in one sentence; see the module's docstring."""
    named = {row["set"]: CALLED.get(row["set"], row["set"]) for row in rows}
    ahead = [named[row["set"]] for row in rows if row["low"] > 0]
    behind = [named[row["set"]] for row in rows if row["high"] < 0]
    open_ = [named[row["set"]] for row in rows if row["low"] <= 0 <= row["high"]]
    if not rows:
        return "This run compares no GRPO with SFT."
    if not ahead and not behind:
        return f"Undecided: GRPO and SFT cannot be told apart on {listed(open_)}."
    said = [
        f"{first} is ahead of {second} on {listed(sets)}"
        for first, second, sets in (("GRPO", "SFT", ahead), ("SFT", "GRPO", behind))
        if sets
    ]
    verb = "is" if len(open_) == 1 else "are"
    said += [f"{listed(open_)} {verb} undecided"] if open_ else []
    return "; ".join(said) + "."


# --- what was run ---------------------------------------------------------------------


def what_was_run(run: Run) -> Html:
    """Stages with their data, model and cost; code, packages and machine."""
    manifest = run("manifest.json")
    if manifest is None:
        return absent("manifest.json")
    seconds = {
        name: row.get("seconds")
        for name, row in ((run("pipeline.json") or {}).get("notebooks", {})).items()
    }
    columns = [
        *("notebook", "questions", "model", "seconds, work", "seconds, whole"),
        "peak memory, GiB",
    ]
    rows = [
        [
            name,
            _counts(facts.get("questions")),
            facts.get("model", "–"),
            _number(facts.get("seconds")),
            _number(seconds.pop(name, None)),
            _number(facts.get("peak_memory_gib")),
        ]
        for name, facts in manifest.items()
    ]
    rows += [
        [name, "–", "–", "–", _number(took), "–"] for name, took in seconds.items()
    ]
    whole = json.dumps(manifest, indent=2, ensure_ascii=False)
    return join(
        [
            table("The stages of this run", columns, rows, "stack"),
            tag("h3", "Code, packages, machine"),
            environment(manifest),
            tag(
                "div",
                folded("The whole manifest", tag("pre", whole)),
                class_="manifest",
            ),
        ]
    )


def environment(manifest: Mapping) -> Html:
    """Where the stages ran: a line a fact, with its stages where they differ."""
    facts = {stage: _environment(own) for stage, own in manifest.items()}
    lines: list[Html] = []
    for name in dict.fromkeys(name for own in facts.values() for name in own):
        values: dict[str, list[str]] = {}
        for stage, own in facts.items():
            values.setdefault(own.get(name, "not recorded"), []).append(stage)
        said = [
            value if len(values) == 1 else f"{value} ({listed(stages)})"
            for value, stages in values.items()
        ]
        lines += [tag("dt", name), *(tag("dd", value) for value in said)]
    return tag("dl", *lines, class_="facts")


def _environment(facts: Mapping) -> dict[str, str]:
    known = facts.get("environment") or {}
    packages = known.get("packages", {})
    found = {
        "commit": known.get("git_commit"),
        "Python": known.get("python"),
        "machine": known.get("platform"),
        "CPU cores": known.get("cpu_count"),
        "GPU": known.get("gpu") or "none",
        "packages": ", ".join(f"{name} {own}" for name, own in packages.items()),
    }
    return {name: str(value or "not recorded") for name, value in found.items()}


def _counts(questions_: object) -> str:
    if isinstance(questions_, Mapping):
        return ", ".join(f"{name} {n:,}" for name, n in questions_.items())
    return f"{questions_:,}" if isinstance(questions_, int) else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


# --- what failed or is missing --------------------------------------------------------


def missing(run: Run) -> Html:
    """What a reader has to know that went wrong or was not done."""
    found = run("results.json")
    said = report.findings(found["accuracy"], found["comparisons"])
    failures = said[len(main_comparisons(run)) :]
    return bullets(
        prose(line + ".")
        for line in [
            *(f"`{n}` is missing: `{MAKERS[n]}` makes it" for n in _unread(run)),
            *_unfinished(run),
            *failures,
            *_failed_videos(found["accuracy"]),
            *_not_asked(run),
            *_not_measured(run),
            *_odd_data(run),
            "One training seed: another could come out otherwise"
            if len(seeds_of(run)) < 2
            else "The stages were trained with different seeds",
        ]
    )


def _unread(run: Run) -> list[str]:
    return [name for name in MAKERS if run(name) is None]


def _unfinished(run: Run) -> list[str]:
    there = {path.stem for path in run.notebooks}
    return [
        f"`{name}` had not finished when this page was written"
        for name in NOTEBOOKS
        if name not in there
    ]


def _failed_videos(rows: Sequence[Mapping]) -> list[str]:
    return [
        f"{plots.LABELS.get(row['model'], row['model'])} on {row['set']}: "
        f"{row['failed_videos']:,} of {row['n']:,} videos could not be read; their "
        "questions count as wrong"
        for row in rows
        if row["failed_videos"]
    ]


def _not_asked(run: Run) -> list[str]:
    """Conditions and questions that perception and attention had to leave out."""
    left_out = (run("perception.json") or {}).get("left_out", {})
    said = [
        f"Not asked, {figure_texts.condition(name)}: {why}"
        for name, why in left_out.items()
    ]
    for text in (run("attention.json") or {}).get("texts", []):
        if text["left_out"]:
            whose = "its own" if text["text"] == OWN else plots.LABELS[text["text"]]
            said.append(
                f"Attention on {whose} words: {text['left_out']:,} of "
                f"{text['asked']:,} questions were left out"
            )
    return said


def _not_measured(run: Run) -> list[str]:
    rows = [r for r in run("claims.json") or [] if r["verdict"] == claims.MISSING]
    if not rows:
        return []
    numbers = listed([str(row["number"]) for row in rows])
    return [
        f"{len(rows)} of the claims are not measured by this run ({numbers}); each "
        "says above which records and which command it needs"
    ]


def _odd_data(run: Run) -> list[str]:
    manifest = run("manifest.json") or {}
    said = [
        f"`{name}` holds {count:,} faults that `01_data` lists"
        for name, count in manifest.get("01_data", {}).get("faults", {}).items()
        if count
    ]
    dirty = [
        stage
        for stage, facts in manifest.items()
        if (facts.get("environment") or {}).get("git_dirty")
    ]
    if dirty:
        said.append(
            f"The code of {listed(dirty)} had changes that are not in the commit "
            "named above"
        )
    return said


# --- notebooks ------------------------------------------------------------------------


def notebooks(run: Run) -> Html:
    """Links to every section of the executed notebooks, beside this file."""
    lists = [
        tag(
            "div", tag("h3", _link(path.stem, *first)), bullets(map(_entry(path), rest))
        )
        for path, cells in run.notebooks.items()
        for first, rest in [_headings(path, cells)]
    ]
    note = (
        "Executed, with every number and figure where it was computed. The links work "
        "while this file lies in its run's folder."
    )
    return join([tag("p", note), tag("div", *lists, class_="notebooks")])


def _headings(
    path: Path, cells: Sequence[notebook_pages.Cell]
) -> tuple[tuple[str, str], list[notebook_pages.Section]]:
    found = notebook_pages.sections(cells)
    if found and found[0].level == 1:
        return (found[0].title, found[0].anchor), found[1:]
    return (path.stem, ""), found


def _entry(path: Path):
    return lambda section: _link(path.stem, section.title, section.anchor)


def _link(stem: str, title: str, anchor: str) -> Html:
    return tag("a", title, href=f"{stem}.html" + (f"#{anchor}" if anchor else ""))


def main(arguments: list[str] | None = None) -> None:
    """The command line: write the report of a run folder, say where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.page", description=main.__doc__
    )
    parser.add_argument("run", type=Path, help="a run folder, such as outputs/mini")
    print(write(resolve(parser.parse_args(arguments).run), anew=True))


if __name__ == "__main__":
    main()
