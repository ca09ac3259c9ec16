"""Records are whole or absent, and errors in them name file and line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lib import records
from lib.paths import ROOT


def test_json_round_trip_with_numpy_and_paths(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    records.write_json(path, {"é": np.float32(0.5), "n": np.arange(2), "p": tmp_path})
    expected = {"é": 0.5, "n": [0, 1], "p": tmp_path.as_posix()}
    assert records.read_json(path) == expected
    assert "é" in path.read_text(encoding="utf-8")


def test_tables_are_written_as_csv_beside_the_json(tmp_path):
    part = {"set": "L3", "parts": [{"n": 1}, {"n": 2}]}
    records.write_tables(tmp_path / "c.json", [part])
    assert (tmp_path / "c_parts.csv").read_text() == "set,n\nL3,1\nL3,2\n"
    assert (tmp_path / "c.csv").read_text() == "set\nL3\n"
    rows = [{"set": "L1, é", "share": 0.5}, {"set": "L2", "ci": {"low": None}}]
    records.write_tables(tmp_path / "a.json", {"n": 3, "shares": rows, "none": []})
    assert records.read_json(tmp_path / "a.json")["shares"] == rows
    records.write_tables(tmp_path / "b.json", rows)
    text = (tmp_path / "b.csv").read_text(encoding="utf-8")
    assert text == 'set,share,ci.low\n"L1, é",0.5,\nL2,,\n'
    assert (tmp_path / "a_shares.csv").read_text(encoding="utf-8") == text
    assert len([*tmp_path.iterdir()]) == 7
    records.write_tables(tmp_path / "a.json", {"n": 3, "shares": []})
    assert not (tmp_path / "a_shares.csv").exists(), "of another time"


def test_numbers_that_are_none_become_null(tmp_path):
    rows = [{"a": float("nan"), "b": [1, {"c": np.float64("inf")}], "d": "NaN"}]
    rows += [{"a": np.array([-np.inf, 2.5])}]
    null = [{"a": None, "b": [1, {"c": None}], "d": "NaN"}, {"a": [None, 2.5]}]
    records.write_json(tmp_path / "a.json", rows)
    records.append_jsonl(tmp_path / "a.jsonl", rows)
    assert records.read_json(tmp_path / "a.json") == null
    assert records.read_jsonl(tmp_path / "a.jsonl") == null
    assert '\n  {\n    "a": null' in (tmp_path / "a.json").read_text()


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    records.write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="of type set cannot be written"):
        records.write_json(path, {"new": {1, 2}})
    with open(path, encoding="utf-8") as reader:  # who reads meanwhile sees the old one
        records.write_json(path, {"new": 2})
        assert reader.read() == '{\n  "old": 1\n}\n'
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        records.write_text(tmp_path / "taken", "text")
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", "taken"}


def test_jsonl_round_trip_and_append(tmp_path):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, [{"id": 1, "text": "line\u2028break\n"}])
    records.append_jsonl(path, [{"id": 2}, {"id": 3}])
    rows = records.read_jsonl(path)
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[0]["text"] == "line\u2028break\n"


@pytest.mark.parametrize("bad", ['{"id": ', "3", "[1]", ""])
def test_a_line_that_is_no_row_is_named(bad, tmp_path):
    path, text = tmp_path / "rows.jsonl", f'{{"id": 1}}\n{bad}\n{{"id": 3}}\n'
    path.write_text(text)
    for read in (records.read_jsonl, records.repair_jsonl):
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
            read(path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "torn", ["", '{"id": 3', '{"id": 3}', '{"te": "\xc3', "\0\0\0\n", "3\n"]
)
def test_repair_cuts_off_a_torn_last_line(torn, tmp_path):
    path, whole = tmp_path / "rows.jsonl", b'{"id": 1}\n{"id": 2}\n'
    assert records.repair_jsonl(path) == []
    assert not list(tmp_path.iterdir())
    path.write_bytes(whole + torn.encode("latin-1"))
    assert records.repair_jsonl(path) == [{"id": 1}, {"id": 2}]
    assert path.read_bytes() == whole


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    code = (
        "import sys; from lib.records import write_json\n"
        "for n in range(10**9): write_json(sys.argv[1], [n] * 20_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    while not path.exists():
        time.sleep(0.01)
    for kill in (False, False, True):
        time.sleep(0.1)
        if kill:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        rows = records.read_json(path)
        assert len(rows) == 20_000 and len(set(rows)) == 1


def test_sha256_of_a_file_is_the_standard_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert records.sha256(tmp_path / "a") == digest
    with pytest.raises(FileNotFoundError, match="three is missing"):
        records.sha256(tmp_path / "three")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda file: os.utime(file, (0, 0)), True),
        (lambda file: file.rename(file.with_name("c")), False),
        (lambda file: file.write_text("B"), False),
    ],
)
def test_sha256_of_a_folder_sees_names_contents_and_nothing_else(
    change, same, tmp_path
):
    (tmp_path / "sub").mkdir()
    for name in ("sub/a", "b"):
        (tmp_path / name).write_text(name)
    first = records.sha256(tmp_path)
    change(tmp_path / "b")
    assert (records.sha256(tmp_path) == first) is same


def test_settings_hash_is_of_the_content_alone():
    first, *others = map(
        records.settings_hash,
        ({"lr": 1e-3, "n": 5}, {"n": 5, "lr": 1e-3}, {"lr": 1e-3, "n": 6}),
    )
    assert [found == first for found in others] == [True, False] and len(first) == 12
    with pytest.raises(TypeError):
        records.settings_hash({"path": ROOT})


def test_record_stage_adds_to_the_manifest(tmp_path, monkeypatch):
    records.record_stage(tmp_path, "02_sft", seconds=1.5, seed=0)
    records.record_stage(tmp_path, "03_grpo", seconds=2)
    monkeypatch.setattr(records, "ROOT", tmp_path)  # outside a repository
    records.record_stage(tmp_path, "02_sft", seconds=1.0)
    manifest = records.read_json(tmp_path / "manifest.json")
    assert list(manifest) == ["02_sft", "03_grpo"]
    sft, grpo = manifest.values()
    assert (sft["seconds"], sft["seed"], grpo["seconds"]) == (1.0, 0, 2)
    assert grpo["environment"]["packages"]["torch"]
    assert set(grpo["environment"]) >= {
        *("git_commit", "git_dirty", "python", "packages"),
        *("platform", "cpu_count", "gpu"),
    }
    assert len(grpo["environment"]["git_commit"]) == 40
    assert sft["environment"]["git_commit"] is sft["environment"]["git_dirty"] is None


def test_peak_memory_counts_what_is_held():
    code = (
        "import subprocess, sys; from lib.records import peak_memory_gib as peak\n"
        "before = peak(); held = b'x' * 2**28; print(peak() - before)\n"
        "code = 'x = b\"x\" * 2**29'; subprocess.run([sys.executable, '-c', code])\n"
        "print(peak())"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    grown, with_ended = map(float, told.split())
    assert 0.2 < grown < 0.4 and 0.5 < with_ended < 0.7
