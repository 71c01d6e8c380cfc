"""Threads for calls that a peer can block for any time.

Such a call blocks one helper. A process has at most :data:`host.peers.helper_line.HELPERS_MAX` calls under way, for any
number of descriptors, and the processes of one user share that user's threads. So a peer delays itself, and many
processes of one user delay each other, but no other user.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, TypeVar

from host.peers.helper_line import Call
from host.peers.helper_threads import HelperThreads
from protocol.errors import VhostUserError

log = logging.getLogger(__name__)

HELP_TIMEOUT: Final = 2.0
"""Seconds that a message waits for a helper before it is refused."""

CLOSE_PATIENCE: Final = 0.5
"""Seconds for which the end of a session, or an acknowledgement, waits for descriptors to be closed."""

Result = TypeVar("Result")


class Helpers:
    """The helpers of one process. All methods may be called from any thread."""

    def __init__(
        self, stand_in: Executor | None = None, *, threads: HelperThreads | None = None, process: int = 0
    ) -> None:
        """Use ``threads``, those of the process's user, for the calls of ``process``. ``stand_in`` does the work of a
        helper that cannot be started: the peer's own share of the workers."""
        self._stand_in = stand_in
        self._threads = HelperThreads() if threads is None else threads
        self._process = process
        self._lock = threading.Lock()
        self._closing = 0
        self._looked_at: Counter[int] = Counter()
        self._to_close: set[int] = set()

    def close(self, fds: Iterable[int]) -> None:
        """Close ``fds`` on a helper, later, and after every :meth:`look` at them. The caller no longer owns them."""
        for fd in fds:
            with self._lock:
                if self._looked_at[fd]:
                    self._to_close.add(fd)
                    self._count_closing(1)
                    continue
            self.close_by(lambda fd=fd: os.close(fd))  # type: ignore[misc]

    def close_by(self, close: Callable[[], None]) -> None:
        """Have one descriptor closed by ``close`` on a helper, later."""
        with self._lock:
            self._count_closing(1)
        with contextlib.suppress(VhostUserError):  # without a thread it stays in line for the next one
            self._add(lambda: self._close_and_count(close))

    def _close_and_count(self, close: Callable[[], None]) -> None:
        try:
            close()
        except OSError as error:
            log.info("closing a received descriptor: %s", error.strerror)  # written back late, for example
        finally:
            with self._lock:
                self._count_closing(-1)

    def _count_closing(self, change: int) -> None:
        # With the lock held.
        self._closing += change
        self._threads.count_closing(change)

    async def run(self, what: str, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns on a helper. It may go on after the time limit.

        Raises:
            VhostUserError: ``what`` takes longer than :data:`HELP_TIMEOUT`, or no thread can be started for it.
        """
        try:
            async with asyncio.timeout(HELP_TIMEOUT):
                return await self._begin(action)
        except TimeoutError:
            raise VhostUserError(f"{what} takes longer than {HELP_TIMEOUT:.0f} s") from None

    def look(self, fds: Iterable[int], action: Callable[[list[int]], Result]) -> "asyncio.Future[Result]":
        """Return what ``action`` returns for ``fds`` on a helper. :meth:`close` leaves them open until then.

        Raises:
            VhostUserError: no thread can be started for it.
        """
        looked_at = list(fds)
        with self._lock:
            self._looked_at.update(looked_at)

        return self._begin(lambda: action(looked_at), lambda: self._give_back(looked_at))

    def _give_back(self, fds: list[int]) -> None:
        with self._lock:
            self._looked_at.subtract(fds)
            self._looked_at = +self._looked_at
            unused = {fd for fd in fds if fd in self._to_close and not self._looked_at[fd]}
            self._to_close -= unused
        for fd in unused:
            self._close_and_count(lambda fd=fd: os.close(fd))  # type: ignore[misc]

    @property
    def closing(self) -> int:
        """Descriptors that are not closed yet."""
        return self._closing

    async def closed(self) -> None:
        """Return when everything is closed, or when that has taken :data:`CLOSE_PATIENCE`."""
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + CLOSE_PATIENCE, 0.0
        while self._closing and loop.time() < end:
            await asyncio.sleep(pause)
            pause = min(pause + 0.001, 0.02)

    def _begin(
        self, action: Callable[[], Result], at_end: Callable[[], None] = lambda: None
    ) -> "asyncio.Future[Result]":
        # ``at_end`` is called even if the future is cancelled before ``action`` begins.
        done: Future[Result] = Future()

        def act() -> None:
            try:
                if done.set_running_or_notify_cancel():
                    done.set_result(action())
            except BaseException as error:
                done.set_exception(error)
            finally:
                at_end()

        self._add(act)
        return asyncio.wrap_future(done)

    def _add(self, action: Callable[[], None]) -> None:
        self._threads.add(Call(self._process, action), self._stand_in)
