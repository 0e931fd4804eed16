"""Problems of Larochelle et al., 2007 (ICML, "Many Factors of Variation"), drawn by their recipes.

`rect` needs no data, `bg-rand` needs MNIST. They are not the published files.
"""

import numpy as np

from ssljax.data import image_sets, sources
from ssljax.data.sources import Arrays, Source
from ssljax.errors import InputError
from ssljax.fingerprint import reported

SPLITS = {"train": 10_000, "validation": 2_000, "test": 50_000}


@reported("images")
def variation_images(name: str, split: str, image_size: int = 0) -> Source:
    """`rect`, `rect-1000` or `bg-rand`, or any set of `image_sets.images`.

    The former have a validation split, for choosing settings. `rect-1000` has as many images for
    training and validation as the published files of `rect`: 1,000 and 200. InputError for another
    split of these, and for a validation split of other sets.
    """
    made = {
        "rect": lambda: rectangles(split),
        "bg-rand": lambda: random_background(split),
        "rect-1000": lambda: rectangles(split, {"train": 1000, "validation": 200}.get(split)),
    }
    if name.removesuffix(f":{sources.HELD_OUT}") in made.keys() - {name}:
        raise InputError(
            f"{name.split(':')[0]} has a validation split of its own: give --data "
            f"{name.split(':')[0]} --judge validation."
        )
    if name not in made:
        if split not in ("train", "test"):
            raise InputError(
                f"{name} has no {split} split: only {', '.join(made)} have one for validation; for "
                f"others give --data {name}:{sources.HELD_OUT}."
            )
        return image_sets.images(name, split, image_size)
    if split not in SPLITS:
        raise InputError(f"{name} has no {split} split; it has {', '.join(SPLITS)}.")
    return image_sets.resized(made[name](), image_size)


def rectangles(split: str, n: int | None = None, seed: int = 2007) -> Arrays:
    """Outlines of rectangles, white on black, 28x28, of class tall (0) or wide (1).

    Height and width are uniform among those that differ by 3 pixels or more, and so is the place
    among those wholly in the image.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split)))
    n = n or SPLITS[split]
    # Of 28 x 28 pairs, 652 differ enough: 4 n are plenty.
    sides = rng.integers(1, 29, (4 * n, 2))
    sides = sides[np.abs(sides[:, 0] - sides[:, 1]) >= 3][:n]
    top, left = (rng.integers(0, 29 - s) for s in sides.T)
    bottom, right = (np.stack([top, left]) + sides.T - 1)[..., None, None]
    top, left, y, x = top[:, None, None], left[:, None, None], np.arange(28)[:, None], np.arange(28)
    inside = (top <= y) & (y <= bottom) & (left <= x) & (x <= right)
    edge = inside & ((y == top) | (y == bottom) | (x == left) | (x == right))
    wide = (sides[:, 0] < sides[:, 1]).astype(np.int32)
    return Arrays(255 * edge[..., None].astype(np.uint8), wide, ["tall", "wide"])


def random_background(split: str, seed: int = 2007) -> Arrays:
    """62,000 of MNIST's digits, whose black pixels are replaced by noise, uniform in 0..255."""
    mnist = [image_sets.images("mnist", s) for s in ("train", "test")]
    both = [source.read(np.arange(len(source))) for source in mnist]
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *SPLITS.values()])
    i = list(SPLITS).index(split)
    at = rng.permutation(sum(map(len, mnist)))[ends[i] : ends[i + 1]]
    image = np.concatenate([s["image"] for s in both])[at]
    noise = np.random.default_rng((seed, i)).integers(0, 256, image.shape, np.uint8)
    labels = np.concatenate([s["label"] for s in both])[at]
    return Arrays(np.where(image == 0, noise, image), labels, mnist[0].class_names)
