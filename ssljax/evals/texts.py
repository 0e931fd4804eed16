"""Texts to read: samples of a language model, and the nearest neighbours of documents."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, gathered, trace_features, Tree
from ssljax.evals.knn import neighbours


def text_samples(
    draw: Callable[[Tree, Array], Array], decode: Callable[[Sequence[int]], str], seed: int = 0
) -> Evaluator:
    """`samples`: each row of `draw(state, key)`, (n, t) tokens, decoded.

    The key is the same each time.
    """

    @gathered
    def run(state):
        tokens = draw(state, jax.random.key(seed))
        if tokens.ndim != 2:
            raise InputError(f"Samples must be rows of tokens (n, t), not {tokens.shape}.")
        return tokens

    def evaluate(state: Tree) -> Mapping[str, str]:
        rows = np.asarray(run(state))
        return {"samples": "\n\n".join(decode(row.tolist()) for row in rows)}

    return Evaluator(evaluate, pictures=True, trace=lambda state: jax.eval_shape(run, state))


def nearest_texts(
    encode: Encode, data: Any, titles: Sequence[str], n: int = 12, seed: int = 0
) -> Evaluator:
    """`nearest`: a table of `n` of `data`, drawn once, with the `titles` of their nearest three.

    InputError unless there is a title for each.
    """
    if len(titles) != len(data) or not len(data):
        raise InputError(f"{len(data)} documents have {len(titles)} titles: give one for each.")
    extract, width = extractor(encode), max(map(len, titles))
    asked = np.sort(np.random.default_rng(seed).permutation(len(data))[:n])

    def evaluate(state: Tree) -> Mapping[str, str]:
        z = extract(state, data)
        sims, index = neighbours(z, z[asked], min(4, len(z)))
        lines = []
        for i, row, near in zip(asked, sims, index, strict=True):
            others = [f"{titles[j]} {s:.2f}" for j, s in zip(near, row, strict=True) if j != i][:3]
            lines.append(f"{titles[i]:{width}}  {', '.join(others)}")
        return {"nearest": "\n".join(lines)}

    return Evaluator(
        evaluate,
        pictures=True,
        trace=lambda state: trace_features(encode, state, data),
        encode=encode,
        queries=data,
    )
