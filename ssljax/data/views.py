"""Random views of an image: what the joint-embedding methods make agree."""

from dataclasses import dataclass, replace

import jax
from jax import Array
import tyro

from ssljax.data import augment
from ssljax.errors import InputError


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --crop, not --view.crop.
@dataclass(frozen=True)
class Views:
    """SimCLR's random views, one of each image: Chen et al., 2020, arXiv:2002.05709, appendix A."""

    view_size: int = 0
    """Pixels a side of what the net sees; 0 for the images' own."""
    crop: float = 0.2
    """The least part of the image's area that a view shows."""
    crop_most: float = 1.0
    """And the largest."""
    flip: float = 0.5
    """How often a view is mirrored."""
    jitter: float | tuple[float, float, float, float] = 0.4
    """Strength of brightness, contrast and saturation, the hue's a quarter of it; or all four: 0.4 0.4 0.2 0.1 in BYOL."""
    gray: float = 0.2
    """How often a view loses its colours."""
    blur: float | tuple[float, ...] = 0.0
    """How often it is blurred: 0.5 for large photographs; or the first view, the second and so on: 1 0.1 in BYOL."""
    solarize: float | tuple[float, ...] = 0.0
    """How often its bright pixels are inverted; or those of the first view, the second and so on: 0 0.2 in BYOL."""

    def __call__(self, key: Array, images: Array, number: int = 0) -> Array:
        """Images (n, height, width, channels), uint8, to floats in [0, 1]; `number` counts an image's views.

        InputError for a view larger than the image, or settings out of their range.
        """
        _fits("--view-size", self.view_size, min(images.shape[1:3]))
        k1, k2, k3, k4 = jax.random.split(key, 4)
        j, x = self.jitter, augment.to_float(images)
        x = augment.random_resized_crop(k1, x, self.view_size, scale=(self.crop, self.crop_most))
        x = augment.flip(k3, x, _chance("--flip", self.flip))
        x = augment.colour_jitter(k2, x, *(j if isinstance(j, tuple) else (j, j, j, j / 4)), p=0.8)
        x = augment.grayscale(k4, x, p=_chance("--gray", self.gray))
        if p := _chance("--blur", self.blur, number):
            x = augment.gaussian_blur(jax.random.fold_in(key, 4), x, p=p)
        if p := _chance("--solarize", self.solarize, number):
            x = augment.solarize(jax.random.fold_in(key, 5), x, p=p)
        return x

    def each(self, key: Array, images: Array, count: int = 2) -> list[Array]:
        """`count` views of each image: a list of (n, size, size, channels). InputError for less than one."""
        if count < 1:
            raise InputError(f"The number of views must be positive, not {count}.")
        return [self(k, images, number) for number, k in enumerate(jax.random.split(key, count))]

    def several(self, key: Array, images: Array, count: int) -> Array:
        """The same, one set after the other: (count n, size, size, channels)."""
        return jax.numpy.concatenate(self.each(key, images, count))

    def either(self, key: Array, images: Array) -> Array:
        """An image's first view or its second, at random: for a picture of what the net sees."""
        if self == self.later(1):
            return self(key, images)
        return jax.numpy.where(
            jax.random.bernoulli(jax.random.fold_in(key, 6)),
            self(key, images),
            self(key, images, 1),
        )

    def later(self, number: int) -> "Views":
        """These views from `number` on: the first of them is this one's `number`-th."""
        rest = lambda p: p[number:] or p[-1:] if isinstance(p, tuple) and len(p) > 1 else p
        return replace(self, blur=rest(self.blur), solarize=rest(self.solarize))

    def whole(self, images: Array) -> Array:
        """The images themselves, as floats at the size of a view: what the encoder is judged on."""
        return augment.resize(augment.to_float(images), self.view_size)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class MultiCrop:
    """Large views of an image, then some small ones, which cost less: Caron et al., 2020, arXiv:2006.09882."""

    view: Views = Views()
    large: int = 2
    """Large views of each image."""
    small: int = 2
    """Small views of each image beside the large ones; 0 for none."""
    small_size: int = 0
    """Pixels a side of a small view; 0 for half a large one's."""
    part: float = 0.4
    """Of the image's area: large views show more, small ones, where there are any, less."""

    def kinds(self, shape: tuple[int, ...]) -> tuple[Views, ...]:
        """The large and, if any, the small views of images of `shape`. InputError where one has more pixels than they."""
        view, side = self.view, min(shape[:2])
        if self.small and not view.crop <= self.part <= view.crop_most:
            raise InputError(
                f"--part must lie between --crop {view.crop} and --crop-most {view.crop_most}, not at "
                f"{self.part}."
            )
        large = view.view_size or side
        size = self.small_size or max(1, large // 2)
        _fits("--view-size", large, side)
        if not self.small:
            return (view,)
        _fits("--small-size", size, side)
        return replace(view, crop=self.part), replace(
            view.later(self.large), view_size=size, crop_most=self.part
        )

    def __call__(self, key: Array, images: Array) -> list[Array]:
        """Images (n, height, width, channels) to large views, (large n, ...), and small ones, (small n, ...), if any."""
        k1, k2 = jax.random.split(key)
        return [
            kind.several(k, images, count)
            for kind, k, count in zip(
                self.kinds(images.shape[1:]), (k1, k2), (self.large, self.small)
            )
        ]


def _chance(flag: str, p: float | tuple[float, ...], number: int = 0) -> float:
    """That of view `number`: the last given stands for all that follow."""
    p = p if isinstance(p, tuple) else (p,)
    if not p or not all(0 <= one <= 1 for one in p):
        raise InputError(
            f"{flag} takes how often, from 0 to 1, not {' '.join(map(str, p)) or 'nothing'}."
        )
    return p[min(number, len(p) - 1)]


def _fits(flag: str, pixels: int, side: int) -> None:
    if pixels > side:
        raise InputError(
            f"A crop can't be larger than the image: choose {flag} {side} or less, not {pixels}."
        )
