"""Image sets that come with the package: they need no download."""

from collections.abc import Callable, Mapping
import functools
import pathlib
from typing import Any

import numpy as np

from ssljax.data.sources import Arrays


@functools.cache
def doodles(split: str) -> Arrays:
    """Doodles: 8,000 and 2,000 drawings of 28x28 pixels in 16 greys, 100 of each of 100 things.

    From Google's Quick, Draw! data set (https://quickdraw.withgoogle.com/data), under the licence
    Creative Commons Attribution 4.0; `doodles.md` next to the file says how they were chosen.
    """
    with np.load(pathlib.Path(__file__).with_name("doodles.npz"), allow_pickle=False) as file:
        image, labels = file[f"{split}_images"], file[f"{split}_labels"]
        return Arrays(image[..., None], labels.astype(np.int32), file["class_names"].tolist())


def digits(split: str) -> Arrays:
    """scikit-learn's digits: 1,437 and 360 images of 8x8 pixels in 17 greys, of 10 classes."""

    from sklearn.datasets import load_digits

    digits: Any = load_digits()  # Its type is guessed from another argument's default.
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    at = np.arange(len(image)) % 5 == 0  # Every fifth is for testing: 1437 and 360, writers mixed.
    at = {"train": ~at, "test": at}[split]
    return Arrays(image[at], digits.target[at].astype(np.int32), [str(i) for i in range(10)])


def photos(split: str) -> Arrays:
    """Tiles of 32x32 pixels of china.jpg and flower.jpg.

    The left 15 columns of each photograph are the training set, the right 4 the test set; the
    column between them is left out. As both sets are parts of the same two photographs, they only
    show that a method runs.
    """
    from sklearn.datasets import load_sample_images

    photos = np.stack(load_sample_images().images)[:, :416, :640]
    columns = {"train": slice(15), "test": slice(16, 20)}[split]
    tiles = (
        photos.reshape(2, 13, 32, 20, 32, 3).swapaxes(2, 3)[:, :, columns].reshape(2, -1, 32, 32, 3)
    )
    return Arrays(
        np.concatenate(tiles),
        np.repeat(np.arange(2, dtype=np.int32), tiles.shape[1]),
        ["china", "flower"],
    )


EMBEDDED: Mapping[str, Callable[[str], Arrays]] = {
    "doodles": doodles,
    "digits": digits,
    "photos": photos,
}
