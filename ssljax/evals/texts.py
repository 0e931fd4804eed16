"""Texts to read: samples of a language model, and what of a set is nearest to what."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.evals.features import Encode, extractor, gathered, Tree
from ssljax.evals.knn import neighbours


def samples(
    draw: Callable[[Tree, Array], Array], decode: Callable[[Sequence[int]], str], seed: int = 0
) -> Callable[[Tree], Mapping[str, str]]:
    """`samples`: each row of `draw(state, key)`, (n, t) tokens, as `decode` reads it; the key is the same each time."""
    run = gathered(lambda state: draw(state, jax.random.key(seed)))
    return lambda state: {
        "samples": "\n\n".join(decode(row.tolist()) for row in np.asarray(run(state)))
    }


def nearest(
    encode: Encode, data: Any, titles: Sequence[str], n: int = 12, seed: int = 0
) -> Callable[[Tree], Mapping[str, str]]:
    """`nearest`: a table of `n` of `data`, drawn once, and the `titles` of the three others nearest to each."""
    extract, width = extractor(encode), max(map(len, titles))
    asked = np.sort(np.random.default_rng(seed).permutation(len(data))[:n])

    def evaluate(state: Tree) -> Mapping[str, str]:
        z = extract(state, data)
        sims, index = neighbours(z, z[asked], min(4, len(z)))
        lines = []
        for i, row, near in zip(asked, sims, index):
            others = [f"{titles[j]} {s:.2f}" for j, s in zip(near, row) if j != i][:3]
            lines.append(f"{titles[i]:{width}}  {', '.join(others)}")
        return {"nearest": "\n".join(lines)}

    return evaluate
