"""A copy of the kit, JupyterLab on loopback and a page in Chromium: what a user has.

    kit = jupyter.copy_kit(folder / "kit")
    with jupyter.lab(kit, folder / "home") as lab, jupyter.chromium() as browser:
        file = jupyter.copied(kit, "03_grpo", "mine", grpo_steps=2)
        notebook = jupyter.Notebook(browser.new_page(), lab, file)
        notebook.run("Run All Cells")
        assert notebook.errors() == []

Everything is done with what a person can click; what is read is what a person sees.
Cells are found by what they hold, in the file, because a page may show a long cell in
part. Nothing waits for a fixed time: each wait is for a condition, up to a limit."""

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
from functools import partial
from pathlib import Path
from urllib.parse import quote

from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from lib.paths import ROOT
from tests.forked import wait_until

CHROMIUM = "/usr/bin/chromium"  # Debian's; playwright's own would be a download
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
SETTINGS = {  # all cells in the page, which ends where they end; no question about news
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
LIMIT = 600  # seconds for anything that is waited for, on a busy machine
# Each look asks the browser, which has other work.
wait_for = partial(wait_until, seconds=LIMIT, pause=0.1)


def copy_kit(folder: Path) -> Path:
    """The kit without its outputs, tests and history; its places lie in the copy."""
    for part in ("lib", "notebooks", "params"):
        left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / part, folder / part, ignore=left_out)
    return folder


def copied(kit: Path, name: str, copy: str, **parameters: object) -> Path:
    """A notebook of a kit under another name and with these parameters."""
    path = kit / "notebooks" / f"{copy}.ipynb"
    node = load_notebook_node(str(kit / "notebooks" / f"{name}.ipynb"))
    write_ipynb(parameterize_notebook(node, parameters), str(path))
    return path


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@contextmanager
def lab(root: Path, home: Path) -> Iterator[Callable[[Path], str]]:
    """A JupyterLab that shows `root` until the block ends; its kernels end with it.
    What it yields is where a file opens, in a workspace of its own. Its settings,
    workspaces and runtime files lie below `home`, a new folder."""
    files = {home / "JUPYTER_CONFIG_DIR/jupyter_lab_config.json": SERVER}
    for name, values in SETTINGS.items():
        file = f"JUPYTERLAB_SETTINGS_DIR/@jupyterlab/{name}.jupyterlab-settings"
        files[home / file] = values
    for path, content in files.items():
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    names = [f"JUPYTER_{name}_DIR" for name in ("CONFIG", "DATA", "RUNTIME")]
    names += [f"JUPYTERLAB_{name}_DIR" for name in ("SETTINGS", "WORKSPACES")]
    token, places = secrets.token_hex(16), {name: str(home / name) for name in names}
    given = os.environ | places | {"HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", str(root)]
    with open(home / "server.log", "w", encoding="utf-8") as log:
        output = {"stdout": log, "stderr": log, "start_new_session": True}
        server = subprocess.Popen(command, env=given, **output)

    def said() -> re.Match | None:
        """Its address, in the log once it has started: http://127.0.0.1:41371/."""
        log = (home / "server.log").read_text(encoding="utf-8")
        assert server.poll() is None, f"JupyterLab ended: {log[-3000:]}"
        return re.search(r"(http://127\.0\.0\.1:\d+/)lab\?token=\.\.\.\n", log)

    def url(file: Path) -> str:
        path = quote(file.relative_to(root).as_posix())
        return f"{address}lab/workspaces/{quote(file.stem)}/tree/{path}?token={token}"

    try:
        address = wait_for(said, "JupyterLab has not started")[1]
        yield url
    finally:
        server.send_signal(signal.SIGTERM)  # ends the kernels as well
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()


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

    def __init__(self, page: Page, lab: Callable[[Path], str], file: Path):
        self.page, self.file = page, file
        page.set_default_timeout(LIMIT * 1000)
        page.goto(lab(file))
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.cells, count = self.panel.locator(".jp-Cell"), len(cells_of(file))
        wait_for(lambda: self.cells.count() == count, f"{file} does not open")
        ready = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        self.panel.locator(ready).wait_for()

    def cell(self, text: str) -> Locator:
        """The first code cell that holds `text`, with all that stands below it."""
        return self.cells.nth(self._number(text))

    def _number(self, text: str) -> int:
        for number, cell in enumerate(cells_of(self.file)):
            if cell["cell_type"] == "code" and text in "".join(cell["source"]):
                return number
        raise ValueError(f"{self.file}: no code cell holds {text!r}")

    def menu(self, name: str, entry: str) -> None:
        """Click an entry of the menu bar, such as Run, "Run All Cells"."""
        for labels, text in (("MenuBar-item", name), ("Menu-item", entry)):
            found = self.page.locator(f".lm-{labels}Label")
            found.filter(has_text=re.compile(f"^{text}$")).click()

    def tool(self, command: str) -> None:
        """Click the button of the toolbar that stands for a command."""
        self.panel.locator(f'jp-button[data-command="{command}"]').click()

    def select(self, text: str) -> None:
        self.cell(text).locator(".jp-InputPrompt").first.click()

    def prompts(self) -> list[str]:
        """`[ ]:`, `[*]:` or `[7]:` of every code cell that is not folded."""
        shown = self.panel.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
        return [text for text in shown if text]

    def errors(self) -> list[str]:
        """Tracebacks that cells show; JupyterLab 4.6 marks them as any stderr."""
        shown = '.jp-OutputArea-output[data-mime-type$="jupyter.stderr"]'
        ruled = re.compile(r"^-{60,}")  # as every traceback of IPython begins
        return self.panel.locator(shown).filter(has_text=ruled).all_text_contents()

    def start(self, entry: str) -> None:
        """Click an entry of the menu Run, again where it does not go on: JupyterLab
        drops what it is asked for while it connects to a kernel."""
        before = self.prompts()
        for _ in range(5):
            self.menu("Run", entry)
            with suppress(AssertionError):
                wait_for(lambda: self.prompts() != before, "nothing runs", seconds=20)
                time.sleep(2)
                if self.prompts() != before:
                    return
        raise AssertionError(f"{entry}: nothing runs")

    def run(self, entry: str) -> None:
        """`start`, and wait until no cell runs any more."""
        self.start(entry)
        self.wait_until_idle(entry)

    def run_up_to(self, text: str) -> Locator:
        """Run the code cell that holds `text`, and before it all cells above it."""
        above, own = (
            "Run All Above Selected Cell",
            "Run Selected Cell and Do not Advance",
        )
        for entry in (above, own):
            self.select(text)
            self.run(entry)
            assert not (found := self.errors()), found
        return self.cell(text)

    def interrupt(self) -> None:
        self.tool("notebook:interrupt-kernel")
        self.wait_until_idle("an interrupt")

    def wait_until_idle(self, after: str) -> None:
        """Until no cell is running or waiting to run."""
        wait_for(lambda: "[*]:" not in self.prompts(), f"still running after {after}")

    def saved_text(self, text: str) -> str:
        """Save the notebook; the text/plain of a cell's outputs as it is in the file:
        JupyterLab shows the picture alone."""
        then = self.file.stat().st_mtime_ns

        def saved() -> list[dict] | None:
            if self.file.stat().st_mtime_ns != then:
                with suppress(json.JSONDecodeError):  # half of it is written
                    return cells_of(self.file)

        self.tool("docmanager:save")
        outputs = wait_for(saved, "it was not saved")[self._number(text)]["outputs"]
        return "".join(
            "".join(o.get("data", {}).get("text/plain", "")) for o in outputs
        )


def press_next(cell: Locator) -> None:
    """Press `next` of the browser below a cell, and wait until its text is another."""
    text = cell.locator(".widget-html")
    shown = text.inner_html()
    cell.locator("button[title=next]").click()
    wait_for(lambda: text.inner_html() != shown, "nothing else after `next`")
