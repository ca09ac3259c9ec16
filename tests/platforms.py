"""What the requirements install on each platform and Python, asked of the index.

python -m tests.platforms      # writes outputs/reference/platforms.md
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

from lib import paths, records
from lib.doors import Door

PLATFORMS = {  # names of uv; the oldest systems that torch has wheels for
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS 14, Apple Silicon": "aarch64-apple-darwin",
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOCK = paths.ROOT / ".requirements.lock"
TABLE = paths.ROOT / "outputs" / "reference" / "platforms.md"
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)


class Offline(Exception):
    """The index was not reached."""


def packages(platform: str, python: str, *requirements: Path) -> dict[str, str]:
    """{package: version}, each with a wheel, by the lock; RuntimeError if one has none.
    Nothing is installed; uv reads the index and the packages' metadata."""
    named = requirements or (paths.ROOT / "requirements.txt",)
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-header"]
    command += ["--no-annotate", "--only-binary", ":all:", "--constraint", str(LOCK)]
    command += ["--python", sys.executable]  # it would look for one of that version
    command += ["--python-version", python, "--python-platform", PLATFORMS[platform]]
    command += map(str, named)
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "error sending request" in ran.stderr:
        raise Offline(ran.stderr)
    if ran.returncode:
        raise RuntimeError(f"{platform}, Python {python}: {ran.stderr}")
    return dict(PIN.findall(ran.stdout))


def table(found: dict[tuple[str, str], dict[str, str]]) -> str:
    """Markdown of {(platform, Python): packages}: counts, what differs, the rest."""
    names = sorted({name for own in found.values() for name in own})
    cells = {name: [own.get(name, "–") for own in found.values()] for name in names}
    same = [f"{name} {own[0]}" for name, own in cells.items() if len(set(own)) == 1]
    heads = [f"{platform}, {python}" for platform, python in found]
    lines = [["package", *heads], ["---"] * (len(heads) + 1)]
    lines += [["*all*", *(str(len(own)) for own in found.values())]]
    lines += [[name, *own] for name, own in cells.items() if len(set(own)) > 1]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "# Packages of each platform and Python\n\nEach has a wheel there, by the "
        "index; `–` is not needed. Written by `python -m tests.platforms`.\n\n"
        f"{rows}\n\nThe same everywhere: {', '.join(same)}.\n"
    )


def everywhere() -> dict[tuple[str, str], dict[str, str]]:
    return {(p, python): packages(p, python) for p in PLATFORMS for python in PYTHONS}


if __name__ == "__main__":
    Door("python -m tests.platforms", __doc__).parse_args()
    records.write_text(TABLE, table(everywhere()))
    print(TABLE)
