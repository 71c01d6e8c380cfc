"""The helper threads of one user, which its processes share.

They are few, for any number of processes, and another user's calls have threads of their own. A thread that is idle for
a while ends.
"""

import threading
from concurrent.futures import Executor
from typing import Final

from host.peers.helper_line import Call, HelperLine
from protocol.errors import VhostUserError

USER_HELPERS_MAX: Final = 64
"""Most threads of all processes of one user."""

IDLE_TIME: Final = 1.0
"""Seconds after which a thread without work ends."""


class HelperThreads:
    """The threads of one user. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line = HelperLine()
        self._threads = 0
        self._making = 0
        self._closing = 0

    @property
    def closing(self) -> int:
        """Descriptors of the user's processes that are to be closed, and are not closed yet."""
        return self._closing

    def count_closing(self, change: int) -> None:
        """Take note of so many descriptors more, or fewer, that are not closed yet."""
        with self._changed:
            self._closing += change

    def add(self, call: Call, stand_in: Executor | None) -> None:
        """Have a helper make ``call`` in its turn. ``stand_in`` does the work of a helper that cannot be started.

        Raises:
            VhostUserError: no thread can be started, and there is neither another one nor a stand-in. The call stays in
                line.
        """
        with self._changed:
            self._line.add(call)
            if self._threads - self._making >= self._line.ready:
                self._changed.notify()
                return
            if self._threads == USER_HELPERS_MAX:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, daemon=True, name="peer helper").start()
        except (RuntimeError, MemoryError):
            with self._changed:
                self._threads -= 1
                alone = not self._threads
            if stand_in is not None:
                stand_in.submit(self._stand_in, call.process)
            elif alone:
                raise VhostUserError("no thread can be started: the limit of threads or of memory is reached") from None

    def _stand_in(self, process: int) -> None:
        call: Call | None = None
        while True:
            with self._changed:
                if call is not None:
                    self._line.done(call)
                call = self._line.take(process)
            if call is None:
                return
            call.action()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line.ready, IDLE_TIME)
                call = self._line.take()
                if call is None:
                    self._threads -= 1
                    return
                self._making += 1
            call.action()
            with self._changed:
                self._making -= 1
                self._line.done(call)
