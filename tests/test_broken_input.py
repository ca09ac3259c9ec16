"""What can be wrong with what the kit is given, and what it then says: a list.

Each line of a table is one kind of broken input: what is broken and how, what the error
names (file, line, field, member), and what it says to do. Faults of annotation files
are in test_questions.py, those of clips and stills in test_video.py.
"""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_hub import PINNED, Hub

from lib import chain, paths
from lib import records as run_records
from lib.data import download, epic, frame_store
from lib.data.download import Archive, ArchiveError, DownloadError, HubFile
from lib.data.epic import LabelFaults
from lib.data.video import Sampling
from lib.evaluate import resume
from lib.model import models
from lib.run.params import ParamsFaults, load_params
from lib.train import checkpoints

# isort: split
from peft import get_peft_model
from safetensors.torch import load_file, save_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"
OTHER_BASE = "lib/mini/base"


def every(table, usual):
    """The rows of a table: what makes it so, the error if it is not the usual one, and
    what its message says."""
    rows = []
    for change, *words in table.values():
        error = words.pop(0) if isinstance(words[0], type) else usual
        rows.append((change, error, words))
    return pytest.mark.parametrize(("change", "error", "words"), rows, ids=table)


def check_raised(error, words, ask):
    """The very type counts: a parser's own errors are subclasses of ValueError."""
    with pytest.raises(error) as caught:
        ask()
    assert caught.type is error, repr(caught.value)
    assert [said for said in words if said not in str(caught.value)] == []


# --- labels of EPIC-KITCHENS ----------------------------------------------------------

LABEL_COLUMNS = ",".join(epic.COLUMNS)
LABEL_ROW = "P01_01_0,P01_01,open tap,00:00:01.00,00:00:02.50,60,150"
GET_LABELS = "or get https://github.com/epic-kitchens/epic-kitchens-100-annotations"
LABELS = {
    "a bad timestamp in the EPIC labels": (
        [LABEL_COLUMNS, LABEL_ROW.replace("00:00:02.50", "2.5 s")],
        "train.csv, line 2, stop_timestamp: found '2.5 s'; expected HH:MM:SS.ss",
        GET_LABELS,
    ),
    "a column that the EPIC labels lack": (
        [LABEL_COLUMNS.replace("narration,", ""), LABEL_ROW],
        "train.csv, line 1: no column narration",
        GET_LABELS,
    ),
}


@every(LABELS, LabelFaults)
def test_labels(change, error, words, tmp_path):
    (tmp_path / "train.csv").write_text("\n".join(change) + "\n")
    check_raised(error, words, lambda: epic.read_labels([tmp_path / "train.csv"]))


# --- archives: videos/batch_1, which should hold 0.mp4 --------------------------------


def tar(*members):
    """Bytes of a tar.gz of (name or TarInfo, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(name, to):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


def zipped(name, content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, content)
    return out.getvalue()


def sparse(name):
    """A tar.gz of a member of a few bytes that claims a gigabyte."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.size": str(10**9), "GNU.sparse.map": "0,8"}
    return tar((info, b"12345678"))


def packed_otherwise(data):
    """A zip file whose members say that they are packed by Deflate64."""
    for head, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at += data.index(head)
        data = data[:at] + b"\x09\0" + data[at + 2 :]
    return data


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


NOISE = os.urandom(20_000)
REPORT = "report it to who made the archive"
ARCHIVES = {
    "a member with a path out of the folder": (
        tar(("../0.mp4", NOISE)),
        "batch_1.tar.gz: the member '../0.mp4' leads out of the folder",
        REPORT,
    ),
    "a member that is a link out of the folder": (
        tar((link("0.mp4", "/etc/passwd"), b"")),
        "batch_1.tar.gz: the member '0.mp4' is a link",
        REPORT,
    ),
    "a member of a zip file with an absolute path": (
        zipped("/tmp/0.mp4", NOISE),
        "batch_1.zip: the member '/tmp/0.mp4' leads out of the folder",
        REPORT,
    ),
    "an archive cut short": (
        tar(("0.mp4", NOISE))[:10_000],
        "batch_1.tar.gz: cannot be read to its end",
        "the hub's own file is damaged; report it there",
    ),
    "a damaged block that is stored as it is": (
        flipped(tar(("0.mp4", NOISE)), 10_000),
        "batch_1.tar.gz: cannot be read to its end (CRC check failed",
        "the hub's own file is damaged; report it there",
    ),
    "a sparse member": (
        sparse("0.mp4"),
        "batch_1.tar.gz: the member '0.mp4' is a link, a device, sparse",
        REPORT,
    ),
    "a member of a zip file that is packed in an unknown way": (
        packed_otherwise(zipped("0.mp4", NOISE)),
        "batch_1.zip: cannot be read here (That compression method is not",
        "unpack it yourself",
    ),
    "a member whose place another file has": (
        tar(("0.mp4", NOISE), ("again/0.mp4", b"short")),
        "batch_1.tar.gz: the member 'again/0.mp4' has 5 bytes, but",
        "/out/0.mp4 is",
        "delete that file if this one shall take its place",
    ),
}


@every(ARCHIVES, ArchiveError)
def test_archives(change, error, words, tmp_path):
    data, name = change, words[0].partition(":")[0]
    digest = hashlib.sha256(data).hexdigest()
    part = HubFile("owner/set", PINNED, f"videos/{name}", len(data), digest)
    archive = Archive(f"owner/set: videos/{name}", (part,), ("videos",))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{digest[:12]}-{name}").write_bytes(data)
    out = tmp_path / "out"

    def place(member):
        return out / Path(member).name

    check_raised(
        error, words, lambda: list(download.unpack(archive, tmp_path / "store", place))
    )
    assert {path.name for path in out.rglob("*")} <= {"0.mp4"}
    assert not (tmp_path / "0.mp4").exists()


# --- downloads: of one file from a hub on loopback ------------------------------------


def serving(content):
    return lambda hub, path: hub.served.update({path: content})


def refusing(status, name):
    return lambda hub, path: hub.status.update({path: (status, name)})


def cutting(hub, path):
    hub.cuts[path] = [100] * 20


AGAIN = "It was deleted; run it again"
DOWNLOADS = {
    "a download with another hash": (
        serving(NOISE[::-1]),
        "owner/set: hash.bin: received 20,000 bytes with another hash",
        "expected",
        AGAIN,
    ),
    "an LFS pointer as download": (
        serving(POINTER),
        "owner/set: pointer.bin: received a git-LFS pointer; expected 20,000 bytes",
        AGAIN,
    ),
    "a download that is cut off again and again": (
        cutting,
        "owner/set: cut.bin: the connection to http://127.0.0.1",
        "broke",
        "what has arrived is kept, and the same command goes on from there",
    ),
    "a hub that wants its licence accepted (401)": (
        refusing(401, "GatedRepo"),
        "owner/set: gated.bin: the hub asks for an account",
        "accept it at https://huggingface.co/datasets/owner/set, then run `hf auth",
    ),
    "a hub that wants a login (401)": (
        refusing(401, ""),
        "owner/set: login.bin: ",
        "answered 401",
        "log in with `hf auth login` or set HF_TOKEN",
    ),
    "a hub that has no such file (404)": (
        refusing(404, "EntryNotFound"),
        "owner/set: gone.bin: ",
        "answered 404",
        "look whether the hub still lists that file",
    ),
}
FETCH_ALL = """
import json, sys
from pathlib import Path
from lib.data.download import HubFile, fetch
said = {}
for facts in json.loads(sys.argv[1]):
    try:
        fetch(HubFile(**facts), Path(sys.argv[2], facts["path"]))
    except Exception as error:
        said[facts["path"]] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def hub_file(path, size=20_000):
    return HubFile("owner/set", PINNED, path, size, hashlib.sha256(NOISE).hexdigest())


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """{path: [type, message]} of all downloads, fetched by one process."""
    folder, hub = tmp_path_factory.mktemp("downloads"), Hub()
    files = [path_in(words) for _, *words in DOWNLOADS.values()]
    for path, (change, *_) in zip(files, DOWNLOADS.values(), strict=True):
        hub.files["owner/set"][path] = NOISE
        change(hub, path)
    facts = json.dumps([asdict(hub_file(path)) for path in files])
    ran = subprocess.run(
        [sys.executable, "-c", FETCH_ALL, facts, str(folder)],
        cwd=paths.ROOT,
        env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    hub.close()
    return json.loads(ran.stdout.splitlines()[-1])


def path_in(words):
    return words[0].split(": ")[1]


@every(DOWNLOADS, DownloadError)
def test_downloads(change, error, words, fetched):
    kind, message = fetched[path_in(words)]
    assert issubclass(getattr(download, kind), error)
    assert [said for said in words if said not in message] == []


HERE = {
    "a downloaded file that was changed": (
        lambda target: target.write_bytes(b"changed"),
        "a.bin is there, but is not what owner/set lists as a.bin",
        "move it away, then run this again",
    ),
    "a disk too small for a download": (
        lambda target: None,
        "not enough disk space below",
        "to download huge.bin: 1.00EB are",
        "make room, then run it again",
    ),
}


@every(HERE, DownloadError)
def test_downloads_that_need_no_hub(change, error, words, tmp_path):
    path, size = ("huge.bin", 10**18) if "huge" in str(words) else ("a.bin", 20_000)
    change(tmp_path / path)
    check_raised(
        error, words, lambda: download.fetch(hub_file(path, size), tmp_path / path)
    )


# --- parameters: run.yaml -------------------------------------------------------------

PARAMETERS = {
    "an unknown parameter": (
        b"run_name: a\nsft_step: 10\n",
        "run.yaml, line 2, sft_step: no notebook declares this parameter",
        "did you mean sft_steps?",
    ),
    "a number that YAML takes for a text": (
        b"run_name: a\nsft_lr: 1e-5\n",
        "run.yaml, line 2, sft_lr: expected float, found str '1e-5'",
        "YAML wants a point and a sign: 1.0e-5",
    ),
    "a parameter of the wrong type": (
        b"run_name: 7\n",
        "run.yaml, line 1, run_name: expected str, found int 7",
        "put it in quotation marks",
    ),
    "a line that is no YAML": (
        b"run_name: a\nseed: [1\n",
        "run.yaml, line 3: not YAML (",
        "expected lines of `key: value`",
    ),
    "parameters that are not UTF-8": (
        b"run_name: a\n# \xe9\n",
        "run.yaml, line 2: not UTF-8",
        "save it as UTF-8 text",
    ),
    "a run without a name": (
        b"seed: 1\n",
        "run.yaml, run_name: missing",
        "it names the folder of the records",
    ),
    "no params file": (
        None,
        "run.yaml is missing",
        "give a file such as params/mini.yaml",
    ),
}


@every(PARAMETERS, ParamsFaults)
def test_parameters(change, error, words, tmp_path):
    path = tmp_path / "run.yaml"
    if change is not None:
        path.write_bytes(change)
    check_raised(error, words, lambda: load_params(path))


# --- checkpoints: a folder `model` ----------------------------------------------------


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


WEIGHTS, DOWN = "model.safetensors", "model.layers.0.mlp.down_proj.weight"
WHOLE = "copy or download that folder again, whole"
CHECKPOINTS = {
    "no checkpoint folder": (
        shutil.rmtree,
        FileNotFoundError,
        "/model is missing",
        "give a checkpoint folder (relative paths start at",
    ),
    "weights cut short": (cut(WEIGHTS), "/model/model.safetensors is damaged (", WHOLE),
    "a checkpoint without weights": (
        without(WEIGHTS),
        FileNotFoundError,
        "/model has no model.safetensors or model.safetensors.index.json",
        WHOLE,
    ),
    "weights that lack a tensor": (
        tensors(WEIGHTS, lambda found: found.pop(DOWN)),
        "/model lacks 1 of the model's tensors",
        "layers.0.mlp.down_proj.weight",
        WHOLE,
    ),
    "weights of another size than config.json says": (
        tensors(WEIGHTS, narrower),
        "/model has other shapes of 1",
        "layers.0.mlp.down_proj.weight",
        "config.json",
        WHOLE,
    ),
    "a torn config.json": (
        writing("config.json", '{"model_type":\n'),
        "/model/config.json, line 2: not JSON",
        "mend it, or delete it and make or download it again",
    ),
    "a model that cannot see": (
        writing("config.json", '{"model_type": "bert"}'),
        "/model/config.json, model_type: found 'bert'",
        "give a checkpoint of a model for pictures and text, such as qwen2_vl",
    ),
    "a checkpoint without tokenizer": (
        without("tokenizer.json"),
        FileNotFoundError,
        "/model has no tokenizer.json or vocab.json",
        WHOLE,
    ),
}


@every(CHECKPOINTS, ValueError)
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
FITTING = "load the base it was trained on, or train it again"
ADAPTERS = {
    "no adapter folder": (
        shutil.rmtree,
        FileNotFoundError,
        "/sft is missing",
        "train it first (02_sft or 03_grpo)",
    ),
    "an adapter without its config": (
        without(CONFIG),
        "/sft holds neither adapter_config.json nor config.json",
        "give the folder that 02_sft or 03_grpo wrote",
    ),
    "an adapter without its weights": (
        without(LORA),
        FileNotFoundError,
        "/sft has no adapter_model.safetensors",
        WHOLE,
    ),
    "an adapter config without its type": (
        writing(CONFIG, "{}"),
        "/sft/adapter_config.json has no field peft_type",
        WHOLE,
    ),
    "adapter weights cut short": (
        cut(LORA),
        "/sft/adapter_model.safetensors is damaged (",
        WHOLE,
    ),
    "an adapter that lacks a tensor": (
        tensors(LORA, lambda found: found.pop(min(found))),
        "/sft/adapter_model.safetensors does not fit",
        "down_proj.lora_A.weight",
        FITTING,
    ),
    "an adapter of another base": (
        of_another_base,
        "/sft does not fit the model (size mismatch for",
        "q_proj.lora_A",
        FITTING,
    ),
}


@every(ADAPTERS, ValueError)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_adapters(change, error, words, adapter, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "sft")
    change(folder)
    check_raised(error, words, lambda: models.load_trained(tiny_checkpoint, folder))


def test_a_half_written_training_checkpoint_is_removed_and_that_is_said(
    tmp_path, capsys
):
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    run_records.write_json(tmp_path / "checkpoint-10" / checkpoints.MARKER, {})
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert "removing checkpoint-20: a kill left it half written" in (
        capsys.readouterr().out
    )


# --- the folder of a run --------------------------------------------------------------


def other_settings(run):
    path = run / "adapters" / "sft" / "sft_settings.json"
    checkpoints.write_settings(path, {"seed": 0, "sft_lr": 0.1})
    checkpoints.same_settings(path, {"seed": 0, "sft_lr": 0.2})


def answers_of_other_settings(run):
    path = run / "predictions_sft_L1.jsonl"
    path.touch()
    run_records.write_json(resume.settings_file(path), {"max_new_tokens": 40})
    resume.refuse_other_settings(path, {"max_new_tokens": 256})


def torn_answers(run):
    path = run / "predictions_sft_L1.jsonl"
    path.write_text('{"id": "L1/0"}\n{"id": "L\n{"id": "L1/2"}\n')
    run_records.read_jsonl(path)


def manifest_with_other_bytes(run):
    (run / "manifest.json").write_bytes(b'{\n "01_data": "\xff"}')
    chain.close(run, "02_sft")


def not_a_step(run):
    (run / "checkpoint-20 (copy)").mkdir()
    checkpoints.last_complete(run)


MAKE_AGAIN = "mend it, or delete it and make or download it again"
RUNS = {
    "an adapter trained with other settings": (
        other_settings,
        "/adapters/sft was made with other settings",
        "sft_lr (0.1 there, 0.2 now)",
        "Use another run_name, or delete that folder",
    ),
    "answers given with other settings": (
        answers_of_other_settings,
        "predictions_sft_L1.jsonl holds rows",
        "max_new_tokens (40 there, 256 now)",
        "Use another run_name, or delete predictions_sft_L1.*",
    ),
    "a torn line among answers": (
        torn_answers,
        "predictions_sft_L1.jsonl, line 2: not JSON",
        MAKE_AGAIN,
    ),
    "a manifest that is not UTF-8": (
        manifest_with_other_bytes,
        "manifest.json, line 2: not UTF-8",
        MAKE_AGAIN,
    ),
    "a folder named like a training checkpoint": (
        not_a_step,
        "/checkpoint-20 (copy) is not the checkpoint of a step",
        "move it away",
    ),
}


@every(RUNS, ValueError)
def test_run_folders(change, error, words, tmp_path):
    check_raised(error, words, lambda: change(tmp_path))


# --- the disk -------------------------------------------------------------------------


@contextmanager
def full_disk():
    """A limit on the size of files: a write fails as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_record(folder):
    run_records.write_json(folder / "metrics.json", list(range(1000)))


def full_log(folder):
    run_records.append_jsonl(folder / "rollouts.jsonl", [{"text": "x" * 1000}])


def full_adapter(folder):
    model = models.load_model(OTHER_BASE)
    with full_disk():
        checkpoints.publish(model, folder / "adapters/sft", "settings.json", {})


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


def limited(write):
    def in_limit(folder):
        with full_disk():
            write(folder)

    return in_limit


ROOM = "make room on its disk, or see that you may write there, then run it again"
ELSEWHERE = "free some space or give it another folder"
DISK = {
    "a disk full at a record": (
        limited(full_record),
        "cannot be written (File too large)",
        "/metrics.json",
        ROOM,
    ),
    "a disk full at a log": (
        limited(full_log),
        "cannot be written (File too large)",
        "/rollouts.jsonl",
        ROOM,
    ),
    "a disk full at trained weights": (
        full_adapter,
        "cannot be written (File too large)",
        "/adapters/sft",
        ROOM,
    ),
    "a disk full at the frame store": (
        full_frame_store,
        "the frame store cannot be written (File too large)",
        "/frames",
        ELSEWHERE,
    ),
    "a frame store that cannot be a folder": (
        frames_in_a_file,
        FileExistsError,
        "the frame store cannot be written (File exists)",
        "/frames",
        ELSEWHERE,
    ),
}


@every(DISK, OSError)
def test_disks(change, error, words, tmp_path):
    check_raised(error, words, lambda: change(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "adapters" / "sft").exists()
