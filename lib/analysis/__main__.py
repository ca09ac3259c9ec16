"""Make small records, tables and figures from finished runs.

python -m lib.analysis reference outputs/mini_seeds-seed_* --out FOLDER
    a small record of each finished run, and a figure of several seeds
python -m lib.analysis sweep outputs/kl --out outputs/reference/sweeps
    record, table and figure of a sweep's folder
python -m lib.analysis map outputs/map outputs/map_grpo --out outputs/reference/map
    when RL beats SFT: GRPO - SFT by false reasoning and number of questions, from
    the folders of sweeps, or of an earlier map, which stands for its runs
python -m lib.analysis evidence outputs/mini_seeds-seed_* --out FOLDER
    what was seen, and whether the reasoning supports the answers, over seeds
python -m lib.analysis claims outputs/mini_seeds-seed_* --out FOLDER
    the paper's claims with verdicts, from runs that differ in their seed
python -m lib.analysis claims --out outputs/reference/claims
    the same again, from the numbers that the folder has
python -m lib.analysis readme outputs/reference/mini_seeds
    README's table, from a folder of records"""

import argparse
import sys
from pathlib import Path

from lib.analysis import claims, frontier, plots, readme
from lib.doors import Door, part
from lib.paths import resolve
from lib.records import read_json, write_json

COMMANDS = ("reference", "sweep", "map", "evidence", "claims", "readme")


def main(arguments: list[str]) -> int:
    """0 if all was written; errors name the run and what to do."""
    options = _parser().parse_args(arguments)
    try:
        for said in _carried_out(options):
            print(said)
    except (OSError, ValueError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> Door:
    parser = Door("python -m lib.analysis", __doc__)
    how = {"dest": "command", "metavar": "COMMAND", "help": "see above"}
    commands = parser.add_subparsers(required=True, **how)
    for name in COMMANDS:
        command = commands.add_parser(name, description=part(__doc__, name))
        if name == "readme":
            command.add_argument("records", help="a folder of records")
            continue
        some = "*" if name == "claims" else "+"
        command.add_argument("runs", nargs=some, type=Path, help="run folders")
        command.add_argument("--out", required=True, type=Path, help="a folder")
        if name == "claims":
            told = "measure these claims, keep the others as OUT has them"
            how = {"nargs": "+", "default": [], "metavar": "NUMBER", "help": told}
            how["type"] = lambda text: int(text) if text.isdigit() else text
            how["choices"] = [claim["number"] for claim in claims.claims()]
            command.add_argument("--only", **how)
    return parser


def _carried_out(options: argparse.Namespace):
    """What was written, one after another."""
    if options.command == "readme":
        yield readme.write_block("README.md", readme.results(options.records))
        return
    out = resolve(options.out)
    if options.command == "evidence":
        yield readme.write_evidence(options.runs, out)
    elif options.command == "claims":
        yield from claims.write_all(options.runs, out, options.only)
    elif options.command == "map":
        yield frontier.write(options.runs, out)
    elif options.command == "sweep":
        yield from (readme.write_sweep(run, out) for run in options.runs)
    else:
        runs = [*map(resolve, options.runs)]
        anew = {out / f"{run.name}.json" for run in runs}
        known = {p: own for p, own in readme.records_of(out).items() if p not in anew}
        for run in runs:
            path, record = out / f"{run.name}.json", readme.reference_record(run)
            seed = read_json(path, {}).get("seed", record["seed"])
            if seed != record["seed"]:
                todo = "rename its folder, or give another --out"
                raise ValueError(f"{path} holds another seed than {run}: {todo}")
            known.pop(path, None)
            readme.together(known | {run: record})  # before it is written
            write_json(path, record)
            known[path] = record
            yield path
        seeds = readme.together(known)
        if len(seeds) > 1:
            rows = readme.accuracies(readme.of_records(seeds))
            rows = [row for row in rows if row["model"] != "base-direct"]
            yield plots.save(plots.seeds(rows), out / "seeds.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
