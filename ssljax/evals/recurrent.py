"""Recurrent language models: perplexity of a whole text with the state carried through, a sample,
and how far back the gradient reaches."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.data.token_feeds import Tokenized
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import gathered, put, Tree
from ssljax.evals.lag import gradient_by_lag
from ssljax.evals.perplexity import BETTER, FLOORS, perplexity_numbers
from ssljax.models.rnn import CELLS, generate, nats, RNNLanguageModel


def recurrent_perplexity(net: RNNLanguageModel, text: Tokenized, length: int = 500) -> Evaluator:
    """The numbers of `perplexity_numbers` for `text.test`, read once from first to last.

    `length` tokens are read at a time. InputError for less than two tokens.
    """
    numbers, n = perplexity_numbers(text), len(text.test) - 1
    length = min(length, n)
    padded = np.pad(text.test, (0, -n % length))
    run = gathered(lambda params, tokens, carry: nats(net, params, tokens, carry)[::2])

    def evaluate(state: Tree) -> Mapping[str, float]:
        total, carry = 0.0, jax.tree.map(put, jax.device_get(net.rnn.zeros(1)))
        for at in range(0, n, length):
            signals.check()
            found, carry = run(state.params, put(padded[None, at : at + length + 1]), carry)
            total += float(np.asarray(found, np.float64)[0, : n - at].sum())
        return numbers(total)

    def trace(state: Tree) -> None:
        tokens = jax.ShapeDtypeStruct((1, length + 1), padded.dtype)
        jax.eval_shape(run, state.params, tokens, net.rnn.zeros(1))

    return Evaluator(evaluate, better=BETTER, floors=FLOORS, trace=trace, queries=text)


def recurrent_sample(
    net: RNNLanguageModel,
    first: int,
    decode: Callable[[list[int]], str],
    n: int = 200,
    seed: int = 0,
) -> Evaluator:
    """`sample`: a text of `n` tokens, sampled one after the other from token `first` on."""

    @gathered
    def draw(params):
        prompt = jnp.array([[first]], jnp.int32)
        return generate(net, params, jax.random.key(seed), prompt, n)[0]

    return Evaluator(
        lambda state: {"sample": decode(np.asarray(draw(state.params)).tolist())},
        pictures=True,
        captions={"sample": f"{n} tokens, drawn with the same noise at each step."},
        trace=lambda state: jax.eval_shape(draw, state.params),
    )


def recurrent_gradients(
    net: RNNLanguageModel, test: np.ndarray, times: int = 64, n: int = 16
) -> Evaluator:
    """`gradient_by_lag` of the net as trained, and of untrained nets of each cell.

    Measured on `n` stretches of `test`, of `times` tokens, or fewer where the text is shorter.
    InputError for less than 4 tokens.
    """
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

    nets = {"trained": of(net, lambda state: state.params)}
    nets |= {f"{c}_untrained": untrained(c) for c in CELLS}
    return gradient_by_lag(nets, np.stack([test[at], test[at + 1]], axis=-1))
