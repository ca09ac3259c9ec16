"""How far the text alone carries: a reader of question and options without the video.

A linear reader is trained on the training questions: words of an option, their pairs
with the question's and the other options' words, their order, and the letter. What it
gains over chance any method can gain without looking (compare claim 8 of SEED-Bench-R1,
arXiv 2503.24376).

    reader = fit(training)
    stats.wilson_interval(sum(right(reader, level)), len(level))  # holds 25 %?"""

import zlib
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from lib.data.questions import Question

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


def fit(questions: Sequence[Question]) -> torch.Tensor:
    """The weights of a linear score for each option, the highest of which is the
    answer: softmax regression over the options of each question, from zero."""
    weights, bags = torch.zeros(FEATURES, requires_grad=True), _bags(questions)
    gold = torch.tensor(["ABCDE".index(question.gold) for question in questions])
    optimizer = torch.optim.Adam([weights], lr=_LR, weight_decay=_DECAY)
    for _ in range(_EPOCHS):
        optimizer.zero_grad()
        cross_entropy(_scores(weights, *bags), gold).backward()
        optimizer.step()
    return weights.detach()


def right(weights: torch.Tensor, questions: Sequence[Question]) -> list[bool]:
    """Whether each question is answered rightly, in the order given."""
    places = _scores(weights, *_bags(questions)).argmax(1).tolist()
    pairs = zip(questions, places, strict=True)
    return [question.gold == "ABCDE"[place] for question, place in pairs]


def _scores(weights: torch.Tensor, flat, owner, counts: list[int]) -> torch.Tensor:
    """[questions, options]; an option that a question does not have is -inf."""
    # Not weights[flat]: threads would add up its gradient in an order of their own.
    each = weights.index_select(0, flat)
    scores = torch.zeros(sum(counts)).index_add(0, owner, each)
    return pad_sequence(scores.split(counts), True, -torch.inf)


def _bags(questions: Sequence[Question]) -> tuple:
    """Features of all options in a line, the option of each, options a question has."""
    lists = [features(q, place) for q in questions for place in range(len(q.options))]
    sizes = torch.tensor([len(found) for found in lists])
    owner = torch.arange(len(lists)).repeat_interleave(sizes)
    flat = torch.tensor([feature for found in lists for feature in found])
    return flat, owner, [len(question.options) for question in questions]
