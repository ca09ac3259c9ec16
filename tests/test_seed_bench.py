"""Getting the benchmark from a miniature hub, whole or broken; and what check says."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from huggingface_hub import constants
from made_hub import NEWEST, PINNED, Hub

from lib import paths
from lib.data import download, faults, hub_names, inventory, questions, seed_bench
from lib.data.__main__ import main
from lib.data.download import HubFile
from lib.data.seed_bench import LICENCES

FRAME = "current_observation_frame"

SEED, LONG = seed_bench.SEED_BENCH, seed_bench.LONG_VIDEO_BENCH
EPIC, EGO = "EpicKitchens", "Ego4D"
MIB = 2**20
# What a clip is called in the fourth record is not ASCII and has blanks.
NAMES = ["0.mp4", "1.mp4", "2.mp4", "clip é 3.mp4"]
START = (
    "import json, sys; from lib.data import seed_bench as s;"
    "from lib.data.__main__ import main;"
    "facts = json.loads(sys.argv[1]);"
    "s.OFFICIAL = {k: s.Official(**v) for k, v in facts.items()};"
    "sys.exit(main(sys.argv[2:]))"
)


@pytest.fixture(scope="module")
def media(tiny_questions):
    """{name: bytes} of four real clips and their stills."""
    asked = [question for question in tiny_questions if question.video]
    found = {}
    for name, question in zip(NAMES, asked, strict=True):
        found[name] = question.video.read_bytes()
        found[name.replace("mp4", "png")] = question.image.read_bytes()
    return found


def record(number, source):
    actions = ["open jar", "pour milk", "stir pot", "wash pan"]
    return {
        "sample_id": f"u_{number}" if source == "L3" else number,
        "video_source": EPIC if source == EPIC else EGO,
        "video_id": f"v{number}",
        "task_goal": "make soup",
        "question": "what action should I take next in order to make soup?",
        "answer": actions[number],
        "current_observation_frame": 300,
        "task_progress_metadata": [
            {"narration_text": "fill pan", "start_frame": 10, "stop_frame": 90}
        ],
        "video_basename": NAMES[number],
        "current_observation_basename": NAMES[number].replace("mp4", "png"),
        **dict(
            zip(("choice_a", "choice_b", "choice_c", "choice_d"), actions, strict=1)
        ),
        "golden_choice_idx": "ABCD"[number],
    }


def annotations():
    """{split: records}: L1 and training need clips of EPIC, L2 and L3 of Ego4D."""
    l3 = record(1, "L3") | {"domain": "Work", "scenario": "Farm"}
    keys = ("choice_a", "choice_b", "choice_c", "choice_d", "golden_choice_idx")
    training = {k: v for k, v in record(2, EPIC).items() if k not in keys}
    content = [
        {"type": "video", "video": f"videos/{EPIC}/2.mp4"},
        {"type": "image", "image": f"images/{EPIC}/2.png"},
        {"type": "text", "text": "What next?"},
    ]
    response = "<think>So far so good.</think><answer>C</answer>"
    return {
        "L1": [record(0, EPIC), record(1, EPIC)],
        "L2": [record(0, EGO), record(3, EGO)],
        "L3": [l3],
        "training": [training | {"negative_answers": ["a cup", "a pot", "a jar"]}],
        "demonstrations": [
            {"prompt": [{"role": "user", "content": content}], "response": response}
        ],
    }


def lvb(number):
    return {
        "video_id": f"g{number}",
        "id": f"g{number}_0",
        "question": "What colour is the coat?",
        "candidates": ["red", "green", "blue", "white"],
        "correct_choice": 1,
        "video_path": f"g{number}.mp4",
        "subtitle_path": f"g{number}_en.json",
        "duration_group": 15,
    }


def tar(members, mode="w:gz"):
    """Bytes of a tar file of (name or TarInfo, bytes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(kind, name, to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def sparse(name, size):
    """A tar file of one member that holds a few bytes and claims many (GNU, 0.1)."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": "0,8"}
    info.pax_headers["GNU.sparse.name"] = name
    return tar([(info, b"12345678")], mode="w")


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members:
            file.writestr(name, data)
    return out.getvalue()


@dataclass
class World:
    """A hub, a folder to download into, and the official figures of what it serves."""

    hub: Hub
    folder: Path
    home: Path
    facts: dict = field(default_factory=dict)

    def publish(self, split, rows):
        file = seed_bench.OFFICIAL[split]
        text = "\n".join(json.dumps(row) for row in rows).encode()
        data = json.dumps(rows).encode() if split == "general" else text
        self.hub.files[file.repo][file.path] = data
        sha256 = hashlib.sha256(data).hexdigest() if file.sha256 else None
        self.facts[split] = file._replace(sha256=sha256)._asdict()

    def batch(self, source, number, members, **how):
        path = f"videos/{source}/batch_{number}.tar.gz"
        self.hub.files[SEED][path] = tar(members, **how)

    def get(self, *arguments, facts=None, offline=False, token=None):
        """What `python -m lib.data get` does: returncode, stdout, stderr."""
        given = ["get", str(self.folder), *(arguments or ("--what", "evaluation"))]
        facts = self.facts if facts is None else facts
        official = {k: seed_bench.Official(**v) for k, v in facts.items()}
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", self.hub.endpoint)
            place = f"{self.hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            if token:
                patch.setenv("HF_TOKEN", token)
            patch.setattr(seed_bench, "OFFICIAL", official)
            with redirect_stdout(out), redirect_stderr(err):
                code = main(given)
        return SimpleNamespace(
            returncode=code, stdout=out.getvalue(), stderr=err.getvalue()
        )

    def accept(self, *what, **how):
        what = what or ["evaluation"]
        return self.get("--what", *what, "--accept-licences", **how)

    def start(self, path, cut):
        """`get` in a process of its own; the hub has sent it `cut` bytes of a file."""
        self.hub.cuts[path] = [-cut]
        kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        ours = {"HF_ENDPOINT": self.hub.endpoint, "HF_HUB_OFFLINE": "0"}
        given = ["get", str(self.folder), "--what", "L2", "--accept-licences"]
        running = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(self.facts), *given],
            cwd=paths.ROOT,
            env=kept | ours | {"HF_HOME": str(self.home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore interrupts, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.hub.reached[path].wait(60)
        return running

    def present(self):
        """The media of the folder, relative, with nothing left over beside them."""
        tops = ("videos", "images", "general")
        found = [p for top in tops for p in (self.folder / top).rglob("*")]
        return {str(p.relative_to(self.folder)) for p in found if p.is_file()}


@pytest.fixture
def world(tmp_path, media):
    """All as it should be; clips lie in folders of their own, stills in a zip file."""
    hub = Hub()
    made = World(hub, tmp_path / "data", tmp_path / "home")
    for split, rows in annotations().items():
        made.publish(split, rows)
    hub.files[SEED]["README.md"] = b"a card"
    folder = (special(tarfile.DIRTYPE, "./"), b"")
    made.batch(EPIC, 1, [folder, ("out/a/0.mp4", media["0.mp4"])])
    others = [("2.mp4", media["2.mp4"]), ("not UTF-8 \udcff.mp4", b"x" * 300)]
    made.batch(EPIC, 2, others)
    made.batch(EPIC, 10, [("1.mp4", media["1.mp4"])])
    made.batch(EPIC, 11, [("7.mp4", b"x" * 300)])
    ego = [(f"{EGO}_flatten/{name}", media[name]) for name in NAMES]
    made.batch(EGO, 1, ego)
    stills = [n.replace("mp4", "png") for n in NAMES]
    all_stills = [(f"images/{s}/{n}", media[n]) for s in (EPIC, EGO) for n in stills]
    hub.files[SEED]["images.zip"] = zipped(all_stills)
    yield made
    hub.close()


EVALUATION = {
    *(f"videos/{EPIC}/{n}.mp4" for n in (0, 1)),
    *(f"images/{EPIC}/{n}.png" for n in (0, 1)),
    *(f"videos/{EGO}/{n}" for n in ("0.mp4", "1.mp4", "clip é 3.mp4")),
    *(f"images/{EGO}/{n}" for n in ("0.png", "1.png", "clip é 3.png")),
}
TRAINING = {f"videos/{EPIC}/2.mp4", f"images/{EPIC}/2.png"}


def large_batch(world):
    """An archive of 24 MB: huggingface_hub writes what arrives in blocks of 10 MiB."""
    path = f"videos/{EGO}/batch_1.tar.gz"
    members = [("0.mp4", os.urandom(12 * MIB)), (NAMES[3], os.urandom(12 * MIB))]
    world.batch(EGO, 1, members, mode="w")
    return path


def ok(ran):
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def error(ran):
    """The last line of a call that must fail, without a traceback."""
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


# --- as it should be ------------------------------------------------------------------


def test_it_says_what_it_will_do_and_waits_for_the_licences(world):
    said = ok(world.get("--what", "L2", "L3", "--dry-run"))
    assert f"{world.folder} (" in said and " free)" in said
    assert f"annotations at {PINNED}" in said and f"media at {NEWEST}" in said
    assert "validation_L2.jsonl (920 kB)" in said
    assert f"videos/{EGO}: at most" in said and EPIC not in said.split("licence")[0]
    assert "CC BY-NC 4.0" in said and "ego4d-license" in said
    refused = world.get("--what", "L2")
    assert "--accept-licences" in error(refused)
    assert not world.folder.exists()
    assert world.hub.requests == []


def test_it_lays_files_out_as_the_readers_expect(world, media):
    said = ok(world.accept())
    assert "10 of 10 files there" in said
    assert world.present() == EVALUATION
    assert not list(world.folder.rglob("*.part"))
    assert not [p for p in (world.folder / ".downloads").rglob("*") if p.is_file()]
    for level in ("L1", "L2", "L3"):
        path = world.folder / f"annotations/validation_{level}.jsonl"
        for item in questions.read_validation(path, world.folder, level):
            assert item.video.read_bytes() == media[item.video.name]
            assert item.image.read_bytes() == media[item.image.name]
    questions.read_training(world.folder / "annotations/training.jsonl", world.folder)
    demonstrations = world.folder / "annotations/training_with_cot.jsonl"
    questions.read_demonstrations(demonstrations, world.folder)
    book = json.loads((world.folder / "downloads.json").read_text())
    facts = book["annotations"]["annotations/training.jsonl"]
    assert facts["path"] == "annotations/training_6k.jsonl"
    assert facts["sha256"] == world.facts["training"]["sha256"]
    assert book["commits"][SEED] == {"annotations": PINNED, "media": NEWEST}


def test_it_stops_once_nothing_is_missing(world):
    ok(world.accept())
    batches = [p for p in dict.fromkeys(world.hub.fetched(".gz")) if EPIC in p]
    assert [p.split("_")[1] for p in batches] == ["1.tar.gz", "2.tar.gz", "10.tar.gz"]


def test_a_second_call_asks_the_hub_nothing(world):
    ok(world.accept())
    world.hub.close()
    assert "10 of 10 files there" in ok(world.get())


def test_later_questions_cost_only_the_archives_that_hold_them(world):
    ok(world.accept())
    world.hub.requests.clear()
    ok(world.get("--what", "evaluation", "training_6k"))  # licences are remembered
    assert world.present() == EVALUATION | TRAINING
    media = [p for p in dict.fromkeys(world.hub.fetched()) if "annotations" not in p]
    assert media == ["images.zip", f"videos/{EPIC}/batch_2.tar.gz"]


def test_what_no_archive_holds_is_said_once_all_were_read(world):
    world.batch(EPIC, 10, [("8.mp4", b"x" * 300)])
    said = ok(world.accept("L1"))
    assert "1 are in no archive" in said
    assert f"videos/{EPIC}/1.mp4" in said
    world.hub.requests.clear()
    assert "1 are in no archive" in ok(world.get("--what", "L1"))
    assert world.hub.requests == []


def test_the_token_goes_to_the_hub_and_not_to_its_storage(world):
    ok(world.accept("L2", token="hf_secret"))
    assert world.hub.tokens == {("api", True), ("datasets", True), ("cdn", False)}


def test_after_a_kill_the_next_call_goes_on(world):
    path = large_batch(world)
    running = world.start(path, 15 * MIB)
    (part,) = (world.folder / ".downloads").glob("*.part")
    for _ in range(600):  # what was sent is not yet written
        if part.stat().st_size:
            break
        time.sleep(0.1)
    running.kill()
    running.communicate()
    assert part.stat().st_size == 10 * MIB
    ok(world.get("--what", "L2"))
    asked = [span for name, span in world.hub.requests if name == path]
    assert asked == [None, f"bytes={10 * MIB}-"]
    assert {f"videos/{EGO}/0.mp4", f"videos/{EGO}/clip é 3.mp4"} <= world.present()


def test_a_second_process_is_kept_out_and_an_interrupt_is_no_traceback(world):
    running = world.start(f"videos/{EGO}/batch_1.tar.gz", 700)
    assert "another process" in error(world.get("--what", "L2"))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "goes on from here" in said and "Traceback" not in said


# --- broken connections and contents --------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_where_it_broke(world):
    path = large_batch(world)
    world.hub.cuts[path] = [11 * MIB, 11 * MIB]
    ok(world.accept("L2"))
    asked = [span for name, span in world.hub.requests if name == path]
    assert asked == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]


def test_a_connection_that_breaks_again_and_again_is_said(world):
    world.hub.cuts["annotations/validation_L1.jsonl"] = [100] * 20
    said = error(world.accept())
    assert f"validation_L1.jsonl: the connection to {world.hub.endpoint}" in said
    assert "what has arrived is kept, and the same command goes on from there" in said


CONTENTS = {
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a web page": b"<!DOCTYPE html><html>Sign in</html>",
    "3 bytes": b"abc",
}


@pytest.mark.parametrize("what", CONTENTS)
def test_another_content_is_named_and_deleted(world, what):
    path = "annotations/validation_L1.jsonl"
    world.hub.served[path] = CONTENTS[what]
    said = error(world.accept())
    assert f"{SEED}: {path}: received {what}; expected" in said
    assert list((world.folder / "annotations").iterdir()) == []
    del world.hub.served[path]
    ok(world.get())


@pytest.mark.parametrize(
    "path", ["annotations/validation_L2.jsonl", f"videos/{EGO}/batch_1.tar.gz"]
)
def test_a_flipped_byte_is_found(world, path):
    data = bytearray(world.hub.files[SEED][path])
    data[50] ^= 1
    world.hub.served[path] = bytes(data)
    said = error(world.accept("L2"))
    assert f"{path}: received {len(data):,} bytes with another hash" in said
    assert not list(world.folder.rglob("*.part"))
    assert not (world.folder / "videos").exists()
    del world.hub.served[path]
    ok(world.get("--what", "L2"))


def test_a_hub_that_lists_another_file_than_the_official_one(world):
    world.facts["L2"]["sha256"] = "0" * 64
    said = error(world.accept())
    assert "validation_L2.jsonl" in said and "the official file has 000" in said


def test_the_official_figures_are_those_that_are_asked_for(world):
    facts = {split: file._asdict() for split, file in seed_bench.OFFICIAL.items()}
    assert facts["L2"]["sha256"] in error(world.accept("L2", facts=facts))


def test_an_annotation_file_that_was_changed_is_not_overwritten(world):
    ok(world.accept("L2"))
    path = world.folder / "annotations/validation_L2.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    assert f"{path} is not the official file (920 kB" in error(
        world.get("--what", "L2")
    )
    path.unlink()
    ok(world.get("--what", "L2"))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ((401, "GatedRepo"), f"accept it at https://huggingface.co/datasets/{SEED}, "),
        ((401, "GatedRepo"), "run `hf auth login` or set HF_TOKEN"),
        ((401, ""), "answered 401"),
        ((401, ""), "log in with `hf auth login` or set HF_TOKEN"),
        ((404, "EntryNotFound"), "answered 404"),
        ((404, "EntryNotFound"), "look whether the hub still lists that file"),
        ((500, ""), "answered 500"),
    ],
)
def test_a_refusal_names_the_file_and_what_to_do(world, status, words):
    path = "annotations/validation_L1.jsonl"
    world.hub.status[path] = status
    said = error(world.accept())
    assert f"{SEED}: {path}: " in said and words in said
    del world.hub.status[path]
    ok(world.get())


def test_offline_is_said(world):
    assert "HF_HUB_OFFLINE is set" in error(world.accept(offline=True))


def test_a_portal_in_place_of_the_hub_is_said(world):
    world.hub.portal = True
    assert f"{world.hub.endpoint} did not answer as a hub" in error(world.accept())


def test_a_folder_that_cannot_be_made_is_said(world):
    world.folder.write_text("a file")
    assert str(world.folder) in error(world.accept())


# --- archives -------------------------------------------------------------------------


BAD_MEMBERS = {
    "parent": ("../0.mp4", "leads out"),
    "deep parent": ("a/../../0.mp4", "leads out"),
    "absolute": ("/tmp/0.mp4", "leads out"),
    "backslash": ("..\\0.mp4", "leads out"),
    "symlink": (special(tarfile.SYMTYPE, "0.mp4", "/etc/passwd"), "is a link"),
    "hard link": (special(tarfile.LNKTYPE, "0.mp4", "x.mp4"), "is a link"),
    "device": (special(tarfile.CHRTYPE, "0.mp4"), "is a link, a device"),
    "pipe": (special(tarfile.FIFOTYPE, "0.mp4"), "is a link, a device"),
    "long name": ("a" * 300 + ".mp4", "too long"),
}


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_a_member_that_is_no_plain_file_within_stops_it(world, media, kind):
    member, words = BAD_MEMBERS[kind]
    data = media["0.mp4"] if isinstance(member, str) else b""
    world.batch(EGO, 1, [("3.mp4", media["1.mp4"]), (member, data)])
    said = error(world.accept("L2"))
    name = member if isinstance(member, str) else member.name
    assert f"videos/{EGO}/batch_1.tar.gz: the member {faults.shown(name)}" in said
    assert words in said
    assert not list(world.folder.parent.rglob("0.mp4"))


def test_a_zip_member_that_is_a_link_or_leads_out(world, media):
    for name, mode in (("images/0.png", stat.S_IFLNK), ("../0.png", stat.S_IFREG)):
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16
        world.hub.files[SEED]["images.zip"] = zipped([(info, media["0.png"])])
        said = error(world.accept("L2"))
        assert f"images.zip: the member '{name}'" in said
        assert not (world.folder / "images").exists()


@pytest.mark.parametrize(
    ("mode", "share"), [("w:gz", 0.3), ("w:gz", 0.99), ("w", 0.3), ("w", 0.8)]
)
def test_an_archive_that_ends_too_early(world, media, share, mode):
    path = f"videos/{EGO}/batch_1.tar.gz"
    world.batch(EGO, 1, [("9.mp4", b"x"), ("0.mp4", os.urandom(50_000))], mode=mode)
    whole = world.hub.files[SEED][path]
    world.hub.files[SEED][path] = whole[: int(len(whole) * share)]
    assert f"{path}: cannot be read to its end" in error(world.accept("L2"))
    assert not [name for name in world.present() if name.startswith("videos")]


@pytest.mark.parametrize("there", [False, True])
def test_two_members_for_one_place_leave_it_as_it_was(world, media, there):
    second = media["0.mp4" if there else "1.mp4"]
    world.batch(EGO, 1, [("a/0.mp4", media["0.mp4"]), ("b/0.mp4", second)])
    path = world.folder / f"videos/{EGO}/0.mp4"
    if there:
        path.parent.mkdir(parents=True)
        path.write_bytes(media["0.mp4"])
    for get in (world.accept, lambda _: world.get("--what", "L2")):
        assert "'a/0.mp4' and 'b/0.mp4' would both be" in error(get("L2"))
        assert path.exists() == there
    assert not there or path.read_bytes() == media["0.mp4"]


def test_a_place_taken_by_another_size_is_not_overwritten(world, media):
    world.batch(EGO, 1, [("0.mp4", media["0.mp4"])])
    world.batch(EGO, 2, [("0.mp4", b"x" * 300)])
    said = error(world.accept("L2"))
    assert f"videos/{EGO}/batch_2.tar.gz: the member '0.mp4' has 300 bytes" in said
    assert (world.folder / f"videos/{EGO}/0.mp4").read_bytes() == media["0.mp4"]


def test_a_still_that_could_be_of_either_source(world, media):
    world.hub.files[SEED]["images.zip"] = zipped([("0.png", media["0.png"])])
    said = error(world.accept("L1", "L2"))
    assert "images.zip: '0.png' could be" in said and EPIC in said and EGO in said


def of_method(data, method, version=20):
    """A zip file whose members say that they are packed in another way."""
    data = bytearray(data)
    for head, at in ((b"PK\3\4", 4), (b"PK\1\2", 6)):
        start = data.index(head) + at
        struct.pack_into("<H", data, start, version)
        struct.pack_into("<H", data, start + 4, method)
    return bytes(data)


def test_an_archive_that_cannot_be_used_does_not_stop_the_others(world, media):
    """One of each kind comes before the sound one; the end names them all."""
    listed = world.hub.files[SEED]
    sound = listed.pop(f"videos/{EGO}/batch_1.tar.gz")
    listed[f"videos/{EGO}/batch_99.tar.gz"] = sound
    members = [("0.mp4", os.urandom(400))]
    stored = bytearray(gzip.compress(tar([("0.mp4", b"x" * 4000)], mode="w"), 0))
    stored[2000] ^= 1
    bad = {
        "1.tar": (sparse("0.mp4", 10**9), "sparse"),
        "2.zip": (of_method(zipped(members), 9), "method is not supported"),
        "3.zip": (of_method(zipped(members), 99), "method is not supported"),
        "4.zip": (of_method(zipped(members), 8, 200), "zip file version 20.0"),
        "5.tar.gz": (bytes(stored), "CRC check failed"),
        "6.tar": (tar(members), "answered 404"),
        "7.tar": (tar([("1.mp4", b"y")] * 40), "lists '../../../EVL' as its digest"),
        "8.tar.gz.part_02": (tar(members), "not all of its parts"),
        "9.7z": (b"7z" * 100, "7z, rar or spanned zip file is not read"),
        "10.tar": (b"<html>" * 100, "cannot be read to its end"),
        "11.tar": (tar(members), "received a web page"),
    }
    for name, (data, _) in bad.items():
        world.hub.files[SEED][f"videos/{EGO}/batch_{name}"] = data
    world.hub.status[f"videos/{EGO}/batch_6.tar"] = (404, "EntryNotFound")
    world.hub.digests[f"videos/{EGO}/batch_7.tar"] = "../../../EVL"
    world.hub.served[f"videos/{EGO}/batch_11.tar"] = CONTENTS["a web page"]
    ran = world.accept("L2")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "4 of 4 files there" in ran.stdout
    assert (world.folder / f"videos/{EGO}/0.mp4").read_bytes() == media["0.mp4"]
    said = ran.stderr.splitlines()[-len(bad) :]
    for line, (name, (_, words)) in zip(said, bad.items(), strict=True):
        assert f"videos/{EGO}/batch_{name.split('02')[0]}" in line and words in line
    assert not [p for p in world.folder.parent.iterdir() if "EVL" in p.name]


def test_what_a_kill_left_is_swept_and_nothing_else(world, media):
    left, mine = download.UNFINISHED, ".unfinished-mine"
    folder = world.folder / f"videos/{EGO}"
    folder.mkdir(parents=True)
    for name in (left, mine):
        (folder / name).write_bytes(b"half")
    ok(world.accept("L2"))
    assert {p.name for p in folder.iterdir()} == {"0.mp4", NAMES[3], mine}


# --- the forms in which a hub can hold stills and clips -------------------------------


MEMBERS = [(f"a/{number}.png", os.urandom(2000 + number)) for number in range(5)]
TAR = tar(MEMBERS, mode="w")
FORMS = {
    "tar": TAR,
    "tar.gz": gzip.compress(TAR + bytes(3 * MIB)),  # its checksum is far behind
    "tar.bz2": bz2.compress(TAR),
    "tar.xz": lzma.compress(TAR),
    "tar.zst": pyarrow.compress(TAR, codec="zstd", asbytes=True),
    "zip": zipped(MEMBERS),
}


def unpacked(pieces, folder, members=MEMBERS):
    """{name: bytes} of an archive in pieces that were downloaded before."""
    parts = []
    for number, data in enumerate(pieces):
        sha256 = hashlib.sha256(data).hexdigest()
        parts.append(HubFile(SEED, NEWEST, f"x.{number}", len(data), sha256))
        (folder / f"{sha256[:12]}-x.{number}").write_bytes(data)
    archive = download.Archive("x", tuple(parts), ("images",))
    place = {name: folder / "out" / name for name, _ in members}
    list(download.unpack(archive, folder, place.get))
    there = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(p.relative_to(folder / "out")): p.read_bytes() for p in there}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 40])
def test_every_form_is_read_whole_and_in_parts(form, count, tmp_path):
    data = FORMS[form]
    size = -(-len(data) // count)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert unpacked(pieces, tmp_path) == dict(MEMBERS)


def test_a_wanted_file_of_any_name_arrives(tmp_path):
    names = [".unfinished", ".unfinished-" + "0" * 16, "0.mp4.part", "~", "x" * 255]
    members = [(name, name.encode() * 9) for name in (*names, "0.mp4", ".0.mp4.tmp")]
    data = tar(members, mode="w")
    for form in (data, gzip.compress(data), zipped(members)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        assert unpacked([form], folder, members) == dict(members)


STRANGE = ["../../../EVL", "", None, "0" * 63, "g" * 64, "0" * 65, "\uff10" * 64, 7]


@pytest.mark.parametrize("digest", STRANGE)
def test_a_digest_that_is_none_is_never_a_path(digest, tmp_path):
    part = HubFile(SEED, NEWEST, "images.tar", 1, digest)
    archive = download.Archive("x", (part, part), ("images",))
    for use in (archive.fetch_part, lambda _, store: archive.drop_parts(store, 2)):
        with pytest.raises(download.ArchiveError, match=r"images.tar: the hub lists"):
            use(0, tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_damaged_byte_of_a_member_is_never_handed_on(form, tmp_path):
    """The others have no checksum: of tar.zst it is optional."""
    data = bytearray(FORMS[form])
    data[len(data) // 2] ^= 255
    with pytest.raises(download.ArchiveError):
        unpacked([bytes(data)], tmp_path)
    there = {f"a/{path.name}": path.read_bytes() for path in tmp_path.glob("out/a/*")}
    assert there.items() <= dict(MEMBERS).items()


def series(form, *numbers):
    return [form.format(number) for number in numbers]


TEN = range(1, 11)
# What a hub lists, in another order, and the archives that it means.
NAMED = [
    [["images.tar.xz"], ["images.TAR.ZST"], ["stills/EPIC-KITCHENS.tbz2"]],
    [series("images.tar.gz.part-a{}", *"abc")],
    [series("images.tar.gz.part_a{}", *"abc"), ["x.tar.part.aa", "x.tar.part.AB"]],
    [series("images.tar.gz.a{}", *"abc"), series("images.tar.zst.aa{}", *"abc")],
    [series("images.tar.gz{:02}", *range(12)), series("images.zip.{:03}", *TEN)],
    [series("images.tgz.part{}", *TEN), series("videos.zip.p{}", *range(10))],
    [series("images.tar.gz.part{:03}of010", *TEN)],
    [series("images.tar.gz-{:05}-of-00010", *range(10))],
    [[name] for name in series("images_part{}.tar.gz", *TEN)],
    [[name] for name in series("images-{:05}-of-00010.tar", *TEN)],
    [series("images.tar.{}", *(f"{n:02}" for n in range(90)), 9000, 9001)],
    [["images.zip"], series("images.zip.part{}", 1, 2)],
]


def listed(names):
    return {name: HubFile(SEED, NEWEST, name, 1, "0" * 64) for name in names}


def archives_of(names):
    return hub_names.sorted_out(listed(names).values())[1]


@pytest.mark.parametrize("meant", NAMED, ids=lambda meant: meant[0][0])
def test_archives_and_their_parts_are_told_by_their_names(meant):
    names = sorted((name for whole in meant for name in whole), key=hash)
    found = archives_of([*names, "images.tar.gz.md5", "images.zip.asc", "a/b.png"])
    assert not [archive.name for archive in found if archive.fault]
    parts = [[part.path for part in archive.parts] for archive in found]
    assert sorted(parts) == sorted(meant)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (series("images.tar.gz.a{}", *"bc"), "not all of its parts"),
        (series("images.tar.gz.part{}", 2, 3), "not all of its parts"),
        (series("images.tar.gz.part{}", 1, 2, 4), "not all of its parts"),
        (series("images.zip.{}", "1", "01", "2"), "some twice"),
        (series("images.tar.part{}of3", 1, 2), "not all of its parts"),
        (series("images.7z.{:03}", 1, 2), "unpack it yourself"),
        (["images.RAR"], "unpack it yourself"),
        (["images.z01", "images.z02", "images.zip"], "unpack it yourself"),
    ],
)
def test_archives_that_cannot_be_read_are_known_before(names, words):
    (archive,) = archives_of(names)
    assert words in archive.fault
    with pytest.raises(download.ArchiveError, match=words):
        list(download.unpack(archive, Path("nowhere"), print))


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        ("videos/Ego4D/batch_1.tar.gz", (f"videos/{EGO}",)),
        ("epic_kitchens_clips.zip", (f"videos/{EPIC}",)),
        ("current_observations.zip", ("images",)),
        ("images/ego4d/1.zip", (f"images/{EGO}",)),
        ("videos/frames.zip", ("images", "videos")),
        ("EpicKitchens.tar", (f"images/{EPIC}", f"videos/{EPIC}")),
    ],
)
def test_what_an_archive_may_hold_is_told_by_its_path(path, folders):
    assert archives_of([path])[0].folders == folders


def single_files(world, media):
    """Stills as files of their own; two are named alike and lie in two folders."""
    del world.hub.files[SEED]["images.zip"]
    for source in (EPIC, EGO):
        for name in (n.replace("mp4", "png") for n in NAMES):
            world.hub.files[SEED][f"images/{source}/{name}"] = media[name]
    world.hub.files[SEED]["old/ego4d/0.png"] = media["0.png"]


def test_stills_that_lie_there_as_files(world, media):
    single_files(world, media)
    said = ok(world.accept())
    assert "single files: at most" in said and "10 of 10 files there" in said
    assert world.present() == EVALUATION
    assert len(world.hub.fetched(".png")) == 5  # nobody asked for the others
    assert (world.folder / f"images/{EGO}/{NAMES[3][:-3]}png").is_file()
    assert not [p for p in (world.folder / ".downloads").rglob("*") if p.is_file()]


def test_a_still_that_cannot_be_had_does_not_stop_the_others(world, media):
    single_files(world, media)
    world.hub.status[f"images/{EPIC}/0.png"] = (404, "EntryNotFound")
    world.hub.files[SEED][f"old/{EGO}/1.png"] = media["2.png"]
    ran = world.accept()
    assert ran.returncode == 1 and "8 of 10 files there" in ran.stdout
    assert f"{SEED}: images/{EPIC}/0.png: " in ran.stderr
    assert f"'images/{EGO}/1.png' and 'old/{EGO}/1.png' would both be" in ran.stderr


# --- no stills ------------------------------------------------------------------------


def without_stills(world, **others):
    del world.hub.files[SEED]["images.zip"]
    world.hub.files[SEED] |= {name.replace("_", "."): d for name, d in others.items()}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, "none was found"),
        ({"images_7z": b"7z" * 100}, "images.7z: a 7z, rar or spanned zip file"),
        ({"images_zip": zipped([("images/9.png", b"x" * 200)])}, "none was found"),
        ({"images_tar_part2": tar([("0.png", b"x" * 200)])}, "not all of its parts"),
    ],
)
def test_without_any_still_no_clip_is_downloaded(world, there, words):
    without_stills(world, **there)
    ran = world.accept("L2")
    assert ran.returncode == 1
    assert f"images/{EGO} needs 2 stills" in ran.stderr and words in ran.stderr
    assert world.hub.fetched(".tar.gz") == []


def test_stills_of_one_source_do_not_stand_in_for_another(world, media):
    without_stills(world)
    ego = [(f"{NAMES[n][:-3]}png", media[f"{NAMES[n][:-3]}png"]) for n in (0, 1, 3)]
    world.hub.files[SEED][f"images/{EGO}.tar.xz"] = lzma.compress(tar(ego, mode="w"))
    assert f"images/{EPIC} needs 2 stills" in error(world.accept())
    assert world.hub.fetched(".tar.gz") == []
    ok(world.get("--what", "L2", "L3"))


def test_stills_put_there_by_hand_are_enough(world, media):
    without_stills(world)
    assert "stops before the archives of clips" in ok(
        world.get("--dry-run", "--what", "L2")
    )
    error(world.accept("L2"))
    for name in ("0.png", f"{NAMES[3][:-3]}png"):
        path = world.folder / f"images/{EGO}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(media[name])
    assert "4 of 4 files there" in ok(world.get("--what", "L2"))


def test_a_packed_archive_in_parts_begins_anew_after_a_fault(world, media):
    without_stills(world)
    stills = [
        (f"{EGO}/{NAMES[n][:-3]}png", media[f"{NAMES[n][:-3]}png"]) for n in (0, 3)
    ]
    data = tar([*stills, ("noise", os.urandom(3000))])
    for number, start in enumerate(range(0, len(data), 1000)):
        name = f"images.tar.gz.part{number}"
        world.hub.files[SEED][name] = data[start : start + 1000]
    world.hub.status["images.tar.gz.part2"] = (404, "EntryNotFound")
    assert "images.tar.gz.part2: " in error(world.accept("L2"))
    world.hub.status.clear()
    ok(world.get("--what", "L2"))
    assert (world.folder / f"images/{EGO}/0.png").read_bytes() == media["0.png"]


def test_a_packed_archive_in_parts_is_read_to_its_checksum(world, media):
    """Its wanted members come long before."""
    without_stills(world)
    names = [f"{NAMES[n][:-3]}png" for n in (0, 3)]
    stills = tar([(f"{EGO}/{name}", media[name]) for name in names], mode="w")
    data = bytearray(gzip.compress(stills + bytes(2 * MIB), 0))
    data[600] ^= 1
    for number in (1, 2):
        part = bytes(data[:MIB] if number == 1 else data[MIB:])
        world.hub.files[SEED][f"images.tar.gz.{number}"] = part
    assert "CRC check failed" in error(world.accept("L2"))
    assert not list(world.folder.glob("images/*/*.png"))


# --- the disk -------------------------------------------------------------------------


def test_a_disk_without_room_is_said_before_anything_is_written(world, monkeypatch):
    room = SimpleNamespace(total=10**9, used=10**9, free=200)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    said = error(world.accept("L2"))
    assert "not enough disk space" in said and "200B are free" in said
    assert not list(world.folder.rglob("*.part"))


def test_a_disk_that_fills_while_writing(world):
    world.batch(EGO, 1, [("0.mp4", os.urandom(400_000))])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        said = error(world.accept("L2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{SEED}: videos/{EGO}/batch_1.tar.gz: File too large" in said
    (part,) = (world.folder / ".downloads").glob("*.part")
    assert 0 < part.stat().st_size <= 100_000
    ok(world.get("--what", "L2"))
    assert (world.folder / f"videos/{EGO}/0.mp4").stat().st_size == 400_000


# --- LongVideoBench -------------------------------------------------------------------


def publish_general(world, count=6, part=40_000):
    world.publish("general", [lvb(number) for number in range(count)])
    clips = {f"g{n}.mp4": os.urandom(30_000 + n) for n in range(count)}
    members = [(f"videos/{name}", data) for name, data in clips.items()]
    members.append(("videos/of_the_test_set.mp4", os.urandom(90_000)))
    whole = tar(members, mode="w")
    for i, start in enumerate(range(0, len(whole), part)):
        name = f"videos.tar.part.a{'abcdefghij'[i]}"
        world.hub.files[LONG][name] = whole[start : start + part]
    texts = [(f"subtitles/g{n}_en.json", b"[]" * 99) for n in range(count)]
    world.hub.files[LONG]["subtitles.tar"] = tar(texts, mode="w")
    return clips


def test_the_general_set_comes_in_parts_and_without_subtitles(world):
    clips = publish_general(world)
    said = ok(world.accept("longvideobench"))
    assert "CC BY-NC-SA 4.0" in said and "Ego4D" not in said
    expected = {f"general/videos/{name}" for name in clips} | {"general/lvb_val.json"}
    assert world.present() == expected
    for item in questions.read_general(
        world.folder / "general/lvb_val.json", world.folder / "general"
    ):
        assert item.video.read_bytes() == clips[item.video.name]
    parts = world.hub.fetched("h") + world.hub.fetched("subtitles.tar")
    assert parts == []  # those after the last wanted clip
    ok(world.get("--what", "longvideobench", "--subtitles"))
    assert len(list((world.folder / "general/subtitles").iterdir())) == len(clips)


def test_the_general_set_goes_on_in_the_part_where_it_stopped(world):
    clips = publish_general(world)
    world.hub.status["videos.tar.part.ad"] = (404, "EntryNotFound")
    assert "videos.tar.part.ad: " in error(world.accept("longvideobench"))
    stored = {p.name[13:] for p in (world.folder / ".downloads").iterdir()}
    assert stored == {"videos.tar.part.ac", "videos.tar.part.ad.part"}
    del world.hub.status["videos.tar.part.ad"]
    world.hub.requests.clear()
    ok(world.get("--what", "longvideobench"))
    assert {p.name for p in (world.folder / "general/videos").iterdir()} == set(clips)
    assert not set(world.hub.fetched()) & {f"videos.tar.part.a{x}" for x in "abc"}


# --- checking -------------------------------------------------------------------------


def by_split(found):
    return {report["split"]: report for report in found}


def test_check_counts_what_is_missing_damaged_and_too_short(world, media, tmp_path):
    ok(world.accept("evaluation", "training_6k"))
    videos = world.folder / "videos"
    (videos / EPIC / "0.mp4").unlink()
    (videos / EPIC / "1.mp4").write_bytes(b"")
    (videos / EGO / "0.mp4").write_bytes(CONTENTS["a web page"])
    whole = media["1.mp4"]
    (videos / EGO / "1.mp4").write_bytes(whole[: len(whole) // 2])
    (world.folder / "images" / EGO / "1.png").write_bytes(b"no picture")
    write_one_frame(videos / EGO / NAMES[3])

    quick = by_split(inventory.check(world.folder))
    none = {"missing": 0, "damaged": 0, "too short": 0}
    assert quick["validation_L1"]["videos"] == {"needed": 2, **none} | {
        "missing": 1,
        "damaged": 1,
    }
    assert quick["validation_L2"]["videos"] == {"needed": 2, **none}
    assert quick["training"]["videos"] == {"needed": 1, **none}

    deep = by_split(inventory.check(world.folder, decode=True))
    assert deep["validation_L2"]["videos"] == {"needed": 2, **none} | {
        "damaged": 1,
        "too short": 1,
    }
    assert deep["validation_L3"]["videos"]["damaged"] == 1
    assert deep["validation_L3"]["stills"] == {"needed": 1, **none, "damaged": 1}
    why = deep["validation_L2"]["unreadable"][str(videos / EGO / "0.mp4")]
    assert "web page" in why
    assert deep["training"]["unreadable"] == {}
    table = inventory.media_table(list(deep.values()))
    (line,) = [x for x in table.splitlines() if "validation_L2" in x]
    counts = [cell.strip() for cell in line.strip("|").split("|")]
    assert list(map(int, counts[1:])) == [2, 2, 0, 0, 2, 0, 1, 1, 2, 0, 0]


def write_one_frame(path):
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((56, 56, 3), np.uint8), "rgb24")
        container.mux(stream.encode(black))
        container.mux(stream.encode())


def test_the_check_command_prints_tables_or_json(world, capsys):
    ok(world.accept())
    assert main(["check", str(world.folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)  # no training clip was asked for
    assert report["folder"] == str(world.folder) and report["decoded"] is False
    assert by_split(report["splits"])["training"]["videos"]["missing"] == 1
    ok(world.get("--what", "training_6k"))
    assert main(["check", str(world.folder), "--decode"]) == 0
    said = capsys.readouterr().out
    assert "| validation_L3 " in said and "--decode" not in said


def test_check_of_a_folder_that_is_none(tmp_path, capsys):
    assert main(["check", f"{tmp_path}/nowhere"]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path}/nowhere/annotations is missing" in said


@pytest.mark.parametrize("command", ["lib.data", "lib.mini"])
def test_a_door_says_what_is_behind_it(command):
    ran = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    words = ["write", "base", "Same seed, same bytes"]
    if command != "lib.mini":
        words = ["get", "check", "epic", "HF_TOKEN", "530 +- 110 GB"]
        words += [licence for texts in LICENCES.values() for licence in texts]
    said = " ".join(ran.stdout.split())
    assert ran.returncode == 0 and not [word for word in words if word not in said]


def test_check_counts_faults_repeats_and_unusable_records(tmp_path):
    rows = [record(0, EPIC), record(0, EPIC) | {"sample_id": 5}, record(1, EPIC)]
    rows[2]["choice_a"] = rows[2]["choice_c"]
    rows.append(record(2, EPIC) | {"golden_choice_idx": "E"})
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/validation_L1.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (report,) = inventory.check(tmp_path)
    assert (report["records"], report["usable"]) == (4, 3)
    assert report["duplicates"] == 1
    counted = {(f["field"], f["usable"]): f["count"] for f in report["faults"]}
    assert counted == {
        ("video_id", True): 1,
        ("choice_c", True): 1,
        ("golden_choice_idx", False): 1,
    }
    assert "UNUSABLE" in inventory.fault_table([report])


def test_the_known_faults_of_real_records(tmp_path):
    sample = paths.ROOT.parent / "shared/data/validation_L1.sample.jsonl"
    if not sample.exists():
        pytest.skip(f"{sample} is not here: its licence keeps it out of the repository")
    (tmp_path / "annotations").mkdir()
    copy = tmp_path / "annotations/validation_L1.jsonl"
    copy.write_bytes(sample.read_bytes())
    rows = [json.loads(line) for line in copy.read_text().splitlines()]
    line = {row["sample_id"]: number for number, row in enumerate(rows, 1)}
    (report,) = inventory.check(tmp_path)
    assert (report["records"], report["usable"]) == (200, 200)

    counted = {f["expected"]: f for f in report["faults"]}
    narrations = counted["the key narration_text"]
    assert (narrations["count"], narrations["records"]) == (5, 1)
    assert narrations["first_line"] == line[60]
    equal = counted["different options"]
    assert (equal["count"], equal["first_line"]) == (1, line[1597])
    negative = counted["an observation after the clip's start"]
    assert (negative["count"], negative["first_line"]) == (1, line[2390])

    # independent counts of the notes
    steps = [(row, row["task_progress_metadata"]) for row in rows]
    steps = [(row[FRAME], found) for row, found in steps if found]
    notes, counts = report["notes"], Counter()
    for limit in (15, 30, 60):
        note = f"clip of at most {limit} frames by its labels"
        counts[note] = sum(
            end - found[0]["start_frame"] <= limit for end, found in steps
        )
    counts["steps overlap"] = sum(
        any(b["start_frame"] < a["stop_frame"] for a, b in pairwise(found))
        for _, found in steps
    )
    counts["the last step stops before or after the observation"] = sum(
        end != found[-1]["stop_frame"] for end, found in steps
    )
    assert min(counts.values()) > 0 and counts.items() <= notes.items()
    assert report["without_video"] == 200 - len(steps)
