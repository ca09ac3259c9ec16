"""MiniPlan's door: write the benchmark, or make its base checkpoint anew.

python -m lib.mini write outputs/data/miniplan
python -m lib.mini base --folder scratch/base
"""

import argparse
import json
import sys
from dataclasses import asdict, replace

from lib import paths
from lib.mini import benchmark

ABOUT = """\
MiniPlan, a generated miniature of SEED-Bench-R1, and the small model that answers it.

  write  clips, stills and annotations, in the files and forms of the real benchmarks:
         2,200 training questions, 500 a level, 200 general ones (--size full: half a
         minute, 40 MB), or 48, 16 and 16 (--size smoke); --level N: N a level. Same
         seed, same bytes; a folder that holds other sizes is not overwritten.
  base   the base checkpoint, which the kit brings along in lib/mini/base: 1.3 M
         parameters, taught in about 40 minutes on two cores. Killed, the same command
         goes on with the phase it was in."""


def main(arguments: list[str] | None = None) -> int:
    """0 if it was written, 1 if not, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.mini",
        usage="%(prog)s COMMAND ..., and COMMAND --help for its options",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hidden = {"help": argparse.SUPPRESS, "prog": "python -m lib.mini"}
    commands = parser.add_subparsers(dest="command", required=True, **hidden)
    write = commands.add_parser("write", description="Write MiniPlan into a folder.")
    write.add_argument("folder", help="relative: below the repository")
    write.add_argument("--size", choices=benchmark.SIZES, default="full")
    write.add_argument("--level", type=int, help="questions a level")
    write.add_argument("--seed", type=int, default=0)
    base = commands.add_parser("base", description="Make the base checkpoint.")
    base.add_argument("--folder", default="lib/mini/base", help="default: %(default)s")
    base.add_argument("--batch", type=int, default=32)
    base.add_argument("--lr", type=float, default=2e-3)
    base.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    folder = paths.resolve(given.folder)
    if given.command == "base":
        # here, because transformers comes in with it, for which `write` need not wait
        from lib.mini import make_base

        command = " ".join(["python -m lib.mini", *sys.argv[1:]])
        make_base.make(folder, given.batch, given.lr, given.seed, command)
        return 0
    sizes = replace(benchmark.SIZES[given.size], seed=given.seed)
    sizes = replace(sizes, level=given.level or sizes.level)
    try:
        benchmark.write(folder, sizes)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(folder), **asdict(sizes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
