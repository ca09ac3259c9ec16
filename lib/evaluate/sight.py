"""Does a model see, and in which order? Questions on clips that the kit draws itself.

Two cards one after the other, each a coloured shape with a digit: which colour, shape
or digit was first, which last? The other card's is always among the four options, so
that a model that loses the order is wrong and not only unsure. Chance is 25 %.

Another module with `questions(folder)` can draw other clips, as lib/mini/sight.py does.
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

COUNT = 48
COLOURS = {"red": "#dc1e1e", "green": "#1ea03c", "blue": "#2850dc", "yellow": "#f0d228"}
CORNERS = {"triangle": (3, 0), "square": (4, 0), "diamond": (4, 45)}  # and turned by
KINDS = {"colour": tuple(COLOURS), "shape": ("circle", *CORNERS)}
KINDS["digit"] = tuple("0123456789")
SIZE, RATE, SHOWN = 252, 4, 16  # pixels; frames a second; frames of a card


class SightQuestion(NamedTuple):
    """A question about a clip, and its options; `asked.response` is the right one."""

    asked: Demonstration
    answers: tuple[str, ...]
    sampling: Sampling

    @property
    def right(self) -> int:
        """The place of the right answer among `answers`."""
        return self.answers.index(self.asked.response)

    def encoded(self, processor) -> dict:
        """What a model gets of the user turn, its clip decoded as any clip is."""
        media = question_media(self.asked, self.sampling)
        return encoding.encode(processor, [messages(self.asked.text, *media)])

    def completions(self, processor, device) -> list[torch.Tensor]:
        """The tokens [R] of each answer."""
        told = (encoding.text_ids(processor.tokenizer, a) for a in self.answers)
        return [torch.tensor(ids, device=device) for ids in told]


def questions(folder: Path) -> list[SightQuestion]:
    """48 questions on two cards each, their clips written into `folder`."""
    rng, found = random.Random("cards"), []
    for number in range(COUNT):
        pairs = {kind: rng.sample(values, 2) for kind, values in KINDS.items()}
        path = folder / f"card{number}.mp4"
        write_clip(path, [draw(*card) for card in zip(*pairs.values(), strict=True)])
        kind, at = tuple(KINDS)[number % 3], number // 3 % 2
        others = [value for value in KINDS[kind] if value not in pairs[kind]]
        options = rng.sample([*pairs[kind], *rng.sample(others, 2)], 4)
        text = "Two cards are shown one after the other. Which "
        text += f"{kind} is on the {('first', 'last')[at]} one?\n"
        text += f"{option_lines(tuple(options))}\n{DIRECT}"
        letter = LETTERS[options.index(pairs[kind][at])]
        asked = Demonstration(f"cards/{number}", text, path, None, letter)
        found.append(SightQuestion(asked, tuple(LETTERS[:4]), Sampling()))
    return found


def draw(colour: str, shape: str, digit: str) -> np.ndarray:
    """A card, uint8 [252, 252, 3]: on white a large coloured shape, a digit in it."""
    image, middle = Image.new("RGB", (SIZE, SIZE), "white"), (SIZE // 2, SIZE // 2)
    pencil, radius = ImageDraw.Draw(image), SIZE * 3 // 7
    if shape in CORNERS:
        around = (*middle, radius)
        pencil.regular_polygon(around, *CORNERS[shape], fill=COLOURS[colour])
    else:
        pencil.circle(middle, radius, fill=COLOURS[colour])
    pencil.text(middle, digit, fill="black", anchor="mm", font_size=SIZE // 3)
    return np.asarray(image)


def write_clip(path: Path, cards: Sequence[np.ndarray]) -> None:
    """Cards uint8 [H, W, 3], each for 16 frames, as h264 in mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "14"})
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for card in cards:
            for _ in range(SHOWN):
                frame = av.VideoFrame.from_ndarray(card, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


@torch.no_grad()
def choose(model, processor, asked: Sequence[SightQuestion]) -> list[int]:
    """The number of each likeliest answer. `model` has `scoring.add_scoring`."""
    chosen = []
    for question in tqdm(asked, "sight", leave=False, disable=None):
        prompt = make_prompt(model, question.encoded(processor))
        prompts = with_features(model, [prompt])
        answers = [question.completions(processor, model.device)]
        logps, _ = scoring.completion_scores(model, prompts, answers)
        chosen.append(int(torch.stack([own.sum() for own in logps]).argmax()))
    return chosen
