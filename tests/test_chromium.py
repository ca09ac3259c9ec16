"""The kit as a new user meets it: JupyterLab in a real browser, clicked by hand.

A copy of the kit makes the smoke run headless, with its report; then notebooks are
opened, run, interrupted and gone on with. A screenshot of every step is kept in
outputs/screens/, for a look at what failed or at what only a person would see."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lib.paths import ROOT
from lib.records import read_jsonl
from tests import jupyter
from tests.jupyter import Notebook, copied, press_next, wait_for

pytestmark = pytest.mark.browser

SCREENS = ROOT / "outputs" / "screens"
RUN = "walked"  # name of the headless run
GROUNDS = "all => all.map(one => getComputedStyle(one).backgroundColor)"
STEPS = 40  # of a training that is interrupted: enough to be in time
TRAINING = "launch.call("  # in the cell that trains


@pytest.fixture(scope="module")
def browser():
    if not Path(jupyter.CHROMIUM).exists():
        # Where everything is checked, what was not looked at must not pass.
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"there is no {jupyter.CHROMIUM}: on Debian, apt-get install chromium")
    with jupyter.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def kit(browser, tmp_path_factory):
    """A copy of the kit with a smoke run in outputs/walked/; depends on a browser. The
    run has every RL method, as params/sweeps/mini_seeds.yaml has."""
    folder = jupyter.copy_kit(tmp_path_factory.mktemp("user") / "kit")
    params = folder / "params" / f"{RUN}.yaml"
    asked = "base base-direct sft grpo care ppo"
    text = f"run_name: {RUN}\nrl: grpo | care | ppo\nasked_models: {asked}\n"
    params.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "lib.run", str(params)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="module")
def lab(kit, tmp_path_factory):
    with jupyter.lab(kit, tmp_path_factory.mktemp("home")) as lab:
        yield lab


@pytest.fixture(scope="module")
def keep():
    """A function that keeps what a page or a cell shows in outputs/screens/."""
    shutil.rmtree(SCREENS, ignore_errors=True)
    return lambda shown, name: shown.screenshot(path=SCREENS / f"{name}.png")


@pytest.fixture
def page(browser, request, keep):
    """A new window without faults in its console; its last state is kept."""
    page, faults = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda said: faults.append(said.text) if said.type == "error" else None,
    )
    yield page
    keep(page, f"end of {request.node.name}")
    page.close()
    assert faults == []


def click_through(keep, cell, name, first):
    """Press `next` in the browser below a cell: its count and its text change."""
    cell.locator(".widget-html").wait_for()
    cell.scroll_into_view_if_needed()
    labels = cell.locator(".widget-label")
    assert first in labels.all_text_contents()
    keep(cell, f"{name}, first")
    press_next(cell)
    assert first not in labels.all_text_contents()
    keep(cell, f"{name}, next")


def test_03_runs_and_its_rollouts_are_browsed(lab, page, kit, keep):
    notebook = Notebook(page, lab, kit / "notebooks" / "03_grpo.ipynb")
    notebook.run("Run All Cells")
    keep(page, "03 ran")
    assert notebook.errors() == []
    assert all(re.fullmatch(r"\[\d+\]:", text) for text in notebook.prompts())
    assert (kit / "outputs/smoke/adapters/grpo").is_dir()
    cell = notebook.cell("browser.rollouts(")
    click_through(keep, cell, "03 rollouts", "step 0 of 3")


def test_an_interrupted_training_goes_on_from_its_checkpoint(lab, page, kit, keep):
    names = {"run_name": "interrupted", "grpo_steps": STEPS, "grpo_save_every": 2}
    run = kit / "outputs/interrupted"
    log = run / "train_log_grpo.jsonl"
    notebook = Notebook(page, lab, copied(kit, "03_grpo", "interrupted", **names))
    notebook.start("Run All Cells")
    cell = notebook.cell(TRAINING)
    curves = cell.locator(".jp-OutputArea-output img")
    curves.wait_for()
    cell.scroll_into_view_if_needed()
    before = curves.get_attribute("src")
    wait_for(lambda: curves.get_attribute("src") != before, "the curves do not grow")
    wait_for(lambda: list(run.glob("checkpoints/grpo/*/complete.json")), "checkpoint")
    keep(page, "03 training")

    notebook.interrupt()
    cell.scroll_into_view_if_needed()
    keep(page, "03 interrupted")
    (error,) = notebook.errors()
    assert "KeyboardInterrupt" in error
    done = read_jsonl(log)
    assert 2 <= len(done) < STEPS
    # A step's row is written before its checkpoint: the signal may come between them.
    saved = run.glob("checkpoints/grpo/*/complete.json")
    kept = max(int(re.search(r"\d+", path.parent.name)[0]) for path in saved)
    assert kept in (len(done) // 2 * 2, len(done) - 2)
    assert f"from the last checkpoint, step {kept}." in notebook.saved_text(TRAINING)
    assert "[ ]:" in notebook.prompts(), "a cell below the interrupted one ran"

    notebook.select(TRAINING)
    notebook.run("Run Selected Cell and All Below")
    cell.scroll_into_view_if_needed()
    keep(page, "03 gone on")
    assert notebook.errors() == [] and "[ ]:" not in notebook.prompts()
    rows = read_jsonl(log)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # The seconds of a step stand in its row: computed again, it would differ.
    assert rows[:kept] == done[:kept]
    assert (run / "adapters/grpo").is_dir()


def test_questions_are_browsed_in_05(lab, page, kit, keep):
    notebook = Notebook(page, lab, copied(kit, "05_analysis", "browsed", run_name=RUN))
    cell = notebook.run_up_to("browser.questions(")
    cell.get_by_label("set", exact=True).select_option("L2")
    # The question that was shown stays, where it is one of L2.
    shown = lambda: re.search(r"\b\d+ of 16\b", cell.inner_text())  # noqa: E731
    at = wait_for(shown, "the filter by set did nothing")[0]
    click_through(keep, cell, "05 questions", at)


# Texts whose colour is too near to what lies behind them (WCAG 2.2, 1.4.3: 4.5 to 1; 3
# to 1 for large text, and for a verdict's sign, which has its word beside it).
FAINT = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = colour => colour.slice(0, 3).map(v => v / 255)
        .map(v => v > 0.04045 ? ((v + 0.055) / 1.055) ** 2.4 : v / 12.92)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
    const behind = one => {
        const own = one ? rgb(getComputedStyle(one).backgroundColor) : [255, 255, 255];
        return own[3] === 0 ? behind(one.parentElement) : own;
    };
    const text = ({childNodes}) =>
        [...childNodes].some(n => n.nodeType === 3 && n.data.trim());
    return [...document.body.querySelectorAll("*")].filter(text).filter(one => {
        const {color, fontSize} = getComputedStyle(one);
        const [a, b] = [rgb(color), behind(one)].map(light).sort((x, y) => y - x);
        const large = one.matches(".sign") || parseFloat(fontSize) >= 24;
        return one.checkVisibility() && a / b < (large ? 3 : 4.5);
    }).map(one => one.innerText);
}"""
DEAD = "[...document.images].filter(one => !one.alt || !one.closest('a')).length"
UNLISTED = """[...document.querySelectorAll("h2")].map(one => one.id)
    .filter(id => !document.querySelector(`a[href="#${id}"]`))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_and_its_notebooks_fit_a_screen(kit, page, keep, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})

    def seen_by():
        return [page.evaluate(one) for one in (FAINT, DEAD, UNLISTED)]

    page.set_content("<h2 id=a>a</h2><p style='color: #999'>pale</p><img src=data:,>")
    assert seen_by() == [["pale"], 1, ["a"]], "the checks see what is wrong"
    report = kit / "outputs" / RUN / "report.html"
    pages = [report, *sorted(report.parent.glob("0*.html"))]
    assert len(pages) == 6, "the report and five notebooks"
    grounds = set()
    for file in pages:
        page.goto(file.as_uri())
        keep(page, f"{file.stem} {width} {scheme}")
        wide = "document.documentElement.scrollWidth"
        assert page.evaluate(wide) <= width, f"{file.name} scrolls sideways"
        broken = "[...document.images].filter(one => !one.naturalWidth).length"
        assert page.evaluate(broken) == 0, f"{file.name}: pictures that do not load"
        assert seen_by() == [[], 0, []], (
            f"{file.name}: faint, no text or link, unlisted"
        )
        grounds |= set(page.eval_on_selector_all(".output_stderr", GROUNDS))
    assert grounds == {"rgba(0, 0, 0, 0)"}, "progress that looks like errors"


def test_a_phone_gets_from_the_report_into_a_notebook(kit, page):
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto((kit / "outputs" / RUN / "report.html").as_uri())
    page.locator('a[href^="03_grpo.html"]').first.click()
    page.wait_for_url("**/03_grpo.html*")
    assert page.locator("h1").first.inner_text().startswith("03")


WAITING = """
import pathlib, time
from tests import jupyter

def test_waits(tmp_path):
    with jupyter.lab(tmp_path, tmp_path / "home") as lab:
        pathlib.Path("address").write_text(lab(tmp_path / "a.ipynb"))
        time.sleep(600)
"""


def test_ctrl_c_leaves_no_server(tmp_path):
    """As in `make test`: the terminal sends it to all processes of the group."""
    (tmp_path / "test_waiting.py").write_text(WAITING)
    given = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "cwd": tmp_path}
    command = [sys.executable, "-m", "pytest", "-q", "."]
    tests, file = (
        subprocess.Popen(command, process_group=0, **given),
        tmp_path / "address",
    )
    said = wait_for(lambda: file.exists() and file.read_text(), "no server")
    place = "127.0.0.1", int(re.search(r":(\d+)/", said)[1])
    socket.create_connection(place).close()
    os.killpg(tests.pid, signal.SIGINT)
    assert tests.wait(90) == pytest.ExitCode.INTERRUPTED
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)
