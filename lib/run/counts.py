"""What a run will work through: samples of every stage, counted beforehand.

From its parameters and, where they are there already, its annotation files; no clip is
opened. Completions are taken at their bound: nobody knows how long they will be."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lib.data import parts, questions, seed_bench, training_sets
from lib.data.video import SIDE, Sampling
from lib.doors import size
from lib.evaluate import perception
from lib.methods import LEVELS, SETS
from lib.mini.benchmark import SIZES
from lib.run import memory, params
from lib.train import rl

LEARNED = ("training", "demonstrations")
# SEED-Bench-R1's and LongVideoBench's own numbers. Of the training files only "6k" is
# documented; L1, L2 and L3 have a still each, and 371, 128 records of L1, L2 no video.
PUBLISHED = {"training": 6000, "demonstrations": 6000}
PUBLISHED |= {"L1": 2432, "L2": 923, "L3": 1321, "general": 1337}
# Estimates: what the archives of SEED-Bench-R1 hold over its clips, of LongVideoBench
# over its videos; the largest archives that were seen there.
CLIP_BYTES = {"training": 12 * 10**6, "L1": 12 * 10**6, "L2": 9 * 10**6}
CLIP_BYTES |= {"L3": 9 * 10**6, "general": 43 * 10**6}
ARCHIVE_BYTES = {"training": 4 * 10**9, "L1": 4 * 10**9, "L2": 10**9, "L3": 10**9}
ARCHIVE_BYTES |= {"general": 53 * 10**8}
# Text of a "think" prompt: 883 tokens in all at 16 frames of 252 x 252, where 729 are
# visual. A longer question takes more; SFT is bounded by max_tokens instead.
TEXT_TOKENS = 154
SAME = ("dtype", "quantize", "lora_rank", "prompts_per_backward", "pack_tokens")
WRITERS = 2  # a model's attention is taken on its own words and on the base's


class Asked(NamedTuple):
    """A file's questions or demonstrations, as far as a run uses them."""

    count: int
    video: float = 1.0  # share with a clip
    still: float = 1.0
    records: int = 0  # of the whole file, held-out ones too; 0 where it is not there
    lacking: int = 0  # of the records, without their clip or still yet
    unusable: int = 0  # faults of the file or its records


class Part(NamedTuple):
    """Of SFT, GRPO or evaluation: `count` items in `steps`."""

    stage: str
    name: str  # with the method's, where its stage has several
    steps: int
    count: int
    unit: str


def check_epochs(
    name: str, steps: int, items_per_step: int, items: int, epochs: float
) -> None:
    """ValueError unless `steps` make `epochs` of the items; 0 epochs: not checked.
    `name` is the parameter of the steps; `items_per_step` counts over all devices. Only
    full steps exist: 46 x 128 = 5,888 items are an epoch of 6,000. One step or 5 % more
    or less are the same epochs: 46 steps hold for 5,900 to 6,100 records."""
    wanted = max(1, math.floor(round(epochs * items / items_per_step, 6)))
    if epochs and abs(steps - wanted) > max(1, 0.05 * wanted):
        found = steps * items_per_step / items
        raise ValueError(
            f"{name} = {steps} with {items_per_step} items a step are {found:.2f} "
            f"epochs of {items} items; {epochs:g} epochs are {name} = {wanted}"
        )


def items_per_step(values: Mapping) -> dict[str, int]:
    """Of an optimizer step, over all processes: demonstrations, questions."""
    once = values["sft_batch_size"] * values["sft_gradient_accumulation"]
    return {"sft": once * values["num_processes"], "grpo": values["prompts_per_step"]}


def all_values(run: params.Run) -> dict:
    """A run's values over the notebooks' defaults."""
    declared = params.declarations(params.notebook_paths())
    return {name: own.default for name, own in declared.items()} | run.values


def sets_of(values: Mapping) -> dict[str, Asked]:
    """{file: what a run uses of it}; a file of unknown size is left out."""
    known, found = announced(values["data_command"]), {}
    most = values["asked_questions"] or math.inf
    for name, path in parts.annotation_files(values).items():
        held = values["holdout_share"] if name in LEARNED else 0
        share = values["training_share"] if name in LEARNED else 1
        if path.is_file():
            root = path.parent if name == "general" else path.parent.parent
            found[name] = read_set(path, root, held, share)
        elif name in known:
            still = float(name != "general")
            count = round(known[name] * (1 - held) * share)
            found[name] = Asked(count, still=still, lacking=count)
        if name in found and name not in LEARNED:
            found[name] = found[name]._replace(count=min(most, found[name].count))
    return found


def announced(command: str) -> dict[str, int]:
    """How many questions a data_command is going to bring, as far as that is known."""
    module, *words = shlex.split(command) or [""]
    if module == "lib.data":
        return {split: PUBLISHED[split] for split in chosen(words)}
    if module == "lib.mini":
        named = re.findall(r"--size[ =](\w+)", command) or ["full"]
        if named[-1] not in SIZES:
            raise ValueError(f"data_command: --size is none of {', '.join(SIZES)}")
        sizes = SIZES[named[-1]]
        a_level = re.findall(r"--level[ =](\d+)", command) or [sizes.level]
        levels = dict.fromkeys(LEVELS, int(a_level[-1]))
        return {"training": sizes.training, "general": sizes.general} | levels
    return {}


def chosen(words: Sequence[str]) -> list[str]:
    """The splits behind `--what` whose clips `lib.data get` brings."""
    named = {split for word in words for split in seed_bench.CHOICES.get(word, ())}
    return [split for split in PUBLISHED if split in named]


@lru_cache
def read_set(path: Path, root: Path, holdout_share: float, share: float) -> Asked:
    """Counts of an annotation file that is there, with its clips below `root`."""
    found = questions.check(path, root)
    items = [item for _, item in found["rows"]]
    items, _ = questions.split_holdout(items, holdout_share)
    items = training_sets.share_of(items, share, seed=0) if items else []
    each = max(1, len(items))
    return Asked(
        len(items),
        video=sum(item.video is not None for item in items) / each,
        still=sum(item.image is not None for item in items) / each,
        records=found["records"],
        lacking=sum(lacks(item) for _, item in found["rows"]),
        unusable=sum(not fault.usable for fault in found["faults"]),
    )


def lacks(item: questions.Question | questions.Demonstration) -> bool:
    """Whether a clip or still of an item is missing or empty."""
    media = {item.video, item.image} - {None}
    return not all(path.is_file() and path.stat().st_size for path in media)


def to_come(values: Mapping) -> dict[str, int]:
    """{what: bytes} that a download is still going to need: the clips, and the largest
    archive, which is there while it is unpacked; each at most --at-most."""
    module, *words = shlex.split(values["data_command"]) or [""]
    most = re.findall(r"--at-most[ =](\S+)", values["data_command"])
    most = size(most[-1]) if most else math.inf
    sets = sets_of(values | {"asked_sets": " ".join(SETS)})  # asked or not, it comes
    names = [n for n in chosen(words) if n in CLIP_BYTES and sets[n].lacking]
    if module != "lib.data" or not names:
        return {}
    clips = sum(sets[name].lacking * CLIP_BYTES[name] for name in names)
    archive = max(ARCHIVE_BYTES[name] for name in names)
    return {
        "clips (estimate)": min(most, clips),
        "archive in transit (estimate)": min(most, archive),
    }


def parts_of(values: Mapping, sets: Mapping[str, Asked]) -> list[Part]:
    """The stages of a run in their order; what a run leaves out has no part."""
    each, steps, found = items_per_step(values), values["sft_steps"], []
    for target in values["sft_on"].split():
        named = {"answers": "answers alone", "steps": "in words", "own": "own answers"}
        name = named.get(target, "")
        count = steps * each["sft"]
        found.append(Part("SFT", name, steps, count, "demonstrations"))
    methods, unit = rl.read(values["rl"]), f"questions x {values['group_size']}"
    for method in methods:
        updates = method.option("updates_per_batch")
        passes = {  # of a batch; dead groups are drawn anew up to extra_draws times
            "rollouts": 1 + method.option("extra_draws"),
            "reference": (values["kl_beta"] > 0) + (method.name == "care"),
            "old policy": int(updates > 1),
            "update": updates,
        }
        own = f"{method.name}, " if len(methods) > 1 else ""
        for name, times in passes.items():
            steps = values["grpo_steps"] * times
            found.append(Part("GRPO", own + name, steps, steps * each["grpo"], unit))
    for name, count in asked_of(values, sets).items():
        unit = "reasonings" if name == "readers" else "answers"
        found.append(Part("evaluation", name, 0, count, unit))
    return [part for part in found if part.count]


def asked_of(values: Mapping, sets: Mapping[str, Asked]) -> dict[str, int]:
    """What 04_eval does: every model on all sets; some sets with something taken away;
    attention on filmed questions; reasoning read, all by the base, else one's own."""
    models, looked = values["asked_models"].split(), values["perception_models"].split()
    here = {name: sets[name].count for name in SETS if name in sets}
    shown = [name for name in values["perception_sets"].split() if name in here]
    filmed = sum(round(here[name] * sets[name].video) for name in shown)
    again = sum(min(here[n], values["perception_questions"] or here[n]) for n in shown)
    again *= len(looked) * len(values["perception_conditions"].split())
    read = sum(here.get(name, 0) for name in values["coherence_sets"].split())
    drawn = {n: here.get(n, 0) for n in values["pass_sets"].split()}
    often = sum(min(n, values["pass_questions"] or n) for n in drawn.values())
    arms = {name.removesuffix("-direct").removesuffix("-begun") for name in models}
    often *= values["pass_draws"] * len(arms)
    return {
        "answers": len(models) * sum(here.values()),
        "draws": often,
        "conditions": again,
        "attention": len(looked) * WRITERS * min(filmed, values["attention_questions"]),
        "readers": max(0, 2 * len(arms) - 1 + ("base-begun" in models)) * read,
    }


def sampling_of(values: Mapping) -> Sampling:
    """How a run samples its clips; ValueError for numbers that cannot be."""
    return Sampling(
        values["max_frames"],
        fps=values["video_fps"],
        height=values["frame_height"],
        width=values["frame_width"],
    )


def prompt_with(sampling: Sampling) -> tuple[int, int]:
    """(tokens, patches) of a prompt with a full clip and a still of this size, of the
    families that are planned here; ValueError for a size that they cannot take."""
    if sampling.height % SIDE or sampling.width % SIDE:
        raise ValueError(
            f"pictures of {sampling.height} x {sampling.width} pixels: multiples of "
            f"{SIDE} are needed by Qwen2-VL and Qwen2.5-VL, which alone are planned"
        )
    pictures = sampling.max_frames // 2 + 1  # two frames are one, and the still
    tokens = pictures * (sampling.height // SIDE) * (sampling.width // SIDE)
    return tokens + TEXT_TOKENS, 4 * tokens


def largest_batch(values: Mapping) -> tuple[int, int, int]:
    """(questions, tokens, patches of each) of the batch of 04_eval that takes most."""
    usual, sampling = values["eval_batch_size"], sampling_of(values)
    batches = [(usual, *prompt_with(sampling))]
    for condition in values["perception_conditions"].split():
        rows = perception.batch_under(condition, usual, sampling)
        seen = perception.resampled(sampling, condition)
        batches.append((rows, *prompt_with(seen)))
    return max(batches, key=lambda batch: batch[0] * batch[1])


def work_of(values: Mapping, device: str) -> memory.Work:
    """The work that a run's parameters describe; ValueError where they contradict."""
    prompt, patches = prompt_with(sampling_of(values))
    eval_batch, eval_prompt, eval_patches = largest_batch(values)
    if values["max_tokens"] <= prompt:
        raise ValueError(
            f"max_tokens is {values['max_tokens']}, but a prompt alone takes about "
            f"{prompt} tokens: raise max_tokens"
        )
    processes = values["num_processes"]
    own, rest = divmod(values["prompts_per_step"], processes)
    once = values["prompts_per_backward"] or own
    if rest or own % once:
        raise ValueError(
            f"prompts_per_step is {values['prompts_per_step']}: it cannot be split "
            f"over {processes} processes and backward passes of {once} prompts each"
        )
    return memory.Work(
        **{name: values[name] for name in SAME},
        checkpointing=values["gradient_checkpointing"],
        prompt=prompt,
        patches=patches,
        sft_batch=values["sft_batch_size"],
        sft_accumulation=values["sft_gradient_accumulation"],
        sft_tokens=values["max_tokens"],
        prompts=own,
        group=values["group_size"],
        completion=values["max_completion_tokens"],
        kl=values["kl_beta"] > 0,
        eval_batch=eval_batch,
        eval_tokens=values["max_new_tokens"],
        device=device,
        eval_prompt=eval_prompt,
        eval_patches=eval_patches,
        processes=processes,
        sharding=memory.sharding_of(values["accelerate_config"]),
        average=any(
            method.name == "care" and method.option("reference") != "policy"
            for method in rl.read(values["rl"])
        ),
    )
