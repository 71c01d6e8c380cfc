"""What a virtual machine has asked for and what became of it: counters. Their events are in
:mod:`host.events.chain_events`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from host.events.latency import BOUNDS, Latency
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


@dataclass(slots=True)
class VmMetrics:
    """Counters of one virtual machine's life. Sizes are bytes; ``refused`` counts ranges by reason and
    ``refused_bytes`` their bytes, ``unknown_tags`` entries of statistics whose tag is unknown.

    ``acknowledge`` has the time from taking a chain to giving it back, ``discard`` the part of it that was spent on
    discards, both without the chains that only carry statistics or take pages out of the balloon."""

    reports: int = 0
    reported_ranges: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    inflated_pages: int = 0
    deflated_pages: int = 0
    hinted_bytes: int = 0
    unknown_tags: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_bytes: dict[str, int] = field(default_factory=dict)
    acknowledge: Latency = field(default_factory=Latency)
    discard: Latency = field(default_factory=Latency)

    def count(self, chain: ServedChain) -> None:
        """Take one served chain into account."""
        outcome = chain.outcome
        self.discarded_bytes += chain.discarded_bytes
        if outcome.statistics is not None:
            self.unknown_tags += outcome.statistics.unknown
        match chain.queue:
            case BalloonQueue.REPORTING:
                self.reports += 1
                self.reported_ranges += outcome.plan.ranges
                self.reported_bytes += outcome.plan.bytes
                self._time(chain)
            case BalloonQueue.INFLATE:
                self.inflated_pages += outcome.pages
                self._time(chain)
            case BalloonQueue.DEFLATE:
                self.deflated_pages += outcome.pages
            case BalloonQueue.FREE_PAGE:
                self.hinted_bytes += outcome.plan.bytes
                self._time(chain)
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges
            self._refuse(refused.reason.value, refused.bytes)

    def _time(self, chain: ServedChain) -> None:
        # Buckets by hand: a call for each would take longer than the rest of the counting.
        seconds, discard_seconds = chain.seconds, chain.discard_seconds
        acknowledge, discard = self.acknowledge, self.discard
        acknowledge.seconds += seconds
        discard.seconds += discard_seconds
        bucket = bisect_left(BOUNDS, seconds)
        acknowledge.buckets[bucket] = acknowledge.buckets.get(bucket, 0) + 1
        bucket = bisect_left(BOUNDS, discard_seconds)
        discard.buckets[bucket] = discard.buckets.get(bucket, 0) + 1

    def _refuse(self, reason: str, size: int) -> None:
        self.refused_bytes[reason] = self.refused_bytes.get(reason, 0) + size

    def write_down(self) -> dict[str, Any]:
        """Return what a device's state leaves out, for another process."""
        times = {name: [latency.seconds, list(latency.buckets.items())] for name, latency in self._latencies()}
        return {"refused_bytes": self.refused_bytes, **times}

    def resume(self, written: Mapping[str, Any]) -> None:
        """Go on from what another process has written down."""
        self.refused_bytes = dict(written["refused_bytes"])
        for name, latency in self._latencies():
            latency.seconds, buckets = written[name]
            latency.buckets = dict(buckets)

    def _latencies(self) -> tuple[tuple[str, Latency], ...]:
        return ("acknowledge", self.acknowledge), ("discard", self.discard)

    def add(self, other: "VmMetrics") -> None:
        """Add what ``other`` has counted."""
        self.reports += other.reports
        self.reported_ranges += other.reported_ranges
        self.reported_bytes += other.reported_bytes
        self.discarded_bytes += other.discarded_bytes
        self.inflated_pages += other.inflated_pages
        self.deflated_pages += other.deflated_pages
        self.hinted_bytes += other.hinted_bytes
        self.unknown_tags += other.unknown_tags
        if other.refused:
            self.refused += other.refused
            for reason, size in other.refused_bytes.items():
                self._refuse(reason, size)
        self.acknowledge.add(other.acknowledge)
        self.discard.add(other.discard)
