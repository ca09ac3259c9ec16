"""Does a teacher's reasoning name what happened? From the annotation files alone.

Demonstrations are kept where their letter is right, which says nothing of the reasoning
above it. The training file has the narrated steps of each clip; here the two are held
side by side. A narrated step, "put down the plate", is

    named    if one sentence of the reasoning has its verb, or one of the same group,
             and the last word of its object, in any inflection
    touched  if the object alone is there

Limits: another word for the object, a pronoun or a summary ("washed everything") is not
understood, so `named` is too low. A denial ("the plate was not put down") counts as
named, and so does a step that is only an option read aloud: steps that the prompt
offers are counted apart. The steps of another clip show what is named by chance. A
person has to read a sample: `write_check` makes the list.

>>> match("put down the plate", "Placing the clean plates aside, I go on.")
'named'
"""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas

from lib.data import questions
from lib.data.letters import THINK, folded
from lib.data.questions import Demonstration, Question

GROUPS = (
    *("take pick grab get fetch collect", "put place set lay rest"),
    *("wash rinse clean scrub", "cut chop slice dice", "dry wipe", "turn switch"),
    *("throw discard dispose", "close shut", "stir mix", "pour add"),
)
IRREGULAR = {"took": "take", "taken": "take", "got": "get", "threw": "throw"}
IRREGULAR |= {"thrown": "throw", "laid": "lay", "chose": "choose", "held": "hold"}
ENDS = {"in", "into", "on", "onto", "from", "with", "of", "off", "out", "up", "down"}
ENDS |= {"away", "to", "and", "over", "at"}
SKIPPED = {*ENDS, "the", "a", "an", "some", "both"}
AGAIN = {"continue", "still", "then"}


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
    verb, *rest = [w for w in _words(narration) if w not in AGAIN] or [""]
    while rest and rest[0] in SKIPPED:
        rest = rest[1:]
    end = next((i for i, word in enumerate(rest) if word in ENDS), len(rest))
    verbs, touched = SAME.get(stem(verb), {stem(verb)}), False
    for sentence in re.split(r"[.;!?\n]", reasoning):
        said = {*map(stem, _words(sentence))}
        if not rest or stem(rest[end - 1]) in said:
            touched = touched or bool(rest)
            if verbs & said:
                return "named"
    return "touched" if touched else "absent"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", folded(text))


def measure(
    asked: Sequence[Question], demonstrations: Iterable[Demonstration]
) -> pandas.DataFrame:
    """A row a step: id of the demonstration, `of` (its own clip, or another), step,
    offered (the prompt has its words), said (`match`), reasoning.

    Demonstrations about a still alone have no steps. ValueError where one belongs to no
    question, by its id or else by its clip and still.
    """
    by_id = {q.id: q for q in asked}
    by_media = {(q.video, q.image): q for q in asked}
    filmed = []
    for item in demonstrations:
        question = by_id.get(item.id, by_media.get((item.video, item.image)))
        if question is None:
            raise ValueError(
                f"demonstration {item.id} belongs to no training question: give the "
                "folder whose training.jsonl the demonstrations were made from"
            )
        filmed += [(question, item)] if question.progress else []
    rows, half = [], len(filmed) // 2
    for number, (question, item) in enumerate(filmed):
        thought, prompt = THINK.search(item.response), folded(item.text)
        text = thought[1] if thought else ""
        clips = {"own": question, "other": filmed[number - half][0]}
        rows += [
            {"id": question.id, "of": of, "step": step, "reasoning": text}
            | {"offered": folded(step) in prompt, "said": match(step, text)}
            for of, clip in clips.items()
            for step in clip.progress
        ]
    return pandas.DataFrame(rows)


def tables(rows: pandas.DataFrame) -> str:
    """Shares of the steps, and of the demonstrations, as text."""
    said = pandas.DataFrame({"named": rows.said == "named"})
    said["touched"] = rows.said != "absent"
    by_step = 100 * said.groupby([rows.of, rows.offered]).mean()
    by_step.insert(0, "steps", rows.groupby(["of", "offered"]).size())
    own = said[rows.of == "own"].groupby(rows.id).mean()
    lines = [
        f"{len(own):,} demonstrations about a clip, in per cent of them:",
        f"  every narrated step named    {100 * (own.named == 1).mean():5.1f}",
        f"  half of them or more         {100 * (own.named >= 0.5).mean():5.1f}",
        f"  none named                   {100 * (own.named == 0).mean():5.1f}",
        f"  no object of a step touched  {100 * (own.touched == 0).mean():5.1f}",
    ]
    return "\n".join([by_step.round(1).to_string(), "", *lines])


def write_check(rows: pandas.DataFrame, count: int, path: Path) -> None:
    """A CSV of `count` demonstrations for a person, who fills its last column: does the
    reasoning name what happened, yes or no? A list that is there stays."""
    own = rows[rows.of == "own"]
    chosen = random.Random(0).sample(sorted({*own.id}), min(count, own.id.nunique()))
    said = own.assign(step=own.step + " (" + own.said + ")")
    listed = said.groupby("id").agg({"step": "; ".join, "reasoning": "first"})
    path.parent.mkdir(parents=True, exist_ok=True)
    listed.loc[chosen].assign(person="").to_csv(path, mode="x")


def main(folder: Path, count: int, out: Path) -> str:
    """The tables of a data folder; the list for a person is written to `out`."""
    annotations = folder / "annotations"
    asked = questions.read_training(annotations / "training.jsonl", folder)
    path = annotations / "training_with_cot.jsonl"
    rows = measure(asked, questions.read_demonstrations(path, folder))
    write_check(rows, count, out)
    return tables(rows)
