"""Launch scripts, with a stand-in for uv that notes its arguments instead of installing."""

import os
import re
import shutil
import subprocess
import time

import pytest

from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path):
    """run(script, *args, **commands) of a copied checkout, with further stand-ins on the PATH."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "simclr.py").touch()
    commands = tmp_path / "commands"
    commands.mkdir()

    def stand_in(name, text):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)

    stand_in(
        "uv",
        f"""echo "uv $*" >> {tmp_path}/asked
if [ "$1" = venv ]; then
  mkdir -p "${{@: -1}}/bin"
  printf '#!/usr/bin/env bash\\necho "python $*; in $PWD; started $SSLJAX_STARTED"\\n' \
    > "${{@: -1}}/bin/python"
  chmod +x "${{@: -1}}/bin/python"
fi""",
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


def test_package_is_installed_once_with_what_the_files_need(checkout):
    done, asked = checkout("local.sh", "experiments/simclr.py", "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Set up in \d+ s\.", done.stderr)
    assert re.search(r"-c \S+/launch/constraints.txt -e /\S+\[all\]$", asked.splitlines()[1])
    done, asked = checkout("local.sh", "experiments/simclr.py")
    assert done.returncode == 0 and asked == "" and done.stderr == ""


def test_experiments_run_from_any_folder(checkout, tmp_path):
    checkout("local.sh", "experiments/simclr.py")
    before = time.time()
    done, _ = checkout("local.sh", "experiments/simclr.py", "--data", "my pictures")
    said = re.fullmatch(r"python (.*); in (.*); started ([\d.]+)\n", done.stdout)
    assert said, done.stdout
    assert said[1] == f"{tmp_path}/experiments/simclr.py --data my pictures" and said[2] == "/"
    assert before - 0.01 <= float(said[3]) <= time.time()
    own = tmp_path / "own.py"
    own.touch()
    assert checkout("local.sh", str(own))[0].stdout.startswith(f"python {own};")
    nothing, _ = checkout("local.sh")
    assert nothing.returncode == 2 and nothing.stderr.startswith("error: which experiment?")


def test_extras_for_tests_and_gpus(checkout, tmp_path):
    done, asked = checkout("test.sh", "-k", "loop")
    assert done.stdout.startswith(f"python -m pytest -k loop; in {tmp_path};")
    assert asked.splitlines()[-1].endswith("[all,test]")
    done, asked = checkout("local.sh", "x.py", nvidia_smi="echo GPU 0")
    assert done.returncode == 0 and asked.splitlines()[-1].endswith("[all,cuda12]")


def test_old_python_error(checkout):
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
