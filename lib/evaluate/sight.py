"""Does a model see, and in which order? Questions on clips that the kit draws itself.

Two cards one after the other, each a coloured shape with a digit: which colour, shape
or digit was first, which last? The other card's is always among the four options, so
that a model that loses the order is wrong and not only unsure. Chance is 25 %.

An answer is chosen by its log-probability behind the prompt. A module with other clips
has SAMPLING and `questions(folder, count)`, as this one (lib/mini/sight.py).
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from lib.data.frame_store import question_media
from lib.data.prompts import DIRECT, LETTERS, messages, option_lines
from lib.data.questions import Demonstration
from lib.data.video import Sampling
from lib.model import encoding, scoring
from lib.model.prefix import make_prompt, with_features

SAMPLING = Sampling()
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
}
CORNERS = {"triangle": (3, 0), "square": (4, 0), "diamond": (4, 45)}  # and turned by
KINDS = {
    "colour": tuple(COLOURS),
    "shape": ("circle", *CORNERS),
    "digit": tuple("0123456789"),
}
SIZE, RATE, SHOWN = 252, 4, 16  # pixels; frames a second; frames of a card


class SightQuestion(NamedTuple):
    """A clip with four answers to a question about it; `asked.response` is `right`."""

    asked: Demonstration
    answers: tuple[str, ...]

    @property
    def right(self) -> int:
        return self.answers.index(self.asked.response)

    def conversation(self, sampling: Sampling) -> list[dict]:
        """The user turn, its clip decoded as any clip is."""
        return messages(self.asked.text, *question_media(self.asked, sampling))

    def completions(self, processor, device) -> list[torch.Tensor]:
        """The tokens [R] of each answer."""
        told = (encoding.text_ids(processor.tokenizer, a) for a in self.answers)
        return [torch.tensor(ids, device=device) for ids in told]


def questions(folder: Path, count: int) -> list[SightQuestion]:
    """`count` questions on two cards each, their clips written into `folder`."""
    rng = random.Random("cards")
    return [_question(rng, folder / f"{number}.mp4", number) for number in range(count)]


def _question(rng: random.Random, path: Path, number: int) -> SightQuestion:
    pairs = {kind: rng.sample(values, 2) for kind, values in KINDS.items()}
    cards = [{kind: pair[at] for kind, pair in pairs.items()} for at in (0, 1)]
    write_clip(path, [card for card in map(draw, cards) for _ in range(SHOWN)], RATE)
    kind = tuple(KINDS)[number % len(KINDS)]
    at = number // len(KINDS) % 2
    others = [value for value in KINDS[kind] if value not in pairs[kind]]
    options = rng.sample([*pairs[kind], *rng.sample(others, 2)], 4)
    when = ("first", "last")[at]
    text = f"Two cards are shown one after the other. Which {kind} is on the {when} one"
    text += f"?\n{option_lines(tuple(options))}\n{DIRECT}"
    letter = LETTERS[options.index(pairs[kind][at])]
    asked = Demonstration(f"cards/{number}", text, path, None, letter)
    return SightQuestion(asked, tuple(LETTERS[:4]))


def draw(card: dict[str, str]) -> np.ndarray:
    """A card, uint8 [252, 252, 3]: on white a large coloured shape, a digit in it."""
    image, middle = Image.new("RGB", (SIZE, SIZE), "white"), SIZE // 2
    pencil, colour = ImageDraw.Draw(image), COLOURS[card["colour"]]
    around = (middle, middle, SIZE * 3 // 7)
    if card["shape"] in CORNERS:
        pencil.regular_polygon(around, *CORNERS[card["shape"]], fill=colour)
    else:
        pencil.circle((middle, middle), around[2], fill=colour)
    place = {"xy": (middle, middle), "anchor": "mm", "font_size": SIZE // 3}
    pencil.text(text=card["digit"], fill="black", **place)
    return np.asarray(image)


def write_clip(path: Path, frames: Sequence[np.ndarray], rate: int) -> None:
    """Frames uint8 [H, W, 3] as h264 in mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "14"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@torch.no_grad()
def choose(model, processor, asked: Sequence[SightQuestion], sampling) -> list[int]:
    """The likeliest answer to each question, by its number. `model` has
    `scoring.add_scoring`."""
    chosen = []
    for question in tqdm(asked, "sight", leave=False, disable=None):
        encoded = encoding.encode(
            processor, [question.conversation(sampling)], long_clips=True
        )
        prompts = with_features(model, [make_prompt(model, encoded)])
        logps, _ = scoring.completion_scores(
            model, prompts, [question.completions(processor, model.device)]
        )
        chosen.append(int(torch.stack([own.sum() for own in logps]).argmax()))
    return chosen
