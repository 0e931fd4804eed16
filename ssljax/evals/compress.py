"""Compression: how like an image is its reconstruction, at what rate, next to JPEG at that rate."""

from collections.abc import Callable, Mapping
import functools
import io
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.average import psnr
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import batches, examples, gathered, PART, part_size, put, subset, Tree


def compression(
    reconstruct: Callable[[Tree, Array], Array],
    data: Any,
    bits: float,
    n: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
) -> Evaluator:
    """`psnr` in dB and `ssim` of `reconstruct(state, images)`, at `bits` an image.

    `reconstruct` takes (n, H, W, 1 or 3) uint8 and returns as many in [0, 1], rounded here to 8
    bits. The floors `jpeg_psnr` and `jpeg_ssim`, at `jpeg_bits_per_pixel`, are JPEG's at the one
    quality whose mean size is nearest to `bits`, without the header, which is the same for all
    images (JPEG's own Huffman tables) and larger than a small image. Means over `n` images of
    `data`; `ssim` only where images have the 11 pixels a side that it needs. InputError for bits
    that are not positive, and for images of other channels.
    """
    if not bits > 0:
        raise InputError(f"An image takes a positive number of bits, not {bits}.")
    indices = subset(data, n, seed)
    shape = tuple(data.shape)
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise InputError(f"JPEG takes images (H, W, 1 or 3), not {shape}.")
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
        images, parts = originals(), batches(data, indices, batch_size, split=True)
        found = [np.asarray(run(state, put(x, split=True)))[:count] for _, count, x in parts]
        if not all(np.isfinite(x).all() for x in found):
            raise InputError("Reconstructed images are not finite.")
        again = np.concatenate([np.asarray(augment.eight_bits(jnp.asarray(x))) for x in found])
        return {
            **likeness(images, again),
            "bits_per_pixel": bits / np.prod(images.shape[1:3]),
            **jpeg(),
        }

    def trace(state: Tree) -> None:
        x = examples(data, part_size(data, len(indices), batch_size))
        check_images("Reconstructions", jax.eval_shape(run, state, x).shape, x.shape)

    return Evaluator(
        evaluate,
        better={"psnr": "higher", "ssim": "higher"},
        floors={"psnr": "jpeg_psnr", "ssim": "jpeg_ssim"},
        settings={"n": n, "bits": bits, "seed": seed},
        trace=trace,
        queries=data,
    )


def likeness(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean `psnr` and, from 11 pixels a side on, `ssim` of pairs of uint8 images (n, H, W, C)."""
    check_images("Images", b.shape, a.shape)
    size = max(1, PART // (8 * int(np.prod(a.shape[1:]))))  # SSIM has 8 arrays of float64.
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(a), size):
        signals.check()
        x, y = a[start : start + size], b[start : start + size]
        found.setdefault("psnr", []).append(np.asarray(psnr(jnp.asarray(x), jnp.asarray(y))))
        if min(a.shape[1:3]) >= WINDOW:
            found.setdefault("ssim", []).append(ssim(x, y))
    return {name: float(np.concatenate(x).mean()) for name, x in found.items()}


def check_images(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """InputError unless two sets of images have the same shape (n, H, W, C)."""
    if len(found) != 4 or found != wanted:
        raise InputError(f"{what} must be of shape {wanted}, not {found}.")


WINDOW = 11


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (n,) of pairs of uint8 images (n, H, W, C).

    Wang et al., 2004, IEEE TIP 13(4), eq. 13. Means, variances and covariance under an 11 x 11
    Gaussian of width 1.5, K1 = 0.01, K2 = 0.03, averaged over the places where the window is whole,
    and over channels. InputError for smaller images, or if shapes differ.
    """
    from scipy.ndimage import correlate1d

    check_images("Images", b.shape, a.shape)
    if min(a.shape[1:3]) < WINDOW:
        raise InputError(
            f"Structural similarity needs images of {WINDOW} pixels a side or more, not "
            f"{a.shape[1:3]}."
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
    """Mean bits of an image, and the decoded images, of JPEG at the rate nearest to `bits`.

    The quality, 1 to 95, is found by bisection on `images` (n, H, W, 1 or 3) uint8: the rate rises
    with it.
    """

    @functools.cache
    def rate(quality: int) -> float:
        signals.check()
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
    """Bytes of the coded image: from the end of its scan's header to the end marker."""
    scan = data.index(b"\xff\xda")
    return len(data) - scan - 2 - int.from_bytes(data[scan + 2 : scan + 4], "big") - 2
