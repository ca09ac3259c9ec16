"""Several answers to each question, drawn at temperature 1: one row a question.

Greedy answers show a model's habit alone. What it can say is in its draws: for pass@k
(lib/analysis/sampled.py), for rejection sampling without a teacher (02_sft, sft_on:
own), and for how far training has moved it: the KL of a model to its base is the mean
of log p(answer) - log p_base(answer) over its own answers, in nats an answer.

    draw(model, processor, questions, settings, 8, 0, Sampling(), run / "draws_x.jsonl")
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lib.data.letters import THINK, judged
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.evaluate import resume
from lib.evaluate.evaluate import Asking, EvalSettings, cut
from lib.model import rollouts, scoring

MEASURED = 4  # answers to a question whose KL is measured


def draw(
    model,
    processor,
    questions: Sequence[Question],
    settings: EvalSettings,
    count: int,
    seed: int,
    sampling: Sampling,
    path: Path,
    exact: Callable | None = None,
) -> list[dict]:
    """Rows of all questions: id, completions, right [count]; true, whether what an
    answer says was done is so (`exact` of lib/mini/reasoning.py; None: not known); kl
    (None without an adapter); error. Written, resumed and refused as by `evaluate`.
    """
    asking = Asking(model, processor, settings, sampling)
    adapted = hasattr(model, "disable_adapter")
    if adapted:
        scoring.add_scoring(model)

    def facts() -> dict:
        drawn = {"decoding": "temperature 1", "count": count, "seed": seed}
        return asking.facts(questions) | drawn | {"truth": exact is not None}

    def rows(batch: list[Question]) -> list[dict]:
        ready, groups, kls = asking.prepare(batch), iter(()), iter(())
        if ready.inputs is not None:
            prompts = asking.see(ready).prompts
            told = "/".join([str(seed), *(question.id for question in batch)])
            digest = hashlib.sha256(told.encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7]))
            how = asking.decoding(1.0)
            drawn = rollouts.decode(model, prompts, count, how)
            kls = iter(_kl(model, prompts, drawn) if adapted else [None] * len(drawn))
            tokenizer = processor.tokenizer
            groups = ([cut(tokenizer, own, how.end_ids)[0] for own in g] for g in drawn)
        found = []
        for question in batch:
            error = ready.errors.get(question.id)
            texts = [""] * count if error else next(groups)
            kl = None if error else next(kls)
            found.append(row(question, texts, exact) | {"kl": kl, "error": error})
        return found

    with rollouts.generating(model):
        # One batch after the other: what is drawn hangs on torch's one global state.
        make, size = lambda batches: map(rows, batches), settings.batch_size
        given = (facts, make, "drawn", size, asking.shape)
        return resume.finish(Path(path), questions, *given)


def row(question: Question, texts: Sequence[str], exact: Callable | None) -> dict:
    facts = {"id": question.id, "options": question.options, "gold": question.gold}
    said = [judged(text, question.options, question.gold) for text in texts]
    true = None
    if exact:
        thoughts = (THINK.search(text) for text in texts)
        both = zip(thoughts, said, strict=True)
        read = [exact(facts | own, found and found[1]) for found, own in both]
        true = [int(own["progress"] == "right") for own in read]
    right = [int(own["correct"]) for own in said]
    return {"id": question.id, "completions": list(texts), "right": right, "true": true}


@torch.no_grad()
def _kl(model, prompts, drawn: Sequence[Sequence[list[int]]]) -> list[float]:
    """Of the first answers to each prompt."""
    groups = [
        [torch.tensor(tokens, device=model.device) for tokens in group[:MEASURED]]
        for group in drawn
    ]
    own, *_ = scoring.completion_scores(model, prompts, groups)
    with model.disable_adapter():
        base, *_ = scoring.completion_scores(model, prompts, groups)
    sums = [float((a - b).sum()) for a, b in zip(own, base, strict=True)]
    size = len(groups[0])
    means = [sum(sums[i : i + size]) / size for i in range(0, len(sums), size)]
    return [round(mean, 4) for mean in means]
