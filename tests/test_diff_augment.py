"""DiffAugment against its formulas as loops in float64; the pixels that move are known, so they are
told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.augment import cutout, diff_augment, diff_colour, translate

KEY, N = jax.random.key(0), 300
IMAGES = np.random.default_rng(0).uniform(-1, 1, (N, 8, 16, 3)).astype(np.float32)


def test_colour_is_the_papers():
    """x + U(-1/2, 1/2); (x - mean over channels) U(0, 2) + mean; (x - mean over the image) U(1/2,
    3/2) + mean."""
    found = np.asarray(diff_colour(KEY, jnp.asarray(IMAGES)), np.float64)
    drawn = []
    for x, y in zip(IMAGES.astype(np.float64), found):
        # Contrast keeps the image's mean and saturation every pixel's: each is recovered by itself.
        b = y.mean() - x.mean()
        gray, gray_y = x.mean(-1) + b, y.mean(-1)
        c = np.std(gray_y) / np.std(gray)
        s = np.std(y - gray_y[..., None]) / np.std(x - x.mean(-1, keepdims=True)) / c
        bright = x + b
        saturated = np.zeros_like(x)
        for i, j in np.ndindex(8, 16):
            m = sum(bright[i, j]) / 3
            saturated[i, j] = [(v - m) * s + m for v in bright[i, j]]
        np.testing.assert_allclose(
            y, (saturated - saturated.mean()) * c + saturated.mean(), atol=1e-4
        )
        drawn.append((b, s, c))
    drawn = np.array(drawn)
    np.testing.assert_allclose(drawn.mean(0), [0, 1, 1], atol=0.12)
    assert (drawn.min(0) > [-0.5001, -1e-4, 0.4999]).all() and (
        drawn.min(0) < [-0.45, 0.1, 0.55]
    ).all()
    assert (drawn.max(0) < [0.5001, 2.0001, 1.5001]).all() and (
        drawn.max(0) > [0.45, 1.9, 1.45]
    ).all()


def test_translation_moves_whole_pixels_and_brings_zeros():
    found = np.asarray(translate(KEY, jnp.asarray(IMAGES[:120]), 1 / 4))
    seen = set()
    for x, y in zip(IMAGES, found):
        moves = []
        for dy in range(-2, 3):
            for dx in range(-4, 5):
                moved = np.zeros_like(x)
                for i, j in np.ndindex(8, 16):
                    if 0 <= i + dy < 8 and 0 <= j + dx < 16:
                        moved[i, j] = x[i + dy, j + dx]
                if np.array_equal(moved, y):
                    moves.append((dy, dx))
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) > 35  # Of 45 possible.


def test_cutout_makes_a_box_of_zeros():
    found = np.asarray(cutout(KEY, jnp.asarray(IMAGES), 1 / 2))
    corners = set()
    for x, y in zip(IMAGES, found):
        gone = (y == 0).all(-1)
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        assert gone.sum() == len(rows) * len(columns) and np.array_equal(y[~gone], x[~gone])
        assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
        assert (
            2 <= len(rows) <= 4 and 4 <= len(columns) <= 8
        )  # Half of each side, or half of that at a border.
        corners.add((rows[0], columns[0]))
    assert len(corners) > 50


@pytest.mark.parametrize("size", [4, 5, 9, 12, 13, 20])
def test_sizes_are_rounded_half_up_as_in_the_authors_code(size):
    """int(size * ratio + 0.5): 1 of 4 pixels to shift by, and 3 of 5 to cut out."""
    ones = jnp.ones((600, size, size, 1))
    moved = np.asarray(translate(KEY, ones, 1 / 8))[..., 0]
    rows = size - moved.any(2).sum(1)
    assert rows.max() == int(size / 8 + 0.5)
    gone = np.asarray(cutout(KEY, ones, 1 / 2))[..., 0] == 0
    assert gone.any(2).sum(1).max() == gone.any(1).sum(1).max() == int(size / 2 + 0.5)


def test_gradients_reach_the_images():
    """What a generator learns through all three is the gradient where a pixel is still seen, and 0
    where it is not."""
    x = jnp.asarray(IMAGES[:4])
    grad = jax.grad(lambda x: diff_augment(KEY, x).sum())(x)
    assert np.isfinite(grad).all() and (np.abs(grad).reshape(4, -1).max(1) > 0).all()
    np.testing.assert_allclose(
        jax.grad(lambda x: cutout(KEY, x).sum())(x), cutout(KEY, jnp.ones_like(x))
    )


@pytest.mark.parametrize("augment", [diff_colour, translate, cutout, diff_augment])
def test_every_image_has_its_own_draw(augment):
    same = jnp.broadcast_to(jnp.asarray(IMAGES[0]), (20, 8, 16, 3))
    out = np.asarray(augment(KEY, same))
    assert len({y.tobytes() for y in out}) > 8 and out.shape == same.shape
    assert not np.array_equal(out, augment(jax.random.key(1), same))
