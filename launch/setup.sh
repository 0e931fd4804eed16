#!/usr/bin/env bash
# Makes .venv in the checkout and installs ssljax with the versions of constraints.txt, with uv where
# it is there and pip where not, for the accelerator that is found, or for another one:
#   launch/setup.sh cuda12
# The other scripts source it, with an extra besides "all" as $1 ("test"), or with --installed where
# nothing may be installed. It sets $checkout and $python, and leaves the caller in its folder, from
# which --data and --run.workdir are found.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$checkout/.venv/bin/python

extras=all
case ${1:-} in
  cuda*|tpu) extras="$extras,$1" ;;
  *)
    if nvidia-smi -L >/dev/null 2>&1; then
      extras="$extras,cuda12"
    elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
      extras="$extras,tpu"
    fi
    extras=$extras${1:+,$1}
    ;;
esac

die() {
  echo "error: $1" >&2
  exit 2
}

install() {
  local package="$checkout[$extras]"
  local versions=$checkout/launch/constraints.txt
  local base
  for base in python3 python3.13 python3.12 python3.11; do
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    base=
  done
  [ -n "$base" ] || die "ssljax needs Python 3.11 or newer: install one and run this again."
  echo "Setting up $checkout/.venv with $extras (once; a minute or two) ..." >&2
  if command -v uv >/dev/null; then
    [ -e "$python" ] || uv venv -q --python "$base" "$checkout/.venv"
    uv pip install -q --python "$python" -c "$versions" -e "$package"
  else
    "$python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$checkout/.venv" ||
      die "$base can't make a virtual environment: on Debian and Ubuntu, apt install python3-venv."
    "$python" -m pip install -q --disable-pip-version-check -c "$versions" -e "$package"
  fi
  echo "Set up in $SECONDS s." >&2
}

stamp=$checkout/.venv/.ssljax-$(
  cat "$checkout/pyproject.toml" "$checkout/launch/constraints.txt" | cksum | cut -d' ' -f1
)
if [ "${1:-}" = --installed ]; then
  [ -x "$python" ] || die "there is no $checkout/.venv: run launch/setup.sh cuda12 (or tpu) first."
elif [ ! -e "$stamp" ] || ! grep -qE "^$extras(,|$)" "$stamp"; then  # More may be installed.
  install
  echo "$extras" >> "$stamp"
fi

# The experiment of a command line: a file of the caller's folder or else of the checkout.
find_experiment() {
  if [ ! -e "$1" ] && [ -e "$checkout/$1" ]; then
    echo "$checkout/$1"
  else
    echo "$1"
  fi
}

# The time at which Python starts, from which a run counts its seconds: the set-up is not its own.
note_start() {
  SSLJAX_STARTED=$(date +%s.%N)
  export SSLJAX_STARTED=${SSLJAX_STARTED%N}  # Without the digits that macOS doesn't give.
}
