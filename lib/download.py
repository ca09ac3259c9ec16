"""Files of a Hugging Face dataset: fetched, verified, taken out of their archives.

`huggingface_hub` does the talking (listings, tokens, redirects, retries; HF_ENDPOINT
and HF_TOKEN mean what they mean there). Its `hf_hub_download` begins again after a
kill, and these files have gigabytes; so here a file grows as `<name>.part` and takes
its name only when its size and hash are those the hub lists.

    >>> files = listing("TencentARC/SEED-Bench-R1", commit)
    >>> fetch(files["annotations/validation_L1.jsonl"], Path("validation_L1.jsonl"))

An archive is read as a stream and never trusted with a path: the caller names the place
of each member it wants, and a member that is anything but a plain file with a plain
relative name ends the reading.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from lib import records
from lib.schemas import is_relative, shown

WAITS = (1, 4)  # seconds before the second and the third attempt; http_get has its own
BLOCK = 2**20
STOPPED = "nothing more is unpacked: report it to who made the archive"
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


class DownloadError(Exception):
    """What could not be downloaded or unpacked, and what to do about it."""


class ArchiveError(DownloadError):
    """An archive whose members cannot be used; others may be sound."""


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
    """A tar, tar.gz or zip file, in one part or several that follow each other;
    `prefix` is the folder, relative to the user's, whose files it may hold."""

    name: str
    parts: tuple[HubFile, ...]
    prefix: str

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def digests(self) -> list[str]:
        return [part.digest for part in self.parts]

    def whole_parts(self, end: int) -> int:
        """How many parts end at or before byte `end`."""
        return sum(reached <= end for reached in accumulate(p.size for p in self.parts))

    def fetch_part(self, number: int, store: Path) -> Path:
        """A part, downloaded into the folder `store` unless it is there."""
        return fetch(self.parts[number], self._stored(number, store))

    def drop_parts(self, store: Path, end: int) -> None:
        """Delete the downloaded parts that end at or before byte `end`."""
        for number in range(self.whole_parts(end)):
            self._stored(number, store).unlink(missing_ok=True)

    def _stored(self, number: int, store: Path) -> Path:
        part = self.parts[number]
        return store / f"{part.digest[:12]}-{Path(part.path).name}"


# --- the hub --------------------------------------------------------------------------


def commits(repo: str) -> list[str]:
    """Full hashes of a dataset's commits, newest first."""
    with _explained(repo):
        found = HfApi().list_repo_commits(repo, repo_type="dataset")
    return [commit.commit_id for commit in found]


def listing(repo: str, commit: str) -> dict[str, HubFile]:
    """{path: HubFile} of everything a dataset holds at a commit (its full hash)."""
    files = {}
    with _explained(repo):
        entries = HfApi().list_repo_tree(
            repo, recursive=True, revision=commit, repo_type="dataset"
        )
        for entry in entries:
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
    """`target`, downloaded unless it is there, with the size and hash of `file`.

    A broken connection is taken up again where it broke (to 10 MiB, the library's
    block), here a few times, then by the next call. What is complete but another file
    is deleted. Raises DownloadError.
    """
    if target.is_file():
        if digest(target, like=file.digest) != file.digest:
            raise DownloadError(
                f"{target} is there, but is not what {file.repo} lists as {file.path}:"
                " move it away, then run this again"
            )
        return target
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    there = part.stat().st_size if part.exists() else 0
    require_space(part.parent, file.size - there, f"download {file.path}")
    _transfer(file, part)
    if digest(part, like=file.digest) != file.digest:
        raise _rejected(file, part)
    os.replace(part, target)
    return target


def digest(path: Path, like: str) -> str:
    """Hex digest of a file, of the kind `like` is: SHA-256, or git's blob id."""
    if len(like) == 64:
        return records.sha256(path)
    hashed = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    hashed.update(path.read_bytes())
    return hashed.hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError unless the disk below `folder` has `needed` bytes left."""
    free = free_space(folder)
    if free < needed:
        raise DownloadError(
            f"not enough disk space below {folder} to {what}: {gigabytes(needed)} are"
            f" needed, {gigabytes(free)} are free; make room, then run it again"
        )


def free_space(folder: Path) -> int:
    """Bytes left on the disk of a folder, which need not exist yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def gigabytes(size: int) -> str:
    """Bytes in the unit in which disks are sold: "1.4 GB", below that in MB or kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1000:,.1f} kB"


def _transfer(file: HubFile, part: Path) -> None:
    """Add to `part` what it lacks of `file`."""
    url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.commit)
    # compressed on the way, a file could not be taken up in its middle
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with _explained(f"{file.repo}: {file.path}"):
        for wait in (*WAITS, None):
            try:
                with part.open("ab") as out:
                    http_get(
                        url,
                        out,
                        resume_size=out.tell(),
                        headers=headers,
                        expected_size=file.size,
                        displayed_filename=file.path,
                    )
                return
            except (httpx2.ReadError, HfHubHTTPError) as error:
                response = getattr(error, "response", None)
                refused = response is not None and response.status_code < 500
                if refused or wait is None:
                    raise
                time.sleep(wait)
            except OSError as error:
                if error.errno is None and not isinstance(error, OfflineModeIsEnabled):
                    raise _rejected(file, part) from error  # http_get: another size
                raise


def _rejected(file: HubFile, part: Path) -> DownloadError:
    """The error for a part that is complete but not the file; the part is deleted."""
    size = part.stat().st_size
    with part.open("rb") as opened:
        head = opened.read(64).lstrip().lower()
    what = f"{size:,} bytes with another hash"
    if head.startswith(b"version https://git-lfs"):
        what = "a git-LFS pointer"
    elif head.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page"
    elif size != file.size:
        what = f"{size:,} bytes"
    part.unlink()
    return DownloadError(
        f"{file.repo}: {file.path}: received {what}; expected {file.size:,} bytes with"
        f" the hash {file.digest}. It was deleted; run it again, and if it happens"
        f" again look at what {constants.ENDPOINT} serves"
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the hub or the disk can say into a DownloadError about `what`."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        why = "HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it"
        raise DownloadError(f"{what}: {why}") from error
    except GatedRepoError as error:
        repo = what.partition(":")[0]
        raise DownloadError(
            f"{what}: the hub asks for an account that has accepted the licence:"
            f" accept it at https://huggingface.co/datasets/{repo}, then run"
            " `hf auth login` or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status, url = error.response.status_code, error.response.url
        todo = "run it again later, or look whether the hub still lists that file"
        if status in (401, 403):
            todo = "log in with `hf auth login` or set HF_TOKEN, then run it again"
        why = f"{constants.ENDPOINT} answered {status} for {url}; {todo}"
        raise DownloadError(f"{what}: {why}") from error
    except httpx2.TransportError as error:
        raise DownloadError(
            f"{what}: the connection to {constants.ENDPOINT} broke ({error!r}); what"
            " has arrived is kept, and the same command goes on from there"
        ) from error
    except ValueError as error:
        why = f"{constants.ENDPOINT} did not answer as a hub does"
        raise DownloadError(f"{what}: {why} ({error})") from error
    except OSError as error:
        raise DownloadError(
            f"{what}: {error.strerror}: {error.filename or 'writing to the disk'}; what"
            " has arrived is kept, and the same command goes on from there"
        ) from error


# --- archives -------------------------------------------------------------------------


def unpack(
    archive: Archive, store: Path, place: Callable[[str], Path | None], start: int = 0
) -> Iterator[tuple[str, int]]:
    """Yield (member, end) for every file of an archive, in its order.

    By then the member stands at `place(member)`, whole, unless that is None; one that
    stands there already must have its size. Parts are fetched into `store` as they are
    reached and left there. `end` is where the next member begins; a plain tar can be
    read on from there by giving it as `start`. Raises ArchiveError.
    """
    try:
        if archive.name.endswith(".zip"):
            yield from _unzip(archive, store, place)
            return
        with _Joined(archive, store, start) as joined:
            mode = "r|" if start else "r|*"
            with tarfile.open(fileobj=joined, mode=mode, bufsize=BLOCK) as tar:
                for member in tar:
                    if _is_folder(archive, member.name, member.isdir(), member.isreg()):
                        continue
                    target = place(member.name)
                    if target is not None:
                        source = tar.extractfile(member)
                        _write(archive, member.name, member.size, source, target)
                    yield member.name, start + tar.offset
    except DAMAGE as error:
        raise ArchiveError(
            f"{archive.name}: cannot be read to its end ({error}), though it is what"
            " the hub lists: the hub's own file is damaged; report it there"
        ) from error


def _unzip(
    archive: Archive, store: Path, place: Callable[[str], Path | None]
) -> Iterator[tuple[str, int]]:
    if len(archive.parts) > 1:
        raise ArchiveError(
            f"{archive.name}: a zip file in parts cannot be read here; {STOPPED}"
        )
    with zipfile.ZipFile(archive.fetch_part(0, store)) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where not made on Unix
            plain = kind in (0, stat.S_IFREG) and not member.flag_bits & 1
            name = member.orig_filename  # .filename has been mended
            if _is_folder(archive, name, member.is_dir(), plain):
                continue
            target = place(name)
            if target is not None:
                with file.open(member) as source:
                    _write(archive, name, member.file_size, source, target)
            yield name, 0


def _is_folder(archive: Archive, name: str, folder: bool, plain: bool) -> bool:
    """Whether a member is a folder; ArchiveError unless it is that or a plain file."""
    if folder and not name.strip("./"):
        return True  # "./", with which many archives begin
    where = f"{archive.name}: the member {shown(name)}"
    if not is_relative(name):
        raise ArchiveError(f"{where} leads out of the folder; {STOPPED}")
    if not (folder or plain):
        raise ArchiveError(
            f"{where} is a link, a device or encrypted, not a plain file; {STOPPED}"
        )
    if len(os.fsencode(name)) > 4096 or len(os.fsencode(Path(name).name)) > 255:
        raise ArchiveError(f"{where} has a name too long for a file; {STOPPED}")
    return folder


def _write(archive: Archive, member: str, size: int, source, target: Path) -> None:
    """Copy a member to `target`, whole or not at all."""
    if target.exists():
        if target.stat().st_size != size:
            raise ArchiveError(
                f"{archive.name}: the member {shown(member)} has {size:,} bytes, but"
                f" {target} is there with {target.stat().st_size:,}; delete that file"
                " if this one shall take its place"
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, size, f"unpack {member} of {archive.name}")
    unfinished = target.with_name(".unfinished")
    try:
        with _explained(f"{archive.name}: {member}"), unfinished.open("wb") as out:
            shutil.copyfileobj(source, out, BLOCK)
            out.flush()
            os.fsync(out.fileno())
        if unfinished.stat().st_size != size:
            raise EOFError(f"{member} ends too early")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


class _Joined:
    """The bytes of an archive from `start` on, one part after the other, with a bar;
    each part is fetched when it is reached."""

    def __init__(self, archive: Archive, store: Path, start: int):
        self._blocks = self._read(archive, store, start)
        name = Path(archive.name).name
        self._bar = tqdm(
            desc=f"unpack {name}",
            total=archive.size,
            initial=start,
            unit="B",
            unit_scale=True,
            leave=False,
        )

    def __enter__(self) -> _Joined:
        return self

    def __exit__(self, *_) -> None:
        self._blocks.close()
        self._bar.close()

    def read(self, _size: int) -> bytes:
        """The next bytes, b"" at the end; tarfile asks again while it needs more."""
        block = next(self._blocks, b"")
        self._bar.update(len(block))
        return block

    @staticmethod
    def _read(archive: Archive, store: Path, start: int) -> Iterator[bytes]:
        for number, part in enumerate(archive.parts):
            if start < part.size:
                with archive.fetch_part(number, store).open("rb") as file:
                    file.seek(start)
                    while block := file.read(BLOCK):
                        yield block
            start = max(start - part.size, 0)
