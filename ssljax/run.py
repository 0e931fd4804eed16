"""Options of a run: where and how an experiment is trained, and what they say together."""

from dataclasses import dataclass
from typing import Literal

from ssljax import sharding
from ssljax.errors import InputError
from ssljax.ranges import Count, CountOrZero

MODES = ("plan", "replay", "evaluate")  # What a command does besides training.
# Options of a run that change nothing in a plan, and nothing where a step is replayed.
UNUSED = {
    "plan": ("cpu_devices", "wandb", "reference", "profile"),
    "replay": ("wandb", "reference", "profile"),
}


@dataclass(frozen=True)
class Run:
    """Runtime options; only the seeds affect results, and `accumulate`, as it says."""

    workdir: str = ""
    """Folder for everything that the run writes; a run found there resumes. By default a folder in
    runs/ named after the experiment and the arguments that differ from their defaults."""
    seed: CountOrZero = 0
    """Seed of initialisation, data order and noise."""
    seeds: Count = 1
    """Number of seeds to train in one process: seed, seed + 1, ..."""
    lanes: Literal["auto", "vmap", "loop"] = "auto"
    """Train several seeds in one batched program (vmap), or one after another in each step (loop);
    auto: vmap, except for convolutions on a CPU, where it is slower."""
    fsdp: Count = 1
    """Number of devices over which to split each large parameter and its optimizer state at rest;
    1 for plain data parallelism."""
    tensor: Count = 1
    """Number of devices over which to split the heads and hidden channels of ViTs and Transformers,
    which compute the same examples together; 1 for none."""
    accumulate: Count = 1
    """Parts into which a batch is split, computed one after another, to need less memory. The step
    is that of the whole batch, but that BatchNorm normalises each part by itself, and that random
    draws are others."""
    cpu_devices: CountOrZero = 0
    """Number of devices into which to split a CPU, at most one for each core: nets of convolutions
    train about a third faster on two cores, language models do not. 0 to leave it whole."""
    steps_per_call: Count = 1
    """Steps in one compiled program. Raise this when a step takes less than 1 ms."""
    log_every: Count = 50
    """Log every N steps. If this or one of the next two is no multiple of steps_per_call, shorter
    programs are compiled as well."""
    eval_every: CountOrZero = 0
    """Evaluate every N steps; 0 to evaluate only before and after training."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    evaluate: bool = False
    """Evaluate a finished run again, instead of showing its results."""
    wandb: str = ""
    """Project of Weights & Biases to log to as well."""
    reference: str = ""
    """Row of the ledger (the name of its page), or folder of a run with several seeds, to compare
    the first twentieth of training with; it is said if a metric leaves the seeds' band."""
    plan: str = ""
    """Machine to plan for instead of training (h100x8, v5e:16x16, ...): compiles the step for it,
    and prints and saves what it needs in memory, computation and traffic. Needs no such device and
    no data."""
    replay: bool = False
    """Repeat the step in which a metric was not finite, and say where the value comes from."""
    profile: CountOrZero = 0
    """Trace N steps with XProf, after the first ones, into profile/ of the run's folder."""
    distributed: bool = False
    """Run as one of several processes, of Slurm, of a TPU pod, or as the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say (launch/README.md)."""


def check_together(run: Run) -> None:
    """InputError for options that contradict each other."""
    modes = [mode for mode in MODES if getattr(run, mode)]
    if len(modes) > 1:
        raise InputError(
            f"--run.{modes[0]} and --run.{modes[1]} ask for different things: give one of them."
        )
    if run.plan and run.distributed:
        raise InputError(
            "--run.plan compiles for all devices of its machine in one process: leave "
            "--run.distributed out."
        )


def unused(run: Run) -> list[str]:
    """A remark on the options that are given and that have no effect where no step is trained."""
    for mode, names in UNUSED.items():
        given = [f"--run.{name.replace('_', '-')}" for name in names if getattr(run, name)]
        if getattr(run, mode) and given:
            verb = "has" if len(given) == 1 else "have"
            return [f"Note: {' and '.join(given)} {verb} no effect with --run.{mode}."]
    return []


def remarks(run: Run, num_steps: int, start: int) -> list[str]:
    """Lines on options that do less than they say in a run of `num_steps`, from step `start` on."""
    found, k = [], run.steps_per_call
    every = {name: getattr(run, f"{name}_every") for name in ("log", "eval", "save")}
    uneven = [f"--run.{name}-every {n}" for name, n in every.items() if n % k and n < num_steps]
    if uneven:
        found.append(
            f"Note: --run.steps-per-call {k} does not divide {' and '.join(uneven)}: shorter "
            "programs are compiled as well."
        )
    elif k > num_steps:
        found.append(f"Note: --run.steps-per-call {k} is more than the run's {num_steps} steps.")
    if run.eval_every > num_steps:
        found.append(
            f"Note: --run.eval-every {run.eval_every} is more than the run's {num_steps} steps, "
            "which is evaluated before and after training alone."
        )
    if run.profile and start == num_steps:
        found.append("Note: --run.profile traces nothing, since the run has finished.")
    if run.cpu_devices and sharding.platform() != "cpu":
        found.append(
            f"Note: --run.cpu-devices splits a CPU; this run is on a {sharding.platform()}."
        )
    return found
