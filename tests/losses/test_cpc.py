"""CPC's loss against the paper's equation as naive float64 loops, and so its gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.errors import InputError
from ssljax.losses.cpc import cpc_loss
from ssljax.plan.hlo import collectives, parse


def naive(c, z, w):
    losses, right = [], []
    for k in range(1, len(w) + 1):
        for t in range(c.shape[1] - k):
            for i in range(len(c)):
                f = [math.exp(z[j, t + k] @ (c[i, t] @ w[k - 1])) for j in range(len(c))]
                losses.append(-math.log(f[i] / sum(f)))
                right.append(f[i] == max(f))
    return np.mean(losses), np.mean(right)


def draw():
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in ((5, 6, 3), (5, 6, 2), (4, 3, 2))]


def test_devices_gather_the_codes_once():
    """Not at each step into the future; loss, accuracy and gradients are those of one device."""
    rng, mesh = np.random.default_rng(0), sharding.make_mesh(2)
    args = [jnp.float32(rng.normal(size=s)) for s in ((16, 6, 3), (16, 6, 2), (4, 3, 2))]
    both = lambda: jax.jit(jax.value_and_grad(cpc_loss, (0, 1, 2), has_aux=True))
    want = both()(*args)
    along, every = jax.NamedSharding(mesh, sharding.BATCH), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        compiled = both().lower(*jax.device_put(args, [along, along, every])).compile()
        found = compiled(*jax.device_put(args, [along, along, every]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want)
    seen = {c.kind: c.arrays for c in collectives(parse(compiled.as_text()), 8, 8)}
    assert seen["all-gather"] == seen["reduce-scatter"] == 1
    assert seen.get("all-reduce", 0) <= 3  # The sums, and the gradient of w.


def test_equals_the_equation():
    args = draw()
    np.testing.assert_allclose(
        cpc_loss(*(jnp.asarray(a, jnp.float32) for a in args)), naive(*args), rtol=1e-5
    )
    c, z, w = args
    np.testing.assert_allclose(
        cpc_loss(c, z, 0 * w)[0], math.log(5), rtol=1e-6
    )  # Knowing nothing is chance.


def test_gradient_is_the_finite_difference_of_the_equation():
    args = draw()
    grads = jax.grad(lambda *a: cpc_loss(*a)[0], (0, 1, 2))(
        *(jnp.asarray(a, jnp.float32) for a in args)
    )
    for which, grad in enumerate(grads):
        way = np.random.default_rng(which).normal(size=grad.shape)
        up, down = (
            naive(*[a + s * 1e-5 * way if i == which else a for i, a in enumerate(args)])[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose(np.sum(grad * way), (up - down) / 2e-5, rtol=1e-3, atol=1e-5)


def test_bad_shapes_are_a_sentence():
    c, z, w = map(jnp.asarray, draw())
    with pytest.raises(InputError, match="don't fit into 6"):
        cpc_loss(c, z, jnp.ones((6, 3, 2)))
    with pytest.raises(InputError, match="are needed, not"):
        cpc_loss(c, z[:3], w)
