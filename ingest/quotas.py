"""How much a gateway may send: a token bucket each, so that a noisy one takes nothing from the others."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from citylab.model import SECOND, Micros

PACK_COSTS = 256  # bytes that a pack counts besides its own: many small ones are work too
PUT_BACK = SECOND  # µs by which messages of two connections are never in another order
MOST_TOLD = 20  # gateways by name, in what the bridge says of itself


class Quota(NamedTuple):
    """Of each gateway, in bytes: a second, and at once after a pause. rate 0 is no quota."""

    rate: float = 0.0
    burst: float = 0.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: Micros
    refused: float = 0.0  # bytes, since the last pack that was taken


class Quotas:
    """One bridge's buckets; each bridge has its own. over: packs beyond the quota since it began, by gateway."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.over: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, gateway: str, size: int, at: Micros) -> Micros | None:
        """Take a pack of `size` bytes out of a gateway's bucket. None when it fits.

        Else, counted, the moment from which there is room for what did not fit lately, or for as much as ever fits.
        at: of its receipt, by a clock that may be put: forward, the bucket is full; back, it fills from there on.
        """
        rate, burst = self.quota
        if not rate:
            return None
        bucket = self._buckets.setdefault(gateway, _Bucket(burst, at))
        bucket.tokens = min(bucket.tokens + max(at - bucket.at, 0) / SECOND * rate, burst)
        if at > bucket.at or bucket.at - at > PUT_BACK:
            bucket.at = at
        costs = min(size + PACK_COSTS, burst)
        if costs <= bucket.tokens:
            bucket.tokens -= costs
            bucket.refused = 0.0
            return None
        self.over[gateway] += 1
        bucket.refused = min(bucket.refused + costs, burst)
        return at + round((bucket.refused - bucket.tokens) / rate * SECOND)

    def forget(self, at: Micros) -> None:
        """Forget buckets that are full by now: a new one is full too."""
        rate, burst = self.quota
        self._buckets = {
            gateway: bucket
            for gateway, bucket in self._buckets.items()
            if bucket.tokens + (at - bucket.at) / SECOND * rate < burst
        }
