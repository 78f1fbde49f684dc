"""How long packs took, counted in buckets that grow by the square root of two: counts of several add up to those of all.

Bucket 0 holds what is below 1 ms, bucket i from 2^((i-1)/2) to 2^(i/2) ms, the last one the rest. Needs numpy.
"""

from collections.abc import Sequence

import numpy as np

from citylab.columns import Int64

BUCKETS = 64  # the last one begins at 2^31 ms, 25 days


def bucket(delay: Int64) -> Int64:
    """The buckets of delays. int64 µs, shape (n,); int64, shape (n,)."""
    steps = np.floor(2 * np.log2(np.maximum(delay, 1) / 1_000)) + 1
    found: Int64 = np.clip(steps, 0, BUCKETS - 1).astype(np.int64)
    return found


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The delay in ms that `share` of the packs kept, within the bucket's bounds; None when there are none.

    At most 41 % from the true one: a bucket's width.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    for i, count in enumerate(counts):
        if count and rank <= count:
            low, high = (0.0, 1.0) if i == 0 else (2 ** ((i - 1) / 2), 2 ** (i / 2))
            return round(low + (high - low) * rank / count, 3)
        rank -= count
    return round(2 ** ((len(counts) - 1) / 2), 3)
