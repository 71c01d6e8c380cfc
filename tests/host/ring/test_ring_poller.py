"""The looks at a polled ring: soon after chains, ever more seldom without."""

import asyncio
from collections.abc import Callable

import pytest

from host.ring.ring_poller import POLL_INTERVAL, POLL_INTERVAL_MAX, RingPoller


class Timer:
    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self.seconds = seconds
        self.action = action
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """Keeps its timers."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, action))
        return self.timers[-1]

    def pass_time(self) -> float:
        """Let the one timer expire; return its seconds."""
        (timer,) = (timer for timer in self.timers if not timer.is_cancelled)
        self.timers.clear()
        timer.action()
        return timer.seconds


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def test_empty_ring_is_looked_at_ever_more_seldom(loop: Loop) -> None:
    looks: list[None] = []
    poller = RingPoller(lambda: looks.append(None))
    poller.start()
    waits = []
    for _ in range(12):
        poller.found(chains=False)
        waits.append(loop.pass_time())
    assert len(looks) == 13
    assert waits[:3] == [POLL_INTERVAL, 2 * POLL_INTERVAL, 4 * POLL_INTERVAL]
    assert waits[-1] == POLL_INTERVAL_MAX


def test_ring_with_chains_is_looked_at_soon_again(loop: Loop) -> None:
    poller = RingPoller(lambda: None)
    poller.start()
    for _ in range(12):
        poller.found(chains=False)
        loop.pass_time()
    poller.found(chains=True)
    assert loop.pass_time() == POLL_INTERVAL
    poller.found(chains=True)
    assert loop.pass_time() == POLL_INTERVAL


def test_after_its_stop_there_is_no_look(loop: Loop) -> None:
    poller = RingPoller(lambda: None)
    poller.found(chains=True)  # not started: kicked by a descriptor
    poller.stop()
    poller.start()
    poller.stop()
    poller.found(chains=True)
    assert all(timer.is_cancelled for timer in loop.timers)
