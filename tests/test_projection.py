"""Class-conditional nets: projection (Miyato and Koyama, 2018) and BatchNorm, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.dcgan import Discriminator, Generator

KEY = jax.random.key(0)
LABEL = jnp.array([0, 2, 1, 1, 2])


def judged(norm):
    d = Discriminator((4, 8), norm, classes=3)
    x = jax.random.normal(KEY, (5, 8, 8, 2))
    return d, x, jax.jit(lambda: d.init(jax.random.key(1), x, label=LABEL))()


@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_projection_logit_equals_eq_3(norm):
    """f(x, y) = yᵀVφ(x) + ψ(φ(x)), eq. 3; with a spectral norm V and ψ are divided by theirs."""
    d, x, v = judged(norm)
    for _ in range(200 if norm == "spectral" else 0):
        v |= jax.jit(lambda v: d.apply(v, x, True, LABEL, mutable=["batch_stats"])[1])(v)
    phi = np.asarray(
        Discriminator((4, 8), norm, head=False).apply(
            {
                k: {
                    n: w
                    for n, w in v[k].items()
                    if "Dense" not in n and n != "SpectralNorm_2" and n != "SpectralNorm_3"
                }
                for k in v
            },
            x,
        ),
        np.float64,
    )
    psi, b, V = (
        np.asarray(w, np.float64)
        for w in (
            v["params"]["Dense_0"]["kernel"],
            v["params"]["Dense_0"]["bias"],
            v["params"]["Dense_1"]["kernel"],
        )
    )
    assert (
        V.shape == (3, phi.shape[1])
        and psi.shape == (phi.shape[1], 1)
        and "bias" not in v["params"]["Dense_1"]
    )
    if norm == "spectral":
        psi, V = (w / np.linalg.svd(w, compute_uv=False)[0] for w in (psi, V))
    naive = []
    for i, y in enumerate(LABEL):
        inner = sum(V[int(y)][j] * phi[i][j] for j in range(phi.shape[1]))
        naive.append(inner + sum(psi[j][0] * phi[i][j] for j in range(phi.shape[1])) + b[0])
    np.testing.assert_allclose(d.apply(v, x, label=LABEL), naive, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_label_changes_only_its_own_logit(norm):
    d, x, v = judged(norm)
    before, after = (np.asarray(d.apply(v, x, label=y)) for y in (LABEL, LABEL.at[1].set(0)))
    assert abs(after[1] - before[1]) > 1e-3
    np.testing.assert_allclose(np.delete(after, 1), np.delete(before, 1), rtol=1e-6)


def test_unseen_class_has_no_gradient():
    """V's rows learn from their own class alone."""
    d, x, v = judged("none")
    grad = jax.grad(lambda p: d.apply({"params": p}, x, label=jnp.minimum(LABEL, 1)).sum())(
        v["params"]
    )
    slope = np.abs(grad["Dense_1"]["kernel"]).max(1)
    assert slope[2] == 0 and slope[0] > 0 and slope[1] > 0


def test_conditional_batch_norm_starts_unconditional_and_scales_by_class():
    """γ_y (x - μ) / σ + β_y (Dumoulin et al., 2017, eq. 5), γ = 1 and β = 0 at first."""
    g = Generator((8, 8, 1), (6, 4), classes=3)
    z = jax.random.normal(KEY, (5, 7))
    v = jax.jit(lambda: g.init(jax.random.key(1), z, label=LABEL))()
    run = lambda v, y: np.asarray(g.apply(v, z, True, y, mutable=["batch_stats"])[0])
    np.testing.assert_array_equal(run(v, LABEL), run(v, LABEL * 0))
    plain = {k: w for k, w in v["params"].items() if "_scale" not in k and "_shift" not in k}
    plain |= {
        f"BatchNorm_{i}": {"scale": jnp.ones(n), "bias": jnp.zeros(n)} for i, n in enumerate((6, 4))
    }
    blind = Generator((8, 8, 1), (6, 4)).apply({"params": plain}, z, True, mutable=["batch_stats"])[
        0
    ]
    np.testing.assert_allclose(run(v, LABEL), blind, rtol=1e-5, atol=1e-6)
    rng = np.random.default_rng(0)
    drawn = {
        k: jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), w)
        for k, w in v["params"].items()
        if "_scale" in k or "_shift" in k
    }
    v = v | {"params": v["params"] | drawn}
    for c in range(
        3
    ):  # Where all are of one class, it is an ordinary BatchNorm with that class's row.
        own = {
            f"BatchNorm_{i}": {
                "scale": drawn[f"BatchNorm_{i}_scale"]["kernel"][c],
                "bias": drawn[f"BatchNorm_{i}_shift"]["kernel"][c],
            }
            for i in range(2)
        }
        same = Generator((8, 8, 1), (6, 4)).apply(
            {"params": plain | own}, z, True, mutable=["batch_stats"]
        )[0]
        np.testing.assert_allclose(run(v, jnp.full(5, c)), same, rtol=1e-4, atol=1e-5)
    assert np.abs(run(v, LABEL) - run(v, LABEL * 0))[np.asarray(LABEL) > 0].max() > 0.01


def test_missing_or_unneeded_labels_are_refused():
    for net, x in (
        (Generator((8, 8, 1), (6, 4), classes=3), jnp.zeros((5, 7))),
        (Discriminator((4,), classes=3), jnp.zeros((5, 8, 8, 1))),
    ):
        with pytest.raises(ValueError, match="of 3 classes must be called with labels"):
            net.init(KEY, x)
        with pytest.raises(ValueError, match="of 0 classes must be called without labels"):
            net.clone(classes=0).init(KEY, x, label=LABEL)
    with pytest.raises(ValueError, match="Only BatchNorms can depend on a class"):
        Generator((8, 8, 1), (6, 4), "none", classes=3).init(KEY, jnp.zeros((5, 7)), label=LABEL)
