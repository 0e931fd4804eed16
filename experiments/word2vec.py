"""word2vec (Mikolov et al., 2013, https://arxiv.org/abs/1310.4546): word vectors.

A word's vector predicts the words near it.

launch/local.sh experiments/word2vec.py                  # Python's manual: seconds on a laptop CPU
launch/local.sh experiments/word2vec.py --data brown.txt,gutenberg.txt --epochs 5
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import Experiment, InputError, main, TrainState
from ssljax.data.words import vocabulary, WordBlocks
from ssljax.evals.words import nearest_words, word_tests
from ssljax.losses.words import cbow_loss, skip_gram_loss, term_counts
from ssljax.optim import descend_rows
from ssljax.ranges import checked, Count, NotNegative, Positive
from ssljax.sharding import gathered, over_batch


@checked
def word2vec(
    data: str = "python",
    model: Literal["skip-gram", "cbow"] = "skip-gram",
    width: Count = 100,
    window: Count = 5,
    negatives: Count = 5,
    sample: NotNegative = 1e-3,
    min_count: Count = 5,
    epochs: Count = 20,
    lr: Positive = 0.05,
    batch_size: Count = 256,
    length: Count = 32,
    shared: Count = 32,
    at_once: Count = 16,
    wordsim: str = "",
    simlex: str = "",
    questions: str = "",
) -> Experiment:
    """word2vec: skip-gram or a continuous bag of words, with negative sampling and subsampling.

    Args:
        data: python (its manual, embedded), text files with commas between them (.txt, .jsonl or
            .parquet), a folder of them, or a TFDS text set. Text without spaces (Chinese, Japanese,
            Thai, ...) needs spaces put between its words.
        model: Predict the neighbours from a word (skip-gram), or a word from them (cbow).
        width: Dimensions of a vector.
        window: Largest distance of a neighbour; for each word a distance from 1 to this is drawn.
        negatives: Negative samples for each pair (k in the paper).
        sample: Words of a higher frequency are subsampled (t in the paper); 0 for none.
        min_count: Words that occur less often are left out.
        epochs: Passes through the text.
        lr: Learning rate at the start, which falls linearly to 0; 0.25 suits cbow. Gradients are
            summed over pairs (see descend_rows).
        batch_size: Blocks of text in a step.
        length: Words in a block.
        shared: Negative samples that are drawn for a block and shared by its pairs.
        at_once: Blocks of a step whose gradients are summed before the vectors move; it divides
            batch_size.
        wordsim: File of WordSim-353; empty to look for it where TFDS has its data.
        simlex: File of SimLex-999; empty to look for it where TFDS has its data.
        questions: File questions-words.txt; empty to look for it where TFDS has its data.
    """
    if batch_size % at_once:
        raise InputError(f"--at-once {at_once} must divide --batch-size {batch_size}.")
    tokenizer, tokens, count, names = vocabulary(data, min_count)
    unigram = jnp.asarray(np.cumsum(count**0.75) / np.sum(count**0.75), jnp.float32)
    text = WordBlocks(tokens, count, batch_size, length, window, sample)
    num_steps = epochs * text.steps
    centre, other = jnp.arange(length)[:, None] + window, jnp.arange(length + 2 * window)

    def init(key, batch):
        shape, bound = (len(count), width), 0.5 / width
        vectors = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        params = {"in": vectors, "out": jnp.zeros_like(vectors)}
        return TrainState(jnp.zeros((), jnp.int32), params, (), {})

    def move(params, words, reach, drawn, rate):
        """One step of gradient descent on some of the blocks."""
        near = (jnp.abs(centre - other) <= reach) & (centre != other)
        middle = words[:, window:-window]
        if model == "skip-gram":
            ins, outs, loss = middle, words, skip_gram_loss
        else:
            ins, outs, loss = words, middle, cbow_loss
        rows = params["in"][ins], params["out"][outs], params["out"][drawn]
        value, (v, u, n) = jax.value_and_grad(
            lambda rows: loss(rows[0], rows[1], near, rows[2], negatives)
        )(rows)
        v_terms, u_terms, n_terms = term_counts(loss, near, shared, negatives)
        # One sum into a table: for two, XLA copies the table.
        at, grads, terms = (
            jnp.concatenate(pair, 1) for pair in ((outs, drawn), (u, n), (u_terms, n_terms))
        )
        new = {
            "in": descend_rows(params["in"], ins, v, v_terms, rate),
            "out": descend_rows(params["out"], at, grads, terms, rate),
        }
        return new, value / u_terms.sum()

    def step(state, batch, key):
        k1, k2 = jax.random.split(key)
        reach = over_batch(jax.random.randint(k1, (batch_size, length, 1), 1, window + 1))
        drawn = jnp.searchsorted(unigram, over_batch(jax.random.uniform(k2, (batch_size, shared))))
        rate = lr * jnp.maximum(1 - state.step / num_steps, 1e-4)
        parts = [
            x.reshape(at_once, -1, *x.shape[1:]).swapaxes(0, 1)
            for x in (batch["words"], reach, drawn)
        ]
        params, losses = jax.lax.scan(
            lambda params, part: move(params, *part, rate), state.params, parts
        )
        # Tables that are split at rest would be gathered in every turn of the loop.
        return state.replace(params=gathered(params)), {"loss": losses.mean(), "lr": rate}

    def vectors(state):
        return state.params["in"]

    return Experiment(
        init=init,
        step=step,
        data=text,
        num_steps=num_steps,
        files={"tokenizer.json": tokenizer.to_str()},
        evals={
            "nearest": nearest_words(vectors, names),
            **word_tests(vectors, names, wordsim, simlex, questions),
        },
    )


if __name__ == "__main__":
    main(word2vec)
