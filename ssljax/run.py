"""Run options, and `train`: an experiment from its first step or last checkpoint to its end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
import itertools
import operator
import os
import pathlib
import shutil
import time
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from ssljax import extras, fingerprint, logs, record, reference, replay, sharding, watchdog
from ssljax.checkpoint import Checkpoints, flatten, last_step
from ssljax.data.cache import cache_dir, repair_compilation_cache
from ssljax.errors import check_local, InputError
from ssljax.experiment import Experiment, TrainState
from ssljax.lock import lock
from ssljax.models import attention
from ssljax.origin import Origin
from ssljax.processes import agree, labelled
from ssljax.program import everywhere, Program
from ssljax.ranges import check_value, Count, CountOrZero
from ssljax.session import Results, Session
from ssljax.signals import Signals
from ssljax.summary import judgements
from ssljax.trace import FIRST

Tree = Any
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


def train(
    exp: Experiment,
    run: Run = Run(),
    *,
    started: float | None = None,
) -> TrainState:
    """Trains `exp` to its last step, from the last checkpoint in `run.workdir` if there is one, and
    evaluates it.

    Returns the last state, with a leading axis for the seeds where there are several. Nothing is
    written without a workdir. What it was made of (`Experiment.origin`) goes into the run's record,
    and must be what the run in the folder was made of. `started` is the time.perf_counter() from
    which the first step is timed, by default that of this call. Raises InputError for settings that
    are not possible, Stopped after SIGINT, SIGTERM or SIGHUP.
    """
    times = {"start": time.perf_counter() if started is None else started}
    times["ready"] = time.perf_counter()
    check_value("run", run, Run)
    check_together(run)
    check_local(run.workdir, "--run.workdir")
    try:
        exp = replace(exp, num_steps=operator.index(exp.num_steps))  # It may be one of NumPy.
    except TypeError:
        raise InputError(f"The number of steps must be whole, not {exp.num_steps}.") from None
    use_compilation_cache()
    sharding.split_cpu(run.cpu_devices)
    mesh = sharding.make_mesh(run.fsdp, tensor=run.tensor)
    _check(exp, run, mesh)
    workdir = pathlib.Path(run.workdir).expanduser() if run.workdir else None
    origin = exp.origin or Origin()
    if workdir and not origin.read:
        origin = replace(origin, read=fingerprint.of_resident(exp.data.resident()))
    with jax.set_mesh(mesh), Signals() as signals, watchdog.watching(), lock(workdir):
        return _train(exp, run, workdir, mesh, signals, origin, times)


def _check(exp: Experiment, run: Run, mesh: Mesh) -> None:
    """InputError for settings that are not possible."""
    if exp.data.batch_size % (n := sharding.batch_parts(mesh)):
        raise InputError(
            f"A batch of {exp.data.batch_size} can't be split over {n} devices: choose a "
            f"--batch-size that is a multiple of {n}."
        )
    if run.profile and not run.workdir:
        raise InputError("--run.profile writes into the run's folder: give --run.workdir.")
    every = filter(None, (run.log_every, run.eval_every, run.save_every))
    before = FIRST * min(run.steps_per_call, *every)
    if run.profile and exp.num_steps <= before:
        raise InputError(
            f"--run.profile traces steps from step {before + 1} on, once the step is compiled and "
            f"warm, and the run has {exp.num_steps}: train for more steps, or leave it out."
        )
    if run.evaluate and not run.workdir:
        raise InputError("--run.evaluate is for a finished run: give its folder as --run.workdir.")
    if run.wandb:
        extras.load("wandb", "--run.wandb")
    if run.reference:
        where = pathlib.Path(run.reference).expanduser()
        if run.workdir and where.resolve() == pathlib.Path(run.workdir).expanduser().resolve():
            raise InputError("--run.reference is the run's own folder: give that of another run.")
        reference.reference(run.reference)
    if exp.num_steps < 1:
        raise InputError(f"The number of steps must be at least 1, not {exp.num_steps}.")


def _train(
    exp: Experiment,
    run: Run,
    workdir: pathlib.Path | None,
    mesh: Mesh,
    signals: Signals,
    origin: Origin,
    times: dict[str, float],
) -> TrainState:
    seeds = [run.seed + i for i in range(run.seeds)]
    computes = {**origin.computes, "run": {"seed": run.seed, "seeds": run.seeds}}
    source, read = origin.source, origin.read

    resident = jax.tree.map(lambda x: everywhere(x, mesh), exp.data.resident())
    feeds = [exp.data.feed(seed, 0, mesh) for seed in seeds]
    first = [next(feed) for feed in feeds]
    program = Program(exp, run, mesh, first[0], resident)
    exp = program.exp
    old = None
    if workdir:
        old = record.check_record(
            workdir, computes, read=read, defaults=origin.defaults, num_steps=exp.num_steps
        )
        record.check_files(workdir, exp.files)
        if old and run.lanes not in ("auto", old["lanes"]):
            raise InputError(
                f"{workdir} holds seeds trained as --run.lanes {old['lanes']}: leave --run.lanes "
                "out to resume."
            )
        program.lanes = old["lanes"] if old else program.lanes
    times["data"] = time.perf_counter()

    if run.replay:
        for line in unused(run):
            print(line)
        replay.replay(exp, program, workdir)
    if run.evaluate and workdir and (reached := last_step(workdir)) < exp.num_steps:
        raise InputError(
            f"--run.evaluate is for a finished run, and that in {workdir} is at step {reached} of "
            f"{exp.num_steps}: leave it out to train, which ends with an evaluation."
        )
    checkpoints = Checkpoints(workdir, run.keep) if workdir else None
    start, state = checkpoints.restore_latest(program.shapes()) if checkpoints else (0, None)
    if state is None:
        state = program.init(first)
    facts: dict[str, Any] = {}
    if workdir and jax.process_index() == 0:
        changed = record.write_record(
            workdir,
            old,
            computes,
            source,
            start,
            read,
            lanes=program.lanes,
            num_steps=exp.num_steps,
            batch_size=exp.data.batch_size,
            files={name: fingerprint.digest(text) for name, text in exp.files.items()},
            kept=record.kept_form(exp.kept, program.state),
            experiment=os.path.basename(source) if source else None,
            defaults=origin.defaults,
            said=list(origin.said),
            evals=judgements(exp.evals),
            reference=run.reference,
        )
        facts = record.facts(workdir)
        for name, text in exp.files.items():
            record.write_whole(workdir / name, text)
        if changed:
            print(
                f"Note: {os.path.basename(source or '')} has changed since {workdir} was last "
                "launched. Its results so far were computed by the old code (source/ has both): "
                "choose another --run.workdir to start from scratch."
            )
    log = logs.Log(workdir, exp.num_steps, start, run.wandb)
    results = Results(workdir, start)
    session = Session(exp, run, program, workdir, checkpoints, log, results, signals, facts)
    if run.reference:
        before = logs.read_metrics(workdir) if workdir and jax.process_index() == 0 else []
        session.watch = reference.Watch(run.reference, exp.num_steps, computes, agree(before))
    times["state"] = time.perf_counter()
    try:
        log.line(_header(program, workdir, computes))
        for line in remarks(run, exp.num_steps, start):
            log.line(line)
        if session.watch and session.watch.note:
            log.line(session.watch.note)
        session.check_evaluators()
        if run.evaluate:
            results.drop(exp.num_steps)
        if not start or not results.rows:
            untrained = state
            if start < exp.num_steps:
                program.compile_ahead(state, [[fed] * run.steps_per_call for fed in first])
            if start or exp.warm_start:
                untrained = program.init(first, warm=False)
            session.evaluate(untrained, 0)
            del untrained
            session.report()
        times["evaluated"] = time.perf_counter()
        if start == exp.num_steps and not run.evaluate:
            log.line(f"Finished at step {start}; --run.evaluate evaluates it again.")
        elif start:
            log.line(f"Resuming from step {start} of {exp.num_steps}.")
        if start < exp.num_steps:
            if start and run.eval_every and start % run.eval_every == 0:
                session.evaluate(state, start)  # What a kill in an evaluation has left to do.
            feeds = (
                [exp.data.feed(seed, start, mesh) for seed in seeds]
                if start
                else [itertools.chain([x], feed) for x, feed in zip(first, feeds, strict=True)]
            )
            state = session.train(state, start, feeds, times)
        if checkpoints:
            checkpoints.wait()
        if workdir and jax.process_index() == 0:
            # The state of a failed step, whose cause has been removed since.
            shutil.rmtree(workdir / "failure", ignore_errors=True)
        session.summary(session.evaluate(state, exp.num_steps))
    finally:
        try:
            log.close()
        finally:
            if checkpoints:
                checkpoints.close()
    return program.stack(state)


def _header(program: Program, workdir: pathlib.Path | None, computes: Mapping[str, Any]) -> str:
    """What is about to run, below what was said of the data: device, model, steps, folder."""
    mesh, seeds = program.mesh, len(program.seeds)
    device = record.hardware()
    if jax.process_count() > 1:
        device += f", {jax.process_count()} processes"
    if mesh.size > 1:
        device += f", {sharding.batch_parts(mesh)} parts of each batch"
    if (fsdp := mesh.shape["fsdp"]) > 1:
        specs = [x.spec for x in jax.tree.leaves(program.layout.params)]
        which = "large parameters" if any("fsdp" in spec for spec in specs) else "no parameter"
        device += f", {which} split over {fsdp}"
    if (tensor := sharding.tensor_parts(mesh)) > 1:
        device += f", heads and hidden channels split over {tensor}"
    model = f"{sum(x.size for x in flatten(program.state.params).values()):,} parameters"
    if seeds > 1:
        together = "in one batched program" if program.vmapped else "one after another in each step"
        model += f", {seeds} seeds {together}"
    exp = program.exp
    steps = (
        f"{exp.num_steps:,} step{'s' * (exp.num_steps != 1)} of {exp.data.batch_size:,} examples"
    )
    if type(epochs := computes.get("epochs")) is int:
        steps += f" ({epochs:,} epoch{'s' * (epochs != 1)})"
    fields = {
        "device": device,
        "model": model,
        "training": steps + (f", {program.accumulation}" if program.accumulation.how else ""),
        **({"attention": attention.described(used)} if (used := program.attention) else {}),
        "folder": str(workdir or "none: nothing is saved without --run.workdir"),
    }
    return "\n".join(labelled(label, text) for label, text in fields.items())


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX has a folder for them already."""
    options: Any = jax.config  # Its attributes are made when JAX is imported.
    if not options.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    repair_compilation_cache()
