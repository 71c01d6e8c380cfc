"""Standard error of a process that serves many: written by a thread of its own.

A reader that stalls (a terminal that is held, ``2>&1 | less``) would block whatever prints: the status, the log,
tracebacks, complaints about the event stream. Lines wait for it within a bound, and one line in place of those beyond
it says how many were lost.
"""

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from io import FileIO
from typing import Final

from protocol.process.line_writer import LineWriter

WAITING_MAX: Final = 256 << 10
"""Characters that may be pending: about two thousand lines."""

CLOSE_TIMEOUT: Final = 0.2
"""Seconds that the reader has at the end to take the pending lines."""


class QueuedText(io.TextIOBase):
    """A text stream whose lines are written to the descriptor ``fd`` by a thread. No method waits for the reader but
    :meth:`drain`. Errors are not raised: standard error has no place to report them. ``program`` begins the line that
    counts lost ones.
    """

    def __init__(self, fd: int, program: str) -> None:
        """Start the thread. Raises RuntimeError at the limit of threads."""
        self._fd = fd
        self._lock = threading.Lock()
        self._begun = ""
        self._writer = LineWriter(
            FileIO(fd, "w", closefd=False),
            lambda count: f"{program}: {count} lines of standard error were lost\n",
            on_full=lambda _error: None,
            on_error=lambda _error: None,
            name="standard error",
            waiting_max=WAITING_MAX,
        )
        self._writer.start()

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        return self._fd

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Queue the lines that ``text`` completes. The rest waits for the end of its line."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._writer.write(line + "\n")
        return len(text)

    def drain(self, timeout: float) -> bool:
        """Write what waits and end the thread. Later lines may be lost.

        Returns whether the reader has taken everything within ``timeout`` seconds.
        """
        with self._lock:
            if self._begun:
                self._writer.write(self._begun)
                self._begun = ""
        try:
            self._writer.close(timeout)
        except TimeoutError:
            return False
        return True


@contextlib.contextmanager
def queued_standard_error(program: str) -> Iterator[None]:
    """Have ``sys.stderr`` written by a thread within the block. At the end the reader has :data:`CLOSE_TIMEOUT`.

    If the reader has not taken all by then, what is printed later may be lost: to wait would block the process's end.
    Standard error stays as it is where it is closed, where it has no descriptor, and at the limit of threads.
    """
    original = sys.stderr
    try:
        queued = QueuedText(original.fileno(), program)
    except (AttributeError, OSError, RuntimeError):
        yield
        return
    original.flush()
    sys.stderr = queued
    try:
        yield
    finally:
        if drain_standard_error():
            sys.stderr = original


def drain_standard_error() -> bool:
    """Write what waits for the reader of standard error, now that the process is about to end. Returns whether it has
    taken everything."""
    return not isinstance(sys.stderr, QueuedText) or sys.stderr.drain(CLOSE_TIMEOUT)
