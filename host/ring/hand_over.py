"""Passes what a worker notes of the chains that it serves to the event loop, while it is busy with the next ones."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from host.ring.turn import ChainRecord, ServedChain, Turn

HAND_OVER_INTERVAL: Final = 0.05
"""Seconds after which a worker passes what it has noted to the event loop, in the course of a turn. While the loop
takes it in, and the events are written to a file, the guest waits for the interpreter. Once in a hundred chains would
be too often for the 99th percentile."""


class HandOver:
    """The way from one queue's worker to the event loop. ``on_turn`` is called there.

    A loop that is late has at most one hand-over of the queue to take in, and the end of a turn. So neither its pipe
    nor the memory of chains that wait for it grows with the length of a turn.

    The worker alone writes ``_passed``, the event loop alone ``_taken``. ``_record`` is the worker's.
    """

    def __init__(self, on_turn: Callable[[Turn], None], record: ChainRecord) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_turn = on_turn
        self._record = record
        self._passed = 0
        self._taken = 0

    @property
    def is_taken_in(self) -> bool:
        """Whether the event loop has taken in all that was passed to it."""
        return self._passed == self._taken

    def chain_served(self, turn: Turn, chain: ServedChain) -> None:
        """On a worker: take note of a chain, and pass on what was served so far in ``turn`` if that is due and the
        event loop has taken in the last."""
        turn.chains += 1
        self._record.chain_served(chain)
        if chain.finished - turn.handed_over <= HAND_OVER_INTERVAL or not self.is_taken_in:
            return
        turn.handed_over = chain.finished
        self._passed += 1
        self._call(self._take_in, Turn(self._record.pass_on()))

    def end(self, turn: Turn, take: Callable[[Turn], None]) -> None:
        """On a worker: pass on the rest, and have ``take`` called on the event loop with the ended turn."""
        try:
            turn.take_in = self._record.pass_on()
        finally:
            self._call(take, turn)

    def _call(self, take: Callable[[Turn], None], turn: Turn) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(take, turn)

    def _take_in(self, turn: Turn) -> None:
        self._taken += 1
        self._on_turn(turn)
