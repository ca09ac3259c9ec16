"""Questions from action labels, and the clips cut for them from a video made here."""

import csv
import json

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from full_disk import full_disk
from made_films import write_film
from PIL import Image

from lib.data import epic
from lib.data.__main__ import main
from lib.data.clips import Cut, cut
from lib.data.epic import LabelFaults, prove_disjoint, questions, read_labels, segments
from lib.data.questions import check, read_training
from lib.data.video import Sampling, read_clip, read_still

COLUMNS = [
    *("narration_id", "participant_id", "video_id", "narration_timestamp"),
    *("start_timestamp", "stop_timestamp", "start_frame", "stop_frame", "narration"),
]
TEXTS = ["take cup", "open tap", "fill cup", "close tap", "put down cup"]


def row(video, number, start, stop, text, fps=60):
    def stamp(time):
        return f"00:{int(time // 60):02d}:{time % 60:05.2f}"

    values = (f"{video}_{number}", video[:3], video, stamp(start))
    values += (stamp(start), stamp(stop), int(start * fps), int(stop * fps), text)
    return dict(zip(COLUMNS, values, strict=True))


def rows_of(video, start=1.0, texts=TEXTS, step=3.0, length=2.0, first=0, **other):
    times = [start + i * step for i in range(len(texts))]
    return [
        row(video, i, time, time + length, text, **other)
        for i, (time, text) in enumerate(zip(times, texts, strict=True), first)
    ]


def write_labels(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_l1(path, *videos):
    path.write_text("".join(json.dumps({"video_id": v}) + "\n" for v in videos))
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """The command on rows: (its code, what it printed, the record, the questions)."""
    out = tmp_path / "made" / "annotations" / "training.jsonl"

    def call(rows, *arguments, l1=("P09_01",)):
        table = write_labels(tmp_path / "labels.csv", rows)
        used = write_l1(tmp_path / "l1.jsonl", *l1)
        command = ["epic", str(table), "--l1", str(used), "--out", str(out)]
        code = main([*command, *map(str, arguments)])
        record = json.loads(epic.record_of(out).read_text()) if code == 0 else None
        lines = out.read_text().splitlines() if code == 0 else []
        return code, "".join(capsys.readouterr()), record, list(map(json.loads, lines))

    call.out, call.root = out, out.parents[1]
    return call


AGAIN = ["take cup", "take cup", "open tap", "fill cup", "take cup", "close tap"]
PAUSED = rows_of("P01_01", start=25.1, first=5)  # 10.1 s behind the five before
IN_TIME = rows_of("P01_01", start=25.0, first=5)
MANY = [f"take {i}" for i in range(45)]
RULE = {  # rows, and (number of the segment, answer) of each question
    "all with three others": (rows_of("P01_01"), [(0, text) for text in TEXTS]),
    "in the order of videos and starts": (
        (rows_of("P01_01") + rows_of("P02_01", texts=TEXTS[::-1]))[::-1],
        [*((0, text) for text in TEXTS), *((1, text) for text in TEXTS[::-1])],
    ),
    "a repeated action once": (
        rows_of("P01_01", texts=AGAIN),
        [(0, text) for text in AGAIN[1:]],
    ),
    "only two others": (rows_of("P01_01", texts=[*TEXTS[:3], TEXTS[0]]), []),
    "only two others, once in capitals": (
        rows_of("P01_01", texts=[*TEXTS[:3], "Open  Tap"]) + rows_of("P02_01"),
        [(1, text) for text in TEXTS],
    ),
    "two videos": (
        rows_of("P01_01", texts=TEXTS[:2]) + rows_of("P01_02", texts=TEXTS[2:]),
        [],
    ),
    "ten seconds": (rows_of("P01_01") + IN_TIME, [(0, text) for text in 2 * TEXTS]),
    "a longer pause": (
        rows_of("P01_01") + PAUSED,
        [(n, text) for n in (0, 1) for text in TEXTS],
    ),
    "twenty actions": (
        rows_of("P01_01", texts=MANY),
        [(i // 20, text) for i, text in enumerate(MANY)],
    ),
}


@pytest.mark.parametrize("name", RULE)
def test_the_rule(name, tmp_path):
    rows, expected = RULE[name]
    actions = read_labels([write_labels(tmp_path / "labels.csv", rows)])
    cut_up = enumerate(segments(actions))
    assert [(n, q.answer.text) for n, s in cut_up for q in questions(s)] == expected


def test_a_record_is_what_the_reader_of_training_sets_reads(run):
    code, printed, record, lines = run(rows_of("P01_01", fps=50))
    assert code == 0
    first, third = lines[0], lines[2]
    assert first["video_basename"] is None
    assert first["question"].startswith("Considering my current observation")
    assert third["sample_id"] == "P01_01_2"
    assert third["answer"] == "fill cup"
    assert third["negative_answers"] == [t for t in TEXTS if t != "fill cup"]
    steps = third["task_progress_metadata"]
    assert [step["narration_text"] for step in steps] == TEXTS[:2]
    assert (steps[1]["start_frame"], steps[1]["stop_frame"]) == (200, 300)
    assert third["current_observation_frame"] == 350 - 25  # half a second at 50
    assert third["video_basename"] == "P01_01_1000-6500.mp4"
    assert third["current_observation_basename"] == "P01_01_6500.png"
    read = read_training(run.out, run.root)
    assert len(read) == record["proof"]["questions_read_back"] == 5
    clip = run.root / "videos" / "EpicKitchens" / "P01_01_1000-6500.mp4"
    assert read[2].video == clip
    assert check(run.out)["faults"] == []
    notice = (run.root / "NOTICE.txt").read_text()
    assert "CC BY-NC 4.0" in notice and "CC BY-NC 4.0" in printed
    assert [len(digest) for digest in record["labels"].values()] == [64]
    assert record["rows"] == record["rows_used"] == 5
    assert "--videos" in printed


def test_videos_of_l1_are_left_out_and_that_is_proven(run, tmp_path):
    rows = rows_of("P01_01") + rows_of("P01_02") + rows_of("P01_03")
    _, printed, record, lines = run(rows, l1=("P01_02", "P30_01"))
    assert {line["video_id"] for line in lines} == {"P01_01", "P01_03"}
    assert record["videos_excluded"] == ["P01_02"]
    assert record["rows_excluded"] == 5
    facts = {"questions_read_back": 10, "their_videos": 2, "videos_of_l1": 2}
    assert record["proof"] == {**facts, "in_both": 0}
    assert "10 questions read back" in printed and "0 in both" in printed
    assert "NOT the official file" in printed
    other = write_l1(tmp_path / "other.jsonl", "P05_05", "P01_01")
    with pytest.raises(ValueError, match=r"uses videos of .*other\.jsonl: P01_01"):
        prove_disjoint(run.out, other)


@pytest.mark.parametrize("video", [None, "P01_01.MP4", 7, "P01_02"])
def test_an_l1_of_no_or_the_same_videos_leaves_nothing_to_write(video, run):
    code, printed, _, _ = run(rows_of("P01_02"), l1=("P01_01", video))
    found = "no question is left" if video == "P01_02" else "l1.jsonl, line 2, video_id"
    assert code == 1 and found in printed
    assert not run.out.exists()


def test_a_clip_of_no_length_is_left_out_and_an_odd_row_is_not(run):
    """The second action starts 0.3 s after the first: nothing of it could be seen. The
    third has no time at which it was told, and starts before the second ends."""
    rows = rows_of("P01_109", length=3.5)
    rows[1] = row("P01_109", 1, 1.3, 3.0, TEXTS[1])
    rows[2]["narration_timestamp"] = ""
    _, printed, record, lines = run(rows)
    assert list(record["left_out"]) == ["P01_109_1"]
    assert "P01_109_1" not in [line["sample_id"] for line in lines]
    assert record["questions_by_the_rule"] == 5 == len(lines) + 1
    assert "1 of P01_109: the clip would have fewer than 2 frames" in printed


# --- bad labels -------------------------------------------------------------------

BAD = {  # values of a column, and the column that is named
    "narration_id": (["", "P01_01_0"], "narration_id"),
    "video_id": (["", "P01-01", "kitchen"], "video_id"),
    "narration": (["", "  "], "narration"),
    "start_timestamp": (["", "1.5", "00:00:75.00"], "start_timestamp"),
    "start_timestamp ": (["00:00:05.00"], "stop_timestamp"),
    "stop_timestamp": (["soon", "00:00:00.50"], "stop_timestamp"),
    "start_frame": (["", "12.5", "-3"], "start_frame"),
    "start_frame ": (["500"], "stop_frame"),
    "stop_frame": (["many", "1"], "stop_frame"),
}
CASES = [(c.strip(), v, named) for c, (found, named) in BAD.items() for v in found]


@pytest.mark.parametrize(("column", "found", "named"), CASES)
def test_a_bad_value_names_file_line_and_column(column, found, named, tmp_path):
    rows = rows_of("P01_01", texts=TEXTS[:1]) + rows_of("P01_02", texts=TEXTS[:1])
    rows[1][column] = found
    with pytest.raises(LabelFaults) as caught:
        read_labels([write_labels(tmp_path / "labels.csv", rows)])
    fault, _ = str(caught.value).split("\n")
    assert f"labels.csv, line 3, {named}: " in fault
    assert "; expected " in fault or " is also in " in fault
    assert f"mend these, or get {epic.LABELS} again" in str(caught.value)


def test_all_faults_of_all_files_are_reported(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    rows = rows_of("P01_01")
    write_labels(one, [{**rows[0], "narration": ""}, {**rows[1], "start_frame": "x"}])
    write_labels(other, [rows[2], rows[2]])
    with pytest.raises(LabelFaults) as caught:
        read_labels([one, other])
    assert len(str(caught.value).split("\n")) == 3 + 1  # and what to do
    assert "other.csv, line 3, narration_id" in str(caught.value)


HEAD = ",".join(COLUMNS).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "line 1: no column narration_id, video_id"),
        (b"version https://git-lfs.github.com/spec/v1\n", "line 1: no column"),
        (b"narration_id,video_id\n1,P01_01\n", "no column narration, start_timestamp"),
        (HEAD, "line 2: no rows"),
        (HEAD + b"P01_01_0\n", "line 2, video_id: found ''"),
        (HEAD + b"P\xff1,\n", "can't decode byte 0xff"),
        (HEAD + b'"open,\n', "no table of labels (unexpected end of data"),
        (HEAD + b"1,2,3,4,5,6,7,8,cut, then\n", "line 2: 10 fields; expected 9"),
        (HEAD + b'\n\n1,"2\n2"\n\n1\n', "line 7, video_id: found ''"),
    ],
)
def test_what_is_no_table_of_labels(data, words, tmp_path, capsys):
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    l1 = write_l1(tmp_path / "l1.jsonl", "P01_02")
    out = tmp_path / "annotations" / "training.jsonl"
    assert main(["epic", str(path), "--l1", str(l1), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "labels.csv, line" in error and words in error


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def write_video(path, fps=30, seconds=18, times=None, **options):
    """A video whose brightness is ten times the time in seconds."""
    tens = (round(10 * i / fps) for i in range(int(seconds * fps)))
    pictures = (np.full((64, 96, 3), grey, np.uint8) for grey in tens)
    options = {"preset": "veryfast", "crf": "10", **options}
    more = {"times": times, "container_options": {"movflags": "faststart"}}
    return write_film(path, pictures, fps, options=options, **more)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """P01_01 in EPIC's layout, at half the frame rate that its labels count by, and
    what a broken download left of P01_03."""
    folder = tmp_path_factory.mktemp("EPIC")
    (folder / "P01" / "videos").mkdir(parents=True)
    whole = write_video(folder / "P01" / "videos" / "P01_01.MP4")
    (folder / "P01_03.MP4").write_bytes(whole.read_bytes()[:3000])
    return folder


def times(path):
    """The moments a clip shows, told by its brightness."""
    frames = read_clip(path, Sampling(max_frames=64, fps=10.0, height=28, width=28))
    return frames.mean(axis=(1, 2, 3)) / 10


def still_time(path):
    return np.asarray(Image.open(path)).mean() / 10


def test_clips_show_the_time_of_the_timestamps(run, kitchen):
    """The labels count 60 frames a second, the file holds 30."""
    linked = run.root.with_name("linked")
    linked.mkdir()
    (linked / "P01").symlink_to(kitchen / "P01")  # as one to another disk
    code, _, record, lines = run(rows_of("P01_01"), "--videos", linked)
    assert code == 0
    assert record["clips_cut"] and record["left_out"] == {}
    read = read_training(run.out, run.root)
    for question, line, start in zip(read, lines, (1, 4, 7, 10, 13), strict=True):
        assert Image.open(question.image).size == (384, 256)
        assert still_time(question.image) == pytest.approx(start - 0.5, abs=0.25)
        if line["video_basename"] is None:
            continue
        shown = times(question.video)
        assert shown[0] == pytest.approx(1.0, abs=0.25)
        assert shown[-1] == pytest.approx(start - 0.5, abs=0.25)
        assert (np.diff(shown) > -0.15).all()

    # what is there is not cut again, what a kill left is
    files = sorted([*run.root.rglob("*.mp4"), *run.root.rglob("*.png")])
    assert len(files) == 4 + 5
    gone, content = files[1], files[1].read_bytes()
    before = {path: path.stat().st_mtime_ns for path in files}
    gone.unlink()
    (gone.parent / f".{gone.name}.999999999.tmp").write_bytes(b"left by a kill")
    run(rows_of("P01_01"), "--videos", kitchen)
    assert gone.read_bytes() == content
    again = [path for path in files if before[path] != path.stat().st_mtime_ns]
    assert {path.stem.split("-")[-1] for path in again} == {"P01_01_3500", "3500"}
    assert not list(run.root.rglob(".*.tmp"))


def test_missing_short_and_broken_videos_are_named_and_counted(run, kitchen):
    rows = rows_of("P01_01", step=5.0) + rows_of("P01_02") + rows_of("P01_03")
    code, printed, record, lines = run(rows, "--videos", kitchen)
    assert code == 0
    assert [line["sample_id"] for line in lines] == [f"P01_01_{i}" for i in range(4)]
    assert "1 of P01_01: it lies past the end of the video" in printed
    assert "5 of P01_02: the video is missing" in printed
    assert "5 of P01_03: the video cannot be decoded" in printed
    assert len(record["left_out"]) == 11


def test_what_a_decoder_patched_up_is_not_cut(tmp_path):
    """A clip of it would be sound, and show what was never there."""
    video = tmp_path / "video.mp4"
    pictures = [noise(i) for i in range(90)]
    write_film(video, pictures, 30, options={"preset": "veryfast", "g": "30"})
    data = bytearray(video.read_bytes())
    middle = len(data) // 2  # at 1.5 s
    data[middle : middle + 20] = range(20)
    video.write_bytes(data)
    before, after = (
        Cut(0.0, end, tmp_path / f"{end}.mp4", tmp_path / f"{end}.png")
        for end in (1.0, 2.5)
    )
    why = cut(video, [before, after])
    assert why == {after: "the video cannot be decoded (InvalidDataError)"}
    assert before.is_there and not after.clip.exists()


def test_a_full_disk_is_not_said_of_the_video(kitchen, tmp_path):
    """It must neither leave questions out nor keep what was half written."""
    (video,) = kitchen.rglob("P01_01.MP4")
    wanted = Cut(1.0, 15.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    for size, name in ((10, "clip.mp4"), (2000, "clip.mp4"), (20, "still.png")):
        some = wanted if name == "clip.mp4" else Cut(1.0, 15.0, None, wanted.still)
        with full_disk(size), pytest.raises(OSError, match="cannot be written") as said:
            cut(video, [some])
        assert said.value.filename == str(tmp_path / name)
        assert list(tmp_path.iterdir()) == []


def test_what_was_cut_from_a_video_that_has_gone_is_kept(run, kitchen, tmp_path):
    """The videos take 740 GB: they come, are cut and are deleted one by one."""
    run(rows_of("P01_01", texts=TEXTS[:4]), "--videos", kitchen)
    (tmp_path / "none").mkdir()
    rows = rows_of("P01_01", texts=TEXTS[:4]) + rows_of("P01_02")
    code, printed, _, lines = run(rows, "--videos", tmp_path / "none")
    assert code == 0 and "5 of P01_02: the video is missing" in printed
    assert [line["sample_id"] for line in lines] == [f"P01_01_{i}" for i in range(4)]


@pytest.mark.parametrize("fps", [5, 12, 50])
def test_any_frame_rate_keeps_its_pace(fps, tmp_path):
    video = write_video(tmp_path / "video.mp4", fps=fps, seconds=8)
    wanted = Cut(2.0, 6.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    assert cut(video, [wanted, wanted]) == {}  # two actions start at once
    shown = times(wanted.clip)
    assert len(shown) in (40, 41, 42)
    assert np.abs(shown - (2 + np.linspace(0, 4, len(shown)))).max() < 0.3


def test_a_source_of_key_frames_alone_does_not_make_clips_of_them(tmp_path):
    video = write_video(tmp_path / "video.mp4", fps=10, seconds=8, g="1")
    wanted = Cut(1.0, 6.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    assert cut(video, [wanted]) == {}
    with av.open(str(wanted.clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 51
    assert sum(packet.is_keyframe for packet in packets) < 5


@pytest.mark.parametrize("whole", [False, True], ids=["16 to 235", "0 to 255"])
def test_clip_and_still_have_the_colours_of_a_camera(whole, tmp_path):
    """BT.709, as cameras write it, with a full range of values or not."""
    pixels = np.full((256, 256, 3), (200, 30, 40), np.uint8)
    kind = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": 2 if whole else 1}
    with av.open(str(tmp_path / "video.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 256, 256, "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = kind["dst_color_range"]
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(pixels).reformat(
                format="yuv420p", **kind
            )
            frame.pts = i
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    wanted = Cut(0.0, 1.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    assert cut(tmp_path / "video.mp4", [wanted]) == {}
    for shown in (
        read_clip(wanted.clip, Sampling()),
        read_still(wanted.still, Sampling()),
    ):
        assert np.abs(shown - pixels[0, 0].astype(int)).max() <= 5


def test_a_video_that_does_not_start_at_zero(tmp_path):
    late = range(3 * 25, 11 * 25)
    shifted = write_video(tmp_path / "shifted.mkv", fps=25, seconds=8, times=late)
    with av.open(str(shifted)) as container:
        assert container.start_time == 3 * av.time_base
    wanted = Cut(2.0, 4.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    assert cut(shifted, [wanted]) == {}
    assert times(wanted.clip)[0] == pytest.approx(2.0, abs=0.25)
    assert still_time(wanted.still) == pytest.approx(4, abs=0.3)


def test_the_command_says_how_it_is_used(tmp_path, capsys):
    there = write_l1(tmp_path / "l1.jsonl", "P01_01")
    l1, out = ["--l1", str(there)], ["--out", "a/annotations/b.jsonl"]
    other_folder = ["--out", str(tmp_path / "training.jsonl")]
    official = tmp_path / "annotations" / "training.jsonl"
    official.parent.mkdir()
    official.write_text("the official file")
    for arguments, words in (
        ([str(tmp_path / "none.csv"), *l1, *out], "no file"),
        ([str(there), *l1, *other_folder], "FOLDER/annotations"),
        ([str(there), *l1, "--out", str(official)], "not written by this command"),
        ([str(there), *l1, *out, "--videos", str(there)], "no folder"),
        ([str(there), *out], "--l1"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["epic", *arguments])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
    assert {*tmp_path.rglob("*.*")} == {there, official}
    assert official.read_text() == "the official file"
