"""Losses without negatives against lightly, and against the equations in PyTorch, float64."""

import jax.numpy as jnp
import numpy as np

from ssljax.losses.clustering import sinkhorn, swav_loss
from ssljax.losses.distillation import byol_loss, dino_loss, ijepa_loss, negative_cosine_loss
from ssljax.losses.redundancy import barlow_twins_loss, lejepa_loss, sigreg, vicreg_loss
from tests.peers.test_contrastive import SIZES, views
from tests.peers.torch_side import agree_with_gradients, tensor


def test_negative_cosine(row):
    """SimSiam's and BYOL's losses, value and gradients

    lightly's `NegativeCosineSimilarity`; BYOL's error is 2 + 2 times it.
    """
    loss = row.peer("lightly.loss").NegativeCosineSimilarity()
    for seed, (n, d, _) in enumerate(SIZES):
        p, z = views(seed, 2, n, d)
        agree_with_gradients(
            row, 1e-5, negative_cosine_loss, lambda p, z: loss(p, z.detach()), p, z
        )
        agree_with_gradients(row, 1e-5, byol_loss, lambda p, z: 2 + 2 * loss(p, z.detach()), p, z)


def test_barlow_twins(row):
    """Barlow Twins, value and gradients

    lightly's `BarlowTwinsLoss`, on features of standard deviations 1 and 0.01, where the ε of its
    BatchNorm matters.
    """
    loss = row.peer("lightly.loss").BarlowTwinsLoss()
    for seed, (n, d, _) in enumerate(SIZES):
        za, zb = views(seed, 2, n, d)
        for scale in (np.float32(1), np.float32(0.01)):
            pair = scale * za, scale * (za + 0.5 * zb)
            agree_with_gradients(row, 1e-5, barlow_twins_loss, loss, *pair)


def test_vicreg(row):
    """VICReg's variance term

    lightly and the authors take half of equation 6's variance term; ours is the equation. Their
    weight 25 is 12.5 here (`--variance 12.5`), and then values and gradients agree.
    """
    loss = row.peer("lightly.loss").VICRegLoss()
    for seed, (n, d, _) in enumerate(SIZES):
        za, zb = views(seed, 2, n, d)
        za, zb = 0.5 * za, 0.7 * za + 0.2 * zb
        agree_with_gradients(row, 1e-5, lambda a, b: vicreg_loss(a, b, mu=12.5), loss, za, zb)
        row.differ(vicreg_loss(za, zb), loss(tensor(za), tensor(zb)), 0.05)


def scores(seed: int, v: int, n: int, k: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (v, n, k)).astype(np.float32)


def test_dino(row):
    """DINO's loss and centre, value and gradients

    lightly's `DINOLoss`: two teacher views, two to four student views.
    """
    loss = row.peer("lightly.loss")
    for seed, (v, n, k) in enumerate([(2, 4, 8), (3, 16, 33), (4, 8, 64)]):
        teacher, student = scores(seed, 2, n, k), scores(seed + 10, v, n, k)
        centre = scores(seed + 20, 1, 1, k)[0, 0] / 10

        def theirs(student, teacher=teacher, centre=centre, k=k):
            module = loss.DINOLoss(output_dim=k, center_momentum=0.9)
            module.center = tensor(centre)[None, None]
            value = module(list(tensor(teacher)), list(student), teacher_temp=0.05)
            moved = 0.9 * centre + 0.1 * teacher.mean((0, 1))
            row.agree(moved, module.center[0, 0], 1e-5)
            return value

        ours = lambda s, teacher=teacher, centre=centre: dino_loss(teacher, s, centre, 0.05, 0.1)
        agree_with_gradients(row, 1e-5, ours, theirs, student)


def test_sinkhorn(row):
    """Sinkhorn's codes

    lightly's `sinkhorn` at 1, 3 and 10 steps.
    """
    swav = row.peer("lightly.loss.swav_loss")
    for seed, steps in enumerate([1, 3, 10]):
        one = scores(seed, 1, 32, 20)[0]
        theirs = swav.sinkhorn(tensor(one), iterations=steps, epsilon=0.05)
        row.agree(sinkhorn(one, 0.05, steps), theirs, 1e-5)


def test_swav(row):
    """SwAV's loss, value and gradients

    lightly's `SwaVLoss`: two large views, none to four small ones.
    """
    loss = row.peer("lightly.loss").SwaVLoss(temperature=0.1)
    for seed, v in enumerate([2, 4, 6]):
        theirs = lambda s: loss(list(s[:2]), list(s[2:]))
        agree_with_gradients(row, 1e-5, swav_loss, theirs, scores(seed, v, 16, 20))


def directed(row, module, directions: np.ndarray):
    """lightly's SIGReg along given directions, which it would draw."""
    module._generate_unit_vectors = lambda device, dtype, num_features: tensor(directions.T)
    return module


def unit_rows(seed: int, m: int, d: int) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(m, d))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def test_sigreg(row):
    """SIGReg (LeJEPA), value and gradients

    lightly's `SIGReg`, 17 knots on [0, 3] with the trapezoid rule, doubled; ours takes the same
    sum over 33 knots on [-3, 3]. Features at standard deviations 0.3, 1 and 6, and shifted by 10.
    """
    lejepa = row.peer("lightly.loss.lejepa_loss")
    directions = unit_rows(0, 32, 16)
    theirs = directed(row, lejepa.SIGReg(), directions).double()
    for seed, (scale, shift) in enumerate([(0.3, 0), (1, 0), (6, 0), (1, 10.053)]):
        z = scale * views(seed, 1, 256, 16)[0] + np.float32(shift)
        agree_with_gradients(row, 1e-5, lambda z: sigreg(z, directions), theirs, z)


def test_lejepa(row):
    """LeJEPA's loss, value and gradients

    lightly's `LeJEPALoss`: two global views and two local ones.
    """
    lejepa = row.peer("lightly.loss.lejepa_loss")
    directions = unit_rows(1, 32, 16)
    theirs = lejepa.LeJEPALoss(lambda_param=0.05).double()
    directed(row, theirs.sigreg, directions)
    z = np.stack(views(3, 4, 64, 16))
    ours = lambda z: lejepa_loss(z, directions, lam=0.05, large=2)
    agree_with_gradients(row, 1e-5, ours, lambda z: theirs(local_proj=z[2:], global_proj=z[:2]), z)


def test_ijepa(row):
    """I-JEPA's loss, value and gradient

    The paper's section 3 squares errors, as ours does by default; the authors' code takes
    `smooth_l1_loss` (`error="smooth-l1"` here). Both agree with PyTorch, on targets after its
    `layer_norm`.
    """
    functional = row.peer("torch.nn.functional")
    y, target = (np.stack(views(seed, 4, 10, 12)) for seed in (0, 1))
    weight = np.random.default_rng(0).random((4, 10)) < 0.4
    normal = functional.layer_norm(tensor(target), (12,), eps=1e-6)[tensor(weight)]
    squared = lambda y: functional.mse_loss(y[tensor(weight)], normal)
    smooth = lambda y: functional.smooth_l1_loss(y[tensor(weight)], normal)
    arrays = jnp.asarray(target), jnp.asarray(weight, jnp.float32)
    agree_with_gradients(row, 1e-5, lambda y: ijepa_loss(y, *arrays), squared, y)
    agree_with_gradients(row, 1e-5, lambda y: ijepa_loss(y, *arrays, "smooth-l1"), smooth, y)
    row.differ(ijepa_loss(y, *arrays), smooth(tensor(y)), 0.1)
