"""Statistics of results over seeds."""

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; NaN for one value."""
    from scipy.special import stdtrit  # Slow to import, and needed for several seeds alone.

    n = len(values)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
