"""Rollouts of a group: one prefill of the prompt, G completions side by side behind it.

After the prefill a token step is plain functions over the model's own weights and
tensors of fixed size: the prompt's keys and values once a group, each completion's own
behind them. No module of the network is called: a step costs its arithmetic, and a GPU
is handed all of it at once, as a CUDA graph.

    groups = draw(model, with_features(model, prompts), 8, decoding)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lib.model.prefix import Prompt, base_of, check_model, ending, picture_inputs
from lib.model.token_step import Language, folded

# isort: split
from transformers import LogitsProcessorList, generation

FREE = -1  # a slot without a prompt
STEPS_A_LOOK = 8  # at which groups have ended: on a GPU each look waits for it


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: all fields are explicit, no checkpoint can add one.
    temperature 0 takes the most likely token; top_k 0 and top_p 1 keep every token. No
    token of `suppressed` is ever drawn."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    end_ids: tuple[int, ...]
    pad_id: int
    suppressed: tuple[int, ...]


@contextmanager
def generating(model) -> Iterator[None]:
    """Eval mode inside, the mode from before outside. In train mode with gradient
    checkpointing on, transformers 5 drops the cache of every layer and generates wrong
    tokens without an error. In eval mode bitsandbytes 0.50 repacks 4-bit weights for
    CPUs with AVX512-BF16, for good, and a later update gets no gradient through them:
    that is switched off for the time being. Adapters of small layers are folded."""
    was_training = model.training
    packs = "support_avx512bf16_for_cpu"
    quantized = [module for module in model.modules() if getattr(module, packs, False)]
    layers = [(own, forward) for own in model.modules() if (forward := folded(own))]
    model.eval()
    for module in quantized:
        setattr(module, packs, False)
    for module, forward in layers:
        module.forward = forward
    try:
        yield
    finally:
        for module in quantized:
            setattr(module, packs, True)
        for module, _ in layers:
            del module.forward  # the class's own again
        model.train(was_training)


def draw(
    model, prompts: Sequence[Prompt], count: int, decoding: Decoding
) -> list[list[list[int]]]:
    """`count` completions of every prompt: token ids, the end token included. A
    completion of `max_tokens` tokens without an end token was cut off. Randomness is
    torch's global state: on a CPU the same state gives the same completions, whatever
    is drawn side by side. FloatingPointError where logits are NaN or infinite."""
    with generating(model):
        return decode(model, prompts, count, decoding)


@torch.no_grad()
def decode(
    model,
    prompts: Sequence[Prompt],
    count: int,
    decoding: Decoding,
    at_once: int | None = None,
) -> list[list[list[int]]]:
    """`draw` for a model that is in the state of `generating`. At most `at_once` groups
    are drawn side by side, all if None; waiting ones take the places of those that end.
    Leaves no trace in the model, so that several threads can decode with one."""
    check_model(model)
    base = base_of(model)
    language = Language(base)
    slots = Slots(base, prompts, count, decoding, at_once or len(prompts))
    found: list[list[list[int]]] = [[] for _ in prompts]
    step = None
    while True:
        for row in slots.ended():
            found[slots.held[row]] = slots.completions(row)
            slots.held[row] = FREE
        free = slots.held.count(FREE)
        if slots.waiting and 4 * free >= len(slots.held):
            slots.fill()
            continue
        if free == len(slots.held):
            return found
        if free and not slots.waiting and slots.shrink():
            step = None
        step = step or step_of(language, slots)
        for _ in range(STEPS_A_LOOK if slots.fixed else 1):
            step()


def has_fixed_shapes(device) -> bool:
    """Whether a token step there is captured, and so has one shape."""
    return device.type == "cuda"


def step_of(language: Language, slots: "Slots") -> Callable[[], None]:
    """The token step of these slots: on a GPU captured once, as a CUDA graph."""

    def step():
        length = slots.decoding.max_tokens if slots.fixed else int(slots.at.max())
        slots.draw(language(slots, length))

    if not slots.at.is_cuda:
        return step
    with _plain_kernels():
        step()  # a real one: what is loaded at a first call cannot be captured
        graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads may call CUDA, such as one that pins what is loaded.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    return graph.replay


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without torch's deterministic algorithms, which sort the places of each write and
    copy all of the tensor twice: no step writes twice to one place."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


class Slots:
    """B groups of G completions that are being drawn, in tensors of fixed size.

    For each layer `keys` and `values` [B, kv, P, D] are the prompts', left padded, and
    `own_keys` and `own_values` [B, kv, G, T, D] the completions'. `hidden` [B, P] is
    -inf where a prompt is padded, else 0; `position` [B] that of the first drawn token;
    `at` [B] counts the drawn, `drawn` [B, G, T] holds them, pad_id behind an end.
    `held` [B] says which prompt is in a slot."""

    PER_SLOT = ("hidden", "position", "asked", "at", "drawn", "done")
    PER_LAYER = ("keys", "values", "own_keys", "own_values")

    def __init__(self, base, prompts, count: int, decoding: Decoding, size: int):
        self.base, self.prompts, self.decoding = ending(base, -1), prompts, decoding
        self.fixed = has_fixed_shapes(base.device)
        self.filters = _filters(decoding, base.device)
        self.ends = torch.tensor(decoding.end_ids, device=base.device)
        self.waiting = list(range(len(prompts)))
        size, length = min(size, len(prompts)), decoding.max_tokens
        self.held = [FREE] * size
        # One number a token, drawn before any token: batches do not matter to it.
        self.chances = None
        if decoding.temperature > 0:
            shape = (len(prompts), count, length)
            self.chances = torch.rand(shape, dtype=torch.float64, device=base.device)

        def zeros(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=base.device)

        longest = max(len(prompt.ids) for prompt in prompts)
        self.hidden = zeros(size, longest, dtype=torch.float32)
        self.position, self.asked, self.at = zeros(size), zeros(size), zeros(size)
        self.drawn = zeros(size, count, length)
        self.done = zeros(size, count, dtype=torch.bool)
        self.broken = zeros(dtype=torch.bool)
        self.keys = None
        self.fill()

    def fill(self) -> None:
        """Put waiting prompts into the free slots and draw their first tokens."""
        free = [row for row, held in enumerate(self.held) if held == FREE]
        asked, self.waiting = self.waiting[: len(free)], self.waiting[len(free) :]
        for row, prompt in zip(free, asked, strict=False):
            self.held[row] = prompt
        rows = torch.tensor(free[: len(asked)], device=self.at.device)
        prompts = [self.prompts[prompt] for prompt in asked]
        output, mask, position = _prefill(self.base, prompts, self.decoding.pad_id)
        behind = self.hidden.shape[1] - mask.shape[1]
        layers = output.past_key_values.layers
        if self.keys is None:
            self._allocate(layers, behind)
        else:
            for i, layer in enumerate(layers):
                self.keys[i][rows, :, behind:] = layer.keys
                self.values[i][rows, :, behind:] = layer.values
        self.hidden[rows] = -torch.inf
        self.hidden[rows, behind:] = torch.where(mask, 0.0, -torch.inf)
        self.position[rows] = position
        self.asked[rows] = torch.tensor(asked, device=rows.device)
        self.at[rows] = 0
        self.drawn[rows] = self.decoding.pad_id
        self.done[rows] = False
        self.draw(output.logits[:, -1:].expand(-1, self.drawn.shape[1], -1), rows)

    def _allocate(self, layers, behind: int) -> None:
        """From the first prefill, which fills all slots: its own tensors, if it can."""

        def prompts(of_layer):
            return functional.pad(of_layer, (0, 0, behind, 0)) if behind else of_layer

        def own(of_layer):
            size, heads, _, width = of_layer.shape
            return of_layer.new_zeros(size, heads, *self.drawn.shape[1:], width)

        self.keys = [prompts(layer.keys) for layer in layers]
        self.values = [prompts(layer.values) for layer in layers]
        self.own_keys = [own(layer.keys) for layer in layers]
        self.own_values = [own(layer.values) for layer in layers]

    def draw(self, logits: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Draw the next token of the completions in `rows` (all) from [B, G, V]."""
        if rows is None:
            rows = torch.arange(len(self.at), device=self.at.device)
        length = self.decoding.max_tokens
        at = self.at[rows].clamp(max=length - 1)
        scores = self.filters(None, logits.float().flatten(0, 1))
        self.broken |= ~scores.amax(-1).isfinite().all()
        if self.chances is None:
            token = scores.argmax(-1)
        else:
            token = _at_chance(scores, self.chances[self.asked[rows], :, at].flatten())
        # A whole completion stays as it is until somebody looks.
        whole = self.done[rows] | (self.at[rows] == length)[:, None]
        token = token.view(whole.shape)
        token = torch.where(whole, self.drawn[rows, :, at], token)
        self.drawn[rows, :, at] = token
        self.done[rows] |= torch.isin(token, self.ends)
        self.at[rows] = at + 1

    def ended(self) -> list[int]:
        """The slots whose completions are whole; FloatingPointError after a NaN."""
        if self.broken:
            raise FloatingPointError(
                "the model's probabilities are NaN: in 16 bits a number can overflow, "
                "where dtype = float32 helps; else its weights are damaged"
            )
        over = self.done.all(1) | (self.at == self.decoding.max_tokens)
        return [row for row in over.nonzero()[:, 0].tolist() if self.held[row] != FREE]

    def completions(self, row: int) -> list[list[int]]:
        """The token ids of a slot's completions, each up to its end."""
        ends = set(self.decoding.end_ids)
        drawn = self.drawn[row, :, : int(self.at[row])].tolist()
        return [_until_end(tokens, ends) for tokens in drawn]

    def shrink(self) -> bool:
        """Leave free slots behind, on a GPU only by halves; whether it was done. A
        captured step has fixed shapes, and capturing another one takes its time."""
        kept = [row for row, held in enumerate(self.held) if held != FREE]
        if self.fixed and 2 * len(kept) > len(self.held):
            return False
        rows = torch.tensor(kept, device=self.at.device)
        for name in self.PER_SLOT:
            setattr(self, name, getattr(self, name)[rows])
        for name in self.PER_LAYER:
            setattr(self, name, [layer[rows] for layer in getattr(self, name)])
        self.held = [self.held[row] for row in kept]
        return True


def _at_chance(scores: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """[N] tokens from scores [N, V]: where the summed probabilities pass `chances`."""
    sums = scores.softmax(-1, dtype=torch.float64).cumsum_(-1)
    wanted = (chances * sums[:, -1])[:, None]
    token = torch.searchsorted(sums, wanted, right=True)[:, 0]
    return token.clamp(max=scores.shape[-1] - 1)


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]


def _prefill(base, prompts: Sequence[Prompt], pad_id: int):
    """Output of the left-padded prompts, their [B, P] mask, the next positions [B]."""
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    mask = padded([torch.ones_like(prompt.ids) for prompt in prompts])
    positions = padded([prompt.positions.T for prompt in prompts]).permute(2, 0, 1)
    output = base(
        input_ids=padded([prompt.ids for prompt in prompts], padding_value=pad_id),
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **picture_inputs(prompts),
    )
    return output, mask.bool(), positions[0, :, -1] + 1


def _filters(decoding: Decoding, device) -> LogitsProcessorList:
    """transformers' own processors, in the order `generate` applies them."""
    filters = LogitsProcessorList()
    if suppressed := list(decoding.suppressed):
        without = generation.SuppressTokensLogitsProcessor(suppressed, device=device)
        filters.append(without)
    if decoding.temperature > 0:
        warmth = float(decoding.temperature)  # the warper refuses a 1
        filters.append(generation.TemperatureLogitsWarper(warmth))
        if decoding.top_k > 0:
            filters.append(generation.TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            filters.append(generation.TopPLogitsWarper(decoding.top_p))
    return filters
