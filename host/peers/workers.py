"""Shares of the workers that all virtual machines use.

A worker is a thread that serves a queue, and a front-end can block it, for example by a lock of its memory's file. So
a process and a user have a limited number at a time; work beyond that is queued, and delays only themselves.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple, ParamSpec, TypeVar

from protocol.errors import BalloonError

log = logging.getLogger(__name__)

PROCESS_WORKERS_MAX: Final = 64
"""Most workers of one process, a quarter of all."""

USER_WORKERS_MAX: Final = 192
"""Most workers of all processes of one user. The rest is for the other users."""

P = ParamSpec("P")
T = TypeVar("T")


class PeerId(NamedTuple):
    """The process at the other end of a session, as the kernel recorded it at connect (SO_PEERCRED)."""

    uid: int
    pid: int


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
        self._waiting: deque[tuple[PeerId, Callable[[], None]]] = deque()
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
                self._waiting.append((peer, action))
                return
            self._count(peer, 1)
        self._start(peer, action)

    def _may_have(self, peer: PeerId) -> bool:
        return self._of_process[peer] < PROCESS_WORKERS_MAX and self._of_user[peer.uid] < USER_WORKERS_MAX

    def _count(self, peer: PeerId, change: int) -> None:
        self._at_work += change
        self._of_process[peer] += change
        self._of_user[peer.uid] += change
        if not self._of_process[peer]:
            del self._of_process[peer]

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
                self._count(peer, -1)
                following = next((entry for entry in self._waiting if self._may_have(entry[0])), None)
                if following is not None:
                    self._waiting.remove(following)
                    self._count(following[0], 1)
            if following is not None:
                self._start(*following)


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
