"""What can be wrong with what the kit is given, and what it then says: a list.

Each line of a table is one kind of broken input: what is broken and how, what the error
names (file, line, field), and what it says to do. Others are where their readers are
tested: annotation files in test_questions.py, labels in test_epic.py, clips and stills
in test_video.py, archives in test_seed_bench.py, parameters in test_params.py, rows and
settings of other runs in test_records.py, test_resume.py and test_sft.py."""

import hashlib
import shutil

import numpy as np
import pytest
from full_disk import full_disk

from lib import chain
from lib import records as run_records
from lib.data import download, frame_store
from lib.data.download import DownloadError, HubFile
from lib.data.video import Sampling
from lib.model import models
from lib.run.params import ParamsFaults, load_params
from lib.train import checkpoints

# isort: split
from peft import get_peft_model
from safetensors.torch import load_file, save_file

OTHER_BASE = "lib/mini/base"


def every(table):
    """The rows of a table: what makes it so, the error, and texts of its message; the
    error is a ValueError where the row does not say."""
    rows = []
    for name, (change, *words) in table.items():
        error = words.pop(0) if isinstance(words[0], type) else ValueError
        rows.append(pytest.param(change, error, words, id=name))
    return pytest.mark.parametrize(("change", "error", "words"), rows)


def check_raised(error, words, ask):
    """The very type counts: a parser's own errors are subclasses of ValueError."""
    with pytest.raises(error) as caught:
        ask()
    assert caught.type is error, repr(caught.value)
    assert [said for said in words if said not in str(caught.value)] == []


def parameters(folder):
    (folder / "run.yaml").write_bytes(b"run_name: a\n# \xe9\n")
    load_params(folder / "run.yaml")


def changed_download(folder):
    (folder / "a.bin").write_bytes(b"changed")
    file = HubFile("owner/set", "0" * 40, "a.bin", 9, hashlib.sha256(b"").hexdigest())
    download.fetch(file, folder / "a.bin")


def cut(name):
    def change(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 9 // 10])

    return change


def without(name):
    return lambda folder: (folder / name).unlink()


def writing(name, text):
    return lambda folder: (folder / name).write_text(text)


def tensors(name, change):
    """Rewrite a weights file after `change` of {name: tensor}."""

    def rewrite(folder):
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, {"format": "pt"})

    return rewrite


def narrower(found):
    found[DOWN] = found[DOWN][:1].clone()


def indexed(folder):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text("[]")


WEIGHTS, DOWN = "model.safetensors", "model.layers.0.mlp.down_proj.weight"
LAYER, MISSING = "layers.0.mlp.down_proj.weight", FileNotFoundError
WHOLE = "copy or download that folder again, whole"
AGAIN = "mend it, or delete it and make or download it again"
GIVE = "give a checkpoint folder (relative paths start at"
SEEING = "give a checkpoint of a model for pictures and text, such as qwen2_vl"
CHECKPOINTS = {
    "no folder": (shutil.rmtree, MISSING, "/model is missing", GIVE),
    "weights cut short": (cut(WEIGHTS), "/model/model.safetensors is damaged (", WHOLE),
    "no weights": (
        without(WEIGHTS),
        *(MISSING, "/model has no model.safetensors or model.safetensors.index.json"),
        WHOLE,
    ),
    "a tensor less": (
        tensors(WEIGHTS, lambda found: found.pop(DOWN)),
        *("/model lacks 1 of the model's tensors", LAYER, WHOLE),
    ),
    "weights of another size than config.json says": (
        tensors(WEIGHTS, narrower),
        *("/model has other shapes of 1", LAYER, "config.json", WHOLE),
    ),
    "a torn config.json": (
        writing("config.json", '{"model_type":\n'),
        *("/model/config.json, line 2: not JSON", AGAIN),
    ),
    "a model that cannot see": (
        writing("config.json", '{"model_type": "bert"}'),
        *("/model/config.json, model_type: found 'bert'", SEEING),
    ),
    "a config.json that is no object": (
        writing("config.json", "[]"),
        *("/model/config.json has no field model_type", WHOLE),
    ),
    "an index of weights that names none": (
        indexed,
        *("/model/model.safetensors.index.json has no field weight_map", WHOLE),
    ),
    "no tokenizer": (
        without("tokenizer.json"),
        *(MISSING, "/model has no tokenizer.json or vocab.json", WHOLE),
    ),
}


@every(CHECKPOINTS)
def test_checkpoints(change, error, words, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    change(folder)

    def load():
        models.load_processor(folder)
        models.load_model(folder)

    check_raised(error, words, load)


def lora(base, folder):
    model = get_peft_model(models.load_model(base), models.lora_config(4, 8))
    model.save_pretrained(folder)
    return folder


def of_another_base(folder):
    shutil.rmtree(folder)
    lora(OTHER_BASE, folder)


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory):
    return lora(tiny_checkpoint, tmp_path_factory.mktemp("lora") / "sft")


LORA, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def configured(**changes):
    def change(folder):
        found = run_records.read_json(folder / CONFIG)
        run_records.write_json(folder / CONFIG, found | changes)

    return change


FITTING = "load the base it was trained on, or train it again"
TRAIN, WROTE = "train it first (02_sft or 03_grpo)", "02_sft or 03_grpo wrote"
ADAPTERS = {
    "no folder": (shutil.rmtree, MISSING, "/sft is missing", TRAIN),
    "no config": (
        without(CONFIG),
        *("/sft holds neither adapter_config.json nor config.json", WROTE),
    ),
    "no weights": (without(LORA), MISSING, f"/sft has no {LORA}", WHOLE),
    "no type": (writing(CONFIG, "{}"), f"/sft/{CONFIG} has no field peft_type", WHOLE),
    "a list": (writing(CONFIG, "[1]"), f"/sft/{CONFIG} has no field peft_type", WHOLE),
    "another type": (
        configured(peft_type=["LORA"]),
        f"/sft/{CONFIG}: peft_type is \"['LORA']\", not LORA",
    ),
    "a rank in words": (configured(r="four"), f"/sft/{CONFIG}: ", WHOLE),
    "no such rank": (configured(r=-4), f"/sft/{CONFIG}: ", WHOLE),
    "no layers": (configured(target_modules=7), f"/sft/{CONFIG}: ", WHOLE),
    "no ranks": (configured(rank_pattern=3), f"/sft/{CONFIG}: ", WHOLE),
    "weights cut short": (cut(LORA), f"/sft/{LORA} is damaged (", WHOLE),
    "a tensor less": (
        tensors(LORA, lambda found: found.pop(min(found))),
        *(f"/sft/{LORA} does not fit", "down_proj.lora_A.weight", FITTING),
    ),
    "another base": (
        of_another_base,
        *("/sft does not fit the model (size mismatch for", "q_proj.lora_A", FITTING),
    ),
}


@every(ADAPTERS)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_adapters(change, error, words, adapter, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "sft")
    change(folder)
    check_raised(error, words, lambda: models.load_trained(tiny_checkpoint, folder))


def manifest_with_other_bytes(run):
    (run / "manifest.json").write_bytes(b'{\n "01_data": "\xff"}')
    chain.close(run, "02_sft")


def not_a_step(run):
    (run / "checkpoint-20 (copy)").mkdir()
    checkpoints.last_complete(run)


def full_record(folder):
    with full_disk():
        run_records.write_json(folder / "metrics.json", list(range(1000)))


def full_log(folder):
    with full_disk():
        run_records.append_jsonl(folder / "rollouts.jsonl", [{"text": "x" * 1000}])


def full_adapter(size):
    """The disk is full at the config, at the weights, or at the words beside them."""

    def publish(folder):
        model = models.load_model(OTHER_BASE)
        words = models.load_processor(OTHER_BASE)
        weights = {} if size > 10_000 else model.state_dict()
        given = (model, folder / "adapters/sft", "settings.json", {}, weights, words)
        with full_disk(size):
            checkpoints.publish(*given)

    return publish


def full_frame_store(folder):
    store = frame_store.FrameFolder(folder / "frames", 2**20)
    (folder / "0.png").write_bytes(b"a still")
    with full_disk():
        store.read(noise_for, folder / "0.png", Sampling())


def noise_for(path, sampling):
    """A reader of lib/data/video.py as far as the store can tell."""
    return np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)


def frames_in_a_file(folder):
    (folder / "frames").write_text("not a folder")
    frame_store.FrameFolder(folder / "frames", 2**20)


FULL = "cannot be written (File too large)"
LARGE = "File too large (os error 27)); make room on its disk"
ROOM = "make room on its disk, or see that you may write there, then run it again"
FILES = {
    "parameters that are not UTF-8": (
        *(parameters, ParamsFaults, "run.yaml, line 2: not UTF-8"),
        "save it as UTF-8 text",
    ),
    "a downloaded file that was changed": (
        *(changed_download, DownloadError),
        "a.bin is there, but is not what owner/set lists as a.bin",
        "move it away, then run this again",
    ),
    "a manifest that is not UTF-8": (
        manifest_with_other_bytes,
        *("manifest.json, line 2: not UTF-8", AGAIN),
    ),
    "a folder named like a training checkpoint": (
        not_a_step,
        *("/checkpoint-20 (copy) is not the checkpoint of a step", "move it away"),
    ),
    "no room for a record": (full_record, OSError, FULL, "/metrics.json", ROOM),
    "no room for a log": (full_log, OSError, FULL, "/rollouts.jsonl", ROOM),
    "no room for a config": (full_adapter(100), OSError, FULL, "/adapters/sft", ROOM),
    "no room for weights": (full_adapter(9_000), OSError, LARGE, "/adapters/sft", ROOM),
    "no room for words": (full_adapter(11_000), OSError, LARGE, "/adapters/sft", ROOM),
    "no room for frames": (full_frame_store, OSError, FULL, "/frames", ROOM),
    "no folder": (frames_in_a_file, FileExistsError, "(File exists)", "/frames", ROOM),
}


@every(FILES)
def test_files(change, error, words, tmp_path):
    check_raised(error, words, lambda: change(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "adapters" / "sft").exists()
