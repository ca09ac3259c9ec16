"""Does a run fit the card? Bytes of every stage, by a closed formula.

    model = Model.of(config_of("Qwen/Qwen2-VL-7B-Instruct"))
    stages(model, work)        # {"SFT": 8.9e9, "rollout": ..., "evaluation": ...}

Weights, adapters and optimizer are counted from the sizes in the configuration. What
passes through goes by a few rules: a token leaves 10 numbers of the hidden size and 4
of the inner size behind in a layer that is trained, and the hidden size alone where
layers are computed again (gradient checkpointing, arXiv 1604.06174). All peaks measured
so far are within 15 %: outputs/reference/bench_memory.json and bench_cost.json, made by
`python -m tests.bench.memory` and `python -m tests.bench.cost`.

Example: 2,048 tokens through a layer of Qwen2-VL-7B (3,584 and 18,944) in bfloat16
leave 2,048 x 3,584 x 2 bytes = 14 MiB behind in the forward pass, and 0.4 GiB, one
layer at a time, in the backward pass.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lib import paths
from lib.model import models
from lib.model.scoring import LOGITS_AT_ONCE

# isort: split
from transformers import AutoConfig, Qwen2VLConfig

GIB = 2**30
# What a card holds besides tensors: the CUDA context with its libraries' workspaces,
# and blocks that torch's allocator cannot reuse. An allowance, not a measurement.
CONTEXT_BYTES, FRAGMENTED_SHARE = GIB * 3 // 4, 0.08
NF4 = 0.5 + 1 / 64 + 1 / 64 / 64  # bytes of a number, with its scale and that one's
KEPT = (10, 4)  # numbers a token leaves behind in a layer, times hidden, inner size
LOADED_ADAPTER = 4  # bytes of a number: PEFT loads adapters in float32
HEAD_ROWS, HEAD_WIDTH = 4096, 32768  # of the logits that TRL 1.16 computes at a time
HOST_BUFFERS = 1.5  # DeepSpeed's documentation, "Memory Requirements"
# From config.json on the hub: hidden size, layers, heads, those of keys, inner size,
# vocabulary, whether the output layer is the embedding.
KNOWN = {
    "Qwen/Qwen2-VL-2B-Instruct": (1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2-VL-7B-Instruct": (3584, 28, 28, 4, 18944, 152064, False),
}
TEXT = ("hidden_size", "num_hidden_layers", "num_attention_heads")
TEXT += ("num_key_value_heads", "intermediate_size", "vocab_size")
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}


def config_of(source: str | Path):
    """The configuration of a local checkpoint, or of a hub id that is known here."""
    if str(source) in KNOWN:
        *sizes, tied = KNOWN[str(source)]
        text = dict(zip(TEXT, sizes, strict=True))
        vision = {**VISION, "hidden_size": text["hidden_size"]}
        return Qwen2VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=tied
        )
    folder = models.checkpoint_source(source)
    if not Path(folder).is_dir():
        raise ValueError(
            f"the sizes of {folder} are not known here: use one of {list(KNOWN)}, or "
            "download its config.json and give the folder"
        )
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@dataclass(frozen=True)
class Model:
    """Sizes of a Qwen2-VL configuration, and how many numbers come of them."""

    hidden: int
    inner: int
    layers: int
    kv: int  # numbers in the keys of one token in one layer
    vocab: int
    tower: int  # width of the vision tower
    tower_inner: int
    blocks: int  # of the tower
    patch: int  # numbers in one patch
    matrices: int  # in the projections of all layers: what NF4 and LoRA act on
    sides: int  # rows and columns of these matrices: an adapter of rank 1
    layer: int  # numbers in one layer
    outside: int  # outside of the layers and of the tower's blocks
    numbers: int  # all of them

    @classmethod
    def of(cls, config) -> "Model":
        text, vision = config.text_config, config.vision_config
        hidden, inner = text.hidden_size, text.intermediate_size
        layers, vocab = text.num_hidden_layers, text.vocab_size
        kv = hidden // text.num_attention_heads * text.num_key_value_heads
        tower, depth = vision.embed_dim, vision.depth
        wide = int(tower * vision.mlp_ratio)
        patch = vision.in_channels * vision.patch_size**2 * vision.temporal_patch_size
        projections = hidden * (2 * hidden + 2 * kv + 3 * inner)
        layer = projections + 3 * hidden + 2 * kv  # biases and norms
        block = tower * (4 * tower + 2 * wide + 9) + wide
        joined = vision.spatial_merge_size**2 * tower
        merger = 2 * tower + joined * (joined + 1) + (joined + 1) * hidden
        embedded = vocab * hidden * (1 if config.tie_word_embeddings else 2)
        outside = embedded + hidden + patch * tower + merger
        return cls(
            *(hidden, inner, layers, kv, vocab, tower, wide, depth, patch),
            matrices=layers * projections,
            sides=layers * (9 * hidden + 2 * kv + 3 * inner),
            layer=layer,
            outside=outside,
            numbers=layers * layer + depth * block + outside,
        )


@dataclass(frozen=True)
class Sharding:
    """How processes divide a model; kind is "" (each holds all), zero3 or fsdp2."""

    processes: int = 1
    kind: str = ""
    optimizer_on_host: bool = False
    weights_on_host: bool = False


def sharding_of(accelerate_config: str, processes: int) -> Sharding:
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
        names = ("offload_optimizer_device", "offload_param_device")
        offloads = (zero.get(name, "none") != "none" for name in names)
        return Sharding(processes, "zero3", *offloads)
    if int(fsdp.get("fsdp_version", 0)) == 2:
        offloads = bool(fsdp.get("fsdp_offload_params", False))
        return Sharding(processes, "fsdp2", offloads, offloads)
    kind = config.get("distributed_type")
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding(processes)
    raise ValueError(
        f"{path} sets neither ZeRO stage 3 nor FSDP version 2: the memory of {kind} is "
        "not planned here"
    )


@dataclass(frozen=True)
class Work:
    """What decides the memory of a run, on one of its devices; lengths in tokens."""

    dtype: str
    quantize: bool
    checkpointing: bool
    lora_rank: int
    prompt: int  # with its pictures
    patches: int  # of the clip and the still of one prompt, before merging
    sft_batch: int
    sft_accumulation: int
    sft_tokens: int  # the longest demonstration
    sft_response: int  # tokens of it that are learned
    prompts: int
    prompts_per_backward: int
    group: int
    completion: int
    pack_tokens: int
    kl: bool
    eval_batch: int
    eval_tokens: int
    device: str = "cuda"  # or "cpu": their kernels keep different buffers
    # Of the questions that take most, eval_batch of them; 0: as the others.
    eval_prompt: int = 0
    eval_patches: int = 0
    # Of all weights; adapters, and what they sit on, are held by everyone.
    sharding: Sharding = field(default_factory=Sharding)

    @property
    def wide(self) -> int:
        """Bytes of a number of the weights and activations."""
        return 4 if self.dtype == "float32" else 2

    @property
    def adapter(self) -> int:
        """Bytes of an adapter's number in training, 0 where all weights are trained:
        TRL keeps it in bfloat16 on a quantized model."""
        return (2 if self.quantize else 4) if self.lora_rank else 0


# --- what stays for the whole run -----------------------------------------------------


def trained_numbers(model: Model, work: Work) -> int:
    return work.lora_rank * model.sides if work.lora_rank else model.numbers


def weight_bytes(model: Model, work: Work) -> float:
    """Of weights that are not trained; NF4 where `models.load_model` quantizes."""
    quantized = model.matrices if work.quantize else 0
    return quantized * NF4 + (model.numbers - quantized) * work.wide


def states(model: Model, work: Work) -> tuple[float, float, float]:
    """Bytes of (weights and optimizer, gradients) on a device, and of the host for all
    its processes together. AdamW has two moments a number.

    ZeRO-3 (arXiv 1910.02054) and FSDP2 divide them by the processes. Otherwise there
    are copies of the weights in bfloat16, and gradients once more as they are sent.
    """
    n, own = trained_numbers(model, work), work.sharding
    if work.lora_rank:
        return weight_bytes(model, work) + 3 * work.adapter * n, work.adapter * n, 0
    whole, share = gathered(model, work), n / own.processes
    if own.kind == "zero3" and own.optimizer_on_host:
        kept, moved = (0, 18) if own.weights_on_host else (2, 16)
        return whole + kept * share, 0, HOST_BUFFERS * moved * n
    if own.kind == "fsdp2" and own.weights_on_host:
        return whole, 0, 16 * n
    if own.kind:
        return whole + (14 if own.kind == "zero3" else 12) * share, 4 * share, 0
    more = (2 if work.wide == 2 else 0) + (4 if own.processes > 1 else 0)
    return (12 + more) * n, 4 * n, 0


def gathered(model: Model, work: Work) -> float:
    """Bytes of weights that a device has whole at once in training: the largest matrix
    under ZeRO-3, two layers and the embeddings under FSDP2."""
    if work.sharding.kind == "zero3":
        return 4 * model.hidden * max(model.vocab, model.inner)
    return work.wide * (model.outside + 2 * model.layer) if work.sharding.kind else 0


def checkpoint_bytes(model: Model, work: Work) -> int:
    """Of one checkpoint that training can go on from: weights and optimizer. ZeRO-3
    keeps its masters in the optimizer's part."""
    each = 3 * work.adapter or (14 if work.sharding.kind == "zero3" else 12)
    return each * trained_numbers(model, work)


def beside(model: Model, work: Work) -> tuple[float, float]:
    """Bytes of (a reference; the rest of the weights, which rollouts gather:
    lib/model/shards.py) where all weights are trained. An adapter is switched off
    instead."""
    own = work.sharding
    loaded = 2 if own.kind == "zero3" else 4
    reference = model.numbers * loaded / (own.processes if own.kind else 1)
    rest = model.numbers * work.wide - gathered(model, work) if own.kind else 0
    if work.lora_rank:
        return 0, 0
    return reference if work.kl and not own.weights_on_host else 0, rest


# --- what passes through --------------------------------------------------------------


def stages(model: Model, work: Work) -> dict[str, float]:
    """{stage: bytes of its tensors at its largest moment}, in the order of a run."""
    held, gradients, _ = states(model, work)
    reference, rest = beside(model, work)
    # A step's pixels and features are kept into the next one.
    pixels = 4 * work.prompts * work.patches * model.patch
    features = work.prompts * work.patches // 4 * model.hidden * work.wide
    rollout = rollouts(model, work) + 2 * pixels + features + rest
    scored = scoring(model, work) + 2 * pixels + features
    updated = update(model, work) + pixels + features
    found = {
        "SFT": held + gradients + sft(model, work),
        "rollout": held + reference + rollout,
        "reference": held + reference + scored,
        "update": held + reference + gradients + updated,
        "evaluation": weight_bytes(model, work) + evaluation(model, work),
    }
    return found if work.kl else {k: v for k, v in found.items() if k != "reference"}


def packs(work: Work, prompts: int) -> tuple[int, int, int]:
    """(rows of the groups of some prompts, rows of one pack, their length)."""
    alone = work.prompt - 1 + work.completion
    if alone > work.pack_tokens:
        raise ValueError(
            f"pack_tokens is {work.pack_tokens}, but one prompt and completion take "
            f"{alone} tokens: raise pack_tokens"
        )
    together = (work.pack_tokens - work.prompt + 1) // max(1, work.completion)
    in_row = min(work.group, together)
    length = work.prompt - 1 + in_row * work.completion
    rows = prompts * -(-work.group // in_row)
    return rows, min(rows, work.pack_tokens // length), length


def learned(
    model: Model, work: Work, rows: int, in_pack: int, length: int, masked: bool
) -> tuple[float, float]:
    """Bytes that rows of tokens leave behind in the layers until the backward pass
    begins, and what they take then, `in_pack` rows at a time."""
    wide, hidden, inner = work.wide, model.hidden, model.inner
    layer = length * wide * (KEPT[0] * hidden + KEPT[1] * inner)
    layer += length * length * (1 + wide) if masked else 0
    if work.device == "cpu" and work.adapter > wide:  # their inputs are converted
        layer += length * (work.adapter - wide) * (6 * hidden + inner)
    flying = in_pack * length * wide * 2 * (hidden + inner) + dequantized(model, work)
    if work.checkpointing:
        inputs = rows * length * wide * hidden * (model.layers + 3)
        return inputs, in_pack * layer + flying
    return rows * model.layers * layer, flying


def dequantized(model: Model, work: Work) -> float:
    """One matrix of NF4 in the computing type, with its scales."""
    return model.hidden * model.inner * (work.wide + 1 / 16) if work.quantize else 0


def forward(model: Model, work: Work, rows: int, length: int, adapter: int) -> float:
    """The language model without autograd: the larger of MLP and attention with its
    mask. Beside an adapter of `adapter` bytes a number the MLP holds its sums."""
    wide, hidden = work.wide, model.hidden
    sums = 2 * (wide + max(wide, adapter)) if adapter else 3 * wide
    mlp = sums * model.inner + 2 * wide * hidden
    attention = wide * (7 * hidden + length)
    embedded = 3 * wide * hidden + length
    return rows * length * (max(mlp, attention) + embedded) + dequantized(model, work)


def tower_kept(model: Model, work: Work, patches: int) -> float:
    """What the vision tower keeps for a backward pass."""
    own = 0 if work.lora_rank else 3 * model.tower + model.tower_inner
    block = 8 * model.tower + 2 * model.tower_inner + own
    again = model.blocks * model.tower + block
    kept = again if work.checkpointing else model.blocks * block
    return patches * work.wide * kept


def answers(
    model: Model, work: Work, asked: tuple[int, int, int], group: int, drawn: int
) -> tuple[float, float, float]:
    """Bytes of the tower, of the prompts' cache, and of cache and logits at the last
    token of `group` answers each; `asked`: prompts, their tokens and patches."""
    prompts, length, patches = asked
    token = 2 * model.kv * model.layers * work.wide  # keys and values
    cache = token * prompts * (length + group * drawn)
    logits = prompts * group * model.vocab * (work.wide + 16)  # in float32 four times
    tower = 15 * work.wide * model.tower * prompts * patches
    return (
        tower,
        token * prompts * length,
        cache + max(logits, 2 * cache / model.layers),
    )


def score_logits(model: Model, tokens: int) -> float:
    """A chunk of logits of `scoring.score` in float32, four times over."""
    chunk = max(1, LOGITS_AT_ONCE // model.vocab)
    return 16 * model.vocab * min(tokens, chunk)


def sft(model: Model, work: Work) -> float:
    """One forward and backward pass of a batch of the longest demonstrations. All
    batches of a step are there at once, on a CPU one of the next step as well."""
    batch, length, cpu = work.sft_batch, work.sft_tokens, work.device == "cpu"
    rows = min(batch * (length if cpu else work.sft_response), HEAD_ROWS)
    head = rows * HEAD_WIDTH * work.wide
    head += rows * min(model.vocab, HEAD_WIDTH) * 28 if cpu else 0
    kept, later = learned(model, work, batch, batch, length, masked=batch > 1)
    kept += 4 * (work.sft_accumulation + cpu) * batch * work.patches * model.patch
    if work.checkpointing or not work.lora_rank:  # its hook reaches a frozen tower too
        kept += tower_kept(model, work, batch * work.patches)
    return kept + max(head, later)


def rollouts(model: Model, work: Work) -> float:
    """Pictures of all prompts, joined; prefill; and the last step of decoding."""
    asked = (work.prompts, work.prompt, work.patches)
    tower, cache, last = answers(model, work, asked, work.group, work.completion)
    joined = 4 * work.prompts * work.patches * model.patch
    first = forward(model, work, work.prompts, work.prompt, work.adapter)
    return max(joined + tower, cache + first, last)


def scoring(model: Model, work: Work) -> float:
    """Log-probabilities of the base, one pack at a time, without autograd."""
    _, rows, length = packs(work, work.prompts)
    logits = score_logits(model, rows * (length - work.prompt + 1))
    return max(forward(model, work, rows, length, 0), logits)


def update(model: Model, work: Work) -> float:
    """The packs of one backward pass; all of them are kept until it begins."""
    prompts = work.prompts_per_backward or work.prompts
    rows, in_pack, length = packs(work, prompts)
    kept, later = learned(model, work, rows, in_pack, length, masked=True)
    if not work.lora_rank:
        kept += tower_kept(model, work, prompts * work.patches)
    logits = score_logits(model, in_pack * (length - work.prompt + 1))
    return kept + max(logits, later)


def evaluation(model: Model, work: Work) -> float:
    """One batch, one completion a prompt. Its pixels are there alone and, up to the
    prefill, joined; on a CPU those that the processor made stay as well."""
    prompt = work.eval_prompt or work.prompt
    asked = (work.eval_batch, prompt, work.eval_patches or work.patches)
    tower, cache, last = answers(model, work, asked, 1, work.eval_tokens)
    adapter = LOADED_ADAPTER if work.lora_rank else 0
    first = cache + forward(model, work, work.eval_batch, prompt, adapter)
    pixels = 4 * asked[0] * asked[2] * model.patch
    kept = pixels * (2 if work.device == "cpu" else 1)
    kept += adapter * work.lora_rank * model.sides
    return kept + max(pixels + tower, pixels + first, last)
