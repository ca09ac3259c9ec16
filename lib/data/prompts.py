"""The two prompts, and the chat message that carries video, still and text.

The thinking prompt is the paper's: the question, one option a line as "A. ...", then
`THINK_ANSWER`. Training, evaluation and the untrained model all get the same words; the
default chat template adds the system prompt."""

import numpy as np

from lib.data.questions import Question

# QUESTION_TEMPLATE of the released infer.py and grpo.py, word for word. The space
# before "Output" (it starts the line after the options) and the one after the last
# full stop are theirs; a tokenizer sees both, so both stay.
THINK_ANSWER = (
    " Output the thinking process in <think> </think> and final answer in"
    " <answer> </answer> tags, i.e., <think> reasoning process here </think>"
    "<answer> answer here </answer>. "
)

# The usual one-letter instruction of multiple-choice evaluation (LLaVA-1.5,
# https://arxiv.org/abs/2310.03744, section 3.2). The paper has no direct baseline.
DIRECT = "Answer with the option's letter from the given choices directly."

STYLES = {"think": THINK_ANSWER, "direct": DIRECT}
LETTERS = "ABCDE"


def option_lines(options: tuple[str, ...]) -> str:
    """One line an option, lettered from A: `A. first` newline `B. second` ..."""
    lettered = zip(LETTERS[: len(options)], options, strict=True)  # five at most
    return "\n".join(map(". ".join, lettered))


def prompt_text(question: Question, style: str) -> str:
    """The whole user text of a question; style "think" (the paper's) or "direct"."""
    return f"{question.text}\n{option_lines(question.options)}\n{STYLES[style]}"


def messages(
    text: str, clip: np.ndarray | None, still: np.ndarray | None
) -> list[dict]:
    """One user turn: video [T, H, W, 3] first, then image [H, W, 3], then the text. An
    absent visual is left out altogether: Qwen2-VL's template also draws a placeholder
    for a key whose value is None."""
    parts = {"video": clip, "image": still, "text": text}
    content = [{"type": k, k: part} for k, part in parts.items() if part is not None]
    return [{"role": "user", "content": content}]
