"""The tiled partition function against the whole matrix: on one device, on rings of eight, and in
the losses."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

from ssljax import InputError
from ssljax.losses.infonce import clip_loss, info_nce_loss, nt_xent_loss, supcon_loss
from ssljax.losses.tiled import log_partition


def arrays(n=48, m=48, d=8):
    r = np.random.default_rng(0)
    return tuple(
        jnp.asarray(x, jnp.float32)
        for x in (r.normal(size=(n, d)), r.normal(size=(m, d)), r.random(n), 0.7)
    )


def whole(q, k, w, s, diagonal):
    """As a float64 loop."""
    total = 0.0
    for i in range(len(q)):
        total += w[i] * np.log(
            sum(np.exp(s * (q[i] @ k[j])) for j in range(len(k)) if diagonal or i != j)
        )
    return total


def dense(q, k, w, s, diagonal):
    logits = s * (q @ k.T)
    if not diagonal:
        logits = jnp.where(jnp.eye(*logits.shape, dtype=bool), -1e9, logits)
    return jnp.sum(w * jax.nn.logsumexp(logits, 1))


def both(diagonal, tile):
    """A jitted function to (value, gradients by all four)."""
    return jax.jit(
        jax.value_and_grad(
            lambda q, k, w, s: log_partition(q, k, w, s, diagonal, tile), (0, 1, 2, 3)
        )
    )


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("n, tile", [(48, 10**6), (48, 48 * 7), (48, 1), (20, 48 * 3)])
def test_tiles_of_any_height(diagonal, n, tile):
    q, k, w, s = arrays(n, 48 if diagonal else n)
    value, grads = both(diagonal, tile)(q, k, w, s)
    exact = whole(*(np.asarray(x, np.float64) for x in (q, k, w, s)), diagonal)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(
        log_partition(q, k, w, s, diagonal, tile), exact, rtol=1e-5
    )  # Without a gradient.
    close(grads, jax.grad(dense, (0, 1, 2, 3))(q, k, w, s, diagonal))


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_rings_of_devices(diagonal, shape):
    q, k, w, s = arrays()
    want = jax.value_and_grad(dense, (0, 1, 2, 3))(q, k, w, s, diagonal)
    with jax.set_mesh(jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)):
        for tile in (10**6, 12):
            close(both(diagonal, tile)(q, k, w, s), want)
            close(jax.jit(lambda *a: log_partition(*a, diagonal, tile))(q, k, w, s), want[0])
        seeds = jax.vmap(both(diagonal, 12))(*(jnp.stack([x, x]) for x in (q, k, w, s)))
        close(jax.tree.map(lambda x: x[1], seeds), want)


@pytest.mark.parametrize("tau", [0.05, 0.5])
@pytest.mark.parametrize(
    "loss", [nt_xent_loss, lambda a, b, tau, tiled: info_nce_loss(a, b, tau=tau, tiled=tiled)]
)
def test_the_losses_agree_with_their_dense_form(loss, tau):
    a, b, *_ = arrays(64, 64)
    tiled, dense = (
        jax.value_and_grad(lambda a, b: loss(a, b, tau, which), (0, 1))(a, b)
        for which in (True, False)
    )
    close(tiled, dense)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b, tiled: clip_loss(a, b, 0.2, tiled),
        lambda a, b, tiled: supcon_loss(
            jnp.concatenate([a, b]), jnp.array([*range(7, 20), *3 * [9, 9, 30]] * 2), 0.2, tiled
        ),
        lambda a, b, tiled: supcon_loss(
            a, jnp.arange(22) // 2 * (jnp.arange(22) > 3) - 5, 0.2, tiled
        ),
    ],
)
def test_clip_and_supcon_agree_with_their_dense_form(loss):
    a, b, *_ = arrays(22, 22)
    tiled, dense = (
        jax.value_and_grad(lambda a, b: loss(a, b, which), (0, 1))(a, b) for which in (True, False)
    )
    close(tiled, dense)


def test_the_temperature_may_be_learned():
    a, b, *_ = arrays(16, 16)
    tiled, dense = (
        jax.grad(lambda tau: info_nce_loss(a, b, tau=tau, tiled=which))(0.3)
        for which in (True, False)
    )
    np.testing.assert_allclose(tiled, dense, rtol=1e-5)


def test_memory_is_that_of_a_tile():
    """At 65,536 x 256, from the compiled program: under 0.4 GB, where one dense matrix takes 17
    GB."""
    z = jax.ShapeDtypeStruct((65536, 256), jnp.float32)
    compiled = jax.jit(jax.grad(lambda z: nt_xent_loss(*jnp.split(z, 2)))).lower(z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4e9


def test_no_diagonal_of_a_matrix_that_is_not_square():
    q, k, w, s = arrays(20, 48)
    with pytest.raises(InputError, match="20 queries and 48 keys have no diagonal"):
        log_partition(q, k, w, s, False)
    with pytest.raises(InputError, match="no diagonal"):
        both(False, 100)(q, k, w, s)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        nt_xent_loss,
        info_nce_loss,
        clip_loss,
        lambda a, b, tiled: supcon_loss(a, jnp.arange(48) % 3, tiled=tiled),
    ],
)
def test_products_keep_all_bits_on_accelerators(loss, tiled):
    q, k, *_ = arrays()
    program = (
        jax.jit(jax.value_and_grad(lambda q, k: loss(q, k, tiled=tiled), (0, 1)))
        .lower(q, k)
        .as_text()
    )
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 2 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
