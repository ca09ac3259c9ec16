"""What is true about a MiniPlan question: the scene, what was done, what comes next.

The annotation files hold no more than those of a real benchmark. But the generator is
deterministic, so the episode behind a question is made again from the sizes and the
seed in `benchmark.json`, and every record is compared with the one on disk.

    >>> truth = known("outputs/data/miniplan")["L1/0"]
    >>> truth.seen, truth.answer, truth.asks
    (('wash pepper', 'cut pepper', 'salt pepper'), 'tie pepper', 'next step')"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from lib import paths, records
from lib.mini import benchmark, lessons
from lib.mini.world import Episode


@dataclass(frozen=True)
class Truth:
    """The episode behind a question. `asks` is "next step" or one of `lessons.ASKS`;
    `options` and `answer` are in words, as the question has them."""

    episode: Episode
    asks: str
    options: tuple[str, ...]
    answer: str

    @property
    def seen(self) -> tuple[str, ...]:
        """The steps that were done, as `Episode.shown` has them."""
        return tuple(map(self.episode.say, self.episode.shown))

    @property
    def plan(self) -> tuple[str, ...]:
        """The goal's four steps in the order in which they are done."""
        return tuple(map(self.episode.say, self.episode.plan))

    @property
    def objects(self) -> tuple[str, str]:
        """The words for the two objects of the scene."""
        return self.episode.name(0), self.episode.name(1)

    def thought(self) -> str:
        """What a teacher who sees everything says about the next step."""
        e = self.episode
        return lessons.taught_thought(e, e.shown, e.answer)


def of_plan(e: Episode) -> Truth:
    """What is true about the question for an episode's next step."""
    return Truth(e, "next step", tuple(map(e.say, e.options)), e.say(e.answer))


@lru_cache(maxsize=2)
def known(data_dir: str | Path) -> dict[str, Truth]:
    """{question id: its Truth} for a folder that `lib.mini write` wrote, else {}; ids
    are "training/7", "L1/0", "general/general_00000_0". ValueError, naming file and
    record, where the generator of today makes other questions than those on disk."""
    folder = paths.resolve(data_dir)
    marker = folder / "benchmark.json"
    if not marker.exists():
        return {}
    sizes = benchmark.Sizes(**records.read_json(marker)["sizes"])
    found = {}
    for split, items in benchmark.make_items(sizes).items():
        made = [benchmark.record(item) for item in items]
        path = benchmark.annotations(folder, split)
        _check_same(path, records.read_jsonl(path), made)
        for item, record in zip(items, made, strict=True):
            found[f"{split}/{record['sample_id']}"] = of_plan(item.episode)
    rows = benchmark.make_general(sizes.general, sizes.seed)
    path = folder / "general" / "lvb_val.json"
    _check_same(path, records.read_json(path), [record for record, _ in rows])
    asked = {question: asks for asks, question in lessons.ASKS.items()}
    for record, episode in rows:
        options, asks = tuple(record["candidates"]), asked[record["question"]]
        answer = options[record["correct_choice"]]
        found[f"general/{record['id']}"] = Truth(episode, asks, options, answer)
    return found


def _check_same(path: Path, found: list[dict], made: list[dict]) -> None:
    for number, (old, new) in enumerate(zip_longest(found, made), 1):
        if old != new:
            raise ValueError(
                f"{path}, record {number}: the generator makes another question than "
                "stands there, so nothing is known about these clips: write the "
                "benchmark again into another folder (python -m lib.mini write), and "
                "run on that"
            )
