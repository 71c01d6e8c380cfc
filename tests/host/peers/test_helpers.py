"""A peer blocks only its own, few helpers; a call without a helper is refused in one line."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import host.peers.helpers
from host.peers.helpers import HELPERS_MAX, Helpers
from protocol.errors import VhostUserError


def helper_threads() -> int:
    return sum(thread.name == "peer helper" for thread in threading.enumerate())


@pytest.mark.asyncio
async def test_result_and_errors_come_back() -> None:
    helpers = Helpers()
    assert await helpers.run("looking", lambda: threading.current_thread().name) == "peer helper"
    with pytest.raises(ZeroDivisionError):
        await helpers.run("looking", lambda: 1 // 0)


@pytest.mark.asyncio
async def test_close_that_takes_for_ever_holds_up_its_own_peer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.peers.helpers, "HELP_TIMEOUT", 0.05)
    monkeypatch.setattr(host.peers.helpers, "CLOSE_PATIENCE", 0.05)
    before = helper_threads()
    let_go = threading.Event()
    slow, other = Helpers(), Helpers()
    for _ in range(50):
        slow.close_by(let_go.wait)  # type: ignore[arg-type]
    assert helper_threads() - before == HELPERS_MAX
    with pytest.raises(VhostUserError, match="looking takes longer than"):
        await slow.run("looking", lambda: None)
    await slow.closed()  # not for ever
    assert slow.closing == 50
    assert await other.run("looking", lambda: 7) == 7
    let_go.set()
    monkeypatch.setattr(host.peers.helpers, "CLOSE_PATIENCE", 10.0)
    await slow.closed()
    assert slow.closing == 0


@pytest.mark.asyncio
async def test_idle_helpers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.peers.helpers, "IDLE_TIME", 0.01)
    before = set(threading.enumerate())
    await Helpers().run("looking", lambda: None)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The limit of threads is reached; ``undo`` lifts it."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch


@pytest.mark.asyncio
async def test_limit_of_threads_is_one_line_and_loses_no_descriptor(no_threads: pytest.MonkeyPatch) -> None:
    helpers = Helpers()
    fd = os.eventfd(0)
    helpers.close((fd,))
    with pytest.raises(VhostUserError, match="limit of threads"):
        await helpers.run("looking", lambda: None)
    assert helpers.closing == 1
    no_threads.undo()
    await asyncio.wait_for(helpers.run("looking", lambda: None), 10)
    await helpers.closed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.asyncio
async def test_workers_stand_in_for_helpers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as executor:
        executor.submit(int).result(10)
        monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        helpers = Helpers(executor)
        assert await helpers.run("looking", lambda: threading.current_thread().name) == "worker_0"
        fd = os.eventfd(0)
        helpers.close((fd,))
        await helpers.closed()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
