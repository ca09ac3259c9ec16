"""What can be wrong with what the kit is given, and what it then says: a list.

Each line of a table is one kind of broken input: what is broken and how, the type of
the error, what its message names (file, line, field, member), and what it says to do.
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
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from made_hub import PINNED, Hub

from lib import chain, checkpoints, download, epic, evaluate, frame_store, models, paths
from lib import records as run_records
from lib.download import Archive, ArchiveError, DownloadError, HubFile
from lib.epic import LabelFaults
from lib.frame_store import question_media
from lib.params import ParamsFaults, load_params
from lib.questions import DataFaults, read_general, read_validation
from lib.video import BadVideo, Sampling

# isort: split
from peft import get_peft_model
from safetensors.torch import load_file, save_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
OTHER_BASE = "lib/mini/base"


class Broken(NamedTuple):
    kind: str
    change: Callable  # what makes it so
    error: type
    names: tuple[str, ...]
    do: str


def every(table):
    return pytest.mark.parametrize("broken", table, ids=attrgetter("kind"))


def check_said(broken, message):
    for words in (*broken.names, broken.do):
        assert words in message


def check_raised(broken, ask):
    """The very type counts: a parser's own errors are subclasses of ValueError."""
    with pytest.raises(broken.error) as caught:
        ask()
    assert caught.type is broken.error, repr(caught.value)
    check_said(broken, str(caught.value))


# --- annotations: the second of two questions in validation_L1.jsonl ------------------


def question(number):
    actions = ["open jar", "pour milk", "stir pot", "wash pan"]
    return {
        "sample_id": number,
        "video_source": "EpicKitchens",
        "task_goal": "make soup",
        "question": "what action should I take next?",
        "answer": actions[number],
        "current_observation_frame": 300,
        "task_progress_metadata": [],
        "current_observation_basename": "0.png",
        **dict(
            zip(("choice_a", "choice_b", "choice_c", "choice_d"), actions, strict=True)
        ),
        "golden_choice_idx": "ABCD"[number],
    }


def second(**changes):
    """The file with other fields in its second question; None takes one away."""
    record = {k: v for k, v in (question(1) | changes).items() if v is not None}
    return lambda text: f"{json.dumps(question(0))}\n{json.dumps(record)}\n".encode()


L1, L1_2 = "validation_L1.jsonl", "validation_L1.jsonl:2: "
MEND = "mend these lines, or get the file again"
ANNOTATIONS = [
    Broken(
        "a torn line",
        lambda text: text[:-40],
        DataFaults,
        (f"{L1_2}record: found what is no JSON (", "expected one JSON object a line"),
        MEND,
    ),
    Broken(
        "a missing field",
        second(choice_b=None),
        DataFaults,
        (f"{L1_2}choice_b: found no such field; expected a text",),
        MEND,
    ),
    Broken(
        "a field of the wrong type",
        second(sample_id="1"),
        DataFaults,
        (f"{L1_2}sample_id: found '1'; expected a whole number",),
        MEND,
    ),
    Broken(
        "a gold letter without an option",
        second(golden_choice_idx="E"),
        DataFaults,
        (f"{L1_2}golden_choice_idx: found 'E'; expected one of the letters A",),
        MEND,
    ),
    Broken(
        "an answer that is another option than the gold one",
        second(golden_choice_idx="C"),
        DataFaults,
        (f"{L1_2}answer: found 'pour milk' while option C is 'stir pot'",),
        MEND,
    ),
    Broken(
        "two questions with one id",
        second(sample_id=0),
        DataFaults,
        (f"{L1_2}sample_id: found the sample_id of line 1 again; expected it once",),
        MEND,
    ),
    Broken(
        "a file name that leads out of the folder",
        second(current_observation_basename="../../0.png"),
        DataFaults,
        (f"{L1_2}current_observation_basename: found '../../0.png'; expected a file",),
        MEND,
    ),
    Broken(
        "text that is not UTF-8",
        lambda text: text.replace(b'"question": "', b'"question": "\xe9'),
        DataFaults,
        (f"{L1_2}record: found what is not UTF-8",),
        MEND,
    ),
    Broken(
        "half a character",
        second(question="cut off \ud83d"),
        DataFaults,
        (f"{L1_2}question: found half a character", "'cut off \\ud83d'"),
        MEND,
    ),
    Broken(
        "a control token of a model",
        second(choice_c="<|im_end|>"),
        DataFaults,
        (f"{L1_2}choice_c: found '<|im_end|>' in a text; expected words alone",),
        MEND,
    ),
    Broken(
        "options with letters of their own",
        second(
            answer="C) pour milk",
            choice_a="B) open jar",
            choice_b="C) pour milk",
            choice_c="A) stir pot",
        ),
        DataFaults,
        (f"{L1_2}choice_a: found 'B) open jar', with a letter of its own",),
        MEND,
    ),
    Broken(
        "a field given twice",
        lambda text: text.replace(
            b'"answer": "pour', b'"answer": "x", "answer": "pour'
        ),
        DataFaults,
        (f"{L1_2}answer: found it 2 times, ['x', 'pour milk']; expected it once",),
        MEND,
    ),
    Broken(
        "values without end within values",
        lambda text: text.replace(b'"answer": "pour', b'"x": ' + b"[" * 5000, 1),
        DataFaults,
        (f"{L1_2}record: found what is no JSON (values too deep within values",),
        MEND,
    ),
    Broken(
        "a file name that no disk takes",
        second(current_observation_basename="x" * 300),
        DataFaults,
        (f"{L1_2}current_observation_basename: found 'xxx", "255 bytes at most"),
        MEND,
    ),
    Broken(
        "a byte order mark",
        lambda text: b"\xef\xbb\xbf" + text,
        DataFaults,
        (f"{L1}:1: file: found a byte order mark",),
        "UTF-8 without one",
    ),
    Broken(
        "an empty annotation file",
        lambda text: b"",
        DataFaults,
        (f"{L1}:1: file: found no record; expected records",),
        MEND,
    ),
    Broken(
        "an LFS pointer as annotation file",
        lambda text: POINTER,
        DataFaults,
        (f"{L1}:1: file: found a git-LFS pointer",),
        "run `git lfs pull`",
    ),
    Broken(
        "a web page as annotation file",
        lambda text: PAGE,
        DataFaults,
        (f"{L1}:1: file: found a web page, no JSON",),
        "download it again",
    ),
    Broken(
        "no annotation file",
        lambda text: None,
        FileNotFoundError,
        (f"{L1} is missing",),
        "01_data says where it comes from",
    ),
]


@every(ANNOTATIONS)
def test_annotations(broken, tmp_path):
    content = broken.change(second()(b""))
    if content is not None:
        (tmp_path / L1).write_bytes(content)
    check_raised(broken, lambda: read_validation(tmp_path / L1, tmp_path, "L1"))


GENERAL = [
    Broken(
        "a gold index without a candidate",
        {"correct_choice": 4},
        DataFaults,
        ("lvb_val.json:1: [0].correct_choice: found 4 for 4 candidates",),
        "expected the index of a candidate, from 0 on",
    ),
    Broken(
        "candidates padded as in the parquet form",
        {"candidates": ["red", "green", "blue", "white", "N/A"]},
        DataFaults,
        ("lvb_val.json:1: [0].candidates[4]: found 'N/A'",),
        "drop the 'N/A'",
    ),
]


@every(GENERAL)
def test_annotations_of_longvideobench(broken, tmp_path):
    record = {
        "id": "v0_0",
        "question": "What colour is the coat?",
        "candidates": ["red", "green", "blue", "white"],
        "correct_choice": 1,
        "video_path": "v0.mp4",
        "duration_group": 15,
    }
    path = tmp_path / "lvb_val.json"
    path.write_text(json.dumps([record | broken.change]))
    check_raised(broken, lambda: read_general(path, tmp_path))


LABEL_COLUMNS = ",".join(epic.COLUMNS)
LABEL_ROW = "P01_01_0,P01_01,open tap,00:00:01.00,00:00:02.50,60,150"
GET_LABELS = "or get https://github.com/epic-kitchens/epic-kitchens-100-annotations"
LABELS = [
    Broken(
        "a bad timestamp in the EPIC labels",
        [LABEL_COLUMNS, LABEL_ROW.replace("00:00:02.50", "2.5 s")],
        LabelFaults,
        ("train.csv, line 2, stop_timestamp: found '2.5 s'; expected HH:MM:SS.ss",),
        GET_LABELS,
    ),
    Broken(
        "a column that the EPIC labels lack",
        [LABEL_COLUMNS.replace("narration,", ""), LABEL_ROW],
        LabelFaults,
        ("train.csv, line 1: no column narration",),
        GET_LABELS,
    ),
]


@every(LABELS)
def test_labels(broken, tmp_path):
    (tmp_path / "train.csv").write_text("\n".join(broken.change) + "\n")
    check_raised(broken, lambda: epic.read_labels([tmp_path / "train.csv"]))


# --- media: the clip or the still of a question ---------------------------------------


def one_frame(_):
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((56, 56, 3), np.uint8), "rgb24")
        container.mux(stream.encode(black))
        container.mux(stream.encode())
    return data.getvalue()


SOUND = "put a sound file there"
MEDIA = [
    Broken(
        "a missing clip", lambda data: None, BadVideo, ("0.mp4: is missing",), SOUND
    ),
    Broken(
        "a clip of zero bytes",
        lambda data: b"",
        BadVideo,
        ("0.mp4: is empty (zero bytes)",),
        SOUND,
    ),
    Broken(
        "a clip cut short",
        lambda data: data[: len(data) // 2],
        BadVideo,
        ("0.mp4: FFmpeg cannot open it as a video",),
        SOUND,
    ),
    Broken(
        "an LFS pointer as clip",
        lambda data: POINTER,
        BadVideo,
        ("0.mp4: is a git-LFS pointer",),
        "run `git lfs pull`",
    ),
    Broken(
        "a web page as clip",
        lambda data: PAGE,
        BadVideo,
        ("0.mp4: is a web page",),
        "download it again",
    ),
    Broken(
        "a clip of one frame",
        one_frame,
        BadVideo,
        ("0.mp4: has 1 frame(s); at least 2 are needed",),
        "to evaluate without it, set on_bad_video: keep_as_wrong",
    ),
    Broken(
        "a still that is no picture",
        lambda data: b"no picture",
        BadVideo,
        ("0.png: Pillow cannot decode it as a picture",),
        SOUND,
    ),
]


@every(MEDIA)
def test_media(broken, tiny_questions, tmp_path):
    field = "image" if ".png" in broken.names[0] else "video"
    sound = getattr(tiny_questions[0], field)
    path = tmp_path / sound.name
    content = broken.change(sound.read_bytes())
    if content is not None:
        path.write_bytes(content)
    asked = replace(tiny_questions[0], **{field: path})
    check_raised(broken, lambda: question_media(asked, Sampling()))


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
ARCHIVES = [
    Broken(
        "a member with a path out of the folder",
        tar(("../0.mp4", NOISE)),
        ArchiveError,
        ("batch_1.tar.gz: the member '../0.mp4' leads out of the folder",),
        REPORT,
    ),
    Broken(
        "a member that is a link out of the folder",
        tar((link("0.mp4", "/etc/passwd"), b"")),
        ArchiveError,
        ("batch_1.tar.gz: the member '0.mp4' is a link",),
        REPORT,
    ),
    Broken(
        "a member of a zip file with an absolute path",
        zipped("/tmp/0.mp4", NOISE),
        ArchiveError,
        ("batch_1.zip: the member '/tmp/0.mp4' leads out of the folder",),
        REPORT,
    ),
    Broken(
        "an archive cut short",
        tar(("0.mp4", NOISE))[:10_000],
        ArchiveError,
        ("batch_1.tar.gz: cannot be read to its end",),
        "the hub's own file is damaged; report it there",
    ),
    Broken(
        "a damaged block that is stored as it is",
        flipped(tar(("0.mp4", NOISE)), 10_000),
        ArchiveError,
        ("batch_1.tar.gz: cannot be read to its end (CRC check failed",),
        "the hub's own file is damaged; report it there",
    ),
    Broken(
        "a sparse member",
        sparse("0.mp4"),
        ArchiveError,
        ("batch_1.tar.gz: the member '0.mp4' is a link, a device, sparse",),
        REPORT,
    ),
    Broken(
        "a member of a zip file that is packed in an unknown way",
        packed_otherwise(zipped("0.mp4", NOISE)),
        ArchiveError,
        ("batch_1.zip: cannot be read here (That compression method is not",),
        "unpack it yourself",
    ),
    Broken(
        "a member whose place another file has",
        tar(("0.mp4", NOISE), ("again/0.mp4", b"short")),
        ArchiveError,
        ("batch_1.tar.gz: the member 'again/0.mp4' has 5 bytes, but", "/out/0.mp4 is"),
        "delete that file if this one shall take its place",
    ),
]


@every(ARCHIVES)
def test_archives(broken, tmp_path):
    data, name = broken.change, broken.names[0].partition(":")[0]
    digest = hashlib.sha256(data).hexdigest()
    part = HubFile("owner/set", PINNED, f"videos/{name}", len(data), digest)
    archive = Archive(f"owner/set: videos/{name}", (part,), ("videos",))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{digest[:12]}-{name}").write_bytes(data)
    out = tmp_path / "out"

    def place(member):
        return out / Path(member).name

    check_raised(
        broken, lambda: list(download.unpack(archive, tmp_path / "store", place))
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
DOWNLOADS = [
    Broken(
        "a download with another hash",
        serving(NOISE[::-1]),
        DownloadError,
        ("owner/set: hash.bin: received 20,000 bytes with another hash", "expected"),
        AGAIN,
    ),
    Broken(
        "an LFS pointer as download",
        serving(POINTER),
        DownloadError,
        ("owner/set: pointer.bin: received a git-LFS pointer; expected 20,000 bytes",),
        AGAIN,
    ),
    Broken(
        "a download that is cut off again and again",
        cutting,
        DownloadError,
        ("owner/set: cut.bin: the connection to http://127.0.0.1", "broke"),
        "what has arrived is kept, and the same command goes on from there",
    ),
    Broken(
        "a hub that wants its licence accepted (401)",
        refusing(401, "GatedRepo"),
        DownloadError,
        ("owner/set: gated.bin: the hub asks for an account",),
        "accept it at https://huggingface.co/datasets/owner/set, then run `hf auth",
    ),
    Broken(
        "a hub that wants a login (401)",
        refusing(401, ""),
        DownloadError,
        ("owner/set: login.bin: ", "answered 401"),
        "log in with `hf auth login` or set HF_TOKEN",
    ),
    Broken(
        "a hub that has no such file (404)",
        refusing(404, "EntryNotFound"),
        DownloadError,
        ("owner/set: gone.bin: ", "answered 404"),
        "look whether the hub still lists that file",
    ),
]
FETCH_ALL = """
import json, sys
from pathlib import Path
from lib.download import HubFile, fetch
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
    files = [path_in(broken) for broken in DOWNLOADS]
    for path, broken in zip(files, DOWNLOADS, strict=True):
        hub.files["owner/set"][path] = NOISE
        broken.change(hub, path)
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


def path_in(broken):
    return broken.names[0].split(": ")[1]


@every(DOWNLOADS)
def test_downloads(broken, fetched):
    kind, message = fetched[path_in(broken)]
    assert kind == broken.error.__name__
    check_said(broken, message)


HERE = [
    Broken(
        "a downloaded file that was changed",
        lambda target: target.write_bytes(b"changed"),
        DownloadError,
        ("a.bin is there, but is not what owner/set lists as a.bin",),
        "move it away, then run this again",
    ),
    Broken(
        "a disk too small for a download",
        lambda target: None,
        DownloadError,
        ("not enough disk space below", "to download huge.bin: 1,000,000,000.0 GB are"),
        "make room, then run it again",
    ),
]


@every(HERE)
def test_downloads_that_need_no_hub(broken, tmp_path):
    path, size = ("huge.bin", 10**18) if "huge" in str(broken) else ("a.bin", 20_000)
    broken.change(tmp_path / path)
    check_raised(broken, lambda: download.fetch(hub_file(path, size), tmp_path / path))


# --- parameters: run.yaml -------------------------------------------------------------

PARAMETERS = [
    Broken(
        "an unknown parameter",
        b"run_name: a\nsft_step: 10\n",
        ParamsFaults,
        ("run.yaml, line 2, sft_step: no notebook declares this parameter",),
        "did you mean sft_steps?",
    ),
    Broken(
        "a number that YAML takes for a text",
        b"run_name: a\nsft_lr: 1e-5\n",
        ParamsFaults,
        ("run.yaml, line 2, sft_lr: expected float, found str '1e-5'",),
        "YAML wants a point and a sign: 1.0e-5",
    ),
    Broken(
        "a parameter of the wrong type",
        b"run_name: 7\n",
        ParamsFaults,
        ("run.yaml, line 1, run_name: expected str, found int 7",),
        "put it in quotation marks",
    ),
    Broken(
        "a line that is no YAML",
        b"run_name: a\nseed: [1\n",
        ParamsFaults,
        ("run.yaml, line 3: not YAML (",),
        "expected lines of `key: value`",
    ),
    Broken(
        "parameters that are not UTF-8",
        b"run_name: a\n# \xe9\n",
        ParamsFaults,
        ("run.yaml, line 2: not UTF-8",),
        "save it as UTF-8 text",
    ),
    Broken(
        "a run without a name",
        b"seed: 1\n",
        ParamsFaults,
        ("run.yaml, run_name: missing",),
        "it names the folder of the records",
    ),
    Broken(
        "no params file",
        None,
        ParamsFaults,
        ("run.yaml is missing",),
        "give a file such as params/mini.yaml",
    ),
]


@every(PARAMETERS)
def test_parameters(broken, tmp_path):
    path = tmp_path / "run.yaml"
    if broken.change is not None:
        path.write_bytes(broken.change)
    check_raised(broken, lambda: load_params(path))


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
CHECKPOINTS = [
    Broken(
        "no checkpoint folder",
        shutil.rmtree,
        FileNotFoundError,
        ("/model is missing",),
        "give a checkpoint folder (relative paths start at",
    ),
    Broken(
        "weights cut short",
        cut(WEIGHTS),
        ValueError,
        ("/model/model.safetensors is damaged (",),
        WHOLE,
    ),
    Broken(
        "a checkpoint without weights",
        without(WEIGHTS),
        FileNotFoundError,
        ("/model has no model.safetensors or model.safetensors.index.json",),
        WHOLE,
    ),
    Broken(
        "weights that lack a tensor",
        tensors(WEIGHTS, lambda found: found.pop(DOWN)),
        ValueError,
        ("/model lacks 1 of the model's tensors", "layers.0.mlp.down_proj.weight"),
        WHOLE,
    ),
    Broken(
        "weights of another size than config.json says",
        tensors(WEIGHTS, narrower),
        ValueError,
        (
            "/model has other shapes of 1",
            "layers.0.mlp.down_proj.weight",
            "config.json",
        ),
        WHOLE,
    ),
    Broken(
        "a torn config.json",
        writing("config.json", '{"model_type":\n'),
        ValueError,
        ("/model/config.json, line 2: not JSON",),
        "mend it, or delete it and make or download it again",
    ),
    Broken(
        "a model that cannot see",
        writing("config.json", '{"model_type": "bert"}'),
        ValueError,
        ("/model/config.json, model_type: found 'bert'",),
        "give a checkpoint of a model for pictures and text, such as qwen2_vl",
    ),
    Broken(
        "a checkpoint without tokenizer",
        without("tokenizer.json"),
        FileNotFoundError,
        ("/model has no tokenizer.json or vocab.json",),
        WHOLE,
    ),
]


@every(CHECKPOINTS)
def test_checkpoints(broken, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    broken.change(folder)

    def load():
        models.load_processor(folder)
        models.load_model(folder)

    check_raised(broken, load)


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
ADAPTERS = [
    Broken(
        "no adapter folder",
        shutil.rmtree,
        FileNotFoundError,
        ("/sft is missing",),
        "train it first (02_sft or 03_grpo)",
    ),
    Broken(
        "an adapter without its config",
        without(CONFIG),
        ValueError,
        ("/sft holds neither adapter_config.json nor config.json",),
        "give the folder that 02_sft or 03_grpo wrote",
    ),
    Broken(
        "an adapter without its weights",
        without(LORA),
        FileNotFoundError,
        ("/sft has no adapter_model.safetensors",),
        WHOLE,
    ),
    Broken(
        "an adapter config without its type",
        writing(CONFIG, "{}"),
        ValueError,
        ("/sft/adapter_config.json has no field peft_type",),
        WHOLE,
    ),
    Broken(
        "adapter weights cut short",
        cut(LORA),
        ValueError,
        ("/sft/adapter_model.safetensors is damaged (",),
        WHOLE,
    ),
    Broken(
        "an adapter that lacks a tensor",
        tensors(LORA, lambda found: found.pop(min(found))),
        ValueError,
        ("/sft/adapter_model.safetensors does not fit", "down_proj.lora_A.weight"),
        FITTING,
    ),
    Broken(
        "an adapter of another base",
        of_another_base,
        ValueError,
        ("/sft does not fit the model (size mismatch for", "q_proj.lora_A"),
        FITTING,
    ),
]


@every(ADAPTERS)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_adapters(broken, adapter, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "sft")
    broken.change(folder)
    model = models.load_model(tiny_checkpoint)
    check_raised(broken, lambda: models.load_adapter(model, folder))


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
    run_records.write_json(evaluate.settings_file(path), {"max_new_tokens": 40})
    partial = path.with_suffix(".partial.jsonl")
    evaluate.refuse_other_settings(path, partial, {"max_new_tokens": 256})


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
RUNS = [
    Broken(
        "an adapter trained with other settings",
        other_settings,
        ValueError,
        ("/adapters/sft was made with other settings", "sft_lr (0.1 there, 0.2 now)"),
        "Use another run_name, or delete that folder",
    ),
    Broken(
        "answers given with other settings",
        answers_of_other_settings,
        ValueError,
        ("predictions_sft_L1.jsonl holds rows", "max_new_tokens was 40, is 256"),
        "Use another run_name, or delete predictions_sft_L1.*",
    ),
    Broken(
        "a torn line among answers",
        torn_answers,
        ValueError,
        ("predictions_sft_L1.jsonl, line 2: not JSON",),
        MAKE_AGAIN,
    ),
    Broken(
        "a manifest that is not UTF-8",
        manifest_with_other_bytes,
        ValueError,
        ("manifest.json, line 2: not UTF-8",),
        MAKE_AGAIN,
    ),
    Broken(
        "a folder named like a training checkpoint",
        not_a_step,
        ValueError,
        ("/checkpoint-20 (copy) is not the checkpoint of a step",),
        "move it away",
    ),
]


@every(RUNS)
def test_run_folders(broken, tmp_path):
    check_raised(broken, lambda: broken.change(tmp_path))


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
    """A reader of lib/video.py as far as the store can tell."""
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
DISK = [
    Broken(
        "a disk full at a record",
        limited(full_record),
        OSError,
        ("cannot be written (File too large)", "/metrics.json"),
        ROOM,
    ),
    Broken(
        "a disk full at a log",
        limited(full_log),
        OSError,
        ("cannot be written (File too large)", "/rollouts.jsonl"),
        ROOM,
    ),
    Broken(
        "a disk full at trained weights",
        full_adapter,
        OSError,
        ("cannot be written (File too large)", "/adapters/sft"),
        ROOM,
    ),
    Broken(
        "a disk full at the frame store",
        full_frame_store,
        OSError,
        ("the frame store cannot be written (File too large)", "/frames"),
        ELSEWHERE,
    ),
    Broken(
        "a frame store that cannot be a folder",
        frames_in_a_file,
        FileExistsError,
        ("the frame store cannot be written (File exists)", "/frames"),
        ELSEWHERE,
    ),
]


@every(DISK)
def test_disks(broken, tmp_path):
    check_raised(broken, lambda: broken.change(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "adapters" / "sft").exists()
