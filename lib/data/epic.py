"""Training questions made from EPIC-KITCHENS-100 action labels, on the user's machine.

Labels: https://github.com/epic-kitchens/epic-kitchens-100-annotations, CC BY-NC 4.0,
which holds for what is written, too. The questions have the form of EgoPlan's
(https://arxiv.org/abs/2312.06722), from which SEED-Bench-R1's training set was made:

* A video's actions, in the order of their start, are cut into segments at a pause of
  more than 10 s (from the end of one action to the start of the next) and after 20
  actions.
* Each action that differs from the one before it, and has at least 3 different others
  in its segment, is an answer; the others are the wrong answers. What came before it in
  the segment is the progress; the first has none and is asked with an image alone.
* The observation is half a second before the answer starts, as it is in most records of
  L1 that can be compared with the labels. The clip runs from the segment's start to it.

EgoPlan had its goals written by GPT-4 and its questions filtered by people; here is
neither, and no goal: the last action of a segment would name one of the options.

All videos that L1 uses are left out, which is proven on the written file. Moments are
timestamps: the labels' frames count 50 or 60 a second, some files hold others."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from tqdm import tqdm

from lib import paths, records
from lib.data import clips
from lib.data.clips import Cut
from lib.data.faults import FRAME, PROGRESS, STILL
from lib.data.letters import folded
from lib.data.questions import read_training

GAP, LONGEST, WRONG = 10.0, 20, 3  # seconds, actions, different wrong answers
LEAD = 0.5  # seconds from the observation to the answer's start
SOURCE = "EpicKitchens"
LABELS = "https://github.com/epic-kitchens/epic-kitchens-100-annotations"
L1_RECORDS, L1_VIDEOS = 2432, 436  # of the official validation_L1.jsonl
VIDEO_ID = r"P\d\d_\d{2,3}"
TIME = r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)"


def _seconds(timestamp: str) -> float:
    hours, minutes, seconds = re.fullmatch(TIME, timestamp).groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


COLUMNS = {  # as an Action has them: what a value matches, that in words, what is read
    "narration_id": (r"(?s).+", "a name", str),
    "video_id": (VIDEO_ID, "an id such as P01_11", str),
    "narration": (r"(?s).+", "words", str),
    "start_timestamp": (TIME, "HH:MM:SS.ss", _seconds),
    "stop_timestamp": (TIME, "HH:MM:SS.ss", _seconds),
    "start_frame": (r"\d+", "a whole number", int),
    "stop_frame": (r"\d+", "a whole number", int),
}
NOTICE = """\
The questions in annotations/, and the clips and stills cut for them, are made from
EPIC-KITCHENS-100 (Damen et al., "Rescaling Egocentric Vision", IJCV 2022) and carry its
licence, CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): name the
source, and no commercial use.
"""


@dataclass(frozen=True)
class Action:
    """One row of the labels; times in seconds, frames as the labels count them."""

    id: str
    video: str
    text: str
    start: float
    stop: float
    start_frame: int
    stop_frame: int


@dataclass(frozen=True)
class Item:
    """A question: `segment[index]` is the answer."""

    segment: tuple[Action, ...]
    index: int

    @property
    def answer(self) -> Action:
        """What was done next."""
        return self.segment[self.index]

    def cut(self, root: Path) -> Cut:
        """Its clip and still below `root`. Their names tell what they show, the video
        and the milliseconds, so that what was cut before can be kept."""
        video, end = self.answer.video, max(0.0, self.answer.start - LEAD)
        start = self.segment[0].start if self.index else end
        name = f"{video}_{1000 * start:.0f}-{1000 * end:.0f}.mp4"
        clip = root / "videos" / SOURCE / name if self.index else None
        still = root / "images" / SOURCE / f"{video}_{1000 * end:.0f}.png"
        return Cut(start, end, clip, still)

    def record(self) -> dict:
        """The record as SEED-Bench-R1's training files hold it."""
        answer, media = self.answer, self.cut(Path())
        texts = dict.fromkeys(action.text for action in self.segment)
        names = ("narration_text", "start_frame", "stop_frame")
        steps = [
            dict(zip(names, (own.text, own.start_frame, own.stop_frame), strict=True))
            for own in self.segment[: self.index]
        ]
        fps = round(answer.stop_frame / answer.stop)  # by which labels count, 50 or 60
        seen = "the progress shown in the video and " if steps else ""
        return {
            "sample_id": answer.id,
            "video_source": SOURCE,
            "video_id": answer.video,
            "task_goal": "not stated",
            "question": f"Considering {seen}my current observation shown in the image,"
            " what action should I take next?",
            "answer": answer.text,
            "negative_answers": [text for text in texts if text != answer.text],
            FRAME: max(0, answer.start_frame - round(LEAD * fps)),
            PROGRESS: steps,
            "video_basename": media.clip.name if media.clip else None,
            STILL: media.still.name,
        }


class LabelFaults(ValueError):
    """Every fault of the label files, a line each, naming file, line and column."""


def read_labels(files: Iterable[Path]) -> list[Action]:
    """Actions of files such as EPIC_100_train.csv; LabelFaults has all their faults."""
    actions, faults, seen = [], [], {}
    for file in files:
        for line, row in _rows(file, faults):
            place = f"{file}, line {line}"
            if wrong := [f"{place}, {fault}" for fault in _row_faults(row)]:
                faults += wrong
                continue
            action = Action(*(read(row[c]) for c, (*_, read) in COLUMNS.items()))
            if (first := seen.setdefault(action.id, place)) != place:
                faults.append(f"{place}, narration_id: {action.id} is also in {first}")
            actions.append(action)
    if faults:
        raise LabelFaults("\n".join([*faults, f"mend these, or get {LABELS} again"]))
    return actions


def _rows(file: Path, faults: list[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, row by column) of a CSV file; none where it has faults as a whole."""
    rows, line = [], 1
    try:
        text = io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")
        table = csv.DictReader(text, restval="", strict=True)
        names = table.fieldnames or []
        for row in table:
            line = table.line_num
            if more := row.pop(None, []):
                said = f"{file}, line {line}: {len(names) + len(more)} fields; expected"
                faults.append(f"{said} {len(names)} (quote a text with a comma)")
            rows.append((line, {name: own.strip() for name, own in row.items()}))
    except (UnicodeDecodeError, csv.Error) as error:
        faults.append(f"{file}, line {line}: no table of labels ({error})")
        return []
    if missing := [name for name in COLUMNS if name not in names]:
        faults.append(
            f"{file}, line 1: no column {', '.join(missing)}; expected action labels"
            " such as EPIC_100_train.csv"
        )
        return []
    if not rows:
        faults.append(f"{file}, line 2: no rows")
    return rows


def _row_faults(row: dict[str, str]) -> Iterator[str]:
    read = {}
    for column, (sound, expected, value) in COLUMNS.items():
        if re.fullmatch(sound, row[column]):
            read[column] = value(row[column])
        else:
            yield f"{column}: found {row[column]!r}; expected {expected}"
    for unit in ("timestamp", "frame"):
        start, stop = f"start_{unit}", f"stop_{unit}"
        if {start, stop} <= read.keys() and read[start] >= read[stop]:
            yield f"{stop}: found {row[stop]!r}; expected one after the start"


def read_videos(file: Path) -> tuple[int, set[str]]:
    """(records, ids of their EPIC videos) of an annotation file; ValueError where one
    has no such id, because then it could not be said which videos the file uses."""
    rows = records.read_jsonl(file)
    for line, record in enumerate(rows, 1):
        video = record.get("video_id")
        if not isinstance(video, str) or not re.fullmatch(VIDEO_ID, video):
            raise ValueError(
                f"{file}, line {line}, video_id: found {video!r}; expected the id of an"
                " EPIC-KITCHENS video such as P01_11"
            )
    if not rows:
        raise ValueError(f"{file} has no records")
    return len(rows), {record["video_id"] for record in rows}


def segments(actions: Iterable[Action]) -> Iterator[tuple[Action, ...]]:
    """Each video's actions by their start, cut at pauses over 10 s and after 20."""
    segment: list[Action] = []
    for action in sorted(actions, key=attrgetter("video", "start_frame")):
        if segment and (
            action.video != segment[-1].video
            or action.start - segment[-1].stop > GAP
            or len(segment) == LONGEST
        ):
            yield tuple(segment)
            segment = []
        segment.append(action)
    if segment:
        yield tuple(segment)


def questions(segment: tuple[Action, ...]) -> Iterator[Item]:
    """The questions that a segment gives."""
    texts = [folded(action.text) for action in segment]  # as `read_training` compares
    for i, text in enumerate(texts):
        repeats = i > 0 and text == texts[i - 1]
        if not repeats and len(set(texts) - {text}) >= WRONG:
            yield Item(segment, i)


def prove_disjoint(written: Path, l1: Path) -> dict[str, int]:
    """Read both files and count; ValueError if any video is in both."""
    (questions, ours), (_, held) = read_videos(written), read_videos(l1)
    if ours & held:
        both = ", ".join(sorted(ours & held))
        raise ValueError(f"{written} uses videos of {l1}: {both}; do not train on it")
    facts = {"questions_read_back": questions, "their_videos": len(ours)}
    return facts | {"videos_of_l1": len(held), "in_both": len(ours & held)}


def cut_media(items: list[Item], folder: Path, root: Path) -> dict[str, str]:
    """Cut the media of all questions, but what is there, from the videos anywhere below
    a folder. Returns {id of an answer: why it could not be cut}."""
    found = (p for p in paths.below(folder) if p.suffix.lower() == ".mp4")
    files = {path.stem: path for path in sorted(found)}
    for kind in ("videos", "images"):
        (root / kind / SOURCE).mkdir(parents=True, exist_ok=True)
    failed = {}
    with tqdm(total=len(items), unit="question", desc="cutting") as bar:
        for video, group in groupby(items, key=lambda item: item.answer.video):
            cuts = {item.answer.id: item.cut(root) for item in group}
            why = {c: "the video is missing" for c in cuts.values() if not c.is_there}
            if video in files:
                why = clips.cut(files[video], [*why])
            failed |= {i: f"{video}: {why[c]}" for i, c in cuts.items() if c in why}
            bar.update(len(cuts))
    return failed


def make(labels: list[Path], l1: Path, out: Path, videos: Path | None) -> dict:
    """Write the questions, a notice and the record of how they were made; returns the
    record. LabelFaults or ValueError where an input cannot be used."""
    root = out.parents[1]
    actions = read_labels(labels)
    l1_records, held = read_videos(l1)
    used = [action for action in actions if action.video not in held]
    items = [item for segment in segments(used) for item in questions(segment)]
    left_out = {
        item.answer.id: f"{item.answer.video}: the clip would have fewer than 2 frames"
        for item in items
        if (media := item.cut(root)).clip and media.end - media.start < 1 / clips.FPS
    }
    if videos:
        long_enough = [item for item in items if item.answer.id not in left_out]
        left_out |= cut_media(long_enough, videos, root)
    kept = [item for item in items if item.answer.id not in left_out]
    if not kept:
        raise ValueError("\n".join(["no question is left to write", *_why(left_out)]))
    records.write_jsonl(out, [item.record() for item in kept])
    proof = prove_disjoint(out, l1)
    read_training(out, root)
    record = {
        "settings": {"gap": GAP, "longest": LONGEST, "wrong": WRONG, "lead": LEAD},
        "labels": {str(file): records.sha256(file) for file in labels},
        "l1": {"file": str(l1), "sha256": records.sha256(l1), "records": l1_records},
        "out": {"file": str(out), "sha256": records.sha256(out)},
        "rows": len(actions),
        "videos_excluded": sorted({action.video for action in actions} & held),
        "rows_excluded": len(actions) - len(used),
        "rows_used": len({action for item in kept for action in item.segment}),
        "questions_by_the_rule": len(items),
        "questions_without_progress": sum(item.index == 0 for item in kept),
        "clips_cut": videos is not None,
        "left_out": left_out,
        "proof": proof,
    }
    records.write_json(record_of(out), record)
    records.write_text(root / "NOTICE.txt", NOTICE)
    return record


def record_of(out: Path) -> Path:
    """Where it is written how a file of questions was made."""
    return out.with_suffix(".made.json")


def _why(left_out: dict[str, str]) -> list[str]:
    return [f"{count:6} of {why}" for why, count in Counter(left_out.values()).items()]


def describe(record: dict) -> str:
    """The record in words."""
    counts = record | record["proof"]
    numbers = {what: n for what, n in counts.items() if type(n) is int}
    lines = [f"{n:6} {what.replace('_', ' ')}" for what, n in numbers.items()]
    left = record["left_out"]
    lines += [f"{len(left):6} questions left out", *_why(left)]
    if (record["l1"]["records"], counts["videos_of_l1"]) != (L1_RECORDS, L1_VIDEOS):
        lines.append(
            f"this L1 is NOT the official file of {L1_RECORDS} records on {L1_VIDEOS}"
            " videos: what only that one uses is not excluded"
        )
    if not record["clips_cut"]:
        lines.append("no clips were cut: run it again with --videos FOLDER")
    out = record["out"]["file"]
    return "\n".join([*lines, f"written: {out}; licence: CC BY-NC 4.0, see NOTICE.txt"])
