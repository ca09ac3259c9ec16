"""The simulated teacher, whose reasoning training_with_cot holds.

It overlooks some steps and is sometimes hasty; like the paper's, its reasoning is kept
where it leads to the right answer.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from lib.mini import lessons

if TYPE_CHECKING:
    from lib.mini.benchmark import Item

OVERLOOKS, HASTY = 0.08, 0.15


def thought(item: Item, seed: int) -> str | None:
    """Its reasoning about a training item; None where its answer is wrong."""
    rng = random.Random(f"teacher/{seed}/{item.number}")
    e = item.episode
    seen = tuple(s for s in e.actions if rng.random() >= OVERLOOKS)
    if rng.random() < HASTY:
        step = lessons.hasty_step(rng, e)
        said = lessons.hasty_thought(e, step)
    else:
        step = next(s for s in e.plan if s not in seen)
        if item.image_only:
            seen = tuple(s for s in lessons.visible_order(e) if s in seen)
        said = lessons.careful_thought(e, seen, step)
    return said if step == e.answer else None
