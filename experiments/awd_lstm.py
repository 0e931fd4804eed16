"""A well-regularised LSTM (AWD-LSTM, Merity et al., 2017, https://arxiv.org/abs/1708.02182), by AdamW.

    launch/local.sh experiments/awd_lstm.py                       # the manual of Python: some minutes on a laptop CPU
    launch/local.sh experiments/awd_lstm.py --data PATH/ptb --rnn.width 300 --rnn.dropout 0.3 \\
        --rnn.weight-dropout 0.2 --epochs 8                       # Penn Treebank: the ledger's 98.7 in an hour of a core
    launch/local.sh experiments/awd_lstm.py --data PATH/ptb --rnn.width 650 --epochs 40       # a net for a GPU

Of the paper: tied words, the same units dropped at all times, dropped words and recurrent weights, and the two
penalties on what the last layer tells. Not of it: AdamW with a cosine instead of averaged SGD, all layers of one width,
and steps of one length.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.token_feeds import Streams, tokenized
from ssljax.evals.recurrent import gradients, perplexity, sample
from ssljax.models.rnn import nats, RNN, RNNLanguageModel
from ssljax.optim import adamw, warmup_cosine


def awd_lstm(
    data: str = "python",
    tokens: Literal["words", "characters", "bpe"] = "words",
    vocabulary: int = 10_000,
    rnn: RNN = RNN(dropout=0.4, variational=True, weight_dropout=0.3, forget_bias=1.0),
    word_dropout: float = 0.1,
    activation: float = 2.0,
    slowness: float = 1.0,
    batch_size: int = 20,
    length: int = 35,
    epochs: int = 20,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> Experiment:
    """Words from those before them, with what keeps a recurrent net from learning a small text by heart.

    Args:
        data: python (embedded: its manual), a text file, a folder of them, or X of X.train.txt, X.test.txt.
        vocabulary: Words at most, or symbols of byte-pair encoding.
        word_dropout: Share of the vocabulary's words that a step doesn't see.
        activation: Weight of the mean square of the last layer's outputs, as dropped: AR, alpha in the paper.
        slowness: Weight of the mean square of their change in time, before that dropout: TAR, beta in the paper.
        batch_size: Streams that the text is read in.
        length: Tokens a step of each stream, and how far gradients go back.
        lr: Its peak, after a warm-up over a tenth of training.
        clip: The greatest norm of the gradient of the loss, in nats a token.
    """
    read = tokenized(data, tokens, vocabulary)
    streams = Streams(read.train, batch_size, length)
    net, steps = (
        RNNLanguageModel(read.size, rnn, tied=True, word_dropout=word_dropout),
        epochs * streams.steps,
    )
    tx = optax.chain(optax.clip_by_global_norm(clip), adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["tokens"]), carry=rnn.zeros(batch_size))

    def loss(params, state, batch, key):
        carry = jax.tree.map(
            lambda c: jnp.where(batch["first"][:, None], 0, c), state.extra["carry"]
        )
        nll, (h, whole), carry = nats(net, params, batch["tokens"], carry, key)
        penalty = activation * jnp.mean(h**2) + slowness * jnp.mean(
            (whole[:, 1:] - whole[:, :-1]) ** 2
        )
        return nll.mean() + penalty, ({"carry": carry}, {"loss": nll.mean(), "penalty": penalty})

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=streams,
        num_steps=steps,
        evals={
            "test": perplexity(net, read),
            "gradient": gradients(net, read.test),
            "text": sample(net, read.train[0], read.tokenizer.decode),
        },
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(awd_lstm)
