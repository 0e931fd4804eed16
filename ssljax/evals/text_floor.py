"""What counting words gives for classifying texts: the floors for whatever is learned of them."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from ssljax.data.documents import Documents
from ssljax.errors import InputError


def text_floors(
    train: Documents, test: Documents
) -> dict[str, Callable[[Any], Mapping[str, float]]]:
    """Evaluators of the percent of `test` that is named rightly from words alone, whatever the state; fitted once.

    `tfidf`: logistic regression with C = 10 on TF-IDF, counts by 1 + log, vectors at length 1. `bag_of_words`: naive
    Bayes on plain counts, one added to each. Both of words in lower case of two documents at least. `majority` is the
    percent by the most frequent class. InputError where a set has no labels, or one class only.
    """
    if train.labels is None or test.labels is None:
        raise InputError(
            "These documents have no labels: take a set with classes, as imdb_reviews."
        )
    if len(np.unique(train.labels)) < 2:
        raise InputError(
            "The training documents are all of one class: there is nothing to tell apart."
        )
    majority = 100 * float(np.mean(test.labels == np.bincount(train.labels).argmax()))

    def floor(count: CountVectorizer, model: Any) -> Callable[[Any], Mapping[str, float]]:
        @functools.cache
        def found() -> float:
            model.fit(count.fit_transform(train.text), train.labels)
            return 100 * float(np.mean(model.predict(count.transform(test.text)) == test.labels))

        return lambda state: {"accuracy": found(), "majority": majority}

    return {
        "tfidf": floor(
            TfidfVectorizer(sublinear_tf=True, min_df=2, dtype=np.float32),
            LogisticRegression(C=10, max_iter=300),
        ),
        "bag_of_words": floor(CountVectorizer(min_df=2), MultinomialNB()),
    }
