"""Recurrent layers against their equations in float64 NumPy and PyTorch's outputs.

Also a language model's perplexity, counted by hand, and the steps of the experiments.
"""

from functools import partial
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from experiments.awd_lstm import awd_lstm
from experiments.lstm import lstm as lstm_experiment
from experiments.lstm import RATES
from ssljax import sharding
from ssljax.data.token_feeds import Tokenized
from ssljax.errors import InputError
from ssljax.evals.lag import gradient_by_lag
from ssljax.evals.recurrent import (
    recurrent_gradients,
    recurrent_perplexity,
    recurrent_sample,
)
from ssljax.experiment import TrainState
from ssljax.models.rnn import CELLS, lstm, nats, recur, RNN, RNNLanguageModel
from ssljax.plan.hlo import collectives, parse
from tests.losses.test_softmax import naive_cross_entropy
from tests.test_data import batches, mesh_of

sigmoid = lambda x: 1 / (1 + np.exp(-x))


def naive(cell, p, x, carry, layers):
    """Outputs and each layer's carry for x (batch, time, d), one step and one gate at a time."""
    w, new = {k: np.asarray(v, np.float64) for k, v in p.items()}, []
    for layer in range(layers):
        state, outputs = [np.asarray(c, np.float64) for c in carry[layer]], []
        gates = {"lstm": 4, "gru": 3, "tanh": 1}[cell]
        wx, wh, b = (
            np.split(w[f"{name}{layer}"], gates, axis=-1) for name in ("input", "recurrent", "bias")
        )
        for t in range(x.shape[1]):
            h = state[-1]
            a = [x[:, t] @ wx[j] + b[j] for j in range(gates)]
            if cell == "lstm":
                i, f, g, o = (a[j] + h @ wh[j] for j in range(4))
                c = sigmoid(f) * state[0] + sigmoid(i) * np.tanh(g)
                state = [c, sigmoid(o) * np.tanh(c)]
            elif cell == "gru":  # The candidate's input first; torch's equations, with r, z, n.
                r, z = sigmoid(a[1] + h @ wh[0]), sigmoid(a[2] + h @ wh[1])
                n = np.tanh(a[0] + r * (h @ wh[2] + w[f"inner_bias{layer}"]))
                state = [(1 - z) * n + z * h]
            else:
                state = [np.tanh(a[0] + h @ wh[0])]
            outputs.append(state[-1])
        x = np.stack(outputs, 1)
        new.append(tuple(state))
    return x, tuple(new)


def make(cell, **kw):
    net = RNN(cell, width=5, layers=2, **kw)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
    carry = jax.tree.map(lambda c: jnp.asarray(rng.normal(size=c.shape), jnp.float32), net.zeros(3))
    return net, net.init(jax.random.key(1), x), x, carry


@pytest.mark.parametrize("cell", CELLS)
class TestCell:
    def test_matches_equations(self, cell):
        net, params, x, carry = make(cell)
        y, new, _ = net.apply(params, x, carry)
        expected, last = naive(cell, params["params"], np.asarray(x, np.float64), carry, 2)
        np.testing.assert_allclose(y, expected, atol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new, last)

    def test_carried_state(self, cell):
        net, params, x, _ = make(cell)
        whole, last, _ = net.apply(params, x)
        first, carry, _ = net.apply(params, x[:, :2])
        second, carry, _ = net.apply(params, x[:, 2:], carry)
        np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, last)

    def test_gradients_match_finite_differences(self, cell):
        net, params, x, carry = make(cell)
        v = np.random.default_rng(1).normal(size=(3, 6, 5))

        def value(p, c):
            y, last, _ = net.apply({"params": p}, x, c)
            return jnp.sum(y * v) + sum(jnp.sum(c**2) for c in jax.tree.leaves(last))

        def oracle(p, c):
            y, last = naive(cell, p, np.asarray(x, np.float64), c, 2)
            return np.sum(y * v) + sum(np.sum(c**2) for c in jax.tree.leaves(last))

        p = params["params"]
        of_params, of_carry = jax.grad(value, (0, 1))(p, carry)
        rng, as64 = (
            np.random.default_rng(2),
            lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree),
        )
        for name, grad in of_params.items():
            way = rng.normal(size=grad.shape)
            up, down = (
                oracle({**as64(p), name: as64(p)[name] + s * 1e-5 * way}, carry) for s in (1, -1)
            )
            np.testing.assert_allclose(
                np.sum(grad * way), (up - down) / 2e-5, rtol=2e-4, atol=2e-4, err_msg=name
            )
        ways = jax.tree.map(lambda c: rng.normal(size=c.shape), carry)
        up, down = (
            oracle(
                as64(p),
                jax.tree.map(lambda c, w: np.asarray(c, np.float64) + s * 1e-5 * w, carry, ways),
            )
            for s in (1, -1)
        )
        product = sum(jax.tree.leaves(jax.tree.map(lambda g, w: np.sum(g * w), of_carry, ways)))
        np.testing.assert_allclose(product, (up - down) / 2e-5, rtol=2e-4, atol=2e-4)


# Outputs of torch 2.13.0's nn.LSTM(2, 3, num_layers=2) and nn.GRU, in float64, at x[i] = cos(i) in
# memory order, shape (1, 4, 2), where parameter k of `named_parameters` (w_ih, w_hh, b_ih and b_hh
# of each layer) is sin(0.7 i + k).
TORCH = {
    "lstm": [
        [-0.153568, -0.518293, -0.121102],
        [-0.39197, -0.473788, 0.023436],
        [-0.50606, -0.495979, -0.02927],
        [-0.521519, -0.47813, 0.104358],
    ],
    "gru": [
        [-0.432121, -0.393198, 0.113069],
        [-0.744735, -0.499645, 0.146466],
        [-0.840312, -0.655529, 0.088968],
        [-0.83572, -0.887768, -0.018854],
    ],
}
TORCH_C = [
    [0.93922, 0.391222, 0.048406],
    [-1.499305, -0.960952, 0.111941],
]  # What the LSTM's layers carry at the end.


@pytest.mark.parametrize("cell", TORCH)
def test_outputs_match_torch(cell):
    net, gates, params = RNN(cell, width=3, layers=2), {"lstm": 4, "gru": 3}[cell], {}
    x = jnp.cos(jnp.arange(8.0)).reshape(1, 4, 2)
    wave = lambda k, *shape: np.sin(0.7 * np.arange(math.prod(shape)) + k).reshape(shape)
    for layer in range(2):
        shapes = [(3 if layer else 2,), (3,), (), ()]
        w, u, b, c = (wave(4 * layer + k, 3 * gates, *d) for k, d in enumerate(shapes))
        # Torch's order is r, z, n: here n comes first for the inputs, and its bias within r is a
        # parameter of its own.
        if cell == "gru":
            w, b, inner = (
                np.roll(w, 3, axis=0),
                np.roll(b + np.where(np.arange(9) < 6, c, 0), 3),
                c[6:],
            )
            params[f"inner_bias{layer}"], c = inner, 0
        params |= {f"input{layer}": w.T, f"recurrent{layer}": u.T, f"bias{layer}": b + c}
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        jnp.shape, net.init(jax.random.key(0), x)["params"]
    )
    y, last, _ = net.apply(
        {"params": jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)}, x
    )
    np.testing.assert_allclose(y[0], TORCH[cell], atol=2e-6)
    if cell == "lstm":
        np.testing.assert_allclose([c[0] for c, _ in last], TORCH_C, atol=3e-6)


def test_gradient_of_a_masked_recurrence_matches_a_plain_scan():
    rng = np.random.default_rng(0)
    x, u, h, mask = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 3, 8), (2, 8), (3, 2), (3, 2))
    )

    def plain(x, u, carry):
        def step(carry, x):
            carry = lstm(carry, x + (carry[-1] * mask) @ u)
            return carry, carry[-1]

        return jax.lax.scan(step, carry, x)

    value = lambda f: lambda *a: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(*a)))
    mine, theirs = (
        jax.value_and_grad(value(f), (0, 1, 2))(x, u, (h, h + 1))
        for f in (lambda x, u, c: recur(lstm, x, u, c, mask), plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine, theirs)


def test_devices_exchange_nothing_within_the_loop():
    """Where the weights and the carry are split by width at rest, as by fsdp, also when dropped."""
    mesh, time = mesh_of(2, 4), 40
    net = RNN(width=16, layers=2, weight_dropout=0.3)
    x = jax.random.normal(jax.random.key(0), (16, time, 8))
    params = net.init(jax.random.key(1), x)
    carry = jax.tree.map(lambda c: c + 0.1, net.zeros(16))

    def loss(params, carry, x):
        h, carry, _ = net.apply(params, x, carry, jax.random.key(2))
        return jnp.mean(h**2), carry

    both = jax.value_and_grad(loss, has_aux=True)
    want = jax.jit(both)(params, carry, x)
    split, along = P(None, "fsdp"), jax.NamedSharding(mesh, sharding.BATCH)
    of = lambda a: jax.NamedSharding(mesh, split if a.ndim == 2 else P("fsdp"))
    placed = jax.device_put((params, carry), jax.tree.map(of, (params, carry)))
    with jax.set_mesh(mesh):
        every = sharding.replicated(mesh)
        step = lambda params, carry, x: both(
            jax.lax.with_sharding_constraint(params, every), carry, x
        )
        out = ((None, jax.tree.map(of, carry)), jax.tree.map(of, params))
        step = jax.jit(step, out_shardings=out)
        compiled = step.lower(*placed, jax.device_put(x, along)).compile()
        found = compiled(*placed, jax.device_put(x, along))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want)
    for c in collectives(parse(compiled.as_text()), 8, 8):
        assert c.arrays < time, f"{c.kind} at each time, of {c.line}"


def test_forget_bias():
    x = jnp.ones((1, 2, 3))
    plain, raised = (
        RNN("lstm", 4, 1, forget_bias=f).init(jax.random.key(0), x)["params"]["bias0"]
        for f in (0.0, 1.0)
    )
    np.testing.assert_allclose(
        (raised - plain).reshape(4, 4), [[0] * 4, [1] * 4, [0] * 4, [0] * 4], atol=1e-6
    )


class TestDropout:
    def test_variational_dropout_drops_the_same_units_at_all_times(self):
        net, x = RNN("tanh", 50, 1, dropout=0.5), jnp.ones((8, 30, 3))
        params = net.init(jax.random.key(0), x)
        each = np.asarray(net.apply(params, x, None, jax.random.key(1))[0]) == 0
        same = (
            np.asarray(net.clone(variational=True).apply(params, x, None, jax.random.key(1))[0])
            == 0
        )
        assert (same == same[:, :1]).all() and not (each == each[:, :1]).all()
        assert not (same == same[:1]).all()  # Others in other examples.
        for dropped in (each, same):
            assert abs(dropped.mean() - 0.5) < 0.1
        assert (np.asarray(net.apply(params, x)[0]) != 0).all()  # Without a key there is none.

    def test_dropout_keeps_the_mean(self):
        net = RNN(dropout=0.3)
        x = net.drop(jax.random.key(0), jnp.ones((100, 10, 100)))
        np.testing.assert_allclose(
            sorted(set(np.asarray(x).ravel().tolist())), [0, 1 / 0.7], rtol=1e-6
        )
        np.testing.assert_allclose(x.mean(), 1, atol=0.01)

    @pytest.mark.parametrize("kind", ("recurrent_dropout", "weight_dropout"))
    def test_recurrent_dropout_leaves_the_first_step_unchanged(self, kind):
        net, params, x, _ = make("lstm")
        net = RNN("lstm", width=5, layers=1, **{kind: 0.5})
        plain = net.apply(params, x)[0]
        dropped = net.apply(params, x, None, jax.random.key(3))[0]
        np.testing.assert_allclose(
            dropped[:, 0], plain[:, 0], atol=1e-6
        )  # The state before it is zeros.
        assert np.abs(dropped[:, 1:] - plain[:, 1:]).max() > 1e-3

    def test_outputs_before_dropout_are_returned(self):
        net, params, x, _ = make("lstm")
        net, key = net.clone(dropout=0.4), jax.random.key(3)
        h, carry, whole = net.apply(params, x, None, key)
        np.testing.assert_array_equal(whole[:, -1], carry[-1][-1])
        assert (np.asarray(whole) != 0).all() and 0.2 < np.mean(np.asarray(h) == 0) < 0.6
        np.testing.assert_allclose(h, jnp.where(h == 0, 0, whole / 0.6), rtol=1e-6)
        again, _, same = net.apply(params, x)
        np.testing.assert_array_equal(again, same)

    def test_word_dropout_zeroes_all_occurrences_of_a_word(self):
        """Its vector is zeros, the others are scaled; vectors without a gradient were dropped."""
        net = RNNLanguageModel(30, RNN("lstm", 6, 1), word_dropout=0.4)
        tokens, key = jax.random.randint(jax.random.key(0), (8, 40), 0, 30), jax.random.key(1)
        params = net.init(jax.random.key(2), tokens)
        assert len(np.unique(tokens)) == 30
        slope = jax.grad(lambda p: jnp.sum(net.apply(p, tokens, None, key)[0] ** 2))(params)[
            "params"
        ]["embedding"]
        stays = np.abs(slope).max(1, keepdims=True) > 0
        assert 0.4 < stays.mean() < 0.8
        other = {
            "params": {**params["params"], "embedding": params["params"]["embedding"] * stays / 0.6}
        }
        np.testing.assert_allclose(
            net.apply(params, tokens, None, key)[0], net.apply(other, tokens)[0], atol=1e-6
        )
        np.testing.assert_array_equal(
            net.apply(params, tokens)[0], net.clone(word_dropout=0.0).apply(params, tokens)[0]
        )

    def test_dropped_weights_have_no_gradient(self):
        net, params, x, _ = make("lstm", weight_dropout=0.5)
        g = jax.grad(lambda p: jnp.sum(net.apply(p, x, None, jax.random.key(3))[0] ** 2))(params)[
            "params"
        ]
        assert 0.3 < np.mean(np.asarray(g["recurrent0"]) == 0) < 0.7 and np.all(
            np.asarray(g["input0"]) != 0
        )


def model(cell="lstm", vocabulary=11, **kw):
    net = RNNLanguageModel(vocabulary, RNN(cell, width=6, layers=2, scale=0.7), **kw)
    return net, TrainState(
        jnp.zeros(()), net.init(jax.random.key(0), jnp.zeros((1, 1), int)), (), {}
    )


@pytest.mark.parametrize("tied", (False, True))
def test_perplexity(tied):
    net, state = model(tied=tied)
    rng = np.random.default_rng(0)
    train, test = rng.integers(11, size=200), rng.integers(11, size=47)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params["params"])
    h, _ = naive("lstm", p["rnn"], p["embedding"][test[None, :-1]], net.rnn.zeros(1), 2)
    read = Tokenized(None, train, test, 2 * len(test))
    nll = naive_cross_entropy(h[0], p["embedding"].T if tied else p["kernel"], p["bias"], test[1:])
    for length in (10, 46, 500):  # Each token counts once, whatever the pieces that it is read in.
        found = recurrent_perplexity(net, read, length)(state)
        np.testing.assert_allclose(found["perplexity"], np.exp(nll.mean()), rtol=1e-5)
    bits = nll.sum() / math.log(2) / (2 * len(test))
    np.testing.assert_allclose(found["bits_per_character"], bits, rtol=1e-5)
    counts = np.array([np.sum(train == i) + 1 for i in range(11)])
    np.testing.assert_allclose(
        found["unigram"], np.exp(np.mean([-math.log(counts[t] / 211) for t in test[1:]]))
    )
    with pytest.raises(InputError, match="2 or more"):
        recurrent_perplexity(net, read._replace(test=test[:1]))


def test_samples_follow_the_model():
    """Where each token can only be followed by the next number, that is what is drawn."""
    net = RNNLanguageModel(11, RNN("tanh", width=11, layers=1))
    params = net.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    eye = jnp.eye(11)
    params |= {"embedding": eye, "kernel": 1000 * jnp.roll(eye, 1, axis=1)}
    params["rnn"] = jax.tree.map(jnp.zeros_like, params["rnn"]) | {"input0": eye}
    state = TrainState(jnp.zeros(()), {"params": params}, (), {})
    drawn = recurrent_sample(net, 4, lambda tokens: " ".join(map(str, tokens)), n=15)(state)[
        "sample"
    ]
    assert drawn.split() == [str((5 + i) % 11) for i in range(15)]


@pytest.fixture
def file(tmp_path):
    """Eleven words in random order."""
    words = np.random.default_rng(0).choice(list("abcdefghijk"), 400)
    (tmp_path / "x.txt").write_text(" ".join(words))
    return str(tmp_path / "x.txt")


def started(exp):
    """Its state before training, and its first batches."""
    first = batches(exp.data, 0, 0, 3, mesh_of(1))
    return exp.init(jax.random.key(0), first[0]), first


class TestLSTM:
    def test_state_is_carried_across_steps(self, file):
        """Two steps have the loss of one of twice the length; a new stream starts from zeros."""
        exp = lstm_experiment(
            file, rnn=RNN(width=6, layers=2, scale=0.7), batch_size=3, length=5, lr=0.0
        )
        state, (a, b, c) = started(exp)
        net, step = RNNLanguageModel(12, RNN(width=6, layers=2, scale=0.7)), jax.jit(exp.step)
        nll = np.asarray(
            nats(net, state.params, jnp.concatenate([a["tokens"], b["tokens"][:, 1:]], axis=1))[0]
        )
        one, metrics = step(state, a, jax.random.key(1))
        np.testing.assert_allclose(metrics["loss"], nll[:, :5].mean(), rtol=1e-5)
        two, metrics = step(one, b, jax.random.key(2))
        np.testing.assert_allclose(metrics["loss"], nll[:, 5:].mean(), rtol=1e-5)
        alone = np.asarray(nats(net, state.params, c["tokens"])[0])
        carried = np.asarray(nats(net, state.params, c["tokens"], two.extra["carry"])[0])
        first = np.array([True, False, True])
        _, metrics = step(two, {**c, "first": jnp.asarray(first)}, jax.random.key(3))
        np.testing.assert_allclose(
            metrics["loss"], np.where(first[:, None], alone, carried).mean(), rtol=1e-5
        )
        assert abs(alone.mean() - carried.mean()) > 1e-4

    def test_step_is_clipped_gradient_descent_on_the_sum_over_time(self, file):
        for clip, epoch in ((5.0, 0), (0.1, 5)):
            rnn = RNN(width=6, layers=1, scale=0.7)
            exp = lstm_experiment(file, rnn=rnn, batch_size=3, length=5, lr=0.5, clip=clip)
            state, (a, *_) = started(exp)
            at = jnp.asarray(epoch * exp.data.steps, jnp.int32)
            state = state.replace(
                opt_state=jax.tree.map(lambda x: at if x.ndim == 0 else x, state.opt_state)
            )
            nll = lambda p: nats(RNNLanguageModel(12, rnn), p, a["tokens"])[0].sum() / 3
            grads = jax.grad(nll)(state.params)
            rate = 0.5 * {0: 1, 5: 1 / 4}[epoch] * min(1, clip / float(optax.tree.norm(grads)))
            new, _ = jax.jit(exp.step)(state, a, jax.random.key(1))
            jax.tree.map(
                lambda p, g, q: np.testing.assert_allclose(q, p - rate * g, atol=1e-6),
                state.params,
                grads,
                new.params,
            )


def test_awd_activation_penalties(file):
    """Merity et al., section 4.4: Adam's gradient includes the penalties; the state is carried."""
    rnn, alpha, beta = (
        RNN(width=6, layers=2, dropout=0.5, variational=True, weight_dropout=0.3),
        3.0,
        2.0,
    )
    exp = awd_lstm(
        file,
        rnn=rnn,
        batch_size=3,
        length=5,
        activation=alpha,
        slowness=beta,
        clip=1e9,
        word_dropout=0.2,
    )
    state, (a, b, _) = started(exp)
    net, key = RNNLanguageModel(12, rnn, tied=True, word_dropout=0.2), jax.random.key(5)
    step = jax.jit(exp.step)
    state, _ = step(state, a, jax.random.key(4))
    nll, (h, whole), carry = (
        jax.tree.map(np.asarray, x)
        for x in nats(net, state.params, b["tokens"], state.extra["carry"], key)
    )
    assert (
        (h == 0).any()
        and (whole != 0).all()
        and any(np.asarray(x).any() for x in jax.tree.leaves(state.extra))
    )
    ar, tar = (
        (h**2).sum() / h.size,
        sum(((whole[:, t + 1] - whole[:, t]) ** 2).sum() for t in range(4)) / (3 * 4 * 6),
    )
    new, metrics = step(state, b, key)
    np.testing.assert_allclose(metrics["penalty"], alpha * ar + beta * tar, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], nll.mean(), rtol=1e-5)
    jax.tree.map(
        lambda c, d: np.testing.assert_allclose(c, d, atol=1e-6), new.extra["carry"], carry
    )

    from_zeros = step(state, {**b, "first": jnp.ones(3, bool)}, key)[1]["loss"]
    np.testing.assert_allclose(
        from_zeros, nats(net, state.params, b["tokens"], None, key)[0].mean(), rtol=1e-5
    )
    assert abs(from_zeros - metrics["loss"]) > 1e-4

    def value(params):
        nll, (h, whole), _ = nats(net, params, b["tokens"], state.extra["carry"], key)
        return nll.mean() + alpha * (h**2).mean() + beta * (jnp.diff(whole, axis=1) ** 2).mean()

    before, after = (optax.tree.get(s.opt_state, "mu") for s in (state, new))
    jax.tree.map(
        lambda m, n, g: np.testing.assert_allclose(n, 0.9 * m + 0.1 * g, atol=1e-6),
        before,
        after,
        jax.grad(value)(state.params),
    )


class TestLag:
    def test_linear_recurrence_lag(self):
        """h' = ρ Q h + x, Q orthogonal: gradient by h_{T-k} is ρ^(k-1) times the one by h_{T-1}."""
        rng = np.random.default_rng(0)
        q = np.linalg.qr(rng.normal(size=(6, 6)))[0]

        def advance(rho, carry, x):
            (h,) = carry
            h = rho * h @ q + x
            return (h,), jnp.sum(h * jnp.arange(6.0), -1)

        x = rng.normal(size=(40, 5, 6)).astype(np.float32)
        net = lambda rho: (lambda state: rho, advance, (jnp.zeros((5, 6)),))
        found = gradient_by_lag({"a": net(0.8), "b": net(1.0), "c": net(1.1)}, x)(None)
        np.testing.assert_allclose(
            [found[f"{k}_last"] for k in "abc"], [0.8**39, 1, 1.1**39], rtol=1e-4
        )
        assert (found["a_half"], found["b_half"], found["c_half"]) == (
            5,
            40,
            40,
        )  # 0.8^3 > 1/2 > 0.8^4
        assert found["lags"].dtype == np.uint8 and found["lags"].shape[-1] == 3
        with pytest.raises(InputError, match="3 or more"):
            gradient_by_lag({"a": net(0.8)}, x[:2])

    def test_language_model_lag_matches_finite_differences(self):
        net, state = model("tanh")
        tokens = np.random.default_rng(0).integers(11, size=9)
        found = recurrent_gradients(net, tokens, times=8, n=1)(state)

        @partial(jax.jit, static_argnums=1)
        def loss(h1, at):  # The last loss, where the carry before time `at` is nudged by h1.
            carry = jax.tree.map(jnp.zeros_like, h1)
            for t in range(8):
                carry = jax.tree.map(jnp.add, carry, h1) if t == at else carry
                nll, _, carry = nats(net, state.params, tokens[None, t : t + 2], carry)
            return nll[0, 0]

        def norm(at):
            zero, square = [np.zeros((1, 6)) for _ in range(2)], 0.0
            for layer in range(2):
                for j in range(6):
                    up, down = (
                        [z + s * 1e-2 * ((i == layer) * np.eye(6)[j]) for i, z in enumerate(zero)]
                        for s in (1, -1)
                    )
                    carry = lambda hs: tuple((jnp.asarray(h, jnp.float32),) for h in hs)
                    square += float((loss(carry(up), at) - loss(carry(down), at)) / 2e-2) ** 2
            return math.sqrt(square)

        np.testing.assert_allclose(found["trained_last"], norm(0) / norm(7), rtol=0.02)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"dropout": 1.0}, "--rnn.dropout must be at least 0 and below 1, not 1.0"),
        ({"recurrent_dropout": -0.1}, "--rnn.recurrent-dropout must be at least 0"),
        ({"weight_dropout": 2.0}, "--rnn.weight-dropout must be at least 0 and below 1"),
        ({"forget_bias": math.nan}, "--rnn.forget-bias must be finite"),
        ({"layers": 0}, "--rnn.layers must be at least 1, not 0"),
        ({"width": -1}, "--rnn.width must be at least 1, not -1"),
    ],
)
def test_fields_out_of_range(bad, message):
    with pytest.raises(InputError, match=message):
        RNN(**bad).init(jax.random.key(0), jnp.ones((1, 2, 3)))
    with pytest.raises(InputError, match=message):
        lstm_experiment(data="nowhere.txt", rnn=RNN(**bad))  # Before data is read.


def test_learning_rate_by_cell(tmp_path):
    (tmp_path / "x.txt").write_text("a b c d " * 200)
    for cell, rate in RATES.items():
        sizes = dict(batch_size=2, length=4, rnn=RNN(cell, 4, 1), data=str(tmp_path / "x.txt"))
        both = []
        for lr in (None, rate):
            exp = lstm_experiment(**sizes, lr=lr)
            batch = exp.data.batch(
                jnp.asarray(exp.data.resident()), next(exp.data.feed(0, 0, mesh_of(1)))
            )
            state = exp.init(jax.random.key(0), batch)
            both.append(exp.step(state, batch, jax.random.key(1))[0].params)
        jax.tree.map(np.testing.assert_array_equal, *both)
