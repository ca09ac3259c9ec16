"""Let the PyPI wheel of torchvision be imported beside a CPU-only torch.

Qwen2-VL's video processor needs torchvision's resize and normalise, which are pure
torch. The wheel's compiled part is linked against CUDA; where it cannot be loaded,
torchvision's import fails, as its meta registrations name two operators that nobody
declared. Declaring them is enough: they have no kernel, and nothing here calls them.
Where it loads, nothing is declared. Import this before transformers."""

import importlib.util
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")  # torchvision/csrc/ops/nms.cpp and quantized/cpu, 0.28
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> torch.library.Library | None:
    """Declare what the import of torchvision needs; None where nothing is missing. The
    returned library must stay referenced: its schemas go when it is collected."""
    spec = importlib.util.find_spec("torchvision")  # finds without importing
    if spec is None:
        raise ImportError("torchvision is missing: pip install -r requirements.txt")
    if torch._C._jit_get_schemas_for_operator("torchvision::nms"):
        return None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator + SCHEMA)
    return library


LIBRARY = declare_missing_operators()
