"""A small Qwen2-VL checkpoint: the real architecture, processors and template.

Everything is an ordinary Qwen2-VL folder: config, generation config, safetensors,
byte-level BPE with Qwen2-VL's special tokens, image and video processors and the chat
template of https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct, so that `AutoProcessor`
and `AutoModelForImageTextToText` load it and no code has to know that it is small.

>>> build(Path("scratch"), corpus=["wash tomato", "cut tomato"], seed=0)
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lib import torchvision_cpu

# isort: split
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

assert torchvision_cpu  # imported before transformers meets torchvision

# Qwen2-VL's added tokens in the order of their ids (151643-151656 in the real one).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Renders the same text as Qwen2-VL-Instruct's template for messages with a list of
# text, image and video parts: default system prompt, one pad token a visual.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 128 * 28 * 28}


def build_tokenizer(corpus: list[str], vocabulary: int = 900) -> Qwen2Tokenizer:
    """Train Qwen2's byte-level BPE on a corpus; merges stop where pairs run out."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def build_model(
    tokenizer: Qwen2Tokenizer, seed: int
) -> Qwen2VLForConditionalGeneration:
    """A freshly initialised Qwen2-VL of 1.3 M parameters, tied embeddings as in 2B."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "embed_dim": 96,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    _raise_gain(model)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


def _raise_gain(model) -> None:
    # The default std of 0.02 is meant for width 3584. At width 96-128 it leaves the
    # vision tower's signal so small that nothing downstream learns to look.
    for name, weight in model.named_parameters():
        if weight.dim() >= 2 and "embed_tokens" not in name:
            fan_in = weight[0].numel()
            torch.nn.init.normal_(weight, std=1 / math.sqrt(fan_in))


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """The image and video processors of Qwen2-VL around a tokenizer."""
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=_PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def build(folder: Path, corpus: list[str], seed: int) -> None:
    """Write an untrained checkpoint folder."""
    tokenizer = build_tokenizer(corpus)
    build_processor(tokenizer).save_pretrained(folder)
    build_model(tokenizer, seed).save_pretrained(folder)
