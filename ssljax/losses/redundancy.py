"""Losses that keep features from collapsing: decorrelated, spread out, or Gaussian."""

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.accumulation import whole_batch
from ssljax.errors import InputError


def barlow_twins_loss(za: Array, zb: Array, lam: float = 5e-3) -> Array:
    """Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² for two views, (n, d) each.

    C_ij is the correlation over the batch of feature i of `za` with feature j of `zb`. Features are
    standardised with ε = 1e-5 in the variance, the BatchNorm of the authors' code.

    Zbontar et al., 2021, arXiv:2103.03230, eqs. 1 and 2.
    """
    whole_batch()
    _check(za, zb)
    za, zb = (_standardize(z.astype(jnp.float32)) for z in (za, zb))
    square = (za.T @ zb / len(za) - jnp.eye(za.shape[1])) ** 2
    return lam * jnp.sum(square) + (1 - lam) * jnp.trace(square)


def vicreg_loss(
    za: Array, zb: Array, lam: float = 25.0, mu: float = 25.0, nu: float = 1.0
) -> Array:
    """λ s(Z, Z') + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z')) for two views, (n, d) each.

    s is the mean squared error over examples and features (algorithm 1). The variance term is that
    of eq. 6, twice the authors' code, which averages v(Z) and v(Z'): their μ = 25 is 12.5 here.

    Bardes et al., 2021, arXiv:2105.04906, eq. 6.
    """
    _check(za, zb)
    za, zb = za.astype(jnp.float32), zb.astype(jnp.float32)
    spread = variance_loss(za) + variance_loss(zb)
    decorrelated = covariance_loss(za) + covariance_loss(zb)
    return lam * jnp.mean((za - zb) ** 2) + mu * spread + nu * decorrelated


def variance_loss(z: Array, gamma: float = 1.0, eps: float = 1e-4) -> Array:
    """v(Z) = 1/d Σ_j max(0, γ - √(Var(z_j) + ε)) of `z`, (n, d): VICReg's eqs. 1 and 2."""
    whole_batch()
    return jnp.mean(jax.nn.relu(gamma - jnp.sqrt(z.var(0, ddof=1) + eps)))


def covariance_loss(z: Array) -> Array:
    """c(Z) = 1/d Σ_{i≠j} C_ij², C the covariance of `z`, (n, d): VICReg's eqs. 3 and 4."""
    whole_batch()
    n, d = z.shape
    z = z - z.mean(0)
    square = (z.T @ z / (n - 1)) ** 2
    return (jnp.sum(square) - jnp.trace(square)) / d


def sigreg(z: Array, directions: Array, reach: float = 3.0, knots: int = 33) -> Array:
    """SIGReg: the Epps-Pulley statistic of `z`, (n, d), for N(0, 1), averaged over `directions`.

    Along each direction, (m, d), scaled to length 1: n ∫ |φ_n(t) - exp(-t²/2)|² exp(-t²/2) dt over
    [-reach, reach] by the trapezoid rule, with φ_n(t) the mean of exp(i t x). The knots are those
    of the authors' code (17 on [0, 3], doubled by symmetry). The listing in the paper has reach 5
    and 17 knots, which repeat with period 10.05: features of N(10.05, 1) look Gaussian to them.

    Balestriero and LeCun, 2025, arXiv:2511.08544, algorithm 1.
    """
    if z.ndim != 2 or directions.ndim != 2 or z.shape[1] != directions.shape[1]:
        raise InputError(
            "Features (n, d) and directions (m, d) are needed, not "
            f"{z.shape} and {directions.shape}."
        )
    if not len(directions):
        raise InputError("SIGReg needs one direction or more: choose --slices above 0.")
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    t = jnp.linspace(-reach, reach, knots)
    normal = jnp.exp(-(t**2) / 2)
    angle = (z.astype(jnp.float32) @ directions.T)[:, :, None] * t
    error = (jnp.cos(angle).mean(0) - normal) ** 2 + jnp.sin(angle).mean(0) ** 2
    return len(z) * jnp.trapezoid(error * normal, t, axis=-1).mean()


def lejepa_loss(z: Array, directions: Array, lam: float = 0.05, large: int | None = None) -> Array:
    """(1 - λ) times the views' mean squared distance from their centre + λ SIGReg.

    `z`, (views, n, d), are views of n images; the centre of an image is the mean of its first
    `large` (global) views, or of all. SIGReg is averaged over views, the distance over features.

    Balestriero and LeCun, 2025, arXiv:2511.08544, algorithm 2. InputError for fewer than two views,
    `large` outside [1, views], or λ outside [0, 1].
    """
    whole_batch()
    if z.ndim != 3 or len(z) < 2:
        raise InputError(f"Two or more views (views, n, d) are needed, not {z.shape}.")
    if large is not None and not 1 <= large <= len(z):
        raise InputError(f"The large views must be from 1 to all {len(z)}, not {large}.")
    if not 0 <= lam <= 1:
        raise InputError(f"The share of SIGReg in the loss must be in [0, 1], not {lam}.")
    z = z.astype(jnp.float32)
    distance = jnp.mean((z - z[:large].mean(0)) ** 2)
    return (1 - lam) * distance + lam * sum(sigreg(view, directions) for view in z) / len(z)


def _standardize(z: Array, eps: float = 1e-5) -> Array:
    """Columns with mean 0 and variance 1; ε keeps a constant column at 0 with a finite gradient."""
    z = z - z.mean(0)
    return z / jnp.sqrt(jnp.mean(z**2, 0) + eps)


def _check(a: Array, b: Array) -> None:
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(
            f"Two views of the same shape (n, d) are needed, not {a.shape} and {b.shape}."
        )
    if len(a) < 2:
        raise InputError("Statistics over a batch need two images or more.")
