"""A recurrent language model (Zaremba et al., 2014, https://arxiv.org/abs/1409.2329), by truncated backpropagation.

    launch/local.sh experiments/lstm.py                           # the manual of Python: some minutes on a laptop CPU
    launch/local.sh experiments/lstm.py --data PATH/ptb           # Penn Treebank (PATH/ptb.train.txt, ...): "small"
    launch/local.sh experiments/lstm.py --data PATH/ptb --length 35 --epochs 39 --flat-epochs 6 --decay 0.833 \\
        --rnn.width 650 --rnn.scale 0.05 --rnn.dropout 0.5                                             # its "medium"
    launch/local.sh experiments/lstm.py --rnn.cell tanh           # its gradients vanish sooner, ...
    launch/local.sh experiments/lstm.py --rnn.forget-bias 1       # ... and these later: see figures/*lags.png

On the test text of Penn Treebank, TensorFlow's tutorial of the paper has a perplexity of 115.91 for "small" and 82.07
for "medium"; the paper, in table 1, 114.5 for the non-regularised LSTM, and 82.7 for the medium one.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.token_feeds import Streams, tokenized
from ssljax.evals.recurrent import gradients, perplexity, sample
from ssljax.models.rnn import nats, RNN, RNNLanguageModel


def lstm(
    data: str = "python",
    tokens: Literal["words", "characters", "bpe"] = "words",
    vocabulary: int = 10_000,
    rnn: RNN = RNN(scale=0.1),
    tied: bool = False,
    batch_size: int = 20,
    length: int = 20,
    epochs: int = 13,
    lr: float = 1.0,
    flat_epochs: int = 4,
    decay: float = 0.5,
    clip: float = 5.0,
) -> Experiment:
    """Words from those before them, with a state that is carried on from step to step.

    Args:
        data: python (embedded: its manual), a text file, a folder of them, or X of X.train.txt, X.test.txt.
        vocabulary: Words at most, or symbols of byte-pair encoding.
        tied: A word has the same vector going in and coming out.
        batch_size: Streams that the text is read in.
        length: Tokens a step of each stream, and how far gradients go back.
        flat_epochs: Those with the whole learning rate; `decay` multiplies it for each epoch after them.
        clip: The greatest norm of the gradient of the loss, in nats summed over time, a stream.
    """
    read = tokenized(data, tokens, vocabulary)
    streams = Streams(read.train, batch_size, length)
    net = RNNLanguageModel(read.size, rnn, tied)
    rate = lambda step: lr * decay ** jnp.maximum(step // streams.steps + 1 - flat_epochs, 0)
    tx = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate))

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["tokens"]), carry=rnn.zeros(batch_size))

    def loss(params, state, batch, key):
        carry = jax.tree.map(
            lambda c: jnp.where(batch["first"][:, None], 0, c), state.extra["carry"]
        )
        nll, _, carry = nats(net, params, batch["tokens"], carry, key)
        value = nll.sum(
            1
        ).mean()  # The sum over time and the mean over streams, as the paper's code has it.
        return value, ({"carry": carry}, {"loss": value / length})

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=streams,
        num_steps=epochs * streams.steps,
        evals={
            "test": perplexity(net, read),
            "gradient": gradients(net, read.test),
            "text": sample(net, read.train[0], read.tokenizer.decode),
        },
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(lstm)
