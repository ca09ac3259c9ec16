"""SEED-Bench-R1's levels as tasks of lmms-eval, another harness for models.

Each level that a data folder holds becomes a YAML file, with its prompts and right
letters in a JSONL file beside it; lib/data/lmms_eval_task.py is copied as utils.py."""

import json
from pathlib import Path

from lib import records
from lib.data import questions
from lib.data.prompts import prompt_text
from lib.methods import LEVELS

# Without `reasoning_tags: none` lmms-eval cuts the reasoning out before it scores, and
# an answer within it, which the paper's rule counts, would be lost.
TASK = """\
task: seed_bench_r1_{level}
tag: seed_bench_r1
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: gold
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 256
  do_sample: false
reasoning_tags: none
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""


def write(data: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Tasks of the levels in `data`, into the folder `out`; {level: (questions, those
    without a clip or still of theirs)}. Raises FileNotFoundError where there is none,
    DataFaults for a record at fault."""
    counts = {}
    for level in LEVELS:
        path = data / "annotations" / questions.FILES[level]
        if not path.exists():
            continue
        asked = questions.read_validation(path, data, level)
        docs, there = out / f"{level}.jsonl", sum(map(questions.is_there, asked))
        counts[level] = len(asked), len(asked) - there
        records.write_jsonl(docs, map(_doc, asked))
        task = TASK.format(level=level, docs=json.dumps(str(docs)))
        records.write_text(out / f"seed_bench_r1_{level}.yaml", task)
    if not counts:
        raise FileNotFoundError(f"{data}/annotations: no validation_L1.jsonl, L2 or L3")
    source = Path(__file__).with_name("lmms_eval_task.py")
    records.write_text(out / "utils.py", source.read_text(encoding="utf-8"))
    return counts


def _doc(question: questions.Question) -> dict:
    video = str(question.video) if question.video else ""
    own = {"id": question.id, "prompt": prompt_text(question, "think")}
    return {**own, "gold": question.gold, "video": video, "image": str(question.image)}
