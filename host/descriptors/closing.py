"""Closes descriptors that came from a front-end or a worker, where that may take its time.

The last descriptor of a memory file frees its pages, which takes a second for some gigabytes. The last one of a socket
closes what was sent through it. What a worker has sent that a guest has made its own may never return from ``close``.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

_AT_ONCE: Final = ("anon_inode:[eventfd]", "pipe:[")
"""How procfs names what is closed at once in any case."""


class Closer:
    """Closes descriptors of one owner in order, on a thread of its own while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._works = False

    @property
    def waiting(self) -> int:
        """Descriptors that are not closed yet."""
        with self._lock:
            return len(self._waiting)

    def close(self, fds: Iterable[int]) -> None:
        """Close ``fds``, which are not the caller's any more. Never waits."""
        aside = []
        for fd in fds:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(_AT_ONCE):  # asks no file system
                os.close(fd)
            else:
                aside.append(fd)
        with self._lock:
            self._waiting.extend(aside)
            if self._works or not self._waiting:
                return
            self._works = True
        try:
            threading.Thread(target=self._work, daemon=True, name="closing").start()
        except RuntimeError:  # the limit of threads: they are closed with the next ones
            with self._lock:
                self._works = False

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._works = False
                    return
                fd = self._waiting[0]
            os.close(fd)
            with self._lock:
                self._waiting.popleft()
