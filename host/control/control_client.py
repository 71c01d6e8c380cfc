"""The other end of the control socket, for one command from a command line."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from host.control.json_stream import JsonError, JsonStream
from host.control.qmp import NEGOTIATE
from protocol.errors import BalloonError, FramingError, UsageError
from protocol.units import parse_size

_GREETING_TIMEOUT: Final = 10.0
_ANSWER_MAX: Final = 64 << 20
_CHUNK: Final = 1 << 16


def ask(path: Path, name: str, arguments: Mapping[str, Any]) -> object:
    """Return what the daemon whose control socket is at ``path`` returns for a command, however long that takes.

    Raises:
        BalloonError: nobody answers there, the command was answered with an error, or the daemon went away.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_GREETING_TIMEOUT)
        try:
            connection.connect(os.fspath(path))
            stream = JsonStream(_ANSWER_MAX)
            _receive(connection, stream, "QMP")
            _send(connection, {"execute": NEGOTIATE})
            _receive(connection, stream, "return")
            connection.settimeout(None)
            if name == NEGOTIATE:
                return {}
            _send(connection, {"execute": name, "arguments": arguments})
            return _receive(connection, stream, "return")
        except (JsonError, FramingError) as error:
            raise BalloonError(f"{path}: not a control socket: {error}") from error
        except OSError as error:
            # "AF_UNIX path too long" and a timeout carry no errno.
            raise BalloonError(f"{path}: {error.strerror or error}") from error


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` words as arguments: a value is JSON, or a size like 512M, or else a string.

    Raises:
        UsageError: a word without ``=``, or a name that comes twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise UsageError(f"arguments are written NAME=VALUE, not {word!r}")
        if name in arguments:
            raise UsageError(f"argument {name} comes twice")
        arguments[name] = _parse_value(text)
    return arguments


def _parse_value(text: str) -> Any:
    for parse in (json.loads, parse_size):
        try:
            return parse(text)
        except (ValueError, RecursionError, UsageError):
            continue
    return text


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive_some(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_CHUNK)
    except TimeoutError:
        # Such as the daemon's other socket, where virtual machines connect and speak first.
        raise JsonError(f"it says nothing for {connection.gettimeout():g} s") from None


def _receive(connection: socket.socket, stream: JsonStream, member: str) -> Any:
    # Events come in between, and are of no interest here.
    while True:
        while (message := stream.next_object()) is None:
            data = _receive_some(connection)
            if not data:
                raise BalloonError("the daemon closed the connection without an answer")
            stream.feed(data)
        if isinstance(error := message.get("error"), dict):
            raise BalloonError(str(error.get("desc")))
        if member in message:
            return message[member]
