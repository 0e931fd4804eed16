"""What an experiment is: two pure functions over a state of arrays, and the data that feeds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import struct
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import optax

from ssljax import sharding
from ssljax.data.feed import Data

Tree = Any  # A pytree of arrays.
Batch = Mapping[str, Array]  # Named arrays, the examples along their first axis.
Metrics = Mapping[
    str, Any
]  # Named scalars; an evaluator's may be pictures too, (height, width, 3) uint8, or texts.


class TrainState(struct.PyTreeNode):
    """Everything that training changes and nothing else: only arrays, so it can be sharded, donated and saved."""

    step: Array
    params: Tree
    opt_state: Tree
    extra: Tree  # What moves without a gradient: batch statistics, a teacher, a queue, a centre.

    @classmethod
    def create(cls, tx: optax.GradientTransformation, params: Tree, **extra: Tree) -> "TrainState":
        """The state at step 0."""
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), extra)

    @classmethod
    def game(
        cls, tx: optax.GradientTransformation, params: Mapping[str, Tree], **extra: Tree
    ) -> "TrainState":
        """The state at step 0 of players who move at different times: an optimizer's state for each."""
        return cls(
            jnp.zeros((), jnp.int32),
            params,
            {player: tx.init(p) for player, p in params.items()},
            extra,
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """`init` makes the state, `step` advances it by one batch; `train` does the rest.

    `step` neither counts `state.step` nor splits a stored key: the loop hands it a key that is a function of the
    seed and the step.
    """

    init: Callable[[Array, Batch], TrainState]  # (key, a batch) -> the state at step 0.
    step: Callable[
        [TrainState, Batch, Array], tuple[TrainState, Metrics]
    ]  # (state, batch, key) -> state, scalars.
    data: Data
    num_steps: int
    evals: Mapping[str, Callable[[TrainState], Metrics]] = field(default_factory=dict)
    warm_start: Callable[[TrainState], TrainState] | None = (
        None  # Once, on a fresh state, outside jit.
    )
    files: Mapping[str, str] = field(
        default_factory=dict
    )  # Texts kept in the run's folder, by name: a tokenizer.
    partition: Callable[[str, jax.ShapeDtypeStruct, Mesh], PartitionSpec] = sharding.fsdp


def descend(
    tx: optax.GradientTransformation,
    loss: Callable[[Tree], tuple[Array, Any]],
    params: Tree,
    opt_state: Tree,
) -> tuple[Tree, Tree, Any]:
    """One step of `tx` down `loss(params) -> (value, aux)`; returns the new params and optimizer state, and aux."""
    (_, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, aux


def minimize(tx: optax.GradientTransformation, loss: Callable) -> Callable:
    """The `step` of a method with one loss: `loss(params, state, batch, key) -> (value, (extra, metrics))`."""

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        params, opt_state, (extra, metrics) = descend(
            tx, lambda p: loss(p, state, batch, key), state.params, state.opt_state
        )
        return state.replace(params=params, opt_state=opt_state, extra=extra), metrics

    return step


def alternate(
    tx: optax.GradientTransformation,
    *,
    after: Callable[[TrainState], Mapping[str, Tree]] | None = None,
    **losses: Callable,
) -> Callable:
    """The `step` of a game whose players move in turn, in the order given; its state is `TrainState.game`'s.

    Each is named after its parameters, and its `loss(params, state, batch, key) -> (value, (extra, metrics))` is of
    these alone: `state` holds the others' as the moves before have left them, and `extra` what is to change in its. So does
    what `after(state)` gives when all have moved, such as a moving average of the new weights.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        metrics = {}
        for player, loss in losses.items():
            params, opt_state, (extra, told) = descend(
                tx,
                lambda p: loss(p, state, batch, key),
                state.params[player],
                state.opt_state[player],
            )
            state = state.replace(
                params={**state.params, player: params},
                extra={**state.extra, **extra},
                opt_state={**state.opt_state, player: opt_state},
            )
            metrics |= told
        return state.replace(extra={**state.extra, **(after(state) if after else {})}), metrics

    return step


def ema(old: Tree, new: Tree, decay: float | Array) -> Tree:
    """decay · old + (1 - decay) · new, leaf by leaf, cut off from the gradient."""
    return jax.lax.stop_gradient(jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new))
