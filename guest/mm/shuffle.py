"""Page shuffling (Linux mm/shuffle.c, ``page_alloc.shuffle=1``): free blocks of the top order in random order.

The random numbers come from a seed, so a guest is shuffled the same way each time.
"""

from array import array
from collections.abc import Callable
from random import Random
from typing import Final

from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.pageblock import MAX_ORDER, MAX_ORDER_NR_PAGES

SHUFFLE_ORDER: Final = MAX_ORDER
"""Blocks of this order are shuffled; smaller ones are left where splitting and merging puts them."""
SHUFFLE_RETRY: Final = 10
"""Attempts to find a block to swap with (SHUFFLE_RETRY)."""
_NO_LIST: Final = 255
_BITS: Final = 64


class Shuffle:
    """The random numbers for one guest's memory."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._bits = 0
        self._nr_bits = 0

    def pick_tail(self) -> bool:
        """Return whether the next block freed goes to the tail: one random bit (``shuffle_pick_tail``)."""
        if not self._nr_bits:
            self._bits = self._random.getrandbits(_BITS)
            self._nr_bits = _BITS
        self._nr_bits -= 1
        bit = self._bits & 1
        self._bits >>= 1
        return bool(bit)

    def shuffle_zone(self, zone: Zone, on_reordered: Callable[[int], None]) -> None:
        """Swap every block of the zone, in ascending order, with a random one (``__shuffle_zone``).

        The other block must be free and of the same migratetype, so each list keeps its blocks. After ten attempts
        without such a block, a block stays where it is. ``on_reordered`` is called with each migratetype before its
        list changes.
        """
        first = -(-zone.start_pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES
        nr_blocks = -(-(zone.end_pfn - first) // MAX_ORDER_NR_PAGES)
        place = array("q", bytes(8 * nr_blocks))  # of each such block in its list, by its number in the zone
        # The list that each block is on. Its pageblocks may say something else: a merged block is filed under the type
        # of the page that was freed last.
        list_of = bytearray([_NO_LIST]) * nr_blocks
        lists: dict[int, list[int]] = {}
        for migratetype, heads in enumerate(LIST_HEADS):
            if zone.free_list.next[heads[SHUFFLE_ORDER]] >= 0:
                lists[migratetype] = list(zone.free_list.entries(SHUFFLE_ORDER, migratetype))
                for position, pfn in enumerate(lists[migratetype]):
                    number = pfn - first >> MAX_ORDER
                    place[number], list_of[number] = position, migratetype
        for number in range(nr_blocks):
            migratetype = list_of[number]
            if migratetype == _NO_LIST:
                continue
            pfn = first + (number << MAX_ORDER)
            for _ in range(SHUFFLE_RETRY):
                partner = self._random.randrange(nr_blocks)
                if list_of[partner] == migratetype:
                    other = first + (partner << MAX_ORDER)
                    entries, here, there = lists[migratetype], place[number], place[partner]
                    entries[here], entries[there] = other, pfn
                    place[number], place[partner] = there, here
                    break
        for migratetype, entries in lists.items():
            on_reordered(migratetype)
            zone.free_list.reorder(entries, LIST_HEADS[migratetype][SHUFFLE_ORDER])
