"""Cards that people have: memory, and whether they compute in bfloat16."""

import re
from typing import NamedTuple


class Card(NamedTuple):
    """`gib` as CUDA reports it, rounded down."""

    gib: float
    bfloat16: bool = True


CARDS = {
    "T4": Card(14.5, bfloat16=False),
    "L4": Card(22.0),
    "A10": Card(22.0),  # and the A10G of AWS
    "4090": Card(23.5),
    "H100": Card(79.0),
}


def called(device: str) -> Card | None:
    """The card whose name is in a device's, "NVIDIA A10G"; None for one not known."""
    for name, card in CARDS.items():
        if re.search(rf"\b{name}(?!\d)", device):
            return card
    return None
