"""Text classification from counts of words: floors for learned representations of texts."""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np

from ssljax.data.documents import Documents
from ssljax.data.words import count_pattern
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator


def text_floors(train: Documents, test: Documents) -> dict[str, Evaluator]:
    """Evaluators of the percent of `test` classified rightly from words alone, for any state.

    Both are fitted once, on words in lower case that are in two documents at least. `tfidf` is
    logistic regression with C = 10 on TF-IDF, counts by 1 + log, vectors at length 1.
    `bag_of_words` is naive Bayes on plain counts, one added to each. `majority` is the percent of
    the class that is most frequent in `train`. InputError where a set has no labels, where `train`
    has one class only, and where no word is in two documents.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    if train.labels is None or test.labels is None:
        raise InputError(
            "These documents have no labels: take a set with classes, such as imdb_reviews."
        )
    if len(np.unique(train.labels)) < 2:
        raise InputError(
            "The training documents are all of one class: there is nothing to classify."
        )
    if not len(test.labels):
        raise InputError("A set to evaluate on is empty.")
    majority = 100 * float(np.mean(test.labels == np.bincount(train.labels).argmax()))

    def floor(count: CountVectorizer, model: Any) -> Evaluator:
        @functools.cache
        def found() -> float:
            try:
                counts = count.fit_transform(train.text)
            except ValueError as e:  # scikit-learn's, for an empty vocabulary.
                raise InputError(
                    f"No word is in two training documents: words give no floor ({e})."
                ) from e
            model.fit(counts, train.labels)
            return 100 * float(np.mean(model.predict(count.transform(test.text)) == test.labels))

        def evaluate(state: Any) -> Mapping[str, float]:
            return {"accuracy": found(), "majority": majority}

        return Evaluator(evaluate, bank=train, queries=test)

    settings = {"min_df": 2, "token_pattern": count_pattern()}
    tfidf = TfidfVectorizer(
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore[reportArgumentType] - its type is guessed from float64
        **settings,
    )
    return {
        "tfidf": floor(tfidf, LogisticRegression(C=10, max_iter=300)),
        "bag_of_words": floor(CountVectorizer(**settings), MultinomialNB()),
    }
