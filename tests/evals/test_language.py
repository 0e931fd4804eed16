"""Evaluators of texts against counts by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.documents import Documents
from ssljax.data.sources import Arrays
from ssljax.data.token_feeds import Tokenized
from ssljax.data.token_rows import TokenRows
from ssljax.data.tokenizers import wordpiece
from ssljax.errors import InputError
from ssljax.evals.alignment_uniformity import alignment, alignment_uniformity, uniformity
from ssljax.evals.masked_language import filled, masked_accuracy, replaced_auroc
from ssljax.evals.perplexity import perplexity, unigram_nll, windows
from ssljax.evals.texts import marked, nearest_texts, split_apart, text_samples
from ssljax.losses.language import MaskedTokens


@pytest.mark.parametrize(
    "n, length, stride",
    [
        case
        for case in itertools.product((2, 3, 7, 24, 25, 26, 50), (1, 3, 8), (1, 2, 8))
        if case[2] <= case[1]
    ],
)
def test_windows_count_each_token_once_with_its_past(n, length, stride):
    tokens, seen = np.arange(n) + 100, []
    for rows, counted in windows(tokens, length, stride, 3):
        assert rows.shape == (3, length + 1)
        for row, count in zip(rows, counted):
            for j in np.flatnonzero(count):
                seen.append(row[j + 1])
                np.testing.assert_array_equal(
                    row[: j + 1], np.arange(row[j + 1] - j - 1, row[j + 1])
                )  # Its past,
                assert j + 1 > min(length - stride, row[j + 1] - 101)  # enough of it.
    assert sorted(seen) == list(range(101, 100 + n))


def test_perplexity_equals_a_loop_over_the_text():
    """A bigram model sees one token, so that the stride makes no difference.

    Bits are per character, not per token.
    """
    rng = np.random.default_rng(0)
    p, tokens, train = (
        rng.dirichlet(np.ones(5), size=5),
        rng.integers(5, size=101),
        rng.integers(4, size=50),
    )
    read = Tokenized(None, train, tokens, 250)
    score = lambda state, x: -jnp.log(state["p"])[x[:, :-1], x[:, 1:]]
    want = -sum(math.log(p[a, b]) for a, b in itertools.pairwise(tokens)) / 100
    for length, stride in ((8, 8), (8, 3), (200, 10)):
        found = perplexity(score, read, length, stride, batch_size=4)({"p": jnp.asarray(p)})
        np.testing.assert_allclose(found["nll"], want, rtol=1e-5)
        np.testing.assert_allclose(found["perplexity"], math.exp(want), rtol=1e-5)
        np.testing.assert_allclose(
            found["bits_per_character"], want * 100 / 250 / math.log(2), rtol=1e-5
        )
        share = (np.bincount(train, minlength=5) + 1) / 55
        np.testing.assert_allclose(
            found["unigram"], math.exp(-np.log(share[tokens[1:]]).mean()), rtol=1e-5
        )
        assert "unknown" not in found
    found = perplexity(score, read._replace(characters=0, unknown=2.5), 8, 8)({"p": jnp.asarray(p)})
    assert set(found) == {"perplexity", "nll", "unigram", "unknown"} and found["unknown"] == 2.5
    assert np.isfinite(unigram_nll(np.array([9]), np.array([1])))  # One that was never seen.
    for length, stride in ((8, 0), (8, 9)):
        with pytest.raises(InputError, match="stride must be from 1"):
            perplexity(score, read, length, stride)
    with pytest.raises(InputError, match="of 1 tokens is not defined: 2 or more"):
        perplexity(score, read._replace(test=tokens[:1]), 8, 8)
    with pytest.raises(InputError, match="not finite"):
        perplexity(score, read, 8, 8)({"p": jnp.zeros((5, 5))})


def token_rows(n=70):
    rows = np.random.default_rng(0).integers(5, 9, size=(n, 6)).astype(np.int32)
    rows[:, 0] = 2
    rows[:5, 1:] = 7
    docs = Documents(["abc abd acd bcd " * 20])
    return TokenRows(wordpiece(docs, 20), rows, rows)


def test_masked_accuracy_numbers():
    """A model that always predicts 7 equals the floor; one that copies is always right."""
    data = token_rows()
    rows = data.test

    def predict(state, key, x):
        at = jnp.tile(jnp.array([1, 3]), (len(x), 1))
        targets = jnp.take_along_axis(x, at, 1)
        weight = jnp.broadcast_to(jnp.array([1.0, 0.0]), at.shape)
        predicted = jnp.where(state["sure"], targets, 7)
        return 4.0 * jax.nn.one_hot(predicted, 20), MaskedTokens(x, at, targets, weight)

    found = masked_accuracy(predict, data, batch_size=16)({"sure": jnp.array(False)})
    np.testing.assert_allclose(found["accuracy"], 100 * (rows[:, 1] == 7).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["most_frequent"], found["accuracy"], rtol=1e-6)
    sure = masked_accuracy(predict, data, batch_size=16)({"sure": jnp.array(True)})
    np.testing.assert_allclose(sure["accuracy"], 100)
    np.testing.assert_allclose(sure["nll"], math.log(1 + 19 * math.exp(-4)), rtol=1e-5)
    half = masked_accuracy(
        lambda state, key, x: (  # Right at the one of its two places where [MASK] stands.
            4.0 * jax.nn.one_hot(jnp.stack([x[:, 1], 0 * x[:, 3]], 1), 20),
            MaskedTokens(
                x.at[:, 1].set(4),
                jnp.tile(jnp.array([1, 3]), (len(x), 1)),
                x[:, jnp.array([1, 3])],
                jnp.ones((len(x), 2)),
            ),
        ),
        data,
        batch_size=16,
    )(())
    assert half["accuracy"] == 50 and half["accuracy_at_mask"] == 100
    name = [data.tokenizer.id_to_token(i) for i in range(20)]
    assert f"[{name[7]}|{name[7]}]".replace("##", "") in sure["guesses"].replace("##", "")


def test_filled_shows_predicted_and_actual_tokens():
    decode = lambda ids: " ".join("abcdefgh"[i] for i in ids)
    assert filled(np.array([0, 1, 2, 3]), np.array([2]), np.array([7]), decode) == "a b [h|c] d"


def test_replaced_auroc_numbers():
    rows = token_rows().test
    find = lambda state, key, x: (state["sign"] * (x == 7).astype(float), x == 7)
    run = replaced_auroc(find, rows, batch_size=16)
    assert (
        run({"sign": jnp.array(1.0)})["auroc"] == 100
        and run({"sign": jnp.array(0.0)})["auroc"] == 50
    )
    np.testing.assert_allclose(
        run({"sign": jnp.array(1.0)})["replaced"], 100 * (rows == 7).mean(), rtol=1e-6
    )


def test_nearest_texts_and_text_samples():
    z = np.eye(4)[[0, 0, 1, 1, 2]] + 0.01 * np.arange(5)[:, None]
    data = Arrays(np.arange(5, dtype=np.int32)[:, None], np.zeros(5, np.int32), ["a"])
    table = nearest_texts(
        lambda state, x: jnp.asarray(z, jnp.float32)[x[:, 0]], data, list("abcde"), n=5
    )({})["nearest"]
    firsts = {line.split()[0]: line.split()[1] for line in table.splitlines()}
    assert (firsts["a"], firsts["b"], firsts["c"], firsts["d"]) == ("b", "a", "d", "c")
    draw = lambda state, key: jnp.array([[0, 1], [2, 3]]) + state["add"]
    found = text_samples(draw, lambda row: "abcdef"[row[0]] + "abcdef"[row[1]])(
        {"add": jnp.array(1)}
    )
    assert found["samples"] == "― 1 of 2 ―\nbc\n\n― 2 of 2 ―\nde"
    prompted = text_samples(draw, lambda row: "".join("abcdef"[i] for i in row), prompt=1)
    assert split_apart(prompted({"add": jnp.array(1)})["samples"]) == ["⟦b⟧c", "⟦d⟧e"]


def test_prompts_that_end_within_a_character_are_not_marked():
    """Tokens of bytes: the first two are a part of a character, which decodes to another one."""
    row = "⟦ö".encode()

    def decode(tokens):
        return bytes(tokens).decode(errors="replace")

    assert marked(decode, row, 2) == "⟦ö" and marked(decode, row, 3) == "⟦⟦⟧ö"


def test_alignment_and_uniformity_equal_their_equations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 3))
    unit = lambda z: [x / math.sqrt(sum(x * x)) for x in z]
    pairs = list(itertools.combinations(unit(a), 2))
    square = [sum((x - y) ** 2) for x, y in zip(unit(a), unit(b))]
    np.testing.assert_allclose(alignment(a, b), np.mean(square), rtol=1e-6)
    want = math.log(sum(math.exp(-2 * sum((x - y) ** 2)) for x, y in pairs) / len(pairs))
    np.testing.assert_allclose(uniformity(a), want, rtol=1e-6)
    assert abs(uniformity(np.ones((4, 3)))) < 1e-12 and abs(alignment(a, 2 * a)) < 1e-12
    data = Arrays(np.arange(7, dtype=np.int32)[:, None], np.zeros(7, np.int32), ["a"])
    view = lambda state, key, x: (
        jnp.asarray(a, jnp.float32)[x[:, 0]] * jax.random.uniform(key, (len(x), 1))
    )
    found = alignment_uniformity(view, data, batch_size=4)({})
    np.testing.assert_allclose(found["uniformity"], want, rtol=1e-4)
    np.testing.assert_allclose(found["alignment"], 0, atol=1e-6)
