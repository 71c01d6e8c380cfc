"""``/proc/zoneinfo`` (mm/vmstat.c, ``zoneinfo_show_print``): watermarks, sizes, per-CPU lists of each zone.

The form is that of Linux 6.1 or 7.2, whichever the memory manager follows, built for one processor without NUMA; a
kernel for several adds one line for each of them.
Counters of features that this memory manager lacks (slabs, dirty pages, kernel stacks, ...) are shown as 0, as by a
kernel that never used them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from guest.mm import watermark
from guest.mm.mmzone import PAGE_SHIFT, ZONE_TYPES, Watermarks, Zone, ZoneType
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import NR_PAGE_ORDERS
from guest.mm.pcp import zone_highsize

_NODE_6_1: Final = """\
nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable
nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon
workingset_refault_file workingset_activate_anon workingset_activate_file workingset_restore_anon
workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback
nr_writeback_temp nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped
nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written
nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired nr_foll_pin_released nr_kernel_stack
nr_page_table_pages nr_sec_page_table_pages nr_swapcached
"""
_NODE_7_2: Final = """\
nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable
nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon
workingset_refault_file workingset_activate_anon workingset_activate_file workingset_restore_anon
workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback nr_shmem
nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped nr_anon_transparent_hugepages
nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written nr_throttled_written nr_kernel_misc_reclaimable
nr_foll_pin_acquired nr_foll_pin_released nr_vmalloc nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages
nr_iommu_pages nr_swapcached pgdemote_kswapd pgdemote_direct pgdemote_khugepaged pgdemote_proactive pgsteal_kswapd
pgsteal_direct pgsteal_khugepaged pgsteal_proactive pgsteal_anon pgsteal_file pgscan_kswapd pgscan_direct
pgscan_khugepaged pgscan_proactive pgscan_anon pgscan_file pgrefill nr_balloon_pages nr_kernel_file_pages
nr_gpu_active nr_gpu_reclaim
"""

_ZONE_6_1: Final = """\
nr_free_pages nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file nr_zone_active_file
nr_zone_unevictable nr_zone_write_pending nr_mlock nr_bounce nr_zspages nr_free_cma
"""
_ZONE_7_2: Final = """\
nr_free_pages nr_free_pages_blocks nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file
nr_zone_active_file nr_zone_unevictable nr_zone_write_pending nr_mlock nr_zspages nr_free_cma
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneinfoForm:
    """What one release of Linux shows."""

    node_items: tuple[str, ...]
    """``enum node_stat_item`` as it names its counters, in order."""
    zone_items: tuple[str, ...]
    """``enum zone_stat_item`` as it names its counters, in order."""
    is_extended: bool
    """Whether the promotion watermark, the bounds of the per-CPU lists and the HIGHATOMIC reserve are shown."""
    empty_movable_watermark: int
    """The watermarks of a Movable zone without memory, in pages: since 6.5 the zone has a minimum of its own."""


LINUX_6_1: Final = ZoneinfoForm(
    node_items=tuple(_NODE_6_1.split()),
    zone_items=tuple(_ZONE_6_1.split()),
    is_extended=False,
    empty_movable_watermark=0,
)
LINUX_7_2: Final = ZoneinfoForm(
    node_items=tuple(_NODE_7_2.split()),
    zone_items=tuple(_ZONE_7_2.split()),
    is_extended=True,
    empty_movable_watermark=32,
)

_HIGH_MAX_FRACTION: Final = 8
"""The per-CPU lists of a zone may grow to this part of it (MIN_PERCPU_PAGELIST_HIGH_FRACTION)."""
_THRESHOLD_MAX: Final = 125
_THRESHOLD_SHIFT: Final = 27 - PAGE_SHIFT


@dataclass(frozen=True, slots=True, kw_only=True)
class Pageset:
    """The per-CPU lists of one processor: pages in all of them, pages from which they are drained, pages at a time.

    Linux 7.2 lets ``high`` vary between two bounds; here it stays at the lower one.
    """

    count: int
    high: int
    batch: int
    high_min: int = 0
    high_max: int = 0


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
    reserved_highatomic: int = 0
    free_highatomic: int = 0


def zoneinfo_form(allocator: PageAllocator) -> ZoneinfoForm:
    """Return the form of the release that ``allocator`` follows."""
    return LINUX_7_2 if allocator.claims_pageblocks else LINUX_6_1


def zoneinfo(allocator: PageAllocator) -> str:
    """Return ``/proc/zoneinfo`` of the guest, as the release writes it that its memory manager follows.

    A kernel is built for certain zones, and those without memory have a short entry. This one counts as built for all
    from its lowest zone up to Movable.
    """
    zones = {zone.type: zone for zone in allocator.zones}
    lowest = min(zones)
    form = zoneinfo_form(allocator)
    return "".join(
        format_zoneinfo(
            _zone_information(allocator, zones[kind], lowest) if kind in zones else _unpopulated(kind, lowest, form),
            form,
        )
        for kind in ZoneType
        if kind >= lowest
    )


def normal_threshold(managed_pages: int, processors: int) -> int:
    """Return the largest difference that a processor keeps in its own counter (``calculate_normal_threshold``)."""
    of_memory = 1 + (managed_pages >> _THRESHOLD_SHIFT).bit_length()
    return min(_THRESHOLD_MAX, 2 * processors.bit_length() * of_memory)


def format_zoneinfo(zone: ZoneInfo, form: ZoneinfoForm = LINUX_6_1) -> str:
    """Return one zone's entry, byte for byte."""
    marks = zone.watermarks
    lines = [f"Node {zone.node}, zone {zone.name:>8}"]
    if zone.node_statistics is not None:
        lines.append("  per-node stats")
        lines += _statistics(form.node_items, zone.node_statistics)
    lines.append(f"  pages free     {zone.free_pages}")
    for label, pages in (
        ("boost", zone.boost),
        ("min", marks.min),
        ("low", marks.low),
        ("high", marks.high),
        # As far above the high mark as that is above the low one.
        *((("promo", 2 * marks.high - marks.low),) if form.is_extended else ()),
        ("spanned", zone.spanned_pages),
        ("present", zone.present_pages),
        ("managed", zone.managed_pages),
        ("cma", zone.cma_pages),
    ):
        lines.append(f"        {label:<8} {pages}")
    lines.append(f"        protection: ({', '.join(map(str, zone.protection))})")
    if zone.present_pages:
        lines += _statistics(form.zone_items, {"nr_free_pages": zone.free_pages, **zone.zone_statistics})
        lines += _pagesets(zone, form)
        lines += ["  node_unreclaimable:  0", f"  start_pfn:           {zone.start_pfn}"]
        if form.is_extended:
            lines.append(f"  reserved_highatomic: {zone.reserved_highatomic}")
            lines.append(f"  free_highatomic:     {zone.free_highatomic}")
    return "\n".join(lines) + "\n"


def _statistics(items: Sequence[str], values: Mapping[str, int]) -> list[str]:
    return [f"      {item:<12} {values.get(item, 0)}" for item in items]


def _pagesets(zone: ZoneInfo, form: ZoneinfoForm) -> list[str]:
    lines = ["  pagesets"]
    names = ("count", "high", "batch", *(("high_min", "high_max") if form.is_extended else ()))
    width = 1 + max(map(len, names))
    for cpu, pageset in enumerate(zone.pagesets):
        lines.append(f"    cpu: {cpu}")
        lines += [f"              {name + ':':<{width}} {getattr(pageset, name)}" for name in names]
        if zone.vm_stats_threshold is not None:
            lines.append(f"  vm stats threshold: {zone.vm_stats_threshold}")
    return lines


def _spanned_pages(allocator: PageAllocator, zone: Zone) -> int:
    # zone_spanned_pages_in_node: up to the next zone, so with the hole between them.
    following = allocator.zones[zone.index + 1 : zone.index + 2]
    return (following[0].start_pfn if following else zone.end_pfn) - zone.start_pfn


def _zone_information(allocator: PageAllocator, zone: Zone, lowest: ZoneType) -> ZoneInfo:
    processors = len(zone.pcps)
    high_max = zone.managed_pages // _HIGH_MAX_FRACTION
    # A kernel always has these lists; before their setup they are empty.
    pagesets = [
        Pageset(
            count=pcp.count,
            high=pcp.high,
            batch=pcp.batch,
            high_min=zone_highsize(zone.watermarks.low, pcp.batch, processors),
            high_max=zone_highsize(high_max, pcp.batch, processors),
        )
        for pcp in zone.pcps
    ]
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
        spanned_pages=_spanned_pages(allocator, zone),
        present_pages=zone.end_pfn - zone.start_pfn,
        managed_pages=zone.managed_pages,
        cma_pages=zone.cma_pages,
        protection=zone.lowmem_reserve[lowest:],
        start_pfn=zone.start_pfn,
        node_statistics={} if zone.type == lowest else None,
        zone_statistics={
            "nr_free_pages_blocks": sum(
                zone.nr_free[order] << order for order in range(allocator.pageblock_order, NR_PAGE_ORDERS)
            ),
            "nr_free_cma": zone.free_cma_pages,
        },
        pagesets=pagesets or [Pageset(count=0, high=0, batch=1)],
        vm_stats_threshold=normal_threshold(zone.managed_pages, processors) if processors > 1 else None,
        reserved_highatomic=zone.nr_reserved_highatomic,
        free_highatomic=zone.free_highatomic,
    )


def _unpopulated(kind: ZoneType, lowest: ZoneType, form: ZoneinfoForm) -> ZoneInfo:
    mark = form.empty_movable_watermark if kind is ZoneType.MOVABLE else 0
    return ZoneInfo(
        node=0,
        name=next(name for name, zone_type in ZONE_TYPES.items() if zone_type is kind),
        free_pages=0,
        watermarks=Watermarks(min=mark, low=mark, high=mark),
        spanned_pages=0,
        present_pages=0,
        managed_pages=0,
        protection=(0,) * (len(ZoneType) - lowest),
        start_pfn=0,
    )
