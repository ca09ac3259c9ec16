"""Real notebooks through the real command, in a small copy of the kit.

The copy holds what the command needs of lib/ and tiny notebooks. Each notebook adds a
line to ledger.txt when it runs, so the ledger shows what was executed and what was not.
"""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
import pytest

from lib import chain
from lib.paths import ROOT
from tests.forked import wait_until
from tests.launched import is_running

MODULES = [
    *("__init__", "chain", "doors", "methods", "paths", "records"),
    *("run_files", "markup", "processes", "run/__init__", "run/__main__"),
    *("run/params", "run/pipeline", "run/cards"),
]
NAMED = 'run_name: str = "smoke"  # folder below outputs/'
NOTED = 'with open("../ledger.txt", "a") as file:\n    _ = file.write(f"{line}\\n")'


class Kit:
    """A checkout with its own lib, notebooks and outputs."""

    def __init__(self, root: Path):
        self.root = root
        (root / "lib" / "run").mkdir(parents=True)
        (root / "notebooks").mkdir()
        for name in MODULES:
            shutil.copy(ROOT / f"lib/{name}.py", root / f"lib/{name}.py")

    def notebook(self, name: str, *cells: str, parameters: str = "") -> None:
        tags = {"tags": ["parameters"]}
        first = nbformat.v4.new_code_cell(f"{NAMED}\n{parameters}", metadata=tags)
        rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
        notebook = nbformat.v4.new_notebook(cells=[first, *rest])
        nbformat.write(notebook, self.root / "notebooks" / f"{name}.ipynb")

    def params(self, text: str, name: str = "a.yaml") -> str:
        (self.root / name).write_text(text)
        return name

    def start(self, *arguments: str, before=None, **environment) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "lib.run", *arguments],
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )

    def run(self, *arguments: str, **environment) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def ledger(self) -> list[str]:
        path = self.root / "ledger.txt"
        return path.read_text().split() if path.exists() else []

    def forget(self) -> None:
        (self.root / "ledger.txt").unlink(missing_ok=True)

    def output(self, name: str) -> Path:
        return self.root / "outputs" / name


@pytest.fixture
def kit(tmp_path) -> Kit:
    """With a run `a` of one notebook."""
    made = Kit(tmp_path)
    made.notebook("01_one", noting("one"))
    made.params("run_name: a\n")
    return made


def noting(text: str) -> str:
    """A cell that adds a line, an f-string of the notebook's names, to the ledger."""
    return f'line = f"{text}"\n{NOTED}'


def test_a_finished_notebook_runs_again_only_if_its_inputs_change(kit):
    quick = [f"import time; time.sleep({second})" for second in [0.02] * 50]
    own = "lr: float = 0.5  # rate"
    kit.notebook("02_two", noting("two:{lr}"), *quick, parameters=own)
    code, out, err = kit.run("a.yaml")
    assert code == 0, err
    assert err.count("%|") < 8  # in a log the bar stands still for a minute
    assert f"the results are in {kit.output('a')}" in out
    assert "cell" in err and "100%" in err and "WARNING" not in err
    assert sorted(path.name for path in kit.output("a").glob("*.ipynb")) == [
        "01_one.ipynb",
        "02_two.ipynb",
    ]
    assert kit.ledger() == ["one", "two:0.5"]

    code, out, _ = kit.run("a.yaml")
    assert code == 0 and "02_two: unchanged, not run again" in out
    assert kit.ledger() == ["one", "two:0.5"]

    kit.forget()
    kit.params("run_name: a\nlr: 2\n")
    assert kit.run("a.yaml")[0] == 0
    assert kit.ledger() == ["two:2.0"]

    kit.forget()
    (kit.root / "lib" / "new.py").write_text("")
    assert kit.run("a.yaml")[0] == 0
    assert kit.ledger() == ["one", "two:2.0"]


LEAVING = """import sys
sys.path.append("..")
from lib import chain, paths, records
chain.record_stage = lambda *_: None
run = paths.run_dir(run_name)
records.write_json(run / "manifest.json", {"02_two": {}})
records.write_json(run / "results.json", [number])
chain.close(run, "02_two")
"""


def test_what_a_notebook_left_by_hand_or_before_a_stop_is_made_again(kit):
    """Its page, or its parameters, would be those of other numbers."""
    kit.notebook("02_two", LEAVING, noting("two"), parameters="number: int = 1  # one")
    assert kit.run("a.yaml")[0] == 0
    by_hand = LEAVING.replace("..", ".").replace("[number]", "[2]")
    given = [sys.executable, "-c", f"run_name = 'a'\n{by_hand}"]
    subprocess.run(given, cwd=kit.root, check=True)
    assert kit.run("a.yaml")[0] == 0 and kit.ledger() == ["one", "two", "two"]
    assert json.loads((kit.output("a") / "results.json").read_text()) == [1]
    chain.verify(kit.output("a"))

    kit.notebook("01_one", "raise ValueError")
    assert kit.run("a.yaml", "number=3")[0] == 1
    with pytest.raises(chain.NotAsLeft, match="what 02_two left is of another start"):
        chain.verify(kit.output("a"))


def test_the_kernel_is_ours_whatever_python3_is_registered_as(kit):
    """And a name with braces is a folder as any other."""
    kit.params("run_name: 'a{b}{run_name}'\n")
    spec = kit.root / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    foreign = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    spec.write_text(json.dumps(foreign))
    cell = (
        "import json, os, sys\n"
        "seen = [sys.executable, os.getcwd(), os.environ['PYTHONHASHSEED'],"
        " os.environ['HF_HUB_DISABLE_TELEMETRY']]\n"
        "json.dump(seen, open('../seen.json', 'w'))"
    )
    kit.notebook("01_one", cell)
    path = str(kit.root / "jupyter")
    code, _, err = kit.run("a.yaml", JUPYTER_PATH=path, PYTHONHASHSEED="7")
    assert code == 0, err
    seen = json.loads((kit.root / "seen.json").read_text())
    assert seen == [sys.executable, str(kit.root / "notebooks"), "0", "1"]
    assert (kit.output("a{b}{run_name}") / "01_one.ipynb").exists()


def test_a_kernel_listens_at_no_port_and_leaves_no_folder(kit):
    """A port may be taken by another process before the kernel starts."""
    asked = "import ipykernel\nfound = ipykernel.get_connection_info(unpack=True)"
    kit.notebook("01_one", asked, noting("{found['transport']} {found['ip']}"))
    code, _, err = kit.run("a.yaml")
    assert code == 0, err
    transport, place = kit.ledger()
    assert transport == "ipc" and not Path(place).parent.exists()


def test_a_failing_cell_is_shown_and_what_was_finished_is_kept(kit):
    """And no escape of its data reaches the terminal."""
    kit.notebook("02_two", "raise ValueError('\\x1b]0;x\\x07' + chr(155))  # failing")
    kit.notebook("03_three", noting("three"))
    code, out, err = kit.run("a.yaml")
    assert code == 1 and "finished" not in out
    report = err[err.index("failed:") :]
    assert f"failed: {kit.output('a') / '02_two.unfinished.ipynb'}" in report
    assert ")  # failing\n" in report and report.count("\n    raise ValueError(") == 1
    assert report.endswith("\nValueError: \\x1b]0;x\\x07\\x9b\n")
    assert "\x1b" not in report
    assert kit.ledger() == ["one"]
    assert not (kit.output("a") / "02_two.ipynb").exists()

    kit.notebook("02_two", noting("two"))
    assert kit.run("a.yaml")[0] == 0
    assert kit.ledger() == ["one", "two", "three"]
    assert not (kit.output("a") / "02_two.unfinished.ipynb").exists()


def test_a_dead_kernel_is_a_failure(kit):
    kit.notebook("01_one", "import os\nos.kill(os.getpid(), 9)")
    code, _, err = kit.run("a.yaml")
    assert code == 1
    assert "    os.kill(os.getpid(), 9)\n" in err and "died. It may" in err


def test_only_the_notebooks_that_are_named_run(kit):
    """And without the analysis there is no report."""
    write_report_module(kit)
    for name in ("02_two", "05_analysis"):
        kit.notebook(name, noting(name))
    kit.params("run_name: a\nnotebooks: [02_two, 01_one]\n")
    code, out, err = kit.run("a.yaml")
    assert code == 0 and "to read" not in out, err
    assert kit.ledger() == ["one", "02_two"]


def test_a_killed_run_goes_on_with_the_notebook_it_was_in(kit):
    wait = "import os, pathlib, time\nwhile not pathlib.Path('../go').exists():\n"
    kit.notebook(
        "02_two", noting("pid{__import__('os').getpid()}"), wait + "    time.sleep(0.1)"
    )
    process = kit.start("a.yaml")
    wait_until(lambda: len(kit.ledger()) == 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kernel = int(kit.ledger()[1].removeprefix("pid"))
    wait_until(lambda: not is_running(kernel))
    assert not (kit.output("a") / "02_two.ipynb").exists()

    kit.forget()
    (kit.root / "go").touch()
    code, out, err = kit.run("a.yaml")
    assert code == 0, err
    assert "01_one: unchanged" in out and len(kit.ledger()) == 1
    assert (kit.output("a") / "02_two.ipynb").exists()


def test_faults_stop_everything_before_it_starts(kit):
    kit.notebook("01_one", noting("one"), parameters="lr: float = 0.5  # rate")
    kit.params("run_name: a\nlrr: 1.0\nlr: fast\n")
    code, out, err = kit.run("a.yaml", "--jobs", "2")
    assert (code, out) == (2, "")
    assert err.startswith("nothing was started:\n") and err.count("\n") == 3
    assert "a.yaml, line 2, lrr" in err and "did you mean lr?" in err
    assert "a.yaml, line 3, lr" in err and "'fast'" in err
    assert kit.ledger() == [] and not (kit.root / "outputs").exists()


def test_fresh_removes_a_run_alone_unless_another_process_holds_it(kit):
    old = kit.output("a") / "metrics.json"
    old.parent.mkdir(parents=True)
    old.touch()
    code, _, err = kit.run("a.yaml", "--fresh")
    assert code == 1 and "nothing was deleted" in err and "Traceback" not in err
    assert old.exists() and kit.ledger() == []
    assert kit.run("a.yaml")[0] == 0
    theirs = kit.output("a") / "figures" / "thesis.docx"
    theirs.parent.mkdir()
    theirs.touch()
    kit.forget()
    with open(kit.output(".a.lock"), "w") as lock:
        lock.write("pid 1 on b")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = kit.run("a.yaml", "--fresh")
    assert code == 1 and "a is being run by another process (pid 1 on b)" in err
    assert old.exists() and kit.ledger() == []
    code, out, err = kit.run("a.yaml", "--fresh")
    assert code == 0, err
    assert f"{theirs} stays" in out and theirs.exists()
    assert not old.exists() and kit.ledger() == ["one"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_told_to_end_takes_its_kernel_along(kit, how):
    sleeping_notebook(kit)
    # Under nohup, or behind a shell's `&`, the tests were told to ignore some of these.
    process = kit.start("a.yaml", before=lambda: signal.signal(how, signal.SIG_DFL))
    wait_until(lambda: kit.ledger())
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how and "the same command goes on" in err
    assert "Traceback" not in err
    assert not is_running(int(kit.ledger()[0]))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_python_clears_up_is_not_lost(how):
    code = (
        "import signal, time\nfrom lib.run import pipeline\n"
        "class Last:\n    def __del__(self): signal.raise_signal(%d)\n"
        "pipeline._end_as_asked()\n"
        "try:\n    Last()\n    time.sleep(60)\n"
        "except KeyboardInterrupt as told:\n    print(*told.args)"
    )
    quiet = {"capture_output": True, "text": True, "timeout": 50, "cwd": ROOT}
    quiet["preexec_fn"] = partial(signal.signal, how, signal.SIG_DFL)
    done = subprocess.run([sys.executable, "-c", code % how], **quiet)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_ends_ends_its_runs_and_can_start_again_at_once(kit, how):
    sleeping_notebook(kit, "seed: int = 0  # of everything random")
    kit.params("sweep: {seed: [0, 1]}\n", "seeds.yaml")
    process = kit.start("seeds.yaml", "--jobs", "2")
    wait_until(lambda: len(kit.ledger()) == 2)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    (kit.root / "go").touch()
    code, out, err = kit.run("seeds.yaml", "--jobs", "2")
    assert code == 0, out + err
    assert len(kit.ledger()) == 4
    assert not any(is_running(int(kernel)) for kernel in kit.ledger())


def sleeping_notebook(kit, parameters: str = "") -> None:
    """01_one notes its kernel's process and waits for the file `go`."""
    wait = "import pathlib, time\nwhile not pathlib.Path('../go').exists():\n"
    noted = noting("{__import__('os').getpid()}")
    kit.notebook("01_one", noted, wait + "    time.sleep(0.1)", parameters=parameters)


@pytest.mark.parametrize(
    ("kind", "most", "cell", "told"),
    [
        # papermill itself cannot save the notebook; then a cell cannot save a file
        (resource.RLIMIT_FSIZE, 2**16, "print('x' * 2**18)", "allow larger files"),
        (
            resource.RLIMIT_FSIZE,
            2**16,
            "open('../large', 'wb').write(bytes(2**18))",
            "01_one stopped: OSError: [Errno 27] File too large; allow larger files",
        ),
        (resource.RLIMIT_NOFILE, 64, "1", "Too many open files for 64 at most; allow"),
        (
            resource.RLIMIT_AS,
            2**31,
            "bytes(2**33)",
            "MemoryError: ; the memory is used",
        ),
    ],
)
def test_what_the_system_lacks_is_said_in_one_sentence(kit, kind, most, cell, told):
    kit.notebook("01_one", noting("one"), cell)
    limit = partial(resource.setrlimit, kind, (most, most))
    code, _, err = kit.run("a.yaml", before=limit)
    assert code == 1 and told in err and "Traceback" not in err
    assert err.strip().splitlines()[-1].endswith("then run it again")
    kit.notebook("01_one", noting("one"), cell.replace("2**18", "9").replace("33", "3"))
    assert kit.run("a.yaml")[0] == 0


def test_a_place_that_cannot_be_written_is_named(kit):
    kit.output(".a.lock").mkdir(parents=True)  # as root may write anywhere else
    code, _, err = kit.run("a.yaml")
    assert code == 1 and f"{kit.output('.a.lock')}: " in err and "Traceback" not in err


PAGE = """
def write(run):
    with open("ledger.txt", "a") as file:
        pages = ",".join(sorted(path.stem for path in run.glob("*.ipynb")))
        file.write(f"report:{pages}\\n")
    (run / "report.html").touch()
"""


def write_report_module(kit):
    folder = kit.root / "lib" / "show"
    folder.mkdir()
    (folder / "report.py").write_text(PAGE)


def test_a_run_with_an_analysis_ends_with_its_report(kit):
    write_report_module(kit)
    early = "open(f'../outputs/{run_name}/report.html', 'w').close()"
    kit.notebook("05_analysis", noting("five"), early)
    written = "report:01_one,05_analysis"
    code, out, err = kit.run("a.yaml")
    assert (code, kit.ledger()) == (0, ["one", "five", written]), err
    report = kit.output("a") / "report.html"
    assert out.splitlines()[-1] == f"to read: {report}"

    kit.forget()
    assert kit.run("a.yaml")[0] == 0
    assert kit.ledger() == []

    report.unlink()
    code, out, _ = kit.run("a.yaml")
    assert (code, kit.ledger()) == (0, [written])
    assert "05_analysis: unchanged, not run again" in out

    # As when a run was killed between its last notebook and the report.
    kit.forget()
    state = json.loads((kit.output("a") / "pipeline.json").read_text())
    del state["reported"]
    (kit.output("a") / "pipeline.json").write_text(json.dumps(state))
    assert kit.run("a.yaml")[0] == 0
    assert kit.ledger() == [written]


def test_a_sweep_writes_the_report_that_a_finished_run_lacks(kit):
    write_report_module(kit)
    written = "report:01_one,05_analysis"
    kit.notebook("05_analysis", noting("{seed}"), parameters="seed: int = 0  # any")
    kit.params("sweep: {seed: [1]}\n", "seeds.yaml")
    assert kit.run("seeds.yaml")[0] == 0
    assert kit.ledger() == ["one", "1", written]
    (kit.output("seeds-seed_1") / "report.html").unlink()
    kit.forget()
    assert kit.run("seeds.yaml")[0] == 0
    assert kit.ledger() == [written]


METRICS = """
import json
assert seed != 1 or __import__("pathlib").Path("../go").exists()
numbers = {"n": 4, "accuracy": seed / 4, "accuracy_lenient": 1.0}
with open(f"../outputs/{run_name}/metrics.json", "w") as file:
    json.dump({"base": {"L1": numbers}, "sft": {"L1": numbers}}, file)
"""


def test_a_sweep_runs_all_keeps_what_finished_and_writes_one_table(kit):
    threads = "{__import__('os').getenv('OMP_NUM_THREADS')}"
    kit.notebook(
        "01_one",
        noting("{seed}:" + threads),
        METRICS,
        parameters="seed: int = 0  # of everything random",
    )
    kit.params("sweep: {seed: [0, 1, 2]}\n", "seeds.yaml")
    code, out, err = kit.run("seeds.yaml", "--jobs", "2")
    assert code == 1, err
    assert f"seeds-seed_1: failed, see {kit.output('seeds')}/seeds-seed_1.log" in out
    assert "AssertionError" in (kit.output("seeds") / "seeds-seed_1.log").read_text()
    each = max(1, len(os.sched_getaffinity(0)) // 2)
    assert sorted(kit.ledger()) == [f"{seed}:{each}" for seed in range(3)]
    rows = json.loads((kit.output("seeds") / "runs.json").read_text())
    states = ["finished", "failed at 01_one", "finished"]
    assert [row["status"] for row in rows] == states
    assert "metrics" not in rows[1]
    assert rows[2]["metrics"]["sft"]["L1"]["accuracy"] == 0.5

    kit.forget()
    (kit.root / "go").touch()
    commands = kit.run("seeds.yaml", "--print")[1].splitlines()
    assert len(commands) == 3 and kit.ledger() == []
    subprocess.run(commands[1], shell=True, check=True, capture_output=True)
    assert [line[0] for line in kit.ledger()] == ["1"]
    assert kit.run("seeds.yaml")[0] == 0
    assert len(kit.ledger()) == 1
    table = (kit.output("seeds") / "runs.md").read_text().splitlines()
    assert table[0] == "| run | seed | status | base L1 | sft L1 | seconds |"
    assert table[3].startswith("| seeds-seed_1 | 1 | finished | 0.250 | 0.250 | ")
    assert len(table) == 5

    state = kit.output("seeds-seed_2") / "pipeline.json"
    state.write_text(state.read_text().replace('"seconds": ', '"seconds": 9'))
    kit.forget()
    code, _, err = kit.run("seeds.yaml")
    assert code == 1 and "not as the pipeline wrote it" in err and not kit.ledger()
    assert kit.run("seeds.yaml", "--fresh")[0] == 0 and len(kit.ledger()) == 3
