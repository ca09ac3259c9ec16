"""What is true about a MiniPlan question: the scene, what was done, what comes next.

The annotation files hold no more than those of a real benchmark. But the generator is
deterministic, so the episode behind a question is made again from the sizes and the
seed in `benchmark.json`, and every record is compared with the one on disk.

    >>> known = truth("L1/0", "outputs/data/miniplan")
    >>> known.seen, known.answer, known.asks
    (('wash pepper', 'cut pepper', 'salt pepper'), 'tie pepper', 'next step')
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib import paths, records
from lib.mini import benchmark, lessons
from lib.mini.world import Episode

ASKS = {
    lessons.SHOWN_QUESTION: "shown step",
    lessons.LAST_QUESTION: "last step",
    lessons.OBJECT_QUESTION: "shown object",
}


@dataclass(frozen=True)
class Truth:
    """The episode behind a question, and what the question asks for.

    `asks` is "next step" or one of ASKS; `options` and `answer` are in
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
        return tuple(map(self.episode.say, done))

    @property
    def plan(self) -> tuple[str, ...]:
        """The goal's four steps in the order in which they are done."""
        return tuple(map(self.episode.say, self.episode.plan))

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
        made = [benchmark.record(item) for item in items]
        path = benchmark.annotations(folder, split)
        _check_same(path, records.read_jsonl(path), made)
        for item, record in zip(items, made, strict=True):
            e = item.episode
            words = tuple(map(e.say, e.options)), e.say(e.answer)
            own = Truth(e, item.image_only, "next step", *words)
            found[f"{split}/{record['sample_id']}"] = own
    rows = benchmark.make_general(sizes.general, sizes.seed)
    path = folder / "general" / "lvb_val.json"
    _check_same(path, records.read_json(path), [record for record, _ in rows])
    for record, episode in rows:
        options, asks = tuple(record["candidates"]), ASKS[record["question"]]
        answer = options[record["correct_choice"]]
        own = Truth(episode, False, asks, options, answer)
        found[f"general/{record['id']}"] = own
    return found


def _check_same(path: Path, found: list[dict], made: list[dict]) -> None:
    if found == made:
        return
    same = [old == new for old, new in zip(found, made, strict=False)]
    first = [*same, False].index(False) + 1
    raise ValueError(
        f"{path}, record {first}: the generator makes another question than stands"
        " there, so nothing is known about these clips: write the benchmark again into"
        " another folder (python -m lib.mini write), and run on that"
    )
