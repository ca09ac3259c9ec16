"""Decoded frames kept: in this process and, behind that, in a folder.

An entry of the folder holds what one reader of `lib/data/video.py` took from one file:
differences (red and blue to green, each row to the one above), packed with zstd, are 35
to 55 % of the raw bytes (`tests/bench/frame_store.py`). Any number of processes may
fill it. An entry appears by renaming a finished file, so readers need no lock; writers
hold one, under which the oldest entries make room. An entry whose checksum does not
match is made anew, with a line of warning."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow

from lib import paths, records
from lib.data.questions import Demonstration, Question
from lib.data.video import Clip, Sampling, read_clip, read_still, require_media

CACHE_BYTES = 512 * 2**20
FORMAT = 3  # of an entry's bytes and name; raise it with every change of them
FREED = 0.1  # share of the bound that is freed at once, so that it is not done often
CHECKSUM_BYTES = 32
OWN = re.compile(r"[0-9a-f]{64}(-[0-9a-f]+)?\.(frames|hash)")  # earlier names too
DECODERS = ("decord2", "av", "torchvision", "pillow")
VERSIONS = {name: records.version(name) for name in DECODERS}
_ZSTD = pyarrow.Codec("zstd", compression_level=1)  # higher levels gain 2 % at most
_LOGGER = logging.getLogger(__name__)


def question_media(
    item: Question | Demonstration, sampling: Sampling
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(clip, still) of a question or demonstration; None for what it does not have."""
    clip = item.video and _STORE.read(read_clip, item.video, sampling)
    still = item.image and _STORE.read(read_still, item.image, sampling)
    return clip, still


def keep_frames(folder: str | Path, max_gib: float) -> None:
    """From now on `question_media` also keeps what it decodes in a folder of at most
    `max_gib` GiB; "", as at first, keeps frames in this process alone."""
    behind = None
    if folder:
        behind = FrameFolder(paths.resolve(folder), int(max_gib * 2**30))
    _STORE.behind, _STORE.kept = behind, (folder, max_gib)


def kept_frames() -> tuple[str | Path, float]:
    """The arguments of the last `keep_frames`, for other processes to do the same."""
    return _STORE.kept


class FrameStore:
    """Decoded frames of this process, least recently used out first, bounded in bytes.
    Callers get copies, so nobody can change what the next caller sees."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.used_bytes = max_bytes, 0
        self.behind: FrameFolder | None = None
        self.kept: tuple[str | Path, float] = ("", 0.0)
        self._frames: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, reader: Callable, path: Path, sampling: Sampling) -> np.ndarray:
        """`reader(path, sampling)`, decoded or from the store."""
        require_media(path)
        name = entry_name(reader, path, sampling)
        if (frames := self._frames.get(name)) is None:
            read = partial(self.behind.read, reader) if self.behind else reader
            frames = read(path, sampling)
        with self._lock:  # evaluation reads in several threads
            if name not in self._frames:
                self.used_bytes += frames.nbytes
            self._frames[name] = frames
            self._frames.move_to_end(name)
            while self.used_bytes > self.max_bytes:
                self.used_bytes -= self._frames.popitem(last=False)[1].nbytes
        return frames.copy()


_STORE = FrameStore(CACHE_BYTES)


class FrameFolder:
    """A folder of decoded frames that holds at most `max_bytes`; the entries that were
    used least recently go first. OSError if the folder cannot be written."""

    def __init__(self, folder: str | Path, max_bytes: int):
        if max_bytes <= 0:
            bound = f"the frame store is bounded at {max_bytes} bytes"
            raise ValueError(f"{bound}; give it more than 0")
        self.folder, self.max_bytes = Path(folder), max_bytes
        with self._locked() as lock:
            os.pwrite(lock, b"%20d" % self._shrink(max_bytes), 0)

    def read(
        self, reader: Callable, path: str | Path, sampling: Sampling
    ) -> np.ndarray:
        """uint8 [..., H, W, 3]: `reader(path, sampling)`, or what was kept of it."""
        name = entry_name(reader, path, sampling)
        if (kept := self._get(name, path)) is not None:
            return _unpack(kept)
        frames = reader(path, sampling)
        if entry_name(reader, path, sampling) == name:  # the file is what was decoded
            self._put(name, _pack(frames))
        return frames

    def _get(self, name: str, path: str | Path) -> bytes | None:
        """What is kept under a name; None if nothing is, or if it is damaged."""
        try:
            with open(self.folder / name, "rb") as file:
                data = file.read()
                os.utime(file.fileno())  # used now: the last to go
        except FileNotFoundError:
            return None
        checksum, body = data[:CHECKSUM_BYTES], data[CHECKSUM_BYTES:]
        if checksum == _checksum(name, body):
            return body
        said = "%s is damaged: what it kept of %s is made anew"
        _LOGGER.warning(said, self.folder / name, path)
        return None

    def _put(self, name: str, body: bytes) -> None:
        """Keep `body` under a name, unless it alone would fill the folder."""
        data = _checksum(name, body) + body
        room = int((1 - FREED) * self.max_bytes) - len(data)
        if room < 0:
            return
        with self._locked() as lock:
            count = os.pread(lock, 20, 0)
            used = int(count) if count.strip().isdigit() else self.max_bytes
            if used + len(data) > self.max_bytes:
                used = self._shrink(room)
            # Counted before it is there: a kill in between makes the count too high,
            # which the next count of the folder mends.
            os.pwrite(lock, b"%20d" % (used + len(data)), 0)
            unfinished = self.folder / ".frames_unfinished"
            unfinished.write_bytes(data)
            os.replace(unfinished, self.folder / name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock file, open: it says how many bytes the folder holds. The lock ends
        with its closing, and so with the process, however that ends."""
        with records.written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / ".frames_lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield lock
            finally:
                os.close(lock)

    def _shrink(self, limit: int) -> int:
        """Delete the files used least recently until the others hold at most `limit`
        bytes; returns what they hold. Only for who has the lock."""
        own = [path for path in self.folder.iterdir() if OWN.fullmatch(path.name)]
        stats = [(path.stat(), path) for path in own]
        files = sorted((stat.st_mtime_ns, stat.st_size, path) for stat, path in stats)
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used > limit:
                path.unlink()
                used -= size
        return used


def entry_name(reader: Callable, path: str | Path, sampling: Sampling) -> str:
    """The name of what a reader takes from a file as it is now, by its path, size and
    times (that of its last change of state `cp -p` cannot set back), the sampling, and
    the versions of the packages that decide pixels."""
    path = Path(path).absolute()
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    parts = [FORMAT, reader.__name__, str(path), state, asdict(sampling), VERSIONS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() + ".frames"


def _checksum(name: str, body: bytes) -> bytes:
    """Of the content with its name, so that no entry can stand in for another."""
    return hashlib.sha256(name.encode() + body).digest()


def _pack(frames: np.ndarray) -> bytes:
    """Frames uint8 [..., H, W, 3]: a line of shape and film, packed differences."""
    to_green = np.array(frames)
    to_green[..., 0] -= frames[..., 1]
    to_green[..., 2] -= frames[..., 1]
    difference = to_green.copy()
    difference[..., 1:, :, :] -= to_green[..., :-1, :, :]
    head = json.dumps([frames.shape, getattr(frames, "film", None)]).encode()
    return head + b"\n" + _ZSTD.compress(difference, asbytes=True)


def _unpack(body: bytes) -> np.ndarray:
    head, _, packed = body.partition(b"\n")
    shape, film = json.loads(head)
    pixels = _ZSTD.decompress(packed, math.prod(shape))
    frames = np.frombuffer(pixels, np.uint8).reshape(shape).copy()
    for row in range(1, shape[-3]):  # three times as fast as np.add.accumulate
        frames[..., row, :, :] += frames[..., row - 1, :, :]
    frames[..., 0] += frames[..., 1]
    frames[..., 2] += frames[..., 1]
    return frames if film is None else Clip.of(frames, film)
