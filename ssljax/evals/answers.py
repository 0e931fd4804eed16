"""Text to text, evaluated: spans that were left out, and answers to held-out inputs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data.text_pairs import TextPairs
from ssljax.data.token_rows import TokenRows
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import gathered, in_parts, put, round_up, subset, Tree
from ssljax.evals.masked_language import keyed
from ssljax.evals.perplexity import unigram_nll
from ssljax.evals.texts import set_apart
from ssljax.losses.language import token_nll
from ssljax.models.encoder_decoder import NEVER

# (state, key, rows) -> logits (n, b, v) of the targets, and these (n, b), padded with -1
Predict = Callable[[Tree, Array, Array], tuple[Array, Array]]
# (state, key, rows) -> inputs, answers to them, and targets, each (n, ·), padded with -1
Fill = Callable[[Tree, Array, Array], tuple[Array, Array, Array]]
Decode = Callable[[Sequence[int]], str]


def span_nll(
    predict: Predict, read: TokenRows, special: Sequence[int], batch_size: int = 64, seed: int = 0
) -> Evaluator:
    """`nll`, the mean -log p in nats of the tokens left out of the test rows, each given those
    before it, and `accuracy`, the percent of them that is likeliest.

    The tokens `special`, sentinels and the end, are no part of the text: they don't count, and
    probabilities are among the other tokens, as where a span ends was drawn at random. The spans
    are the same each time. The floors are `unigram`, the -log p of the same tokens by their
    frequencies in the training rows, one added to each count, and `most_frequent`, the percent of
    the token most frequent there. InputError where no token is left out, or the loss is not finite.
    """

    @gathered
    def run(state, key, rows):
        logits, targets = predict(state, key, rows)
        if logits.ndim != 3 or logits.shape[:2] != targets.shape:
            raise InputError(
                f"predict must return logits for each target token, {targets.shape}, not "
                f"{logits.shape}."
            )
        logits = logits.at[:, :, jnp.asarray(special)].set(NEVER)
        return jnp.argmax(logits, axis=-1), token_nll(logits, jnp.maximum(targets, 0)), targets

    rows = read.test
    counts = np.bincount(read.train[:].ravel()) if read.counts is None else read.counts
    guess = int(counts.argmax())

    def evaluate(state: Tree) -> Mapping[str, float]:
        right, nats, found = 0, 0.0, []
        for key, n, part in keyed(rows, batch_size, seed):
            best, nll, targets = (x[:n] for x in jax.device_get(run(state, key, put(part, True))))
            counted = (targets >= 0) & ~np.isin(targets, special)
            right += np.sum(counted & (best == targets))
            nats += nll.astype(np.float64)[counted].sum()
            found.append(targets[counted])
        tokens = np.concatenate(found)
        if not len(tokens) or not np.isfinite(nats):
            raise InputError(
                "No token of the test rows was left out: give longer texts."
                if not len(tokens)
                else "The tokens left out have a -log p that is not finite."
            )
        return {
            "nll": nats / len(tokens),
            "accuracy": 100 * float(right / len(tokens)),
            "unigram": unigram_nll(tokens, counts),
            "most_frequent": 100 * float(np.mean(tokens == guess)),
        }

    return Evaluator(
        evaluate,
        better={"nll": "lower", "accuracy": "higher"},
        floors={"nll": "unigram", "accuracy": "most_frequent"},
        settings={"seed": seed},
        trace=lambda state: _trace(run, state, rows, batch_size),
        queries=read,
    )


def fillings(
    fill: Fill, read: TokenRows, sentinels: Sequence[int], n: int = 3, seed: int = 0
) -> Evaluator:
    """`fillings`: the first `n` test rows, with ⟦answer|original⟧ where a span was left out.

    `fill(state, key, rows)` leaves the spans out and answers. The key is the same each time.
    """
    run, rows, decode = gathered(fill), read.test[:n], read.tokenizer.decode

    def evaluate(state: Tree) -> Mapping[str, str]:
        found = jax.device_get(run(state, jax.random.key(seed), put(rows)))
        texts = [filled(x, y, z, sentinels, decode) for x, y, z in zip(*found, strict=True)]
        return {"fillings": set_apart(texts)}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={"fillings": "Held-out text: in brackets an answer, then what was left out."},
        trace=lambda state: jax.eval_shape(run, state, jax.random.key(seed), rows),
    )


def filled(
    text: np.ndarray,
    answer: np.ndarray,
    target: np.ndarray,
    sentinels: Sequence[int],
    decode: Decode,
) -> str:
    """The tokens `text`, padded with -1, with ⟦answer|target⟧ in place of each sentinel."""
    spans = [spans_of(x, sentinels) for x in (answer, target)]
    parts, held = [], []
    for token in [*text[text >= 0].tolist(), None]:
        if token is not None and token not in spans[1]:
            held.append(token)
            continue
        parts.append(decode(held))
        held = []
        if token is not None:
            parts.append("⟦{}|{}⟧".format(*(decode(own.get(token, [])) for own in spans)))
    return "".join(parts)


def spans_of(tokens: np.ndarray, sentinels: Sequence[int]) -> dict[int, list[int]]:
    """The tokens after each sentinel, up to the next one; those before the first are left out."""
    found: dict[int, list[int]] = {}
    known, held = set(map(int, sentinels)), []
    for token in tokens[tokens >= 0].tolist():
        if token in known:
            held = found.setdefault(token, [])
        else:
            held.append(token)
    return found


def exact_answers(
    answer: Callable[[Tree, Array], Array],
    score: Callable[[Tree, Array, Array], Array],
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    pairs: Mapping[str, TextPairs],
    n: int = 5_000,
    batch_size: int = 250,
) -> Evaluator:
    """`exact`, the percent of `n` test inputs whose answer is the target, and `nll` of the targets.

    `answer(state, inputs)` gives tokens (n, t), -1 from the end on, and `score(state, inputs,
    targets)` -log p of each token of targets (n, t) given those before it, of which `nll` is the
    mean with the end, in nats. `rows` are those of `pair_rows` for pairs["test"]; an answer to an
    input whose target was cut is never right. The floor is `most_frequent`, the percent of the
    target that is most frequent in pairs["train"]. InputError where a -log p is not finite.
    """
    if not len(pairs["test"]):
        raise InputError("A set to evaluate on is empty: add examples to the data.")
    at = subset(pairs["test"], n)
    inputs, targets, whole = (x[at] for x in rows)
    width, both = inputs.shape[1], np.concatenate([inputs, targets], axis=1)
    common = Counter(pairs["train"].targets).most_common(1)[0][0]
    floor = 100 * float(np.mean([pairs["test"].targets[i] == common for i in at]))

    @gathered
    def run(state, both):
        inputs, targets = both[:, :width], both[:, width:]
        nll = score(state, inputs, targets)
        if nll.shape != targets.shape:
            raise InputError(
                f"score must return a number for each target token, {targets.shape}, not "
                f"{nll.shape}."
            )
        return answer(state, inputs), nll

    def evaluate(state: Tree) -> Mapping[str, float]:
        right, nats = 0, 0.0
        for start, count, part in in_parts(both.__getitem__, np.arange(len(both)), batch_size):
            found, nll = (x[:count] for x in jax.device_get(run(state, put(part, split=True))))
            own = targets[start : start + count]
            nats += nll.astype(np.float64)[own >= 0].sum()
            right += np.sum(same_answers(found, own) & whole[start : start + count])
        nll = float(nats / np.sum(targets >= 0))
        if not np.isfinite(nll):
            raise InputError("The targets have a -log p that is not finite.")
        return {"exact": 100 * float(right / len(both)), "nll": nll, "most_frequent": floor}

    return Evaluator(
        evaluate,
        better={"exact": "higher", "nll": "lower"},
        floors={"exact": "most_frequent"},
        settings={"n": n},
        trace=lambda state: _trace_pairs(run, state, both, batch_size),
        queries=pairs["test"],
    )


def same_answers(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether answers (n, t), -1 from their end on, are the targets (n, t), which end with a token
    more: (n,) bool."""
    last = np.sum(targets >= 0, axis=1, keepdims=True) - 1
    before = np.where(np.arange(targets.shape[1]) < last, targets, -1)
    return (answers == before).all(axis=1)


def shown_answers(
    answer: Callable[[Tree, Array], Array],
    inputs: np.ndarray,
    pairs: TextPairs,
    decode: Decode,
    n: int = 8,
) -> Evaluator:
    """`answers`: the first `n` inputs of `pairs`, with the answer and the target."""
    run = gathered(answer)

    def evaluate(state: Tree) -> Mapping[str, str]:
        found = np.asarray(run(state, put(inputs[:n])))
        texts = [
            f"{short(text)}\n  answer: {decode(row[row >= 0].tolist())}\n  target: {target}"
            for text, row, target in zip(pairs.text, found, pairs.targets)
        ]
        return {"answers": "\n\n".join(texts)}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={"answers": "Held-out inputs, with the model's answers and the targets."},
        trace=lambda state: jax.eval_shape(run, state, inputs[:n]),
    )


def short(text: str, most: int = 200) -> str:
    """A text on one line, cut after `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _trace(run: Callable, state: Tree, rows: np.ndarray, batch_size: int) -> Any:
    if not len(rows):
        raise InputError("The test text is too short for one row: give a longer one.")
    part = jax.ShapeDtypeStruct((round_up(min(batch_size, len(rows))), *rows.shape[1:]), rows.dtype)
    return jax.eval_shape(run, state, jax.random.key(0), part)


def _trace_pairs(run: Callable, state: Tree, rows: np.ndarray, batch_size: int) -> Any:
    size = round_up(min(batch_size, len(rows)))
    return jax.eval_shape(run, state, jax.ShapeDtypeStruct((size, rows.shape[1]), rows.dtype))
