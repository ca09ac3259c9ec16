"""What the notebooks call. Each folder is a subject; the file to open first in it:

data      questions.py    a question and its faults; clips are read in footage.py
model     models.py       a checkpoint and its adapter; prefix.py shares a video
train     grpo.py         rewards, advantages, update; sft.py beside it
evaluate  evaluate.py     one row a question; perception, attention, readers, judge
analysis  compare.py      all records as one table, every number one contrast of it
show      report.py       the pages of a run; pages.py shows a question or a group
run       pipeline.py     a params file carried out; plan.py says what it needs
mini      world.py        MiniPlan, its questions and its base
"""
