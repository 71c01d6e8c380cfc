"""Passes the chains that a worker has served to the event loop, while the worker is busy with the next ones."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from host.ring.turn import Turn

HAND_OVER_INTERVAL: Final = 0.02
"""Seconds after which a worker passes the served chains to the event loop. While the loop handles them, the two compete
for the interpreter and the guest waits, so this is not done for each chain."""


class HandOver:
    """The way from one queue's worker to the event loop. ``on_turn`` is called there.

    A loop that is late has at most one hand-over of the queue to take in, and the end of a turn. So neither its pipe
    nor the memory of chains that wait for it grows with the length of a turn.

    The worker alone writes ``_passed``, the event loop alone ``_taken``.
    """

    def __init__(self, on_turn: Callable[[Turn], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_turn = on_turn
        self._passed = 0
        self._taken = 0

    @property
    def is_taken_in(self) -> bool:
        """Whether the event loop has taken in all that was passed to it."""
        return self._passed == self._taken

    def pass_on(self, turn: Turn, now: float) -> None:
        """On a worker: pass on what was served so far in ``turn``, if that is due at ``now`` (CLOCK_MONOTONIC, seconds)
        and the event loop has taken in the last."""
        if now - turn.handed_over <= HAND_OVER_INTERVAL or not self.is_taken_in:
            return
        served, turn.served, turn.handed_over = turn.served, [], now
        self._passed += 1
        self.call(self._take_in, Turn(served))

    def call(self, take: Callable[[Turn], None], turn: Turn) -> None:
        """On a worker: have ``take`` called on the event loop with ``turn``."""
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(take, turn)

    def _take_in(self, turn: Turn) -> None:
        self._taken += 1
        self._on_turn(turn)
