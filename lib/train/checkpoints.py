"""Checkpoints that survive a kill, on the Trainer of transformers 5.23; for SFT and RL.

A run that is killed at any moment and started again ends with the files of an
undisturbed one: the order of its data is made before it starts, a checkpoint counts
only once `complete.json` lies in it, written last, logs are cut back to the step that
training goes on from, and the finished adapter appears by one rename."""

import fnmatch
import hashlib
import math
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from lib import chain, records, run_files
from lib.model import models, shards
from lib.train import monitor, progress

# isort: split
from accelerate import PartialState
from accelerate.utils import gather_object, is_peft_model
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

# Its successor would still send the buffers once; see ddp_broadcast_buffers in task.py.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)

MARKER, STATE, SCHEDULER = "complete.json", "trainer_state.json", "scheduler.pt"
SHARES = ("_share", "label_noise", "top_p")
EXTRA = "extra_state_{}.safetensors"  # what only a subclass of ExactResume knows
UNREADABLE = (RuntimeError, ValueError, OSError, LookupError, EOFError, SafetensorError)


def processes() -> int:
    """How many processes train together, each with a device of its own."""
    # Without a GPU, accelerate sees other processes only if told that it is on CPU.
    return PartialState(cpu=not torch.cuda.is_available()).num_processes


def training_order(items: Sequence, count: int, seed: int) -> list:
    """`count` items: shuffled epochs, one after the other, so that every step is full
    and any number of processes shares the same steps."""
    if not items:
        raise ValueError("there is nothing to train on")
    epochs = range(-(-count // len(items)))
    draws = (random.Random(f"{seed}/epoch/{number}") for number in epochs)
    return [item for own in draws for item in own.sample(items, len(items))][:count]


def at_least(settings, ones: Sequence[str]) -> None:
    """ValueError for a number of settings below 0, or below 1 if it is among `ones`,
    and for a share above 1."""
    for name, value in vars(settings).items():
        low = 1 if name in ones else 0
        if isinstance(value, int | float) and not low <= value < math.inf:
            raise ValueError(f"{name} = {value}: at least {low} is needed, and finite")
        if name.endswith(SHARES) and value > 1:
            raise ValueError(f"{name} = {value}: a share is 1 at most")


def one_of(settings, choices: Mapping[str, Sequence[str]]) -> None:
    """ValueError for a setting that is none of its choices."""
    for name, values in choices.items():
        if (own := getattr(settings, name)) not in values:
            raise ValueError(f"{name} = {own!r}: it must be one of {values}")


def facts(task, name: str, items: Sequence[bytes]) -> dict:
    """What decides the weights, as plain JSON values: settings, model, and `items`."""
    digest = hashlib.sha256(b"".join(items)).hexdigest()[:12]
    return {
        **asdict(task.settings),
        "sampling": asdict(task.sampling),
        "model": models.identity(task.model),
        name: f"{len(items)} with sha256 {digest}",
    }


def common_arguments(settings, folder: Path) -> dict:
    """What SFT and GRPO ask of the Trainer alike, and what the kit never varies."""
    has_gpu, run = torch.cuda.is_available(), folder.parent.parent.name
    return {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": math.ceil(settings.warmup_share * settings.steps),
        "seed": settings.seed,
        "save_steps": settings.save_every,
        "save_total_limit": 2,  # the newest may be half written when the run is killed
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log NaN as 0
        "report_to": "none",  # monitor.callbacks does
        "project": "seed-bench-r1",
        # The same when a training goes on; other settings make another one.
        "run_name": f"{run}-{folder.name}-{records.settings_hash(vars(settings))}",
        "disable_tqdm": True,
        "use_cpu": not has_gpu,
        "bf16": settings.dtype == "bfloat16",
        "fp16": settings.dtype == "float16",
        "dataloader_pin_memory": has_gpu,
        "ddp_find_unused_parameters": False,  # prefix.see_once: all are used
    }


def trainer_parts(task, label, arguments, log, learns: Callable) -> dict:
    """What every trainer is made of; `learns` as StopDiverged takes it. `arguments`
    must be there before: ZeRO-3 splits the model as it is loaded."""
    settings = task.settings
    models.seed_everything(settings.seed)
    stop = progress.StopDiverged(settings, learns)
    watchers = monitor.callbacks(Path(task.run) / "tensorboard" / label)
    return {
        "model": shards.load_trainable(task.model, settings, arguments),
        "args": arguments,
        "processing_class": models.load_processor(task.model),
        "peft_config": models.lora_config(settings.lora_rank, settings.lora_alpha),
        "callbacks": [log, stop, MarkComplete(), shards.CheckShards(), *watchers],
    }


def finished(task, label: str, record: str, make: Callable[..., Trainer]) -> Path:
    """run/adapters/<label>, as the trainer that `make` gives for a task leaves it. One
    of the same facts (in its file `record`) is returned at once, an unfinished one goes
    on from run/checkpoints/<label>. ValueError names the difference to other facts,
    run_files.Busy who else trains it; FileExistsError: no training left it."""
    run, settings = Path(task.run), task.facts()
    folder, work = run / "adapters" / label, run / "checkpoints" / label
    if folder.exists() and any(folder.iterdir()) and not run_files.is_trained(folder):
        why = "was not made by a training of the kit: move it away"
        raise FileExistsError(f"{folder} {why}")
    processes()
    first = PartialState().is_main_process
    # Not beside the folder: adapters/ is there once there is one.
    with run_files.one_writer(run / label, "trained") if first else nullcontext():
        if not same_settings(folder / record, settings):
            if not same_settings(work / record, settings):
                write_settings(work / record, settings)
            trainer = make(task)
            train(trainer)
            publish_trained(trainer, folder, record, settings)
        if first:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def train(trainer: Trainer) -> None:
    """Train on from the last complete checkpoint; ValueError if it cannot be loaded."""
    last, callbacks = last_complete(trainer.args.output_dir), trainer.callback_handler
    if last is not None:
        check_complete(last, trainer.args)
    trainer.remove_callback(PrinterCallback)  # left on by disable_tqdm
    (log,) = (c for c in callbacks.callbacks if isinstance(c, progress.Progress))
    safe = shards.weights_only(last, trainer.args) if last else nullcontext()
    try:
        with safe:
            trainer.train(resume_from_checkpoint=last and str(last))
    except (*UNREADABLE, CheckpointException) as error:
        full = isinstance(error, torch.OutOfMemoryError)
        if last is None or log.begun or full or str(last) in str(error):
            raise
        why = f"{type(error).__name__}: {error!s:.300}"
        raise ValueError(f"{last} cannot be loaded ({why}). {shards.DELETE}") from error
    finally:  # an interrupt never gets there, and its traceback keeps the bar
        log.on_train_end()


class ExactResume:
    """Mixin, left of a Trainer: resuming restores all that a training goes on from, and
    float16 trains float32 weights with a scaled loss, on a CPU too.

    transformers 5.23 writes checkpoints of Qwen2-VL under the names of version 4
    (`visual.*`), and its Trainer resumes with strict=False under those of version 5
    (`model.visual.*`): all but lm_head stays as it was. `from_pretrained` converts.
    Of an adapter on a quantized model it makes other parameters, in float32. Split
    weights have other files."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        if not self.args.fp16:
            return
        for weight in self.model.parameters():
            if weight.requires_grad:  # gradients are unscaled in float32
                weight.data = weight.data.float()
        if self.accelerator.device.type == "cpu":  # accelerate scales on GPUs alone
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler("cpu")

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Tensors that a subclass must find again beside weights and optimizer; of
        split weights each process has its own."""
        return {}

    def _extra_file(self, checkpoint: str | Path) -> Path:
        own = self.args.process_index if shards.asked_for(self.args) else 0
        return Path(checkpoint) / EXTRA.format(own)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        own = self.extra_state()
        if checkpoint is not None and own:
            saved = load_file(self._extra_file(checkpoint))
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.model if model is None else model
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_peft_model(model):
            saved = load_file(Path(resume_from_checkpoint) / models.ADAPTER_WEIGHTS)
            if odd := saved.keys() ^ get_peft_model_state_dict(model).keys():
                told = f"{len(odd)} tensors, such as {min(odd)}"
                raise ValueError(f"{told}, are in it or in the adapter, not in both")
            return set_peft_model_state_dict(model, saved)
        where = (type(model), resume_from_checkpoint)
        saved = models.load_whole(*where, dtype=model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)

    def _save_checkpoint(self, model, trial):
        # A full disk shows as one error here and as another in each library below.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            writes = self.args.should_save or shards.asked_for(self.args)
            if writes and (state := self.extra_state()):
                save_file(state, self._extra_file(folder))
        except Exception as error:
            free = shutil.disk_usage(self.args.output_dir).free / 2**30
            raise OSError(
                f"{folder} could not be written: {error}. {free:.1f} GiB are free on "
                "its disk: if that is too little, make room. Start again: training goes"
                " on from the last complete checkpoint"
            ) from error

    def _prepare_for_training(self, *args):
        at_root = shards.output_layer_at_root(self.model)
        with at_root if self.is_fsdp_enabled else nullcontext():
            return super()._prepare_for_training(*args)


class MarkComplete(TrainerCallback):
    """Writes complete.json, last of all files of a checkpoint, with their sizes."""

    def on_save(self, args, state, control, **kwargs):
        """Write it, once each process has saved the files of its own."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sizes = {str(f.relative_to(folder)): f.stat().st_size for f in files}
        marker = {"step": state.global_step, **written_by(args), "files": sizes}
        records.write_json(folder / MARKER, marker)


def written_by(arguments: TrainingArguments) -> dict:
    """What a checkpoint can only be read with: its optimizer lies in as many parts."""
    split = shards.asked_for(arguments) or "not at all"
    return {"processes": arguments.world_size, "split": split}


def step_of(checkpoint: Path) -> int:
    """20 for .../checkpoint-20."""
    number = checkpoint.name.removeprefix("checkpoint-")
    if not number.isdecimal():
        raise ValueError(f"{checkpoint} is not the checkpoint of a step: move it away")
    return int(number)


def last_complete(folder: str | Path) -> Path | None:
    """The newest complete checkpoint below `folder`; those without the marker go."""
    last = None
    for checkpoint in sorted(Path(folder).glob("checkpoint-*"), key=step_of):
        if (checkpoint / MARKER).exists():
            last = checkpoint
        elif PartialState().is_main_process:
            print(f"removing {checkpoint.name}: a kill left it half written")
            shutil.rmtree(checkpoint)
    return last


def check_complete(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Raise ValueError unless this launch can go on from a checkpoint. The Trainer
    itself would go on with a fresh optimizer where that file is missing."""
    marker, now = records.read_json(checkpoint / MARKER), written_by(arguments)
    then = {name: marker.get(name, "unknown") for name in now}
    if then != now:
        raise ValueError(
            f"{checkpoint} was written with {then}, this launch has {now}: start it as "
            f"before, or delete {checkpoint.parent} to train from the start"
        )
    # Who changes a checkpoint can change its marker: it must fit what it lies in.
    listed = marker["files"]
    wrong = [
        f"{MARKER} lists no {pattern}"
        for pattern in needed_files(arguments)
        if not fnmatch.filter(listed, pattern)
    ]
    wrong += sorted(gather_object(list(damage(checkpoint, listed))))
    if not wrong:
        state = records.read_json(checkpoint / STATE)
        said = {marker["step"], state["global_step"], _scheduled(checkpoint)}
        wrong = [f"it says step {own}" for own in said - {step_of(checkpoint)}]
    if wrong:
        raise ValueError(f"{checkpoint} is damaged: {wrong[0]}. {shards.DELETE}")


def needed_files(arguments: TrainingArguments) -> list[str]:
    """Patterns of what any checkpoint of this launch holds."""
    ranks, split = range(arguments.world_size), shards.asked_for(arguments)
    many = [f"rng_state_{rank}.pth" for rank in ranks]
    names = [STATE, SCHEDULER, *(many if len(many) > 1 else ["rng_state.pth"])]
    if split == shards.FSDP2:
        return [*names, "optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata"]
    if arguments.deepspeed_plugin is None:
        return [*names, "*.safetensors", "optimizer.pt"]
    parts = ("model", "optim") if split else ("optim",)  # lower stages: whole weights
    return [*names, *(f"*_rank_{r}_*_{p}_states.pt" for r in ranks for p in parts)]


def damage(checkpoint: Path, sizes: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with the files of a checkpoint; the processes share the reading.
    torch does not look at the checksum of every tensor that it writes."""
    state = PartialState()
    for name in sorted(sizes)[state.process_index :: state.num_processes]:
        file = checkpoint / name
        if not file.exists():
            yield f"{name} is missing"
        elif file.stat().st_size != sizes[name]:
            yield f"{name} has {file.stat().st_size} bytes of {sizes[name]}"
        elif zipfile.is_zipfile(file):
            with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
                if archive.testzip() is None:
                    continue
            yield f"{name} is not what was written"


def _scheduled(checkpoint: Path) -> int | None:
    """The step that the schedule of the learning rate has come to, None if unknown."""
    try:
        return torch.load(checkpoint / SCHEDULER, weights_only=True)["last_epoch"]
    except (RuntimeError, pickle.UnpicklingError, LookupError, TypeError):
        return None


def same_settings(path: Path, settings: Mapping) -> bool:
    """Whether `path` exists; ValueError names every setting that it has otherwise."""
    if path.exists():
        records.refuse_other(
            records.read_json(path)["settings"],
            settings,
            f"{path.parent} was made with other settings",
            "Use another run_name, or delete that folder to train again",
        )
    return path.exists()


def write_settings(path: Path, settings: Mapping, trained: Iterable[Path] = ()) -> None:
    """Record settings for `same_settings` and the fingerprints of `trained` files."""
    content = {
        "hash": records.settings_hash(settings),
        "settings": dict(settings),
        "files": {file.name: chain.content(file, whole=True) for file in trained},
    }
    records.write_json(path, content)


def publish_trained(
    trainer: Trainer, folder: Path, record: str, settings: Mapping
) -> Path:
    """`publish` what a trainer has trained; every process must call it. All weights are
    an ordinary checkpoint, with the processor's files, in settings["dtype"]."""
    model, weights, processor = trainer.model, shards.whole_weights(trainer), None
    if not is_peft_model(model) and PartialState().is_main_process:
        own = model.state_dict() if weights is None else weights
        dtype = getattr(torch, settings["dtype"])
        # Tied ones share memory, and stay one tensor.
        made = {value.data_ptr(): value.to("cpu", dtype) for value in own.values()}
        weights = {name: made[value.data_ptr()] for name, value in own.items()}
        processor = trainer.processing_class
    return publish(model, folder, record, settings, weights, processor)


def publish(
    model,
    folder: Path,
    record: str,
    settings: Mapping,
    weights: Mapping[str, torch.Tensor] | None = None,
    processor=None,
) -> Path:
    """Save the trained weights and `record` (a file name) to `folder`, by one rename. A
    PEFT model leaves its adapter, any other all its weights; `weights` are saved in
    place of its own, `processor` beside whole ones of type settings["dtype"]."""
    if PartialState().is_main_process:
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with models.written(folder):
            own = {} if weights is None else {"state_dict": weights}
            model.save_pretrained(unfinished, **own)
            if processor is not None:
                processor.save_pretrained(unfinished)
                models.say_dtype(unfinished, settings["dtype"])
        if (unfinished / models.ADAPTER).exists():
            models.say_base(unfinished)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_settings(unfinished / record, settings, sorted(unfinished.iterdir()))
        os.replace(unfinished, folder)
    PartialState().wait_for_everyone()
    return folder
