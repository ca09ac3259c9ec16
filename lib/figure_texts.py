"""What every figure of a run shows, in words: a caption, and a text in its place.

The text in its place (HTML's `alt`) is for whoever does not see the figure: how it is
drawn, and then its numbers, read from the records that the figure was drawn from. Where
a record is missing the numbers are left out.

Example: for "accuracy.png" `describe` gives the section "figures", a caption, and
"Bars with 95 % intervals ... L1: base 35.6 %, SFT 80.2 %, GRPO 79.5 %; L2: ...".
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lib import evidence_plots, plots, question_plots, tables

Read = Callable[[str], Any]  # a record's content by its file name; None: missing


class Figure(NamedTuple):
    """Where a figure belongs in the page, its caption, and the text in its place."""

    section: str
    caption: str
    alt: str


class Kind(NamedTuple):
    """Figures whose name matches a pattern, and what is said of them."""

    pattern: str
    section: str
    caption: str
    drawn: str
    numbers: Callable[[Read, re.Match], str] = lambda read, found: ""


def describe(name: str, read: Read) -> Figure | None:
    """The words for figures/<name>; None for a figure that is not known here.

    `read` gives the content of a record of the run, None where it is missing.
    """
    for kind in KINDS:
        found = re.fullmatch(kind.pattern + r"\.png", name)
        if found:
            words = {key: _called(key, word) for key, word in found.groupdict().items()}
            numbers = kind.numbers(read, found)
            alt = f"{kind.drawn.format(**words)} {numbers}".strip()
            return Figure(kind.section, kind.caption.format(**words), alt)
    return None


def order(name: str) -> tuple[int, str]:
    """Sorts figures as KINDS has them, unknown ones last."""
    for place, kind in enumerate(KINDS):
        if re.fullmatch(kind.pattern + r"\.png", name):
            return place, name
    return len(KINDS), name


def _called(key: str, word: str) -> str:
    """A part of a file's name as people read it: grpo is GRPO, own is its own."""
    if key == "text":
        named = plots.LABELS.get(word, word)
        return {"own": "its own", "base": "the base's"}.get(word, f"{named}'s")
    return plots.LABELS.get(word, word) if key == "label" else word


# --- numbers --------------------------------------------------------------------------


def _by_set(rows: Iterable[Mapping], value: Callable, group: str = "set") -> str:
    """ "L1: base 35.6 %, SFT 80.2 %; L2: ...": a sentence of rows with a model."""
    groups: dict = {}
    for row in rows:
        said = f"{plots.LABELS.get(row['model'], row['model'])} {value(row)}"
        groups.setdefault(row[group], []).append(said)
    return _sentence(f"{name}: {', '.join(said)}" for name, said in groups.items())


def _sentence(parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return f"{text}." if text else ""


def _percent(key: str) -> Callable:
    return lambda row: f"{tables.percent(row[key])} %"


def _accuracy(read: Read, found: re.Match) -> str:
    rows = (read("results.json") or {}).get("accuracy", [])
    rows = [row for row in rows if row["model"] in tables.METHODS]
    return _by_set(rows, _percent("accuracy"))


def _direct(read: Read, found: re.Match) -> str:
    rows = (read("results.json") or {}).get("accuracy", [])
    rows = [row for row in rows if row["model"] in ("base", "base-direct")]
    return _by_set(rows, _percent("accuracy"))


def _grouped(key: str, field: str) -> Callable[[Read, re.Match], str]:
    def numbers(read: Read, found: re.Match) -> str:
        rows = (read("results.json") or {}).get(key, [])
        return _by_set(rows, _percent("accuracy"), field)

    return numbers


def _differences(read: Read, found: re.Match) -> str:
    rows = (read("results.json") or {}).get("comparisons", [])
    return _sentence(
        f"{plots.LABELS[row['a']]} − {plots.LABELS[row['b']]} on {row['set']} "
        + tables.span(row["difference"], row["low"], row["high"], signed=True)
        for row in rows
    )


def _claims(read: Read, found: re.Match) -> str:
    counts = Counter(row["verdict"] for row in read("claims.json") or [])
    return _sentence([f"{count} {verdict}" for verdict, count in counts.items()])


def _curve(key: str, name: str, form: str = "{:.2f}") -> Callable:
    """ "name from 0.36 to 0.81": means of the first and the last tenth of the steps."""

    def said(log: Sequence[Mapping]) -> str:
        values = [row[key] for row in log if row.get(key) is not None]
        if not values:
            return ""
        some = max(1, len(values) // 10)
        first, last = sum(values[:some]) / some, sum(values[-some:]) / some
        return f"{name} from {form.format(first)} to {form.format(last)}"

    return said


def _training(*curves: Callable) -> Callable[[Read, re.Match], str]:
    def numbers(read: Read, found: re.Match) -> str:
        log = read(f"train_log_{found['label']}.jsonl") or []
        said = [text for text in (curve(log) for curve in curves) if text]
        if not said:
            return ""
        steps = f"Over {len(log)} steps, mean of the first and of the last tenth"
        return f"{steps}: {'; '.join(said)}."

    return numbers


def _rewards(read: Read, found: re.Match) -> str:
    log = read(f"train_log_{found['label']}.jsonl") or []
    keys = sorted({key for row in log for key in row if key.startswith("reward_")})
    parts = [key for key in keys if key not in ("reward_std", "reward_stage")]
    curves = [_curve(key, key.removeprefix("reward_")) for key in parts]
    return _training(*curves)(read, found)


def _rollouts(read: Read, found: re.Match) -> str:
    said = []
    for label in ("grpo", "ppo", "care"):
        log = read(f"train_log_{label}.jsonl") or []
        said.append(_curve("reward_accuracy", plots.LABELS[label])(log))
    said = [text for text in said if text]
    return f"Mean of the first and of the last tenth: {_sentence(said)}" if said else ""


def _perception(read: Read, found: re.Match) -> str:
    rows = (read("perception.json") or {}).get("accuracy", [])
    widest = rows[-1]["set"] if rows else ""
    rows = [row for row in rows if (row["set"], row["group"]) == (widest, "all")]
    rows = [dict(row, shown=condition(row["condition"])) for row in rows]
    return _by_set(rows, _percent("accuracy"), "shown")


def condition(name: str) -> str:
    label = question_plots.CONDITIONS.get(name, name.replace("_", " "))
    return label.replace("\n", " ")


def _attention(read: Read, found: re.Match) -> str:
    rows = [
        row
        for row in (read("attention.json") or {}).get("masses", [])
        if (row["text"], row["where"]) == (found["text"], "all layers")
    ]
    rows = [row for row in rows if row["kind"] in ("video", "still")]
    said = _by_set(rows, _percent("mean"), "kind")
    return f"Mean over all layers: {said}" if said else ""


def _coherence(read: Read, found: re.Match) -> str:
    rows = (read("coherence.json") or {}).get("shares", [])
    rows = [
        dict(row, shown=f"{_measured(row['measure'])}, {row['set']}")
        for row in rows
        if row["measure"] in ("consistent", "follows", "progress", "base_reader")
    ]
    return _by_set(rows, _percent("share"), "shown")


def _measured(measure: str) -> str:
    """What a measure of coherence is called above its panel, in one line."""
    return evidence_plots.COHERENCE[measure].replace("\n", " ")


def _supported(read: Read, found: re.Match) -> str:
    rows = (read("coherence.json") or {}).get("answers", [])
    rows = [row for row in rows if row["set"] != "general"]
    cells: dict = {}
    for row in rows:
        own = cells.setdefault((row["measure"], row["model"]), Counter())
        own.update(right=row["right_unsupported"], n=row["n"])
    said = [
        {
            "model": model,
            "measure": _measured(measure),
            "share": own["right"] / own["n"],
        }
        for (measure, model), own in cells.items()
        if own["n"]
    ]
    text = _by_set(said, _percent("share"), "measure")
    return f"Right letters without support, of all answers: {text}" if text else ""


# --- every figure ---------------------------------------------------------------------

KINDS = (
    Kind(
        "accuracy",
        "figures",
        "Accuracy of each method on each set. The black diamonds are the paper's "
        "Qwen2-VL-7B on its own questions: compare the pattern, not the heights.",
        "Bars of accuracy by set and method with 95 % intervals; a dashed line marks "
        "chance, black diamonds the paper's numbers.",
        _accuracy,
    ),
    Kind(
        "differences",
        "figures",
        "Paired differences on the same questions. A ring is an interval that holds "
        "zero: undecided. Black diamonds: the paper's, unpaired.",
        "Points with 95 % intervals around a line at zero, one a comparison and set, "
        "in points:",
        _differences,
    ),
    Kind(
        "domains",
        "figures",
        "Accuracy by domain on L3. The groups are small: read the intervals first.",
        "Bars of accuracy on L3 by domain and method with 95 % intervals.",
        _grouped("domains", "domain"),
    ),
    Kind(
        "durations",
        "figures",
        "Accuracy on the general set by the length of the video.",
        "Bars of accuracy on the general set by video length in seconds and method, "
        "with 95 % intervals.",
        _grouped("durations", "duration_group"),
    ),
    Kind(
        "direct",
        "figures",
        "The untrained base, asked to reason first or for a letter alone: was the "
        "baseline held down by its prompt?",
        "Bars of the base model's accuracy by set under the two prompts, with 95 % "
        "intervals.",
        _direct,
    ),
    Kind(
        "power",
        "figures",
        "What a level of this size can show: the chance to find a true gap, by its "
        "size.",
        "Curves of the chance to find a true gap against its size in points, a curve "
        "a number of questions.",
    ),
    Kind(
        "seeds",
        "figures",
        "Accuracy of every training seed with the mean over seeds.",
        "A dot for the accuracy of every training seed, by set and method; a square "
        "with a 95 % interval marks the mean.",
    ),
    Kind(
        "claims",
        "claims",
        "Every part of every claim: published above, measured here below. Right of "
        "zero is as claimed; a ring is an interval that decides nothing.",
        "A line for every part of a claim with the published effect and the one "
        "measured here, both with 95 % intervals around zero. Of the claims:",
        _claims,
    ),
    Kind(
        "behind",
        "claims",
        "One of the questions behind a claim.",
        "The frames, the still, the options and the answers of one question that "
        "moves the effect of a claim.",
    ),
    Kind(
        "(?P<label>sft(-answers)?)",
        "training",
        "{label}: the loss on the response tokens. It should fall, then flatten.",
        "{label}: a falling or flat curve of the loss by optimizer step.",
        _training(
            _curve("loss", "loss"), _curve("token_accuracy", "share of tokens right")
        ),
    ),
    Kind(
        "(?P<label>grpo|ppo|care)",
        "training",
        "{label}: reward, groups without any difference, length, answers cut off, "
        "distance to the reference, entropy. The reward should rise, and the length "
        "stay away from its limit.",
        "{label}: six curves by optimizer step.",
        _training(
            _curve("reward", "mean reward"),
            _curve("dead_groups", "share of groups without any difference"),
            _curve("completion_length", "length in tokens", "{:.1f}"),
            _curve("truncated", "share cut off"),
            _curve("kl", "KL to the reference in nats a token", "{:.3f}"),
            _curve("entropy", "entropy in nats a token", "{:.3f}"),
        ),
    ),
    Kind(
        "rewards_(?P<label>grpo|ppo|care)",
        "training",
        "{label}: what the reward was made of.",
        "{label}: a curve of each part of the reward by optimizer step.",
        _rewards,
    ),
    Kind(
        "rollout_accuracy",
        "training",
        "The share of right rollouts: what rewards of different methods cannot show. "
        "Training questions, at temperature 1; it says nothing about new questions.",
        "A curve of the share of right rollouts by optimizer step, a line a method.",
        _rollouts,
    ),
    Kind(
        "sft_schedule",
        "lessons",
        "The learning rate of SFT: it rises linearly, then falls along half a cosine.",
        "A curve of the learning rate by optimizer step: a linear rise, then half a "
        "cosine down to zero.",
    ),
    Kind(
        "token_losses",
        "lessons",
        "One demonstration token by token: what the base would not have written.",
        "A bar for each token of a demonstration, as high as the loss the untrained "
        "base has on it.",
    ),
    Kind(
        "reward_with_a_hole",
        "lessons",
        "A small policy trained on a rule with a hole, and on one without.",
        "Two panels of curves, one a reward rule: the share of each way to answer by "
        "step. Under the rule with the hole the listing of all letters takes over.",
    ),
    Kind(
        "attention_mask",
        "lessons",
        "Who sees whom in a row that holds a prompt once and three answers.",
        "A grid of tokens by tokens: every answer sees the prompt and its own earlier "
        "tokens, and no other answer.",
    ),
    Kind(
        "kl",
        "lessons",
        "Estimates of the distance between two toy policies as samples are added.",
        "Curves of running means of several estimators of the KL divergence by number "
        "of samples, with the exact value as a line.",
    ),
    Kind(
        "encoded_tokens",
        "lessons",
        "One group of rollouts as the update reads it: the prompt with each answer, "
        "or once before all of them.",
        "Bars to scale of what the language model encodes for one group: above, the "
        "video, image and text of the prompt repeated for every answer; below, the "
        "prompt once and the answers behind it.",
    ),
    Kind(
        "perception",
        "perception",
        "Accuracy with something taken away. The dotted line, where there is one, is "
        "an ideal reader without the video.",
        "Bars of accuracy by what is shown and method, with 95 % intervals.",
        _perception,
    ),
    Kind(
        "conditions",
        "perception",
        "One question as it is shown under each condition.",
        "A row of frames and a still for each condition: what is left to see when "
        "something is taken away.",
    ),
    Kind(
        "attention_layers_(?P<text>.+)",
        "attention",
        "Share of attention on video and still by layer, on {text} words. Dotted: "
        "if everything visible got the same.",
        "Two panels, video and still: the share of all attention by layer, a line a "
        "method, while it reads {text} words.",
        _attention,
    ),
    Kind(
        "attention_tokens_(?P<text>.+)",
        "attention",
        "The same over the words of a completion, on {text} words.",
        "Two panels, video and still: the share of all attention by generated token, "
        "a line a method, while it reads {text} words.",
        _attention,
    ),
    Kind(
        "attention_frames",
        "attention",
        "One question, chosen by rule. The brighter a patch, the more attention it "
        "got while the method answered.",
        "The frames and the still of one question as they are, and once more for each "
        "method, bright where it attends; below each frame its share of the attention.",
    ),
    Kind(
        "coherence",
        "coherence",
        "Does the reasoning support the answer? A panel a measure; dotted: a reader "
        "with the reasoning of another question.",
        "A panel a measure, points with 95 % intervals by set and method.",
        _coherence,
    ),
    Kind(
        "supported",
        "coherence",
        "Right or wrong answer by reasoning that supports it or not, levels together. "
        "In orange: right letters below reasoning that does not lead to them.",
        "A square of four cells a method and measure: answer right or wrong, "
        "supported or not.",
        _supported,
    ),
    Kind(
        r"question_(?P<number>\d+)",
        "questions",
        "What the methods saw and what they answered.",
        "The frames of the video in order, the still, the question with its options, "
        "and the answer of each method.",
    ),
    Kind(
        "example_(?P<set>.+)",
        "examples",
        "A question of {set} as the models see it.",
        "The frames of a video in order, a still image, and a question of {set} with "
        "its options, the right one marked.",
    ),
    Kind(
        "needs_video",
        "examples",
        "A question that its still leaves open: only the video tells.",
        "The frames of a video in order, the still in which a hand covers what was "
        "worked on, and the question with its options.",
    ),
    Kind(
        "under_the_hand",
        "examples",
        "The still that the models get, and the same scene without the hand.",
        "Two pictures of one scene, with a hand over the object worked on and without.",
    ),
)
