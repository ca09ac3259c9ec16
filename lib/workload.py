"""What a run will work through: stages, samples and tokens, counted beforehand.

From a run's parameters and, where they are on this machine already, its annotation
files and tokenizer; no clip is opened. Numbers of samples are exact. Tokens are means,
with every clip at `max_frames`: a shorter clip has fewer. Completions are given at
their bound, because nobody knows how long they will be.

    >>> steps_of_epochs(items=6000, items_per_step=128, epochs=1.0)
    47
    >>> check_epochs("sft_steps", 94, items_per_step=128, items=6000, epochs=1.0)
    ValueError: sft_steps = 94 with 128 items a step are 2.01 epochs of 6000 items; ...

Only full steps exist (lib/checkpoints.py, `training_order`), so the last step of an
epoch may reach into the next one: 47 x 128 = 6016.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib import compute, models, paths, prompts, questions, training_sets
from lib.compute import Cost, Item
from lib.memory import TEXT_TOKENS, Sizes, Work
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
ASKED = {"base": "think", "base-direct": "direct", "sft": "think", "grpo": "think"}
TAUGHT_BY = {"sft": "demonstrations", "grpo": "training"}
PICTURE_MARKS = 2  # tokens around a picture
PATCH, MERGED = 14, 4  # pixels a side of Qwen2-VL's patch; patches of a visual token


def steps_of_epochs(items: int, items_per_step: int, epochs: float) -> int:
    """Optimizer steps of `epochs` passes over `items`, the last one filled up."""
    return math.ceil(round(epochs * items / items_per_step, 6))


def check_epochs(
    name: str, steps: int, items_per_step: int, items: int, epochs: float
) -> None:
    """ValueError unless `steps` make `epochs` of the items; 0 epochs: not checked.

    `name` is the parameter that holds the steps; `items_per_step` counts over all
    devices.
    """
    wanted = steps_of_epochs(items, items_per_step, epochs)
    if epochs and steps != wanted:
        found = steps * items_per_step / items
        raise ValueError(
            f"{name} = {steps} with {items_per_step} items a step are {found:.2f} "
            f"epochs of {items} items; {epochs:g} epochs are {name} = {wanted}"
        )


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
    """A stage: `count` items in `steps`, and what they cost together."""

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
    if module == "lib.seed_bench":
        return PUBLISHED
    if module == "lib.mini.benchmark":
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


def parts(
    values: Mapping, sets: Mapping[str, Asked], sizes: Sizes, work: Work
) -> list[Part]:
    """The stages of a run in their order; costs are those of all devices together.

    Draws of a Cost are those that one device waits for.
    """
    each, unknown = items_per_step(values), Asked(0)
    shown = sets.get("demonstrations", unknown)
    response = shown.response or values["max_completion_tokens"]
    item = item_of(shown, values, shown.text, response)
    count = values["sft_steps"] * each["sft"]
    cost = compute.demonstration(sizes, work, item) * count
    found = [Part("SFT", values["sft_steps"], count, "demonstrations", item, cost)]
    found += grpo_parts(values, sets.get("training", unknown), sizes, work)
    return [*found, evaluation_part(values, sets, sizes, work)]


def grpo_parts(values: Mapping, asked: Asked, sizes: Sizes, work: Work) -> list[Part]:
    """Rollouts, the reference where there is one, and the update."""
    steps, drawn = values["grpo_steps"], items_per_step(values)["grpo"]
    again = values.get("updates_per_batch", 1)  # updates on the same rollouts
    bound = values["max_completion_tokens"]
    item = item_of(asked, values, asked.text, bound)
    costs = {"rollouts": (again, compute.rollouts(sizes, work, item, drawn))}
    if work.kl:
        costs["reference"] = (again, compute.scores(sizes, work, item, learning=False))
    costs["update"] = (1, compute.scores(sizes, work, item, learning=True))
    unit = f"questions x {values['group_size']}"
    return [
        Part(f"GRPO: {name}", steps // every, count, unit, item, cost * count)
        for name, (every, cost) in costs.items()
        for count in [steps // every * drawn]
    ]


def evaluation_part(
    values: Mapping, sets: Mapping[str, Asked], sizes: Sizes, work: Work
) -> Part:
    """All models on all sets, greedily."""
    bound, batch = values["max_new_tokens"], values["eval_batch_size"]
    total, asked, tokens = Cost(), 0, 0.0
    pictures, processes = 0.0, values["num_processes"]
    grid = 0
    for style in ASKED.values():
        for known in (sets[name] for name in LEVELS if name in sets):
            text = known.text if style == "think" else known.direct
            item = item_of(known, values, text, bound)
            cost = compute.answer(sizes, work, item, batch * processes)
            total, asked = total + cost * known.count, asked + known.count
            tokens += item.prompt * known.count
            pictures += item.patches * known.count
            grid = item.picture
    mean = Item(tokens / max(1, asked), pictures / max(1, asked), grid, bound)
    return Part("evaluation", 0, asked, "answers", mean, total)
