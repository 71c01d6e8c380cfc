"""guest/mm/vmstat.py, byte for byte."""

from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.vmstat import buddyinfo


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
