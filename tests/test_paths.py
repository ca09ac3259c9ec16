"""Locations do not depend on the current folder."""

from pathlib import Path

import pytest

from lib import paths


def test_resolve_does_not_read_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (paths.ROOT / "lib" / "paths.py").samefile(paths.__file__)
    assert paths.resolve("data/x") == paths.ROOT / "data" / "x"
    assert paths.resolve(tmp_path / "x") == tmp_path / "x"
    assert paths.resolve("~/x") == Path.home() / "x"


def test_run_dir_is_made_below_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    made = paths.run_dir("mini_seeds-seed=0")
    assert made.is_dir() and made == tmp_path / "outputs" / "mini_seeds-seed=0"


def test_what_must_outlive_the_machine_can_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_OUTPUTS", str(tmp_path / "drive"))
    assert paths.run_dir("mini") == tmp_path / "drive" / "mini"
    assert paths.resolve("outputs/data/x") == tmp_path / "drive" / "data" / "x"
    record = "outputs/reference/mini"  # is committed
    assert paths.resolve(record) == paths.ROOT / record


NO_FOLDERS = [
    *("", ".", "..", "a/b", "a\\b", "../a", ".hidden", "ü" * 101, "a\ud800"),
    *("a\x1b[2J", "a\n", "a\u202e", "a\0"),
]
KEPT = ["data", "reference", "Data", "REFERENCE", "models", "checked"]


@pytest.mark.parametrize("name", NO_FOLDERS + KEPT)
def test_run_dir_refuses_what_is_no_folder_name(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="run_name"):
        paths.run_dir(name)
    assert list(tmp_path.iterdir()) == []


def test_require_says_what_makes_the_missing_file(tmp_path):
    made = tmp_path / "made.json"
    with pytest.raises(FileNotFoundError, match=r"made\.json is missing: run 01_data"):
        paths.require(made, "run 01_data first")
    made.write_text("{}")
    assert paths.require(made, "run 01_data first") == made
