"""The committed notebooks: clean, short-celled, and with readable parameters."""

import ast
import re
import symtable
from collections import Counter
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_films import write_clip
from PIL import Image
from test_questions import demonstration, labelled, training

from lib import methods, records
from lib.analysis import answers, claims, compare, readme, reasoned
from lib.evaluate import tables
from lib.run.params import NOTEBOOKS, declarations, declared, notebook_paths

NAMES = ["01_data", "02_sft", "03_grpo", "04_eval", "05_analysis"]
LONGEST_CELL = 20


@pytest.fixture(params=NAMES)
def path(request):
    return NOTEBOOKS / f"{request.param}.ipynb"


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_first_five_are_there_in_order():
    assert [path.stem for path in notebook_paths()][: len(NAMES)] == NAMES
    assert declarations(notebook_paths())  # shared ones mean the same


def test_it_is_clean(notebook, code):
    """A title first, no outputs, ids of one cell each, and a kernel by name: plain
    papermill, without our pipeline, starts nothing otherwise."""
    first, ids = notebook.cells[0], [cell["id"] for cell in notebook.cells]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert len(set(ids)) == len(ids)
    kernel = notebook.metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


def test_cells_are_short(code):
    long = {
        cell.source.splitlines()[0]: len(cell.source.splitlines())
        for cell in code
        if "parameters" not in cell.metadata.get("tags", [])
        and len(cell.source.splitlines()) > LONGEST_CELL
    }
    assert long == {}


def test_it_defines_nothing_but_lessons(code):
    """Definitions belong in lib/, where they are tested and have one copy; what is
    defined to be understood (03: a policy that can be seen) is tagged so."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code:
        if "lesson" in cell.metadata.get("tags", []):
            continue
        nodes = ast.walk(ast.parse(cell.source))
        found = [node.name for node in nodes if isinstance(node, definitions)]
        assert found == [], f"in the cell:\n{cell.source}"


def test_05_is_a_core_and_an_appendix():
    """Sections in order; what the core and the report need is computed before it."""
    cells = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4).cells
    heads = [
        re.match(r"## (\w+)", line)[1]
        for cell in cells
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert heads == [*"12345678", "Appendix", *"ABCDEFGHIJ"]
    ids = [cell["id"] for cell in cells]
    core = {"who-is-ahead", "map", "results", "missing"}
    assert core <= {*ids[: ids.index("appendix")]}
    closing = [cell["id"] for cell in cells if "chain.close(" in cell.source]
    figures = [cell["id"] for cell in cells if "pages.show(" in cell.source]
    assert closing == ["close"] and ids.index("close") > ids.index(figures[-1])


def test_what_it_says_that_it_read_has_still_that_name(code):
    """A cell between had called its figure `path`, too."""
    bound, reads = {}, []
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Assign):
                bound |= {ast.unparse(name): node.value for name in node.targets}
            elif isinstance(node, ast.keyword) and node.arg == "reads":
                reads.append(node.value)
    names = {n.id for own in reads for n in ast.walk(own) if isinstance(n, ast.Name)}
    for value in (bound[name] for name in names & {*bound}):
        assert not ast.unparse(value).startswith("run / "), ast.unparse(value)


def names(source):
    """What a cell binds, but imports and what it sets to None, and what it takes from
    other cells."""
    tree = ast.parse(source)
    freed = [n for n in tree.body if ast.unparse(n).endswith(" = None")]
    tree.body = [node for node in tree.body if node not in freed]
    tables = [symtable.symtable(ast.unparse(tree), "cell", "exec")]
    bound = {own.get_name() for own in tables[0].get_symbols() if own.is_assigned()}
    read = set()
    for table in tables:
        tables += table.get_children()
        for own in table.get_symbols():
            if own.is_referenced() and (own.is_global() or table is tables[0]):
                read.add(own.get_name())
    return bound, read - bound


def test_cells_can_be_run_again_and_in_another_order(code):
    """What a cell takes from another is bound by that one alone. 02 took a half of a
    half of the data when a cell was run twice; 05 drew its power for another gap."""
    found = [names(cell.source) for cell in code]
    taken = set().union(*(read for _, read in found))
    count = Counter(name for bound, _ in found for name in bound & taken)
    assert [name for name, cells in count.items() if cells > 1] == []


def test_04_says_what_it_asked_before_anything_reads_it():
    """A judge reads of a run the models and sets that metrics.json names."""
    notebook = nbformat.read(NOTEBOOKS / "04_eval.ipynb", as_version=4)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    asked, written, planned, readings = (
        text.index(part)
        for part in ("evaluate_sets", '"metrics.json"', "judge.plan(", "read_run")
    )
    assert asked < written < min(planned, readings)


def test_every_figure_has_its_words(code):
    """Figures are shown by `pages.show`, which refuses to leave out the words."""
    for cell in code:
        assert "plots.save(" not in cell.source and "pyplot" not in cell.source


def test_parameters_and_imports_are_folded_on_pages(code):
    for cell, tag in zip(code, ("setup", "parameters", "setup", "setup"), strict=False):
        assert tag in cell.metadata["tags"]


def test_what_was_given_is_looked_at_before_anything_is_done(code):
    assert code[3].source.startswith("params.check_given(globals())")


def test_papermill_reads_the_same_parameters(path):
    """An equals sign in a comment would hide a line from `--help-notebook`, and IPython
    takes `run: str = ...` for the magic %run."""
    parameters = declared(path)
    assert parameters["run_name"].default == "smoke"
    assert list(papermill.inspect_notebook(path)) == list(parameters)
    magics = InteractiveShell.instance().magics_manager.magics["line"]
    assert "run" in magics and set(parameters) & set(magics) == set()


def test_a_set_without_a_clip_shows_no_conditions():
    """As a set of stills, or one whose clips all failed."""
    notebook = nbformat.read(NOTEBOOKS / "04_eval.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "pages.conditions(" in c.source]
    still = SimpleNamespace(video=None)
    known = {"perception_conditions": "no_video", "told": "base", "first": "L1"}
    known |= {"sets": {"L1": [still]}, "rows": {("base", "L1"): [{"error": None}]}}
    exec(cell.source, known)
    assert known["pictures"] == {}


def test_what_first_words_alone_bring_is_of_the_sets_that_were_asked():
    """And a share only of a gain: SFT loses on L3, the one set that was asked."""
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    (cell,) = [
        c for c in notebook.cells if "base-begun" in c.source and "ENDS" in c.source
    ]
    texts = {"base": "0110" * 9, "base-begun": "1110" * 9}
    texts |= {"sft": "0000" * 9, "grpo": "1111" * 9}
    found = [{"model": m, "set": "L3", "correct": own} for m, own in texts.items()]
    known = {"methods": methods, "compare": compare, "tables": tables, "Markdown": str}
    known["correct"] = answers.of_texts([row | {"seed": 0} for row in found])
    known |= {"predictions": {(model, "L3"): [] for model in texts}, "draws": {}}
    exec(cell.source, known)
    sft, grpo = known["rows"]
    assert (sft[0], sft[-1], grpo[-1]) == ("L3", "–", "50%")


def test_each_seed_stands_below_the_sets_of_its_record(tmp_path):
    """As of one's own records, of fewer sets than the kit's."""
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "readme.read_reference(" in c.source]
    texts = {"base": "0000", "sft": "0011", "grpo": "0110"}
    found = [{"model": m, "set": "L3", "correct": own} for m, own in texts.items()]
    record = {"questions": {}, "settings": "", "results": found}
    for seed in (0, 1):
        own = records.sealed(record | {"seed": seed})
        records.write_json(tmp_path / f"{seed}.json", own)
    known = {"methods": methods, "compare": compare, "tables": tables, "Markdown": str}
    known |= {"paths": SimpleNamespace(resolve=lambda name: tmp_path), "readme": readme}
    source, _, last = cell.source.rpartition("\n")
    exec(source, known)
    head, _, *lines = eval(last, known).splitlines()
    assert head == "| runs | L3 |"
    names = ["seed 0", "seed 1", "all of them"]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in names]


def test_questions_of_a_sweep_behind_a_claim_need_not_be_those_of_the_run(capsys):
    """One's own run had more questions than the recorded sweeps: KeyError 'L1#0'."""
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "claims.behind(" in c.source]
    sides = {"name": "GRPO, clean − noisiest labels", "for": ["L1#0"], "against": []}
    known = {"claims": SimpleNamespace(behind=lambda *_: sides), "known_runs": None}
    known |= {"decided": [{"number": 14}], "asked": {}, "said": {"base": {}}}
    exec(cell.source, known)
    assert known["readable"] == [] and "for: 1" in capsys.readouterr().out


def test_a_run_whose_reasoning_was_not_read_says_so(capsys):
    """As params/evening_2b.yaml, which has no coherence_sets."""
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "reasoned.reasoned(" in c.source]
    row = {"seed": 0, "model": "grpo", "set": "L1", "correct": "01"}
    known = {"answered": answers.of_texts([row]), "reasoned": reasoned, "draws": {}}
    exec(cell.source, known)
    assert "coherence_sets was empty" in capsys.readouterr().out


def test_the_evaluation_shows_rows_of_a_model_that_was_asked():
    """A sweep over one method asks no base: nothing may be read of it by name."""
    notebook = nbformat.read(NOTEBOOKS / "04_eval.ipynb", as_version=4)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    assert "rows[told," in code
    assert 'rows["base"' not in code and "predictions_base" not in code


def test_the_data_may_be_one_question(tmp_path, monkeypatch):
    """As of a user's own set at its start: one to train on, one to ask. Beside it lie a
    set that was not fetched, and what an editor and a Mac leave: no run needs them."""
    monkeypatch.setenv("KIT_OUTPUTS", str(tmp_path))
    files = {"training": training(0), "training_with_cot": demonstration(0)}
    files["validation_L1"] = labelled(1)
    for name, record in files.items():
        records.write_jsonl(tmp_path / f"data/annotations/{name}.jsonl", [record])
    (tmp_path / "data/annotations/.#training.jsonl").symlink_to("me@host.1")
    for name in ("._training", "validation_L2"):
        pointer = "version https://git-lfs.github.com/spec/v1\n"
        records.write_text(tmp_path / f"data/annotations/{name}.jsonl", pointer)
    media = [tmp_path / "data" / kind / "Ego4D" for kind in ("videos", "images")]
    for folder in media:
        folder.mkdir(parents=True)
    write_clip(media[0] / "clip 1.mp4", 12)
    Image.new("RGB", (84, 56)).save(media[1] / "still-1.png")
    cells = nbformat.read(NOTEBOOKS / "01_data.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"][1:]
    given = 'data_command, data_dir, general_dir = "", "outputs/data", "outputs/none"'
    sources[0] += f'\n{given}\nasked_sets, holdout_share = "L1", 0.0'
    done = {}
    for source in sources:
        exec(source, done)
    assert done["puzzle"].id == "L1/1"


def test_the_analysis_asks_for_no_direct_answers():
    """`asked_models: base sft grpo` leaves them out."""
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    (shown,) = [own for own in code if "differences_markdown(direct)" in own]
    none = {"direct": [], "compare": None, "Markdown": str}
    assert eval(shown, none) == "Not asked here."


def test_the_analysis_says_which_claims_are_not_of_this_run():
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    swept = [
        str(claim["number"])
        for claim in claims.claims()
        if any("sweep=" in term for p in claim["parts"] for term in p["effect"])
    ]
    said = f"Claims {', '.join(swept[:-1])} and {swept[-1]} vary a setting, so they are"
    assert any(said in cell.source for cell in notebook.cells)


def test_the_analysis_draws_no_levels_where_general_alone_was_asked(capsys):
    notebook = nbformat.read(NOTEBOOKS / "05_analysis.ipynb", as_version=4)
    (drawn,) = [c.source for c in notebook.cells if "supported_answers(" in c.source]
    known = {"sets": ["general"], "methods": methods, "coherent": {"answers": []}}
    exec(drawn, known)
    assert "figure" not in known and "about a level" in capsys.readouterr().out
