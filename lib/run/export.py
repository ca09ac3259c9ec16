"""An adapter merged into its base, as an ordinary checkpoint with a model card.

    python -m lib.run export outputs/mini/adapters/grpo outputs/mini/merged

The base is loaded in bfloat16 (float16 on a card that lacks it), never quantized,
whatever the adapter was trained on, so after training on NF4 weights (QLoRA, arXiv
2305.14314) answers can differ in single cases. What comes out loads with
`AutoModelForImageTextToText.from_pretrained`.

The model card README.md (https://huggingface.co/docs/hub/model-cards) says only what
the run's records say; it is put into the export and into the adapter's folder."""

import os
import shutil
from pathlib import Path

from lib import chain, paths, records
from lib.analysis import stats
from lib.doors import Door
from lib.evaluate import tables
from lib.methods import LABELS, called
from lib.model import models
from lib.train import rl

# isort: split
import peft
from huggingface_hub import ModelCard, ModelCardData

LICENCES = {  # part of the command that made the data: what its licence asks for
    "seed_bench": "Trained on SEED-Bench-R1, whose videos are EPIC-KITCHENS-100 "
    "(CC BY-NC 4.0, no commercial use) and Ego4D (its own signed licence).",
    "longvideobench": "Evaluated on LongVideoBench (CC BY-NC-SA 4.0).",
    "lib.mini": "Trained on MiniPlan, generated and free of third-party media.",
}
CARD = paths.ROOT / "lib/train/card.md"  # a template of jinja


def export(adapter: str | Path, folder: str | Path) -> Path:
    """Merge `adapter` (outputs/<run>/adapters/<method>) into its base, in `folder`.
    FileExistsError for a folder that is not empty, FileNotFoundError for a missing
    adapter or manifest, ValueError for another base than the adapter's."""
    adapter, folder = paths.resolve(adapter), paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: give a folder that is not there")
    base, card = trained_on(adapter)["model"], model_card(adapter)
    records.write_text(adapter / "README.md", card)
    return merge(base, adapter, folder, models.half(), card)


def merge(base, adapter: Path, folder: Path, dtype: str, card: str = "") -> Path:
    """A whole checkpoint in `folder`, by one rename; one that is there stays."""
    if folder.exists() and any(folder.iterdir()):
        return folder
    model = models.load_trained(base, adapter, dtype)
    if isinstance(model, peft.PeftModel):
        model = model.merge_and_unload()  # adds in float32, the adapter's type
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with models.written(folder):
        model.save_pretrained(unfinished)
        models.load_processor(base).save_pretrained(unfinished)
    if card:
        records.write_text(unfinished / "README.md", card)
    os.replace(unfinished, folder)
    return folder


def start(run: Path, label: str, base, dtype: str):
    """What GRPO starts from: `base`, or with a `label` the adapter of the run that is
    called so, merged beside it under a name that tells its content."""
    if not label:
        return base
    adapter = paths.require(run / "adapters" / label, "train it first (02_sft)")
    # A model card, which `export` leaves there, changes nothing.
    files = (path for path in adapter.iterdir() if path.name != "README.md")
    content = records.settings_hash({path.name: records.sha256(path) for path in files})
    name = f"{label}-merged-{content[:8]}"
    return merge(base, adapter, adapter.with_name(name), dtype)


def trained_on(adapter: Path) -> dict:
    """What the run's manifest says of the training that left this adapter."""
    if adapter.name not in {*LABELS, *rl.METHODS}:
        raise ValueError(f"{adapter}: expected .../adapters/sft or .../adapters/grpo")
    stage = "02_sft" if adapter.name.startswith(("sft", "rft")) else "03_grpo"
    paths.require(adapter, "train it first (02_sft or 03_grpo)")
    file = adapter.parents[1] / "manifest.json"
    manifest = records.read_json(paths.require(file, f"run {stage} to its end"))
    if stage not in manifest:
        raise ValueError(f"{file} has no stage {stage}: run that notebook to its end")
    made = manifest.get("01_data", {}).get("data_command", "not recorded")
    return {"data_command": made, **manifest[stage]}


def model_card(adapter: Path) -> str:
    """Base, data, method, settings, results, origin, licences and limits."""
    run, facts = adapter.parents[1], trained_on(adapter)
    chain.verify(run)
    (record,) = adapter.glob("*_settings.json")
    base, data, label = facts["model"], facts["data_command"], adapter.name
    method = LABELS.get(label, f"{label} (`lib/train/rl.py`)")
    if before := models.beside(adapter):  # grpo_from, merged by `start`
        method = f"{LABELS[before.name.partition('-merged-')[0]]}, then {method}"
    front = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if not paths.resolve(base).is_dir():  # a local one has no name on the hub
        front["base_model"] = base
    licences = [text for name, text in LICENCES.items() if name in data.lower()]
    card = ModelCard.from_template(
        ModelCardData(**front),
        template_path=str(CARD),
        base=base,
        label=label,
        method=method,
        run=run.name,
        made=facts["environment"],
        data=data,
        asked=facts.get("questions", facts.get("demonstrations")),
        measured=measured(run, label),
        settings=records.read_json(record)["settings"],
        licences=licences or ["The licence of the data is not recorded."],
    )
    return str(card)


def measured(run: Path, label: str) -> list[list]:
    """Set, n, accuracy and the base's of every set; nothing before 04_eval asked it."""
    metrics = records.read_json(run / "metrics.json", {})
    base = metrics.get("base", {})
    return [
        [
            *(called({"set": name, **own}), own["n"], percent(own)),
            percent(base[name]) if name in base else "",
        ]
        for name, own in metrics.get(label, {}).items()
    ]


def percent(found: dict) -> str:
    """46.0 [44.0, 48.0]"""
    share, n = found["accuracy"], found["n"]
    return tables.span(share, *stats.wilson_interval(round(share * n), n))


def main(arguments: list[str]) -> None:
    """The command line; raises as `export`."""
    parser = Door("python -m lib.run export", __doc__)
    parser.add_argument("adapter", help="such as outputs/mini/adapters/grpo")
    parser.add_argument("folder", help="to be made; must not hold anything")
    options = parser.parse_args(arguments)
    print(f"exported to {export(options.adapter, options.folder)}")
