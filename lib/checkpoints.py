"""Checkpoints that survive a kill, and the records that go with them.

Used by SFT and GRPO alike, on the Trainer of transformers 5.23. A run that is killed at
any moment and started again ends with the files of an undisturbed run, because
* a checkpoint counts only once `complete.json` lies in it, and that is written last;
* the logs are cut back to the step of the checkpoint that training goes on from;
* the finished adapter appears by one rename, with the settings that made it inside.

Example: killed at step 27 with save_every 10 while checkpoint-30 was not yet begun,
`last_complete` returns checkpoint-20, and LogRecord drops the rows of steps 21 to 27
before step 21 is computed again.
"""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import models as models  # first: it prepares what transformers imports
from lib import records

# isort: split
from accelerate import PartialState
from accelerate.utils import is_peft_model
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

# TRL 1.16 and PEFT 0.21 still read names that transformers 5 calls deprecated.
warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)

MARKER = "complete.json"
WALL_CLOCK = {"step_time": "seconds_step"}


class MarkComplete(TrainerCallback):
    """Writes complete.json into a checkpoint when everything else is in it."""

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each rank saves its own random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            records.write_json(folder / MARKER, {"step": state.global_step})


def step_of(checkpoint: Path) -> int:
    """20 for .../checkpoint-20."""
    number = checkpoint.name.removeprefix("checkpoint-")
    if not number.isdecimal():
        raise ValueError(f"{checkpoint} is not the checkpoint of a step: move it away")
    return int(number)


def last_complete(folder: str | Path) -> Path | None:
    """The newest complete checkpoint below `folder`, None without one.

    Checkpoints without their marker were being written when the run was killed; they
    are removed, and a line says so.
    """
    found = sorted(Path(folder).glob("checkpoint-*"), key=step_of)
    complete = [checkpoint for checkpoint in found if (checkpoint / MARKER).exists()]
    for checkpoint in found:
        if checkpoint not in complete and PartialState().is_main_process:
            print(f"removing {checkpoint.name}: a kill left it half written")
            shutil.rmtree(checkpoint)
    return complete[-1] if complete else None


def train(trainer: Trainer) -> None:
    """Train to the last step, from the last complete checkpoint where there is one.

    A run killed behind its last step only loads that checkpoint: the Trainer itself
    would do one step too many where the steps do not fill an epoch.
    """
    last = last_complete(trainer.args.output_dir)
    if last is not None and step_of(last) == trainer.args.max_steps:
        trainer._load_from_checkpoint(str(last))
    else:
        trainer.train(resume_from_checkpoint=last and str(last))


def cut_back(path: str | Path, step: int) -> None:
    """Drop the rows of a JSON lines file that belong to later steps than `step`."""
    rows = records.repair_jsonl(path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        records.write_jsonl(path, kept)


class LogRecord(TrainerCallback):
    """Appends one row {"step", ...numbers} to a JSON lines file for every log.

    `names` maps the Trainer's keys to ours and leaves out every other key; without it
    all keys are kept under their own names. Wall-clock numbers are kept only under keys
    that start with "seconds". The Trainer's closing summary is no step, and no row.
    """

    def __init__(self, path: str | Path, names: Mapping[str, str] | None = None):
        self.path = Path(path)
        self.names = names

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            cut_back(self.path, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        names = self.names or {key: WALL_CLOCK.get(key, key) for key in logs}
        row = {ours: logs[key] for key, ours in names.items() if key in logs}
        records.append_jsonl(self.path, [{"step": state.global_step, **row}])


class StepBar(TrainerCallback):
    """A progress bar over steps with the time left and the numbers named in `shown`."""

    def __init__(self, label: str, shown: Sequence[str] = ()):
        self.label, self.shown, self.bar = label, tuple(shown), None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            start = state.global_step
            self.bar = tqdm(total=state.max_steps, initial=start, desc=self.label)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {key: f"{logs[key]:.3g}" for key in self.shown if key in logs}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def show_steps(trainer: Trainer, label: str, shown: Sequence[str] = ()) -> None:
    """Replace the Trainer's printed logs (left on by disable_tqdm) by a StepBar."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepBar(label, shown))


class ExactResume:
    """Mixin, left of a Trainer: resuming a full fine-tune restores every weight.

    transformers 5.23 writes checkpoints of Qwen2-VL under the names of version 4
    (`visual.*`), and the resume of its Trainer loads them into a model with the names
    of version 5 (`model.visual.*`) with strict=False: all but lm_head stays as it was.
    `from_pretrained` converts the names. Adapters need no conversion.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.model if model is None else model
        weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        folder = Path(resume_from_checkpoint)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        whole = any((folder / name).is_file() for name in weights)
        if is_peft_model(model) or sharded or not whole:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        dtype = next(model.parameters()).dtype
        saved = type(model).from_pretrained(folder, dtype=dtype)
        model.load_state_dict(saved.state_dict(), strict=True)


def same_settings(path: str | Path, settings: Mapping) -> bool:
    """Whether `path` exists and records the same settings (plain JSON values).

    Raises ValueError naming every differing setting: what was made with other settings
    must not be mixed with, or taken for, what these settings would make.
    """
    path = Path(path)
    if not path.exists():
        return False
    found = records.read_json(path)["settings"]
    missing = object()
    differing = [
        f"{key} ({found.get(key)!r} there, {settings.get(key)!r} now)"
        for key in sorted({*found, *settings})
        if found.get(key, missing) != settings.get(key, missing)
    ]
    if differing:
        raise ValueError(
            f"{path.parent} was made with other settings: {', '.join(differing)}. "
            "Use another run_name, or delete that folder to train again"
        )
    return True


def write_settings(path: str | Path, settings: Mapping) -> None:
    """Record settings and their hash where `same_settings` looks for them."""
    content = {"hash": records.settings_hash(settings), "settings": dict(settings)}
    records.write_json(path, content)


def publish(model, folder: str | Path, record: str, settings: Mapping) -> Path:
    """Save the trained weights and `record` (a file name) to `folder`, whole or not.

    The folder appears by one rename; a PEFT model leaves its adapter, any other model
    all its weights.
    """
    folder = Path(folder)
    if PartialState().is_main_process:
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with records.written(folder):
            model.save_pretrained(unfinished)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_settings(unfinished / record, settings)
        os.replace(unfinished, folder)
    PartialState().wait_for_everyone()
    return folder
