"""Where rings lie in the guest's memory, for every format and size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.mm.page_alloc import PageAllocator
from guest.virtqueue.ring_memory import TABLES, RingMemory, RingOptions, allocate_rings
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_ring import avail_ring_bytes, descriptor_table_bytes, used_ring_bytes

SPLIT = st.integers(0, 15).map(lambda exponent: RingOptions(size=1 << exponent))
PACKED = st.integers(1, 32768).map(lambda size: RingOptions(size=size, packed=True))


@given(options=SPLIT | PACKED)
def test_parts_of_a_ring_and_its_tables_lie_apart_and_aligned(options: RingOptions) -> None:
    memory = RingMemory(7 * PAGE_SIZE, options)
    size = options.size
    available, used = (4, 4) if options.packed else (avail_ring_bytes(size), used_ring_bytes(size))
    assert memory.descriptor % 16 == memory.available % 2 == memory.used % 4 == 0
    assert memory.available % 4 == 0 or not options.packed
    assert memory.descriptor + descriptor_table_bytes(size) <= memory.available
    assert memory.available + available <= memory.used
    end = memory.used + used
    for table in memory.tables:
        assert table % 16 == 0
        assert end <= table
        end = table + 16 * memory.table_capacity
    assert end == memory.descriptor + memory.bytes
    assert 1 <= memory.table_capacity <= size


@pytest.mark.parametrize("options", [RingOptions(), RingOptions(size=32768), RingOptions(size=32767, packed=True)])
def test_queues_have_pages_of_their_own(options: RingOptions) -> None:
    allocator = PageAllocator(4096)
    rings = allocate_rings(allocator, options)
    assert len(rings) == 5
    pages = [
        page
        for memory in rings
        for page in range(memory.descriptor // PAGE_SIZE, -(-(memory.descriptor + memory.bytes) // PAGE_SIZE))
    ]
    assert len(set(pages)) == len(pages) <= 4096 - allocator.nr_free_pages()
    assert all(len(memory.tables) == TABLES for memory in rings)


def test_machine_without_room_for_rings_is_refused() -> None:
    with pytest.raises(UsageError, match="too little memory for its virtqueues"):
        allocate_rings(PageAllocator(8))


@pytest.mark.parametrize(("size", "packed"), [(0, False), (0, True), (32769, True), (65536, False), (100, False)])
def test_sizes_that_no_ring_has_are_refused(size: int, packed: bool) -> None:
    with pytest.raises(UsageError, match=f"^a queue of {size} entries: "):
        RingOptions(size=size, packed=packed)


def test_packed_ring_has_any_size() -> None:
    assert RingOptions(size=100, packed=True).size == 100


def test_ring_format_is_required_and_ring_features_are_optional() -> None:
    both = feature_mask(FeatureBit.RING_PACKED, FeatureBit.IN_ORDER)
    everything = RingOptions(packed=True, in_order=True)
    assert everything.required == both
    assert everything.features == both | feature_mask(FeatureBit.RING_INDIRECT_DESC, FeatureBit.RING_EVENT_IDX)
    assert RingOptions(indirect=False, event_idx=False).features == RingOptions().required == 0
