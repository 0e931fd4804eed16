#!/usr/bin/env bash
# The tests, or some of them: launch/test.sh tests/test_loop.py -k resume
source "$(dirname "$0")/setup.sh" test
cd "$checkout"
exec "$python" -m pytest "$@"
