"""How long chains took, as counts by upper bound: the form in which Prometheus takes histograms.

A worker counts between two chains, so this is one search in a short tuple and one addition.
"""

from bisect import bisect_left
from typing import Final

BOUNDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds in seconds. A report of a few blocks takes 50 us, one of 128 MiB of touched memory 25 ms; a real kernel
that waits for seconds has run out of memory."""


class Latency:
    """Counts of durations in seconds: ``counts`` has one for each of :data:`BOUNDS`, and one for those beyond the last.
    ``seconds`` is their sum."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def count(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: "Latency") -> None:
        """Add what ``other`` has counted."""
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Latency) and (self.counts, self.seconds) == (other.counts, other.seconds)

    __hash__ = None  # type: ignore[assignment]
