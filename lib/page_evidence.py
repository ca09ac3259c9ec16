"""The second half of a report: training, seeing, attention, reasoning, questions."""

from collections.abc import Mapping, Sequence

from lib import evidence_plots, figure_texts, perception, plots, question_plots, tables
from lib.attention import OWN, PARTS
from lib.markup import Html, body, folded, framed, join, table, tag
from lib.page_figures import figure, figures
from lib.page_parts import Run, absent, accuracy, capital, difference, method, pair

IMITATION = {"loss": "loss", "token_accuracy": "tokens right"}
REINFORCEMENT = {
    "reward": "mean reward",
    "dead_groups": "dead groups",
    "completion_length": "length, tokens",
    "truncated": "cut at the limit",
    "kl": "KL, nats a token",
}
SHARES = ("token_accuracy", "dead_groups", "truncated")


def training(run: Run) -> Html:
    """First and last numbers of every training log, and its curves."""
    note = (
        "First → last: means of the first and of the last tenth of the steps. With "
        "all groups dead (equal rewards) nothing is left to learn from; a length "
        "that runs to its limit means that the policy found something other than "
        "answers."
    )
    return join(
        [
            curves(run, "Imitation", ("sft", "sft-answers"), IMITATION),
            curves(run, "Reinforcement", ("grpo", "ppo", "care"), REINFORCEMENT),
            tag("p", note, class_="note"),
            figures(run, "training"),
            _folded("Lessons on the way: drawn by hand", figures(run, "lessons")),
        ]
    )


def curves(
    run: Run, title: str, labels: Sequence[str], logged: Mapping[str, str]
) -> Html:
    """A line a training log; the first of `labels` is said to be missing if it is."""
    logs = {label: run(f"train_log_{label}.jsonl") for label in labels}
    rows = [
        [method(label), f"{len(log):,}", *(_ends(log, key) for key in logged)]
        for label, log in logs.items()
        if log
    ]
    gap = None if logs[labels[0]] else absent(f"train_log_{labels[0]}.jsonl")
    columns = ["training", "steps", *logged.values()]
    return join([gap, table(title, columns, rows, "stack") if rows else None])


def _ends(log: Sequence[Mapping], key: str) -> str:
    values = [row[key] for row in log if row.get(key) is not None]
    if not values:
        return "–"
    some = max(1, len(values) // 10)
    ends = (sum(values[:some]) / some, sum(values[-some:]) / some)
    if key in SHARES:
        return " → ".join(f"{tables.percent(end)} %" for end in ends)
    return " → ".join(f"{end:.3g}" for end in ends)


def perceived(run: Run) -> Html:
    """Accuracy with something taken away, and how much of each gain goes with it."""
    found = run("perception.json")
    if found is None:
        return absent("perception.json")
    if not found["accuracy"]:
        return tag("p", "Nothing was taken away in this run (perception_conditions).")
    name = found["accuracy"][-1]["set"]
    rows = {
        (row["condition"], row["model"]): row
        for row in found["accuracy"]
        if (row["set"], row["group"]) == (name, perception.ALL)
    }
    models = list(dict.fromkeys(model for _, model in rows))
    lines = [
        [
            figure_texts.condition(key),
            *(_asked_again(rows[key, model]) for model in models),
        ]
        for key in (perception.SEEN, *found["conditions"])
    ]
    n = rows[perception.SEEN, models[0]]["n"]
    caption = f"Accuracy in % on {name}, {n:,} questions, and what each condition costs"
    columns = ["shown", *(method(model) for model in models)]
    note = (
        "Below each accuracy the change on the same questions in points. An interval "
        "that holds zero decides nothing."
    )
    return join(
        [
            table(caption, columns, lines, "compact"),
            tag("p", note, class_="note"),
            gains(found, name),
            figures(run, "perception"),
        ]
    )


def gains(found: Mapping, name: str) -> Html:
    """How much smaller each gain is under a condition; what shrinks was made of it."""
    rows = {
        (row["condition"], row["a"], row["b"]): row
        for row in found["gains"]
        if (row["set"], row["group"]) == (name, perception.ALL)
    }
    pairs = list(dict.fromkeys((a, b) for _, a, b in rows))
    lines = [
        [figure_texts.condition(key), *(_shrinks(rows[key, a, b]) for a, b in pairs)]
        for key in found["conditions"]
    ]
    columns = ["shown", *(pair(a, b) for a, b in pairs)]
    caption = "By how many points each gain shrinks"
    return table(caption, columns, lines, "compact")


def _asked_again(row: Mapping) -> Html:
    value = tag("b", tables.percent(row["accuracy"]))
    if "difference" not in row:
        return value
    ends = (row["difference"], row["difference_low"], row["difference_high"])
    return join([value, tag("small", tables.span(*ends, signed=True))])


def _shrinks(row: Mapping) -> Html:
    said = "undecided"
    if row["low"] > 0 or row["high"] < 0:
        said = "shrinks" if row["low"] > 0 else "grows"
    return join([difference(row), tag("small", said)])


def attended(run: Run) -> Html:
    """How much of the attention goes to the clip and the still, and who differs."""
    found = run("attention.json")
    if found is None:
        return absent("attention.json")
    means = {
        (row["model"], row["where"], row["kind"]): row["mean"]
        for row in found["masses"]
        if row["text"] == OWN
    }
    rows = [
        [
            pair(row["a"], row["b"]),
            PARTS.get(row["where"], "everything"),
            row["kind"],
            f"{row['n']:,}",
            " − ".join(
                tables.percent(means[model, row["where"], row["kind"]])
                for model in (row["a"], row["b"])
            ),
            join([difference(row), tag("small", _more(row))]),
        ]
        for row in found["differences"]
        if row["text"] == OWN
        and row["where"] in ("all layers", *PARTS)
        and row["kind"] != "text"
    ]
    columns = [
        *("comparison", "while writing", "attention on", "n"),
        *("% of attention", "difference, points"),
    ]
    everything = [row for row in rows if row[1] == "everything"]
    caption = "Share of attention while each method writes its own words, all layers"
    parts = "Share of attention by part of the completion"
    note = (
        "Attention says where a model looks, not what it makes of it. On its own words "
        "a method can differ because it says something else; the figures on the base's "
        "words show what remains when all read the same."
    )
    return join(
        [
            table(caption, columns, everything, "stack"),
            folded("By part of the completion", table(parts, columns, rows, "stack")),
            tag("p", note, class_="note"),
            figures(run, "attention"),
        ]
    )


def _more(row: Mapping) -> str:
    if row["low"] > 0:
        return f"{plots.LABELS[row['a']]} more"
    return f"{plots.LABELS[row['b']]} more" if row["high"] < 0 else "undecided"


def coherent(run: Run) -> Html:
    """Shares of answers whose reasoning supports them, by method and set."""
    found = run("coherence.json")
    if found is None:
        return absent("coherence.json")
    shares = {(r["measure"], r["set"], r["model"]): r for r in found["shares"]}
    gaps = {
        (r["measure"], r["set"]): r
        for r in found["differences"]
        if (r["a"], r["b"]) == ("grpo", "sft")
    }
    models = list(dict.fromkeys(model for _, _, model in shares))
    columns = ["set", *(method(model) for model in models), pair("grpo", "sft")]
    bodies = []
    for measure in dict.fromkeys(measure for measure, _ in gaps):
        lines = [
            [
                f"{name}, n = {row['n']:,}",
                *(_share(shares.get((measure, name, model))) for model in models),
                join([difference(row), tag("small", _more(row))]),
            ]
            for (own, name), row in gaps.items()
            if own == measure
        ]
        title = capital(evidence_plots.COHERENCE[measure].replace("\n", " "))
        bodies.append(body(columns, lines, title))
    note = (
        "Per cent of the answers, the difference in points, with 95 % intervals. A "
        "reader without pictures who must choose a letter agrees by chance in one case "
        "of four."
    )
    caption = "Measures of reasoning, by set"
    whole = framed(caption, columns, bodies, "compact")
    return join(
        [
            folded("All measures in numbers", whole, tag("p", note, class_="note")),
            figures(run, "coherence"),
        ]
    )


def _share(row: Mapping | None) -> Html:
    if row is None:
        return Html("–")
    return accuracy({"accuracy": row["share"], "low": row["low"], "high": row["high"]})


def questions(run: Run) -> Html:
    """Questions chosen by rule: what was seen, and what each method said."""
    try:
        predictions = tables.read_predictions(run.folder)
    except FileNotFoundError as error:
        return tag("p", f"No question can be shown: {error}.")
    # Those without a video are known to 05_analysis alone: they come last there.
    picks = tables.gallery(predictions, set())
    shown = [
        tag("article", *question(run, number, pick, tables.answers(predictions, pick)))
        for number, pick in enumerate(picks)
    ]
    rest = [
        path
        for path in sorted((run.folder / "figures").glob("question_*.png"))
        if path.stem not in {f"question_{number}" for number in range(len(picks))}
    ]
    for path in rest:
        said = figure_texts.describe(path.name, run)
        title = "Without a video, methods disagree"
        shown.append(tag("article", tag("h3", title), figure(run, path, said)))
    rule = (
        "Chosen by rule, the first question by id of each kind. Read the reasoning "
        "against the frames: a right letter can stand below reasoning that does not "
        "lead to it."
    )
    shown.append(_folded("What the questions look like", figures(run, "examples")))
    return join([tag("p", rule), *shown])


def question(run: Run, number: int, pick: Mapping, rows: Mapping) -> list[Html]:
    """One question: title, figure, options, and every method's answer."""
    title = tag("h3", f"{capital(pick['kind'])}: {pick['id']}")
    first = next(iter(rows.values()))
    options = [
        tag(
            "li",
            f"{letter}. {option}",
            tag("b", " (right)") if letter == first["gold"] else None,
        )
        for letter, option in zip("ABCDE", first["options"], strict=False)
    ]
    said = [line for model, row in rows.items() for line in _said(model, row)]
    path = run.folder / "figures" / f"question_{number}.png"
    drawn = []
    if path.exists():
        known = figure_texts.describe(path.name, run)
        letters = "; ".join(
            f"{plots.LABELS[m]} {_mark(row)}" for m, row in rows.items()
        )
        alt = f"Question {pick['id']}. {known.alt} Right is {first['gold']}. {letters}."
        drawn = [figure(run, path, known._replace(alt=alt))]
    return [title, *drawn, tag("ul", *options, class_="options"), tag("dl", *said)]


def _said(model: str, row: Mapping) -> list[Html]:
    """A method's letter, and its completion as it wrote it."""
    text = row["completion"] or "(empty)"
    words: Html = tag("span", text, class_="completion")
    if len(text) > question_plots.LONGEST_ANSWER:
        words = folded(f"{text[: question_plots.LONGEST_ANSWER]} […]", words)
    return [tag("dt", method(model), f": {_mark(row)}"), tag("dd", words)]


def _mark(row: Mapping) -> str:
    outcome_ = "right" if row["correct"] else "wrong"
    return f"{row['first_letter'] or 'no answer'} ({outcome_})"


def _folded(title: str, drawn: Html) -> Html | None:
    return folded(title, drawn) if drawn else None
