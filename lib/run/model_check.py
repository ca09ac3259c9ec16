"""Check in minutes whether a model is read right on this machine.

    python -m lib.run check-model Qwen/Qwen2-VL-2B-Instruct
    python -m lib.run check-model lib/mini/base --sight lib.mini.sight

files     every tensor is there, is what was loaded, and what the hub lists
words     chat template, special tokens and pixel numbers are the published ones
path      the kit's decoding, log-probabilities and positions equal the plain ones
sight     48 questions on clips drawn here: what is shown, and in which order
learning  three steps of SFT lower the loss; a new adapter changes nothing

A finding is ok, NO, or "-", which means: not decided with this model or machine, and
why. All are in outputs/checked/<model>/check.json, which `--dry-run` looks for.
tests/test_model_check.py has the faults that each level notices."""

import hashlib
import importlib
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lib import paths, records
from lib.data import download, prompts
from lib.data.video import Clip, Sampling
from lib.doors import Door
from lib.evaluate import sight
from lib.evaluate.evaluate import Asking, EvalSettings
from lib.model import encoding, models, prefix, rollouts, scoring
from lib.run import checks, counts, memory, params
from lib.run.checks import Check
from lib.run.memory import GIB
from lib.train import sft

# isort: split
import peft
from safetensors import safe_open

PASSED_FROM = 0.8  # of the sight questions; a guess until a real model has answered
# Largest and mean difference of log-probabilities from transformers' own. bfloat16 has
# 8 bits: near 30 a logit is right to 0.125; float16 has 11. A guess, until a GPU has
# shown its own.
WITHIN = {"float32": (1e-3, 1e-4), "bfloat16": (2.0, 0.1), "float16": (0.25, 0.0125)}
PLANNED_WITHIN = 1.15  # of the memory plan, as every measured peak is
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SYSTEMS = {"qwen2_vl": SYSTEM, "qwen2_5_vl": SYSTEM, "qwen3_vl": ""}
NORMAL = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
PICTURE = "<|vision_start|><|{}_pad|><|vision_end|>"
# Qwen's vocabulary, and tokens added to it (tests/models/qwen2_vl of transformers).
WORDS, STARTS, IMAGE, VIDEO = 151_643, 151_644, 151_655, 151_656
EXAMPLE = (
    "Considering the progress shown in the video and my current observation shown in "
    "the image, what action should I take next in order to store cereal?\n"
    "A. put cereal box into cupboard\nB. take cereal bag\nC. open cupboard\n"
    f"D. put cereal bag into cereal box\n{prompts.THINK_ANSWER}"
)
TOKENS, VISUAL = 851, 729  # of the example, at 16 frames of 252 x 252 and a still


@dataclass
class Subject:
    """A model under check: its name, where its files are, a folder for clips, and the
    module that draws them."""

    name: str
    folder: Path
    clips: Path
    sight: str
    dtype: str = models.half() if torch.cuda.is_available() else "float32"

    @cached_property
    def processor(self):
        """Of the checkpoint."""
        return models.load_processor(self.folder)

    @cached_property
    def model(self):
        """The model with `scoring.add_scoring`, loaded anew once deleted."""
        model = models.load_model(self.folder, self.dtype)
        scoring.add_scoring(model)
        return model

    @cached_property
    def asked(self) -> list[sight.SightQuestion]:
        """The sight questions, their clips drawn."""
        return importlib.import_module(self.sight).questions(self.clips)


def files(subject: Subject) -> Iterator[Check]:
    """Tensors by their content: no name has to be translated."""
    there = Counter(map(_print, subject.model.parameters()))  # what is damaged raises
    stored, numbers, empty = Counter(), 0, []
    for file in subject.folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                tensor = tensors.get_tensor(name)
                stored[_print(tensor.to(getattr(torch, subject.dtype)))] += 1
                numbers += tensor.numel()
                if tensor.ndim > 1 and not tensor.any():
                    empty.append(name)
    text = f"{(stored - there).total()} of {stored.total()} are not in the model"
    yield Check("tensors", stored == there, text)
    text = f"{len(empty)} matrices of nothing but 0 {' '.join(empty[:3])}"
    yield Check("content", not empty, text.strip())
    known = subject.model.num_parameters()
    if subject.name in memory.KNOWN:  # the published number: tests/test_plan.py
        known = memory.Model.of(memory.config_of(subject.name)).numbers
    text = f"{numbers:,} in the files, {known:,} expected"
    yield Check("parameters", numbers == known, text)
    yield hub_files(subject.name, subject.folder)


def _print(tensor: torch.Tensor) -> str:
    """A hash of a tensor's shape and 256 spread values, whatever its type."""
    values = tensor.detach().flatten()
    sample = values[:: max(1, values.numel() // 256)].to("cpu", torch.float32)
    rounded = sample.bfloat16().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + rounded).hexdigest()


def hub_files(name: str, folder: Path) -> Check:
    """Whether the files are what the hub lists for their commit."""
    if Path(models.checkpoint_source(name)).is_dir():
        return Check("hub", None, "a local folder: there is nothing to compare with")
    try:
        listed = download.listing(name, folder.name, "model")
    except download.DownloadError as error:
        return Check("hub", None, str(error))
    here = {p: own.digest for p, own in listed.items() if (folder / p).is_file()}
    other = [p for p, own in here.items() if download.digest(folder / p, own) != own]
    text = f"{len(here)} files, {len(other)} not as listed {' '.join(other)}"
    return Check("hub", bool(here) and not other, text.strip())


def words(subject: Subject) -> Iterator[Check]:
    """Template and special tokens, beside those of Qwen's own example."""
    prefix.check_model(subject.model)
    processor, config = subject.processor, subject.model.config
    film = {"total_num_frames": 32, "fps": 4.0, "frames_indices": [*range(0, 32, 2)]}
    clip = Clip.of(np.zeros((16, 252, 252, 3), np.uint8), film)
    talk = prompts.messages(EXAMPLE, clip, np.zeros((252, 252, 3), np.uint8))
    found = processor.apply_chat_template(talk, add_generation_prompt=True)
    wanted = f"<|im_start|>user\n{PICTURE.format('video')}{PICTURE.format('image')}"
    wanted = f"{SYSTEMS[config.model_type]}{wanted}{EXAMPLE}<|im_end|>\n"
    right = found == f"{wanted}<|im_start|>assistant\n"
    yield Check("template", right, "the published one" if right else repr(found))
    tokenizer = processor.tokenizer
    marks = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = tokenizer.convert_tokens_to_ids([f"<|{mark}|>" for mark in marks])
    kinds = (mark.replace("_pad", "") for mark in marks)
    own = [getattr(config, f"{kind}_token_id") for kind in kinds]
    yield Check("picture tokens", ids == own, f"{ids}; by config.json {own}")
    yield pictures(processor, config.vision_config)
    own = set(tokenizer.get_vocab()) - set(tokenizer.added_tokens_encoder)
    if len(own) != WORDS or config.model_type == "qwen3_vl":
        why = "known for Qwen2-VL and Qwen2.5-VL with Qwen's own vocabulary"
        yield Check("published tokens", None, why)
        return
    ids = encoding.encode(processor, [talk])["input_ids"][0]
    visual = int((encoding.mm_token_type_ids(ids, config) > 0).sum())
    special = ["<|im_start|>", "<|image_pad|>", "<|video_pad|>"]
    special = tokenizer.convert_tokens_to_ids(special) == [STARTS, IMAGE, VIDEO]
    right = special and (len(ids), visual) == (TOKENS, VISUAL)
    text = f"{len(ids)} in the example, {visual} visual; {TOKENS} and {VISUAL} expected"
    yield Check("published tokens", right, text)


def pictures(processor, vision) -> Check:
    """How pixels become numbers, as transformers has it for the published models, and
    patches, as the vision tower takes them."""
    both = processor.image_processor, processor.video_processor
    wanted = {name: getattr(type(both[1]), name) for name in NORMAL}
    wanted |= {"merge_size": vision.spatial_merge_size, "patch_size": vision.patch_size}
    wanted["temporal_patch_size"] = vision.temporal_patch_size
    wrong = [
        f"{type(part).__name__}: {name} {found}, {value} expected"
        for part in both
        for name, value in wanted.items()
        if not np.array_equal(found := getattr(part, name), value)
    ]
    return Check("pictures", not wrong, "; ".join(wrong) or "as published")


@torch.no_grad()
def path(subject: Subject) -> Iterator[Check]:
    """The kit's fast ways through the model against the plain ones, on four prompts."""
    model, asked = subject.model, subject.asked[:4]
    encoded = [question.encoded(subject.processor) for question in asked]
    own = [prefix.make_prompt(model, one) for one in encoded]
    wanted = [mrope_positions(one, model.config).to(model.device) for one in encoded]
    equal = [torch.equal(a.positions, b) for a, b in zip(own, wanted, strict=True)]
    text = f"{sum(equal)} of {len(asked)} prompts as the published formula has them"
    yield Check("positions", all(equal), text)
    seen = prefix.with_features(model, own)
    plain = [replace(a, positions=b) for a, b in zip(own, wanted, strict=True)]
    yield greedy_tokens(subject, plain, seen)
    answers = [q.completions(subject.processor, model.device) for q in asked]
    packed, _ = scoring.completion_scores(model, seen, answers)
    pairs = zip(plain, answers, strict=True)
    each = [scoring.plain_scores(model, a, ids) for a, given in pairs for ids in given]
    apart = (torch.cat(packed) - torch.cat(each)).abs()
    largest, mean = apart.max().item(), apart.mean().item()
    text = f"largest difference {largest:.1e}, mean {mean:.1e} nats, {subject.dtype}"
    most, usual = WITHIN[subject.dtype]
    yield Check("log-probabilities", largest <= most and mean <= usual, text)
    del model  # another takes its place
    yield from drift(subject)


def greedy_tokens(subject: Subject, prompts, seen) -> Check:
    """How much the plain forward prefers another token to each that the kit draws."""
    model, settings, gaps = subject.model, EvalSettings("think", 16, len(prompts)), []
    how = Asking(model, subject.processor, settings, Sampling()).decoding(0.0)
    drawn = rollouts.draw(model, seen, 1, how)
    for prompt, (own,) in zip(prompts, drawn, strict=True):
        ids = torch.tensor(own, device=model.device)
        logps = scoring.plain_logps(model, prompt, ids)
        logps[:, how.suppressed] = -math.inf
        below = logps.amax(-1) - logps.gather(-1, ids[:, None])[:, 0]
        gaps.append(below.max().item())
    equal = f"{gaps.count(0)} of {len(gaps)} answers are the likeliest tokens"
    text = f"{equal}, others at most {max(gaps):.1e} nats below"
    return Check("greedy tokens", max(gaps) <= WITHIN[subject.dtype][0], text)


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
    seconds, vision = [*encoded.get(prefix.SECONDS, ())], config.vision_config
    kinds = encoding.mm_token_type_ids(encoded["input_ids"][0], config).tolist()
    places, behind = [], 0
    while len(places) < len(kinds):
        if not (kind := kinds[len(places)]):
            places.append((behind,) * 3)
        else:
            frames, *sides = grids[kind].pop(0)
            rows, columns = (side // vision.spatial_merge_size for side in sides)
            timed = kind == 2 and seconds
            step = vision.tokens_per_second * float(seconds.pop(0)) if timed else 1
            for t, y, x in np.ndindex(frames, rows, columns):
                places.append((behind + int(t * step), behind + y, behind + x))
        behind = max(map(max, places)) + 1
    return torch.tensor(places).T


def drift(subject: Subject) -> Iterator[Check]:
    """What rounding the weights changes in the next words of the example, measured."""
    ids = torch.tensor([encoding.text_ids(subject.processor.tokenizer, EXAMPLE)])

    def next_words(model) -> torch.Tensor:
        given = ids.to(model.device)
        logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits
        return logits[0].float().log_softmax(-1).cpu()

    exact = next_words(subject.model)
    del subject.model  # another takes its place
    for name in (models.half(), "NF4"):
        if name == subject.dtype:
            continue
        how = (models.half(), name == "NF4")
        other = next_words(models.load_model(subject.folder, *how))
        same = (other.argmax(-1) == exact.argmax(-1)).float().mean().item()
        kl = (exact.exp() * (exact - other)).sum(-1).mean().item()
        text = f"{same:.0%} of next tokens as in {subject.dtype}, KL {kl:.1e} nats"
        yield Check(f"{name}, measured", math.isfinite(kl), text)


def seen(subject: Subject) -> Iterator[Check]:
    """How many sight questions are answered rightly."""
    asked = subject.asked
    chosen = sight.choose(subject.model, subject.processor, asked)
    right = sum(a == q.right for a, q in zip(chosen, asked, strict=True))
    text = f"{right} of {len(asked)} right, {PASSED_FROM:.0%} wanted, 25 % by chance; "
    passed = right >= PASSED_FROM * len(asked)
    yield Check("questions", passed, f"{text}asked by {subject.sight}")


def learning(subject: Subject) -> Iterator[Check]:
    """What an adapter is at first, three steps of SFT, and their peak of memory."""
    yield unchanged(subject)
    del subject.model
    # Wrong answers: of what a model knows already there is nothing to learn.
    taught = [replace(q.asked, response=q.answers[q.right - 1]) for q in subject.asked]
    on_gpu, run = torch.cuda.is_available(), subject.clips / "run"
    settings = sft.SFTSettings(
        *(3, 1, 8, 1e-3, 16, 32.0, 0, 3, 2048),  # steps, batch, accumulation, lr, ...
        schedule="constant",
        warmup_share=0.0,
        dtype=subject.dtype,
        quantize=on_gpu,
        gradient_checkpointing=on_gpu,
    )
    sampling = subject.asked[0].sampling
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    sft.train_sft(sft.Task(subject.folder, taught[:8], settings, sampling, run))
    rows = records.read_jsonl(run / "train_log_sft.jsonl")
    first, second, third = (row["loss"] for row in rows if "loss" in row)
    text = f"{first:.3f}, {second:.3f}, {third:.3f}"
    yield Check("loss of three steps of SFT", first > second > third, text)
    why = "measured on a GPU alone; on a CPU tests/bench/memory.py counts"
    yield planned(subject, settings) if on_gpu else Check("peak memory", None, why)


@torch.no_grad()
def unchanged(subject: Subject) -> Check:
    """KL to the base of a new adapter, which must be 0."""
    question = subject.asked[0]
    adapted = peft.get_peft_model(subject.model, models.lora_config(16, 32.0)).eval()
    prompt = prefix.make_prompt(adapted, question.encoded(subject.processor))
    given = [prompt], [question.completions(subject.processor, adapted.device)]
    with adapted.disable_adapter():
        base, _ = scoring.completion_scores(adapted, *given)
    own, _ = scoring.completion_scores(adapted, *given)
    apart = (torch.cat(base) - torch.cat(own)).abs().max().item()
    return Check("KL of a new adapter", apart == 0, f"differs by {apart:.1e} nats")


def planned(subject: Subject, settings: sft.SFTSettings) -> Check:
    """The peak of SFT against the dry run's plan."""
    config, sampling = memory.config_of(subject.folder), subject.asked[0].sampling
    if config.model_type not in memory.VISION:
        return Check("peak memory", None, f"{config.model_type} is not planned here")
    (run,) = params.load_params(paths.ROOT / "params/single_gpu_2b.yaml")
    values = counts.all_values(run)
    values["sft_gradient_accumulation"] = settings.gradient_accumulation
    values["max_tokens"] = counts.prompt_with(sampling)[0] + 8
    values["max_frames"] = sampling.max_frames
    values |= {"frame_height": sampling.height, "frame_width": sampling.width}
    plan = memory.stages(memory.Model.of(config), counts.work_of(values, "cuda"))["SFT"]
    peak = torch.cuda.max_memory_allocated()
    text = f"{peak / GIB:.2f} GiB, planned {plan / GIB:.2f}"
    return Check("peak memory", peak <= PLANNED_WITHIN * plan, text)


LEVELS = {"files": files, "words": words, "path": path}
LEVELS |= {"sight": seen, "learning": learning}


def check(name: str, module: str) -> dict:
    """All levels of a model, written to its check.json; what raises has failed."""
    folder = checks.local_model(name)
    if folder is None:
        raise FileNotFoundError(f"{name} is not here: hf download {name}")
    found = {"model": name, "identity": checks.identity(name, folder), "levels": {}}
    found |= {"passed": True, "environment": records.environment()}
    with tempfile.TemporaryDirectory() as clips:
        subject = Subject(name, folder, Path(clips), module)
        for level, look in LEVELS.items():
            began, findings = time.monotonic(), []
            try:
                findings.extend(look(subject))
            except Exception as error:  # as many kinds as there are libraries
                text = f"{type(error).__name__}: {error}".partition("\n")[0]
                findings.append(Check("stopped", False, text))
            for what, passed, text in findings:
                mark = {True: "ok", False: "NO", None: "-"}[passed]
                print(f"{mark:<4}{level:<10}{what}: {text}", flush=True)
                found["passed"] &= passed is not False
            own = [finding._asdict() for finding in findings]
            took = round(time.monotonic() - began, 1)
            found["levels"][level] = {"findings": own, "seconds": took}
    records.write_json(checks.check_file(name), found)
    return found


def main(arguments: list[str]) -> int:
    """The command line; 0, 1 where something is wrong. Raises as `check`."""
    parser = Door("python -m lib.run check-model", __doc__)
    parser.add_argument("model", help="folder of a checkpoint, or hub id")
    told = "draws and asks, for a model that knows no cards"
    parser.add_argument("--sight", default=sight.__name__, metavar="MODULE", help=told)
    options = parser.parse_args(arguments)
    passed = check(options.model, options.sight)["passed"]
    file = checks.check_file(options.model)
    print("every level passed" if passed else "NOT sound: see NO", f"({file})")
    return 0 if passed else 1
