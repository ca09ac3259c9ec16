"""What weights, gradients and optimizer take when several processes train all weights.

ZeRO-3 (arXiv 1910.02054) and FSDP2 divide them by the processes:

    ZeRO-3, bfloat16   2 bytes a weight, 4 its gradient, 12 its optimizer: DeepSpeed's
                       own estimate (https://deepspeed.readthedocs.io, "Memory
                       Requirements"), which adds 4 bytes a number of the largest layer,
                       gathered whole; offloading moves 16 of these, with the weights
                       18, to the host's memory, times 1.5 for buffers
    FSDP2              4 a weight (float32 masters, `shards.load_trainable`), 4 its
                       gradient, 8 its moments; two layers and the embeddings are
                       gathered in the computing type
    otherwise          the same 16 bytes on every device, with bfloat16 copies of the
                       weights that autocast makes, and with several processes the
                       gradients once more, as they are sent

Example: 8.29e9 weights on 8 processes under ZeRO-3 are 18 x 8.29e9 / 8 = 17.4 GiB on
each card and 2.0 GiB gathered; with everything offloaded the cards keep the 2.0 GiB,
and the host needs 18 x 1.5 x 8.29e9 = 208 GiB.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from lib import paths

HOST_BUFFERS = 1.5


@dataclass(frozen=True)
class Sharding:
    """How processes divide a model; kind is "" (each holds all), zero3 or fsdp2."""

    processes: int = 1
    kind: str = ""
    optimizer_on_host: bool = False
    weights_on_host: bool = False

    def states(self, numbers: int, largest: int, wide: int) -> tuple[dict, int]:
        """({item: bytes on each card}, bytes of the host) of all trained weights.

        `numbers` are trained, `largest` of them are gathered at once, in `wide` bytes.
        """
        if self.kind == "zero3":
            return self._zero3(numbers, largest)
        if self.kind == "fsdp2":
            return self._fsdp2(numbers, largest, wide)
        held = {"weights": 4 * numbers, "gradients": 4 * numbers}
        held["optimizer (AdamW)"] = 8 * numbers
        if wide == 2:
            held["weights in bfloat16"] = 2 * numbers
        if self.processes > 1:
            held["gradients, sent to the others"] = 4 * numbers
        return held, 0

    def _zero3(self, numbers: int, largest: int) -> tuple[dict, int]:
        gathered = {"gathered weights": 4 * largest}
        host = 0
        if self.optimizer_on_host:
            each = 18 if self.weights_on_host else 16
            host = int(HOST_BUFFERS * each * numbers)
        own = {"weights": 2, "gradients": 4, "optimizer (AdamW)": 12}
        if self.optimizer_on_host:
            own = {} if self.weights_on_host else {"weights": 2}
        held = {name: size * numbers // self.processes for name, size in own.items()}
        return {**held, **gathered}, host

    def _fsdp2(self, numbers: int, largest: int, wide: int) -> tuple[dict, int]:
        own = {"weights": 4, "gradients": 4, "optimizer (AdamW)": 8}
        held = {name: size * numbers // self.processes for name, size in own.items()}
        gathered = {"gathered weights": wide * largest}
        if self.weights_on_host:
            return gathered, 16 * numbers
        return {**held, **gathered}, 0

    @property
    def loaded(self) -> int:
        """Bytes of a weight as it is loaded, and as the reference keeps it."""
        return 2 if self.kind == "zero3" else 4

    def frozen(self, numbers: int) -> int:
        """Bytes on each device of a model that is not trained: the reference."""
        if self.weights_on_host:
            return 0
        return numbers * self.loaded // (self.processes if self.kind else 1)

    def checkpoint_bytes(self, numbers: int) -> int:
        """Of one checkpoint that training can go on from: weights and optimizer.

        ZeRO-3 keeps its masters in the optimizer's part, the others as the weights.
        """
        return (2 + 12 if self.kind == "zero3" else 4 + 8) * numbers


def of_config(accelerate_config: str, processes: int) -> Sharding:
    """What a file for `accelerate launch` says; "" is no sharding.

    Raises FileNotFoundError for a missing file and ValueError for a kind that is not
    planned for here.
    """
    if not accelerate_config:
        return Sharding(processes)
    path = paths.require(accelerate_config, "give a file such as params/accelerate/*")
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    zero, fsdp = config.get("deepspeed_config", {}), config.get("fsdp_config", {})
    if int(zero.get("zero_stage", 0)) == 3:
        return Sharding(
            processes,
            "zero3",
            zero.get("offload_optimizer_device", "none") != "none",
            zero.get("offload_param_device", "none") != "none",
        )
    if int(fsdp.get("fsdp_version", 0)) == 2:
        offloads = bool(fsdp.get("fsdp_offload_params", False))
        return Sharding(processes, "fsdp2", offloads, offloads)
    if config.get("distributed_type") in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding(processes)
    raise ValueError(
        f"{path} sets neither ZeRO stage 3 nor FSDP version 2: the memory of "
        f"{config.get('distributed_type')} is not planned here"
    )
