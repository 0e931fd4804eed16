"""What counting words gives for classifying texts: the floor for whatever is learned of them."""

from collections.abc import Mapping

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ssljax.data.text import Documents
from ssljax.errors import InputError


def tfidf_floor(train: Documents, test: Documents, pairs: bool = False) -> Mapping[str, float]:
    """Percent of `test` named rightly by logistic regression on TF-IDF of words, of pairs of words too where asked.

    Words in lower case of two documents at least, counts by 1 + log, vectors at length 1, a regression with C = 10.
    `majority` is the percent by the most frequent class. InputError where a set has no labels, or one class only.
    """
    if train.labels is None or test.labels is None:
        raise InputError("These documents have no labels: take a set with classes, as imdb_reviews.")
    if len(np.unique(train.labels)) < 2:
        raise InputError("The training documents are all of one class: there is nothing to tell apart.")
    count = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2 if pairs else 1), dtype=np.float32)
    x = count.fit_transform(train.text)
    model = LogisticRegression(C=10, max_iter=300).fit(x, train.labels)
    majority = np.bincount(train.labels).argmax()
    return {"accuracy": 100 * float(np.mean(model.predict(count.transform(test.text)) == test.labels)),
            "majority": 100 * float(np.mean(test.labels == majority))}
