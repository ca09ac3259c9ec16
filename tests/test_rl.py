"""The line that says which RL is trained, and settings that mean nothing."""

import math
import pickle
from dataclasses import MISSING, fields, replace

import pytest

from lib.train import care, grpo, ppo, rl
from tests.trainings import CARE, GRPO, PPO, SFT

SHARED = {
    own.name: getattr(GRPO, own.name)
    for own in fields(GRPO)
    if own.default is MISSING and own.name not in ("steps", "save_every")
}


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ("grpo", grpo.GRPOSettings, {"steps": 10, "save_every": 5}),
        ("ppo", ppo.PPOSettings, {"steps": 40, "save_every": 20, "loss_type": "dapo"}),
        ("care", care.CARESettings, {"steps": 10, "bonus": "sparse"}),
        ("grpo kl_clamp=11", grpo.GRPOSettings, {"kl_clamp": 11.0}),
        ("grpo mask_truncated=true", grpo.GRPOSettings, {"mask_truncated": True}),
        ("grpo updates_per_batch=2", grpo.GRPOSettings, {"steps": 20}),
        ("ppo updates_per_batch=1 gae_lambda=1", ppo.PPOSettings, {"gae_lambda": 1.0}),
        ("care bonus=dense margin=0", care.CARESettings, {"margin": 0.0}),
    ],
)
def test_a_line_makes_the_settings_of_its_method(line, kind, expected):
    (method,) = rl.read(line)
    settings = method.settings(batches=10, save_every=5, **SHARED)
    assert type(settings) is kind and method.name == line.split()[0]
    for name, value in expected.items():
        found = getattr(settings, name)
        assert found == value and type(found) is type(value)
    assert settings.lr == GRPO.lr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "'' is no method; begin with one of grpo, ppo, care"),
        ("dpo", "'dpo' is no method"),
        ("grpo bonus=dense", "'bonus=dense' is no option of grpo"),
        ("care bonnus=dense", "did you mean bonus=?"),
        ("grpo epsilon", "'epsilon' is no option of grpo; did you mean epsilon=?"),
        ("grpo epsilon=0.1 epsilon=0.2", "epsilon is given twice"),
        ("grpo epsilon=low", "epsilon must be of type float, found 'low'"),
        ("grpo fp32_logits=yes", "fp32_logits must be true or false, found 'yes'"),
        ("grpo steps=3", "'steps=3' is no option of grpo"),
        ("grpo |", "'' is no method"),
        ("grpo | grpo epsilon=0.1", "two adapters would both be called grpo"),
    ],
)
def test_a_wrong_word_is_named(line, told):
    with pytest.raises(ValueError) as caught:
        rl.read(line)
    assert told in str(caught.value)


def test_what_has_a_parameter_of_its_own_is_not_given_twice():
    (method,) = rl.read("grpo kl_beta=0.1")
    with pytest.raises(ValueError, match="kl_beta has a parameter of its own"):
        method.settings(batches=1, save_every=1, **SHARED)


@pytest.mark.parametrize(
    ("settings", "changes", "told"),
    [
        (GRPO, {"temperature": 0.0}, "temperature = 0.0: it must be above 0"),
        (GRPO, {"group_size": 1}, "group_size = 1: an advantage compares at least 2"),
        (GRPO, {"updates_per_batch": 0}, "updates_per_batch = 0: at least 1"),
        (GRPO, {"save_every": 0}, "save_every = 0: at least 1"),
        (GRPO, {"extra_draws": -1}, "extra_draws = -1: at least 0"),
        (GRPO, {"kl_clamp": -11.0}, "kl_clamp = -11.0: at least 0"),
        (GRPO, {"lora_rank": -1}, "lora_rank = -1: at least 0"),
        (GRPO, {"updates_per_batch": 2, "steps": 5}, "steps = 5 is no multiple of"),
        (GRPO, {"updates_per_batch": 2, "save_every": 5}, "save_every = 5 is no"),
        (GRPO, {"loss_type": "drgrpo"}, "loss_type = 'drgrpo': it must be one of"),
        (PPO, {"importance_sampling": "seq"}, "importance_sampling = 'seq': it must"),
        (CARE, {"scale_rewards": "std"}, "scale_rewards = 'std': it must be one of"),
        (GRPO, {"schedule": "warmup_stable_decay"}, "schedule = 'warmup_stable_decay'"),
        (PPO, {"lora_rank": 0}, "lora_rank = 0: PPO's critic .* give a rank above 0"),
        (PPO, {"loss_type": "grpo"}, "loss_type = 'grpo'"),
        (PPO, {"extra_draws": 1}, "extra_draws"),
        (PPO, {"group_size": 1, "prompts_per_step": 1}, "at least 2 rollouts"),
        (PPO, {"group_size": 0}, "group_size = 0"),
        (CARE, {"reference": "slow"}, "reference = 'slow': it must be one of"),
        (CARE, {"answer_mean": "median"}, "answer_mean = 'median'"),
        (CARE, {"bonus": "both"}, "bonus = 'both'"),
        (CARE, {"extra_draws": 1}, "extra_draws = 0"),
        (SFT, {"batch_size": 0}, "batch_size = 0: at least 1"),
        (SFT, {"loss": ""}, "loss = '': it must be one of"),
        *((own, {"steps": -3}, "steps = -3: at least 1") for own in (SFT, GRPO, PPO)),
        *((own, {"lr": math.inf}, "lr = inf: .* finite") for own in (SFT, GRPO, CARE)),
        *((own, {"lora_alpha": math.nan}, "lora_alpha = nan: ") for own in (SFT, PPO)),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, changes, told):
    with pytest.raises(ValueError, match=told):
        replace(settings, **changes)


def test_several_methods_stand_between_bars():
    first, second = rl.read("grpo kl_clamp=11 | care bonus=dense")
    assert (first.name, first.options) == ("grpo", {"kl_clamp": 11.0})
    assert (second.name, second.options) == ("care", {"bonus": "dense"})


def test_a_method_trains_by_its_own_trainer_in_other_processes_too(monkeypatch):
    monkeypatch.setattr(rl.grpo, "train", lambda *given: given)
    (method,) = rl.read("care bonus=dense")
    train = pickle.loads(pickle.dumps(method.train))
    assert (train.__name__, train.__self__) == ("train", method)
    assert train("task") == ("task", care.VideoCARETrainer)
    monkeypatch.setitem(rl.METHODS, "care", (None, list))
    assert method.trainer("task") == list("task")
