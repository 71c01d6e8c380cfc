"""A blocking QMP client: for the daemon's control socket, and for the monitor of QEMU itself.

Source: QEMU's "QEMU Machine Protocol Specification".
"""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from host.qmp.json_stream import JsonError, JsonStream
from host.qmp.negotiation import NEGOTIATE
from protocol.errors import BalloonError, FramingError

GREETING_SECONDS: Final = 10.0
"""Least time that a server has to greet. The daemon's other socket never does: virtual machines speak first there."""

ANSWER_SECONDS: Final = 30.0
"""Default time limit of a command, in seconds. A ``reclaim`` of a large guest takes as long as its discards."""

_ANSWER_MAX: Final = 64 << 20
_CHUNK: Final = 1 << 20
_SHORT: Final = 4096
"""Bytes of a message without a line break that may be all there is of it."""

_RETRY_SECONDS: Final = 0.02

EVENTS_MAX: Final = 10_000
"""Events that are kept while an answer is waited for. Older ones are dropped."""


class CommandError(BalloonError):
    """The server answered a command with an error: ``description`` in words, ``error_class`` as QMP names its kind."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.error_class = error_class
        self.description = description


def connect(path: Path, *, start_seconds: float = 0.0) -> socket.socket:
    """Connect to the unix socket at ``path``, which a process that is being started may take ``start_seconds`` to make.

    Raises:
        BalloonError: no process listens there by then.
    """
    end = time.monotonic() + start_seconds
    busy = end + GREETING_SECONDS  # while its queue of connections is full
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(max(start_seconds, GREETING_SECONDS))
        try:
            connection.connect(os.fspath(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() >= (busy if isinstance(error, BlockingIOError) else end):
                # "AF_UNIX path too long" and a timeout carry no errno.
                raise BalloonError(f"{path}: {error.strerror or error}") from error
        time.sleep(_RETRY_SECONDS)


class QmpClient:
    """A connection with capabilities negotiated. As a context manager it closes itself.

    ``events`` holds the events that have been received, oldest first.
    """

    def __init__(
        self, path: Path, *, start_seconds: float = 0.0, answer_seconds: float | None = ANSWER_SECONDS
    ) -> None:
        """Connect and negotiate. ``answer_seconds`` is the time that each command may take; None is unlimited.

        Raises:
            BalloonError: no process listens at ``path`` within ``start_seconds``, or what listens is not a QMP server.
        """
        self._path = path
        self._messages: deque[Mapping[str, Any]] = deque()
        self._chunks: list[bytes] = []
        self._length = 0
        self._end: float | None = time.monotonic() + start_seconds + GREETING_SECONDS
        self._stream: JsonStream | None = None
        self.events: list[Mapping[str, Any]] = []
        self._socket = connect(path, start_seconds=start_seconds)
        try:
            self._negotiate()
            self._socket.settimeout(answer_seconds)
        except BaseException:
            self.close()
            raise

    def _negotiate(self) -> None:
        greeting = self._receive(missing="a stopped daemon, or not a QMP server: no greeting")
        if isinstance(refusal := greeting.get("error"), dict):  # the server has as many clients as it serves
            raise BalloonError(str(refusal.get("desc")))
        if "QMP" not in greeting:
            raise BalloonError(f"{self._path}: not a QMP server")
        self.command(NEGOTIATE)

    def command(self, name: str, /, **arguments: object) -> Any:
        """Carry out a command and return what it returns.

        Raises:
            CommandError: the server answered with an error.
            BalloonError: the server closed the connection, sent something other than QMP, or gave no answer in time.
        """
        try:
            self._socket.sendall(_build_command(name, arguments))
        except OSError as error:
            raise BalloonError(f"{self._path}: {error.strerror or error}") from error
        seconds = self._socket.gettimeout()
        self._end = None if seconds is None else time.monotonic() + seconds
        while True:
            answer = self._receive()
            if isinstance(refusal := answer.get("error"), dict):
                raise CommandError(name, str(refusal.get("class")), str(refusal.get("desc")))
            if "return" in answer:
                return answer["return"]
            if "event" in answer:
                self.events.append(answer)
                del self.events[:-EVENTS_MAX]

    def next_event(self) -> Mapping[str, Any]:
        """Return the next event, waiting for it if need be.

        Raises:
            BalloonError: the server closed the connection, sent something other than QMP, or no event came in the time
                limit of a command.
        """
        self._end = None
        while not self.events:
            message = self._receive("no event")
            if "event" in message:
                self.events.append(message)
        return self.events.pop(0)

    def _receive(self, missing: str = "no answer") -> Mapping[str, Any]:
        try:
            while not self._messages:
                self._take(self._receive_some(missing))
                if self._end is not None and time.monotonic() > self._end:  # events alone, or a message without end
                    raise self._late(missing)
        except (JsonError, FramingError) as error:
            raise BalloonError(f"{self._path}: not a QMP server: {error}") from error
        return self._messages.popleft()

    def _take(self, data: bytes) -> None:
        # A server ends each message with a line break, and has none inside: such lines are read fifty times as fast as
        # the stream is, which understands whatever else is JSON.
        if self._stream is None:
            self._chunks.append(data)
            self._length += len(data)
            is_whole = data.endswith(b"\n") or not data
            if not is_whole and _SHORT < self._length < _ANSWER_MAX:
                return
            text = b"".join(self._chunks)
            self._chunks.clear()
            self._length = 0
            try:
                self._messages.extend(_parse_lines(text))
                return
            except (ValueError, RecursionError):
                self._stream, data = JsonStream(_ANSWER_MAX), text
        self._stream.feed(data)
        while (message := self._stream.next_object()) is not None:
            self._messages.append(message)
        if self._stream.is_idle:
            self._stream = None

    def _receive_some(self, missing: str) -> bytes:
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise self._late(missing) from None
        except OSError as error:
            raise BalloonError(f"{self._path}: {error.strerror or error}") from error
        if not data and not self._chunks:
            raise BalloonError(f"{self._path}: the server closed the connection without an answer")
        return data

    def _late(self, missing: str) -> BalloonError:
        return BalloonError(f"{self._path}: {missing} within {self._socket.gettimeout():g} s")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse_lines(text: bytes) -> list[dict[str, Any]]:
    # Raises ValueError for a line that is not an object.
    messages = [json.loads(line) for line in text.splitlines() if not line.isspace()]
    if not all(isinstance(message, dict) for message in messages):
        raise ValueError("not an object")
    return messages


def _build_command(name: str, arguments: Mapping[str, object]) -> bytes:
    members = {"arguments": arguments} if arguments else {}
    return json.dumps({"execute": name, **members}).encode() + b"\n"
