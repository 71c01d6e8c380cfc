"""What a virtual machine has asked for and what became of it: counters, and the events about single chains."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue

_EVENT_OF = {
    BalloonQueue.REPORTING: "report",
    BalloonQueue.INFLATE: "inflate",
    BalloonQueue.DEFLATE: "deflate",
    BalloonQueue.FREE_PAGE: "hint",
}


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

    def count(self, chain: ServedChain, emit: Callable[..., None], tell: Callable[..., None]) -> None:
        """Take one served chain into account and tell of it.

        ``emit`` writes an event; ``tell`` does so within limits, for what a driver can cause to no purpose of its own.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        outcome = chain.outcome
        self.discarded_bytes += chain.discarded_bytes
        if outcome.statistics is not None:
            self.unknown_tags += outcome.statistics.unknown
            tell("statistics", t=round(chain.finished, 6), **outcome.statistics.values)
        elif chain.queue is not None:
            fields: dict[str, object] = {}
            match chain.queue:
                case BalloonQueue.REPORTING:
                    self.reports += 1
                    self.reported_bytes += outcome.plan.bytes
                case BalloonQueue.INFLATE:
                    self.inflated_pages += outcome.pages
                    fields["pages"] = outcome.pages
                case BalloonQueue.DEFLATE:
                    self.deflated_pages += outcome.pages
                    fields["pages"] = outcome.pages
                case BalloonQueue.FREE_PAGE:
                    self.hinted_bytes += outcome.plan.bytes
                    fields |= {"command_id": outcome.hint_id, "command": outcome.command_id}
            emit(
                _EVENT_OF[chain.queue],
                t=round(chain.finished, 6),
                ranges=outcome.plan.ranges,
                bytes=outcome.plan.bytes,
                discarded_bytes=chain.discarded_bytes,
                refused_bytes=sum(refused.bytes for refused in chain.refused),
                seconds=round(chain.seconds, 6),
                **fields,
            )
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges
            tell(
                "refused",
                t=round(chain.finished, 6),
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
            )
