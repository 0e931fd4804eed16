"""Launch scripts, with a stand-in for uv that notes its arguments instead of installing; files."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib

import jax
import jsonschema
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet as JobSet
import pydantic
import pytest
import yaml

from ssljax import InputError, watchdog
from ssljax.cli import default_workdir, parse
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
    done, asked = checkout("local.sh", "x.py")
    assert done.returncode == 0 and asked == ""  # What tests need has what a run needs.
    done, asked = checkout("local.sh", "x.py", nvidia_smi="echo GPU 0")
    assert done.returncode == 0 and asked.splitlines()[-1].endswith("[all,cuda12]")
    done, asked = checkout("test.sh", nvidia_smi="echo GPU 0")
    assert done.returncode == 0 and asked.splitlines()[-1].endswith("[all,cuda12,test]")


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


def test_environment_for_a_machine_with_a_gpu_is_set_up_without_one(checkout):
    done, asked = checkout("setup.sh", "cuda12")
    assert done.returncode == 0 and asked.splitlines()[-1].endswith("[all,cuda12]")
    done, asked = checkout("setup.sh", "cuda12", nvidia_smi="echo GPU 0")
    assert done.returncode == 0 and asked == ""


# Files for Kubernetes and SkyPilot.


def unknown(asked, known, path=""):
    """Paths of what `known`, the same as a schema's classes keep it, lacks or has otherwise."""
    if isinstance(asked, dict):
        for k, x in asked.items():
            yield from unknown(x, known[k], f"{path}/{k}") if k in known else [f"{path}/{k}"]
    elif isinstance(asked, list):
        for i, (x, y) in enumerate(zip(asked, known, strict=True)):
            yield from unknown(x, y, f"{path}/{i}")
    elif asked != known:
        yield path


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())


def test_jobset_is_what_the_schema_of_kubernetes_allows(jobset):
    assert not [*unknown(jobset, JobSet.from_dict(jobset).to_dict())]
    # And the check sees what isn't allowed.
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    container["resource"] = container.pop("resources")
    wrong = JobSet.from_dict(jobset).to_dict()
    assert [path.split("/")[-1] for path in unknown(jobset, wrong)] == ["resource"]
    job["completions"] = "two"
    with pytest.raises(pydantic.ValidationError, match="completions"):
        JobSet.from_dict(jobset)


def test_pods_of_the_jobset_find_each_other(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {x["name"]: x.get("value") or x["valueFrom"]["fieldRef"] for x in container["env"]}
    # https://jobset.sigs.k8s.io/docs/concepts: pods are JOBSET-JOB-INDEX-POD.JOBSET
    name = jobset["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:{port}"
    assert int(given["JAX_NUM_PROCESSES"]) == spec["completions"] == spec["parallelism"]
    assert "job-completion-index" in given["JAX_PROCESS_ID"]["fieldPath"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    method, *flags = container["args"]
    run, _ = parse(getattr(importlib.import_module(f"experiments.{method}"), method), flags)
    assert run.distributed and run.workdir.startswith(container["volumeMounts"][0]["mountPath"])


def test_sky_file_is_what_its_schema_allows(tmp_path):
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    schemas = json.loads((ROOT / "tests" / "schemas" / "skypilot.json").read_text())
    jsonschema.validate(task, schemas["task"])
    jsonschema.validate(task["resources"], schemas["resources"])
    with pytest.raises(jsonschema.ValidationError, match="spot"):
        jsonschema.validate({**task["resources"], "spot": True}, schemas["resources"])
    with pytest.raises(jsonschema.ValidationError, match="nodes"):
        jsonschema.validate({**task, "nodes": 2}, schemas["task"])
    _, script, experiment, *flags = shlex.split(task["run"])
    assert (ROOT / script).exists() and task["setup"] == "launch/setup.sh cuda12"
    method = experiment.removeprefix("experiments/").removesuffix(".py")
    run, _ = parse(getattr(importlib.import_module(f"experiments.{method}"), method), flags)
    assert run.workdir.startswith(next(iter(task["file_mounts"])))


def test_image_copies_what_the_package_is_made_of():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    copied = {word for line in re.findall("COPY (.*)", text) for word in line.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "launch/constraints.txt", project["project"]["readme"]}
    needed |= {*project["project"]["license-files"], "ssljax", "experiments"}
    assert copied == needed and all((ROOT / name).exists() for name in copied)


# Processes.


@pytest.mark.parametrize(
    "environment, given",
    [
        ({}, {}),
        (
            {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "JAX_COORDINATOR_ADDRESS": "a:1"},
            {
                "coordinator_address": "a:1",
                "num_processes": 4,
                "process_id": 3,
                "cluster_detection_method": "deactivate",
            },
        ),
        # Slurm's task 3 of a node: where it sees a single GPU, that has the number 0.
        ({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "3"}, {"local_device_ids": [0]}),
        ({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {}),
        ({"SLURM_LOCALID": "3"}, {}),
        # Tasks that are alone on their nodes.
        (
            {
                "SLURM_LOCALID": "0",
                "CUDA_VISIBLE_DEVICES": "0,1,2",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            },
            {"local_device_ids": [0, 1, 2]},
        ),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {}),
    ],
)
def test_processes_are_found_by_environment_variables(environment, given, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: asked.append(kwargs))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    watchdog.initialize()
    assert asked == [given]


def test_half_given_environment_variables_are_an_error(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID must all be given"):
        watchdog.initialize()


PAGE = (ROOT / "launch" / "README.md").read_text()
SCRIPT = r"launch/(?:local|tpu|slurm|array)\.sh (?:flags\.txt )?"


def test_commands_of_the_page_are_parsed():
    found = re.findall(rf"{SCRIPT}experiments/(\w+)\.py ([^\n`]*)", PAGE)
    assert len(found) >= 6
    for name, flags in found:
        make = getattr(importlib.import_module(f"experiments.{name}"), name)
        parse(make, shlex.split(flags, comments=True))
    for extra in re.findall(r"ssljax\[(\w+)\]", PAGE):
        assert (
            extra
            in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
        )


def test_files_of_the_page_are_there():
    for name in re.findall(r"\]\((\w+\.\w+)\)", PAGE) + re.findall(r"launch/(\w+\.\w+)", PAGE):
        assert (ROOT / "launch" / name).exists() or name == "plans.md", name


def test_flags_of_the_sweep(tmp_path):
    """The page's loop writes a line for each of its 50 jobs."""
    loop = re.search(r"(for lr in .*?> flags\.txt)", PAGE, re.DOTALL)[1]
    subprocess.run(["bash", "-c", loop], cwd=tmp_path, check=True)
    lines = (tmp_path / "flags.txt").read_text().splitlines()
    assert len(lines) == int(re.search(r"--array=1-(\d+)", PAGE)[1]) == len({*lines})
    make = importlib.import_module("experiments.simclr").simclr
    folders = {default_workdir(make, *parse(make, line.split())[::-1]) for line in lines}
    assert len(folders) == 50  # No two jobs share a folder.


def test_an_array_of_more_jobs_than_lines_is_refused(tmp_path):
    """They would all train the experiment's defaults, in one folder."""
    (tmp_path / "flags.txt").write_text("--lr 1\n\n--lr 2")
    for task, said in ((4, "flags.txt has no line 4: submit with --array=1-3."), (2, "nowhere")):
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_SUBMIT_DIR": "nowhere"}
        done = subprocess.run(
            ["bash", ROOT / "launch" / "array.sh", "flags.txt", "experiments/simclr.py"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode and said in done.stderr, done.stderr
