"""Linear probe: how well does a linear classifier read the classes off frozen features?"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import signals
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import (
    check_shapes,
    Encode,
    extractor,
    gathered,
    put,
    raw_pixels,
    round_up,
    subset,
    trace_features,
    Tree,
)
from ssljax.evals.knn import FLOOR_BANK

Params = dict[str, Array]  # {"w": (classes, d), "b": (classes,)}
PRECONDITIONED = 8192  # Most features for which a d x d matrix is made.


def linear_probe(
    encode: Encode,
    train: Any,
    test: Any,
    regularisers: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    held_out: float = 0.1,
    seed: int = 0,
    floor: bool = True,
) -> Evaluator:
    """Percent of `test` classified rightly by logistic regression on standardised features.

    `regulariser` is the one of `regularisers` that does best on a fixed `held_out` share of
    `train`; with it the classifier is fitted to all of `train`. `raw_pixels` is the floor, unless
    `floor` is False: `accuracy` on pixels, shrunk to 32 a side, with at most 100,000 images of
    `train`, computed once. InputError for fewer than two training images, for a label that is not
    in [0, train.num_classes), and where `test` has images of another shape.
    """
    classes = train.num_classes
    if len(train) < 2:
        raise InputError(
            f"A linear probe needs 2 training images or more, not {len(train)}: add some to the "
            "data."
        )
    if not 0 <= train.labels.min() <= train.labels.max() < classes:
        raise InputError(f"A label of the training set is not in [0, {classes}).")
    check_shapes(train, test)
    extract = extractor(encode)

    def score(z: np.ndarray, labels: np.ndarray, z_test: np.ndarray) -> Mapping[str, float]:
        z, z_test = _in_row_space(*_standardised(z, z_test))
        n, d = z.shape
        fitted = np.ones(n, np.float32)
        fitted[np.random.default_rng(seed).permutation(n)[: max(1, round(held_out * n))]] = 0
        x, y = _rows(z), _rows(labels)
        fit, rest, every = map(_rows, (fitted, 1 - fitted, np.ones_like(fitted)))
        cov, found = _second_moment(x, every) if d <= PRECONDITIONED else None, {}
        zeros = {"w": np.zeros((classes, d), np.float32), "b": np.zeros(classes, np.float32)}
        params = jax.tree.map(put, zeros)
        # Each starts from the last one's solution, which is less work than from zero.
        for lam in sorted(regularisers, reverse=True):
            params = minimise(params, x, y, fit, cov, lam, 1e-5)  # The choice needs no more.
            found[lam] = float(_accuracy(params, x, y, rest)), params
        lam = max(found, key=lambda lam: found[lam][0])  # The strongest of equals.
        params = minimise(found[lam][1], x, y, every, cov, lam, 3e-6)
        tests = map(_rows, (z_test, test.labels, np.ones(len(test), np.float32)))
        return {
            "accuracy": 100 * float(_accuracy(params, *tests)),
            "regulariser": lam,
            "train_accuracy": 100 * float(_accuracy(params, x, y, every)),
        }

    @functools.cache
    def pixels() -> float:
        at = subset(train, FLOOR_BANK)
        z, z_test = raw_pixels(train, at, most=32), raw_pixels(test, most=32)
        return score(z, train.labels[at], z_test)["accuracy"]

    def evaluate(state: Tree) -> Mapping[str, float]:
        numbers = score(extract(state, train), train.labels, extract(state, test))
        return {**numbers, "raw_pixels": pixels()} if floor else numbers

    def trace(state: Tree) -> None:
        trace_features(encode, state, train)
        trace_features(encode, state, test)

    return Evaluator(
        evaluate,
        better={"accuracy": "higher"},
        floors={"accuracy": "raw_pixels"} if floor else {},
        settings={"held_out": held_out, "seed": seed},
        trace=trace,
        encode=encode,
        bank=train,
        queries=test,
    )


def _standardised(z: np.ndarray, z_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.preprocessing import StandardScaler  # Slow to import, and not needed before.

    scaler = StandardScaler().fit(z)
    return np.asarray(scaler.transform(z)), np.asarray(scaler.transform(z_test))


def _in_row_space(z: np.ndarray, z_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) in an orthonormal basis of the space of the rows of `z`, where d > n.

    The weights of a regularised regression are in this space: nothing changes but the room needed.
    """
    if z.shape[1] <= len(z):
        return z, z_test
    basis = np.linalg.qr(z.T)[0]
    return z @ basis, z_test @ basis


def objective(params: Params, x: Array, y: Array, weight: Array, lam: Array) -> Array:
    """Mean cross-entropy of `x` (n, d) by `weight` (n,), plus lam/2 |w|².

    It is scikit-learn's with C = 1/(lam n).
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
    return jnp.sum(weight * nll) / jnp.sum(weight) + lam / 2 * jnp.sum(params["w"] ** 2)


def minimise(
    params: Params,
    x: Array,
    y: Array,
    weight: Array,
    cov: Array | None,
    lam: float,
    tol: float,
    max_steps: int = 200,
    chunk: int = 20,
) -> Params:
    """Minimises `objective` by L-BFGS from `params`, given `cov`, x'x/n (d, d).

    It moves v in w = v L^-1 with LL' = cov/2 + lam, a bound of the Hessian (Böhning, 1992, Ann.
    Inst. Stat. Math. 44): correlated features then cost few steps (CIFAR-10's pixels 10, where w
    itself took over 200). There |gradient|² is near what the loss has yet to fall, and the search
    ends below `tol` of the loss. Without `cov` L is that of uncorrelated features of variance 1.
    A signal to the run ends it between two chunks of `chunk` steps.
    """
    carry, inverse = _begin(params, cov, lam)
    for step in range(0, max_steps, chunk):
        signals.check()
        stop = min(step + chunk, max_steps)
        carry, done = _descend(carry, x, y, weight, inverse, lam, tol, stop)
        if bool(done):
            break
    return _weights(carry[0], inverse)


def _solver() -> optax.GradientTransformationExtraArgs:
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    return optax.lbfgs(linesearch=search)


@gathered
def _begin(params: Params, cov: Array | None, lam: Array) -> tuple[Any, Array]:
    """The search's carry at its start, and L^-1: (d, d), or a scalar without `cov`."""
    with jax.default_matmul_precision("highest"):
        ridge = jnp.maximum(lam, 1e-2)  # Less could not be factored in float32.
        if cov is None:
            inverse = 1 / jnp.sqrt(0.5 + ridge)
            w = params["w"] / inverse
        else:
            eye = jnp.eye(len(cov))
            chol = jnp.linalg.cholesky(cov / 2 + ridge * eye)
            inverse = jax.scipy.linalg.solve_triangular(chol, eye, lower=True)
            w = params["w"] @ chol
        p = {"w": w, "b": params["b"]}
        # Optax's scalars are of weak types, for which `_descend` would be compiled once more.
        state = jax.tree.map(lambda x: jnp.asarray(x).astype(x.dtype), _solver().init(p))
        return (p, state, jnp.int32(0), jnp.float32(1), jnp.float32(jnp.inf)), inverse


@gathered
def _descend(
    carry: Any, x: Array, y: Array, weight: Array, inverse: Array, lam: Array, tol: Array, stop: Any
) -> tuple[Any, Array]:
    """The carry after the steps up to `stop`, and whether the search has ended."""
    tx = _solver()

    def loss(p: Params) -> Array:
        return objective(_unscaled(p, inverse), x, y, weight, lam)

    value_and_grad = optax.value_and_grad_from_state(loss)

    def unfinished(carry):
        _, _, _, value, square = carry
        return square > tol * value

    def descend(carry):
        p, state, step, _, _ = carry
        value, grad = value_and_grad(p, state=state)
        updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=loss)
        # The line search has computed the gradient at the new point.
        p, grad = optax.apply_updates(p, updates), optax.tree.get(state, "grad")
        return p, state, step + 1, optax.tree.get(state, "value"), optax.tree.vdot(grad, grad)

    with jax.default_matmul_precision("highest"):
        carry = jax.lax.while_loop(lambda c: (c[2] < stop) & unfinished(c), descend, carry)
        return carry, ~unfinished(carry)


@gathered
def _weights(p: Params, inverse: Array) -> Params:
    with jax.default_matmul_precision("highest"):
        return _unscaled(p, inverse)


def _unscaled(p: Params, inverse: Array) -> Params:
    w = p["w"] @ inverse if inverse.ndim else p["w"] * inverse
    return {"w": w, "b": p["b"]}


@gathered
def _second_moment(x: Array, weight: Array) -> Array:
    """x'x (d, d) over the sum of `weight` (n,), where rows of `x` without weight are zeros."""
    return jnp.matmul(x.T, x, precision="highest") / jnp.sum(weight)


@gathered
def _accuracy(params: Params, x: Array, y: Array, weight: Array) -> Array:
    return jnp.sum(weight * (jnp.argmax(_logits(params, x), axis=-1) == y)) / jnp.sum(weight)


def _logits(params: Params, x: Array) -> Array:
    return jnp.matmul(x, params["w"].T, precision="highest") + params["b"]


def _rows(x: np.ndarray) -> Array:
    """`x` (n, ...) split over the devices, padded with rows of zeros so that they share it."""
    return put(np.pad(x, [(0, round_up(len(x)) - len(x))] + [(0, 0)] * (x.ndim - 1)), split=True)
