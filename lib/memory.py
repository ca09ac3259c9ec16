"""Does a run fit the card? Bytes of every stage, before anything is downloaded.

    python -m lib.models plan params/single_gpu_7b.yaml --gib 24

The sizes come from the checkpoint's configuration, the rest from the params file. Bytes
are counted from what the code allocates: parameters are exact (the model is built
without memory on torch's meta device); activations follow what autograd keeps of each
operation of transformers 5.23, peft 0.21, TRL 1.16 and bitsandbytes 0.50.
`python -m tests.bench.memory` compares the plan with measured peaks.

Example: a row of L = 2,930 tokens through a layer of Qwen2-VL-7B (H = 3,584, I =
18,944) in bfloat16 with NF4 and checkpointing leaves L x H x 2 bytes = 20 MiB behind in
the forward pass, and L x (8 H x 2 + 2 H x 2 + 4 I x 2) = 0.6 GiB, one layer at a time,
in the backward pass.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lib import model_states, models, params, perception
from lib.grpo import GRPOSettings
from lib.model import scoring
from lib.model_states import Sharding
from lib.video import PATCH, Sampling

# isort: split
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig

GIB = 2**30
# What a card holds besides tensors. An allowance, not a measurement: the CUDA context
# with its libraries' workspaces, and blocks that torch's allocator cannot reuse.
CONTEXT_BYTES = GIB * 3 // 4
FRAGMENTED_SHARE = 0.08
# Text of a "think" prompt: 883 tokens in all at 16 frames of 252 x 252, where 729 are
# visual. A longer question takes more; SFT is bounded by max_tokens instead.
TEXT_TOKENS = 154
# From the models' config.json on the hub; the numbers of parameters they give are the
# published ones, 2,208,985,600 and 8,291,375,616.
KNOWN = {
    "Qwen/Qwen2-VL-2B-Instruct": {
        "text_config": {
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "vocab_size": 151936,
        },
        "vision_config": {"hidden_size": 1536},
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2-VL-7B-Instruct": {
        "text_config": {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
        },
        "vision_config": {"hidden_size": 3584},
        "tie_word_embeddings": False,
    },
}
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
HEAD_WIDTH = 32768  # columns of logits that TRL 1.16 computes at a time in SFT
HEAD_ROWS = 4096  # and its rows
LOADED_ADAPTER = 4  # bytes of a number: PEFT loads adapters in float32
AGAIN = "one layer, computed again"
BLOCKS = r"\.(layers|blocks)\.\d+\."  # of language model and vision tower
NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # weights with one scale, scales with one scale


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
    def adapter_wide(self) -> int:
        """In training: TRL keeps them in bfloat16 on a quantized model."""
        return 2 if self.quantize else 4


@dataclass(frozen=True)
class Stage:
    """A stage's items in bytes, at its largest moment."""

    name: str
    items: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a configuration, in Qwen2-VL's terms."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv: int  # numbers in the keys of one token in one layer
    head: int
    vocab: int
    tower: int  # width of the vision tower
    tower_inner: int
    tower_layers: int
    patch: int  # numbers in one patch
    merge: int  # patches of one visual token

    @classmethod
    def of(cls, config) -> "Sizes":
        """The sizes of a Qwen2-VL configuration."""
        text, vision = config.text_config, config.vision_config
        head = text.hidden_size // text.num_attention_heads
        side = vision.patch_size**2 * vision.temporal_patch_size
        return cls(
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv=text.num_key_value_heads * head,
            head=head,
            vocab=text.vocab_size,
            tower=vision.embed_dim,
            tower_inner=int(vision.embed_dim * vision.mlp_ratio),
            tower_layers=vision.depth,
            patch=vision.in_channels * side,
            merge=vision.spatial_merge_size**2,
        )


def config_of(source: str | Path):
    """The configuration of a local checkpoint, or of a hub id that is known here."""
    if str(source) in KNOWN:
        known = KNOWN[str(source)]
        vision = {**VISION, **known["vision_config"]}
        return Qwen2VLConfig(**{**known, "vision_config": vision})
    folder = models.checkpoint_source(source)
    if not Path(folder).is_dir():
        raise ValueError(
            f"the sizes of {folder} are not known here: use one of {list(KNOWN)}, or "
            "download its config.json and give the folder"
        )
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def parameters(config) -> dict[str, torch.nn.Parameter]:
    """Every parameter by name, on the meta device: sizes without memory."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return dict(model.named_parameters())


# What stays for the whole run


def weight_bytes(named: dict, work: Work) -> dict[str, int]:
    """The frozen weights; NF4 where `models.load_model` quantizes."""
    tower, matrices, rest = 0, 0, 0
    for name, tensor in named.items():
        if name.startswith("model.visual."):
            tower += tensor.numel() * work.wide
        elif work.quantize and re.search(r"_proj\.weight$", name):
            matrices += nf4_bytes(tensor.numel())
        else:
            rest += tensor.numel() * work.wide
    quantized = {"language model, NF4 matrices": matrices} if matrices else {}
    return {
        **quantized,
        "language model, other weights" if matrices else "language model": rest,
        "vision tower": tower,
    }


def nf4_bytes(numbers: int) -> int:
    """Half a byte a weight, a byte a block, and the second level of double quantizing.

    The second level has a float32 a block of scales, a table of 256 and one of 16
    float32 values and an offset.
    """
    scales = -(-numbers // NF4_BLOCK)
    second = 4 * -(-scales // ABSMAX_BLOCK)
    return numbers // 2 + scales + second + 4 * (256 + 16 + 1)


def trained_numbers(named: dict, work: Work) -> int:
    """Trainable numbers: adapters on the seven projections of a layer, or all."""
    if not work.lora_rank:
        return sum(tensor.numel() for tensor in named.values())
    target = re.compile(models.LORA_TARGETS + r"\.weight")
    shapes = [tensor.shape for name, tensor in named.items() if target.fullmatch(name)]
    return work.lora_rank * sum(sum(shape) for shape in shapes)


def held_bytes(named: dict, work: Work) -> tuple[dict[str, int], dict[str, int]]:
    """(what training holds throughout, gradients): AdamW has two moments a number."""
    numbers = trained_numbers(named, work)
    if work.lora_rank:
        once = numbers * work.adapter_wide
        own = {"adapters": once, "optimizer (AdamW)": 2 * once}
        return {**weight_bytes(named, work), **own}, {"gradients": once}
    held, _ = work.sharding.states(numbers, gathered_numbers(named, work), work.wide)
    return held, {"gradients": held.pop("gradients", 0)}


def gathered_numbers(named: dict, work: Work) -> int:
    """Weights that a device has whole at once: see lib/model_states.py."""
    sizes = {name: tensor.numel() for name, tensor in named.items()}
    if work.sharding.kind == "zero3":
        return max(sizes.values())
    outside = sum(n for name, n in sizes.items() if not re.search(BLOCKS, name))
    layer = sum(n for name, n in sizes.items() if ".layers.0." in name)
    return outside + 2 * layer


def gathered_bytes(named: dict, work: Work) -> dict[str, int]:
    """Rollouts run on whole weights, gathered before (lib/shards.py)."""
    if work.lora_rank or not work.sharding.kind:
        return {}
    return {"gathered weights": trained_numbers(named, work) * work.wide}


def host_bytes(named: dict, work: Work) -> int:
    """What offloading keeps in the host's memory, for all its processes together."""
    if work.lora_rank:
        return 0
    numbers, gathered = trained_numbers(named, work), gathered_numbers(named, work)
    return work.sharding.states(numbers, gathered, work.wide)[1]


# What a layer keeps and needs


def kept_by_layer(sizes: Sizes, work: Work, autocast: bool) -> int:
    """Bytes a token that autograd keeps of one layer of the language model.

    The two norms keep their input in float32. Attention keeps query, repeated keys and
    values, output and a float32 a head; the MLP its gate, activated gate and value. An
    adapter keeps its input, which projections share unless it had to be converted.
    """
    hidden, inner, wide = sizes.hidden, sizes.inner, work.wide
    norms = 2 * 4 * hidden
    attention = 4 * wide * hidden + 4 * sizes.heads
    mlp = 3 * wide * inner
    same = 2 * wide * hidden + wide * inner  # inputs of q, k, v, of gate, up, of down
    if not work.lora_rank:  # weights of norms keep their normalized input as well
        return norms + attention + mlp + same + 2 * wide * hidden
    converted = work.adapter_wide != wide
    if not converted or (autocast and work.quantize):
        inputs, between = same, wide
    else:
        between = wide if autocast else work.adapter_wide
        inputs = between * (6 * hidden + inner)
    return norms + attention + mlp + inputs + 7 * work.lora_rank * between


def layer_backward(sizes: Sizes, work: Work, tokens: int) -> int:
    """Gradients in flight in the MLP, and the dequantized matrix behind them."""
    flying = tokens * work.wide * 2 * (sizes.inner + sizes.hidden)
    return flying + dequantized(sizes, work)


def dequantized(sizes: Sizes, work: Work) -> int:
    """One matrix of the MLP in the computing type, with its scales in float32."""
    numbers = sizes.hidden * sizes.inner
    scales = 4 * (numbers // NF4_BLOCK)
    return numbers * work.wide + scales if work.quantize else 0


def layer_forward(
    sizes: Sizes, work: Work, rows: int, length: int, adapter: int
) -> int:
    """Without autograd, the larger of the MLP and attention with its converted mask.

    The MLP holds its inputs, the activated gate, the value and, where there is an
    adapter with numbers of `adapter` bytes, its contribution and the sum in that type.
    """
    wide, inner, hidden = work.wide, sizes.inner, sizes.hidden
    value = 2 * (wide + max(wide, adapter)) if adapter else 3 * wide
    mlp = rows * length * (value * inner + 2 * wide * hidden)
    _, converted = mask_bytes(rows, length, work)
    attention = rows * length * 7 * wide * hidden + converted
    return max(mlp, attention) + dequantized(sizes, work)


def vision_forward(sizes: Sizes, work: Work, patches: int) -> int:
    """Without autograd: hidden states and the larger of QuickGELU and the rotation."""
    wide = work.wide
    mlp = 3 * wide * sizes.tower_inner
    rotation = 3 * wide * sizes.tower + 5 * 4 * sizes.tower
    pixels = sizes.patch * (wide if wide < 4 else 0)
    return patches * max(3 * wide * sizes.tower + max(mlp, rotation), pixels)


def kept_by_vision(sizes: Sizes, work: Work, patches: int, trained: bool) -> int:
    """Where the tower has a graph: its blocks' inputs, or all that its blocks keep."""
    wide, tower, inner = work.wide, sizes.tower, sizes.tower_inner
    block = wide * (8 * tower + 2 * inner)
    block += wide * (3 * tower + inner) if trained else 0
    if work.checkpointing:
        return patches * (sizes.tower_layers * wide * tower + block)
    return patches * sizes.tower_layers * block


def pixel_bytes(sizes: Sizes, prompts: int, work: Work) -> int:
    return prompts * work.patches * sizes.patch * 4


def mask_bytes(rows: int, length: int, work: Work) -> tuple[int, int]:
    """A [B, 1, L, L] mask of booleans, and what attention converts it to in a layer."""
    cells = rows * length * length
    return cells, cells * work.wide


def activations(
    sizes: Sizes,
    work: Work,
    rows: int,
    in_pack: int,
    length: int,
    autocast: bool,
    masked: bool,
) -> dict[str, int]:
    """Kept by the language model for rows x length tokens, in_pack rows at a time."""
    wide, hidden = work.wide, sizes.hidden
    boolean, converted = mask_bytes(1, length, work) if masked else (0, 0)
    layer = length * kept_by_layer(sizes, work, autocast) + converted
    embedded = rows * length * wide * (3 * hidden + 2 * sizes.head)
    if work.checkpointing:
        inputs = rows * length * sizes.layers * wide * hidden
        return {
            "inputs of the layers": inputs + embedded,
            AGAIN: in_pack * layer,
            "attention masks": rows * boolean,
        }
    return {
        "activations of the layers": rows * sizes.layers * layer + embedded,
        "attention masks": rows * boolean,
    }


# Stages


def plan(config, work: Work) -> list[Stage]:
    """The stages of a run in their order, each at its largest moment."""
    named, sizes = parameters(config), Sizes.of(config)
    training, gradients = held_bytes(named, work)
    items = sft_items(sizes, work)
    stages = [Stage("SFT", {**training, **gradients, **items})]
    other = reference_bytes(named, work)
    items = {**rollout_items(sizes, work), **gathered_bytes(named, work)}
    stages.append(Stage("rollout", {**training, **other, **items}))
    if work.kl:
        items = reference_items(sizes, work)
        stages.append(Stage("reference", {**training, **other, **items}))
    items = update_items(sizes, work)
    stages.append(Stage("update", {**training, **other, **gradients, **items}))
    items = evaluation_items(sizes, work)
    if work.lora_rank:
        items["adapter"] = trained_numbers(named, work) * LOADED_ADAPTER
    stages.append(Stage("evaluation", {**weight_bytes(named, work), **items}))
    return stages


def reference_bytes(named: dict, work: Work) -> dict[str, int]:
    """An adapter is switched off for the reference; all weights need a second model."""
    if work.lora_rank or not work.kl:
        return {}
    numbers = trained_numbers(named, work)
    return {"reference model": work.sharding.frozen(numbers)}


def largest(*moments: dict[str, int]) -> dict[str, int]:
    """The moment with the most bytes."""
    return max(moments, key=lambda items: sum(items.values()))


def sft_items(sizes: Sizes, work: Work) -> dict[str, int]:
    """One forward and backward pass of a batch of the longest demonstrations."""
    rows, length = work.sft_batch, work.sft_tokens
    tokens, autocast = rows * length, work.wide == 2
    kept = activations(sizes, work, rows, rows, length, autocast, masked=rows > 1)
    # The Trainer fetches all batches of a step, on a CPU one of the next step as well.
    batches = work.sft_accumulation + (work.device == "cpu")
    pixels = {"pixels of the step": batches * pixel_bytes(sizes, rows, work)}
    tower, trained = {}, not work.lora_rank
    # Checkpointing's hook for inputs gives a frozen tower a graph as well.
    if work.checkpointing or trained:
        size = kept_by_vision(sizes, work, rows * work.patches, trained)
        tower = {"vision tower's activations": size}
    head = {"head and loss": sft_head(sizes, work)}
    flying = {"gradients in flight": layer_backward(sizes, work, tokens)}
    moment = largest({**without_again(kept), **head}, {**kept, **flying})
    return {**pixels, **tower, **moment}


def sft_head(sizes: Sizes, work: Work) -> int:
    """TRL's tile of logits, and on a CPU what torch computes from it."""
    width = min(sizes.vocab, HEAD_WIDTH)
    if work.device == "cuda":
        rows = work.sft_batch * work.sft_response
        tile = min(rows, HEAD_ROWS) * HEAD_WIDTH * work.wide
        return tile + rows * sizes.hidden * (4 + work.wide)
    rows = work.sft_batch * (work.sft_tokens - 1)
    buffer = min(rows, HEAD_ROWS) * HEAD_WIDTH * work.wide
    return buffer + min(rows, HEAD_ROWS) * width * 7 * 4 + rows * sizes.hidden * 4


def score_head(sizes: Sizes, tokens: int) -> int:
    """A chunk of logits of scoring.score in float32, four times over."""
    chunk = max(1, scoring.LOGITS_AT_ONCE // sizes.vocab)
    return min(tokens, chunk) * sizes.vocab * 4 * 4


def cache_bytes(sizes: Sizes, work: Work, prompts: int, length: int) -> int:
    """Keys and values of `length` tokens behind each of some prompts."""
    return prompts * length * sizes.layers * 2 * sizes.kv * work.wide


def decode_bytes(sizes: Sizes, work: Work, rows: int, length: int, queries: int) -> int:
    """One token a completion: a layer's cache copied and its heads repeated, logits.

    Logits are there in the model's type and, for suppressing, top-k and drawing, four
    times in float32.
    """
    copied = rows * length * 2 * sizes.kv * work.wide
    repeated = rows * length * 2 * sizes.hidden * work.wide if queries > 1 else 0
    mask = rows * queries * length * (2 + work.wide)
    logits = rows * queries * sizes.vocab * (work.wide + 4 * 4)
    return max(copied + repeated + mask, logits)


def rollout_items(sizes: Sizes, work: Work) -> dict[str, int]:
    """Vision tower over all prompts, prefill, and the last step of decoding."""
    prompts, length = work.prompts, work.prompt + work.group * work.completion
    adapter = work.adapter_wide if work.lora_rank else 0
    joined = pixel_bytes(sizes, prompts, work)  # the tower takes all prompts at once
    forward = joined + vision_forward(sizes, work, prompts * work.patches)
    tower = {"vision tower, forward": forward}
    prefill = {
        "cache of the prompts": cache_bytes(sizes, work, prompts, work.prompt),
        "prefill": forward_bytes(sizes, work, prompts, work.prompt, adapter),
    }
    decode = {
        "cache of the rollouts": cache_bytes(sizes, work, prompts, length),
        "decoding": decode_bytes(sizes, work, prompts, length, work.group),
    }
    return {**held_by_steps(sizes, work, 2), **largest(tower, prefill, decode)}


def forward_bytes(
    sizes: Sizes, work: Work, rows: int, length: int, adapter: int
) -> int:
    """A forward pass of the language model without autograd."""
    boolean, _ = mask_bytes(rows, length, work)
    embedded = rows * length * 3 * work.wide * sizes.hidden
    return layer_forward(sizes, work, rows, length, adapter) + embedded + boolean


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
    in_pack = min(rows, work.pack_tokens // length)
    return rows, in_pack, length


def held_by_steps(sizes: Sizes, work: Work, steps: int) -> dict[str, int]:
    """Pixels and features of all prompts; a step's are kept into the next one."""
    visual = work.prompts * (work.patches // sizes.merge)
    return {
        "pixels": steps * pixel_bytes(sizes, work.prompts, work),
        "visual features": steps * visual * sizes.hidden * work.wide,
    }


def reference_items(sizes: Sizes, work: Work) -> dict[str, int]:
    """Log-probabilities of the base, one pack at a time, without autograd."""
    _, rows, length = packs(work, work.prompts)  # of one pack
    learned = rows * (length - work.prompt + 1)
    hidden = rows * length * (work.wide * sizes.hidden + length)  # and the mask
    return {
        **held_by_steps(sizes, work, 2),
        **largest(
            {"one pack, forward": forward_bytes(sizes, work, rows, length, 0)},
            {"logits, hidden states, mask": score_head(sizes, learned) + hidden},
        ),
    }


def update_items(sizes: Sizes, work: Work) -> dict[str, int]:
    """The packs of one backward pass; all of them are kept until it begins."""
    prompts = work.prompts_per_backward or work.prompts
    rows, in_pack, length = packs(work, prompts)
    autocast = work.device == "cuda" and work.wide == 2
    kept = activations(sizes, work, rows, in_pack, length, autocast, masked=True)
    if not work.lora_rank:
        patches = prompts * work.patches
        size = kept_by_vision(sizes, work, patches, trained=True)
        kept["vision tower's activations"] = size
    head = {"logits": score_head(sizes, in_pack * (length - work.prompt + 1))}
    flying = {"gradients in flight": layer_backward(sizes, work, in_pack * length)}
    moment = largest({**without_again(kept), **head}, {**kept, **flying})
    return {**held_by_steps(sizes, work, 1), **moment}


def without_again(kept: dict[str, int]) -> dict[str, int]:
    """What is kept while the loss is computed, before a layer is computed again."""
    return {name: size for name, size in kept.items() if name != AGAIN}


def evaluation_items(sizes: Sizes, work: Work) -> dict[str, int]:
    """One batch: vision tower, prefill and last token, one completion a prompt.

    Pixels are there as those of the single prompts and, up to the prefill, of all
    together; on a CPU those that the processor made stay as well.
    """
    work = replace(
        work,
        prompt=work.eval_prompt or work.prompt,
        patches=work.eval_patches or work.patches,
    )
    rows, length = work.eval_batch, work.prompt + work.eval_tokens
    adapter = LOADED_ADAPTER if work.lora_rank else 0
    once = pixel_bytes(sizes, rows, work)
    kept = {"pixels": once * (2 if work.device == "cpu" else 1)}
    together = {"pixels together": once}
    patches = rows * work.patches
    tower = {"vision tower, forward": vision_forward(sizes, work, patches)}
    prefill = {
        "cache of the prompts": cache_bytes(sizes, work, rows, work.prompt),
        "prefill": forward_bytes(sizes, work, rows, work.prompt, adapter),
    }
    decode = {
        "cache": cache_bytes(sizes, work, rows, length),
        "decoding": decode_bytes(sizes, work, rows, length, 1),
    }
    moment = largest({**together, **tower}, {**together, **prefill}, decode)
    return {**kept, **moment}


# The command


def work_of(values: dict, device: str) -> Work:
    """The work that a run's parameters describe; ValueError where they contradict."""
    sampling = sampling_of(values)
    prompt, patches = prompt_with(sampling)
    eval_batch, eval_prompt, eval_patches = largest_batch(values, sampling)
    if values["max_tokens"] <= prompt:
        raise ValueError(
            f"max_tokens is {values['max_tokens']}, but a prompt alone takes about "
            f"{prompt} tokens: raise max_tokens"
        )
    processes = values["num_processes"]
    own, rest = divmod(values["prompts_per_step"], processes)
    if rest or own % (values["prompts_per_backward"] or own):
        raise ValueError(
            f"prompts_per_step is {values['prompts_per_step']}: it cannot be split "
            f"over {processes} processes and backward passes of "
            f"{values['prompts_per_backward'] or own} prompts each"
        )
    return Work(
        dtype=values["dtype"],
        quantize=values["quantize"],
        checkpointing=values["gradient_checkpointing"],
        lora_rank=values["lora_rank"],
        prompt=prompt,
        patches=patches,
        sft_batch=values["sft_batch_size"],
        sft_accumulation=values["sft_gradient_accumulation"],
        sft_tokens=values["max_tokens"],
        sft_response=values["max_tokens"] - prompt,
        prompts=own,
        prompts_per_backward=values["prompts_per_backward"],
        group=values["group_size"],
        completion=values["max_completion_tokens"],
        pack_tokens=values["pack_tokens"],
        kl=values["kl_beta"] > 0,
        eval_batch=eval_batch,
        eval_tokens=values["max_new_tokens"],
        eval_prompt=eval_prompt,
        eval_patches=eval_patches,
        device=device,
        sharding=model_states.of_config(values["accelerate_config"], processes),
    )


def sampling_of(values: Mapping) -> Sampling:
    """How a run samples its clips; ValueError for numbers that cannot be."""
    return Sampling(
        values["max_frames"],
        fps=values["video_fps"],
        height=values["frame_height"],
        width=values["frame_width"],
    )


def largest_batch(values: dict, sampling: Sampling) -> tuple[int, int, int]:
    """(questions, tokens, patches of each) of the batch of 04_eval that takes most."""
    usual = values["eval_batch_size"]
    batches = [(usual, *prompt_with(sampling))]
    for condition in values["perception_conditions"].split():
        rows = perception.batch_under(condition, usual, sampling)
        seen = perception.resampled(sampling, condition)
        batches.append((rows, *prompt_with(seen)))
    return max(batches, key=lambda batch: batch[0] * batch[1])


def prompt_with(sampling: Sampling) -> tuple[int, int]:
    """(tokens, patches) of a prompt with a full clip and a still of this size."""
    pictures = sampling.max_frames // 2 + 1  # two frames are one, and the still
    patches = pictures * (sampling.height // PATCH) * (sampling.width // PATCH) * 4
    return patches // 4 + TEXT_TOKENS, patches


def all_values(run: params.Run) -> dict:
    """A run's values over the notebooks' defaults, and those over the settings'."""
    declared = params.declarations(params.notebook_paths())
    defaults = {name: parameter.default for name, parameter in declared.items()}
    bounds = ("prompts_per_backward", "pack_tokens")
    bounds = {name: getattr(GRPOSettings, name) for name in bounds}
    return {**bounds, **defaults, **run.values}


def card_gib(path: str | Path, given: float | None) -> tuple[float, str]:
    """GiB of the card and where the number is from: given, found, or the file's."""
    if given is not None:
        return given, "--gib"
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.total_memory / GIB, found.name
    named = re.search(r"^#.*?(\d+) GB card", Path(path).read_text(), re.MULTILINE)
    if named:
        return float(named[1]), f"named in {Path(path).name}"
    raise ValueError(f"no GPU here and {path} names no 'N GB card': give --gib")


def allowance(tensors: int) -> int:
    """For the CUDA context and fragmentation; an allowance, not a measurement."""
    return CONTEXT_BYTES + int(tensors * FRAGMENTED_SHARE)


def report(stages: list[Stage], gib: float) -> tuple[str, bool]:
    """The plan as text, and whether its largest stage fits `gib`."""
    lines = []
    for stage in stages:
        lines.append(f"{stage.name:<46}   GiB")
        rows = {**stage.items, "context, fragmentation*": allowance(stage.total)}
        rows["total"] = sum(rows.values())
        lines += [f"  {name:<42}{size / GIB:8.2f}" for name, size in rows.items()]
    peak = max(stages, key=lambda stage: stage.total)
    needed = (peak.total + allowance(peak.total)) / GIB
    fits = needed <= gib
    lines.append(
        f"\npeak: {peak.name} with {needed:.2f} GiB of {gib:.2f}: "
        + (f"fits, {gib - needed:.2f} to spare" if fits else f"does NOT fit: {ADVICE}")
    )
    lines.append(
        f"* An allowance, not a measurement: {CONTEXT_BYTES / GIB} GiB and "
        f"{FRAGMENTED_SHARE:.0%} of the tensors. At the sizes that were run on an H100 "
        "the tensors were within 4 % of the peaks: outputs/reference/bench_cost.md."
    )
    return "\n".join(lines), fits


ADVICE = (
    "lower prompts_per_backward, then pack_tokens (update), prompts_per_step or "
    "group_size (rollout), max_tokens or sft_gradient_accumulation (SFT), "
    "eval_batch_size (evaluation); turn on quantize and gradient_checkpointing"
)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every run fits, 1 if one does not, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.models plan",
        description="Whether the runs of a params file fit a card; no download.",
    )
    parser.add_argument("params", help="a file such as params/single_gpu_7b.yaml")
    parser.add_argument("--gib", type=float, help="memory of the card")
    options = parser.parse_args(arguments)
    try:
        runs = params.load_params(options.params)
        gib, origin = card_gib(options.params, options.gib)
        return max(plan_run(run, gib, origin) for run in runs)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def plan_run(run: params.Run, gib: float, origin: str) -> int:
    """Print the plan of one run; 0 if it fits, else 1."""
    values = all_values(run)
    work, config = work_of(values, "cuda"), config_of(values["model"])
    named = parameters(config)
    total = sum(tensor.numel() for tensor in named.values())
    prompts = work.prompts_per_backward or work.prompts
    rows, in_pack, length = packs(work, prompts)
    print(
        f"{run.name}: {values['model']}, {total:,} parameters, "
        f"{trained_numbers(named, work):,} trained; card of {gib:.2f} GiB ({origin})\n"
        f"prompt of {work.prompt} tokens ({TEXT_TOKENS} of text, a usual question); "
        f"SFT rows of {work.sft_tokens}; rollouts of {work.prompts} x {work.group} x "
        f"{work.completion}; a backward pass of {rows} rows of {length}, "
        f"{in_pack} in a pack\n"
    )
    text, fits = report(plan(config, work), gib)
    print(text)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
