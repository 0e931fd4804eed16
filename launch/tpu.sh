#!/usr/bin/env bash
# On each worker of a TPU pod, the same command:
#   launch/tpu.sh experiments/simclr.py --data /data/imagenet --run.workdir /shared/run1
if [ $# = 0 ]; then
  echo "error: which experiment? As in launch/tpu.sh experiments/simclr.py" >&2
  exit 2
fi
source "$(dirname "$0")/setup.sh" ""
file=$(find_experiment "$1")
note_start
exec "$python" "$file" "${@:2}" --run.distributed
