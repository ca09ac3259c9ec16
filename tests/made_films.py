"""Films of pictures that a test makes."""

from fractions import Fraction

import av
import numpy as np


def blocks(rng, height=56, width=56):
    """A picture uint8 [height, width, 3] of squares of 28 pixels, each of one colour: a
    merged visual token sees one of them."""
    size = (height // 28, width // 28, 3)
    colours = rng.integers(0, 256, size, dtype=np.uint8)
    return colours.repeat(28, axis=0).repeat(28, axis=1)


def write_film(path, pictures, fps=10, codec="libx264", times=None, turn=(), **given):
    """A film whose frame i is the i-th of `pictures`, uint8 [H, W, 3], shown at i / fps
    seconds or at times[i] / fps. `given`: pix_fmt, options of the codec, and what
    `av.open` takes. `path` may be a file of bytes; it is returned."""
    pix_fmt, options = given.pop("pix_fmt", "yuv420p"), given.pop("options", {})
    with av.open(path if hasattr(path, "write") else str(path), "w", **given) as film:
        stream = film.add_stream(codec, rate=fps)
        stream.pix_fmt, stream.options = pix_fmt, options
        if turn:
            stream.set_display_rotation(turn[0], **turn[1])
        for i, pixels in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = 1 / Fraction(fps)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path


def write_clip(path, frames, noise=False):
    """An h264 clip whose frame i is grey of brightness 4 + 2 i (or noise)."""
    rng, shape = np.random.default_rng(0), (56, 84, 3)
    pictures = [np.full(shape, 4 + 2 * i, np.uint8) for i in range(frames)]
    if noise:
        pictures = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in pictures]
    options = {"crf": "10", "preset": "ultrafast"}
    start = {"movflags": "faststart"}
    return write_film(path, pictures, options=options, container_options=start)
