"""guest/mm/page_check.py: every kind of disagreement is found."""

from collections.abc import Callable

import pytest

from guest.mm.errors import CorruptionError
from guest.mm.free_list import list_head
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED, BUDDY, REPORTED


def guest() -> PageAllocator:
    allocator = PageAllocator(4096)
    assert allocator.alloc_pages(3) == 0
    allocator.validate()
    return allocator


def leak(allocator: PageAllocator) -> None:
    allocator.zones[0].free_list.remove(8)


def crossed(allocator: PageAllocator) -> None:
    lists = allocator.zones[0].free_list
    lists.next[list_head(5, 1)] = 8
    lists.next[8] = list_head(5, 1)


def looped(allocator: PageAllocator) -> None:
    allocator.zones[0].free_list.next[2048] = 1024


def wrong_list(allocator: PageAllocator) -> None:
    lists = allocator.zones[0].free_list
    lists.remove(8)
    lists.add(8, list_head(4, 1))


def stray_link(allocator: PageAllocator) -> None:
    allocator.zones[0].free_list.next[4000] = 8


def broken_toward_head(allocator: PageAllocator) -> None:
    allocator.zones[0].free_list.prev[3072] = 1024


def wrong_tail(allocator: PageAllocator) -> None:
    allocator.zones[0].free_list.prev[list_head(10, 1)] = 1024


def block_inside(allocator: PageAllocator) -> None:
    allocator.mem_map[1500] = ALLOCATED


def no_block(allocator: PageAllocator) -> None:
    allocator.mem_map[0] = 0


def unmerged(allocator: PageAllocator) -> None:
    allocator.mem_map[0] = BUDDY | 3


def miscounted(allocator: PageAllocator) -> None:
    allocator.zones[0].nr_free[10] += 1


def misflagged(allocator: PageAllocator) -> None:
    allocator.mem_map[1024] |= REPORTED


def mispaged(allocator: PageAllocator) -> None:
    allocator.zones[0].free_pages -= 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (leak, r"free in the map or on a list, but not both: pfn \[8\]"),
        (crossed, "a list of order 3 runs into another list"),
        (looped, "pfn 1024 is on two lists, or twice on one"),
        (wrong_list, "of pfn 8 on a list of order 4"),
        (stray_link, "links are left"),
        (broken_toward_head, "broken toward the head at pfn 3072"),
        (wrong_tail, "the list of order 10 has another tail"),
        (block_inside, "another block begins inside pfn 1024 of order 10"),
        (no_block, "state 0x0 at pfn 0, where a block has to begin"),
        (unmerged, "pfn 8 of order 3 and its buddy are free, not merged"),
        (miscounted, "nr_free is"),
        (misflagged, "reported_pages is"),
        (mispaged, "free_pages is 4087, the lists hold 4088"),
    ],
)
def test_damage_is_found_and_named(damage: Callable[[PageAllocator], None], message: str) -> None:
    allocator = guest()
    damage(allocator)
    with pytest.raises(CorruptionError, match=message):
        allocator.validate()
