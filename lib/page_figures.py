"""The figures of a run as a report shows them: on a white card, said in words, with a
link to where they were made."""

from pathlib import Path

from lib import figure_texts, notebook_pages
from lib.markup import Html, join, png, tag
from lib.page_parts import Run


def figures(run: Run, section: str) -> Html:
    """The figures of a section that the run has, in their order."""
    drawn = []
    for path in sorted(
        (run.folder / "figures").glob("*.png"), key=lambda p: figure_texts.order(p.name)
    ):
        said = figure_texts.describe(path.name, run) or undescribed(run, path)
        if said.section == section:
            drawn.append(figure(run, path, said))
    return join(drawn)


def figure(run: Run, path: Path, said: figure_texts.Figure) -> Html:
    """A picture on a white card, its caption, and where it was made."""
    caption = [said.caption, made_in(run, path.name)]
    return tag("figure", png(path, said.alt), tag("figcaption", *caption))


def undescribed(run: Run, path: Path) -> figure_texts.Figure:
    """Words for a figure that lib/figure_texts.py does not know: where it is from."""
    name = path.stem.replace("_", " ")
    found = notebook_pages.maker(run.notebooks, path.name)
    where = f", from “{found.section.title}” in {found.notebook.stem}" if found else ""
    alt = f"A figure of this run, “{name}”{where}; it has no other description."
    return figure_texts.Figure("figures", f"{name}{where}.", alt)


def made_in(run: Run, name: str) -> Html:
    """A link into the notebook that drew a figure; empty where it is not known."""
    found = notebook_pages.maker(run.notebooks, name)
    if not found:
        return Html("")
    notebook, section = found
    words = f"{notebook.stem}, {section.title}"
    link = tag("a", words, href=f"{notebook.stem}.html#{section.anchor}")
    return tag("span", " Made in ", link, ".", class_="made")
