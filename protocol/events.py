"""The event stream: one JSON object a line, the same vocabulary for people, tests and scripts.

Every line is ``{"t": <CLOCK_MONOTONIC seconds>, "event": NAME, ...}``. Sizes are bytes, times are seconds, addresses
are integers. The stream is written line by line and flushed, so a reader sees an event as soon as it happened.

Must not know: who writes which event. ``README.md`` lists them.
"""

import json
import sys
from collections.abc import Callable
from typing import TextIO

from protocol.command_line import give_up_standard_output
from protocol.errors import UsageError

Clock = Callable[[], float]


class EventLog:
    """Writes events to a text stream, or nowhere.

    A reader that goes away (a closed pipe, a full disk) must not take a virtual machine down: the log then falls silent
    for good, says so once on standard error, and :attr:`broken` says why.
    """

    def __init__(self, stream: TextIO | None, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self.broken: str | None = None

    @property
    def is_standard_output(self) -> bool:
        """Whether the events go to standard output, which then is no place for other text."""
        return self._stream is sys.stdout

    def emit(self, event: str, **fields: object) -> None:
        """Write one event with the current time, or with the time ``t`` of when it happened. Never raises for what the
        reader did."""
        if self._stream is None:
            return
        record = {"t": round(self._clock(), 6), "event": event, **fields}
        try:
            self._stream.write(json.dumps(record, separators=(", ", ": ")) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        if self.is_standard_output:
            give_up_standard_output()
        self._stream = None
        self.broken = str(error)
        if not isinstance(error, BrokenPipeError):  # whoever closed a pipe knows
            print(f"events: {error}: no more are written", file=sys.stderr)

    def close(self) -> None:
        """Close the stream, unless it is standard output."""
        stream, self._stream = self._stream, None
        if stream is not None and stream is not sys.stdout:
            try:
                stream.close()
            except OSError as error:
                self.broken = str(error)


def open_event_log(path: str | None, clock: Clock) -> EventLog:
    """Open ``PATH`` of an ``--events`` option: a file to append to, ``-`` for standard output, ``None`` for no events.

    Raises:
        UsageError: the file cannot be opened for appending.
    """
    if path is None:
        return EventLog(None, clock)
    if path == "-":
        return EventLog(sys.stdout, clock)
    try:
        return EventLog(open(path, "a", encoding="utf-8"), clock)
    except OSError as error:
        raise UsageError(f"--events {path}: {error.strerror}") from error
