"""Least squares with coefficients that cannot be negative: seconds are sums of costs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_COLUMNS = 8


def nonnegative_least_squares(rows: ArrayLike, seconds: ArrayLike) -> NDArray[np.float64]:
    """Coefficients x >= 0 that minimise the squared *relative* errors of rows @ x.

    Tries every set of columns that may be above zero, which is exact for the few columns we
    have. Linearly dependent columns get the solution of least norm.

    Args:
        rows: (n, k), 1 <= k <= 8, finite; n >= 1.
        seconds: (n,), above 0.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, seconds not above 0.
    """
    matrix = np.asarray(rows, dtype=np.float64)
    target = np.asarray(seconds, dtype=np.float64)
    if matrix.ndim != 2 or target.shape != matrix.shape[:1] or not matrix.size:
        raise ValueError(f"rows {matrix.shape}, seconds {target.shape}: must be (n, k) and (n,)")
    num_columns = matrix.shape[1]
    if num_columns > MAX_COLUMNS:
        raise ValueError(f"rows {matrix.shape}: at most {MAX_COLUMNS} columns")
    if not (np.isfinite(matrix).all() and np.isfinite(target).all() and (target > 0).all()):
        raise ValueError("rows must be finite, seconds finite and above 0")
    relative = matrix / target[:, None]
    best, least_error = np.zeros(num_columns), float(len(target))
    for size in range(1, num_columns + 1):
        for columns in combinations(range(num_columns), size):
            part = relative[:, columns]
            solution = np.linalg.lstsq(part, np.ones(len(target)), rcond=None)[0]
            error = float(((part @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < least_error:
                best, least_error = np.zeros(num_columns), error
                best[list(columns)] = solution
    return best


def mape(predicted: ArrayLike, known: ArrayLike) -> float:
    """Mean absolute relative error of `predicted` against `known` (above 0)."""
    known_array = np.asarray(known, dtype=np.float64)
    errors = np.abs(np.asarray(predicted, dtype=np.float64) / known_array - 1)
    return float(errors.mean())
