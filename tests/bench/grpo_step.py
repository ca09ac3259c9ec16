"""One GRPO step of this kit against the same step of stock TRL 1.16, side by side.

    python -m tests.bench.grpo_step            # on two CPU cores, 10 minutes
    python -m tests.bench.grpo_step --size mini --cases lora --lengths 15 \\
        --repeats 7 --out outputs/reference/bench_grpo_step_mini.json
    python -m tests.bench.grpo_step --size 7b --cases lora nf4     # on a GPU

Both programs train copies of one random Qwen2-VL checkpoint on one prompt of the shape
in SEED-Bench-R1 (arXiv 2503.24376): 16 frames and a still of 252 x 252, 883 tokens of
which 729 are visual, and G = 8 completions, all of the same length; `--size mini` takes
the mini base and a step of the mini run: 8 prompts of 170 tokens, 40 of them visual.
Stock TRL gets the smallest patch that lets video reach its update (`StockVideo`). Both
draw their own rollouts, which are timed and thrown away; reference and update then
score the same sampled completions, and loss and gradients must agree. Runs alternate
in one process; a ratio is the median over pairs, with the smallest and the largest.

rollout: reading the prompt, vision tower, sampling. reference: log-probabilities for
the KL term. update: forward, loss and backward (the optimizer's step is the same for
both and left out, so that weights stay equal). peak_gib: bytes allocated during the
update above those before it.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from lib import paths, records
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.doors import Door
from lib.evaluate.evaluate import Asking, EvalSettings
from lib.model import encoding, models, prefix, shards
from lib.run import memory
from lib.train import grpo
from lib.train.task import dataset_row
from tests import trainings
from tests.bench.memory import config_of
from tests.bench.meter import Meter, live_bytes
from tests.bench.random_checkpoint import BASE, write_checkpoint, write_questions

# isort: split
from datasets import Dataset
from transformers import AutoConfig
from trl import GRPOTrainer

RECORD = paths.ROOT / "outputs/reference/bench_grpo_step.json"
STAGES = ("rollout", "reference", "update")
GROUP = 8


@dataclass(frozen=True)
class Shape:
    """Pictures and words of a question, its tokens in all, questions of a step."""

    sampling: Sampling
    words: int
    tokens: int
    prompts: int


PAPER = Shape(Sampling(), words=62, tokens=883, prompts=1)
MINI = Shape(Sampling(8, fps=2.0, height=56, width=112), 38, tokens=170, prompts=8)
PICTURES = tuple(name for pair in prefix.KINDS.values() for name in pair)
# "cpu" is to weigh the parts of the work as 7B does: wide and shallow, because
# attention weighs less the wider a layer is; vision about a third of a prompt; a small
# vocabulary, because TRL 1.16 sends prompt positions through the output layer too,
# which would weigh more here than there.
SMALL = {
    "tiny": {"hidden": 64, "inner": 128, "layers": 2, "heads": 2},
    "cpu": {"hidden": 512, "inner": 2688, "layers": 3, "heads": 8},
}
TOWER = {"depth": 4, "embed_dim": 160}
PUBLISHED = {"2b": "Qwen/Qwen2-VL-2B-Instruct", "7b": "Qwen/Qwen2-VL-7B-Instruct"}
CASES = {  # what is trained, over what
    "full": {"lora_rank": 0},
    "lora": {"lora_rank": 16},
    "nf4": {"lora_rank": 16, "quantize": True},
}


def make_checkpoint(folder: Path, size: str, dtype: str) -> Path:
    """A Qwen2-VL of this size with random weights; "mini" is the mini base itself."""
    if size == "mini":
        return BASE
    if size in PUBLISHED:
        config = memory.config_of(PUBLISHED[size])
    else:
        config = config_of(**SMALL[size], kv=2, vocab=1024)
        config.vision_config.update(TOWER)
        config.tie_word_embeddings = False  # as 7B
    return write_checkpoint(folder, config, dtype)


def make_questions(folder: Path, processor, shape: Shape) -> list[Question]:
    """Questions whose prompts have exactly the shape's tokens, with real media."""
    questions = write_questions(folder, shape.prompts, shape.sampling, shape.words)
    for question in questions:
        ids = encoded(processor, question, shape.sampling)["input_ids"][0]
        assert len(ids) == shape.tokens, len(ids)
    return questions


def encoded(processor, question: Question, sampling: Sampling) -> dict:
    """The tensors of a question's prompt."""
    asking = Asking(None, processor, EvalSettings(grpo.STYLE, 1, 1), sampling)
    return asking.prepare([question]).inputs[0]


class StockVideo(GRPOTrainer):
    """TRL's trainer, and what it takes at least to get video into its update. A prompt
    is processed once and its tensors repeated; the forward that scores gets the pixels
    of its rows. Everything else is TRL's, except that a batch here is scored in the
    order in which it was drawn: in training TRL shuffles it, and the pixels would have
    to travel along."""

    def _generate_and_score_completions(self, inputs):
        self.names = [row["question_id"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts):
        once = {
            name: encoded(self.processing_class, self.questions[name], self.sampling)
            for name in dict.fromkeys(self.names)
        }
        found = [once[name] for name in self.names]
        self.pixels = {
            key: torch.cat([own[key] for own in found]).to(self.model.device)
            for key in PICTURES
        }
        ids, kinds = (
            [own[key][0].tolist() for own in found]
            for key in ("input_ids", "mm_token_type_ids")
        )
        return ids, None, {**self.pixels, "mm_token_type_ids": kinds}

    def _get_per_token_logps_and_entropies(
        self, model, ids, mask, kept, batch_size=None, compute_entropy=False, **kwargs
    ):
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-kept] = -100
        config = prefix.base_of(model).config
        with self.accelerator.autocast():
            output = model(
                input_ids=ids,
                attention_mask=mask,
                mm_token_type_ids=encoding.mm_token_type_ids(ids, config),
                labels=labels,
                fused_lm_head=True,
                **self.pixels,
            )
        entropies = output.entropy[:, -kept:] if compute_entropy else None
        return output.log_probs[:, -kept:], entropies, None


class Timed:
    """Times reference passes; scores the completions `given` and not its rollouts."""

    given: list[list[int]] | None = None
    reference_seconds = 0.0

    def _generate_single_turn(self, *args, **kwargs):
        drawn, extra = super()._generate_single_turn(*args, **kwargs)
        lengths = {len(tokens) for tokens in drawn}
        assert lengths == {self.max_completion_length}, lengths
        return self.given or drawn, extra

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        started = now()
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self.reference_seconds += now() - started
        return found


class Ours(Timed, grpo.VideoGRPOTrainer):
    """The kit's trainer; no token ends a rollout."""

    def decoding(self):
        return replace(super().decoding(), end_ids=())

    def measure(self, groups):
        for group in groups:
            for number, row in enumerate(group.rows):
                row["rewards"] = {"lengths": float(number)}


class Stock(Timed, StockVideo):
    """TRL's trainer with video."""


def make_trainers(
    checkpoint, questions, sampling, case: str, length: int, dtype: str, run: Path
) -> dict[str, GRPOTrainer]:
    """Both trainers on their own copies of the same weights."""
    settings = replace(
        trainings.GRPO,
        steps=1,
        prompts_per_step=len(questions),
        group_size=GROUP,
        lr=1e-6,
        kl_beta=0.1,
        top_k=50,
        max_completion_tokens=length,
        lora_alpha=32,
        save_every=1,
        dtype=dtype,
        gradient_checkpointing=torch.cuda.is_available(),
        **CASES[case],
    )
    args = grpo.trainer_arguments(settings, run)
    suppressed = encoding.visual_token_ids(AutoConfig.from_pretrained(checkpoint))
    args.generation_kwargs = {"min_new_tokens": length, "suppress_tokens": suppressed}
    rewards = {"lengths": lengths_reward}
    task = grpo.Task(checkpoint, questions, rewards, settings, sampling, run)
    trainers = {"ours": Ours(task)}
    models.seed_everything(0)
    stock = trainers["stock"] = Stock(
        model=shards.load_trainable(checkpoint, settings, args),
        reward_funcs=[lengths_reward],
        args=args,
        train_dataset=Dataset.from_list(rows(questions)),
        processing_class=models.load_processor(checkpoint),
        peft_config=models.lora_config(settings.lora_rank, settings.lora_alpha),
    )
    stock.questions, stock.sampling = trainers["ours"].questions, sampling
    if settings.gradient_checkpointing:
        for trainer in trainers.values():
            trainer.model.activation_checkpointing_enable()
    for trainer in trainers.values():
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainings.move_adapter(trainer.model)  # or it would be the reference
    return trainers


def rows(questions: list[Question]) -> list[dict]:
    """The groups as TRL's sampler hands them to a trainer."""
    return [dataset_row(question) for question in questions for _ in range(GROUP)]


def lengths_reward(completions, **kwargs) -> list[float]:
    """Any reward that differs within a group will do."""
    return [float(i) for i in range(len(completions))]


def now() -> float:
    """Seconds, once the device has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def generate(trainer, questions: list[Question]) -> tuple[dict, float, float]:
    """The scored batch, seconds of the rollout, seconds of the reference."""
    trainer.reference_seconds = 0.0
    started = now()
    batch = trainer._generate_and_score_completions(rows(questions))
    reference = trainer.reference_seconds
    return batch, now() - started - reference, reference


def update(trainer, batch: dict) -> torch.Tensor:
    """Forward, loss and backward; returns the loss."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach()


def timed_step(trainer, questions: list[Question]) -> dict[str, float]:
    """Seconds of each stage of one step."""
    batch, rollout, reference = generate(trainer, questions)
    started = now()
    update(trainer, batch)
    return {"rollout": rollout, "reference": reference, "update": now() - started}


def compare(trainers: dict, questions: list[Question]) -> dict:
    """Peaks of the updates, and how far loss and gradients lie apart."""
    peaks, losses, grads = {}, {}, {}
    for name, trainer in trainers.items():
        batch, _, _ = generate(trainer, questions)
        trainer.model.zero_grad()
        with Meter("update", live_bytes()) as meter:
            losses[name] = update(trainer, batch).item()
        peaks[name] = meter.peaks["update"] / 2**30
        grads[name] = trainings.gradient(trainer.model).float()
        trainer.model.zero_grad()
    apart = (grads["ours"] - grads["stock"]).norm() / grads["stock"].norm()
    return {
        "peak_gib": peaks,
        "peak_share": peaks["ours"] / peaks["stock"],
        "loss": losses,
        "gradient_difference": apart.item(),
    }


def spread(values: list[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {"median": median, "least": min(values), "most": max(values)}


def bench(checkpoint, questions, shape, case, length, dtype, repeats, run) -> dict:
    """One row of the record: a case at one completion length."""
    what = (checkpoint, questions, shape.sampling, case, length, dtype, run)
    trainers = make_trainers(*what)
    torch.manual_seed(2)
    drawn = trainers["ours"]
    generate(drawn, questions)  # also warms up
    given = [tokens for group in drawn.groups for tokens in group.tokens]
    for trainer in trainers.values():
        trainer.given = given
    agreement = compare(trainers, questions)
    seconds = {name: {stage: [] for stage in STAGES} for name in trainers}
    for repeat in tqdm(range(repeats), desc=f"{case}, {length} tokens"):
        order = list(trainers) if repeat % 2 else list(trainers)[::-1]
        for name in order:
            for stage, value in timed_step(trainers[name], questions).items():
                seconds[name][stage].append(value)
    for own in seconds.values():
        own["step"] = [sum(parts) for parts in zip(*own.values(), strict=True)]
    stages, ratios = (*STAGES, "step"), {}
    for stage in stages:
        pairs = zip(seconds["stock"][stage], seconds["ours"][stage], strict=True)
        ratios[stage] = spread([theirs / ours for theirs, ours in pairs])
    stock, packed = GROUP * (shape.tokens + length), shape.tokens - 1 + GROUP * length
    return {
        "case": case,
        "completion_tokens": length,
        "seconds": {
            n: {s: spread(own[s]) for s in stages} for n, own in seconds.items()
        },
        "ratio": ratios,
        "token_limit": {"scores": stock / packed},  # of what the language model encodes
        **agreement,
    }


def main(arguments: list[str]) -> None:
    parser = Door("python -m tests.bench.grpo_step", __doc__)
    has_gpu = torch.cuda.is_available()
    sizes = ["mini", *SMALL, *PUBLISHED]
    add, some = parser.add_argument, {"nargs": "+"}
    size = "2b" if has_gpu else "cpu"
    add("--size", choices=sizes, default=size, help="of the model: %(default)s")
    cases = {"choices": CASES, "default": ["full", "lora"]}
    add("--cases", **some, **cases, help="what is trained: %(default)s")
    lengths = {"type": int, "default": [64, 128, 200, 256]}
    add("--lengths", **some, **lengths, help="tokens of a completion: %(default)s")
    add("--repeats", type=int, default=5, help="pairs of steps a case")
    add("--out", type=Path, default=RECORD, help="a .json file")
    asked = parser.parse_args(arguments)
    dtype = "bfloat16" if has_gpu else "float32"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = make_checkpoint(folder / "model", asked.size, dtype)
        shape = MINI if asked.size == "mini" else PAPER
        processor = models.load_processor(checkpoint)
        questions = make_questions(folder / "media", processor, shape)
        given = (checkpoint, questions, shape)
        found = [
            bench(*given, case, length, dtype, asked.repeats, folder)
            for case in asked.cases
            for length in asked.lengths
        ]
    content = {
        "size": asked.size,
        "dtype": dtype,
        "group": GROUP,
        "prompt_tokens": shape.tokens,
        "prompts": shape.prompts,
        "repeats": asked.repeats,
        "threads": torch.get_num_threads(),
        "environment": records.environment(),
        "rows": found,
    }
    records.write_json(asked.out, content)


if __name__ == "__main__":
    main(sys.argv[1:])
