"""host/events/session_events.py: a user that connects and closes in a loop fills no disk."""

import asyncio
from functools import partial
from typing import Any

import pytest

import host.events.session_events
from host.events.session_events import SESSIONS_BURST, SessionEvents, SessionLimit
from tests.harness.processes import DEADLINE

USER, OTHER = 1000, 1001


class Log:
    """Notes events, and sessions that became audible."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.audible = 0

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def count(self, event: str) -> int:
        return sum(name == event for name, _ in self.events)

    def became_audible(self) -> None:
        self.audible += 1


def one_session(log: Log, limit: SessionLimit, uid: int = USER) -> SessionEvents:
    session = SessionEvents(partial(partial, log.emit), limit, log.became_audible)
    session.begin(uid, 7)
    session.emit("features", negotiated=1)
    return session


def test_budget_is_a_burst_and_then_a_rate() -> None:
    limit = SessionLimit(Log().emit)
    assert sum(limit.allows(USER, 100.0) for _ in range(2 * SESSIONS_BURST)) == SESSIONS_BURST
    assert limit.allows(OTHER, 100.0)
    assert sum(limit.allows(USER, 101.0) for _ in range(100)) == 10
    assert sum(limit.allows(USER, 1e6) for _ in range(2 * SESSIONS_BURST)) == SESSIONS_BURST


@pytest.mark.asyncio
async def test_session_within_the_budget_has_all_its_events() -> None:
    log = Log()
    session = one_session(log, SessionLimit(log.emit))
    assert session.audible
    session.end(reason="front-end gone")
    assert [event for event, _ in log.events] == ["connected", "features", "disconnected"]
    assert log.events[0][1]["pid"] == 7
    assert log.audible == 1


@pytest.mark.asyncio
async def test_brief_sessions_beyond_the_budget_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.events.session_events, "SESSIONS_BURST", 3)
    monkeypatch.setattr(host.events.session_events, "SESSIONS_PER_SECOND", 0.0)
    log = Log()
    limit = SessionLimit(log.emit)
    for _ in range(10):
        one_session(log, limit).end(reason="front-end gone")
    one_session(log, limit, OTHER).end(reason="front-end gone")
    assert (log.count("connected"), log.count("disconnected"), log.audible) == (4, 4, 4)
    limit.flush()
    assert log.events[-1] == ("suppressed", {"of": "session", "uid": USER, "count": 7})
    limit.flush()
    assert log.count("suppressed") == 1


@pytest.mark.asyncio
async def test_session_beyond_the_budget_that_stays_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.events.session_events, "SESSIONS_BURST", 0)
    monkeypatch.setattr(host.events.session_events, "SETTLED_AFTER", 0.001)
    monkeypatch.setattr(host.events.session_events, "LONGEST_SILENCE", 0.002)
    log = Log()
    told = asyncio.Event()
    session = SessionEvents(partial(partial, log.emit), SessionLimit(log.emit), told.set)
    session.begin(USER, 7)
    session.emit("features")
    before = asyncio.get_running_loop().time()
    assert log.events == []
    await asyncio.wait_for(told.wait(), DEADLINE)
    await asyncio.sleep(0)
    session.emit("report")
    session.end(reason="front-end gone")
    assert [event for event, _ in log.events] == ["connected", "suppressed", "report", "disconnected"]
    assert log.events[0][1]["t"] <= before + 0.001
    assert log.events[1][1] == {"of": "event", "count": 1}


@pytest.mark.asyncio
async def test_disconnected_is_the_last_event() -> None:
    """A worker that was blocked finishes its chain later: the sums that were written lack it."""
    log = Log()
    session = one_session(log, SessionLimit(log.emit))
    late = session.prepare("report", bytes=4096)
    session.end(reason="gone", reports=1)
    late()
    session.emit("refused", reason="empty")
    assert [event for event, _ in log.events] == ["connected", "features", "disconnected"]
