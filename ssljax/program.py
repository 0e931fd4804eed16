"""Compiled side of a run: how the state is laid out on devices, initialised and advanced."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from ssljax import sharding
from ssljax.accumulation import accumulated
from ssljax.backends import step_options
from ssljax.checkpoint import flatten
from ssljax.errors import InputError
from ssljax.experiment import Experiment, TrainState
from ssljax.models import attention
from ssljax.run import Run

Tree = Any
Numbers = jax.Array | np.ndarray


class MetricAccumulator(struct.PyTreeNode):
    """Sums of a step's m metrics since the last log point, and the first step with a bad one.

    Few arrays, whatever the number of metrics: each costs the host time in every step.
    """

    sums: Numbers  # (m,) float32
    steps: Numbers  # int32
    failed_step: Numbers  # int32: the first step with a metric that is not finite, or -1.
    failed_values: Numbers  # (m,) float32: the metrics of that step.


class Program:
    """Program of one seed or several, compiled for the devices of `mesh`.

    The state of several seeds is one tree with a leading axis ("vmap") or a list of trees ("loop").
    InputError where the step changes the form of the state, or a metric is no scalar.
    """

    def __init__(self, exp: Experiment, run: Run, mesh: Mesh, fed: Tree, resident: Tree):
        step, self.accumulation = accumulated(exp.step, run.accumulate)
        exp = dataclasses.replace(exp, step=step)
        self.exp, self.mesh, self.resident = exp, mesh, resident
        self.seeds = [run.seed + i for i in range(run.seeds)]
        split = [jax.random.split(jax.random.key(seed)) for seed in self.seeds]
        self.init_keys, self.keys = [k[0] for k in split], [k[1] for k in split]
        batch = jax.eval_shape(exp.data.batch, resident, fed)
        key = jax.eval_shape(lambda: jax.random.key(0))
        self.state = jax.eval_shape(exp.init, key, batch)
        rule = functools.partial(sharding.tensor, other=exp.partition)
        self.layout = sharding.shard_state(self.state, rule, mesh)
        specs = [x.spec for x in jax.tree.leaves(self.layout.params)]
        if run.tensor > 1 and not any("tensor" in spec for spec in specs):
            raise InputError(
                "--run.tensor splits the layers of ViTs and Transformers, and this experiment has "
                "none: leave it out."
            )
        with attention.recording() as self.attention:  # Which runs, for the log.
            jaxpr = jax.make_jaxpr(exp.step, return_shape=True)(self.state, batch, key)
        new, metrics = jaxpr[1]
        if jax.tree.map(_form, new) != jax.tree.map(_form, self.state):
            change = _first_change(self.state, new)
            raise InputError(f"The step changes the form of the state: {change}.")
        for name, m in metrics.items():
            if m.shape != ():
                raise InputError(
                    f"The step's metric {name} must be a scalar; its shape is {m.shape}."
                )
        # A loss that is not finite is the failure to name, rather than its gradient.
        self.metrics = sorted(metrics, key=lambda name: name.startswith(("grad_norm", "lr")))
        self.convolves = "conv_general_dilated" in str(jaxpr[0])
        slow = self.convolves and self.platform == "cpu"
        self.lanes = run.lanes if run.lanes != "auto" else "loop" if slow else "vmap"
        # On a CPU, convolutions inside lax.scan run an order of magnitude slower.
        self.unroll = run.steps_per_call if slow else 1
        self.ahead: Future | None = None  # Compiles the step, which its first call waits for.

    @property
    def platform(self) -> str:
        """Platform of the mesh: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def vmapped(self) -> bool:
        """Whether several seeds are one batched program."""
        return self.lanes == "vmap" and len(self.seeds) > 1

    @functools.cached_property
    def layouts(self) -> Tree:
        """Shardings of the state that a call takes, with a leading axis where seeds are vmapped."""
        if not self.vmapped:
            return self.layout
        return jax.tree.map(lambda s: NamedSharding(self.mesh, P(None, *s.spec)), self.layout)

    def shapes(self) -> Tree:
        """The state as ShapeDtypeStructs with shardings, as a checkpoint holds it."""
        n = len(self.seeds)
        lead = (n,) if self.vmapped else ()

        def shape(x, sharding):
            return jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=sharding)

        one = jax.tree.map(shape, self.state, self.layouts)
        return one if self.vmapped or n == 1 else [one] * n

    def init(self, first: Sequence[Tree], warm: bool = True) -> Tree:
        """The state at step 0 of each seed, from the seed's first batch.

        `warm_start` is applied unless `warm` is False.
        """

        def init_one_seed(key, resident, fed):
            return self.exp.init(key, self.exp.data.batch(resident, fed))

        init = jax.jit(init_one_seed, out_shardings=self.layout)
        pairs = zip(self.init_keys, first, strict=True)
        states = [init(key, self.resident, fed) for key, fed in pairs]
        if self.exp.warm_start and warm:
            states = [jax.device_put(self.exp.warm_start(s), self.layout) for s in states]
        if self.vmapped:
            stack = jax.jit(
                lambda *s: jax.tree.map(lambda *x: jnp.stack(x), *s), out_shardings=self.layouts
            )
            return stack(*states)
        return states if len(states) > 1 else states[0]

    def new_accumulator(self) -> Tree:
        """Empty accumulators, of the form that `update` takes."""
        lead, m = (len(self.seeds),) if self.vmapped else (), len(self.metrics)

        def put() -> MetricAccumulator:
            empty = MetricAccumulator(
                sums=np.zeros((*lead, m), np.float32),
                steps=np.zeros(lead, np.int32),
                failed_step=np.full(lead, -1, np.int32),
                failed_values=np.zeros((*lead, m), np.float32),
            )
            # Placed as the step returns it, or the step would be compiled once more.
            return jax.device_put(empty, sharding.replicated(self.mesh))

        return put() if self.vmapped or len(self.seeds) == 1 else [put() for _ in self.seeds]

    def renew(self, metrics: Tree) -> Tree:
        """Accumulators with new sums that still know of a failure; `metrics` stays readable."""
        if self.vmapped or len(self.seeds) == 1:
            return self._renew(metrics)
        return [self._renew(m) for m in metrics]

    @functools.cached_property
    def _renew(self) -> Callable:
        def renew(old: MetricAccumulator) -> MetricAccumulator:  # All arrays new: they are donated.
            return jax.tree.map(jnp.zeros_like, old).replace(
                failed_step=jnp.array(old.failed_step, copy=True),
                failed_values=jnp.array(old.failed_values, copy=True),
            )

        return jax.jit(renew, out_shardings=sharding.replicated(self.mesh))

    def step_one_seed(
        self, state: TrainState, old: MetricAccumulator, key: jax.Array, resident: Tree, fed: Tree
    ) -> tuple[TrainState, MetricAccumulator]:
        """One step of one seed."""
        batch = self.exp.data.batch(resident, fed)
        # A gradient gathers parameters too, and XLA does it once. Without this, steps of their own
        # that use them elsewhere (word2vec's) move activations, and games gather more often.
        params, extra = sharding.gathered((state.params, state.extra))
        whole = state.replace(params=params, extra=extra)
        with sharding.splitting(self.exp.partition):
            new, metrics = self.exp.step(whole, batch, jax.random.fold_in(key, state.step))
        values = jnp.array([metrics[name] for name in self.metrics], jnp.float32)
        # The state is not frozen on NaN: the select costs 5 % of a small net's step.
        failed = ~jnp.all(jnp.isfinite(values)) & (old.failed_step < 0)
        return new.replace(step=state.step + 1), MetricAccumulator(
            sums=old.sums + values,
            steps=old.steps + 1,
            failed_step=jnp.where(failed, state.step, old.failed_step),
            failed_values=jnp.where(failed, values, old.failed_values),
        )

    @functools.cached_property
    def compiled(self) -> Callable:
        """The jitted program: (state, accumulators, key, resident, fed of each step) -> the new."""
        step = self.step_one_seed
        step = jax.vmap(step, in_axes=(0, 0, 0, None, 0)) if self.vmapped else step

        def scan_steps(state, metrics, key, resident, fed):
            if len(fed) == 1:
                return step(state, metrics, key, resident, fed[0])
            unroll = min(self.unroll, len(fed))
            fed = jax.tree.map(lambda *x: jnp.stack(x), *fed)
            return jax.lax.scan(
                lambda carry, x: (step(*carry, key, resident, x), None),
                (state, metrics),
                fed,
                unroll=unroll,
            )[0]

        out = (self.layouts, sharding.replicated(self.mesh))
        options = step_options(self.platform)
        return jax.jit(
            scan_steps, donate_argnums=(0, 1), out_shardings=out, compiler_options=options
        )

    def compile_ahead(self, state: Tree, fed: Sequence[Sequence[Tree]]) -> None:
        """Starts to compile `update` for such arguments, on a thread that the first call waits for.

        On a CPU and in one process alone: elsewhere compiling may measure kernels on the devices
        that compute meanwhile.
        """
        if self.platform != "cpu" or jax.process_count() > 1:
            return
        compiled: Any = self.compiled  # A jitted function.
        lowered = compiled.lower(*self._calls(state, self.new_accumulator(), fed)[0])
        pool = ThreadPoolExecutor(1, "compile")
        self.ahead = pool.submit(lowered.compile)
        pool.shutdown(wait=False)

    def update(
        self, state: Tree, metrics: Tree, fed: Sequence[Sequence[Tree]]
    ) -> tuple[Tree, Tree]:
        """Advances each seed by the k steps of `fed[seed][k]`; donates `state` and `metrics`."""
        if self.ahead:
            wait([self.ahead])  # Its error, if there was one, is that of the call below too.
            self.ahead = None
        done = [self._call(*args) for args in self._calls(state, metrics, fed)]
        if self.vmapped or len(self.seeds) == 1:
            return done[0]
        return [s for s, _ in done], [m for _, m in done]

    def _calls(self, state: Tree, metrics: Tree, fed: Sequence[Sequence[Tree]]) -> list[tuple]:
        """The arguments of each call of the compiled program, one for each seed unless vmapped."""
        if self.vmapped:
            stacked = tuple(jax.tree.map(_stack, *items) for items in zip(*fed, strict=True))
            return [(state, metrics, self.stacked_keys, self.resident, stacked)]
        states, metrics = (state, metrics) if len(self.seeds) > 1 else ([state], [metrics])
        return [
            (s, m, k, self.resident, tuple(f))
            for s, m, k, f in zip(states, metrics, self.keys, fed, strict=True)
        ]

    def _call(self, *args: Tree) -> tuple[Tree, Tree]:
        state, metrics = self.compiled(*args)
        # Devices that are parts of one CPU share its threads: calls queued behind one another
        # deadlock.
        if self.mesh.size > 1 and self.platform == "cpu":
            jax.block_until_ready(metrics)
        return state, metrics

    @functools.cached_property
    def stacked_keys(self) -> jax.Array:
        """Keys of all seeds, (seeds,)."""
        return jnp.stack(self.keys)

    def read(
        self, metrics: Tree
    ) -> tuple[dict[str, list[float]], tuple[int, int, str, float] | None]:
        """Mean of each metric per seed, and (lane, step, metric, value) of a failure.

        Waits for the device.
        """
        metrics = jax.device_get(metrics)
        if not self.vmapped:
            items = metrics if len(self.seeds) > 1 else [metrics]
            metrics = jax.tree.map(lambda *x: np.stack(x), *items)
        means = metrics.sums / np.maximum(metrics.steps, 1)[:, None]
        values = {name: means[:, j].tolist() for j, name in enumerate(self.metrics)}
        for lane, step in enumerate(metrics.failed_step):
            if step >= 0:
                failed = metrics.failed_values[lane]
                j = int(np.argmin(np.isfinite(failed)))
                return values, (lane, int(step), self.metrics[j], float(failed[j]))
        return values, None

    def lane(self, state: Tree, i: int) -> TrainState:
        """The state of seed number i."""
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
            cure = "; a loss returns every entry of extra, as in {**state.extra, ...}"
            return f"{k} is only there " + (f"before{cure}" if k in a else "after")
        if _form(a[k]) != _form(b[k]):
            before = f"{a[k].dtype}{list(a[k].shape)}"
            return f"{k} is {before} before and {b[k].dtype}{list(b[k].shape)} after"
    return "its containers differ"


def everywhere(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """A host array, the same in every process, whole on every device."""
    return jax.make_array_from_callback(x.shape, sharding.replicated(mesh), lambda at: x[at])
