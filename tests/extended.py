"""What test_extend.py runs in an extended copy of the kit; `lib` is that copy's.

    python extended.py REWARD

trains on the films with accuracy alone and with REWARD, by GRPO and by the variant,
then merges what SFT left, and trains and evaluates from there. Everything is kept in
outputs/ of the copy."""

import sys
from types import SimpleNamespace

from lib import chain, paths, records
from lib.data import questions
from lib.data.video import Sampling
from lib.evaluate import evaluate
from lib.model import prefix
from lib.run import export, params
from lib.train import grpo, rl, sft
from lib.train.reward_stages import read_rewards

SAMPLING = Sampling(max_frames=8, height=56, width=112)
SHARED = {
    **{"batches": 1, "save_every": 1, "prompts_per_step": 2, "group_size": 6},
    **{"lr": 1e-3, "kl_beta": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    **{"max_completion_tokens": 40, "lora_rank": 4, "lora_alpha": 8.0, "seed": 0},
}
DATA = paths.resolve("outputs/data/films")
ANNOTATIONS = DATA / "annotations"


def train(rl_line, reward, name, model="lib/mini/base", watch=0):
    """One step of a method; returns the folder of its run."""
    (method,) = rl.read(rl_line)
    asked = questions.read_training(ANNOTATIONS / "training.jsonl", DATA)
    run, settings = paths.run_dir(name), method.settings(**SHARED)
    given = (model, asked, read_rewards(reward), settings, SAMPLING, run)
    method.train(grpo.Task(*given, watched=asked[:watch]))
    chain.close(run, "03_grpo", model=model, questions=len(asked))
    return run


def train_sft(name):
    path = ANNOTATIONS / "training_with_cot.jsonl"
    taught, run = questions.read_demonstrations(path, DATA), paths.run_dir(name)
    settings = sft.SFTSettings(
        **{"steps": 1, "batch_size": 2, "gradient_accumulation": 1, "lr": 1e-2},
        **{"lora_rank": 4, "lora_alpha": 8.0, "seed": 0, "save_every": 1},
        **{"max_tokens": 1024, "warmup_share": 0.0},
    )
    sft.train_sft(sft.Task("lib/mini/base", taught, settings, SAMPLING, run))
    facts = {"model": "lib/mini/base", "demonstrations": len(taught)}
    chain.close(run, "02_sft", **facts)


def evaluated(model, run):
    """Rows of the films' L1 by the model and by what GRPO made of it."""
    asked = questions.read_validation(ANNOTATIONS / "validation_L1.jsonl", DATA, "L1")
    how = evaluate.EvalSettings("think", 24, 4)
    for label, trained in {"base": None, "grpo": run / "adapters" / "grpo"}.items():
        given = (evaluate.evaluate_sets, {label: how}, {"L1": asked}, SAMPLING, run)
        evaluate.with_model(model, trained, "float32", False, *given)


def refusal():
    """What is said of a model of another family."""
    config = SimpleNamespace(model_type="llava")
    try:
        prefix.check_model(SimpleNamespace(config=config))
    except ValueError as error:
        return str(error)
    return ""


def main(reward, exported):
    train("grpo", "accuracy", "accuracy")
    train("grpo", reward, "both")
    train("psr", reward, "both", watch=1)
    train("psr wrong=1", reward, "whole")
    train_sft("mini")
    export.main(exported)
    export.main(["outputs/both/adapters/psr", "outputs/psr"])
    (own,) = params.load_params(paths.ROOT / "params" / "grpo_after_sft.yaml")
    model = own.values["model"]
    evaluated(model, train("grpo", "accuracy", own.name, model))
    told = {"model": model, "said": refusal(), "families": prefix.MODELS}
    records.write_json(paths.ROOT / "told.json", told)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
