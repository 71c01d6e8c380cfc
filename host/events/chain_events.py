"""The events about chains: what each asked for, what became of it, and what of it was refused.

A driver may give tens of thousands of tiny chains a second. Their events would fill a disk, and building them would
delay the other virtual machines on the event loop. So beyond a limit one event has the sums of several chains. A reader
that adds up the events gets the same totals.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from host.events.event_limit import EventLimit
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue

CHAIN_EVENTS_PER_SECOND: Final = 1000
"""Events of one name in a second after which chains are summed up."""

SUM_INTERVAL: Final = 0.02
"""Seconds of chains in one sum."""

_SUMMED: Final = ("ranges", "bytes", "discarded_bytes", "refused_bytes", "seconds", "pages")


_EVENT_OF: Final = {
    BalloonQueue.REPORTING: "report",
    BalloonQueue.INFLATE: "inflate",
    BalloonQueue.DEFLATE: "deflate",
    BalloonQueue.FREE_PAGE: "hint",
}


class ChainEvents:
    """Writes the events about one virtual machine's chains, until :meth:`close`.

    ``emit`` writes an event. ``emit_limited`` does so within the limits of :mod:`host.events.event_limit`: for
    ``statistics`` and ``refused``, which a driver can cause to no purpose of its own.
    """

    def __init__(self, emit: Callable[..., None], emit_limited: Callable[..., None]) -> None:
        self._emit = emit
        self._emit_limited = emit_limited
        self._limit = EventLimit(CHAIN_EVENTS_PER_SECOND)
        self._sums: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def chain_served(self, chain: ServedChain) -> None:
        """Write the events about a chain that was served: its statistics, or what it asked for, then the refusals.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        finished = round(chain.finished, 6)
        statistics = chain.outcome.statistics
        if statistics is not None:
            self._emit_limited("statistics", t=finished, **statistics.values)
        elif chain.queue is not None:
            self._emit_or_sum(_EVENT_OF[chain.queue], t=finished, **_fields_of(chain, chain.queue))
        for refused in chain.refused:
            self._emit_limited(
                "refused",
                t=finished,
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
            )

    def _emit_or_sum(self, event: str, **fields: object) -> None:
        # In a sum ``chains`` is the number of chains, sizes and seconds are sums, and other fields are those of the
        # last chain.
        loop = asyncio.get_running_loop()
        # After a sum that is pending: the events of one name stay in order.
        if event not in self._sums and self._limit.allows(event, loop.time()):
            self._emit(event, **fields)
            return
        total = self._sums.setdefault(event, {"chains": 0})
        total["chains"] += 1
        for name, value in fields.items():
            if name in _SUMMED:
                total[name] = total.get(name, 0) + value
            elif value is not None or name not in total:
                total[name] = value
        if self._timer is None:
            self._timer = loop.call_later(SUM_INTERVAL, self._emit_sums)

    def close(self) -> None:
        """Write the pending sums."""
        if self._timer is not None:
            self._timer.cancel()
            self._emit_sums()

    def _emit_sums(self) -> None:
        self._timer = None
        sums, self._sums = self._sums, {}
        for event, total in sums.items():
            self._emit(event, **total | {"seconds": round(total["seconds"], 6)})


def _fields_of(chain: ServedChain, queue: BalloonQueue) -> dict[str, object]:
    outcome = chain.outcome
    fields: dict[str, object] = {
        "ranges": outcome.plan.ranges,
        "bytes": outcome.plan.bytes,
        "discarded_bytes": chain.discarded_bytes,
        "refused_bytes": sum(refused.bytes for refused in chain.refused),
        "seconds": round(chain.seconds, 6),
    }
    if queue in (BalloonQueue.INFLATE, BalloonQueue.DEFLATE):
        fields["pages"] = outcome.pages
    elif queue is BalloonQueue.FREE_PAGE:
        fields |= {"command_id": outcome.hint_id, "command": outcome.command_id}
    return fields
