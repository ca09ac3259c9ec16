"""Let the PyPI wheel of torchvision be imported beside a CPU-only torch.

Qwen2-VL's video processor (transformers 5) needs torchvision's resize and normalise,
which are pure torch. The wheel's compiled part is linked against CUDA, so beside
torch +cpu it cannot be loaded, torchvision skips it, and the import then fails with
"operator torchvision::nms does not exist" because its meta registrations name two
operators that nobody declared. Declaring the two schemas beforehand is enough; they
have no kernel, so calling them still fails, and nothing here calls them.

On a machine whose torch and torchvision match, the compiled part loads and nothing is
declared. Import this module before transformers:

    from lib.data import torchvision_cpu  # noqa: F401
    from transformers import AutoProcessor
"""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {  # torchvision/csrc/ops/nms.cpp and quantized/cpu/qnms_kernel.cpp, 0.28
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def is_declared(operator: str) -> bool:
    """Whether torch knows a schema `torchvision::<operator>`."""
    return bool(torch._C._jit_get_schemas_for_operator(f"torchvision::{operator}"))


def compiled_part_loads(package: Path) -> bool:
    """Load torchvision's operators as torchvision itself will; False if they cannot."""
    try:
        torch.ops.load_library(package / "_C.so")
    except OSError:
        return False
    return True


def declare_missing_operators() -> torch.library.Library | None:
    """Declare what the import of torchvision needs; None where nothing is missing.

    The returned library must stay referenced: its schemas go when it is collected.
    """
    spec = importlib.util.find_spec("torchvision")  # finds without importing
    if spec is None:
        raise ImportError("torchvision is missing: pip install -r requirements.txt")
    if is_declared("nms") or compiled_part_loads(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator, signature in SCHEMAS.items():
        library.define(operator + signature)
    return library


LIBRARY = declare_missing_operators()
