"""What a virtual machine has asked for and what became of it: counters, and the events about single chains."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from host.ring_service import ServedChain
from protocol.virtio_balloon import BalloonQueue

REFUSED_PER_SECOND: Final = 200
"""Most ``refused`` events of one virtual machine in a second. A driver can go wrong for ever, and fast."""

STATISTICS_PER_SECOND: Final = 20
"""Most ``statistics`` events of one virtual machine in a second. A driver may send them without being asked."""

_EVENT_OF = {
    BalloonQueue.REPORTING: "report",
    BalloonQueue.INFLATE: "inflate",
    BalloonQueue.DEFLATE: "deflate",
    BalloonQueue.FREE_PAGE: "hint",
}


class RateLimit:
    """Lets ``most`` things through in each second of a clock and counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = 0
        self._passed = 0
        self._held_back = 0

    def passes(self, now: float) -> bool:
        """Return whether one more may pass at ``now`` (seconds)."""
        if int(now) != self._second:
            self._second, self._passed = int(now), 0
        self._passed += 1
        if self._passed > self._most:
            self._held_back += 1
            return False
        return True

    def take_held_back(self) -> int:
        """Return how many did not pass since this was last asked."""
        held_back, self._held_back = self._held_back, 0
        return held_back


@dataclass(slots=True)
class VmMetrics:
    """Counters of one virtual machine's life. Sizes are bytes; ``refused`` counts ranges by reason, ``unknown_tags``
    entries of statistics that nobody has named, ``events_held_back`` events that would have been too many."""

    reports: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    inflated_pages: int = 0
    deflated_pages: int = 0
    hinted_bytes: int = 0
    unknown_tags: int = 0
    events_held_back: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    _refused_limit: RateLimit = field(default_factory=lambda: RateLimit(REFUSED_PER_SECOND))
    _statistics_limit: RateLimit = field(default_factory=lambda: RateLimit(STATISTICS_PER_SECOND))

    def count(self, chain: ServedChain, emit: Callable[..., None]) -> None:
        """Take one served chain into account and tell of it.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        outcome = chain.outcome
        self.discarded_bytes += chain.discarded_bytes
        if outcome.statistics is not None:
            self.unknown_tags += outcome.statistics.unknown
            self._tell_statistics(chain.finished, outcome.statistics.values, emit)
        else:
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
        self._tell_refused(chain, emit)

    def _tell_statistics(self, now: float, values: dict[str, int], emit: Callable[..., None]) -> None:
        if self._statistics_limit.passes(now):
            emit("statistics", t=round(now, 6), **values)
        else:
            self.events_held_back += 1

    def _tell_refused(self, chain: ServedChain, emit: Callable[..., None]) -> None:
        for refused in chain.refused:
            self.refused[refused.reason.value] += refused.ranges
            if not self._refused_limit.passes(chain.finished):
                self.events_held_back += 1
                continue
            held_back = self._refused_limit.take_held_back()
            emit(
                "refused",
                t=round(chain.finished, 6),
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
                **({"held_back": held_back} if held_back else {}),
            )
