#!/usr/bin/env bash
# On each worker of a TPU pod, the same command: launch/tpu.sh experiments/simclr.py --data /data/imagenet --run.workdir /shared/run1
source "$(dirname "$0")/setup.sh" ""
exec .venv/bin/python "$@" --run.distributed
