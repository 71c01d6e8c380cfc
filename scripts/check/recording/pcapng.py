"""A recording as a capture file for Wireshark.

Source: the pcapng draft (draft-ietf-opsawg-pcapng): a section header, one interface, an enhanced packet for each
record. The link type is LINKTYPE_USER0, for :mod:`scripts.check.recording.dissector`. A packet begins with
:data:`PREFIX`; a message goes on with its bytes as they were on the wire, all else with a text.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

from protocol.recording.lines import Cut
from protocol.recording.records import (
    Header,
    Noise,
    Record,
    RecordedDescriptor,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.vhost_user import HEADER
from protocol.vhost_user_codec import Channel
from scripts.check.recording.listing import Listing
from scripts.check.recording.words import is_from_back_end, say_file

LINKTYPE_USER0: Final = 147
PREFIX_VERSION: Final = 1

PREFIX: Final = struct.Struct("<BBBBI")
"""Version of this form, kind, stream or ring, number of descriptors that came, session."""

CHAIN: Final = struct.Struct("<HHH")
"""After the prefix of a chain: head, number of descriptors of the ring, number of those of the indirect table; each is
:data:`ROW`."""

ROW: Final = struct.Struct("<QIHHH")
"""One descriptor: address, length, flags, place, link."""

USED: Final = struct.Struct("<HIBqqqq")
"""After the prefix of a used chain: head, length, call; old, new, event, flags as in a recording."""

KIND_MESSAGE: Final = 0
KIND_NOISE: Final = 1
KIND_CHAIN: Final = 2
KIND_USED: Final = 3
KIND_TEXT: Final = 4

STREAMS: Final = tuple(Channel)
"""The number of a stream is its place here."""

_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_OPTION_NAME: Final = 2
_OPTION_RESOLUTION: Final = 9
_OPTION_FLAGS: Final = 2
_INBOUND: Final = 1
_OUTBOUND: Final = 2


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<HH", code, len(data)) + _padded(data) for code, data in options) + bytes(4)


def _rows(descriptors: Iterable[RecordedDescriptor]) -> bytes:
    return b"".join(ROW.pack(each.address, each.length, each.flags, each.place, each.link) for each in descriptors)


class PcapngWriter:
    """Writes records with ``write``, those of session ``session`` alone if it is given."""

    def __init__(self, write: Callable[[bytes], object], session: int | None = None) -> None:
        self._write = write
        self._only = session
        self._listing = Listing()
        self._to_wall_clock = 0.0
        write(_block(_SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)))
        options = _options((_OPTION_NAME, b"vhost-user"), (_OPTION_RESOLUTION, bytes([6])))
        write(_block(_INTERFACE, struct.pack("<HHI", LINKTYPE_USER0, 0, 0) + options))

    def add(self, record: Record | Cut) -> None:
        """Write one packet, or none for what has no time or belongs to another session."""
        if isinstance(record, Cut):
            return
        if isinstance(record, Header):
            self._to_wall_clock = record.time - record.t
            self._listing = self._listing.anew()
            return
        if self._only is not None and record.session not in (self._only, 0):
            return
        self._packet(record.t, self._body(record), _flags_of(record))

    def _packet(self, t: float, data: bytes, flags: int) -> None:
        microseconds = max(0, round((t + self._to_wall_clock) * 1_000_000))
        head = struct.pack("<IIIII", 0, microseconds >> 32, microseconds & 0xFFFFFFFF, len(data), len(data))
        options = _options((_OPTION_FLAGS, struct.pack("<I", flags)))
        self._write(_block(_ENHANCED_PACKET, head + _padded(data) + options))

    def _body(self, record: Record) -> bytes:
        assert not isinstance(record, Header)
        match record:
            case WireMessage():
                stream = STREAMS.index(record.stream)
                fields = {"request": record.request, "flags": record.flags, "size": len(record.payload)}
                files = _text(", ".join(map(say_file, record.files)))
                prefix = _prefix(KIND_MESSAGE, stream, record.session, len(record.files))
                return prefix + files + bytes(HEADER.build(fields)) + record.payload
            case Noise():
                return _prefix(KIND_NOISE, STREAMS.index(record.stream), record.session) + record.data
            case TakenChain():
                counts = CHAIN.pack(record.head & 0xFFFF, len(record.descriptors), len(record.indirect))
                rows = _rows(record.descriptors) + _rows(record.indirect)
                return _prefix(KIND_CHAIN, record.ring, record.session) + self._text_of(record) + counts + rows
            case UsedChain():
                position = (record.old, record.new, record.event, record.flags)
                used = USED.pack(record.head & 0xFFFF, record.length, record.call, *position)
                return _prefix(KIND_USED, record.ring, record.session) + self._text_of(record) + used
            case _:
                return _prefix(KIND_TEXT, 0, record.session) + self._text_of(record)

    def _text_of(self, record: Record) -> bytes:
        return _text(self._listing.sentence(record))


def _prefix(kind: int, where: int, session: int, files: int = 0) -> bytes:
    return PREFIX.pack(PREFIX_VERSION, kind, where & 0xFF, files & 0xFF, session & 0xFFFFFFFF)


def _text(text: str) -> bytes:
    # A length in two bytes, then the text.
    data = text.encode(errors="backslashreplace")[:0xFFFF]
    return struct.pack("<H", len(data)) + data


def _flags_of(record: Record) -> int:
    if isinstance(record, WireMessage | Noise):
        return _OUTBOUND if is_from_back_end(record.stream) else _INBOUND
    return _INBOUND if isinstance(record, TakenChain) else _OUTBOUND if isinstance(record, UsedChain) else 0
