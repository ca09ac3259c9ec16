"""A machine that was not made for the kit, such as a notebook on Colab or Kaggle."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lib.paths import ROOT
from lib.records import version

# A kernel has these loaded, and torch belongs to the machine's driver.
KEPT = {
    *("torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "pillow"),
    *("jupyterlab", "ipykernel", "ipywidgets", "jupyter_client", "traitlets"),
    *("nbformat", "nbclient", "nbconvert", "jinja2", "markupsafe", "pyyaml", "tqdm"),
    "tensorboard",
}
OLDEST_TORCH = (2, 11)
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


def prepare() -> None:
    """Install what the notebooks need and this machine lacks. What is there of KEPT
    stays as it is, in whatever version. An environment of one's own (`make install`) is
    left alone. RuntimeError: its torch is too old."""
    if sys.prefix != sys.base_prefix:
        return
    wanted, _, _ = (ROOT / "requirements.txt").read_text().partition("\n# tests\n")
    found = {name: version(name) for name, _ in PIN.findall(wanted)}
    torch = found["torch"]
    if torch and tuple(map(int, torch.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise RuntimeError(f"this machine has torch {torch}: give it {oldest} or newer")
    lacking = [
        f"{name}=={pin}"
        for name, pin in PIN.findall(wanted)
        if found[name] is None or (name not in KEPT and found[name] != pin)
    ]
    if not lacking:
        return
    print("installing", *lacking)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        pins = [f"{name}=={found[name]}\n" for name in sorted(KEPT) if found.get(name)]
        kept.write_text("".join(pins))
        command = [sys.executable, "-m", "pip", "install", "--quiet", *lacking]
        subprocess.run([*command, "--constraint", str(kept)], check=True)
