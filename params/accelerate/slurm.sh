#!/bin/bash
# A run on several nodes of a SLURM cluster. From the root of the checkout, which all
# nodes must see under the same path:
#
#     sbatch params/accelerate/slurm.sh python -m lib.run params/MINE.yaml
#
# where params/MINE.yaml has `num_processes: 16`, the GPUs of all nodes together, and the
# `accelerate_config` that fits. The command runs on the first node; its notebooks train
# and evaluate on all of them, through LAUNCH_COMMAND (lib/run/launch.py). A job that was
# stopped goes on where it was when it is submitted, or queued by SLURM, once more.
# Partition, account and the times are your cluster's: add or change them here.
#
#SBATCH --job-name=sft-versus-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one launcher a node, which starts a process a GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64      # of a launcher and all its processes
#SBATCH --mem=0                 # all memory of a node
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.log

set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH" # where `make install` puts python

# The first node, where process 0 runs and this script as well; all others call it there.
FIRST_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port that two jobs on the same node hardly share.
PORT=$((10000 + SLURM_JOB_ID % 50000))
export FIRST_NODE PORT

# Threads of a process: the launchers would start each with one.
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ${SLURM_GPUS_ON_NODE:-1}))
# Since SLURM 22.05 srun does not take this from the lines above.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# One launcher a node. Progress bars need --unbuffered; a node that fails ends the others
# by --kill-on-bad-exit, an interrupted notebook by --quit-on-interrupt.
LAUNCH_COMMAND=$(
    cat <<'END'
srun --ntasks-per-node=1 --unbuffered
    --kill-on-bad-exit=1 --quit-on-interrupt
    bash -c 'exec python -m accelerate.commands.launch \
        --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$FIRST_NODE" --main_process_port "$PORT" "$@"' node
END
)
export LAUNCH_COMMAND

exec "$@"
