"""Evaluators that a representation of images gets: with labels, or with none."""

from collections.abc import Callable, Mapping

from jax import Array

from ssljax.data import augment
from ssljax.data.image_sets import ImageSets
from ssljax.evals.alignment_uniformity import alignment_uniformity
from ssljax.evals.collapse import collapse
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, Tree
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, nearest_images, views
from ssljax.evals.probe import linear_probe


def representation(
    encode: Encode,
    sets: ImageSets,
    show: Callable[[Array, Mapping[str, Array]], Array] | None = None,
    probe: bool = True,
) -> dict[str, Evaluator]:
    """Evaluators of the features `encode(state, images)`, (n, d), of uint8 images (n, H, W, C).

    With labels `knn` and, unless `probe` is False, `probe` say how well classes can be read off;
    without labels there is `alignment`, if `show` is given. Both have `collapse`, `features`, a map
    of them, and `neighbours`, the images that the features are most alike for. `show(key, batch)`
    gives random views, floats in [0, 1], for `alignment` and a picture, `views`.
    """
    found = {}
    if sets.labelled:
        found["knn"] = knn(encode, sets.bank, sets.queries)
        if probe:
            found["probe"] = linear_probe(encode, sets.bank, sets.queries)
    elif show is not None:

        def view(state: Tree, key: Array, images: Array) -> Array:
            return encode(state, augment.eight_bits(show(key, {"image": images})))

        found["alignment"] = alignment_uniformity(view, sets.queries)
    found["collapse"] = collapse(encode, sets.queries)
    found["features"] = feature_map(encode, sets.queries)
    found["neighbours"] = nearest_images(encode, sets.bank, sets.queries, sets.labelled)
    if show is not None:
        found["views"] = views(show, sets.train)
    return found
