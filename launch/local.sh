#!/usr/bin/env bash
# An experiment on this machine, from any folder:
#   launch/local.sh experiments/simclr.py --data cifar10
# Relative paths of --data and --run.workdir start from the folder in which it is called.
if [ $# = 0 ]; then
  echo "error: which experiment? As in launch/local.sh experiments/simclr.py" >&2
  exit 2
fi
source "$(dirname "$0")/setup.sh" ""
file=$(find_experiment "$1")
note_start
exec "$python" "$file" "${@:2}"
