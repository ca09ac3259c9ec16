"""Parameters of a run: declared in the notebooks, given in params/*.yaml.

A notebook declares them in its cell tagged `parameters`, one a line, each a typed
literal with a sentence: `lr: float = 1.0e-3  # AdamW learning rate`. A params file is
flat YAML and gives values to some of them. `base: mini.yaml` starts from another file,
whose path is relative to this one; `notebooks: [02_sft, 04_eval]` runs these alone;
`card_gib: 24` is the memory of the card that a dry run plans for; `sweep:` holds lists
and makes one run of every combination:

    base: ../mini.yaml
    sweep:
      seed: [0, 1]

in mini_seeds.yaml is two runs, mini_seeds-seed_0 and mini_seeds-seed_1: letters, digits
and . _ - alone, so that shells and hubs take their names as they are. Of YAML only the
lines and lists are taken; a value, of a command line too, is read by its declared type.

papermill takes unknown keys and wrong types without complaint, and loses a parameter
with an equals sign in its comment; so the cell is read here, every fault at once."""

import ast
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.markup import LONGEST, shown
from lib.paths import ROOT, check_run_name
from lib.records import read_json

NOTEBOOKS = ROOT / "notebooks"
TYPES = {"bool": bool, "int": int, "float": float, "str": str}
DECLARATION = re.compile(rf"(\w+): ({'|'.join(TYPES)}) = (.+?)  # (.+)")
LINES = "expected lines of `key: value`"
MOST_RUNS = 1000  # of a sweep
TEXT = "tag:yaml.org,2002:str"
# Neither 010, which YAML 1.1 takes for 8, nor 1:30, which it takes for 90.
NUMBER = re.compile(r"[+-]?(?!0[\d_])(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)
EXPECTED = {
    bool: "true or false",
    int: "a whole number in plain digits",
    float: "a finite number in plain digits, such as 1.0e-5",
    str: "a text; put it in quotation marks",
}


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
    `varied` are the keys a sweep varies, `card_gib` is 0 where no card is named."""

    name: str
    values: dict[str, bool | int | float | str]
    varied: tuple[str, ...] = ()
    notebooks: tuple[Path, ...] = ()
    card_gib: float = 0.0


class ParamsFaults(ValueError):
    """Every fault of a params file, a line each, naming file, line and key."""


def notebook_paths(folder: Path = NOTEBOOKS) -> list[Path]:
    """The numbered notebooks of a folder, in the order of their numbers."""
    return sorted(folder.glob("[0-9]*.ipynb"))


def cells_of(notebook: Path) -> list[dict]:
    """A notebook's cells, each source one text. nbformat would take two seconds."""
    cells = read_json(notebook)["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares; ValueError names the line at fault."""
    cells = cells_of(notebook)
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise ValueError(
            f"{notebook.name}: expected exactly one cell tagged parameters, with code; "
            f"found {len(tagged)} tagged cells"
        )
    found: dict[str, Parameter] = {}
    for number, line in enumerate(tagged[0]["source"].splitlines(), 1):
        place = f"{notebook.name}, parameter cell, line {number}"
        new = _declaration(line, place)
        if new.name in found:
            raise ValueError(f"{place}: {new.name} is declared twice")
        found[new.name] = new
    return found


def _declaration(line: str, place: str) -> Parameter:
    if match := DECLARATION.fullmatch(line):
        name, own, sentence = match[1], TYPES[match[2]], match[4]
        with suppress(ValueError, SyntaxError):  # not a literal
            default = ast.literal_eval(match[3])
            if _mismatch(default, own) is None:
                return Parameter(name, own, own(default), sentence, place)
    raise ValueError(
        f"{place}: expected `name: type = literal  # sentence` with a type of "
        f"{', '.join(TYPES)}; found `{line}`"
    )


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


def load_params(
    path: str | Path, notebooks: Path = NOTEBOOKS, overrides: Iterable[str] = ()
) -> list[Run]:
    """The runs of a params file: one, or one for every combination of its sweep.
    `overrides`, each name=value, come over it. ParamsFaults has all faults: unknown and
    repeated keys, wrong types, a missing run_name, names no folder can have."""
    reader = _Reader(notebook_paths(notebooks))
    runs = reader.runs(Path(path), overrides)
    if reader.faults:
        raise ParamsFaults("\n".join(map(shown, reader.faults)))
    return runs


def check_given(names: Mapping[str, Any]) -> None:
    """ValueError for what `papermill -f FILE` or `-p` gave a notebook, whose globals()
    are `names`, and load_params would refuse: papermill takes it without a word, and of
    a `base` or `sweep` it would run the defaults. And for a number below 0, wherever it
    is from: a list cut at -1 would lose its last question."""
    cells = [cell for cell in names.get("In", ()) if cell.startswith("# Parameters\n")]
    known = declarations(notebook_paths())
    for key in known.keys() & names.keys():
        if type(names[key]) in (int, float) and names[key] < 0:
            raise ValueError(f"{key} = {names[key]}: it must be 0 or more")
    for line in ast.parse(cells[-1] if cells else "").body:
        key, value = line.targets[0].id, ast.unparse(line.value)
        with suppress(ValueError):  # not a literal, such as nan
            value = ast.literal_eval(line.value)
        if key in ("base", "sweep"):
            raise ValueError(
                f"papermill does not read `{key}`: these are not the values of the "
                "params file. Use `python -m lib.run FILE`; a line such as "
                "`notebooks: [02_sft]` in it runs that notebook alone"
            )
        if key not in ("notebooks", "card_gib"):
            kind = known[key].type if key in known else None
            if wrong := _mismatch(value, kind) if kind else _unknown(key, known):
                raise ValueError(f"{key}, given to papermill: {wrong}")


@dataclass(frozen=True)
class _Given:
    """What a params file gives to a key, and where: "FILE, line N, KEY". Of YAML it is
    the node, as written: an alias is never expanded, and no other type is guessed."""

    place: str
    node: yaml.Node


class _Reader:
    def __init__(self, notebooks: list[Path]):
        self.notebooks, self.faults = notebooks, []
        known = declarations(notebooks)
        self.types = {name: own.type for name, own in known.items()}
        self.types |= {"run_name": str, "card_gib": float}

    def fault(self, place: object, text: str) -> None:
        self.faults.append(f"{place}: {text}")

    def runs(self, path: Path, overrides: Iterable[str]) -> list[Run]:
        given, axes = self.collect(path)
        given |= self.overridden(overrides, (*axes, "run_name") if axes else ())
        chosen = self.chosen(given.pop("notebooks", None))
        values = {k: self.typed(k, own.place, own.node) for k, own in given.items()}
        varied = [
            [(key, self.typed(key, own.place, node)) for node in own.node.value]
            for key, own in axes.items()
        ]
        if self.faults:
            return []
        count = math.prod(map(len, varied))
        if count > MOST_RUNS:
            most = f"{count:,} combinations, more than {MOST_RUNS:,}"
            self.fault(f"{path}, sweep", f"{most}; give fewer values, or several files")
            return []
        runs = []
        for combination in itertools.product(*varied):
            parts = [f"{key}_{value}" for key, value in combination]
            parts = [re.sub(r"[^A-Za-z0-9.-]+", "_", part) for part in parts]
            name = "-".join([path.stem, *parts]) if varied else values["run_name"]
            own = {**values, **dict(combination), "run_name": name}
            card = own.pop("card_gib", 0.0)
            runs.append(Run(name, own, tuple(axes), chosen, card))
        names = [run.name for run in runs]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.fault(f"{path}, sweep", f"two runs would both be called {name}")
        try:
            for name in [path.stem, *names] if varied else names:
                check_run_name(name)
        except ValueError as error:
            self.fault(f"{path}, run_name", str(error))
        return runs

    def collect(
        self, path: Path, above: tuple[Path, ...] = ()
    ) -> tuple[dict[str, _Given], dict[str, _Given]]:
        """The keys of a file over those of its bases, and the axes of its sweep."""
        own = self.read(path)
        if own is None:
            return {}, {}
        base, sweep = own.pop("base", None), own.pop("sweep", None)
        axes = self.axes(sweep, own, path) if sweep else {}
        if above and sweep:
            self.fault(sweep.place, f"{above[-1]} starts from this file; no sweep here")
        elif not above and sweep and "run_name" in own:
            self.fault(own["run_name"].place, "a sweep is named after its file")
        elif not above and not sweep and "run_name" not in own:
            missing = "missing; it names the folder of the records"
            self.fault(f"{path}, run_name", missing)
        inherited: dict[str, _Given] = {}
        if base:
            source = path.parent / shown(base.node.value, LONGEST)
            if not isinstance(base.node, yaml.ScalarNode):
                self.fault(base.place, "expected the path of a params file")
            elif source.resolve() in {p.resolve() for p in (*above, path)}:
                self.fault(base.place, f"{source} starts from this file")
            elif not source.is_file():
                self.fault(base.place, f"{source} is missing")
            else:
                inherited, _ = self.collect(source, (*above, path))
                inherited.pop("run_name", None)
        return inherited | own, axes  # a sweep's values come over both

    def overridden(self, texts: Iterable[str], swept: Iterable) -> dict[str, _Given]:
        """What a command line gives, as name=value."""
        found = {}
        for text in texts:
            key, _, value = text.partition("=")
            place = f"{shown(text, LONGEST)}, on the command line"
            if key in swept:
                self.fault(place, "the sweep gives it")
            if key in found:
                self.fault(place, "given twice")
            found[key] = _Given(place, yaml.ScalarNode(TEXT, value))
        return found

    def read(self, path: Path) -> dict[str, _Given] | None:
        """The keys of one file; None, with a fault added, if it cannot be read."""
        raw, loader = b"", None
        try:
            raw = path.read_bytes()
            loader = yaml.SafeLoader(raw.decode("utf-8"))
            tree = loader.get_single_node()
            if isinstance(tree, yaml.MappingNode):
                return self.keys(tree, path)
            line, why = 1, LINES
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            found = "is missing" if missing else f"cannot be read ({error.strerror})"
            self.fault(f"{path} {found}", "give a file such as params/mini.yaml")
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
        except RecursionError:
            line, why = loader.line + 1, f"nested too deep; {LINES}"
        except (ValueError, OverflowError) as error:  # "\\UFFFFFFFF" is no character
            line, why = loader.line + 1, f"not YAML ({error}); {LINES}"
        self.fault(f"{path}, line {line}", why)
        return None

    def keys(self, tree: yaml.MappingNode, path: Path) -> dict[str, _Given]:
        """The keys of a file, or of its sweep, which is another such dict."""
        found: dict[str, _Given] = {}
        for key, node in tree.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "(no name)"
            place = f"{path}, line {key.start_mark.line + 1}, {shown(name, LONGEST)}"
            if name in found:
                self.fault(place, "given twice")
            found[name] = _Given(place, node)
        return found

    def axes(
        self, sweep: _Given, own: Mapping[str, _Given], path: Path
    ) -> dict[str, _Given]:
        """The swept keys that have a list of values."""
        lists = {}
        if not isinstance(sweep.node, yaml.MappingNode) or not sweep.node.value:
            self.fault(sweep.place, "expected lines of `key: [value, value]` below it")
            return {}
        for key, axis in self.keys(sweep.node, path).items():
            if not isinstance(axis.node, yaml.SequenceNode) or not axis.node.value:
                self.fault(axis.place, "expected a list of values, such as [0, 1]")
            elif key in own:
                self.fault(axis.place, "given here and outside the sweep")
            elif key == "run_name":
                self.fault(axis.place, "a sweep names its runs itself")
            else:
                lists[key] = axis
        return lists

    def chosen(self, given: _Given | None) -> tuple[Path, ...]:
        """The notebooks that a file names, all where it names none."""
        if given is None:
            return tuple(self.notebooks)
        stems = [notebook.stem for notebook in self.notebooks]
        items = given.node.value if isinstance(given.node, yaml.SequenceNode) else []
        named = [item.value for item in items]
        if not named or any(name not in stems for name in named):
            found = f"expected a list out of {', '.join(stems)}, found "
            self.fault(given.place, found + _written(given.node))
        return tuple(path for path in self.notebooks if path.stem in named)

    def typed(self, key: str, place: str, node: yaml.Node) -> Any:
        """The value in the declared type; a fault is added where it has another."""
        kind, text = self.types.get(key), node.value
        if kind is None:
            return self.fault(place, _unknown(key, self.types))
        if isinstance(node, yaml.ScalarNode):
            if kind is str and node.tag == TEXT:
                return text
            if kind is bool and text in ("true", "false"):
                return text == "true"
            if kind in (int, float) and NUMBER.fullmatch(text):
                with suppress(ValueError):  # 0.5 is no int
                    if math.isfinite(float(text)):
                        return kind(text)
        return self.fault(place, f"expected {EXPECTED[kind]}, found {_written(node)}")


def _written(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return shown(repr(node.value), LONGEST)
    return "a list" if isinstance(node, yaml.SequenceNode) else "lines of their own"


def _mismatch(value: Any, kind: type) -> str | None:
    """What is wrong with a value of a parameter of type `kind`; None if nothing."""
    if type(value) is kind or (kind is float and type(value) is int):
        return None
    found = f"{type(value).__name__} {shown(repr(value), LONGEST)}"
    return f"expected {EXPECTED[kind]}, found {found}"


def _unknown(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no notebook declares this parameter{hint}"
