"""Lines on their way to whoever reads events: written by a thread of their own, so that nobody waits for the reader.

A pipe whose reader stalls (``| less``) holds up every write. The events of all virtual machines go through one file,
and the event loop that emits them serves them all: it hands lines over and goes on. What waits is bounded; lines beyond
the bound are dropped and counted.
"""

from collections.abc import Callable
from io import FileIO
from threading import Condition, Event, Thread
from typing import Final

WAITING_MAX: Final = 4 << 20
"""Bytes that may wait for the reader: some twenty thousand events."""

WRITE_INTERVAL: Final = 0.002
"""Least seconds between two writes. A line after a pause is written at once, a burst in few writes: each wakes the
thread, which competes with the event loop for the interpreter."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the reader has at the end to take what waits."""


class EventWriter:
    """Owns ``file``, which is unbuffered: a buffer's lock, held by a write that stalls, would hold up the interpreter's
    end.

    ``on_lost`` is asked for the line that tells of so many dropped ones; it takes their place in the order.
    ``on_error`` hears once, on the thread, of the error that ends all writing. Lines may come from any thread.
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
        # A daemon thread: one that stalls must not outlive main(). It begins with the first line, not sooner: whoever
        # forks before that has one thread only.
        self._thread = Thread(target=self._run, name="events", daemon=True)

    def write(self, line: str) -> None:
        """Hand over one ASCII line, or drop it."""
        with self._changed:
            # Once one is dropped, so are all until room is made: what was lost is one gap, told of at its place.
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
        """Nothing to do: lines are on their way."""

    def close(self) -> None:
        """Write what waits and close the file.

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
            raise TimeoutError("nobody reads them")

    def _run(self) -> None:
        try:
            with self._file:
                while lines := self._next_lines():
                    self._write_all("".join(lines).encode("ascii"))
                    self._closing.wait(WRITE_INTERVAL)
        except OSError as error:
            self._on_error(error)

    def _next_lines(self) -> list[str]:
        """Wait for lines and take all of them; none if there are no more to come."""
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
            # None comes from a descriptor that somebody made non-blocking.
            if (written := self._file.write(view)) is None:
                raise BlockingIOError("the file is non-blocking and full")
            view = view[written:]
