#!/usr/bin/env bash
# One process per GPU on Slurm, submitted from the checkout:
#   sbatch --nodes=2 launch/slurm.sh experiments/simclr.py --data cifar10
# Two minutes before the time limit, or when preempted, the run saves itself (exit status 143), and
# the job is queued again to resume. When one process dies, the others end with status 75.
#SBATCH --ntasks-per-node=8 --gpus-per-task=1 --requeue --signal=TERM@120
source "${SLURM_SUBMIT_DIR:-.}/launch/setup.sh" ""
file=$(find_experiment "$1")
status=0
srun "$python" "$file" "${@:2}" --run.distributed || status=$?
[ "$status" != 143 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
