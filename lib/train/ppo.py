"""PPO with a learned critic on the rollouts of lib/train/grpo.py.

Proximal policy optimization (arXiv 1707.06347) as it is used on language models: the
state is the prompt with its video and the tokens so far, an action is the next token,
and the reward comes with the last one. In place of GRPO's group a critic says what to
expect: a linear head on the policy's own last hidden state, trained together with the
policy, reads V at every position of the packed row of lib/model/scoring.py. With T
tokens, reward r at the last one and V = 0 behind it (cut off or not),

    delta_t = r_t + discount * V_(t+1) - V_t
    A_t     = delta_t + discount * gae_lambda * A_(t+1)      generalized advantage
    R_t     = A_t + V_t                                      (GAE, arXiv 1506.02438)

A batch of rollouts is used for several optimizer steps. With ratio = policy / policy
that drew the rollouts, and means over all tokens of the batch,

    L = - mean min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A)
        + value_weight * mean 0.5 * max((V - R)^2, (clip(V, V_old -+ value_clip) - R)^2)
        + kl_beta * KL to the base.

The first line is the loss of TRL 1.16's GRPOTrainer, given advantages of each token;
TRL removed its own PPOTrainer. The clipped value loss is that of OpenAI's baselines
(ppo2), not of the paper (arXiv 2005.12729, section 3). Advantages are whitened.

Example: T = 2, r = 1, V = 0.5, 0.5, discount 1, lambda 0.5. delta = 0, 0.5, so
A = 0.25, 0.5 and R = 0.75, 1.

The rows of rollouts_ppo.jsonl hold the mean advantage of a rollout's tokens and
`value`, V before the first of them. Steps that use the rollouts of the step before have
no rewards in the log. The adapter is the policy; the critic is used up in training."""

import types
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib.model import prefix, shards
from lib.train import grpo
from lib.train.task import GRPOSettings, Task

HEAD = "value_head"  # name of the critic's layer in the model


@dataclass(frozen=True)
class PPOSettings(GRPOSettings):
    """What decides the adapter: the fields of GRPO, and the critic's; in brackets the
    defaults that TRL's PPOTrainer had. `updates_per_batch` are PPO's epochs,
    `group_size` may be 1, and scale_rewards has no influence."""

    loss_type: str = "dapo"  # mean over all tokens of the batch
    updates_per_batch: int = 4  # optimizer steps on the same rollouts (4)
    discount: float = 1.0  # of the reward, for each token before the last (1)
    gae_lambda: float = 0.95  # 0: one step ahead; 1: the whole return (0.95)
    value_weight: float = 0.1  # of the value loss (0.1)
    value_clip: float = 0.2  # how far V may move from V_old; 0: anywhere (0.2)

    smallest_group = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts_per_step * self.group_size < 2:
            raise ValueError(
                "prompts_per_step x group_size is 1: advantages of at least 2 rollouts "
                "are whitened together"
            )
        if not self.lora_rank:
            why = "PPO's critic stands beside an adapter; give a rank above 0"
            raise ValueError(f"lora_rank = 0: {why}")
        if self.loss_type != "dapo":
            kind = self.loss_type
            raise ValueError(f"loss_type = {kind!r}: PPO's is 'dapo', over tokens")
        if self.extra_draws:
            raise ValueError("extra_draws replaces dead groups; PPO compares no groups")


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask, discount, gae_lambda
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns [B, T] of `rewards` and `values` [B, T]; both are 0 where
    `mask` [B, T], which is 1 on the tokens at the left of a row, is 0."""
    following = torch.nn.functional.pad(values * mask, (0, 1))[:, 1:]
    delta = (rewards + discount * following - values) * mask
    advantages = torch.zeros_like(delta)
    later = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        later = delta[:, t] + discount * gae_lambda * later * mask[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * mask


def value_losses(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the squared error of each value, or of the clipped one if that is larger."""
    errors = (values - returns) ** 2
    if clip:
        clipped = old + (values - old).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - returns) ** 2)
    return 0.5 * errors


def add_critic(model) -> None:
    """Add a value head to the model, and to what scoring.add_scoring returns V [N],
    what is expected before a label is drawn; in float32, also under autocast."""
    base = prefix.base_of(model)
    size = base.config.get_text_config().hidden_size
    head = torch.nn.Linear(size, 1, device=base.device, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    setattr(base, HEAD, head)
    plain = base.forward

    def forward(self, *args, completion_labels=None, **kwargs):
        if completion_labels is None:
            return plain(*args, **kwargs)
        seen, inner = [], self.model
        hook = inner.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            scores = plain(*args, completion_labels=completion_labels, **kwargs)
        finally:
            hook.remove()
        hidden = seen[0].last_hidden_state[completion_labels != -100]
        with torch.autocast(hidden.device.type, enabled=False):
            values = getattr(self, HEAD)(hidden.float())[:, 0]
        return *scores, values

    base.forward = types.MethodType(forward, base)


class VideoPPOTrainer(grpo.VideoGRPOTrainer):
    """Rollouts, policy loss and records of GRPO, with the advantages of a critic."""

    label = "ppo"
    logged = grpo.LOGGED | {"value": "value", "value_loss": "value_loss"}

    def __init__(self, task: Task):
        super().__init__(task)
        add_critic(self.model)
        self.values = self.old_values = None  # V now, and when the rollouts were drawn

    def _generate_and_score_completions(self, inputs):
        self.old_values = None
        return super()._generate_and_score_completions(inputs)

    def _completion_scores(self, model, prompts, groups):
        *scores, self.values = super()._completion_scores(model, prompts, groups)
        return scores

    def _get_per_token_logps_and_entropies(self, model, ids, mask, width, **more):
        given = (model, ids, mask, width)
        found = super()._get_per_token_logps_and_entropies(*given, **more)
        self.values = grpo.padded(self.values, width)
        if self.old_values is None:
            self.old_values = self.values.detach()
        return found

    def compared(self, groups: Sequence[Sequence[float]]) -> list[list]:
        """A critic judges each token: a group decides nothing."""
        return [[None] * len(own) for own in groups]

    def _with_advantages(self, output: dict) -> dict:
        """TRL's output with advantages of each token, returns and values [B, T]."""
        mask = output["completion_mask"]
        values = self._values_when_drawn(output) * mask
        totals = [total for group in self.groups for total in group.totals]
        last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))
        rewards = torch.tensor(totals, device=mask.device)[:, None] * last
        how = (self.settings.discount, self.settings.gae_lambda)
        advantages, returns = generalized_advantages(rewards, values, mask, *how)
        advantages = self._whitened(advantages, mask)
        means = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        rows = [row for group in self.groups for row in group.rows]
        columns = rows, means.tolist(), values[:, 0].tolist()
        for row, mean, first in zip(*columns, strict=True):
            row |= {"advantage": mean, "value": first}
        total, count = self._summed((values * mask).sum(), mask.sum())
        self._metrics["train"]["value"].append((total / count).item())
        more = {"advantages": advantages, "returns": returns, "old_values": values}
        return {**output, **more}

    def _values_when_drawn(self, output: dict) -> torch.Tensor:
        """V of the policy that drew the rollouts: with several updates a batch TRL has
        scored them by it last, after the base; with one it had no reason."""
        if "old_per_token_logps" not in output:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
            width = output["completion_ids"].shape[1]
            self.old_values = None
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(self.model, ids, mask, width)
        return self.old_values

    def _whitened(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean 0 and variance 1 over the tokens of all devices."""
        total, count = self._summed((values * mask).sum(), mask.sum())
        centred = (values - total / count) * mask
        squares, _ = self._summed((centred**2).sum(), mask.sum())
        return centred * torch.rsqrt(squares / count + 1e-8)

    def _summed(self, *numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stacked = torch.stack([number.float() for number in numbers])
        total, count = self.accelerator.reduce(stacked, reduction="sum")
        return total, count.clamp(min=1.0)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        own = grpo.unfold(inputs)
        old, returns = own["old_values"], own["returns"]
        losses = value_losses(self.values, old, returns, self.settings.value_clip)
        # As TRL's mean over tokens: all tokens of the batch, over the devices' mean.
        tokens = own["num_items_in_batch"].clamp(min=1.0)
        tokens = tokens / self.accelerator.num_processes
        value_loss = (losses * own["completion_mask"]).sum() / tokens
        logged = value_loss.detach() * self.current_gradient_accumulation_steps
        logged = self.accelerator.gather(logged).mean().item()
        self._metrics["train"]["value_loss"].append(logged)
        return loss + self.settings.value_weight * value_loss

    def extra_state(self) -> dict[str, torch.Tensor]:
        """The critic."""
        own = shards.own_parts(self.model, self.model_wrapped)
        return {name: part for name, part in own.items() if HEAD in name}
