"""Does a run fit the card? Bytes of every stage, by a closed formula.

Weights, adapters and optimizer are counted on a model without numbers. What passes
through goes by a rule: a token leaves 10 numbers of the hidden size and 4 of the
inner size behind in a layer that is trained, and the hidden size alone where layers are
computed again (gradient checkpointing, arXiv 1604.06174). Every measured peak is within
15 %: bench_memory.json and bench_cost.json in outputs/reference."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from lib import paths
from lib.model import models
from lib.model.scoring import LOGITS_AT_ONCE
from lib.model.token_step import SMALL

# isort: split
from transformers import AutoConfig, AutoModelForImageTextToText

GIB = 2**30
# What a card holds besides tensors: the CUDA context with its libraries' workspaces,
# and blocks that torch's allocator cannot reuse. An allowance, not a measurement.
CONTEXT_BYTES, FRAGMENTED_SHARE = GIB * 3 // 4, 0.08
NF4 = 0.5 + 1 / 64 + 1 / 64 / 64  # bytes of a number, with its scale and that one's
KEPT = (10, 4)  # numbers a token leaves behind in a layer, times hidden, inner size
PATCH_BYTES = 4 * 3 * 2 * 14 * 14  # float32 of channels, frames, height and width
LOADED_ADAPTER = 4  # bytes of a number: PEFT loads adapters in float32
HEAD_ROWS, HEAD_WIDTH = 4096, 32768  # of the logits that TRL 1.16 computes at a time
# How processes divide all weights, and the bytes of a number: of weights and optimizer,
# of gradients, of a reference; on the host. DeepSpeed has 1.5 times as much there (its
# "Memory Requirements").
DIVIDED = {
    "zero3": (14, 4, 2, 0),
    "zero3, optimizer on the host": (2, 0, 2, 24),
    "zero3, all on the host": (0, 0, 0, 27),
    "fsdp2": (12, 4, 4, 0),
    "fsdp2, all on the host": (0, 0, 0, 16),
}
# From config.json on the hub: the family, the sizes named in TEXT, and whether the
# output layer is the embedding.
OF_7B = (3584, 28, 28, 4, 18944, 152064, False)
KNOWN = {
    "Qwen/Qwen2-VL-2B-Instruct": ("qwen2_vl", 1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", *OF_7B),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl", *OF_7B),
}
TEXT = ("hidden_size", "num_hidden_layers", "num_attention_heads")
TEXT += ("num_key_value_heads", "intermediate_size", "vocab_size")
VISION = {"qwen2_vl": {}, "qwen2_5_vl": {"hidden_size": 1280}}  # else the defaults


def config_of(source: str | Path):
    """The configuration of a local checkpoint, or of a hub id that is known here."""
    if str(source) in KNOWN:
        family, *sizes, tied = KNOWN[str(source)]
        text = dict(zip(TEXT, sizes, strict=True))
        out = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"
        return AutoConfig.for_model(
            family,
            text_config=text,
            vision_config={**VISION[family], out: text["hidden_size"]},
            tie_word_embeddings=tied,
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
    """Sizes of a Qwen2-VL or Qwen2.5-VL configuration, and how many numbers it has."""

    hidden: int
    inner: int
    kv: int  # numbers in the keys of one token in one layer
    layers: int
    vocab: int
    tower: int  # width of the vision tower
    blocks: int  # of the tower
    matrices: int  # in the projections of all layers: what NF4 and LoRA act on
    sides: int  # rows and columns of these matrices: an adapter of rank 1
    numbers: int  # all of them

    @classmethod
    def of(cls, config) -> "Model":
        """The sizes of a configuration; ValueError for a family not planned here."""
        if config.model_type not in VISION:
            raise ValueError(f"the memory of {config.model_type} is not planned here")
        with torch.device("meta"):  # shapes without numbers
            model = AutoModelForImageTextToText.from_config(config)
        text, vision = config.text_config, config.vision_config
        layers = model.model.language_model.layers.named_parameters()
        projections = [w for name, w in layers if name.endswith("_proj.weight")]
        older = config.model_type == "qwen2_vl"
        return cls(
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            kv=text.hidden_size // text.num_attention_heads * text.num_key_value_heads,
            layers=text.num_hidden_layers,
            vocab=text.vocab_size,
            tower=vision.embed_dim if older else vision.hidden_size,
            blocks=vision.depth,
            matrices=sum(weight.numel() for weight in projections),
            sides=sum(sum(weight.shape) for weight in projections),
            numbers=model.num_parameters(),
        )


def sharding_of(accelerate_config: str) -> str:
    """What a file for `accelerate launch` says, a key of DIVIDED, or "": each process
    holds all. ValueError for another kind."""
    if not accelerate_config:
        return ""
    path = paths.require(accelerate_config, "give a file such as params/accelerate/*")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    zero, fsdp = config.get("deepspeed_config", {}), config.get("fsdp_config", {})
    if int(zero.get("zero_stage", 0)) == 3:
        if zero.get("offload_optimizer_device", "none") == "none":
            return "zero3"
        whole = zero.get("offload_param_device", "none") != "none"
        return f"zero3, {'all' if whole else 'optimizer'} on the host"
    if int(fsdp.get("fsdp_version", 0)) == 2:
        return "fsdp2" + ", all on the host" * bool(fsdp.get("fsdp_offload_params"))
    kind = config.get("distributed_type")
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return ""
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
    prompts: int
    prompts_per_backward: int
    group: int
    completion: int
    pack_tokens: int
    kl: bool
    eval_batch: int
    eval_tokens: int
    eval_prompt: int  # of the questions that take most, eval_batch of them
    eval_patches: int
    device: str = "cuda"  # or "cpu": their kernels keep different buffers
    processes: int = 1
    sharding: str = ""  # of all weights: everyone holds adapters and what they sit on
    average: bool = False  # of what is trained, GRPO-CARE's reference in float32

    @property
    def wide(self) -> int:
        """Bytes of a number of the weights and activations."""
        return 4 if self.dtype == "float32" else 2

    @property
    def adapter(self) -> int:
        """Bytes of an adapter's number in training; TRL keeps it in bfloat16 on a
        quantized model. 0 where all weights are trained."""
        return (2 if self.quantize else 4) if self.lora_rank else 0


def trained_numbers(model: Model, work: Work) -> int:
    """How many numbers are trained."""
    return work.lora_rank * model.sides if work.lora_rank else model.numbers


def weight_bytes(model: Model, work: Work) -> float:
    """Of weights that are not trained."""
    quantized = model.matrices if work.quantize else 0
    return quantized * NF4 + (model.numbers - quantized) * work.wide


def states(model: Model, work: Work) -> tuple[float, float, float, float, float]:
    """Bytes on a device of weights and optimizer; of gradients; of a reference, where
    no adapter can be switched off; of the rest of the weights, which rollouts gather;
    and of the host for all its processes together. AdamW has two moments a number.
    ZeRO-3 (arXiv 1910.02054) and FSDP2 divide all by the processes. Otherwise there are
    copies of the weights in bfloat16, and gradients once more as they are sent."""
    n = trained_numbers(model, work)
    if work.lora_rank:
        kept = weight_bytes(model, work) + 3 * work.adapter * n
        return kept, work.adapter * n, 0, 0, 0
    if work.sharding:
        *each, host = DIVIDED[work.sharding]
        kept, gradients, reference = (one * n / work.processes for one in each)
        # The largest matrix in float32 is whole in training too; of FSDP2 two layers
        # and both embeddings, which are about as much.
        whole = 4 * model.hidden * max(model.vocab, model.inner)
        rest = n * work.wide - whole
        return whole + kept, gradients, work.kl * reference, rest, host * n
    more = (2 if work.wide == 2 else 0) + (4 if work.processes > 1 else 0)
    return (12 + more) * n, 4 * n, 4 * work.kl * n, 0, 0


def stages(model: Model, work: Work) -> dict[str, float]:
    """{stage: bytes of its tensors at its largest moment}, in the order of a run."""
    held, gradients, reference, rest, _ = states(model, work)
    if work.average:  # beside it the policy that it takes the place of
        own = (4 + (work.adapter or 4)) * trained_numbers(model, work)
        reference += own / (work.processes if work.sharding else 1)
    # A step's pixels, and those that are joined from them, are kept into the next one.
    pixels = work.prompts * work.patches * PATCH_BYTES
    asked = work.prompts, work.group, work.prompt, work.patches
    rollout = answers(model, work, asked, work.completion, work.adapter)
    found = {
        "SFT": held + gradients + sft(model, work),
        "rollout": held + reference + rest + 2 * pixels + rollout,
        "reference": held + reference + 2 * pixels + scoring(model, work),
        "update": held + reference + gradients + pixels + update(model, work),
        "evaluation": weight_bytes(model, work) + evaluation(model, work),
    }
    is_asked = work.kl or work.average
    return found if is_asked else {k: v for k, v in found.items() if k != "reference"}


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


def sft(model: Model, work: Work) -> float:
    """A batch of the longest demonstrations, beside the pixels of all batches of a
    step. On a CPU the head is not fused."""
    batch, length, cpu = work.sft_batch, work.sft_tokens, work.device == "cpu"
    rows = min(batch * length, HEAD_ROWS)
    head = rows * HEAD_WIDTH * work.wide
    head += rows * min(model.vocab, HEAD_WIDTH) * 28 if cpu else 0
    patches = batch * work.patches
    pixels = work.sft_accumulation * patches * PATCH_BYTES
    return pixels + learned(model, work, (batch, batch, length), head, patches)


def scoring(model: Model, work: Work) -> float:
    """Log-probabilities of the base, one pack at a time, without autograd."""
    _, rows, length = packs(work, work.prompts)
    logits = score_logits(model, rows * (length - work.prompt + 1))
    return max(forward(model, work, rows * length, 0), logits)


def update(model: Model, work: Work) -> float:
    """The packs of one backward pass; all of them are kept until it begins."""
    prompts = work.prompts_per_backward or work.prompts
    _, in_pack, length = packed = packs(work, prompts)
    patches = 0 if work.lora_rank else prompts * work.patches  # that are learned from
    logits = score_logits(model, in_pack * (length - work.prompt + 1))
    return learned(model, work, packed, logits, patches)


def evaluation(model: Model, work: Work) -> float:
    """One batch of the questions that take most, whose pixels are there twice: as the
    processor made them, and alone."""
    asked = work.eval_batch, 1, work.eval_prompt, work.eval_patches
    adapter = LOADED_ADAPTER if work.lora_rank else 0
    kept = 2 * work.eval_batch * work.eval_patches * PATCH_BYTES
    kept += adapter * work.lora_rank * model.sides
    return kept + answers(model, work, asked, work.eval_tokens, adapter)


def answers(
    model: Model, work: Work, asked: tuple[int, ...], drawn: int, adapter: int
) -> float:
    """The largest of vision tower, prefill, and the last of `drawn` tokens. `asked`:
    prompts, answers of each, tokens and patches."""
    prompts, group, length, patches = asked
    tower = prompts * patches * (PATCH_BYTES + 15 * work.wide * model.tower)
    token = 2 * model.kv * model.layers * work.wide  # keys and values
    prefill = prompts * length * token + forward(model, work, prompts * length, adapter)
    logits = prompts * group * model.vocab * (work.wide + 16)  # in float32 four times
    last = prompts * (length + group * drawn) * token + logits
    # A token step on a CPU joins small float32 layers (lib/model/token_step.py).
    whole = work.device == "cpu" and work.wide == 4 and not work.quantize
    is_joined = whole and model.hidden * model.inner <= SMALL
    return max(tower, prefill, last) + (4 * model.matrices if is_joined else 0)


def forward(model: Model, work: Work, tokens: int, adapter: int) -> float:
    """The language model without autograd: its MLP, with the sums of an adapter of
    `adapter` bytes a number."""
    each = 2 * (work.wide + max(work.wide, adapter)) * model.inner
    return tokens * (each + 5 * work.wide * model.hidden) + dequantized(model, work)


def learned(
    model: Model, work: Work, packed: tuple[int, int, int], head: float, patches: int
) -> float:
    """What rows, packed as by `packs`, leave behind in the layers until the backward
    pass, patches in the tower, and what that pass takes: its head, or a layer anew."""
    rows, in_pack, length = packed
    wide, tower = work.wide, patches * work.wide * model.tower
    layer = length * wide * (KEPT[0] * model.hidden + KEPT[1] * model.inner)
    layer += length * length * (1 + wide)  # the mask
    if not work.checkpointing:
        kept = 20 * model.blocks * tower + rows * model.layers * layer
        return kept + max(head, dequantized(model, work))
    kept = rows * length * wide * model.hidden * (model.layers + 3)
    kept += (model.blocks + 20) * tower
    return kept + max(head, in_pack * layer + dequantized(model, work))


def dequantized(model: Model, work: Work) -> float:
    """One matrix of NF4 in the computing type, with its scales."""
    return model.hidden * model.inner * (work.wide + 1 / 16) if work.quantize else 0


def score_logits(model: Model, tokens: int) -> float:
    """A chunk of logits of `scoring.score` in float32, four times over."""
    return 16 * model.vocab * min(tokens, LOGITS_AT_ONCE // model.vocab)
