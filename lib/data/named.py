"""Does a teacher's reasoning name what happened? From the annotation files alone.

Demonstrations are kept where their letter is right, which says nothing of the reasoning
above it. The training file has the narrated steps of each clip. Such a step, "put down
the plate", is

    named    if one sentence of the reasoning has its verb, or one of the same group,
             and the last word of its object, in any inflection
    touched  if the object alone is there

Limits: another word for the object, a pronoun, a summary ("washed everything") is not
understood, so `named` is too low. A denial counts as named, and so does an option that
is read aloud: steps that the prompt offers are counted apart. The steps of another clip
show what is named by chance. A person has to read a sample: `write_check`.

>>> match("put down the plate", "Placing the clean plates aside, I go on.")
'named'"""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas

from lib.data.letters import THINK, folded
from lib.data.questions import Demonstration, Question

GROUPS = (
    *("take pick grab get fetch collect", "put place set lay rest"),
    *("wash rinse clean scrub", "cut chop slice dice", "dry wipe", "turn switch"),
    *("throw discard dispose", "close shut", "stir mix", "pour add"),
)
IRREGULAR = {"took": "take", "taken": "take", "got": "get", "threw": "throw"}
IRREGULAR |= {"thrown": "throw", "laid": "lay", "held": "hold"}
ENDS = {"in", "into", "on", "onto", "from", "with", "of", "off", "out", "up", "down"}
ENDS |= {"away", "to", "and", "over", "at"}
EMPTY = {"the", "a", "an", "some", "both", "continue", "still", "then"}


def stem(word: str) -> str:
    """A word without its ending: "plates", "drying" and "dries" as "plat", "dri"."""
    word = IRREGULAR.get(word, word)
    for end in ("ing", "ed", "es", "s"):
        if word.endswith(end) and len(word) > len(end) + 2 and word[-2:] != "ss":
            word = word.removesuffix(end)
            break
    word = re.sub(r"([b-df-hj-np-tv-z])\1$", r"\1", word).removesuffix("e")
    return re.sub("f$", "v", re.sub("y$", "i", word))


SAME = {stem(w): {*map(stem, own.split())} for own in GROUPS for w in own.split()}


def match(narration: str, reasoning: str) -> str:
    """ "named", "touched" or "absent": what a reasoning says of a narrated step."""
    verb, *rest = [word for word in _words(narration) if word not in EMPTY] or [""]
    while rest and rest[0] in ENDS:
        rest = rest[1:]
    end = next((i for i, word in enumerate(rest) if word in ENDS), len(rest))
    verbs, parts = SAME.get(stem(verb), {stem(verb)}), re.split(r"[.;!?\n]", reasoning)
    said = [{*map(stem, _words(part))} for part in parts]
    held = [own for own in said if not rest or stem(rest[end - 1]) in own]
    if any(verbs & own for own in held):
        return "named"
    return "touched" if rest and held else "absent"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", folded(text))


def measure(
    asked: Sequence[Question], demonstrations: Iterable[Demonstration]
) -> pandas.DataFrame:
    """A row a step of each demonstration about a clip: its number (a question may have
    several), id, `of` (its own clip, or another), offered (the prompt has the step's
    words), named, touched, step, reasoning. ValueError for one of no question, by its
    id or else by its clip and still, and where none is about a clip."""
    known = {(q.video, q.image): q for q in asked} | {q.id: q for q in asked}
    filmed, rows = [], []
    for item in demonstrations:
        question = known.get(item.id) or known.get((item.video, item.image))
        if question is None:
            raise ValueError(
                f"demonstration {item.id} belongs to no training question: give the "
                "folder whose training.jsonl the demonstrations were made from"
            )
        filmed += [(question, item)] if question.progress else []
    if not filmed:
        raise ValueError("no demonstration is about a clip: there is nothing to count")
    for number, (question, item) in enumerate(filmed):
        thought, prompt = THINK.search(item.response), folded(item.text)
        text = thought[1] if thought else ""
        clips = {"own": question, "other": filmed[number - len(filmed) // 2][0]}
        for of, step in ((of, s) for of, clip in clips.items() for s in clip.progress):
            found, offered = match(step, text), folded(step) in prompt
            row = {"number": number, "id": question.id, "of": of, "offered": offered}
            row |= {"named": found == "named", "touched": found != "absent"}
            rows.append(row | {"step": step, "reasoning": text})
    return pandas.DataFrame(rows)


def tables(rows: pandas.DataFrame) -> str:
    """Shares of the steps, and how the demonstrations lie by shares of their steps."""
    steps = rows.groupby(["of", "offered"])[["named", "touched"]].agg(["size", "mean"])
    own = rows[rows.of == "own"].groupby("number")[["named", "touched"]].mean()
    kinds = {"every step": own == 1, "half or more": own >= 0.5, "no step": own == 0}
    lying = pandas.DataFrame({kind: held.mean() for kind, held in kinds.items()}).T
    told = f"{len(own):,} demonstrations about a clip, the share of them with"
    return f"{steps.round(3).to_string()}\n\n{told}\n{lying.round(3).to_string()}"


def write_check(rows: pandas.DataFrame, count: int, path: Path) -> None:
    """A CSV of `count` demonstrations for a person, who fills its last column: does the
    reasoning name what happened, yes or no? A list that is there stays."""
    own = rows[rows.of == "own"].groupby("number")
    listed = own.agg({"id": "first", "step": "; ".join, "reasoning": "first"})
    chosen = random.Random(0).sample([*listed.index], min(count, len(listed)))
    path.parent.mkdir(parents=True, exist_ok=True)
    listed.loc[chosen].assign(person="").to_csv(path, mode="x", index=False)
