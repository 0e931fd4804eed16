"""TF-IDF and logistic regression: what they must and cannot tell."""

import numpy as np
import pytest

from ssljax.data.text import Documents, documents
from ssljax.errors import InputError
from ssljax.evals.text_floor import tfidf_floor
from tests.test_data import prepared


def reviews(n, telling, seed):
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int32)
    filler = rng.choice(["film", "actor", "plot", "scene"], (n, 20))
    words = np.array(["awful", "great"])[labels if telling else 0 * labels]
    return Documents([" ".join([*f, word]) for f, word in zip(filler, words)], labels)


def test_a_word_that_tells_and_none():
    out = tfidf_floor(reviews(90, True, 0), reviews(60, True, 1))
    assert out["accuracy"] == 100 and out["majority"] == pytest.approx(100 * 40 / 60)
    assert tfidf_floor(reviews(90, False, 0), reviews(60, False, 1))["accuracy"] < 75


def test_order_is_told_by_pairs_of_words_alone():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(np.int32)
    docs = Documents([["not good but bad", "not bad but good"][i] for i in labels], labels)
    assert tfidf_floor(docs, docs, pairs=True)["accuracy"] == 100 > tfidf_floor(docs, docs)["accuracy"]


def test_documents_without_classes():
    with pytest.raises(InputError, match="These documents have no labels: take a set with classes"):
        tfidf_floor(Documents(["a"]), reviews(3, True, 0))
    one = reviews(6, True, 0)
    with pytest.raises(InputError, match="all of one class"):
        tfidf_floor(Documents(one.text, np.zeros(6, np.int32)), one)


def test_imdb():
    """A thousand reviews do what they should: all 25,000 give 88.3 percent, 90.7 with pairs."""
    prepared("imdb_reviews")
    train, test = documents("imdb_reviews", "train"), documents("imdb_reviews", "test")
    some = lambda docs: Documents(docs.text[::25], docs.labels[::25])
    assert 78 < tfidf_floor(some(train), some(test))["accuracy"] < 88
