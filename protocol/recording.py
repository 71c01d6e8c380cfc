"""A recording of vhost-user sessions: what went over the sockets and through the rings, as records and lines of text.

A recording is a text file of one JSON object a line, so that a person can look into it and a file that ends in the
middle of a line, because its writer was killed, is readable up to there. A run of a program begins with a header line
(``format``, ``version``, ``t``, ``time``, ``program``); a second run appends. All other lines are records: ``record``
is the kind, ``t`` is CLOCK_MONOTONIC in seconds, ``session`` the number of the session in its run, 0 for none. Bytes
are hexadecimal, addresses and sizes are integers in bytes. A line of an unknown kind is skipped: a later version of
the same number may add kinds and fields.

What a session was like is worked out from its records elsewhere; here is the form alone.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from protocol.errors import BalloonError
from protocol.vhost_user_codec import Channel

FORMAT: Final = "vhost-user-balloon recording"
VERSION: Final = 1

BACK_END: Final = "back-end"
FRONT_END: Final = "front-end"
"""The side of a session that wrote its recording."""

DISCARDED: Final = "discarded"
"""The fate of a range whose pages were given back. Any other fate is the reason why it was kept."""

KICK: Final = "kick"
CALL: Final = "call"
ERR: Final = "err"
"""The three signals of a queue."""


class RecordingError(BalloonError):
    """A file is not a recording, or a line of it is damaged."""


class FileFact(NamedTuple):
    """A descriptor that came with a message: what it is (``memfd``, ``tmpfs file``, ``eventfd``, ...) and, of a file,
    its bytes; -1 where it has no size."""

    kind: str
    size: int = -1


class RecordedDescriptor(NamedTuple):
    """A descriptor as it was read: its place in the ring or table, its fields. ``link`` is ``next`` in the split format
    and the buffer id in the packed one."""

    place: int
    address: int
    length: int
    flags: int
    link: int


class RangeFate(NamedTuple):
    """What became of ``length`` bytes at guest ``address``: :data:`DISCARDED`, or why they were kept."""

    address: int
    length: int
    fate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The begin of a run: ``t`` on the monotonic and ``time`` on the wall clock are the same instant, in seconds."""

    t: float
    time: float
    program: str
    KIND: ClassVar[str] = "header"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBegin:
    """A front-end connected. ``pid`` is the peer's process, 0 if unknown, ``side`` who records."""

    t: float
    session: int
    pid: int
    side: str
    KIND: ClassVar[str] = "begin"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnd:
    """The session is over."""

    t: float
    session: int
    reason: str
    KIND: ClassVar[str] = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireMessage:
    """One whole message of one of the four streams, valid or not."""

    t: float
    session: int
    stream: Channel
    request: int
    flags: int
    payload: bytes
    files: tuple[FileFact, ...] = ()
    KIND: ClassVar[str] = "message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Bytes of a stream that are not a message: a header that is none, or the first part of a message."""

    t: float
    session: int
    stream: Channel
    data: bytes
    files: tuple[FileFact, ...] = ()
    KIND: ClassVar[str] = "noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStart:
    """A ring is served from now on. ``queue`` is the value of a BalloonQueue, "" for a queue that no numbering
    knows."""

    t: float
    session: int
    ring: int
    queue: str
    size: int
    packed: bool
    base: int
    event_idx: bool
    indirect_desc: bool
    in_order: bool
    KIND: ClassVar[str] = "ring-start"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStop:
    """A ring is no longer served; ``base`` is where it would go on."""

    t: float
    session: int
    ring: int
    base: int
    KIND: ClassVar[str] = "ring-stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingBroken:
    """The driver broke a rule of a ring, or the ring cannot be served for another reason."""

    t: float
    session: int
    ring: int
    reason: str
    KIND: ClassVar[str] = "ring-broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A kick was taken from a queue's descriptor, or a call or an error was signalled on one."""

    t: float
    session: int
    ring: int
    what: str
    KIND: ClassVar[str] = "signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenChain:
    """A chain that was taken from a ring, or offered on it where the front-end records.

    ``descriptors`` are those of the ring, ``indirect`` those of the table at ``table`` (address and bytes); of both
    together ``left_out`` more were not recorded. ``ranges`` says what became of each range; ``ranges_left_out`` more of
    them were not recorded. ``held`` says that the device keeps the chain until it wants a new one. ``note`` is what
    the chain said, in words. ``t`` is when it was taken and ``seconds`` what its handling took.
    """

    t: float
    session: int
    ring: int
    queue: str
    head: int
    descriptors: tuple[RecordedDescriptor, ...]
    table: tuple[int, ...] = ()
    indirect: tuple[RecordedDescriptor, ...] = ()
    left_out: int = 0
    ranges: tuple[RangeFate, ...] = ()
    ranges_left_out: int = 0
    held: bool = False
    note: str = ""
    seconds: float = 0.0
    KIND: ClassVar[str] = "chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedChain:
    """A chain was given back, with ``length`` bytes written, and whether a call was due.

    ``call`` says what was decided. It follows from ``event`` (the driver's used_event or event word, -1 where it was
    not looked at), ``flags`` (of the available ring, -1 likewise) and the used position before and after (``old``,
    ``new``).
    """

    t: float
    session: int
    ring: int
    head: int
    length: int
    call: bool
    old: int = -1
    new: int = -1
    event: int = -1
    flags: int = -1
    KIND: ClassVar[str] = "used"


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """A chain that was taken and not used is the driver's offer again: the next service of the ring takes it."""

    t: float
    session: int
    ring: int
    head: int
    KIND: ClassVar[str] = "put-back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What the recording side found out: an event by its name, such as ``message_refused``, and its fields."""

    t: float
    session: int
    event: str
    fields: Mapping[str, object]
    KIND: ClassVar[str] = "remark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """``count`` records are missing here: the file took them too slowly, or has reached its limit (``full``)."""

    t: float
    session: int
    count: int
    full: bool = False
    KIND: ClassVar[str] = "lost"


Record: TypeAlias = (
    Header
    | SessionBegin
    | SessionEnd
    | WireMessage
    | Noise
    | RingStart
    | RingStop
    | RingBroken
    | Signal
    | TakenChain
    | UsedChain
    | PutBack
    | Remark
    | Lost
)


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


def _rows(row: Callable[..., object]) -> Callable[[Any], object]:
    def read(value: Any) -> object:
        return tuple(row(*each) for each in _typed(list)(value))

    return read


def _numbers(row: Callable[..., object]) -> Callable[..., object]:
    return lambda *numbers: row(*map(_typed(int), numbers))


_INT: Final = _Form(_same, _typed(int))
_BOOL: Final = _Form(_same, _typed(bool))
_TEXT: Final = _Form(_same, _typed(str))
_SECONDS: Final = _Form(lambda value: round(value, 6), _typed(int, float))
_BYTES: Final = _Form(bytes.hex, bytes.fromhex)
_STREAM: Final = _Form(lambda value: value.value, Channel)
_DESCRIPTORS: Final = _Form(_same, _rows(_numbers(RecordedDescriptor)))
_RANGES: Final = _Form(
    _same,
    _rows(lambda address, length, fate: RangeFate(_typed(int)(address), _typed(int)(length), _typed(str)(fate))),
)
_FILES: Final = _Form(_same, _rows(lambda kind, size: FileFact(_typed(str)(kind), _typed(int)(size))))
_TABLE: Final = _Form(_same, lambda value: tuple(map(_typed(int), _typed(list)(value))))
_FIELDS: Final = _Form(dict, _typed(dict))

_FORM_OF_FIELD: Final[dict[str, _Form]] = {
    **dict.fromkeys(("t", "time", "seconds"), _SECONDS),
    **dict.fromkeys(
        ("session", "pid", "request", "flags", "ring", "size", "base", "head", "left_out", "ranges_left_out"), _INT
    ),
    **dict.fromkeys(("length", "old", "new", "event", "count"), _INT),
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
    return forms | ({"event": _TEXT} if kind is Remark else {})


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
