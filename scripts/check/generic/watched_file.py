"""Files that tell whether another process still has them: descriptors that we hand over and want to see closed.

No view into the other process is needed. A lock by flock(2) belongs to the open file, not to a process: it lasts until
the last descriptor and the last mapping of that open file are gone, wherever they are.
"""

import fcntl
import os
import select
import time
from collections.abc import Mapping
from typing import Protocol

from scripts.check.machine.deadline import DEADLINE, becomes_true


class Watched(Protocol):
    """A file of which a descriptor was handed over."""

    def is_released(self, seconds: float = DEADLINE) -> bool:
        """Close our own descriptor; return whether the other process gives the file up within ``seconds``."""


def still_held(watched: Mapping[str, Watched], seconds: float) -> list[str]:
    """Return the names of those that are not given up within ``seconds`` in all."""
    end = time.monotonic() + seconds
    return [name for name, one in watched.items() if not one.is_released(max(0.0, end - time.monotonic()))]


class WatchedMemory:
    """A memory file whose descriptor :attr:`fd` is handed over; our own one is closed by :meth:`is_released`."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("balloon-check", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        self._other = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def is_released(self, seconds: float = DEADLINE) -> bool:
        """Close our descriptor; return whether the other process has none, and no mapping, within ``seconds``."""
        self._drop()
        return becomes_true(self._can_lock, seconds)

    def _can_lock(self) -> bool:
        try:
            fcntl.flock(self._other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _drop(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close both descriptors."""
        self._drop()
        os.close(self._other)


class WatchedPipe:
    """A pipe of which one end, :attr:`fd`, is handed over. The other end tells when that one is closed everywhere.

    The writing end is handed over, or with ``reading`` the reading end.
    """

    def __init__(self, *, reading: bool = False) -> None:
        self._ours, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if reading:
            self._ours, self.fd = self.fd, self._ours

    def is_released(self, seconds: float = DEADLINE) -> bool:
        """Close our descriptor of the end; return whether the other process has none within ``seconds``."""
        self._drop()
        poll = select.poll()
        poll.register(self._ours, 0)  # a hang-up is always reported
        return bool(poll.poll(seconds * 1000))

    def _drop(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close both ends."""
        self._drop()
        os.close(self._ours)
