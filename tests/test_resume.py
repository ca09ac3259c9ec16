"""Rows that a killed call left are kept, torn batches are not, others are refused."""

from collections import namedtuple

import pytest

from lib import records
from lib.evaluate import resume

Item = namedtuple("Item", "id")
ITEMS = [Item(key) for key in "abcde"]  # in batches ca, bd and e


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def finished(path, items=ITEMS, kept="made", again=(), of=None, **settings):
    """The words of all rows, and the ids of the batches that were made for them."""
    made = []

    def make(batches):
        files = resume.partial_files(path)
        left = {row["id"] for file in files for row in records.read_jsonl(file)}
        for batch in batches:
            assert not left & {item.id for item in batch}  # no half of it is kept
            made.append("".join(item.id for item in batch))
            yield [{"id": item.id, "word": kept} for item in batch]

    settings = {"size": 2, **settings}
    how = {"shape": lambda item: "cabde".index(item.id), "again": lambda rows: {*again}}
    given = (path, items, lambda: settings, make, "answered", 2)
    rows = resume.finish(*given, **how, of=of)
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert not resume.partial_files(path)
    return "".join(row["word"][0] for row in rows), made


def left(path, process, ids, end=""):
    """What a kill leaves of a process."""
    file = resume.partial_file(path, process)
    records.write_json(resume.settings_file(path), {"size": 2})
    records.write_jsonl(file, [{"id": key, "word": "kept"} for key in ids])
    with open(file, "a") as partial:
        partial.write(end)


def test_what_is_finished_is_not_made_again(path):
    assert finished(path) == ("mmmmm", ["ca", "bd", "e"])
    before = path.stat().st_mtime_ns
    resume.partial_file(path, 3).touch()  # a kill right behind the last write
    assert finished(path) == ("mmmmm", [])
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("first", "second", "words", "made"),
    [
        ("", "", "mmmmm", ["ca", "bd", "e"]),
        ("ca", "", "kmkmm", ["bd", "e"]),
        ("cab", "", "kmkmm", ["bd", "e"]),  # of a batch, half
        ("cab", "e", "kmkmk", ["bd"]),
        ("ebd", "c", "mkmkk", ["ca"]),
        ("bd", "cae", "kkkkk", []),
    ],
)
def test_whole_batches_are_kept_whoever_made_them(path, first, second, words, made):
    left(path, 0, first, end='{"id": "x')
    left(path, 1, second)
    assert finished(path) == (words, made)


def test_batches_of_some_items_are_made_again(path):
    finished(path, kept="kept")
    assert finished(path, again={"d"}) == ("kmkmk", ["bd"])
    assert finished(path, again=set()) == ("kmkmk", [])


def test_more_items_keep_the_rows_of_the_earlier_ones(path, monkeypatch):
    """Also where a kill came before the new ones were there, or behind the last write;
    rows that differ in more than their items are refused."""
    fewer = [Item(key) for key in "bd"]

    def of(ids):
        return {"size": 2, "asked": "".join(ids)}

    assert finished(path, fewer, kept="kept", of=of, asked="bd") == ("kk", ["bd"])
    with pytest.raises(ValueError, match="asked"):
        finished(path, asked="abcde")  # without `of` it is another file
    with monkeypatch.context() as stopped:
        stopped.setattr(resume.records, "append_jsonl", None)  # a kill
        with pytest.raises(TypeError):
            finished(path, of=of, asked="abcde")
    assert not path.exists() and resume.earlier_file(path).exists()
    resume.partial_file(path, 0).unlink(missing_ok=True)
    assert finished(path, of=of, asked="abcde") == ("mkmkm", ["ca", "e"])
    assert not resume.earlier_file(path).exists()
    assert finished(path, of=of, asked="abcde") == ("mkmkm", [])
    with pytest.raises(ValueError, match="size"):
        finished(path, of=lambda ids: of(ids) | {"size": 3}, asked="abcde", size=3)


def test_rows_of_other_settings_are_refused_by_name(path):
    finished(path, seed=1, shown=None)
    with pytest.raises(ValueError, match=r"seed \(1 there, 2 now\)\. Use another"):
        finished(path, seed=2, shown=None)
    with pytest.raises(ValueError, match=r"size \(2 there, 3 now\)"):
        finished(path, seed=1, shown=None, size=3)
    with pytest.raises(ValueError, match=r"shown \(None there, None now\)"):
        finished(path, seed=1)  # there it was given
    path.rename(resume.partial_file(path, 1))
    with pytest.raises(ValueError, match=r"seed \(1 there, 2 now\)"):
        finished(path, seed=2, shown=None)
    resume.settings_file(path).unlink()
    with pytest.raises(ValueError, match=r"settings\.json is missing"):
        finished(path, seed=1, shown=None)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_row_of_nan_is_an_error_and_is_not_kept(path, number):
    """In a record it would be null, as what is not known."""
    row = {"id": "a", "known": None, "masses": [[0.5, number]]}
    given = (lambda: {}, lambda batches: ([row] for _ in batches), "measured")
    with pytest.raises(FloatingPointError, match="numbers of a are NaN"):
        resume.finish(path, ITEMS[:1], *given)
    assert not path.exists() and not resume.partial_files(path)


def test_rows_of_other_items_are_refused(path):
    left(path, 0, "cax")
    with pytest.raises(ValueError, match="rows of other items: delete it"):
        finished(path)


@pytest.mark.parametrize("kept", [[], [0, 1], [0, 1, 2, 3, 4, 0], [1, 0, 2, 3, 4]])
def test_a_finished_file_with_other_rows_than_it_had_is_refused(path, kept):
    finished(path)
    rows = records.read_jsonl(path)
    records.write_jsonl(path, [rows[i] for i in kept])
    with pytest.raises(ValueError, match=f"{len(kept)} rows that are not those of 5"):
        finished(path)
    path.unlink()
    assert finished(path) == ("mmmmm", ["ca", "bd", "e"])


def test_two_items_with_one_id_are_refused(path):
    with pytest.raises(ValueError, match="same id"):
        finished(path, items=[*ITEMS, Item("a")])


def test_a_file_of_another_name_is_nobody_s_share(path):
    own = path.with_name("rows.partial-notes.jsonl")
    own.write_text("kept by a user\n")
    finished(path)
    finished(path)
    assert own.read_text() == "kept by a user\n"
