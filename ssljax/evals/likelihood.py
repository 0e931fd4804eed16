"""Likelihood of a test set under a generative model, and the latent dimensions in use."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, TYPE_CHECKING

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import batches, examples, gathered, PART, part_size, put, subset, Tree
from ssljax.evals.pictures import rendered
from ssljax.losses.elbo import kl_normal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (state, key, observation of n images, k) -> (k, n)
LogWeights = Callable[[Tree, Array, Array, int], Array]
# (state, key, (n, H, W, C) uint8) -> what the model observes of the images
Observe = Callable[[Tree, Array, Array], Array]


def likelihood(
    log_weights: LogWeights,
    test: Any,
    samples: int = 5000,
    n: int | None = None,
    batch_size: int = 50,
    chunk: int = 0,
    seed: int = 0,
    observe: Observe = lambda state, key, images: images,
) -> Evaluator:
    """`nll`: -log p(x) in nats, the mean over `n` images of `test` (all by default).

    Burda et al., 2015, arXiv:1509.00519, section 5: the bound L_5000, from `samples` draws of q
    for each image, taken for the likelihood itself. `nll_error` is the standard error of the mean
    over images; `elbo` the bound of one draw. `log_weights(state, key, x, k)` gives
    log p(x, z) - log q(z|x), (k, n), of x = `observe(state, key, images)`, drawn once. `chunk` is
    the number of draws at a time, by default the largest divisor of `samples` up to 100. InputError
    unless it divides `samples`, and for fewer than two images.
    """
    chunk = chunk or max(c for c in range(1, 101) if samples % c == 0)
    if samples % chunk:
        raise InputError(
            f"{samples} importance samples can't be drawn {chunk} at a time: {chunk} must divide "
            "their number."
        )
    indices = np.arange(len(test)) if n is None else subset(test, n, seed)
    if len(indices) < 2:
        raise InputError(f"A likelihood needs 2 test images or more, not {len(indices)}.")
    # Each image is decoded `chunk` times at once.
    batch_size = max(1, min(batch_size, 2 * PART // (chunk * int(np.prod(test.shape)))))

    @gathered
    def bounds(state, key, images):
        x = observe(state, jax.random.fold_in(key, samples), images)

        def more(total, key):  # The log of a running sum, so that only `chunk` draws exist.
            log_w = log_weights(state, key, x, chunk)
            if log_w.shape != (chunk, len(images)):
                raise InputError(
                    f"log_weights must return ({chunk}, {len(images)}) for {chunk} draws of "
                    f"{len(images)} images, not {log_w.shape}."
                )
            return jnp.logaddexp(total, jax.nn.logsumexp(log_w, axis=0)), jnp.mean(log_w, axis=0)

        keys = jax.random.split(key, samples // chunk)
        total, each = jax.lax.scan(more, jnp.full(len(images), -jnp.inf), keys)
        return total - jnp.log(samples), jnp.mean(each, axis=0)

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = []
        for start, count, images in batches(test, indices, batch_size, split=True):
            key = jax.random.fold_in(jax.random.key(seed), start)
            found.append(np.stack(bounds(state, key, put(images, split=True)))[:, :count])
        log_p, elbo = np.concatenate(found, axis=1).astype(np.float64)
        return {
            "nll": -log_p.mean(),
            "nll_error": log_p.std(ddof=1) / np.sqrt(len(log_p)),
            "elbo": elbo.mean(),
        }

    def trace(state: Tree) -> None:
        images = examples(test, part_size(test, len(indices), batch_size))
        jax.eval_shape(bounds, state, jax.random.key(seed), images)

    return Evaluator(
        evaluate,
        better={"nll": "lower", "elbo": "higher"},
        settings={"samples": samples, "n": n, "seed": seed},
        trace=trace,
        queries=test,
    )


def bits(
    log_prob: Callable[[Tree, Array, Array], Array],
    train: Any,
    test: Any,
    n: int = 1000,
    batch_size: int = 500,
    seed: int = 0,
) -> Evaluator:
    """`bits`: -log2 p(x) for each of the numbers of an image, the mean over `n` images of `test`.

    `log_prob(state, key, images)` is log p(x) in nats, a bound on it, or an estimate, (n,), of
    uint8 images. `bits_error` is the standard error of the mean over images. The floor
    `independent_bits` is what pixels cost that are independent of each other, each with the
    frequencies of its 256 levels in 10,000 images of `train`, with one more image's worth of those
    of all pixels. InputError for fewer than two images.
    """
    indices, shape = subset(test, n, seed), tuple(test.shape)
    if len(indices) < 2:
        raise InputError(f"A likelihood needs 2 test images or more, not {len(indices)}.")
    unit = np.log(2) * np.prod(shape)

    @gathered
    def run(state, key, images):
        found = log_prob(state, key, images)
        if found.shape != (len(images),):
            raise InputError(
                f"log_prob must give one number for each of {len(images)} images, not "
                f"{found.shape}."
            )
        return found

    @functools.cache
    def floor() -> float:
        levels = train.read(subset(train, 10_000, seed))["image"].reshape(-1, np.prod(shape))
        counts = np.stack([np.bincount(x, minlength=256) for x in levels.T])
        overall = (counts.sum(0) + 1) / (counts.sum() + 256)
        p = (counts + overall) / (len(levels) + 1)
        images = test.read(indices)["image"].reshape(len(indices), -1)
        return float(-np.log(p[np.arange(p.shape[0]), images]).sum(1).mean() / unit)

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = []
        for start, count, images in batches(test, indices, batch_size, split=True):
            key = jax.random.fold_in(jax.random.key(seed), start)
            found.append(np.asarray(run(state, key, put(images, split=True)))[:count])
        each = -np.concatenate(found).astype(np.float64) / unit
        return {
            "bits": each.mean(),
            "bits_error": each.std(ddof=1) / np.sqrt(len(each)),
            "independent_bits": floor(),
        }

    def trace(state: Tree) -> None:
        images = examples(test, part_size(test, len(indices), batch_size))
        jax.eval_shape(run, state, jax.random.key(seed), images)

    return Evaluator(
        evaluate,
        better={"bits": "lower"},
        floors={"bits": "independent_bits"},
        settings={"n": n, "seed": seed},
        trace=trace,
        bank=train,
        queries=test,
    )


def latent_use(
    posterior: Callable[[Tree, Array], tuple[Array, Array]],
    test: Any,
    n: int = 1000,
    seed: int = 0,
    threshold: float = 1e-2,
) -> Evaluator:
    """Use of the dimensions of a Gaussian `posterior(state, images) -> (mean, log_var)`, (n, d).

    `active` is the number of dimensions whose mean varies over images by more than `threshold`
    (the variance; Burda et al., 2015, section 5.2), `dead` that of the others. `kl` is
    KL(q || prior) in nats, summed over dimensions; `kl_picture` that of each, the largest first.
    """
    indices = subset(test, n, seed)
    run = gathered(posterior)

    def evaluate(state: Tree) -> Mapping[str, Any]:
        found = [
            [x[:count] for x in jax.device_get(run(state, put(images)))]
            for _, count, images in batches(test, indices, 500)
        ]
        mean, log_var = (np.concatenate(x) for x in zip(*found, strict=True))
        kl = np.asarray(kl_normal(jnp.asarray(mean), jnp.asarray(log_var))).mean(0)
        active = mean.var(axis=0) > threshold
        order = np.argsort(-kl)
        return {
            "active": int(active.sum()),
            "dead": int((~active).sum()),
            "kl": float(kl.sum()),
            "kl_picture": rendered(kl_figure(kl[order], active[order])),
        }

    def trace(state: Tree) -> None:
        images = examples(test, part_size(test, len(indices), 500))
        mean, log_var = jax.eval_shape(run, state, images)
        if mean.ndim != 2 or mean.shape != log_var.shape or len(mean) != len(images):
            raise InputError(
                f"posterior must return means and log variances (n, d), not {mean.shape} and "
                f"{log_var.shape} for {len(images)} images."
            )

    return Evaluator(
        evaluate,
        settings={"n": n, "seed": seed, "threshold": threshold},
        trace=trace,
        queries=test,
    )


def kl_figure(kl: np.ndarray, active: np.ndarray) -> "Figure":
    """Bars of the KL of each latent dimension, (d,), blue where it is `active`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="latent dimension, by its KL", ylabel="KL to the prior, nats")
    axes.bar(np.arange(len(kl)), kl, color=np.where(active, "tab:blue", "tab:gray"))
    return figure
