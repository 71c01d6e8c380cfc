"""The record of a virtual machine, from which another supervisor goes on: in a memory file, so that it outlives its
writer at any moment.

The first page is the head: what the file is, the version, and where the body is that counts. A body is written beside
the one that counts, then eight bytes of the head say that it does. Linux may cut a write of several pages short when
the process is killed, but none within a page (mm/filemap.c, generic_perform_write()).
"""

import json
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from protocol.errors import BalloonError

MAGIC: Final = b"balloon machine\n"
VERSION: Final = 2
"""The version of the record and of the packets that it refers to. The journal in it has a version of its own."""

PAGE: Final = 4096
_HEAD: Final = Struct("<16sII")
_PLACE: Final = Struct("<II")
_LENGTH: Final = Struct("<I")
PLACE_AT: Final = _HEAD.size
"""Where the head says which body counts."""


def build_head() -> bytes:
    """Return the beginning of the file, up to :data:`PLACE_AT`."""
    return _HEAD.pack(MAGIC, VERSION, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a body is: its first page, and its bytes."""

    page: int = 1
    size: int = 0

    @property
    def pages(self) -> int:
        """How many pages it takes."""
        return -(-self.size // PAGE)

    def beside(self, size: int) -> "Place":
        """Return where a body of ``size`` bytes leaves this one whole: before it if there is room."""
        first = Place(1, size)
        return first if first.page + first.pages <= self.page else Place(self.page + self.pages, size)

    def build(self) -> bytes:
        """Return what says so in the head."""
        return _PLACE.pack(self.page, self.size)


def parse_head(data: bytes) -> Place:
    """Return where the body is that counts.

    Raises:
        BalloonError: this is no record, or one of another version.
    """
    if len(data) < PLACE_AT + _PLACE.size or not data.startswith(MAGIC):
        raise BalloonError("what is kept of it cannot be read")
    _, version, _ = _HEAD.unpack_from(data)
    if version != VERSION:
        raise BalloonError(f"what is kept of it has version {version}, not {VERSION}")
    return Place(*_PLACE.unpack_from(data, PLACE_AT))


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """All that is kept of machine ``number`` beside its files.

    ``device`` is the device that its guest finds, in bytes, ``alone`` says that it is to have a worker of its own.
    ``link`` is the way to the worker that served it, and ``packet`` the number of the last packet from there that
    counts in here. ``names`` are the names under which the files of the session are kept, by their numbers. ``kept``
    are the numbers that the journal names. Replies are queued up to the offset ``replies_end`` of their file.
    ``legacy`` is what another worker is given.
    """

    number: int
    device: bytes
    alone: bool
    link: str
    packet: int
    has_begun: bool
    lasts: bool
    kept: frozenset[int]
    names: dict[int, str]
    replies_end: int
    legacy: bytes

    def build(self) -> bytes:
        """Return its bytes."""
        document = {
            "number": self.number,
            "device": self.device.decode(),
            "alone": self.alone,
            "link": self.link,
            "packet": self.packet,
            "has_begun": self.has_begun,
            "lasts": self.lasts,
            "kept": sorted(self.kept),
            "names": list(self.names.items()),
            "replies_end": self.replies_end,
        }
        data = json.dumps(document, separators=(",", ":")).encode()
        return _LENGTH.pack(len(data)) + data + self.legacy


def parse_record(body: bytes) -> VmRecord:
    """Return what :meth:`VmRecord.build` has written.

    Raises:
        BalloonError: it has not.
    """
    try:
        (length,) = _LENGTH.unpack_from(body)
        document: dict[str, Any] = json.loads(body[_LENGTH.size : _LENGTH.size + length])
        document |= {
            "device": document["device"].encode(),
            "kept": frozenset(document["kept"]),
            "names": dict(document["names"]),
        }
        return VmRecord(**document, legacy=body[_LENGTH.size + length :])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StructError) as error:
        raise BalloonError("what is kept of it cannot be read") from error
