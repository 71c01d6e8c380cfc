"""A split ring in the memory of the machine, empty unless a case offers a buffer on it, and its event descriptors."""

import os
import struct
from typing import Final

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.split_ring import DESCRIPTOR, Descriptor
from protocol.vhost_user_payloads import VringAddress
from scripts.check.machine.memory_file import RING_STRIDE, RINGS_AT, MemoryFile

GUEST_BASE: Final = 0x1_4000_0000
USER_BASE: Final = 0x7F12_3400_0000
"""Where the memory lies: two addresses that differ, neither of them 0, so that mixing them up is noticed."""

RING_SIZE: Final = 64

_AVAILABLE_AT: Final = 0x80000
_USED_AT: Final = 0xA0000
_DATA_AT: Final = 0xF0000

_INDEX = struct.Struct("<H")


def whole(memory: MemoryFile) -> MemoryRegion:
    """Return the memory as one region."""
    return MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE), size=memory.size, user_address=UserAddress(USER_BASE), mmap_offset=0
    )


class Ring:
    """The driver's side of queue ``index``: ``kick`` and ``call`` are eventfds of ours."""

    def __init__(self, memory: MemoryFile, index: int, size: int = RING_SIZE) -> None:
        self.index = index
        self.size = size
        self.offset = RINGS_AT + index * RING_STRIDE
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._memory = memory

    def address(self, *, flags: int = 0, log: int = 0) -> VringAddress:
        """Return the payload of SET_VRING_ADDR."""
        base = USER_BASE + self.offset
        return VringAddress(
            index=self.index,
            flags=flags,
            descriptor=UserAddress(base),
            available=UserAddress(base + _AVAILABLE_AT),
            used=UserAddress(base + _USED_AT),
            log=log,
        )

    def start_at(self, index: int) -> None:
        """Make the ring look as if ``index`` buffers had been offered and given back."""
        self._memory.write(self.offset + _AVAILABLE_AT, struct.pack("<HH", 0, index))
        self._memory.write(self.offset + _USED_AT, struct.pack("<HH", 0, index))

    def offer(self, base: int = 0) -> None:
        """Offer one readable buffer of 64 zero bytes as the next after ``base``, without a kick."""
        buffer = Descriptor(GUEST_BASE + self.offset + _DATA_AT, 64, 0, 0)
        self._memory.write(self.offset, DESCRIPTOR.pack(*buffer))
        available = self.offset + _AVAILABLE_AT
        self._memory.write(available + 4 + 2 * (base % self.size), _INDEX.pack(0))
        self._memory.write(available + 2, _INDEX.pack((base + 1) % 0x10000))

    def kick_it(self) -> None:
        """Signal the kick descriptor."""
        os.eventfd_write(self.kick, 1)

    def calls(self) -> int:
        """Return how often the back-end has signalled the call descriptor since the last time."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def used_part(self) -> bytes:
        """Return the used ring, which only the device writes."""
        return self._memory.read(self.offset + _USED_AT, 6 + 8 * self.size)

    def close(self) -> None:
        """Close the event descriptors."""
        os.close(self.kick)
        os.close(self.call)
