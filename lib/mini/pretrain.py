"""Make the mini base checkpoint: `python -m lib.mini.pretrain`.

Phases: the vision tower by itself (`lib.mini.sight`); text drills that tie a step to
its option letter, with captions; simple questions; everything, with the mixed-quality
planning questions of `lib.mini.lessons`; drills until the letters are solid; everything
again. The loss is taken on responses only. Writes the checkpoint folder with its
manifest (command, seconds, losses, hash), in about 40 minutes on two idle cores. Each
phase starts a fresh optimizer, so an interrupted run goes on with the phase it was in.
"""

import argparse
import hashlib
import math
import random
import sys
import time
from pathlib import Path

from lib import models, paths, prompts, records
from lib.mini import binding, checkpoint, lessons, sight, world
from lib.model import encoding

import torch  # isort: skip
import torch.nn.functional as F

# (steps, {lesson: weight}); a batch holds one kind of lesson, so that text drills cost
# no vision pass.
PHASES = (
    (1000, {"sight": 1}),
    (900, {"sight": 1, "binding": 4, "told": 2, "caption": 4}),
    (900, {"sight": 1, "binding": 1, "told": 2, "caption": 4, "shown": 2, "object": 1}),
    (1500, {"binding": 1, "told": 2, "caption": 3, "shown": 3, "object": 1, "plan": 6}),
    (1200, {"drill": 6, "told": 2, "caption": 1, "shown": 1}),
    (1500, {"drill": 8, "told": 2, "caption": 1}),
    (1000, {"drill": 2, "told": 2, "caption": 2, "shown": 3, "object": 1, "plan": 6}),
    (900, {"pick": 8, "told": 1, "caption": 1}),
    (500, {"find": 8, "told": 1, "caption": 1}),
    (500, {"find": 1, "told": 2, "caption": 1, "shown": 2, "object": 1, "plan": 5}),
)
# The learning rate falls as a cosine, begun anew where drills begin:
# (first step, share of the full rate, steps until it would reach its end).
CYCLES = (
    (1000, 1.0, 3300),
    (4300, 0.75, 2000),
    (5500, 0.75, 2500),
    (8000, 0.6, 1500),
    (8900, 0.6, 1100),
)
LETTER_WEIGHT = 5.0  # of the letter in a drill; the words around it are soon learned
STEPS = sum(steps for steps, _ in PHASES)
LESSONS = {
    "binding": lessons.binding_lesson,
    "drill": lessons.drill_lesson,
    "pick": lessons.pick_lesson,
    "find": lessons.pick_lesson,  # the same, with `lib.mini.binding`'s attention
    "told": lessons.told_lesson,
    "caption": lessons.caption_lesson,
    "shown": lessons.shown_lesson,
    "object": lessons.object_lesson,
    "plan": lessons.plan_lesson,
}


def corpus(seed: int) -> list[str]:
    """Text the tokenizer is trained on: every word of the world is among it."""
    rng = random.Random(f"corpus/{seed}")
    text = []
    for kind in ("binding", "told", "caption", "shown", "object", "plan"):
        make = LESSONS[kind]
        for _ in range(400):
            lesson = make(rng)
            text += [lesson.text, lesson.response]
    words = [w for d in world.DOMAINS.values() for w in d["verbs"] + d["objects"]]
    text += [f" {word} {word}." for word in words * 40]
    roles = ["system", "user", "assistant", "You are a helpful assistant."]
    return text + roles * 400


def collate(processor, batch: list[lessons.Lesson]) -> dict[str, torch.Tensor]:
    """Model inputs with labels: the response and its end are learned, no more."""
    conversations = []
    for lesson in batch:
        turn = prompts.messages(lesson.text, lesson.clip, lesson.still)
        turn.append({"role": "assistant", "content": lesson.response})
        conversations.append(turn)
    inputs = encoding.encode(processor, conversations, padding_side="right")
    ids, labels = inputs["input_ids"], torch.full_like(inputs["input_ids"], -100)
    start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        # <|im_start|> assistant \n response <|im_end|> \n
        first = int((ids[row] == start).nonzero()[-1]) + 3
        labels[row, first : length - 1] = ids[row, first : length - 1]
    return inputs | {"labels": labels}


def response_loss(model, inputs: dict[str, torch.Tensor], letters=None) -> torch.Tensor:
    """Mean cross-entropy over response tokens; logits at those positions only.

    `letters` (token ids) weigh LETTER_WEIGHT times as much where they are given.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")[:, 1:]
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    chosen = labels != -100
    logits, wanted = model.lm_head(hidden[chosen]), labels[chosen]
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    if letters is None:
        return losses.mean()
    weights = torch.where(torch.isin(wanted, letters), LETTER_WEIGHT, 1.0)
    return (losses * weights).sum() / weights.sum()


def pick_loss(model, processor, inputs, letters, look: bool) -> torch.Tensor:
    """`response_loss` with drilled letters, and what `lib.mini.binding` adds."""
    layers, kept = model.model.language_model.layers, {}
    below, above = layers[binding.LAYER - 1], layers[binding.LAYER].self_attn
    hooks = [below.register_forward_hook(lambda _, __, out: kept.update(hidden=out))]
    if look:
        model.set_attn_implementation("eager")  # the one that tells its attention
        tell = lambda _, __, out: kept.update(attention=out[1])  # noqa: E731
        hooks.append(above.register_forward_hook(tell))
    loss = response_loss(model, inputs, letters)
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    return loss + binding.binding_loss(model, processor, inputs, **kept)


def pretrain(folder: Path, batch: int, lr: float, seed: int) -> dict:
    """Train into `folder`; returns {"phases", "seconds", "losses"} of the whole run."""
    record = folder / "manifest.json"
    if not record.exists():
        checkpoint.build(folder, corpus(seed), seed)
        records.write_json(record, {"phases": 0, "seconds": 0, "losses": []})
    progress = records.read_json(record)
    processor = models.load_processor(folder)
    for phase in range(progress["phases"], len(PHASES)):
        models.seed_everything(seed)
        model = models.load_model(folder).train()
        started = time.monotonic()
        progress["losses"] += train_phase(model, processor, phase, batch, lr, seed)
        progress["seconds"] += round(time.monotonic() - started)
        progress["phases"] = phase + 1
        model.save_pretrained(folder)
        records.write_json(record, progress)
    return progress


def train_phase(model, processor, phase: int, batch: int, lr: float, seed: int):
    """Train one phase in place; returns the mean losses per 100 steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    first = sum(steps for steps, _ in PHASES[:phase])
    loader = torch.utils.data.DataLoader(
        range(first, first + PHASES[phase][0]),
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
        collate_fn=_Batches(processor, batch, seed, PHASES[phase][1]),
    )
    # In a response the letter is one token with the bracket before it: "<answer>B".
    letters = torch.tensor([processor.tokenizer.encode(f">{a}")[0] for a in "ABCD"])
    losses, window, started = [], {}, time.monotonic()
    for step, (kind, inputs) in enumerate(loader, first):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, first)
        if kind == "sight":
            loss = sight.loss(model, processor, inputs)
        elif kind in ("pick", "find"):
            loss = pick_loss(model, processor, inputs, letters, look=kind == "find")
        else:
            loss = response_loss(model, inputs, letters if kind == "drill" else None)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        window.setdefault(kind, []).append(loss.item())
        if (step + 1) % 100 == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in sorted(window.items())}
            losses.append({"step": step + 1, **means})
            seconds = time.monotonic() - started
            print(f"{step + 1}/{STEPS} {seconds:.0f} s {means}", flush=True)
            window = {}
    return losses


class _Batches:
    """Batch number -> (kind, inputs): a pure function of the seed and the number."""

    def __init__(self, processor, batch: int, seed: int, weights: dict[str, float]):
        self.processor, self.batch, self.seed = processor, batch, seed
        self.weights = weights

    def __call__(self, step: int):
        torch.set_num_threads(1)
        rng = random.Random(f"lessons/{self.seed}/{step}")
        kind = rng.choices(list(self.weights), list(self.weights.values()))[0]
        if kind == "sight":
            return kind, sight.batch(self.processor, rng, self.batch)
        made = [LESSONS[kind](rng) for _ in range(self.batch)]
        return kind, collate(self.processor, made)


def schedule(step: int, first: int) -> float:
    """Factor on the learning rate: a warm-up in each phase, cosines as in CYCLES."""
    factor = 1.0
    for start, height, length in CYCLES:
        if step >= start:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - start) / length))
            factor = height * (0.05 + 0.95 * cosine)
    return min(1.0, (step - first + 1) / 100) * factor


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=paths.ROOT / "lib/mini/base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    progress = pretrain(arguments.folder, arguments.batch, arguments.lr, arguments.seed)
    weights = arguments.folder / "model.safetensors"
    manifest = progress | {
        "command": " ".join(["python -m lib.mini.pretrain", *sys.argv[1:]]),
        "schedule": PHASES,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "environment": records.environment(),
    }
    records.write_json(arguments.folder / "manifest.json", manifest)


if __name__ == "__main__":
    main()
