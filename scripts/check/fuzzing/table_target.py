"""Fuzz target: an indirect table of any content and length, against a second, slower reader of it.

Input: a byte of choices (bit 0 packed, bit 1 a table longer than the input, bit 2 bytes that are no whole descriptor),
a ring size, then the table.
"""

import struct
from typing import Final

from host.virtqueue.virtqueue import INDIRECT_MAX, Buffer, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VirtqueueError
from protocol.packed_ring import FRESH_BASE, VIRTQ_DESC_F_AVAIL, PackedRing
from protocol.ring_formats import RingLayout
from protocol.split_ring import DESCRIPTOR, Descriptor
from protocol.virtio_ring import DESCRIPTOR_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
from scripts.check.fuzzing.byte_source import ByteSource, must

_ADDRESS: Final = 0x7000_0000
_PACKED, _LONGER, _RAGGED = 1, 2, 4


def indirect_table(data: bytes) -> None:
    """A table gives the buffers that the text's rules give, or a VirtqueueError where they give none."""
    source = ByteSource(data)
    choices, number = source.number(), source.number()
    packed, size = bool(choices & _PACKED), 1 << number % 12
    table = source.rest()
    if not choices & _RAGGED:
        table = table[: len(table) // DESCRIPTOR_SIZE * DESCRIPTOR_SIZE]
    if choices & _LONGER:
        table = table.ljust(DESCRIPTOR_SIZE * (INDIRECT_MAX + (number & 1)), b"\0")
    reads: list[Buffer] = []

    def read_guest(address: int, length: int) -> bytes:
        reads.append((address, length))
        return table

    layout = RingLayout(size, packed)
    memory = memoryview(bytearray(layout.bytes))
    descriptor, driver, device = (memory[offset:] for offset in layout.offsets)
    ring = layout.open(descriptor, driver, device)
    if isinstance(ring, PackedRing):
        ring.write_descriptor(0, _ADDRESS, len(table), 5)
        ring.halves[7] = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_INDIRECT
    else:
        ring.write_descriptor(0, Descriptor(_ADDRESS, len(table), VIRTQ_DESC_F_INDIRECT, 0))
        ring.avail[1] = 1
    features = RingFeatures(event_idx=False, indirect_desc=True, packed=packed)
    queue = open_virtqueue(ring, FRESH_BASE if packed else 0, features, read_guest)
    longest = max(size, INDIRECT_MAX)
    count = len(table) // DESCRIPTOR_SIZE
    right = None
    if not len(table) % DESCRIPTOR_SIZE and 1 <= count <= longest:
        right = _packed_buffers(table) if packed else _split_buffers(table)
    try:
        chain = queue.pop()
    except VirtqueueError:
        must(right is None, "a table is refused that breaks no rule")
        return
    assert chain is not None
    must(right is not None, "a table is taken that breaks a rule")
    must((chain.readable, chain.writable) == right, "buffers other than the table's")
    must(reads == [(_ADDRESS, len(table))], "the table was not read once and whole")


def _split_buffers(table: bytes) -> tuple[list[Buffer], list[Buffer]] | None:
    # virtio 1.2, 2.7.5.3: a list inside the table that begins with its first descriptor. None where it breaks a rule.
    seen: set[int] = set()
    order: list[tuple[Buffer, bool]] = []
    index = 0
    while True:
        if index in seen or DESCRIPTOR_SIZE * (index + 1) > len(table):
            return None
        seen.add(index)
        address, length, flags, following = struct.unpack_from("<QIHH", table, DESCRIPTOR_SIZE * index)
        if flags & VIRTQ_DESC_F_INDIRECT:
            return None
        order.append(((address, length), bool(flags & VIRTQ_DESC_F_WRITE)))
        if not flags & VIRTQ_DESC_F_NEXT:
            return _in_order(order)
        index = following


def _packed_buffers(table: bytes) -> tuple[list[Buffer], list[Buffer]] | None:
    # virtio 1.2, 2.8.7: one descriptor after the other, of whose flags WRITE alone counts.
    return _in_order(
        [((address, length), bool(flags & VIRTQ_DESC_F_WRITE)) for address, length, _, flags in _unpacked(table)]
    )


def _unpacked(table: bytes) -> list[tuple[int, int, int, int]]:
    return [DESCRIPTOR.unpack_from(table, at) for at in range(0, len(table), DESCRIPTOR_SIZE)]


def _in_order(order: list[tuple[Buffer, bool]]) -> tuple[list[Buffer], list[Buffer]] | None:
    directions = [writable for _, writable in order]
    if directions != sorted(directions):
        return None
    return [buffer for buffer, writable in order if not writable], [buffer for buffer, writable in order if writable]
