"""What a recurrent language model knows: its perplexity over a whole text, with the state carried through, a text that
it writes, and how far back its gradient reaches."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.data.token_feeds import Tokenized
from ssljax.errors import InputError
from ssljax.evals.features import gathered, put, Tree
from ssljax.evals.lag import gradient_by_lag
from ssljax.evals.perplexity import told
from ssljax.models.rnn import CELLS, nats, RNNLanguageModel


def perplexity(
    net: RNNLanguageModel, text: Tokenized, length: int = 500
) -> Callable[[Tree], Mapping[str, float]]:
    """The perplexity of `text.test`, read once from first to last, `length` at a time, and what else
    `evals.perplexity.told` makes of it; InputError if there are fewer than two tokens.
    """
    tell, n = told(text), len(text.test) - 1
    length = min(length, n)
    padded = np.pad(text.test, (0, -n % length))
    run = gathered(lambda params, tokens, carry: nats(net, params, tokens, carry)[::2])

    def evaluate(state: Tree) -> Mapping[str, float]:
        total, carry = 0.0, jax.tree.map(put, jax.device_get(net.rnn.zeros(1)))
        for at in range(0, n, length):
            found, carry = run(state.params, put(padded[None, at : at + length + 1]), carry)
            total += float(np.asarray(found, np.float64)[0, : n - at].sum())
        return tell(total)

    return evaluate


def sample(
    net: RNNLanguageModel,
    first: int,
    decode: Callable[[list[int]], str],
    n: int = 200,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, str]]:
    """`sample`: `n` tokens drawn one after the other, the first of them after `first`, as `decode` writes them."""

    @gathered
    def draw(params):
        def step(carried, key):
            token, carry = carried
            h, carry, _ = net.apply(params, token[:, None], carry)
            token = jax.random.categorical(key, net.apply(params, h[:, 0], method="logits"))
            return (token, carry), token[0]

        start = jnp.array([first], jnp.int32), net.rnn.zeros(1)
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(seed), n))[1]

    return lambda state: {"sample": decode(np.asarray(draw(state.params)).tolist())}


def gradients(
    net: RNNLanguageModel, test: np.ndarray, times: int = 64, n: int = 16
) -> Callable[[Tree], Mapping[str, Any]]:
    """`gradient_by_lag` of the net as it is trained, and of one of each cell as it begins, on `n` stretches of
    `test`."""
    times = min(times, len(test) - 1)
    if times < 3:
        raise InputError(
            f"A text of {len(test)} tokens has no stretches to look at: 4 or more are needed."
        )
    at = np.linspace(0, len(test) - times - 1, n).astype(int) + np.arange(times)[:, None]

    def of(net, params):
        def advance(params, carry, tokens):
            found, _, carry = nats(net, params, tokens, carry)
            return carry, found[:, 0]

        return params, advance, net.rnn.zeros(n)

    def untrained(cell):
        other = net.clone(rnn=replace(net.rnn, cell=cell))
        return of(other, lambda state: other.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))

    nets = {"trained": of(net, lambda state: state.params)} | {
        f"{c}_untrained": untrained(c) for c in CELLS
    }
    return gradient_by_lag(nets, np.stack([test[at], test[at + 1]], axis=-1))
