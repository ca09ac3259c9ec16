"""Get the benchmarks, check what a data folder holds, make more training questions.

    python -m lib.data get FOLDER --what L2 L3 --dry-run
        SEED-Bench-R1 and LongVideoBench from the Hugging Face hub: only what is
        missing, each file verified; stopped or killed, the same command goes on
    python -m lib.data get FOLDER --what training_6k L1 --at-most 40GB
        archives until so much is used; FOLDER/part holds the questions whose clips came
    python -m lib.data check FOLDER --decode
        records, faults, and the clips and stills that are missing; with --decode
        those that cannot be read, too
    python -m lib.data faults validation_L1.jsonl
        every fault of one annotation file, with line and field
    python -m lib.data epic EPIC_100_train.csv --l1 L1.jsonl --out OUT.jsonl
        training questions from the action labels of EPIC-KITCHENS-100, with clips
        cut from its videos, none of which L1 uses
    python -m lib.data teacher FOLDER --check 100 --out check.csv
        how many of the demonstrations name what happened in their clip, and a list of
        100 for a person to read
    python -m lib.data harness FOLDER --out TASKS
        the levels as tasks of lmms-eval, with the paper's prompt and its rule for what
        counts as right: lmms-eval --include_path TASKS --tasks seed_bench_r1 ...

A folder is what params/*.yaml call data_dir. MiniPlan needs none of this: it is made
on the spot (python -m lib.mini --help)."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib import paths, run_files
from lib.data import epic, harness, inventory, named, questions, seed_bench
from lib.data.download import DownloadError
from lib.doors import EXITS, Door, part, size

TERMS = "\n".join(
    ["licences, which `get` shows and waits for (--accept-licences):"]
    + [f"  {text}" for text in seed_bench.LICENCES.values()]
    + ["What `epic` makes carries the first of them.", "", seed_bench.COSTS]
)


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well, 1 if not, 2 on wrong usage, 130 if interrupted."""
    given = _parser().parse_args(arguments)
    try:
        return given.run(given) or 0
    except (DownloadError, run_files.Busy, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "begins anew" if given.run is _check else "goes on from here"
        print(f"interrupted; the same command {again}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Door("python -m lib.data", __doc__, TERMS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help="see above")
    below = {"type": paths.resolve, "help": "relative: below the repository"}

    def added(run: Callable, epilog: str = EXITS, folder: bool = True) -> Door:
        name = run.__name__.removeprefix("_")
        own = commands.add_parser(name, description=part(__doc__, name), epilog=epilog)
        own.set_defaults(run=run)
        if folder:
            own.add_argument("folder", **below)
        return own

    get, choices = added(_get, TERMS), seed_bench.CHOICES
    sets = {"metavar": "SET", "help": f"any of {', '.join(choices)}"}
    get.add_argument("--what", nargs="+", choices=choices, required=True, **sets)
    accept = "say that you have read and accept them; each is named below"
    get.add_argument("--accept-licences", action="store_true", help=accept)
    most = "bytes of archives in all, such as 40GB"
    get.add_argument("--at-most", type=size, metavar="SIZE", help=most)
    have = "clips you have, of EPIC-KITCHENS or Ego4D, by the file names of the records"
    get.add_argument("--have", type=_folder, metavar="FOLDER", help=have)
    get.add_argument("--dry-run", action="store_true", help="show the plan only")

    check = added(_check)
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--decode", action="store_true", help="read every file")

    faults = added(_faults, folder=False)
    faults.add_argument("file", type=_file, help="an annotation file")

    tasks = added(_harness)
    tasks.add_argument("--out", type=paths.resolve, required=True, help="a folder")

    teacher = added(_teacher, named.__doc__.split("\n\n", 1)[1])
    teacher.add_argument("--check", type=int, default=100, help="demonstrations listed")
    teacher.add_argument("--out", type=Path, required=True, help="the list, a CSV file")

    make = added(_epic, epic.__doc__.split("\n\n", 1)[1], folder=False)
    make.add_argument("labels", nargs="+", type=_file, help="EPIC_100_train.csv")
    make.add_argument("--l1", type=_file, required=True, help="validation_L1.jsonl")
    out = "to be written: FOLDER/annotations/training.jsonl"
    make.add_argument("--out", type=_out, required=True, help=out)
    make.add_argument("--videos", type=_folder, help="folder of the EPIC videos")
    return parser


def _file(text: str, is_it: Callable = Path.is_file, what: str = "file") -> Path:
    path = Path.cwd() / text  # as typed in a shell
    if not is_it(path):
        raise argparse.ArgumentTypeError(f"{path} is no {what}")
    return path


_folder = partial(_file, is_it=Path.is_dir, what="folder")


def _out(text: str) -> Path:
    path = Path.cwd() / text
    if path.parent.name != "annotations" or path.suffix != ".jsonl":
        why = "it must be FOLDER/annotations/NAME.jsonl"
        raise argparse.ArgumentTypeError(f"{path}: {why}")
    if path.exists() and not epic.record_of(path).exists():
        why = "is there and was not written by this command"
        raise argparse.ArgumentTypeError(f"{path} {why}")
    return path


def _get(given: argparse.Namespace) -> None:
    switches = (given.accept_licences, given.dry_run, given.at_most, given.have)
    seed_bench.get(given.folder, given.what, *switches)


def _check(given: argparse.Namespace) -> int:
    found = inventory.check(given.folder, decode=given.decode)
    unreadable = {path: why for r in found for path, why in r["unreadable"].items()}
    by_pyav = {path: why for r in found for path, why in r["by_pyav"].items()}
    if given.json:
        whole = {"folder": str(given.folder), "decoded": given.decode, "splits": found}
        print(json.dumps(whole, indent=1))
    else:
        lines = [f"{path} {why}" for path, why in unreadable.items()]
        lines.sort(key=lambda line: line.endswith("is missing"))  # behind the broken
        if len(lines) > 10:
            lines[10:] = [f"... and {len(lines) - 10} more; --json lists them all"]
        lines += [f"{path} was read by PyAV: {why}" for path, why in by_pyav.items()]
        if not given.decode:
            lines.append("Files were counted, not opened: --decode reads every one.")
        tables = inventory.media_table(found), inventory.fault_table(found)
        print(*tables, *lines, sep="\n")
    sound = all(fault["usable"] for split in found for fault in split["faults"])
    return int(bool(unreadable) or not sound)


def _faults(given: argparse.Namespace) -> int:
    report = questions.check(given.file)
    found, media = report["faults"], report["media"]
    unusable = sum(not fault.usable for fault in found)
    print(
        f"{report['file']}: {report['kind']}",
        f"records: {report['records']}, of which {report['usable']} can be used",
        f"media needed: {media['videos']} videos, {media['stills']} stills"
        f" ({media['image_only']} records without video)",
        f"faults: {len(found)}, of which {unusable} make a record unusable",
        *found,
        sep="\n",
    )
    return int(unusable > 0)


def _harness(given: argparse.Namespace) -> None:
    for level, (count, lack) in harness.write(given.folder, given.out).items():
        said = f", {lack:,} lack a clip or still, where lmms-eval stops" if lack else ""
        print(f"{given.out}/seed_bench_r1_{level}.yaml: {count:,} questions{said}")


def _teacher(given: argparse.Namespace) -> None:
    annotations = given.folder / "annotations"
    asked = questions.read_training(annotations / "training.jsonl", given.folder)
    path = annotations / "training_with_cot.jsonl"
    rows = named.measure(asked, questions.read_demonstrations(path, given.folder))
    print(named.tables(rows))
    named.write_check(rows, given.check, Path.cwd() / given.out)


def _epic(given: argparse.Namespace) -> None:
    made = epic.make(given.labels, given.l1, given.out, given.videos)
    print(epic.describe(made))


if __name__ == "__main__":
    sys.exit(main())
