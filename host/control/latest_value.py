"""A value that changes more often than anybody wants to hear of it."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LatestValue(Generic[Value]):
    """Passes on a value that changes often: the first at once, then at most one in ``interval`` seconds, the last one
    always."""

    def __init__(self, interval: float, send: Callable[[Value], None]) -> None:
        self._interval = interval
        self._send = send
        self._waiting: list[Value] = []  # one, or none
        self._timer: asyncio.TimerHandle | None = None

    def change(self, value: Value) -> None:
        """The value is ``value`` now."""
        self._waiting = [value]
        if self._timer is None:
            self._pass_on()

    def flush(self) -> None:
        """Pass on now what waits for its time."""
        waiting, self._waiting = self._waiting, []
        for value in waiting:
            self._send(value)

    def close(self) -> None:
        """Pass on nothing any more."""
        self._waiting = []
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._on_time)
        self.flush()

    def _on_time(self) -> None:
        self._timer = None
        if self._waiting:
            self._pass_on()
