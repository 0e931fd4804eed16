"""Masked language modelling, told on rows that were not trained on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.evals.features import Tree, gathered, put, round_up
from ssljax.losses.language import Masked, token_nll

Predict = Callable[[Tree, Array, Array], tuple[Array, Masked]]  # (state, key, rows (n, t)) -> logits (n, k, v), and of what


def masked_accuracy(predict: Predict, rows: np.ndarray, train: np.ndarray, special: int,
                    decode: Callable[[Sequence[int]], str], batch_size: int = 64, seed: int = 0) -> Callable[[Tree], Mapping[str, Any]]:
    """Percent of the masked tokens of `rows` (n, t) that are told rightly, and their mean `nll`; the masks are the same
    each time.

    `most_frequent` is the floor: the percent for one who always says the most frequent token of `train` that is not
    among the `special` first ones. `guesses`: the first row, each masked token as [what was told|what was there].
    """
    @gathered
    def run(state, key, rows):
        logits, masked = predict(state, key, rows)
        return jnp.argmax(logits, axis=-1), token_nll(logits, masked.targets), masked

    guess = np.bincount(train[train >= special]).argmax()

    def evaluate(state: Tree) -> Mapping[str, Any]:
        size, total, shown = round_up(min(batch_size, len(rows))), np.zeros(4), ""
        for start in range(0, len(rows), size):
            part = rows[start:start + size]
            key = jax.random.fold_in(jax.random.key(seed), start)
            told, nll, masked = jax.device_get(run(state, key, put(np.resize(part, (size, rows.shape[1])), split=True)))
            weight = masked.weight * (np.arange(size) < len(part))[:, None]
            sums = (told == masked.targets, nll, masked.targets == guess, np.ones_like(nll))
            total += [(weight * x).sum(dtype=np.float64) for x in sums]
            shown = shown or filled(part[0], masked.at[0][weight[0] > 0], told[0][weight[0] > 0], decode)
        accuracy, nll, floor, _ = total / total[3]
        return {"accuracy": 100 * accuracy, "nll": nll, "most_frequent": 100 * floor, "guesses": shown}

    return evaluate


def filled(row: np.ndarray, at: np.ndarray, told: np.ndarray, decode: Callable[[Sequence[int]], str]) -> str:
    """The text of a row, with [told|there] at the places `at`."""
    guesses, parts, last = dict(zip(at.tolist(), told.tolist())), [], 0
    for i in sorted(guesses):
        parts += [decode(row[last:i].tolist()), f"[{decode([guesses[i]])}|{decode([int(row[i])])}]"]
        last = i + 1
    return " ".join([*parts, decode(row[last:].tolist())])
