"""--dtype: all nets of an experiment compute in bfloat16; parameters and losses stay in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lstm import lstm
from experiments.simclr import simclr
from experiments.simmim import simmim
from ssljax import InputError, TrainState
from ssljax.cli import parse
from ssljax.data import Images
from ssljax.loaded import batch_of
from ssljax.losses import distillation, infonce, redundancy
from ssljax.models import with_fields
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.vit import ViT


def test_one_flag_is_of_the_encoder_and_the_head():
    _, given = parse(simclr, ["--dtype", "bfloat16", "encoder:res-net", "--encoder.depth", "50"])
    assert given["encoder"].dtype == given["head"].dtype == "bfloat16"
    assert given["encoder"].depth == 50
    _, usual = parse(simclr, ["encoder:res-net", "--encoder.dtype", "bfloat16"])
    assert (usual["encoder"].dtype, usual["head"].dtype) == ("bfloat16", "float32")


def test_an_experiment_whose_nets_have_no_precision_says_so():
    with pytest.raises(InputError, match="those of lstm have float32 alone"):
        parse(lstm, ["--dtype", "bfloat16"])


def test_fields_are_set_in_nets_within_nets_and_tuples():
    inner = nn.Sequential((MLP((4,)), nn.relu, MLP((3,))))
    new = with_fields({"net": inner, "n": 3}, dtype="bfloat16")
    assert [layer.dtype for layer in new["net"].layers[::2]] == ["bfloat16"] * 2
    assert new["n"] == 3 and inner.layers[0].dtype == "float32"


SMALL = {
    simclr: {
        "data": Images("digits"),
        "encoder": ConvNet(widths=(8, 16)),
        "head": MLP((16, 8), norm=True),
    },
    simmim: {"data": Images("digits"), "vit": ViT(patch=2, width=24, depth=1, heads=2)},
}


@pytest.mark.parametrize("make", SMALL, ids=lambda f: f.__name__)
def test_all_layers_follow_and_the_loss_is_near(make):
    """Every layer with parameters computes in bfloat16; what is saved and compared is float32."""
    found, kinds = {}, {}

    def watch(run, args, kwargs, context):
        y = run(*args, **kwargs)
        if isinstance(context.module, (nn.Dense, nn.Conv, ConvNet, nn.LayerNorm, nn.BatchNorm)):
            kinds[type(context.module).__name__, str(context.module.dtype)] = None
        return y

    for dtype in ("float32", "bfloat16"):
        given = with_fields(SMALL[make], dtype=dtype)
        exp = make(**given, batch_size=16)
        batch, kinds = batch_of(exp), {}
        draw = lambda x: jax.random.randint(jax.random.key(3), x.shape, 0, 255).astype(x.dtype)
        batch = {name: draw(x) for name, x in batch.items()}
        with nn.intercept_methods(watch):
            state = jax.jit(exp.init)(jax.random.key(0), batch)
            new, metrics = jax.jit(exp.step)(state, batch, jax.random.key(1))
        found[dtype] = metrics
        assert kinds and {d for _, d in kinds} == {dtype}, kinds
        assert isinstance(new, TrainState)
        assert {x.dtype for x in jax.tree.leaves((new.params, new.extra))} == {jnp.dtype("float32")}
        assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
    for name in ("loss", "grad_norm"):
        a, b = (float(found[d][name]) for d in ("float32", "bfloat16"))
        assert a != b and abs(a - b) < 0.05 * abs(a), (name, a, b)


rows = lambda i, shape: 2 * jax.random.normal(jax.random.key(i), shape)
A, B = rows(0, (16, 8)), rows(1, (16, 8))
LOSSES = {
    "nt_xent": lambda a, b: infonce.nt_xent_loss(a, b),
    "info_nce": lambda a, b: infonce.info_nce_loss(a, b),
    "queue": lambda a, b: infonce.info_nce_loss(a, b, rows(2, (32, 8))),
    "supcon": lambda a, b: infonce.supcon_loss(a, jnp.arange(16) // 4),
    "barlow": lambda a, b: redundancy.barlow_twins_loss(a, b),
    "vicreg": lambda a, b: redundancy.vicreg_loss(a, b),
    "byol": lambda a, b: distillation.byol_loss(a, b),
    "simsiam": lambda a, b: distillation.negative_cosine_loss(a, b),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_bfloat16_are_computed_in_float32(name):
    a, b = (x.astype(jnp.bfloat16) for x in (A, B))
    found, wanted = LOSSES[name](a, b), LOSSES[name](a.astype(jnp.float32), b.astype(jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
