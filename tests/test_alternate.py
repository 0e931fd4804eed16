"""`alternate`: each player sees the earlier updates of the same step, by hand on x·y."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import alternate, TrainState

LR = 0.1


def play(*order):
    """x descends x·y and y ascends it; updates are counted in `extra`, which the next sees."""

    def loss(name, other, sign):
        def f(p, state, batch, key):
            value = sign * p * state.params[other] * batch
            return value, (
                {"moves": state.extra["moves"] + 1, f"saw_{name}": state.extra["moves"]},
                {name: value},
            )

        return f

    losses = {"x": loss("x", "y", 1), "y": loss("y", "x", -1)}
    zero = jnp.zeros((), jnp.int32)
    state = TrainState.game(
        optax.sgd(LR),
        {"x": jnp.array(1.0), "y": jnp.array(2.0)},
        moves=zero,
        saw_x=zero,
        saw_y=zero,
    )
    return jax.jit(alternate(optax.sgd(LR), **{k: losses[k] for k in order}))(
        state, jnp.array(3.0), jax.random.key(0)
    )


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_second_player_sees_the_first_update(order):
    x, y, state_metrics, norms = 1.0, 2.0, play(*order), {}
    for player in order:
        if player == "x":
            norms["grad_norm_x"] = 3 * y
            x -= LR * 3 * y
        else:
            norms["grad_norm_y"] = 3 * x
            y += LR * 3 * x
    state, metrics = state_metrics
    np.testing.assert_allclose([state.params["x"], state.params["y"]], [x, y], rtol=1e-6)
    assert set(metrics) == {"x", "y", *norms}
    assert metrics[order[0]] == pytest.approx({"x": 6, "y": -6}[order[0]])
    assert {k: metrics[k] for k in norms} == pytest.approx(norms)
    assert (
        state.extra["moves"] == 2
        and state.extra[f"saw_{order[0]}"] == 0
        and state.extra[f"saw_{order[1]}"] == 1
    )


def test_other_player_is_unchanged():
    """A move of one player touches neither the other's parameters nor its optimizer's moments."""
    tx, p = optax.adam(LR), {"x": jnp.array(1.0), "y": jnp.array(2.0)}
    state = TrainState.game(tx, p)
    after, _ = alternate(tx, x=lambda p, state, batch, key: (p * state.params["y"], ({}, {})))(
        state, None, None
    )
    assert after.params["x"] != 1 and after.params["y"] == 2
    assert after.opt_state["x"][0].count == 1 and after.opt_state["y"][0].count == 0
    assert after.opt_state["x"][0].mu == pytest.approx(0.1 * 2) and after.opt_state["y"][0].mu == 0
