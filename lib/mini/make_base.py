"""Make the mini base checkpoint, as was done once: `python -m lib.mini base`.

Phases (`lib/mini/base_lessons.py`): the vision tower by itself; text drills that tie a
step to its option letter, with captions; everything; everything with a small learning
rate. The loss is taken on responses only. It takes about an hour on one core; an
interrupted run goes on with the phase it was in.

What comes out is an ordinary Qwen2-VL folder: config, generation config, safetensors,
byte-level BPE with Qwen2-VL's special tokens, image and video processors and the chat
template of https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct, so that `AutoProcessor`
and `AutoModelForImageTextToText` load it and no code has to know that it is small.

Trained on captions alone, a model this small stays blind for over a thousand steps, and
states the right step for thousands more while it guesses the letter. `sight_loss` and
`binding_loss` teach both directly, and say how."""

import json
import math
import random
import time
from functools import partial
from pathlib import Path

import numpy as np

from lib import paths, records
from lib.data import prompts
from lib.mini import base_lessons, lessons, world
from lib.mini.world import DOMAINS
from lib.model import encoding, models, prefix
from lib.train import sft

# isort: split
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import trainers
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

BASE = paths.ROOT / "lib/mini/base"
SEED, BATCH, LR = 0, 16, 2e-3  # lessons in a step; peak of the learning rate
# (steps, {lesson: weight}); a batch holds one kind: text drills cost no vision pass.
ALL = {"sight": 1, "pick": 1, "told": 3, "caption": 4}
ALL |= {"shown": 1, "last": 1, "object": 1, "plan": 5}
PHASES = (
    (2500, {"sight": 1}),
    (1200, {"sight": 1, "pick": 5, "told": 3, "caption": 4}),
    (4000, ALL),
    (1500, ALL),
)
# The learning rate falls as a cosine, begun anew where plans begin:
# (first step, share of the full rate, steps until it would reach its end).
CYCLES = ((2500, 1.0, 2500), (3700, 0.75, 5500))
LESSONS = {
    "pick": base_lessons.pick_lesson,
    "told": base_lessons.told_lesson,
    "caption": base_lessons.caption_lesson,
    "shown": partial(base_lessons.clip_lesson, asks="shown step"),
    "last": partial(base_lessons.clip_lesson, asks="last step"),
    "object": partial(base_lessons.clip_lesson, asks="shown object"),
    "plan": base_lessons.plan_lesson,
}
STATED = ("pick", "told")  # text alone: they state a step, and where to look is taught

# Qwen2-VL's added tokens in the order of their ids (151643-151656 in the real one).
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
WORDS = tuple(w for d in DOMAINS.values() for w in d["objects"] + d["verbs"])
_CELL, _MARGIN = 28, 3  # pixels; an object belongs to a cell its centre (nearly) is in
_ABSENT = -3.0  # logit offset: most words are absent from most cells

LAYER = 2  # of 4: words are carried behind this many layers, compared in the next
HEAD = 0  # of 4, the one that learns where to look
# In "<think>Next is cut tomato.</think><answer>B" the tokens before ">B" are
# " cut", " tomato", ".</", "think", "><", "answer".
_STATED = (-5, -4)


def corpus() -> list[str]:
    """Text the tokenizer is trained on: every word of the world is among it. Of plans
    the question alone, so that no habit of their answers changes the tokenizer."""
    text = []
    for kind, make_lesson in LESSONS.items():
        for number in range(400):
            lesson = make_lesson(random.Random(f"corpus/{SEED}/{kind}/{number}"))
            text += [lesson.text] + [lesson.response] * (kind != "plan")
    text += [f" {word} {word}." for word in WORDS * 40]
    roles = ["system", "user", "assistant", "You are a helpful assistant."]
    return text + roles * 400


class LessonCollator(sft.ResponseCollator):
    """Model inputs of lessons, with labels: the response and its end are learned."""

    def conversation(self, item: base_lessons.Lesson) -> list[dict]:
        turn = prompts.messages(item.text, item.clip, item.still)
        return [*turn, {"role": "assistant", "content": item.response}]


def forward(model, inputs: dict[str, torch.Tensor], **asked):
    """Output of the model at the kit's positions; `loss` is of the response alone."""
    return model(**inputs, position_ids=prefix.positions(model, inputs), **asked)


def stated_loss(model, processor, inputs) -> torch.Tensor:
    """Loss on the response and `binding_loss` of lessons that state a step."""
    model.set_attn_implementation("eager")  # the one that tells its attention
    found = forward(model, inputs, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("sdpa")
    told = found.hidden_states[LAYER], found.attentions[LAYER]
    return found.loss + binding_loss(model, processor, inputs, *told)


def make(folder: Path, command: str) -> None:
    """Train into `folder`, and write how: manifest.json. FileExistsError where it holds
    a finished base, of which today's habits and schedule need not be true."""
    record = folder / "manifest.json"
    if not record.exists():
        build(folder)
        records.write_json(record, {"phases": 0, "seconds": 0, "losses": []})
    progress = records.read_json(record)
    if "model_sha256" in progress:
        raise FileExistsError(f"{folder} holds a finished base: give another --folder")
    processor = models.load_processor(folder)
    for phase in range(progress["phases"], len(PHASES)):
        models.seed_everything(SEED)
        model = models.load_model(folder).train()
        started = time.monotonic()
        progress["losses"] += train_phase(model, processor, phase)
        progress["seconds"] += round(time.monotonic() - started)
        progress["phases"] = phase + 1
        model.save_pretrained(folder)
        records.write_json(record, progress)
    how = {
        "command": command,
        "schedule": PHASES,
        **{"batch": BATCH, "lr": LR, "seed": SEED},
        "habits": base_lessons.HABITS,
        "threads": torch.get_num_threads(),
        "model_sha256": records.sha256(folder / "model.safetensors"),
        "environment": records.environment(),
    }
    records.write_json(record, progress | how)


def train_phase(model, processor, phase: int) -> list[dict]:
    """Train one phase in place; returns the mean losses per 100 steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01
    )
    first, (steps, weights) = sum(steps for steps, _ in PHASES[:phase]), PHASES[phase]
    loader = torch.utils.data.DataLoader(
        range(first, first + steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
        collate_fn=partial(make_batch, processor=processor, weights=weights),
    )
    losses, window = [], {}
    bar = tqdm(loader, f"phase {phase + 1} of {len(PHASES)}")
    for step, (kind, inputs) in enumerate(bar, first):
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, first)
        if kind == "sight":
            loss = sight_loss(model, processor, inputs)
        elif kind in STATED:
            loss = stated_loss(model, processor, inputs)
        else:
            loss = forward(model, inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        window.setdefault(kind, []).append(loss.item())
        if (step + 1) % 100 == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in sorted(window.items())}
            losses.append({"step": step + 1, **means})
            window = {}
    return losses


def make_batch(step: int, processor, weights: dict) -> tuple[str, dict]:
    """(kind, inputs) of a step: a pure function of its number."""
    torch.set_num_threads(1)
    rng = random.Random(f"lessons/{SEED}/{step}")
    (kind,) = rng.choices(list(weights), list(weights.values()))
    if kind == "sight":
        return kind, sight_batch(processor, rng)
    collate = LessonCollator(processor, sampling=None)
    return kind, collate([LESSONS[kind](rng) for _ in range(BATCH)])


def schedule(step: int, first: int) -> float:
    """Factor on the learning rate: a warm-up in each phase, cosines as in CYCLES."""
    factor = 1.0
    for start, height, length in CYCLES:
        if step >= start:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - start) / length))
            factor = height * (0.05 + 0.95 * cosine)
    return min(1.0, (step - first + 1) / 100) * factor


# --- an untrained checkpoint ----------------------------------------------------------


def build_tokenizer(vocabulary: int = 900) -> Qwen2Tokenizer:
    """Train Qwen2's byte-level BPE on `corpus`; merges stop where pairs run out."""
    bpe, qwens = tokenizers.Tokenizer(tokenizers.models.BPE()), Qwen2Tokenizer()
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(bpe, part, getattr(qwens.backend_tokenizer, part))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def build_model(tokenizer) -> Qwen2VLForConditionalGeneration:
    """A freshly initialised Qwen2-VL of 1.3 M parameters, tied embeddings as in 2B."""
    config = Qwen2VLConfig.from_pretrained(BASE)
    for mark in ("image_pad", "video_pad", "vision_start", "vision_end"):
        number = tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        setattr(config, f"{mark.removesuffix('_pad')}_token_id", number)
    text, given = config.text_config, GenerationConfig.from_pretrained(BASE)
    text.vocab_size = len(tokenizer)
    for own in (text, given):
        own.bos_token_id = own.pad_token_id = tokenizer.pad_token_id
        own.eos_token_id = tokenizer.eos_token_id
    given.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    torch.manual_seed(SEED)
    model = Qwen2VLForConditionalGeneration(config)
    # The default std of 0.02 is meant for width 3584. At width 96-128 it leaves the
    # vision tower's signal so small that nothing downstream learns to look.
    for name, weight in model.named_parameters():
        if weight.dim() >= 2 and "embed_tokens" not in name:
            fan_in = weight[0].numel()
            torch.nn.init.normal_(weight, std=1 / math.sqrt(fan_in))
    model.generation_config = given
    return model


def build(folder: Path) -> None:
    """Write an untrained checkpoint folder: shape, pictures and template as in BASE."""
    processor = models.load_processor(BASE)
    processor.tokenizer = build_tokenizer()
    model = build_model(processor.tokenizer)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


# --- vision first ---------------------------------------------------------------------


def word_grid(episode: world.Episode, frames: list[int]) -> np.ndarray:
    """Which words belong to each cell of each frame: float32 [frames, 2, 4, words]."""
    rows, columns = world.HEIGHT // _CELL, world.WIDTH // _CELL
    grid = np.zeros((len(frames), rows, columns, len(WORDS)), np.float32)
    verbs = DOMAINS[episode.domain]["verbs"]
    for i, frame in enumerate(frames):
        state = world.effects_at(episode, frame)
        for item in (0, 1):
            x, y = world.place(episode, state, item, frame)
            said = [episode.name(item)]
            said += [verbs[effect] for effect in np.flatnonzero(state[item])]
            words = [WORDS.index(word) for word in said]
            for row, column in np.ndindex(rows, columns):
                if _inside(x, column) and _inside(y, row):
                    grid[i, row, column, words] = 1
    return grid


def _inside(position: int, cell: int) -> bool:
    return cell * _CELL - _MARGIN <= position < (cell + 1) * _CELL + _MARGIN


def sight_batch(processor, rng: random.Random) -> dict[str, torch.Tensor]:
    """Clips as model inputs, with `words` [visual tokens, 40] to speak."""
    conversations, words = [], []
    for _ in range(BATCH):
        episode = lessons.any_episode(rng)
        frames = base_lessons.sampled(rng, episode)
        clip = base_lessons.clip_of(rng, episode, frames)
        conversations.append(prompts.messages("", clip, None))
        shown = frames[1::2]  # the later frame of every pair
        words.append(word_grid(episode, shown).reshape(-1, len(WORDS)))
    inputs = encoding.encode(processor, conversations)
    return inputs | {"words": torch.tensor(np.concatenate(words))}


def sight_loss(model, processor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Binary cross-entropy of the words each visual token speaks. As CLIP does for
    Qwen2-VL's tower, each merged visual token (28 x 28 pixels, two frames) is taught by
    itself: read through the language model's own output head it must name the object
    and the lasting effects in its cell."""
    seen = model.model.get_video_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"]
    ).pooler_output
    hidden = model.model.language_model.norm(torch.cat(tuple(seen)))
    ids = [processor.tokenizer.encode(f" {word}") for word in WORDS]
    logits = hidden @ model.get_output_embeddings().weight[torch.tensor(ids)[:, 0]].T
    loss, weight = F.binary_cross_entropy_with_logits, torch.tensor(4.0)
    return loss(logits + _ABSENT, inputs["words"], pos_weight=weight)


# --- letters second -------------------------------------------------------------------


def binding_loss(model, processor, inputs, hidden, attention) -> torch.Tensor:
    """How far the parts of the way to a letter are from being in place: log-losses.

    To turn a stated step into its letter a model has to find the option that says the
    same two words and to read the letter in front of it. So, read through the output
    head behind LAYER, the last word of an option speaks its letter and verb, and the
    place that is about to answer the verb and noun it has just stated; in the next
    layer one head of that place looks at the option's last word. `inputs` holds
    input_ids and labels [B, L]; `hidden` [B, L, width] is the output of LAYER,
    `attention` [B, heads, L, L] that of the next."""
    encode = processor.tokenizer.encode
    ids, labels = inputs["input_ids"], inputs["labels"]
    # In a response the letter is one token with the bracket before it: "<answer>B".
    said = torch.tensor([encode(f">{letter}")[0] for letter in prompts.LETTERS])
    listed = torch.tensor([encode(letter)[0] for letter in prompts.LETTERS])
    # "A", ".", " cut", " tomato" among the options of the prompt
    rows, at = torch.isin(ids[:, :-3], listed).nonzero(as_tuple=True)
    dotted = (ids[rows, at + 1] == encode(".")[0]) & (labels[rows, at] == -100)
    rows, at = rows[dotted], at[dotted]
    letters = said[(ids[rows, at][:, None] == listed).int().argmax(1)]
    verbs, nouns = ids[rows, at + 2], ids[rows, at + 3]
    options = _speaks(model, hidden, rows, at + 3, letters, verbs)
    own, here = torch.isin(labels[:, 1:], said).nonzero(as_tuple=True)
    verb, noun = (ids[own, here + offset] for offset in _STATED)
    stated = _speaks(model, hidden, own, here, verb, noun)
    same = (own[:, None] == rows) & (verb[:, None] == verbs) & (noun[:, None] == nouns)
    target = (at + 3)[same.int().argmax(1)]
    looks = -(attention[own, HEAD, here, target] + 1e-6).log().mean()
    return options + stated + looks


def _speaks(model, hidden, rows, at, first, second) -> torch.Tensor:
    """Mean over places of the log-loss of the two words each should speak."""
    normed = model.model.language_model.norm(hidden[rows, at])
    logps = model.get_output_embeddings()(normed).log_softmax(-1)
    found = [logps.gather(1, words[:, None]) for words in (first, second)]
    return -torch.cat(found).mean()
