"""Frames from real clips, and a named error for each way a clip can be broken."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import av
import decord
import numpy as np
import pytest
from made_films import write_clip
from PIL import Image

from lib.data.frame_store import question_media
from lib.data.video import (
    BadVideo,
    Sampling,
    _squashed,
    frame_indices,
    read_clip,
    read_still,
)

SMALL = Sampling(max_frames=8, min_frames=4, fps=2.0, height=56, width=84)


def noise_of(height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("n_frames", "clip_fps", "count"),
    [
        (250, 25.0, 16),  # 10 s would give 20: at most 16
        (200, 25.0, 16),  # 8 s give exactly 16
        (199, 25.0, 14),  # 7.96 s give 15.92: down to an even count
        (50, 25.0, 4),  # 2 s
        (10, 25.0, 4),  # 0.4 s: at least 4
        (3, 25.0, 2),  # fewer than 4 frames: what there is, even
        (2, 25.0, 2),
    ],
)
def test_count_follows_the_paper(n_frames, clip_fps, count):
    assert len(frame_indices(n_frames, clip_fps, Sampling())) == count


def test_indices_are_the_rounded_linspace():
    for n_frames in [*range(2, 400), 14_315, 90_001]:
        indices = frame_indices(n_frames, 24.0, Sampling())
        spaced = np.linspace(0, n_frames - 1, len(indices)).round().astype(int)
        assert indices == spaced.tolist()
        assert len(set(indices)) == len(indices) > 0 == len(indices) % 2
    assert len(frame_indices(1000, 10.0, Sampling(max_frames=32))) == 32
    assert len(frame_indices(60, 10.0, Sampling(fps=1.0))) == 6
    assert len(frame_indices(60, 10.0, Sampling(fps=0.1, min_frames=8))) == 8


@pytest.mark.parametrize(
    ("n_frames", "clip_fps", "words"),
    [(1, 25.0, "1 frame"), (0, 25.0, "0 frame"), (9, 0.0, "rate"), (9, np.nan, "rate")],
)
def test_what_cannot_be_sampled(n_frames, clip_fps, words):
    with pytest.raises(ValueError, match=words):
        frame_indices(n_frames, clip_fps, Sampling())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_frames", 15, "even"),
        ("max_frames", 0, "at least 2"),
        ("min_frames", 3, "even"),
        ("min_frames", 18, "larger than"),
        ("fps", 0.0, "above zero"),
        ("height", 250, "multiple of 28"),
        ("width", 0, "multiple of 28"),
    ],
)
def test_sampling_refuses(field, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        replace(Sampling(), **{field: value})
    assert field in str(caught.value)


def test_sampling_takes_the_sizes_of_qwen3():
    assert Sampling(height=256, width=480).width == 480


def test_a_clip_gives_its_own_frames(tmp_path):
    clip = write_clip(tmp_path / "naïve clip.mp4", frames=60)
    frames = read_clip(clip, SMALL)
    assert (frames.shape, frames.dtype) == ((8, 56, 84, 3), np.uint8)
    expected = [4 + 2 * i for i in frame_indices(60, 10.0, SMALL)]
    assert np.abs(frames.mean(axis=(1, 2, 3)) - expected).max() < 2  # the codec's loss
    squashed = read_clip(clip, replace(SMALL, height=84, width=28))
    assert squashed.shape == (8, 84, 28, 3)


def test_frames_of_the_right_size_are_not_touched(noisy):
    decoded = decord.VideoReader(str(noisy), num_threads=1)
    expected = decoded.get_batch(frame_indices(60, 10.0, SMALL)).asnumpy()
    assert np.array_equal(read_clip(noisy, SMALL), expected)


@pytest.mark.parametrize(
    ("height", "width", "pixel", "share"),
    [
        (256, 456, (143, 162, 122), 0.2199),
        (56, 112, (89, 94, 62), 0.2354),
        (1080, 1920, None, 0.1026),
        (252, 252, None, 0.0),
    ],
)
def test_frames_are_squashed_as_released(height, width, pixel, share):
    """`pixel` stands at [100, 100] where the released resize runs (torchvision 0.20.1,
    bicubic, antialias); `share` of its values differ from Pillow's bicubic."""
    noise = noise_of(height, width)
    squashed = _squashed(noise, Sampling())
    assert pixel is None or tuple(squashed[100, 100]) == pixel
    by_pillow = Image.fromarray(noise).resize((252, 252), Image.Resampling.BICUBIC)
    assert (squashed != np.asarray(by_pillow)).mean() == pytest.approx(share, abs=1e-4)


def test_a_still(tmp_path):
    pixels = noise_of(56, 84)
    Image.fromarray(pixels).save(tmp_path / "still.png")
    assert np.array_equal(read_still(tmp_path / "still.png", SMALL), pixels)
    wide = read_still(tmp_path / "still.png", replace(SMALL, height=28, width=140))
    resized = Image.fromarray(pixels).resize((140, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(wide, np.asarray(resized))


def still(image, path, **options):
    """One value of each channel that a uniform still is read as."""
    image.save(path, **options)
    pixels = read_still(path, SMALL)
    assert pixels.shape == (56, 84, 3) and pixels.dtype == np.uint8
    (value,) = np.unique(pixels.reshape(-1, 3), axis=0)
    return tuple(value.tolist())


RED = [200, 0, 0] + [0] * 765
STILLS = {
    "1": (Image.new("1", (84, 56), 1), "png", (255, 255, 255)),
    "L": (Image.new("L", (84, 56), 90), "png", (90, 90, 90)),
    "CMYK": (Image.new("CMYK", (84, 56), (0, 0, 0, 255)), "tiff", (0, 0, 0)),
    "transparent RGBA": (Image.new("RGBA", (84, 56), (9, 9, 9, 0)), "png", (255,) * 3),
    "half RGBA": (Image.new("RGBA", (84, 56), (0, 0, 0, 51)), "png", (204,) * 3),
    "transparent LA": (Image.new("LA", (84, 56), (9, 0)), "png", (255,) * 3),
    "16 bits": (np.full((56, 84), 55 * 257, np.uint16), "png", (55,) * 3),
    "dark 16 bits": (np.full((56, 84), 200, np.uint16), "png", (1,) * 3),
    "16 bits in 32": (np.full((56, 84), 65_535, np.int32), "tiff", (255,) * 3),
    "float to 1": (np.full((56, 84), 0.5, np.float32), "tiff", (128,) * 3),
    "float to 255": (np.full((56, 84), 100.4, np.float32), "tiff", (100,) * 3),
}


@pytest.mark.parametrize("name", STILLS)
def test_stills_of_every_kind_become_rgb(name, tmp_path):
    image, suffix, expected = STILLS[name]
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    assert still(image, tmp_path / f"still.{suffix}") == expected


@pytest.mark.parametrize("clear", [0, b"\0\0"], ids=["one", "all"])
def test_a_transparent_palette_lies_on_white(clear, tmp_path):
    image = Image.new("P", (84, 56))
    image.putpalette(RED)
    path = tmp_path / "still.png"
    assert still(image, path) == (200, 0, 0)
    assert still(image, path, transparency=clear) == (255, 255, 255)


def test_a_still_is_turned_as_its_exif_says(tmp_path):
    """What the camera stored as the left edge is the top of an upright picture."""
    image = Image.new("RGB", (84, 56), "black")
    image.paste("white", (0, 0, 20, 56))
    exif = image.getexif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg"):
        image.save(tmp_path / f"still.{suffix}", exif=exif)
        pixels = read_still(tmp_path / f"still.{suffix}", SMALL)
        assert pixels[2].mean() > 250 and pixels[-20:].mean() < 5


def test_exif_that_cannot_be_written_again_turns_a_still_too(tmp_path):
    """Pillow turns a picture and writes its EXIF anew; here its width is a text."""
    image, path = Image.new("RGB", (84, 56)), tmp_path / "still.jpg"
    image.paste("white", (0, 0, 42, 56))  # the left half: turned by 6 it is above
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    image.save(path, exif=exif)
    data = path.read_bytes()
    assert data.count(b"\x01\x0f\0\x02") == 1
    path.write_bytes(data.replace(b"\x01\x0f\0\x02", b"\x01\0\0\x02"))
    pixels = read_still(path, SMALL)
    assert pixels[2].mean() > 250 and pixels[-3:].mean() < 5


def test_whatever_pillow_raises_is_said_of_the_still(tmp_path, monkeypatch):
    path = tmp_path / "still.png"
    Image.new("RGB", (84, 56)).save(path)

    def load(image):
        raise MemoryError  # as of a damaged JPEG 2000

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(BadVideo, match="Pillow cannot"):
        read_still(path, SMALL)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.float32([[0, 300]]), "0 to 300"),
        (np.float32([[-1, 1]]), "-1 to 1"),
        (np.float32([[0, np.nan]]), "nan"),
        (np.int32([[0, 70_000]]), "0 to 70000"),
    ],
)
def test_greys_without_a_known_white_are_refused(values, words, tmp_path):
    Image.fromarray(values).save(tmp_path / "still.tiff")
    with pytest.raises(BadVideo, match=words):
        read_still(tmp_path / "still.tiff", SMALL)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_several_pictures_in_one_file_are_refused(suffix, tmp_path):
    path = tmp_path / f"still.{suffix}"
    first, *more = (Image.new("RGB", (84, 56), (i, 0, 0)) for i in (0, 90, 180))
    first.save(path, save_all=True, append_images=more)
    with pytest.raises(BadVideo, match="holds 3 pictures"):
        read_still(path, SMALL)


def hole(data):
    middle = len(data) // 2
    return data[: middle // 2] + bytes(middle) + data[middle // 2 + middle :]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>429 Too Many Requests</body></html>"
DAMAGE = {
    "zero bytes": (lambda data: b"", "zero bytes"),
    "LFS pointer": (lambda data: POINTER, "git-LFS pointer"),
    "web page": (lambda data: PAGE, "web page"),
    "plain text": (lambda data: b"not a clip at all " * 40, "cannot"),
    "header only": (lambda data: data[:64], "cannot|holds no video"),
    "half": (lambda data: data[: len(data) // 2], "cannot|is damaged"),
    "nearly all": (lambda data: data[: len(data) * 95 // 100], "cannot|is damaged"),
    "hole": (hole, "cannot|is damaged"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_clip_or_still_is_a_bad_video(what, noisy, tmp_path):
    Image.fromarray(noise_of(56, 84)).save(tmp_path / "sound.png")
    damage, words = DAMAGE[what]
    for sound, read in ((noisy, read_clip), (tmp_path / "sound.png", read_still)):
        path = tmp_path / f"damaged{sound.suffix}"
        path.write_bytes(damage(sound.read_bytes()))
        if (what, read) == ("hole", read_still):
            continue  # in raw pixels it is a picture like any other
        whys = set()
        for _ in range(2):
            with pytest.raises(BadVideo, match=words) as caught:
                read(path, SMALL)
            whys.add(caught.value.why)
            assert caught.value.path == path and str(path) in str(caught.value)
        # Readers' own words hold the time of day and addresses; records must not.
        assert len(whys) == 1


@pytest.mark.parametrize("read", [read_clip, read_still])
def test_missing_media_and_folders(read, tmp_path):
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(BadVideo, match="is missing"):
            read(path, SMALL)
    item = SimpleNamespace(video=tmp_path / ("a" * 300 + ".mp4"), image=None)
    with pytest.raises(BadVideo, match="File name too long"):
        read(item.video, SMALL)
    with pytest.raises(BadVideo, match="File name too long"):
        question_media(item, SMALL)


def test_clips_of_one_frame_and_without_pictures(tmp_path):
    with pytest.raises(BadVideo, match="has 1 frame"):
        read_clip(write_clip(tmp_path / "one.mp4", frames=1), SMALL)
    path, silence = tmp_path / "sound.mp4", np.zeros((1, 1024), np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadVideo, match="holds no video"):
        read_clip(path, SMALL)


def test_a_bad_video_survives_pickling():
    error = pickle.loads(pickle.dumps(BadVideo("a.mp4", "is missing")))
    assert (str(error.path), error.why) == ("a.mp4", "is missing")
    assert str(error) == (
        "a.mp4: is missing; put a sound file there or, to evaluate without it, set"
        " on_bad_video: keep_as_wrong"
    )
