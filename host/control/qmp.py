"""QMP, the QEMU machine protocol, from the server's side: what a client's bytes ask for, and what answers look like.

Source: QEMU's "QEMU Machine Protocol Specification". Its errors have a class, which programs look at, and a
description, which people do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from host.control.json_stream import JsonError, JsonStream
from protocol.errors import BalloonError

NEGOTIATE: Final = "qmp_capabilities"
"""The command that has to come first; this server has no capability to enable."""

_MEMBERS: Final = ("execute", "arguments", "id")
_SHOWN: Final = 60
_KINDS: Final[Mapping[type, str]] = {int: "an integer", str: "a string", dict: "an object"}


class ErrorClass(Enum):
    """The classes of errors that the protocol has, and that are of use here."""

    GENERIC_ERROR = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"


class QmpError(BalloonError):
    """A command that is answered with an error."""

    def __init__(self, text: str, error_class: ErrorClass = ErrorClass.GENERIC_ERROR) -> None:
        super().__init__(text)
        self.error_class = error_class


class Arguments:
    """The arguments of one command: each is taken once and has to be of the right type."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = dict(members)

    def integer(self, name: str) -> int:
        """Take a required integer. Raises :class:`QmpError`."""
        return int(self._required(name, int))

    def text(self, name: str) -> str:
        """Take a required string. Raises :class:`QmpError`."""
        return str(self._required(name, str))

    def anything(self, name: str) -> Any:
        """Take a required argument of whatever type. Raises :class:`QmpError`."""
        if name not in self._members:
            given = f" ({', '.join(map(shown, self._members))} given)" if self._members else ""
            raise QmpError(f"parameter '{name}' is missing{given}")
        return self._members.pop(name)

    def optional_integer(self, name: str) -> int | None:
        """Take an integer or, if it is not given, None. Raises :class:`QmpError`."""
        return self.integer(name) if name in self._members else None

    def optional_text(self, name: str) -> str | None:
        """Take a string or, if it is not given, None. Raises :class:`QmpError`."""
        return self.text(name) if name in self._members else None

    def end(self) -> None:
        """Raise :class:`QmpError` if an argument was given that nobody has taken."""
        for name in self._members:
            raise QmpError(f"no parameter {shown(name)} here")

    def _required(self, name: str, kind: type) -> Any:
        value = self.anything(name)
        if type(value) is not kind:  # a bool is no integer here
            raise QmpError(f"parameter '{name}' has to be {_KINDS[kind]}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command to be carried out. ``reply`` is what every answer to it contains: the client's ``id``, or nothing."""

    name: str
    arguments: Arguments
    reply: Mapping[str, Any] = field(default_factory=dict)

    def success(self, value: object) -> bytes:
        """Return the answer of a command that was carried out."""
        return build_line({"return": value, **self.reply})

    def failure(self, error: QmpError) -> bytes:
        """Return the answer of a command that was not."""
        return build_error(error, self.reply)


class QmpSession:
    """One client, from its greeting on. Feed it bytes; it gives requests to carry out and answers to send, in order."""

    def __init__(self) -> None:
        self._stream = JsonStream()
        self.negotiated = False
        """Whether the client is through with capabilities; events are for such clients only."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the client."""
        self._stream.feed(data)

    def next_step(self) -> Request | bytes | None:
        """Return the next command, or the finished answer to what is none, or None until more bytes have come.

        Raises:
            FramingError: the client cannot be talked with any longer.
        """
        try:
            message = self._stream.next_object()
        except JsonError as error:
            return build_error(QmpError(str(error)), {})
        if message is None:
            return None
        reply = {"id": message["id"]} if "id" in message else {}
        try:
            return self._judge(message, reply)
        except QmpError as error:
            return build_error(error, reply)

    def _judge(self, message: Mapping[str, Any], reply: Mapping[str, Any]) -> Request | bytes:
        name, arguments = message.get("execute"), message.get("arguments", {})
        for member in message:
            if member not in _MEMBERS:
                raise QmpError(f"no member {shown(member)} in a command")
        if not isinstance(name, str):
            raise QmpError("a command needs a member 'execute', which is a string")
        if not isinstance(arguments, dict):
            raise QmpError("the member 'arguments' has to be an object")
        if (name == NEGOTIATE) is self.negotiated:
            why = "capabilities were negotiated before" if self.negotiated else f"'{NEGOTIATE}' has to come first"
            raise QmpError(why, ErrorClass.COMMAND_NOT_FOUND)
        request = Request(name=name, arguments=Arguments(arguments), reply=reply)
        if self.negotiated:
            return request
        if arguments.get("enable", []) != [] or arguments.keys() - {"enable"}:
            raise QmpError("there are no capabilities to enable")
        self.negotiated = True
        return request.success({})


def build_greeting(version: Mapping[str, Any]) -> bytes:
    """Return what a server says first; ``version`` is as in :func:`build_version`."""
    return build_line({"QMP": {"version": version, "capabilities": []}})


def build_version(text: str, package: str) -> dict[str, Any]:
    """Return what ``query-version`` answers: the numbers of the version ``text`` (zeros if it has none), where clients
    look for QEMU's, and the ``package``, which tells that this is not QEMU."""
    numbers = [int(part) if part.isdecimal() else 0 for part in [*text.split("."), "0", "0"][:3]]
    return {"qemu": dict(zip(("major", "minor", "micro"), numbers, strict=True)), "package": package}


def build_event(name: str, data: Mapping[str, Any], nanoseconds: int) -> bytes:
    """Return the event ``name`` as of ``nanoseconds`` since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest // 1000}
    return build_line({"event": name, "data": data, "timestamp": timestamp})


def build_line(message: Mapping[str, Any]) -> bytes:
    """Return one message as a line; clients read lines although they need not send them."""
    return json.dumps(message).encode() + b"\r\n"


def build_error(error: QmpError, reply: Mapping[str, Any]) -> bytes:
    """Return an error as a line; ``reply`` holds the ``id`` of the command that it answers, if it has one."""
    return build_line({"error": {"class": error.error_class.value, "desc": str(error)}, **reply})


def shown(name: str) -> str:
    """Return a name that somebody sent as it may stand in one line: quoted, plain ASCII, not too long."""
    return ascii(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
