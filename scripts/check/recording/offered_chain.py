"""The descriptors of a chain that a driver has offered, as a recording has them: read again from ring and memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

from protocol.packed_ring import PACKED_DESCRIPTOR, PackedRing
from protocol.recording.records import RecordedDescriptor
from protocol.ring_formats import Ring
from protocol.split_ring import DESCRIPTOR, SplitRing
from protocol.virtio_ring import DESCRIPTOR_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT

ReadGuest = Callable[[int, int], bytes]
"""Returns bytes at a guest address, fewer where there is no memory."""


class OfferedChain(NamedTuple):
    """The ``descriptors`` of the ring, and those in the indirect table at ``table`` (guest address and bytes)."""

    descriptors: list[RecordedDescriptor]
    table: tuple[int, ...] = ()
    indirect: tuple[RecordedDescriptor, ...] = ()


def read_offered(ring: Ring, first: int, read_guest: ReadGuest) -> OfferedChain:
    """Return the chain that begins at place ``first``. What a driver must not make is read as far as it goes."""
    is_split = isinstance(ring, SplitRing)
    read: Callable[[Any, int], tuple[int, int, int, int]] = (
        SplitRing.read_descriptor if is_split else PackedRing.read_descriptor  # not what a recorded ring makes of it
    )
    found: list[RecordedDescriptor] = []
    at = first
    while len(found) < ring.size and at < ring.size:
        address, length, third, fourth = read(ring, at)
        flags, link = (third, fourth) if is_split else (fourth, third)
        found.append(RecordedDescriptor(at, address, length, flags, link))
        if not flags & VIRTQ_DESC_F_NEXT:
            break
        at = link if is_split else (at + 1) % ring.size
    for one in found:
        if one.flags & VIRTQ_DESC_F_INDIRECT:
            data = read_guest(one.address, min(one.length, ring.size * DESCRIPTOR_SIZE))
            return OfferedChain(found, (one.address, one.length), _read_table(data, is_split=is_split))
    return OfferedChain(found)


def _read_table(data: bytes, *, is_split: bool) -> tuple[RecordedDescriptor, ...]:
    whole = len(data) // DESCRIPTOR_SIZE * DESCRIPTOR_SIZE
    if is_split:
        rows = (DESCRIPTOR.unpack_from(data, at) for at in range(0, whole, DESCRIPTOR_SIZE))
        return tuple(RecordedDescriptor(place, *row) for place, row in enumerate(rows))
    packed = (PACKED_DESCRIPTOR.unpack_from(data, at) for at in range(0, whole, DESCRIPTOR_SIZE))
    return tuple(
        RecordedDescriptor(place, address, length, flags, link)
        for place, (address, length, link, flags) in enumerate(packed)
    )
