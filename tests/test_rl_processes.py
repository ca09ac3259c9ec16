"""PPO and GRPO-CARE: two CPU processes train what one does with the same rollouts.

    python -m torch.distributed.run --nproc_per_node 2 --standalone \
        -m tests.test_rl_processes ARGUMENTS

ARGUMENTS is a pickle of (checkpoint, questions, folder).
"""

import os
import pickle
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lib import care, checkpoints, grpo, models, paths, ppo, records
from tests.test_grpo import SAMPLING, SETTINGS, vowels, without_seconds
from tests.test_two_processes import weights_of

COMMON = {**asdict(SETTINGS), "prompts_per_step": 4, "group_size": 2, "kl_beta": 0.1}
SECONDS = 600  # of a hang


def letters(text, question):
    """Stands for accuracy."""
    return float("e" in text)


class Fixed:
    """Completions that depend on the prompt and their number in the group alone."""

    def draw(self, seen):
        return [
            [
                self.completion(random.Random(f"{prompt.ids.tolist()}/{number}"))
                for number in range(self.num_generations)
            ]
            for prompt in seen
        ]

    def completion(self, draw):
        words = draw.choices(range(20, 300), k=draw.randint(1, 5))
        answer = self._tokenizer("<answer>B</answer>")["input_ids"]
        return [*words, *(answer if draw.random() < 0.7 else [])]


class FixedPPO(Fixed, ppo.VideoPPOTrainer):
    pass


class FixedCARE(Fixed, care.VideoCARETrainer):
    pass


RUNS = {
    "ppo": (
        FixedPPO,
        ppo.PPOSettings(**{**COMMON, "loss_type": "dapo", "updates_per_batch": 2}),
        {"vowels": vowels},
    ),
    "care": (
        FixedCARE,
        care.CARESettings(**COMMON, reference_every=1, reference_decay=0.5),
        {"accuracy": letters},
    ),
}


def train(name, checkpoint, questions, run):
    method, settings, rewards = RUNS[name]
    task = grpo.Task(checkpoint, questions, rewards, settings, SAMPLING, run)
    grpo.train(task, method)


def main(arguments: Path) -> None:
    torch.set_num_threads(1)
    checkpoint, questions, folder = pickle.loads(arguments.read_bytes())
    for name in RUNS:
        train(name, checkpoint, questions, folder / name)
    drawing = replace(grpo.GRPOSettings(**COMMON), extra_draws=2, kl_beta=0.0)
    rewards, run = {"accuracy": letters}, folder / "draws"
    task = grpo.Task(checkpoint, questions, rewards, drawing, SAMPLING, run)
    trainer = grpo.VideoGRPOTrainer(task)
    checkpoints.train(trainer)
    rank = checkpoints.PartialState().process_index
    told = models.fingerprint(trainer.model)
    records.write_json(folder / "draws" / f"weights_{rank}.json", told)


@pytest.fixture(scope="module")
def two(tiny_checkpoint, tiny_questions, tmp_path_factory):
    """The folder of what two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    arguments = folder / "arguments.pickle"
    arguments.write_bytes(pickle.dumps((tiny_checkpoint, tiny_questions, folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.test_rl_processes", arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_same_rollouts_give_the_training_of_one_process(
    two, tiny_checkpoint, tiny_questions, tmp_path, name
):
    train(name, tiny_checkpoint, tiny_questions, tmp_path)
    file = f"rollouts_{name}.jsonl"
    ours, theirs = (records.read_jsonl(run / file) for run in (two / name, tmp_path))
    for row, other in zip(ours, theirs, strict=True):
        numbers = ("advantage", "value", "reference_likelihood")
        for key in numbers:
            assert row.pop(key, 0) == pytest.approx(other.pop(key, 0), abs=1e-4)
        assert row.pop("rewards") == pytest.approx(other.pop("rewards"), abs=1e-5)
        assert row == other
    logs = [
        without_seconds(records.read_jsonl(run / f"train_log_{name}.jsonl"))
        for run in (two / name, tmp_path)
    ]
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
    trained, expected = (
        weights_of(run / "adapters" / name) for run in (two / name, tmp_path)
    )
    assert (trained - expected).norm() <= 1e-3 * expected.norm()


def test_each_process_replaces_its_own_dead_groups(two):
    told = [records.read_json(two / "draws" / f"weights_{i}.json") for i in (0, 1)]
    assert told[0] == told[1]
    rows = records.read_jsonl(two / "draws" / "rollouts.jsonl")
    replaced = records.read_jsonl(two / "draws" / "replaced_rollouts.jsonl")
    log = records.read_jsonl(two / "draws" / "train_log_grpo.jsonl")
    assert len(rows) == 4 * 4 * 2
    counted = [row["replaced_groups"] for row in log]
    own = [sum(row["step"] == step for row in replaced) / 2 for step in range(1, 5)]
    assert counted == own
    assert sum(own) > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
