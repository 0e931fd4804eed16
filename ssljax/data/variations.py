"""Problems of Larochelle et al., 2007 (ICML, "Many Factors of Variation"), made anew from their recipes.

`rect` needs no data, `bg-rand` needs MNIST. They are not the published files, but drawn in the same way.
"""

import numpy as np

from ssljax.data import sources
from ssljax.data.sources import Arrays, Source
from ssljax.errors import InputError
from ssljax.fingerprint import reported

SPLITS = {"train": 10_000, "validation": 2_000, "test": 50_000}


@reported("images")
def images(name: str, split: str, image_size: int = 0) -> Source:
    """`rect`, `rect-1000` or `bg-rand`, with a validation split to choose settings by, or any set of `sources.images`.

    `rect-1000` has the 1,000 and 200 images of the published files of `rect` for training and validation. InputError
    for another split of these, and for a validation split of other sets.
    """
    made = {
        "rect": lambda: rectangles(split),
        "bg-rand": lambda: random_background(split),
        "rect-1000": lambda: rectangles(split, {"train": 1000, "validation": 200}.get(split)),
    }
    if name.removesuffix(f":{sources.HELD_OUT}") in made.keys() - {name}:
        raise InputError(
            f"{name.split(':')[0]} has a validation split of its own: give --data {name.split(':')[0]} "
            "--judge validation."
        )
    if name not in made:
        if split not in ("train", "test"):
            raise InputError(
                f"{name} has no {split} split: only {', '.join(made)} have one for validation; of others "
                f"give --data {name}:{sources.HELD_OUT}."
            )
        return sources.images(name, split, image_size)
    if split not in SPLITS:
        raise InputError(f"{name} has no {split} split; it has {', '.join(SPLITS)}.")
    return sources._resized(made[name](), image_size)


def rectangles(split: str, n: int | None = None, seed: int = 2007) -> Arrays:
    """Outlines of rectangles, white on black, 28x28: are they tall (0) or wide (1)?

    Height and width are uniform, again where they differ by less than 3 pixels; so is the place, wholly in the image.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split)))
    n = n or SPLITS[split]
    sides = rng.integers(1, 29, (4 * n, 2))
    sides = sides[np.abs(sides[:, 0] - sides[:, 1]) >= 3][
        :n
    ]  # Of 28 x 28 pairs 652 differ enough: 4n are plenty.
    top, left = (rng.integers(0, 29 - s) for s in sides.T)
    bottom, right = (np.stack([top, left]) + sides.T - 1)[..., None, None]
    top, left, y, x = top[:, None, None], left[:, None, None], np.arange(28)[:, None], np.arange(28)
    inside = (top <= y) & (y <= bottom) & (left <= x) & (x <= right)
    edge = inside & ((y == top) | (y == bottom) | (x == left) | (x == right))
    wide = (sides[:, 0] < sides[:, 1]).astype(np.int32)
    return Arrays(255 * edge[..., None].astype(np.uint8), wide, ["tall", "wide"])


def random_background(split: str, seed: int = 2007) -> Arrays:
    """MNIST's digits, where they are black filled with noise that is uniform in 0..255; 62,000 of its 70,000."""
    both = [sources.images("mnist", s) for s in ("train", "test")]
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *SPLITS.values()])
    i = list(SPLITS).index(split)
    at = rng.permutation(sum(map(len, both)))[ends[i] : ends[i + 1]]
    image = np.concatenate([s.image for s in both])[at]
    noise = np.random.default_rng((seed, i)).integers(0, 256, image.shape, np.uint8)
    labels = np.concatenate([s.labels for s in both])[at]
    return Arrays(np.where(image == 0, noise, image), labels, both[0].class_names)
