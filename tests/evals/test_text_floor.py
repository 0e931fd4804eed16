"""Classification from counts of words."""

import re

import numpy as np
import pytest

from ssljax.data.documents import Documents, documents
from ssljax.data.words import count_pattern
from ssljax.errors import InputError
from ssljax.evals.text_floor import text_floors
from tests.test_data import prepared


def reviews(n, informative, seed):
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int32)
    filler = rng.choice(["film", "actor", "plot", "scene"], (n, 20))
    words = np.array(["awful", "great"])[labels if informative else 0 * labels]
    return Documents([" ".join([*f, word]) for f, word in zip(filler, words)], labels)


def test_text_floors_with_and_without_a_telltale_word():
    for name in ("tfidf", "bag_of_words"):
        out = text_floors(reviews(90, True, 0), reviews(60, True, 1))[name](None)
        assert out["accuracy"] == 100 and out["majority"] == pytest.approx(100 * 40 / 60)
        assert (
            text_floors(reviews(90, False, 0), reviews(60, False, 1))[name](None)["accuracy"] < 75
        )


def test_bag_of_words_equals_naive_bayes_by_hand():
    """By hand: shares of classes, and of words among a class's words, one added to each count."""
    rng = np.random.default_rng(0)
    draw = lambda n: Documents(
        [
            " ".join(rng.choice(["aa", "bb", "cc", "dd"], 6, p=p))
            for p in ([0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.2, 0.4])
            for _ in range(n)
        ],
        np.repeat([0, 1], n).astype(np.int32),
    )
    train, test = draw(30), draw(40)
    rare = Documents(
        [*train.text[:-1], train.text[-1] + " once"], train.labels
    )  # In one document: not a word.
    hits = []
    for text, label in zip(test.text, test.labels):
        score = []
        for c in (0, 1):
            words = " ".join(t for t, y in zip(train.text, train.labels) if y == c).split()
            score.append(sum(np.log((words.count(w) + 1) / (len(words) + 4)) for w in text.split()))
        hits.append(np.argmax(score) == label)
    asked = Documents([text + 9 * " once" for text in test.text], test.labels)
    found = text_floors(rare, asked)["bag_of_words"](None)
    assert (
        found == {"accuracy": pytest.approx(100 * np.mean(hits)), "majority": 50}
        and 60 < found["accuracy"] < 100
    )


def test_text_floors_errors():
    with pytest.raises(InputError, match="These documents have no labels: take a set with classes"):
        text_floors(Documents(["a"]), reviews(3, True, 0))
    one = reviews(6, True, 0)
    with pytest.raises(InputError, match="all of one class"):
        text_floors(Documents(one.text, np.zeros(6, np.int32)), one)


def test_text_floors_of_imdb():
    """A thousand reviews; all 25,000 give 88.3 percent."""
    prepared("imdb_reviews")
    train, test = documents("imdb_reviews", "train"), documents("imdb_reviews", "test")
    some = lambda docs: Documents(docs.text[::25], docs.labels[::25])
    assert 78 < text_floors(some(train), some(test))["tfidf"](None)["accuracy"] < 88


def test_words_of_all_scripts_are_counted():
    for text in ("It's 2 o'clock, x_1 said: été Καλημέρα 12 κ", "a  bb,cc-dd"):
        assert re.findall(count_pattern(), text) == re.findall(r"(?u)\b\w\w+\b", text)
    assert re.findall(count_pattern(), "हिन्दी में") == ["हिन्दी", "में"]
    assert re.findall(count_pattern(), "学习 ab น้ำ") == ["学", "习", "ab", "น้", "ำ"]
    train, test = (
        Documents(["学习没有标签", "猫狗鸟鱼马"] * 9, np.array([0, 1] * 9, np.int32))
        for _ in range(2)
    )
    assert text_floors(train, test)["tfidf"](None)["accuracy"] == 100
