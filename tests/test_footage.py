"""Films of every make give the frames they show; a damaged one says what is wrong."""

import io
import random
from concurrent.futures import ThreadPoolExecutor

import av
import decord
import numpy as np
import pytest
from made_films import write_film

from lib.data import clips, footage, inventory

HEIGHT, WIDTH, FPS = 64, 112, 10
X264 = {"preset": "ultrafast", "crf": "18"}


def picture(number):
    """Eight bars, bright where the number has a bit; the left edge is red."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(60, 100, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for bit in range(8):
        bar = pixels[16:, 16 + bit * 10 : 26 + bit * 10]
        bar[:] = 230 if number >> bit & 1 else 20
    pixels[:, :12] = 220, 20, 20
    return pixels


def number(pixels):
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    bars = (pixels[24:-8, 19 + bit * 10 : 23 + bit * 10] for bit in range(8))
    return sum(int(bar.mean() > 127) << bit for bit, bar in enumerate(bars))


def write(path, codec="libx264", options=X264, count=60, **more):
    """A film whose frame i is `picture(i)`."""
    options = {"g": "10", **options}
    return write_film(
        path, map(picture, range(count)), FPS, codec, options=options, **more
    )


def read_all(path, step=1):
    """(numbers of the frames, the rate that was named, why PyAV read them)."""
    told = []

    def choose(count, rate):
        told.append(rate)
        return list(range(0, count, step))

    frames, why_pyav = footage.read(path, choose)
    return [number(frame) for frame in frames], told[-1], why_pyav


OPEN = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=20"}
PLAIN = {
    "closed.mp4": {"preset": "veryfast"},
    "one_key_frame.mp4": {"preset": "veryfast", "g": "250"},
    "no_b_frames.mp4": {"bf": "0"},
    "closed.mkv": {"preset": "veryfast"},
}
OTHERS = {
    "open.mp4": ("libx264", {"preset": "veryfast", **OPEN}, "groups of pictures"),
    "open.mkv": ("libx264", {"preset": "veryfast", **OPEN}, "groups of pictures"),
    "refresh.mp4": ("libx264", {"preset": "veryfast", **REFRESH}, "IDR picture"),
    "h264.ts": ("libx264", {"preset": "veryfast"}, "h264 in mpegts"),
    "h264.avi": ("libx264", {"bf": "0"}, "h264 in avi"),
    "h264.mpg": ("libx264", {"crf": "40"}, "h264 in mpeg"),  # most packets: no time
    "bframes.avi": ("mpeg4", {"bf": "2", "b": "2000k"}, "mpeg4 in avi"),
    "bframes.mp4": ("mpeg4", {"bf": "2", "b": "2000k"}, "mpeg4 in mov"),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2", "b": "2000k"}, "mpeg2video in mpeg"),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "b": "2000k"}, "mpeg2video in mpegts"),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=0"}, ""),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "vp9"),
    "av1.mp4": ("libsvtav1", {"preset": "12", "crf": "20"}, "dav1d"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_decord_reads_plain_clips(name, tmp_path):
    path = write(tmp_path / name, options={**X264, **PLAIN[name]})
    assert read_all(path, step=3) == ([*range(0, 60, 3)], FPS, "")


@pytest.mark.parametrize("name", OTHERS)
def test_pyav_reads_what_decord_would_show_wrongly(name, tmp_path):
    codec, options, why = OTHERS[name]
    # MPEG-2 knows no ten frames a second: FFmpeg's encoder is told to let it pass.
    options = {**options, "strict": "-1"} if codec == "mpeg2video" else options
    shown, rate, why_pyav = read_all(write(tmp_path / name, codec, options))
    assert shown == [*range(60)]
    assert rate == pytest.approx(FPS, rel=0.01)
    assert why_pyav and why in why_pyav


def test_a_recording_without_a_length(tmp_path):
    """As a browser writes it: a webm that was never finished and has no index."""
    live = write(
        io.BytesIO(),
        *("libvpx", {"deadline": "realtime", "cpu-used": "8", "b": "500k"}),
        format="webm",
        container_options={"live": "1"},
    )
    (tmp_path / "live.webm").write_bytes(live.getvalue())
    with av.open(str(tmp_path / "live.webm")) as container:
        assert container.duration is None
    shown, rate, _ = read_all(tmp_path / "live.webm")
    assert shown == [*range(60)] and rate == pytest.approx(FPS, rel=0.01)


def edited(path, skip=0.0, keep=1.0):
    """An mp4 whose edit list skips seconds and keeps a share of its length."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        ticks = round(skip / container.streams.video[0].time_base)
    at = data.index(b"elst") + 12
    length, begin = (int.from_bytes(data[i : i + 4]) for i in (at, at + 4))
    data[at : at + 4] = int(length * keep).to_bytes(4)
    data[at + 4 : at + 8] = (begin + ticks).to_bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("skip", "keep", "expected"),
    [(0, 0.8, range(48)), (1.3, 1, range(13, 60)), (1.3, 0.5, range(13, 43))],
)
@pytest.mark.parametrize("group", ["10", "250"])
def test_an_edit_list_hides_frames(skip, keep, expected, group, tmp_path):
    plain = write(tmp_path / "film.mp4", options={**X264, "bf": "2", "g": group})
    shown, _, why_pyav = read_all(edited(plain, skip, keep))
    assert shown == [*expected]
    assert "hides" in why_pyav  # FFmpeg leaves out what lies behind the last group


def test_the_rate_is_that_of_the_frames_shown(tmp_path):
    """30 frames at 10 a second and 30 at 2; only the first 3 seconds are shown."""
    times = [*range(30), *range(30, 180, 5)]
    path = write(tmp_path / "film.mp4", times=times)
    shown, rate, why_pyav = read_all(path, step=2)
    assert (shown, why_pyav) == ([*range(0, 60, 2)], "")
    assert rate == pytest.approx(60 / 18, rel=0.03)  # as stated, as released
    shown, rate, _ = read_all(edited(path, keep=3 / 18))
    assert shown == [*range(30)] and rate == pytest.approx(10)


def copied(source, target, keep, format=None):
    """The packets of a film that `keep(place, packet)` wants, in another file."""
    with av.open(str(source)) as old, av.open(str(target), "w", format=format) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(video=0)):
            if packet.size and keep(i, packet):
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("length", ["10", "15"])
def test_a_cut_in_open_groups_shows_what_can_be_decoded(length, tmp_path):
    """Pictures that refer to before the cut are lost, which is no damage; nor is that a
    later one drops some of before it (15)."""
    opened = OPEN["x264-params"].replace("int=10", f"int={length}")
    options = {**X264, "preset": "veryfast", "x264-params": opened}
    whole = write(tmp_path / "whole.mp4", options=options)
    with av.open(str(whole)) as container:
        keys = [i for i, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    cut = copied(whole, tmp_path / "cut.mkv", lambda i, packet: i >= keys[2])
    shown, _, _ = read_all(cut)
    assert shown == [*range(shown[0], 60)] and 15 < shown[0] <= 2 * int(length)


def test_the_best_of_two_videos_is_read_by_both_readers(tmp_path):
    small = write(tmp_path / "small.mp4", count=30)
    with av.open(str(small)) as one, av.open(str(tmp_path / "two.mp4"), "w") as both:
        little = both.add_stream_from_template(one.streams.video[0])
        large = both.add_stream("libx264", rate=FPS)
        large.width, large.height, large.pix_fmt = 4 * WIDTH, 4 * HEIGHT, "yuv420p"
        for i in range(60):
            pixels = picture(i).repeat(4, 0).repeat(4, 1)
            both.mux(large.encode(av.VideoFrame.from_ndarray(pixels)))
        both.mux(large.encode())
        for packet in one.demux(video=0):
            if packet.size:
                packet.stream = little
                both.mux(packet)
    wanted = [0, 11, 29]
    frames, why_pyav = footage.read(tmp_path / "two.mp4", lambda count, rate: wanted)
    assert [number(frame) for frame in frames] == wanted
    assert "it holds 2 videos; stream 0 is read" in why_pyav
    by_decord = decord.VideoReader(str(tmp_path / "two.mp4"), num_threads=1)
    assert np.array_equal(by_decord.get_batch(wanted).asnumpy(), frames)


def by_both(path, wanted):
    """What `read` gives, after it was seen that PyAV gives the same pixels."""
    frames, why_pyav = footage.read(path, lambda count, rate: wanted)
    film = footage._scan(str(path))
    by_pyav = footage._by_pyav(str(path), film, lambda count, rate: wanted)
    assert np.array_equal(frames, by_pyav)
    return frames, why_pyav


def red_side(pixels):
    height, width = pixels.shape[:2]
    middle = {
        "left": pixels[height // 2, 4],
        "right": pixels[height // 2, width - 5],
        "top": pixels[4, width // 2],
        "bottom": pixels[height - 5, width // 2],
    }
    (side,) = (s for s, (r, g, b) in middle.items() if r > 150 and g < 100 > b)
    return side


TURNS = [
    (90, {}, "bottom"),  # counterclockwise, as FFmpeg counts
    (180, {}, "right"),
    (270, {}, "top"),
    (0, {"hflip": True}, "right"),
    (0, {"vflip": True}, "left"),
    (90, {"hflip": True}, "bottom"),
]


@pytest.mark.parametrize(("degrees", "flips", "side"), TURNS)
def test_turned_films_stand_upright_in_both_readers(degrees, flips, side, tmp_path):
    path = write(tmp_path / "film.mp4", count=20, turn=(degrees, flips))
    frames, why_pyav = by_both(path, [0, 19])
    assert red_side(frames[0]) == side
    assert bool(why_pyav) == bool(flips)  # decord turns, but does not mirror
    wanted = clips.Cut(0.2, 1.0, tmp_path / "clip.mp4", tmp_path / "still.png")
    assert clips.cut(path, [wanted]) == {}
    (still,) = av.open(str(wanted.still)).decode(video=0)
    assert red_side(still.to_ndarray(format="rgb24")) == side
    frames, _ = footage.read(wanted.clip, lambda count, rate: [0])
    assert red_side(frames[0]) == side


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_both_readers_convert_to_the_same_pixels(pix_fmt, tmp_path):
    path = write(tmp_path / "film.mkv", options={}, count=40, pix_fmt=pix_fmt)
    assert by_both(path, [0, 13, 14, 39])[1] == ""
    assert len(footage._scan(str(path)).starts) >= 4


def test_colours_that_ffmpeg_cannot_convert_are_said(tmp_path):
    """A bare OSError would end an evaluation that keeps unreadable clips as wrong."""
    path = write(tmp_path / "film.mp4", options={"x264-params": "colormatrix=YCgCo"})
    with pytest.raises(footage.Unreadable, match="cannot convert its colours"):
        read_all(path)


def test_a_codec_that_ffmpeg_does_not_know_is_said(tmp_path):
    path = write(tmp_path / "film.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"encv"))  # as if encrypted
    with pytest.raises(footage.Unreadable, match="no video that FFmpeg can decode"):
        read_all(path)


def payload(path):
    """Places of the packets' bytes in a file."""
    data = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    return [(data.index(packet), len(packet)) for packet in packets]


def flip(data, places):
    rng = random.Random(0)
    for at, size in rng.choices(places[3:], k=40):
        data[at + rng.randrange(size)] ^= 1 << rng.randrange(8)


def zero(data, places):
    at, size = places[23]
    data[at : at + size] = bytes(size)


def noise(data, places):
    at, size = max(places[5:], key=lambda place: place[1])
    data[at + size // 2 : at + size] = random.Random(0).randbytes(size - size // 2)


def damage(path, how):
    data = bytearray(path.read_bytes())
    how(data, payload(path))
    path.write_bytes(data)
    return path


FILMS = {
    "closed.mp4": ("libx264", {**X264, "bf": "2"}),
    "closed.mkv": ("libx264", {**X264, "bf": "2"}),
    "mpeg2.mkv": ("mpeg2video", {"bf": "2", "b": "2000k", "strict": "-1"}),
    **{name: OTHERS[name][:2] for name in ("open.mp4", "bframes.avi", "hevc.mp4")},
}


@pytest.mark.parametrize("how", [flip, zero, noise], ids=lambda how: how.__name__)
@pytest.mark.parametrize("name", FILMS)
def test_damage_is_told_alike_at_every_reading(name, how, tmp_path):
    if (name, how) == ("hevc.mp4", noise):
        pytest.skip("FFmpeg's HEVC decoder reads noise within a slice as pictures")
    path = write(tmp_path / name, *FILMS[name])
    assert len(read_all(path)[0]) == 60
    damage(path, how)
    whys = set()
    for _ in range(2):
        with pytest.raises(footage.Unreadable, match="is damaged") as caught:
            read_all(path)
        whys.add(str(caught.value))
    assert len(whys) == 1


def test_damage_that_decord_conceals_is_found_where_it_matters(tmp_path):
    """decord hands out patched frames; what FFmpeg says beneath it is heard."""
    path = damage(write(tmp_path / "film.mp4", options={**X264, "bf": "0"}), noise)
    patched = decord.VideoReader(str(path), num_threads=1).get_batch([0, 42, 59])
    assert patched.shape == (3, HEIGHT, WIDTH, 3)
    with pytest.raises(footage.Unreadable, match=r"is damaged at 4\.00 s \(.+\)"):
        footage.read(path, lambda count, rate: [0, 42, 59])
    for _ in range(3):  # none of the group that is damaged
        frames, _ = footage.read(path, lambda count, rate: [0, 12, 37, 59])
        assert [number(frame) for frame in frames] == [0, 12, 37, 59]


def test_a_hole_in_the_first_packet(tmp_path):
    """The film does not begin a group later, as a recording may."""
    path = write(tmp_path / "film.mp4", options={**X264, "bf": "0"})
    damage(path, lambda data, places: zero(data, places[:1] * 24))
    with pytest.raises(footage.Unreadable, match="is damaged"):
        read_all(path)


def test_lost_packets_of_h264(tmp_path):
    options = {**X264, "bf": "0", "g": "250"}
    whole = write(tmp_path / "whole.mp4", options=options)
    lossy = copied(whole, tmp_path / "lossy.mkv", lambda i, packet: i != 20)
    with pytest.raises(footage.Unreadable, match="Frame num gap"):
        read_all(lossy)


def test_lost_packets_of_a_transport_stream(tmp_path):
    path = write(tmp_path / "film.ts", "mpeg2video", FILMS["mpeg2.mkv"][1])
    data = path.read_bytes()
    parts = [data[i : i + 188] for i in range(0, len(data), 188)]
    inner = [i for i, p in enumerate(parts) if p[1:3] == b"\x01\x00"]  # of the video
    del parts[inner[len(inner) // 2]]
    path.write_bytes(b"".join(parts))
    with pytest.raises(footage.Unreadable, match="is damaged"):
        read_all(path)


@pytest.mark.parametrize("name", ["film.mkv", "film.avi", "film.mp4"])
def test_a_file_that_was_cut_off(name, tmp_path):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    plain = {**X264, "bf": "0"}
    path = write(tmp_path / name, options=plain, container_options=options)
    data, places = path.read_bytes(), payload(path)
    for end in (len(data) * 2 // 3, places[30][0]):  # within a packet, between two
        path.write_bytes(data[:end])
        with pytest.raises(footage.Unreadable, match="is damaged"):
            read_all(path)


def mark(medium):
    path, _ = medium
    path.write_text("read")
    return "", ""


def test_a_header_that_counts_frames_of_no_film_is_no_end(tmp_path):
    """decord made room for four thousand million, and ended the process."""
    path = write(tmp_path / "film.mp4", count=20)
    data = bytearray(path.read_bytes())
    entry = data.index(b"stts") + 12
    assert data[entry : entry + 4] == bytes([0, 0, 0, 20])
    data[entry] = 255
    path.write_bytes(data)
    shown, _, why_pyav = read_all(path)
    assert shown == [*range(20)] and "4278190100 frames of 20" in why_pyav


def test_an_interrupted_check_ends(tmp_path, monkeypatch):
    """What has not begun is not waited for."""
    monkeypatch.setattr(inventory, "_decoded", mark)
    media = [(tmp_path / f"{i}.mp4", True) for i in range(20_000)]
    reading = inventory._decoded_all(media)
    assert next(reading) == (media[0], ("", ""))
    with pytest.raises(KeyboardInterrupt):
        reading.throw(KeyboardInterrupt)
    assert len(list(tmp_path.iterdir())) < len(media)


def test_one_film_s_damage_is_not_another_s(tmp_path):
    """Evaluation reads clips in threads; FFmpeg does not say whose message it is."""
    sound = write(tmp_path / "sound.mp4", options={**X264, "bf": "0"})
    broken = write(tmp_path / "broken.mp4", options={**X264, "bf": "0"})
    damage(broken, flip)

    def told(path):
        try:
            return read_all(path)[0] == [*range(60)]
        except footage.Unreadable:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(told, [sound, broken] * 20)) == [True, False] * 20


def test_ffmpeg_is_heard_only_while_a_film_is_read(tmp_path):
    """Else its threads may wait for Python while PyAV, which holds it, waits for them:
    cutting clips, which decodes on several, could stand still."""
    footage.read(write(tmp_path / "film.mp4"), lambda count, fps: [0])
    for library in footage._FFMPEGS:
        library.av_log(None, av.logging.ERROR, b"trouble")
        assert footage._HEARD == []
        with footage._hearing():
            library.av_log(None, av.logging.ERROR, b"trouble")
        assert footage._HEARD.pop() == "trouble"
