"""Is a model read right on this machine? Asked in minutes, before hours are spent.

    python -m lib.run check-model Qwen/Qwen2-VL-2B-Instruct
    python -m lib.run check-model lib/mini/base --sight lib.mini.sight

files     every tensor is there, is what was loaded, and what the hub lists
words     the chat template and special tokens are the published ones
path      the kit's decoding, log-probabilities and positions equal the plain ones
sight     48 questions on clips drawn here: what is shown, and in which order
learning  three steps of SFT lower the loss; a new adapter changes nothing

Each finding is ok, NO, or "-": not decided with this model or machine, and why. They
are written to outputs/checked/<model>/check.json, which `--dry-run` looks for. What
tests/test_model_check.py broke, and what noticed it:

    channels swapped, frames backwards, pixels not normalised     sight
    flat positions                                                path, sight
    merger lost                                                   files, sight
    a block of the vision tower lost                              files
"""

import argparse
import hashlib
import importlib
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import paths, records
from lib.data import download, prompts
from lib.data.video import BadVideo, Clip
from lib.evaluate import sight
from lib.evaluate.evaluate import END_TOKENS
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.run import checks, counts, memory, params
from lib.run.memory import GIB
from lib.train import sft

# isort: split
import peft
from safetensors import safe_open

SIGHT, QUESTIONS = "lib.evaluate.sight", 48
PASSED_FROM = 0.8  # of the sight questions; a guess until a real model has answered
# Largest and mean difference of log-probabilities from transformers' own. bfloat16 has
# 8 bits: near 30 a logit is right to 0.125. A guess, until a GPU has shown its own.
WITHIN = {"float32": (1e-3, 1e-4), "bfloat16": (2.0, 0.1)}
DRAWN = 16  # tokens, of greedy decoding
PLANNED_WITHIN = 1.15  # of the memory plan, as of every measured peak
PARAMETERS = {  # as published: safetensors metadata on the hub
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SYSTEMS = {"qwen2_vl": SYSTEM, "qwen2_5_vl": SYSTEM, "qwen3_vl": ""}
# Qwen's vocabulary: 151,643 words, then added tokens (tests/models/qwen2_vl of
# transformers).
WORDS = 151_643
ADDED = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
ADDED |= {"<|vision_start|>": 151652, "<|vision_end|>": 151653}
ADDED |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656}
EXAMPLE = (
    "Considering the progress shown in the video and my current observation shown in "
    "the image, what action should I take next in order to store cereal?\n"
    "A. put cereal box into cupboard\nB. take cereal bag\nC. open cupboard\n"
    f"D. put cereal bag into cereal box\n{prompts.THINK_ANSWER}"
)
EXAMPLE_TOKENS, EXAMPLE_VISUAL = 851, 729  # at 16 frames of 252 x 252, and a still
PARAGRAPH = (
    "To make tea, boil some water and put a tea bag into a cup. Pour the hot water "
    "over it, wait for three minutes and take the tea bag out again. Some people add "
    "milk or sugar. In many countries tea is drunk in the morning and after lunch."
)


class Finding(NamedTuple):
    """`passed` is None for what this model or machine cannot decide; `text` says why,
    or what was found."""

    what: str
    passed: bool | None
    text: str


@dataclass
class Subject:
    """A model under check: its name, where its files are, a folder for clips, and the
    module that asks about them."""

    name: str
    folder: Path
    clips: Path
    module: str

    @cached_property
    def dtype(self) -> str:
        return "bfloat16" if torch.cuda.is_available() else "float32"

    @cached_property
    def processor(self):
        return models.load_processor(self.folder)

    @cached_property
    def model(self):
        model = models.load_model(self.folder, self.dtype)
        scoring.add_scoring(model)
        return model

    def release(self) -> None:
        """Forget the model, so that another one fits beside nothing."""
        self.__dict__.pop("model", None)
        torch.cuda.empty_cache()

    @cached_property
    def asked(self) -> list[sight.SightQuestion]:
        return importlib.import_module(self.module).questions(self.clips, QUESTIONS)

    @property
    def sampling(self):
        return importlib.import_module(self.module).SAMPLING

    def encoded(self, question: sight.SightQuestion) -> dict:
        talk = question.conversation(self.sampling)
        return encoding.encode(self.processor, [talk], long_clips=True)


# --- files ----------------------------------------------------------------------------


def files(subject: Subject) -> Iterator[Finding]:
    stored, numbers = Counter(), 0
    for file in sorted(subject.folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                tensor = tensors.get_tensor(name)
                stored[_print(tensor)] += 1
                numbers += tensor.numel()
    parameters = dict(subject.model.named_parameters())  # raises for missing tensors
    loaded = Counter(map(_print, parameters.values()))
    lost = (stored - loaded).total()
    text = f"{lost} of {stored.total()} tensors of the files are not in the model"
    yield Finding("tensors", not lost and not loaded - stored, text)
    known = PARAMETERS.get(subject.name, sum(p.numel() for p in parameters.values()))
    text = f"{numbers:,} in the files, {known:,} expected"
    yield Finding("parameters", numbers == known, text)
    yield hub_files(subject.name, subject.folder)


def hub_files(name: str, folder: Path) -> Finding:
    """Whether the files are what the hub lists for their commit."""
    if Path(models.checkpoint_source(name)).is_dir():
        return Finding("hub", None, "a local folder: there is nothing to compare with")
    try:
        listed = download.listing(name, folder.name, "model")
    except download.DownloadError as error:
        return Finding("hub", None, str(error))
    here = {path: folder / path for path in listed if (folder / path).is_file()}
    other = [
        path
        for path, file in here.items()
        if download.digest(file, listed[path].digest) != listed[path].digest
    ]
    text = f"{len(here)} files, {len(other)} not as listed at {folder.name[:7]}"
    return Finding("hub", bool(here) and not other, " ".join([text, *other[:1]]))


def _print(tensor: torch.Tensor) -> str:
    """A hash of a tensor's shape and 256 spread values, whatever its type and name."""
    values = tensor.detach().flatten()
    sample = values[:: max(1, values.numel() // 256)].to("cpu", torch.bfloat16)
    digest = hashlib.sha256(f"{tuple(tensor.shape)}".encode())
    digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- words ----------------------------------------------------------------------------


def words(subject: Subject) -> Iterator[Finding]:
    prefix.check_model(subject.model)
    tokenizer, config = subject.processor.tokenizer, subject.model.config
    film = {"total_num_frames": 32, "fps": 4.0, "frames_indices": [*range(0, 32, 2)]}
    clip = Clip.of(np.zeros((16, 252, 252, 3), np.uint8), film)
    talk = prompts.messages(EXAMPLE, clip, np.zeros((252, 252, 3), np.uint8))
    ids = encoding.encode(subject.processor, [talk], long_clips=True)["input_ids"][0]
    found = re.sub(r"(<\|(image|video)_pad\|>)+", r"<\2>", tokenizer.decode(ids))
    found = re.sub(r"(<[\d.]+ seconds>)?<\|vision_start\|>", "", found)
    found = re.sub(r"(<video><\|vision_end\|>)+", "<video>", found)
    found = found.replace("<|vision_end|>", "")
    wanted = f"<|im_start|>user\n<video><image>{EXAMPLE}<|im_end|>\n"
    wanted = f"{SYSTEMS[config.model_type]}{wanted}<|im_start|>assistant\n"
    text = "the published one" if found == wanted else f"it gives {found!r:.200}"
    yield Finding("template", found == wanted, text)
    named = {f"{k}_token_id": f"<|{k}|>" for k in ("vision_start", "vision_end")}
    named |= {f"{k}_token_id": f"<|{k}_pad|>" for k in ("image", "video")}
    odd = [
        token
        for name, token in named.items()
        if tokenizer.convert_tokens_to_ids(token) != getattr(config, name)
    ]
    text = ", ".join(odd) or "the tokenizer's"
    yield Finding("picture tokens in config.json", not odd, text)
    is_qwen = (
        len(set(tokenizer.get_vocab()) - {*tokenizer.added_tokens_encoder}) == WORDS
    )
    if not is_qwen or config.model_type == "qwen3_vl":
        why = "known for Qwen2-VL and Qwen2.5-VL with Qwen's own vocabulary"
        yield Finding("published tokens", None, why)
        return
    odd = [t for t, i in ADDED.items() if tokenizer.convert_tokens_to_ids(t) != i]
    visual = int((encoding.mm_token_type_ids(ids, config) > 0).sum())
    is_known = (len(ids), visual) == (EXAMPLE_TOKENS, EXAMPLE_VISUAL)
    text = f"{len(ids)} tokens, {visual} visual, {len(odd)} special ids differ"
    yield Finding("published tokens", is_known and not odd, text)


# --- path -----------------------------------------------------------------------------


@torch.no_grad()
def path(subject: Subject) -> Iterator[Finding]:
    model, asked = subject.model, subject.asked[:4]
    encoded = [subject.encoded(question) for question in asked]
    own = [prefix.make_prompt(model, one) for one in encoded]
    wanted = [mrope_positions(one, model.config) for one in encoded]
    equal = [
        torch.equal(a.positions.cpu(), b) for a, b in zip(own, wanted, strict=True)
    ]
    text = f"{sum(equal)} of {len(asked)} prompts as the published formula has them"
    yield Finding("positions", all(equal), text)
    seen = prefix.with_features(model, own)
    own = [
        replace(a, positions=b.to(model.device))
        for a, b in zip(own, wanted, strict=True)
    ]
    yield greedy_tokens(subject, own, seen)
    given = [
        question.completions(subject.processor, model.device) for question in asked
    ]
    packed, _ = scoring.completion_scores(model, seen, given)
    plain = [
        scoring.plain_scores(model, prompt, answer)
        for prompt, answers in zip(own, given, strict=True)
        for answer in answers
    ]
    apart = (torch.cat(packed) - torch.cat(plain)).abs()
    largest, mean = apart.max().item(), apart.mean().item()
    bounds = WITHIN[subject.dtype]
    text = f"largest difference {largest:.1e}, mean {mean:.1e} nats, {subject.dtype}"
    within = largest <= bounds[0] and mean <= bounds[1]  # NaN is not
    yield Finding("log-probabilities", within, text)
    yield from drift(subject)


def greedy_tokens(subject: Subject, prompts, seen) -> Finding:
    """The kit's decoding against `generate`; where they part, by how much the plain
    forward prefers the other token."""
    model, tokenizer = subject.model, subject.processor.tokenizer
    never = encoding.visual_token_ids(model.config)
    ends = tokenizer.convert_tokens_to_ids(list(END_TOKENS))
    how = (DRAWN, 0.0, 0, 1.0, tuple(ends), tokenizer.pad_token_id, tuple(never))
    drawn = rollouts.draw(model, seen, 1, rollouts.Decoding(*how))
    equal, apart = 0, 0.0
    for prompt, (own,) in zip(prompts, drawn, strict=True):
        ids = prompt.ids[None]
        flat = torch.arange(len(prompt.ids), device=ids.device)[None]
        plain = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=encoding.mm_token_type_ids(ids, model.config),
            position_ids=torch.cat([flat, prompt.positions])[:, None],
            max_new_tokens=DRAWN,
            do_sample=False,
            suppress_tokens=never,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            **prompt.pixels,
        )[0, len(prompt.ids) :].tolist()
        equal += plain == own
        pairs = enumerate(zip(plain, own, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        if at is None:  # the same, or one of them shorter
            apart = max(apart, 0.0 if plain == own else math.inf)
            continue
        both = (
            torch.tensor(ids[: at + 1], device=model.device) for ids in (plain, own)
        )
        a, b = (scoring.plain_scores(model, prompt, ids)[-1] for ids in both)
        apart = max(apart, (a - b).abs().item())
    text = f"{equal} of {len(prompts)} answers as `generate` has them"
    text += f", others part at a difference of {apart:.1e} nats" if apart else ""
    return Finding("greedy tokens", apart <= WITHIN[subject.dtype][0], text)


def mrope_positions(encoded: Mapping, config) -> torch.Tensor:
    """Positions [3, L] of one conversation: text goes on one behind the largest so far,
    a picture counts frames, rows and columns from there (Qwen2-VL, arXiv 2409.12191,
    section 2.1). Qwen2.5-VL (arXiv 2502.13923, section 2.1.2) counts time in place of
    frames; in Qwen3-VL every frame is a picture of its own."""
    grids = {1: [], 2: []}
    for code, (_, name) in enumerate(prefix.KINDS.values(), start=1):
        for frames, *sides in torch.as_tensor(encoded.get(name, [])).tolist():
            alone = code == 2 and config.model_type == "qwen3_vl"
            grids[code] += [(1, *sides)] * frames if alone else [(frames, *sides)]
    seconds = list(encoded.get(prefix.SECONDS, ()))
    merged = config.vision_config.spatial_merge_size
    kinds = encoding.mm_token_type_ids(encoded["input_ids"][0], config).tolist()
    places, behind = [], 0
    while len(places) < len(kinds):
        if not (kind := kinds[len(places)]):
            places.append((behind,) * 3)
        else:
            frames, rows, columns = grids[kind].pop(0)
            step = 1.0
            if kind == 2 and seconds:
                step = config.vision_config.tokens_per_second * float(seconds.pop(0))
            places += [
                (behind + int(frame * step), behind + row, behind + column)
                for frame in range(frames)
                for row in range(rows // merged)
                for column in range(columns // merged)
            ]
        behind = max(map(max, places)) + 1
    return torch.tensor(places).T


def drift(subject: Subject) -> Iterator[Finding]:
    """What rounding the weights changes in the next word of a paragraph, measured."""
    tokenizer = subject.processor.tokenizer
    ids = torch.tensor([encoding.text_ids(tokenizer, PARAGRAPH)])

    def next_words(model) -> torch.Tensor:
        given = ids.to(model.device)
        logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits
        return logits[0].float().log_softmax(-1).cpu()

    exact = next_words(subject.model)
    subject.release()
    kinds = {"NF4": ("bfloat16", True)}
    if subject.dtype == "float32":
        kinds = {"bfloat16": ("bfloat16", False), **kinds}
    for name, how in kinds.items():
        other = next_words(models.load_model(subject.folder, *how))
        same = (other.argmax(-1) == exact.argmax(-1)).float().mean().item()
        kl = (exact.exp() * (exact - other)).sum(-1).mean().item()
        text = f"{same:.0%} of {len(exact)} next tokens as in {subject.dtype}, "
        finite = bool(other.isfinite().all())
        yield Finding(f"{name}, measured", finite, f"{text}KL {kl:.1e} nats")


# --- sight and learning ---------------------------------------------------------------


def seen(subject: Subject) -> Iterator[Finding]:
    asked = subject.asked
    chosen = sight.choose(subject.model, subject.processor, asked, subject.sampling)
    right = sum(a == q.right for a, q in zip(chosen, asked, strict=True))
    text = (
        f"{right} of {len(asked)} questions right, {PASSED_FROM:.0%} wanted, 25 % by "
    )
    text += f"chance; asked by {subject.module}"
    yield Finding("questions", right >= PASSED_FROM * len(asked), text)


def learning(subject: Subject) -> Iterator[Finding]:
    yield unchanged(subject)
    subject.release()
    # Wrong answers: of what a model knows already, there is nothing to learn.
    taught = [replace(q.asked, response=q.answers[q.right - 1]) for q in subject.asked]
    on_gpu = subject.dtype == "bfloat16"
    settings = sft.SFTSettings(
        steps=3,
        batch_size=1,
        gradient_accumulation=8,
        lr=1e-3,
        lora_rank=16,
        lora_alpha=32.0,
        seed=0,
        save_every=3,
        max_tokens=2048,
        warmup_share=0.0,
        schedule="constant",
        dtype=subject.dtype,
        quantize=on_gpu,
        gradient_checkpointing=on_gpu,
    )
    run = subject.clips / "run"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    sft.train_sft(sft.Task(subject.folder, taught[:8], settings, subject.sampling, run))
    rows = records.read_jsonl(run / "train_log_sft.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    told = ", ".join(f"{loss:.3f}" for loss in losses)
    falls = losses[0] > losses[1] > losses[2] if len(losses) == 3 else False
    yield Finding("loss of three steps of SFT", falls, told)
    yield planned(subject, settings)


@torch.no_grad()
def unchanged(subject: Subject) -> Finding:
    """KL to the base of a new adapter, which must be 0."""
    asked = subject.asked[:1]
    adapted = peft.get_peft_model(subject.model, models.lora_config(16, 32.0)).eval()
    prompts = [prefix.make_prompt(adapted, subject.encoded(q)) for q in asked]
    answers = [q.completions(subject.processor, adapted.device) for q in asked]
    with adapted.disable_adapter():
        base, _ = scoring.completion_scores(adapted, prompts, answers)
    own, _ = scoring.completion_scores(adapted, prompts, answers)
    apart = (torch.cat(base) - torch.cat(own)).abs().max().item()
    return Finding("KL of a new adapter", apart == 0, f"differs by {apart:.1e} nats")


def planned(subject: Subject, settings: sft.SFTSettings) -> Finding:
    """The peak of SFT against the dry run's plan."""
    name = "peak memory"
    if subject.dtype != "bfloat16":
        why = "measured on a GPU alone; tests/bench/memory.py counts on a CPU"
        return Finding(name, None, why)
    config = memory.config_of(subject.folder)
    if config.model_type not in memory.VISION:
        return Finding(name, None, f"the memory of {config.model_type} is not planned")
    (run,) = params.load_params(paths.ROOT / "params/single_gpu_2b.yaml")
    values = counts.all_values(run) | {
        "dtype": subject.dtype,
        "sft_gradient_accumulation": settings.gradient_accumulation,
        "max_tokens": counts.prompt_with(subject.sampling)[0] + 8,
        "max_frames": subject.sampling.max_frames,
        "frame_height": subject.sampling.height,
        "frame_width": subject.sampling.width,
    }
    model = memory.Model.of(config)
    plan = memory.stages(model, counts.work_of(values, "cuda"))["SFT"]
    peak = torch.cuda.max_memory_allocated()
    text = f"{peak / GIB:.2f} GiB, planned {plan / GIB:.2f}"
    return Finding(name, peak <= PLANNED_WITHIN * plan, text)


# --- the door -------------------------------------------------------------------------

LEVELS = {
    "files": files,
    "words": words,
    "path": path,
    "sight": seen,
    "learning": learning,
}


def check(name: str, module: str = SIGHT) -> dict:
    """All levels of a model, written to its check.json; what raises has failed."""
    folder = checks.local_model(name)
    if folder is None:
        raise FileNotFoundError(f"{name} is not here: hf download {name}")
    found = {"model": name, "identity": checks.identity(name, folder)}
    found |= {"sight": module, "environment": records.environment(), "levels": {}}
    with tempfile.TemporaryDirectory() as clips:
        subject = Subject(name, folder, Path(clips), module)
        for level, look in LEVELS.items():
            began = time.monotonic()
            findings = list(_heard(look, subject))
            for finding in findings:
                print(line_of(level, finding), flush=True)
            found["levels"][level] = {
                "findings": [finding._asdict() for finding in findings],
                "seconds": round(time.monotonic() - began, 1),
            }
    told = [f["passed"] for own in found["levels"].values() for f in own["findings"]]
    found["passed"] = False not in told
    records.write_json(checks.check_file(name), found)
    return found


def _heard(look: Callable, subject: Subject) -> Iterator[Finding]:
    """A level's findings; an error is one, with its text."""
    try:
        yield from look(subject)
    except (ValueError, OSError, RuntimeError, ArithmeticError, BadVideo) as error:
        text = f"{type(error).__name__}: {error}"
        yield Finding("stopped", False, text.partition("\n")[0])


def line_of(level: str, finding: Finding) -> str:
    mark = {True: "ok", False: "NO", None: "-"}[finding.passed]
    return f"{mark:<4}{level:<10}{finding.what}: {finding.text}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, 1 where something is wrong, 2 when nothing was checked."""
    parser = argparse.ArgumentParser(
        "python -m lib.run check-model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of a checkpoint, or hub id")
    about = "module that draws and asks, for a model that knows nothing of cards"
    parser.add_argument("--sight", default=SIGHT, metavar="MODULE", help=about)
    options = parser.parse_args(arguments)
    try:
        found = check(options.model, options.sight)
    except (OSError, ValueError, ImportError) as error:
        print(f"nothing was checked: {error}", file=sys.stderr)
        return 2
    file = checks.check_file(options.model)
    print("every level passed" if found["passed"] else "NOT sound: see NO", f"({file})")
    return 0 if found["passed"] else 1
