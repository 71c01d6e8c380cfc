"""Passes what a worker notes of the chains that it serves to the event loop, while it is busy with the next ones."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

from host.ring.turn import ChainRecord, ServedChain, Turn

HAND_OVER_INTERVAL: Final = 0.05
"""Seconds after which a worker passes what it has noted to the event loop, in the course of a turn. While the loop
takes it in, and the events are written to a file, the guest waits for the interpreter. Once in a hundred chains would
be too often for the 99th percentile."""


class HandOver:
    """The way from one queue's worker to the event loop, for what is noted in ``record``.

    A loop that is late has at most one hand-over of the queue to take in, and the end of a turn. So neither its pipe
    nor the memory of chains that wait for it grows with the length of a turn.

    ``is_alone`` says, on a worker, whether no other queue of the daemon has one. Then the worker goes on after its turn
    as long as the event loop keeps up.

    The worker alone writes ``_passed``, the event loop alone ``_taken``.
    """

    def __init__(self, record: ChainRecord, is_alone: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._record = record
        self._is_alone = is_alone
        self._passed = 0
        self._taken = 0

    @property
    def lets_worker_go_on(self) -> bool:
        """Whether the event loop has taken in all that was passed to it, and no other queue wants the interpreter."""
        return self._passed == self._taken and self._is_alone()

    def chain_served(self, turn: Turn, chain: ServedChain) -> None:
        """On a worker: take note of a chain, and pass on what was noted so far in ``turn`` if that is due and the event
        loop has taken in the last."""
        turn.chains += 1
        turn.has_served = True
        self._record.chain_served(chain)
        if chain.finished - turn.handed_over > HAND_OVER_INTERVAL and self._passed == self._taken:
            turn.handed_over = chain.finished
            self._passed += 1
            self._call(partial(self._take_in, self._record.pass_on()))

    def _take_in(self, take_in: Callable[[], None]) -> None:
        self._taken += 1
        take_in()

    def end(self, turn_done: Callable[[], None]) -> None:
        """On a worker: have ``turn_done`` called on the event loop."""
        self._call(turn_done)

    def _call(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(action)

    def take_rest(self) -> None:
        """On the event loop, while no worker has the ring: take in what the worker has left."""
        self._record.take_rest()
