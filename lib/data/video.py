"""Frames of a clip and the observation still, as the paper samples and resizes them.

Rule of the released code (`vision_process_egoplan.py`): two frames a second, at least 4
and at most 16, an even count (Qwen2-VL merges two frames into one patch), evenly spaced
by index from the first frame that the film shows to the last (`lib/data/footage.py`).
Every frame and still is squashed to 252 x 252, aspect ignored: frames by torchvision's
bicubic with antialias, stills by Pillow's."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lib.data import footage
from lib.data.faults import no_file

SIDE, SIDE_OF_3 = 28, 32  # pixels of one visual token, 2 x 2 patches; of Qwen3-VL's


class BadVideo(Exception):
    """A clip or still that cannot be used; `path` says which and `why` says what is
    wrong with it, in words that are the same at every reading of the same file."""

    def __init__(self, path: str | Path, why: str):
        super().__init__(str(path), why)  # both in args, so that it can be pickled
        self.path, self.why = Path(path), why

    def __str__(self) -> str:
        mend = "put a sound file there or, to evaluate without it, set on_bad_video:"
        return f"{self.path}: {self.why}; {mend} keep_as_wrong"


@dataclass(frozen=True)
class Sampling:
    """How many frames a clip gives and how large they are; defaults are the paper's."""

    max_frames: int = 16
    min_frames: int = 4
    fps: float = 2.0
    height: int = 252
    width: int = 252

    def __post_init__(self) -> None:
        even = "even and at least 2, because Qwen2-VL merges two frames into one patch"
        whole = f"a multiple of {SIDE} pixels, the side of one visual token"
        whole += f" (Qwen3-VL: {SIDE_OF_3})"
        rules = {
            "max_frames": (self.max_frames % 2 == 0 < self.max_frames, even),
            "min_frames": (self.min_frames % 2 == 0 < self.min_frames, even),
            "fps": (self.fps > 0, "above zero"),
            "height": (_is_whole(self.height), whole),
            "width": (_is_whole(self.width), whole),
        }
        for name, (is_sound, wanted) in rules.items():
            if not is_sound:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be {wanted}")
        if self.min_frames > self.max_frames:
            found = f"min_frames = {self.min_frames} is larger than"
            raise ValueError(f"{found} max_frames = {self.max_frames}")


def _is_whole(pixels: int) -> bool:
    return pixels > 0 and 0 in (pixels % SIDE, pixels % SIDE_OF_3)


class Clip(np.ndarray):
    """Frames uint8 [T, H, W, 3] and, in `film`, which frames of how long a film they
    are, under the names of transformers' VideoMetadata. Copies and other orders of the
    frames keep it: what stands at a place is shown at the time of that place."""

    film: dict | None

    @classmethod
    def of(cls, frames: np.ndarray, film: dict | None) -> "Clip":
        """Frames with what is known of their film."""
        clip = np.asarray(frames).view(cls)
        clip.film = film
        return clip

    def __array_finalize__(self, other) -> None:
        self.film = getattr(other, "film", None)

    def only(self, at: list[int]) -> "Clip":
        """The frames at these places, each at its own time."""
        indices = [self.film["frames_indices"][i] for i in at]
        return Clip.of(self[at], {**self.film, "frames_indices": indices})


def frame_indices(n_frames: int, clip_fps: float, sampling: Sampling) -> list[int]:
    """Indices of the sampled frames, ascending, from 0 to `n_frames` - 1; of a clip
    shorter than `min_frames` an even count. ValueError for less than two frames."""
    if n_frames < 2:
        raise ValueError(f"has {n_frames} frame(s); at least 2 are needed")
    if not (math.isfinite(clip_fps) and clip_fps > 0):
        raise ValueError(f"has the frame rate {clip_fps}; it must be above zero")
    wanted = max(n_frames / clip_fps * sampling.fps, sampling.min_frames)
    count = 2 * math.floor(min(wanted, sampling.max_frames, n_frames) / 2)
    # round(linspace(0, n_frames - 1, count)) in whole numbers. `count` is even, so
    # count - 1 is odd and no position lies half way between two frames.
    last = count - 1
    return [(2 * i * (n_frames - 1) + last) // (2 * last) for i in range(count)]


def read_clip(path: str | Path, sampling: Sampling) -> Clip:
    """The sampled frames of a clip; BadVideo if that fails."""
    return read_clip_and_say(path, sampling)[0]


def read_clip_and_say(path: str | Path, sampling: Sampling) -> tuple[Clip, str]:
    """`read_clip`, and why PyAV had to read it, "" where decord did."""
    film = {}

    def choose(count: int, rate: float) -> list[int]:
        chosen = frame_indices(count, rate, sampling)
        film.update(total_num_frames=count, fps=float(rate), frames_indices=chosen)
        return chosen

    require_media(path)
    try:
        frames, why_pyav = footage.read(path, choose)
    except (footage.Unreadable, ValueError) as error:
        raise BadVideo(path, str(error)) from error
    pixels = np.stack([_squashed(frame, sampling) for frame in frames])
    return Clip.of(pixels, film), why_pyav


def read_still(path: str | Path, sampling: Sampling) -> np.ndarray:
    """An observation still, uint8 [H, W, 3], as a viewer shows it: turned as its EXIF
    says, 16 bits brought to 8, laid on white. BadVideo if it cannot be read."""
    require_media(path)
    size = (sampling.width, sampling.height)
    try:
        with Image.open(path) as image:
            # Phones add a smaller copy behind the picture (MPO): the first one counts.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise BadVideo(path, f"holds {image.n_frames} pictures, not one")
            image.getexif()  # how it lies; turned it would be written anew, or fail
            image.info.pop("exif", None)
            picture = _on_white(ImageOps.exif_transpose(image), path)
    except BadVideo:
        raise
    except Exception as error:  # at damage each of Pillow's decoders raises its own
        raise BadVideo(path, "Pillow cannot decode it as a picture") from error
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _on_white(image: Image.Image, path: str | Path) -> Image.Image:
    """Any picture as RGB of 8 bits, transparency laid on white."""
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(np.asarray(image), path)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _eight_bits(grey: np.ndarray, path: str | Path) -> np.ndarray:
    """Grey values [H, W] as uint8. Whole numbers reach to 65,535 whatever they hold;
    floats reach to 1, or to 255 where one is larger. Others have no known white."""
    is_float = grey.dtype.kind == "f"
    white = 65_535 if not is_float else 1 if grey.max() <= 1 else 255
    if not (grey.min() >= 0 and grey.max() <= white):
        what = f"holds grey values from {grey.min():g} to {grey.max():g}"
        raise BadVideo(path, f"{what}, of which 0 to {white} can be shown")
    return (grey * (255 / white) + 0.5).astype(np.uint8)


def require_media(path: str | Path) -> None:
    """BadVideo unless `path` is a file whose first bytes could be media."""
    path = Path(path)
    try:
        if not path.is_file():
            raise BadVideo(path, "is missing")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:  # a name too long, no permission
        raise BadVideo(path, f"cannot be opened ({error.strerror})") from error
    if not head:
        raise BadVideo(path, "is empty (zero bytes)")
    if said := no_file(head):
        raise BadVideo(path, f"is {said[0]}, not {said[1]}")


def _squashed(pixels: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Pixels [h, w, 3] of a frame at the sampling's size; untouched if they have it."""
    size = [sampling.height, sampling.width]
    if [*pixels.shape[:2]] == size:
        return pixels
    # Here, because they take seconds, and pages and tables need neither.
    import torch

    from lib.data import torchvision_cpu  # noqa: F401  before torchvision

    from torchvision.transforms import InterpolationMode, functional  # isort: skip

    frame, mode = torch.from_numpy(pixels).permute(2, 0, 1), InterpolationMode.BICUBIC
    resized = functional.resize(frame, size, mode, antialias=True)
    return resized.permute(1, 2, 0).numpy()
