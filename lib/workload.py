"""What a run will work through: stages, samples and tokens, counted beforehand.

From a run's parameters and, where they are on this machine already, its annotation
files and tokenizer; no clip is opened. Numbers of samples are exact. Tokens are means,
with every clip at `max_frames`: a shorter clip has fewer. Completions are given at
their bound, because nobody knows how long they will be.

    >>> steps_of_epochs(items=6000, items_per_step=128, epochs=1.0)
    46
    >>> check_epochs("sft_steps", 94, items_per_step=128, items=6000, epochs=1.0)
    ValueError: sft_steps = 94 with 128 items a step are 2.01 epochs of 6000 items; ...

Only full steps exist, as in the released trainers: 46 x 128 = 5888, and 112 items of
6,000 wait for the next epoch, if there is one.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lib import (
    compute,
    models,
    paths,
    perception,
    prompts,
    questions,
    readers,
    rl,
    training_sets,
)
from lib.compute import Cost, Item
from lib.memory import TEXT_TOKENS, Sizes, Work, sampling_of
from lib.mini.benchmark import SIZES

# isort: split
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

LEVELS = ("L1", "L2", "L3", "general")
FILES = {
    "training": "training.jsonl",
    "demonstrations": "training_with_cot.jsonl",
    **{level: f"validation_{level}.jsonl" for level in LEVELS[:3]},
}
# SEED-Bench-R1's and LongVideoBench's own numbers. Of the training files only "6k" is
# documented; L1, L2 and L3 have a still each, and 371, 128 records of L1, L2 no video.
PUBLISHED = {"training": 6000, "demonstrations": 6000}
PUBLISHED |= {"L1": 2432, "L2": 923, "L3": 1321, "general": 1337}
ANSWERS = "answers"  # the part of 04_eval whose seconds its manifest holds
ANSWER_TOKENS = 7  # <answer>B</answer> and the end of the turn
WRITERS = 2  # a model's attention is taken on its own words and on the base's
TAUGHT_BY = {"sft": "demonstrations", "grpo": "training"}
PICTURE_MARKS = 2  # tokens around a picture
PATCH, MERGED = 14, 4  # pixels a side of Qwen2-VL's patch; patches of a visual token


def steps_of_epochs(items: int, items_per_step: int, epochs: float) -> int:
    """Full optimizer steps in `epochs` passes over `items`; at least one."""
    return max(1, math.floor(round(epochs * items / items_per_step, 6)))


def check_epochs(
    name: str, steps: int, items_per_step: int, items: int, epochs: float
) -> None:
    """ValueError unless `steps` make `epochs` of the items; 0 epochs: not checked.

    `name` is the parameter that holds the steps; `items_per_step` counts over all
    devices. One step or 5 % more or less are the same epochs: a recipe says 46 steps
    whether its file holds 5,900 or 6,100 records.
    """
    wanted = steps_of_epochs(items, items_per_step, epochs)
    if epochs and abs(steps - wanted) > max(1, 0.05 * wanted):
        found = steps * items_per_step / items
        raise ValueError(
            f"{name} = {steps} with {items_per_step} items a step are {found:.2f} "
            f"epochs of {items} items; {epochs:g} epochs are {name} = {wanted}"
        )


Counted = tuple[int, Item, Cost]  # so many of a question, and what one costs


@dataclass(frozen=True)
class Asked:
    """A file's questions or demonstrations, as far as a run uses them; tokens: means.

    `text` and `direct` are a prompt's tokens without its pictures in both styles.
    """

    count: int
    video: float = 1.0  # share with a clip
    still: float = 1.0
    text: float = TEXT_TOKENS - 2 * PICTURE_MARKS
    direct: float = TEXT_TOKENS - 2 * PICTURE_MARKS
    response: float = 0.0  # of demonstrations
    media: int = 0  # different clips and stills
    read: bool = False  # from the file; otherwise known without it


@dataclass(frozen=True)
class Part:
    """Of SFT, GRPO or evaluation: `count` items in `steps`, and their whole cost."""

    stage: str
    method: str  # empty where its stage has one alone
    name: str
    steps: int
    count: int
    unit: str
    item: Item
    cost: Cost


def local_model(model: str) -> Path | None:
    """The checkpoint's folder on this machine; None for a hub id that is not here."""
    source = models.checkpoint_source(model)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def annotation_files(values: Mapping) -> dict[str, Path]:
    """Where a run reads its questions from, whether the files are there or not."""
    folder = paths.resolve(values["data_dir"]) / "annotations"
    general = paths.resolve(values["general_dir"]) / "lvb_val.json"
    return {**{name: folder / file for name, file in FILES.items()}, "general": general}


def media_root(path: Path) -> Path:
    """The folder with the clips of an annotation file."""
    return path.parents[1] if path.parent.name == "annotations" else path.parent


def sets_of(values: Mapping) -> dict[str, Asked]:
    """{file: what a run uses of it}; a file of unknown size is left out."""
    known = announced(values["data_command"])
    found = {}
    for name, path in annotation_files(values).items():
        learned = name in ("training", "demonstrations")
        held = values["holdout_share"] if learned else 0
        share = values["training_share"] if learned else 1
        if path.is_file():
            found[name] = read_set(name, path, held, share, values["model"])
        elif name in known:
            still = 0.0 if name == "general" else 1.0
            found[name] = Asked(round(known[name] * (1 - held) * share), still=still)
    return found


def announced(command: str) -> dict[str, int]:
    """How many questions a data_command is going to bring, as far as that is known."""
    module, *rest = shlex.split(command) or [""]
    if module == "lib.data":
        return PUBLISHED
    if module == "lib.mini":
        parser = argparse.ArgumentParser()
        parser.add_argument("--size", default="full")
        sizes = SIZES[parser.parse_known_args(rest)[0].size]
        levels = dict.fromkeys(LEVELS[:3], sizes.level)
        return {"training": sizes.training, **levels, "general": sizes.general}
    return {}


@lru_cache
def read_set(
    name: str, path: Path, holdout_share: float, share: float, model: str
) -> Asked:
    """Counts and mean tokens of an annotation file that is there."""
    items = [item for _, item in questions.usable(path, media_root(path))]
    items, _ = questions.split_holdout(items, holdout_share)
    if not items:
        return Asked(0, read=True)
    items = training_sets.share_of(items, share, seed=0)
    folder = local_model(model)
    processor = folder and models.load_processor(folder)
    lengths = {}
    if name == "demonstrations":
        texts, replies = [i.text for i in items], [i.response for i in items]
        lengths["response"] = mean_tokens(processor, replies, turn=False) + 1
    else:
        texts = [prompts.prompt_text(item, "think") for item in items]
        direct = [prompts.prompt_text(item, "direct") for item in items]
        lengths["direct"] = mean_tokens(processor, direct)
    return Asked(
        len(items),
        video=sum(item.video is not None for item in items) / len(items),
        still=sum(item.image is not None for item in items) / len(items),
        text=mean_tokens(processor, texts),
        media=len({file for i in items for file in (i.video, i.image)} - {None}),
        read=True,
        **lengths,
    )


def mean_tokens(processor, texts: Sequence[str], turn: bool = True) -> float:
    """Mean tokens of texts, with `turn` as the user's turn that a completion follows.

    Without a tokenizer on this machine: those of a usual question, or four letters a
    token.
    """
    if processor is None:
        letters = sum(map(len, texts)) / len(texts)
        return float(TEXT_TOKENS) if turn else letters / 4
    if turn:
        texts = [
            processor.apply_chat_template(
                prompts.messages(text, None, None),
                tokenize=False,
                add_generation_prompt=True,
            )
            for text in texts
        ]
    ids = processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(map(len, ids)) / len(ids)


def item_of(asked: Asked, values: Mapping, text: float, completion: float) -> Item:
    """The mean question of a set, every clip at max_frames."""
    grid = (values["frame_height"] // PATCH) * (values["frame_width"] // PATCH)
    pairs = asked.video * (values["max_frames"] // 2) + asked.still
    marks = PICTURE_MARKS * (asked.video + asked.still)
    prompt = text + pairs * grid / MERGED + marks
    return Item(prompt, pairs * grid, grid, completion)


def items_per_step(values: Mapping) -> dict[str, int]:
    """Of an optimizer step, over all processes: demonstrations, questions."""
    once = values["sft_batch_size"] * values["sft_gradient_accumulation"]
    return {
        "sft": once * values["num_processes"],
        "grpo": values["prompts_per_step"],
    }


def asked_styles(values: Mapping) -> dict[str, str]:
    """{name in asked_models: the style of its prompt}."""
    names = values["asked_models"].split()
    return {n: "direct" if n.endswith("-direct") else "think" for n in names}


def parts(
    values: Mapping, sets: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Part]:
    """The stages of a run in their order; costs are those of all devices together.

    Draws of a Cost are those that one device waits for.
    """
    return [
        *sft_parts(values, sets, sizes, work),
        *rl_parts(values, sets.get("training", Asked(0)), sizes, work),
        *evaluation_parts(values, sets, sizes, work),
    ]


def sft_parts(
    values: Mapping, sets: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Part]:
    """SFT on reasoning, on answers alone, or on each."""
    shown, asked = (sets.get(name, Asked(0)) for name in ("demonstrations", "training"))
    response = shown.response or values["max_completion_tokens"]
    taught = {
        "reasoning": ("", item_of(shown, values, shown.text, response)),
        "answers": ("answers alone", item_of(asked, values, asked.text, ANSWER_TOKENS)),
    }
    steps = values["sft_steps"]
    count = steps * items_per_step(values)["sft"]
    found = []
    for target in values["sft_on"].split():
        name, item = taught[target]
        cost = compute.demonstration(sizes, work, item) * count
        found.append(Part("SFT", "", name, steps, count, "demonstrations", item, cost))
    return found


def rl_parts(values: Mapping, asked: Asked, sizes: Sizes, work: Work) -> list[Part]:
    """Rollouts, what scores them without learning, and updates, of each method.

    A dead group is drawn anew up to `extra_draws` times: counted are all of them.
    """
    batches, drawn = values["grpo_steps"], items_per_step(values)["grpo"]
    item = item_of(asked, values, asked.text, values["max_completion_tokens"])
    rollouts = compute.rollouts(sizes, work, item, drawn)
    scored, learned = (compute.scores(sizes, work, item, x) for x in (False, True))
    unit, found = f"questions x {values['group_size']}", []
    methods = rl.read(values["rl"])
    for method in methods:
        updates = method.option("updates_per_batch")
        passes = {  # of a batch of rollouts
            "rollouts": (1 + method.option("extra_draws"), rollouts),
            "reference": (work.kl + (method.name == "care"), scored),
            "old policy": (int(updates > 1), scored),
            "update": (updates, learned),
        }
        own = method.name if len(methods) > 1 else ""
        for name, (times, cost) in passes.items():
            steps, count = batches * times, batches * times * drawn
            total = cost * count
            found.append(Part("GRPO", own, name, steps, count, unit, item, total))
    return [part for part in found if part.count]


def evaluation_parts(
    values: Mapping, sets: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Part]:
    """What 04_eval does, section by section; what a run leaves out has no part."""
    here = {name: sets[name] for name in LEVELS if name in sets}
    shown = [here[name] for name in values["perception_sets"].split() if name in here]
    found = [
        evaluation_part(ANSWERS, "answers", answered(values, here, sizes, work)),
        evaluation_part("conditions", "answers", changed(values, shown, sizes, work)),
        evaluation_part("attention", "answers", attended(values, shown, sizes, work)),
        evaluation_part("readers", "reasonings", read(values, here, sizes, work)),
    ]
    return [part for part in found if part.count]


def evaluation_part(name: str, unit: str, asked: Sequence[Counted]) -> Part:
    """A part from its sets' (count, mean question, cost of one)."""
    count = sum(n for n, _, _ in asked)
    mean = [
        sum(n * getattr(item, field) for n, item, _ in asked) / max(1, count)
        for field in ("prompt", "patches", "picture", "completion")
    ]
    total = sum((cost * n for n, _, cost in asked), Cost())
    return Part("evaluation", "", name, 0, count, unit, Item(*mean), total)


def answered(
    values: Mapping, here: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Counted]:
    """All sets, by every model in its style (lib/evaluate.py)."""
    together = values["eval_batch_size"] * values["num_processes"]
    return [
        (own.count, item, compute.answer(sizes, work, item, together))
        for style in asked_styles(values).values()
        for own in here.values()
        for text in [own.text if style == "think" else own.direct]
        for item in [item_of(own, values, text, values["max_new_tokens"])]
    ]


def changed(
    values: Mapping, shown: Sequence[Asked], sizes: Sizes, work: Work
) -> list[Counted]:
    """Some sets again, with something taken away or added (lib/perception.py)."""
    looked = len(values["perception_models"].split())
    most = values["perception_questions"] or math.inf
    usual, sampling = values["eval_batch_size"], sampling_of(values)
    found = []
    for condition in values["perception_conditions"].split():
        batch = perception.batch_under(condition, usual, sampling)
        for own in shown:
            item = item_under(condition, own, values)
            together = batch * values["num_processes"]
            cost = compute.answer(sizes, work, item, together)
            found.append((looked * min(own.count, most), item, cost))
    return found


def attended(
    values: Mapping, shown: Sequence[Asked], sizes: Sizes, work: Work
) -> list[Counted]:
    """Answers to some filmed questions, for where a model looks (lib/attention.py)."""
    filmed = [(own.count * own.video, replace(own, video=1.0)) for own in shown]
    share = min(1.0, values["attention_questions"] / max(1, sum(n for n, _ in filmed)))
    times = len(values["perception_models"].split()) * WRITERS
    return [
        (times * round(share * n), item, compute.reading(sizes, work, item))
        for n, own in filmed
        for item in [item_of(own, values, own.text, values["max_new_tokens"])]
    ]


def read(
    values: Mapping, here: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Counted]:
    """Reasoning without pictures: by the base all of it, by others their own.

    A reader gets three for a question (lib/readers.py).
    """
    times = 2 * list(asked_styles(values).values()).count("think") - 1
    texts = len(readers.VARIANTS)
    return [
        (times * here[name].count, item, compute.reading(sizes, work, item, texts))
        for name in values["coherence_sets"].split()
        if name in here
        for item in [Item(here[name].text, 0, 0, values["max_new_tokens"])]
    ]


def item_under(condition: str, asked: Asked, values: Mapping) -> Item:
    """The mean question of a set under a condition of lib/perception.py."""
    seen = perception.resampled(sampling_of(values), condition)
    if condition in ("no_video", "no_pictures"):
        asked = replace(asked, video=0.0)
    if condition == "no_pictures":
        asked = replace(asked, still=0.0)
    frames = 2 if condition == "one_frame" else seen.max_frames
    own = {"max_frames": frames, "frame_height": seen.height, "frame_width": seen.width}
    return item_of(asked, {**values, **own}, asked.text, values["max_new_tokens"])
