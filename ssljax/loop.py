"""The training loop, the same for every experiment."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
import errno
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any, get_type_hints, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
from scipy.special import stdtrit
import tyro

from ssljax import figures, logging, replay, sharding
from ssljax.checkpoint import Checkpoints, flatten
from ssljax.data.sources import cache_dir
from ssljax.errors import InputError
from ssljax.experiment import Experiment, TrainState

Tree = Any
SLOW = 10.0  # Seconds from which on an evaluator is named as it ends, so that no one takes it for a hang.


@dataclass(frozen=True)
class Run:
    """Where and how to run; of these, only the seeds change what is computed."""

    workdir: str = ""
    """Folder for all that the run writes; a run found there goes on. By default runs/, with a name made of the
    experiment and the arguments that are not its defaults."""
    seed: int = 0
    """For initialisation, order and noise."""
    seeds: int = 1
    """Train this many seeds in one process: seed, seed + 1, ..."""
    lanes: Literal["auto", "vmap", "loop"] = "auto"
    """Several seeds in one batched program, or one after another in each step; auto: vmap, but for convolutions on
    a CPU, which it slows down."""
    fsdp: int = 1
    """Over how many devices to split each large parameter and its optimizer state at rest; 1 for plain data parallelism."""
    cpu_devices: int = 0
    """Split a CPU into this many devices, one for each core: a small net, whose layers don't fill the cores, trains
    faster so. 0 to leave it whole."""
    steps_per_call: int = 1
    """Steps in one compiled program: more pays where a step takes under a millisecond."""
    log_every: int = 50
    """In steps, as all of these; steps_per_call should divide them."""
    eval_every: int = 0
    """0 to evaluate only at the end."""
    save_every: int = 500
    """What a kill can lose."""
    keep: int = 2
    """Checkpoints to keep."""
    wandb: str = ""
    """Log to this project of Weights & Biases too."""
    replay: bool = False
    """Run again the step that stopped this run, and say where its first non-finite number comes from."""
    distributed: bool = False
    """One of several processes: call jax.distributed.initialize first (Slurm and TPU pods are recognised)."""


class Stopped(SystemExit):
    """A signal ended the run early, with its state saved; the exit status is 128 + the signal, as a shell has it."""


def train(
    exp: Experiment,
    run: Run = Run(),
    computes: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> TrainState:
    """Trains `exp` to its last step, from the last checkpoint in `run.workdir` if there is one, and evaluates it.

    Returns the last state, with a leading axis for the seeds where there are several. Without a workdir nothing is
    written. `computes` and `source`, the arguments and the file of the experiment, go into the run's record. Raises
    InputError for settings that can't be, Stopped after SIGINT or SIGTERM.
    """
    compilation_cache()
    sharding.split_cpu(run.cpu_devices)
    mesh = sharding.make_mesh(run.fsdp)
    if exp.data.batch_size % mesh.size:
        raise InputError(
            f"A batch of {exp.data.batch_size} can't be split over {mesh.size} devices: choose a "
            f"--batch-size that {mesh.size} divides."
        )
    for name in ("seeds", "steps_per_call", "log_every", "save_every", "keep", "eval_every"):
        least = 0 if name == "eval_every" else 1
        if getattr(run, name) < least:
            raise InputError(
                f"--run.{name.replace('_', '-')} must be at least {least}, not {getattr(run, name)}."
            )
    if run.wandb and not importlib.util.find_spec("wandb"):
        raise InputError(
            "--run.wandb needs the package wandb: pip install wandb, or leave the flag out."
        )
    if exp.num_steps < 1:
        raise InputError(f"The number of steps must be at least 1, not {exp.num_steps}.")
    with jax.set_mesh(mesh), _Signals() as signals:
        return _train(exp, run, mesh, signals, computes or {}, source)


def _train(
    exp: Experiment,
    run: Run,
    mesh: Mesh,
    signals: "_Signals",
    computes: Mapping[str, Any],
    source: str | None,
) -> TrainState:
    workdir = pathlib.Path(run.workdir).expanduser() if run.workdir else None
    seeds = [run.seed + i for i in range(run.seeds)]
    times = {"ready": logging.since_start()}
    computes = {**computes, "run": {"seed": run.seed, "seeds": run.seeds}}

    resident = jax.tree.map(lambda x: _everywhere(x, mesh), exp.data.resident())
    feeds = [exp.data.feed(seed, 0, mesh) for seed in seeds]
    first = [next(feed) for feed in feeds]
    program = Program(exp, run, mesh, first[0], resident)
    if workdir:
        old = logging.check_record(workdir, computes)
        logging.check_files(workdir, exp.files)
        if old and run.lanes not in ("auto", old["lanes"]):
            raise InputError(
                f"{workdir} holds seeds trained as --run.lanes {old['lanes']}: leave --run.lanes out to go on."
            )
        program.lanes = old["lanes"] if old else program.lanes
    times["data"] = logging.since_start()

    if run.replay:
        replay.replay(exp, program, workdir)
    checkpoints = Checkpoints(workdir, run.keep) if workdir else None
    start = checkpoints.latest() if checkpoints else None
    if start is not None:
        state = checkpoints.restore(start, program.shapes())
    else:
        start, state = 0, program.init(first)
    if workdir and jax.process_index() == 0:
        changed = logging.write_record(
            workdir,
            old,
            computes,
            source,
            start,
            lanes=program.lanes,
            num_steps=exp.num_steps,
            batch_size=exp.data.batch_size,
        )
        for name, text in exp.files.items():
            logging.write_whole(workdir / name, text)
        if changed:
            print(
                f"Note: {os.path.basename(source or '')} is not what it was when {workdir} was last launched. What is there "
                "was computed by the old code (source/ has both): take another --run.workdir to begin anew."
            )
    log = logging.Log(workdir, exp.num_steps, start, run.wandb)
    session = _Session(exp, run, program, workdir, checkpoints, log, signals)
    times["state"] = logging.since_start()
    try:
        if start:
            log.line(f"Going on from step {start} of {exp.num_steps}.")
        if start < exp.num_steps:
            feeds = (
                [exp.data.feed(seed, start, mesh) for seed in seeds]
                if start
                else [itertools.chain([item], feed) for item, feed in zip(first, feeds)]
            )
            state = session.steps(state, start, feeds, times)
        if checkpoints:
            checkpoints.wait()
        if workdir and jax.process_index() == 0:
            shutil.rmtree(
                workdir / "failure", ignore_errors=True
            )  # Of a cause that was mended: the run is through.
        session.summary(session.evaluate(state, exp.num_steps, check=True), seeds, first)
    finally:
        try:
            log.close()
        finally:
            if checkpoints:
                checkpoints.close()
    return program.stack(state)


@dataclass
class _Session:
    """A run under way: what is trained, and all that it tells and is told."""

    exp: Experiment
    run: Run
    program: "Program"
    workdir: pathlib.Path | None
    checkpoints: Checkpoints | None
    log: logging.Log
    signals: "_Signals"

    def steps(
        self, state: Tree, start: int, feeds: Sequence[Iterator], times: dict[str, float]
    ) -> Tree:
        """The loop itself: from `start` to the last step. The device waits for it only to be saved and evaluated."""
        exp, run, program, checkpoints, log = (
            self.exp,
            self.run,
            self.program,
            self.checkpoints,
            self.log,
        )
        watch, i, compiled = program.new_watch(), start, set()
        trained = _seconds_before(self.workdir, start)
        clock, since = time.perf_counter(), start
        stops = [every for every in (run.log_every, run.save_every, run.eval_every) if every]
        pending = None  # The step and the watch of a log point that has not been written yet.

        def check(watch) -> dict[str, list[float]]:
            values, bad = program.read(watch)
            if bad:
                jax.tree.map(
                    lambda x: x.delete(), state
                )  # What came after it is spoilt, and in the way.
                raise replay.failed(
                    exp, program, self.before(bad[1]) if self.workdir else None, bad, self.workdir
                )
            return values

        def report(step, watch) -> None:
            nonlocal trained, clock, since
            values, now = check(watch), time.perf_counter()
            rate = (step - since) / max(now - clock, 1e-9)
            trained += now - clock
            clock, since = now, step
            log.scalars(
                step,
                values | {"seconds": [trained]},
                f"  {form_rate(rate)} steps/s, {rate * exp.data.batch_size * run.seeds:.0f} examples/s",
            )

        while i < exp.num_steps:
            k = min(run.steps_per_call, exp.num_steps - i, *(every - i % every for every in stops))
            with jax.profiler.StepTraceAnnotation("train", step_num=i + 1):
                fed = [[next(feed) for _ in range(k)] for feed in feeds]
                before = time.perf_counter()
                state, watch = program.update(state, watch, fed)
                if k not in compiled:  # Such a call compiles; what it takes is not the steps'.
                    took = time.perf_counter() - before
                    clock += took
                    if not compiled:
                        jax.block_until_ready(watch)
                        times["step"] = logging.since_start()
                        log.line(_start_line(times, took))
                        clock, since = time.perf_counter(), i + k
                    compiled.add(k)
            i += k
            log.advance(k)
            if pending:  # Only now, so that the device has work while numbers are read and written.
                report(*pending)
                pending = None
            due = lambda every: bool(every) and i % every == 0
            last, stop = i == exp.num_steps, self.signals.seen(due(run.log_every))
            if due(run.log_every) or last or stop:
                pending, watch = (i, watch), program.renew(watch)
            if due(run.save_every) or due(run.eval_every) or last or stop:
                if pending:
                    report(*pending)
                    pending = None
                else:
                    check(watch)
                before = time.perf_counter()
                if checkpoints and (due(run.save_every) or last or stop):
                    checkpoints.save(i, state)
                self.stop_if(stop, i)
                if due(run.eval_every) and not last:
                    self.evaluate(state, i)
                clock += (
                    time.perf_counter() - before
                )  # Saving and evaluating are not training; logging is.
        return state

    def before(self, step: int) -> Tree:
        """The state before `step`, found again from the last checkpoint, or from the start."""
        program, checkpoints = self.program, self.checkpoints
        if checkpoints:
            checkpoints.wait()
        start = checkpoints.latest() if checkpoints else None
        if start is None:
            start, state = (
                0,
                program.init(
                    [next(self.exp.data.feed(seed, 0, program.mesh)) for seed in program.seeds]
                ),
            )
        else:
            state = checkpoints.restore(start, program.shapes())
        feeds, watch = (
            [self.exp.data.feed(seed, start, program.mesh) for seed in program.seeds],
            program.new_watch(),
        )
        for _ in range(start, step):
            state, watch = program.update(state, watch, [[next(feed)] for feed in feeds])
        return state

    def stop_if(self, stop: int, step: int) -> None:
        """Ends the run, which has saved itself, if there was a signal."""
        if not stop:
            return
        if self.checkpoints:
            self.checkpoints.wait()
            self.log.line(
                f"Stopped by {signal.Signals(stop).name} at step {step}; all is saved in {self.run.workdir}. "
                "Run the same command again to go on."
            )
        else:
            self.log.line(
                f"Stopped by {signal.Signals(stop).name} at step {step}; without a workdir nothing is saved."
            )
        self.log.close()
        raise Stopped(128 + stop)

    def evaluate(
        self, state: Tree, step: int, check: bool = False, pictures: bool = True
    ) -> dict[str, list[float]]:
        """All evaluators on each seed: {"eval/number": one for each seed}; pictures and texts are the first seed's.

        With `check`, after training, a signal ends it between two evaluators.
        """
        results: dict[str, list[float]] = {}
        for i in range(len(self.program.seeds)):
            lane = self.program.lane(state, i)
            for name, evaluate in self.exp.evals.items():
                if check:
                    self.stop_if(self.signals.seen(True), self.exp.num_steps)
                start = time.perf_counter()
                try:
                    found = evaluate(lane)
                except Exception:  # What is known shall not be lost: it may have taken hours.
                    if results:
                        self.log.line(
                            "Found before the evaluation failed: "
                            + ", ".join(
                                f"{k} {logging.form(np.mean(v))}" for k, v in results.items()
                            )
                        )
                    raise
                if (took := time.perf_counter() - start) > SLOW:
                    of = (
                        f", seed {i + 1} of {len(self.program.seeds)}"
                        if len(self.program.seeds) > 1
                        else ""
                    )
                    self.log.line(f"Evaluated {name} at step {step} in {took:.0f} s{of}.")
                for key, value in found.items():
                    if isinstance(value, str):
                        if i == 0 and pictures:
                            self.log.text(step, f"{name}/{key}", value)
                    elif np.ndim(value) == 0:
                        results.setdefault(f"{name}/{key}", []).append(float(value))
                    elif i == 0 and pictures:
                        self.log.picture(step, f"{name}/{key}", np.asarray(value))
        if results:
            self.log.scalars(step, results, show=step < self.exp.num_steps and step > 0)
        return results

    def summary(
        self, results: Mapping[str, list[float]], seeds: Sequence[int], first: Sequence[Tree]
    ) -> None:
        """The last word: each number beside the untrained net's, and where everything is."""
        exp, workdir, log = self.exp, self.workdir, self.log
        untrained: dict[str, list[float]] = {}
        if exp.evals:
            told = (
                workdir and jax.process_count() == 1
            )  # Several processes must all do the same, whatever one finds.
            rows = [r for r in logging.read_metrics(workdir) if r["step"] == 0] if told else []
            untrained = {
                k: v if isinstance(v, list) else [v]
                for r in rows
                for k, v in r.items()
                if k != "step"
            }
            if not results.keys() <= untrained.keys():
                untrained = self.evaluate(
                    self.program.init(first, warm=False), 0, check=True, pictures=False
                )
        if results:
            show = lambda v: (
                logging.form(np.mean(v)) + (f" ± {logging.form(interval(v))}" if len(v) > 1 else "")
            )
            width = max(map(len, results))
            log.line(f"\n{'':{width}}  {'trained':>16}  {'untrained net':>16}")
            for k, v in results.items():
                log.line(
                    f"{k:{width}}  {show(v):>16}  {show(untrained[k]) if k in untrained else '':>16}"
                )
            if len(seeds) > 1:
                log.line(f"Mean ± 95 % interval over {len(seeds)} seeds.")
        if workdir and log.active:
            rows = logging.read_metrics(workdir)
            seconds = max((r["seconds"] for r in rows if "seconds" in r), default=0.0)
            (workdir / "results.json").write_text(
                json.dumps(
                    {
                        "step": exp.num_steps,
                        "seeds": seeds,
                        "seconds": seconds,
                        "results": results,
                        "untrained": untrained,
                    },
                    indent=1,
                )
                + "\n"
            )
            figures.curves(rows, workdir / "figures" / "curves.png")
            log.line(
                f"\nTrained {exp.num_steps} steps in {seconds:.0f} s. In {workdir}:\n"
                "  results.json   the numbers above         metrics.jsonl  the curves, tensorboard/ too\n"
                "  figures/       curves and pictures       checkpoints/   the last states\n"
                "  record.json    arguments, versions, commit; source/ the experiment file"
            )


def _start_line(times: Mapping[str, float], compiled: float) -> str:
    gap = lambda a, b: f"{times[b] - times[a]:.1f} s"
    return (
        f"First step {times['step']:.1f} s after the start: imports and experiment {times['ready']:.1f} s, "
        f"data {gap('ready', 'data')}, state {gap('data', 'state')}, "
        f"compiling or loading the step {compiled:.1f} s."
    )


def form_rate(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.0f}"


def _seconds_before(workdir: pathlib.Path | None, start: int) -> float:
    rows = logging.read_metrics(workdir) if workdir and start else []
    return max(
        (row["seconds"] for row in rows if "seconds" in row and row["step"] <= start), default=0.0
    )


class Program:
    """The compiled side of a run: how its state is laid out, made and advanced, for one seed or several.

    The state of several seeds is one tree with a leading axis ("vmap") or a list of trees ("loop").
    """

    def __init__(self, exp: Experiment, run: Run, mesh: Mesh, fed: Tree, resident: Tree):
        self.exp, self.mesh, self.resident = exp, mesh, resident
        self.seeds = [run.seed + i for i in range(run.seeds)]
        split = [jax.random.split(jax.random.key(seed)) for seed in self.seeds]
        self.init_keys, self.keys = [k[0] for k in split], [k[1] for k in split]
        batch = jax.eval_shape(exp.data.batch, resident, fed)
        key = jax.eval_shape(lambda: jax.random.key(0))
        self.state = jax.eval_shape(exp.init, key, batch)
        self.layout = sharding.shard_state(self.state, exp.partition, mesh)
        jaxpr = jax.make_jaxpr(exp.step, return_shape=True)(self.state, batch, key)
        new, metrics = jaxpr[1]
        if jax.tree.map(_form, new) != jax.tree.map(_form, self.state):
            raise InputError(
                f"The step changes the form of the state: {_first_change(self.state, new)}."
            )
        for name, m in metrics.items():
            if m.shape != ():
                raise InputError(
                    f"The step's metric {name} must be a scalar; its shape is {m.shape}."
                )
        self.metrics = list(metrics)
        self.convolves = "conv_general_dilated" in str(jaxpr[0])
        slow = self.convolves and jax.default_backend() == "cpu"
        self.lanes = run.lanes if run.lanes != "auto" else "loop" if slow else "vmap"
        # Convolutions in a loop run an order of magnitude slower on a CPU than in straight code.
        self.unroll = run.steps_per_call if slow else 1

    @property
    def vmapped(self) -> bool:
        return self.lanes == "vmap" and len(self.seeds) > 1

    @functools.cached_property
    def layouts(self) -> Tree:
        """The shardings of what a call of the step is given: with a leading axis where seeds are vmapped."""
        if not self.vmapped:
            return self.layout
        return jax.tree.map(lambda s: NamedSharding(self.mesh, P(None, *s.spec)), self.layout)

    def shapes(self) -> Tree:
        """The state as ShapeDtypeStructs with shardings, as a checkpoint holds it."""
        n = len(self.seeds)
        lead = (n,) if self.vmapped else ()
        one = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=s),
            self.state,
            self.layouts,
        )
        return one if self.vmapped or n == 1 else [one] * n

    def init(self, first: Sequence[Tree], warm: bool = True) -> Tree:
        """The state at step 0 of each seed, from that seed's first batch; untouched by `warm_start` unless `warm`."""
        init = lambda key, resident, fed: self.exp.init(key, self.exp.data.batch(resident, fed))
        init = jax.jit(init, out_shardings=self.layout)
        states = [init(key, self.resident, fed) for key, fed in zip(self.init_keys, first)]
        if self.exp.warm_start and warm:
            states = [jax.device_put(self.exp.warm_start(s), self.layout) for s in states]
        if self.vmapped:
            return jax.jit(
                lambda *s: jax.tree.map(lambda *x: jnp.stack(x), *s), out_shardings=self.layouts
            )(*states)
        return states if len(states) > 1 else states[0]

    def new_watch(self) -> Tree:
        """Sums of the metrics since the last log point, and the first step in which one was not finite.

        Few arrays, whatever the number of metrics: each costs the host time in every step.
        """
        lead, m = (len(self.seeds),) if self.vmapped else (), len(self.metrics)
        one = {
            "sum": np.zeros((*lead, m), np.float32),
            "steps": np.zeros(lead, np.int32),
            "bad": np.full(lead, -1, np.int32),
            "value": np.zeros((*lead, m), np.float32),
        }
        # Placed as the step returns it: else the step would be compiled once for NumPy's and once for its own.
        put = lambda: jax.device_put(one, sharding.replicated(self.mesh))
        return put() if self.vmapped or len(self.seeds) == 1 else [put() for _ in self.seeds]

    def renew(self, watch: Tree) -> Tree:
        """A watch with new sums, that still knows of a failure; `watch` itself stays to be read."""
        return (
            self._renew(watch)
            if self.vmapped or len(self.seeds) == 1
            else [self._renew(w) for w in watch]
        )

    @functools.cached_property
    def _renew(self) -> Callable:
        def renew(watch):  # All new arrays, for the step to overwrite.
            return jax.tree.map(jnp.zeros_like, watch) | {
                name: jax.tree.map(lambda x: jnp.array(x, copy=True), watch[name])
                for name in ("bad", "value")
            }

        return jax.jit(renew, out_shardings=sharding.replicated(self.mesh))

    def one(
        self, state: TrainState, watch: Tree, key: jax.Array, resident: Tree, fed: Tree
    ) -> tuple[TrainState, Tree]:
        """One step of one seed."""
        batch = self.exp.data.batch(resident, fed)
        # Split at rest, whole in use: XLA would otherwise split activations by channel wherever a parameter is.
        whole = jax.lax.with_sharding_constraint(
            (state.params, state.extra), sharding.replicated(self.mesh)
        )
        new, metrics = self.exp.step(
            state.replace(params=whole[0], extra=whole[1]),
            batch,
            jax.random.fold_in(key, state.step),
        )
        metrics = jnp.array([metrics[name] for name in self.metrics], jnp.float32)
        # The state goes on even so: to hold it, by a select over all of it, took a twentieth of a small net's step.
        first = ~jnp.all(jnp.isfinite(metrics)) & (watch["bad"] < 0)
        return new.replace(step=state.step + 1), {
            "sum": watch["sum"] + metrics,
            "steps": watch["steps"] + 1,
            "bad": jnp.where(first, state.step, watch["bad"]),
            "value": jnp.where(first, metrics, watch["value"]),
        }

    @functools.cached_property
    def compiled(self) -> Callable:
        one = jax.vmap(self.one, in_axes=(0, 0, 0, None, 0)) if self.vmapped else self.one

        def many(state, watch, key, resident, fed):
            if len(fed) == 1:
                return one(state, watch, key, resident, fed[0])
            fed = jax.tree.map(lambda *x: jnp.stack(x), *fed)
            return jax.lax.scan(
                lambda c, x: (one(*c, key, resident, x), None),
                (state, watch),
                fed,
                unroll=min(self.unroll, jax.tree.leaves(fed)[0].shape[0]),
            )[0]

        return jax.jit(
            many,
            donate_argnums=(0, 1),
            out_shardings=(self.layouts, sharding.replicated(self.mesh)),
        )

    def update(self, state: Tree, watch: Tree, fed: Sequence[Sequence[Tree]]) -> tuple[Tree, Tree]:
        """Advances each seed by the k steps of `fed[seed][k]`."""
        if self.vmapped:
            stacked = tuple(jax.tree.map(_stack, *items) for items in zip(*fed))
            return self._call(state, watch, self.stacked_keys, stacked)
        if len(self.seeds) == 1:
            return self._call(state, watch, self.keys[0], tuple(fed[0]))
        done = [self._call(s, w, k, tuple(f)) for s, w, k, f in zip(state, watch, self.keys, fed)]
        return [s for s, _ in done], [w for _, w in done]

    def _call(
        self, state: Tree, watch: Tree, key: jax.Array, fed: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        state, watch = self.compiled(state, watch, key, self.resident, fed)
        # Devices that are parts of a CPU share its threads: calls ahead of one another take all of them to wait for ever.
        if self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(watch)
        return state, watch

    @functools.cached_property
    def stacked_keys(self) -> jax.Array:
        return jnp.stack(self.keys)

    def read(
        self, watch: Tree
    ) -> tuple[dict[str, list[float]], tuple[int, int, str, float] | None]:
        """Waits for the device: the mean of each metric per seed, and (lane, step, metric, value) of a failure."""
        watch = jax.device_get(watch)
        if not self.vmapped and len(self.seeds) > 1:
            watch = jax.tree.map(lambda *x: np.stack(x), *watch)
        watch = watch if np.ndim(watch["steps"]) else jax.tree.map(lambda x: x[None], watch)
        means = watch["sum"] / np.maximum(watch["steps"], 1)[:, None]
        values = {name: means[:, j].tolist() for j, name in enumerate(self.metrics)}
        for lane, step in enumerate(watch["bad"]):
            if step >= 0:
                at = watch["value"][lane]
                j = int(np.argmin(np.isfinite(at)))
                return values, (lane, int(step), self.metrics[j], float(at[j]))
        return values, None

    def lane(self, state: Tree, i: int) -> TrainState:
        """The state of one seed."""
        if self.vmapped:
            return jax.tree.map(lambda x: x[i], state)
        return state if len(self.seeds) == 1 else state[i]

    def stack(self, state: Tree) -> TrainState:
        """The state with a leading axis for several seeds, however they were trained."""
        if self.vmapped or len(self.seeds) == 1:
            return state
        return jax.tree.map(lambda *x: jnp.stack(x), *state)


def _stack(*x):
    return np.stack(x) if isinstance(x[0], np.ndarray) else jnp.stack(x)


def _form(x) -> tuple:
    return (tuple(x.shape), str(x.dtype))


def _first_change(old: Tree, new: Tree) -> str:
    a, b = flatten(old), flatten(new)
    for k in [*a, *b]:
        if k not in a or k not in b:
            return f"{k} is only there {'before' if k in a else 'after'}"
        if _form(a[k]) != _form(b[k]):
            return f"{k} is {a[k].dtype}{list(a[k].shape)} before and {b[k].dtype}{list(b[k].shape)} after"
    return "its containers differ"


def _everywhere(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """A host array, the same in every process, whole on every device."""
    return jax.make_array_from_callback(x.shape, sharding.replicated(mesh), lambda at: x[at])


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; NaN for one value."""
    n = len(values)
    return (
        float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
        if n > 1
        else float("nan")
    )


# Signals.


class _Signals:
    """Notes SIGINT and SIGTERM, so that the loop stops between two steps; a second one stops at once."""

    def __init__(self) -> None:
        self.first = 0
        self.old: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        try:
            for s in (signal.SIGINT, signal.SIGTERM):
                self.old[s] = signal.signal(s, self._note)
        except ValueError:  # Not in the main thread: the caller's business.
            pass
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self.old.items():
            signal.signal(s, handler)

    def _note(self, number: int, _) -> None:
        if self.first:
            raise KeyboardInterrupt
        self.first = number
        os.write(2, b"\nStopping after this step; once more to stop at once, unsaved.\n")

    def seen(self, together: bool) -> int:
        """The signal, or 0. Several processes must agree, which they do only where all ask `together`."""
        if jax.process_count() == 1:
            return self.first
        if not together:
            return 0
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(self.first))))


def compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX was told where already."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# The command line.


def main(make: Callable[..., Experiment], args: Sequence[str] | None = None) -> None:
    """Trains `make(...)`: each of its arguments, and each field of `Run`, is a flag."""
    signature = inspect.signature(make)

    def entry(run: Run, **arguments: Any) -> tuple[Run, dict[str, Any]]:
        return run, arguments

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    parameters.append(
        inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, default=Run(), annotation=Run)
    )
    entry.__signature__ = signature.replace(
        parameters=parameters, return_annotation=signature.empty
    )
    entry.__annotations__ = {**get_type_hints(make, include_extras=True), "run": Run}
    entry.__annotations__.pop("return", None)
    entry.__doc__, entry.__name__, entry.__module__ = make.__doc__, make.__name__, make.__module__
    run, arguments = tyro.cli(
        entry, args=args, config=(tyro.conf.CascadeSubcommandArgs,)
    )  # Flags in any order.
    try:
        if run.distributed:
            jax.distributed.initialize()
        sharding.split_cpu(run.cpu_devices)
        if (size := arguments.get("batch_size", 1)) < 1:  # Experiments count their steps by it.
            raise InputError(f"--batch-size must be at least 1, not {size}.")
        if not run.workdir:
            run = replace(run, workdir=default_workdir(make, arguments, run))
        train(make(**arguments), run, logging.plain(arguments), inspect.getsourcefile(make))
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped at once; what was saved is whole.", file=sys.stderr)
        sys.exit(130)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            said = "What was saved is whole: make room and run the same command again to go on from there."
        elif isinstance(e, (PermissionError, NotADirectoryError, FileExistsError)):
            said = "Choose another --run.workdir, or mend this one."
        else:
            raise
        print(f"error: {e}. {said}", file=sys.stderr)
        sys.exit(2)


def default_workdir(make: Callable, arguments: Mapping[str, Any], run: Run) -> str:
    """runs/NAME, with the arguments that differ from their defaults: the same command finds the same folder."""
    defaults = {k: p.default for k, p in inspect.signature(make).parameters.items()}
    changed = {
        k: v
        for k, v in logging.flat(logging.plain(arguments)).items()
        if v != logging.flat(logging.plain(defaults)).get(k)
    }
    changed |= {
        f.name: getattr(run, f.name)
        for f in fields(Run)
        if f.name in ("seed", "seeds") and getattr(run, f.name) != f.default
    }
    name = ",".join([make.__name__, *(f"{k}={v}" for k, v in changed.items())])
    name = "".join(c if c.isalnum() or c in "=,.-_" else "-" for c in name)
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return os.path.join("runs", name)
