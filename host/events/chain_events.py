"""The events about chains: one for each chain, and sums of several where a driver gives thousands a second.

A driver may give tens of thousands of tiny chains a second. Their events would fill a disk, and building them would
delay the other virtual machines on the event loop. A reader that adds up the events gets the same totals.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from host.events.event_limit import EventLimit

CHAIN_EVENTS_PER_SECOND: Final = 1000
"""Events of one name in a second after which chains are summed up."""

SUM_INTERVAL: Final = 0.02
"""Seconds of chains in one sum."""

_SUMMED: Final = ("ranges", "bytes", "discarded_bytes", "refused_bytes", "seconds", "pages")


class ChainEvents:
    """Writes the events about one virtual machine's chains, until :meth:`close`."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        self._limit = EventLimit(CHAIN_EVENTS_PER_SECOND)
        self._sums: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, event: str, **fields: object) -> None:
        """Write ``event``, or add it to a later one, in which ``chains`` is the number of chains, sizes and seconds are
        sums, and other fields are those of the last chain."""
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
            self._timer = loop.call_later(SUM_INTERVAL, self._tell_sums)

    def close(self) -> None:
        """Write the pending sums."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell_sums()

    def _tell_sums(self) -> None:
        self._timer = None
        sums, self._sums = self._sums, {}
        for event, total in sums.items():
            self._emit(event, **total | {"seconds": round(total["seconds"], 6)})
