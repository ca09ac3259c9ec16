"""How much arithmetic a run is: FLOP counted from shapes, and the seconds it may take.

A matrix of n weights costs 2n FLOP a token, and attention 4 x width FLOP for every pair
of a token and one that it is compared with (Kaplan et al., arXiv 2001.08361, section
2.1; masked pairs count, because they are computed). A backward pass costs the forward
once for the gradients of activations and once more for those of trained weights;
gradient checkpointing runs the layers forward once more (arXiv 1604.06174). Norms,
activations, softmax, drawing tokens and the optimizer are not counted.

Example: the layers of Qwen2-VL-7B hold 6.5e9 weights, so 883 tokens of a prompt cost
883 x 2 x 6.5e9 = 1.2e13 FLOP and its 2,916 patches 2,916 x 2 x 6.3e8 = 0.4e13.

How far it holds (tests/bench/compute.py, outputs/reference/bench_compute.json): SFT,
GRPO and evaluation of a mini run on two CPU cores did 51, 44 and 48 GFLOP a second, so
FLOP say what a stage takes to within 10 % there. Within a GRPO step they do not:
rollouts did 28 and updates 98, because tokens are drawn one after another. On a GPU
that is far more so; therefore a Cost also counts these draws, and `seconds` makes each
wait until the weights were read, or until the work of all layers was handed to the GPU
if that takes longer. It does with NF4 and LoRA: on an H100, 2B took as long as 7B, and
8 completions at a time as long as 64 (outputs/reference/bench_cost.json).
"""

import math
from dataclasses import dataclass, replace

from lib.memory import Sizes, Work, packs


@dataclass(frozen=True)
class Item:
    """A question or demonstration in tokens; means over many may be fractions."""

    prompt: float  # with its pictures
    patches: float  # of its pictures, before merging
    picture: int  # patches that the vision tower compares with one another
    completion: float


@dataclass(frozen=True)
class Cost:
    """FLOP, and how often all weights are read to draw one token after another."""

    flop: float = 0.0
    draws: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flop + other.flop, self.draws + other.draws)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flop * times, self.draws * times)


@dataclass(frozen=True)
class Card:
    """What a GPU can do at most: dense bfloat16 FLOP and bytes of memory a second."""

    name: str
    flop: float
    read: float


# NVIDIA's data sheets, SXM versions; of the A100 the 40 GB one (80 GB reads 2.0e12).
CARDS = (
    Card("A100", 312e12, 1.555e12),
    Card("H100", 989e12, 3.35e12),
    Card("H200", 989e12, 4.8e12),
)
# Shares of these peaks that a range of hours is given for. Not measured: assumptions.
ARITHMETIC, READING = (0.2, 0.4), (0.4, 0.8)
# Seconds until a layer with NF4 weights and a LoRA adapter was handed to an H100, by a
# host with 16 cores: of 7B and 2B, rollout and evaluation, bench_cost.json has 4.2 to
# 4.5 ms. Other weights take fewer kernels; they were not measured.
HANDED = 4.2e-3


# FLOP of one pass


def matrices(sizes: Sizes) -> int:
    """Weights in the matrices of the language model's layers."""
    attention = sizes.hidden * (2 * sizes.hidden + 2 * sizes.kv)
    return sizes.layers * (attention + 3 * sizes.hidden * sizes.inner)


def adapters(sizes: Sizes, rank: int) -> int:
    """Weights of LoRA adapters on the seven projections of every layer."""
    hidden, inner = sizes.hidden, sizes.inner
    attention = 2 * (hidden + hidden) + 2 * (hidden + sizes.kv)
    return sizes.layers * rank * (attention + 3 * (hidden + inner))


def language(
    sizes: Sizes, work: Work, tokens: float, pairs: float, learning: bool
) -> float:
    """FLOP of the layers for `tokens` that make `pairs` with one another.

    `learning`: forward and backward, otherwise forward alone.
    """
    rank = work.lora_rank
    plain, own = 2 * tokens * matrices(sizes), 2 * tokens * adapters(sizes, rank)
    compared = 4 * pairs * sizes.hidden * sizes.layers
    if not learning:
        return plain + own + compared
    again = int(work.checkpointing)
    frozen = 2 if rank else 3  # a frozen matrix has no gradient of its own
    return (frozen + again) * plain + (3 + again) * (own + compared)


def head(sizes: Sizes, work: Work, tokens: float, learning: bool) -> float:
    """FLOP of the output layer at the positions whose logits are used."""
    passes = (2 if work.lora_rank else 3) if learning else 1
    return passes * 2 * tokens * sizes.hidden * sizes.vocab


def vision(sizes: Sizes, work: Work, item: Item, learning: bool) -> float:
    """FLOP of the vision tower and its merger for the pictures of one item.

    Frozen behind an adapter it runs forward alone, in whatever pass.
    """
    tower, merged = sizes.tower, sizes.tower * sizes.merge
    block = 4 * tower**2 + 2 * tower * sizes.tower_inner
    weights = sizes.tower_layers * block + sizes.patch * tower
    weights += merged * (merged + sizes.hidden) / sizes.merge
    compared = 4 * item.picture * tower * sizes.tower_layers
    again = work.checkpointing
    passes = 3 + again if learning and not work.lora_rank else 1
    return passes * item.patches * (2 * weights + compared)


# Costs of one item of a stage


def demonstration(sizes: Sizes, work: Work, item: Item) -> Cost:
    """SFT: forward and backward over prompt and response."""
    length = item.prompt + item.completion
    flop = vision(sizes, work, item, True)
    flop += language(sizes, work, length, length**2, True)
    return Cost(flop + head(sizes, work, item.completion, True))


def rollouts(sizes: Sizes, work: Work, item: Item, together: int) -> Cost:
    """The G completions of a question; `together` groups grow in one batch.

    The prompt is encoded once, and every new token is compared with the prompt and with
    all completions of its group (lib/model/scoring.py).
    """
    prompt, drawn = item.prompt, work.group * item.completion
    flop = vision(sizes, work, item, False)
    flop += language(sizes, work, prompt, prompt**2, False)
    flop += language(sizes, work, drawn, drawn * (prompt + drawn / 2), False)
    flop += head(sizes, work, 1 + drawn, False)
    return Cost(flop, item.completion / together)


def scores(sizes: Sizes, work: Work, item: Item, learning: bool) -> Cost:
    """Log-probabilities of a group in packed rows; with gradients, the update.

    The tower runs once more in every row, unless it is frozen: its features are kept.
    """
    rows, length = packed(work, item)
    drawn = work.group * item.completion
    seen = 0.0 if work.lora_rank else rows * vision(sizes, work, item, learning)
    layers = language(sizes, work, rows * length, rows * length**2, learning)
    return Cost(seen + layers + head(sizes, work, drawn, learning))


def packed(work: Work, item: Item) -> tuple[int, float]:
    """(rows of one group, mean tokens of a row): the prompt once in each."""
    bound = math.ceil(item.prompt), math.ceil(item.completion)
    rows, _, _ = packs(replace(work, prompt=bound[0], completion=bound[1]), 1)
    return rows, item.prompt - 1 + work.group / rows * item.completion


def answer(sizes: Sizes, work: Work, item: Item, together: int) -> Cost:
    """One greedy answer; `together` questions are answered in one batch."""
    prompt, drawn = item.prompt, item.completion
    flop = vision(sizes, work, item, False)
    flop += language(sizes, work, prompt, prompt**2, False)
    flop += language(sizes, work, drawn, drawn * (prompt + drawn / 2), False)
    return Cost(flop + head(sizes, work, 1 + drawn, False), drawn / together)


def reading(sizes: Sizes, work: Work, item: Item, texts: int = 1) -> Cost:
    """One pass over a prompt with `texts` completions behind it, without drawing.

    Left out: the output layer, used at a few positions or none.
    """
    length = item.prompt + texts * item.completion
    seen = vision(sizes, work, item, False)
    return Cost(seen + language(sizes, work, length, length**2, False))


def saved(work: Work, item: Item) -> float:
    """How many times more tokens an update would take without the shared prefix."""
    rows, length = packed(work, item)
    return work.group * (item.prompt + item.completion) / (rows * length)


# Seconds


def handed(sizes: Sizes, work: Work) -> float:
    """Seconds a draw takes at least because of its kernels; 0 if not measured."""
    return sizes.layers * HANDED if work.quantize and work.lora_rank else 0.0


def seconds(
    cost: Cost, card: Card, devices: int, weight_bytes: float, draw: float = 0.0
) -> tuple[float, float]:
    """(least, most) seconds on `devices` cards at the assumed shares of their peaks.

    `cost.flop` of all devices is shared among them; `cost.draws` are those of one
    device, each of which waits until `weight_bytes` were read, and for `draw` seconds
    at least (`handed`). What devices send to one another, offloading and reading clips
    come on top and are not estimated.
    """
    return tuple(
        cost.flop / (arithmetic * card.flop * devices)
        + cost.draws * max(draw, weight_bytes / (reading * card.read))
        for arithmetic, reading in zip(
            reversed(ARITHMETIC), reversed(READING), strict=True
        )
    )
