"""Parameters: read from the notebooks with ast, checked all at once, swept."""

import re
from pathlib import Path

import nbformat
import pytest
from papermill.translators import translate_parameters

from lib.paths import ROOT
from lib.run.params import (
    ParamsFaults,
    check_given,
    declarations,
    declared,
    load_params,
)

PARAMS = ROOT / "params"
FILES = [
    path.relative_to(PARAMS).as_posix()
    for path in sorted(PARAMS.rglob("*.yaml"))
    if "accelerate" not in path.parts  # settings of the launcher, not of a run
]

THOUSAND = [*range(1000)]
WHOLE = "expected a whole number in plain digits"
FINITE = "expected a finite number in plain digits, such as 1.0e-5"

TRAIN = """\
run_name: str = "smoke"  # folder below outputs/
seed: int = 0  # of everything that is random
lr: float = 1.0e-3  # learning rate (paper: lr=1e-6)
quantize: bool = False  # 4-bit weights
reward: str = "accuracy"  # what is paid"""
EVALUATE = """\
run_name: str = "smoke"  # folder below outputs/
max_frames: int = 4  # frames of a clip"""


@pytest.fixture
def notebooks(tmp_path) -> Path:
    folder = tmp_path / "notebooks"
    write_notebook(folder / "01_train.ipynb", TRAIN)
    write_notebook(folder / "02_eval.ipynb", EVALUATE)
    return folder


def write_notebook(path: Path, parameters: str) -> None:
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def faults(path: Path, notebooks: Path, given=()) -> list[str]:
    with pytest.raises(ParamsFaults) as caught:
        load_params(path, notebooks, given)
    return str(caught.value).splitlines()


def test_a_file_can_name_the_notebooks_of_its_runs(tmp_path, notebooks):
    write(tmp_path, "all.yaml", "run_name: a\nnotebooks: [02_eval, 01_train]\n")
    path = write(tmp_path, "one.yaml", "base: all.yaml\nrun_name: b\n")
    two = [notebooks / "01_train.ipynb", notebooks / "02_eval.ipynb"]
    assert load_params(path, notebooks)[0].notebooks == tuple(two)
    text = "base: all.yaml\nnotebooks: [02_eval]\nsweep: {seed: [1, 2]}"
    path = write(tmp_path, "s.yaml", text)
    assert [run.notebooks for run in load_params(path, notebooks)] == [(two[1],)] * 2
    path = write(tmp_path, "none.yaml", "run_name: c\n")
    assert load_params(path, notebooks)[0].notebooks == tuple(two)


def test_a_command_line_gives_values_over_the_file(tmp_path, notebooks):
    path = write(tmp_path, "a.yaml", "run_name: a\nmax_frames: 2\n")
    given = ["max_frames=3", "lr=1e-4", "run_name=2", "quantize=true"]
    (run,) = load_params(path, notebooks, given)
    assert run.name == "2"
    wanted = {"max_frames": 3, "lr": 1e-4, "run_name": "2", "quantize": True}
    assert {name: run.values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("max_frames=0.5", f"{WHOLE}, found '0.5'"),
        ("max_frames", f"{WHOLE}, found ''"),
        ("lr=nan", f"{FINITE}, found 'nan'"),
        ("lr=1e999", f"{FINITE}, found '1e999'"),
        ("quantize=yes", "expected true or false, found 'yes'"),
        ("max_frame=3", "no notebook declares this parameter; did you mean max_f"),
        ("base=b.yaml", "no notebook declares this parameter"),
        ("seed=1", "the sweep gives it"),
        ("run_name=b", "the sweep gives it"),
    ],
)
def test_a_wrong_override_is_refused_by_name(tmp_path, notebooks, given, why):
    path = write(tmp_path, "a.yaml", "lr: 0.1\nsweep: {seed: [1, 2]}\n")
    (found,) = faults(path, notebooks, [given])
    assert f"{given}, on the command line: {why}" in found


@pytest.mark.parametrize("name", FILES)
def test_every_params_file_is_without_fault(name):
    assert load_params(PARAMS / name)


def test_declared_reads_type_default_and_sentence(notebooks):
    lr = declared(notebooks / "01_train.ipynb")["lr"]
    assert (lr.type, lr.default) == (float, 1e-3)
    assert lr.sentence == "learning rate (paper: lr=1e-6)"
    assert lr.place == "01_train.ipynb, parameter cell, line 3"


@pytest.mark.parametrize(
    "line",
    [
        "lr = 1.0e-3  # without a type",
        "lr: float  # without a value",
        "lr: float = 10**-3  # not a literal",
        "lr: float = '1e-3'  # of another type",
        "steps: int = True  # of another type",
        "lrs: list = [1]  # of a type that is not allowed",
        "lr: float = 1.0e-3",
        "print('more')  # not a declaration",
        "seed: int = 1  # declared twice",
    ],
)
def test_declared_refuses_other_lines(line, notebooks):
    write_notebook(notebooks / "01_train.ipynb", f"seed: int = 0  # seed\n{line}")
    with pytest.raises(ValueError, match=r"01_train\.ipynb, parameter cell, line 2"):
        declared(notebooks / "01_train.ipynb")


@pytest.mark.parametrize("tagged", [0, 2])
def test_declared_wants_one_parameter_cell(tagged, notebooks):
    tags = {"tags": ["parameters"]}
    cells = [nbformat.v4.new_code_cell(TRAIN, metadata=tags) for _ in range(tagged)]
    path = notebooks / "01_train.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(ValueError, match=f"01_train.*found {tagged}"):
        declared(path)


@pytest.mark.parametrize("other", ["seed: int = 1  # seed", "seed: float = 0  # seed"])
def test_a_shared_name_means_the_same_everywhere(other, notebooks):
    write_notebook(notebooks / "02_eval.ipynb", other)
    with pytest.raises(ValueError, match=r"seed is int = 0 .*01_train.*02_eval"):
        declarations(sorted(notebooks.iterdir()))


def test_values_come_with_the_declared_type(notebooks, tmp_path):
    path = write(tmp_path, "a.yaml", "run_name: a\nlr: 1\nseed: 3\nquantize: true\n")
    (run,) = load_params(path, notebooks)
    assert run.values == {"run_name": "a", "lr": 1.0, "seed": 3, "quantize": True}
    assert type(run.values["lr"]) is float
    assert (run.name, run.varied) == ("a", ())
    name, large = "x" * 200, 2**70 + 1
    path.write_text(f"run_name: {name}\nlr: 1e-5\nmax_frames: 1_000\nseed: {large}\n")
    (run,) = load_params(path, notebooks)
    wanted = {"run_name": name, "lr": 1e-5, "max_frames": 1000, "seed": large}
    assert run.values == wanted


def test_all_faults_are_reported_at_once_with_file_line_and_key(notebooks, tmp_path):
    text = "sed: 1\nlr: 0.1\nmax_frames: true\nzebra: 1\nlr: 1.0\n"
    path = write(tmp_path, "a.yaml", text)
    found = faults(path, notebooks)
    assert found == [
        f"{path}, line 5, lr: given twice",
        f"{path}, run_name: missing; it names the folder of the records",
        f"{path}, line 1, sed: no notebook declares this parameter; did you mean seed?",
        f"{path}, line 3, max_frames: {WHOLE}, found 'true'",
        f"{path}, line 4, zebra: no notebook declares this parameter",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: [0, 1]", f"{WHOLE}, found a list"),
        ("seed: {a: 1}", f"{WHOLE}, found lines of their own"),
        ("run_name: off", "expected a text; put it in quotation marks, found 'off'"),
        ("run_name: a/b", "must be a plain folder name"),
        ("run_name: !!python/name:os.system", "put it in quotation marks, found ''"),
        ("notebooks: [01_train, 3]", "expected a list out of 01_train, 02_eval, found"),
        ("notebooks: 01_train", "expected a list out of 01_train, 02_eval, found '01"),
        ("notebooks: []", "02_eval, found a list"),
        ("[1, 2]", "line 1: expected lines of `key: value`"),
        ("base: none.yaml", "none.yaml is missing"),
        ("base: a.yaml", "a.yaml starts from this file"),
        ("sweep: 3", "expected lines of `key: [value, value]`"),
        ("sweep: {seed: 3}", "expected a list of values"),
        ("sweep: {seed: []}", "expected a list of values"),
        ("sweep: {sed: [1]}", "did you mean seed?"),
        ("sweep: {seed: [1, x]}", f"{WHOLE}, found 'x'"),
        ("sweep: {seed: [1, 1]}", "two runs would both be called a-seed_1"),
        ("sweep: {run_name: [b]}", "a sweep names its runs itself"),
        ("seed: 1\nsweep: {seed: [1]}", "given here and outside the sweep"),
        ("run_name: a\nsweep: {seed: [1]}", "a sweep is named after its file"),
        (f"sweep: {{reward: [a, {'b' * 300}]}}", "of at most 200 bytes"),
        (
            f"sweep: {{seed: {THOUSAND}, max_frames: {THOUSAND}, lr: {THOUSAND}}}",
            "1,000,000,000 combinations, more than 1,000",
        ),
    ],
)
def test_a_fault_is_named(line, expected, notebooks, tmp_path):
    named = "" if "run_name" in line or "sweep" in line else "run_name: a\n"
    path = write(tmp_path, "a.yaml", line if line[0] == "[" else named + line)
    (found,) = faults(path, notebooks)
    assert found.startswith(f"{path}, ") and expected in found


def test_a_missing_file_is_a_fault_that_says_what_to_give(notebooks, tmp_path):
    path = tmp_path / "none.yaml"
    wanted = f"{path} is missing: give a file such as params/mini.yaml"
    assert faults(path, notebooks) == [wanted] and "mini.yaml" in FILES
    (found,) = faults(tmp_path, notebooks)
    assert found.startswith(f"{tmp_path} cannot be read (Is a directory): give a file")


def test_base_is_overridden_and_gives_no_run_name(notebooks, tmp_path):
    base = write(tmp_path, "mini.yaml", "run_name: mini\nseed: 1\nlr: 0.5\n")
    path = write(tmp_path, "sub/a.yaml", "base: ../mini.yaml\nlr: 2\nrun_name: a\n")
    (run,) = load_params(path, notebooks)
    assert run.values == {"run_name": "a", "seed": 1, "lr": 2.0}
    base.write_text("run_name: mini\nsed: 1\n")
    (found,) = faults(path, notebooks)
    assert "mini.yaml, line 2, sed" in found and "a.yaml" not in found
    base.write_text("sweep: {seed: [1, 2]}\n")
    assert "no sweep here" in faults(path, notebooks)[0]
    path.write_text("base: ../mini.yaml\n")
    assert "run_name: missing" in " ".join(faults(path, notebooks))


def test_a_sweep_is_every_combination_over_its_base(notebooks, tmp_path):
    write(tmp_path, "mini.yaml", "run_name: mini\nseed: 7\nquantize: true\n")
    text = "base: mini.yaml\nsweep:\n  seed: [0, 1]\n  lr: [1.0e-3, 2]\n"
    runs = load_params(write(tmp_path, "grid.yaml", text), notebooks)
    assert [run.name for run in runs] == [
        "grid-seed_0-lr_0.001",
        "grid-seed_0-lr_2.0",
        "grid-seed_1-lr_0.001",
        "grid-seed_1-lr_2.0",
    ]
    assert runs[1].varied == ("seed", "lr")
    assert runs[1].values == {
        **{"run_name": "grid-seed_0-lr_2.0", "quantize": True},
        **{"seed": 0, "lr": 2.0},
    }
    text = "base: mini.yaml\nsweep: {reward: [accuracy + 0.2 'a', a | b], lr: [-1]}\n"
    odd = load_params(write(tmp_path, "odd.yaml", text), notebooks)
    names = [run.name for run in odd]  # for shells and hubs: letters, digits, . _ -
    assert names == ["odd-reward_accuracy_0.2_a_-lr_-1.0", "odd-reward_a_b-lr_-1.0"]


BOMB = "".join(
    f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB + "seed: *k8\n", f"line 10, seed: {WHOLE}, found a list"),
        ("run_name: a\nseed: &s [*s]\n", f"line 2, seed: {WHOLE}, found a list"),
        (
            "run_name: a\n? " + "[" * 50 + "]" * 50 + "\n: 1\n",
            "line 2, (no name): no notebook declares",
        ),
        ("run_name: a\nseed: " + "{k: " * 5000 + "\n", "line 2: nested too deep"),
        ("run_name: a\nseed: [1\n", "line 3: not YAML ("),
        ("run_name: a\n\nlr: \0\n", "line 3: a control character, 0x00"),
        ("run_name: a\n# \x9b2J\n", "line 2: a control character, 0x9b"),
        ('run_name: a\nseed: "\\UFFFFFFFF"\n', "line 2: not YAML"),
        ('run_name: a\n"\\e]0;x\\a": 1\n', r"line 2, \x1b]0;x\x07: no notebook"),
        ('run_name: a\nseed: "\\e[2J"\n', f"line 2, seed: {WHOLE}, found"),
        ('run_name: "a\\ud800"\n', r"run_name 'a\ud800' must be printable"),
        ("run_name: a\nseed: 010\n", f"line 2, seed: {WHOLE}, found '010'"),
        (f"run_name: a\nseed: {'9' * 5000}\n", f"line 2, seed: {WHOLE}, found '9"),
        (f"run_name: a\nseed: {'x' * 10**6}\n", f"line 2, seed: {WHOLE}, found 'x"),
        ("base: [a, b]\nrun_name: a\n", "line 1, base: expected the path"),
    ],
)
def test_a_file_of_a_stranger_gives_a_short_plain_message(
    tmp_path, notebooks, text, told
):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    message = "".join(faults(path, notebooks)).replace(str(path), "a.yaml")
    assert told in message and len(message) < 700 and message.isprintable()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"base": "paper.yaml", "run_name": "a"}, "python -m lib.run FILE"),
        ({"sweep": {"seed": [0, 1]}}, "papermill does not read `sweep`"),
        ({"seeed": 1}, "no notebook declares this parameter; did you mean seed"),
        ({"sft_steps": 1.5}, f"sft_steps, given to papermill: {WHOLE}, found float"),
        ({"run_name": 3}, "put it in quotation marks"),
        ({"seed": float("nan")}, f"{WHOLE}, found str"),
        ({"grpo_lr": "1e-5"}, f"{FINITE}, found str '1e-5'"),
    ],
)
def test_papermill_is_told_what_it_would_not_read(given, told):
    cell = translate_parameters("python3", "python", given, "Parameters")
    with pytest.raises(ValueError, match=re.escape(told)):
        check_given({"In": ["", "seed: int = 0", cell]})


def test_a_number_below_zero_is_refused_where_a_notebook_begins():
    with pytest.raises(ValueError, match="pass_questions = -1: it must be 0 or more"):
        check_given({"pass_questions": -1})


def test_what_papermill_may_give_passes():
    given = {"run_name": "a", "seed": 1, "grpo_lr": 1, "notebooks": ["02_sft"]}
    cell = translate_parameters("python3", "python", given, "Parameters")
    check_given({"In": ["", cell, "base = model"], "base": object()})
    check_given({})
