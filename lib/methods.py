"""Methods, sets, levels: their names, their order and their colours, in one place.

A method has the same colour everywhere, from the colour-blind safe palette of Okabe and
Ito (https://jfly.uni-koeln.de/color/). One that stands nowhere here, such as a reader's
own RL variant, comes last, in capitals and purple."""

from collections.abc import Callable, Iterable, Mapping

METHODS = ("base", "sft", "grpo")
# The order of those that need not be there; others follow by name.
MODELS = (*METHODS, "base-direct", "base-begun", "sft-answers", "sft-steps", "rft")
MODELS = (*MODELS, "ppo", "care")
PAIRS = (("grpo", "sft"), ("sft", "base"), ("grpo", "base"))
OTHERS = (("ppo", "grpo"), ("care", "grpo"), ("sft-steps", "grpo"))  # where there are
LEVELS, GENERAL = ("L1", "L2", "L3"), "general"
SETS = (*LEVELS, GENERAL)
MEANING = {
    "L1": "same environments as in training",
    "L2": "new environments",
    "L3": "new environments and new tasks",
    "general": "general video questions",
}
KINDS = ("video", "still", "text")  # what attention rests on
ASKED = "perception_asked.json"  # in a run: what was asked with something taken away
SEEN = "seen"
CONDITIONS = {  # what is shown in place of all as it is; also frames_N and size_HxW
    SEEN: "all as it is",
    "shuffled": "frames shuffled",
    "one_frame": "last frame only",
    "other_video": "another video",
    "no_video": "no video",
    "no_pictures": "no pictures",
}
EXACT = (  # said of a reasoning where the truth is known (lib/mini/reasoning.py)
    *("progress", "count", "next", "consistent", "follows"),
    *("false_step", "false_object"),
)
VERDICTS = {  # on a claim: its sign and colour
    "supported": ("✓", "#009E73"),
    "the opposite was seen": ("✕", "#D55E00"),
    "smaller than published": ("↓", "#AA4499"),
    "not decided": ("○", "#0072B2"),
    "cannot show here": ("∅", "#7f7f7f"),
    "not measured": ("–", "#7f7f7f"),
}


class ByMethod(dict):
    """{method: its look}; `other` makes that of a method without an entry."""

    def __init__(self, other: Callable[[str], str], known: Mapping[str, str]):
        super().__init__(known)
        self.other = other

    def __missing__(self, method: str) -> str:
        return self.other(method)


LOOKS = {  # colour and name
    "base": ("#7f7f7f", "base"),
    "base-direct": ("#CC79A7", "base, direct answer"),
    "base-begun": ("#999933", "base, answer begun"),
    "sft": ("#E69F00", "SFT"),
    "grpo": ("#0072B2", "GRPO"),
    "sft-answers": ("#D55E00", "SFT, answers alone"),
    "sft-steps": ("#F0E442", "SFT, steps in words"),
    "rft": ("#332288", "SFT on its own right answers"),
    "ppo": ("#56B4E9", "PPO"),
    "care": ("#009E73", "GRPO-CARE"),
    "paper": ("#000000", "paper (Qwen2-VL-7B)"),
}
COLORS = ByMethod(lambda _: "#882255", {m: color for m, (color, _) in LOOKS.items()})
LABELS = ByMethod(str.upper, {m: label for m, (_, label) in LOOKS.items()})


def in_order(models: Iterable[str]) -> list[str]:
    """Each model once, in the order of every table and figure."""
    found = {*models}
    return [*(m for m in MODELS if m in found), *sorted(found - {*MODELS})]


def named(name: str, count: int, whole: int = 0) -> str:
    """A set, and that it is a part where `count` are not its `whole` number of
    questions: "L2 (part: 412 of 1,321)"."""
    return name if count >= whole else f"{name} (part: {count:,} of {whole:,})"


def called(row: Mapping) -> str:
    """The set of a row of results, by `named` where it is a part: then it has `of`."""
    return named(row["set"], row["n"], row["of"]) if "of" in row else row["set"]


def condition(name: str) -> str:
    """A condition in words."""
    return CONDITIONS.get(name, name.replace("_", " "))


def difference(a: str, b: str) -> str:
    """Two methods as a difference, "GRPO − SFT"."""
    return f"{LABELS[a]} − {LABELS[b]}"
