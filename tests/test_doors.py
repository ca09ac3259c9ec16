"""Every door says what it is for, and does nothing else when asked for help."""

import argparse
import os
import re
import runpy
import subprocess
import sys

import pytest

from lib.doors import EXITS, Door
from lib.paths import ROOT
from lib.run.__main__ import COMMANDS

PROGRAMS = ("lib.run", "lib.data", "lib.analysis", "lib.mini")
BENCHES = [
    f"tests.bench.{path.stem}"
    for path in sorted((ROOT / "tests/bench").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
DOORS = [*PROGRAMS, *(f"lib.run {name}" for name in COMMANDS), *BENCHES]


def parsers(door: argparse.ArgumentParser):
    yield door
    for action in door._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("door", [*DOORS, "tests.platforms"])
def test_help_has_an_example_words_for_each_switch_and_the_exit_codes(
    door, monkeypatch, capsys
):
    found = []
    shown = Door.format_help
    note = lambda self: found.append(self) or shown(self)  # noqa: E731
    monkeypatch.setattr(Door, "format_help", note)
    module, *command = door.split()
    monkeypatch.setattr(sys, "argv", [module, *command, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0 and EXITS in capsys.readouterr().out
    for parser in parsers(found[0]):
        about = f"{parser.description}\n{parser.epilog}"
        assert re.search(rf"^ *\$? *{re.escape(parser.prog)}\b", about, re.M), parser
        assert len(re.sub(r"^ *python .*\n", "", about, flags=re.M)) > len(EXITS) + 20
        assert EXITS in parser.epilog
        assert [action for action in parser._actions if not action.help] == []
        assert parser.format_help()


def test_what_is_started_by_the_kit_alone_harms_nobody_who_asks_it_for_help(tmp_path):
    command = [sys.executable, "-m", "lib.run.launch", "--help"]
    given = {"stdin": subprocess.DEVNULL, "start_new_session": True, "cwd": tmp_path}
    places = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, **given, env=places, capture_output=True)
    assert ran.returncode == 1 and not [*tmp_path.iterdir()]
