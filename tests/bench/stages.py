"""The stages of both arms at a chosen shape, each run under a Meter.

shape = Shape(prompts=2, group=4, completion=24)
work, found = run(config, shape, folder)
found["update"]    # {"bytes": 93123456, "seconds": 1.9}, of all steps together
"""

from dataclasses import dataclass
from pathlib import Path

import peft
import torch

from lib.data.questions import Demonstration, Question
from lib.data.video import Sampling
from lib.evaluate import evaluate
from lib.model import encoding, models, rollouts
from lib.run.memory import Work
from lib.train import grpo, sft
from lib.train.rewards import accuracy_reward
from tests.bench import random_checkpoint
from tests.bench.meter import Meter, live_bytes

REWARDS = {"accuracy": lambda text, question: accuracy_reward(text, question.gold)}


@dataclass(frozen=True)
class Shape:
    """Settings and lengths; `words` and `response` are words of one token each."""

    dtype: str = "float32"
    quantize: bool = False
    checkpointing: bool = False
    rank: int = 8
    side: int = 112
    frames: int = 8
    words: int = 60
    response: int = 100
    sft_batch: int = 1
    sft_accumulation: int = 1
    prompts: int = 2
    prompts_per_backward: int = 0
    group: int = 4
    completion: int = 24
    pack_tokens: int = 16384
    eval_batch: int = 2
    steps: int = 2  # the second step has an optimizer's state and the first one's rest

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.frames, fps=2.0, height=self.side, width=self.side)


def run(config, shape: Shape, folder: Path) -> tuple[Work, dict[str, dict]]:
    """Write a checkpoint and clips, run every stage: work, and bytes and seconds."""
    checkpoint = random_checkpoint.write_checkpoint(folder / "checkpoint", config)
    count = max(shape.prompts, shape.sft_batch, shape.eval_batch)
    questions = random_checkpoint.write_questions(
        folder / "media", count, shape.sampling, shape.words
    )
    meters = [
        run_grpo(checkpoint, questions, shape, folder / "grpo"),
        run_sft(checkpoint, questions, shape, folder / "sft"),
        run_evaluation(checkpoint, questions, shape),
    ]
    found = {
        name: {"bytes": meter.peaks[name], "seconds": round(meter.seconds[name], 2)}
        for meter in meters
        for name in meter.peaks
    }
    return work_of(checkpoint, questions, shape), found


def work_of(checkpoint: Path, questions: list[Question], shape: Shape) -> Work:
    """The shape as lib/run/memory.py takes it, with the inputs' real lengths."""
    processor = models.load_processor(checkpoint)
    collator = sft.ResponseCollator(processor, shape.sampling)
    item = demonstrations(questions[:1], shape)[0]
    whole = collator([item])
    turns = [collator.conversation(item)[:1]]
    prompt = encoding.encode(processor, turns)
    pixels = ("pixel_values", "pixel_values_videos")
    return Work(
        dtype=shape.dtype,
        quantize=shape.quantize,
        checkpointing=shape.checkpointing,
        lora_rank=shape.rank,
        prompt=prompt["input_ids"].shape[1],
        patches=sum(len(prompt[name]) for name in pixels),
        sft_batch=shape.sft_batch,
        sft_accumulation=shape.sft_accumulation,
        sft_tokens=whole["input_ids"].shape[1],
        sft_response=int((whole["labels"] != sft.IGNORED).sum()),
        prompts=shape.prompts,
        prompts_per_backward=shape.prompts_per_backward,
        group=shape.group,
        completion=shape.completion,
        pack_tokens=shape.pack_tokens,
        kl=True,
        eval_batch=shape.eval_batch,
        eval_tokens=shape.completion,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def demonstrations(questions: list[Question], shape: Shape) -> list[Demonstration]:
    """Their texts are prompts as GRPO's are; responses have shape.response words."""
    response = "B" + " wash" * shape.response
    return [
        Demonstration(q.id, grpo.prompt_text(q, grpo.STYLE), q.video, q.image, response)
        for q in questions
    ]


def run_sft(checkpoint: Path, questions, shape: Shape, folder: Path) -> Meter:
    settings = sft.SFTSettings(
        steps=shape.steps,
        batch_size=shape.sft_batch,
        gradient_accumulation=shape.sft_accumulation,
        lr=1e-4,
        lora_rank=shape.rank,
        lora_alpha=2 * shape.rank,
        seed=0,
        save_every=shape.steps + 1,
        max_tokens=8192,
        dtype=shape.dtype,
        quantize=shape.quantize,
        gradient_checkpointing=shape.checkpointing,
    )
    items = demonstrations(questions, shape)
    outside = live_bytes()
    task = sft.Task(checkpoint, items, settings, shape.sampling, folder)
    trainer = sft.ResponseTrainer(task)
    with Meter("SFT", outside) as meter:
        trainer.train()
    return meter


def run_grpo(checkpoint: Path, questions, shape: Shape, folder: Path) -> Meter:
    """Windows rollout and reference; all the rest is the update."""
    settings = grpo.GRPOSettings(
        steps=shape.steps,
        prompts_per_step=shape.prompts,
        group_size=shape.group,
        lr=1e-6,
        kl_beta=0.1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        max_completion_tokens=shape.completion,
        lora_rank=shape.rank,
        lora_alpha=2 * shape.rank,
        seed=0,
        save_every=shape.steps + 1,
        dtype=shape.dtype,
        quantize=shape.quantize,
        gradient_checkpointing=shape.checkpointing,
        prompts_per_backward=shape.prompts_per_backward,
        pack_tokens=shape.pack_tokens,
    )
    outside = live_bytes()
    task = grpo.Task(checkpoint, questions, REWARDS, settings, shape.sampling, folder)
    trainer = grpo.VideoGRPOTrainer(task)
    with Meter("update", outside) as meter:
        in_windows(trainer, meter)
        trainer.train()
    return meter


def in_windows(trainer, meter: Meter) -> None:
    """Let rollouts, and log-probabilities without autograd, open their windows."""
    generate = trainer._generate_and_score_completions
    score = trainer._get_per_token_logps_and_entropies

    def rollout(*args, **kwargs):
        with meter.window("rollout"):
            return generate(*args, **kwargs)

    def scored(*args, **kwargs):
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        with meter.window("reference"):
            return score(*args, **kwargs)

    trainer._generate_and_score_completions = rollout
    trainer._get_per_token_logps_and_entropies = scored


def run_evaluation(checkpoint: Path, questions, shape: Shape) -> Meter:
    """Answer one batch, with an adapter where the shape has one."""
    outside = live_bytes()
    processor = models.load_processor(checkpoint)
    model = models.load_model(checkpoint, shape.dtype, shape.quantize)
    if shape.rank:
        model = peft.get_peft_model(model, models.lora_config(shape.rank, 1.0))
    settings = evaluate.EvalSettings("think", shape.completion, shape.eval_batch)
    asking = evaluate.Asking(model, processor, settings, shape.sampling)
    batch = asking.prepare(questions[: shape.eval_batch])
    with rollouts.generating(model), Meter("evaluation", outside) as meter:
        asking.answer([asking.see(batch)])
    return meter
