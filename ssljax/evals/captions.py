"""Pictures and words in one space: classes by their names, and retrieval of held-out pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.data.captions import Captioned
from ssljax.data.sources import Arrays, select
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, subset, trace_features, Tree, unit_rows
from ssljax.evals.knn import neighbours
from ssljax.evals.pictures import grid

RANKS = 1, 5, 10


def zero_shot(embed: Encode, test: Any, rows: np.ndarray) -> Evaluator:
    """Percent of `test` whose class has the caption most alike to the picture, by the cosine.

    `embed(state, x)` gives (n, d) of pictures (n, H, W, C) uint8 and of captions in tokens, (n,
    length); `rows` are those of the classes. The floor is `most_frequent`, the percent of the most
    frequent class; `chance` is that of any one of as many classes.

    Radford et al., 2021, arXiv:2103.00020, section 3.1.
    """
    extract, prompts = extractor(embed), Arrays(rows)
    floors = {
        "most_frequent": 100 * float(np.bincount(test.labels).max() / len(test)),
        "chance": 100 / len(rows),
    }

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = neighbours(extract(state, prompts), extract(state, test), 1)[1][:, 0]
        return {"accuracy": 100 * float(np.mean(found == test.labels)), **floors}

    def trace(state: Tree) -> None:
        trace_features(embed, state, test)
        trace_features(embed, state, prompts)

    return Evaluator(
        evaluate,
        better={"accuracy": "higher"},
        floors={"accuracy": "most_frequent"},
        trace=trace,
        queries=test,
    )


def retrieval(
    embed: Encode, pairs: Captioned, rows: np.ndarray, most: int = 1000, seed: int = 0
) -> Evaluator:
    """Percent of pictures that have a caption of theirs among the first 1, 5 and 10 of all
    captions, by the cosine (`text_1`, ...), and the other way round (`picture_1`, ...).

    Of at most `most` pictures of `pairs`, drawn once, and their captions, whose tokens are `rows`
    (captions, length). Captions that are equal are one, and any picture of it counts as right. One
    that is as near as the right one is before it. The floors, `chance_text_1` and so on, are of
    random orders.
    """
    extract = extractor(embed)
    chosen = subset(pairs.images, most, seed)
    own = pairs.pairs[np.isin(pairs.pairs[:, 0], chosen)]
    asked, caption = np.unique(own[:, 1], return_inverse=True)
    right = np.zeros((len(chosen), len(asked)), bool)
    right[np.searchsorted(chosen, own[:, 0]), caption] = True
    queries, captions = select(pairs.images, chosen), Arrays(rows[asked])
    both = {"text": right, "picture": right.T}
    floors = {
        f"chance_{what}_{k}": 100 * float(chance(of, k).mean())
        for what, of in both.items()
        for k in RANKS
        if k < of.shape[1]
    }
    names = [name.removeprefix("chance_") for name in floors]

    def evaluate(state: Tree) -> Mapping[str, float]:
        a, b = (unit_rows(z) for z in (extract(state, queries), extract(state, captions)))
        found = {}
        for (what, of), cosines in zip(both.items(), (a @ b.T, b @ a.T), strict=True):
            best = np.where(of, cosines, -np.inf).max(1)
            before = np.sum(~of & (cosines >= best[:, None]), 1)
            found |= {f"{what}_{k}": 100 * float(np.mean(before < k)) for k in RANKS}
        return {name: found[name] for name in names} | floors

    def trace(state: Tree) -> None:
        trace_features(embed, state, queries)
        trace_features(embed, state, captions)

    return Evaluator(
        evaluate,
        better=dict.fromkeys(names, "higher"),
        floors={name: f"chance_{name}" for name in names},
        settings={"most": most, "seed": seed},
        trace=trace,
        queries=queries,
    )


def chance(right: np.ndarray, k: int) -> np.ndarray:
    """Probability that one of `right`, (n, m), is among the first `k` of a random order, (n,)."""
    m, own = right.shape[1], right.sum(1)
    miss = np.ones(len(right))
    for i in range(k):
        miss *= np.maximum(m - own - i, 0) / (m - i)
    return 1 - miss


def nearest_pictures(
    embed: Encode,
    pairs: Captioned,
    rows: np.ndarray,
    n: int = 8,
    k: int = 9,
    seed: int = 0,
) -> Evaluator:
    """`nearest`: of `n` captions, drawn once, a row of the `k` held-out pictures most alike.

    `captions` are those of the rows, in order. At most 10,000 pictures are searched.
    """
    extract = extractor(embed)
    asked, searched = subset(pairs.captions, n, seed), subset(pairs.images, 10_000, seed)
    queries, prompts = select(pairs.images, searched), Arrays(rows[asked])
    k = min(k, len(queries))
    titles = "\n".join(f"{i}. {pairs.captions[j]}" for i, j in enumerate(asked, 1))

    def evaluate(state: Tree) -> Mapping[str, Any]:
        found = neighbours(extract(state, queries), extract(state, prompts), k)[1]
        near = queries.read(found.reshape(-1))["image"]
        return {"nearest": grid(near.reshape(*found.shape, *near.shape[1:])), "captions": titles}

    said = "The held-out pictures whose features are most alike to a caption's, a row for each of"
    return Evaluator(
        evaluate,
        pictures=True,
        captions={
            "nearest": f"{said} the captions listed with it, the nearest first.",
            "captions": "The captions of the rows of pictures.",
        },
        queries=queries,
    )
