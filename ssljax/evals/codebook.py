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

COLLAPSED = 0.02  # Of a codebook's entries, the perplexity below which it is said to be collapsed.


def codebook_use(
    code: Callable[[Tree, Array], Array],
    test: Any,
    entries: int,
    batch_size: int = 500,
    groups: int = 0,
) -> Evaluator:
    """`used` and `perplexity` of a codebook of `entries` on all images of `test`.

    `code(state, images)` gives the entries that images (n, H, W, C) uint8 take, ints (n, ...).
    `used` is the number of entries taken at least once, and `perplexity` the exponential of the
    entropy of how often each is taken: as much as `entries` if all are taken equally often. With
    `groups` there are so many codebooks, the last axis of the codes has one entry of each, and the
    numbers are those of each, as `used1`. A collapsed codebook is named where the run ends.
    """
    books = max(groups, 1)
    names = [str(i + 1) if groups else "" for i in range(books)]
    indices = np.arange(len(test))

    @gathered
    def run(state, images):
        index = code(state, images)
        if index.shape[:1] != images.shape[:1]:
            raise InputError(f"Codes of {len(images)} images must be (n, ...), not {index.shape}.")
        return index

    def evaluate(state: Tree) -> Mapping[str, float]:
        counts = np.zeros((books, entries), np.int64)
        for _, n, images in batches(test, indices, batch_size, split=True):
            taken = np.asarray(run(state, put(images, split=True)))[:n]
            for own, of in zip(counts, taken.reshape(-1, books).T):
                own += np.bincount(of, minlength=entries)
        found: dict[str, float] = {}
        for name, own in zip(names, counts):
            found[f"perplexity{name}"] = float(codebook_perplexity(own))
            found[f"used{name}"] = int(np.sum(own > 0))
        return found

    def trace(state: Tree) -> None:
        jax.eval_shape(run, state, examples(test, part_size(test, len(indices), batch_size)))

    def collapsed(numbers: Mapping[str, float]) -> str:
        bad = [name for name in names if numbers[f"perplexity{name}"] < max(2, COLLAPSED * entries)]
        said = [f"of {entries} entries {numbers[f'used{name}']:g} are taken" for name in bad]
        said = [
            f"{one}, with a perplexity of {numbers[f'perplexity{name}']:.3g}"
            for one, name in zip(said, bad)
        ]
        if not said:
            return ""
        return (
            f"{'A codebook has' if len(bad) == 1 else 'Codebooks have'} collapsed: "
            f"{'; '.join(said)}. Usual causes are a learning rate that is too high, and a weight "
            "of the loss of diversity or commitment that is too small."
        )

    return Evaluator(
        evaluate,
        better={f"{what}{name}": "higher" for name in names for what in ("perplexity", "used")},
        trace=trace,
        queries=test,
        warning=collapsed,
    )
