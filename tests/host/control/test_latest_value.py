"""A value that changes often: the first and the last are told, and few between."""

import asyncio
from typing import Any

import pytest

from host.control.latest_value import LatestValue


@pytest.mark.asyncio
async def test_changing_value_is_reported_once_in_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Any] = []

    class Timer:
        def cancel(self) -> None:
            timers.clear()

    def call_later(delay: float, callback: Any) -> Timer:
        assert delay == 1.0
        timers.append(callback)
        return Timer()

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    told: list[int] = []
    value = LatestValue(1.0, told.append)
    value.change(1)
    value.change(2)
    value.change(3)
    assert told == [1]
    timers.pop()()
    assert told == [1, 3]
    timers.pop()()  # nothing new for a whole interval
    assert (told, timers) == ([1, 3], [])
    value.change(4)
    value.change(5)
    value.flush()
    value.flush()
    assert (told, len(timers)) == ([1, 3, 4, 5], 1)
    value.change(6)
    value.close()
    value.flush()
    assert (told, timers) == ([1, 3, 4, 5], [])
