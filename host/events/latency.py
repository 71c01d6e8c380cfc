"""How long chains took, as counts by upper bound: the form in which Prometheus takes histograms.

A worker counts between two chains and begins anew with each turn, so only buckets that have counted anything are kept.
"""

from bisect import bisect_left
from typing import Final

BOUNDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds in seconds. A report of a few blocks takes 50 us, one of 128 MiB of touched memory 25 ms; a real kernel
that waits for seconds has run out of memory."""


class Latency:
    """Counts of durations in seconds, whose sum is ``seconds``. ``buckets`` has those that are not zero, by number."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.seconds = 0.0

    def count(self, seconds: float) -> None:
        """Count one duration."""
        bucket = bisect_left(BOUNDS, seconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.seconds += seconds

    def add(self, other: "Latency") -> None:
        """Add what ``other`` has counted."""
        self.seconds += other.seconds
        mine = self.buckets
        for bucket, count in other.buckets.items():
            mine[bucket] = mine.get(bucket, 0) + count

    @property
    def counts(self) -> list[int]:
        """A count for each of :data:`BOUNDS`, and one for those beyond the last."""
        counts = [0] * (len(BOUNDS) + 1)
        for bucket, count in self.buckets.copy().items():  # a copy: another thread may count meanwhile
            counts[bucket] = count
        return counts
