"""The door of runs: a params file, or a command for the run that it made."""

import importlib
import sys

from lib.run import pipeline

COMMANDS = {
    "report": "lib.show.report",
    "judge": "lib.evaluate.judge",
    "export": "lib.run.export",
    "rows": "lib.run.rows",
    "check-model": "lib.run.model_check",
}


def main(arguments: list[str]) -> int:
    """The exit code of a params file's runs, or of a command: 2 where it could not."""
    if not arguments or arguments[0] not in COMMANDS:
        return pipeline.main(arguments)
    name, *words = arguments
    try:
        # Imported here: they bring torch or nbconvert, which a sweep does not wait for.
        return importlib.import_module(COMMANDS[name]).main(words) or 0
    except (OSError, ValueError) as error:
        print(f"{name} stopped: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
