"""The event stream: one JSON object a line, for people, tests and scripts alike.

Every line is ``{"t": <CLOCK_MONOTONIC seconds>, "time": <RFC 3339>, "event": NAME, ...}``. ``t`` never goes back on one
machine and is for differences. ``time`` is the same instant on the wall clock, in UTC to the microsecond, and is for
comparing with other logs. Sizes are bytes, times are seconds, addresses are integers.

A reader sees an event within milliseconds. A reader that stalls does not delay the process; it loses events, and an
``events_lost`` event in their place says how many.
"""

import contextlib
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from typing import Protocol

from protocol.errors import BalloonError
from protocol.process.command_line import give_up_standard_output, reason
from protocol.process.line_writer import LineWriter
from protocol.process.log_lines import error_line

Clock = Callable[[], float]

_encode = json.JSONEncoder(separators=(", ", ": ")).encode  # one for all: `json.dumps` would make one for each line


class LineStream(Protocol):
    """The destination of events: a text stream, written to at once, or an :class:`LineWriter`."""

    def write(self, line: str, /) -> object:
        """Write one line."""

    def flush(self) -> None:
        """Pass on what was written."""

    def close(self) -> None:
        """Write what is buffered, and close."""


class EventLog:
    """Writes events to a stream, or discards them if there is no stream. ``is_standard_output`` says that the stream is
    standard output, which then must not be used for other text.

    A write error must not end a virtual machine. While a disk is full events wait, within the bound for slow readers;
    standard error has one line. After any other error the log stops writing, reports that once on standard error, and
    :attr:`broken` says why.
    """

    def __init__(
        self,
        stream: LineStream | None,
        clock: Clock,
        *,
        is_standard_output: bool = False,
        wall_clock: Clock = time.time,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._wall_clock = wall_clock
        self._path: str | None = None
        self.is_standard_output = is_standard_output
        self.broken: str | None = None

    def are_written(self) -> bool:
        """Whether there is a stream, and it has not failed."""
        return self._stream is not None

    def emit(self, event: str, **fields: object) -> None:
        """Write one event with the current time, or with the time ``t`` of when it happened. A write
        error is not raised."""
        if self._stream is not None:
            self._write(self._build_line(event, fields))

    def prepare(self, event: str, **fields: object) -> Callable[[], None]:
        """Build one event, on any thread, and return what writes it, where :meth:`emit` is called."""
        return partial(self._write, self._build_line(event, fields))

    def pass_on(self, lines: Iterable[str]) -> None:
        """Write lines that another process's log has built."""
        for line in lines:
            self._write(line)

    def _write(self, line: str) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        if self.is_standard_output:
            give_up_standard_output()
            self.is_standard_output = False
        self._stream = None
        self.broken = reason(error)
        if not isinstance(error, BrokenPipeError):  # the reader closed the pipe on purpose
            _complain(f"events: {self.broken}: no more are written")

    def _report_full(self, error: OSError) -> None:
        _complain(f"events: {reason(error)}: they wait for room")

    def close(self) -> None:
        """Close the stream, unless it is standard output. Pending events are written first, if the reader takes
        them."""
        stream, self._stream = self._stream, None
        if stream is None or stream is sys.stdout:
            return
        try:
            stream.close()
        except OSError as error:
            self.broken = reason(error)
            _complain(f"events: {self.broken}: the last ones are missing")

    @classmethod
    def to_file(cls, file: FileIO, clock: Clock, *, is_standard_output: bool = False) -> "EventLog":
        """Return a log that owns ``file``, which must be unbuffered: a thread writes to it."""
        log = cls(None, clock, is_standard_output=is_standard_output)
        log._stream = log._writer(file)
        return log

    @classmethod
    def to_path(cls, path: str, clock: Clock) -> "EventLog":
        """Return a log that appends to the file at ``path`` and can be reopened.

        Raises:
            OSError: the file cannot be opened for appending.
        """
        log = cls.to_file(open_for_appending(path), clock)
        log._path = path
        return log

    def reopen(self) -> None:
        """Open the path anew, after the file there was renamed or removed. A log without a path goes on as it is, and
        so does one whose path cannot be opened; standard error has one line then."""
        if self._path is None:
            return
        try:
            file = open_for_appending(self._path)
        except OSError as error:
            _complain(f"events: {reason(error)}: not reopened")
            return
        if isinstance(self._stream, LineWriter):
            self._stream.replace(file)
        else:
            self._stream = self._writer(file)
            self.broken = None

    def _writer(self, file: FileIO) -> LineWriter:
        return LineWriter(file, self._build_lost, self._report_full, self._give_up)

    def _build_lost(self, count: int) -> str:
        return self._build_line("events_lost", {"count": count})

    def _build_line(self, event: str, fields: Mapping[str, object]) -> str:
        now = self._clock()
        happened = fields.get("t", now)
        assert isinstance(happened, float | int)
        stamp = format_time(self._wall_clock() - (now - happened))
        times = {"t": round(now, 6), "time": stamp, "event": event}
        return _encode({**times, **fields}) + "\n"


def _complain(message: str) -> None:
    # The terminal may have been closed. `print` would take standard output for a missing standard error.
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        print(error_line(message), file=sys.stderr)


def format_time(seconds: float) -> str:
    """Return ``seconds`` since 1970 as a time of RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def open_for_appending(path: str) -> FileIO:
    """Open or create the file at ``path``.

    A symbolic link is not followed: in a directory that others may write to, it would have this process append to a
    file of their choice. The links that the system keeps below ``/dev`` and ``/proc`` are (``/dev/fd/3``). A FIFO is
    opened for reading too, as only that does not wait for a reader (``man 7 fifo``).

    Raises:
        OSError: it cannot be opened, or it is a symbolic link.
    """

    def open_file(name: str, flags: int) -> int:
        parent = os.path.realpath(os.path.dirname(os.path.abspath(name)))
        if parent != "/dev" and not parent.startswith("/proc/"):
            flags |= os.O_NOFOLLOW
            if os.path.islink(name):
                raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", name)
            if os.path.exists(name) and stat.S_ISFIFO(os.lstat(name).st_mode):
                flags = flags & ~os.O_WRONLY | os.O_RDWR
        return os.open(name, flags, 0o666)

    return FileIO(path, "a", opener=open_file)


def open_event_log(path: str | None, clock: Clock) -> EventLog:
    """Open ``PATH`` of an ``--events`` option: a file to append to, ``-`` for standard output, ``None`` for no events.

    Raises:
        BalloonError: the file cannot be opened for appending.
    """
    if path is None:
        return EventLog(None, clock)
    if path == "-" and sys.stdout is None:
        raise BalloonError("--events -: standard output is closed")
    if path == "-":
        return _log_to_standard_output(clock)
    try:
        return EventLog.to_path(path, clock)
    except OSError as error:
        raise BalloonError(f"--events {path}: {error.strerror}") from error


def _log_to_standard_output(clock: Clock) -> EventLog:
    try:
        number = sys.stdout.fileno()
    except OSError:  # replaced by an object without a descriptor
        return EventLog(sys.stdout, clock, is_standard_output=True)
    sys.stdout.flush()  # what was printed before comes first
    return EventLog.to_file(FileIO(number, "w", closefd=False), clock, is_standard_output=True)
