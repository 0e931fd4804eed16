"""Which attention runs on which device, and that each computes the same."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
import numpy as np
import pytest

from ssljax.models.attention import (
    assumed_cudnn,
    attend,
    cpu_attention,
    described,
    even_attention,
    recording,
    splash_attention,
)

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def traced(kind, platform, shape=(4, 256, 2, 64), dtype=jnp.bfloat16, devices=1, **how):
    """The jaxpr of attention's gradient for a machine that isn't there, and what was chosen."""
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    mesh = AbstractMesh((devices, 1), ("data", "fsdp"), abstract_device=device)
    x = jax.ShapeDtypeStruct(shape, dtype)
    f = lambda q, k, v: attend(q, k, v, **how).astype(jnp.float32).sum()
    with jax.sharding.use_abstract_mesh(mesh), assumed_cudnn(), recording() as found:
        text = str(jax.make_jaxpr(jax.grad(f, argnums=(0, 1, 2)))(x, x, x))
    (name,) = found
    assert ("dot_product_attention_bwd" in text) == (name == "cudnn")
    assert ("splash" in text) == (name == "splash")
    return name, described(found)


@pytest.mark.parametrize(
    "kind", [H100, A100, "NVIDIA B200", "NVIDIA L4", "NVIDIA GeForce RTX 4090"]
)
@pytest.mark.parametrize("causal", [False, True])
def test_gpus_from_ampere_on_use_cudnn(kind, causal):
    assert traced(kind, "gpu", causal=causal) == ("cudnn", "cuDNN's flash attention")


def test_lengths_and_heads_that_cudnn_takes():
    assert traced(H100, "gpu", (2, 197, 6, 64))[0] == "cudnn"  # A ViT with a class token.
    assert traced(H100, "gpu", (2, 256, 6, 128), jnp.float16)[0] == "cudnn"


MASK = jnp.ones((4, 1, 1, 256), bool)


@pytest.mark.parametrize(
    "kind, changes, why",
    [
        (A100, {"dtype": jnp.float32}, "float32: --dtype bfloat16 to fuse it"),
        (A100, {"mask": MASK}, "a mask"),
        (A100, {"bias": jnp.ones((1, 2, 256, 256), jnp.bfloat16)}, "a bias"),
        (A100, {"shape": (4, 256, 2, 20)}, "heads of 20 channels"),
        (A100, {"shape": (4, 256, 2, 160)}, "heads of 160 channels"),
        (A100, {"shape": (4, 49, 2, 64)}, "49 tokens"),
        ("Tesla V100-SXM2-16GB", {}, "Tesla V100-SXM2-16GB"),
        ("NVIDIA GeForce RTX 2080 Ti", {}, "NVIDIA GeForce RTX 2080 Ti"),
        ("NVIDIA GeForce GTX 1080", {}, "NVIDIA GeForce GTX 1080"),
        ("AMD Instinct MI300X", {}, "AMD Instinct MI300X"),
    ],
)
def test_what_cudnn_does_not_take_is_xlas_and_said(kind, changes, why):
    assert traced(kind, "gpu", **changes) == ("xla", f"XLA's, with all scores in memory ({why})")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_tpus_use_splash_where_it_applies(dtype):
    assert traced("TPU v5 lite", "tpu", dtype=dtype, causal=True, devices=4)[0] == "splash"
    assert traced("TPU v5 lite", "tpu", (4, 197, 2, 64), dtype)[0] == "xla"
    assert traced("TPU v5 lite", "tpu", dtype=dtype, mask=MASK)[0] == "xla"
    name, line = traced("TPU v4", "tpu", (6, 128, 2, 64), dtype, devices=4)
    assert name == "xla" and "6 rows on 4 devices" in line


def test_a_gpu_without_cudnn_uses_xlas():
    device = AbstractDevice(device_kind=H100, num_cores=1, platform="gpu")
    mesh = AbstractMesh((1, 1), ("data", "fsdp"), abstract_device=device)
    x = jax.ShapeDtypeStruct((4, 256, 2, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh), recording() as found:
        jax.make_jaxpr(lambda x: attend(x, x, x))(x)
    assert found == {"xla": "no cuDNN found"}


@pytest.mark.parametrize("causal", [False, True])
def test_a_token_that_is_added_for_cudnn_changes_nothing(causal):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, w = (jax.random.normal(key, (2, 7, 2, 8)) for key in keys)
    both = []
    for f in (cpu_attention, lambda *a: even_attention(*a, name="xla")):
        loss = lambda q, k, v, f=f: jnp.sum(f(q, k, v, causal) * w)
        both.append((f(q, k, v, causal), *jax.grad(loss, argnums=(0, 1, 2))(q, k, v)))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(a).max() + 1e-7)


@pytest.mark.parametrize("causal", [False, True])
def test_splash_equals_plain_attention(causal):
    """The kernel's own code, interpreted: values and gradients, split over four devices."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, w = (jax.random.normal(key, (4, 128, 2, 16)) for key in keys)
    both = []
    for f in (cpu_attention, lambda *a: splash_attention(*a, interpret=True)):
        loss = lambda q, k, v, f=f: (jnp.sum(f(q, k, v, causal) * w), f(q, k, v, causal))
        grads, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        both.append((y, *grads))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())
