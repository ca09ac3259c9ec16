"""Training with weights that are split over processes: DeepSpeed ZeRO-3 and FSDP2.

    accelerate launch --config_file params/accelerate/zero3.yaml ...

Each process keeps 1/N of every weight (ZeRO stage 3, arXiv 1910.02054; torch's
`fully_shard`), and every call of a layer is a collective. So all processes must call
the same layers in the same order, whatever their own data are:

* rollouts, whose lengths nobody knows in advance, run on weights gathered before;
* the numbers of forward passes, and of the pieces of one, are agreed on before: where
  two processes need 3 and 5, the first adds two over a token, whose results count 0;
* a forward pass runs the vision tower exactly once (`prefix.see_once`)."""

import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from lib.model import models as models  # first: it prepares what transformers imports

# isort: split
from accelerate import Accelerator, DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainingArguments

# DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, each time anew.
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
# Nothing changes the scores of completions in place, which FSDP2 warns of.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
# transformers accumulates by itself and tells accelerate, but not DeepSpeed, of 1 step.
logging.getLogger("accelerate.accelerator").addFilter(
    lambda record: "Gradient accumulation steps mismatch" not in str(record.msg)
)

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# names of accelerate
COMPUTED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
PLAIN = ("Size", "float32", "bfloat16", "float16", "int64")
NOTES = (
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
    *("TensorStorageMetadata", "BytesStorageMetadata"),
    *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
)
METADATA = {  # what that pickle names in torch 2.13
    ("pathlib", "PosixPath"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", name) for name in PLAIN),
    *(("torch.distributed.checkpoint.metadata", name) for name in NOTES),
}
ZERO3, FSDP2 = "DeepSpeed ZeRO-3", "FSDP2"
DELETE = "Delete that folder; training then goes on from the checkpoint before it"


def asked_for(arguments: TrainingArguments) -> str | None:
    """How the launch wants the weights to be split, None if not at all."""
    plugin = arguments.deepspeed_plugin
    if plugin is not None:
        return ZERO3 if plugin.zero_stage == 3 else None
    told = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return FSDP2 if told or arguments.fsdp else None


class _Metadata(pickle.Unpickler):
    """The pickle in which torch notes where the parts of a tensor lie; no other."""

    def find_class(self, module, name):
        if (module, name) not in METADATA:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


@contextmanager
def weights_only(checkpoint: Path, arguments: TrainingArguments) -> Iterator[None]:
    """Inside, torch.load takes tensors and plain values, whoever calls it and however;
    DeepSpeed 0.19 and torch's distributed checkpoints would unpickle anything.
    ValueError for a checkpoint that wants to call more."""
    try:
        for file in checkpoint.rglob(".metadata"):
            with open(file, "rb") as opened:
                _Metadata(opened).load()
        os.environ[FORCED] = "1"
        own_types = []  # DeepSpeed's, in its checkpoints beside weights
        if arguments.deepspeed_plugin is not None:
            from deepspeed.runtime.fp16.loss_scaler import LossScaler
            from deepspeed.runtime.zero.config import ZeroStageEnum

            own_types = [LossScaler, ZeroStageEnum]
        with torch.serialization.safe_globals(own_types):
            yield
    except pickle.UnpicklingError as error:
        why = "or not of this kit: a file in it is a pickle of more than weights"
        raise ValueError(f"{checkpoint} is damaged, {why}. {DELETE}") from error
    finally:
        os.environ.pop(FORCED, None)


def is_split(model) -> bool:
    """Whether this model's weights are split, so that each call is a collective."""
    model = getattr(model, "module", model)
    zero3 = any(hasattr(weight, "ds_id") for weight in model.parameters())
    return zero3 or isinstance(model, FSDPModule)


def own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: all of it, unless it is split."""
    weight = getattr(weight, "ds_tensor", weight)
    return weight.to_local() if isinstance(weight, DTensor) else weight


def own_parts(model, wrapped) -> dict[str, torch.Tensor]:
    """{name: what this process holds} of each trained weight; who changes it changes
    the model. `wrapped` is what the trainer wraps around the model: what forward passes
    have left whole there is given up, and gathered anew by the next one."""
    for part in wrapped.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    if hasattr(wrapped, "empty_partition_cache"):  # DeepSpeed's engine
        wrapped.empty_partition_cache()
    named = model.named_parameters()
    return {name: own_part(own).detach() for name, own in named if own.requires_grad}


def agreed(numbers: Sequence[int], device) -> list[int]:
    """The longest list of all processes, with the greatest number at each place."""
    length = torch.tensor(len(numbers), device=device)
    dist.all_reduce(length, dist.ReduceOp.MAX)
    padded = torch.zeros(int(length), dtype=torch.long, device=device)
    padded[: len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    dist.all_reduce(padded, dist.ReduceOp.MAX)
    return padded.tolist()


@contextmanager
def gathered(model, accelerator: Accelerator) -> Iterator[None]:
    """Every process has all weights inside, and forward passes are its own affair.
    `model` is what the trainer wraps around the network."""
    if not is_split(model):
        yield
    elif isinstance(model, FSDPModule):
        with _unsharded(model, accelerator.state.fsdp_plugin.reshard_after_forward):
            yield
    else:
        # Imported here because it takes seconds, which evaluation can do without.
        from trl.models import unwrap_model_for_generation

        with unwrap_model_for_generation(model, accelerator):
            yield


@contextmanager
def _unsharded(model: FSDPModule, reshards: bool) -> Iterator[None]:
    """FSDP2: unshard every unit, and let no forward pass shard it again."""
    # A part that is called before the whole, as the vision tower is in a rollout, would
    # take itself for the root.
    model._get_fsdp_state()._lazy_init()
    root, *units = (part for part in model.modules() if isinstance(part, FSDPModule))
    for unit in (root, *units):
        unit.unshard()
    for unit in units:  # the root never shards itself after a forward pass
        unit.set_reshard_after_forward(False, recurse=False)
    yield
    for unit in units:
        unit.set_reshard_after_forward(reshards, recurse=False)
    for unit in (root, *units):
        unit.reshard()


def load_trainable(model_path: str | Path, settings, arguments: TrainingArguments):
    """The checkpoint's model, as `settings` and the launch want it trained.

    `arguments` must be there first: while ZeRO-3 is asked for, transformers splits
    every model as it loads it. Where all weights are trained they are float32, with
    `dtype` as the type to compute in: at lr 1e-6 a step changes a weight by about that
    much, and a bfloat16 near 0.01 cannot change by less than 3e-5, so that most updates
    would be lost. DeepSpeed keeps such float32 masters by itself.

    ValueError for NF4 weights that are split or have no adapter, and for a launch that
    wants another type than the settings."""
    asked = asked_for(arguments)
    computed = COMPUTED.get(settings.dtype)
    if computed and arguments.mixed_precision != computed:
        raise ValueError(
            f"accelerate was started with mixed_precision = {arguments.mixed_precision}"
            f", but dtype is {settings.dtype}: leave it out there, dtype decides"
        )
    if settings.quantize and not settings.lora_rank:
        raise ValueError("quantize needs an adapter: give a lora_rank above 0")
    if settings.quantize and asked:
        raise ValueError(
            f"quantize = True under {asked}: NF4 weights are not split; set quantize = "
            "False, or start without a config file of params/accelerate"
        )
    if not torch.cuda.is_available():
        _prepare_cpu(asked)
    masters = not settings.lora_rank and arguments.deepspeed_plugin is None
    dtype = "float32" if masters else settings.dtype
    model = models.load_model(model_path, dtype, settings.quantize, asked is None)
    if asked == ZERO3:
        _configure_zero3(arguments, model.config.get_text_config().hidden_size)
    return model


def _configure_zero3(arguments: TrainingArguments, hidden_size: int) -> None:
    """What a config file for `accelerate launch` has no field for: the sizes of
    transformers' own "auto". Smaller weights than the threshold stay whole."""
    config = arguments.deepspeed_plugin.deepspeed_config
    config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 10 * hidden_size,
        "stage3_prefetch_bucket_size": 9 * hidden_size**2 // 10,
        "reduce_bucket_size": hidden_size**2,
    }
    # torch's own AdamW, also on the host: the same numbers with and without offloading,
    # and nothing to compile.
    config["zero_force_ds_cpu_optimizer"] = False


def _prepare_cpu(asked: str | None) -> None:
    """What DeepSpeed need not do there, and accelerate would not do."""
    if asked == ZERO3:
        # Compiling it takes 85 s on a first run, and it serves inference alone.
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False
    if asked == FSDP2 and PartialState().num_processes > 1:
        # accelerate 1.15 splits weights only where it has seen several GPUs. torch's
        # FSDP2 works on CPUs as well, and the device stays what it is.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


@contextmanager
def output_layer_at_root(model) -> Iterator[None]:
    """FSDP2: prepared inside, the output layer is split and gathered with the root.
    accelerate 1.15 makes it a unit of its own, gathered when the layer is called; but
    the SFT loss of TRL 1.16 reads its weight without a call: every process would train
    its part of it on its own data alone."""
    base = getattr(model, "get_base_model", lambda: model)()
    names = ["get_output_embeddings"]
    if base.get_input_embeddings().weight is base.get_output_embeddings().weight:
        names.append("get_input_embeddings")  # one weight cannot lie in two units
    for name in names:
        setattr(base, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(base, name)


class CheckShards(TrainerCallback):
    """RuntimeError at the start of training unless the weights lie as asked for:
    accelerate trains without a word on whole ones that it does not know to split."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Look at every weight."""
        asked = asked_for(args)
        for name, weight in model.named_parameters() if asked else ():
            own = own_part(weight).numel()
            whole = getattr(weight, "ds_numel", None) or weight.numel()
            fsdp2 = isinstance(weight, DTensor)
            split = fsdp2 if asked == FSDP2 else hasattr(weight, "ds_tensor")
            parts = len(weight) if fsdp2 and weight.ndim else whole  # it divides rows
            if not split or (own >= whole and min(parts, args.world_size) > 1):
                raise RuntimeError(
                    f"{asked} was asked for with {args.world_size} processes, but each "
                    f"of them holds all of {name} (a {type(weight).__name__} of "
                    f"{tuple(weight.shape)}): nothing was trained. Look at the config "
                    "file that accelerate was started with"
                )


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights by name, on process 0; None if not split. Every process calls it."""
    wrapped = trainer.model_wrapped
    return trainer.accelerator.get_state_dict(wrapped) if is_split(wrapped) else None
