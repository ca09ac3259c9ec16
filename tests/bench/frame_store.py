"""How much faster the frame store reads a clip than `lib/data/footage.py` decodes it.

    python -m tests.bench.frame_store VIDEO.mp4 ... [--out RESULT.json]

Each video is tried whole and cut to its first 4, 3 and 2 seconds (encoded again by
libx264, at the video's own size), with the paper's sampling. One round decodes and
reads every clip, clip by clip in turn, so that whatever else the machine does slows
both; its ratio is the sum of the decoding times over the sum of the reading times.
Files are in the page cache for both. The reading is that of a second epoch in a new
process: the frames are in the folder."""

import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from lib import paths, records
from lib.data.frame_store import FrameFolder
from lib.data.video import Sampling, read_clip
from lib.doors import Door
from tests.made_films import write_film

OUT = paths.ROOT / "outputs/reference/bench_frame_store.json"
CUTS = (4, 3, 2)  # seconds
QUICK = {"preset": "veryfast"}


def cuts(video, folder):
    """The video and its first seconds as clips of their own."""
    found = [video]
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        first = itertools.islice(container.decode(stream), int(CUTS[0] * rate))
        frames = [frame.to_ndarray(format="rgb24") for frame in first]
    for seconds in CUTS:
        path = folder / f"{video.stem}_{seconds}s.mp4"
        pictures = frames[: int(seconds * rate)]
        found.append(write_film(path, pictures, rate, options=QUICK))
    return found


def seconds_of(function, *arguments):
    begin = time.perf_counter()
    frames = function(*arguments)
    return time.perf_counter() - begin, frames


def measure(clips, folder, rounds):
    """Fill the store, then decode and read in turn."""
    sampling, rows, ratios = Sampling(), [], []
    for clip in clips:
        decode, frames = seconds_of(read_clip, clip, sampling)
        fills = []
        for _ in range(3):
            shutil.rmtree(folder / clip.stem, ignore_errors=True)
            store = FrameFolder(folder / clip.stem, 2**30)
            fills.append(seconds_of(store.read, read_clip, clip, sampling)[0])
        held = sum(file.stat().st_size for file in store.folder.glob("*.*"))
        facts = {"clip": clip.name, "clip_bytes": clip.stat().st_size}
        facts |= {"frames": len(frames), "raw_bytes": frames.nbytes, "kept_bytes": held}
        rows.append({**facts, "fill_seconds": fills, "decode_seconds": [decode]})
        rows[-1]["read_seconds"] = []
    for _ in tqdm(range(rounds), unit="round", disable=None):
        spent = np.zeros(2)
        for clip, row in zip(clips, rows, strict=True):
            store = FrameFolder(folder / clip.stem, 2**30)
            decode, decoded = seconds_of(read_clip, clip, sampling)
            read, kept = seconds_of(store.read, read_clip, clip, sampling)
            assert np.array_equal(decoded, kept), clip
            row["decode_seconds"].append(decode)
            row["read_seconds"].append(read)
            spent += decode, read
        ratios.append(spent[0] / spent[1])
    return rows, ratios


def summary(rows, ratios):
    for row in rows:
        for name in ("fill_seconds", "decode_seconds", "read_seconds"):
            row[name] = statistics.median(row[name])
        row["ratio"] = row["decode_seconds"] / row["read_seconds"]
    full, middle = Sampling().max_frames, statistics.median(ratios)
    share = sum(r["kept_bytes"] for r in rows) / sum(r["raw_bytes"] for r in rows)
    frame = rows[0]["raw_bytes"] / rows[0]["frames"]
    return {
        "rounds": len(ratios),
        "ratio": {"median": middle, "min": min(ratios), "max": max(ratios)},
        "ratios": ratios,
        "kept_over_raw": share,
        "frames_of_a_clip": full,
        "bytes_per_1000_clips": round(1000 * full * frame * share),
        "clips": rows,
        "environment": records.environment(),
    }


def main():
    parser = Door("python -m tests.bench.frame_store", __doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="clips")
    parser.add_argument("--rounds", type=int, default=15, help="over all clips")
    parser.add_argument("--out", type=Path, default=OUT, help="a .json file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        clips = [
            own.absolute() for video in options.videos for own in cuts(video, made)
        ]
        result = summary(*measure(clips, made / "store", options.rounds))
    records.write_json(options.out.absolute(), result)


if __name__ == "__main__":
    main()
