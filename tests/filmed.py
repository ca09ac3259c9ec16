"""Clips for tests and benches."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, frames: Iterable[np.ndarray], rate, **options: str) -> Path:
    """Encode frames, uint8 [height, width, 3], as h264; `options` are x264's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
