"""Looks at a ring beside the device that serves it: what its driver says there, and whether it changes what it said."""

import contextlib
from typing import Any, NamedTuple

from host.ring.ring_service import RingService
from protocol.packed_ring import AVAIL_USED
from scripts.check.driver.observation import DATA_MAX
from scripts.check.recording.offered_chain import OfferedChain, read_offered


class ChainText(NamedTuple):
    """A chain as it lies in memory: its descriptors, and what the device can read of it."""

    offered: OfferedChain
    data: bytes

    def difference(self, later: "ChainText") -> str:
        """Return what is another in ``later``, "" for nothing."""
        if later.offered != self.offered:
            before, after = (
                (*one.offered.descriptors, *one.offered.indirect, *one.offered.table) for one in (self, later)
            )
            changed = next((pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]), ("", ""))
            return f"its descriptors, from {changed[0]} to {changed[1]}"
        if later.data != self.data:
            at = next((at for at, (old, new) in enumerate(zip(self.data, later.data, strict=False)) if old != new), 0)
            return f"byte {at} of its buffers, from {self.data[at]:#04x} to {later.data[at]:#04x}"
        return ""


def bare_queue(service: RingService) -> Any:
    """Return the device's half of the ring itself, without what records it or notes its chains."""
    queue: Any = service._ring
    while hasattr(queue, "_queue"):
        queue = queue._queue
    return queue


def read_text(service: RingService, chain: Any) -> ChainText:
    """Return ``chain``, which was taken and not given back, as it lies in memory now."""
    queue = bare_queue(service)
    first = chain.head
    if hasattr(queue, "_slots_of"):
        first = (queue._next_avail - queue._slots_of[chain.head]) % queue._ring.size
    return ChainText(read_offered(queue._ring, first, service._memory.read), read_data(service, chain))


def read_text_at(service: RingService, chain: Any, first: int) -> ChainText:
    """As :func:`read_text`, of a chain whose first descriptor is at ``first``, however many were taken since."""
    return ChainText(read_offered(bare_queue(service)._ring, first, service._memory.read), read_data(service, chain))


def read_data(service: RingService, chain: Any) -> bytes:
    """Return what the device can read of ``chain``, at most DATA_MAX bytes."""
    data = b""
    for address, length in chain.readable:
        with contextlib.suppress(Exception):  # what lies outside of memory is refused elsewhere
            data += service._memory.read(address, min(length, DATA_MAX - len(data)))
    return data


def avail_flags(service: RingService) -> int:
    """Return the driver's word on interrupts: avail.flags, or those of a packed ring's driver event area."""
    ring: Any = bare_queue(service)._ring
    avail = getattr(ring, "avail", None)
    return int(avail[0]) if avail is not None else int(ring.driver_event[0] >> 16)


def has_chain(service: RingService) -> bool:
    """Return whether a chain waits in the ring."""
    queue = bare_queue(service)
    ring = queue._ring
    if hasattr(ring, "avail"):
        return bool(ring.avail[1] != queue.next_avail)
    return bool(ring.halves[8 * queue._next_avail + 7] & AVAIL_USED == queue._avail_bits)
