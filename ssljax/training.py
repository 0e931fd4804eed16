"""Training: an experiment from its first step or last checkpoint to its end.

Steps, logs, checkpoints, evaluations and the last summary.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
import errno
import itertools
import json
import operator
import os
import pathlib
import shlex
import shutil
import signal
import time
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from ssljax import (
    extras,
    fingerprint,
    logs,
    processes,
    record,
    reference,
    replay,
    sharding,
    watchdog,
)
from ssljax.checkpoint import Checkpoints, flatten, last_step
from ssljax.data.cache import use_compilation_cache
from ssljax.data.sources import CORES
from ssljax.errors import check_local, InputError
from ssljax.evals.evaluator import Evaluator, trace_evaluator, warnings
from ssljax.evals.pictures import FeatureMap
from ssljax.experiment import Experiment, TrainState
from ssljax.loaded import refuse_while_importing
from ssljax.lock import lock
from ssljax.models import attention
from ssljax.origin import Origin
from ssljax.processes import agree, labelled
from ssljax.program import everywhere, Program
from ssljax.ranges import as_flag, check_value
from ssljax.record import read_record, write_whole
from ssljax.reference import Watch
from ssljax.run import check_together, remarks, Run, unused
from ssljax.signals import Interrupted, Signals, Stopped
from ssljax.summary import (
    judgements,
    ledger_row,
    numbers_at,
    read_evaluations,
    summary_notes,
    summary_rows,
    summary_table,
)
from ssljax.trace import FIRST, Trace

Tree = Any
SLOW = 10.0  # Seconds from which on an evaluator that has ended is named: it was no hang.
MUCH = 0.2  # Share of the time from which on it is said that the devices wait for input.
WAITED = (
    "The devices had no work for {share:.0%} of the last {seconds:.0f} s: they waited for input. "
    "Give the run more CPU cores (it has {cores}), or read images that were written at the size "
    "that is needed: python -m ssljax.data.prepare FOLDER --to SHARDS --size N."
)


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
    refuse_while_importing()
    times = {"start": time.perf_counter() if started is None else started}
    times["ready"] = time.perf_counter()
    run = as_flag(run)
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
            workdir,
            computes,
            read=read,
            defaults=origin.defaults,
            num_steps=exp.num_steps,
            unnamed=origin.unnamed,
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
            function=origin.function,
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
        log.line(_header(program, workdir, origin))
        if old and not origin.computes:
            log.line(
                "Note: the arguments of this experiment aren't known, and changes of them since "
                "the run began aren't noticed: put @checked (ssljax.ranges) above its function."
            )
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


@dataclass
class Session:
    """A job under way: its program, logger, checkpoints, results and signals."""

    exp: Experiment
    run: Run
    program: Program
    workdir: pathlib.Path | None
    checkpoints: Checkpoints | None
    log: logs.Log
    results: "Results"
    signals: Signals
    facts: Mapping[str, Any] = field(default_factory=dict)  # Of the record, for results.json.
    watch: Watch | None = None  # Compares the first steps with a reference.
    report_due: float = 0.0  # When the next sparing report may be written, by time.perf_counter().

    # Training.

    def train(
        self, state: Tree, start: int, feeds: Sequence[Iterator], times: dict[str, float]
    ) -> Tree:
        """The loop from step `start` to the last.

        The host waits for the device to log, save and evaluate alone.
        """
        exp, run, program, log, watch = self.exp, self.run, self.program, self.log, self.watch
        metrics, i, compiled = program.new_accumulator(), start, set()
        trained = _seconds_before(self.workdir, start)
        clock, since = time.perf_counter(), start
        stops = [every for every in (run.log_every, run.save_every, run.eval_every) if every]
        pending = None  # Step and metrics of a log point that has not been written yet.
        waits, said = Waits(), False
        trace = Trace(self.workdir, run.profile, log)

        def read(metrics) -> dict[str, list[float]]:
            values, bad = program.read(metrics)
            if bad:
                jax.tree.map(lambda x: x.delete(), state)  # Spoilt by then, and it takes memory.
                before = self.state_before(bad[1]) if self.workdir else None
                raise replay.failed(exp, program, before, bad, self.workdir)
            return values

        def report(step, metrics) -> None:
            nonlocal trained, clock, since, said
            values, now = read(metrics), time.perf_counter()
            rate = (step - since) / max(now - clock, 1e-9)
            idle, waits.idle = waits.idle, 0.0
            share = idle / max(now - clock, 1e-9)
            trained += now - clock
            seconds, clock, since = now - clock, now, step
            examples = rate * exp.data.batch_size * run.seeds
            note, speed = "", {}
            if rate:  # None of the steps was the first of a program, which is not timed.
                note = f"  {format_rate(rate)} steps/s, {examples:.0f} examples/s"
                note += f", {share:.0%} waiting for input" if share > MUCH else ""
                speed = {"steps_per_second": [rate], "examples_per_second": [examples]}
            log.scalars(step, values | {"seconds": [trained]} | speed, note)
            if share > MUCH and idle > 1 and not said:
                log.line(WAITED.format(share=share, seconds=seconds, cores=CORES))
                said = True
            if watch and (sentence := watch.add(step, values)):
                log.line(sentence)

        while i < exp.num_steps:
            k = min(run.steps_per_call, exp.num_steps - i, *(every - i % every for every in stops))
            k = min(k, watch.before(i)) if watch else k
            if k in compiled:
                trace.begin(i, metrics)
            with jax.profiler.StepTraceAnnotation("train", step_num=i + 1):
                fed = waits.take(feeds, k, metrics)
                before = time.perf_counter()
                if k not in compiled:
                    log.activity("compiling the step")
                state, metrics = program.update(state, metrics, fed)
                if k not in compiled:  # This call compiles, which isn't the steps' time.
                    took = time.perf_counter() - before
                    clock += took
                    if not compiled:
                        jax.block_until_ready(metrics)
                        times["step"] = time.perf_counter()
                        log.line(_start_line(times, took))
                        clock, since = time.perf_counter(), i + k
                    compiled.add(k)
                    log.activity()
            i += k
            log.advance(k)
            clock += trace.end(i, metrics)
            if pending:  # Only now, so that the device has work while numbers are read and written.
                report(*pending)
                pending = None

            def due(every: int) -> bool:
                return bool(every) and i % every == 0

            last, stop = i == exp.num_steps, self.signals.received(due(run.log_every))
            if last or stop:
                trace.end(i, metrics, stop=True)
            if due(run.log_every) or (watch and watch.due(i)) or last or stop:
                pending, metrics = (i, metrics), program.renew(metrics)
            save = due(run.save_every) or due(run.eval_every) or last or stop
            if save:
                if pending:
                    report(*pending)
                    pending = None
                else:
                    read(metrics)
                before = time.perf_counter()
                self.save(i, state)  # Before an evaluation too, which a kill can't lose then.
                self.stop_if(stop, i)
                if due(run.eval_every) and not last:
                    self.evaluate(state, i)
                    self.report()
                elif not last:
                    self.report(sparing=True)
                clock += time.perf_counter() - before  # Saving and evaluating are not training.
        trace.close()
        return state

    def save(self, step: int, state: Tree) -> None:
        """Starts to write a checkpoint.

        FileNotFoundError where the run's folder has been removed, which would be made once more
        without its record.
        """
        if self.checkpoints and self.workdir:
            if jax.process_index() == 0 and not (self.workdir / "record.json").exists():
                reason = os.strerror(errno.ENOENT)
                raise FileNotFoundError(errno.ENOENT, reason, str(self.workdir / "record.json"))
            self.checkpoints.save(step, state)

    def state_before(self, step: int) -> Tree:
        """The state before `step`, computed again from the last checkpoint or from the start."""
        program, checkpoints = self.program, self.checkpoints
        if checkpoints:
            checkpoints.wait()
        start, state = checkpoints.restore_latest(program.shapes()) if checkpoints else (0, None)
        feeds = [self.exp.data.feed(seed, start, program.mesh) for seed in program.seeds]
        if state is None:
            first = [next(self.exp.data.feed(seed, 0, program.mesh)) for seed in program.seeds]
            state = program.init(first)
        metrics = program.new_accumulator()
        for _ in range(start, step):
            state, metrics = program.update(state, metrics, [[next(feed)] for feed in feeds])
        return state

    def stop_if(self, stop: int, step: int) -> None:
        """Ends the run, which has saved itself, if there was a signal."""
        if not stop:
            return
        name = signal.Signals(stop).name
        if self.checkpoints:
            self.checkpoints.wait()
            self.log.line(
                f"Stopped by {name} at step {step}; all is saved in {self.run.workdir}. "
                "Run the same command again to resume."
            )
        else:
            self.log.line(f"Stopped by {name} at step {step}; without a workdir nothing is saved.")
        self.log.close()
        raise Stopped(128 + stop)

    # Evaluation.

    def check_evaluators(self) -> None:
        """Traces every evaluator abstractly, so that what can't be evaluated is said before hours
        of training."""
        for evaluate in self.exp.evals.values():
            trace_evaluator(evaluate, self.program.state)

    def evaluate(self, state: Tree, step: int) -> dict[str, list[float]]:
        """Runs the evaluators that have no result of `step` yet, on each seed.

        Returns {"evaluator/number": one for each seed}. Pictures and texts are of the first seed.
        A signal ends it between two evaluators, or between two batches of one; what was found is
        kept.
        """
        seeds, before = self.program.seeds, len(self.results.rows)
        for i, seed in enumerate(seeds):
            lane = None
            for name, evaluate in self.exp.evals.items():
                if self.results.has(step, seed, name):
                    continue
                if _only_pictures(evaluate) and i:
                    continue
                self.stop_if(self.signals.received(together=True), step)
                lane = self.program.lane(state, i) if lane is None else lane
                of_seed = f", seed {i + 1} of {len(seeds)}" if len(seeds) > 1 else ""
                net = f"at step {step}" if step else "of the untrained net"
                self.log.activity(f"evaluating {name} {net}{of_seed}")
                start = time.perf_counter()
                try:
                    found = evaluate(lane)
                except Interrupted:
                    self.stop_if(self.signals.received(together=True), step)
                    raise
                except Exception:  # Earlier results may have taken hours.
                    self._show_found(step)
                    raise
                if (took := time.perf_counter() - start) > SLOW:
                    self.log.line(f"Evaluated {name} at step {step} in {took:.0f} s{of_seed}.")
                numbers = self._keep(step, name, found, i == 0)
                self.results.add(step, seed, name, numbers, took)
        self.log.activity()
        results = self.results.numbers(step, seeds)
        if results and len(self.results.rows) > before:
            self.log.drop_evaluation(step)
            rows = summary_rows(results, {}, judgements(self.exp.evals))
            shown = [row.name for row in rows if row.better] or [row.name for row in rows]
            self.log.scalars(step, results, show=[] if step == self.exp.num_steps else shown)
        return results

    def report(self, sparing: bool = False) -> None:
        """Writes report.html; with `sparing`, only where that takes 2 % of the time at most.

        An error in it ends no run: it is one line.
        """
        start = time.perf_counter()
        if not (self.workdir and self.log.active) or (sparing and start < self.report_due):
            return
        try:
            from ssljax.report import write_report  # Not needed before the first step.

            write_report(self.workdir)
        except Exception as e:
            why = " ".join(str(e).split())
            self.log.line(f"Note: report.html was not written: {type(e).__name__}: {why}")
        now = time.perf_counter()
        self.report_due = now + 50 * (now - start)

    def _show_found(self, step: int) -> None:
        rows = [row for row in self.results.rows if row["step"] == step]
        numbers = {f"{r['evaluator']}/{k}": v for r in rows for k, v in r["numbers"].items()}
        if numbers:
            shown = (f"{k} {logs.format_number(logs.from_json(v))}" for k, v in numbers.items())
            self.log.line(f"Found before an evaluator failed: {', '.join(shown)}")

    def _keep(
        self, step: int, evaluator: str, found: Mapping[str, Any], pictures: bool
    ) -> dict[str, float]:
        """Writes the pictures and texts that an evaluator has made; returns its numbers."""
        numbers = {}
        for key, value in found.items():
            if isinstance(value, str):
                if pictures:
                    self.log.text(step, f"{evaluator}/{key}", value)
            elif isinstance(value, FeatureMap):
                if pictures:
                    self.log.feature_map(step, f"{evaluator}/{key}", value)
            elif np.ndim(value) == 0:
                numbers[key] = float(value)
            elif pictures:
                self.log.picture(step, f"{evaluator}/{key}", np.asarray(value))
        return numbers

    def summary(self, results: Mapping[str, list[float]]) -> None:
        """Prints each number next to the untrained net's; writes results.json and the report."""
        exp, workdir, log, seeds = self.exp, self.workdir, self.log, self.program.seeds
        untrained = self.results.numbers(0, seeds)
        warned = warnings(results, exp.evals, seeds)
        if results and log.active:
            ledger = ledger_row(read_record(workdir, "resume it")) if workdir else None
            rows = summary_rows(results, untrained, judgements(exp.evals), ledger)
            for line in ["", *summary_table(rows), *summary_notes(rows, ledger)]:
                log.line(line)
            for line in warned:
                log.line(line)
        if not (workdir and log.active):
            return
        rows = logs.read_metrics(workdir)
        seconds = max((np.max(r["seconds"]) for r in rows if "seconds" in r), default=0.0)
        content = {
            "step": exp.num_steps,
            "seeds": seeds,
            "seconds": float(seconds),
            **self.facts,
            "results": results,
            "untrained": untrained,
            "warnings": warned,
        }
        text = json.dumps(logs.to_json(content), indent=1, allow_nan=False) + "\n"
        write_whole(workdir / "results.json", text)
        log.finished(exp.num_steps)
        self.report()
        log.line(f"\nTrained {exp.num_steps} steps in {seconds:.0f} s. Look at")
        for line in _places(workdir):
            log.line(line)


class Waits:
    """Seconds for which the devices had no work while the host waited for input.

    The host may be many steps ahead of the devices, so that its own waiting says nothing. When they
    end their work is asked only where input takes longer than a millisecond.
    """

    def __init__(self) -> None:
        self.idle = 0.0
        self.slow = False
        self.pool = ThreadPoolExecutor(1, "waits")
        self.end: Future = self.pool.submit(time.perf_counter)

    def take(self, feeds: Sequence[Iterator], k: int, last: Tree) -> list[list[Tree]]:
        """The next `k` batches of each feed; `last` are arrays of the last step."""
        start, asks = time.perf_counter(), self.slow and self.end.done()
        if asks:
            self.end = self.pool.submit(_end_of, last)
        fed = [[next(feed) for _ in range(k)] for feed in feeds]
        now = time.perf_counter()
        self.slow = now - start > 1e-3
        if asks and self.end.done() and self.end.result():
            self.idle += now - max(start, self.end.result())
        return fed


def _end_of(arrays: Tree) -> float:
    """When `arrays` were computed; 0 if they have been given away since, or there was an error."""
    try:
        jax.block_until_ready(arrays)
    except RuntimeError:
        return 0.0
    return time.perf_counter()


class Results:
    """Results of evaluators, one row for each evaluator, step and seed, in evaluations.jsonl.

    A row is written when its evaluator ends, so that a run that is killed repeats none of them.
    Rows after step `start`, where the run resumes, are dropped.
    """

    def __init__(self, workdir: pathlib.Path | None, start: int):
        self.file = workdir / "evaluations.jsonl" if workdir else None
        rows = read_evaluations(workdir) if workdir and jax.process_index() == 0 else []
        self.rows = agree([row for row in rows if row["step"] <= start])
        self._write()

    def _write(self) -> None:
        if self.file and jax.process_index() == 0 and (self.rows or self.file.exists()):
            logs.write_rows(self.file, self.rows)

    def drop(self, step: int) -> None:
        """Forgets what was found at a step."""
        self.rows = [row for row in self.rows if row["step"] != step]
        self._write()

    def has(self, step: int, seed: int, evaluator: str) -> bool:
        """Whether an evaluator has a result."""
        wanted = (step, seed, evaluator)
        return any((r["step"], r["seed"], r["evaluator"]) == wanted for r in self.rows)

    def add(
        self, step: int, seed: int, evaluator: str, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes the result of an evaluator, and how long it took."""
        row = {"step": step, "seed": seed, "evaluator": evaluator, "numbers": dict(numbers)}
        row = logs.to_json(row | {"seconds": round(seconds, 3)})
        self.rows.append(row)
        if self.file and jax.process_index() == 0:
            logs.append_row(self.file, row)

    def numbers(self, step: int, seeds: Sequence[int]) -> dict[str, list[float]]:
        """{"evaluator/number": one for each seed} of a step, where all seeds have one."""
        return numbers_at(self.rows, step, seeds)


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


def _header(program: Program, workdir: pathlib.Path | None, origin: Origin) -> str:
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
    epochs = origin.computes.get("epochs")
    if type(epochs) is int and origin.num_steps in (0, exp.num_steps):
        steps += f" ({epochs:,} epoch{'s' * (epochs != 1)})"
    fields = {
        "device": device,
        "model": model,
        "training": steps + (f", {program.accumulation}" if program.accumulation.how else ""),
        **({"attention": attention.described(used)} if (used := program.attention) else {}),
        "folder": str(workdir or "none: nothing is saved without --run.workdir"),
    }
    return "\n".join(labelled(label, text) for label, text in fields.items())


def _places(workdir: pathlib.Path) -> list[str]:
    """Where to look at the results of a finished run, and how to compare them."""
    folder = workdir / "figures"
    pictures = sorted(file.name for file in folder.glob("*.*"))
    shown = ", ".join(pictures[:3]) + (f" and {len(pictures) - 3} more" if pictures[3:] else "")
    places = {"report": f"{workdir / 'report.html'}: results, curves, pictures"}
    if pictures:
        places["pictures"] = f"{folder}: {shown}"
    places["compare"] = f"python -m ssljax.compare {shlex.quote(str(workdir))} OTHER_RUN"
    return [processes.labelled(label, text) for label, text in places.items()]


def _only_pictures(evaluate: Any) -> bool:
    return isinstance(evaluate, Evaluator) and evaluate.pictures


def _start_line(times: Mapping[str, float], compiled: float) -> str:
    def gap(a: str, b: str) -> str:
        return f"{times[b] - times[a]:.1f} s"

    return (
        f"First step {gap('start', 'step')} after the start: imports and experiment "
        f"{gap('start', 'ready')}, data {gap('ready', 'data')}, state {gap('data', 'state')}, "
        f"evaluation {gap('state', 'evaluated')}, compiling or loading the step {compiled:.1f} s."
    )


def format_rate(x: float) -> str:
    """A rate with two decimals where it is small."""
    return f"{x:.2f}" if x < 10 else f"{x:.0f}"


def _seconds_before(workdir: pathlib.Path | None, start: int) -> float:
    rows = logs.read_metrics(workdir) if workdir and start else []
    seconds = [np.max(r["seconds"]) for r in rows if "seconds" in r and r["step"] <= start]
    return float(max(seconds, default=0.0))
