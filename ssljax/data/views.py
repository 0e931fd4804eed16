"""Random views of an image: what the joint-embedding methods make agree."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import jax
from jax import Array
import jax.numpy as jnp
import tyro

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.ranges import (
    Count,
    CountOrZero,
    Fraction,
    NotEmpty,
    NotNegative,
    PositiveFraction,
    Range,
)

# The hue's strength is a quarter of the others', and a shift of half a turn is the largest.
Strength = Annotated[float, Range(least=0, most=2)]
Hue = Annotated[float, Range(least=0, most=0.5)]
Batch = Mapping[str, Array]  # "image", (n, height, width, channels) uint8, and perhaps "aspect".
Fractions = Annotated[tuple[Fraction, ...], NotEmpty()]


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --crop, not --view.crop.
@dataclass(frozen=True)
class Views:
    """SimCLR's random views of an image: Chen et al., 2020, arXiv:2002.05709, appendix A."""

    view_size: CountOrZero = 0
    """Side of a view in pixels; 0 for the images' own."""
    crop: PositiveFraction = 0.2
    """Smallest fraction of the image's area in a random crop."""
    crop_most: PositiveFraction = 1.0
    """Largest fraction of the image's area in a random crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: Strength | tuple[NotNegative, NotNegative, NotNegative, Hue] = 0.4
    """Strength of brightness, contrast and saturation, the hue's a quarter of it; or all four."""
    gray: Fraction = 0.2
    """Probability of a grayscale view."""
    blur: Fraction | Fractions = 0.0
    """Probability of a Gaussian blur; or that of the first view, the second and so on."""
    solarize: Fraction | Fractions = 0.0
    """Probability of solarisation; or that of the first view, the second and so on."""
    interpolation: augment.Interpolation = "bilinear"
    """Filter that resizes crops: bicubic for SimCLR, BYOL, Barlow Twins and DINO as published."""

    def __post_init__(self) -> None:
        if self.crop > self.crop_most:
            raise InputError(
                f"--crop must be at most --crop-most {self.crop_most}, not {self.crop}."
            )

    def __call__(self, key: Array, batch: Batch, number: int = 0) -> Array:
        """View number `number` of each image of a batch: (n, size, size, channels) in [0, 1].

        Images are (n, height, width, channels) uint8. Where photographs were resized to squares,
        the batch has their "aspect", width over height, and crops are of the photograph.
        InputError for a view larger than the image.
        """
        images, aspect = batch["image"], batch.get("aspect")
        _check_size("--view-size", self.view_size, min(images.shape[1:3]))
        k1, k2, k3, k4 = jax.random.split(key, 4)
        j = self.jitter if isinstance(self.jitter, tuple) else (*[self.jitter] * 3, self.jitter / 4)
        x = augment.to_float(images)
        scale, how = (self.crop, self.crop_most), self.interpolation
        x = augment.random_resized_crop(
            k1, x, self.view_size, scale, interpolation=how, aspect=aspect
        )
        x = augment.flip(k3, x, self.flip)
        x = augment.colour_jitter(k2, x, *j, p=0.8)
        x = augment.grayscale(k4, x, p=self.gray)
        if p := _of_view(self.blur, number):
            x = augment.gaussian_blur(jax.random.fold_in(key, 4), x, p=p)
        if p := _of_view(self.solarize, number):
            x = augment.solarize(jax.random.fold_in(key, 5), x, p=p)
        return x

    def each(self, key: Array, batch: Batch, count: int = 2) -> list[Array]:
        """`count` views of each image, a list of (n, size, size, channels).

        InputError for a count below 1.
        """
        if count < 1:
            raise InputError(f"The number of views must be positive, not {count}.")
        return [self(k, batch, number) for number, k in enumerate(jax.random.split(key, count))]

    def several(self, key: Array, batch: Batch, count: int) -> Array:
        """The views of `each`, an image's next to one another: (n count, size, size, channels).

        In any other order, devices that share a batch would have to exchange the views.
        """
        views = jnp.stack(self.each(key, batch, count), axis=1)
        return views.reshape(-1, *views.shape[2:])

    def either(self, key: Array, batch: Batch) -> Array:
        """An image's first or second view, at random: for a picture of what the net sees."""
        if self == self.later(1):
            return self(key, batch)
        first = jax.random.bernoulli(jax.random.fold_in(key, 6))
        return jnp.where(first, self(key, batch), self(key, batch, 1))

    def later(self, number: int) -> "Views":
        """Views whose first is view number `number` of these."""

        def rest(p):
            return p[number:] or p[-1:] if isinstance(p, tuple) and len(p) > 1 else p

        return replace(self, blur=rest(self.blur), solarize=rest(self.solarize))

    def whole(self, images: Array) -> Array:
        """Whole images as floats, at the size of a view: what the encoder is evaluated on."""
        return augment.resize_square(augment.to_float(images), self.view_size, self.interpolation)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class MultiCrop:
    """Large views of an image, and small ones that cost less: Caron et al., 2020, arXiv:2006.09882.

    With small views, a large one shows more than `part` of the image, and a small one less.
    """

    view: Views = Views()
    """Random view of an image."""
    large: Count = 2
    """Large views of each image."""
    small: CountOrZero = 2
    """Small views of each image, in addition to the large ones."""
    small_size: CountOrZero = 0
    """Side of a small view in pixels; 0 for half a large one's."""
    part: PositiveFraction = 0.4
    """Fraction of the image's area: the least in a large view and the most in a small one."""

    def __post_init__(self) -> None:
        if self.large == 1 and self.small == 0:
            raise InputError(
                "Two or more views of an image are needed: choose --large or --small above 1."
            )
        if self.small and not self.view.crop <= self.part <= self.view.crop_most:
            raise InputError(
                f"--part must lie between --crop {self.view.crop} and --crop-most "
                f"{self.view.crop_most}, not at {self.part}."
            )

    def kinds(self, shape: tuple[int, ...]) -> tuple[Views, ...]:
        """Large and, if there are any, small views of images of `shape`.

        InputError for a view larger than the image.
        """
        view, side = self.view, min(shape[:2])
        large = view.view_size or side
        _check_size("--view-size", large, side)
        if not self.small:
            return (view,)
        size = self.small_size or max(1, large // 2)
        _check_size("--small-size", size, side)
        small = replace(view.later(self.large), view_size=size, crop_most=self.part)
        return replace(view, crop=self.part), small

    def __call__(self, key: Array, batch: Batch) -> list[Array]:
        """Large views of a batch of images, (n, large, size, size, channels), and small ones."""
        kinds, keys = self.kinds(batch["image"].shape[1:]), jax.random.split(key)
        views = [kinds[0].each(keys[0], batch, self.large)]
        if self.small:
            views.append(kinds[1].each(keys[1], batch, self.small))
        return [jnp.stack(v, axis=1) for v in views]


def _of_view(p: float | tuple[float, ...], number: int) -> float:
    """The probability for view `number`; the last one is that of all further views."""
    return p[min(number, len(p) - 1)] if isinstance(p, tuple) else p


def _check_size(flag: str, pixels: int, side: int) -> None:
    """InputError for a view larger than the image."""
    if pixels > side:
        raise InputError(f"{flag} must be at most the images' {side} pixels, not {pixels}.")
