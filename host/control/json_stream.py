"""A stream of JSON objects, cut into objects: back to back, in any pieces, with or without white space between them.

Programs that speak QMP send a newline after each object or none (``qemu.qmp`` sends none), so an end is found by
counting brackets. As in QEMU, what is not JSON costs one complaint, and reading goes on at the next end of a line
or the next opening brace.

Source: RFC 8259; QEMU's "QEMU Machine Protocol Specification", 2.1 "General definitions" and 2.6 "Forcing the JSON
parser into known-good state".
"""

import json
import re
from typing import Any, Final

from protocol.errors import FramingError, PeerError

TEXT_MAX: Final = 64 << 10
"""Bytes of one object with everything in it. The longest command that anybody needs has a few hundred."""
NESTING_MAX: Final = 32
"""Brackets that may be open at the same time."""

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# 0xFF is never part of UTF-8: a client sends it to get out of whatever the parser believes to be in.
_STRUCTURE: Final = re.compile(rb'["{}\[\]\xff]')
_STRING_END: Final = re.compile(rb'["\\\x00-\x1f\xff]')
_RESUME: Final = re.compile(rb"[{\r\n]")
_CLOSING: Final = {ord("{"): ord("}"), ord("["): ord("]")}
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")


class JsonError(PeerError):
    """Something that is no JSON object. The stream is in step again behind it."""


class JsonStream:
    """Takes bytes as they come and gives objects. After a :class:`FramingError` it is of no further use."""

    def __init__(self, text_max: int = TEXT_MAX) -> None:
        """Take objects of at most ``text_max`` bytes."""
        self._text_max = text_max
        self._buffer = bytearray()
        self._at = 0
        self._closing = bytearray()
        self._in_string = False
        self._escaped = False
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next_object(self) -> dict[str, Any] | None:
        """Return the next object, or None until more bytes have come.

        Raises:
            JsonError: there is something else than an object; the next call goes on behind it.
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
        # On to where an object may begin again after a complaint.
        found = _RESUME.search(self._buffer)
        del self._buffer[: len(self._buffer) if found is None else found.start()]
        self._skipping = found is None
        return not self._skipping

    def _begin(self) -> bool:
        # Between objects: the next thing has to be an opening brace.
        space = _SPACE.match(self._buffer)
        assert space is not None  # it matches nothing, too
        del self._buffer[: space.end()]
        if not self._buffer:
            return False
        first = self._buffer[0]
        if first not in _CLOSING:
            raise self._complaint(1, f"a JSON object begins with a brace, not with {chr(first)!a}")
        self._closing.append(_CLOSING[first])
        self._at = 1
        return True

    def _cut(self) -> bytes | None:
        # On through the object that was begun. Each byte is looked at once, however the object arrives.
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
            raise self._complaint(self._at - 1, f"{chr(character)!a} inside a JSON string")

    def _step(self, character: int) -> bool:
        # Outside of strings. Returns whether the object is at its end.
        if character == _QUOTE:
            self._in_string = True
        elif character in _CLOSING:
            if len(self._closing) == NESTING_MAX:
                raise FramingError(f"JSON nested deeper than {NESTING_MAX}")
            self._closing.append(_CLOSING[character])
        elif character == self._closing[-1]:
            self._closing.pop()
        else:
            raise self._complaint(self._at, f"{chr(character)!a} where it cannot be")
        return not self._closing

    def _complaint(self, bad: int, reason: str) -> JsonError:
        # Gives up what was begun; the first ``bad`` bytes are not looked at again.
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
    raise ValueError(f"{name} is no JSON number")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # the interpreter's limit, which is no business of a client's
        raise ValueError(f"an integer of {len(text)} digits") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number beyond what a double can hold")
    return value
