"""A training as it goes: a row a step, a bar, and an end where it cannot go well.

Callbacks of the Trainer of transformers 5.23, used by SFT and RL alike."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from lib import records
from lib.model import models, shards  # first: models prepares transformers

# isort: split
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback

SKIPS = 16  # halvings of torch's first scale, 2**16


def cut_back(path: Path, step: int) -> None:
    """Drop the rows of a JSON lines file that belong to later steps than `step`."""
    rows = records.repair_jsonl(path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        records.write_jsonl(path, kept)


class Progress(TrainerCallback):
    """Appends a row {"step", ...numbers} to a JSON lines file for every log, and draws
    a bar that shows some of them. `names` maps the Trainer's keys to ours and leaves
    out every other; `shown` maps ours to words. Steps behind the checkpoint that
    training goes on from leave this file, and those `beside` it."""

    begun, bar = False, None  # on other processes there is no bar

    def __init__(self, path: Path, names: Mapping, label="", shown=(), beside=()):
        self.path, self.names, self.beside = path, names, beside
        self.label, self.shown = label, dict(shown)

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, start = True, state.global_step
        if state.is_world_process_zero:
            for path in (self.path, *self.beside):
                cut_back(path, start)
            self.bar = tqdm(total=state.max_steps, initial=start, desc=self.label)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write a row, unless it is the Trainer's closing summary."""
        if self.bar is None or "train_runtime" in logs:
            return
        row = {ours: logs[key] for key, ours in self.names.items() if key in logs}
        records.append_jsonl(self.path, [{"step": state.global_step, **row}])
        shown = {own: row[key] for key, own in self.shown.items() if key in row}
        if shown:
            self.bar.set_postfix({word: f"{own:.3g}" for word, own in shown.items()})

    def on_train_end(self, *given, **kwargs):
        """Close the bar, so that the next one is drawn in its own place."""
        if self.bar is not None:
            self.bar.close()


class StopDiverged(TrainerCallback):
    """FloatingPointError for a loss, gradient or weight that is NaN or infinite, and
    for gradients that are all 0 in a step of which the log tells `something_to_learn`.
    In float16 a gradient that overflows is none: the step is left out and the loss
    scaled less, down to 1 in SKIPS steps. The step is in the log by then; a checkpoint
    of it is never marked as complete, and nothing is published."""

    def __init__(self, settings, something_to_learn: Callable[[Mapping], bool]):
        self.advice = diverged(settings)
        self.something_to_learn = something_to_learn
        self.may_skip, self.skipped = settings.dtype == "float16", 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at loss and gradients."""
        step = f"step {state.global_step}"
        fine = math.isfinite(logs.get("grad_norm", 0.0))
        self.skipped = 0 if fine else self.skipped + 1
        skips = self.may_skip and self.skipped <= SKIPS
        for key in ("loss", *(() if skips else ("grad_norm",))):
            if not math.isfinite(logs.get(key, 0.0)):
                raise FloatingPointError(f"{step}: {key} is {logs[key]}; {self.advice}")
        if logs.get("grad_norm") == 0 and self.something_to_learn(logs):
            raise FloatingPointError(
                f"{step}: every gradient is exactly 0, so nothing is learned: look at "
                "lora_alpha, and at what was changed in the model or its loss; or "
                f"{self.advice}"
            )

    def on_save(self, args, state, control, model=None, **kwargs):
        trained = ((n, w) for n, w in model.named_parameters() if w.requires_grad)
        bad = models.not_finite((n, shards.own_part(w)) for n, w in trained)
        for name in filter(None, gather_object([bad])):
            what = f"step {state.global_step}: it left NaN or infinity in {name}"
            raise FloatingPointError(f"{what}; {self.advice}")

    on_train_end = on_save  # nobody saw the weights of the last step


def diverged(settings) -> str:
    """What to look at when numbers are no longer finite."""
    return (
        f"training has diverged: give a lower lr (now {settings.lr:g}), or dtype = "
        f"float32 (now {settings.dtype}). Nothing was published"
    )
