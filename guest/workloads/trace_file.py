"""Traces in files: what ``--record`` writes and ``--workload trace:FILE`` reads."""

from functools import partial
from pathlib import Path
from typing import Final, TextIO

from guest.workloads.allocation_trace import LINE_MAX, parse_trace
from guest.workloads.replay import Replay
from protocol.errors import BalloonError, UsageError

TRACE: Final = "trace"
"""The name of the workload that replays one."""


class RecordFile:
    """A text file, begun anew. A disk that fills up ends the recording and not the machine: ``broken`` says why.

    Raises:
        BalloonError: it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken: str | None = None
        try:
            self._stream: TextIO | None = open(path, "w", encoding="utf-8")  # noqa: SIM115  (open while the machine runs)
        except OSError as error:
            raise BalloonError(f"--record {path}: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Add ``text``; once something failed, do nothing."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError as error:
                self.broken = error.strerror
                self.close()

    def close(self) -> None:
        """Write what is left and close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                self.broken = self.broken or error.strerror


def load_trace(path: str) -> Replay:
    """Return the workload that replays the trace at ``path``.

    Raises:
        UsageError: the trace is malformed; the message has line and column.
        BalloonError: it cannot be read.
    """
    if not path:
        raise UsageError(f"workload {TRACE}: a file is missing, write {TRACE}:FILE")
    try:
        # Bytes that are not text appear in the message about their line.
        with open(path, encoding="utf-8", errors="backslashreplace") as stream:
            # At most a line's length at a time: the file may be endless and without a newline.
            return Replay(events=parse_trace(iter(partial(stream.readline, LINE_MAX + 2), ""), path))
    except OSError as error:
        raise BalloonError(f"workload {TRACE}: {path}: {error.strerror}") from error
