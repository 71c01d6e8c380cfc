"""What a virtual machine has reported and what became of it: counters, and the events about single chains."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from host.ring_service import ServedChain
from protocol.virtio_balloon import BalloonQueue

_EVENT_OF = {
    BalloonQueue.REPORTING: "report",
    BalloonQueue.INFLATE: "inflate",
    BalloonQueue.DEFLATE: "deflate",
    BalloonQueue.STATS: "statistics",
    BalloonQueue.FREE_PAGE: "hint",
}


@dataclass(slots=True)
class VmMetrics:
    """Counters of one virtual machine's life. Sizes are bytes; ``refused`` counts ranges by reason."""

    reports: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def count(self, chain: ServedChain, emit: Callable[..., None]) -> None:
        """Take one served chain into account and tell of it.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        plan = chain.outcome.plan
        if chain.queue is BalloonQueue.REPORTING:
            self.reports += 1
            self.reported_bytes += plan.bytes
        self.discarded_bytes += chain.discarded_bytes
        emit(
            _EVENT_OF[chain.queue],
            t=round(chain.finished, 6),
            ranges=plan.ranges,
            bytes=plan.bytes,
            discarded_bytes=chain.discarded_bytes,
            refused_bytes=sum(refused.bytes for refused in chain.refused),
            seconds=round(chain.seconds, 6),
        )
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges
            emit(
                "refused",
                t=round(chain.finished, 6),
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
            )
