"""Gradient by lag: how far back a recurrent net's gradient reaches before it vanishes or explodes.

Bengio et al., 1994, IEEE Transactions on Neural Networks 5; Pascanu et al., 2012,
https://arxiv.org/abs/1211.5063.
"""

from collections.abc import Callable, Mapping
from typing import Any, TYPE_CHECKING

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import gathered, put, Tree
from ssljax.evals.pictures import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Params = Callable[[Tree], Tree]  # state -> params
# (params, carry, inputs) -> the next carry, losses (n,)
Advance = Callable[[Tree, Tree, Any], tuple[Tree, Array]]


def gradient_by_lag(nets: Mapping[str, tuple[Params, Advance, Tree]], inputs: Tree) -> Evaluator:
    """‖∂L_T/∂h_{T-k}‖ by k = 1, 2, ... of each of `nets`, over its value at k = 1.

    A net is (params, advance, start): `advance(params(state), carry, x)` takes one step of time and
    gives the next carry and the losses, (n,), one for each example; `start` is the carry before the
    first step, arrays (n, ...). `inputs` has axes (time, n, ...). The norm is that of all arrays of
    the carry together (c and h of an LSTM, of all layers), and the geometric mean over examples.

    Returns the picture `lags` and, for each net, `NAME_half`, the least lag where a half or less is
    left (the greatest lag, where there is none), and `NAME_last`, what is left at the greatest lag.
    InputError if there are fewer than 3 times.
    """
    times = len(jax.tree.leaves(inputs)[0])
    if times < 3:
        raise InputError(f"Gradients by lag need 3 or more times, not {times}.")

    def norms(params: Params, advance: Advance, start: Tree) -> Callable[[Tree, Tree], Array]:
        def by_lag(state, inputs):
            weights = params(state)

            def last(nudges):  # The sum over examples, which don't depend on one another.
                def step(carry, at):
                    nudge, x = at
                    return advance(weights, jax.tree.map(jnp.add, carry, nudge), x)

                return jax.lax.scan(step, start, (nudges, inputs))[1][-1].sum()

            grads = jax.grad(last)(jax.tree.map(lambda c: jnp.zeros((times, *c.shape)), start))
            square = sum(
                jnp.sum(g.reshape(*g.shape[:2], -1) ** 2, -1) for g in jax.tree.leaves(grads)
            )
            # 1e-37: nearly float32's least.
            return jnp.exp(jnp.log(jnp.maximum(square, 1e-37)).mean(1) / 2)[::-1]

        return gathered(by_lag)

    runs = {name: norms(*net) for name, net in nets.items()}

    def evaluate(state: Tree) -> Mapping[str, Any]:
        lines, numbers = {}, {}
        for name, run in runs.items():
            signals.check()
            y = np.asarray(run(state, jax.tree.map(put, inputs)), np.float64)
            if not np.isfinite(y).all():
                raise InputError(f"The gradient of the net {name} is not finite.")
            lines[name] = y = y / y[0]
            numbers[f"{name}_half"] = 1 + int(np.argmax(y <= 0.5)) if (y <= 0.5).any() else times
            numbers[f"{name}_last"] = float(y[-1])
        return {**numbers, "lags": lag_curves(lines)}

    def trace(state: Tree) -> None:
        for run in runs.values():
            jax.eval_shape(run, state, inputs)

    return Evaluator(evaluate, trace=trace)


def lag_curves(lines: Mapping[str, np.ndarray]) -> np.ndarray:
    """Each line, from lag 1 on, on a logarithmic scale, with a legend, (H, W, 3) uint8."""
    return rendered(lag_figure(lines))


def lag_figure(lines: Mapping[str, np.ndarray]) -> "Figure":
    """The figure of `lag_curves`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot(
        xlabel="lag k", ylabel="|dL(T)/dh(T-k)|, over its value at k = 1", yscale="log"
    )
    for name, y in lines.items():
        axes.plot(np.arange(1, len(y) + 1), np.maximum(y, 1e-12), label=name)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
