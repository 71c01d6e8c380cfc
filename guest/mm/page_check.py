"""Self-checks: why a page cannot be freed, and whether map, lists and counters agree.

They read and change nothing. Errors and ``validate`` alone use them.
"""

from guest.mm.buddy import Buddy
from guest.mm.errors import BadPageError, CorruptionError, DoubleFreeError, NotAllocatedError, WrongOrderError
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.page_flags import ABSENT, BLOCK_ORDER, BUDDY, BUDDY_ORDER, ISOLATED, ORDER_MASK, PCP, REPORTED
from guest.mm.pageblock import MAX_ORDER, MIGRATE_TYPES, NR_PAGE_ORDERS, MigrateType


def bad_page(mem_map: bytearray, pfn: int, order: int) -> BadPageError:
    """Return the exception that says why the block ``pfn`` of ``order`` cannot be freed."""
    what = f"cannot free pfn {pfn} order {order}"
    if not 0 <= pfn < len(mem_map) or mem_map[pfn] == ABSENT:
        return NotAllocatedError(f"{what}: there is no such page", pfn=pfn, order=order)
    head, head_order = _block_of(mem_map, pfn)
    state = mem_map[head]
    where = f"in the block at pfn {head} of order {head_order}"
    if state & ~ORDER_MASK == PCP:
        return DoubleFreeError(f"{what}: it is already free, on a per-CPU list, {where}", pfn=pfn, order=order)
    if state & ISOLATED:
        return DoubleFreeError(f"{what}: it is free and being reported, {where}", pfn=pfn, order=order)
    if state & BUDDY:
        return DoubleFreeError(f"{what}: it is already free, or was never allocated, {where}", pfn=pfn, order=order)
    if head != pfn:
        return NotAllocatedError(f"{what}: it is not a first page, it is allocated {where}", pfn=pfn, order=order)
    return WrongOrderError(f"{what}: it was allocated with order {head_order}", pfn=pfn, order=order)


def _block_of(mem_map: bytearray, pfn: int) -> tuple[int, int]:
    # First page and order of the block that contains `pfn`.
    for order in range(NR_PAGE_ORDERS):
        head = pfn & -(1 << order)
        head_order = BLOCK_ORDER[mem_map[head]]
        if head_order is not None and head_order >= order:
            return head, head_order
    raise CorruptionError(f"pfn {pfn} belongs to no block")


def validate(allocator: Buddy) -> None:
    """Compare the map, the lists and the counters of every zone.

    Raises:
        CorruptionError: naming the first disagreement.
    """
    for zone in allocator.zones:
        mapped, on_pcp = _walk_map(allocator.mem_map, zone, allocator.pageblock_order)
        listed = _walk_lists(allocator.mem_map, zone)
        if mapped != listed:
            lost = sorted(mapped.keys() ^ listed.keys())[:4]
            raise CorruptionError(f"zone {zone.name}: free in the map or on a list, but not both: pfn {lost}")
        _check_counters(allocator.mem_map, zone, mapped)
        _check_pcp(zone, on_pcp)
        _check_cma(allocator, zone)


def _walk_map(mem_map: bytearray, zone: Zone, pageblock_order: int) -> tuple[dict[int, int], dict[int, int]]:
    # Every page belongs to exactly one block. Returns the free ones and those on per-CPU lists, pfn to order.
    free: dict[int, int] = {}
    on_pcp: dict[int, int] = {}
    pfn = zone.start_pfn
    while pfn < zone.end_pfn:
        order = BLOCK_ORDER[mem_map[pfn]]
        if order is None or pfn % (1 << order) or pfn + (1 << order) > zone.end_pfn:
            raise CorruptionError(f"zone {zone.name}: state {mem_map[pfn]:#x} at pfn {pfn}, where a block has to begin")
        if mem_map.count(0, pfn + 1, pfn + (1 << order)) != (1 << order) - 1:
            raise CorruptionError(f"zone {zone.name}: another block begins inside pfn {pfn} of order {order}")
        if BUDDY_ORDER[mem_map[pfn]] is not None:
            free[pfn] = order
            if order < min(pageblock_order, MAX_ORDER) and free.get(pfn ^ (1 << order)) == order:
                raise CorruptionError(
                    f"zone {zone.name}: pfn {pfn} of order {order} and its buddy are free, not merged"
                )
        elif mem_map[pfn] & ~ORDER_MASK == PCP:
            on_pcp[pfn] = order
        pfn += 1 << order
    return free, on_pcp


def _walk_lists(mem_map: bytearray, zone: Zone) -> dict[int, int]:
    # Every list is a ring in both directions. Returns the blocks on them, pfn to the order of the list.
    listed: dict[int, int] = {}
    lists = zone.free_list
    for order in range(NR_PAGE_ORDERS):
        for migratetype in range(MIGRATE_TYPES):
            previous = LIST_HEADS[migratetype][order]
            for pfn in lists.entries(order, migratetype):
                if pfn < 0:
                    raise CorruptionError(f"zone {zone.name}: a list of order {order} runs into another list")
                if pfn in listed:
                    raise CorruptionError(f"zone {zone.name}: pfn {pfn} is on two lists, or twice on one")
                if BUDDY_ORDER[mem_map[pfn]] != order:
                    raise CorruptionError(
                        f"zone {zone.name}: state {mem_map[pfn]:#x} of pfn {pfn} on a list of order {order}"
                    )
                if lists.prev[pfn] != previous:
                    raise CorruptionError(f"zone {zone.name}: the list is broken toward the head at pfn {pfn}")
                listed[pfn] = order
                previous = pfn
            if lists.prev[LIST_HEADS[migratetype][order]] != previous:
                raise CorruptionError(
                    f"zone {zone.name}: the list of order {order} has another tail than its last entry"
                )
    if len(listed) != len(lists) or lists.next.keys() != lists.prev.keys():
        raise CorruptionError(f"zone {zone.name}: links are left of blocks that are on no list")
    return listed


def _check_counters(mem_map: bytearray, zone: Zone, free: dict[int, int]) -> None:
    nr_free = [0] * NR_PAGE_ORDERS
    reported = [0] * NR_PAGE_ORDERS
    for pfn, order in free.items():
        nr_free[order] += 1
        reported[order] += bool(mem_map[pfn] & REPORTED)
    if zone.nr_free != nr_free:
        raise CorruptionError(f"zone {zone.name}: nr_free is {zone.nr_free}, the lists hold {nr_free}")
    if zone.reported_pages != reported:
        raise CorruptionError(f"zone {zone.name}: reported_pages is {zone.reported_pages}, flagged are {reported}")
    pages = sum(count << order for order, count in enumerate(nr_free))
    if zone.free_pages != pages:
        raise CorruptionError(f"zone {zone.name}: free_pages is {zone.free_pages}, the lists hold {pages}")


def _check_pcp(zone: Zone, on_pcp: dict[int, int]) -> None:
    # Every page marked so is on one per-CPU list of its order, and each CPU's count is right.
    listed: dict[int, int] = {}
    for cpu, pcp in enumerate(zone.pcps):
        pages = 0
        for order, entries in zip(pcp.list_orders, pcp.lists, strict=True):
            pages += len(entries) << order
            for pfn in entries:
                if pfn in listed:
                    raise CorruptionError(f"zone {zone.name}: pfn {pfn} is on two per-CPU lists, or twice on one")
                listed[pfn] = order
        if pages != pcp.count:
            raise CorruptionError(f"zone {zone.name}: CPU {cpu} counts {pcp.count} pages, its lists hold {pages}")
    if listed != on_pcp:
        lost = sorted(pfn for pfn, _ in listed.items() ^ on_pcp.items())[:4]
        raise CorruptionError(f"zone {zone.name}: per-CPU in the map or on a list, but not both: pfn {lost}")


def _check_cma(allocator: Buddy, zone: Zone) -> None:
    shift = allocator.pageblock_order
    types = allocator.pageblock_migratetype[zone.start_pfn >> shift : (zone.end_pfn - 1 >> shift) + 1]
    if zone.cma_pages != types.count(MigrateType.CMA) << shift:
        raise CorruptionError(f"zone {zone.name}: cma_pages is {zone.cma_pages}, the pageblocks say otherwise")
    free = sum(1 << order for order in range(NR_PAGE_ORDERS) for _ in zone.free_list.entries(order, MigrateType.CMA))
    if zone.free_cma_pages != free:
        raise CorruptionError(f"zone {zone.name}: free_cma_pages is {zone.free_cma_pages}, the lists hold {free}")
