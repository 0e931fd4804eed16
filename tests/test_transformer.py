"""Transformer: attention against a loop and JAX's, masks, cache and samples.

Also the steps of GPT, BERT, ELECTRA, SimCSE and fine-tuning by hand.
"""

from functools import partial
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.bert import bert
from experiments.electra import electra
from experiments.finetune_text import finetune_text
from experiments.gpt import gpt
from experiments.simcse import simcse
from ssljax import sharding
from ssljax.data.documents import labelled_documents
from ssljax.data.token_rows import labelled_rows, SPECIAL
from ssljax.data.tokenizers import wordpiece
from ssljax.errors import InputError
from ssljax.losses.language import mask_tokens, replace_tokens
from ssljax.models import attention, positions
from ssljax.models.attention import cpu_attention, rotary
from ssljax.models.mlp import MLP
from ssljax.models.positions import ConvolutionalPositions
from ssljax.models.transformer import (
    empty_cache,
    generate,
    LanguageModel,
    sample_token,
    sampling_mask,
    Transformer,
)
from tests.test_data import batches, mesh_of

KEY = jax.random.key(0)
KINDS = list(itertools.product(("rms", "layer"), ("rotary", "learned"), ("swiglu", "gelu")))
SOME = KINDS[::3]


def naive(q, k, v, sees):
    """Vaswani et al., 2017, eq. 1, token by token: t of text n sees each s with sees[n][t][s]."""
    n, t, h, d = q.shape
    out = np.zeros(q.shape)
    for i, j, a in np.ndindex(n, t, h):
        at = [s for s in range(k.shape[1]) if sees[i][j][s]]
        w = np.exp(
            [np.dot(q[i, j, a].astype(float), k[i, s, a].astype(float)) / np.sqrt(d) for s in at]
        )
        out[i, j, a] = sum(x * v[i, s, a].astype(float) for x, s in zip(w / w.sum(), at))
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "cache", [2**18, 80]
)  # Its gradient at once, or for two of the six heads at a time.
def test_attention_matches_equation_and_jax(causal, padded, cache, monkeypatch):
    monkeypatch.setattr(attention, "CACHE", cache)
    q, k, v = (jax.random.normal(key, (2, 6, 3, 4)) for key in jax.random.split(KEY, 3))
    lengths = (4, 6) if padded else (6, 6)
    mask = jnp.asarray([[s < n for s in range(6)] for n in lengths])
    sees = [
        [[bool(mask[i, s]) and (s <= t or not causal) for s in range(6)] for t in range(6)]
        for i in range(2)
    ]
    kwargs = dict(causal=causal, mask=mask[:, None, None] if padded else None)
    found = cpu_attention(q, k, v, **kwargs)
    np.testing.assert_allclose(found, naive(*map(np.asarray, (q, k, v)), sees), atol=1e-5)
    jaxs = partial(jax.nn.dot_product_attention, mask=kwargs["mask"], is_causal=causal)
    np.testing.assert_allclose(found, jaxs(q, k, v), atol=1e-5)
    grads = [
        jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))(q, k, v)
        for f in (partial(cpu_attention, **kwargs), jaxs)
    ]
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "first", [0, 1]
)  # Of the keys to be seen: with 1 the first token sees none.
def test_attention_of_few_tokens_to_many(dtype, tolerance, causal, first):
    q, k, v, dy = (
        jax.random.normal(key, (2, n, 3, 4)).astype(dtype)
        for key, n in zip(jax.random.split(KEY, 4), (5, 6, 6, 5))
    )
    mask = (jnp.arange(6) >= first)[None, None, None] & jnp.ones((1, 1, 5, 1), bool)

    def plain(q, k, v):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / 2
        scores = jnp.where(mask & (np.tri(5, 6, dtype=bool) | (not causal)), scores, -1e9)
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).astype(dtype)

    ours = partial(cpu_attention, causal=causal, mask=mask)
    (found, back), (want, plainly) = (jax.vjp(f, q, k, v) for f in (ours, plain))
    for a, b in zip((found, *back(dy)), (want, *plainly(dy))):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=tolerance)


def test_gradient_of_attention_stays_on_its_device(monkeypatch):
    monkeypatch.setattr(attention, "CACHE", 80)
    q, k, v, dy = (jax.random.normal(key, (16, 6, 3, 4)) for key in jax.random.split(KEY, 4))
    mask = jax.random.uniform(KEY, (16, 1, 1, 6)) < 0.7
    grads = jax.jit(
        lambda q, k, v, mask, dy: jax.vjp(lambda *a: cpu_attention(*a, mask=mask), q, k, v)[1](dy)
    )
    alone = grads(q, k, v, mask, dy)
    with jax.set_mesh(mesh_of(8)):
        split = jax.device_put((q, k, v, mask, dy), jax.NamedSharding(mesh_of(8), sharding.BATCH))
        compiled = grads.lower(*split).compile()
        assert " while(" in compiled.as_text() and not any(
            f" {f}" in compiled.as_text()
            for f in ("all-gather", "all-to-all", "all-reduce", "collective-permute")
        )
        for a, b in zip(compiled(*split), alone):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_rotary_positions_are_relative():
    q, k = (jax.random.normal(key, (1, 1, 2, 8)) for key in jax.random.split(KEY))
    product = lambda a, b: (rotary(q, jnp.array([a])) * rotary(k, jnp.array([b]))).sum(-1)
    np.testing.assert_allclose(product(3, 8), product(40, 45), atol=1e-4)
    assert np.abs(product(3, 8) - product(3, 9)).max() > 1e-2
    turned = rotary(q, jnp.array([5]))
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(q), rtol=1e-5)
    x, angle = (
        np.asarray(q[0, 0, 0], float),
        5 * 10_000 ** (-2 / 8),
    )  # Of channels 1 and 5, by hand.
    np.testing.assert_allclose(
        turned[0, 0, 0, 1], x[1] * np.cos(angle) - x[5] * np.sin(angle), atol=1e-5
    )
    np.testing.assert_allclose(
        turned[0, 0, 0, 5], x[1] * np.sin(angle) + x[5] * np.cos(angle), atol=1e-5
    )
    with pytest.raises(InputError, match="a head has 3"):
        rotary(jnp.ones((1, 1, 1, 3)), jnp.zeros(1))


@pytest.mark.parametrize("t, reach", [(7, 4), (3, 5)])
def test_convolutional_positions(t, reach, monkeypatch):
    """Against a loop over tokens of which each sees `reach`, and both ways of computing it."""
    x = jax.random.normal(KEY, (2, t, 32))
    net = ConvolutionalPositions(reach)
    params = jax.tree.map(lambda p: p + 0.1, net.init(KEY, x))
    p = jax.tree.map(np.float64, params["params"]["conv"])
    y = np.zeros((2, t, 32))
    for n, i, k in itertools.product(range(2), range(t), range(reach)):
        if 0 <= (j := i + k - reach // 2) < t:
            for g in range(16):
                pair = slice(2 * g, 2 * g + 2)
                y[n, i, pair] += np.float64(x[n, j, pair]) @ p["kernel"][k][:, pair]
    y += p["bias"]
    want = x + jax.nn.gelu(jnp.float32(y), approximate=False)

    def value_and_gradients():
        out = lambda params, x: (lambda y: ((y**2).sum(), y))(net.apply(params, x))
        return jax.jit(jax.grad(out, (0, 1), has_aux=True))(params, x)

    grads, found = value_and_gradients()
    np.testing.assert_allclose(found, want, atol=1e-5)
    monkeypatch.setattr(positions, "platform", lambda: "gpu")
    other, found = value_and_gradients()
    np.testing.assert_allclose(found, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, other)


def test_convolutional_positions_are_of_nets_that_see_what_follows():
    x, net = jnp.ones((1, 4, 16)), Transformer(1, 2, 16, positions="convolutional", reach=4)
    with pytest.raises(InputError, match="see the tokens that follow: choose others"):
        net.init(KEY, x, causal=True)
    with pytest.raises(InputError, match="see the tokens that follow: choose others"):
        net.init(KEY, x, cache=empty_cache(net, 1, 8))


def model_of(kind, causal=True, vocabulary=11, size=0, **kwargs):
    norm, positions, unit = kind
    net = Transformer(2, 2, 16, norm=norm, positions=positions, unit=unit, reach=16, **kwargs)
    model = LanguageModel(net, vocabulary, causal, size)
    params = model.init(KEY, jnp.zeros((1, 4), int))
    return model, jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(KEY, x.shape), params
    )  # Far from uniform guesses.


@pytest.mark.parametrize("kind", SOME, ids="-".join)
def test_causal_mask(kind):
    model, params = model_of(kind)
    tokens = jax.random.randint(KEY, (2, 10), 0, 11)
    apply = jax.jit(model.apply)
    before, after = (
        apply(params, tokens),
        apply(params, tokens.at[:, 6].set((tokens[:, 6] + 1) % 11)),
    )
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (
        np.abs(before[:, 6:] - after[:, 6:]).min(axis=(0, 2)).min() > 0
    )  # And the future sees the past.


def test_padding_mask():
    model, params = model_of(KINDS[0], causal=False)
    tokens, mask = jax.random.randint(KEY, (2, 10), 0, 11), jnp.arange(10) < jnp.array([[7], [10]])
    whole = model.apply(params, tokens, mask)
    other = model.apply(params, jnp.where(mask, tokens, 0), mask)
    np.testing.assert_array_equal(whole[0, :7], other[0, :7])
    np.testing.assert_allclose(whole[0, :7], model.apply(params, tokens[:1, :7])[0], atol=1e-5)
    assert (
        np.abs(whole[1] - model.apply(params, tokens[1:, ::-1])[0, ::-1]).max() > 1e-2
    )  # Order counts.


@pytest.mark.parametrize("kind", SOME, ids="-".join)
@pytest.mark.parametrize("size", [0, 6])
def test_cache_matches_full_forward_pass(kind, size):
    model, params = model_of(kind, size=size)
    tokens = jax.random.randint(KEY, (2, 10), 0, 11)
    whole = model.apply(params, tokens)
    logits, cache = model.apply(
        params, tokens[:, :4], empty_cache(model.net, 2, 10), 0, method="extend"
    )
    found = [logits]
    for at in range(4, 10):
        logits, cache = model.apply(params, tokens[:, at : at + 1], cache, at, method="extend")
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, 1), whole[:, 3:], atol=2e-5)


@pytest.mark.parametrize("window, length", [(12, 6), (8, 20), (5, 9)])
def test_greedy_samples_match_full_forward_passes(window, length):
    """With the last half of the window where that is full; the window of training is never left."""
    model, params = model_of(KINDS[2])
    prompt = jax.random.randint(KEY, (3, 4), 0, 11)
    found = jax.jit(lambda p: generate(model, params, KEY, p, length, window, temperature=0))(
        prompt
    )
    seen, want = np.asarray(prompt), []
    for _ in range(length):
        if seen.shape[1] == window:
            seen = seen[:, -(window // 2) :]
        token = np.asarray(model.apply(params, jnp.asarray(seen))[:, -1].argmax(-1))
        want.append(token)
        seen = np.concatenate([seen, token[:, None]], 1)
    np.testing.assert_array_equal(found, np.stack(want, 1))
    assert len(np.unique(found)) > 1
    for bad in (prompt[:, :0], jnp.zeros((1, window), int)):
        with pytest.raises(InputError, match="continues 1 to"):
            generate(model, params, KEY, bad, 3, window)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    k=st.integers(0, 8),
    p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    ties=st.booleans(),
)
def test_top_k_and_top_p(seed, k, p, ties):
    logits = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    found = np.asarray(sampling_mask(jnp.asarray(logits), k, p))
    for row, keep in zip(logits.astype(float), found):
        order = sorted(range(8), key=lambda i: -row[i])[: k or 8]
        share, want = np.exp(row[order]) / np.exp(row[order]).sum(), set()
        for i, token in enumerate(order):
            if p == 1 or share[:i].sum() < p - 1e-6:
                want.add(token)
        assert set(np.flatnonzero(keep)) == want


def test_samples_follow_the_distribution():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    many = jnp.tile(logits, (20_000, 1))
    draw = lambda **kwargs: (
        np.bincount(np.asarray(sample_token(KEY, many, **kwargs)), minlength=4) / 20_000
    )
    np.testing.assert_allclose(draw(), [0.4, 0.3, 0.2, 0.1], atol=0.02)
    np.testing.assert_allclose(draw(top_k=2), [4 / 7, 3 / 7, 0, 0], atol=0.02)
    np.testing.assert_allclose(draw(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0], atol=0.02)
    np.testing.assert_allclose(draw(temperature=0.5), np.array([16, 9, 4, 1]) / 30, atol=0.02)
    np.testing.assert_array_equal(draw(temperature=0), [1, 0, 0, 0])
    for kwargs in (dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5)):
        with pytest.raises(InputError, match="top_k must be at least 0"):
            draw(**kwargs)
    for bad in (-0.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature must be at least 0, .* not"):
            draw(temperature=bad)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.5}, "--top-p must be"),
        ({"top_k": -1}, "--top-k must be at least 0, not -1"),
        ({"temperature": -1.0}, "--temperature must be at least 0, not -1"),
        ({"length": 1}, "--length must be at least 2, not 1"),
        ({"net": Transformer(dropout=2.0)}, "--dropout must be at least 0 and below 1, not 2"),
    ],
)
def test_gpt_checks_its_arguments_before_data_is_read(bad, message):
    with pytest.raises(InputError, match=message):
        gpt(data="nowhere.txt", **bad)


def test_gpt2_published_size():
    net = Transformer(12, 12, 768, norm="layer", positions="learned", unit="gelu", reach=1024)
    params = jax.eval_shape(lambda: LanguageModel(net, 50257).init(KEY, jnp.zeros((1, 8), int)))
    assert sum(x.size for x in jax.tree.leaves(params)) == 124_439_808  # Hugging Face's gpt2.


def test_dropout_in_training_only_keeps_the_mean():
    model, params = model_of(KINDS[0], dropout=0.3)
    tokens = jax.random.randint(KEY, (2, 8), 0, 11)
    run = lambda key: model.apply(params, tokens, train=True, rngs={"dropout": key})
    a, b = run(jax.random.key(1)), run(jax.random.key(2))
    assert np.abs(a - b).max() > 1e-2
    np.testing.assert_array_equal(a, run(jax.random.key(1)))
    np.testing.assert_array_equal(
        model.apply(params, tokens), model_of(KINDS[0])[0].apply(params, tokens)
    )
    x = jnp.ones((1000, 64))
    y = model.net.apply({}, x, True, method="drop", rngs={"dropout": KEY})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.7)} and abs(float(y.mean()) - 1) < 0.01


def test_bad_sizes():
    with pytest.raises(InputError, match="3 heads can't share 16"):
        Transformer(1, 3, 16).init(KEY, jnp.zeros((1, 2, 16)))
    with pytest.raises(InputError, match="reach 4 tokens, not 6"):
        Transformer(1, 2, 16, positions="learned", reach=4).init(KEY, jnp.zeros((1, 6, 16)))


def far(params):
    """Weights far from the initial ones, so that different computations differ clearly."""
    return jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return (
        z
        - z.max(-1, keepdims=True)
        - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


def begun(exp):
    """A batch, and the state far from its start."""
    batch = batches(exp.data, 0, 0, 1, mesh_of(1))[0]
    state = jax.jit(exp.init)(KEY, batch)
    return batch, state.replace(params=far(state.params))


def test_gpt_loss():
    """Each beginning of a row by itself, so that nothing can be seen of what follows."""
    net = Transformer(1, 2, 16)
    exp = gpt(tokens="bpe", vocabulary=300, net=net, length=6, batch_size=3)
    batch, state = begun(exp)
    seen, model = np.asarray(batch["tokens"]), LanguageModel(net, 300)
    assert seen.shape == (3, 7) and len(np.unique(seen)) > 5
    nll = [
        -log_softmax(model.apply(state.params["model"], seen[:, :i])[:, -1])[
            np.arange(3), seen[:, i]
        ]
        for i in range(1, 7)
    ]
    found = jax.jit(exp.step)(state, batch, KEY)[1]["loss"]
    np.testing.assert_allclose(found, np.mean(nll), rtol=1e-5)


def test_bert_loss():
    net, size, k = Transformer(1, 2, 16, dropout=0.2), 300, jax.random.key(3)
    exp = bert(vocabulary=size, net=net, length=24, batch_size=4)
    batch, state = begun(exp)
    to_mask, to_drop = jax.random.split(k)
    masked = jax.tree.map(np.asarray, mask_tokens(to_mask, batch["tokens"], size, 4, SPECIAL, 0.15))
    assert (masked.tokens != batch["tokens"]).any()
    logits = LanguageModel(net, size, causal=False).apply(
        state.params["model"], masked.tokens, train=True, rngs={"dropout": to_drop}
    )
    logp, positions = log_softmax(logits), np.argwhere(masked.weight > 0)
    nll = [-logp[i, masked.at[i, j], batch["tokens"][i, masked.at[i, j]]] for i, j in positions]
    np.testing.assert_allclose(
        jax.jit(exp.step)(state, batch, k)[1]["loss"], np.mean(nll), rtol=1e-4
    )


def test_fine_tuning_loss_from_mean_token_features():
    net, k, docs = Transformer(1, 2, 16), jax.random.key(3), labelled_documents("python", "train")
    exp = finetune_text(vocabulary=300, net=net, length=40, batch_size=5, fraction=0.5)
    batch, state = begun(exp)
    rows = labelled_rows(wordpiece(docs, 300), docs, 40)
    own = {row.tobytes(): label for row, label in zip(rows.image, rows.labels)}
    assert len(own) > 0.9 * len(docs) and len(set(own.values())) == 8
    model, head = LanguageModel(net, 300, causal=False), state.params["head"]["params"]
    nll = []
    for row in np.asarray(batch["tokens"]):
        h = model.apply(state.params["model"], row[row >= 0][None], method="hidden")[0].mean(0)
        nll.append(-log_softmax(h @ head["kernel"] + head["bias"])[own[row.tobytes()]])
    np.testing.assert_allclose(
        jax.jit(exp.step)(state, batch, k)[1]["loss"], np.mean(nll), rtol=1e-4
    )


def test_electra_loss():
    """Clark et al., 2020, section 2: the shared embedding learns from both losses."""
    net, size, k = Transformer(1, 2, 16, dropout=0.2), 300, jax.random.key(3)
    exp = electra(net=net, vocabulary=size, length=24, batch_size=4, weight=3.0)
    batch, state = begun(exp)
    model, small = (
        LanguageModel(n, size, False, s) for n, s in ((net, 0), (net.clone(width=8, heads=1), 16))
    )
    k1, k2, k3 = jax.random.split(k, 3)
    to_mask, to_drop = jax.random.split(k1)
    masked = mask_tokens(to_mask, batch["tokens"], size, 4, SPECIAL, 0.15, masked=1.0)
    mask = np.asarray(masked.weight) > 0
    assert (
        np.take_along_axis(np.asarray(masked.tokens), np.asarray(masked.at), 1)[mask] == 4
    ).all()

    def told_by_generator(params):
        weights = {"params": {**params["generator"], "embed": params["model"]["params"]["embed"]}}
        return small.apply(
            weights, masked.tokens, masked.at, True, rngs={"dropout": to_drop}, method="logits_at"
        )

    tokens, replaced = replace_tokens(k2, told_by_generator(state.params), masked)
    assert 0 < replaced.sum() <= mask.sum()

    def told_by_discriminator(params):
        h = model.apply(params["model"], tokens, train=True, rngs={"dropout": k3}, method="hidden")
        return h @ params["head"]["params"]["kernel"][:, 0] + params["head"]["params"]["bias"]

    logp = log_softmax(told_by_generator(state.params))
    g = -np.take_along_axis(logp, np.asarray(masked.targets)[:, :, None], -1)[:, :, 0][mask].mean()
    z = np.asarray(told_by_discriminator(state.params), np.float64)
    d = np.log1p(np.exp(np.where(replaced, -z, z))).mean()
    new, metrics = jax.jit(exp.step)(state, batch, k)
    for name, value in (("generator", g), ("discriminator", d), ("loss", g + 3 * d)):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)

    def of_generator(params):
        logp = jax.nn.log_softmax(told_by_generator(params))
        return -jnp.take_along_axis(logp, masked.targets[:, :, None], -1)[:, :, 0][mask].mean()

    of_discriminator = lambda params: jnp.logaddexp(
        0, jnp.where(replaced, -1, 1) * told_by_discriminator(params)
    ).mean()
    gs, ds = (jax.grad(f)(state.params) for f in (of_generator, of_discriminator))
    assert not any(x.any() for x in jax.tree.leaves(ds["generator"])) and all(
        x["model"]["params"]["embed"]["embedding"].any() for x in (gs, ds)
    )
    total = jax.tree.map(lambda a, b: a + 3 * b, gs, ds)
    scale = 0.1 * min(
        1, 1 / float(optax.tree.norm(total))
    )  # Clipped at 1, a tenth of it in Adam's mean.
    jax.tree.map(
        lambda m, t: np.testing.assert_allclose(m, scale * t, atol=1e-6),
        optax.tree.get(new.opt_state, "mu"),
        total,
    )


def test_simcse_loss():
    """Gao et al., 2021, eq. 4: each text's two encodings, against the second ones of the others."""
    net, tau, k = Transformer(1, 2, 16, dropout=0.2), 0.1, jax.random.key(3)
    exp = simcse(net=net, vocabulary=300, length=24, batch_size=5, temperature=tau)
    batch, state = begun(exp)
    model, head = LanguageModel(net, 300, False), MLP((16, 16), activation="tanh")
    twice = jnp.repeat(batch["tokens"], 2, axis=0)
    z = model.apply(state.params["model"], twice, True, rngs={"dropout": k}, method="pooled")
    z = np.asarray(head.apply(state.params["head"], z), np.float64)
    a, b = (x / np.sqrt((x**2).sum(-1, keepdims=True)) for x in (z[0::2], z[1::2]))
    agree = (a * b).sum(-1)
    assert (agree < 0.999).all() and agree.mean() > (
        a @ b.T
    ).mean() + 0.05  # They differ, but less than texts do.
    want = -np.diagonal(log_softmax(a @ b.T / tau)).mean()
    np.testing.assert_allclose(jax.jit(exp.step)(state, batch, k)[1]["loss"], want, rtol=1e-4)
    same = simcse(
        net=net.clone(dropout=0.0), vocabulary=300, length=24, batch_size=5, temperature=tau
    )
    z = model.apply(state.params["model"], batch["tokens"], method="pooled")
    a = np.asarray(head.apply(state.params["head"], z), np.float64)
    a /= np.sqrt((a**2).sum(-1, keepdims=True))
    want = -np.diagonal(log_softmax(a @ a.T / tau)).mean()
    np.testing.assert_allclose(jax.jit(same.step)(state, batch, k)[1]["loss"], want, rtol=1e-4)
