"""Files of a Hugging Face dataset: fetched, verified, taken out of their archives.

`hf_hub_download` begins again after a kill, and these files have gigabytes; so here a
file grows as `<name>.part` and takes its name once its hash is the one listed. An
archive is never trusted with a path: the caller names the place of each member."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import httpx2
import pyarrow
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils.sha import git_hash
from tqdm import tqdm

from lib import records
from lib.data.faults import is_relative, no_file, shown

WAITS = (1, 4, None)  # seconds before another attempt; http_get has its own
BLOCK = 2**20
ZIP = re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08|00)")
PACKED = [  # first bytes of a tar that is packed, what reads it; zstd may skip first
    (re.compile(rb"\x1f\x8b\x08"), gzip.open),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.open),
    (re.compile(rb"\xfd7zXZ\0"), lzma.open),
    (
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        partial(pyarrow.CompressedInputStream, compression="zstd"),
    ),
]
UNFINISHED = ".unfinished-c0d1a7f4e93b5268"  # a name that nobody wants
KEPT = "what has arrived is kept, and the same command goes on from there"
STOPPED = "nothing more is unpacked: report it to who made the archive"
UNPACK = (
    "unpack it yourself and put its files where `get` says that they are missing;"
    " the same command then goes on"
)


class DownloadError(Exception):
    """What could not be downloaded or unpacked, and what to do about it."""


class ArchiveError(DownloadError):
    """A file of the hub or an archive that cannot be used; others may be sound."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it; `digest` is the SHA-256 of an LFS file, of a small
    one git's blob id (SHA-1)."""

    repo: str
    commit: str
    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Archive:
    """A tar, packed or not, or a zip file, in parts that follow each other; `folders`
    are those whose files it may hold, `fault` says why it cannot be read here."""

    name: str
    parts: tuple[HubFile, ...]
    folders: tuple[str, ...]
    fault: str = ""

    @property
    def ends(self) -> list[int]:
        """The byte behind each part."""
        return [*accumulate(part.size for part in self.parts)]

    @property
    def digests(self) -> list[str]:
        """The digest of each part."""
        return [part.digest for part in self.parts]

    def fetch_part(self, number: int, store: Path) -> Path:
        """A part, downloaded into the folder `store` unless it is there."""
        return fetch(self.parts[number], self._stored(number, store))

    def drop_parts(self, store: Path, end: int) -> bool:
        """Delete the stored parts that end at or before a byte; whether any was."""
        done = [self._stored(n, store) for n in range(bisect_right(self.ends, end))]
        there = [path for path in done if path.exists()]
        for path in there:
            path.unlink()
        return bool(there)

    def _stored(self, number: int, store: Path) -> Path:
        part = self.parts[number]
        digest = re.sub(r"\W", "", part.digest)  # the hub's word must not lead out
        return store / f"{digest[:12]}-{Path(part.path).name[-50:]}"


def commits(repo: str) -> list[str]:
    """Full hashes of a dataset's commits, newest first."""
    with _explained(repo):
        found = HfApi().list_repo_commits(repo, repo_type="dataset")
    return [commit.commit_id for commit in found]


def listing(repo: str, commit: str, kind: str = "dataset") -> dict[str, HubFile]:
    """{path: HubFile} of all that a dataset or model holds at a commit (full hash)."""
    files = {}
    with _explained(repo):
        where = {"revision": commit, "repo_type": kind}
        for entry in HfApi().list_repo_tree(repo, recursive=True, **where):
            if not isinstance(entry, RepoFile):
                continue
            if not is_relative(entry.path):
                raise DownloadError(f"{repo} lists a file named {shown(entry.path)}")
            size, digest = entry.size, entry.blob_id
            if entry.lfs is not None:
                size, digest = entry.lfs.size, entry.lfs.sha256
            files[entry.path] = HubFile(repo, commit, entry.path, size, digest)
    return files


def fetch(file: HubFile, target: Path) -> Path:
    """`target`, downloaded unless it is there, with the hash of `file`. A broken
    connection is taken up where it broke (to 10 MiB, the library's block). Raises
    ArchiveError where other files may come, else DownloadError."""
    if target.is_file():
        if digest(target, like=file.digest) != file.digest:
            raise DownloadError(
                f"{target} is there, but is not what {file.repo} lists as {file.path}:"
                " move it away, then run this again"
            )
        return target
    part = target.with_name(target.name + ".part")
    there = part.stat().st_size if part.exists() else 0
    require_space(part.parent, file.size - there, f"download {file.path}")
    with _explained(f"{file.repo}: {file.path}"):
        part.parent.mkdir(parents=True, exist_ok=True)
        _transfer(file, part)
    if digest(part, like=file.digest) != file.digest:
        raise _rejected(file, part)
    os.replace(part, target)
    return target


def digest(path: Path, like: str) -> str:
    """Hex digest of a file, of the kind `like` is: SHA-256, or git's blob id."""
    return records.sha256(path) if len(like) == 64 else git_hash(path.read_bytes())


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError unless the disk below `folder` has `needed` bytes left."""
    if (free := free_space(folder)) < needed:
        raise DownloadError(
            f"not enough disk space below {folder} to {what}: {told(needed)} are"
            f" needed, {told(free)} are free; make room, then run it again"
        )


def free_space(folder: Path) -> int:
    """Bytes left on the disk of a folder, which need not exist yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def told(size: int) -> str:
    """Bytes in the units in which disks are sold: "1.40GB"."""
    return tqdm.format_sizeof(size, "B")


def _transfer(file: HubFile, part: Path) -> None:
    """Add to `part` what it lacks of `file`."""
    url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.commit)
    # compressed on the way, a file could not be taken up in its middle
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    bar = partial(tqdm, leave=False, disable=None)
    for wait in WAITS:
        try:
            with part.open("ab") as out:
                if (there := out.tell()) < file.size:
                    http_get(
                        *(url, out),
                        resume_size=there,
                        headers=headers,
                        displayed_filename=file.path,
                        tqdm_class=bar,
                    )
            return
        except (httpx2.ReadError, HfHubHTTPError) as error:
            response = getattr(error, "response", None)
            refused = response is not None and response.status_code < 500
            if refused or wait is None:
                raise
            time.sleep(wait)


def _rejected(file: HubFile, part: Path) -> ArchiveError:
    """The error for a part that is complete but not the file; the part is deleted."""
    size = part.stat().st_size
    with part.open("rb") as opened:
        said = no_file(opened.read(64))
    part.unlink()
    what = f"{size:,} bytes" + (" with another hash" if size == file.size else "")
    what = said[0] if said else what
    return ArchiveError(
        f"{file.repo}: {file.path}: received {what}; expected {file.size:,} bytes with"
        f" the hash {file.digest}. It was deleted; run it again, and if it happens"
        f" again look at what {constants.ENDPOINT} serves"
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the hub or the disk can say into a DownloadError about `what`."""
    kind, hub = DownloadError, constants.ENDPOINT
    try:
        with _on_disk(what):
            yield
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it"
        elif isinstance(error, GatedRepoError):
            page = f"https://huggingface.co/datasets/{what.partition(':')[0]}"
            why = "the hub asks for an account that has accepted the licence: accept it"
            why = f"{why} at {page}, then run `hf auth login` or set HF_TOKEN"
        elif isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            todo = "run it again later, or look whether the hub still lists that file"
            if status in (401, 403):
                todo = "log in with `hf auth login` or set HF_TOKEN, then run it again"
            kind = ArchiveError if status in (404, 410) else DownloadError
            why = f"{hub} answered {status} for {error.response.url}; {todo}"
        elif isinstance(error, (httpx2.HTTPError, OSError)):
            why = f"the connection to {hub} broke ({error!r}); {KEPT}"
        else:
            why = f"{hub} did not answer as a hub does ({error})"
        raise kind(f"{what}: {why}") from error


@contextmanager
def _on_disk(what: str) -> Iterator[None]:
    """Turn an error of the disk, which has a number, into a DownloadError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or "writing to the disk"
        raise DownloadError(f"{what}: {error.strerror}: {where}; {KEPT}") from error


def unpack(
    archive: Archive, store: Path, place: Callable[[str], Path | None], start: int = 0
) -> Iterator[tuple[str, int]]:
    """Yield (member, end) for every file of an archive, once it stands at
    `place(member)`, unless that is None. Raises ArchiveError. Parts are fetched into
    `store` as they are reached. A plain tar in parts can be read on from `end`, given
    as `start`; of others it is 0. Files of a packed tar that turns out damaged are
    taken away again: its checksum is about them all."""
    if archive.fault:
        raise ArchiveError(f"{archive.name}: {archive.fault}")
    unproven = []
    try:
        with io.BufferedReader(_Joined(archive, store), BLOCK) as joined:
            for member in _members(joined, start):
                _require_plain(archive.name, member)
                target = place(member.name)
                if target and _write(archive.name, member, target) and member.packed:
                    unproven.append(target)
                yield member.name, member.end if len(archive.parts) > 1 else 0
    except DownloadError:
        raise
    except Exception as error:  # whatever the readers of archives raise
        for target in unproven:
            target.unlink(missing_ok=True)
        why = f"cannot be read to its end ({error}), though it is what the hub lists"
        todo = "the hub's own file is damaged; report it there"
        if isinstance(error, NotImplementedError):
            why, todo = f"cannot be read here ({error})", UNPACK
        raise ArchiveError(f"{archive.name}: {why}: {todo}") from error


def copy(file: HubFile, store: Path, target: Path) -> None:
    """Put a file that is no archive at `target`, by way of `store`."""
    whole = Archive(f"{file.repo}: {file.path}", (file,), ())
    with whole.fetch_part(0, store).open("rb") as source:
        member = _Member(file.path, file.size, True, lambda: source)
        _write(whole.name, member, target)
    whole.drop_parts(store, file.size)


class _Member(NamedTuple):
    """A member as it declares itself; `packed`: only the whole archive is checked."""

    name: str
    size: int
    plain: bool
    open: Callable
    packed: bool = False
    end: int = 0


def _members(joined: io.BufferedReader, start: int) -> Iterator[_Member]:
    """All members but folders of an archive, told by its first bytes what it is."""
    head = b"" if start else joined.read(10)
    joined.seek(start)
    unpacked = next((read for first, read in PACKED if first.match(head)), None)
    if ZIP.match(head):
        yield from _zipped(joined)
    elif unpacked:
        yield from _tarred(unpacked(joined), packed=True)
    else:  # read1 asks for the next part only when it is needed
        for member in _tarred(SimpleNamespace(read=joined.read1)):
            yield member._replace(end=start + member.end)


def _zipped(joined: io.BufferedReader) -> Iterator[_Member]:
    with zipfile.ZipFile(joined) as file:
        for info in (info for info in file.infolist() if not info.is_dir()):
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where not made on Unix
            plain = kind in (0, stat.S_IFREG) and not info.flag_bits & 1
            name = info.orig_filename  # .filename has been mended
            yield _Member(name, info.file_size, plain, partial(file.open, info))


def _tarred(stream, packed: bool = False) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:
        for info in (info for info in tar if not info.isdir()):
            plain = info.isreg() and not info.issparse()
            end = 0 if packed else tar.offset
            opens = partial(tar.extractfile, info)
            yield _Member(info.name, info.size, plain, opens, packed, end)
    while packed and stream.read(BLOCK):
        pass  # to where the checksum is


def _require_plain(archive: str, member: _Member) -> None:
    """ArchiveError unless a member is a plain file with a plain relative name."""
    name, fault = member.name, ""
    if not is_relative(name):
        fault = "leads out of the folder"
    elif not member.plain:
        fault = "is a link, a device, sparse or encrypted, not a plain file"
    elif len(os.fsencode(name)) > 4096 or len(os.fsencode(Path(name).name)) > 255:
        fault = "has a name too long for a file"
    if fault:
        raise ArchiveError(f"{archive}: the member {shown(name)} {fault}; {STOPPED}")


def _write(archive: str, member: _Member, target: Path) -> bool:
    """Copy a member to `target`, whole or not at all; False if it was there."""
    if target.exists():
        if (there := target.stat().st_size) != member.size:
            raise ArchiveError(
                f"{archive}: the member {shown(member.name)} has {member.size:,} bytes,"
                f" but {target} is there with {there:,}; delete that file if this one"
                " shall take its place"
            )
        return False
    require_space(target.parent, member.size, f"unpack {member.name} of {archive}")
    unfinished = target.with_name(UNFINISHED)
    with _on_disk(f"{archive}: {member.name}"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as out:
                shutil.copyfileobj(member.open(), out, BLOCK)
                out.flush()
                os.fsync(out.fileno())
            if unfinished.stat().st_size != member.size:
                raise EOFError(f"{member.name} ends too early")
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)
    return True


class _Joined(io.RawIOBase):
    """The bytes of an archive, part after part, each fetched when it is reached."""

    def __init__(self, archive: Archive, store: Path):
        self._ends = archive.ends
        self._fetch = cache(partial(archive.fetch_part, store=store))
        self._at, self._part, self._file = 0, None, io.BytesIO()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._ends[-1])[whence]
        return self._at

    def readinto(self, buffer) -> int:
        part = bisect_right(self._ends, self._at)
        if part == len(self._ends):
            return 0
        if part != self._part:
            self._file.close()
            self._part, self._file = part, self._fetch(part).open("rb")
        self._file.seek(self._at - self._ends[part], os.SEEK_END)
        read = self._file.readinto(buffer)
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
