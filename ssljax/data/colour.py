"""Conversion between sRGB and CIE L*a*b* (D65, 2 degrees), and bins of the a*b* plane."""

from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError

# Linear sRGB to XYZ: IEC 61966-2-1. The white of D65 is the sum of each row, so that a and b of
# greys are exactly 0.
XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
WHITE = XYZ.sum(1)
BACK = np.linalg.inv(XYZ)


def rgb_to_lab(x: Array) -> Array:
    """sRGB in [0, 1], (..., 3), to L in [0, 100], a and b: CIE 15, by the exact sRGB curve.

    InputError unless there are three channels.
    """
    if x.shape[-1] != 3:
        raise InputError(
            f"Colours need three channels, not {x.shape[-1]}: give a set of colour images."
        )
    low = x <= 0.04045
    linear = jnp.where(low, x / 12.92, ((jnp.where(low, 1.0, x) + 0.055) / 1.055) ** 2.4)
    t = jnp.einsum("...c,dc->...d", linear, XYZ / WHITE[:, None], precision="highest")
    low = t <= (6 / 29) ** 3
    f = jnp.where(low, t / (3 * (6 / 29) ** 2) + 4 / 29, jnp.cbrt(jnp.where(low, 1.0, t)))
    return jnp.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1
    )


def lab_to_rgb(lab: Array) -> Array:
    """Inverse of `rgb_to_lab`; colours outside sRGB are clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = jnp.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    t = jnp.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = jnp.einsum("...c,dc->...d", t, BACK * WHITE, precision="highest")
    low = linear <= 0.0031308
    curve = 1.055 * jnp.where(low, 1.0, linear) ** (1 / 2.4) - 0.055
    return jnp.clip(jnp.where(low, 12.92 * linear, curve), 0, 1)


def gamut(step: float = 10.0, colours: int = 48, k: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Centres (q, 2) of the bins of a and b that sRGB colours fall into, and a table of near bins.

    Bins are `step` wide. `table[round(a / step) + r, round(b / step) + r]`, with r = len(table) //
    2, has the indices of the `k` bins nearest to the middle of that cell; the nearest 24 include
    the five nearest to any colour in the cell. Zhang et al., 2016, arXiv:1603.08511, section 2,
    have 313 bins of width 10; their number depends on `colours`, the levels of each channel at
    which the sRGB cube is sampled. InputError for fewer than `k` bins.
    """
    levels = np.linspace(0, 1, colours, dtype=np.float32)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    lab = np.asarray(rgb_to_lab(jnp.asarray(rgb)))
    places = np.unique(np.round(lab[:, 1:] / step).astype(int), axis=0)
    if len(places) < k:
        raise InputError(
            f"Bins {step} wide cut the a*b* plane into {len(places)}: choose a narrower --step."
        )
    r = int(np.ceil(128 / step))
    corners = np.mgrid[-r : r + 1, -r : r + 1].transpose(1, 2, 0)
    table = _neighbours(places, corners, k)
    return (places * step).astype(np.float32), np.asarray(table, np.int32)


def occurrences(ab: Array, centres: np.ndarray) -> np.ndarray:
    """Number of the colours `ab` (n, 2) nearest to each of `centres` (q, 2): (q,)."""
    return np.bincount(_neighbours(centres, np.asarray(ab), 1), minlength=len(centres))


def _neighbours(places: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    """Which `k` of `places` (n, d) are nearest to points (..., d): (..., k), or (...) for one."""
    from scipy.spatial import KDTree

    return np.asarray(KDTree(places).query(points, k)[1])
