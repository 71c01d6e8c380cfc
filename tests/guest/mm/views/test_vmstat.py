"""The text interfaces, byte for byte: against texts of Linux 6.1 and against counts made by hand."""

import re
from pathlib import Path

import pytest

from guest.mm import highatomic
from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.views.vmstat import (
    FREECOUNT_LIMIT,
    MIGRATETYPE_NAMES,
    VIEWS,
    PageTypes,
    buddyinfo,
    format_buddyinfo,
    format_pagetypeinfo,
    format_unusable_index,
    pagetypeinfo,
    unusable_free_index,
    unusable_index,
)
from guest.mm.views.vmstat_zoneinfo import (
    LINUX_6_1,
    LINUX_7_2,
    ZoneinfoForm,
    format_zoneinfo,
    normal_threshold,
    zoneinfo,
)
from guest.mm.x86.zones import x86_64_zones
from tests.guest.mm.views.proc_text import parse_buddyinfo, parse_pagetypeinfo, parse_zoneinfo

FORMS = {"6.1": LINUX_6_1, "7.2": LINUX_7_2}
RELEASES = pytest.mark.parametrize("release", FORMS)


def linux(release: str, view: str) -> str:
    """Return what this release of Linux for User Mode Linux printed with 256 MiB."""
    return (Path(__file__).parent / f"linux-{release}" / view).read_text(encoding="ascii")


# --- Our writers give a real kernel's text back ---


@RELEASES
def test_buddyinfo_of_linux_is_written_the_same(release: str) -> None:
    text = linux(release, "buddyinfo")
    assert "".join(format_buddyinfo(*line) for line in parse_buddyinfo(text)) == text


@RELEASES
def test_pagetypeinfo_of_linux_is_written_the_same(release: str) -> None:
    text = linux(release, "pagetypeinfo")
    order, names, zones = parse_pagetypeinfo(text)
    assert (order, names) == (10, list(MIGRATETYPE_NAMES[:4]))
    assert format_pagetypeinfo(zones, pageblock_order=order, names=names) == text


@pytest.mark.parametrize(("release", "form"), FORMS.items())
def test_zoneinfo_of_linux_is_written_the_same(release: str, form: ZoneinfoForm) -> None:
    text = linux(release, "zoneinfo")
    assert "".join(format_zoneinfo(zone, form) for zone in parse_zoneinfo(text, form)) == text


@pytest.mark.parametrize(("release", "form"), FORMS.items())
def test_counters_of_zoneinfo_are_those_of_linux(release: str, form: ZoneinfoForm) -> None:
    lines = linux(release, "zoneinfo").splitlines()
    names = [line.split()[0] for line in lines if re.match(r" {6}\w", line)]
    assert names == [*form.node_items, *form.zone_items]


# --- Our guest's views ---


def test_buddyinfo_of_one_zone() -> None:
    allocator = PageAllocator(1 << 18)
    allocator.alloc_pages(0)
    assert buddyinfo(allocator) == (
        "Node 0, zone   Normal      1      1      1      1      1      1      1      1      1      1    255 \n"
    )


def test_buddyinfo_has_a_line_for_each_zone() -> None:
    spans = [
        ZoneSpan(name="DMA", start_pfn=0, end_pfn=4096),
        ZoneSpan(name="DMA32", start_pfn=4096, end_pfn=8195),
    ]
    assert buddyinfo(PageAllocator(8195, zones=spans)) == (
        "Node 0, zone      DMA      0      0      0      0      0      0      0      0      0      0      4 \n"
        "Node 0, zone    DMA32      1      1      0      0      0      0      0      0      0      0      4 \n"
    )


def test_pagetypeinfo_counts_lists_and_pageblocks_by_migratetype() -> None:
    """An unmovable page takes a whole block of order 10, and its two pageblocks with it."""
    allocator = PageAllocator(4096)
    allocator.alloc_pages(0, MigrateType.UNMOVABLE)
    assert pagetypeinfo(allocator) == (
        "Page block order: 9\n"
        "Pages per block:  512\n"
        "\n"
        "Free pages count per migrate type at order"
        "       0      1      2      3      4      5      6      7      8      9     10 \n"
        "Node    0, zone   Normal, type    Unmovable"
        "      1      1      1      1      1      1      1      1      1      1      0 \n"
        "Node    0, zone   Normal, type      Movable"
        "      0      0      0      0      0      0      0      0      0      0      3 \n"
        "Node    0, zone   Normal, type  Reclaimable"
        "      0      0      0      0      0      0      0      0      0      0      0 \n"
        "Node    0, zone   Normal, type   HighAtomic"
        "      0      0      0      0      0      0      0      0      0      0      0 \n"
        "Node    0, zone   Normal, type          CMA"
        "      0      0      0      0      0      0      0      0      0      0      0 \n"
        "Node    0, zone   Normal, type      Isolate"
        "      0      0      0      0      0      0      0      0      0      0      0 \n"
        "\n"
        "Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic          CMA      Isolate \n"
        "Node 0, zone   Normal            2            6            0            0            0            0 \n"
    )


def test_part_of_a_pageblock_counts_as_one() -> None:
    _, _, [zone] = parse_pagetypeinfo(pagetypeinfo(PageAllocator(4095, start_pfn=1)))
    assert zone.blocks == [0, 8, 0, 0, 0, 0]


def test_long_list_is_not_walked_to_its_end() -> None:
    """A list of 100,000 blocks and one of 100,001 look the same: the kernel stops there, for its lock's sake."""
    allocator = PageAllocator(FREECOUNT_LIMIT * 3)
    held = [allocator.alloc_pages(0) for _ in range(FREECOUNT_LIMIT * 2 + 20)]
    for pfn in held[::2]:
        assert pfn is not None
        allocator.free_pages(pfn, 0)
    row = next(line for line in pagetypeinfo(allocator).splitlines() if "type      Movable" in line)
    assert row.startswith("Node    0, zone   Normal, type      Movable >100000      ")


def test_zoneinfo_says_what_the_zone_says() -> None:
    allocator = PageAllocator(1 << 16)
    allocator.alloc_pages(4)
    entries = parse_zoneinfo(zoneinfo(allocator))
    entry, zone = entries[0], allocator.zones[0]
    assert entry.watermarks == zone.watermarks
    assert entry.free_pages == zone.free_pages == entry.zone_statistics["nr_free_pages"]
    assert (entry.spanned_pages, entry.present_pages, entry.managed_pages) == (1 << 16, 1 << 16, zone.managed_pages)
    assert "".join(map(format_zoneinfo, entries)) == zoneinfo(allocator)


@pytest.mark.parametrize(("release", "claims"), [("6.1", False), ("7.2", True)])
def test_zoneinfo_of_one_zone_has_the_entries_and_lines_of_linux(release: str, claims: bool) -> None:
    """A guest with one zone called Normal says the same as User Mode Linux, but for the numbers."""
    allocator = PageAllocator(1 << 16, claims_pageblocks=claims)
    ours, linux_s = (re.sub(r"\d+", "N", text) for text in (zoneinfo(allocator), linux(release, "zoneinfo")))
    assert ours == linux_s


def test_zoneinfo_of_7_2_shows_what_a_zone_of_256_mib_works_out_to() -> None:
    allocator = PageAllocator(1 << 16, claims_pageblocks=True, pageblock_order=10, nr_cpus=1)
    allocator.alloc_pages(9)
    text = zoneinfo(allocator)
    # min 4 * sqrt(262144) KiB, each further mark a quarter of it higher.
    marks = {"min": 512, "low": 640, "high": 768, "promo": 896}
    assert "".join(f"        {name:<8} {pages}\n" for name, pages in marks.items()) in text
    # One of the 64 blocks of a pageblock is split.
    assert f"      nr_free_pages {63 * 1024 + 512}\n      nr_free_pages_blocks {63 * 1024}\n" in text
    # As many as the low mark, up to an eighth of the zone.
    assert (
        "              count:    0\n              high:     640\n              batch:    15\n"
        "              high_min: 640\n              high_max: 8192\n"
    ) in text
    assert "  reserved_highatomic: 0\n  free_highatomic:     0\n" in text
    # A Movable zone without memory has watermarks nevertheless.
    assert "".join(f"        {name:<8} 32\n" for name in marks) in text


def test_zoneinfo_of_7_2_shows_what_is_reserved_and_what_of_it_is_free() -> None:
    allocator = PageAllocator(1 << 18, claims_pageblocks=True, pageblock_order=10)
    zone = allocator.zones[0]
    assert allocator.isolate_free_page(zone, 2048, 10)
    assert highatomic.reserve(allocator, zone, 2048, 1)
    assert highatomic.reserve(allocator, zone, 4096, 1)
    assert "  reserved_highatomic: 2048\n  free_highatomic:     1024\n" in zoneinfo(allocator)


def test_zones_of_x86_64_without_memory_have_short_entries() -> None:
    """A machine of 1 GiB has DMA and DMA32; what a zone keeps from requests for higher ones is their size by ratio."""
    entries = parse_zoneinfo(zoneinfo(PageAllocator(1 << 18, zones=x86_64_zones(1 << 18))))
    assert [(entry.name, entry.managed_pages) for entry in entries] == [
        ("DMA", 4096),
        ("DMA32", (1 << 18) - 4096),
        ("Normal", 0),
        ("Movable", 0),
    ]
    assert [entry.node_statistics is None for entry in entries] == [False, True, True, True]
    assert list(entries[0].protection) == [0, 1008, 1008, 1008]
    assert zoneinfo(PageAllocator(1 << 18)).splitlines()[-1] == "        protection: (0, 0)"


def test_pagesets_are_shown_for_all_processors() -> None:
    allocator = PageAllocator(1 << 18, nr_cpus=2)
    allocator.alloc_pages(0)
    text = zoneinfo(allocator)
    pcp = allocator.zones[0].pcps[0]
    assert pcp.count > 0
    assert (
        "  pagesets\n"
        f"    cpu: 0\n              count: {pcp.count}\n              high:  {pcp.high}\n"
        f"              batch: {pcp.batch}\n  vm stats threshold: {normal_threshold(1 << 18, 2)}\n"
        f"    cpu: 1\n              count: 0\n              high:  {pcp.high}\n"
        f"              batch: {pcp.batch}\n  vm stats threshold: {normal_threshold(1 << 18, 2)}\n"
        "  node_unreclaimable:  0\n"
    ) in text


def test_boosted_zone_shows_boost_and_marks_together() -> None:
    """The kernel prints min_wmark_pages() and so on, which include the boost."""
    allocator = PageAllocator(1 << 18)
    zone = allocator.zones[0]
    zone.watermark_boost = 512
    entry = parse_zoneinfo(zoneinfo(allocator))[0]
    assert entry.boost == 512
    assert entry.watermarks.min == zone.watermarks.min + 512


def test_pagetypeinfo_of_another_pageblock_order() -> None:
    text = pagetypeinfo(PageAllocator(1 << 14, pageblock_order=10))
    assert text.startswith("Page block order: 10\nPages per block:  1024\n\n")
    assert parse_pagetypeinfo(text)[2][0].blocks == [0, 16, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("managed_mib", "processors", "threshold"),
    # The table in the comment of the kernel's calculate_normal_threshold: memory, processors, threshold.
    [(90, 1, 2), (90, 2, 4), (90, 4, 6), (512, 2, 16), (4096, 2, 28), (4736, 2, 28), (3019, 2, 24), (1 << 24, 64, 125)],
)
def test_threshold_of_counters(managed_mib: int, processors: int, threshold: int) -> None:
    assert normal_threshold(managed_mib << 8, processors) == threshold


def test_unusable_index_of_whole_memory_is_zero() -> None:
    assert unusable_index(PageAllocator(1 << 14)) == "Node 0, zone   Normal " + "0.000 " * 11 + "\n"


def test_unusable_index_of_scattered_pages() -> None:
    """3 pages alone, one pair, one block of 4: of 9 free pages 3 are too small for order 1, 5 for order 2, then all."""
    nr_free = [3, 1, 1, 0]
    assert [unusable_free_index(order, nr_free) for order in range(4)] == [0, 333, 555, 1000]
    assert format_unusable_index(0, "DMA32", nr_free) == "Node 0, zone    DMA32 0.000 0.333 0.555 1.000 \n"


def test_unusable_index_without_free_memory_is_one() -> None:
    assert unusable_free_index(0, [0] * 11) == 1000


@pytest.mark.parametrize("name", VIEWS)
def test_views_end_with_a_newline(name: str) -> None:
    assert VIEWS[name](PageAllocator(5000)).endswith("\n")


def test_wide_numbers_push_the_columns_apart() -> None:
    zone = PageTypes(node=0, name="Normal", free_counts=[[1234567, 5]], blocks=[1])
    row = format_pagetypeinfo([zone], names=["Movable"]).splitlines()[4]
    assert row == "Node    0, zone   Normal, type      Movable >1234567      5 "
