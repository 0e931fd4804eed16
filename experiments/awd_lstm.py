"""A well-regularised LSTM (AWD-LSTM, Merity et al., 2017, https://arxiv.org/abs/1708.02182).

    launch/local.sh experiments/awd_lstm.py                  # Python's manual: minutes on a CPU
    launch/local.sh experiments/awd_lstm.py --data PATH/ptb --rnn.width 300 --rnn.dropout 0.3 \\
        --rnn.weight-dropout 0.2 --epochs 8                  # Penn Treebank: 98.7 in an hour
    launch/local.sh experiments/awd_lstm.py --data PATH/ptb --rnn.width 650 \\
        --epochs 40                                          # a net for a GPU

From the paper: tied words, dropout of the same units at all times, of words and of recurrent
weights, and the two penalties on the outputs of the last layer. Deviations: AdamW with a cosine
instead of averaged SGD, all layers of one width, and steps of one length.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.token_feeds import Streams, tokenized
from ssljax.evals.recurrent import (
    recurrent_gradients,
    recurrent_perplexity,
    recurrent_sample,
)
from ssljax.models.rnn import generate, nats, RNN, RNNLanguageModel
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive


@checked
def awd_lstm(
    data: str = "python",
    tokens: Literal["words", "characters", "bpe"] = "words",
    vocabulary: Count = 10_000,
    rnn: RNN = RNN(dropout=0.4, variational=True, weight_dropout=0.3, forget_bias=1.0),
    word_dropout: FractionBelowOne = 0.1,
    activation: NotNegative = 2.0,
    slowness: NotNegative = 1.0,
    batch_size: Count = 20,
    length: Count = 35,
    epochs: Count = 20,
    lr: Positive = 3e-3,
    weight_decay: NotNegative = 0.01,
    clip: Positive = 1.0,
) -> Experiment:
    """A recurrent net predicts the next word, with all that keeps it from overfitting a small text.

    Args:
        data: python (its manual, embedded), a text file, a folder of them, or X of X.train.txt,
            X.valid.txt and X.test.txt.
        tokens: Words between spaces, characters, or byte pairs (bpe).
        vocabulary: Most words, or number of tokens of bpe.
        rnn: The recurrent layers.
        word_dropout: Fraction of the vocabulary whose vectors are zero in a step.
        activation: Weight of the mean square of the last layer's outputs after dropout (AR, alpha
            in the paper).
        slowness: Weight of the mean square of their change in time, before dropout (TAR, beta in
            the paper).
        batch_size: Streams that the text is read in at once.
        length: Tokens of each stream in a step, over which gradients are backpropagated.
        epochs: Passes through the training text.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
        clip: Largest norm of the gradient of the loss, in nats a token.
    """
    read = tokenized(data, tokens, vocabulary)
    streams = Streams(read.train, batch_size, length)
    net = RNNLanguageModel(read.size, rnn, tied=True, word_dropout=word_dropout)
    steps = epochs * streams.steps
    tx = clipped(clip, adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["tokens"]), carry=rnn.zeros(batch_size))

    def loss(params, state, batch, key):
        first = batch["first"][:, None]
        carry = jax.tree.map(lambda c: jnp.where(first, 0, c), state.extra["carry"])
        nll, (dropped, h), carry = nats(net, params, batch["tokens"], carry, key)
        change = jnp.mean((h[:, 1:] - h[:, :-1]) ** 2)
        penalty = activation * jnp.mean(dropped**2) + slowness * change
        return nll.mean() + penalty, ({"carry": carry}, {"loss": nll.mean(), "penalty": penalty})

    def sample(state, key, n, prompt, tokens=400):
        given = jnp.broadcast_to(prompt, (n, len(prompt)))
        return jnp.concatenate([given, generate(net, state.params, key, given, tokens)], 1)

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=streams,
        num_steps=steps,
        sample=sample,
        evals={
            "test": recurrent_perplexity(net, read),
            "gradient": recurrent_gradients(net, read.test),
            "text": recurrent_sample(net, read.train[0], read.tokenizer.decode),
        },
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(awd_lstm)
