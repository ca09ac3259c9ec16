"""Frames a second of the kit's reader of plain clips, beside decord 0.6.0 alone.

    pip install --no-deps --target OLD decord==0.6.0
    python tests/bench/readers.py OLD VIDEO.mp4 [--out RESULT.json]

decord 0.6.0 with Pillow's bicubic is how clips were read until decord2, PyAV and
torchvision took over; it looks at no damage and at no edit list. Each way runs in a
process of its own on one core and is asked for the paper's frames of one clip after the
other, in turn, so that whatever else the machine does slows both. The clips are the
video, its first 4 seconds, and 20 seconds of it with a key frame every second or every
ten, all with B frames. `decode` is frames a second up to the pixels at the video's
size, `all` with the resizing to 252 x 252. `pyav` is the second way on the same clips.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "outputs" / "reference" / "bench_readers.json"
WAYS = ("before", "now", "pyav")
WANTED = 0.8  # of the frames a second before


def serve(way, old):
    """Read the clips named on stdin; answer each with [frames, decoding, resizing]."""
    sys.path[:0] = [old, str(ROOT)] if way == "before" else [str(ROOT)]
    read, resize = before() if way == "before" else now(way)
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        frames = read(line.strip())
        decoded = time.perf_counter()
        resize(frames)
        spent = [decoded - begin, time.perf_counter() - decoded]
        print(json.dumps([len(frames), *spent]), flush=True)


def before():
    import decord
    import numpy as np
    from PIL import Image

    assert decord.__version__ == "0.6.0"

    def indices(count, fps):
        count_of = 2 * int(min(max(count / fps * 2, 4), 16, count) / 2)
        return np.linspace(0, count - 1, count_of).round().astype(int)

    def read(path):
        reader = decord.VideoReader(path, num_threads=1)
        return reader.get_batch(indices(len(reader), reader.get_avg_fps())).asnumpy()

    def resize(frames):
        size, how = (252, 252), Image.Resampling.BICUBIC
        return [np.asarray(Image.fromarray(f).resize(size, how)) for f in frames]

    return read, resize


def now(way):
    from functools import partial

    import torch

    from lib.data import footage, video

    torch.set_num_threads(1)
    sampling = video.Sampling()
    choose = partial(video.frame_indices, sampling=sampling)

    def read(path):
        if way == "pyav":
            return footage._by_pyav(path, footage._scan(path), choose)
        frames, why_pyav = footage.read(path, choose)
        assert not why_pyav, why_pyav
        return frames

    return read, lambda frames: [video._squashed(f, sampling) for f in frames]


def made(video, folder):
    """The video and its kin: [(name, path)]."""
    import av

    from tests.made_films import write_film

    with av.open(str(video)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
    short = frames[: int(4 * rate)]
    long = [frames[i % len(frames)] for i in range(int(20 * rate))]
    found = [("whole", video)]
    for name, some, group in (
        ("4 s", short, 250),
        ("20 s, key frame a second", long, round(rate)),
        ("20 s, key frame in ten", long, round(10 * rate)),
    ):
        found.append((name, folder / f"{name}.mp4"))
        options = {"preset": "veryfast", "g": str(group)}
        write_film(found[-1][1], some, rate, options=options)
    return found


def measured(clips, old, rounds):
    """{way: {clip: [[decoding, resizing] a round]}} and {clip: frames}."""
    from tqdm import tqdm

    servers, spent = {}, {way: {name: [] for name, _ in clips} for way in WAYS}
    frames = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--serve", way, old]
        pipe = subprocess.PIPE
        servers[way] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert servers[way].stdout.readline() == "ready\n"
    for turn in tqdm(range(rounds + 1), unit="round", disable=None):
        for name, path in clips:
            for way in WAYS[:: -1 if turn % 2 else 1]:
                servers[way].stdin.write(f"{path}\n")
                servers[way].stdin.flush()
                count, *times = json.loads(servers[way].stdout.readline())
                assert frames.setdefault(name, count) == count
                if turn:  # the first one fills the caches
                    spent[way][name].append(times)
    for server in servers.values():
        server.communicate()
    return spent, frames


def summary(spent, frames):
    rows = []
    for name, count in frames.items():
        row = {"clip": name, "frames": count}
        for way in WAYS:
            decode = [count / times[0] for times in spent[way][name]]
            whole = [count / sum(times) for times in spent[way][name]]
            row[way] = {
                "decode": statistics.median(decode),
                "all": statistics.median(whole),
            }
        for part, cut in (("decode", 1), ("all", 2)):
            pairs = zip(spent["before"][name], spent["now"][name], strict=True)
            row[f"ratio_{part}"] = statistics.median(
                sum(a[:cut]) / sum(b[:cut]) for a, b in pairs
            )
        rows.append(row)
    return rows


def main():
    sys.path.append(str(ROOT))
    from lib.doors import Door

    parser = Door("python tests/bench/readers.py", __doc__)
    parser.add_argument("old", help="folder with decord 0.6.0")
    parser.add_argument("video", type=Path, nargs="?", help="an MP4 file")
    parser.add_argument("--serve", choices=WAYS, help="used by the program itself")
    parser.add_argument("--rounds", type=int, default=9, help="over all clips")
    parser.add_argument("--out", type=Path, default=OUT, help="a .json file")
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.old)
    from lib import records

    with tempfile.TemporaryDirectory() as folder:
        clips = made(options.video.absolute(), Path(folder))
        spent, frames = measured(clips, options.old, options.rounds)
    environment = records.environment()
    packages = environment["packages"]
    names = ("decord2", "av", "torchvision")
    result = {
        "readers": {
            "before": "decord 0.6.0 and Pillow",
            "now": ", ".join(f"{name} {packages[name]}" for name in names),
            "pyav": f"av {packages['av']} alone",
        },
        "wanted_ratio": WANTED,
        "rounds": options.rounds,
        "clips": summary(spent, frames),
        "environment": environment,
    }
    records.write_json(options.out.absolute(), result)
    print("frames a second, decoding (with resizing)")
    for row in result["clips"]:
        ways = "   ".join(
            f"{way} {row[way]['decode']:6.1f} ({row[way]['all']:6.1f})" for way in WAYS
        )
        ratios = f"{row['ratio_decode']:.2f} ({row['ratio_all']:.2f})"
        print(f"{row['clip']:26} {ways}   now over before {ratios}")


if __name__ == "__main__":
    main()
