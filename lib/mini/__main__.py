"""MiniPlan, a generated miniature of SEED-Bench-R1, and the small model for it.

python -m lib.mini write outputs/data/miniplan
    clips, stills and annotations, in the files and forms of the real benchmarks:
    2,200 training questions, 500 a level, 200 general ones (--size full: half a
    minute, 40 MB), or 48, 16 and 16 (--size smoke). Same seed, same bytes; a
    folder that holds other sizes is not overwritten.
python -m lib.mini base --folder scratch/base
    the base checkpoint, which the kit brings along in lib/mini/base: 1.3 M
    parameters, taught in about an hour on one core. If it is killed, the same
    command goes on with the phase it was in."""

import json
import sys
from dataclasses import asdict, replace

from lib import paths
from lib.doors import Door, part
from lib.mini import benchmark


def main(arguments: list[str] | None = None) -> int:
    """0 if it was written, 1 if not, 2 on wrong usage."""
    parser = Door("python -m lib.mini", __doc__)
    how = {"dest": "command", "metavar": "COMMAND", "help": "see above"}
    commands = parser.add_subparsers(required=True, **how)
    write = commands.add_parser("write", description=part(__doc__, "write"))
    write.add_argument("folder", help="relative: below the repository")
    size = "how many questions, see above; default: %(default)s"
    write.add_argument("--size", choices=benchmark.SIZES, default="full", help=size)
    write.add_argument("--level", type=int, help="questions a level")
    write.add_argument("--seed", type=int, default=0, help="of the questions and clips")
    base = commands.add_parser("base", description=part(__doc__, "base"))
    base.add_argument("--folder", required=True, help="relative: below the repository")
    given = parser.parse_args(arguments)
    folder = paths.resolve(given.folder)
    try:
        if given.command == "base":
            # here, because transformers comes in with it: `write` need not wait for it
            from lib.mini import make_base

            make_base.make(folder, f"python -m lib.mini base --folder {given.folder}")
            return 0
        sizes = replace(benchmark.SIZES[given.size], seed=given.seed)
        if given.level is not None:
            sizes = replace(sizes, level=given.level)
        if sizes.level < 1:
            parser.error("--level must be at least 1")
        benchmark.write(folder, sizes)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": given.folder, **asdict(sizes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
