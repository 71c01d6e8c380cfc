"""A split queue's region of the inflight file, step by step.

Source: vhost-user specification, "Inflight I/O tracking", "For split virtqueue". See :mod:`host.inflight.inflight`.
"""

from typing import Final

from host.inflight.inflight import (
    COUNTER_MASK,
    IN_FLIGHT_MAX,
    SPLIT_ENTRY,
    SPLIT_HEADER,
    U16,
    VERSION,
    VERSION_AT,
    Region,
    check_header,
    find_marked,
)
from host.virtqueue.virtqueue import Chain
from protocol.errors import VirtqueueError
from protocol.split_ring import SplitRing

_LAST_BATCH_AT: Final = 12
_USED_AT: Final = 14


class SplitTracker:
    """The region of a split ring. ``used`` is the 16-bit used index that the ring has now."""

    def __init__(self, region: Region, entries: int, used: int) -> None:
        self._region = region
        self._entries = entries
        self._used = used
        self._counter = 1
        self._last_batch = 0
        self._taken: list[tuple[int, int]] = []

    def begin(self) -> None:
        """Write a region without a chain in flight."""
        self._region.write(VERSION_AT, bytes(2))  # a region found half written is uninitialised
        self._region.write(SPLIT_HEADER.size, bytes(self._entries * SPLIT_ENTRY.size))
        self._region.write(0, SPLIT_HEADER.pack(0, VERSION, self._entries, 0, self._used))

    def recover(self, ring: SplitRing) -> None:
        """Take over the region that a predecessor left.

        Raises:
            VirtqueueError: the region is invalid, or its chains are not those that the ring offers from its used index.
        """
        _, version, entries, last_batch, used = SPLIT_HEADER.unpack(self._region.read(0, SPLIT_HEADER.size))
        check_header(version, entries, self._entries)
        data = self._region.read(SPLIT_HEADER.size, self._entries * SPLIT_ENTRY.size)
        found = {head: _entry(data, head)[2] for head in find_marked(data, SPLIT_ENTRY.size)}
        # Chains used since ``used_idx`` was last written: the ring has them back, only their marks are left.
        for head in self._follow(data, last_batch, min(self._used - used & 0xFFFF, IN_FLIGHT_MAX)):
            if found.pop(head, None) is not None:
                self._region.write(self._at(head), b"\0")
        in_order = sorted(found, key=found.__getitem__)
        if in_order != [ring.avail[2 + (self._used + i) % ring.size] for i in range(len(in_order))]:
            raise VirtqueueError("the inflight file and the ring disagree about what is in flight")
        self._last_batch = last_batch
        self._counter = max(found.values(), default=0) + 1 & COUNTER_MASK
        self._taken = [(head, found[head]) for head in in_order]
        while self._taken:  # the newest first, so that the rest always equals what the ring offers
            self.untake()
        self._region.write(_USED_AT, U16.pack(self._used))

    def _follow(self, data: bytes, head: int, count: int) -> list[int]:
        heads: list[int] = []
        while True:
            if head >= self._entries:
                raise VirtqueueError("the inflight region points outside itself")
            if len(heads) == count:
                return heads
            heads.append(head)
            head = _entry(data, head)[1]

    @staticmethod
    def _at(head: int) -> int:
        return SPLIT_HEADER.size + head * SPLIT_ENTRY.size

    def take(self, chain: Chain) -> None:
        """Note that ``chain`` was taken. Raises :class:`VirtqueueError` where the region has no room for it."""
        if chain.head >= self._entries:
            raise VirtqueueError(f"descriptor {chain.head} has no place in an inflight file of {self._entries}")
        self._region.write(self._at(chain.head), SPLIT_ENTRY.pack(1, 0, self._counter))
        self._taken.append((chain.head, self._counter))
        self._counter = self._counter + 1 & COUNTER_MASK

    def untake(self) -> None:
        """Note that the chain taken last was put back."""
        head, _ = self._taken.pop()
        self._region.write(self._at(head), b"\0")

    def finish(self) -> None:
        """Note that the chain taken first is about to be given back."""
        head, counter = self._taken[0]
        self._region.write(self._at(head), SPLIT_ENTRY.pack(1, self._last_batch, counter))
        self._region.write(_LAST_BATCH_AT, U16.pack(head))
        self._last_batch = head

    def finished(self) -> None:
        """Note that the ring has that chain back."""
        head, _ = self._taken.pop(0)
        self._used = self._used + 1 & 0xFFFF
        self._region.write(self._at(head), b"\0")
        self._region.write(_USED_AT, U16.pack(self._used))


def _entry(data: bytes, head: int) -> tuple[int, int, int]:
    mark, following, counter = SPLIT_ENTRY.unpack_from(data, head * SPLIT_ENTRY.size)
    return mark, following, counter
