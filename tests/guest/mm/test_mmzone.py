"""guest/mm/mmzone.py: the kernel's numbers."""

import pytest

from guest.mm.mmzone import ReportingState, Watermarks, watermarks
from guest.mm.pageblock import MAX_ORDER, PAGEBLOCK_ORDER, MigrateType


def test_constants_are_those_of_x86_64() -> None:
    assert (MAX_ORDER, PAGEBLOCK_ORDER) == (10, 9)
    names = ["UNMOVABLE", "MOVABLE", "RECLAIMABLE", "HIGHATOMIC", "CMA", "ISOLATE"]
    assert [migratetype.name for migratetype in MigrateType] == names
    assert [(state.name, int(state)) for state in ReportingState] == [("IDLE", 0), ("REQUESTED", 1), ("ACTIVE", 2)]


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        # 1 GiB: 4 * sqrt(1048576 KiB) = 4096 KiB. The step is a quarter of it, or a thousandth of the memory.
        (1, Watermarks(min=1024, low=1286, high=1548)),
        (64, Watermarks(min=8192, low=8192 + 16777, high=8192 + 2 * 16777)),
        # From 4 TiB on, 262144 KiB.
        (16384, Watermarks(min=65536, low=65536 + 4294967, high=65536 + 2 * 4294967)),
    ],
)
def test_watermarks_of_one_zone(gib: int, expected: Watermarks) -> None:
    assert watermarks(gib << 18, gib << 18) == expected


def test_small_memory_keeps_128_kib() -> None:
    assert watermarks(64, 64) == Watermarks(min=32, low=40, high=48)


def test_zone_gets_its_share() -> None:
    assert watermarks(1 << 16, 1 << 18).min == 1024 // 4
    assert watermarks(1 << 16, 1 << 18, min_free_kbytes=8192).min == 2048 // 4
    assert watermarks(100_000, 100_000, min_free_kbytes=4, scale=100) == Watermarks(min=1, low=1001, high=2001)
