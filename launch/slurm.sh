#!/usr/bin/env bash
# One process per GPU on Slurm. Set up once on the login node, then submit from the checkout:
#   launch/setup.sh cuda12
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh experiments/simclr.py --data cifar10
# Five minutes before the time limit the run saves itself and the job is queued again to resume.
# Slurm queues it again by itself when it is preempted or a node fails.
#SBATCH --gpus-per-node=1 --cpus-per-gpu=8 --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@300
source "${SLURM_SUBMIT_DIR:?submit this script with sbatch}/launch/setup.sh" --installed
[ $# != 0 ] || die "which experiment? As in sbatch launch/slurm.sh experiments/simclr.py"
file=$(find_experiment "$1")

# The number of one task of an array can be that of the whole array: name the task.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
tasks=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
due=

# The time limit is near. Where a step or an evaluator doesn't end within four minutes, the job is
# queued again without another checkpoint: at the limit itself it would end for good.
stop() {
  due=1
  scancel --signal=TERM "$job"  # To the processes of srun, not to this script.
  (sleep 240; scontrol requeue "$job") &
}
trap stop USR1
trap : TERM  # The run receives it too: wait until it has saved itself.

# Each task sees all GPUs of its node, of which JAX takes the one of the task's number there.
unset SLURM_CPUS_PER_GPU  # It excludes --cpus-per-task.
srun --ntasks-per-node="$tasks" --cpus-per-task=$((SLURM_CPUS_ON_NODE / tasks)) \
  ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"} --kill-on-bad-exit=1 \
  "$python" "$file" "${@:2}" --run.distributed &
step=$!
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true  # A signal ends this, but not srun.
done
status=0
wait "$step" || status=$?
if [ "$due" ] && [ "$status" = 143 ]; then
  scontrol requeue "$job"
fi
exit "$status"
