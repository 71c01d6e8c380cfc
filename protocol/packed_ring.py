"""The packed virtqueue as bytes: the views of its three parts, the descriptor codec, positions and event words.

Source: virtio 1.2, 2.8. Both halves of a ring read and write it through :class:`PackedRing`; which half may write a
field is decided there. The rules of shared memory are those of :mod:`protocol.virtio_ring`: above all, the flags of a
descriptor are one 16-bit store, made last, and an event area is one 32-bit load or store.

**Positions.** A descriptor's index and the wrap counter of the lap that it belongs to make one 16-bit *position*, the
counter in bit 15: the form that event areas and GET_VRING_BASE have.
"""

import struct
from typing import Final

from protocol.virtio_ring import DESCRIPTOR_SIZE, check_queue_size, descriptor_table_bytes

VIRTQ_DESC_F_AVAIL: Final = 1 << 7
VIRTQ_DESC_F_USED: Final = 1 << 15
AVAIL_USED: Final = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED

RING_EVENT_FLAGS_ENABLE: Final = 0
RING_EVENT_FLAGS_DISABLE: Final = 1
RING_EVENT_FLAGS_DESC: Final = 2

WRAP_COUNTER: Final = 1 << 15
"""The wrap counter's bit in a position."""

FRESH_BASE: Final = WRAP_COUNTER | WRAP_COUNTER << 16
"""Where a ring begins: both sides at descriptor 0, both wrap counters 1 (virtio 1.2, 2.8.1)."""

PACKED_DESCRIPTOR: Final = struct.Struct("<QIHH")
"""``le64 addr, le32 len, le16 id, le16 flags`` (virtio 1.2, 2.8.13)."""

_WITHOUT_FLAGS: Final = struct.Struct("<QIH")

assert PACKED_DESCRIPTOR.size == DESCRIPTOR_SIZE


def available_bits(wrap: bool) -> int:
    """Return the AVAIL and USED bits of a descriptor that was made available in a lap with wrap counter ``wrap``."""
    return VIRTQ_DESC_F_AVAIL if wrap else VIRTQ_DESC_F_USED


def used_bits(wrap: bool) -> int:
    """Return the AVAIL and USED bits of a descriptor that was used in a lap with wrap counter ``wrap``."""
    return AVAIL_USED if wrap else 0


def event_word(position: int, *, event_idx: bool) -> int:
    """Return the content of an event area that asks for a notification once ``position`` is passed, or, without
    EVENT_IDX, for every notification. The position is stored in both cases, for the side that wrote it."""
    return position | (RING_EVENT_FLAGS_DESC if event_idx else RING_EVENT_FLAGS_ENABLE) << 16


def wants_notification(event: int, position: int, moved: int, size: int, *, event_idx: bool) -> bool:
    """Return whether the side that wrote the event word ``event`` must be notified that the other side advanced by
    ``moved`` descriptors to ``position``, in a ring of ``size``.

    Reserved flags, and RING_EVENT_FLAGS_DESC where EVENT_IDX was not negotiated, are taken as
    RING_EVENT_FLAGS_ENABLE: a superfluous notification does no harm (virtio 1.2, 2.8.10), a missing one hangs the
    other side.
    """
    if not moved:
        return False
    flags = event >> 16 & 3
    if flags == RING_EVENT_FLAGS_DISABLE:
        return False
    if flags != RING_EVENT_FLAGS_DESC or not event_idx:
        return True
    # Positions repeat after two laps: count them modulo 2 * size. A notification is due if the event is one of the
    # last `moved` positions.
    distance = _unwrapped(position, size) - _unwrapped(event & 0xFFFF, size) - 1
    return distance % (2 * size) < moved


def _unwrapped(position: int, size: int) -> int:
    # From 0 to 2 * size - 1: the lap with wrap counter 1 comes first.
    return position - WRAP_COUNTER if position & WRAP_COUNTER else position + size


class PackedRing:
    """Views of the three parts of one packed virtqueue: the descriptor ring and both event suppression areas.

    ``desc``, ``driver_event`` and ``device_event`` are writable byte views of at least ``16 * size``, 4 and 4 bytes,
    aligned to 16, 4 and 4.

    Field places: ``halves[8 * index + 6]`` is a descriptor's buffer id, ``halves[8 * index + 7]`` its flags,
    ``words[4 * index + 2]`` its length; an event area is word 0 of its view, position in the lower half.
    """

    __slots__ = ("desc", "device_event", "driver_event", "halves", "size", "words")

    def __init__(self, size: int, desc: memoryview, driver_event: memoryview, device_event: memoryview) -> None:
        check_queue_size(size, packed=True)
        self.size = size
        self.desc = desc[: descriptor_table_bytes(size)]
        self.halves = self.desc.cast("H")
        self.words = self.desc.cast("I")
        self.driver_event = driver_event[:4].cast("I")
        self.device_event = device_event[:4].cast("I")

    def read_descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Return one copy of descriptor ``index``: address, length, buffer id, flags."""
        return PACKED_DESCRIPTOR.unpack_from(self.desc, index * DESCRIPTOR_SIZE)

    def write_descriptor(self, index: int, address: int, length: int, buffer_id: int) -> None:
        """Store everything of descriptor ``index`` but its flags. Only the driver may, while the descriptor is its."""
        at = index * DESCRIPTOR_SIZE
        self.desc[at : at + _WITHOUT_FLAGS.size] = _WITHOUT_FLAGS.pack(address, length, buffer_id)

    def release(self) -> None:
        """Give up all views, so that the mapping can be closed. The ring cannot be used afterwards."""
        for view in (self.halves, self.words, self.desc, self.driver_event, self.device_event):
            view.release()
