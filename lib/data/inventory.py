"""What a data folder holds and lacks, split by split: records, faults, clips, stills.

>>> found = check(Path("outputs/data/miniplan"))
>>> found[0]["split"], found[0]["records"], found[0]["videos"]["missing"]
('training', 2200, 0)"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pandas
from tqdm import tqdm

from lib import processes
from lib.data import questions, video
from lib.markup import grid

STATES = ("missing", "damaged", "too short")


def check(data: Path, general: Path | None = None, decode: bool = False) -> list[dict]:
    """One dict for each annotation file below `data` and for `general`/lvb_val.json. Of
    videos and stills it counts {"needed", "missing", "damaged", "too short"};
    unreadable is {path: why}, by_pyav {path: why decord may not read it}. Without
    `decode` only an empty file counts as damaged; with it every file is read as
    training would read it, on all processors: minutes for thousands of clips."""
    general = data / "general" if general is None else general
    roots = dict.fromkeys(sorted((data / "annotations").glob("[!.]*.jsonl")), data)
    roots |= dict.fromkeys(general.glob("lvb_val.json"), general)
    if not roots:
        none = f"neither {data}/annotations/*.jsonl nor {general}/lvb_val.json is there"
        raise FileNotFoundError(f"{none}: `get` downloads them")
    files = {path: questions.check(path, root) for path, root in roots.items()}
    items = [item for own in files.values() for _, item in own["rows"]]
    media = {(item.video, True) for item in items if item.video is not None}
    media |= {(item.image, False) for item in items if item.image is not None}
    said = {path: found for path, _ in media if (found := _absent(path))}
    if decode:
        there = sorted(medium for medium in media if medium[0] not in said)
        said |= {path: found for (path, _), found in _decoded_all(there) if found}
    return [_report(path.stem, own, said) for path, own in files.items()]


def media_table(reports: list[dict]) -> str:
    """Records and files of `check` as a markdown table, a line a split."""
    names = ("split", "records", "usable", "without_video", "duplicates")
    head = ["split", "records", "usable", "no video", "repeated", "clips", *STATES]
    lines = [[*head, "stills", *STATES[:2]]]
    for found in reports:
        clips, stills = found["videos"].values(), [*found["stills"].values()][:3]
        lines.append([*(found[name] for name in names), *clips, *stills])
    return _aligned(lines)


def fault_table(reports: list[dict]) -> str:
    """Faults of `check` as a markdown table: a line a kind, a column a split."""
    counts = defaultdict(lambda: [0] * len(reports))
    for number, found in enumerate(reports):
        for fault in found["faults"]:
            weight = "fault" if fault["usable"] else "UNUSABLE"
            what = f"{fault['field']}, expected {fault['expected']}"
            counts[weight, what][number] += fault["count"]
    if not counts:
        return "No record has a fault.\n"
    head = ["", "what", *(found["split"] for found in reports)]
    return _aligned([head, *([*key, *row] for key, row in sorted(counts.items()))])


def _aligned(lines: list[list]) -> str:
    """A markdown table that is also aligned in a terminal."""
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return grid([[c.ljust(w) for c, w in zip(x, widths, strict=True)] for x in cells])


def _report(split: str, found: dict, said: dict[Path, tuple[str, str]]) -> dict:
    """What `questions.check` found; `said` is {medium: (state, why)}."""
    rows, faults = found["rows"], found["faults"]
    videos = {item.video for _, item in rows} - {None}
    stills = {item.image for _, item in rows} - {None}
    used = {str(m): said[m] for m in sorted(videos | stills) if m in said}
    return {
        "split": split,
        **{name: found[name] for name in ("kind", "records", "usable")},
        "without_video": found["media"]["image_only"],
        "duplicates": sum(fault.expected == "it once" for fault in faults),
        "videos": _counted(videos, said),
        "stills": _counted(stills, said),
        "unreadable": {medium: why for medium, (state, why) in used.items() if state},
        "by_pyav": {m: why for m, (state, why) in used.items() if not state},
        "faults": _by_kind(faults),
    }


def _counted(media: set[Path], said: dict[Path, tuple[str, str]]) -> dict[str, int]:
    states = Counter(said[path][0] for path in media if path in said)
    return {"needed": len(media)} | {state: states[state] for state in STATES}


def _absent(path: Path) -> tuple[str, str] | None:
    """(state, why) of a file that needs no reading to be no use."""
    try:
        if not path.is_file():
            return "missing", "is missing"
        return None if path.stat().st_size else ("damaged", "is empty (zero bytes)")
    except OSError as error:
        return "missing", f"cannot be opened ({error.strerror})"


def _decoded_all(media: list[tuple[Path, bool]]) -> Iterator[tuple]:
    """(medium, what `_decoded` says of it), read by as many processes as processors."""
    with closing(processes.mapped(_decoded, media, few=64)) as states:
        bar = tqdm(states, total=len(media), desc="decode", unit="file")
        yield from zip(media, bar, strict=True)


def _decoded(medium: tuple[Path, bool]) -> tuple[str, str] | None:
    """(state, why) of a clip (True) or still (False) that cannot be read as the paper
    reads it; ("", why) of a clip that PyAV read because decord may not."""
    path, is_clip = medium
    try:
        if not is_clip:
            video.read_still(path, video.Sampling())
        elif why := video.read_clip_and_say(path, video.Sampling())[1]:
            return "", why
    except video.BadVideo as bad:
        short = "at least 2 are needed" in bad.why
        return "too short" if short else "damaged", bad.why


def _by_kind(faults: list[questions.Fault]) -> list[dict]:
    """The faults counted by field, whatever its place in a list, and expectation."""
    kind = ["field", "expected", "usable"]
    found = pandas.DataFrame([asdict(f) for f in faults], columns=[*kind, "line"])
    found["field"] = found["field"].str.replace(r"^\[\d+\]\.|\d+", "", regex=True)
    lines = found.groupby(kind)["line"]
    counted = lines.agg(count="size", records="nunique", first_line="first")
    return counted.reset_index().to_dict("records")
