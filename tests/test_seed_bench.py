"""Getting the benchmark from a miniature hub, whole or broken; and what check says."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from full_disk import full_disk
from huggingface_hub import constants
from made_films import write_film
from made_hub import NEWEST, PINNED, Hub
from test_questions import MAKE, demonstration, general

from lib import chain, paths
from lib.data import (
    download,
    faults,
    hub_names,
    inventory,
    parts,
    questions,
    seed_bench,
)
from lib.data.__main__ import main
from lib.data.download import HubFile

SEED, LONG = hub_names.SEED_BENCH, hub_names.LONG_VIDEO_BENCH
EPIC, EGO = hub_names.SOURCES
OFFICIAL, MIB = seed_bench.OFFICIAL, 2**20
# What a clip is called in the fourth record is not ASCII and has blanks.
NAMES = ["0.mp4", "1.mp4", "2.mp4", "clip é 3.mp4"]
STILLS = [name.replace("mp4", "png") for name in NAMES]
START = (
    "import json, sys; from lib.data import seed_bench as s;"
    "from lib.data.__main__ import main;"
    "facts = json.loads(sys.argv[1]);"
    "s.OFFICIAL = {k: s.Official(*v) for k, v in facts.items()};"
    "sys.exit(main(sys.argv[2:]))"
)


@pytest.fixture(scope="module")
def media(tiny_questions):
    """{name: bytes} of four real clips and their stills."""
    asked = [question for question in tiny_questions if question.video]
    found = {n: q.video.read_bytes() for n, q in zip(NAMES, asked, strict=True)}
    return found | {n: q.image.read_bytes() for n, q in zip(STILLS, asked, strict=True)}


def record(number, source, kind="L1", **more):
    names = {"video_basename": NAMES[number], faults.STILL: STILLS[number]}
    return MAKE[kind](number) | {"video_source": source, **names, **more}


def annotations():
    """{split: records}: L1 and training need clips of EPIC, L2 and L3 of Ego4D."""
    return {
        "L1": [record(0, EPIC), record(1, EPIC)],
        "L2": [record(0, EGO), record(3, EGO)],
        "L3": [record(1, EGO, "L3")],
        "training": [record(2, EPIC, "training")],
        "demonstrations": [demonstration(2, EPIC)],
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


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members:
            file.writestr(name, data)
    return out.getvalue()


class World:
    """A hub, a folder to download into, and the official figures of what it serves."""

    def __init__(self, folder, capsys):
        self.hub, self.folder, self.official = Hub(), folder / "data", {}
        self.printed = capsys.readouterr
        self.seed = self.hub.files[SEED]  # {path: bytes}

    def publish(self, split, rows):
        file = OFFICIAL[split]
        text = "\n".join(json.dumps(row) for row in rows).encode()
        data = json.dumps(rows).encode() if split == "general" else text
        self.hub.files[file.repo][file.path] = data
        sha256 = hashlib.sha256(data).hexdigest() if file.sha256 else None
        self.official[split] = file._replace(sha256=sha256)

    def batch(self, source, number, members, **how):
        self.seed[f"videos/{source}/batch_{number}.tar.gz"] = tar(members, **how)

    def get(self, *what):
        """What `python -m lib.data get` does: returncode, stdout, stderr."""
        code = main(["get", str(self.folder), "--what", *(what or ["evaluation"])])
        out, err = self.printed()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    def accept(self, *what):
        return self.get(*(what or ["evaluation"]), "--accept-licences")

    def start(self, path, cut):
        """`get` in a process of its own; the hub has sent it `cut` bytes of a file."""
        self.hub.cuts[path] = [-cut]
        kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        ours = {"HF_ENDPOINT": self.hub.endpoint, "HF_HUB_OFFLINE": "0"}
        given = ["get", str(self.folder), "--what", "L2", "--accept-licences"]
        running = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(self.official), *given],
            cwd=paths.ROOT,
            env=kept | ours | {"HF_HOME": str(self.folder.with_name("home"))},
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
def world(tmp_path, media, monkeypatch, capsys):
    """All as it should be; clips lie in folders of their own, stills in a zip file."""
    made = World(tmp_path, capsys)
    place = f"{made.hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", made.hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(seed_bench, "OFFICIAL", made.official)
    monkeypatch.setattr(download, "WAITS", (0, 0, None))
    for split, rows in annotations().items():
        made.publish(split, rows)
    made.seed["README.md"] = b"a card"
    folder = (special(tarfile.DIRTYPE, "./"), b"")
    made.batch(EPIC, 1, [folder, ("out/a/0.mp4", media["0.mp4"])])
    others = [("2.mp4", media["2.mp4"]), ("not UTF-8 \udcff.mp4", b"x" * 300)]
    made.batch(EPIC, 2, others)
    made.batch(EPIC, 10, [("1.mp4", media["1.mp4"])])
    made.batch(EPIC, 11, [("7.mp4", b"x" * 300)])
    made.batch(EGO, 1, [(f"{EGO}_flatten/{name}", media[name]) for name in NAMES])
    stills = [(f"images/{s}/{n}", media[n]) for s in (EPIC, EGO) for n in STILLS]
    made.seed["images.zip"] = zipped(stills)
    yield made
    made.hub.close()


EVALUATION = {
    *(f"videos/{EPIC}/{NAMES[n]}" for n in (0, 1)),
    *(f"images/{EPIC}/{STILLS[n]}" for n in (0, 1)),
    *(f"videos/{EGO}/{NAMES[n]}" for n in (0, 1, 3)),
    *(f"images/{EGO}/{STILLS[n]}" for n in (0, 1, 3)),
}
TRAINING = {f"videos/{EPIC}/2.mp4", f"images/{EPIC}/2.png"}
OF_EGO = f"videos/{EGO}/batch_1.tar.gz"


def large_batch(world):
    """An archive of 24 MB: huggingface_hub writes what arrives in blocks of 10 MiB."""
    members = [("0.mp4", os.urandom(12 * MIB)), (NAMES[3], os.urandom(12 * MIB))]
    world.batch(EGO, 1, members, mode="w")


def asked(world, path=OF_EGO):
    """The ranges in which a file was asked for."""
    return [span for name, span in world.hub.requests if name == path]


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
    said = ok(world.get("L2", "L3", "--dry-run"))
    assert f"{world.folder} (" in said and " free)" in said
    assert f"annotations at {PINNED}" in said and f"media at {NEWEST}" in said
    assert "validation_L2.jsonl (920 kB)" in said
    assert f"videos/{EGO}: at most" in said and EPIC not in said.split("licence")[0]
    assert "CC BY-NC 4.0" not in said and "ego4d-license" in said
    assert "--accept-licences" in error(world.get("L2"))
    assert not world.folder.exists()
    assert world.hub.requests == []


def test_it_gets_what_the_readers_expect_and_no_more(world, media):
    assert "10 of 10 files there" in ok(world.accept())
    assert world.present() == EVALUATION
    assert not list(world.folder.rglob("*.part"))
    assert not [p for p in (world.folder / ".downloads").rglob("*") if p.is_file()]
    folder = world.folder / "annotations"
    for level in ("L1", "L2", "L3"):
        path = folder / f"validation_{level}.jsonl"
        for item in questions.read_validation(path, world.folder, level):
            assert item.video.read_bytes() == media[item.video.name]
            assert item.image.read_bytes() == media[item.image.name]
    questions.read_training(folder / "training.jsonl", world.folder)
    questions.read_demonstrations(folder / "training_with_cot.jsonl", world.folder)
    book = json.loads((world.folder / "downloads.json").read_text())
    facts = book["annotations"]["annotations/training.jsonl"]
    assert facts["path"] == "annotations/training_6k.jsonl"
    assert facts["sha256"] == world.official["training"].sha256
    assert book["commits"][SEED] == {"annotations": PINNED, "media": NEWEST}
    # archives were asked for in the order of their numbers, until nothing was missing
    batches = [p for p in dict.fromkeys(world.hub.fetched(".gz")) if EPIC in p]
    assert [p.split("_")[1] for p in batches] == ["1.tar.gz", "2.tar.gz", "10.tar.gz"]

    # later questions cost only the archives that hold them; licences are remembered
    world.hub.requests.clear()
    ok(world.get("evaluation", "training_6k"))
    assert world.present() == EVALUATION | TRAINING
    again = [p for p in dict.fromkeys(world.hub.fetched()) if "annotations" not in p]
    assert again == ["images.zip", f"videos/{EPIC}/batch_2.tar.gz"]

    world.hub.close()  # where nothing is missing the hub is not asked
    assert "10 of 10 files there" in ok(world.get())


def test_a_budget_makes_a_part_and_a_larger_one_goes_on(world):
    """Of EPIC the first two archives fit: one clip of L1, and the training clip."""
    sizes = [len(world.seed[f"videos/{EPIC}/batch_{n}.tar.gz"]) for n in (1, 2)]
    most = sum(sizes) + len(world.seed["images.zip"]) + 10
    budget = ("--at-most", f"{most / 1e6}MB")
    said = ok(world.accept("L1", "training_6k", *budget))
    assert "2 archives (" in said and "left for a larger --at-most" in said
    assert "part: L1: 1 of 2 records" in said and "training: 1 of 1 records" in said
    assert "Ego4D" not in said  # no signature is asked for
    part, asked = world.folder / "part", world.hub.fetched("tar.gz")
    root = world.folder / "general"
    sets = parts.read(part, root, "L1")
    assert parts.told(sets) == {"L1": "L1 (part: 1 of 2)"}
    assert sets["L1"][0].video.is_file() and parts.whole(part)["training"] == 1
    assert len(inventory.check(part)) == 5 and chain.benchmark(part, root)
    assert str(part / "videos" / EPIC / "2.mp4") in {
        str(paths.ROOT / name) for name in chain.benchmark(part, root)
    }
    said = ok(world.accept("L1", "training_6k", *budget))
    assert world.hub.fetched("tar.gz") == asked and "kB are used up; " in said
    assert "2 of 2 records" in ok(world.accept("L1", "training_6k", "--at-most", "1GB"))
    assert world.hub.fetched("tar.gz") == [*asked, f"videos/{EPIC}/batch_10.tar.gz"]
    sets = parts.read(part, root, "L1")
    assert parts.told(sets) == {"L1": "L1"} and len(sets["L1"]) == 2
    (one,) = parts.read(part, root, "L1", 1)["L1"]
    assert one.of == 2 and one.id in {item.id for item in sets["L1"]}
    with pytest.raises(ValueError, match="'L4' is none of"):
        parts.read(part, root, "L1 L4")
    get = f"lvb_val.json is missing: get it .*get {world.folder} --what longvideobench"
    with pytest.raises(FileNotFoundError, match=get):
        parts.read(part, root, "L1 general")


def test_another_set_leaves_the_part_of_an_earlier_one(world):
    """As where rung 2 of the README, L2, was run before or after rung 3, L1."""
    files = "images.zip", f"videos/{EPIC}/batch_1.tar.gz"
    most = sum(len(world.seed[file]) for file in files) + 10
    ok(world.accept("L1", "--at-most", f"{most / 1e6}MB"))
    ok(world.accept("L2", "--at-most", "1GB"))
    sets = parts.read(world.folder / "part", world.folder / "general", "L1 L2")
    assert parts.told(sets) == {"L1": "L1 (part: 1 of 2)", "L2": "L2"}


def test_a_part_never_passes_for_a_whole_set(world):
    """Not even where making it failed, as on a disk that takes no links."""
    part = world.folder / "part"
    (part / "videos").mkdir(parents=True)  # which is no link
    error(world.accept("L1", "--at-most", "1GB"))
    assert parts.whole(part) == {"L1": 2}
    assert not (part / "annotations" / "validation_L1.jsonl").exists()


def test_a_budget_that_holds_nothing_says_so(world):
    assert "--at-most" in error(world.accept("L1", "--at-most", "0.001MB"))
    said = error(world.accept("longvideobench", "--at-most", "5GB"))
    assert "without --at-most" in said
    with pytest.raises(SystemExit):
        world.accept("L1", "--at-most", "forty")


def test_clips_that_are_there_already_are_linked_and_not_downloaded(world, media):
    have = world.folder.with_name("ego4d_and_more") / "EPIC-KITCHENS" / "clips"
    have.mkdir(parents=True)
    (have / "0.mp4").write_bytes(media["0.mp4"])
    (have / "strange.mp4").write_bytes(b"x")
    mine = str(have.parent.parent)
    ok(world.accept("L1", "--have", mine))
    assert f"videos/{EPIC}/batch_1.tar.gz" in world.hub.fetched("tar.gz")  # read on
    link = world.folder / "videos" / EPIC / "0.mp4"
    assert link.is_symlink() and link.read_bytes() == media["0.mp4"]
    (world.folder / "videos" / EPIC / "1.mp4").unlink()
    said = ok(world.get("L1", "--dry-run"))
    assert f"1 that are known to be in {SEED}: videos/{EPIC}/batch_10.tar.gz" in said
    (have.parent / "0.mp4").write_bytes(b"another")
    link.unlink()
    assert "neither is taken" in error(world.accept("L1", "--have", mine))


def test_clips_in_linked_folders_are_linked_too(world, media):
    """A folder to which two links lead has no clip twice."""
    disk, have = world.folder.with_name("disk"), world.folder.with_name("have")
    for folder in (disk, have):
        folder.mkdir()
    (disk / "0.mp4").write_bytes(media["0.mp4"])
    (disk / "1.mp4").symlink_to(disk / "0.mp4")
    (have / "round").symlink_to("round")
    (disk / "back").symlink_to(have)
    for name in "ab":
        (have / name).symlink_to(disk)
    ok(world.accept("L1", "--have", str(have)))
    assert world.hub.fetched("tar.gz") == []
    for name in NAMES[:2]:
        link = world.folder / "videos" / EPIC / name
        assert link.is_symlink() and link.samefile(disk / "0.mp4")


def test_what_no_archive_holds_is_said_once_all_were_read(world):
    world.batch(EPIC, 10, [("8.mp4", b"x" * 300)])
    said = ok(world.accept("L1"))
    assert "1 are in no archive" in said and f"videos/{EPIC}/1.mp4" in said
    world.hub.requests.clear()
    assert "1 are in no archive" in ok(world.get("L1"))
    assert world.hub.requests == []


def test_the_token_goes_to_the_hub_and_not_to_its_storage(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ok(world.accept("L2"))
    assert world.hub.tokens == {("api", True), ("datasets", True), ("cdn", False)}


def test_after_a_kill_the_next_call_goes_on(world):
    large_batch(world)
    running = world.start(OF_EGO, 15 * MIB)
    (part,) = (world.folder / ".downloads").glob("*.part")
    for _ in range(600):  # what was sent is not yet written
        if part.stat().st_size >= 10 * MIB:
            break
        time.sleep(0.1)
    running.kill()
    running.communicate()
    assert part.stat().st_size == 10 * MIB
    ok(world.get("L2"))
    assert asked(world) == [None, f"bytes={10 * MIB}-"]
    assert {f"videos/{EGO}/0.mp4", f"videos/{EGO}/clip é 3.mp4"} <= world.present()


def test_a_second_process_is_kept_out_and_an_interrupt_is_no_traceback(world):
    running = world.start(OF_EGO, 700)
    assert "another process" in error(world.get("L2"))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "goes on from here" in said and "Traceback" not in said


# --- broken connections and contents --------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_where_it_broke(world):
    large_batch(world)
    world.hub.cuts[OF_EGO] = [11 * MIB, 11 * MIB]
    ok(world.accept("L2"))
    assert asked(world) == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]


PAGE = b"<!DOCTYPE html><html>Sign in</html>"
TEXT = "annotations/validation_L2.jsonl"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
SENT = {  # what comes of a file: bytes, (status, name) or cuts, and what is said
    "pointer": (TEXT, POINTER, "a git-LFS pointer; expected", "deleted; run it again"),
    "short": (TEXT, b"abc", "received 3 bytes; expected", "deleted; run it again"),
    "flipped text": (TEXT, None, "with another hash", "deleted; run it again"),
    "gated": (
        *(TEXT, (401, "GatedRepo"), "an account that has accepted the licence"),
        f"https://huggingface.co/datasets/{SEED}, then run `hf auth login` or set",
    ),
    "login": (TEXT, (401, ""), "answered 401", "log in with `hf auth login` or set"),
    "missing": (TEXT, (404, "EntryNotFound"), "answered 404", "still lists that file"),
    "ill": (TEXT, (500, ""), "answered 500", "run it again later"),
    "broken again and again": (
        *(TEXT, [100] * 20, "the connection to http://127.0.0.1", " broke ("),
        "what has arrived is kept, and the same command goes on from there",
    ),
}


@pytest.mark.parametrize("kind", SENT)
def test_what_the_hub_sends_is_named_and_deleted(world, kind, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    path, sent, *words = SENT[kind]
    if sent is None:
        sent = bytearray(world.seed[path])
        sent[50] ^= 1
    hub = world.hub
    {tuple: hub.status, list: hub.cuts}.get(type(sent), hub.served)[path] = sent
    said = error(world.accept("L2"))
    assert f"{SEED}: {path}: " in said and not [w for w in words if w not in said]
    assert not [p for p in world.folder.rglob("*.part") if p.stat().st_size]
    assert not list(world.folder.glob("videos/*/*"))
    hub.served.clear(), hub.status.clear(), hub.cuts.clear()
    ok(world.get("L2"))


def test_a_hub_that_lists_another_file_than_the_official_one(world):
    official = world.official["L2"] = OFFICIAL["L2"]
    said = error(world.accept("L2"))
    assert f"{TEXT} with the hash" in said
    assert f"the official file has {official.sha256}" in said


def test_an_annotation_file_that_was_changed_is_not_overwritten(world):
    ok(world.accept("L2"))
    path = world.folder / TEXT
    path.write_bytes(path.read_bytes() + b"\n")
    assert f"{path} is not the official file (920 kB" in error(world.get("L2"))
    path.unlink()
    ok(world.get("L2"))


def test_no_hub_or_no_folder_is_said(world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in error(world.accept())
    world.hub.portal = True
    assert f"{world.hub.endpoint} did not answer as a hub" in error(world.accept())
    world.hub.portal = False
    world.folder.write_text("a file")
    assert str(world.folder) in error(world.accept())


# --- archives -------------------------------------------------------------------------


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


def unpacked(pieces, folder, names=tuple(dict(MEMBERS))):
    """{name: bytes} of an archive in pieces that were downloaded before."""
    parts = []
    for number, data in enumerate(pieces):
        sha256 = hashlib.sha256(data).hexdigest()
        parts.append(HubFile(SEED, NEWEST, f"x.{number}", len(data), sha256))
        (folder / f"{sha256[:12]}-x.{number}").write_bytes(data)
    archive = download.Archive("x", tuple(parts), ("images",))
    place = {name: folder / "out" / Path(name).name for name in names}
    list(download.unpack(archive, folder, place.get))
    return {n: path.read_bytes() for n, path in place.items() if path.exists()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 40])
def test_every_form_is_read_whole_and_in_parts(form, count, tmp_path):
    data = FORMS[form]
    size = -(-len(data) // count)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert unpacked(pieces, tmp_path) == dict(MEMBERS)


def linked(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o644) << 16
    return info


def sparse(name, size):
    """A tar file of one member that holds a few bytes and claims many (GNU, 0.1)."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": "0,8"}
    info.pax_headers["GNU.sparse.name"] = name
    return tar([(info, b"12345678")], mode="w")


OUT, NO_FILE = "leads out", "is a link, a device"
BAD_MEMBERS = {
    "parent": (tar([("../0.mp4", b"x")]), OUT),
    "deep parent": (tar([("a/../../0.mp4", b"x")]), OUT),
    "absolute": (tar([("/tmp/0.mp4", b"x")]), OUT),
    "backslash": (tar([("..\\0.mp4", b"x")]), OUT),
    "symlink": (tar([(special(tarfile.SYMTYPE, "0.mp4", "/etc/x"), b"")]), NO_FILE),
    "hard link": (tar([(special(tarfile.LNKTYPE, "0.mp4", "x.mp4"), b"")]), NO_FILE),
    "device": (tar([(special(tarfile.CHRTYPE, "0.mp4"), b"")]), NO_FILE),
    "pipe": (tar([(special(tarfile.FIFOTYPE, "0.mp4"), b"")]), NO_FILE),
    "sparse": (sparse("0.mp4", 10**9), NO_FILE),
    "long name": (tar([("a" * 300 + "0.mp4", b"x")]), "too long"),
    "zip: absolute": (zipped([("/tmp/0.mp4", b"x")]), OUT),
    "zip: link": (zipped([(linked("0.mp4", stat.S_IFLNK), b"x")]), NO_FILE),
    "zip: parent": (zipped([(linked("../0.mp4", stat.S_IFREG), b"x")]), OUT),
}


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_a_member_that_is_no_plain_file_within_stops_it(kind, tmp_path):
    data, words = BAD_MEMBERS[kind]
    names = ["0.mp4", "../0.mp4", "a/../../0.mp4", "/tmp/0.mp4"]
    (folder := tmp_path / "a").mkdir()
    with pytest.raises(download.ArchiveError, match=rf"x: the member .*{words}") as err:
        unpacked([data], folder, names)
    assert "report it to who made the archive" in str(err.value)
    assert not list(tmp_path.rglob("*0.mp4"))


# No checksum, or an optional one; the members are whole.
UNSEEN = {("tar", None), ("tar.zst", None), ("tar", 0.99)}
SHARES = {(form, share) for form in FORMS for share in (None, 0.3, 0.45, 0.99)}


@pytest.mark.parametrize(("form", "share"), sorted(SHARES - UNSEEN, key=str))
def test_damage_is_said_and_never_handed_on(form, share, tmp_path):
    """A changed byte, or an end that comes too early."""
    data = bytearray(FORMS[form])
    if share is None:
        data[len(data) // 2] ^= 255
    else:
        del data[int(len(data) * share) :]
    words = "cannot be read to its end .* file is damaged; report it there"
    with pytest.raises(download.ArchiveError, match=words):
        unpacked([bytes(data)], tmp_path)
    there = {f"a/{path.name}": path.read_bytes() for path in tmp_path.glob("out/*")}
    assert there.items() <= dict(MEMBERS).items()
    assert not there or form in ("tar", "zip")  # no checksum of a whole, or one each


def test_a_wanted_file_of_any_name_arrives(tmp_path):
    names = [".unfinished", ".unfinished-" + "0" * 16, "0.mp4.part", "~", "x" * 255]
    members = [(name, name.encode() * 9) for name in (*names, "0.mp4", ".0.mp4.tmp")]
    data = tar(members, mode="w")
    for number, form in enumerate((data, gzip.compress(data), zipped(members))):
        (folder := tmp_path / str(number)).mkdir()
        assert unpacked([form], folder, dict(members)) == dict(members)


def test_a_place_that_another_file_has_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.png").write_bytes(b"mine")
    words = "the member 'a/0.png' has 2,000 bytes, but .*0.png is there with 4; delete"
    with pytest.raises(download.ArchiveError, match=words):
        unpacked([TAR], tmp_path)
    assert (tmp_path / "out" / "0.png").read_bytes() == b"mine"


@pytest.mark.parametrize("there", [False, True])
def test_two_members_for_one_place_leave_it_as_it_was(world, media, there):
    second = media["0.mp4" if there else "1.mp4"]
    world.batch(EGO, 1, [("a/0.mp4", media["0.mp4"]), ("b/0.mp4", second)])
    path = world.folder / f"videos/{EGO}/0.mp4"
    if there:
        path.parent.mkdir(parents=True)
        path.write_bytes(media["0.mp4"])
    for get in (world.accept, world.get):
        assert "'a/0.mp4' and 'b/0.mp4' would both be" in error(get("L2"))
        assert path.exists() == there
    assert not there or path.read_bytes() == media["0.mp4"]


def test_a_still_that_could_be_of_either_source(world, media):
    world.seed["images.zip"] = zipped([("0.png", media["0.png"])])
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
    world.seed[f"videos/{EGO}/batch_99.tar.gz"] = world.seed.pop(OF_EGO)
    members = [("0.mp4", os.urandom(400))]
    stored = bytearray(gzip.compress(tar([("0.mp4", b"x" * 4000)], mode="w"), 0))
    stored[2000] ^= 1
    bad = {
        "1.tar": (sparse("0.mp4", 10**9), "sparse"),
        "2.zip": (of_method(zipped(members), 9), "unpack it yourself"),
        "3.zip": (of_method(zipped(members), 99), "method is not supported"),
        "4.zip": (of_method(zipped(members), 8, 200), "zip file version 20.0"),
        "5.tar.gz": (bytes(stored), "CRC check failed"),
        "6.tar": (tar(members), "answered 404"),
        "7.tar": (tar([("1.mp4", b"y")] * 40), "with the hash ../../../EVL"),
        "8.tar.gz.part_02": (tar(members), "not all of its parts"),
        "9.7z": (b"7z" * 100, "7z, rar or spanned zip file is not read"),
        "10.tar": (b"<html>" * 100, "cannot be read to its end"),
        "11.tar": (tar(members), "received a web page"),
        "12.tar": (tar([("../0.mp4", b"x")]), OUT),
    }
    for name, (data, _) in bad.items():
        world.seed[f"videos/{EGO}/batch_{name}"] = data
    world.hub.status[f"videos/{EGO}/batch_6.tar"] = (404, "EntryNotFound")
    world.hub.digests[f"videos/{EGO}/batch_7.tar"] = "../../../EVL"
    world.hub.served[f"videos/{EGO}/batch_11.tar"] = PAGE
    ran = world.accept("L2")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "4 of 4 files there" in ran.stdout
    said = ran.stderr.splitlines()[-len(bad) :]
    for line, (name, (_, words)) in zip(said, bad.items(), strict=True):
        assert f"videos/{EGO}/batch_{name.split('02')[0]}" in line and words in line
    assert not [p for p in world.folder.parent.iterdir() if "EVL" in p.name]


def test_what_a_kill_left_is_swept_and_nothing_else(world, media):
    folder, mine = world.folder / f"videos/{EGO}", ".unfinished-mine"
    folder.mkdir(parents=True)
    for name in (download.UNFINISHED, mine):
        (folder / name).write_bytes(b"half")
    ok(world.accept("L2"))
    assert {p.name for p in folder.iterdir()} == {"0.mp4", NAMES[3], mine}


# --- the forms in which a hub can hold stills and clips -------------------------------


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


def archives_of(names):
    listed = [HubFile(SEED, NEWEST, name, 1, "0" * 64) for name in names]
    return hub_names.sorted_out(listed)[1]


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
    del world.seed["images.zip"]
    for source in (EPIC, EGO):
        world.seed.update({f"images/{source}/{name}": media[name] for name in STILLS})
    world.seed["old/ego4d/0.png"] = media["0.png"]


def test_stills_that_lie_there_as_files(world, media):
    single_files(world, media)
    said = ok(world.accept())
    assert "single files: at most" in said and "10 of 10 files there" in said
    assert world.present() == EVALUATION
    assert len(world.hub.fetched(".png")) == 5  # nobody asked for the others
    assert not [p for p in (world.folder / ".downloads").rglob("*") if p.is_file()]


def test_a_still_that_cannot_be_had_does_not_stop_the_others(world, media):
    single_files(world, media)
    world.hub.status[f"images/{EPIC}/0.png"] = (404, "EntryNotFound")
    world.seed[f"old/{EGO}/1.png"] = media["2.png"]
    ran = world.accept()
    assert ran.returncode == 1 and "8 of 10 files there" in ran.stdout
    assert f"{SEED}: images/{EPIC}/0.png: " in ran.stderr
    assert f"'images/{EGO}/1.png' and 'old/{EGO}/1.png' would both be" in ran.stderr


# --- no stills ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, "none was found"),
        ({"images.7z": b"7z" * 100}, "images.7z: a 7z, rar or spanned zip file"),
        ({"images.zip": zipped([("images/9.png", b"x" * 200)])}, "none was found"),
    ],
)
def test_without_any_still_no_clip_is_downloaded(world, there, words):
    del world.seed["images.zip"]
    world.seed.update(there)
    ran = world.accept("L2")
    assert ran.returncode == 1
    assert f"images/{EGO} needs 2 stills" in ran.stderr and words in ran.stderr
    assert world.hub.fetched(".tar.gz") == []


def test_stills_of_one_source_do_not_stand_in_for_another(world, media):
    del world.seed["images.zip"]
    ego = tar([(STILLS[n], media[STILLS[n]]) for n in (0, 1, 3)], mode="w")
    world.seed[f"images/{EGO}.tar.xz"] = lzma.compress(ego)
    assert f"images/{EPIC} needs 2 stills" in error(world.accept())
    assert world.hub.fetched(".tar.gz") == []
    ok(world.get("L2", "L3"))


def test_stills_put_there_by_hand_are_enough(world, media):
    del world.seed["images.zip"]
    assert "stops before the archives of clips" in ok(world.get("L2", "--dry-run"))
    error(world.accept("L2"))
    (folder := world.folder / f"images/{EGO}").mkdir(parents=True)
    for name in (STILLS[0], STILLS[3]):
        (folder / name).write_bytes(media[name])
    assert "4 of 4 files there" in ok(world.get("L2"))


def test_a_packed_archive_in_parts_begins_anew_after_a_fault(world, media):
    del world.seed["images.zip"]
    stills = [(f"{EGO}/{STILLS[n]}", media[STILLS[n]]) for n in (0, 3)]
    data = gzip.compress(tar(stills, mode="w") + os.urandom(3000))
    for number, start in enumerate(range(0, len(data), 1000)):
        world.seed[f"images.tar.gz.part{number}"] = data[start : start + 1000]
    world.hub.status["images.tar.gz.part2"] = (404, "EntryNotFound")
    assert "images.tar.gz.part2: " in error(world.accept("L2"))
    world.hub.status.clear()
    ok(world.get("L2"))
    assert (world.folder / f"images/{EGO}/0.png").read_bytes() == media["0.png"]


# --- the disk -------------------------------------------------------------------------


def test_a_disk_without_room_is_said_before_anything_is_written(world, monkeypatch):
    room = SimpleNamespace(total=10**9, used=10**9, free=200)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    said = error(world.accept("L2"))
    assert f"not enough disk space below {world.folder}" in said
    assert "200B are free; make room, then run it again" in said
    assert not list(world.folder.rglob("*.part"))


def test_a_place_that_cannot_be_written_is_not_said_of_the_archive(world):
    """As where a disk was made read-only: no other archive may come for nothing."""
    (world.folder / "videos").mkdir(parents=True)
    (world.folder / "videos" / EPIC).write_text("a file")
    said = error(world.accept("L1"))
    assert f"{world.folder}/videos/{EPIC}" in said and "damaged" not in said
    assert world.hub.fetched("tar.gz") == [f"videos/{EPIC}/batch_1.tar.gz"]


def test_a_disk_that_fills_while_writing(world):
    world.batch(EGO, 1, [("0.mp4", os.urandom(400_000))])
    with full_disk(100_000):
        said = error(world.accept("L2"))
    assert f"{SEED}: {OF_EGO}: File too large" in said
    (part,) = (world.folder / ".downloads").glob("*.part")
    assert 0 < part.stat().st_size <= 100_000
    ok(world.get("L2"))
    assert (world.folder / f"videos/{EGO}/0.mp4").stat().st_size == 400_000


# --- LongVideoBench -------------------------------------------------------------------


def publish_general(world):
    """Six clips in ten parts, and a seventh that nobody asks about."""
    rows = [
        general(n) | {"subtitle_path": f"v{n}_en.json", "video_path": f"v{n}.mp4"}
        for n in range(6)
    ]
    world.publish("general", rows)
    clips = {row["video_path"]: os.urandom(30_000 + n) for n, row in enumerate(rows)}
    members = [(f"videos/{name}", data) for name, data in clips.items()]
    members.append(("videos/of_the_test_set.mp4", os.urandom(90_000)))
    whole, listed = tar(members, mode="w"), world.hub.files[LONG]
    for letter, start in zip("abcdefghij", range(0, len(whole), 40_000), strict=False):
        listed[f"videos.tar.part.a{letter}"] = whole[start : start + 40_000]
    texts = [(f"subtitles/{row['subtitle_path']}", b"[]" * 99) for row in rows]
    listed["subtitles.tar"] = tar(texts, mode="w")
    return clips


def test_the_general_set_comes_in_parts_and_without_subtitles(world):
    clips = publish_general(world)
    said = ok(world.accept("longvideobench"))
    assert "CC BY-NC-SA 4.0" in said and "Ego4D" not in said
    expected = {f"general/videos/{name}" for name in clips} | {"general/lvb_val.json"}
    assert world.present() == expected
    root = world.folder / "general"
    for item in questions.read_validation(root / "lvb_val.json", root, "general"):
        assert item.video.read_bytes() == clips[item.video.name]
    parts = world.hub.fetched("h") + world.hub.fetched("subtitles.tar")
    assert parts == []  # those after the last wanted clip
    assert not (root / "subtitles").exists()
    assert f"Next: python -m lib.data check {world.folder}" in said
    assert main(["check", str(world.folder)]) == 0
    assert "| lvb_val | 6 " in world.printed().out
    (root / "lvb_val.json").unlink()
    (world.folder / "annotations").mkdir()  # an empty one is as good as none
    assert main(["check", str(world.folder)]) == 1
    assert "`get` downloads them" in world.printed().err


def test_the_general_set_goes_on_in_the_part_where_it_stopped(world):
    clips = publish_general(world)
    world.hub.status["videos.tar.part.ad"] = (404, "EntryNotFound")
    assert "videos.tar.part.ad: " in error(world.accept("longvideobench"))
    stored = {p.name[13:] for p in (world.folder / ".downloads").iterdir()}
    assert stored == {"videos.tar.part.ac", "videos.tar.part.ad.part"}
    world.hub.status.clear()
    world.hub.requests.clear()
    ok(world.get("longvideobench"))
    assert {p.name for p in (world.folder / "general/videos").iterdir()} == set(clips)
    assert not set(world.hub.fetched()) & {f"videos.tar.part.a{x}" for x in "abc"}


# --- checking -------------------------------------------------------------------------


def by_split(found):
    return {report["split"]: report for report in found}


def counted(needed, **others):
    none = {"missing": 0, "damaged": 0, "too short": 0}
    return {"needed": needed, **none} | others


def test_check_counts_what_is_missing_damaged_and_too_short(world, media):
    ok(world.accept("evaluation", "training_6k"))
    epic, ego = world.folder / "videos" / EPIC, world.folder / "videos" / EGO
    (epic / "0.mp4").unlink()
    (epic / "1.mp4").write_bytes(b"")
    (ego / "0.mp4").write_bytes(PAGE)
    (ego / "1.mp4").write_bytes(media["1.mp4"][: len(media["1.mp4"]) // 2])
    (world.folder / "images" / EGO / "1.png").write_bytes(b"no picture")
    black = np.zeros((56, 56, 3), np.uint8)
    write_film(ego / NAMES[3], [black])
    write_film(epic / "2.mp4", [black] * 9, codec="mpeg4")

    quick = by_split(inventory.check(world.folder))
    assert quick["validation_L1"]["videos"] == counted(2, missing=1, damaged=1)
    assert quick["validation_L2"]["videos"] == counted(2)
    assert quick["training"]["videos"] == counted(1)

    deep = by_split(inventory.check(world.folder, decode=True))
    assert deep["validation_L1"]["videos"] == quick["validation_L1"]["videos"]
    found = deep["validation_L2"]["videos"]
    assert found == counted(2, damaged=1) | {"too short": 1}
    assert deep["validation_L3"]["videos"]["damaged"] == 1
    assert deep["validation_L3"]["stills"] == counted(1, damaged=1)
    assert "web page" in deep["validation_L2"]["unreadable"][str(ego / "0.mp4")]
    assert deep["training"]["unreadable"] == {}
    by_pyav = {str(epic / "2.mp4"): "it is mpeg4 in mov"}
    assert deep["training"]["by_pyav"] == by_pyav
    assert deep["validation_L1"]["by_pyav"] == {}
    table = inventory.media_table(list(deep.values()))
    (line,) = [x for x in table.splitlines() if "validation_L2" in x]
    counts = [cell.strip() for cell in line.strip("|").split("|")]
    assert list(map(int, counts[1:])) == [2, 2, 0, 0, 2, 0, 1, 1, 2, 0, 0]


def test_the_check_command_prints_tables_or_json(world, capsys):
    ok(world.accept())
    assert main(["check", str(world.folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)  # no training clip was asked for
    assert report["folder"] == str(world.folder) and report["decoded"] is False
    assert by_split(report["splits"])["training"]["videos"]["missing"] == 1
    clip = world.folder / "videos" / EGO / "1.mp4"
    whole = clip.rename(clip.with_name("whole"))
    clip.touch()
    assert main(["check", str(world.folder)]) == 1
    said = capsys.readouterr().out  # what is broken stands above what is missing
    assert "is empty" in said.partition(f"{EPIC}/2.mp4 is missing\n")[0]
    whole.replace(clip)
    ok(world.get("training_6k"))
    assert main(["check", str(world.folder), "--decode"]) == 0
    said = capsys.readouterr().out
    assert "| validation_L3 " in said and "--decode" not in said
    assert main(["check", f"{world.folder}/nowhere"]) == 1
    said = capsys.readouterr().err
    assert f"error: neither {world.folder}/nowhere/annotations/*.jsonl nor" in said


def test_the_help_names_every_licence_and_the_sizes(capsys):
    with pytest.raises(SystemExit):
        main(["get", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    words = (*seed_bench.LICENCES.values(), "530 +- 110 GB", "--at-most", "--have")
    assert not [word for word in words if word not in said]


def test_check_counts_faults_repeats_and_unusable_records(tmp_path):
    rows = [record(0, EPIC), record(0, EPIC, sample_id=5)]
    rows.append(record(1, EPIC, choice_a="stir pot"))  # as choice_d
    rows.append(record(2, EPIC, golden_choice_idx="E"))
    last = {"narration_text": rows[2]["answer"], "start_frame": 15, "stop_frame": 40}
    steps = {faults.PROGRESS: [last], faults.FRAME: 40, "sample_id": 6}
    rows.append(rows[2] | steps | {"choice_a": "sit down"})
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/validation_L1.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (report,) = inventory.check(tmp_path)
    assert (report["records"], report["usable"]) == (5, 4)
    assert report["duplicates"] == 1
    found = {(f["field"], f["usable"]): f["count"] for f in report["faults"]}
    assert found == {
        ("answer", True): 1,  # it was done
        ("video_id", True): 1,
        ("choice_d", True): 1,
        ("golden_choice_idx", False): 1,
    }
    sound = inventory.fault_table([report | {"faults": []}])
    assert sound == "No record has a fault.\n"
    report["faults"][0]["field"] = "negative_answers[]"
    table = inventory.fault_table([report])
    assert "UNUSABLE" in table and "negative_answers[], expected an action" in table
