"""What a frozen vision tower saw, kept from one model to the next.

Base, SFT and GRPO differ in the language model's adapter alone, and are asked the same
questions under the same conditions. So clip and still are read, and the tower runs, for
the first of them; a tower that was trained is another key."""

from collections.abc import Hashable, Sequence
from threading import Lock

from lib.model.prefix import Prompt

MOST_BYTES = 4 * 2**30  # of the machine's memory, not of the GPU's


class Kept:
    """Prompts with features, by all that decides them; the first `most` bytes."""

    def __init__(self, most: int = MOST_BYTES):
        self.most, self.bytes, self.lock = most, 0, Lock()
        self.prompts: dict[Hashable, Prompt] = {}

    def get(self, keys: Sequence[Hashable]) -> list[Prompt] | None:
        """The prompts of these keys, on the CPU; None if one is missing."""
        if not all(key in self.prompts for key in keys):
            return None
        return [self.prompts[key] for key in keys]

    def keep(self, keys: Sequence[Hashable], prompts: Sequence[Prompt]) -> None:
        """Keep prompts that have features, as far as there is room."""
        for key, prompt in zip(keys, prompts, strict=True):
            pictures = [own for kind in prompt.features.values() for own in kind]
            size = sum(part.nbytes for parts in pictures for part in parts)
            with self.lock:
                if key not in self.prompts and self.bytes + size <= self.most:
                    self.prompts[key] = prompt.seen("cpu")
                    self.bytes += size


KEPT = Kept()  # of this process
