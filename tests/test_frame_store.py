"""Frames kept in a folder: the same pixels, whoever fills it and however it is hurt."""

import contextlib
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, wraps
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_video import SMALL

from lib.data import frame_store
from lib.data.frame_store import (
    FrameFolder,
    FrameStore,
    keep_frames,
    kept_frames,
    question_media,
)
from lib.data.video import BadVideo, read_clip, read_still

PLENTY = 2**30


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "frames"


def counted(reader):
    """`reader` with a list of the names of the files it was given."""

    @wraps(reader)  # the name tells readers apart in the folder
    def read(path, sampling):
        read.calls.append(path.name)
        return reader(path, sampling)

    read.calls = []
    return read


def pixels_of(path, sampling):
    """Frames that are told by the file's own bytes, without any decoding."""
    seed = int.from_bytes(path.read_bytes()[:8], "big")
    shape = (4, sampling.height, sampling.width, 3)
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def numbered(folder, count):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(i.to_bytes(8, "big") + b"media")
    return [folder / f"{i}.mp4" for i in range(count)]


def held(folder):
    """Bytes of the entries; what goes while it is counted is not counted."""
    found = 0
    for file in folder.glob("*.*"):
        with contextlib.suppress(FileNotFoundError):
            found += file.stat().st_size if file.suffix else 0
    return found


def entries(folder):
    return sorted(folder.glob("*.frames"))


def filled(folder, media, bound=PLENTY, count=6):
    """A store that was asked for `count` media once each, and their paths."""
    store, paths = FrameFolder(folder, bound), numbered(media, count)
    for path in paths:
        store.read(pixels_of, path, SMALL)
    return store, paths


def test_a_kept_clip_is_the_decoded_clip_in_every_later_process(noisy, folder):
    expected = read_clip(noisy, SMALL)
    for calls in (["clip.mp4"], []):
        reader = counted(read_clip)
        frames = FrameFolder(folder, PLENTY).read(reader, noisy, SMALL)
        assert reader.calls == calls
        assert np.array_equal(frames, expected)
        assert frames.dtype == np.uint8 and frames.film == expected.film is not None
        assert frames.flags.c_contiguous and frames.flags.writeable


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_extreme_pixels_survive(value, folder, tmp_path):
    pixels = np.full((56, 84, 3), value, np.uint8)
    pixels[::2, ::3] = 255 - value
    pixels[5, 7] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "still.png")
    store = FrameFolder(folder, PLENTY)
    for _ in range(2):
        kept = store.read(read_still, tmp_path / "still.png", SMALL)
        assert np.array_equal(kept, pixels)


def inverted(path, sampling):
    return 255 - pixels_of(path, sampling)


def replaced(path, monkeypatch):
    """With the size and the time of the old file, as `cp -p` would leave it."""
    times = path.stat()
    path.write_bytes((77).to_bytes(8, "big") + b"media")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size


def newer(package):
    return lambda path, patch: patch.setitem(frame_store.VERSIONS, package, "0.0.0")


ANOTHER = {  # what is done to the file or the kit, and the reader and sampling after it
    "content": (replaced, pixels_of, SMALL),
    "number of frames": (None, pixels_of, replace(SMALL, max_frames=4)),
    "rate": (None, pixels_of, replace(SMALL, fps=1.0)),
    "size": (None, pixels_of, replace(SMALL, height=28)),
    "reader": (None, inverted, SMALL),
    **{
        f"version of {package}": (newer(package), pixels_of, SMALL)
        for package in ("decord2", "av", "torchvision", "pillow")
    },
}


@pytest.mark.parametrize("what", ANOTHER)
def test_another_content_reader_sampling_or_version_is_another_entry(
    what, folder, tmp_path, monkeypatch
):
    store, (path,) = filled(folder, tmp_path / "media", count=1)
    change, read, sampling = ANOTHER[what]
    if change:
        change(path, monkeypatch)
    reader = counted(read)
    frames = store.read(reader, path, sampling)
    assert np.array_equal(frames, read(path, sampling))
    assert reader.calls == ["0.mp4"] and len(entries(folder)) == 2


def test_what_is_bad_or_changes_while_it_is_read_is_not_kept(noisy, folder, tmp_path):
    path = tmp_path / "half.mp4"
    path.write_bytes(noisy.read_bytes()[: noisy.stat().st_size // 2])
    store, reader = FrameFolder(folder, PLENTY), counted(read_clip)
    for _ in range(2):
        with pytest.raises(BadVideo, match=r"half\.mp4"):
            store.read(reader, path, SMALL)
    assert len(reader.calls) == 2

    def growing(path, sampling):
        with path.open("ab") as file:
            file.write(b"more")
        return pixels_of(path, sampling)

    store.read(growing, path, SMALL)
    assert entries(folder) == []


def flipped(data, place):
    at = int(place * (len(data) - 1))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    **{f"flipped at {x}": partial(flipped, place=x) for x in (0.0, 0.01, 0.5, 1.0)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_anew_with_one_warning(damage, noisy, folder, caplog):
    expected = FrameFolder(folder, PLENTY).read(read_clip, noisy, SMALL)
    (entry,) = entries(folder)
    sound = entry.read_bytes()
    entry.write_bytes(damage(sound))
    reader = counted(read_clip)
    for _ in range(2):
        frames = FrameFolder(folder, PLENTY).read(reader, noisy, SMALL)
        assert np.array_equal(frames, expected)
    assert reader.calls == ["clip.mp4"]
    assert entry.read_bytes() == sound
    (warning,) = caplog.messages
    assert entry.name in warning and str(noisy) in warning
    assert "\n" not in warning


def test_an_entry_put_in_anothers_place_is_damage(folder, tmp_path, caplog):
    store, paths = filled(folder, tmp_path / "media", count=2)
    one, other = entries(folder)
    other.write_bytes(one.read_bytes())
    for path in paths:
        frames = store.read(pixels_of, path, SMALL)
        assert np.array_equal(frames, pixels_of(path, SMALL))
    assert len(caplog.messages) == 1


@pytest.fixture
def one(tmp_path):
    """Bytes of one entry."""
    filled(tmp_path / "one frames", tmp_path / "one", count=1)
    return held(tmp_path / "one frames")


def test_the_least_recently_used_go_first(folder, tmp_path, one):
    store = FrameFolder(folder, int(3.5 * one))
    reader, paths = counted(pixels_of), numbered(tmp_path / "media", 4)
    for i in (0, 1, 2, 0, 3, 0, 3, 1):  # 3 takes the place of 1; 0 was used since
        time.sleep(0.02)  # more than the file system's clock needs to tick
        store.read(reader, paths[i], SMALL)
        assert held(folder) <= store.max_bytes
    assert reader.calls == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "1.mp4"]


def test_a_smaller_bound_holds_from_the_opening_on(folder, tmp_path, one):
    filled(folder, tmp_path / "media")
    assert held(folder) > 2 * one
    FrameFolder(folder, 2 * one)
    assert 0 < held(folder) <= 2 * one


def test_files_of_others_are_left_alone(folder, tmp_path, one):
    """A full folder drops its own entries, nothing else, however it is named."""
    others = ["holiday.frames", "a.hash", ".lock", ".unfinished", "0" * 64 + ".jpg"]
    others.append("photos/1.frames")
    (folder / "photos").mkdir(parents=True)
    for name in others:
        (folder / name).write_bytes(b"mine" * 100_000)
        os.utime(folder / name, (0, 0))  # older than all entries
    filled(folder, tmp_path / "media", bound=2 * one)
    for name in others:
        assert (folder / name).read_bytes() == b"mine" * 100_000
    own = [file for file in folder.iterdir() if frame_store.OWN.fullmatch(file.name)]
    assert 0 < sum(file.stat().st_size for file in own) <= 2 * one


def test_frames_larger_than_the_bound_are_returned_and_not_kept(folder, tmp_path):
    (path,) = numbered(tmp_path / "media", 1)
    frames = FrameFolder(folder, 1000).read(pixels_of, path, SMALL)
    assert np.array_equal(frames, pixels_of(path, SMALL))
    assert entries(folder) == []
    with pytest.raises(ValueError, match="more than 0"):
        FrameFolder(folder, 0)


@pytest.mark.parametrize("torn", [b"", b"12", b"not a number at all!"])
def test_a_torn_count_is_counted_again(torn, folder, tmp_path, one):
    for path in numbered(tmp_path / "media", 8):
        store = FrameFolder(folder, 3 * one)
        (folder / ".frames_lock").write_bytes(torn)
        store.read(pixels_of, path, SMALL)
        assert held(folder) <= 4 * one


# --- several processes ------------------------------------------------------------


def fill(folder, media, bound, turns, seed, begin):
    """Read all media `turns` times, each in an order of its own."""
    frame_store._LOGGER.warning = pytest.fail  # nobody sees half an entry
    store, paths = FrameFolder(folder, bound), sorted(media.iterdir())
    begin.wait(300)
    for turn in range(turns):
        for path in np.random.default_rng([seed, turn]).permutation(paths):
            frames = store.read(pixels_of, path, SMALL)
            assert np.array_equal(frames, pixels_of(path, SMALL)), path
            assert held(folder) <= bound


def start(*given, count):
    """Processes that `fill`, at work."""
    spawn = multiprocessing.get_context("spawn")
    begin, started = spawn.Barrier(count + 1), []
    for seed in range(count):
        started.append(spawn.Process(target=fill, args=(*given, seed, begin)))
        started[-1].start()
    begin.wait(300)
    return started


@pytest.mark.parametrize("entries_held", [None, 5])
def test_several_processes_fill_one_folder(entries_held, folder, tmp_path, one):
    paths = numbered(tmp_path / "media", 12)
    bound = PLENTY if entries_held is None else entries_held * one
    for process in start(folder, tmp_path / "media", bound, 3, count=3):
        process.join(60)
        assert process.exitcode == 0
    assert 0 < held(folder) <= bound
    if entries_held is None:
        assert len(entries(folder)) == len(paths)


def test_killed_processes_leave_a_sound_folder(folder, tmp_path, one, caplog):
    paths = numbered(tmp_path / "media", 12)
    bound = 5 * one  # small, so that they write all the time
    for moment in (0.05, 0.13, 0.21):
        started = start(folder, tmp_path / "media", bound, 1000, count=2)
        time.sleep(moment)
        for process in started:
            assert process.is_alive()
            process.kill()
            process.join()
    (folder / ".frames_unfinished").write_bytes(b"half an entry")
    store = FrameFolder(folder, bound)
    for path in paths:
        frames = store.read(pixels_of, path, SMALL)
        assert np.array_equal(frames, pixels_of(path, SMALL))
        assert held(folder) <= bound
    assert "damaged" not in caplog.text
    assert not (folder / ".frames_unfinished").exists()


def test_a_process_decodes_once_and_hands_out_copies(tmp_path):
    (path,) = numbered(tmp_path / "media", 1)
    store, reader = FrameStore(PLENTY), counted(pixels_of)
    store.read(reader, path, SMALL)[:] = 99
    assert np.array_equal(store.read(reader, path, SMALL), pixels_of(path, SMALL))
    assert len(reader.calls) == 1
    store.read(reader, path, replace(SMALL, max_frames=4))
    path.write_bytes(b"other media")
    assert np.array_equal(store.read(reader, path, SMALL), pixels_of(path, SMALL))
    assert len(reader.calls) == 3


def test_a_process_is_bounded_and_drops_the_least_recently_used(tmp_path):
    paths = numbered(tmp_path / "media", 3)
    one = pixels_of(paths[0], SMALL).nbytes
    store, reader = FrameStore(2 * one), counted(pixels_of)
    for i in (0, 1, 0, 2, 0, 1):
        store.read(reader, paths[i], SMALL)
        assert store.used_bytes <= 2 * one
    assert reader.calls == ["0.mp4", "1.mp4", "2.mp4", "1.mp4"]
    small = FrameStore(one // 2)
    assert small.read(reader, paths[0], SMALL).nbytes == one
    assert small.used_bytes == 0


def test_what_two_threads_decode_at_once_is_counted_once(tmp_path):
    paths, both = numbered(tmp_path / "media", 4), threading.Barrier(2, timeout=20)

    def together(path, sampling):
        both.wait()
        return pixels_of(path, sampling)

    one = pixels_of(paths[0], SMALL).nbytes
    store = FrameStore(2 * one)
    with ThreadPoolExecutor(2) as threads:
        for path in paths:
            jobs = [threads.submit(store.read, together, path, SMALL) for _ in "ab"]
            for job in jobs:
                assert np.array_equal(job.result(), pixels_of(path, SMALL))
    both.abort()  # nothing is decoded any more
    for path in paths[-2:]:
        assert np.array_equal(store.read(together, path, SMALL), pixels_of(path, SMALL))
    assert store.used_bytes == 2 * one


def test_question_media_goes_through_the_folder(noisy, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_store, "_STORE", FrameStore(max_bytes=0))
    still = tmp_path / "still.png"
    Image.new("RGB", (84, 56), (1, 2, 3)).save(still)
    item = SimpleNamespace(video=noisy, image=still)
    keep_frames(folder, max_gib=1)
    assert kept_frames() == (folder, 1)
    for _ in range(2):
        frames, picture = question_media(item, SMALL)
        assert np.array_equal(frames, read_clip(noisy, SMALL))
        assert picture[0, 0].tolist() == [1, 2, 3]
    assert len(entries(folder)) == 2
    keep_frames("", max_gib=1)
    question_media(item, replace(SMALL, max_frames=4))
    assert len(entries(folder)) == 2
    nothing = SimpleNamespace(video=None, image=None)
    assert question_media(nothing, SMALL) == (None, None)


def test_a_bad_clip_is_not_remembered(noisy, tmp_path):
    item = SimpleNamespace(video=tmp_path / "late.mp4", image=None)
    with pytest.raises(BadVideo, match="is missing"):
        question_media(item, SMALL)
    item.video.write_bytes(noisy.read_bytes())
    assert question_media(item, SMALL)[0].shape == (8, 56, 84, 3)
