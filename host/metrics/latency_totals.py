"""How long the chains of all guests took, also of those that have gone: sums that never go back.

Prometheus takes a counter that goes back for one that began anew, and counts all of it a second time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from host.metrics.sample import Latency, Sample


@dataclass(slots=True)
class Sum:
    """A sum of latencies: a count for each bucket, and seconds."""

    counts: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, latency: Latency) -> None:
        """Add the latency of one guest."""
        counts, seconds = latency
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else list(counts)
        self.seconds += seconds


class LatencyTotals:
    """The sums over all samples, from one scrape to the next. What a guest that has gone counted after the last scrape
    is missing."""

    def __init__(self) -> None:
        self._seen: dict[int, Sample] = {}
        self._gone = Sum(), Sum()

    def add(self, samples: Sequence[Sample]) -> tuple[Sum, Sum]:
        """Take the samples of a scrape. Return how long discards took, and acknowledgements."""
        present = {sample.vm: sample for sample in samples}
        for vm in self._seen.keys() - present.keys():
            _add(self._gone, self._seen[vm])
        self._seen = present
        totals = Sum(), Sum()
        for total, gone in zip(totals, self._gone, strict=True):
            total.counts, total.seconds = list(gone.counts), gone.seconds
        for sample in samples:
            _add(totals, sample)
        return totals


def _add(sums: tuple[Sum, Sum], sample: Sample) -> None:
    discard, acknowledge = sums
    discard.add(sample.discard)
    acknowledge.add(sample.acknowledge)
