#!/usr/bin/env bash
# A sweep on Slurm: a job for each line of a file, which has the flags of that job (launch/slurm.sh).
#   sbatch --array=1-50%8 launch/array.sh flags.txt experiments/simclr.py --data cifar10
#SBATCH --gpus-per-node=1 --cpus-per-gpu=8 --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@300
set -euo pipefail
lines=$(sed -n '$=' "$1")
if [ "${SLURM_ARRAY_TASK_ID:?submit this script with sbatch --array=1-N}" -gt "${lines:-0}" ]; then
  echo "error: $1 has no line $SLURM_ARRAY_TASK_ID: submit with --array=1-${lines:-0}." >&2
  exit 2
fi
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
eval "flags=($line)"  # With quotes as in a shell.
source "$SLURM_SUBMIT_DIR/launch/slurm.sh" "${@:2}" "${flags[@]}"
