"""The language model's token step as plain functions over its weights.

One token of every completion goes through all layers (Qwen2-VL, arXiv 2409.12191; also
Qwen2.5-VL and Qwen3-VL) without a call of a module but the embedding: what is called a
thousand times a rollout costs its arithmetic. rollouts.py keeps the state."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

SMALL = 2**20  # numbers in a weight


class Language:
    """The language model's token step. Adapters stay live; in small float32 layers on a
    CPU, where a call takes as long as its product, they are folded into copies of the
    weights, and projections of one input become one: exact to rounding."""

    def __init__(self, base):
        text, config = base.model.language_model, base.config.get_text_config()
        self.embed, self.rotary = text.embed_tokens, text.rotary_emb
        self.norm = text.norm
        self.head = _linear(base.get_output_embeddings())
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.layers = [(layer, *_projections(layer)) for layer in text.layers]

    def __call__(self, slots, seen: int) -> torch.Tensor:
        """Logits [B, G, V] of the tokens to come behind the last drawn ones. Of a
        completion's own places the first `seen` are looked at."""
        last = slots.at - 1
        rows = torch.arange(len(last), device=last.device)
        x = self.embed(slots.drawn[rows, :, last])
        turn = self._turn(slots.position + last, x.dtype)
        ahead = torch.arange(seen, device=last.device) > last[:, None]
        ahead = torch.where(ahead, -torch.inf, 0.0)
        hidden = torch.cat([slots.hidden, ahead], 1)[:, None, None, None]
        for i, (layer, qkv, out, gate_up, down) in enumerate(self.layers):
            q, k, v = qkv(_normed(layer.input_layernorm, x))
            q, k, v = self._heads(layer.self_attn, q, k, v, turn)
            # Under autocast float32 weights make bfloat16 values, and a float32 cache.
            slots.own_keys[i][rows, :, :, last] = k.to(slots.own_keys[i].dtype)
            slots.own_values[i][rows, :, :, last] = v.to(slots.own_values[i].dtype)
            keys = slots.keys[i], slots.own_keys[i][..., :seen, :]
            values = slots.values[i], slots.own_values[i][..., :seen, :]
            x = x + out(attend(q, keys, values, hidden))[0]
            gate, up = gate_up(_normed(layer.post_attention_layernorm, x))
            x = x + down(layer.mlp.act_fn(gate) * up)[0]
        return self.head(_normed(self.norm, x))[0]

    def _turn(self, position: torch.Tensor, dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [B, 1, 1, D] of text positions, which are equal on three axes."""
        angle = position[:, None].float() * self.rotary.inv_freq.float()
        scale = self.rotary.attention_scaling
        cos, sin = angle.cos() * scale, angle.sin() * scale
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return cos[:, None, None].to(dtype), sin[:, None, None].to(dtype)

    def _heads(self, attention, q, k, v, turn):
        """q [B, kv, G, h, D], k and v [B, kv, G, D] from the projections [B, G, ...]. h
        heads share a key; Qwen3-VL norms each head of q and k (q_norm, k_norm)."""
        size, count = q.shape[:2]
        q, k = (part.unflatten(-1, (-1, attention.head_dim)) for part in (q, k))
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        both = torch.cat([q, k], 2)
        halves = both.chunk(2, -1)
        cos, sin = turn
        both = both * cos + torch.cat(halves[::-1], -1) * sin
        q, k = both.split([self.heads, self.kv], 2)
        q = q.reshape(size, count, self.kv, -1, attention.head_dim)
        v = v.view(size, count, self.kv, attention.head_dim)
        return q.permute(0, 2, 1, 3, 4), k.transpose(1, 2), v.transpose(1, 2)


def attend(q, keys, values, hidden: torch.Tensor) -> torch.Tensor:
    """Attention [B, G, heads * D] of q [B, kv, G, h, D] over two sets of keys. `keys`
    and `values` are pairs: those of the prompt [B, kv, P, D], which the group shares,
    and the completion's own [B, kv, G, T, D]; `hidden` is added to scores."""
    size, kv, count, share, width = q.shape
    q = q * width**-0.5
    group = q.reshape(size, kv, count * share, width)
    far = (group @ keys[0].transpose(-1, -2)).view(size, kv, count, share, -1)
    near = q @ keys[1].transpose(-1, -2)
    scores = torch.cat([far, near], -1).float() + hidden
    weights = scores.softmax(-1).to(values[0].dtype)
    far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
    seen = far.reshape(size, kv, count * share, -1) @ values[0]
    seen = seen.view(q.shape) + near @ values[1]
    return seen.permute(0, 2, 1, 3, 4).reshape(size, count, kv * share * width)


def _normed(norm, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467) with the rounding of the model's own module."""
    wide = x.float()
    size = wide.pow(2).mean(-1, keepdim=True)
    return norm.weight * (wide * torch.rsqrt(size + norm.variance_epsilon)).to(x.dtype)


def _projections(layer) -> Iterator[Callable]:
    """q with k and v, o, gate with up, down: see `_linear`."""
    attention, mlp = layer.self_attn, layer.mlp
    yield _linear(attention.q_proj, attention.k_proj, attention.v_proj)
    yield _linear(attention.o_proj)
    yield _linear(mlp.gate_proj, mlp.up_proj)
    yield _linear(mlp.down_proj)


@torch.no_grad()
def folded(module) -> Callable | None:
    """The forward of a small layer with its adapters in a copy of its weight, as long
    as they are on; None for any other module."""
    base, plain = getattr(module, "base_layer", None), module.forward
    small = isinstance(base, torch.nn.Linear) and _is_small(base)
    if not (small and _is_plain(module) and any(_adapters(module))):
        return None
    weight = _folded(module, base)

    def forward(x, *args, **kwargs):
        if module.disable_adapters:
            return plain(x, *args, **kwargs)
        return functional.linear(x, weight, base.bias)

    return forward


def _linear(*modules) -> Callable:
    """What linear modules make of one input: a function from x to their outputs."""
    if not all(_is_plain(module) for module in modules):
        return lambda x: [module(x) for module in modules]
    bases = [getattr(module, "base_layer", module) for module in modules]
    pairs = list(zip(modules, bases, strict=True))
    as_it_is = len(modules) == 1 and not list(_adapters(modules[0]))
    if as_it_is or not all(_is_small(base) for base in bases):
        return lambda x: [_adapted(module, x, base(x)) for module, base in pairs]
    weight = torch.cat([_folded(*pair) for pair in pairs])
    biases = [base.bias for base in bases if base.bias is not None]
    bias = torch.cat(biases) if biases else None
    sizes = [base.out_features for base in bases]
    return lambda x: functional.linear(x, weight, bias).split(sizes, -1)


def _is_plain(module) -> bool:
    """Whether A, B and a scale say all of its adapters: not DoRA, nor a bias of B."""
    ups = getattr(module, "lora_B", {}).values()
    biased = any(up.bias is not None for up in ups)
    return not (biased or getattr(module, "lora_variant", None))


def _is_small(base) -> bool:
    """Whether calling this float32 layer on a CPU takes as long as its product."""
    weight = base.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() <= SMALL


def _adapters(module) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """A [r, in], B [out, r] and scale of each LoRA adapter that is on."""
    if hasattr(module, "lora_A") and not (module.disable_adapters or module.merged):
        for name in module.active_adapters:
            if name not in module.lora_A:  # it adapts other modules
                continue
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            yield down, up, module.scaling[name]


def _folded(module, base) -> torch.Tensor:
    weight = base.weight
    for down, up, scale in _adapters(module):
        weight = weight + scale * (up @ down)
    return weight


def _adapted(module, x: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """What the module's adapters add to its plain output, rounded as PEFT does."""
    output = plain
    for down, up, scale in _adapters(module):
        low = functional.linear(x.to(down.dtype), down)
        output = output + functional.linear(low, up) * scale
    return output.to(plain.dtype)
