"""What a path on the hub tells: an archive or a part of one, a source, stills or clips.

None of it is documented, so names are read as they are used elsewhere."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import PurePosixPath
from string import ascii_lowercase, digits

from lib.data.download import UNPACK, Archive, HubFile

SEED_BENCH = "TencentARC/SEED-Bench-R1"
LONG_VIDEO_BENCH = "longvideobench/LongVideoBench"
SOURCES = ("EpicKitchens", "Ego4D")
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
CLIP, STILLS = ".mp4", (".png", ".jpg")
LETTERS = str.maketrans(ascii_lowercase, (digits + ascii_lowercase)[:26])
SOURCE = re.compile(r"(epic[\W_]*kitchens)|ego[\W_]*4d", re.IGNORECASE)


def sorted_out(files: Iterable[HubFile]) -> tuple[list[HubFile], list[Archive]]:
    """(single files, archives with their parts put together), batch_2 before batch_10.
    Of single files with the same content, name and source there is one."""
    single, groups, spanned, archives = {}, defaultdict(list), set(), []
    for file in sorted(files, key=_numbers):
        if found := SPANNED.fullmatch(file.path):
            spanned.add((file.repo, f"{found[1]}zip".lower()))
        elif found := ARCHIVE.fullmatch(file.path):
            name, style, number, of = found.group("name", "style", "number", "of")
            groups[file.repo, name, style, of].append((number, file))
        else:
            path = PurePosixPath(file.path)
            single[file.digest, path.name, source_of(file.path)] = file
    for (repo, name, style, of), numbered in groups.items():
        parts, fault = _in_order(numbered, of)
        if name.lower().endswith((".7z", ".rar")) or (repo, name.lower()) in spanned:
            fault = f"a 7z, rar or spanned zip file is not read: {UNPACK}"
        whole = f"{repo}: {name}" + ("" if style is None else f"{style}*{of or ''}")
        archives.append(Archive(whole, parts, _folders(parts[0]), fault))
    return list(single.values()), archives


def _in_order(
    numbered: list[tuple[str | None, HubFile]], of: str | None
) -> tuple[tuple[HubFile, ...], str]:
    """The parts of an archive in their order, and what is wrong with them or ""."""
    if numbered[0][0] is None:
        return (numbered[0][1],), ""
    base = 10 if numbered[0][0].isdecimal() else 26
    letters = LETTERS if base == 26 else {}
    places = {int(n.lower().translate(letters), base): file for n, file in numbered}
    order = sorted(places)
    # `split` goes on behind 89 with 90 or 9000, behind yz with za or zaaa
    follow = all(b in (a + 1, (a + 1) * base**2) for a, b in pairwise(order))
    expected = int(re.sub(r"\D", "", of)) if of else len(numbered)
    fault = ""
    if not follow or order[0] not in (0, base == 10) or len(order) != expected:
        names = ", ".join(PurePosixPath(file.path).name for _, file in numbered[:5])
        fault = f"not all of its parts are on the hub, or some twice: {names}, ..."
    return tuple(places[place] for place in order), fault


def _numbers(file: HubFile) -> list:
    parts = re.split(r"(\d{1,9})", file.path)
    return [int(x) if x.isdecimal() else x for x in parts]


def of_stills(archive: Archive) -> bool:
    """Whether an archive may hold stills."""
    return archive.folders[0].startswith("images")


def _folders(file: HubFile) -> tuple[str, ...]:
    """The folders whose files an archive may hold. Which hold stills is not documented:
    only a path that speaks of clips and not of stills rules them out."""
    if file.repo == LONG_VIDEO_BENCH:
        return ("general/videos",)
    kinds = [kind for kind, words in KINDS.items() if words.search(file.path)]
    return tuple(f"{k}/{source_of(file.path)}".rstrip("/") for k in kinds or KINDS)


def source_of(path: str) -> str:
    """The video source that a path names last, "" if it names none."""
    found = [*SOURCE.finditer(path)]
    return SOURCES[found[-1][1] is None] if found else ""
