"""A tiny random Qwen2-VL checkpoint and a few real clips, made once per test run."""

import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KIT_REPORT_TO", "none")  # tests/test_monitor.py asks for more
# Tests compare with plain computations on the CPU, on machines with a GPU too.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest

# Files whose tests start several processes or a browser, or race with one: they run
# alone (`make test`), everything else beside another file.
ALONE = {
    *("test_bench_steps", "test_chromium", "test_launch", "test_sharded"),
    *("test_sharded_evaluation", "test_two_processes"),
}

WORDS = ("chat_template.jinja", "processor_config.json")
WORDS += ("tokenizer.json", "tokenizer_config.json")
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes():
    """The process that gathers warnings imports their classes, peft's among them."""
    from lib.data import torchvision_cpu  # noqa: F401


def pytest_collection_finish(session):
    """One thread a process, figures in no window; what a test does not need, torch for
    one, it does not import."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use("Agg")


@pytest.fixture(autouse=True)
def _figures_are_closed():
    """No test meets the figures of another."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _config(tokenizer):
    from transformers import Qwen2VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _raise_gain(model):
    """Random weights of the default size (0.02) hardly let pixels reach the logits."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
        for weight in model.model.visual.parameters():
            if weight.ndim > 1:
                weight.mul_(2)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a random Qwen2-VL with 0.2 M parameters and the mini base's words."""
    import torch

    from lib import paths
    from lib.model import models  # noqa: F401  (must precede transformers)

    # isort: split
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    torch.set_num_threads(1)  # where the test's module does not import it
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    base = paths.ROOT / "lib/mini/base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(_config(tokenizer))
    _raise_gain(model)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    for name in WORDS:
        shutil.copy(base / name, folder)
    return folder


@pytest.fixture(scope="session")
def processor(tiny_checkpoint):
    """Of the tiny checkpoint, like `model`; modules that use another have their own."""
    from lib.model import models

    return models.load_processor(tiny_checkpoint)


@pytest.fixture
def model(tiny_checkpoint):
    from lib.model import models

    return models.load_model(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_questions(tmp_path_factory):
    """Six questions with real media; the third and the sixth have no video."""
    from made_films import blocks, write_film
    from PIL import Image

    from lib.data.questions import Question

    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    questions = []
    for number in range(6):
        video = None if number % 3 == 2 else folder / f"{number}.mp4"
        image = folder / f"{number}.png"
        Image.fromarray(blocks(rng)).save(image)
        if video is not None:  # 4 seconds
            write_film(video, (blocks(rng) for _ in range(16)), fps=4)
        questions.append(
            Question(
                id=f"training/{number}",
                level="training",
                text="what action should I take next in order to make tea?"[number:],
                options=("open the fridge", "cut the onion", "wash the pan", "stir"),
                gold="ABCD"[number % 4],
                answer="open the fridge",
                goal="make tea",
                domain="Daily life",
                scenario="kitchen",
                progress=() if video is None else ("fill the kettle",),
                video=video,
                image=image,
            )
        )
    return questions


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """A clip of 60 frames, each of other noise."""
    from made_films import write_clip

    path = tmp_path_factory.mktemp("noisy") / "clip.mp4"
    return write_clip(path, frames=60, noise=True)


@pytest.fixture(scope="session")
def eight_demonstrations(tiny_questions):
    """With responses of different lengths; the third and the sixth have no video."""
    from lib.data.questions import Demonstration

    return [
        Demonstration(
            id=f"training/{number}",
            text=f"{question.text} A. fill B. pour",
            video=question.video,
            image=question.image,
            response=f"<think>{'pour ' * number}</think> <answer>B</answer>",
        )
        for number, question in enumerate([*tiny_questions, *tiny_questions[:2]])
    ]


@pytest.fixture(scope="session")
def demonstrations(eight_demonstrations):
    """The first six of them."""
    return eight_demonstrations[:6]


@pytest.fixture(scope="session")
def make_task(tiny_checkpoint, tiny_questions):
    """A task of RL on the tiny checkpoint and its questions."""
    from lib.train.task import Task
    from tests.trainings import SAMPLING

    def make(rewards, settings, run, questions=tiny_questions, watched=()):
        given = (tiny_checkpoint, questions, rewards, settings, SAMPLING, run)
        return Task(*given, watched)

    return make


@pytest.fixture
def train(tiny_checkpoint, make_task, demonstrations, tmp_path):
    """Train by a method's name, which may be sft, with changed settings; its folder."""
    from dataclasses import replace

    from lib.train import grpo, rl, sft
    from tests.trainings import METHODS, SAMPLING, SFT

    def train(name, rewards=None, run=tmp_path, **changes):
        if name == "sft":
            own = (tiny_checkpoint, demonstrations, replace(SFT, **changes))
            return sft.train_sft(sft.Task(*own, SAMPLING, run))
        settings, usual = METHODS[name]
        task = make_task(rewards or usual, replace(settings, **changes), run)
        return grpo.train(task, rl.METHODS[name][1])

    return train


@pytest.fixture
def make_trainer(make_task, tmp_path):
    """The trainer of a method by its name, with changed settings."""
    from dataclasses import replace

    from lib.train import rl
    from tests.trainings import METHODS

    def make(name="grpo", rewards=None, run=tmp_path, **changes):
        settings, usual = METHODS[name]
        task = make_task(rewards or usual, replace(settings, **changes), run)
        return rl.METHODS[name][1](task)

    return make
