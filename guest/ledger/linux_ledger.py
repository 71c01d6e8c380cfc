"""The ledger of a real kernel, as far as its statistics, /proc/zoneinfo and /proc/buddyinfo allow.

A kernel shows neither which free blocks are marked reported, nor which pages the host backs, nor what its reporter
waits for. Known are the sizes: of the free memory, of what is on per-CPU lists, in small blocks, or in a zone that is
too short of memory for a report; and how much of the memory the host backs. Holes in the host's file that the balloon
does not explain are taken for free memory that was returned. The rest of the free memory is backed, and booked first to
what can never be returned, at most as much as there is of it; what nothing explains is ``unknown``.

The texts are read one after the other while the kernel runs, so their sizes need not fit together exactly. The sum is
exact nevertheless: the free memory is that of zoneinfo.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from guest.ledger.ledger import Ledger
from guest.mm.pageblock import MAX_ORDER, PAGEBLOCK_ORDER
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.rotation import CAPACITY
from guest.mm.views.buddyinfo import parse_buddyinfo
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE

_ZONE: Final = re.compile(r"^Node +(\d+), zone +(\S+)$", re.MULTILINE)
_FREE: Final = re.compile(r"^ +pages free +(\d+)$", re.MULTILINE)
_LOW: Final = re.compile(r"^ +low +(\d+)$", re.MULTILINE)
_COUNT: Final = re.compile(r"^ +count: +(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxZone:
    """What a kernel shows of one zone. Sizes are pages; ``nr_free`` are free blocks by order."""

    name: str
    free_pages: int
    pcp_pages: int
    low_watermark: int
    nr_free: tuple[int, ...]

    def is_short(self, order: int, capacity: int) -> bool:
        """Return whether the reporter leaves the zone alone (page_reporting_process_zone)."""
        return self.free_pages <= self.low_watermark + (capacity << order)

    def pages_in_blocks(self, orders: range) -> int:
        """Return the free pages in blocks of these orders."""
        return sum(self.nr_free[order] << order for order in orders)


def parse_zones(zoneinfo: str, buddyinfo: str) -> list[LinuxZone]:
    """Return the zones of /proc/zoneinfo that have memory, with their free blocks of /proc/buddyinfo.

    The watermark is as the kernel prints it, with the boost. The HIGHATOMIC reserve is not shown, and left out.

    Raises:
        UsageError: a text has another form, or a zone with memory is not in both.
    """
    blocks = parse_buddyinfo(buddyinfo)
    zones: list[LinuxZone] = []
    parts = _ZONE.split(zoneinfo)[1:]
    for node, name, text in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        free, low = _FREE.search(text), _LOW.search(text)
        if free is None or low is None:
            raise UsageError(f"zoneinfo, node {node}, zone {name}: no free pages or no low watermark")
        nr_free = blocks.get((int(node), name))
        if nr_free is None:
            if int(free[1]):
                raise UsageError(f"buddyinfo has no node {node}, zone {name}, which zoneinfo has")
            continue  # a zone without memory
        pcp_pages = sum(map(int, _COUNT.findall(text)))
        zone = LinuxZone(
            name=name, free_pages=int(free[1]), pcp_pages=pcp_pages, low_watermark=int(low[1]), nr_free=nr_free
        )
        zones.append(zone)
    if not zones:
        raise UsageError("zoneinfo: no zone with memory")
    return zones


def linux_ledger(
    zones: Sequence[LinuxZone],
    *,
    memory_bytes: int,
    resident_bytes: int,
    balloon_bytes: int = 0,
    order: int = PAGEBLOCK_ORDER,
    capacity: int = CAPACITY,
    is_reporting: bool = True,
) -> Ledger:
    """Return the ledger of a kernel with these ``zones``.

    Args:
        memory_bytes: the size of the guest's memory in the host's file.
        resident_bytes: how much of it the host backs.
        balloon_bytes: the size of the balloon, whose pages are in use for the guest and holes for the host.
        order: page_reporting_order, by default that of a pageblock where huge pages have 2 MiB.
        capacity: entries of a report.
        is_reporting: whether the kernel has registered a reporter.
    """
    holes = max(0, memory_bytes - resident_bytes - balloon_bytes)
    free_bytes = sum(zone.free_pages + zone.pcp_pages for zone in zones) * PAGE_SIZE
    small, large = range(order), range(order, MAX_ORDER + 1)
    short = [zone for zone in zones if zone.is_short(order, capacity)]
    return _book(
        free_bytes,
        holes,
        {
            Cause.PCP: sum(zone.pcp_pages for zone in zones) * PAGE_SIZE,
            Cause.BELOW_ORDER: sum(zone.pages_in_blocks(small) for zone in zones) * PAGE_SIZE,
            **({} if is_reporting else {Cause.INHIBITED: free_bytes}),
            Cause.WATERMARK: sum(zone.pages_in_blocks(large) for zone in short) * PAGE_SIZE,
        },
    )


def statistics_ledger(
    free_bytes: int, *, memory_bytes: int, resident_bytes: int, balloon_bytes: int = 0, is_reporting: bool = True
) -> Ledger:
    """Return the ledger of a kernel of which only the balloon's statistics are known (``free_bytes`` is MEMFREE).

    Arguments as of :func:`linux_ledger`. MEMFREE leaves out the per-CPU lists.
    """
    holes = max(0, memory_bytes - resident_bytes - balloon_bytes)
    return _book(free_bytes, holes, {} if is_reporting else {Cause.INHIBITED: free_bytes})


def _book(free_bytes: int, holes: int, at_most: dict[Cause, int]) -> Ledger:
    # What is not in a hole, to each cause in turn as much as it can explain, and the rest to UNKNOWN.
    held = dict.fromkeys(Cause, 0)
    left = max(0, free_bytes - holes)
    for cause, size in at_most.items():
        held[cause] = min(size, left)
        left -= held[cause]
    held[Cause.UNKNOWN] = left
    return Ledger(free_bytes=free_bytes, held_bytes=held)
