"""Workers are shared out: a peer that holds all of its own up leaves the others theirs."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from host.peers import workers as workers_module
from host.peers.workers import PROCESS_WORKERS, PROCESS_WORKERS_MAX, USER_WORKERS_MAX, PeerId, Workers
from protocol.errors import BalloonError
from scripts.check.machine.deadline import becomes_true
from tests.harness.processes import DEADLINE

ALL = 256


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(ALL) as executor:
        yield executor


def hold(workers: Workers, peer: PeerId, count: int, let_go: threading.Event) -> list[Future[bool]]:
    share = workers.share(peer)
    return [share.submit(let_go.wait, 20) for _ in range(count)]


def test_peer_that_holds_its_workers_up_leaves_the_others_theirs(pool: ThreadPoolExecutor) -> None:
    workers, let_go = Workers(pool), threading.Event()
    held = [future for pid in range(8) for future in hold(workers, PeerId(1000, pid), ALL, let_go)]
    try:
        assert workers.share(PeerId(1001, 99)).submit(lambda: 7).result(10) == 7
    finally:
        let_go.set()
    assert all(future.result(10) for future in held)  # what waited in line is done at last


def test_process_waits_for_its_own_workers_and_not_for_its_users(pool: ThreadPoolExecutor) -> None:
    assert PROCESS_WORKERS_MAX < USER_WORKERS_MAX < ALL
    workers, let_go = Workers(pool), threading.Event()
    hold(workers, PeerId(1000, 1), ALL, let_go)
    later = workers.share(PeerId(1000, 1)).submit(int)
    try:
        assert workers.share(PeerId(1000, 2)).submit(lambda: 7).result(10) == 7
        assert not later.done()
    finally:
        let_go.set()
    assert later.result(10) == 0


def test_error_of_an_action_is_in_its_future_and_frees_the_worker(pool: ThreadPoolExecutor) -> None:
    share = Workers(pool).share(PeerId(1000, 1))
    failed = [share.submit(lambda: 1 // 0) for _ in range(2 * ALL)]
    assert all(isinstance(future.exception(10), ZeroDivisionError) for future in failed)


def test_limit_of_threads_is_one_line_and_nothing_is_lost(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workers, let_go = Workers(pool), threading.Event()
    (first,) = hold(workers, PeerId(1000, 1), 1, let_go)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.WARNING):
        others = hold(workers, PeerId(1000, 2), 5, let_go)
    assert [record.getMessage() for record in caplog.records] == [
        "no further worker can be started: the limit of threads or of memory is reached"
    ]
    let_go.set()
    assert all(future.result(10) for future in (first, *others))


def test_daemon_without_a_single_worker_does_not_start() -> None:
    class NoThreads(Executor):
        def submit(self, _fn: Callable[..., Any], /, *_args: Any, **_named: Any) -> Future[Any]:
            raise RuntimeError("can't start new thread")

    with pytest.raises(BalloonError, match="no thread can be started"):
        Workers(NoThreads())


def test_workers_are_counted_from_submission_to_end(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "PATIENCE", 10 * DEADLINE)
    workers, let_go = Workers(pool), threading.Event()
    assert workers.at_work == 0
    held = hold(workers, PeerId(1000, 1), PROCESS_WORKERS + 1, let_go)
    assert workers.at_work == PROCESS_WORKERS  # the one in line is not at work
    let_go.set()
    assert all(future.result(10) for future in held)
    pool.shutdown()
    assert workers.at_work == 0


def test_process_whose_workers_are_blocked_has_more_of_them(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "PATIENCE", 0.01)
    workers, let_go = Workers(pool), threading.Event()
    held = hold(workers, PeerId(1000, 1), PROCESS_WORKERS_MAX + 1, let_go)
    try:
        assert becomes_true(lambda: workers.at_work == PROCESS_WORKERS_MAX, DEADLINE)
    finally:
        let_go.set()
    assert all(future.result(10) for future in held)


def test_process_whose_actions_end_has_few_workers(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its number of queues: each worker delays those of other processes."""
    monkeypatch.setattr(workers_module, "PATIENCE", 10 * DEADLINE)
    workers = Workers(pool)
    share = workers.share(PeerId(1000, 1))
    most = 0

    def action() -> None:
        nonlocal most
        most = max(most, workers.at_work)

    done = [share.submit(action) for _ in range(5000)]
    assert all(future.result(DEADLINE) is None for future in done)
    assert 1 <= most <= PROCESS_WORKERS


def test_process_has_few_workers_again_once_they_are_blocked_no_more(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "PATIENCE", 0.01)
    workers, let_go, turns, enough = Workers(pool), threading.Event(), threading.Semaphore(0), threading.Event()
    peer = PeerId(1000, 1)
    held = hold(workers, peer, PROCESS_WORKERS_MAX, let_go)
    assert becomes_true(lambda: workers.at_work == PROCESS_WORKERS_MAX, DEADLINE)

    def go_on() -> None:  # as a queue does that always has chains
        turns.release()
        if not enough.is_set():
            workers.submit(peer, go_on)

    for _ in range(PROCESS_WORKERS_MAX):
        workers.submit(peer, go_on)
    let_go.set()
    try:
        assert becomes_true(lambda: workers.at_work <= PROCESS_WORKERS, DEADLINE)
    finally:
        enough.set()
    assert turns.acquire(timeout=DEADLINE)
    assert all(future.result(10) for future in held)


def test_lines_of_others_cost_nothing_and_go_on_in_turns(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another user, which has thousands of actions in line, is not looked at."""
    monkeypatch.setattr(workers_module, "PATIENCE", 10 * DEADLINE)
    workers, let_go = Workers(pool), threading.Event()
    held = [future for pid in (1, 2) for future in hold(workers, PeerId(1000, pid), 3000, let_go)]
    order: list[int] = []
    late = [workers.share(PeerId(1000, pid)).submit(order.append, pid) for pid in (1, 2)]
    assert [workers.share(PeerId(1001, 9)).submit(int).result(DEADLINE) for _ in range(200)] == [0] * 200
    assert becomes_true(lambda: workers.at_work == 2 * PROCESS_WORKERS, DEADLINE)
    let_go.set()
    assert all(future.result(DEADLINE) for future in held)
    for future in late:
        future.result(DEADLINE)
    assert sorted(order) == [1, 2]


def test_user_at_its_limit_goes_on_with_any_of_its_processes(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "PATIENCE", 10 * DEADLINE)
    workers, let_go, first = Workers(pool), threading.Event(), threading.Event()
    full = USER_WORKERS_MAX // PROCESS_WORKERS
    begun = hold(workers, PeerId(1000, 0), 1, first)
    held = [future for pid in range(1, full) for future in hold(workers, PeerId(1000, pid), PROCESS_WORKERS, let_go)]
    held += hold(workers, PeerId(1000, full), PROCESS_WORKERS - 1, let_go)
    assert workers.at_work == USER_WORKERS_MAX
    waiting = workers.share(PeerId(1000, full + 1)).submit(lambda: 7)
    assert not waiting.done()
    first.set()
    assert waiting.result(DEADLINE) == 7
    let_go.set()
    assert all(future.result(DEADLINE) for future in (*begun, *held))
