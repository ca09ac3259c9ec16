"""Watch a training from outside: TensorBoard, Weights & Biases, trackio.

    KIT_REPORT_TO=wandb,trackio make reproduce         # or none
    tensorboard --logdir outputs/mini/tensorboard

Unset, it is TensorBoard where that is installed. Everything the Trainer logs is there,
of RL rewards, KL, entropy, lengths and dead groups (frac_reward_zero_std), with the
texts of the watched groups. A resumed training goes on in its own curves."""

import os
import re
from pathlib import Path

from lib.model import models  # noqa: F401  (must precede transformers)

# isort: split
from transformers import TrainerCallback, integrations
from transformers.integrations import TensorBoardCallback, WandbCallback


class Board(TensorBoardCallback):
    """Event files in `folder`; resuming takes back the points behind the checkpoint."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            where = {"log_dir": str(self.folder), "purge_step": state.global_step + 1}
            self.tb_writer = self._SummaryWriter(**where)


class Wandb(WandbCallback):
    """A run of W&B for each training, found again by its name."""

    def setup(self, args, state, model, **kwargs):
        if state.is_world_process_zero:
            self._wandb.finish()  # one that an interrupt has left open
            project = os.environ.get("WANDB_PROJECT", args.project)
            named = {"name": args.run_name, "id": args.run_name, "resume": "allow"}
            self._wandb.init(project=project, **named)
        super().setup(args, state, model, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """End the run, so that the next training has its own."""
        super().on_train_end(args, state, control, **kwargs)
        self._wandb.finish()


OTHERS = {"wandb": Wandb, "trackio": integrations.TrackioCallback}


def asked_for() -> list[str]:
    """The names in $KIT_REPORT_TO; ValueError for an unknown one."""
    default = "tensorboard" if integrations.is_tensorboard_available() else "none"
    names = re.split(r"[\s,]+", os.environ.get("KIT_REPORT_TO") or default)
    known = ("none", "tensorboard", *OTHERS)
    if unknown := {*names} - {*known}:
        raise ValueError(
            f"KIT_REPORT_TO names {', '.join(sorted(unknown))}: give "
            f"{', '.join(known)}, or several with commas"
        )
    return [name for name in names if name != "none"]


def callbacks(board: Path) -> list[TrainerCallback]:
    """One for each that `asked_for` names; RuntimeError if it is not installed."""
    return [OTHERS[own]() if own in OTHERS else Board(board) for own in asked_for()]


def tell(trainer, texts: dict[str, str]) -> None:
    """Show texts at the step that a trainer is at."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, (TensorBoardCallback, *OTHERS.values())):
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=texts)
