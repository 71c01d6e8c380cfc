"""What a recording of vhost-user sessions consists of: what went over the sockets and through the rings.

In every record ``t`` is CLOCK_MONOTONIC in seconds, and ``session`` the number of the session in its run of the
recording program, 0 for none. Addresses are guest addresses, sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, TypeAlias

from protocol.vhost_user_codec import Channel

BACK_END: Final = "back-end"
FRONT_END: Final = "front-end"
PROXY: Final = "proxy"
"""Who wrote a recording: a side of its sessions, or a program between both."""

DISCARDED: Final = "discarded"
"""The fate of a range whose pages were given back. Any other fate is the reason why it was kept."""

TAKEN_OVER: Final = "taken_over"
"""The event of a remark: another process goes on with the session. The message that the one before had in hand comes
again, its answers may be missing, and its rings start anew."""

KICK: Final = "kick"
CALL: Final = "call"
ERR: Final = "err"
"""The three signals of a queue."""


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
