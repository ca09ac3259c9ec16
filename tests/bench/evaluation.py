"""The kit's batched evaluation against one question at a time.

    python -m tests.bench.evaluation           # two CPU cores, 3 minutes

The loop is what the paper's released inference does (arXiv 2503.24376, infer.py): take
a question, decode its clip, preprocess, generate, take the next. The kit sorts
questions by shape and answers a batch of like ones at a time, a batch on each core.
As in 04_eval the questions are asked three times, of base, SFT and GRPO. The mini base
and twice the same random adapter on it stand for them. The loop decodes a clip and runs
the vision tower for each, the kit once. Same models, same MiniPlan questions, greedy
both: the completions must be equal. Runs alternate in one process, and no clip is in
memory when one begins.
"""

import itertools
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from lib import paths, records
from lib.data import questions, video
from lib.data.prompts import messages, prompt_text
from lib.doors import Door
from lib.evaluate import evaluate
from lib.mini import benchmark
from lib.model import encoding, models
from tests.bench import decoding
from tests.bench.grpo_step import spread

RECORD = paths.ROOT / "outputs/reference/bench_evaluation.json"
BASE = paths.ROOT / "lib/mini/base"
SAMPLING = video.Sampling(8, fps=2.0, height=56, width=112)  # the mini track's
TOKENS = 48


def one_at_a_time(model, processor, asked) -> list[str]:
    """Completions, by a loop over questions."""
    tokenizer = processor.tokenizer
    completions = []
    for question in tqdm(asked, desc="one at a time"):
        clip = question.video and video.read_clip(question.video, SAMPLING)
        still = question.image and video.read_still(question.image, SAMPLING)
        turn = messages(prompt_text(question, "think"), clip, still)
        inputs = encoding.encode(processor, [turn])
        with torch.inference_mode():
            ids = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=TOKENS,
                suppress_tokens=encoding.visual_token_ids(model.config),
                pad_token_id=tokenizer.pad_token_id,
            )
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        ends = tokenizer.convert_tokens_to_ids(list(evaluate.END_TOKENS))
        completions.append(evaluate.cut(tokenizer, new, ends)[0])
    return completions


def batched(model, processor, asked, batch_size: int) -> list[str]:
    """Completions, by the kit."""
    settings = evaluate.EvalSettings("think", TOKENS, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        rows = evaluate.evaluate(model, processor, asked, settings, SAMPLING, path)
    return [row["completion"] for row in rows]


def level(data: Path) -> list[questions.Question]:
    return questions.read_validation(
        data / "annotations/validation_L1.jsonl", data, "L1"
    )


def main(arguments: list[str]) -> None:
    parser = Door("python -m tests.bench.evaluation", __doc__)
    parser.add_argument("--questions", type=int, default=200, help="how many")
    parser.add_argument("--batch-size", type=int, default=50, help="of the kit")
    parser.add_argument("--repeats", type=int, default=5, help="of both")
    parser.add_argument("--out", type=Path, default=RECORD, help="a .json file")
    given = parser.parse_args(arguments)
    adapted, processor = decoding.made(None), models.load_processor(BASE)
    trained = (models.load_model(BASE), adapted, adapted)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        sizes = benchmark.Sizes(training=8, level=given.questions, general=8)
        benchmark.write(data, sizes)
        found = compare(trained, processor, data, given.batch_size, given.repeats)
    found |= {
        name: vars(given)[name] for name in ("questions", "batch_size", "repeats")
    }
    found |= {"threads": torch.get_num_threads()}
    records.write_json(given.out, found | {"environment": records.environment()})


def compare(trained, processor, data: Path, batch_size: int, repeats: int) -> dict:
    """Questions a second of both, the ratio over pairs; completions must be equal."""
    batched(trained[0], processor, level(data)[:8], batch_size)  # warm up
    programs = {"loop": one_at_a_time, "kit": partial(batched, batch_size=batch_size)}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats):
        # Files of another name: none is among those that the kit has decoded.
        asked = level(shutil.copytree(data, data.with_name(f"repeat{repeat}")))
        answers = {}
        for name in list(programs)[:: 1 if repeat % 2 else -1]:
            started, work = time.perf_counter(), programs[name]
            said = [work(model, processor, asked) for model in trained]
            taken[name].append(time.perf_counter() - started)
            answers[name] = list(itertools.chain(*said))
        if answers["loop"] != answers["kit"]:
            everything = asked * len(trained)
            pairs = zip(everything, answers["loop"], answers["kit"], strict=True)
            apart = [question.id for question, one, other in pairs if one != other]
            raise SystemExit(f"completions differ for {apart}")
    pairs = zip(taken["loop"], taken["kit"], strict=True)
    rate = {
        name: spread([len(trained) * len(asked) / own for own in values])
        for name, values in taken.items()
    }
    return {
        "questions_a_second": rate,
        "ratio": spread([loop / kit for loop, kit in pairs]),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
