"""GRPO-CARE: GRPO with a bonus for reasoning from which the answer follows.

Consistency-aware reinforcement learning (arXiv 2506.16141, section 4, Algorithm 1; its
released code: https://github.com/TencentARC/GRPO-CARE) on the rollouts of
lib/train/grpo.py. Of G rollouts (reasoning t, answer a) to a question x, those count
whose accuracy is at least max(group mean, 0.1). A reference that follows the policy
slowly says how likely the answer is after the reasoning,

    p = mean over the answer's tokens of reference(a_i | x, t, a_<i),   at most 0.95,

and a counting rollout whose p is at least the mean p of all that count, less 0.01, gets
0.5 x accuracy on top of its reward. There is no KL. Every 10 steps

    reference <- 0.995 reference + 0.005 policy.

Example: accuracies 1, 1, 0, 1 with p = 0.9, 0.5, 0.99, 0.8. The third does not count;
the mean of the others is 0.733, so the first and the last get the bonus.

The released code differs: its mean is geometric (`answer_mean`), over the letter and
the `>` before it; its means over rollouts are over the whole batch; and under ZeRO-3
its reference most likely never moves. Here the reference is a float32 average of the
trained weights, and takes their place in the model while it is asked; where weights are
split over processes it is split as they are. With LoRA the two factors of an adapter
are averaged, which is not the average of their products."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from lib.data.letters import ANSWER
from lib.model import shards
from lib.model.prefix import Prompt
from lib.train import grpo
from lib.train.task import GRPOSettings, Task

# isort: split
from transformers import TrainerCallback

CHOICES = GRPOSettings.choices | {
    "reference": ("ema", "frozen", "policy"),
    "answer_mean": ("arithmetic", "geometric"),
    "bonus": ("sparse", "dense"),
}


@dataclass(frozen=True)
class CARESettings(GRPOSettings):
    """What decides the adapter; in brackets GRPO-CARE's values for SEED-Bench-R1."""

    bonus_weight: float = 0.5  # of the consistency bonus (0.5)
    bonus: str = "sparse"  # sparse: above the group's mean; dense: times p (sparse)
    least_accuracy: float = 0.1  # a rollout below it never counts (0.1)
    most_likelihood: float = 0.95  # p is cut there (0.95)
    margin: float = 0.01  # p may be so much below the mean (0.01; code: 0)
    answer_mean: str = "arithmetic"  # over the answer's tokens (code: geometric)
    reference: str = "ema"  # ema, frozen: the start, policy: as it is now (ema)
    reference_decay: float = 0.995  # share of the old reference in the new (0.995)
    reference_every: int = 10  # optimizer steps between moves of the reference (10)

    choices = CHOICES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_draws:
            why = "a bonus depends on the group"
            raise ValueError(f"GRPO-CARE needs extra_draws = 0: {why}")


def consistency_bonus(
    accuracies: Sequence[float], likelihoods: Sequence[float], settings: CARESettings
) -> list[float]:
    """The bonus of each rollout of one group. Means are compared in float32, as in the
    released code (grpo_trainer_ref_ema.py, lines 594 to 609): there the mean of six
    likelihoods of 0.95 is 0.95, and at margin 0 all get the bonus; in float64 it is
    more. With `dense` the likelihood is the bonus; the paper does not say how."""
    accuracy = torch.tensor(accuracies, dtype=torch.float32)
    cut = torch.tensor(likelihoods, dtype=torch.float32)
    cut = cut.clamp(max=settings.most_likelihood)
    counts = (accuracy >= accuracy.mean()) & (accuracy >= settings.least_accuracy)
    given = counts & (cut >= cut[counts].mean() - settings.margin)
    if settings.bonus == "dense":
        given = counts * cut
    return (settings.bonus_weight * accuracy * given).tolist()


def answer_span(
    tokens: Sequence[int], text_of: Callable[[Sequence[int]], str]
) -> tuple[int, int] | None:
    """Start and end of the tokens of the answer, the text in the first
    `<answer>...</answer>` without white space around it; None without one. A token with
    a part of the tag belongs to it: MiniPlan's ">B" in "<answer>B</answer>"."""
    text = text_of(tokens)
    match = ANSWER.search(text)
    if match is None or not match.group(1).strip():
        return None
    inside = match.group(1)
    start = match.start(1) + len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    # More tokens never give less text, but half a character counts as one.
    texts, counts = (lambda n: text_of(tokens[:n])), range(len(tokens) + 1)
    first = bisect_left(counts, start + 1, key=lambda n: len(texts(n)))
    last = bisect_left(counts, True, key=lambda n: texts(n).startswith(text[:end]))
    return first - 1, last


def answer_likelihood(
    logps: torch.Tensor, span: tuple[int, int] | None, settings: CARESettings
) -> float:
    """Mean probability of the answer's tokens, from the log-probabilities [R] of all. 0
    without an answer: such a rollout stays in its group."""
    if span is None:
        return 0.0
    answer = logps[slice(*span)].double()
    arithmetic = settings.answer_mean == "arithmetic"
    return float(answer.exp().mean() if arithmetic else answer.mean().exp())


class ReferenceWeights(TrainerCallback):
    """A float32 copy of a trainer's trained weights, or of this process' part of them.
    As a callback of the training it follows them every so many steps: average <- decay
    x average + (1 - decay) x weights."""

    def __init__(self, trainer, decay: float, every: int):
        self.trainer, self.decay, self.every = trainer, decay, every

    def policy(self) -> dict[str, torch.Tensor]:
        """The trained weights as they are now."""
        return shards.own_parts(self.trainer.model, self.trainer.model_wrapped)

    @cached_property
    def average(self) -> dict[str, torch.Tensor]:
        """Made by the first rollouts: FSDP2 splits weights when the training begins."""
        return {name: own.float().clone() for name, own in self.policy().items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            for name, own in self.policy().items():
                self.average[name].lerp_(own.float(), 1 - self.decay)

    @contextmanager
    def in_place_of_policy(self) -> Iterator[None]:
        """Inside, the model has the reference's weights."""
        policy = {name: own.clone() for name, own in self.policy().items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(policy)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, own in self.policy().items():
            own.copy_(values[name])


class VideoCARETrainer(grpo.VideoGRPOTrainer):
    """GRPO whose last reward is the consistency bonus."""

    label, added = "care", ("consistency_bonus",)
    logged = grpo.LOGGED | {"reference_likelihood": "reference_likelihood"}

    def __init__(self, task: Task):
        if "accuracy" not in task.rewards:
            raise ValueError(
                f"the rewards {list(task.rewards)} lack accuracy, which GRPO-CARE's "
                "bonus is built on"
            )
        super().__init__(task)
        settings, self.reference = self.settings, None
        if settings.reference != "policy":
            how = (settings.reference_decay, settings.reference_every)
            self.reference = ReferenceWeights(self, *how)
        if settings.reference == "ema":
            self.add_callback(self.reference)

    def add_rewards(self, groups: Sequence[grpo.Group]) -> None:
        """The bonus."""
        both = [own.prompt for own in groups], [own.tokens for own in groups]
        likelihoods = self.reference_likelihoods(*both)
        for group, own in zip(groups, likelihoods, strict=True):
            accuracies = [row["rewards"]["accuracy"] for row in group.rows]
            bonus = consistency_bonus(accuracies, own, self.settings)
            for row, likelihood, more in zip(group.rows, own, bonus, strict=True):
                row["reference_likelihood"] = likelihood
                row["rewards"]["consistency_bonus"] = more

    @torch.no_grad()
    def reference_likelihoods(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """p of every completion under the reference; 0 where there is no answer."""
        device = self.model.device
        asked = self.reference.in_place_of_policy() if self.reference else nullcontext()
        tensors = [[torch.tensor(own, device=device) for own in g] for g in groups]
        with asked, self.accelerator.autocast():
            logps, _ = self._completion_scores(self.model, prompts, tensors)
        text_of = partial(self._tokenizer.decode, skip_special_tokens=True)
        found, spans = iter(logps), partial(answer_span, text_of=text_of)
        return [
            [answer_likelihood(next(found), spans(own), self.settings) for own in group]
            for group in groups
        ]

    def _calculate_rewards(self, *given):
        rows = [row for group in self.groups for row in group.rows]
        likelihoods = [row["reference_likelihood"] for row in rows]
        self._log_metric("reference_likelihood", sum(likelihoods) / len(rows))
        return super()._calculate_rewards(*given)

    def extra_state(self) -> dict[str, torch.Tensor]:
        """The reference."""
        return {} if self.reference is None else self.reference.average
