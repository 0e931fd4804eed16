"""The launch scripts, with a stand-in for uv that notes what it is asked for instead of installing it."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout's scripts, and run(script, *args, **commands) with further stand-ins on the PATH."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = tmp_path / "commands"
    commands.mkdir()

    def stand_in(name, text):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)

    stand_in(
        "uv",
        f"""echo "uv $*" >> {tmp_path}/asked
if [ "$1" = venv ]; then mkdir -p .venv/bin; printf '#!/usr/bin/env bash\\necho "python $*"\\n' > .venv/bin/python; \
chmod +x .venv/bin/python; fi""",
    )
    stand_in("nvidia-smi", "exit 9")

    def run(script, *args, **more):
        for name, text in more.items():
            stand_in(name.replace("_", "-"), text)
        done = subprocess.run(
            [tmp_path / "launch" / script, *args],
            cwd="/",
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
        )
        asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
        (tmp_path / "asked").unlink(missing_ok=True)
        return done, asked

    return run


def test_an_experiment_installs_the_plain_package_once(checkout):
    done, asked = checkout("local.sh", "experiments/simclr.py", "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "python experiments/simclr.py --lr 0.1\n"
    assert asked.splitlines()[1].endswith("-c launch/constraints.txt -e .")
    done, asked = checkout("local.sh", "experiments/simclr.py")
    assert done.returncode == 0 and asked == ""


def test_the_tests_and_a_gpu_have_their_extras(checkout):
    done, asked = checkout("test.sh", "-k", "loop")
    assert done.stdout == "python -m pytest -k loop\n" and asked.splitlines()[-1].endswith(
        "-e .[test]"
    )
    done, asked = checkout("local.sh", "x.py", nvidia_smi="echo GPU 0")
    assert done.returncode == 0 and asked.splitlines()[-1].endswith("-e .[cuda12]")


def test_an_old_python_is_one_sentence(checkout):
    old = {f"python3{minor}": "exit 1" for minor in ("", ".11", ".12", ".13")}
    done, _ = checkout("local.sh", "x.py", **old)
    assert (
        done.returncode == 2
        and done.stderr
        == "error: ssljax needs Python 3.11 or newer: install one and run this again.\n"
    )


def test_constraints_name_versions_and_no_host():
    for line in (ROOT / "launch" / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        assert name and version and "/" not in line and "@" not in line
