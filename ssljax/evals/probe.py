"""Linear probe: how well a linear classifier reads the classes off frozen features."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.errors import InputError
from ssljax.evals.features import Encode, extractor, gathered, put, raw_pixels, round_up, Tree

Params = dict[str, Array]  # {"w": (classes, d), "b": (classes,)}


def linear_probe(
    encode: Encode,
    train: Any,
    test: Any,
    regularisers: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    held_out: float = 0.1,
    seed: int = 0,
    floor: bool = True,
) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of `test` named rightly by logistic regression on the standardised features of `train`.

    `regulariser` is the one of `regularisers` that does best on a fixed `held_out` share of `train`; with it
    the classifier is fitted to all of `train`. `raw_pixels` is `accuracy` on pixels, 32 a side at most, found once, unless
    `floor` is False. InputError if a label is not in [0, train.num_classes).
    """
    n, classes = len(train), train.num_classes
    if not 0 <= train.labels.min() <= train.labels.max() < classes:
        raise InputError(f"A label of the training set is not in [0, {classes}).")
    fitted = np.ones(n, np.float32)
    fitted[np.random.default_rng(seed).permutation(n)[: max(1, round(held_out * n))]] = 0
    extract = extractor(encode)

    def score(z: np.ndarray, z_test: np.ndarray) -> Mapping[str, float]:
        from sklearn.preprocessing import (
            StandardScaler,
        )  # Slow to import, and not needed before the end.

        scaler = StandardScaler().fit(z)
        x, y = _rows(scaler.transform(z)), _rows(train.labels)
        fit, rest, every = map(_rows, (fitted, 1 - fitted, np.ones_like(fitted)))
        cov, found = covariance(x, every), {}
        params = jax.tree.map(
            put,
            {"w": np.zeros((classes, z.shape[1]), np.float32), "b": np.zeros(classes, np.float32)},
        )
        for lam in sorted(
            regularisers, reverse=True
        ):  # Each starts from the last: less work than from zero.
            params = minimise(params, x, y, fit, cov, lam, 1e-5)  # The choice needs no more.
            found[lam] = float(_accuracy(params, x, y, rest)), params
        lam = max(found, key=lambda lam: found[lam][0])  # Among equals the strongest.
        params = minimise(found[lam][1], x, y, every, cov, lam, 3e-6)
        tests = map(_rows, (scaler.transform(z_test), test.labels, np.ones(len(test), np.float32)))
        return {
            "accuracy": 100 * float(_accuracy(params, *tests)),
            "regulariser": lam,
            "train_accuracy": 100 * float(_accuracy(params, x, y, every)),
        }

    @functools.cache
    def pixels() -> float:
        return score(*(raw_pixels(data, most=32) for data in (train, test)))["accuracy"]

    def evaluate(state: Tree) -> Mapping[str, float]:
        numbers = score(extract(state, train), extract(state, test))
        return {**numbers, "raw_pixels": pixels()} if floor else numbers

    return evaluate


def objective(params: Params, x: Array, y: Array, weight: Array, lam: Array) -> Array:
    """Mean cross-entropy of `x` (n, d) by `weight` (n,), plus lam/2 |w|^2: scikit-learn's, C = 1/(lam n)."""
    nll = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
    return jnp.sum(weight * nll) / jnp.sum(weight) + lam / 2 * jnp.sum(params["w"] ** 2)


@gathered
def minimise(
    params: Params,
    x: Array,
    y: Array,
    weight: Array,
    cov: Array,
    lam: Array,
    tol: Array,
    max_steps: int = 200,
) -> Params:
    """Minimises `objective` by L-BFGS from `params`, given `cov`, x'x/n (d, d).

    It moves v in w = v L^-1 with LL' = cov/2 + lam, a bound of the Hessian (Böhning, 1992, Ann. Inst. Stat.
    Math. 44): correlated features then cost few steps (CIFAR-10's pixels 10, where w itself took over 200).
    There |gradient|^2 is near what the loss has yet to fall, and the search ends below `tol` of the loss.
    """
    with jax.default_matmul_precision("highest"):
        eye = jnp.eye(len(cov))
        chol = jnp.linalg.cholesky(
            cov / 2 + jnp.maximum(lam, 1e-2) * eye
        )  # 1e-2: float32 can factor it.
        inverse = jax.scipy.linalg.solve_triangular(chol, eye, lower=True)
        loss = lambda p: objective({"w": p["w"] @ inverse, "b": p["b"]}, x, y, weight, lam)
        search = optax.scale_by_zoom_linesearch(
            max_linesearch_steps=20, initial_guess_strategy="one"
        )
        tx = optax.lbfgs(linesearch=search)
        value_and_grad = optax.value_and_grad_from_state(loss)

        def unfinished(carry):
            _, _, step, value, square = carry
            return (step < max_steps) & (square > tol * value)

        def descend(carry):
            p, state, step, _, _ = carry
            value, grad = value_and_grad(p, state=state)
            updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=loss)
            grad = optax.tree.get(
                state, "grad"
            )  # The line search has it already, at the new point.
            p, value = optax.apply_updates(p, updates), optax.tree.get(state, "value")
            return p, state, step + 1, value, optax.tree.vdot(grad, grad)

        p = {"w": params["w"] @ chol, "b": params["b"]}
        start = p, tx.init(p), 0, jnp.float32(1), jnp.float32(jnp.inf)
        p, *_ = jax.lax.while_loop(unfinished, descend, start)
        return {"w": p["w"] @ inverse, "b": p["b"]}


@gathered
def covariance(x: Array, weight: Array) -> Array:
    """x'x (d, d) over the sum of `weight` (n,), where the rows of `x` (n, d) without weight are zeros."""
    return jnp.matmul(x.T, x, precision="highest") / jnp.sum(weight)


@gathered
def _accuracy(params: Params, x: Array, y: Array, weight: Array) -> Array:
    return jnp.sum(weight * (jnp.argmax(_logits(params, x), axis=-1) == y)) / jnp.sum(weight)


def _logits(params: Params, x: Array) -> Array:
    return jnp.matmul(x, params["w"].T, precision="highest") + params["b"]


def _rows(x: np.ndarray) -> Array:
    """`x` (n, ...) split over the devices, with rows of zeros at its end where they are needed for that."""
    return put(np.pad(x, [(0, round_up(len(x)) - len(x))] + [(0, 0)] * (x.ndim - 1)), split=True)
