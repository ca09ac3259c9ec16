"""Get SEED-Bench-R1 and LongVideoBench, laid out as `lib/data/questions.py` reads them.

    annotations/*.jsonl    the official bytes; training_6k.jsonl is named training.jsonl
                           and training_with_cot_6k.jsonl training_with_cot.jsonl
    videos/<source>/*.mp4, images/<source>/*.png, general/lvb_val.json, general/videos/
    downloads.json         commits, hashes, what each archive held, licences accepted
    part/                  with --at-most: the questions whose clips are there

Neither which archive holds which clip is documented nor in which form the stills are
kept. So archives come one by one, stills first, and each is deleted after use."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from lib import paths, records, run_files
from lib.data import download, hub_names, parts, questions
from lib.data.download import Archive, ArchiveError, DownloadError, HubFile
from lib.data.hub_names import CLIP, LONG_VIDEO_BENCH, SEED_BENCH, STILLS, source_of

# Of 2025-03-31; the pages of its annotation files show the facts in seed_bench.csv.
ANNOTATIONS_COMMIT = "13f15b4"
READ_BY_NOTEBOOKS = ("L1", "L2", "L3", "training", "demonstrations")
CHOICES = {
    "L1": ("L1",),
    "L2": ("L2",),
    "L3": ("L3",),
    "evaluation": ("L1", "L2", "L3"),
    "training_6k": ("training", "demonstrations"),
    "all": (*READ_BY_NOTEBOOKS, "training_50k"),
    "longvideobench": ("general",),
}
COSTS = """\
what to `get`, and how much it downloads at most (only the wanted clips stay on disk):
  L2, L3          about 18 GB, Ego4D (estimate)
  L1              530 +- 110 GB, EPIC-KITCHENS (estimate)
  evaluation      L1, L2 and L3
  training_6k     the archives of L1; asked for together they are downloaded once
  all             everything of SEED-Bench-R1, the 50k training questions too
  longvideobench  161.5 GB; without the subtitles, which the paper does not use
--at-most 40GB stops there; a larger number later goes on. --have FOLDER uses clips that
you have. --dry-run shows the sizes that the hub itself lists."""
LICENCES = {  # by the source of the clips
    "EpicKitchens": "EPIC-KITCHENS-100, CC BY-NC 4.0: name the source, no commercial"
    " use (https://epic-kitchens.github.io)",
    "Ego4D": "Ego4D: needs a licence signed by you"
    " (https://ego4ddataset.com/ego4d-license)",
    "": "LongVideoBench, CC BY-NC-SA 4.0: name the source, no commercial use, pass on"
    " under the same licence; accept it with your account, too, on"
    f" https://huggingface.co/datasets/{LONG_VIDEO_BENCH}, and set HF_TOKEN",
}


class Official(NamedTuple):
    """An annotation file: its name here and on the hub, the size and SHA-256 its page
    shows ("": not documented), the source of its questions' clips."""

    name: str
    repo: str
    path: str
    size: str
    sha256: str
    clips: str


with Path(__file__).with_suffix(".csv").open(encoding="utf-8") as _file:
    OFFICIAL = {row.pop("split"): Official(**row) for row in csv.DictReader(_file)}


def get(
    folder: Path,
    what: Iterable[str],
    accept_licences: bool = False,
    dry_run: bool = False,
    at_most: int | None = None,
    have: Path | None = None,
) -> None:
    """Say what is missing for the choices of `what`, then download it into `folder`:
    archives of `at_most` bytes in all, and none for clips that lie below `have`. Raises
    DownloadError, or Busy where another process does the same."""
    target = Target(folder, what, at_most)
    wanted = target.wanted()
    if wanted is not None and have and not dry_run:
        target.link(wanted, have)
    if wanted is not None and not missing(wanted):
        target.conclude(wanted)
        return
    target.ask_hub()
    licences = {LICENCES[OFFICIAL[split].clips] for split in target.chosen}
    plan = [*target.plan(wanted), *(("licence", text) for text in sorted(licences))]
    print(*(f"{label:10}{text}" for label, text in plan), sep="\n")
    if dry_run:
        return
    if not accept_licences and not licences <= set(target.known["licences"]):
        raise DownloadError(
            "nothing was downloaded: read the licences above and add --accept-licences"
            " if you accept them"
        )
    with run_files.one_writer(target.book, "written"):
        target.known["licences"] = sorted({*target.known["licences"], *licences})
        target.remember()
        target.get_annotations()
        wanted = target.wanted()
        if have:
            target.link(wanted, have)
        target.get_media(wanted)
    target.conclude(wanted)
    if target.left:
        size = download.told(sum(archive.ends[-1] for archive in target.left))
        print(f"{len(target.left):,} archives ({size}) are left for a larger --at-most")
    elif lacking := [str(path.relative_to(folder)) for path in missing(wanted)]:
        print(
            f"{len(lacking):,} are in no archive that the hub lists and that is sound,"
            f" such as {', '.join(lacking[:5])}: their questions stay in the"
            " denominator and count as wrong."
        )
    print(f"Next: python -m lib.data check {folder}")
    if target.unusable:
        raise DownloadError("\n".join(map(str, target.unusable)))


class Target:
    """A data folder, what is wanted of it, and what its downloads.json knows."""

    def __init__(self, folder: Path, what: Iterable[str], at_most: int | None):
        self.folder, self.at_most = folder, at_most
        self.chosen = dict.fromkeys(split for name in what for split in CHOICES[name])
        if at_most is not None and "general" in self.chosen:
            why = "LongVideoBench is one archive of 161.5 GB: ask for it alone"
            raise DownloadError(f"{why}, without --at-most")
        self.files = {split: OFFICIAL[split] for split in self.chosen}
        if any(file.repo == SEED_BENCH for file in self.files.values()):
            self.files |= {split: OFFICIAL[split] for split in READ_BY_NOTEBOOKS}
        self.store, self.book = folder / ".downloads", folder / "downloads.json"
        self.known = {"licences": [], "commits": {}, "annotations": {}}
        self.known |= {"archives": {}, "read_to": {}, "spent": 0}
        self.known |= records.read_json(self.book, {})
        self.annotations: dict[str, dict[str, HubFile]] = {}  # {repo: {path: file}}
        self.unusable: list[ArchiveError] = []  # others may be sound
        self.left: list[Archive] = []  # for a larger at_most

    def remember(self) -> None:
        records.write_json(self.book, self.known)

    def wanted(self) -> set[Path] | None:
        """The media the chosen splits need; None if an annotation file is not there,
        DownloadError if one has other bytes than the official ones."""
        for file in self.files.values():
            path, fetched = self.folder / file.name, self.known["annotations"]
            expected = file.sha256 or fetched.get(file.name, {}).get("sha256")
            if not path.is_file() or expected is None:
                return None
            if records.sha256(path) != expected:
                raise DownloadError(
                    f"{path} is not the official file ({file.size}, SHA-256"
                    f" {expected}): move it away, then run this again"
                )
        found = set()
        for split in self.chosen:
            root = self.folder / "general" if split == "general" else self.folder
            path = self.folder / self.files[split].name
            for _, item in questions.check(path, root)["rows"]:
                found |= {item.video, item.image} - {None}
        return found

    def ask_hub(self) -> None:
        """List annotations at the commit their hashes were read at; archives and single
        files, of which that one may lack some, at the newest of the first call."""
        media, commits = [], self.known["commits"]
        for repo in dict.fromkeys(file.repo for file in self.files.values()):
            if repo not in commits:
                found = download.commits(repo)
                pinned = ANNOTATIONS_COMMIT if repo == SEED_BENCH else ""
                pinned = next((c for c in found if c.startswith(pinned)), None)
                if pinned is None:
                    raise DownloadError(f"{repo} lists no commit {ANNOTATIONS_COMMIT}")
                commits[repo] = {"annotations": pinned, "media": found[0]}
            used = commits[repo]
            self.annotations[repo] = download.listing(repo, used["annotations"])
            media += download.listing(repo, used["media"]).values()
        read = (file for file in media if "subtitle" not in file.path.lower())
        self.single, found = hub_names.sorted_out(read)
        known = self.known["archives"]
        self.archives = sorted(found, key=lambda a: a.name not in known)

    def plan(self, wanted: set[Path] | None) -> Iterator[tuple[str, str]]:
        """(label, text) of what a call will do."""
        free = download.told(download.free_space(self.folder))
        yield "folder", f"{self.folder} ({free} free)"
        yield "for", ", ".join(self.chosen)
        for repo in self.annotations:
            at = "annotations at {annotations}, media at {media}"
            yield "from", f"{repo}, {at.format(**self.known['commits'][repo])}"
        for file in self.files.values():
            yield "text", f"{file.name} ({file.size})"
        if wanted is None:
            yield "media", "to be counted when the annotations are there"
            lacking, names, endings = None, (), (CLIP, *STILLS)
            stills = any(OFFICIAL[split].clips for split in self.chosen)
        else:
            yield "media", _count(wanted)
            lacking = missing(wanted)
            names, endings = {path.name for path in lacking}, ()
            stills = any(name.endswith(STILLS) for name in names)
        sizes = defaultdict(list)
        for file in self.single:
            if PurePosixPath(file.path).name in names or file.path.endswith(endings):
                sizes["single files"].append(file.size)
                stills &= not file.path.endswith(STILLS)
        for archive in self.archives:
            if not self.may_hold(archive, lacking):
                continue
            if archive.fault:
                yield "refused", f"{archive.name}: {archive.fault}"
                continue
            held = self.known["archives"].get(archive.name, {}).get("files", ())
            if count := sum(name in held for name in names):
                yield "missing", f"{count:,} that are known to be in {archive.name}"
            sizes[" or ".join(archive.folders)].append(archive.ends[-1])
            stills &= not hub_names.of_stills(archive)
        for place, found in sizes.items():
            most = download.told(sum(found))
            yield "download", f"{place}: at most {most} in {len(found):,} file(s)"
        if stills:  # and none of the above may hold some
            yield "download", "images: the hub lists NOTHING that may hold stills,"
            yield "", "and `get` stops before the archives of clips"
        if self.at_most is not None:
            spent, most = map(download.told, (self.known["spent"], self.at_most))
            yield "until", f"{most} are used up; {spent} are"

    def get_annotations(self) -> None:
        """Fetch every annotation file and note its hash."""
        for file in self.files.values():
            listed = self.annotations[file.repo].get(file.path)
            if listed is None:
                raise DownloadError(f"{file.repo} lists no {file.path}")
            if listed.digest != (file.sha256 or listed.digest):
                raise DownloadError(
                    f"{file.repo} lists {file.path} with the hash {listed.digest}; the"
                    f" official file has {file.sha256} ({file.size})"
                )
            path = download.fetch(listed, self.folder / file.name)
            facts = {"repo": file.repo, "path": file.path, "size": listed.size}
            facts["sha256"] = records.sha256(path)
            self.known["annotations"][file.name] = facts
            self.remember()

    def get_media(self, wanted: set[Path]) -> None:
        """Get what is missing: stills, then clips; each from single files, then from
        archives. DownloadError if none gave any still of one of the sources."""
        stills = {p for p in wanted if p.is_relative_to(self.folder / "images")}
        folders = sorted({still.parent for still in stills})
        for some, of_stills in ((stills, True), (wanted - stills, False)):
            self.get_files(some)
            self.get_archives(wanted, of_stills)
            for folder in folders:
                needed = [still for still in stills if still.parent == folder]
                if not any(still.is_file() for still in needed):
                    why = (
                        f"no clip was downloaded: {folder} needs {len(needed):,} stills"
                        " and none was found, neither as a file of its name nor in an"
                        " archive whose path does not speak of clips alone. Put them"
                        " there yourself; the same command then goes on"
                    )
                    if self.left:
                        why += f"; {len(self.left)} archives are more than --at-most"
                    raise DownloadError("\n".join([why, *map(str, self.unusable)]))

    def get_files(self, wanted: set[Path]) -> None:
        """Get what is missing and a file by itself on the hub."""
        place = _Places("a file of the hub", missing(wanted))
        for file in tqdm(self.single, "files", unit="file", leave=False):
            try:
                if path := place(file.path):
                    download.copy(file, self.store, path)
            except ArchiveError as error:
                self.unusable.append(error)

    def get_archives(self, wanted: set[Path], of_stills: bool) -> None:
        """Take out of archives what is missing, until nothing is."""
        these = [a for a in self.archives if hub_names.of_stills(a) == of_stills]
        for archive in tqdm(these, "archives", unit="archive"):
            try:
                if not self.may_hold(archive, missing(wanted)):
                    continue
                until = self.known["spent"] + archive.ends[-1]
                if self.at_most is not None and until > self.at_most:
                    self.left.append(archive)
                    continue
                self.take_out(archive, wanted)
            except ArchiveError as error:
                self.unusable.append(error)

    def link(self, wanted: set[Path], have: Path) -> None:
        """Link the missing files that lie somewhere below a folder to their places."""
        place = _Places(str(have), missing(wanted))
        for found in sorted(path for path in paths.below(have) if path.is_file()):
            if path := place(str(found.relative_to(have))):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # a link to what has gone
                path.symlink_to(found.resolve())

    def conclude(self, wanted: set[Path]) -> None:
        """Say how much is there. Where a download is bounded, make the questions whose
        clips are there a data folder, and say how many they are."""
        print(f"{self.folder}: {_count(wanted)}")
        if self.at_most is None:
            return
        files = {split: file.name for split, file in self.files.items()}
        for split, own in parts.write(self.folder, files, self.chosen).items():
            said = f"{own['questions']:,} of {own['of']:,} records with clip and still"
            print(f"{self.folder / parts.FOLDER}: {split}: {said}")

    def may_hold(self, archive: Archive, lacking: list[Path] | None) -> bool:
        """Whether an archive can hold a missing file, by its place and what it held; by
        its source where nobody knows yet what is missing."""
        if lacking is None:
            sources = {OFFICIAL[split].clips for split in self.chosen} | {""}
            return not sources.isdisjoint(map(source_of, archive.folders))
        names = {path.name for path in lacking if self.belongs(path, archive)}
        held = self.known["archives"].get(archive.name)
        if held is not None and held["digests"] == archive.digests:
            names.intersection_update(held["files"])
        return bool(names)

    def belongs(self, path: Path, archive: Archive) -> bool:
        return any(path.is_relative_to(self.folder / f) for f in archive.folders)

    def take_out(self, archive: Archive, wanted: set[Path]) -> None:
        """Put the wanted files of an archive in their places and delete the archive; of
        a plain tar in parts (LongVideoBench) each part once it is read, until nothing
        is missing. A later call reads on from there."""
        read_to, names = self.known["read_to"], []
        place = _Places(archive.name, [p for p in wanted if self.belongs(p, archive)])
        start = read_to.get(archive.name, 0)
        members = download.unpack(archive, self.store, place, start)
        for member, end in tqdm(members, archive.name, unit="file", leave=False):
            name = PurePosixPath(member).name
            names.append(name.encode(errors="replace").decode())  # may not be UTF-8
            if archive.drop_parts(self.store, end):
                read_to[archive.name] = end
                self.remember()
            if end and not place.lacked - place.taken.keys():
                break
        else:
            if not start:  # from end to end, so `names` are all
                held = {"digests": archive.digests, "files": names}
                self.known["archives"][archive.name] = held
        read_to.pop(archive.name, None)
        self.known["spent"] += archive.ends[-1]
        self.remember()
        archive.drop_parts(self.store, archive.ends[-1])


class _Places:
    """Where a member of an archive belongs by its file name, None if nobody wants it.
    Folders within an archive only tell the source, if they name one. Two members for
    one place are an error and leave it empty: nothing tells which a question means."""

    def __init__(self, archive: str, wanted: list[Path]):
        self.archive, self.taken, self.named = archive, {}, defaultdict(list)
        for path in wanted:
            self.named[path.name].append(path)
        self.lacked = {path for path in wanted if not path.is_file()}

    def __call__(self, member: str) -> Path | None:
        source = source_of(f"{self.archive}/{member}")
        named = self.named.get(PurePosixPath(member).name, [])
        found = [path for path in named if source in ("", path.parent.name)]
        if not found:
            return None
        if len(found) > 1:
            both = " and ".join(map(str, sorted(found)))
            raise ArchiveError(f"{self.archive}: {member!r} could be {both}")
        first = self.taken.setdefault(found[0], member)
        if first is not member:
            if found[0] in self.lacked:  # else it is not from here
                found[0].unlink(missing_ok=True)
            raise ArchiveError(
                f"{self.archive}: {first!r} and {member!r} would both be {found[0]};"
                " nothing tells which is meant, so neither is taken"
            )
        return found[0]


def missing(wanted: Iterable[Path]) -> list[Path]:
    """Those of some files that are not there, sorted."""
    return sorted(path for path in wanted if not path.is_file())


def _count(wanted: set[Path]) -> str:
    there = len(wanted) - len(missing(wanted))
    return f"{there:,} of {len(wanted):,} files there"
