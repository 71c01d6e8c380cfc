"""The lines of a recording: records to and from text.

A recording is a text file of one JSON object a line, so that a person can look into it and a file that ends in the
middle of a line, because its writer was killed, is readable up to there. A run of a program begins with a header line
(``format``, ``version``, ``t``, ``time``, ``program``); a second run appends. All other lines are records, whose kind
is ``record``. Bytes are hexadecimal. A line of an unknown kind is skipped: a later program may add kinds and fields to
the same version.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from protocol.errors import BalloonError
from protocol.recording.records import (
    FileFact,
    Header,
    Lost,
    Noise,
    PutBack,
    RangeFate,
    Record,
    RecordedDescriptor,
    Remark,
    RingBroken,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.vhost_user_codec import Channel

FORMAT: Final = "vhost-user-balloon recording"
VERSION: Final = 1


class RecordingError(BalloonError):
    """A file is not a recording, or a line of it is damaged."""


class Cut(NamedTuple):
    """In place of a line that is not whole: its writer was killed."""

    line: int


class _Form(NamedTuple):
    """How one field becomes JSON and back. ``read`` raises ValueError, TypeError or KeyError for anything else."""

    write: Callable[[Any], object]
    read: Callable[[Any], object]


def _same(value: Any) -> Any:
    return value


def _typed(*types: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) not in types:
            raise TypeError(value)
        return value

    return read


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise TypeError(value)
        return value

    return read


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.fabs(value) < _SECONDS_MAX:  # not a number is below nothing
        raise TypeError(value)
    seconds: float = value
    return seconds


def _rows(row: Callable[..., object]) -> Callable[[Any], object]:
    def read(value: Any) -> object:
        return tuple(row(*each) for each in _typed(list)(value))

    return read


def _descriptor(place: Any, address: Any, length: Any, flags: Any, link: Any) -> RecordedDescriptor:
    return RecordedDescriptor(_u16(place), _u64(address), _u32(length), _u16(flags), _u16(link))


_SECONDS_MAX: Final = 1e11
"""Some thousand years."""

_u16, _u32, _u64 = (_whole(0, (1 << bits) - 1) for bits in (16, 32, 64))

_any = _whole(-(1 << 63), (1 << 63) - 1)

_INT: Final = _Form(_same, _any)
_U32: Final = _Form(_same, _u32)
_BOOL: Final = _Form(_same, _typed(bool))
_TEXT: Final = _Form(_same, _typed(str))
_SECONDS: Final = _Form(lambda value: round(value, 6), _seconds)
_BYTES: Final = _Form(bytes.hex, bytes.fromhex)
_STREAM: Final = _Form(lambda value: value.value, Channel)
_DESCRIPTORS: Final = _Form(_same, _rows(_descriptor))
_RANGES: Final = _Form(
    _same,
    _rows(lambda address, length, fate: RangeFate(_u64(address), _u64(length), _typed(str)(fate))),
)
_FILES: Final = _Form(_same, _rows(lambda kind, size: FileFact(_typed(str)(kind), _any(size))))
_TABLE: Final = _Form(_same, lambda value: tuple(map(_u64, _typed(list)(value))))
_FIELDS: Final = _Form(dict, _typed(dict))

_FORM_OF_FIELD: Final[dict[str, _Form]] = {
    **dict.fromkeys(("t", "time", "seconds"), _SECONDS),
    **dict.fromkeys(("session", "pid", "flags", "ring", "size", "base", "head", "left_out", "ranges_left_out"), _INT),
    **dict.fromkeys(("request", "length"), _U32),
    **dict.fromkeys(("old", "new", "event", "count"), _INT),
    **dict.fromkeys(("packed", "event_idx", "indirect_desc", "in_order", "held", "call", "full"), _BOOL),
    **dict.fromkeys(("program", "side", "reason", "queue", "what", "note"), _TEXT),
    **dict.fromkeys(("payload", "data"), _BYTES),
    **dict.fromkeys(("descriptors", "indirect"), _DESCRIPTORS),
    "stream": _STREAM,
    "files": _FILES,
    "table": _TABLE,
    "ranges": _RANGES,
    "fields": _FIELDS,
}

_KINDS: Final[dict[str, type[Record]]] = {
    kind.KIND: kind
    for kind in (
        *(Header, SessionBegin, SessionEnd, WireMessage, Noise, RingStart, RingStop, RingBroken),
        *(Signal, TakenChain, UsedChain, PutBack, Remark, Lost),
    )
}


def _forms_of(kind: type[Record]) -> dict[str, _Form]:
    forms = {name: _FORM_OF_FIELD[name] for name in kind.__dataclass_fields__ if name != "KIND"}
    return forms | ({"event": _TEXT} if kind is Remark else {"flags": _U32} if kind is WireMessage else {})


_FORMS: Final = {kind: _forms_of(kind) for kind in _KINDS.values()}


def build_line(record: Record) -> str:
    """Return ``record`` as one line of ASCII text, with its line feed."""
    fields: dict[str, object] = {"format": FORMAT, "version": VERSION} if isinstance(record, Header) else {}
    forms = _FORMS[type(record)]
    fields["t"] = forms["t"].write(record.t)
    if not isinstance(record, Header):
        fields |= {"session": record.session, "record": record.KIND}
    fields |= {name: form.write(getattr(record, name)) for name, form in forms.items() if name not in fields}
    return json.dumps(fields, separators=(",", ":")) + "\n"


def parse_record(line: bytes) -> Record | None:
    """Return the record of one line, None if it is of an unknown kind.

    Raises:
        RecordingError: the line is damaged.
    """
    try:
        return _parse_line(_typed(dict)(json.loads(line)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordingError("a line is damaged") from error


def _parse_line(fields: Mapping[str, Any]) -> Record | None:
    # Raises ValueError, TypeError or KeyError for a damaged record.
    if "format" in fields:
        if fields["format"] != FORMAT:
            raise RecordingError("not a recording")
        if fields.get("version") != VERSION:
            raise RecordingError(f"a recording of version {fields.get('version')}, and this program reads {VERSION}")
        kind: type[Record] | None = Header
    else:
        kind = _KINDS.get(_typed(str)(fields["record"]))
    if kind is None:
        return None
    values: dict[str, Any] = {name: form.read(fields[name]) for name, form in _FORMS[kind].items() if name in fields}
    return kind(**values)


def read_records(lines: Iterable[bytes]) -> Iterator[Record | Cut]:
    """Yield the records of a recording line by line, and a :class:`Cut` for a last line of a run that is not whole.

    Raises:
        RecordingError: the first line is not a header, or another line is damaged.
    """
    cut: Cut | None = None
    empty = True
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            record = _parse_line(_typed(dict)(fields))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if empty:
                raise RecordingError("not a recording") from error
            if cut is not None:
                raise RecordingError(f"line {cut.line} is damaged") from error
            cut = Cut(number)
            continue
        if empty and not isinstance(record, Header):
            raise RecordingError("not a recording")
        empty = False
        if cut is not None:
            if not isinstance(record, Header):
                raise RecordingError(f"line {cut.line} is damaged")
            yield cut
            cut = None
        if record is not None:
            yield record
    if empty:
        raise RecordingError("empty")
    if cut is not None:
        yield cut
