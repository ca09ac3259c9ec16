"""Which RL is trained, and what of it differs from its defaults, in one line.

    "grpo"                                    SEED-Bench-R1's (arXiv 2503.24376)
    "grpo kl_clamp=11"                        its log-ratios clamped, as released
    "grpo loss_type=dr_grpo scale_rewards=none"        Dr.GRPO (arXiv 2503.20783)
    "grpo loss_type=dapo epsilon_high=0.28 extra_draws=2 updates_per_batch=2"
                                                       DAPO (arXiv 2503.14476)
    "grpo importance_sampling=sequence updates_per_batch=2"   GSPO (2507.18071)
    "ppo gae_lambda=1"                        PPO with a critic (arXiv 1707.06347)
    "care reference=frozen"                   GRPO-CARE (arXiv 2506.16141)

The options are the fields of the method's settings (GRPOSettings, PPOSettings,
CARESettings say what each does) that are no parameters of the notebook. Several
methods, each from the base, are divided by a bar: "grpo | ppo | care".

    (method,) = read("care bonus=dense")
    settings = method.settings(batches=100, save_every=25, lr=1e-3, ...)
    method.train(Task(model, questions, rewards, settings, sampling, run))

Extend it: a further method is settings, a trainer and a name. SFT never sees a wrong
answer; what do they teach? This one learns from what did better than its group, and
from the rest by a weight of its own (positive sample reinforcement, arXiv 2506.01347,
on GRPO's advantages). At the end of this file:

    @dataclass(frozen=True)
    class PSRSettings(grpo.GRPOSettings):
        wrong: float = 0.0  # weight of advantages below 0; with 1 it is GRPO


    class VideoPSRTrainer(grpo.VideoGRPOTrainer):
        label = "psr"

        def shaped(self, advantages):
            return advantages.where(advantages > 0, self.settings.wrong * advantages)


    METHODS["psr"] = (PSRSettings, VideoPSRTrainer)

`-p rl "grpo | psr"` trains both, `-p rl "psr wrong=0.5"` lies between them, and 04_eval
asks all with `-p asked_models "base sft grpo psr"`. lib/train/ppo.py and
lib/train/care.py are larger variants."""

import difflib
import typing
from dataclasses import dataclass
from pathlib import Path

from lib.train import care, grpo, ppo

METHODS: dict[str, tuple[type[grpo.GRPOSettings], type[grpo.VideoGRPOTrainer]]] = {
    "grpo": (grpo.GRPOSettings, grpo.VideoGRPOTrainer),
    "ppo": (ppo.PPOSettings, ppo.VideoPPOTrainer),
    "care": (care.CARESettings, care.VideoCARETrainer),
}
WORDS = {"true": True, "false": False}
Value = bool | int | float | str


@dataclass(frozen=True)
class Method:
    """A method's name and the options of its line."""

    name: str
    options: dict[str, Value]

    def option(self, name: str) -> Value:
        """What its line says of one of its settings, or the default."""
        fields = METHODS[self.name][0].__dataclass_fields__
        return self.options.get(name, fields[name].default)

    def trainer(self, task: grpo.Task) -> grpo.VideoGRPOTrainer:
        return METHODS[self.name][1](task)

    def train(self, task: grpo.Task) -> Path:
        """Train run/adapters/<name>; errors as of `grpo.train`."""
        return grpo.train(task, METHODS[self.name][1])

    def settings(self, batches: int, save_every: int, **shared) -> grpo.GRPOSettings:
        """Settings for so many batches of rollouts, saved every so many of them."""
        for name in sorted(shared.keys() & self.options):
            raise ValueError(f"rl: {name} has a parameter of its own; give it there")
        updates = self.option("updates_per_batch")
        steps = {"steps": batches * updates, "save_every": save_every * updates}
        return METHODS[self.name][0](**steps, **shared, **self.options)


def read(line: str) -> list[Method]:
    """The methods of a line; ValueError naming the word that is wrong."""
    methods = [_method(part) for part in line.split("|")]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"rl: two adapters would both be called {name}")
    return methods


def _method(part: str) -> Method:
    name, *words = part.split() or [""]
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"rl: {name!r} is no method; begin with one of {known}")
    kinds = typing.get_type_hints(METHODS[name][0])
    offered = [own for own in kinds if own not in ("steps", "save_every")]
    options: dict[str, Value] = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals or option not in offered:
            close = difflib.get_close_matches(option, offered, n=1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            raise ValueError(f"rl: {word!r} is no option of {name}{hint}")
        if option in options:
            raise ValueError(f"rl: {option} is given twice")
        kind = kinds[option]
        try:
            options[option] = WORDS[text] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
            told = f"rl: {option} must be {wanted}, found {text!r}"
            raise ValueError(told) from error
    return Method(name, options)
