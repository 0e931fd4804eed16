#!/usr/bin/env bash
# One process per GPU on Slurm: sbatch --nodes=2 launch/slurm.sh experiments/simclr.py --data cifar10
# Two minutes before the time limit, or when preempted, the run saves itself, and the job is queued again to go on.
#SBATCH --ntasks-per-node=8 --gpus-per-task=1 --requeue --signal=TERM@120
source "${SLURM_SUBMIT_DIR:-.}/launch/setup.sh" ""
status=0
srun .venv/bin/python "$@" --run.distributed || status=$?
[ "$status" != 143 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
