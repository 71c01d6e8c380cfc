"""The split virtqueue as bytes: the views of its three parts and the descriptor codec.

Source: virtio 1.2, 2.7. Both halves of a ring read and write it through :class:`SplitRing`; which
half may write a field is decided there. The rules of shared memory are those of :mod:`protocol.virtio_ring`.
"""

import struct
from typing import Final, NamedTuple

from protocol.virtio_ring import (
    DESCRIPTOR_SIZE,
    avail_ring_bytes,
    check_queue_size,
    descriptor_table_bytes,
    used_ring_bytes,
)

VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""``le64 addr, le32 len, le16 flags, le16 next`` (virtio 1.2, 2.7.5)."""

assert DESCRIPTOR.size == DESCRIPTOR_SIZE


class Descriptor(NamedTuple):
    """One descriptor: ``length`` bytes at guest address ``address``."""

    address: int
    length: int
    flags: int
    next: int


class SplitRing:
    """Views of the three parts of one split virtqueue.

    ``desc``, ``avail`` and ``used`` are writable byte views of at least :func:`descriptor_table_bytes`,
    :func:`avail_ring_bytes` and :func:`used_ring_bytes`, aligned as virtio 1.2, 2.7 requires.

    Field places inside the 16-bit views: avail is ``flags, idx, ring[size], used_event``; used begins with
    ``flags, idx`` and ends with ``avail_event``; its elements are pairs of 32-bit words after the first word.
    """

    __slots__ = ("avail", "avail_event_at", "desc", "size", "used", "used_elements", "used_event_at")

    def __init__(self, size: int, desc: memoryview, avail: memoryview, used: memoryview) -> None:
        check_queue_size(size)
        self.size = size
        self.desc = desc[: descriptor_table_bytes(size)]
        self.avail = avail[: avail_ring_bytes(size)].cast("H")
        self.used = used[: used_ring_bytes(size)].cast("H")
        self.used_elements = used[: 4 + 8 * size].cast("I")
        self.used_event_at = 2 + size
        self.avail_event_at = 2 + 4 * size

    def read_descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Return one copy of descriptor ``index``: address, length, flags, next."""
        return DESCRIPTOR.unpack_from(self.desc, index * DESCRIPTOR_SIZE)

    def write_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Store descriptor ``index``. Only the driver may, and only while the device cannot reach it."""
        at = index * DESCRIPTOR_SIZE
        self.desc[at : at + DESCRIPTOR_SIZE] = DESCRIPTOR.pack(*descriptor)

    def release(self) -> None:
        """Give up all views, so that the mapping can be closed. The ring cannot be used afterwards."""
        for view in (self.desc, self.avail, self.used, self.used_elements):
            view.release()
