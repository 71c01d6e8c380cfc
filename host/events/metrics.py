"""What a virtual machine has asked for and what became of it: counters. Their events are in
:mod:`host.events.chain_events`.
"""

from collections import Counter
from dataclasses import dataclass, field

from host.events.latency import Latency
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
    refused_bytes: Counter[str] = field(default_factory=Counter)
    acknowledge: Latency = field(default_factory=Latency)
    discard: Latency = field(default_factory=Latency)

    def count(self, chain: ServedChain) -> None:
        """Take one served chain into account."""
        outcome = chain.outcome
        self.discarded_bytes += chain.discarded_bytes
        if outcome.statistics is not None:
            self.unknown_tags += outcome.statistics.unknown
        elif chain.queue is not BalloonQueue.DEFLATE:
            self.acknowledge.count(chain.seconds)
            self.discard.count(chain.discard_seconds)
        match chain.queue:
            case BalloonQueue.REPORTING:
                self.reports += 1
                self.reported_ranges += outcome.plan.ranges
                self.reported_bytes += outcome.plan.bytes
            case BalloonQueue.INFLATE:
                self.inflated_pages += outcome.pages
            case BalloonQueue.DEFLATE:
                self.deflated_pages += outcome.pages
            case BalloonQueue.FREE_PAGE:
                self.hinted_bytes += outcome.plan.bytes
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges
            self.refused_bytes[refused.reason.value] += refused.bytes

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
        self.refused += other.refused
        self.refused_bytes += other.refused_bytes
        self.acknowledge.add(other.acknowledge)
        self.discard.add(other.discard)
