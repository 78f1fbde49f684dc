"""Largest-Triangle-Three-Buckets: fewer points that draw the same line (Steinarsson 2013). Pure."""

import numpy as np

from citylab.columns import Float64, Int64


def decimate(time: Int64, value: Float64, points: int) -> Int64:
    """The index of those `points` rows (at least 3, or all) that keep the line's shape; the first and the last stay.

    time: int64 µs, ascending; value: float64, finite; both of shape (n,). Of each bucket the row is chosen that makes
    the largest triangle with the one chosen before it and the mean of the bucket after it.
    """
    n = len(time)
    if n <= points:
        return np.arange(n)
    x = (time - time[0]).astype(np.float64)
    edges = np.linspace(1, n - 1, points - 1).astype(
        np.int64
    )  # of the buckets between the first and the last row
    after = np.r_[edges[1:-1], n - 1]  # where the bucket after each begins
    size = np.diff(np.r_[after, n])
    mean_x, mean_y = (np.add.reduceat(column, after) / size for column in (x, value))
    chosen = np.zeros(points, np.int64)
    chosen[-1] = n - 1
    last = 0
    for i, (begin, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        area = np.abs(
            (x[last] - mean_x[i]) * (value[begin:end] - value[last])
            - (x[last] - x[begin:end]) * (mean_y[i] - value[last])
        )
        last = begin + int(np.argmax(area))
        chosen[i + 1] = last
    return chosen
