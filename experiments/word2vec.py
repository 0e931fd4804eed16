"""word2vec (Mikolov et al., 2013, https://arxiv.org/abs/1310.4546): vectors of words that tell their neighbours.

launch/local.sh experiments/word2vec.py                                # Python's manual: seconds on a laptop CPU
launch/local.sh experiments/word2vec.py --data brown.txt,gutenberg.txt --epochs 5      # any text files
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import Experiment, InputError, main, TrainState
from ssljax.data.words import WordBlocks, vocabulary
from ssljax.evals.words import nearest_words, word_tests
from ssljax.losses.words import cbow_loss, skip_gram_loss, term_counts
from ssljax.optim import descend_rows
from ssljax.sharding import over_batch


def word2vec(
    data: str = "python",
    model: Literal["skip-gram", "cbow"] = "skip-gram",
    width: int = 100,
    window: int = 5,
    negatives: int = 5,
    sample: float = 1e-3,
    min_count: int = 5,
    epochs: int = 20,
    lr: float = 0.05,
    batch_size: int = 256,
    length: int = 32,
    shared: int = 32,
    at_once: int = 16,
    wordsim: str = "",
    simlex: str = "",
    questions: str = "",
) -> Experiment:
    """word2vec: skip-gram or a continuous bag of words, with negative sampling and subsampling.

    Args:
        data: python (embedded), text files with commas between them, a folder of .txt files, or a TFDS text set.
        window: Neighbours on either side, of which each word takes 1 to this many, drawn anew each time.
        negatives: Words drawn at random for each pair, k in the paper.
        sample: Words of a higher frequency are left out by chance, t in the paper; 0 for none.
        lr: Falls linearly to nothing; 0.25 suits cbow. Gradient descent by sums over pairs (descend_rows).
        batch_size: Blocks of text in a step, each of `length` words.
        shared: Negatives drawn for a block, which its pairs share.
        at_once: Blocks of a step whose gradients are summed before the vectors move.
        wordsim: WordSim-353; it, SimLex-999 and questions-words.txt are looked for where TFDS has its data.
    """
    if at_once < 1 or batch_size % at_once:
        raise InputError(f"--at-once {at_once} must divide --batch-size {batch_size}.")
    tokenizer, tokens, count, names = vocabulary(data, min_count)
    unigram = jnp.asarray(np.cumsum(count**0.75) / np.sum(count**0.75), jnp.float32)
    text = WordBlocks(tokens, count, batch_size, length, window, sample)
    num_steps = epochs * text.steps
    here, there = jnp.arange(length)[:, None] + window, jnp.arange(length + 2 * window)

    def init(key, batch):
        vectors = jax.random.uniform(
            key, (len(count), width), minval=-0.5 / width, maxval=0.5 / width
        )
        return TrainState(
            jnp.zeros((), jnp.int32), {"in": vectors, "out": jnp.zeros_like(vectors)}, (), {}
        )

    def step(state, batch, key):
        k1, k2 = jax.random.split(key)
        reach = over_batch(jax.random.randint(k1, (batch_size, length, 1), 1, window + 1))
        drawn = jnp.searchsorted(unigram, over_batch(jax.random.uniform(k2, (batch_size, shared))))
        rate = lr * jnp.maximum(1 - state.step / num_steps, 1e-4)

        def move(params, part):
            text, reach, drawn = part
            near, middle = (
                (jnp.abs(here - there) <= reach) & (here != there),
                text[:, window:-window],
            )
            ins, outs, loss = (
                (middle, text, skip_gram_loss)
                if model == "skip-gram"
                else (text, middle, cbow_loss)
            )
            rows = params["in"][ins], params["out"][outs], params["out"][drawn]
            value, (v, u, n) = jax.value_and_grad(
                lambda rows: loss(rows[0], rows[1], near, rows[2], negatives)
            )(rows)
            vs, us, ns = term_counts(loss, near, shared, negatives)
            both = lambda a, b: jnp.concatenate(
                [a, b], 1
            )  # One sum into a table: for two, XLA copies it.
            return {
                "in": descend_rows(params["in"], ins, v, vs, rate),
                "out": descend_rows(
                    params["out"], both(outs, drawn), both(u, n), both(us, ns), rate
                ),
            }, value / us.sum()

        parts = [
            x.reshape(at_once, -1, *x.shape[1:]).swapaxes(0, 1)
            for x in (batch["words"], reach, drawn)
        ]
        params, losses = jax.lax.scan(move, state.params, parts)
        return state.replace(params=params), {"loss": losses.mean()}

    vectors = lambda state: state.params["in"]
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
