"""The file of a ``--record`` option: written by a thread of its own, bounded in memory and on the disk."""

import contextlib
import os
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.process.command_line import reason
from protocol.process.events import open_for_appending
from protocol.process.line_writer import LineWriter
from protocol.process.log_lines import error_line
from protocol.recording.lines import build_line
from protocol.recording.records import Header, Lost, Record

_ROOM_FOR_MARK: Final = 200
_LINE_MAX: Final = 1 << 20
"""More than a line has."""


class RecordingFile:
    """Appends records to a file. :meth:`write` may be called from any thread and neither waits nor raises.

    Records that the file does not take in time are left out, and a ``lost`` record is in their place. So it is once
    the file has ``limit`` bytes: the begin of a session tells most, so recording stops there, with a mark.
    """

    def __init__(self, file: FileIO, program: str, limit: int, *, goes_on: bool = False) -> None:
        """Begin a run of ``program``. With ``goes_on`` it is that which the file has the begin of."""
        self._lock = threading.Lock()
        self._room = limit - os.fstat(file.fileno()).st_size - _ROOM_FOR_MARK
        self._name = file.name
        self._complained = False
        self._stopped = False
        self._closed = False
        self._writer = LineWriter(file, _lost_line, self._on_full, self._on_error, name="recording")
        if goes_on and os.fstat(file.fileno()).st_size:
            _cut_last_line(file)
            return
        if _ends_within_a_line(file):
            self._write_line("\n")
        self.write(Header(t=time.monotonic(), time=time.time(), program=program))

    def write(self, record: Record) -> None:
        """Add ``record``, or leave it out."""
        if not self._stopped:
            self._write_line(build_line(record))

    def pass_on(self, lines: str) -> bool:
        """Add whole lines that another process has built. Return False if no more are taken."""
        for line in lines.splitlines(keepends=True):
            self._write_line(line)
        return not self._stopped

    def _write_line(self, line: str) -> None:
        with self._lock:
            if self._stopped:
                return
            self._room -= len(line)
            if self._room >= 0:
                self._writer.write(line)
                return
            self._stopped = True
            self._writer.write(build_line(Lost(t=time.monotonic(), session=0, count=1, full=True)))
        self._complain("the recording has reached its limit and stops")

    def close(self) -> None:
        """Write what is pending and close the file. A second call does nothing."""
        with self._lock:
            self._stopped = True
            closed, self._closed = self._closed, True
        if closed:
            return
        try:
            self._writer.close()
        except (TimeoutError, OSError) as error:
            self._complain(f"{reason(error)}: the last records are missing", again=True)

    def _on_full(self, error: OSError) -> None:
        self._complain(f"{reason(error)}: records wait for room")

    def _on_error(self, error: OSError) -> None:
        self._stopped = True
        self._complain(f"{reason(error)}: no more is recorded", again=True)

    def _complain(self, message: str, *, again: bool = False) -> None:
        # Once; `again` for what follows from waiting in vain.
        if sys.stderr is not None and (again or not self._complained):
            self._complained = True
            with contextlib.suppress(OSError, ValueError):
                print(error_line(f"--record {self._name}: {message}"), file=sys.stderr)


def _lost_line(count: int) -> str:
    return build_line(Lost(t=time.monotonic(), session=0, count=count))


def _ends_within_a_line(file: FileIO) -> bool:
    # A run that was killed. The file is open for appending only.
    size = os.fstat(file.fileno()).st_size
    if not size:
        return False
    with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
        again.seek(size - 1)
        return again.read() != b"\n"


def _cut_last_line(file: FileIO) -> None:
    # Of a daemon that was killed while it wrote. Its sessions go on, and so does its recording.
    with open(f"/proc/self/fd/{file.fileno()}", "rb+") as again:
        size = again.seek(0, os.SEEK_END)
        tail = max(0, size - _LINE_MAX)
        again.seek(tail)
        if whole := again.read().rfind(b"\n") + 1:
            again.truncate(tail + whole)


def open_recording(path: Path, program: str, limit: int = 1 << 30, *, goes_on: bool = False) -> RecordingFile:
    """Open ``path`` of a ``--record`` option for appending, and write the header of a run. With ``goes_on``
    the last run in the file goes on.

    Raises:
        BalloonError: the file cannot be written, or is not a regular file.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise BalloonError(f"--record {path}: not a regular file")
        file = open_for_appending(str(path))
    except OSError as error:
        raise BalloonError(f"--record {path}: {error.strerror}") from error
    return RecordingFile(file, program, limit, goes_on=goes_on)
