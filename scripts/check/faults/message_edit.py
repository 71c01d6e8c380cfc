"""A message while rules edit it: its bytes, its files, how often and in which pieces it arrives."""

from random import Random
from typing import Final

from protocol.vhost_user import HEADER_SIZE
from protocol.vhost_user_payloads import VRING_ADDRESS, VRING_FILE, VRING_STATE
from scripts.check.faults.fault_script import (
    AddFile,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    Edit,
    Field,
    Number,
    Pass,
    Reorder,
    Set,
    Split,
    Spurious,
    Truncate,
    Withhold,
)
from scripts.check.faults.passing.message_pieces import NO_FILE, Piece, payload_form

_HEADER_FIELDS: Final = {Field.REQUEST: 0, Field.FLAGS: 4, Field.SIZE: 8}


class MessageEdit:
    """One message of ``piece``, edited by :meth:`apply` one fault after another.

    A fault that the message has no place for (a byte past its end, an index of a request without one) leaves it as it
    is.
    """

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.data = bytearray(piece.data)
        self.files = list(piece.files)
        self.copies = 1
        self.cuts: tuple[int, ...] = ()
        self.delay = 0.0
        self.reorders = False

    def apply(self, edit: Edit, random: Random) -> None:
        """Carry out ``edit``."""
        match edit:
            case Drop():
                self.copies = 0
            case Delay(seconds):
                self.delay += seconds
            case Duplicate(copies):
                self.copies += copies if self.copies else 0
            case Split(at):
                self.cuts = tuple(cut for cut in at if cut < len(self.data))
            case Reorder():
                self.reorders = True
            case Truncate(length):
                del self.data[HEADER_SIZE + length :]
            case Corrupt():
                self._corrupt(edit, random)
            case Set():
                self._set(edit, random)
            case Withhold(position):
                self._withhold(position)
            case AddFile(kind):
                self.files.append(kind)
            case Pass() | Spurious():
                pass  # of what comes around the message, and of notifications

    def pieces(self) -> list[bytes]:
        """Return the message as it is cut."""
        ends = [*self.cuts, len(self.data)]
        return [bytes(self.data[start:end]) for start, end in zip([0, *self.cuts], ends, strict=True) if start < end]

    def _corrupt(self, edit: Corrupt, random: Random) -> None:
        start = 0 if edit.in_header else HEADER_SIZE
        length = HEADER_SIZE if edit.in_header else len(self.data) - HEADER_SIZE
        if length <= 0:
            return
        offset = edit.offset if isinstance(edit.offset, int) else random.randrange(length)
        value = edit.value if isinstance(edit.value, int) else random.randrange(256)
        if offset < length:
            self.data[start + offset] = value

    def _set(self, edit: Set, random: Random) -> None:
        place = self._place(edit.field)
        if place is None or place[0] + place[1] > len(self.data):
            return
        start, width = place
        field = slice(start, start + width)
        before = int.from_bytes(self.data[field], "little")
        number = _drawn(edit.number, width, random) + (before if edit.is_relative else 0)
        if edit.field is Field.INDEX and width == 8:  # of a vring file: whether it has a descriptor stays
            number = number & ~NO_FILE | before & NO_FILE
        self.data[field] = (number % (1 << 8 * width)).to_bytes(width, "little")

    def _place(self, field: Field) -> tuple[int, int] | None:
        # Offset and width in the message.
        if field in _HEADER_FIELDS:
            return _HEADER_FIELDS[field], 4
        form = payload_form(self._piece.channel, self._piece.request)
        if field is Field.VALUE:
            return HEADER_SIZE, 8
        if field is Field.NUM:
            return (HEADER_SIZE + 4, 4) if form is VRING_STATE else None
        if form is VRING_FILE:
            return HEADER_SIZE, 8
        return (HEADER_SIZE, 4) if form in (VRING_STATE, VRING_ADDRESS) else None

    def _withhold(self, position: int | None) -> None:
        if position is None:
            self.files.clear()
        elif position < len(self.files):
            del self.files[position]


def _drawn(number: Number, width: int, random: Random) -> int:
    return number if isinstance(number, int) else random.getrandbits(8 * width)
