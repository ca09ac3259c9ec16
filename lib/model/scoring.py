"""Log-probabilities of a group from one row: the prompt, and its completions behind it.

    p1 .. pN-1 | pN c1 .. cR-1 | pN c'1 .. c'S-1 | ...

Every completion starts from its own copy of the last prompt token pN, so the labels of
a segment are exactly its completion. M-RoPE positions of every segment start at that of
pN; a 4-D mask lets a segment see p1 .. pN-1 and itself.

Example: G = 8 completions of 15 tokens behind a prompt of 170 are one row of
169 + 8 * 15 = 289 tokens; computed one by one they are 8 * 185 = 1480."""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from lib.model import shards
from lib.model.encoding import mm_token_type_ids
from lib.model.prefix import Prompt, base_of, check_model, ending, picture_inputs

LOGITS_AT_ONCE = 2**25  # numbers in one chunk of logits: 128 MiB in float32


def add_scoring(model, temperature: float = 1.0) -> None:
    """Let `model(..., completion_labels=[B, L])` return (logps, entropies), both [N]:
    one number for every label that is not -100, row after row; the label at a position
    is the token predicted there. Only these meet the vocabulary. The forward is
    extended, not bypassed: data parallelism and adapters see an ordinary call."""
    base = base_of(model)
    plain = base.forward

    @functools.wraps(type(base).forward)
    def forward(self, *args, completion_labels=None, pieces=0, **kwargs):
        if completion_labels is None:
            return plain(*args, **kwargs)
        kept = completion_labels != -100
        end = ending(self, int(kept.any(0).nonzero()[0]))
        hidden = end.model(*args, use_cache=False, **kwargs).last_hidden_state
        head = self.get_output_embeddings()
        return score(hidden[kept], head, completion_labels[kept], temperature, pieces)

    base.forward = types.MethodType(forward, base)


def score(hidden, head, labels, temperature: float = 1.0, pieces: int = 0):
    """Log-probability of each label [N] and entropy at its position, in float32.
    `hidden` [N, hidden size], `head` the output layer. Logits exist for one of `pieces`
    at a time (0: for as few as LOGITS_AT_ONCE allows), in the forward and, computed
    again, in the backward pass. Entropies carry no gradient."""
    pieces = pieces or logits_pieces(len(labels), head)
    if pieces == 1:
        return _score_chunk(hidden, head, labels, temperature)
    split = zip(hidden.tensor_split(pieces), labels.tensor_split(pieces), strict=True)
    parts = [
        checkpoint(_score_chunk, part, head, own, temperature, use_reentrant=False)
        for part, own in split
    ]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def logits_pieces(labels: int, head) -> int:
    """In how many pieces the output layer takes so many labels."""
    return max(1, -(-labels // max(1, LOGITS_AT_ONCE // head.out_features)))


def _score_chunk(hidden, head, labels, temperature):
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logps = logits.log_softmax(-1)
    with torch.no_grad():
        entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, labels[:, None])[:, 0], entropies


@dataclass(frozen=True)
class Row:
    """A prompt with completions packed behind it."""

    prompt: Prompt
    completions: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens of the row: P - 1 and the completions."""
        return len(self.prompt.ids) - 1 + self.scored

    @property
    def scored(self) -> int:
        """Tokens of the completions."""
        return sum(len(completion) for completion in self.completions)

    def ids(self) -> torch.Tensor:
        """[length]: what is read."""
        last = self.prompt.ids[-1:]
        segments = [part for c in self.completions for part in (last, c[:-1])]
        return torch.cat([self.prompt.ids[:-1], *segments])

    def labels(self) -> torch.Tensor:
        """[length]: what is predicted at each place, -100 in the prompt."""
        unscored = self.prompt.ids.new_full((len(self.prompt.ids) - 1,), -100)
        return torch.cat([unscored, *self.completions])

    def positions(self) -> torch.Tensor:
        """[3, length]: every segment goes on from the position of the prompt's end."""
        end = self.prompt.positions[:, -1:]
        runs = [end + torch.arange(len(c), device=end.device) for c in self.completions]
        return torch.cat([self.prompt.positions[:, :-1], *runs], 1)

    def segments(self) -> torch.Tensor:
        """[length]: 0 in the prompt, i in the i-th completion."""
        lengths = [len(self.prompt.ids) - 1, *map(len, self.completions)]
        counts = torch.tensor(lengths, device=self.prompt.ids.device)
        return torch.repeat_interleave(counts)


def make_rows(
    prompt: Prompt, completions: Sequence[torch.Tensor], pack_tokens: int
) -> list[Row]:
    """A group as one row, or as several where it exceeds `pack_tokens` tokens. Raises
    ValueError where even one completion does not fit behind the prompt."""
    rows: list[Row] = []
    for completion in completions:
        alone = Row(prompt, (completion,))
        if alone.length > pack_tokens:
            raise ValueError(
                f"pack_tokens is {pack_tokens}, but one prompt and completion already "
                f"take {alone.length} tokens: raise pack_tokens"
            )
        if rows and rows[-1].length + len(completion) <= pack_tokens:
            rows[-1] = Row(prompt, (*rows[-1].completions, completion))
        else:
            rows.append(alone)
    return rows


def make_packs(rows: Sequence[Row], pack_tokens: int) -> list[list[Row]]:
    """Rows in their order, batched so that no padded batch exceeds `pack_tokens`."""
    packs: list[list[Row]] = []
    for row in rows:
        together = [*(packs[-1] if packs else []), row]
        longest = max(own.length for own in together)
        if packs and longest * len(together) <= pack_tokens:
            packs[-1] = together
        else:
            packs.append([row])
    return packs


def completion_scores(
    model,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[torch.Tensor]],
    pack_tokens: int = 16384,
) -> tuple[list[torch.Tensor], ...]:
    """What `add_scoring` gives, log-probabilities and entropies first: one [R] tensor a
    completion, prompt after prompt. `completions[i]` are those of `prompts[i]`, each a
    tensor of token ids [R > 0]. `pack_tokens` bounds the tokens, padding included, of a
    forward pass: a larger group is split and its prompt encoded once a part, with the
    same gradients."""
    check_model(model)
    groups = zip(prompts, completions, strict=True)
    rows = [row for own in groups for row in make_rows(*own, pack_tokens)]
    packs = make_packs(rows, pack_tokens)
    pieces = [0] * len(packs)
    if shards.is_split(model):  # the most packs of any process, and pieces of a pack
        base = base_of(model)
        scored = [sum(row.scored for row in pack) for pack in packs]
        own = [logits_pieces(n, base.get_output_embeddings()) for n in scored]
        pieces = shards.agreed(own, base.device)
    scores = []
    for pack, count in zip(packs, pieces, strict=False):
        lengths = [len(completion) for row in pack for completion in row.completions]
        found = model(**pack_inputs(pack), pieces=count)
        scores.append([values.split(lengths) for values in found])
    logps, *more = [list(chain(*own)) for own in zip(*scores, strict=True)]
    for count in pieces[len(packs) :]:  # other processes have more packs
        idle, *_ = model(**pack_inputs([idle_row(prompts[0])]), pieces=count)
        logps[0] = logps[0] + 0 * idle.sum()
    return logps, *more


def idle_row(prompt: Prompt) -> Row:
    """The prompt's last token, twice: for a forward pass whose result counts 0."""
    ids, features = prompt.ids[-1:], prompt.features and {}
    last = Prompt(ids, prompt.positions[:, -1:], {}, features)
    return Row(last, (ids,))


def pack_inputs(rows: Sequence[Row]) -> dict:
    """Arguments of the scoring forward for right-padded rows, L tokens the longest.
    input_ids and completion_labels [B, L], position_ids [3, B, L], attention_mask [B,
    1, L, L]. Padding sees the prompt, so no softmax is empty; nothing sees padding."""
    ids = pad_sequence([row.ids() for row in rows], True, 0)
    labels = pad_sequence([row.labels() for row in rows], True, -100)
    positions = pad_sequence([row.positions().T for row in rows], True, 0)
    segments = pad_sequence([row.segments() for row in rows], True, -1)
    order = torch.arange(ids.shape[1], device=ids.device)
    causal = order[:, None] >= order
    same = segments[:, :, None] == segments[:, None]
    visible = causal & ((segments[:, None] == 0) | same)
    return {
        "input_ids": ids,
        "completion_labels": labels,
        "position_ids": positions.permute(2, 0, 1),
        "attention_mask": visible[:, None],
        **picture_inputs([row.prompt for row in rows]),
    }


@torch.no_grad()
def plain_logps(model, prompt: Prompt, completion: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [R, V] along one completion, with video and prompt encoded for
    it alone, as a stock trainer does; at the prompt's positions and behind them."""
    base = base_of(model)
    ids = torch.cat([prompt.ids, completion])[None]
    behind = torch.arange(1, 1 + len(completion), device=ids.device)
    behind = prompt.positions[:, -1:] + behind
    kinds = mm_token_type_ids(ids, base.config)
    given = {"mm_token_type_ids": kinds} if prompt.pixels else {}
    logits = base(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.cat([prompt.positions, behind], 1)[:, None],
        logits_to_keep=len(completion) + 1,
        **prompt.pixels,
        **given,
    ).logits[0, :-1]
    return logits.float().log_softmax(-1)


def plain_scores(model, prompt: Prompt, completion: torch.Tensor) -> torch.Tensor:
    """`plain_logps` of the completion's own tokens, [R]."""
    logps = plain_logps(model, prompt, completion)
    return logps.gather(-1, completion[:, None])[:, 0]
