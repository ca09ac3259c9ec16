"""Conversations as the input tensors of a Qwen2-VL checkpoint (arXiv 2409.12191).

Control tokens come from the chat template alone: whatever a text spells is text.

    batch = encode(processor, [messages(prompt_text(question, "think"), clip, still)])
    model.generate(**batch, max_new_tokens=40)
"""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lib.data.prompts import THINK_ANSWER
from lib.data.questions import Demonstration, Question
from lib.data.video import BadVideo
from lib.model import models as models  # first: it prepares what transformers imports

# isort: split
from transformers.utils.chat_template_utils import mark_control_tokens
from transformers.video_utils import VideoMetadata

# Tags of the kit's own prompt: a tokenizer that knows them as tokens reads them so.
TAGS = frozenset(re.findall(r"</?\w+>", THINK_ANSWER))
# Processors that write seconds into a prompt or its positions. Without a clip's times
# they would assume 24 frames a second, in silence.
TIMED = {"Qwen2_5_VLProcessor", "Qwen3VLProcessor"}


def visual_token_ids(config) -> list[int]:
    """Ids that mark or stand for pictures; a completion must never contain them."""
    kinds = ("image", "video", "vision_start", "vision_end")
    return sorted({getattr(config, f"{kind}_token_id") for kind in kinds})


def mm_token_type_ids(input_ids: torch.Tensor, config) -> torch.Tensor:
    """Type of every token, of the same shape: 0 text, 1 image, 2 video."""
    is_image = (input_ids == config.image_token_id).long()
    is_video = (input_ids == config.video_token_id).long()
    return is_image + 2 * is_video


def encode(processor, conversations: list[list[dict]]) -> dict[str, torch.Tensor]:
    """Input tensors of B conversations, padded on the right to the longest of length L.

    A conversation that ends with the user gets the generation prompt. Clips are uint8
    [T, H, W, 3] and stills uint8 [H, W, 3] in their final size: nothing is resized,
    sampled or truncated here. Conversations with and without pictures mix freely.

    Returns input_ids, attention_mask and mm_token_type_ids [B, L]; for clips, in their
    order, pixel_values_videos [patches, 1176] and video_grid_thw [clips, 3], from
    Qwen2.5-VL also second_per_grid_ts [clips]; for stills pixel_values and
    image_grid_thw. Types are int64, pixels float32.

    Raises ValueError for a picture that the model cannot take (`check_sizes`), a clip
    without times where they are needed, a text that is no Unicode, and more tokens than
    the tokenizer's model_max_length."""
    clips = _parts(conversations, "video")
    stills = _parts(conversations, "image")
    check_sizes(processor, (*stills, *clips))
    timed = {}
    if clips and TIMED & {type(processor).__name__}:
        timed["video_metadata"] = [_times(clip) for clip in clips]
    texts = []
    for talk in as_text(processor.tokenizer, conversations):
        how = {"add_generation_prompt": talk[-1]["role"] != "assistant"}
        texts.append(processor.apply_chat_template(talk, tokenize=False, **how))
    "".join(texts).encode()  # of half a character a tokenizer does not say what it is
    as_given = {"truncation": False, "add_special_tokens": False}
    batch = processor(
        text=texts,
        videos=clips or None,
        images=stills or None,
        text_kwargs={"padding": True, "padding_side": "right", **as_given},
        videos_kwargs={"do_resize": False, "do_sample_frames": False, **timed},
        images_kwargs={"do_resize": False},
        sanitize_control_tokens=True,
        return_tensors="pt",
    )
    length, limit = batch["input_ids"].shape[1], processor.tokenizer.model_max_length
    if length > limit:
        raise ValueError(
            f"a conversation has {length} tokens, the model takes {limit}: lower "
            "max_frames, height or width; nothing is cut off"
        )
    return dict(batch)


def _times(clip: np.ndarray) -> VideoMetadata:
    """When the frames of a clip are shown; ValueError where it does not know it."""
    film = getattr(clip, "film", None)
    if film is None or len(film["frames_indices"]) != len(clip):
        raise ValueError(
            f"a clip of {len(clip)} frames does not say when they are shown, and this "
            "model must know: read it with lib/data/video.py, or give Clip.of its film"
        )
    return VideoMetadata(**copy.deepcopy(film))  # the processor adds to its lists


def as_text(tokenizer, words: str | list[list[dict]]):
    """`words`, a text or conversations, marked where they spell a token of their own:
    with `sanitize_control_tokens` transformers reads that as text. Unlike there, every
    added token counts (<tool_call> too), and the tags of the kit's prompt do not."""
    own = sorted(set(tokenizer.added_tokens_encoder) - TAGS, key=len, reverse=True)
    return mark_control_tokens(words, re.compile("|".join(map(re.escape, own))))


def text_ids(tokenizer, text: str) -> list[int]:
    """The tokens that `encode` makes of a text that stands between control tokens."""
    marked = as_text(tokenizer, text)
    encoded = tokenizer(marked, add_special_tokens=False, sanitize_control_tokens=True)
    return encoded["input_ids"]


@contextmanager
def naming(item: Question | Demonstration) -> Iterator[None]:
    """Let an error say which question or demonstration it is about."""
    name = f"{type(item).__name__.lower()} {item.id}"
    try:
        yield
    except BadVideo as bad:
        raise BadVideo(bad.path, f"{bad.why} ({name})") from bad
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _parts(conversations: list[list[dict]], kind: str) -> list[np.ndarray]:
    """All clips ("video") or stills ("image") in the order they are mentioned."""
    return [
        part[kind]
        for conversation in conversations
        for message in conversation
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == kind
    ]


def check_sizes(processor, pictures: Iterable[np.ndarray]) -> None:
    """Raise ValueError for clips or stills that cannot be cut into merged patches."""
    vision = processor.video_processor
    side = vision.patch_size * vision.merge_size
    for picture in pictures:
        height, width = picture.shape[-3:-1]
        if height % side or width % side:
            raise ValueError(
                f"a picture of {height}x{width} pixels cannot be cut into patches: "
                f"height and width must be multiples of {side}"
            )
