"""Calls in several processes, as a notebook makes them: results, words and endings."""

import ast
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from lib import paths
from lib.run import launch
from lib.run.pipeline import OwnKernel
from lib.train import reward_stages, rewards
from tests import launched
from tests.forked import free_port, wait_until
from tests.launched import is_running

HANG = 300  # seconds; an idle machine needs 5
IMPORTS = "import sys, pathlib; sys.path.append({root!r})\n"
CELL = "from lib.run import launch; from tests import launched\n"
CELL += "folder = pathlib.Path({folder!r})\n"
CELL += "launch.call(folder, 2, '', launched.{name}, folder)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launched")


class Kernel:
    """A fresh kernel that runs the cells of an unwritten notebook."""

    def __init__(self, folder):
        self.folder = folder
        self.client = NotebookClient(
            nbformat.v4.new_notebook(), kernel_manager_class=OwnKernel, timeout=HANG
        )

    def run(self, source):
        tags = {"tags": ["raises-exception"]}
        cell = nbformat.v4.new_code_cell(source, metadata=tags)
        self.client.nb.cells.append(cell)
        return self.client.execute_cell(cell, len(self.client.nb.cells) - 1)

    def call(self, name):
        """The outputs of a cell that calls a function of launched.py."""
        return self.run(CELL.format(folder=str(self.folder), name=name)).outputs


@pytest.fixture(scope="module")
def kernel(folder):
    made = Kernel(folder)
    with made.client.setup_kernel():
        made.run(IMPORTS.format(root=str(paths.ROOT)))
        yield made


def waiting_processes(folder):
    """The pids of a call of `launched.wait` once all of them are there."""
    files = [folder / "pids_0", folder / "pids_1"]
    wait_until(lambda: all(file.exists() for file in files), "no processes", HANG)
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    for file in files:
        file.unlink()
    return pids


def assert_gone(pids):
    """Within some seconds; what is left is ended, so that no test leaves anything."""
    with suppress(AssertionError):
        wait_until(lambda: not any(map(is_running, pids)), seconds=20)
    left = [pid for pid in pids if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def once_waiting(folder, act):
    """Start a thread that calls `act` when the processes wait; returns their pids."""
    pids = []

    def watch():
        pids.extend(waiting_processes(folder))
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, pids


def test_a_bar_moves_in_one_place_and_the_first_process_talks(kernel):
    first, told, bar, last, result = kernel.call("talk")
    assert first["text"] == "process 0 talks\n"
    assert told["data"] == {"text/plain": "trained 300/400 [now]a warning"}
    assert bar["data"] == {"text/plain": "trained 400/400 [now]"}
    assert last["text"] == "last words, ä and ✓\n"
    assert result["data"]["text/plain"] == "'result'"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "fail",
            r"fail failed: in process 1:\nTraceback .*\n"
            r"  File .*launched\.py\", line \d+, in fail\n.*\n"
            "ValueError: clip 7 is broken$",
        ),
        ("vanish", "process 1 was ended by SIGKILL"),
        ("end", "^end failed: process 1 was ended by SIGTERM$"),
        ("lose_the_launcher", "launcher failed: the launcher was ended by SIGKILL: "),
        ("lose_the_other", r"\nprocess 1 was ended by SIGKILL[^\n]*$"),
        ("leave", "(?s)^leave failed: .*exitcode  : 7 "),
        ("fill", r"(?s)fill failed: .* cannot be written \(File too.*/record"),
        ("fill_by_its_result", r"(?s) cannot be written \(File too.*/result\.pickle"),
    ],
)
def test_the_process_that_fails_is_named_with_its_reason(kernel, name, told):
    *_, error = kernel.call(name)
    assert error["ename"] == "ChildFailed" and re.search(told, error["evalue"])


def test_interrupting_the_cell_leaves_no_process(kernel, folder):
    group = kernel.client.km.provisioner.pgid
    thread, pids = once_waiting(folder, lambda: os.killpg(group, signal.SIGINT))
    *_, error = kernel.call("wait")
    thread.join()
    assert error["ename"] == "KeyboardInterrupt"
    assert_gone(pids)
    assert kernel.run("6 * 7").outputs[0]["data"]["text/plain"] == "42"
    assert not list(folder.glob("launch_*"))


def test_killing_the_kernel_leaves_no_process(folder):
    made = Kernel(folder)
    with made.client.setup_kernel():
        made.run(IMPORTS.format(root=str(paths.ROOT)))
        pid = made.client.km.provisioner.pid
        thread, pids = once_waiting(folder, lambda: os.kill(pid, signal.SIGKILL))
        with pytest.raises(DeadKernelError):
            made.call("wait")
        thread.join()
        assert_gone(pids)


TEAM = IMPORTS + "from lib.run import launch; from tests import launched\n"
TEAM += "folder = pathlib.Path({folder!r}); team = launch.Team(folder, 2, '')"
COUNT = "print(*team.call(launched.count, folder))"


def test_a_team_stays_for_the_next_call_and_leaves_no_process(tmp_path):
    """When it ends, fails, is replaced, or its kernel is killed."""
    made = Kernel(tmp_path)

    def counted():
        (told,) = made.run(COUNT).outputs
        calls, pid = map(int, told["text"].split())
        pids = waiting_processes(tmp_path)
        assert pid in pids and len(pids) == 2
        return calls, pids

    with made.client.setup_kernel():
        made.run(TEAM.format(root=str(paths.ROOT), folder=str(tmp_path)))
        assert made.run("team.end()").outputs == []  # nothing has begun
        (before, pids), (after, same) = counted(), counted()
        assert (before, after) == (0, 1) and pids == same
        assert made.run("team.end()").outputs == []
        assert_gone(pids)
        (calls, pids) = counted()
        assert calls == 0
        *_, error = made.run("team.call(launched.fail, folder)").outputs
        assert "clip 7 is broken" in error["evalue"]
        assert_gone(pids)
        (calls, pids) = counted()
        assert calls == 0
        made.run("team = launch.Team(folder, 2, '')")
        (calls, others) = counted()
        assert calls == 0 and all(map(is_running, others))
        assert_gone(pids)
        assert list(tmp_path.glob("launch_*"))
        os.kill(made.client.km.provisioner.pid, signal.SIGKILL)
        assert_gone(others)


FAKE_SRUN = """#!{python}
# `srun --options command`: the command on two nodes, which are both this machine.
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
nodes = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(node)}})
    for node in range(2)
]
sys.exit(max(node.wait() for node in nodes))
"""
FAKE_SCONTROL = """#!/bin/sh
test "$*" = "show hostnames node[1-2]" && printf '127.0.0.1\\nelsewhere\\n'
"""
ON_TWO_NODES = """
import pathlib, sys
from lib.data import frame_store
from lib.run import launch
from tests import launched
folder = pathlib.Path(sys.argv[1])
frame_store.keep_frames(folder / "frames", 1.5)
print(launch.call(folder, 2, "", launched.facts, folder))
"""


def free_job():
    """The number of a job whose port (see slurm.sh) is free."""
    while (port := int(free_port())) >= 60000:
        pass
    return port - 10000


def test_the_slurm_job_runs_one_call_on_two_nodes(tmp_path):
    for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        program = tmp_path / name
        program.write_text(text.format(python=sys.executable))
        program.chmod(0o755)
    search = [tmp_path, Path(sys.executable).parent, os.environ["PATH"]]
    job = {
        "PATH": os.pathsep.join(map(str, search)),
        "PYTHONPATH": str(paths.ROOT),
        "SLURM_SUBMIT_DIR": str(paths.ROOT),
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_GPUS_ON_NODE": "2",
        # What a kernel may have around itself, and its processes must not take over.
        **{"RANK": "5", "LOCAL_RANK": "5", "WORLD_SIZE": "7", "MASTER_PORT": "1"},
    }
    script = paths.ROOT / "params/accelerate/slurm.sh"
    done = subprocess.run(
        ["bash", script, "python", "-c", ON_TWO_NODES, tmp_path],
        cwd=tmp_path,
        env={**os.environ, **job},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    told = ast.literal_eval(done.stdout)
    assert told["world"] == "2" and told["threads"] == "3"
    assert told["cwd"] == str(paths.ROOT)
    assert told["seconds between states of a bar"] is None  # it is drawn in a notebook
    assert told["frames"] == (str(tmp_path / "frames"), 1.5)
    assert Path(told["python"]) == Path(sys.executable)
    nodes = [(tmp_path / f"facts_{process}").read_text() for process in (0, 1)]
    assert nodes == ["node 0, local rank 0", "node 1, local rank 0"]


def test_one_process_is_this_one_and_others_are_given_what_they_can_find(tmp_path):
    assert launch.call(tmp_path, 1, "", os.getpid) == os.getpid()
    line = "format until 0.9 over 10 | accuracy + 0.5 consistency"
    sent = pickle.loads(pickle.dumps(reward_stages.read_rewards(line)))
    assert sent == reward_stages.read_rewards(line)
    assert sent["accuracy"] is rewards.REWARDS["accuracy"]
    with pytest.raises(ValueError, match="at the top level of a module of lib/"):
        launch.call(tmp_path, 2, "", print, lambda text, question: 1.0)
    with pytest.raises(ValueError, match="num_processes = 0"):
        launch.call(tmp_path, 0, "", print)
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml is missing"):
        launch.call(tmp_path, 2, "params/accelerate/gone.yaml", print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux lists sockets")
def test_a_launch_on_one_machine_listens_on_loopback_alone(tmp_path, monkeypatch):
    found = launch.call(tmp_path, 2, "", launched.listening, tmp_path)
    assert len(found) >= 2  # the rendezvous of the launcher, and gloo
    assert all(address.startswith("0100007F:") for address in found)  # 127.0.0.1
    told = launch._environment(2)
    assert told["GLOO_SOCKET_IFNAME"] == told["NCCL_SOCKET_IFNAME"] == launch.LOOPBACK
    monkeypatch.setenv(launch.COMMAND, "srun accelerate launch")
    assert "GLOO_SOCKET_IFNAME" not in launch._environment(2)
