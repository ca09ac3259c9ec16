"""Pictures of what a reader of a run sees: notebooks, widgets, live curves, report.

    python -m tests.bench.screens outputs/mini --out outputs/reference/screens

Without a run it draws MiniPlan in one picture alone (lib/show/miniplan.py).
The run's executed notebooks are shown as their pages (lib/show/report.py): the top
and, beside it, the part with most pictures. Both browsers and a training with its
curves are shown in JupyterLab, where 03 and 05 are run once more in a copy of the kit,
on copies of the run's records, which today's kit must have made. The report is shown
on a phone and at a desk, by day and by night. Every picture is reduced to at most
150 kB. Takes a few minutes."""

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from lib import paths, records
from lib.doors import Door
from lib.show import live, miniplan, report
from tests import jupyter

BYTES = 150_000
COLOURS = (256, 128, 64, 32, 16)  # tried in turn until a picture is small enough
DESK, PHONE = (1280, 1600), (390, 1300)  # pixels of a screen that scrolls
NOTEBOOK = (900, 1300)
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
Named = Iterator[tuple[str, Image.Image]]


def reduced(picture: Image.Image) -> bytes:
    """PNG of at most BYTES: fewer colours first, and then fewer pixels."""
    picture = picture.convert("RGB")
    for _ in range(8):
        for colours in COLOURS:
            data, most = io.BytesIO(), Image.Quantize.MAXCOVERAGE
            few = picture.quantize(colours, most, kmeans=1, dither=Image.Dither.NONE)
            few.save(data, "PNG", optimize=True)
            if data.tell() <= BYTES:
                return data.getvalue()
        width, height = (round(0.85 * side) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    raise ValueError(f"no picture of {picture.size} is below {BYTES} bytes")


def beside(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "#888888")
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * (width + gap), 0))
    return row


def part(page: Page, top: float, size: tuple[int, int]) -> Image.Image:
    """What a page of any length shows of itself from `top` on."""
    clip = {"x": 0, "y": top, "width": size[0], "height": size[1]}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))


def opened(
    browser: Browser, file: Path, size: tuple[int, int], scheme="light", scale=1
) -> Page:
    """A window of a given size and colour scheme on a file."""
    view = {"viewport": {"width": size[0], "height": size[1]}}
    page = browser.new_page(**view, color_scheme=scheme, device_scale_factor=scale)
    page.goto(file.resolve().as_uri())
    return page


def notebook_pages(browser: Browser, run: Path) -> Named:
    """The top of each notebook beside its part with most pictures."""
    for file in sorted(run.glob("0*_*.html")):
        page = opened(browser, file, NOTEBOOK)
        tops = [0, page.evaluate(MOST_PICTURE, NOTEBOOK[1])]
        yield file.stem, beside([part(page, top, NOTEBOOK) for top in tops])


def report_views(browser: Browser, run: Path) -> Named:
    """The report: its top at a desk, three screens of a phone side by side."""
    for scheme in ("light", "dark"):
        page = opened(browser, run / "report.html", DESK, scheme)
        yield f"report_desk_{scheme}", part(page, 0, DESK)
        page = opened(browser, run / "report.html", PHONE, scheme)
        screens = [part(page, at * PHONE[1], PHONE) for at in range(3)]
        yield f"report_phone_{scheme}", beside(screens)


def one_picture(browser: Browser) -> Named:
    """MiniPlan in one picture, at a desk and on a phone."""
    with tempfile.TemporaryDirectory() as folder:
        file, style = Path(folder) / "view.html", f"<style>{report.STYLE}</style>"
        file.write_text(f'<meta charset="utf-8">{style}{miniplan.view().html}')
        for name, width in (("miniplan", 800), ("miniplan_phone", PHONE[0])):
            page = opened(browser, file, (width, 800), scale=2)
            yield name, Image.open(io.BytesIO(page.screenshot(full_page=True)))


def in_jupyter(browser: Browser, run: Path) -> Named:
    """Both browsers and a training, alive in JupyterLab."""
    with tempfile.TemporaryDirectory() as folder:
        kit = jupyter.copy_kit(Path(folder) / "kit")
        left_out = shutil.ignore_patterns("checkpoints", "*.html", "*unfinished*")
        shutil.copytree(run, kit / "outputs" / run.name, ignore=left_out)
        (kit / "outputs" / "data").symlink_to(run.resolve().parent / "data")
        with jupyter.lab(kit, Path(folder) / "home") as lab:
            ready = partial(in_lab, browser, lab, kit, run)
            notebook = ready("05_analysis", "browser_questions")
            cell = notebook.run_up_to("browser.questions(")
            yield "browser_questions", picture_of(cell)
            notebook = ready("03_grpo", "browser_rollouts")
            cell = notebook.run_up_to("browser.rollouts(")
            for _ in range(2):
                jupyter.press_next(cell)
            yield "browser_rollouts", picture_of(cell)
            notebook = ready("03_grpo", "trained_live", run_name="trained_live")
            yield "training_live", training(notebook, kit / "outputs/trained_live")


def in_lab(
    browser: Browser, lab: Callable, kit: Path, run: Path, name: str, copy: str, **more
) -> jupyter.Notebook:
    """Today's notebook with the parameters that its executed copy was given."""
    given = records.read_json(run / f"{name}.ipynb")["metadata"]["papermill"]
    file = jupyter.copied(kit, name, copy, **given["parameters"] | more)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    return jupyter.Notebook(page, lab, file)


def picture_of(cell: Locator) -> Image.Image:
    cell.scroll_into_view_if_needed()
    return Image.open(io.BytesIO(cell.screenshot()))


def training(notebook: jupyter.Notebook, run: Path) -> Image.Image:
    """The cell that trains, with curves of SHOWN steps; then the kernel is stopped."""

    def far_enough() -> bool:
        assert notebook.errors() == []
        return len(live.read_rows(run / "train_log_grpo.jsonl")) >= SHOWN

    notebook.start("Run All Cells")
    jupyter.wait_for(far_enough, f"there are no {SHOWN} steps yet", seconds=1800)
    picture = picture_of(notebook.cell("launch.call("))
    notebook.interrupt()
    return picture


def main() -> None:
    parser = Door("python -m tests.bench.screens", __doc__)
    words = "folder of a run that has its report"
    parser.add_argument("run", type=Path, nargs="?", help=words)
    parser.add_argument("--out", type=Path, required=True, help="folder of the PNGs")
    options = parser.parse_args()
    asked = [one_picture]
    if options.run:
        run = paths.require(options.run, "run the notebooks first: python -m lib.run")
        how = f"write it with python -m lib.run report {run}"
        paths.require(run / "report.html", how)
        asked += [
            partial(p, run=run) for p in (report_views, notebook_pages, in_jupyter)
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    with jupyter.chromium() as browser:
        for pictures in asked:
            for name, picture in pictures(browser):
                data = reduced(picture)
                (options.out / f"{name}.png").write_bytes(data)
                print(f"{name}.png: {picture.size}, {len(data):,} bytes", flush=True)


if __name__ == "__main__":
    main()
