"""What a method is given to learn from: less of it, some of it wrong, or no reasoning.

The experiments behind three claims of SEED-Bench-R1 (arXiv 2503.24376): that RL needs
little data and no reasoning to imitate (abstract), and that noisy labels, which its
automatic training questions have, hold outcome rewards back (its limitations). The
paper varies none of the three. All draws depend on the seed and the ids alone.

Extend it: data of your own is a folder in SEED-Bench-R1's form: annotations/, clips in
videos/<source>/, stills in images/<source>/. Here it is made of a films.json that you
write, {file of questions: [film, ...]}. As lib/films.py:

    import sys

    from lib import paths, records
    from lib.data import training_sets


    def record(file: str, film: dict) -> dict:
        made = {"sample_id": film["id"], "video_source": "films"}  # L3: a text
        made |= {"video_basename": film["clip"], "task_goal": film["goal"]}
        made["current_observation_basename"] = film["still"]
        made["question"] = f"What should I do next in order to {film['goal']}?"
        made["task_progress_metadata"] = film["done"]  # narration_text, start, stop
        made["answer"], options = film["answer"], film["options"]
        if file == "training":
            wrong = [option for option in options if option != film["answer"]]
            return made | {"negative_answers": wrong}
        made |= {f"choice_{x}": own for x, own in zip("abcd", options, strict=True)}
        made["golden_choice_idx"] = "ABCD"[options.index(film["answer"])]
        return made | film.get("more", {})  # domain and scenario in validation_L3


    folder = paths.resolve(sys.argv[1])
    films = records.read_json(folder / "films.json")
    for file in films:  # training, validation_L1, validation_L2, validation_L3
        made = [record(file, film) for film in films[file]]
        records.write_jsonl(folder / "annotations" / f"{file}.jsonl", made)
    reasoning = [film["why"] for film in films["training"]]
    training_sets.write_demonstrations(folder, reasoning)

`data_command: lib.films outputs/data/films` with `data_dir: outputs/data/films` makes
it the data of a run; general_dir stays as it was."""

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lib import paths, records
from lib.data import questions
from lib.data.letters import parse_answer
from lib.data.prompts import prompt_text
from lib.data.questions import Demonstration, Question

Item = TypeVar("Item", Question, Demonstration)


def share_of(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """The `share` of the items whose ids come first in a shuffled order; at least one.
    Shares of one seed are nested; questions and demonstrations are cut alike."""
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} must lie above 0 and be 1 at most")
    if not items:
        raise ValueError("there is nothing to take a share of")
    kept = first(items, max(1, round(share * len(items))), f"share/{seed}/")
    return [item for item in items if item.id in kept]


def with_label_noise(
    questions: Sequence[Question], share: float, seed: int
) -> list[Question]:
    """The same questions, for `share` of which a wrong option, drawn evenly, is gold;
    the wrong labels of a larger share include those of a smaller one."""
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    noisy = first(questions, round(share * len(questions)), f"noise/{seed}/")
    return [_mislabelled(q, seed) if q.id in noisy else q for q in questions]


def _mislabelled(question: Question, seed: int) -> Question:
    options = question.options
    wrong = [i for i, option in enumerate(options) if option != question.answer]
    place = random.Random(f"{seed}/wrong label/{question.id}").choice(wrong)
    return replace(question, gold="ABCDE"[place], answer=options[place])


def first(items: Sequence[Item], count: int, salt: str) -> set[str]:
    """The ids that come first in an order drawn by salt and id alone."""

    def drawn(item: Item) -> bytes:
        return hashlib.sha256(f"{salt}{item.id}".encode()).digest()

    return {item.id for item in sorted(items, key=drawn)[:count]}


def answers_alone(
    questions: Iterable[Question], in_words: bool = False
) -> list[Demonstration]:
    """Demonstrations without reasoning: the paper's prompt, answered by the label. The
    control that the paper lacks: imitation of what RL is given, no teacher's thoughts.
    `in_words` names the label's option before its letter, nothing about the video."""
    return [
        Demonstration(
            *(q.id, prompt_text(q, "think"), q.video, q.image),
            response=f"<think>Next is {q.answer}.</think>" * in_words
            + f"<answer>{q.gold}</answer>",
        )
        for q in questions
    ]


def write_demonstrations(folder: str | Path, reasoning: Sequence[str]) -> Path:
    """Write annotations/training_with_cot.jsonl of a data folder; returns its path.
    `reasoning` is what a teacher, or a person, thinks before the answer: one text for
    each record of annotations/training.jsonl, in its order."""
    root, made = paths.resolve(folder), []
    path = root / "annotations" / "training.jsonl"
    asked = questions.read_training(path, root)
    if len(asked) != len(reasoning):
        raise ValueError(
            f"{path} has {len(asked)} questions, but there are {len(reasoning)} texts "
            "of reasoning: give one for each"
        )
    for question, thought in zip(asked, reasoning, strict=True):
        media = {"video": question.video, "image": question.image}
        content = [
            {"type": kind, kind: file.relative_to(root).as_posix()}
            for kind, file in media.items()
            if file is not None
        ]
        content.append({"type": "text", "text": prompt_text(question, "think")})
        number = question.id.removeprefix("training/")
        prompt = [{"role": "user", "content": content}]
        response = f"<think>{thought}</think><answer>{question.gold}</answer>"
        made.append({"sample_id": number, "prompt": prompt, "response": response})
    path = path.with_name("training_with_cot.jsonl")
    records.write_jsonl(path, made)
    return path


def own_right_answers(
    questions: Iterable[Question], drawn: Iterable[Mapping]
) -> list[Demonstration]:
    """Rejection sampling without a teacher: all that a model answered rightly itself,
    from the rows of lib/evaluate/draws.py on these questions."""
    rows, kept = {row["id"]: row for row in drawn}, []
    for q in questions:
        told = (prompt_text(q, "think"), q.video, q.image)
        answers = zip(rows[q.id]["completions"], rows[q.id]["right"], strict=True)
        for number, (text, right) in enumerate(answers):
            if right:
                kept.append(Demonstration(f"{q.id}#{number}", *told, response=text))
    return kept


def lessons(
    targets: str,
    demonstrations: Sequence[Demonstration],
    labelled: Sequence[Question],
    own: Sequence[Demonstration] = (),
) -> dict[str, list[Demonstration]]:
    """What SFT learns, by the name of the adapter that comes of it; `targets` are out
    of "reasoning", "answers", "steps" and "own" (`own_right_answers`)."""
    known = {
        "reasoning": ("sft", list(demonstrations)),
        "answers": ("sft-answers", answers_alone(labelled)),
        "steps": ("sft-steps", answers_alone(labelled, in_words=True)),
        "own": ("rft", list(own)),
    }
    for target in targets.split() or [targets]:
        if target not in known:
            said = f"is unknown: name some of {', '.join(known)}"
            raise ValueError(f"SFT on {target!r} {said}")
    return dict(known[target] for target in targets.split())


def kept_by_rejection(
    demonstrations: Iterable[Demonstration], questions: Iterable[Question]
) -> list[Demonstration]:
    """Those whose answer is the label: what rejection sampling leaves of a teacher. The
    two files may show the options in different orders, so the option's text counts."""
    labels = {question.id: question.answer for question in questions}
    kept = []
    for item in demonstrations:
        if item.id not in labels:
            raise ValueError(
                f"demonstration {item.id} belongs to no training question, so its "
                "answer cannot be compared with a label: leave label_noise at 0"
            )
        if _answer_text(item) == labels[item.id]:
            kept.append(item)
    return kept


def _answer_text(item: Demonstration) -> str | None:
    """The text of the option that a demonstration chooses, None if it chooses none."""
    letter = parse_answer(item.response, "first_letter")
    found = letter and re.search(rf"^{letter}\. (.*)$", item.text, re.MULTILINE)
    return found[1] if found else None
