"""What an RL training is told: a Task, the settings of GRPO, and their names in TRL."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.data.prompts import prompt_text
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.train import checkpoints
from lib.train.reward_stages import RewardStages

# isort: split
from trl import GRPOConfig

Reward = Callable[[str, Question], float]

STYLE = "think"  # the paper trains with the prompt it evaluates with
AT_LEAST_1 = (
    *("steps", "save_every", "updates_per_batch"),
    *("prompts_per_step", "max_completion_tokens", "pack_tokens"),
)
CHOICES = {  # TRL and transformers would ask only when the first rollouts are drawn
    "loss_type": (
        *("grpo", "dr_grpo", "dapo", "bnpo"),
        *("cispo", "sapo", "luspo", "vespo"),
    ),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling": ("token", "sequence"),
    "schedule": (
        *("linear", "cosine", "constant", "constant_with_warmup", "polynomial"),
        *("inverse_sqrt", "cosine_with_restarts"),
    ),
}
# Fields that TRL names alike.
SAME = ("temperature", "top_k", "top_p", "epsilon", "loss_type", "scale_rewards")


@dataclass(frozen=True)
class GRPOSettings:
    """What decides the adapter; in brackets the paper's values. With one update a batch
    (the paper's way) the policy that is trained is the one that drew the rollouts:
    every ratio is 1, nothing is clipped, and epsilon, epsilon_high and
    importance_sampling have no influence whatever."""

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
    scale_rewards: str = "group"  # advantages over the std of group, batch, none
    updates_per_batch: int = 1  # optimizer steps on the same rollouts (1)
    epsilon: float = 0.2  # ratios below 1 - epsilon are clipped (no clip)
    epsilon_high: float = 0.0  # ... above 1 + this; 0: epsilon (DAPO: 0.28)
    importance_sampling: str = "token"  # a ratio for each token, or sequence (GSPO)
    mask_truncated: bool = False  # rollouts that were cut off leave the loss (False)
    extra_draws: int = 0  # times a dead group is drawn anew, by another question (0)
    kl_clamp: float = 0.0  # bound on the log-ratio in the KL; 0: none (11)
    fp32_logits: bool = False  # output layer in float32; softmax always is (bfloat16)
    schedule: str = "linear"  # how lr falls (linear)
    warmup_share: float = 0.0  # share of the steps in which lr rises linearly (0)
    dtype: str = "float32"  # of frozen weights, and to compute in (bfloat16)
    quantize: bool = False  # frozen weights as NF4 (False)
    gradient_checkpointing: bool = False  # less memory, more time (True)
    prompts_per_backward: int = 0  # groups of one backward pass on a device; 0: all (1)
    pack_tokens: int = 16384  # tokens of one forward pass; a larger group is split

    smallest_group = 2  # of the class; no setting
    choices = CHOICES  # nor is this

    def __post_init__(self) -> None:
        checkpoints.at_least(self, AT_LEAST_1)
        checkpoints.one_of(self, self.choices)
        if not self.temperature > 0:
            raise ValueError(
                f"temperature = {self.temperature}: it must be above 0, or all rollouts"
                " of a group are the same"
            )
        if self.group_size < self.smallest_group:
            why = "an advantage compares at least 2"
            raise ValueError(f"group_size = {self.group_size}: {why}")
        for name in ("steps", "save_every"):
            if getattr(self, name) % self.updates_per_batch:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is no multiple of "
                    f"updates_per_batch = {self.updates_per_batch}: a checkpoint holds "
                    "no rollouts, so it can only lie between two batches of them"
                )


@dataclass(frozen=True)
class Task:
    """What is trained, on what, by which rewards, how, and where it is written.
    `rewards` maps a name to a function of completion text and question; their sum is
    the reward, or what RewardStages make of them. Groups of the `watched` questions are
    recorded (lib/train/watched.py); they decide nothing."""

    model: str | Path  # folder of a checkpoint, or hub id
    questions: Sequence[Question]
    rewards: Mapping[str, Reward]
    settings: GRPOSettings
    sampling: Sampling
    run: Path
    watched: Sequence[Question] = ()

    def facts(self) -> dict:
        """Everything that decides the adapter, as plain JSON values."""
        lines = []
        for own in self.questions:
            media = (own.video is not None, own.image is not None)
            told = (own.id, media, own.gold, prompt_text(own, STYLE))
            lines.append(f"{told!r}\n".encode())
        names = list(self.rewards)
        if isinstance(self.rewards, RewardStages):
            names = [str(stage) for stage in self.rewards.stages]
        return {**checkpoints.facts(self, "questions", lines), "rewards": names}

    def rows(self) -> list[dict[str, str]]:
        """A dataset row for every group of all steps, in epochs that are shuffled."""
        known = {question.id: question for question in self.questions}
        for name, count in Counter(own.id for own in self.questions).items():
            if count > 1:
                told = "questions; give each one"
                raise ValueError(f"{name} is the id of {count} {told}")
        batches = self.settings.steps // self.settings.updates_per_batch
        count = batches * self.settings.prompts_per_step
        order = checkpoints.training_order(list(known), count, self.settings.seed)
        return [dataset_row(known[name]) for name in order]


def dataset_row(question: Question) -> dict[str, str]:
    """What the trainer's dataset holds of a question: text alone, no absent media."""
    return {"prompt": prompt_text(question, STYLE), "question_id": question.id}


def trainer_arguments(settings: GRPOSettings, folder: Path) -> GRPOConfig:
    """The settings under TRL's names, and what the kit never varies. TRL counts
    rollouts on a device; a step is one generation, split by backwards."""
    devices = checkpoints.processes()
    own, rest = divmod(settings.prompts_per_step, devices)
    once = settings.prompts_per_backward or own
    if rest or once == 0 or own % once:
        raise ValueError(
            f"prompts_per_step = {settings.prompts_per_step} cannot be split over "
            f"{devices} devices with prompts_per_backward = "
            f"{settings.prompts_per_backward} each"
        )
    arguments = GRPOConfig(
        **checkpoints.common_arguments(settings, folder),
        **{name: getattr(settings, name) for name in SAME},
        per_device_train_batch_size=once * settings.group_size,
        gradient_accumulation_steps=own // once,
        # One group at first: TRL refuses groups of one rollout, which PPO may have.
        num_generations=settings.prompts_per_step * settings.group_size,
        num_iterations=settings.updates_per_batch,
        max_completion_length=settings.max_completion_tokens,
        beta=settings.kl_beta,
        # TRL's default weighs the KL by the ratio, which changes its gradient.
        use_bias_correction_kl=False,
        # To TRL's cispo it is the bound itself: at 0.28 a ratio of 1 would count 0.28.
        epsilon_high=(settings.epsilon_high or settings.epsilon)
        + (settings.loss_type == "cispo"),
        importance_sampling_level=settings.importance_sampling,
        mask_truncated_completions=settings.mask_truncated,
        cast_lm_head_to_fp32=settings.fp32_logits,
        shuffle_dataset=False,  # `Task.rows` has shuffled
        activation_checkpointing=settings.gradient_checkpointing,
        # A broadcast at every forward pass hangs where devices need unlike numbers of
        # them (pack_tokens); no buffer of the model ever changes.
        ddp_broadcast_buffers=False,
    )
    arguments.num_generations = settings.group_size
    return arguments
