"""A zone as another machine's /proc/buddyinfo shows it: the same free blocks of each order, everything else allocated.

The text gives neither places nor migratetypes; both are chosen here. Blocks of MAX_ORDER lie at the top of the zone,
the smaller ones are packed below them: later merges depend on that, the passes of a reporter do not. The small blocks
and their pageblocks become UNMOVABLE, as soon after boot, when they are remainders of the kernel's own allocations (an
idle Linux 6.1 shows nearly all of them so in /proc/pagetypeinfo).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from guest.mm.free_list import list_head
from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED, BUDDY
from guest.mm.pageblock import MAX_ORDER, MAX_ORDER_NR_PAGES, NR_PAGE_ORDERS, MigrateType
from protocol.errors import UsageError

_LINE: Final = re.compile(rf"Node +(\d+), zone +(\S+)((?: +\d+){{{NR_PAGE_ORDERS}}}) *")


def parse_buddyinfo(text: str) -> dict[tuple[int, str], tuple[int, ...]]:
    """Return the free blocks of each order, 0 to MAX_ORDER, by node and name of the zone, in the order of the lines.

    Raises:
        UsageError: naming the first invalid line.
    """
    zones: dict[tuple[int, str], tuple[int, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(f"buddyinfo, line {number}: {line!r} is not a zone and {NR_PAGE_ORDERS} counts")
        zone = int(match[1]), match[2]
        if zone in zones:
            raise UsageError(f"buddyinfo, line {number}: node {zone[0]}, zone {zone[1]} a second time")
        zones[zone] = tuple(map(int, match[3].split()))
    if not zones:
        raise UsageError("buddyinfo: no zone")
    return zones


def shape_memory(allocator: PageAllocator, text: str) -> None:
    """Make the zones of ``allocator`` look like those of ``text``, matched by name; a single zone of each is matched
    under any name. Zones of ``text`` without a free page are ignored.

    Raises:
        UsageError: ``text`` is not a buddyinfo, has a zone that ``allocator`` lacks, or more free memory than a zone
            has room for.
    """
    shapes = {name: nr_free for (_, name), nr_free in parse_buddyinfo(text).items() if any(nr_free)}
    if len(shapes) == len(allocator.zones) == 1:
        shapes = dict(zip([allocator.zones[0].name], shapes.values(), strict=True))
    zones = {zone.name: zone for zone in allocator.zones}
    for name in shapes.keys() - zones.keys():
        raise UsageError(f"buddyinfo: zone {name} is not among those of this machine, {', '.join(zones)}")
    for name, zone in zones.items():
        shape_zone(allocator, zone, shapes.get(name, (0,) * NR_PAGE_ORDERS))


def shape_zone(allocator: PageAllocator, zone: Zone, nr_free: Sequence[int]) -> None:
    """Allocate and fragment the free memory of a zone, so that ``zone.nr_free`` becomes ``nr_free``.

    To be called soon after boot, while nearly all memory is free. Pages in use stay in use.

    Raises:
        UsageError: the zone has no room for so many free blocks; nothing was changed.
    """
    wanted = list(nr_free)
    heads = sorted(zone.free_list.entries(MAX_ORDER, MigrateType.MOVABLE))
    carved = heads[: max(0, len(heads) - wanted[MAX_ORDER])]
    pieces = [piece for head in carved for piece in _carve(head, MAX_ORDER, wanted)]
    if wanted[MAX_ORDER] > len(heads) or any(wanted[:MAX_ORDER]):
        raise UsageError(f"zone {zone.name} of {zone.managed_pages} pages has no room for free blocks {list(nr_free)}")
    kept = set(heads[len(carved) :])
    lists = [(order, migratetype) for order in range(NR_PAGE_ORDERS) for migratetype in MigrateType]
    free = [(pfn, order) for order, migratetype in lists for pfn in zone.free_list.entries(order, migratetype)]
    for pfn, order in free:
        if pfn in kept:
            continue
        zone.free_list.remove(pfn)
        zone.nr_free[order] -= 1
        zone.free_pages -= 1 << order
        allocator.mem_map[pfn] = ALLOCATED | order
    for head in carved:
        first, last = head >> allocator.pageblock_order, (head + MAX_ORDER_NR_PAGES) >> allocator.pageblock_order
        allocator.pageblock_migratetype[first:last] = bytes([MigrateType.UNMOVABLE]) * (last - first)
    for pfn, order, is_free in pieces:
        allocator.mem_map[pfn] = BUDDY | order if is_free else ALLOCATED | order
        if is_free:
            zone.free_list.add_before(pfn, list_head(order, MigrateType.UNMOVABLE))
            zone.nr_free[order] += 1
            zone.free_pages += 1 << order


def _carve(pfn: int, order: int, wanted: list[int]) -> Iterator[tuple[int, int, bool]]:
    # Cut a block into (pfn, order, free), taking from `wanted` what fits: the largest that is still wanted as the lower
    # half, smaller ones in the upper half. At most one half is free as a whole, so nothing can merge.
    if not any(wanted[:order]):
        yield pfn, order, False
        return
    order -= 1
    upper = pfn + (1 << order)
    if wanted[order]:
        wanted[order] -= 1
        yield pfn, order, True
    else:
        yield from _carve(pfn, order, wanted)
    yield from _carve(upper, order, wanted)
