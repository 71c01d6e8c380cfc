"""Writes lines on a thread of its own, so that a stalled reader does not stall the event loop: events, standard error.

A pipe whose reader stalls (``| less``) blocks every write, and one event loop serves all virtual machines. Pending
lines are bounded: those beyond the bound are dropped and counted.
"""

import errno
import os
import select
import signal
import stat
from collections.abc import Callable
from io import FileIO
from threading import Condition, Event, Thread
from typing import Final

WAITING_MAX: Final = 4 << 20
"""Characters that may be pending: about twenty thousand events."""

WRITE_INTERVAL: Final = 0.002
"""Least seconds between two writes. A single line is written at once, a burst in few writes: each wakes the thread,
which competes with the event loop for the interpreter."""

RETRY_INTERVAL: Final = 0.5
"""Seconds between two tries to write to a file that has no room."""

_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOBUFS, errno.ENOMEM})
"""Errors that may pass: disks are cleaned up, quotas raised, files rotated."""

CLOSE_TIMEOUT: Final = 0.5
"""Seconds that the reader has at the end to take the pending lines."""


class LineWriter:
    """Owns ``file``, which is unbuffered: the lock of a buffer, held by a write that stalls, would block the
    interpreter's exit.

    While there is no room for them, on a disk or in a pipe, lines wait as they do for a slow reader. A line of which
    only a part has found room in a file is taken out of it again, and written whole later.

    ``on_lost`` returns the line that replaces a number of dropped lines. ``on_full`` is called on the thread with the
    error of the first try, each time that writing has to wait for room on a disk. ``on_error`` is called once, on the
    thread, with the error that ends all writing. ``waiting_max`` is the bound of pending lines, in characters, and
    :data:`WAITING_MAX` if it is not given. :meth:`write` may be called from any thread.
    """

    def __init__(
        self,
        file: FileIO,
        on_lost: Callable[[int], str],
        on_full: Callable[[OSError], None],
        on_error: Callable[[OSError], None],
        *,
        name: str = "events",
        waiting_max: int | None = None,
    ) -> None:
        self._file = file
        self._next_file: FileIO | None = None
        self._on_lost = on_lost
        self._on_full = on_full
        self._on_error = on_error
        self._waiting_max = WAITING_MAX if waiting_max is None else waiting_max
        self._changed = Condition()
        self._lines: list[str] = []
        self._waiting = 0
        self._lost = 0
        self._closing = Event()
        # A daemon thread: one that stalls must not outlive main(). It starts with the first line at the latest, so that
        # a process that forks before that is single-threaded.
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread before the first line comes. Raises RuntimeError at the limit of threads."""
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line, or drop it."""
        with self._changed:
            # After a dropped line all are dropped until the thread takes the queue: a gap is reported at its place.
            if self._lost or self._waiting + len(line) > self._waiting_max:
                self._lost += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            if self._thread.ident is None:
                self._thread.start()
            elif len(self._lines) == 1:
                self._changed.notify()

    def replace(self, file: FileIO) -> None:
        """Write to ``file`` from now on, and close the one before. Lines that wait go to ``file``."""
        with self._changed:
            if self._next_file is not None:
                self._next_file.close()
            self._next_file = file
            self._changed.notify()

    def flush(self) -> None:
        """Do nothing: the thread writes every line at once."""

    def close(self, timeout: float | None = None) -> None:
        """Write the pending lines and close the file.

        Raises:
            TimeoutError: the reader did not take them within ``timeout`` seconds, :data:`CLOSE_TIMEOUT` if it is not
                given; the file is left to the thread.
        """
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread.ident is None:
            self._take_next_file()
            self._file.close()
            return
        self._thread.join(CLOSE_TIMEOUT if timeout is None else timeout)
        if self._thread.is_alive():
            raise TimeoutError("the reader does not take them")

    def _run(self) -> None:
        # Signals are for the main thread, which blocks those that stop the process while it cannot be stopped.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while lines := self._next_lines():
                self._write_all("".join(lines).encode("utf-8", "backslashreplace"))
                self._closing.wait(WRITE_INTERVAL)
        except OSError as error:
            self._on_error(error)
        finally:
            self._file.close()

    def _take_next_file(self) -> bool:
        # With the lock held, or without the thread.
        if self._next_file is None:
            return False
        self._file.close()
        self._file, self._next_file = self._next_file, None
        return True

    def _next_lines(self) -> list[str]:
        """Wait for lines and take all of them; an empty list after :meth:`close`."""
        with self._changed:
            while not self._lines and not self._closing.is_set():
                self._changed.wait_for(lambda: self._lines or self._next_file is not None or self._closing.is_set())
                self._take_next_file()
            self._take_next_file()
            lines, self._lines = self._lines, []
            lost, self._lost = self._lost, 0
            self._waiting = 0
            if lost:
                lines.append(self._on_lost(lost))
            return lines

    def _write_all(self, data: bytes) -> None:
        # A failed attempt is reported once for the whole wait.
        done = 0
        waits = False
        while done < len(data):
            try:
                written = self._file.write(memoryview(data)[done:])
            except OSError as error:
                if error.errno not in _PASSING or self._closing.is_set():
                    raise
                line = data.rfind(b"\n", 0, done) + 1
                if self._cut_off(done - line):
                    done = line
                if not waits:
                    self._on_full(error)
                waits = True
                self._closing.wait(RETRY_INTERVAL)
                with self._changed:
                    if self._take_next_file():
                        done = line
                continue
            if written is None:
                self._wait_for_reader()
            else:
                done += written

    def _cut_off(self, size: int) -> bool:
        """Take the last ``size`` bytes, which this thread has written, out of the file; return whether that was done.
        It is not where another process has appended more."""
        fd = self._file.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or os.lseek(fd, 0, os.SEEK_CUR) != status.st_size:
            return False
        if size:
            os.ftruncate(fd, status.st_size - size)
        return True

    def _wait_for_reader(self) -> None:
        # Another process has made the descriptor non-blocking, and the pipe is full.
        poll = select.poll()
        poll.register(self._file.fileno(), select.POLLOUT)
        poll.poll(1000 * RETRY_INTERVAL)
