"""``/proc/zoneinfo`` (Linux 6.1, mm/vmstat.c, ``zoneinfo_show_print``): watermarks, sizes, per-CPU lists of each zone.

The form is that of a kernel for one processor without NUMA; a kernel for several adds one line for each of them.
Counters of features that this memory manager lacks (slabs, dirty pages, kernel stacks, ...) are shown as 0, as by a
kernel that never used them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from guest.mm import watermark
from guest.mm.mmzone import PAGE_SHIFT, ZONE_TYPES, Watermarks, Zone, ZoneType
from guest.mm.page_alloc import PageAllocator

_NODE_STAT_ITEMS: Final = """\
nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable
nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon
workingset_refault_file workingset_activate_anon workingset_activate_file workingset_restore_anon
workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback
nr_writeback_temp nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped
nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written
nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired nr_foll_pin_released nr_kernel_stack
nr_page_table_pages nr_sec_page_table_pages nr_swapcached
"""
NODE_STAT_ITEMS: Final = tuple(_NODE_STAT_ITEMS.split())
"""``enum node_stat_item`` as Linux 6.1 names its counters, in order."""

_ZONE_STAT_ITEMS: Final = """\
nr_free_pages nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file nr_zone_active_file
nr_zone_unevictable nr_zone_write_pending nr_mlock nr_bounce nr_zspages nr_free_cma
"""
ZONE_STAT_ITEMS: Final = tuple(_ZONE_STAT_ITEMS.split())
"""``enum zone_stat_item`` as Linux 6.1 names its counters, in order."""

_THRESHOLD_MAX: Final = 125
_THRESHOLD_SHIFT: Final = 27 - PAGE_SHIFT


@dataclass(frozen=True, slots=True, kw_only=True)
class Pageset:
    """The per-CPU lists of one processor: pages in all of them, pages from which they are drained, pages at a time."""

    count: int
    high: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneInfo:
    """One zone of ``/proc/zoneinfo``. All sizes are pages; a counter that is not given is 0.

    ``node_statistics`` is None for all zones but the first populated one of a node. ``vm_stats_threshold`` is None in a
    kernel for one processor.
    """

    node: int
    name: str
    free_pages: int
    watermarks: Watermarks
    spanned_pages: int
    present_pages: int
    managed_pages: int
    protection: Sequence[int]
    start_pfn: int
    boost: int = 0
    cma_pages: int = 0
    node_statistics: Mapping[str, int] | None = None
    zone_statistics: Mapping[str, int] = field(default_factory=dict)
    pagesets: Sequence[Pageset] = ()
    vm_stats_threshold: int | None = None


def zoneinfo(allocator: PageAllocator) -> str:
    """Return ``/proc/zoneinfo`` of the guest.

    A kernel is built for certain zones, and those without memory have a short entry. This one counts as built for all
    from its lowest zone up to Movable.
    """
    zones = {zone.type: zone for zone in allocator.zones}
    lowest = min(zones)
    return "".join(
        format_zoneinfo(
            _zone_information(zones[kind], lowest, _spanned_pages(allocator, zones[kind]))
            if kind in zones
            else _unpopulated(kind, lowest)
        )
        for kind in ZoneType
        if kind >= lowest
    )


def normal_threshold(managed_pages: int, processors: int) -> int:
    """Return the largest difference that a processor keeps in its own counter (``calculate_normal_threshold``)."""
    of_memory = 1 + (managed_pages >> _THRESHOLD_SHIFT).bit_length()
    return min(_THRESHOLD_MAX, 2 * processors.bit_length() * of_memory)


def format_zoneinfo(zone: ZoneInfo) -> str:
    """Return one zone's entry, byte for byte."""
    lines = [f"Node {zone.node}, zone {zone.name:>8}"]
    if zone.node_statistics is not None:
        lines.append("  per-node stats")
        lines += _statistics(NODE_STAT_ITEMS, zone.node_statistics)
    lines.append(f"  pages free     {zone.free_pages}")
    for label, pages in (
        ("boost", zone.boost),
        ("min", zone.watermarks.min),
        ("low", zone.watermarks.low),
        ("high", zone.watermarks.high),
        ("spanned", zone.spanned_pages),
        ("present", zone.present_pages),
        ("managed", zone.managed_pages),
        ("cma", zone.cma_pages),
    ):
        lines.append(f"        {label:<8} {pages}")
    lines.append(f"        protection: ({', '.join(map(str, zone.protection))})")
    if zone.present_pages:
        lines += _statistics(ZONE_STAT_ITEMS, {"nr_free_pages": zone.free_pages, **zone.zone_statistics})
        lines += _pagesets(zone)
        lines += ["  node_unreclaimable:  0", f"  start_pfn:           {zone.start_pfn}"]
    return "\n".join(lines) + "\n"


def _statistics(items: Sequence[str], values: Mapping[str, int]) -> list[str]:
    return [f"      {item:<12} {values.get(item, 0)}" for item in items]


def _pagesets(zone: ZoneInfo) -> list[str]:
    lines = ["  pagesets"]
    for cpu, pageset in enumerate(zone.pagesets):
        lines += [
            f"    cpu: {cpu}",
            f"              count: {pageset.count}",
            f"              high:  {pageset.high}",
            f"              batch: {pageset.batch}",
        ]
        if zone.vm_stats_threshold is not None:
            lines.append(f"  vm stats threshold: {zone.vm_stats_threshold}")
    return lines


def _spanned_pages(allocator: PageAllocator, zone: Zone) -> int:
    # zone_spanned_pages_in_node: up to the next zone, so with the hole between them.
    following = allocator.zones[zone.index + 1 : zone.index + 2]
    return (following[0].start_pfn if following else zone.end_pfn) - zone.start_pfn


def _zone_information(zone: Zone, lowest: ZoneType, spanned_pages: int) -> ZoneInfo:
    processors = len(zone.pcps)
    # A kernel always has these lists; before their setup they are empty.
    pagesets = [Pageset(count=pcp.count, high=pcp.high, batch=pcp.batch) for pcp in zone.pcps]
    return ZoneInfo(
        node=zone.node,
        name=zone.name,
        free_pages=zone.free_pages,
        boost=zone.watermark_boost,
        watermarks=Watermarks(
            min=watermark.min_wmark_pages(zone),
            low=watermark.low_wmark_pages(zone),
            high=watermark.high_wmark_pages(zone),
        ),
        spanned_pages=spanned_pages,
        present_pages=zone.end_pfn - zone.start_pfn,
        managed_pages=zone.managed_pages,
        cma_pages=zone.cma_pages,
        protection=zone.lowmem_reserve[lowest:],
        start_pfn=zone.start_pfn,
        node_statistics={} if zone.type == lowest else None,
        zone_statistics={"nr_free_cma": zone.free_cma_pages},
        pagesets=pagesets or [Pageset(count=0, high=0, batch=1)],
        vm_stats_threshold=normal_threshold(zone.managed_pages, processors) if processors > 1 else None,
    )


def _unpopulated(kind: ZoneType, lowest: ZoneType) -> ZoneInfo:
    return ZoneInfo(
        node=0,
        name=next(name for name, zone_type in ZONE_TYPES.items() if zone_type is kind),
        free_pages=0,
        watermarks=Watermarks(min=0, low=0, high=0),
        spanned_pages=0,
        present_pages=0,
        managed_pages=0,
        protection=(0,) * (len(ZoneType) - lowest),
        start_pfn=0,
    )
