"""Steps per second of `train`, and of a bare Python loop over the same jitted step.

    .venv/bin/python tests/benchmarks/loop_overhead.py

Two sizes: SimCLR on the digits, and a step of an MLP of under a millisecond, where overhead shows.
Both sides run in this process, in turns; the ratio is that of their medians.
"""

from dataclasses import replace
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

from experiments.simclr import simclr
from ssljax import Experiment, logs, Run, sharding, train
from ssljax.data import Images
from ssljax.data.cache import use_compilation_cache
from tests.tiny import tiny


def bare(exp: Experiment) -> float:
    """Steps per second of a script's loop: gather, step, count, and nothing else."""
    mesh = sharding.make_mesh()
    resident = jax.tree.map(jax.device_put, exp.data.resident())
    feed = exp.data.feed(0, 0, mesh)

    def step(state, key, resident, fed):
        new, metrics = exp.step(
            state, exp.data.batch(resident, fed), jax.random.fold_in(key, state.step)
        )
        return new.replace(step=state.step + 1), metrics

    step = jax.jit(step, donate_argnums=0)
    key = jax.random.key(1)
    with jax.set_mesh(mesh):
        state = jax.jit(exp.init)(jax.random.key(0), exp.data.batch(resident, next(feed)))
        state, metrics = step(state, key, resident, next(feed))
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(exp.num_steps - 1):
            state, metrics = step(state, key, resident, next(feed))
        jax.block_until_ready((state, metrics))
    return (exp.num_steps - 1) / (time.perf_counter() - start)


def ours(exp: Experiment) -> float:
    """Steps per second as `train` records them after its first step, with all that it writes."""
    with tempfile.TemporaryDirectory() as workdir:
        train(exp, Run(workdir=workdir, save_every=10**9))
        rows = [r for r in logs.read_metrics(pathlib.Path(workdir)) if "seconds" in r]
    return (exp.num_steps - 1) / rows[-1]["seconds"]


def compare(name: str, exp: Experiment, rounds: int = 5) -> None:
    exp = replace(exp, evals={})
    rates = np.array([(bare(exp), ours(exp)) for _ in range(rounds)])
    b, o = np.median(rates, axis=0)
    print(
        f"RESULT {name}: bare loop {b:.1f} steps/s, train {o:.1f} steps/s, ratio {o / b:.3f} "
        f"(of each round: {', '.join(f'{r:.3f}' for r in rates[:, 1] / rates[:, 0])})",
        flush=True,
    )


if __name__ == "__main__":
    use_compilation_cache()
    compare("mlp", tiny(width=256, batch_size=128, num_steps=3000))
    compare("digits", simclr(Images("digits")))
