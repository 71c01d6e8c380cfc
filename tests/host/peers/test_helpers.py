"""A peer blocks only its own, few helpers; a call without a helper is refused in one line."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import host.peers.helper_threads
import host.peers.helpers
from host.peers.helper_line import HELPERS_MAX
from host.peers.helper_threads import HelperThreads
from host.peers.helpers import Helpers
from protocol.errors import VhostUserError


def helper_threads() -> set[threading.Thread]:
    """Those that are alive; some of them may be idle ones of an earlier test, about to end."""
    return {thread for thread in threading.enumerate() if thread.name == "peer helper"}


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
    assert len(helper_threads() - before) == HELPERS_MAX
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
async def test_processes_of_a_user_have_few_threads_together_and_another_user_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 6
    monkeypatch.setattr(host.peers.helper_threads, "USER_HELPERS_MAX", most)
    before = helper_threads()
    let_go = threading.Event()
    threads = HelperThreads()
    greedy = [Helpers(threads=threads, process=process) for process in range(1, 4)]
    for helpers in greedy:
        for _ in range(HELPERS_MAX):
            helpers.close_by(let_go.wait)  # type: ignore[arg-type]
    assert len(helper_threads() - before) == most
    assert await Helpers(threads=HelperThreads(), process=9).run("looking", lambda: 7) == 7
    late = asyncio.ensure_future(Helpers(threads=threads, process=4).run("looking", lambda: 8))
    let_go.set()
    assert await late == 8
    monkeypatch.setattr(host.peers.helpers, "CLOSE_PATIENCE", 10.0)
    for helpers in greedy:
        await helpers.closed()
        assert helpers.closing == 0


@pytest.mark.asyncio
async def test_file_that_is_looked_at_stays_open_until_the_last_look_has_returned() -> None:
    helpers = Helpers()
    fds = [os.eventfd(0), os.eventfd(0)]
    gates = [threading.Event(), threading.Event()]
    looks = [helpers.look(fds, lambda fds, gate=gate: gate.wait() and fds) for gate in gates]  # type: ignore[misc]
    helpers.close(fds[:1])
    assert helpers.closing == 1
    gates[0].set()
    assert await looks[0] == fds
    assert os.fstat(fds[0])
    gates[1].set()
    assert await looks[1] == fds
    await helpers.closed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[0])
    assert os.fstat(fds[1])  # not closed by its owner
    os.close(fds[1])


@pytest.mark.asyncio
async def test_look_that_is_given_up_before_it_begins_gives_its_files_back() -> None:
    helpers = Helpers()
    let_go = threading.Event()
    fd = os.eventfd(0)
    for _ in range(HELPERS_MAX):
        helpers.close_by(let_go.wait)  # type: ignore[arg-type]
    look = helpers.look([fd], lambda _: pytest.fail("not given up"))
    helpers.close([fd])
    look.cancel()
    await asyncio.wait([look])
    let_go.set()
    await helpers.closed()
    assert helpers.closing == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.asyncio
async def test_idle_helpers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.peers.helper_threads, "IDLE_TIME", 0.01)
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
async def test_blocked_stand_ins_do_not_lose_what_comes_after(no_threads: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(HELPERS_MAX + 1) as executor:
        no_threads.undo()
        let_go = threading.Event()
        for _ in range(HELPERS_MAX + 1):  # its threads exist from now on
            executor.submit(let_go.wait)
        let_go.set()
        no_threads.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        closed = threading.Event()
        helpers = Helpers(executor)
        for _ in range(HELPERS_MAX):
            helpers.close_by(closed.wait)  # type: ignore[arg-type]
        look = asyncio.ensure_future(helpers.run("looking", lambda: 7))
        await asyncio.sleep(0)
        closed.set()
        assert await look == 7
        await helpers.closed()
        assert helpers.closing == 0


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
