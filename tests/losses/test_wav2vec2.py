"""wav2vec 2.0's loss, masks and distractors against naive loops, closed forms and transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.losses.quantization import diversity_loss
from ssljax.losses.wav2vec2 import (
    contrastive_loss,
    draw_distractors,
    masked_at_most,
    masked_steps,
    real_steps,
    span_mask,
)

KEY = jax.random.key(0)


def cosine(a, b):
    return a @ b / math.sqrt(a @ a * (b @ b))


def naive(c, q, entry, distractors, real, kappa):
    losses, right = [], []
    for i, j in zip(*np.nonzero(real)):
        others = [d for d in distractors[i, j] if tuple(entry[i, d]) != tuple(entry[i, j])]
        f = [math.exp(cosine(c[i, j], q[i, d]) / kappa) for d in (j, *others)]
        losses.append(-math.log(f[0] / sum(f)))
        right.append(len(f) > 1 and f[0] > max(f[1:]))
    return np.mean(losses), np.mean(right)


def drawn(n=2, k=5, d=6, groups=2, entries=4, distractors=7, counts=(5, 3)):
    """Contexts, codes of a few entries, these, distractors, which steps are real, and logits."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(n, k, d)).astype(np.float32)
    entry = rng.integers(0, 2, size=(n, k, groups))
    book = rng.normal(size=(groups, entries, d // groups)).astype(np.float32)
    q = np.concatenate([book[g][entry[..., g]] for g in range(groups)], axis=-1)
    logits = (2 * rng.normal(size=(n, k, groups, entries))).astype(np.float32)
    others = np.empty((n, k, distractors), int)
    for i, count in enumerate(counts):
        for j in range(k):
            lot = rng.integers(0, count - 1, size=distractors)
            others[i, j] = lot + (lot >= j)
    return c, q, entry, others, np.arange(k) < np.array(counts)[:, None], logits


def test_equals_the_equation_and_its_gradient():
    c, q, entry, others, real, _ = drawn()
    loss = lambda c, q: contrastive_loss(c, q, entry, others, real, 0.5)
    (value, accuracy), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(c, q)
    wide = np.float64(c), np.float64(q)
    np.testing.assert_allclose((value, accuracy), naive(*wide, entry, others, real, 0.5), rtol=1e-5)
    assert 0 < accuracy < 1
    for which, grad in enumerate(grads):
        way = np.random.default_rng(7 + which).normal(size=grad.shape)
        up, down = (
            naive(
                *(x + s * 1e-5 * way if i == which else x for i, x in enumerate(wide)),
                entry,
                others,
                real,
                0.5,
            )[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose(np.sum(grad * way), (up - down) / 2e-5, rtol=1e-3)
    assert not grads[0][1, 3:].any()  # Places beyond the masked steps of a recording.


def test_equals_transformers():
    """Numbers of Wav2Vec2ForPreTraining of transformers 5.24.0, given these contexts, codes and
    probabilities: the sums that it returns, divided by the number of masked steps."""
    c, q, entry, others, real, logits = drawn()

    def loss(c, q):
        contrastive, _ = contrastive_loss(c, q, entry, others, real)
        diversity = diversity_loss(jax.nn.softmax(jnp.asarray(logits)), jnp.asarray(real))
        return contrastive + 0.1 * diversity, (contrastive, diversity)

    (value, parts), (dc, dq) = jax.value_and_grad(loss, (0, 1), has_aux=True)(c, q)
    found = (*parts, value, np.abs(dc).sum(), np.abs(dq).sum())
    theirs = 1.1345295906, 0.0906369090, 1.1435933113, 4.0005664628, 3.5659663347
    np.testing.assert_allclose(found, theirs, rtol=2e-6)


def test_alike_codes_are_no_wrong_answers():
    """Where all codes are of the same entries nothing can be picked, and nothing is learned."""
    c, q, entry, others, real, _ = drawn()
    loss = lambda c: contrastive_loss(c, q, 0 * entry, others, real)
    (value, accuracy), grad = jax.value_and_grad(loss, has_aux=True)(c)
    assert value == accuracy == 0 and np.isfinite(grad).all()
    # A context that knows nothing picks among a code and its distractors by chance.
    other = np.arange(entry.size).reshape(entry.shape)
    value, _ = contrastive_loss(0 * c, q, other, others, real)
    np.testing.assert_allclose(value, math.log(1 + others.shape[-1]), rtol=1e-6)


def test_distractors_are_other_masked_steps():
    counts, most = np.array([2, 5, 9]), 9
    drawn = np.asarray(draw_distractors(KEY, jnp.asarray(counts), most, 3000))
    for i, count in enumerate(counts):
        for j in range(count):
            # Each of the others with the same probability: a deviation of at most 5.
            share = np.bincount(drawn[i, j], minlength=most) / 3000
            p = 1 / (count - 1)
            assert share[j] == 0 and not share[count:].any()
            expected = np.where((np.arange(most) < count) & (np.arange(most) != j), p, 0)
            assert np.abs(share - expected).max() <= 5 * math.sqrt(p * (1 - p) / 3000)


@pytest.mark.parametrize("share, span", [(0.065, 10), (0.15, 3), (0.02, 4)])
def test_masks_are_as_likely_as_the_closed_form(share, span):
    """A step isn't masked where no start is among those whose span has it."""
    n, length = 4000, 24
    steps = np.where(np.arange(n) % 2, length, 15)
    mask = np.asarray(jax.jit(span_mask, static_argnums=(2, 3, 4))(KEY, steps, length, share, span))
    for m in (15, length):
        found = mask[steps == m]
        places = m - span + 1
        expected = np.zeros(length)
        whole = math.floor(share * m)
        for count, p in ((whole, 1 - (share * m - whole)), (whole + 1, share * m - whole)):
            count = max(count, 1)
            for t in range(m):
                able = min(t, places - 1) - max(0, t - span + 1) + 1
                expected[t] += p * (1 - math.comb(places - able, count) / math.comb(places, count))
        sd = np.sqrt(expected * (1 - expected) / len(found))
        assert (np.abs(found.mean(0) - expected) <= 5 * sd + 1e-9).all()
        # Spans are whole: each run of masked steps has at least as many.
        edges = np.diff(np.pad(found, ((0, 0), (1, 1))).astype(int), axis=1)
        runs = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
        assert runs.min() == span and found.sum(1).max() <= masked_at_most(length, share, span)


def test_short_recordings_have_one_span():
    mask = span_mask(KEY, jnp.array([0, 3, 4, 5]), 12, 0.1, 4)
    np.testing.assert_array_equal(mask.sum(1), 4)
    np.testing.assert_array_equal(mask[:3, :4], True)
    assert not mask[3, 5:].any()
    at, real = masked_steps(mask, 8)
    np.testing.assert_array_equal(at[:3, :4], [[0, 1, 2, 3]] * 3)
    np.testing.assert_array_equal(real, [[True] * 4 + [False] * 4] * 4)


def test_steps_end_with_the_sound():
    waves = np.zeros((5, 40), np.int16)
    waves[1, 0] = waves[2, 9] = waves[3, 10] = waves[4, 39] = -1
    np.testing.assert_array_equal(real_steps(jnp.asarray(waves), 10), [0, 1, 1, 2, 4])


@pytest.mark.parametrize(
    "length, share, span", [(9, 0.1, 10), (9, 0.0, 3), (9, 1.5, 3), (9, 0.1, 1)]
)
def test_impossible_masks_are_a_sentence(length, share, span):
    with pytest.raises(InputError, match="can't begin at a share"):
        span_mask(KEY, jnp.array([length]), length, share, span)
