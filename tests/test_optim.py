"""Schedules and LARS against their definitions."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.experiment import minimize, TrainState
from ssljax.models.vit import ViT
from ssljax.optim import (
    adamw,
    clipped,
    cosine,
    decay_mask,
    ema_decay,
    lars,
    optimizer_of,
    scheduled,
    warmup_cosine,
)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_warmup_cosine_is_a_function_of_the_fraction(n):
    schedule = warmup_cosine(0.3, n, warmup=0.1)
    values = np.array([schedule(i) for i in range(n + 1)])
    assert np.isfinite(values).all() and values.max() <= 0.3 + 1e-6
    np.testing.assert_allclose(values[n], 0, atol=1e-6)
    if n >= 10:
        np.testing.assert_allclose(values[n // 10], 0.3, rtol=1e-5)
        np.testing.assert_allclose(values[0], 0, atol=1e-7)
        middle = n // 10 + (n - n // 10) // 2
        np.testing.assert_allclose(values[middle], 0.15, rtol=0.2 if n == 10 else 0.01)


def test_warmup_cosine_ends_at_its_final_rate():
    """Its formula in float64: end + (peak - end) (1 + cos πk/K)/2 after the warm-up."""
    peak, end, n, warm = 0.3, 0.02, 50, 10
    schedule = warmup_cosine(peak, n, 0.2, end)
    k = np.arange(n + 5)
    fall = end + (peak - end) * (1 + np.cos(np.pi * np.clip((k - warm) / (n - warm), 0, 1))) / 2
    want = np.where(k < warm, peak * k / warm, fall)
    np.testing.assert_allclose([schedule(i) for i in k], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["barlow", "dino", "ibot", "ijepa", "lejepa", "supcon", "swav", "vicreg"]
)
def test_final_rates_of_experiments(name, monkeypatch):
    module, rates = importlib.import_module(f"experiments.{name}"), []
    monkeypatch.setattr(
        module, "warmup_cosine", lambda *a: rates.append(warmup_cosine(*a)) or rates[-1]
    )
    for final in {}, {"final_lr": 1e-4}:
        last = getattr(module, name)(lr=1e-3, epochs=1, **final).num_steps
        assert float(rates[-1](last)) == pytest.approx(final.get("final_lr", 0), abs=1e-9)
        assert max(float(rates[-1](i)) for i in range(last)) == pytest.approx(1e-3)


def test_warmup_is_a_fraction():
    with pytest.raises(ValueError, match="fraction"):
        warmup_cosine(0.1, 100, warmup=10)


PARAMS = {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.ones(4), "scale": jnp.ones(4)}
GRADS = {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.full(4, 0.5), "scale": jnp.full(4, 0.5)}


def test_lars_is_its_algorithm():
    """You et al., 2017, algorithm 1: local lr = trust |w| / (|g| + wd |w|); without both for biases
    and norms."""
    tx = lars(0.1, weight_decay=0.01, momentum=0.9, trust=0.001)
    state = tx.init(PARAMS)
    first, state = tx.update(GRADS, state, PARAMS)
    w, g = np.full((3, 4), 2.0), np.full((3, 4), 0.5)
    decayed = g + 0.01 * w
    local = 0.001 * np.linalg.norm(w) / np.linalg.norm(decayed)
    np.testing.assert_allclose(first["kernel"], -0.1 * local * decayed, rtol=1e-5)
    np.testing.assert_allclose(first["bias"], -0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(first["scale"], -0.1 * 0.5, rtol=1e-6)
    second, _ = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(second["bias"], -0.1 * 0.5 * 1.9, rtol=1e-6)  # Momentum.


def test_sgd_is_pytorchs_with_momentum_and_decay_of_all_weights():
    """g = grad + wd w; v = 0.9 v + g; w = w - lr v."""
    tx, params = optimizer_of("sgd", 0.1, 0.5), PARAMS
    state = tx.init(params)
    want = {k: (np.asarray(w, np.float64), 0.0) for k, w in PARAMS.items()}
    for _ in range(3):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        for k, (w, v) in want.items():
            v = 0.9 * v + GRADS[k] + 0.5 * w
            want[k] = w - 0.1 * v, v
    for k, (w, _) in want.items():
        np.testing.assert_allclose(params[k], w, rtol=1e-5)


@pytest.mark.parametrize("kind, of", [("adamw", adamw), ("lars", lars)])
def test_an_optimizer_is_the_one_of_its_name(kind, of):
    moved = [
        tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]
        for tx in (optimizer_of(kind, 0.1, 0.2), of(0.1, 0.2))
    ]
    for k in PARAMS:
        np.testing.assert_array_equal(moved[0][k], moved[1][k])


def run(tx, grads):
    """The parameters after a step by each of `grads`."""
    params, state = PARAMS, tx.init(PARAMS)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def naive_lars(rates, grads, outer):
    """The LARS of Barlow Twins, VICReg and MoCo v3 (`outer`), or of SimCLR: float64 loops."""
    w = {k: np.asarray(p, np.float64) for k, p in PARAMS.items()}
    m = {k: np.zeros_like(p) for k, p in w.items()}
    for rate, grad in zip(rates, grads):
        for k in w:
            g = np.asarray(grad[k], np.float64)
            if w[k].ndim > 1:
                g = g + 0.01 * w[k]
                g = g * 0.001 * np.linalg.norm(w[k]) / np.linalg.norm(g)
            m[k] = 0.9 * m[k] + (g if outer else rate * g)
            w[k] = w[k] - (rate * m[k] if outer else m[k])
    return w


@pytest.mark.parametrize("kind", ["lars", "lars-outer"])
def test_lars_with_a_schedule_is_a_naive_loop(kind):
    rng = np.random.default_rng(0)
    grads = [
        {k: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for k, p in PARAMS.items()}
        for _ in range(6)
    ]
    rates = [3.0, 2.0, 4.0, 0.5, 0.1, 0.0]
    schedule = lambda step: jnp.asarray(rates)[step]
    found = run(optimizer_of(kind, schedule, 0.01), grads)
    for k, want in naive_lars(rates, grads, kind == "lars-outer").items():
        np.testing.assert_allclose(found[k], want, rtol=1e-5)
    other = naive_lars(rates, grads, kind == "lars")
    assert np.abs(found["kernel"] - other["kernel"]).max() > 1e-3  # The two differ here,
    both = [run(optimizer_of(name, 0.3, 0.01), grads) for name in ("lars", "lars-outer")]
    for k in PARAMS:  # and not at a constant rate.
        np.testing.assert_allclose(both[0][k], both[1][k], rtol=1e-6)


def test_weight_decay_leaves_a_vits_positions_and_token_alone():
    net = ViT(2, 8, 1, 2, pool="token", positions="learned")
    params = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    mask = decay_mask({"encoder": params})["encoder"]
    assert params["places"]["table"].ndim == 3 and not mask["places"]["table"]
    assert not mask["token"]
    assert mask["embed"] == {"kernel": True, "bias": False}
    zero = jax.tree.map(jnp.zeros_like, params)
    for kind in ("adamw", "lars", "lars-outer"):
        tx = optimizer_of(kind, 0.1, 0.5)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert not updates["places"]["table"].any() and updates["embed"]["kernel"].any()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lars", "lars-outer"])
def test_weight_decay_follows_its_cosine(kind):
    """DINO's schedule, by hand; each step's update is that of the same optimizer at the number of
    the step."""
    decay = cosine(0.04, 0.4, 4)
    np.testing.assert_allclose(
        [decay(k) for k in (0, 1, 2, 4, 5)],
        [0.04, 0.4 - 0.18 * (1 + 2**-0.5), 0.22, 0.4, 0.4],
        rtol=1e-5,
    )
    assert cosine(0.1, None, 4) == 0.1
    tx = optimizer_of(kind, 0.1, decay)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    moved = tx.update(GRADS, state, PARAMS)[0]
    fixed = optimizer_of(kind, 0.1, float(decay(1)))
    _, state = optimizer_of(kind, 0.1, 0.04).update(GRADS, fixed.init(PARAMS), PARAMS)
    for k, x in fixed.update(GRADS, state, PARAMS)[0].items():
        np.testing.assert_allclose(moved[k], x, rtol=1e-5)


def test_weight_decay_leaves_biases_and_norms_alone():
    assert decay_mask(PARAMS) == {"kernel": True, "bias": False, "scale": False}
    zero = {k: jnp.zeros_like(v) for k, v in GRADS.items()}
    updates, _ = (tx := adamw(0.1, weight_decay=0.5)).update(zero, tx.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    np.testing.assert_allclose(new["kernel"], 2 * (1 - 0.1 * 0.5))
    np.testing.assert_array_equal(new["bias"], 1)


def test_a_moving_average_starts_short():
    assert [float(ema_decay(0.9, jnp.int32(t))) for t in (0, 8, 1000)] == pytest.approx(
        [0.1, 0.5, 0.9]
    )


def logged(tx, steps=8):
    """Parameters before each step and after the last down a linear loss, and the metrics."""

    def loss(params, state, batch, key):
        return params["w"] @ jnp.array([3.0, -4.0]) + 12 * params["b"], (state.extra, {"own": 7.0})

    step = jax.jit(minimize(tx, loss))
    state, path, metrics = TrainState.create(tx, {"w": jnp.ones(2), "b": jnp.zeros(())}), [], []
    for i in range(steps):
        path.append(jnp.append(state.params["w"], state.params["b"]))
        state, found = step(state.replace(step=i), {}, None)
        metrics.append(found)
    path.append(jnp.append(state.params["w"], state.params["b"]))
    return np.array(path), {k: np.array([m[k] for m in metrics]) for k in metrics[0]}


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: optimizer_of("adamw", rate, 0.0),
        lambda rate: optimizer_of("sgd", rate, 0.0),
        lambda rate: clipped(2.0, adamw(rate, 0.0, b2=0.9)),
        lambda rate: clipped(100.0, scheduled(optax.sgd(rate), rate)),
    ],
)
def test_logged_learning_rate_is_what_updates_are_scaled_by(make):
    """The ratio of updates to those at a rate of 1; the gradient is that before it is clipped."""
    path, metrics = logged(make(warmup_cosine(0.3, 8, 0.25)))
    of_one, constant = logged(make(1.0))
    ratio = np.diff(path, axis=0) / np.diff(of_one, axis=0)
    np.testing.assert_allclose(metrics["lr"][:, None].repeat(3, 1), ratio, rtol=1e-4, atol=1e-6)
    assert len(np.unique(metrics["lr"])) > 5
    np.testing.assert_allclose(metrics["grad_norm"], 13, rtol=1e-6)
    assert set(metrics) == {"own", "lr", "grad_norm"} and set(constant) == {"own", "grad_norm"}


@pytest.mark.parametrize("outer", [False, True])
def test_learning_rate_of_lars_is_logged(outer):
    metrics = logged(lars(warmup_cosine(0.3, 8, 0.25), outer=outer))[1]
    want = [warmup_cosine(0.3, 8, 0.25)(i) for i in range(8)]
    np.testing.assert_allclose(metrics["lr"], want, rtol=1e-6)


def test_scheduled_optimizer_is_the_same_optimizer():
    """Its state has the form of Optax's, so that checkpoints of either fit the other."""
    rate, params = warmup_cosine(0.1, 9), {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    plain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4, mask=decay_mask)
    )
    mine = clipped(1.0, adamw(rate))
    grads = jax.tree.map(lambda x: 2 * x, params)
    for a, b in zip(
        mine.update(grads, mine.init(params), params),
        plain.update(grads, plain.init(params), params),
    ):
        jax.tree.map(np.testing.assert_array_equal, a, b)
