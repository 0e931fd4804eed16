"""NT-Xent, InfoNCE and their kin against the papers' equations as naive float64 loops, and against
Optax."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.errors import InputError
from ssljax.losses.infonce import (
    clip_loss,
    enqueue,
    info_nce_loss,
    nearest_neighbour,
    normalize,
    nt_xent_loss,
    siglip_loss,
    supcon_loss,
)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / (
        math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    )


def naive_nt_xent(za, zb, tau):
    """Chen et al., 2020, eq. 1 and algorithm 1: l(i, j) over all 2N views, each with its
    positive."""
    z, n = [*za, *zb], len(za)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(math.exp(cosine(z[i], z[k]) / tau) for k in range(2 * n) if k != i)
        total += -math.log(math.exp(cosine(z[i], z[j]) / tau) / denominator)
    return total / (2 * n)


def naive_info_nce(q, k, negatives, tau):
    """van den Oord et al., 2018, eq. 4 (the other keys), or He et al., 2020, eq. 1 (a queue)."""
    total = 0.0
    for i in range(len(q)):
        others = negatives if negatives is not None else [k[j] for j in range(len(k)) if j != i]
        positive = math.exp(cosine(q[i], k[i]) / tau)
        total += -math.log(
            positive / (positive + sum(math.exp(cosine(q[i], o) / tau) for o in others))
        )
    return total / len(q)


def naive_supcon(z, labels, tau):
    """Khosla et al., 2020, eq. 2, over its 2N views: L_out."""
    total = 0.0
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        denominator = sum(math.exp(cosine(z[i], z[a]) / tau) for a in range(len(z)) if a != i)
        for p in positives:
            total += -math.log(math.exp(cosine(z[i], z[p]) / tau) / denominator) / len(positives)
    return total / len(z)


def naive_clip(za, zb, tau):
    """Radford et al., 2021, figure 3: cross-entropies of the rows and columns of the cosines over
    tau."""
    n, logits = len(za), [[cosine(a, b) / tau for b in zb] for a in za]
    rows = (
        sum(
            -logits[i][i] + math.log(sum(math.exp(logits[i][j]) for j in range(n)))
            for i in range(n)
        )
        / n
    )
    columns = (
        sum(
            -logits[i][i] + math.log(sum(math.exp(logits[j][i]) for j in range(n)))
            for i in range(n)
        )
        / n
    )
    return (rows + columns) / 2


def naive_siglip(za, zb, scale, bias):
    """Zhai et al., 2023, section 3.2: a sigmoid of each pair, divided by the number of images."""
    total = 0.0
    for i, a in enumerate(za):
        for j, b in enumerate(zb):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (scale * cosine(a, b) + bias)))
    return total / len(za)


def naive_nnclr(za, support, pb, tau):
    """Dwibedi et al., 2021, eqs. 2 and 3: the nearest of the support set is the query among the
    batch's predictions."""
    total = 0.0
    for i in range(len(za)):
        nn = max(support, key=lambda q: cosine(q, za[i]))
        total += -math.log(
            math.exp(cosine(nn, pb[i]) / tau) / sum(math.exp(cosine(nn, p) / tau) for p in pb)
        )
    return total / len(za)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in shapes]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), tau=st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_equal_the_equations(seed, tau):
    a, b, queue = draw(seed, (6, 5), (6, 5), (9, 5))
    args = [jnp.asarray(x, jnp.float32) for x in (a, b, queue)]
    np.testing.assert_allclose(nt_xent_loss(*args[:2], tau), naive_nt_xent(a, b, tau), rtol=2e-5)
    np.testing.assert_allclose(
        info_nce_loss(*args[:2], tau=tau), naive_info_nce(a, b, None, tau), rtol=2e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        info_nce_loss(*args, tau=tau), naive_info_nce(a, b, queue, tau), rtol=2e-5, atol=1e-6
    )


def test_nt_xent_equals_optax():
    a, b = (jnp.asarray(x, jnp.float32) for x in draw(0, (32, 16), (32, 16)))
    labels = jnp.tile(jnp.arange(32), 2)
    oracle = optax.ntxent(jnp.concatenate([a, b]), labels, temperature=0.2)
    np.testing.assert_allclose(nt_xent_loss(a, b, 0.2), oracle, rtol=1e-5)


LABELS = [0, 1, 0, 2, 1, 2, 0, 0]


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), tau=st.sampled_from([0.1, 0.5]))
def test_those_with_labels_texts_and_neighbours_equal_their_equations(seed, tau):
    a, b, support, z = draw(seed, (6, 5), (6, 5), (9, 5), (8, 5))
    f = [jnp.asarray(x, jnp.float32) for x in (a, b, support, z)]
    np.testing.assert_allclose(clip_loss(f[0], f[1], tau), naive_clip(a, b, tau), rtol=2e-5)
    np.testing.assert_allclose(
        supcon_loss(f[3], jnp.array(LABELS), tau), naive_supcon(z, LABELS, tau), rtol=2e-5
    )
    found = info_nce_loss(nearest_neighbour(f[0], f[2]), f[1], tau=tau)
    np.testing.assert_allclose(found, naive_nnclr(a, support, b, tau), rtol=2e-5)


def test_supcon_with_a_label_for_each_image_is_nt_xent():
    a, b = (jnp.asarray(x, jnp.float32) for x in draw(5, (6, 4), (6, 4)))
    both, labels = jnp.concatenate([a, b]), jnp.tile(jnp.arange(6), 2)
    np.testing.assert_allclose(supcon_loss(both, labels, 0.3), nt_xent_loss(a, b, 0.3), rtol=1e-5)
    mixed = jnp.array(np.random.default_rng(0).permutation(12))
    np.testing.assert_allclose(
        supcon_loss(both[mixed], labels[mixed], 0.3), nt_xent_loss(a, b, 0.3), rtol=1e-5
    )
    alone = supcon_loss(both, jnp.arange(12), 0.3)  # No two share a label.
    np.testing.assert_array_equal(alone, 0)


def test_neighbours_and_queues_get_no_gradient():
    z, support = (jnp.asarray(x, jnp.float32) for x in draw(6, (4, 3), (8, 3)))
    for grad in jax.grad(lambda z, s: nearest_neighbour(z, s).sum(), (0, 1))(z, support):
        np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(jax.grad(lambda z: enqueue(support, z).sum())(z), 0)
    np.testing.assert_array_equal(nearest_neighbour(3 * support[2:4], support), support[2:4])


def test_a_queue_holds_the_last_rows():
    rows = jnp.arange(24.0).reshape(6, 4, 1)  # Six batches of four.
    queue = jnp.full((8, 1), -1.0)
    for i in range(6):
        queue = enqueue(queue, rows[i])
        assert set(np.ravel(queue)) == (
            {-1, 0, 1, 2, 3} if i == 0 else set(range(4 * i - 4, 4 * i + 4))
        )
    for size in (0, 2, 6):  # None, smaller than a batch, and no multiple of it.
        with pytest.raises(
            ValueError,
            match=f"--queue must be a multiple of --batch-size 4, such as .*, not {size}",
        ):
            enqueue(jnp.zeros((size, 1)), rows[0])
    with pytest.raises(InputError, match="leave `tiled` out"):
        info_nce_loss(rows[0], rows[0], negatives=queue, tiled=True)
    with pytest.raises(InputError, match="choose --queue above 0"):
        nearest_neighbour(rows[0], queue[:0])


@pytest.mark.parametrize(
    "loss, naive",
    [
        (lambda a, b: clip_loss(a, b, 0.3), lambda a, b: naive_clip(a, b, 0.3)),
        (
            lambda a, b: supcon_loss(jnp.concatenate([a, b]), jnp.array(LABELS), 0.3),
            lambda a, b: naive_supcon([*a, *b], LABELS, 0.3),
        ),
        (lambda a, b: nt_xent_loss(a, b, 0.3), lambda a, b: naive_nt_xent(a, b, 0.3)),
        (lambda a, b: info_nce_loss(a, b, tau=0.3), lambda a, b: naive_info_nce(a, b, None, 0.3)),
    ],
)
def test_gradient_is_the_finite_difference_of_the_equation(loss, naive):
    a, b = draw(3, (4, 3), (4, 3))
    grads = jax.grad(loss, (0, 1))(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    for which, grad in enumerate(grads):
        for at in np.ndindex(grad.shape):
            step = np.zeros(grad.shape)
            step[at] = 1e-5
            up, down = ((a + s * step, b) if which == 0 else (a, b + s * step) for s in (1, -1))
            np.testing.assert_allclose(
                grad[at], (naive(*up) - naive(*down)) / 2e-5, rtol=1e-3, atol=1e-4
            )


def test_symmetries():
    a, b = (jnp.asarray(x, jnp.float32) for x in draw(1, (8, 4), (8, 4)))
    whole = nt_xent_loss(a, b, 0.2)
    mixed = jax.random.permutation(jax.random.key(0), 8)
    np.testing.assert_allclose(
        nt_xent_loss(a[mixed], b[mixed], 0.2), whole, rtol=1e-6
    )  # The order of the images,
    np.testing.assert_allclose(nt_xent_loss(b, a, 0.2), whole, rtol=1e-6)  # which view is first,
    np.testing.assert_allclose(
        nt_xent_loss(3 * a, 0.5 * b, 0.2), whole, rtol=1e-5
    )  # and lengths don't matter;
    assert abs(nt_xent_loss(a, b[mixed], 0.2) - whole) > 0.1  # who belongs to whom does.


def test_extremes():
    same = jnp.ones((16, 4))
    np.testing.assert_allclose(
        nt_xent_loss(same, same, 0.1), np.log(31), rtol=1e-5
    )  # Collapse: a uniform guess of 31.
    eye = jnp.eye(8)
    np.testing.assert_allclose(
        nt_xent_loss(eye, eye, 0.1), -np.log(np.e**10 / (np.e**10 + 14)), rtol=1e-3
    )
    assert np.isfinite(
        jax.grad(lambda z: nt_xent_loss(z, z, 0.1))(jnp.zeros((4, 3)))
    ).all()  # A dead row makes no NaN.
    assert np.isfinite(nt_xent_loss(100 * eye, eye, 1e-3))
    np.testing.assert_array_equal(normalize(jnp.zeros((1, 3))), 0)
    with jax.debug_infs(True), jax.debug_nans(True):  # As --run.replay looks for the first of them.
        assert np.isfinite(nt_xent_loss(eye, eye, 0.1))


def test_siglip_loss_and_gradients():
    a, b = draw(3, (6, 5), (6, 5))
    args = [jnp.asarray(x, jnp.float32) for x in (a, b)] + [jnp.float32(3.0), jnp.float32(-2.0)]
    np.testing.assert_allclose(siglip_loss(*args), naive_siglip(a, b, 3.0, -2.0), rtol=1e-5)
    to_a, to_b, to_scale, to_bias = jax.grad(siglip_loss, (0, 1, 2, 3))(*args)
    e, at = 1e-5, (2, 3)
    step = np.zeros(a.shape)
    step[at] = e
    for found, up, down in (
        (to_a[at], (a + step, b, 3.0, -2.0), (a - step, b, 3.0, -2.0)),
        (to_b[at], (a, b + step, 3.0, -2.0), (a, b - step, 3.0, -2.0)),
        (to_scale, (a, b, 3.0 + e, -2.0), (a, b, 3.0 - e, -2.0)),
        (to_bias, (a, b, 3.0, -2.0 + e), (a, b, 3.0, -2.0 - e)),
    ):
        want = (naive_siglip(*up) - naive_siglip(*down)) / (2 * e)
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-5)


def test_bad_input_is_a_sentence():
    a = jnp.ones((4, 3))
    for bad in (0, -0.5):
        with pytest.raises(ValueError, match="temperature must be positive"):
            nt_xent_loss(a, a, bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            info_nce_loss(a, a, tau=bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            supcon_loss(a, jnp.zeros(4, int), bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            clip_loss(a, a, bad)
    with pytest.raises(ValueError, match="same shape"):
        nt_xent_loss(a, a[:2])
