"""How far the text alone carries: a reader of question and options without the video.

A benchmark for video understanding is worth little if its answers can be guessed from
their wording. So a linear reader is trained on the training questions and asked the
evaluation questions; it sees words of the option, their pairs with the question's words
and with the other options' words, their order, and the letter. What it gains over
chance is what any method can gain without looking (compare claim 8 of SEED-Bench-R1,
arXiv 2503.24376, on perception).

    reader = BlindReader.fit(training)
    stats.wilson_interval(sum(reader.right(level)), len(level))  # holds 25 %?
"""

import zlib
from collections.abc import Sequence

import torch

from lib.questions import Question

FEATURES = 2**15
_EPOCHS, _LR, _DECAY = 60, 0.05, 1e-4


def features(question: Question, place: int) -> list[int]:
    """Hashed features of option number `place`; the same in every process."""
    asked = question.text.lower().replace(",", " ").replace("?", " ").split()
    words = question.options[place].lower().split()
    others = {
        word
        for index, option in enumerate(question.options)
        if index != place
        for word in option.lower().split()
    }
    names = [f"letter {place}"]
    for word in words:
        names.append(f"word {word}")
        names.append(f"at {[i for i, w in enumerate(asked) if w == word][:1]}")
        names += [f"asked {word} {other}" for other in sorted(set(asked))]
        names += [f"beside {word} {other}" for other in sorted(others)]
    return [zlib.crc32(name.encode()) % FEATURES for name in names]


class BlindReader:
    """A linear score for each option; the highest one is the answer."""

    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    @classmethod
    def fit(cls, questions: Sequence[Question]) -> "BlindReader":
        """Softmax regression over the options of each question, from zero weights."""
        weights = torch.zeros(FEATURES, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=_LR, weight_decay=_DECAY)
        # Questions of 4 and of 5 options are two tables.
        tables = [_Table(group) for group in _by_options(questions)]
        for _ in range(_EPOCHS):
            optimizer.zero_grad()
            for table in tables:
                scores = table.scores(weights)
                loss = torch.nn.functional.cross_entropy(
                    scores, table.gold, reduction="sum"
                )
                (loss / len(questions)).backward()
            optimizer.step()
        return cls(weights.detach())

    def right(self, questions: Sequence[Question]) -> list[bool]:
        """Whether it answers each question rightly, in the order given."""
        return [
            int(_Table([q]).scores(self.weights).argmax()) == "ABCDE".index(q.gold)
            for q in questions
        ]


class _Table:
    """Questions with the same number of options as flat feature lists."""

    def __init__(self, questions: Sequence[Question]):
        lists = [features(q, i) for q in questions for i in range(len(q.options))]
        sizes = torch.tensor([len(found) for found in lists])
        self.flat = torch.tensor([feature for found in lists for feature in found])
        self.owner = torch.arange(len(lists)).repeat_interleave(sizes)
        self.options = len(questions[0].options)
        self.gold = torch.tensor(["ABCDE".index(q.gold) for q in questions])

    def scores(self, weights: torch.Tensor) -> torch.Tensor:
        """[questions, options]"""
        rows = torch.zeros(int(self.owner[-1]) + 1)
        summed = rows.index_add(0, self.owner, weights[self.flat])
        return summed.view(-1, self.options)


def _by_options(questions: Sequence[Question]) -> list[list[Question]]:
    sizes = sorted({len(q.options) for q in questions})
    return [[q for q in questions if len(q.options) == size] for size in sizes]
