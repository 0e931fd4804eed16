"""Statistics of results over seeds."""

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; NaN for one value."""
    from scipy.special import stdtrit  # Slow to import, and needed for several seeds alone.

    n = len(values)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, 0.975) * np.sqrt(_variance(values) / n))


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(b) - mean(a), and half its 95 % confidence interval by Welch's t; NaN for one value."""
    from scipy.special import stdtrit

    mean = float(np.mean(b) - np.mean(a))
    if len(a) < 2 or len(b) < 2:
        return mean, float("nan")
    parts = [_variance(x) / len(x) for x in (a, b)]
    if not sum(parts) > 0:
        return mean, 0.0
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b)))
    return mean, float(stdtrit(freedom, 0.975) * np.sqrt(sum(parts)))


def _variance(values: Sequence[float]) -> float:
    """The unbiased variance; 0 of equal values, whose mean may differ from them by rounding."""
    return 0.0 if np.ptp(values) == 0 else float(np.var(values, ddof=1))
