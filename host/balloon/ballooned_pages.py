"""Inflated pages that are parts of huge pages: together they may make up a whole one, which can be discarded.

A balloon's message names pages of 4096 bytes, at most 256 of them with Linux, which is half of a huge page of 2 MiB. So
the parts are collected over messages. A page taken out of the balloon is in use, so the device has to learn of it
before its neighbours make the huge page look whole. Only with MUST_TELL_HOST does a driver wait for that (virtio 1.2,
5.5.6.1), so parts are collected only with that feature. The acknowledgement of a page that is taken out while its huge
page is being discarded waits for the end of the discard.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from host.memory.discard_plan import DeviceMemory
from host.virtqueue.virtqueue import Buffer
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import PFN_SHIFT


@dataclass(slots=True)
class BalloonedPages:
    """The parts of huge pages that are in the balloon. Used by the workers of two queues, hence the lock.

    ``_parts`` has, by the guest address of each huge page of which a part is in the balloon, one bit for each part.
    ``_in_hand`` are those that are being discarded.
    """

    _parts: dict[int, int] = field(default_factory=dict)
    _in_hand: set[int] = field(default_factory=set)
    _lock: threading.Condition = field(default_factory=threading.Condition, compare=False, repr=False)

    def inflate(self, pfns: Iterable[int], memory: DeviceMemory) -> list[Buffer]:
        """Note that ``pfns`` are in the balloon now. Return the huge pages that have become whole, which are forgotten:
        the whole page is to be discarded before :meth:`finish`."""
        whole: list[Buffer] = []
        with self._lock:
            for pfn in pfns:
                if (part := _part_of(pfn, memory)) is None:
                    continue
                base, size, bit = part
                bits = self._parts.get(base, 0) | bit
                if bits == (1 << (size >> PFN_SHIFT)) - 1:
                    self._parts.pop(base, None)
                    whole.append((base, size))
                    self._in_hand.add(base)
                else:
                    self._parts[base] = bits
        return whole

    def finish(self) -> None:
        """The discards that :meth:`inflate` has asked for are done."""
        with self._lock:
            self._in_hand.clear()
            self._lock.notify_all()

    def deflate(self, pfns: Iterable[int], memory: DeviceMemory) -> None:
        """Note that ``pfns`` are the guest's again. Returns when none of them is being discarded."""
        parts = [part for pfn in pfns if (part := _part_of(pfn, memory)) is not None]
        with self._lock:
            for base, _, bit in parts:
                if base in self._parts:
                    self._parts[base] &= ~bit
            self._lock.wait_for(lambda: self._in_hand.isdisjoint(base for base, _, _ in parts))

    def forget(self) -> None:
        """Another driver has come: its balloon is empty."""
        with self._lock:
            self._parts.clear()


def _part_of(pfn: int, memory: DeviceMemory) -> tuple[int, int, int] | None:
    # The huge page's guest address and size, and the bit of its part that is page `pfn`.
    address = pfn << PFN_SHIFT
    place = memory.table.translate_guest(address, PAGE_SIZE)
    if place is None or memory.page_sizes[place.region] <= PAGE_SIZE:
        return None
    size = memory.page_sizes[place.region]
    within = place.offset % size
    return address - within, size, 1 << (within >> PFN_SHIFT)
