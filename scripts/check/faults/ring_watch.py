"""Watches the rings of a session in the memory that its front-end has shared, without writing to it.

The parts of a ring are copied by ``pread``: a mapping of a file that its owner shortens is a SIGBUS.
"""

import os
from typing import Final

from protocol.memory import FileRange
from protocol.packed_ring import PackedRing
from protocol.split_ring import SplitRing
from scripts.check.faults.chain_count import ChainCount, PackedChainCount, SplitChainCount
from scripts.check.faults.passing.open_file import OpenFile
from scripts.check.faults.session_facts import RingPlace, SessionFacts

_POSITION: Final = 0xFFFF


class RingWatch:
    """Counts the chains of each queue since its ring started."""

    def __init__(self, facts: SessionFacts[OpenFile]) -> None:
        self._facts = facts
        self._counts: dict[int, SplitChainCount | PackedChainCount] = {}

    def restart(self, queue: int) -> None:
        """Count from zero: the ring of ``queue`` was started or stopped."""
        self._counts.pop(queue, None)

    def observe(self, queue: int) -> ChainCount | None:
        """Look at the ring of ``queue`` and return its count, None if it cannot be read, or was not set up."""
        place = self._facts.ring(queue)
        if place is None:
            return None
        try:
            # In this order: a chain that is seen as used was seen as available.
            descriptors, driver, device = (self._read(part) for part in place.parts)
        except OSError:
            return None
        ring = place.layout.open(descriptors, driver, device)
        count = self._counts.get(queue) or self._counts.setdefault(queue, _new_count(place))
        match ring, count:
            case (SplitRing(), SplitChainCount()):
                count.observe(ring)
            case (PackedRing(), PackedChainCount()):
                count.observe(ring)
        ring.release()
        return count

    def _read(self, part: FileRange) -> memoryview:
        data = bytearray(part.length)
        if os.preadv(self._facts.files[part.region].fd, [data], part.offset) != part.length:
            raise OSError("the file ends within a ring")
        return memoryview(data)


def _new_count(place: RingPlace) -> SplitChainCount | PackedChainCount:
    return PackedChainCount(place.base & _POSITION) if place.layout.packed else SplitChainCount()
