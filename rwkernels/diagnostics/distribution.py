"""The distribution of a result over models: Eq. 8 of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def empirical_cdf(values: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Empirical distribution function: at every value that occurs, the share of values up to it (Eq. 8, Fig. 5).

    Args:
        values: Numbers `[n]`, one per model.

    Returns:
        The different values, ascending, and `F(x)`, the number of values `<= x` over n, for each of them; float64.

    Raises:
        ValueError: `values` is not one axis of finite numbers, or empty.

    Examples:
        >>> [part.tolist() for part in empirical_cdf([0.5, 0.0, 0.5, 1.0])]
        [[0.0, 0.5, 1.0], [0.25, 0.75, 1.0]]
    """
    found = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if found.ndim != 1 or found.size == 0 or not np.isfinite(found).all():
        raise ValueError(f"values: expected finite numbers [n], n > 0, got an array of shape {list(found.shape)}")
    at, times = np.unique(found, return_counts=True)
    return at, np.cumsum(times) / found.size
