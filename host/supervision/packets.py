"""What the supervisor and a worker say to each other: packets over a SOCK_SEQPACKET pair, each with a kind, the number
of a virtual machine, a body and file descriptors.

A packet that was sent outlives its sender, and packets keep their order. So a worker need not wait for the supervisor
to have read what it journals.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from protocol.errors import BalloonError

PACKET_MAX: Final = 128 << 10
"""Most bytes of a packet. A socket's buffer has room for one of them at least (net.core.wmem_default)."""

FILES_MAX: Final = 250
"""Most descriptors of a packet; the kernel's limit is 253."""

UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, StructError)
"""What reading a document raises that another process has made up."""

_HEADER: Final = Struct("=III")
"""The kind in the lowest byte and the highest bits of the number above it, the machine, the rest of the number."""
_LENGTH: Final = Struct("=I")
_NUMBER_BITS: Final = 56
"""A packet every microsecond for two thousand years: a number that came again would be one that counts already."""


class PacketError(BalloonError):
    """A packet means nothing, or claims what its sender does not have."""


class Kind(IntEnum):
    """The kinds of packets."""

    # From a worker.
    HELLO = 1
    """The worker runs. Body: its process id."""
    PIECE = 2
    """Bytes were seen on the connection, and not taken from it. Body: :class:`Piece`, with its descriptors."""
    TAKEN = 3
    """The bytes of the last piece were taken from the connection."""
    HANDLED = 4
    """All pieces so far were a message that was carried out. Body: the journal (none: as before), the numbers of the
    files that it names, and the reply, with its descriptors. Without a reply it is not answered, else with SENT."""
    JOURNAL = 5
    """The session has changed without a message. Body: as that of HANDLED, without a reply."""
    RECORD = 6
    """The file that notes the chains in flight of a ring that is about to run. Body: the queue's number."""
    EVENTS = 7
    """Lines of the event stream, of any virtual machines."""
    NOTICE = 8
    """What control clients are to be told. Body: a JSON list, the name of the call and its arguments."""
    ANSWER = 9
    """The answer to COMMAND, STATUS, SAMPLES or PING. Body: the number of the question, and the answer."""
    ENDED = 10
    """The session is over, and its end was told. Body: the reason."""
    LEFT = 11
    """The session is between two messages, and nothing of it is in hand: it is to have a worker of its own."""
    PART = 12
    """A part of an answer that is too long for a packet; ANSWER brings the last one. Body: as that of ANSWER."""
    AWAKE = 13
    """The worker does something, for the first time since it answered PING."""
    # From the supervisor.
    ATTACH = 20
    """Serve a new connection, which comes along. Body: the device, as
    :class:`host.configuration.device_options.DeviceOptions` builds it."""
    FILES = 21
    """Files of a journal that will be taken over. Body: their numbers, JSON."""
    TAKE_OVER = 22
    """Serve the session of another worker, whose connection comes along. Body: the device, and :class:`Legacy`."""
    SENT = 23
    """A reply was sent. Body: why not, if it was not."""
    COMMAND = 24
    """Carry out a command. Body: the number of the question, and JSON."""
    STATUS = 25
    """Tell a line about each virtual machine. Body: the number of the question."""
    STOP = 26
    """End all sessions, and then the process."""
    PING = 27
    """Answer. Body: the number of the question."""
    ALONE = 28
    """The worker has one virtual machine alone. Comes before that."""
    SAMPLES = 29
    """Tell what is measured of each virtual machine. Body: the number of the question."""
    RECORDING = 30
    """Record the sessions to come: lines go to the pipe that comes along."""
    SIGNS = 31
    """What the descriptors of front-ends' processes show. Body: a JSON list of pairs, the process's number and
    :class:`host.inhibition.inhibition.Sign`."""


OF_NO_SESSION: Final = frozenset({Kind.HELLO, Kind.EVENTS, Kind.NOTICE, Kind.PART, Kind.ANSWER, Kind.AWAKE})
"""Packets of a worker that another one does not need to go on with a session. They are lost with the supervisor."""

WITH_FILES: Final = frozenset(
    {Kind.PIECE, Kind.HANDLED, Kind.RECORD, Kind.ATTACH, Kind.FILES, Kind.TAKE_OVER, Kind.RECORDING}
)
"""Packets that may have descriptors."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. The receiver owns the descriptors. It is not ``complete`` if some of them found no room there.
    Packets from one sender have the ``number`` 1, 2, ..."""

    kind: Kind
    vm: int = 0
    body: bytes = b""
    fds: tuple[int, ...] = ()
    complete: bool = True
    number: int = 0

    def build(self, number: int = 0) -> bytes:
        """Return its bytes, with this number."""
        number %= 1 << _NUMBER_BITS
        return _HEADER.pack(self.kind | number >> 32 << 8, self.vm, number % (1 << 32)) + self.body


def parse_packet(data: bytes, fds: Sequence[int], *, complete: bool = True) -> Packet:
    """Return the packet of these bytes.

    Raises:
        PacketError: they are none.
    """
    try:
        first, vm, number = _HEADER.unpack_from(data)
        kind = Kind(first & 0xFF)
    except (ValueError, StructError) as error:
        raise PacketError("a packet of no kind") from error
    if fds and kind not in WITH_FILES:
        raise PacketError(f"descriptors with a packet of kind {kind}")
    return Packet(kind, vm, data[_HEADER.size :], tuple(fds), complete, first >> 8 << 32 | number)


def answer_packets(number: int, answer: bytes) -> Iterator[Packet]:
    """Yield the packets of the answer to question ``number``."""
    room = PACKET_MAX - _HEADER.size - _LENGTH.size
    for at in range(0, max(1, len(answer)), room):
        kind = Kind.ANSWER if at + room >= len(answer) else Kind.PART
        yield Packet(kind, 0, with_number(number, answer[at : at + room]))


def with_number(number: int, body: bytes) -> bytes:
    """Return a body that begins with a number."""
    return _LENGTH.pack(number) + body


def split_number(body: bytes) -> tuple[int, bytes]:
    """Return the number that a body begins with, and the rest. Raises :class:`PacketError`."""
    if len(body) < _LENGTH.size:
        raise PacketError("a packet is cut short")
    (number,) = _LENGTH.unpack_from(body)
    return number, body[_LENGTH.size :]


def with_length(first: bytes, second: bytes) -> bytes:
    """Return a body of two parts."""
    return with_number(len(first), first + second)


def split_length(body: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a body. Raises :class:`PacketError`."""
    length, rest = split_number(body)
    if len(rest) < length:
        raise PacketError("a packet is cut short")
    return rest[:length], rest[length:]


def with_kept(journal: bytes, kept: set[int], reply: bytes = b"") -> bytes:
    """Return the body of HANDLED or JOURNAL."""
    return with_length(json.dumps(sorted(kept)).encode(), with_length(journal, reply))


def split_kept(body: bytes) -> tuple[bytes, set[int], bytes]:
    """Return the parts of such a body. Raises :class:`PacketError`."""
    kept, rest = split_length(body)
    journal, reply = split_length(rest)
    try:
        numbers = set(json.loads(kept))
    except UNREADABLE as error:
        raise PacketError("the numbers of files cannot be read") from error
    if not all(type(number) is int for number in numbers):
        raise PacketError("the numbers of files are no numbers")
    return journal, numbers, reply


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the connection that belong to a message in hand, with the numbers of their files in the journal.
    ``unfit`` says why a descriptor was not accepted, "" if all were."""

    data: bytes
    files: tuple[int, ...] = ()
    unfit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """What a worker leaves of a session.

    ``pieces`` are those of the message in hand, ``taken`` says that the last of them was taken from the connection.
    ``records`` are the files for rings that the message in hand has started. ``next_file`` is the number of the next
    file.
    """

    journal: bytes
    pieces: tuple[Piece, ...]
    taken: bool
    records: dict[int, int]
    next_file: int

    def build(self) -> bytes:
        """Return its bytes."""
        document = {
            "pieces": [[piece.data.hex(), piece.unfit, *piece.files] for piece in self.pieces],
            "taken": self.taken,
            "records": list(self.records.items()),
            "next_file": self.next_file,
        }
        return with_length(json.dumps(document).encode(), self.journal)


def parse_legacy(body: bytes) -> Legacy:
    """Return what :meth:`Legacy.build` has written."""
    data, journal = split_length(body)
    document: dict[str, Any] = json.loads(data)
    return Legacy(
        journal=journal,
        pieces=tuple(Piece(bytes.fromhex(text), tuple(files), unfit) for text, unfit, *files in document["pieces"]),
        taken=document["taken"],
        records=dict(document["records"]),
        next_file=document["next_file"],
    )
