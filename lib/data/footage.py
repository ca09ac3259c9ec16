"""The frames that a film shows, in the order it shows them, or why it cannot be read.

One pass over the packets, without decoding, says how many frames are shown and when.
decord reads h264 in mp4 and Matroska whose every group of pictures begins with an IDR
picture and overlaps no other (it seeks by counting packets), if it then counts as many
frames, at the same times, with the same first picture. PyAV reads all other films.

A film is damaged where FFmpeg reports errors, concealed blocks or lost references in
the packets that its frames need; decord goes on without a word, so FFmpeg's messages
are heard beneath it. A flipped bit that is another sound picture stays unseen.

    >>> frames, why_pyav = read("film.mp4", lambda count, fps: [0, count - 1])"""

import ctypes
import re
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av  # before decord, whose FFmpeg would else be bound in place of PyAV's own
import numpy as np
from av.stream import Disposition

try:
    import decord
    from decord._ffi.base import _LIB, DECORDError
except ModuleNotFoundError:  # PyAV reads every film then, more slowly
    decord = _LIB = None

TRUSTED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # by decord, with h264 in them
RATE_WITHIN = 0.05  # share by which the stated rate may differ from the time stamps'
# Codecs with packets that show nothing, be they hidden references, fields or pictures
# before an intra refresh is complete. Elsewhere such a packet is a frame lost.
WITHHOLD = {"h264", "hevc", "mpeg4", "vp8"}
SHORT = 0.5  # seconds by which a file may end before its header says
ERRORS = "crccheck+bitstream+buffer+explode"  # that PyAV's decoders stop at
# h264 drops a picture that it does not have, as behind a cut; one that was lost within
# a film is a gap in its numbers too.
DROPS = "mmco: unref short failure"
TORN = "Invalid NAL unit size"  # damage, wherever it is
_HEARD: list[str] = []  # damage that either FFmpeg has reported
_ALONE = threading.Lock()  # a message does not say of which film it is


class Unreadable(Exception):
    """Why a film cannot be read, in words that are the same at every reading."""


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _listen(_context: int, level: int, text: bytes, _values: int) -> None:
    """FFmpeg's log: errors but those of captions, and two that it says more softly."""
    if text.startswith((b"concealing", b"Frame num gap")) or (
        level & 0xFF <= av.logging.ERROR and not text.startswith(b"SEI")
    ):
        _HEARD.append(re.sub(r"%\w+", "..", text.decode("ascii", "replace").strip()))


_FFMPEGS = [own for own in (ctypes.CDLL(av._core.__file__), _LIB) if own]


@contextmanager
def _hearing() -> Iterator[None]:
    """What FFmpeg says is heard inside. Elsewhere it may speak from threads of its own,
    and one that waits for Python while PyAV waits for it would wait for ever."""
    for library in _FFMPEGS:
        library.av_log_set_callback(_listen)
    try:
        yield
    finally:
        for library in _FFMPEGS:
            library.av_log_set_callback(None)


class _Packet(NamedTuple):
    pts: int | None
    duration: int
    is_shown: bool
    is_key: bool
    is_idr: bool  # a key picture that nothing later looks behind


@dataclass(frozen=True)
class _Film:
    """What the packets tell of a film's video."""

    codec: str
    count: int  # frames shown
    times: list[int]  # when they are, ascending, in the stream's unit
    unit: float  # seconds
    seconds: float  # from the first to the end of the last; 0 if one has no time
    stated_rate: float  # frames a second by the header; 0 if it does not say
    starts: list[int]  # frames from which decoding can begin; empty if nobody knows
    first: np.ndarray | None  # picture, where decord may be trusted
    why_pyav: str  # why decord may not be

    @property
    def rate(self) -> float:
        """Frames a second as stated (the released code's), if those shown agree."""
        shown = self.count / self.seconds if self.seconds else self.stated_rate
        is_so = abs(self.stated_rate - shown) <= RATE_WITHIN * shown
        return self.stated_rate if is_so else shown


def read(
    path: str | Path, choose: Callable[[int, float], list[int]]
) -> tuple[list[np.ndarray], str]:
    """The frames that `choose(frames shown, frames a second)` names, ascending from 0,
    each uint8 [H, W, 3] and upright; and why PyAV read them, "" where decord did. Of
    several videos the one that FFmpeg ranks best is read. Raises Unreadable."""
    with _ALONE, _hearing():
        film = _scan(str(path))
        if not film.why_pyav:
            frames, doubt = _by_decord(str(path), film, choose(film.count, film.rate))
            if not doubt:
                return frames, ""
            film = replace(film, why_pyav=doubt)
        return _by_pyav(str(path), film, choose), film.why_pyav


def upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Pixels [H, W, 3] of a frame turned and mirrored as its display matrix says."""
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return pixels
    right, down, _, over, below = np.frombuffer(bytes(matrix), np.int32)[:5]
    if abs(down) > abs(right):
        pixels, right, below = pixels.swapaxes(0, 1), over, down
    pixels = pixels[:: -1 if below < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(pixels)


def _open(path: str) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        container = av.open(path, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Unreadable("FFmpeg cannot open it as a video") from error
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:  # a codec that it does not know
        container.close()
        raise Unreadable("holds no video that FFmpeg can decode")
    stream.thread_type = "NONE"  # so that a message belongs to the packet just decoded
    _HEARD.clear()
    return container, stream


def _demuxed(container: av.container.InputContainer, *streams) -> Iterator[av.Packet]:
    try:
        yield from container.demux(*streams)
    except av.FFmpegError as error:
        raise Unreadable("is damaged: FFmpeg cannot read it to its end") from error


def _damage(packet: av.Packet, what: str) -> Unreadable:
    time = packet.dts if packet.pts is None else packet.pts
    at = "" if time is None else f" at {float(time * packet.time_base):.2f} s"
    return Unreadable(f"is damaged{at} ({what})")


def _scan(path: str) -> _Film:
    container, stream = _open(path)
    with container:
        packets, first = [], None
        plain = stream.codec_context.name == "h264" and container.format.name in TRUSTED
        for packet in _sound_packets(container, stream):
            if not packets and plain:
                first = _first_picture(packet, stream)
            facts = (packet.pts, packet.duration or 0, not packet.is_discard)
            is_idr = packet.is_keyframe and _is_idr(packet, stream)
            packets.append(_Packet(*facts, packet.is_keyframe, is_idr))
        timed = sorted(p[:2] for p in packets if p.is_shown and p.pts is not None)
        count = sum(packet.is_shown for packet in packets)
        is_timed = 0 < count == len(timed)
        span = timed[-1][0] + timed[-1][1] - timed[0][0] if is_timed else 0
        starts = _starts(packets)
        return _Film(
            codec=stream.codec_context.name,
            count=count,
            times=[pts for pts, _ in timed],
            unit=float(stream.time_base),
            seconds=float(span * stream.time_base),
            stated_rate=float(stream.average_rate or 0),
            starts=starts,
            first=first,
            why_pyav=_doubt(container, stream, len(packets), count, starts),
        )


def _sound_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet]:
    """The packets of one stream. All streams are read, to know where the file ends."""
    end, count, is_begun = 0.0, 0, False
    for packet in _demuxed(container):
        if packet.pts is not None:
            until = packet.pts + (packet.duration or 0)
            end = max(end, float(until * packet.time_base))
        if packet.stream_index != stream.index or not packet.size:
            continue
        count, is_begun = count + 1, is_begun or packet.is_keyframe
        if not is_begun:
            _HEARD.clear()  # a recording that begins within a group of pictures
        if packet.is_corrupt or _HEARD:
            raise _damage(packet, "".join(_HEARD[:1]) or "bytes are missing")
        yield packet
    # An mp4 lists its packets; others state a length, Matroska's counts from 0.
    begin = (container.start_time or 0) / av.time_base
    stated = (container.duration or 0) / av.time_base
    if stream.average_rate:
        stated = max(stated, float(stream.frames / stream.average_rate))  # of an AVI
    is_short = stated - max(end, end - begin) > SHORT
    if container.format.name.startswith("mov"):
        is_short = count < len(stream.index_entries)
    if is_short or _HEARD:
        raise Unreadable(f"is damaged: it ends at {end:.2f} s, before its header says")


def _is_idr(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Whether a packet of h264 or HEVC in mp4 or Matroska holds an IDR picture."""
    codec, setup = stream.codec_context.name, stream.codec_context.extradata or b""
    if codec not in ("h264", "hevc") or setup[:1] != b"\x01":
        return False
    size = (setup[4 if codec == "h264" else 21] & 3) + 1  # bytes of a unit's length
    data, at = bytes(packet), 0
    while at + size < len(data):
        head = data[at + size]
        if head & 31 == 5 if codec == "h264" else head >> 1 & 63 in (19, 20):
            return True
        at += size + int.from_bytes(data[at : at + size])
    return False


def _starts(packets: list[_Packet]) -> list[int]:
    """Frames from which decoding can begin: the key frames, if all are IDR pictures,
    shown after all that is decoded before them and before all that is decoded after."""
    pts = [packet.pts for packet in packets]
    if not all(p.is_shown for p in packets) or None in pts or len({*pts}) < len(pts):
        return []
    highest, lowest = np.maximum.accumulate(pts), np.minimum.accumulate(pts[::-1])[::-1]
    keys = [i for i, packet in enumerate(packets) if packet.is_key]
    is_closed = all(packets[i].is_idr and highest[i] == lowest[i] for i in keys)
    return keys if is_closed and keys[:1] == [0] else []


def _doubt(container, stream, held: int, count: int, starts: list[int]) -> str:
    covers = Disposition.attached_pic
    videos = [v for v in container.streams.video if not v.disposition & covers]
    codec, kind = stream.codec_context.name, container.format.name
    if decord is None:
        return "decord is not installed"
    if len(videos) > 1:
        return f"it holds {len(videos)} videos; stream {stream.index} is read"
    if codec != "h264" or kind not in TRUSTED:
        return f"it is {codec} in {kind.split(',')[0]}"
    if held > count:
        return f"it hides {held - count} of its frames"
    if stream.frames > held:  # decord makes room for all, and ends the process
        return f"its header counts {stream.frames} frames of {held}"
    if not starts:
        return "its groups of pictures overlap, or do not begin with an IDR picture"
    return ""


def _by_decord(
    path: str, film: _Film, indices: list[int]
) -> tuple[list[np.ndarray], str]:
    """(frames, "") or ([], why they are in doubt)."""
    _HEARD.clear()
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != film.count:
            return [], f"decord counts {len(reader)} frames of {film.count}"
        shown = reader.get_frame_timestamp(range(film.count))[:, 0]
        expected = np.subtract(film.times, film.times[0]) * film.unit
        if np.abs(shown - shown[0] - expected).max() > film.unit + 1e-3:
            return [], "decord has other time stamps"
        frames = [*reader.get_batch(indices).asnumpy()]
    except (RuntimeError, DECORDError, IndexError):
        return [], "decord cannot decode it"
    if _HEARD:
        return [], "decord met damage"
    if not np.array_equal(frames[0], film.first):
        return [], "decord shows another first picture"
    return frames, ""


def _by_pyav(path: str, film: _Film, choose: Callable) -> list[np.ndarray]:
    while True:
        indices = choose(film.count, film.rate)
        frames, count, left = _decoded(path, film, indices)
        is_whole = not film.starts or frames.keys() >= {*indices}
        if count == film.count and is_whole:
            return [frames[i] for i in indices]
        lost = film.count - count - left
        if lost > 0 and film.codec not in WITHHOLD:
            raise Unreadable(f"is damaged ({lost} of its {film.count} frames are lost)")
        film = replace(film, count=count, starts=[])


def _decoded(
    path: str, film: _Film, indices: list[int]
) -> tuple[dict[int, np.ndarray], int, int]:
    """({index: frame} of those wanted, number of frames, number of packets that a cut
    left). Groups of pictures that hold no frame wanted are passed over where that can
    be done, and so is what follows the last one wanted in a group."""
    frames, seen, n_left, group = {}, 0, 0, 0
    first, is_left = None, True  # the first key packet; still before what it begins
    wanted = Counter(bisect_right(film.starts, i) for i in indices)  # in each group
    index_at = {time: i for i, time in enumerate(film.times)}
    container, stream = _open(path)
    with container:
        stream.codec_context.options = {"err_detect": ERRORS}
        for packet in _demuxed(container, stream):
            group += packet.is_keyframe and bool(film.starts)
            if first is None and packet.is_keyframe:
                first = packet
            elif is_left and first is not None:  # referring to before a cut, no damage
                early = packet.pts is None or packet.pts < (first.pts or 0)
                is_left = first.pts is not None and early
            n_left += is_left and packet is not first
            if packet.dts is not None and not (packet.size and wanted[group]):
                continue
            pardoned = "" if is_left else DROPS
            if packet is first:  # its number need not be 0
                pardoned = ("Frame num gap", DROPS)
            for frame in _strictly_decoded(packet, pardoned):
                index = index_at.get(frame.pts) if film.starts else seen
                seen += 1
                if index in indices and index not in frames:
                    frames[index] = _rgb(frame)
                    wanted[bisect_right(film.starts, index)] -= bool(film.starts)
    return frames, film.count if film.starts else seen, n_left


def _strictly_decoded(
    packet: av.Packet, pardoned: str | tuple[str, ...]
) -> list[av.VideoFrame]:
    """Frames of a packet; Unreadable at damage but messages that begin as pardoned."""
    frames = []
    try:
        frames = packet.decode()
    except av.FFmpegError as error:
        _HEARD[:] = _HEARD or [error.strerror]
    if not any(text.startswith(TORN) for text in _HEARD):
        _HEARD[:] = [text for text in _HEARD if not text.startswith(pardoned)]
    if _HEARD or any(frame.is_corrupt for frame in frames):
        raise _damage(packet, "".join(_HEARD[:1]) or "a frame is patched up")
    return frames


def _first_picture(packet: av.Packet, stream: av.VideoStream) -> np.ndarray | None:
    frames = []
    with suppress(av.FFmpegError):
        frames = packet.decode() + stream.codec_context.decode(None)
    _HEARD.clear()  # the reader will hear it again
    return _rgb(frames[0]) if frames else None


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """Pixels [H, W, 3], converted by the filter that decord uses: equal to the bit."""
    kind = (frame.width, frame.height, frame.format.name)
    graph = _graph(*kind, frame.colorspace, frame.color_range)
    try:
        graph.push(frame)
        return upright(graph.pull().to_ndarray(), frame)
    except av.FFmpegError as error:  # YCgCo, ICtCp and others
        raise Unreadable("FFmpeg cannot convert its colours to RGB") from error


@lru_cache(maxsize=16)
def _graph(width: int, height: int, name: str, *_colours: int) -> av.filter.Graph:
    """One for all films of a kind: making it takes as long as decoding a short one."""
    graph = av.filter.Graph()
    kind = {"width": width, "height": height, "format": name}
    graph.link_nodes(
        graph.add_buffer(**kind, time_base=Fraction(1, 1000)),
        graph.add("scale"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph
