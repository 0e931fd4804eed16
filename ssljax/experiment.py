"""Experiment: two pure functions over a state of arrays, and the data that feeds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

from flax import struct
import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import optax

from ssljax import accumulation, sharding
from ssljax.data.feed import Data
from ssljax.errors import InputError
from ssljax.optim import ema_decay, learning_rate_at

if TYPE_CHECKING:
    from ssljax.origin import Origin

Tree = Any  # A pytree of arrays.
Batch = Mapping[str, Array]  # Named arrays, the examples along their first axis.
# Named scalars; an evaluator's may also be pictures, (height, width, 3) uint8, animations, (frames,
# height, width, 3), or texts.
Metrics = Mapping[str, Any]


class TrainState(struct.PyTreeNode):
    """Everything that training changes and nothing else.

    It holds only arrays, so that it can be sharded, donated and saved.
    """

    step: Array
    params: Tree
    opt_state: Tree
    extra: Tree  # Changes without a gradient: batch statistics, a teacher, a queue, a centre.

    @classmethod
    def create(cls, tx: optax.GradientTransformation, params: Tree, **extra: Tree) -> "TrainState":
        """State at step 0, with `extra` as keyword arguments."""
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), extra)

    @classmethod
    def game(
        cls, tx: optax.GradientTransformation, params: Mapping[str, Tree], **extra: Tree
    ) -> "TrainState":
        """State at step 0 of networks updated in alternation, each with its own optimizer state.

        `params` holds the parameters of each player by its name.
        """
        opt_state = {player: tx.init(p) for player, p in params.items()}
        return cls(jnp.zeros((), jnp.int32), params, opt_state, extra)


@dataclass(frozen=True)
class Kept:
    """A net that other runs start from, with its parameters and batch statistics.

    Both are parts of a state, as they are there.
    """

    net: nn.Module
    params: Tree
    stats: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """`init` makes the state, `step` advances it by one batch; `train` does the rest.

    `step` neither counts `state.step` nor splits a stored key: its key is a function of the seed
    and of the step.
    """

    init: Callable[[Array, Batch], TrainState]  # (key, a batch) -> the state at step 0.
    # (state, batch, key) -> the new state and named scalars.
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
    data: Data
    num_steps: int
    evals: Mapping[str, Callable[[TrainState], Metrics]] = field(default_factory=dict)
    # (state, uint8 images, rows of tokens or waves) -> features (n, d), as they are evaluated.
    encode: Callable[[TrainState, Array], Array] | None = None
    # The same of uint8 images and of rows of tokens, in one space, where pairs are learned from.
    embed: Callable[[TrainState, Array], Array] | None = None
    # (state, key, n) -> n samples: pictures (n, h, w, c) in [0, 1], points, or rows of tokens. It
    # may take a `label` (None for any) or must be given a `prompt` of tokens (p,) and a number of
    # `tokens`. Of the data it knows the form alone, which tests/test_sample.py holds.
    sample: Callable[..., Array] | None = None
    # The net that fine-tuning starts from; also called on a state whose leaves are their paths.
    kept: Callable[[TrainState], Kept] | None = None
    # Called once, on a fresh state, outside jit.
    warm_start: Callable[[TrainState], TrainState] | None = None
    # Texts kept in the run's folder, by file name: a tokenizer.
    files: Mapping[str, str] = field(default_factory=dict)
    partition: Callable[[str, jax.ShapeDtypeStruct, Mesh], PartitionSpec] = sharding.fsdp
    # How it was made, which `checked` notes, for the run's record.
    origin: "Origin | None" = None


def descend(
    tx: optax.GradientTransformation,
    loss: Callable[[Tree], tuple[Array, Any]],
    params: Tree,
    opt_state: Tree,
) -> tuple[Tree, Tree, Any]:
    """One step of `tx` down `loss(params) -> (value, aux)`.

    Returns the new parameters, the new optimizer state, and aux.
    """
    accumulation.needs_batch()
    of = lambda params, *_: loss(params)
    params, opt_state, (aux, _) = _descend(tx, of, params, opt_state, {}, None)
    return params, opt_state, aux


def _descend(
    tx: optax.GradientTransformation,
    loss: Callable[[Tree, Batch, Any], tuple[Array, Any]],
    params: Tree,
    opt_state: Tree,
    batch: Batch,
    key: Any,
) -> tuple[Tree, Tree, tuple[Any, Array]]:
    """A step down `loss(params, batch, key)`, in parts of the batch where `accumulated` asks.

    With aux it returns the gradient's L2 norm over all parameters, before `tx` clips it.
    """
    gradient = jax.value_and_grad(lambda p, *rest: loss(sharding.gathered(p), *rest), has_aux=True)
    if accumulation.is_asked():
        gradient = accumulation.in_parts(gradient, loss)
    (_, aux), grads = gradient(params, batch, key)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, (aux, optax.global_norm(grads))


def _value_of(loss: Callable, params: Tree, state: TrainState, batch: Batch, key: Array) -> Any:
    """(value, (extra, metrics)) of a loss, its extra whole until the step has ended."""
    out = loss(params, state, batch, key)
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], tuple)):
        raise InputError("A loss must return (value, (extra, metrics)).")
    value, (extra, metrics) = out
    return value, (sharding.gathered(extra), metrics)


def minimize(tx: optax.GradientTransformation, loss: Callable) -> Callable:
    """`step` of a method with one loss, which the parameters of `state` descend.

    `loss(params, state, batch, key)` returns (value, (extra, metrics)); `extra` becomes that of the
    new state. The metrics of the step are those, `grad_norm`, the L2 norm of the gradient over all
    parameters before it is clipped, and `lr`, where `tx` has a schedule (`optim.scheduled`).
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        params, opt_state, ((extra, metrics), norm) = _descend(
            tx,
            lambda params, batch, key: _value_of(loss, params, state, batch, key),
            state.params,
            state.opt_state,
            batch,
            key,
        )
        metrics = {"grad_norm": norm, **learning_rate_at(tx, state.step), **metrics}
        return state.replace(params=params, opt_state=opt_state, extra=extra), metrics

    return step


def alternate(
    tx: optax.GradientTransformation,
    *,
    after: Callable[[TrainState], Mapping[str, Tree]] | None = None,
    **losses: Callable,
) -> Callable:
    """`step` of networks that are updated in turn, in the order given (`TrainState.game`).

    Each loss is named after its player: `loss(params, state, batch, key)` takes the parameters of
    that player and returns (value, (extra, metrics)). `state` holds the others' parameters as
    earlier updates of the same step have left them. Returned `extra` entries overwrite those of
    `state.extra`, and so do those of `after(state)`, which is called when all have been updated.
    Besides the losses' own metrics there is `grad_norm_PLAYER` of each player, as in `minimize`.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        metrics = {}
        for player, loss in losses.items():
            # Parameters that another player's loss has moved are split again.
            whole = state.replace(params=sharding.gathered(state.params))
            params, opt_state, ((extra, found), norm) = _descend(
                tx,
                lambda params, batch, key: _value_of(loss, params, whole, batch, key),
                state.params[player],
                state.opt_state[player],
                batch,
                key,
            )
            state = state.replace(
                params={**state.params, player: params},
                extra={**state.extra, **extra},
                opt_state={**state.opt_state, player: opt_state},
            )
            metrics |= {f"grad_norm_{player}": norm, **found}
        if after:
            state = state.replace(extra={**state.extra, **after(state)})
        return state, metrics

    return step


def ema(old: Tree, new: Tree, decay: float | Array) -> Tree:
    """decay · old + (1 - decay) · new of each array, without a gradient."""
    return jax.lax.stop_gradient(jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new))


def player_variables(state: TrainState, player: str) -> dict[str, Tree]:
    """Variables of a network of a game for Flax's `apply`.

    They are its parameters and, if `extra` has any of that player's, its batch statistics.
    """
    return {"params": state.params[player], **state.extra.get(player, {})}


def player_ema(player: str, decay: float) -> Callable[[TrainState], Mapping[str, Tree]]:
    """`after` of `alternate`: `extra["ema"]` as the EMA of a player's variables.

    The decay is lower in the first steps, as by `optim.ema_decay`.
    """

    def after(state: TrainState) -> Mapping[str, Tree]:
        slow = ema_decay(decay, state.step)
        return {"ema": ema(state.extra["ema"], player_variables(state, player), slow)}

    return after
