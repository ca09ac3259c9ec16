"""Load a Qwen2-VL checkpoint, and what training made of it.

A checkpoint is a local folder (below the repository root, or absolute) or a hub id.

    processor = load_processor("lib/mini/base")
    model = load_trained("lib/mini/base", run / "adapters" / "grpo")

Extend it: any Qwen2-VL checkpoint is a parameter, by its folder or hub id. Here GRPO
goes on from what SFT left (as with grpo_from, in a run of its own), once
`python -m lib.run export outputs/mini/adapters/sft outputs/models/mini_sft`
has merged it. As params/grpo_after_sft.yaml, for `python -m lib.run`:

    base: mini.yaml
    run_name: grpo_after_sft
    model: outputs/models/mini_sft  # or Qwen/Qwen2-VL-2B-Instruct
    notebooks: [03_grpo, 04_eval]
    asked_models: base grpo  # base: the model above
    perception_models: base grpo

A group shares its video in models of type `qwen2_vl`, `qwen2_5_vl` and `qwen3_vl`; the
later two are told when each frame is shown. Another stops with
`model_type 'llava' is not supported`, until MODELS in lib/model/prefix.py names it and
tests/test_shared_prefix_families.py agrees. `python -m lib.run check-model NAME` says
whether a checkpoint is read right."""

import ctypes
import errno
import hashlib
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
import tqdm.asyncio
import tqdm.auto

from lib import chain, paths, records
from lib.data import torchvision_cpu as torchvision_cpu  # before transformers

# glibc hands a freed tensor's pages back, and the system clears new ones for the next
# tensor: much of a step of SFT on a CPU. Here it keeps up to 1 GiB, in huge pages.
if hasattr(libc := ctypes.CDLL(None), "mallopt"):
    for threshold in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(threshold, 2**30)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it once, below
# On its import bitsandbytes warns that an optional faster CPU kernel is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# What is imported below takes its progress bars from here. In a kernel they would be
# widgets, of which an executed notebook keeps a word that they cannot be displayed.
tqdm.auto.tqdm = tqdm.asyncio.tqdm
# DeepSpeed, which TRL imports wherever it is installed, warns on stdout of what it
# detects and at every change of the order of layers; only its errors concern us.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
# TRL 1.16 and peft 0.21 still use this name of transformers, whatever we write.
warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)

# isort: split
import peft
from huggingface_hub import snapshot_download
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.models.auto import modeling_auto
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

# The projections of the language model. "all-linear" would adapt the vision tower too,
# and an adapter on lm_head breaks the fused log-probabilities of TRL 1.16.
LORA_TARGETS = (
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
)
DTYPES = ("float32", "bfloat16", "float16")
# bitsandbytes in transformers 5 matches names from their start, so "visual" alone would
# skip nothing, and a list of one's own drops the default that keeps lm_head.
NOT_QUANTIZED = ["model.visual", "lm_head"]
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_FILES = (("config.json",), (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
PROCESSOR_FILES = (
    ("config.json",),
    ("tokenizer.json", "vocab.json"),
    ("processor_config.json", "preprocessor_config.json"),
)
COPY = "copy or download that folder again, whole"
FITTING = "load the base it was trained on, or train it again"


def checkpoint_source(path: str | Path) -> str:
    """Absolute folder for a local checkpoint, the string itself for a hub id.
    FileNotFoundError for a mistyped path: it never becomes a look-up on the hub."""
    text, folder = str(path), paths.resolve(path)
    if folder.is_dir():
        return str(folder)
    parts = Path(text).parts
    local = isinstance(path, Path) or text.startswith((".", "/", "~"))
    if local or len(parts) != 2 or paths.resolve(parts[0]).is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: give a checkpoint folder (relative paths start at "
            f"{paths.ROOT}) or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    return text


def load_processor(path: str | Path):
    """The processor, which samples no frames itself. Errors as of `check_files`."""
    source = checkpoint_source(path)
    check_files(source, PROCESSOR_FILES)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    processor.video_processor.do_sample_frames = False
    # Acts on resizing only, which is off; unset it warns on every first call.
    processor.video_processor.cap_pixels_per_frame = False
    return processor


def check_dtype(dtype: str) -> None:
    """ValueError for a name that is not one of DTYPES."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")


def load_model(path, dtype: str = "float32", quantize: bool = False, placed=True):
    """The model in eval mode, on the GPU where there is one. `quantize` stores matrices
    of the language model as NF4 (QLoRA, arXiv 2305.14314), but not lm_head. `placed` is
    False where a trainer moves the weights. Errors as of `load_whole`."""
    check_dtype(dtype)
    device = _device(dtype)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=NOT_QUANTIZED,
    )
    model = load_whole(
        AutoModelForImageTextToText,
        checkpoint_source(path),
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        quantization_config=nf4 if quantize else None,
        device_map={"": device} if placed else None,
    )
    return model.eval()


def half() -> str:
    """The type of 16 bits that this machine computes in: float16 on a T4."""
    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False)
    return "float16" if lacking else "bfloat16"


@cache  # it speaks once
def _device(dtype: str) -> int | str:
    """The GPU of this process, else the CPU; ValueError where it has no `dtype`."""
    if torch.cuda.is_available():
        if dtype == "bfloat16" and half() == "float16":
            card = torch.cuda.get_device_name()
            raise ValueError(f"{card} has no bfloat16: give dtype = float16")
        return torch.cuda.current_device()
    if torch.backends.mps.is_available():
        print(
            "Apple's GPU (MPS) has no float64, which rollouts draw with, and no NF4: "
            "everything runs on the CPU"
        )
    return "cpu"


def check_files(source: str | Path, needed: tuple[tuple[str, ...], ...]) -> None:
    """FileNotFoundError unless the folder `source` has one file of each of `needed`,
    ValueError if one is damaged. A hub id passes: its files were checked on arrival."""
    folder = Path(source)
    for names in needed if folder.is_dir() else ():
        file = next((folder / n for n in names if (folder / n).is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{folder} has no {' or '.join(names)}: {COPY}")
        if file.name == SAFE_WEIGHTS_INDEX_NAME:
            parts = sorted(set(_field(file, "weight_map").values()))
            check_files(folder, tuple((part,) for part in parts))
        elif file.suffix == ".safetensors":
            _tensor_names(file)
        elif file.name == "config.json":
            _field(file, "model_type")
        else:
            records.read_json(file)


def _field(file: Path, name: str):
    """A field of a JSON file; ValueError where it is missing."""
    content = records.read_json(file)
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{file} has no field {name}: {COPY}")
    return content[name]


def _tensor_names(file: Path) -> set[str]:
    """The names in a safetensors file; ValueError if its head or its length is off."""
    try:
        with safe_open(file, "pt") as tensors:
            return set(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): {COPY}") from error


def load_whole(kind, source: str | Path, **options):
    """`kind.from_pretrained`, with a ValueError for tensors that are missing or have
    another shape, where the library would go on with random numbers, for NaN, and for a
    model that cannot see; and as `check_files`."""
    check_files(source, MODEL_FILES)
    if (file := Path(source) / "config.json").is_file():
        found = records.read_json(file)["model_type"]
        if found not in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ValueError(
                f"{file}, model_type: found {found!r}: give a checkpoint of a model for"
                " pictures and text, such as qwen2_vl"
            )
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options["trust_remote_code"] = False  # nor is anybody asked in a terminal
    model, info = kind.from_pretrained(source, **options)
    other = [name for name, *_ in info["mismatched_keys"]]
    wrong = {"lacks": info["missing_keys"], "has other shapes of": other}
    for what, names in wrong.items():
        if names:
            raise ValueError(
                f"{source} {what} {len(names)} of the model's tensors, such as "
                f"{min(names)}: its weights and config.json do not belong together; "
                f"{COPY}"
            )
    if any(isinstance(part, LoraLayer) for part in model.modules()):
        raise ValueError(
            f"{source} holds whole weights and {ADAPTER}, an adapter that would be put "
            "on them, a second time if it is merged: move the files adapter_* elsewhere"
        )
    _check_finite(model.named_parameters(), source)
    return model


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in named:
        if quantized := getattr(tensor, "quant_state", None):
            tensor = quantized.offset  # the mean of all scales
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        if not torch.stack(tensor.detach().aminmax()).isfinite().all():
            return name
    return None


def _check_finite(named: Iterable[tuple[str, torch.Tensor]], source) -> None:
    if name := not_finite(named):
        raise ValueError(
            f"{source}: {name} holds NaN or infinity: its training diverged, or the "
            f"file is damaged; take other weights, or {COPY}"
        )


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """`records.written` for what `save_pretrained` writes: of a full disk safetensors
    has an error of its own, and tokenizers a bare Exception."""
    with records.written(folder):
        try:
            yield
        except Exception as error:
            if isinstance(error, SafetensorError) or type(error) is Exception:
                raise OSError(errno.EIO, str(error)) from error
            raise


def say_dtype(folder: Path, dtype: str) -> None:
    """Let the config of a checkpoint name the type that its weights are stored in."""
    config = records.read_json(folder / "config.json")
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    records.write_json(folder / "config.json", config)


def say_base(folder: Path) -> None:
    """Let an adapter name a local base relative to the checkout, or by its name."""
    config, field = records.read_json(folder / ADAPTER), "base_model_name_or_path"
    base = Path(config.get(field) or "")
    if base.is_absolute():
        below = base.is_relative_to(paths.ROOT)
        said = base.relative_to(paths.ROOT).as_posix() if below else base.name
        records.write_json(folder / ADAPTER, {**config, field: said})


def lora_config(rank: int, alpha: float) -> peft.LoraConfig | None:
    """LoRA (arXiv 2106.09685) on the language model's projections only; None: rank 0.
    Without a task PEFT notes the base's class, and AutoPeftModel can load it."""
    if rank == 0:
        return None
    return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS)


def load_trained(
    model_path: str | Path,
    folder: str | Path | None,
    dtype: str = "float32",
    quantize: bool = False,
):
    """The model that training left in `folder`, in eval mode; without one, the base. An
    adapter is put on the base, or on the checkpoint beside it that it was trained on
    (grpo_from); whole weights stand for themselves. Raises as `load_model`,
    FileNotFoundError, and ValueError for damage or another base."""
    if folder is None:
        return load_model(model_path, dtype, quantize)
    folder = paths.require(paths.resolve(folder), "train it first (02_sft or 03_grpo)")
    if not any((folder / name).exists() for name in (ADAPTER, "config.json")):
        raise ValueError(
            f"{folder} holds neither {ADAPTER} nor config.json: it is no adapter and no"
            " checkpoint; give the folder that 02_sft or 03_grpo wrote"
        )
    model_path = beside(folder) or model_path
    chain.check_trained(folder, identity(model_path))
    if not (folder / ADAPTER).exists():
        return load_model(folder, dtype, quantize)
    return _with_adapter(load_model(model_path, dtype, quantize), folder).eval()


def beside(folder: Path) -> Path | None:
    """The checkpoint in the same adapters/ that training says it started from."""
    said = (records.read_json(file) for file in folder.glob("*_settings.json"))
    bases = [record["settings"].get("model") for record in said]
    near = sorted({file.parent for file in folder.parent.glob("*/config.json")})
    return next((own for own in near if own != folder and identity(own) in bases), None)


def _with_adapter(model, folder: Path) -> peft.PeftModel:
    """PEFT only warns of missing tensors, and drops those it has no place for."""
    file, weights = folder / ADAPTER, folder / ADAPTER_WEIGHTS
    check_files(folder, ((ADAPTER,), (ADAPTER_WEIGHTS,)))
    if (kind := _field(file, "peft_type")) != "LORA":
        raise ValueError(f"{file}: peft_type is {str(kind)[:50]!r}, not LORA")
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise ValueError(f"{file}: {what}; {COPY}") from error
    except RuntimeError as error:
        head, _, rest = str(error).partition("\n")
        if "loading state_dict" not in head:
            raise
        what = f"{folder} does not fit the model ({rest.strip().splitlines()[0]:.200})"
        raise ValueError(f"{what}; {FITTING}") from error
    wanted = peft.get_peft_model_state_dict(adapted)
    _check_finite(wanted.items(), weights)
    if odd := set(wanted) ^ _tensor_names(weights):
        raise ValueError(
            f"{weights} does not fit the model: {len(odd)} tensors, such as {min(odd)},"
            f" are only in one of them; {FITTING}"
        )
    return adapted


def identity(model_path: str | Path) -> str:
    """Which base a path or hub id names: 12 digits of a folder's SHA-256, or the id
    with its commit, `Qwen/Qwen2-VL-2B-Instruct@895c3a4`, as it is on the hub now."""
    source = checkpoint_source(model_path)
    if Path(source).is_dir():
        return records.sha256(source)[:12]
    commit = snapshot_download(source, allow_patterns="config.json")
    return f"{source}@{Path(commit).name}"


def fingerprint(model) -> str:
    """12 hex digits over names, shapes and up to 1,024 spread values of every tensor
    (training moves them all, so a sample tells), and the scale of every adapter."""
    digest = hashlib.sha256()
    scales = [m.scaling for m in model.modules() if isinstance(m, LoraLayer)]
    digest.update(f"{scales}".encode() if scales else b"")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().flatten()
        sample = values[:: max(1, values.numel() // 1024)].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, and ask torch for deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Would write NaN into every fresh buffer first, to show up reads of memory that was
    # never written: a debugging aid, and a third of an SFT step on CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False
