"""A blocking client of QMP, the QEMU machine protocol: for QEMU's own monitor and for the daemon's control socket.

Source: QEMU's "QEMU Machine Protocol Specification"."""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from protocol.errors import BalloonError

ANSWER_SECONDS: Final = 30.0
"""What a command may take. A ``reclaim`` of a large guest takes as long as its discards."""

_RETRY_SECONDS: Final = 0.02


class CommandError(BalloonError):
    """The server answered a command with an error; ``error_class`` is QMP's name for its kind."""

    def __init__(self, command: str, error_class: str, text: str) -> None:
        super().__init__(f"{command}: {text}")
        self.error_class = error_class


def connect_soon(path: Path, seconds: float) -> socket.socket:
    """Connect to a unix socket that a process may be about to make.

    Raises:
        BalloonError: there was nobody within ``seconds``.
    """
    end = time.monotonic() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            if time.monotonic() > end:
                raise BalloonError(f"{path}: {error.strerror}") from error
            time.sleep(_RETRY_SECONDS)
        else:
            return sock


class QmpClient:
    """One connection with capabilities negotiated. A context manager, which closes it. ``events``: those that came."""

    def __init__(self, path: Path, *, seconds: float = ANSWER_SECONDS) -> None:
        """Connect and negotiate.

        Raises:
            BalloonError: nobody there, or no QMP.
        """
        self._socket = connect_soon(path, seconds)
        self._socket.settimeout(seconds)
        self._rest = b""
        self.events: list[Mapping[str, Any]] = []
        try:
            if "QMP" not in self._receive():
                raise BalloonError(f"{path}: not a QMP server")
            self.command("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def command(self, name: str, /, **arguments: object) -> Any:
        """Carry out a command; return what it returns. An underscore in an argument's name stands for a hyphen.

        Raises:
            CommandError: the server refused.
            BalloonError: it went away or did not answer in time.
        """
        members = {word.replace("_", "-"): value for word, value in arguments.items()}
        request = {"execute": name, **({"arguments": members} if members else {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise BalloonError(f"{name}: {error.strerror}") from error
        while True:
            answer = self._receive()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise CommandError(name, answer["error"]["class"], answer["error"]["desc"])
            else:
                return answer["return"]

    def _receive(self) -> Mapping[str, Any]:
        while b"\n" not in self._rest:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise BalloonError(f"no answer: {error.strerror or error}") from error
            if not data:
                raise BalloonError("the server went away")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: Mapping[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
