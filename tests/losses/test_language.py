"""Language-model losses against the papers' equations as naive float64 loops, and what is masked
and replaced."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.losses.language import (
    mask_tokens,
    masked_lm_loss,
    next_token_loss,
    replace_tokens,
    replaced_detection_loss,
    token_nll,
)

V, MASK, SPECIAL = 30, 4, 5
KEY = jax.random.key(0)


def log_p(logits, token):
    logits = [float(x) for x in logits]
    top = max(logits)
    return logits[token] - top - math.log(sum(math.exp(x - top) for x in logits))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 50.0]))
def test_equal_the_equations(seed, scale):
    rng = np.random.default_rng(seed)
    logits, tokens = (
        (scale * rng.normal(size=(2, 5, 7))).astype(np.float32),
        rng.integers(7, size=(2, 6)),
    )
    want = -sum(log_p(logits[i, t], tokens[i, t + 1]) for i, t in np.ndindex(2, 5)) / 10
    np.testing.assert_allclose(
        next_token_loss(jnp.asarray(logits), jnp.asarray(tokens)), want, rtol=2e-5
    )
    weight = rng.integers(2, size=(2, 5))
    weight[0, 0] = 1
    told = [-log_p(logits[i, t], tokens[i, t]) for i, t in np.ndindex(2, 5) if weight[i, t]]
    found = masked_lm_loss(jnp.asarray(logits), jnp.asarray(tokens[:, :5]), jnp.asarray(weight))
    np.testing.assert_allclose(found, np.mean(told), rtol=2e-5)
    z, replaced = logits[:, :, 0], rng.integers(2, size=(2, 5))
    each = [
        math.log1p(math.exp(-abs(a))) + max(-a, 0)
        for a in map(float, np.where(replaced, z, -z).ravel())
    ]
    found = replaced_detection_loss(jnp.asarray(z), jnp.asarray(replaced))
    np.testing.assert_allclose(found, np.mean(each), rtol=2e-5, atol=1e-6)


def test_gradient_is_the_finite_difference_of_the_equation():
    rng = np.random.default_rng(1)
    logits, tokens = rng.normal(size=(1, 3, 4)), rng.integers(4, size=(1, 4))
    grad = jax.grad(next_token_loss)(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens))
    naive = lambda z: -sum(log_p(z[0, t], tokens[0, t + 1]) for t in range(3)) / 3
    for at in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[at] = 1e-5
        np.testing.assert_allclose(
            grad[at], (naive(logits + step) - naive(logits - step)) / 2e-5, rtol=1e-3, atol=1e-4
        )


def test_uniform_guesses_cost_the_log_of_the_vocabulary():
    np.testing.assert_allclose(
        token_nll(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int)), math.log(8), rtol=1e-6
    )
    assert (
        masked_lm_loss(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int), jnp.zeros((2, 3))) == 0
    )  # Nothing to tell: no NaN.
    with pytest.raises(InputError, match="one place shorter"):
        next_token_loss(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int))


def rows(seed, n=40, t=40):
    """Rows of random tokens in which [CLS] is first, [SEP] last, and the rest of some is [PAD]."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(SPECIAL, V, size=(n, t))
    tokens[:, 0] = 2
    for row, length in zip(tokens, rng.integers(3, t + 1, size=n)):
        row[length - 1], row[length:] = 3, 0
    return tokens


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.15, 0.4]), whole=st.booleans())
def test_mask_tokens_invariants(seed, share, whole):
    tokens, starts = rows(seed), np.arange(V) < 20
    run = jax.jit(
        lambda key, x: mask_tokens(key, x, V, MASK, SPECIAL, share, starts if whole else None)
    )
    new, at, targets, weight = (
        np.asarray(a) for a in run(jax.random.key(seed), jnp.asarray(tokens))
    )
    assert at.shape == (40, round(share * 40))
    for before, after, places, target, told in zip(tokens, new, at, targets, weight > 0):
        allowed = set(np.flatnonzero(before >= SPECIAL))
        chosen = set(places[told])
        assert chosen <= allowed and len(chosen) == told.sum()  # No special token, none twice.
        np.testing.assert_array_equal(before[places], target)
        assert set(np.flatnonzero(before != after)) <= chosen  # Nothing else has changed.
        assert np.isin(after[sorted(chosen)], [MASK, *range(SPECIAL, V)]).all()
        budget = max(1, round(share * len(allowed))) if allowed else 0
        if not whole:
            assert len(chosen) == budget
            continue
        assert len(chosen) <= budget
        words, word = [], []
        for place in [*sorted(allowed), None]:
            if word and (place is None or starts[before[place]] or before[place - 1] < SPECIAL):
                words.append(set(word))
                word = []
            word.append(place)
        assert all(w <= chosen or not w & chosen for w in words)
        if chosen != allowed:  # No word that is left out would still fit.
            assert min(len(w) for w in words if not w & chosen) > budget - len(chosen)


def test_mask_tokens_probabilities():
    tokens = np.random.default_rng(0).integers(SPECIAL, V, size=(4000, 100))
    new, at, targets, weight = (
        np.asarray(a) for a in mask_tokens(KEY, jnp.asarray(tokens), V, MASK, SPECIAL)
    )
    assert weight.sum() == 4000 * 15
    shown = np.take_along_axis(new, at, 1)
    np.testing.assert_allclose((shown == MASK).mean(), 0.8, atol=0.006)  # 4.5 standard errors.
    np.testing.assert_allclose((shown == targets).mean(), 0.1 + 0.1 / 25, atol=0.006)
    other = shown[(shown != MASK) & (shown != targets)]
    np.testing.assert_allclose(
        np.bincount(other, minlength=V)[SPECIAL:] / len(other), 1 / 25, atol=0.012
    )
    np.testing.assert_allclose(
        np.bincount(at.ravel(), minlength=100) / 4000, 0.15, atol=0.03
    )  # Each place alike,
    for part in (1.0, 0.5):
        all_masked, places, *_ = (
            np.asarray(a)
            for a in mask_tokens(KEY, jnp.asarray(tokens), V, MASK, SPECIAL, masked=part)
        )
        np.testing.assert_array_equal(places, at)
        shown = np.take_along_axis(all_masked, places, 1)
        np.testing.assert_allclose((shown == MASK).mean(), part, atol=0.01)
        np.testing.assert_allclose(
            (shown == targets).mean(), (1 - part) / 2 * (1 + 1 / 25), atol=0.01
        )
    again = np.asarray(mask_tokens(jax.random.key(1), jnp.asarray(tokens), V, MASK, SPECIAL)[0])
    assert (
        (new == MASK) & (again == MASK)
    ).mean() < 0.02  # and others the next time: dynamic masking.


def naive_whole_words(words, wanted):
    """BERT's create_masked_lm_predictions, for words in the order that they are shuffled to."""
    chosen = []
    for word in words:
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(word) > wanted:
            continue
        chosen += word
    return set(chosen)


def test_whole_words_are_chosen_as_by_a_loop_over_shuffled_words():
    """The order is drawn inside, so every result must be one that some order gives, and each
    order's result as likely as it is: for few words, the counts against all orders'."""
    lengths, wanted = (3, 2, 1, 2, 4), 4  # round(0.34 * 12)
    row, words, place = [], [], 0
    for length in lengths:
        row += [SPECIAL] + [V - 1] * (length - 1)
        words.append(list(range(place, place + length)))
        place += length
    want = {}
    for order in itertools.permutations(words):
        found = frozenset(naive_whole_words(order, wanted))
        want[found] = want.get(found, 0) + 1 / math.factorial(len(words))
    n, starts = 20_000, np.arange(V) < 20
    tokens = jnp.tile(jnp.array(row), (n, 1))
    _, at, _, weight = mask_tokens(KEY, tokens, V, MASK, SPECIAL, 0.34, starts)
    found = {}
    for places, kept in zip(np.asarray(at), np.asarray(weight) > 0):
        chosen = frozenset(places[kept].tolist())
        found[chosen] = found.get(chosen, 0) + 1 / n
    assert set(found) == set(want)
    for chosen, p in want.items():
        assert abs(found[chosen] - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_whole_words_fill_their_number_where_words_fit():
    """32 tokens of which half continue a word: 5 to predict in nearly every row, none in no row."""
    rng, starts = np.random.default_rng(0), np.arange(V) < 17
    tokens = rng.integers(SPECIAL, 17, size=(4000, 32))
    tokens = np.where(
        rng.uniform(size=tokens.shape) < 0.5, rng.integers(17, V, tokens.shape), tokens
    )
    weight = np.asarray(
        mask_tokens(KEY, jnp.asarray(tokens), V, MASK, SPECIAL, 0.15, starts).weight
    )
    assert weight.shape == (4000, 5)
    assert weight.sum(1).mean() > 4.97  # It was 4.03 when the first word too long ended the choice,
    assert weight.sum(1).min() > 0  # and 3 % of the rows had none.


def test_mask_tokens_has_no_effect_on_gradients_and_maps_over_seeds():
    tokens, starts = jnp.asarray(rows(7)), np.arange(V) < 20
    run = lambda key: mask_tokens(key, tokens, V, MASK, SPECIAL, 0.3, starts).weight
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(run))(keys)
    for weight, key in zip(together, keys):
        np.testing.assert_array_equal(weight, run(key))
    assert jax.grad(lambda x: (x * run(KEY)).sum())(2.0) == run(KEY).sum()


def test_whole_words_are_masked_as_often_as_they_occur():
    tokens, starts = rows(3, n=3000), np.arange(V) < 20
    _, _, targets, weight = mask_tokens(KEY, jnp.asarray(tokens), V, MASK, SPECIAL, 0.3, starts)
    told = np.bincount(np.asarray(targets)[np.asarray(weight) > 0], minlength=V)
    share = told[SPECIAL:] / np.bincount(tokens.ravel(), minlength=V)[SPECIAL:]
    # Below 0.3 in long words, which may not fit, and above in short ones, which take their place.
    assert share.min() > 0.22 and share.max() < 0.36


def test_replacements_are_drawn_from_the_generator():
    tokens = jnp.asarray(rows(5, n=2000))
    masked = mask_tokens(KEY, tokens, V, MASK, SPECIAL)
    p = np.random.default_rng(0).dirichlet(np.ones(V))
    logits = jnp.broadcast_to(jnp.log(p), (*masked.at.shape, V))
    new, replaced = (np.asarray(a) for a in replace_tokens(KEY, logits, masked))
    np.testing.assert_array_equal(replaced, new != np.asarray(tokens))
    told = np.zeros(tokens.shape, bool)
    for row, at, w in zip(told, masked.at, masked.weight):
        row[np.asarray(at)[np.asarray(w) > 0]] = True
    np.testing.assert_array_equal(new[~told], np.asarray(tokens)[~told])
    np.testing.assert_allclose(np.bincount(new[told], minlength=V) / told.sum(), p, atol=0.02)
    sure = 1e4 * jax.nn.one_hot(masked.targets, V)  # A generator that is right replaces nothing,
    assert not replace_tokens(KEY, sure, masked)[1].any()
    slope = jax.grad(lambda z: replace_tokens(KEY, z, masked)[0].astype(float).sum() + 0 * z.sum())(
        logits
    )
    assert not np.asarray(slope).any()  # and learns nothing from the discriminator.


def test_bad_input_is_a_sentence():
    tokens = jnp.asarray(rows(0))
    for kwargs in (dict(share=0.0), dict(share=1.0), dict(special=V)):
        with pytest.raises(InputError, match="share of masked tokens"):
            mask_tokens(KEY, tokens, **{"vocabulary": V, "mask": MASK, "special": SPECIAL} | kwargs)
