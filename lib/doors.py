"""What every door, a program of the kit, says of itself with `--help`."""

import argparse
import re

EXITS = """\
exit codes: 0 done, 1 something failed or is at fault and was named, 2 nothing was done
(wrong usage, or what it needs is missing), 130 ended by Ctrl-C, 143 by SIGTERM"""


class Door(argparse.ArgumentParser):
    """A parser whose help stands as it is written, with the exit codes behind it."""

    def __init__(self, prog: str, description: str, epilog: str = EXITS, **given):
        given["formatter_class"] = argparse.RawDescriptionHelpFormatter
        ends = epilog if epilog.endswith(EXITS) else f"{epilog}\n\n{EXITS}"
        super().__init__(prog, description=description, epilog=ends, **given)


def part(text: str, command: str) -> str:
    """The lines of a door's help on one command: an example, then what it does."""
    examples = rf"^( *)python -m \S+ {command} .*\n(?:\1 +.*\n)*"
    return "".join(found[0] for found in re.finditer(examples, f"{text}\n", re.M))


def size(text: str) -> int:
    """The bytes of a text such as 40GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])B", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 40GB")
    return int(float(found[1]) * 10 ** {"M": 6, "G": 9, "T": 12}[found[2].upper()])
