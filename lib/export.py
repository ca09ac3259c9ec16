"""An adapter merged into its base, as an ordinary checkpoint with a model card.

    python -m lib.models export outputs/mini/adapters/grpo outputs/mini/merged

The base is loaded in bfloat16, never quantized, whatever the adapter was trained on;
each matrix and its adapter are added in float32 and the sum is stored in bfloat16. What
comes out loads with `AutoModelForImageTextToText.from_pretrained`, processor and
tokenizer included. An adapter trained on NF4 weights (QLoRA, arXiv 2305.14314) has seen
rounded ones; here it is added to the exact ones, so answers can differ in single cases.

The model card README.md (https://huggingface.co/docs/hub/model-cards) says only what
the run's records say; it is put into the export and into the adapter's folder.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch

from lib import care, chain, grpo, models, paths, ppo, records, rl, sft, stats

# isort: split
import peft
from peft.tuners.lora import LoraLayer

METHODS = {
    "sft": ("supervised fine-tuning on demonstrations", "02_sft", sft.RECORD),
    "sft-answers": ("supervised fine-tuning on answers alone", "02_sft", sft.RECORD),
    "grpo": ("GRPO with a reward for the right answer", "03_grpo", grpo.RECORD),
    "ppo": ("PPO with a learned critic", "03_grpo", ppo.RECORD),
    "care": ("GRPO-CARE with its consistency bonus", "03_grpo", care.RECORD),
}
LICENCES = {  # part of the command that made the data: what its licence asks for
    "seed_bench": (
        "trained on SEED-Bench-R1, whose videos are EPIC-KITCHENS-100 (CC BY-NC 4.0, "
        "no commercial use) and Ego4D (its own signed licence)"
    ),
    "longvideobench": "evaluated on LongVideoBench (CC BY-NC-SA 4.0)",
    "lib.mini": (
        "trained on MiniPlan, which is generated and free of third-party media"
    ),
}


def export(adapter: str | Path, folder: str | Path) -> Path:
    """Merge `adapter` (outputs/<run>/adapters/<method>) into its base, in `folder`.

    The folder appears by one rename, whole or not at all. Raises FileExistsError for
    one that is not empty, FileNotFoundError for a missing adapter or manifest, and
    ValueError for a base that is not the one the adapter was trained on.
    """
    adapter, folder = paths.resolve(adapter), paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: give a folder that is not there")
    base = manifest_of(adapter)["model"]
    card = model_card(adapter)
    model = models.load_trained(base, adapter, "bfloat16")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    processor = models.load_processor(base)
    with records.written(folder):
        merged(model).save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    records.write_text(unfinished / "README.md", card)
    records.write_text(adapter / "README.md", card)
    os.replace(unfinished, folder)
    return folder


@torch.no_grad()
def merged(model):
    """The base model with its adapters added; one without adapters as it is."""
    if not isinstance(model, peft.PeftModel):
        return model
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            (name,) = layer.active_adapters
            weight.copy_(weight.float() + layer.get_delta_weight(name).float())
    return model.unload()


def method_of(adapter: Path) -> tuple[str, str, str]:
    """What trained an adapter, in which notebook, and the file of its settings."""
    name = adapter.name
    if name in METHODS:
        return METHODS[name]
    if name in rl.METHODS:
        return f"the method `{name}` of `lib/rl.py`", "03_grpo", f"{name}_settings.json"
    raise ValueError(f"{adapter}: expected .../adapters/sft or .../adapters/grpo")


def manifest_of(adapter: Path) -> dict:
    """What the run recorded of the training that left this adapter."""
    stage = method_of(adapter)[1]
    paths.require(adapter, "train it first (02_sft or 03_grpo)")
    file = adapter.parents[1] / "manifest.json"
    manifest = records.read_json(paths.require(file, f"run {stage} to its end"))
    if stage not in manifest:
        raise ValueError(f"{file} has no stage {stage}: run that notebook to its end")
    return manifest[stage]


def model_card(adapter: Path) -> str:
    """Base, data, method, settings, results, origin, licences and limits."""
    run = adapter.parents[1]
    facts = manifest_of(adapter)
    chain.verify(run)
    method, _, record = method_of(adapter)
    manifest = records.read_json(run / "manifest.json")
    settings = records.read_json(adapter / record)["settings"]
    data = manifest.get("01_data", {}).get("data_command", "not recorded")
    made = facts["environment"]
    asked = facts.get("questions", facts.get("demonstrations"))
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(
        [
            *front_matter(facts["model"]),
            f"# {Path(facts['model']).name} after {adapter.name.upper()}",
            "",
            f"`{facts['model']}` after {method}: a reproduction of SEED-Bench-R1 "
            "([arXiv 2503.24376](https://arxiv.org/abs/2503.24376)): "
            "multiple-choice questions about the next action in a video.",
            "",
            f"* Run `{run.name}`, commit `{made['git_commit']}`"
            + (", with uncommitted changes" if made["git_dirty"] else ""),
            f"* Data: `{data}`; {asked} training items",
            "* Trained: "
            + ("all weights" if not settings["lora_rank"] else lora_words(settings)),
            "* Needs transformers 5 or later: version 4 reads these files wrongly.",
            "",
            "## Results",
            "",
            *results(run, adapter.name),
            "",
            "## Settings",
            "",
            "| setting | value |",
            "| --- | --- |",
            *rows,
            "",
            "## Licences and limits",
            "",
            f"* A derivative of `{facts['model']}`: that model's licence applies.",
            *[f"* {text[0].upper()}{text[1:]}." for text in licences(data)],
            "* Answers one kind of question, in English, from at most "
            f"{settings['sampling']['max_frames']} frames. A stated reasoning need not "
            "be what led to the answer. Not for decisions that matter to people.",
            "",
        ]
    )


def front_matter(base: str) -> list[str]:
    """The hub's metadata; a local base has no name there."""
    local = paths.resolve(base).is_dir()
    named = [] if local else [f"base_model: {base}"]
    lines = ["library_name: transformers", "pipeline_tag: image-text-to-text", *named]
    return ["---", *lines, "---", ""]


def lora_words(settings: dict) -> str:
    frozen = "frozen in 4 bits (NF4)" if settings["quantize"] else "frozen"
    return (
        f"a LoRA adapter of rank {settings['lora_rank']} on the language model's "
        f"projections; the language model {frozen}, the vision tower and the output "
        "head frozen and never quantized"
    )


def results(run: Path, label: str) -> list[str]:
    """A row a question set, with the base beside it; a sentence where none is there."""
    file = run / "metrics.json"
    if not file.exists():
        return ["Not evaluated yet: 04_eval has not run."]
    metrics = records.read_json(file)
    if label not in metrics:
        return [f"Not evaluated yet: metrics.json has no {label}."]
    lines = ["| set | n | accuracy, % [95 % interval] | base |"]
    lines.append("| --- | --- | --- | --- |")
    for name, found in metrics[label].items():
        base = metrics.get("base", {}).get(name)
        beside = percent(base) if base else ""
        lines.append(f"| {name} | {found['n']} | {percent(found)} | {beside} |")
    note = (
        "First-letter rule, greedy decoding, one training seed; the intervals (Wilson) "
        "are over questions and carry no seed. Measured with the adapter on the base "
        "as the run loaded it; a merged bfloat16 file was not evaluated by itself."
    )
    return [*lines, "", note]


def percent(found: dict) -> str:
    """46.0 [44.0, 48.0]"""
    right = round(found["accuracy"] * found["n"])
    low, high = stats.wilson_interval(right, found["n"])
    return f"{100 * found['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def licences(data: str) -> list[str]:
    """What the data that was used asks for, as far as its command names it."""
    found = [text for name, text in LICENCES.items() if name in data.lower()]
    return found or [f"the licence of the data is not recorded (`{data}`)"]


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 2 when nothing was written."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.models export",
        description="Merge an adapter into its base: a bf16 checkpoint and its card.",
    )
    parser.add_argument("adapter", help="such as outputs/mini/adapters/grpo")
    parser.add_argument("folder", help="to be made; must not hold anything")
    options = parser.parse_args(arguments)
    try:
        print(f"exported to {export(options.adapter, options.folder)}")
    except (OSError, ValueError) as error:
        print(f"nothing was exported: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
