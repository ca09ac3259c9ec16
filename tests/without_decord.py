"""MiniPlan's data, one step of SFT and one of GRPO, for a process without decord."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.data import footage, questions
from lib.mini.__main__ import main
from lib.train import grpo, rewards, sft
from tests.trainings import GRPO, SAMPLING, SFT

BASE = "lib/mini/base"


def run(folder: Path) -> None:
    main(["write", str(folder / "data"), "--size", "smoke"])
    annotations = folder / "data" / "annotations"
    data, taught_by = folder / "data", "training_with_cot.jsonl"
    taught = questions.read_demonstrations(annotations / taught_by, data)
    asked = questions.read_training(annotations / "training.jsonl", data, 0)
    frames, why = footage.read(taught[0].video, lambda count, rate: [0, count - 1])
    np.save(folder / "frames.npy", frames)
    (folder / "read.txt").write_text(f"{taught[0].video}\n{why}")
    one = replace(SFT, steps=1, max_tokens=1024)
    sft.train_sft(sft.Task(BASE, taught[:4], one, SAMPLING, folder))
    drawn = replace(GRPO, steps=1, max_completion_tokens=48)
    reward = {"accuracy": rewards.REWARDS["accuracy"]}
    grpo.train(grpo.Task(BASE, asked[:4], reward, drawn, SAMPLING, folder))
