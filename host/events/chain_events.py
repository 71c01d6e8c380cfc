"""The events about chains: what each asked for, what became of it, and what of it was refused.

A driver may give tens of thousands of tiny chains a second. Their events would fill a disk, and writing them would
delay the other virtual machines on the event loop. So beyond a limit one event has the sums of several chains. A reader
that adds up the events gets the same totals.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from host.events.queue_events import EVENT_OF, BuiltEvents, ChainSum, Prepare, QueueEvents

SUM_INTERVAL: Final = 0.02
"""Seconds of chains in one sum."""


class ChainEvents:
    """Writes the events about one virtual machine's chains, until :meth:`close`. They are built queue by queue.

    ``prepare`` builds an event. ``emit_limited`` writes one within the limits of :mod:`host.events.event_limit`. While
    ``are_written`` says no, nothing is made.
    """

    def __init__(
        self,
        prepare: Prepare,
        emit_limited: Callable[..., None],
        are_written: Callable[[], bool] = lambda: True,
    ) -> None:
        self._prepare = prepare
        self._emit_limited = emit_limited
        self._are_written = are_written
        self._pending: dict[str, ChainSum] = {}
        self._timer: asyncio.TimerHandle | None = None

    def queue(self) -> QueueEvents:
        """Return the builder of the events of one more queue."""
        return QueueEvents(self._prepare, partial(partial, self._emit_limited), self._are_written, self._take)

    def _take(self, built: BuiltEvents) -> None:
        if built.single is not None:
            self._emit_sum(built.single)  # if one waits: the events of one name stay in order
        for write in built.writes:
            write()
        if built.sum is None:
            return
        event = EVENT_OF[built.sum.queue]
        if event in self._pending:
            self._pending[event].add(built.sum)
        else:
            self._pending[event] = built.sum
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SUM_INTERVAL, self._emit_sums)

    def close(self) -> None:
        """Write the pending sums."""
        if self._timer is not None:
            self._timer.cancel()
        self._emit_sums()

    def _emit_sums(self) -> None:
        self._timer = None
        for event in list(self._pending):
            self._emit_sum(event)

    def _emit_sum(self, event: str) -> None:
        if (chains := self._pending.pop(event, None)) is not None:
            self._prepare(event, chains=chains.chains, **chains.fields())()
