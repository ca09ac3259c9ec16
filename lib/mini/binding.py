"""Letters second: how a stated step finds the letter of its option.

To turn a stated step into its letter a model has to find the option that says the same
two words and to read the letter in front of it. A model this small does not find that
by itself: for thousands of steps it states the right step and then guesses. So the
parts are taught directly, in the middle of the language model: read through its own
output head, the last word of an option speaks the option's letter and verb, and the
place that is about to answer speaks the verb and noun it has just stated; in the layer
above, one head of that place looks at the option's last word.
"""

import torch

LAYER = 2  # of 4: words are carried behind this many layers, compared in the next
HEAD = 0  # of 4, the one that learns where to look
# In "<think>Next is cut tomato.</think><answer>B" the tokens before ">B" are
# " cut", " tomato", ".</", "think", "><", "answer".
_STATED = (-5, -4)


def binding_loss(
    model, processor, inputs: dict, hidden, attention=None
) -> torch.Tensor:
    """How far the parts are from being in place; sum of three log-losses.

    `inputs` holds input_ids [B, L] and labels [B, L], -100 outside the response;
    `hidden` [B, L, width] is the output of layer `LAYER`, `attention` [B, heads, L, L]
    that of the layer above it; without it only the first two parts count.
    """
    encode = processor.tokenizer.encode
    ids, labels = inputs["input_ids"], inputs["labels"]
    said = torch.tensor([encode(f">{letter}")[0] for letter in "ABCD"])
    listed = torch.tensor([encode(letter)[0] for letter in "ABCD"])
    # "A", ".", " cut", " tomato" among the options of the prompt
    rows, at = torch.isin(ids[:, :-3], listed).nonzero(as_tuple=True)
    dotted = (ids[rows, at + 1] == encode(".")[0]) & (labels[rows, at] == -100)
    rows, at = rows[dotted], at[dotted]
    letters = said[(ids[rows, at][:, None] == listed).int().argmax(1)]
    verbs, nouns = ids[rows, at + 2], ids[rows, at + 3]
    options = _speaks(model, hidden, rows, at + 3, letters, verbs)
    own, here = torch.isin(labels[:, 1:], said).nonzero(as_tuple=True)
    verb, noun = (ids[own, here + offset] for offset in _STATED)
    stated = _speaks(model, hidden, own, here, verb, noun)
    if attention is None:
        return options + stated
    same = (own[:, None] == rows) & (verb[:, None] == verbs) & (noun[:, None] == nouns)
    target = (at + 3)[same.int().argmax(1)]
    looks = -(attention[own, HEAD, here, target] + 1e-6).log().mean()
    return options + stated + looks


def _speaks(model, hidden, rows, at, first, second) -> torch.Tensor:
    """Mean over places of the log-loss of the two words each should speak."""
    normed = model.model.language_model.norm(hidden[rows, at])
    logps = model.get_output_embeddings()(normed).log_softmax(-1)
    found = [logps.gather(1, words[:, None]) for words in (first, second)]
    return -torch.cat(found).mean()
