"""The data's door: get the benchmarks, check a data folder, make training questions.

    python -m lib.data get FOLDER --what L2 L3 --dry-run
    python -m lib.data check FOLDER --decode
    python -m lib.data faults validation_L1.jsonl
    python -m lib.data epic EPIC_100_train.csv --l1 L1.jsonl --out OUT.jsonl

`python -m lib.data --help` says what each does, what it costs and what it may be used
for.
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

from lib import paths
from lib.data import epic, inventory, questions, seed_bench
from lib.data.download import DownloadError

ABOUT = """\
Get the benchmarks, check what a data folder holds, make more training questions.

  get    SEED-Bench-R1 and LongVideoBench from the Hugging Face hub: only what is
         missing, each file verified; stopped or killed, the same command goes on
  check  records, faults, and the clips and stills that are missing; with --decode
         those that cannot be read, too
  faults every fault of one annotation file, with line and field
  epic   training questions from the action labels of EPIC-KITCHENS-100, with clips
         cut from its videos, none of which L1 uses

A folder is what params/*.yaml call data_dir. MiniPlan needs none of this: it is made
on the spot (python -m lib.mini --help)."""
WRAPPED = textwrap.TextWrapper(
    84, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
)
TERMS = "\n".join(
    ["licences, which `get` shows and waits for (--accept-licences):"]
    + [WRAPPED.fill(text) for texts in seed_bench.LICENCES.values() for text in texts]
    + ["What `epic` makes carries the first of them.", "", seed_bench.COSTS]
)
RAW = argparse.RawDescriptionHelpFormatter


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well, 1 if not, 2 on wrong usage, 130 if interrupted."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.command == "epic":
            return _epic(parser, given)
        if given.command == "faults":
            path = Path.cwd() / given.file  # as typed in a shell
            if not path.is_file():
                parser.error(f"{path} is no file")
            return questions.show_faults(path, given.json)
        folder = paths.resolve(given.folder)
        if given.command == "check":
            return _check(folder, given.decode, given.json)
        switches = (given.subtitles, given.accept_licences, given.dry_run)
        seed_bench.get(folder, given.what, *switches)
    except (DownloadError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "begins anew" if given.command == "check" else "goes on from here"
        print(f"interrupted; the same command {again}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.data",
        usage="%(prog)s COMMAND ..., and COMMAND --help for its options",
        description=ABOUT,
        epilog=TERMS,
        formatter_class=RAW,
    )
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        prog="python -m lib.data",
        help=argparse.SUPPRESS,
    )

    get = commands.add_parser(
        "get",
        description="Download what a data folder lacks.",
        epilog=TERMS,
        formatter_class=RAW,
    )
    get.add_argument("folder", help="relative: below the repository")
    choices = seed_bench.CHOICES
    names = "{" + ",".join(choices) + "}"
    get.add_argument("--what", nargs="+", choices=choices, required=True, metavar=names)
    get.add_argument("--subtitles", action="store_true", help="of LongVideoBench")
    get.add_argument("--accept-licences", action="store_true")
    get.add_argument("--dry-run", action="store_true", help="show the plan only")

    check = commands.add_parser(
        "check", description="Count the records, faults, clips and stills of a folder."
    )
    check.add_argument("folder", help="relative: below the repository")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--decode", action="store_true", help="read every file")

    faults = commands.add_parser("faults", description="List every fault of a file.")
    faults.add_argument("file", help="an annotation file")
    faults.add_argument("--json", action="store_true", help="print one JSON object")

    make = commands.add_parser(
        "epic",
        description=epic.__doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0],
        formatter_class=RAW,
    )
    make.add_argument("labels", nargs="+", type=Path, help="EPIC_100_train.csv")
    make.add_argument("--l1", type=Path, required=True, help="validation_L1.jsonl")
    make.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER/annotations/training.jsonl",
    )
    make.add_argument("--videos", type=Path, help="folder of the EPIC videos")
    return parser


def _check(folder: Path, decode: bool, as_json: bool) -> int:
    """Print what a folder holds; 1 if a record or a file in it cannot be used."""
    found = inventory.check(folder, decode=decode)
    unreadable = {path: why for r in found for path, why in r["unreadable"].items()}
    by_pyav = {path: why for r in found for path, why in r["by_pyav"].items()}
    if as_json:
        whole = {"folder": str(folder), "decoded": decode, "splits": found}
        print(json.dumps(whole, indent=1))
    else:
        print(inventory.media_table(found))
        print(inventory.fault_table(found))
        for path, why in list(unreadable.items())[:10]:
            print(f"{path} {why}")
        if len(unreadable) > 10:
            print(f"... and {len(unreadable) - 10} more; --json lists them all")
        for path, why in by_pyav.items():
            print(f"{path} was read by PyAV: {why}")
        if not decode:
            print("Files were counted, not opened: --decode reads every one.")
    sound = all(split["usable"] == split["records"] for split in found)
    return int(bool(unreadable) or not sound)


def _epic(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    here = Path.cwd()  # a path typed in a shell is meant from there
    labels, l1, out = (
        [here / p for p in given.labels],
        here / given.l1,
        here / given.out,
    )
    videos = here / given.videos if given.videos else None
    for path in (*labels, l1):
        if not path.is_file():
            parser.error(f"{path} is no file")
    if videos and not videos.is_dir():
        parser.error(f"{videos} is no folder")
    if out.parent.name != "annotations" or out.suffix != ".jsonl":
        parser.error(f"--out {out}: it must be FOLDER/annotations/NAME.jsonl")
    if out.exists() and not epic.record_of(out).exists():
        parser.error(f"{out} is there and was not written by this command")
    print(epic.describe(epic.make(labels, l1, out, videos)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
