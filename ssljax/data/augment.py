"""Augmentations as batched JAX: images (n, height, width, channels), float in [0, 1]; every example has its own draw.

The formulas are torchvision's (https://docs.pytorch.org/vision/stable/transforms.html), each applied to a whole batch
at once and compiled into the training step. They take any image size and channel count: without three channels,
contrast is about the mean of all, and saturation, hue and grayscale change nothing. Bad arguments raise InputError.
"""

from functools import partial

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch

GRAY = 0.2989, 0.587, 0.114  # ITU-R 601 luma, rounded as in torchvision.


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
    """Images in [0, 1], cut off there, as uint8: what `to_float` undoes."""
    return jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)


def binarize(key: Array, x: Array) -> Array:
    """Pixels 1 with the probability that `x` gives, else 0: MNIST "dynamically binarised", anew at each draw."""
    return over_batch(jax.random.bernoulli(key, x)).astype(jnp.float32)


def random_resized_crop(
    key: Array,
    x: Array,
    size: int | tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> Array:
    """Crops a box of a random area (as a fraction, in `scale`) and aspect ratio, and resizes it to `size`.

    Boxes are drawn as torchvision's `RandomResizedCrop` does: up to `tries` whole-pixel boxes, the first that fits
    inside the image, and otherwise a central one of the nearest allowed ratio. The default size is the image's own.
    """
    _check_range("scale", scale, 0, 1)
    _check_range("ratio", ratio, 0, float("inf"))
    n, h, w, _ = x.shape
    k_area, k_ratio, k_top, k_left = jax.random.split(key, 4)
    area = (
        over_batch(jax.random.uniform(k_area, (n, tries), minval=scale[0], maxval=scale[1])) * h * w
    )
    aspect = jnp.exp(
        over_batch(
            jax.random.uniform(
                k_ratio, (n, tries), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
            )
        )
    )
    bw, bh = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (bw >= 1) & (bw <= w) & (bh >= 1) & (bh <= h)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    whole_w, whole_h = max(1, min(w, round(h * ratio[1]))), max(1, min(h, round(w / ratio[0])))
    any_fits = fits.any(1)
    bw = jnp.where(any_fits, jnp.take_along_axis(bw, first, 1)[:, 0], whole_w)
    bh = jnp.where(any_fits, jnp.take_along_axis(bh, first, 1)[:, 0], whole_h)
    u_top, u_left = (
        over_batch(jax.random.uniform(k_top, (n,))),
        over_batch(jax.random.uniform(k_left, (n,))),
    )
    top = jnp.where(any_fits, jnp.floor(u_top * (h - bh + 1)), (h - whole_h) // 2)
    left = jnp.where(any_fits, jnp.floor(u_left * (w - bw + 1)), (w - whole_w) // 2)
    return crop_and_resize(x, top, left, bh, bw, size or (h, w))


def resize(x: Array, size: int) -> Array:
    """Whole images at `size` x `size` pixels; left alone where they are of that size, or it is 0."""
    if not size or x.shape[1:3] == (size, size):
        return x
    zero, ones = jnp.zeros(len(x)), jnp.ones(len(x))
    return crop_and_resize(x, zero, zero, x.shape[1] * ones, x.shape[2] * ones, size)


def crop_and_resize(
    x: Array, top: Array, left: Array, height: Array, width: Array, size: int | tuple[int, int]
) -> Array:
    """Cuts box i, in pixels, out of image i and resizes it to `size` with an antialiased triangle filter (Pillow's).

    Separable, so it is two batched matrix products with (n, out, in) weights: no gathers.
    """
    out_h, out_w = (size, size) if isinstance(size, int) else size
    einsum = partial(
        jnp.einsum, precision="highest"
    )  # A TPU would round pixels to bfloat16, coarser than 8 bits.
    x = einsum("nih,nhwc->niwc", _triangle(top, height, x.shape[1], out_h), x)
    return einsum("njw,niwc->nijc", _triangle(left, width, x.shape[2], out_w), x)


def _triangle(start: Array, length: Array, n_in: int, n_out: int) -> Array:
    """The weights (n, n_out, n_in) that resample `length` pixels from `start` on to n_out pixels."""
    start, length = (
        start[:, None, None].astype(jnp.float32),
        length[:, None, None].astype(jnp.float32),
    )
    step = length / n_out
    centre = start + (jnp.arange(n_out)[None, :, None] + 0.5) * step
    pixel = jnp.arange(n_in)[None, None, :] + 0.5
    weight = jnp.maximum(0, 1 - jnp.abs(pixel - centre) / jnp.maximum(step, 1))
    weight = jnp.where(
        (pixel > start) & (pixel < start + length), weight, 0
    )  # Nothing from outside the box.
    return weight / weight.sum(-1, keepdims=True)


def flip(key: Array, x: Array, p: float = 0.5) -> Array:
    """Mirrors each image left to right with probability `p`."""
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
    """With probability `p`: brightness, contrast, saturation and hue by random amounts, in a random order per image.

    Factors are uniform in [max(0, 1 - a), 1 + a] and the hue's shift in [-hue, hue] turns, hue at most 0.5.
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
    # Planes of their own, (n, height, width) each: a last axis of 3 keeps a CPU from vectorising. And a loop, since XLA
    # would fuse the operations into one expression that works the first ones out again for every use of the last.
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
    """Replaces each image by its luma, in all three channels, with probability `p`."""
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
    """With probability `p`, blurs with a Gaussian of random width in pixels, its support `kernel` of the height (odd).

    The filter is torchvision's: sampled at whole pixels, normalised, borders reflected. (Chen et al., 2020,
    appendix A: kernel a tenth of the image, sigma in [0.1, 2], p 0.5; they leave it out for CIFAR-10.)
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
    """Inverts all values at or above `threshold` with probability `p`."""
    return jnp.where(_coin(key, p, x) & (x >= threshold), 1 - x, x)


def diff_augment(key: Array, x: Array, shift: float = 1 / 8, hole: float = 1 / 2) -> Array:
    """DiffAugment's colour, translation and cutout, for what a critic sees, real and generated, with images in [-1, 1].

    Zhao et al., 2020, arXiv:2006.10738, appendix; the generator's gradient goes through all three.
    """
    k1, k2, k3 = jax.random.split(key, 3)
    return cutout(k3, translate(k2, diff_colour(k1, x), shift), hole)


def diff_colour(key: Array, x: Array) -> Array:
    """Brightness by U(-0.5, 0.5), saturation by U(0, 2), contrast by U(0.5, 1.5), of images in [-1, 1], not clipped."""
    b, s, c = over_batch(jax.random.uniform(key, (len(x), 3)))[:, :, None, None, None].swapaxes(
        0, 1
    )
    x = x + b - 0.5
    gray = x.mean(-1, keepdims=True)
    x = gray + 2 * s * (x - gray)
    level = x.mean((1, 2, 3), keepdims=True)
    return level + (c + 0.5) * (x - level)


def translate(key: Array, x: Array, shift: float = 1 / 8) -> Array:
    """Moves each image by up to the part `shift` of its sides, whole pixels, either way; zeros come in."""
    n, h, w, _ = x.shape
    reach_h, reach_w = round(shift * h), round(shift * w)
    k1, k2 = jax.random.split(key)
    row = over_batch(jax.random.randint(k1, (n, 1), -reach_h, reach_h + 1)) + jnp.arange(h)
    column = over_batch(jax.random.randint(k2, (n, 1), -reach_w, reach_w + 1)) + jnp.arange(w)
    x = jnp.einsum("nih,nhwc->niwc", jax.nn.one_hot(row, h, dtype=x.dtype), x, precision="highest")
    return jnp.einsum(
        "njw,niwc->nijc", jax.nn.one_hot(column, w, dtype=x.dtype), x, precision="highest"
    )


def cutout(key: Array, x: Array, hole: float = 1 / 2) -> Array:
    """Zeros in a box with the part `hole` of each side, around a random pixel; it may reach over the border."""
    n, h, w, _ = x.shape
    k1, k2 = jax.random.split(key)

    def covered(key, size):  # (n, size): the pixels from half a box before the centre on.
        length = round(hole * size)
        start = over_batch(jax.random.randint(key, (n, 1), 0, size + 1 - length % 2)) - length // 2
        return (jnp.arange(size) >= start) & (jnp.arange(size) < start + length)

    return jnp.where((covered(k1, h)[:, :, None] & covered(k2, w)[:, None])[..., None], 0, x)


def _coin(key: Array, p: float, x: Array) -> Array:
    return over_batch(jax.random.bernoulli(key, p, (len(x), 1, 1, 1)))


def _select(at: Array, options: list[Array]) -> Array:
    out = options[0]
    for i, option in enumerate(options[1:], 1):
        out = jnp.where(at == i, option, out)
    return out


def _luma(v: list[Array]) -> Array:
    return sum(a * p for a, p in zip(GRAY, v)) if len(v) == 3 else sum(v) / len(v)


def _blend(v, base, factor):
    return [jnp.clip(factor * p + (1 - factor) * q, 0, 1) for p, q in zip(v, base)]


def _contrast(v, factor):
    return _blend(v, [_luma(v).mean((1, 2), keepdims=True)] * len(v), factor)


def _shift_hue(v: list[Array], shift: Array) -> list[Array]:
    """Turns the hue of HSV by `shift`, in turns: through the hexagon's piecewise linear form, without branches."""
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
