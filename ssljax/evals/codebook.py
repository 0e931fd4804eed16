"""Use of a codebook: how many of its entries a set of images takes, and how evenly."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import batches, examples, gathered, part_size, put, Tree
from ssljax.losses.quantization import codebook_perplexity


def codebook_use(
    code: Callable[[Tree, Array], Array], test: Any, entries: int, batch_size: int = 500
) -> Evaluator:
    """`used` and `perplexity` of a codebook of `entries` on all images of `test`.

    `code(state, images)` gives the entries that images (n, H, W, C) uint8 take, ints (n, ...).
    `used` is the number of entries taken at least once, and `perplexity` the exponential of the
    entropy of how often each is taken: as much as `entries` if all are taken equally often.
    """
    indices = np.arange(len(test))

    @gathered
    def run(state, images):
        index = code(state, images)
        if index.shape[:1] != images.shape[:1]:
            raise InputError(f"Codes of {len(images)} images must be (n, ...), not {index.shape}.")
        return index

    def evaluate(state: Tree) -> Mapping[str, float]:
        counts = np.zeros(entries, np.int64)
        for _, n, images in batches(test, indices, batch_size, split=True):
            taken = np.asarray(run(state, put(images, split=True)))[:n]
            counts += np.bincount(taken.ravel(), minlength=entries)
        return {
            "perplexity": float(codebook_perplexity(counts)),
            "used": int(np.sum(counts > 0)),
        }

    def trace(state: Tree) -> None:
        jax.eval_shape(run, state, examples(test, part_size(test, len(indices), batch_size)))

    return Evaluator(
        evaluate, better={"perplexity": "higher", "used": "higher"}, trace=trace, queries=test
    )
