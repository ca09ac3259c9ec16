"""Clips and stills cut from long videos, by the time stamps of their frames.

A clip shows `start` to `end`, 10 frames a second and 256 pixels high: the paper's
sampling takes 2 a second and squashes them to 252 x 252. The still stands at `end`.

    >>> cut("P01_11.MP4", [Cut(12.5, 40.0, Path("clip.mp4"), Path("still.png"))])
    {}"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import av
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from lib import records
from lib.data.footage import upright

FPS, HEIGHT = 10, 256


@dataclass(frozen=True)
class Cut:
    """What to cut; times in seconds. Without `clip`, the still alone."""

    start: float
    end: float
    clip: Path | None
    still: Path

    @property
    def is_there(self) -> bool:
        """Whether all of it was cut already."""
        return self.still.exists() and (self.clip is None or self.clip.exists())


def cut(video: Path, cuts: list[Cut]) -> dict[Cut, str]:
    """Make the files that are not there; returns why for each cut that failed. A file
    has its own name once it is complete. OSError where it cannot be written."""
    todo = sorted({c for c in cuts if not c.is_there}, key=attrgetter("start", "end"))
    failed = {}
    for start, group in groupby(todo, key=attrgetter("start")):
        together = list(group)
        try:
            with av.open(str(video)) as container:
                container.streams.video[0].thread_type = "AUTO"
                left = _cut_together(_shown(container, start), start, together)
            failed.update(dict.fromkeys(left, "it lies past the end of the video"))
        except (av.FFmpegError, IndexError) as error:
            why = f"the video cannot be decoded ({type(error).__name__})"
            failed.update({c: why for c in together if not c.is_there})
    return failed


def _cut_together(
    shown: Iterator[tuple[av.VideoFrame, float]], start: float, cuts: list[Cut]
) -> list[Cut]:
    """Make the files of cuts that start together, decoding once; returns those the
    video ends before. Every tenth of a second a pending clip gets the frame that stands
    then, so that sources of any frame rate keep their pace."""
    pending, ticks, clips = list(cuts), 0, {}
    try:
        for frame, until in shown:
            small = _small(frame)
            while (tick := start + ticks / FPS) < until:
                for wanted in pending:
                    if wanted.clip and tick <= wanted.end:
                        if wanted not in clips:
                            clips[wanted] = _Clip(wanted.clip, small.width)
                        clips[wanted].add(small)
                ticks += 1
            while pending and pending[0].end < until:
                done = pending.pop(0)
                if done.clip:
                    clips[done].finish()
                with records.replacing(done.still) as unfinished:
                    small.to_image().save(unfinished, "PNG")
            if not pending:
                break
    finally:
        for clip in clips.values():
            clip.drop()
    return pending


def _shown(container, begin: float) -> Iterator[tuple[av.VideoFrame, float]]:
    """(frame, time until which it stands), from the one that stands at `begin` on."""
    stream = container.streams.video[0]
    offset = float((stream.start_time or 0) * stream.time_base)
    # To the key frame before; a second early, because seeking goes by decoding order.
    target = max(0.0, begin - 1) + offset
    container.seek(round(target / stream.time_base), stream=stream)
    frames = _sound(container.decode(stream))
    last = next(frames, None)
    for frame in frames:
        if frame.time - offset > begin:
            yield last, frame.time - offset
        last = frame
    if last is not None:
        yield last, last.time - offset + float(1 / stream.average_rate)


def _sound(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames, up to one that the decoder patched up: a clip of it would pass."""
    for frame in frames:
        if frame.is_corrupt:
            raise av.InvalidDataError(0, "a frame is patched up")
        yield frame


def _small(frame: av.VideoFrame) -> av.VideoFrame:
    if frame.side_data.get("DISPLAYMATRIX") is not None:
        pixels = upright(frame.to_ndarray(format="rgb24"), frame)
        frame = av.VideoFrame.from_ndarray(pixels)
    width = 2 * round(HEIGHT * frame.width / frame.height / 2)
    # The clip says nothing of its colours, so they are those that readers then assume.
    colours = {"dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}
    small = frame.reformat(width, HEIGHT, "yuv420p", **colours)
    small.pict_type = PictureType.NONE  # else x264 makes the source's key frames anew
    return small


class _Clip:
    """An h264 clip in the making, renamed to its own name when it is complete."""

    def __init__(self, path: Path, width: int):
        self._path, self._count = path, 0
        self._unfinished = path.with_name(f".{path.name}.tmp")
        with records.written(path):
            self._container = av.open(str(self._unfinished), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=FPS)
        self._stream.width, self._stream.height = width, HEIGHT
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "veryfast", "x264-params": "mbtree=0"}
        self._stream.codec_context.thread_count = 1  # same frames, same bytes

    def add(self, frame: av.VideoFrame) -> None:
        frame.pts, frame.time_base = self._count, 1 / self._stream.average_rate
        self._count += 1
        with records.written(self._path):
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        with records.written(self._path):
            self._container.mux(self._stream.encode())
            self._container.close()
            os.replace(self._unfinished, self._path)

    def drop(self) -> None:
        with suppress(av.FFmpegError):  # what the disk refused was said
            self._container.close()
        self._unfinished.unlink(missing_ok=True)
