"""Masked language modelling, told on rows that were not trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data.token_rows import SPECIAL, TokenRows
from ssljax.evals.features import gathered, in_parts, put, Tree
from ssljax.losses.language import MaskedTokens, token_nll

Predict = Callable[
    [Tree, Array, Array], tuple[Array, MaskedTokens]
]  # (state, key, rows) -> logits (n, k, v), of what


def masked_accuracy(
    predict: Predict, read: TokenRows, batch_size: int = 64, seed: int = 0
) -> Callable[[Tree], Mapping[str, Any]]:
    """Percent of the chosen tokens of the test rows that are told rightly, and their mean `nll`.

    `accuracy_at_mask` is of those alone that [MASK] stands for: BERT leaves a tenth of the chosen to be seen, and puts
    others in place of a tenth. The choice is the same each time. `most_frequent` is the floor: the percent of the token
    that is the most frequent in the training rows, special ones aside. `guesses`: the first row, with [what was told|what
    was there].
    """

    @gathered
    def run(state, key, rows):
        logits, masked = predict(state, key, rows)
        return jnp.argmax(logits, axis=-1), token_nll(logits, masked.targets), masked

    rows, decode = read.test, read.tokenizer.decode
    guess = np.bincount(read.train[read.train >= SPECIAL]).argmax()

    def evaluate(state: Tree) -> Mapping[str, Any]:
        total, shown = np.zeros(6), ""
        for key, n, part in keyed(rows, batch_size, seed):
            told, nll, masked = jax.device_get(run(state, key, put(part, split=True)))
            weight = masked.weight * (np.arange(len(part)) < n)[:, None]
            right, blank = (
                told == masked.targets,
                np.take_along_axis(masked.tokens, masked.at, 1) == read.mask,
            )
            sums = (right, nll, masked.targets == guess, np.ones_like(nll), right * blank, blank)
            total += [(weight * x).sum(dtype=np.float64) for x in sums]
            shown = shown or filled(
                part[0], masked.at[0][weight[0] > 0], told[0][weight[0] > 0], decode
            )
        accuracy, nll, floor = total[:3] / total[3]
        return {
            "accuracy": 100 * accuracy,
            "accuracy_at_mask": 100 * total[4] / max(total[5], 1),
            "nll": nll,
            "most_frequent": 100 * floor,
            "guesses": shown,
        }

    return evaluate


def keyed(rows: np.ndarray, size: int, seed: int) -> Iterator[tuple[Array, int, np.ndarray]]:
    """(key, n, part), by `in_parts`: `size` of the rows at a time, of which the first n count, and a key for masks."""
    for start, n, part in in_parts(rows.__getitem__, np.arange(len(rows)), size):
        yield jax.random.fold_in(jax.random.key(seed), start), n, part


def filled(
    row: np.ndarray, at: np.ndarray, told: np.ndarray, decode: Callable[[Sequence[int]], str]
) -> str:
    """The text of a row, with [told|there] at the places `at`."""
    guesses, parts, last = dict(zip(at.tolist(), told.tolist())), [], 0
    for i in sorted(guesses):
        parts += [decode(row[last:i].tolist()), f"[{decode([guesses[i]])}|{decode([int(row[i])])}]"]
        last = i + 1
    return " ".join([*parts, decode(row[last:].tolist())])


def replaced_auroc(
    find: Callable[[Tree, Array, Array], tuple[Array, Array]],
    rows: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, float]]:
    """`auroc`: how often, in percent, a replaced token of `rows` (n, t) scores above one that was left; 50 is chance.

    `find(state, key, rows)` gives the scores and which are replaced, (n, t) both; `replaced` is the percent of these.
    """
    from ssljax.evals.anomaly import auroc

    run = gathered(find)

    def evaluate(state: Tree) -> Mapping[str, float]:
        scores, truth = [], []
        for key, n, part in keyed(rows, batch_size, seed):
            found = jax.device_get(run(state, key, put(part, split=True)))
            scores.append(found[0][:n].ravel())
            truth.append(found[1][:n].ravel())
        score, replaced = np.concatenate(scores), np.concatenate(truth)
        return {"auroc": auroc(score, replaced), "replaced": 100 * float(replaced.mean())}

    return evaluate
