"""Curves grow while a training appends to its log, in one display, and end with it."""

import threading
from pathlib import Path

import nbformat
import pytest
from made_run import grpo_log
from matplotlib.colors import to_hex
from nbclient import NotebookClient

from lib.methods import COLORS
from lib.records import append_jsonl, write_json, write_jsonl
from lib.show import live, training_plots
from lib.train import checkpoints
from tests.forked import wait_until

LOG = "train_log_grpo.jsonl"


class Screen:
    """Stands for IPython's display: keeps what each display showed, state by state."""

    def __init__(self):
        self.displays: list[list] = []

    def display(self, bundle, display_id, raw, metadata):
        assert display_id and raw
        self.displays.append([])
        self.update(bundle, raw, metadata)
        return self

    def update(self, bundle, raw, metadata):
        assert raw
        self.displays[-1].append((bundle, metadata))

    def words(self):
        (states,) = self.displays
        return [bundle["text/plain"] for bundle, _ in states]


@pytest.fixture
def screen(monkeypatch):
    """The screen of a run of papermill; none of the tests leaves a thread behind."""
    made, before = Screen(), threading.active_count()
    monkeypatch.setattr(live, "display", made.display)
    monkeypatch.setattr(live, "INTERVAL", 0.01)
    for mark in live.FRONT_ENDS:
        monkeypatch.delenv(mark, raising=False)
    yield made
    assert threading.active_count() == before


@pytest.fixture
def watched(screen, monkeypatch):
    """The screen of somebody who looks."""
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03_grpo.ipynb")
    return screen


def test_rows_are_read_without_the_one_being_written(tmp_path):
    log, whole = tmp_path / LOG, grpo_log(2)
    assert live.read_rows(log) == []
    write_jsonl(log, whole)
    with open(log, "ab") as file:
        file.write(b'{"step": 3, "rew')
    before = log.read_bytes()
    assert live.read_rows(log) == whole
    assert log.read_bytes() == before, "the trainer's file was touched"
    log.write_bytes(b'{"step": 1')
    assert live.read_rows(log) == []


def test_time_left_follows_from_the_steps_of_this_run():
    seen = [(1000.0, 20), (1030.0, 34), (1060.0, 50)]
    assert live.time_left(seen, 100) == ", about 0:01:40 left"
    assert live.time_left(seen[:1], 100) == ""
    assert live.time_left([(0.0, 100), (9.0, 100)], 100) == ""


def test_one_display_follows_the_log(watched, tmp_path):
    with live.curves(tmp_path, "grpo", total=4):
        for row in grpo_log(4):
            append_jsonl(tmp_path / LOG, [row])
            sentence = f"GRPO, step {row['step']} of 4"
            wait_until(lambda s=sentence: s in watched.words()[-1])
        place, first, second, *_ = watched.words()
        assert place == "GRPO: curves from step 1 on", "it stands above the bars"
        assert first == "GRPO, step 1 of 4", "one state says nothing of speed"
        assert second.startswith("GRPO, step 2 of 4, about 0:0")
    assert watched.words()[-1].startswith("GRPO, step 4 of 4; this cell took 0:")
    for bundle, metadata in watched.displays[0][1:]:
        assert bundle["image/png"].startswith(b"\x89PNG")
        assert metadata["image/png"]["alt"] == bundle["text/plain"]


class Looks:
    """Stands for the event that ends the thread; something happens before each look."""

    def __init__(self, *happens):
        self.left = list(happens)

    def wait(self, seconds):
        return not self.left or self.left.pop(0)()


def test_each_state_is_drawn_once_and_speed_is_of_this_run(
    screen, tmp_path, monkeypatch
):
    log, seconds = tmp_path / LOG, iter([1000.0, 1060.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(seconds))
    write_jsonl(log, grpo_log(27))
    cut_back = lambda: write_jsonl(log, grpo_log(20))  # noqa: E731
    ten_more = lambda: append_jsonl(log, grpo_log(30)[20:])  # noqa: E731
    looks = Looks(bool, cut_back, bool, ten_more, bool)
    live._follow(log, grpo_log(27), live.Cell("grpo", 40), looks)
    expected = ["GRPO, step 20 of 40", "GRPO, step 30 of 40, about 0:01:00 left"]
    assert screen.words() == expected


def test_a_training_that_had_finished_draws_nothing(watched, tmp_path):
    write_jsonl(tmp_path / LOG, grpo_log(4))
    with live.curves(tmp_path, "grpo", total=4):
        pass
    told = "GRPO made no new step; this cell took 0:00:00"
    assert watched.words()[-1].startswith(told)
    assert all(list(bundle) == ["text/plain"] for bundle, _ in watched.displays[0])


def test_without_a_front_end_it_is_drawn_once_and_by_no_thread(screen, tmp_path):
    before = threading.active_count()
    with live.curves(tmp_path, "grpo", total=4):
        assert threading.active_count() == before
        write_jsonl(tmp_path / LOG, grpo_log(4))
    (words,) = screen.words()
    assert words.startswith("GRPO, step 4 of 4; this cell took")


def interrupted(run, rows=5):
    with pytest.raises(KeyboardInterrupt), live.curves(run, "grpo", total=9):
        append_jsonl(run / LOG, grpo_log(rows))
        raise KeyboardInterrupt


def test_an_interrupt_says_where_the_cell_goes_on(watched, tmp_path, capsys):
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoints/grpo/checkpoint-{step}"
        folder.mkdir(parents=True)
        if step < 6:  # the last is not complete
            write_json(folder / checkpoints.MARKER, {"step": step})
    interrupted(tmp_path)
    again = "Run this cell again to go on from the last checkpoint, step 4."
    assert watched.words()[-1] == f"GRPO, step 5 of 9: interrupted.\n{again}"
    assert "image/png" in watched.displays[0][-1][0]
    assert capsys.readouterr().out == f"{again}\n", "for who cannot see the picture"
    assert folder.exists(), "it only looks"


def test_a_log_that_was_begun_anew_hides_no_error(watched, tmp_path):
    write_jsonl(tmp_path / LOG, grpo_log(3))
    with pytest.raises(ValueError), live.curves(tmp_path, "grpo", total=9):
        (tmp_path / LOG).unlink()
        raise ValueError
    assert watched.words()[-1] == "GRPO made no new step: stopped by ValueError"


@pytest.mark.parametrize("rows", [5, 0])
def test_an_interrupt_before_any_checkpoint_starts_over(screen, tmp_path, capsys, rows):
    interrupted(tmp_path, rows)
    assert "start over: there is no checkpoint yet" in capsys.readouterr().out
    assert len(screen.displays) == (rows > 0)


def test_an_error_shows_how_far_it_came_and_goes_on(screen, tmp_path):
    with pytest.raises(ValueError), live.curves(tmp_path, "grpo", total=9):
        append_jsonl(tmp_path / LOG, grpo_log(5))
        raise ValueError
    assert screen.words() == ["GRPO, step 5 of 9: stopped by ValueError"]
    with pytest.raises(ValueError), live.curves(tmp_path, "grpo", total=9):
        raise ValueError  # of wrong settings, before a step
    assert len(screen.displays) == 1


def test_rl_shows_reward_and_length_and_sft_loss_and_accuracy():
    figure = training_plots.curves(grpo_log(5), "care", 20)
    reward, length = figure.axes
    assert "reward" in reward.get_title("left") and "length" in length.get_title("left")
    assert reward.get_xlim() == length.get_xlim() == (0, 20.4)
    assert to_hex(reward.lines[0].get_color()) == COLORS["care"].lower()
    assert list(reward.lines[0].get_ydata()) == [row["reward"] for row in grpo_log(5)]
    rows = [{"step": 1, "loss": 2.0, "token_accuracy": 0.5}]
    loss, accuracy = training_plots.curves(rows, "sft", 20).axes
    assert list(loss.lines[0].get_ydata()) == [2.0]
    assert list(accuracy.lines[0].get_ydata()) == [0.5]


SETUP = """
import sys, threading
sys.path[:0] = ["..", "../tests"]
from lib import records
from lib.show import live
from made_run import grpo_log
from pathlib import Path
drawn, draw, live.INTERVAL = threading.Event(), live.Cell.draw, 0.05
def told(*arguments):
    draw(*arguments)
    drawn.set()
live.Cell.draw = told
"""
TRAIN = """
# As when a message of a widget is handled meanwhile, in a subshell of its own.
tell = get_ipython().display_pub.set_parent
elsewhere = threading.Thread(target=tell, args=({"header": {"msg_id": "other"}},))
elsewhere.start(), elsewhere.join()
with live.curves(Path(RUN), "grpo", total=4):
    for row in grpo_log(4):
        print("step", row["step"], flush=True)
        records.append_jsonl(f"{RUN}/train_log_grpo.jsonl", [row])
        drawn.clear()
        assert LIVE == drawn.wait(30 if LIVE else 0.2)
"""


@pytest.mark.parametrize("looked_at", [True, False])
def test_the_figure_lands_in_the_cell_that_trains(tmp_path, monkeypatch, looked_at):
    """In a real kernel: updates of a thread stay in its cell and leave one figure."""
    for mark in live.FRONT_ENDS:
        monkeypatch.delenv(mark, raising=False)
    if looked_at:
        monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    constants = f"RUN, LIVE = {str(tmp_path)!r}, {looked_at}\n"
    cells = [SETUP + constants, TRAIN, "print('later')"]
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook = nbformat.v4.new_notebook(cells=made)
    where = {"metadata": {"path": str(Path(__file__).parent)}}
    NotebookClient(notebook, resources=where, timeout=120).execute()
    setup, train, later = (cell.outputs for cell in notebook.cells)
    assert setup == [] and [output.output_type for output in later] == ["stream"]
    kinds = [output.output_type for output in train]
    assert kinds.count("display_data") == 1
    place = 0 if looked_at else len(kinds) - 1
    assert kinds.index("display_data") == place
    words = train[place].data["text/plain"]
    assert words.startswith("GRPO, step 4 of 4; this cell took")
    assert train[place].metadata["image/png"]["alt"] == words
