"""Writes the lines of the event stream on a thread of its own, so that a stalled reader does not stall the event loop.

A pipe whose reader stalls (``| less``) blocks every write, and one event loop serves all virtual machines. Pending
lines are bounded: those beyond the bound are dropped and counted.
"""

from collections.abc import Callable
from io import FileIO
from threading import Condition, Event, Thread
from typing import Final

WAITING_MAX: Final = 4 << 20
"""Bytes that may be pending: about twenty thousand events."""

WRITE_INTERVAL: Final = 0.002
"""Least seconds between two writes. A single line is written at once, a burst in few writes: each wakes the thread,
which competes with the event loop for the interpreter."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the reader has at the end to take the pending lines."""


class EventWriter:
    """Owns ``file``, which is unbuffered: the lock of a buffer, held by a write that stalls, would block the
    interpreter's exit.

    ``on_lost`` returns the line that replaces a number of dropped lines. ``on_error`` is called once, on the thread,
    with the error that ends all writing. :meth:`write` may be called from any thread.
    """

    def __init__(self, file: FileIO, on_lost: Callable[[int], str], on_error: Callable[[OSError], None]) -> None:
        self._file = file
        self._on_lost = on_lost
        self._on_error = on_error
        self._changed = Condition()
        self._lines: list[str] = []
        self._waiting = 0
        self._lost = 0
        self._closing = Event()
        # A daemon thread: one that stalls must not outlive main(). It starts with the first line, so that a process
        # that forks before that is single-threaded.
        self._thread = Thread(target=self._run, name="events", daemon=True)

    def write(self, line: str) -> None:
        """Queue one ASCII line, or drop it."""
        with self._changed:
            # After a dropped line all are dropped until the thread takes the queue: a gap is reported at its place.
            if self._lost or self._waiting + len(line) > WAITING_MAX:
                self._lost += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            if self._thread.ident is None:
                self._thread.start()
            elif len(self._lines) == 1:
                self._changed.notify()

    def flush(self) -> None:
        """Do nothing: the thread writes every line at once."""

    def close(self) -> None:
        """Write the pending lines and close the file.

        Raises:
            TimeoutError: the reader did not take it within :data:`CLOSE_TIMEOUT`; the file is left to the thread.
        """
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread.ident is None:
            self._file.close()
            return
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            raise TimeoutError("the reader does not take them")

    def _run(self) -> None:
        try:
            with self._file:
                while lines := self._next_lines():
                    self._write_all("".join(lines).encode("ascii"))
                    self._closing.wait(WRITE_INTERVAL)
        except OSError as error:
            self._on_error(error)

    def _next_lines(self) -> list[str]:
        """Wait for lines and take all of them; an empty list after :meth:`close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing.is_set())
            lines, self._lines = self._lines, []
            lost, self._lost = self._lost, 0
            self._waiting = 0
            if lost:
                lines.append(self._on_lost(lost))
            return lines

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            # None: another process has made the descriptor non-blocking, and the pipe is full.
            if (written := self._file.write(view)) is None:
                raise BlockingIOError("the file is non-blocking and full")
            view = view[written:]
