"""GRPO on questions about videos: TRL's trainer, with pixels in rollout and update.

The RL arm of SEED-Bench-R1 (arXiv 2503.24376; released grpo.py and grpo.sh): G answers
to a question are drawn, each gets a reward, and the policy moves towards those that did
better than their group. Rewards, advantages, loss, metrics and checkpoints are those of
TRL 1.16; lib/shared_prefix.py supplies rollouts and log-probabilities, because stock
TRL takes video prompts and then computes the update with no video at all.

    settings = GRPOSettings(steps=750, prompts_per_step=8, group_size=8, lr=1e-6,
                            kl_beta=0.1, temperature=1.0, top_k=50, top_p=1.0,
                            max_completion_tokens=256, lora_rank=16, lora_alpha=32,
                            seed=42, save_every=50)
    rewards = {"accuracy": lambda text, question: accuracy_reward(text, question.gold)}
    folder = train_grpo("Qwen/Qwen2-VL-7B-Instruct", questions, rewards, settings,
                        Sampling(), run)

Example of an advantage: rewards 1, 0, 0, 1 in a group of four have mean 0.5 and
standard deviation 0.577 (one degree of freedom less), so the advantages are 0.866,
-0.866, -0.866, 0.866; rewards 1, 1, 1, 1 are a dead group, all advantages 0.
"""

import hashlib
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lib import checkpoints, models, records, shared_prefix
from lib.prompts import messages, prompt_text
from lib.questions import Question
from lib.rewards import parse_answer
from lib.video import Sampling, question_media

# isort: split
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

Reward = Callable[[str, Question], float]

RECORD = "grpo_settings.json"
STYLE = "think"  # the paper trains with the prompt it evaluates with
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "dead_groups",
    "parse_failure": "parse_failure",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "kl": "kl",
    "entropy": "entropy",
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "step_time": "seconds_step",
}


@dataclass(frozen=True)
class GRPOSettings:
    """What decides the adapter; in brackets the paper's values."""

    steps: int  # optimizer steps (about 750)
    prompts_per_step: int  # questions of one step, over all devices (8)
    group_size: int  # rollouts of one question (8)
    lr: float  # peak of AdamW's learning rate (1e-6 for all weights)
    kl_beta: float  # weight of the KL to the base; 0 computes no reference (0.1)
    temperature: float  # of the rollouts, above 0 (1.0)
    top_k: int  # 0 keeps every token (50)
    top_p: float  # 1 keeps every token (1.0)
    max_completion_tokens: int  # a longer rollout is cut off and stays (256)
    lora_rank: int  # 0 trains all weights, the vision tower included (0)
    lora_alpha: float
    seed: int  # adapter, order of the questions, rollouts (42)
    save_every: int  # steps between checkpoints
    loss_type: str = "grpo"  # as TRL names it: grpo, dr_grpo, dapo, bnpo, ... (grpo)
    scale_rewards: str = (
        "group"  # advantages over the std of group, batch, none (group)
    )
    schedule: str = "linear"  # how lr falls (linear)
    warmup_share: float = 0.0  # share of the steps in which lr rises linearly (0)
    dtype: str = "float32"  # of the loaded weights (bfloat16)
    quantize: bool = False  # frozen weights as NF4 (False)
    gradient_checkpointing: bool = False  # less memory, more time (True)
    prompts_per_backward: int = 0  # groups of one backward pass on a device; 0: all (1)
    pack_tokens: int = 16384  # tokens of one forward pass; a larger group is split

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature = {self.temperature}: it must be above 0, or all "
                "rollouts of a group are the same"
            )
        if self.group_size < 2:
            raise ValueError(
                f"group_size = {self.group_size}: an advantage compares at least 2"
            )


class VideoGRPOTrainer(checkpoints.ExactResume, GRPOTrainer):
    """TRL's GRPOTrainer for questions with video, still or neither.

    A dataset row is {"prompt", "question_id"}; media are read from `questions` when a
    step needs them. A group stays together: it is one row of the batch that TRL
    shuffles and splits, with tensors [groups, G, ...], until the loss unfolds it.
    """

    def __init__(self, *args, questions, sampling, rollout_path, pack_tokens, **kwargs):
        self.questions: Mapping[str, Question] = questions
        self.sampling: Sampling = sampling
        self.rollout_path = Path(rollout_path)
        self.pack_tokens: int = pack_tokens
        self.groups_were_compared = False
        super().__init__(*args, **kwargs)
        shared_prefix.check_model(self.model)
        for model in filter(None, (self.model, self.ref_model)):
            shared_prefix.add_scoring(model, self.temperature)

    def decoding(self) -> shared_prefix.Decoding:
        """Every sampling field, from the settings and never from the checkpoint."""
        config = shared_prefix.base_of(self.model).config
        return shared_prefix.Decoding(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            end_ids=tuple(self.eos_token_ids),
            pad_id=self._tokenizer.pad_token_id,
            suppressed=tuple(models.visual_token_ids(config)),
        )

    def read_prompt(self, question: Question) -> shared_prefix.Prompt:
        """The tokenized prompt of a question with its pixels. Raises BadVideo."""
        clip, still = question_media(question, self.sampling)
        turn = messages(prompt_text(question, STYLE), clip, still)
        encoded = models.encode(self.processing_class, [turn])
        return shared_prefix.make_prompt(self.model, encoded)

    # Rollouts

    def _generate_and_score_completions(self, inputs):
        size = self.num_generations
        names = [row["question_id"] for row in inputs]
        if any(name != names[i - i % size] for i, name in enumerate(names)):
            raise ValueError(f"a batch must hold whole groups of {size}: {names}")
        prompts = [self.read_prompt(self.questions[name]) for name in names[::size]]
        self._seen = shared_prefix.with_features(self.model, prompts)
        frozen = shared_prefix.vision_is_frozen(self.model)
        # Features of a trained tower have no gradient and are not the reference's.
        self._prompts = self._seen if frozen else prompts
        output = super()._generate_and_score_completions(inputs)
        self._record(names, output["advantages"].tolist())
        return {**fold(output, size), "prompts": self._prompts}

    def _tokenize_prompts(self, prompts):
        repeats = len(prompts) // len(self._seen)
        ids = [own.ids.tolist() for own in self._seen for _ in range(repeats)]
        return ids, None, {}

    def _generate_single_turn(
        self, prompt_ids, images, multimodal_fields, num_generations, **kwargs
    ):
        groups = shared_prefix.rollouts(
            self.model, self._seen, num_generations, self.decoding()
        )
        if not self.groups_were_compared:
            check_groups_differ(groups)
            self.groups_were_compared = True
        return [tokens for group in groups for tokens in group], None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._texts, self._tokens = completions, completion_ids_list
        self._rewards = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        return self._rewards

    def _record(self, names: list[str], advantages: list[float]) -> None:
        """Append this step's rollouts to rollouts.jsonl and log the parse failures."""
        start = self.accelerator.process_index * len(names)
        ends = set(self.eos_token_ids)
        rows = [
            {
                "step": self.state.global_step + 1,
                "question": name,
                "rollout": i % self.num_generations,
                "text": self._texts[i],
                "tokens": len(self._tokens[i]),
                "truncated": self._tokens[i][-1] not in ends,
                "rewards": dict(
                    zip(
                        self.reward_func_names,
                        self._rewards[start + i].tolist(),
                        strict=True,
                    )
                ),
                "advantage": advantages[i],
            }
            for i, name in enumerate(names)
        ]
        rows = gather_object(rows)
        failed = [parse_answer(row["text"], "first_letter") is None for row in rows]
        self._metrics["train"]["parse_failure"].append(sum(failed) / len(failed))
        if self.accelerator.is_main_process:
            records.append_jsonl(self.rollout_path, rows)

    # Update

    def _compute_loss(self, model, inputs):
        self._prompts = inputs["prompts"]
        return super()._compute_loss(model, unfold(inputs))

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        **kwargs,
    ):
        kept = attention_mask[:, -logits_to_keep:].bool()
        tokens = input_ids[:, -logits_to_keep:]
        completions = [own[mask] for own, mask in zip(tokens, kept, strict=True)]
        size = len(completions) // len(self._prompts)
        groups = [completions[i : i + size] for i in range(0, len(completions), size)]
        with self.accelerator.autocast():
            found = shared_prefix.completion_scores(
                model, self._prompts, groups, self.pack_tokens
            )
        logps, entropies = (pad_sequence(values, True, 0.0) for values in found)
        missing = logits_to_keep - logps.shape[1]  # the longest may be in another batch
        logps = torch.nn.functional.pad(logps, (0, missing))
        entropies = torch.nn.functional.pad(entropies, (0, missing))
        return logps, entropies if compute_entropy else None, None


def fold(batch: Mapping, size: int) -> dict:
    """[groups * size, ...] tensors as [groups, size, ...]; scalars as they are."""
    return {
        key: value.unflatten(0, (-1, size)) if value.ndim else value
        for key, value in batch.items()
    }


def unfold(batch: Mapping) -> dict:
    """Undo `fold`, without the list of prompts."""
    return {
        key: value.flatten(0, 1) if value.ndim else value
        for key, value in batch.items()
        if isinstance(value, torch.Tensor)
    }


def check_groups_differ(groups: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raise RuntimeError if in no group any two rollouts differ.

    Then every advantage is 0 and nothing would be learned; it is what a sampling field
    taken from a checkpoint's generation_config (top_k 1) looks like.
    """
    if all(len({tuple(tokens) for tokens in group}) == 1 for group in groups):
        raise RuntimeError(
            f"the rollouts of each of the {len(groups)} groups are identical: sampling "
            "is off or the policy is deterministic; look at temperature, top_k, top_p"
        )


class CutRollouts(checkpoints.TrainerCallback):
    """Drops rollouts of steps after the checkpoint that training goes on from."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            checkpoints.cut_back(self.path, state.global_step)


def train_grpo(
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
) -> Path:
    """Train an adapter; returns its folder run/adapters/grpo.

    `reward_functions` maps a name to a function of completion text and question; their
    sum is the reward. Writes run/train_log_grpo.jsonl (a row a step) and
    run/rollouts.jsonl (a row a rollout), and goes on from run/checkpoints/grpo where a
    killed call stopped. A finished adapter of the same settings is returned at once.
    Raises ValueError, naming the difference, when what lies there was made with other
    settings, and BadVideo for unusable media.
    """
    run = Path(run)
    folder, work = run / "adapters" / "grpo", run / "checkpoints" / "grpo"
    wanted = all_settings(model_path, questions, reward_functions, settings, sampling)
    if not checkpoints.same_settings(folder / RECORD, wanted):
        if not checkpoints.same_settings(work / RECORD, wanted):
            checkpoints.write_settings(work / RECORD, wanted)
        trainer = grpo_trainer(
            model_path, questions, reward_functions, settings, sampling, run
        )
        checkpoints.train(trainer)
        checkpoints.publish(trainer.model, folder, RECORD, wanted)
    if checkpoints.PartialState().is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def all_settings(
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
) -> dict:
    """Everything that decides the adapter, as plain JSON values."""
    digest = hashlib.sha256()
    for item in questions:
        media = (item.video is not None, item.image is not None)
        told = (item.id, media, item.gold, prompt_text(item, STYLE))
        digest.update(f"{told!r}\n".encode())
    source = models.checkpoint_source(model_path)
    local = Path(source).is_dir()
    return {
        **asdict(settings),
        "sampling": asdict(sampling),
        "model": records.sha256(source)[:12] if local else source,
        "questions": f"{len(questions)} with sha256 {digest.hexdigest()[:12]}",
        "rewards": list(reward_functions),
    }


def question_order(questions: Sequence[Question], count: int, seed: int) -> list[str]:
    """Ids of `count` questions: as many shuffled epochs as it takes, then cut off."""
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"{len(ids)} questions have only {len(set(ids))} different ids"
        )
    if not ids:
        raise ValueError("there are no questions to train on")
    order: list[str] = []
    while len(order) < count:
        epoch = random.Random(f"{seed}/epoch/{len(order) // len(ids)}")
        order += epoch.sample(ids, len(ids))
    return order[:count]


def grpo_trainer(
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
) -> VideoGRPOTrainer:
    """The trainer, ready to start: model, data, rewards, logs and progress bar."""
    models.seed_everything(settings.seed)
    known = {question.id: question for question in questions}
    order = question_order(
        questions, settings.steps * settings.prompts_per_step, settings.seed
    )
    lora = models.lora_config(settings.lora_rank, settings.lora_alpha)
    names = {f"rewards/{name}/mean": f"reward_{name}" for name in reward_functions}
    trainer = VideoGRPOTrainer(
        model=trainable_model(model_path, settings),
        reward_funcs=[
            trl_reward(name, function, known)
            for name, function in reward_functions.items()
        ],
        args=trainer_arguments(settings, run),
        # Only text passes through Arrow, which would fill absent media with None.
        train_dataset=Dataset.from_dict(
            {
                "prompt": [prompt_text(known[name], STYLE) for name in order],
                "question_id": order,
            }
        ),
        processing_class=models.load_processor(model_path),
        peft_config=lora if settings.lora_rank else None,
        callbacks=[
            checkpoints.LogRecord(run / "train_log_grpo.jsonl", {**LOGGED, **names}),
            CutRollouts(run / "rollouts.jsonl"),
            checkpoints.MarkComplete(),
        ],
        questions=known,
        sampling=sampling,
        rollout_path=run / "rollouts.jsonl",
        pack_tokens=settings.pack_tokens,
    )
    checkpoints.show_steps(trainer, "GRPO", ["reward", "completions/mean_length"])
    return trainer


def trl_reward(name: str, function: Reward, questions: Mapping[str, Question]):
    """A reward in TRL's form: one call for all completions of a step."""

    def rewards(completions, question_id, **kwargs):
        pairs = zip(completions, question_id, strict=True)
        return [float(function(text, questions[which])) for text, which in pairs]

    rewards.__name__ = name
    return rewards


def trainer_arguments(settings: GRPOSettings, run: Path) -> GRPOConfig:
    """The settings under TRL's names, and what the kit never varies."""
    has_gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(run / "checkpoints" / "grpo"),
        max_steps=settings.steps,
        **batch_sizes(settings),
        num_generations=settings.group_size,
        num_iterations=1,
        max_completion_length=settings.max_completion_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        beta=settings.kl_beta,
        # TRL's default weighs the KL by the ratio, which changes its gradient.
        use_bias_correction_kl=False,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup_share * settings.steps),
        seed=settings.seed,
        shuffle_dataset=False,  # question_order has shuffled
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,  # the newest may be half written when the run is killed
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not has_gpu,
        bf16=has_gpu and settings.dtype == "bfloat16",
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_pin_memory=has_gpu,
        # An adapter on the language model alone leaves no weight without gradient.
        ddp_find_unused_parameters=settings.lora_rank == 0,
        # A broadcast at every forward pass hangs where devices need unlike numbers of
        # them (pack_tokens); no buffer of the model ever changes.
        ddp_broadcast_buffers=False,
    )


def batch_sizes(settings: GRPOSettings) -> dict[str, int]:
    """TRL counts rollouts on a device; a step is one generation, split by backwards."""
    # Without a GPU, accelerate sees other processes only if told that it is on CPU.
    on_cpu = not torch.cuda.is_available()
    devices = checkpoints.PartialState(cpu=on_cpu).num_processes
    own, rest = divmod(settings.prompts_per_step, devices)
    once = settings.prompts_per_backward or own
    if rest or once == 0 or own % once:
        raise ValueError(
            f"prompts_per_step = {settings.prompts_per_step} cannot be split over "
            f"{devices} devices with prompts_per_backward = "
            f"{settings.prompts_per_backward} each"
        )
    return {
        "per_device_train_batch_size": once * settings.group_size,
        "gradient_accumulation_steps": own // once,
    }


def trainable_model(model_path: str | Path, settings: GRPOSettings):
    """The checkpoint's model; NF4 weights can only be trained through an adapter."""
    if settings.quantize and not settings.lora_rank:
        raise ValueError("quantize needs an adapter: give a lora_rank above 0")
    return models.load_model(model_path, settings.dtype, settings.quantize)
