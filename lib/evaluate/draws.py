"""Several answers to each question, drawn at temperature 1: one row a question.

Greedy answers show a model's habit alone. What it can say is in its draws: for pass@k
(lib/analysis/sampled.py), for rejection sampling without a teacher (02_sft, sft_on:
own), and for how far training has moved it: the KL of a model to what its adapter was
trained on (the base, or with grpo_from what SFT left) is the mean of log p(answer) -
log p_before(answer) over its own answers, in nats an answer.

    draw(model, processor, questions, settings, 8, 0, Sampling(), run / "draws_x.jsonl")
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lib.data.letters import judged
from lib.data.questions import Question
from lib.data.video import Sampling
from lib.evaluate import resume
from lib.evaluate.evaluate import Asking, EvalSettings, cut
from lib.evaluate.readers import reasoning_of
from lib.model import rollouts, scoring


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
    """Rows of all questions: id, completions, right [count]; said, what `exact` of
    lib/mini/reasoning.py finds in each (None: not known); kl (None without an adapter);
    error. Written, resumed and refused as by `evaluate`."""
    asking = Asking(model, processor, settings, sampling)
    adapted = hasattr(model, "disable_adapter")
    if adapted:
        scoring.add_scoring(model)

    def facts() -> dict:
        drawn = {"decoding": "temperature 1", "count": count, "seed": seed}
        return asking.facts(questions) | drawn | {"truth": exact is not None}

    def rows(batch: list[Question]) -> list[dict]:
        ready, texts, kl = asking.prepare(batch), {}, {}
        if asked := [question.id for question in ready.asked()]:
            prompts = asking.see(ready).prompts
            told = "/".join([str(seed), *(question.id for question in batch)])
            digest = hashlib.sha256(told.encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7]))
            how = asking.decoding(1.0)
            drawn = rollouts.decode(model, prompts, count, how)
            if adapted:
                kl = dict(zip(asked, _kl(model, prompts, drawn), strict=True))
            for key, group in zip(asked, drawn, strict=True):
                said = (cut(processor.tokenizer, own, how.end_ids) for own in group)
                texts[key] = [text for text, *_ in said]
        return [
            row(question, texts.get(question.id, [""] * count), exact)
            | {"kl": kl.get(question.id), "error": ready.errors.get(question.id)}
            for question in batch
        ]

    with rollouts.generating(model):
        # One batch after the other: what is drawn hangs on torch's one global state.
        make, size = lambda batches: map(rows, batches), settings.batch_size
        given = (facts, make, "drawn", size, asking.shape)
        return resume.finish(Path(path), questions, *given)


def row(question: Question, texts: Sequence[str], exact: Callable | None) -> dict:
    """What a question's answers are worth, by their letters and their words."""
    facts = {"id": question.id, "options": question.options, "gold": question.gold}
    found = {"id": question.id, "completions": list(texts), "right": [], "said": []}
    for text in texts:
        said = judged(text, question.options, question.gold)
        found["right"].append(int(said["correct"]))
        if exact:
            found["said"].append(exact(facts | said, reasoning_of(text)))
    return found if exact else found | {"said": None}


@torch.no_grad()
def _kl(model, prompts, drawn: Sequence[Sequence[list[int]]]) -> list[float]:
    """Of the first four answers to each prompt."""
    groups = [[torch.tensor(own, device=model.device) for own in g[:4]] for g in drawn]
    own, *_ = scoring.completion_scores(model, prompts, groups)
    with model.disable_adapter():
        base, *_ = scoring.completion_scores(model, prompts, groups)
    moved = [float((a - b).sum()) for a, b in zip(own, base, strict=True)]
    by_question = torch.tensor(moved).view(len(groups), -1).mean(1)
    return [round(own, 4) for own in by_question.tolist()]
