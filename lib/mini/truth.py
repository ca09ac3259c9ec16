"""What is true about a MiniPlan question: the scene, what was done, what comes next.

The annotation files hold no more than those of a real benchmark. But the generator is
deterministic, so the episode behind a question is made again from the sizes and the
seed in `benchmark.json`, and every record is compared with the one on disk.

    >>> known = truth("L1/0", "outputs/data/miniplan")
    >>> known.seen, known.answer, known.asks
    (('plate tomato',), 'wash tomato', 'next step')
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib import paths, records
from lib.mini import benchmark, lessons
from lib.mini.world import Episode

ASKS = {lessons.SHOWN_QUESTION: "shown step", lessons.OBJECT_QUESTION: "shown object"}


@dataclass(frozen=True)
class Truth:
    """The episode behind a question, and what the question asks for.

    `asks` is "next step", "shown step" or "shown object"; `options` and `answer` are in
    words, as the question has them. Without a video (`image_only`) only the still
    shows what was done.
    """

    episode: Episode
    image_only: bool
    asks: str
    options: tuple[str, ...]
    answer: str

    @property
    def seen(self) -> tuple[str, ...]:
        """The steps that were done: in order, or as the still alone shows them."""
        done = self.episode.actions
        if self.image_only:
            done = lessons.visible_order(self.episode)
        return tuple(self.episode.say(step) for step in done)

    @property
    def plan(self) -> tuple[str, ...]:
        """The goal's four steps in the order in which they are done."""
        return tuple(self.episode.say(step) for step in self.episode.plan)

    @property
    def objects(self) -> tuple[str, str]:
        """The words for the two objects of the scene."""
        return self.episode.name(0), self.episode.name(1)


def truth(question_id: str, data_dir: str | Path) -> Truth:
    """The truth about one question ("L1/0", "general/general_00000_0", "training/7").

    KeyError where `data_dir` holds no such question or was not generated; see `known`.
    """
    found = known(data_dir)
    if question_id not in found:
        raise KeyError(
            f"nothing is known about question {question_id!r} of {data_dir}: the truth"
            " is known only for questions that `lib.mini write` wrote there"
        )
    return found[question_id]


def known(data_dir: str | Path) -> dict[str, Truth]:
    """{question id: its Truth} for a folder that `lib.mini write` wrote, else {}.

    Raises ValueError, naming file and record, where the generator of today makes other
    questions than those on disk.
    """
    return _known(paths.resolve(data_dir))


@lru_cache(maxsize=2)
def _known(folder: Path) -> dict[str, Truth]:
    marker = folder / "benchmark.json"
    if not marker.exists():
        return {}
    sizes = benchmark.Sizes(**records.read_json(marker)["sizes"])
    found = {}
    for split, items in benchmark.make_items(sizes).items():
        name = "training" if split == "training" else f"validation_{split}"
        made = [benchmark.record(item) for item in items]
        path = folder / "annotations" / f"{name}.jsonl"
        _same(path, records.read_jsonl(path), made)
        for item, record in zip(items, made, strict=True):
            found[f"{split}/{record['sample_id']}"] = _planning(item)
    rows = benchmark.make_general(sizes.general, sizes.seed)
    path = folder / "general" / "lvb_val.json"
    _same(path, records.read_json(path), [record for record, _ in rows])
    return found | dict(_general(rows))


def _planning(item: benchmark.Item) -> Truth:
    e = item.episode
    options = tuple(e.say(step) for step in e.options)
    return Truth(e, item.image_only, "next step", options, e.say(e.answer))


def _general(rows: list[tuple[dict, Episode]]) -> Iterator[tuple[str, Truth]]:
    for record, episode in rows:
        options = tuple(record["candidates"])
        answer = options[record["correct_choice"]]
        asks = ASKS[record["question"]]
        yield f"general/{record['id']}", Truth(episode, False, asks, options, answer)


def _same(path: Path, found: list[dict], made: list[dict]) -> None:
    if found == made:
        return
    pairs = enumerate(zip(found, made, strict=False), 1)
    fallback = min(len(found), len(made)) + 1
    first = next((n for n, (old, new) in pairs if old != new), fallback)
    raise ValueError(
        f"{path}, record {first}: the generator makes another question than stands"
        " there, so nothing is known about these clips: write the benchmark again into"
        " another folder (python -m lib.mini write), and run on that"
    )
