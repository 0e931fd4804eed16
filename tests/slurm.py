"""A Slurm of one node on this machine: Debian's slurm-wlm and munge, on loopback, as root."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
# Two devices that exist stand for GPUs. A job that was queued again starts when the credentials of
# its first start have ended, here after 5 s (Slurm refuses it before, so a test must not hurry it).
CONF = """ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
GresTypes=gpu
MpiDefault=none
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2
PartitionName=all Nodes=localhost Default=YES
"""
GRES = "AutoDetect=off\nName=gpu File=/dev/tty[0-1] Flags=nvidia_gpu_env\n"


def missing() -> str:
    """Why Slurm can't be started here; empty if it can."""
    absent = [name for name in PROGRAMS if not _which(name)]
    if absent:
        return f"{absent[0]} is not installed: apt-get install slurm-wlm munge"
    if os.geteuid():
        return "Slurm's daemons are started by root only"
    return "" if os.path.exists("/dev/tty1") else "there are no devices that can stand for GPUs"


class Slurm:
    """Commands of the cluster whose configuration lies in `folder`."""

    def __init__(self, folder: pathlib.Path):
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def run(self, *command: object, cwd: pathlib.Path | None = None) -> str:
        """Standard output of a command of Slurm."""
        line = [str(c) for c in command]
        done = subprocess.run(line, cwd=cwd, env=self.env, capture_output=True, text=True)
        assert not done.returncode, f"{' '.join(line)}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """State of a job, as RUNNING."""
        shown = self.run("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """The first of `states` that a job is in."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state} after {seconds} s"
            time.sleep(0.2)
        return state


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[Slurm]:
    """A running Slurm, which ends with the context."""
    ports = [_free_port(), _free_port()]
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=ports, host=host))
    (folder / "gres.conf").write_text(GRES)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "spool").mkdir()
    slurm = Slurm(folder)
    munge = {"socket": "munge.socket", "key-file": key.name, "seed-file": "munge.seed"}
    munge |= {"pid-file": "munge.pid", "log-file": "munge.log"}
    commands = (
        ["munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in munge.items())],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "localhost"],
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            out = stack.enter_context(open(folder / f"{command[0]}.out", "wb"))
            command[0] = _which(command[0])
            process = subprocess.Popen(command, env=slurm.env, stdout=out, stderr=out)
            stack.callback(_stop, process)
            if "munged" in command[0]:
                _until((folder / "munge.socket").exists)
        _until(lambda: "idle" in _output(slurm, "sinfo"))
        yield slurm


def _which(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


def _output(slurm: Slurm, command: str) -> str:
    return subprocess.run([command], env=slurm.env, capture_output=True, text=True).stdout


def _until(ready, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "Slurm has not started"
        time.sleep(0.1)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
