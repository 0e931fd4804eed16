"""Compression: how like the image is what is left of it, at what cost, and what JPEG makes of the same bits."""

from collections.abc import Callable, Mapping
import functools
import io
from typing import Any

from jax import Array
import numpy as np
from scipy.ndimage import correlate1d

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.average import psnr
from ssljax.evals.features import batches, gathered, put, subset, Tree


def compression(
    reconstruct: Callable[[Tree, Array], Array],
    data: Any,
    bits: float,
    n: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, float]]:
    """`psnr` in dB and `ssim` of `reconstruct(state, images)` for `n` images of `data`, at `bits` an image.

    `reconstruct` takes (n, H, W, 1 or 3) uint8 and returns as many in [0, 1], rounded here to 8 bits. Beside them, at
    `jpeg_bits_per_pixel`, `jpeg_psnr` and `jpeg_ssim`: JPEG at the one quality whose mean size is nearest to `bits`,
    without the header, which is the same for all images (JPEG's own Huffman tables) and larger than a small one.
    Means over images; `ssim` only where images have the 11 pixels a side it needs. InputError for bits that are not
    positive.
    """
    if not bits > 0:
        raise InputError(f"An image takes a positive number of bits, not {bits}.")
    indices = subset(data, n, seed)
    run = gathered(reconstruct)

    @functools.cache
    def originals() -> np.ndarray:
        return data.read(indices)["image"]

    @functools.cache
    def jpeg() -> Mapping[str, float]:
        images = originals()
        rate, pictures = nearest_jpeg(images, bits)
        return {f"jpeg_{k}": v for k, v in likeness(images, pictures).items()} | {
            "jpeg_bits_per_pixel": rate / np.prod(images.shape[1:3])
        }

    def evaluate(state: Tree) -> Mapping[str, float]:
        images, parts = originals(), batches(data, indices, batch_size)
        found = np.concatenate(
            [np.asarray(run(state, put(x, split=True)))[:count] for _, count, x in parts]
        )
        if not np.isfinite(found).all():
            raise InputError("Reconstructed images are not finite.")
        found = np.asarray(augment.eight_bits(found))
        return {
            **likeness(images, found),
            "bits_per_pixel": bits / np.prod(images.shape[1:3]),
            **jpeg(),
        }

    return evaluate


def likeness(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean `psnr` and, from 11 pixels a side on, `ssim` of pairs of uint8 images (n, H, W, C)."""
    found = {"psnr": float(psnr(a, b).mean())}
    return found | ({"ssim": float(ssim(a, b).mean())} if min(a.shape[1:3]) >= WINDOW else {})


WINDOW = 11


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of uint8 images (n, H, W, C): Wang et al., 2004, IEEE TIP 13(4), eq. 13; (n,).

    Means, variances and covariance under an 11 x 11 Gaussian of width 1.5, K1 = 0.01, K2 = 0.03, averaged over the
    places where the window is whole, and over channels. InputError for smaller images, or if shapes differ.
    """
    _check(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise InputError(
            f"Structural similarity needs images of {WINDOW} pixels a side or more, not {a.shape[1:3]}."
        )
    w = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / 1.5**2)
    w, r = w / w.sum(), WINDOW // 2

    def mean(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, w, 1), w, 2)[:, r:-r, r:-r]

    x, y = a.astype(np.float64), b.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return similar.mean((1, 2, 3))


def nearest_jpeg(images: np.ndarray, bits: float) -> tuple[float, np.ndarray]:
    """The mean bits and the pictures that JPEG gives at the quality (1 to 95) whose rate is nearest to `bits`.

    Found by bisection, on `images` (n, H, W, 1 or 3) uint8; the rate rises with the quality.
    """

    @functools.cache
    def rate(quality: int) -> float:
        return 8 * float(np.mean([_body(_jpeg(x, quality)) for x in images]))

    low, high = 1, 95
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) <= bits else (low, middle)
    quality = min((low, high), key=lambda q: abs(rate(q) - bits))
    return rate(quality), np.stack([_decoded(_jpeg(x, quality), x.shape) for x in images])


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _decoded(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data))).reshape(shape)


def _body(data: bytes) -> int:
    """Bytes of what is coded of the image: from the end of the header of its scan to the mark of the end."""
    scan = data.index(b"\xff\xda")
    return len(data) - scan - 2 - int.from_bytes(data[scan + 2 : scan + 4], "big") - 2


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(
            f"Two sets of images (n, H, W, C) of one shape are needed, not {a.shape} and {b.shape}."
        )
