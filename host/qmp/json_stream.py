"""Splits a byte stream into JSON objects, with or without white space between them.

Not every QMP client sends a newline after an object (``qemu.qmp`` does not), so the end of an object is found by
counting brackets. As in QEMU, invalid JSON is one error, and parsing resumes at the next end of a line or the next
opening brace.

Source: RFC 8259; QEMU's "QEMU Machine Protocol Specification", 2.1 "General definitions" and 2.6 "Forcing the JSON
parser into known-good state".
"""

import json
import re
from typing import Any, Final

from protocol.errors import FramingError, PeerError

TEXT_MAX: Final = 64 << 10
"""Most bytes of one object. The longest command of a well-behaved client has a few hundred."""
NESTING_MAX: Final = 32
"""Most brackets that may be open at the same time."""

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# 0xFF is never part of UTF-8: a client sends it to reset the parser from any state.
_STRUCTURE: Final = re.compile(rb'["{}\[\]\xff]')
_STRING_END: Final = re.compile(rb'["\\\x00-\x1f\xff]')
_RESUME: Final = re.compile(rb"[{\r\n]")
_CLOSING: Final = {ord("{"): ord("}"), ord("["): ord("]")}
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")


class JsonError(PeerError):
    """Input other than a JSON object. The stream continues after it."""


class JsonStream:
    """Is fed bytes and returns objects. It cannot be used after a :class:`FramingError`."""

    def __init__(self, text_max: int = TEXT_MAX) -> None:
        """Take objects of at most ``text_max`` bytes."""
        self._text_max = text_max
        self._buffer = bytearray()
        self._at = 0
        self._closing = bytearray()
        self._in_string = False
        self._escaped = False
        self._skipping = False

    @property
    def is_idle(self) -> bool:
        """Whether all that was fed has been returned: no object has begun."""
        return not self._buffer and not self._skipping

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next_object(self) -> dict[str, Any] | None:
        """Return the next object, or None if more bytes are needed.

        Raises:
            JsonError: the input is not an object; the next call continues after it.
            FramingError: an object that is too long or nested too deeply.
        """
        while True:
            if self._skipping and not self._skip():
                return None
            if not self._closing and not self._begin():
                return None
            text = self._cut()
            if text is None:
                return None
            return _parse(text)

    def _skip(self) -> bool:
        # Skips to where an object may begin after an error.
        found = _RESUME.search(self._buffer)
        del self._buffer[: len(self._buffer) if found is None else found.start()]
        self._skipping = found is None
        return not self._skipping

    def _begin(self) -> bool:
        # Between objects only white space and an opening brace are valid.
        space = _SPACE.match(self._buffer)
        assert space is not None  # it matches the empty string too
        del self._buffer[: space.end()]
        if not self._buffer:
            return False
        first = self._buffer[0]
        if first not in _CLOSING:
            raise self._error(1, f"a JSON object begins with a brace, not with {chr(first)!a}")
        self._closing.append(_CLOSING[first])
        self._at = 1
        return True

    def _cut(self) -> bytes | None:
        # Continues in the object that was begun. Each byte is examined once, however the object arrives.
        while True:
            if self._escaped:
                if self._at == len(self._buffer):
                    return None
                self._at += self._buffer[self._at] in (_QUOTE, _BACKSLASH)
                self._escaped = False
            found = (_STRING_END if self._in_string else _STRUCTURE).search(self._buffer, self._at)
            end = len(self._buffer) if found is None else found.end()
            if end > self._text_max:
                raise FramingError(f"a JSON object of more than {self._text_max} bytes")
            self._at = end
            if found is None:
                return None
            character = self._buffer[end - 1]
            if self._in_string:
                self._step_in_string(character)
            elif self._step(character):
                text = bytes(self._buffer[: self._at])
                del self._buffer[: self._at]
                return text

    def _step_in_string(self, character: int) -> None:
        if character == _QUOTE:
            self._in_string = False
        elif character == _BACKSLASH:
            self._escaped = True
        else:
            raise self._error(self._at - 1, f"{chr(character)!a} inside a JSON string")

    def _step(self, character: int) -> bool:
        # Outside of strings. Returns whether the object is complete.
        if character == _QUOTE:
            self._in_string = True
        elif character in _CLOSING:
            if len(self._closing) == NESTING_MAX:
                raise FramingError(f"JSON nested deeper than {NESTING_MAX}")
            self._closing.append(_CLOSING[character])
        elif character == self._closing[-1]:
            self._closing.pop()
        else:
            raise self._error(self._at, f"{chr(character)!a} where it is not allowed")
        return not self._closing

    def _error(self, bad: int, reason: str) -> JsonError:
        # Discards the object that was begun and the first ``bad`` bytes.
        del self._buffer[:bad]
        self._closing.clear()
        self._in_string = False
        self._skipping = True
        return JsonError(f"not JSON: {reason}")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except ValueError as error:
        raise JsonError(f"not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise JsonError("a JSON object is needed, not an array")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member comes twice")
    return members


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # the interpreter's limit; its message would mean nothing to a client
        raise ValueError(f"an integer of {len(text)} digits") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number beyond what a double can hold")
    return value
