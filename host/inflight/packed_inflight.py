"""A packed queue's region of the inflight file, step by step.

The region's entries are a free list of their own, because the ring's descriptors are overwritten by used ones. Each
step changes a copy of the list's head and of the used position first and makes it valid last ("old" is the valid one).

Source: vhost-user specification, "Inflight I/O tracking", "For packed virtqueue". See :mod:`host.inflight.inflight`.
"""

from array import array
from dataclasses import dataclass
from struct import Struct
from typing import Final

from host.inflight.inflight import (
    COUNTER_MASK,
    PACKED_ENTRY,
    PACKED_HEADER,
    U16,
    VERSION,
    VERSION_AT,
    Region,
    check_header,
    find_marked,
)
from host.virtqueue.virtqueue import Chain
from protocol.errors import VirtqueueError
from protocol.packed_ring import AVAIL_USED, WRAP_COUNTER, PackedRing, available_bits
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE

_STATE: Final = Struct("<HHHHBB")
_STATE_AT: Final = 12
_NEXT_AT: Final = 2


@dataclass(frozen=True, slots=True)
class _TakenSlots:
    first: int
    last: int
    slots: int


class PackedTracker:
    """The region of a packed ring of ``ring_size`` descriptors that goes on at the used position ``position``: the
    descriptor in bits 0 to 14, its wrap counter in bit 15."""

    def __init__(self, region: Region, entries: int, ring_size: int, position: int) -> None:
        self._region = region
        self._entries = entries
        self._ring_size = ring_size
        self._used, self._wrap = position & (WRAP_COUNTER - 1), position >> 15
        self._free = 0
        self._next = [*range(1, entries), 0]
        self._counter = 1
        self._taken: list[_TakenSlots] = []

    @property
    def position(self) -> int:
        """The used position as it is now."""
        return self._used | self._wrap << 15

    def begin(self) -> None:
        """Write a region without a chain in flight."""
        self._region.write(VERSION_AT, bytes(2))
        self._region.write(PACKED_HEADER.size, _free_entries(self._entries))
        header = (0, VERSION, self._entries, *self._state(self._free, self._used, self._wrap))
        self._region.write(0, PACKED_HEADER.pack(*header))

    def recover(self, ring: PackedRing) -> None:
        """Take over the region that a predecessor left; ``position`` then is where the ring goes on.

        Raises:
            VirtqueueError: the region is invalid.
        """
        fields = PACKED_HEADER.unpack(self._region.read(0, PACKED_HEADER.size))
        _, version, entries, free, old_free, used, old_used, wrap, old_wrap = fields
        check_header(version, entries, self._entries)
        if max(free, old_free) >= self._entries or max(used, old_used) >= self._ring_size or (wrap | old_wrap) > 1:
            raise VirtqueueError("the inflight region points outside the ring")
        if (used, wrap) != (old_used, old_wrap) and not _is_available(ring, old_used, old_wrap):
            old_free, old_used, old_wrap = free, used, wrap  # the ring has that chain back
        self._free, self._used, self._wrap = old_free, old_used, old_wrap
        data = self._region.read(PACKED_HEADER.size, self._entries * PACKED_ENTRY.size)
        marked = [entry for entry in find_marked(data, PACKED_ENTRY.size) if entry != self._free]
        table = {entry: PACKED_ENTRY.unpack_from(data, entry * PACKED_ENTRY.size) for entry in marked}
        self._next = memoryview(data).cast("H")[_NEXT_AT // 2 :: PACKED_ENTRY.size // 2].tolist()
        if max(self._next) >= self._entries:
            raise VirtqueueError("the inflight region's free list leaves the region")
        # A mark on the first free entry was made for a chain whose taking, or whose giving back, was not finished.
        self._region.write(self._at(self._free), b"\0")
        found = sorted((fields[4], entry) for entry, fields in table.items())
        self._taken = [self._slots_from(i, table[i][2], table[i][3]) for _, i in found]
        if sum(taken.slots for taken in self._taken) > self._ring_size:
            raise VirtqueueError("more is in flight than the ring has slots")
        self._counter = found[-1][0] + 1 & COUNTER_MASK if found else 1
        while self._taken:
            self.untake()
        self._write_state(self._free, self._used, self._wrap)

    def _slots_from(self, first: int, last: int, slots: int) -> _TakenSlots:
        if last >= self._entries or not 1 <= slots <= self._ring_size:
            raise VirtqueueError(f"the inflight region's entry {first} is invalid")
        return _TakenSlots(first, last, slots)

    @staticmethod
    def _at(entry: int) -> int:
        return PACKED_HEADER.size + entry * PACKED_ENTRY.size

    def _state(self, free: int, used: int, wrap: int) -> tuple[int, int, int, int, int, int]:
        return free, self._free, used, self._used, wrap, self._wrap

    def _write_state(self, free: int, used: int, wrap: int) -> None:
        self._region.write(_STATE_AT, _STATE.pack(*self._state(free, used, wrap)))

    def take(self, chain: Chain) -> None:
        """Note that ``chain`` was taken. Raises :class:`VirtqueueError` where the region has no room for it."""
        descriptors = _descriptors(chain)
        slots = len(descriptors)
        if sum(taken.slots for taken in self._taken) + slots > self._entries:
            raise VirtqueueError(f"more than {self._entries} descriptors in flight")
        linked = [self._free]
        while len(linked) < slots:
            linked.append(self._next[linked[-1]])
        first, last = linked[0], linked[-1]
        records = [
            PACKED_ENTRY.pack(
                int(entry == first),
                self._next[entry],
                last if entry == first else 0,
                slots if entry == first else 0,
                self._counter if entry == first else 0,
                chain.head,
                flags,
                length,
                address,
            )
            for entry, (address, length, flags) in zip(linked, descriptors, strict=True)
        ]
        for entry, record in reversed(list(zip(linked, records, strict=True))):
            self._region.write(self._at(entry), record)  # the first, which makes the chain be in flight, comes last
        self._counter = self._counter + 1 & COUNTER_MASK
        self._taken.append(_TakenSlots(first, last, slots))
        self._free = self._next[last]
        self._write_state(self._free, self._used, self._wrap)

    def untake(self) -> None:
        """Note that the chain taken last was put back."""
        taken = self._taken.pop()
        self._link(taken.last, self._free)
        self._free = taken.first
        self._write_state(self._free, self._used, self._wrap)
        self._region.write(self._at(taken.first), b"\0")

    def _link(self, entry: int, following: int) -> None:
        self._next[entry] = following
        self._region.write(self._at(entry) + _NEXT_AT, U16.pack(following))

    def finish(self) -> None:
        """Note that the chain taken first is about to be given back."""
        taken = self._taken[0]
        self._link(taken.last, self._free)
        self._write_state(taken.first, *self._after(taken))

    def _after(self, taken: _TakenSlots) -> tuple[int, int]:
        used = self._used + taken.slots
        return (used, self._wrap) if used < self._ring_size else (used - self._ring_size, self._wrap ^ 1)

    def finished(self) -> None:
        """Note that the ring has that chain back."""
        taken = self._taken.pop(0)
        self._free = taken.first
        self._used, self._wrap = self._after(taken)
        self._region.write(self._at(taken.first), b"\0")
        self._write_state(self._free, self._used, self._wrap)


def _free_entries(entries: int) -> bytes:
    table = bytearray(entries * PACKED_ENTRY.size)
    with memoryview(table).cast("H") as halves:
        halves[_NEXT_AT // 2 :: PACKED_ENTRY.size // 2] = array("H", [*range(1, entries), 0])
    return bytes(table)


def _is_available(ring: PackedRing, slot: int, wrap: int) -> bool:
    return ring.halves[8 * slot + 7] & AVAIL_USED == available_bits(bool(wrap))


def _descriptors(chain: Chain) -> list[tuple[int, int, int]]:
    # Address, length and flags of each descriptor in the ring. A table is referred to by one alone (virtio 1.2, 2.8.7).
    if chain.indirect_table is not None:
        return [(*chain.indirect_table, VIRTQ_DESC_F_INDIRECT)]
    found = [(*buffer, VIRTQ_DESC_F_NEXT) for buffer in chain.readable]
    found += [(*buffer, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE) for buffer in chain.writable]
    address, length, flags = found[-1]
    return [*found[:-1], (address, length, flags & ~VIRTQ_DESC_F_NEXT)]
