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
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from lib import checkpoints, models, records, shards, shared_prefix
from lib.data.letters import parse_answer
from lib.dynamic_sampling import DynamicSampling, replaced_path
from lib.frame_store import question_media
from lib.prompts import messages, prompt_text
from lib.questions import Question
from lib.reward_stages import RewardStages
from lib.video import Sampling
from lib.watched import WatchGroups, watched_path

# isort: split
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

Reward = Callable[[str, Question], float]

RECORD = "grpo_settings.json"
EXTRA = "extra_state.safetensors"  # in a checkpoint: what only this trainer knows
STYLE = "think"  # the paper trains with the prompt it evaluates with
LEAST = {
    **dict.fromkeys(
        ("steps", "save_every", "updates_per_batch", "prompts_per_step"), 1
    ),
    **dict.fromkeys(("max_completion_tokens", "pack_tokens"), 1),
    **dict.fromkeys(
        ("lr", "kl_beta", "top_k", "top_p", "lora_rank", "warmup_share"), 0
    ),
    **dict.fromkeys(("extra_draws", "kl_clamp", "prompts_per_backward"), 0),
}
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "reward_stage": "reward_stage",
    "replaced_groups": "replaced_groups",
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
    """What decides the adapter; in brackets the paper's values.

    With one update a batch (updates_per_batch = 1, the paper's way) the policy that is
    trained is the one that drew the rollouts: every ratio is 1, nothing is clipped, and
    epsilon, epsilon_high and importance_sampling have no influence whatever.
    """

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

    def __post_init__(self) -> None:
        checkpoints.at_least(self, LEAST)
        if not self.temperature > 0:
            raise ValueError(
                f"temperature = {self.temperature}: it must be above 0, or all "
                "rollouts of a group are the same"
            )
        if self.group_size < self.smallest_group:
            raise ValueError(
                f"group_size = {self.group_size}: an advantage compares at least 2"
            )
        for name in ("steps", "save_every"):
            if getattr(self, name) % self.updates_per_batch:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is no multiple of "
                    f"updates_per_batch = {self.updates_per_batch}: a checkpoint holds "
                    "no rollouts, so it can only lie between two batches of them"
                )


class VideoGRPOTrainer(DynamicSampling, checkpoints.ExactResume, GRPOTrainer):
    """TRL's GRPOTrainer for questions with video, still or neither.

    A dataset row is {"prompt", "question_id"}; media are read from `questions` when a
    step needs them. A group stays together: it is one row of the batch that TRL
    shuffles and splits, with tensors [groups, G, ...], until the loss unfolds it.

    Other methods on the same rollouts are subclasses: `label` names their adapter, logs
    and checkpoints, `logged` maps TRL's numbers to the keys of their log.
    """

    label = "grpo"
    logged = LOGGED

    def __init__(
        self, *args, questions, rewards, sampling, settings, rollout_path, **kwargs
    ):
        self.questions: Mapping[str, Question] = questions
        self.rewards: Mapping[str, Reward] = rewards
        self.sampling: Sampling = sampling
        self.settings: GRPOSettings = settings
        self.rollout_path = Path(rollout_path)
        self.pack_tokens: int = settings.pack_tokens
        self.groups_were_compared = settings.group_size == 1
        self._drawn: list = []  # the completions of this batch
        self._columns: dict[str, Sequence] = {}  # more to record of each rollout
        self._in_loss: dict | None = None  # what the loss is being computed from
        super().__init__(*args, **kwargs)
        shared_prefix.check_model(self.model)
        for model in filter(None, (self.model, self.ref_model)):
            shared_prefix.add_scoring(model, self.temperature)
            if self.args.world_size > 1:
                shared_prefix.see_once(model)

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
        with models.naming(question):
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
        self._weigh_rewards()
        prompts = [self.read_prompt(self.questions[name]) for name in names[::size]]
        with self.gathered():
            self._seen = shared_prefix.with_features(self.model, prompts)
            self._drawn = self._draw(self._seen)
            if self.settings.extra_draws:
                kept, prompts = self.replace_dead_groups(names[::size], prompts)
                names = [name for name in kept for _ in range(size)]
                inputs = [dataset_row(self.questions[name]) for name in names]
        frozen = shared_prefix.vision_is_frozen(self.model)
        # Features of a trained tower have no gradient and are not the reference's.
        self._prompts = self._seen if frozen else prompts
        output = super()._generate_and_score_completions(inputs)
        output = self._with_advantages(output)
        self._record(names, output)
        return {**fold(output, size), "prompts": self._prompts}

    def _tokenize_prompts(self, prompts):
        repeats = len(prompts) // len(self._seen)
        ids = [own.ids.tolist() for own in self._seen for _ in range(repeats)]
        return ids, None, {}

    def _generate_single_turn(
        self, prompt_ids, images, multimodal_fields, num_generations, **kwargs
    ):
        return [tokens for group in self._drawn for tokens in group], None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """For rollouts: all weights on every process, in the type to compute in."""
        whole = shards.gathered(self.model_wrapped, self.accelerator)
        with whole, self.accelerator.autocast():
            yield

    def rollouts(self, seen) -> list[list[list[int]]]:
        """Groups as token ids; FloatingPointError for a policy that has become NaN."""
        how = (self.num_generations, self.decoding())
        try:
            return shared_prefix.rollouts(self.model, seen, *how)
        except RuntimeError as error:  # of torch.multinomial; on a GPU an assertion
            if not re.search("probability tensor|device-side assert", str(error)):
                raise
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: no rollouts can be drawn, the "
                f"policy's probabilities are NaN; {checkpoints.diverged(self.settings)}"
            ) from error

    def _draw(self, seen) -> list[list[list[int]]]:
        groups = self.rollouts(seen)
        if not self.groups_were_compared:
            check_groups_differ(groups)
            self.groups_were_compared = True
        return groups

    def score(
        self,
        question: Question,
        prompt: shared_prefix.Prompt,
        group: Sequence[Sequence[int]],
    ) -> dict[str, list]:
        """Texts, {reward name: value} and weighted sums of a question's rollouts.

        The weights are those of the next batch; nothing in the trainer changes.
        """
        texts = self.processing_class.batch_decode(group, skip_special_tokens=True)
        each, weights = self._measure(question, prompt, group, texts), self.weights()
        sums = [
            math.fsum(weights[name] * value for name, value in own.items())
            for own in each
        ]
        return {"texts": texts, "rewards": each, "total": sums}

    def _measure(self, question, prompt, group, texts) -> list[dict[str, float]]:
        """Every reward of every rollout; a subclass may add its own."""
        return [
            {name: float(own(text, question)) for name, own in self.rewards.items()}
            for text in texts
        ]

    # Rewards

    def compared(self, groups: Sequence[Sequence[float]]) -> list[list]:
        """The advantage of each rollout, from the rewards of whole groups.

        None where a subclass does not compare the rollouts of a group.
        """
        found = advantages(groups, self.settings.scale_rewards)
        return self.shaped(torch.tensor(found)).tolist()

    def _stage(self) -> int:
        """Index of the stage that the next batch is in.

        It follows from the logged means of all steps before, which checkpoints hold in
        trainer_state.json.
        """
        keys = {name: f"rewards/{name}/mean" for name in self.rewards}
        means = [
            {name: row[key] for name, key in keys.items()}
            for row in self.state.log_history
            if set(keys.values()) <= set(row)
        ]
        return self.rewards.stage_after(means)

    def weights(self) -> dict[str, float]:
        """The weight of each reward, by name, in the next batch."""
        weights = dict.fromkeys(self.reward_func_names, 1.0)
        if not isinstance(self.rewards, RewardStages):
            return weights
        # Rewards that a subclass adds are not the schedule's.
        weights |= dict.fromkeys(self.rewards, 0.0)
        return weights | self.rewards.stages[self._stage()].weights

    def _weigh_rewards(self) -> None:
        """Give TRL the weights of the stage that this batch is in."""
        if isinstance(self.rewards, RewardStages):
            self.reward_weights = torch.tensor(list(self.weights().values()))
            self._metrics["train"]["reward_stage"].append(self._stage() + 1.0)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._texts, self._tokens = completions, completion_ids_list
        self._rewards = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        return self._rewards

    def _with_advantages(self, output: dict) -> dict:
        """TRL's output of a batch, with the advantages that the loss shall see."""
        return {**output, "advantages": self.shaped(output["advantages"])}

    def shaped(self, advantages: torch.Tensor) -> torch.Tensor:
        """What is learned of advantages of any shape: all; a subclass may differ."""
        return advantages

    def _rows(self, names, texts, tokens) -> list[dict]:
        """What rollouts.jsonl says of every rollout but its rewards."""
        ends = set(self.eos_token_ids)
        return [
            {
                "step": self.state.global_step + 1,
                "question": name,
                "rollout": i % self.num_generations,
                "text": texts[i],
                "tokens": len(tokens[i]),
                "truncated": tokens[i][-1] not in ends,
            }
            for i, name in enumerate(names)
        ]

    def _record(self, names: list[str], output: dict) -> None:
        """Append this step's rollouts to rollouts.jsonl and log the parse failures."""
        start = self.accelerator.process_index * len(names)
        rewards = self._rewards[start : start + len(names)].tolist()
        columns = {"advantage": output["advantages"].tolist(), **self._columns}
        rows = [
            {
                **row,
                "rewards": dict(zip(self.reward_func_names, rewards[i], strict=True)),
                **{name: values[i] for name, values in columns.items()},
            }
            for i, row in enumerate(self._rows(names, self._texts, self._tokens))
        ]
        rows = gather_object(rows)
        failed = [parse_answer(row["text"], "first_letter") is None for row in rows]
        self._metrics["train"]["parse_failure"].append(sum(failed) / len(failed))
        if self.accelerator.is_main_process:
            records.append_jsonl(self.rollout_path, rows)

    # Update

    def _compute_loss(self, model, inputs):
        self._prompts = inputs["prompts"]
        self._in_loss = unfold(inputs)
        loss = super()._compute_loss(model, self._in_loss)
        if self.beta and self.loss_type == "grpo":
            self._log_kl(**self._in_loss)
        self._in_loss = None
        return loss

    def _log_kl(self, policy_logps, ref_per_token_logps, completion_mask, **_) -> None:
        """Log the KL that is in the loss, a mean over sequences of their means.

        TRL logs a mean over all tokens, in which long completions weigh more.
        """
        ratio = ref_per_token_logps - policy_logps
        kl = (ratio.exp() - ratio - 1) * completion_mask
        own = (kl.sum(-1) / completion_mask.sum(-1).clamp(min=1)).mean()
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["kl"][-1] = self.accelerator.gather(own).mean().item()

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
        # mask_truncated hides all of a rollout that was cut off, which fills its row.
        kept |= ~kept.any(1, keepdim=True)
        tokens = input_ids[:, -logits_to_keep:]
        completions = [own[mask] for own, mask in zip(tokens, kept, strict=True)]
        size = len(completions) // len(self._prompts)
        groups = [completions[i : i + size] for i in range(0, len(completions), size)]
        with self.accelerator.autocast():
            found = self._completion_scores(model, self._prompts, groups)
        logps, entropies = (padded(values, logits_to_keep) for values in found)
        if self._in_loss is not None and self.beta:
            self._in_loss["policy_logps"] = logps.detach()
            if self.settings.kl_clamp:
                self._clamp_reference(logps)
        return logps, entropies if compute_entropy else None, None

    def _completion_scores(self, model, prompts, groups):
        return shared_prefix.completion_scores(model, prompts, groups, self.pack_tokens)

    def _clamp_reference(self, logps: torch.Tensor) -> None:
        """Bound d in the KL estimate exp(d) - d - 1, d = reference - policy.

        As the released code does (grpo_trainer.py:476-479): beyond the bound the KL has
        no gradient. TRL 1.16 has no such setting and subtracts `logps` again, so the
        reference is moved to where the bounded difference puts it.
        """
        bound, inputs = self.settings.kl_clamp, self._in_loss
        ratio = (inputs["ref_per_token_logps"] - logps).clamp(-bound, bound)
        inputs["ref_per_token_logps"] = logps + ratio

    # Checkpoints

    def extra_state(self) -> dict[str, torch.Tensor]:
        """What a subclass must find again beside weights, optimizer and randomness."""
        return {}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `extra_state` gave."""

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        state = self.extra_state()
        if state and self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            save_file(state, Path(self.args.output_dir) / name / EXTRA)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.extra_state():
            self.load_extra_state(load_file(Path(checkpoint) / EXTRA))


def padded(values: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """One [width] row of each; zeros behind its end."""
    rows = pad_sequence(values, True, 0.0)
    missing = width - rows.shape[1]  # the longest may be in another batch
    return torch.nn.functional.pad(rows, (0, missing))


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


def advantages(groups: Sequence[Sequence[float]], scale: str) -> list[list[float]]:
    """How much better than its group each rollout did, from rewards [groups][G].

    (r - mean of the group) / (std + 1e-4) as TRL 1.16 computes it, the std with one
    degree of freedom less; `scale` says whose std: "group", "batch" (all groups), or
    "none" to leave the difference as it is.
    """
    rewards = torch.tensor(groups, dtype=torch.float32)
    found = rewards - rewards.mean(1, keepdim=True)
    if scale != "none":
        std = rewards.std(1, keepdim=True) if scale == "group" else rewards.std()
        found = found / (std + 1e-4)
    return found.tolist()


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


def teaches(settings: GRPOSettings, logs: Mapping) -> bool:
    """Whether a step must have had gradients, by its log: not every group was dead.

    False where it cannot be told: truncated rollouts may be masked, and a second update
    on the same rollouts may be clipped.
    """
    masked = settings.mask_truncated and logs.get("completions/clipped_ratio", 1)
    return logs.get("frac_reward_zero_std", 1) < 1 and not masked


class CutRollouts(checkpoints.TrainerCallback):
    """Drops rollouts of steps after the checkpoint that training goes on from."""

    def __init__(self, *paths: Path):
        self.paths = paths

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for path in self.paths:
                checkpoints.cut_back(path, state.global_step)


def train_grpo(
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
    watched: Sequence[Question] = (),
) -> Path:
    """Train an adapter; returns its folder run/adapters/grpo.

    `reward_functions` maps a name to a function of completion text and question; their
    sum is the reward, or what RewardStages (lib/reward_stages.py) make of them. Writes
    run/train_log_grpo.jsonl (a row a step) and run/rollouts.jsonl (a row a rollout of
    the update; those of groups that were drawn and replaced are in
    run/replaced_rollouts.jsonl), and goes on from run/checkpoints/grpo where a killed
    call stopped. The groups of the `watched` questions are in run/watched_grpo.jsonl;
    they have no influence on the adapter (lib/watched.py). A finished adapter of the
    same settings is returned at once. Raises ValueError, naming the difference, when
    what lies there was made with other settings, and BadVideo for unusable media.
    """
    given = (model_path, questions, reward_functions, settings, sampling, run)
    return train_policy(VideoGRPOTrainer, *given, watched)


def train_policy(
    method: type[VideoGRPOTrainer],
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
    watched: Sequence[Question] = (),
) -> Path:
    """`train_grpo` by any method: a trainer class, whose label names what it writes."""
    run = Path(run)
    folder, work = run / "adapters" / method.label, run / "checkpoints" / method.label
    record = f"{method.label}_settings.json"
    given = (model_path, questions, reward_functions, settings, sampling)
    wanted = all_settings(*given)
    with checkpoints.one_trainer(run, method.label):
        if not checkpoints.same_settings(folder / record, wanted):
            if not checkpoints.same_settings(work / record, wanted):
                checkpoints.write_settings(work / record, wanted)
            trainer = policy_trainer(method, *given, run, watched)
            checkpoints.train(trainer)
            checkpoints.publish_trained(trainer, folder, record, wanted)
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
    return {
        **asdict(settings),
        "sampling": asdict(sampling),
        "model": models.identity(model_path),
        "questions": f"{len(questions)} with sha256 {digest.hexdigest()[:12]}",
        "rewards": reward_names(reward_functions),
    }


def reward_names(reward_functions: Mapping[str, Reward]) -> list[str]:
    """The rewards as a record tells them: names, or stages with their weights."""
    if isinstance(reward_functions, RewardStages):
        return [str(stage) for stage in reward_functions.stages]
    return list(reward_functions)


def dataset_row(question: Question) -> dict[str, str]:
    """What the trainer's dataset holds of a question."""
    return {"prompt": prompt_text(question, STYLE), "question_id": question.id}


def question_order(questions: Sequence[Question], count: int, seed: int) -> list[str]:
    """Ids of `count` questions: as many shuffled epochs as it takes, then cut off."""
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise ValueError(
            f"{len(ids)} questions have only {len(set(ids))} different ids: {twice} is "
            "that of more than one"
        )
    return checkpoints.training_order(ids, count, seed)


def grpo_trainer(
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
    watched: Sequence[Question] = (),
) -> VideoGRPOTrainer:
    """The trainer, ready to start: model, data, rewards, logs and progress bar."""
    given = (model_path, questions, reward_functions, settings, sampling, run)
    return policy_trainer(VideoGRPOTrainer, *given, watched)


def policy_trainer(
    method: type[VideoGRPOTrainer],
    model_path: str | Path,
    questions: Sequence[Question],
    reward_functions: Mapping[str, Reward],
    settings: GRPOSettings,
    sampling: Sampling,
    run: Path,
    watched: Sequence[Question] = (),
) -> VideoGRPOTrainer:
    """`grpo_trainer` of any method: a trainer class."""
    models.seed_everything(settings.seed)
    known = {question.id: question for question in questions}
    batches = settings.steps // settings.updates_per_batch
    order = question_order(
        questions, batches * settings.prompts_per_step, settings.seed
    )
    lora = models.lora_config(settings.lora_rank, settings.lora_alpha)
    names = {f"rewards/{name}/mean": f"reward_{name}" for name in reward_functions}
    if settings.updates_per_batch > 1:
        names["clip_ratio/region_mean"] = "clipped_ratios"
    rollout_path = run / rollout_file(method.label)
    # Known before the model is loaded: ZeRO-3 splits it on the way.
    arguments = trainer_arguments(settings, run / "checkpoints" / method.label)
    trainer = method(
        model=shards.load_trainable(model_path, settings, arguments),
        reward_funcs=[
            trl_reward(name, function, known)
            for name, function in reward_functions.items()
        ],
        args=arguments,
        # Only text passes through Arrow, which would fill absent media with None.
        train_dataset=Dataset.from_list([dataset_row(known[name]) for name in order]),
        processing_class=models.load_processor(model_path),
        peft_config=lora if settings.lora_rank else None,
        callbacks=[
            checkpoints.LogRecord(
                run / f"train_log_{method.label}.jsonl", {**method.logged, **names}
            ),
            checkpoints.StopDiverged(settings, partial(teaches, settings)),
            CutRollouts(rollout_path, replaced_path(rollout_path)),
            checkpoints.MarkComplete(),
            shards.CheckShards(),
        ],
        questions=known,
        rewards=reward_functions,
        sampling=sampling,
        settings=settings,
        rollout_path=rollout_path,
    )
    trainer.add_callback(
        WatchGroups(trainer, watched, watched_path(run, method.label), STYLE)
    )
    shown = {"reward": "reward", "completions/mean_length": "length"}
    checkpoints.show_steps(trainer, method.label.upper(), shown)
    return trainer


def rollout_file(label: str) -> str:
    """rollouts.jsonl for GRPO, rollouts_<label>.jsonl for another method."""
    return "rollouts.jsonl" if label == "grpo" else f"rollouts_{label}.jsonl"


def trl_reward(name: str, function: Reward, questions: Mapping[str, Question]):
    """A reward in TRL's form: one call for all completions of a step."""

    def rewards(completions, question_id, **kwargs):
        pairs = zip(completions, question_id, strict=True)
        return [float(function(text, questions[which])) for text, which in pairs]

    rewards.__name__ = name
    return rewards


def trainer_arguments(settings: GRPOSettings, folder: Path) -> GRPOConfig:
    """The settings under TRL's names, and what the kit never varies."""
    has_gpu = torch.cuda.is_available()
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        **batch_sizes(settings),
        # One group at first: TRL refuses groups of one rollout, which PPO may have.
        num_generations=settings.prompts_per_step * settings.group_size,
        num_iterations=settings.updates_per_batch,
        max_completion_length=settings.max_completion_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        beta=settings.kl_beta,
        # TRL's default weighs the KL by the ratio, which changes its gradient.
        use_bias_correction_kl=False,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high or None,
        importance_sampling_level=settings.importance_sampling,
        mask_truncated_completions=settings.mask_truncated,
        cast_lm_head_to_fp32=settings.fp32_logits,
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
        logging_nan_inf_filter=False,  # it would log NaN as 0
        report_to="none",
        disable_tqdm=True,
        use_cpu=not has_gpu,
        bf16=settings.dtype == "bfloat16",
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_pin_memory=has_gpu,
        ddp_find_unused_parameters=False,  # see_once: every pass uses every weight
        # A broadcast at every forward pass hangs where devices need unlike numbers of
        # them (pack_tokens); no buffer of the model ever changes.
        ddp_broadcast_buffers=False,
    )
    arguments.num_generations = settings.group_size
    return arguments


def batch_sizes(settings: GRPOSettings) -> dict[str, int]:
    """TRL counts rollouts on a device; a step is one generation, split by backwards."""
    devices = checkpoints.processes()
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
