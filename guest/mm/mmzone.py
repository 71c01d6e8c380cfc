"""Zones and their constants (Linux ``include/linux/mmzone.h``)."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import isqrt
from typing import Final, NewType

from guest.mm.free_list import FreeList
from guest.mm.pageblock import (
    MIGRATE_TYPES,
    NO_ORDER,
    NR_PAGE_ORDERS,
    MigrateType,
)
from guest.mm.pcp import PerCpuPages

Pfn = NewType("Pfn", int)
"""A page frame number: guest physical address divided by 4096."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
MAX_PFN: Final = 1 << 40
"""First page frame number beyond a guest physical address of 52 bits, the most that x86-64 can have."""
NEVER: Final = 1 << 62
"""A number of pages that no zone has."""


class ZoneType(IntEnum):
    """``enum zone_type`` of x86-64, in the kernel's order: the index of ``lowmem_reserve``."""

    DMA = 0
    DMA32 = 1
    NORMAL = 2
    MOVABLE = 3


ZONE_TYPES: Final = {
    "DMA": ZoneType.DMA,
    "DMA32": ZoneType.DMA32,
    "Normal": ZoneType.NORMAL,
    "Movable": ZoneType.MOVABLE,
}
"""The kernel's names of zones. A zone of any other name counts as a Normal one."""


def highest_zone_type(migratetype: int) -> ZoneType:
    """Return the highest zone that a request may use (``gfp_zone``): Movable is for movable pages alone."""
    if migratetype in (MigrateType.MOVABLE, MigrateType.CMA):
        return ZoneType.MOVABLE
    return ZoneType.NORMAL


class ReportingState(IntEnum):
    """State of page reporting: one for the device with ``rotation``, one for each zone with the other reporters."""

    IDLE = 0
    REQUESTED = 1
    ACTIVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneSpan:
    """Name and page frames of a zone to be made; ``end_pfn`` is the first one past its end."""

    name: str
    start_pfn: int
    end_pfn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermarks:
    """``zone->_watermark`` in pages. Nothing is allocated below ``min``; reclaim goes from ``low`` to ``high``."""

    min: int
    low: int
    high: int


def default_min_free_kbytes(lowmem_pages: int) -> int:
    """Return ``vm.min_free_kbytes`` as computed at boot: 4 * sqrt(lowmem in KiB) within 128 and 262144.

    ``lowmem_pages`` are the pages of all zones but Movable (mm/page_alloc.c, ``calculate_min_free_kbytes`` and
    ``nr_free_buffer_pages``).
    """
    return max(128, min(262144, isqrt((lowmem_pages << (PAGE_SHIFT - 10)) * 16)))


def watermarks(
    managed_pages: int, lowmem_pages: int, *, min_free_kbytes: int | None = None, scale: int = 10
) -> Watermarks:
    """Compute a zone's watermarks as Linux does (mm/page_alloc.c, ``__setup_per_zone_wmarks``).

    Args:
        managed_pages: pages of this zone.
        lowmem_pages: pages of all zones together, of which this zone carries its share.
        min_free_kbytes: ``vm.min_free_kbytes``; None computes it from ``lowmem_pages``.
        scale: ``vm.watermark_scale_factor`` in 1/10000 of the zone.
    """
    if min_free_kbytes is None:
        min_free_kbytes = default_min_free_kbytes(lowmem_pages)
    minimum = (min_free_kbytes >> (PAGE_SHIFT - 10)) * managed_pages // lowmem_pages
    step = max(minimum >> 2, managed_pages * scale // 10000)
    return Watermarks(min=minimum, low=minimum + step, high=minimum + 2 * step)


class Zone:
    """``struct zone``: the free lists and counters of one span of page frames.

    ``nr_free`` and ``reported_pages`` are fixed arrays, indexed by order, and count blocks of that order.
    ``free_pages`` counts 4 KiB pages. All three leave out blocks that a reporter has isolated and per-CPU pages.

    ``fast_mark`` is, for each migratetype, the number of pages that have to stay free for a request to be served on the
    fast path; :mod:`guest.mm.watermark` alone writes it. Where ``watermarks``, the reserves or the boost change,
    ``watermark.refresh`` has to be called.

    The fields of page reporting are written by the registered reporter alone and read by ``page_alloc``:

    ``notify_order``, ``notify``
        a free that ends in a block of at least this order calls ``notify(zone, order)`` (``NO_ORDER``: never).
    ``reporting_state``
        the life cycle of this zone with ``boundary`` and ``scan`` (see ``zone_reporting``); IDLE with ``rotation``.
    ``reported_boundary_order``, ``reported_boundary``, ``reported_index``
        while the boundaries are valid: the least order that has one, one list entry per (order, migratetype), and for
        each possible reported block its index in that array (the kernel keeps it in ``page->index``).
        While they are invalid, the order is ``NO_ORDER``.
    """

    __slots__ = (
        "cma_pages",
        "end_pfn",
        "fast_mark",
        "free_cma_pages",
        "free_list",
        "free_pages",
        "index",
        "keeps_free_highatomic",
        "lowmem_reserve",
        "managed_pages",
        "name",
        "node",
        "notify",
        "notify_order",
        "nr_free",
        "nr_reserved_highatomic",
        "pcp",
        "pcps",
        "reported_boundary",
        "reported_boundary_order",
        "reported_index",
        "reported_pages",
        "reporting_state",
        "start_pfn",
        "type",
        "watermark_boost",
        "watermark_min",
        "watermarks",
    )

    def __init__(self, index: int, span: ZoneSpan, marks: Watermarks, *, node: int = 0) -> None:
        self.index = index
        self.node = node
        self.name = span.name
        self.type = ZONE_TYPES.get(span.name, ZoneType.NORMAL)
        self.start_pfn = span.start_pfn
        self.end_pfn = span.end_pfn
        self.managed_pages = span.end_pfn - span.start_pfn
        self.watermarks = marks
        self.watermark_min = marks.min  # a copy one attribute away: every allocation compares with it
        self.watermark_boost = 0
        """Pages added to every watermark after a steal between migratetypes, until kswapd has run."""
        self.lowmem_reserve = (0,) * len(ZoneType)
        """Pages kept from requests that could use a higher zone, by the highest zone they could use."""
        self.fast_mark = [NEVER] * MIGRATE_TYPES
        self.nr_reserved_highatomic = 0
        """Pages in HIGHATOMIC pageblocks, free or not."""
        self.keeps_free_highatomic = False
        """Whether the watermarks leave out the free pages of HIGHATOMIC pageblocks alone, as since Linux 6.13."""
        self.cma_pages = 0
        """Pages in CMA pageblocks, free or not."""
        self.free_cma_pages = 0
        self.pcp: PerCpuPages | None = None
        """The per-CPU lists of the CPU that runs at the moment; None in a machine without them."""
        self.pcps: tuple[PerCpuPages, ...] = ()
        self.free_list = FreeList()
        self.nr_free = [0] * NR_PAGE_ORDERS
        self.free_pages = 0
        self.reported_pages = [0] * NR_PAGE_ORDERS
        self.notify_order = NO_ORDER
        self.notify: Callable[[Zone, int], None] = _no_reporter
        self.reporting_state = ReportingState.IDLE
        self.reported_boundary_order = NO_ORDER
        self.reported_boundary: list[int] = []
        self.reported_index = bytearray()

    @property
    def free_highatomic(self) -> int:
        """Free pages on the lists of HIGHATOMIC pageblocks (``nr_free_highatomic``)."""
        if not self.nr_reserved_highatomic:
            return 0
        lists = ((order, self.free_list.entries(order, MigrateType.HIGHATOMIC)) for order in range(NR_PAGE_ORDERS))
        return sum(1 << order for order, blocks in lists for _ in blocks)

    @property
    def unusable_highatomic(self) -> int:
        """Pages that a request without a right to the reserve may not count on (``__zone_watermark_unusable_free``)."""
        return self.free_highatomic if self.keeps_free_highatomic else self.nr_reserved_highatomic

    def __repr__(self) -> str:
        return f"<Zone {self.name} pfn {self.start_pfn}..{self.end_pfn} free {self.free_pages}>"


def _no_reporter(zone: Zone, order: int) -> None:
    # The notifier of a zone without a reporter. notify_order keeps it from being called.
    raise AssertionError(f"zone {zone.name} has no page reporter, but was told of a free of order {order}")
