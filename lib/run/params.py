"""Parameters of a run: declared in the notebooks, given in params/*.yaml.

A notebook declares them in its cell tagged `parameters`, one a line, each a typed
literal with a sentence:

    lr: float = 1.0e-3  # AdamW learning rate

A params file is flat YAML and gives values to some of them. `base: mini.yaml` starts
from another file, whose path is relative to this one; `notebooks: [02_sft, 04_eval]`
runs these alone; `sweep:` holds lists and makes one run of every combination. So
params/sweeps/mini_seeds.yaml with

    base: ../mini.yaml
    sweep:
      seed: [0, 1]

is two runs, mini_seeds-seed=0 and mini_seeds-seed=1, otherwise as params/mini.yaml.

papermill takes unknown keys and wrong types without complaint, and its own reading of
the parameter cell loses a line with an equals sign in the comment; so the cell is read
with `ast` here, and every fault of a file is reported before anything runs.
"""

import ast
import difflib
import io
import itertools
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from lib.markup import LONGEST, shown
from lib.paths import ROOT, check_run_name

NOTEBOOKS = ROOT / "notebooks"
TYPES = {"bool": bool, "int": int, "float": float, "str": str}
LINES = "expected lines of `key: value`"
DEEPEST = 8  # levels of a file; a list within a sweep is the third
MOST_RUNS = 1000  # of a sweep
MOST_FAULTS = 20  # that a message lists
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter cell."""

    name: str
    type: type
    default: bool | int | float | str
    sentence: str
    place: str


@dataclass(frozen=True)
class Run:
    """The values of one run, with its name and the notebooks that it consists of.

    `varied` are the keys a sweep varies.
    """

    name: str
    values: dict[str, bool | int | float | str]
    varied: tuple[str, ...] = ()
    notebooks: tuple[Path, ...] = ()


class ParamsFaults(ValueError):
    """Every fault of a params file, each naming file, line and key."""

    def __init__(self, faults: list[str]):
        self.faults = [shown(fault) for fault in faults]
        more = len(faults) - MOST_FAULTS
        rest = [f"and {more} more faults"] if more > 0 else []
        super().__init__("\n".join(self.faults[:MOST_FAULTS] + rest))


@dataclass(frozen=True)
class _Given:
    """A key of a params file with its YAML node, and the faults found so far."""

    key: str
    node: yaml.Node
    file: Path
    faults: list[str]

    def fault(self, text: str, node: yaml.Node | None = None) -> None:
        line = (node or self.node).start_mark.line + 1
        name = shown(self.key, LONGEST)
        self.faults.append(f"{self.file}, line {line}, {name}: {text}")


class _Plain(yaml.SafeLoader):
    """YAML without what a params file has no use for and what has no bound: aliases,
    of which a few lines can stand for gigabytes, and deep nesting."""

    level = 0

    def compose_node(self, parent, index):
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias: write it out", problem_mark=mark
            )
        self.level += 1
        if self.level > DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


def notebook_paths(folder: Path = NOTEBOOKS) -> list[Path]:
    """The numbered notebooks of a folder, in the order of their numbers."""
    found = sorted(folder.glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no notebook such as 01_data.ipynb")
    return found


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares; ValueError names the line at fault."""
    source = _parameter_cell(notebook)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    sentences = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        place = f"{notebook.name}, parameter cell, line {node.lineno}"
        sentence = sentences.get(node.end_lineno, "").lstrip("# ")
        parameter = _parameter(node, sentence, place)
        if parameter.name in found:
            raise ValueError(f"{place}: {parameter.name} is declared twice")
        found[parameter.name] = parameter
    return found


def declarations(notebooks: Iterable[Path]) -> dict[str, Parameter]:
    """All parameters; a name that two notebooks share must mean the same in both."""
    found: dict[str, Parameter] = {}
    for notebook in notebooks:
        for name, new in declared(notebook).items():
            old = found.setdefault(name, new)
            if (old.type, old.default) != (new.type, new.default):
                raise ValueError(
                    f"{name} is {old.type.__name__} = {old.default!r} in {old.place}, "
                    f"but {new.type.__name__} = {new.default!r} in {new.place}"
                )
    return found


def load_params(path: str | Path, notebooks: Path = NOTEBOOKS) -> list[Run]:
    """The runs of a params file: one, or one for every combination of its sweep.

    Raises ParamsFaults with all faults: unknown and repeated keys, values of a type
    other than the notebook's, a missing run_name, names that cannot be folders.
    """
    available = notebook_paths(notebooks)
    parameters = declarations(available)
    known = {name: parameter.type for name, parameter in parameters.items()}
    faults: list[str] = []
    given, axes = _collect(Path(path), faults)
    chosen = _chosen(given.pop("notebooks", None), available)
    values = {key: _checked(item, item.node, known) for key, item in given.items()}
    varied = [
        [(item.key, _checked(item, node, known)) for node in item.node.value]
        for item in axes
    ]
    runs = [] if faults else _expand(Path(path), values, chosen, varied, faults)
    if faults:
        raise ParamsFaults(faults)
    return runs


def check_given(names: Mapping[str, Any]) -> None:
    """ValueError for what `papermill -f FILE` or `-p` gave a notebook, whose globals()
    are `names`, and load_params would refuse: papermill takes it without a word.

    A `base` or `sweep` is read by lib.run alone; papermill would run the
    defaults.
    """
    cells = [cell for cell in names.get("In", ()) if cell.startswith("# Parameters\n")]
    known = declarations(notebook_paths())
    for line in ast.parse(cells[-1] if cells else "").body:
        key, value = line.targets[0].id, _value(line.value)
        if key in ("base", "sweep"):
            raise ValueError(
                f"papermill does not read `{key}`: these are not the values of the "
                "params file. Use `python -m lib.run FILE`; a line such as "
                "`notebooks: [02_sft]` in it runs that notebook alone"
            )
        if key != "notebooks":
            kind = known[key].type if key in known else None
            if wrong := _mismatch(value, kind) if kind else _unknown(key, known):
                raise ValueError(f"{key}, given to papermill: {wrong}")


def _value(node: ast.expr) -> Any:
    """What papermill wrote down for a value; its text where that is no literal."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _parameter_cell(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise ValueError(
            f"{notebook.name}: expected exactly one cell tagged parameters, with code; "
            f"found {len(tagged)} tagged cells"
        )
    return tagged[0].source


def _parameter(node: ast.stmt, sentence: str, place: str) -> Parameter:
    match node:
        case ast.AnnAssign(
            target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr()
        ) if kind in TYPES:
            try:
                default = ast.literal_eval(node.value)
            except ValueError:
                default = None
            if _mismatch(default, TYPES[kind]) is None and sentence:
                return Parameter(
                    name, TYPES[kind], TYPES[kind](default), sentence, place
                )
    raise ValueError(
        f"{place}: expected `name: type = literal  # sentence` with a type of "
        f"{', '.join(TYPES)}; found `{ast.unparse(node)}`"
        + ("" if sentence else " without a sentence")
    )


def _mismatch(value: Any, kind: type) -> str | None:
    """What is wrong with a value of a parameter of type `kind`; None if nothing."""
    if type(value) is kind or (kind is float and type(value) is int):
        return None
    found = f"expected {kind.__name__}, found {type(value).__name__} "
    found += shown(repr(value), LONGEST)
    if kind is str:
        return f"{found}; put it in quotation marks"
    if kind is float and isinstance(value, str) and NUMBER.fullmatch(value):
        return f"{found}; YAML wants a point and a sign: {_yaml_float(value)}"
    return found


def _unknown(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no notebook declares this parameter{hint}"


def _misread(text: str, value: Any) -> str | None:
    """What is wrong with a number that YAML 1.1 reads as nobody means it: 010 is 8
    there and 1:30 is 90; None if nothing."""
    if type(value) not in (int, float):
        return None
    plain = f"a finite number in plain digits, found {text}"
    if not math.isfinite(value):
        return f"expected {plain}"
    try:
        same = type(value)(text) == value
    except ValueError:
        same = False
    return None if same else f"expected {plain}: YAML reads it as {value}; write that"


def _yaml_float(text: str) -> str:
    """A number as YAML 1.1 reads it: 1e-5 -> 1.0e-5, 3E4 -> 3.0e+4."""
    mantissa, _, exponent = text.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    sign = "" if exponent.startswith(("+", "-")) else "+"
    return f"{mantissa}e{sign}{exponent}" if exponent else mantissa


def _collect(
    path: Path, faults: list[str], above: tuple[Path, ...] = ()
) -> tuple[dict[str, _Given], list[_Given]]:
    """The keys of a file over those of its bases, and the axes of its sweep."""
    own = _read(path, faults)
    if own is None:
        return {}, []
    base, sweep = own.pop("base", None), own.pop("sweep", None)
    axes = _axes(sweep, own) if sweep else []
    if not above:
        _check_named(path, own, sweep, faults)
    elif sweep:
        sweep.fault(f"{above[-1]} starts from this file; no sweep here")
    inherited: dict[str, _Given] = {}
    if base:
        source = path.parent / shown(base.node.value, LONGEST)
        if not isinstance(base.node, yaml.ScalarNode):
            base.fault("expected the path of a params file")
        elif source.resolve() in {p.resolve() for p in (*above, path)}:
            base.fault(f"{source} starts from this file")
        elif not source.is_file():
            base.fault(f"{source} is missing")
        else:
            inherited, _ = _collect(source, faults, (*above, path))
            inherited.pop("run_name", None)
    swept = {item.key for item in axes}
    merged = {key: item for key, item in inherited.items() if key not in swept}
    return merged | own, axes


def _read(path: Path, faults: list[str]) -> dict[str, _Given] | None:
    """The keys of one file; None, with a fault added, if it cannot be read."""
    raw, loader = b"", None
    try:
        raw = path.read_bytes()
        loader = _Plain(raw.decode("utf-8"))
        tree = loader.get_single_node()
        if isinstance(tree, yaml.MappingNode):
            return _keys(tree, path, faults)
        line, why = 1, LINES
    except FileNotFoundError:
        faults.append(f"{path} is missing: give a file such as params/mini.yaml")
        return None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        why = "not UTF-8; save it as UTF-8 text"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        why = f"not YAML ({error.problem}); {LINES}"
    except yaml.reader.ReaderError as error:
        line = raw.decode("utf-8").count("\n", 0, error.position) + 1
        why = f"a control character, {error.character:#04x}; {LINES}"
    except (ValueError, OverflowError) as error:  # "\\UFFFFFFFF" is no character
        line, why = loader.line + 1, f"not YAML ({error}); {LINES}"
    faults.append(f"{path}, line {line}: {why}")
    return None


def _keys(tree: yaml.MappingNode, path: Path, faults: list[str]) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    for key_node, node in tree.value:
        item = _Given(str(key_node.value), node, path, faults)
        if item.key in found:
            item.fault("given twice", key_node)
        found[item.key] = item
    return found


def _axes(sweep: _Given, own: dict[str, _Given]) -> list[_Given]:
    """The swept keys, each with a node that is a list."""
    if not isinstance(sweep.node, yaml.MappingNode) or not sweep.node.value:
        sweep.fault("expected lines of `key: [value, value]` below it")
        return []
    axes = []
    for key, item in _keys(sweep.node, sweep.file, sweep.faults).items():
        if key == "run_name":
            item.fault("a sweep names its runs itself")
        elif key in own:
            item.fault("given here and outside the sweep")
        elif not isinstance(item.node, yaml.SequenceNode) or not item.node.value:
            item.fault("expected a list of values, such as [0, 1]")
        else:
            axes.append(item)
    return axes


def _check_named(
    path: Path, own: dict[str, _Given], sweep: _Given | None, faults: list[str]
) -> None:
    if sweep and "run_name" in own:
        own["run_name"].fault("a sweep is named after its file")
    if not sweep and "run_name" not in own:
        faults.append(f"{path}, run_name: missing; it names the folder of the records")


def _chosen(item: _Given | None, available: list[Path]) -> tuple[Path, ...]:
    """The notebooks that a file names, all where it names none."""
    if item is None:
        return tuple(available)
    if not isinstance(item.node, yaml.SequenceNode) or not item.node.value:
        item.fault("expected a list of names, such as [02_sft, 04_eval]")
        return ()
    named = {shown(node.value, LONGEST): node for node in item.node.value}
    stems = [notebook.stem for notebook in available]
    for name, node in named.items():
        if name not in stems:
            there = f"there is no notebook {name}; there are {', '.join(stems)}"
            item.fault(there, node)
    return tuple(notebook for notebook in available if notebook.stem in named)


def _checked(item: _Given, node: yaml.Node, known: dict[str, type]) -> Any:
    """The value of a node, of the declared type; a fault is added if it is not."""
    kind = str if item.key == "run_name" else known.get(item.key)
    if kind is None:
        item.fault(_unknown(item.key, known), node)
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        why = shown(error, LONGEST)
        item.fault(f"not a value of YAML ({why})", node)
        return None
    wrong = _mismatch(value, kind) or _misread(node.value, value)
    if wrong:
        item.fault(wrong, node)
        return None
    return kind(value)


def _expand(
    path: Path,
    values: dict[str, Any],
    notebooks: tuple[Path, ...],
    varied: list[list[tuple[str, Any]]],
    faults: list[str],
) -> list[Run]:
    """One run a combination; their names tell the combinations apart."""
    count = math.prod(map(len, varied))
    if count > MOST_RUNS:
        most = f"{count:,} combinations, more than {MOST_RUNS:,}"
        faults.append(f"{path}, sweep: {most}; give fewer values, or several files")
        return []
    runs = []
    for combination in itertools.product(*varied):
        parts = [re.sub(r"[^\w.+=-]", "_", f"{k}={v}") for k, v in combination]
        name = "-".join([path.stem, *parts]) if varied else values["run_name"]
        keys = tuple(key for key, _ in combination)
        own = {**values, **dict(combination), "run_name": name}
        runs.append(Run(name, own, keys, notebooks))
    names = [run.name for run in runs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"{path}, sweep: two runs would both be called {name}")
    try:
        for name in ([path.stem] if varied else []) + names:
            check_run_name(name)
    except ValueError as error:
        faults.append(f"{path}, run_name: {error}")
    return runs
