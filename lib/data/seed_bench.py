"""Get SEED-Bench-R1 and LongVideoBench, laid out as `lib/data/questions.py` reads them.

https://huggingface.co/datasets/TencentARC/SEED-Bench-R1 and, as the general set,
https://huggingface.co/datasets/longvideobench/LongVideoBench. FOLDER is a notebook's
`data_dir`, FOLDER/general its `general_dir`; a relative one is below the checkout:

    $ python -m lib.data get data/seed_bench_r1 --what L2 L3 --dry-run
    $ python -m lib.data get data/seed_bench_r1 --what L2 L3 --accept-licences
    $ python -m lib.data check data/seed_bench_r1 --decode

    annotations/*.jsonl    the official bytes; training_6k.jsonl is named training.jsonl
                           and training_with_cot_6k.jsonl training_with_cot.jsonl
    videos/<source>/*.mp4  the clips that the chosen questions need, no others
    images/<source>/*.png  their stills
    general/lvb_val.json   and general/videos/*.mp4
    downloads.json         commits, hashes, what each archive held, licences accepted

Which archive holds which clip is not documented. So archives come one after the other:
downloaded, verified, the wanted files taken out, the archive deleted; none comes once
nothing is missing. What an archive held is remembered, so that other questions asked
for later cost only the archives they need. In which form the stills are kept is not
documented either: as files, or in a zip or tar of any name, whole or in parts. They
come first, and without any no clip is downloaded.
"""

from __future__ import annotations

import fcntl
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from string import ascii_lowercase, digits
from typing import NamedTuple

from tqdm import tqdm

from lib import records
from lib.data import download, questions
from lib.data.download import Archive, ArchiveError, DownloadError, HubFile

SEED_BENCH = "TencentARC/SEED-Bench-R1"
LONG_VIDEO_BENCH = "longvideobench/LongVideoBench"
ANNOTATIONS_COMMIT = "13f15b4"  # the hashes in seed_bench.json were read there
SOURCES = ("EpicKitchens", "Ego4D")
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
  longvideobench  161.5 GB; 117 MB more with --subtitles, which the paper does not use
--dry-run shows the sizes that the hub itself lists."""
LICENCES = {
    SEED_BENCH: (
        "EPIC-KITCHENS-100, CC BY-NC 4.0: name the source, no commercial use"
        " (https://epic-kitchens.github.io)",
        "Ego4D: needs a licence signed by you (https://ego4ddataset.com/ego4d-license)",
    ),
    LONG_VIDEO_BENCH: (
        "LongVideoBench, CC BY-NC-SA 4.0: name the source, no commercial use, pass on"
        " under the same licence; accept it with your account, too, on"
        f" https://huggingface.co/datasets/{LONG_VIDEO_BENCH}, and set HF_TOKEN",
    ),
}
# An archive by its name; parts are told by what follows it, a number or letters as
# `split` counts, with or without a word: .part_aa .001 00 .part001of010 -00001-of-00010
ARCHIVE = re.compile(
    r"""(?P<name>.+\.(?:tar(?:\.(?:gz|bz2|xz|zst))?|t(?:gz|bz2?|xz|zst)|zip|7z|rar))
    (?:(?P<style>[._\ -]*
    (?P<word>part|piece|split|chunk|slice|vol(?:ume)?|p(?=[._\ -]*\d))?[._\ -]*)
    (?P<number>\d{1,9}|(?(word)[a-z]{1,4}|(?:[a-z]{2}|a(?!sc)[a-z]{2})))
    (?P<of>[._\ -]*of[._\ -]*\d{1,9})?)?""",
    re.IGNORECASE | re.VERBOSE,
)
SPANNED = re.compile(r"(.+\.)z\d\d+", re.IGNORECASE)  # all but the last, a .zip
# Words that tell what a path holds; one with none of them, or all, may hold either.
KINDS = {
    "images": re.compile("image|still|frame|observation|picture|png|jpe?g", re.I),
    "videos": re.compile("video|clip|movie|mp4", re.I),
}
LETTERS = str.maketrans(ascii_lowercase, (digits + ascii_lowercase)[:26])
SOURCE = re.compile(r"(epic[\W_]*kitchens)|ego[\W_]*4d", re.IGNORECASE)


class Official(NamedTuple):
    """An annotation file: its name here and on the hub, the size and SHA-256 its page
    shows (None: not documented), the source of its questions' clips."""

    name: str
    repo: str
    path: str
    size: str
    sha256: str | None
    clips: str | None


def read_official(path: Path) -> dict[str, Official]:
    """{split: Official} of a file such as lib/data/seed_bench.json."""
    facts = records.read_json(path)
    return {split: Official(**f) for split, f in facts.items() if split != "source"}


OFFICIAL = read_official(Path(__file__).with_suffix(".json"))


# --- getting --------------------------------------------------------------------------


def get(
    folder: Path,
    what: Iterable[str],
    subtitles: bool = False,
    accept_licences: bool = False,
    dry_run: bool = False,
    official: dict[str, Official] = OFFICIAL,
) -> None:
    """Say what is missing for the choices of `what`, then download it into `folder`.

    Nothing is asked of the hub if nothing is missing. Raises DownloadError; the same
    call goes on where it stopped.
    """
    target = Target(folder, what, subtitles, official)
    wanted = target.wanted()
    if wanted is not None and not missing(wanted):
        print(f"{folder}: {_count(wanted)}")
        return
    repos = dict.fromkeys(file.repo for file in target.files.values())
    listings = {repo: target.listings(repo) for repo in repos}
    media = [media for _, media in listings.values()]
    archives = _archives(media, subtitles)
    files = [f for f in _sorted(media) if not ARCHIVE.fullmatch(f.path)]
    licences = {text for repo in repos for text in LICENCES[repo]}
    print(_plan(target, wanted, archives, files, sorted(licences)))
    if dry_run:
        return
    if not accept_licences and not licences <= set(target.known["licences"]):
        raise DownloadError(
            "nothing was downloaded: read the licences above and add --accept-licences"
            " if you accept them"
        )
    with _alone(folder):
        target.known["licences"] = sorted({*target.known["licences"], *licences})
        target.remember()
        target.get_annotations(listings)
        unusable = target.get_media(archives, files)
    print(_outcome(folder, target.wanted()))
    if unusable:
        raise DownloadError("\n".join(map(str, unusable)))


class Target:
    """A data folder, what is wanted of it, and what its downloads.json knows."""

    def __init__(
        self,
        folder: Path,
        what: Iterable[str],
        subtitles: bool,
        official: dict[str, Official],
    ):
        self.folder, self.subtitles = folder, subtitles
        self.chosen = dict.fromkeys(split for name in what for split in CHOICES[name])
        self.files = {split: official[split] for split in self.chosen}
        if any(file.repo == SEED_BENCH for file in self.files.values()):
            self.files |= {split: official[split] for split in READ_BY_NOTEBOOKS}
        self.store, book = folder / ".downloads", folder / "downloads.json"
        self.known = {"licences": [], "commits": {}, "annotations": {}}
        self.known |= {"archives": {}, "read_to": {}}
        self.known |= records.read_json(book) if book.exists() else {}

    def remember(self) -> None:
        records.write_json(self.folder / "downloads.json", self.known)

    def wanted(self) -> set[Path] | None:
        """The media the chosen splits need; None if an annotation file is not there.

        DownloadError if one is there with other bytes than the official ones.
        """
        for file in self.files.values():
            path, fetched = self.folder / file.name, self.known["annotations"]
            if not path.is_file():
                return None
            expected = file.sha256 or fetched.get(file.name, {}).get("sha256")
            if expected is None:
                return None  # what it should be is to be asked
            if records.sha256(path) != expected:
                raise DownloadError(
                    f"{path} is not the official file ({file.size}, SHA-256"
                    f" {expected}): move it away, then run this again"
                )
        found = set()
        for split in self.chosen:
            path = self.folder / self.files[split].name
            root = self.folder / "general" if split == "general" else self.folder
            for record, item in questions.usable(path, root):
                found |= {item.video, item.image} - {None}
                if self.subtitles and "subtitle_path" in record:
                    name = PurePosixPath(record["subtitle_path"]).name
                    found.add(root / "subtitles" / name)
        return found

    def listings(self, repo: str) -> tuple[dict[str, HubFile], dict[str, HubFile]]:
        """(annotations, media) as the hub lists them at the commits used here.

        Annotations come from the commit their hashes were read at. Whether that one
        has all archives is not documented, so media come from the newest commit of the
        first call, which is remembered.
        """
        if repo not in self.known["commits"]:
            found = download.commits(repo)
            pinned = ANNOTATIONS_COMMIT if repo == SEED_BENCH else ""
            pinned = next((c for c in found if c.startswith(pinned)), None)
            if pinned is None:
                raise DownloadError(f"{repo} lists no commit {ANNOTATIONS_COMMIT}")
            commits = {"annotations": pinned, "media": found[0]}
            self.known["commits"][repo] = commits
        used = self.known["commits"][repo]
        read = {c: download.listing(repo, c) for c in set(used.values())}
        return read[used["annotations"]], read[used["media"]]

    def get_annotations(self, listings: dict) -> None:
        """Fetch every annotation file and note its hash."""
        for file in self.files.values():
            listed = listings[file.repo][0].get(file.path)
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

    def get_media(
        self, archives: list[Archive], files: list[HubFile]
    ) -> list[ArchiveError]:
        """Get what is missing: stills, then clips; each from single files, then from
        archive after archive, those known to help first.

        Returns what is wrong with files and archives that cannot be used; they stay
        where they were downloaded, so that another call does not download them again.
        DownloadError if all that may hold stills gave none for one of the sources.
        """
        wanted, unusable = self.wanted(), []
        stills = {p for p in wanted if p.is_relative_to(self.folder / "images")}
        for folder in {path.parent for path in wanted}:
            download.sweep(folder, wanted)
        archives = sorted(archives, key=lambda a: a.name not in self.known["archives"])
        rounds = {True: stills, False: wanted - stills}
        for first, some in rounds.items():
            these = [a for a in archives if first == _of_stills(a)]
            unusable += self.get_files(files, some)
            unusable += self.get_archives(these, wanted)
            for folder in sorted({still.parent for still in stills}):
                here = [still for still in stills if still.parent == folder]
                if missing(here) == sorted(here):
                    listed = [*files, *(p for a in archives for p in a.parts)]
                    no_stills = _no_stills(missing(here), listed)
                    raise DownloadError("\n".join(map(str, [no_stills, *unusable])))
        return unusable

    def get_files(self, files: list[HubFile], wanted: set[Path]) -> list[ArchiveError]:
        """Get what is missing and a file by itself on the hub."""
        place, unusable = _Places("a file of the hub", missing(wanted)), []
        once = {
            (f.digest, PurePosixPath(f.path).name, _source(f.path)): f for f in files
        }
        for file in tqdm(once.values(), desc="files", unit="file", leave=False):
            try:
                if path := place(file.path):
                    download.copy(file, self.store, path)
            except ArchiveError as error:
                unusable.append(error)
        return unusable

    def get_archives(
        self, archives: list[Archive], wanted: set[Path]
    ) -> list[ArchiveError]:
        """Take out of archives what is missing, until nothing is."""
        unusable = []
        bar = tqdm(archives, desc="archives", unit="archive")
        for archive in bar:
            lacking = missing(wanted)
            bar.set_postfix_str(f"{len(lacking)} files missing")
            if self.may_hold(archive, lacking):
                try:
                    self.take_out(archive, wanted)
                except ArchiveError as error:
                    unusable.append(error)
        return unusable

    def belongs(self, place: Path, archive: Archive) -> bool:
        """Whether a folder is one of those whose files an archive may hold."""
        return any(place.is_relative_to(self.folder / f) for f in archive.folders)

    def may_hold(self, archive: Archive, lacking: list[Path]) -> bool:
        """Whether an archive can hold a missing file, by its place and what it held."""
        places = {path.parent for path in lacking}
        places = {place for place in places if self.belongs(place, archive)}
        names = {path.name for path in lacking if path.parent in places}
        held = self.known["archives"].get(archive.name)
        if held is None or held["digests"] != archive.digests:
            return bool(names)
        return bool(names.intersection(held["files"]))

    def take_out(self, archive: Archive, wanted: set[Path]) -> None:
        """Put the wanted files of an archive in their places and delete the archive.

        Of a plain tar in parts (LongVideoBench) each part is deleted when it has been
        read, a later call reads on from there, and reading ends as soon as nothing that
        the archive may hold is missing.
        """
        store, known, names = self.store, self.known, []
        place = _Places(
            archive.name, [p for p in wanted if self.belongs(p.parent, archive)]
        )
        start = read = known["read_to"].get(archive.name, 0)
        for member, end in download.unpack(archive, store, place, start):
            name = PurePosixPath(member).name
            names.append(name.encode(errors="replace").decode())  # may not be UTF-8
            if len(archive.parts) == 1 or not end:
                continue
            if archive.whole_parts(end) > archive.whole_parts(read):
                read = known["read_to"][archive.name] = end
                self.remember()
                archive.drop_parts(store, end)
            if not place.lacking():
                break
        else:
            if not start:  # from end to end, so `names` are all
                held = {"digests": archive.digests, "files": names}
                known["archives"][archive.name] = held
        known["read_to"].pop(archive.name, None)
        self.remember()
        archive.drop_parts(store, archive.size)


class _Places:
    """Where a member of an archive belongs: called with its name, None if nobody wants
    it.

    It is found by its file name; the folders within an archive only tell the source, if
    one is named: whether upstream's clips are flattened is not documented. Two members
    for one place are an error and leave the place empty, because nothing tells which of
    them a question means.
    """

    def __init__(self, archive: str, wanted: Iterable[Path]):
        self.archive, self.taken, self.named = archive, {}, defaultdict(list)
        self.lacked = set(missing(wanted))
        for path in wanted:
            self.named[path.name].append(path)

    def __call__(self, member: str) -> Path | None:
        source = _source(f"{self.archive}/{member}")
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
                found[0].unlink()
            both = f"{first!r} and {member!r}"
            raise ArchiveError(
                f"{self.archive}: {both} would both be {found[0]}; nothing tells"
                " which is meant, so neither is taken"
            )
        return found[0]

    def lacking(self) -> bool:
        return any(missing(path for paths in self.named.values() for path in paths))


def missing(wanted: Iterable[Path]) -> list[Path]:
    """Those of some files that are not there, sorted."""
    return sorted(path for path in wanted if not path.is_file())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".downloads.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"another process downloads into {folder}") from error
        yield


def _archives(listings: list[dict[str, HubFile]], subtitles: bool) -> list[Archive]:
    """The archives with media, in the order of their numbers, parts put together."""
    groups, spanned = defaultdict(list), set()
    for file in _sorted(listings):
        if found := SPANNED.fullmatch(file.path):
            spanned.add((file.repo, f"{found[1]}zip".lower()))
        elif found := ARCHIVE.fullmatch(file.path):
            name, style, number, of = found.group("name", "style", "number", "of")
            groups[file.repo, name, style, of].append((number, file))
    archives = []
    for (repo, name, style, of), numbered in groups.items():
        parts, fault = _in_order(numbered, of)
        if name.lower().endswith((".7z", ".rar")) or (repo, name.lower()) in spanned:
            fault = f"a 7z, rar or spanned zip file is not read: {download.UNPACK}"
        whole = f"{repo}: {name}" + ("" if style is None else f"{style}*{of or ''}")
        archives.append(Archive(whole, parts, _folders(parts[0]), fault))
    return [a for a in archives if subtitles or a.folders != ("general/subtitles",)]


def _in_order(
    numbered: list[tuple[str | None, HubFile]], of: str | None
) -> tuple[tuple[HubFile, ...], str]:
    """The parts of an archive in their order, and what is wrong with them or ""."""
    if numbered[0][0] is None:
        return (numbered[0][1],), ""
    base = 10 if numbered[0][0].isdecimal() else 26
    letters = LETTERS if base == 26 else {}
    places = {int(n.lower().translate(letters), base): file for n, file in numbered}
    parts = tuple(places[place] for place in sorted(places))
    # `split` goes on behind 89 with 90 or 9000, behind yz with za or zaaa
    follow = all(b in (a + 1, (a + 1) * base**2) for a, b in pairwise(sorted(places)))
    expected = int(re.sub(r"\D", "", of)) if of else len(numbered)
    if follow and min(places) in (0, base == 10) and len(places) == expected:
        return parts, ""
    names = ", ".join(PurePosixPath(file.path).name for _, file in numbered[:5])
    return parts, f"not all of its parts are on the hub, or some twice: {names}, ..."


def _sorted(listings: list[dict[str, HubFile]]) -> list[HubFile]:
    """All files, batch_2 before batch_10."""
    return [media[path] for media in listings for path in sorted(media, key=_by_number)]


def _by_number(path: str) -> list:
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d{1,9})", path)]


def _of_stills(archive: Archive) -> bool:
    """Whether an archive may hold stills."""
    return archive.folders[0].startswith("images")


def _folders(file: HubFile) -> tuple[str, ...]:
    """The folders whose files a file or archive of the hub may be or hold.

    The names of those with stills are not documented: only a path that speaks of clips
    and not of stills rules them out.
    """
    if file.repo == LONG_VIDEO_BENCH:
        kind = "subtitles" if "subtitle" in file.path.lower() else "videos"
        return (f"general/{kind}",)
    kinds = [kind for kind, words in KINDS.items() if words.search(file.path)]
    return tuple(f"{k}/{_source(file.path)}".rstrip("/") for k in kinds or KINDS)


def _source(path: str) -> str:
    """The video source that a path names first, "" if it names none."""
    found = SOURCE.search(path)
    return SOURCES[found[1] is None] if found else ""


# --- what is said before and after ----------------------------------------------------


def _plan(
    target: Target,
    wanted: set[Path] | None,
    archives: list[Archive],
    single: list[HubFile],
    licences: list[str],
) -> str:
    """What a call will do, line by line."""
    files = target.files
    free = download.told(download.free_space(target.folder))
    lines = [f"folder    {target.folder} ({free} free)"]
    lines += [f"for       {', '.join(target.chosen)}"]
    for repo, used in target.known["commits"].items():
        lines.append(f"from      {repo}, annotations at {used['annotations']},")
        lines.append(f"          media at {used['media']}")
    lines += [f"text      {file.name} ({file.size})" for file in files.values()]
    if wanted is None:
        lines.append("media     to be counted when the annotations are there")
        sources = [files[split].clips for split in target.chosen]
        needed = [a for a in archives if {*sources, ""} & {*map(_source, a.folders)}]
        single = [f for f in single if f.path.endswith((".png", ".jpg", ".mp4"))]
        stills = any(sources)
    else:
        lines.append(f"media     {_count(wanted)}")
        lacking = missing(wanted)
        names = {path.name for path in lacking}
        needed = [a for a in archives if target.may_hold(a, lacking)]
        single = [f for f in single if PurePosixPath(f.path).name in names]
        stills = any(p.is_relative_to(target.folder / "images") for p in lacking)
    readable = [a for a in needed if not a.fault]
    for folders in dict.fromkeys(a.folders for a in readable):
        sizes = [a.size for a in readable if a.folders == folders]
        most = f"at most {download.told(sum(sizes))} in {len(sizes)} archive(s)"
        lines.append(f"download  {' or '.join(folders)}: {most}")
    if single:
        size = download.told(sum(file.size for file in single))
        lines.append(f"download  at most {size} in {len(single):,} single file(s)")
    lines += [f"refused   {a.name}: {a.fault}" for a in needed if a.fault]
    if (
        stills
        and not any(map(_of_stills, readable))
        and not any(f.path.endswith((".png", ".jpg")) for f in single)
    ):
        lines.append("download  images: the hub lists NOTHING that may hold stills,")
        lines.append("          and `get` stops before the archives of clips")
    if not needed:
        lines.append("download  no archive: none can hold what is missing")
    lines += [
        "          Which archive holds which file is not documented: they come one by",
        "          one, each is deleted when the wanted files are taken out, and none",
        "          comes once nothing is missing. Less than the above stays on disk.",
        *(f"licence   {text}" for text in licences),
    ]
    return "\n".join(lines)


def _no_stills(lacking: list[Path], listed: list[HubFile]) -> DownloadError:
    """The error where a source has no still: what was looked for, what is there."""
    paths = [PurePosixPath(file.path) for file in listed]
    kinds = Counter(str(path.with_name(f"*{path.suffix}")) for path in paths)
    there = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(20))
    return DownloadError(
        f"no clip was downloaded, because {lacking[0].parent} needs {len(lacking):,}"
        f" stills ({lacking[0].name}, ...) and none of them was found: neither as a"
        " file of that name nor in an archive, save those whose path speaks of clips"
        f" alone. The hub lists {there}. Put the stills there yourself; the same"
        " command then goes on"
    )


def _count(wanted: set[Path]) -> str:
    there = len(wanted) - len(missing(wanted))
    return f"{there:,} of {len(wanted):,} files there"


def _outcome(folder: Path, wanted: set[Path]) -> str:
    lacking, lines = missing(wanted), [f"{folder}: {_count(wanted)}"]
    if lacking:
        lines += [
            f"{len(lacking):,} are in no archive that the hub lists and that is sound:",
            *(f"  {path.relative_to(folder)}" for path in lacking[:5]),
            *(["  ..."] if len(lacking) > 5 else []),
            "Their questions stay in the denominator and count as wrong.",
        ]
    return "\n".join([*lines, f"Next: python -m lib.data check {folder}"])
