"""A notebook on a machine without the kit: its first cell, and what that installs."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lib import machine, paths
from lib.run.params import notebook_paths

PINNED = dict(machine.PIN.findall((paths.ROOT / "requirements.txt").read_text()))


def first_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


CELL = first_cell(notebook_paths()[0])
FOUND = CELL + "\nfrom lib import paths; print(paths.ROOT, paths.outputs_dir())"


def run(code, folder, **environment):
    env = {"PATH": "/usr/bin:/bin", **environment}
    how = {"cwd": folder, "env": env, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], **how)


@pytest.fixture
def address(tmp_path):
    """Of a git repository with the part of the kit that a first cell needs."""
    source = tmp_path / "source"
    for file in ("lib/__init__.py", "lib/machine.py", "lib/paths.py", "lib/records.py"):
        (source / "lib").mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / file, source / file)
    shutil.copy(paths.ROOT / "requirements.txt", source)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "kit"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    return source.as_uri()


def test_every_notebook_begins_with_the_same_cell():
    assert {first_cell(path) for path in notebook_paths()} == {CELL}


@pytest.mark.parametrize("folder", [".", "notebooks", "lib/data"])
def test_at_home_the_kit_is_found_upwards_and_nothing_is_installed(folder):
    ran = run(FOUND, paths.ROOT / folder)
    assert ran.stdout == f"{paths.ROOT} {paths.ROOT / 'outputs'}\n", ran.stderr


def test_elsewhere_the_kit_is_fetched_once(address, tmp_path):
    work, drive = tmp_path / "work", tmp_path / "drive"
    work.mkdir()
    code = FOUND.replace('outputs_dir = ""', f"outputs_dir = {str(drive)!r}")
    for url in (address, ""):  # the second time it is there
        ran = run(code, work, KIT_URL=url)
        assert ran.stdout == f"{work / 'kit'} {drive}\n", ran.stderr
    home = run(FOUND, work / "kit" / "lib", KIT_OUTPUTS=str(drive))
    assert home.stdout == f"{work / 'kit'} {drive}\n", home.stderr


def test_without_an_address_the_cell_says_what_to_set(tmp_path):
    ran = run(CELL, tmp_path)
    assert "the kit is not here: set kit_url" in ran.stderr and ran.returncode == 1


@pytest.fixture
def install(monkeypatch):
    """What `prepare` hands to pip on a machine with these versions: (packages, kept)"""

    def install(**changes):
        found, given = {**PINNED, **changes}, []

        def pip(command, check):
            *packages, _, kept = command[5:]
            given.extend((packages, Path(kept).read_text()))

        monkeypatch.setattr(machine, "version", found.get)
        monkeypatch.setattr(machine, "subprocess", SimpleNamespace(run=pip))
        monkeypatch.setattr(machine.sys, "base_prefix", "another")
        monkeypatch.setattr(machine.sys, "prefix", "another")
        machine.prepare()
        return given

    return install


def test_torch_numpy_and_jupyter_stay_as_they_are(install):
    packages, kept = install(torch="2.11.0+cu126", numpy="2.1.0", trl=None, peft="0.1")
    assert packages == [f"trl=={PINNED['trl']}", f"peft=={PINNED['peft']}"]
    assert "torch==2.11.0+cu126\n" in kept and "numpy==2.1.0\n" in kept
    assert "jupyterlab==" in kept and "trl" not in kept


def test_a_machine_that_lacks_nothing_installs_nothing(install):
    assert install(ruff=None, statsmodels=None) == []  # tests alone need these


@pytest.mark.parametrize("torch", ["2.10.0", "1.13.1+cu117"])
def test_an_older_torch_is_refused(install, torch):
    with pytest.raises(RuntimeError, match=r"has torch .*: give it 2\.11 or newer"):
        install(torch=torch)
