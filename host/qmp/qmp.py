"""QMP, the QEMU machine protocol, on the server's side: parses requests and builds answers and events.

Source: QEMU's "QEMU Machine Protocol Specification". An error has a class for programs and a
description for people.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from host.qmp.json_stream import JsonError, JsonStream
from host.qmp.negotiation import NEGOTIATE
from protocol.errors import BalloonError

INTEGER_LEAST: Final = -(1 << 63)
INTEGER_MOST: Final = (1 << 64) - 1

_MEMBERS: Final = ("execute", "arguments", "id")
_SHOWN: Final = 60
_KINDS: Final[Mapping[type, str]] = {int: "an integer", str: "a string", dict: "an object", bool: "true or false"}


class ErrorClass(Enum):
    """The error classes of the protocol that this server uses."""

    GENERIC_ERROR = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"


class QmpError(BalloonError):
    """An error with which a command is answered."""

    def __init__(self, text: str, error_class: ErrorClass = ErrorClass.GENERIC_ERROR) -> None:
        super().__init__(text)
        self.error_class = error_class


class Arguments:
    """The arguments of one command. Each is taken once, with its type checked."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = dict(members)

    @property
    def members(self) -> Mapping[str, Any]:
        """Those that were not taken yet."""
        return self._members

    def integer(self, name: str) -> int:
        """Take a required integer, which has at most 64 bits as in QEMU. Raises :class:`QmpError`."""
        value = int(self._required(name, int))
        if not INTEGER_LEAST <= value <= INTEGER_MOST:
            raise QmpError(f"parameter '{name}' has to be an integer of at most 64 bits")
        return value

    def text(self, name: str) -> str:
        """Take a required string. Raises :class:`QmpError`."""
        return str(self._required(name, str))

    def anything(self, name: str) -> Any:
        """Take a required argument of any type. Raises :class:`QmpError`."""
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

    def optional_boolean(self, name: str) -> bool | None:
        """Take a boolean or, if it is not given, None. Raises :class:`QmpError`."""
        return bool(self._required(name, bool)) if name in self._members else None

    def end(self) -> None:
        """Raise :class:`QmpError` if an argument was given that the command does not have."""
        for name in self._members:
            raise QmpError(f"unexpected parameter {shown(name)}")

    def _required(self, name: str, kind: type) -> Any:
        value = self.anything(name)
        if type(value) is not kind:  # isinstance() takes a bool for an integer
            raise QmpError(f"parameter '{name}' has to be {_KINDS[kind]}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command to be carried out. ``reply`` holds the members that its answer repeats: the client's ``id``, if
    any."""

    name: str
    arguments: Arguments
    reply: Mapping[str, Any] = field(default_factory=dict)

    def success(self, value: object) -> bytes:
        """Return the answer to a command that returns ``value``."""
        return build_line({"return": value, **self.reply})

    def failure(self, error: QmpError) -> bytes:
        """Return the answer to a command that failed."""
        return build_error(error, self.reply)


class QmpSession:
    """One client after the greeting. It is fed bytes and returns, in order, requests to carry out and answers to
    send."""

    def __init__(self) -> None:
        self._stream = JsonStream()
        self.negotiated = False
        """Whether the client has negotiated capabilities; only then it is sent events."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the client."""
        self._stream.feed(data)

    def next_step(self) -> Request | bytes | None:
        """Return the next command, or the answer to an invalid one, or None if more bytes are needed.

        Raises:
            FramingError: the stream cannot be parsed any further.
        """
        try:
            message = self._stream.next_object()
        except JsonError as error:
            return build_error(QmpError(str(error)), {})
        if message is None:
            return None
        reply = {"id": message["id"]} if "id" in message else {}
        try:
            return self._parse_command(message, reply)
        except QmpError as error:
            return build_error(error, reply)

    def _parse_command(self, message: Mapping[str, Any], reply: Mapping[str, Any]) -> Request | bytes:
        name, arguments = message.get("execute"), message.get("arguments", {})
        for member in message:
            if member not in _MEMBERS:
                raise QmpError(f"unexpected member {shown(member)} in a command")
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
    """Return the greeting; ``version`` is a value of :func:`build_version`."""
    return build_line({"QMP": {"version": version, "capabilities": []}})


def build_version(text: str, package: str) -> dict[str, Any]:
    """Return the answer to ``query-version``: the numbers of the version ``text`` (zeros if it has none) in the member
    ``qemu``, where clients expect them, and the ``package``, which says that this is not QEMU."""
    numbers = [int(part) if part.isdecimal() else 0 for part in [*text.split("."), "0", "0"][:3]]
    return {"qemu": dict(zip(("major", "minor", "micro"), numbers, strict=True)), "package": package}


def build_event(name: str, data: Mapping[str, Any], nanoseconds: int) -> bytes:
    """Return the event ``name`` as of ``nanoseconds`` since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest // 1000}
    return build_line({"event": name, "data": data, "timestamp": timestamp})


def build_line(message: Mapping[str, Any]) -> bytes:
    """Return one message as a line."""
    return json.dumps(message).encode() + b"\r\n"


def build_error(error: QmpError, reply: Mapping[str, Any]) -> bytes:
    """Return an error as a line; ``reply`` holds the ``id`` of the command that it answers, if it has one."""
    return build_line({"error": {"class": error.error_class.value, "desc": str(error)}, **reply})


def shown(name: str) -> str:
    """Return a name from a client as error messages show it: quoted, in ASCII, at most 60 characters of it."""
    return ascii(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
