"""Threads of one peer, for calls that the peer can block for any time.

Such a call blocks one helper, and only its own peer waits for that helper. A peer has at most :data:`HELPERS_MAX` of
them, for any number of descriptors. A helper that is idle for a while ends.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, TypeVar

from protocol.errors import VhostUserError

log = logging.getLogger(__name__)

HELPERS_MAX: Final = 4
"""Most threads of one peer."""

HELP_TIMEOUT: Final = 2.0
"""Seconds that a message waits for a helper before it is refused."""

CLOSE_PATIENCE: Final = 0.5
"""Seconds for which the end of a session, or an acknowledgement, waits for descriptors to be closed."""

IDLE_TIME: Final = 1.0
"""Seconds after which a thread without work ends."""

Result = TypeVar("Result")


class Helpers:
    """The helpers of one peer. All methods may be called from any thread."""

    def __init__(self, stand_in: Executor | None = None) -> None:
        """``stand_in`` does the work of a helper that cannot be started: the peer's own share of the workers."""
        self._stand_in = stand_in
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._closing = 0

    def close(self, fds: Iterable[int]) -> None:
        """Close ``fds`` on a helper, later. The caller no longer owns them."""
        for fd in fds:
            self.close_by(lambda fd=fd: os.close(fd))  # type: ignore[misc]

    def close_by(self, close: Callable[[], None]) -> None:
        """Have one descriptor closed by ``close`` on a helper, later."""

        def close_and_count() -> None:
            try:
                close()
            except OSError as error:
                log.info("closing a received descriptor: %s", error.strerror)  # written back late, for example
            finally:
                with self._changed:
                    self._closing -= 1
                    self._changed.notify_all()

        with self._changed:
            self._closing += 1
        with contextlib.suppress(VhostUserError):  # without a thread it stays in line for the next one
            self._add(close_and_count)

    async def run(self, what: str, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns on a helper. It may go on after the time limit.

        Raises:
            VhostUserError: ``what`` takes longer than :data:`HELP_TIMEOUT`, or no thread can be started for it.
        """
        done: Future[Result] = Future()

        def act() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)

        self._add(act)
        try:
            async with asyncio.timeout(HELP_TIMEOUT):
                return await asyncio.wrap_future(done)
        except TimeoutError:
            raise VhostUserError(f"{what} takes longer than {HELP_TIMEOUT:.0f} s") from None

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

    def _add(self, action: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(action)
            if self._idle >= len(self._waiting):
                self._changed.notify()
                return
            if self._threads == HELPERS_MAX:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, daemon=True, name="peer helper").start()
        except (RuntimeError, MemoryError):
            with self._changed:
                self._threads -= 1
                if self._threads:
                    return
            if self._stand_in is not None:
                self._stand_in.submit(self._do_one)
                return
            raise VhostUserError("no thread can be started: the limit of threads or of memory is reached") from None

    def _do_one(self) -> None:
        with self._changed:
            action = self._waiting.popleft() if self._waiting else None
        if action is not None:
            action()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting, IDLE_TIME)
                self._idle -= 1
                if not self._waiting:
                    self._threads -= 1
                    return
                action = self._waiting.popleft()
            action()
