# Sourced by the other scripts: makes .venv in the checkout and installs ssljax with the versions of constraints.txt, with
# uv where it is there and pip where not, for the accelerator that is found. $1: further extras, as in "test".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-}
if nvidia-smi -L >/dev/null 2>&1; then
  extras="$extras,cuda12"
elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
  extras="$extras,tpu"
fi
extras=${extras#,}

stamp=".venv/.ssljax-$(cat pyproject.toml launch/constraints.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ] || ! grep -qxF "$extras" "$stamp"; then
  for python in python3 python3.13 python3.12 python3.11; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
  done
  [ -n "$python" ] || { echo "error: ssljax needs Python 3.11 or newer: install one and run this again." >&2; exit 2; }
  echo "Setting up .venv${extras:+ with $extras} (once; a minute or two) ..." >&2
  if command -v uv >/dev/null; then
    [ -e .venv/bin/python ] || uv venv -q --python "$python" .venv
    uv pip install -q --python .venv/bin/python -c launch/constraints.txt -e ".${extras:+[$extras]}"
  else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv || {
      echo "error: $python can't make a virtual environment: on Debian and Ubuntu, apt install python3-venv." >&2; exit 2; }
    .venv/bin/python -m pip install -q --disable-pip-version-check -c launch/constraints.txt -e ".${extras:+[$extras]}"
  fi
  echo "$extras" >> "$stamp"
fi
