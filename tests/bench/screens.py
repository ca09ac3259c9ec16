"""Pictures of what a reader of a run sees: notebooks, widgets, live curves, report.

    python -m tests.bench.screens outputs/mini --out outputs/reference/screens

The run's executed notebooks are shown as their pages (lib/show/report.py): the top
and, beside it, the part with most pictures. Both browsers and a training with its
curves are shown in JupyterLab, where 03 and 05 are run once more in a copy of the kit,
on copies of the run's records. The report is shown on a phone and at a desk, by day and
by night. Every picture is reduced to at most 150 kB. Takes a few minutes.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from lib import paths, records
from lib.run.params import declared
from lib.show import live
from tests import jupyter

BYTES = 150_000
COLOURS = (256, 128, 64, 32, 16)  # tried in turn until a picture is small enough
DESK, PHONE = (1280, 1600), (390, 1300)  # pixels of a screen that scrolls
NOTEBOOK = (900, 1300)
WIDGETS = [  # picture, notebook, text of the cell, how often `next` is pressed
    ("browser_rollouts", "03_grpo", "browser.rollouts(", 2),
    ("browser_questions", "05_analysis", "browser.questions(", 0),
]
SHOWN = 20  # steps of the training that is caught in the act
# The top of the part of a page that holds most picture, of all that begin at a heading.
MOST_PICTURE = """height => {
    const box = element => element.getBoundingClientRect();
    const pictures = [...document.images].map(box);
    const shown = top => pictures.reduce((sum, {x, y, width, bottom}) => sum +
        width * Math.max(0, Math.min(bottom, top + height) - Math.max(y, top)), 0);
    const tops = [...document.querySelectorAll("h2, h3")].map(h => box(h).y - 10);
    return tops.filter(top => top > height / 2)
        .sort((a, b) => shown(b) - shown(a))[0] ?? height;
}"""


def reduced(picture: Image.Image) -> bytes:
    """PNG of at most BYTES: fewer colours first, and then fewer pixels."""
    picture = picture.convert("RGB")
    for _ in range(8):
        for colours in COLOURS:
            data = io.BytesIO()
            few = picture.quantize(
                colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
            )
            few.save(data, "PNG", optimize=True)
            if data.tell() <= BYTES:
                return data.getvalue()
        width, height = (round(0.85 * side) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    raise ValueError(f"no picture of {picture.size} is below {BYTES} bytes")


def beside(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(picture.width + gap for picture in pictures) - gap
    row = Image.new("RGB", (width, pictures[0].height), "#888888")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def part(page: Page, top: float, size: tuple[int, int]) -> Image.Image:
    """What a page of any length shows of itself from `top` on."""
    clip = {"x": 0, "y": top, "width": size[0], "height": size[1]}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))


@contextmanager
def opened(
    browser: Browser, file: Path, size: tuple[int, int], scheme: str = "light"
) -> Iterator[Page]:
    """A window of a given size and colour scheme on a file."""
    view = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=view, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    yield page
    page.close()


def notebook_pages(browser: Browser, run: Path) -> Iterator[tuple[str, Image.Image]]:
    """The top of each notebook beside its part with most pictures."""
    for file in sorted(run.glob("0*_*.html")):
        with opened(browser, file, NOTEBOOK) as page:
            tops = [0, page.evaluate(MOST_PICTURE, NOTEBOOK[1])]
            yield file.stem, beside([part(page, top, NOTEBOOK) for top in tops])


def report_views(browser: Browser, run: Path) -> Iterator[tuple[str, Image.Image]]:
    """The report: its top at a desk, three screens of a phone side by side."""
    for scheme in ("light", "dark"):
        with opened(browser, run / "report.html", DESK, scheme) as page:
            yield f"report_desk_{scheme}", part(page, 0, DESK)
        with opened(browser, run / "report.html", PHONE, scheme) as page:
            screens = [part(page, at * PHONE[1], PHONE) for at in range(3)]
            yield f"report_phone_{scheme}", beside(screens)


def copied(run: Path, folder: Path) -> Path:
    """A copy of the kit with a copy of the run; its data are where they were."""
    kit = jupyter.copy_kit(folder / "kit")
    left_out = shutil.ignore_patterns("checkpoints", "*.html", "*unfinished*")
    shutil.copytree(run, kit / "outputs" / run.name, ignore=left_out)
    (kit / "outputs" / "data").symlink_to(run.resolve().parent / "data")
    return kit


def with_its_parameters(kit: Path, name: str, run: Path, copy: str, **more) -> Path:
    """Today's notebook with the parameters that its executed copy was given."""
    metadata = records.read_json(run / f"{name}.ipynb")["metadata"]
    file = kit / "notebooks" / f"{copy}.ipynb"
    shutil.copy(kit / "notebooks" / f"{name}.ipynb", file)
    given, known = metadata["papermill"]["parameters"] | more, declared(file)
    values = {key: value for key, value in given.items() if key in known}
    jupyter.set_parameters(file, **values)
    return file


def cell_picture(notebook: jupyter.Notebook, text: str) -> Image.Image:
    """The code cell that holds `text`, with all that stands below it."""
    cell = notebook.cell(jupyter.cell_with(notebook.file, text))
    cell.scroll_into_view_if_needed()
    return Image.open(io.BytesIO(cell.screenshot()))


def run_up_to(notebook: jupyter.Notebook, text: str) -> None:
    """Run the code cell that holds `text`, and before it all cells above it."""
    number = jupyter.cell_with(notebook.file, text)
    for entry in (
        "Run All Above Selected Cell",
        "Run Selected Cell and Do not Advance",
    ):
        notebook.select(number)
        notebook.run(entry)
        assert notebook.errors() == [], notebook.errors()


def step_to(notebook: jupyter.Notebook, text: str, times: int) -> None:
    """Press `next` of the browser below a cell that often."""
    cell = notebook.cell(jupyter.cell_with(notebook.file, text))
    cell.locator(".widget-html").wait_for()
    labels = cell.locator(".widget-label")
    for _ in range(times):
        before = labels.all_text_contents()
        cell.locator("button[title=next]").click()
        moved = partial(_differs, labels, before)
        jupyter.wait_for(moved, "nothing else after `next`")


def _differs(labels: Locator, before: list[str]) -> bool:
    return labels.all_text_contents() != before


def training(lab: jupyter.Lab, page: Page, run: Path) -> Image.Image:
    """The cell that trains, with curves of SHOWN steps; then the kernel is stopped."""
    new = {"run_name": "trained_live"}
    file = with_its_parameters(lab.root, "03_grpo", run, "trained_live", **new)
    notebook = jupyter.Notebook(page, lab, file)
    notebook.menu("Run", "Run All Cells")
    log = lab.root / "outputs/trained_live/train_log_grpo.jsonl"

    def far_enough() -> bool:
        assert notebook.errors() == []
        return len(live.read_rows(log)) >= SHOWN

    jupyter.wait_for(far_enough, f"there are no {SHOWN} steps yet", 1800)
    picture = cell_picture(notebook, "launch.call(")
    notebook.tool("interrupt-kernel")
    jupyter.wait_for(notebook.idle, "the interrupt did not end the training")
    return picture


def in_jupyter(browser: Browser, run: Path) -> Iterator[tuple[str, Image.Image]]:
    """Both browsers and a training, alive in JupyterLab."""
    view = {"width": 1280, "height": 1000}
    with tempfile.TemporaryDirectory() as folder:
        kit = copied(run, Path(folder))
        with jupyter.lab(kit, Path(folder) / "home") as lab:
            for picture, name, text, times in WIDGETS:
                page = browser.new_page(viewport=view)
                file = with_its_parameters(kit, name, run, picture)
                notebook = jupyter.Notebook(page, lab, file)
                run_up_to(notebook, text)
                step_to(notebook, text, times)
                yield picture, cell_picture(notebook, text)
                page.close()
            page = browser.new_page(viewport=view)
            yield "training_live", training(lab, page, run)
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run that has its report")
    parser.add_argument("--out", type=Path, required=True, help="folder of the PNGs")
    options = parser.parse_args()
    run = paths.require(options.run, "run the notebooks first: python -m lib.run")
    paths.require(run / "report.html", f"write it with python -m lib.run report {run}")
    options.out.mkdir(parents=True, exist_ok=True)
    with jupyter.chromium() as browser:
        for pictures in (report_views, notebook_pages, in_jupyter):
            for name, picture in pictures(browser, run):
                data = reduced(picture)
                (options.out / f"{name}.png").write_bytes(data)
                print(f"{name}.png: {picture.size}, {len(data):,} bytes", flush=True)


if __name__ == "__main__":
    main()
