"""The events about one queue's chains, built apart from being written.

Building an event takes longer than the rest of what is done about a small chain, and other threads wait for the
interpreter meanwhile. A worker can build it after it has given the chain back, while the driver is busy with that. Then
the event loop only passes on what is ready.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from host.events.event_limit import EventLimit
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue

CHAIN_EVENTS_PER_SECOND: Final = 1000
"""Events of one queue in a second after which chains are summed up."""

EVENT_OF: Final = {
    BalloonQueue.REPORTING: "report",
    BalloonQueue.INFLATE: "inflate",
    BalloonQueue.DEFLATE: "deflate",
    BalloonQueue.FREE_PAGE: "hint",
}

SUM_BUILT: Final = 0.01
"""Seconds of chains in a sum from which on the worker builds its event. A shorter one is added to others first."""

Prepare = Callable[..., Callable[[], None]]
"""``prepare(name, **fields)`` builds one event, on any thread, and returns what writes it, on the event loop."""


@dataclass(slots=True)
class ChainSum:
    """The sum of one or more chains of a queue. ``began`` is when the first was finished. ``finished`` and the two ids
    are those of the last chain with one."""

    queue: BalloonQueue
    began: float
    chains: int = 0
    finished: float = 0.0
    ranges: int = 0
    bytes: int = 0
    discarded_bytes: int = 0
    refused_bytes: int = 0
    seconds: float = 0.0
    pages: int = 0
    hint_id: int | None = None
    command_id: int | None = None

    def count(self, chain: ServedChain) -> None:
        """Add ``chain``."""
        outcome = chain.outcome
        self.chains += 1
        self.finished = chain.finished
        self.ranges += outcome.plan.ranges
        self.bytes += outcome.plan.bytes
        self.discarded_bytes += chain.discarded_bytes
        if chain.refused:
            self.refused_bytes += sum(refused.bytes for refused in chain.refused)
        self.seconds += chain.seconds
        self.pages += outcome.pages
        self._take_ids(outcome.hint_id, outcome.command_id)

    def add(self, later: "ChainSum") -> None:
        """Add the chains of ``later``, which came after these."""
        self.chains += later.chains
        self.finished = later.finished
        self.ranges += later.ranges
        self.bytes += later.bytes
        self.discarded_bytes += later.discarded_bytes
        self.refused_bytes += later.refused_bytes
        self.seconds += later.seconds
        self.pages += later.pages
        self._take_ids(later.hint_id, later.command_id)

    def _take_ids(self, hint_id: int | None, command_id: int | None) -> None:
        if hint_id is not None:
            self.hint_id = hint_id
        if command_id is not None:
            self.command_id = command_id

    def fields(self) -> dict[str, Any]:
        """Return the fields of the event."""
        fields: dict[str, Any] = {
            "t": round(self.finished, 6),
            "ranges": self.ranges,
            "bytes": self.bytes,
            "discarded_bytes": self.discarded_bytes,
            "refused_bytes": self.refused_bytes,
            "seconds": round(self.seconds, 6),
        }
        if self.queue in (BalloonQueue.INFLATE, BalloonQueue.DEFLATE):
            fields["pages"] = self.pages
        elif self.queue is BalloonQueue.FREE_PAGE:
            fields |= {"command_id": self.hint_id, "command": self.command_id}
        return fields


@dataclass(slots=True)
class BuiltEvents:
    """Events of one queue in their order, each as what writes it, then the sum of the chains that have no event of
    their own. ``single`` is the name of those events about chains, None without any."""

    writes: list[Callable[[], None]] = field(default_factory=list)
    single: str | None = None
    sum: ChainSum | None = None


NOTHING_BUILT: Final = BuiltEvents()
"""No events. It is not to be changed."""


class QueueEvents:
    """Builds the events about the chains of one queue. It belongs to the queue's record.

    ``prepare`` builds an event. ``prepare_limited`` does so for one that the limits of :mod:`host.events.event_limit`
    may suppress when it is written: ``statistics`` and ``refused``, which a driver can cause to no purpose of its own.
    ``take`` writes on the event loop what was built. While ``are_written`` says no, nothing is made.
    """

    __slots__ = ("_are_written", "_built", "_limit", "_prepare", "_prepare_limited", "take")

    def __init__(
        self,
        prepare: Prepare,
        prepare_limited: Prepare,
        are_written: Callable[[], bool],
        take: Callable[[BuiltEvents], None],
    ) -> None:
        self._prepare = prepare
        self._prepare_limited = prepare_limited
        self._are_written = are_written
        self.take = take
        self._limit = EventLimit(CHAIN_EVENTS_PER_SECOND)
        self._built = BuiltEvents()

    def chain_served(self, chain: ServedChain) -> None:
        """Build the events about a chain that was served: its statistics, or what it asked for, then the refusals.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        if not self._are_written():
            return
        writes, finished = self._built.writes, round(chain.finished, 6)
        statistics = chain.outcome.statistics
        if statistics is not None:
            writes.append(self._prepare_limited("statistics", t=finished, **statistics.values))
        elif chain.queue is not None:
            self._build_or_sum(chain.queue, chain)
        for refused in chain.refused:
            write = self._prepare_limited(
                "refused",
                t=finished,
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
            )
            writes.append(write)

    def _build_or_sum(self, queue: BalloonQueue, chain: ServedChain) -> None:
        built, event = self._built, EVENT_OF[queue]
        # After a sum that has begun: the events of one name stay in order.
        if built.sum is None and self._limit.allows(event, chain.finished):
            alone = ChainSum(queue, chain.finished)
            alone.count(chain)
            built.writes.append(self._prepare(event, **alone.fields()))
            built.single = event
            return
        if built.sum is None:
            built.sum = ChainSum(queue, chain.finished)
        built.sum.count(chain)

    def pass_on(self) -> BuiltEvents:
        """Begin anew, and return what was built so far."""
        if not self._built.writes and self._built.sum is None:
            return NOTHING_BUILT
        built, self._built = self._built, BuiltEvents()
        chains = built.sum
        if chains is not None and chains.finished - chains.began >= SUM_BUILT:
            built.single, built.sum = EVENT_OF[chains.queue], None
            built.writes.append(self._prepare(built.single, chains=chains.chains, **chains.fields()))
        return built
