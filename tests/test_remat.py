"""Blocks that are computed a second time for the gradient: the same numbers, less kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models import resnet
from ssljax.models.transformer import Transformer
from ssljax.models.vit import ViT

IMAGES = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
NETS = {
    "vit": (ViT(patch=4, width=12, depth=2, heads=3, pool="token"), IMAGES),
    "transformer": (
        Transformer(2, 2, 16, dropout=0.2, positions="relative"),
        jax.random.normal(jax.random.key(1), (4, 8, 16)),
    ),
    "basic": (resnet.ResNet(18, width=4), IMAGES),
    "bottleneck": (resnet.ResNet(50, width=4, stem="imagenet"), IMAGES),
}


@pytest.mark.parametrize("name", NETS)
def test_remat_keeps_values_and_gradients_in_less_memory(name, monkeypatch):
    monkeypatch.setattr(resnet, "STAGES", {18: (1, 1), 50: (1, 1)})  # For time.
    net, x = NETS[name]
    found, kept = {}, {}
    for policy in ("none", "products", "blocks"):
        one = net.clone(remat=policy)
        variables = jax.jit(one.init)(jax.random.key(0), x)

        def loss(params, one=one, variables=variables):
            rngs = {"dropout": jax.random.key(2)}
            given = {**variables, "params": params}
            y, stats = one.apply(given, x, train=True, rngs=rngs, mutable=["batch_stats"])
            y = y[0] if isinstance(y, tuple) else y
            return jnp.sum(jnp.sin(y)), stats

        params = variables["params"]
        back = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p, has_aux=True)[1], params)
        kept[policy] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back))
        grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
        found[policy] = (variables, grad(params))
    for policy in ("products", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, found[policy][0], found["none"][0])
        for a, b in zip(*(jax.tree.leaves(found[p][1]) for p in ("none", policy)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-8)
    params = sum(x.nbytes for x in jax.tree.leaves(found["none"][0]["params"]))
    blocks, products, none = (kept[p] - params for p in ("blocks", "products", "none"))
    assert blocks < 0.5 * none and blocks < products < none, kept
