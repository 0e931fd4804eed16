"""Masked language modelling, evaluated on held-out rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data.token_rows import SPECIAL, TokenRows
from ssljax.errors import InputError
from ssljax.evals.anomaly import auroc
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import gathered, in_parts, put, round_up, Tree
from ssljax.losses.language import MaskedTokens, token_nll

# (state, key, rows) -> logits (n, k, v) at the masked places, and what was masked
Predict = Callable[[Tree, Array, Array], tuple[Array, MaskedTokens]]


def masked_accuracy(
    predict: Predict, read: TokenRows, batch_size: int = 64, seed: int = 0
) -> Evaluator:
    """Percent of the masked tokens of the test rows that are predicted rightly, and their `nll`.

    The masks are the same each time. `accuracy_at_mask` counts only places that hold [MASK]: BERT
    leaves a tenth of the chosen tokens as they are, and replaces a tenth by random ones.
    `most_frequent` is the floor: the percent of the token that is most frequent in the training
    rows, special tokens aside. `guesses` is the first row, with [predicted|actual]. InputError
    where no token is masked, or the loss is not finite.
    """

    @gathered
    def run(state, key, rows):
        logits, masked = predict(state, key, rows)
        if logits.ndim != 3 or logits.shape[:2] != masked.targets.shape:
            raise InputError(
                f"predict must return logits for each masked token, {masked.targets.shape}, not "
                f"{logits.shape}."
            )
        return jnp.argmax(logits, axis=-1), token_nll(logits, masked.targets), masked

    rows, decode = read.test, read.tokenizer.decode
    counts = np.bincount(read.train[:].ravel()) if read.counts is None else read.counts
    if not counts[SPECIAL:].any():
        raise InputError("The training text has no tokens but special ones.")
    guess = SPECIAL + counts[SPECIAL:].argmax()

    def evaluate(state: Tree) -> Mapping[str, Any]:
        total, shown = np.zeros(6), ""
        for key, n, part in keyed(rows, batch_size, seed):
            predicted, nll, masked = jax.device_get(run(state, key, put(part, split=True)))
            weight = masked.weight * (np.arange(len(part)) < n)[:, None]
            right = predicted == masked.targets
            blank = np.take_along_axis(masked.tokens, masked.at, 1) == read.mask
            sums = (right, nll, masked.targets == guess, np.ones_like(nll), right * blank, blank)
            total += [(weight * x).sum(dtype=np.float64) for x in sums]
            chosen = weight[0] > 0
            shown = shown or filled(part[0], masked.at[0][chosen], predicted[0][chosen], decode)
        if not total[3]:
            raise InputError(
                "No token of the test rows was masked: give more or longer texts, or mask a larger "
                "share."
            )
        accuracy, nll, floor = total[:3] / total[3]
        if not np.isfinite(nll):
            raise InputError("The masked tokens have a -log p that is not finite.")
        return {
            "accuracy": 100 * accuracy,
            "accuracy_at_mask": 100 * total[4] / max(total[5], 1),
            "nll": nll,
            "most_frequent": 100 * floor,
            "guesses": shown,
        }

    return Evaluator(
        evaluate,
        better={"accuracy": "higher", "accuracy_at_mask": "higher", "nll": "lower"},
        floors={"accuracy": "most_frequent"},
        settings={"seed": seed},
        trace=lambda state: _trace(run, state, rows, batch_size),
        queries=read,
    )


def keyed(rows: np.ndarray, size: int, seed: int) -> Iterator[tuple[Array, int, np.ndarray]]:
    """(key, n, part), by `in_parts`: `size` rows at a time, of which the first n count.

    The key is for masks.
    """
    for start, n, part in in_parts(rows.__getitem__, np.arange(len(rows)), size):
        yield jax.random.fold_in(jax.random.key(seed), start), n, part


def _trace(run: Callable, state: Tree, rows: np.ndarray, batch_size: int) -> Any:
    if not len(rows):
        raise InputError("The test text is too short for one row: give a longer one.")
    part = jax.ShapeDtypeStruct((round_up(min(batch_size, len(rows))), *rows.shape[1:]), rows.dtype)
    return jax.eval_shape(run, state, jax.random.key(0), part)


def filled(
    row: np.ndarray, at: np.ndarray, predicted: np.ndarray, decode: Callable[[Sequence[int]], str]
) -> str:
    """Text of a row, with [predicted|actual] at the places `at`."""
    guesses, parts, last = dict(zip(at.tolist(), predicted.tolist(), strict=True)), [], 0
    for i in sorted(guesses):
        parts.append(decode(row[last:i].tolist()))
        parts.append(f"[{decode([guesses[i]])}|{decode([int(row[i])])}]")
        last = i + 1
    return " ".join([*parts, decode(row[last:].tolist())])


def replaced_auroc(
    find: Callable[[Tree, Array, Array], tuple[Array, Array]],
    rows: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
) -> Evaluator:
    """`auroc`: percent of pairs in which a replaced token scores above an original one.

    `find(state, key, rows)` gives the scores of `rows` and which tokens are replaced, both (n, t).
    50 is chance. `replaced` is the percent of tokens that are replaced. InputError where none are,
    or all, or a score is not finite.
    """

    @gathered
    def run(state, key, rows):
        scores, truth = find(state, key, rows)
        if scores.shape != rows.shape or truth.shape != rows.shape:
            raise InputError(
                f"find must return scores and labels of shape {rows.shape}, not {scores.shape} and "
                f"{truth.shape}."
            )
        return scores, truth

    def evaluate(state: Tree) -> Mapping[str, float]:
        scores, truth = [], []
        for key, n, part in keyed(rows, batch_size, seed):
            found = jax.device_get(run(state, key, put(part, split=True)))
            scores.append(found[0][:n].ravel())
            truth.append(found[1][:n].ravel())
        score, replaced = np.concatenate(scores), np.concatenate(truth)
        if not np.isfinite(score).all():
            raise InputError("Scores of tokens are not finite.")
        return {"auroc": auroc(score, replaced), "replaced": 100 * float(replaced.mean())}

    return Evaluator(
        evaluate,
        better={"auroc": "higher"},
        settings={"seed": seed},
        trace=lambda state: _trace(run, state, rows, batch_size),
        queries=rows,
    )
