"""GRPO on questions about videos: TRL's trainer, with pixels in rollout and update.

The RL arm of SEED-Bench-R1 (arXiv 2503.24376; released grpo.py and grpo.sh): G answers
to a question are drawn, each gets a reward, and the policy moves towards those that did
better than their group. Advantages, loss, metrics and checkpoints are those of TRL
1.16; lib/model/ supplies rollouts and log-probabilities, because stock TRL takes video
prompts and then computes the update with no video at all.

Example of an advantage: rewards 1, 0, 0, 1 in a group of four have mean 0.5 and
standard deviation 0.577 (one degree of freedom less), so the advantages are 0.866,
-0.866, -0.866, 0.866; rewards 1, 1, 1, 1 are a dead group, all advantages 0."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from lib import records
from lib.data.frame_store import question_media
from lib.data.letters import parse_answer
from lib.data.prompts import messages, prompt_text
from lib.data.questions import Question
from lib.model import encoding, prefix, rollouts, scoring, shards
from lib.model.prefix import Prompt
from lib.train import checkpoints, progress
from lib.train.reward_stages import RewardStages
from lib.train.rewards import TOLD_ROLLOUT
from lib.train.task import STYLE, GRPOSettings, Task, dataset_row, trainer_arguments
from lib.train.watched import WatchGroups, watched_path

# isort: split
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer

SAME = ("reward", "reward_std", "reward_stage", "replaced_groups", "parse_failure")
LOGGED = {  # the names of TRL's numbers in our logs
    **{name: name for name in (*SAME, "kl", "entropy", "loss", "grad_norm")},
    "frac_reward_zero_std": "dead_groups",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "learning_rate": "lr",
    "step_time": "seconds_step",
}


@dataclass
class Group:
    """The G rollouts of a question, on their way from the draw to the record."""

    question: Question
    prompt: Prompt  # with features where the vision tower is frozen
    tokens: list[list[int]]  # of each rollout
    rows: list[dict]  # what rollouts.jsonl says of each; "rewards" as measured
    weights: Mapping[str, float]  # of the rewards, by name

    @property
    def totals(self) -> list[float]:
        """The weighted sum of the rewards of each rollout."""
        rewards = [row["rewards"] for row in self.rows]
        return [math.fsum(self.weights[n] * own[n] for n in own) for own in rewards]

    def is_dead(self) -> bool:
        """Whether no rollout is better than another, in TRL's float32."""
        totals = self.totals
        return max(totals) - min(totals) < 1e-6


class VideoGRPOTrainer(checkpoints.ExactResume, GRPOTrainer):
    """TRL's GRPOTrainer for questions with video, still or neither, ready to start. A
    group stays together: it is one row of the batch that TRL shuffles and splits, with
    tensors [groups, G, ...], until the loss unfolds it. Other methods on the same
    rollouts are subclasses: `label` names their adapter, logs and checkpoints, `logged`
    maps TRL's numbers to the keys of their log, and `added` names rewards of their
    own."""

    label = "grpo"
    logged = LOGGED
    added: tuple[str, ...] = ()

    def __init__(self, task: Task):
        settings, run = task.settings, Path(task.run)
        self.task, self.settings = task, settings
        self.questions = {question.id: question for question in task.questions}
        self.rollout_path = run / rollout_file(self.label)
        self.replaced_path = run / f"replaced_{rollout_file(self.label)}"
        self.groups: list[Group] = []  # of the last batch that was drawn
        self.in_loss: dict | None = None  # what the loss is being computed from
        rewards = [*task.rewards, *self.added]
        names = {f"rewards/{name}/mean": f"reward_{name}" for name in rewards}
        if settings.updates_per_batch > 1:
            names["clip_ratio/region_mean"] = "clipped_ratios"
        log = progress.Progress(
            run / f"train_log_{self.label}.jsonl",
            {**self.logged, **names},
            self.label.upper(),
            {"reward": "reward", "completion_length": "length"},
            beside=(self.rollout_path, self.replaced_path),
        )
        rows = Dataset.from_list(task.rows())
        arguments = trainer_arguments(settings, run / "checkpoints" / self.label)
        learns = partial(teaches, settings)
        super().__init__(
            reward_funcs=[self.measure for _ in rewards],  # TRL counts them
            train_dataset=rows,
            **checkpoints.trainer_parts(task, self.label, arguments, log, learns),
        )
        self.reward_func_names = rewards
        prefix.check_model(self.model)
        for model in filter(None, (self.model, self.ref_model)):
            scoring.add_scoring(model, self.temperature)
            if self.args.world_size > 1:
                prefix.see_once(model)
        path = watched_path(run, self.label)
        self.add_callback(WatchGroups(self, task.watched, path))

    def decoding(self) -> rollouts.Decoding:
        """Every sampling field, from the settings and never from the checkpoint."""
        config = prefix.base_of(self.model).config
        return rollouts.Decoding(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            end_ids=tuple(self.eos_token_ids),
            pad_id=self._tokenizer.pad_token_id,
            suppressed=tuple(encoding.visual_token_ids(config)),
        )

    def read_prompt(self, question: Question) -> Prompt:
        """The tokenized prompt of a question with its pixels. Raises BadVideo."""
        with encoding.naming(question):
            clip, still = question_media(question, self.task.sampling)
            turn = messages(prompt_text(question, STYLE), clip, still)
            encoded = encoding.encode(self.processing_class, [turn])
        return prefix.make_prompt(self.model, encoded)

    def _generate_and_score_completions(self, inputs):
        size = self.num_generations
        if isinstance(self.task.rewards, RewardStages):
            self.reward_weights = torch.tensor(list(self.weights().values()))
            self._metrics["train"]["reward_stage"].append(self._stage() + 1.0)
        with self.gathered():
            asked = [self.questions[row["question_id"]] for row in inputs[::size]]
            self.groups = self.drawn(asked)
            if size > 1 and not self.state.global_step:  # later, a policy may be sure
                check_groups_differ(self.groups)
            if self.settings.extra_draws:
                self._replace_dead_groups()
        self.add_rewards(self.groups)
        rows = [dataset_row(own.question) for own in self.groups for _ in range(size)]
        output = super()._generate_and_score_completions(rows)
        output = self._with_advantages(output)
        self._record(output["advantages"])
        return {**fold(output, size), "prompts": [own.prompt for own in self.groups]}

    def _tokenize_prompts(self, prompts):
        ids = [own.prompt.ids.tolist() for own in self.groups for _ in own.tokens]
        return ids, None, {}

    def _generate_single_turn(self, *args, **kwargs):
        return [tokens for group in self.groups for tokens in group.tokens], None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """For rollouts: all weights on every process, in the type to compute in."""
        whole = shards.gathered(self.model_wrapped, self.accelerator)
        with whole, self.accelerator.autocast():
            yield

    def drawn(self, questions: Sequence[Question]) -> list[Group]:
        """A group for each of these questions, measured; call it inside `gathered`."""
        prompts = [self.read_prompt(question) for question in questions]
        seen = prefix.with_features(self.model, prompts)
        drawn = self.draw(seen)
        if not prefix.vision_is_frozen(self.model):
            seen = prompts  # such features have no gradient, and are no reference's
        columns = (questions, seen, drawn, map(self._rows, questions, drawn))
        weights = self.weights()
        groups = [Group(*own, weights) for own in zip(*columns, strict=True)]
        self.measure(groups)
        return groups

    def draw(self, seen: Sequence[Prompt]) -> list[list[list[int]]]:
        """Groups as token ids; FloatingPointError for a policy that has become NaN."""
        how = (self.num_generations, self.decoding())
        try:
            return rollouts.draw(self.model, seen, *how)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: no rollouts can be drawn, the "
                f"policy's probabilities are NaN; {progress.diverged(self.settings)}"
            ) from error

    def _rows(self, question: Question, drawn: list[list[int]]) -> list[dict]:
        texts = self.processing_class.batch_decode(drawn, skip_special_tokens=True)
        return [
            {
                "step": self.state.global_step + 1,
                "question": question.id,
                "rollout": number,
                "text": text,
                "tokens": len(tokens),
                "truncated": tokens[-1] not in self.eos_token_ids,
            }
            for number, (text, tokens) in enumerate(zip(texts, drawn, strict=True))
        ]

    def _replace_dead_groups(self) -> None:
        """Dynamic sampling: further questions in the place of dead groups. DAPO (arXiv
        2503.14476, section 3.2) draws until none is left, here `extra_draws` times."""
        replaced: list[dict] = []
        for draw in range(self.settings.extra_draws):
            dead = [i for i, own in enumerate(self.groups) if own.is_dead()]
            further = self._further_questions(draw)[: len(dead)]
            if not further:
                break
            for i, new in zip(dead, self.drawn(further), strict=False):
                replaced += [{**row, "draw": draw} for row in self.groups[i].rows]
                self.groups[i] = new
        replaced = gather_object(replaced)
        count = len(replaced) / self.num_generations
        self._metrics["train"]["replaced_groups"].append(count)
        if self.accelerator.is_main_process and replaced:
            records.append_jsonl(self.replaced_path, replaced)

    def _further_questions(self, draw: int) -> list[Question]:
        """Questions for a draw: the step decides them, so that a resumed run agrees."""
        told = f"{self.settings.seed}/draw/{self.state.global_step}/{draw}"
        order = random.Random(told).sample(list(self.questions), len(self.questions))
        # Each process has its own share, so that no two draw the same question.
        process, asked = self.accelerator, {own.question.id for own in self.groups}
        share = order[process.process_index :: process.num_processes]
        return [self.questions[name] for name in share if name not in asked]

    def add_rewards(self, groups: Sequence[Group]) -> None:
        """Outside of `gathered` a subclass gives the rewards that it has `added`."""

    def measure(self, groups: Sequence[Group]) -> None:
        """Give every rollout the rewards of the task."""
        for group in groups:
            for row in group.rows:
                given = (row["text"], group.question)
                place = f"{row['step']}/{row['rollout']}"
                row["rewards"] = {
                    name: float(own(*given, *[place] * (own in TOLD_ROLLOUT)))
                    for name, own in self.task.rewards.items()
                }
                for name, value in row["rewards"].items():
                    if not math.isfinite(value):  # TRL would count NaN as 0
                        asked = f"question {row['question']}, {row['text']!r:.100}"
                        raise ValueError(f"reward {name} is {value} for {asked}")

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rows = chain.from_iterable(own.rows for own in self.groups)
        names = self.reward_func_names
        own = [[row["rewards"][name] for name in names] for row in rows]
        return self.accelerator.gather(torch.tensor(own, device=self.model.device))

    def weights(self) -> dict[str, float]:
        """The weight of each reward, by name, in the next batch."""
        weights = dict.fromkeys(self.reward_func_names, 1.0)
        if isinstance(self.task.rewards, RewardStages):
            # Rewards that a subclass adds are not the schedule's.
            weights |= dict.fromkeys(self.task.rewards, 0.0)
            weights |= self.task.rewards.stages[self._stage()].weights
        return weights

    def _stage(self) -> int:
        """The next batch's stage, by the logged means, which checkpoints hold."""
        keys = {name: f"rewards/{name}/mean" for name in self.task.rewards}
        means = [
            {name: row[key] for name, key in keys.items()}
            for row in self.state.log_history
            if set(keys.values()) <= set(row)
        ]
        return self.task.rewards.stage_after(means)

    def compared(self, groups: Sequence[Sequence[float]]) -> list[list]:
        """The advantages in groups of rewards; None where a group decides nothing."""
        found = advantages(groups, self.settings.scale_rewards)
        return self.shaped(torch.tensor(found)).tolist()

    def shaped(self, advantages: torch.Tensor) -> torch.Tensor:
        """What is learned of advantages of any shape: all; a subclass may differ."""
        return advantages

    def _with_advantages(self, output: dict) -> dict:
        """TRL's output of a batch, with the advantages that the loss shall see."""
        return {**output, "advantages": self.shaped(output["advantages"])}

    def _record(self, advantages: torch.Tensor) -> None:
        """Append a batch to rollouts.jsonl and log how many answers can be read and how
        many groups are dead: with scale_rewards = batch TRL asks the whole batch."""
        dead = gather_object([own.is_dead() for own in self.groups])
        self._metrics["train"]["frac_reward_zero_std"][-1] = sum(dead) / len(dead)
        rows = list(chain.from_iterable(own.rows for own in self.groups))
        for row, advantage in zip(rows, advantages.tolist(), strict=True):
            row.setdefault("advantage", advantage)
        rows = gather_object(rows)
        failed = [parse_answer(row["text"], "first_letter") is None for row in rows]
        self._metrics["train"]["parse_failure"].append(sum(failed) / len(failed))
        if self.accelerator.is_main_process:
            records.append_jsonl(self.rollout_path, rows)

    def _compute_loss(self, model, inputs):
        self.in_loss = {**unfold(inputs), "prompts": inputs["prompts"]}
        loss = super()._compute_loss(model, self.in_loss)
        if self.beta and self.loss_type == "grpo":
            self._log_kl(**self.in_loss)
        self.in_loss = None
        return loss

    def _log_kl(self, policy_logps, ref_per_token_logps, completion_mask, **_) -> None:
        """Log the KL of the loss: a mean over sequences; TRL's is over all tokens."""
        ratio = ref_per_token_logps - policy_logps
        kl = (ratio.exp() - ratio - 1) * completion_mask
        own = (kl.sum(-1) / completion_mask.sum(-1).clamp(min=1)).mean()
        self._metrics["train"]["kl"][-1] = self.accelerator.gather(own).mean().item()

    def _get_per_token_logps_and_entropies(
        self, model, ids, mask, width, compute_entropy=False, **kwargs
    ):
        drawn = [own.prompt for own in self.groups]
        prompts = self.in_loss["prompts"] if self.in_loss else drawn
        kept = mask[:, -width:].bool()
        # mask_truncated hides all of a rollout that was cut off, which fills its row.
        kept |= ~kept.any(1, keepdim=True)
        tokens = zip(ids[:, -width:], kept, strict=True)
        completions = [row[own] for row, own in tokens]
        size = len(completions) // len(prompts)
        groups = [completions[i : i + size] for i in range(0, len(completions), size)]
        with self.accelerator.autocast():
            found = self._completion_scores(model, prompts, groups)
        logps, entropies = (padded(values, width) for values in found)
        if self.in_loss and self.beta:
            self.in_loss["policy_logps"] = logps.detach()
            if self.settings.kl_clamp:
                self._clamp_reference(logps)
        return logps, entropies if compute_entropy else None, None

    def _completion_scores(self, model, prompts, groups):
        pack = self.settings.pack_tokens
        return scoring.completion_scores(model, prompts, groups, pack)

    def _clamp_reference(self, logps: torch.Tensor) -> None:
        """Bound d in the KL estimate exp(d) - d - 1, d = reference - policy, as the
        released code does (grpo_trainer.py:476-479): beyond it the KL has no gradient.
        TRL subtracts `logps` again, so the reference moves to where the bound is."""
        bound, inputs = self.settings.kl_clamp, self.in_loss
        ratio = (inputs["ref_per_token_logps"] - logps).clamp(-bound, bound)
        inputs["ref_per_token_logps"] = logps + ratio


def train(task: Task, method: type[VideoGRPOTrainer] = VideoGRPOTrainer) -> Path:
    """Train run/adapters/<label of the method>, as `checkpoints.finished` does it.
    Writes train_log_<label>.jsonl (a row a step), rollouts.jsonl (a row a rollout of
    the update) and replaced_rollouts.jsonl. Raises BadVideo for unusable media."""
    record = f"{method.label}_settings.json"
    return checkpoints.finished(task, method.label, record, method)


def rollout_file(label: str) -> str:
    """rollouts.jsonl for GRPO, rollouts_<label>.jsonl for another method."""
    return "rollouts.jsonl" if label == "grpo" else f"rollouts_{label}.jsonl"


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
    """(r - mean of the group) / (std + 1e-4) of rewards [groups][G], as TRL 1.16.
    `scale` says whose std: "group", "batch" (all groups), or "none" for no division."""
    rewards = torch.tensor(groups, dtype=torch.float32)
    found = rewards - rewards.mean(1, keepdim=True)
    if scale != "none":
        alone = rewards.shape[1] == 1  # such a rollout is its own mean, without spread
        own = rewards.std(1, keepdim=True, correction=int(not alone))
        found = found / ((own if scale == "group" else rewards.std()) + 1e-4)
    return found.tolist()


def check_groups_differ(groups: Sequence[Group]) -> None:
    """RuntimeError if in each group of all processes all rollouts are the same (a stray
    top_k of 1)."""
    same = gather_object([len(set(map(tuple, own.tokens))) == 1 for own in groups])
    if all(same):
        raise RuntimeError(
            f"the rollouts of each of the {len(same)} groups are identical: sampling "
            "is off or the policy is deterministic; look at temperature, top_k, top_p"
        )


def teaches(settings: GRPOSettings, logs: Mapping) -> bool:
    """Whether a step must have had gradients, by its log: not every group was dead.
    False where it cannot be told: rollouts may be masked, a second update clipped."""
    masked = settings.mask_truncated and logs.get("completions/clipped_ratio", 1)
    return logs.get("frac_reward_zero_std", 1) < 1 and not masked
