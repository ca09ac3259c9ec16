"""Which machines the kit installs on, and what it does without decord."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from lib import paths, records
from lib.data import footage
from lib.run import launch
from tests import platforms
from tests.platforms import LOCK, PIN, TABLE

REFUSED = {
    "an old Python": "sys.version_info = (3, 10)",
    "a Python without wheels": "sys.version_info = (3, 15)",
    "native Windows": "sys.platform = 'win32'",
}


@pytest.mark.alone  # takes 40 s of requests
def test_every_pin_has_a_wheel_on_every_platform():
    try:
        found = platforms.everywhere()
    except platforms.Offline as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    text = TABLE.read_text(encoding="utf-8")
    assert platforms.table(found) == text, "run python -m tests.platforms"


def test_a_package_without_a_wheel_is_noticed():
    extra = paths.ROOT / "params" / "accelerate" / "requirements.txt"
    try:
        with pytest.raises(RuntimeError, match="deepspeed"):
            platforms.packages("Linux aarch64", "3.14", extra)
    except platforms.Offline as error:
        pytest.skip(str(error))


def test_the_lock_holds_each_requirement_with_hashes_and_no_address():
    lock = LOCK.read_text()
    assert not re.search(r"://|index-url|find-links", lock)
    blocks = re.split(r"\n(?=\S)", lock)
    bare = [b for b in blocks if PIN.match(b) and "--hash=sha256:" not in b]
    assert not bare
    for file in ("requirements.txt", "params/accelerate/requirements.txt"):
        wanted = {
            (name.lower().replace("_", "-"), version)
            for name, version in PIN.findall((paths.ROOT / file).read_text())
        }
        assert wanted <= {*PIN.findall(lock)}, f"{file} has changed: run make lock"


def test_the_devcontainer_has_a_python_of_ours_and_installs_the_kit():
    text = (paths.ROOT / ".devcontainer" / "devcontainer.json").read_text()
    container = json.loads(text)
    assert container["postCreateCommand"] == "make install"
    assert container["image"].rpartition(":")[2] in platforms.PYTHONS


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_other_machines_are_refused_in_one_sentence(change):
    code = f"import sys, runpy; {change}; runpy.run_path('lib/__init__.py')"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("The kit needs Python 3.11 to 3.14 on Linux or macOS")
    assert "WSL" in ran.stderr and ran.stderr.count("\n") == 1


def test_without_decord_pyav_reads_the_same_and_both_trainings_run(tmp_path):
    code = "import sys; from pathlib import Path; sys.modules['decord'] = None; "
    code += "from tests import without_decord; without_decord.run(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    clip, why = (tmp_path / "read.txt").read_text().split("\n")
    frames, by_pyav = footage.read(clip, lambda count, rate: [0, count - 1])
    assert (by_pyav, why) == ("", "decord is not installed")
    assert np.array_equal(np.load(tmp_path / "frames.npy"), frames)
    for label in ("sft", "grpo"):
        assert len(records.read_jsonl(tmp_path / f"train_log_{label}.jsonl")) == 1
        assert (tmp_path / "adapters" / label / "adapter_model.safetensors").exists()


def test_zero3_without_deepspeed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    how = "zero3.yaml needs DeepSpeed: pip install -r params/accelerate/requirements"
    with pytest.raises(ModuleNotFoundError, match=how):
        launch.call(tmp_path, 2, "params/accelerate/zero3.yaml", print)
    assert launch.missing_package("params/accelerate/fsdp2.yaml") == ""
