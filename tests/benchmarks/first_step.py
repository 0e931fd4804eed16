"""Seconds from the command to the first step on digits, with a cold and a warm cache.

.venv/bin/python tests/benchmarks/first_step.py
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("cold", "warm", "warm again"):
            done = subprocess.run(
                [
                    sys.executable,
                    ROOT / "experiments" / "simclr.py",
                    "--data",
                    "digits",
                    "--epochs",
                    "2",
                    "--run.workdir",
                    f"{tmp}/{name}",
                ],
                env={
                    **os.environ,
                    "JAX_COMPILATION_CACHE_DIR": f"{tmp}/cache",
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
                },
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"RESULT {name}: {re.search('First step.*', done.stdout)[0]}", flush=True)
