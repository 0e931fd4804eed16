"""A recurrent language model (Zaremba et al., 2014, https://arxiv.org/abs/1409.2329).

Trained by truncated backpropagation through time, the state carried on from step to step.

    launch/local.sh experiments/lstm.py                      # Python's manual: minutes on a CPU
    launch/local.sh experiments/lstm.py --data PATH/ptb      # Penn Treebank (ptb.train.txt, ...)
    launch/local.sh experiments/lstm.py --data PATH/ptb --length 35 --epochs 39 --flat-epochs 6 \\
        --decay 0.833 --rnn.width 650 --rnn.scale 0.05 --rnn.dropout 0.5          # "medium"
    launch/local.sh experiments/lstm.py --rnn.cell tanh      # gradients vanish sooner, ...
    launch/local.sh experiments/lstm.py --rnn.forget-bias 1  # ... and later: figures/*lags.png

On the test text of Penn Treebank, TensorFlow's tutorial of the paper has a perplexity of 115.91
for "small" (the defaults here) and 82.07 for "medium"; table 1 of the paper has 114.5 for the
non-regularised LSTM and 82.7 for the medium one.

Learning rates by cell were chosen on text held out of the training text (--data
python:validation, one seed; its unigram perplexity is 149). Perplexity by learning rate:

    lstm   1: 73.1, 0.3: 76.4
    gru    1: 91.2, 0.3: 67.2, 0.1: 103.5, 0.03: 143.6
    tanh   1: 152.6, 0.3: 109.3, 0.1: 89.8, 0.03: 126.5, 0.01: 150.3
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.token_feeds import Streams, tokenized
from ssljax.evals.recurrent import (
    recurrent_gradients,
    recurrent_perplexity,
    recurrent_sample,
)
from ssljax.models.rnn import generate, nats, RNN, RNNLanguageModel
from ssljax.optim import clipped, scheduled
from ssljax.ranges import checked, Count, CountOrZero, NotNegative, Positive, PositiveFraction

RATES = {"lstm": 1.0, "gru": 0.3, "tanh": 0.1}  # The best of those in the docstring above.


@checked
def lstm(
    data: str = "python",
    tokens: Literal["words", "characters", "bpe"] = "words",
    vocabulary: Count = 10_000,
    rnn: RNN = RNN(scale=0.1),
    tied: bool = False,
    batch_size: Count = 20,
    length: Count = 20,
    epochs: Count = 13,
    lr: NotNegative | None = None,
    flat_epochs: CountOrZero = 4,
    decay: PositiveFraction = 0.5,
    clip: Positive = 5.0,
) -> Experiment:
    """A recurrent net predicts each word from the words before it.

    Args:
        data: python (its manual, embedded), a text file, a folder of them, or X of X.train.txt,
            X.valid.txt and X.test.txt.
        tokens: Words between spaces, characters, or byte pairs (bpe).
        vocabulary: Most words, or number of tokens of bpe.
        rnn: The recurrent layers.
        tied: Use one table of vectors for input words and output words.
        batch_size: Streams that the text is read in at once.
        length: Tokens of each stream in a step, over which gradients are backpropagated.
        epochs: Passes through the training text.
        lr: Learning rate of plain gradient descent; None for RATES of the cell.
        flat_epochs: Epochs before the learning rate decays.
        decay: Factor of the learning rate for each epoch after these.
        clip: Largest norm of the gradient of the loss in nats, summed over time, of a stream.
    """
    read = tokenized(data, tokens, vocabulary)
    streams = Streams(read.train, batch_size, length)
    net = RNNLanguageModel(read.size, rnn, tied)
    peak = RATES[rnn.cell] if lr is None else lr

    def rate(step):
        return peak * decay ** jnp.maximum(step // streams.steps + 1 - flat_epochs, 0)

    tx = clipped(clip, scheduled(optax.sgd(rate), rate))

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["tokens"]), carry=rnn.zeros(batch_size))

    def loss(params, state, batch, key):
        first = batch["first"][:, None]
        carry = jax.tree.map(lambda c: jnp.where(first, 0, c), state.extra["carry"])
        nll, _, carry = nats(net, params, batch["tokens"], carry, key)
        value = nll.sum(1).mean()  # Summed over time, as in the paper's code.
        return value, ({"carry": carry}, {"loss": value / length})

    def sample(state, key, n, prompt, tokens=400):
        given = jnp.broadcast_to(prompt, (n, len(prompt)))
        return jnp.concatenate([given, generate(net, state.params, key, given, tokens)], 1)

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=streams,
        num_steps=epochs * streams.steps,
        sample=sample,
        evals={
            "test": recurrent_perplexity(net, read),
            "gradient": recurrent_gradients(net, read.test),
            "text": recurrent_sample(net, read.train[0], read.tokenizer.decode),
        },
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(lstm)
