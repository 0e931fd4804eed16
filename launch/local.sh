#!/usr/bin/env bash
# An experiment on this machine: launch/local.sh experiments/simclr.py --data cifar10
source "$(dirname "$0")/setup.sh" ""
exec .venv/bin/python "$@"
