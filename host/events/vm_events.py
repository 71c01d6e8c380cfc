"""All events of one virtual machine, within their limits."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from host.events.chain_events import ChainEvents
from host.events.event_limit import EventLimit
from host.events.metrics import VmMetrics
from host.events.queue_events import Prepare
from host.events.queue_record import QueueRecord
from host.ring.turn import ServedChain

Emit = Callable[..., None]
"""Writes one event: ``emit(name, **fields)``; the virtual machine's number is added by the daemon."""


class HasEmit(Protocol):
    """What writes events by itself."""

    emit: Emit


def _drop(_event: str, **_fields: object) -> None:
    pass


class VmEvents:
    """Writes the events of one virtual machine, until :meth:`close`. On the event loop.

    ``may_emit`` says whether the machine's user may cause one more event at a time in seconds, and counts it then.
    ``are_written`` says whether events are, at present. ``prepare`` builds one on any thread; without it ``emit``
    builds all of them.
    """

    def __init__(
        self,
        emit: Emit,
        may_emit: Callable[[float], bool],
        are_written: Callable[[], bool],
        prepare: Prepare | None = None,
    ) -> None:
        self.emit = emit
        self._may_emit = may_emit
        self._loop = asyncio.get_running_loop()
        self._limit = EventLimit()
        self._chains = ChainEvents(prepare or partial(partial, emit), self.emit_limited, are_written)

    def emit_limited(self, event: str, **fields: object) -> None:
        """Write an event that a front-end can cause as often as it likes, or count it."""
        now = self._loop.time()
        if not self._limit.allows(event, now):
            return
        if not self._may_emit(now):
            self._limit.suppress(event)
            return
        self._emit_suppressed(event)
        self.emit(event, **fields)

    @contextlib.contextmanager
    def hushed(self, session: "HasEmit") -> Iterator[None]:
        """Write no event within the block, nor have ``session`` write one: it only repeats what was told before."""
        emit, self.emit = self.emit, _drop
        session.emit, earlier = _drop, session.emit
        try:
            yield
        finally:
            self.emit, session.emit = emit, earlier

    def _emit_suppressed(self, event: str) -> None:
        if count := self._limit.take_suppressed(event):
            self.emit("suppressed", of=event, count=count)

    def record(self, metrics: VmMetrics, on_chain: Callable[[ServedChain], None]) -> QueueRecord:
        """Return the record of one more queue, see :class:`QueueRecord`."""
        return QueueRecord(self._chains.queue(), metrics, on_chain)

    def close(self) -> None:
        """Write the sums and the counts that are pending."""
        self._chains.close()
        for event in self._limit.suppressed:
            self._emit_suppressed(event)
