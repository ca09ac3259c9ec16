"""Drawing tokens: today's engine against an earlier program of this repository.

    python -m tests.bench.decoding --before defbeba       # two CPU cores, 4 minutes

Both draw behind the same prompts with the same model and LoRA adapter, in one process
and alternating. `whole` is a call with its prefill, `tokens` what comes behind it, both
as the earlier program's seconds over the engine's; `operations` counts what the host
calls for a token step, with torch's profiler: on a GPU each is a kernel that the card
waits for, unless the step is one CUDA graph. `compiled` is the engine's step through
torch.compile, whose seconds come once. Greedy completions of all must be equal.
`mismatch` is between rollouts and update, on whose ratio GRPO's clipping rests."""

import importlib
import subprocess
import sys
import tempfile
import time
import types
from unittest import mock

import torch
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from lib import paths, records
from lib.doors import Door
from lib.model import models, prefix, rollouts

# isort: split
import peft
from transformers import AutoModelForImageTextToText

from tests.bench.grpo_step import spread
from tests.bench.memory import config_of
from tests.trainings import drawn_and_scored, move_adapter

RECORD = paths.ROOT / "outputs/reference/bench_decoding.json"
PROMPT = 170  # tokens, as in MiniPlan
CASES = {  # layers and width (None: the mini base), prompts, completions, tokens
    "rollouts of the mini track": (None, 8, 8, 24),
    "evaluation of the mini track": (None, 50, 1, 24),
    "28 layers of 64": ((28, 64), 8, 8, 24),
}


def at(commit: str) -> types.ModuleType:
    """lib/model/rollouts.py of a commit, on the other modules of that commit."""

    def named() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "lib"]

    with tempfile.TemporaryDirectory() as folder:
        packed = ["git", "-C", str(paths.ROOT), "archive", commit, "lib"]
        files = subprocess.run(packed, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=files)
        todays = {name: sys.modules.pop(name) for name in named()}
        try:
            with mock.patch.object(sys, "path", [folder, *sys.path]):
                return importlib.import_module("lib.model.rollouts")
        finally:
            for name in named():
                del sys.modules[name]
            sys.modules.update(todays)


def made(size: tuple[int, int] | None):
    """The mini base, or random weights of so many layers; with an adapter at work."""
    torch.manual_seed(0)
    if size is None:
        model = models.load_model(paths.ROOT / "lib/mini/base")
    else:
        layers, width = size
        config = config_of(width, 3 * width, layers, heads=4, kv=2, vocab=512)
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa"
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    model = peft.get_peft_model(model, models.lora_config(16, 32)).eval()
    move_adapter(model)
    return model


def prompts(count: int) -> list[prefix.Prompt]:
    places = torch.arange(PROMPT).expand(3, -1)
    return [
        prefix.Prompt(torch.randint(10, 500, (PROMPT,)), places) for _ in range(count)
    ]


class Program:
    """One of the two: greedy completions, all `tokens` long unless one meets 511."""

    def __init__(self, module, model, asked, group: int):
        self.module, self.given = module, (model, asked, group)

    def draw(self, tokens: int) -> list:
        settings = self.module.Decoding(tokens, 0.0, 0, 1.0, (511,), 0, ())
        return self.module.draw(*self.given, settings)

    def seconds(self, tokens: int) -> float:
        started = time.perf_counter()
        self.draw(tokens)
        return time.perf_counter() - started

    def operations(self, tokens: int) -> int:
        """Operators without operators inside them, for a token step."""
        counts = []
        for length in (1, tokens):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                self.draw(length)
            leaves = [own.name for own in profiled.events() if not own.cpu_children]
            counts.append(sum(name.startswith("aten::") for name in leaves))
        return round((counts[1] - counts[0]) / (tokens - 1))


def pairs(one: Program, other: Program, tokens: int, repeats: int) -> dict:
    """Seconds of `one` over those of `other`: whole calls, and behind the prefill."""
    whole, behind = [], []
    for _ in tqdm(range(repeats)):
        times = [(own.seconds(1), own.seconds(tokens)) for own in (one, other)]
        (first, all_of_one), (second, all_of_other) = times
        whole.append(all_of_one / all_of_other)
        behind.append((all_of_one - first) / (all_of_other - second))
    return {"whole": spread(whole), "tokens": spread(behind)}


def compiled_step(language, slots):
    length = slots.decoding.max_tokens
    return torch.compile(lambda: slots.draw(language(slots, length)), dynamic=False)


def compare(before, case, repeats: int, with_compiler: bool) -> dict:
    size, count, group, tokens = case
    given = (made(size), prompts(count), group)
    earlier, engine = Program(before, *given), Program(rollouts, *given)
    expected = earlier.draw(tokens)
    assert engine.draw(tokens) == expected, "the completions differ"
    found = {
        "prompts": count,
        "completions": group,
        "length": tokens,
        **pairs(earlier, engine, tokens, repeats),
        "operations": {
            "before": earlier.operations(tokens),
            "engine": engine.operations(tokens),
        },
    }
    if with_compiler:
        compiles = mock.patch.object(rollouts, "step_of", compiled_step)
        with compiles, fresh_cache():  # else an earlier run's work would be found
            compiling = engine.seconds(tokens)
            assert engine.draw(tokens) == expected, "compiled, the completions differ"
            own = pairs(earlier, engine, tokens, repeats)
        found["compiled"] = {"seconds_once": round(compiling, 1), **own}
    return found


def mismatch(dtype: str) -> dict[str, float]:
    """How far the log-probability of a drawn token is from the update's: |difference|.
    Temperature 1, 8 x 8 completions of 24 tokens of the mini base with an adapter."""
    model, asked = made(None).to(getattr(torch, dtype)), prompts(8)
    settings = rollouts.Decoding(24, 1.0, 0, 1.0, (), 0, ())
    drawn, scored = drawn_and_scored(model, asked, 8, settings)
    apart = (drawn - scored).abs()
    return {"mean": apart.mean().item(), "most": apart.max().item()}


def main() -> None:
    parser = Door("python -m tests.bench.decoding", __doc__)
    parser.add_argument("--before", required=True, help="a commit to compare with")
    parser.add_argument("--repeats", type=int, default=9, help="of each case")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    before = at(asked.before)
    cases = {
        name: compare(before, case, asked.repeats, case[0] is not None)
        for name, case in tqdm(CASES.items())
    }
    found = {
        "before": asked.before,
        "cases": cases,
        "mismatch": {dtype: mismatch(dtype) for dtype in ("float32", "bfloat16")},
        "environment": records.environment(),
    }
    records.write_json(RECORD, found)


if __name__ == "__main__":
    main()
