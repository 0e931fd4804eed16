"""BYOL's, SimSiam's, DINO's, iBOT's, SwAV's and I-JEPA's losses against the papers' equations as
naive float64 loops."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import ema
from ssljax.losses.clustering import sinkhorn, swav_loss
from ssljax.losses.distillation import (
    byol_loss,
    cross_view_loss,
    dino_loss,
    ibot_patch_loss,
    ijepa_loss,
    negative_cosine_loss,
)
from ssljax.losses.masked_image import block_masks, blockwise_masks
from ssljax.optim import rising_decay


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in shapes]


def single(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def softmax(row, tau):
    e = [math.exp(x / tau) for x in row]
    return [x / sum(e) for x in e]


def naive_byol(q, z):
    """Grill et al., 2020, eq. 2: of both at length 1 the squared distance, meaned."""
    total = 0.0
    for a, b in zip(q, z):
        la, lb = (math.sqrt(sum(x * x for x in v)) for v in (a, b))
        total += sum((x / la - y / lb) ** 2 for x, y in zip(a, b))
    return total / len(q)


def naive_simsiam(p, z):
    """Chen and He, 2020, eq. 1."""
    length = np.linalg.norm
    return sum(
        -sum(x * y for x, y in zip(a, b)) / (length(a) * length(b)) for a, b in zip(p, z)
    ) / len(p)


def naive_pairs(target, student, tau):
    """H(target, student) over pairs of different views: Caron et al., 2021, eq. 3; `target[m][i]`
    are probabilities."""
    total = pairs = 0
    for m in range(len(target)):
        for v in range(len(student)):
            if m != v:
                pairs += 1
                for t, s in zip(target[m], student[v]):
                    total -= sum(a * math.log(b) for a, b in zip(t, softmax(s, tau))) / len(
                        target[m]
                    )
    return total / pairs


def naive_dino(teacher, student, centre, tau_t, tau_s):
    target = [
        [softmax([x - c for x, c in zip(row, centre)], tau_t) for row in view] for view in teacher
    ]
    return naive_pairs(target, student, tau_s)


def naive_sinkhorn(scores, eps, steps):
    """Caron et al., 2020, the listing of appendix A.1: columns of exp(C z / eps)' are examples."""
    q = np.exp(np.array(scores, np.float64) / eps).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(steps):
        for i in range(k):
            q[i] /= q[i].sum() * k
        for j in range(b):
            q[:, j] /= q[:, j].sum() * b
    return (q * b).T


def naive_swav(scores, tau, eps, steps):
    return naive_pairs([naive_sinkhorn(s, eps, steps).tolist() for s in scores[:2]], scores, tau)


def naive_ijepa(y, target, weight, error="squared"):
    """Assran et al., 2023, section 3: errors for features standardised over channels, in blocks."""
    smooth = lambda e: (
        e * e / 2 if abs(e) < 1 else abs(e) - 0.5
    )  # torch.nn.functional.smooth_l1_loss
    each = (lambda e: e * e) if error == "squared" else smooth
    total = count = 0
    for n, p in np.argwhere(weight):
        t = target[n, p]
        t = (t - t.mean()) / math.sqrt(t.var() + 1e-6)
        total, count = total + sum(each(a - b) for a, b in zip(y[n, p], t)), count + y.shape[-1]
    return total / count


def naive_ibot(teacher, student, hidden, centre, tau_t, tau_s):
    """Zhou et al., 2022, eq. 2 and iBOTLoss.forward: of each image the mean of hidden patches."""
    total = 0.0
    for t, s, mask in zip(teacher, student, hidden):
        of_image = [
            -sum(p * math.log(q) for p, q in zip(softmax(a - centre, tau_t), softmax(b, tau_s)))
            for a, b, m in zip(t, s, mask)
            if m
        ]
        total += sum(of_image) / max(1, len(of_image))
    return total / len(teacher)


def authors_blockwise_mask(rng, h, w, high):
    """ImageFolderMask of iBOT's loader.py, with the share of the patches already drawn."""
    mask, count, log_aspect = np.zeros((h, w), bool), 0, (math.log(0.3), math.log(1 / 0.3))
    while count < high:
        most, delta = high - count, 0
        for _ in range(10):
            area = rng.uniform((min(h, w) // 3) ** 2, most)
            aspect = math.exp(rng.uniform(*log_aspect))
            a, b = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if b < w and a < h:
                top, left = rng.randint(0, h - a), rng.randint(0, w - b)
                block = mask[top : top + a, left : left + b]
                if 0 < block.size - block.sum() <= most:
                    delta = block.size - block.sum()
                    block[:] = True
            if delta > 0:
                break
        if delta == 0:
            break
        count += delta
    return mask


def test_cosines_equal_the_equations_and_send_no_gradient_to_the_target():
    p, z = draw(0, (5, 4), (5, 4))
    for loss, naive in ((byol_loss, naive_byol), (negative_cosine_loss, naive_simsiam)):
        np.testing.assert_allclose(loss(*single(p, z)), naive(p, z), rtol=1e-5)
        to_p, to_z = jax.grad(loss, (0, 1))(*single(p, z))
        np.testing.assert_array_equal(to_z, 0)
        for at in [(0, 0), (2, 3), (4, 1)]:
            step = np.zeros(p.shape)
            step[at] = 1e-5
            np.testing.assert_allclose(
                to_p[at], (naive(p + step, z) - naive(p - step, z)) / 2e-5, rtol=1e-3, atol=1e-5
            )
    np.testing.assert_allclose(byol_loss(*single(p, 3 * p)), 0, atol=1e-6)
    np.testing.assert_allclose(byol_loss(*single(p, -p)), 4, rtol=1e-6)


@pytest.mark.parametrize("views", [2, 4])
def test_dino_equals_the_equation_and_sends_no_gradient_to_the_teacher(views):
    teacher, student, centre = draw(1, (2, 3, 5), (views, 3, 5), (5,))
    found = dino_loss(*single(teacher, student, centre), 0.2, 0.5)
    np.testing.assert_allclose(found, naive_dino(teacher, student, centre, 0.2, 0.5), rtol=2e-5)
    to_t, to_s, to_c = jax.grad(dino_loss, (0, 1, 2))(*single(teacher, student, centre), 0.2, 0.5)
    np.testing.assert_array_equal(to_t, 0)
    np.testing.assert_array_equal(to_c, 0)
    step = np.zeros(student.shape)
    step[1, 2, 3] = 1e-5
    up, down = (naive_dino(teacher, student + s * step, centre, 0.2, 0.5) for s in (1, -1))
    np.testing.assert_allclose(to_s[1, 2, 3], (up - down) / 2e-5, rtol=1e-3, atol=1e-5)
    mixed = [2, 0, 1]  # The order of the images doesn't matter, nor what teacher and centre share.
    np.testing.assert_allclose(
        dino_loss(*single(teacher[:, mixed], student[:, mixed], centre), 0.2, 0.5), found, rtol=1e-5
    )
    np.testing.assert_allclose(
        dino_loss(*single(teacher + 7, student, centre + 7), 0.2, 0.5), found, rtol=1e-4
    )


def test_ibot_patch_loss_and_gradients():
    """The last image has no hidden patch: it counts 0, in the mean of all images."""
    teacher, student, centre = draw(7, (4, 6, 5), (4, 6, 5), (5,))
    hidden = np.random.default_rng(1).random((4, 6)) < 0.4
    hidden[0], hidden[3] = True, False
    args = (*single(teacher, student), jnp.asarray(hidden), *single(centre), 0.2, 0.5)
    naive = lambda s: naive_ibot(teacher, s, hidden, centre, 0.2, 0.5)
    np.testing.assert_allclose(ibot_patch_loss(*args), naive(student), rtol=2e-5)
    to_t, to_s, to_c = jax.grad(ibot_patch_loss, (0, 1, 3))(*args)
    np.testing.assert_array_equal(to_t, 0)
    np.testing.assert_array_equal(to_c, 0)
    np.testing.assert_array_equal(to_s[~hidden], 0)
    assert (jnp.abs(to_s[hidden]).max(-1) > 0).all()
    step = np.zeros(student.shape)
    step[0, 2, 3] = 1e-5
    want = (naive(student + step) - naive(student - step)) / 2e-5
    np.testing.assert_allclose(to_s[0, 2, 3], want, rtol=1e-3, atol=1e-5)
    views = lambda x: x.reshape(2, 2, *x.shape[1:])  # Of two images, two views each.
    paired = ibot_patch_loss(*map(views, args[:3]), *args[3:])
    np.testing.assert_allclose(paired, naive(student), rtol=2e-5)


@pytest.mark.parametrize("grid", [(7, 7), (8, 6), (14, 14)])
def test_blockwise_masks_are_those_of_the_authors_loop(grid):
    """Numbers of masked patches, where they lie, and how ragged they are, of 1,500 masks each."""
    n, rng = 1500, random.Random(0)
    h, w = grid
    found = np.asarray(blockwise_masks(jax.random.key(3), 2 * n, grid)).reshape(-1, h, w)
    masked = found[found.any((1, 2))]
    assert abs(len(masked) / (2 * n) - 0.5) < 4 * math.sqrt(0.25 / (2 * n))
    theirs = [authors_blockwise_mask(rng, h, w, rng.uniform(0.1, 0.5) * h * w) for _ in range(n)]
    theirs = np.array([m for m in theirs if m.any()])  # On small grids no block may fit.
    edges = lambda m: (
        (m[:, 1:] != m[:, :-1]).sum((1, 2)) + (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2))
    )
    for of in (
        lambda m: m.sum((1, 2)),
        edges,
        lambda m: m[:, 0].sum(1),
        lambda m: m[:, :, 0].sum(1),
    ):
        a, b = of(masked), of(theirs)
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error, (a.mean(), b.mean(), error)
        np.testing.assert_allclose(a.std(), b.std(), rtol=0.1)
    assert masked.sum((1, 2)).max() <= 0.5 * h * w
    always = blockwise_masks(jax.random.key(0), 64, grid, masked=1.0)
    assert (
        always.any(1).mean() > 0.9
        and not blockwise_masks(jax.random.key(0), 8, grid, masked=0.0).any()
    )
    np.testing.assert_array_equal(always, blockwise_masks(jax.random.key(0), 64, grid, masked=1.0))


def test_a_view_does_not_learn_from_itself():
    student = jnp.asarray(draw(2, (2, 3, 5))[0], jnp.float32)
    target = jnp.stack([jnp.eye(5)[:3], jnp.zeros((3, 5))])  # Of the second view nothing is asked.
    grad = jax.grad(lambda s: cross_view_loss(target, s))(student)
    np.testing.assert_array_equal(grad[0], 0)
    assert jnp.abs(grad[1]).max() > 0.01


@pytest.mark.parametrize("steps", [1, 3])
def test_sinkhorn_equals_the_listing(steps):
    (scores,) = draw(3, (12, 4))
    np.testing.assert_allclose(
        sinkhorn(*single(scores), 0.5, steps), naive_sinkhorn(scores, 0.5, steps), rtol=1e-4
    )


def test_sinkhorn_has_its_marginals_and_survives_sharp_scores():
    (scores,) = single(*draw(4, (24, 6)))
    q = sinkhorn(scores, 0.3, 100)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(q.sum(0), 24 / 6, rtol=1e-4)
    np.testing.assert_allclose(sinkhorn(scores, 0.3, 3).sum(1), 1, rtol=1e-5)  # Rows always.
    mixed = jnp.array(np.random.default_rng(0).permutation(24))
    np.testing.assert_allclose(
        sinkhorn(scores[mixed], 0.3, 3), sinkhorn(scores, 0.3, 3)[mixed], rtol=1e-4, atol=1e-6
    )
    same = sinkhorn(jnp.ones((8, 4)), 0.05)  # Collapse: every code uniform.
    np.testing.assert_allclose(same, 0.25, rtol=1e-5)
    assert np.isfinite(sinkhorn(1000 * scores, 0.01)).all()


@pytest.mark.parametrize("views", [2, 5])
def test_swav_equals_the_equations_and_codes_get_no_gradient(views):
    (scores,) = draw(5, (views, 6, 4))
    np.testing.assert_allclose(
        swav_loss(*single(scores), 2, 0.3, 0.4, 3), naive_swav(scores, 0.3, 0.4, 3), rtol=1e-4
    )
    codes = [
        naive_sinkhorn(s, 0.4, 3).tolist() for s in scores[:2]
    ]  # Held fixed in the difference.
    grad = jax.grad(lambda s: swav_loss(s, 2, 0.3, 0.4, 3))(*single(scores))
    for at in [(0, 0, 0), (1, 3, 2), (views - 1, 5, 1)]:
        step = np.zeros(scores.shape)
        step[at] = 1e-5
        up, down = (naive_pairs(codes, scores + s * step, 0.3) for s in (1, -1))
        np.testing.assert_allclose(grad[at], (up - down) / 2e-5, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("error", ["squared", "smooth-l1"])
def test_ijepa_loss_and_gradients(error):
    y, target = draw(6, (3, 6, 5), (3, 6, 5))
    weight = np.random.default_rng(0).random((3, 6)) < 0.4
    args = (*single(y, target), jnp.asarray(weight))
    naive = naive_ijepa(y, target, weight, error)
    np.testing.assert_allclose(ijepa_loss(*args, error), naive, rtol=1e-4)
    to_y, to_target = jax.grad(ijepa_loss, (0, 1))(*args, error)
    np.testing.assert_array_equal(to_target, 0)
    np.testing.assert_array_equal(to_y[~weight], 0)
    assert (jnp.abs(to_y[weight]).max(-1) > 0).all()


def test_blocks_are_rectangles_of_the_areas_and_aspects_asked_for():
    found = np.asarray(block_masks(jax.random.key(0), 200, (14, 14), 4)).reshape(-1, 14, 14)
    sizes, places = [], set()
    for mask in found:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        h, w = len(rows), len(columns)
        assert (
            mask.sum() == h * w
            and rows[-1] - rows[0] + 1 == h
            and columns[-1] - columns[0] + 1 == w
        )
        sizes.append((h, w))
        places.add((rows[0] == 0, rows[-1] == 13, columns[0] == 0, columns[-1] == 13))
    area, aspect = np.array([(h * w / 196, h / w) for h, w in sizes]).T
    assert (
        area.min() > 0.12 and area.max() < 0.24 and abs(area.mean() - 0.175) < 0.005
    )  # Up to rounding.
    assert aspect.min() > 0.6 and aspect.max() < 1.8 and len(set(sizes)) > 8
    assert {
        (True, False, False, False),
        (False, True, False, False),
        (False, False, False, True),
    } <= places
    assert block_masks(
        jax.random.key(0), 2, (3, 5), 1, (1.0, 1.0), (0.6, 0.6)
    ).all()  # All of a 3x5 grid.
    with pytest.raises(ValueError, match="can't be drawn"):
        block_masks(jax.random.key(0), 2, (4, 4), 0)
    for bad in ({"share": (0.5, 0.1)}, {"share": (0.1, 1.0)}, {"masked": 1.5}, {"aspect": (0, 1)}):
        with pytest.raises(ValueError, match="can't be drawn"):
            blockwise_masks(jax.random.key(0), 2, (4, 4), **bad)


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (16, 12)])
def test_correlated_blocks_have_the_sizes_of_the_authors_code(grid):
    """_sample_block_size of I-JEPA's mask collator, at each value of its one random number."""
    want = set()
    for r in np.linspace(0, 1, 20_001):
        keep = int(grid[0] * grid[1] * (0.15 + r * 0.05))
        ratio = 0.75 + r * 0.75
        want.add((round(math.sqrt(keep * ratio)), round(math.sqrt(keep / ratio))))
    masks = np.asarray(block_masks(jax.random.key(0), 2000, grid, 2, correlated=True))
    masks = masks.reshape(-1, *grid)
    found = set(zip(masks.any(2).sum(1).tolist(), masks.any(1).sum(1).tolist()))
    assert found == want
    free = np.asarray(block_masks(jax.random.key(0), 2000, grid, 2)).reshape(-1, *grid)
    assert set(zip(free.any(2).sum(1).tolist(), free.any(1).sum(1).tolist())) > want


def test_a_teacher_is_the_moving_average_worked_out_by_hand():
    tau = rising_decay(0.9, 10)
    for step in (0, 1, 5, 10):
        by_hand = 1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2
        np.testing.assert_allclose(tau(step), by_hand, rtol=1e-6)
        new = ema({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([4.0, 3.0])}, tau(step))["w"]
        np.testing.assert_allclose(
            new, [by_hand * 2 + (1 - by_hand) * 4, -by_hand + (1 - by_hand) * 3], rtol=1e-6
        )
    grad = jax.grad(lambda p: ema(jnp.ones(2), p, 0.5).sum())(jnp.ones(2))
    np.testing.assert_array_equal(grad, 0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 1.5"):
        rising_decay(1.5, 10)


def test_bad_input_is_a_sentence():
    a = jnp.ones((2, 4, 3))
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match="temperature must be positive"):
            dino_loss(a, a, jnp.zeros(3), bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            dino_loss(a, a, jnp.zeros(3), 0.1, bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            swav_loss(a, 2, bad)
        with pytest.raises(ValueError, match="positive epsilon"):
            swav_loss(a, 2, 0.1, bad)
    with pytest.raises(ValueError, match="two or more views"):
        swav_loss(a[:1])
    with pytest.raises(ValueError, match="same shape"):
        negative_cosine_loss(a[0], a[1, :2])
