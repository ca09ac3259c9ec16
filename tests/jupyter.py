"""A copy of the kit, JupyterLab on loopback and a page in Chromium: what a user has.

    kit = jupyter.copy_kit(folder / "kit")
    with jupyter.lab(kit, folder / "home") as lab, jupyter.chromium() as browser:
        file = kit / "notebooks" / "03_grpo.ipynb"
        notebook = jupyter.Notebook(browser.new_page(), lab, file)
        notebook.run("Run All Cells")
        assert notebook.errors() == []

Everything is done with what a person can click; what is read is what a person sees.
Cells are found by what they hold, in the file, because a page may show a long cell in
part. Nothing waits for a fixed time: each wait is for a condition, up to a limit.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from lib.paths import ROOT

CHROMIUM = "/usr/bin/chromium"  # Debian's; playwright's own would be a download
MISSING = f"there is no {CHROMIUM}: on Debian, apt-get install chromium"
# No sandbox, because tests run as root in containers; and nothing is asked of anybody.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]
SERVER = {
    "ServerApp": {"ip": "127.0.0.1", "port": 0, "open_browser": False},
    "LabApp": {
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",
    },
}
LIMIT = 600  # seconds for anything that is waited for, on a busy machine


def copy_kit(folder: Path) -> Path:
    """The kit without its outputs, tests and history; its places lie in the copy."""
    for part in ("lib", "notebooks", "params"):
        left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / part, folder / part, ignore=left_out)
    return folder


def cell_with(path: Path, text: str) -> int:
    """Number, from 0, of the first code cell of a notebook that holds `text`."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code" and text in "".join(cell["source"]):
            return number
    raise ValueError(f"{path}: no code cell holds {text!r}")


def set_parameters(path: Path, **values: object) -> None:
    """Write other values into the parameters cell of a notebook, as a user would."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(
        cell
        for cell in notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    )
    source = "".join(cell["source"])
    for name, value in values.items():
        line = re.compile(rf"^({name}: \w+ = ).*?(?=  #|$)", re.MULTILINE)
        literal = repr(value).replace("\\", r"\\")
        source, found = line.subn(rf"\g<1>{literal}", source)
        if found != 1:
            raise ValueError(f"{path} has no parameter {name!r}")
    cell["source"] = source.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def wait_for(condition: Callable[[], object], what: str, seconds: float = LIMIT):
    """The first true value of `condition`; AssertionError after `seconds` without."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"after {seconds} s: {what}"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs: its address, the token it asks for, what it shows."""

    address: str
    token: str
    root: Path

    def url(self, file: Path) -> str:
        """Where a file below `root` opens, in a workspace of its own."""
        path = quote(file.relative_to(self.root).as_posix())
        workspace = f"{self.address}lab/workspaces/{quote(file.stem)}"
        return f"{workspace}/tree/{path}?token={self.token}"


@contextmanager
def lab(root: Path, home: Path) -> Iterator[Lab]:
    """A JupyterLab that shows `root` until the block ends; its kernels end with it.

    Its settings, workspaces and runtime files lie below `home`, a new folder.
    """
    folders = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    places = {f"JUPYTER_{key}_DIR": str(home / name) for key, name in folders.items()}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    places["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    _write(home / "config/jupyter_lab_config.json", SERVER)
    _write_settings(home / "settings")
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", str(root)]
    environment = os.environ | places | {"HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": token}
    with open(home / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield Lab(_address(server, home), token, root)
    finally:
        server.send_signal(signal.SIGTERM)  # ends the kernels as well
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_settings(folder: Path) -> None:
    """All cells in the page, which ends where they end, and no question about news."""
    settings = {
        "notebook-extension/tracker": {
            "windowingMode": "none",
            "scrollPastEnd": False,
        },
        "apputils-extension/notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
    }
    for name, values in settings.items():
        _write(folder / f"@jupyterlab/{name}.jupyterlab-settings", values)


def _address(server: subprocess.Popen, home: Path) -> str:
    """What a server that has started says of its address: http://127.0.0.1:41371/."""

    def said() -> re.Match | None:
        log = (home / "server.log").read_text(encoding="utf-8")
        assert server.poll() is None, f"JupyterLab ended: {log[-3000:]}"
        return re.search(r"(http://127\.0\.0\.1:\d+/)lab\?token=\.\.\.\n", log)

    return wait_for(said, "JupyterLab has not started")[1]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless, until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Notebook:
    """A notebook in JupyterLab as one meets it: its cells, the menu, the toolbar."""

    def __init__(self, page: Page, lab: Lab, file: Path):
        self.page, self.file = page, file
        page.set_default_timeout(LIMIT * 1000)
        page.goto(lab.url(file))
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.cells = self.panel.locator(".jp-Cell")
        count = len(json.loads(file.read_text(encoding="utf-8"))["cells"])
        wait_for(lambda: self.cells.count() == count, f"{file} does not open")
        ready = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        self.panel.locator(ready).wait_for()

    def cell(self, number: int) -> Locator:
        return self.cells.nth(number)

    def menu(self, name: str, entry: str) -> None:
        """Click an entry of the menu bar, such as Run, "Run All Cells"."""
        exactly = re.compile(f"^{name}$")
        bar = self.page.locator(".lm-MenuBar-itemLabel")
        bar.filter(has_text=exactly).click()
        labels = self.page.locator(".lm-Menu-itemLabel")
        labels.filter(has_text=re.compile(f"^{entry}$")).click()

    def tool(self, command: str) -> None:
        """Click the button of the notebook's toolbar that stands for a command."""
        self.panel.locator(f'jp-button[data-command="notebook:{command}"]').click()

    def select(self, number: int) -> None:
        self.cell(number).locator(".jp-InputPrompt").first.click()

    def prompts(self) -> list[str]:
        """`[ ]:`, `[*]:` or `[7]:` of every code cell that is not folded."""
        shown = self.panel.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
        return [text for text in shown if text]

    def errors(self) -> list[str]:
        """Tracebacks that cells show; JupyterLab 4.6 marks them as any stderr."""
        shown = '.jp-OutputArea-output[data-mime-type$="jupyter.stderr"]'
        ruled = re.compile(r"^-{60,}")  # as every traceback of IPython begins
        return self.panel.locator(shown).filter(has_text=ruled).all_text_contents()

    def run(self, entry: str) -> None:
        """Click an entry of the menu Run, and wait until no cell runs any more."""
        before = self.prompts()
        self.menu("Run", entry)
        wait_for(lambda: self.prompts() != before, f"{entry}: nothing runs")
        wait_for(self.idle, f"{entry}: still running")

    def saved_text(self, number: int) -> str:
        """Save the notebook; the text/plain of a cell's outputs as it is in the file.

        The text of a picture: JupyterLab shows the picture alone.
        """
        then = self.file.stat().st_mtime_ns
        self.panel.locator('jp-button[data-command="docmanager:save"]').click()
        wait_for(lambda: self.file.stat().st_mtime_ns != then, "it was not saved")
        cell = json.loads(self.file.read_text(encoding="utf-8"))["cells"][number]
        texts = [out.get("data", {}).get("text/plain", "") for out in cell["outputs"]]
        return "".join("".join(text) for text in texts)

    def idle(self) -> bool:
        """Whether no cell is running or waiting to run."""
        return "[*]:" not in self.prompts()
