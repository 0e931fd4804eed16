"""Augmentations as batched JAX: images (n, height, width, channels), float in [0, 1].

Every image has its own random numbers. The formulas are torchvision's
(https://docs.pytorch.org/vision/stable/transforms.html), applied to a whole batch at once and
compiled into the training step. They take any image size and channel count: without three channels,
contrast is about the mean of all channels, and saturation, hue and grayscale change nothing. Bad
arguments raise InputError.

Photographs squeezed to squares are cropped by `random_resized_crop` with their aspect. Flips,
colours, `grayscale` and `solarize` may come before it; what has a length in pixels or fractions of
a side (`gaussian_blur`, `translate`, `cutout`, `resize_square`, `crop_and_resize`) must come after.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Literal

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.sharding import over_batch

GRAY = 0.2989, 0.587, 0.114  # ITU-R 601 luma, rounded as in torchvision.
Interpolation = Literal["bilinear", "bicubic"]


def to_float(images: Array) -> Array:
    """uint8 images as float32 in [0, 1]."""
    return (
        images.astype(jnp.float32) / 255
        if images.dtype == jnp.uint8
        else images.astype(jnp.float32)
    )


def to_signed(images: Array) -> Array:
    """uint8 images as float32 in [-1, 1], the range of a generator's tanh."""
    return 2 * to_float(images) - 1


def eight_bits(x: Array) -> Array:
    """Images clipped to [0, 1] as uint8, the inverse of `to_float`."""
    return jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)


def binarize(key: Array, x: Array) -> Array:
    """Pixels 1 with probability `x`, else 0: MNIST "dynamically binarised"."""
    return over_batch(jax.random.bernoulli(key, x)).astype(jnp.float32)


def random_resized_crop(
    key: Array,
    x: Array,
    size: int | tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
    interpolation: Interpolation = "bilinear",
    aspect: Array | None = None,
) -> Array:
    """Crops a random box of each image and resizes it to `size`, by default the image's own.

    `random_boxes` draws the boxes. With `aspect` (n,), image i is a photograph of that width by
    height, squeezed to h x w pixels: its box is drawn on the photograph, at the smallest size with
    that aspect and no side shorter than the image's, and mapped to the image. So a photograph that
    is square has the boxes of its own pixels. InputError for an aspect of another shape.

    Against torchvision on files of 500x375 and 500x333: whole pixels of 320 on the shorter side
    move the distributions of areas, ratios and corners by a Kolmogorov-Smirnov distance of 0.03 at
    most (without whole pixels 0.04), and by no more than chance if sides and corners are known to
    a hundredth only. Crops of 224 pixels from five photographs of 3:2, squeezed to 320 (448)
    pixels, differ by 1.3 to 3.8 (0.8 to 2.3) of 255 in the mean and by up to 115 (86) at sharp
    edges, bicubic ones by 1.5 to 4.7 (0.9 to 2.9). Two thirds of it come from the size: three of
    these photographs with a shorter side of 320 pixels, not squeezed, differ by 0.9 to 2.6.
    """
    n, h, w, _ = x.shape
    rows, columns = np.int64(h), np.int64(w)
    if aspect is not None:
        if aspect.shape != (n,):
            raise InputError(f"{n} images need an aspect each, not an array {aspect.shape}.")
        rows = jnp.maximum(h, jnp.round(w / aspect))
        columns = jnp.maximum(w, jnp.round(h * aspect))
    top, left, height, width = random_boxes(key, n, rows, columns, scale, ratio, tries)
    if aspect is not None:
        top, height = top * (h / rows), height * (h / rows)
        left, width = left * (w / columns), width * (w / columns)
    return crop_and_resize(x, top, left, height, width, size or (h, w), interpolation)


def random_boxes(
    key: Array,
    n: int,
    h: np.integer | Array,
    w: np.integer | Array,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> tuple[Array, Array, Array, Array]:
    """Tops, lefts, heights and widths (n,), in whole pixels, of boxes in images of h x w pixels.

    `h` and `w` are one size of all images or n sizes. The area is a fraction in `scale`, and the
    ratio of width to height in `ratio`. Boxes are drawn as in torchvision's `RandomResizedCrop`:
    the first of `tries` boxes that fits inside the image, and otherwise a central one of the
    nearest allowed ratio. InputError for a range that is none.
    """
    _check_range("scale", scale, 0, 1)
    _check_range("ratio", ratio, 0, float("inf"))
    k_area, k_ratio, k_top, k_left = jax.random.split(key, 4)
    columns = lambda side: side if side.ndim == 0 else side[:, None]
    area = over_batch(jax.random.uniform(k_area, (n, tries), minval=scale[0], maxval=scale[1]))
    area = area * columns(h) * columns(w)
    aspect = jnp.exp(
        over_batch(
            jax.random.uniform(
                k_ratio, (n, tries), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
            )
        )
    )
    bw, bh = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (bw >= 1) & (bw <= columns(w)) & (bh >= 1) & (bh <= columns(h))
    first = jnp.argmax(fits, axis=1, keepdims=True)
    whole_w, whole_h = (h * ratio[1]).round().clip(1, w), (w / ratio[0]).round().clip(1, h)
    any_fits = fits.any(1)
    bw = jnp.where(any_fits, jnp.take_along_axis(bw, first, 1)[:, 0], whole_w)
    bh = jnp.where(any_fits, jnp.take_along_axis(bh, first, 1)[:, 0], whole_h)
    u_top, u_left = (
        over_batch(jax.random.uniform(k_top, (n,))),
        over_batch(jax.random.uniform(k_left, (n,))),
    )
    top = jnp.where(any_fits, jnp.floor(u_top * (h - bh + 1)), (h - whole_h) // 2)
    left = jnp.where(any_fits, jnp.floor(u_left * (w - bw + 1)), (w - whole_w) // 2)
    return top, left, bh, bw


def resize_square(x: Array, size: int, interpolation: Interpolation = "bilinear") -> Array:
    """Whole images resized to `size` x `size` pixels; unchanged for a size of 0 or their own."""
    if not size or x.shape[1:3] == (size, size):
        return x
    zero, ones = jnp.zeros(len(x)), jnp.ones(len(x))
    height, width = x.shape[1] * ones, x.shape[2] * ones
    return crop_and_resize(x, zero, zero, height, width, size, interpolation)


def crop_and_resize(
    x: Array,
    top: Array,
    left: Array,
    height: Array,
    width: Array,
    size: int | tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Array:
    """Box i of image i, in pixels, resized to `size` with an antialiased filter.

    The filters are those of Pillow and of torchvision with antialias: a triangle, or for bicubic
    Keys' cubic with a = -0.5, whose result is clipped to [0, 1] (the TensorFlow code of SimCLR and
    BYOL has the same cubic without antialiasing). Both are separable: two batched matrix products
    with (n, out, in) weights, without gathers.
    """
    out_h, out_w = (size, size) if isinstance(size, int) else size
    # A TPU would round pixels to bfloat16, coarser than 8 bits.
    einsum = partial(jnp.einsum, precision="highest")
    kernel = {"bilinear": _triangle, "bicubic": _cubic}[interpolation]
    x = einsum("nih,nhwc->niwc", _resample(kernel, top, height, x.shape[1], out_h), x)
    x = einsum("njw,niwc->nijc", _resample(kernel, left, width, x.shape[2], out_w), x)
    return jnp.clip(x, 0, 1) if interpolation == "bicubic" else x


def _triangle(x: Array) -> Array:
    return jnp.maximum(0, 1 - jnp.abs(x))


def _cubic(x: Array) -> Array:
    """Keys, 1981, eq. 4 with a = -0.5."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _resample(
    kernel: Callable[[Array], Array], start: Array, length: Array, n_in: int, n_out: int
) -> Array:
    """The weights (n, n_out, n_in) that resample `length` pixels from `start` to n_out pixels."""
    start, length = (
        start[:, None, None].astype(jnp.float32),
        length[:, None, None].astype(jnp.float32),
    )
    step = length / n_out
    centre = start + (jnp.arange(n_out)[None, :, None] + 0.5) * step
    pixel = jnp.arange(n_in)[None, None, :] + 0.5
    weight = kernel((pixel - centre) / jnp.maximum(step, 1))
    inside = (pixel > start - 0.5) & (pixel < start + length + 0.5)
    weight = jnp.where(inside, weight, 0)
    return weight / weight.sum(-1, keepdims=True)


def flip(key: Array, x: Array, p: float = 0.5) -> Array:
    """Horizontal flip of each image with probability `p`."""
    return jnp.where(_coin(key, p, x), x[:, :, ::-1], x)


def colour_jitter(
    key: Array,
    x: Array,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    p: float = 1.0,
) -> Array:
    """Random brightness, contrast, saturation and hue with probability `p`, in a random order.

    Factors are uniform in [max(0, 1 - a), 1 + a], the hue's shift in [-hue, hue] turns with hue at
    most 0.5. Everything is drawn for each image, the order too.
    """
    if not 0 <= hue <= 0.5:
        raise InputError(f"hue must be in [0, 0.5] turns, not {hue}.")
    for name, amount in (
        ("brightness", brightness),
        ("contrast", contrast),
        ("saturation", saturation),
    ):
        if not amount >= 0:
            raise InputError(f"{name} must be at least 0, not {amount}.")
    n = len(x)
    factor = lambda k, a: over_batch(
        jax.random.uniform(k, (n, 1, 1), minval=max(0.0, 1 - a), maxval=1 + a)
    )
    k_apply, k_order, kb, kc, ks, kh = jax.random.split(key, 6)
    b, c, s = factor(kb, brightness), factor(kc, contrast), factor(ks, saturation)
    shift = over_batch(jax.random.uniform(kh, (n, 1, 1), minval=-hue, maxval=hue))
    ops = [
        (brightness, lambda v: _blend(v, [0.0] * len(v), b)),
        (contrast, lambda v: _contrast(v, c)),
    ]
    if x.shape[-1] == 3:
        ops += [
            (saturation, lambda v: _blend(v, [_luma(v)] * 3, s)),
            (hue, lambda v: _shift_hue(v, shift)),
        ]
    ops = [op for amount, op in ops if amount > 0]
    if not ops:
        return x
    # Separate planes, (n, height, width): a last axis of 3 keeps a CPU from vectorising. And a
    # loop, since XLA would fuse the operations into one expression that recomputes the first ones
    # for every use of the last.
    planes = tuple(x[..., i] for i in range(x.shape[-1]))
    order = jnp.argsort(over_batch(jax.random.uniform(k_order, (n, len(ops)))), axis=1)

    def apply_one(v, at):
        results = [op(v) for op in ops]
        return tuple(
            _select(at[:, None, None], [r[i] for r in results]) for i in range(len(v))
        ), None

    new, _ = jax.lax.scan(apply_one, planes, order.T)
    return jnp.where(_coin(k_apply, p, x), jnp.stack(new, -1), x)


def grayscale(key: Array, x: Array, p: float = 0.2) -> Array:
    """Each image as its luma, in all three channels, with probability `p`."""
    if x.shape[-1] != 3:
        return x
    gray = jnp.tensordot(x, jnp.asarray(GRAY, x.dtype), 1, precision="highest")[..., None]
    return jnp.where(_coin(key, p, x), gray, x)


def gaussian_blur(
    key: Array,
    x: Array,
    sigma: tuple[float, float] = (0.1, 2.0),
    p: float = 0.5,
    kernel: float = 0.1,
) -> Array:
    """Gaussian blur of random width `sigma` in pixels with probability `p`.

    The filter is torchvision's and SimCLR's: sampled at whole pixels on a support of `kernel` times
    the height, normalised, with reflected borders (Chen et al., 2020, appendix A: kernel 0.1, sigma
    in [0.1, 2], p 0.5; not for CIFAR-10). Pillow's, in the code of BYOL, Barlow Twins and DINO,
    does not cut the support: images differ by 0.0009 at 224 pixels and by 0.015 at 32, on average.
    """
    _check_range("sigma", sigma, 0, float("inf"))
    n, h, w, _ = x.shape
    r = max(1, int(kernel * h) // 2)
    if r >= min(h, w):
        raise InputError(
            f"A blur that reaches {r} pixels needs images larger than that, not {h}x{w}."
        )
    k_apply, k_sigma = jax.random.split(key)
    width = over_batch(jax.random.uniform(k_sigma, (n, 1), minval=sigma[0], maxval=sigma[1]))
    g = jnp.exp(-0.5 * (jnp.arange(-r, r + 1) / width) ** 2)
    g = (g / g.sum(1, keepdims=True))[:, :, None, None, None]
    y = jnp.pad(x, ((0, 0), (r, r), (0, 0), (0, 0)), mode="reflect")
    y = sum(g[:, i] * y[:, i : i + h] for i in range(2 * r + 1))
    y = jnp.pad(y, ((0, 0), (0, 0), (r, r), (0, 0)), mode="reflect")
    y = sum(g[:, i] * y[:, :, i : i + w] for i in range(2 * r + 1))
    return jnp.where(_coin(k_apply, p, x), y, x)


def solarize(key: Array, x: Array, threshold: float = 0.5, p: float = 0.2) -> Array:
    """Values at or above `threshold` inverted, with probability `p`."""
    return jnp.where(_coin(key, p, x) & (x >= threshold), 1 - x, x)


def diff_augment(key: Array, x: Array, shift: float = 1 / 8, hole: float = 1 / 2) -> Array:
    """DiffAugment's colour, translation and cutout of a critic's inputs, images in [-1, 1].

    For real and generated images; gradients pass to the generator. `shift` and `hole` are fractions
    of the sides, rounded half up as in the authors' code. Zhao et al., 2020, arXiv:2006.10738,
    appendix.
    """
    k1, k2, k3 = jax.random.split(key, 3)
    return cutout(k3, translate(k2, diff_colour(k1, x), shift), hole)


def diff_colour(key: Array, x: Array) -> Array:
    """Brightness + U(-0.5, 0.5), saturation · U(0, 2), contrast · U(0.5, 1.5), without clipping."""
    b, s, c = over_batch(jax.random.uniform(key, (len(x), 3)))[:, :, None, None, None].swapaxes(
        0, 1
    )
    x = x + b - 0.5
    gray = x.mean(-1, keepdims=True)
    x = gray + 2 * s * (x - gray)
    level = x.mean((1, 2, 3), keepdims=True)
    return level + (c + 0.5) * (x - level)


def translate(key: Array, x: Array, shift: float = 1 / 8) -> Array:
    """Each image moved by whole pixels, up to `shift` of its sides either way, with zeros behind
    it."""
    n, h, w, _ = x.shape
    reach_h, reach_w = _half_up(shift * h), _half_up(shift * w)
    k1, k2 = jax.random.split(key)
    row = over_batch(jax.random.randint(k1, (n, 1), -reach_h, reach_h + 1)) + jnp.arange(h)
    column = over_batch(jax.random.randint(k2, (n, 1), -reach_w, reach_w + 1)) + jnp.arange(w)
    x = jnp.einsum("nih,nhwc->niwc", jax.nn.one_hot(row, h, dtype=x.dtype), x, precision="highest")
    return jnp.einsum(
        "njw,niwc->nijc", jax.nn.one_hot(column, w, dtype=x.dtype), x, precision="highest"
    )


def cutout(key: Array, x: Array, hole: float = 1 / 2) -> Array:
    """Each image with zeros in a box around a random pixel, of `hole` times its sides."""
    n, h, w, _ = x.shape
    k1, k2 = jax.random.split(key)

    def covered(
        key, size
    ):  # (n, size): pixels from half a box before the centre, inside the image.
        length = _half_up(hole * size)
        start = over_batch(jax.random.randint(key, (n, 1), 0, size + 1 - length % 2)) - length // 2
        return (jnp.arange(size) >= start) & (jnp.arange(size) < start + length)

    return jnp.where((covered(k1, h)[:, :, None] & covered(k2, w)[:, None])[..., None], 0, x)


def _half_up(x: float) -> int:
    return int(x + 0.5)


def _coin(key: Array, p: float, x: Array) -> Array:
    return over_batch(jax.random.bernoulli(key, p, (len(x), 1, 1, 1)))


def _select(at: Array, options: list[Array]) -> Array:
    out = options[0]
    for i, option in enumerate(options[1:], 1):
        out = jnp.where(at == i, option, out)
    return out


def _luma(v: list[Array]) -> Array:
    parts = [a * p for a, p in zip(GRAY, v)] if len(v) == 3 else v
    total = functools.reduce(jnp.add, parts)
    return total if len(v) == 3 else total / len(v)


def _blend(v, base, factor):
    return [jnp.clip(factor * p + (1 - factor) * q, 0, 1) for p, q in zip(v, base)]


def _contrast(v, factor):
    return _blend(v, [_luma(v).mean((1, 2), keepdims=True)] * len(v), factor)


def _shift_hue(v: list[Array], shift: Array) -> list[Array]:
    """The hue of HSV shifted by `shift` turns, by its piecewise linear form, without branches."""
    r, g, b = v
    top, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    chroma = top - low
    c = jnp.where(chroma > 0, chroma, 1)
    h = jnp.where(top == r, (g - b) / c, jnp.where(top == g, 2 + (b - r) / c, 4 + (r - g) / c))
    h = h + 6 * shift

    def channel(n):  # HSV to RGB: f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + h) mod 6.
        k = n + h
        k = k - 6 * jnp.floor(k / 6)  # jnp.mod, but for its checks: four times as fast on a CPU.
        return top - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return [channel(5), channel(3), channel(1)]


def _check_range(name: str, bounds: tuple[float, float], low: float, high: float) -> None:
    if not low < bounds[0] <= bounds[1] <= high:
        raise InputError(
            f"{name} must be two rising numbers above {low} and at most {high}, not {bounds}."
        )
