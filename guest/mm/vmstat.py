"""The memory manager's text interfaces (Linux mm/vmstat.c). Formats counters; must not know the lists."""

from guest.mm.page_alloc import PageAllocator


def buddyinfo(allocator: PageAllocator) -> str:
    """Return ``/proc/buddyinfo``, byte for byte: for each populated zone the number of free blocks of each order."""
    return "".join(
        f"Node {zone.node}, zone {zone.name:>8} " + "".join(f"{count:6d} " for count in zone.nr_free) + "\n"
        for zone in allocator.zones
        if zone.managed_pages
    )
