"""The stages of both arms for the values of a run, each run under a Meter.

values = stages.values("mini", group_size=4, words=60, response=100)
work, found = run(config, values, folder)
found["update"]    # {"bytes": 93123456, "seconds": 1.9}, of all steps together"""

from dataclasses import replace
from pathlib import Path

import peft
import torch

from lib import paths
from lib.data.questions import Demonstration, Question
from lib.evaluate import evaluate
from lib.model import encoding, models, rollouts
from lib.run import counts, params
from lib.run.memory import Work
from lib.train import grpo, rl, sft
from lib.train.rewards import accuracy_reward
from tests.bench import random_checkpoint
from tests.bench.meter import Meter, live_bytes

REWARDS = {"accuracy": lambda text, question: accuracy_reward(text, question.gold)}
STEPS = 2  # the second step has an optimizer's state and the first one's rest
SHARED = ("lora_rank", "lora_alpha", "seed", "dtype", "quantize")
SHARED += ("gradient_checkpointing",)
DRAWN = ("prompts_per_step", "group_size", "kl_beta", "temperature", "top_k", "top_p")
DRAWN += ("max_completion_tokens", "prompts_per_backward", "pack_tokens")


def values(file: str, **changes) -> dict:
    """The values of params/`file`.yaml with changes, among them `words` of a question
    and of a `response`, of one token each."""
    (own,) = params.load_params(paths.ROOT / "params" / f"{file}.yaml")
    bounds = {"kl_beta": 0.1, "max_tokens": 8192, "perception_conditions": ""}
    given = counts.all_values(own) | bounds | changes
    return given | {"max_new_tokens": given["max_completion_tokens"]}


def run(config, values: dict, folder: Path) -> tuple[Work, dict[str, dict]]:
    """Write a checkpoint and clips, run every stage: work, and bytes and seconds."""
    checkpoint = random_checkpoint.write_checkpoint(folder / "checkpoint", config)
    sizes = ("prompts_per_step", "sft_batch_size", "eval_batch_size")
    asked = max(values[n] for n in sizes), counts.sampling_of(values), values["words"]
    questions = random_checkpoint.write_questions(folder / "media", *asked)
    found = {}
    for stage in (run_grpo, run_sft, run_evaluation):
        meter = stage(checkpoint, questions, values, folder / stage.__name__)
        for name, peak in meter.peaks.items():
            found[name] = {"bytes": peak, "seconds": round(meter.seconds[name], 2)}
    return work_of(checkpoint, questions, values), found


def work_of(checkpoint: Path, questions: list[Question], values: dict) -> Work:
    """As a dry run has it, with the inputs' real lengths."""
    processor = models.load_processor(checkpoint)
    collator = sft.ResponseCollator(processor, counts.sampling_of(values))
    (item,) = demonstrations(questions[:1], values)
    prompt = encoding.encode(processor, [collator.conversation(item)[:1]])
    length = prompt["input_ids"].shape[1]
    patches = sum(len(prompt[n]) for n in ("pixel_values", "pixel_values_videos"))
    return replace(
        counts.work_of(values, "cuda" if torch.cuda.is_available() else "cpu"),
        prompt=length,
        patches=patches,
        sft_tokens=collator([item])["input_ids"].shape[1],
        eval_prompt=length,
        eval_patches=patches,
    )


def demonstrations(questions: list[Question], values: dict) -> list[Demonstration]:
    """Their texts are prompts as GRPO's are."""
    response = "B" + " wash" * values["response"]
    return [
        Demonstration(q.id, grpo.prompt_text(q, grpo.STYLE), q.video, q.image, response)
        for q in questions
    ]


def run_sft(checkpoint: Path, questions, values: dict, folder: Path) -> Meter:
    settings = sft.SFTSettings(
        steps=STEPS,
        batch_size=values["sft_batch_size"],
        gradient_accumulation=values["sft_gradient_accumulation"],
        lr=1e-4,
        save_every=STEPS + 1,
        max_tokens=values["max_tokens"],
        **{name: values[name] for name in SHARED},
    )
    items, outside = demonstrations(questions, values), live_bytes()
    given = settings, counts.sampling_of(values), folder
    trainer = sft.ResponseTrainer(sft.Task(checkpoint, items, *given))
    with Meter("SFT", outside) as meter:
        trainer.train()
    return meter


def run_grpo(checkpoint: Path, questions, values: dict, folder: Path) -> Meter:
    """Windows rollout and reference; all the rest is the update."""
    (method,) = rl.read("grpo")
    shared = {name: values[name] for name in SHARED + DRAWN}
    settings = method.settings(STEPS, STEPS + 1, lr=1e-6, **shared)
    sampling, outside = counts.sampling_of(values), live_bytes()
    task = grpo.Task(checkpoint, questions, REWARDS, settings, sampling, folder)
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


def run_evaluation(checkpoint: Path, questions, values: dict, _: Path) -> Meter:
    """Answer one batch, with an adapter where the run trains one."""
    outside, rank = live_bytes(), values["lora_rank"]
    processor = models.load_processor(checkpoint)
    model = models.load_model(checkpoint, values["dtype"], values["quantize"])
    if rank:
        model = peft.get_peft_model(model, models.lora_config(rank, 1.0))
    batch_size = values["eval_batch_size"]
    settings = evaluate.EvalSettings("think", values["max_new_tokens"], batch_size)
    asking = evaluate.Asking(model, processor, settings, counts.sampling_of(values))
    batch = asking.prepare(questions[:batch_size])
    with rollouts.generating(model), Meter("evaluation", outside) as meter:
        asking.answer([asking.see(batch)])
    return meter
