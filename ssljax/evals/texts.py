"""Texts to read: samples of a language model, and the nearest neighbours of documents."""

from collections.abc import Callable, Mapping, Sequence
import re
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, gathered, trace_features, Tree
from ssljax.evals.knn import neighbours


def text_samples(
    draw: Callable[[Tree, Array], Array],
    decode: Callable[[Sequence[int]], str],
    seed: int = 0,
    prompt: int = 0,
) -> Evaluator:
    """`samples`: each row of `draw(state, key)`, (n, t) tokens, decoded.

    The key is the same each time. The first `prompt` tokens of a row are given rather than drawn,
    and set in ⟦ ⟧ where they are whole characters.
    """

    @gathered
    def run(state):
        tokens = draw(state, jax.random.key(seed))
        if tokens.ndim != 2:
            raise InputError(f"Samples must be rows of tokens (n, t), not {tokens.shape}.")
        return tokens

    def evaluate(state: Tree) -> Mapping[str, str]:
        rows = np.asarray(run(state)).tolist()
        return {"samples": set_apart([marked(decode, row, prompt) for row in rows])}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={
            "samples": "Samples from the same noise at each step, after a prompt that is marked."
        },
        trace=lambda state: jax.eval_shape(run, state),
    )


def marked(decode: Callable[[Sequence[int]], str], row: Sequence[int], prompt: int) -> str:
    """The text of a row of tokens, of which the first `prompt` are in ⟦ ⟧."""
    text, given = decode(row), decode(row[:prompt]) if prompt else ""
    if not given or not text.startswith(given):
        return text
    return f"⟦{given}⟧{text[len(given) :]}"


def set_apart(texts: Sequence[str]) -> str:
    """Texts, each under a line with its number; one text alone as it is."""
    if len(texts) == 1:
        return texts[0]
    heads = (f"― {i + 1} of {len(texts)} ―" for i in range(len(texts)))
    return "\n\n".join(f"{head}\n{text}" for head, text in zip(heads, texts, strict=True))


def split_apart(text: str) -> list[str]:
    """The texts that `set_apart` was given."""
    parts = re.split(r"(?:\A|\n\n)― \d+ of \d+ ―\n", text)
    return parts if len(parts) == 1 else parts[1:]


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
        captions={"nearest": "First a document; then the three that are nearest by the cosine."},
        trace=lambda state: trace_features(encode, state, data),
        encode=encode,
        queries=data,
    )
