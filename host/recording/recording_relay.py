"""One recording of sessions in several processes: their lines come through pipes, and a thread writes them down.

A worker has no file system, and one that a guest has made its own could spoil a file that others record to. So it has
the end of a pipe. What it sends is recorded line by line if it is a record of its own sessions.
"""

import os
import selectors
import threading
import time
from collections.abc import Container
from io import FileIO
from typing import Final

from protocol.process.line_writer import LineWriter
from protocol.process.recording_file import RecordingFile
from protocol.recording.lines import RecordingError, build_line, parse_record
from protocol.recording.records import Header, Lost, Record

LINE_MAX: Final = 1 << 20
"""Most bytes of a line: more than the longest chain takes."""

_CHUNK: Final = 1 << 16

CLOSE_PATIENCE: Final = 0.3
"""Seconds that is waited for what is on its way, when workers do not close their ends."""


class RecordingRelay:
    """Records to ``file`` what comes from workers. :meth:`open` is called on one thread."""

    def __init__(self, file: RecordingFile) -> None:
        self._file = file
        self._selector = selectors.DefaultSelector()
        self._ways: dict[int, _Way] = {}
        self._waking, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._waking, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="recording relay")

    def open(self, sessions: Container[int]) -> int:
        """Return the end of a pipe for a worker, which the caller closes. The records of ``sessions``, which may grow,
        are taken from there, until all have closed their ends."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        with self._lock:
            self._ways[reading] = _Way(sessions)
        self._selector.register(reading, selectors.EVENT_READ)
        if self._thread.ident is None:
            self._thread.start()
        return writing

    def close(self) -> None:
        """Record what has come, and stop. The file stays open."""
        if self._thread.ident is not None:
            deadline = time.monotonic() + CLOSE_PATIENCE
            while self._ways and time.monotonic() < deadline:
                time.sleep(0.002)
            self._closing = True
            os.write(self._wake, b"x")
            self._thread.join(CLOSE_PATIENCE)
            if self._thread.is_alive():
                return  # the disk holds it up: what it uses stays open
        self._selector.close()
        for fd in (self._waking, self._wake, *self._ways):
            os.close(fd)
        self._ways.clear()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fd != self._waking:
                    self._take(key.fd)

    def _take(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        way = self._ways[fd]
        goes_on = bool(data) and self._file.pass_on("".join(way.lines(data))) and len(way.rest) <= LINE_MAX
        if not goes_on:
            self._selector.unregister(fd)
            os.close(fd)  # the other end finds that no more is recorded
            with self._lock:
                del self._ways[fd]


class _Way:
    """What comes from one worker. ``rest`` is the begin of a line."""

    def __init__(self, sessions: Container[int]) -> None:
        self._sessions = sessions
        self.rest = b""

    def lines(self, data: bytes) -> list[str]:
        """Take the next bytes; return the whole lines that count."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [line.decode() + "\n" for line in whole if self._counts(line)]

    def _counts(self, line: bytes) -> bool:
        try:
            record = parse_record(line)
        except RecordingError:
            return False
        match record:
            case None | Header():  # the begin of a run is not a worker's to say
                return False
            case Lost():
                return not record.full
        return record.session in self._sessions


class RelayedRecording:
    """A worker's end ``fd`` of such a pipe, which is owned here."""

    def __init__(self, fd: int) -> None:
        self._stopped = False
        self._writer = LineWriter(FileIO(fd, "w"), _lost_line, _not_full, self._on_error, name="recording")

    def write(self, record: Record) -> None:
        """Add ``record``, from any thread, or leave it out where it is not taken in time."""
        if not self._stopped:
            self._writer.write(build_line(record))

    def close(self) -> None:
        """Pass on what is pending."""
        try:
            self._writer.close()
        except (TimeoutError, OSError):
            self._stopped = True

    def _on_error(self, error: OSError) -> None:
        self._stopped = True  # the recording has reached its limit, and that was said


def _lost_line(count: int) -> str:
    return build_line(Lost(t=time.monotonic(), session=0, count=count))


def _not_full(error: OSError) -> None:
    """Do nothing: a pipe does not fill up for long."""
