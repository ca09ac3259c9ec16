"""What the notebooks call. Each folder is a subject; the file to open first in it:

data      questions.py    a question and its faults; clips are read in footage.py
model     models.py       a checkpoint and its adapter; prefix.py shares a video
train     grpo.py         rewards, advantages, update; sft.py beside it
evaluate  evaluate.py     one row a question; perception, attention, readers, judge
analysis  compare.py      all records as one table, every number one contrast of it
show      report.py       the pages of a run; pages.py shows a question or a group
run       pipeline.py     a params file carried out; plan.py says what it needs
mini      world.py        MiniPlan, its questions and its base"""

import os
import sys

# Before pip or an import fails in riddles: `make install` runs this file by itself.
if sys.platform == "win32" or not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        "The kit needs Python 3.11 to 3.14 on Linux or macOS; on Windows it runs in "
        "WSL: say `wsl --install`, then start again in the Linux that this opens."
    )

# A program of the kit (`python -m lib.NAME`) whose words go to a log: there a bar moves
# once a minute. tqdm reads this when it is imported. What lib.run.launch starts draws
# its bar in a notebook.
launched = "/launch_" in sys.argv[-1]
if sys.argv[0] == "-m" and not sys.stderr.isatty() and not launched:
    for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        os.environ.setdefault(name, "60")
