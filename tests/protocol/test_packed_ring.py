"""The packed ring's fast codec, byte for byte against a declaration of the same structures, and its event words."""

import pytest
from construct import Array, Int16ul, Int32ul, Int64ul, Struct
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import VirtqueueError
from protocol.packed_ring import (
    AVAIL_USED,
    FRESH_BASE,
    PACKED_DESCRIPTOR,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    VIRTQ_DESC_F_AVAIL,
    VIRTQ_DESC_F_USED,
    WRAP_COUNTER,
    PackedRing,
    available_bits,
    event_word,
    used_bits,
    wants_notification,
)
from protocol.ring_formats import RingLayout
from protocol.split_ring import SplitRing

# As virtio 1.2 declares them (2.8.13 and 2.8.14), written down independently of the fast codec.
PVIRTQ_DESC = Struct("addr" / Int64ul, "len" / Int32ul, "id" / Int16ul, "flags" / Int16ul)
PVIRTQ_EVENT_SUPPRESS = Struct("desc" / Int16ul, "flags" / Int16ul)

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SIZES = st.integers(1, 40)


def new_ring(size: int, fill: int = 0) -> tuple[PackedRing, bytearray, bytearray, bytearray]:
    """Return a ring and the memory of its three parts, each longer than need be."""
    desc, driver, device = (bytearray([fill]) * (length + 16) for length in (16 * size, 4, 4))
    return PackedRing(size, memoryview(desc), memoryview(driver), memoryview(device)), desc, driver, device


@pytest.mark.parametrize(
    ("name", "ours", "text"),
    [
        ("VIRTQ_DESC_F_AVAIL", VIRTQ_DESC_F_AVAIL, 1 << 7),
        ("VIRTQ_DESC_F_USED", VIRTQ_DESC_F_USED, 1 << 15),
        ("RING_EVENT_FLAGS_ENABLE", RING_EVENT_FLAGS_ENABLE, 0),
        ("RING_EVENT_FLAGS_DISABLE", RING_EVENT_FLAGS_DISABLE, 1),
        ("RING_EVENT_FLAGS_DESC", RING_EVENT_FLAGS_DESC, 2),
        ("both sides at the beginning of lap 1", FRESH_BASE, 0x80008000),
    ],
)
def test_number_is_the_one_of_the_text(name: str, ours: int, text: int) -> None:
    assert ours == text, name


@pytest.mark.parametrize(("wrap", "available", "used"), [(True, 0x0080, 0x8080), (False, 0x8000, 0x0000)])
def test_bits_of_a_descriptor_say_whose_it_is_in_which_lap(wrap: bool, available: int, used: int) -> None:
    # virtio 1.2, 2.8.1: available when AVAIL equals the wrap counter and USED does not, used when both equal it.
    assert (available_bits(wrap), used_bits(wrap)) == (available, used)


@given(address=U64, length=U32, buffer_id=U16, flags=U16, size=SIZES, data=st.data())
def test_descriptor_is_packed_as_declared_in_its_own_16_bytes(
    address: int, length: int, buffer_id: int, flags: int, size: int, data: st.DataObject
) -> None:
    ring, desc, _, _ = new_ring(size, fill=0xEE)
    index = data.draw(st.integers(0, size - 1))
    ring.write_descriptor(index, address, length, buffer_id)
    assert ring.halves[8 * index + 7] == 0xEEEE  # the flags are stored by themselves
    ring.halves[8 * index + 7] = flags
    declared = PVIRTQ_DESC.build({"addr": address, "len": length, "id": buffer_id, "flags": flags})
    assert bytes(desc[16 * index : 16 * index + 16]) == declared
    assert PACKED_DESCRIPTOR.unpack(declared) == ring.read_descriptor(index) == (address, length, buffer_id, flags)
    assert (ring.words[4 * index + 2], ring.halves[8 * index + 6]) == (length, buffer_id)
    desc[16 * index : 16 * index + 16] = b"\xee" * 16
    assert desc == b"\xee" * (16 * size + 16)


@given(position=U16, event_idx=st.booleans())
def test_event_area_is_laid_out_as_declared(position: int, event_idx: bool) -> None:
    ring, _, driver, device = new_ring(3, fill=0xEE)
    ring.driver_event[0] = ring.device_event[0] = event_word(position, event_idx=event_idx)
    declared = PVIRTQ_EVENT_SUPPRESS.build({"desc": position, "flags": 2 if event_idx else 0})
    assert bytes(driver) == bytes(device) == declared + b"\xee" * 16


@pytest.mark.parametrize("size", [0, -1, 32769, 65536])
def test_sizes_outside_1_to_32768_are_refused(size: int) -> None:
    with pytest.raises(VirtqueueError, match=f"queue size {size} is not from 1 to 32768"):
        PackedRing(size, memoryview(b""), memoryview(b""), memoryview(b""))


def test_released_ring_lets_go_of_its_memory() -> None:
    ring, *parts = new_ring(5)
    ring.release()
    for memory in parts:
        memory.clear()  # a bytearray refuses to be resized while a view of it lives


def circle(size: int, count: int) -> int:
    """Return the position after ``count`` descriptors."""
    laps, index = divmod(count, size)
    return index | (0 if laps % 2 else WRAP_COUNTER)


@given(size=SIZES, old=st.integers(0, 500), moved=st.integers(0, 40), distance=st.integers(-40, 79))
@example(size=1, old=0, moved=1, distance=0)
@example(size=3, old=2, moved=2, distance=1)
@settings(max_examples=500)
def test_event_is_due_exactly_when_its_position_was_stepped_over(
    size: int, old: int, moved: int, distance: int
) -> None:
    moved, distance = moved % (size + 1), distance % (2 * size)
    event = event_word(circle(size, old + distance), event_idx=True)
    expected = any(step == distance for step in range(moved))
    assert wants_notification(event, circle(size, old + moved), moved, size, event_idx=True) is expected


@pytest.mark.parametrize(
    ("flags", "event_idx", "wanted"),
    [
        (RING_EVENT_FLAGS_ENABLE, True, True),
        (RING_EVENT_FLAGS_ENABLE, False, True),
        (RING_EVENT_FLAGS_DISABLE, True, False),
        (RING_EVENT_FLAGS_DISABLE, False, False),
        (RING_EVENT_FLAGS_DESC, True, False),
        (RING_EVENT_FLAGS_DESC, False, True),  # not negotiated: better once too often
        (3, True, True),  # reserved
        (3, False, True),
        (0xFFFC | RING_EVENT_FLAGS_DISABLE, False, False),  # the reserved upper bits are ignored
    ],
)
def test_event_flags_have_their_meaning(flags: int, event_idx: bool, wanted: bool) -> None:
    event = flags << 16 | WRAP_COUNTER | 5
    assert wants_notification(event, WRAP_COUNTER | 3, 1, 8, event_idx=event_idx) is wanted
    assert not wants_notification(event, WRAP_COUNTER | 3, 0, 8, event_idx=event_idx)


@pytest.mark.parametrize(
    ("layout", "lengths", "offsets"),
    [
        (RingLayout(256), (4096, 518, 2054), (0, 4096, 4616)),
        (RingLayout(1), (16, 8, 14), (0, 16, 24)),
        (RingLayout(32768), (524288, 65542, 262150), (0, 524288, 589832)),
        (RingLayout(256, packed=True), (4096, 4, 4), (0, 4096, 4100)),
        (RingLayout(100, packed=True), (1600, 4, 4), (0, 1600, 1604)),
        (RingLayout(32767, packed=True), (524272, 4, 4), (0, 524272, 524276)),
    ],
)
def test_layout_has_three_parts_one_after_another(
    layout: RingLayout, lengths: tuple[int, int, int], offsets: tuple[int, int, int]
) -> None:
    assert (layout.lengths, layout.offsets) == (lengths, offsets)
    assert layout.bytes == offsets[2] + lengths[2]
    assert all(offset % align == 0 for offset, align in zip(layout.offsets, layout.alignments, strict=True))
    memory = memoryview(bytearray(layout.bytes))
    ring = layout.open(*(memory[offset:] for offset in offsets))
    assert isinstance(ring, PackedRing if layout.packed else SplitRing)
    assert ring.size == layout.size


def test_size_of_a_split_ring_is_a_power_of_two() -> None:
    assert RingLayout(100, packed=True).size == 100
    with pytest.raises(VirtqueueError, match="queue size 100 of a split ring is not a power of two"):
        RingLayout(100)


def test_declared_ring_is_as_long_as_its_layout_says() -> None:
    assert Array(77, PVIRTQ_DESC).sizeof() == RingLayout(77, packed=True).lengths[0]
    assert PVIRTQ_EVENT_SUPPRESS.sizeof() == RingLayout(77, packed=True).lengths[1]
    assert AVAIL_USED == 0x8080
