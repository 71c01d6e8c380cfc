"""The split ring's fast codec, byte for byte against a declaration of the same structures."""

from typing import Any

import pytest
from construct import Array, Construct, Int16ul, Int32ul, Int64ul, Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import VirtqueueError
from protocol.split_ring import DESCRIPTOR, Descriptor, SplitRing
from protocol.virtio_ring import avail_ring_bytes, descriptor_table_bytes, used_ring_bytes

# The three structures as virtio 1.2 declares them (2.7.5, 2.7.6, 2.7.8), written down independently of the fast codec.
VIRTQ_DESC = Struct("addr" / Int64ul, "len" / Int32ul, "flags" / Int16ul, "next" / Int16ul)
VIRTQ_USED_ELEM = Struct("id" / Int32ul, "len" / Int32ul)


def virtq_avail(size: int) -> "Construct[Any, Any]":
    """Return ``struct virtq_avail`` for a ring of ``size``."""
    return Struct("flags" / Int16ul, "idx" / Int16ul, "ring" / Array(size, Int16ul), "used_event" / Int16ul)


def virtq_used(size: int) -> "Construct[Any, Any]":
    """Return ``struct virtq_used`` for a ring of ``size``."""
    return Struct("flags" / Int16ul, "idx" / Int16ul, "ring" / Array(size, VIRTQ_USED_ELEM), "avail_event" / Int16ul)


U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SIZES = st.integers(0, 15).map(lambda exponent: 1 << exponent)
DESCRIPTORS = st.builds(Descriptor, U64, U32, U16, U16)


def new_ring(size: int, slack: int = 0, fill: int = 0) -> tuple[SplitRing, bytearray, bytearray, bytearray]:
    """Return a ring and the memory of its three parts, each ``slack`` bytes longer than need be."""
    desc = bytearray([fill]) * (descriptor_table_bytes(size) + slack)
    avail = bytearray([fill]) * (avail_ring_bytes(size) + slack)
    used = bytearray([fill]) * (used_ring_bytes(size) + slack)
    return SplitRing(size, memoryview(desc), memoryview(avail), memoryview(used)), desc, avail, used


@pytest.mark.parametrize("size", [1 << exponent for exponent in range(16)])
def test_part_sizes_are_those_of_the_text_and_of_the_declaration(size: int) -> None:
    # virtio 1.2, 2.7: 16 * size, 6 + 2 * size, 6 + 8 * size.
    assert descriptor_table_bytes(size) == 16 * size == Array(size, VIRTQ_DESC).sizeof()
    assert avail_ring_bytes(size) == 6 + 2 * size == virtq_avail(size).sizeof()
    assert used_ring_bytes(size) == 6 + 8 * size == virtq_used(size).sizeof()


@given(descriptor=DESCRIPTORS)
def test_descriptor_is_packed_as_declared(descriptor: Descriptor) -> None:
    address, length, flags, following = descriptor
    declared = VIRTQ_DESC.build({"addr": address, "len": length, "flags": flags, "next": following})
    assert DESCRIPTOR.pack(*descriptor) == declared
    assert DESCRIPTOR.unpack(declared) == descriptor


@given(size=SIZES, descriptor=DESCRIPTORS, data=st.data())
def test_descriptor_is_stored_in_its_own_16_bytes(size: int, descriptor: Descriptor, data: st.DataObject) -> None:
    ring, desc, _, _ = new_ring(size, fill=0xEE)
    index = data.draw(st.integers(0, size - 1))
    ring.write_descriptor(index, descriptor)
    assert ring.read_descriptor(index) == descriptor
    fields = VIRTQ_DESC.parse(bytes(desc[16 * index : 16 * index + 16]))
    assert (fields.addr, fields.len, fields.flags, fields.next) == descriptor
    desc[16 * index : 16 * index + 16] = b"\xee" * 16
    assert desc == b"\xee" * (16 * size)


@given(size=SIZES, flags=U16, idx=U16, used_event=U16, heads=st.dictionaries(U16, U16, max_size=8))
@settings(max_examples=60)
def test_available_ring_is_laid_out_as_declared(
    size: int, flags: int, idx: int, used_event: int, heads: dict[int, int]
) -> None:
    ring, _, avail, _ = new_ring(size)
    entries = [0] * size
    ring.avail[0], ring.avail[1] = flags, idx
    for slot, head in heads.items():
        entries[slot % size] = ring.avail[2 + slot % size] = head
    ring.avail[ring.used_event_at] = used_event
    declared = {"flags": flags, "idx": idx, "ring": entries, "used_event": used_event}
    assert bytes(avail) == virtq_avail(size).build(declared)


@given(size=SIZES, flags=U16, idx=U16, avail_event=U16, elements=st.dictionaries(U16, st.tuples(U32, U32), max_size=8))
@settings(max_examples=30)
def test_used_ring_is_laid_out_as_declared(
    size: int, flags: int, idx: int, avail_event: int, elements: dict[int, tuple[int, int]]
) -> None:
    ring, _, _, used = new_ring(size)
    entries = [{"id": 0, "len": 0} for _ in range(size)]
    for slot, (head, length) in elements.items():
        entries[slot % size] = {"id": head, "len": length}
        ring.used_elements[1 + 2 * (slot % size)] = head
        ring.used_elements[2 + 2 * (slot % size)] = length
    ring.used[0], ring.used[1] = flags, idx
    ring.used[ring.avail_event_at] = avail_event
    declared = {"flags": flags, "idx": idx, "ring": entries, "avail_event": avail_event}
    assert bytes(used) == virtq_used(size).build(declared)


def test_ring_takes_no_more_of_its_memory_than_it_needs() -> None:
    ring, _, _, _ = new_ring(4, slack=32)
    parts = (ring.desc, ring.avail, ring.used, ring.used_elements)
    assert [view.nbytes for view in parts] == [64, 14, 38, 36]


def test_released_ring_lets_go_of_its_memory() -> None:
    ring, desc, avail, used = new_ring(4)
    ring.release()
    for memory in (desc, avail, used):
        memory.clear()  # a bytearray refuses to be resized while a view of it lives
    with pytest.raises(ValueError, match="released"):
        ring.read_descriptor(0)


@pytest.mark.parametrize("size", [0, 3, 32769])
def test_ring_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(VirtqueueError, match=f"queue size {size} "):
        SplitRing(size, memoryview(b""), memoryview(b""), memoryview(b""))
