"""Limits how often a changing value is reported."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LatestValue(Generic[Value]):
    """Reports a value that changes often by calling ``send``: the first value at once, then at most one in ``interval``
    seconds, and always the last one."""

    def __init__(self, interval: float, send: Callable[[Value], None]) -> None:
        self._interval = interval
        self._send = send
        self._waiting: list[Value] = []  # one value, or empty
        self._timer: asyncio.TimerHandle | None = None

    def change(self, value: Value) -> None:
        """Take the new value."""
        self._waiting = [value]
        if self._timer is None:
            self._report()

    def flush(self) -> None:
        """Report now the value that is waiting for its time, if one is."""
        waiting, self._waiting = self._waiting, []
        for value in waiting:
            self._send(value)

    def close(self) -> None:
        """Report no further value."""
        self._waiting = []
        if self._timer is not None:
            self._timer.cancel()

    def _report(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._on_timer)
        self.flush()

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiting:
            self._report()
