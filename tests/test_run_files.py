"""One writer at a time, and nothing deleted that the kit did not make."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from lib import paths, processes, records, run_files
from lib.evaluate.tables import attention_file

HOLD = """
import sys
from pathlib import Path
from lib.run_files import one_writer
with one_writer(Path(sys.argv[1]), "trained"):
    print("mine", flush=True)
    sys.stdin.read()
"""


writing = partial(run_files.one_writer, doing="trained")


@pytest.fixture
def holder(tmp_path):
    """Another process that is writing tmp_path/sft until its stdin ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "sft")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=paths.ROOT, **pipes) as process:
        assert process.stdout.readline() == b"mine\n"
        yield process
        process.kill()


def test_the_second_writer_is_told_who_holds_it(holder, tmp_path):
    wanted = rf"sft is being trained by another process \(pid {holder.pid} on .+ since "
    with pytest.raises(run_files.Busy, match=wanted), writing(tmp_path / "sft"):
        pass
    with writing(tmp_path / "grpo"):
        pass  # another one is free
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with writing(tmp_path / "sft"):
        said = (tmp_path / ".sft.lock").read_text()
        assert said.startswith(f"pid {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_the_second_writer_can_wait(holder, tmp_path):
    holder.stdin.close()
    with writing(tmp_path / "sft", patience=60):
        for _ in range(2):  # this process cannot write twice either
            with pytest.raises(run_files.Busy), writing(tmp_path / "sft"):
                pass


OURS = [
    *("01_data.ipynb", "02_sft.unfinished.ipynb", "03_grpo.html", "report.html"),
    *("pipeline.json", "manifest.json", "chain.json", "perception_asked.json"),
    *("train_log_sft-answers.jsonl", "rollouts.jsonl", "replaced_rollouts_ppo.jsonl"),
    *("predictions_grpo_L1.no_video.jsonl", "predictions_base_L1.settings.json"),
    *("predictions_base_L1.partial-1.jsonl", "attention_grpo.on_base.jsonl"),
    *("figures/accuracy.png", "figures/.accuracy.png.999999999.tmp"),
    *("adapters/sft/sft_settings.json", "adapters/sft/adapter_model.safetensors"),
    *("adapters/.grpo.unfinished/adapter_config.json", ".sft.lock"),
    *("checkpoints/grpo/grpo_settings.json", "checkpoints/grpo/checkpoint-4/a.bin"),
    *("checkpoints/grpo/README.md", "results.md", "judgements_sft_L3.settings.json"),
    *("results_accuracy.csv", "claims.csv"),
    *("launch_train_sft/call_0.pickle", "watched_grpo.jsonl", ".launch_train_sft.lock"),
]
THEIRS = [
    *("thesis.docx", "notes.json", "figures/mine.svg", "data/clip.mp4", ".notes"),
    *("adapters/mine/adapter_model.safetensors", "adapters/sft/notes.docx"),
    *("checkpoints/best/weights.bin", ".thesis.docx.999999999.tmp", "01_data.txt"),
    *("deeper/report.html", "launch_train_sft/notes.txt", "deeper/.x.lock"),
]


@pytest.fixture
def run(tmp_path):
    for name in OURS + THEIRS:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(name)
    state = {"parameters": {}, "notebooks": {}}
    records.write_json(tmp_path / "run" / "pipeline.json", state)
    return tmp_path / "run"


def files_in(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def test_emptying_a_run_leaves_what_the_kit_did_not_make(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("clip.mp4", "report.html"):
        (tmp_path / "elsewhere" / name).touch()
    (run / "checkpoints" / "ppo").symlink_to(tmp_path / "elsewhere")
    (run / "results.json").symlink_to(tmp_path / "elsewhere" / "report.html")
    kept = [*THEIRS, "checkpoints/ppo", "results.json"]
    assert {str(p.relative_to(run)) for p in run_files.empty(run)} == set(kept)
    assert files_in(run) == set(kept)
    assert not (run / "checkpoints" / "grpo").exists()
    assert files_in(tmp_path / "elsewhere") == {"clip.mp4", "report.html"}


def test_a_run_of_the_kit_alone_is_removed_whole(run):
    for name in THEIRS:
        (run / name).unlink()
    assert run_files.empty(run) == [] and not run.exists()
    assert run_files.empty(run) == []


@pytest.mark.parametrize("mark", ["pipeline.json", "manifest.json"])
def test_a_folder_without_the_marks_of_a_run_is_not_emptied(run, mark, tmp_path):
    (run / "pipeline.json").unlink()
    records.write_json(run / mark, {"somebody": {"elses": 1}})
    (tmp_path / "link").symlink_to(run)
    before = files_in(run)
    with pytest.raises(run_files.NotARun, match="nothing was deleted"):
        run_files.empty(run)
    (run / mark).unlink()
    stages = {"01_data": {"environment": {}}}
    records.write_json(run / "manifest.json", stages)
    with pytest.raises(run_files.NotARun, match="link"):
        run_files.empty(tmp_path / "link")
    assert files_in(run) == before - {mark} | {"manifest.json"}
    run_files.empty(run)
    assert files_in(run) == set(THEIRS)


def test_a_run_in_which_somebody_trains_is_not_emptied(run):
    before = {name for name in files_in(run) if not name.endswith(".lock")}
    with writing(run / "sft"), pytest.raises(run_files.Busy):
        run_files.empty(run)
    assert before <= files_in(run)


def test_who_writes_a_file_sweeps_what_a_killed_writer_left_of_it(tmp_path):
    code = (
        "import os, signal, sys\nfrom lib import records\n"
        "with records.replacing(sys.argv[1]) as file:\n"
        "    file.touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a[1].json"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=paths.ROOT)
        assert len(files_in(tmp_path)) == 1
    theirs = {".a1.json.999999999.tmp", ".b.json.999999999.tmp", ".a[1].json.x.tmp"}
    for name in theirs:
        (tmp_path / name).touch()
    records.write_json(path, {})
    assert files_in(tmp_path) == {"a[1].json", *theirs}


def refused(path, write):
    """Call `write` while `path` is held, and see that it is refused at once."""
    folder = path.parent
    with run_files.one_writer(path, "held"):
        before = files_in(folder)
        with pytest.raises(run_files.Busy, match=path.name):
            write()
        assert files_in(folder) == before


def test_trainers_and_evaluations_of_a_run_take_its_locks(tmp_path, tiny_checkpoint):
    from lib.evaluate import attention, evaluate, judge, readers
    from lib.model import models
    from lib.run import launch
    from lib.train import grpo, rl, sft
    from tests.trainings import GRPO, SAMPLING, SFT

    run, sampling = tmp_path / "run", SAMPLING
    given = (tiny_checkpoint, [], {}, GRPO, sampling, run)
    for name in rl.METHODS:
        refused(run / name, partial(rl.Method(name, {}).train, grpo.Task(*given)))
    lessons = (tiny_checkpoint, [], SFT, sampling, run, "answers")
    refused(run / "answers", partial(sft.train_sft, sft.Task(*lessons)))

    model = models.load_model(tiny_checkpoint)
    path, asked = run / "a.jsonl", evaluate.EvalSettings("think", 8, 4)
    settings = (model, None, [], asked, sampling, path)
    refused(path, partial(evaluate.evaluate, *settings))
    refused(path, partial(readers.readings, model, None, [], [], path))
    rows = attention_file(run, "base", "own")
    attending = (model, None, [], {"own": []}, sampling, run, "base")
    refused(rows, partial(attention.measure, *attending))
    asker = judge.Judge("http://localhost/v1", "x")
    todo = judge.Plan(asker, {run / "judgements_a_L1.jsonl": {}}, (), "")
    refused(run / "judgements", partial(judge.carry_out, todo))
    refused(run / "launch_print", partial(launch.call, run, 2, "", print))


CHANGED = []  # a fork of a process that changed it would have the change


def where(job):
    return job, os.getpid(), len(CHANGED)


def test_much_work_is_spread_over_processes_that_are_no_forks(monkeypatch):
    monkeypatch.setitem(globals(), "CHANGED", ["here"])
    here = [*processes.mapped(where, [1, 2], few=2)]
    assert here == [(1, os.getpid(), 1), (2, os.getpid(), 1)]
    jobs, ran, changed = zip(*processes.mapped(where, range(40), few=2), strict=True)
    assert jobs == (*range(40),) and os.getpid() not in ran and not any(changed)


def test_processes_that_share_work_end_with_their_caller_however_it_ends():
    program = "from lib import processes; import time\n"
    program += "shared = processes.mapped(abs, range(64), few=2)\n"
    program += "print(next(shared), flush=True)\n"
    command = [sys.executable, "-c", program + "time.sleep(600)"]
    caller = subprocess.Popen(command, cwd=paths.ROOT, stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"0\n"
    caller.kill()
    caller.communicate(timeout=30)  # ends when nobody can write there any more
