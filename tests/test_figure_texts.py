"""Words in the place of figures, with the numbers of the records they show."""

import re

import nbformat
import pytest

from lib import figure_texts
from lib.paths import ROOT

WORDS = ("own", "base", "grpo", "sft", "0", "L1", "question")


def drawn_by_the_notebooks():
    """Names of PNG files in their code; `{...}` is any of the parts before."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                for name in re.findall(r'"([^"/\s]*\.png)"', cell.source):
                    yield path.stem, name


@pytest.mark.parametrize(("notebook", "name"), sorted(set(drawn_by_the_notebooks())))
def test_every_figure_of_the_notebooks_has_its_words(notebook, name):
    filled = {re.sub(r"\{[^}]*\}", word, name) for word in WORDS}
    found = [said for one in filled if (said := figure_texts.describe(one, nothing))]
    assert found, f"lib/figure_texts.py has no words for {name} of {notebook}"
    for said in found:
        assert said.caption and said.alt and "{" not in said.caption + said.alt


def test_the_notebooks_draw_what_this_file_believes():
    names = {name for _, name in drawn_by_the_notebooks()}
    assert {"accuracy.png", "differences.png", "claims.png"} <= names


def nothing(name):
    return None


def records(**known):
    return lambda name: known.get(name.partition(".")[0])


def row(model, name, **more):
    return {"model": model, "set": name, "accuracy": 0.356} | more


def test_numbers_come_from_the_records():
    rows = [row("base", "L1"), row("grpo", "L1", accuracy=0.8), row("ppo", "L1")]
    read = records(results={"accuracy": rows})
    said = figure_texts.describe("accuracy.png", read)
    assert said.section == "figures"
    assert said.alt.endswith("L1: base 35.6 %, GRPO 80.0 %.")
    without = figure_texts.describe("accuracy.png", nothing)
    assert without.alt and said.alt.startswith(without.alt)


def test_the_ends_of_a_curve_are_means_of_a_tenth():
    log = [{"step": i, "reward": i / 10, "kl": None} for i in range(1, 21)]
    said = figure_texts.describe("grpo.png", records(train_log_grpo=log))
    assert "Over 20 steps" in said.alt
    assert "mean reward from 0.15 to 1.95" in said.alt
    assert "KL" not in said.alt.split("tenth: ")[1]
    assert said.caption.startswith("GRPO: reward")


def test_whose_words_the_attention_is_on():
    masses = [
        {"text": "own", "where": "all layers", "kind": "video", "model": "sft"}
        | {"mean": 0.25},
        {"text": "base", "where": "all layers", "kind": "video", "model": "sft"}
        | {"mean": 0.5},
    ]
    read = records(attention={"masses": masses})
    own = figure_texts.describe("attention_layers_own.png", read)
    base = figure_texts.describe("attention_layers_base.png", read)
    assert "its own words" in own.alt and own.alt.endswith("video: SFT 25.0 %.")
    assert "the base's words" in base.alt and base.alt.endswith("video: SFT 50.0 %.")


def test_verdicts_are_counted():
    rows = [{"verdict": "undecidable"}] * 2 + [{"verdict": "supported"}]
    said = figure_texts.describe("claims.png", records(claims=rows))
    assert said.alt.endswith("2 undecidable; 1 supported.")


def test_unsupported_right_answers_are_a_share_of_all_levels():
    rows = [
        {"model": "grpo", "measure": "consistent", "set": name, "n": 10}
        | {"right_unsupported": count}
        for name, count in (("L1", 1), ("L2", 3), ("general", 9))
    ]
    said = figure_texts.describe("supported.png", records(coherence={"answers": rows}))
    assert said.alt.endswith("GRPO 20.0 %.")


def test_figures_come_in_the_order_of_the_file_and_unknown_ones_last():
    names = ["mine.png", "grpo.png", "accuracy.png", "sft.png", "domains.png"]
    assert sorted(names, key=figure_texts.order) == [
        *("accuracy.png", "domains.png", "sft.png", "grpo.png", "mine.png")
    ]
    assert figure_texts.describe("mine.png", nothing) is None
