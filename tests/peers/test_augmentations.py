"""Augmentations against torchvision, kornia, Pillow and DiffAugment's formulas.

Random amounts are read off ours by the same keys, and given to the peers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter
import pytest
from scipy import stats
from sklearn.datasets import load_sample_image

from ssljax.data import augment
from ssljax.data.colour import rgb_to_lab
from tests.peers.torch_side import tensor

KEY = jax.random.key(0)


def pictures(n: int = 6, h: int = 32, w: int = 40) -> np.ndarray:
    """Smooth pictures with noise in [0, 1], (n, h, w, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    waves = [np.sin(a * x / w + b * y / h) for a, b in rng.uniform(1, 12, (3 * n, 2))]
    smooth = 0.5 + 0.4 * np.stack(waves).reshape(n, 3, h, w).transpose(0, 2, 3, 1)
    return np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1).astype(np.float32)


def channels_first(x: np.ndarray):
    return tensor(x).permute(0, 3, 1, 2)


def channels_last(x) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def boxes(x: np.ndarray) -> np.ndarray:
    """Tops, lefts, heights and widths of crops, (n, 4)."""
    rng = np.random.default_rng(1)
    h, w = x.shape[1:3]
    found = []
    for _ in x:
        bh, bw = rng.integers(h // 4, h + 1), rng.integers(w // 4, w + 1)
        found.append((rng.integers(h - bh + 1), rng.integers(w - bw + 1), bh, bw))
    return np.array(found)


def both_crops(row, size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Crops by ours and by torchvision's `resized_crop`, in the same boxes."""
    functional = row.peer("torchvision.transforms.v2.functional")
    modes = row.peer("torchvision.transforms.v2").InterpolationMode
    x = pictures()
    at = boxes(x)
    theirs = [
        functional.resized_crop(
            image[None], *map(int, box), [size, size], modes(interpolation), antialias=True
        )
        for image, box in zip(channels_first(x), at)
    ]
    top, left, height, width = (jnp.asarray(v, jnp.float32) for v in at.T)
    ours = augment.crop_and_resize(
        jnp.asarray(x), top, left, height, width, size, interpolation=interpolation
    )
    theirs = np.concatenate([channels_last(t) for t in theirs])
    return np.asarray(ours), np.clip(theirs, 0, 1)


@pytest.mark.parametrize("size", [12, 24, 48])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops(row, interpolation, size):
    """Crops, resized to 12, 24 and 48 pixels, bilinear and bicubic

    torchvision's `resized_crop` with antialiasing, clipped to [0, 1] where bicubic.
    """
    row.agree(*both_crops(row, size, interpolation), 1e-5)


def test_crops_interpolation(row):
    """Crops: the default interpolation, mean difference

    Ours is bilinear by default, as in torchvision and lightly; DINO's, Barlow Twins' and SimCLR's
    code is bicubic (`bicubic` here). Converted: with that.
    """
    mean = lambda x: np.abs(x).mean(keepdims=True)
    linear, cubic = (both_crops(row, 24, kind) for kind in ("bilinear", "bicubic"))
    row.agree(mean(cubic[0] - cubic[1]), np.zeros((1, 1, 1, 1)), 1e-5)
    row.differ(mean(linear[0] - cubic[1]), np.zeros((1, 1, 1, 1)), 2e-3)


PHOTOGRAPHS = (500, 375), (375, 500), (500, 333), (1000, 200)  # Width and height.


def box_statistics(boxes, h: int, w: int, rng) -> np.ndarray:
    """Area, log ratio, corner, and corner in the room left, (6, n), as fractions of the sides.

    Smeared by ±1/100, 3 to 10 pixels: a pixel more or less makes no difference.
    """
    top, left, bh, bw = np.asarray(boxes, np.float64) / np.array([[h], [w], [h], [w]])
    ratio = np.log(bw * w / (bh * h))
    found = [bh * bw, ratio, top, left, (top + 0.005) / (1.01 - bh), (left + 0.005) / (1.01 - bw)]
    return np.stack(found) + rng.uniform(-0.01, 0.01, (6, boxes.shape[1]))


def test_boxes_of_photographs(row):
    """Boxes of random crops in photographs squeezed to squares: distance of distributions

    `RandomResizedCrop.get_params` on 500x375, 375x500, 500x333 and 1000x200 pixels, where a quarter
    of the boxes are the central one; ours at 320 pixels, by the aspect alone. Kolmogorov-Smirnov's
    distance of areas, ratios and corners, each to ±1/100; by chance, 0.03 has p = 2e-4 over 10,000
    boxes.
    """
    transform = row.peer("torchvision.transforms").RandomResizedCrop
    torch = row.peer("torch")
    torch.manual_seed(0)
    n, rng = 10_000, np.random.default_rng(0)
    for w, h in PHOTOGRAPHS:
        photo = torch.zeros(1, h, w)
        theirs = [transform.get_params(photo, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
        rows, columns = (np.int64(max(320, round(x))) for x in (320 * h / w, 320 * w / h))
        ours = np.stack(augment.random_boxes(KEY, n, rows, columns))
        pairs = zip(
            box_statistics(ours, rows, columns, rng), box_statistics(np.array(theirs).T, h, w, rng)
        )
        distances = [stats.ks_2samp(*pair).statistic for pair in pairs]
        row.agree(distances, np.zeros(6), 0.03)
    del row.peers["torch"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_of_photographs(row, interpolation):
    """Crops of a photograph squeezed to a square, mean difference

    torchvision's `resized_crop` of the same boxes of the file of 640x427 pixels to 224; ours of the
    photograph squeezed to 448. Of values in [0, 1], relative to the largest.
    """
    functional = row.peer("torchvision.transforms.v2.functional")
    photo, side = load_sample_image("china.jpg"), 448
    h, w = photo.shape[:2]
    square = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
    x = np.repeat(np.asarray(square)[None] / np.float32(255), 4, 0)
    at = np.array([[0, 0, h, w], [100, 200, 300, 400], [31, 7, 250, 200], [60, 301, 280, 339]])
    ours = augment.crop_and_resize(x, *(at * side / [h, w, h, w]).T, 224, interpolation)
    theirs = [
        functional.resized_crop(
            channels_first(photo[None] / 255), *map(int, box), [224, 224], interpolation
        )
        for box in at
    ]
    found = np.abs(ours - np.concatenate([channels_last(t) for t in theirs]).clip(0, 1))
    row.agree(found.mean(keepdims=True), np.zeros((1, 1, 1, 1)), 0.02)


def uniform(key, n: int, low: float, high: float) -> np.ndarray:
    return np.asarray(jax.random.uniform(key, (n, 1, 1), minval=low, maxval=high)).ravel()


def drawn(n: int, operations: int, amount: float, hue: float):
    """The factors and the order of `colour_jitter`, each of n images."""
    _, order, *keys, shift = jax.random.split(KEY, 6)
    factors = [uniform(k, n, max(0.0, 1 - amount), 1 + amount) for k in keys]
    order = np.argsort(np.asarray(jax.random.uniform(order, (n, operations))), axis=1)
    return [*factors, uniform(shift, n, -hue, hue)], order


NAMES = "brightness", "contrast", "saturation", "hue"


def test_colour_jitter(row):
    """Colour jitter: brightness, contrast, saturation and hue in a random order

    torchvision's `adjust_...` with the same factors and in the same order.
    """
    functional = row.peer("torchvision.transforms.v2.functional")
    x = pictures(16)
    factors, order = drawn(len(x), 4, 0.8, 0.2)
    theirs = []
    for i, image in enumerate(channels_first(x)):
        for j in order[i]:
            image = getattr(functional, f"adjust_{NAMES[j]}")(image, float(factors[j][i]))
        theirs.append(image)
    ours = augment.colour_jitter(KEY, jnp.asarray(x), 0.8, 0.8, 0.8, 0.2)
    row.agree(ours, channels_last(row.peer("torch").stack(theirs)), 1e-5)
    del row.peers["torch"]


def test_hue_kornia(row):
    """Hue

    kornia's `adjust_hue` (in radians).
    """
    enhance = row.peer("kornia.enhance")
    x = pictures(8)
    factors, _ = drawn(len(x), 1, 0, 0.5)
    theirs = enhance.adjust_hue(channels_first(x), tensor(2 * np.pi * factors[3]))
    ours = augment.colour_jitter(KEY, jnp.asarray(x), hue=0.5)
    row.agree(ours, channels_last(theirs), 1e-5)


def test_grayscale(row):
    """Grayscale

    torchvision's `rgb_to_grayscale`.
    """
    functional = row.peer("torchvision.transforms.v2.functional")
    x = pictures()
    theirs = functional.rgb_to_grayscale(channels_first(x), 3)
    row.agree(augment.grayscale(KEY, jnp.asarray(x), p=1.0), channels_last(theirs), 1e-5)


def blur_widths(n: int) -> np.ndarray:
    """The widths of the Gaussians of `gaussian_blur`."""
    key = jax.random.split(KEY)[1]
    return np.asarray(jax.random.uniform(key, (n, 1), minval=0.1, maxval=2.0)).ravel()


def test_blur(row):
    """Gaussian blur

    torchvision's `gaussian_blur` with a kernel of a tenth of the height.
    """
    functional = row.peer("torchvision.transforms.v2.functional")
    x = pictures(6, 64, 80)
    theirs = [
        functional.gaussian_blur(image[None], [7, 7], [float(s), float(s)])
        for image, s in zip(channels_first(x), blur_widths(len(x)))
    ]
    ours = augment.gaussian_blur(KEY, jnp.asarray(x), p=1.0)
    row.agree(ours, np.concatenate([channels_last(t) for t in theirs]), 1e-5)


def test_blur_pillow(row):
    """Gaussian blur at 32 pixels, mean difference from Pillow's

    Pillow's kernel has no limit, ours (and torchvision's) a tenth of the height, 3 pixels here, as
    SimCLR's paper says; SimCLR leaves blur out at this size. Converted: with a kernel of 21; what
    remains is Pillow's approximation by boxes.
    """
    row.peer("PIL", "pillow")
    x = pictures(6, 32, 32)
    x8 = np.round(255 * x).astype(np.uint8)
    theirs = np.stack([
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(s))))
        for image, s in zip(x8, blur_widths(len(x)))
    ])  # fmt: skip
    x = x8.astype(np.float32) / 255
    mean = lambda y: np.abs(np.asarray(y) - theirs / 255).mean(keepdims=True)
    wide = augment.gaussian_blur(KEY, jnp.asarray(x), p=1.0, kernel=21 / 32)
    row.agree(mean(wide), np.zeros((1, 1, 1, 1)), 4e-3)
    row.differ(mean(augment.gaussian_blur(KEY, jnp.asarray(x), p=1.0)), mean(wide) * 0, 4e-3)


def test_solarize(row):
    """Solarisation

    torchvision's `solarize`.
    """
    functional = row.peer("torchvision.transforms.v2.functional")
    x = pictures()
    theirs = functional.solarize(channels_first(x), 0.5)
    row.agree(augment.solarize(KEY, jnp.asarray(x), p=1.0), channels_last(theirs), 1e-6)


def test_lab(row):
    """sRGB to CIELAB

    kornia's `rgb_to_lab`, whose white is (0.95047, 1, 1.08883); ours is what the rows of its matrix
    sum to, so that greys have no colour at all.
    """
    color = row.peer("kornia.color")
    x = pictures()
    row.agree(rgb_to_lab(jnp.asarray(x)), channels_last(color.rgb_to_lab(channels_first(x))), 1e-4)


def test_diff_augment_colour(row):
    """DiffAugment's colours

    Its formulas in PyTorch, float64.
    """
    row.peer("torch")
    x = 2 * pictures() - 1
    b, s, c = np.asarray(jax.random.uniform(KEY, (len(x), 3)))[:, :, None, None, None].swapaxes(
        0, 1
    )
    y = channels_first(x)
    y = y + tensor(b).double() - 0.5
    y = (y - y.mean(1, keepdim=True)) * tensor(2 * s) + y.mean(1, keepdim=True)
    level = y.mean((1, 2, 3), keepdim=True)
    y = (y - level) * tensor(c + 0.5) + level
    row.agree(augment.diff_colour(KEY, jnp.asarray(x)), channels_last(y), 1e-5)


def test_diff_augment_sizes(row):
    """DiffAugment's shift and hole in pixels

    ⌊x·r + ½⌋ of sides 4, 5, 9, 13 and 32, with r = 1/8 and 1/2, as its code rounds. Found as the
    largest shift of 300 images and the largest hole.
    """
    row.peer("numpy")
    found, expected = [], []
    for side in (4, 5, 9, 13, 32):
        x = jnp.ones((300, side, side, 1))
        moved = np.asarray(augment.translate(KEY, x))[..., 0]
        holes = 1 - np.asarray(augment.cutout(KEY, x))[..., 0]
        found.append([(moved.max(1) == 0).sum(1).max(), holes.max(1).sum(1).max()])
        expected.append([int(side / 8 + 0.5), int(side / 2 + 0.5)])
    row.agree(found, expected, 0)
