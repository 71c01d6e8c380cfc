"""guest/mm/views/buddyinfo.py: another machine's free lists, read and built."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.views.buddyinfo import parse_buddyinfo, shape_memory, shape_zone
from guest.mm.views.vmstat import buddyinfo
from protocol.errors import UsageError

# An idle 512 MiB guest under Linux 6.1, pageblocks of order 10.
IDLE = "Node 0, zone   Normal     13     26     54     62     38     12      6      3      2      2    110 \n"
IDLE_COUNTS = (13, 26, 54, 62, 38, 12, 6, 3, 2, 2, 110)


def test_real_kernels_text_is_read_and_built() -> None:
    assert parse_buddyinfo(IDLE) == {(0, "Normal"): IDLE_COUNTS}
    allocator = PageAllocator(122125)
    shape_zone(allocator, allocator.zones[0], IDLE_COUNTS)
    allocator.validate()
    assert buddyinfo(allocator) == IDLE


def test_memory_is_shaped_zone_by_zone() -> None:
    spans = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=8192),
        ZoneSpan(name="Normal", start_pfn=8192, end_pfn=1 << 18),
    ]
    allocator = PageAllocator(1 << 18, zones=spans)
    shape_memory(allocator, IDLE)
    assert [zone.nr_free for zone in allocator.zones] == [[0] * 11, list(IDLE_COUNTS)]
    allocator.validate()
    with pytest.raises(UsageError, match="zone HighMem is not among those of this machine, DMA32, Normal"):
        shape_memory(allocator, IDLE.replace("Normal", "HighMem"))


def test_single_zone_may_have_any_name() -> None:
    allocator = PageAllocator(122125)
    shape_memory(allocator, IDLE.replace(" Normal", "HighMem") + "Node 0, zone  Movable" + " 0" * 11)
    assert buddyinfo(allocator) == IDLE


def test_buddyinfo_is_read_for_all_zones_of_all_nodes() -> None:
    text = IDLE.replace("Normal", " DMA32") + IDLE + IDLE.replace("Node 0", "Node 1")
    assert list(parse_buddyinfo(text)) == [(0, "DMA32"), (0, "Normal"), (1, "Normal")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "buddyinfo: no zone"),
        (IDLE + "x\n", "buddyinfo, line 2: 'x' is not a zone and 11 counts"),
        (IDLE.replace(" 110", ""), "line 1: .* is not a zone and 11 counts"),
        (IDLE.replace(" 110", " 110 1"), "line 1: .* is not a zone and 11 counts"),
        (IDLE + IDLE, "line 2: node 0, zone Normal a second time"),
    ],
)
def test_buddyinfo_that_is_malformed_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_buddyinfo(text)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=10, max_size=10), st.integers(0, 6), st.integers(0, 1023))
def test_lists_of_any_shape_are_built_without_a_merge(low: list[int], whole: int, edge: int) -> None:
    counts = [*low, whole]
    # Room enough in any case: each block in a block of MAX_ORDER of its own.
    allocator = PageAllocator((sum(counts) + 1) * 1024 + edge)
    shape_zone(allocator, allocator.zones[0], counts)
    allocator.validate()
    assert allocator.zones[0].nr_free == counts
    for order, count in enumerate(counts):
        migratetype = MigrateType.MOVABLE if order == 10 else MigrateType.UNMOVABLE
        assert len(list(allocator.zones[0].free_list.entries(order, migratetype))) == count


@pytest.mark.parametrize("counts", [(0,) * 10 + (5,), (0,) * 9 + (5, 2), (1024,) + (0,) * 9 + (3,)])
def test_buddyinfo_with_more_free_than_there_is_room_for_is_refused(counts: tuple[int, ...]) -> None:
    allocator = PageAllocator(4096)
    with pytest.raises(UsageError, match="zone Normal of 4096 pages has no room for free blocks"):
        shape_zone(allocator, allocator.zones[0], counts)
    assert allocator.nr_free_pages() == 4096
    allocator.validate()


def test_pages_in_use_stay_so() -> None:
    allocator = PageAllocator(122125)
    pfn = allocator.alloc_pages(0, MigrateType.UNMOVABLE)
    assert pfn is not None
    shape_zone(allocator, allocator.zones[0], IDLE_COUNTS)
    allocator.validate()
    assert buddyinfo(allocator) == IDLE
    allocator.free_pages(pfn, 0)
    allocator.validate()
