"""The events about chains: what each asked for, what became of it, and what of it was refused.

A driver may give tens of thousands of tiny chains a second. Their events would fill a disk, and building them would
delay the other virtual machines on the event loop. So beyond a limit one event has the sums of several chains. A reader
that adds up the events gets the same totals.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
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
    ``statistics`` and ``refused``, which a driver can cause to no purpose of its own. While ``are_written`` says no,
    nothing is made: the worker that serves the driver waits for the interpreter meanwhile.
    """

    def __init__(
        self,
        emit: Callable[..., None],
        emit_limited: Callable[..., None],
        are_written: Callable[[], bool] = lambda: True,
    ) -> None:
        self._emit = emit
        self._emit_limited = emit_limited
        self._are_written = are_written
        self._limit = EventLimit(CHAIN_EVENTS_PER_SECOND)
        self._pending: dict[str, list[ServedChain]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def chain_served(self, chain: ServedChain) -> None:
        """Write the events about a chain that was served: its statistics, or what it asked for, then the refusals.

        However many ranges a hostile chain has refused, there is one ``refused`` event for each reason: ``gpa`` is the
        first range's address, ``bytes`` and ``ranges`` are sums.
        """
        if not self._are_written():
            return
        finished = round(chain.finished, 6)
        statistics = chain.outcome.statistics
        if statistics is not None:
            self._emit_limited("statistics", t=finished, **statistics.values)
        elif chain.queue is not None:
            self._emit_or_sum(_EVENT_OF[chain.queue], chain)
        for refused in chain.refused:
            self._emit_limited(
                "refused",
                t=finished,
                reason=refused.reason.value,
                gpa=refused.first_address,
                bytes=refused.bytes,
                ranges=refused.ranges,
            )

    def _emit_or_sum(self, event: str, chain: ServedChain) -> None:
        loop = asyncio.get_running_loop()
        # After a sum that is pending: the events of one name stay in order.
        if event not in self._pending and self._limit.allows(event, loop.time()):
            self._emit(event, **_fields_of(chain))
            return
        self._pending.setdefault(event, []).append(chain)
        if self._timer is None:
            self._timer = loop.call_later(SUM_INTERVAL, self._emit_sums)

    def close(self) -> None:
        """Write the pending sums."""
        if self._timer is not None:
            self._timer.cancel()
            self._emit_sums()

    def _emit_sums(self) -> None:
        self._timer = None
        pending, self._pending = self._pending, {}
        for event, chains in pending.items():
            self._emit(event, **_sum_of([_fields_of(chain) for chain in chains]))


def _sum_of(chains: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    # ``chains`` is the number of chains, sizes and seconds are sums, other fields those of the last chain with a value.
    total: dict[str, object] = {"chains": len(chains)}
    for name in chains[-1]:
        values = [fields[name] for fields in chains]
        if name in _SUMMED:
            total[name] = sum(values)
        else:
            total[name] = next((value for value in reversed(values) if value is not None), None)
    return total | {"seconds": round(sum(fields["seconds"] for fields in chains), 6)}


def _fields_of(chain: ServedChain) -> dict[str, Any]:
    outcome = chain.outcome
    fields: dict[str, Any] = {
        "t": round(chain.finished, 6),
        "ranges": outcome.plan.ranges,
        "bytes": outcome.plan.bytes,
        "discarded_bytes": chain.discarded_bytes,
        "refused_bytes": sum(refused.bytes for refused in chain.refused),
        "seconds": round(chain.seconds, 6),
    }
    if chain.queue in (BalloonQueue.INFLATE, BalloonQueue.DEFLATE):
        fields["pages"] = outcome.pages
    elif chain.queue is BalloonQueue.FREE_PAGE:
        fields |= {"command_id": outcome.hint_id, "command": outcome.command_id}
    return fields
