"""What a virtual machine has asked for and what became of it: counters. Their events are in
:mod:`host.events.chain_events`.
"""

from collections import Counter
from dataclasses import dataclass, field

from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


@dataclass(slots=True)
class VmMetrics:
    """Counters of one virtual machine's life. Sizes are bytes; ``refused`` counts ranges by reason, ``unknown_tags``
    entries of statistics whose tag is unknown."""

    reports: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    inflated_pages: int = 0
    deflated_pages: int = 0
    hinted_bytes: int = 0
    unknown_tags: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def count(self, chain: ServedChain) -> None:
        """Take one served chain into account."""
        outcome = chain.outcome
        self.discarded_bytes += chain.discarded_bytes
        if outcome.statistics is not None:
            self.unknown_tags += outcome.statistics.unknown
        match chain.queue:
            case BalloonQueue.REPORTING:
                self.reports += 1
                self.reported_bytes += outcome.plan.bytes
            case BalloonQueue.INFLATE:
                self.inflated_pages += outcome.pages
            case BalloonQueue.DEFLATE:
                self.deflated_pages += outcome.pages
            case BalloonQueue.FREE_PAGE:
                self.hinted_bytes += outcome.plan.bytes
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges

    def add(self, other: "VmMetrics") -> None:
        """Add what ``other`` has counted."""
        self.reports += other.reports
        self.reported_bytes += other.reported_bytes
        self.discarded_bytes += other.discarded_bytes
        self.inflated_pages += other.inflated_pages
        self.deflated_pages += other.deflated_pages
        self.hinted_bytes += other.hinted_bytes
        self.unknown_tags += other.unknown_tags
        self.refused += other.refused
