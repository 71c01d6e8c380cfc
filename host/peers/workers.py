"""Shares of the workers that all virtual machines use.

A worker is a thread that serves a queue, and a front-end can block it, for example by a lock of its memory's file. So
a process and a user have a limited number at a time; work beyond that is queued, and delays only themselves.

Workers that are not blocked share one interpreter, and each of them delays those of other processes. So a process has
few at first, whatever the number of its queues, and more once all of these seem to be blocked.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple, ParamSpec, TypeVar

from protocol.errors import BalloonError

log = logging.getLogger(__name__)

PROCESS_WORKERS: Final = 4
"""Workers of one process, unless they are blocked."""

PATIENCE: Final = 0.25
"""Seconds without an action's end after which the workers of a process count as blocked, and it may have twice as many:
much longer than a turn of a queue takes, also beside the worst driver."""

PROCESS_WORKERS_MAX: Final = 64
"""Most workers of one process with blocked ones, a quarter of all."""

USER_WORKERS_MAX: Final = 192
"""Most workers of all processes of one user. The rest is for the other users."""

P = ParamSpec("P")
T = TypeVar("T")


class PeerId(NamedTuple):
    """The process at the other end of a session, as the kernel recorded it at connect (SO_PEERCRED)."""

    uid: int
    pid: int


Entry = tuple[PeerId, Callable[[], None]]
"""An action, and the peer whose it is."""


class Workers:
    """Shares out the threads of ``executor``. All methods may be called from any thread."""

    def __init__(self, executor: Executor) -> None:
        """Take ``executor`` and start one of its threads, so that one exists if a limit is reached later.

        Raises:
            BalloonError: this thread cannot be started.
        """
        self._executor = executor
        self._lock = threading.Lock()
        self._of_process: Counter[PeerId] = Counter()
        self._of_user: Counter[int] = Counter()
        self._at_work = 0
        self._waiting: dict[int, dict[PeerId, deque[Callable[[], None]]]] = {}
        self._most: dict[PeerId, int] = {}
        self._at_an_end: set[PeerId] = set()
        self._is_watched = False
        self._short = False
        try:
            executor.submit(int)
        except (RuntimeError, MemoryError):
            raise BalloonError("no thread can be started: the limit of threads or of memory is reached") from None

    @property
    def at_work(self) -> int:
        """How many workers have an action, or are about to begin one. Actions that wait in line do not count."""
        return self._at_work

    def close(self) -> None:
        """Have no shortage told from now on: the executor is about to be shut down."""
        self._short = True

    def share(self, peer: PeerId) -> Executor:
        """Return an executor with the workers that ``peer`` may have."""
        return _Share(self, peer)

    def submit(self, peer: PeerId, action: Callable[[], None]) -> None:
        """Have a worker do ``action``, as soon as ``peer`` may have one more."""
        with self._lock:
            if not self._may_have(peer):
                self._waiting.setdefault(peer.uid, {}).setdefault(peer, deque()).append(action)
                self._watch_soon()
                return
            self._count(peer, 1)
        self._start(peer, action)

    def _may_have(self, peer: PeerId) -> bool:
        most = self._most.get(peer, PROCESS_WORKERS)
        return self._of_process[peer] < most and self._of_user[peer.uid] < USER_WORKERS_MAX

    def _watch_soon(self) -> None:
        # With the lock held.
        if self._is_watched or self._short:
            return
        try:
            threading.Thread(target=self._watch, daemon=True, name="blocked workers").start()
        except (RuntimeError, MemoryError):
            return  # at the limit of threads there would be no further worker either
        self._is_watched = True

    def _watch(self) -> None:
        while True:
            time.sleep(PATIENCE)
            with self._lock:
                if not self._waiting or self._short:
                    self._is_watched = False
                    return
                self._look()
                ready = self._take_ready(list(self._waiting))
            for entry in ready:
                self._start(*entry)

    def _look(self) -> None:
        # With the lock held.
        for peer in (peer for peers in self._waiting.values() for peer in peers):
            most = self._most.get(peer, PROCESS_WORKERS)
            if peer in self._at_an_end:
                self._most[peer] = max(most // 2, PROCESS_WORKERS)
            elif self._of_process[peer] >= most:
                self._most[peer] = min(2 * most, PROCESS_WORKERS_MAX)
        self._at_an_end.clear()

    def _take_ready(self, uids: Iterable[int]) -> list[Entry]:
        # With the lock held: what may begin now of the processes of these users, in turns. It is counted as begun. The
        # lines of others, and what waits in a line, cost nothing.
        ready: list[Entry] = []
        for uid in uids:
            peers = self._waiting.get(uid, {})
            for peer in list(peers):
                ready += self._take_of(peer)
                if self._of_user[uid] >= USER_WORKERS_MAX:
                    break
        return ready

    def _take_of(self, peer: PeerId) -> list[Entry]:
        # With the lock held.
        peers = self._waiting.get(peer.uid, {})
        line = peers.get(peer)
        ready: list[Entry] = []
        while line and self._may_have(peer):
            self._count(peer, 1)
            ready.append((peer, line.popleft()))
        if ready:
            del peers[peer]
            if line:
                peers[peer] = line  # after the user's other processes
            elif not peers:
                del self._waiting[peer.uid]
        return ready

    def _count(self, peer: PeerId, change: int) -> None:
        self._at_work += change
        self._of_process[peer] += change
        self._of_user[peer.uid] += change
        if not self._of_process[peer]:
            del self._of_process[peer]
            self._most.pop(peer, None)

    def _start(self, peer: PeerId, action: Callable[[], None]) -> None:
        try:
            self._executor.submit(self._work, peer, action)
        except (RuntimeError, MemoryError):
            # The action stays queued for the threads that exist.
            if not self._short:  # said once: threads may come and go at the limit all the time
                log.warning("no further worker can be started: the limit of threads or of memory is reached")
            self._short = True

    def _work(self, peer: PeerId, action: Callable[[], None]) -> None:
        try:
            action()
        finally:
            with self._lock:
                was_full = self._of_user[peer.uid] >= USER_WORKERS_MAX
                self._count(peer, -1)
                if self._is_watched:
                    self._at_an_end.add(peer)
                # Below the user's limit only a process that is at its own waits.
                following = self._take_ready([peer.uid]) if was_full else self._take_of(peer)
            for entry in following:
                self._start(*entry)


class _Share(Executor):
    def __init__(self, workers: Workers, peer: PeerId) -> None:
        self._workers = workers
        self._peer = peer

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def act() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._workers.submit(self._peer, act)
        return future
