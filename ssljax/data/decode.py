"""Image files decoded to arrays of one size."""

import pathlib

import numpy as np

from ssljax.errors import InputError


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out the middle: (size, size, channels) uint8.

    The resampling is Pillow's antialiased bilinear one.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):  # Pillow takes 2 and 4 for colours and alpha, and no more.
        return np.concatenate(
            [fit(image[..., i : i + 1], size) for i in range(image.shape[-1])], -1
        )
    height, width = image.shape[:2]
    scale = size / min(height, width)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    new_w, new_h = max(size, round(width * scale)), max(size, round(height * scale))
    picture = picture.resize((new_w, new_h), Image.Resampling.BILINEAR)
    left, top = (new_w - size) // 2, (new_h - size) // 2
    out = np.asarray(picture.crop((left, top, left + size, top + size)))
    return out[..., None] if out.ndim == 2 else out


def header(path: pathlib.Path) -> tuple[int, int, bool]:
    """Width, height, and whether it is gray."""
    from PIL import Image

    with readable(path), Image.open(path) as picture:
        return *picture.size, picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")


def decode(path: pathlib.Path, size: int, channels: int, exact: bool) -> np.ndarray:
    """One image as (size, size, channels); InputError for another size if it must be `exact`."""
    from PIL import Image

    with readable(path), Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip to 255.
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        image = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    if image.shape[:2] == (size, size):
        return image.reshape(size, size, channels)
    if exact:
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, others are {size}x{size}: "
            "give --image-size."
        )
    return fit(image.reshape(*image.shape[:2], channels), size)


class readable:
    """Turns an error of Pillow on a broken file into an InputError that names the file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (OSError, SyntaxError, ValueError)):
            raise InputError(
                f"{self.path} can't be read as an image ({error}): repair or remove it."
            ) from error
