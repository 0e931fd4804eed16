"""The augmentations against Pillow, SciPy, colorsys and torchvision's published formulas, on photos
and digits.

Tolerances are for images in [0, 1]: 1e-5 against formulas in float64, and some 8-bit levels
(written n / 255) against Pillow's 8-bit arithmetic, which rounds after each of its passes.
Statistical bounds are wider than 1 in 10,000 for right code, and the keys are fixed.
"""

import colorsys
from dataclasses import replace
from functools import partial
import itertools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest
from scipy import ndimage, stats
from sklearn.datasets import load_digits, load_sample_image

from ssljax.data import augment
from ssljax.data.views import MultiCrop, Views
from ssljax.sharding import BATCH

KEY = jax.random.key(0)
RARE = 1e-4  # The p-value under which a distribution is called wrong.


def crops(n: int, h: int, w: int) -> np.ndarray:
    """n pieces (n, h, w, 3), uint8, of two photos: a Chinese temple and a flower."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    corner = np.random.default_rng(0)
    out = []
    for i in range(n):
        photo = photos[i % 2][::2, ::2]
        top, left = (corner.integers(0, size - s + 1) for size, s in zip(photo.shape, (h, w)))
        out.append(photo[top : top + h, left : left + w])
    return np.stack(out)


PHOTOS = crops(8, 13, 17)
DIGITS = load_digits().images[:8, :, :, None] / 16


def with_channels(c: int) -> np.ndarray:
    """The photos with c channels, (8, 13, 17, c), stretched so that 0 and 1 occur."""
    x = np.concatenate([PHOTOS, PHOTOS[:, ::-1, :, :1]], -1)[..., :c] / 255
    return np.clip(1.4 * x - 0.2, 0, 1).astype(np.float32)


def changed(x, y) -> np.ndarray:
    """Which images of x and y differ."""
    return np.any(np.asarray(x) != np.asarray(y), (1, 2, 3))


def happened(k: int, n: int, p: float) -> bool:
    """k of n is believable for probability p."""
    return stats.binomtest(int(k), n, p).pvalue > RARE


# Crop and resize.

# In an image of 60 x 80: top, left, height, width.
BOXES = [
    (0, 0, 60, 80),
    (5, 7, 50, 41),
    (0, 39, 60, 41),
    (31, 3, 9, 14),
    (59, 79, 1, 1),
    (20, 11, 2, 69),
]


def pillow_resized(
    plane: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    top, left, h, w = box
    piece = Image.fromarray(plane).crop((left, top, left + w, top + h))
    return np.asarray(piece.resize(size[::-1], Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [(24, 31), (70, 43)])  # Some boxes shrink and some grow.
def test_resizing_is_pillows_within_1e_5_and_on_8_bits_within_1_5_levels(size):
    photo = load_sample_image("china.jpg")[100:160, 200:280]
    x = np.repeat(photo[None] / np.float32(255), len(BOXES), 0)
    ours = np.asarray(augment.crop_and_resize(x, *np.array(BOXES).T, size))
    assert ours.shape == (len(BOXES), *size, 3)
    for box, y in zip(BOXES, ours):
        for c in range(3):
            np.testing.assert_allclose(
                y[..., c], pillow_resized(x[0, ..., c], box, size), atol=1e-5, rtol=0
            )
        np.testing.assert_allclose(
            y, pillow_resized(photo, box, size) / 255, atol=1.5 / 255, rtol=0
        )


def naive_bicubic(plane, box, size):
    """Pillow's antialiased bicubic in float64 loops: Keys' cubic with a = -0.5, clipped to [0,
    1]."""

    def keys(x):
        x, a = abs(x), -0.5
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def rows(plane, start, length, n_out):
        step, out = length / n_out, []
        for i in range(n_out):
            centre = start + (i + 0.5) * step
            weights = [
                keys((j + 0.5 - centre) / max(step, 1)) for j in range(start, start + length)
            ]
            taken = sum(w * plane[j] for w, j in zip(weights, range(start, start + length)))
            out.append(taken / sum(weights))
        return np.array(out)

    top, left, h, w = box
    plane = rows(plane.astype(np.float64), top, h, size[0])
    return np.clip(rows(plane.T, left, w, size[1]).T, 0, 1)


@pytest.mark.parametrize("size", [(24, 31), (70, 43)])
def test_bicubic_crops_match_pillow(size):
    photo = load_sample_image("china.jpg")[100:160, 200:280]
    stretched = np.clip(1.6 * (photo / 255.0) - 0.3, 0, 1).astype(np.float32)  # So that some clip.
    x = np.repeat(stretched[None], len(BOXES), 0)
    ours = np.asarray(augment.crop_and_resize(x, *np.array(BOXES).T, size, "bicubic"))
    clipped = 0
    for box, y in zip(BOXES, ours):
        top, left, h, w = box
        for c in range(3):
            piece = Image.fromarray(stretched[..., c]).crop((left, top, left + w, top + h))
            theirs = np.asarray(piece.resize(size[::-1], Image.Resampling.BICUBIC))
            clipped += ((theirs < -0.01) | (theirs > 1.01)).sum()
            np.testing.assert_allclose(y[..., c], np.clip(theirs, 0, 1), atol=1e-5, rtol=0)
        naive = naive_bicubic(stretched[..., 0], box, size)
        np.testing.assert_allclose(y[..., 0], naive, atol=1e-5, rtol=0)
    assert clipped > 20
    assert np.abs(ours - augment.crop_and_resize(x, *np.array(BOXES).T, size)).max() > 0.02


def test_bicubic_views_have_the_boxes_of_bilinear_ones():
    x = np.repeat(PHOTOS[:4], 2, 0)
    crop = lambda how: np.asarray(augment.random_resized_crop(KEY, x / 255, 9, interpolation=how))
    soft, sharp = crop("bilinear"), crop("bicubic")
    assert 1e-3 < np.abs(soft - sharp).mean() < 0.05
    view = Views(view_size=9, jitter=0.0, gray=0.0, flip=0.0, interpolation="bicubic")
    box = jax.random.split(KEY, 4)[0]
    want = augment.random_resized_crop(
        box, x / np.float32(255), 9, (0.2, 1.0), interpolation="bicubic"
    )
    np.testing.assert_allclose(view(KEY, {"image": x}), want, atol=1e-6)
    assert np.abs(np.asarray(view.whole(x)) - Views(view_size=9).whole(x)).max() > 1e-2


def test_resizing_a_whole_photo_and_digits_is_pillows_within_1e_5():
    photo = load_sample_image("flower.jpg")[None, ..., 1] / np.float32(
        255
    )  # 427 x 640, much smaller in one step.
    ours = augment.crop_and_resize(photo[..., None], *np.array([[3, 5, 420, 601]]).T, (64, 48))[
        0, ..., 0
    ]
    np.testing.assert_allclose(
        ours, pillow_resized(photo[0], (3, 5, 420, 601), (64, 48)), atol=1e-5, rtol=0
    )
    digits = DIGITS.astype(np.float32)
    ours = augment.crop_and_resize(digits, *np.tile([[1], [0], [7], [8]], 8), 12)
    for x, y in zip(digits, ours):
        np.testing.assert_allclose(
            y[..., 0], pillow_resized(x[..., 0], (1, 0, 7, 8), (12, 12)), atol=1e-5, rtol=0
        )


def test_box_of_the_output_size_is_a_plain_crop():
    x = with_channels(4)
    ours = augment.crop_and_resize(x, *np.tile([[2], [5], [9], [11]], 8), (9, 11))
    np.testing.assert_allclose(ours, x[:, 2:11, 5:16], atol=5e-6, rtol=0)


def drawn_boxes(n: int, h: int, w: int, **arguments) -> np.ndarray:
    """The boxes (n; top, left, height, width) that `random_resized_crop` drew, read off images of
    coordinates.

    At the image's own size every box is enlarged, so its first and last pixel appear as they are.
    """
    ramps = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).astype(np.float32)
    y = jax.jit(partial(augment.random_resized_crop, **arguments))(
        KEY, np.broadcast_to(ramps, (n, h, w, 2))
    )
    low, high = np.asarray(y.min((1, 2))), np.asarray(y.max((1, 2)))
    boxes = np.concatenate([low, high - low + 1], 1)
    np.testing.assert_allclose(boxes, np.round(boxes), atol=1e-3)  # Whole pixels.
    return np.round(boxes).astype(int)


def torchvision_box(rng, h: int, w: int, scale, ratio, tries: int) -> tuple[int, int, int, int]:
    """torchvision.transforms.RandomResizedCrop.get_params, in NumPy: (top, left, height, width)."""
    for _ in range(tries):
        target_area = h * w * rng.uniform(scale[0], scale[1])
        aspect_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        bw = round(math.sqrt(target_area * aspect_ratio))
        bh = round(math.sqrt(target_area / aspect_ratio))
        if 0 < bw <= w and 0 < bh <= h:
            return rng.integers(0, h - bh + 1), rng.integers(0, w - bw + 1), bh, bw
    if w / h < min(ratio):
        bw, bh = w, round(w / min(ratio))
    elif w / h > max(ratio):
        bw, bh = round(h * max(ratio)), h
    else:
        bw, bh = w, h
    return (h - bh) // 2, (w - bw) // 2, bh, bw


@pytest.mark.parametrize(
    "h, w, scale, ratio, tries",
    [
        (20, 30, (0.08, 1.0), (3 / 4, 4 / 3), 10),  # The default.
        (31, 17, (0.5, 1.0), (1 / 3, 3.0), 1),  # Often nothing fits: the whole image.
        (16, 28, (0.6, 0.9), (1 / 2, 1.5), 2),  # Often nothing fits: a central part.
    ],
)
def test_random_box_distribution_matches_torchvision(h, w, scale, ratio, tries):
    ours = drawn_boxes(3000, h, w, scale=scale, ratio=ratio, tries=tries)
    assert (
        (ours[:, :2] >= 0).all()
        and (ours[:, 2:] >= 1).all()
        and (ours[:, :2] + ours[:, 2:] <= (h, w)).all()
    )
    rng = np.random.default_rng(1)
    theirs = np.array([torchvision_box(rng, h, w, scale, ratio, tries) for _ in range(20000)])
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3] / (h * w),
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "top by height": lambda b: b[:, 0] - (h - b[:, 2]) / 2,
        "left by width": lambda b: b[:, 1] - (w - b[:, 3]) / 2,
        "top by left": lambda b: (b[:, 0] - (h - b[:, 2]) / 2) * (b[:, 1] - (w - b[:, 3]) / 2),
        "area by aspect": lambda b: b[:, 2] * b[:, 3] * np.log(b[:, 3] / b[:, 2]),
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > RARE, name


# Crops of photographs that were squeezed to squares.

PHOTOGRAPHS = (500, 375), (375, 500), (500, 333), (1000, 200)  # Width and height.


def whole_size(aspect: float, side: int) -> tuple[int, int]:
    """Height and width of a photograph whose shorter side is `side` pixels."""
    return max(side, round(side / aspect)), max(side, round(side * aspect))


def squeezed_boxes(monkeypatch, key, side: int, aspects, **arguments) -> np.ndarray:
    """The boxes (n; top, left, height, width) in squares that `random_resized_crop` resizes."""
    with monkeypatch.context() as patch:
        patch.setattr(augment, "crop_and_resize", lambda x, *box: jnp.stack(box[:4], 1))

        @jax.jit  # Which drops the images: nothing reads them.
        def draw(key, aspects):
            x = jnp.zeros((len(aspects), side, side, 1))
            return augment.random_resized_crop(key, x, aspect=aspects, **arguments)

        return np.asarray(draw(key, jnp.asarray(aspects, jnp.float32)), np.float64)


def photograph_boxes(boxes, aspects, side: int) -> np.ndarray:
    """Boxes in squares as boxes in the photographs, of `whole_size`."""
    size = np.array([whole_size(a, side) for a in aspects])
    return boxes * np.tile(size / side, 2)


@pytest.mark.parametrize(
    "arguments",
    [{}, dict(scale=(0.5, 1.0), ratio=(1 / 3, 3.0), tries=1), dict(scale=(0.9, 1.0), tries=2)],
)
def test_boxes_of_squeezed_photographs_by_their_draws(monkeypatch, arguments):
    """The same uniform numbers in float64, photograph by photograph, give the same boxes."""
    side, n = 320, 400
    aspects = np.tile([w / h for w, h in (*PHOTOGRAPHS, (1, 1), (20, 1), (1, 9))], n)
    ours = squeezed_boxes(monkeypatch, KEY, side, aspects, **arguments)
    ours = photograph_boxes(ours, aspects, side)
    scale, ratio, tries = (
        arguments.get(name, default)
        for name, default in (("scale", (0.08, 1.0)), ("ratio", (3 / 4, 4 / 3)), ("tries", 10))
    )
    keys = jax.random.split(KEY, 4)
    many, one = (len(aspects), tries), (len(aspects),)
    drawn = [
        np.asarray(jax.random.uniform(k, shape)) for k, shape in zip(keys, (many, many, one, one))
    ]
    theirs = []
    for a, *u in zip(aspects, *drawn):
        h, w = whole_size(a, side)
        areas = scale[0] + (scale[1] - scale[0]) * u[0].astype(np.float64)
        ratios = ratio[0] * (ratio[1] / ratio[0]) ** u[1].astype(np.float64)
        for area, r in zip(areas, ratios):
            bw, bh = round(math.sqrt(h * w * area * r)), round(math.sqrt(h * w * area / r))
            if 0 < bw <= w and 0 < bh <= h:
                box = math.floor(u[2] * (h - bh + 1)), math.floor(u[3] * (w - bw + 1)), bh, bw
                break
        else:
            bw, bh = min(w, round(h * ratio[1])), min(h, round(w / ratio[0]))
            box = (h - bh) // 2, (w - bw) // 2, bh, bw
        theirs.append(box)
    # In float32 about 1 number in 10,000 falls on the other side of a half and is rounded there.
    other = np.abs(ours - theirs).max(1)
    assert (other > 0.01).mean() < 0.003


def test_boxes_of_squeezed_photographs_have_torchvisions_distribution(monkeypatch):
    """Those of torchvision on the photographs' own pixels, by Kolmogorov and Smirnov's test.

    Sizes and places are smeared by ±1/100 of the photograph, 3 to 10 pixels, so that pixels of
    other sizes make no difference.
    """
    n, rng = 3000, np.random.default_rng(2)
    default = (0.08, 1.0), (3 / 4, 4 / 3), 10
    aspects = np.repeat([w / h for w, h in PHOTOGRAPHS], n)
    drawn = squeezed_boxes(monkeypatch, KEY, 320, aspects) / 320
    for (w, h), ours in zip(PHOTOGRAPHS, np.split(drawn, len(PHOTOGRAPHS))):
        theirs = np.array([torchvision_box(rng, h, w, *default) for _ in range(n)])
        theirs = theirs / np.tile((h, w), 2)
        for name, of in {
            "area": lambda b: b[:, 2] * b[:, 3],
            "ratio": lambda b: np.log(b[:, 3] / b[:, 2]),
            "top": lambda b: b[:, 0],
            "left": lambda b: b[:, 1],
            "row of the centre": lambda b: b[:, 0] + b[:, 2] / 2,
            "column of the centre": lambda b: b[:, 1] + b[:, 3] / 2,
            "top in the room left": lambda b: (b[:, 0] + 0.005) / (1.01 - b[:, 2]),
            "left in the room left": lambda b: (b[:, 1] + 0.005) / (1.01 - b[:, 3]),
        }.items():
            smeared = (of(b) + rng.uniform(-0.01, 0.01, n) for b in (ours, theirs))
            assert stats.ks_2samp(*smeared).pvalue > RARE, (name, w, h)


def test_square_photographs_have_the_crops_of_squares():
    x = jnp.asarray(crops(8, 16, 16) / np.float32(255))
    for arguments in ({}, {"size": 9, "scale": (0.9, 1.0), "ratio": (0.3, 3.0), "tries": 1}):
        crop = jax.jit(partial(augment.random_resized_crop, **arguments))
        np.testing.assert_allclose(crop(KEY, x, aspect=jnp.ones(8)), crop(KEY, x), atol=1e-6)


@pytest.mark.parametrize(
    "name, interpolation, most",
    [("china.jpg", "bilinear", 4.5), ("china.jpg", "bicubic", 5.5), ("flower.jpg", "bilinear", 2)],
)
def test_pixels_of_crops_of_a_squeezed_photograph(monkeypatch, name, interpolation, most):
    """The mean difference, in 8-bit steps, from the same boxes of the file resized by Pillow."""
    photo, side, n = load_sample_image(name), 320, 8
    h, w = photo.shape[:2]
    square = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR))
    aspects = np.full(n, w / h, np.float32)
    scale = (0.3, 1.0)
    boxes = squeezed_boxes(monkeypatch, KEY, side, aspects, scale=scale)
    x = np.broadcast_to(square / np.float32(255), (n, side, side, 3))
    ours = augment.random_resized_crop(
        KEY, x, 224, scale, interpolation=interpolation, aspect=aspects
    )
    theirs = []
    for top, left, height, width in boxes / side * np.tile((h, w), 2):
        box = left, top, min(w, left + width), min(h, top + height)
        how = Image.Resampling[interpolation.upper()]
        theirs.append(np.asarray(Image.fromarray(photo).resize((224, 224), how, box), np.float64))
    assert np.abs(255 * ours - np.stack(theirs)).mean() < most


def test_views_of_squeezed_photographs():
    """All views, large and small, first and later, have the crops of the photographs."""
    plain = Views(view_size=12, crop=0.3, jitter=0.0, gray=0.0, flip=0.0)
    x, aspect = crops(8, 16, 16), np.linspace(0.4, 3, 8, dtype=np.float32)
    batch = {"image": jnp.asarray(x), "aspect": jnp.asarray(aspect)}

    def crop(key, size, scale):
        key = jax.random.split(key, 4)[0]
        return augment.random_resized_crop(key, x / np.float32(255), size, scale, aspect=aspect)

    want = [crop(k, 12, (0.3, 1.0)) for k in jax.random.split(KEY, 3)]
    np.testing.assert_allclose(plain(KEY, batch), crop(KEY, 12, (0.3, 1.0)), atol=1e-6)
    np.testing.assert_allclose(plain.either(KEY, batch), plain(KEY, batch), atol=1e-6)
    np.testing.assert_allclose(plain.each(KEY, batch, 3), want, atol=1e-6)
    for i in range(3):
        np.testing.assert_allclose(plain.several(KEY, batch, 3)[i::3], want[i], atol=1e-6)
    large, small = MultiCrop(plain, small=3, small_size=6, part=0.5)(KEY, batch)
    keys = jax.random.split(KEY)
    want = [crop(k, 12, (0.5, 1.0)) for k in jax.random.split(keys[0], 2)]
    np.testing.assert_allclose(large, np.stack(want, axis=1), atol=1e-6)
    want = [crop(k, 6, (0.3, 0.5)) for k in jax.random.split(keys[1], 3)]
    np.testing.assert_allclose(small, np.stack(want, axis=1), atol=1e-6)
    blurred = replace(plain, blur=(0.0, 1.0))  # Whose first and second view differ.
    drawn = set()
    for key in jax.random.split(KEY, 6):
        found = blurred.either(key, batch)
        gaps = [np.abs(found - blurred(key, batch, i)).max() for i in range(2)]
        assert min(gaps) < 1e-6 < 1e-3 < max(gaps)
        drawn.add(int(np.argmin(gaps)))
    assert drawn == {0, 1}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_of_strips_are_finite(interpolation):
    """Boxes narrower than a pixel of the square."""
    aspects = np.float32([300.0, 1 / 300, 50.0, 1 / 50, 4.0, 1.0, 1e4, 1e-4])
    x = np.full((8, 16, 16, 3), 0.4, np.float32)
    x[:, ::2] = 0.6
    for scale in (0.001, 0.001), (0.08, 1.0):
        for seed in range(5):
            y = augment.random_resized_crop(
                jax.random.key(seed), x, 8, scale, interpolation=interpolation, aspect=aspects
            )
            assert np.isfinite(y).all() and y.min() > 0.35 and y.max() < 0.65


@pytest.mark.parametrize(
    "ratio, box",
    [
        ((20.0, 30.0), (9, 0, 2, 30)),  # Wider than the image: its whole width, 30 / 20 high.
        ((0.03, 0.06), (0, 14, 20, 1)),  # Taller: its whole height, 20 * 0.06 wide.
        ((0.001, 0.002), (0, 14, 20, 1)),  # So tall that the width rounds to 0: at least a pixel.
        ((500.0, 900.0), (9, 0, 1, 30)),
    ],
)
def test_the_box_when_none_fits(ratio, box):
    np.testing.assert_array_equal(drawn_boxes(8, 20, 30, scale=(0.9, 1.0), ratio=ratio), [box] * 8)


def test_a_random_crop_of_the_whole_image_changes_nothing_but_the_size():
    x = with_channels(3)
    whole = dict(scale=(1.0, 1.0), ratio=(17 / 13, 17 / 13))
    np.testing.assert_allclose(
        jax.jit(partial(augment.random_resized_crop, **whole))(KEY, x), x, atol=5e-6, rtol=0
    )
    half = jax.jit(partial(augment.random_resized_crop, size=(6, 8), **whole))(KEY, x)
    np.testing.assert_allclose(
        half[3, ..., 1], pillow_resized(x[3, ..., 1], (0, 0, 13, 17), (6, 8)), atol=1e-5, rtol=0
    )


# Colour, by the formulas of torchvision.transforms.functional, pixel by pixel in float64.


def luma(x):
    return 0.2989 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def brightness(x, f):
    return np.clip(f * x, 0, 1)


def contrast(x, f):
    return np.clip(f * x + (1 - f) * luma(x).mean(), 0, 1)


def saturation(x, f):
    return np.clip(f * x + (1 - f) * luma(x)[..., None], 0, 1)


def hue(x, f):
    pixels = []
    for r, g, b in x.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        pixels.append(colorsys.hsv_to_rgb((h + f) % 1, s, v))
    return np.reshape(pixels, x.shape)


FORMULAS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
PILLOW = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@pytest.fixture
def pinned(monkeypatch):
    """pinned(end): random factors, all draws with a range of their own, are the range's end:
    "minval" or "maxval"."""
    uniform = jax.random.uniform

    def pin(end: str) -> None:
        def drawn(key, shape=(), *args, **bounds):
            return (
                jnp.full(shape, bounds[end], jnp.float32) if bounds else uniform(key, shape, *args)
            )

        monkeypatch.setattr(jax.random, "uniform", drawn)

    return pin


@pytest.mark.parametrize("end", ["minval", "maxval"])
@pytest.mark.parametrize(
    "name, amount", [(n, a) for n in FORMULAS for a in ((0.1, 0.5) if n == "hue" else (0.4, 1.2))]
)
def test_colour_is_the_formula_within_1e_5_and_pillows_within_2_levels(pinned, name, amount, end):
    pinned(end)
    sign = -1 if end == "minval" else 1
    factor = sign * amount if name == "hue" else max(0.0, 1 + sign * amount)
    x = PHOTOS.copy()
    corners = np.array(
        list(itertools.product([0, 128, 255], repeat=3)), np.uint8
    )  # Black, white, grays, ties.
    x[0] = np.resize(corners, x[0].shape)
    ours = np.asarray(
        augment.colour_jitter(KEY, augment.to_float(jnp.asarray(x)), **{name: amount})
    )
    for image, y in zip(x, ours):
        np.testing.assert_allclose(y, FORMULAS[name](image / 255, factor), atol=1e-5, rtol=0)
        if name in PILLOW:
            theirs = np.asarray(PILLOW[name](Image.fromarray(image)).enhance(factor)) / 255
            np.testing.assert_allclose(y, theirs, atol=2 / 255, rtol=0)


def test_colour_factors_are_uniform_and_independent():
    n = 2000
    pixels = np.array([[0.2, 0.2, 0.2], [0.24, 0.24, 0.24], [0.25, 0.2, 0.2]], np.float32)
    x = np.broadcast_to(pixels[None, None], (n, 1, 3, 3))
    jitter = lambda **amounts: np.asarray(
        jax.jit(partial(augment.colour_jitter, **amounts))(KEY, x), np.float64
    )
    red = jitter(hue=0.1)[
        :, 0, 2
    ]  # Within a sixth of a turn from red, green rises one way and blue the other.
    draws = {
        "brightness": (jitter(brightness=1.5)[:, 0, 0, 0] / 0.2, 0.0, 2.5),
        "contrast": (np.diff(jitter(contrast=0.4)[:, 0, :2, 0])[:, 0] / 0.04, 0.6, 1.4),
        "saturation": ((jitter(saturation=0.8)[:, 0, 2] @ [1, -1, 0]) / 0.05, 0.2, 1.8),
        "hue": ((red @ [0, 1, -1]) / 0.05 / 6, -0.1, 0.1),
    }
    for name, (drawn, low, high) in draws.items():
        assert low - 1e-4 < drawn.min() and drawn.max() < high + 1e-4, name
        assert stats.kstest(drawn, "uniform", (low, high - low)).pvalue > RARE, name
    for a, b in itertools.combinations(draws, 2):
        assert stats.spearmanr(draws[a][0], draws[b][0]).pvalue > RARE, (a, b)


def test_all_24_orders_are_equally_likely_and_p_is_kept(pinned):
    n, p = 3000, 0.8
    pinned("maxval")
    amounts = {"brightness": 0.9, "contrast": 0.8, "saturation": 0.9, "hue": 0.15}
    pixels = np.array(
        [[0.9, 0.2, 0.1], [0.1, 0.5, 0.8], [0.7, 0.8, 0.3], [0.45, 0.4, 0.95]], np.float32
    )[None]
    results = [pixels.astype(np.float64)]
    for order in itertools.permutations(amounts):
        y = results[0]
        for name in order:
            y = FORMULAS[name](y, amounts[name] + (name != "hue"))
        results.append(y)
    for a, b in itertools.combinations(results, 2):
        assert abs(a - b).max() > 1e-3  # Else results would not identify the order.
    ours = jax.jit(partial(augment.colour_jitter, **amounts, p=p))(
        KEY, np.broadcast_to(pixels, (n, *pixels.shape))
    )
    distance = np.abs(np.asarray(ours)[:, None] - np.stack(results)).max((2, 3, 4))
    assert distance.min(1).max() < 1e-5  # Each result is that of some order.
    counts = np.bincount(distance.argmin(1), minlength=25)
    assert happened(n - counts[0], n, p)
    assert stats.chisquare(counts[1:]).pvalue > RARE


@pytest.mark.parametrize("c", [1, 4])
def test_colour_of_other_channel_counts(pinned, c):
    x = with_channels(c)
    np.testing.assert_array_equal(augment.colour_jitter(KEY, x, saturation=0.5, hue=0.3), x)
    np.testing.assert_array_equal(augment.grayscale(KEY, x, p=1.0), x)
    pinned("maxval")
    np.testing.assert_allclose(
        augment.colour_jitter(KEY, x, brightness=0.4), np.clip(1.4 * x, 0, 1), atol=1e-5
    )
    mean = x.mean((1, 2, 3), keepdims=True)  # Of all channels alike.
    np.testing.assert_allclose(
        augment.colour_jitter(KEY, x, contrast=0.4), np.clip(1.4 * x - 0.4 * mean, 0, 1), atol=1e-5
    )


def test_zero_jitter_is_the_identity():
    x = with_channels(3)
    np.testing.assert_array_equal(augment.colour_jitter(KEY, x), x)
    np.testing.assert_array_equal(augment.colour_jitter(KEY, x, 0.4, 0.4, 0.4, 0.1, p=0.0), x)


def test_grayscale_is_the_formula_within_1e_5_and_pillows_within_1_5_levels():
    ours = np.asarray(augment.grayscale(KEY, augment.to_float(jnp.asarray(PHOTOS)), p=1.0))
    for image, y in zip(PHOTOS, ours):
        np.testing.assert_allclose(y, np.repeat(luma(image / 255)[..., None], 3, -1), atol=1e-5)
        theirs = np.asarray(Image.fromarray(image).convert("L"))[..., None] / 255
        np.testing.assert_allclose(y, np.repeat(theirs, 3, -1), atol=1.5 / 255, rtol=0)


def test_solarize_is_pillows_within_1e_6_over_all_8_bit_values():
    x = PHOTOS.copy()
    x[0] = np.resize(np.arange(256, dtype=np.uint8), x[0].shape)
    ours = np.asarray(augment.solarize(KEY, augment.to_float(jnp.asarray(x)), p=1.0))
    for image, y in zip(x, ours):
        theirs = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128)) / 255
        np.testing.assert_allclose(y, theirs, atol=1e-6, rtol=0)
    x = np.float32([0.2, 0.25, 0.4]).reshape(1, 1, 3, 1)
    y = augment.solarize(KEY, x, threshold=0.25, p=1.0)[0, 0, :, 0]
    np.testing.assert_allclose(y, [0.2, 0.75, 0.6], atol=1e-6)  # The threshold itself is turned.


def test_flip_mirrors_left_and_right_exactly():
    x = with_channels(3)
    np.testing.assert_array_equal(augment.flip(KEY, x, p=1.0), x[:, :, ::-1])
    np.testing.assert_array_equal(augment.flip(KEY, x, p=0.0), x)


# Blur.


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize(
    "kernel, radius", [(0.1, 1), (0.8, 5)]
)  # A support of 2 radius + 1 pixels, of a height of 13.
def test_blur_is_scipys_within_1e_5(sigma, kernel, radius):
    x = with_channels(4)
    ours = jax.jit(partial(augment.gaussian_blur, sigma=(sigma, sigma), p=1.0, kernel=kernel))(
        KEY, x
    )
    theirs = ndimage.gaussian_filter(
        x.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, radius, radius, 0)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_blur_widths_are_uniform_and_p_is_kept():
    n, p = 2000, 0.4
    spot = np.zeros((n, 7, 7, 1), np.float32)
    spot[:, 3, 3] = 1
    y = np.asarray(
        jax.jit(partial(augment.gaussian_blur, sigma=(0.5, 2.0), p=p))(KEY, spot), np.float64
    )
    blurred = changed(spot, y)
    assert happened(blurred.sum(), n, p)
    ratio = y[blurred, 3, 4, 0] / y[blurred, 3, 3, 0]  # exp(-1 / (2 sigma^2))
    drawn = np.sqrt(-0.5 / np.log(ratio))
    assert drawn.min() > 0.4999 and drawn.max() < 2.0001
    assert stats.kstest(drawn, "uniform", (0.5, 1.5)).pvalue > RARE


# What holds for all of them.

OPERATIONS = {
    "crop": augment.random_resized_crop,
    "crop to another size": partial(augment.random_resized_crop, size=(9, 22), scale=(0.2, 0.7)),
    "flip": augment.flip,
    "jitter": partial(augment.colour_jitter, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    "grayscale": partial(augment.grayscale, p=0.5),
    "blur": partial(augment.gaussian_blur, sigma=(0.5, 2.0), p=1.0, kernel=0.4),
    "solarize": partial(augment.solarize, p=0.5),
}


@pytest.mark.parametrize(
    "name, c", [(n, c) for n in OPERATIONS for c in (1, 3, 4) if "size" not in n or c == 3]
)
def test_operations(name, c):
    operation, x = OPERATIONS[name], with_channels(c)
    compiled = jax.jit(operation)
    y = np.asarray(compiled(KEY, x))
    assert y.dtype == np.float32 and y.shape == (8, *((9, 22) if "size" in name else (13, 17)), c)
    assert y.min() >= 0 and y.max() <= 1 + 1e-5  # Resampling weights sum to 1 but for rounding.
    np.testing.assert_array_equal(compiled(KEY, x), y)  # The key decides it all,
    if c == 3:
        np.testing.assert_allclose(
            operation(KEY, x), y, atol=5e-6
        )  # compiled or not (rounding differs),
    others = x.copy()
    others[:3], others[4:] = x[5:2:-1], 1 - x[4:]
    np.testing.assert_array_equal(
        compiled(KEY, others)[3], y[3]
    )  # and an example knows nothing of the others.

    same = np.asarray(compiled(KEY, np.broadcast_to(x[1], x.shape)))  # One image, eight draws.
    different = {image.tobytes() for image in same}
    if name in ("flip", "grayscale", "solarize"):
        assert len(different) == (1 if name == "grayscale" and c != 3 else 2)
    else:
        assert len(different) == 8
    if not (name == "grayscale" and c != 3):
        assert changed(compiled(jax.random.key(1), x), y).any()


@pytest.mark.parametrize("name", ["flip", "grayscale", "solarize"])
def test_p_is_kept(name):
    n, p = 3000, 0.3
    x = np.broadcast_to(np.float32([[[0.9, 0.1, 0.2], [0.3, 0.2, 0.7]]]), (n, 1, 2, 3))
    assert happened(changed(x, getattr(augment, name)(KEY, x, p=p)).sum(), n, p)


def test_uint8_becomes_0_to_1_and_floats_stay():
    x = jnp.asarray([0, 51, 255], jnp.uint8)
    np.testing.assert_allclose(augment.to_float(x), [0, 0.2, 1], atol=1e-7)
    np.testing.assert_array_equal(augment.to_float(jnp.asarray([0.0, 0.5])), [0, 0.5])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            partial(augment.random_resized_crop, scale=(0.0, 1.0)),
            r"scale must be .* at most 1, not \(0.0, 1.0\)",
        ),
        (
            partial(augment.random_resized_crop, scale=(0.5, 1.2)),
            r"scale must be .* at most 1, not \(0.5, 1.2\)",
        ),
        (
            partial(augment.random_resized_crop, scale=(0.8, 0.2)),
            "scale must be two rising numbers",
        ),
        (
            partial(augment.random_resized_crop, scale=(float("nan"), 1.0)),
            "scale must be two rising numbers",
        ),
        (
            partial(augment.random_resized_crop, ratio=(0.0, 1.0)),
            "ratio must be two rising numbers above 0",
        ),
        (
            partial(augment.random_resized_crop, ratio=(2.0, 0.5)),
            "ratio must be two rising numbers",
        ),
        (
            partial(augment.random_resized_crop, aspect=np.ones(3)),
            r"8 images need an aspect each, not an array \(3,\)",
        ),
        (partial(augment.colour_jitter, hue=0.6), r"hue must be in \[0, 0.5\] turns, not 0.6"),
        (partial(augment.colour_jitter, hue=-0.1), r"hue must be in \[0, 0.5\] turns, not -0.1"),
        (partial(augment.colour_jitter, contrast=-0.4), "contrast must be at least 0, not -0.4"),
        (
            partial(augment.gaussian_blur, kernel=2.0),
            "reaches 13 pixels needs images larger than that, not 13x17",
        ),
        (
            partial(augment.gaussian_blur, sigma=(0.0, 2.0)),
            "sigma must be two rising numbers above 0",
        ),
        (partial(augment.gaussian_blur, sigma=(2.0, 0.1)), "sigma must be two rising numbers"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(KEY, with_channels(3))


@pytest.mark.skipif(
    jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
def test_eight_devices_match_one_without_communication():
    def everything(key, x, aspect):
        for k, name in zip(
            jax.random.split(key, 6), ("crop", "flip", "jitter", "grayscale", "blur", "solarize")
        ):
            x = OPERATIONS[name](k, x)
        return augment.random_resized_crop(key, x, aspect=aspect)

    x, aspect = np.concatenate([with_channels(3)] * 2), np.linspace(0.4, 3, 16, dtype=np.float32)
    alone = jax.jit(everything)(KEY, x, aspect)
    mesh = jax.make_mesh(
        (8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8]
    )
    with jax.set_mesh(mesh):
        split = jax.device_put((x, aspect), NamedSharding(mesh, BATCH))
        program = jax.jit(everything).lower(KEY, *split).compile()
        together = program(KEY, *split)
    assert {shard.data.shape[0] for shard in together.addressable_shards} == {2}
    np.testing.assert_allclose(together, alone, atol=5e-6)
    text = program.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
